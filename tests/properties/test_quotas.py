"""Every quota, one by one: who is refused, under which name, what he is told, and who lives on.

web, db, dom0 and the LAN of support/world.py; each test draws on one quota of web's and looks at the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench, Outcome
from support.frames import LAN_ADDRESS, echo, icmp_from_router, ip, tcp, udp
from support.native import Native

from vfr._abi import MappingKey, Session, SessionKey, TcpState
from vfr.spec import Router
from vfr.spec.model import LAN

pytestmark = pytest.mark.inv(7)
RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db\n"
WEB, DB = world.SLOTS["web"], world.SLOTS["db"]
HALF_OPEN, QUOTA, BLOCK = world.LIMITS.half_open, world.QUOTA, world.BLOCK
QUOTA_PORTS = range(5000, 5000 + QUOTA)
PEER_ISN = 1000  # what support.frames says in every SYN
SECOND = 10**9


def _router(**limits: int) -> Router:
    return replace(world.router(RULES), limits=replace(world.LIMITS, **limits))


def _send(bench: Bench | Native, sender: int, packet: Packet) -> Outcome:
    return bench.send(sender, bytes(packet))


def _verdict(bench: Bench | Native, sender: int, packet: Packet) -> str:
    return _send(bench, sender, packet).verdict.name


def _errors(bench: Bench, slot: int) -> int:
    """ICMP errors that the slot was sent, as counted."""
    return bench.fastpath.counters([slot])[slot].get("errors", (0, 0))[0]


def _sessions(bench: Bench, table: str, slot: int) -> dict[tuple[int, int], Session]:
    """(inside port, remote port) -> session, of an inner map."""
    inner = bench.fastpath.inner(table, slot)
    assert inner is not None
    rows = [(SessionKey.from_buffer_copy(k), Session.from_buffer_copy(v)) for k, v in inner.items()]
    inner.close()
    return {(key.inside_port, key.remote_port): session for key, session in rows}


# Conversations: a SYN, its answer, and what acknowledges it. `port` is the opener's.

Step = tuple[int, Packet]


def _near(port: int) -> tuple[Step, Step, Step]:
    """web opens one with db."""
    syn, reply = tcp("web", "db", port, 80), tcp("db", "web", 80, port, "SA", PEER_ISN + 1)
    return (WEB, syn), (DB, reply), (WEB, tcp("web", "db", port, 80, "A", PEER_ISN + 1))


def _forwarded(port: int) -> tuple[Step, Step, Step]:
    """The LAN opens one with web's port 22."""
    syn, reply = tcp("lan", LAN_ADDRESS, port, 2202), tcp("web", "lan", 22, port, "SA", PEER_ISN + 1)
    return (LAN, syn), (WEB, reply), (LAN, tcp("lan", LAN_ADDRESS, port, 2202, "A", PEER_ISN + 1))


def _establish(bench: Bench, steps: Sequence[Step]) -> None:
    for sender, packet in steps:
        assert not _verdict(bench, sender, packet).startswith("DROP_")


def _outside(bench: Bench, port: int, flags: str = "S") -> int:
    """web speaks TCP to the LAN from an inside port: its outside port there."""
    out = _send(bench, WEB, tcp("web", "lan", port, 80, flags, PEER_ISN + 1))
    assert out.verdict.name == "TO_LAN" and out.frame is not None
    return int(Ether(out.frame)[TCP].sport)


def _establish_outside(bench: Bench, port: int) -> int:
    """web opens a conversation with the LAN, all three steps: its outside port."""
    outside = _outside(bench, port)
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, outside, "SA")) == "TO_DOMAIN"
    assert _outside(bench, port, "A") == outside
    return outside


# Half-open conversations


def test_half_open_ones_have_a_quota_and_an_answer_gives_the_place_back(bench: Bench) -> None:
    bench.reset(_router())
    for port in range(HALF_OPEN):
        _establish(bench, _near(1000 + port)[:1])
    assert _verdict(bench, *_near(2000)[0]) == "DROP_HALF_OPEN_FULL"
    assert len(_sessions(bench, "sessions", WEB)) == HALF_OPEN, "a refused one left something"
    _establish(bench, _near(1000))
    _establish(bench, _near(2000)[:1])
    assert _verdict(bench, *_near(2001)[0]) == "DROP_HALF_OPEN_FULL"


