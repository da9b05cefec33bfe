"""bpf(2) as the control plane uses it: maps, pins, links, test runs. Nothing else calls it.

Errors of the kernel become KernelError with the operation's name; the values are what the caller hands
over as ctypes structures or bytes, laid out as vfr/_abi.py says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vfr.errors import KernelError, VfrError

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 0, 1, 2, 3, 4
OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 6, 7, 10
PROG_FD_BY_ID, LINK_DETACH, LINK_UPDATE = 13, 34, 29
MAP_LOOKUP_AND_DELETE, MAP_FD_BY_ID, INFO_BY_FD, PROG_QUERY, LINK_CREATE = 21, 14, 15, 16, 28
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27

TYPE_HASH, TYPE_ARRAY = 1, 2
ANY, NOEXIST = 0, 1
TCX_INGRESS, TCX_EGRESS = 46, 47
_REPLACE, _BEFORE = 1 << 2, 1 << 3
_ATTR_SIZE = 144


class _Attr(ctypes.Structure):
    """Room for any bpf_attr; commands fill in their own structure on top of it."""

    _fields_ = [("bytes", ctypes.c_uint8 * _ATTR_SIZE)]


class _Elem(ctypes.Structure):
    _fields_ = [
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _Create(ctypes.Structure):
    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class _Obj(ctypes.Structure):
    _fields_ = [("path", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _Info(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64)]


class _Query(ctypes.Structure):
    _fields_ = [
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
    ]


class _Link(ctypes.Structure):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class _Update(ctypes.Structure):
    _fields_ = [
        ("link_fd", ctypes.c_uint32),
        ("new_prog_fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("old_prog_fd", ctypes.c_uint32),
    ]


class _Detach(ctypes.Structure):
    _fields_ = [("link_fd", ctypes.c_uint32)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _TestRun(ctypes.Structure):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
    ]


def _call(command: int, attr: ctypes.Structure) -> int:
    """Runs one bpf(2) command; the kernel's answer is written back into `attr`. -errno on failure."""
    room = _Attr()
    ctypes.memmove(ctypes.byref(room), ctypes.byref(attr), ctypes.sizeof(attr))
    result = int(_libc.syscall(_SYSCALL[platform.machine()], command, ctypes.byref(room), _ATTR_SIZE))
    ctypes.memmove(ctypes.byref(attr), ctypes.byref(room), ctypes.sizeof(attr))
    return result if result >= 0 else -ctypes.get_errno()


def _checked(operation: str, command: int, attr: ctypes.Structure) -> int:
    result = _call(command, attr)
    if result < 0:
        raise KernelError(operation, -result)
    return result


def check_allowed() -> None:
    """VfrError if this process cannot use bpf(2) at all: asked by making a map, and dropping it."""
    try:
        os.close(create_map(TYPE_ARRAY, 4, 4, 1, 0, "vfr_check"))
    except KernelError as error:
        if error.errno == errno.ENOSYS:
            raise VfrError("this kernel has no bpf(2); VFR needs one with CONFIG_BPF_SYSCALL") from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise VfrError(
                "bpf(2) is not permitted here, though this is root: a container or sandbox keeps it back;"
                " run VFR on the host itself, or allow CAP_BPF, CAP_NET_ADMIN and the bpf system call"
            ) from None
        raise


def get_pinned(path: Path) -> int:
    """File descriptor of a pinned map, program or link. KernelError (ENOENT) if there is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _checked(f"opening the pin {path}", OBJ_GET, _Obj(path=ctypes.addressof(name)))


def pin(fd: int, path: Path) -> None:
    """Gives a map, program or link a name on bpffs, so that it outlives this process."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _checked(f"pinning {path}", OBJ_PIN, _Obj(path=ctypes.addressof(name), fd=fd))


def object_id(fd: int) -> int:
    """The kernel's number of a program, which is how hooks name what is attached."""
    info = (ctypes.c_uint32 * 64)()
    attr = _Info(fd=fd, length=ctypes.sizeof(info), info=ctypes.addressof(info))
    _checked("asking about a BPF program", INFO_BY_FD, attr)
    return int(info[1])


