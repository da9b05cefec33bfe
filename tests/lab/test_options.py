"""IP options go nowhere: source routes above all, by frames made by hand and by real tools.

web 169.254.1.2 --- dom0 192.0.2.1 --- lan1 192.0.2.11
 db 169.254.1.3 ---'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support import traffic, wire
from support.fastpath import more_rules, stats

from vfr.spec.packet import ones_sum
from vfr_lab import Lab
from vfr_lab.capture import Capture
from vfr_lab.lab import wait_until

pytestmark = pytest.mark.lab
LAN1, OUTSIDE, WEB, DB = "192.0.2.11", "192.0.2.1", "169.254.1.2", "169.254.1.3"
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
END, NOOP = b"\0", b"\1"
WITH, WITHOUT = 40001, 40000  # source ports


def _route(kind: int, by: str) -> bytes:
    """A source route by one more hop."""
    return bytes((kind, 7, 4)) + IPv4Address(by).packed + END


LOOSE, STRICT, RECORD, TIMESTAMP, ALERT, UNKNOWN = 131, 137, 7, 68, 148, 158
ROUTES = {
    "loose source route": _route(LOOSE, "192.0.2.254"),
    "strict source route": _route(STRICT, "192.0.2.254"),
    "source route behind others": NOOP + bytes((ALERT, 4, 0, 0)) + _route(LOOSE, "192.0.2.254")[:7],
    "source route of length 0": bytes((LOOSE, 0, 4, 0)),
}
OTHERS = {
    "record route": bytes((RECORD, 7, 4)) + bytes(4) + END,
    "timestamp": bytes((TIMESTAMP, 8, 5, 0)) + bytes(4),
    "router alert": bytes((ALERT, 4, 0, 0)),
    "unknown": bytes((UNKNOWN, 4, 0, 0)),
    "of length 0": bytes((RECORD, 0, 0, 0)),
    "past the header": bytes((RECORD, 40, 4, 0)),
    "end of options only": END * 4,
}
SENDER = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"""


def _with_options(packet: bytes, options: bytes) -> bytes:
    """An IP packet with options behind its header, all else as it was."""
    words, total = 5 + len(options) // 4, len(packet) + len(options)
    head = bytes((0x40 | words, 0)) + total.to_bytes(2, "big") + packet[4:10] + b"\0\0" + packet[12:20] + options
    return head[:10] + (~ones_sum(head) & 0xFFFF).to_bytes(2, "big") + head[12:] + packet[20:]


@dataclass(frozen=True)
class _Way:
    """Frames of one sender's to one target, and where they would be seen."""

    sender: str
    src: str
    dst: str
    receiver: str
    protocol: int = wire.UDP
    port: int = 9
    row: str = "web"  # whose counters

    def packet(self, what: str = "control", options: bytes = b"") -> bytes:
        """Its load is the marker; its port says whether it has options."""
        src, dst = int(IPv4Address(self.src)), int(IPv4Address(self.dst))
        load, syn = f"marker: {what}".encode(), traffic.FLAGS["S"]
        l4 = traffic.l4_packet(src, dst, self.protocol, WITH if options else WITHOUT, self.port, syn, load)
        packet = traffic.ip_packet(src, dst, self.protocol, l4)
        return _with_options(packet, options) if options else packet


TO_LAN = _Way("web", WEB, LAN1, "lan1")
TO_DB = _Way("web", WEB, DB, "db")
TO_FORWARD = _Way("lan1", LAN1, OUTSIDE, "web", wire.TCP, 2202, "lan")
TO_HOST = _Way("lan1", LAN1, OUTSIDE, "db", row="lan")


def _mac(lab: Lab, node: str) -> str:
    return str(json.loads(lab.ip(node, "-j", "link", "show", "eth0"))[0]["address"])