def test_of_those_that_the_lan_has_only_begun_the_oldest_makes_room(bench: Bench) -> None:
    """Whoever sent that SYN need not exist, so a flood of them must not shut a forward for minutes."""
    bench.reset(_router())
    _establish(bench, _forwarded(5000))
    for port in range(3 * HALF_OPEN):
        _establish(bench, _forwarded(1000 + port)[:1])
    left = {remote for _, remote in _sessions(bench, "inbound", WEB)}
    assert left == {5000, *range(1000 + 2 * HALF_OPEN, 1000 + 3 * HALF_OPEN)}
    _establish(bench, _forwarded(2000))
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 5000, 2202, "A", PEER_ISN + 9)) == "TO_DOMAIN"
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 2000, 2202, "A", PEER_ISN + 9)) == "TO_DOMAIN"


def test_half_open_ones_of_each_side_and_each_domain_are_counted_apart(bench: Bench) -> None:
    bench.reset(_router())
    for port in range(HALF_OPEN):
        _establish(bench, _near(1000 + port)[:1])
    assert _verdict(bench, *_near(2000)[0]) == "DROP_HALF_OPEN_FULL"
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 1000, 2202)) == "TO_DOMAIN"
    assert _verdict(bench, WEB, udp("web", "db", 1000, 80)) == "TO_DOMAIN"
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 1000, 2203)) == "TO_DOMAIN"
    assert _verdict(bench, 0, tcp("dom0", "web", 1000, 22)) == "TO_DOMAIN"


def test_what_was_never_answered_counts_no_more_when_its_time_is_over(bench: Bench) -> None:
    bench.reset(_router())
    for port in range(HALF_OPEN):
        _establish(bench, _near(1000 + port)[:1])
    assert _verdict(bench, *_near(2000)[0]) == "DROP_HALF_OPEN_FULL"
    bench.fastpath.advance_clock(world.router(RULES).timers.tcp_opening + 1)
    assert _verdict(bench, *_near(2000)[0]) == "TO_DOMAIN"


def test_an_established_one_goes_on_while_half_open_ones_are_refused(bench: Bench) -> None:
    bench.reset(_router())
    _establish(bench, _near(5000))
    for port in range(HALF_OPEN):
        _establish(bench, _near(1000 + port)[:1])
    assert _verdict(bench, *_near(2000)[0]) == "DROP_HALF_OPEN_FULL"
    assert _verdict(bench, WEB, tcp("web", "db", 5000, 80, "A", PEER_ISN + 9)) == "TO_DOMAIN"
    assert _verdict(bench, DB, tcp("db", "web", 80, 5000, "A")) == "TO_DOMAIN"


@pytest.mark.parametrize(
    ("steps", "table", "key"),
    [(_near, "sessions", (5000, 80)), (_forwarded, "inbound", (22, 5000))],
    ids=["a domain's", "the LAN's"],
)
@pytest.mark.parametrize("guess", [0, PEER_ISN, PEER_ISN + 2 + (1 << 20), 1 << 31, (1 << 32) - 1])
def test_who_forged_its_address_never_establishes_anything(
    bench: Bench, steps: Callable[[int], tuple[Step, Step, Step]], table: str, key: tuple[int, int], guess: int
) -> None:
    """It never saw the peer's SYN, and an acknowledgment of something else leaves the session half open, with
    the short life of one."""
    bench.reset(_router())
    opener, syn = steps(5000)[0]
    _establish(bench, steps(5000)[:2])
    wrong = syn.copy()
    wrong[TCP].flags, wrong[TCP].ack = "A", guess
    del wrong[TCP].chksum
    _send(bench, opener, wrong)
    session = _sessions(bench, table, WEB)[key]
    assert TcpState(session.tcp_state) is TcpState.TCP_ANSWERED
    assert session.expires_ns < bench.fastpath.now_ns() + 241 * SECOND
    _establish(bench, steps(5000)[2:])
    session = _sessions(bench, table, WEB)[key]
    assert TcpState(session.tcp_state) is TcpState.TCP_ESTABLISHED
    assert session.expires_ns > bench.fastpath.now_ns() + 7000 * SECOND


