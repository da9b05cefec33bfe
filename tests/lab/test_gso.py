"""One send that leaves as many segments: UDP GSO and TSO through NAT, every checksum computed by the receiver.

web 169.254.1.2 --- dom0 192.0.2.1, its uplink with and without offloads --- lan1 192.0.2.11
 db 169.254.1.3 ---'
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import wire
from support.fastpath import more_rules, stats, vfr

from vfr.settings import Limits
from vfr_lab import Lab
from vfr_lab.capture import Capture

pytestmark = pytest.mark.lab
LAN1, OUTSIDE, WEB, DB = "192.0.2.11", "192.0.2.1", "169.254.1.2", "169.254.1.3"
PORT, SIZE = 9300, 1000
OFFLOADS = ("tx", "tso", "gso", "tx-udp-segmentation")
BURST = random.Random(7).randbytes(40 * SIZE + 137)
SEGMENTS = [BURST[at : at + SIZE] for at in range(0, len(BURST), SIZE)]
# Few enough that a capture has room for all of it, and IP_PMTUDISC_* by what the packets then say.
STREAM = random.Random(8).randbytes(96 << 10)
DISCOVER = {"DF": 2, "no DF": 0}
COMMON = f"""
import hashlib, random, socket, sys
UDP_SEGMENT = 103
burst, stream = random.Random(7).randbytes({len(BURST)}), random.Random(8).randbytes({len(STREAM)})
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(8)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
def send(to, size={SIZE}):
    s.setsockopt(17, UDP_SEGMENT, size)
    s.sendto(burst, to)
def hear():
    datagrams, who = [], None
    while sum(map(len, datagrams)) < {len(BURST)}:
        data, who = s.recvfrom(1 << 16)
        datagrams.append(data)
    print(len(datagrams), max(map(len, datagrams)), hashlib.sha256(b"".join(datagrams)).hexdigest(), who[0], flush=True)
    return who
"""
ANSWERER = f'{COMMON}\ns.bind(("0.0.0.0", {PORT})); print("up", flush=True); send(hear())\n'
ASKER = f"{COMMON}\ns.setsockopt(0, 10, int(sys.argv[2])); send((sys.argv[1], {PORT})); hear()\n"  # IP_MTU_DISCOVER
SINK = f"""
import hashlib, socket
l = socket.create_server(("0.0.0.0", {PORT})); print("up", flush=True)
c, _ = l.accept(); c.settimeout(8); h = hashlib.sha256()
while data := c.recv(1 << 16):
    h.update(data)
print(h.hexdigest(), flush=True)
"""
SOURCE = f"{COMMON}\nc = socket.create_connection((sys.argv[1], {PORT}), 8); c.sendall(stream); c.close()\n"


def _heard(who: str) -> str:
    """What a receiver says when all segments came, each by itself."""
    return f"{len(SEGMENTS)} {SIZE} {hashlib.sha256(BURST).hexdigest()} {who}\n"


@contextmanager
def _without_offloads(lab: Lab, *nodes: str) -> Iterator[None]:
    """Their eth0 cuts segments and completes checksums before a frame leaves."""
    try:
        for node in nodes:
            lab.exec(node, "ethtool", "-K", "eth0", *(w for o in OFFLOADS for w in (o, "off")))
        yield
    finally:
        for node in nodes:
            lab.exec(node, "ethtool", "-K", "eth0", *(w for o in OFFLOADS for w in (o, "on")))


@contextmanager
def _process(lab: Lab, node: str, script: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(lab.argv(node, [sys.executable, "-c", script]), stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None and one.stdout.readline() == "up\n"
        try:
            yield one
        finally:
            one.kill()


@dataclass(frozen=True)
class _Seen:
    """A burst and its answer: UDP packets, from the IP header on, as the two ends' interfaces had them."""

    asked_near: list[bytes]
    asked_far: list[bytes]
    answered_far: list[bytes]
    answered_near: list[bytes]
    frames: int  # that the fastpath counted of the asker's
    outside: int  # the asker's port as the far end sees it


