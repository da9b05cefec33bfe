"""To reach what is out of bounds: other domains, the host's services, the metadata address, loopback and martians."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR
from scapy.layers.l2 import GRE, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, SSH, Stage
from vfr_lab.node import Heard, Seen

METADATA = "169.254.169.254"
MANAGEMENT, MANAGED = "203.0.113.1", "203.0.113.9"  # dom0 on another network, and a machine there
SERVICE = 5900  # of dom0: what a host may well have open for its own use
IP_PROTO = {"IPIP": 4, "IPv6 in IPv4": 41, "GRE": 47, "ESP": 50, "OSPF": 89, "SCTP": 132, "UDP-Lite": 136}


def _to_gateway(s: Stage, target: str, **fields: Any) -> Packet:
    """web's own IP packet, given to the gateway."""
    return Ether(src=s.web.mac, dst=s.gateway_mac()) / IP(src=s.address("web"), dst=target, **fields)


def _both_ways(s: Stage, payload: Packet, **fields: Any) -> list[Packet]:
    """web's packet to db, once on db's own MAC and once by way of the gateway."""
    routed = _to_gateway(s, s.address("db"), **fields) / payload
    direct = routed.copy()
    direct.dst = s.db.mac
    return [direct, routed]


@contextmanager
def _watching_db(s: Stage) -> Iterator[Seen]:
    """Sees what reaches db meanwhile, and makes sure that web sent and that db can be seen to receive."""
    with s.web.watch() as cable, s.db.watch() as seen:
        yield seen
        s.dom0.udp(s.address("db"), 9, s.mark + b"from dom0")
    s.control("web's frames are on its cable", [f for f in cable.own if s.mark in f.raw])
    s.control("what dom0 says to db is seen there", seen.having(s.mark + b"from dom0"))


def _reached_db(s: Stage, seen: Seen) -> list[str]:
    """What db received of web's. What db's own kernel answers to is not of interest."""
    theirs = [f for f in seen.having(s.mark) if s.mark + b"from dom0" not in f.raw and ICMP not in f.packet]
    return [f"db received: {f}" for f in theirs]


# Other domains


@attack("reach", tool="TCP", falls="bridge")
def ssh_of_another(s: Stage) -> list[str]:
    """web connects to db's sshd.

    An ordinary TCP connection to db's address, port 22. No domain may connect to another unless a rule allows it.
    """
    s.control("dom0 connects to db's sshd", s.dom0.tcp(s.address("db"), SSH).startswith("SSH"))
    banner = s.web.tcp(s.address("db"), SSH)
    return [f"db's sshd answers web: {banner!r}"] if banner else []


@attack("reach", tool="UDP", falls="bridge")
def udp_service_of_another(s: Stage) -> list[str]:
    """web speaks to a UDP service of db's.

    A datagram to a service that db has for domain 0. The service must not hear it.
    """
    with s.db.listen("udp", 5000) as heard:
        s.control("dom0 is answered by db's service", s.dom0.udp(s.address("db"), 5000, s.mark + b"dom0"))
        s.web.udp(s.address("db"), 5000, s.mark + b"web")
    return [f"db's service heard {who}:{port}" for who, port, _ in heard.having(s.mark + b"web")]


@attack("reach", tool="ping", falls="bridge")
def ping_of_another(s: Stage) -> list[str]:
    """web pings db.

    An echo request to db's address. An answer tells who lives next door, and is a channel between the two.
    """
    s.control("dom0 pings db", s.dom0.pings(s.address("db")))
    return ["db answers web's ping"] if s.web.pings(s.address("db")) else []


@attack("reach", tool="nmap", falls="bridge")
def ports_of_another(s: Stage) -> list[str]:
    """web scans db's ports.

    nmap's SYN scan of db, as the first thing that an intruder does in web. It must find no port, open or closed.
    """
    scan = ("nmap", "-n", "-Pn", "-sS", "--max-retries", "0", "--host-timeout", "5s", "-p", "22,23", "-oG", "-")
    s.control("dom0's scan finds db's port 22", "22/open" in s.dom0.run(*scan, s.address("db")))
    found = s.web.run(*scan, s.address("db"))
    return [line for line in found.splitlines() if "/open/" in line or "/closed/" in line]


