"""A guest that has the host write a checksum where none belongs, over what the guard has just checked.

guest vt-a --- vt-dom0, eth0 without checksum offload, 192.0.2.1 --- vt-lan 192.0.2.11

The host's uplink completes checksums in software, so whatever the guest asked for is really written.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap
from support.host import Host, run

from vfr.kernel.fastpath import Fastpath
from vfr.spec.packet import ones_sum

VNET = Path(__file__).parents[1] / "support" / "vnet.py"
SOURCE_IP, TARGET_IP, IP_TTL, L4 = 26, 30, 22, 34
MARKER = b"marker" * 6
GUEST = "169.254.1.2"


@pytest.fixture(scope="module", params=["read", "witness"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Both ways to tell: by the kernel's own sk_buff (6.2 and later), and by a witness at the hook's entry."""
    with Host("vt", {"VFR_OFFLOAD": request.param}) as one:
        enabled = one.vfr("nat", "enable", "--uplink", "eth0", check=False)
        if request.param == "witness" and "witnesses: Operation not permitted" in enabled.stderr:
            pytest.skip("this machine allows no tracing programs (tests/vm has it on Linux 6.1)")
        assert enabled.returncode == 0, enabled.stderr
        one.add("a")
        run("ip", "netns", "exec", one.ns("dom0"), "ethtool", "-K", "eth0", "tx", "off")
        one.sh("dom0", "ping -c1 -W1 192.0.2.11")  # so that the LAN's MAC is known
        yield one


def _frame(host: Host, payload: Packet, to: str = "192.0.2.11") -> bytes:
    mac = host.sh("a", "cat /sys/class/net/eth0/address").strip()
    frame = Ether(src=mac, dst="fe:ff:ff:ff:ff:ff") / IP(src=GUEST, dst=to, flags="DF") / payload
    return bytes(frame)


def _send(host: Host, frame: bytes, start: int, offset: int, *gso: int, interface: str = "eth0") -> bool:
    """False if the guest's own kernel would not send it: newer ones refuse some of these."""
    where = [str(n) for n in (start, offset, *gso)]
    argv = ("ip", "netns", "exec", host.ns("a"), sys.executable, str(VNET), interface, frame.hex(), *where)
    done = run(*argv, check=False)
    assert done.returncode == 0 or "Errno 22" in done.stderr, done.stderr
    return done.returncode == 0


def _counts(host: Host) -> dict[str, int]:
    """What the guest's frames ended as, without the time it takes to start a command."""
    opened = Fastpath.open(Path("/run/vfr/netns") / host.ns("dom0") / "bpf")
    assert opened is not None
    try:
        slot = opened.addresses()[IPv4Address(GUEST)]
        return {verdict: packets for verdict, (packets, _) in opened.counters([slot])[slot].items()}
    finally:
        opened.close()


def _refuses(host: Host, frame: bytes, start: int, offset: int, *gso: int) -> bool:
    """Whether the frame ends as it must: dropped by name, and not to the LAN."""
    before = _counts(host)
    sent = _send(host, frame, start, offset, *gso)
    after = _counts(host)
    dropped = after.get("DROP_OFFLOAD", 0) - before.get("DROP_OFFLOAD", 0)
    return dropped == int(sent) and after.get("TO_LAN", 0) == before.get("TO_LAN", 0)


@contextmanager
def _capture(namespace: str, interface: str, file: Path) -> Iterator[None]:
    """Everything that comes in by an interface, into a file."""
    argv = ["ip", "netns", "exec", namespace, "tcpdump", "-i", interface, "-Q", "in", "-U", "-w", str(file)]
    dump = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert dump.stderr is not None
    while "listening" not in dump.stderr.readline():
        pass
    try:
        yield
    finally:
        dump.terminate()
        dump.wait()


