"""What can be set is set by a command, shown by it, and stays set; what is out of range is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    """NAT is on, and a is a domain."""
    with Host("vu") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        yield one


def _kept(host: Host, *command: str) -> dict[str, int]:
    """What the command says, after everything was applied anew."""
    host.vfr("nat", "enable", "--uplink", "eth0")
    shown: dict[str, int] = host.json(*command)
    return shown


def test_timers_are_set_shown_and_kept(host: Host) -> None:
    before = host.json("timers")
    assert (before["udp"], before["tcp_established"], before["icmp"]) == (300, 7440, 60)
    wanted = {name: value + number for number, (name, value) in enumerate(before.items(), 1)}
    options = [w for name, value in wanted.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert host.json("timers", *options) == wanted
    assert _kept(host, "timers") == wanted
    refused = host.vfr("timers", "--udp", "0", check=False)
    assert refused.returncode == 2 and "--udp 0" in refused.stderr
    assert host.json("timers") == wanted


def test_limits_are_set_shown_and_kept(host: Host) -> None:
    host.add("b")
    before = host.json("domain", "limit", "a")
    wanted = {name: value + number for number, (name, value) in enumerate(before.items(), 1)}
    options = [w for name, value in wanted.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert host.json("domain", "limit", "a", *options) == wanted
    assert _kept(host, "domain", "limit", "a") == wanted
    assert host.json("domain", "limit", "b") == before, "another domain's are its own"
    refused = host.vfr("domain", "limit", "a", "--sessions", "0", check=False)
    assert refused.returncode == 2 and "--sessions 0" in refused.stderr


def test_the_number_of_ports_is_set(host: Host) -> None:
    def ports() -> int:
        low, high = map(int, host.json("domain", "show", "a")["outside_ports"].split("-"))
        return high - low + 1

    assert ports() == 64
    host.vfr("domain", "remove", "a")
    host.vfr("nat", "disable")
    host.vfr("nat", "enable", "--uplink", "eth0", "--ports-per-domain", "256")
    host.add("a")
    assert ports() == 256
