"""To attack guests and host from the LAN: lan2 is hostile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, SSH, Stage
from vfr_lab.battery.starve import beginnings, crowd, send_many, sysctl, with_ports
from vfr_lab.lab import wait_until

UNPUBLISHED = 5432
RANGE = "169.254.1.0/24"


@contextmanager
def _route_to_guests(s: Stage) -> Iterator[None]:
    """lan2 takes the host for its router to the guests."""
    s.lan2.run("ip", "route", "add", RANGE, "via", s.outside)
    try:
        yield
    finally:
        s.lan2.run("ip", "route", "del", RANGE)


def to_host(s: Stage, packet: Packet) -> Packet:
    """A frame from lan2 to the host's MAC."""
    return Ether(src=s.lan2.mac, dst=s.lan2.knows(s.outside)) / packet


@attack("lan", tool="nmap", falls="xen1")
def a_scan_behind_the_host(s: Stage) -> list[str]:
    """lan2 scans the guests by their own addresses.

    It takes the host for its router to 169.254.1.0/24, and nmap tries ssh and an unpublished port of each guest. From the
    LAN only the published forwards may lead to a guest: this is the "direct routing" that Docker long left open.
    """
    guests = [g.address for g in s.lab.scenario.guests]
    with _route_to_guests(s), s.db.listen("tcp", UNPUBLISHED):
        s.control("the port is open: domain 0 reaches it", s.dom0.tcp(s.address("db"), UNPUBLISHED))
        options = ("-n", "-Pn", "-sT", "--max-retries", "0", "--host-timeout", "3s", "-oG", "-")
        said = s.lan2.run("timeout", "12", "nmap", *options, "-p", f"{SSH},{UNPUBLISHED}", *guests)
    s.control("nmap has looked at all of them", said.count("Ports:") + said.count("Status: Timeout") >= len(guests))
    return [line for line in said.splitlines() if "/open/" in line]


@attack("lan", tool="scapy", falls="xen1")
def a_datagram_past_the_forwards(s: Stage) -> list[str]:
    """lan2 sends a datagram straight to db's own address.

    To the host's MAC, for an unpublished UDP port of db's. db must not hear it.
    """
    with s.db.listen("udp", UNPUBLISHED) as service:
        s.dom0.udp(s.address("db"), UNPUBLISHED, s.mark + b"own")
        datagram = IP(src=s.address("lan2"), dst=s.address("db")) / UDP(sport=4000, dport=UNPUBLISHED)
        s.lan2.send(to_host(s, datagram / Raw(s.mark + b"lan2's")))
    s.control("the service hears domain 0", service.having(s.mark + b"own"))
    return [f"db hears {heard}" for heard in service.having(s.mark + b"lan2's")]


@attack("lan", tool="ping", falls="xen1")
def a_ping_past_the_forwards(s: Stage) -> list[str]:
    """lan2 pings guests by their own addresses.

    With a route by the host. An answer tells which guests there are; forwards lead to ssh and to nothing else.
    """
    with _route_to_guests(s):
        s.control("lan2 pings the host", s.lan2.pings(s.outside))
        found = [g.name for g in s.lab.scenario.guests if s.lan2.pings(g.address)]
    return [f"{name} answers lan2's ping" for name in found]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def in_a_guests_name_to_the_host(s: Stage) -> list[str]:
    """lan2 speaks to domain 0 in db's name.

    A datagram from the LAN with db's address for its source. A service of domain 0 that trusts its guests must not
    hear it.
    """
    with s.dom0.listen("udp", UNPUBLISHED) as service:
        for source in ("lan2", "db"):
            datagram = IP(src=s.address(source), dst=s.outside) / UDP(sport=4000, dport=UNPUBLISHED)
            s.lan2.send(to_host(s, datagram / Raw(s.mark + source.encode())))
    s.control("the service hears lan2 in its own name", service.having(s.mark + b"lan2"))
    return [f"domain 0 hears {heard}" for heard in service.having(s.mark + b"db")]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def in_a_guests_name_to_a_forward(s: Stage) -> list[str]:
    """lan2 opens a connection to web's ssh in db's name.

    A SYN from the LAN, with db's address for its source, to web's forward. web must not receive it: its sshd may let
    other guests in where it does not let the LAN in.
    """
    forward = s.guest("web").forward
    with s.web.watch() as seen:
        for source in ("lan2", "db"):
            syn = TCP(sport=4000 + len(source), dport=forward, flags="S", seq=77)
            s.lan2.send(to_host(s, IP(src=s.address(source), dst=s.outside) / syn))
    syns = seen.having(lambda p: TCP in p and p[TCP].flags == "S" and p[TCP].seq == 77)
    s.control("lan2's SYN in its own name arrives", any(f.packet[IP].src == s.address("lan2") for f in syns))
    return [f"web received: {f}" for f in syns if f.packet[IP].src == s.address("db")]


