"""What a run found, as JSON that holds everything and as Markdown that people read."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vfr_lab.bench.cost import Cost
from vfr_lab.bench.figures import NOISY, Figure, Sample, figure, is_generator_bound, of, ratio, short
from vfr_lab.bench.run import DIRECT
from vfr_lab.bench.scale import Point
from vfr_lab.bench.workloads import CPU_UNITS, LIMIT, WORKLOADS, Workload

NOT_HAD = "—"
_SCALE_TITLES = {
    "rules": "Number of rules",
    "sessions": "Number of sessions of one domain",
    "domains": "Number of domains",
    "attach": "Attaching a hundred domains, whose namespaces are there",
    "memory": "Kernel memory of an idle domain",
}
_SCALE_GOALS = {
    "rules": "flat: ≤ 1.05 ×",
    "sessions": "flat: ≤ 1.05 ×",
    "domains": "flat: ≤ 1.05 ×",
    "attach": "p50 ≤ 2 ms, p99 ≤ 10 ms",
    "memory": "≤ 64 kB",
}
_NOTES = f"""
Each cell is the median of the rounds, and in brackets the least and the most. "×" is the median of the ratios to
`{DIRECT}` of the same round; `{DIRECT}` is a bare veth pair between the same two namespaces. For round trips less is
better, for all else more. **~** marks a figure whose spread is over {NOISY:.0%} of its median; **g** one that is within 5 % of what
the generator reaches with no backend at all (over a loopback; frames: into a device that drops), or better.

What is counted has arrived: bytes and datagrams read by the receiver, frames counted and dropped where the receiver's
stack begins (nftables, netdev ingress), connections that were made and then ended by the server. The generator of
frames runs on the CPU that then does the path's work, so its own time is in every such row; the frames go one way. A
stream is read and written in blocks of 256 kB. Each end of streams and datagrams is kept on a CPU of its own; both ends
of round trips and of new connections on one, so that a row has the path in it, and not an idle CPU's waking up. The
host and the LAN's machine have one cable between them, and no switch.
"""


@dataclass(frozen=True, slots=True)
class Report:
    """A run. `machine` says where, `options` how."""

    machine: dict[str, Any]
    options: dict[str, Any]
    backends: tuple[str, ...]
    samples: tuple[Sample, ...]
    costs: tuple[Cost, ...]
    scale: tuple[Point, ...]

    @property
    def workloads(self) -> list[Workload]:
        """Those that were run, in the order of their table."""
        run = {s.workload for s in self.samples}
        return [w for w in WORKLOADS if w.name in run]

    @property
    def columns(self) -> tuple[str, ...]:
        """The backends, and the generators alone if they were measured."""
        return (*self.backends, *((LIMIT,) if any(s.backend == LIMIT for s in self.samples) else ()))


def machine() -> dict[str, Any]:
    """What the figures were had on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "unknown")
    top = Path(__file__).resolve().parents[3]
    git = ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_json(report: Report) -> str:
    """Every sample, and the medians and ratios that the tables have."""
    return json.dumps({**asdict(report), "summary": list(_summary(report))}, indent=1) + "\n"


def _summary(report: Report) -> Iterator[dict[str, Any]]:
    for w in report.workloads:
        for backend in report.columns:
            found = figure(list(of(report.samples, backend, w.name).values()))
            ratios = {
                to: f.median
                for to in report.columns
                if to != backend and (f := ratio(report.samples, w.name, backend, to)) is not None
            }
            if found:
                yield {"workload": w.name, "backend": backend, "unit": w.unit, **asdict(found), "ratio_to": ratios}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _cell(report: Report, w: Workload, backend: str) -> str:
    found = figure(list(of(report.samples, backend, w.name).values()))
    if found is None:
        return NOT_HAD
    text = short(found.median)
    if found.count > 1:
        text += f" [{short(found.low)}, {short(found.high)}]"
    to_direct = ratio(report.samples, w.name, backend, DIRECT)
    if to_direct and backend not in (DIRECT, LIMIT):
        text += f" **{to_direct.median:.2f} ×**"
    return text + _marks(report, w, backend, found)


def _marks(report: Report, w: Workload, backend: str, found: Figure) -> str:
    bound = backend != LIMIT and is_generator_bound(report.samples, w.name, backend, LIMIT, w.less_is_more)
    return (" ~" if found.is_noisy else "") + (" g" if bound else "")


def _speed(report: Report) -> str:
    rows = [
        [f"{w.sentence} ({w.unit})", *(_cell(report, w, b) for b in report.columns), w.goal] for w in report.workloads
    ]
    return _table(
        ["", *(f"`{b}`" if b != LIMIT else "generator alone" for b in report.columns), "goal, × direct"], rows
    )


def _peers(report: Report) -> str:
    """VFR over each of the others, round by round."""
    others = [b for b in report.backends if b != "vfr"]
    rows = []
    for w in report.workloads:
        found = [ratio(report.samples, w.name, "vfr", b) for b in others]
        rows.append([w.sentence, *(f"{f.median:.2f}" if f else NOT_HAD for f in found)])
    return _table(["`vfr` divided by", *(f"`{b}`" for b in others)], rows)


