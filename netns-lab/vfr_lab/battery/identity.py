"""To be taken for somebody else: MAC, IP, ARP, neighbour discovery, router and DHCP announcements, tags.

Where a guest is to hear or believe nothing, two controls say that it could have: domain 0, which may speak to
guests, is heard there at the same time; and what web sends was seen leaving web.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scapy.contrib.lldp import LLDPDU, LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSRR
from scapy.layers.eap import EAPOL
from scapy.layers.inet import ICMP, IP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_RA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, Stage
from vfr_lab.lab import wait_until
from vfr_lab.node import Node

ALL = "ff:ff:ff:ff:ff:ff"
SERVICE = 4040  # a port of db's, on which a datagram is heard
HONEST = b"honest"
FADING_S = 1.4  # more than the second in which Linux's ARP keeps what it has just learned (`locktime`)


def _udp(s: Stage, source: str) -> Packet:
    return IP(src=source, dst=s.address("lan1")) / UDP(sport=4000, dport=9) / Raw(s.mark)


def _own_ip(s: Stage, to: str = "db") -> Packet:
    """An IP datagram of web's own to another guest's service."""
    return IP(src=s.address("web"), dst=s.address(to)) / UDP(sport=53, dport=SERVICE) / Raw(s.mark)


def _reaches_db(s: Stage, *frames: Packet | bytes) -> list[str]:
    """web sends frames that bear the mark; those of which db's interface gets anything."""
    with s.db.watch() as seen, s.web.watch() as web:
        s.web.send(*frames)
        s.dom0.udp(s.address("db"), 9, s.mark + HONEST)
    s.control("the frames left web", sum(s.mark in f.raw for f in web.own) == len(frames))
    s.control("db sees what dom0 says to it", seen.having(s.mark + HONEST))
    return [f"db received: {f}" for f in seen.having(s.mark) if s.mark + HONEST not in f.raw]


def _in_the_name_of(s: Stage, source: str) -> list[str]:
    """web sends db's service a datagram from this address, to db's MAC and by the gateway; what was heard of it."""
    packet = IP(src=source, dst=s.address("db")) / UDP(sport=53, dport=SERVICE) / Raw(s.mark)
    with s.db.listen("udp", SERVICE) as heard:
        s.web.send(*(Ether(src=s.web.mac, dst=to) / packet for to in (s.db.mac, s.gateway_mac())))
        s.dom0.udp(s.address("db"), SERVICE, s.mark + HONEST)
    s.control("db's service hears dom0", heard.having(s.mark + HONEST))
    return [f"db's service believes it heard {a}:{p}" for a, p, said in heard.said if said == s.mark]


def _stolen(s: Stage, *frames: Packet, times: int = 1) -> list[str]:
    """web sends frames meant to make dom0 or the switch take it for db; what then comes to web of dom0's to db."""
    db = s.address("db")
    s.control("dom0 reaches db before", s.dom0.pings(db))
    with s.web.watch() as seen:
        s.web.send(*frames, times=times, pace_s=FADING_S / times if times > 1 else 0)
        s.dom0.udp(db, 9, s.mark, timeout=0.1)
    s.control("the frames left web", len(seen.own) >= times)
    return [f"web received what dom0 said to db: {f}" for f in seen.having(s.mark)]


def _diverted(s: Stage, *frames: Packet, times: int = 1) -> list[str]:
    """web sends frames meant to make db take it for the gateway; what then comes to web of db's to lan1."""
    s.control("db reaches lan1 before", s.db.tcp(s.address("lan1"), ECHO))
    with s.web.watch() as seen:
        s.web.send(*frames, times=times, pace_s=FADING_S / times if times > 1 else 0)
        s.db.udp(s.address("lan1"), 9, s.mark, timeout=0.1)
    s.control("the frames left web", len(seen.own) >= times)
    return [f"web received what db said to lan1: {f}" for f in seen.having(s.mark)]


@contextmanager
def _also(node: Node, address: str) -> Iterator[None]:
    """The node's kernel takes this for an address of its own too."""
    node.lab.ip(node.name, "address", "add", f"{address}/32", "dev", "eth0")
    try:
        yield
    finally:
        node.lab.ip(node.name, "address", "del", f"{address}/32", "dev", "eth0")


@contextmanager
def ipv6(node: Node) -> Iterator[None]:
    """IPv6 on a guest's eth0, as most systems have it by default; link-local at once."""
    conf = "net.ipv6.conf.eth0"
    assert node.ok("sysctl", "-qw", f"{conf}.accept_dad=0", f"{conf}.accept_ra=1", f"{conf}.disable_ipv6=0")
    try:
        yield
    finally:
        assert node.ok("sysctl", "-qw", f"{conf}.disable_ipv6=1")


