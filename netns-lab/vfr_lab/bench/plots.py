"""Pictures of a report, as SVG: transparent, in colours that are clear on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from vfr_lab.bench.figures import figure, of, ratio
from vfr_lab.bench.report import Report
from vfr_lab.bench.run import DIRECT

INK = "#808890"
COLOURS = {
    "vfr": "#e8710a",
    "direct": "#808890",
    "routed": "#4a90d9",
    "bridge": "#5aa469",
    "bridge-filtered": "#9ab84a",
    "xen1": "#b07cc6",
    "vde": "#c95d63",
}
OTHER = "#a08060"
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "vfr",  # the same report makes the same files
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(report: Report, directory: Path) -> list[Path]:
    """Writes the pictures that the report has figures for, and says which."""
    matplotlib.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    pictures: dict[str, Callable[[Report], Picture | None]] = {
        "ratios.svg": _ratios,
        "latency.svg": _latency,
        "scale.svg": _scale,
    }
    with pyplot.rc_context(_STYLE):
        for name, make in pictures.items():
            made = make(report)
            if made is not None:
                path = directory / name
                made.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
                pyplot.close(made)
                written.append(path)
    return written


def _colour(backend: str) -> str:
    return COLOURS.get(backend, OTHER)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=columns, frameon=False)


def _bars(axes: Axes, rows: list[str], columns: dict[str, list[float | None]]) -> None:
    """Groups of horizontal bars, the first row on top."""
    thick = 0.8 / len(columns)
    for number, (backend, values) in enumerate(columns.items()):
        at = [row + (number - (len(columns) - 1) / 2) * thick for row in range(len(rows))]
        axes.barh(at, [v or 0 for v in values], thick * 0.9, color=_colour(backend), label=backend)
    axes.set_yticks(range(len(rows)), rows)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _ratios(report: Report) -> Picture | None:
    """Throughput as a part of the direct pair's, for every workload that has one."""
    backends = [b for b in report.backends if b != DIRECT]
    rows = [w for w in report.workloads if not w.less_is_more and of(report.samples, DIRECT, w.name)]
    if not rows or not backends:
        return None
    columns: dict[str, list[float | None]] = {}
    for b in backends:
        found = [ratio(report.samples, w.name, b, DIRECT) for w in rows]
        columns[b] = [f.median if f else None for f in found]
    made, axes = pyplot.subplots(figsize=(7.5, 0.9 + len(rows) * (0.16 + 0.09 * len(backends))))
    _bars(axes, [w.sentence for w in rows], columns)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    axes.set_xlabel("of a direct veth pair's throughput (median of the rounds' ratios); more is better")
    _legend(axes, 4)
    return made


def _latency(report: Report) -> Picture | None:
    """Round trips: p50, p99 and p99.9, on a logarithmic scale."""
    rows = [w for w in report.workloads if w.kind == "rr"]
    if not rows:
        return None
    made, all_axes = pyplot.subplots(1, len(rows), figsize=(3.2 * len(rows), 3), sharey=True, squeeze=False)
    names = ("p50", "p99", "p99.9")
    for axes, w in zip(all_axes[0], rows, strict=True):
        for b in report.backends:
            found = [figure(list(of(report.samples, b, w.name, q).values())) for q in ("value", "p99_us", "p999_us")]
            if all(found):
                axes.plot(names, [f.median for f in found if f], color=_colour(b), marker="o", markersize=4, label=b)
        axes.set_yscale("log")
        axes.set_title(w.sentence.replace(", TCP round trip", ""), fontsize=9)
    all_axes[0][0].set_ylabel("round trip, µs; less is better")
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    made.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncol=4, frameon=False)
    return made


def _scale(report: Report) -> Picture | None:
    """What one packet takes VFR's program, against numbers of rules, sessions and domains."""
    parts = [what for what in ("rules", "sessions", "domains") if any(p.what == what for p in report.scale)]
    if not parts:
        return None
    made, all_axes = pyplot.subplots(1, len(parts), figsize=(3.2 * len(parts), 2.6), sharey=True, squeeze=False)
    shades = ("#e8710a", "#4a90d9", "#5aa469")
    for axes, what in zip(all_axes[0], parts, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for p in report.scale:
            if p.what == what and p.unit == "ns":
                lines.setdefault(p.measure.removesuffix(", program"), []).append((p.size, p.value))
        for shade, (measure, points) in zip(shades, lines.items(), strict=False):
            axes.plot(*zip(*points, strict=True), color=shade, marker="o", markersize=4, label=measure)
        axes.set_xscale("log")
        axes.set_xlabel(f"number of {what}")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    all_axes[0][0].set_ylabel("ns a packet in the program at the VIF")
    return made
