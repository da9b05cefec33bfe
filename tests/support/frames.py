"""Frames by scapy, as the nodes of the test world send them."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from support.world import GATEWAY_MAC, NODES, OUTSIDE


def ether(sender: str, payload: Packet, **fields: object) -> Packet:
    """A frame from a node to the router."""
    return Ether(**{"src": NODES[sender].mac, "dst": GATEWAY_MAC, **fields}) / payload


def ip(sender: str, to: str, **fields: object) -> Packet:
    """Ethernet and IP from a node to an address, or to another node by name."""
    dst = NODES[to].ip if to in NODES else to
    return ether(sender, IP(**{"src": NODES[sender].ip, "dst": dst, "ttl": 64, "id": 7, **fields}))


def tcp(sender: str, to: str, sport: int, dport: int, flags: str = "S", ack: int = 0, **fields: object) -> Packet:
    return ip(sender, to, **fields) / TCP(sport=sport, dport=dport, flags=flags, seq=1000, ack=ack)


def udp(sender: str, to: str, sport: int, dport: int, load: bytes = b"hello", **fields: object) -> Packet:
    return ip(sender, to, **fields) / UDP(sport=sport, dport=dport) / Raw(load)


def echo(sender: str, to: str, number: int, kind: int = 8, **fields: object) -> Packet:
    return ip(sender, to, **fields) / ICMP(type=kind, id=number, seq=1) / Raw(b"abcdefgh")


def timestamp(sender: str, to: str, number: int, kind: int = 13, **fields: object) -> Packet:
    return ip(sender, to, **fields) / ICMP(type=kind, id=number, seq=1, ts_ori=1, ts_rx=2, ts_tx=3)


def arp(sender: str, target: str, **fields: object) -> Packet:
    own = {"op": 1, "hwsrc": NODES[sender].mac, "psrc": NODES[sender].ip, "pdst": target}
    return ether(sender, ARP(**{**own, **fields}), dst="ff:ff:ff:ff:ff:ff")


def arp_answer(asker: str, address: str) -> Packet:
    own = NODES[asker]
    reply = ARP(op=2, hwsrc=GATEWAY_MAC, psrc=address, hwdst=own.mac, pdst=own.ip)
    return Ether(src=GATEWAY_MAC, dst=own.mac) / reply


def arriving(to: str, packet: Packet, **fields: object) -> Packet:
    """What a node receives: the packet's IP part, from the router's MAC, one hop further."""
    out = packet[IP].copy()
    for name, value in {"ttl": out.ttl - 1, **fields}.items():
        setattr(out, name, value)
    for layer, names in ((IP, ("chksum",)), (TCP, ("chksum",)), (UDP, ("chksum",)), (ICMP, ("chksum",))):
        if layer in out:
            for name in names:
                delattr(out[layer], name)
    return Ether(src=GATEWAY_MAC, dst=NODES[to].mac) / out


LAN_ADDRESS = str(OUTSIDE)


def icmp_from_router(to: str, about: Packet, kind: int, code: int, mtu: int = 0) -> Packet:
    """The ICMP error that the router sends a node about its packet. To the LAN, MACs are filled in later."""
    from_lan = to == "lan"
    own = NODES[to]
    head = IP(src=LAN_ADDRESS if from_lan else NODES["dom0"].ip, dst=about[IP].src, ttl=64, id=0, flags="DF", tos=0xC0)
    quote = Raw(bytes(about[IP])[:548])
    mac = {"src": about.src, "dst": about.dst} if from_lan else {"src": GATEWAY_MAC, "dst": own.mac}
    return Ether(**mac) / head / ICMP(type=kind, code=code, nexthopmtu=mtu) / quote
