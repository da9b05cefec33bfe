"""The rule language: what it says, that it reads what it writes, and that order and strangers make no difference.

That tables mean what rules say is proven in tests/properties/test_proof.py.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rule_sets import SLOTS, UPLINK, addresses, documents, rule_sets

from vfr.policy import (
    CompiledPolicy,
    Document,
    ForwardRule,
    Party,
    Rule,
    RuleError,
    RuleSet,
    Traffic,
    What,
    compile_rules,
    parse,
)
from vfr.policy import parse_document as read
from vfr.policy.compile import NODE_LAN, PAIRS_MOST, TooManyError
from vfr.policy.language import DhcpLine, DomainLine, NatLine, stray_names
from vfr.policy.rules import ICMP, TCP, UDP
from vfr.settings import DhcpWords

slow = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WEB, DB, REMOTE = Party("web"), Party("db"), Party(address=IPv4Address("198.51.100.7"))


def _tables(rules: RuleSet) -> tuple[object, ...]:
    """What the fastpath sees of them."""
    policy = compile_rules(rules, SLOTS, UPLINK)
    return policy.pairs, policy.sets, policy.groups, policy.remotes


# What a text says


STATEMENTS = {
    "allow web -> db": Rule("allow", ("web",), ("db",)),
    "deny web, ci -> db,dom0": Rule("deny", ("web", "ci"), ("db", "dom0")),
    "reject web <-> lan": Rule("reject", ("web",), ("lan",), both=True),
    "allow web -> db tcp": Rule("allow", ("web",), ("db",), What(TCP)),
    "allow web -> db udp 53, 67-69": Rule("allow", ("web",), ("db",), What(UDP, ((53, 53), (67, 69)))),
    "allow web -> db icmp": Rule("allow", ("web",), ("db",), What(ICMP)),
    "allow web -> db icmp echo,13": Rule("allow", ("web",), ("db",), What(ICMP, ((0, 0), (13, 13)))),
    "allow web -> db proto gre": Rule("allow", ("web",), ("db",), What(47)),
    "allow web -> db proto 132": Rule("allow", ("web",), ("db",), What(132)),
    "allow web -> db ether 0x889a": Rule("allow", ("web",), ("db",), What(0, ((0x889A, 0x889A),), True)),
    "allow web -> 192.0.2.0/24 log": Rule("allow", ("web",), ("192.0.2.0/24",), log=True),
    'allow web -> db limit 10/s comment "a # b" log': Rule(
        "allow", ("web",), ("db",), log=True, limit=10, comment="a # b"
    ),
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_a_rule(text: str) -> None:
    assert parse(text, "f").rules == (STATEMENTS[text],)
    assert parse(f"\t{text}   # why\r\n", "f").rules == (STATEMENTS[text],)


def test_groups_and_sets() -> None:
    text = """
        group tier = web, db
        group all = { tier,      # one,
                      ci,
                      dom0, }
        group nobody =
        set site = 192.0.2.0/24
        set wide = {
            site, 2001:db8::/32,

            198.51.100.1-198.51.100.3
        }
        set void = {}
    """
    rules = parse(text, "f")
    assert rules.members("all") == {"web", "db", "ci", "dom0"} and rules.members("nobody") == frozenset()
    blocks = ["192.0.2.0/24", "198.51.100.1/32", "198.51.100.2/31", "2001:db8::/32"]
    assert sorted(map(str, rules.blocks("wide"))) == blocks
    assert rules.blocks("void") == frozenset()


FORWARDS = {
    "forward tcp 80 -> web": ForwardRule("tcp", (80, 80), "web", (80, 80)),
    "forward udp 53 -> db 5353": ForwardRule("udp", (53, 53), "db", (5353, 5353)),
    "forward tcp 8000-8010 -> web 9000-9010": ForwardRule("tcp", (8000, 8010), "web", (9000, 9010)),
    "forward tcp 8000-8010 -> web": ForwardRule("tcp", (8000, 8010), "web", (8000, 8010)),
    "forward tcp 80 -> web on eth0": ForwardRule("tcp", (80, 80), "web", (80, 80), "eth0"),
    'forward tcp 80 -> web 8080 on 127.0.0.1 comment "x"': ForwardRule(
        "tcp", (80, 80), "web", (8080, 8080), "127.0.0.1", "x"
    ),
}


@pytest.mark.parametrize("text", FORWARDS)
def test_a_forward(text: str) -> None:
    document = read(f"\n  {text}\n", "f")
    assert document.forwards == (FORWARDS[text],) and document.places == ((2, 15),)


def test_nat_and_domains() -> None:
    text = "nat eth0 ssh 2-19 ports 16384-32767 address 192.0.2.1\ndomain web netns w half-open 9\ndomain db tap tap0\n"
    document = read(text, "f")
    assert document.nat == NatLine("eth0", "192.0.2.1", (16384, 32767), None, (2, 19))
    assert document.domains == (
        DomainLine("web", "netns", "w", limits=(("half_open", 9),)),
        DomainLine("db", "tap", "tap0"),
    )
    assert document.domain_lines == (2, 3)
    assert (read("nat off", "f").nat, read("", "f").nat) == (NatLine("off"), None)
    assert (read("domain none", "f").domains, read("", "f").domains) == ((), None)


def test_dhcp() -> None:
    text = "dhcp web answered no\ndhcp any lease 7200 dns 192.0.2.53, 192.0.2.54 prefix 16\ndhcp db dns none\ndhcp ci\n"
    document = read(text, "f")
    servers = (IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54"))
    assert document.dhcp == (
        DhcpLine("web", DhcpWords(on=False)),
        DhcpLine("any", DhcpWords(dns=servers, lease=7200, prefix=16)),
        DhcpLine("db", DhcpWords(dns=())),
        DhcpLine("ci"),
    )
    assert document.dhcp_lines == (1, 2, 3, 4) and read("", "f").dhcp == ()


def test_rules_know_where_they_stand() -> None:
    rules = parse("\n\nallow web -> db\r\nset s = {\n 192.0.2.1 }\ndeny web -> s\n", "office.rules")
    assert [rules.where(i) for i in range(2)] == ["office.rules:3", "office.rules:6"]


@given(documents())
@slow
def test_round_trip(wanted: Document) -> None:
    assert read(str(wanted), "f") == wanted
    assert read(str(wanted).replace("\n", "\r\n"), "f") == wanted


WORDS = """allow deny reject group set forward nat domain any lan dom0 web tier -> <-> , { } = tcp udp icmp proto ether log
limit comment on 22 80-90 0x889a 10/s 192.0.2.0/24 2001:db8::1 192.0.2.9-192.0.2.3 none off ssh 2-19 netns address "so" #"""
PIECES = st.sampled_from(
    [*WORDS.split(), "\n", "\r\n", "\r", "\t", "\0", "\u00b2", "\u0663", "\u2028", "9" * 5000, '"']
)


