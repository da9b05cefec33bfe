"""Clones of one snapshot, by real programs: twenty, or with VFR_LONG=1 two hundred.

    vk-1 ... vk-200, each 10.0.2.15, 52:54:00:12:34:56, gateway 10.0.2.2 --- vk-dom0 --- vk-lan 192.0.2.11
    for the router: 169.254.1.2 ... 169.254.1.201; ssh from the LAN by 2202 ... 2401

VFR_LONG=1 has real ssh to all of them, too, otherwise to a few.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.host import Host, run

pytestmark = pytest.mark.lab
COUNT = 200 if os.environ.get("VFR_LONG") else 20  # attaching so many takes minutes
GUEST, MAC, GATEWAY = "10.0.2.15", "52:54:00:12:34:56", "10.0.2.2"
TESTS = Path(__file__).resolve().parents[1]
WITH_SSH = range(1, COUNT + 1) if os.environ.get("VFR_LONG") else (1, 2, COUNT)
_ECHO = """
import socket
one = socket.create_server(("", 7)); print("up", flush=True)
while True:
    peer, who = one.accept()
    peer.sendall(f"{who[0]} {who[1]}".encode())
"""


class _Crowd(Host):
    guests = tuple(str(n) for n in range(1, COUNT + 1))


def _address(number: int) -> str:
    return str(IPv4Address("169.254.1.1") + number)


def _rules() -> str:
    guest = f"guest-address {GUEST} guest-mac {MAC} guest-gateway {GATEWAY}"
    lines = [f"domain c{n} netns vk-{n} address {_address(n)} {guest}" for n in range(1, COUNT + 1)]
    rules = [
        "allow any -> lan",
        "allow lan -> any tcp 22",
        "allow dom0 -> any",
        "allow c1 -> c2",
        "allow any -> dom0 icmp",
    ]
    return "\n".join(["nat eth0 ssh 2-210", *lines, *rules]) + "\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    file = tmp_path_factory.mktemp("clones") / "clones.rules"
    file.write_text(_rules())
    with _Crowd("vk") as one:
        one.vfr("apply", str(file))
        yield one


def _crowd(host: Host, node: str, *arguments: str) -> list[str]:
    return [
        "env",
        f"PYTHONPATH={TESTS}",
        "ip",
        "netns",
        "exec",
        host.ns(node),
        sys.executable,
        "-m",
        "support.crowd",
        *arguments,
    ]


@contextmanager
def _running(argv: list[str]) -> Iterator[None]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout is not None and one.stdout.readline() == "up\n"
            yield
        finally:
            one.kill()


def test_all_guests_are_alike_and_the_router_tells_them_apart(host: Host) -> None:
    for number in (1, COUNT // 2, COUNT):
        seen = host.sh(str(number), "ip -o -4 addr show eth0; ip -o link show eth0; ip route")
        assert f"inet {GUEST}/32" in seen and MAC in seen and f"default via {GATEWAY}" in seen
    domains = host.json("domain", "list")
    assert {d["guest_address"] for d in domains} == {GUEST} and {d["guest_mac"] for d in domains} == {MAC}
    assert len({d["address"] for d in domains}) == len({d["mac"] for d in domains}) == COUNT
    assert {d["state"] for d in domains} == {"up"}


def test_each_reaches_the_lan_and_is_reached_by_its_own_port(host: Host) -> None:
    with _running(["ip", "netns", "exec", host.ns("lan"), sys.executable, "-c", _ECHO]):
        peers = run(*_crowd(host, "lan", "call", "vk-", str(COUNT), "192.0.2.11", "7")).stdout.split("\n")[:-1]
    assert {peer.split()[0] for peer in peers} == {"192.0.2.1"}
    assert len({peer.split()[1] for peer in peers}) == COUNT
    with _running(_crowd(host, "lan", "serve", "vk-", str(COUNT))):
        heard = run(*_crowd(host, "lan", "listen", "2202", str(COUNT), "192.0.2.1")).stdout.split("\n")[:-1]
    assert heard == [f"clone {n}" for n in range(1, COUNT + 1)]


def test_ssh_lands_on_the_clone_that_the_port_is_for(host: Host, tmp_path: Path) -> None:
    for key in ("client", "server"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key))
    (tmp_path / "authorized").write_text((tmp_path / "client.pub").read_text())
    config = tmp_path / "sshd.conf"
    config.write_text(
        f"HostKey {tmp_path}/server\nAuthorizedKeysFile {tmp_path}/authorized\nPermitRootLogin prohibit-password\n"
        "UsePAM no\nUseDNS no\nStrictModes no\nPrintMotd no\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "LogLevel=ERROR")
    argv = ["ssh", "-i", str(tmp_path / "client"), *(word for option in options for word in ("-o", option))]
    where = f"readlink /proc/self/ns/net; ip -o -4 addr show eth0 | grep -c {GUEST}/"
    with _running(_crowd(host, "lan", "serve", "vk-", str(COUNT), str(config))):
        for number in WITH_SSH:
            port = ("-p", str(2201 + number), "root@192.0.2.1", where)
            landed = run("ip", "netns", "exec", host.ns("lan"), *argv, *port).stdout.split()
            inode = Path(f"/run/netns/vk-{number}").stat().st_ino
            assert landed == [f"net:[{inode}]", "1"], number


def test_ping_traceroute_and_each_other(host: Host) -> None:
    assert host.pings("1", "192.0.2.11") and host.pings("1", GATEWAY) and host.pings("dom0", _address(7))
    assert host.pings("1", _address(2)) and not host.pings("2", _address(1))
    traced = host.sh("3", "ping -n -c1 -W2 -t1 192.0.2.11", check=False)
    assert f"From {GATEWAY}" in traced and "Time to live exceeded" in traced
    host.sh("lan", "ip link set eth0 mtu 1500")
    long = host.sh("3", "ping -n -c1 -W2 -s 3000 192.0.2.11", check=False)
    assert " 0% packet loss" in long, "in fragments, both ways"


def test_the_registry_and_the_rule_file_know_them(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "again.rules"
    file.write_text(host.vfr("export").stdout)
    assert host.json("apply", str(file), "--dry-run")["steps"] in ([], ["replace the policy"]), (
        "every domain is as it was"
    )
    shown = host.json("domain", "show", "c5")
    assert (shown["address"], shown["guest_address"], shown["guest_gateway"]) == (_address(5), GUEST, GATEWAY)
    answer = host.json("explain", "c1", "c2", "tcp/22")
    assert answer["passes"], answer
    assert host.vfr("explain", "c2", "c1", "tcp/22", check=False).returncode == 1
    assert host.json("explain", "c3", "lan", "udp/53")["passes"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--guest-address", "169.254.1.0"), "domain 0's own address"),
        (("--guest-address", "192.0.2.1"), "the host's address on eth0"),
        (("--guest-address", "224.0.0.1"), "not a unicast address"),
        (("--guest-address", "10.0.0.1", "--guest-gateway", "10.0.0.1"), "cannot be its gateway as well"),
        (("--guest-gateway", "127.0.0.1"), "not a unicast address"),
        (("--guest-mac", "01:00:00:00:00:01"), "cannot be a guest's MAC"),
    ],
)
def test_what_no_guest_can_believe_is_refused(host: Host, words: tuple[str, ...], told: str) -> None:
    done = host.vfr("domain", "add", "more", "--tap", "tapmore", *words, check=False)
    assert done.returncode == 1 + (done.returncode == 2) and told in done.stderr
    assert len(host.json("domain", "list")) == COUNT
