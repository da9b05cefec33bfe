"""The compiled loader (fastpath/loader.c) under ctypes: loading the object, and the clsact hook."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

from vfr.errors import KernelError, VfrError

BUILD = Path(__file__).resolve().parent.parent / "_build"
OBJECT = BUILD / "vfr.bpf.o"
WITNESSES = BUILD / "witness.bpf.o"
_LOG_SIZE = 1 << 18
KERNEL_CONTEXT = "kernel_context"  # whether the fastpath reads the kernel's own sk_buff by itself


class _Setting(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_uint64)]


class _Shared(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("fd", ctypes.c_int)]


class _Wish(ctypes.Structure):
    _fields_ = [
        ("settings", ctypes.POINTER(_Setting)),
        ("shared", ctypes.POINTER(_Shared)),
        ("programs", ctypes.POINTER(ctypes.c_char_p)),
        ("setting_count", ctypes.c_int),
        ("shared_count", ctypes.c_int),
        ("program_count", ctypes.c_int),
    ]


@cache
def _library() -> ctypes.CDLL:
    path = BUILD / "libvfrload.so"
    for part in (OBJECT, WITNESSES, path):
        if not part.exists():
            raise VfrError(f"the compiled fastpath {part} is missing; run `make build` in VFR's source tree")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise VfrError(f"the loader cannot be used ({error}); install libbpf: apt install libbpf1") from None


@cache
def installed() -> str:
    """What tells the installed object from any other build: the digest of its file. VfrError if it is not there."""
    _library()
    return hashlib.sha256(OBJECT.read_bytes()).hexdigest()


def _wish(settings: Mapping[str, int], shared: Mapping[str, int], programs: Collection[str] | None) -> _Wish:
    return _Wish(
        settings=(_Setting * len(settings))(*[_Setting(k.encode(), v) for k, v in settings.items()]),
        shared=(_Shared * len(shared))(*[_Shared(k.encode(), fd) for k, fd in shared.items()]),
        programs=None if programs is None else (ctypes.c_char_p * len(programs))(*[p.encode() for p in programs]),
        setting_count=len(settings),
        shared_count=len(shared),
        program_count=len(programs or ()),
    )


def load(
    pins: Path,
    settings: Mapping[str, int],
    shared: Mapping[str, int] | None = None,
    programs: Collection[str] | None = None,
) -> bool:
    """Loads the object and pins its maps and programs, each under its own name, in `pins`.

    `settings` are the object's `const volatile` variables, `shared` the descriptors of maps that it is to use in
    place of its own, `programs` the names of those that are wanted, None for all. KernelError carries the
    verifier's log. Where the fastpath is not to read the kernel's own sk_buff, witnesses do it for the fastpath
    (fastpath/witness.h), and True is returned.
    """
    settings = {KERNEL_CONTEXT: _library().vfr_has_kernel_context(), **settings}
    wish = _wish(settings, shared or {}, programs)
    log = ctypes.create_string_buffer(_LOG_SIZE)
    err = _library().vfr_load(str(OBJECT).encode(), str(pins).encode(), ctypes.byref(wish), log, _LOG_SIZE)
    if err:
        raise KernelError("loading the fastpath", -err, log.value.decode(errors="replace").strip())
    if not settings[KERNEL_CONTEXT]:
        err = _library().vfr_load_witnesses(str(WITNESSES).encode(), str(pins).encode(), log, _LOG_SIZE)
    if err:
        raise KernelError("loading the fastpath's witnesses", -err, log.value.decode(errors="replace").strip())
    return not settings[KERNEL_CONTEXT]


def clsact_attach(ifindex: int, program: int) -> bool:
    """Attaches by clsact, replacing what is on our place. True if the qdisc was made for it."""
    result = int(_library().vfr_clsact_attach(ifindex, program))
    if result < 0:
        raise KernelError(f"attaching to interface {ifindex} by clsact", -result)
    return bool(result)


def clsact_program(ifindex: int) -> int | None:
    """The number of the program on our place of the clsact hook, None if there is none."""
    result = int(_library().vfr_clsact_program(ifindex))
    return result if result > 0 else None


def clsact_detach(ifindex: int, remove_qdisc: bool) -> None:
    """Takes our program off the clsact hook, and the qdisc with it if it was made for us."""
    if clsact_program(ifindex) is None:
        return
    result = int(_library().vfr_clsact_detach(ifindex, int(remove_qdisc)))
    if result < 0:
        raise KernelError(f"detaching from interface {ifindex}", -result)