@st.composite
def _spoiled(draw: st.DrawFn) -> str:
    """A document in which a few words are others."""
    words = str(draw(documents())).split(" ")
    for index in draw(st.lists(st.integers(0, len(words) - 1), max_size=2)):
        words[index] = draw(PIECES)
    return " ".join(words)


@given(st.one_of(_spoiled(), st.lists(PIECES, max_size=14).map(" ".join), st.text(max_size=30)))
@settings(slow, max_examples=1000)
def test_any_text_is_read_or_refused_at_its_place(text: str) -> None:
    try:
        document = read(text, "f")
    except RuleError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(lines[error.line - 1]) + 1
        assert str(error).startswith(f"f:{error.line}:{error.column}: ")
    else:
        assert read(str(document), "f") == document


def test_a_rule_that_exists_is_legal() -> None:
    for wrong in (
        lambda: Rule("permit", ("web",), ("db",)),
        lambda: Rule("allow", (), ("db",)),
        lambda: Rule("allow", ("Web",), ("db",)),
        lambda: Rule("allow", ("web",), ("192.0.2.1/24",)),
        lambda: Rule("allow", ("web",), ("db",), comment='say "so"'),
        lambda: Rule("allow", ("web",), ("db",), comment="two\nlines"),
        lambda: What(ICMP, ((8, 8),)),
        lambda: What(ICMP, ((0, 13),)),
        lambda: What(0, ((0x0700, 0x0900),), True),
        lambda: What(47, ((1, 1),)),
        lambda: What(256),
        lambda: ForwardRule("tcp", (80, 80), "any", (80, 80)),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()


# What rules mean


@given(rule_sets(), st.randoms(use_true_random=False))
@slow
def test_order_does_not_matter(rules: RuleSet, random: st.DataObject) -> None:
    """Attribution apart, which goes by the number: with numbers of their own, rules may stand anywhere."""
    numbers = {rule: number for number, rule in enumerate(dict.fromkeys(rules.rules), 1)}
    order = list(rules.rules)
    random.shuffle(order)  # type: ignore[attr-defined]
    policies = [
        compile_rules(replace(rules, rules=tuple(some)), SLOTS, UPLINK, [numbers[rule] for rule in some])
        for some in (rules.rules, order)
    ]
    one, other = policies
    assert (one.pairs, one.sets, one.groups, one.remotes, one.rules) == (
        other.pairs, other.sets, other.groups, other.remotes, other.rules
    )  # fmt: skip


@given(rule_sets(), st.randoms(use_true_random=False), addresses(), st.integers(0, 65535))
@slow
def test_order_does_not_matter_to_the_meaning(
    rules: RuleSet, random: st.DataObject, address: IPv4Address, port: int
) -> None:
    order = list(rules.rules)
    random.shuffle(order)  # type: ignore[attr-defined]
    other = replace(rules, rules=tuple(order))
    for traffic in (Traffic(TCP, port), Traffic(ICMP, 0), Traffic(47)):
        for pair in ((WEB, DB), (WEB, Party(address=address)), (Party(address=address), DB)):
            assert rules.decide(*pair, traffic, UPLINK) == other.decide(*pair, traffic, UPLINK)


@given(rule_sets())
@slow
def test_ipv6_leaves_the_ipv4_tables_as_they_are(rules: RuleSet) -> None:
    """A rule or a set with the IPv6 taken out makes the very same tables, and no other word takes its place."""

    def without(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word for word in words if ":" not in word)

    sets = {name: without(members) for name, members in rules.sets.items()} | {"no-ipv4": ()}
    some = [
        replace(rule, openers=without(rule.openers) or ("no-ipv4",), targets=without(rule.targets) or ("no-ipv4",))
        for rule in rules.rules
    ]
    numbers = {rule: number for number, rule in enumerate(dict.fromkeys(rules.rules), 1)}
    given = [numbers[rule] for rule in rules.rules]
    one = compile_rules(rules, SLOTS, UPLINK, given)
    other = compile_rules(RuleSet(tuple(some), rules.groups, sets), SLOTS, UPLINK, given)
    assert (one.pairs, one.sets, one.groups) == (other.pairs, other.sets, other.groups)
    assert one.remotes == other.remotes


@pytest.mark.parametrize("ipv6", ["2001:db8::/32", "::/0", "2001:db8::1-2001:db8::9", "::ffff:198.51.100.7"])
def test_ipv6_alone_matches_no_ipv4(ipv6: str) -> None:
    for text in (f"allow web -> {ipv6}\n", f"set s = {ipv6}\nallow web -> s\nallow s -> any\n"):
        rules = parse(text, "f")
        assert _tables(rules)[:3] == ({}, {}, {}) and rules.decide(WEB, REMOTE, Traffic(TCP, 80)) == "deny"
        assert compile_rules(rules, SLOTS, UPLINK).decide(1, NODE_LAN, TCP, 80, 0xC6336407) == "deny"


def test_ipv6_in_the_meaning() -> None:
    rules = parse("allow web -> 2001:db8::/32 tcp 443\nallow web -> internet udp\nallow web -> lan icmp\n", "f")
    six = Party(address=IPv6Address("2001:db8::7"))
    assert rules.decide(WEB, six, Traffic(TCP, 443)) == "allow"
    assert rules.decide(WEB, six, Traffic(UDP, 443)) == "deny", "documentation is not the internet"
    assert rules.decide(WEB, Party(address=IPv6Address("2600::1")), Traffic(UDP, 443)) == "allow"
    assert rules.decide(WEB, six, Traffic(ICMP, 0)) == "allow"


@pytest.mark.parametrize("nothing", ["void", "nobody", "stranger", "void, stranger"])
def test_nothing_matches_nothing(nothing: str) -> None:
    """Above all not everything, as where an empty list means any."""
    names = "set void =\ngroup nobody = {}\n"
    for text in (f"allow {nothing} -> any", f"allow any -> {nothing}", f"allow web <-> {nothing} tcp 22"):
        rules = parse(f"{names}{text}\n", "f")
        assert _tables(rules)[:3] == ({}, {}, {})
        assert (
            rules.decide(WEB, REMOTE, Traffic(TCP, 22)) == "deny" and rules.decide(WEB, DB, Traffic(TCP, 22)) == "deny"
        )


def test_a_denied_nothing_denies_nothing() -> None:
    some = "set void =\nallow web -> lan\n"
    assert _tables(parse(some, "f")) == _tables(parse(f"{some}deny web -> void, stranger\n", "f"))


def test_an_address_is_behind_the_uplink_and_never_a_domain() -> None:
    """Not even a name that is a set's; and a block of everything is no domain's either."""
    text = "set web = 198.51.100.0/24\nallow 0.0.0.0/0 -> db\nallow web -> ci\n"
    rules, policy = parse(text, "f"), compile_rules(parse(text, "f"), SLOTS, UPLINK)
    for pair, nodes, decided in (
        ((REMOTE, DB), (NODE_LAN, 2), "allow"),
        ((WEB, DB), (1, 2), "deny"),
        ((WEB, Party("ci")), (1, 3), "deny"),
        ((REMOTE, Party("ci")), (NODE_LAN, 3), "allow"),
    ):
        assert rules.decide(*pair, Traffic(TCP, 1)) == decided
        assert policy.decide(*nodes, TCP, 1, 0xC6336407) == decided


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("192.0.2.11", "local: the uplink's own network"),
        ("10.1.2.3", "local"), ("172.31.0.1", "local"), ("192.168.9.9", "local"), ("100.127.255.255", "local"),
        ("169.254.169.254", "local"), ("192.0.0.8", "local"), ("198.18.0.77", "local"), ("198.19.255.255", "local"),
        ("203.0.113.9", "internet"), ("172.32.0.1", "internet"), ("100.128.0.0", "internet"),
        ("198.20.0.0", "internet"), ("11.0.0.0", "internet"), ("9.255.255.255", "internet"),
    ],
)  # fmt: skip
def test_internet_is_the_lan_without_what_is_near(address: str, kind: str) -> None:
    rules = parse("allow web -> internet\nallow db -> lan\n", "f")
    policy, remote = compile_rules(rules, SLOTS, UPLINK), IPv4Address(address)
    said = "deny" if kind.startswith("local") else "allow"
    assert rules.decide(WEB, Party(address=remote), Traffic(TCP, 1), UPLINK) == said
    assert policy.decide(1, NODE_LAN, TCP, 1, int(remote)) == said
    assert policy.decide(2, NODE_LAN, TCP, 1, int(remote)) == "allow"


