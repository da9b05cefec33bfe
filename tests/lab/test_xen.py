"""The xen scenario by real programs (drawn in vfr_lab/scenario.py): every claim of the proof, then what
long streams, rings and real ARP make of the fastpath."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from vfr_lab import Lab
from vfr_lab.capture import Capture
from vfr_lab.prove import prove

pytestmark = pytest.mark.lab
RING = Path(__file__).resolve().parents[1] / "support" / "ring.py"
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"


def test_every_claim_of_the_proof(lab: Lab) -> None:
    seen = list(prove(lab))
    assert len(seen) >= 29
    assert [s for s in seen if not s.ok] == []


_RECEIVE = """
import hashlib, socket
s = socket.create_server(('0.0.0.0', 9000)); print('up', flush=True)
c, _ = s.accept(); h = hashlib.sha256(); n = 0
while data := c.recv(1 << 20):
    h.update(data); n += len(data)
print(n, h.hexdigest())
"""
_SEND = """
import hashlib, random, socket, sys
data = random.Random(7).randbytes(1 << 20); h = hashlib.sha256()
c = socket.create_connection((sys.argv[1], 9000), 5)
for _ in range(64):
    c.sendall(data); h.update(data)
c.close(); print(64 << 20, h.hexdigest())
"""


def _stream(lab: Lab) -> None:
    """64 MiB from web to lan1, whole."""
    argv = lab.argv("lan1", [sys.executable, "-c", _RECEIVE])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None and receiver.stdout.readline() == "up\n"
        try:
            sent = lab.exec("web", sys.executable, "-c", _SEND, "192.0.2.11").stdout
            assert receiver.stdout.read() == sent
        finally:
            receiver.kill()


def test_a_stream_of_64_kib_tso_frames(lab: Lab) -> None:
    with Capture(lab, "lan1", bytes_each=128) as capture:
        _stream(lab)
    assert capture.lines("greater 30000"), "no frame was a TSO frame, so nothing was shown"


def test_the_same_stream_cut_up_and_summed_after_nat(lab: Lab) -> None:
    """Without offloads the kernel completes checksums and cuts segments behind the fastpath; a
    receiver that checks them for itself takes none that is wrong."""
    offloads = ["tx", "tso", "gso"]
    lab.exec("dom0", "ethtool", "-K", "eth0", *(w for o in offloads for w in (o, "off")))
    try:
        with Capture(lab, "lan1", bytes_each=128) as capture:
            _stream(lab)
        assert not capture.lines("greater 2000")
    finally:
        lab.exec("dom0", "ethtool", "-K", "eth0", *(w for o in offloads for w in (o, "on")))


def _mac(lab: Lab, node: str) -> str:
    return str(json.loads(lab.ip(node, "-j", "link", "show", "eth0"))[0]["address"])


def _frame(lab: Lab, source: str) -> bytes:
    ip = IP(src=source, dst="192.0.2.11", id=1)
    return bytes(Ether(src=_mac(lab, "web"), dst=GATEWAY_MAC) / ip / UDP(sport=16400, dport=9) / Raw(b"r" * 600))


def test_a_ring_sender(lab: Lab) -> None:
    """Frames whose headers are not in the linear part are parsed, judged and summed all the same."""
    # The LAN's MAC must be known: what waits for an answer to ARP, the kernel keeps only some of.
    lab.exec("web", "ping", "-n", "-c1", "-W2", "192.0.2.11")
    with Capture(lab, "lan1") as capture:
        lab.exec("web", sys.executable, str(RING), "eth0", _frame(lab, "169.254.1.2").hex(), "50")
        lab.exec("web", sys.executable, str(RING), "eth0", _frame(lab, "169.254.1.3").hex(), "50")
        lab.exec("web", "ping", "-n", "-c1", "-W2", "192.0.2.11")
    arrived = capture.lines("udp dst port 9")
    assert len(arrived) == 50 and all("192.0.2.1." in line for line in arrived)
    text = subprocess.run(
        ["tcpdump", "-nnvvr", str(capture.file), "udp dst port 9"], capture_output=True, text=True, check=True
    ).stdout
    assert text.count("udp sum ok") == 50
    stats = json.loads(lab.exec("dom0", str(Path(sys.executable).parent / "vfr"), "stats", "web", "--json").stdout)
    assert stats["web"]["DROP_SRC_IP"]["packets"] >= 50


def test_arp_as_guests_ask_it(lab: Lab) -> None:
    """arping: the gateway answers; a peer without a rule, and a duplicate address probe, hear nothing."""

    def answered(*arguments: str) -> bool:
        return lab.exec("web", "arping", "-c1", "-w1", "-I", "eth0", *arguments, check=False).returncode == 0

    assert answered("169.254.1.0")
    assert not answered("169.254.1.3")
    # In probe mode arping fails when somebody answers: the address would be taken.
    assert answered("-D", "169.254.1.2")


def test_traffic_needs_no_process(lab: Lab) -> None:
    """No vfr process runs, and yet."""
    names = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in names.splitlines() if "/bin/vfr " in line]
    assert lab.exec("web", "ping", "-n", "-c1", "-W2", "198.51.100.9", check=False).returncode == 0
