"""Save, restore, move: what a domain has lives on, a damaged or dishonest file is refused, and a death loses nothing.

guests vt-a, vt-b, vt-c --- vt-dom0 --- eth0 192.0.2.1/24 --- vt-lan 192.0.2.11 (--- vu-dom0, which takes 192.0.2.1 over)
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.dying import died
from support.host import Host, run

from vfr import saved as files
from vfr.errors import UsageError, VfrError
from vfr.registry import Domain

AWAY_S = 150 if os.environ.get("VFR_LONG") else 2
STRIDE = 1 if os.environ.get("VFR_LONG") else 4  # of the steps at which a command is killed
CHUNKS = 400 if os.environ.get("VFR_LONG") else 120

_SENDER = """
import socket, sys, time, random, hashlib
one = socket.create_connection((sys.argv[1], 9000), timeout=600)
made, total = random.Random(7), hashlib.sha256()
for n in range(int(sys.argv[2])):
    part = made.randbytes(40_000)
    total.update(part)
    one.sendall(part)
    if n == 9:
        print("begun", flush=True)
    time.sleep(0.01)
one.shutdown(socket.SHUT_WR)
print(total.hexdigest(), one.recv(64).decode(), flush=True)
"""
_RECEIVER = """
import socket, hashlib
waiting = socket.create_server(("", 9000))
print("up", flush=True)
one, total = waiting.accept()[0], hashlib.sha256()
while part := one.recv(1 << 16):
    total.update(part)
one.sendall(total.hexdigest().encode())
"""


def started(host: Host, node: str, script: str, *arguments: str) -> subprocess.Popen[str]:
    argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", script, *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("vt") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        yield one


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.vfr"


# Conversations


class Ssh:
    """A shell of `cat` by a real ssh, from one node to another's sshd."""

    def __init__(self, host: Host, server: str, client: str, address: str, port: int, files: Path) -> None:
        key, config = files / f"key-{server}", files / f"sshd-{server}"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        config.write_text(
            f"HostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nUseDNS no\nPidFile none\n"
            "PermitRootLogin prohibit-password\n"
        )
        enter = ["ip", "netns", "exec", host.ns(server), "sh", "-c"]
        serve = f"mkdir -p /run/sshd; exec /usr/sbin/sshd -D -f {config}"
        self.server = subprocess.Popen([*enter, serve], text=True, stderr=subprocess.DEVNULL)
        self._until_it_listens(host, server)
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IPQoS=none"]
        ssh = ["ssh", "-T", "-F", "none", "-i", str(key), "-p", str(port), *(w for o in options for w in ("-o", o))]
        argv = ["ip", "netns", "exec", host.ns(client), *ssh, f"root@{address}", "cat"]
        self.client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @staticmethod
    def _until_it_listens(host: Host, node: str) -> None:
        deadline = time.monotonic() + 20
        while ":22 " not in host.sh(node, "ss -ltn"):
            assert time.monotonic() < deadline, "sshd never listened"
            time.sleep(0.05)

    def says(self, word: str) -> str:
        assert self.client.stdin is not None
        self.client.stdin.write(f"{word}\n")
        self.client.stdin.flush()
        return line(self.client)

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.client, self.server):
            one.kill()
            one.communicate()


def frozen(host: Host, guest: str, how: signal.Signals) -> None:
    """The guest's processes stop, or go on, as a suspended machine's."""
    for pid in host.sh("dom0", f"ip netns pids {host.ns(guest)}").split():
        os.kill(int(pid), how)


def knocks(host: Host, port: int) -> str:
    """What somebody on the LAN hears who opens a connection now."""
    script = "import socket,sys\ntry: socket.create_connection(('192.0.2.1', int(sys.argv[1])), 1.2); print('in')\n"
    script += "except OSError as e: print(type(e).__name__)\n"
    with started(host, "lan", script, str(port)) as one:
        return line(one)


def moved_here(host: Host, file: Path) -> None:
    host.vfr("restore", "a", str(file))


def under_another_slot(host: Host, file: Path) -> None:
    """What was held for it is given up, and somebody else has its slot."""
    host.vfr("domain", "remove", "a")
    host.add("c", "--address", "169.254.1.9")
    host.vfr("restore", "a", str(file))


