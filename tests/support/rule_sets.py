"""Rule sets and whole documents as hypothesis makes them: few names and blocks, so that rules meet often."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from hypothesis import strategies as st

from vfr.policy import Document, ForwardRule, Rule, RuleSet, What
from vfr.policy.language import DhcpLine, DomainLine, NatLine
from vfr.policy.rules import ICMP, ICMP_REQUESTS, LIMIT_MOST, TCP, UDP
from vfr.settings import DhcpWords

SLOTS = {"web": 1, "db": 2, "ci": 3}
UPLINK = IPv4Network("192.0.2.0/24")
DOMAINS = ("dom0", *SLOTS, "idle")  # idle has no rule of its own, and no slot below
# Blocks in blocks, some half local, and of both families.
BLOCKS = (
    "192.0.2.0/25",
    "192.0.2.7",
    "192.0.2.6-192.0.2.9",
    "192.0.0.0/16",
    "198.51.100.0/24",
    "198.51.100.64-198.51.100.130",
    "198.51.100.128",
    "10.0.0.0/9",
    "0.0.0.0/0",
    "128.0.0.0/1",
    "2001:db8::/32",
    "2001:db8::7",
)
GROUPS, SETS = ("tier", "all", "nobody"), ("site", "wide", "void")
NEAR = ("any", "dom0", *SLOTS, *GROUPS)
WORDS = ("lan", "internet", "stranger", *NEAR, *SETS, *BLOCKS)
PORTS = st.one_of(st.sampled_from([0, 1, 21, 22, 23, 80, 65534, 65535]), st.integers(0, 65535))
COMMENTS = st.one_of(st.just(""), st.text("ab #;->.'0é", max_size=8))
ETHER_TYPES = st.sampled_from([0x0600, 0x889A, 0x88B5, 0xFFFF])


@st.composite
def whats(draw: st.DrawFn) -> What | None:
    """Which traffic."""
    number = draw(st.sampled_from([None, TCP, TCP, UDP, ICMP, 47, 0, 255]))
    if number in (TCP, UDP):
        ranges = st.tuples(PORTS, PORTS).map(lambda pair: (min(pair), max(pair)))
        return What(number, tuple(draw(st.lists(ranges, max_size=3))))
    if number == ICMP:
        kinds = draw(st.lists(st.sampled_from(sorted(ICMP_REQUESTS.values())), max_size=2))
        return What(ICMP, tuple((kind, kind) for kind in kinds))
    return None if number is None else What(number)


@st.composite
def rules(draw: st.DrawFn, words: Sequence[str] = WORDS) -> Rule:
    """Any rule about some of these words."""
    near = [word for word in words if word in NEAR]
    if near and draw(st.integers(0, 5)) == 0:
        return draw(_ether_rules(near))
    ends = st.lists(st.sampled_from(words), min_size=1, max_size=2).map(tuple)
    action = draw(st.sampled_from(["allow", "allow", "deny", "reject"]))
    limits = st.sampled_from([0, 0, 1, 5, LIMIT_MOST]) if action == "allow" else st.just(0)
    said = (draw(st.integers(0, 3)) == 0, draw(st.booleans()), draw(limits), draw(COMMENTS))
    return Rule(action, draw(ends), draw(ends), draw(whats()), *said)


@st.composite
def _ether_rules(draw: st.DrawFn, words: Sequence[str]) -> Rule:
    ends = st.lists(st.sampled_from(words), min_size=1, max_size=2).map(tuple)
    kinds = draw(st.lists(ETHER_TYPES, min_size=1, max_size=2))
    what = What(0, tuple((kind, kind) for kind in kinds), True)
    return Rule(draw(st.sampled_from(["allow", "deny"])), draw(ends), draw(ends), what, draw(st.booleans()))


@st.composite
def rule_sets(draw: st.DrawFn, least: int = 0, most: int = 8) -> RuleSet:
    """Rules, with what their names stand for, circles included. Half of them are about two or three words, and thus
    about the same pairs again and again."""
    members = st.lists(st.sampled_from(("dom0", *SLOTS, "stranger", *GROUPS[:2])), max_size=3).map(tuple)
    blocks = st.lists(st.sampled_from((*BLOCKS, *SETS[:2])), max_size=3).map(tuple)
    groups = {name: draw(members) for name in GROUPS[:2]} | {GROUPS[2]: ()}
    sets = {name: draw(blocks) for name in SETS[:2]} | {SETS[2]: ()}
    words = draw(st.one_of(st.just(WORDS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)))
    return RuleSet(tuple(draw(st.lists(rules(words), min_size=least, max_size=most))), groups, sets)


@st.composite
def _forwards(draw: st.DrawFn) -> tuple[ForwardRule, ...]:
    """Ports of one protocol do not meet, since each has a hundred of its own."""
    found = []
    for base in draw(st.lists(st.integers(1, 600), unique=True, max_size=4)):
        length, inside = draw(st.integers(0, 99)), draw(st.integers(1, 60000))
        found.append(
            ForwardRule(
                draw(st.sampled_from(["tcp", "udp"])),
                (base * 100, base * 100 + length),
                draw(st.sampled_from(sorted(SLOTS))),
                (inside, inside + length),
                draw(st.sampled_from(["", "eth0", "192.0.2.1", "lo", "127.0.0.1"])),
                draw(COMMENTS),
            )
        )
    return tuple(found)


_pairs = st.tuples(st.integers(0, 99), st.integers(100, 65535))
_nats = st.one_of(
    st.none(),
    st.just(NatLine("off")),
    st.builds(
        NatLine,
        st.sampled_from(["eth0", "br-lan", "wlp1s0.7"]),
        st.one_of(st.none(), st.just("192.0.2.1")),
        st.one_of(st.none(), _pairs),
        st.one_of(st.none(), st.integers(1, 4096)),
        st.one_of(st.none(), st.just((2, 19)), st.just((3, 3))),
    ),
)
_domains = st.builds(
    DomainLine,
    st.sampled_from([*SLOTS, "a.b", "c_d-1"]),
    st.sampled_from(["netns", "tap", "device"]),
    st.sampled_from(["x", "/run/netns/x", "tap0"]),
    st.one_of(st.none(), st.just("169.254.1.2")),
    st.one_of(st.none(), st.just("02:00:00:00:00:02")),
    st.lists(st.tuples(st.sampled_from(["sessions", "half_open"]), st.integers(1, 999)), unique_by=lambda p: p[0]).map(
        tuple
    ),
)

_servers = st.lists(st.sampled_from([IPv4Address(f"192.0.2.{n}") for n in (53, 54, 55)]), unique=True, max_size=3)
_dhcps = st.builds(
    DhcpLine,
    st.sampled_from(["any", *SLOTS, "a.b"]),
    st.builds(
        DhcpWords,
        st.one_of(st.none(), st.booleans()),
        st.one_of(st.none(), _servers.map(tuple)),
        st.one_of(st.none(), st.integers(20, 604800)),
        st.sampled_from([None, 16, 32]),
    ),
)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Everything that a file can say."""
    domains = draw(st.one_of(st.none(), st.lists(_domains, unique_by=lambda d: d.name, max_size=4).map(tuple)))
    dhcp = draw(st.lists(_dhcps, unique_by=lambda d: d.name, max_size=3).map(tuple))
    return Document(draw(rule_sets()), draw(_forwards()), draw(_nats), domains, dhcp)


def addresses() -> st.SearchStrategy[IPv4Address]:
    """Edges of BLOCKS, and any other."""
    edges = ["192.0.2.7", "192.0.2.130", "192.0.1.1", "198.51.100.128", "198.51.100.129", "10.128.0.0", "203.0.113.9"]
    return st.one_of(st.sampled_from([IPv4Address(e) for e in edges]), st.integers(0, 2**32 - 1).map(IPv4Address))


__all__ = ["DOMAINS", "SLOTS", "UPLINK", "addresses", "documents", "rule_sets", "rules", "whats"]