# IP


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


@attack("identity", tool="ip, ping", falls="bridge")
def second_address(s: Stage) -> list[str]:
    """web gives itself an address that nobody gave it.

    web's kernel takes a free address of the guests' network as a second one, and speaks to lan1 by it. It must get no
    answers: what is counted, limited or forbidden by address would not hold for it.
    """
    other = "169.254.1.99"
    s.control("web reaches lan1 by its own address", s.web.pings(s.address("lan1"), "-I", s.address("web")))
    with _also(s.web, other):
        answered = s.web.pings(s.address("lan1"), "-I", other)
    return [f"web reached lan1 as {other}"] if answered else []


@attack("identity", tool="scapy", falls="bridge")
def source_address_of_the_gateway(s: Stage) -> list[str]:
    """web speaks to db as the gateway.

    A datagram to db's service from the gateway's address. db must not hear it: guests believe the host they run on.
    """
    return _in_the_name_of(s, s.gateway)


@attack("identity", tool="scapy", falls="bridge")
def source_address_of_the_host(s: Stage) -> list[str]:
    """web speaks to db as the host's LAN address.

    A datagram to db's service from 192.0.2.1. db must not hear it.
    """
    return _in_the_name_of(s, s.outside)


@attack("identity", tool="scapy", falls="bridge")
def source_address_of_a_lan_host(s: Stage) -> list[str]:
    """web speaks to db as lan1.

    A datagram to db's service from lan1's address, whose answers to db it might be one of. db must not hear it.
    """
    return _in_the_name_of(s, s.address("lan1"))


@attack("identity", tool="scapy", falls=("bridge", "xen1"))
def source_address_of_a_third_guest(s: Stage) -> list[str]:
    """web speaks to db as ci.

    A datagram to db's service from ci's address. db must not hear it, nor hold it against ci.
    """
    return _in_the_name_of(s, s.address("ci"))


@attack("identity", tool="scapy", falls="bridge")
def source_address_from_the_internet(s: Stage) -> list[str]:
    """web speaks to db as a name server far away.

    A datagram to db's service from port 53 of a public address, as a forged DNS answer is. db must not hear it.
    """
    return _in_the_name_of(s, s.address("inet"))


@attack("identity", tool="scapy", falls=("bridge", "bridge-filtered"))
def source_address_of_nobody_yet(s: Stage) -> list[str]:
    """web speaks to db as a machine without an address.

    A broadcast from 0.0.0.0, which filters let pass for DHCP's sake, to another port of db's. db's service must not
    hear it: it would be a way from guest to guest.
    """
    packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=SERVICE) / Raw(s.mark)
    with s.db.listen("udp", SERVICE) as heard:
        s.web.send(Ether(src=s.web.mac, dst=ALL) / packet, Ether(src=s.web.mac, dst=s.db.mac) / packet)
        s.dom0.udp(s.address("db"), SERVICE, s.mark + HONEST)
    s.control("db's service hears dom0", heard.having(s.mark + HONEST))
    return [f"db's service heard {a}:{p}" for a, p, said in heard.said if said == s.mark]


@attack("identity", tool="scapy", falls="bridge")
def source_addresses_that_cannot_be(s: Stage) -> list[str]:
    """web sends from addresses that no machine can have.

    Datagrams to db from loopback, broadcast, a multicast group and the reserved range. None may get to db, whose
    kernel would be the only one left to refuse them.
    """
    frame = Ether(src=s.web.mac, dst=s.db.mac)
    sources = ("127.0.0.1", "255.255.255.255", "224.0.0.1", "240.0.0.1")
    return _reaches_db(s, *(frame / IP(src=a, dst=s.address("db")) / UDP(dport=SERVICE) / Raw(s.mark) for a in sources))


