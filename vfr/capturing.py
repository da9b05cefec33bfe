"""A capture that goes on: frames as they come, with names in place of numbers, and a file that takes them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vfr import pcapng
from vfr._abi import Limit, Seen, Verdict
from vfr.capture import WAYS, Packet, Totals, comment
from vfr.errors import UsageError, VfrError

if TYPE_CHECKING:
    from vfr.kernel.capturing import Capture, Sight
    from vfr.status import Names

_RENEW_S = 1.0
_LOOK_S = 0.05
_VLAN_TAG = 4  # bytes, which are put back in their place
_NODES = {int(Limit.NODE_LAN): "lan"}


class Capturing:
    """Made by Router.capture. `interface` is the VIF's name; `over` says why it ended of its own accord, if it did."""

    def __init__(self, domain: str, interface: str, capture: Capture, pins: Path, names: Names) -> None:
        self.domain, self.interface, self.over = domain, interface, ""
        self._capture, self._pins, self._names = capture, pins, names
        self._offset_ns, self._due = 0, 0.0

    def packets(self, is_enough: Callable[[], bool]) -> Iterator[Packet]:
        """Frame after frame, until `is_enough`, which is asked many times a second, or nothing can come any more; at
        the end what came in before that. A reader that stops reading for vfr.kernel.capturing.LEASE_S seconds misses
        what comes meanwhile."""
        while not is_enough() and self._goes_on():
            for sight, data in self._capture.sights(_LOOK_S):
                yield self._packet(sight, data)
                if is_enough() or time.monotonic() >= self._due:
                    break
        self.stop()
        for sight, data in self._capture.sights(0):
            yield self._packet(sight, data)

    def stop(self) -> None:
        """Nothing comes in any more."""
        self._capture.stop()

    def totals(self) -> Totals:
        """How many frames there were, and how many of them were lost."""
        return self._capture.totals()

    def _goes_on(self) -> bool:
        """Once a second: whether anything can still come in; then it is asked to."""
        if time.monotonic() < self._due:
            return True
        self.over = self._capture.why_over(self._pins) or ""
        if self.over:
            return False
        self._capture.renew()
        self._offset_ns = self._capture.offset_ns()
        self._due = time.monotonic() + _RENEW_S
        return True

    def _packet(self, sight: Sight, data: bytes) -> Packet:
        rule, where = self._names.rule(sight.rule)
        return Packet(
            at_ns=sight.at_ns + self._offset_ns,
            domain=self.domain,
            way=WAYS[Seen(sight.way)],
            other=self._other(sight.other),
            verdict=Verdict(sight.verdict).name,
            rule=rule,
            where=where,
            outside_port=sight.outside_port or None,
            length=sight.length,
            gso_size=sight.gso_size,
            lost=sight.lost,
            data=data,
        )

    def _other(self, node: int) -> str | None:
        return _NODES.get(node) or (self._names.who(node) if node < Limit.SLOTS else None)


class FullError(VfrError):
    """The next frame has no room in the file."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How many frames were `taken`, of which `totals`, and `why` no more; `error` if that is not as it was wanted."""

    taken: int
    totals: Totals
    why: str
    error: VfrError | None = None


def take(
    found: Capturing,
    put: Callable[[Packet], None],
    count: int | None,
    time_s: float | None,
    is_told: Callable[[], bool],
) -> Ended:
    """Gives frame after frame to `put`, until there are `count`, or `time_s` seconds are over, or `is_told` to end, or
    `put` will not, or nothing can come any more."""
    taken, why, error = 0, "", None
    deadline = time.monotonic() + time_s if time_s else None

    def is_late() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    try:
        for packet in found.packets(lambda: is_told() or is_late()):
            put(packet)
            taken += 1
            if taken == count:
                why = "that many were asked for"
                break
    except FullError as full:
        why = str(full)
    except BrokenPipeError:
        why = "nobody reads it any more"
    except VfrError as failed:
        why, error = str(failed), failed
    found.stop()
    if found.over:
        why, error = found.over, VfrError(f"the capture of {found.domain} has ended: {found.over}")
    return Ended(taken, found.totals(), why or ("the time is over" if is_late() else "it was told to end"), error)


class File:
    """A pcapng file, or a pipe, that is whole after each frame, whatever happens. `most` are the bytes that it may
    have."""

    def __init__(self, path: Path | None, most: int | None = None) -> None:
        """At a path; standard output if there is none. UsageError if it cannot be written."""
        self._path, self._most, self._whole, self._is_broken = path, most, 0, False
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) if path else os.dup(1)
        except OSError as error:
            raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}") from None
        if not path and os.isatty(self._fd):
            os.close(self._fd)
            raise UsageError("standard output is a terminal; write to a file, or to a program: -w - | tshark -r -")
        self._is_regular = bool(path) and stat.S_ISREG(os.fstat(self._fd).st_mode)

    def begin(self, capturing: Capturing, snap: int) -> None:
        """What a file begins with. That nobody reads any more is told by the first frame."""
        what = f"the VIF of {capturing.domain}, as its guest has it"
        self._begun_ns = time.time_ns()
        with suppress(BrokenPipeError):
            self._put(pcapng.section("vfr capture") + pcapng.interface(capturing.interface, what, snap + _VLAN_TAG))

    def add(self, packet: Packet) -> None:
        """A frame, with all that is known of it for a comment. FullError if it would be too much."""
        block = pcapng.packet(packet.at_ns, packet.data, packet.length, comment(packet), packet.is_inbound, packet.lost)
        if self._most is not None and self._whole + len(block) + pcapng.END_SIZE > self._most:
            raise FullError(f"the file has the {self._most // 10**6} MB that --size allows")
        self._put(block)

    def end(self, totals: Totals) -> None:
        """What a file ends with, if it could be written so far."""
        if not self._is_broken:
            self._put(pcapng.statistics(self._begun_ns, time.time_ns(), totals.seen, totals.lost))

    def _put(self, block: bytes) -> None:
        """All of it or nothing. BrokenPipeError if nobody reads any more, VfrError if there is no room."""
        left = memoryview(block)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            self._is_broken = True
            if isinstance(error, BrokenPipeError):
                raise
            whole = "; what was written before is whole" if self._is_regular else ""
            if self._is_regular:
                os.ftruncate(self._fd, self._whole)
            raise VfrError(f"writing {self._path or 'to standard output'}: {error.strerror}{whole}") from None
        self._whole += len(block)

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)


__all__ = ["Capturing", "Ended", "File", "FullError", "take"]
