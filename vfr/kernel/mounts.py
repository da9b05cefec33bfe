"""The bpffs that holds the pins: VFR's own mount, in the machine's mount namespace.

`ip netns exec` gives its command a private mount namespace, where a mount would die with the command,
and the firewall with it. There the mount is made by a child that enters the machine's, and the pins are
reached through /proc/PID/root of a process that lives there (instance.home_process).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfr.errors import KernelError
from vfr.instance import home_process

_CLONE_NEWNS = 0x00020000
# New enough to have the same numbers on every architecture. Linux 5.2.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CREATE, _CLOEXEC = 6, 1
_BPFFS = 0xCAFE4A11  # statfs(2): BPF_FS_MAGIC
_libc = ctypes.CDLL(None, use_errno=True)


def _is_elsewhere() -> bool:
    home = Path(f"/proc/{home_process()}/ns/mnt")
    return Path("/proc/self/ns/mnt").stat().st_ino != home.stat().st_ino


def seen_from_here(path: Path) -> Path:
    """A path of the machine's mount namespace as this process reaches it."""
    return Path(f"/proc/{home_process()}/root") / path.relative_to("/") if _is_elsewhere() else path


def is_mounted(path: Path) -> bool:
    """Whether a bpffs is mounted there, in the machine's mount namespace. Asked of the path itself: the list of mounts has
    a line for each network namespace."""
    said = (ctypes.c_long * 32)()
    is_there = _libc.statfs(os.fsencode(seen_from_here(path)), ctypes.byref(said)) == 0
    return is_there and said[0] == _BPFFS


def _enter_home() -> None:
    with Path(f"/proc/{home_process()}/ns/mnt").open() as ns:
        if _libc.setns(ns.fileno(), _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")


def _mount(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if _libc.mount(b"vfr", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        raise OSError(ctypes.get_errno(), "mount")


def _umount(path: Path) -> None:
    if _libc.umount2(os.fsencode(path), 2):  # MNT_DETACH: somebody's open file must not keep it
        raise OSError(ctypes.get_errno(), "umount")
    path.rmdir()  # from here, since a private namespace may still have the mount, and it would be busy


def at_home(operation: str, work: Callable[[], object]) -> None:
    """Does some work in a child in the machine's mount namespace. KernelError if it ends in an OSError."""
    home_process()  # found by our own ancestors, not by the child's
    child = os.fork()
    if not child:
        code = 1
        try:
            if _is_elsewhere():
                _enter_home()
            work()
            code = 0
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise KernelError(operation, abs(code))


def mount(path: Path) -> None:
    """Mounts a bpffs there, making the directory."""
    at_home(f"mounting the bpffs {path}", lambda: _mount(path))


def unmount(path: Path) -> None:
    """Takes the bpffs and its directory away, and with them every pin."""
    at_home(f"unmounting the bpffs {path}", lambda: _umount(path))


def _new_call(number: int, *args: object) -> int:
    result = int(_libc.syscall(number, *args))
    if result < 0:
        raise KernelError("making a bpffs of nobody else's", ctypes.get_errno())
    return result


@contextmanager
def private() -> Iterator[Path]:
    """A bpffs that is mounted nowhere: what is pinned there is gone with this process at the latest, however it
    ends."""
    opened = _new_call(_FSOPEN, b"bpf", _CLOEXEC)
    try:
        _new_call(_FSCONFIG, opened, _CREATE, None, None, 0)
        tree = _new_call(_FSMOUNT, opened, _CLOEXEC, 0)
    finally:
        os.close(opened)
    try:
        yield Path(f"/proc/self/fd/{tree}")
    finally:
        os.close(tree)
