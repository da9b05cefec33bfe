"""Every backend that is judged does the main job, and leaves its host as it was.

web 169.254.1.2   db .3   ci .7         by the backend
     |             |       |
     +---------- dom0 -----+
                   | eth0 192.0.2.1
                [ switch ] --- lan1 192.0.2.11
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from vfr_lab import Lab, LabError
from vfr_lab.backends import GATEWAY, Backend, backend, names
from vfr_lab.backends.wiring import mac
from vfr_lab.capture import Capture
from vfr_lab.lab import wait_until
from vfr_lab.prove import pings, ssh, tcp, udp
from vfr_lab.scenario import JUDGE, XEN

pytestmark = pytest.mark.lab

WEB, DB, CI = JUDGE.guests
LAN1 = JUDGE.lan[0].address
DOM0 = JUDGE.dom0.address
JUDGED = [name for name in names() if backend(name).judged]
ANY = "ff:ff:ff:ff:ff:ff"
OWN, NOBODY = mac(WEB), "02:00:00:00:00:99"
# Frames that web sends to everybody, which say that they are for db, and the backends by which db gets them.
FRAMES: dict[str, tuple[Packet, str]] = {
    "its own address": (
        Ether(src=OWN, dst=ANY) / IP(src=WEB.address, dst=DB.address) / UDP(dport=9),
        "bridge bridge-filtered xen1 vde",
    ),
    "the address of ci": (
        Ether(src=OWN, dst=ANY) / IP(src=CI.address, dst=DB.address) / UDP(dport=9),
        "bridge xen1 vde",
    ),
    "no address, as DHCP": (
        Ether(src=OWN, dst=ANY) / IP(src="0.0.0.0", dst=DB.address) / UDP(sport=68, dport=67),
        "bridge bridge-filtered xen1 vde",
    ),
    "another MAC": (
        Ether(src=NOBODY, dst=ANY) / IP(src=WEB.address, dst=DB.address) / UDP(dport=10),
        "bridge vde",
    ),
    "ARP": (
        Ether(src=OWN, dst=ANY) / ARP(hwsrc=OWN, psrc=WEB.address, pdst=DB.address),
        "bridge bridge-filtered xen1 vde",
    ),
    "ARP for an address that nobody has": (
        Ether(src=OWN, dst=ANY) / ARP(hwsrc=OWN, psrc="169.254.1.9", pdst=DB.address),
        "bridge xen1 vde",
    ),
    "an announcement of QEMU": (
        Ether(src=OWN, dst=ANY, type=0x8035) / ARP(op=3, hwsrc=OWN, hwdst=OWN, psrc="0.0.0.0", pdst="0.0.0.0"),
        "bridge vde",
    ),
    "a private ethertype": (Ether(src=OWN, dst=ANY, type=0x88B5) / b"hello", "bridge vde"),
}
_SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind(("eth0", 0))
    for frame in sys.argv[1:]:
        wire.send(bytes.fromhex(frame))
"""
PORT = 7007
_SERVER = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as door:
    print("ready", flush=True)
    line = door.accept()[0].makefile("rwb", buffering=0)
    while said := line.readline():
        line.write(said)
"""
_CLIENT = f"""
import socket, time
line = socket.create_connection(({LAN1!r}, {PORT}), 10).makefile("rwb", buffering=0)
for number in range(100_000):
    line.write(b"%d\\n" % number)
    if line.readline() != b"%d\\n" % number:
        break
    print(number, flush=True)
    time.sleep(0.005)
