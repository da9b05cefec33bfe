"""`vfr capture`: one frame on a domain's VIF, and what became of it, for people and for files. Pure.

A frame is a guest's: any bytes. What is shown of one are numbers that were read from it, never its bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from vfr._abi import Limit, Seen, Verdict
from vfr.errors import UsageError
from vfr.verdicts import MEANINGS

SNAP, SNAP_MAX = 256, int(Limit.SNAP_MAX)
PER_S, PER_S_MAX = 10_000, 1_000_000
_ARP, _IPV4, _IPV6, _VLANS = 0x0806, 0x0800, 0x86DD, (0x8100, 0x88A8)
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
_ICMP = {
    0: "echo reply",
    3: "unreachable",
    5: "redirect",
    8: "echo",
    11: "time exceeded",
    13: "timestamp",
    14: "timestamp reply",
}
_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "."))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be captured: frames with these verdicts, of each the first `snap` bytes, so many a second (0: any
    number)."""

    verdicts: frozenset[Verdict]
    snap: int = SNAP
    per_s: int = PER_S


def wish(names: Iterable[str] = (), dropped: bool = False, snap: int = SNAP, per_s: int = PER_S) -> Wish:
    """The same from words: verdicts by name, none for all; `dropped` adds all drops. UsageError if one cannot be."""
    if not 1 <= snap <= SNAP_MAX:
        raise UsageError(f"--snaplen {snap} is out of range; it takes 1 to {SNAP_MAX} bytes")
    if not 0 <= per_s <= PER_S_MAX:
        raise UsageError(f"--rate {per_s} is out of range; it takes 0, for any number, to {PER_S_MAX} frames a second")
    wanted = {_verdict(name) for name in names}
    if dropped:
        wanted |= {v for v in MEANINGS if v.name.startswith("DROP_")}
    return Wish(frozenset(wanted or MEANINGS), snap, per_s)


