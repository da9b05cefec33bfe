"""What can be set is set by a command, shown by it, and stays set; what is out of range is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from support.fastpath import fastpath_of
from support.host import Host
from typer.testing import CliRunner

from vfr.cli import app
from vfr.errors import UsageError
from vfr.settings import Limits


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
    wanted |= {"rate_out": 10**12, "rate_in": 1500, "pps_in": 10**9}
    options = [w for name, value in wanted.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert host.json("domain", "limit", "a", *options) == wanted
    assert _kept(host, "domain", "limit", "a") == wanted
    with fastpath_of(host.ns("dom0")) as fp:
        assert [row.limits for row in fp.domains().values() if row.generation == 2] == [Limits(**wanted)]
    assert host.json("domain", "limit", "b") == before, "another domain's are its own"
    refused = host.vfr("domain", "limit", "a", "--sessions", "0", check=False)
    assert refused.returncode == 2 and "--sessions 0" in refused.stderr


def test_rates_are_said_as_people_say_them(host: Host) -> None:
    host.vfr(
        "domain", "set", "a", "--rate", "1.5M", "--rate-in", "10G", "--pps", "20k", "--pps-in", "7", "--burst", "1s"
    )
    shown = host.json("domain", "set", "a")
    assert [shown[name] for name in ("rate_out", "rate_in", "pps_out", "pps_in", "burst_ms")] == [
        1_500_000,
        10**10,
        20_000,
        7,
        1000,
    ]
    assert host.json("domain", "show", "a")["rates"] == "1500k out, 10G in, 20k packets/s out, 7 packets/s in"
    assert "10G in" in host.vfr("domain", "list").stdout
    line = next(row for row in host.vfr("export").stdout.splitlines() if row.startswith("domain a "))
    assert "rate-out 1500000 rate-in 10000000000 pps-out 20000 pps-in 7 burst-ms 1000" in line
    host.vfr("domain", "set", "a", "--rate", "none", "--rate-in", "none", "--pps", "none", "--pps-in", "none")
    assert host.json("domain", "show", "a")["rates"] == ""


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--rate", "5Q", "--rate '5Q' is not a rate in bits a second; write it as 100M"),
        ("--rate", "-5", "--rate '-5' is not a rate"),
        ("--rate", "", "--rate '' is not a rate"),
        ("--rate", "1e6", "--rate '1e6' is not a rate"),
        ("--rate-in", "0", "--rate-in 0 would let nothing pass; take the limit off with --rate-in none"),
        ("--rate", "999", "--rate 999 is too slow"),
        ("--rate", "18446744073709551616", "is out of range; it takes up to 1T"),
        ("--rate", "9" * 30 + "T", "is out of range"),
        ("--rate", "9" * 31, "is not a rate"),
        ("--pps", "many", "--pps 'many' is not a number a second"),
        ("--pps-in", "4294967296", "is out of range; it takes up to 1G"),
        ("--burst", "5 minutes", "--burst '5 minutes' is not a time; write it as 50ms"),
        ("--burst", "0ms", "--burst 0ms is out of range; it takes 1ms to 10s"),
    ],
)
def test_what_is_no_rate_is_refused(option: str, value: str, says: str) -> None:
    done = CliRunner().invoke(app, ["domain", "set", "a", option, value], standalone_mode=False)
    assert isinstance(done.exception, UsageError) and says in str(done.exception)


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


def test_dhcp_is_set_for_all_and_for_one(host: Host) -> None:
    def told(*words: str) -> dict[str, object]:
        return cast(dict[str, object], host.json("dhcp", *words))

    usual = {"on": True, "dns": [], "lease": 3600, "prefix": 32}
    assert told() == told("a") == usual
    told("--dns", "192.0.2.53,192.0.2.54", "--lease", "600")
    assert told("a") == {**usual, "dns": ["192.0.2.53", "192.0.2.54"], "lease": 600}
    told("a", "--prefix", "16", "--dns", "none")
    assert told("a") == {**usual, "lease": 600, "prefix": 16} and told()["prefix"] == 32
    told("--lease", "7200")
    assert host.json("domain", "show", "a")["dhcp"] == "/16, 7200 s, dns none"
    assert host.json("nat", "status")["dhcp"] == "/32, 7200 s, dns 192.0.2.53 192.0.2.54"
    assert "/16, 7200 s, dns none" in host.vfr("domain", "list").stdout
    told("a", "--off")
    assert host.json("domain", "show", "a")["dhcp"] == "off"
    told("a", "--inherit")
    assert told("a") == told() == {**usual, "dns": ["192.0.2.53", "192.0.2.54"], "lease": 7200}
    refused = host.vfr("dhcp", "nobody", "--lease", "60", check=False)
    assert refused.returncode == 1 and "there is no domain 'nobody'" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--lease", "19"), "--lease 19 is out of range; it takes 20 to 604800 seconds"),
        (("--lease", "604801"), "is out of range"),
        (("--prefix", "24"), "--prefix 24 is neither 16 nor 32"),
        (("--dns", "one.example"), "--dns 'one.example' is no list of IPv4 addresses"),
        (("--dns", ""), "is no list of IPv4 addresses"),
        (("--dns", "192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4"), "4 servers; a guest is told of 3 at the most"),
        (("--dns", "192.0.2.1,192.0.2.1"), "says the same server twice"),
        (("--dns", "127.0.0.53"), "--dns 127.0.0.53 is no address that a guest could reach a server by"),
        (("--dns", "224.0.0.1"), "is no address that a guest could reach"),
        (("--inherit",), "--inherit is for one domain"),
        (("a", "--inherit", "--lease", "60"), "--inherit stands alone"),
    ],
)
def test_what_no_guest_can_be_told_is_refused(words: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(app, ["dhcp", *words], standalone_mode=False)
    assert isinstance(done.exception, UsageError) and says in str(done.exception)
