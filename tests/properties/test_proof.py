"""That compiled tables mean what rules say, for all packets: z3 finds no packet about which they differ.

tests/support/proof.py has both as formulas. Here they are compared for the rule sets that ship, for many made up
(VFR_LONG=1: for ten times as many, and those that fail are made smaller), and for tables tampered with, where a packet
must be found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.proof import Meaning, Packet, Tables, at, difference, party
from support.rule_sets import SLOTS, UPLINK, addresses, rule_sets

from vfr.policy import CompiledPolicy, RuleSet, Traffic, compile_rules, numbered, parse
from vfr.policy.compile import IS_RULE, NODE_LAN, OPENS, SHUTS
from vfr.policy.rules import KEYWORDS, looks_like_address

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("rules/*.rules"), *ROOT.glob("examples/**/*.rules")])
LONG = 10 if os.environ.get("VFR_LONG") else 1
# A rule set that fails is made smaller only then: that takes minutes, and the packet says enough.
PHASES = tuple(Phase) if LONG > 1 else (Phase.generate,)
same_every_time = settings(
    max_examples=300 * LONG,
    deadline=None,
    derandomize=True,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow],
)


def _domains(rules: RuleSet) -> list[str]:
    """The names of a rule set that can only be domains'."""
    words = {word for rule in rules.rules for word in (*rule.openers, *rule.targets)}
    words |= {word for members in rules.groups.values() for word in members}
    known = {*rules.groups, *rules.sets, *KEYWORDS}
    return sorted(word for word in words if word not in known and not looks_like_address(word))


# The proof


