"""The rule compiler's golden files: what it refuses and how, and the tables it makes of what it takes.

`pytest tests/rules --update-golden` rewrites both as things are now; read the difference before you commit it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from vfr._abi import Limit
from vfr.policy import CompiledPolicy, RuleError, compile_rules, parse, parse_document
from vfr.policy.compile import (
    IS_RULE,
    NODE_ANY,
    NODE_INTERNET,
    NODE_LOCAL,
    NODE_NONE,
    OPENS,
    SHUTS,
)

HERE = Path(__file__).parent
REFUSALS, COMPILED = HERE / "refusals.golden", HERE / "compile.golden"
SLOTS = {"web": 1, "db": 2, "ci": 3}
LAN = IPv4Network("192.0.2.0/24")
_NODES = {NODE_ANY: "any", NODE_LOCAL: "local", NODE_INTERNET: "internet", 0: "dom0"}
_NODES |= {slot: name for name, slot in SLOTS.items()}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_FLAGS = {OPENS: "opens", SHUTS: "shuts"}


def _refusals() -> dict[str, str]:
    """Text -> `ok`, or `fail` and the message. The text has \\n, \\r, \\t and the like as Python writes them."""
    lines = REFUSALS.read_text().splitlines()
    cut = (line.rpartition(";ok") if line.endswith(";ok") else line.partition(";fail") for line in lines)
    return {rule: said[1:] + rest for rule, said, rest in cut if rule and rule[0] != "#"}


def _text(rule: str) -> str:
    return rule.encode().decode("unicode_escape")


def _sections() -> dict[str, tuple[str, str]]:
    """Title -> (rules, tables)."""
    parts = [part.partition("\n") for part in COMPILED.read_text().split("\n== ")[1:]]
    return {title: (rules + "\n", tables) for title, _, body in parts for rules, tables in [_halves(body)]}


def _halves(body: str) -> tuple[str, str]:
    rules, _, tables = body.partition("\n--\n")
    return rules, tables.strip("\n")


def _said(rule: str) -> str:
    try:
        parse_document(_text(rule), "f.rules")
    except RuleError as error:
        return f"fail {str(error).splitlines()[0]}"
    return "ok"


def _node(node: int) -> str:
    if node in _NODES:
        return _NODES[node]
    first = int(Limit.NODE_GROUPS), int(Limit.NODE_REMOTES)
    return f"groups {node - first[0] + 1}" if node < first[1] else f"block {node - first[1] + 1}"


def _shown(policy: CompiledPolicy) -> str:
    """Pairs, sets, groups, blocks. What LOCAL alone says of addresses is left out."""
    lines = []
    for (opener, target), (number, flags) in policy.pairs.items():
        what = f"{'rule' if flags & IS_RULE else 'set'} {number}"
        said = ", ".join([what, *(word for flag, word in _FLAGS.items() if flags & flag)])
        lines.append(f"{_node(opener)} -> {_node(target)}: {said}")
    for number, entries in policy.sets.items():
        for bits, ether, protocol, port, rule in entries:
            word = "ether" if ether else "all" if bits == 8 else _PROTOCOLS.get(protocol, f"proto {protocol}")
            shown = f"{port:#06x}" if ether else f"{port}"
            lines.append(f"set {number}: {word}{f' {shown}/{bits - 16}' if bits > 16 else ''} rule {rule}")
    lines += [f"{_node(slot)} is in {_node(node)}" for slot, node in policy.groups.items()]
    for address, length, words, zone in policy.remotes:
        if words != NODE_NONE:
            lines.append(f"{IPv4Address(address)}/{length} is in {_node(words)}, {_node(zone)}")
    return "\n".join(lines) or "no rows"


def _compiled(rules: str) -> str:
    return _shown(compile_rules(parse(rules, "f.rules"), SLOTS, LAN))


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
    text = _text(rule)
    with pytest.raises(RuleError) as refused:
        parse_document(text, "f.rules")
    error = refused.value
    if "looks like the end of a line" in error.text:
        return  # such a line can't be shown
    first, line, mark = str(error).split("\n")
    assert first == f"f.rules:{error.line}:{error.column}: {error.text}"
    assert line == "    " + text.split("\n")[error.line - 1].rstrip("\r")
    assert mark.strip() == "^" and len(mark) == 4 + error.column


@pytest.mark.parametrize("title", _sections())
def test_compiled(title: str) -> None:
    rules, tables = _sections()[title]
    assert _compiled(rules) == tables
