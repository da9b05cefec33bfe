"""Rates, on model, object and native build: what counts, whose it is, and what a packet that is dropped draws on.

web 169.254.1.2 (slot 1)   db .3 (slot 2)   odd 198.18.0.77 (slot 3)   uplink 192.0.2.1/24 --- LAN

The rates are so slow that one frame takes seconds of them, and the burst is none to speak of: whoever has sent one has
no credit left while a case lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench, Outcome
from support.frames import LAN_ADDRESS, ether, ip, tcp, udp
from support.native import Native
from support.world import NODES

from cases.test_table import NOW, _node
from vfr._abi import Verdict as V
from vfr.settings import Limits
from vfr.spec import Router, State, step

pytestmark = pytest.mark.inv(7)
OPEN = "allow any -> any\nallow any -> lan\nallow lan -> any\nallow web -> db ether 0x88a2\ndeny web -> odd\n"
SLOW = 1000  # bits a second: the shortest frame takes a third of a second
LONG = bytes(1000)  # and one that carries this eight seconds
Send = Callable[[str, Packet], Outcome]


@dataclass(frozen=True, slots=True)
class Case:
    """Under these limits, each frame in turn: who sends it, and its end."""

    sentence: str
    limits: dict[str, int]
    frames: tuple[tuple[str, Packet, V], ...]


def _ether() -> Packet:
    return ether("web", Raw(b"x" * 46), type=0x88A2, dst=NODES["db"].mac)


def _piece(offset: int, more: bool) -> Packet:
    """A fragment of a datagram from web to db."""
    load = udp("web", "db", 7, 8)["UDP"] if not offset else Raw(b"y" * 16)
    return ip("web", "db", frag=offset // 8, flags="MF" if more else 0, id=99, proto=17) / (load / Raw(b"z" * 3))


TO_LAN, TO_DB, ODD_TO_DB = udp("web", "lan", 16393, 9), udp("web", "db", 7, 9), udp("odd", "db", 7, 9)
REPLY = udp("lan", LAN_ADDRESS, 9, 16393)
SYN, SYN_ACK = tcp("web", "db", 3000, 80), tcp("db", "web", 80, 3000, "SA", 1001)
CASES = (
    Case(
        "what it sends to the LAN is held to its rate",
        {"rate_out": SLOW},
        (("web", TO_LAN, V.TO_LAN), ("web", TO_LAN, V.DROP_RATE_OUT), ("db", udp("db", "lan", 7, 9), V.TO_LAN)),
    ),
    Case(
        "what the LAN sends it is held to the rate of what it is sent",
        {"rate_in": SLOW},
        (
            ("web", TO_LAN, V.TO_LAN),
            ("web", TO_LAN, V.TO_LAN),
            ("lan", REPLY, V.TO_DOMAIN),
            ("lan", REPLY, V.DROP_RATE_IN),
        ),
    ),
    Case(
        "packets have a rate of their own, out",
        {"pps_out": 1},
        (("web", TO_LAN, V.TO_LAN), ("web", TO_LAN, V.DROP_PPS_OUT)),
    ),
    Case(
        "packets have a rate of their own, in",
        {"pps_in": 1},
        (("web", TO_DB, V.TO_DOMAIN), ("odd", ODD_TO_DB, V.DROP_PPS_IN), ("web", TO_LAN, V.TO_LAN)),
    ),
    Case(
        "between domains it counts as sent and as received",
        {"rate_out": SLOW, "rate_in": SLOW},
        (
            ("web", TO_DB, V.TO_DOMAIN),
            ("web", TO_LAN, V.DROP_RATE_OUT),
            ("odd", ODD_TO_DB, V.DROP_RATE_IN),
        ),
    ),
    Case(
        "what no rule allows draws on nothing",
        {"rate_out": SLOW, "pps_out": 1},
        (
            ("web", udp("web", "odd", 7, 9), V.DROP_POLICY),
            ("web", udp("web", "lan", 16393, 9, ttl=1), V.DROP_TTL),
            ("web", udp("web", "lan", 16393, 9, src=NODES["db"].ip), V.DROP_SRC_IP),
            ("web", TO_LAN, V.TO_LAN),
        ),
    ),
    Case(
        "what the receiver's rate refuses draws on none of the sender's",
        {"rate_out": SLOW, "rate_in": SLOW},
        (
            ("odd", ODD_TO_DB, V.TO_DOMAIN),
            ("web", TO_DB, V.DROP_RATE_IN),
            ("web", TO_DB, V.DROP_RATE_IN),
            ("web", TO_LAN, V.TO_LAN),
        ),
    ),
    Case(
        "a refused opening makes no conversation",
        {"pps_in": 1},
        (
            ("odd", ODD_TO_DB, V.TO_DOMAIN),
            ("web", SYN, V.DROP_PPS_IN),
            ("db", SYN_ACK, V.DROP_NO_SESSION),
        ),
    ),
    Case(
        "raw Ethernet counts",
        {"rate_out": SLOW},
        (("web", _ether(), V.TO_DOMAIN), ("web", _ether(), V.DROP_RATE_OUT)),
    ),
    Case(
        "a later fragment counts",
        {"pps_out": 1},
        (("web", _piece(0, True), V.TO_DOMAIN), ("web", _piece(16, False), V.DROP_PPS_OUT)),
    ),
    Case(
        "by the LAN address it counts as sent and as received, once each",
        {"rate_out": SLOW, "rate_in": SLOW},
        (
            ("web", tcp("web", LAN_ADDRESS, 16393, 2203), V.TO_DOMAIN),
            ("web", TO_LAN, V.DROP_RATE_OUT),
            ("odd", ODD_TO_DB, V.DROP_RATE_IN),
            ("db", udp("db", "lan", 7, 9), V.TO_LAN),
            ("odd", udp("odd", "web", 7, 9), V.TO_DOMAIN),
        ),
    ),
    Case(
        "a burst passes at once, and then no more",
        {"pps_out": 1, "burst_ms": 2000},
        (*(("web", TO_LAN, V.TO_LAN),) * 3, ("web", TO_LAN, V.DROP_PPS_OUT)),
    ),
    Case(
        "others may begin only so many conversations with it",
        {"new_in_per_s": 1},
        (
            *(("web", udp("web", "db", 100 + n, 9), V.TO_DOMAIN) for n in range(2)),
            ("odd", ODD_TO_DB, V.DROP_TOO_FAST),
            ("web", udp("web", "db", 100, 9), V.TO_DOMAIN),
            ("lan", tcp("lan", LAN_ADDRESS, 7, 2203), V.DROP_TOO_FAST),
            ("lan", tcp("lan", LAN_ADDRESS, 7, 2202), V.TO_DOMAIN),
            ("web", TO_LAN, V.TO_LAN),
        ),
    ),
    Case(
        "what a quota refuses gives back what it drew, the sender's and the receiver's",
        {"sessions": 2, "rate_out": SLOW, "rate_in": SLOW, "burst_ms": 10_000},
        (
            *(("web", udp("web", "db", 100 + n, 9), V.TO_DOMAIN) for n in range(2)),
            *(("odd", udp("odd", "web", 100 + n, 9), V.TO_DOMAIN) for n in range(2)),
            *(("odd", udp("odd", "db", 200, 9, LONG), V.DROP_SESSIONS_FULL),) * 10,
            *(("web", udp("web", "db", 200, 9, LONG), V.DROP_SESSIONS_FULL),) * 10,
            *(("web", udp("web", "db", 100, 9, LONG), V.TO_DOMAIN),) * 2,
            ("web", udp("web", "db", 100, 9, LONG), V.DROP_RATE_OUT),
            ("odd", udp("odd", "db", 200, 9, LONG), V.DROP_RATE_IN),
        ),
    ),
)


def _router(limits: dict[str, int], uplink_rate: int = 0) -> Router:
    made: Limits = replace(world.LIMITS, **{"burst_ms": 1, **limits})
    return replace(world.router(OPEN), limits=made, uplink_rate=uplink_rate)


def _on_model(router: Router) -> Send:
    states = [State()]

    def send(sender: str, packet: Packet) -> Outcome:
        done = step(router, states[-1], NOW, _node(sender), bytes(packet))
        states.append(done.state)
        return Outcome(done.verdict, done.frame, done.target)

    return send


def _on(bench: Bench, router: Router) -> Send:
    bench.reset(router)
    return lambda sender, packet: bench.send(_node(sender), bytes(packet))


@pytest.fixture(params=["model", "object", "native"])
def executor(request: pytest.FixtureRequest) -> Callable[[Router], Send]:
    if request.param == "model":
        return _on_model
    bench: Bench | Native = request.getfixturevalue({"object": "bench"}.get(request.param, request.param))
    return lambda router: _on(bench, router)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_rates(case: Case, executor: Callable[[Router], Send]) -> None:
    send = executor(_router(case.limits))
    seen = [send(sender, packet) for sender, packet, _ in case.frames]
    assert [outcome.verdict.name for outcome in seen] == [verdict.name for *_, verdict in case.frames]
    silent = ("DROP_RATE_OUT", "DROP_RATE_IN", "DROP_PPS_OUT", "DROP_PPS_IN")
    assert all(outcome.frame is None for outcome in seen if outcome.verdict.name in silent), "nobody is told"


def _long(sender: str, number: int) -> Packet:
    return udp(sender, "lan", 16393 if sender == "web" else 16401, 9, bytes([number % 256]) * 1400)


def test_on_an_overloaded_uplink_nobody_has_more_than_a_share(executor: Callable[[Router], Send]) -> None:
    """web fills the queue that is reckoned for an uplink of 8 kbit/s, and goes on: it is refused, and db is not. One is
    refused when it has had twice the queue that is aimed at, and all that are long from four times that on."""
    send = executor(_router({}, uplink_rate=(rate := 8000)))
    began = time.monotonic()
    seen = [send("web", _long("web", n)).verdict.name for n in range(800)]
    drained = rate * (time.monotonic() - began)  # at the most: the object's clock goes on by itself
    bits, queue = 8 * (len(bytes(_long("web", 0))) + 24), 1 << 20
    first, warned = seen.index("DROP_SHARE"), seen.index("DROP_SHARE", seen.index("DROP_SHARE") + 1)
    assert 0 <= bits * first - 2 * queue <= 2 * bits + drained
    assert 0 <= bits * (warned - 1) - 4 * queue <= 2 * bits + drained
    assert seen[first + 1 : warned] == ["TO_LAN"] * (warned - first - 1)
    assert seen[warned:].count("TO_LAN") <= 1 + drained / bits
    assert send("web", TO_LAN).verdict.name == "TO_LAN", "what is short passes where nothing else does"
    assert [send("db", _long("db", n)).verdict.name for n in range(20)] == ["TO_LAN"] * 20
    assert send("web", TO_DB).verdict.name == "TO_DOMAIN", "what does not go by the uplink has nothing to share"


def test_what_a_quota_refuses_takes_nothing_of_the_uplink(executor: Callable[[Router], Send]) -> None:
    """As many openings as would fill eight of the uplink's queues, refused; and the conversation that there is goes on."""
    send = executor(_router({"sessions": 1}, uplink_rate=800))
    assert send("web", _long("web", 0)).verdict.name == "TO_LAN"
    openings = [udp("web", "lan", 16393, 1000 + n, bytes(1400)) for n in range(900)]
    assert {send("web", packet).verdict.name for packet in openings} == {"DROP_SESSIONS_FULL"}
    assert send("web", _long("web", 1)).verdict.name == "TO_LAN"


