"""What holds of a rate whatever is sent: never more than it says, never less than it must, on several CPUs too.

Random loads go through the native build, whose clock the test sets, and through the model, which must say the same of
every packet. The object meets two CPUs at once.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.packet import Raw
from support import world
from support.bench import Bench
from support.frames import ether, udp
from support.native import Native

from vfr._abi import Runtime, Verdict
from vfr.kernel import bpf
from vfr.settings import Limits
from vfr.spec import Router, State, step

pytestmark = pytest.mark.inv(7)
OPEN = "allow any -> any\nallow any -> lan\nallow web -> db ether 0x88a2\n"
WEB, START, SECOND = world.SLOTS["web"], 10**15, 10**9
LONGEST = 1442  # bytes of the longest frame that is sent here
HEADERS = 42
EASE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

Load = list[tuple[int, int]]  # when (ns since the start) and how many bytes
loads = st.lists(st.tuples(st.integers(0, 60_000_000), st.integers(HEADERS, LONGEST)), min_size=1, max_size=120).map(
    lambda steps: [
        (at, size) for at, (_, size) in zip(itertools.accumulate(gap for gap, _ in steps), steps, strict=True)
    ]
)
rates = st.integers(1000, 10**9)
bursts = st.integers(1, 500)


def _frame(size: int) -> bytes:
    return bytes(udp("web", "lan", 16393, 9, bytes(size - HEADERS)))


def _router(uplink_rate: int = 0, **limits: int) -> Router:
    made: Limits = replace(world.LIMITS, **limits)
    return replace(world.router(OPEN), limits=made, uplink_rate=uplink_rate)


def _ends(native: Native, router: Router, load: Load) -> Iterator[Verdict]:
    """What becomes of a load's frames on the native build."""
    frames = {size: _frame(size) for size in {size for _, size in load}}
    native.clock(START)
    native.reset(router)
    for at, size in load:
        native.clock(START + at)
        yield native.send(WEB, frames[size]).verdict
    native.clock(START)


def _passed(native: Native, router: Router, load: Load) -> list[bool]:
    return [end is Verdict.TO_LAN for end in _ends(native, router, load)]


def _run(native: Native, router: Router, load: Load) -> list[bool]:
    """Which of a load's frames pass, as the native build and the model both say."""
    state, passed = State(), []
    for (at, size), end in zip(load, _ends(native, router, load), strict=True):
        done = step(router, state, START + at, WEB, _frame(size))
        assert end == done.verdict, (at, size)
        state = done.state
        passed.append(end is Verdict.TO_LAN)
    return passed


@settings(max_examples=60, **EASE)
@given(load=loads, rate=rates, burst_ms=bursts)
def test_in_no_window_does_more_pass_than_rate_and_burst_allow(
    native: Native, load: Load, rate: int, burst_ms: int
) -> None:
    """Bits from any packet to any later one: rate x time + burst, and the last frame, which goes into debt."""
    passed = _run(native, _router(rate_out=rate, burst_ms=burst_ms), load)
    went = [sent for sent, has in zip(load, passed, strict=True) if has]
    for first in range(len(went)):
        bits = 0
        for at, size in went[first:]:
            allowed = rate * (at - went[first][0]) / SECOND + rate * burst_ms / 1000
            assert bits <= allowed + 1, (first, at)
            bits += 8 * size


@settings(max_examples=60, **EASE)
@given(load=loads, rate=rates, burst_ms=bursts)
def test_nobody_is_refused_before_the_burst_is_used_up(native: Native, load: Load, rate: int, burst_ms: int) -> None:
    """A refused packet is preceded by a window in which more passed than rate and burst allow, in that very rate."""
    passed = _run(native, _router(rate_out=rate, burst_ms=burst_ms), load)
    for number, (at, _) in enumerate(load):
        if passed[number]:
            continue
        backlogs, bits = [], 0
        for earlier in range(number - 1, -1, -1):
            bits += 8 * load[earlier][1] * passed[earlier]
            backlogs.append(bits - rate * (at - load[earlier][0]) / SECOND)
        assert max(backlogs) > rate * burst_ms / 1000 - len(load) * (rate / SECOND + 1), number


@settings(max_examples=60, **EASE)
@given(
    load=loads, rate=rates, burst_ms=bursts, pps=st.integers(1, 10_000), uplink_rate=st.sampled_from([0, 8000, 10**6])
)
def test_the_model_says_the_same_of_all_rates_together(
    native: Native, load: Load, rate: int, burst_ms: int, pps: int, uplink_rate: int
) -> None:
    _run(native, _router(uplink_rate, rate_out=rate, pps_out=pps, burst_ms=burst_ms), load)


