"""`vfr flows`: the living conversations, by real sockets in every state.

guests vf-a, vf-b --- vf-dom0 --- eth0 192.0.2.1 --- vf-lan 192.0.2.11
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from support.fastpath import fastpath_of, slot_of
from support.host import VFR, Host, run

from vfr._abi import Limit, Session, SessionKey, TcpState
from vfr.flows import STATES, Reader, Tenant, Wanted, idle_limit, wanted
from vfr.settings import Timers
from vfr.spec.tcp import CLOSING, HALF_OPEN

RULES = "allow a -> lan\nallow a -> b tcp 7000\nallow lan -> a tcp 22\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    file = tmp_path_factory.mktemp("flows") / "some.rules"
    file.write_text(RULES)
    with Host("vf") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        one.add("b")
        one.vfr("apply", str(file))
        yield one


OPEN = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
one, _ = server.accept()
print(one.recv(9).decode(), flush=True)
"""


def _connected(host: Host, client: str, server: str, address: str, port: int, at: str, at_port: int) -> str:
    """A connection that is made, spoken over, and then closed by neither end while `vfr flows` looks: its answer."""
    script = f"""
import subprocess, socket, sys
def inside(ns, code, *more):
    return subprocess.Popen(["ip", "netns", "exec", ns, sys.executable, "-c", code, *more],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
server = inside({host.ns(server)!r}, {OPEN + "sys.stdin.read()"!r}, {at!r}, str({at_port}))
assert server.stdout.readline() == "ready\\n"
client = inside({host.ns(client)!r}, '''
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b"x"); sys.stdin.read()''', {address!r}, str({port}))
assert server.stdout.readline() == "x\\n"
print(subprocess.run(["ip", "netns", "exec", {host.ns("dom0")!r}, {str(VFR)!r}, "flows", "--json", "--rules"],
                     check=True, capture_output=True, text=True).stdout)
for one in (client, server):
    one.stdin.close(); one.wait()
"""
    return run(sys.executable, "-c", script).stdout


def _established(text: str) -> list[dict[str, Any]]:
    return [f for f in json.loads(text) if f["state"] == "established"]


def test_a_connection_to_the_lan(host: Host) -> None:
    (flow,) = _established(_connected(host, "a", "lan", "192.0.2.11", 7001, "192.0.2.11", 7001))
    assert (flow["domain"], flow["opener"], flow["target"], flow["protocol"]) == ("a", "a", "lan", "tcp")
    assert (flow["inside"], flow["remote"], flow["remote_port"]) == ("169.254.1.2", "192.0.2.11", 7001)
    assert 16384 <= flow["outside_port"] <= 32767
    assert 7300 < flow["left_s"] <= 7440 and flow["idle_s"] < 140
    assert (flow["rule"], flow["where"]) == ("allow a -> lan", "some.rules:1")


def test_a_connection_between_domains_is_shown_for_either(host: Host) -> None:
    (flow,) = _established(_connected(host, "a", "b", "169.254.1.3", 7000, "169.254.1.3", 7000))
    assert (flow["opener"], flow["target"], flow["outside_port"]) == ("a", "b", None)
    assert flow["where"] == "some.rules:2"
    for name in ("a", "b"):
        assert [f["remote_port"] for f in host.json("flows", name, "--port", "7000")] == [7000]
    assert host.json("flows", "dom0") == []


def test_a_connection_from_the_lan(host: Host) -> None:
    (flow,) = _established(_connected(host, "lan", "a", "192.0.2.1", 2202, "169.254.1.2", 22))
    assert (flow["domain"], flow["opener"], flow["target"]) == ("a", "lan", "a")
    assert (flow["inside_port"], flow["outside_port"], flow["remote"]) == (22, 2202, "192.0.2.11")
    assert flow["where"] == "some.rules:3"


