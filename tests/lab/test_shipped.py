"""The rule sets that ship, in force: who reaches what, by real sockets, and everything else not.

web 169.254.1.2   db .3   ci .7 --- dom0 --- eth0 192.0.2.1 --- lan1 192.0.2.11 --- router --- inet 198.51.100.9
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.agent import Agent
from support.fastpath import RULES, stats

from vfr_lab import Lab
from vfr_lab.prove import pings, ssh, tcp, udp

pytestmark = pytest.mark.lab
LAN1, INET, DOM0, METADATA, PRIVATE = "192.0.2.11", "198.51.100.9", "192.0.2.1", "169.254.169.254", "10.1.2.3"
WEB, DB, CI, GATEWAY = "169.254.1.2", "169.254.1.3", "169.254.1.7", "169.254.1.0"
# Says who asks, on every port named: tcp:443, udp:53, ...
SERVER = """
import selectors, socket, sys
ears = selectors.DefaultSelector()
for word in sys.argv[1:]:
    kind, port = word.split(":")
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", int(port)))
    if kind == "tcp":
        s.listen()
    ears.register(s, selectors.EVENT_READ, kind)
print("up", flush=True)
while True:
    for key, _ in ears.select():
        if key.data == "tcp":
            c, peer = key.fileobj.accept()
            c.sendall(peer[0].encode())
            c.close()
        else:
            _, peer = key.fileobj.recvfrom(99)
            key.fileobj.sendto(peer[0].encode(), peer)
"""


@pytest.fixture(scope="module")
def served(lab: Lab) -> Iterator[Lab]:
    """With servers wherever something is to be reached, or is not."""
    ports = {
        "inet": ("tcp:53", "tcp:80", "tcp:443", "tcp:8443", "udp:53", "udp:123"),
        "lan1": ("tcp:80", "tcp:443", "udp:53"),
        "web": ("tcp:443", "tcp:8080"),
        "db": ("tcp:5432",),
    }
    with ExitStack() as stack:
        for node, words in ports.items():
            stack.enter_context(Agent(lab, node, "python3", "-c", SERVER, *words))
        yield lab


def _shut(said: str) -> bool:
    return any(word in said for word in ("timed out", "unreachable", "No route to host", "refused"))


def test_sandbox(served: Lab) -> None:
    """Names and HTTPS of the internet; no host, no LAN, no private range, no metadata, no neighbour, and nobody in."""
    lab = served
    with lab.backend.under(lab, RULES.with_name("sandbox.rules")):
        for guest in ("web", "db"):
            assert (
                tcp(lab, guest, INET, 443) == DOM0
                and udp(lab, guest, INET, 53) == DOM0
                and tcp(lab, guest, INET, 53) == DOM0
            )
            before = stats(lab, guest).get("DROP_POLICY", 0)
            for address, port in (
                (INET, 80),
                (INET, 8443),
                (LAN1, 443),
                (LAN1, 80),
                (PRIVATE, 443),
                (GATEWAY, 22),
                (CI, 22),
            ):
                assert _shut(tcp(lab, guest, address, port)), (guest, address, port)
            for address, port in ((LAN1, 53), (INET, 123), (PRIVATE, 53)):
                assert _shut(udp(lab, guest, address, port)), (guest, address, port)
            assert not pings(lab, guest, INET) and not pings(lab, guest, LAN1)
            assert stats(lab, guest)["DROP_POLICY"] > before
            assert _shut(tcp(lab, guest, METADATA, 80)), "whatever rules say, 169.254/16 stays here"
        for node, port in (("lan1", 2202), ("lan2", 2203)):
            assert _shut(tcp(lab, node, DOM0, port)), (node, port)


def test_web_db(served: Lab) -> None:
    """The LAN reaches web by its forward, web reaches db on one port, servers get updates, and ops may log in."""
    lab = served
    with lab.backend.under(lab, RULES.with_name("web-db.rules")):
        assert tcp(lab, "lan1", DOM0, 443) == LAN1, "the shop, and it sees who asks"
        assert tcp(lab, "web", DB, 5432) == WEB
        for guest in ("web", "db"):
            assert (
                tcp(lab, guest, INET, 443) == DOM0
                and tcp(lab, guest, INET, 80) == DOM0
                and udp(lab, guest, INET, 53) == DOM0
            )
            assert _shut(tcp(lab, guest, LAN1, 443)) and _shut(tcp(lab, guest, GATEWAY, 22))
            assert ssh(lab, "ci", guest, {"web": WEB, "db": DB}[guest]) == guest
            assert pings(lab, "dom0", {"web": WEB, "db": DB}[guest])
        assert _shut(tcp(lab, "ci", DB, 5432)) and _shut(tcp(lab, "ci", INET, 443))
        assert (
            _shut(tcp(lab, "db", WEB, 443))
            and _shut(tcp(lab, "lan1", DOM0, 2202))
            and _shut(tcp(lab, "lan1", DOM0, 2203))
        )
        before = stats(lab, "web").get("DROP_REJECTED", 0)
        assert "No route to host" in tcp(lab, "web", DB, 22), "told at once, by ICMP"
        assert stats(lab, "web")["DROP_REJECTED"] > before