@attack("identity", tool="scapy", falls=("bridge", "xen1"))
def redirect_in_the_gateways_name(s: Stage) -> list[str]:
    """web tells db, as the gateway, that the way to lan1 leads by web.

    An ICMP redirect from the gateway's address that quotes an echo reply of db's. db's route to lan1 must stay.
    """
    db, lan1, web = s.address("db"), s.address("lan1"), s.address("web")
    s.control("db reaches lan1 before", s.db.tcp(lan1, ECHO))
    quoted = IPerror(src=db, dst=lan1) / ICMPerror(type=0)
    error = IP(src=s.gateway, dst=db) / ICMP(type=5, code=1, gw=web) / quoted / Raw(s.mark)
    frames = [Ether(src=s.web.mac, dst=to) / error for to in (s.db.mac, s.gateway_mac())]
    with s.db.watch() as seen, s.web.watch() as mounted:
        s.web.send(*frames, times=3, pace_s=0.1)  # at the first, db's kernel only asks where web is
        s.dom0.udp(db, 9, s.mark + HONEST)
    s.control("the redirects left web", sum(s.mark in f.raw for f in mounted.own) == 6)
    s.control("db sees what dom0 says to it", seen.having(s.mark + HONEST))
    way = json.loads(s.lab.ip("db", "-j", "route", "get", lan1))[0]
    return [f"db's way to lan1 leads by {way['gateway']}"] if way.get("gateway") == web else []


# MAC


@attack("identity", tool="scapy", falls="bridge")
def mac_of_another(s: Stage) -> list[str]:
    """web sends with db's MAC.

    A switch learns from such a frame that db is where web is. What dom0 says to db must not come to web.
    """
    packet = IP(src=s.address("web"), dst=s.address("lan1")) / UDP(dport=9)
    return _stolen(s, Ether(src=s.db.mac, dst=s.gateway_mac()) / packet)


@attack("identity", tool="scapy", falls="bridge")
def mac_flapping(s: Stage) -> list[str]:
    """web keeps sending with db's MAC while dom0 speaks to db.

    db's place in a switch's table flaps between two ports. Everything dom0 says to db must get there.
    """
    db = s.address("db")
    s.control("dom0 reaches db before", s.dom0.pings(db))
    frame = Ether(src=s.db.mac, dst=s.gateway_mac()) / IP(src=s.address("web"), dst=s.address("lan1")) / UDP(dport=9)
    with s.db.watch() as seen:
        for number in range(20):
            s.web.send(frame)
            s.dom0.udp(db, 9, s.mark + bytes([number]), timeout=0.01)
        s.db.tcp(s.address("lan1"), ECHO)
        s.dom0.udp(db, 9, s.mark + HONEST)
    lost = [n for n in range(20) if not seen.having(s.mark + bytes([n]))]
    s.control("once db has spoken, what dom0 says reaches it again", seen.having(s.mark + HONEST))
    return [f"{len(lost)} of 20 datagrams from dom0 never reached db"] if lost else []


@attack("identity", tool="scapy", falls="bridge")
def mac_of_the_gateway(s: Stage) -> list[str]:
    """web speaks to db with MAC and address of the gateway.

    Down to the last bit it is what the host would send. db's service must not hear it.
    """
    packet = IP(src=s.gateway, dst=s.address("db")) / UDP(sport=53, dport=SERVICE) / Raw(s.mark)
    with s.db.listen("udp", SERVICE) as heard:
        s.web.send(Ether(src=s.gateway_mac("db"), dst=s.db.mac) / packet)
        s.dom0.udp(s.address("db"), SERVICE, s.mark + HONEST)
    s.control("db's service hears dom0", heard.having(s.mark + HONEST))
    return [f"db's service believes it heard {a}:{p}" for a, p, said in heard.said if said == s.mark]


@attack("identity", tool="scapy", falls=("bridge", "routed"))
def many_macs(s: Stage) -> list[str]:
    """web pretends to be fifty machines.

    Fifty datagrams to lan1, each from another MAC. None may get there but that from web's own: what is counted or
    limited for each machine would not hold.
    """
    to, packet = s.gateway_mac(), _udp(s, s.address("web"))
    with s.lan1.watch() as seen:
        s.web.send(Ether(src=s.web.mac, dst=to) / packet / HONEST)
        s.web.send(*(Ether(src=f"02:00:00:00:77:{n:02x}", dst=to) / packet / bytes([n]) for n in range(50)))
    s.control("the same datagram from web's own MAC arrives", seen.having(s.mark + HONEST))
    false = [f for f in seen.having(s.mark) if s.mark + HONEST not in f.raw]
    return [f"lan1 received {len(false)} datagrams from MACs that no guest has"] if false else []


@attack("identity", tool="scapy", falls="routed")
def group_mac_as_source(s: Stage) -> list[str]:
    """web sends from MACs that no machine can have.

    Datagrams to lan1 from the broadcast address, a multicast group and zero. lan1 must not receive them: no switch
    on the way could say who it was.
    """
    to, packet = s.gateway_mac(), _udp(s, s.address("web"))
    sources = (ALL, "01:00:5e:00:00:01", "33:33:00:00:00:01", "00:00:00:00:00:00")
    with s.lan1.watch() as seen:
        s.web.send(Ether(src=s.web.mac, dst=to) / packet / HONEST)
        s.web.send(*(Ether(src=mac, dst=to) / packet / mac.encode() for mac in sources))
    s.control("the same datagram from web's own MAC arrives", seen.having(s.mark + HONEST))
    return [f"lan1 received what web sent from {mac}" for mac in sources if seen.having(s.mark + mac.encode())]