@attack("lan", tool="arping", falls=("bridge", "bridge-filtered", "xen1"))
def the_range_asked_for_on_the_lan(s: Stage) -> list[str]:
    """lan2 asks the LAN who has the gateway and the guests.

    The host must not say: whom the LAN finds by ARP it can send to, and it learns what there is.
    """
    s.control("the host answers for its own address", s.lan2.ok("arping", "-c1", "-w1", "-I", "eth0", s.outside))
    asked = [s.gateway, *(g.address for g in s.lab.scenario.guests)]
    found = [a for a in asked if s.lan2.ok("arping", "-c1", "-w1", "-I", "eth0", a)]
    return [f"the host answers for {address}" for address in found]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def the_guests_own_services_of_the_host(s: Stage) -> list[str]:
    """lan2 reaches a service that domain 0 has for guests only.

    It listens on the gateway's address, as a resolver for guests does. lan2 sends to that address by the host's MAC,
    and must not be heard: that the address is not on the LAN is all that protects it.
    """
    if f" {s.gateway}/" not in s.dom0.run("ip", "-4", "address", "show"):
        s.control("domain 0 itself does not have the gateway's address", True)
        return []
    with s.dom0.listen("udp", UNPUBLISHED, address=s.gateway) as service:
        s.dom0.udp(s.gateway, UNPUBLISHED, s.mark + b"own")
        datagram = IP(src=s.address("lan2"), dst=s.gateway) / UDP(sport=4000, dport=UNPUBLISHED)
        s.lan2.send(to_host(s, datagram / Raw(s.mark + b"lan2's")))
    s.control("the service hears domain 0", service.having(s.mark + b"own"))
    return [f"domain 0 hears {heard}" for heard in service.having(s.mark + b"lan2's")]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered"))
def the_host_as_a_strangers_router(s: Stage) -> list[str]:
    """lan2 has the host forward its packets to the outside.

    To the host's MAC, for inet. A host of guests is nobody else's router: it would carry lan2's traffic past whatever the
    LAN's router does about it. inet must not receive it from there.
    """
    datagram = IP(src=s.address("lan2"), dst=s.address("inet")) / UDP(sport=4000, dport=9)
    honest = Ether(src=s.lan2.mac, dst=s.lan2.knows(s.address("router")))
    with s.inet.watch() as seen:
        s.lan2.send(honest / datagram / Raw(s.mark + b"by the router"))
        s.lan2.send(to_host(s, datagram / Raw(s.mark + b"by the host")))
    s.control("the same by the router arrives", seen.having(s.mark + b"by the router"))
    return [f"inet received by way of the host: {f}" for f in seen.having(s.mark + b"by the host")]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def a_redirect_of_the_hosts_traffic(s: Stage) -> list[str]:
    """lan2 tells the host, in the router's name, that it is the way to inet.

    An ICMP redirect that quotes a ping of the host's. If the host believes it, what db sends to inet goes by lan2, which
    reads and answers it.
    """
    inet, router = s.address("inet"), s.address("router")
    quote = IP(src=s.outside, dst=inet) / ICMP(type=8, id=1, seq=1)
    lie = IP(src=router, dst=s.outside) / ICMP(type=5, code=1, gw=s.address("lan2")) / quote
    s.control("db reaches inet before", s.db.udp(inet, ECHO))
    s.control("the host pings inet", s.dom0.pings(inet))
    with s.lan2.watch() as seen, s.switch.watch("br0") as wire:
        s.lan2.send(to_host(s, lie), times=3)
        s.db.udp(inet, 9, s.mark, timeout=0.1)
    s.control("db's datagram is on the LAN", wire.having(s.mark))
    s.dom0.run("ip", "route", "flush", "cache")
    return [f"lan2 received db's: {f}" for f in seen.having(s.mark)]