def test_short_packets_have_an_end_too(executor: Callable[[Router], Send]) -> None:
    send = executor(_router({}, uplink_rate=100))
    packet = udp("web", "lan", 16393, 9, bytes(200))
    seen = [send("web", packet).verdict.name for _ in range(4000)]
    first = seen.index("DROP_SHARE")
    bits = 8 * (len(bytes(packet)) + 24)
    assert set(seen[:first]) == {"TO_LAN"} and seen[first:].count("TO_LAN") <= 1
    assert 0 <= bits * first - 8 * (1 << 20) <= 20 * bits, "and what the object's own clock gave back meanwhile"


def test_a_frame_counts_with_all_its_bytes_and_no_more(native: Native) -> None:
    """At 8000 bits a second a byte takes a millisecond: the next passes when all of the last are paid for."""
    native.reset(_router({"rate_out": 8000}))
    frame = bytes(udp("web", "lan", 16393, 9, b"x" * 958))
    assert len(frame) == 1000
    ms, start = 10**6, 10**15
    for at, end in ((0, "TO_LAN"), (998, "DROP_RATE_OUT"), (999, "TO_LAN"), (1998, "DROP_RATE_OUT"), (1999, "TO_LAN")):
        native.clock(start + at * ms)
        assert native.send(1, frame).verdict.name == end, at
    native.clock(10**15)