def _decider(policy: CompiledPolicy, port: int) -> Rule | None:
    number = policy.deciding(1, 2, Traffic(TCP, port))
    return policy.rules[number] if number else None


def test_which_of_several_rules_counts() -> None:
    """The strongest action; of allow rules the most generous; then one that logs; then the first."""
    lines = [
        'allow web -> db tcp 1 limit 9/s comment "less"', 'allow web -> any tcp 1 limit 10/s comment "more"',
        'allow any -> any tcp 2 comment "any number"', 'allow web -> db tcp 2 limit 10000000/s comment "less"',
        'allow web -> db tcp 3 comment "silent"', 'allow any -> any tcp 3 log comment "logs"',
        'allow web -> db tcp 4 limit 5/s log comment "stricter"', 'allow any -> any tcp 4 limit 6/s comment "generous"',
        'reject any -> any tcp 5 comment "stronger"', 'allow web -> db tcp 5 log comment "weaker"',
        'allow any -> any tcp 6 comment "first"', 'allow web -> db tcp 6 comment "second"',
    ]  # fmt: skip
    rules = parse("\n".join(lines), "f")
    policy = compile_rules(rules, SLOTS, UPLINK)
    said = {port: rule.comment for port in range(1, 7) if (rule := _decider(policy, port))}
    assert said == {1: "more", 2: "any number", 3: "logs", 4: "generous", 5: "stronger", 6: "first"}
    for port in said:
        index = rules.deciding(WEB, DB, Traffic(TCP, port))
        assert index is not None and rules.rules[index].comment == said[port]


