"""Runs attacks against backends, and says what became of each; in several labs at a time if there are several."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from vfr_lab.backends import Backend
from vfr_lab.battery import Attack, Result
from vfr_lab.battery.stage import Stage, VoidError
from vfr_lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Part:
    """What one lab does in one go: a backend, and the attacks that are mounted against it, in this order."""

    backend: Backend
    attacks: Sequence[Attack]


class _Turns:
    """Labs work side by side; but who uses up what the whole machine has only one of, works alone."""

    def __init__(self) -> None:
        self._busy, self._free = 0, threading.Condition()

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        with self._free:
            self._busy += 1
        try:
            yield
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._busy)
            yield


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


class Judge:
    """Mounts parts in labs that are up, a thread each. `on_result` is called for one result at a time."""

    def __init__(
        self,
        labs: Sequence[Lab],
        captures: Path,
        on_result: Callable[[Result], None],
        on_start: Callable[[Attack, Backend], None] = lambda attack, backend: None,
    ) -> None:
        self._labs, self._captures = labs, captures
        self._on_result, self._on_start = on_result, on_start
        self._turns, self._telling, self._stop = _Turns(), threading.Lock(), threading.Event()

    def run(self, parts: Sequence[Part]) -> None:
        """All of them: each lab begins with the part of its own number, and goes on with what is left.

        What goes wrong in one lab ends the others' work after their attack.
        """
        queue: SimpleQueue[Part] = SimpleQueue()
        for part in parts[len(self._labs) :]:
            queue.put(part)
        with ThreadPoolExecutor(len(self._labs)) as threads:
            work = [threads.submit(self._work, *one, queue) for one in zip(self._labs, parts, strict=False)]
            try:
                wait(work, return_when=FIRST_EXCEPTION)
            finally:
                if not all(one.done() for one in work) or any(one.exception() for one in work):
                    self._stop.set()
            for one in work:
                one.result()

    def _work(self, lab: Lab, part: Part, queue: SimpleQueue[Part]) -> None:
        with Stage(lab) as stage, suppress(Empty):
            while not self._stop.is_set():
                self._mount_all(stage, part)
                part = queue.get_nowait()

    def _mount_all(self, stage: Stage, part: Part) -> None:
        """After each attack all kernels forget what they have learned. What that does not mend is wired anew.

        That is when the attack says that it leaves something, when it was void, and when the guests no longer do their
        everyday business. What earlier attacks have left together, as a guest's ports that are all in use, shows by a
        control that fails: so a void attack is mounted once more if anything came before it. Where guests may not even
        do their everyday business, most void attacks are so because of that, and will be again.
        """
        fit, fresh = stage.backend.name == part.backend.name, False
        for attack in part.attacks:
            if self._stop.is_set():
                return
            if not fit:
                self._wire(stage, part.backend)
                fresh = True
            self._on_start(attack, part.backend)
            result, fit = self._mount(stage, attack)
            if result.outcome == "void" and not fresh and part.backend.everyday:
                self._wire(stage, part.backend)
                result, fit = self._mount(stage, attack)
            fresh = False
            with self._telling:
                self._on_result(result)

    def _wire(self, stage: Stage, backend: Backend) -> None:
        with self._turns.side_by_side():
            stage.wire(backend)

    def _mount(self, stage: Stage, attack: Attack) -> tuple[Result, bool]:
        """What became of it, and whether the stage is fit for another one."""
        with self._turns.alone() if attack.alone else self._turns.side_by_side():
            result = mount(stage, attack, self._captures)
            stage.forget()
            went_well = result.outcome != "void" or not stage.backend.everyday
            return result, not attack.leaves and went_well and stage.is_healthy()