# ARP


@attack("identity", tool="scapy", falls="bridge")
def gratuitous_arp_for_another(s: Stage) -> list[str]:
    """web announces db's address as its own.

    An unsolicited ARP reply with db's address and web's MAC. The host must go on sending to db: what it says to
    db's address may not come to web.
    """
    mac, db = s.web.mac, s.address("db")
    return _stolen(s, Ether(src=mac, dst=ALL) / ARP(op=2, hwsrc=mac, hwdst=mac, psrc=db, pdst=db))


@attack("identity", tool="scapy", falls="bridge")
def arp_reply_for_another(s: Stage) -> list[str]:
    """web answers dom0 in db's place.

    ARP replies to the gateway that say db's address is at web's MAC, over more than the second that Linux keeps what
    it has just learned. What dom0 says to db may not come to web.
    """
    mac, gateway = s.web.mac, s.gateway_mac()
    reply = ARP(op=2, hwsrc=mac, psrc=s.address("db"), hwdst=gateway, pdst=s.gateway)
    return _stolen(s, Ether(src=mac, dst=gateway) / reply, times=8)


@attack("identity", tool="scapy", falls="bridge")
def arp_request_as_another(s: Stage) -> list[str]:
    """web asks for the gateway in db's name.

    Whoever is asked by ARP learns the asker's address. What dom0 says to db may not come to web.
    """
    request = ARP(op=1, hwsrc=s.web.mac, psrc=s.address("db"), pdst=s.gateway)
    return _stolen(s, Ether(src=s.web.mac, dst=ALL) / request, times=8)


@attack("identity", tool="scapy", falls="bridge")
def arp_sender_unlike_the_frames(s: Stage) -> list[str]:
    """web sends an honest frame with an ARP message in it that points db's address to ci.

    The frame's source is web's own MAC; the sender in the message is ci's MAC and db's address. What dom0 says to db
    may not come to ci.
    """
    db, mac = s.address("db"), s.ci.mac
    s.control("dom0 reaches db before", s.dom0.pings(db))
    with s.ci.watch() as seen:
        s.web.send(Ether(src=s.web.mac, dst=ALL) / ARP(op=2, hwsrc=mac, hwdst=mac, psrc=db, pdst=db))
        s.dom0.udp(db, 9, s.mark, timeout=0.1)
        s.dom0.udp(s.address("ci"), 9, s.mark + HONEST)
    s.control("ci sees what dom0 says to it", seen.having(s.mark + HONEST))
    return [f"ci received what dom0 said to db: {f}" for f in seen.having(s.mark) if s.mark + HONEST not in f.raw]


@attack("identity", tool="scapy", falls="bridge")
def gratuitous_arp_for_the_gateway(s: Stage) -> list[str]:
    """web announces the gateway's address as its own.

    An unsolicited ARP reply to all with the gateway's address and web's MAC. What db says to lan1 may not come to web.
    """
    mac, gateway = s.web.mac, s.gateway
    return _diverted(s, Ether(src=mac, dst=ALL) / ARP(op=2, hwsrc=mac, hwdst=mac, psrc=gateway, pdst=gateway))


@attack("identity", tool="arpspoof", falls="bridge")
def man_in_the_middle(s: Stage) -> list[str]:
    """web runs arpspoof against db and forwards what it gets.

    dsniff's arpspoof tells db that the gateway is at web's MAC; web's kernel passes on what comes, so that db sees
    nothing amiss. None of what db says to lan1 may come to web.
    """
    db, lan1 = s.address("db"), s.address("lan1")
    s.control("db reaches lan1 before", s.db.tcp(lan1, ECHO))
    # Killed, since at SIGTERM it takes five seconds to put the truth back.
    arpspoof = ("timeout", "--foreground", "-s", "KILL", "2", "arpspoof", "-i", "eth0", "-t", db, s.gateway)
    sysctl = ("sysctl", "-qw")
    assert s.web.ok(*sysctl, "net.ipv4.ip_forward=1")
    try:
        with s.web.watch() as seen, s.web.running(*arpspoof) as tool:
            time.sleep(FADING_S)
            s.db.udp(lan1, ECHO, s.mark)
            tool.wait(timeout=5)
    finally:
        assert s.web.ok(*sysctl, "net.ipv4.ip_forward=0")
    s.control("arpspoof looked for db or spoke to it", [f for f in seen.own if db in str(f)])
    return [f"db's datagram to lan1 passed through web: {f}" for f in seen.having(s.mark)]


