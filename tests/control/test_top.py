"""`vfr top`: figures against packets that were really sent.

guests vp-a, vp-b --- vp-dom0 --- eth0 192.0.2.1 --- vp-lan 192.0.2.11
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.fastpath import fastpath_of
from support.host import VFR, Host, run

from vfr.kernel import seeing
from vfr.kernel.fastpath import Fastpath
from vfr.top import HEAD, Look, Quota, Reading, Row, Sessions, is_limit, line, lines, ordered, rows, short

SEND = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
for number in range(int(sys.argv[1])):
    s.sendto(bytes(58), (sys.argv[2], 9))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("vp") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        one.add("b")
        yield one


@pytest.fixture
def fp(host: Host) -> Iterator[Fastpath]:
    with fastpath_of(host.ns("dom0")) as one:
        yield one


def _send(host: Host, count: int, to: str) -> None:
    run("ip", "netns", "exec", host.ns("a"), sys.executable, "-c", SEND, str(count), to)


def _slots(fp: Fastpath) -> dict[int, str]:
    names = {"169.254.1.2": "a", "169.254.1.3": "b", "169.254.1.0": "dom0"}
    return {slot: names[str(row.address)] for slot, row in fp.domains().items()}


def test_figures_are_what_was_sent(host: Host, fp: Fastpath) -> None:
    """100 bytes a frame: 30 to the LAN, 20 to a domain that it may not speak to."""
    names = _slots(fp)
    _send(host, 1, "192.0.2.11")  # and the neighbour is known
    counters = seeing.Counters(fp)
    before = counters.read(names)
    _send(host, 30, "192.0.2.11")
    _send(host, 20, "169.254.1.3")
    found = seeing.look(fp, {n: s for s, n in names.items()}, before, counters.read(names), "out", None)
    row = next(row for row in found.shown if row.name == "a")
    assert row.drops["DROP_POLICY"] == 20 and set(row.drops) <= {"DROP_POLICY", "DROP_IPV6"}, "IPv6 is the guest's own"
    asked = row.out_packets - 30 - 20
    assert 0 <= asked <= 6, "its questions by ARP, and of its own accord by IPv6"
    assert row.out_bytes - 100 * (row.out_packets - asked) in range(42 * asked, 111 * asked + 1)
    assert row.begun == 1, "what is refused begins nothing"
    assert row.sessions and row.sessions.own.living == 2 and row.sessions.own.most == 1024


def test_a_limit_that_was_hit_is_counted_and_marked(host: Host, fp: Fastpath) -> None:
    host.vfr("domain", "limit", "a", "--new-per-s", "1")
    names = _slots(fp)
    counters = seeing.Counters(fp)
    before = counters.read(names)
    for _ in range(4):
        _send(host, 5, "192.0.2.11")
    found = seeing.look(fp, {n: s for s, n in names.items()}, before, counters.read(names), "limits", 1)
    host.vfr("domain", "limit", "a", "--new-per-s", "50000")
    (row,) = found.shown
    counted = host.json("stats", "a")["a"]["DROP_TOO_FAST"]["packets"]
    assert row.name == "a" and row.limits == {"DROP_TOO_FAST": counted} and counted > 0
    assert "!TOO_FAST" in line(row)


def test_once_without_a_terminal_and_json(host: Host) -> None:
    shown = host.vfr("top", "--once", "--interval", "0.1").stdout.splitlines()
    assert shown[0].startswith("2 domains, ") and shown[1] == HEAD
    assert {text.split()[0] for text in shown[2:]} == {"a", "b", "dom0", "lan", "unknown"}
    assert max(map(len, shown)) <= 80
    looks = [
        json.loads(text) for text in host.vfr("top", "--count", "2", "--interval", "0.1", "--json").stdout.splitlines()
    ]
    assert len(looks) == 2 and {row["name"] for row in looks[1]["rows"]} == {"a", "b", "dom0", "lan", "unknown"}


def test_in_a_terminal(host: Host) -> None:
    ours, theirs = pty.openpty()
    argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "top", "--count", "2", "--interval", "0.1"]
    with subprocess.Popen(
        argv, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    ) as top:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            seen += part
    os.close(ours)
    assert top.returncode == 0 and b"2 domains" in seen and b"DROPPED" in seen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sort", "size"), "none of name, out, in, sessions, drops, limits"),
        (("--interval", "0"), "0.1 to 3600 seconds"),
    ],
)
def test_what_cannot_be_asked_is_said(host: Host, arguments: tuple[str, ...], said: str) -> None:
    done = host.vfr("top", *arguments, check=False)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_rates_order_and_a_names_next_owner() -> None:
    before = Reading(10.0, {"a": {"TO_LAN": (5, 500), "received": (1, 60)}, "b": {"TO_LAN": (9, 900)}})
    after = Reading(
        12.0,
        {
            "a": {"TO_LAN": (25, 2500), "received": (3, 180), "errors": (7, 700), "DROP_PORTS_FULL": (4, 400)},
            "b": {"TO_LAN": (2, 200), "DROP_POLICY": (6, 600)},
            "c": {},
        },
    )
    a, b, c = rows(before, after)
    assert (a.out_packets, a.out_bytes, a.in_packets, a.in_bytes) == (24, 2400, 2, 120)
    assert a.drops == a.limits == {"DROP_PORTS_FULL": 4} and a.interval_s == 2.0
    assert (b.out_packets, b.drops, b.limits) == (8, {"DROP_POLICY": 6}, {}), "it began again at zero"
    assert c.out_packets == 0
    assert [r.name for r in ordered([a, b, c], "drops")] == ["b", "a", "c"]
    assert [r.name for r in ordered([c, b, a], "limits")] == ["a", "b", "c"]
    assert [r.name for r in ordered([c, b, a], "name")] == ["a", "b", "c"]


def test_what_began_goes_round_and_begins_anew() -> None:
    def begun(before: int, after: int) -> int:
        return rows(Reading(1, {"a": {}}, {"a": before}), Reading(2, {"a": {}}, {"a": after}))[0].begun

    assert [begun(5, 9), begun(2**32 - 2, 3), begun(1000, 7)] == [4, 5, 7]


def test_what_limits_are() -> None:
    assert all(map(is_limit, ("DROP_SESSIONS_FULL", "DROP_TOO_FAST", "DROP_PORTS_FULL", "DROP_FRAGMENTS_FULL")))
    assert not any(map(is_limit, ("DROP_POLICY", "TO_LAN", "received")))


def test_a_line_is_never_wider_than_80_columns() -> None:
    many = {f"DROP_NUMBER_{n}_FULL": 10**18 for n in range(9)}
    quota = Quota(10**6, 10**6)
    row = Row("x" * 32, 0.001, 10**18, 10**18, 10**18, 10**18, 10**9, many, many, Sessions(quota, quota, quota, quota))
    assert max(map(len, lines(Look([row], [row], "sessions")))) <= 80
    assert [short(n) for n in (0, 0.5, 7, 999, 1000, 9960, 12345, 999_999, 3.4e6)] == [
        "0", "0.5", "7", "999", "1.0k", "10k", "12k", "1.0M", "3.4M",
    ]  # fmt: skip