# Rates. The native build's clock stands still between packets, so what is allowed is exact.


@pytest.fixture
def still(native: Native) -> Callable[[float], None]:
    """Sets the native build's clock to so many seconds after the test's beginning."""
    began = 2 * 10**15

    def at(seconds: float) -> None:
        native.clock(began + int(seconds * SECOND))

    at(0)
    return at


def test_new_ones_have_a_rate_and_come_again_with_time(native: Native, still: Callable[[float], None]) -> None:
    """As many at once as a second allows, and one to begin with; then one per 1/rate of a second."""
    native.reset(_router(new_per_s=4, sessions=64))
    seen = [_verdict(native, WEB, udp("web", "db", 1000 + n, 80)) for n in range(8)]
    assert seen == ["TO_DOMAIN"] * 5 + ["DROP_TOO_FAST"] * 3
    assert _verdict(native, WEB, udp("web", "db", 1000, 80)) == "TO_DOMAIN", "what lives has no rate"
    assert _verdict(native, DB, udp("db", "lan", 1000, 80)) == "TO_LAN", "another domain lost by it"
    still(0.25)
    again = [_verdict(native, WEB, udp("web", "db", 2000 + n, 80)) for n in range(2)]
    assert again == ["TO_DOMAIN", "DROP_TOO_FAST"]
    still(60)
    assert [_verdict(native, WEB, udp("web", "db", 3000 + n, 80)) for n in range(6)].count("TO_DOMAIN") == 5


def test_what_the_lan_opens_has_a_rate_of_its_own(native: Native, still: Callable[[float], None]) -> None:
    native.reset(_router(new_per_s=1, sessions=64, inbound=64))
    seen = [_verdict(native, *_forwarded(1000 + n)[0]) for n in range(4)]
    assert seen == ["TO_DOMAIN"] * 2 + ["DROP_TOO_FAST"] * 2
    assert _verdict(native, WEB, udp("web", "lan", 1000, 80)) == "TO_LAN"
    assert _verdict(native, LAN, tcp("lan", LAN_ADDRESS, 1000, 2203)) == "TO_DOMAIN"


def test_the_object_keeps_a_rate_too(bench: Bench) -> None:
    bench.reset(_router(new_per_s=1))
    seen = [_verdict(bench, WEB, udp("web", "db", 1000 + n, 80)) for n in range(QUOTA)]
    assert seen[:2] == ["TO_DOMAIN"] * 2 and "DROP_TOO_FAST" in seen
    bench.fastpath.advance_clock(2)
    assert _verdict(bench, WEB, udp("web", "db", 2000, 80)) == "TO_DOMAIN"


def test_icmp_errors_have_a_rate(native: Native, still: Callable[[float], None]) -> None:
    native.reset(_router(errors_per_s=2))

    def told() -> bool:
        out = _send(native, WEB, udp("web", "lan", 1000, 80, ttl=1))
        assert out.verdict.name == "DROP_TTL"
        return out.frame is not None

    # The native bench hands out no frame of a drop, so the count is what tells.
    def count() -> int:
        return native.fastpath.counters([WEB])[WEB].get("errors", (0, 0))[0]

    before = count()
    for _ in range(20):
        told()
    assert count() - before == 3, "two a second, and one to begin with"
    still(0.5)
    for _ in range(5):
        told()
    assert count() - before == 4
    assert _verdict(native, DB, udp("db", "lan", 1000, 80, ttl=1)) == "DROP_TTL"
    assert native.fastpath.counters([DB])[DB]["errors"][0] > 0, "another domain was told nothing"


# What is full


def _fill_sessions(bench: Bench) -> tuple[str, Callable[[int], Packet]]:
    for number in range(QUOTA):
        assert _verdict(bench, WEB, udp("web", "db", 1000 + number, 80)) == "TO_DOMAIN"
    return "DROP_SESSIONS_FULL", lambda n: udp("web", "db", 3000 + n, 80)


def _fill_half_open(bench: Bench) -> tuple[str, Callable[[int], Packet]]:
    for number in range(HALF_OPEN):
        assert _verdict(bench, WEB, tcp("web", "db", 1000 + number, 80)) == "TO_DOMAIN"
    return "DROP_HALF_OPEN_FULL", lambda n: tcp("web", "db", 3000 + n, 80)


