"""`vfr-lab attack`: a lab of its own, the battery against each backend with progress, and the report."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from vfr_lab import backends as every
from vfr_lab.backends import Backend
from vfr_lab.battery import Attack, Result, attacks
from vfr_lab.battery.report import RENDERERS, SIGNS, Report, key, matrix
from vfr_lab.battery.run import Judge, Part
from vfr_lab.lab import Lab, LabError, UsageError
from vfr_lab.scenario import JUDGE

SHOWN = 20  # of what attackers got, in the terminal


def chosen_backends(named: Sequence[str]) -> list[Backend]:
    """Those that were named, or all that are to be judged. LabError for a name there is not, or a missing program."""
    try:
        known = [every.backend(n) for n in dict.fromkeys(named) or every.names()]
    except LookupError as error:
        raise UsageError(str(error.args[0])) from None
    chosen = [b for b in known if named or b.judged]
    for b in chosen:
        if lacks := every.missing(b):
            raise LabError(f"the backend {b.name} needs {', '.join(lacks)}: install it, or leave {b.name} out")
    return sorted(chosen, key=lambda b: b.name != "vfr")


def chosen_attacks(only: Sequence[str]) -> list[Attack]:
    """Those that have one of these in their FAMILY/NAME, or all. UsageError if one of them is in none."""
    for part in only:
        if not any(part in a.id for a in attacks()):
            raise UsageError(f"no attack has {part!r} in its name; `vfr-lab attacks` lists them")
    return [a for a in attacks() if not only or any(part in a.id for part in only)]


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere nothing, since each result is a line then."""
    what = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (what, BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, disable=not shown, transient=True, expand=True) as bar:
        bar.add_task("", total=total)
        yield bar


def _run(labs: Sequence[Lab], parts: Sequence[Part], captures: Path) -> list[Result]:
    """Every result; progress goes to standard error."""
    console, results = Console(stderr=True), list[Result]()
    total = sum(len(part.attacks) for part in parts)
    with _progress(total, console) as bar:

        def started(attack: Attack, backend: Backend) -> None:
            bar.update(bar.task_ids[0], description=f"{backend.name}: {attack.id}")

        def ended(result: Result) -> None:
            results.append(result)
            bar.advance(bar.task_ids[0])
            if not console.is_terminal or result.outcome == "void":
                why = f": {result.seen[0]}" if result.seen else ""
                line = f"{len(results)}/{total} {SIGNS[result.outcome]} {result.backend} {result.attack} {result.outcome}{why}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        Judge(labs, captures, ended, started).run(parts)
    return results


@contextmanager
def labs_up(chosen: Sequence[Backend], prefix: str) -> Iterator[list[Lab]]:
    """A lab for each of the first backends, up; none of them is there afterwards."""
    labs = [Lab(JUDGE, prefix=f"{prefix}{n}-", backend=b) for n, b in enumerate(chosen, 1)]
    for lab in labs:
        if lab.is_up():
            raise LabError(f"there is a lab {lab.prefix} already; take it down, or choose another --prefix")
    with ExitStack() as stack:
        for lab in labs:
            stack.callback(lab.down)
            lab.up()
        yield labs


def attack(
    named: Sequence[str],
    battery: Sequence[Attack],
    prefix: str,
    files: Mapping[str, Path],
    jobs: int,
    seed: int | None = None,
) -> int:
    """Runs, shows and writes `files`, by the names of RENDERERS. The exit status.

    `jobs` labs are at work at a time. With a seed the order of the attacks is drawn: what one leaves behind for the
    next shows when orders disagree.
    """
    chosen = chosen_backends(named)
    for file in files.values():
        if not file.parent.is_dir():
            raise UsageError(f"{file}: there is no directory {file.parent}")
    order = list(battery) if seed is None else random.Random(seed).sample(battery, len(battery))
    with tempfile.TemporaryDirectory(prefix="vfr-lab-") as directory:
        captures = Path(directory)
        with labs_up(chosen[:jobs], prefix) as labs:
            results = _run(labs, [Part(b, order) for b in chosen], captures)
        report = Report.of(chosen, battery, results, captures)
        for kind, file in files.items():
            file.write_text(RENDERERS[kind](report))
    _show(report, by_name=bool(named))
    return int(any(r.outcome == "void" or (named and r.outcome == "fell") for r in results))


def _show(report: Report, by_name: bool) -> None:
    """The matrix; of backends that were asked for by name also what the attackers got."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    console.print(matrix(report))
    console.print(key())
    fell = [r for r in report.results if by_name and r.outcome == "fell"]
    for result in fell[:SHOWN]:
        console.print(f"{result.backend} fell to {result.attack}: {result.seen[0]}", markup=False)
    if len(fell) > SHOWN:
        console.print(f"... and {len(fell) - SHOWN} more: --html or --json has them")
