"""RFC 5382, NAT for TCP: a test for each requirement that packets can show. docs/rfc.md is the list."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, tcp
from support.sides import INSIDE_ISN, REMOTE, REMOTE_ISN, RULES, STRANGER, outside_port, sides

from vfr.spec.model import LAN

FORWARD = 2202
HOURS_2_MINUTES_4 = 7440


def test_req1_same_outside_port_for_every_remote(bench: Bench) -> None:
    nat = sides(bench)
    remotes = [REMOTE, ("192.0.2.11", 443), STRANGER, ("198.51.100.9", 80)]
    ports = {nat.out("tcp", 5000, remote) for remote in remotes}
    assert len(ports) == 1 and None not in ports


def test_req2_a_connection_from_inside_from_its_syn_to_its_last_ack(bench: Bench) -> None:
    """The remote is done first, and the domain still sends: a half-closed connection is one all the same."""
    nat = sides(bench)
    outside = nat.open(5000)
    for flags in ("A", "PA", "A"):
        assert nat.out("tcp", 5000, flags=flags) == outside
        assert nat.back("tcp", outside, flags=flags) == 5000
    assert nat.back("tcp", outside, flags="FA") == 5000
    for flags in ("A", "PA", "PA", "FA"):
        assert nat.out("tcp", 5000, flags=flags) == outside
    assert nat.back("tcp", outside, flags="A") == 5000
    assert nat.out("tcp", 5000, flags="FA") == outside, "its last FIN again, if the ACK was lost"


def _from_lan(bench: Bench, flags: str) -> str:
    sent = tcp("lan", LAN_ADDRESS, 40000, FORWARD, flags)
    sent[TCP].seq = REMOTE_ISN + ("S" not in flags)
    sent[TCP].ack = INSIDE_ISN + 1 if "A" in flags else 0
    return bench.send(LAN, bytes(sent)).verdict.name


def _to_lan(bench: Bench, flags: str) -> int | None:
    """The port that the remote sees it come from, None if it does not."""
    sent = tcp("web", "lan", 22, 40000, flags)
    sent[TCP].seq = INSIDE_ISN + ("S" not in flags)
    sent[TCP].ack = REMOTE_ISN + 1
    seen = bench.send(1, bytes(sent))
    return outside_port(seen.frame) if seen.verdict.name == "TO_LAN" and seen.frame else None


def test_req2_a_connection_from_outside_from_its_syn_to_its_last_ack(bench: Bench) -> None:
    nat = sides(bench)
    assert _from_lan(nat.bench, "S") == "TO_DOMAIN"
    assert _to_lan(nat.bench, "SA") == FORWARD
    for flags in ("A", "PA"):
        assert _from_lan(nat.bench, flags) == "TO_DOMAIN"
        assert _to_lan(nat.bench, flags) == FORWARD
    assert _to_lan(nat.bench, "FA") == FORWARD
    assert _from_lan(nat.bench, "PA") == "TO_DOMAIN"
    assert _from_lan(nat.bench, "FA") == "TO_DOMAIN"
    assert _to_lan(nat.bench, "A") == FORWARD


def test_req2_a_lost_syn_and_a_lost_answer_are_sent_again(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("tcp", 5000)
    assert outside is not None and nat.out("tcp", 5000) == outside
    assert [nat.back("tcp", outside) for _ in range(3)] == [5000] * 3
    assert nat.out("tcp", 5000, flags="A") == outside


def test_req2a_both_ends_open_at_once(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.out("tcp", 5000)
    assert outside is not None
    assert nat.back("tcp", outside, flags="S") == 5000
    assert nat.out("tcp", 5000, flags="SA") == outside
    assert nat.back("tcp", outside, flags="SA") == 5000
    assert nat.out("tcp", 5000, flags="A") == outside
    nat.let_pass(HOURS_2_MINUTES_4 - 1)
    assert nat.back("tcp", outside, flags="A") == 5000, "it is established, and lives as long"


@pytest.mark.parametrize("stranger", [STRANGER, ("192.0.2.11", 81)], ids=["another address", "another port"])
def test_req3_only_the_remote_that_was_spoken_to_may_answer(bench: Bench, stranger: tuple[str, int]) -> None:
    nat = sides(bench)
    outside = nat.open(5000)
    for flags in ("S", "SA", "A", "RA"):
        assert nat.back("tcp", outside, stranger, flags) is None
    assert nat.back("tcp", outside, flags="A") == 5000


def test_req4_an_unsolicited_syn_meets_silence_and_hinders_nothing(bench: Bench) -> None:
    """It comes before the domain's own SYN to the same remote: the connection is made, and the early SYN
    was never answered nor delivered."""
    nat = sides(bench)
    outside = nat.out("tcp", 16393, STRANGER)
    assert outside == 16393
    for _ in range(3):
        early = nat.answer("tcp", outside, flags="S")
        assert early.frame is None and early.verdict.name == "DROP_UNSOLICITED"
    assert nat.out("tcp", 16393) == outside
    assert nat.back("tcp", outside) == 16393
    assert nat.out("tcp", 16393, flags="A") == outside


@pytest.mark.parametrize("port", [16393, 20000], ids=["a port of a domain's", "a port of nobody's"])
def test_req4_silence_also_where_nobody_will_ever_speak(bench: Bench, port: int) -> None:
    early = sides(bench).answer("tcp", port, flags="S")
    assert early.frame is None and early.verdict.name == "DROP_UNSOLICITED"


@pytest.mark.parametrize(("silence", "lives"), [(HOURS_2_MINUTES_4 - 1, True), (HOURS_2_MINUTES_4 + 1, False)])
def test_req5_an_established_connection_lives_two_hours_and_four_minutes(
    bench: Bench, silence: int, lives: bool
) -> None:
    nat = sides(bench)
    outside = nat.open(5000)
    nat.let_pass(silence)
    assert (nat.back("tcp", outside, flags="A") == 5000) == lives


@pytest.mark.parametrize(("silence", "lives"), [(239, True), (241, False)])
def test_req5_a_connection_that_opens_or_closes_lives_four_minutes(bench: Bench, silence: int, lives: bool) -> None:
    nat = sides(bench)
    opening = nat.out("tcp", 5000)
    closing = nat.open(5001)
    assert opening is not None
    assert nat.out("tcp", 5001, flags="FA") == closing
    assert nat.back("tcp", closing, flags="FA") == 5001
    nat.let_pass(silence)
    assert (nat.back("tcp", closing, flags="A") == 5001) == lives
    assert (nat.back("tcp", opening) == 5000) == lives


def test_req5_half_closed_is_not_transitory(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.open(5000)
    assert nat.out("tcp", 5000, flags="FA") == outside
    nat.let_pass(HOURS_2_MINUTES_4 - 1)
    assert nat.back("tcp", outside, flags="PA") == 5000


def test_req6_a_payload_that_holds_addresses_passes_untouched(bench: Bench) -> None:
    """FTP's PORT command: there are no application-level gateways."""
    nat = sides(bench)
    outside = nat.open(5000, ("192.0.2.11", 21))
    data = b"PORT 169,254,1,2,19,137\r\n"
    packet = tcp("web", "lan", 5000, 21, "PA") / Raw(data)
    packet[TCP].seq, packet[TCP].ack = INSIDE_ISN + 1, REMOTE_ISN + 1
    frame = nat.bench.send(1, bytes(packet)).frame
    assert frame is not None and outside_port(frame) == outside
    assert (bytes(Ether(frame)[Raw]), Ether(frame)[TCP].seq) == (data, INSIDE_ISN + 1)