def test_filters_count_and_the_form_for_people(host: Host) -> None:
    host.sh("a", "ping -n -c1 -W1 192.0.2.11")
    send = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\nfor p in (53, 99): s.sendto(b'x', ('192.0.2.11', p))"
    )
    run("ip", "netns", "exec", host.ns("a"), sys.executable, "-c", send)
    assert {f["remote_port"]: f["left_s"] > 31 for f in host.json("flows", "--proto", "udp")} == {53: False, 99: True}
    assert [f["state"] for f in host.json("flows", "--proto", "icmp")] == [None]
    assert host.json("flows", "--remote", "192.0.2.0/24", "--port", "99", "--count") == {"count": 1}
    assert host.json("flows", "--remote", "198.51.100.0/24") == []
    assert len(host.json("flows", "--limit", "2")) == 2
    lines = host.vfr("flows", "--proto", "udp").stdout.splitlines()
    assert lines[0].startswith("OPENER -> TARGET") and lines[-1] == "2 conversations" and len(lines) == 4
    assert lines[1].startswith("a -> lan") and "192.0.2.11:53" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "no domain 'nobody'"),
        (("--state", "open"), "none of opening, answered, established"),
        (("--remote", "192.0.2.1/24"), "has host bits set"),
        (("--proto", "http"), "nor a protocol's number"),
        (("--port", "65536"), "0 to 65535"),
    ],
)
def test_what_cannot_be_asked_is_said(host: Host, arguments: tuple[str, ...], said: str) -> None:
    done = host.vfr("flows", *arguments, check=False)
    assert done.returncode and said in done.stderr and not done.stdout and "Traceback" not in done.stderr


def test_every_state_and_the_dead(host: Host) -> None:
    """Rows in every state of TCP, written into the running tables; and such as the fastpath takes for dead."""
    with fastpath_of(host.ns("dom0")) as fp:
        slot = slot_of(fp, "169.254.1.3")
        table = fp.inner("sessions", slot)
        assert table is not None
        for state in (*STATES, 99):
            late = -1 if state == 99 else 50
            row = Session(expires_ns=fp.now_ns() + late * 10**9, peer=int(Limit.NODE_LAN), tcp_state=state % 98)
            table.set(bytes(SessionKey(int(IPv4Address("203.0.113.9")), state, 1000 + state, 6)), bytes(row))
        gone = Session(expires_ns=fp.now_ns() + 10**10, peer=1, peer_generation=77777, tcp_state=3)
        table.set(bytes(SessionKey(int(IPv4Address("169.254.1.2")), 5, 5, 6)), bytes(gone))
        table.close()
    assert [f["state"] for f in host.json("flows", "b", "--remote", "203.0.113.9")] == list(STATES.values())
    (flow,) = host.json("flows", "b", "--remote", "203.0.113.9", "--state", "fin-peer")
    assert flow["remote_port"] == TcpState.TCP_FIN_PEER and 20 < flow["left_s"] <= 50
    assert not [f for f in host.json("flows", "b") if f["inside_port"] == 5]


def test_how_long_a_silence_may_last_is_the_fastpaths() -> None:
    timers = Timers(tcp_opening=1, tcp_established=2, tcp_closing=3, udp=4, dns=5, icmp=6)
    for state in TcpState:
        expected = 1 if state in HALF_OPEN else 3 if state in CLOSING else 2
        if state != TcpState.TCP_STATES:
            assert idle_limit(timers, 6, 80, state) == expected
    assert [idle_limit(timers, p, port, 0) for p, port in ((17, 80), (17, 53), (1, 0), (47, 53))] == [4, 5, 6, 4]


def test_a_million_rows_are_shown_one_at_a_time() -> None:
    """Nothing is kept: the first come before the last are made."""
    made = 0
    owner = Tenant(1, "a", IPv4Address("169.254.1.2"), 1)

    def rows() -> Iterator[tuple[Tenant, bool, SessionKey, Session]]:
        nonlocal made
        for _ in range(10**6):
            made += 1
            yield owner, False, SessionKey(1, 1, 1, 17), Session(expires_ns=10**9, peer=int(Limit.NODE_LAN))

    found = list(Reader([owner], Timers(), 1).flows(rows(), wanted(), 3))
    assert len(found) == made == 3 and Wanted(name="b").__contains__(found[0]) is False
