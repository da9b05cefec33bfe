"""Parties in kinds: those of one kind are meant by the very same words of the rules, so that whatever is so for one is
so for all of them. A kind is a bit, and many kinds are one number, which makes sets of parties cheap.

Two sides, as before a change and after it, have their kinds together. Behind the uplink a kind is some addresses; that
is IPv4 only, as the tables are (compile.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, summarize_address_range

from vfr.policy.rules import ANY, DOM0, INTERNET, LAN, LOCAL, RuleSet, looks_like_address

ANY_DOMAIN = "any domain"
SHOWN = 8  # names of one end that are printed
EVERYWHERE = IPv4Network("0.0.0.0/0")

Words = tuple[str, ...]  # one end of a rule, as it is written
Rows = Mapping[Words, Mapping[Words, Sequence[int]]]  # target, opener, places of the rules


@dataclass(frozen=True, slots=True)
class Who:
    """Parties in words: those that `words` mean, without those that `but` mean. Words are of the rule language, or
    `any domain`, which is all but dom0."""

    words: tuple[str, ...]
    but: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """What it is to read. To leave out is harder than to list."""
        return sum(map(_cost, (*self.words, *self.but))) + bool(self.but)

    def __str__(self) -> str:
        return _listed(self.words) + (f" but {_listed(self.but)}" if self.but else "")


def _cost(word: str) -> int:
    return 3 if "-" in word and looks_like_address(word) else 1


def _listed(names: Sequence[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 1])} and {len(names) - SHOWN + 1} more"


@dataclass(frozen=True, slots=True)
class Side:
    """One state of affairs: the rules, the domains that exist (domain 0 among them), the uplink's own network, and
    whether there is an uplink at all. `rows` are the rules by their ends."""

    rules: RuleSet
    domains: frozenset[str]
    lan: IPv4Network | None = None
    nat: bool = True
    rows: Rows = field(default_factory=dict, compare=False, repr=False)


def _end(words: Words) -> Words:
    return words if len(words) == 1 else tuple(sorted(set(words)))


def side(rules: RuleSet, domains: Iterable[str], lan: IPv4Network | None = None, nat: bool = True) -> Side:
    """Made ready to be asked about."""
    rows: dict[Words, dict[Words, list[int]]] = {}
    for place, rule in enumerate(rules.rules):
        for openers, targets in rule.directions():
            row = rows.setdefault(_end(targets), {}).setdefault(_end(openers), [])
            if not row or row[-1] != place:
                row.append(place)
    return Side(rules, frozenset({*domains, DOM0}), lan, nat, rows)


def each(mask: int) -> Iterator[int]:
    """The bits that are set."""
    text = bin(mask)[:1:-1]
    at = text.find("1")
    while at >= 0:
        yield at
        at = text.find("1", at + 1)


# Addresses

Mark = int | str | tuple[int, str]  # the number of an end; a block by its name; a word with the side it is used on
Blocks = Mapping[IPv4Network, frozenset[Mark]]
_Within = tuple[IPv4Network, frozenset[Mark], tuple[bool, ...]]


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Addresses that lie in the same blocks: all of one that are in no smaller one. `marks` are those of all blocks
    around, `internet` says on which sides they are the internet's."""

    ranges: tuple[tuple[int, int], ...]
    marks: frozenset[Mark]
    internet: tuple[bool, ...]


def _left(net: IPv4Network, children: Sequence[IPv4Network]) -> tuple[tuple[int, int], ...]:
    """What of a block lies in none of the blocks in it."""
    ranges, at = [], int(net.network_address)
    for child in children:
        if at < int(child.network_address):
            ranges.append((at, int(child.network_address) - 1))
        at = int(child.broadcast_address) + 1
    if at <= int(net.broadcast_address):
        ranges.append((at, int(net.broadcast_address)))
    return tuple(ranges)