@attack("reach", tool="scapy", falls="bridge")
def another_by_its_mac(s: Stage) -> list[str]:
    """web addresses db's MAC.

    A datagram in a frame to db's own MAC, which needs no ARP and no gateway. It must not arrive.
    """
    with _watching_db(s) as seen:
        s.web.send(_both_ways(s, UDP(sport=s.port, dport=5000) / Raw(s.mark))[0])
    return _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge")
def ethertype_of_ones_own(s: Stage) -> list[str]:
    """web sends db frames that are no IP.

    Frames of ethertype 0x88b5 (for local experiments) to db's MAC: filters that look at IP see nothing. They must
    not arrive.
    """
    with _watching_db(s) as seen:
        s.web.send(Ether(src=s.web.mac, dst=s.db.mac, type=0x88B5) / Raw(s.mark.ljust(46, b"\0")))
    return _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge-filtered")
def another_by_the_gateway(s: Stage) -> list[str]:
    """web has the gateway send db a datagram.

    A frame to the gateway's MAC with db's IP address: where ports are isolated, the host's routing may still turn
    it round. It must not arrive.
    """
    with _watching_db(s) as seen:
        s.web.send(_both_ways(s, UDP(sport=s.port, dport=5000) / Raw(s.mark))[1])
    return _reached_db(s, seen)


@attack("reach", tool="TCP", falls="xen1")
def forward_of_another(s: Stage) -> list[str]:
    """web connects to db's forward.

    Port 2203 of dom0's LAN address leads machines of the LAN to db's sshd. A domain that uses it comes round
    by the host to where it may not go directly.
    """
    forward = s.guest("db").forward or 0
    s.control("lan1 reaches db by it", s.lan1.tcp(s.outside, forward).startswith("SSH"))
    banner = s.web.tcp(s.outside, forward)
    return [f"db's sshd answers web by port {forward}: {banner!r}"] if banner else []


@attack("reach", tool="scapy", falls="bridge")
def broadcast_to_the_others(s: Stage) -> list[str]:
    """web speaks to all domains at once.

    Datagrams to 255.255.255.255 and to the network's broadcast address, in broadcast frames and in frames to the
    gateway. A service of db's must not hear them.
    """
    frames = [
        Ether(src=s.web.mac, dst=mac) / IP(src=s.address("web"), dst=to) / UDP(sport=s.port, dport=5000) / Raw(s.mark)
        for mac in ("ff:ff:ff:ff:ff:ff", s.gateway_mac())
        for to in ("255.255.255.255", "169.254.255.255", "169.254.1.255")
    ]
    with s.db.listen("udp", 5000) as heard, _watching_db(s) as seen:
        s.web.send(*frames)
    return [f"db's service heard {who}" for who, _, _ in heard.having(s.mark)] + _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge")
def source_route_to_another(s: Stage) -> list[str]:
    """web sends by a source route over the host.

    A packet to the host's own address with a loose source route on to db, on a host that is set to accept
    source routes. The host must not send it on to db.
    """
    route = IPOption_LSRR(pointer=4, routers=[s.address("db")])
    with s.conf("dom0", "accept_source_route"), _watching_db(s) as seen:
        for host in (s.gateway, s.outside):
            s.web.send(_to_gateway(s, host, options=route) / UDP(sport=s.port, dport=5000) / Raw(s.mark))
    return _reached_db(s, seen)


# Fragments


@attack("reach", tool="scapy", falls="bridge")
def tiny_first_fragment(s: Stage) -> list[str]:
    """web hides TCP's flags in a second fragment.

    A SYN to db's port 22 whose first fragment ends after eight bytes, before the flags (RFC 1858). Neither part may
    arrive, nor the whole.
    """
    whole = bytes(IP(src=s.address("web"), dst=s.address("db")) / TCP(sport=s.port, dport=SSH, flags="S") / s.mark)[20:]
    parts = [(0, 1, whole[:8]), (1, 0, whole[8:])]
    with _watching_db(s) as seen:
        for offset, more, data in parts:
            s.web.send(*_both_ways(s, Raw(data), id=s.port, proto=6, flags=more, frag=offset))
    return _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge")
def ports_in_the_last_fragment(s: Stage) -> list[str]:
    """web sends the fragment with the ports last.

    A datagram to db in two fragments, the second one first: whoever judges by ports has to let the first to come
    pass unseen. Neither may arrive.
    """
    whole = bytes(UDP(sport=s.port, dport=5000, len=8 + 64, chksum=0)) + s.mark.ljust(64, b"-")
    with s.db.listen("udp", 5000) as heard, _watching_db(s) as seen:
        s.web.send(*_both_ways(s, Raw(whole[16:] + s.mark), id=s.port, proto=17, flags=0, frag=2))
        s.web.send(*_both_ways(s, Raw(whole[:16]), id=s.port, proto=17, flags=1, frag=0))
    return [f"db's service heard {who}" for who, _, _ in heard.having(b"-")] + _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge")
