"""The fastpath built natively (fastpath/native), as a bench: Bench's interface, a clock, and odd frames.

The control plane's own code fills its maps: vfr/kernel/fastpath.py and bpf.py, loaded a second time with
the emulated bpf(2) below them, so that the object and the native build can live side by side.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from support import world
from support.bench import ANSWERS, Bench, Outcome
from vfr import _abi
from vfr._abi import Limit, Verdict
from vfr.kernel import bpf, fastpath
from vfr.spec.model import LAN, SORTER

TOP = Path(__file__).resolve().parents[2]
LIBRARY = TOP / "build/native/libvfrnative.so"
_SHOT, _REDIRECT, _UNSPEC = 2, 7, -1
_OPENING_COMMANDS = (bpf.MAP_CREATE, bpf.OBJ_GET, bpf.MAP_FD_BY_ID)
LAN_IFINDEX = 100
_RINGBUF, _RING = 27, 1 << 14


class Frame(ctypes.Structure):
    """struct native_frame."""

    _fields_ = [
        ("data", ctypes.c_char_p),
        ("length", ctypes.c_uint32),
        ("linear", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("gso_size", ctypes.c_uint32),
        ("gso_segs", ctypes.c_uint32),
        ("csum_start", ctypes.c_uint16),
        ("csum_offset", ctypes.c_uint16),
        ("partial", ctypes.c_uint8),
        ("vlan", ctypes.c_uint8),
        ("fail_at", ctypes.c_uint8),
        ("hook", ctypes.c_uint8),
    ]


class Result(ctypes.Structure):
    """struct native_result."""

    _fields_ = [
        ("action", ctypes.c_int),
        ("verdict", ctypes.c_uint32),
        ("row", ctypes.c_uint32),
        ("target", ctypes.c_uint32),
        ("redirect", ctypes.c_uint32),
        ("redirect_ifindex", ctypes.c_uint32),
        ("redirect_flags", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("pkt_type", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("data", ctypes.POINTER(ctypes.c_uint8)),
    ]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.native_bpf.restype = ctypes.c_long
    library.native_init()
    return library


def _second_copy(module: ModuleType) -> ModuleType:
    """The module once more, from its source, so that what lies below it can be another."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"native_{module.__name__}", module.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copy  # dataclasses look their own module up
    spec.loader.exec_module(copy)
    return copy


def _on_native_maps(library: ctypes.CDLL) -> ModuleType:
    """vfr.kernel.fastpath on the emulated kernel. A map's descriptor is /dev/null's: it closes like any."""

    def call(command: int, attr: ctypes.Structure) -> int:
        fd = os.open(os.devnull, os.O_RDONLY) if command in _OPENING_COMMANDS else -1
        result = int(library.native_bpf(command, ctypes.byref(attr), fd))
        if fd >= 0 and result < 0:
            os.close(fd)
        return result

    native_bpf, native_fastpath = _second_copy(bpf), _second_copy(fastpath)
    native_bpf._call = call  # type: ignore[attr-defined]
    native_fastpath.bpf = native_bpf  # type: ignore[attr-defined]
    native_fastpath._possible_cpus = lambda: 1  # type: ignore[attr-defined]
    return native_fastpath