@attack("identity", tool="ip", falls="bridge")
def answers_for_all(s: Stage) -> list[str]:
    """web answers ARP requests for everybody, and so takes the place of ci, which is down.

    web's kernel takes most of the guests' network for its own addresses. ci's link is down; what dom0 says to
    ci's address may not come to web, whose services would answer.
    """
    ci, claims = s.address("ci"), ("169.254.1.4/30", "169.254.1.8/29", "169.254.1.16/28")
    s.control("dom0 reaches ci before", s.dom0.pings(ci))
    s.lab.ip("ci", "link", "set", "eth0", "down")
    for claim in claims:
        s.lab.ip("web", "route", "add", "local", claim, "dev", "lo")
    try:
        s.forget()
        with s.web.listen("udp", SERVICE) as heard:
            s.dom0.udp(ci, SERVICE, s.mark)
            s.dom0.udp(s.address("web"), SERVICE, s.mark + HONEST)
    finally:
        for claim in claims:
            s.lab.ip("web", "route", "del", "local", claim, "dev", "lo")
        s.lab.ip("ci", "link", "set", "eth0", "up")
    s.control("web's service hears dom0", heard.having(s.mark + HONEST))
    return ["web's service heard what dom0 said to ci" for _, _, said in heard.said if said == s.mark]


@attack("identity", tool="arping", falls="bridge")
def address_in_use(s: Stage) -> list[str]:
    """web claims db's address whenever db asks whether it is free.

    web's kernel has db's address too. db asks before it takes its address, as DHCP clients do (arping -D); it must
    not be told that the address is taken, since it would then stay without one.
    """
    with _also(s.web, s.address("db")), s.db.watch() as seen:
        free = s.db.ok("arping", "-D", "-c1", "-w1", "-I", "eth0", s.address("db"))
        s.dom0.udp(s.address("db"), 9, s.mark)
    s.control("db sees what dom0 says to it", seen.having(s.mark))
    s.control("db asked", [f for f in seen.own if ARP in f.packet])
    return [] if free else ["db was told that its own address is taken"]


# IPv6, where guests have it switched on


@attack("identity", tool="scapy", falls="bridge")
def neighbour_advertisement(s: Stage) -> list[str]:
    """web announces an IPv6 neighbour of db's as itself.

    db has IPv6 on, as is the default of most systems, and knows a neighbour. An advertisement with the override flag
    says that this neighbour is at web's MAC; db may not believe it.
    """
    near, mac = "fe80::77", "02:00:00:00:00:77"
    told = IPv6(src=near, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=near, R=0, S=0, O=1)
    with ipv6(s.db):
        s.lab.ip("db", "neigh", "replace", near, "lladdr", mac, "nud", "stale", "dev", "eth0")
        s.web.send(Ether(src=s.web.mac, dst="33:33:00:00:00:01") / told / ICMPv6NDOptDstLLAddr(lladdr=s.web.mac))
        taken = s.web.mac in _soon(s, "db", "-6", "neigh", "show", near)
        other = "02:00:00:00:00:78"
        s.dom0.send(
            Ether(src=other, dst="33:33:00:00:00:01") / told / ICMPv6NDOptDstLLAddr(lladdr=other), interface=s.vif("db")
        )
        s.control("db believes the same from its own cable", other in _soon(s, "db", "-6", "neigh", "show", near))
    return [f"db takes {near} for web"] if taken else []


def _soon(s: Stage, node: str, *arguments: str) -> str:
    """What `ip` says after what is on its way has arrived."""
    time.sleep(0.15)
    return s.lab.ip(node, *arguments)


@attack("identity", tool="atk6-fake_router26", falls="bridge")
def router_advertisement(s: Stage) -> list[str]:
    """web announces itself as an IPv6 router.

    db has IPv6 on. thc-ipv6's fake_router26 tells it by multicast that the world is behind web: db may not take a
    default route by web, by which all its IPv6 traffic would go.
    """
    default = ("-6", "route", "show", "default")
    with ipv6(s.web), ipv6(s.db):
        s.control("db has no IPv6 router before", not s.lab.ip("db", *default))
        with s.web.watch() as seen:
            s.web.run("timeout", "2", "atk6-fake_router26", "-n", "2", "-i", "1", "-A", "2001:db8:77::/64", "eth0")
        found = s.lab.ip("db", *default)
        announced = [f for f in seen.own if ICMPv6ND_RA in f.packet]
        s.control("the announcement left web", announced)
        if found:
            s.lab.ip("db", "-6", "route", "flush", "default")
        s.dom0.send(announced[-1].raw, interface=s.vif("db"))
        s.control("db believes the same from its own cable", _soon(s, "db", *default))
    return [f"db's IPv6 goes by web: {found.strip()}"] if found else []


