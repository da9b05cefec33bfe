"""The insides of many guests' namespaces: a socket in each, by which its end of the VIF is set up.

A process is in one network namespace at a time, each of its threads in one of its own. One thread goes through all of
them, opens what speaks there, and ends.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from types import TracebackType

from vfr.errors import ConflictError, KernelError, VfrError
from vfr.instance import NETNS
from vfr.kernel import links, rtnl
from vfr.kernel.rtnl import Rtnl

GUEST_END = "eth0"


class Doors:
    """Namespaces by name. Those that cannot be entered, or have an eth0 already, are in `failed`. Close it when done."""

    def __init__(self, names: Sequence[str]) -> None:
        self.failed: dict[str, VfrError] = {}
        self._inside: dict[str, socket.socket] = {}
        self._handles: dict[str, int] = {}
        there = threading.Thread(target=self._enter_all, args=(names,))
        there.start()
        there.join()

    def __enter__(self) -> Doors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for one in self._inside.values():
            one.close()
        for handle in self._handles.values():
            os.close(handle)

    def _enter_all(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                self._enter(name)
            except VfrError as error:
                self.failed[name] = error
            except OSError as error:
                self.failed[name] = KernelError(f"entering the namespace {name}", error.errno or errno.EIO)

    def _enter(self, name: str) -> None:
        rtnl.enter(NETNS / name)
        with suppress(OSError):
            socket.if_nametoindex(GUEST_END)
            raise ConflictError(f"the namespace {name!r} has an eth0 already; rename or remove that one")
        self._handles[name] = os.open(NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
        self._inside[name] = rtnl.netlink()

    def handle(self, name: str) -> int:
        """The namespace's descriptor, by which an interface is made there."""
        return self._handles[name]

    def home(self, name: str) -> int:
        """What tells it from others that have had the name (instance.netns_inode)."""
        return os.fstat(self._handles[name]).st_ino

    def configure(
        self, ends: Mapping[str, tuple[int, IPv4Address]], gateways: Mapping[str, IPv4Address]
    ) -> dict[str, KernelError]:
        """Gives each guest's end (index, address) its address, the way out through the gateway, and has it up. What
        failed, by the namespace's name."""
        failed = {}
        for name, (index, address) in ends.items():
            operation = f"configuring {GUEST_END} in {name}"
            said = Rtnl(operation, over=self._inside[name]).ask_each(
                links.guest_requests(index, address, gateways[name])
            )
            refused = next((number for number in said if number not in (0, errno.EEXIST)), 0)
            if refused:
                failed[name] = KernelError(operation, refused)
        return failed
