"""What can talk to what, as rules have it: all of it, what a change of rules does to it, and who reaches a domain. Pure.

Parties are taken in kinds (policy/kinds.py) and traffic in spans (policy/spans.py). What one kind may open to another
is looked at only where something can have changed: between ends of rules that came, went or changed, and for parties
whom some words mean now and did not mean before, or no more. There, openers are taken together that the same rules
speak of, so that a change between everybody costs no more than the rules do that speak of that traffic.

Not looked at is what no rule decides: domain 0 and the LAN (the host's own affair), the LAN and the LAN, a domain and
itself. Raw Ethernet is between domains, and domain 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vfr.policy.kinds import Kinds, Side, Who, Words, each
from vfr.policy.kinds import Side as Reach
from vfr.policy.kinds import side as reach
from vfr.policy.language import ForwardRule, range_text
from vfr.policy.rules import DOM0, INTERNET, LAN, WITH_PORTS, Rule, RuleSet
from vfr.policy.spans import (
    ALL,
    IP,
    Piece,
    Spans,
    both,
    compared,
    merged,
    of_ports,
    spans_of,
    winners,
    words,
)

SHOWN = 200  # lines of a difference that are printed
CHANGES_MOST = 1000  # that are put in words
QUESTIONS_MOST = 1_000_000  # about two kinds each

Outcome = tuple[str, int, bool]  # action, limit, log
SILENCE: Outcome = ("deny", 0, False)
Forwards = Sequence[ForwardRule]


# What is found


@dataclass(frozen=True, slots=True)
class Permitted:
    """What may be opened, or is rejected aloud. `outcome` is in the rule language's words, as `allow limit 10/s log`;
    `rule` is `file:line`, `text` the rule."""

    opener: Who
    target: Who
    traffic: str
    outcome: str
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.opener} -> {self.target} {self.traffic}{_more(self.outcome)}   ({self.rule})"


@dataclass(frozen=True, slots=True)
class Change:
    """What may be opened now (sign +), no more (-), or as before except that it is limited, logged or refused in another
    way (~). `rule` is what decides now; `was_rule` says that it is what decided before, and nothing does now."""

    sign: str
    opener: Who
    target: Who
    traffic: str
    before: str
    after: str
    rule: str
    text: str
    was_rule: bool = False

    def __str__(self) -> str:
        said = f"{self.sign} {self.opener} -> {self.target} {self.traffic}"
        where = f"was {self.rule}" if self.was_rule else self.rule
        if self.sign == "~":
            return f"{said}: {self.after}, was {self.before}   ({where})"
        if self.sign == "+":
            before = "" if self.before == "deny" else f", was {self.before}"
            return f"{said}{_more(self.after)}{before}   ({where})"
        return f"{said}{'' if self.after == 'deny' else f': {self.after}'}   ({where})"


@dataclass(frozen=True, slots=True)
class ForwardChange:
    """Outside ports (low, high) that lead to a domain's now (+), or no more (-). `host_only` ones are the host's own,
    not the LAN's. `note` says why nobody can use it, if so."""

    sign: str
    protocol: str
    outside: tuple[int, int]
    domain: str
    inside: tuple[int, int]
    host_only: bool = False
    note: str = ""

    def __str__(self) -> str:
        place = "host" if self.host_only else "LAN"
        lead = f"{place} port {self.protocol} {range_text(self.outside)} -> {self.domain}:{range_text(self.inside)}"
        return f"{self.sign} {lead}{f'; {self.note}' if self.note else ''}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All that a change does. `counts` are of all changes (+, -, ~), of which there may be too many for `changes`. `nat` is `on` or `off` if it becomes so. `unseen` kinds of conversations were not looked
    at, for there were too many."""

    changes: tuple[Change, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)
    forwards: tuple[ForwardChange, ...] = ()
    domains_added: tuple[str, ...] = ()
    domains_removed: tuple[str, ...] = ()
    nat: str = ""
    unseen: int = 0

    def __bool__(self) -> bool:
        return self != Difference()


@dataclass(frozen=True, slots=True)
class Door:
    """A way from the LAN through outside ports to a domain's `inside` ones, for `who`; if `host_only`, not from the LAN
    but from the host by its own loopback."""

    protocol: str
    outside: tuple[int, int]
    inside: tuple[int, int]
    who: Who
    outcome: str
    rule: str
    text: str
    host_only: bool = False

    def __str__(self) -> str:
        place = "host" if self.host_only else "LAN"
        way = f"{place} port {self.protocol} {range_text(self.outside)} -> {range_text(self.inside)}"
        return f"{self.who}, by {way}{_more(self.outcome)}   ({self.rule})"


@dataclass(frozen=True, slots=True)
class Exposed:
    """Who reaches a domain: other domains and domain 0 by `inside`, the LAN by `doors`. `notes` are sentences."""

    domain: str
    inside: tuple[Permitted, ...] = ()
    doors: tuple[Door, ...] = ()
    notes: tuple[str, ...] = ()


def _more(outcome: str) -> str:
    """What an outcome has beyond being allowed."""
    return "" if outcome == "allow" else f" {outcome.removeprefix('allow ')}"


def _said(outcome: Outcome) -> str:
    action, limit, log = outcome
    return " ".join([action, *(["log"] if log else []), *([f"limit {limit}/s"] if limit else [])])


# Who decides what, between two kinds


@dataclass(frozen=True, slots=True)
class _Label:
    """What became of some traffic: the outcomes before and after, and the rule that decides: its side and place."""

    sign: str
    before: Outcome
    after: Outcome
    at: int
    place: int


Result = tuple[tuple[_Label, Spans], ...]
Row = tuple[int, Sequence[int]]  # side, places of the rules
OLD, NEW = 0, 1


def _outcome(rule: Rule) -> Outcome:
    return rule.action, rule.limit, rule.log


def _label(sides: Sequence[Side], old: int | None, new: int | None) -> _Label | None:
    before = SILENCE if old is None else _outcome(sides[OLD].rules.rules[old])
    after = SILENCE if new is None else _outcome(sides[NEW].rules.rules[new])
    if before == after:
        return None
    sign = {(False, True): "+", (True, False): "-"}.get((before[0] == "allow", after[0] == "allow"), "~")
    if new is not None:
        return _Label(sign, before, after, NEW, new)
    assert old is not None, "there is no change between silence and silence"
    return _Label(sign, before, after, OLD, old)


@dataclass(slots=True)
class _Part:
    """Openers that the same rules speak of, to some target."""

    openers: int
    rows: list[Row]
    result: Result | None = None


@dataclass(slots=True)
class _End:
    """What rows have to do with one end as the target. `general` are those of ends that mean many openers, `single`
    those of one opener alone, `singles` all of these."""

    general: list[tuple[int, Row]] = field(default_factory=list)
    single: dict[int, list[Row]] = field(default_factory=dict)
    singles: int = 0


class _Budget:
    """How much may still be asked."""

    def __init__(self) -> None:
        self.left = QUESTIONS_MOST
        self.unseen = 0

    def take(self) -> bool:
        self.left -= 1
        self.unseen += self.left < 0
        return self.left >= 0


class _Asked:
    """The rules that are about some traffic, and let some of `openers` open it, or not."""

    def __init__(self, kinds: Kinds, spans: Spans, openers: int) -> None:
        self.kinds, self.spans, self.openers = kinds, spans, openers
        self._rows: dict[int, list[tuple[int, Row]]] = {}

    def rows(self, target: int) -> list[tuple[int, Row]]:
        """Those to one end, by the number of the opener's."""
        if target not in self._rows:
            at, end = self.kinds.ends[target]
            row = self.kinds.sides[at].rows.get(end, {})
            numbered = ((self.kinds.number[at, opener], places) for opener, places in row.items())
            mine = ((n, places) for n, places in numbered if self.kinds.meant[n] & self.openers)
            spoken = ((n, self._speaking(at, places)) for n, places in mine)
            self._rows[target] = [(n, (at, places)) for n, places in spoken if places]
        return self._rows[target]

    def _speaking(self, at: int, places: Sequence[int]) -> Sequence[int]:
        if self.spans == ALL or not self.spans:
            return places if self.spans else ()
        rules, low, high = self.kinds.sides[at].rules.rules, self.spans[0][0], self.spans[-1][1]
        near = ((i, spans_of(rules[i].what)) for i in places)
        return [i for i, spans in near if spans[0][0] <= high and spans[-1][1] >= low and both(spans, self.spans)]