# DHCP and names


@attack("identity", tool="udhcpd, udhcpc", falls=("bridge", "bridge-filtered"))
def dhcp_server(s: Stage) -> list[str]:
    """web serves addresses.

    web runs a DHCP server (udhcpd) that names web as the router; db asks for an address with udhcpc. It must not get
    one from web, or all it sends would go there; from its own router it may. udhcpc only prints here what it got.
    """
    script = _file(s, "udhcpc.sh", '#!/bin/sh\n[ "$1" != bound ] || echo "bound to $ip, router $router"\n')
    with s.web.watch() as served, s.web.running(*_udhcpd(s, s.address("web"))):
        _until_served(s.web)
        got = s.db.run("udhcpc", "-f", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0", "-s", script)
        s.dom0.send(_discover(s.db.mac, 0x99), interface=s.vif("web"))
        time.sleep(0.4)  # udhcpd first looks for a moment whether the address is free
    s.control("web's server answers whom it hears", [f for f in served.own if BOOTP in f.packet])
    return [f"db is {line}" for line in got.splitlines() if f"router {s.address('web')}" in line]


@attack("identity", tool="scapy, udhcpd", falls=("bridge", "bridge-filtered"))
def dhcp_client_of_many_names(s: Stage) -> list[str]:
    """web takes all addresses of a DHCP server of the host's.

    The host serves ten addresses to guests, as libvirt does. web asks for twelve machines that don't exist, in frames
    from its own MAC. It may get at most one address, or guests that start later get none.
    """
    way = json.loads(s.lab.ip("dom0", "-j", "route", "get", s.address("web")))[0]["dev"]
    with s.web.watch() as seen, s.dom0.running(*_udhcpd(s, s.gateway, way)):
        _until_served(s.dom0)
        s.web.send(*(_discover(s.web.mac, n) for n in range(12)))
        time.sleep(0.6)  # udhcpd first looks for a moment whether an address is free
    s.control("web asked for addresses", len([f for f in seen.own if BOOTP in f.packet]) == 12)
    given = {f.packet[BOOTP].yiaddr for f in seen.having(lambda p: BOOTP in p and p[BOOTP].op == 2)}
    return [f"the host's DHCP server gave web {len(given)} addresses"] if len(given) > 1 else []


def _discover(mac: str, number: int) -> Packet:
    """A DHCP DISCOVER from this MAC, for a client of this number."""
    client = bytes.fromhex(f"0200000000{number:02x}")
    asks = BOOTP(chaddr=client, xid=number, flags=0x8000) / DHCP(options=[("message-type", "discover"), "end"])
    return Ether(src=mac, dst=ALL) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / asks


def _file(s: Stage, name: str, text: str) -> str:
    path = s.lab.files / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def _udhcpd(s: Stage, own: str, interface: str = "eth0") -> list[str]:
    """The command line of a DHCP server with ten addresses, and itself for the router."""
    leases = _file(s, "udhcpd.leases", "")
    text = f"start 169.254.1.40\nend 169.254.1.49\ninterface {interface}\nlease_file {leases}\n"
    configuration = _file(s, "udhcpd.conf", f"{text}pidfile {s.lab.files}/udhcpd.pid\noption router {own}\n")
    return ["udhcpd", "-f", "-a", "20", "-I", own, configuration]


def _until_served(node: Node) -> None:
    argv = ("ss", "-Hlun", "sport = :67")
    wait_until(lambda: bool(node.lab.exec(node.name, *argv).stdout), f"the DHCP server in {node.name}")


@attack("identity", tool="scapy", falls=("bridge", "bridge-filtered"))
def announces_a_name(s: Stage) -> list[str]:
    """web announces by multicast DNS that the file server is itself.

    db listens to mDNS, as desktops and printers do. web's announcement must not get there: what db looks for by name
    would be wherever web says.
    """
    group, answer = "224.0.0.251", DNSRR(rrname="files.local", rdata=s.address("web"), ttl=120)
    said = bytes(DNS(qr=1, aa=1, an=answer)) + s.mark
    packet = IP(src=s.address("web"), dst=group, ttl=255) / UDP(sport=5353, dport=5353) / Raw(said)
    s.lab.ip("db", "address", "add", f"{group}/32", "dev", "eth0", "autojoin")
    try:
        with s.db.listen("udp", 5353) as heard:
            s.web.send(*(Ether(src=s.web.mac, dst=to) / packet for to in ("01:00:5e:00:00:fb", s.gateway_mac())))
            s.dom0.udp(s.address("db"), 5353, s.mark + HONEST)
    finally:
        s.lab.ip("db", "address", "del", f"{group}/32", "dev", "eth0")
    s.control("db's service hears dom0", heard.having(s.mark + HONEST))
    return [f"db heard {who} announce files.local" for who, _, said in heard.said if b"files" in said]


# Frames in disguise


@attack("identity", tool="scapy", falls="bridge")
def vlan_tag(s: Stage) -> list[str]:
    """web speaks to db in a VLAN.

    The same datagram that a filter would drop, with an 802.1Q tag before it. db must not receive it.
    """
    return _reaches_db(s, *(Ether(src=s.web.mac, dst=to) / Dot1Q(vlan=7) / _own_ip(s) for to in (s.db.mac, ALL)))


@attack("identity", tool="scapy", falls="bridge")
def vlan_in_vlan(s: Stage) -> list[str]:
    """web speaks to db in a VLAN within a VLAN.

    A datagram under an 802.1ad and an 802.1Q tag, so that a filter that looks under one tag sees another. db must not
    receive it.
    """
    return _reaches_db(s, Ether(src=s.web.mac, dst=s.db.mac) / Dot1AD(vlan=7) / Dot1Q(vlan=8) / _own_ip(s))


@attack("identity", tool="scapy", falls="bridge")
def vlan_by_another_number(s: Stage) -> list[str]:
    """web speaks to db under a tag of an old switch's kind.

    EtherType 0x9100, which some switches take for a VLAN tag and Linux for nothing it knows. db must not receive it.
    """
    return _reaches_db(s, Ether(src=s.web.mac, dst=s.db.mac, type=0x9100) / Raw(b"\0\x07\x08\0" + bytes(_own_ip(s))))


@attack("identity", tool="scapy", falls="bridge")
def priority_tag(s: Stage) -> list[str]:
    """web speaks in db's name under a tag for VLAN 0.

    Such a tag only gives a priority, and Linux reads the frame as if it had none: what a filter overlooks arrives all
    the same. lan1 must not receive a datagram with db's source.
    """
    frame = Ether(src=s.web.mac, dst=s.gateway_mac())
    with s.lan1.watch() as seen:
        s.web.send(frame / _udp(s, s.address("web")) / HONEST)
        s.web.send(frame / Dot1Q(vlan=0, prio=5) / _udp(s, s.address("db")) / b"another's")
    s.control("an untagged datagram in web's own name arrives", seen.having(s.mark + HONEST))
    return [f"lan1 received: {f}" for f in seen.having(s.mark + b"another's")]


@attack("identity", tool="scapy", falls="bridge")
def ip_in_snap(s: Stage) -> list[str]:
    """web wraps a datagram to db as IEEE 802.2 has it.

    A length where the EtherType is expected, then LLC and SNAP, then IP. db must not receive it.
    """
    inside = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / _own_ip(s)
    return _reaches_db(s, Dot3(src=s.web.mac, dst=s.db.mac) / inside)


@attack("identity", tool="scapy", falls="bridge")
def ipv6_called_ipv4(s: Stage) -> list[str]:
    """web sends db IPv6 under IPv4's EtherType.

    A filter that goes by the EtherType reads addresses where there are none. db must not receive it.
    """
    packet = IPv6(src="fe80::2", dst="ff02::1") / UDP(dport=SERVICE) / Raw(s.mark)
    return _reaches_db(s, Ether(src=s.web.mac, dst=s.db.mac, type=0x0800) / Raw(bytes(packet)))


@attack("identity", tool="scapy", falls="bridge")
def ipv4_called_arp(s: Stage) -> list[str]:
    """web sends db a datagram under ARP's EtherType.

    Filters let ARP pass that they would not let pass as IP. db must not receive it.
    """
    return _reaches_db(s, Ether(src=s.web.mac, dst=s.db.mac, type=0x0806) / Raw(bytes(_own_ip(s))))


@attack("identity", tool="scapy", falls=("bridge", "bridge-filtered"))
def message_behind_arp(s: Stage) -> list[str]:
    """web writes to db behind an honest ARP request.

    Sender and question are right, and what follows is as long as a frame may be. db must not receive it: it is a way
    from guest to guest that no filter for IP sees.
    """
    asks = ARP(op=1, hwsrc=s.web.mac, psrc=s.address("web"), pdst=s.address("db")) / Raw(s.mark * 8)
    return _reaches_db(s, Ether(src=s.web.mac, dst=ALL) / asks)


@attack("identity", tool="scapy", falls="bridge")
def message_behind_rarp(s: Stage) -> list[str]:
    """web writes to db behind the announcement that a machine has moved.

    QEMU announces a migrated machine by a RARP broadcast. db must not receive it, nor what is written behind it.
    """
    moved = ARP(op=3, hwsrc=s.web.mac, hwdst=s.web.mac, psrc="0.0.0.0", pdst="0.0.0.0") / Raw(s.mark * 8)
    return _reaches_db(s, Ether(src=s.web.mac, dst=ALL, type=0x8035) / moved)


@attack("identity", tool="scapy", falls="bridge")
def unknown_ethertypes(s: Stage) -> list[str]:
    """web speaks to db in protocols that nobody knows.

    EtherTypes for experiments, the one of VLANs of providers with too little in it, and 0xffff. None may reach db.
    """
    types = (0x88B5, 0x88B6, 0x88A8, 0x0835, 0xFFFF)
    return _reaches_db(s, *(Ether(src=s.web.mac, dst=s.db.mac, type=t) / Raw(s.mark) for t in types))


@attack("identity", tool="scapy", falls="bridge")
def wake_on_lan(s: Stage) -> list[str]:
    """web sends db the magic packet.

    What wakes a machine, or one that only sleeps by mistake: six times 0xff, sixteen times its MAC. It must not arrive.
    """
    magic = b"\xff" * 6 + bytes.fromhex(s.db.mac.replace(":", "")) * 16 + s.mark
    return _reaches_db(s, Ether(src=s.web.mac, dst=ALL, type=0x0842) / Raw(magic))


@attack("identity", tool="scapy", falls="bridge")
def switch_to_its_neighbours(s: Stage) -> list[str]:
    """web speaks to db as only switches speak to their neighbours.

    LLDP that says which port this is, and CDP: what inventories, and phones that look for their VLAN, believe.
    Neither may reach db.
    """
    chassis = LLDPDUChassisID(subtype=7, id=s.mark) / LLDPDUPortID(subtype=7, id=b"port 1")
    lldp = LLDPDU() / chassis / LLDPDUTimeToLive(ttl=120) / LLDPDUEndOfLLDPDU()
    cdp = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0x00000C, code=0x2000) / Raw(b"\x02\xb4\0\0" + s.mark)
    to_db = Ether(src=s.web.mac, dst=s.db.mac, type=0x88CC) / lldp
    return _reaches_db(s, to_db, Dot3(src=s.web.mac, dst="01:00:0c:cc:cc:cc") / cdp)


