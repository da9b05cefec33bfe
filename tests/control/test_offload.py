"""A guest that has the host write a checksum where none belongs, over what the guard has just checked; and
frames that are to be cut into segments, honest ones and others.

guest vt-a --- vt-dom0, eth0 without checksum offload, 192.0.2.1 --- vt-lan 192.0.2.11
    a VM --- tap1 ---'

The host's uplink completes checksums and cuts segments in software, so whatever the guest asked for is really
done. By its TAP a VM hands the host a frame as it likes; of a namespace's, the guest's own kernel had a look before.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap
from support import wire
from support.fastpath import fastpath_of
from support.host import Host, run
from support.vnet import GSO_TCPV4, GSO_UDP, GSO_UDP_L4

from vfr.spec.packet import ones_sum

VNET = Path(__file__).parents[1] / "support" / "vnet.py"
SOURCE_IP, TARGET_IP, IP_TTL, L4 = 26, 30, 22, 34
MARKER = b"marker" * 6
GUEST, VM = "169.254.1.2", "169.254.1.9"
VM_MAC = "02:00:00:00:00:09"
LOAD = bytes(range(256)) * 16
END = b"this is the end"


@pytest.fixture(scope="module", params=["read", "witness"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Both ways to tell: by the kernel's own sk_buff (6.2 and later), and by a witness at the hook's entry."""
    with Host("vt", {"VFR_OFFLOAD": request.param}) as one:
        enabled = one.vfr("nat", "enable", "--uplink", "eth0", check=False)
        if request.param == "witness" and "witnesses: Operation not permitted" in enabled.stderr:
            pytest.skip("this machine allows no tracing programs (tests/vm has it on Linux 6.1)")
        assert enabled.returncode == 0, enabled.stderr
        one.add("a")
        one.vfr("domain", "add", "vm", "--tap", "tap1", "--address", VM, "--mac", VM_MAC)
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


def _counts(host: Host, guest: str = GUEST) -> dict[str, int]:
    """What the guest's frames ended as, without the time it takes to start a command."""
    with fastpath_of(host.ns("dom0")) as fp:
        slot = fp.addresses()[IPv4Address(guest)]
        return {verdict: packets for verdict, (packets, _) in fp.counters([slot])[slot].items()}


def _refuses(host: Host, frame: bytes, start: int, offset: int, *gso: int) -> bool:
    """Whether the frame ends as it must: dropped by name, and not to the LAN."""
    before = _counts(host)
    sent = _send(host, frame, start, offset, *gso)
    after = _counts(host)
    dropped = after.get("DROP_OFFLOAD", 0) - before.get("DROP_OFFLOAD", 0)
    return dropped == int(sent) and after.get("TO_LAN", 0) == before.get("TO_LAN", 0)


@contextmanager
def _capture(namespace: str, interface: str, file: Path) -> Iterator[None]:
    """Everything that comes in by an interface, into a file. Frames are short, so that a burst has room."""
    tcpdump = f"tcpdump --immediate-mode -s 4096 -B 4096 -i {interface} -Q in -U -w {file}"
    argv = ["ip", "netns", "exec", namespace, *tcpdump.split()]
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


def _vm_sends(host: Host, packet: Packet, start: int, offset: int, *gso: int) -> bool:
    """One frame from the VM; where a checksum is to be completed, its field has the pseudo header's sum. False
    if the host's kernel did not take it from the TAP."""
    raw = bytes(packet)
    if offset:
        raw = raw[: 20 + offset] + wire.pseudo_sum(raw).to_bytes(2, "big") + raw[22 + offset :]
    frame = bytes(Ether(src=VM_MAC, dst="fe:ff:ff:ff:ff:ff", type=0x0800)) + raw
    where = [str(n) for n in (start, offset, *gso)]
    argv = ("ip", "netns", "exec", host.ns("dom0"), sys.executable, str(VNET), "tap1", frame.hex(), *where)
    done = run(*argv, check=False)
    assert done.returncode == 0 or "Errno 22" in done.stderr, done.stderr
    return done.returncode == 0


def _vm_packet(payload: Packet, **ip: Any) -> Packet:
    return IP(src=VM, dst="192.0.2.11", **ip) / payload


@dataclass(frozen=True)
class _Fate:
    taken: bool  # by the host's kernel, from the TAP
    verdicts: dict[str, int]
    arrived: list[bytes]  # at the LAN, from the IP header on