class _Way:
    """From some kinds to some others: who of the first may open what to one of the others."""

    def __init__(self, asked: _Asked, openers: int, targets: int, carried: Spans, budget: _Budget) -> None:
        self.kinds, self.openers, self.targets, self.carried = asked.kinds, openers, targets, carried
        self._asked, self._budget = asked, budget
        self._ends: dict[int, _End] = {}
        self._parts: dict[tuple[int, ...], list[_Part]] = {}

    def _end(self, number: int) -> _End:
        if number not in self._ends:
            self._ends[number] = self._make_end(number)
        return self._ends[number]

    def _make_end(self, number: int) -> _End:
        found = _End()
        for opener, row in self._asked.rows(number):
            who = self.kinds.meant[opener] & self.openers
            if who & (who - 1):
                found.general.append((who, row))
            elif who:
                found.single.setdefault(who.bit_length() - 1, []).append(row)
                found.singles |= who
        return found

    def _parts_of(self, numbers: tuple[int, ...]) -> list[_Part]:
        """The openers taken apart by the rules of these ends, for many."""
        if numbers not in self._parts:
            by_openers: dict[int, list[Row]] = {}
            for number in numbers:
                for who, row in self._end(number).general:
                    by_openers.setdefault(who, []).append(row)
            parts = [_Part(self.openers, [])]
            for who, rows in by_openers.items():
                inside = [_Part(part.openers & who, [*part.rows, *rows]) for part in parts if part.openers & who]
                parts = inside + [_Part(part.openers & ~who, part.rows) for part in parts if part.openers & ~who]
            self._parts[numbers] = parts
        return self._parts[numbers]

    def speaking(self, target: int) -> tuple[int, ...]:
        """The ends by which rules speak of a target. Where they are the same, all else is."""
        if not self.targets >> target & 1:
            return ()
        return tuple(n for n in self.kinds.kinds[target].ends if self._end(n).general or self._end(n).single)

    def column(self, numbers: tuple[int, ...], openers: int) -> Iterator[tuple[int, Result]]:
        """What came of these openers' conversations to whom these ends mean, if anything did."""
        ends = [self._end(number) for number in numbers]
        parts = self._parts_of(tuple(n for n, end in zip(numbers, ends, strict=True) if end.general))
        own = 0
        for end in ends:
            own |= end.singles
        for part in parts:
            if part.openers & openers & ~own:
                if part.result is None:
                    part.result = self._result(part.rows)
                if part.result:
                    yield part.openers & openers & ~own, part.result
        for opener in each(own & openers):
            rows = next(part.rows for part in parts if part.openers >> opener & 1)
            result = self._result([*rows, *(row for end in ends for row in end.single.get(opener, ()))])
            if result:
                yield 1 << opener, result

    def columns(self, wanted: Mapping[int, int]) -> Iterator[tuple[int, int, Result]]:
        """Of wanted openers by target, (targets, openers, what came of it)."""
        alike: dict[tuple[tuple[int, ...], int], int] = {}
        for target, openers in wanted.items():
            numbers = self.speaking(target) if openers & self.openers else ()
            if numbers:
                alike[numbers, openers] = alike.get((numbers, openers), 0) | 1 << target
        for (numbers, openers), targets in alike.items():
            for who, result in self.column(numbers, openers):
                yield targets, who, result

    def _result(self, rows: Sequence[Row]) -> Result:
        if not rows or not self._budget.take():
            return ()
        sides = self.kinds.sides
        had, has = (
            _decided(sides[at], [i for here, places in rows if here == at for i in places]) for at in (OLD, NEW)
        )
        found: dict[_Label, list[tuple[int, int]]] = {}
        for low, high, old, new in compared(had, has):
            label = _label(sides, old, new)
            if label:
                found.setdefault(label, []).append((low, high))
        carried = ((label, both(merged(spans), self.carried)) for label, spans in found.items())
        return tuple((label, spans) for label, spans in carried if spans)