class ProgramInfo(ctypes.Structure):
    """What the kernel knows of a loaded program (struct bpf_prog_info): sizes in bytes, and how many
    instructions the verifier walked through, on all paths together, to accept it."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_size", ctypes.c_uint32),
        ("translated_size", ctypes.c_uint32),
        ("_pointers", ctypes.c_uint8 * 40),
        ("name", ctypes.c_char * 16),
        ("_between", ctypes.c_uint8 * 136),
        ("verified_instructions", ctypes.c_uint32),
    ]


def program_info(fd: int) -> ProgramInfo:
    """The figures of a loaded program."""
    info = ProgramInfo()
    attr = _Info(fd=fd, length=ctypes.sizeof(info), info=ctypes.addressof(info))
    _checked("asking about a BPF program", INFO_BY_FD, attr)
    return info


def program_fd_by_id(number: int) -> int:
    """File descriptor of the program with this kernel number."""
    return _checked(f"opening program {number}", PROG_FD_BY_ID, _Obj(path=number))


def create_map(kind: int, key: int, value: int, entries: int, flags: int, name: str, inner: int = 0) -> int:
    """A new map's file descriptor. Sizes in bytes; `inner` is one like those that a map of maps is to have."""
    attr = _Create(kind, key, value, entries, flags, inner, 0, name.encode()[:15])
    return _checked(f"creating the map {name} with {entries} entries", MAP_CREATE, attr)


def map_fd_by_id(number: int) -> int:
    """File descriptor of the map with this kernel number."""
    return _checked(f"opening map {number}", MAP_FD_BY_ID, _Obj(path=number))


_BATCH = 1 << 14
_WALK = 1 << 11  # more than one bucket of a hash ever has: the kernel hands over whole buckets
_NOT_ZERO = re.compile(rb"[^\0]")


