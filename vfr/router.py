"""The public API: one Router per network namespace.

    with Router() as router:
        router.nat_enable(uplink="eth0")
        router.add_domain("web", netns="web")
        print(router.domains())

Every method either does the whole of what it says, or raises a VfrError and leaves things as they were.
A process that is killed in between leaves an intent in the registry, and the next method that changes
anything completes it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from vfr import instance as instances
from vfr import mark
from vfr._abi import Limit, Verdict
from vfr.doctor import OLDEST_KERNEL, Facts, Finding, ForwardTo, Netfilter, Ours, VifState, findings
from vfr.errors import ConflictError, KernelError, UsageError, VfrError
from vfr.registry import Contents, Domain, Nat, Registry, Rules, locked, read_only
from vfr.settings import DOM0_LIMITS, Limits, Timers

if TYPE_CHECKING:
    from vfr.kernel.host import Host
    from vfr.kernel.links import Link
    from vfr.plan import Actual, Change, Uplink, Vif, Wanted
    from vfr.policy import CompiledPolicy, RuleSet

POOL = IPv4Network("169.254.1.0/24")
GATEWAY = IPv4Address("169.254.1.0")
NAT_PORTS = (16384, 32767)
PORTS_PER_DOMAIN = 64
FORWARDS = (2, 19)
FORWARD_BASE = 2200
SSH = 22
MTU = 1500
SHIPPED_RULES = Path(__file__).resolve().parent.parent / "rules"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?")
_RESERVED = ("any", "lan", "dom0", "internet")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NEVER = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_TCP = 6
_LINK_LOCAL = IPv4Network("169.254.0.0/16")


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """A domain as `vfr domain list` shows it. `state` is up, missing (its namespace or device is gone)
    or degraded (`reason` says why); `forward` is the outside port that leads to its ssh."""

    name: str
    address: str
    mac: str
    kind: str
    netns: str | None
    interface: str
    forward: int | None
    outside_ports: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """One forward. `domain` is None while nobody has the address, and the port then leads nowhere."""

    outside_port: int
    address: str
    inside_port: int
    domain: str | None


@dataclass(frozen=True, slots=True)
class NatStatus:
    """What `vfr nat status` shows."""

    enabled: bool
    uplink: str | None
    address: str | None
    forwards: tuple[ForwardStatus, ...]
    ports: str | None
    ports_per_domain: int | None
    rules: str | None
    domains: int
    attached_by: str | None


@dataclass(frozen=True, slots=True)
class DropEvent:
    """One drop, as `vfr log` tells of it. `who` sent it: a domain, dom0, lan or unknown; `untold` are the
    drops of the same sender's since its last event that nothing was said of."""

    who: str
    verdict: str
    src: str
    dst: str
    sport: int
    dport: int
    protocol: str
    bytes: int
    untold: int


def _check_root(why: str) -> None:
    if os.geteuid():
        raise VfrError(f"this needs root, since {why}; run it with sudo")


def _check_machine() -> None:
    _check_root("it makes interfaces and loads BPF programs")
    release = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
    if release < OLDEST_KERNEL:
        raise VfrError(f"the kernel {platform.release()} is too old; VFR needs Linux 6.1 or later")
    from vfr.kernel import bpf

    bpf.check_allowed()


def _netns_names() -> list[str]:
    return sorted(p.name for p in instances.NETNS.iterdir()) if instances.NETNS.is_dir() else []


def _address(text: str | IPv4Address) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise UsageError(f"{text!r} is not an IPv4 address; write it as 169.254.1.7") from None


def _check_unicast(address: IPv4Address) -> None:
    if any(address in net for net in _NEVER):
        raise UsageError(f"{address} is not a unicast address; choose one in {POOL}, or any host address")
    if address == GATEWAY:
        raise ConflictError(f"{address} is domain 0's own address; choose another in {POOL}")
    if address == POOL.broadcast_address:
        raise UsageError(f"{address} is the broadcast address of {POOL}; choose another")
    if address in _LINK_LOCAL and address not in POOL:
        raise UsageError(f"{address} is link-local but not in the pool {POOL}; choose an address in the pool")


def _check_mac(mac: str) -> str:
    mac = mac.lower()
    if not _MAC.fullmatch(mac):
        raise UsageError(f"{mac!r} is not a MAC address; write it as 02:00:00:00:00:07")
    if int(mac[:2], 16) & 1 or mac in ("00:00:00:00:00:00", "fe:ff:ff:ff:ff:ff"):
        raise UsageError(f"{mac} cannot be a guest's MAC address; choose a unicast one, as 02:00:00:00:00:07")
    return mac


