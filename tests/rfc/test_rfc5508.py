"""RFC 5508, NAT for ICMP: a test for each requirement that packets can show. docs/rfc.md is the list."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import checksum
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, ip, tcp
from support.sides import PROTOCOLS, QUERIES, ROUTER, RULES, Protocol, outside_port, quoted, quoted_ports, sides, whole
from support.world import NODES

from vfr.spec.model import LAN

ERRORS = [(3, 1), (3, 3), (3, 4), (11, 0)]
TIMES: dict[Protocol, int] = {"icmp": 60, "stamp": 60, "udp": 300, "tcp": 240}
TYPES: dict[Protocol, tuple[int, int]] = {"icmp": (8, 0), "stamp": (13, 14)}


def _l4(frame: bytes) -> bytes:
    """What follows the IP header, without checksum and identifier."""
    return frame[34:36] + frame[40:]


@pytest.mark.parametrize("query", QUERIES)
def test_req1_a_query_from_inside_and_its_answer_pass(bench: Bench, query: Protocol) -> None:
    nat = sides(bench)
    sent = nat.send(query, 77)
    assert sent.verdict.name == "TO_LAN" and sent.frame is not None
    assert Ether(sent.frame)[ICMP].type == TYPES[query][0]
    assert checksum(sent.frame[34:]) == 0 and len(_l4(sent.frame)) > 8
    seen = nat.answer(query, outside_port(sent.frame))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    assert (Ether(seen.frame)[ICMP].type, Ether(seen.frame)[ICMP].id) == (TYPES[query][1], 77)
    assert checksum(seen.frame[34:]) == 0


def test_req1_one_query_is_not_answered_by_the_other(bench: Bench) -> None:
    """Under one identifier both may be asked, and have one mapping; each answer finds its own."""
    nat = sides(bench)
    outside = nat.out("icmp", 77)
    assert outside is not None and nat.back("stamp", outside) is None
    assert nat.out("stamp", 77) == outside
    assert (nat.back("stamp", outside), nat.back("icmp", outside)) == (77, 77)


@pytest.mark.parametrize("query", QUERIES)
def test_req1_local_policy_may_override_it(bench: Bench, query: Protocol) -> None:
    nat = sides(bench, RULES + "deny web -> lan icmp\n")
    assert nat.send(query, 77).verdict.name == "DROP_POLICY"
    assert nat.out(query, 77, domain="db") is not None


@pytest.mark.parametrize("query", QUERIES)
def test_req1_a_query_from_outside_begins_nothing(bench: Bench, query: Protocol) -> None:
    nat = sides(bench)
    outside = nat.out(query, 77)
    assert outside is not None
    asked = ip("lan", LAN_ADDRESS) / ICMP(type=TYPES[query][0], id=outside, seq=1)
    assert nat.bench.send(LAN, bytes(asked)).verdict.name == "NOT_OURS", "it is the host that is asked"


@pytest.mark.parametrize("query", QUERIES)
def test_req1a_same_identifier_for_every_remote(bench: Bench, query: Protocol) -> None:
    nat = sides(bench)
    seen = {nat.out(query, 77, (address, 0)) for address in ("192.0.2.11", "192.0.2.12", "198.51.100.9")}
    assert len(seen) == 1 and None not in seen


@pytest.mark.parametrize("query", QUERIES)
def test_req1a_two_queries_with_one_identifier_do_not_meet(bench: Bench, query: Protocol) -> None:
    nat = sides(bench)
    one, other = nat.out(query, 77), nat.out("icmp", 77, domain="db")
    assert None not in (one, other) and one != other


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(("silence", "lives"), [(59, True), (61, False)])
def test_req2_a_query_may_be_answered_for_sixty_seconds(
    bench: Bench, query: Protocol, silence: int, lives: bool
) -> None:
    nat = sides(bench)
    outside = nat.out(query, 77)
    assert outside is not None
    nat.let_pass(silence)
    assert (nat.back(query, outside) == 77) == lives


def _bad(frame: bytes, at: int) -> bytes:
    """The frame with a byte changed."""
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


def _error(about: bytes, kind: int = 3, code: int = 3) -> bytes:
    return bytes(ip("lan", LAN_ADDRESS, src=ROUTER) / ICMP(type=kind, code=code) / Raw(about))


def test_req3_an_error_with_a_wrong_checksum_is_dropped(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    error = _error(sent[14:42])
    seen = nat.bench.send(LAN, _bad(error, 36))
    assert (seen.verdict.name, seen.frame) == ("DROP_ICMP_CHECKSUM", None)
    assert nat.bench.send(LAN, error).verdict.name == "TO_DOMAIN"


def test_req3a_a_quoted_header_with_a_wrong_checksum_is_dropped(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    seen = nat.bench.send(LAN, _error(_bad(sent[14:42], 10)))
    assert (seen.verdict.name, seen.frame) == ("DROP_ICMP_CHECKSUM", None)


def test_req3b_options_in_the_quoted_header_are_stepped_over(bench: Bench) -> None:
    """A router on the way may have put them there."""
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    about = IP(src=LAN_ADDRESS, dst="192.0.2.11", options=[IPOption_NOP()] * 8) / UDP(sport=outside, dport=80)
    seen = nat.bench.send(LAN, _error(bytes(about)))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    quote = quoted(whole(seen.frame))
    assert (quote.ihl, quote.src, quote[UDP].sport, quote[UDP].dport) == (7, NODES["web"].ip, 5000, 80)


def test_req3c_the_quoted_transport_checksum_is_not_judged(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    seen = nat.bench.send(LAN, _error(_bad(sent, 40)[14:]))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    assert quoted(whole(seen.frame))[UDP].sport == 5000


def test_req3d_extensions_pass_as_they_are(bench: Bench) -> None:
    """RFC 4884: the quote is padded to 128 bytes, and an MPLS label stack of RFC 4950 follows."""
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    extension = bytes.fromhex("2000 0000 0008 0101 0001 0140".replace(" ", ""))
    extension = extension[:2] + checksum(extension).to_bytes(2, "big") + extension[4:]
    body = sent[14:].ljust(128, b"\0") + extension
    head = bytes([11, 0, 0, 0, 0, len(body[:128]) // 4, 0, 0])
    head = head[:2] + checksum(head + body).to_bytes(2, "big") + head[4:]
    seen = nat.bench.send(LAN, bytes(ip("lan", LAN_ADDRESS, src=ROUTER, proto=1) / Raw(head + body)))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    whole(seen.frame)
    assert seen.frame[-len(extension) :] == extension
    assert (seen.frame[39], quoted(Ether(seen.frame))[UDP].sport) == (32, 5000)


PASSED_ON = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)]


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "stamp"])
def test_req4_an_error_from_outside_is_translated(bench: Bench, protocol: Protocol) -> None:
    """The quote names the domain again, as the domain sent it; type, code and source are as they were."""
    nat = sides(bench)
    sent = nat.send(protocol, 5000).frame
    assert sent is not None
    for kind, code in PASSED_ON:
        seen = nat.error(sent, kind, code)
        assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None, (kind, code)
        packet = whole(seen.frame)
        assert (packet[IP].src, packet[IP].dst) == (ROUTER, NODES["web"].ip)
        assert (packet[ICMP].type, packet[ICMP].code) == (kind, code)
        quote = quoted(packet)
        assert (quote.src, quote.dst) == (NODES["web"].ip, "192.0.2.11")
        assert quoted_ports(packet)[0] == 5000


def test_req4_an_error_about_no_session_is_dropped(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    nat.let_pass(301)
    assert nat.error(sent, 3, 3).frame is None, "of a session that was"
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    other = Ether(sent)
    other[IP].dst = "192.0.2.12"
    del other[IP].chksum
    seen = nat.error(bytes(other), 3, 3)
    assert (seen.verdict.name, seen.frame) == ("DROP_ICMP_ERROR", None), "to a remote never spoken to"


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "stamp"])
def test_req5_an_error_from_inside_is_translated(bench: Bench, protocol: Protocol) -> None:
    """The quote names the outside address and port again, and so does the error itself its source."""
    nat = sides(bench)
    outside = nat.out(protocol, 5000)
    assert outside is not None
    got = nat.answer(protocol, outside).frame
    assert got is not None
    for kind, code in PASSED_ON:
        seen = nat.complain(got, kind, code)
        assert seen.verdict.name == "TO_LAN" and seen.frame is not None, (kind, code)
        packet = whole(seen.frame)
        assert (packet[IP].src, packet[IP].dst) == (LAN_ADDRESS, "192.0.2.11")
        assert (packet[ICMP].type, packet[ICMP].code) == (kind, code)
        quote = quoted(packet)
        assert (quote.src, quote.dst) == ("192.0.2.11", LAN_ADDRESS)
        assert quoted_ports(packet)[1] == outside


def test_req5_an_error_from_inside_about_no_session_is_dropped(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    got = nat.answer("udp", outside).frame
    assert got is not None
    nat.let_pass(301)
    assert nat.complain(got, 3, 3).verdict.name == "DROP_ICMP_ERROR"


def test_req7_an_error_about_a_hairpinned_packet_finds_its_way_back(bench: Bench) -> None:
    nat = sides(bench, RULES + "allow web -> db tcp 22\n")
    got = nat.send("tcp", 5000, (LAN_ADDRESS, 2203))
    assert got.verdict.name == "TO_DOMAIN" and got.frame is not None
    seen = nat.complain(got.frame, 3, 13, "db")
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    packet = whole(seen.frame)
    quote = quoted(packet)
    assert (packet[IP].src, packet[IP].dst) == (LAN_ADDRESS, NODES["web"].ip)
    assert (quote.src, quote.dst) == (NODES["web"].ip, LAN_ADDRESS)
    assert quoted_ports(packet) == (5000, 2203)


def test_req8_a_reject_rule_is_answered_with_code_13(bench: Bench) -> None:
    nat = sides(bench, RULES + "reject web -> lan udp 25\ndeny web -> lan udp 26\n")
    seen = nat.send("udp", 5000, ("192.0.2.11", 25))
    assert seen.verdict.name == "DROP_REJECTED" and seen.frame is not None
    packet = whole(seen.frame)
    assert (packet[ICMP].type, packet[ICMP].code, packet[IP].dst) == (3, 13, NODES["web"].ip)
    assert (quoted(packet).src, quoted(packet)[UDP].sport) == (NODES["web"].ip, 5000)
    denied = nat.send("udp", 5000, ("192.0.2.11", 26))
    assert (denied.verdict.name, denied.frame) == ("DROP_POLICY", None), "a denial is silent"


def test_req9_the_lan_is_told_of_no_quota(bench: Bench) -> None:
    nat = sides(bench)
    for port in range(40000, 40000 + world.QUOTA):
        for sender, packet in (
            (LAN, tcp("lan", LAN_ADDRESS, port, 2202)),
            (1, tcp("web", "lan", 22, port, "SA", 1001)),
            (LAN, tcp("lan", LAN_ADDRESS, port, 2202, "A", 1001)),
        ):
            assert nat.bench.send(sender, bytes(packet)).verdict.name in ("TO_DOMAIN", "TO_LAN")
    refused = nat.bench.send(LAN, bytes(tcp("lan", LAN_ADDRESS, 50000, 2202)))
    assert (refused.verdict.name, refused.frame) == ("DROP_SESSIONS_FULL", None)


@pytest.mark.parametrize("protocol", TIMES)
def test_req6_an_error_neither_refreshes_nor_deletes(bench: Bench, protocol: Protocol) -> None:
    nat = sides(bench)
    for silence, lives in ((TIMES[protocol] - 1, True), (TIMES[protocol] + 1, False)):
        sent = {inside: nat.send(protocol, inside).frame for inside in (500, 501, 502, 503)}
        nat.let_pass(silence / 2)
        for (kind, code), frame in zip(ERRORS, sent.values(), strict=True):
            assert frame is not None
            nat.error(frame, kind, code)
        nat.let_pass(silence / 2)
        for inside, frame in sent.items():
            assert frame is not None
            assert (nat.back(protocol, outside_port(frame)) == inside) == lives
        nat.let_pass(10_000)


def test_req10c_what_should_not_be_supported_is_not(bench: Bench) -> None:
    """Source quench, information and address mask requests."""
    nat = sides(bench)
    frame = nat.send("udp", 5000).frame
    assert frame is not None
    for kind in (4, 15, 16, 17, 18):
        packet = ip("web", "lan") / ICMP(type=kind) / Raw(frame[14:42])
        seen = nat.bench.send(1, bytes(packet))
        assert seen.frame is None and seen.verdict.name in ("DROP_ICMP_ERROR", "DROP_ICMP_TYPE")
        assert nat.error(frame, kind, 0).verdict.name in ("DROP_ICMP_ERROR", "DROP_ICMP_TYPE", "NOT_OURS")


def test_req11_other_icmp_is_dropped_by_name(bench: Bench) -> None:
    nat = sides(bench)
    for kind in (5, 9, 10, 30, 40, 42):
        packet = ip("web", "lan") / ICMP(type=kind) / Raw(b"x" * 12)
        assert nat.bench.send(1, bytes(packet)).verdict.name == "DROP_ICMP_TYPE", kind
