"""A TCP conversation, as somebody knows it who has read it: the worst that an attacker can know."""

from __future__ import annotations

from dataclasses import dataclass

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Raw

from vfr_lab.node import Frame, Seen


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a conversation as its own network sees it, and the bytes it would send next: `seq`, `ack`."""

    address: str
    port: int
    peer: str
    peer_port: int
    seq: int
    ack: int

    def says(self, flags: str, data: bytes = b"") -> Packet:
        """The IP packet that this end would send next."""
        tcp = TCP(sport=self.port, dport=self.peer_port, flags=flags, seq=self.seq, ack=self.ack)
        return IP(src=self.address, dst=self.peer) / tcp / Raw(data)

    @property
    def other(self) -> Side:
        """The other end, as this one's network sees it."""
        return Side(self.peer, self.peer_port, self.address, self.port, self.ack, self.seq)


def side(seen: Seen, own_port: int) -> Side:
    """The end of a conversation at the node that watched, by its port there. LookupError if nothing was seen of it.

    Of several at this port the one that was opened last, or spoke last: an earlier attack's may still be ending.
    """
    sent = [p for p in map(_ip, seen.own) if p is not None and p[TCP].sport == own_port]
    got = [p for p in map(_ip, seen.frames) if p is not None and p[TCP].dport == own_port]
    if not sent:
        raise LookupError(f"{seen.node} has sent nothing from port {own_port}")
    opened = [p for p in sent if "S" in p[TCP].flags]
    spoke = [p for p in sent if "P" in p[TCP].flags]
    last = (opened or spoke or sent)[-1]
    sent = [p for p in sent if p[TCP].dport == last[TCP].dport]
    got = [p for p in got if p[TCP].sport == last[TCP].dport]
    ack = max((_next(p) for p in got), default=last[TCP].ack)
    return Side(last[IP].src, own_port, last[IP].dst, last[TCP].dport, max(map(_next, sent)), ack)


def _ip(frame: Frame) -> Packet | None:
    packet = frame.packet
    return packet if packet.haslayer(IP) and packet.haslayer(TCP) else None


def _next(packet: Packet) -> int:
    """The sequence number after this segment."""
    ip, tcp = packet[IP], packet[TCP]
    length = ip.len - ip.ihl * 4 - tcp.dataofs * 4
    return (int(tcp.seq) + int(length) + ("S" in tcp.flags) + ("F" in tcp.flags)) % 2**32