class Native(Bench):
    """The native build, its maps set to the test world. One at a time: its maps are the library's own."""

    def __init__(self, recording: Path | None = None) -> None:
        """`recording` is a file to write all changes of maps to, for the fuzzers to begin with."""
        self._recording = recording
        self._rings: dict[int, int] = {}

    def __enter__(self) -> Native:
        self.library = _library()
        module = _on_native_maps(self.library)
        notes = {
            name: module.bpf.create_map(bpf.TYPE_ARRAY, 4, size, places, 0, name)
            for name, (size, places) in module.NOTES.items()
        }
        notes[module.SWEEP] = os.open(os.devnull, os.O_RDONLY)
        opened = module.bpf.get_pinned
        module.bpf.get_pinned = lambda path: notes[path.name] if path.name in notes else opened(path)
        # The emulated kernel has one thread, and nothing to wait for.
        module.Fastpath._side_by_side = staticmethod(lambda names, work: [work(name) for name in names])
        self._seated = set()
        self.bpf = module.bpf
        self.fastpath = module.Fastpath(Path("/native"), ())  # programs are functions here
        self.fastpath.new_lan_tables()
        self.fastpath.sweep = lambda row: self.library.native_sweep(ctypes.c_uint32(row))
        self.ifindex = {**{name: slot + 1 for name, slot in world.SLOTS.items()}, "lan": LAN_IFINDEX, "sorter": 101}
        self.clock(10**15)
        self.read_kernel_context(True)
        if self._recording:
            self.library.native_record(str(self._recording).encode())
        return self

    def __exit__(self, *_: object) -> None:
        if self._recording:
            self.library.native_record(None)
        self.fastpath.close()

    def clock(self, nanoseconds: int) -> None:
        """Sets bpf_ktime_get_ns."""
        self.library.native_clock(ctypes.c_uint64(nanoseconds))

    def random(self, seed: int, fixed: bool = False) -> None:
        """What bpf_get_prandom_u32 says: a sequence from `seed` on, or always that."""
        self.library.native_random(ctypes.c_uint32(seed), ctypes.c_bool(fixed))

    def read_kernel_context(self, readable: bool) -> None:
        """Whether the kernel's own sk_buff can be read, as since Linux 6.2."""
        self.library.native_kernel_context(ctypes.c_bool(readable))

    def next_identification(self, identification: int, remote: int) -> None:
        """What the next packet without DF to a remote gets (fastpath/translate.h, choose_id)."""
        raw = int.from_bytes(remote.to_bytes(4, "big"), "little")
        place = (raw * 2654435761 & 0xFFFFFFFF) >> 22
        self.fastpath._maps["identifications"].set(place.to_bytes(4, "little"), identification.to_bytes(4, "little"))

    def set(self, setting: str, kind: type[Any], value: int) -> None:
        """One of the fastpath's `const volatile` settings; `kind` is its ctypes type."""
        variable = kind.in_dll(self.library, setting)
        self.library.native_set(ctypes.byref(variable), ctypes.c_size_t(ctypes.sizeof(kind)), ctypes.c_uint64(value))

    def host_binds(self, ports: frozenset[tuple[int, int]]) -> None:
        """From now on the host has sockets on these (protocol, port), and no others."""
        self.library.native_host_is_silent()
        for protocol, port in ports:
            self.library.native_host_listens(ctypes.c_uint8(protocol), ctypes.c_uint16(port), ctypes.c_bool(True))

    def capture(self, slots: Iterable[int]) -> None:
        """Begins captures of all that is on these slots' VIFs, with rings that nobody reads."""
        maps = self.fastpath.map
        row = _abi.Capture(until_ns=1 << 63, wanted=(1 << 64) - 1, snap=int(Limit.SNAP_MAX))
        maps("captures").set(int(Limit.CAPTURES_ALL).to_bytes(4, "little"), bytes(row))
        for slot in slots:
            key, row.generation = slot.to_bytes(4, "little"), slot + 1
            if slot not in self._rings:
                self._rings[slot] = self.bpf.create_map(_RINGBUF, 0, 0, _RING, 0, "capture")
                maps("capture_rings").set(key, self._rings[slot].to_bytes(4, "little"))
            maps("captured").set(key, bytes(_abi.Captured()))
            maps("captures").set(key, bytes(row))

    def mark(self) -> None:
        """Ends a segment of the recording."""
        self.library.native_record_mark()

    def maps(self) -> dict[str, tuple[int, int, int, int, int]]:
        """Name -> type, sizes of key and value, entries, flags, as the library has declared them."""
        self.library.native_map_number.restype = ctypes.POINTER(_Map)
        found = (self.library.native_map_number(i).contents for i in range(self.library.native_map_count()))
        return {m.name.decode(): (m.type, m.key_size, m.value_size, m.max_entries, m.flags) for m in found}

    def send(self, sender: int, frame: bytes, **odd: int) -> Outcome:
        """One frame in by a slot's VIF, by the uplink if the sender is LAN, or from the sorter; a hairpin goes
        round by the uplink's hook. `odd` are Frame's fields."""
        name = {LAN: "lan", SORTER: "sorter"}.get(sender) or next(n for n, s in world.SLOTS.items() if s == sender)
        hook = {LAN: 1, SORTER: 2}.get(sender, 0)
        handed = Frame(data=frame, length=len(frame), ifindex=self.ifindex[name], hook=hook, **odd)
        seen = Result()
        self.library.native_run(ctypes.byref(handed), ctypes.byref(seen))
        if seen.verdict == Verdict.HAIRPIN:
            return self.send(LAN, ctypes.string_at(seen.data, seen.length), **{**odd, "mark": int(Limit.MARK_HAIRPIN)})
        return _outcome(sender, seen)


class _Map(ctypes.Structure):
    """The beginning of struct native_map."""

    _fields_ = [
        ("self", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        *((field, ctypes.c_uint32) for field in ("id", "type", "key_size", "value_size", "max_entries", "flags")),
    ]


def _outcome(sender: int, seen: Result) -> Outcome:
    verdict = Verdict(seen.verdict)
    passed = not verdict.name.startswith("DROP_") or seen.action != _SHOT
    back = verdict is Verdict.NOT_OURS and sender != SORTER
    assert seen.action == (_UNSPEC if back else _REDIRECT if passed else _SHOT), f"{verdict.name}: {seen.action}"
    target = seen.target if seen.target != 0xFFFF else None
    frame = ctypes.string_at(seen.data, seen.length) if passed else None
    return Outcome(verdict, frame, sender if verdict in ANSWERS else target)
