"""RFC 5508, NAT for ICMP: a test for each requirement that packets can show. docs/rfc.md is the list."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bench import Bench
from support.frames import LAN_ADDRESS, ip
from support.sides import RULES, Protocol, outside_port, sides

from vfr.spec.model import LAN

ERRORS = [(3, 1), (3, 3), (3, 4), (11, 0)]
TIMES: dict[Protocol, int] = {"icmp": 60, "udp": 300, "tcp": 240}


def test_req1_a_query_from_inside_and_its_answer_pass(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("icmp", 77)
    assert sent.verdict.name == "TO_LAN" and sent.frame is not None
    assert Ether(sent.frame)[ICMP].type == 8 and bytes(Ether(sent.frame)[Raw]) == b"abcdefgh"
    seen = nat.answer("icmp", outside_port(sent.frame))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    assert (Ether(seen.frame)[ICMP].type, Ether(seen.frame)[ICMP].id) == (0, 77)


def test_req1_local_policy_may_override_it(bench: Bench) -> None:
    nat = sides(bench, RULES + "deny web -> lan icmp\n")
    assert nat.send("icmp", 77).verdict.name == "DROP_POLICY"
    assert nat.out("icmp", 77, domain="db") is not None


def test_req1_a_query_from_outside_begins_nothing(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("icmp", 77)
    assert outside is not None
    query = ip("lan", LAN_ADDRESS) / ICMP(type=8, id=outside, seq=1) / Raw(b"abcdefgh")
    assert nat.bench.send(LAN, bytes(query)).verdict.name == "NOT_OURS", "it is the host that is pinged"


def test_req1a_same_identifier_for_every_remote(bench: Bench) -> None:
    nat = sides(bench)
    seen = {nat.out("icmp", 77, (address, 0)) for address in ("192.0.2.11", "192.0.2.12", "198.51.100.9")}
    assert len(seen) == 1 and None not in seen


def test_req1a_two_queries_with_one_identifier_do_not_meet(bench: Bench) -> None:
    nat = sides(bench)
    one, other = nat.out("icmp", 77), nat.out("icmp", 77, domain="db")
    assert None not in (one, other) and one != other


@pytest.mark.parametrize(("silence", "lives"), [(59, True), (61, False)])
def test_req2_a_query_may_be_answered_for_sixty_seconds(bench: Bench, silence: int, lives: bool) -> None:
    nat = sides(bench)
    outside = nat.out("icmp", 77)
    assert outside is not None
    nat.let_pass(silence)
    assert (nat.back("icmp", outside) == 77) == lives


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
    for kind in (9, 10, 13, 14, 30, 40, 42):
        packet = ip("web", "lan") / ICMP(type=kind) / Raw(b"x" * 12)
        assert nat.bench.send(1, bytes(packet)).verdict.name == "DROP_ICMP_TYPE", kind
