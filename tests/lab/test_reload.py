"""What rules go on to allow loses not a packet while they are changed a thousand times; what they revoke is cut at once.

a 169.254.1.2   TCP and UDP to lan ------+
b 169.254.1.3   UDP in fragments to lan -+-- tl-dom0, where the rules change --- tl-lan 192.0.2.11
c 169.254.1.4   is spoken to by lan through a forward
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.host import Host, run

pytestmark = pytest.mark.lab
RULES = "forward udp 9100 -> c 9100\nallow any -> lan\nallow lan -> c udp 9100\n"
OTHER = RULES + "group unlike = a, b\nset far = 198.51.100.0/24\ndeny far -> unlike\nallow a -> b tcp 5432 limit 7/s\n"
RELOADS, APPLIES = 1000, 10

_SEND_UDP = """
import socket, sys, time
address, port, size, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: what is too long is cut
s.connect((address, port))
print("up", flush=True)
import select
number = 0
while not select.select([sys.stdin], [], [], pause)[0]:
    s.send(number.to_bytes(8, "big").ljust(size, b"."))
    number += 1
time.sleep(0.3)
print(number, flush=True)
"""
_RECEIVE_UDP = """
import select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: it is the network that is measured
s.bind(("", int(sys.argv[1])))
print("up", flush=True)
seen = set()
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        seen.add(s.recv(65536)[:8])
    elif sys.stdin in ready:
        break
print(len(seen), flush=True)
"""
_TCP = """
import socket, sys, hashlib
if sys.argv[1] == "listen":
    l = socket.create_server(("", 9001))
    print("up", flush=True)
    c = l.accept()[0]
    made, total = hashlib.sha256(), 0
    while data := c.recv(1 << 16):
        made.update(data)
        total += len(data)
    print(total, made.hexdigest(), flush=True)
else:
    import select, os, time
    c = socket.create_connection((sys.argv[1], 9001))
    print("up", flush=True)
    made, total = hashlib.sha256(), 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        data = os.urandom(20000)
        c.sendall(data)
        made.update(data)
        total += len(data)
    c.close()
    print(total, made.hexdigest(), flush=True)
"""
_RELOAD = """
import sys
from pathlib import Path
from vfr.kernel.host import Host
from vfr.policy import compile_rules, parse
from vfr.router import Router
files, times = [Path(f) for f in sys.argv[1:3]], int(sys.argv[3])
router = Router()
for i in range(int(sys.argv[4])):
    router.apply(files[1 - i % 2])
router.apply(files[0])
host = Host(router.instance)
slots = {"a": 1, "b": 2, "c": 3}
both = [compile_rules(parse(f.read_text(), f.name), slots, None, range(first, first + 9)[:len(parse(f.read_text(), "x").rules)])
        for first, f in ((1000, files[1]), (2000, files[0]))]
for i in range(times):
    host.fastpath.replace_policy(both[i % 2])
print("done")
"""


class _Program:
    """A Python program in a node; told to end by a line."""

    def __init__(self, host: Host, node: str, code: str, *arguments: str) -> None:
        self._argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", code, *arguments]

    def __enter__(self) -> _Program:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, text=True)
        assert self.line() == "up"
        return self

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Its last words."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host("tl") as one:
        (tmp_path / "one.rules").write_text(RULES)
        (tmp_path / "other.rules").write_text(OTHER)
        one.vfr("nat", "enable", "--uplink", "eth0", "--rules", str(tmp_path / "one.rules"))
        for guest in one.guests:
            one.add(guest)
        one.vfr("domain", "limit", "b", "--fragments", "4096")
        yield one


def _resent(host: Host, node: str) -> int:
    lines = [line.split() for line in host.sh(node, "grep ^Tcp: /proc/net/snmp").splitlines()]
    return int(dict(zip(*lines, strict=True))["RetransSegs"])


def _drops(host: Host) -> dict[str, int]:
    """All but of what guests' kernels say over IPv6 when their interface comes up."""
    counted = json.loads(host.vfr("stats", "--json").stdout)
    found = {f"{who} {v}": n["packets"] for who in counted for v, n in counted[who].items() if v.startswith("DROP_")}
    return {what: packets for what, packets in found.items() if not what.endswith("DROP_IPV6")}


@pytest.mark.inv(14)
def test_a_thousand_reloads_lose_nothing(host: Host, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("one.rules", "other.rules")]
    with ExitStack() as stack:
        start = stack.enter_context
        sinks = [
            start(_Program(host, node, _RECEIVE_UDP, port))
            for node, port in (("lan", "9101"), ("lan", "9102"), ("c", "9100"))
        ]
        tcp_sink = start(_Program(host, "lan", _TCP, "listen"))
        senders = [
            start(_Program(host, "a", _SEND_UDP, "192.0.2.11", "9101", "100", "0.001")),
            start(_Program(host, "b", _SEND_UDP, "192.0.2.11", "9102", "4000", "0.02")),
            start(_Program(host, "lan", _SEND_UDP, "192.0.2.1", "9100", "100", "0.001")),
        ]
        tcp = start(_Program(host, "a", _TCP, "192.0.2.11"))
        began = time.monotonic()
        argv = [
            "ip",
            "netns",
            "exec",
            host.ns("dom0"),
            sys.executable,
            "-c",
            _RELOAD,
            *files,
            str(RELOADS),
            str(APPLIES),
        ]
        done = run(*argv)
        assert done.stdout == "done\n", done.stderr
        sent = [int(one.end()) for one in senders]
        said = tcp.end()
        assert said == tcp_sink.line(), "the transfer arrived bit for bit"
        seen = [int(sink.end()) for sink in sinks]
    print(
        f"{RELOADS} reloads, {APPLIES} applies in {time.monotonic() - began:.1f} s; UDP sent {sent}, seen {seen}; TCP {said[:12]}"
    )
    assert seen == sent
    assert _resent(host, "a") == 0
    assert _drops(host) == {}


@pytest.mark.inv(14)
def test_what_is_revoked_is_cut_at_once(host: Host, tmp_path: Path) -> None:
    """Not a packet of a living conversation arrives once the command has returned; its neighbour goes on."""
    less = tmp_path / "less.rules"
    less.write_text(RULES.replace("allow any -> lan", "allow b -> lan"))
    with ExitStack() as stack:
        start = stack.enter_context
        cut, kept = (start(_Program(host, "lan", _RECEIVE_UDP, port)) for port in ("9101", "9102"))
        a = start(_Program(host, "a", _SEND_UDP, "192.0.2.11", "9101", "100", "0.001"))
        b = start(_Program(host, "b", _SEND_UDP, "192.0.2.11", "9102", "4000", "0.02"))
        time.sleep(0.3)
        host.vfr("apply", str(less))
        before = json.loads(host.vfr("stats", "a", "--json").stdout)["a"]
        time.sleep(0.5)
        after = json.loads(host.vfr("stats", "a", "--json").stdout)["a"]
        sent, sent_b = int(a.end()), int(b.end())
        assert int(kept.end()) == sent_b
        assert int(cut.end()) < sent
    assert after["TO_LAN"] == before["TO_LAN"], "nothing left after the command had returned"
    assert after["DROP_POLICY"]["packets"] > before["DROP_POLICY"]["packets"]
