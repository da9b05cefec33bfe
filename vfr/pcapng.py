"""Blocks of a pcapng file, as draft-ietf-opsawg-pcapng has them: one section, one Ethernet interface, times in
nanoseconds since 1970. Pure: bytes out.

A file is whole after every block, so one that breaks off between two is as good as any.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER, _UNKNOWN_LENGTH = 0x1A2B3C4D, -1
_ETHERNET = 1  # LINKTYPE_ETHERNET
_COMMENT = 1
_APPLICATION = 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_FLAGS, _DROP_COUNT = 2, 4
_INBOUND, _OUTBOUND = 1, 2
_START, _END, _RECEIVED, _DROPPED = 2, 3, 4, 5
_TEXT_MAX = 65535
Option = tuple[int, bytes]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    return text.encode(errors="replace")[:_TEXT_MAX]


def _block(kind: int, body: bytes, options: Iterable[Option] = ()) -> bytes:
    told = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    body = _padded(body) + (told + bytes(4) if told else b"")
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _time(ns: int) -> bytes:
    return struct.pack("<II", ns >> 32, ns & 0xFFFFFFFF)


def section(application: str) -> bytes:
    """What a file begins with."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION, body, [(_APPLICATION, _text(application))])


def interface(name: str, description: str, snap: int) -> bytes:
    """The interface; of a frame, at the most `snap` bytes are kept."""
    options = [(_IF_NAME, _text(name)), (_IF_DESCRIPTION, _text(description)), (_IF_TSRESOL, b"\x09")]
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snap), options)


def packet(at_ns: int, data: bytes, length: int, comment: str, inbound: bool, lost: int) -> bytes:
    """The beginning of a frame of `length` bytes; `inbound` is one that came in by the interface, `lost` how many were
    before it that are not in the file."""
    options = [(_COMMENT, _text(comment)), (_FLAGS, struct.pack("<I", _INBOUND if inbound else _OUTBOUND))]
    options += [(_DROP_COUNT, struct.pack("<Q", lost))] if lost else []
    return _block(_PACKET, struct.pack("<I", 0) + _time(at_ns) + struct.pack("<II", len(data), length) + data, options)


def statistics(begin_ns: int, end_ns: int, seen: int, lost: int) -> bytes:
    """What a file ends with: of `seen` frames, `lost` are not in it."""
    options = [(_START, _time(begin_ns)), (_END, _time(end_ns))]
    options += [(_RECEIVED, struct.pack("<Q", seen)), (_DROPPED, struct.pack("<Q", lost))]
    return _block(_STATISTICS, struct.pack("<I", 0) + _time(end_ns), options)


END_SIZE = len(statistics(0, 0, 0, 0))

__all__ = ["END_SIZE", "interface", "packet", "section", "statistics"]
