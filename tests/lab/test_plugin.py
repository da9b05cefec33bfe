"""The pytest plugin, as its users meet it: the example passes, and goes red for what it is there to find.

For namespaces that others wired, a bridge on which the ports of a and b are isolated:

    a 203.0.113.2      b 203.0.113.3      lan 203.0.113.1
         |                  |                  |
         +---------- [ bridge br0 ] -----------+
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfr_lab import Lab, LabError, plugin
from vfr_lab.ground import LabGround
from vfr_lab.isolation import Isolation
from vfr_lab.lab import NETNS, run
from vfr_lab.scenario import JUDGE

pytestmark = pytest.mark.lab

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ci"
PORTS = {"a": "203.0.113.2", "b": "203.0.113.3", "lan": "203.0.113.1"}
HEAVY = ("scapy", "pyroute2", "typer", "rich", "jinja2", "vfr_lab.node", "vfr_lab.isolation")


def _pytest(*options: str, **environment: str) -> tuple[int, str]:
    """The example, run by a pytest of its own: its exit status, and what it said. It leaves no namespace."""
    before = {p.name for p in NETNS.iterdir()} if NETNS.exists() else set()
    argv = [sys.executable, "-m", "pytest", str(EXAMPLE), "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert {p.name for p in NETNS.iterdir()} == before if NETNS.exists() else not before
    return done.returncode, done.stdout + done.stderr


def _packets(captures: Path, expression: str) -> list[str]:
    (file,) = captures.iterdir()
    return run(["tcpdump", "-nn", "-r", str(file), expression]).stdout.splitlines()


def test_the_document_shows_the_example_as_it_is() -> None:
    shown = (EXAMPLE.parents[1] / "docs/ci.md").read_text()
    files = {file.name: file.read_text() for file in EXAMPLE.iterdir() if file.is_file()}
    assert len(files) == 4 and [name for name, text in files.items() if f"\n{text}```" not in shown] == []


def test_the_example_passes() -> None:
    status, said = _pytest()
    assert status == 0 and "7 passed" in said, said


def test_a_rule_that_lets_one_through_is_found(lab: Lab, tmp_path: Path) -> None:
    with Isolation(LabGround(lab), tmp_path) as isolation:
        isolation.assert_isolated("web", "db")
        with lab.backend.under(lab, EXAMPLE / "web-to-db.rules"), pytest.raises(AssertionError) as failure:
            isolation.assert_isolated("web", "db")
        isolation.assert_isolated("web", "db")
    first, evidence, *others = str(failure.value).splitlines()
    assert first == "web and db are not isolated (the lab's guests, wired by vfr)"
    assert evidence.startswith(
        "  db received web's TCP SYN to port 5432 by the gateway: Ether / IP / TCP 169.254.1.2:40000"
    )
    # But for what web's kernel, which knows of no connection, says to db's answer: it is of the same conversation.
    assert not [line for line in others if line.startswith("  db received") and not line.endswith(" R")]
    assert others[-1].startswith(f"  capture: {tmp_path}/web-db-")
    assert _packets(tmp_path, "src 169.254.1.2 and dst 169.254.1.3 and tcp dst port 5432")


def test_a_hosts_own_firewall_counts() -> None:
    """Packets for a routed host come as far as its interface, and its firewall drops them: they have not reached it."""
    status, said = _pytest("-k", "internet", "--lab-backend", "routed", "-o", "lab_rules=")
    assert status == 0 and "1 passed" in said, said


def test_a_bridge_is_found_out(tmp_path: Path) -> None:
    choice = ("-k", "web-db", "--lab-backend", "bridge", "-o", "lab_rules=")
    status, said = _pytest(*choice, "--lab-captures", str(tmp_path / "captures"))
    assert status == 1 and "1 failed" in said, said
    for kind in ("TCP SYN to port 22 by the gateway", "ARP request by broadcast", "raw Ethernet to db's own MAC"):
        assert f"db received web's {kind}" in said
    assert f"capture: {tmp_path}/captures/web-db-" in said


@pytest.mark.parametrize(
    ("options", "path", "status", "told"),
    [
        (("--lab-backend", "bridge"), "", 1, "the backend bridge takes no rule file, so"),
        (("--lab-backend", "nonsense"), "", 1, "there is no backend 'nonsense'; there are: bridge,"),
        ((), "/nowhere", 1, "a lab needs ip, ping, ss,"),
        (("--lab-skip-ok",), "/nowhere", 0, "1 skipped"),
    ],
)
def test_what_cannot_be_is_told(options: tuple[str, ...], path: str, status: int, told: str) -> None:
    got, said = _pytest("-k", "apart and web-db", *options, PATH=path or os.environ["PATH"])
    assert got == status and told in said, said


def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match=r"^a lab needs root; --lab-skip-ok"):
        plugin._check_machine(pytestconfig, ())


def test_who_does_not_use_it_does_not_pay() -> None:
    code = f"import sys, vfr_lab.plugin; print([m for m in {HEAVY} if m in sys.modules])"
    assert run([sys.executable, "-c", code]).stdout == "[]\n"


def test_names_and_ways_there_are_not(tmp_path: Path) -> None:
    """None of these needs a lab that is up."""
    with Isolation(LabGround(Lab(JUDGE, prefix="vn-")), tmp_path) as isolation:
        with pytest.raises(LabError, match=r"lan1: no guest; there are web, db, ci\. .*assert_not_reaches"):
            isolation.assert_isolated("web", "lan1")
        with pytest.raises(LabError, match=r"there is no nobody; there are: ci, db, dom0,"):
            isolation.assert_not_reaches("web", "nobody")
        with pytest.raises(LabError, match=r"tcp=PORT, udp=PORT or ping=True"):
            isolation.assert_reaches("web", "inet")
        with pytest.raises(LabError, match=r"from lan1 the only way to web is tcp=22"):
            isolation.assert_reaches("lan1", "web", tcp=80)


def test_every_kind_of_pair(lab: Lab, tmp_path: Path) -> None:
    """Under xen.rules, in whatever pairs nodes come."""
    with Isolation(LabGround(lab), tmp_path) as isolation:
        isolation.assert_reaches("db", "lan2", tcp=80, udp=53, ping=True)
        isolation.assert_reaches("dom0", "far", tcp=22, udp=53, ping=True)
        isolation.assert_reaches("lan1", "dom0", tcp=80, ping=True)
        isolation.assert_reaches("inet", "db", tcp=22)
        isolation.assert_not_reaches("db", "dom0", tcp=22, udp=7)
        with pytest.raises(
            AssertionError, match=r"(?s)inet reaches db.*tcp=22, by 192.0.2.1 port 2203: arrived, and was"
        ):
            isolation.assert_not_reaches("inet", "db")
        with pytest.raises(
            AssertionError, match=r"(?s)db does not reach web.*ping, by 169.254.1.2: never arrived, and"
        ):
            isolation.assert_reaches("db", "web", ping=True)
        with pytest.raises(LabError, match="there is no way from lan1 to far that could be tried"):
            isolation.assert_not_reaches("lan1", "far")
        with isolation.watch("lan1") as seen:
            assert isolation.node("db").tcp("192.0.2.11", 7) == "192.0.2.1"
        assert seen.having(lambda p: "TCP" in p and p["IP"].src == "192.0.2.1")


@pytest.fixture
def bridged() -> Iterator[dict[str, str]]:
    """The names of the namespaces above: a, b, lan, and the bridge's, by what they are."""
    names = {name: f"vp-{name}" for name in (*PORTS, "bridge")}
    try:
        for netns in names.values():
            run(["ip", "netns", "add", netns])
        bridge = ["ip", "-n", names["bridge"], "link"]
        run([*bridge, "add", "br0", "up", "type", "bridge"])
        for name, address in PORTS.items():
            run([*bridge, "add", f"to-{name}", "type", "veth", "peer", "name", "wire0", "netns", names[name]])
            run([*bridge, "set", f"to-{name}", "master", "br0", "up"])
            run(["ip", "-n", names[name], "address", "add", f"{address}/24", "dev", "wire0"])
            run(["ip", "-n", names[name], "link", "set", "wire0", "up"])
        yield names
    finally:
        for netns in names.values():
            run(["ip", "netns", "del", netns], check=False)


