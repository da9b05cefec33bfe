"""Xen 1.x's rules in VFR's language: what each becomes (xen.golden), and that none becomes wider than it was.

`pytest tests/rules --update-golden` rewrites the golden file as things are now.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import xen12
from support.xen12 import SPECIAL, WIRE, Packet, Struct

from vfr.errors import UsageError
from vfr.policy import RuleError, parse
from vfr.policy.xen import Allow, Translation, decode, parse_names, translate
from vfr.policy.xen_engine import Pattern, outside, within
from vfr.policy.xen_parser import read_line

HERE = Path(__file__).parent
TREE = HERE.parents[1]
GOLDEN = HERE / "xen.golden"
NAMES = {3: "web", 4: "db"}


def _sections() -> dict[str, tuple[str, str]]:
    """Title -> (Xen's lines, ours)."""
    parts = [part.partition("\n") for part in GOLDEN.read_text().split("\n== ")[1:]]
    halves = {title: body.partition("\n--\n") for title, _, body in parts}
    return {title: (lines, ours.strip("\n")) for title, (lines, _, ours) in halves.items()}


def _ours(lines: str) -> str:
    """Without the head's first two lines, which are always the same."""
    return "\n".join(str(translate(lines, "old.vfr", NAMES)).splitlines()[2:]).strip("\n")


@pytest.fixture(scope="module", autouse=True)
def _updated(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--update-golden"):
        return
    intro = GOLDEN.read_text().partition("\n== ")[0]
    sections = [f"\n== {title}\n{lines}\n--\n{_ours(lines)}\n" for title, (lines, _) in _sections().items()]
    GOLDEN.write_text(intro + "".join(sections))


@pytest.mark.parametrize("title", _sections())
def test_golden(title: str) -> None:
    lines, ours = _sections()[title]
    assert _ours(lines) == ours


@pytest.mark.parametrize("title", _sections())
def test_what_comes_out_is_a_rule_file(title: str) -> None:
    found = translate(_sections()[title][0], "old.vfr", NAMES)
    said = {str(allow) for line in found.lines for allow in line.rules}
    assert {str(rule) for rule in parse(str(found), "new.rules").rules} == said


def test_the_document_shows_what_is_so() -> None:
    blocks = (TREE / "docs/import-xen.md").read_text().split("```\n")
    assert str(translate(blocks[1], "old.vfr", NAMES)) == blocks[3]


# The command


def _vfr(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vfr.cli", "rules", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=TREE)
    assert done.returncode == status, done.stderr
    return done


OUT = "ADD ACCEPT srcaddr=192.0.2.3 srcaddrmask=255.255.255.255 srcdom=3 dst=PHYS\n"


def test_the_command_writes_a_file_that_is_in_order(tmp_path: Path) -> None:
    old, new = tmp_path / "old.vfr", tmp_path / "new.rules"
    old.write_text(OUT)
    new.write_text(_vfr("import-xen", str(old), "--names", "3=web").stdout)
    assert "\nallow web -> lan\n" in new.read_text()
    _vfr("check", str(new))


def test_what_is_not_translated_shows_in_the_status_and_the_rest_is_there(tmp_path: Path) -> None:
    old = tmp_path / "old.vfr"
    old.write_text(OUT + "ADD ACCEPT src=ANY dstdom=3 proto=tcp\n")
    done = _vfr("import-xen", str(old), "--json", status=1)
    answer = json.loads(done.stdout)
    assert not answer["ok"] and "old.vfr, line 2" in done.stderr
    assert answer["lines"][0]["rules"] == [{"opener": "dom3", "target": "lan"}]
    assert answer["lines"][1]["rules"] == [] and "proto=tcp" in answer["lines"][1]["refusal"]


def test_bad_input_is_told_by_its_place(tmp_path: Path) -> None:
    old = tmp_path / "old.vfr"
    old.write_bytes(OUT.encode() + b"ADD \xff\n")
    assert "old.vfr:2:5: byte 0xff is not text" in _vfr("import-xen", str(old), status=1).stderr
    assert "No such file" in _vfr("import-xen", str(tmp_path / "none"), status=2).stderr
    assert "write it as 3=web" in _vfr("import-xen", str(old), "--names", "web", status=2).stderr


@pytest.mark.parametrize(
    ("data", "place"),
    [(b"\x00", "1:1"), (b"a\nb\x1b", "2:2"), (b"a\n\nx\xc3", "3:2"), ("ä\x7f".encode(), "1:2"), (b"\xc2\x85", "1:1")],
)
def test_what_is_no_text_is_refused_at_its_place(data: bytes, place: str) -> None:
    with pytest.raises(RuleError, match=f"^old.vfr:{place}: "):
        decode(data, "old.vfr")


@pytest.mark.parametrize(
    "pairs",
    [["3"], ["3="], ["=web"], ["x=web"], ["3=Web"], ["3=lan"], ["0=host"], ["3=dom4"], ["3=a", "4=a"], ["3=a", "3=b"]],
)
def test_names_that_cannot_be(pairs: list[str]) -> None:
    with pytest.raises(UsageError, match="--names"):
        parse_names(pairs)


def test_names() -> None:
    assert parse_names(["3=web", "4=dom4", "3=web"]) == {3: "web", 4: "dom4"}


# The parser is Xen's

_WORDS = """
ADD A AD ADDX add DELETE D DEL PRINT P # ACCEPT ACC A COUNT C CO drop s src dst d srca srcaddr dstaddr srcaddrm
dstaddrmask srcp srcport dstport dstportm srcportmask srcd srcdom dstdom srci srcidx dstidx p proto x any a ip tcp
TCP 0 1 3 007 -1 70000 4294967299 2147483647 255.255.255.255 10.0.0.3 10 1.2.3.4.5 1..2 300.1.1.1 1.1.1.300
10.0.0.0/8 ANY PHYS é
"""
WORDS = st.sampled_from(_WORDS.split())
SEPARATORS = st.sampled_from([" ", " ", " ", "=", "=", "=", "  ", "\t", " = ", "==", "\r", "\v", ""])
ANY_LINE = st.one_of(
    st.lists(st.tuples(WORDS, SEPARATORS), max_size=12).map(lambda pairs: "".join(map("".join, pairs))),
    st.lists(st.tuples(WORDS, SEPARATORS), max_size=8).map(lambda pairs: "ADD ACCEPT " + "".join(map("".join, pairs))),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)


@settings(max_examples=1000, deadline=None)
@given(ANY_LINE)
def test_a_line_is_read_as_xen_read_it(line: str) -> None:
    written, reading = xen12.write(line), read_line(line)
    if written is None:
        assert reading.command == "" and reading.ignored
        return
    command, struct = written
    assert reading.command == command
    assert {name: getattr(reading.rule, name) for name in struct} == struct


# Nothing is wider than it was

PREFIXES = st.tuples(st.integers(0, 255), st.integers(0, 8)).map(lambda p: (p[0], 0xFFFFFF00 | 0xFF00 >> p[1] & 0xFF))


@given(PREFIXES, st.lists(PREFIXES, max_size=6))
def test_an_address_outside_is_found_if_there_is_one(pattern: Pattern, holes: list[Pattern]) -> None:
    found = outside(pattern, holes)
    left = [a for a in range(256) if within(a, pattern) and not any(within(a, hole) for hole in holes)]
    assert found in left if left else found is None


ADDRESSES = [
    "192.0.2.3",
    "192.0.2.4",
    "192.0.2.5",
    "169.254.1.3",
    "169.254.1.4",
    "198.51.100.7",
    "203.0.113.0",
    "0.0.0.0",
]
MASKS = ["255.255.255.255"] * 4 + ["255.255.255.0", "255.255.0.0", "128.0.0.0", "0.0.0.0", "255.0.255.0", "0.0.0.255"]
DOMAINS = (0, 3, 4, 5)


@st.composite
def _pattern(draw: st.DrawFn, side: str) -> str:
    if draw(st.integers(0, 2)) == 0:
        return ""
    address, mask = draw(st.sampled_from(ADDRESSES)), draw(st.sampled_from([*MASKS, ""]))
    return f" {side}addr={address}" + (f" {side}addrmask={mask}" if mask else "")


@st.composite
def _rule(draw: st.DrawFn) -> str:
    """A line that Xen's parser takes, mostly with ends and addresses that other lines have as well."""
    numbers = st.sampled_from(DOMAINS)
    source = draw(st.one_of(st.just("src=ANY"), st.just("src=ANY"), numbers.map("srcdom={}".format)))
    end = draw(st.one_of(st.just("dst=PHYS"), numbers.map("dstdom={}".format), numbers.map("dstdom={}".format)))
    odd = draw(
        st.sampled_from(
            [""] * 12
            + [" srcidx=1", " dstidx=1", " dstidx=0", " proto=tcp", " proto=arp", " proto=ip", " proto=udp"]
            + [" dstport=22", " dstport=22 dstportmask=65535", " dstport=0 dstportmask=65535", " srcidx=2"]
        )
    )
    action = draw(st.sampled_from(["ACCEPT", "ACCEPT", "COUNT"]))
    command = draw(st.sampled_from(["ADD"] * 8 + ["FLUSH", "A"]))
    return f"{command} {action} {source} {end}{draw(_pattern('src'))}{draw(_pattern('dst'))}{odd}"


@st.composite
def _file(draw: st.DrawFn) -> str:
    lines = draw(st.lists(_rule(), min_size=1, max_size=6))
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from(lines)).replace("ADD", "DELETE"))
    return "\n".join(lines)


def _quad(text: str) -> int:
    return int(IPv4Address(text))


@cache
def _sample() -> tuple[int, ...]:
    """An address for each way to agree and disagree with the patterns above."""
    bases = {_quad(a) & _quad(m) for a, m in product(ADDRESSES, MASKS)} | set(map(_quad, ADDRESSES))
    flipped = {base ^ (1 << bit) for base in bases for bit in (0, 1, 7, 8, 9, 15, 16, 17, 24, 30, 31)}
    return (*sorted(bases), *sorted(flipped - bases))


def _owners(rules: list[Struct]) -> dict[int, set[tuple[int, int]]]:
    found: dict[int, set[tuple[int, int]]] = {}
    for rule, side in product(rules, ("src", "dst")):
        if rule[f"{side}addrmask"] == 0xFFFFFFFF and rule[f"{side}dom"] != SPECIAL:
            found.setdefault(rule[f"{side}addr"], set()).add((rule[f"{side}dom"], rule[f"{side}idx"]))
    return found


class _Then:
    """What Xen let through by its model: who could reach whom, with one of the sampled addresses."""

    def __init__(self, rules: list[Struct], byte9: int) -> None:
        self.rules, self.byte9 = rules, byte9
        owners = _owners(rules)
        self.own = {(d, 0): [a for a, vifs in owners.items() if (d, 0) in vifs] for d in DOMAINS}
        self.remote = [a for a in _sample() if a not in owners and a >> 16 != 0xA9FE]

    def _goes(self, sender: tuple[int, int], src: int, dst: int) -> tuple[int, int]:
        return xen12.target(self.rules, Packet(sender, src, dst, self.byte9))

    def domain_to_domain(self, opener: tuple[int, int], target: tuple[int, int]) -> bool:
        """With whatever source, to one of the target's own addresses."""
        places = self.own[target] or _sample()
        return any(self._goes(opener, src, dst) == target for dst in places for src in _sample())

    def domain_to_address(self, opener: tuple[int, int], address: int) -> bool:
        return any(self._goes(opener, src, address) == (SPECIAL, WIRE) for src in _sample())

    def address_to_domain(self, address: int, target: tuple[int, int]) -> bool:
        places = self.own[target] or _sample()
        return any(self._goes((SPECIAL, WIRE), address, dst) == target for dst in places)


def _means(node: str, name: str | None, address: int) -> bool:
    """Whether a rule's FROM or TO is this domain, or, without a name, this address behind the uplink."""
    if name is not None:
        return node in ("any", name)
    return node in ("any", "lan") or ("/" in node and IPv4Address(address) in IPv4Network(node))


def _allowed(rules: list[Allow], opener: str | None, target: str | None, address: int = 0) -> bool:
    return any(_means(r.opener, opener, address) and _means(r.target, target, address) for r in rules)


def _wider(found: Translation, then: _Then) -> Iterator[str]:
    """Every conversation that the translation allows and Xen did not let through."""
    rules = [rule for line in found.lines for rule in line.rules]
    names = {domain: f"dom{domain}" for domain in (*DOMAINS, 77)}
    then.own[77, 0] = []
    for a, b in product(names, DOMAINS):
        if a != b and _allowed(rules, names[a], names[b]) and not then.domain_to_domain((a, 0), (b, 0)):
            yield f"dom{a} -> dom{b}"
    for domain, address in product([d for d in names if d], then.remote):
        if _allowed(rules, names[domain], None, address) and not then.domain_to_address((domain, 0), address):
            yield f"dom{domain} -> {IPv4Address(address)}"
    for domain, address in product([d for d in DOMAINS if d], then.remote):
        if _allowed(rules, None, names[domain], address) and not then.address_to_domain(address, (domain, 0)):
            yield f"{IPv4Address(address)} -> dom{domain}"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_file(), st.sampled_from([0, 6, 17]))
def test_no_translation_is_wider_than_what_xen_let_through(text: str, byte9: int) -> None:
    found = translate(text, "old.vfr", {})
    assert list(_wider(found, _Then(xen12.rules_of(text.split("\n")), byte9))) == []


@settings(max_examples=300, deadline=None)
@given(st.one_of(_file(), st.lists(ANY_LINE, max_size=6).map("\n".join)))
def test_every_line_is_translated_or_told_why_not(text: str) -> None:
    found = translate(text, "old.vfr", {})
    lines = text.split("\n")
    assert len(found.lines) in (len(lines), len(lines) - 1)
    for line in found.lines:
        told = line.rules or line.refusal or line.notes
        assert told or not line.text.strip() or line.text.lstrip().startswith("#"), line
    shown = str(found).splitlines()
    bare = {line for line in shown if line and not line.startswith("#")}
    assert bare == {str(rule) for line in found.lines for rule in line.rules}
    assert sum(line.startswith("# not translated: ") for line in shown) == len(found.refused)