def _derived_mac(name: str) -> str:
    digest = hashlib.sha256(f"vfr domain {name}".encode()).digest()
    return ":".join(f"{b:02x}" for b in (0x02, *digest[:5]))


def _derived_interface(name: str) -> str:
    """vif-NAME where that fits an interface's 15 characters, else a shortened form with a hash."""
    if len(name) <= 11:
        return f"vif-{name}"
    return f"vif-{name[:6]}.{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def _listeners() -> dict[tuple[str, int], str]:
    """(protocol, port) -> local address of every listening or bound socket in this namespace."""
    found: dict[tuple[str, int], str] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if table.startswith("udp") or fields[3] == "0A":
                found[table[:3], int(fields[1].rpartition(":")[2], 16)] = fields[1]
    return found


def _check_ports(ports: tuple[int, int], per_domain: int, forwards: tuple[int, int]) -> None:
    low, high = ports
    if not 1024 <= low <= high <= 65535:
        raise UsageError(f"the port range {low}-{high} must lie between 1024 and 65535, low end first")
    if not 1 <= per_domain <= high - low + 1:
        raise UsageError(f"{per_domain} ports per domain do not fit the range {low}-{high}")
    if not 2 <= forwards[0] <= forwards[1] <= 254:
        raise UsageError(f"--forwards {forwards[0]}-{forwards[1]}: x runs from 2 to 254, low end first")
    if FORWARD_BASE + forwards[1] >= low:
        raise UsageError(f"forwards up to port {FORWARD_BASE + forwards[1]} run into the range {low}-{high}")
    first, last = (int(n) for n in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if low <= last and first <= high:
        raise ConflictError(
            f"the port range {low}-{high} overlaps {first}-{last}, which the host uses for itself"
            " (net.ipv4.ip_local_port_range); choose another with --ports"
        )


def _check_listeners(ports: tuple[int, int], forwards: tuple[int, int]) -> None:
    for (protocol, port), _ in sorted(_listeners().items()):
        if ports[0] <= port <= ports[1]:
            raise ConflictError(
                f"a program of the host listens on {protocol} port {port}, inside the range {ports[0]}-{ports[1]};"
                " end it, or choose another range with --ports"
            )
        if protocol == "tcp" and forwards[0] <= port - FORWARD_BASE <= forwards[1]:
            raise ConflictError(
                f"a program of the host listens on tcp port {port}, which would lead to 169.254.1.{port - FORWARD_BASE};"
                " end it, or choose other forwards with --forwards"
            )


class Router:
    """The virtual firewall-router of the network namespace this process is in.

    `on_step` is called with a sentence before each step that touches the kernel.
    """

    def __init__(self, on_step: Callable[[str], None] | None = None) -> None:
        self._instance = instances.current()
        self._on_step = on_step

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # Reading

    def _contents(self) -> Contents:
        return read_only(self._instance.registry)

    def domains(self) -> tuple[DomainStatus, ...]:
        """All domains, in the order they were added."""
        contents = self._contents()
        return tuple(self._status(d, contents) for d in contents.domains)

    def domain(self, name: str) -> DomainStatus:
        """One domain. UsageError if there is none of that name."""
        for status in self.domains():
            if status.name == name:
                return status
        raise _no_such(name, self._contents())

    def _status(self, d: Domain, contents: Contents) -> DomainStatus:
        state, reason = self._state(d)
        return DomainStatus(
            name=d.name,
            address=str(d.address),
            mac=d.mac,
            kind=d.kind,
            netns=d.netns,
            interface=d.interface,
            forward=_forward_port(d, contents.nat),
            outside_ports=f"{d.port_low}-{d.port_low + d.port_count - 1}",
            state=state,
            reason=reason,
        )

    def _state(self, d: Domain) -> tuple[str, str]:
        """Up only if the interface is, and our pin is there."""
        device, home = Path("/sys/class/net") / d.interface, instances.netns_inode(d.netns) if d.netns else None
        if d.netns and home is None:
            return "missing", f"the namespace {d.netns} is gone"
        flags_text, ours = _sysfs(device / "flags"), mark.read(_sysfs(device / "ifalias") or "")
        if flags_text is None:
            return "missing", f"the interface {d.interface} is gone"
        if ours is not None and ours.home != home:
            return (
                "degraded",
                f"{d.netns} is another namespace than {d.interface} leads to; any command that changes something repairs it",
            )
        if not int(flags_text, 16) & 1:
            return (
                "degraded",
                f"the interface {d.interface} is down; any command that changes something repairs it",
            )
        return "up", ""

    def nat_status(self) -> NatStatus:
        """Whether NAT is on, by which uplink and address, and where each forward leads."""
        contents = self._contents()
        nat, by_address = contents.nat, {d.address: d.name for d in contents.domains}
        forwards: list[ForwardStatus] = []
        if nat:
            for x in range(nat.forwards[0], nat.forwards[1] + 1):
                address = POOL[x]
                forwards.append(ForwardStatus(FORWARD_BASE + x, str(address), SSH, by_address.get(address)))
        return NatStatus(
            enabled=nat is not None,
            uplink=nat.uplink if nat else None,
            address=str(nat.address) if nat else None,
            forwards=tuple(forwards),
            ports=f"{nat.ports[0]}-{nat.ports[1]}" if nat else None,
            ports_per_domain=nat.ports_per_domain if nat else None,
            rules=contents.rules.file if contents.rules else None,
            domains=len(contents.domains),
            attached_by=self._attached_by(nat),
        )

    def _attached_by(self, nat: Nat | None) -> str | None:
        if nat is None:
            return None
        _check_root("nobody else may look into the fastpath")
        from vfr.kernel import links
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            link = links.links().get(nat.uplink)
            return host.fastpath.attached(link.index, "uplink") if host.is_loaded and link else None
        finally:
            host.close()

    def stats(self, name: str | None = None) -> dict[str, dict[str, dict[str, int]]]:
        """Domain, "dom0", "lan" or "unknown" -> verdict or "received" -> {"packets", "bytes"}.

        Each frame is counted once, where it came in; "received" is what was delivered there.
        """
        from vfr.kernel.host import Host

        contents = self._contents()
        rows = {"dom0": 0, "lan": int(Limit.ROW_LAN), "unknown": int(Limit.ROW_UNKNOWN)}
        rows.update({d.name: d.slot for d in contents.domains})
        if name is not None and name not in rows:
            raise _no_such(name, contents)
        if contents.is_empty:
            return {}
        _check_root("nobody else may look into the fastpath")
        host = Host(self._instance)
        try:
            wanted = {name: rows[name]} if name is not None else rows
            counted = host.fastpath.counters(wanted.values()) if host.is_loaded else {}
        finally:
            host.close()
        return {
            who: {verdict: {"packets": p, "bytes": b} for verdict, (p, b) in counted.get(row, {}).items()}
            for who, row in wanted.items()
        }

    def events(self, wait_s: float | None = None) -> Iterator[DropEvent]:
        """Drops as they happen, at each domain's rate; ends after `wait_s` seconds without one, or never.
        There is one reader at a time."""
        from vfr.kernel.host import Host

        contents = self._contents()
        names = {0: "dom0", int(Limit.ROW_LAN): "lan", int(Limit.ROW_UNKNOWN): "unknown"}
        names.update({d.slot: d.name for d in contents.domains})
        host = Host(self._instance)
        try:
            for e in host.fastpath.events(wait_s) if host.is_loaded else ():
                yield DropEvent(
                    who=names.get(e.row, f"slot {e.row}"),
                    verdict=Verdict(e.verdict).name,
                    src=str(IPv4Address(e.src)),
                    dst=str(IPv4Address(e.dst)),
                    sport=e.sport,
                    dport=e.dport,
                    protocol=_PROTOCOLS.get(e.protocol, str(e.protocol)),
                    bytes=e.bytes,
                    untold=e.untold,
                )
        finally:
            host.close()

    def doctor(self) -> tuple[Finding, ...]:
        """What on this host is in VFR's way, or is thought to be and is not: `vfr doctor`. Works without a router, and
        without root as far as others may look. RegistryError if the registry cannot be read."""
        from vfr.kernel import netfilter, survey

        contents, root = self._contents(), os.geteuid() == 0
        ours = self._own_facts(contents)
        reserved = (ours.forwards[0].port, ours.forwards[-1].port) if ours.forwards else (0, 0)
        machine = survey.machine(ours.uplink, POOL[1], [ours.ports, reserved])
        if not ours.exists:
            ours = replace(ours, uplink=machine.default)
        return findings(Facts(root, machine, netfilter.read() if root else Netfilter(), ours))

    def _own_facts(self, contents: Contents) -> Ours:
        from vfr.kernel import survey

        nat = contents.nat
        low, high = nat.forwards if nat else FORWARDS if contents.is_empty else (1, 0)
        states = [(d, *self._state(d)) for d in contents.domains]
        ours = Ours(
            exists=not contents.is_empty,
            nat=nat is not None,
            uplink=nat.uplink if nat else None,
            address=nat.address if nat else None,
            lan_lost=_lan_lost(nat) if nat else "",
            pool=POOL,
            ports=nat.ports if nat else NAT_PORTS,
            forwards=_forwards_to(contents, range(low, high + 1)),
            vifs=tuple(VifState(d.name, d.interface, state, reason) for d, state, reason in states),
            to_dom0=_may_reach_dom0(contents),
            lock=survey.lock_holder(self._instance.lock),
        )
        return self._kernel_facts(contents, ours) if os.geteuid() == 0 else ours

    def _kernel_facts(self, contents: Contents, ours: Ours) -> Ours:
        """The same, with what only root may see."""
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            if contents.is_empty:
                return replace(ours, leftover=tuple(host.leftover()))
            changes = self._plan(host, contents)
            uplink = ours.uplink if ours.uplink and not ours.lan_lost else None
            return replace(
                ours,
                todo=tuple(changes),
                guard=host.guard_state(),
                hooks=tuple(host.hooks([d.interface for d in contents.domains], uplink)),
                unhardened=tuple(host.unhardened()),
            )
        finally:
            host.close()

    # Changing

    def add_domain(
        self,
        name: str,
        *,
        netns: str | None = None,
        tap: str | None = None,
        device: str | None = None,
        address: str | IPv4Address | None = None,
        mac: str | None = None,
    ) -> DomainStatus:
        """Adds a domain by one of a namespace (its veth is made), a TAP (made) or a device (given).

        The address is the next free one of the pool unless one is given. UsageError or ConflictError say
        what is wrong with the arguments, KernelError what the kernel refused; nothing is left behind.
        """
        _check_machine()
        given = [(k, v) for k, v in (("netns", netns), ("tap", tap), ("device", device)) if v is not None]
        if len(given) != 1:
            raise UsageError("a domain needs exactly one of --netns, --tap and --device")
        kind, where = given[0]
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UsageError(
                f"{name!r} cannot be a domain's name; use up to 32 of a-z, 0-9, '.', '_', '-', beginning and ending"
                f" with a letter or digit, and none of {', '.join(_RESERVED)}"
            )

        def change(before: Contents, registry: Registry) -> Contents:
            domain = self._new_domain(before, registry, name, kind, where, address, mac)
            return replace(before, domains=(*before.domains, domain))

        self._change(change)
        return self.domain(name)

    def _new_domain(
        self,
        before: Contents,
        registry: Registry,
        name: str,
        kind: str,
        where: str,
        address: str | IPv4Address | None,
        mac: str | None,
    ) -> Domain:
        from vfr.kernel import links

        if any(d.name == name for d in before.domains):
            raise ConflictError(f"there is a domain {name!r} already; choose another name, or remove it first")
        present = links.links()
        interface = _derived_interface(name) if kind == "netns" else where
        _check_place(kind, where, interface, before, present)
        taken = {d.slot for d in before.domains}
        slot = next((s for s in range(1, Limit.SLOTS) if s not in taken), None)
        if slot is None:
            raise ConflictError(f"this router has {Limit.SLOTS - 1} domains, which is all it has room for")
        low, count = _free_block(before)
        return Domain(
            id=max(registry.next_id(), 2),  # 1 is domain 0's
            name=name,
            kind=kind,
            netns=where if kind == "netns" else None,
            interface=interface,
            address=_choose_address(address, before),
            mac=_choose_mac(mac, name, before),
            slot=slot,
            port_low=low,
            port_count=count,
        )

    def set_limits(self, name: str, **limits: int) -> Limits:
        """Sets some of a domain's limits (the fields of vfr.settings.Limits); living conversations stay as
        far as there is room. UsageError for a number that is out of range. Returns all of them."""
        _check_machine()

        def change(before: Contents, _: Registry) -> Contents:
            if not any(d.name == name for d in before.domains):
                raise _no_such(name, before)
            domains = [replace(d, limits=replace(d.limits, **limits)) if d.name == name else d for d in before.domains]
            return replace(before, domains=tuple(domains))

        self._change(change)
        return self.limits(name)

    def limits(self, name: str) -> Limits:
        """A domain's limits. VfrError if there is none of that name."""
        contents = self._contents()
        for d in contents.domains:
            if d.name == name:
                return d.limits
        raise _no_such(name, contents)

    def set_timers(self, **seconds: int) -> Timers:
        """Sets some of the timers (the fields of vfr.settings.Timers) from now on. Returns all of them."""
        _check_machine()

        def change(before: Contents, _: Registry) -> Contents:
            if before.is_empty:
                raise ConflictError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
            return replace(before, timers=replace(before.timers, **seconds))

        self._change(change)
        return self.timers()

    def timers(self) -> Timers:
        """The timers in force."""
        return self._contents().timers

    def sweep(self) -> None:
        """Clears all tables of what has expired. Never needed: what has expired counts for nothing."""
        from vfr.kernel.host import Host

        _check_machine()
        host = Host(self._instance)
        try:
            for slot in host.fastpath.domains() if host.is_loaded else ():
                host.fastpath.sweep(slot)
        finally:
            host.close()

    def remove_domain(self, *names: str) -> None:
        """Removes domains: their interfaces, sessions and forwards. A given device goes back as it was."""
        _check_machine()

        def change(before: Contents, _: Registry) -> Contents:
            for name in names:
                if all(d.name != name for d in before.domains):
                    raise _no_such(name, before)
            return before.without(names)

        self._change(change)

    def nat_enable(
        self,
        uplink: str | None = None,
        address: str | None = None,
        forwards: tuple[int, int] | None = None,
        ports: tuple[int, int] | None = None,
        ports_per_domain: int | None = None,
        rules: Path | None = None,
    ) -> NatStatus:
        """Gives every domain a masqueraded way to the LAN, and the forwards 2200+x. Run again, it repairs,
        and changes what is named. `forwards` are (low x, high x); `ports` (low, high) is what blocks are
        cut from. Everything is checked before anything is changed."""
        _check_machine()

        def change(before: Contents, _: Registry) -> Contents:
            nat = self._new_nat(before, uplink, address, forwards, ports, ports_per_domain)
            chosen = before.rules or _read_rules(SHIPPED_RULES / "xen.rules")
            return replace(before, nat=nat, rules=_read_rules(rules) if rules else chosen)

        self._change(change)
        return self.nat_status()

    def _new_nat(
        self,
        before: Contents,
        uplink: str | None,
        address: str | None,
        forwards: tuple[int, int] | None,
        ports: tuple[int, int] | None,
        per_domain: int | None,
    ) -> Nat:
        old = before.nat
        if old and uplink in (None, old.uplink) and address is None and _uplink_has(old):
            chosen, lan_address = old.uplink, old.address
        else:
            chosen, lan_address = _choose_uplink(uplink, address)
        nat = Nat(
            chosen,
            lan_address,
            forwards or (old.forwards if old else FORWARDS),
            ports or (old.ports if old else NAT_PORTS),
            per_domain or (old.ports_per_domain if old else PORTS_PER_DOMAIN),
        )
        _check_ports(nat.ports, nat.ports_per_domain, nat.forwards)
        _check_listeners(nat.ports, nat.forwards)
        for d in before.domains:
            if not nat.ports[0] <= d.port_low <= nat.ports[1] or d.port_count != nat.ports_per_domain:
                raise ConflictError(
                    f"the domain {d.name!r} has its ports {d.port_low}-{d.port_low + d.port_count - 1} from"
                    " other --ports or --ports-per-domain; remove the domains first, or leave the options"
                )
        return nat

    def nat_disable(self) -> NatStatus:
        """Takes NAT, forwards and rules back. With no domain left, nothing of VFR remains; domains that
        are left stay isolated."""
        _check_machine()
        self._change(lambda before, _: replace(before, nat=None, rules=None))
        return self.nat_status()

    def apply_rules(self, file: Path) -> None:
        """Puts a rule file in force, at once and whole. RuleError if it is not in order."""
        _check_machine()
        rules = _read_rules(file)

        def change(before: Contents, _: Registry) -> Contents:
            if before.is_empty:
                raise ConflictError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
            return replace(before, rules=rules)

        self._change(change)

    def preview_rules(self, file: Path) -> list[str]:
        """What apply_rules would do, changing nothing."""
        from vfr.kernel.host import Host

        contents = replace(self._contents(), rules=_read_rules(file))
        _check_root("nobody else may look into the fastpath")
        host = Host(self._instance)
        try:
            return [change.text for change in self._plan(host, contents)]
        finally:
            host.close()

    # Converging

    def _change(self, change: Callable[[Contents, Registry], Contents]) -> None:
        """Writes down what is wanted, then makes it so. If that fails, goes back and makes that so."""
        with locked(self._instance.lock):
            self._instance.state.mkdir(parents=True, exist_ok=True)
            try:
                self._change_locked(change)
            finally:
                if read_only(self._instance.registry).is_empty:
                    self._converge(Contents())

    def _change_locked(self, change: Callable[[Contents, Registry], Contents]) -> None:
        registry = Registry(self._instance.registry)
        try:
            before = registry.read()
            with registry.transaction():
                after = change(before, registry)
                registry.write(after)
            try:
                self._converge(after)
            except VfrError:
                with registry.transaction():
                    registry.write(before)
                with suppress(VfrError):  # the first error is the one to be told
                    self._converge(before)
                raise
        finally:
            registry.close()

    def _converge(self, contents: Contents) -> None:
        from vfr.kernel.host import Host

        host = Host(self._instance, self._on_step)
        try:
            host.apply(self._plan(host, contents))
        finally:
            host.close()

    def _plan(self, host: Host, contents: Contents) -> list[Change]:
        from vfr.plan import plan

        host.policy = _compiled(contents)
        actual: Actual = host.read(POOL, contents.nat.uplink if contents.nat else None)
        return plan(_wanted(contents, host.policy), actual)


def _sysfs(path: Path) -> str | None:
    """What the file says, None if it has gone. In `ip netns exec` /sys is that namespace's."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, OSError):
        return None


def _no_such(name: str, contents: Contents) -> VfrError:
    have = ", ".join(d.name for d in contents.domains) or "none"
    return VfrError(f"there is no domain {name!r}; there are: {have}")


def _forward_port(d: Domain, nat: Nat | None) -> int | None:
    if nat is None or d.address not in POOL:
        return None
    x = int(d.address) - int(POOL.network_address)
    return FORWARD_BASE + x if nat.forwards[0] <= x <= nat.forwards[1] else None


def _rules_of(contents: Contents) -> RuleSet:
    from vfr.policy import RuleSet, parse

    return parse(contents.rules.text, contents.rules.file) if contents.rules else RuleSet()


def _forwards_to(contents: Contents, xs: range) -> tuple[ForwardTo, ...]:
    """Where each forward leads, and whether a rule lets the LAN go there."""
    names, rules = {d.address: d.name for d in contents.domains}, _rules_of(contents)
    return tuple(
        ForwardTo(
            FORWARD_BASE + x,
            name := names.get(POOL[x]),
            name is not None and rules.decide("lan", name, _TCP, SSH) == "allow",
        )
        for x in xs
    )


def _may_reach_dom0(contents: Contents) -> bool:
    """Whether a rule allows some domain something of domain 0."""
    rules = _rules_of(contents).rules
    return any(r.action == "allow" and r.target in ("any", "dom0") and r.opener not in ("lan", "dom0") for r in rules)


def _lan_lost(nat: Nat) -> str:
    """What is wrong with the uplink, "" if it is as it was when NAT was enabled."""
    from vfr.kernel import links

    link = links.links().get(nat.uplink)
    if link is None:
        return f"the uplink {nat.uplink} is gone"
    own = [str(a.ip) for index, a in links.addresses() if index == link.index]
    if str(nat.address) not in own:
        return f"the uplink {nat.uplink} has lost the address {nat.address}; it has {', '.join(own) or 'none'}"
    return "" if link.up else f"the uplink {nat.uplink} is down"


def _check_place(kind: str, where: str, interface: str, before: Contents, present: dict[str, Link]) -> None:
    """Where the domain is to hang must be there (netns, device) or not be there yet (tap, our VIF)."""
    if kind == "netns":
        _check_netns(where, before)
    if any(d.interface == interface for d in before.domains):
        raise ConflictError(f"the interface {interface} belongs to another domain; choose another")
    if kind == "device":
        _check_device(where, before, present)
    elif not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", interface):
        raise UsageError(f"{interface!r} cannot be an interface's name: up to 15 letters, digits, '.', '_', '-'")
    elif interface in present:
        raise ConflictError(f"there is an interface {interface} already, which is not ours; rename or remove it")


def _check_netns(name: str, before: Contents) -> None:
    from vfr.kernel import links

    if name not in _netns_names():
        have = ", ".join(_netns_names()) or "none"
        raise UsageError(
            f"there is no network namespace {name!r}; make it with `ip netns add {name}` (there are: {have})"
        )
    for d in before.domains:
        if d.netns == name:
            raise ConflictError(f"the namespace {name!r} belongs to the domain {d.name!r}; choose another")
    if instances.current().netns == name:
        raise UsageError(f"the namespace {name!r} is domain 0's own; choose another")
    if "eth0" in links.links(name):
        raise ConflictError(f"the namespace {name!r} has an eth0 already; rename or remove that one")


def _check_device(name: str, before: Contents, present: dict[str, Link]) -> None:
    from vfr.kernel import links

    link = present.get(name)
    if link is None:
        raise UsageError(f"there is no interface {name!r} here (there are: {', '.join(sorted(present))})")
    if name in ("lo", "vfr0", "vif0", "vfr-sorter") or (before.nat and before.nat.uplink == name):
        raise ConflictError(f"the interface {name} is the host's own; a domain needs one for itself")
    if link.master:
        raise ConflictError(
            f"the interface {name} is part of a bridge or bond; take it out with `ip link set {name} nomaster`"
        )
    own = [str(a) for index, a in links.addresses() if index == link.index]
    if own:
        raise ConflictError(f"the interface {name} has the address {own[0]} of the host; remove it with `ip addr del`")


def _choose_address(given: str | IPv4Address | None, before: Contents) -> IPv4Address:
    taken = {d.address: d.name for d in before.domains}
    if given is None:
        for address in list(POOL.hosts())[1:]:
            if address not in taken:
                return address
        raise ConflictError(f"no address of {POOL} is free; give one with --address, from any other range")
    address = _address(given)
    _check_unicast(address)
    if address in taken:
        raise ConflictError(f"{address} belongs to the domain {taken[address]!r}; choose another")
    if address not in POOL:
        _check_not_the_hosts(address)
    return address


def _check_not_the_hosts(address: IPv4Address) -> None:
    from vfr.kernel import links

    names = {link.index: link.name for link in links.links().values()}
    for index, own in links.addresses():
        if address == own.ip:
            raise ConflictError(f"{address} is the host's own, on {names.get(index)}; choose another")
        if address in own.network and own.network.prefixlen < 32:
            raise ConflictError(f"{address} lies in {own.network}, the network on {names.get(index)}; choose another")


def _choose_mac(given: str | None, name: str, before: Contents) -> str:
    taken = {d.mac: d.name for d in before.domains}
    if given is not None:
        mac = _check_mac(given)
        if mac in taken:
            raise ConflictError(f"{mac} belongs to the domain {taken[mac]!r}; choose another")
        return mac
    tries = (_derived_mac(f"{name}{'+' * n}") for n in range(len(taken) + 1))
    return next(mac for mac in tries if mac not in taken)


def _free_block(before: Contents) -> tuple[int, int]:
    """A domain's own outside ports: the first block of the range that nobody has had, else the one that was
    given back longest ago. Who on the LAN still speaks to a former tenant is not to meet the next."""
    low, high = before.nat.ports if before.nat else NAT_PORTS
    size = before.nat.ports_per_domain if before.nat else PORTS_PER_DOMAIN
    held = {d.port_low for d in before.domains}
    free = [start for start in range(low, high - size + 2, size) if start not in held]
    if free:
        return min(free, key=lambda start: _returned_at(before, start, size)), size
    raise ConflictError(
        f"all {len(held)} blocks of {size} ports in {low}-{high} are given away; remove a domain, or start anew with"
        " fewer --ports-per-domain or a wider range in --ports"
    )


def _returned_at(before: Contents, start: int, size: int) -> int:
    """When a port of the block was last given back: a place in the order of returns, 0 if none ever was. Blocks
    may have been of another size then."""
    met = [n for n, (low, count) in enumerate(before.returned, 1) if low < start + size and start < low + count]
    return max(met, default=0)


def _uplink_has(nat: Nat) -> bool:
    """Whether the uplink is there and still has its address."""
    from vfr.kernel import links

    link = links.links().get(nat.uplink)
    return link is not None and any(i == link.index and a.ip == nat.address for i, a in links.addresses())


def _choose_uplink(name: str | None, address: str | None) -> tuple[str, IPv4Address]:
    """The interface to the LAN and domain 0's address there."""
    from vfr.kernel import links

    present = links.links()
    by_index = {link.index: link for link in present.values()}
    if name is None:
        defaults = [i for i in links.default_route_interfaces() if i in by_index]
        if not defaults:
            raise UsageError("there is no default route to tell the uplink by; name it with --uplink IF")
        name = by_index[defaults[0]].name
    if name not in present or name in ("lo", "vfr0", "vif0", "vfr-sorter"):
        usable = ", ".join(sorted(n for n in present if n not in ("lo", "vfr0", "vif0", "vfr-sorter")))
        raise UsageError(f"{name!r} cannot be the uplink; there are: {usable or 'no interfaces'}")
    own = [a for index, a in links.addresses() if index == present[name].index]
    return name, _choose_lan_address(name, own, address)


def _choose_lan_address(name: str, own: list[IPv4Interface], given: str | None) -> IPv4Address:
    have = ", ".join(str(a.ip) for a in own)
    if not own:
        raise ConflictError(
            f"the uplink {name} has no IPv4 address; give it one first, as `ip addr add 192.0.2.1/24 dev {name}`"
        )
    if given is None and len(own) > 1:
        raise UsageError(f"the uplink {name} has several addresses ({have}); choose with --address")
    chosen = own[0] if given is None else next((a for a in own if a.ip == _address(given)), None)
    if chosen is None:
        raise UsageError(f"the uplink {name} has no address {given}; it has {have}")
    if chosen.ip in _LINK_LOCAL or chosen.network.overlaps(POOL):
        raise ConflictError(
            f"the uplink {name} is itself in {chosen.network}, the range of the domains; NAT to it is impossible"
        )
    return chosen.ip


def _read_rules(file: Path) -> Rules:
    """The file's text, if it is in order."""
    from vfr.policy import parse

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"the rule file {str(file)!r} cannot be read: {reason}") from None
    parse(text, file.name)
    return Rules(file.name, text)