def _fill_ports(bench: Bench) -> tuple[str, Callable[[int], Packet]]:
    for number in range(BLOCK):
        assert _verdict(bench, WEB, udp("web", "lan", 1000 + number, 80)) == "TO_LAN"
    return "DROP_PORTS_FULL", lambda n: udp("web", "lan", 3000 + n, 80)


def _fill_identifiers(bench: Bench) -> tuple[str, Callable[[int], Packet]]:
    for number in range(BLOCK):
        assert _verdict(bench, WEB, echo("web", "lan", 1000 + number)) == "TO_LAN"
    return "DROP_PORTS_FULL", lambda n: echo("web", "lan", 3000 + n)


@pytest.mark.parametrize("fill", [_fill_sessions, _fill_half_open, _fill_ports, _fill_identifiers])
def test_who_is_refused_for_a_quota_is_told_once_a_packet(
    bench: Bench, fill: Callable[[Bench], tuple[str, Callable[[int], Packet]]]
) -> None:
    """Host unreachable, quoting what was sent (RFC 6888 REQ-11B); nothing is left of the refused ones."""
    bench.reset(_router())
    verdict, more = fill(bench)
    before = _errors(bench, WEB), len(_sessions(bench, "sessions", WEB))
    for number in range(3):
        out = _send(bench, WEB, more(number))
        assert out.verdict.name == verdict
        assert out.frame is not None
        assert out.frame.hex() == bytes(icmp_from_router("web", more(number), 3, 1)).hex()
    assert (_errors(bench, WEB), len(_sessions(bench, "sessions", WEB))) == (before[0] + 3, before[1])


def test_the_lan_is_told_nothing_of_a_domain_s_quotas(bench: Bench) -> None:
    """It would have us answer whatever address a flood makes up."""
    bench.reset(_router())
    for port in range(QUOTA):
        _establish(bench, _forwarded(1000 + port))
    out = _send(bench, *_forwarded(2000)[0])
    assert (out.verdict.name, out.frame) == ("DROP_SESSIONS_FULL", None)


# Fragments


def _piece(number: int, offset: int = 185, flags: str | int = 0) -> Packet:
    return ip("web", "lan", id=number, frag=offset, flags=flags, proto=17) / Raw(b"y" * 16)


def test_datagrams_in_pieces_have_a_quota_and_nobody_is_told(bench: Bench) -> None:
    bench.reset(_router())
    room = world.LIMITS.fragments
    assert [_verdict(bench, WEB, _piece(n)) for n in range(room)] == ["TO_SORTER"] * room
    out = _send(bench, WEB, _piece(99))
    assert (out.verdict.name, out.frame) == ("DROP_FRAGMENTS_FULL", None)
    assert _verdict(bench, WEB, _piece(0, 200)) == "TO_SORTER", "one that has its place lost it"
    assert _verdict(bench, WEB, udp("web", "lan", 1000, 80)) == "TO_LAN"
    other = ip("db", "lan", id=1, frag=185, proto=17) / Raw(b"y" * 16)
    assert _verdict(bench, DB, other) == "TO_SORTER", "another domain lost by it"
    bench.fastpath.advance_clock(world.router(RULES).timers.fragments + 1)
    assert _verdict(bench, WEB, _piece(99)) == "TO_SORTER"


def test_one_datagram_has_only_so_many_pieces(bench: Bench) -> None:
    bench.reset(_router())
    seen = [_verdict(bench, WEB, _piece(1, 1 + 2 * n, "MF")) for n in range(130)]
    assert seen == ["TO_SORTER"] * 128 + ["DROP_FRAGMENTS_FULL"] * 2


def test_without_a_sorter_what_needs_one_is_dropped_by_its_name(bench: Bench) -> None:
    """In order, fragments need none."""
    bench.reset(replace(_router(), sorter=False))
    assert _verdict(bench, WEB, _piece(1)) == "DROP_NO_SORTER"
    first = ip("web", "lan", id=2, flags="MF") / UDP(sport=1000, dport=80, len=40, chksum=0) / Raw(b"x" * 16)
    assert _verdict(bench, WEB, first) == "TO_LAN"
    assert _verdict(bench, WEB, _piece(2, 3)) == "TO_LAN"
    assert _verdict(bench, WEB, udp("web", "lan", 1001, 80, b"x" * 1473)) == "DROP_NO_SORTER"
    later = ip("lan", LAN_ADDRESS, id=3, frag=185, proto=17) / Raw(b"y" * 16)
    assert _verdict(bench, LAN, later) == "NOT_OURS", "the host puts its own together"


