"""The table's third executor: cases marked `lab` through a real router, frame by frame.

    tl-web 169.254.1.2   tl-db 169.254.1.3   tl-odd 198.18.0.77
         eth0                 eth0                 eth0
           \\____________________|____________________/
                             tl-dom0 vfr0 169.254.1.0
                              eth0 192.0.2.1/24
                                    |
                            tl-lan eth0 192.0.2.11

Frames go out of the sender's own device by AF_PACKET; what arrives is read the same way in the receiver's
namespace. Nobody else speaks: the guests' and the LAN's stacks are mute, and have no IPv6.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from support import world
from support.host import Host
from support.netns import inside, mac_of, packet_socket

from cases.case import Case
from cases.table import CASES
from vfr._abi import Limit
from vfr.kernel.fastpath import Fastpath
from vfr.spec.packet import with_id

GUESTS = tuple(name for name, slot in world.SLOTS.items() if slot)
LAB_CASES = sorted((case for case in CASES if case.lab), key=lambda case: case.rules)
WAIT_S = 5
L3 = 14
_OUTGOING = 4  # PACKET_OUTGOING
_MUTE = (
    "nft 'add table ip mute; add chain ip mute everything { type filter hook prerouting priority -300; policy drop; }'"
)
_QUIET = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"


class _TableHost(Host):
    guests = GUESTS


def _build(host: Host) -> None:
    """The table's world, made by the command."""
    for node in (*GUESTS, "lan"):
        host.sh(node, f"{_QUIET}; {_MUTE}")
    lan, dom0 = world.NODES["lan"], world.GATEWAY_MAC
    host.sh("dom0", f"ip link set eth0 address {dom0}; ip neigh replace {lan.ip} lladdr {lan.mac} dev eth0")
    host.sh("lan", f"ip link set eth0 address {lan.mac}; ip neigh replace {world.OUTSIDE} lladdr {dom0} dev eth0")
    low = world.NAT_LOW + world.BLOCK  # below lies domain 0's place in the table's world
    settings = ("--ports", f"{low}-32767", "--ports-per-domain", str(world.BLOCK))
    host.vfr("nat", "enable", "--uplink", "eth0", *settings)
    for name in GUESTS:
        host.add(name, "--address", world.NODES[name].ip, "--mac", world.NODES[name].mac)


def _raw_socket(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    made.settimeout(WAIT_S)
    return made


class _Lab:
    """The host with an ear at every node. `hear(None)` is the host's stack, which gets what is not ours."""

    def __init__(self, host: Host, rules: Path) -> None:
        self.host, self._rules = host, rules
        self._in_force: str | None = None
        self._dom0_mac = mac_of(host.ns("dom0"), "vfr0")
        self._devices = {**dict.fromkeys((*GUESTS, "lan"), "eth0"), "dom0": "vfr0"}
        self.ears = {node: packet_socket(host.ns(node), dev, WAIT_S) for node, dev in self._devices.items()}
        self._stack = {p: inside(host.ns("dom0"), _raw_socket, p) for p in (1, 6, 17)}
        pins = Path("/run/vfr/netns") / host.ns("dom0") / "bpf"
        opened = Fastpath.open(pins)
        assert opened is not None
        self._fastpath = opened

    def close(self) -> None:
        self._fastpath.close()
        for one in (*self.ears.values(), *self._stack.values()):
            one.close()

    def reset(self, rules: str) -> None:
        """These rules in force, no sessions, no mappings, nothing left to hear."""
        if rules != self._in_force:
            self._rules.write_text(rules)
            self.host.vfr("apply", str(self._rules))
            self._in_force = rules
        for slot, row in self._fastpath.domains().items():
            self._fastpath.new_tables(slot, row.limits, row.port_count)
            self._fastpath.clear_block(row.port_low, row.port_count)
        self.flush()

    def flush(self) -> None:
        for node in self.ears:
            while self.hear(node, wait=False) is not None:
                pass
        self.stack_heard()

    def real(self, frame: bytes) -> bytes:
        """The table's frame as this host has it: domain 0's MAC is the router's own choice."""
        table, own = (bytes.fromhex(m.replace(":", "")) for m in (world.NODES["dom0"].mac, self._dom0_mac))
        return frame.replace(table, own)

    def send(self, sender: str, frame: bytes) -> None:
        self.ears[sender].send(self.real(frame))

    def hear(self, node: str, wait: bool = True) -> bytes | None:
        """The next frame that arrived there, None if there is none (in time)."""
        ear = self.ears[node]
        ear.settimeout(WAIT_S if wait else 0)
        try:
            while True:
                frame, where = ear.recvfrom(65536)
                if where[2] != _OUTGOING:
                    return frame
        except (BlockingIOError, TimeoutError):
            return None

    def hear_stack(self, protocol: int) -> bytes:
        """The next packet, from its IP header on, that came to domain 0's own stack."""
        return self._stack[protocol].recv(65536)

    def stack_heard(self) -> list[bytes]:
        """Whatever else has come there."""
        return [packet for one in self._stack.values() for packet in _drain(one)]

    def counted(self, sender: str) -> dict[str, int]:
        """Verdict -> packets of the sender's, read straight from the map."""
        slot = self._fastpath.addresses().get(IPv4Address(world.NODES[sender].ip), int(Limit.ROW_LAN))
        counts = self._fastpath.counters([slot])[slot]
        return {name: packets for name, (packets, _) in counts.items() if name != "received"}

    def stats(self, sender: str) -> dict[str, int]:
        """The same, as `vfr stats` has it."""
        row = json.loads(self.host.vfr("stats", sender, "--json").stdout)[sender]
        return {name: count["packets"] for name, count in row.items() if name != "received"}

    def send_and_wait(self, sender: str, frame: bytes) -> None:
        """Sent, and counted under some verdict."""
        before, deadline = self.counted(sender), time.monotonic() + WAIT_S
        self.send(sender, frame)
        while self.counted(sender) == before:
            assert time.monotonic() < deadline, "the frame was never counted"


def _drain(one: socket.socket) -> list[bytes]:
    found = []
    one.setblocking(False)
    try:
        while True:
            found.append(one.recv(65536))
    except BlockingIOError:
        one.settimeout(WAIT_S)
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Lab]:
    with _TableHost("tl") as host:
        _build(host)
        one = _Lab(host, tmp_path_factory.mktemp("lab") / "case.rules")
        try:
            yield one
        finally:
            one.close()


