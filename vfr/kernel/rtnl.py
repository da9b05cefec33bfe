"""rtnetlink(7) in bytes: many requests to a system call, each with an answer of its own, and dumps.

A general library makes an object of each of an interface's hundred attributes. With thousands of interfaces that is
what a command's time went into, so what is asked for often, or many times at once, is written and read here as it lies
in the messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vfr.errors import KernelError
from vfr.instance import NETNS

NEWLINK, DELLINK, GETLINK, SETLINK, NEWADDR, GETADDR, NEWROUTE, DELROUTE, GETROUTE = 16, 17, 18, 19, 20, 22, 24, 25, 26
GETFILTER = 46
CREATE, EXCL, REPLACE = 0x400, 0x200, 0x100
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 1, 4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_FILTER = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_CLONE_NEWNET = 0x40000000
_ROOM = 1 << 20  # bytes of one answer
_WAITING = 4 << 20  # bytes of all that may wait to be read: the kernel's answers to _AT_ONCE requests, and its needs
_AT_ONCE = 128
_RCVBUF_FORCE = 33
_SOL_NETLINK, _SHORT_ANSWERS = 270, 10
_DUMPS = 5  # so many times before what changes all the while is taken as it came
_libc = ctypes.CDLL(None, use_errno=True)
Attrs = dict[int, bytes]


def attr(kind: int, value: bytes | str | int) -> bytes:
    """An attribute: bytes, a C string, or a u32."""
    if isinstance(value, int):
        value = value.to_bytes(4, "little")
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return _ATTR.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute that has attributes in it."""
    return attr(kind | _NESTED, b"".join(parts))