# Closing conversations make room, the oldest first


def _close(bench: Bench, steps: Sequence[Step]) -> None:
    """Both ends say FIN."""
    for sender, packet in steps[1:]:
        fin = packet.copy()
        fin[TCP].flags = "FA"
        del fin[TCP].chksum
        assert not _verdict(bench, sender, fin).startswith("DROP_")


@pytest.mark.parametrize(
    ("steps", "table"), [(_near, "sessions"), (_forwarded, "inbound")], ids=["its own", "the LAN's with it"]
)
def test_a_full_table_forgets_what_has_been_closing_longest_and_nothing_that_lives(
    bench: Bench, steps: Callable[[int], tuple[Step, Step, Step]], table: str
) -> None:
    bench.reset(_router())
    ports = [1000 + n for n in range(QUOTA)]
    for port in ports:
        _establish(bench, steps(port))
    for port in (closing := [1009, 1002, 1005]):
        _close(bench, steps(port))

    def held() -> set[int]:
        """The openers' ports: inside for web's own, remote for the LAN's."""
        return {key[table == "inbound"] for key in _sessions(bench, table, WEB)}

    for number, oldest in enumerate(closing):
        assert oldest in held()
        _establish(bench, steps(2000 + number))
        assert oldest not in held() and len(held()) == QUOTA
    assert _verdict(bench, *steps(3000)[0]) == "DROP_SESSIONS_FULL"
    assert held() == set(ports) - set(closing) | {2000, 2001, 2002}
    for port in held():
        assert not _verdict(bench, *steps(port)[2]).startswith("DROP_"), "one that lived is gone"


def test_a_used_up_block_gives_the_port_that_has_been_closing_longest(bench: Bench) -> None:
    bench.reset(_router())
    outside = {port: _establish_outside(bench, port) for port in range(1000, 1000 + BLOCK)}
    assert len(set(outside.values())) == BLOCK
    for port in (1006, 1001):
        assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, outside[port], "FA")) == "TO_DOMAIN"
        assert _outside(bench, port, "FA") == outside[port]
    assert [_establish_outside(bench, 2000), _establish_outside(bench, 2001)] == [outside[1006], outside[1001]]
    assert _verdict(bench, WEB, tcp("web", "lan", 2002, 80)) == "DROP_PORTS_FULL"
    for port in set(outside) - {1006, 1001}:
        assert _outside(bench, port, "A") == outside[port], "one that lived lost its port"


def test_a_reset_with_the_sequence_number_that_is_due_is_believed(bench: Bench) -> None:
    """RFC 5961: who knows it sees the conversation. It is where the domain acknowledges, or follows on what does."""
    bench.reset(_router())
    outside = {port: _establish_outside(bench, port) for port in range(1000, 1000 + BLOCK)}
    following = tcp("lan", LAN_ADDRESS, 80, outside[1001], "A") / (b"x" * 30)
    following[TCP].seq = PEER_ISN + 1
    assert _verdict(bench, LAN, following) == "TO_DOMAIN"
    for port, sequence in ((1000, PEER_ISN + 1), (1001, PEER_ISN + 31)):
        reset = tcp("lan", LAN_ADDRESS, 80, outside[port], "R")
        reset[TCP].seq = sequence
        assert _verdict(bench, LAN, reset) == "TO_DOMAIN"
    assert [_outside(bench, 2000), _outside(bench, 2001)] == [outside[1000], outside[1001]]
    assert _verdict(bench, WEB, tcp("web", "lan", 2002, 81)) == "DROP_PORTS_FULL"