def _fate(host: Host, file: Path, packet: Packet, start: int, offset: int, *gso: int) -> _Fate:
    """What becomes of one frame of the VM's. A packet behind it tells when all has arrived."""
    with _capture(host.ns("lan"), "eth0", file):
        before = _counts(host, VM)
        taken = _vm_sends(host, packet, start, offset, *gso)
        after = _counts(host, VM)
        assert _vm_sends(host, _vm_packet(UDP(sport=4999, dport=9) / Raw(END)), 0, 0)
        deadline = time.monotonic() + 5
        while END not in file.read_bytes():
            assert time.monotonic() < deadline, "the packet behind it did not arrive"
            time.sleep(0.02)
    names = {name for name in after if name != "received"}
    verdicts = {name: after[name] - before.get(name, 0) for name in names if after[name] != before.get(name, 0)}
    seen = [p for p in wire.packets(file) if wire.source(p)[0] == "192.0.2.1" and p[9] == packet.proto]
    return _Fate(taken, verdicts, [p for p in seen if END not in p])


@pytest.mark.inv(11)
@pytest.mark.parametrize(
    ("payload", "offset", "kind"),
    [
        pytest.param(UDP(sport=5000, dport=9), 6, GSO_UDP_L4, id="udp"),
        pytest.param(TCP(sport=5000, dport=9, flags="S"), 16, GSO_TCPV4, id="tcp"),
        pytest.param(TCP(sport=5001, dport=9, flags="S"), 0, GSO_TCPV4, id="tcp summed by the sender"),
    ],
)
def test_a_vms_frame_leaves_in_segments(host: Host, tmp_path: Path, payload: Packet, offset: int, kind: int) -> None:
    """Each is right by itself, and no other packet has its identification (RFC 6864 4.3: without DF)."""
    used: list[int] = []
    for number in range(2):
        packet = _vm_packet(payload / Raw(LOAD), id=7)
        fate = _fate(host, tmp_path / f"{number}.pcap", packet, L4 if offset else 0, offset, 1000, kind)
        if not fate.taken and kind == GSO_UDP_L4:
            pytest.skip("this kernel takes no UDP GSO from a TAP (Linux 6.2)")
        assert fate.taken and fate.verdicts == {"TO_LAN": 1}
        assert [wire.flaws(p) for p in fate.arrived] == [[]] * 5
        assert b"".join(wire.load(p) for p in fate.arrived) == LOAD
        used += [wire.identification(p) for p in fate.arrived]
    assert len(set(used)) == 10, used


@pytest.mark.inv(7)
@pytest.mark.parametrize("flags", ["DF", ""])
def test_a_vms_datagram_leaves_in_fragments(host: Host, tmp_path: Path, flags: str) -> None:
    """UFO: the kernel cuts it into fragments, DF or not, so its identification is not the VM's own choice: it
    would choose one that another domain's fragments have (RFC 6864 5.3.1)."""
    used: list[int] = []
    for number in range(2):
        packet = _vm_packet(UDP(sport=5002, dport=9) / Raw(LOAD), id=60000, flags=flags)
        fate = _fate(host, tmp_path / f"{number}.pcap", packet, L4, 6, 1000, GSO_UDP)
        assert fate.taken and fate.verdicts == {"TO_LAN": 1}
        assert len(fate.arrived) == 5 and all(wire.is_fragment(p) and not wire.flaws(p) for p in fate.arrived)
        whole = b"".join(p[20:] for p in fate.arrived)
        assert whole[8:] == LOAD
        head = fate.arrived[0]
        assert wire.flaws(head[:6] + b"\0\0" + head[8:20] + whole) == ["IP header checksum"], "L4's is right"
        (one,) = {wire.identification(p) for p in fate.arrived}
        used.append(one)
    assert 60000 not in used and len(set(used)) == 2


