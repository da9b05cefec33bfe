"""What the kernel tells of by itself: interfaces, addresses, routes, tc filters, nftables, named namespaces.

NOTE: of programs on tcx it tells nobody; whoever wants to know must look from time to time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import selectors
import socket
import struct
from collections.abc import Iterator

from vfr.errors import KernelError
from vfr.instance import NETNS

_NETLINK_NETFILTER = 12
# RTMGRP_LINK, _TC, _IPV4_IFADDR, _IPV4_ROUTE of <linux/rtnetlink.h>; NFNLGRP_NFTABLES of <linux/netfilter/nfnetlink.h>.
_ROUTE_GROUPS, _NFT_GROUP = 0x1 | 0x8 | 0x10 | 0x40, 1 << 6
_KINDS = {16: "links", 17: "links", 20: "addresses", 21: "addresses", 24: "routes", 25: "routes"}
_KINDS |= {36: "filters", 37: "filters", 44: "filters", 45: "filters"}
# IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO of <sys/inotify.h>.
_CHANGED = 0x100 | 0x200 | 0x40 | 0x80
_ROOM = 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _socket(protocol: int, groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    made.bind((0, groups))
    return made


def _types(raw: bytes) -> Iterator[int]:
    """The types of the messages in what a netlink socket gave."""
    at = 0
    while at + 16 <= len(raw):
        length, kind = struct.unpack_from("=IH", raw, at)
        yield kind
        at += max((length + 3) & ~3, 16)


def _watched_names() -> int | None:
    """A descriptor that can be read when a named namespace comes or goes; None if there never was one."""
    if not NETNS.is_dir():
        return None
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0 or _libc.inotify_add_watch(fd, os.fsencode(NETNS), _CHANGED) < 0:
        raise KernelError(f"watching {NETNS}", ctypes.get_errno())
    return fd


class Monitor:
    """Listens from the moment it is made. `wakeup`: a descriptor that ends a wait when it can be read."""

    def __init__(self, wakeup: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._route = _socket(socket.NETLINK_ROUTE, _ROUTE_GROUPS)
        self._nft = _socket(_NETLINK_NETFILTER, _NFT_GROUP)
        self._names = _watched_names()
        for one in (self._route, self._nft, wakeup, *(() if self._names is None else (self._names,))):
            self._selector.register(one, selectors.EVENT_READ)
        self._wakeup = wakeup

    def close(self) -> None:
        self._selector.close()
        self._route.close()
        self._nft.close()
        if self._names is not None:
            os.close(self._names)

    def wait(self, seconds: float) -> frozenset[str]:
        """What kinds of things have changed since the last time: as soon as something has, or nothing after so long."""
        ready = {key.fileobj for key, _ in self._selector.select(max(seconds, 0))}
        found: set[str] = set()
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if self._names in ready and self._names is not None:
            os.read(self._names, _ROOM)
            found.add("namespaces")
        if self._route in ready:
            found |= {_KINDS.get(kind, "links") for kind in self._heard(self._route)}
        if self._nft in ready:
            found |= {"nftables" for _ in self._heard(self._nft)}
        return frozenset(found)

    @staticmethod
    def _heard(one: socket.socket) -> Iterator[int]:
        """The types of all messages that wait. Where some were lost, for want of room, anything may have happened."""
        while True:
            try:
                yield from _types(one.recv(_ROOM))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("listening to the kernel", error.errno or errno.EIO) from None
                yield 0