def _taken_apart(blocks: Blocks, local: Sequence[frozenset[IPv4Network]]) -> Iterator[_Addresses]:
    """All the addresses of `blocks`; `local` has each side's blocks that are not the internet's."""
    around: list[_Within] = []
    found: list[_Within] = []
    children: dict[IPv4Network, list[IPv4Network]] = {}
    for net in sorted(blocks, key=lambda n: (int(n.network_address), n.prefixlen)):
        while around and not net.subnet_of(around[-1][0]):
            around.pop()
        marks, internet = blocks[net], tuple(net not in nets for nets in local)
        if around:
            outer = around[-1]
            children.setdefault(outer[0], []).append(net)
            marks, internet = marks | outer[1], tuple(a and b for a, b in zip(internet, outer[2], strict=True))
        around.append((net, marks, internet))
        found.append(around[-1])
    for net, marks, internet in found:
        ranges = _left(net, children.get(net, ()))
        if ranges:
            yield _Addresses(ranges, marks, internet)


def _blocks(one: Side, word: str) -> Iterator[IPv4Network]:
    if one.rules.is_remote(word):
        yield from (net for net in one.rules.blocks(word) if isinstance(net, IPv4Network))


def _marked(sides: Sequence[Side], ends: Sequence[tuple[int, Words]], seeds: Iterable[IPv4Network]) -> Blocks:
    """The blocks that rules speak of, with who speaks of them."""
    marks: dict[IPv4Network, set[Mark]] = {net: set() for net in (EVERYWHERE, *seeds)}
    for number, (at, end) in enumerate(ends):
        for word in end if sides[at].nat else ():
            for net in _blocks(sides[at], word):
                marks.setdefault(net, set()).update((number, (at, word)))
    for at, one in enumerate(sides):
        for word in one.rules.sets:
            nets = list(_blocks(one, word))
            for net in nets if marks.keys() >= set(nets) else ():
                marks[net].add((at, word))
    names = {net: str(net.network_address) if net.prefixlen == 32 else str(net) for net in marks}
    return {net: frozenset({*mine, names[net]}) for net, mine in marks.items()}


def _printed(low: int, high: int) -> str:
    """A range of addresses as the language has it."""
    first, last = IPv4Address(low), IPv4Address(high)
    if low == high:
        return str(first)
    blocks = list(summarize_address_range(first, last))
    return str(blocks[0]) if len(blocks) == 1 else f"{first}-{last}"


# Kinds


@dataclass(slots=True)
class _Kind:
    """`ends` are the numbers of those that mean it, `there` the sides on which it exists; it has some domains, by
    name, or some addresses."""

    ends: tuple[int, ...]
    there: tuple[bool, ...]
    names: list[str] = field(default_factory=list)
    addresses: list[_Addresses] = field(default_factory=list)

    def printed(self) -> tuple[str, ...]:
        return (*self.names, *(_printed(*pair) for part in self.addresses for pair in part.ranges))


def _domains_of(one: Side, end: Words) -> frozenset[str]:
    if ANY in end:
        return one.domains
    groups = (one.rules.members(word) for word in end if word in one.rules.groups)
    names = (word for word in end if word not in one.rules.groups and word not in one.rules.sets)
    return frozenset(names).union(*groups) & one.domains