@attack("identity", tool="scapy", falls="bridge")
def port_access_control(s: Stage) -> list[str]:
    """web logs db off, as a switch with access control would.

    An EAP failure over LAN (802.1X) to db's MAC; a supplicant there would give up its link. It must not arrive.
    """
    return _reaches_db(s, Ether(src=s.web.mac, dst=s.db.mac) / EAPOL(version=2, type=0) / Raw(b"\4\1\0\4" + s.mark))


@attack("identity", tool="yersinia", falls=("bridge", "bridge-filtered"), leaves=True)
def root_of_the_spanning_tree(s: Stage) -> list[str]:
    """web becomes the root of the switches' spanning tree.

    yersinia sends BPDUs of the best priority there can be. No switch may tell db that web is the root: it could stop
    and steer the traffic of all.
    """
    root = b"\0\0" + bytes.fromhex(s.web.mac.replace(":", ""))
    name = f"0000.{s.web.mac.replace(':', '')}"
    claim = (
        "yersinia",
        "-l",
        "/dev/null",
        "stp",
        "-attack",
        "0",
        "-interface",
        "eth0",
        "-rootid",
        name,
        "-bridgeid",
        name,
    )
    with s.db.watch(settle_s=1.3) as seen, s.web.watch() as web:  # a bridge speaks once a second at the most
        s.web.run("timeout", "2", *claim, "-source", s.web.mac)
    s.control("the BPDU left web", [f for f in web.own if STP in f.packet and root in f.raw])
    return [f"db was told that the root is web: {f}" for f in seen.having(lambda p: STP in p) if root in f.raw][:1]
