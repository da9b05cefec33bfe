"""How one of two tries to reach the other: frames of all kinds, and sockets; each known again wherever it arrives."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from vfr_lab.node import Frame, Heard, Node, Seen

DNS = 53
ANY = "ff:ff:ff:ff:ff:ff"
PRIVATE_ETHERTYPE = 0x88B5
SYN, SYN_ACK = 0x02, 0x12
OWN_PORTS = range(40000, 60000)


@dataclass(frozen=True, slots=True)
class Side:
    """One of two, as the other meets it. `gateway` is the MAC of its default route's next hop, if it knows one."""

    node: Node
    interface: str
    mac: str
    address: str
    gateway: str | None

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame that one side sends the other, and what it is, in words."""

    sentence: str
    frame: Packet


class Probes:
    """All frames from one side to the other. Each ends with the mark and its number, by which it is known wherever it arrives."""

    def __init__(self, x: Side, y: Side, tcp: Iterable[int], reflector: tuple[str, int] | None) -> None:
        self.x, self.y = x, y
        self.mark = secrets.token_hex(6).encode()
        self.all: list[Probe] = []
        ways = {ANY: "by broadcast", y.mac: f"to {y.name}'s own MAC"}
        if x.gateway:
            ways = {x.gateway: "by the gateway", **ways}
        for mac, way in ways.items():
            self._as_itself(mac, way, tcp)
        self._below_ip()
        self._as_others(reflector)

    def _add(self, sentence: str, frame: Packet) -> None:
        self.all.append(Probe(sentence, frame / (self.mark + b"%06d" % len(self.all))))

    def _as_itself(self, mac: str, way: str, tcp: Iterable[int]) -> None:
        head = Ether(src=self.x.mac, dst=mac) / IP(src=self.x.address, dst=self.y.address)
        for port in tcp:
            self._add(f"TCP SYN to port {port} {way}", head / TCP(sport=40000, dport=port, flags="S"))
        self._add(f"UDP to port {DNS} {way}", head / UDP(sport=40000, dport=DNS))
        self._add(f"ping {way}", head / ICMP(id=0x5646))

    def _below_ip(self) -> None:
        x, y = self.x, self.y
        asks = ARP(hwsrc=x.mac, psrc=x.address, pdst=y.address)
        for mac, way in ((ANY, "by broadcast"), (y.mac, f"to {y.name}'s own MAC")):
            ether = Ether(src=x.mac, dst=mac)
            self._add(f"ARP request {way}", ether / asks)
            self._add(f"raw Ethernet {way}", Ether(src=x.mac, dst=mac, type=PRIVATE_ETHERTYPE))
            datagram = IP(src=x.address, dst=y.address) / UDP(sport=40000, dport=DNS)
            self._add(f"UDP with a VLAN tag {way}", ether / Dot1Q(vlan=1) / datagram)
        self._add(
            "UDP by multicast",
            Ether(src=x.mac, dst="01:00:5e:00:00:01") / IP(src=x.address, dst="224.0.0.1") / UDP(dport=5353),
        )
        self._add(
            "IPv6 ping by multicast",
            Ether(src=x.mac, dst="33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1") / ICMPv6EchoRequest(),
        )

    def _as_others(self, reflector: tuple[str, int] | None) -> None:
        x, y = self.x, self.y
        others = {f"{y.name}'s own address": (y.address, x.mac), "the address 203.0.113.9": ("203.0.113.9", x.mac)}
        others[f"{y.name}'s own address and MAC"] = (y.address, y.mac)
        for who, (address, mac) in others.items():
            for to, way in ((x.gateway, "by the gateway"), (y.mac, f"to {y.name}'s own MAC"), (ANY, "by broadcast")):
                if to:
                    datagram = Ether(src=mac, dst=to) / IP(src=address, dst=y.address) / UDP(sport=40000, dport=DNS)
                    self._add(f"UDP in the name of {who} {way}", datagram)
        if reflector and x.gateway:
            address, port = reflector
            question = IP(src=y.address, dst=address) / UDP(sport=40000, dport=port)
            sentence = f"UDP to {address}:{port} in {y.name}'s name, which the answer goes to"
            self._add(sentence, Ether(src=x.mac, dst=x.gateway) / question)

    def number(self, frame: Frame) -> int | None:
        """Which of them this frame is, or bears; None if it is none."""
        found = re.search(self.mark + rb"(\d{6})", frame.raw)
        return int(found[1]) if found else None


@dataclass(slots=True)
class Attempt:
    """One thing said through a socket to `address` and `outside`, which is how `port` of the other is reached.

    `arrived` and `answered` are what became of it, once it is judged.
    """

    protocol: str
    port: int
    address: str
    outside: int
    own_port: int = field(default_factory=lambda: OWN_PORTS[secrets.randbelow(len(OWN_PORTS))])
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    arrived: bool = False
    answered: bool = False

    def make(self, speaker: Node, patience_s: float) -> None:
        if self.protocol == "tcp":
            speaker.tcp(self.address, self.outside, own_port=self.own_port, timeout=patience_s)
        elif self.protocol == "udp":
            speaker.udp(self.address, self.outside, self.mark.encode(), own_port=self.own_port, timeout=patience_s)
        else:
            speaker.pings(self.address, "-p", self.mark, f"-W{patience_s}")

    def judge(self, there: Seen | Heard, back: Seen, known_as: str) -> None:
        """From what the other's interface saw, or its service heard, and what came back; the other knows the speaker by
        `known_as`. What was answered has arrived."""
        said = bytes.fromhex(self.mark) if self.protocol == "ping" else self.mark.encode()
        is_tcp = self.protocol == "tcp"
        self.answered = bool(back.having(self._is_accepted if is_tcp else said))
        if isinstance(there, Seen):
            self.arrived = bool(there.having((lambda p: self._opens(p, known_as)) if is_tcp else said))
        else:
            heard = (
                [s for s in there.said if known_as == s[0] or self.own_port == s[1]] if is_tcp else there.having(said)
            )
            self.arrived = self.answered or bool(heard)

    def _opens(self, p: Packet, known_as: str) -> bool:
        ours = TCP in p and (p[TCP].sport == self.own_port or p[IP].src == known_as)
        return bool(ours and p[TCP].dport == self.port and p[TCP].flags & SYN_ACK == SYN)

    def _is_accepted(self, p: Packet) -> bool:
        ends = (self.address, self.outside, self.own_port)
        return accepts(p) and (p[IP].src, p[TCP].sport, p[TCP].dport) == ends

    @property
    def fate(self) -> str:
        """What was tried, and what became of it."""
        by = self.address if self.outside == self.port else f"{self.address} port {self.outside}"
        what = "ping" if self.protocol == "ping" else f"{self.protocol}={self.port}"
        went = "arrived" if self.arrived else "never arrived"
        return f"{what}, by {by}: {went}, and was {'answered' if self.answered else 'not answered'}"


def accepts(p: Packet) -> bool:
    """Whether it is what only a TCP service that takes a connection sends."""
    return IP in p and TCP in p and bool(p[TCP].flags & SYN_ACK == SYN_ACK)