def _check_arrival(case: Case, lab: _Lab) -> None:
    """The whole frame at its target. To and from the LAN the MACs are the kernel's affair."""
    assert case.becomes is not None and case.target is not None, "a case for the lab says what arrives where"
    arrived, wanted = lab.hear(case.target), lab.real(bytes(case.becomes))
    assert arrived is not None, f"nothing arrived at {case.target}"
    if case.target == "lan" and not Ether(wanted)[IP].flags.DF:
        wanted = with_id(wanted, Ether(arrived)[IP].id)  # the router chooses it
    start = L3 if case.target == "lan" else 0
    assert arrived[start:].hex() == wanted[start:].hex(), Ether(arrived).show(dump=True)


def _check_passed_on(case: Case, lab: _Lab) -> None:
    """What is not ours comes to the host's stack as it was."""
    sent = bytes(case.packet)[L3:]
    assert lab.hear_stack(sent[9]).hex() == sent.hex()


@pytest.mark.lab
@pytest.mark.parametrize("case", LAB_CASES, ids=lambda case: case.sentence)
def test_lab(case: Case, lab: _Lab) -> None:
    lab.reset(case.rules)
    for sender, packet in case.before:
        lab.send_and_wait(sender, bytes(packet))
    lab.flush()
    before = lab.counted(case.sender)
    lab.send_and_wait(case.sender, bytes(case.packet))
    after = lab.stats(case.sender)
    assert {n: after[n] - before.get(n, 0) for n in after if after[n] != before.get(n, 0)} == {case.verdict.name: 1}
    silent = {*lab.ears} - {case.target, case.sender}
    if case.verdict.name == "NOT_OURS":
        _check_passed_on(case, lab)
    elif case.verdict.name.startswith("DROP_"):
        silent = {*lab.ears}
        assert lab.stack_heard() == []
    else:
        _check_arrival(case, lab)
    assert {node: lab.hear(node, wait=False) for node in silent} == dict.fromkeys(silent)


def test_the_lab_has_its_share() -> None:
    """Every part of the table, and every way a packet may end well, is seen on real interfaces."""
    assert len(LAB_CASES) >= 24
    assert {"ANSWERED", "TO_DOMAIN", "TO_DOM0", "TO_LAN", "NOT_OURS"} <= {case.verdict.name for case in LAB_CASES}
