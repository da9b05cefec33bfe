"""Samples and what is made of them: medians, spreads, ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

# A row whose samples lie farther apart than this, of their median, is marked as noisy.
NOISY = 0.20
# A backend's figure that is so much of the generator's own limit says little about the backend.
BOUND = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload, once, on one backend. `value` is None if it could not be had, and `reason` says why; with a value
    it says why some of it failed.

    `cpu_us` is what all CPUs did for one unit (a packet, a round trip, a connection, 1,000,000 bytes), in microseconds.
    """

    round: int
    backend: str
    workload: str
    value: float | None
    cpu_us: float | None = None
    more: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median with the least and the most of its samples."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """From least to most, of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    @property
    def is_noisy(self) -> bool:
        return self.spread > NOISY


def figure(values: Sequence[float]) -> Figure | None:
    """None if there are no values."""
    return Figure(median(values), min(values), max(values), len(values)) if values else None


def of(samples: Sequence[Sample], backend: str, workload: str, what: str = "value") -> dict[int, float]:
    """Round -> "value", "cpu_us" or a name of `more`, of the samples that have it."""
    found = {}
    for s in samples:
        if (s.backend, s.workload) == (backend, workload):
            value = getattr(s, what) if what in ("value", "cpu_us") else s.more.get(what)
            if value is not None:
                found[s.round] = float(value)
    return found


def ratio(samples: Sequence[Sample], workload: str, backend: str, to: str, what: str = "value") -> Figure | None:
    """`backend` over `to`, round by round: what the machine did to one round it did to both."""
    ours, theirs = (of(samples, b, workload, what) for b in (backend, to))
    return figure([ours[r] / theirs[r] for r in sorted(ours.keys() & theirs.keys()) if theirs[r]])


def is_generator_bound(samples: Sequence[Sample], workload: str, backend: str, limit: str, less_is_more: bool) -> bool:
    """Whether the backend comes so near to what the generator does without any that it may be the generator's figure."""
    found = ratio(samples, workload, backend, limit)
    if found is None:
        return False
    return found.median <= 1 / BOUND if less_is_more else found.median >= BOUND


def short(value: float) -> str:
    """Three digits or so: 1.23, 12.3, 123, 1,234, 12.3 k, 1.23 M."""
    for size, sign in ((1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scaled = value / (1e3 if sign == " k" else 1e6)
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{sign}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2}f}"
