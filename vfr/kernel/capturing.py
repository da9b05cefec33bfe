"""A capture in the fastpath (fastpath/capture.h): set up, kept going, read and taken down.

The ring is the reader's own: nobody but root can reach it, by the fastpath's table of rings, and it dies with the reader
once that table lets go of it. A reader that is killed leaves a capture that costs nothing after LEASE_S seconds, and a
ring that the next capture, of whatever domain, takes away.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vfr import _abi
from vfr._abi import Limit
from vfr.capture import Totals, Wish
from vfr.errors import ConflictError, KernelError
from vfr.kernel import bpf
from vfr.kernel.fastpath import Fastpath
from vfr.kernel.ringbuf import RingBuffer

LEASE_S = 5
RING = 1 << 22  # bytes: some 13,000 frames of 256
_TYPE_RINGBUF = 27
_HEAD = _abi.Sight.frame.offset
_ALL = int(Limit.CAPTURES_ALL)


class Sight(ctypes.Structure):
    """The fixed part of _abi.Sight."""

    _fields_ = _abi.Sight._fields_[:-1]


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


class Capture:
    """Of a slot's present tenant. `start` it, read `sights` and `renew` it once a second, `stop` and read the rest."""

    def __init__(self, fastpath: Fastpath, slot: int, generation: int, wish: Wish, ring: int = RING) -> None:
        self._fastpath, self._slot, self._generation, self._wish = fastpath, slot, generation, wish
        self._captures = fastpath.map("captures")
        self._rings = fastpath.map("capture_rings")
        self._until = 0
        self._fd = bpf.create_map(_TYPE_RINGBUF, 0, 0, ring, 0, "capture")
        try:
            self._ring = RingBuffer(self._fd, ring)
        except OSError:
            os.close(self._fd)
            raise

    def start(self) -> None:
        """From now on frames come in. Nobody else may start one meanwhile. ConflictError if the slot has one that goes
        on."""
        self._take_away_dead()
        if self._captures.get(_u32(self._slot)) != bytes(self._captures.value_size):
            raise ConflictError(
                f"a capture of this domain goes on already; end it, or wait {LEASE_S} s if it was killed"
            )
        self._fastpath.map("captured").set(_u32(self._slot), bytes(ctypes.sizeof(_abi.Captured)))
        self._rings.set(_u32(self._slot), _u32(self._fd))
        self.renew()

    def _take_away_dead(self) -> None:
        now = self._fastpath.now_ns()
        for place, raw in self._captures.dump():
            if place != _ALL and _abi.Capture.from_buffer_copy(raw).until_ns <= now:
                self._clear(place)

    def _clear(self, slot: int) -> None:
        """No frame comes in any more once this returns: the kernel has waited until no program can be at it."""
        self._captures.set(_u32(slot), bytes(self._captures.value_size))
        self._rings.delete(_u32(slot))

    def renew(self) -> None:
        """It goes on for LEASE_S seconds from now."""
        until = self._until = self._fastpath.now_ns() + LEASE_S * 10**9
        wanted = sum(1 << verdict for verdict in self._wish.verdicts)
        row = _abi.Capture(until, wanted, self._generation, self._wish.snap, self._wish.per_s)
        self._captures.set(_u32(self._slot), bytes(row))
        self._captures.set(_u32(_ALL), bytes(_abi.Capture(until_ns=until)))

    def _is_ours(self) -> bool:
        row = _abi.Capture.from_buffer_copy(self._captures.get(_u32(self._slot)) or b"")
        return bool(row.until_ns == self._until)

    def stop(self) -> None:
        """Nothing comes in any more; what came in is in the ring."""
        if self._is_ours():
            self._clear(self._slot)

    def close(self) -> None:
        """Lets go of the ring."""
        self._ring.close()
        os.close(self._fd)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sights(self, wait_s: float) -> Iterator[tuple[Sight, bytes]]:
        """What comes in, until nothing has for so many seconds: a frame's data with its VLAN tag in its place."""
        for record in self._ring.records(wait_s):
            sight = Sight.from_buffer_copy(record)
            data = record[_HEAD : _HEAD + sight.kept]
            if sight.vlan_protocol and len(data) >= 12:
                tag = int(sight.vlan_protocol).to_bytes(2, "big") + int(sight.vlan_tag).to_bytes(2, "big")
                data = data[:12] + tag + data[12:]
                sight.length += len(tag)
            yield sight, data

    def totals(self) -> Totals:
        """Of the frames so far. Whole after `stop`."""
        row = _abi.Captured.from_buffer_copy(self._fastpath.map("captured").get(_u32(self._slot)) or b"")
        return Totals(row.seen, row.too_fast, row.no_room)

    def why_over(self, pins: Path) -> str | None:
        """Why nothing can come in any more, None while something can: the tenant has gone, or another fastpath runs, with
        tables of its own, or this one was taken for dead."""
        try:
            fd = bpf.get_pinned(pins / "fastpath" / "captures")
        except KernelError:
            return "the router was taken down"
        try:
            if bpf.object_id(fd) != bpf.object_id(self._captures.fd):
                return "another fastpath runs now, which counts and captures anew"
        finally:
            os.close(fd)
        if not self._is_ours():
            return f"it stood still for more than {LEASE_S} s, and another one took its place"
        row = _abi.Domain.from_buffer_copy(self._fastpath.map("domains").get(_u32(self._slot)) or b"")
        return None if row.generation == self._generation else "the domain was removed"

    def offset_ns(self) -> int:
        """What makes the time of day, in nanoseconds since 1970, of the fastpath's time."""
        return time.time_ns() - self._fastpath.now_ns()


__all__ = ["LEASE_S", "RING", "Capture", "Sight"]