def overlapping_ports(s: Stage) -> list[str]:
    """web overwrites the ports by an overlapping fragment.

    Three fragments, of which the third covers the first with another port (RFC 3128): who judges the first and
    puts together the third lets in what is forbidden. None may arrive at db.
    """
    harmless, wanted = (bytes(UDP(sport=s.port, dport=port, len=48, chksum=0)) + s.mark for port in (9, 5000))
    parts = [(0, 1, harmless[:24]), (3, 0, s.mark.ljust(24, b"-")), (0, 1, wanted[:24])]
    with _watching_db(s) as seen:
        for offset, more, data in parts:
            s.web.send(*_both_ways(s, Raw(data), id=s.port, proto=17, flags=more, frag=offset))
    return _reached_db(s, seen)


# Other protocols, and tunnels


@attack("reach", tool="scapy", falls="bridge")
def sctp_to_another(s: Stage) -> list[str]:
    """web opens an SCTP association with db.

    An SCTP INIT to db: a transport that filters written for TCP and UDP forget. It must not arrive.
    """
    init = SCTP(sport=s.port, dport=5000) / SCTPChunkInit(init_tag=1) / Raw(s.mark)
    with _watching_db(s) as seen:
        s.web.send(*_both_ways(s, init))
    return _reached_db(s, seen)


@attack("reach", tool="nmap", falls="bridge")
def protocol_scan_of_another(s: Stage) -> list[str]:
    """web tries every odd IP protocol on db.

    nmap's protocol scan with IPIP, IPv6 in IPv4, GRE, ESP, OSPF, SCTP and UDP-Lite. None may arrive at db.
    """
    numbers = ",".join(map(str, IP_PROTO.values()))
    scan = ("nmap", "-n", "-Pn", "-sO", "--max-retries", "0", "--host-timeout", "5s", "-p", numbers)
    own, protocols = s.address("web"), set(IP_PROTO.values())
    with s.web.watch() as cable, s.db.watch() as seen:
        s.web.run(*scan, s.address("db"))
        s.web.send(*(f for n in protocols for f in _both_ways(s, Raw(s.mark), proto=n)))
        s.dom0.udp(s.address("db"), 9, s.mark + b"from dom0")
    s.control("what dom0 says to db is seen there", seen.having(s.mark + b"from dom0"))
    s.control("web sent all of them", {f.packet[IP].proto for f in cable.own if IP in f.packet} >= protocols)
    came = seen.having(lambda p: IP in p and p[IP].src == own and p[IP].proto in protocols)
    return [f"db received IP protocol {n}" for n in sorted({f.packet[IP].proto for f in came})]


@attack("reach", tool="scapy", falls="bridge")
def tunnel_to_another(s: Stage) -> list[str]:
    """web wraps a packet for db in GRE and in IPIP to the host.

    The outer header is for the host, the inner for db, in the name of domain 0: a host with tunnels unwraps it.
    Neither the host's stack may have it, nor db.
    """
    inner = IP(src=s.gateway, dst=s.address("db")) / UDP(sport=s.port, dport=5000) / Raw(s.mark)
    before = s.counter("dom0", "IpInUnknownProtos")
    with _watching_db(s) as seen:
        for host in (s.gateway, s.outside):
            s.web.send(_to_gateway(s, host) / inner, _to_gateway(s, host) / GRE() / inner)
    taken = s.counter("dom0", "IpInUnknownProtos") - before
    mine = [f"the host looked for a tunnel that {taken} packets belong to"] if taken else []
    return mine + _reached_db(s, seen)


