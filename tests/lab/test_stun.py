"""What a real STUN client (RFC 3489) says of the NAT in front of it: Debian's stun and stund.

web 169.254.1.2 --- dom0 192.0.2.1 --- [ switch ] --- lan2 192.0.2.12, no NAT before it: the control
                                           |
                         lan1 192.0.2.11 and .21, or by the router inet 198.51.100.9 and .10:
                         a server with two addresses and two ports on each
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.fastpath import end_conversations

from vfr_lab import Lab
from vfr_lab.lab import wait_until

pytestmark = pytest.mark.lab
SERVERS = {"lan1": ("192.0.2.11", "192.0.2.21"), "inet": ("198.51.100.9", "198.51.100.10")}
PORTS = ("3478", "3479")
LAN_ADDRESS = "192.0.2.1"


@dataclass(frozen=True, slots=True)
class Nat:
    """A client's judgement, and the addresses and ports that the servers saw it under."""

    kind: tuple[str, ...]
    mapped: frozenset[str]
    ports: tuple[int, ...]


@contextmanager
def _server(lab: Lab, node: str) -> Iterator[str]:
    """stund on two addresses of a node; its first address."""
    first, second = SERVERS[node]
    lab.ip(node, "addr", "add", f"{second}/24", "dev", "eth0")
    argv = ["ip", "netns", "exec", lab.netns(node), "stund", "-h", first, "-a", second]
    process = subprocess.Popen([*argv, "-p", PORTS[0], "-o", PORTS[1]], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(lab, node), f"stund in {node}")
        yield first
    finally:
        process.terminate()
        process.wait(10)
        lab.ip(node, "addr", "del", f"{second}/24", "dev", "eth0")


def _listens(lab: Lab, node: str) -> bool:
    held = lab.exec(node, "ss", "-Hlun").stdout
    return all(f"{address}:{port}" in held for address in SERVERS[node] for port in PORTS)


def _ask(lab: Lab, node: str, server: str, *options: str) -> Nat:
    """Runs the client to its end. Its exit status is its judgement in bits, so only its words count."""
    done = lab.exec(node, "stun", server, "-v", *options, check=False, timeout=30)
    primary = re.search(r"^Primary: (.*?)\s*$", done.stdout, re.M)
    assert primary, done.stdout + done.stderr
    mapped = re.findall(r"^MappedAddress = ([\d.]+):(\d+)$", done.stderr, re.M)
    return Nat(tuple(primary[1].split(", ")), frozenset(a for a, _ in mapped), tuple(int(p) for _, p in mapped))


@pytest.mark.parametrize("node", SERVERS)
def test_mapping_is_endpoint_independent_and_filtering_asks_for_address_and_port(lab: Lab, node: str) -> None:
    """RFC 4787 REQ-1 and REQ-8. Without a NAT before it the same client says so: it can tell."""
    with _server(lab, node) as server:
        behind, beside = _ask(lab, "web", server), _ask(lab, "lan2", server)
    assert behind.kind[:2] == ("Independent Mapping", "Port Dependent Filter"), behind
    assert behind.mapped == {LAN_ADDRESS}
    # Both servers answered its first socket, from two addresses, and saw the same port.
    assert len(behind.ports) >= 2 and len(set(behind.ports)) == 1, behind
    assert (beside.kind, beside.mapped) == (("Open",), {"192.0.2.12"})


def _a_port_of(lab: Lab, domain: str) -> int:
    """One in the middle of the domain's block."""
    vfr = str(Path(sys.executable).parent / "vfr")
    block = json.loads(lab.exec("dom0", vfr, "domain", "show", domain, "--json").stdout)["outside_ports"]
    low, high = map(int, block.split("-"))
    return (low + high) // 2


def test_a_port_of_the_domain_s_own_block_is_kept(lab: Lab) -> None:
    port = _a_port_of(lab, "web")
    end_conversations(lab)
    with _server(lab, "inet") as server:
        seen = _ask(lab, "web", server, "-p", str(port))
    assert seen.kind[2] == "preserves ports" and set(seen.ports) == {port}, seen
