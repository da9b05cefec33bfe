"""What each rule set that ships promises: by example, and as "never", for all packets, which z3 goes through."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import z3
from support.proof import Meaning, Packet

from vfr.policy import ForwardRule, Party, RuleSet, Traffic, compile_rules, numbered, parse_document
from vfr.policy.compile import NODE_LAN
from vfr.policy.rules import DOM0, ICMP, LAN, LOCAL, TCP, UDP

ROOT = Path(__file__).parents[2] / "rules"
UPLINK = IPv4Network("192.0.2.0/24")
DESKTOP, SITE = "192.0.2.11", "203.0.113.9"
ALLOWED = 0  # of a decision the two bits on top, if there is one


def _rules(name: str) -> RuleSet:
    return parse_document((ROOT / name).read_text(), name).rules


class Promises:
    """One rule set with its domains: asked about one packet, or about all."""

    def __init__(self, name: str, domains: Iterable[str]) -> None:
        self.rules = _rules(name)
        self.slots = {domain: slot for slot, domain in enumerate(domains, 1)}
        self.policy = compile_rules(self.rules, self.slots, UPLINK)
        self.p = Packet()

    def says(self, line: str) -> str:
        """`web -> 192.0.2.11 tcp 22`, decided by the meaning, and the same by the tables."""
        opener, _, target, *what = line.split()
        number = {"tcp": TCP, "udp": UDP, "icmp": ICMP}.get(what[0], 47)
        traffic = Traffic(number, int(what[1]) if what[1:] else 0)
        ends = [Party(e) if e in self.slots or e == DOM0 else Party(address=IPv4Address(e)) for e in (opener, target)]
        nodes = [NODE_LAN if e.address else {**self.slots, DOM0: 0}[e.name] for e in ends]
        remote = next((int(e.address) for e in ends if e.address), 0)
        said = self.rules.decide(*ends, traffic, UPLINK)
        assert self.policy.decide(*nodes, traffic.protocol, traffic.port, remote) == said
        return said

    def never(self, *conditions: Any) -> bool:
        """Whether no packet of which the conditions hold is allowed."""
        decided = Meaning(self.rules, self.slots, UPLINK, numbered(self.rules.rules)).deciding(self.p)
        solver = z3.SolverFor("QF_BV")
        solver.add(self.p.can_be(), decided != 0, z3.Extract(63, 62, decided) == ALLOWED, *conditions)
        return bool(solver.check() == z3.unsat)

    def at(self, end: Any, *names: str) -> Any:
        """That an end is one of these domains, the host, or behind the uplink."""
        seats = {**self.slots, DOM0: 0, LAN: NODE_LAN}
        return z3.Or([end == seats[name] for name in names])

    def domain(self, end: Any) -> Any:
        """That an end is a domain, whether named in the rules or not, and not the host."""
        return z3.And(end != NODE_LAN, end != 0)

    def within(self, *networks: IPv4Network) -> Any:
        """That whoever is behind the uplink has one of these addresses."""
        first_to_last = [(int(n.network_address), int(n.broadcast_address)) for n in networks]
        return z3.Or([z3.And(z3.UGE(self.p.remote, a), z3.ULE(self.p.remote, b)) for a, b in first_to_last])

    def is_(self, protocol: int, *ports: int) -> Any:
        """That it is IP of this protocol, and for one of these ports if any are given."""
        any_of = z3.Or([self.p.port == port for port in ports]) if ports else True
        return z3.And(self.p.ether == 0, self.p.protocol == protocol, any_of)


@pytest.fixture(params=[(), ("web", "db")], ids=["unnamed", "named"])
def xen(request: pytest.FixtureRequest) -> Promises:
    return Promises("xen.rules", request.param or ("one", "two"))


@pytest.fixture
def sandbox() -> Promises:
    return Promises("sandbox.rules", ("one", "two"))


@pytest.fixture
def tiers() -> Promises:
    return Promises("web-db.rules", ("web", "web2", "db", "ci", "other"))


# xen.rules: what the Xen 1.x FAQ promised, and nothing else


def test_xen_by_example(xen: Promises) -> None:
    one, two = xen.slots
    for allowed in (f"{one} -> {DESKTOP} tcp 445", f"{one} -> {SITE} udp 53", f"{one} -> 10.0.0.1 icmp",
                    f"{DESKTOP} -> {two} tcp 22", f"dom0 -> {two} tcp 8080", f"dom0 -> {two} icmp"):  # fmt: skip
        assert xen.says(allowed) == "allow"
    for denied in (f"{one} -> {two} tcp 22", f"{two} -> {one} icmp", f"{one} -> dom0 tcp 22",
                   f"{DESKTOP} -> {one} tcp 80", f"{DESKTOP} -> {one} udp 22", f"{DESKTOP} -> {one} icmp"):  # fmt: skip
        assert xen.says(denied) == "deny"


def test_xen_for_all_packets(xen: Promises) -> None:
    p = xen.p
    assert xen.never(xen.domain(p.opener), xen.domain(p.target)), "a domain reaches no domain"
    assert xen.never(xen.domain(p.opener), p.target == 0), "nor the host"
    assert xen.never(p.opener == NODE_LAN, xen.domain(p.target), z3.Not(xen.is_(TCP, 22))), "the LAN has ssh alone"
    assert xen.never(p.ether == 1)
    assert not xen.never(p.opener == NODE_LAN, xen.domain(p.target))


def test_xen_is_what_it_was() -> None:
    assert str(_rules("xen.rules")) == "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\n"


# sandbox.rules


def test_sandbox_by_example(sandbox: Promises) -> None:
    for allowed in (f"one -> {SITE} tcp 443", f"two -> {SITE} udp 53", f"one -> {SITE} tcp 53"):
        assert sandbox.says(allowed) == "allow"
    for denied in (
        f"one -> {SITE} tcp 80", f"one -> {SITE} tcp 25", f"one -> {SITE} icmp", f"one -> {SITE} udp 443",
        f"one -> {DESKTOP} tcp 443", "one -> 10.1.1.1 tcp 443", "one -> 192.168.1.1 udp 53",
        "one -> 169.254.169.254 tcp 443", "one -> two tcp 443", "one -> dom0 udp 53", "dom0 -> one tcp 22",
        f"{SITE} -> one tcp 443", f"{DESKTOP} -> one tcp 22",
    ):  # fmt: skip
        assert sandbox.says(denied) == "deny"


def test_sandbox_for_all_packets(sandbox: Promises) -> None:
    p = sandbox.p
    web_and_names = z3.Or(sandbox.is_(TCP, 53, 443), sandbox.is_(UDP, 53))
    assert sandbox.never(p.target != NODE_LAN), "nobody reaches a domain, nor the host: not even another sandbox"
    assert sandbox.never(sandbox.within(*LOCAL, UPLINK)), "nothing near, and no metadata"
    assert sandbox.never(z3.Not(web_and_names))
    assert not sandbox.never(sandbox.domain(p.opener), web_and_names)


HASTE = """
allow any -> any
allow any -> any ether 0x889a
allow one -> 10.0.0.0/8, 192.168.0.0/16, 172.16.0.0/12, 100.64.0.0/10
allow one -> dom0
allow lan -> one tcp 22
"""


def test_sandbox_holds_against_rules_added_in_haste(sandbox: Promises) -> None:
    text = (ROOT / "sandbox.rules").read_text() + HASTE
    sandbox.rules = parse_document(text, "sandbox.rules").rules
    p, near = sandbox.p, [net for net in LOCAL if not net.is_link_local]
    ip = p.ether == 0  # raw Ethernet goes to no address
    assert sandbox.never(ip, sandbox.domain(p.opener), p.target == 0), "the host"
    assert sandbox.never(ip, sandbox.domain(p.opener), p.target == NODE_LAN, sandbox.within(*near)), "private ranges"
    assert sandbox.never(ip, p.opener == NODE_LAN, sandbox.domain(p.target)), "from outside"
    assert not sandbox.never(sandbox.domain(p.opener), sandbox.domain(p.target)), "haste has its price all the same"


# web-db.rules


def test_tiers_by_example(tiers: Promises) -> None:
    for allowed in (
        f"{DESKTOP} -> web tcp 443", f"{SITE} -> web2 tcp 443", "web -> db tcp 5432", "web2 -> db tcp 5432",
        f"web -> {SITE} tcp 443", f"db -> {SITE} tcp 80", f"db -> {SITE} udp 53",
        "ci -> db tcp 22", "ci -> web2 icmp", "dom0 -> web tcp 22",
    ):  # fmt: skip
        assert tiers.says(allowed) == "allow"
    for denied in (
        f"{DESKTOP} -> db tcp 5432", f"{DESKTOP} -> web tcp 22", f"{DESKTOP} -> ci tcp 22", "ci -> db tcp 5432",
        "other -> db tcp 5432", "other -> web tcp 443", "db -> web tcp 443", "web -> web2 tcp 443",
        f"db -> {DESKTOP} tcp 443", "web -> dom0 tcp 22", "web -> ci tcp 22", f"ci -> {SITE} tcp 443",
    ):  # fmt: skip
        assert tiers.says(denied) == "deny"
    assert tiers.says("web -> db tcp 22") == tiers.says("db -> web2 tcp 22") == "reject"


def test_tiers_for_all_packets(tiers: Promises) -> None:
    p, web, ops = tiers.p, ("web", "web2"), ("ci", "dom0")
    to_db = tiers.at(p.target, "db")
    assert tiers.never(to_db, z3.Not(tiers.at(p.opener, *web, *ops))), "db answers web and ops alone"
    assert tiers.never(to_db, tiers.at(p.opener, *web), z3.Not(tiers.is_(TCP, 5432))), "and web at one port"
    assert tiers.never(to_db, tiers.at(p.opener, *ops), z3.Not(z3.Or(tiers.is_(TCP, 22), tiers.is_(ICMP, 0))))
    from_lan = p.opener == NODE_LAN
    assert tiers.never(from_lan, z3.Not(z3.And(tiers.at(p.target, *web), tiers.is_(TCP, 443)))), (
        "the LAN sees web's 443"
    )
    assert tiers.never(p.target == NODE_LAN, tiers.within(*LOCAL, UPLINK)), "updates are not fetched from the LAN"
    assert tiers.never(tiers.at(p.opener, *web, "db"), p.target == 0), "no server reaches the host"
    assert tiers.never(p.ether == 1)
    assert not tiers.never(to_db)


def test_tiers_has_a_forward_that_its_rules_let_in() -> None:
    document = parse_document((ROOT / "web-db.rules").read_text(), "web-db.rules")
    (forward,) = document.forwards
    assert forward == ForwardRule("tcp", (443, 443), "web", (443, 443), comment="the shop")
    traffic = Traffic(TCP, forward.inside[0])
    assert document.rules.decide(Party(address=IPv4Address(SITE)), Party(forward.domain), traffic, UPLINK) == "allow"


def test_a_limit_is_on_what_web_asks_db(tiers: Promises) -> None:
    assert tiers.policy.limit(tiers.slots["web"], tiers.slots["db"], TCP, 5432)[1] == 100
