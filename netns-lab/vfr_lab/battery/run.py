"""Runs attacks against backends, and says what became of each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vfr_lab.backends import Backend
from vfr_lab.battery import Attack, Result
from vfr_lab.battery.stage import Stage, VoidError


def mount(stage: Stage, attack: Attack, captures: Path) -> Result:
    """One attack against the backend that the stage is wired by."""
    began, outcome, seen = time.monotonic(), "held", []
    stage.begin()
    try:
        seen = attack.mount(stage)
        outcome = "fell" if seen else "held"
        if not stage.controls:
            raise VoidError("it has no control, so it shows nothing")
    except VoidError as reason:
        outcome, seen = "void", [str(reason)]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome, seen = "void", [f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"]
    name = f"{attack.id.replace('/', '-')}-{stage.backend.name}.pcap"
    file = stage.capture(captures / name)
    return Result(
        attack=attack.id,
        backend=stage.backend.name,
        outcome=outcome,  # type: ignore[arg-type]
        sent=tuple(stage.sent),
        controls=tuple(stage.controls),
        seen=tuple(seen),
        seconds=round(time.monotonic() - began, 3),
        capture=file.name if file else None,
    )


def mount_all(
    stage: Stage,
    backends: Sequence[Backend],
    attacks: Sequence[Attack],
    captures: Path,
    on_start: Callable[[Attack, Backend], None] = lambda attack, backend: None,
) -> Iterator[Result]:
    """Every attack against every backend, a backend after the other, in this order.

    After each, all kernels forget what they have learned. What that does not mend is wired anew: when the attack says
    that it leaves something, when it broke off, and when the guests no longer do their everyday business.
    """
    for backend in backends:
        fit = stage.backend is backend
        for attack in attacks:
            if not fit:
                stage.wire(backend)
            on_start(attack, backend)
            result = mount(stage, attack, captures)
            yield result
            stage.forget()
            fit = not attack.leaves and result.outcome != "void" and stage.is_healthy()
