"""`vfr-lab vm`: a VM as one more guest of the lab, by one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.fastpath import vfr

from vfr_lab import Lab

pytestmark = pytest.mark.lab
VFR_LAB = Path(sys.executable).parent / "vfr-lab"


def _argv(lab: Lab, *arguments: str) -> list[str]:
    return ["timeout", "240", str(VFR_LAB), "vm", "--prefix", lab.prefix, *arguments]


def _vm(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(_argv(lab, *arguments), capture_output=True, text=True, check=False)
    _skip_without_vm(done.stderr)
    return done


def _skip_without_vm(said: str) -> None:
    if "there can be no VM here" in said:
        pytest.skip(said)


def test_a_command_runs_in_a_vm(lab: Lab) -> None:
    """It has an address, reaches the LAN, and its exit status is the command's; then nothing of it is left."""
    done = _vm(lab, "box", "--", "hostname; ping -c1 -W5 192.0.2.11 > /dev/null; exit 7")
    assert (done.stdout, done.returncode) == ("box\n", 7), done.stderr
    assert "box" not in {d["name"] for d in json.loads(vfr(lab, "domain", "list", "--json"))}
    assert "tap-box" not in lab.ip("dom0", "link")


def test_its_console_is_the_terminal(lab: Lab) -> None:
    with subprocess.Popen(
        _argv(lab, "box"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        assert process.stdin and process.stdout
        said = b""
        while not said.endswith(b"# ") and (more := process.stdout.read(1)):
            said += more
        _skip_without_vm(said.decode())
        assert b"This is box, 169.254.1." in said
        process.stdin.write(b"echo $((6 * 7)) of $(hostname)\nexit\n")
        said = process.stdout.read()
    assert process.returncode == 0 and b"42 of box" in said, said


def test_a_guests_name_is_taken(lab: Lab) -> None:
    done = _vm(lab, "web", "--", "true")
    assert done.returncode == 2 and "'web'" in done.stderr
