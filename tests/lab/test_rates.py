"""Rates and shares with real traffic: what arrives of too much, for how long, and who else suffers.

    tq-a ... tq-h --- tq-dom0 (eth0 192.0.2.1) --- tq-lan 192.0.2.11

What decides is what may never be: more than a rate allows, a conversation that ends by a change, a flood that is not
refused. How near a rate is come to, and how others fare, is printed (-s) and recorded. VFR_LONG=1 measures the whole
table of docs/rates.md, in some five minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.host import NETNS, Host

from vfr.settings import Limits

pytestmark = [pytest.mark.lab, pytest.mark.inv(7)]
LONG = bool(os.environ.get("VFR_LONG"))
METER = Path(__file__).parents[1] / "support" / "meter.py"
LAN = "192.0.2.11"
MBIT = 10**6
WARM_S = 1
PAYLOAD, OF_TCP = 1400, 1448  # bytes of payload in a frame: what the meter sends by UDP, and TCP with timestamps
RATES = [1, 10, 100, 1000, 5000, 10_000] if LONG else [10]  # Mbit/s
WAYS = [("out", "udp"), ("in", "tcp"), *([("out", "tcp"), ("in", "udp")] if LONG else [])]
Record = Callable[[str, object], None]


class Eight(Host):
    """A host with eight guests, all of them domains."""

    guests = tuple("abcdefgh")

    def meter(self, node: str, *words: object) -> Meter:
        return Meter(["ip", "netns", "exec", self.ns(node), sys.executable, str(METER), *map(str, words)])

    def drops(self, name: str, verdict: str) -> int:
        return int(self.json("stats", name)[name].get(verdict, {}).get("packets", 0))


class Meter:
    """A meter.py that runs, up, from `with` to its end at the latest."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def __enter__(self) -> Meter:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        assert self._line() == "up\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def answer(self) -> dict[str, Any]:
        """Its last line; waits for it."""
        found: dict[str, Any] = json.loads(self._line())
        return found

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eight]:
    with Eight("tq") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        for guest in Eight.guests:
            one.add(guest)
        rules = tmp_path_factory.mktemp("rates") / "rates.rules"
        xen = Path(__file__).parents[2] / "rules" / "xen.rules"
        rules.write_text(f"{xen.read_text()}\nallow a -> b\n")
        one.vfr("apply", str(rules))
        yield one
    assert not any((NETNS / one.ns(guest)).exists() for guest in Eight.guests)


def _arrives(host: Eight, kind: str, to: str, address: str, mbit: float, seconds: float) -> float:
    """Bits a second that arrive, as frames, of what a sends there: by TCP what it can, by UDP twice the rate."""
    segments = 44 if mbit >= 100 else 1
    load = host.meter("a", "send", kind, address, 2 * mbit * MBIT, PAYLOAD, segments)
    with host.meter(to, "receive", kind, WARM_S, seconds) as receiver, load:
        seen = receiver.answer()
    frame = (OF_TCP + 66) / OF_TCP if kind == "tcp" else (PAYLOAD + 42) / PAYLOAD
    return float(seen["bits"] * frame / seen["seconds"])


@contextmanager
def _limited(host: Eight, name: str, option: str, value: str) -> Iterator[None]:
    host.vfr("domain", "set", name, option, value)
    try:
        yield
    finally:
        host.vfr("domain", "set", name, option, "none")


@pytest.mark.parametrize("mbit", RATES)
@pytest.mark.parametrize(("way", "kind"), WAYS)
def test_no_more_arrives_than_the_rate_allows(
    host: Eight, way: str, kind: str, mbit: int, record_property: Record
) -> None:
    name, option, to = ("a", "--rate", "lan") if way == "out" else ("b", "--rate-in", "b")
    address = LAN if way == "out" else host.json("domain", "show", "b")["address"]
    seconds = 2 if not LONG else 12 if mbit <= 10 else 5
    row, verdict = ("a", "DROP_RATE_OUT" if way == "out" else "DROP_RATE_IN")
    with _limited(host, name, option, f"{mbit}M"):
        before = host.drops(row, verdict)
        had = _arrives(host, kind, to, address, mbit, seconds)
        dropped = host.drops(row, verdict) - before
    part = had / (mbit * MBIT)
    print(f"\n{kind} {way:3} {mbit:>6} Mbit/s: {part:.3f} of it arrive, {dropped} frames dropped")
    record_property("part", round(part, 4))
    burst = Limits().burst_ms / 1000 + 8 * 65536 / (mbit * MBIT)
    assert 0 < part <= 1.01 + burst / seconds
    assert dropped > 0 or LONG, "not everything that was to be is sent on a slow machine at a high rate"


@pytest.mark.skipif(not LONG, reason="VFR_LONG is not set")
def test_what_goes_without_a_rate(host: Eight, record_property: Record) -> None:
    """What the same path takes, to judge the high rates by."""
    address = host.json("domain", "show", "b")["address"]
    for kind, to, at in (("tcp", "lan", LAN), ("udp", "lan", LAN), ("tcp", "b", address), ("udp", "b", address)):
        mbit = _arrives(host, kind, to, at, 50_000, 5) / MBIT
        print(f"\n{kind} to {to}, no rate: {mbit:.0f} Mbit/s")
        record_property(f"{kind} to {to}", mbit)
        assert mbit > 0


