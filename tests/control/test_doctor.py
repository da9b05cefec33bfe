"""The judgement of `vfr doctor`, without a host: facts in, findings out; and the readers of other people's words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from vfr.doctor import (
    OURS,
    Chain,
    Drop,
    Facts,
    Finding,
    ForwardTo,
    Hook,
    Listener,
    Machine,
    Netfilter,
    Ours,
    Translation,
    VifState,
    findings,
    has_problem,
)
from vfr.kernel import netfilter
from vfr.plan import Change

SYSCTLS = {"ip_forward": "0", "ip_local_port_range": "32768\t60999", "conf/all/rp_filter": "2"}
MACHINE = Machine("6.1.0-28-amd64", default="eth0", way_to_guests="vfr0", sysctls=SYSCTLS)
HOOKS = tuple(Hook(name, (OURS,)) for name in ("vif0", "vif-web", "vfr-sorter", "eth0"))
ROUTER = Ours(
    exists=True,
    nat=True,
    uplink="eth0",
    address=IPv4Address("192.0.2.1"),
    forwards=(ForwardTo(2202, "web", True), ForwardTo(2203, None, False)),
    vifs=(VifState("web", "vif-web", "up", ""),),
    hooks=HOOKS,
)
HEALTHY = Facts(True, MACHINE, Netfilter(), ROUTER)
NO_ROUTER = replace(HEALTHY, ours=Ours(uplink="eth0"), machine=replace(MACHINE, way_to_guests="eth0"))
UFW = Chain("ip", "filter", "INPUT", "input", ("ufw",), closes=True)


def _machine(**what: object) -> Facts:
    return replace(HEALTHY, machine=replace(MACHINE, **what))  # type: ignore[arg-type]


def _sysctl(name: str, value: str) -> Facts:
    return _machine(sysctls={**SYSCTLS, name: value})


def _ours(**what: object) -> Facts:
    return replace(HEALTHY, ours=replace(ROUTER, **what))  # type: ignore[arg-type]


def _others(*chains: Chain, drops: Iterable[Drop] = (), translations: Iterable[Translation] = ()) -> Facts:
    return replace(HEALTHY, netfilter=Netfilter(chains, tuple(drops), tuple(translations)))


def _todo(*verbs: str, **more: object) -> Facts:
    return _ours(todo=tuple(Change(f"do {verb}", verb) for verb in verbs), **more)


def _uplink_hook(*ingress: str, **more: object) -> Facts:
    return _ours(hooks=(*HOOKS[:-1], Hook("eth0", ingress, **more)))  # type: ignore[arg-type]


def _dnat(port: int, protocol: str = "tcp") -> Translation:
    return Translation("ip nat DOCKER", ("Docker",), "dnat", protocol, port, port)


def _masquerade(low: int, high: int, *outs: str) -> Translation:
    return Translation("ip nat LIBVIRT_PRT", ("libvirt",), "masquerade", None, low, high, outs)


BRIDGED = replace(MACHINE, bridge_netfilter=True, bridges=("eth0",))
CLOSED_EARLY = Chain("ip", "raw", "PREROUTING", "prerouting", (), closes=True)

# Facts -> the findings that are more than "ok", as "severity id", and words that they must have in them.
CASES: dict[str, tuple[Facts, list[str], list[str]]] = {
    "in order": (HEALTHY, [], []),
    "no router yet": (NO_ROUTER, [], []),
    "not root": (replace(HEALTHY, root=False), ["note root"], ["sudo vfr doctor"]),
    "nothing of nft": (replace(HEALTHY, netfilter=Netfilter(error="gone")), ["problem nft"], ["gone"]),
    "old kernel": (_machine(kernel="5.10.0-28-amd64"), ["problem kernel"], ["5.10.0-28-amd64", "6.1"]),
    "no bpf": (_machine(bpf="bpf(2) is not permitted; run it elsewhere"), ["problem bpf"], ["run it elsewhere"]),
    "leftover": (replace(NO_ROUTER, ours=Ours(leftover=("vif-x",))), ["warning leftover"], ["vif-x", "nat disable"]),
    "another build": (_ours(is_installed=False), ["warning build"], ["vfr upgrade"]),
    "another layout": (
        _ours(is_installed=False, odd_layout="the struct Count: 16 bytes, here 24 bytes"),
        ["problem layout"],
        ["struct Count", "vfr upgrade`, which keeps"],
    ),
    "a layout that costs": (
        _ours(is_installed=False, odd_layout="the map sessions: not there", must_lose=True),
        ["problem layout"],
        ["the map sessions", "--lose-sessions"],
    ),
    "busy": (_ours(lock=("process 7", 1.0)), ["note lock"], ["process 7"]),
    "stuck": (_ours(lock=("process 7", 300.0)), ["warning lock"], ["process 7", "300 s"]),
    "uplink lost": (_ours(lan_lost="the uplink eth0 is gone"), ["problem uplink"], ["eth0 is gone", "--uplink"]),
    "what follows from that is not told": (
        _todo("unpin", "configure", "clear_forwards", "set_localnet", lan_lost="gone"),
        ["problem uplink"],
        ["gone"],
    ),
    "a VPN": (_machine(default="wg0"), ["warning default-route"], ["wg0", "eth0", "VPN"]),
    "no default route": (_machine(default=None), ["note default-route"], ["missing"]),
    "no pins": (_todo("load", "configure", "bring_up"), ["problem fastpath"], ["pins", "nat enable"]),
    "sorter": (_todo("make_sorter"), ["problem sorter"], ["DROP_NO_SORTER"]),
    "policy": (_todo("replace_policy"), ["problem rules"], ["rules in force"]),
    "uplink's pin": (_todo("attach_uplink"), ["problem uplink-program"], ["pin"]),
    "localnet": (_todo("set_localnet"), ["problem localnet"], ["127.0.0.1"]),
    "route": (_todo("route"), ["problem route"], ["guests"]),
    "something else": (_todo("set_forward"), ["problem state"], ["do set_forward"]),
    "VIF missing": (
        _ours(vifs=(VifState("web", "vif-web", "missing", "the namespace web is gone"),)),
        ["problem vif"],
        ["namespace web is gone", "domain remove web"],
    ),
    "VIF not as it is to be": (
        _ours(todo=(Change("bring vif-web up", "bring_up"),)),
        ["problem vif"],
        ["web"],
    ),
    "domain 0's": (_ours(todo=(Change("bring vif0 up", "bring_up"),)), ["problem vif"], ["dom0"]),
    "settings": (
        _ours(unhardened=("vif-web",), todo=(Change("bring vif-web up", "bring_up"),)),
        ["warning settings"],
        ["vif-web", "ip_forward"],
    ),
    "guard flushed": (_todo("write_guard", guard="gone"), ["problem guard"], ["flushed", "nft flush ruleset"]),
    "guard changed": (_todo("write_guard", guard="changed"), ["problem guard"], ["changed"]),
    "before us on the uplink": (_uplink_hook("X", OURS), ["problem hook-before"], ["X", "uplink eth0"]),
    "before us on a VIF": (
        _ours(hooks=(Hook("vif-web", ("X", OURS)),), todo=(Change("bring vif-web up", "bring_up"),)),
        ["problem hook-before"],
        ["X", "vif-web", "guard"],
    ),
    "ours gone": (_uplink_hook("X"), ["problem hook-missing"], ["X", "uplink eth0"]),
    "behind us": (_uplink_hook(OURS, "X"), [], []),
    "egress": (_uplink_hook(OURS, egress=("X",)), ["note hook-egress"], ["X", "host's address"]),
    "xdp": (_uplink_hook(OURS, xdp=True), ["note xdp"], ["before VFR"]),
    "ufw": (
        _others(UFW),
        ["note ufw", "warning forwards-unasked", "note input-closed"],
        ["ufw is not asked about forwards", "2202 (web)", "deny lan -> web", "ufw allow in on vfr0"],
    ),
    "ufw that lets the forward in": (
        _others(replace(UFW, accepts=(("tcp", 2200, 2210),))),
        ["note ufw", "note input-closed"],
        [],
    ),
    "ufw, and a rule towards domain 0": (
        replace(_others(replace(UFW, accepts=(("tcp", 2202, 2202),))), ours=replace(ROUTER, to_dom0=True)),
        ["note ufw", "warning input-closed"],
        ["ufw may still refuse", "ufw allow in on vfr0"],
    ),
    "ufw that knows vfr0": (_others(replace(UFW, names_vfr0=True, accepts=(("tcp", 2202, 2202),))), ["note ufw"], []),
    "Docker": (_others(Chain("ip", "filter", "FORWARD", "forward", ("Docker",), closes=True)), ["note docker"], []),
    "output": (
        _others(Chain("ip", "filter", "OUTPUT", "output", ("ufw",), closes=True)),
        ["note ufw", "warning output-closed"],
        ["ufw allow out on vfr0"],
    ),
    "prerouting": (_others(CLOSED_EARLY), ["warning prerouting-closed"], ["domain 0"]),
    "postrouting": (
        _others(Chain("inet", "x", "post", "postrouting", (), closes=True)),
        ["warning postrouting-closed"],
        ["vfr0"],
    ),
    "IPv6 alone": (_others(Chain("ip6", "filter", "INPUT", "input", ("ufw",), closes=True)), [], []),
    "bogons": (
        _others(drops=[Drop("inet f input", "input", IPv4Network("169.254.0.0/16"))]),
        ["problem guests-dropped"],
        ["169.254.0.0/16", "iifname vfr0"],
    ),
    "other nets": (_others(drops=[Drop("inet f input", "input", IPv4Network("10.0.0.0/8"))]), [], []),
    "bridged packets": (_machine(bridge_netfilter=True, bridges=("virbr0",)), [], []),
    "the uplink is a bridge": (
        replace(HEALTHY, machine=BRIDGED),
        ["warning bridge-netfilter"],
        ["uplink eth0 is a bridge"],
    ),
    "the uplink is a bridge, and prerouting closed": (
        replace(_others(CLOSED_EARLY), machine=BRIDGED),
        ["problem prerouting-closed", "warning bridge-netfilter"],
        ["forwards are dropped"],
    ),
    "port of a forward": (
        _machine(listeners=(Listener("tcp", "0.0.0.0", 2202, "sshd"),)),
        ["problem port-on-forward"],
        ["sshd", "2202", "web", "--forwards"],
    ),
    "port of a forward to nobody": (
        _machine(listeners=(Listener("tcp", "*", 2203),)),
        ["warning port-on-forward"],
        ["2203", "refuse while"],
    ),
    "port in the range": (
        _machine(listeners=(Listener("udp", "0.0.0.0", 16384, "dns"),)),
        ["warning port-in-range"],
        ["dns", "udp port 16384", "16384-32767", "--ports"],
    ),
    "UDP where a TCP forward is": (_machine(listeners=(Listener("udp", "0.0.0.0", 2202),)), [], []),
    "localhost's own": (_machine(listeners=(Listener("tcp", "127.0.0.1", 20000),)), [], []),
    "published on a forward": (
        _others(translations=[_dnat(2202)]),
        ["problem published-on-forward"],
        ["Docker", "web"],
    ),
    "published in the range": (
        _others(translations=[_dnat(30080)]),
        ["problem published-in-range"],
        ["30080", "DROP_UNSOLICITED", "--ports"],
    ),
    "published elsewhere": (_others(translations=[_dnat(8080)]), [], []),
    "published with a proxy": (
        replace(
            _others(translations=[_dnat(30080)]), machine=replace(MACHINE, listeners=(Listener("tcp", "*", 30080),))
        ),
        ["warning port-in-range"],
        [],
    ),
    "masquerade": (
        _others(translations=[_masquerade(1, 65535, "eth0")]),
        ["warning masquerade"],
        ["libvirt", "dropped"],
    ),
    "masquerade with ports of its own": (_others(translations=[_masquerade(32768, 60999, "eth0")]), [], []),
    "masquerade elsewhere": (_others(translations=[_masquerade(1, 65535, "wg0")]), [], []),
    "masquerade and forwarding": (
        replace(_others(translations=[_masquerade(40000, 50000)]), machine=_sysctl("ip_forward", "1").machine),
        ["warning masquerade-to-guests"],
        ["as if it were domain 0", 'oifname "vfr0" drop'],
    ),
    "ephemeral": (
        _sysctl("ip_local_port_range", "10000 60999"),
        ["problem ephemeral"],
        ["10000-60999", "16384-32767", "sysctl"],
    ),
    "forwarding": (_sysctl("ip_forward", "1"), [], []),
    "strict": (_sysctl("conf/vfr0/rp_filter", "1"), [], []),
    "another way to guests": (_machine(way_to_guests="wg0"), ["problem way-to-guests"], ["wg0", "ip rule"]),
    "localnet everywhere": (_sysctl("conf/all/route_localnet", "1"), ["note route-localnet"], ["127.0.0.0/8"]),
}


def _text(found: Iterable[Finding]) -> str:
    return "\n".join(f"{f.text}\n{f.effect}\n{f.do}" for f in found)


@pytest.mark.parametrize("what", CASES)
def test_findings(what: str) -> None:
    facts, wanted, words = CASES[what]
    found = [f for f in findings(facts) if f.severity != "ok"]
    assert [f"{f.severity} {f.id}" for f in found] == wanted
    assert [word for word in words if word not in _text(found)] == []


def test_who_is_told_of_something_is_told_what_it_does_and_what_to_do() -> None:
    for facts, _, _ in CASES.values():
        for f in findings(facts):
            assert f.text and (f.severity in ("ok", "note") or (f.effect and f.do)), f
            assert all("\n" not in words for words in (f.text, f.effect, f.do))


def test_each_finding_is_in_the_document() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()
    told = {f.id for facts, _, _ in CASES.values() for f in findings(facts)} - {"firewall"}
    assert {ident for ident in told if f"`{ident}`" not in text} == set()


def test_only_a_problem_is_one() -> None:
    assert not has_problem(findings(CASES["ufw"][0]))
    assert has_problem(findings(CASES["guard flushed"][0]))


def test_what_is_harmless_is_said_to_be() -> None:
    """People come with the names that they have read of."""
    said = {f.id: f for f in findings(CASES["Docker"][0])}
    assert said["forward-closed"].effect.startswith("none") and "Docker" in said["forward-closed"].text
    assert "ip_forward is 1" in _text(findings(CASES["forwarding"][0]))
    assert "none" in next(f.effect for f in findings(CASES["strict"][0]) if f.id == "rp-filter")


# What nft and iptables-legacy-save print


def _listing(*items: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *items]})


def _base(hook: str, policy: str = "accept", kind: str = "filter", family: str = "inet") -> dict[str, Any]:
    chain = {"family": family, "table": "t", "name": hook, "type": kind, "hook": hook, "prio": 0, "policy": policy}
    return {"chain": chain}


def _rule(chain: str, *expr: dict[str, Any], family: str = "inet") -> dict[str, Any]:
    return {"rule": {"family": family, "table": "t", "chain": chain, "expr": list(expr)}}


def _match(kind: str, key: str, right: Any, op: str = "==") -> dict[str, Any]:
    left = {"protocol": "tcp" if key == "dport" else "ip", "field": key} if kind == "payload" else {"key": key}
    return {"match": {"op": op, "left": {kind: left}, "right": right}}


DROP, ACCEPT, REJECT = {"drop": None}, {"accept": None}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNTER = {"counter": {"packets": 1, "bytes": 40}}


@pytest.mark.parametrize(
    ("items", "closes"),
    [
        ([_base("input", "drop")], True),
        ([_base("input"), _rule("input", COUNTER, REJECT)], True),
        ([_base("input"), _rule("input", _match("meta", "iifname", "eth1"), DROP)], False),
        ([_base("input"), _rule("input", DROP), _rule("input", ACCEPT)], False),
        ([_base("input")], False),
    ],
)
def test_whether_a_chain_closes(items: list[dict[str, Any]], closes: bool) -> None:
    (chain,) = netfilter.parse(_listing(*items)).chains
    assert chain.closes == closes


def test_what_a_chain_says_is_found_where_it_leads() -> None:
    jump = _rule("input", COUNTER, {"jump": {"target": "ufw-user-input"}})
    sub = {"chain": {"family": "inet", "table": "t", "name": "ufw-user-input"}}
    rules = [
        _rule("ufw-user-input", _match("payload", "dport", {"set": [2202, {"range": [3000, 3009]}]}), COUNTER, ACCEPT),
        _rule("ufw-user-input", _match("meta", "iifname", "vfr0"), ACCEPT),
        _rule("ufw-user-input", _match("payload", "saddr", {"prefix": {"addr": "169.254.0.0", "len": 16}}), DROP),
    ]
    found = netfilter.parse(_listing(_base("input", "drop"), jump, sub, *rules))
    (chain,) = found.chains
    assert (chain.makers, chain.names_vfr0) == (("ufw",), True)
    assert chain.accepts == (("tcp", 2202, 2202), ("tcp", 3000, 3009))
    assert found.drops == (Drop("inet t input", "input", IPv4Network("169.254.0.0/16")),)


def test_translations() -> None:
    xt = {"xt": {"type": "target", "name": "DNAT"}}
    found = netfilter.parse(
        _listing(
            _base("prerouting", kind="nat", family="ip"),
            _rule("prerouting", _match("payload", "dport", 2202), COUNTER, xt, family="ip"),
            _rule("prerouting", _match("payload", "dport", 30080), {"jump": {"target": "KUBE-EXT-X"}}, family="ip"),
            _rule("prerouting", _match("meta", "oifname", "eth0"), {"masquerade": None}, family="ip"),
            _rule("prerouting", {"masquerade": {"port": {"range": [40000, 50000]}}}, family="ip"),
        )
    ).translations
    assert [(t.kind, t.protocol, t.low, t.high, t.outs) for t in found] == [
        ("dnat", "tcp", 2202, 2202, ()),
        ("dnat", "tcp", 30080, 30080, ()),
        ("masquerade", None, 1, 65535, ("eth0",)),
        ("masquerade", None, 40000, 50000, ()),
    ]


def test_our_own_tables_and_ipv6_are_not_others() -> None:
    ours = {"chain": {**_base("prerouting")["chain"], "table": "vfr"}}
    assert netfilter.parse(_listing(ours, _base("input", "drop", family="ip6"))) == Netfilter()


LEGACY = """# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 2202 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m multiport --dports 22,2200:2210 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


def test_iptables_of_the_old_kind() -> None:
    found = netfilter.parse_legacy(LEGACY)
    chains = {chain.name: chain for chain in found.chains}
    assert [name for name, chain in chains.items() if chain.closes] == ["INPUT", "FORWARD"]
    assert chains["INPUT"].accepts == (("tcp", 22, 22), ("tcp", 2200, 2210))
    assert chains["FORWARD"].makers == ("Docker",)
    assert [(t.kind, t.low, t.makers) for t in found.translations] == [
        ("masquerade", 1, ()),
        ("dnat", 2202, ("Docker",)),
    ]
