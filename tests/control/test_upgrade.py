"""Another build of the fastpath takes over under traffic, comes so far and dies, or is refused.

a 169.254.1.2  TCP and UDP to lan ------+
b 169.254.1.3  spoofed frames to lan ---+-- tu-dom0 --- tu-lan 192.0.2.11
c 169.254.1.4  UDP from a --------------+
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.dying import program
from support.host import Host, run
from support.long_talk import RECEIVE_UDP, SEND_UDP, TCP, Program
from support.versions import OTHER_NUMBER, Version

RULES = "forward udp 9100 -> c 9100\nallow any -> lan\nallow lan -> c udp 9100\nallow a -> c udp 9102\n"
LONG = bool(os.environ.get("VFR_LONG"))
TIMES = 20 if LONG else 4  # to and fro
STEPS = range(1, 60) if LONG else (2, 4, 9, 10, 60)  # whole, half switched, before and after the exchange, none
SPOOF = """
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
own = s.getsockname()[4]
head = bytes.fromhex("fefffffffffe"[:10] + "ff") + own + b"\\x08\\x00"
def frame(src):
    ip = bytearray(bytes.fromhex("4500002a000100004011") + b"\\0\\0" + socket.inet_aton(src) + socket.inet_aton("192.0.2.11"))
    total = sum(int.from_bytes(ip[i:i + 2], "big") for i in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    ip[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return head + bytes(ip) + bytes.fromhex("1f9023a500160000") + b"spoofed-by-b..."[:14]
print("up", flush=True)
frames, sent = [frame("169.254.1.2"), frame("198.51.100.7"), frame("192.0.2.1")], 0
while not select.select([sys.stdin], [], [], 0.0005)[0]:
    s.send(frames[sent % 3])
    sent += 1
print(sent, flush=True)
"""
WATCH = """
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
print("up", flush=True)
seen = 0
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        seen += b"spoofed-by-b" in s.recv(65536)
    elif sys.stdin in ready:
        break
print(seen, flush=True)
"""
SESSIONS = """
import json
from vfr import _abi
from vfr.kernel.host import Host
from vfr.router import Router
host = Host(Router().instance)
fp = host.fastpath
rows = {}
for slot in sorted(fp.tables()):
    for name in ("sessions", "inbound", "mappings"):
        table = fp.inner(name, slot)
        for key, raw in table.rows():
            what = _abi.Session.from_buffer_copy(raw).outside_port if name != "mappings" else len(raw)
            rows[f"{slot} {name} {key.hex()}"] = what
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return Version(tmp_path_factory.mktemp("other"), OTHER_NUMBER)


@pytest.fixture(params=["tcx", "clsact"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    with Host("tu", {"VFR_ATTACH": request.param}) as one:
        (tmp_path / "one.rules").write_text(RULES)
        one.vfr("nat", "enable", "--uplink", "eth0", "--rules", str(tmp_path / "one.rules"))
        for guest in one.guests:
            one.add(guest)
        yield one


def _sessions(host: Host) -> dict[str, int]:
    argv = ("ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", SESSIONS)
    found: dict[str, int] = json.loads(run(*argv).stdout)
    return found


def _build(host: Host) -> str:
    found: str = host.json("nat", "status")["fastpath"]
    return found


def _drops(host: Host, guest: str) -> dict[str, int]:
    """How many packets of a guest's were dropped, by verdict."""
    found = host.json("stats", guest)[guest]
    return {name: counted["packets"] for name, counted in found.items() if name.startswith("DROP_")}


def _traffic(host: Host, stack: ExitStack) -> tuple[list[Program], list[Program], Program, Program, Program, Program]:
    def start(node: str, code: str, *arguments: str) -> Program:
        return stack.enter_context(Program(host, node, code, *arguments))

    sinks = [
        start("lan", RECEIVE_UDP, "9101"),
        start("c", RECEIVE_UDP, "9102"),
        start("c", RECEIVE_UDP, "9100"),
    ]
    tcp_sink, watch = start("lan", TCP, "listen"), start("lan", WATCH)
    senders = [
        start("a", SEND_UDP, "192.0.2.11", "9101", "100", "0.001"),
        start("a", SEND_UDP, "169.254.1.4", "9102", "100", "0.001"),
        start("lan", SEND_UDP, "192.0.2.1", "9100", "100", "0.001"),
    ]
    return sinks, senders, start("a", TCP, "192.0.2.11"), tcp_sink, start("b", SPOOF), watch


@pytest.mark.inv(6)
@pytest.mark.inv(13)
def test_to_and_fro_under_traffic(host: Host, other: Version) -> None:
    """No datagram is lost, no byte differs, nothing spoofed arrives, and whoever spoke goes on in the same session."""
    first = _build(host)
    with ExitStack() as stack:
        sinks, senders, tcp, tcp_sink, spoofer, watch = _traffic(host, stack)
        before = _sessions(host)
        assert len(before) >= 4
        builds = []
        for number in range(TIMES):
            done = other.vfr(host, "upgrade", "--json") if number % 2 == 0 else host.vfr("upgrade", "--json")
            assert json.loads(done.stdout)["changed"]
            builds.append(_build(host))
        after = _sessions(host)
        assert {key: after.get(key) for key in before} == before, "every session is what it was"
        sent = [int(one.end()) for one in senders]
        said = tcp.end()
        assert said == tcp_sink.line(), "the transfer arrived bit for bit"
        seen = [int(sink.end()) for sink in sinks]
        spoofed, arrived = int(spoofer.end()), int(watch.end())
    print(
        f"{TIMES} upgrades; UDP sent {sent}, seen {seen}; TCP {said[:12]} bytes; spoofed {spoofed}, arrived {arrived}"
    )
    assert seen == sent
    assert spoofed > 100 and arrived == 0
    assert len(set(builds)) == 2 and builds[-1] == first, "and back"
    assert _drops(host, "b")["DROP_SRC_IP"] == spoofed, "dropped one by one, under their name"


@pytest.mark.inv(6)
@pytest.mark.inv(7)
def test_a_rate_holds_across(host: Host, other: Version) -> None:
    """The credit that is used up is not given anew by any upgrade: three would be another 1,500 packets."""
    per_s, burst_s, times = 100, 5, 3
    limits = host.json("domain", "set", "a", "--pps-out", str(per_s), "--burst", f"{burst_s}s")
    with Program(host, "lan", RECEIVE_UDP, "9101") as sink:
        began = time.monotonic()
        with Program(host, "a", SEND_UDP, "192.0.2.11", "9101", "100", "0.002") as sender:
            while not _drops(host, "a").get("DROP_PPS_OUT"):
                assert time.monotonic() < began + 30, "the burst is never used up"
            for number in range(times):
                _ = other.vfr(host, "upgrade") if number % 2 == 0 else host.vfr("upgrade")
            sent = int(sender.end())
        seen, seconds = int(sink.end()), time.monotonic() - began
    print(f"{times} upgrades in {seconds:.1f} s: {sent} sent, {seen} seen")
    assert sent > 2 * seen and per_s * burst_s <= seen <= per_s * (burst_s + seconds) + 2
    assert host.json("domain", "set", "a") == limits


@pytest.mark.inv(12)
def test_killed_at_every_step(host: Host, other: Version) -> None:
    """The next command goes back, or completes; meanwhile and afterwards all that should flow does, and no more."""
    first, seen = _build(host), set()
    pins = Path("/run/vfr/netns") / host.ns("dom0") / "bpf"
    with ExitStack() as stack:
        sinks, senders, tcp, tcp_sink, spoofer, watch = _traffic(host, stack)
        before = _sessions(host)
        for step in STEPS:
            died = other.python(host, program("router.upgrade()"), str(step), check=False).returncode
            assert host.vfr("timers", "--udp", str(300 + step % 2)).returncode == 0
            assert sorted(p.name for p in pins.iterdir() if "." not in p.name) == ["fastpath", "links"], step
            seen.add(_build(host))
            host.vfr("upgrade")
            assert _build(host) == first
            if died == 0:
                break
            assert died == -signal.SIGKILL
        after = _sessions(host)
        assert {key: after.get(key) for key in before} == before
        sent = [int(one.end()) for one in senders]
        assert tcp.end() == tcp_sink.line()
        assert [int(sink.end()) for sink in sinks] == sent
        assert int(spoofer.end()) > 100 and int(watch.end()) == 0
    assert step > 8 and len(seen) == 2, "some went back, some were completed"


def _layout_finding(version: Version, host: Host) -> dict[str, str]:
    """What this version's doctor says of the running fastpath's layout."""
    done = version.vfr(host, "doctor", "--json", check=False)
    assert done.returncode == 1, done.stderr
    found: dict[str, dict[str, str]] = {f["id"]: f for f in json.loads(done.stdout)}
    assert found["layout"]["severity"] == "problem" and "build" not in found
    return found["layout"]


REFUSED = {
    "fields in another order": (
        "vfr_abi.h",
        "\t__u16 to_node;\n\t__u16 first_end;",
        "\t__u16 first_end;\n\t__u16 to_node;",
        "Fragment",
    ),
    "a map of another size": ("maps.h", "max_entries, 192)", "max_entries, 193)", "mappings"),
}


@pytest.mark.inv(6)
@pytest.mark.parametrize("what", REFUSED)
def test_another_layout_is_refused(what: str, tmp_path: Path) -> None:
    file, old, new, name = REFUSED[what]
    strange = Version(tmp_path, (file, old, new))
    with Host("tu") as host:
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.add("a")
        build, before = _build(host), _sessions(host)
        for command in (("upgrade",), ("domain", "limit", "a", "--sessions", "7"), ("stats",)):
            done = strange.vfr(host, *command, check=False)
            assert done.returncode == 1 and name in done.stderr and "vfr upgrade" in done.stderr, (command, done)
            assert "Traceback" not in done.stderr
        finding = _layout_finding(strange, host)
        assert name in finding["text"] and "--lose-sessions" in finding["do"]
        assert _build(host) == build and _sessions(host) == before
        assert host.pings("a", "192.0.2.11")
        assert json.loads(strange.vfr(host, "upgrade", "--lose-sessions", "--json").stdout)["changed"]
        assert host.pings("a", "192.0.2.11") and not host.pings("a", "192.0.2.1")
        assert "vfr upgrade" in host.vfr("stats", check=False).stderr, "and now it is this version that is told"
        host.vfr("upgrade", "--lose-sessions")
        assert _build(host) == build and host.pings("a", "192.0.2.11")


def test_another_verdict_counts_anew(tmp_path: Path) -> None:
    """What only counts and tells is no reason to refuse; it begins anew."""
    text = (Path(__file__).resolve().parents[2] / "fastpath/vfr_abi.h").read_text()
    end = next(line for line in text.splitlines() if line.strip().startswith("VFR_DROP_POLICY,"))
    wider = Version(tmp_path, ("vfr_abi.h", end + "\n", f"\tVFR_DROP_UNHEARD_OF,\n{end}\n"))
    with Host("tu") as host:
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.add("a")
        assert host.pings("a", "192.0.2.11")
        assert wider.vfr(host, "stats", check=False).returncode == 1
        finding = _layout_finding(wider, host)
        assert "Verdict" in finding["text"] and "which keeps conversations" in finding["do"]
        before = _sessions(host)
        done = json.loads(wider.vfr(host, "upgrade", "--json").stdout)
        assert "counters" in done["anew"] and "sessions" not in done["anew"]
        assert host.pings("a", "192.0.2.11")
        assert "TO_LAN" in json.loads(wider.vfr(host, "stats", "a", "--json").stdout)["a"]
        host.vfr("upgrade")
        assert before.items() <= _sessions(host).items()


@pytest.fixture
def simple() -> Iterator[Host]:
    with Host("tu") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        yield one


def test_the_running_build_is_told(simple: Host, other: Version) -> None:
    host = simple
    assert not json.loads(host.vfr("upgrade", "--json").stdout)["changed"], "nothing to do"
    assert host.json("nat", "status")["is_installed"]
    other.vfr(host, "upgrade")
    assert not host.json("nat", "status")["is_installed"]
    assert "vfr upgrade" in host.vfr("nat", "status").stdout
    found = {f["id"]: f for f in json.loads(host.vfr("doctor", "--json", check=False).stdout)}
    assert found["build"]["severity"] == "warning" and "vfr upgrade" in found["build"]["do"]


def test_a_witnessed_one_stays_witnessed(other: Version) -> None:
    """As on kernels before 6.2, where other programs tell the fastpath of offloads."""
    with Host("tu", {"VFR_OFFLOAD": "witness"}) as host:
        enabled = host.vfr("nat", "enable", "--uplink", "eth0", check=False)
        if "witnesses: Operation not permitted" in enabled.stderr:
            pytest.skip("this machine does not permit fentry programs; `make test-6.1` shows it")
        assert enabled.returncode == 0, enabled.stderr
        host.add("a")
        other.vfr(host, "upgrade")
        host.env = {}
        pins = Path("/run/vfr/netns") / host.ns("dom0") / "bpf/fastpath"
        assert {"vif_witness", "uplink_witness", "sorter_witness"} <= {p.name for p in pins.iterdir()}
        assert host.pings("a", "192.0.2.11") and not host.pings("a", "192.0.2.1")
        fetch = "import socket; s = socket.create_connection(('192.0.2.11', 9001)); s.sendall(b'x' * 10**6); s.close()"
        with Program(host, "lan", TCP, "listen") as sink:
            run("ip", "netns", "exec", host.ns("a"), sys.executable, "-c", fetch)
            assert sink.line().startswith("1000000 "), "segments joined by the guest's kernel arrive, too"


def test_two_upgrades_at_once(simple: Host, other: Version) -> None:
    host = simple
    threads = [threading.Thread(target=host.vfr, args=("upgrade",)) for _ in range(2)]
    threads += [threading.Thread(target=other.vfr, args=(host, "upgrade")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.pings("a", "192.0.2.11")
    assert {d["state"] for d in host.json("domain", "list")} == {"up"}
