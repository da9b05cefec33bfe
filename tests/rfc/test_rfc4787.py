"""RFC 4787, NAT for unicast UDP: a test for each requirement that packets can show. docs/rfc.md is the list."""

from __future__ import annotations

from itertools import product

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, ip, udp
from support.sides import PROTOCOLS, REMOTE, STRANGER, Protocol, outside_port, sides

from vfr.spec.model import LAN

FULL_BLOCK = set(range(world.NAT_LOW + world.BLOCK, world.NAT_LOW + 2 * world.BLOCK))


def test_req1_same_outside_port_for_every_remote(bench: Bench) -> None:
    nat = sides(bench)
    remotes = [REMOTE, ("192.0.2.11", 443), STRANGER, ("198.51.100.9", 80), ("198.51.100.9", 53)]
    ports = {nat.out("udp", 5000, remote) for remote in remotes}
    assert len(ports) == 1 and None not in ports


def test_req2_every_mapping_has_the_one_lan_address(bench: Bench) -> None:
    """Pairing: there is one outside address, so each domain has one."""
    nat = sides(bench)
    for domain, protocol in product(("web", "db", "odd"), PROTOCOLS):
        for number in range(world.BLOCK // 2):
            frame = nat.send(protocol, 1000 + number, domain=domain).frame
            assert frame is not None and Ether(frame).payload.src == LAN_ADDRESS


def test_req3_no_two_inside_ports_share_an_outside_port(bench: Bench) -> None:
    """Not even towards different remotes, and not between domains that use the same inside ports."""
    nat = sides(bench)
    seen = [
        nat.out("udp", 1000 + number, ("198.51.100.9", 1 + number), domain=domain)
        for domain in ("web", "db", "odd")
        for number in range(world.BLOCK)
    ]
    assert None not in seen and len(set(seen)) == 3 * world.BLOCK


def test_req3a_a_port_above_1023_stays_above_1023(bench: Bench) -> None:
    nat = sides(bench)
    for inside in (1024, 5000, 16393, 40000, 65535):
        outside = nat.out("udp", inside)
        assert outside is not None and outside > 1023


def test_req3a_a_port_below_1024_does_not_stay_below_1024(bench: Bench) -> None:
    """What is not kept: a domain's ports are those of its block."""
    assert sides(bench).out("udp", 123) in FULL_BLOCK


@pytest.mark.parametrize(("silence", "lives"), [(120, True), (299, True), (301, False)])
def test_req5_a_mapping_lives_through_five_silent_minutes(bench: Bench, silence: int, lives: bool) -> None:
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    nat.let_pass(silence)
    assert (nat.back("udp", outside) == 5000) == lives


@pytest.mark.parametrize(("silence", "lives"), [(29, True), (31, False)])
def test_req5a_dns_alone_has_a_shorter_time(bench: Bench, silence: int, lives: bool) -> None:
    nat = sides(bench)
    outside = nat.out("udp", 5000, ("192.0.2.11", 53))
    assert outside is not None
    nat.let_pass(silence)
    assert (nat.back("udp", outside, ("192.0.2.11", 53)) == 5000) == lives


def test_req5a_a_query_does_not_shorten_what_others_use(bench: Bench) -> None:
    """The same inside port spoke to a name server and to somebody else: the mapping lives for the latter."""
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None and nat.out("udp", 5000, ("192.0.2.11", 53)) == outside
    nat.let_pass(120)
    assert nat.back("udp", outside) == 5000
    assert nat.out("udp", 5000, STRANGER) == outside


def test_req6_what_goes_out_refreshes(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    for _ in range(5):
        nat.let_pass(200)
        assert nat.out("udp", 5000) == outside
    nat.let_pass(299)
    assert nat.back("udp", outside) == 5000


def test_req6a_what_comes_back_refreshes_too_but_not_a_stranger_s(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    nat.let_pass(200)
    assert nat.back("udp", outside) == 5000
    nat.let_pass(200)
    assert nat.back("udp", outside, STRANGER) is None
    assert nat.back("udp", outside) == 5000
    nat.let_pass(200)
    nat.back("udp", outside, STRANGER)
    nat.let_pass(101)
    assert nat.back("udp", outside) is None


@pytest.mark.parametrize("stranger", [STRANGER, ("192.0.2.11", 81)], ids=["another address", "another port"])
def test_req8_only_the_remote_that_was_spoken_to_may_answer(bench: Bench, stranger: tuple[str, int]) -> None:
    """Address and port dependent filtering."""
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    assert nat.back("udp", outside, stranger) is None
    assert nat.back("udp", outside) == 5000
    assert nat.out("udp", 5000, stranger) == outside
    assert nat.back("udp", outside, stranger) == 5000


PAYLOADS = {
    5060: b"REGISTER sip:a SIP/2.0\r\nVia: SIP/2.0/UDP 169.254.1.2:5060\r\nContact: <sip:x@169.254.1.2:5060>\r\n\r\n",
    69: b"\0\1file\0octet\0",
    3478: bytes.fromhex("0101000c2112a44200000000000000000000000000010008000113c4a9fe0102"),
}


def test_req10_payloads_that_hold_addresses_pass_untouched(bench: Bench) -> None:
    """There are no application-level gateways."""
    nat = sides(bench)
    for port, data in PAYLOADS.items():
        frame = nat.bench.send(1, bytes(udp("web", "lan", 5060, port, data))).frame
        assert frame is not None and bytes(Ether(frame)[UDP].payload) == data
        back = ip("lan", LAN_ADDRESS) / UDP(sport=port, dport=outside_port(frame)) / Raw(data)
        frame = nat.bench.send(LAN, bytes(back)).frame
        assert frame is not None and bytes(Ether(frame)[UDP].payload) == data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_req11_a_full_block_changes_neither_mapping_nor_filter(bench: Bench, protocol: Protocol) -> None:
    """Under load the answer is no, never another behaviour: nothing is shared, moved or let in."""
    nat = sides(bench)
    first = {inside: nat.out(protocol, inside) for inside in range(1000, 1000 + world.BLOCK)}
    assert set(first.values()) == FULL_BLOCK
    for inside in range(2000, 2000 + 3 * world.BLOCK):
        assert nat.out(protocol, inside, STRANGER) is None
    # To another remote the same mapping serves: no port is needed, only a session.
    assert {inside: nat.out(protocol, inside, ("198.51.100.9", 80)) for inside in list(first)[:4]} == {
        inside: first[inside] for inside in list(first)[:4]
    }
    for inside, outside in first.items():
        assert outside is not None
        assert nat.back(protocol, outside, STRANGER) is None
        assert nat.back(protocol, outside) == inside


ERRORS = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0)]


def test_req12_no_icmp_message_ends_a_mapping(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000)
    assert sent.frame is not None
    outside = outside_port(sent.frame)
    for kind, code in ERRORS:
        for _ in range(3):
            nat.error(sent.frame, kind, code)
        assert nat.back("udp", outside) == 5000, (kind, code)
        assert nat.out("udp", 5000, STRANGER) == outside, (kind, code)