def _decided(one: Side, places: Sequence[int]) -> list[Piece]:
    """Which of these rules decides what."""
    rules = one.rules.rules
    ordered = sorted(set(places), key=lambda i: (-rules[i].rank, i)) if len(places) > 1 else places
    return winners([(i, spans_of(rules[i].what)) for i in ordered]) if ordered else []


# Where to look


def _contents(one: Side, places: Iterable[int]) -> set[tuple[Outcome, Spans]]:
    rules = one.rules.rules
    return {(_outcome(rules[i]), spans_of(rules[i].what)) for i in places}


def _unlike(old: Side, had: Sequence[int], new: Side, has: Sequence[int]) -> set[tuple[Outcome, Spans]]:
    """What only one of two rows says."""
    if [old.rules.rules[i] for i in had] == [new.rules.rules[i] for i in has]:
        return set()
    return _contents(old, had) ^ _contents(new, has)


class _Touched:
    """Where something can have changed: `openers` by target, and in what traffic."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._regions: dict[int, int] = {}
        self._spans: set[tuple[int, int]] = set()
        self._rules()
        self._ends()
        self.spans = merged(self._spans)
        self.openers: dict[int, int] = {}
        self.who = 0
        for who, targets in self._regions.items():
            self.who |= who
            for target in each(targets):
                self.openers[target] = self.openers.get(target, 0) | who

    def _meant(self, at: int, end: Words) -> int:
        number = self._kinds.number.get((at, end))
        return 0 if number is None else self._kinds.meant[number]

    def _touch(self, openers: int, targets: int, contents: Iterable[tuple[Outcome, Spans]]) -> None:
        if openers and targets:
            self._regions[openers] = self._regions.get(openers, 0) | targets
            for _, spans in contents:
                self._spans.update(spans)

    def _rules(self) -> None:
        """Ends between which not the same is said."""
        old, new = self._kinds.sides
        for target in old.rows.keys() | new.rows.keys():
            had, has = old.rows.get(target, {}), new.rows.get(target, {})
            for opener in had.keys() | has.keys():
                contents = _unlike(old, had.get(opener, ()), new, has.get(opener, ()))
                if contents:
                    who, whom = (self._meant(OLD, w) | self._meant(NEW, w) for w in (opener, target))
                    self._touch(who, whom, contents)

    def _ends(self) -> None:
        """Ends that do not mean the same parties."""
        ends = {end for _, end in self._kinds.ends}
        other = {end: changed for end in ends if (changed := self._meant(OLD, end) ^ self._meant(NEW, end))}
        for at, one in enumerate(self._kinds.sides if other else ()):
            for target, row in one.rows.items():
                for opener, places in row.items():
                    if target in other or opener in other:
                        contents = _contents(one, places)
                        self._touch(other.get(opener, 0), self._meant(at, target), contents)
                        self._touch(self._meant(at, opener), other.get(target, 0), contents)


# From kinds to lines


Found = dict[tuple[_Label, Spans], dict[int, int]]  # target -> openers


@dataclass(slots=True)
class _Box:
    """Targets with the openers that do the same to all of them: `yes` do, `no` do not, the others can't."""

    targets: int
    yes: int
    no: int

    def takes(self, other: _Box) -> bool:
        return not (self.yes & other.no or self.no & other.yes)


