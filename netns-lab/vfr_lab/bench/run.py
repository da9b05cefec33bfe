"""Rounds: each backend in turn, all workloads on each, so that what is compared was measured minutes apart at most.

A ratio is of two figures of one round, and the table has the median of the rounds' ratios. Each round begins with
another backend than the last, so that none is always first. `direct` is one of the backends, and the generators
alone are measured while it is wired.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vfr_lab.backends import Backend
from vfr_lab.bench import cost, stage
from vfr_lab.bench.figures import Sample
from vfr_lab.bench.workloads import LIMIT, Workload, measure
from vfr_lab.lab import Lab

DIRECT = "direct"
Say = Callable[[str], None]


def order(backends: Sequence[Backend], round_: int) -> list[Backend]:
    """The round's order: rotated by one each round."""
    at = round_ % len(backends)
    return [*backends[at:], *backends[:at]]


def rounds(
    lab: Lab, backends: Sequence[Backend], workloads: Sequence[Workload], count: int, seconds: float, say: Say
) -> list[Sample]:
    """Every sample."""
    samples: list[Sample] = []
    for round_ in range(count):
        for one in order(backends, round_):
            stage.wire(lab, one)
            for name in (one.name, LIMIT) if one.name == DIRECT else (one.name,):
                say(f"round {round_ + 1} of {count}: {name} (load {os.getloadavg()[0]:.1f})")
                samples += [measure(lab, name, w, round_, seconds) for w in workloads]
    return samples


def costs(lab: Lab, vfr: Backend, workloads: Sequence[Workload], seconds: float, say: Say) -> list[cost.Cost]:
    """What VFR's programs take in each workload: a pass of its own, since the statistics slow what they count."""
    stage.wire(lab, vfr)
    found: list[cost.Cost] = []
    say("what VFR's programs take, by the kernel's statistics")
    with cost.statistics():
        for w in workloads:
            before = cost.spent(cost.pins(lab))
            if measure(lab, vfr.name, w, 0, seconds).value is not None:
                found += cost.between(w.name, before, cost.spent(cost.pins(lab)))
    return found
