"""To harm the host's own kernel and services: malformed headers of every layer, offloads, sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, IPOption_Timestamp, in4_pseudoheader
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from vfr_lab.battery import attack
from vfr_lab.battery.stage import ECHO, Stage
from vfr_lab.node import Seen

MANY = 300  # of what a guest needs a handful of
FEW = 60  # connections that a guest may well have at once
NET_GSO_TCPV4 = 1


def _leaving(s: Stage) -> AbstractContextManager[Seen]:
    """What leaves the host for the LAN, seen before the switch has looked at it."""
    return s.switch.watch("dom0")


# Malformed packets: to db by its MAC, to lan1 by the gateway


def _offer(s: Stage, honest: Packet, layer: type[Packet], variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sends db and lan1 each of the variants: `honest` with some fields of a layer changed. Says which arrived."""
    cases = {"in good form": {}, **variants}
    with s.db.watch() as at_db, _leaving(s) as on_lan:
        for node, mac in (("db", s.db.mac), ("lan1", s.gateway_mac())):
            for number, (name, changes) in enumerate(cases.items()):
                about = honest.copy()
                about.setfieldval("id" if isinstance(honest, ICMP) else "sport", s.port + number)
                packet = IP(src=s.address("web"), dst=s.address(node)) / about / Raw(s.mark + name.encode() + b";")
                for field, value in changes.items():
                    packet[layer].setfieldval(field, value)
                s.web.send(Ether(src=s.web.mac, dst=mac) / packet)
        s.dom0.udp(s.address("db"), 9, s.mark + b"from dom0", timeout=0.1)
    s.control("in good form it comes to the LAN", on_lan.having(s.mark + b"in good form;"))
    s.control("what dom0 says to db is seen there", at_db.having(s.mark + b"from dom0"))
    ends = {"db": at_db, "the LAN": on_lan}
    return [
        f"{end} received it with {name}: {seen.having(s.mark + name.encode() + b';')[0]}"
        for end, seen in ends.items()
        for name in variants
        if seen.having(s.mark + name.encode() + b";")
    ]


@attack("host", tool="scapy", falls="bridge")
def broken_ip_headers(s: Stage) -> list[str]:
    """web sends IP headers that are wrong in every field that can be.

    Version 5, a header of 16 bytes, one that goes on beyond the packet, a length beyond the frame or shorter than
    the header, a wrong checksum, no life left. A router must not hand on what a receiver's parser may fail on.
    """
    wrong = {
        "version 5": {"version": 5},
        "ihl 4": {"ihl": 4},
        "ihl 15": {"ihl": 15},
        "a length beyond the frame": {"len": 1400},
        "a length shorter than the header": {"len": 19},
        "a wrong checksum": {"chksum": 0xBEEF},
        "ttl 0": {"ttl": 0},
    }
    return _offer(s, UDP(dport=ECHO), IP, wrong)


@attack("host", tool="scapy", falls=("bridge", "xen1"))
def broken_tcp_headers(s: Stage) -> list[str]:
    """web sends TCP headers that are shorter than TCP's, or longer than the packet.

    A data offset of 0, 4 and 15 words in a SYN. What cannot be TCP must neither be handed on nor leave untranslated.
    """
    wrong = {f"data offset {n}": {"dataofs": n} for n in (0, 4, 15)}
    return _offer(s, TCP(dport=ECHO, flags="S"), TCP, wrong)


@attack("host", tool="scapy", falls="bridge")
def impossible_tcp_flags(s: Stage) -> list[str]:
    """web sends TCP flags that no connection has.

    SYN with FIN, SYN with RST, all at once, none at all, as scanners do to pass filters that look for a lone SYN.
    None may come to db or to the LAN.
    """
    wrong = {f"flags {flags or 'none'}": {"flags": flags} for flags in ("SF", "SR", "FSRPAU", "FPU", "")}
    return _offer(s, TCP(dport=ECHO, flags="S"), TCP, wrong)