def test_a_frame_that_is_to_be_cut_counts_as_what_it_is_cut_into(native: Native) -> None:
    """Ten segments of 1000 bytes: 10 packets, and nine more headers of Ethernet, IP and TCP than the frame has."""
    head = tcp("web", "lan", 16393, 80, "A")
    syn, frame = bytes(tcp("web", "lan", 16393, 80)), bytes(Ether(bytes(head / Raw(b"x" * 10_000))))
    offload = {"gso_size": 1000, "gso_segs": 0, "partial": 1, "csum_start": 34, "csum_offset": 16}
    wire = 10 * (1000 + 54)
    ms, start = 10**6, 10**15
    for limits, takes_ms in (({"rate_out": 8000}, wire), ({"pps_out": 100}, 100)):
        native.clock(start)
        native.reset(_router({}))
        assert native.send(1, syn).verdict.name == "TO_LAN"
        _limit(native, limits)
        assert native.send(1, frame, **offload).verdict.name == "TO_LAN"
        for at, end in ((takes_ms - 2, "DROP"), (takes_ms - 1, "TO_LAN")):
            native.clock(start + at * ms)
            assert native.send(1, frame, **offload).verdict.name.startswith(end), (limits, at)
    native.clock(start)


def _limit(native: Native, limits: dict[str, int]) -> None:
    """Other limits for web, as the control plane sets them under traffic: its conversations stay."""
    row = native.fastpath.domains()[1]
    native.fastpath.set_domain(1, replace(row, limits=replace(row.limits, **limits)))


def test_a_faster_rate_is_in_force_at_once(native: Native) -> None:
    """What a slow rate was owed, hours of it, is not waited for under another."""
    native.reset(_router({"rate_out": 1000}))
    frame = bytes(udp("web", "lan", 16393, 9, b"x" * 1400))
    assert [native.send(1, frame).verdict.name for _ in range(2)] == ["TO_LAN", "DROP_RATE_OUT"]
    _limit(native, {"rate_out": 10**9})
    assert native.send(1, frame).verdict.name == "DROP_RATE_OUT", "it has still had one too many"
    native.clock(10**15 + 11 * 10**6)
    assert native.send(1, frame).verdict.name == "TO_LAN"
    _limit(native, {"rate_out": 0})
    assert {native.send(1, frame).verdict.name for _ in range(100)} == {"TO_LAN"}
    native.clock(10**15)