def to_another_host(host: Host, file: Path, other: Host) -> None:
    """vu-dom0 gets a cable to the LAN, and the address; vt-dom0 has lost both."""
    host.sh("dom0", "ip link set eth0 down; ip addr flush dev eth0")
    host.sh("lan", "ip addr flush dev eth0")
    run(
        "ip",
        "-n",
        other.ns("dom0"),
        "link",
        "add",
        "lan0",
        "type",
        "veth",
        "peer",
        "name",
        "eth1",
        "netns",
        host.ns("lan"),
    )
    other.sh("dom0", "ip addr flush dev eth0; ip addr add 192.0.2.1/24 dev lan0; ip link set lan0 up")
    host.sh("lan", "ip addr add 192.0.2.11/24 dev eth1; ip link set eth1 up; ip neigh flush all")
    other.vfr("nat", "enable", "--uplink", "lan0")
    other.vfr("restore", "a", str(file), "--netns", host.ns("a"))


@pytest.mark.parametrize("how", ["here", "another slot", "another host"])
def test_conversations_live_on(host: Host, file: Path, tmp_path: Path, how: str) -> None:
    """A transfer, and ssh both ways, while the domain is away for a time and comes back."""
    host.add("a")
    with ExitStack() as stack:
        receiver = stack.enter_context(ending(started(host, "lan", _RECEIVER)))
        assert line(receiver) == "up"
        sender = stack.enter_context(ending(started(host, "a", _SENDER, "192.0.2.11", str(CHUNKS))))
        inward = stack.enter_context(Ssh(host, "a", "lan", "192.0.2.1", 2202, tmp_path))
        outward = stack.enter_context(Ssh(host, "lan", "a", "192.0.2.11", 22, tmp_path))
        assert (inward.says("one"), outward.says("one")) == ("one", "one")
        assert line(sender) == "begun"
        frozen(host, "a", signal.SIGSTOP)
        saved = json.loads(host.vfr("save", "a", str(file), "--json").stdout)
        assert (saved["sessions"], saved["inbound"]) == (2, 1)
        assert host.json("domain", "show", "a")["state"] == "saved"
        assert knocks(host, 2202) == "TimeoutError", "silence, and no reset from the host"
        time.sleep(AWAY_S)  # it is to be away for a time: nothing is waited for
        if how == "here":
            moved_here(host, file)
        elif how == "another slot":
            under_another_slot(host, file)
        else:
            other = stack.enter_context(Host("vu"))
            to_another_host(host, file, other)
        frozen(host, "a", signal.SIGCONT)
        assert (inward.says("two"), outward.says("two")) == ("two", "two")
        sent, received = line(sender).split()
        assert sent == received and len(sent) == 64, "bit for bit"


def without_times(file: Path) -> dict[str, object]:
    found = files.read(file)
    rows = {
        name: sorted(str(replace(r, left_ms=1)) for r in getattr(found, name))
        for name in ("sessions", "inbound", "mappings")
    }
    return {**rows, "domain": found.domain}


