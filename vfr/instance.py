"""Which VFR is meant: one belongs to each network namespace, and its state lies where that is known.

    a named one, as `ip netns`  everything in /run/vfr/netns/NAME
    the machine's own           registry in /var/lib/vfr, the rest in /run/vfr

So `ip netns exec NAME vfr ...` is another VFR than the machine's own. What "the machine's own" is, is
told by pid 1, or where a sandbox hides that, by the outermost ancestor that can be seen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vfr.errors import UsageError

NETNS = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Instance:
    """Where one VFR keeps its things. `netns` is None for pid 1's namespace."""

    netns: str | None
    state: Path
    runtime: Path

    @property
    def registry(self) -> Path:
        return self.state / "registry.db"

    @property
    def lock(self) -> Path:
        return self.runtime / "lock"

    @property
    def unfinished(self) -> Path:
        """There while a command changes things, and after one that died: then what is there may be half made."""
        return self.runtime / "unfinished"

    @property
    def sorter(self) -> Path:
        return self.runtime / "sorter"

    @property
    def bpffs(self) -> Path:
        return self.runtime / "bpf"


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _parent(pid: int) -> int:
    """The parent's pid; a command's name may hold anything, so count from its end."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_visible(pid: int) -> bool:
    try:
        _identity(Path(f"/proc/{pid}/ns/mnt"))
    except (PermissionError, FileNotFoundError):
        return False
    return True


@cache
def home_process() -> int:
    """A process that is where the machine is at home: pid 1, or the outermost visible ancestor.

    `ip netns exec` gives its command a mount namespace of its own, which ends with the command; what is
    to stay must be made here instead.
    """
    if _is_visible(1):
        return 1
    pid = os.getpid()
    while (parent := _parent(pid)) > 1 and _is_visible(parent):
        pid = parent
    return pid


def netns_inode(name: str) -> int | None:
    """What tells a named namespace from another that had the name before; None if nobody has it."""
    try:
        return (NETNS / name).stat().st_ino
    except FileNotFoundError:
        return None


def _name_of(namespace: tuple[int, int]) -> str | None:
    """The first of a network namespace's names; there may be thousands of others."""
    with suppress(FileNotFoundError):
        return next((path.name for path in sorted(NETNS.iterdir()) if _identity(path) == namespace), None)
    return None


def is_current(name: str) -> bool:
    """Whether the namespace of this name is the one that this process is in."""
    return _identity(NETNS / name) == _identity(Path("/proc/self/ns/net"))


def current() -> Instance:
    """The VFR of the network namespace this process is in. UsageError if that has no name."""
    ours = _identity(Path("/proc/self/ns/net"))
    if (name := _name_of(ours)) is not None:
        base = Path("/run/vfr/netns") / name
        return Instance(name, base, base)
    if ours == _identity(Path(f"/proc/{home_process()}/ns/net")):
        return Instance(None, Path("/var/lib/vfr"), Path("/run/vfr"))
    raise UsageError(
        f"this network namespace has no name in {NETNS}, so its VFR could not be found again;"
        " make it with `ip netns add NAME`, or `ip netns attach NAME PID`"
    )
