"""`vfr-lab attack`: a lab of its own, the battery against each backend with progress, and the report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vfr_lab import backends as every
from vfr_lab.backends import Backend
from vfr_lab.battery import Attack, Result, attacks
from vfr_lab.battery.report import SIGNS, Report, as_html, as_json, as_junit, matrix
from vfr_lab.battery.run import mount_all
from vfr_lab.battery.stage import Stage
from vfr_lab.lab import Lab, LabError
from vfr_lab.scenario import JUDGE


def _chosen_backends(named: Sequence[str]) -> list[Backend]:
    """Those that were named, or all that are to be judged. LabError for a name there is not, or a missing program."""
    try:
        chosen = [every.backend(n) for n in named or every.names()]
    except LookupError as error:
        raise LabError(str(error.args[0])) from None
    for b in chosen:
        if lacks := every.missing(b):
            raise LabError(f"the backend {b.name} needs {', '.join(lacks)}: install it, or leave {b.name} out")
    return sorted((b for b in chosen if named or b.judged), key=lambda b: b.name != "vfr")


def _chosen_attacks(only: Sequence[str]) -> list[Attack]:
    chosen = [a for a in attacks() if not only or any(o in a.id for o in only)]
    if not chosen:
        raise LabError(f"no attack has {' or '.join(only)} in its name; `vfr-lab attacks` lists them")
    return chosen


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere nothing, since each result is a line then."""
    columns = (TextColumn("{task.description:60.60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        bar.add_task("", total=total)
        yield bar


def _run(lab: Lab, chosen: Sequence[Backend], battery: Sequence[Attack], captures: Path) -> list[Result]:
    """Every result; progress goes to standard error."""
    console, results = Console(stderr=True), list[Result]()
    total = len(chosen) * len(battery)
    with Stage(lab) as stage, _progress(total, console) as bar:

        def started(attack: Attack, backend: Backend) -> None:
            bar.update(bar.task_ids[0], description=f"{backend.name}: {attack.id}")

        for result in mount_all(stage, chosen, battery, captures, started):
            results.append(result)
            bar.advance(bar.task_ids[0])
            if not console.is_terminal or result.outcome == "void":
                why = f": {result.seen[0]}" if result.seen else ""
                line = f"{len(results)}/{total} {SIGNS[result.outcome]} {result.backend} {result.attack} {result.outcome}{why}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return results


def attack(
    named: Sequence[str], only: Sequence[str], prefix: str, html: Path | None, junit: Path | None, json: Path | None
) -> int:
    """Runs, shows and writes. The exit status."""
    chosen, battery = _chosen_backends(named), _chosen_attacks(only)
    lab = Lab(JUDGE, prefix=prefix, backend=chosen[0])
    if lab.is_up():
        raise LabError(f"there is a lab {prefix} already; take it down, or choose another --prefix")
    with tempfile.TemporaryDirectory(prefix="vfr-lab-") as directory:
        captures = Path(directory)
        try:
            lab.up()
            results = _run(lab, chosen, battery, captures)
        finally:
            lab.down()
        report = Report.of(chosen, battery, results, captures)
        for file, render in ((html, as_html), (junit, as_junit), (json, as_json)):
            if file is not None:
                file.write_text(render(report))
    Console(width=None if sys.stdout.isatty() else 150).print(matrix(report))
    return int(any(r.outcome == "void" or (named and r.outcome == "fell") for r in results))