def test_what_is_restored_is_what_was_saved(host: Host, tmp_path: Path) -> None:
    """Sessions in many states: established, half open, over; and the counts that the fastpath keeps of them."""
    host.add("a")
    talk = """
import socket
kept = []
for port in (9000, 9000, 9000):
    one = socket.create_connection(("192.0.2.11", port)); kept.append(one)
kept.pop().close()
half = socket.socket(); half.setblocking(False); half.connect_ex(("192.0.2.77", 9)); kept.append(half)
dgram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); dgram.sendto(b"x", ("192.0.2.11", 53))
print("done", flush=True); input()
"""
    with ending(started(host, "lan", _RECEIVER)) as receiver:
        assert line(receiver) == "up"
        argv = ["ip", "netns", "exec", host.ns("a"), sys.executable, "-c", talk]
        with ending(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as talker:
            assert line(talker) == "done"
            frozen(host, "a", signal.SIGSTOP)
            first, second = tmp_path / "1", tmp_path / "2"
            host.vfr("save", "a", str(first))
            host.sh("dom0", "ip link set eth0 down")  # nothing from the LAN in between
            host.vfr("restore", "a", str(first))
            host.vfr("save", "a", str(second))
            assert without_times(first) == without_times(second)
            assert len(files.read(first).sessions) >= 4
            assert first.stat().st_mode & 0o777 == 0o600
            frozen(host, "a", signal.SIGCONT)


@pytest.mark.inv(8)
def test_a_peer_that_is_another_one_inherits_nothing(host: Host, file: Path, tmp_path: Path) -> None:
    rules = tmp_path / "all.rules"
    rules.write_text("allow a -> b udp 9\nallow a -> lan\n")
    host.add("a")
    host.add("b")
    host.vfr("apply", str(rules))
    host.sh("a", f"{sys.executable} -c \"import socket; socket.socket(2, 2).sendto(b'x', ('169.254.1.3', 9))\"")
    host.vfr("save", "a", str(file))
    assert [s.remote for s in files.read(file).sessions] == ["169.254.1.3"]
    same = json.loads(host.vfr("restore", "a", str(file), "--json").stdout)
    assert (same["sessions"], same["left_out"]) == (1, 0)
    file.unlink()
    host.vfr("save", "a", str(file))
    host.vfr("domain", "remove", "b")
    host.add("b")
    other = json.loads(host.vfr("restore", "a", str(file), "--json").stdout)
    assert (other["sessions"], other["left_out"]) == (0, 1)


def test_a_clone_comes_back_as_one(host: Host, file: Path) -> None:
    """To the router that it left, and to one that knows nothing of it."""
    host.add("a", "--guest-address", "10.0.2.15", "--guest-gateway", "10.0.2.2")
    before = host.json("domain", "show", "a")
    for leave in ((), ("domain", "remove", "a")):
        assert host.pings("a", "192.0.2.11")
        host.vfr("save", "a", str(file))
        if leave:
            host.vfr(*leave)
        host.vfr("restore", "a", str(file))
        file.unlink()
        assert host.json("domain", "show", "a") == before | {
            "outside_ports": host.json("domain", "show", "a")["outside_ports"]
        }
    assert host.pings("a", "192.0.2.11")


# Conflicts


def test_what_is_its_own_is_held_and_what_is_taken_is_refused(host: Host, file: Path) -> None:
    host.add("a", "--mac", "02:00:00:00:00:aa")
    host.vfr("save", "a", str(file))
    for argv, names in (
        (("domain", "add", "a", "--netns", host.ns("b")), ["'a'"]),
        (("domain", "add", "b", "--netns", host.ns("b"), "--address", "169.254.1.2"), ["169.254.1.2", "'a'"]),
        (("domain", "add", "b", "--netns", host.ns("b"), "--mac", "02:00:00:00:00:aa"), ["02:00:00:00:00:aa", "'a'"]),
        (("save", "a", "/tmp/x"), ["'a'", "restore"]),
        (("restore", "b", str(file)), ["'a'", "'b'"]),
        (("restore", "a", str(file), "--netns", "vt-none"), ["vt-none"]),
        (("restore", "a", str(file), "--tap", "eth0"), ["eth0"]),
        (("restore", "a", "/nonexistent"), ["/nonexistent"]),
    ):
        done = host.vfr(*argv, check=False)
        assert done.returncode in (1, 2) and all(n in done.stderr for n in names), (argv, done.stderr)
        assert "Traceback" not in done.stderr
    host.add("b")
    blocks = [d["outside_ports"] for d in host.json("domain", "list")]
    assert len(set(blocks)) == 2
    assert host.pings("b", "192.0.2.11")
    host.vfr("restore", "a", str(file))
    assert host.pings("a", "192.0.2.11")
    again = host.vfr("save", "a", str(file), check=False)
    assert again.returncode == 1 and "there already" in again.stderr
    assert host.pings("a", "192.0.2.11")


def test_taken_ports_and_another_address_are_told_with_both_sides(host: Host, file: Path, tmp_path: Path) -> None:
    host.add("a")
    assert host.pings("a", "192.0.2.11")
    host.vfr("save", "a", str(file))
    with Host("vu") as other:
        other.sh("dom0", "ip addr flush dev eth0; ip addr add 192.0.2.2/24 dev eth0")
        other.vfr("nat", "enable", "--uplink", "eth0")
        refused = other.vfr("restore", "a", str(file), "--netns", host.ns("a"), check=False)
        assert refused.returncode == 1 and "192.0.2.1" in refused.stderr and "192.0.2.2" in refused.stderr
        assert other.json("domain", "list") == []
        other.add("c", "--address", "169.254.1.8")
        taken = other.vfr("restore", "a", str(file), "--netns", host.ns("a"), check=False)
        assert taken.returncode == 1 and "'a'" in taken.stderr and "'c'" in taken.stderr and "16384" in taken.stderr
        other.vfr("restore", "a", str(file), "--netns", host.ns("a"), "--without-sessions")
        assert other.json("domain", "show", "a")["state"] == "up"


def test_a_guest_may_not_believe_what_no_guest_here_may(host: Host, file: Path) -> None:
    host.add("a", "--guest-address", "192.0.2.9")
    host.vfr("save", "a", str(file))
    host.vfr("domain", "remove", "a")
    host.sh("dom0", "ip addr flush dev eth0; ip addr add 192.0.2.9/24 dev eth0")
    host.vfr("nat", "enable", "--uplink", "eth0")
    refused = host.vfr("restore", "a", str(file), "--without-sessions", check=False)
    assert refused.returncode == 1 and "192.0.2.9" in refused.stderr, refused.stderr
    assert host.json("domain", "list") == []


# Files


def small_file() -> files.Saved:
    domain = Domain(2, "a", "netns", "vt-a", "vif-a", IPv4Address("169.254.1.2"), "02:00:00:00:00:aa", 1, 16384, 64)
    lan = files.Session("192.0.2.11", 80, 4000, 6, 60_000, None, 16390, 3, 9)
    entered = files.Session("192.0.2.11", 4711, 22, 6, 60_000, None, 2202, 3, 9)
    return files.Saved("0" * 32, "192.0.2.1", domain, (lan,), (entered,), (files.Mapping(4000, 6, 16390, 60_000),))


def test_a_damaged_file_is_refused() -> None:
    raw = files.encode(small_file())
    assert files.decode(raw, "x") == small_file()
    for at in range(len(raw)):
        for changed in (raw[at] ^ 1, raw[at] ^ 0x80):
            with pytest.raises(VfrError):
                files.decode(raw[:at] + bytes([changed]) + raw[at + 1 :], "x")
        with pytest.raises(VfrError):
            files.decode(raw[:at], "x")
    with pytest.raises(VfrError):
        files.decode(raw + b" ", "x")
    with pytest.raises(VfrError, match="version '2'"):
        files.decode(raw.replace(b" 1 ", b" 2 ", 1), "x")


def _session(**other: object) -> Callable[[files.Saved], files.Saved]:
    return lambda s: replace(s, sessions=(replace(s.sessions[0], **other),))  # type: ignore[arg-type]


def _entered(**other: object) -> Callable[[files.Saved], files.Saved]:
    return lambda s: replace(s, inbound=(replace(s.inbound[0], **other),))  # type: ignore[arg-type]


def _mapping(**other: object) -> Callable[[files.Saved], files.Saved]:
    return lambda s: replace(s, mappings=(replace(s.mappings[0], **other),))  # type: ignore[arg-type]


# Each has a right sum, and is not what a domain could have made.
DISHONEST: dict[str, Callable[[files.Saved], files.Saved]] = {
    "a port of somebody else's": lambda s: _mapping(outside_port=16500)(_session(outside_port=16500)(s)),
    "a session by a port that is not mapped": _session(outside_port=16391),
    "a pool's address on the LAN": _session(remote="169.254.1.3"),
    "loopback": _entered(remote="127.0.0.1"),
    "multicast": _session(remote="224.0.0.1"),
    "no address": _session(remote="x"),
    "an address in another form": _session(remote="192.0.2.011"),
    "a time for ever": _session(left_ms=(1 << 32) - 1),
    "a negative time": _mapping(left_ms=-1),
    "no number": _session(sequence="7"),
    "a truth": _session(sequence=True),
    "a TCP state that there is not": _session(tcp_state=8),
    "TCP without a state": _session(tcp_state=0),
    "a protocol without ports": _session(protocol=47, tcp_state=0),
    "inbound by a port of the block": _entered(outside_port=16390),
    "inbound from a domain": _entered(peer=3),
    "an outside port between domains": _session(peer=3, remote="169.254.1.3"),
    "a session twice": lambda s: replace(s, sessions=s.sessions * 2),
    "a port mapped twice": lambda s: replace(s, mappings=(*s.mappings, replace(s.mappings[0], inside_port=5))),
    "more than its quota": lambda s: replace(
        s, domain=replace(s.domain, limits=replace(s.domain.limits, inbound=1)), inbound=s.inbound * 2
    ),
    "ports past the end": lambda s: replace(s, domain=replace(s.domain, port_low=65530)),
    "a kind that there is not": lambda s: replace(s, domain=replace(s.domain, kind="dom0")),
    "no token": lambda s: replace(s, token=""),
}


@pytest.mark.parametrize("what", DISHONEST)
def test_a_dishonest_file_is_refused(what: str) -> None:
    with pytest.raises(VfrError):
        files.decode(files.encode(DISHONEST[what](small_file())), "x")


def test_what_no_version_has_is_refused() -> None:
    for text in (b"[]", b"{}", b"null", b"9" * 5000, b"[" * 100_000, b'{"domain": {}}', b"\xff"):
        head = f"VFR-SAVE 1 {hashlib.sha256(text).hexdigest()} {len(text)}\n".encode()
        with pytest.raises(VfrError):
            files.decode(head + text, "x")
    with pytest.raises(UsageError):
        files.read(Path("/nonexistent"))


def test_a_file_may_not_say_who_has_which_ports(host: Host, file: Path) -> None:
    """With the right token and the right sum, it still gets only what is held for it."""
    host.add("a")
    host.vfr("save", "a", str(file))
    file.write_bytes(files.encode(replace(files.read(file), domain=replace(files.read(file).domain, port_low=16448))))
    done = host.vfr("restore", "a", str(file), check=False)
    assert done.returncode == 1 and "ports" in done.stderr, done.stderr
    assert host.json("domain", "show", "a")["state"] == "saved"


@pytest.mark.inv(12)
def test_a_full_disk_leaves_the_domain_as_it_was(host: Host, tmp_path: Path) -> None:
    host.add("a")
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk))
    try:
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        assert host.pings("a", "192.0.2.11")
        done = host.vfr("save", "a", str(disk / "a.vfr"), check=False)
        assert done.returncode == 1 and "No space left" in done.stderr, done.stderr
        assert [p.name for p in disk.iterdir()] == ["filler"]
    finally:
        run("umount", str(disk))
    assert host.json("domain", "show", "a")["state"] == "up" and host.pings("a", "192.0.2.11")