def _exchange(lab: Lab, far: str, address: str, asker_there: str, verdict: str, how: str = "DF") -> _Seen:
    """web sends a burst, the other end answers with one; both hear all of it."""
    lab.exec("web", "ping", "-n", "-c1", "-W2", LAN1)  # so that the LAN's MAC is known
    before = stats(lab, "web").get(verdict, 0)
    with _process(lab, far, ANSWERER) as answerer, Capture(lab, far) as there, Capture(lab, "web") as here:
        said = lab.exec("web", sys.executable, "-c", ASKER, address, str(DISCOVER[how])).stdout
        assert answerer.stdout is not None and answerer.stdout.readline() == _heard(asker_there)
        assert said == _heard(address)
    near, distant = _udp(here), _udp(there)
    asked_far = [p for p in distant if wire.source(p)[0] == asker_there]
    return _Seen(
        [p for p in near if wire.source(p)[0] == WEB],
        asked_far,
        [p for p in distant if wire.source(p)[0] == address],
        [p for p in near if wire.source(p)[0] == address],
        stats(lab, "web").get(verdict, 0) - before,
        wire.source(asked_far[0])[1],
    )


def _udp(capture: Capture) -> list[bytes]:
    return [p for p in wire.packets(capture.file) if p[9] == wire.UDP]


def _one_by_one(packets: list[bytes]) -> None:
    """Each segment a packet of its own, in order, with all its sums right and an identification of its own."""
    assert [wire.load(p) for p in packets] == SEGMENTS
    assert [wire.flaws(p) for p in packets] == [[]] * len(SEGMENTS)
    first = wire.identification(packets[0])
    assert [(wire.identification(p) - first) & 0xFFFF for p in packets] == list(range(len(SEGMENTS)))


def _all_in_one(packets: list[bytes]) -> None:
    """One frame that is still to be cut, with the right beginnings of its checksums."""
    (packet,) = packets
    assert wire.load(packet) == BURST and wire.is_partial(packet)
    assert wire.flaws(packet) == ["L4 checksum"], "IP's is complete"


@pytest.mark.inv(11)
@pytest.mark.parametrize("how", ["DF", "no DF"])
def test_udp_gso_is_cut_behind_the_fastpath(lab: Lab, how: str) -> None:
    """One frame through NAT, forty-one on the wire; lan1's answer comes in as forty-one."""
    with _without_offloads(lab, "dom0", "lan1"):
        seen = _exchange(lab, "lan1", LAN1, OUTSIDE, "TO_LAN", how)
    _all_in_one(seen.asked_near)
    assert seen.frames == 1
    _one_by_one(seen.asked_far)
    assert {wire.source(p) for p in seen.asked_far} == {(OUTSIDE, seen.outside)} and seen.outside >= 16384
    for answer in (seen.answered_far, seen.answered_near):
        _one_by_one(answer)


@pytest.mark.inv(11)
def test_udp_gso_passes_whole_where_all_take_it(lab: Lab) -> None:
    """Nobody cuts: what is still to be completed is right all the same, and the receivers' stacks cut it up."""
    seen = _exchange(lab, "lan1", LAN1, OUTSIDE, "TO_LAN")
    assert seen.frames == 1
    for frames in (seen.asked_near, seen.asked_far, seen.answered_far, seen.answered_near):
        _all_in_one(frames)


@pytest.mark.inv(11)
def test_tso_is_cut_behind_the_fastpath(lab: Lab) -> None:
    with (
        _without_offloads(lab, "dom0"),
        _process(lab, "lan1", SINK) as sink,
        Capture(lab, "lan1") as there,
        Capture(lab, "web") as here,
    ):
        lab.exec("web", sys.executable, "-c", SOURCE, LAN1)
        assert sink.stdout is not None and sink.stdout.readline() == hashlib.sha256(STREAM).hexdigest() + "\n"
    assert max(map(len, wire.packets(here.file))) > 10000, "no frame was a TSO frame, so nothing was shown"
    arrived = [p for p in wire.packets(there.file) if p[9] == wire.TCP and wire.source(p)[0] == OUTSIDE]
    assert len(arrived) > len(STREAM) // 1460 and max(map(len, arrived)) <= 1500
    assert [p for p in arrived if wire.flaws(p)] == []
    assert _stream(arrived) == STREAM