def test_what_died_in_the_queue_does_not_stand_before_what_may_be_forgotten(bench: Bench) -> None:
    """A block is closed, its conversations die of time, and others take their ports and close: again and again."""
    bench.reset(_router())
    for life in range(4):
        for port in range(1000, 1000 + BLOCK):
            _establish_outside(bench, 100 * life + port)
            assert _outside(bench, 100 * life + port, "RA")
        assert _outside(bench, 5000 + life) and _outside(bench, 5000 + life, "RA")
        bench.fastpath.advance_clock(world.router(RULES).timers.tcp_closing + 1)


def test_one_that_begins_anew_again_and_again_costs_no_port_of_the_others(bench: Bench) -> None:
    """As where a remote in TIME_WAIT answers each SYN by a challenge, and the domain that by a reset."""
    bench.reset(_router())
    for port in range(1000, 1000 + BLOCK):
        _establish_outside(bench, port)
        assert _outside(bench, port, "RA")
    for _ in range(2 * BLOCK):
        assert _outside(bench, 1000) and _outside(bench, 1000, "R")
    assert len({_outside(bench, 2000 + number) for number in range(BLOCK)}) == BLOCK


def test_a_late_segment_of_a_forgotten_conversation_finds_nothing(bench: Bench) -> None:
    """Not even the one that has its port now: the remote's port or address differs, or it is the same and TCP's
    own business."""
    bench.reset(_router())
    outside = {port: _establish_outside(bench, port) for port in range(1000, 1000 + BLOCK)}
    assert _outside(bench, 1003, "RA") == outside[1003]
    out = _send(bench, WEB, tcp("web", "lan", 2000, 81))
    assert out.frame is not None and Ether(out.frame)[TCP].sport == outside[1003]
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, outside[1003], "A")) == "DROP_UNSOLICITED"
    assert _verdict(bench, WEB, tcp("web", "lan", 1003, 80, "A")) == "DROP_NO_SESSION"


def test_a_reset_from_the_lan_makes_nothing_forgettable(bench: Bench) -> None:
    """Anybody there may have sent it, with a sequence number that both ends would not believe: neither a used-up
    block, nor a full table, may take the conversation's place. A SYN after it does not begin it anew either."""
    bench.reset(_router())
    outside = {port: _establish_outside(bench, port) for port in range(1000, 1000 + BLOCK)}
    for port in QUOTA_PORTS:
        _establish(bench, _forwarded(port))
    for guess in (0, PEER_ISN - 1, PEER_ISN + 2, 1 << 31):
        for port, to, flags in ((80, outside[1003], "R"), (QUOTA_PORTS[0], 2202, "R"), (QUOTA_PORTS[0], 2202, "S")):
            forged = tcp("lan", LAN_ADDRESS, port, to, flags)
            forged[TCP].seq = guess
            assert _verdict(bench, LAN, forged) == "TO_DOMAIN"
    assert _verdict(bench, WEB, tcp("web", "lan", 2000, 81)) == "DROP_PORTS_FULL"
    assert _verdict(bench, *_forwarded(9000)[0]) == "DROP_SESSIONS_FULL"
    assert _verdict(bench, WEB, tcp("web", "lan", 22, QUOTA_PORTS[0], "A")) == "TO_LAN"
    assert _outside(bench, 1003, "A") == outside[1003]
    for table, key in (("sessions", (1003, 80)), ("inbound", (22, QUOTA_PORTS[0]))):
        assert _sessions(bench, table, WEB)[key].tcp_state == TcpState.TCP_ESTABLISHED, "traffic restores it"


# Sweeping


def _mapped(bench: Bench) -> set[int]:
    """The inside ports that have a mapping."""
    inner = bench.fastpath.inner("mappings", WEB)
    assert inner is not None
    found = {MappingKey.from_buffer_copy(key).inside_port for key in list(inner.keys())}
    inner.close()
    return found