NEAR_BOXES = 64


class _Lines:
    """Finds the fewest words for what was found. What can't be at all, as a domain's talk with itself, may be among
    what the words say."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self._far = kinds.remote | kinds.dom0

    def _missing(self, sign: str) -> int:
        old, new = self.kinds.there
        return self.kinds.all & ~(old if sign == "-" else new)

    def _no_party(self, target: int, sign: str) -> int:
        """Whom a target's kind can't hear."""
        mine = 1 << target
        missing = self._missing(sign)
        if mine & missing:
            return self.kinds.all
        alone = len(self.kinds.kinds[target].names) == 1
        return missing | (mine if alone else 0) | (self._far if mine & self._far else 0)

    def openers(self, target: int, yes: int, sign: str) -> Who | None:
        """Of one target."""
        spare = self._no_party(target, sign)
        return self.kinds.named(yes & ~spare, spare)[0] if yes & ~spare else None

    def words(self, box: _Box, sign: str) -> tuple[Who, Who]:
        """(opener, target) that together are exactly the box."""
        opener, mask = self.kinds.named(box.yes, self.kinds.all & ~box.yes & ~box.no)
        spare = self._missing(sign)
        spare |= self._far if not mask & ~(self._far | spare) else 0
        lone = mask & ~spare
        if lone and not lone & (lone - 1) and len(self.kinds.kinds[lone.bit_length() - 1].names) == 1:
            spare |= lone
        return opener, self.kinds.named(box.targets, spare & ~box.targets)[0]

    def boxes(self, columns: Mapping[int, int], sign: str) -> list[_Box]:
        same: dict[tuple[int, int], int] = {}
        for target, openers in columns.items():
            spare = self._no_party(target, sign)
            if openers & ~spare:
                key = (openers & ~spare, self.kinds.all & ~openers & ~spare)
                same[key] = same.get(key, 0) | 1 << target
        boxes: list[_Box] = []
        for (yes, no), targets in same.items():
            box = _Box(targets, yes, no)
            fit = next((known for known in boxes[-NEAR_BOXES:] if known.takes(box)), None)
            if fit:
                fit.targets, fit.yes, fit.no = fit.targets | targets, fit.yes | yes, fit.no | no
            else:
                boxes.append(box)
        return boxes


# The whole


class _World:
    """Two states of affairs, and the ways between their parties."""

    def __init__(self, old: Reach, new: Reach, everything: bool = False) -> None:
        self.kinds = Kinds((old, new))
        self.lines = _Lines(self.kinds)
        self.budget = _Budget()
        touched = None if everything else _Touched(self.kinds)
        self.touched = touched.openers if touched else dict.fromkeys(each(self.kinds.all), self.kinds.all)
        asked = _Asked(self.kinds, touched.spans if touched else ALL, touched.who if touched else self.kinds.all)
        domains, remote, near = self.kinds.domains, self.kinds.remote, self.kinds.domains | self.kinds.dom0
        self.near = _Way(asked, near, near, ALL, self.budget)
        self.out = _Way(asked, domains, remote, IP, self.budget)
        self.back = _Way(asked, remote, domains, IP, self.budget)

    def found(self) -> Found:
        found: Found = {}
        for way in (self.near, self.out, self.back):
            for targets, openers, result in way.columns(self.touched):
                for key in result:
                    column = found.setdefault(key, {})
                    for target in each(targets):
                        column[target] = column.get(target, 0) | openers
        return found

    def boxes(self) -> list[tuple[_Label, Spans, _Box]]:
        """All that changed, in the order in which people want it: what opened first, then as the rules stand."""
        found = [
            (label, spans, box)
            for (label, spans), columns in self.found().items()
            for box in self.lines.boxes(columns, label.sign)
        ]
        return sorted(found, key=lambda one: ("+-~".index(one[0].sign), -one[0].at, one[0].place, one[1]))

    def changes(self, boxes: Iterable[tuple[_Label, Spans, _Box]]) -> tuple[Change, ...]:
        """In words."""
        return tuple(self._change(label, spans, *self.lines.words(box, label.sign)) for label, spans, box in boxes)

    def _change(self, label: _Label, spans: Spans, opener: Who, target: Who) -> Change:
        rules = self.kinds.sides[label.at].rules
        where, text = rules.where(label.place), str(rules.rules[label.place])
        before, after = _said(label.before), _said(label.after)
        return Change(label.sign, opener, target, words(spans), before, after, where, text, label.at == OLD)

    def allowed(self, way: _Way, target: int) -> dict[tuple[_Label, Spans], int]:
        """What may be opened to one kind that could not be before, and by whom."""
        found: dict[tuple[_Label, Spans], int] = {}
        for who, result in way.column(way.speaking(target), self.kinds.all):
            for label, spans in result:
                if label.sign == "+":
                    found[label, spans] = found.get((label, spans), 0) | who
        return found


def _alone(whole: Reach) -> _World:
    """A state of affairs beside the one without rules, so that all that it permits is a difference."""
    return _World(Reach(RuleSet(), whole.domains, whole.lan, whole.nat), whole, everything=True)


def permitted(whole: Reach) -> tuple[Permitted, ...]:
    """All that may be opened, or is rejected aloud, by whom and by which rule."""
    world = _alone(whole)
    changes = world.changes(box for box in world.boxes() if box[0].after[0] != "deny")
    return tuple(Permitted(c.opener, c.target, c.traffic, c.after, c.rule, c.text) for c in changes)


def difference(
    old: Reach, new: Reach, forwards: tuple[Forwards, Forwards] = ((), ()), most: int = CHANGES_MOST
) -> Difference:
    """What a change does to what can talk to what. `forwards` are those before and those after, ssh's among them. No
    more than `most` changes are put in words."""
    world = _World(old, new)
    boxes = world.boxes()
    signs = [label.sign for label, _, _ in boxes]
    return Difference(
        world.changes(boxes[:most]),
        (signs.count("+"), signs.count("-"), signs.count("~")),
        tuple(_forward_changes(old, new, forwards)),
        tuple(sorted(new.domains - old.domains)),
        tuple(sorted(old.domains - new.domains)),
        "" if old.nat == new.nat else "on" if new.nat else "off",
        world.budget.unseen,
    )


# Forwards


def _led(forwards: Forwards, nat: bool, leads: dict[tuple[str, int], int]) -> dict[tuple[str, bool], list[Piece]]:
    """By protocol and place, which outside ports lead where: to a number of (domain, distance of the ports)."""
    claims: dict[tuple[str, bool], list[tuple[int, Spans]]] = {}
    for forward in forwards:
        if nat or forward.host_only:
            lead = leads.setdefault((forward.domain, forward.inside[0] - forward.outside[0]), len(leads))
            claims.setdefault((forward.protocol, forward.host_only), []).append((lead, (forward.outside,)))
    return {key: winners(claimed) for key, claimed in claims.items()}


def _forward_changes(old: Reach, new: Reach, forwards: tuple[Forwards, Forwards]) -> Iterator[ForwardChange]:
    leads: dict[tuple[str, int], int] = {}
    had, has = _led(forwards[OLD], old.nat, leads), _led(forwards[NEW], new.nat, leads)
    named = list(leads)
    opened: list[ForwardChange] = []
    closed: list[ForwardChange] = []
    for key in sorted(had.keys() | has.keys()):
        for low, high, before, after in compared(had.get(key, ()), has.get(key, ())):
            for sign, lead, changes in (("-", before, closed), ("+", after, opened)):
                if lead is not None and before != after:
                    domain, away = named[lead]
                    inside = (low + away, high + away)
                    changes.append(ForwardChange(sign, key[0], (low, high), domain, inside, key[1]))
    yield from closed
    world = _alone(new) if opened else None
    for change in opened:
        assert world, "it was made for those that are opened"
        yield replace(change, note=_in_vain(world, change))


def _in_vain(world: _World, change: ForwardChange) -> str:
    """Why nobody can use a forward, if so."""
    if change.domain not in world.kinds.sides[NEW].domains:
        return f"there is no domain {change.domain} yet"
    ports = of_ports(WITH_PORTS[change.protocol], [change.inside])
    way, who = (world.near, world.kinds.dom0) if change.host_only else (world.back, world.kinds.remote)
    allowed = world.allowed(way, world.kinds.kind_of[change.domain])
    if any(openers & who and both(spans, ports) for (_, spans), openers in allowed.items()):
        return ""
    return "no rule lets anybody use it yet"


# Exposure


def exposure(whole: Reach, forwards: Forwards = (), names: Iterable[str] | None = None) -> tuple[Exposed, ...]:
    """Who reaches each domain, or each of `names`. Of the LAN, whoever a rule allows and a forward leads to it; that
    may be another domain, which uses the router's own LAN address."""
    world = _alone(whole)
    chosen = sorted(whole.domains - {DOM0}) if names is None else [name for name in names if name in whole.domains]
    by_domain: dict[str, list[ForwardRule]] = {}
    for forward in forwards:
        by_domain.setdefault(forward.domain, []).append(forward)
    return tuple(_Exposure(world, name, by_domain.get(name, ())).exposed() for name in chosen)


