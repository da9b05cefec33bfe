"""The lab leaves nothing, whatever became of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vfr_lab import Lab, LabError
from vfr_lab.lab import BUILD

pytestmark = pytest.mark.lab


def _picture() -> dict[str, str]:
    commands = {
        "namespaces": "ip netns list | sed 's/ .*//' | sort",
        "links": "ip -o link | sed 's/ qlen.*//'",
        "nft": "nft list ruleset",
        "processes": "ps -eo args | grep -E 'sshd -D|vfr_lab.echo|tcpdump' | grep -v grep | sort; true",
        "mounts": "grep -v nsfs /proc/self/mounts",
        "state": "find /run/vfr /var/lib/vfr 2>/dev/null | grep -v '/vl[a-z0-9]*-dom0' | sort; true",
    }
    return {
        what: subprocess.run(["sh", "-c", c], capture_output=True, text=True, check=True).stdout
        for what, c in commands.items()
    }


def test_down_leaves_nothing() -> None:
    one = Lab(prefix="vm-")
    before = _picture()
    one.up()
    try:
        assert one.is_up()
        processes = one.status()
        one.up()
        assert one.status() == processes, "up again is nothing new"
        assert one.exec("web", "hostname").stdout == "web\n"
        assert one.exec("web", "false", check=False).returncode == 1
    finally:
        one.down()
    assert _picture() == before
    assert not (BUILD / "vm-files").exists()


def test_down_from_half_way() -> None:
    """Broken off after the namespaces and one machine; `down` finds its way, and `up` would too."""
    one = Lab(prefix="vm-")
    before = _picture()
    one.files.mkdir(parents=True)
    try:
        one._make_nodes()
        one._make_keys()
        one._start_machine(one.scenario.guests[0])
        assert not one.is_up()
    finally:
        one.down()
    assert _picture() == before


def test_an_unknown_node_is_named() -> None:
    with pytest.raises(LabError, match=r"'nowhere'.*web"):
        Lab(prefix="vm-").argv("nowhere", ["true"])
    assert not Path("/run/netns/vm-web").exists()