def _verdict(name: str) -> Verdict:
    known = {v.name: v for v in MEANINGS if v is not Verdict.CONTINUE}
    word = name.upper()
    if word not in known and f"DROP_{word}" not in known:
        raise UsageError(f"--verdict {name!r} is none of {', '.join(v.lower() for v in known)}")
    return known.get(word) or known[f"DROP_{word}"]


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame as it was on the VIF of `domain`, from or to its guest: `way` says which (enum vfr_seen, in small
    letters). `other` is at the other end, as far as that was found out; `where` and `rule` are of the rule that
    decided, if one was asked; `outside_port` what the LAN sees of its conversation. `length` is the frame's own, of
    which `data` is the beginning; `gso_size` is not 0 if it stands for segments of so many bytes each. `lost` frames
    before it are not there. `at_ns` is since 1970."""

    at_ns: int
    domain: str
    way: str
    other: str | None
    verdict: str
    rule: str | None
    where: str | None
    outside_port: int | None
    length: int
    gso_size: int
    lost: int
    data: bytes

    @property
    def is_inbound(self) -> bool:
        """Whether it came in by the VIF, from the guest."""
        return self.way in ("from", "again")

    @property
    def is_dropped(self) -> bool:
        """Whether it ended there. An ICMP error about a drop has arrived."""
        return self.verdict.startswith("DROP_") and self.way != "reply"


_ANSWERS = ("ANSWERED", "DHCP_NAK")
WAYS = {way: way.name.removeprefix("SEEN_").lower() for way in Seen}


def _course(packet: Packet) -> str:
    """From where to where."""
    if packet.way == "reply":
        what = "the answer" if packet.verdict in _ANSWERS else "the ICMP error about a frame"
        return f"to {packet.domain}, by the router: {what}"
    if packet.is_inbound:
        again = ", as the sorter gave it back" if packet.way == "again" else ""
        return f"from {packet.domain}{f' to {packet.other}' if packet.other else ''}{again}"
    return f"to {packet.domain} from {packet.other or 'nobody'}"


def comment(packet: Packet) -> str:
    """All that is known of it beside its bytes, the verdict first."""
    parts = [_course(packet)]
    if packet.rule:
        parts.append(f"rule {packet.where}: {packet.rule}")
    if packet.outside_port:
        parts.append(f"outside port {packet.outside_port}")
    if packet.gso_size:
        parts.append(f"stands for segments of {packet.gso_size} bytes")
    if packet.lost:
        parts.append(f"{packet.lost} before it are lost")
    return f"{packet.verdict} ({MEANINGS[Verdict[packet.verdict]]}); {'; '.join(parts)}"


def line(packet: Packet) -> str:
    """For people: when, which way, what it is, and its verdict with the rule."""
    seconds, ns = divmod(packet.at_ns, 10**9)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ns // 1000:06}"
    arrow = "from" if packet.is_inbound else "to  "
    lost = f"({packet.lost} lost) " if packet.lost else ""
    router = " by the router" if packet.way == "reply" else " again" if packet.way == "again" else ""
    by = f"  ({packet.where}: {packet.rule})" if packet.rule else ""
    what = f"{summary(packet.data)}, {packet.length} bytes"
    return f"{clock} {lost}{arrow} {packet.domain}{router}: {what}: {packet.verdict}{by}"


def _number(data: bytes, at: int, size: int = 2) -> int:
    """Of a frame that is too short, IndexError."""
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big")


def summary(data: bytes) -> str:
    """What a frame says that it is, right or wrong, as far as it goes."""
    try:
        return _frame(data)
    except IndexError:
        return f"cut short after {len(data)} bytes"


def _frame(data: bytes) -> str:
    at, tags, kind = 12, "", _number(data, 12)
    while kind in _VLANS:
        tags += f"vlan {_number(data, at + 2) & 0xFFF} "
        at, kind = at + 4, _number(data, at + 4)
    macs = f"{data[6:12].hex(':')} > {data[:6].hex(':')}"
    if kind == _ARP:
        return tags + _arp(data, at + 2)
    if kind == _IPV4:
        return tags + _ipv4(data, at + 2)
    if kind == _IPV6:
        source, target = (IPv6Address(_number(data, at + 2 + place, 16)) for place in (8, 24))
        return f"{tags}ipv6 {_PROTOCOLS.get(_number(data, at + 8, 1), 'next')} {source} > {target}"
    return f"{tags}ether {kind:#06x} {macs}"


def _arp(data: bytes, at: int) -> str:
    operation, sender, target = _number(data, at + 6), _number(data, at + 14, 4), _number(data, at + 24, 4)
    if operation == 1:
        return f"arp who has {IPv4Address(target)}, asks {IPv4Address(sender)}"
    name = "reply" if operation == 2 else f"operation {operation}"
    return f"arp {name} {IPv4Address(sender)} is at {data[at + 8 : at + 14].hex(':')}"


def _ipv4(data: bytes, at: int) -> str:
    source, target = IPv4Address(_number(data, at + 12, 4)), IPv4Address(_number(data, at + 16, 4))
    protocol, fragment = _number(data, at + 9, 1), _number(data, at + 6)
    name = _PROTOCOLS.get(protocol, f"proto {protocol}")
    if fragment & 0x1FFF:
        return f"{name} {source} > {target} fragment at {(fragment & 0x1FFF) * 8}"
    l4 = at + (_number(data, at, 1) & 0xF) * 4
    if protocol == 1:
        kind = _number(data, l4, 1)
        return f"{name} {source} > {target} {_ICMP.get(kind, f'type {kind}')}"
    if protocol not in (6, 17):
        return f"{name} {source} > {target}"
    ends = f"{name} {source}:{_number(data, l4)} > {target}:{_number(data, l4 + 2)}"
    if protocol == 17:
        return ends
    flags = _number(data, l4 + 13, 1)
    return f"{ends} [{''.join(letter for bit, letter in _FLAGS if flags & bit)}]"


@dataclass(frozen=True, slots=True)
class Totals:
    """Of `seen` wanted frames, those that were lost: more a second than asked for, and more than there was room for."""

    seen: int
    too_fast: int
    no_room: int

    @property
    def lost(self) -> int:
        return self.too_fast + self.no_room

    def __str__(self) -> str:
        """`3 lost: 2 over --rate, 1 for want of room`."""
        parts = [f"{self.too_fast} over --rate"] * bool(self.too_fast)
        parts += [f"{self.no_room} for want of room"] * bool(self.no_room)
        return f"{self.lost} lost{': ' if parts else ''}{', '.join(parts)}"


__all__ = ["Packet", "Totals", "Wish", "comment", "line", "summary", "wish"]
