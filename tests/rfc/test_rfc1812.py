"""RFC 1812, requirements for IPv4 routers: what concerns a router between a host's guests and its LAN.
docs/rfc.md is the list."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_RR, IPOption_SSRR
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench, Outcome
from support.frames import LAN_ADDRESS, echo, ether, ip, tcp, udp
from support.sides import RULES, outside_port, quoted, sides, whole
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


def _error_about(frame: bytes | None) -> Packet:
    assert frame is not None
    return whole(frame)


@pytest.mark.parametrize(("data", "length"), [(10, 66), (1400, 576)])
def test_s4_3_2_3_an_error_quotes_what_fits_into_576_bytes(bench: Bench, data: int, length: int) -> None:
    """As its sender sent it."""
    packet = udp("web", "lan", 5000, 80, b"x" * data, ttl=1)
    frame = sides(bench).bench.send(WEB, bytes(packet)).frame
    assert _error_about(frame)[IP].len == length
    assert frame is not None and frame[42:] == bytes(packet)[14 : 14 + length - 28]


def test_s4_3_2_5_an_error_has_precedence_6(bench: Bench) -> None:
    sides(bench)
    assert _error_about(_send(bench, "UDP out", ttl=1, tos=0x28).frame)[IP].tos >> 5 == 6


def test_s4_3_2_7_no_error_is_sent_about_these(bench: Bench) -> None:
    """Each with a TTL that ends here: about an ordinary packet like it one would be sent."""
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    about = nat.answer("udp", outside_port(sent)).frame
    assert about is not None
    assert bench.send(WEB, bytes(udp("web", "lan", 5000, 80, b"x" * 24, flags="MF", id=9))).verdict.name == "TO_LAN"
    own = NODES["web"].ip
    silent = {
        "an ICMP error": ip("web", "lan", ttl=1) / ICMP(type=3, code=3) / Raw(about[14:42]),
        "a later fragment": ip("web", "lan", ttl=1, id=9, frag=4, proto=17) / Raw(b"x" * 16),
        "multicast": udp("web", "224.0.0.251", 1, 2, ttl=1),
        "the limited broadcast": udp("web", "255.255.255.255", 1, 2, ttl=1),
        "a directed broadcast": udp("web", "192.0.2.255", 1, 2, ttl=1),
        "a link-layer broadcast": ether("web", IP(src=own, dst="192.0.2.11", ttl=1) / UDP(), dst="ff:ff:ff:ff:ff:ff"),
        "a source of nobody": udp("web", "lan", 1, 2, ttl=1, src="0.0.0.0"),
        "a loopback source": udp("web", "lan", 1, 2, ttl=1, src="127.0.0.1"),
        "a broadcast source": udp("web", "lan", 1, 2, ttl=1, src="255.255.255.255"),
    }
    for what, packet in silent.items():
        seen = bench.send(WEB, bytes(packet))
        assert seen.verdict.name.startswith("DROP_") and seen.frame is None, what
    assert bench.send(WEB, bytes(udp("web", "lan", 5000, 80, ttl=1))).frame is not None


def test_s4_3_2_8_errors_come_at_a_rate_per_domain(bench: Bench) -> None:
    sides(bench, limits=replace(world.LIMITS, errors_per_s=5))
    told = [_send(bench, "UDP out", ttl=1).frame is not None for _ in range(20)]
    assert told[0] and not told[-1] and 5 <= told.count(True) <= 7, "a second's worth at once"
    assert bench.send(2, bytes(udp("db", "lan", 1, 2, ttl=1))).frame is not None, "another domain has its own rate"
    bench.fastpath.advance_clock(1)
    assert _send(bench, "UDP out", ttl=1).frame is not None


def test_s4_3_3_1_unreachable_where_it_is_due(bench: Bench) -> None:
    """No uplink: network unreachable; the other codes are in RFC 5508 REQ-8, 4787 REQ-13 and 6888 REQ-11B."""
    sides(bench, outside=None)
    seen = _send(bench, "UDP out")
    assert seen.verdict.name == "DROP_NO_UPLINK"
    error = _error_about(seen.frame)
    assert (error[ICMP].type, error[ICMP].code, error[IP].src) == (3, 0, NODES["dom0"].ip)


def test_s4_3_3_4_time_exceeded_is_sent_to_the_sender(bench: Bench) -> None:
    """From the address of the side it came in by; what it quotes is the packet as it came."""
    sides(bench)
    for way, (sender, packet) in WAYS.items():
        seen = _send(bench, way, ttl=1)
        error = _error_about(seen.frame)
        assert (error[ICMP].type, error[ICMP].code) == (11, 0), way
        assert error[IP].src == (LAN_ADDRESS if sender == LAN else NODES["dom0"].ip), way
        quote = quoted(error)
        assert (error[IP].dst, quote.src, quote.dst) == (packet[IP].src, packet[IP].src, packet[IP].dst), way


def test_s4_3_3_6_domain_0_answers_a_ping_by_rule(bench: Bench) -> None:
    """Its answer is the host's own; here it is let through, and by default it is not."""
    ping = bytes(echo("web", "dom0", 5))
    assert sides(bench).bench.send(WEB, ping).verdict.name == "DROP_POLICY"
    assert sides(bench, RULES + "allow web -> dom0 icmp\n").bench.send(WEB, ping).verdict.name == "TO_DOM0"


def test_s5_2_7_2_a_redirect_bends_no_way(bench: Bench) -> None:
    """Not from the LAN, whichever packet and address it is about, nor from a domain. An echo to the host is let by."""
    router = sides(bench).bench
    for quoted_source, to in product((LAN_ADDRESS, "192.0.2.77"), (LAN_ADDRESS, "192.0.2.77")):
        about = Raw(bytes(IP(src=quoted_source, dst="198.51.100.9") / ICMP(type=0)))
        redirect = ip("lan", to) / ICMP(type=5, code=1, gw="192.0.2.12") / about
        assert router.send(LAN, bytes(redirect)).verdict.name == "DROP_ICMP_TYPE"
    own = ip("web", "db") / ICMP(type=5, code=1, gw=NODES["web"].ip) / Raw(bytes(IP(src=NODES["db"].ip) / ICMP()))
    assert router.send(WEB, bytes(own)).verdict.name == "DROP_ICMP_TYPE"
    assert router.send(LAN, bytes(echo("lan", LAN_ADDRESS, 7))).verdict.name == "NOT_OURS"
