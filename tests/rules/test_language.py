"""The rule language: what it refuses and how, and that tables mean what rules say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfr.policy import Rule, RuleError, RuleSet, compile_rules, parse
from vfr.policy.compile import NODE_LAN
from vfr.policy.language import PROTOCOLS

HERE = Path(__file__).parent
GOLDEN = [line.split(";", 1) for line in (HERE / "refusals.golden").read_text().splitlines() if line and line[0] != "#"]
SLOTS = {"web": 1, "db": 2, "ci": 3}
NODES = {"dom0": 0, "lan": NODE_LAN, "other": 4, **SLOTS}
PORTS = st.one_of(st.sampled_from([0, 21, 22, 23, 80, 65535]), st.integers(0, 65535))


@pytest.mark.parametrize(("rule", "expected"), GOLDEN)
def test_golden(rule: str, expected: str) -> None:
    try:
        parse(rule, "f.rules")
        said = "ok"
    except RuleError as error:
        first, _, shown = str(error).partition("\n")
        said = f"fail {first}"
        assert shown.splitlines()[0].strip() == rule.strip() and shown.splitlines()[1].strip() == "^"
    assert said == expected


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    names = st.sampled_from(["any", "lan", "dom0", "web", "db", "ci", "nobody"])
    protocol = draw(st.sampled_from([None, "tcp", "udp", "icmp"]))
    ranges = st.tuples(PORTS, PORTS).map(lambda pair: (min(pair), max(pair)))
    ports = draw(st.lists(ranges, max_size=3)) if protocol in ("tcp", "udp") else []
    return Rule(
        draw(st.sampled_from(["allow", "allow", "deny", "reject"])), draw(names), draw(names), protocol, tuple(ports)
    )


RULE_SETS = st.lists(rules(), max_size=8).map(lambda r: RuleSet(tuple(r)))


@given(RULE_SETS)
def test_round_trip(wanted: RuleSet) -> None:
    assert parse(str(wanted), "f.rules") == wanted


@settings(max_examples=300, deadline=None)
@given(
    RULE_SETS,
    st.sampled_from(sorted(NODES)),
    st.sampled_from(sorted(NODES)),
    st.sampled_from(sorted(PROTOCOLS.values())),
    PORTS,
)
def test_tables_mean_what_rules_say(wanted: RuleSet, opener: str, target: str, protocol: int, port: int) -> None:
    compiled = compile_rules(wanted, SLOTS)
    port = 0 if protocol == 1 else port
    found = compiled.decide(NODES[opener], NODES[target], protocol, port)
    assert found == wanted.decide(opener, target, protocol, port)


def test_order_does_not_matter() -> None:
    one = parse("allow web -> db tcp\ndeny web -> db tcp 22\n", "f")
    other = parse("deny web -> db tcp 22\nallow web -> db tcp\n", "f")
    assert compile_rules(one, SLOTS) == compile_rules(other, SLOTS)


def test_the_shipped_rules_say_what_they_promise() -> None:
    text = (HERE.parents[1] / "rules" / "xen.rules").read_text()
    policy = compile_rules(parse(text, "xen.rules"), SLOTS)
    web, db, dom0 = 1, 2, 0
    assert (
        policy.allows(web, NODE_LAN, 17, 53)
        and policy.allows(NODE_LAN, web, 6, 22)
        and policy.allows(dom0, web, 6, 8080)
    )
    assert (
        not policy.allows(NODE_LAN, web, 6, 23)
        and not policy.allows(web, db, 6, 22)
        and not policy.allows(web, dom0, 6, 22)
    )