class _Exposure:
    """Of one domain."""

    def __init__(self, world: _World, name: str, forwards: Forwards) -> None:
        self.world, self.name, self.forwards = world, name, forwards
        self.rules = world.kinds.sides[NEW].rules
        self.nat = world.kinds.sides[NEW].nat
        self.target = world.kinds.kind_of[name]
        self.near = world.allowed(world.near, self.target)
        self.far = world.allowed(world.back, self.target)

    def exposed(self) -> Exposed:
        inside = sorted(self._inside(), key=lambda pair: pair[0])
        doors = [door for forward in self.forwards for door in self._doors(forward)]
        return Exposed(self.name, tuple(p for _, p in inside), tuple(doors), (*self._dead_ends(), *self._no_ways()))

    def _who(self, openers: int) -> Who | None:
        return self.world.lines.openers(self.target, openers, "+")

    def _inside(self) -> Iterator[tuple[int, Permitted]]:
        for (label, spans), openers in self.near.items():
            who, place = self._who(openers), label.place
            if who:
                where, text = self.rules.where(place), str(self.rules.rules[place])
                yield place, Permitted(who, Who((self.name,)), words(spans), _said(label.after), where, text)

    def _doors(self, forward: ForwardRule) -> Iterator[Door]:
        host_only, away = forward.host_only, forward.inside[0] - forward.outside[0]
        if not host_only and not self.nat:
            return
        mine = self.world.kinds.dom0 if host_only else self.world.kinds.remote
        for (label, spans), openers in (self.near if host_only else self.far).items():
            who = self._who(openers & mine)
            for low, high in both(spans, self._ports(forward)) if who else ():
                inside = (low & 0xFFFF, high & 0xFFFF)
                where, text = self.rules.where(label.place), str(self.rules.rules[label.place])
                outside = (inside[0] - away, inside[1] - away)
                assert who, "nobody was looked for above"
                yield Door(forward.protocol, outside, inside, who, _said(label.after), where, text, host_only)

    @staticmethod
    def _ports(forward: ForwardRule) -> Spans:
        return of_ports(WITH_PORTS[forward.protocol], [forward.inside])

    def _dead_ends(self) -> Iterator[str]:
        """Forwards that somebody may take for open, or for the LAN's."""
        for forward in self.forwards:
            host_only, ports = forward.host_only, words(self._ports(forward))
            lead = f"{'host' if host_only else 'LAN'} port {forward.protocol} {range_text(forward.outside)}"
            if host_only:
                yield f"{lead} leads here from the host itself only, not from the LAN"
            elif not self.nat:
                yield f"{lead} leads nowhere, for NAT is off"
                continue
            if not any(True for _ in self._doors(forward)):
                way_out = f"allow {'dom0' if host_only else 'lan'} -> {self.name} {ports}"
                yield f"{lead} leads nowhere yet, for no rule lets anybody use it, as `{way_out}` may"

    def _no_ways(self) -> Iterator[str]:
        """Rules that let the LAN in where it has no way; not those that say `any`, which mean others as well."""
        reached = merged(span for f in self.forwards if self.nat and not f.host_only for span in self._ports(f))
        let_in: dict[int, Spans] = {}
        for label, spans in self.far:
            let_in[label.place] = merged((*let_in.get(label.place, ()), *spans))
        for place, spans in sorted(let_in.items()):
            if not both(spans, reached):
                who = ", ".join(self._far_words(place))
                said = f"lets {who} to {words(spans)}, but no forward leads there"
                yield from [f"{self.rules.where(place)} {said}"] if who else []

    def _far_words(self, place: int) -> list[str]:
        rule = self.rules.rules[place]
        ends = (*rule.openers, *(rule.targets if rule.both else ()))
        return [word for word in ends if word in (LAN, INTERNET) or self.rules.is_remote(word)]