def test_names_that_nobody_has_are_told() -> None:
    text = "group tier = web\nallow teir -> db\nallow interent -> db, 192.0.2.1\nallow teir -> any\nallow zz -> db\n"
    assert list(stray_names(parse(text, "f.rules"), ["db", "web"])) == [
        "f.rules:2: no domain has the name 'teir' yet (did you mean 'tier'?)",
        "f.rules:3: no domain has the name 'interent' yet (did you mean 'internet'?)",
        "f.rules:5: no domain has the name 'zz' yet",
    ]


# What is too much


def test_groups_that_meet_too_often_are_refused_at_once() -> None:
    """Each domain is in groups of its own, so that each is a node; two such sides make more pairs than there may be."""
    names = [f"d{i}" for i in range(1100)]
    memberships = [f"group b{bit} = {', '.join(n for i, n in enumerate(names) if i >> bit & 1)}" for bit in range(11)]
    words = ", ".join(f"b{bit}" for bit in range(11))
    rules = parse("\n".join([*memberships, f"allow {words} -> {words}"]), "f")
    with pytest.raises(TooManyError, match=f"more than {PAIRS_MOST} pairs"):
        compile_rules(rules, {name: slot for slot, name in enumerate(names, 1)})


def test_as_many_rules_of_one_pair_as_there_are_ports() -> None:
    """One walk along the ports, and not all rules anew at each."""
    rules = tuple(
        Rule("deny" if port % 7 == 0 else "allow", ("web",), ("db",), What(TCP, ((port, port + port % 5),)))
        for port in range(65530)
    )
    policy = compile_rules(RuleSet(rules), SLOTS)
    for port in (*range(60), *range(65000, 65060)):
        denied = any(begin + begin % 5 >= port for begin in range(max(port - 4, 0), port + 1) if begin % 7 == 0)
        assert (policy.decide(1, 2, TCP, port) == "deny") == denied
