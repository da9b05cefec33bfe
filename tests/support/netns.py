"""Throw-away network namespaces, and calls that run inside one of them."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def _enter(name: str) -> None:
    with (NETNS / name).open() as ns:
        if _libc.setns(ns.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def inside(name: str, call: Callable[..., _T], *args: object) -> _T:
    """What `call` returns in the namespace. A socket made there stays there, wherever it is used."""
    with ThreadPoolExecutor(1, initializer=_enter, initargs=(name,)) as thread:
        return thread.submit(call, *args).result()


def run(*argv: str) -> str:
    """A command's output; an assertion fails if the command does."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ip(netns: str, words: str) -> str:
    """`ip -n NETNS WORDS`."""
    return run("ip", "-n", netns, *words.split())


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Fresh namespaces with lo up and no IPv6, so that nobody speaks unless a test does."""
    _delete(names)
    try:
        for name in names:
            run("ip", "netns", "add", name)
            ip(name, "link set lo up")
            quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
            run("ip", "netns", "exec", name, *quiet.split())
        yield
    finally:
        _delete(names)


def _delete(names: tuple[str, ...]) -> None:
    for name in names:
        if (NETNS / name).exists():
            run("ip", "netns", "del", name)


def index_of(netns: str, name: str) -> int:
    """An interface's index."""
    return int(ip(netns, f"-o link show {name}").split(":")[0])


def mac_of(netns: str, name: str) -> str:
    """An interface's MAC address."""
    return ip(netns, f"-o link show {name}").split("link/ether ")[1].split()[0]


def packet_socket(netns: str, device: str, timeout_s: float = 5) -> socket.socket:
    """Sends whole frames out of a device, and receives those that pass it."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        made.bind((device, 3))
        made.settimeout(timeout_s)
        return made

    return inside(netns, make)


def udp_socket(netns: str, address: str, port: int, timeout_s: float = 5) -> socket.socket:
    """A bound UDP socket."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(timeout_s)
        return made

    return inside(netns, make)
