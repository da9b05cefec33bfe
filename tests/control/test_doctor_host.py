"""`vfr doctor` on a real (throw-away) host on which things go wrong, and what it says then is done.

guests td-a, td-b --- td-dom0 --- eth0 192.0.2.1/24 --- td-lan 192.0.2.11        td-c behind another bridge of the host's
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.foreign import program_before_ours
from support.host import Host, run
from support.talk import answers, server

HOST, LAN, A = "192.0.2.1", "192.0.2.11", "169.254.1.2"
PINS = Path("/run/vfr/netns/td-dom0/bpf")
Findings = dict[str, dict[str, Any]]


def _doctor(host: Host) -> Findings:
    """What is more than "ok", by its id; the exit status must fit."""
    done = host.vfr("doctor", "--json", check=False)
    assert not done.stderr, done.stderr
    found = [f for f in json.loads(done.stdout) if f["severity"] != "ok"]
    assert done.returncode == any(f["severity"] == "problem" for f in found)
    return {f["id"]: f for f in found}


def _severities(host: Host) -> dict[str, str]:
    return {ident: f["severity"] for ident, f in _doctor(host).items()}


@pytest.fixture(scope="module")
def made() -> Iterator[Host]:
    with Host("td") as one:
        one.sh("dom0", f"ip route add default via {LAN}")
        yield one


@pytest.fixture
def host(made: Host) -> Iterator[Host]:
    """With NAT and two domains, and nothing to be said."""
    made.vfr("nat", "enable", "--uplink", "eth0")
    have = {d["name"] for d in made.json("domain", "list")}
    for name in ("a", "b"):
        if name not in have:
            made.add(name)
    assert _severities(made) == {}
    yield made


def test_without_a_router(made: Host) -> None:
    """First, before there is one."""
    before = made.picture()
    done = made.vfr("doctor")
    assert "there is no router here yet" in done.stdout and "0 problem" in done.stdout
    assert made.picture() == before, "it only looks"


def test_a_listener_before_there_is_a_router(made: Host) -> None:
    with server(made, "dom0", 20000):
        found = _doctor(made)
        assert found["port-in-range"]["severity"] == "warning"
        assert "python" in found["port-in-range"]["text"] and "20000" in found["port-in-range"]["text"]
        assert made.vfr("nat", "enable", "--uplink", "eth0", check=False).returncode == 1, "as it says"


# What is done to the host, what is found, and what puts it right, if not `nat enable` as it always says.
BROKEN = {
    "guard flushed": ("nft flush ruleset", {"guard": "problem"}, ""),
    "guard changed": ("nft add rule inet vfr to_lan accept", {"guard": "problem"}, ""),
    "a table of the guard's gone": ("nft delete table arp vfr", {"guard": "problem"}, ""),
    "VIF down": ("ip link set vif-a down", {"vif": "problem"}, ""),
    "VIF deleted": ("ip link del vif-a", {"vif": "problem"}, ""),
    "domain 0's deleted": ("ip link del vfr0", {"vif": "problem"}, ""),
    "sorter deleted": ("ip link del vfr-sorter", {"sorter": "problem"}, ""),
    "route": ("ip route del 169.254.1.0/24", {"route": "problem"}, ""),
    "localnet": ("sysctl -qw net.ipv4.conf.vfr0.route_localnet=0", {"localnet": "problem"}, ""),
    "somebody switches forwarding on": (
        "sysctl -qw net.ipv4.ip_forward=1",
        {"settings": "warning"},
        "sysctl -qw net.ipv4.ip_forward=0",
    ),
    "somebody switches IPv6 on": (
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=0",
        {"settings": "warning"},
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
    ),
    "uplink renumbered": (
        "ip addr del 192.0.2.1/24 dev eth0; ip addr add 192.0.2.77/24 dev eth0",
        {"uplink": "problem"},
        f"ip addr del 192.0.2.77/24 dev eth0; ip addr add 192.0.2.1/24 dev eth0; ip route replace default via {LAN}",
    ),
    "uplink down": (
        "ip link set eth0 down",
        {"uplink": "problem"},
        f"ip link set eth0 up; ip route add default via {LAN}",
    ),
    "the host's ephemeral ports": (
        "sysctl -qw net.ipv4.ip_local_port_range='20000 60999'",
        {"ephemeral": "problem"},
        "sysctl -qw net.ipv4.ip_local_port_range='32768 60999'",
    ),
    "localnet everywhere": (
        "sysctl -qw net.ipv4.conf.all.route_localnet=1",
        {"route-localnet": "note"},
        "sysctl -qw net.ipv4.conf.all.route_localnet=0",
    ),
    "a VPN": (
        "ip link add wg0 type veth peer name wg1; ip link set wg0 up; ip link set wg1 up; ip route replace default dev wg0",
        {"default-route": "warning"},
        f"ip link del wg0; ip route add default via {LAN}",
    ),
    "a rule of routes": (
        "ip link add wg0 type veth peer name wg1; ip link set wg0 up; ip link set wg1 up; ip route add default dev wg0 table 77;"
        " ip rule add to 169.254.0.0/16 lookup 77",
        {"way-to-guests": "problem"},
        "ip rule del to 169.254.0.0/16 lookup 77; ip link del wg0",
    ),
    "strict reverse path": (
        "sysctl -qw net.ipv4.conf.all.rp_filter=1",
        {},
        "sysctl -qw net.ipv4.conf.all.rp_filter=0",
    ),
    "bogons": (
        "nft 'add table ip f; add chain ip f in { type filter hook input priority 0; };"
        " add rule ip f in ip saddr { 10.0.0.0/8, 169.254.0.0/16 } drop'",
        {"guests-dropped": "problem"},
        "nft delete table ip f",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_and_mended(host: Host, what: str) -> None:
    script, wanted, mend = BROKEN[what]
    host.sh("dom0", script)
    assert _severities(host) == wanted
    if wanted.keys() <= {"default-route", "route-localnet"} or not wanted:
        assert host.pings("a", LAN), "as it says, that is no hindrance"
    host.sh("dom0", mend or "true")
    host.vfr("nat", "enable")
    assert _severities(host) == {}
    assert host.pings("a", LAN) and host.pings("dom0", A)


def test_pins_lost(host: Host) -> None:
    (PINS / "links" / "vif-a").unlink()
    found = _doctor(host)
    assert found.keys() == {"hook-missing"} and "vif-a" in found["hook-missing"]["text"]
    run("rm", "-rf", str(PINS / "fastpath"))
    assert _severities(host) == {"fastpath": "problem"}
    host.vfr("nat", "enable")
    assert _severities(host) == {}


def test_a_namespace_gone(host: Host) -> None:
    run("ip", "netns", "del", "td-b")
    try:
        found = _doctor(host)
        assert found.keys() == {"vif"} and "td-b" in found["vif"]["text"]
    finally:
        run("ip", "netns", "add", "td-b")
        run("ip", "-n", "td-b", "link", "set", "lo", "up")


@pytest.mark.parametrize(("interface", "foreign"), [("vif-a", "uplink_ingress"), ("eth0", "vif_ingress")])
def test_a_program_before_ours(host: Host, interface: str, foreign: str) -> None:
    with program_before_ours(host, interface, foreign):
        found = _doctor(host)
        assert found.keys() == {"hook-before"}
        assert interface in found["hook-before"]["text"] and foreign[:15] in found["hook-before"]["text"]
        host.vfr("nat", "enable")
        assert _severities(host) == {}, "ours is first again"
        if interface == "eth0":
            assert "runs behind us on the uplink eth0" in host.vfr("doctor").stdout


_DROP = """
__attribute__((section("tc"), used)) int nothing_leaves(void *skb) { return 2; }
__attribute__((section("xdp"), used)) int nothing_enters(void *frame) { return 1; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""
ELSEWHERE = {
    "hook-egress": (
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress bpf da obj {} sec tc",
        "tc qdisc del dev eth0 clsact",
    ),
    "xdp": ("ip link set eth0 xdpgeneric obj {} sec xdp", "ip link set eth0 xdpgeneric off"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_program_that_sees_guests_packets_elsewhere(host: Host, tmp_path: Path, what: str) -> None:
    script, undo = ELSEWHERE[what]
    made = tmp_path / "drop.o"
    clang = ["clang-14", "-target", "bpf", "-O2", "-x", "c", "-", "-c", "-o", str(made)]
    subprocess.run(clang, input=_DROP, text=True, check=True)
    host.sh("dom0", script.format(made))
    try:
        assert _severities(host) == {what: "note"}
        assert not host.pings("a", LAN), "as it says"
    finally:
        host.sh("dom0", undo)


def test_what_a_lost_registry_leaves(host: Host) -> None:
    (PINS.parent / "registry.db").unlink()
    found = _doctor(host)
    assert found.keys() == {"leftover"} and "vif-a" in found["leftover"]["text"]
    host.vfr("nat", "disable")
    assert _severities(host) == {} and "vif-a" not in host.sh("dom0", "ip -o link")


def test_ports_that_programs_have(host: Host) -> None:
    """2202 leads to a, 2205 to nobody yet."""
    with server(host, "a", 22), server(host, "dom0", 2202), server(host, "dom0", 2205), server(host, "dom0", 16400):
        done = host.vfr("doctor", "--json", check=False)
        said = {
            (f["id"], f["severity"], port)
            for f in json.loads(done.stdout)
            for port in (2202, 2205, 16400)
            if f"port {port} " in f["text"]
        }
        assert said == {
            ("port-on-forward", "problem", 2202),
            ("port-on-forward", "warning", 2205),
            ("port-in-range", "warning", 16400),
        }
        assert answers(host, "lan", HOST, 2202) == "a" and answers(host, "dom0", "127.0.0.1", 2202) == "a"
        assert answers(host, "lan", HOST, 2205) == "dom0" and answers(host, "lan", HOST, 16400) == "dom0"
    assert _severities(host) == {}


def test_the_uplink_is_a_bridge(made: Host) -> None:
    """The one way in which rules at prerouting come before VFR, seen with packets."""
    knob = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not knob.exists():
        pytest.skip("this kernel has no br_netfilter")
    with Host("tg") as host:
        host.sh(
            "dom0",
            "ip link add br0 type bridge forward_delay 0; ip addr flush dev eth0; ip link set eth0 master br0;"
            f" ip addr add {HOST}/24 dev br0; ip link set br0 up; ip route add default via {LAN};"
            " sysctl -qw net.bridge.bridge-nf-call-iptables=1",
        )
        host.vfr("nat", "enable", "--uplink", "br0")
        host.add("a")
        with server(host, "a", 22):
            assert _severities(host) == {"bridge-netfilter": "warning"}
            assert answers(host, "lan", HOST, 2202) == "a"
            host.sh(
                "dom0",
                "nft 'add table ip w; add chain ip w p { type filter hook prerouting priority -300; policy drop; };"
                ' add rule ip w p iifname "vfr0" accept\'',
            )
            assert _severities(host) == {"bridge-netfilter": "warning", "prerouting-closed": "problem"}
            assert answers(host, "lan", HOST, 2202) == "nobody" and not host.pings("a", LAN)
            host.sh("dom0", "sysctl -qw net.bridge.bridge-nf-call-iptables=0")
            assert _severities(host) == {"prerouting-closed": "warning"}
            assert answers(host, "lan", HOST, 2202) == "a" and host.pings("a", LAN)


def test_a_command_at_work(host: Host) -> None:
    code = (
        "import sys\nfrom vfr.registry import locked\nfrom pathlib import Path\n"
        "with locked(Path('/run/vfr/netns/td-dom0/lock')):\n    print('have it', flush=True)\n    sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "have it\n"
        found = _doctor(host)
        other.communicate("\n")
    assert found.keys() == {"lock"} and f"process {other.pid}" in found["lock"]["text"]
    assert _severities(host) == {}


# Everything is imported before root is given up: nobody need be able to read this tree.
_AS_NOBODY = """
import os, sys, vfr.plan, vfr.policy, vfr.kernel.host, vfr.kernel.netfilter
from vfr.policy.language import _machinery
from vfr.cli import main
_machinery()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.argv = ["vfr", "doctor", "--json"]
main()
"""


def test_without_root(host: Host) -> None:
    """What anybody may see is looked at, and it is said that this is not all."""
    with server(host, "dom0", 16401):
        done = run("ip", "netns", "exec", "td-dom0", sys.executable, "-c", _AS_NOBODY, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = {f["id"]: f["severity"] for f in json.loads(done.stdout)}
    assert found["root"] == "note" and found["port-in-range"] == "warning"
    assert not found.keys() & {"guard", "bpf", "hook-missing"}


def test_attached_the_old_way() -> None:
    with Host("te", {"VFR_ATTACH": "clsact"}) as host:
        host.sh("dom0", f"ip route add default via {LAN}")
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.add("a")
        assert _severities(host) == {}
        host.sh("dom0", "tc filter del dev vif-a ingress")
        assert _severities(host) == {"hook-missing": "problem"}


def test_it_is_for_people_too(host: Host) -> None:
    host.sh("dom0", "nft flush ruleset")
    lines = host.vfr("doctor", check=False).stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("problem guard: "))
    assert lines[at + 1].startswith("          effect: ") and lines[at + 2].startswith(
        "          do: run `vfr nat enable`"
    )
    assert lines[-1].startswith("1 problem, 0 warning, ")
    host.vfr("nat", "enable")