"""


class MortalLab(Lab):
    """A lab in which the first command about the guest `breaks_at` fails."""

    breaks_at: str | None = None

    def _command(self, words: tuple[str, ...]) -> None:
        if self.breaks_at and {self.breaks_at, self.netns(self.breaks_at)} & {*words}:
            raise LabError("broken off")

    def exec(
        self, node: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        self._command((node, *command))
        return super().exec(node, *command, check=check, timeout=timeout)

    def ip(self, node: str, *arguments: str) -> str:
        self._command((node, *arguments))
        return super().ip(node, *arguments)


class Bare(Backend):
    """Wires nothing, and looks at dom0 as nobody has touched it yet."""

    name, sentence, programs, judged = "bare", "no wires", (), False
    before: dict[str, object]

    def up(self, lab: Lab) -> None:
        lab.exec("dom0", "nft", "add table inet others; add chain inet others c; add rule inet others c accept")
        self.before = picture(lab)

    def down(self, lab: Lab) -> None: ...
    def attach(self, lab: Lab, guest: object) -> None: ...
    def detach(self, lab: Lab, guest: object) -> None: ...
    def reload(self, lab: Lab) -> None: ...
    def vif(self, lab: Lab, guest: object) -> str:
        raise LookupError


def picture(lab: Lab) -> dict[str, object]:
    """Everything of dom0's network that a backend could have changed, and the lab's processes."""
    shown: dict[str, object] = {
        what: json.loads(lab.ip("dom0", "-j", what, "show")) for what in ("link", "address", "route", "rule")
    }
    shown["nft"] = json.loads(lab.exec("dom0", "nft", "-j", "list", "ruleset").stdout)
    sysctls = lab.exec("dom0", "sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|bridge)\.").stdout.splitlines()
    assert len(sysctls) > 100
    shown["sysctls"] = sorted(sysctls)
    shown["guests"] = {g.name: json.loads(lab.ip(g.name, "-j", "link", "show")) for g in JUDGE.guests}
    shown["processes"] = sorted(lab._processes())
    shown["by file"] = [line for line in _command_lines() if f"{lab.files}/vde" in line]
    return shown


def _command_lines() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def one() -> Iterator[tuple[MortalLab, dict[str, object]]]:
    bare = Bare()
    lab = MortalLab(JUDGE, "vb-", bare)
    try:
        lab.up()
        yield lab, bare.before
    finally:
        lab.breaks_at = None
        lab.down()


@pytest.fixture(scope="module", params=JUDGED)
def wired(request: pytest.FixtureRequest, one: tuple[MortalLab, dict[str, object]]) -> MortalLab:
    lab, _ = one
    lab.rewire(backend(request.param))
    return lab


@contextmanager
def conversation(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """A TCP connection of web to lan1 on which each line is answered; its client says the number of each."""
    argv = [lab.argv(node, ["python3", "-c", script]) for node, script in (("lan1", _SERVER), ("web", _CLIENT))]
    with subprocess.Popen(argv[0], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            with subprocess.Popen(argv[1], stdout=subprocess.PIPE, text=True) as client:
                try:
                    yield client
                finally:
                    client.kill()
        finally:
            server.kill()


def go_on(client: subprocess.Popen[str], until: int) -> None:
    """Reads on until the client has had that many answers. Its end comes up as an empty line."""
    assert client.stdout is not None
    while (said := client.stdout.readline()) and int(said) < until:
        pass
    assert said, "the conversation has ended"


def last(client: subprocess.Popen[str]) -> int:
    assert client.stdout is not None
    return int(client.stdout.readline())


@contextmanager
def pinging(lab: Lab, most_lost: int = 1) -> Iterator[None]:
    """web pings lan1 fifty times a second. The last one may still be on its way at the end."""
    argv = ["ip", "netns", "exec", lab.netns("web"), "ping", "-n", "-i", "0.02", LAN1]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ping:
        try:
            yield
            ping.send_signal(SIGINT)
            said = ping.communicate(timeout=10)[0]
        finally:
            ping.kill()
    sent, got = (int(said.split(word)[0].split()[-1]) for word in (" packets transmitted", " received"))
    assert 0 < sent <= got + most_lost, said


def test_the_main_job(wired: MortalLab) -> None:
    assert ssh(wired, "lan1", "web", DOM0, 2202) == "web"
    assert ssh(wired, "lan1", "ci", DOM0, 2207) == "ci"
    assert ssh(wired, "dom0", "db", wired.backend.address(wired, "dom0", "db")) == "db"
    assert tcp(wired, "web", LAN1, 7) == DOM0
    assert udp(wired, "web", LAN1, 7) == DOM0
    assert pings(wired, "web", LAN1)
    assert tcp(wired, "db", JUDGE.inet.address, 7) == DOM0


def test_each_is_what_it_says(wired: MortalLab) -> None:
    """No judgement of it: what of web's frames reach db is what this backend's filters let through, by its sources."""
    frames = {what: bytes(frame) for what, (frame, _) in FRAMES.items()}
    expected = {what for what, (_, by) in FRAMES.items() if wired.backend.name in by.split()}
    with Capture(wired, "db") as capture:
        wired.exec("web", "python3", "-c", _SEND, *(frame.hex() for frame in frames.values()))

        def seen() -> set[str]:
            return {what for what, frame in frames.items() if frame in capture.file.read_bytes()}

        wait_until(lambda: expected <= seen(), f"of {expected} only {seen()}")
        assert "SSH" in tcp(wired, "lan1", DOM0, 2203), "and what came after them has come"
    assert seen() == expected


def test_a_guest_has_an_interface_in_dom0(wired: MortalLab) -> None:
    """Where what it sends is seen, and where a benchmark or an attack looks at it."""
    with Capture(wired, "dom0", wired.backend.vif(wired, WEB)) as capture:
        assert pings(wired, "web", LAN1)
    assert capture.lines(f"icmp and src {WEB.address}")


def test_later_commands_know_scenario_and_backend(wired: MortalLab) -> None:
    """As `vfr-lab status` and `vfr-lab down` do, which get no more than a prefix."""
    later = Lab.of(wired.prefix)
    assert later.scenario == JUDGE
    assert later.is_up()
    assert later.status()["backend"] == wired.backend.name
    with pytest.raises(LabError, match="scenario judge"):
        Lab(XEN, wired.prefix).up()


def test_addresses(wired: MortalLab) -> None:
    address = wired.backend.address
    assert address(wired, "web", "db") == DB.address
    assert address(wired, "web", "lan1") == LAN1
    assert address(wired, "lan1", "web") == address(wired, "lan1", "dom0") == DOM0
    assert address(wired, "web", "dom0") == GATEWAY


def test_one_guest_goes_and_comes_while_another_speaks(wired: MortalLab) -> None:
    with conversation(wired) as client, pinging(wired):
        go_on(client, 10)
        wired.backend.detach(wired, CI)
        assert "eth0" not in wired.ip("ci", "link", "show")
        assert "SSH" not in tcp(wired, "lan1", DOM0, 2207)
        wired.backend.attach(wired, CI)
        assert ssh(wired, "lan1", "ci", DOM0, 2207) == "ci"
        assert tcp(wired, "ci", LAN1, 7) == DOM0
        go_on(client, last(client) + 100)


def test_reload_keeps_a_conversation(wired: MortalLab) -> None:
    with conversation(wired) as client:
        go_on(client, 10)
        for _ in range(3):
            wired.backend.reload(wired)
            go_on(client, last(client) + 50)
    assert ssh(wired, "lan1", "web", DOM0, 2202) == "web"


def test_down_leaves_dom0_as_it_was(wired: MortalLab, one: tuple[MortalLab, dict[str, object]]) -> None:
    """After `up`; and after two that broke off with the first guest wired, the second on what the first one left."""
    which = wired.backend
    which.down(wired)
    assert picture(wired) == one[1]
    wired.breaks_at = "db"
    for _ in range(2):
        with pytest.raises(LabError, match="broken off"):
            which.up(wired)
    wired.breaks_at = None
    assert picture(wired) != one[1]
    which.down(wired)
    assert picture(wired) == one[1]


def test_direct_is_cables_and_nothing_else() -> None:
    bare, direct = Bare(), backend("direct")
    lab = Lab(JUDGE, "vd-", bare)
    try:
        lab.up()
        lab.rewire(direct)
        for one, other in (("web", "db"), ("web", "lan1"), ("dom0", "web")):
            assert pings(lab, one, direct.address(lab, one, other))
            assert pings(lab, other, direct.address(lab, other, one))
        with pytest.raises(LookupError, match="db and lan1"):
            direct.address(lab, "db", "lan1")
        assert "unreachable" in tcp(lab, "db", LAN1, 7)
        direct.detach(lab, DB)
        assert pings(lab, "web", direct.address(lab, "web", "lan1"))
        direct.attach(lab, DB)
        assert pings(lab, "db", direct.address(lab, "db", "web"))
        direct.down(lab)
        assert picture(lab) == bare.before
    finally:
        lab.down()