def _compiled(contents: Contents) -> CompiledPolicy:
    from vfr.policy import compile_rules

    return compile_rules(_rules_of(contents), {d.name: d.slot for d in contents.domains})


def _wanted(contents: Contents, policy: CompiledPolicy) -> Wanted:
    """What the registry's words mean for the kernel as it is."""
    from vfr.kernel import links
    from vfr.kernel.fastpath import Config, Forward
    from vfr.kernel.guard import Guard
    from vfr.plan import DOM0_DEVICE, DOM0_ID, DOM0_VIF, SORTER, Vif, Wanted

    present, nat = links.links(), contents.nat
    up = _uplink(nat, present)
    low, high = nat.ports if nat else NAT_PORTS
    config = Config(
        GATEWAY,
        POOL,
        up.address if up else None,
        up.lan if up else None,
        up.index if up else 0,
        up.mtu if up else 0,
        low,
        high,
        present[SORTER].index if SORTER in present else 0,
        contents.timers,
    )
    vifs: list[Vif] = []
    if not contents.is_empty:
        mac = _derived_mac("dom0 of VFR")
        vifs.append(Vif(DOM0_ID, "dom0", DOM0_VIF, DOM0_DEVICE, None, GATEWAY, mac, 0, low, 0, DOM0_LIMITS))
    vifs += [_vif(d, present) for d in contents.domains]
    ported = [(port, d) for d in contents.domains if (port := _forward_port(d, nat)) is not None and up]
    guard = Guard(
        tuple(sorted([SORTER, *(v.interface for v in vifs)])),
        POOL,
        GATEWAY,
        up.name if up else None,
        up.address if up else None,
        tuple((port, d.address, SSH) for port, d in ported),
    )
    return Wanted(
        vifs=tuple(vifs),
        config=config,
        mtu=up.mtu if up else MTU,
        guard=guard,
        digest=policy.digest,
        uplink=up,
        forwards=frozenset(Forward("tcp", port, d.slot, SSH) for port, d in ported),
        routes=frozenset([POOL, *(IPv4Network(d.address) for d in contents.domains if d.address not in POOL)]),
    )


def _vif(d: Domain, present: dict[str, Link]) -> Vif:
    from vfr.plan import Vif

    home = instances.netns_inode(d.netns) if d.netns else None
    there = home is not None if d.netns else d.kind == "tap" or d.interface in present
    return Vif(
        d.id,
        d.kind,
        d.interface,
        d.interface,
        d.netns,
        d.address,
        d.mac,
        d.slot,
        d.port_low,
        d.port_count,
        d.limits,
        there,
        home,
    )


def _uplink(nat: Nat | None, present: dict[str, Link]) -> Uplink | None:
    """The uplink, None if NAT is off, or the interface or its address is gone: then nothing leaves."""
    from vfr.kernel import links
    from vfr.plan import Uplink

    link = present.get(nat.uplink) if nat else None
    if nat is None or link is None:
        return None
    for index, own in links.addresses():
        if index == link.index and own.ip == nat.address:
            return Uplink(link.name, link.index, link.mtu, nat.address, own.network)
    return None


__all__ = ["DomainStatus", "ForwardStatus", "KernelError", "NatStatus", "Router"]
