"""To have packets escape that nobody was to see: private addresses, late packets, moments of change.

The witness of all of them is the LAN's switch. Nobody there may see an address of the guests' own network: it says
how the host is built inside, it cannot be answered, and it goes wherever such addresses are believed.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.conversation import side
from vfr_lab.battery.stage import ECHO, SSH, Stage
from vfr_lab.node import Frame, Node, Seen

INSIDE = IPv4Network("169.254.0.0/16")
NOWHERE = 9  # a port that nobody listens on
SHOWN = 4  # of a flood of frames that escaped, so many are told of


def _names_inside(packet: Packet) -> bool:
    """Whether a frame's own header, IP's or ARP's, has an inside address."""
    layer = packet.getlayer(IP)
    if layer is not None:
        return any(IPv4Address(a) in INSIDE for a in (layer.src, layer.dst))
    layer = packet.getlayer(ARP)
    return layer is not None and any(IPv4Address(a) in INSIDE for a in (layer.psrc, layer.pdst))


def _escaped(lan: Seen) -> list[str]:
    return _told(lan.having(_names_inside))


def _told(frames: list[Frame]) -> list[str]:
    return [f"on the LAN: {f}" for f in frames[:SHOWN]]


def _speaks(s: Stage, lan: Seen, protocol: type[Packet] = TCP) -> bool:
    """Whether the LAN's switch has seen a guest speak, in the host's name."""
    return bool(lan.having(lambda p: protocol in p and p[IP].src == s.outside))


def _out(s: Stage, payload: Packet) -> Packet:
    """web's own frame to lan1."""
    ip = IP(src=s.address("web"), dst=s.address("lan1"), id=secrets.randbelow(2**16))
    return Ether(src=s.web.mac, dst=s.gateway_mac()) / ip / payload


@attack("leak", tool="hping3", falls="bridge")
def segments_of_no_conversation(s: Stage) -> list[str]:
    """web sends the ends of conversations that never were.

    TCP segments with FIN, RST or SYN and ACK from a port that web has not used. A connection tracker cannot say
    whose they are, and what it cannot place no NAT translates: they leave with web's own address. The everyday
    form of it is the late FIN of a conversation that has been forgotten.
    """
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's connection", s.web.tcp(s.address("lan1"), ECHO))
        for flags in ("-FA", "-RA", "-SA"):
            port = ("-s", "4444", "-p", str(NOWHERE))
            s.web.run("timeout", "0.3", "hping3", "-q", "-c", "1", flags, *port, s.address("lan1"))
    s.control("the LAN sees web speak in the host's name", _speaks(s, lan))
    return _escaped(lan)


@attack("leak", tool="scapy", falls="bridge")
def late_segment_in_fragments(s: Stage) -> list[str]:
    """web sends the end of a conversation that never was, in fragments.

    The same as a late FIN, but cut into IP fragments, so that only who puts them together sees what it is. No
    fragment may leave with an inside address, neither together nor alone.
    """
    late = _out(s, TCP(sport=4445, dport=NOWHERE, flags="FA", seq=1, ack=1) / Raw(s.mark * 4))
    honest = _out(s, UDP(sport=4445, dport=NOWHERE) / Raw(s.mark + b"honest" + b"." * 64))
    with s.switch.watch("br0") as lan:
        for whole in (late, honest):
            s.web.send(*fragment(whole, 32))  # type: ignore[no-untyped-call]
    translated = lan.having(lambda p: IP in p and p[IP].src == s.outside and p[IP].proto == 17)
    s.control("a datagram in fragments arrives in the host's name", translated)
    return _escaped(lan)


