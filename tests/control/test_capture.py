"""`vfr capture`: real traffic, dropped and not, against the counters, and as tshark reads it.

guests vg-a, vg-b --- vg-dom0 --- eth0 192.0.2.1 --- vg-lan 192.0.2.11
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.fastpath import fastpath_of
from support.host import VFR, Host, run
from support.versions import OTHER_NUMBER, Version

from vfr import _abi
from vfr.capture import SNAP_MAX, Packet, Totals, comment, line, summary, wish
from vfr.errors import UsageError
from vfr.kernel.capturing import LEASE_S
from vfr.kernel.fastpath import Fastpath

RULES = """\
allow a -> lan
reject a -> 192.0.2.12
allow a -> b udp 9
allow dom0 -> a icmp
"""
TALK = """
import socket, sys
own = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
own.bind(("eth0", 0))
mac = own.getsockname()[4]
s = socket.socket(type=socket.SOCK_DGRAM)
def send(number, address, port):
    for _ in range(number):
        try:
            s.sendto(b"x" * 58, (address, port))
        except OSError:
            pass  # an ICMP error about one before
send(7, "192.0.2.11", 9)
send(5, "169.254.1.3", 9)
send(3, "169.254.1.3", 10)
send(2, "192.0.2.12", 9)
for _ in range(4):
    own.send(bytes.fromhex("feffffffffff") + b"\\x02\\0\\0\\0\\0\\x77" + b"\\x08\\0" + bytes(46))