@pytest.mark.parametrize("lan", [None, "192.0.2.0/24", "10.0.0.0/8", "198.51.100.64/26"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_rules(path: Path, lan: str | None) -> None:
    rules = parse(path.read_text(), path.name)
    slots = {name: slot for slot, name in enumerate(_domains(rules), 1)}
    network = IPv4Network(lan) if lan else None
    for some in (slots, dict(list(slots.items())[::2]), {}):  # all are there, or every other, or nobody
        assert difference(rules, compile_rules(rules, some, network), some, network, numbered(rules.rules)) is None


@same_every_time
@given(rule_sets(), st.sampled_from([UPLINK, None, IPv4Network("10.0.0.0/8"), IPv4Network("0.0.0.0/0")]), st.data())
def test_made_up_rules(rules: RuleSet, lan: IPv4Network | None, data: st.DataObject) -> None:
    """With numbers in any order, as rules have them that came later."""
    fresh = data.draw(st.permutations(range(1, len(rules.rules) + 1)))
    by_rule = dict(zip(dict.fromkeys(rules.rules), fresh, strict=False))
    numbers = [by_rule[rule] for rule in rules.rules]
    assert difference(rules, compile_rules(rules, SLOTS, lan, numbers), SLOTS, lan, numbers) is None


@settings(same_every_time, max_examples=10 * LONG)
@given(rule_sets(least=30, most=60))
def test_made_up_rules_by_the_dozen(rules: RuleSet) -> None:
    assert difference(rules, compile_rules(rules, SLOTS, UPLINK), SLOTS, UPLINK, numbered(rules.rules)) is None


# What is proven is what the rest of the project calls so


@same_every_time
@given(
    rule_sets(),
    st.sampled_from([*range(5), NODE_LAN]),
    st.sampled_from([*range(5), NODE_LAN]),
    addresses(),
    st.builds(Traffic, st.sampled_from([0, 1, 6, 17, 47]), st.sampled_from([0, 13, 22, 80, 0x889A]), st.booleans()),
)
def test_formulas_say_what_rules_and_tables_say(
    rules: RuleSet, opener: int, target: int, address: IPv4Address, traffic: Traffic
) -> None:
    """The definition in rules.py, CompiledPolicy, which the model asks, and both formulas agree, packet by packet."""
    policy, numbers, remote = compile_rules(rules, SLOTS, UPLINK), numbered(rules.rules), int(address)
    meaning, tables, p = Meaning(rules, SLOTS, UPLINK, numbers), Tables(policy, policy.levels), Packet()
    one, other = party(opener, remote, SLOTS), party(target, remote, SLOTS)
    index = rules.deciding(one, other, traffic, UPLINK)
    number, rank = (numbers[index], rules.rules[index].rank) if index is not None else (0, 0)
    assert at(meaning.deciding(p), opener, target, remote, traffic) == rank << 32 | number
    assert at(tables.deciding(p), opener, target, remote, traffic) == rank << 32 | number
    assert (policy.deciding(opener, target, traffic, address) or 0) == number
    if NODE_LAN not in (opener, target):
        assert at(meaning.may_open(p), opener, target, remote, traffic) == rules.may_open(one, other)
        assert at(tables.may_open(p), opener, target, remote, traffic) == rules.may_open(one, other)
        assert policy.may_talk(opener, target) == rules.may_talk(one, other)


# That it can fail

EVERYTHING_MATTERS = """
group tier = web, db
set site = 198.51.100.0/24
allow web -> db tcp 22
deny ci -> web
reject any -> dom0 udp 53-54
allow tier -> any icmp
allow any -> tier udp 99
allow any -> site tcp 443
allow site -> tier tcp 8080
allow ci -> internet
allow internet -> ci tcp 80
deny any -> any tcp 25
allow web <-> ci ether 0x889a
allow web -> any udp 7
allow tier -> tier udp 11
"""


def _base() -> tuple[RuleSet, CompiledPolicy]:
    rules = parse(EVERYTHING_MATTERS, "base.rules")
    return rules, compile_rules(rules, SLOTS, UPLINK)


def _tampered() -> Iterator[tuple[str, CompiledPolicy, int]]:
    """Every entry of every table taken away or changed, one at a time, with what then stands in the header."""
    _, good = _base()

    def without(table: Mapping[Any, Any], key: object) -> dict[Any, Any]:
        return {k: v for k, v in table.items() if k != key}

    for pair, (number, flags) in good.pairs.items():
        yield f"no row {pair}", replace(good, pairs=without(good.pairs, pair)), good.levels
        if flags & IS_RULE:
            other = {**good.pairs, pair: (number, flags & ~IS_RULE)}
            yield f"row {pair} leads to a set", replace(good, pairs=other), good.levels
    for number, entries in good.sets.items():
        for i in range(len(entries)):
            fewer = {**good.sets, number: entries[:i] + entries[i + 1 :]}
            yield f"set {number} has no {entries[i]}", replace(good, sets=fewer), good.levels
            bits, *rest = entries[i]
            wider = {**good.sets, number: (*entries[:i], (bits - 1, *rest), *entries[i + 1 :])}
            yield f"set {number} has a wider {entries[i]}", replace(good, sets=wider), good.levels
    for slot in good.groups:
        yield f"slot {slot} in no group", replace(good, groups=without(good.groups, slot)), good.levels
    for remote in good.remotes:
        fewer = tuple(r for r in good.remotes if r != remote)
        yield f"no block {remote}", replace(good, remotes=fewer), good.levels
    for number in good.rules:
        yield f"no rule {number}", replace(good, rules=without(good.rules, number)), good.levels
    for bit in range(9):
        if good.levels & 1 << bit:
            yield f"no level {bit}", good, good.levels & ~(1 << bit)


def test_what_is_tampered_with_was_right() -> None:
    rules, policy = _base()
    assert policy.levels == 0x1FF, "rows on every pair of levels"
    assert difference(rules, policy, SLOTS, UPLINK, numbered(rules.rules)) is None


@pytest.mark.parametrize("what", [what for what, _, _ in _tampered()])
def test_a_changed_table_is_found_out(what: str) -> None:
    rules, _ = _base()
    policy, levels = next((policy, levels) for name, policy, levels in _tampered() if name == what)
    found = difference(rules, policy, SLOTS, UPLINK, numbered(rules.rules), levels)
    assert found and found.meant != found.found
    print(f"{what}: {found}")


@pytest.mark.parametrize(
    ("rules", "other", "said"),
    [
        ("allow web -> db tcp 22", "allow web -> db tcp 23", "web -> db tcp 2[23]: "),
        ("allow web -> 198.51.100.7", "allow web -> 198.51.100.6/31", "web -> 198.51.100.6 .*: by the rules deny, by none"),
        ("reject web -> db icmp", "deny web -> db icmp", "web -> db icmp .*: by the rules reject.* by the tables deny"),
        ("allow web -> db limit 9/s", "allow web -> db limit 8/s", "web -> db .*: by the rules allow, by rule 1"),
        ("allow web -> db ether 0x889a", "allow web -> db ether 0x889b", "web -> db ether 0x889[ab]: "),
        ("allow any -> internet", "allow any -> lan", r"-> (192\.|10\.|172\.|198\.|100\.|169\.)[0-9.]+ "),
        ("deny web -> db", "deny web -> db tcp\ndeny web -> db udp", "web -> db .*: by the rules deny, by rule 1"),
    ],
)  # fmt: skip
def test_the_packet_reads_as_a_rule_does(rules: str, other: str, said: str) -> None:
    """Tables of other rules than those that are meant."""
    wanted = parse(rules, "f")
    found = difference(wanted, compile_rules(parse(other, "f"), SLOTS, UPLINK), SLOTS, UPLINK, numbered(wanted.rules))
    assert found is not None
    assert re.search(said, str(found)), str(found)


@pytest.mark.parametrize("flag", [OPENS, SHUTS])
def test_a_wrong_flag_is_found_out(flag: int) -> None:
    """What ARP goes by, and packets do not."""
    rules = parse("allow web -> db tcp 22\ndeny db -> ci\nallow db -> ci\n", "f")
    policy = compile_rules(rules, SLOTS, UPLINK)
    for pair, (number, flags) in policy.pairs.items():
        if flags & flag:
            wrong = replace(policy, pairs={**policy.pairs, pair: (number, flags & ~flag)})
            found = difference(rules, wrong, SLOTS, UPLINK, numbered(rules.rules))
            break
    assert found and "(ARP)" in str(found) and "may open something" in str(found)