def attrs(raw: bytes) -> Attrs:
    """The attributes in some bytes, by kind."""
    found, at, end = {}, 0, len(raw)
    while at + 4 <= end:
        length, kind = _ATTR.unpack_from(raw, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def link(*parts: bytes, index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """What a message about an interface says."""
    return _LINK.pack(0, 0, index, flags, change) + b"".join(parts)


def address(index: int, prefix: int, *parts: bytes) -> bytes:
    """What a message about an IPv4 address says."""
    return _ADDR.pack(socket.AF_INET, prefix, 0, 0, index) + b"".join(parts)


def route(prefix: int, scope: int, *parts: bytes, kind: int = 1, protocol: int = 4) -> bytes:
    """What a message about an IPv4 route of the main table says."""
    return _ROUTE.pack(socket.AF_INET, prefix, 0, 0, 254, protocol, scope, kind, 0) + b"".join(parts)


def filters_of(index: int, parent: int) -> bytes:
    """What a question about an interface's tc filters says."""
    return _FILTER.pack(socket.AF_UNSPEC, index, 0, parent, 0)


def of_link(raw: bytes) -> tuple[int, int, Attrs]:
    """(index, flags, attributes) of an interface."""
    _, _, index, flags, _ = _LINK.unpack_from(raw)
    return index, flags, attrs(raw[_LINK.size :])


def of_address(raw: bytes) -> tuple[int, int, Attrs]:
    """(interface index, length of the prefix, attributes) of an address."""
    _, prefix, _, _, index = _ADDR.unpack_from(raw)
    return index, prefix, attrs(raw[_ADDR.size :])


def of_route(raw: bytes) -> tuple[int, int, Attrs]:
    """(table, length of the destination's prefix, attributes) of a route."""
    _, prefix, _, _, table, *_ = _ROUTE.unpack_from(raw)
    return table, prefix, attrs(raw[_ROUTE.size :])


def of_filter(raw: bytes) -> tuple[int, Attrs]:
    """(handle, attributes) of a tc filter; the handle of what has filters in it is 0."""
    _, _, handle, _, _ = _FILTER.unpack_from(raw)
    return handle, attrs(raw[_FILTER.size :])


def enter(netns: Path) -> None:
    """This thread goes into a namespace. OSError if it cannot. For threads that end soon."""
    handle = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(netns))
    finally:
        os.close(handle)


def netlink() -> socket.socket:
    """A socket in the namespace that this thread is in."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.setsockopt(_SOL_NETLINK, _SHORT_ANSWERS, 1)
    with suppress(PermissionError):  # who is not root asks little
        made.setsockopt(socket.SOL_SOCKET, _RCVBUF_FORCE, _WAITING)
    return made


def _netlink_in(netns: Path) -> socket.socket:
    """A socket in another namespace, made by a thread that goes there and ends."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def work() -> None:
        try:
            enter(netns)
            made.append(netlink())
        except OSError as error:
            failed.append(error)

    there = threading.Thread(target=work)
    there.start()
    there.join()
    if failed:
        raise failed[0]
    return made[0]


class Rtnl:
    """A conversation with the kernel about one namespace's network: this one's, one by its name, or one by its path.

    `operation` is what it is for, in the errors.
    """

    def __init__(self, operation: str, netns: str | Path | None = None, over: socket.socket | None = None) -> None:
        self._operation, self._number = operation, 0
        if over is not None:
            self._socket = over
            return
        try:
            self._socket = netlink() if netns is None else _netlink_in(NETNS / netns)
        except OSError as error:
            raise KernelError(operation, error.errno or errno.EIO) from None

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _error(self, number: int) -> KernelError:
        return KernelError(self._operation, number)

    def _request(self, kind: int, flags: int, body: bytes) -> bytes:
        self._number += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._number, 0) + body

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(kind, flags, number of the request, body) of what one receipt has."""
        raw = self._socket.recv(_ROOM)
        at = 0
        while at < len(raw):
            length, kind, flags, number, _ = _HEADER.unpack_from(raw, at)
            yield kind, flags, number, raw[at + _HEADER.size : at + length]
            at += length + 3 & ~3

    def ask_each(self, requests: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """Has the kernel do each of (kind, flags, body), in their order. What it said to each: 0, or its errno.

        Only the last one's success is asked for: what fails is told unasked, and before.
        """
        said: list[int] = []
        for at in range(0, len(requests), _AT_ONCE):
            *others, last = requests[at : at + _AT_ONCE]
            first = self._number + 1
            asked = [*others, (last[0], last[1] | _ACK, last[2])]
            self._socket.send(b"".join(self._request(*request) for request in asked))
            got: dict[int, int] = {}
            while self._number not in got:
                for kind, _, number, body in self._answers():
                    if kind == _ERROR:
                        got[number] = -int.from_bytes(body[:4], "little", signed=True)
            said += [got.get(first + n, 0) for n in range(len(asked))]
        return said

    def do(self, kind: int, flags: int, body: bytes, fine: tuple[int, ...] = ()) -> None:
        """Has the kernel do one thing. KernelError unless it did, or says one of `fine`."""
        (number,) = self.ask_each([(kind, flags, body)])
        if number and number not in fine:
            raise self._error(number)

    def get(self, kind: int, body: bytes) -> bytes | None:
        """The answer to one question; None if there is nothing of the kind."""
        self._socket.send(self._request(kind, 0, body))
        answer = None
        while answer is None:
            for said, _, number, raw in self._answers():
                if number != self._number:
                    continue
                if said == _ERROR:
                    number = -int.from_bytes(raw[:4], "little", signed=True)
                    if number == errno.ENODEV:
                        return None
                    raise self._error(number)
                answer = raw
        return answer

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All of a kind. What changes meanwhile makes the kernel say so: then it is asked again, some times."""
        found: list[bytes] = []
        for _ in range(_DUMPS):
            found, whole = self._dump(kind, body)
            if whole:
                break
        return found

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._socket.send(self._request(kind, _DUMP, body))
        found: list[bytes] = []
        whole = True
        while True:
            for said, flags, number, raw in self._answers():
                if number != self._number:
                    continue
                whole = whole and not flags & _INTERRUPTED
                if said == _ERROR:
                    raise self._error(-int.from_bytes(raw[:4], "little", signed=True))
                if said == _DONE:
                    return found, whole
                found.append(raw)