@attack("reach", tool="scapy", falls="bridge")
def into_the_hosts_overlay(s: Stage) -> list[str]:
    """web speaks VXLAN to the host.

    dom0 has an end of an overlay network (VXLAN 42). A frame wrapped as its peers wrap theirs must not come out
    there: the overlay would have web as a member.
    """
    inside = Ether(src="02:00:00:00:00:66", dst="02:00:00:00:00:42") / IP(src="203.0.113.66", dst=MANAGEMENT)
    wrapped = UDP(sport=s.port, dport=4789, chksum=0) / VXLAN(vni=42, flags=8) / inside / UDP(sport=s.port, dport=9)
    make = ("vxlan0", "address", "02:00:00:00:00:42", "type", "vxlan", "id", "42", "dstport", "4789", "dev", "eth0")
    with _interface(s, *make), s.dom0.watch("vxlan0") as seen:
        peer = Ether(src=s.lan1.mac, dst=s.lan1.knows(s.outside)) / IP(src=s.address("lan1"), dst=s.outside)
        s.lan1.send(peer / wrapped / Raw(s.mark + b"peer"))
        for host in (s.gateway, s.outside):
            s.web.send(_to_gateway(s, host) / wrapped / Raw(s.mark + b"web"))
    s.control("a peer's frame from the LAN comes out of the tunnel", seen.having(s.mark + b"peer"))
    return [f"out of dom0's tunnel came: {f}" for f in seen.having(s.mark + b"web")]


# The host's services


@contextmanager
def _interface(s: Stage, name: str, *make: str) -> Iterator[None]:
    """An interface of dom0 with MANAGEMENT as its address, which goes again."""
    s.lab.ip("dom0", "link", "add", name, *make)
    try:
        s.lab.ip("dom0", "address", "add", f"{MANAGEMENT}/24", "dev", name)
        s.lab.ip("dom0", "link", "set", name, "up")
        yield
    finally:
        s.lab.ip("dom0", "link", "del", name)


@contextmanager
def _address(s: Stage, node: str, address: str) -> Iterator[None]:
    """One more address of a node's own."""
    s.lab.ip(node, "address", "add", f"{address}/32", "dev", "lo")
    try:
        yield
    finally:
        s.lab.ip(node, "address", "del", f"{address}/32", "dev", "lo")


@contextmanager
def _udp_service(s: Stage, port: int, address: str = "0.0.0.0") -> Iterator[Heard]:
    """A UDP service of dom0, which answers dom0 itself."""
    with s.dom0.listen("udp", port, address) as heard:
        own = address if address != "0.0.0.0" else "127.0.0.1"
        s.control("dom0's service answers on the host itself", s.dom0.udp(own, port, b"own"))
        with s.web.watch() as cable:
            yield heard
        s.control("web's frames are on its cable", [f for f in cable.own if s.mark in f.raw])


def _heard(s: Stage, heard: Heard) -> list[str]:
    return [f"dom0's service heard {who}:{port}" for who, port, _ in heard.having(s.mark)]


def _tcp_services_at(s: Stage, target: str) -> list[str]:
    """What web gets of a TCP service that dom0 has at 0.0.0.0."""
    with s.dom0.listen("tcp", SERVICE):
        s.control("dom0's service answers on the host itself", s.dom0.tcp("127.0.0.1", SERVICE))
        said = s.web.tcp(target, SERVICE)
    return [f"dom0's service answers web at {target}: {said!r}"] if said else []


@attack("reach", tool="TCP", falls="bridge")
def host_service_by_the_gateway(s: Stage) -> list[str]:
    """web connects to a service of the host's at the gateway's address.

    dom0 has a TCP service bound to all addresses, as services are. Domains must not reach it.
    """
    return _tcp_services_at(s, s.gateway)


@attack("reach", tool="TCP", falls="bridge")
def host_service_by_its_lan_address(s: Stage) -> list[str]:
    """web connects to a service of the host's at its LAN address.

    The same service, by the address that it has for the LAN: rules for the gateway's address don't cover it.
    """
    return _tcp_services_at(s, s.outside)


@attack("reach", tool="UDP", falls="bridge")
def host_udp_service(s: Stage) -> list[str]:
    """web speaks to a UDP service of the host's.

    As SNMP or syslog have one, bound to all addresses. It must hear web by none of dom0's addresses.
    """
    with _udp_service(s, 161) as heard:
        s.web.udp(s.gateway, 161, s.mark)
        s.web.udp(s.outside, 161, s.mark)
    return _heard(s, heard)


@attack("reach", tool="scapy", falls="bridge")
def host_service_by_broadcast(s: Stage) -> list[str]:
    """web speaks to the host's services by broadcast.

    Datagrams to 255.255.255.255 and to the broadcast addresses of dom0's networks, the LAN's too. No service of the
    host's may hear them.
    """
    with _udp_service(s, 161) as heard:
        for to in ("255.255.255.255", "169.254.255.255", "192.0.2.255"):
            s.web.send(_to_gateway(s, to) / UDP(sport=s.port, dport=161) / Raw(s.mark))
    return _heard(s, heard)