def _latencies(report: Report) -> str:
    rows = []
    for w in (w for w in report.workloads if w.kind == "rr"):
        for b in report.columns:
            found = [figure(list(of(report.samples, b, w.name, q).values())) for q in ("value", "p99_us", "p999_us")]
            rows.append([w.sentence, f"`{b}`", *(short(f.median) if f else NOT_HAD for f in found)])
    return _table(["", "backend", "p50 µs", "p99 µs", "p99.9 µs"], rows) if rows else ""


def _cpu(report: Report) -> str:
    rows = []
    for w in report.workloads:
        found = [figure(list(of(report.samples, b, w.name, "cpu_us").values())) for b in report.columns]
        rows.append([f"{w.sentence} (µs a {CPU_UNITS[w.kind]})", *(short(f.median) if f else NOT_HAD for f in found)])
    return _table(["", *(f"`{b}`" for b in report.columns)], rows)


def _programs(report: Report) -> str:
    titles = {w.name: w.sentence for w in WORKLOADS}
    rows = [[titles[c.workload], f"`{c.program}`", f"{c.ns:.0f}", f"{c.runs:,}"] for c in report.costs]
    return _table(["", "program", "ns a run", "runs"], rows)


def _scale(report: Report, what: str) -> str:
    """Sizes from left to right; then the greatest size's figure over the least's, if the figure is a cost or a rate."""
    points = [p for p in report.scale if p.what == what]
    sizes = sorted({p.size for p in points})
    rows = []
    for by, measure in dict.fromkeys((p.backend, p.measure) for p in points):
        found = {p.size: p for p in points if (p.backend, p.measure) == (by, measure)}
        cells = [_size_cell(found[s]) if s in found else NOT_HAD for s in sizes]
        rows.append([f"`{by}`, {measure}", *cells, _growth(found, sizes)])
    head = ["", *(f"{s:,}" for s in sizes), "last / first"]
    grows = any(row[-1] for row in rows)
    return _table(head if grows else head[:-1], rows if grows else [row[:-1] for row in rows])


def _size_cell(p: Point) -> str:
    text = f"{p.value:,.0f}" if p.unit == "ms" and p.value >= 100 else short(p.value)
    noisy = p.low is not None and p.high is not None and Figure(p.value, p.low, p.high, 0).is_noisy
    return f"{text} {p.unit}" + (" ~" if noisy else "")


def _growth(found: dict[int, Point], sizes: Sequence[int]) -> str:
    first, last = found.get(sizes[0]), found.get(sizes[-1])
    if first is None or last is None or first is last or first.unit not in ("ns", "packets/s"):
        return ""
    return f"{last.value / first.value:.2f} ×"


def _reasons(report: Report) -> Iterator[str]:
    """What could not be had, and why; and what failed within what could."""
    seen = dict.fromkeys((s.backend, s.workload, s.reason) for s in report.samples if s.value is None)
    for backend, workload, reason in seen:
        yield f"* `{backend}`, {workload}: left out, {reason}"
    for w in report.workloads:
        for b in report.columns:
            for what in ("failed", "slow", "stuck"):
                total = sum(of(report.samples, b, w.name, what).values())
                why = {s.reason for s in report.samples if (s.backend, s.workload) == (b, w.name) and s.reason}
                if total:
                    text = f"* `{b}`, {w.name}: {total:.0f} connections {_TROUBLE[what]}, in all rounds together"
                    yield text + (f" ({', '.join(sorted(why))})" if what == "failed" else "")


_TROUBLE = {"failed": "failed", "slow": "took a second or more", "stuck": "were not there yet at the end"}


def as_markdown(report: Report) -> str:
    """The tables."""
    m, o = report.machine, report.options
    parts = [
        "# Benchmark",
        f"{m['date']}, commit {m['commit']}, Linux {m['kernel']}, {m['cpus']} CPUs ({m['cpu']}), load before it"
        f" {m['load_before']}. {o['rounds']} rounds of {o['seconds']} s a workload.",
    ]
    if report.workloads:
        parts += ["## Speed", _speed(report), _NOTES.strip(), "\n".join(_reasons(report))]
        if "vfr" in report.backends and len(report.backends) > 1:
            parts += ["## VFR and each peer (round trips: less is better)", _peers(report)]
        parts += ["## Round trips", latencies] if (latencies := _latencies(report)) else []
        parts += ["## What all CPUs do for it, by /proc/stat", _cpu(report)]
    if report.costs:
        parts += ["## What VFR's programs take, by the kernel's BPF statistics", _programs(report)]
    for what in dict.fromkeys(p.what for p in report.scale):
        parts += [f"## {_SCALE_TITLES[what]} (goal: {_SCALE_GOALS[what]})", _scale(report, what)]
    return "\n\n".join(p.strip() for p in parts if p) + "\n"