# Death at every step

_ECHO = """
import socket
one = socket.create_connection(("192.0.2.11", 9001)); one.settimeout(20)
print("in", flush=True)
while input():
    one.sendall(b"x"); print(one.recv(1).decode(), flush=True)
"""
_ECHO_SERVER = """
import socket
waiting = socket.create_server(("", 9001))
print("up", flush=True)
one = waiting.accept()[0]
while part := one.recv(9):
    one.sendall(part)
"""


@pytest.mark.inv(6, 12)
@pytest.mark.parametrize("what", ["save", "restore"])
def test_killed_at_any_step_it_is_wholly_here_or_wholly_in_the_file(host: Host, file: Path, what: str) -> None:
    """One connection from the domain to the LAN lives through all these deaths."""
    host.add("a")
    host.add("b")
    call = {
        "save": f"router.save_domain('a', Path('{file}'))",
        "restore": f"router.restore_domain('a', Path('{file}'))",
    }
    with ending(started(host, "lan", _ECHO_SERVER)) as server:
        assert line(server) == "up"
        argv = ["ip", "netns", "exec", host.ns("a"), sys.executable, "-c", _ECHO]
        with ending(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as client:
            assert line(client) == "in" and client.stdin is not None
            for step in range(1, 100, STRIDE):
                file.unlink(missing_ok=True)
                if what == "restore":
                    host.vfr("save", "a", str(file))
                dead = died(host, call[what], step)
                host.vfr("nat", "enable")  # any command repairs
                state = host.json("domain", "show", "a")["state"]
                assert state in ("up", "saved"), (step, state)
                if state == "saved":
                    host.vfr("restore", "a", str(file))
                client.stdin.write("go\n")
                client.stdin.flush()
                assert line(client) == "x", (step, "the connection lives")
                assert not host.pings("a", "169.254.1.3")
                if not dead:
                    break
            assert step > 6, "it did die at some steps"


@pytest.mark.inv(12)
def test_killed_while_it_arrives_at_another_host_it_arrives_the_next_time(host: Host, file: Path) -> None:
    host.add("a")
    host.vfr("save", "a", str(file))
    host.vfr("domain", "remove", "a")
    for step in range(1, 100, STRIDE):
        dead = died(host, f"router.restore_domain('a', Path('{file}'))", step)
        host.vfr("nat", "enable")
        here = {d["name"]: d["state"] for d in host.json("domain", "list")}
        assert here.get("a", "saved") in ("up", "saved"), (step, here)
        if here.get("a") != "up":
            host.vfr("restore", "a", str(file))
        assert host.pings("a", "192.0.2.11")
        host.vfr("domain", "remove", "a")
        if not dead:
            break
    assert step > 6
