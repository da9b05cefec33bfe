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

import errno
import hashlib
import os
import platform
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from vfr import confirming, forwards, mark
from vfr import instance as instances
from vfr import reach as reaching
from vfr._abi import Limit, Verdict
from vfr.declare import Preview, exported
from vfr.doctor import OLDEST_KERNEL, Facts, Finding, ForwardTo, Netfilter, Ours, VifState, findings
from vfr.errors import ConflictError, KernelError, UsageError, VfrError
from vfr.forwards import FORWARD_BASE, POOL
from vfr.policy.amend import Book
from vfr.policy.rules import WITH_PORTS, Party, Traffic, rule_text
from vfr.registry import Contents, Domain, Nat, Registry, Rules, locked, read_only
from vfr.ruling import RULES_AT_ONCE, changes, definitions, digest, read, ruled, rules_at
from vfr.settings import DOM0_LIMITS, Limits, Timers

if TYPE_CHECKING:
    from vfr import _abi as abi
    from vfr.explain import Explanation
    from vfr.kernel.host import Host
    from vfr.kernel.links import Link
    from vfr.plan import Actual, Change, Uplink, Vif, Wanted
    from vfr.policy import CompiledPolicy, RuleSet
    from vfr.policy.amend import Patch
    from vfr.policy.language import DomainLine, ForwardRule, NatLine
    from vfr.reach import Exposed

