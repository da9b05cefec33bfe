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
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from vfr import bursts, confirming, forwards, mark, moving, rates
from vfr import flows as flowing
from vfr import instance as instances
from vfr import reach as reaching
from vfr import saved as files
from vfr._abi import Limit
from vfr.choose import (
    FORWARDS,
    GATEWAY,
    NAT_PORTS,
    PORTS_PER_DOMAIN,
    Taken,
    as_rate,
    check_listeners,
    check_name,
    check_place,
    check_ports,
    choose_address,
    choose_guest,
    choose_mac,
    choose_uplink,
    derived_interface,
    followed,
    free_block,
    is_defined,
    is_there,
    listeners,
    no_such,
    uplink_has,
    uplink_rate,
)
from vfr.declare import Preview, exported
from vfr.doctor import OLDEST_KERNEL, Facts, Finding, Netfilter, Ours, VifState, findings
from vfr.errors import ConflictError, KernelError, UsageError, VfrError
from vfr.forwards import POOL
from vfr.own import forwards_to, lan_lost, may_reach_dom0
from vfr.policy.amend import Book
from vfr.policy.rules import ANY, Traffic, rule_text
from vfr.registry import Contents, Domain, Nat, Registry, Rules, locked, read_only
from vfr.ruling import RULES_AT_ONCE, changes, definitions, ruled, rules_at
from vfr.settings import Dhcp, DhcpWords, Limits, Timers
from vfr.status import (
    DomainStatus,
    Event,
    ForwardStatus,
    Names,
    NatStatus,
    RuleStatus,
    Up,
    Upgraded,
    forward_statuses,
    rules_by_number,
)
from vfr.top import check_sort
from vfr.wanted import forward_rules, lan_of, policy_digest, reached, rules_of, seats, slots_of, wanted

if TYPE_CHECKING:
    from vfr.capture import Wish
    from vfr.capturing import Capturing
    from vfr.explain import Explanation
    from vfr.flows import Flow
    from vfr.kernel.host import Host
    from vfr.plan import Actual, Change
    from vfr.policy import CompiledPolicy, Document
    from vfr.policy.amend import Patch
    from vfr.policy.language import DomainLine, NatLine
    from vfr.reach import Exposed
    from vfr.top import Look

SHIPPED_RULES = Path(__file__).resolve().parent.parent / "rules"


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