def _isolate(bridged: dict[str, str], *ports: str, on: str) -> None:
    for port in ports:
        run(["ip", "-n", bridged["bridge"], "link", "set", f"to-{port}", "type", "bridge_slave", "isolated", on])


def test_namespaces_that_others_wired(bridged: dict[str, str], isolation_netns: plugin.OfNamespaces) -> None:
    a, b, lan = bridged["a"], bridged["b"], bridged["lan"]
    _isolate(bridged, "a", "b", on="on")
    guests = isolation_netns(a, b, witness=lan)
    guests.assert_isolated(a, b)
    guests.assert_reaches(a, lan, tcp=80, ping=True)
    guests.assert_not_reaches(a, b)
    isolation_netns(a, b, witness=PORTS["lan"]).assert_isolated(a, b)
    _isolate(bridged, "b", on="off")
    with pytest.raises(AssertionError, match=rf"{a} and {b} are not isolated[^$]*{b} received {a}'s ARP request"):
        guests.assert_isolated(a, b)
    with pytest.raises(AssertionError, match=rf"{a} reaches {b}[^$]*udp=53, by 203.0.113.3: arrived, and was answered"):
        guests.assert_not_reaches(a, b)


def test_the_dead_are_not_taken_for_isolated(bridged: dict[str, str], isolation_netns: plugin.OfNamespaces) -> None:
    a, b = bridged["a"], bridged["b"]
    _isolate(bridged, "a", "b", on="on")
    run(["ip", "-n", bridged["bridge"], "link", "set", "to-b", "nomaster"])
    guests = isolation_netns(a, b, witness=bridged["lan"])
    with pytest.raises(AssertionError, match=rf"this proves nothing.*{b} speaks with {bridged['lan']}"):
        guests.assert_isolated(a, b)


def test_a_namespace_that_is_not_there_is_named(isolation_netns: plugin.OfNamespaces) -> None:
    with pytest.raises(LabError, match="there is no network namespace vp-nobody"):
        isolation_netns("vp-nobody", witness="203.0.113.1")
