"""A rule file as the registry keeps it, and what follows from it without reading it again. Pure.

Each rule has a number, by which the fastpath counts it. A rule that stays as it is keeps its number, so that it goes
on counting; a new one gets a number that nobody has, since for a moment both policies are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping
from ipaddress import IPv4Network

from vfr.policy import Document, parse_document
from vfr.policy.rules import looks_like_address, rule_text
from vfr.registry import Rules


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

    RuleError if it is not in the language."""
    document, known = parse_document(text, file), _known(before)
    used, fresh = {*known.values()}, iter(range(1, 1 << 30))
    lines, numbers = text.splitlines(), list[int]()
    mine: dict[str, int] = {}
    for line in document.rules.lines:
        name = rule_text(lines[line - 1])
        if name not in mine:
            mine[name] = known.get(name) or next(n for n in fresh if n not in used and n not in taken)
        numbers.append(mine[name])
    names = tuple(sorted(set(_names(document))))
    defined = (*document.rules.groups, *document.rules.sets)
    return Rules(file, text, document.rules.lines, tuple(numbers), names, defined, document.forwards), document


def digest(rules: Rules | None, slots: Mapping[str, int], lan: IPv4Network | None) -> str:
    """64 hex digits that no other policy has: of all that its tables are made from."""
    if rules is None:
        return hashlib.sha256(b"no rules").hexdigest()
    seats = [(name, slots[name]) for name in rules.names if name in slots]
    made = hashlib.sha256(repr((seats, str(lan), rules.numbers)).encode())
    made.update(rules.text.encode())
    return made.hexdigest()


__all__ = ["digest", "ruled"]