class Router:
    """The virtual firewall-router of the network namespace this process is in.

    `on_step` is called with a sentence before each step that touches the kernel.
    """

    def __init__(self, on_step: Callable[[str], None] | None = None) -> None:
        self._instance = instances.current()
        self._on_step = on_step
        self._policies: dict[str, CompiledPolicy] = {}
        self._book: Book | None = None
        self._did: tuple[str, ...] = ()

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
        raise no_such(name, self._contents())

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
            rates=rates.text_of(d.limits),
            dhcp=str(d.dhcp.over(contents.dhcp)),
            **{f"guest_{name}": value and str(value) for name, value in asdict(d.guest).items()},
        )

    def _state(self, d: Domain) -> tuple[str, str]:
        """Up only if the interface is, and our pin is there."""
        if d.saved is not None:
            return "saved", f"it is away in a file; `vfr restore {d.name} FILE` puts it back"
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
        runs, installed = self._builds() if nat else (None, None)
        return NatStatus(
            enabled=nat is not None,
            uplink=nat.uplink if nat else None,
            address=str(nat.address) if nat else None,
            forwards=forward_statuses(contents),
            ports=f"{nat.ports[0]}-{nat.ports[1]}" if nat else None,
            ports_per_domain=nat.ports_per_domain if nat else None,
            rules=contents.rules.file if contents.rules else None,
            domains=len(contents.domains),
            attached_by=self._attached_by(nat),
            confirm_within_s=round(confirming.left_s(contents.pending), 1) if contents.pending else None,
            fastpath=runs,
            is_installed=runs is None or runs == installed,
            dhcp=str(contents.dhcp),
            uplink_rate=uplink_rate(nat),
        )

    def _builds(self) -> tuple[str | None, str]:
        """Which build of the fastpath runs, None if none does, and which is installed."""
        from vfr.kernel import loader, mounts, upgrade

        _check_root("nobody else may look into the fastpath")
        pins = mounts.seen_from_here(self._instance.bpffs)
        is_there = mounts.is_mounted(self._instance.bpffs) and (pins / "fastpath").is_dir()
        return upgrade.running(pins) if is_there else None, loader.installed()

    def _attached_by(self, nat: Nat | None) -> str | None:
        if nat is None:
            return None
        _check_root("nobody else may look into the fastpath")
        from vfr.kernel import links
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            link = links.link(nat.uplink)
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
            raise no_such(name, contents)
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
        names = Names(self._instance)
        try:
            for e in host.fastpath.events(wait_s) if host.is_loaded else ():
                yield names.event(e)
        finally:
            host.close()

    def flows(self, which: flowing.Wanted, limit: int | None = None, rules: bool = False) -> Iterator[Flow]:
        """The living conversations, domain 0's first, then by domain and remote; read while they are asked for. With
        `rules`, each with the rule that would let it begin now. UsageError if nobody has the name."""
        contents = self._contents()
        names = {0: "dom0", **{d.slot: d.name for d in contents.domains}}
        if which.name is not None and which.name not in names.values():
            raise no_such(which.name, contents)
        if contents.is_empty:
            return iter(())
        _check_root("nobody else may look into the fastpath")
        return self._flows(names, which, limit, self._deciding(contents) if rules else None)

    def _flows(
        self, names: dict[int, str], which: flowing.Wanted, limit: int | None, rules: flowing.Rules | None
    ) -> Iterator[Flow]:
        from vfr.kernel import seeing
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            if host.is_loaded:
                yield from seeing.flows(host.fastpath, names, which, limit, rules)
        finally:
            host.close()

    def _deciding(self, contents: Contents) -> flowing.Rules:
        """Asks the rules that are in force about a conversation."""
        policy, numbers = self._policy_of(contents), rules_by_number(contents)

        @lru_cache(maxsize=1 << 16)
        def ask(asked: flowing.Asked) -> tuple[str | None, str | None]:
            traffic = Traffic(asked.protocol, asked.port)
            number = policy.deciding(asked.opener, asked.target, traffic, asked.remote)
            return numbers.get(number or 0, (None, None))

        return ask

    def top(self, interval_s: float, by: str = "out", most: int | None = None) -> Iterator[Look]:
        """What becomes of packets, look after look, `interval_s` seconds apart: the `most` busiest `by` one of
        vfr.top.SORTS, with their conversations counted. Never ends. UsageError if there is no router."""
        check_sort(by)
        if not 0.1 <= interval_s <= 3600:
            raise UsageError(f"--interval {interval_s:g} is out of range; it takes 0.1 to 3600 seconds")
        if self._contents().is_empty:
            raise UsageError("there is nothing to see: no domains, and NAT is off")
        _check_root("nobody else may look into the fastpath")
        return self._looks(interval_s, by, most)

    def _looks(self, interval_s: float, by: str, most: int | None) -> Iterator[Look]:
        from vfr.kernel import seeing
        from vfr.kernel.host import Host

        host = Host(self._instance)
        try:
            if not host.is_loaded:
                raise VfrError("the fastpath is not loaded; any command that changes something repairs it")
            counters = seeing.Counters(host.fastpath)
            before = counters.read(self._row_names())
            while True:
                time.sleep(interval_s)
                names = self._row_names()
                after = counters.read(names)
                slots = {name: row for row, name in names.items() if row < Limit.SLOTS}
                yield seeing.look(host.fastpath, slots, before, after, by, most)
                before = after
        finally:
            host.close()

    def _row_names(self) -> dict[int, str]:
        """What rows of counters are called, as the router is now."""
        rows = {0: "dom0", int(Limit.ROW_LAN): "lan", int(Limit.ROW_UNKNOWN): "unknown"}
        return rows | {d.slot: d.name for d in read_only(self._instance.registry).domains}

    @contextmanager
    def capture(self, name: str, wish: Wish) -> Iterator[Capturing]:
        """What is on the VIF of a domain, or of dom0, frame by frame with its verdict: see Capturing. UsageError if nobody
        has the name, ConflictError if somebody captures it already."""
        from vfr.capturing import Capturing
        from vfr.kernel import mounts
        from vfr.kernel.capturing import Capture
        from vfr.kernel.host import Host

        slot, interface = self._vif(name)
        _check_root("nobody else may look into the fastpath")
        pins = mounts.seen_from_here(self._instance.bpffs)
        host = Host(self._instance)
        try:
            tenant = host.fastpath.domains().get(slot) if host.is_loaded else None
            if tenant is None:
                raise VfrError(f"{name!r} is not in the fastpath; any command that changes something repairs it")
            with Capture(host.fastpath, slot, tenant.generation, wish) as capture:
                with locked(self._instance.lock):
                    capture.start()
                try:
                    yield Capturing(name, interface, capture, pins, Names(self._instance))
                finally:
                    capture.stop()
        finally:
            host.close()

    def _vif(self, name: str) -> tuple[int, str]:
        """The slot and the interface of a domain, or of dom0."""
        contents = self._contents()
        domain = next((d for d in contents.domains if d.name == name), None)
        if domain is None and (name != "dom0" or contents.is_empty):
            raise no_such(name, contents)
        if domain is not None and domain.saved is not None:
            raise VfrError(f"the domain {name!r} is away in a file, so nothing comes from it or gets to it")
        return (domain.slot, domain.interface) if domain else (0, "vfr0")

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
        states = [(d, *self._state(d)) for d in contents.domains if d.saved is None]
        ours = Ours(
            exists=not contents.is_empty,
            nat=nat is not None,
            uplink=nat.uplink if nat else None,
            address=nat.address if nat else None,
            lan_lost=lan_lost(nat) if nat else "",
            pool=POOL,
            ports=nat.ports if nat else NAT_PORTS,
            forwards=forwards_to(contents),
            vifs=tuple(VifState(d.name, d.interface, state, reason) for d, state, reason in states),
            to_dom0=may_reach_dom0(contents),
            lock=survey.lock_holder(self._instance.lock),
        )
        return self._kernel_facts(contents, ours) if os.geteuid() == 0 else ours

    def _kernel_facts(self, contents: Contents, ours: Ours) -> Ours:
        """The same, with what only root may see."""
        from vfr.kernel import mounts, upgrade
        from vfr.kernel.host import Host

        runs, installed = self._builds()
        odd = upgrade.oddity(mounts.seen_from_here(self._instance.bpffs)) if runs and not contents.is_empty else None
        if odd:
            return replace(ours, is_installed=False, odd_layout=odd[0], must_lose=odd[1])
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
                hooks=tuple(host.hooks([d.interface for d in contents.domains if d.saved is None], uplink)),
                unhardened=tuple(host.unhardened()),
                is_installed=runs in (None, installed),
            )
        finally:
            host.close()

    def explain(self, opener: str, target: str, what: str) -> Explanation:
        """What would become of a packet that begins such a conversation (vfr.explain.question says how to ask), stage by
        stage, and the rule that decides. Nothing comes of it. UsageError or VfrError if that cannot be asked."""
        from vfr import explain
        from vfr.kernel.host import Host

        asked, contents = explain.question(opener, target, what), self._contents()
        away = next((d.name for d in contents.domains if d.saved is not None and d.name in (opener, target)), None)
        if away is not None:
            raise VfrError(f"the domain {away!r} is away in a file, so nothing comes from it or gets to it")
        _check_root("nobody else may look into the fastpath")
        rules = rules_of(contents)
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
        guest_address: str | IPv4Address | None = None,
        guest_mac: str | None = None,
        guest_gateway: str | IPv4Address | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> DomainStatus:
        """Adds a domain by one of a namespace (its veth is made), a TAP (made) or a device (given).

        The address is the next free one of the pool unless one is given. A clone's guest believes to have
        `guest_address`, `guest_mac` and `guest_gateway` instead, which any number of domains may share. `limits` are fields of vfr.settings.Limits. UsageError or ConflictError say
        what is wrong with the arguments, KernelError what the kernel refused; nothing is left behind.
        """
        _check_machine()
        given = [(k, v) for k, v in (("netns", netns), ("tap", tap), ("device", device)) if v is not None]
        if len(given) != 1:
            raise UsageError("a domain needs exactly one of --netns, --tap and --device")
        kind, where = given[0]
        check_name(name)

        def change(before: Contents, registry: Registry) -> Contents:
            if before.rules and name in before.rules.defined:
                raise is_defined(name, before.rules)
            guest = choose_guest(guest_address, guest_mac, guest_gateway, before)
            domain = self._new_domain(before, registry, name, kind, where, address, mac)
            domain = replace(domain, guest=guest, limits=replace(domain.limits, **(limits or {})))
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

        check_name(name)
        if any(d.name == name for d in before.domains):
            raise is_there(name)
        present = set(links.links())
        interface = derived_interface(name) if kind == "netns" else where
        for d in leaving:
            if d.kind != "device":
                present.discard(d.interface)
        taken = Taken.of(before.domains)
        check_place(kind, where, interface, taken, before.nat, present, {d.netns for d in leaving})
        slot = taken.free_slot()
        low, count = free_block(before)
        return Domain(
            id=max([registry.next_id() if registry else 2, 2, *(d.id + 1 for d in before.domains)]),  # 1 is domain 0's
            name=name,
            kind=kind,
            netns=where if kind == "netns" else None,
            interface=interface,
            address=choose_address(address, taken.addresses),
            mac=choose_mac(mac, name, taken.macs),
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
                raise no_such(name, before)
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
        raise no_such(name, contents)

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

    def set_dhcp(self, name: str | None = None, words: DhcpWords | None = None) -> Dhcp:
        """Sets what a domain's guest is told by DHCP, or all guests of which nothing else is said: what `words` name;
        without them, a domain's own are forgotten. It comes to a guest when it asks the next time. Returns what is told
        then. UsageError for what no guest can be told."""
        _check_machine()
        if name is None and words is None:
            raise UsageError("--inherit is for one domain, which then is told what all are; name it")

        def change(before: Contents, _: Registry) -> Contents:
            if before.is_empty:
                raise ConflictError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
            if name is None:
                return replace(before, dhcp=(words or DhcpWords()).over(before.dhcp))
            if all(d.name != name for d in before.domains):
                raise no_such(name, before)
            domains = (_told(d, words) if d.name == name else d for d in before.domains)
            return replace(before, domains=tuple(domains))

        self._change(change)
        return self.dhcp(name)

    def dhcp(self, name: str | None = None) -> Dhcp:
        """What a domain's guest is told by DHCP, or all guests of which nothing else is said. VfrError if there is no
        domain of that name."""
        contents = self._contents()
        if name is None:
            return contents.dhcp
        for d in contents.domains:
            if d.name == name:
                return d.dhcp.over(contents.dhcp)
        raise no_such(name, contents)

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
                    raise no_such(name, before)
            return before.without(names)

        self._change(change)

    def add_domains(
        self, lines: Iterable[DomainLine], told: Callable[[bursts.Outcome], None] = lambda _: None
    ) -> tuple[bursts.Outcome, ...]:
        """Adds many domains, in parts between which others get their turn. One that cannot be added leaves the others:
        its outcome has the error. `told` gets each outcome as soon as it is known."""
        _check_machine()
        with closing(self._bursts()) as burst:
            return burst.add(lines, told)

    def remove_domains(
        self, names: Iterable[str], told: Callable[[bursts.Outcome], None] = lambda _: None
    ) -> tuple[bursts.Outcome, ...]:
        """Removes many domains, as add_domains adds them."""
        _check_machine()
        with closing(self._bursts()) as burst:
            return burst.remove(names, told)

    def _bursts(self) -> bursts.Bursts:
        return bursts.Bursts(self._instance, self._on_step, self._add_slowly, self._remove_slowly)

    def _add_slowly(self, lines: Sequence[DomainLine]) -> tuple[bursts.Failed, bursts.Addresses]:
        """Adds domains as every command does, looking at everything; those that can be."""
        failed: bursts.Failed = {}

        def change(before: Contents, registry: Registry) -> Contents:
            for line in lines:
                try:
                    if any(d.name == line.name for d in before.domains):
                        raise is_there(line.name)
                    if before.rules and line.name in before.rules.defined:
                        raise is_defined(line.name, before.rules)
                    before = self._declared_domain(line, before, registry, before.domains)
                except VfrError as error:
                    failed[line.name] = error
            return before

        try:
            self._change(change)
        except VfrError as error:  # the kernel's; for which of them, each shows by itself
            if len(lines) == 1:
                return {lines[0].name: error}, {}
            found = [self._add_slowly([line]) for line in lines]
            return {k: v for part, _ in found for k, v in part.items()}, {k: v for _, p in found for k, v in p.items()}
        names = {line.name for line in lines} - failed.keys()
        return failed, {d.name: str(d.address) for d in self._contents().domains if d.name in names}

    def _remove_slowly(self, names: Sequence[str]) -> bursts.Failed:
        """Removes domains as every command does, looking at everything; those that there are."""
        failed: bursts.Failed = {}

        def change(before: Contents, _: Registry) -> Contents:
            there = {d.name for d in before.domains}
            failed.update({name: no_such(name, before) for name in names if name not in there})
            return before.without(there & set(names))

        try:
            self._change(change)
        except VfrError as error:
            failed.update({name: error for name in names if name not in failed})
        return failed

    def save_domain(self, name: str, file: Path) -> moving.Carried:
        """Takes a domain off, its state into a file; what is its own stays held for it until it is restored, or
        removed. ConflictError if the file is there. If it fails, the domain is as it was."""
        _check_machine()
        carried: list[moving.Carried] = []

        def change(before: Contents, _: Registry) -> Contents:
            from vfr.kernel.host import Host

            host = Host(self._instance, self._on_step)
            try:
                after, found = moving.save(host, before, name, file, self._step)
            except BaseException:
                self._converge(before)  # it may have been stopped
                raise
            finally:
                host.close()
            counts = (len(found.sessions), len(found.inbound), len(found.mappings))
            carried.append(moving.Carried(name, str(file), *counts))
            self._step("note that it is away")
            return after

        self._change(change)
        return carried[0]

    def restore_domain(
        self,
        name: str,
        file: Path,
        *,
        netns: str | None = None,
        tap: str | None = None,
        device: str | None = None,
        sessions: bool = True,
    ) -> moving.Carried:
        """Puts a saved domain back, where it was or at another place, on this router or another. VfrError for a file that
        is not in order, ConflictError for what is taken; nothing is changed then."""
        _check_machine()
        given = [(k, v) for k, v in (("netns", netns), ("tap", tap), ("device", device)) if v is not None]
        if len(given) > 1:
            raise UsageError("a domain hangs at one of --netns, --tap and --device")
        place = moving.Place(*given[0]) if given else moving.Place()
        found = files.read(file)
        if not sessions:
            found = replace(found, sessions=(), inbound=(), mappings=())
        same = self._reserve(found, name, place, sessions)
        try:
            carried = self._put_back(found, place, same)
        except BaseException:
            if not same:
                with suppress(VfrError):  # the first error is the one to be told
                    self._change(lambda before, _: before.without({name}))
            raise
        return replace(carried, file=str(file))

    def _reserve(self, found: files.Saved, name: str, place: moving.Place, with_sessions: bool) -> bool:
        """Whether it went away from here; if not, everything is now held for it as if it had."""
        same = False

        def change(before: Contents, registry: Registry) -> Contents:
            nonlocal same
            after = moving.reserve(found, name, before, registry.next_id(), place, with_sessions)
            same = after == before
            moving.check_outside(found, after)
            moving.check_hang(moving.find(name, after), place, after)
            return after

        self._change(change)
        return same

    def _put_back(self, found: files.Saved, place: moving.Place, same: bool) -> moving.Carried:
        carried: list[moving.Carried] = []

        def change(before: Contents, _: Registry) -> Contents:
            from vfr.kernel.host import Host

            host = Host(self._instance, self._on_step)
            try:
                after, counts = moving.put_back(host, before, found, place, same, self._step)
            finally:
                host.close()
            carried.append(counts)
            self._step("note that it is here")
            return after

        self._change(change)
        return carried[0]

    def _step(self, text: str) -> None:
        if self._on_step:
            self._on_step(text)

    def nat_enable(
        self,
        uplink: str | None = None,
        address: str | None = None,
        forwards: tuple[int, int] | None = None,
        ports: tuple[int, int] | None = None,
        ports_per_domain: int | None = None,
        rules: Path | None = None,
        uplink_rate: int | str | None = None,
    ) -> NatStatus:
        """Gives every domain a masqueraded way to the LAN, and the forwards 2200+x. Run again, it repairs,
        and changes what is named. `forwards` are (low x, high x); `ports` (low, high) is what blocks are
        cut from. `uplink_rate` is what the uplink takes, in bits a second, to be shared out when domains want more: 0 not
        to, "auto" (as at first) for what the interface says. Everything is checked before anything is changed."""
        _check_machine()

        def change(before: Contents, registry: Registry) -> Contents:
            nat = self._new_nat(before, uplink, address, forwards, ports, ports_per_domain, uplink_rate)
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
        uplink_rate: int | str | None,
    ) -> Nat:
        old = before.nat
        if old and uplink in (None, old.uplink) and address is None and uplink_has(old):
            chosen, lan_address = old.uplink, old.address
        else:
            chosen, lan_address = choose_uplink(uplink, address)
        nat = Nat(
            chosen,
            lan_address,
            forwards or (old.forwards if old else FORWARDS),
            ports or (old.ports if old else NAT_PORTS),
            per_domain or (old.ports_per_domain if old else PORTS_PER_DOMAIN),
            address is not None or (old is not None and old.is_fixed and uplink in (None, old.uplink)),
            (old.uplink_rate if old and uplink in (None, old.uplink) else None)
            if uplink_rate is None
            else as_rate(uplink_rate),
        )
        check_ports(nat.ports, nat.ports_per_domain, nat.forwards)
        check_listeners(nat.ports, nat.forwards)
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
                raise no_such(name, contents)
        return reaching.exposure(reached(contents), forward_rules(contents), names or None)

    def _declared(self, name: str, text: str, before: Contents, registry: Registry | None) -> Contents:
        """What the registry is to say when a file is in force."""
        rules, document = ruled(name, text, before.rules, self._numbers())
        after = replace(before, rules=rules)
        if document.domains is not None:
            stay = {line.name for line in document.domains if _is_as_before(line, before)}
            after = after.without({d.name for d in before.domains} - stay)
        if document.nat:
            with _told_at(rules, document.nat_line):
                after = replace(after, nat=self._declared_nat(document.nat, after))
        for at, line in zip(
            document.domain_lines, document.domains or (), strict=False
        ):  # `domain none` is a line, too
            with _told_at(rules, at):
                after = self._declared_domain(line, after, registry, before.domains)
        if document.dhcp:
            after = _declared_dhcp(rules, document, after)
        if after.is_empty and not before.is_empty:
            raise ConflictError(
                f"{name} leaves nothing; to take all down, run `vfr domain remove` and `vfr nat disable`"
            )
        if after.is_empty:
            raise ConflictError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
        forwards.check(document, after, listeners())
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
        return self._new_nat(
            before, line.uplink, line.address, line.ssh, line.ports, line.ports_per_domain, line.uplink_rate
        )

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
        said = dict(line.guest)
        guest = choose_guest(said.get("address"), said.get("mac"), said.get("gateway"), before)
        return replace(before, domains=(*before.domains, replace(made, limits=limits, guest=guest)))

    def export(self) -> str:
        """The running state as a file that `apply` takes: NAT, domains, forwards and rules."""
        return exported(self._contents())

    def upgrade(self, lose_sessions: bool = False) -> Upgraded:
        """Has the installed build of the fastpath take over from the running one, under full traffic: no conversation is
        lost, and no packet meets no filter. ConflictError, and nothing changed, if the tables are laid out otherwise;
        with `lose_sessions` they begin anew then, closed until all is up again."""
        from vfr.kernel import loader, mounts, upgrade
        from vfr.kernel.fastpath import Fastpath

        _check_machine()
        step = self._on_step or (lambda _: None)
        with locked(self._instance.lock):
            contents, pins = read_only(self._instance.registry), mounts.seen_from_here(self._instance.bpffs)
            is_there = (
                not contents.is_empty and mounts.is_mounted(self._instance.bpffs) and (pins / "fastpath").is_dir()
            )
            before, anew = upgrade.running(pins) if is_there else None, tuple[str, ...]()
            if is_there and before != loader.installed():
                try:
                    anew = upgrade.take_over(pins, step)
                except ConflictError:
                    if not lose_sessions:
                        raise
                    step("unload the running fastpath")
                    Fastpath.unload(pins)
                    anew = ("sessions",)
        if not contents.is_empty:
            self._change(lambda before, _: before, of_pending=True)
        return Upgraded(before, loader.installed(), is_there and before != loader.installed(), anew)

    def up(self) -> Up:
        """Puts everything up as the registry has it: after a boot, or whatever else has taken things away. What cannot
        be there yet is left out, closed, and told. KernelError if something else is in the way."""
        _check_machine()
        did = self.repair()
        contents = self._contents()
        up = sum(self._state(d)[0] == "up" for d in contents.domains)
        nat = contents.nat is not None and not lan_lost(contents.nat)
        return Up(up, nat, did, self.waiting())

    def waiting(self) -> tuple[str, ...]:
        """What is not there, so that it could not be put up: each in a sentence."""
        contents = self._contents()
        states = [(d, *self._state(d)) for d in contents.domains if d.saved is None]
        missing = [f"{d.name}: {reason}" for d, state, reason in states if state != "up"]
        lost = lan_lost(contents.nat) if contents.nat else ""
        return (*missing, *([f"NAT: {lost}"] if lost else []))

    def repair(self) -> tuple[str, ...]:
        """Makes the kernel what the registry says. What was done, each step in a sentence; () if all was in order, and
        then nothing was locked. Where NAT was enabled without an address, it follows the uplink's."""
        contents = self._contents()
        if contents.is_empty or self._is_in_order(contents):
            return ()
        self._did = ()
        self._change(lambda before, _: before, of_pending=True)
        return self._did

    # Converging

    def _is_in_order(self, contents: Contents) -> bool:
        """Whether there is nothing to repair, nor an address to follow. Others may be changing things meanwhile."""
        from vfr.kernel import mounts, upgrade
        from vfr.kernel.host import Host

        if followed(contents) != contents or upgrade.is_under_way(mounts.seen_from_here(self._instance.bpffs)):
            return False
        host = Host(self._instance)
        try:
            return not self._plan(host, contents)
        finally:
            host.close()

    def _settle_upgrade(self) -> None:
        """An upgrade that broke off is gone back on, or completed if it had come so far."""
        from vfr.kernel import mounts, upgrade

        pins = mounts.seen_from_here(self._instance.bpffs)
        if mounts.is_mounted(self._instance.bpffs) and upgrade.is_under_way(pins):
            upgrade.settle(pins, self._on_step or (lambda _: None))

    def _change(self, change: Callable[[Contents, Registry], Contents], of_pending: bool = False) -> None:
        """Writes down what is wanted, then makes it so. If that fails, goes back and makes that so."""
        with locked(self._instance.lock):
            self._instance.state.mkdir(parents=True, exist_ok=True)
            self._settle_upgrade()
            try:
                self._change_locked(change, of_pending)
            finally:
                if read_only(self._instance.registry).is_empty:
                    self._converge(Contents())

    def _change_locked(self, change: Callable[[Contents, Registry], Contents], of_pending: bool) -> None:
        registry, unfinished = Registry(self._instance.registry), self._instance.unfinished
        try:
            before = _read_anew(registry.read())
            if before.pending and not of_pending:
                before = self._settle(before, registry)
            before = self._follow(before)
            was_finished = not unfinished.exists()
            unfinished.touch()
            try:
                with registry.transaction():
                    after = change(before, registry)
                    registry.write(after)
            except VfrError:
                if was_finished:  # and it still is: nothing was changed
                    unfinished.unlink(missing_ok=True)
                raise
            try:
                self._converge(after)
            except VfrError:
                with registry.transaction():
                    registry.write(before)
                with suppress(VfrError):  # the first error is the one to be told
                    self._converge(before)
                raise
            unfinished.unlink(missing_ok=True)
        finally:
            registry.close()

    def _follow(self, before: Contents) -> Contents:
        """With the uplink's present address, if NAT is to follow it."""
        after = followed(before)
        if before.nat and after.nat and after.nat.address != before.nat.address:
            self._did += (f"NAT follows {after.nat.uplink} from {before.nat.address} to {after.nat.address}",)
        return after

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
        self._instance.unfinished.touch()
        with registry.transaction():
            registry.write(earlier)
        self._converge(earlier)
        return earlier

    def _converge(self, contents: Contents) -> None:
        """Makes it so, and looks whether it is."""
        from vfr.kernel.host import Host

        host = Host(self._instance, self._on_step)
        try:
            todo = self._plan(host, contents)
            host.apply(todo)
            self._did += tuple(change.text for change in todo)
            if not contents.is_empty and (left := self._plan(host, contents)):
                raise KernelError(f"verifying the change: to {left[0].text} had no effect", errno.EIO)
        finally:
            host.close()

    def _plan(self, host: Host, contents: Contents) -> list[Change]:
        from vfr.plan import plan

        host.policy = lambda path, in_force: self._tables(contents, path, in_force)
        actual: Actual = host.read(POOL, contents.nat.uplink if contents.nat else None)
        return plan(wanted(contents), actual)

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
            book.amend(patch, patch.digest, seats(contents))
            book.save(path)
            return patch
        policy = self._policy_of(contents)
        rules = contents.rules or Rules("", "")
        made = Book.of(policy, rules_of(contents), seats(contents), lan_of(contents.nat), definitions(rules))
        made.save(path)
        return policy

    def _patched(self, contents: Contents, path: Path, in_force: str | None) -> tuple[Book, Patch] | None:
        rules = contents.rules
        if self._book is None or self._book.digest != in_force:
            self._book = Book.load(path, in_force)
        book = self._book
        if book is None or rules is None:
            return None
        slots, lan = seats(contents), lan_of(contents.nat)
        added, removed = changes(book, rules)
        if len(added) + len(removed) > RULES_AT_ONCE or not book.knows(definitions(rules), slots, lan):
            return None
        patch = book.patch(rules_at(rules, added), removed, slots)
        return (book, replace(patch, digest=policy_digest(contents))) if patch else None

    def _policy_of(self, contents: Contents) -> CompiledPolicy:
        """The tables for what the registry says, made once."""
        from vfr.policy import RuleSet, compile_rules

        known = policy_digest(contents)
        if known not in self._policies:
            rules, numbers = RuleSet(), tuple[int, ...]()
            if contents.rules:
                rules, numbers = rules_of(contents), contents.rules.numbers
            made = compile_rules(rules, slots_of(contents), lan_of(contents.nat), numbers)
            self._policies[known] = replace(made, digest=known)
        return self._policies[known]


