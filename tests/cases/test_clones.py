"""Clones, on model, object and native build: guests that all believe to be 10.0.2.15 behind 10.0.2.2.

    web 169.254.1.2 (guest 10.0.2.15)   db 169.254.1.3 (guest 10.0.2.15)   odd 198.18.0.77 (only another MAC)

Each case is bit for bit: what every executor makes of the frame must be the frame that is said here, made anew by
scapy with right checksums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench
from support.frames import tcp, udp
from support.native import Native
from support.world import GATEWAY_MAC, NODES, TWIN

from cases.execute import check, on_bench, on_model
from vfr._abi import Verdict as V
from vfr.spec import Router

GUEST, MAC, GATEWAY = TWIN
LAN_HOST, OUTSIDE = NODES["lan"].ip, str(world.OUTSIDE)
OPEN = "allow any -> any\nallow any -> lan\nallow lan -> any\n"
ETHER = "allow web -> db ether 0x88a2\n"


@dataclass(frozen=True, slots=True)
class Clone:
    """`before` come first and pass; None for `becomes` is silence."""

    sentence: str
    sender: str
    packet: Packet
    verdict: V
    becomes: Packet | None = None
    before: tuple[tuple[str, Packet], ...] = ()
    rules: str = OPEN


def _sent(dst: str, payload: Packet, src: str = GUEST, mac: str = MAC, **fields: object) -> Packet:
    return (
        Ether(src=mac, dst=GATEWAY_MAC)
        / IP(src=src, dst=dst, **{"ttl": 64, "id": 7, "flags": "DF", **fields})
        / payload
    )


def _got(src: str, payload: Packet, **fields: object) -> Packet:
    return (
        Ether(src=GATEWAY_MAC, dst=MAC)
        / IP(src=src, dst=GUEST, **{"ttl": 63, "id": 7, "flags": "DF", **fields})
        / payload
    )


def _from(sender: str, dst: str, payload: Packet, src: str | None = None, **fields: object) -> Packet:
    node = NODES[sender]
    head = IP(src=src or node.ip, dst=dst, **{"ttl": 64, "id": 7, "flags": "DF", **fields})
    return Ether(src=node.mac, dst=GATEWAY_MAC) / head / payload


def _out(payload: Packet, **fields: object) -> Packet:
    """On the LAN: MACs are the kernel's to fill in later."""
    return (
        Ether(src=MAC, dst=GATEWAY_MAC)
        / IP(src=OUTSIDE, dst=LAN_HOST, **{"ttl": 63, "id": 7, "flags": "DF", **fields})
        / payload
    )


def _arp(asked: str, psrc: str = GUEST, hwsrc: str = MAC) -> Packet:
    return Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=hwsrc, psrc=psrc, pdst=asked)


def _arp_got(asked: str) -> Packet:
    return Ether(src=GATEWAY_MAC, dst=MAC) / ARP(op=2, hwsrc=GATEWAY_MAC, psrc=asked, hwdst=MAC, pdst=GUEST)


LOAD = Raw(b"hello")
WEB, DB, DOM0 = NODES["web"].ip, NODES["db"].ip, NODES["dom0"].ip
SYN = TCP(sport=16393, dport=80, seq=1000)
SYN_OUT = _sent(LAN_HOST, SYN)
PING = ICMP(id=16394, seq=1) / LOAD
QUERY = UDP(sport=16395, dport=53) / LOAD
DB_QUERY = UDP(sport=16401, dport=53) / LOAD
NEAR = UDP(sport=3000, dport=4000) / LOAD
BIG = Raw(b"x" * 1473)
QUOTE_OUT = IP(src=OUTSIDE, dst=LAN_HOST, ttl=60, id=7, flags="DF") / UDP(sport=16395, dport=53) / LOAD
QUOTE_SEEN = IP(src=GUEST, dst=LAN_HOST, ttl=60, id=7, flags="DF") / QUERY
UNREACHABLE = ICMP(type=3, code=3)
FIRST = UDP(sport=16395, dport=53, len=48, chksum=0x1234) / Raw(b"a" * 24)


def _refused(payload: Packet, kind: int, code: int, mtu: int = 0) -> Packet:
    """What the router tells the guest of its packet: it quotes what the guest sent."""
    head = IP(src=GATEWAY, dst=GUEST, ttl=64, id=0, flags="DF", tos=0xC0)
    error = ICMP(type=kind, code=code, nexthopmtu=mtu) / Raw(bytes(payload[IP])[:548])
    return Ether(src=GATEWAY_MAC, dst=MAC) / head / error


TRACED = _sent(LAN_HOST, UDP(sport=1, dport=2) / LOAD, ttl=1)
TRACED_DOM0 = _sent(GATEWAY, UDP(sport=1, dport=2) / LOAD, ttl=1)
TOO_LONG = _sent(LAN_HOST, UDP(sport=1, dport=2) / BIG)
TO_GATEWAY = _sent(GATEWAY, NEAR)

