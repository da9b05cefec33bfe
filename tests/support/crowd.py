"""Many guests by one process: python -m support.crowd serve|call ... A socket stays in the namespace it was made in.

serve PREFIX COUNT [SSHD_CONFIG]  a server on port 22 of each namespace PREFIX1, PREFIX2, ...: it says its number, or is sshd
call PREFIX COUNT ADDRESS PORT    from each: what the LAN's echo server says its peer is, one a line
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """This process goes into a named namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", namespace)


def _greet(number: int, namespace: str, sshd_config: str | None, one: socket.socket) -> None:
    if sshd_config is None:
        one.sendall(f"clone {number}\n".encode())
        return
    argv = ["/usr/sbin/sshd", "-i", "-f", sshd_config]
    environment = {**os.environ, "CROWD": str(number)}
    subprocess.Popen(argv, stdin=one, stdout=one, env=environment, preexec_fn=partial(enter, namespace))


def serve(prefix: str, count: int, sshd_config: str | None) -> None:
    selector = selectors.DefaultSelector()
    for number in range(1, count + 1):
        enter(f"{prefix}{number}")
        selector.register(socket.create_server(("", 22)), selectors.EVENT_READ, number)
    print("up", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            with key.fileobj.accept()[0] as one:
                _greet(key.data, f"{prefix}{key.data}", sshd_config, one)


def call(prefix: str, count: int, address: str, port: int) -> None:
    for number in range(1, count + 1):
        enter(f"{prefix}{number}")
        with socket.create_connection((address, port), 10) as one:
            print(one.recv(99).decode(), flush=True)


def listen(low: int, count: int, address: str) -> None:
    """What each port from `low` on says first."""
    for port in range(low, low + count):
        with socket.create_connection((address, port), 10) as one:
            print(one.makefile().readline().strip(), flush=True)


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve(arguments[0], int(arguments[1]), arguments[2] if len(arguments) > 2 else None)
    elif what == "call":
        call(arguments[0], int(arguments[1]), arguments[2], int(arguments[3]))
    else:
        listen(int(arguments[0]), int(arguments[1]), arguments[2])


if __name__ == "__main__":
    main()
