"""`vfr watch`: what the kernel tells of is repaired, in a line each; and its pace, without a kernel."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.foreign import program_before_ours
from support.host import VFR, Host, run
from support.netns import inside

from vfr.errors import VfrError
from vfr.kernel import bpf
from vfr.kernel.links import first_filter
from vfr.watch import LAST_RETRY_S, LONGEST_S, QUIET_S, Pace, Told, Watcher


class _Watch:
    """The command, running on a host."""

    def __init__(self, host: Host, tick: str = "600") -> None:
        self._env = {**os.environ, **(host.env or {})}
        self._argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "watch", "--json", "--tick", tick]

    def __enter__(self) -> _Watch:
        self.process = subprocess.Popen(
            self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._env
        )
        self._heard = queue.Queue[str]()
        threading.Thread(target=self._hear, daemon=True).start()
        self.until("watching")
        return self

    def until(self, word: str) -> list[str]:
        """Its lines, up to one with the word in it."""
        lines: list[str] = []
        while not lines or word not in lines[-1]:
            try:
                told = json.loads(self._heard.get(timeout=180))
            except queue.Empty:
                raise AssertionError(f"no {word!r} in {lines}") from None
            lines.append(f"{told['what']}: {told['text']}")
        return lines

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard.put(line)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=["tcx", "clsact"])
def either(request: pytest.FixtureRequest) -> Iterator[Host]:
    with Host("tv", {"VFR_ATTACH": request.param}) as host:
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.add("a")
        host.attach = request.param  # type: ignore[attr-defined]
        yield host


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("tv") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        yield one


@pytest.mark.inv(12)
def test_what_others_change_is_repaired(host: Host) -> None:
    with _Watch(host) as watch:
        host.sh("dom0", "nft flush ruleset")
        watch.until("write the nftables guard")
        host.sh("dom0", "ip link set vif-a down")
        watch.until("bring vif-a up")
        assert host.pings("a", "192.0.2.11")
        host.sh("dom0", "ip link set vif-a group default")  # which the guard knows it by
        watch.until("bring vif-a up")
        assert "group default" not in host.sh("dom0", "ip -o link show vif-a")
        host.sh("dom0", "ip link del vif-a")
        watch.until("bring vif-a up")
        assert host.pings("a", "192.0.2.11")
        host.sh("dom0", "ip route del 169.254.1.0/24 dev vfr0")
        watch.until("route 169.254.1.0/24")
        run("ip", "netns", "del", host.ns("a"))
        watch.until("waiting: a: the namespace")
        run("ip", "netns", "add", host.ns("a"))
        assert "there again: a" in "\n".join(watch.until("there again"))
        deadline = time.monotonic() + 60
        while not host.pings("a", "192.0.2.11"):  # a name is told of before its namespace is whole: then once more
            assert time.monotonic() < deadline
        assert not host.pings("a", "192.0.2.1")
        host.sh("dom0", "ip link set eth0 mtu 1400")
        watch.until("set the configuration")
        assert watch.end() == 0


@pytest.mark.inv(12)
def test_a_program_that_was_taken_off_is_put_on_again(either: Host) -> None:
    """Of clsact the kernel tells; of tcx it does not, so that waits for the next tick."""
    host = either
    is_tcx = host.attach == "tcx"  # type: ignore[attr-defined]
    with _Watch(host, "0.5" if is_tcx else "600") as watch:
        if is_tcx:
            (Path("/run/vfr/netns") / host.ns("dom0") / "bpf/links/vif-a").unlink()
        else:
            host.sh("dom0", "tc qdisc del dev vif-a clsact")
        watch.until("bring vif-a up")
        assert host.pings("a", "192.0.2.11") and not host.pings("a", "192.0.2.1")
        assert watch.end() == 0


@pytest.mark.inv(12)
@pytest.mark.parametrize(("interface", "foreign"), [("vif-a", "uplink_ingress"), ("eth0", "vif_ingress")])
def test_a_program_before_ours_is_behind_it_again(either: Host, interface: str, foreign: str) -> None:
    """Nor does the kernel tell of this one by tcx; of a filter it does."""
    host = either
    with _Watch(host, "0.5") as watch:
        with program_before_ours(host, interface, foreign) as (index, theirs):
            watch.until(interface)
            first = inside(host.ns("dom0"), lambda: (bpf.tcx_programs(index) or [first_filter(index)])[0])
            assert first not in (0, theirs)
        assert host.pings("a", "192.0.2.11") and not host.pings("a", "192.0.2.1")
        assert watch.end() == 0


def test_nat_follows_the_uplinks_address(host: Host) -> None:
    with _Watch(host) as watch:
        host.sh("dom0", "ip addr flush dev eth0")
        watch.until("waiting: NAT: the uplink eth0 has lost the address 192.0.2.1")
        assert not host.pings("a", "192.0.2.11")
        host.sh("dom0", "ip addr add 192.0.2.9/24 dev eth0")
        watch.until("NAT follows eth0 from 192.0.2.1 to 192.0.2.9")
        watch.until("there again: NAT")
        assert host.json("nat", "status")["address"] == "192.0.2.9"
        assert host.pings("a", "192.0.2.11")
        host.sh("dom0", "ip link set eth0 down")
        watch.until("waiting: NAT: the uplink eth0 is down")
        host.sh("dom0", "ip link set eth0 up")
        watch.until("there again")
        assert host.pings("a", "192.0.2.11")


def test_an_address_that_was_named_is_waited_for(host: Host) -> None:
    host.vfr("nat", "enable", "--uplink", "eth0", "--address", "192.0.2.1")
    host.sh("dom0", "ip addr flush dev eth0; ip addr add 192.0.2.9/24 dev eth0")
    assert host.vfr("up", check=False).returncode == 3
    assert host.json("nat", "status")["address"] == "192.0.2.1" and not host.pings("a", "192.0.2.11")
    host.sh("dom0", "ip addr add 192.0.2.1/24 dev eth0")
    assert host.vfr("up", check=False).returncode == 0 and host.pings("a", "192.0.2.11")


def test_the_next_command_follows_without_a_watch(host: Host) -> None:
    host.sh("dom0", "ip addr flush dev eth0; ip addr add 192.0.2.9/24 dev eth0")
    host.vfr("timers", "--udp", "299")
    assert host.json("nat", "status")["address"] == "192.0.2.9" and host.pings("a", "192.0.2.11")


# Without a kernel


def test_a_burst_is_one_look_and_silence_is_none() -> None:
    pace = Pace(0, 600)
    pace.looks(0.2)
    assert pace.due() == 600.2
    now, looks = 10.0, 0
    for event in range(10_000):  # a hundred seconds of an event each 10 ms
        now = 10 + event / 100
        pace.heard(now)
        if now >= pace.due():
            pace.looks(now)
            pace.succeeded(now)
            looks += 1
    assert 100 / (LONGEST_S + QUIET_S) - 1 <= looks <= 100 / LONGEST_S + 1
    pace.looks(now)
    pace.heard(now + 5)
    assert pace.due() == now + 5 + QUIET_S, "one alone is looked at soon"


def test_what_fails_is_tried_later_and_later() -> None:
    pace, now, waits = Pace(0, 15), 0.0, []
    for _ in range(12):
        pace.looks(now)
        pace.failed(now)
        for event in range(100):
            pace.heard(now + event / 1000)  # what goes on meanwhile hastens nothing
        waits.append(pace.due() - now)
        now = pace.due()
    assert waits[:4] == [1, 2, 4, 8] and waits[-1] == LAST_RETRY_S
    pace.looks(now)
    pace.succeeded(now)
    assert pace.due() == now + 15


class _Router:
    """A router that fails, or waits, as it is told."""

    def __init__(self) -> None:
        self.error, self.did, self.missing = "", tuple[str, ...](), tuple[str, ...]()

    def repair(self) -> tuple[str, ...]:
        if self.error:
            raise VfrError(self.error)
        return self.did

    def waiting(self) -> tuple[str, ...]:
        return self.missing


def test_each_thing_is_told_once() -> None:
    router, told = _Router(), list[Told]()
    watcher = Watcher(router, told.append)
    router.error = "no\nroom"
    assert not watcher.look() and not watcher.look()
    router.error, router.did, router.missing = "", ("this", "that"), ("a: gone",)
    assert watcher.look()
    router.did, router.missing = (), ("a: gone",)
    assert watcher.look()
    router.missing = ()
    assert watcher.look() and watcher.look()
    assert [str(t) for t in told] == [
        "failed: no room",
        "repaired: this",
        "repaired: that",
        "works again",
        "waiting: a: gone",
        "there again: a: gone",
    ]