GATEWAY = IPv4Address("169.254.1.0")
NAT_PORTS = (16384, 32767)
PORTS_PER_DOMAIN = 64
FORWARDS = (2, 19)
MTU = 1500
SHIPPED_RULES = Path(__file__).resolve().parent.parent / "rules"
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NEVER = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_SOMEBODY = IPv4Address("203.0.113.1")  # on the internet, where it does not matter who
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
    """One forward, or a range of `ports` from its lowest ones on. While `domain`, or `address`, is None nobody is
    there, and the port leads nowhere. `on` is who may use it: the LAN and the host, or the "host" alone."""

    outside_port: int
    address: str | None
    inside_port: int
    domain: str | None
    protocol: str = "tcp"
    ports: int = 1
    on: str = "lan"


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
    confirm_within_s: float | None = None


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """A rule, where it stands, and what it decided about: packets that began a conversation or were refused."""

    where: str
    rule: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Event:
    """What `vfr events` tells of: a drop, or a conversation that a rule with `log` let begin. `who` sent it: a domain,
    dom0, lan or unknown; `at` is in seconds since boot; `rule` and `where` are those of the rule that decided, if one
    did; `untold` are the same sender's since its last event that nothing was said of."""

    at: float
    kind: str
    who: str
    verdict: str
    src: str
    dst: str
    sport: int
    dport: int
    protocol: str
    bytes: int
    rule: str | None
    where: str | None
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
        self._policies: dict[str, CompiledPolicy] = {}

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def instance(self) -> instances.Instance:
        """Which router this is."""
        return self._instance

    # Reading

    def _contents(self) -> Contents:
        contents = read_only(self._instance.registry)
        if contents.pending and confirming.is_due(contents.pending) and not os.geteuid():
            self.go_back(only_if_due=True)  # what was to see to it has died
            contents = read_only(self._instance.registry)
        return _read_anew(contents)

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
            forward=forwards.ssh_port(d.address, contents.nat),
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
        nat = contents.nat
        return NatStatus(
            enabled=nat is not None,
            uplink=nat.uplink if nat else None,
            address=str(nat.address) if nat else None,
            forwards=_forward_statuses(contents),
            ports=f"{nat.ports[0]}-{nat.ports[1]}" if nat else None,
            ports_per_domain=nat.ports_per_domain if nat else None,
            rules=contents.rules.file if contents.rules else None,
            domains=len(contents.domains),
            attached_by=self._attached_by(nat),
            confirm_within_s=round(confirming.left_s(contents.pending), 1) if contents.pending else None,
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

    def rule_stats(self) -> tuple[RuleStatus, ...]:
        """Every rule with what it decided about, in the order of the file."""
        from vfr.kernel.host import Host

        contents = self._contents()
        if contents.rules is None:
            return ()
        _check_root("nobody else may look into the fastpath")
        host = Host(self._instance)
        try:
            counts = host.fastpath.rule_counts(frozenset(contents.rules.numbers)) if host.is_loaded else {}
        finally:
            host.close()
        rules, lines = contents.rules, contents.rules.text.splitlines()
        return tuple(
            RuleStatus(f"{rules.file}:{line}", rule_text(lines[line - 1]), *counts.get(number, (0, 0)))
            for line, number in zip(rules.lines, rules.numbers, strict=True)
        )

    def events(self, wait_s: float | None = None) -> Iterator[Event]:
        """Drops, and what rules with `log` let begin, as they happen, at each domain's rate; ends after `wait_s` seconds
        without one, or never. There is one reader at a time."""
        from vfr.kernel.host import Host

        host = Host(self._instance)
        names = _Names(self._instance)
        try:
            for e in host.fastpath.events(wait_s) if host.is_loaded else ():
                yield names.event(e)
        finally:
            host.close()

    def doctor(self) -> tuple[Finding, ...]:
        """What on this host is in VFR's way, or is thought to be and is not: `vfr doctor`. Works without a router, and
        without root as far as others may look. RegistryError if the registry cannot be read."""
        from vfr.kernel import netfilter, survey

        contents, root = self._contents(), os.geteuid() == 0
        ours = self._own_facts(contents)
        wanted = [ours.ports, *((f.port, f.port) for f in ours.forwards)]
        machine = survey.machine(ours.uplink, POOL[1], wanted)
        if not ours.exists:
            ours = replace(ours, uplink=machine.default)
        return findings(Facts(root, machine, netfilter.read() if root else Netfilter(), ours))

    def _own_facts(self, contents: Contents) -> Ours:
        from vfr.kernel import survey

        nat = contents.nat
        states = [(d, *self._state(d)) for d in contents.domains]
        ours = Ours(
            exists=not contents.is_empty,
            nat=nat is not None,
            uplink=nat.uplink if nat else None,
            address=nat.address if nat else None,
            lan_lost=_lan_lost(nat) if nat else "",
            pool=POOL,
            ports=nat.ports if nat else NAT_PORTS,
            forwards=_forwards_to(contents),
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

    def explain(self, opener: str, target: str, what: str) -> Explanation:
        """What would become of a packet that begins such a conversation (vfr.explain.question says how to ask), stage by
        stage, and the rule that decides. Nothing comes of it. UsageError or VfrError if that cannot be asked."""
        from vfr import explain
        from vfr.kernel.host import Host

        asked, contents = explain.question(opener, target, what), self._contents()
        _check_root("nobody else may look into the fastpath")
        rules = _rules_of(contents)
        host = Host(self._instance)
        try:
            return explain.explain(host, contents, self._policy_of(contents), rules, asked)
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
        _check_name(name)

        def change(before: Contents, registry: Registry) -> Contents:
            if before.rules and name in before.rules.defined:
                raise ConflictError(f"{name!r} is a group or set of {before.rules.file}; choose another name")
            domain = self._new_domain(before, registry, name, kind, where, address, mac)
            return replace(before, domains=(*before.domains, domain))

        self._change(change)
        return self.domain(name)

    def _new_domain(
        self,
        before: Contents,
        registry: Registry | None,
        name: str,
        kind: str,
        where: str,
        address: str | IPv4Address | None,
        mac: str | None,
        leaving: Sequence[Domain] = (),
    ) -> Domain:
        """A domain that may be added, if only in thought (without a registry). Those that are `leaving` are still there
        and will not be."""
        from vfr.kernel import links

        _check_name(name)
        if any(d.name == name for d in before.domains):
            raise ConflictError(f"there is a domain {name!r} already; choose another name, or remove it first")
        present = links.links()
        interface = _derived_interface(name) if kind == "netns" else where
        for d in leaving:
            if d.kind != "device":
                present.pop(d.interface, None)
        _check_place(kind, where, interface, before, present, {d.netns for d in leaving})
        taken = {d.slot for d in before.domains}
        slot = next((s for s in range(1, Limit.SLOTS) if s not in taken), None)
        if slot is None:
            raise ConflictError(f"this router has {Limit.SLOTS - 1} domains, which is all it has room for")
        low, count = _free_block(before)
        return Domain(
            id=max([registry.next_id() if registry else 2, 2, *(d.id + 1 for d in before.domains)]),  # 1 is domain 0's
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

        def change(before: Contents, registry: Registry) -> Contents:
            nat = self._new_nat(before, uplink, address, forwards, ports, ports_per_domain)
            if before.rules and not rules:
                return replace(before, nat=nat)
            file = rules or SHIPPED_RULES / "xen.rules"
            return self._declared(file.name, read_file(file), replace(before, nat=nat), registry)

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

    def apply(self, file: Path, confirm_s: float | None = None) -> None:
        """Puts what a file says in force, at once and whole: rules, forwards, and domains and NAT if it speaks of them.
        With `confirm_s` it is gone back on after so many seconds unless `confirm` is called, whatever becomes of this
        process. RuleError if the file is not in order, ConflictError if it contradicts what is there."""
        _check_machine()
        text = read_file(file)

        def change(before: Contents, registry: Registry) -> Contents:
            after = self._declared(file.name, text, before, registry)
            return confirming.pending(before, after, confirm_s) if confirm_s else after

        self._change(change)
        if confirm_s:
            confirming.watch(self._instance)

    def confirm(self) -> None:
        """Keeps what was applied with a time to confirm it in. ConflictError if nothing waits for that."""
        _check_machine()

        def change(before: Contents, _: Registry) -> Contents:
            if before.pending is None:
                raise ConflictError("nothing waits to be confirmed; its time may be over, see `vfr nat status`")
            return replace(before, pending=None)

        self._change(change, of_pending=True)

    def go_back(self, only_if_due: bool = False) -> bool:
        """Goes back to what was before the change that waits to be confirmed; whether there was one."""
        due = False

        def change(before: Contents, _: Registry) -> Contents:
            nonlocal due
            due = before.pending is not None and (not only_if_due or confirming.is_due(before.pending))
            return confirming.earlier(before) if due else before

        self._change(change, of_pending=True)
        return due

    def preview(self, file: Path) -> Preview:
        """What apply would do, changing nothing."""
        from vfr.kernel.host import Host

        text = read_file(file)
        _check_root("nobody else may look into the fastpath")
        before = self._contents()
        after = self._declared(file.name, text, before, None)
        host = Host(self._instance)
        try:
            steps = [change.text for change in self._plan(host, after)]
        finally:
            host.close()
        ends = (reached(before), reached(after))
        found = reaching.difference(*ends, (forward_rules(before), forward_rules(after)))
        return Preview(str(file), tuple(steps), reaching.difference_lines(found) if found else ())

    def exposure(self, *names: str) -> tuple[Exposed, ...]:
        """Who and what reaches each domain, or each of `names`, and by which rule or forward."""
        contents = self._contents()
        for name in names:
            if all(d.name != name for d in contents.domains):
                raise _no_such(name, contents)
        return reaching.exposure(reached(contents), forward_rules(contents), names or None)

    def _declared(self, name: str, text: str, before: Contents, registry: Registry | None) -> Contents:
        """What the registry is to say when a file is in force."""
        rules, document = ruled(name, text, before.rules, self._numbers())
        after = replace(before, rules=rules)
        if document.domains is not None:
            stay = {line.name for line in document.domains if _is_as_before(line, before)}
            after = after.without({d.name for d in before.domains} - stay)
        if document.nat:
            after = replace(after, nat=self._declared_nat(document.nat, after))
        for line in document.domains or ():
            after = self._declared_domain(line, after, registry, before.domains)
        if after.is_empty and not before.is_empty:
            raise ConflictError(
                f"{name} leaves nothing; to take all down, run `vfr domain remove` and `vfr nat disable`"
            )
        if after.is_empty:
            raise ConflictError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
        forwards.check(document, after, _listeners())
        self._make_tables(after)  # what cannot be made is refused before anything is changed
        return after

    def _numbers(self) -> frozenset[int]:
        """The numbers that the kernel has rules under."""
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            return host.fastpath.rules() if host.is_loaded else frozenset()
        finally:
            host.close()

    def _declared_nat(self, line: NatLine, before: Contents) -> Nat | None:
        if line.uplink == "off":
            return None
        return self._new_nat(before, line.uplink, line.address, line.ssh, line.ports, line.ports_per_domain)

    def _declared_domain(
        self, line: DomainLine, before: Contents, registry: Registry | None, original: Sequence[Domain]
    ) -> Contents:
        """With the domain as the line has it: one that stays gets its limits, any other is made."""
        limits = Limits(**dict(line.limits))
        if any(d.name == line.name for d in before.domains):
            kept = (replace(d, limits=limits) if d.name == line.name else d for d in before.domains)
            return replace(before, domains=tuple(kept))
        leaving = [d for d in original if all(d.id != other.id for other in before.domains)]
        made = self._new_domain(before, registry, line.name, line.kind, line.place, line.address, line.mac, leaving)
        return replace(before, domains=(*before.domains, replace(made, limits=limits)))

    def export(self) -> str:
        """The running state as a file that `apply` takes: NAT, domains, forwards and rules."""
        return exported(self._contents())

    # Converging

    def _change(self, change: Callable[[Contents, Registry], Contents], of_pending: bool = False) -> None:
        """Writes down what is wanted, then makes it so. If that fails, goes back and makes that so."""
        with locked(self._instance.lock):
            self._instance.state.mkdir(parents=True, exist_ok=True)
            try:
                self._change_locked(change, of_pending)
            finally:
                if read_only(self._instance.registry).is_empty:
                    self._converge(Contents())

    def _change_locked(self, change: Callable[[Contents, Registry], Contents], of_pending: bool) -> None:
        registry = Registry(self._instance.registry)
        try:
            before = _read_anew(registry.read())
            if before.pending and not of_pending:
                before = self._settle(before, registry)
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

    def _settle(self, before: Contents, registry: Registry) -> Contents:
        """Nothing else is changed while a change waits to be confirmed; one whose time is over is gone back on."""
        assert before.pending is not None
        if not confirming.is_due(before.pending):
            left = confirming.left_s(before.pending)
            raise ConflictError(
                f"what was applied last waits {left:.0f} s more to be confirmed; run `vfr confirm` to keep it, or"
                " `vfr confirm --no` to go back at once"
            )
        earlier = confirming.earlier(before)
        with registry.transaction():
            registry.write(earlier)
        self._converge(earlier)
        return earlier

    def _converge(self, contents: Contents) -> None:
        """Makes it so, and looks whether it is."""
        from vfr.kernel.host import Host

        host = Host(self._instance, self._on_step)
        try:
            host.apply(self._plan(host, contents))
            if not contents.is_empty and (left := self._plan(host, contents)):
                raise KernelError(f"verifying the change: to {left[0].text} had no effect", errno.EIO)
        finally:
            host.close()

    def _plan(self, host: Host, contents: Contents) -> list[Change]:
        from vfr.plan import plan

        host.policy = lambda path, in_force: self._tables(contents, path, in_force)
        actual: Actual = host.read(POOL, contents.nat.uplink if contents.nat else None)
        return plan(_wanted(contents), actual)

    def _make_tables(self, contents: Contents) -> None:
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            in_force = host.fastpath.policy_digest() if host.is_loaded else None
            if not self._patched(contents, host.book, in_force):
                self._policy_of(contents)
        finally:
            host.close()

    def _tables(self, contents: Contents, path: Path, in_force: str | None) -> CompiledPolicy | Patch:
        """What is to come into force: the rows that change, if the book of what is says which, else all tables. The book
        is brought up to date before the kernel is: it counts only for the policy whose digest it has."""
        found = self._patched(contents, path, in_force)
        if found:
            book, patch = found
            book.amend(patch, patch.digest, _seats(contents))
            book.save(path)
            return patch
        policy = self._policy_of(contents)
        rules = contents.rules or Rules("", "")
        made = Book.of(policy, policy.digest, definitions(rules).rules, _seats(contents), _lan(contents.nat))
        made.save(path)
        return policy

    def _patched(self, contents: Contents, path: Path, in_force: str | None) -> tuple[Book, Patch] | None:
        book, rules = Book.load(path, in_force), contents.rules
        if book is None or rules is None:
            return None
        seats, lan = _seats(contents), _lan(contents.nat)
        added, removed = changes(book, rules)
        if len(added) + len(removed) > RULES_AT_ONCE or not book.knows(definitions(rules).rules, seats, lan):
            return None
        patch = book.patch(rules_at(rules, added), removed, seats)
        return (book, replace(patch, digest=_policy_digest(contents))) if patch else None

    def _policy_of(self, contents: Contents) -> CompiledPolicy:
        """The tables for what the registry says, made once."""
        from vfr.policy import RuleSet, compile_rules

        known = _policy_digest(contents)
        if known not in self._policies:
            rules, numbers = RuleSet(), tuple[int, ...]()
            if contents.rules:
                rules, numbers = _rules_of(contents), contents.rules.numbers
            made = compile_rules(rules, _slots(contents), _lan(contents.nat), numbers)
            self._policies[known] = replace(made, digest=known)
        return self._policies[known]


def _sysfs(path: Path) -> str | None:
    """What the file says, None if it has gone. In `ip netns exec` /sys is that namespace's."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, OSError):
        return None


def _no_such(name: str, contents: Contents) -> VfrError:
    have = ", ".join(d.name for d in contents.domains) or "none"
    return VfrError(f"there is no domain {name!r}; there are: {have}")


def _forward_statuses(contents: Contents) -> tuple[ForwardStatus, ...]:
    """Those of `vfr nat enable` first."""
    found: list[ForwardStatus] = []
    by_address = {d.address: d.name for d in contents.domains}
    by_name = {d.name: str(d.address) for d in contents.domains}
    for x in range(contents.nat.forwards[0], contents.nat.forwards[1] + 1) if contents.nat else ():
        found.append(ForwardStatus(FORWARD_BASE + x, str(POOL[x]), forwards.SSH, by_address.get(POOL[x])))
    for f in contents.rules.forwards if contents.rules else ():
        address, (low, high) = by_name.get(f.domain), f.outside
        on = "host" if f.where in forwards.HOST_ONLY else "lan"
        found.append(ForwardStatus(low, address, f.inside[0], f.domain, f.protocol, high - low + 1, on))
    return tuple(found)


def _rules_of(contents: Contents) -> RuleSet:
    from vfr.policy import RuleSet

    return read(contents.rules.text, contents.rules.file).rules if contents.rules else RuleSet()


def _forwards_to(contents: Contents) -> tuple[ForwardTo, ...]:
    """Where each outside port leads, and whether a rule lets somebody on the LAN go there. Without a router, those that
    `vfr nat enable` would make."""
    if contents.is_empty:
        return tuple(ForwardTo(FORWARD_BASE + x, None, False) for x in range(FORWARDS[0], FORWARDS[1] + 1))
    rules, lan = _rules_of(contents), _lan(contents.nat)
    found = []
    for f in _forward_statuses(contents):
        for more in range(f.ports if f.on == "lan" else 0):
            traffic = Traffic(WITH_PORTS[f.protocol], f.inside_port + more)
            allowed = f.domain is not None and _lan_may(rules, f.domain, traffic, lan)
            found.append(ForwardTo(f.outside_port + more, f.domain if f.address else None, allowed, f.protocol))
    return tuple(found)


def _lan_may(rules: RuleSet, domain: str, traffic: Traffic, lan: IPv4Network | None) -> bool:
    """Whether a rule lets somebody behind the uplink open this to a domain: asked for one of each kind of address."""
    about = [r for r in rules.rules if r.action == "allow" and r.speaks_of(traffic)]
    words = {word for r in about for ends in r.directions() for word in ends[0] if rules.is_remote(word)}
    samples = [net[0] for word in words for net in rules.blocks(word)]
    samples += [*([lan[-2]] if lan else []), _SOMEBODY]
    target = Party(domain)
    return any(rules.decide(Party(address=a), target, traffic, lan) == "allow" for a in samples)


def _may_reach_dom0(contents: Contents) -> bool:
    """Whether a rule allows some domain something of domain 0."""
    rules = _rules_of(contents)
    return any(
        r.action == "allow"
        and any(word in ("any", "dom0") or "dom0" in rules.groups.get(word, ()) for word in targets)
        and any(word not in ("lan", "internet", "dom0") and not rules.is_remote(word) for word in openers)
        for r in rules.rules
        for openers, targets in r.directions()
    )


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


def _check_place(
    kind: str, where: str, interface: str, before: Contents, present: dict[str, Link], left: Container[str | None]
) -> None:
    """Where the domain is to hang must be there (netns, device) or not be there yet (tap, our VIF). `left` are the
    namespaces that others leave."""
    if kind == "netns":
        _check_netns(where, before, where in left)
    if any(d.interface == interface for d in before.domains):
        raise ConflictError(f"the interface {interface} belongs to another domain; choose another")
    if kind == "device":
        _check_device(where, before, present)
    elif not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", interface):
        raise UsageError(f"{interface!r} cannot be an interface's name: up to 15 letters, digits, '.', '_', '-'")
    elif interface in present:
        raise ConflictError(f"there is an interface {interface} already, which is not ours; rename or remove it")


def _check_netns(name: str, before: Contents, is_left: bool) -> None:
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
    if not is_left and "eth0" in links.links(name):
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


class _Names:
    """What the numbers in events stand for. Read again when one is unknown: the router changes while we listen."""

    def __init__(self, instance: instances.Instance) -> None:
        self._registry = instance.registry
        self._read()

    def _read(self) -> None:
        contents = read_only(self._registry)
        self._rows = {0: "dom0", int(Limit.ROW_LAN): "lan", int(Limit.ROW_UNKNOWN): "unknown"}
        self._rows.update({d.slot: d.name for d in contents.domains})
        rules = contents.rules or Rules("", "")
        lines = rules.text.splitlines()
        self._rules = {
            number: (rule_text(lines[line - 1]), f"{rules.file}:{line}")
            for line, number in zip(rules.lines, rules.numbers, strict=True)
        }

    def event(self, e: abi.Event) -> Event:
        if e.row not in self._rows or (e.rule and e.rule not in self._rules):
            self._read()
        rule, where = self._rules.get(e.rule, (None, None))
        verdict = Verdict(e.verdict).name
        is_ip = e.ethertype == 0x0800
        return Event(
            at=e.at_ns / 1e9,
            kind="drop" if verdict.startswith("DROP_") else "begin",
            who=self._rows.get(e.row, f"slot {e.row}"),
            verdict=verdict,
            src=str(IPv4Address(e.src)),
            dst=str(IPv4Address(e.dst)),
            sport=e.sport,
            dport=e.dport,
            protocol=_PROTOCOLS.get(e.protocol, str(e.protocol)) if is_ip else f"ether {e.ethertype:#06x}",
            bytes=e.bytes,
            rule=rule,
            where=where,
            untold=e.untold,
        )


def read_file(file: Path) -> str:
    """A file's text. UsageError if it can't be had."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"the rule file {str(file)!r} cannot be read: {reason}") from None


def _read_anew(contents: Contents) -> Contents:
    """With its rules as this version keeps them, if an earlier one wrote them down."""
    rules = contents.rules
    if rules is None or rules.numbers or not rules.text:
        return contents
    return replace(contents, rules=ruled(rules.file, rules.text)[0])


def reached(contents: Contents) -> reaching.Reach:
    """What can talk to what."""
    names = [d.name for d in contents.domains]
    return reaching.reach(_rules_of(contents), names, _lan(contents.nat), contents.nat is not None)


def forward_rules(contents: Contents) -> tuple[ForwardRule, ...]:
    """Every forward as a rule file would have it, those to ssh among them."""
    from vfr.policy import ForwardRule

    ssh = [(d.name, port) for d in contents.domains if (port := forwards.ssh_port(d.address, contents.nat))]
    own = (ForwardRule("tcp", (port, port), name, (forwards.SSH, forwards.SSH)) for name, port in ssh)
    return (*own, *(contents.rules.forwards if contents.rules else ()))


def _slots(contents: Contents) -> dict[str, int]:
    return {d.name: d.slot for d in contents.domains}


def _seats(contents: Contents) -> dict[str, int]:
    """The slots of the names that rules go by."""
    slots = {**_slots(contents), "dom0": 0}
    return {name: slots[name] for name in (*(contents.rules.names if contents.rules else ()), "dom0") if name in slots}


def _lan(nat: Nat | None) -> IPv4Network | None:
    """The uplink's own network."""
    from vfr.kernel import links

    up = _uplink(nat, links.links()) if nat else None
    return up.lan if up else None


def _policy_digest(contents: Contents) -> str:
    return digest(contents.rules, _slots(contents), _lan(contents.nat))


def _check_name(name: str) -> None:
    from vfr.policy.rules import NAME, RESERVED, looks_like_address

    if not NAME.fullmatch(name) or name in RESERVED or looks_like_address(name):
        raise UsageError(
            f"{name!r} cannot be a domain's name; use up to 32 of a-z, 0-9, '.', '_', '-', beginning and ending"
            f" with a letter or digit, no address, and none of {', '.join(sorted(RESERVED))}"
        )


def _is_as_before(line: DomainLine, before: Contents) -> bool:
    """Whether there is the line's domain, at its place, under its address and MAC."""
    old = next((d for d in before.domains if d.name == line.name), None)
    if old is None:
        return False
    place = old.netns if old.kind == "netns" else old.interface
    return (
        (line.kind, line.place) == (old.kind, place)
        and line.address in (None, str(old.address))
        and (line.mac is None or line.mac.lower() == old.mac)
    )


def _wanted(contents: Contents) -> Wanted:
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
    ways = forwards.ways(contents, up is not None)
    guard = Guard(
        tuple(sorted([SORTER, *(v.interface for v in vifs)])),
        POOL,
        GATEWAY,
        up.name if up else None,
        up.address if up else None,
        ways,
    )
    return Wanted(
        vifs=tuple(vifs),
        config=config,
        mtu=up.mtu if up else MTU,
        guard=guard,
        digest=_policy_digest(contents),
        uplink=up,
        forwards=frozenset(
            Forward(way.protocol, port, way.slot, way.inside + port - way.outside[0])
            for way in ways
            if not way.host_only
            for port in range(way.outside[0], way.outside[1] + 1)
        ),
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