def test_a_rate_changes_under_traffic_and_no_conversation_ends(host: Eight) -> None:
    with host.meter("lan", "echo"), host.meter("a", "send", "tcp", LAN, 1, 1, 1) as stream:
        with host.meter("a", "trips", LAN, 4) as trips:
            for rate in ("3M", "200M", "1M", "none", "50M"):
                before = host.drops("a", "DROP_RATE_OUT")
                host.vfr("domain", "set", "a", "--rate", rate)
                if rate not in ("none", "200M"):
                    while host.drops("a", "DROP_RATE_OUT") == before:
                        assert stream.is_running
            host.vfr("domain", "set", "a", "--rate", "none")
            assert trips.answer()["trips"] > 1
        assert stream.is_running


def test_a_rate_goes_with_its_domain(host: Eight, tmp_path: Path) -> None:
    """Into a file, back from it, and into the running router's own description."""
    file = tmp_path / "c.vfr"
    host.vfr("domain", "set", "c", "--rate", "20M", "--pps-in", "3k", "--burst", "40ms")
    host.vfr("save", "c", str(file))
    host.vfr("restore", "c", str(file))
    assert host.json("domain", "show", "c")["rates"] == "20M out, 3k packets/s in"
    assert host.json("domain", "limit", "c")["burst_ms"] == 40
    assert "rate-out 20000000 pps-in 3000 burst-ms 40" in host.vfr("export").stdout
    host.vfr("domain", "set", "c", "--rate", "none", "--pps-in", "none", "--burst", "250ms")


# The uplink's share: a floods, the others have a stream and a conversation each


def _others(host: Eight, seconds: float, flood: tuple[int, int] | None) -> tuple[list[float], list[float]]:
    """Of each other guest what arrives in bits a second, by the LAN's own count of its port, and p99 in ms."""
    with ExitStack() as stack:
        stack.enter_context(host.meter("lan", "echo"))
        if flood:
            stack.enter_context(host.meter("a", "send", "udp", LAN, 1e12, *flood))
        for guest in Eight.guests[1:]:
            stack.enter_context(host.meter(guest, "send", "tcp", LAN, 1, 1, 1))
        trips = [stack.enter_context(host.meter(guest, "trips", LAN, seconds)) for guest in Eight.guests[1:]]
        before = host.json("stats")
        found = [meter.answer() for meter in trips]
        after = host.json("stats")
    sent = [8 * (after[g]["TO_LAN"]["bytes"] - before[g]["TO_LAN"]["bytes"]) / seconds for g in Eight.guests[1:]]
    return sent, [float(seen["p99"]) for seen in found]


FLOODS = {"none": None, "large": (PAYLOAD, 44), "small": (18, 1)}


@pytest.mark.parametrize("link", ["1000M"] if LONG else ["100M"])
def test_a_flood_leaves_the_others_their_share(host: Eight, link: str, record_property: Record) -> None:
    """A link of that rate behind the uplink, with an ordinary queue; without and with the share, without and with a
    flood of large frames and of small ones."""
    host.sh("dom0", f"tc qdisc add dev eth0 root tbf rate {link.lower()}bit burst 256k limit 3m")
    try:
        for share in ("none", link) if LONG else (link,):
            host.vfr("nat", "enable", "--uplink-rate", share)
            for what in ("none", "large", "small", "none") if LONG else ("large",):
                dropped = host.drops("a", "DROP_SHARE")
                sent, p99 = _others(host, 6 if LONG else 2, FLOODS[what])
                dropped = host.drops("a", "DROP_SHARE") - dropped
                line = (
                    f"{sum(sent) / MBIT:.0f} Mbit/s sent by seven, {min(sent) / MBIT:.0f} the least; p99 {max(p99)} ms"
                )
                print(f"\nlink {link}, share {share}, flood {what}: {line}; {dropped} of the flood dropped")
                record_property(f"{share} {what}", line)
                assert min(sent) > 0
                assert dropped > 0 or what != "large" or share == "none"
    finally:
        host.vfr("nat", "enable", "--uplink-rate", "auto")
        host.sh("dom0", "tc qdisc del dev eth0 root")


def test_an_uplink_s_rate_is_shown_and_refused(host: Eight) -> None:
    assert host.json("nat", "status")["uplink_rate"] == 0, "a veth's own word means nothing"
    host.vfr("nat", "enable", "--uplink-rate", "2.5G")
    assert "they share 2500Mbit/s of it" in host.vfr("nat", "status").stdout
    assert "nat eth0" in host.vfr("export").stdout and "uplink-rate 2500000000" in host.vfr("export").stdout
    refused = host.vfr("nat", "enable", "--uplink-rate", "5Q", check=False)
    assert refused.returncode == 2 and "--uplink-rate '5Q' is not a rate" in refused.stderr
    host.vfr("nat", "enable", "--uplink-rate", "none")
    assert host.json("nat", "status")["uplink_rate"] == 0
    host.vfr("nat", "enable", "--uplink-rate", "auto")
