"""A NAT's two sides, on the real object: what is sent inside, what is seen outside, and the way back.

domain web, inside port --- [ object ] --- outside port ... remote address and port
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from support import world
from support.bench import Bench, Outcome
from support.frames import LAN_ADDRESS, ip
from vfr.spec.model import LAN

RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db\n"
REMOTE = ("192.0.2.11", 80)
STRANGER = ("192.0.2.12", 80)
# Of ICMP the two queries: echo, and timestamp.
Protocol = Literal["tcp", "udp", "icmp", "stamp"]
QUERIES: tuple[Protocol, ...] = ("icmp", "stamp")
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp", "icmp")
INSIDE_ISN, REMOTE_ISN = 1000, 5000
ROUTER = "192.0.2.254"


def _layers(protocol: Protocol, sport: int, dport: int, flags: str, reply: bool) -> Packet:
    if protocol == "icmp":
        return ICMP(type=0 if reply else 8, id=dport if reply else sport, seq=1) / Raw(b"abcdefgh")
    if protocol == "stamp":
        return ICMP(type=14 if reply else 13, id=dport if reply else sport, seq=1, ts_ori=1, ts_rx=2, ts_tx=3)
    if protocol == "udp":
        return UDP(sport=sport, dport=dport) / Raw(b"hello")
    own, other = (REMOTE_ISN, INSIDE_ISN) if reply else (INSIDE_ISN, REMOTE_ISN)
    first = "S" in flags
    return TCP(
        sport=sport, dport=dport, flags=flags, seq=own if first else own + 1, ack=other + 1 if "A" in flags else 0
    )


def outside_port(frame: bytes) -> int:
    """What the LAN sees for the sender's port, or for its query's identifier."""
    packet = Ether(frame)
    return int(packet[ICMP].id if ICMP in packet else packet[IP].payload.sport)


@dataclass(frozen=True, slots=True)
class Sides:
    """Packets through a bench. What passes is told by its verdict, and by nothing else."""

    bench: Bench

    def send(
        self, protocol: Protocol, inside: int, remote: tuple[str, int] = REMOTE, flags: str = "S", domain: str = "web"
    ) -> Outcome:
        """A domain's packet to a remote."""
        packet = ip(domain, remote[0]) / _layers(protocol, inside, remote[1], flags, False)
        return self.bench.send(world.SLOTS[domain], bytes(packet))

    def out(
        self, protocol: Protocol, inside: int, remote: tuple[str, int] = REMOTE, flags: str = "S", domain: str = "web"
    ) -> int | None:
        """The same: the outside port that it left by, or None if it did not."""
        seen = self.send(protocol, inside, remote, flags, domain)
        return outside_port(seen.frame) if seen.verdict.name == "TO_LAN" and seen.frame else None

    def answer(self, protocol: Protocol, outside: int, remote: tuple[str, int] = REMOTE, flags: str = "SA") -> Outcome:
        """A remote's packet to an outside port: for ICMP a reply."""
        packet = ip("lan", LAN_ADDRESS, src=remote[0]) / _layers(protocol, remote[1], outside, flags, True)
        return self.bench.send(LAN, bytes(packet))

    def back(self, protocol: Protocol, outside: int, remote: tuple[str, int] = REMOTE, flags: str = "SA") -> int | None:
        """The same: the inside port that it arrives at, or None if it does not."""
        seen = self.answer(protocol, outside, remote, flags)
        if seen.verdict.name != "TO_DOMAIN" or seen.frame is None:
            return None
        packet = Ether(seen.frame)
        return int(packet[ICMP].id if ICMP in packet else packet[IP].payload.dport)

    def open(self, inside: int, remote: tuple[str, int] = REMOTE) -> int:
        """A TCP handshake; the outside port."""
        outside = self.out("tcp", inside, remote)
        assert outside is not None
        assert self.back("tcp", outside, remote) == inside
        assert self.out("tcp", inside, remote, "A") == outside
        return outside

    def error(self, about: bytes, kind: int, code: int, source: str = ROUTER) -> Outcome:
        """An ICMP error of a router's on the way, about a frame that left."""
        packet = ip("lan", LAN_ADDRESS, src=source) / ICMP(type=kind, code=code) / Raw(about[14:42])
        return self.bench.send(LAN, bytes(packet))

    def complain(self, about: bytes, kind: int, code: int, domain: str = "web") -> Outcome:
        """An ICMP error of a domain's, to whom it received a frame from."""
        to = Ether(about)[IP].src
        packet = ip(domain, to) / ICMP(type=kind, code=code) / Raw(about[14:42])
        return self.bench.send(world.SLOTS[domain], bytes(packet))

    def let_pass(self, seconds: float) -> None:
        """Time passes in silence."""
        self.bench.fastpath.advance_clock(seconds)


def sides(bench: Bench, rules: str = RULES, **changes: Any) -> Sides:
    """The test world anew under these rules, and with these fields of the router changed."""
    bench.reset(replace(world.router(rules), **changes))
    return Sides(bench)


def whole(frame: bytes) -> Packet:
    """The frame, after a look at every checksum that an ICMP error has: its header's, its own, the quote's."""
    packet = Ether(frame)
    quote = bytes(packet[ICMP].payload)
    right = (checksum(bytes(packet[IP])[:20]), checksum(bytes(packet[ICMP])), checksum(quote[: 4 * (quote[0] & 15)]))
    assert right == (0, 0, 0), packet.show(dump=True)
    return packet


def quoted(packet: Packet) -> Packet:
    """What an ICMP error quotes."""
    return IP(bytes(packet[ICMP].payload))


def quoted_ports(packet: Packet) -> tuple[int, int]:
    """Its ports, or twice its query's identifier: a quote may end behind eight bytes of its L4 header."""
    quote = bytes(packet[ICMP].payload)
    l4 = quote[4 * (quote[0] & 15) :]
    words = int.from_bytes(l4[:2], "big"), int.from_bytes(l4[2:4], "big")
    return (int.from_bytes(l4[4:6], "big"),) * 2 if quote[9] == 1 else words
