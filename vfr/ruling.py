"""A rule file as the registry keeps it, and what follows from it without reading it again. Pure.

Each rule has a number, by which the fastpath counts it. A rule that stays as it is keeps its number, so that it goes
on counting; a new one gets a number that nobody has, since for a moment both policies are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Network

from vfr.policy import Document, Rule, RuleError, RuleSet, parse, parse_document
from vfr.policy.amend import Book
from vfr.policy.rules import looks_like_address, rule_text
from vfr.registry import Rules

RULES_AT_ONCE = 1000  # changed lines, or rules, that are few


@lru_cache(maxsize=2)
def read(text: str, file: str) -> Document:
    """parse_document, once for what is asked about several times in a row."""
    return parse_document(text, file)


def _known(rules: Rules | None) -> dict[str, int]:
    """Rule -> number."""
    if rules is None:
        return {}
    lines = rules.text.splitlines()
    return {rule_text(lines[line - 1]): number for line, number in zip(rules.lines, rules.numbers, strict=True)}


def _names(document: Document) -> Iterator[str]:
    """The names whose domains' slots the tables depend on."""
    rules = document.rules
    words = {word for rule in rules.rules for word in (*rule.openers, *rule.targets)}
    for word in words:
        if word in rules.groups:
            yield from rules.members(word)
        elif word not in rules.sets and not looks_like_address(word):
            yield word


def ruled(file: str, text: str, before: Rules | None = None, taken: Container[int] = ()) -> tuple[Rules, Document]:
    """The file for the registry, and what it says. `taken` are the numbers that the kernel has rules under.

    Of a file in which little has changed since `before` only that is read again, and its document has the new rules
    alone. RuleError if it is not in the language."""
    spliced = _spliced(file, text, before, taken) if before else None
    if spliced:
        return spliced
    document, known = read(text, file), _known(before)
    lines, numbers = text.splitlines(), _Numbers({*known.values()}, taken)
    mine: dict[str, int] = {}
    for line in document.rules.lines:
        name = rule_text(lines[line - 1])
        if name not in mine:
            mine[name] = known.get(name) or numbers.fresh()
    found = tuple(mine[rule_text(lines[line - 1])] for line in document.rules.lines)
    names = tuple(sorted(set(_names(document))))
    defined = (*document.rules.groups, *document.rules.sets)
    return Rules(file, text, document.rules.lines, found, names, defined, document.forwards), document


class _Numbers:
    """Numbers that nobody has."""

    def __init__(self, used: Container[int], taken: Container[int]) -> None:
        self._free = (n for n in range(1, 1 << 30) if n not in used and n not in taken)

    def fresh(self) -> int:
        return next(self._free)


def _differing(old: Sequence[str], new: Sequence[str]) -> tuple[int, int, int]:
    """(lines that are the same before, where the difference ends in the old text, and in the new)."""
    low, most = 0, min(len(old), len(new))
    while low < most and old[low] == new[low]:
        low += 1
    high = 0
    while high < most - low and old[-1 - high] == new[-1 - high]:
        high += 1
    return low, len(old) - high, len(new) - high