@pytest.mark.inv(7)
@pytest.mark.parametrize("place", ["first", "later"])
@pytest.mark.parametrize(
    ("payload", "offset", "kind"),
    [
        pytest.param(UDP(sport=5003, dport=9), 6, GSO_UDP_L4, id="udp"),
        pytest.param(UDP(sport=5003, dport=9), 6, GSO_UDP, id="ufo"),
        pytest.param(UDP(sport=5003, dport=9), 0, GSO_UDP, id="ufo summed by the sender"),
        pytest.param(TCP(sport=5003, dport=9, flags="S"), 16, GSO_TCPV4, id="tcp"),
        pytest.param(TCP(sport=5003, dport=9, flags="S"), 0, GSO_TCPV4, id="tcp summed by the sender"),
    ],
)
def test_a_fragment_is_never_cut(
    host: Host, tmp_path: Path, payload: Packet, offset: int, kind: int, place: str
) -> None:
    """What came of it would be fragments that lie over each other, with identifications that are others'."""
    where = {"flags": "MF"} if place == "first" else {"frag": 512}
    # So long that the rest of what is asked of a fragment is fulfilled.
    packet = _vm_packet(payload / Raw(LOAD[: 4096 - len(payload)]), **where)
    fate = _fate(host, tmp_path / "lan.pcap", packet, L4 if offset else 0, offset, 1000, kind)
    assert fate.arrived == []
    assert fate.verdicts == ({"DROP_OFFLOAD": 1} if fate.taken else {})


@pytest.mark.inv(11)
@pytest.mark.parametrize(("start", "offset"), [(L4, 6), (L4, 16), (0, 0)])
@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        pytest.param(UDP(sport=5004, dport=9), GSO_TCPV4, id="tcp on udp"),
        pytest.param(TCP(sport=5004, dport=9, flags="S"), GSO_UDP_L4, id="udp on tcp"),
        pytest.param(TCP(sport=5004, dport=9, flags="S"), GSO_UDP, id="ufo on tcp"),
        pytest.param(ICMP(id=7), GSO_TCPV4, id="tcp on ping"),
        pytest.param(ICMP(id=7), GSO_UDP, id="ufo on ping"),
    ],
)
def test_segments_of_another_protocol(
    host: Host, tmp_path: Path, payload: Packet, kind: int, start: int, offset: int
) -> None:
    """The kernel does not take it from the TAP, or VFR drops it, or the kernel does as it is to cut it (TO_LAN is
    then the last that is counted). None arrives in pieces, none whole."""
    packet = _vm_packet(payload / Raw(LOAD))
    fate = _fate(host, tmp_path / "lan.pcap", packet, start, offset, 1000, kind)
    assert fate.arrived == []
    assert fate.verdicts in (({"DROP_OFFLOAD": 1}, {"TO_LAN": 1}) if fate.taken else ({},))
    own = 16 if packet.proto == wire.TCP else 6
    if offset not in (0, own) or packet.proto == wire.ICMP:
        assert not fate.taken or fate.verdicts == {"DROP_OFFLOAD": 1}


@pytest.mark.inv(11)
@pytest.mark.parametrize(
    ("payload", "offset", "kind"),
    [
        pytest.param(UDP(sport=5006, dport=9), 6, GSO_UDP_L4, id="udp"),
        pytest.param(TCP(sport=5006, dport=9, flags="S"), 16, GSO_TCPV4, id="tcp"),
    ],
)
def test_segments_of_one_byte(host: Host, tmp_path: Path, payload: Packet, offset: int, kind: int) -> None:
    """Whatever the kernel takes is cut as asked: a hundred packets, each right. Not every kernel takes such UDP."""
    packet = _vm_packet(payload / Raw(LOAD[:100]))
    fate = _fate(host, tmp_path / "lan.pcap", packet, L4, offset, 1, kind)
    if not fate.taken:
        assert fate.arrived == [] and kind == GSO_UDP_L4
        return
    assert fate.verdicts == {"TO_LAN": 1}
    assert [wire.flaws(p) for p in fate.arrived] == [[]] * 100
    assert b"".join(wire.load(p) for p in fate.arrived) == LOAD[:100]
    assert len({wire.identification(p) for p in fate.arrived}) == 100


@pytest.mark.inv(6)
def test_explain_is_told_of_offloads_as_well(host: Host) -> None:
    """Its twin has witnesses of its own, where there must be any: else guard would refuse the packet."""
    before = _counts(host).get("DROP_POLICY")
    answer = json.loads(host.vfr("explain", "a", "vm", "icmp", "--json", check=False).stdout)
    assert answer["verdict"] == "DROP_POLICY", answer
    assert _counts(host).get("DROP_POLICY") == before


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