@attack("host", tool="scapy", falls="bridge")
def lying_udp_length(s: Stage) -> list[str]:
    """web sends UDP headers whose length is not the datagram's.

    Lengths of 0, 4 and 2000 bytes. Receivers that believe them read what is not theirs to read.
    """
    return _offer(s, UDP(dport=ECHO), UDP, {f"length {n}": {"len": n} for n in (0, 4, 2000)})


@attack("host", tool="scapy", falls=("bridge", "routed"))
def malformed_ip_options(s: Stage) -> list[str]:
    """web sends IP options that cannot be read.

    An option of length 0, one that ends beyond the header, one whose pointer points nowhere. Kernels have gone into
    endless loops over the first. None may come to db or to the LAN.
    """
    wrong = {
        "an option of length 0": {"options": Raw(b"\x83\x00\x04\x00")},
        "an option beyond the header": {"options": Raw(b"\x07\x27\x04\x00")},
        "a pointer to nowhere": {"options": Raw(b"\x07\x07\xff\x00\x00\x00\x00\x00")},
    }
    return _offer(s, UDP(dport=ECHO), IP, wrong)


@attack("host", tool="scapy", falls=("bridge", "routed"))
def options_that_the_host_fills_in(s: Stage) -> list[str]:
    """web has the host write its addresses and its clock into a packet.

    Well-formed record route and timestamp options: a Linux router fills them in, which shows its inside to the LAN
    and takes the slow way through its kernel (RFC 7126). None may come to db or to the LAN.
    """
    options: dict[str, dict[str, Any]] = {
        "record route": {"options": IPOption_RR(pointer=4, routers=["0.0.0.0"] * 4)},
        "timestamps": {"options": IPOption_Timestamp(flg=0, timestamp=0)},
    }
    return _offer(s, UDP(dport=ECHO), IP, options)


@attack("host", tool="scapy", falls="bridge")
def truncated_l4_headers(s: Stage) -> list[str]:
    """web sends packets that end within their L4 header.

    Four bytes of ICMP, ten of TCP, four of UDP, in whole packets. They can't be translated, and must not be handed on.
    """
    cut = (("ICMP", 1, 4), ("TCP", 6, 10), ("UDP", 17, 5))
    with s.db.watch() as at_db, _leaving(s) as on_lan:
        for node, mac in (("db", s.db.mac), ("lan1", s.gateway_mac())):
            ether, web, to = Ether(src=s.web.mac, dst=mac), s.address("web"), s.address(node)
            for _, protocol, length in cut:
                s.web.send(ether / IP(src=web, dst=to, flags="DF", proto=protocol) / Raw((b"\x08\x00" * 5)[:length]))
            s.web.send(ether / IP(src=web, dst=to, flags="DF") / UDP(sport=s.port, dport=ECHO) / s.mark)
        s.dom0.udp(s.address("db"), 9, s.mark, timeout=0.1)
    s.control("a whole one comes to the LAN", on_lan.having(s.mark))
    s.control("what dom0 says to db is seen there", at_db.having(s.mark))
    return [
        f"{end} received {length} bytes of {name}: {f}"
        for end, seen in (("db", at_db), ("the LAN", on_lan))
        for name, protocol, length in cut
        for f in seen.frames
        if IP in f.packet and (f.packet[IP].len, f.packet[IP].proto) == (20 + length, protocol)
    ]