def _send(lab: Lab, way: _Way, packets: list[bytes]) -> dict[str, int]:
    """The drops that they were counted under."""
    before = stats(lab, way.row)
    to = _mac(lab, "dom0") if way.sender == "lan1" else GATEWAY_MAC
    head = bytes.fromhex((to + _mac(lab, way.sender)).replace(":", "")) + b"\x08\x00"
    lab.exec(way.sender, sys.executable, "-c", SENDER, *((head + p).hex() for p in packets))
    return _drops(before, stats(lab, way.row))


def _drops(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    new = {verdict: number - before.get(verdict, 0) for verdict, number in after.items()}
    return {v: number for v, number in new.items() if number and v.startswith("DROP_") and v != "DROP_IPV6"}


def _markers(capture: Capture) -> set[str]:
    """Of all packets that an interface had, also those that ICMP errors quote."""
    packets = [p for p in wire.packets(capture.file) if b"marker: " in p]
    return {p[p.index(b"marker: ") + 8 :].decode() for p in packets}


def _answered(capture: Capture, way: _Way) -> set[int]:
    """The sender's ports that were answered: by TCP, or by an ICMP error that quotes a marker. A peer may still complain
    about fragments that another test sent half a minute ago."""
    packets = [p for p in wire.packets(capture.file) if wire.source(p)[0] == way.dst]
    tcp = [p[22:24] for p in packets if p[9] == wire.TCP]
    icmp = [p for p in packets if p[9] == wire.ICMP and p[20] in (3, 4, 5, 11, 12) and b"marker: " in p]
    errors = [p[28 + (p[28] & 15) * 4 :][:2] for p in icmp]
    return {int.from_bytes(port, "big") for port in (*tcp, *errors)}


def _settle(lab: Lab) -> None:
    """All MACs are known, and what was sent before has arrived."""
    for node in ("web", "db"):
        lab.exec(node, "ping", "-n", "-c1", "-W2", LAN1)


WAYS = [pytest.param(way, id=f"{way.sender} to {way.receiver}") for way in (TO_LAN, TO_DB, TO_FORWARD)]


@pytest.mark.parametrize("way", WAYS)
def test_no_option_arrives_nor_is_answered(lab: Lab, tmp_path: Path, way: _Way) -> None:
    """Each is dropped under its name. What has none is let through, so it is no rule that stops them."""
    _settle(lab)
    packets = [way.packet(name, options) for name, options in (*ROUTES.items(), *OTHERS.items())]
    with (
        more_rules(lab, tmp_path / "more.rules", "allow web -> db udp"),
        Capture(lab, way.receiver) as there,
        Capture(lab, way.sender) as here,
    ):
        drops = _send(lab, way, [*packets, way.packet()])
        wait_until(lambda: WITHOUT in _answered(here, way), "an answer")
    assert drops == {"DROP_SOURCE_ROUTE": len(ROUTES), "DROP_IP_OPTIONS": len(OTHERS)}
    assert _markers(there) == {"control"}
    assert _answered(here, way) == {WITHOUT}


@pytest.mark.parametrize("way", WAYS)
def test_a_header_past_the_packets_end(lab: Lab, tmp_path: Path, way: _Way) -> None:
    """From the LAN it has no ports that could be ours, so it is the host's, whose stack drops it."""
    _settle(lab)
    packet = b"\x4f" + way.packet("too short", NOOP * 4)[1:]
    with (
        more_rules(lab, tmp_path / "more.rules", "allow web -> db udp"),
        Capture(lab, way.receiver) as there,
        Capture(lab, way.sender) as here,
    ):
        drops = _send(lab, way, [packet, way.packet()])
        wait_until(lambda: WITHOUT in _answered(here, way), "an answer")
    assert drops == ({} if way.sender == "lan1" else {"DROP_IP_HEADER": 1})
    assert _markers(there) == {"control"} and _answered(here, way) == {WITHOUT}


@contextmanager
def _sysctls(lab: Lab, node: str, *names: str) -> Iterator[None]:
    """Switched on for a while."""
    before = {name: lab.exec(node, "sysctl", "-n", name).stdout.strip() for name in names}
    try:
        lab.exec(node, "sysctl", "-qw", *(f"{name}=1" for name in names))
        yield
    finally:
        lab.exec(node, "sysctl", "-qw", *(f"{name}={value}" for name, value in before.items()))


@pytest.mark.inv(4)
@pytest.mark.parametrize("kind", [LOOSE, STRICT])
def test_the_host_is_no_hop_of_a_source_route(lab: Lab, kind: int) -> None:
    """From lan1 by way of the host to db's own address: the uplink's program passes it on as the host's, and the
    host's stack does not forward it, as hosts are by default."""
    _settle(lab)
    packets = [TO_HOST.packet("by the host", _route(kind, DB))]
    before = stats(lab, "lan")
    with Capture(lab, "db") as there, Capture(lab, "lan1") as here, Capture(lab, "dom0", "vfr0") as between:
        assert _send(lab, TO_HOST, [*packets, TO_HOST.packet()]) == {}
        _settle(lab)
    assert stats(lab, "lan")["NOT_OURS"] >= before["NOT_OURS"] + 2
    assert _markers(there) == _markers(between) == set()
    assert WITHOUT in _answered(here, TO_HOST), "the host's own stack had the other"


@pytest.mark.inv(4)
def test_nor_if_the_host_is_a_router_that_takes_source_routes(lab: Lab) -> None:
    """Then its stack forwards it to vfr0, and the fastpath drops it there."""
    _settle(lab)
    conf = "net.ipv4.conf.all"
    before = stats(lab, "dom0")
    with (
        _sysctls(lab, "dom0", "net.ipv4.ip_forward", f"{conf}.accept_source_route"),
        Capture(lab, "db") as there,
        Capture(lab, "dom0", "vfr0") as between,
    ):
        _send(lab, TO_HOST, [TO_HOST.packet("by the host", _route(LOOSE, DB))])
        _settle(lab)
    assert _markers(between) == {"by the host"}, "so something was shown"
    assert _drops(before, stats(lab, "dom0")) == {"DROP_SOURCE_ROUTE": 1}
    assert _markers(there) == set()


def test_a_domains_address_on_the_lan_is_a_martian(lab: Lab) -> None:
    """Without the host as a hop: to db's own address by the host's MAC, with a source route or not."""
    _settle(lab)
    way = _Way("lan1", LAN1, DB, "db", row="lan")
    with Capture(lab, "db") as there:
        drops = _send(lab, way, [way.packet("route", _route(LOOSE, DB)), way.packet()])
        _settle(lab)
    assert drops == {"DROP_MARTIAN": 2} and _markers(there) == set()


@pytest.mark.parametrize(
    ("tool", "verdict"),
    [
        ("ping -n -c1 -W1 -R", "DROP_IP_OPTIONS"),
        ("ping -n -c1 -W1 -T tsonly", "DROP_IP_OPTIONS"),
        ("traceroute -n -q1 -w1 -m2 -g 192.0.2.254", "DROP_SOURCE_ROUTE"),
    ],
)
def test_real_tools(lab: Lab, tool: str, verdict: str) -> None:
    """What they send with options is dropped; without, the same tool has its answer."""
    _settle(lab)
    plain = tool.replace(" -R", "").replace(" -T tsonly", "").replace(" -g 192.0.2.254", "")
    assert " ms" in lab.exec("web", *plain.split(), LAN1).stdout
    before = stats(lab, "web")
    with Capture(lab, "lan1") as there:
        said = lab.exec("web", *tool.split(), LAN1, check=False).stdout
        _settle(lab)
    assert " ms" not in said.replace("time 0ms", ""), said
    assert _drops(before, stats(lab, "web")).keys() == {verdict}
    assert not there.lines("ip[0] & 0xf > 5") and not there.lines("udp")
