"""VMs as guests: QEMU with Debian's kernel, on TAPs that VFR made.

    vm1 169.254.1.9 -- tap1 ---.            (by DHCP; in some tests, told)
    vm2 169.254.1.10 - tap2 -- vv-dom0 -- eth0 192.0.2.1 --- vv-lan 192.0.2.11
    vv-a 169.254.1.2 ----------'

A VM's kernel is its own, so it is asked by its serial line, and nothing on this host can have helped.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.fastpath import fastpath_of, slot_of
from support.host import Host, run

from vfr_lab.debian import UnavailableError
from vfr_lab.vm import Card, Image, Vm, image

DOCS = Path(__file__).parents[2] / "docs"
LONG = bool(os.environ.get("VFR_LONG"))
MEBIBYTES, ROUNDS = (32, 5) if LONG else (3, 1)
AWAY_S = 180 if LONG else 1
PATIENCE_S = 300  # emulated, beside others
VM1, VM2, A, LAN = "169.254.1.9", "169.254.1.10", "169.254.1.2", "192.0.2.11"
MAC1, MAC2 = "02:00:00:00:00:09", "02:00:00:00:00:0a"
NO_GUEST_TSO = "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off"
NO_HOST_TSO = "gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"
MODES = {
    "as it comes": Card("tap1", MAC1),
    "mrg_rxbuf=off": Card("tap1", MAC1, options="mrg_rxbuf=off"),
    "checksums alone": Card("tap1", MAC1, options=f"{NO_GUEST_TSO},{NO_HOST_TSO}"),
    "none": Card("tap1", MAC1, options=f"csum=off,guest_csum=off,{NO_GUEST_TSO},{NO_HOST_TSO},mrg_rxbuf=off"),
    "vnet_hdr=off": Card("tap1", MAC1, vnet_hdr=False),
}


class World:
    """The host, with both VMs' domains and the namespace's; the image that VMs boot, and the key that opens them."""

    def __init__(self, host: Host, key: Path, image: Image) -> None:
        self.host, self.key, self.image = host, key, image
        self.first: Vm | None = None

    def vm1(self) -> Vm:
        """A VM on tap1 that tests share."""
        if not self.first:
            self.first = self.boot(Card("tap1", MAC1)).__enter__()
        return self.first

    def free_tap1(self) -> None:
        """The shared VM is killed, as by a crash."""
        if self.first:
            self.first.kill()
        self.first = None

    def boot(self, card: Card, name: str = "vm1", address: str | None = None) -> Vm:
        return Vm(self.image, name, self.host.ns("dom0"), card, address)

    def ssh_argv(self, port: int, command: str) -> list[str]:
        """From the LAN, by the host's address."""
        unasked = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=9"]
        options = [word for option in unasked for word in ("-o", option)]
        there = ["-i", str(self.key), "-p", str(port), "root@192.0.2.1", command]
        return ["ip", "netns", "exec", self.host.ns("lan"), "ssh", "-q", *options, *there]

    def ssh(self, port: int, command: str) -> subprocess.CompletedProcess[str]:
        return run(*self.ssh_argv(port, command))

    def drops(self, name: str) -> dict[str, int]:
        """How many frames of a domain's ended under each verdict."""
        shown = self.host.vfr("stats", name).stdout
        return {verdict: int(count) for verdict, count in re.findall(r"\b(DROP_\w+)\D+?(\d+)", shown)}

    @contextmanager
    def dropping(self, name: str, verdict: str) -> Iterator[None]:
        """What is done meanwhile must end under this verdict."""
        before = self.drops(name).get(verdict, 0)
        yield
        assert self.drops(name).get(verdict, 0) > before, (verdict, self.drops(name))

    @contextmanager
    def lan_runs(self, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program on the LAN, once it has said that it is ready."""
        argv = ["ip", "netns", "exec", self.host.ns("lan"), sys.executable, "-c", program, *arguments]
        with _piped(argv) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield process

    def slot(self, name: str) -> int:
        """Where the fastpath has a domain."""
        with fastpath_of(self.host.ns("dom0")) as fp:
            return slot_of(fp, self.host.json("domain", "show", name)["address"])


@contextmanager
def _piped(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program, killed in the end."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.chmod(0o755)  # QEMU as nobody reads the image
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / "key"))
        try:
            booted = image(work, (work / "key.pub").read_text())
        except UnavailableError as reason:
            pytest.skip(f"no VM to boot: {reason}")
        host = stack.enter_context(Host("vv"))
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.vfr("domain", "add", "vm1", "--tap", "tap1", "--address", VM1, "--mac", MAC1)
        host.vfr("domain", "add", "vm2", "--tap", "tap2", "--address", VM2, "--mac", MAC2)
        host.add("a", "--address", A)
        one = World(host, work / "key", booted)
        stack.callback(one.free_tap1)
        yield one


@pytest.fixture
def vm1(world: World) -> Vm:
    return world.vm1()


@pytest.fixture
def tap1(world: World) -> str:
    """The TAP, with nobody behind it."""
    world.free_tap1()
    return "tap1"


RESOLVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.11", 53))
print("ready", flush=True)
while True:
    query, who = s.recvfrom(512)
    print(who[0], flush=True)
    asked = query[12:].index(0) + 17
    a = bytes.fromhex("c00c000100010000003c0004c0000263")
    s.sendto(query[:2] + bytes.fromhex("8180 0001 0001 0000 0000") + query[12:asked] + a, who)
"""


@pytest.mark.inv(5)
def test_the_lan_reaches_it_by_ssh(world: World, vm1: Vm) -> None:
    assert world.ssh(2209, "hostname").stdout == "vm1\n"


def test_it_has_its_address_by_dhcp(vm1: Vm) -> None:
    """And its way out; by nothing that it brought along."""
    assert f"inet {VM1}/32" in vm1.sh("ip addr show dev eth0")
    routes = vm1.sh("ip route").splitlines()
    assert [route.split()[:3] for route in routes] == [
        ["default", "via", "169.254.1.0"],
        ["169.254.1.0", "dev", "eth0"],
    ]
    assert "vm.address" not in vm1.sh("cat /proc/cmdline")


def test_it_reaches_the_lan_as_the_host(world: World, vm1: Vm) -> None:
    """By ping, and by UDP with a real resolver; TCP is what the transfers below are about."""
    vm1.sh(f"ping -c1 -W5 {LAN}")
    with world.lan_runs(RESOLVER) as resolver:
        assert "192.0.2.99" in vm1.sh(f"nslookup -type=a www.example {LAN}")
        assert resolver.stdout and resolver.stdout.readline() == "192.0.2.1\n"


@pytest.mark.inv(1)
def test_guests_are_apart(world: World, vm1: Vm) -> None:
    """None reaches the other, and vm1's card receives not one frame while others talk; it does when it is meant."""
    received = "cat /sys/class/net/eth0/statistics/rx_packets"
    with world.boot(Card("tap2", MAC2), "vm2") as vm2:
        with world.dropping("vm1", "DROP_POLICY"):  # their MACs given, so that it does not end with ARP
            for address in (A, VM2):
                vm1.sh(f"ip route add {address} via 169.254.1.0 dev eth0")
                assert vm1.run(f"ping -c1 -W1 {address}")[0] == 1
        assert vm2.run(f"nc -w 1 {VM1} 22")[0] == 1
        assert not world.host.pings("a", VM1)
        vm1.sh("ip link set eth0 promisc on")
        before = vm1.sh(received)
        vm2.sh(f"ping -c1 -W5 {LAN}")
        vm2.run(f"arping -c1 -w1 -I eth0 {VM1}")
        assert world.host.pings("a", LAN)
        assert vm1.sh(received) == before
        vm1.sh(f"ping -c1 {LAN}")
        assert vm1.sh(received) != before, "the control: it would have been seen"
        vm1.sh(f"ip link set eth0 promisc off; ip route del {A}; ip route del {VM2}")


@pytest.mark.inv(1)
def test_it_can_be_nobody_else(world: World, vm1: Vm) -> None:
    """As root in its kernel it takes another's address, claims it by ARP, and takes another MAC."""
    vm1.sh(f"ping -c1 -W5 {LAN}")  # so that it knows the gateway's MAC, and need not ask under the other's address
    with world.dropping("vm1", "DROP_SRC_IP"):
        vm1.sh(f"ip addr add {A}/32 dev eth0")
        assert vm1.run(f"ping -c1 -W1 -I {A} {LAN}")[0] == 1
    with world.dropping("vm1", "DROP_ARP_SENDER"):
        vm1.run(f"arping -U -c1 -w1 -I eth0 -s {A} {A}")
        vm1.sh(f"ip addr del {A}/32 dev eth0")
    with world.dropping("vm1", "DROP_SRC_MAC"):
        vm1.sh("ip link set eth0 address 02:00:00:00:00:77")
        assert vm1.run(f"ping -c1 -W1 {LAN}")[0] == 1
        vm1.sh(f"ip link set eth0 address {MAC1}")
    vm1.sh(f"ping -c1 -W5 {LAN}")


def test_a_tap_in_use(world: World, vm1: Vm) -> None:
    """Neither a second QEMU nor a second domain gets it, and the first is none the worse."""
    with pytest.raises(UnavailableError, match=r"tap1.*busy"), world.boot(Card("tap1", MAC1)):
        pass
    refused = world.host.vfr("domain", "add", "vm3", "--tap", "tap1", check=False)
    assert refused.returncode and "tap1" in refused.stderr, refused
    vm1.sh(f"ping -c1 -W5 {LAN}")


PEER = """
import hashlib, random, socket, sys, time
data = random.Random(1).randbytes(int(sys.argv[1]))
with socket.create_server(("192.0.2.11", 5001)) as server:
    print("ready", flush=True)
    while True:
        s = server.accept()[0]
        began, seen = time.monotonic(), hashlib.sha256()
        while more := s.recv(1 << 16):
            seen.update(more)
        print(seen.hexdigest(), time.monotonic() - began, flush=True)
        s.close()
        s = server.accept()[0]
        began = time.monotonic()
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        while s.recv(1 << 16):
            pass
        print(hashlib.sha256(data).hexdigest(), time.monotonic() - began, flush=True)
        s.close()
"""


def _transfers(vm: Vm, lan: subprocess.Popen[str]) -> Iterator[tuple[float, float]]:
    """Rounds of a stream out and one in, each as it was sent: MiB/s (out, in)."""
    assert lan.stdout
    own = vm.sh(f"dd if=/dev/urandom bs=1M count={MEBIBYTES} of=/out 2> /dev/null; sha256sum < /out").split()[0]
    for _ in range(ROUNDS):
        vm.sh(f"nc {LAN} 5001 < /out", PATIENCE_S)
        seen, out_s = lan.stdout.readline().split()
        assert seen == own
        got = vm.sh(f"nc {LAN} 5001 < /dev/null | sha256sum", PATIENCE_S).split()[0]
        given, in_s = lan.stdout.readline().split()
        assert got == given
        yield MEBIBYTES / float(out_s), MEBIBYTES / float(in_s)


@pytest.mark.parametrize("mode", MODES)
def test_a_transfer_is_whole(world: World, tap1: str, mode: str) -> None:
    """Both ways, bit for bit, whatever VM and host agreed on to leave to each other. That the VM before was killed
    and this one has its TAP is no matter."""
    with world.boot(MODES[mode]) as vm, world.lan_runs(PEER, str(MEBIBYTES << 20)) as lan:
        out, back = zip(*_transfers(vm, lan), strict=True)
    print(f"\n| {mode} | {statistics.median(out):.0f} | {statistics.median(back):.0f} |")


def test_the_wrong_mac_can_be_found(world: World, tap1: str) -> None:
    """QEMU's mac= is not the domain's: nothing passes, and statistics, events and `vfr explain` say why."""
    with world.boot(Card(tap1, "02:00:00:00:00:aa"), address=VM1) as vm:
        with world.dropping("vm1", "DROP_SRC_MAC"):
            assert vm.run(f"ping -c1 -W1 {LAN}")[0] == 1
        assert "vm1: DROP_SRC_MAC" in world.host.vfr("events", "--count", "100", "--wait", "1").stdout
        for question in (("vm1", "lan", "icmp"), ("lan", "vm1", "tcp/22")):
            stages = world.host.json("explain", *question)["stages"]
            (card,) = (text for stage, text in stages if stage == "card")
            assert MAC1 in card and "DROP_SRC_MAC" in card


# /dev/net/tun is open to everybody on any Debian, but not on a machine that has no udev. The mount is QEMU's own.
AS_NOBODY = (
    "sh",
    "-c",
    """
set -e
mount -t tmpfs tmpfs /mnt
mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
exec setpriv --reuid=nobody --clear-groups --bounding-set=-all "$@"
""",
    "as-nobody",
)


def _recipe(begins: str) -> list[str]:
    """The words of the one command in docs/vm.md that begins so."""
    text = re.sub(r"\\\n\s*", "", (DOCS / "vm.md").read_text())
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith(begins))
    return shlex.split(line)


