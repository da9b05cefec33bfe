"""Every case of the table while all VIFs are captured: each frame on one is seen once, with the verdict that it ended in,
as its sender sent it, and as its receiver got it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from support import world
from support.bench import ANSWERS, Bench, Outcome
from support.frames import tcp
from support.native import Native

from cases.case import XEN, Case
from cases.table import CASES
from cases.test_table import _node
from vfr import _abi
from vfr._abi import Limit, Seen, Verdict
from vfr.capture import WAYS, wish
from vfr.kernel.capturing import LEASE_S, Capture
from vfr.spec.model import SORTER

RING = 1 << 14
WEB, FRAME = world.SLOTS["web"], bytes(tcp("web", "lan", 3000, 80, "S"))
EVERYTHING = wish(snap=int(Limit.SNAP_MAX), per_s=0)
Sights = list[tuple[str, str, bytes]]  # the way, the verdict, the frame


@pytest.fixture(scope="module")
def captures(bench: Bench) -> Iterator[dict[int, Capture]]:
    with ExitStack() as stack:
        made = {
            slot: stack.enter_context(Capture(bench.fastpath, slot, slot + 1, EVERYTHING, RING))
            for slot in world.SLOTS.values()
        }
        for one in made.values():
            one.start()
            stack.callback(one.stop)
        yield made


def _seen(captures: dict[int, Capture]) -> dict[int, Sights]:
    return {
        slot: [(WAYS[Seen(s.way)], Verdict(s.verdict).name, data) for s, data in one.sights(0)]
        for slot, one in captures.items()
    }


class Counted:
    """What the counters of each slot have counted since it was made: name -> packets."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._before = bench, bench.fastpath.counters(world.SLOTS.values())

    def since(self, slot: int) -> dict[str, int]:
        after = self._bench.fastpath.counters([slot])[slot]
        more = {name: count - self._before[slot].get(name, (0, 0))[0] for name, (count, _) in after.items()}
        return {name: count for name, count in more.items() if count}


def _check(case: Case, outcome: Outcome, counted: dict[str, int], sights: Sights) -> None:
    """What is seen of a slot is what is counted in its row; whose frames they are, the case and what came out say."""
    received, errors = counted.pop("received", 0), counted.pop("errors", 0)
    sent = [sight for sight in sights if sight[0] in ("from", "again")]
    got = [sight for sight in sights if sight[0] == "to" and not sight[1].startswith("DROP_")]
    replies = [sight for sight in sights if sight[0] == "reply"]
    assert {verdict: 1 for _, verdict, _ in sent} == counted
    assert [way for way, _, _ in sent] == len(sent) * ["again" if _node(case.sender) == SORTER else "from"]
    assert all(frame == bytes(case.packet) for _, _, frame in sent)
    assert len(got) == received and len(replies) == errors + sum(counted.get(v.name, 0) for v in ANSWERS)
    assert all((verdict, frame) == (outcome.verdict.name, outcome.frame) for _, verdict, frame in got + replies)
    assert all(verdict == outcome.verdict.name for _, verdict, _ in sights if verdict != "HAIRPIN")


def _prepare(case: Case, bench: Bench) -> None:
    bench.reset(world.router(case.rules))
    for sender, packet in case.before:
        bench.send(_node(sender), bytes(packet))
    bench.host_binds(case.host)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_object(case: Case, bench: Bench, captures: dict[int, Capture]) -> None:
    for one in captures.values():
        one.renew()
    _prepare(case, bench)
    _seen(captures)
    counted = Counted(bench)
    outcome = bench.send(_node(case.sender), bytes(case.packet))
    for slot, sights in _seen(captures).items():
        _check(case, outcome, counted.since(slot), sights)
    assert not any(one.totals().lost for one in captures.values())


def _sent(bench: Bench, captures: dict[int, Capture], frame: bytes) -> tuple[dict[str, int], int]:
    """A frame of web's: what is counted, and how much of it is seen."""
    for one in captures.values():
        one.renew()
    _seen(captures)
    counted = Counted(bench)
    bench.send(WEB, frame)
    return counted.since(WEB), sum(map(len, _seen(captures).values()))


@pytest.mark.inv(8)
def test_a_slots_next_tenant_is_not_seen(bench: Bench, captures: dict[int, Capture]) -> None:
    bench.reset(world.router(XEN))
    row = bench.fastpath.domains()[WEB]
    assert _sent(bench, captures, FRAME) == ({"TO_LAN": 1}, 1)
    bench.fastpath.set_domain(WEB, replace(row, generation=99))
    assert _sent(bench, captures, FRAME) == ({"TO_LAN": 1}, 0)


def test_what_nobody_renews_is_over(bench: Bench, captures: dict[int, Capture]) -> None:
    bench.reset(world.router(XEN))
    assert _sent(bench, captures, FRAME) == ({"TO_LAN": 1}, 1)
    bench.fastpath.advance_clock(LEASE_S + 1)
    bench.send(WEB, FRAME)
    assert not any(_seen(captures).values())


def test_who_reads_on_later_gets_no_frame_twice(bench: Bench, captures: dict[int, Capture]) -> None:
    bench.reset(world.router(XEN))
    one = captures[WEB]
    one.renew()
    list(one.sights(0))
    for _ in range(3):
        bench.send(WEB, FRAME)
    first = next(one.sights(0))
    assert len([first, *one.sights(0)]) == 3


def test_a_full_ring_loses_and_counts(bench: Bench, captures: dict[int, Capture]) -> None:
    """Frames of 60 bytes, each with 56 of its own, into 16 KiB; and what is not wanted takes no room."""
    bench.reset(world.router(XEN))
    one = captures[WEB]
    one.renew()
    before = one.totals()
    for _ in range(200):
        bench.send(WEB, FRAME)
    taken = [sight for sight, _ in one.sights(0)]
    totals = one.totals()
    assert totals.seen - before.seen == 200 and totals.too_fast == 0
    assert 100 < len(taken) < 200 and totals.no_room - before.no_room == 200 - len(taken)
    bench.send(WEB, FRAME)
    (after,) = one.sights(0)
    assert after[0].lost == 200 - len(taken)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_native(case: Case, native: Native) -> None:
    """The native ring has no reader: counted is what goes in, and the last frame lies where it was copied."""
    _prepare(case, native)
    native.capture(world.SLOTS.values())
    counted = Counted(native)
    outcome = native.send(_node(case.sender), bytes(case.packet))
    seen = 0
    for slot in world.SLOTS.values():
        row = _abi.Captured.from_buffer_copy(native.fastpath.map("captured").get(slot.to_bytes(4, "little")) or b"")
        more = row.seen - sum(counted.since(slot).values()) - sum(counted.since(slot).get(v.name, 0) for v in ANSWERS)
        assert more in (0, 1) if outcome.verdict.name.startswith("DROP_") else more == 0, "dropped on its way there"
        seen += row.seen
    last = _abi.Sight.from_buffer_copy(native.fastpath.map("arrival").get(bytes(4)) or b"")
    assert not seen or Verdict(last.verdict) in (outcome.verdict, Verdict.HAIRPIN)
