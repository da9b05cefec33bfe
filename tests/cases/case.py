"""What a case of the packet table is, and what NAT makes of a packet."""

from __future__ import annotations

from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet
from support.frames import LAN_ADDRESS, arriving
from support.world import NODES

from vfr._abi import Verdict as V

XEN = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`before` are frames that come first and must pass; then programs of the host bind the (protocol, port) of
    `host`. `becomes` is the whole frame that comes out."""

    sentence: str
    sender: str
    packet: Packet
    verdict: V
    becomes: Packet | None = None
    target: str | None = None
    rules: str = XEN
    before: tuple[tuple[str, Packet], ...] = ()
    host: frozenset[tuple[int, int]] = frozenset()
    answered: bool = False  # a drop that the sender is told of; `becomes` may be the whole answer
    lab: bool = False  # run through real namespaces too


def going_out(packet: Packet, sport: int) -> Packet:
    """A domain's packet as the LAN sees it: MACs are the kernel's to fill in later."""
    new = packet.copy()
    new[IP].src, new[IP].ttl = LAN_ADDRESS, packet[IP].ttl - 1
    for layer in (TCP, UDP):
        if layer in new:
            new[layer].sport = sport
            del new[layer].chksum
    if ICMP in new:
        new[ICMP].id = sport
        del new[ICMP].chksum
    del new[IP].chksum
    return new


def coming_in(packet: Packet, to: str, dport: int) -> Packet:
    """The LAN's packet as the domain sees it."""
    new = packet.copy()
    for layer in (TCP, UDP):
        if layer in new:
            new[layer].dport = dport
    if ICMP in new:
        new[ICMP].id = dport
    return arriving(to, new, dst=NODES[to].ip)
