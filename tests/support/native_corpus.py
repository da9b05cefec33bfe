"""Writes the packet table as what fuzzers read: python -m support.native_corpus DIRECTORY.

A frame's file is the header of fuzz_frame.c and the frame; a conversation's is a step RAW of
fuzz_conversation.c for each packet of the case.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

from cases.execute import Question
from cases.table import CASES
from cases.test_dhcp import CASES as DHCP

from support import world

SENDERS = ("dom0", "web", "db", "odd", "lan", "sorter")
RAW = 2
assert tuple(world.SLOTS) == SENDERS[:4]


def as_frame(case: Question) -> bytes:
    """struct header: sender, flags, fail_at, chance, linear, gso_size."""
    return struct.pack("<BBBBHH", SENDERS.index(case.sender), 0, 0, 0, 0, 0) + bytes(case.packet)


def as_conversation(case: Question) -> bytes:
    """Steps: kind, sender, length, frame."""
    steps = [*case.before, (case.sender, case.packet)]
    frames = [(SENDERS.index(sender), bytes(packet)) for sender, packet in steps]
    return b"".join(struct.pack("<BBH", RAW, who, len(frame)) + frame for who, frame in frames)


def main() -> None:
    for name, form in (("frame", as_frame), ("conversation", as_conversation)):
        directory = Path(sys.argv[1]) / name
        directory.mkdir(parents=True, exist_ok=True)
        for case in (*CASES, *DHCP):
            content = form(case)
            (directory / hashlib.sha1(content).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    main()
