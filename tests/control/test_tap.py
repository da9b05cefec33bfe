"""A TAP opened as each hypervisor does: what comes out of it is what was asked for, and what goes in arrives.

guest vp-a ------ vp-dom0 169.254.1.0 --- eth0 192.0.2.1 --- vp-lan 192.0.2.11
  tap.py --- tap1 ---'

The sender is Linux's TCP with every offload, so its frames are long and without checksums. Where the guest took no
such thing upon itself, the host's kernel must cut and complete them before they are read from the TAP.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.host import Host, run
from support.tap import MODES, TUN_F_CSUM, TUN_F_TSO4, Seen

TESTS = Path(__file__).parents[1]
VM, MAC, OUTSIDE = "169.254.1.9", "02:00:00:00:00:09", "192.0.2.1"
BYTES = 1 << 19
RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow a -> vm tcp\n"
CLIENT = f"""
import hashlib, random, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.sendall(random.Random(9).randbytes({BYTES}))
s.shutdown(socket.SHUT_WR)
seen = hashlib.sha256()
while data := s.recv(1 << 16):
    seen.update(data)
print(seen.hexdigest())
"""
SENDERS = {"a domain": ("a", VM, "9"), "the LAN": ("lan", OUTSIDE, "2209")}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host("vp") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a", "--address", "169.254.1.2")
        one.vfr("domain", "add", "vm", "--tap", "tap1", "--address", VM, "--mac", MAC)
        rules = tmp_path_factory.mktemp("rules") / "now.rules"
        rules.write_text(RULES)
        one.vfr("apply", str(rules))
        yield one


def _exchange(host: Host, mode: str, node: str, address: str, port: str) -> tuple[str, Seen]:
    """(the hash of what came back, what the guest saw)."""
    argv = [sys.executable, str(TESTS / "support/tap.py"), "tap1", mode, VM, MAC]
    guest = subprocess.Popen(
        ["ip", "netns", "exec", host.ns("dom0"), *argv],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        assert guest.stdout and guest.stdout.readline() == "ready\n"
        client = [sys.executable, "-c", CLIENT, address, port]
        came_back = run("ip", "netns", "exec", host.ns(node), "timeout", "60", *client).stdout.strip()
        return came_back, Seen(**json.loads(guest.stdout.readline()))
    finally:
        guest.kill()
        guest.communicate()


@pytest.mark.inv(11)
@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("mode", MODES)
def test_frames_are_as_the_hypervisor_asked(host: Host, mode: str, sender: str) -> None:
    """No frame is longer than the MTU and none without its checksum, but where that was taken on; there some are."""
    came_back, seen = _exchange(host, mode, *SENDERS[sender])
    assert seen.wrong == []
    assert (seen.bytes, seen.sha256) == (BYTES, came_back)
    assert bool(seen.cut_later) == bool(MODES[mode].offloads & TUN_F_TSO4)
    assert bool(seen.summed_later) == bool(MODES[mode].offloads & TUN_F_CSUM)
    assert seen.longest > 1500 if seen.cut_later else seen.longest == 1500
