"""RFC 1812, requirements for IPv4 routers: what concerns a router between a host's guests and its LAN.
docs/rfc.md is the list."""

from __future__ import annotations

from itertools import product

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_LSRR, IPOption_RR, IPOption_SSRR
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench, Outcome
from support.frames import LAN_ADDRESS, echo, ether, ip, tcp, udp
from support.sides import sides
from support.world import GATEWAY_MAC, NODES

from vfr._abi import Limit
from vfr.spec.model import LAN

WEB = world.SLOTS["web"]
# One packet of each way through the router that begins a conversation.
WAYS: dict[str, tuple[int, Packet]] = {
    "TCP out": (WEB, tcp("web", "lan", 5000, 80)),
    "UDP out": (WEB, udp("web", "lan", 5000, 80)),
    "echo out": (WEB, echo("web", "lan", 5000)),
    "between domains": (WEB, tcp("web", "db", 3000, 80)),
    "domain 0 to a domain": (0, tcp("dom0", "web", 3000, 22)),
    "in by a forward": (LAN, tcp("lan", LAN_ADDRESS, 40000, 2202)),
}


def _send(bench: Bench, way: str, **fields: object) -> Outcome:
    sender, packet = WAYS[way]
    changed = Ether(bytes(packet))
    for name, value in fields.items():
        setattr(changed[IP], name, value)
    for name in {"chksum", "ihl", "len"} - fields.keys():
        delattr(changed[IP], name)
    return bench.send(sender, bytes(changed))


@pytest.mark.parametrize("way", WAYS)
def test_s5_3_1_every_way_takes_one_off_the_ttl(bench: Bench, way: str) -> None:
    """And the header's checksum is right afterwards."""
    sides(bench)
    for ttl in (2, 64, 255):
        frame = _send(bench, way, ttl=ttl).frame
        assert frame is not None
        header = Ether(frame)[IP]
        right = IP(bytes(header)[:20])
        del right.chksum
        assert (header.ttl, header.chksum) == (ttl - 1, IP(bytes(right)).chksum)


def test_s5_3_1_a_ttl_that_ends_here_ends_the_packet(bench: Bench) -> None:
    sides(bench)
    for way, ttl in product(WAYS, (0, 1)):
        assert _send(bench, way, ttl=ttl).verdict.name == "DROP_TTL", way


HEADERS: dict[str, dict[str, object]] = {
    "IP version 6": {"version": 6},
    "a header of four words": {"ihl": 4},
    "a total length beyond the frame": {"len": 1400},
    "a total length below the header": {"len": 19},
    "a wrong checksum": {"chksum": 0x1234},
}


@pytest.mark.parametrize("what", HEADERS)
def test_s5_2_2_a_bad_header_is_dropped_in_silence(bench: Bench, what: str) -> None:
    sides(bench)
    for way, (sender, _) in WAYS.items():
        seen = _send(bench, way, **HEADERS[what])
        if sender == LAN and what == "a header of four words":
            # Where its ports would be is no port of ours: the host's stack has it, and drops it.
            assert seen.verdict.name == "NOT_OURS"
        else:
            assert (seen.verdict.name, seen.frame) == ("DROP_IP_HEADER", None), way


def test_s5_3_7_martians_are_dropped(bench: Bench) -> None:
    """As a target from inside, and as a source from outside."""
    sides(bench)
    for address in ("0.0.0.1", "127.0.0.1", "240.0.0.1", "255.255.255.254"):
        for seen in (_send(bench, "UDP out", dst=address), _send(bench, "in by a forward", src=address)):
            assert (seen.verdict.name, seen.frame) == ("DROP_MARTIAN", None), address


def test_s5_3_5_broadcast_and_multicast_go_nowhere(bench: Bench) -> None:
    """Limited, directed and all-zeros broadcast, and multicast: in silence."""
    sides(bench)
    for address in ("224.0.0.251", "239.255.255.250", "255.255.255.255", "192.0.2.255", "192.0.2.0"):
        seen = _send(bench, "UDP out", dst=address)
        assert (seen.verdict.name, seen.frame) == ("DROP_MULTICAST", None), address


def test_s5_3_4_what_came_by_link_layer_broadcast_is_not_forwarded(bench: Bench) -> None:
    sides(bench)
    for mac in ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb"):
        packet = ether("web", IP(src=NODES["web"].ip, dst="192.0.2.11") / UDP(sport=1, dport=2), dst=mac)
        seen = bench.send(WEB, bytes(packet))
        assert (seen.verdict.name, seen.frame) == ("DROP_GROUP_MAC", None), mac


def test_s5_3_8_a_domain_speaks_for_itself_only(bench: Bench) -> None:
    sides(bench)
    for source in ("169.254.1.3", "192.0.2.11", "198.51.100.9", "0.0.0.0", "224.0.0.1"):
        seen = _send(bench, "UDP out", src=source)
        assert (seen.verdict.name, seen.frame) == ("DROP_SRC_IP", None), source


OPTIONS = {"record route": IPOption_RR(), "loose": IPOption_LSRR(routers=["192.0.2.9"]), "strict": IPOption_SSRR()}


@pytest.mark.parametrize("option", OPTIONS)
def test_s5_3_13_options_are_dropped_by_name(bench: Bench, option: str) -> None:
    """What is not kept, as RFC 7126 advises."""
    sides(bench)
    for sender, slot, to, port in (("web", WEB, "lan", 80), ("lan", LAN, LAN_ADDRESS, 2202)):
        packet = ip(sender, to, options=[OPTIONS[option]]) / TCP(sport=40000, dport=port)
        seen = bench.send(slot, bytes(packet))
        assert seen.frame is None and seen.verdict.name in ("DROP_IP_OPTIONS", "DROP_SOURCE_ROUTE")


def test_s4_2_1_what_is_dropped_is_counted_by_its_reason(bench: Bench) -> None:
    def count(row: int, name: str) -> int:
        return bench.fastpath.counters([row])[row].get(name, (0, 0))[0]

    sides(bench)
    before = [count(WEB, "DROP_TTL"), count(int(Limit.ROW_LAN), "DROP_IP_HEADER")]
    for _ in range(3):
        _send(bench, "UDP out", ttl=1)
        _send(bench, "in by a forward", chksum=1)
    after = [count(WEB, "DROP_TTL"), count(int(Limit.ROW_LAN), "DROP_IP_HEADER")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3]


def test_s5_2_1_what_goes_through_is_otherwise_unchanged(bench: Bench) -> None:
    """Type of service, DF, TCP's sequence numbers, window and options, and every byte of data."""
    packet = ip("web", "db", tos=0xB8, flags="DF", id=0) / TCP(
        sport=3000, dport=80, flags="S", seq=77, window=4242, options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]
    )
    frame = sides(bench).bench.send(WEB, bytes(packet / Raw(bytes(range(256))))).frame
    assert frame is not None
    sent, seen = Ether(bytes(packet / Raw(bytes(range(256))))), Ether(frame)
    sent.src, sent.dst, sent[IP].ttl = GATEWAY_MAC, NODES["db"].mac, sent[IP].ttl - 1
    del sent[IP].chksum
    assert frame.hex() == bytes(sent).hex() and seen[IP].tos == 0xB8
