"""A few rules more or less, without making all tables anew.

The tables of 100,000 rules take seconds to make, and one rule is in few of their rows. So what they were made by is
kept beside them, in a file that goes with the kernel's own state: a *book*. From it and the rules that come and go
follows a *patch*: the rows that change. Whatever a book does not know, as a block of addresses that no rule has spoken
of, makes the tables anew; and so does a book that is not there, or is not of the policy in force.
"""

from __future__ import annotations

import marshal
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from vfr.policy.compile import CompiledPolicy, Entry, Pair, pairs_of, row_of
from vfr.policy.rules import DOM0, Rule, RuleSet, What, looks_like_address

FORMAT = 2
PAIRS_AT_ONCE = 4096  # more rows than that are not few


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is to be: `entries` and `flags` of compile.row_of; without entries there is none. `before` are the
    entries that it has."""

    entries: tuple[Entry, ...]
    flags: int
    before: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """What changes: rows by pair, rules that come, and numbers of those that go."""

    rows: Mapping[Pair, Row]
    rules: Mapping[int, Rule]
    gone: frozenset[int]
    digest: str


@dataclass(slots=True)
class Book:
    """What the tables of the policy `digest` were made by. `definitions` is a mark of all that the text said beside rules;
    `rules` are as _plain has them: most are never looked at."""

    digest: str
    lan: str
    definitions: str
    groups: dict[str, tuple[str, ...]]
    sets: dict[str, tuple[str, ...]]
    seats: dict[str, int]
    nodes: dict[str, tuple[int, ...]]
    by_pair: dict[Pair, tuple[int, ...]]
    rules: dict[int, tuple[Any, ...]]

    @classmethod
    def of(
        cls,
        policy: CompiledPolicy,
        rules: RuleSet,
        seats: Mapping[str, int],
        lan: IPv4Network | None,
        definitions: str = "",
    ) -> Book:
        """Of tables that have just been made from rules with these groups and sets."""
        by_pair = {pair: tuple(numbers) for pair, numbers in policy.by_pair.items()}
        plain = {number: _plain(rule) for number, rule in policy.rules.items()}
        named = dict(rules.groups), dict(rules.sets)
        return cls(policy.digest, str(lan), definitions, *named, dict(seats), dict(policy.nodes), by_pair, plain)

    @classmethod
    def load(cls, path: Path, digest: str | None) -> Book | None:
        """The book of the policy in force; None if there is none that can be read."""
        try:
            version, *parts = marshal.loads(path.read_bytes())
        except (OSError, EOFError, ValueError, TypeError):
            return None
        return cls(*parts) if version == FORMAT and parts[0] == digest else None

    def save(self, path: Path) -> None:
        """Written aside and renamed, so that it is whole or not there."""
        parts = tuple(getattr(self, f.name) for f in fields(self))
        fresh = fresh_of(path)
        fresh.write_bytes(marshal.dumps((FORMAT, *parts)))
        fresh.rename(path)

    def rule(self, number: int) -> Rule:
        action, openers, targets, what, both, log, limit = self.rules[number]
        return Rule(action, openers, targets, What(*what) if what else None, both, log, limit)

    def knows(self, definitions: str, seats: Mapping[str, int], lan: IPv4Network | None) -> bool:
        """Whether groups, sets, the slots of names and the uplink's network are what they were."""
        same = (self.definitions, self.lan) == (definitions, str(lan))
        return same and all(seats.get(name) == self.seats.get(name) for name in self.nodes.keys() | self._members())

    def _members(self) -> set[str]:
        return {name for members in self.groups.values() for name in members}

    def patch(self, added: Mapping[int, Rule], removed: Collection[int], seats: Mapping[str, int]) -> Patch | None:
        """The rows that change; None if they are too many, or a word is new that is not just a domain's name."""
        words = {word for rule in added.values() for word in (*rule.openers, *rule.targets)} - self.nodes.keys()
        names = {word for word in words if not (looks_like_address(word) or word in self.groups or word in self.sets)}
        nodes = self.nodes | {name: _seat(name, seats) for name in names}
        gone = {number: self.rule(number) for number in removed}
        try:
            touched = {pair for rule in (*added.values(), *gone.values()) for pair in pairs_of(rule, nodes)}
        except KeyError:
            return None
        if len(touched) > PAIRS_AT_ONCE:
            return None
        joined: dict[Pair, list[int]] = {}
        for number, rule in added.items():
            for pair in pairs_of(rule, nodes):
                joined.setdefault(pair, []).append(number)
        rows = {pair: self._row(pair, joined.get(pair, []), added, removed) for pair in sorted(touched)}
        return Patch(rows, added, frozenset(removed), "")

    def _row(self, pair: Pair, joined: list[int], added: Mapping[int, Rule], removed: Collection[int]) -> Row:
        was = self.by_pair.get(pair, ())
        now = tuple(dict.fromkeys((*(number for number in was if number not in removed), *joined)))
        rules = {number: added[number] if number in added else self.rule(number) for number in {*was, *now}}
        standing = {number: (-rule.rank, number) for number, rule in rules.items()}
        entries, flags = row_of(rules, standing, now)
        return Row(entries, flags if now else 0, row_of(rules, standing, was)[0])

    def amend(self, patch: Patch, digest: str, seats: Mapping[str, int]) -> None:
        """From now on it is the book of the policy with the patch in."""
        for rule in patch.rules.values():
            for word in (*rule.openers, *rule.targets):
                self.nodes.setdefault(word, _seat(word, seats))
        for pair in patch.rows:
            kept = tuple(number for number in self.by_pair.get(pair, ()) if number not in patch.gone)
            new = tuple(n for n, rule in patch.rules.items() if pair in set(pairs_of(rule, self.nodes)))
            self.by_pair[pair] = (*kept, *new)
            if not self.by_pair[pair]:
                del self.by_pair[pair]
        for number in patch.gone:
            del self.rules[number]
        self.rules |= {number: _plain(rule) for number, rule in patch.rules.items()}
        self.digest, self.seats = digest, dict(seats)


def fresh_of(path: Path) -> Path:
    """Where a book is written before it takes its name."""
    return path.with_name(path.name + ".new")


def _seat(name: str, seats: Mapping[str, int]) -> tuple[int, ...]:
    if name == DOM0:
        return (0,)
    return (seats[name],) if name in seats else ()


def _plain(rule: Rule) -> tuple[Any, ...]:
    what = (rule.what.number, rule.what.ports, rule.what.ether) if rule.what else None
    return rule.action, rule.openers, rule.targets, what, rule.both, rule.log, rule.limit


__all__ = ["Book", "Patch", "Row", "fresh_of"]
