"""To be taken for somebody else: MAC, IP, ARP, neighbour discovery, router and DHCP announcements, tags."""

from __future__ import annotations

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import Stage


def _udp(s: Stage, source: str) -> Packet:
    return IP(src=source, dst=s.address("lan1")) / UDP(sport=4000, dport=9) / Raw(s.mark)


@attack("identity", tool="scapy", falls="bridge")
def source_address_of_another(s: Stage) -> list[str]:
    """web sends in db's name.

    A datagram to lan1 with db's IP address as its source, from web's own MAC. lan1 must not receive it.
    """
    frame = Ether(src=s.web.mac, dst=s.gateway_mac())
    with s.lan1.watch() as seen:
        s.web.send(frame / _udp(s, s.address("web")) / b"own")
        s.web.send(frame / _udp(s, s.address("db")) / b"another's")
    s.control("the same datagram in web's own name arrives", seen.having(s.mark + b"own"))
    return [f"lan1 received: {f}" for f in seen.having(s.mark + b"another's")]


@attack("identity", tool="arping", falls="bridge")
def gratuitous_arp_for_another(s: Stage) -> list[str]:
    """web announces db's address as its own.

    An unsolicited ARP reply with db's address and web's MAC. The host must go on sending to db: what it says to
    db's address may not come to web.
    """
    db = s.address("db")
    s.control("dom0 reaches db before", s.dom0.pings(db))
    with s.web.watch() as seen:
        s.web.send(Ether(src=s.web.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=2, hwsrc=s.web.mac, psrc=db, pdst=db))
        s.dom0.udp(db, 9, s.mark)
    return [f"web received what dom0 said to db: {f}" for f in seen.having(s.mark)]
