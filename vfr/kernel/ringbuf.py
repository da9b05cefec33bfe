"""Reads a BPF ring buffer from its start on, as <linux/bpf.h> describes the two counters and the records.

There is one reader at a time: whoever reads takes the records away from everybody else.
"""

from __future__ import annotations

import mmap
import select
import struct
from collections.abc import Iterator

_BUSY, _DISCARD = 1 << 31, 1 << 30
_HEADER = 8


class RingBuffer:
    """The buffer behind a map's descriptor; `size` in bytes, a power of two. Close it when done."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The producer's page, then the data twice, so that a record that wraps round can be read in one piece.
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()

    def _take(self) -> Iterator[bytes]:
        """What is there now. A record is taken before it is handed out: who stops reading then does not get it again."""
        (at,) = struct.unpack_from("<Q", self._consumer)
        while at < struct.unpack_from("<Q", self._producer)[0]:
            start = mmap.PAGESIZE + at % self._size
            (length,) = struct.unpack_from("<I", self._producer, start)
            if length & _BUSY:
                return
            record = self._producer[start + _HEADER : start + _HEADER + (length & ~_DISCARD)]
            at += len(record) + _HEADER + 7 & ~7
            struct.pack_into("<Q", self._consumer, 0, at)
            if not length & _DISCARD:
                yield record

    def records(self, wait_s: float | None) -> Iterator[bytes]:
        """Record after record; ends after `wait_s` seconds without one, or never."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            found = False
            for record in self._take():
                found = True
                yield record
            if not found and not poll.poll(None if wait_s is None else int(wait_s * 1000)):
                return
