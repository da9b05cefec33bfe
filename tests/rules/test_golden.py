"""The rule compiler's golden files: what it refuses and how, and the tables it makes of what it takes.

`pytest tests/rules --update-golden` rewrites both as things are now; read the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vfr.policy import CompiledPolicy, RuleError, compile_rules, parse
from vfr.policy.compile import EVERYTHING, NODE_ANY, NODE_LAN, NOTHING
from vfr.policy.language import PROTOCOLS

HERE = Path(__file__).parent
REFUSALS, COMPILED = HERE / "refusals.golden", HERE / "compile.golden"
SLOTS = {"web": 1, "db": 2, "ci": 3}
_NODES = {NODE_ANY: "any", NODE_LAN: "lan", 0: "dom0", **{slot: name for name, slot in SLOTS.items()}}
_SETS = {NOTHING: "nothing", EVERYTHING: "everything"}
_PROTOCOLS = {number: name for name, number in PROTOCOLS.items()}


def _refusals() -> dict[str, str]:
    """Rule -> `ok`, or `fail` and the message."""
    lines = REFUSALS.read_text().splitlines()
    return dict(line.split(";", 1) for line in lines if line and line[0] != "#")


def _sections() -> dict[str, tuple[str, str]]:
    """Title -> (rules, tables)."""
    parts = [part.partition("\n") for part in COMPILED.read_text().split("\n== ")[1:]]
    return {title: (rules + "\n", tables) for title, _, body in parts for rules, tables in [_halves(body)]}


def _halves(body: str) -> tuple[str, str]:
    rules, _, tables = body.partition("\n--\n")
    return rules, tables.strip("\n")


def _said(rule: str) -> str:
    try:
        parse(rule, "f.rules")
    except RuleError as error:
        return f"fail {str(error).splitlines()[0]}"
    return "ok"


def _shown(policy: CompiledPolicy) -> str:
    """The pairs in the order in which they were made, then each set's rows in the order of the ports."""
    pairs = [
        f"{_NODES[opener]} -> {_NODES[target]}: {_SETS.get(number, f'set {number}')}"
        for (opener, target), number in policy.pairs.items()
    ]
    rows = [
        f"set {number}: {_PROTOCOLS[protocol]} {port}/{bits}{'' if action == 'allow' else f' {action}'}"
        for number, protocol, port, bits, action in policy.lpm
    ]
    return "\n".join([*pairs, *rows]) or "no rows"


def _compiled(rules: str) -> str:
    return _shown(compile_rules(parse(rules, "f.rules"), SLOTS))


@pytest.fixture(scope="module", autouse=True)
def _updated(request: pytest.FixtureRequest) -> None:
    """Both files anew, if asked for, before anything here reads them."""
    if not request.config.getoption("--update-golden"):
        return
    head = [line for line in REFUSALS.read_text().splitlines() if line.startswith("#")]
    REFUSALS.write_text("\n".join([*head, *(f"{rule};{_said(rule)}" for rule in _refusals())]) + "\n")
    intro = COMPILED.read_text().partition("\n== ")[0]
    sections = [f"\n== {title}\n{rules}--\n{_compiled(rules)}\n" for title, (rules, _) in _sections().items()]
    COMPILED.write_text(intro + "".join(sections))


@pytest.mark.parametrize("rule", _refusals())
def test_refusal(rule: str) -> None:
    assert _said(rule) == _refusals()[rule]


@pytest.mark.parametrize("rule", [rule for rule, said in _refusals().items() if said != "ok"])
def test_a_refusal_shows_the_line_and_points_at_the_place(rule: str) -> None:
    with pytest.raises(RuleError) as refused:
        parse(rule, "f.rules")
    first, line, mark = str(refused.value).splitlines()[:3]
    column = int(first.split(":")[2])
    assert line.strip() == rule.strip() and mark.strip() == "^"
    assert mark.index("^") - line.index(rule[0]) == column - 1


@pytest.mark.parametrize("title", _sections())
def test_compiled(title: str) -> None:
    rules, tables = _sections()[title]
    assert _compiled(rules) == tables
