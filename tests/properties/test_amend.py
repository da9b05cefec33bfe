"""A few rules more or less: tables that are amended say what tables made anew say, in thought and in the kernel."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import world
from support.bench import Bench

from vfr.policy import CompiledPolicy, Rule, RuleSet, Traffic, What, compile_rules, parse
from vfr.policy.amend import Book, Patch
from vfr.policy.compile import IS_RULE, NODE_LAN, level_bit
from vfr.registry import Rules
from vfr.ruling import ruled

SLOTS = {"web": 1, "db": 2, "odd": 3}
HEAD = "group pair = web, db\ngroup all = pair, odd\nset near = 192.0.2.0/25\nset far = 198.51.100.0/24, 203.0.113.7\n"
ENDS = ("any", "dom0", "lan", "internet", "web", "db", "odd", "nobody", "pair", "all", "near", "far")
REMOTES = [
    IPv4Address(a) for a in ("192.0.2.11", "192.0.2.200", "198.51.100.9", "203.0.113.7", "203.0.113.8", "10.1.2.3")
]
TRAFFIC = [
    Traffic(6, 22),
    Traffic(6, 80),
    Traffic(17, 53),
    Traffic(1),
    Traffic(1, 13),
    Traffic(47),
    Traffic(0, 0x889A, True),
]
WHATS = ("", "tcp", "tcp 22", "tcp 20-25,80", "udp 53", "icmp", "icmp echo", "proto 47")

LINES = st.builds(
    lambda action, one, arrow, other, what, more: (
        f"{action} {one} {arrow} {other} {what}{more if action == 'allow' else ''}"
    ),
    st.sampled_from(["allow", "allow", "deny", "reject"]),
    st.sampled_from(ENDS),
    st.sampled_from(["->", "->", "<->"]),
    st.sampled_from(ENDS),
    st.sampled_from(WHATS),
    st.sampled_from(["", " log", " limit 5/s"]),
)
FILES = st.lists(LINES, min_size=1, max_size=8, unique=True)


def _answers(policy: CompiledPolicy) -> list[object]:
    nodes = [*((slot, None) for slot in (0, 1, 2, 3)), *((NODE_LAN, a) for a in REMOTES)]
    return [
        policy.deciding(o, t, traffic, a or b)
        for o, a in nodes
        for t, b in nodes
        if not (a and b)
        for traffic in TRAFFIC
    ]


def _full(rules: Rules) -> CompiledPolicy:
    return compile_rules(parse(rules.text, rules.file), SLOTS, world.LAN_NET, rules.numbers)


def _amended(policy: CompiledPolicy, patch: Patch) -> CompiledPolicy:
    """What the kernel does with a patch, in thought."""
    pairs, sets, fresh = dict(policy.pairs), dict(policy.sets), max(policy.sets, default=0)
    for pair, row in patch.rows.items():
        pairs.pop(pair, None)
        if row.flags & IS_RULE:
            pairs[pair] = (row.entries[0][4], row.flags)
        elif row.entries:
            fresh += 1
            sets[fresh], pairs[pair] = row.entries, (fresh, row.flags)
    rules = {n: r for n, r in policy.rules.items() if n not in patch.gone} | dict(patch.rules)
    return CompiledPolicy(pairs, sets, policy.groups, policy.remotes, rules, patch.digest)


def _step(book: Book, before: Rules, after: Rules) -> Patch | None:
    text = parse(after.text, after.file)
    by_number = dict(zip(after.numbers, text.rules, strict=True))
    added = {n: r for n, r in by_number.items() if n not in book.rules}
    return book.patch(added, book.rules.keys() - by_number.keys(), SLOTS)


def _text(lines: list[str]) -> str:
    return HEAD + "".join(f"{line}\n" for line in lines)


@settings(max_examples=200, deadline=None)
@given(FILES, st.lists(FILES, min_size=1, max_size=3))
def test_amended_tables_say_what_new_ones_say(first: list[str], then: list[list[str]]) -> None:
    before = ruled("f", _text(first))[0]
    policy = _full(before)
    book = Book.of(policy, "x", parse(before.text, "f"), SLOTS, world.LAN_NET)
    for lines in then:
        after = ruled("f", _text(lines), before)[0]
        patch = _step(book, before, after)
        if patch is None:  # a word that no rule has spoken of
            return
        policy = _amended(policy, patch)
        assert _answers(policy) == _answers(_full(after))
        assert [policy.may_talk(a, b) for a in SLOTS.values() for b in SLOTS.values()] == [
            _full(after).may_talk(a, b) for a in SLOTS.values() for b in SLOTS.values()
        ]
        book.amend(patch, "x", SLOTS)
        assert book.by_pair.keys() == set(policy.pairs)
        before = after


@settings(max_examples=300, deadline=None)
@given(FILES, FILES, st.integers(0, 3))
def test_a_file_read_in_part_is_what_it_is_read_whole(first: list[str], second: list[str], kept: int) -> None:
    """Whatever was known before, lines, forwards and what numbers mean come out the same."""
    before = ruled("f", _text(first))[0]
    text = _text([*first[:kept], *second, *first[kept:]])
    spliced, document = ruled("f", text, before)
    whole = ruled("f", text)[0]
    assert (spliced.lines, spliced.forwards, spliced.defined) == (whole.lines, whole.forwards, whole.defined)
    lines = text.splitlines()
    meaning = [
        {(n, " ".join(lines[line - 1].split())) for line, n in zip(r.lines, r.numbers, strict=True)}
        for r in (spliced, whole)
    ]
    for pairs in meaning:
        assert len({n for n, _ in pairs}) == len({line for _, line in pairs}) == len(pairs)
    old = {
        " ".join(before.text.splitlines()[line - 1].split()): n
        for line, n in zip(before.lines, before.numbers, strict=True)
    }
    assert all(old.get(line, n) == n for n, line in meaning[0])
    assert document.rules.groups.keys() == {"pair", "all"}


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "set more = {\n192.0.2.1,\nallow web -> db\n}\n",
        HEAD + "allow web -> db tcp 80-70\n",
        HEAD + "alow web -> db\n",
    ],
)
def test_what_is_wrong_is_refused_as_if_read_whole(text: str) -> None:
    from vfr.policy import RuleError

    before = ruled("f", HEAD + "allow any -> lan\n")[0]
    open_set = ruled("f", HEAD + "set more = {\n192.0.2.1,\n192.0.2.2\n}\nallow any -> lan\n")[0]
    for known in (None, before, open_set):
        with pytest.raises(RuleError) as refused:
            ruled("f", text, known)
        assert str(refused.value) == str(_refusal(text))


def _refusal(text: str) -> Exception:
    from vfr.policy import RuleError

    try:
        ruled("f", text)
    except RuleError as error:
        return error
    raise AssertionError(text)


def test_the_kernel_holds_what_new_tables_would_be(bench: Bench, tmp_path: Path) -> None:
    """Through a hundred small changes: rows, sets and rules are those of a policy made anew, and nothing else is left."""
    rng = Random(5)
    lines = ["allow any -> lan", "allow pair -> far tcp 80", "deny near -> all", "allow internet <-> db udp 53"]
    lines += ["allow web -> dom0 tcp 1", "allow odd -> near icmp"]
    bench.reset(world.router(""))
    before = ruled("f", _text(lines))[0]
    policy = _full(before)
    bench.fastpath.replace_policy(policy)
    book = Book.of(policy, policy.digest, parse(before.text, "f"), SLOTS, world.LAN_NET)
    for turn in range(100):
        lines = [line for line in lines if rng.random() < 0.9]
        while len(lines) < 7 or rng.random() < 0.5:
            more = (
                f"{rng.choice(('allow', 'deny'))} {rng.choice(ENDS)} -> {rng.choice(ENDS)} {rng.choice(WHATS)}".strip()
            )
            lines += [more] if more not in lines else []
        after = ruled("f", _text(lines), before, bench.fastpath.rules())[0]
        patch = _step(book, before, after)
        if patch is None:
            continue
        bench.fastpath.amend_policy(patch)
        policy = _amended(policy, patch)
        book.amend(patch, patch.digest, SLOTS)
        before = after
        assert {n for n, _ in bench.fastpath._maps["rules"].dump()} == set(after.numbers)
        assert _kernel(bench) == _thought(policy), (turn, lines)
        assert _answers(policy) == _answers(_full(after))


def _kernel(bench: Bench) -> dict[tuple[int, int], tuple[int, object]]:
    fp = bench.fastpath
    sets, inner = fp._sets(), fp.inner("policy", 0)
    assert inner is not None
    rows = {}
    used = set()
    for key, value in inner.rows():
        opener, target = (int.from_bytes(key[i : i + 2], "little") for i in (0, 2))
        number, flags = (int.from_bytes(value[i : i + 4], "little") for i in (0, 4))
        if target != 0xFFF0:
            rows[opener, target] = (flags, number if flags & IS_RULE else sets[number])
            used |= set() if flags & IS_RULE else {number}
        elif opener == 0xFFF0:
            levels = flags
    inner.close()
    assert sets.keys() == used, "sets that no row leads to"
    assert {p for p in rows if not levels & level_bit(*p)} == set()
    assert fp.rules() <= {n for n, _ in fp._maps["rules"].dump()}
    return rows


def _thought(policy: CompiledPolicy) -> dict[tuple[int, int], tuple[int, object]]:
    return {
        pair: (flags, number if flags & IS_RULE else tuple(sorted(policy.sets[number])))
        for pair, (number, flags) in policy.pairs.items()
    }


def test_a_book_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "policy.book"
    rules = RuleSet((Rule("allow", ("web",), ("db",), What(6, ((22, 22),))),))
    made = Book.of(compile_rules(rules, SLOTS), "d", rules, SLOTS, None)
    made.save(path)
    assert Book.load(path, "d") == made and Book.load(path, "other") is None and Book.load(path, None) is None
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], b"x" + whole[1:], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert Book.load(path, "d") is None
    assert Book.load(tmp_path / "missing", "d") is None