def _told(d: Domain, words: DhcpWords | None) -> Domain:
    """The domain with these words of DHCP over those it had, or with none."""
    if words is None:
        return replace(d, dhcp=DhcpWords())
    return replace(d, dhcp=replace(d.dhcp, **words.said()))


def _declared_dhcp(rules: Rules, document: Document, before: Contents) -> Contents:
    """With DHCP as a file has it: what it does not say is the default for all, and nothing for one domain."""
    for at, line in zip(document.dhcp_lines, document.dhcp, strict=True):
        if line.name != ANY and all(d.name != line.name for d in before.domains):
            with _told_at(rules, at):
                raise ConflictError(str(no_such(line.name, before)))
    said = {line.name: line.words for line in document.dhcp}
    domains = (replace(d, dhcp=said.get(d.name, DhcpWords())) for d in before.domains)
    return replace(before, dhcp=said.get(ANY, DhcpWords()).over(Dhcp()), domains=tuple(domains))


@contextmanager
def _told_at(rules: Rules, line: int) -> Iterator[None]:
    """What is wrong with a statement of a file is told with its place."""
    from vfr.policy import RuleError

    try:
        yield
    except (UsageError, ConflictError) as error:
        raise RuleError(rules.file, line, 1, str(error), rules.text.splitlines()[line - 1]) from None


def _sysfs(path: Path) -> str | None:
    """What the file says, None if it has gone. In `ip netns exec` /sys is that namespace's."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, OSError):
        return None


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


def _says_as(said: tuple[tuple[str, str], ...], old: Domain) -> bool:
    """Whether the guest's view in a line is the domain's."""
    had = {name: str(value) for name, value in asdict(old.guest).items() if value is not None}
    return {name: value.lower() for name, value in said if (name, value) != ("gateway", str(GATEWAY))} == had


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
        and _says_as(line.guest, old)
    )


__all__ = ["DomainStatus", "ForwardStatus", "KernelError", "NatStatus", "Router"]
