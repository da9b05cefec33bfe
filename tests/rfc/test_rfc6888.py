"""RFC 6888, carrier-grade NATs: a test for each requirement that packets can show; a subscriber is a domain.
docs/rfc.md is the list."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from support import world
from support.bench import Bench
from support.frames import tcp
from support.sides import PROTOCOLS, STRANGER, Protocol, sides, whole
from support.world import NODES


def _block(domain: str) -> range:
    slot = world.SLOTS[domain]
    return range(world.NAT_LOW + world.BLOCK * slot, world.NAT_LOW + world.BLOCK * (slot + 1))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_req4_a_subscriber_has_so_many_ports_and_no_more(bench: Bench, protocol: Protocol) -> None:
    """For each protocol so many; the others of its own, and other subscribers, have theirs all the same."""
    nat = sides(bench)
    seen = {nat.out(protocol, 1000 + number) for number in range(world.BLOCK)}
    assert seen == set(_block("web"))
    assert nat.send(protocol, 2000).verdict.name == "DROP_PORTS_FULL"
    for other in PROTOCOLS:
        assert (nat.out(other, 2000) is None) == (other == protocol)
    assert {nat.out(protocol, 1000 + number, domain="db") for number in range(world.BLOCK)} == set(_block("db"))


def test_req5_a_subscriber_has_so_many_sessions_and_no_more(bench: Bench) -> None:
    """The table that holds them has room for that many: so much memory, and no more."""
    nat = sides(bench)
    outside = {nat.out("udp", 5000, ("198.51.100.9", 1 + number)) for number in range(world.QUOTA)}
    assert len(outside) == 1 and None not in outside
    assert nat.send("udp", 5000, ("198.51.100.9", 999)).verdict.name == "DROP_SESSIONS_FULL"
    assert nat.out("udp", 5000, ("198.51.100.9", 1)) in outside
    assert nat.out("udp", 5000, domain="db") is not None


def test_req6_between_domains_nothing_is_translated(bench: Bench) -> None:
    seen = sides(bench).bench.send(1, bytes(tcp("web", "db", 3000, 80)))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    packet = Ether(seen.frame)[IP]
    assert (packet.src, packet.payload.sport) == (NODES["web"].ip, 3000)


def test_req6_to_the_lan_translation_cannot_be_turned_off(bench: Bench) -> None:
    """What is not kept, since RFC 3927 forbids the untranslated packet: there is no way round."""
    nat = sides(bench)
    for address in ("192.0.2.11", "192.0.2.254", "198.51.100.9"):
        frame = nat.send("udp", 5000, (address, 9)).frame
        assert frame is not None and Ether(frame)[IP].src == str(world.OUTSIDE)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_req8_a_port_given_back_stays_with_its_subscriber(bench: Bench, protocol: Protocol) -> None:
    """Blocks are fixed (exception B) and filtering asks for the remote (exception C), so a port may be used
    again at once: by the same domain, and for nobody whom it has not spoken to since."""
    nat = sides(bench)
    before = {nat.out(protocol, 1000 + number) for number in range(world.BLOCK)}
    nat.let_pass(10_000)
    for number in range(world.BLOCK):
        assert nat.out(protocol, 1000 + number, domain="db") in _block("db")
    after = [nat.out(protocol, 2000 + number, STRANGER) for number in range(world.BLOCK)]
    assert set(after) == before
    for outside in after:
        assert outside is not None and nat.back(protocol, outside) is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_req11_what_finds_no_port_is_dropped_and_nothing_deleted_for_it(bench: Bench, protocol: Protocol) -> None:
    nat = sides(bench)
    held = {inside: nat.out(protocol, inside) for inside in range(1000, 1000 + world.BLOCK)}
    for inside in range(2000, 2100):
        assert nat.send(protocol, inside).verdict.name == "DROP_PORTS_FULL"
    for inside, outside in held.items():
        assert outside is not None and nat.back(protocol, outside) == inside
        assert nat.out(protocol, inside) == outside


def test_req14_an_outside_port_alone_names_its_subscriber(bench: Bench) -> None:
    """No mapping need be logged: who has which block says whose any port was."""
    nat = sides(bench)
    for domain, protocol in product(("web", "db", "odd"), PROTOCOLS):
        for number in range(world.BLOCK // 2):
            assert nat.out(protocol, 30000 + number, domain=domain) in _block(domain)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_req15_a_port_is_hard_to_guess(bench: Bench, protocol: Protocol) -> None:
    """The only port in use is any of the block's. That fourteen draws out of eight are all the same is less
    likely than that this machine breaks."""
    nat = sides(bench)
    seen = set()
    for number in range(14):
        seen.add(nat.out(protocol, 1000 + number))
        nat.let_pass(10_000)
    assert len(seen) > 1 and seen <= set(_block("web"))


def test_req4c_new_conversations_come_at_a_rate(bench: Bench) -> None:
    """What goes on already is not asked, and another subscriber has a rate of its own."""
    nat = sides(bench, limits=replace(world.LIMITS, new_per_s=4))
    seen = [nat.send("udp", 5000, ("198.51.100.9", 1 + number)).verdict.name for number in range(12)]
    assert set(seen) == {"TO_LAN", "DROP_TOO_FAST"}
    assert 4 <= seen.count("TO_LAN") <= 6, "a second's worth at once"
    assert nat.out("udp", 5000, ("198.51.100.9", 1)) is not None
    assert nat.out("udp", 5000, domain="db") is not None
    nat.let_pass(1)
    assert nat.out("udp", 5000, ("198.51.100.9", 99)) is not None


@pytest.mark.parametrize("sessions", [3, 7])
def test_req5a_the_quotas_can_be_set(bench: Bench, sessions: int) -> None:
    nat = sides(bench, limits=replace(world.LIMITS, sessions=sessions))
    seen = [nat.send("udp", 5000, ("198.51.100.9", 1 + number)).verdict.name for number in range(10)]
    assert seen == ["TO_LAN"] * sessions + ["DROP_SESSIONS_FULL"] * (10 - sessions)


def test_req11b_the_sender_is_told_host_unreachable(bench: Bench) -> None:
    """For want of a port, of a session, of the right to open another, or of time."""
    nat = sides(bench, limits=replace(world.LIMITS, half_open=10, new_per_s=20))
    sent = [nat.send("tcp", 1000 + number) for number in range(world.BLOCK + 1)]
    sent += [nat.send("tcp", 1000, ("198.51.100.9", 1 + number)) for number in range(3)]
    sent += [nat.send("udp", 1000, ("198.51.100.9", 1 + number)) for number in range(16)]
    refused = {seen.verdict.name: seen.frame for seen in sent if seen.verdict.name != "TO_LAN"}
    wanted = {"DROP_PORTS_FULL", "DROP_HALF_OPEN_FULL", "DROP_SESSIONS_FULL", "DROP_TOO_FAST"}
    assert set(refused) == wanted
    for name, frame in refused.items():
        assert frame is not None, name
        error = whole(frame)
        assert (error[ICMP].type, error[ICMP].code, error[IP].dst) == (3, 1, NODES["web"].ip), name