class Map:
    """One open map. Keys and values are bytes of the declared sizes.

    A per-CPU map's value is that of all possible CPUs one after the other, each rounded up to 8 bytes.
    """

    def __init__(self, fd: int, name: str, key_size: int, value_size: int, entries: int) -> None:
        self.fd, self.name = fd, name
        self.key_size, self.value_size, self.entries = key_size, value_size, entries
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(value_size)

    def close(self) -> None:
        os.close(self.fd)

    def _elem(self, key: bytes, flags: int = 0) -> _Elem:
        assert len(key) == self.key_size, (self.name, len(key))
        self._key.raw = key
        return _Elem(map_fd=self.fd, key=ctypes.addressof(self._key), value=ctypes.addressof(self._value), flags=flags)

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, None if there is none."""
        result = _call(MAP_LOOKUP, self._elem(key))
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise KernelError(f"reading the map {self.name}", -result)
        return self._value.raw

    def set(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Enters or replaces a value. KernelError with E2BIG if the map is full."""
        assert len(value) == self.value_size, (self.name, len(value))
        elem = self._elem(key, flags)
        self._value.raw = value
        _checked(f"writing the map {self.name}", MAP_UPDATE, elem)

    def delete(self, key: bytes) -> bool:
        """Whether there was something to delete."""
        elem = self._elem(key)
        elem.value = 0  # the kernel insists that what a command does not use is zero
        result = _call(MAP_DELETE, elem)
        if result < 0 and result != -errno.ENOENT:
            raise KernelError(f"deleting from the map {self.name}", -result)
        return result >= 0

    def pop(self) -> bytes | None:
        """The oldest value of a queue, which then is gone from it; None if there is none."""
        result = _call(MAP_LOOKUP_AND_DELETE, _Elem(map_fd=self.fd, value=ctypes.addressof(self._value)))
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise KernelError(f"reading the queue {self.name}", -result)
        return self._value.raw

    def push(self, value: bytes) -> None:
        """Enters a value behind all others of a queue. KernelError with E2BIG if it is full."""
        assert len(value) == self.value_size, (self.name, len(value))
        self._value.raw = value
        _checked(
            f"writing the queue {self.name}", MAP_UPDATE, _Elem(map_fd=self.fd, value=ctypes.addressof(self._value))
        )

    def keys(self) -> list[bytes]:
        """All keys. Those that come or go meanwhile may or may not be among them."""
        found: list[bytes] = []
        after = ctypes.create_string_buffer(self.key_size)
        next_key = ctypes.create_string_buffer(self.key_size)
        attr = _Elem(map_fd=self.fd, value=ctypes.addressof(next_key))
        while (result := _call(MAP_NEXT_KEY, attr)) >= 0:
            found.append(next_key.raw)
            after.raw = next_key.raw
            attr.key = ctypes.addressof(after)
            if len(found) > 4 * self.entries:
                raise KernelError(f"listing the map {self.name}", errno.EAGAIN)
        if result != -errno.ENOENT:
            raise KernelError(f"listing the map {self.name}", -result)
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their values."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def _batch(self, keys: bytes, values: bytes, count: int) -> tuple[_Batch, list[object]]:
        rooms = [ctypes.create_string_buffer(raw, max(len(raw), 1)) for raw in (keys, values)]
        at = [ctypes.addressof(room) for room in rooms]
        return _Batch(keys=at[0], values=at[1], count=count, map_fd=self.fd), list(rooms)

    def set_many(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Enters or replaces values, thousands to a system call. KernelError as from set; some may then be in."""
        rows = list(rows)
        for at in range(0, len(rows), _BATCH):
            part = rows[at : at + _BATCH]
            attr, _rooms = self._batch(b"".join(k for k, _ in part), b"".join(v for _, v in part), len(part))
            _checked(f"writing the map {self.name}", MAP_UPDATE_BATCH, attr)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Deletes keys that are there, thousands to a system call."""
        keys = list(keys)
        for at in range(0, len(keys), _BATCH):
            part = keys[at : at + _BATCH]
            attr, _rooms = self._batch(b"".join(part), b"", len(part))
            attr.values = 0
            _checked(f"deleting from the map {self.name}", MAP_DELETE_BATCH, attr)

    def rows(self) -> list[tuple[bytes, bytes]]:
        """All keys with their values, thousands to a system call. For hashes and tries that nobody writes meanwhile."""
        found: list[tuple[bytes, bytes]] = []
        k, v = self.key_size, self.value_size
        cursor = ctypes.create_string_buffer(max(k, 8))
        keys, values = ctypes.create_string_buffer(_BATCH * k), ctypes.create_string_buffer(_BATCH * v)
        attr = _Batch(keys=ctypes.addressof(keys), values=ctypes.addressof(values), map_fd=self.fd)
        result = 0
        while result >= 0:
            attr.count, attr.out_batch = _BATCH, ctypes.addressof(cursor)
            result = _call(MAP_LOOKUP_BATCH, attr)
            if result < 0 and result != -errno.ENOENT:
                raise KernelError(f"reading the map {self.name}", -result)
            raw, seen = keys.raw, values.raw
            found += [(raw[i * k : i * k + k], seen[i * v : i * v + v]) for i in range(attr.count)]
            attr.in_batch = ctypes.addressof(cursor)
        return found

    def batches(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(how many, their keys, their values), thousands to a system call. For hashes that are written meanwhile: what
        stays is seen once, what comes or goes may or may not be."""
        k, v, room = self.key_size, self.value_size, _WALK
        cursor = ctypes.create_string_buffer(max(k, 8))
        keys, values = ctypes.create_string_buffer(room * k), ctypes.create_string_buffer(room * v)
        attr = _Batch(keys=ctypes.addressof(keys), values=ctypes.addressof(values), map_fd=self.fd)
        result = 0
        while result >= 0:
            attr.count, attr.out_batch = room, ctypes.addressof(cursor)
            result = _call(MAP_LOOKUP_BATCH, attr)
            if result < 0 and result != -errno.ENOENT:
                raise KernelError(f"reading the map {self.name}", -result)
            yield attr.count, ctypes.string_at(attr.keys, attr.count * k), ctypes.string_at(attr.values, attr.count * v)
            attr.in_batch = ctypes.addressof(cursor)

    def walk(self) -> Iterator[bytes]:
        """All keys with their values, each pair in one piece, of the same."""
        k, v = self.key_size, self.value_size
        for count, keys, values in self.batches():
            yield from (keys[i * k : i * k + k] + values[i * v : i * v + v] for i in range(count))

    def places(self, first: int, count: int) -> bytes:
        """The values of some places of an array, one after the other, in one system call."""
        before, after = ctypes.c_uint32(first - 1), ctypes.c_uint32()
        keys, values = (ctypes.c_uint32 * count)(), ctypes.create_string_buffer(count * self.value_size)
        attr = _Batch(
            in_batch=ctypes.addressof(before) if first else 0,
            out_batch=ctypes.addressof(after),
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(values),
            count=count,
            map_fd=self.fd,
        )
        result = _call(MAP_LOOKUP_BATCH, attr)
        if result < 0 and result != -errno.ENOENT:
            raise KernelError(f"reading the map {self.name}", -result)
        assert list(keys) == list(range(first, first + count)), (self.name, first, count, attr.count)
        return values.raw

    def dump(self) -> list[tuple[int, bytes]]:
        """The rows of an array that are not all zeros, read in one system call. Not for maps in maps: see
        Fastpath.tables."""
        keys = (ctypes.c_uint32 * self.entries)()
        values = ctypes.create_string_buffer(self.entries * self.value_size)
        cursor = ctypes.c_uint32()
        attr = _Batch(
            out_batch=ctypes.addressof(cursor),
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(values),
            count=self.entries,
            map_fd=self.fd,
        )
        result = _call(MAP_LOOKUP_BATCH, attr)
        if result < 0 and result != -errno.ENOENT:
            raise KernelError(f"reading the map {self.name}", -result)
        raw, size, at = values.raw, self.value_size, 0
        found = []
        while (written := _NOT_ZERO.search(raw, at)) and (row := written.start() // size) < attr.count:
            at = (row + 1) * size
            found.append((int(keys[row]), raw[row * size : at]))
        return found


def tcx_attach(ifindex: int, program: int) -> int:
    """A link that runs `program` first on the interface's ingress. KernelError (EINVAL) before 6.6.

    The program is detached when the link's last descriptor closes, unless it is pinned.
    """
    attr = _Link(prog_fd=program, ifindex=ifindex, attach_type=TCX_INGRESS, flags=_BEFORE)
    return _checked(f"attaching to interface {ifindex} by tcx", LINK_CREATE, attr)


def update_link(link: int, old: int, new: int) -> None:
    """Has a link run another program from the next packet on. KernelError (EPERM) if it does not run `old` now."""
    attr = _Update(link_fd=link, new_prog_fd=new, flags=_REPLACE, old_prog_fd=old)
    _checked("replacing a program under its link", LINK_UPDATE, attr)


def link_program(link: int) -> int:
    """The kernel's number of the program that a link runs."""
    info = (ctypes.c_uint32 * 64)()
    attr = _Info(fd=link, length=ctypes.sizeof(info), info=ctypes.addressof(info))
    _checked("asking about a BPF link", INFO_BY_FD, attr)
    return int(info[2])


def detach_link(link: int) -> None:
    """Takes a link's program off at once, whoever else has the link."""
    _checked("detaching a program", LINK_DETACH, _Detach(link_fd=link))


def tcx_programs(ifindex: int, way: int = TCX_INGRESS) -> list[int]:
    """Numbers of the programs on the interface's ingress, in the order they run; [] without tcx."""
    ids = (ctypes.c_uint32 * 64)()
    attr = _Query(ifindex=ifindex, attach_type=way, ids=ctypes.addressof(ids), count=64)
    result = _call(PROG_QUERY, attr)
    if result in (-errno.ENODEV, -errno.ENOENT, -errno.EINVAL):
        return []
    if result < 0:
        raise KernelError(f"asking what is attached to interface {ifindex}", -result)
    return list(ids[: attr.count])


_SKB_SIZE, _SKB_MARK, _SKB_IFINDEX = 192, 8, 40


def test_run(program: int, frame: bytes, ifindex: int, mark: int = 0, repeat: int = 1) -> tuple[int, bytes]:
    """Runs a program on a frame as if it had come in by the interface, which must exist here.

    Returns what the program told the kernel (TC_ACT_*) and the frame as it left it. Needs 14 bytes. `mark` is skb->mark.
    With `repeat`, so many times, each on what the last one left.
    """
    skb = bytearray(_SKB_SIZE)
    skb[_SKB_MARK : _SKB_MARK + 4] = mark.to_bytes(4, "little")
    skb[_SKB_IFINDEX : _SKB_IFINDEX + 4] = ifindex.to_bytes(4, "little")
    ctx = ctypes.create_string_buffer(bytes(skb), _SKB_SIZE)
    data = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(len(frame) + 256)
    attr = _TestRun(
        prog_fd=program,
        data_size_in=len(frame),
        data_size_out=len(out),
        data_in=ctypes.addressof(data),
        data_out=ctypes.addressof(out),
        repeat=repeat,
        ctx_size_in=_SKB_SIZE,
        ctx_in=ctypes.addressof(ctx),
    )
    _checked("running the fastpath on a test frame", PROG_TEST_RUN, attr)
    return int(attr.retval), out.raw[: attr.data_size_out]