def _card(words: list[str]) -> list[str]:
    """Of QEMU's arguments those that a recipe is about; -smp, since a Linux guest has no more queues than CPUs."""
    pairs = [words[n : n + 2] for n, word in enumerate(words) if word in ("-smp", "-netdev", "-device", "-incoming")]
    return [word for pair in pairs for word in pair]


def test_a_tap_of_ones_own(world: World) -> None:
    """docs/vm.md: several queues, opened by a QEMU without any privilege, is an interface that is there."""
    host = world.host
    host.sh("dom0", shlex.join(_recipe("ip tuntap add tap3")))
    try:
        host.vfr(*_recipe("vfr domain add vm3")[1:])
        card = _card(_recipe("qemu-system-x86_64 -m 1G -smp 2"))
        with Vm(world.image, "vm3", host.ns("dom0"), card, through=AS_NOBODY) as vm:
            assert Path(f"/proc/{vm.process.pid}").stat().st_uid, "QEMU is not root"
            vm.sh(f"ping -c1 -W5 {LAN}")
            assert vm.sh("ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
            assert world.ssh(2211, "hostname").stdout == "vm3\n"
            with world.lan_runs(PEER, str(MEBIBYTES << 20)) as lan:
                assert list(_transfers(vm, lan))
    finally:
        host.vfr("domain", "remove", "vm3", check=False)
        host.sh("dom0", "ip link del tap3")


def test_the_recipe_in_the_docs(world: World, tap1: str) -> None:
    """Its network arguments are those that QEMU is started with here, and the guest is told its address as said there."""
    card = _card(_recipe("qemu-system-x86_64 -m 1G -drive"))
    with Vm(world.image, "vm1", world.host.ns("dom0"), card, VM1) as vm:
        vm.sh(f"ping -c1 -W5 {LAN}")
        assert world.ssh(2209, "hostname").stdout == "vm1\n"


SLOW = """
import hashlib, socket, sys
with socket.create_server(("192.0.2.11", 5003)) as server:
    print("ready", flush=True)
    s = server.accept()[0]
    seen = hashlib.sha256(s.recv(65536, socket.MSG_WAITALL))
    print("begun", flush=True)
    sys.stdin.readline()
    while more := s.recv(1 << 16):
        seen.update(more)
    print(seen.hexdigest(), flush=True)
"""


class Monitor:
    """QEMU's, by a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE_S)
            self._connect(s)
            self._until_prompt(s)
            s.sendall(f"{command}\n".encode())
            return self._until_prompt(s)

    def _connect(self, s: socket.socket) -> None:
        """As soon as QEMU listens; one before may have left the file."""
        deadline = time.monotonic() + PATIENCE_S
        while s.connect_ex(str(self.path)):
            assert time.monotonic() < deadline, "QEMU has no monitor"
            time.sleep(0.05)

    @staticmethod
    def _until_prompt(s: socket.socket) -> str:
        """What it said; also if it ended."""
        said = b""
        while not said.endswith(b"(qemu) ") and (more := s.recv(4096)):
            said += more
        return said.decode()


@dataclass
class Recipe:
    """docs/save.md's lines, as they are run here: another name, TAP and MAC, and a directory of one's own."""

    before: list[str]
    after: list[str]

    @classmethod
    def read(cls, directory: Path) -> Recipe:
        text = (DOCS / "save.md").read_text()
        lines = text[text.index("(monitor) stop") : text.index("(monitor) cont") + len("(monitor) cont")]
        for old, new in (("/var/lib/vm", str(directory)), ("tap-web", "tap1"), ("MAC", MAC1), (" web ", " vm1 ")):
            assert old in lines
            lines = lines.replace(old, new)
        before, after = re.split(r"#.*\n", lines)
        return cls(before.splitlines(), after.splitlines())


def _save(world: World, vm: Vm, monitor: Monitor, lines: list[str]) -> None:
    for line in lines:
        if line.startswith("vfr "):
            vm.process.wait(PATIENCE_S)
            world.host.vfr(*shlex.split(line)[1:])
        elif line != "(monitor) quit":
            monitor(line.removeprefix("(monitor) "))
        else:
            while "completed" not in (told := monitor("info migrate")):
                assert "failed" not in told, told
                time.sleep(0.1)
            monitor("quit")


def test_a_vm_is_saved_and_its_conversations_live_on(world: World, tap1: str, tmp_path: Path) -> None:
    """docs/save.md: the VM goes into files, and comes back under another slot, which somebody else's took. A transfer that
    it sends and an ssh session from the LAN know nothing of it."""
    monitor, recipe = Monitor(tmp_path / "monitor"), Recipe.read(tmp_path)
    restore, start, go_on = recipe.after
    *device, incoming, ram = _card(shlex.split(start))
    device += ["-monitor", f"unix:{monitor.path},server=on,wait=off"]
    with ExitStack() as stack:
        vm = stack.enter_context(Vm(world.image, "vm1", world.host.ns("dom0"), device))
        slow = stack.enter_context(world.lan_runs(SLOW))
        assert slow.stdin and slow.stdout
        own = vm.sh("dd if=/dev/urandom bs=1M count=8 of=/out 2> /dev/null; sha256sum < /out").split()[0]
        vm.sh(f"nc {LAN} 5003 < /out > /dev/null 2>&1 &")
        ssh = stack.enter_context(_piped(world.ssh_argv(2209, "kept=$$; while read -r line; do eval $line; done")))
        assert ssh.stdin and ssh.stdout
        print("echo one $kept", file=ssh.stdin, flush=True)
        first = ssh.stdout.readline().split()
        assert first[0] == "one" and slow.stdout.readline() == "begun\n"
        _save(world, vm, monitor, recipe.before)
        assert world.host.json("domain", "show", "vm1")["state"] == "saved"
        slot = world.slot("vm1")
        world.host.vfr("domain", "remove", "vm1")
        world.host.vfr("domain", "add", "vm4", "--tap", "tap4", "--address", "169.254.1.12")
        stack.callback(world.host.vfr, "domain", "remove", "vm4")
        time.sleep(AWAY_S)  # it is to be away for a time: nothing is waited for
        world.host.vfr(*shlex.split(restore)[1:])
        assert world.slot("vm1") != slot
        resumed = Vm(world.image, "vm1", world.host.ns("dom0"), [*device, incoming, ram], resumed=True)
        with resumed as vm:
            while "running" not in monitor("info status"):  # not before all of it is there
                monitor(go_on.removeprefix("(monitor) "))
            print("echo two $kept", file=ssh.stdin, flush=True)
            assert ssh.stdout.readline().split() == ["two", first[1]]
            print("go on", file=slow.stdin, flush=True)
            assert slow.stdout.readline().strip() == own
            vm.sh(f"ping -c1 -W5 {LAN}")