@attack("host", tool="scapy", falls="bridge")
def odd_arp(s: Stage) -> list[str]:
    """web sends ARP packets of sizes that ARP does not have.

    Cut after ten bytes, with addresses of 255 bytes, of unknown hardware, of an unknown operation. Neither db
    nor the host's neighbour table may have to do with them.
    """
    good = bytes(ARP(hwsrc=s.web.mac, psrc=s.address("web"), pdst=s.address("db")))
    odd = {
        "cut short": good[:10],
        "addresses of 255 bytes": good[:4] + b"\xff\xff" + good[6:],
        "unknown hardware": b"\x7f\xff" + good[2:],
        "operation 99": good[:6] + b"\0\x63" + good[8:],
    }
    with s.db.watch() as seen:
        for name, data in odd.items():
            for mac in (s.db.mac, "ff:ff:ff:ff:ff:ff"):
                s.web.send(Ether(src=s.web.mac, dst=mac, type=0x0806) / Raw(data + s.mark + name.encode()))
        s.dom0.udp(s.address("db"), 9, s.mark + b"from dom0", timeout=0.1)
    s.control("what dom0 says to db is seen there", seen.having(s.mark + b"from dom0"))
    return [f"db received ARP: {n}" for n in odd if seen.having(s.mark + n.encode())]


@attack("host", tool="scapy", falls="bridge")
def runts(s: Stage) -> list[str]:
    """web sends frames that end before anything begins.

    A bare Ethernet header, and IP and ARP frames with one to ten bytes after it: no Ethernet card sends such.
    db must not receive them.
    """
    sizes = (0, 1, 10)
    with s.db.watch() as seen:
        for kind in (0x0800, 0x0806, 0x86DD):
            for size in sizes:
                s.web.send(bytes(Ether(src=s.web.mac, dst=s.db.mac, type=kind)) + b"\x45" * size)
        s.dom0.udp(s.address("db"), 9, s.mark, timeout=0.1)
    s.control("what dom0 says to db is seen there", seen.having(s.mark))
    own = bytes.fromhex(s.web.mac.replace(":", ""))
    short = [f for f in seen.frames if len(f.raw) <= 24 and f.raw[6:12] == own]
    return [f"db received {len(f.raw)} bytes: {f.raw.hex()}" for f in short]


@attack("host", tool="hping3", falls="bridge")
def land(s: Stage) -> list[str]:
    """web sends db a SYN from db itself.

    Source and target are db's address, port 22 both (LAND, CVE-1999-0016): a stack may answer itself for ever.
    It must not arrive, and none in the host's own name may be answered by the host.
    """
    db, host = s.address("db"), s.gateway
    with s.db.watch() as at_db, s.web.watch() as cable:
        for target in (db, host, s.outside):
            s.web.run(
                "timeout",
                "2",
                "hping3",
                "-q",
                "-c",
                "2",
                "-i",
                "u1000",
                "-S",
                "-s",
                "22",
                "-k",
                "-p",
                "22",
                "-a",
                target,
                target,
            )
        s.dom0.udp(db, 9, s.mark, timeout=0.1)
    s.control("what dom0 says to db is seen there", at_db.having(s.mark))

    def is_land(p: Packet) -> bool:
        return IP in p and TCP in p and p[IP].src == p[IP].dst

    s.control("web's frames are on its cable", [f for f in cable.own if is_land(f.packet)])
    return [f"db received: {f}" for f in at_db.having(is_land)]


@attack("host", tool="nmap", falls="bridge")
def christmas_tree_scan(s: Stage) -> list[str]:
    """web scans the host with flags that no connection has.

    nmap's Xmas and null scans: a stack answers for closed ports only, so rules that wait for a SYN see nothing.
    The host must not answer web at all.
    """
    options = ("-n", "-Pn", "--max-retries", "0", "--host-timeout", "4s", "-p", "5901", "-oG", "-")
    s.control("lan2 is answered", "5901/closed" in s.lan2.run("nmap", "-sX", *options, s.outside))
    found = [s.web.run("nmap", kind, *options, s.gateway, s.outside) for kind in ("-sX", "-sN")]
    return [line for text in found for line in text.splitlines() if "/closed/" in line]


# Fragments


