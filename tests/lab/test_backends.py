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

from vfr_lab import Lab, LabError
from vfr_lab.backends import GATEWAY, Backend, backend, names
from vfr_lab.prove import pings, ssh, tcp, udp
from vfr_lab.scenario import JUDGE

pytestmark = pytest.mark.lab

WEB, DB, CI = JUDGE.guests
LAN1 = JUDGE.lan[0].address
DOM0 = JUDGE.dom0.address
JUDGED = [name for name in names() if backend(name).judged]
# Whom web can ping by its inside address, by what each backend's users have. VFR's rules are tested elsewhere.
NEIGHBOURS = {"bridge": True, "bridge-filtered": True, "routed": False, "xen1": True, "vde": True, "vfr": False}
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
import socket, sys, time
line = socket.create_connection(({LAN1!r}, {PORT}), 10).makefile("rwb", buffering=0)
for number in range(100_000):
    line.write(b"%d\\n" % number)
    assert line.readline() == b"%d\\n" % number
    print(number, flush=True)
    time.sleep(0.005)
"""


class MortalLab(Lab):
    """A lab in which commands can break off: `left` are still carried out, `done` were."""

    left: int | None = None
    done = 0

    def _command(self) -> None:
        self.done += 1
        if self.left is not None:
            if self.left == 0:
                raise LabError("broken off")
            self.left -= 1

    def exec(
        self, node: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        self._command()
        return super().exec(node, *command, check=check, timeout=timeout)

    def ip(self, node: str, *arguments: str) -> str:
        self._command()
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
        lab.left = None
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
        yield
        ping.send_signal(SIGINT)
        said = ping.communicate(timeout=10)[0]
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


def test_what_each_has_for_isolation(wired: MortalLab) -> None:
    """Not a judgement: only that each is what it says it is, and `vif` is where the guest's packets are seen."""
    assert pings(wired, "web", DB.address) == NEIGHBOURS[wired.backend.name]
    vif = wired.backend.vif(wired, WEB)
    assert wired.ip("dom0", "link", "show", "dev", vif)


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
    """After `up`, and after an `up` that broke off half way."""
    before = one[1]
    which = wired.backend
    which.down(wired)
    assert picture(wired) == before
    start = wired.done
    which.up(wired)
    wired.left = (wired.done - start) // 2
    with pytest.raises(LabError, match="broken off"):
        which.up(wired)
    wired.left = None
    which.down(wired)
    assert picture(wired) == before