def test_one_who_keeps_to_the_rate_is_never_refused(native: Native) -> None:
    """With hardly any burst: each frame is sent when the last is paid for."""
    for rate in (10**6, 10**8, 10**10):
        takes = -(-8 * LONGEST * SECOND // rate)
        assert all(_passed(native, _router(rate_out=rate, burst_ms=1), [(n * takes, LONGEST) for n in range(500)]))


@pytest.mark.parametrize("rate", [10**6, 10**7, 10**8, 10**9, 10**10])
@pytest.mark.parametrize("size", [60, LONGEST])
def test_one_who_sends_too_much_gets_the_rate_exactly(native: Native, rate: int, size: int) -> None:
    """Twice the rate, for as long as 2000 such frames take at it, after the burst: within a fiftieth."""
    takes = 8 * size * SECOND / rate
    frames = 2 * 2000 + int(0.002 * SECOND / takes) * 2
    passed = _passed(native, _router(rate_out=rate, burst_ms=1), [(int(n * takes / 2), size) for n in range(frames)])
    tail = passed[-2 * 2000 :]
    assert abs(sum(tail) / 2000 - 1) < 0.02


# The uplink's share


def _mix(native: Native, rate: int, wants: dict[str, int], seconds: float) -> dict[str, float]:
    """What each sender's part of an uplink is, in bits a second over the latter half, when each sends `wants` bits a
    second in frames of 1000 bytes."""
    native.clock(START)
    native.reset(_router(rate))
    frames = {who: bytes(udp(who, "lan", 5000, 9, bytes(1000 - HEADERS))) for who in wants}
    due = sorted(
        (int(n * 8000 * SECOND / want), who) for who, want in wants.items() for n in range(int(seconds * want / 8000))
    )
    had = dict.fromkeys(wants, 0)
    for at, who in due:
        native.clock(START + at)
        passed = native.send(world.SLOTS[who], frames[who]).verdict.name == "TO_LAN"
        had[who] += 8000 * passed * (at > seconds * SECOND / 2)
    native.clock(START)
    return {who: bits / (seconds / 2) for who, bits in had.items()}


RATE = 10_000_000
WIRE = 1000 / 1024  # of what is on the wire, what counts as frames


@pytest.mark.parametrize("flood", [20_000_000, 100_000_000])
def test_who_wants_less_than_the_share_gets_it_all_beside_a_flood(native: Native, flood: int) -> None:
    had = _mix(native, RATE, {"web": flood, "db": 2_000_000, "odd": 1_000_000}, 8)
    assert had["db"] == pytest.approx(2_000_000, rel=0.01) and had["odd"] == pytest.approx(1_000_000, rel=0.01)
    assert had["web"] == pytest.approx(RATE * WIRE - 3_000_000, rel=0.1), "and the flood what is left"


def test_who_want_more_get_the_same(native: Native) -> None:
    had = _mix(native, RATE, {"web": 60_000_000, "db": 6_000_000, "odd": 1_000_000}, 8)
    assert had["odd"] == pytest.approx(1_000_000, rel=0.01)
    assert had["db"] == pytest.approx((RATE * WIRE - 1_000_000) / 2, rel=0.15)
    assert sum(had.values()) == pytest.approx(RATE * WIRE, rel=0.05)


def test_an_uplink_that_is_not_full_refuses_nobody(native: Native) -> None:
    """Also right after a flood, when the fair rate is still low."""
    had = _mix(native, RATE, {"web": 8_500_000, "db": 500_000}, 4)
    assert had == pytest.approx({"web": 8_500_000, "db": 500_000}, rel=0.01)


# Two CPUs at once

PPS, RUN_S = 100_000, 0.5


def _hammer(program: int, ifindex: int, frame: bytes, cpu: int, until: float) -> None:
    """The same frame, again and again, on one CPU. Raw Ethernet: a run leaves it as it was."""
    os.sched_setaffinity(0, {cpu})
    while time.monotonic() < until:
        bpf.test_run(program, frame, ifindex, repeat=2000)


@pytest.mark.parametrize("burst_ms", [10_000, 100])
def test_two_cpus_together_get_the_rate_once(bench: Bench, burst_ms: int) -> None:
    """With a burst that is not used up, every packet that passes is paid for: no CPU's drawing overwrites another's.
    With a shorter one, no more pass than the rate and the burst allow, and a packet for each CPU."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("there is one CPU")
    bench.reset(_router(pps_out=PPS, burst_ms=burst_ms))
    frame = bytes(ether("web", Raw(b"x" * 46), type=0x88A2, dst=world.NODES["db"].mac))
    before = bench.fastpath.counters([WEB])[WEB]
    program, began, began_ns = bench.fastpath.program("vif"), time.monotonic(), bench.fastpath.now_ns()
    with ThreadPoolExecutor(2, initializer=bench.enter) as pool:
        list(pool.map(lambda cpu: _hammer(program, bench.ifindex["web"], frame, cpu, began + RUN_S), cpus))
    seconds = (bench.fastpath.now_ns() - began_ns) / SECOND
    after = bench.fastpath.counters([WEB])[WEB]
    passed, refused = (after.get(v, (0, 0))[0] - before.get(v, (0, 0))[0] for v in ("TO_DOMAIN", "DROP_PPS_OUT"))
    runtime = Runtime.from_buffer_copy(bench.fastpath.map("runtime").get(WEB.to_bytes(4, "little")) or b"")
    print(f"\n{passed} passed in {seconds:.2f} s, {refused} refused")
    assert passed > 1000
    assert passed <= PPS * (seconds + burst_ms / 1000) + len(cpus)
    if not refused:
        assert runtime.outward.packets_until_ns - passed * SECOND // PPS >= began_ns
