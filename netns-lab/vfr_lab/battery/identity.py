"""To be taken for somebody else: MAC, IP, ARP, neighbour discovery, router and DHCP announcements, tags.

Where a guest is to hear or believe nothing, two controls say that it could have: domain 0, which may speak to
guests, is heard there at the same time; and what web sends was seen leaving web.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from scapy.contrib.lldp import LLDPDU, LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive
from scapy.layers.eap import EAPOL
from scapy.layers.inet import ICMP, IP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, Stage
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
def _ipv6(node: Node) -> Iterator[None]:
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


@attack("identity", tool="scapy", falls="bridge")
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


@attack("identity", tool="scapy", falls="bridge")
def redirect_in_the_gateways_name(s: Stage) -> list[str]:
    """web tells db, as the gateway, that the way to lan1 leads by web.

    An ICMP redirect from the gateway's address that quotes a datagram of db's. db's route to lan1 must stay.
    """
    db, lan1, web = s.address("db"), s.address("lan1"), s.address("web")
    s.control("db reaches lan1 before", s.db.tcp(lan1, ECHO))
    quoted = IPerror(src=db, dst=lan1) / UDPerror(sport=4000, dport=9)
    error = IP(src=s.gateway, dst=db) / ICMP(type=5, code=1, gw=web) / quoted / Raw(s.mark)
    s.web.send(*(Ether(src=s.web.mac, dst=to) / error for to in (s.db.mac, s.gateway_mac())))
    way = json.loads(s.lab.ip("db", "-j", "route", "get", lan1))[0]
    s.control("db has a way to lan1", "dev" in way)
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
    lost = [n for n in range(20) if not seen.having(s.mark + bytes([n]))]
    s.control("db sees its own", seen.own)
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


@attack("identity", tool="scapy", falls="bridge")
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
    arpspoof = ("timeout", "-s", "KILL", "3", "arpspoof", "-i", "eth0", "-t", db, s.gateway)
    sysctl = ("sysctl", "-qw")
    assert s.web.ok(*sysctl, "net.ipv4.ip_forward=1")
    try:
        with s.web.watch() as seen, s.web.running(*arpspoof):
            time.sleep(FADING_S)
            s.db.udp(lan1, ECHO, s.mark)
    finally:
        assert s.web.ok(*sysctl, "net.ipv4.ip_forward=0")
    s.control("arpspoof looked for db or spoke to it", [f for f in seen.own if db in str(f)])
    return [f"db's datagram to lan1 passed through web: {f}" for f in seen.having(s.mark)]


@attack("identity", tool="ip", falls="bridge", leaves=True)
def answers_for_all(s: Stage) -> list[str]:
    """web answers every ARP request, and so takes the place of ci, which is down.

    web's kernel takes all of 169.254.0.0/16 for its own. ci's link is down; what dom0 says to ci's address may not
    come to web, whose sshd would answer.
    """
    ci = s.address("ci")
    s.control("dom0 reaches ci before", s.dom0.pings(ci))
    s.lab.ip("ci", "link", "set", "eth0", "down")
    s.lab.ip("web", "route", "add", "local", "169.254.0.0/16", "dev", "lo")
    try:
        s.forget()
        with s.web.listen("udp", SERVICE) as heard:
            s.dom0.udp(ci, SERVICE, s.mark)
            s.dom0.udp(s.address("web"), SERVICE, s.mark + HONEST)
    finally:
        s.lab.ip("web", "route", "del", "local", "169.254.0.0/16", "dev", "lo")
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
    with _ipv6(s.db):
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
    with _ipv6(s.web), _ipv6(s.db):
        s.control("db has no IPv6 router before", not s.lab.ip("db", *default))
        with s.web.watch() as seen, s.dom0.watch(s.vif("web")) as cable:
            s.web.run("timeout", "2", "atk6-fake_router26", "-n", "2", "-i", "1", "-A", "2001:db8:77::/64", "eth0")
        found = s.lab.ip("db", *default)
        announced = [f for f in seen.own if f.packet.haslayer("ICMPv6ND_RA")]
        s.control("the announcement left web", announced)
        s.lab.ip("db", "-6", "route", "flush", "default") if found else None
        s.dom0.send(announced[-1].raw, interface=s.vif("db"))
        s.control("db believes the same from its own cable", _soon(s, "db", *default))
    return [f"db's IPv6 goes by web: {found.strip()}"] if found else []
