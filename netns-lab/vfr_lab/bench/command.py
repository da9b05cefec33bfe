"""`vfr-lab bench`: a lab of its own, the rounds, what size costs, and the report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfr_lab import backends as every
from vfr_lab.backends import Backend
from vfr_lab.bench import report, run, scale, stage, workloads
from vfr_lab.bench.report import Report
from vfr_lab.bench.workloads import Workload
from vfr_lab.lab import LabError

# The tables' order; others come after these.
ORDER = ("vfr", "direct", "routed", "bridge", "bridge-filtered", "xen1", "vde")
SCALE = "scale"


@dataclass(frozen=True, slots=True)
class Options:
    """What `vfr-lab bench` was asked. `seconds` a workload; `only` texts in workloads' names, or `scale`."""

    backends: Sequence[str] = ()
    only: Sequence[str] = ()
    rounds: int = 5
    seconds: float = 0.5
    prefix: str = "bench-"
    json: Path | None = None
    markdown: Path | None = None
    plots: Path | None = None


def _judged() -> list[str]:
    """Every backend that people use; no strawman."""
    return [name for name in every.names() if every.backend(name).judged]


def _chosen_backends(named: Sequence[str]) -> list[Backend]:
    """Those that were named, else all that have their programs here; and `direct`, which ratios are to."""
    try:
        chosen = {n: every.backend(n) for n in (*(named or _judged()), run.DIRECT)}
    except LookupError as error:
        raise LabError(str(error.args[0])) from None
    for b in list(chosen.values()):
        if lacks := every.missing(b):
            if named:
                raise LabError(f"the backend {b.name} needs {', '.join(lacks)}: install it, or leave {b.name} out")
            _say(f"{b.name} is left out: it needs {', '.join(lacks)}")
            del chosen[b.name]
    return sorted(chosen.values(), key=lambda b: (ORDER.index(b.name) if b.name in ORDER else len(ORDER), b.name))


def _chosen_workloads(only: Sequence[str]) -> list[Workload]:
    texts = [text for text in only if text != SCALE]
    if only and not texts:
        return []
    try:
        return workloads.named(texts)
    except LookupError as error:
        raise LabError(str(error.args[0])) from None


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def measure(options: Options) -> Report:
    """Runs all of it, in a lab that is gone afterwards."""
    chosen, work = _chosen_backends(options.backends), _chosen_workloads(options.only)
    names = tuple(b.name for b in chosen)
    machine = report.machine()
    with_scale = "vfr" in names and (not options.only or SCALE in options.only)
    with stage.lab(options.prefix) as lab:
        samples = run.rounds(lab, chosen, work, options.rounds, options.seconds, _say) if work else []
        vfr = next((b for b in chosen if b.name == "vfr"), None)
        costs = run.costs(lab, vfr, work, options.seconds, _say) if vfr and work else []
        points = scale.everything(lab, _say, "routed" in names) if with_scale else []
    machine["load_after"] = round(os.getloadavg()[0], 2)
    asked = {"rounds": options.rounds, "seconds": options.seconds, "only": list(options.only)}
    return Report(machine, asked, names, tuple(samples), tuple(costs), tuple(points))


def bench(options: Options) -> None:
    """Measures, shows the tables, and writes what was asked for."""
    if options.plots is not None:
        _check_matplotlib()
    found = measure(options)
    text = report.as_markdown(found)
    for file, content in ((options.json, report.as_json(found)), (options.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
    print(text)
    if options.plots is not None:
        from vfr_lab.bench.plots import draw

        for path in draw(found, options.plots):
            _say(f"wrote {path}")


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise LabError("--plots needs matplotlib: `pip install 'vfr[bench]'`") from None