def _fragments(s: Stage, parts: list[tuple[int, int, bytes]]) -> list[str]:
    """Sends db and lan1 fragments (offset in bytes, more to come, data) of a datagram, after good ones. Says what arrived.

    Only what bears the mark counts.
    """
    fine = bytes(UDP(sport=s.port + 7, dport=ECHO, len=100, chksum=0)) + (s.mark + b"fine").ljust(92, b"-")
    with s.db.watch() as at_db, _leaving(s) as on_lan:
        for node, mac in (("db", s.db.mac), ("lan1", s.gateway_mac())):
            ip = IP(src=s.address("web"), dst=s.address(node), proto=17)
            for ip.id, datagram in ((s.port, [(0, 1, fine[:48]), (48, 0, fine[48:])]), (s.port + 1, parts)):
                for offset, ip.flags, data in datagram:
                    ip.frag = offset // 8
                    s.web.send(Ether(src=s.web.mac, dst=mac) / ip / Raw(data))
        s.dom0.udp(s.address("db"), 9, s.mark + b"fine", timeout=0.1)
    s.control("fragments in good form come to the LAN", on_lan.having(s.mark + b"fine"))
    s.control("what dom0 says to db is seen there", at_db.having(s.mark + b"fine"))
    ends = {"db": at_db, "the LAN": on_lan}
    return [
        f"{end} received: {f}"
        for end, seen in ends.items()
        for f in seen.having(s.mark)
        if s.mark + b"fine" not in f.raw and ICMP not in f.packet
    ]


@attack("host", tool="scapy", falls="bridge")
def teardrop(s: Stage) -> list[str]:
    """web sends fragments that lie over one another.

    The second begins and ends within the first (teardrop, CVE-1997-0014): stacks have computed negative lengths, and
    filters and receivers disagree on what is read. It must not come to db or to the LAN.
    """
    head = bytes(UDP(sport=s.port, dport=ECHO, len=8 + 64, chksum=0))
    return _fragments(s, [(0, 1, head + b"A" * 64), (24, 0, s.mark[:24])])


@attack("host", tool="scapy", falls="bridge")
def ping_of_death(s: Stage) -> list[str]:
    """web sends a fragment that ends beyond 64 KiB.

    No datagram is longer than 65535 bytes; put together, this one is (ping of death, CVE-1999-0128). The fragment
    must not come to db or to the LAN.
    """
    head = bytes(UDP(sport=s.port, dport=ECHO, len=65535, chksum=0))
    return _fragments(s, [(0, 1, head + b"A" * 64), (65528, 0, s.mark + b"B" * 400)])


@attack("host", tool="scapy", falls=("bridge", "routed"))
def fragments_for_the_host_to_keep(s: Stage) -> list[str]:
    """web gives the host's kernel fragments to keep.

    First fragments to the host that are never completed: each waits in the host's memory, half a minute by default. None
    may wait there, since that memory is the host's own and has one limit for all.
    """

    def waiting() -> int:
        line = next(n for n in s.dom0.run("cat", "/proc/net/sockstat").splitlines() if n.startswith("FRAG"))
        return int(line.split()[2])

    def first(source: str, target: str, number: int) -> Packet:
        ip = IP(src=source, dst=target, flags="MF", id=s.port + number)
        return ip / UDP(sport=s.port, dport=9, len=600, chksum=0) / Raw(b"A" * 64)

    with s.sysctls("dom0", "^net.ipv4.ipfrag_time$", "3"):
        before = waiting()
        lan1 = Ether(src=s.lan1.mac, dst=s.lan1.knows(s.outside))
        s.lan1.send(lan1 / first(s.address("lan1"), s.outside, 0))
        s.control("a fragment from the LAN waits there", waiting() > before)
        before, web = waiting(), Ether(src=s.web.mac, dst=s.gateway_mac())
        for target in (s.gateway, s.outside, s.address("lan1")):
            s.web.send(*(web / first(s.address("web"), target, n) for n in range(MANY)))
        kept = waiting() - before
    return [f"{kept} fragments of web's wait in the host's kernel"] if kept > 0 else []