def _captured(file: Path) -> list[Packet]:
    """The packets with the marker in them, waited for."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = (
            [p for p in rdpcap(str(file)) if MARKER in bytes(p)] if file.exists() and file.stat().st_size > 24 else []
        )
        if found:
            return found
        time.sleep(0.02)
    return []


@pytest.mark.inv(1)
@pytest.mark.parametrize(
    ("what", "start", "offset"),
    [
        ("the source address", SOURCE_IP, 0),
        ("the target address", TARGET_IP, 0),
        ("the TTL", IP_TTL, 0),
        ("the source port", L4, 0),
        ("the target port", L4, 2),
    ],
)
def test_a_checksum_over(host: Host, what: str, start: int, offset: int) -> None:
    frame = _frame(host, UDP(sport=4000, dport=9) / Raw(MARKER))
    assert _refuses(host, frame, start, offset), what


def test_one_over_the_ethernet_header_is_never_written(host: Host, tmp_path: Path) -> None:
    """The kernel refuses to send it; an older one sends it, and forgets the wish as it takes that header off."""
    frame = _frame(host, UDP(sport=4000, dport=9) / Raw(MARKER))
    with _capture(host.ns("lan"), "eth0", tmp_path / "lan.pcap"):
        if not _send(host, frame, 0, 6):
            return
        (seen,) = _captured(tmp_path / "lan.pcap")
    assert seen[Ether].src == host.sh("dom0", "cat /sys/class/net/eth0/address").strip()
    assert bytes(seen[UDP].payload) == MARKER


@pytest.mark.inv(1)
def test_a_gso_frame_with_it_too(host: Host) -> None:
    frame = _frame(host, TCP(sport=4000, dport=9, flags="S") / Raw(b"evil" * 800))
    assert _refuses(host, frame, SOURCE_IP, 0, 1000)


@pytest.mark.inv(1)
def test_ping_never_has_one(host: Host) -> None:
    frame = _frame(host, ICMP(id=7) / Raw(MARKER))
    assert _refuses(host, frame, SOURCE_IP, 0)


def _to_be_completed(packet: Packet) -> bytes:
    """The packet with the sum of its pseudo header where the L4 checksum belongs, as a kernel hands it out."""
    packet = IP(bytes(packet))
    length = packet.len - 20
    pseudo = bytes(packet)[12:20] + struct.pack(">HH", packet.proto, length)
    packet[UDP].chksum = ones_sum(pseudo)
    return bytes(packet)


@pytest.mark.inv(11)
def test_an_honest_one_is_completed(host: Host, tmp_path: Path) -> None:
    """The control: what belongs there arrives, and is right on the wire."""
    frame = _frame(host, UDP(sport=4000, dport=9) / Raw(MARKER))
    frame = frame[:14] + _to_be_completed(IP(frame[14:]))
    with _capture(host.ns("lan"), "eth0", tmp_path / "lan.pcap"):
        assert _send(host, frame, L4, 6)
        (seen,) = _captured(tmp_path / "lan.pcap")
    assert seen[IP].src == "192.0.2.1"
    again = IP(bytes(seen[IP]))
    del again[UDP].chksum
    assert IP(bytes(again))[UDP].chksum == seen[UDP].chksum, "the checksum on the wire is right"


@pytest.mark.inv(6)
def test_without_a_witness_nothing_passes_until_the_next_command(host: Host) -> None:
    """On kernels before 6.2: whoever removes its pin opens nothing."""
    if host.env["VFR_OFFLOAD"] == "read":
        pytest.skip("a kernel since 6.2 needs no witness")
    pin = Path("/run/vfr/netns") / host.ns("dom0") / "bpf/fastpath/vif_witness"
    assert host.pings("a", "192.0.2.11")
    pin.unlink()
    assert not host.pings("a", "192.0.2.11")
    host.vfr("nat", "enable", "--uplink", "eth0")
    assert pin.exists() and host.pings("a", "192.0.2.11")


def test_the_attack_works_where_nobody_looks(host: Host, tmp_path: Path) -> None:
    """So that the tests above cannot pass by accident: over a bridge, the address arrives overwritten."""
    host.sh("dom0", "ip link add br0 type bridge; ip link set br0 up")
    for port, node in (("p0", "a"), ("p1", "lan")):
        host.sh("dom0", f"ip link add {port} master br0 type veth peer name e-{port}; ip link set {port} up")
        host.sh("dom0", f"ip link set e-{port} netns {host.ns(node)}; ethtool -K {port} tx off")
        host.sh(node, f"ip link set e-{port} up")
    frame = _frame(host, UDP(sport=4000, dport=9) / Raw(MARKER))
    with _capture(host.ns("lan"), "e-p1", tmp_path / "lan.pcap"):
        assert _send(host, frame, SOURCE_IP, 0, interface="e-p0")
        (seen,) = _captured(tmp_path / "lan.pcap")
    assert seen[IP].src != GUEST
