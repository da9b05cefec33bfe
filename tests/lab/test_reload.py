"""What rules go on to allow loses not a packet while they are changed a thousand times; what they revoke is cut at once.

a 169.254.1.2   TCP and UDP to lan ------+
b 169.254.1.3   UDP in fragments to lan -+-- tl-dom0, where the rules change --- tl-lan 192.0.2.11
c 169.254.1.4   is spoken to by lan through a forward
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.host import Host, run
from support.long_talk import RECEIVE_UDP, SEND_UDP, TCP, Program

pytestmark = pytest.mark.lab
RULES = "forward udp 9100 -> c 9100\nallow any -> lan\nallow lan -> c udp 9100\n"
OTHER = RULES + "group unlike = a, b\nset far = 198.51.100.0/24\ndeny far -> unlike\nallow a -> b tcp 5432 limit 7/s\n"
RELOADS, APPLIES = 1000, 10

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


def _tcp(host: Host, node: str, file: str, name: str) -> int:
    """One of the counters that a node's TCP keeps."""
    lines = [line.split() for line in host.sh(node, f"grep ^Tcp /proc/net/{file}").splitlines()]
    return int(dict(zip(*lines, strict=True))[name])


def _lost(host: Host, sender: str, receiver: str) -> int:
    """Segments that were sent again and had not arrived before. On a busy machine TCP sends one again for want of
    patience: the receiver says that it had it (DSACK)."""
    return _tcp(host, sender, "snmp", "RetransSegs") - _tcp(host, receiver, "netstat", "TCPDSACKOldSent")


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
            start(Program(host, node, RECEIVE_UDP, port))
            for node, port in (("lan", "9101"), ("lan", "9102"), ("c", "9100"))
        ]
        tcp_sink = start(Program(host, "lan", TCP, "listen"))
        senders = [
            start(Program(host, "a", SEND_UDP, "192.0.2.11", "9101", "100", "0.001")),
            start(Program(host, "b", SEND_UDP, "192.0.2.11", "9102", "4000", "0.02")),
            start(Program(host, "lan", SEND_UDP, "192.0.2.1", "9100", "100", "0.001")),
        ]
        tcp = start(Program(host, "a", TCP, "192.0.2.11"))
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
    assert _lost(host, "a", "lan") <= 0
    assert _drops(host) == {}


@pytest.mark.inv(14)
def test_what_is_revoked_is_cut_at_once(host: Host, tmp_path: Path) -> None:
    """Not a packet of a living conversation arrives once the command has returned; its neighbour goes on."""
    less = tmp_path / "less.rules"
    less.write_text(RULES.replace("allow any -> lan", "allow b -> lan"))
    with ExitStack() as stack:
        start = stack.enter_context
        cut, kept = (start(Program(host, "lan", RECEIVE_UDP, port)) for port in ("9101", "9102"))
        a = start(Program(host, "a", SEND_UDP, "192.0.2.11", "9101", "100", "0.001"))
        b = start(Program(host, "b", SEND_UDP, "192.0.2.11", "9102", "4000", "0.02"))
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
