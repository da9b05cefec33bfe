"""The way as guests see it: hops, and how long a packet may be on each.

web 169.254.1.2 --- dom0 192.0.2.1 --- 192.0.2.254 router 198.51.100.1 --- inet 198.51.100.9
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfr_lab import Lab

pytestmark = pytest.mark.lab
VFR = str(Path(sys.executable).parent / "vfr")
INET = "198.51.100.9"
SIZE = 2 << 20
WHOLE = hashlib.sha256(random.Random(7).randbytes(SIZE)).hexdigest()
# Takes one connection: sends the load if told so, else receives it and says its hash.
SERVER = f"""
import hashlib, random, socket, sys
s = socket.create_server(("0.0.0.0", 9200)); print("up", flush=True)
c, _ = s.accept(); c.settimeout(20)
if sys.argv[1] == "send":
    c.sendall(random.Random(7).randbytes({SIZE})); c.close()
else:
    h = hashlib.sha256()
    while data := c.recv(1 << 16):
        h.update(data)
    print(h.hexdigest(), flush=True)
"""
CLIENT = f"""
import hashlib, random, socket, sys
c = socket.create_connection((sys.argv[1], 9200), 20)
if sys.argv[2] == "receive":
    c.sendall(random.Random(7).randbytes({SIZE})); c.close()
else:
    h = hashlib.sha256()
    while data := c.recv(1 << 16):
        h.update(data)
    print(h.hexdigest())
"""


def _transfer(lab: Lab, server_does: str) -> str:
    """The load between web and inet, up (inet receives) or down (inet sends): the hash of what arrived."""
    argv = lab.argv("inet", [sys.executable, "-c", SERVER, server_does])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        try:
            said = lab.exec("web", sys.executable, "-c", CLIENT, INET, server_does).stdout
            return (said or server.stdout.readline()).strip()
        finally:
            server.kill()


@contextmanager
def _mtu(lab: Lab, *ends: tuple[str, str], mtu: int) -> Iterator[None]:
    """Interfaces (node, name) with another MTU for a while, and caches that know nothing of it yet."""
    for node, name in ends:
        lab.ip(node, "link", "set", name, "mtu", str(mtu))
    for node in ("web", "inet"):
        lab.ip(node, "route", "flush", "cache")
    try:
        yield
    finally:
        for node, name in ends:
            lab.ip(node, "link", "set", name, "mtu", "1500")
        for node in ("web", "inet"):
            lab.ip(node, "route", "flush", "cache")


def _interface(lab: Lab, node: str, towards: str) -> str:
    return str(json.loads(lab.ip(node, "-j", "route", "get", towards))[0]["dev"])


def _learnt(lab: Lab, node: str, towards: str) -> int:
    """The path MTU that the node's stack has learnt, 0 if none."""
    found = re.search(r"mtu (\d+)", lab.ip(node, "route", "get", towards))
    return int(found.group(1)) if found else 0


def test_path_mtu_discovery_works_both_ways(lab: Lab) -> None:
    """RFC 4787 REQ-13, RFC 1191: a small hop far away, and the errors about it through NAT."""
    far = _interface(lab, "router", INET)
    with _mtu(lab, ("router", far), mtu=1280):
        assert _transfer(lab, "receive") == WHOLE
        assert _learnt(lab, "web", INET) == 1280, "the error about web's packet reached web"
    with _mtu(lab, ("router", _interface(lab, "router", "192.0.2.1")), mtu=1300):
        assert _transfer(lab, "send") == WHOLE


def test_an_uplink_smaller_than_the_guests_mtu(lab: Lab) -> None:
    """The errors are the router's own here, also about TSO frames whose segments do not fit."""
    with _mtu(lab, ("dom0", "eth0"), mtu=1400):
        lab.exec("dom0", VFR, "timers", "--udp", "300")  # any command notices
        try:
            assert _transfer(lab, "receive") == WHOLE
            assert _learnt(lab, "web", INET) == 1400
        finally:
            lab.ip("dom0", "link", "set", "eth0", "mtu", "1500")
            lab.exec("dom0", VFR, "timers", "--udp", "300")
    errors = json.loads(lab.exec("dom0", VFR, "stats", "web", "--json").stdout)["web"]
    assert errors["DROP_TOO_BIG"]["packets"] > 0 and errors["errors"]["packets"] > 0


def test_a_vif_keeps_its_mtu_when_it_is_put_in_order_meanwhile(lab: Lab) -> None:
    """The guest's own end keeps its MTU too, and the kernel drops what is too long for ours without a word."""
    try:
        with _mtu(lab, ("dom0", "eth0"), mtu=1000):
            lab.exec("dom0", VFR, "domain", "limit", "web", "--fragments", "33")
        lab.exec("dom0", VFR, "timers", "--udp", "300")  # any command notices the uplink's MTU, and leaves web alone
        assert "mtu 1500" in lab.ip("dom0", "link", "show", "vif-web")
        assert _transfer(lab, "receive") == WHOLE
    finally:
        lab.exec("dom0", VFR, "domain", "limit", "web", "--fragments", "32")


def _hops(lab: Lab, node: str, *arguments: str) -> list[str]:
    """Who answered at each hop, * if nobody did."""
    lines = lab.exec(node, "traceroute", "-n", "-q", "1", "-w", "2", "-m", "6", *arguments).stdout.splitlines()[1:]
    return [line.split()[1] for line in lines]


def test_traceroute_shows_the_way_out_and_in(lab: Lab) -> None:
    """RFC 5508 REQ-10a, by UDP, ping and TCP, from a guest to the internet; and in, to a forward."""
    way = ["169.254.1.0", "192.0.2.254", INET]
    assert _hops(lab, "web", INET) == way
    assert _hops(lab, "web", "-I", INET) == way
    assert _hops(lab, "web", "-T", "-p", "7", INET) == way
    assert _hops(lab, "inet", "-T", "-p", "2202", "192.0.2.1") == ["198.51.100.1", "192.0.2.1", "192.0.2.1"]


def test_a_closed_port_is_told_to_the_guests_program(lab: Lab) -> None:
    ask = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(("{INET}", 9))
s.send(b"x")
try:
    s.recv(1)
except OSError as error:
    print(type(error).__name__)
"""
    assert lab.exec("web", sys.executable, "-c", ask).stdout == "ConnectionRefusedError\n"


def test_hairpin_and_reject_by_rules(lab: Lab, tmp_path: Path) -> None:
    """web reaches db's forward by the LAN address where a rule says so; what is rejected fails at once."""
    script = """
import socket, sys
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
    print(c.recv(8).decode())
except OSError as error:
    print(error.errno or "timed out")
"""

    def tries(address: str, port: int) -> str:
        return lab.exec("web", sys.executable, "-c", script, address, str(port)).stdout.strip()

    rules = Path(__file__).resolve().parents[2] / "rules" / "xen.rules"
    changed = tmp_path / "changed.rules"
    changed.write_text(rules.read_text() + "\nallow web -> db tcp 22\nreject web -> lan tcp 25\n")
    assert tries("192.0.2.1", 2203) == "timed out"
    lab.exec("dom0", VFR, "apply", str(changed))
    try:
        assert tries("192.0.2.1", 2203) == "SSH-2.0-"
        assert tries("192.0.2.11", 25) == "113", "EHOSTUNREACH, and not after three seconds"
    finally:
        lab.exec("dom0", VFR, "apply", str(rules))
    assert tries("192.0.2.1", 2203) == "timed out"
