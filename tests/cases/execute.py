"""Runs a case on the model, and on a bench (the object, or the native build), and compares what is seen."""

from __future__ import annotations

from typing import Protocol

from scapy.layers.l2 import Ether
from scapy.packet import Packet
from support import world
from support.bench import Bench, Outcome

from vfr._abi import Verdict
from vfr.spec import Router, State, step
from vfr.spec.model import LAN

NOW = 10**12


class Question(Protocol):
    """`before` are frames that come first and must not be dropped; None for `becomes` is silence where the frame is."""

    @property
    def sender(self) -> str: ...
    @property
    def packet(self) -> Packet: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def becomes(self) -> Packet | None: ...
    @property
    def before(self) -> tuple[tuple[str, Packet], ...]: ...


def node(name: str) -> int:
    return LAN if name == "lan" else world.SLOTS[name]


def on_model(case: Question, router: Router) -> Outcome:
    state = State()
    for sender, packet in case.before:
        result = step(router, state, NOW, node(sender), bytes(packet))
        assert not result.verdict.name.startswith("DROP_"), result.verdict.name
        state = result.state
    result = step(router, state, NOW, node(case.sender), bytes(case.packet), identification=7)
    return Outcome(result.verdict, result.frame, result.target)


def on_bench(bench: Bench, case: Question, router: Router) -> Outcome:
    bench.reset(router)
    for sender, packet in case.before:
        assert not bench.send(node(sender), bytes(packet)).verdict.name.startswith("DROP_")
    return bench.send(node(case.sender), bytes(case.packet))


def check(case: Question, seen: Outcome) -> None:
    assert seen.verdict.name == case.verdict.name
    if case.becomes is not None:
        assert seen.frame is not None
        assert seen.frame.hex() == bytes(case.becomes).hex(), Ether(seen.frame).show(dump=True)
    elif seen.verdict.name.startswith("DROP_"):
        assert seen.frame is None
