"""What `vfr doctor` takes for granted: which hooks of netfilter each kind of packet meets, counted hook by hook, on a
host that forwards and whose router allows everything.

guests tm-a, tm-b --- tm-dom0 --- eth0 192.0.2.1/24 --- tm-lan 192.0.2.11
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.host import Host
from support.talk import answers, server

HOST, LAN, A, B, GATEWAY = "192.0.2.1", "192.0.2.11", "169.254.1.2", "169.254.1.3", "169.254.1.0"
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
DEVICES = ("eth0", "vfr0", "vif0", "vif-a", "vif-b")
COUNT = "tcp sport { 22, 80 } counter; tcp dport { 22, 80, 2202 } counter;"
WITNESS = "\n".join(
    [
        "table inet witness {",
        *(f"chain {hook} {{ type filter hook {hook} priority -450; {COUNT} }}" for hook in HOOKS),
        "}",
        "table netdev witness {",
        *(
            f'chain {way}_{device} {{ type filter hook {way} device "{device}" priority 0; {COUNT} }}'
            for device in DEVICES
            for way in ("ingress", "egress")
        ),
        "}",
    ]
)
AS_A_HOST = {"prerouting", "input", "output", "postrouting"}
BY_VFR0 = AS_A_HOST | {"ingress_vfr0", "egress_vfr0"}
# Who connects to what; who answers; the hooks that packets and answers meet.
FLOWS: dict[str, tuple[str, tuple[str, int], str, set[str]]] = {
    "guest to LAN": ("a", (LAN, 80), "lan", set()),
    "guest to guest": ("a", (B, 80), "b", set()),
    "LAN to a forward": ("lan", (HOST, 2202), "a", set()),
    "guest to a neighbour's forward": ("b", (HOST, 2202), "a", set()),
    "guest to domain 0": ("a", (GATEWAY, 80), "dom0", BY_VFR0),
    "domain 0 to guest": ("dom0", (A, 80), "a", BY_VFR0),
    "the host to its own forward": ("dom0", (HOST, 2202), "a", BY_VFR0),
    "the host to its own forward by localhost": ("dom0", ("127.0.0.1", 2202), "a", BY_VFR0),
    "LAN to the host": ("lan", (HOST, 80), "dom0", AS_A_HOST | {"ingress_eth0", "egress_eth0"}),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """With a server on port 80 everywhere, and a's ssh."""
    rules = tmp_path_factory.mktemp("rules") / "open.rules"
    rules.write_text("allow any -> any\n")
    with Host("tm") as one, ExitStack() as stack:
        one.sh("dom0", "sysctl -qw net.ipv4.ip_forward=1")
        one.vfr("nat", "enable", "--uplink", "eth0", "--rules", str(rules))
        one.add("a")
        one.add("b")
        for node, port in (("lan", 80), ("a", 80), ("b", 80), ("dom0", 80), ("a", 22)):
            stack.enter_context(server(one, node, port))
        yield one


def _met(host: Host) -> set[str]:
    listing = json.loads(host.sh("dom0", "nft -j list ruleset"))["nftables"]
    rules = [item["rule"] for item in listing if item.get("rule", {}).get("table") == "witness"]
    return {rule["chain"] for rule in rules for e in rule["expr"] if "counter" in e and e["counter"]["packets"]}


@pytest.mark.parametrize("what", FLOWS)
def test_the_hooks_that_packets_meet(host: Host, tmp_path: Path, what: str) -> None:
    node, (address, port), who, hooks = FLOWS[what]
    script = tmp_path / "witness.nft"
    script.write_text(
        f"add table inet witness\ndelete table inet witness\nadd table netdev witness\ndelete table netdev witness\n{WITNESS}\n"
    )
    host.sh("dom0", f"nft -f {script}")
    assert answers(host, node, address, port) == who
    assert _met(host) == hooks