class Kinds:
    """The kinds that the rules of all sides tell apart. `ends` are (side, words) by `number`; `all`, `domains` (without
    dom0), `dom0` and `remote` are kinds, and so are those of each side in `there`, and of each end in `meant`."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides
        self.ends: list[tuple[int, Words]] = []
        for at, one in enumerate(sides):
            words = {*one.rows, *(opener for row in one.rows.values() for opener in row)}
            self.ends += [(at, end) for end in sorted(words)]
        self.number = {end: i for i, end in enumerate(self.ends)}
        self.kinds: list[_Kind] = []
        self.kind_of: dict[str, int] = {}
        self._add_domains()
        self.dom0 = 1 << self.kind_of[DOM0]
        self.domains = (1 << len(self.kinds)) - 1 & ~self.dom0
        self._add_addresses()
        self.all = (1 << len(self.kinds)) - 1
        self.remote = self.all & ~self.domains & ~self.dom0
        self.there = [sum(1 << i for i, k in enumerate(self.kinds) if k.there[at]) for at in range(len(sides))]
        self.meant = self._meant()
        self._wide, self._words = self._named()

    def _add(self, known: dict[object, int], key: object, kind: _Kind) -> int:
        if key not in known:
            known[key] = len(self.kinds)
            self.kinds.append(kind)
        return known[key]

    def _add_domains(self) -> None:
        ends: dict[str, list[int]] = {name: [] for one in self.sides for name in one.domains}
        for number, (at, end) in enumerate(self.ends):
            for name in _domains_of(self.sides[at], end):
                ends[name].append(number)
        known: dict[object, int] = {}
        for name in sorted(ends):
            there = tuple(name in one.domains for one in self.sides)
            key = (*ends[name], there, name == DOM0)
            self.kind_of[name] = self._add(known, key, _Kind(tuple(ends[name]), there))
            self.kinds[self.kind_of[name]].names.append(name)

    def _add_addresses(self) -> None:
        local = [frozenset({*LOCAL, *([one.lan] if one.lan else [])}) for one in self.sides]
        here = [(i, at, end) for i, (at, end) in enumerate(self.ends) if self.sides[at].nat]
        whole = [i for i, _, end in here if ANY in end or LAN in end]
        zoned = [(i, at) for i, at, end in here if INTERNET in end]
        there = tuple(one.nat for one in self.sides)
        self._has_zones = bool(zoned)
        blocks = _marked(self.sides, self.ends, frozenset[IPv4Network]().union(*local) if zoned else ())
        known: dict[object, int] = {}
        for part in _taken_apart(blocks, local) if any(there) else ():
            mine = {*whole, *(mark for mark in part.marks if isinstance(mark, int))}
            mine.update(i for i, at in zoned if part.internet[at])
            ends = tuple(sorted(mine))
            self.kinds[self._add(known, ends, _Kind(ends, there))].addresses.append(part)

    def _meant(self) -> list[int]:
        """An end with `any` is all that there is on its side, which needs no counting."""
        members: list[list[int]] = [[] for _ in self.ends]
        for i, kind in enumerate(self.kinds):
            for number in kind.ends:
                if ANY not in self.ends[number][1]:
                    members[number].append(i)
        masks = [sum(1 << i for i in found) for found in members]
        return [self.there[at] if ANY in end else masks[i] for i, (at, end) in enumerate(self.ends)]

    # Names

    def _named(self) -> tuple[list[tuple[int, str]], dict[int, list[tuple[int, str]]]]:
        """The words that mean whole kinds: those for very many, and for each kind the others."""
        words = {name: 1 << i for name, i in self.kind_of.items() if len(self.kinds[i].names) == 1}
        words |= self._agreed([self._groups(one) for one in self.sides])
        marked = self._marked_whole()
        words |= self._agreed(
            [{w: marked.get((at, w), 0) for w in one.rules.sets} for at, one in enumerate(self.sides)]
        )
        for mark, mask in marked.items():
            word = mark if isinstance(mark, str) else str(mark[1]) if isinstance(mark, tuple) else ""
            if looks_like_address(word) and mask:
                words[word] = mask
        of_kind: dict[int, list[tuple[int, str]]] = {}
        for word, mask in sorted(words.items()):
            for i in each(mask):
                of_kind.setdefault(i, []).append((mask, word))
        wide = [(self.all, ANY), (self.domains, ANY_DOMAIN), (self.remote, LAN), (self._internet(), INTERNET)]
        return [(mask, word) for mask, word in wide if mask], of_kind

    def _agreed(self, sides: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """The words that mean the same on all sides that have them, and something."""
        found: dict[str, set[int]] = {}
        for words in sides:
            for word, mask in words.items():
                found.setdefault(word, set()).add(mask)
        return {word: next(iter(masks)) for word, masks in found.items() if len(masks) == 1 and masks != {0}}

    def _whole(self, counts: Mapping[int, int]) -> int:
        """Kinds of which so many parts are meant, if they are all parts of each."""
        sizes = {i: len(self.kinds[i].names) + len(self.kinds[i].addresses) for i in counts}
        return sum(1 << i for i in counts) if sizes == counts else 0

    def _groups(self, one: Side) -> dict[str, int]:
        members = {group: one.rules.members(group) & self.kind_of.keys() for group in one.rules.groups}
        return {group: self._whole(_counted(self.kind_of[name] for name in names)) for group, names in members.items()}

    def _marked_whole(self) -> dict[Mark, int]:
        counts: dict[Mark, dict[int, int]] = {}
        for i, kind in enumerate(self.kinds):
            for mark in (mark for part in kind.addresses for mark in part.marks if not isinstance(mark, int)):
                mine = counts.setdefault(mark, {})
                mine[i] = mine.get(i, 0) + 1
        return {mark: self._whole(mine) for mark, mine in counts.items()}

    def _internet(self) -> int:
        if not self._has_zones:
            return 0
        sides = [
            _counted(i for i, kind in enumerate(self.kinds) for part in kind.addresses if part.internet[at])
            for at in range(len(self.sides))
        ]
        return self._whole(sides[0]) if all(one == sides[0] for one in sides) else 0

    def _words_of(self, kind: int) -> list[tuple[int, str]]:
        """Those for the most first; of words for the same, the first is taken."""
        return [(mask, word) for mask, word in self._wide if mask >> kind & 1] + self._words.get(kind, [])

    def named(self, need: int, spare: int) -> tuple[Who, int]:
        """Words for the kinds in `need`, and all that these words mean; some of `spare` may be among it, where that is
        shorter."""
        whole = self._named_within(need, spare, self.all)
        if whole[0].cost == 1:
            return whole
        found = [
            self._named_within(need & part, spare & part, part)
            for part in (self.domains, self.dom0, self.remote)
            if need & part
        ]
        found.sort(key=lambda part: part[0].cost)
        words = (word for who, _ in found for word in who.words)
        parted = Who(tuple(words), tuple(word for who, _ in found for word in who.but))
        return (parted, sum(mask for _, mask in found)) if parted.cost < whole[0].cost else whole

    def _named_within(self, need: int, spare: int, within: int) -> tuple[Who, int]:
        options = [option for option in self._words_of(_lowest(need)) if option[0] & ~within == 0]
        around = sorted(
            ((mask, word) for mask, word in options if need & ~mask == 0), key=lambda fit: fit[0].bit_count()
        )
        for mask, word in around:
            if mask & ~(need | spare) == 0:
                return Who((word,)), mask
        best: tuple[Who, int] | None = None
        for mask, word in around:
            but = self._cover(mask & ~(need | spare), ~need & within, best[0].cost - 2 if best else 1 << 30)
            if but:
                best = Who((word,), but[0]), mask & ~but[1]
        listed = self._cover(need, need | spare, best[0].cost + 1 if best else 1 << 30)
        if listed:
            best = Who(listed[0]), listed[1]
        assert best, "whatever is not called by a word is called by its parts"
        return best

    def _cover(self, need: int, allowed: int, most: int) -> tuple[tuple[str, ...], int] | None:
        """Words that mean all of `need`, and nothing that is not allowed, for less than `most`."""
        words: list[str] = []
        mask = cost = 0
        while need:
            first = _lowest(need)
            options = [option for option in self._words_of(first) if option[0] & ~allowed == 0]
            if options:
                found, word = max(options, key=lambda option: (option[0] & need).bit_count())
                more: Sequence[str] = (word,)
            else:
                found, more = 1 << first, self.kinds[first].printed()
            words += more
            cost += sum(map(_cost, more))
            mask |= found
            need &= ~found
            if cost >= most:
                return None
        return tuple(words), mask


def _counted(kinds: Iterable[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for kind in kinds:
        found[kind] = found.get(kind, 0) + 1
    return found


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1