# Offloads


@contextmanager
def _without_offload(s: Stage, *what: str) -> Iterator[None]:
    """The host's uplink completes checksums (`tx`), or cuts long frames (`tso`, `gso`), in software."""

    def turn(way: str) -> None:
        s.lab.exec("dom0", "ethtool", "-K", "eth0", *(word for feature in what for word in (feature, way)))

    turn("off")
    try:
        yield
    finally:
        turn("on")


def _to_lan1(s: Stage, l4: Packet, data: bytes) -> bytes:
    """web's frame to lan1, with the sum of its pseudo header where the L4 checksum belongs, as a kernel hands it out."""
    ip = IP(bytes(IP(src=s.address("web"), dst=s.address("lan1")) / l4 / Raw(data)))
    pseudo = in4_pseudoheader(ip.proto, ip, len(ip.payload))
    ip.payload.chksum = ~checksum(pseudo) & 0xFFFF
    return bytes(Ether(src=s.web.mac, dst=s.gateway_mac()) / ip)


@attack("host", tool="AF_PACKET with virtio-net headers", falls=("bridge", "routed"))
def checksum_over_the_source_address(s: Stage) -> list[str]:
    """web has the host overwrite the source address.

    A virtio-net header says where a checksum is to be written: here over the source address, after everything has
    been checked. What leaves by an uplink without checksum offload then bears an address that nobody gave it.
    """
    udp = UDP(sport=s.port, dport=9)
    with _without_offload(s, "tx"), _leaving(s) as seen:
        s.web.send_offload(_to_lan1(s, udp, s.mark + b"honest"), 34, 6)
        s.web.send_offload(_to_lan1(s, udp, s.mark + b"source"), 26, 0)
    honest = [f for f in seen.having(s.mark + b"honest") if f.packet[IP].src == s.outside]
    s.control("with the checksum in its place the frame arrives, in the host's name", honest)
    return [f"on the LAN: {f}" for f in seen.having(s.mark + b"source") if f.packet[IP].src != s.outside]


@attack("host", tool="AF_PACKET with virtio-net headers", falls=("bridge", "routed"))
def checksum_over_the_target_address(s: Stage) -> list[str]:
    """web has the host overwrite the target address, or the ports.

    The same, written over the target address or the target port: policy was asked about another packet.
    """
    where, udp = {b"address": (30, 0), b"port": (34, 2)}, UDP(sport=s.port, dport=9)
    with _without_offload(s, "tx"), _leaving(s) as seen:
        s.web.send_offload(_to_lan1(s, udp, s.mark + b"honest"), 34, 6)
        for name, place in where.items():
            s.web.send_offload(_to_lan1(s, udp, s.mark + name), *place)
    s.control("with the checksum in its place the frame arrives", seen.having(s.mark + b"honest"))
    odd = [f for name in where for f in seen.having(s.mark + name)]
    right = (s.address("lan1"), 9)
    return [f"on the LAN: {f}" for f in odd if (f.packet[IP].dst, f.packet[IP].payload.dport) != right]


@attack("host", tool="AF_PACKET with virtio-net headers", falls=("bridge", "routed"))
def one_frame_a_thousand_packets(s: Stage) -> list[str]:
    """web has the host cut one frame into a thousand.

    A frame that asks to be cut into TCP segments of eight bytes each: the host's kernel makes a thousand packets of
    it, at its own expense, and counts one. No more may come of it than of an honest sender's smallest segments.
    """

    def pieces(size: int, each: int) -> int:
        frame = _to_lan1(s, TCP(sport=s.port, dport=ECHO, flags="S"), b"A" * size)
        with _without_offload(s, "tso", "gso"), _leaving(s) as seen:
            s.web.send_offload(frame, 34, 16, (NET_GSO_TCPV4, each))
        return len(seen.having(lambda p: TCP in p and p[TCP].dport == ECHO and Raw in p))

    s.control("an honest frame is cut into its segments", pieces(2000, 1000) == 2)
    came = pieces(8000, 8)
    return [f"of one frame, {came} packets came to the LAN"] if came > 100 else []


