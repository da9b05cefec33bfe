"""Small servers and clients in the namespaces of a Host: who answers on a port, if anybody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from support.host import Host

_SERVER = """
import socket, sys
one = socket.create_server(("", int(sys.argv[1])))
print("up", flush=True)
while True:
    one.accept()[0].sendall(sys.argv[2].encode())
"""
_CLIENT = """
import socket, sys
one = socket.socket()
one.settimeout(1.5)
one.bind(("", int(sys.argv[3])))
try:
    one.connect((sys.argv[1], int(sys.argv[2])))
    print(one.recv(99).decode())
except OSError:
    print("nobody")
"""


@contextmanager
def server(host: Host, node: str, port: int) -> Iterator[None]:
    """Says the node's name to whoever connects."""
    argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", _SERVER, str(port), node]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout is not None and one.stdout.readline() == "up\n"
            yield
        finally:
            one.kill()


def answers(host: Host, node: str, address: str, port: int, source_port: int = 0) -> str:
    """Which node's server a client hears there, by TCP: its name, or "nobody"."""
    argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", _CLIENT, address, str(port), str(source_port)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
