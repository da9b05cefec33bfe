"""Every case of the table, on the model and on the object: verdict by name, receiver, whole frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from support import world
from support.bench import Bench, Outcome

from cases.case import Case
from cases.table import CASES
from cases.test_dhcp import CASES as DHCP
from vfr._abi import Verdict
from vfr.spec import State, step
from vfr.spec.model import LAN, SORTER

NOW = 10**12


def _node(name: str) -> int:
    return {"lan": LAN, "sorter": SORTER}.get(name, world.SLOTS.get(name, -1))


def _on_model(case: Case) -> Outcome:
    router, state = world.router(case.rules), State()
    for sender, packet in case.before:
        result = step(router, state, NOW, _node(sender), bytes(packet))
        assert not result.verdict.name.startswith("DROP_"), result.verdict.name
        state = result.state
    router = replace(router, host_ports=case.host)
    result = step(router, state, NOW, _node(case.sender), bytes(case.packet), identification=7)
    return Outcome(result.verdict, result.frame, result.target)


def _on_object(case: Case, bench: Bench) -> Outcome:
    bench.reset(world.router(case.rules))
    for sender, packet in case.before:
        assert not bench.send(_node(sender), bytes(packet)).verdict.name.startswith("DROP_")
    bench.host_binds(case.host)
    return bench.send(_node(case.sender), bytes(case.packet))


def _check(case: Case, seen: Outcome) -> None:
    assert seen.verdict.name == case.verdict.name
    if case.target:
        assert seen.target == _node(case.target)
    if case.becomes is None:
        assert not case.verdict.name.startswith("DROP_") or seen.frame is None or case.answered
        return
    assert seen.frame is not None
    wanted = case.becomes.copy()
    if seen.verdict == Verdict.TO_LAN and not wanted[IP].flags.DF:
        wanted[IP].id = Ether(seen.frame)[IP].id  # the router chooses it
        del wanted[IP].chksum
    assert seen.frame.hex() == bytes(wanted).hex(), Ether(seen.frame).show(dump=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_model(case: Case) -> None:
    _check(case, _on_model(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_object(case: Case, bench: Bench) -> None:
    _check(case, _on_object(case, bench))


def test_every_drop_has_a_case() -> None:
    """A verdict that no case ends in is a verdict that nobody has seen."""
    # Made by circumstances that single packets do not bring about; each has a test of its own.
    elsewhere = {
        "DROP_NOT_READY",
        "DROP_NO_UPLINK",
        "DROP_SESSIONS_FULL",
        "DROP_HALF_OPEN_FULL",
        "DROP_NO_SORTER",
        "DROP_OFFLOAD",
        "DROP_RATE_OUT",
        "DROP_RATE_IN",
        "DROP_PPS_OUT",
        "DROP_PPS_IN",
        "DROP_SHARE",
        "HAIRPIN",
        "DROP_DHCP_TOO_FAST",
        "DROP_KERNEL",
        "CONTINUE",
        "VERDICTS",
    }
    shown = {case.verdict.name for case in (*CASES, *DHCP)}
    assert {v.name for v in Verdict} - shown == elsewhere


def test_udp_without_checksum_stays_so(bench: Bench) -> None:
    case = next(c for c in CASES if c.sentence == "UDP without a checksum stays without")
    for seen in (_on_model(case), _on_object(case, bench)):
        assert seen.frame is not None
        out = Ether(seen.frame)
        assert (out[IP].src, out[UDP].chksum) == (world.OUTSIDE.compressed, 0)


def test_a_wrong_checksum_stays_wrong_by_as_much(bench: Bench) -> None:
    """A router repairs nothing: what was damaged before it must be seen as damaged after it."""
    case = next(c for c in CASES if c.sentence == "TCP to the LAN keeps its port where it may")
    good = _on_object(case, bench).frame
    assert good is not None
    packet = case.packet.copy()
    del packet[TCP].chksum
    packet = Ether(bytes(packet))
    packet[TCP].chksum ^= 0x0101
    bench.reset(world.router(case.rules))
    bad = bench.send(_node("web"), bytes(packet)).frame
    assert bad is not None and Ether(bad)[TCP].chksum != Ether(good)[TCP].chksum
