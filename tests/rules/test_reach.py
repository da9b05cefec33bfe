"""What can talk to what: that the lines say what rules decide, for every party and traffic of a small world, and that
the lines of a change, applied to what was before, give what is after."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vfr.policy import ForwardRule, Party, Rule, RuleSet, Traffic, What, parse, parse_document
from vfr.policy.spans import IP, number, spans_of, words
from vfr.reach import (
    Change,
    Difference,
    Exposed,
    Permitted,
    Reach,
    Who,
    difference,
    difference_lines,
    exposure,
    exposure_lines,
    permitted,
    reach,
)

LAN = IPv4Network("192.0.2.0/24")
DOMAINS = ("web", "db", "ci", "mail", "idle")
# At least one of each part that the words below take addresses apart into.
ADDRESSES = (
    *("192.0.2.1", "192.0.2.7", "192.0.2.9", "192.0.2.12", "192.0.2.200", "10.1.2.3", "172.16.0.1"),
    *("198.51.100.5", "198.51.100.6", "203.0.113.7", "198.51.101.1"),
)
PARTIES = (*(Party(name) for name in ("dom0", *DOMAINS)), *(Party(address=IPv4Address(a)) for a in ADDRESSES))
TRAFFIC = (
    *(Traffic(6, port) for port in (0, 21, 22, 23, 80, 65535)),
    *(Traffic(17, port) for port in (0, 21, 22, 23, 53, 80, 65535)),
    *(Traffic(1, request) for request in (0, 13)),
    *(Traffic(n) for n in (0, 47, 255)),
    *(Traffic(0, kind, True) for kind in (0x889A, 0x88B5)),
)
SILENCE = ("deny", 0, False)
OUTCOME = tuple[str, int, bool]


# The small world


NEAR_WORDS = ("any", "dom0", "web", "db", "ci", "mail", "nobody", "tier", "stage", "empty")
FAR_WORDS = (
    "lan",
    "internet",
    "office",
    "friends",
    "192.0.2.7",
    "198.51.100.0/24",
    "192.0.2.8-192.0.2.15",
    "10.0.0.0/8",
)
PORTS = st.sampled_from([((22, 22),), ((22, 22), (80, 80)), ((0, 21),), ((23, 65535),), ((21, 23),), ()])
WHATS = st.one_of(
    st.none(),
    st.builds(What, st.sampled_from([6, 17]), PORTS),
    st.sampled_from([What(1), What(1, ((0, 0),)), What(1, ((13, 13), (0, 0))), What(47), What(17, ((53, 53),))]),
    st.sampled_from([What(0, ((0x889A, 0x889A),), True), What(0, ((0x88B5, 0x88B5), (0x889A, 0x889A)), True)]),
)


def some(of: Sequence[str], most: int = 3) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(of), max_size=most, unique=True).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    what = draw(WHATS)
    raw = what is not None and what.ether
    end = st.lists(st.sampled_from(NEAR_WORDS if raw else NEAR_WORDS + FAR_WORDS), min_size=1, max_size=2).map(tuple)
    action = draw(st.sampled_from(["allow", "allow", "deny"] if raw else ["allow", "allow", "allow", "deny", "reject"]))
    limit = draw(st.sampled_from([0, 0, 0, 5, 10])) if action == "allow" and not raw else 0
    return Rule(
        action, draw(end), draw(end), what, draw(st.booleans()), draw(st.sampled_from([False, False, True])), limit
    )


def definitions() -> st.SearchStrategy[tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]]:
    groups = st.fixed_dictionaries(
        {
            "tier": some(("web", "ci", "dom0", "nobody")),
            "stage": some(("tier", "db", "mail")),
            "empty": st.just(()),
            "unused": some(("web", "mail", "idle")),
        }
    )
    sets = st.fixed_dictionaries(
        {"office": some(("192.0.2.0/28", "203.0.113.0/24", "friends")), "friends": some(("198.51.100.5", "192.0.2.9"))}
    )
    return st.tuples(groups, sets)


def rule_sets(most: int = 6) -> st.SearchStrategy[RuleSet]:
    made = st.tuples(st.lists(rules(), max_size=most).map(tuple), definitions())
    return made.map(lambda pair: RuleSet(pair[0], *pair[1]))


def worlds(most: int = 6) -> st.SearchStrategy[Reach]:
    domains = st.sets(st.sampled_from(DOMAINS), min_size=3).map(sorted)
    return st.builds(
        reach, rule_sets(most), domains, st.sampled_from([LAN, LAN, None]), st.sampled_from([True, True, False])
    )


@st.composite
def edited(draw: st.DrawFn, old: Reach) -> Reach:
    """The same with a change or two; how people change rules."""
    lines, groups, sets = list(old.rules.rules), dict(old.rules.groups), dict(old.rules.sets)
    for _ in range(draw(st.integers(1, 2))):
        edit = draw(st.sampled_from(["add", "remove", "swap", "define"]))
        if edit == "define":
            groups, sets = draw(definitions())
        if edit in ("remove", "swap") and lines:
            lines.pop(draw(st.integers(0, len(lines) - 1)))
        if edit in ("add", "swap"):
            lines.insert(draw(st.integers(0, len(lines))), draw(rules()))
    more = draw(st.sampled_from([(), (), ("idle",), ("web", "mail")]))
    flip = draw(st.sampled_from([False, False, False, True]))
    return reach(RuleSet(tuple(lines), groups, sets), old.domains ^ {*more}, old.lan, old.nat ^ flip)


# What words mean, by other means than those that made them


@lru_cache(maxsize=4096)
def traffic_meant(text: str) -> tuple[tuple[bool, What | None], ...]:
    """(is meant, pattern), of which the later is stronger."""
    found: list[tuple[bool, What | None]] = []
    for part in text.split("; "):
        first, _, but = part.removeprefix("all IP").partition(" but ") if part.startswith("all IP") else (part, "", "")
        found.append((True, parse(f"allow a -> b {first}", "t").rules[0].what))
        for left_out in but.split(" and ") if but else ():
            found.append((False, parse(f"allow a -> b {left_out}", "t").rules[0].what))
    return tuple(found)


def is_traffic(text: str, traffic: Traffic) -> bool:
    said = False
    for is_meant, what in traffic_meant(text):
        if Rule("allow", ("a",), ("b",), what).speaks_of(traffic):
            said = is_meant
    return said


def is_word(word: str, party: Party, sides: Sequence[Reach]) -> bool:
    if word == "any domain":
        return party.address is None and party.name != "dom0"
    for side in sides:
        if word in side.rules.groups or word in side.rules.sets:
            return side.rules.matches(word, party, side.lan)
    return sides[0].rules.matches(word, party, sides[0].lan)


def is_one_of(who: Who, party: Party, sides: Sequence[Reach]) -> bool:
    return any(is_word(w, party, sides) for w in who.words) and not any(is_word(w, party, sides) for w in who.but)


def can_be(opener: Party, target: Party, traffic: Traffic) -> bool:
    """Whether rules decide about such a conversation at all."""
    far = [party.address is not None for party in (opener, target)]
    if any(far):
        return not all(far) and Party("dom0") not in (opener, target) and not traffic.ether
    return opener != target


def is_there(side: Reach, party: Party) -> bool:
    return side.nat if party.address is not None else party.name in side.domains


def outcome(side: Reach, opener: Party, target: Party, traffic: Traffic) -> tuple[int | None, OUTCOME]:
    if not is_there(side, opener) or not is_there(side, target):
        return None, SILENCE
    index = side.rules.deciding(opener, target, traffic, side.lan)
    if index is None:
        return None, SILENCE
    rule = side.rules.rules[index]
    return index, (rule.action, rule.limit, rule.log)


def said(result: OUTCOME) -> str:
    action, limit, log = result
    return action + (" log" if log else "") + (f" limit {limit}/s" if limit else "")


def about(
    lines: Iterable[Permitted | Change], opener: Party, target: Party, traffic: Traffic, *sides: Reach
) -> list[Permitted | Change]:
    return [
        line
        for line in lines
        if is_one_of(line.opener, opener, sides)
        and is_one_of(line.target, target, sides)
        and is_traffic(line.traffic, traffic)
    ]


def conversations() -> list[tuple[Party, Party, Traffic]]:
    return [(a, b, t) for a in PARTIES for b in PARTIES for t in TRAFFIC if can_be(a, b, t)]


CONVERSATIONS = conversations()
SAMPLE = st.randoms(use_true_random=False).map(lambda r: r.sample(CONVERSATIONS, 400))
CAREFUL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# Traffic in spans


@CAREFUL
@given(st.lists(st.builds(What, st.sampled_from([6, 17]), PORTS) | st.sampled_from([What(1), What(47)]), max_size=4))
def test_words_of_traffic_mean_what_they_were_made_from(whats: list[What]) -> None:
    from vfr.policy.spans import merged, without

    spans = merged(span for what in whats for span in spans_of(what))
    for is_kept, of in ((True, spans), (False, without(IP, spans))):
        for traffic in TRAFFIC:
            if not traffic.ether:
                expected = any(what.covers(traffic) for what in whats) == is_kept
                assert (bool(of) and is_traffic(words(of), traffic)) == expected, words(of)


def test_the_same_traffic_has_the_same_spans() -> None:
    assert spans_of(What(1)) == spans_of(What(1, ((13, 13), (0, 0))))
    assert spans_of(What(6, ((80, 81), (22, 22), (82, 90)))) == spans_of(What(6, ((22, 22), (80, 90))))
    assert words(spans_of(None)) == "all IP" and words(spans_of(What(0, ((0x889A, 0x889A),), True))) == "ether 0x889a"
    assert number(Traffic(0, 0x889A, True)) == spans_of(What(0, ((0x889A, 0x889A),), True))[0][0]


# Against the definition


@CAREFUL
@given(worlds(), SAMPLE)
def test_what_is_permitted_is_what_rules_decide(world: Reach, sample: list[tuple[Party, Party, Traffic]]) -> None:
    lines = permitted(world)
    for opener, target, traffic in sample:
        if is_there(world, opener) and is_there(world, target):
            index, result = outcome(world, opener, target, traffic)
            found = about(lines, opener, target, traffic, world)
            expected = [] if index is None or result[0] == "deny" else [(said(result), world.rules.where(index))]
            assert [(line.outcome, line.rule) for line in found if isinstance(line, Permitted)] == expected


def check_difference(old: Reach, new: Reach, sample: Iterable[tuple[Party, Party, Traffic]]) -> Difference:
    found = difference(old, new)
    assert found.unseen == 0
    for opener, target, traffic in sample:
        was, now = outcome(old, opener, target, traffic), outcome(new, opener, target, traffic)
        lines = [
            line
            for line in about(found.changes, opener, target, traffic, new, old)
            if isinstance(line, Change)
            and all(is_there(old if line.sign == "-" else new, party) for party in (opener, target))
        ]
        if was[1] == now[1] or (not (is_there(new, opener) and is_there(new, target)) and was[1][0] != "allow"):
            assert lines == [], (opener, target, traffic)
            continue
        sign = {(False, True): "+", (True, False): "-"}.get((was[1][0] == "allow", now[1][0] == "allow"), "~")
        where = old.rules.where(was[0] or 0) if now[0] is None else new.rules.where(now[0])
        expected = [(sign, said(was[1]), said(now[1]), where, now[0] is None)]
        assert [(c.sign, c.before, c.after, c.rule, c.was_rule) for c in lines] == expected, (opener, target, traffic)
    return found


@CAREFUL
@given(st.data(), worlds(), SAMPLE)
def test_a_change_applied_to_what_was_gives_what_is(
    data: st.DataObject, old: Reach, sample: list[tuple[Party, Party, Traffic]]
) -> None:
    check_difference(old, data.draw(edited(old)), sample)


@CAREFUL
@given(worlds(4), worlds(4), SAMPLE)
def test_another_rule_set_altogether(old: Reach, new: Reach, sample: list[tuple[Party, Party, Traffic]]) -> None:
    found = check_difference(old, new, sample)
    assert found.domains_added == tuple(sorted(new.domains - old.domains))
    assert bool(found.nat) == (old.nat != new.nat)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data(), worlds(3))
def test_a_difference_is_empty_exactly_if_nothing_is_decided_otherwise(data: st.DataObject, old: Reach) -> None:
    new = data.draw(edited(old))
    assume(old.domains == new.domains and old.nat == new.nat)
    same = all(
        outcome(old, *conversation)[1] == outcome(new, *conversation)[1]
        for conversation in CONVERSATIONS
        if all(is_there(new, party) for party in conversation[:2])
    )
    assert bool(difference(old, new)) != same


@CAREFUL
@given(worlds(), st.randoms(use_true_random=False))
def test_other_words_for_the_same_are_no_difference(old: Reach, chance: random.Random) -> None:
    renamed = {"tier": "layer", "office": "desks"}

    def again(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(renamed.get(w, w) for w in chance.sample(names, len(names)))

    def spelled(rule: Rule) -> list[Rule]:
        ends = {"openers": again(rule.openers), "targets": again(rule.targets)}
        if rule.both and chance.random() < 0.5:
            one = Rule(rule.action, ends["openers"], ends["targets"], rule.what, False, rule.log, rule.limit)
            return [one, Rule(rule.action, ends["targets"], ends["openers"], rule.what, False, rule.log, rule.limit)]
        return [Rule(rule.action, *ends.values(), rule.what, rule.both, rule.log, rule.limit, "said otherwise")]

    lines = [new for rule in old.rules.rules for new in spelled(rule)]
    chance.shuffle(lines)
    groups, sets = (
        {renamed.get(n, n): again(m) for n, m in named.items()} for named in (old.rules.groups, old.rules.sets)
    )
    new = reach(RuleSet(tuple(lines), groups, sets), old.domains, old.lan, old.nat)
    assert difference(old, new) == Difference() and difference(new, old) == Difference()


FORWARDS = (
    ForwardRule("tcp", (2202, 2202), "web", (22, 22)),
    ForwardRule("tcp", (8000, 8002), "web", (21, 23)),
    ForwardRule("udp", (5353, 5353), "db", (53, 53), "eth0"),
    ForwardRule("tcp", (8080, 8080), "db", (80, 80), "lo"),
    ForwardRule("tcp", (2203, 2203), "nobody", (22, 22)),
)


def door_targets(forwards: Sequence[ForwardRule], host_only: bool) -> list[tuple[str, int, str, Traffic]]:
    """(protocol, outside port, domain, what arrives there)."""
    return [
        (f.protocol, f.outside[0] + i, f.domain, Traffic({"tcp": 6, "udp": 17}[f.protocol], f.inside[0] + i))
        for f in forwards
        if (f.where == "lo") == host_only
        for i in range(f.outside[1] - f.outside[0] + 1)
    ]


def check_doors(world: Reach, found: dict[str, Exposed], forwards: Sequence[ForwardRule], host_only: bool) -> None:
    parties = [Party("dom0")] if host_only else [p for p in PARTIES if p.address and world.nat]
    for protocol, outside, domain, traffic in door_targets(forwards, host_only):
        for party in parties if domain in world.domains else ():
            doors = [
                door
                for door in found[domain].doors
                if (door.protocol, door.host_only) == (protocol, host_only)
                and door.outside[0] <= outside <= door.outside[1]
                and door.inside[0] - door.outside[0] == traffic.port - outside
                and is_one_of(door.who, party, [world])
            ]
            index, result = outcome(world, party, Party(domain), traffic)
            expected = [world.rules.where(index)] if index is not None and result[0] == "allow" else []
            assert [door.rule for door in doors] == expected, (party, outside)


@CAREFUL
@given(worlds(), st.lists(st.sampled_from(FORWARDS), unique=True))
def test_exposed_to_exactly_those_whom_rules_and_forwards_let_in(world: Reach, forwards: list[ForwardRule]) -> None:
    found = {one.domain: one for one in exposure(world, forwards)}
    assert found.keys() == world.domains - {"dom0"}
    for name, one in found.items():
        for opener, traffic in [(p, t) for p in PARTIES for t in TRAFFIC if can_be(p, Party(name), t)]:
            if opener.address is None and is_there(world, opener):
                index, result = outcome(world, opener, Party(name), traffic)
                lines = about(one.inside, opener, Party(name), traffic, world)
                expected = [world.rules.where(index)] if index is not None and result[0] == "allow" else []
                assert [line.rule for line in lines] == expected, (opener, name, traffic)
    check_doors(world, found, forwards, host_only=False)
    check_doors(world, found, forwards, host_only=True)
    assert sum(len(one.doors) for one in found.values() if not forwards) == 0


# In people's words


HOME = ("web", "db", "ci", "mail")
BEFORE = """\
group tier = web, ci
allow any -> lan
allow tier -> db tcp 5432
allow lan -> web tcp 80
deny ci -> db tcp 5432 log
"""


def of_text(text: str, domains: Iterable[str] = HOME, nat: bool = True) -> Reach:
    return reach(parse(text, "office.rules"), domains, LAN, nat)


def changed(before: str, after: str, domains: Iterable[str] = HOME) -> tuple[str, ...]:
    return difference_lines(difference(of_text(before), of_text(after, domains)))


def test_nothing_changed() -> None:
    assert changed(BEFORE, BEFORE) == ("what can talk to what stays the same",)
    reordered = "\n".join(reversed(BEFORE.replace("tier", "layer").splitlines()))
    assert changed(BEFORE, reordered) == ("what can talk to what stays the same",)


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (BEFORE + "allow mail -> web, db tcp 25,110", ["+ mail -> db, web tcp 25,110   (office.rules:6)"]),
        (BEFORE + "allow any -> any tcp 443", ["+ any -> any domain, dom0 tcp 443   (office.rules:6)"]),
        (BEFORE + "allow mail -> db icmp limit 5/s log", ["+ mail -> db icmp log limit 5/s   (office.rules:6)"]),
        (BEFORE + "deny web -> lan tcp 25", ["- web -> lan tcp 25   (office.rules:6)"]),
        (BEFORE + "reject web -> lan tcp 25", ["- web -> lan tcp 25: reject   (office.rules:6)"]),
        (BEFORE + "reject web -> ci udp", ["~ web -> ci udp: reject, was deny   (office.rules:6)"]),
        (BEFORE + "deny any -> 192.0.2.0/24", ["- any domain -> 192.0.2.0/24 all IP   (office.rules:6)"]),
        (
            BEFORE.replace("group tier = web, ci", "group tier = web, mail"),
            ["+ mail -> db tcp 5432   (office.rules:3)"],
        ),
        (
            BEFORE.replace("tcp 80", "tcp 80 limit 9/s"),
            ["~ lan -> web tcp 80: allow limit 9/s, was allow   (office.rules:4)"],
        ),
        (
            BEFORE.replace("allow lan -> web", "allow 192.0.2.7 -> web"),
            ["- lan but 192.0.2.7 -> web tcp 80   (was office.rules:4)"],
        ),
        (
            BEFORE.replace("allow lan -> web", "allow internet -> web"),
            ["- lan but internet -> web tcp 80   (was office.rules:4)"],
        ),
        (BEFORE + "allow web -> db ether 0x889a", ["+ web -> db ether 0x889a   (office.rules:6)"]),
        (BEFORE + "allow dom0 -> lan", []),  # the host's own affair
        (BEFORE + "allow web -> nobody", []),
    ],
)
def test_a_change_in_words(after: str, lines: list[str]) -> None:
    assert list(changed(BEFORE, after)[:-1]) == lines


def test_a_group_that_has_dom0_too_does_not_take_it_out() -> None:
    text = "group admin = db, dom0\nallow dom0, web, ci, mail, a, b, 192.0.2.7 -> srv tcp 9"
    found = difference(of_text("", names := (*HOME, "a", "b", "srv")), of_text(text, names))
    assert [str(c) for c in found.changes] == [
        "+ dom0, 192.0.2.7, any domain but db -> srv tcp 9   (office.rules:2)",
    ]


def test_a_domain_called_like_a_set_is_not_meant_by_it() -> None:
    text = "set web = 192.0.2.7\nallow web -> db tcp 80"
    assert [str(p) for p in permitted(of_text(text))] == ["192.0.2.7 -> db tcp 80   (office.rules:2)"]


def test_a_block_that_is_all_taken_by_smaller_ones_is_nobody() -> None:
    halves = "allow 192.0.2.0/25, 192.0.2.128/25 -> web tcp 80\ndeny 192.0.2.0/24 -> db"
    assert not difference(of_text(halves), of_text(f"{halves}\nallow 192.0.2.0/24 -> web tcp 80"))


def test_a_name_that_does_not_stay_the_same_is_not_used() -> None:
    before = "group tier = web, ci\nset office = 192.0.2.7"
    after = (
        "group tier = web, mail\nset office = 192.0.2.9\nallow web, ci -> db tcp 1\nallow web, mail -> db tcp 2\n"
        "allow office -> db tcp 3"
    )
    assert list(changed(before, after)[:-1]) == [
        "+ ci, web -> db tcp 1   (office.rules:3)",
        "+ mail, web -> db tcp 2   (office.rules:4)",
        "+ 192.0.2.9 -> db tcp 3   (office.rules:5)",
    ]


def test_the_internet_is_not_all_that_is_left_of_the_lan() -> None:
    text = "allow lan -> web tcp 80\ndeny 10.0.0.0/8 -> web"
    assert [str(p) for p in permitted(of_text(text))] == ["lan but 10.0.0.0/8 -> web tcp 80   (office.rules:1)"]


def test_domains_that_come_and_go() -> None:
    assert changed(BEFORE, BEFORE, ("web", "db", "ci", "new")) == (
        "+ domain new",
        "- domain mail",
        "+ new -> lan all IP   (office.rules:2)",
        "- mail -> lan all IP   (was office.rules:2)",
        "1 opened, 1 shut; 1 domains more, 1 fewer",
    )


def test_nat_and_forwards() -> None:
    ssh = ForwardRule("tcp", (2202, 2202), "web", (22, 22))
    forwards = parse_document("forward tcp 8080 -> web 80\nforward udp 5353 -> db 53 on lo", "f").forwards
    off, on = of_text(BEFORE, nat=False), of_text(BEFORE)
    lines = difference_lines(difference(off, on, ((ssh, forwards[1]), (ssh, *forwards))))
    assert lines == (
        "+ NAT",
        "+ LAN port tcp 2202 -> web:22; no rule lets anybody use it yet",
        "+ LAN port tcp 8080 -> web:80",
        "+ any domain -> lan all IP   (office.rules:2)",
        "+ lan -> web tcp 80   (office.rules:4)",
        "2 opened; 2 ports forwarded; NAT on",
    )
    split = parse_document("forward tcp 9000 -> web 80\nforward tcp 9001 -> web 81", "f").forwards
    joined = parse_document("forward tcp 9000-9001 -> web 80-81", "f").forwards
    assert not difference(on, on, (split, joined))
    moved = parse_document("forward tcp 9000-9001 -> gone 80-81", "f").forwards
    assert [str(change) for change in difference(on, on, (joined, moved)).forwards] == [
        "- LAN port tcp 9000-9001 -> web:80-81",
        "+ LAN port tcp 9000-9001 -> gone:80-81; there is no domain gone yet",
    ]


def test_no_more_lines_than_people_read() -> None:
    names = [f"d{i}" for i in range(300)]
    after = "\n".join(f"allow d{i} -> d{i + 1} tcp {i + 1}" for i in range(299))
    found = difference(of_text("", names), of_text(after, names))
    lines = difference_lines(found)
    assert len(found.changes) == 299
    assert (len(lines), lines[0], lines[-2:]) == (
        202,
        "+ d0 -> d1 tcp 1   (office.rules:1)",
        ("and 99 more", "299 opened"),
    )


def test_long_lists_are_cut_for_people_and_not_for_programs() -> None:
    names = [f"d{i:02}" for i in range(40)]
    after = "\n".join(f"allow d{i:02} -> d39 udp" for i in range(0, 24, 2))
    listed = after.replace("\n", ", ").replace("allow ", "").replace(" -> d39 udp", "")
    found = difference(of_text("", names), of_text(f"allow {listed} -> d39 udp", names)).changes
    assert [str(c) for c in found] == ["+ d00, d02, d04, d06, d08, d10, d12 and 5 more -> d39 udp   (office.rules:1)"]
    assert json.loads(json.dumps(asdict(found[0])))["opener"]["words"] == names[0:24:2]


def test_too_many_changes_are_counted_and_not_put_in_words() -> None:
    names = [f"d{i}" for i in range(50)]
    after = "\n".join(f"allow d{i} -> d{i + 1} tcp {i + 1}" for i in range(49))
    found = difference(of_text("", names), of_text(after, names), most=10)
    assert (len(found.changes), found.counts) == (10, (49, 0, 0))
    assert difference_lines(found, 5)[-2:] == ("and 44 more", "49 opened")


def test_who_reaches_a_domain_in_words() -> None:
    text = BEFORE + "allow dom0 -> web\nallow 192.0.2.7 -> web tcp 22\nallow 192.0.2.7 -> db tcp 5432"
    document = parse_document(
        "forward tcp 8080 -> web 80\nforward tcp 8443 -> web 443\nforward tcp 99 -> db 5432 on lo", "f"
    )
    assert exposure_lines(exposure(of_text(text), document.forwards, ["web", "db", "mail"])) == (
        "web:",
        "  from dom0: all IP   (office.rules:6)",
        "  from lan, by LAN port tcp 8080 -> 80   (office.rules:4)",
        "  note: LAN port tcp 8443 leads nowhere yet, for no rule lets anybody use it, as `allow lan -> web tcp 443` may",
        "  note: office.rules:7 lets 192.0.2.7 to tcp 22, but no forward leads there",
        "db:",
        "  from web: tcp 5432   (office.rules:3)",
        "  note: host port tcp 99 leads here from the host itself only, not from the LAN",
        "  note: host port tcp 99 leads nowhere yet, for no rule lets anybody use it, as `allow dom0 -> db tcp 5432` may",
        "  note: office.rules:8 lets 192.0.2.7 to tcp 5432, but no forward leads there",
        "mail: nobody reaches it",
    )
    off = exposure(of_text(text, nat=False), document.forwards, ["web"])
    assert off[0].doors == () and off[0].notes[0] == "LAN port tcp 8080 leads nowhere, for NAT is off"
    assert json.loads(json.dumps(asdict(off[0])))["domain"] == "web"


# Size


def large(chance: random.Random, domains: int, wanted: int) -> str:
    """Rules as a large site may have them: most between two, some from the LAN, groups, and some for everybody."""
    lines = [f"group g{i} = {', '.join(f'd{d}' for d in range(i, domains, 100))}" for i in range(100)]
    lines += ["allow any -> internet", "deny any -> any tcp 25", "allow dom0 -> any", "deny any -> 198.51.100.0/24"]
    lines += [f"allow g{i} -> g{(i + 1) % 100} tcp {1000 + i}" for i in range(100)]
    lines += [f"allow lan -> d{i} tcp {chance.choice((22, 80, 443))}" for i in range(domains)]
    lines += [f"allow d{i} -> lan udp 53" for i in range(domains)]
    lines += [f"allow 10.{i >> 8}.{i & 255}.0/24 -> d{i} tcp 8080" for i in range(500)]
    while len(lines) < wanted:
        one, other = chance.sample(range(domains), 2)
        lines.append(f"allow d{one} -> d{other} {chance.choice(('tcp', 'udp'))} {chance.randrange(1, 65536)}")
    return "\n".join(lines) + "\n"


def with_line(rules: RuleSet, line: str) -> RuleSet:
    """As a text with one more line would be read, which takes long."""
    more = parse(line, "large.rules")
    return replace(
        rules,
        rules=(*rules.rules, *more.rules),
        lines=(*rules.lines, *(100_001 for _ in more.rules)),
        groups={**rules.groups, **{name: (*members, *rules.groups[name]) for name, members in more.groups.items()}},
    )


@contextmanager
def clock(what: str) -> Iterator[None]:
    began, cpu = time.monotonic(), time.process_time()
    yield
    print(f"\n{what}: {time.monotonic() - began:.2f} s, {time.process_time() - cpu:.2f} s of a CPU's")


def test_a_change_in_a_large_rule_set() -> None:
    """The figures are printed, by `pytest -s`; no timing decides."""
    names = [f"d{i}" for i in range(4000)]
    text, chance = large(random.Random(1), 4000, 100_000), random.Random(1)
    with clock("parsing"):
        old_rules = parse(text, "large.rules")
    with clock(f"{len(old_rules.rules)} rules made ready"):
        old = reach(old_rules, names, LAN)
    for line, expected in (
        ("allow d1 -> d2 tcp 5000-5010", "+ d1 -> d2 tcp 5000-5010   (large.rules:100001)"),
        ("allow g1 -> d2 tcp 5000-5010", "+ g1 -> d2 tcp 5000-5010   (large.rules:100001)"),
        ("deny any -> lan tcp 4444", "- any domain -> internet but 198.51.100.0/24 tcp 4444   (large.rules:100001)"),
        ("group g3 = d1", "+ g2 -> d1 tcp 1002   (large.rules:107)"),
        ("allow d7 -> any udp", ""),
        ("allow any -> any tcp 22", ""),
        ("deny any -> any", ""),
    ):
        new_rules = with_line(old_rules, line)
        with clock(line):
            new = reach(new_rules, names, LAN)
            found = difference(old, new)
            lines = difference_lines(found)
        print(f"    {lines[0][:100]}\n    {lines[-1]}")
        assert found.unseen == 0 and found.changes and expected in (lines[0], "")
        check_some(old, new, found, line, chance)
    with clock("who reaches two domains"):
        exposed = exposure(old, (), ["d1", "d2"])
    assert [one.domain for one in exposed] == ["d1", "d2"] and all(one.inside for one in exposed)


def check_some(old: Reach, new: Reach, found: Difference, line: str, chance: random.Random) -> None:
    """The definition takes long with so many rules, hence few."""
    if len(found.changes) < sum(found.counts):
        return
    for _ in range(3):
        opener, target = (Party(f"d{i}") for i in chance.sample(range(1, 9), 2))
        traffic = chance.choice([Traffic(6, 22), Traffic(6, 5005), Traffic(17, 99), Traffic(6, 1002)])
        changed = outcome(old, opener, target, traffic)[1] != outcome(new, opener, target, traffic)[1]
        assert bool(about(found.changes, opener, target, traffic, new, old)) == changed, (line, opener, target, traffic)