def _spliced(file: str, text: str, before: Rules, taken: Container[int]) -> tuple[Rules, Document] | None:
    """The same from what is known of the text before; None if the difference is not just some rules."""
    old, new = before.text.splitlines(), text.splitlines()
    low, old_end, new_end = _differing(old, new)
    ruling = dict(zip(before.lines, before.numbers, strict=True))
    if max(old_end, new_end) - low > RULES_AT_ONCE or not ruling:
        return None
    touched = [old[n - 1] for n in range(low + 1, old_end + 1) if n not in ruling]
    if any(rule_text(line) for line in touched) or _is_open(old[:low], ruling):
        return None
    shift = new_end - old_end
    lines_at = [n + shift * (n > low) for n in range(1, len(old) + 1) if n not in ruling and _declares(old[n - 1])]
    try:
        declared = parse_document("\n".join(new[n - 1] for n in lines_at), file)
        fresh = parse_document("\n".join(new[low:new_end]), file)
    except RuleError:
        return None  # the whole text says where
    if declared.forwards != before.forwards:
        return None
    if fresh != Document(rules=RuleSet(fresh.rules.rules)):
        return None
    known = {rule_text(old[n - 1]): ruling[n] for n in range(low + 1, old_end + 1) if n in ruling}
    wanted = [rule_text(new[low + line - 1]) for line in fresh.rules.lines]
    flat = " ".join(before.text.split())
    if any(name not in known and name in flat for name in wanted):
        return None  # it may stand elsewhere, too, under a number of its own
    numbers = _Numbers(set(before.numbers), taken)
    for name in wanted:
        known.setdefault(name, numbers.fresh())
    lines = [
        *((n, m) for n, m in ruling.items() if n <= low),
        *((low + line, known[name]) for line, name in zip(fresh.rules.lines, wanted, strict=True)),
        *((n + shift, m) for n, m in ruling.items() if n > old_end),
    ]
    places = tuple((lines_at[line - 1], column) for line, column in declared.places)
    document = replace(
        declared,
        places=places,
        domain_lines=tuple(lines_at[line - 1] for line in declared.domain_lines),
        nat_line=lines_at[declared.nat_line - 1] if declared.nat else 0,
        rules=replace(fresh.rules, lines=(), file=file),
    )
    words = {word for rule in fresh.rules.rules for word in (*rule.openers, *rule.targets)}
    names = {word for word in words if word not in before.defined and not looks_like_address(word)}
    made = replace(
        before,
        file=file,
        text=text,
        lines=tuple(n for n, _ in lines),
        numbers=tuple(m for _, m in lines),
        names=tuple(sorted({*before.names, *names})),
    )
    return made, document


def _declares(line: str) -> bool:
    """Whether it is a statement about more than rules; of a list in braces it may be a part that looks so, which then
    is none that can be read."""
    return line.split()[:1] in (["nat"], ["domain"], ["forward"])


def _is_open(lines: Sequence[str], ruling: Container[int]) -> bool:
    """Whether the text ends within a list in braces."""
    texts = (rule_text(line) for n, line in enumerate(lines, 1) if n not in ruling)
    return sum(text.count("{") - text.count("}") for text in texts) > 0


def definitions(rules: Rules) -> str:
    """A mark of all that the text says beside rules: 64 hex digits."""
    ruling = set(rules.lines)
    others = (line for n, line in enumerate(rules.text.splitlines(), 1) if n not in ruling)
    return hashlib.sha256("\n".join(others).encode()).hexdigest()


def changes(book: Book, rules: Rules) -> tuple[set[int], set[int]]:
    """The numbers that the book does not have, and those that only it has."""
    wanted = set(rules.numbers)
    return wanted - book.rules.keys(), book.rules.keys() - wanted


def rules_at(rules: Rules, numbers: Container[int]) -> dict[int, Rule]:
    """Some of the rules, by number."""
    lines = rules.text.splitlines()
    places = {number: line for line, number in zip(rules.lines, rules.numbers, strict=True) if number in numbers}
    found = parse("\n".join(lines[line - 1] for line in places.values()), rules.file).rules
    return dict(zip(places, found, strict=True))


def digest(rules: Rules | None, slots: Mapping[str, int], lan: IPv4Network | None) -> str:
    """64 hex digits that no other policy has: of all that its tables are made from."""
    if rules is None:
        return hashlib.sha256(b"no rules").hexdigest()
    seats = [(name, slots[name]) for name in rules.names if name in slots]
    made = hashlib.sha256(repr((seats, str(lan), rules.numbers)).encode())
    made.update(rules.text.encode())
    return made.hexdigest()


__all__ = ["RULES_AT_ONCE", "changes", "definitions", "digest", "read", "ruled", "rules_at"]