@attack("leak", tool="scapy", falls="bridge")
def errors_about_nothing(s: Stage) -> list[str]:
    """web sends ICMP errors about packets that nobody sent.

    Port unreachable and time exceeded, to lan1, quoting a datagram of lan1's that never was. With no conversation
    to translate by, both the error and the quote in it would show inside addresses.
    """
    quoted = IP(src=s.address("lan1"), dst=s.address("web")) / UDP(sport=5999, dport=6001) / Raw(s.mark)
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's datagram", s.web.udp(s.address("lan1"), ECHO, s.mark))
        s.web.send(_out(s, ICMP(type=3, code=3) / quoted), _out(s, ICMP(type=11, code=0) / quoted))
    s.control("the LAN sees web speak in the host's name", _speaks(s, lan, UDP))
    return _escaped(lan)


@attack("leak", tool="nping", falls="bridge")
def datagrams_with_a_wrong_checksum(s: Stage) -> list[str]:
    """web sends UDP and TCP with wrong checksums.

    A tracker that checks them does not look further, and lets the packet pass as it is: with web's own address.
    """
    sent = ("-q", "-c", "1", "--delay", "10ms", "--badsum", "-g", "4446", "-p", str(NOWHERE))
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's datagram", s.web.udp(s.address("lan1"), ECHO, s.mark))
        for protocol in ("--udp", "--tcp"):
            s.web.run("timeout", "1", "nping", protocol, *sent, s.address("lan1"))
    s.control("the LAN sees web speak in the host's name", _speaks(s, lan, UDP))
    return _escaped(lan)


@attack("leak", tool="scapy", falls="bridge")
def protocols_that_are_not_translated(s: Stage) -> list[str]:
    """web speaks SCTP, GRE and ESP without having begun.

    Data of an SCTP association that was never opened, a tunnel, encrypted packets: what the NAT knows no
    conversations of may leave translated or not at all.
    """
    chunk = SCTPChunkData(beginning=1, ending=1, data=s.mark)
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's datagram", s.web.udp(s.address("lan1"), ECHO, s.mark))
        s.web.send(_out(s, SCTP(sport=4447, dport=NOWHERE, tag=1) / chunk))
        for number in (2, 47, 50, 253):
            frame = _out(s, Raw(b"\0" * 8 + s.mark))
            frame[IP].proto = number
            s.web.send(frame)
    s.control("the LAN sees web speak in the host's name", _speaks(s, lan, UDP))
    return _escaped(lan)


@attack("leak", tool="hping3", falls="bridge")
def icmp_of_unusual_kinds(s: Stage) -> list[str]:
    """web sends ICMP that neither asks nor reports.

    Echo replies that nobody asked for, router solicitations, a type without a meaning: not the beginning of any
    conversation, so not translated. They may not leave.
    """
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's ping", s.web.pings(s.address("lan1")))
        for kind in ("0", "10", "42"):
            force = ("--force-icmp", "-C", kind, "-d", "20", "-e", s.mark.decode())
            s.web.run("timeout", "0.3", "hping3", "-q", "-1", "-c", "1", *force, s.address("lan1"))
    s.control("the LAN sees web speak in the host's name", _speaks(s, lan, ICMP))
    return _escaped(lan)


@attack("leak", tool="ping", falls=("bridge", "routed", "xen1"))
def record_route(s: Stage) -> list[str]:
    """web has its packet write down the way it takes.

    An echo request with the record route option, `ping -R`: web's own kernel writes its address into it first,
    and NAT does not translate options. The LAN would read the inside network's addresses off the packet.
    """
    with s.switch.watch("br0") as lan:
        s.control("lan1 answers web's plain ping", s.web.pings(s.address("lan1")))
        s.web.pings(s.address("lan1"), "-R")
    s.control("the LAN sees web's plain ping in the host's name", _speaks(s, lan, ICMP))
    return _told(lan.having(socket.inet_aton(s.address("web"))))


