"""`vfr watch`: looks whenever the kernel tells of a change, and repairs as every command does.

No packet waits for it, and without it every command repairs. It looks without the lock, and takes that only when
there is something to do. Bursts of events are one look; a repair that fails is tried again later and later.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vfr.errors import VfrError

if TYPE_CHECKING:
    from vfr.router import Router

QUIET_S, LONGEST_S = 0.1, 1.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
TICK_S = 15.0  # tcx tells nobody when programs are put before ours


@dataclass(frozen=True, slots=True)
class Told:
    """One line: `what` is watching, repaired, waiting, there again, failed, works again or ended."""

    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.what}: {self.text}" if self.text else self.what


class Pace:
    """When to look next, in seconds of any clock: a little after the last event of a burst, at the latest so long
    after its first, and every `tick_s`; after a failure not before a time that doubles with each."""

    def __init__(self, now: float, tick_s: float) -> None:
        self._tick_s = tick_s
        self._first: float | None = now
        self._last = now
        self._next_tick = now + tick_s
        self._not_before = now
        self._retry_s = 0.0

    def due(self) -> float:
        """When the next look is."""
        event = self._next_tick if self._first is None else min(self._last + QUIET_S, self._first + LONGEST_S)
        return max(min(event, self._next_tick), self._not_before)

    def heard(self, now: float) -> None:
        """Something has changed."""
        self._first = now if self._first is None else self._first
        self._last = now

    def looks(self, now: float) -> None:
        """A look begins: what changes from now on asks for another."""
        self._first, self._next_tick = None, now + self._tick_s

    def succeeded(self, now: float) -> None:
        """All is in order."""
        self._retry_s, self._not_before = 0.0, now

    def failed(self, now: float) -> None:
        """It is to be tried again, later than the last time."""
        self._retry_s = min(max(2 * self._retry_s, FIRST_RETRY_S), LAST_RETRY_S)
        self._not_before = now + self._retry_s
        self.heard(now)


class Looker(Protocol):
    """What a watcher asks of a Router."""

    def repair(self) -> tuple[str, ...]: ...

    def waiting(self) -> tuple[str, ...]: ...


class Watcher:
    """One look after the other, and what there is to tell of it: each thing once."""

    def __init__(self, router: Looker, tell: Callable[[Told], None]) -> None:
        self._router, self._tell = router, tell
        self._waiting: tuple[str, ...] = ()
        self._failure = ""

    def look(self) -> bool:
        """Repairs; whether that succeeded."""
        try:
            for step in self._router.repair():
                self._tell(Told("repaired", step))
            waiting = self._router.waiting()
        except VfrError as error:
            if str(error) != self._failure:
                self._tell(Told("failed", " ".join(str(error).split())))
            self._failure = str(error)
            return False
        if self._failure:
            self._tell(Told("works again", ""))
        self._failure = ""
        for text in waiting:
            if text not in self._waiting:
                self._tell(Told("waiting", text))
        for text in self._waiting:
            if text not in waiting:
                self._tell(Told("there again", text))
        self._waiting = waiting
        return True


class _Ending:
    """SIGTERM and SIGINT end the watch between two looks, never in the midst of one."""

    def __init__(self) -> None:
        self.asked = False
        self.wakeup, self._told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)

    def _end(self, *_: object) -> None:
        self.asked = True


def watch(router: Router, tell: Callable[[Told], None], tick_s: float = TICK_S) -> None:
    """Watches until it is told to end. KernelError if the kernel can't be listened to."""
    from vfr.kernel.monitor import Monitor

    ending = _Ending()
    monitor, watcher = Monitor(ending.wakeup), Watcher(router, tell)
    pace = Pace(time.monotonic(), tick_s)
    tell(Told("watching", router.instance.netns or "this machine"))
    try:
        while not ending.asked:
            if monitor.wait(pace.due() - time.monotonic()):
                pace.heard(time.monotonic())
            if ending.asked or time.monotonic() < pace.due():
                continue
            pace.looks(time.monotonic())
            (pace.succeeded if watcher.look() else pace.failed)(time.monotonic())
    finally:
        monitor.close()
    tell(Told("ended", ""))