@attack("reach", tool="scapy", falls="bridge")
def host_service_from_nowhere(s: Stage) -> list[str]:
    """web speaks to the host's services from 0.0.0.0 to 0.0.0.0.

    The addresses of a machine that has none yet: rules that name networks match neither. No service may hear it.
    """
    with _udp_service(s, 67) as heard:
        for to in ("0.0.0.0", "255.255.255.255"):
            frame = Ether(src=s.web.mac, dst=s.gateway_mac()) / IP(src="0.0.0.0", dst=to)
            s.web.send(frame / UDP(sport=68, dport=67) / Raw(s.mark))
    return _heard(s, heard)


@attack("reach", tool="scapy", falls="bridge")
def host_service_by_multicast(s: Stage) -> list[str]:
    """web speaks to the host's mDNS responder.

    Datagrams to port 5353 of the group of all hosts, which every machine is in. What the host tells its
    LAN about itself is not for domains, and the parser of it is one more thing to attack.
    """
    with _udp_service(s, 5353) as heard:
        frame = Ether(src=s.web.mac, dst="01:00:5e:00:00:01") / IP(src=s.address("web"), dst="224.0.0.1")
        s.web.send(frame / UDP(sport=5353, dport=5353) / Raw(s.mark))
    return _heard(s, heard)


@attack("reach", tool="scapy", falls="bridge")
def host_loopback_service(s: Stage) -> list[str]:
    """web speaks to 127.0.0.1 of the host.

    A datagram to 127.0.0.1 in a frame to the gateway, while the host routes loopback addresses, as hosts of
    containers are set to (CVE-2020-8558). What the host has bound to loopback is for nobody else.
    """
    with s.conf("dom0", "route_localnet"), _udp_service(s, 161, "127.0.0.1") as heard:
        s.web.send(_to_gateway(s, "127.0.0.1") / UDP(sport=s.port, dport=161) / Raw(s.mark))
    return _heard(s, heard)


@attack("reach", tool="nmap", falls="bridge")
def ports_of_the_host(s: Stage) -> list[str]:
    """web scans the host's ports.

    nmap's SYN scan of dom0 by the gateway's address and by its LAN address. It must find no port, open or closed.
    """
    scan = ("nmap", "-n", "-Pn", "-sS", "--max-retries", "0", "--host-timeout", "5s", "-p", f"{SERVICE},5901")
    with s.dom0.listen("tcp", SERVICE):
        s.control("lan2's scan finds the port open", f"{SERVICE}/open" in s.lan2.run(*scan, "-oG", "-", s.outside))
        found = s.web.run(*scan, "-oG", "-", s.gateway, s.outside)
    return [line for line in found.splitlines() if "/open/" in line or "/closed/" in line]


@attack("reach", tool="hping3", falls="bridge")
def clock_of_the_host(s: Stage) -> list[str]:
    """web asks the host what time it is, by ICMP.

    A timestamp request (ICMP type 13) to the gateway and to dom0's LAN address. The answer tells the host's clock,
    which keys and tokens are sometimes made from (CVE-1999-0524); who says no more than a router must has none.
    """
    ask = ("timeout", "3", "hping3", "-q", "-c", "1", "-i", "u1000", "-1", "--icmp-ts")
    with s.lan2.watch() as other:
        s.lan2.run(*ask, s.outside)
    s.control("lan2 is told the time", other.having(lambda p: ICMP in p and p[ICMP].type == 14))
    with s.web.watch() as seen:
        s.web.run(*ask, s.gateway)
        s.web.run(*ask, s.outside)
    return [f"web was told: {f}" for f in seen.having(lambda p: ICMP in p and p[ICMP].type == 14)]


# Other networks


@attack("reach", tool="TCP", falls="bridge")
def metadata_service_of_the_host(s: Stage) -> list[str]:
    """web reads the metadata service on the host.

    dom0 answers 169.254.169.254 port 80, with what a cloud would tell it: credentials too. Domains must not reach
    it, though the address lies in the range that they have theirs from.
    """
    with _address(s, "dom0", METADATA), s.dom0.listen("tcp", 80):
        s.control("dom0 reads it", s.dom0.tcp(METADATA, 80))
        said = s.web.tcp(METADATA, 80)
        with _route(s, "web", METADATA, s.gateway, "dev", "eth0", "onlink"):
            said = said or s.web.tcp(METADATA, 80)
    return [f"the metadata service answers web: {said!r}"] if said else []