CASES = (
    Clone("TCP to the LAN", "web", SYN_OUT, V.TO_LAN, _out(SYN)),
    Clone("UDP to the LAN", "db", _sent(LAN_HOST, DB_QUERY), V.TO_LAN, _out(DB_QUERY)),
    Clone("ping to the LAN", "web", _sent(LAN_HOST, PING), V.TO_LAN, _out(PING)),
    Clone(
        "the LAN's answer comes to the guest's address",
        "lan",
        _from("lan", OUTSIDE, TCP(sport=80, dport=16393, flags="SA", seq=5, ack=1001)),
        V.TO_DOMAIN,
        _got(LAN_HOST, TCP(sport=80, dport=16393, flags="SA", seq=5, ack=1001)),
        (("web", SYN_OUT),),
    ),
    Clone(
        "a forward leads to the guest's address",
        "lan",
        _from("lan", OUTSIDE, TCP(sport=40000, dport=2203, seq=9)),
        V.TO_DOMAIN,
        _got(LAN_HOST, TCP(sport=40000, dport=22, seq=9)),
    ),
    Clone(
        "clone to clone, by the address that the router knows it by",
        "web",
        _sent(DB, NEAR),
        V.TO_DOMAIN,
        _got(WEB, NEAR),
    ),
    Clone(
        "clone to a domain with another MAC alone",
        "web",
        _sent(NODES["odd"].ip, NEAR),
        V.TO_DOMAIN,
        Ether(src=GATEWAY_MAC, dst=MAC) / IP(src=WEB, dst=NODES["odd"].ip, ttl=63, id=7, flags="DF") / NEAR,
    ),
    Clone(
        "what a guest takes for its gateway is domain 0",
        "web",
        TO_GATEWAY,
        V.TO_DOM0,
        Ether(src=GATEWAY_MAC, dst=NODES["dom0"].mac) / IP(src=WEB, dst=DOM0, ttl=63, id=7, flags="DF") / NEAR,
    ),
    Clone(
        "domain 0 answers as the guest's gateway",
        "dom0",
        _from("dom0", WEB, UDP(sport=4000, dport=3000) / LOAD),
        V.TO_DOMAIN,
        _got(GATEWAY, UDP(sport=4000, dport=3000) / LOAD),
        (("web", TO_GATEWAY),),
    ),
    Clone("the gateway by another address than the guest's", "web", _sent(DOM0, NEAR), V.DROP_NO_DOMAIN),
    Clone("ARP for what the guest takes for its gateway", "web", _arp(GATEWAY), V.ANSWERED, _arp_got(GATEWAY)),
    Clone("ARP for a peer by the router's address", "db", _arp(WEB), V.ANSWERED, _arp_got(WEB)),
    Clone("ARP for the gateway by the router's address", "web", _arp(DOM0), V.DROP_ARP_UNANSWERED),
    Clone("ARP for its own address as the router knows it", "web", _arp(WEB), V.DROP_ARP_UNANSWERED),
    Clone("ARP for its own address", "web", _arp(GUEST), V.DROP_ARP_OWN),
    Clone("ARP in the name of its router's side", "web", _arp(GATEWAY, psrc=WEB), V.DROP_ARP_SENDER),
    Clone("ARP by its router's MAC", "web", _arp(GATEWAY, hwsrc=NODES["web"].mac), V.DROP_ARP_SENDER),
    Clone("a clone that uses its own router-side address", "web", _sent(LAN_HOST, QUERY, src=WEB), V.DROP_SRC_IP),
    Clone("a clone that uses another's", "web", _sent(LAN_HOST, QUERY, src=DB), V.DROP_SRC_IP),
    Clone("a clone that uses its own router-side MAC", "web", tcp("web", "lan", 1, 2), V.DROP_SRC_MAC),
    Clone("a clone that uses another's MAC", "web", udp("db", "lan", 1, 2), V.DROP_SRC_MAC),
    Clone("to itself", "web", _sent(GUEST, NEAR), V.DROP_MARTIAN),
    Clone("to itself by its router-side address", "web", _sent(WEB, NEAR), V.DROP_MARTIAN),
    Clone("a protocol that is not read", "web", _sent(DB, LOAD, proto=136), V.DROP_PROTOCOL),
    Clone("a protocol that is not read, to a clone", "dom0", _from("dom0", WEB, LOAD, proto=132), V.DROP_PROTOCOL),
    Clone(
        "from a LAN host that has the guest's address",
        "lan",
        _from("lan", OUTSIDE, TCP(sport=4, dport=2202), src=GUEST),
        V.DROP_MARTIAN,
    ),
    Clone(
        "from a LAN host that has the address of the guest's gateway",
        "lan",
        _from("lan", OUTSIDE, TCP(sport=4, dport=2202), src=GATEWAY),
        V.DROP_MARTIAN,
    ),
    Clone("traceroute: the error quotes what the guest sent", "web", TRACED, V.DROP_TTL, _refused(TRACED, 11, 0)),
    Clone("traceroute to the gateway", "db", TRACED_DOM0, V.DROP_TTL, _refused(TRACED_DOM0, 11, 0)),
    Clone("path MTU", "web", TOO_LONG, V.DROP_TOO_BIG, _refused(TOO_LONG, 3, 4, 1500)),
    Clone(
        "an ICMP error from the LAN quotes what the guest sent",
        "lan",
        _from("lan", OUTSIDE, UNREACHABLE / QUOTE_OUT),
        V.TO_DOMAIN,
        _got(LAN_HOST, UNREACHABLE / QUOTE_SEEN),
        (("web", _sent(LAN_HOST, QUERY)),),
    ),
    Clone(
        "a clone's ICMP error to a clone: both ends of the quote",
        "db",
        _sent(WEB, UNREACHABLE / IP(src=WEB, dst=GUEST, ttl=63, id=7, flags="DF") / NEAR),
        V.TO_DOMAIN,
        _got(DB, UNREACHABLE / IP(src=GUEST, dst=DB, ttl=63, id=7, flags="DF") / NEAR),
        (("web", _sent(DB, NEAR)),),
    ),
    Clone(
        "domain 0's ICMP error: the quoted target is the guest's gateway",
        "dom0",
        _from("dom0", WEB, UNREACHABLE / IP(src=WEB, dst=DOM0, ttl=63, id=7, flags="DF") / NEAR),
        V.TO_DOMAIN,
        _got(GATEWAY, UNREACHABLE / IP(src=GUEST, dst=GATEWAY, ttl=63, id=7, flags="DF") / NEAR),
        (("web", TO_GATEWAY),),
    ),
    Clone(
        "a clone's ICMP error to domain 0, whom it knows for its gateway",
        "web",
        _sent(GATEWAY, UNREACHABLE / IP(src=GATEWAY, dst=GUEST, ttl=63, id=7, flags="DF") / NEAR),
        V.TO_DOM0,
        Ether(src=GATEWAY_MAC, dst=NODES["dom0"].mac)
        / IP(src=WEB, dst=DOM0, ttl=63, id=7, flags="DF")
        / UNREACHABLE
        / IP(src=DOM0, dst=WEB, ttl=63, id=7, flags="DF")
        / NEAR,
        (("dom0", _from("dom0", WEB, NEAR)),),
    ),
    Clone(
        "an error that quotes the router-side address is none of the guest's",
        "web",
        _sent(DB, UNREACHABLE / IP(src=DB, dst=WEB, ttl=63, id=7, flags="DF") / NEAR),
        V.DROP_ICMP_ERROR,
        before=(("db", _sent(WEB, NEAR)),),
    ),
    Clone(
        "a first fragment: the datagram's checksum changes with the address",
        "web",
        _sent(DB, FIRST, flags="MF"),
        V.TO_DOMAIN,
    ),
    Clone(
        "a later fragment follows",
        "web",
        _sent(DB, Raw(b"b" * 16), flags=0, frag=4, proto=17),
        V.TO_DOMAIN,
        _got(WEB, Raw(b"b" * 16), flags=0, frag=4, proto=17),
        (("web", _sent(DB, FIRST, flags="MF")),),
    ),
    Clone(
        "UDP without a checksum stays without",
        "web",
        _sent(DB, UDP(sport=1, dport=2, chksum=0) / LOAD),
        V.TO_DOMAIN,
        _got(WEB, UDP(sport=1, dport=2, chksum=0) / LOAD),
    ),
    Clone(
        "a hairpin: another clone by its forward",
        "web",
        _sent(OUTSIDE, TCP(sport=16393, dport=2203, seq=1)),
        V.TO_DOMAIN,
        _got(OUTSIDE, TCP(sport=16393, dport=22, seq=1)),
    ),
    Clone(
        "raw Ethernet goes by the router's MACs",
        "web",
        Ether(src=MAC, dst=NODES["db"].mac, type=0x88A2) / Raw(b"x" * 46),
        V.TO_DOMAIN,
        Ether(src=NODES["web"].mac, dst=MAC, type=0x88A2) / Raw(b"x" * 46),
        rules=ETHER,
    ),
    Clone(
        "raw Ethernet to the MAC that all clones have finds nobody",
        "web",
        Ether(src=MAC, dst=MAC, type=0x88A2) / Raw(b"x" * 46),
        V.DROP_ETHERTYPE,
        rules=ETHER,
    ),
)


def _router(case: Clone) -> Router:
    return world.router(case.rules, clones=True)


@pytest.mark.inv(1)
@pytest.mark.inv(11)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_model(case: Clone) -> None:
    check(case, on_model(case, _router(case)))


@pytest.mark.inv(1)
@pytest.mark.inv(11)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_object(case: Clone, bench: Bench) -> None:
    seen = on_bench(bench, case, _router(case))
    check(case, seen)
    assert replace(on_model(case, _router(case)), target=seen.target) == seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_native(case: Clone, native: Native) -> None:
    seen = on_bench(native, case, _router(case))
    check(case, seen)
    assert replace(on_model(case, _router(case)), target=seen.target) == seen