own.send(bytes.fromhex("feffffffffff") + mac + b"\\x86\\xdd" + bytes(46))
"""
FLOOD = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(int(sys.argv[1])):
    s.sendto(bytes(58), ("169.254.1.3", 10))
"""
READY_S = 20
LONG = bool(os.environ.get("VFR_LONG"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    file = tmp_path_factory.mktemp("capture") / "some.rules"
    file.write_text(RULES)
    with Host("vg") as one:
        for guest in one.guests:
            one.sh(guest, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        one.add("b")
        one.vfr("apply", str(file))
        one.sh("a", "ping -n -c1 -W1 192.0.2.11")  # and the neighbours are known
        yield one


@pytest.fixture
def fp(host: Host) -> Iterator[Fastpath]:
    with fastpath_of(host.ns("dom0")) as one:
        yield one


class Running:
    """A `vfr capture` that goes on: in the block it has begun, and is ended by a signal unless it has ended."""

    def __init__(self, host: Host, *arguments: str, stdout: int = subprocess.PIPE) -> None:
        self._argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "capture", *arguments]
        self._host, self._stdout = host, stdout
        self.out, self.told = b"", ""

    def __enter__(self) -> Running:
        before = _captures(self._host).keys()
        self.process = subprocess.Popen(self._argv, stdout=self._stdout, stderr=subprocess.PIPE)
        _wait(lambda: self.process.poll() is not None or bool(_captures(self._host).keys() - before))
        return self

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, told = self.process.communicate(timeout=30)
        self.out, self.told = out or b"", told.decode()
        return self.process.returncode

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        if self.process.stderr and not self.process.stderr.closed:
            self.process.communicate()


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not until():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _captures(host: Host) -> dict[int, Any]:
    """Slot -> its row, of those that go on."""
    with fastpath_of(host.ns("dom0")) as fp:
        rows = {slot: _abi.Capture.from_buffer_copy(raw) for slot, raw in fp.map("captures").dump()}
        return {slot: row for slot, row in rows.items() if row.until_ns > fp.now_ns() and slot < 4096}


def _in(host: Host, node: str, code: str, *arguments: str) -> None:
    run("ip", "netns", "exec", host.ns(node), sys.executable, "-c", code, *arguments)


def _stats(host: Host, who: str) -> Counter[str]:
    return Counter({what: n["packets"] for what, n in host.json("stats", who)[who].items()})


def _blocks(file: Path) -> list[tuple[int, bytes]]:
    """Kind and body of each block; the file must end with a whole one."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0 and data[at + length - 4 : at + length] == data[at + 4 : at + 8], f"at {at}"
        found.append((kind, data[at + 8 : at + length - 4]))
        at += length
    assert at == len(data)
    return found


def _options(raw: bytes) -> dict[int, bytes]:
    at, found = 0, {}
    while at < len(raw):
        code, length = struct.unpack_from("<HH", raw, at)
        found[code] = raw[at + 4 : at + 4 + length]
        at += 4 + (length + 3 & ~3)
    return found


def _frames(file: Path) -> list[tuple[str, bytes, int]]:
    """Comment, data, and how many were lost before it, of each frame."""
    found = []
    for kind, body in _blocks(file):
        if kind == 6:
            kept = struct.unpack_from("<I", body, 12)[0]
            told = _options(body[20 + (kept + 3 & ~3) :])
            lost = int.from_bytes(told.get(4, b""), "little")
            found.append((told[1].decode(), body[20 : 20 + kept], lost))
    return found


def _statistics(file: Path) -> tuple[int, int]:
    """Frames that there were, and those of them that are not in the file."""
    kind, body = _blocks(file)[-1]
    told = _options(body[12:])
    assert kind == 5
    return int.from_bytes(told[4], "little"), int.from_bytes(told[5], "little")


def _verdicts(comments: list[str], which: str) -> Counter[str]:
    return Counter(c.split(" ")[0] for c in comments if f"; {which}" in c)


def _expected(before: Counter[str], after: Counter[str]) -> tuple[Counter[str], int, int]:
    """What the counters say: verdicts of its own frames, frames delivered to it, ICMP errors. Not ARP: a guest's kernel
    asks whenever it likes."""
    more = after - before
    more.pop("ANSWERED", 0)
    received, errors = more.pop("received", 0), more.pop("errors", 0)
    return more, received, errors


@pytest.fixture(scope="module")
def whole(host: Host, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[str], Counter[str]]:
    """A file of all kinds of traffic, and the counters before and after."""
    file = tmp_path_factory.mktemp("files") / "a.pcapng"
    with Running(host, "a", "-w", str(file)) as capture:
        before = _stats(host, "a")
        host.sh("a", "ip neigh flush all; ping -n -c2 -i0.01 -W1 192.0.2.11")
        host.sh("dom0", "ping -n -c1 -W1 169.254.1.2")
        _in(host, "a", TALK)
        after = _stats(host, "a")
        assert capture.end() == 0, capture.told
    assert "it was told to end" in capture.told and " 0 lost" in capture.told
    return file, before, after


def test_what_is_on_the_vif_is_in_the_file_with_its_verdict(whole: tuple[Path, Counter[str], Counter[str]]) -> None:
    file, before, after = whole
    own, received, errors = _expected(before, after)
    comments = [c for c, _, _ in _frames(file)]
    sent, replies = _verdicts(comments, "from a"), _verdicts(comments, "to a, by the router")
    assert sent.pop("ANSWERED") == replies.pop("ANSWERED") >= 1, "each has its answer"
    assert sent == own
    assert own["DROP_POLICY"] == 3 and own["DROP_REJECTED"] == 2 and own["DROP_SRC_MAC"] == 4
    assert own["DROP_IPV6"] == 1 and own["TO_DOMAIN"] == 5 and own["TO_LAN"] == 7 + 2
    assert _verdicts(comments, "to a from") == {"TO_DOMAIN": received} and received >= 2 + 1
    assert replies == {"DROP_REJECTED": errors}
    assert _statistics(file) == (len(comments), 0)


def test_comments_say_why_and_frames_are_the_guests_own(
    host: Host, whole: tuple[Path, Counter[str], Counter[str]]
) -> None:
    frames = _frames(whole[0])
    rejected = next(c for c, _, _ in frames if c.startswith("DROP_REJECTED") and "; from a" in c)
    assert rejected == (
        "DROP_REJECTED (a rule rejects it: denied, and answered with administratively prohibited);"
        " from a to lan; rule some.rules:2: reject a -> 192.0.2.12"
    )
    sent = [data for c, data, _ in frames if c.startswith("TO_LAN") and "outside port" in c]
    assert sent and {data[26:30] for data in sent} == {bytes([169, 254, 1, 2])}, "as before NAT"
    got = [data for c, data, _ in frames if "; to a from lan" in c]
    assert got and {data[30:34] for data in got} == {bytes([169, 254, 1, 2])}, "as after NAT"
    assert any("; to a from dom0" in c for c, _, _ in frames)
    error = next(data for c, data, _ in frames if "the ICMP error" in c)
    assert error[23] == 1 and error[34:36] == bytes([3, 13])
    answer = next(data for c, data, _ in frames if "the answer" in c)
    assert answer[12:14] == b"\x08\x06" and answer[6:12] == bytes.fromhex("feffffffffff")


def test_tshark_reads_it(whole: tuple[Path, Counter[str], Counter[str]]) -> None:
    if not shutil.which("tshark"):
        pytest.skip("tshark is not to be had")
    fields = ("frame.comment", "frame.interface_name", "frame.time_epoch", "frame.len")
    argv = ["tshark", "-r", str(whole[0]), "-T", "fields", *(word for name in fields for word in ("-e", name))]
    rows = [row.split("\t") for row in run(*argv).stdout.splitlines()]
    frames = _frames(whole[0])
    assert [row[0] for row in rows] == [c for c, _, _ in frames]
    assert [int(row[3]) for row in rows] == [len(data) for _, data, _ in frames]
    assert {row[1] for row in rows} == {"vif-a"} or len({row[1] for row in rows}) == 1
    assert all(abs(float(row[2]) - time.time()) < 600 for row in rows)
    dropped = run("tshark", "-r", str(whole[0]), "-Y", 'frame.comment contains "DROP_SRC_MAC"').stdout.splitlines()
    assert len(dropped) == 4


def test_for_people_and_for_programs(host: Host) -> None:
    with Running(host, "a", "--dropped", "--count", "10") as capture:
        _in(host, "a", TALK)
        assert capture.process.wait(20) == 0
        capture.end()
    lines = capture.out.decode().splitlines()
    assert len(lines) == 10 and "that many were asked for" in capture.told
    first = r"\d\d:\d\d:\d\d\.\d{6} from a: udp 169\.254\.1\.2:\d+ > 169\.254\.1\.3:10, 100 bytes: DROP_POLICY"
    assert re.fullmatch(first, lines[0]), lines[0]
    assert any(
        "to   a by the router: icmp" in text and "DROP_REJECTED  (some.rules:2: reject" in text for text in lines
    )
    with Running(host, "a", "--verdict", "src_mac", "--json", "--time", "1.5") as capture:
        _in(host, "a", TALK)
        assert capture.process.wait(20) == 0
        capture.end()
    packets = [json.loads(text) for text in capture.out.splitlines()]
    assert [p["verdict"] for p in packets] == ["DROP_SRC_MAC"] * 4 and "the time is over" in capture.told
    assert packets[0]["data"].startswith("feffffffffff020000000077") and packets[0]["length"] == 60


@pytest.mark.inv(7)
def test_a_flood_is_kept_to_the_rate_and_what_is_lost_is_counted(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "flood.pcapng"
    before = _stats(host, "a")
    with Running(host, "a", "-w", str(file), "--rate", "40", "--snaplen", "64", "--dropped") as capture:
        _in(host, "a", FLOOD, "3000")
        run("sleep", "0.3")  # until the allowance has room for one again
        _in(host, "a", FLOOD, "1")
        assert capture.end() == 0
    seen, lost = _statistics(file)
    frames = _frames(file)
    assert (_stats(host, "a") - before)["DROP_POLICY"] == seen == 3001
    assert seen == len(frames) + lost and lost > 1000
    assert 40 <= len(frames) < 1500 and {len(data) for _, data, _ in frames} == {64}
    assert sum(n for _, _, n in frames) == lost, "each is told of with the next one that is there"
    assert f"{lost} lost: {lost} over --rate" in capture.told
    assert any(f"{n} before it are lost" in c for c, _, n in frames if n)


def test_two_at_once_but_not_of_one_domain(host: Host, tmp_path: Path) -> None:
    files = [tmp_path / "a.pcapng", tmp_path / "b.pcapng"]
    with Running(host, "a", "-w", str(files[0])) as one, Running(host, "b", "-w", str(files[1])) as other:
        _wait(lambda: len(_captures(host)) == 2)
        refused = host.vfr("capture", "a", "--count", "1", check=False)
        assert refused.returncode == 1 and "goes on already" in refused.stderr
        _in(host, "a", TALK)
        assert (one.end(), other.end(signal.SIGTERM)) == (0, 0)
    sent = [data for c, data, _ in _frames(files[0]) if c.startswith("TO_DOMAIN") and "; from a to b" in c]
    got = [data for c, data, _ in _frames(files[1]) if c.startswith("TO_DOMAIN") and "; to b from a" in c]
    assert len(sent) == len(got) == 5 and [data[34:] for data in sent] == [data[34:] for data in got]
    way = [c for c, _, _ in _frames(files[1]) if c.startswith("DROP_POLICY")]
    assert len(way) == 3 and all("; to b from a" in c for c in way), "dropped on their way to it"
    assert _captures(host) == {}


def test_one_that_is_killed_costs_nothing_for_long(host: Host, fp: Fastpath) -> None:
    with Running(host, "a") as capture:
        capture.end(signal.SIGKILL)
        (slot,) = _captures(host)
        key = slot.to_bytes(4, "little")

        def seen() -> int:
            return int(_abi.Captured.from_buffer_copy(fp.map("captured").get(key) or b"").seen)

        _in(host, "a", FLOOD, "5")
        before = seen()
        assert before >= 5, "it does not know yet"
        fp.advance_clock(LEASE_S)
        _in(host, "a", FLOOD, "5")
        assert seen() == before and _captures(host) == {}
    with Running(host, "b", "--count", "1"):
        assert fp.map("captures").get(key) == bytes(32), "and the next one clears it away"
        assert fp.inner("capture_rings", slot) is None


def test_a_full_disk_ends_it_and_the_file_is_whole(host: Host, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tiny", str(tmp_path))
    try:
        file = tmp_path / "full.pcapng"
        with Running(host, "a", "-w", str(file)) as capture:
            _in(host, "a", FLOOD, "1000")
            assert capture.process.wait(20) == 1
            capture.end()
        assert "No space left on device; what was written before is whole" in capture.told
        assert 100 < len(_frames(file)) < 1000
    finally:
        run("umount", str(tmp_path))


def test_a_pipe_that_nobody_reads_any_more_ends_it(host: Host) -> None:
    for arguments in (("-w", "-"), ()):
        with Running(host, "a", *arguments) as capture:
            assert capture.process.stdout is not None
            capture.process.stdout.close()
            _in(host, "a", FLOOD, "10")
            assert capture.process.wait(20) == 0
            assert capture.process.stderr is not None
            told = capture.process.stderr.read().decode()
            assert "nobody reads it any more" in told and "Traceback" not in told and "Exception" not in told


def test_through_a_pipe_as_it_happens(host: Host) -> None:
    with Running(host, "a", "-w", "-", "--count", "5") as capture:
        _in(host, "a", FLOOD, "5")
        assert capture.process.wait(20) == 0
        capture.end()
    assert capture.out.startswith(bytes.fromhex("0a0d0d0a"))


def test_a_domain_that_is_removed_ends_it(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "gone.pcapng"
    with Running(host, "b", "-w", str(file)) as capture:
        _in(host, "a", TALK)
        host.vfr("domain", "remove", "b")
        host.add("b")
        _in(host, "a", TALK)
        assert capture.process.wait(20) == 1
        capture.end()
    assert "the domain was removed" in capture.told
    got = _verdicts([c for c, _, _ in _frames(file)], "to b from a")
    assert got["TO_DOMAIN"] == 5, "its next tenant is not captured"


def test_an_upgrade_does_not_end_it_while_tables_are_laid_out_alike(host: Host, tmp_path: Path) -> None:
    other, file = Version(tmp_path / "other", OTHER_NUMBER), tmp_path / "both.pcapng"
    with Running(host, "a", "-w", str(file)) as capture:
        _in(host, "a", TALK)
        other.vfr(host, "upgrade")
        _in(host, "a", TALK)
        assert capture.end() == 0, capture.told
    host.vfr("upgrade")
    assert _verdicts([c for c, _, _ in _frames(file)], "from a")["DROP_POLICY"] == 6


@pytest.mark.skipif(not LONG, reason="VFR_LONG=1 runs it too")
def test_another_fastpath_ends_it(host: Host, tmp_path: Path) -> None:
    """One whose counts are laid out otherwise."""
    count = "	__u32 untold;                 /* lost since the last one that is in the ring */\n	__u32 zero;\n"
    other, file = Version(tmp_path / "other", ("vfr_abi.h", count, "	__u64 untold;\n")), tmp_path / "one.pcapng"
    with Running(host, "a", "-w", str(file)) as capture:
        _in(host, "a", TALK)
        other.vfr(host, "upgrade")
        assert capture.process.wait(20) == 1
        capture.end()
    host.vfr("upgrade")
    assert "another fastpath runs now" in capture.told and _blocks(file)[-1][0] == 5


def test_who_is_not_root_is_told(host: Host) -> None:
    argv = ["ip", "netns", "exec", host.ns("dom0"), "setpriv", "--reuid=65534", "--clear-groups", str(VFR)]
    done = run(*argv, "capture", "a", check=False)
    assert done.returncode == 1 and "this needs root" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "no domain 'nobody'"),
        (("a", "--snaplen", "0"), "1 to 2048 bytes"),
        (("a", "--rate", "-1"), "0, for any number"),
        (("a", "--verdict", "lost"), "is none of to_domain, to_dom0"),
        (("a", "-w", "/nowhere/file"), "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_asked_is_said(host: Host, arguments: tuple[str, ...], said: str) -> None:
    done = host.vfr("capture", *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert _captures(host) == {}


def test_words_of_a_wish() -> None:
    assert wish().verdicts == set(_abi.Verdict) - {_abi.Verdict.VERDICTS}
    assert wish(["POLICY", "to_lan"]).verdicts == {_abi.Verdict.DROP_POLICY, _abi.Verdict.TO_LAN}
    assert all(v.name.startswith("DROP_") for v in wish(dropped=True).verdicts)
    with pytest.raises(UsageError):
        wish(snap=SNAP_MAX + 1)
    assert str(Totals(9, 2, 1)) == "3 lost: 2 over --rate, 1 for want of room"


def test_whatever_a_guest_writes_into_a_frame_is_shown_as_plain_text() -> None:
    rng = Random(8)
    heads = [
        bytes(12) + kind for kind in (b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00\x00\x07\x08\x00", b"\x1b[")
    ]
    for number in range(3000):
        data = (rng.choice(heads) + rng.randbytes(60))[: rng.randrange(80)]
        packet = Packet(10**18, "a", "from", None, "TO_LAN", None, None, None, 80, 0, number, data)
        assert line(packet).isascii() and line(packet).isprintable(), data.hex()
        assert comment(packet).isprintable()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("", "cut short after 0 bytes"),
        ("feffffffffff0200000000020800" + "45", "cut short after 15 bytes"),
        ("feffffffffff02000000000288a2", "ether 0x88a2 02:00:00:00:00:02 > fe:ff:ff:ff:ff:ff"),
        ("ffffffffffff0200000000020806" + "0001080006040001" + "020000000002" + "a9fe0102" + "00" * 6 + "a9fe0100",
         "arp who has 169.254.1.0, asks 169.254.1.2"),
        ("feffffffffff020000000002" + "81000007" + "0800" + "450000280000000040060000a9fe0102c000020b" + "00140050"
         + "00" * 8 + "5002", "vlan 7 tcp 169.254.1.2:20 > 192.0.2.11:80 [S]"),
        ("feffffffffff0200000000020800" + "450000280000000040010000a9fe0102c000020b" + "0800",
         "icmp 169.254.1.2 > 192.0.2.11 echo"),
        ("feffffffffff0200000000020800" + "450000280000200140110000a9fe0102c000020b",
         "udp 169.254.1.2 > 192.0.2.11 fragment at 8"),
    ],
)  # fmt: skip
def test_what_a_frame_says_that_it_is(frame: str, said: str) -> None:
    assert summary(bytes.fromhex(frame)) == said