# Lines to read


def _counted(counts: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def _summary(found: Difference) -> str:
    opened, shut, otherwise = found.counts
    ways = [change.sign for change in found.forwards]
    parts = [
        _counted([(opened, "opened"), (shut, "shut"), (otherwise, "decided otherwise")]),
        _counted([(ways.count("+"), "ports forwarded"), (ways.count("-"), "no more")]),
        _counted([(len(found.domains_added), "domains more"), (len(found.domains_removed), "fewer")]),
        f"NAT {found.nat}" if found.nat else "",
        f"{found.unseen} not looked at, for the rules tell too many apart" if found.unseen else "",
    ]
    return "; ".join(part for part in parts if part)


def difference_lines(found: Difference, most: int = SHOWN) -> tuple[str, ...]:
    """For people: at most so many lines, and a summary."""
    if not found:
        return ("what can talk to what stays the same",)
    lines = [f"{'+' if found.nat == 'on' else '-'} NAT"] if found.nat else []
    lines += [f"+ domain {name}" for name in found.domains_added]
    lines += [f"- domain {name}" for name in found.domains_removed]
    lines += [str(change) for change in (*found.forwards, *found.changes)]
    left = len(lines) - len(found.changes) + sum(found.counts) - len(lines[:most])
    return (*lines[:most], *([f"and {left} more"] if left else []), _summary(found))


def exposure_lines(found: Sequence[Exposed]) -> tuple[str, ...]:
    """For people: a paragraph for each domain."""
    lines: list[str] = []
    for one in found:
        lines.append(f"{one.domain}:" if one.inside or one.doors else f"{one.domain}: nobody reaches it")
        lines += [f"  from {p.opener}: {p.traffic}{_more(p.outcome)}   ({p.rule})" for p in one.inside]
        lines += [f"  from {door}" for door in one.doors]
        lines += [f"  note: {note}" for note in one.notes]
    return tuple(lines)


__all__ = [
    "Change",
    "Difference",
    "Door",
    "Exposed",
    "ForwardChange",
    "Permitted",
    "Reach",
    "Who",
    "difference",
    "difference_lines",
    "exposure",
    "exposure_lines",
    "permitted",
    "reach",
]