def test_req7_no_two_inside_ports_share_an_outside_port(bench: Bench) -> None:
    nat = sides(bench)
    seen = [
        nat.out("tcp", 1000 + number, ("198.51.100.9", 1 + number), domain=domain)
        for domain in ("web", "db", "odd")
        for number in range(world.BLOCK)
    ]
    assert None not in seen and len(set(seen)) == 3 * world.BLOCK


ERRORS = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (12, 0)]


def test_req10_no_icmp_message_ends_a_mapping_or_a_connection(bench: Bench) -> None:
    nat = sides(bench)
    outside = nat.open(5000)
    sent = nat.send("tcp", 5000, flags="PA")
    assert sent.frame is not None
    for kind, code in ERRORS:
        for _ in range(3):
            nat.error(sent.frame, kind, code)
        assert nat.back("tcp", outside, flags="A") == 5000, (kind, code)
    nat.let_pass(HOURS_2_MINUTES_4 - 1)
    assert nat.out("tcp", 5000, flags="A") == outside, "it is still established"


def test_req8_a_connection_by_the_lan_address(bench: Bench) -> None:
    """web speaks to db's forward: db sees the outside address and port, and both ends their own session."""
    nat = sides(bench, RULES + "allow web -> db tcp 22\n")
    forward = (LAN_ADDRESS, 2203)
    ports = set()
    for flags, answer in (("S", "SA"), ("A", "A"), ("PA", "PA"), ("FA", "FA")):
        seen = nat.send("tcp", 5000, forward, flags)
        assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None, flags
        there = Ether(seen.frame)
        ports.add((there[IP].src, there[TCP].sport))
        back = nat.send("tcp", 22, (LAN_ADDRESS, there[TCP].sport), answer, "db")
        assert back.verdict.name == "TO_DOMAIN" and back.frame is not None, answer
        assert (Ether(back.frame)[IP].src, Ether(back.frame)[TCP].sport) == forward
    assert len(ports) == 1 and ports.pop()[0] == LAN_ADDRESS