def _stream(segments: list[bytes]) -> bytes:
    """What TCP segments carry, put together by their sequence numbers."""
    numbers = [int.from_bytes(p[24:28], "big") for p in segments]
    begin = next(n for n, p in zip(numbers, segments, strict=True) if p[33] & 0x02) + 1  # SYN
    loads = {(n - begin) % (1 << 32): wire.load(p) for n, p in zip(numbers, segments, strict=True) if wire.load(p)}
    whole = bytearray()
    for at in sorted(loads):
        assert at <= len(whole), f"nothing for byte {len(whole)}"
        whole[at : at + len(loads[at])] = loads[at]
    return bytes(whole)


@pytest.mark.inv(11)
def test_udp_gso_from_domain_to_domain(lab: Lab, tmp_path: Path) -> None:
    """Handed over as it is (bpf_redirect_peer), whether cut before or never; the receiver's stack is real."""
    with more_rules(lab, tmp_path / "more.rules", "allow web -> db udp"):
        whole = _exchange(lab, "db", DB, WEB, "TO_DOMAIN")
        with _without_offloads(lab, "web", "db"):
            cut = _exchange(lab, "db", DB, WEB, "TO_DOMAIN")
    assert (whole.frames, cut.frames) == (1, len(SEGMENTS))
    for frames in (whole.asked_near, whole.asked_far, whole.answered_far, whole.answered_near):
        _all_in_one(frames)
    for frames in (cut.asked_far, cut.answered_near):
        _one_by_one(frames)


@contextmanager
def _small_uplink(lab: Lab, mtu: int) -> Iterator[None]:
    """Any command makes the router notice. Caches know nothing of it before, nor after."""
    try:
        _set_mtu(lab, mtu)
        yield
    finally:
        _set_mtu(lab, 1500)


def _set_mtu(lab: Lab, mtu: int) -> None:
    lab.ip("dom0", "link", "set", "eth0", "mtu", str(mtu))
    vfr(lab, "timers", "--udp", "300")
    lab.ip("web", "route", "flush", "cache")


TOO_LARGE = f"""{COMMON}
s.connect((sys.argv[1], {PORT}))
s.setsockopt(0, 10, {DISCOVER["DF"]})
s.setsockopt(17, UDP_SEGMENT, 1400)
s.send(burst)
try:
    s.recv(1)
except OSError as error:
    print(error.errno)
"""


def test_segments_too_large_for_the_uplink_are_told_to_the_sender(lab: Lab) -> None:
    """1400 bytes of load where 1400 of packet fit, DF set: EMSGSIZE, the path's MTU learnt, and nothing sent."""
    with _small_uplink(lab, 1400):
        before = stats(lab, "web").get("DROP_TOO_BIG", 0)
        with Capture(lab, "lan1") as there:
            assert lab.exec("web", sys.executable, "-c", TOO_LARGE, LAN1).stdout == "90\n", "EMSGSIZE"
            lab.exec("web", "ping", "-n", "-c1", "-W2", LAN1)
        assert stats(lab, "web").get("DROP_TOO_BIG", 0) - before == 1
        assert "mtu 1400" in lab.ip("web", "route", "get", LAN1)
        assert there.lines("icmp and src 192.0.2.1") and not there.lines("udp and src 192.0.2.1")


@contextmanager
def _more_fragments(lab: Lab) -> Iterator[None]:
    """For web as many datagrams in fragments at a time as one burst makes."""
    try:
        vfr(lab, "domain", "limit", "web", "--fragments", "256")
        yield
    finally:
        vfr(lab, "domain", "limit", "web", "--fragments", str(Limits().fragments))


def test_segments_too_large_are_cut_into_fragments_where_df_allows(lab: Lab) -> None:
    """By the sorter; each segment is whole at the receiver, and none has another's identification."""
    with (
        _small_uplink(lab, 1000),
        _without_offloads(lab, "dom0"),
        _more_fragments(lab),
        _process(lab, "lan1", ANSWERER) as answerer,
        Capture(lab, "lan1") as there,
    ):
        lab.exec("web", sys.executable, "-c", ASKER, LAN1, str(DISCOVER["no DF"]))
        assert answerer.stdout is not None and answerer.stdout.readline() == _heard(OUTSIDE)
    arrived = [p for p in _udp(there) if wire.source(p)[0] == OUTSIDE]
    assert max(map(len, arrived)) <= 1000 and not [p for p in arrived if wire.flaws(p)]
    assert len({wire.identification(p) for p in arrived}) == len(SEGMENTS)
    assert len(arrived) == 2 * len(SEGMENTS) - 1, "the last is short enough"