@attack("leak", tool="arping", falls=("bridge", "routed"))
def arp_for_the_inside_gateway(s: Stage) -> list[str]:
    """lan2 asks on the LAN for the guests' gateway.

    Linux answers ARP for any of its addresses on any interface. The LAN learns that there are guests, by which
    address they leave, and which host to send to in order to reach them.
    """

    def asked(address: str) -> bool:
        return s.lan2.ok("arping", "-c", "1", "-w", "1", "-I", "eth0", address)

    with s.switch.watch("br0") as lan:
        s.control("the host answers for its own address", asked(s.outside))
        answered = asked(s.gateway)
    replies = lan.having(lambda p: ARP in p and p[ARP].op == 2 and p[ARP].psrc == s.gateway)
    return _told(replies) if answered else []


@attack("leak", tool="nmap", falls="bridge")
def guests_answer_by_their_own_address(s: Stage) -> list[str]:
    """lan2 speaks to a guest's own address.

    It sends to 169.254.1.3 by the host. db may not be reached so, and above all its answer may not cross the LAN
    with its inside address.
    """
    db = s.address("db")
    s.lab.ip("lan2", "route", "add", db, "via", s.outside)
    try:
        with s.switch.watch("br0") as lan:
            s.control("lan2 reaches db's ssh by the forward", s.lan2.tcp(s.outside, s.guest("db").forward or 0))
            scan = ("-n", "-Pn", "-sS", "--max-retries", "0", "--host-timeout", "2s", "-p", f"{SSH},80")
            s.lan2.run("nmap", *scan, db)
    finally:
        s.lab.ip("lan2", "route", "del", db)
    asked = lan.having(lambda p: TCP in p and p[IP].dst == db and p[TCP].dport == SSH)
    s.control("lan2's SYN to db's own address crosses the LAN", asked)
    return _told(lan.having(lambda p: IP in p and p[IP].src == db))


@contextmanager
def _meanwhile(frame: Packet, node: Node) -> Iterator[None]:
    """A node sends this over and over, much faster than any command changes the host, while the block runs."""
    end, raw = threading.Event(), bytes(frame).hex()

    def keep_sending() -> None:
        while not end.is_set():
            node.ask("send", interface="eth0", frames=[raw], times=50, pace_s=0.0002)

    thread = threading.Thread(target=keep_sending)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _speak_by_the_forward(s: Stage, change: Callable[[], None]) -> list[str]:
    """lan1 has a connection to db's ssh and speaks through it, while something changes in the host."""
    host = s.lan1.knows(s.outside)
    with s.switch.watch("br0") as lan, ExitStack() as open_:
        with s.lan1.watch() as own:
            call = open_.enter_context(s.lan1.call(s.outside, s.guest("db").forward or 0))
        s.control("lan1 hears db's ssh by the forward", call.greeting.startswith(b"SSH-"))
        speech = Ether(src=s.lan1.mac, dst=host) / side(own, call.port).says("A", s.mark)
        s.say(f"lan1: says over and over {speech.summary()}")
        with _meanwhile(speech, s.lan1):
            change()
    s.control("the LAN sees lan1 speak all the while", len(lan.having(s.mark)) > 20)
    return _escaped(lan)


@attack("leak", tool="scapy", falls="bridge", leaves=True)
def while_the_backend_stops(s: Stage) -> list[str]:
    """lan1 speaks to db's ssh while the backend is taken down.

    There is a moment when the guests' network is gone from the host, and what translates is still there: what lan1
    sends then finds no way inside, and leaves by the default route, to db's own address.
    """
    return _speak_by_the_forward(s, lambda: s.backend.down(s.lab))


@attack("leak", tool="scapy", falls="xen1", leaves=True)
def while_a_guest_is_detached(s: Stage) -> list[str]:
    """lan1 speaks to db's ssh while db is taken away.

    The forward, or what is tracked of it, still translates to db's address, and a switch that has forgotten db's port
    sends frames for it everywhere. What was said to db may not go back to the LAN.
    """
    return _speak_by_the_forward(s, lambda: s.backend.detach(s.lab, s.guest("db")))