@contextmanager
def _route(s: Stage, node: str, target: str, gateway: str, *options: str) -> Iterator[None]:
    """One more route of a node's."""
    s.lab.ip(node, "route", "add", target, "via", gateway, *options)
    try:
        yield
    finally:
        s.lab.ip(node, "route", "del", target, "via", gateway)


@attack("reach", tool="scapy", falls="bridge")
def metadata_service_of_the_cloud(s: Stage) -> list[str]:
    """web reads the metadata service of the host's cloud.

    169.254.169.254 is behind the host's uplink and tells whoever asks from there what it would tell the host:
    credentials too. Nothing of a domain's may go there.
    """
    with _address(s, "lan1", METADATA), _route(s, "dom0", METADATA, s.address("lan1")), s.lan1.watch() as seen:
        s.dom0.udp(METADATA, 80, s.mark + b"dom0", timeout=0.05)
        s.web.send(_to_gateway(s, s.address("lan1")) / UDP(sport=s.port, dport=80) / Raw(s.mark + b"lan1"))
        s.web.send(_to_gateway(s, METADATA) / UDP(sport=s.port, dport=80) / Raw(s.mark + b"metadata"))
    s.control("dom0 speaks to it", seen.having(s.mark + b"dom0"))
    s.control("web reaches the same machine by its own address", seen.having(s.mark + b"lan1"))
    return [f"the metadata service received: {f}" for f in seen.having(s.mark + b"metadata")]


@attack("reach", tool="TCP", falls="bridge")
def other_address_of_the_host(s: Stage) -> list[str]:
    """web connects to the host's management address.

    dom0 has one more interface, with a service bound to its address only. A kernel takes packets for any address of
    its own by any interface; domains must not reach it all the same.
    """
    cable = ("mgmt0", "type", "veth", "peer", "name", "mgmt1", "netns", s.lab.netns("switch"))
    with _interface(s, *cable), s.dom0.listen("tcp", SERVICE, MANAGEMENT):
        s.control("dom0 connects to it", s.dom0.tcp(MANAGEMENT, SERVICE))
        said = s.web.tcp(MANAGEMENT, SERVICE)
    return [f"the host's service at {MANAGEMENT} answers web: {said!r}"] if said else []


@attack("reach", tool="scapy", falls="bridge")
def other_network_of_the_host(s: Stage) -> list[str]:
    """web speaks to a machine on the host's management network.

    dom0 has one more interface, with a network behind it. Domains have a way out by the uplink and by nothing
    else: no packet of theirs may appear there.
    """
    cable = ("mgmt0", "type", "veth", "peer", "name", "mgmt1", "netns", s.lab.netns("switch"))
    with _interface(s, *cable):
        s.lab.ip("switch", "address", "add", f"{MANAGED}/24", "dev", "mgmt1")
        s.lab.ip("switch", "link", "set", "mgmt1", "up")
        with s.switch.watch("mgmt1") as seen, s.web.watch() as sent:
            s.control("dom0 reaches that machine", s.dom0.pings(MANAGED))
            s.web.send(_to_gateway(s, MANAGED) / UDP(sport=s.port, dport=9) / Raw(s.mark))
    s.control("web's frames are on its cable", [f for f in sent.own if s.mark in f.raw])
    return [f"on the management network: {f}" for f in seen.having(s.mark)]


@attack("reach", tool="scapy", falls=("bridge", "routed"))
def martians_on_the_lan(s: Stage) -> list[str]:
    """web sends to addresses that are nobody's.

    Datagrams to 240.0.0.1, 0.1.2.3 and 127.1.2.3: no router forwards them (RFC 1812 5.3.7), and what machines on
    the LAN make of them is anybody's guess. None may leave for the LAN.
    """
    with s.switch.watch("dom0") as seen:
        for to in (s.address("lan1"), "240.0.0.1", "0.1.2.3", "127.1.2.3"):
            s.web.send(_to_gateway(s, to) / UDP(sport=s.port, dport=ECHO) / Raw(s.mark))
    out = [f for f in seen.having(s.mark) if IP in f.packet and ICMP not in f.packet]
    s.control("what web sends to lan1 is seen on the LAN", [f for f in out if f.packet[IP].dst == s.address("lan1")])
    return [f"on the LAN: {f}" for f in out if f.packet[IP].dst != s.address("lan1")]
