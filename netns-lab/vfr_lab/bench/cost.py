"""What a packet costs in the kernel's own books: run time and runs of VFR's programs, by its BPF statistics."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vfr_lab.lab import Lab, run

_BPF, _ENABLE_STATS = 321, 32
PROGRAMS = ("vif_ingress", "uplink_ingress")


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds a run of a program took, over so many runs, during a workload."""

    workload: str
    program: str
    ns: float
    runs: int


@contextmanager
def statistics() -> Iterator[None]:
    """The kernel times its BPF programs, and so slows them, during the block."""
    attr = (ctypes.c_uint32 * 36)()
    fd = ctypes.CDLL(None, use_errno=True).syscall(_BPF, _ENABLE_STATS, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "BPF_ENABLE_STATS")
    try:
        yield
    finally:
        os.close(fd)


def pins(lab: Lab) -> Path:
    """Where the VFR of the lab's host has its pins."""
    return Path("/run/vfr/netns") / lab.netns("dom0") / "bpf"


def spent(pinned: Path) -> dict[str, tuple[int, int]]:
    """Program -> (nanoseconds, runs) so far, while statistics were on."""
    found = {}
    for name in PROGRAMS:
        info = json.loads(run(["bpftool", "-j", "prog", "show", "pinned", str(pinned / "fastpath" / name)]).stdout)
        found[name] = (info.get("run_time_ns", 0), info.get("run_cnt", 0))
    return found


def between(workload: str, before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[Cost]:
    """The programs that ran between two looks."""
    costs = []
    for name, (ns, runs) in after.items():
        more = runs - before[name][1]
        if more:
            costs.append(Cost(workload, name, (ns - before[name][0]) / more, more))
    return costs
