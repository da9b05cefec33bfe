"""A program of the host binds a port of web's block, long after NAT was enabled: it is the program's.

web 169.254.1.2 --- dom0 192.0.2.1, the program --- [ switch ] --- lan1 192.0.2.11, whom web speaks to
                                                              \\--- lan2 192.0.2.12, a stranger
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.fastpath import end_conversations
from support.netns import inside, udp_socket

from vfr_lab import Lab

pytestmark = pytest.mark.lab
VFR = str(Path(sys.executable).parent / "vfr")
HOST, LAN1, SERVICE, DEADLINE_S = "192.0.2.1", "192.0.2.11", 9300, 10
Say = Callable[[], None]


def _block(lab: Lab) -> range:
    """web's outside ports."""
    shown = json.loads(lab.exec("dom0", VFR, "domain", "show", "web", "--json").stdout)
    low, high = map(int, shown["outside_ports"].split("-"))
    return range(low, high + 1)


def _listener(lab: Lab, node: str, protocol: str, port: int) -> socket.socket:
    """A server's socket, bound to every address of the node's."""
    if protocol == "udp":
        return udp_socket(lab.netns(node), "0.0.0.0", port, DEADLINE_S)
    made = inside(lab.netns(node), lambda: socket.create_server(("0.0.0.0", port)))
    made.settimeout(DEADLINE_S)
    return made


def _client(lab: Lab, node: str, protocol: str, port: int, server: tuple[str, int]) -> socket.socket:
    """A socket of the node's that is connected to the server, from a port of its own, or any if that is 0."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        made.settimeout(DEADLINE_S)
        made.bind(("", port))
        made.connect(server)
        return made

    return inside(lab.netns(node), make)


@contextmanager
def _conversation(
    lab: Lab, node: str, port: int, server: socket.socket, address: str
) -> Iterator[tuple[tuple[str, int], Say]]:
    """The node, from a port, and a server's socket have begun one: under what address and port the server sees
    the node, and what makes them exchange another word."""
    udp = server.type == socket.SOCK_DGRAM
    with ExitStack() as stack:
        to = (address, server.getsockname()[1])
        client = stack.enter_context(_client(lab, node, "udp" if udp else "tcp", port, to))
        served = server if udp else stack.enter_context(server.accept()[0])
        served.settimeout(DEADLINE_S)

        def ask() -> tuple[str, int]:
            client.send(b"ask")
            said, who = served.recvfrom(9) if udp else (served.recv(9), served.getpeername())
            assert said == b"ask"
            served.sendto(b"answer", who) if udp else served.send(b"answer")
            assert client.recv(9) == b"answer"
            return who

        seen = ask()

        def say() -> None:
            assert ask() == seen

        yield seen, say


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_guest_does_not_get_a_port_that_the_host_has(lab: Lab, protocol: str) -> None:
    """Also if that is the very port it speaks from, which it would keep else."""
    port = _block(lab)[11]
    with _listener(lab, "dom0", protocol, port) as program, _listener(lab, "lan1", protocol, SERVICE) as service:
        with _conversation(lab, "lan1", 0, program, HOST):
            pass
        with _conversation(lab, "web", port, service, LAN1) as (seen, say):
            assert seen[0] == HOST and seen[1] in _block(lab) and seen[1] != port
            with _conversation(lab, "lan1", 0, program, HOST):
                pass
            say()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_a_guest_has_already_serves_both(lab: Lab, protocol: str) -> None:
    """What is not of the guest's conversations is for the program; they go on undisturbed."""
    port = _block(lab)[12]
    end_conversations(lab)
    with (
        _listener(lab, "lan1", protocol, SERVICE) as service,
        _conversation(lab, "web", port, service, LAN1) as (seen, say),
    ):
        assert seen == (HOST, port)
        with _listener(lab, "dom0", protocol, port) as program:
            for stranger in ("lan2", "lan1", "lan2"):
                with _conversation(lab, stranger, 0, program, HOST):
                    say()
        say()