def test_sweep_clears_what_is_dead_and_nothing_that_lives(bench: Bench) -> None:
    bench.reset(_router())
    _establish(bench, _near(1000))
    _establish(bench, _forwarded(1001))
    _establish_outside(bench, 1002)
    _establish(bench, _near(2000)[:1])
    _establish(bench, _forwarded(2001)[:1])
    assert _verdict(bench, WEB, udp("web", "lan", 2002, 80)) == "TO_LAN"
    assert _verdict(bench, WEB, _piece(1)) == "TO_SORTER"
    bench.fastpath.sweep(WEB)
    assert (len(_sessions(bench, "sessions", WEB)), len(_sessions(bench, "inbound", WEB))) == (4, 2)
    assert _mapped(bench) == {1002, 2002}

    bench.fastpath.advance_clock(world.router(RULES).timers.udp + 1)
    assert len(_sessions(bench, "sessions", WEB)) == 4, "time alone deletes nothing"
    bench.fastpath.sweep(WEB)
    assert set(_sessions(bench, "sessions", WEB)) == {(1000, 80), (1002, 80)}
    assert set(_sessions(bench, "inbound", WEB)) == {(22, 1001)}
    assert _mapped(bench) == {1002}
    inner = bench.fastpath.inner("fragments", WEB)
    assert inner is not None and list(inner.keys()) == []
    inner.close()
    assert _verdict(bench, *_near(1000)[2]) == "TO_DOMAIN"
    assert _outside(bench, 1002, "A")


def test_a_port_whose_conversations_have_all_closed_is_free_when_they_are_dead(bench: Bench) -> None:
    """Also when a sweep came first, which leaves nothing of them in the table to give the port back."""
    bench.reset(_router())
    for port in range(1000, 1000 + BLOCK):
        outside = _establish_outside(bench, port)
        assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, outside, "FA")) == "TO_DOMAIN"
        assert _outside(bench, port, "FA") == outside
    bench.fastpath.advance_clock(world.router(RULES).timers.tcp_closing + 1)
    bench.fastpath.sweep(WEB)
    assert (_sessions(bench, "sessions", WEB), _mapped(bench)) == ({}, set())
    for port in range(2000, 2000 + BLOCK):
        _establish_outside(bench, port)


def test_a_port_stays_with_the_conversation_that_goes_on_when_others_through_it_close(bench: Bench) -> None:
    bench.reset(_router())
    outside = _establish_outside(bench, 1000)
    other = tcp("web", "lan", 1000, 81), tcp("lan", LAN_ADDRESS, 81, outside, "SA"), tcp("web", "lan", 1000, 81, "R")
    for sender, packet in zip((WEB, LAN, WEB), other, strict=True):
        assert not _verdict(bench, sender, packet).startswith("DROP_")
    bench.fastpath.advance_clock(world.router(RULES).timers.tcp_closing + 1)
    bench.fastpath.sweep(WEB)
    assert _mapped(bench) == {1000}
    assert _outside(bench, 1000, "A") == outside
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, outside, "A")) == "TO_DOMAIN"


def test_sweep_counts_the_half_open_anew(bench: Bench) -> None:
    """Those that died of silence are no more; those that live still are."""
    bench.reset(_router())
    for port in range(HALF_OPEN - 1):
        _establish(bench, _near(1000 + port)[:1])
    bench.fastpath.advance_clock(world.router(RULES).timers.tcp_opening + 1)
    _establish(bench, _near(2000)[:1])
    bench.fastpath.sweep(WEB)
    for port in range(HALF_OPEN - 1):
        _establish(bench, _near(3000 + port)[:1])
    assert _verdict(bench, *_near(4000)[0]) == "DROP_HALF_OPEN_FULL"


def test_sweep_of_a_row_that_is_nobody_s_does_nothing(bench: Bench) -> None:
    bench.reset(_router())
    _establish(bench, _near(1000))
    bench.fastpath.sweep(77)
    assert len(_sessions(bench, "sessions", WEB)) == 1


def test_a_conversation_with_one_s_own_limits_changed_lives_on(bench: Bench) -> None:
    """`vfr domain limit` with room for all of them."""
    bench.reset(_router())
    _establish(bench, _near(1000))
    bench.fastpath.resize_tables(WEB, replace(world.LIMITS, sessions=2 * QUOTA), BLOCK)
    try:
        assert _verdict(bench, *_near(1000)[2]) == "TO_DOMAIN"
        for number in range(2 * QUOTA - 1):
            assert _verdict(bench, WEB, udp("web", "db", 2000 + number, 80)) == "TO_DOMAIN"
        assert _verdict(bench, WEB, udp("web", "db", 5000, 80)) == "DROP_SESSIONS_FULL"
    finally:
        bench.fastpath.new_tables(WEB, world.LIMITS, BLOCK)
