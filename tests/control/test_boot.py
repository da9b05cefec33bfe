"""After a reboot: nothing is left but the registry on disk, and `vfr up` makes of it what was.

A reboot is simulated by taking away what one would: namespaces with all links, tables and programs, /run, the bpffs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.host import VFR, Host, run

TOP = Path(__file__).resolve().parents[2]


def _reboot(host: Host) -> None:
    registry = Path("/run/vfr/netns") / host.ns("dom0") / "registry.db"
    kept = registry.read_bytes()
    host.clear()
    host.__enter__()
    assert not registry.exists()
    registry.parent.mkdir(parents=True)
    registry.write_bytes(kept)


def _up(host: Host) -> tuple[int, list[str]]:
    done = host.vfr("up", "--json", check=False)
    assert "Traceback" not in done.stderr, done.stderr

    return done.returncode, json.loads(done.stdout)["waiting"]


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("tb") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        for guest in ("a", "b"):
            one.add(guest)
        one.vfr("domain", "add", "tap", "--tap", "tap7")
        yield one


@pytest.mark.inv(12)
def test_everything_comes_back(host: Host) -> None:
    before = host.json("domain", "list")
    _reboot(host)
    assert not host.pings("a", "192.0.2.11") and not host.pings("a", "169.254.1.3"), "closed until then"
    assert _up(host) == (0, [])
    assert host.json("domain", "list") == before
    assert host.pings("a", "192.0.2.11") and host.pings("b", "192.0.2.11") and not host.pings("a", "169.254.1.3")
    assert _up(host) == (0, []), "and once more is nothing"


def test_what_is_away_in_a_file_is_not_waited_for(host: Host, tmp_path: Path) -> None:
    host.vfr("save", "a", str(tmp_path / "a.vfr"))
    _reboot(host)
    assert _up(host) == (0, [])
    host.vfr("restore", "a", str(tmp_path / "a.vfr"))
    assert host.pings("a", "192.0.2.11")


@pytest.mark.inv(6)
@pytest.mark.parametrize("uplink", ["has no address yet", "is not there yet"])
def test_the_uplink_comes_later(host: Host, uplink: str) -> None:
    """Up without NAT, told by the exit status; NAT with the next command."""
    _reboot(host)
    move = "ip addr flush dev eth0" if uplink == "has no address yet" else "ip link set eth0 name later"
    back = "ip addr add 192.0.2.1/24 dev eth0" if uplink == "has no address yet" else "ip link set later name eth0"
    host.sh("dom0", f"ip link set eth0 down; {move}; ip link set eth0 up 2>/dev/null || ip link set later up")
    status, waiting = _up(host)
    assert status == 3 and len(waiting) == 1 and "eth0" in waiting[0], waiting
    assert {d["state"] for d in host.json("domain", "list")} == {"up"}, "the guests' side waits for nobody"
    assert not host.pings("a", "192.0.2.11") and not host.pings("a", "169.254.1.3")
    host.sh("dom0", f"ip link set eth0 down 2>/dev/null || ip link set later down; {back}; ip link set eth0 up")
    assert _up(host) == (0, [])
    assert host.pings("a", "192.0.2.11")


def test_guests_come_later(host: Host) -> None:
    _reboot(host)
    run("ip", "netns", "del", host.ns("b"))
    status, waiting = _up(host)
    assert status == 3 and waiting == [f"b: the namespace {host.ns('b')} is gone"]
    assert host.pings("a", "192.0.2.11")
    run("ip", "netns", "add", host.ns("b"))
    assert _up(host) == (0, [])
    assert host.pings("b", "192.0.2.11")


@pytest.mark.inv(6)
def test_a_tap_that_somebody_made_first_is_not_used_unfiltered(host: Host) -> None:
    """What VFR did not make and filter is made anew."""
    _reboot(host)
    host.sh("dom0", "ip tuntap add tap7 mode tap; ip link set tap7 up")
    index = host.sh("dom0", "cat /sys/class/net/tap7/ifindex")
    assert _up(host) == (0, [])
    assert host.sh("dom0", "cat /sys/class/net/tap7/ifindex") != index


def test_with_nothing_to_put_up(host: Host) -> None:
    host.vfr("domain", "remove", "a", "b", "tap")
    host.vfr("nat", "disable")
    before = host.picture()
    assert _up(host) == (0, [])
    assert host.picture() == before


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing: apt install systemd")
def test_units_are_in_order(tmp_path: Path) -> None:
    """What `make install-units` writes is what systemd takes, runs this tree's vfr, and comes before the guests."""
    run("make", "-C", str(TOP), "install-units", f"DESTDIR={tmp_path}")
    units = sorted((tmp_path / "etc/systemd/system").iterdir())
    assert [u.name for u in units] == ["vfr-online.service", "vfr-watch.service", "vfr.service"]
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units[0].parent}:"}
    argv = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0 and not any("vfr" in line for line in done.stderr.splitlines()), done.stderr
    text = units[2].read_text()
    assert f"ExecStart={VFR} up" in text
    before = " ".join(line for line in text.splitlines() if line.startswith("Before="))
    assert all(word in before for word in ("network-pre.target", "libvirtd.service", "machines.target"))
    run("make", "-C", str(TOP), "uninstall-units", f"DESTDIR={tmp_path}")
    assert not any((tmp_path / "etc/systemd/system").iterdir())
