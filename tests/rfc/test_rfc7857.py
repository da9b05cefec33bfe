"""RFC 7857, updates to the NAT requirements: a test for what is new in it. docs/rfc.md is the list."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support import world
from support.bench import Bench
from support.frames import ip, udp
from support.sides import PROTOCOLS, sides


def test_s2_2_a_reset_is_translated_both_ways(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.open(5000)
    out = nat.send("tcp", 5000, flags="R").frame
    assert out is not None and (Ether(out)[TCP].flags, Ether(out)[TCP].sport) == ("R", outside)
    back = nat.answer("tcp", outside, flags="RA").frame
    assert back is not None and (Ether(back)[TCP].flags, Ether(back)[TCP].dport) == ("RA", 5000)
    assert (Ether(out)[IP].src, Ether(back)[IP].dst) == (str(world.OUTSIDE), world.NODES["web"].ip)


@pytest.mark.parametrize(("silence", "lives"), [(239, True), (241, False)])
def test_s2_2_after_a_reset_the_session_stays_for_four_silent_minutes(bench: Bench, silence: int, lives: bool) -> None:
    """Whether the domain or the remote sent it."""
    nat = sides(bench)
    by_domain, by_remote = nat.open(5000), nat.open(5001)
    assert nat.out("tcp", 5000, flags="R") == by_domain
    assert nat.back("tcp", by_remote, flags="R") == 5001
    nat.let_pass(silence)
    assert (nat.back("tcp", by_domain, flags="A") == 5000) == lives
    assert (nat.back("tcp", by_remote, flags="A") == 5001) == lives


def test_s2_2_a_forged_reset_ends_no_conversation(bench: Bench) -> None:
    """Both ends go on, for they never believed it, and so does the NAT."""
    nat = sides(bench)
    outside = nat.open(5000)
    assert nat.back("tcp", outside, flags="R") == 5000
    for _ in range(5):
        nat.let_pass(200)
        assert nat.out("tcp", 5000, flags="PA") == outside
        assert nat.back("tcp", outside, flags="A") == 5000


def test_s5_a_mapping_of_one_protocol_is_none_of_another(bench: Bench) -> None:
    """TCP and UDP choose apart: here the one is moved since its port is taken, and the other is not."""
    nat = sides(bench)
    wish = world.NAT_LOW + world.BLOCK + 3
    others = [nat.out("tcp", 1000 + number) for number in range(world.BLOCK)]
    assert wish in others
    assert nat.out("tcp", wish) is None
    assert nat.out("udp", wish) == wish
    assert nat.out("icmp", wish) == wish
    assert nat.back("udp", wish) == wish
    assert nat.back("tcp", wish) != wish


def test_s7_1_an_icmp_error_sent_in_answer_refreshes_nothing(bench: Bench) -> None:
    """The domain answers what comes in with port unreachable: its mapping ends when it would have."""
    nat = sides(bench)
    outside = nat.out("udp", 5000)
    assert outside is not None
    seen = nat.answer("udp", outside).frame
    assert seen is not None
    for _ in range(2):
        nat.let_pass(149)
        nat.bench.send(1, bytes(ip("web", "lan") / ICMP(type=3, code=3) / Raw(seen[14:42])))
    assert nat.back("udp", outside) == 5000
    nat.let_pass(301)
    assert nat.back("udp", outside) is None


def test_s7_1_another_reset_refreshes_nothing(bench: Bench) -> None:
    """A closing session ends when it would have, whoever resets it meanwhile."""
    nat = sides(bench)
    outside = nat.open(5000)
    assert nat.out("tcp", 5000, flags="FA") == outside
    assert nat.back("tcp", outside, flags="FA") == 5000
    nat.let_pass(200)
    assert nat.out("tcp", 5000, flags="R") == outside
    nat.let_pass(41)
    assert nat.back("tcp", outside, flags="R") is None


def test_s8_parity_is_not_kept(bench: Bench) -> None:
    """Odd inside ports have the whole block; one that kept parity would be half as large."""
    nat = sides(bench)
    for protocol in PROTOCOLS:
        odd = [nat.out(protocol, 1001 + 2 * number) for number in range(world.BLOCK)]
        assert None not in odd
        assert {port % 2 for port in odd if port is not None} == {0, 1}
        nat.let_pass(10_000)


def test_s11_an_echo_mapping_goes_with_its_last_session(bench: Bench) -> None:
    nat = sides(bench)
    for number in range(world.BLOCK):
        assert nat.out("icmp", 1000 + number) is not None
    assert nat.out("icmp", 2000) is None
    nat.let_pass(30)
    assert nat.out("icmp", 1000) is not None
    nat.let_pass(31)
    again = [nat.out("icmp", 2000 + number) for number in range(world.BLOCK)]
    assert again.count(None) == 1, "all but the one that was used since"


def test_s10_identifications_of_two_domains_do_not_meet(bench: Bench) -> None:
    """Both send with identification 7 to one remote, and may be fragmented on the way."""
    nat = sides(bench)
    seen = [
        nat.bench.send(slot, bytes(udp(domain, "lan", 5000, 80, id=7))).frame
        for domain, slot in (("web", 1), ("db", 2), ("web", 1), ("db", 2))
    ]
    identifications = {Ether(frame)[IP].id for frame in seen if frame is not None}
    assert len(identifications) == len(seen)
