"""Datagrams in pieces through the router, in every order, by real stacks at both ends.

web 169.254.1.2 --- dom0 192.0.2.1 --- lan1 192.0.2.11
 db 169.254.1.3 ---'    (its sorter)
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfr_lab import Lab
from vfr_lab.capture import Capture

pytestmark = pytest.mark.lab
VFR = str(Path(sys.executable).parent / "vfr")
PORT = 9100
# Tells the length and the hash of the first datagram, and whom it came from; answers with the same load.
RECEIVER = f"""
import hashlib, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", {PORT})); s.settimeout(8); print("up", flush=True)
data, who = s.recvfrom(1 << 16)
s.sendto(data, who)
print(len(data), hashlib.sha256(data).hexdigest(), who[0], flush=True)
"""
# Sends one datagram in pieces, in the order told: the kernel of the sender never sees them as one.
PIECES = """
import random, sys
from scapy.all import IP, UDP, Ether, Raw, conf, fragment, get_if_hwaddr
src, dst, mac, size, order = sys.argv[1:6]
load = random.Random(7).randbytes(int(size))
pieces = fragment(IP(bytes(IP(src=src, dst=dst, id=random.randrange(1, 65535)) / UDP(sport=16390, dport=9100) / Raw(load))), 600)
if order == "reversed":
    pieces.reverse()
elif order == "interleaved":
    pieces = pieces[1::2] + pieces[0::2]
elif order == "twice":
    pieces = [p for p in pieces for _ in range(2)]
out = conf.L2socket(iface="eth0")
for p in pieces:
    out.send(Ether(src=get_if_hwaddr("eth0"), dst=mac) / p)
"""
FLOOD = """
import sys
from scapy.all import IP, Ether, Raw, conf, get_if_hwaddr
frames = [bytes(Ether(src=get_if_hwaddr("eth0"), dst="fe:ff:ff:ff:ff:ff") / IP(src="169.254.1.2", dst="192.0.2.11",
          id=n % 65535 + 1, frag=100, proto=17) / Raw(b"x" * 64)) for n in range(500)]
out = conf.L2socket(iface="eth0")
for number in range(3000):
    out.send(frames[number % 500])
"""


def _load(size: int) -> str:
    import random

    return hashlib.sha256(random.Random(7).randbytes(size)).hexdigest()


@contextmanager
def _receiver(lab: Lab, node: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(lab.argv(node, [sys.executable, "-c", RECEIVER]), stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None and one.stdout.readline() == "up\n"
        try:
            yield one
        finally:
            one.kill()


def _count(lab: Lab, who: str, verdict: str) -> int:
    stats = json.loads(lab.exec("dom0", VFR, "stats", who, "--json").stdout)
    return int(stats[who].get(verdict, {"packets": 0})["packets"])


@pytest.mark.parametrize("order", ["in order", "reversed", "interleaved", "twice"])
@pytest.mark.parametrize("size", [4000, 60000])
def test_fragments_out_of_order_arrive(lab: Lab, order: str, size: int) -> None:
    """RFC 4787 REQ-14."""
    before = _count(lab, "web", "TO_SORTER")
    with _receiver(lab, "lan1") as receiver:
        lab.exec(
            "web", sys.executable, "-c", PIECES, "169.254.1.2", "192.0.2.11", "fe:ff:ff:ff:ff:ff", str(size), order
        )
        assert receiver.stdout is not None
        assert receiver.stdout.readline().split() == [str(size), _load(size), "192.0.2.1"]
    sorted_ones = _count(lab, "web", "TO_SORTER") - before
    assert (sorted_ones > 0) == (order in ("reversed", "interleaved"))


def test_a_fragmented_question_and_its_fragmented_answer(lab: Lab) -> None:
    """Both ways, by the guest's own socket, which puts the answer together."""
    ask = f"""
import random, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(8)
load = random.Random(7).randbytes(60000)
s.sendto(load, ("192.0.2.11", {PORT}))
print(s.recv(1 << 16) == load)
"""
    with _receiver(lab, "lan1"):
        assert lab.exec("web", sys.executable, "-c", ask).stdout == "True\n"


def test_the_hosts_own_fragments_are_its_own(lab: Lab) -> None:
    """From the LAN to domain 0 itself, in order and reversed: the host's stack puts them together."""
    assert lab.exec("lan1", "ping", "-n", "-c2", "-W2", "-s", "4000", "192.0.2.1", check=False).returncode == 0
    mac = json.loads(lab.ip("dom0", "-j", "link", "show", "eth0"))[0]["address"]
    for order in ("in order", "reversed"):
        with _receiver(lab, "dom0") as receiver:
            lab.exec("lan1", sys.executable, "-c", PIECES, "192.0.2.11", "192.0.2.1", mac, "4000", order)
            assert receiver.stdout is not None
            assert receiver.stdout.readline().split() == ["4000", _load(4000), "192.0.2.11"], order


def test_too_big_without_df_arrives_in_pieces_in_order(lab: Lab) -> None:
    """RFC 4787 REQ-13a: the uplink takes less than the guest sends, and the guest allows that it be cut."""
    send = f"""
import random, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: no DF
s.sendto(random.Random(7).randbytes(1400), ("192.0.2.11", {PORT}))
"""
    lab.exec("dom0", "ip", "link", "set", "eth0", "mtu", "1000")
    try:
        # So that the router hears of it; what it cuts to is the smallest of all.
        lab.exec("dom0", VFR, "timers", "--udp", "300")
        lab.exec("web", "ip", "link", "set", "eth0", "mtu", "1500")
        with Capture(lab, "lan1") as capture, _receiver(lab, "lan1") as receiver:
            lab.exec("web", sys.executable, "-c", send)
            assert receiver.stdout is not None
            assert receiver.stdout.readline().split() == ["1400", _load(1400), "192.0.2.1"]
        pieces = capture.lines("src 192.0.2.1 and ip[6:2] & 0x3fff != 0")
        assert len(pieces) >= 2 and not capture.lines("src 192.0.2.1 and greater 1015")
    finally:
        lab.exec("dom0", "ip", "link", "set", "eth0", "mtu", "1500")
        lab.exec("dom0", VFR, "timers", "--udp", "300")
        lab.exec("web", "ip", "link", "set", "eth0", "mtu", "1500")


@pytest.mark.inv(7)
def test_a_flood_of_fragments_costs_nobody_else(lab: Lab) -> None:
    """RFC 4787 REQ-14a: later fragments without a first one, until web's quota is full; db's go on."""
    before = _count(lab, "web", "DROP_FRAGMENTS_FULL")
    with subprocess.Popen(lab.argv("web", [sys.executable, "-c", FLOOD])) as flood:
        for _ in range(3):
            with _receiver(lab, "lan1") as receiver:
                lab.exec(
                    "db",
                    sys.executable,
                    "-c",
                    PIECES,
                    "169.254.1.3",
                    "192.0.2.11",
                    "fe:ff:ff:ff:ff:ff",
                    "4000",
                    "reversed",
                )
                assert receiver.stdout is not None
                assert receiver.stdout.readline().split() == ["4000", _load(4000), "192.0.2.1"]
        assert flood.wait(60) == 0
    assert _count(lab, "web", "DROP_FRAGMENTS_FULL") - before > 2000