# The host's own state


def _quoting(s: Stage, target: str) -> Packet:
    """dom0's answer to a ping from there, as an ICMP error quotes it: no socket has to know of it."""
    return IP(src=s.outside, dst=target) / ICMP(type=0, id=7) / Raw(b"quoted__")


@attack("host", tool="scapy", falls=("bridge", "xen1"))
def path_mtu_of_the_host(s: Stage) -> list[str]:
    """web tells the host that its way to the LAN is narrow.

    A forged "fragmentation needed" about what the host said to lan1. The host must not believe a guest: all that it
    sends to lan1 afterwards would be cut into pieces of 552 bytes.
    """

    def narrow(target: str) -> bool:
        return "mtu" in s.lab.ip("dom0", "route", "get", target)

    error = ICMP(type=3, code=4, nexthopmtu=552)
    router = Ether(src=s.router.mac, dst=s.router.knows(s.outside)) / IP(src=s.address("router"), dst=s.outside)
    s.router.send(router / error / _quoting(s, s.address("inet")))
    s.control("the router is believed about inet", narrow(s.address("inet")))
    for host in (s.gateway, s.outside):
        frame = Ether(src=s.web.mac, dst=s.gateway_mac()) / IP(src=s.address("web"), dst=host)
        s.web.send(frame / error / _quoting(s, s.address("lan1")))
    s.dom0.pings(s.address("lan1"))
    return [s.lab.ip("dom0", "route", "get", s.address("lan1"))] if narrow(s.address("lan1")) else []


@attack("host", tool="scapy", falls="bridge")
def redirect_for_the_host(s: Stage) -> list[str]:
    """web redirects the host's route.

    dom0 reaches a network by db, and heeds ICMP redirects. web forges one in db's name, that web itself is the
    better way. The host must not believe it, or that traffic is web's.
    """
    behind, db = "203.0.113.9", s.address("db")
    quoted = IP(src=s.gateway, dst=behind) / ICMP(type=0, id=7) / Raw(b"quoted__")
    frame = Ether(src=s.web.mac, dst=s.gateway_mac()) / IP(src=db, dst=s.gateway)
    way = s.lab.ip("dom0", "route", "get", db)
    interface = way.split(" dev ")[1].split()[0]
    s.lab.ip("dom0", "route", "add", behind, "via", db, "dev", interface, "onlink", "src", s.gateway)
    try:
        with s.conf("dom0", "accept_redirects"), s.web.watch() as cable:
            s.control("dom0's way is by db", f"via {db}" in s.lab.ip("dom0", "route", "get", behind))
            s.web.send(frame / ICMP(type=5, code=1, gw=s.address("web")) / quoted)
            found = s.lab.ip("dom0", "route", "get", behind)
    finally:
        s.lab.ip("dom0", "route", "del", behind)
    s.control("web's frame is on its cable", cable.own)
    return [f"dom0's way is now: {' '.join(found.split())}"] if f"via {s.address('web')}" in found else []


@attack("host", tool="scapy", falls="bridge")
def neighbours_of_the_host(s: Stage) -> list[str]:
    """web fills the host's neighbour table.

    ARP requests to the host from 300 addresses that nobody has: a kernel notes each who asks. The table is one for
    the whole machine, all its namespaces; when it is full, nobody finds new neighbours.
    """

    def known() -> int:
        return len(json.loads(s.lab.ip("dom0", "-j", "neigh", "show", "nud", "all") or "[]"))

    before = known()
    honest = Ether(src=s.lan2.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=s.lan2.mac, psrc="192.0.2.77", pdst=s.outside)
    s.lan2.send(honest)
    s.control("a question from the LAN is noted", known() > before)
    before = known()
    broadcast = Ether(src=s.web.mac, dst="ff:ff:ff:ff:ff:ff")
    asking = [f"169.254.{2 + n // 250}.{1 + n % 250}" for n in range(MANY)]
    s.web.send(*(broadcast / ARP(hwsrc=s.web.mac, psrc=who, pdst=s.gateway) for who in asking))
    more = known() - before
    return [f"the host has {more} more neighbours"] if more > MANY // 10 else []


