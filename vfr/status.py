"""What the commands show, as data."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vfr import forwards
from vfr import instance as instances
from vfr._abi import Limit, Verdict
from vfr.forwards import FORWARD_BASE, POOL
from vfr.policy.rules import rule_text
from vfr.registry import Contents, Rules, read_only

if TYPE_CHECKING:
    from vfr import _abi as abi

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """A domain as `vfr domain list` shows it. `state` is up, missing (its namespace or device is gone), saved (it is
    away in a file) or degraded (`reason` says why); `forward` is the outside port that leads to its ssh; `rates` are those that
    it is held to ("" if to none), `guest_...` is what a clone's guest believes, `dhcp` what a guest is
    told beside that."""

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
    rates: str = ""
    guest_address: str | None = None
    guest_mac: str | None = None
    guest_gateway: str | None = None
    dhcp: str = "off"


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
    fastpath: str | None = None  # the digest of the build that runs
    is_installed: bool = True  # whether that is the installed one
    dhcp: str = "off"  # what guests are told of which nothing else is said
    uplink_rate: int = 0  # bits a second that domains share when they want more, 0 if nobody has said how many


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What `vfr upgrade` did: builds of the fastpath by their digests, `before` None if none ran before; `anew` are the
    tables that began anew."""

    before: str | None
    installed: str
    changed: bool
    anew: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Up:
    """What `vfr up` found: `domains` that are up, what it `did`, and what it is `waiting` for, each in a sentence."""

    domains: int
    nat: bool
    did: tuple[str, ...]
    waiting: tuple[str, ...]


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


def forward_statuses(contents: Contents) -> tuple[ForwardStatus, ...]:
    """Those of `vfr nat enable` first."""
    found: list[ForwardStatus] = []
    by_address = {d.address: d.name for d in contents.domains}
    by_name = {d.name: str(d.address) for d in contents.domains}
    for x in range(contents.nat.forwards[0], contents.nat.forwards[1] + 1) if contents.nat else ():
        found.append(ForwardStatus(FORWARD_BASE + x, str(POOL[x]), forwards.SSH, by_address.get(POOL[x])))
    for f in contents.rules.forwards if contents.rules else ():
        address, (low, high) = by_name.get(f.domain), f.outside
        on = "host" if f.host_only else "lan"
        found.append(ForwardStatus(low, address, f.inside[0], f.domain, f.protocol, high - low + 1, on))
    return tuple(found)


def rules_by_number(contents: Contents) -> dict[int, tuple[str, str]]:
    """Number -> (the rule, file and line)."""
    rules = contents.rules or Rules("", "")
    lines = rules.text.splitlines()
    return {
        number: (rule_text(lines[line - 1]), f"{rules.file}:{line}")
        for line, number in zip(rules.lines, rules.numbers, strict=True)
    }


class Names:
    """What the numbers in events stand for. Read again when one is unknown: the router changes while we listen."""

    def __init__(self, instance: instances.Instance) -> None:
        self._registry = instance.registry
        self._read()

    def _read(self) -> None:
        contents = read_only(self._registry)
        self._rows = {0: "dom0", int(Limit.ROW_LAN): "lan", int(Limit.ROW_UNKNOWN): "unknown"}
        self._rows.update({d.slot: d.name for d in contents.domains})
        self._rules = rules_by_number(contents)

    def who(self, row: int) -> str:
        """Whose a row of counters is."""
        if row not in self._rows:
            self._read()
        return self._rows.get(row, f"slot {row}")

    def rule(self, number: int) -> tuple[str | None, str | None]:
        """A rule, and where it stands; of number 0, and of a rule that is gone, nothing."""
        if number and number not in self._rules:
            self._read()
        return self._rules.get(number, (None, None))

    def event(self, e: abi.Event) -> Event:
        rule, where = self.rule(e.rule)
        verdict = Verdict(e.verdict).name
        is_ip = e.ethertype == 0x0800
        return Event(
            at=e.at_ns / 1e9,
            kind="drop" if verdict.startswith("DROP_") else "begin",
            who=self.who(e.row),
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
