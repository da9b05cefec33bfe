"""What was on a node's interface, while something happened: by tcpdump, or kept from what nodes watched."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vfr_lab.lab import Lab, LabError, run

if TYPE_CHECKING:
    from vfr_lab.node import Node

# A place in tcpdump's ring is as long as the longest frame with offloads: by default there are 32.
RING_KIB = 32768
KEPT, SNAP = 300, 2048
_LOST = re.compile(r"^(\d+) packets? dropped by kernel", re.MULTILINE)


class Capture:
    """Everything an interface sees between `with` and its end, or a LabError. `lines` is tcpdump's text of it.

    Of each packet the first `bytes_each` bytes are kept, 0 for all: a long stream is only seen whole if few are."""

    def __init__(self, lab: Lab, node: str, interface: str = "eth0", bytes_each: int = 0) -> None:
        self.file: Path = lab.files / f"{node}-{interface}-{id(self)}.pcap"
        tcpdump = [
            "tcpdump",
            "-Z",
            "root",
            "--immediate-mode",
            "-U",
            "-n",
            "-B",
            str(RING_KIB),
            "-s",
            str(bytes_each),
            "-i",
            interface,
            "-w",
            str(self.file),
        ]
        # Only the node's network: in its PID namespace a signal would end nsenter, not tcpdump.
        self._argv = ["ip", "netns", "exec", lab.netns(node), *tcpdump]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Capture:
        self._process = subprocess.Popen(self._argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on" in line:
                return self
        raise LabError(f"{' '.join(self._argv)} did not start: exit {self._process.wait()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        said = self._process.communicate(timeout=10)[1]
        lost = _LOST.search(said)
        if kind is None and (lost is None or int(lost[1])):
            raise LabError(f"{' '.join(self._argv)} has not seen everything: {said.strip()}")

    def lines(self, expression: str = "") -> list[str]:
        """One line a packet, of those that match a tcpdump expression."""
        read = ["tcpdump", "-nn", "-r", str(self.file), *([expression] if expression else [])]
        return run(read).stdout.splitlines()


def save(file: Path, nodes: Iterable[Node]) -> Path | None:
    """Writes what these nodes have watched, by time, as a pcap file; None if nothing was.

    Of a flood the first and the last KEPT frames, and of a frame SNAP bytes.
    """
    frames = sorted(
        ((f.at, f.raw) for n in nodes for seen in n.collected for f in (*seen.frames, *seen.own)),
        key=lambda pair: pair[0],
    )
    if not frames:
        return None
    kept = frames if len(frames) <= 2 * KEPT else frames[:KEPT] + frames[-KEPT:]
    records = b"".join(
        struct.pack("<IIII", int(at), int(at % 1 * 10**9), min(len(raw), SNAP), len(raw)) + raw[:SNAP]
        for at, raw in kept
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, SNAP, 1) + records)
    return file
