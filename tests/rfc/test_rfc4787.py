"""RFC 4787, NAT for unicast UDP: a test for each requirement that packets can show. docs/rfc.md is the list."""

from __future__ import annotations

from itertools import product

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, ip, udp
from support.sides import PROTOCOLS, REMOTE, RULES, STRANGER, Protocol, outside_port, quoted, sides, whole

from vfr.settings import Timers
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


TIMERS = Timers(tcp_opening=10, tcp_established=30, tcp_closing=20, udp=40, dns=50, icmp=60, fragments=5)


def test_req5b_every_time_can_be_set(bench: Bench) -> None:
    """Each alone: the times of this test are all different."""
    nat = sides(bench, timers=TIMERS)
    dns = ("192.0.2.11", 53)
    for early in (1, -1):
        opened = {nat.open(5000): TIMERS.tcp_established, nat.open(5001): TIMERS.tcp_closing}
        assert nat.out("tcp", 5001, flags="R") is not None
        opening, silent, query, echo = (
            nat.out("tcp", 5002),
            nat.out("udp", 5003),
            nat.out("udp", 5004, dns),
            nat.out("icmp", 5005),
        )
        ends = [(port, "tcp", REMOTE, end) for port, end in opened.items()]
        ends += [(opening, "tcp", REMOTE, TIMERS.tcp_opening), (silent, "udp", REMOTE, TIMERS.udp)]
        ends += [(query, "udp", dns, TIMERS.dns), (echo, "icmp", REMOTE, TIMERS.icmp)]
        passed = 0
        for port, protocol, remote, end in sorted(ends, key=lambda one: one[3]):
            nat.let_pass(end - early - passed)
            passed = end - early
            assert (nat.back(protocol, port, remote, "A") is not None) == (early > 0), (protocol, end)
        nat.let_pass(10_000)


def _hairpin(bench: Bench) -> tuple[Packet, Packet]:
    """What db receives when web speaks to db's forward by the LAN address, and what web then receives."""
    nat = sides(bench, RULES + "allow web -> db tcp 22\n")
    there = nat.send("tcp", 5000, (LAN_ADDRESS, 2203))
    assert there.verdict.name == "TO_DOMAIN" and there.target == world.SLOTS["db"] and there.frame is not None
    port = outside_port(there.frame)
    back = nat.send("tcp", 22, (LAN_ADDRESS, port), "SA", "db")
    assert back.verdict.name == "TO_DOMAIN" and back.target == world.SLOTS["web"] and back.frame is not None
    return Ether(there.frame), Ether(back.frame)


def test_req9_a_domain_reaches_anothers_forward_by_the_lan_address(bench: Bench) -> None:
    """If a rule lets the one talk to the other, and not else."""
    there, back = _hairpin(bench)
    assert (there[IP].dst, there[TCP].dport) == (world.NODES["db"].ip, 22)
    assert (back[IP].dst, back[TCP].dport) == (world.NODES["web"].ip, 5000)
    apart = sides(bench, RULES.replace("allow web -> db\n", ""))
    assert apart.send("tcp", 5000, (LAN_ADDRESS, 2203)).verdict.name == "DROP_POLICY"


def test_req9a_a_hairpinned_packet_comes_from_the_outside_address_and_port(bench: Bench) -> None:
    there, back = _hairpin(bench)
    assert there[IP].src == LAN_ADDRESS and there[TCP].sport in FULL_BLOCK
    assert (back[IP].src, back[TCP].sport) == (LAN_ADDRESS, 2203)


def test_req12a_an_error_may_come_from_any_router(bench: Bench) -> None:
    nat = sides(bench)
    sent = nat.send("udp", 5000).frame
    assert sent is not None
    for source in ("192.0.2.11", "192.0.2.254", "198.51.100.1", "203.0.113.7"):
        assert nat.error(sent, 3, 1, source).verdict.name == "TO_DOMAIN", source


@pytest.mark.parametrize("mtu", [1500, 1280])
def test_req13_too_big_with_df_is_answered_with_the_mtu(bench: Bench, mtu: int) -> None:
    nat = sides(bench, uplink_mtu=mtu)
    fits = nat.bench.send(1, bytes(udp("web", "lan", 5000, 80, b"x" * (mtu - 28), flags="DF")))
    assert fits.verdict.name == "TO_LAN"
    seen = nat.bench.send(1, bytes(udp("web", "lan", 5000, 80, b"x" * (mtu - 27), flags="DF")))
    assert seen.verdict.name == "DROP_TOO_BIG" and seen.frame is not None
    error = whole(seen.frame)
    assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, mtu)
    assert (error[IP].dst, quoted(error)[UDP].sport) == (world.NODES["web"].ip, 5000)


def _piece(number: int, first: bool, sender: str = "web") -> bytes:
    """One of the two fragments of a datagram."""
    if first:
        return bytes(udp(sender, "lan", 5000, 80, b"a" * 24, flags="MF", id=number))
    return bytes(ip(sender, "lan", id=number, frag=4, proto=17) / Raw(b"b" * 16))


def test_req14_fragments_in_order_follow_their_first(bench: Bench) -> None:
    """Both leave from the outside address, with one identification, and the receiver can put them together."""
    nat = sides(bench)
    frames = [nat.bench.send(1, _piece(9, first)).frame for first in (True, False)]
    assert None not in frames
    first, later = (Ether(frame) for frame in frames)
    assert {first[IP].src, later[IP].src} == {LAN_ADDRESS}
    assert first[IP].id == later[IP].id and first[UDP].sport in FULL_BLOCK
    assert (int(first[IP].flags), later[IP].frag, bytes(later[IP].payload)) == (1, 4, b"b" * 16)


def test_req14_fragments_out_of_order_go_to_the_kernel_s_reassembly(bench: Bench) -> None:
    nat = sides(bench)
    assert nat.bench.send(1, _piece(9, False)).verdict.name == "TO_SORTER"
    assert nat.bench.send(1, _piece(9, True)).verdict.name == "TO_SORTER"
    assert nat.bench.send(1, _piece(10, True)).verdict.name == "TO_LAN", "and only they"


def test_req14a_a_flood_of_fragments_costs_nobody_else(bench: Bench) -> None:
    """Nor does the flooding domain lose what it sends whole."""
    nat = sides(bench)
    outside = nat.out("udp", 6000)
    assert outside is not None
    fates = [nat.bench.send(1, _piece(number, False)).verdict.name for number in range(1, 100)]
    assert fates.count("TO_SORTER") == world.LIMITS.fragments
    assert fates[-1] == "DROP_FRAGMENTS_FULL"
    assert nat.out("udp", 6000) == outside and nat.back("udp", outside) == 6000
    assert [nat.bench.send(2, _piece(9, first, "db")).verdict.name for first in (True, False)] == ["TO_LAN"] * 2
    nat.let_pass(31)
    assert [nat.bench.send(1, _piece(200, first)).verdict.name for first in (True, False)] == ["TO_LAN"] * 2