@attack("host", tool="scapy", falls=("bridge", "routed"))
def connection_table_of_the_host(s: Stage) -> list[str]:
    """web fills the host's connection table.

    60 datagrams from as many ports: each becomes an entry in the host's one table of connections, for guests and
    itself, without a share for anybody. When it is full, the host itself is cut off too. The host's table must
    not grow by a guest's doing.
    """

    def entries() -> int:
        return int(s.dom0.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    with s.lan1.watch() as seen:
        before = entries()
        frame = Ether(src=s.web.mac, dst=s.gateway_mac()) / IP(src=s.address("web"), dst=s.address("lan1"))
        s.web.send(*(frame / UDP(sport=s.port + n, dport=9) / Raw(s.mark) for n in range(FEW)), pace_s=0.0005)
        more = entries() - before
    s.control("web's datagrams come to lan1", len(seen.having(s.mark)) > FEW // 2)
    return [f"the host's table has {more} more entries"] if more > FEW // 2 else []


@attack("host", tool="scapy", falls="bridge")
def groups_of_the_host(s: Stage) -> list[str]:
    """web asks the host who is in which multicast group.

    An IGMP query, as only a router sends it. A host that answers it tells its groups, and takes web
    for the multicast router from then on. Nothing in IGMP may come back.
    """
    query = IP(src=s.address("web"), dst="224.0.0.1", ttl=1, proto=2) / Raw(b"\x11\x01\xee\xfe\0\0\0\0")

    def is_igmp(p: Packet) -> bool:
        return IP in p and p[IP].proto == 2

    with s.dom0.watch(s.vif("web")) as taken, s.web.watch(settle_s=0.4) as seen:
        s.web.send(Ether(src=s.web.mac, dst="01:00:5e:00:00:01") / query)
    s.control("the query comes to the host's end of web's cable", taken.having(is_igmp))
    return [f"web is told: {f}" for f in seen.having(is_igmp)]


def _martians() -> int:
    """How many packets this machine's kernel has refused for their source address: a counter of all namespaces."""
    names, *cpus = (line.split() for line in Path("/proc/net/stat/rt_cache").read_text().splitlines())
    return sum(int(cpu[names.index("in_martian_src")], 16) for cpu in cpus)


@attack("host", tool="scapy", falls="bridge")
def martians_for_the_hosts_log(s: Stage) -> list[str]:
    """web sends the host packets that it writes a log line for.

    Packets from 127.0.0.1 and from the host's own addresses: with log_martians each is a line in the kernel's log,
    which a guest may not write to. None may come so far as the host's judgement of sources.
    """
    sources, times = ("127.0.0.1", s.outside, s.gateway), 50
    lan = Ether(src=s.lan2.mac, dst=s.lan2.knows(s.outside)) / IP(src="127.0.0.1", dst=s.outside)
    before = _martians()
    s.lan2.send(lan / UDP(sport=s.port, dport=9) / s.mark, times=times)
    s.control("martians from the LAN are counted", _martians() - before >= times)
    frame = Ether(src=s.web.mac, dst=s.gateway_mac())
    with s.web.watch() as cable:
        before = _martians()
        s.web.send(
            *(frame / IP(src=a, dst=s.gateway) / UDP(sport=s.port, dport=9) / s.mark for a in sources), times=times
        )
    more = _martians() - before
    s.control("web's frames are on its cable", [f for f in cable.own if s.mark in f.raw])
    return [f"the host judged {more} martians of web's"] if more >= times else []
