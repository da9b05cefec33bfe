"""Rules to tables in which every question costs the same, however many rules there are.

Each end of a conversation has three levels, from its own to everybody's:

    a domain      its slot        its groups, as one node    any
    the LAN       its addresses   local or internet          any

so that a question is nine rows of `pairs` at the most, of which `levels` says which there can be. A rule enters the
rows of the very nodes that it names; thus one more rule changes as many rows as it names nodes, and no other rule's.
A row leads to a rule, or to a set of `ports`, a longest-prefix-match table in which the longest prefix already has
the winner of all rules in the row. Of what the rows say, the rule of the highest rank decides.

What addresses behind the uplink belong to is one longest-prefix match in `remotes`: each block gives the node of
all words whose blocks it lies in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise, product

from vfr._abi import Limit
from vfr.errors import VfrError
from vfr.policy.rules import ALL_PORTS, ANY, DOM0, INTERNET, LAN, LOCAL, Ports, Rule, RuleSet, Traffic

NODE_ANY, NODE_LAN, NODE_NONE = int(Limit.NODE_ANY), int(Limit.NODE_LAN), int(Limit.NODE_NONE)
NODE_LOCAL, NODE_INTERNET = int(Limit.NODE_LOCAL), int(Limit.NODE_INTERNET)
OPENS, SHUTS, IS_RULE = int(Limit.PAIR_OPENS), int(Limit.PAIR_SHUTS), int(Limit.PAIR_IS_RULE)
RULES_MOST = int(Limit.RULES) // 2 - 1  # the old rules and the new are there together for a moment
PAIRS_MOST = 1 << 20
TOO_MANY_PAIRS = f"the rules speak of more than {PAIRS_MOST} pairs; use fewer groups that overlap"
EVERYWHERE = IPv4Network("0.0.0.0/0")

Pair = tuple[int, int]
Row = tuple[int, int]  # a rule's or a set's number, and flags
Entry = tuple[int, int, int, int, int]  # bits behind the set's number, ether, protocol, port, rule
Standing = Mapping[int, tuple[int, int]]  # rule -> what orders rules, the one that decides first
Remote = tuple[int, int, int, int]  # address, prefix length, node of its words, node of its zone


class TooManyError(VfrError):
    """Rules that make larger tables than there may be."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """The tables: `pairs` (opener, target) -> row; `sets` by number; `groups` slot -> node; `remotes`; `rules` by
    number. `digest` is 64 hex digits that no other policy has. `nodes` of each word and the rules `by_pair` are what the
    tables were made by."""

    pairs: Mapping[Pair, Row]
    sets: Mapping[int, tuple[Entry, ...]]
    groups: Mapping[int, int]
    remotes: tuple[Remote, ...]
    rules: Mapping[int, Rule]
    digest: str
    nodes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    by_pair: Mapping[Pair, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)
    _lookup: dict[tuple[int, ...], int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def levels(self) -> int:
        """A bit for each (opener's level, target's level) that some row has: 1 << (3 * opener's + target's)."""
        found = 0
        for pair in self.pairs:
            found |= level_bit(*pair)
        return found

    def remote(self, address: IPv4Address) -> tuple[int, int]:
        """The nodes of somebody behind the uplink: its words', or NODE_NONE, and its zone's."""
        found = self._find("remotes", int(address), 32)
        return (found & 0xFFFF, found >> 16) if found is not None else (NODE_NONE, NODE_INTERNET)

    def _find(self, kind: str, key: int, bits: int, *scope: int) -> int | None:
        if not self._lookup:
            self._index()
        mark = hash(kind) if scope == () else scope[0]
        for length in range(bits, -1, -1):
            found = self._lookup.get((mark, length, key >> (bits - length)))
            if found is not None:
                return found
        return None

    def _index(self) -> None:
        for address, length, words, zone in self.remotes:
            self._lookup[hash("remotes"), length, address >> (32 - length)] = zone << 16 | words
        for number, entries in self.sets.items():
            for bits, ether, protocol, port, rule in entries:
                self._lookup[number, bits, (ether << 24 | protocol << 16 | port) >> (32 - bits)] = rule
        self._lookup[()] = 0

    def _nodes(self, node: int, remote: IPv4Address | None) -> tuple[int, int, int]:
        if node != NODE_LAN:
            return node, self.groups.get(node, NODE_NONE), NODE_ANY
        assert remote is not None, "somebody behind the uplink is known by the address"
        return *self.remote(remote), NODE_ANY

    def _rows(self, opener: int, target: int, remote: IPv4Address | None) -> Iterator[Row]:
        for one in self._nodes(opener, remote):
            for other in self._nodes(target, remote):
                if (one, other) in self.pairs:
                    yield self.pairs[one, other]

    def deciding(self, opener: int, target: int, traffic: Traffic, remote: IPv4Address | None = None) -> int | None:
        """The number of the rule that decides, as the fastpath finds it; nodes are slots, or NODE_LAN for `remote`."""
        best: int | None = None
        key = traffic.ether << 24 | traffic.protocol << 16 | traffic.port
        for number, flags in self._rows(opener, target, remote):
            found = self._find("ports", key, 32, number) if not flags & IS_RULE else None if traffic.ether else number
            if found and (best is None or _beats(self.rules, found, best)):
                best = found
        return best

    def decide(self, opener: int, target: int, protocol: int, port: int, remote: int = 0, ether: bool = False) -> str:
        """The fastpath's answer: allow, deny or reject; `port` as in Traffic, `remote` an address as a number."""
        number = self.deciding(opener, target, Traffic(protocol, port, ether), IPv4Address(remote))
        return self.rules[number].action if number else "deny"

    def limit(self, opener: int, target: int, protocol: int, port: int, remote: int = 0) -> tuple[int, int]:
        """Of the rule that decides, the number and how many conversations a second it lets begin, 0 for any."""
        number = self.deciding(opener, target, Traffic(protocol, port), IPv4Address(remote)) or 0
        return number, self.rules[number].limit if number else 0

    def may_talk(self, one: int, other: int) -> bool:
        """Whether one of two domains may open anything to the other, or is told why not."""
        for pair in ((one, other), (other, one)):
            flags = [flags for _, flags in self._rows(*pair, None)]
            if any(f & OPENS for f in flags) and not any(f & SHUTS for f in flags):
                return True
        return False


def _beats(rules: Mapping[int, Rule], one: int, other: int) -> bool:
    return (-rules[one].rank, one) < (-rules[other].rank, other)


def _level(node: int) -> int:
    if node == NODE_ANY:
        return 2
    is_middle = int(Limit.NODE_GROUPS) <= node < int(Limit.NODE_REMOTES) or node in (NODE_LOCAL, NODE_INTERNET)
    return 1 if is_middle else 0


def level_bit(opener: int, target: int) -> int:
    """Of a row, in CompiledPolicy.levels."""
    return 1 << (3 * _level(opener) + _level(target))


# Ports


def prefixes(low: int, high: int) -> Iterator[tuple[int, int]]:
    """(port, bits) prefixes that together are exactly low..high."""
    while low <= high:
        size = low & -low or 1 << 16
        while size > high - low + 1:
            size >>= 1
        yield low, 17 - size.bit_length()
        low += size


def _best(standing: Standing, numbers: Iterable[int]) -> int:
    """The one that decides, 0 if there is none."""
    return min(numbers, key=standing.__getitem__, default=0)


def _pieces(standing: Standing, said: Sequence[tuple[int, Ports]], whole: int) -> Iterator[tuple[int, int, int]]:
    """(low, high, rule that decides), where it is not the one for all ports, `whole`: in one walk along the ports."""
    spans = sorted((low, high, n) for n, ports in said for low, high in ports)
    edges = sorted({edge for low, high, _ in spans for edge in (low, high + 1)})
    here = [(standing[whole], 1 << 16)] if whole else []  # a heap: the one that decides first, and where it ends
    begun, run = 0, (0, 0, 0)
    for low, after in pairwise(edges):
        while begun < len(spans) and spans[begun][0] == low:
            heappush(here, (standing[spans[begun][2]], spans[begun][1]))
            begun += 1
        while here and here[0][1] < low:
            heappop(here)
        winner = here[0][0][1] if here else 0
        if winner != run[2] and run[2] not in (whole, 0):
            yield run
        run = (run[0] if winner == run[2] else low, after - 1, winner)
    if run[2] not in (whole, 0):
        yield run


def _entries(rules: Mapping[int, Rule], standing: Standing, numbers: Sequence[int]) -> tuple[Entry, ...]:
    """What rules of one row together say, by protocol and port; no entry where they say nothing."""
    by_what: dict[tuple[bool, int], list[tuple[int, Ports]]] = {}
    everything: list[int] = []
    for n in numbers:
        if what := rules[n].what:
            by_what.setdefault((what.ether, what.number), []).append((n, what.ports))
        else:
            everything.append(n)
    for_all = _best(standing, everything)
    found: list[Entry] = [(8, 0, 0, 0, for_all)] if for_all else []
    for (ether, protocol), said in sorted(by_what.items()):
        wider = 0 if ether else for_all
        whole = _best(standing, [*(n for n, ports in said if not ports), *([wider] if wider else [])])
        if whole != wider:
            found.append((16, ether, protocol, 0, whole))
        for low, high, winner in _pieces(standing, [s for s in said if s[1]], whole):
            found += [(16 + bits, ether, protocol, port, winner) for port, bits in prefixes(low, high)]
    return tuple(found)


def _flags(rules: Mapping[int, Rule], numbers: Sequence[int]) -> int:
    flags = 0
    for n in numbers:
        rule = rules[n]
        if rule.action != "deny":
            flags |= 0 if rule.what and rule.what.ether else OPENS
        elif rule.what is None:
            flags |= SHUTS
    return flags


# Ends


def _used(rules: RuleSet) -> tuple[str, ...]:
    """The words of FROM and TO, each once, sorted."""
    return tuple(sorted({word for rule in rules.rules for word in (*rule.openers, *rule.targets)}))


def _group_nodes(rules: RuleSet, words: Iterable[str], slots: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    """Slot -> the groups it is in, of those that rules speak of."""
    found: dict[int, list[str]] = {}
    for word in words:
        for name in rules.members(word) if word in rules.groups else ():
            if name in slots:
                found.setdefault(slots[name], []).append(word)
    return {slot: tuple(groups) for slot, groups in found.items()}


def _remotes(
    rules: RuleSet, words: Iterable[str], lan: IPv4Network | None
) -> Iterator[tuple[IPv4Network, frozenset[str], int]]:
    """Each block with the words that it lies in, and its zone."""
    blocks: dict[IPv4Network, set[str]] = {EVERYWHERE: set()}
    local = {*LOCAL, *([lan] if lan else [])}
    for net in local:
        blocks[net] = set()
    for word in words:
        for block in rules.blocks(word) if rules.is_remote(word) else ():
            if isinstance(block, IPv4Network):
                blocks.setdefault(block, set()).add(word)
    around: list[tuple[int, frozenset[str], int]] = []
    for net in sorted(blocks, key=lambda n: (int(n.network_address), n.prefixlen)):
        while around and around[-1][0] < int(net.network_address):
            around.pop()
        above, zone = (around[-1][1], around[-1][2]) if around else (frozenset[str](), NODE_INTERNET)
        mine, zone = above | blocks[net], NODE_LOCAL if net in local else zone
        around.append((int(net.broadcast_address), mine, zone))
        yield net, mine, zone


class _Ends:
    """The nodes that each word of FROM and TO stands for."""

    def __init__(self, rules: RuleSet, slots: Mapping[str, int], lan: IPv4Network | None) -> None:
        words = _used(rules)
        slots = {**slots, DOM0: 0}
        self.nodes: dict[str, tuple[int, ...]] = {word: (slots[word],) if word in slots else () for word in words}
        self.nodes |= {ANY: (NODE_ANY,), LAN: (NODE_LOCAL, NODE_INTERNET), INTERNET: (NODE_INTERNET,)}
        self.groups: dict[int, int] = {}
        self._number_groups(_group_nodes(rules, words, slots), rules)
        self.remotes: list[Remote] = []
        self._number_remotes(rules, words, lan)

    def _number_groups(self, memberships: Mapping[int, tuple[str, ...]], rules: RuleSet) -> None:
        numbers: dict[tuple[str, ...], int] = {}
        for slot, groups in sorted(memberships.items()):
            self.groups[slot] = numbers.setdefault(groups, int(Limit.NODE_GROUPS) + len(numbers))
        for word in self.nodes.keys() & rules.groups.keys():
            self.nodes[word] = tuple(node for groups, node in numbers.items() if word in groups)

    def _number_remotes(self, rules: RuleSet, words: Iterable[str], lan: IPv4Network | None) -> None:
        numbers: dict[frozenset[str], int] = {frozenset(): NODE_NONE}
        for net, mine, zone in _remotes(rules, words, lan):
            node = numbers.setdefault(mine, int(Limit.NODE_REMOTES) + len(numbers) - 1)
            self.remotes.append((int(net.network_address), net.prefixlen, node, zone))
        if len(numbers) > int(Limit.NODE_HEADER) - int(Limit.NODE_REMOTES):
            raise TooManyError(f"the rules tell {len(numbers)} kinds of addresses apart, which is too many; use sets")
        of_word: dict[str, list[int]] = {word: [] for word in words if rules.is_remote(word)}
        for mine, node in numbers.items():
            for word in mine:
                of_word[word].append(node)
        self.nodes |= {word: tuple(nodes) for word, nodes in of_word.items()}


def _nodes_of(words: Sequence[str], nodes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if len(words) == 1:
        return nodes[words[0]]
    return tuple(dict.fromkeys(node for word in words for node in nodes[word]))


def pairs_of(rule: Rule, nodes: Mapping[str, tuple[int, ...]]) -> Iterator[Pair]:
    """The rows that a rule is in. KeyError for a word that has no nodes yet, TooManyError if they are too many."""
    for openers, targets in rule.directions():
        from_nodes, to_nodes = _nodes_of(openers, nodes), _nodes_of(targets, nodes)
        if len(from_nodes) * len(to_nodes) > PAIRS_MOST:
            raise TooManyError(TOO_MANY_PAIRS)
        yield from product(from_nodes, to_nodes)


def numbered(rules: Sequence[Rule]) -> tuple[int, ...]:
    """A number for each rule, from 1 on; the same for the same rule."""
    numbers: dict[Rule, int] = {}
    return tuple(numbers.setdefault(rule, len(numbers) + 1) for rule in rules)


def _digest(rules: RuleSet, numbers: Sequence[int], slots: Mapping[str, int], lan: IPv4Network | None) -> str:
    """Of all that the tables are made from, as far as they are."""
    named = {*_used(rules), *(name for group in rules.groups for name in rules.members(group))}
    seats = sorted((name, slot) for name, slot in slots.items() if name in named)
    made = hashlib.sha256(repr((seats, str(lan), sorted(rules.groups.items()), sorted(rules.sets.items()))).encode())
    for number, rule in sorted(zip(numbers, map(str, rules.rules), strict=True)):
        made.update(f"{number} {rule}\n".encode())
    return made.hexdigest()


def compile_rules(
    rules: RuleSet,
    slots: Mapping[str, int],
    lan: IPv4Network | None = None,
    numbers: Sequence[int] | None = None,
) -> CompiledPolicy:
    """The tables for the rules, with the domains' slots by name, and the uplink's own network. `numbers` are those of
    the rules, in their order. A name without a slot matches nothing. TooManyError: the tables would be too large."""
    numbers = numbered(rules.rules) if numbers is None else numbers
    by_number = dict(zip(numbers, rules.rules, strict=True))
    if len(by_number) > RULES_MOST:
        raise TooManyError(f"{len(by_number)} rules are more than the {RULES_MOST} that there is room for")
    ends = _Ends(rules, slots, lan)
    by_pair: dict[Pair, list[int]] = {}
    for number, rule in by_number.items():
        for pair in pairs_of(rule, ends.nodes):
            by_pair.setdefault(pair, []).append(number)
        if len(by_pair) > PAIRS_MOST:
            raise TooManyError(TOO_MANY_PAIRS)
    pairs, sets = _rows(by_number, by_pair)
    return CompiledPolicy(
        pairs,
        sets,
        ends.groups,
        tuple(ends.remotes),
        by_number,
        _digest(rules, numbers, slots, lan),
        ends.nodes,
        by_pair,
    )


def row_of(rules: Mapping[int, Rule], standing: Standing, said: Sequence[int]) -> tuple[tuple[Entry, ...], int]:
    """What the rules of one row say together: entries, and flags; IS_RULE if it is one rule for every IP protocol."""
    entries, flags = _entries(rules, standing, said), _flags(rules, said)
    return entries, flags | (IS_RULE if len(entries) == 1 and entries[0][0] == 8 else 0)


def _rows(
    rules: Mapping[int, Rule], by_pair: Mapping[Pair, Sequence[int]]
) -> tuple[dict[Pair, Row], dict[int, tuple[Entry, ...]]]:
    """Rows and sets; equal sets are one."""
    pairs: dict[Pair, Row] = {}
    known: dict[tuple[Entry, ...], int] = {}
    made: dict[tuple[int, ...], Row] = {}  # by the rules in it: one that names groups is in many rows alike
    standing = {number: (-rule.rank, number) for number, rule in rules.items()}
    for pair, numbers in sorted(by_pair.items()):
        said = tuple(numbers)
        if said not in made:
            entries, flags = row_of(rules, standing, said)
            if flags & IS_RULE:
                made[said] = (entries[0][4], flags)
            else:
                made[said] = (known.setdefault(entries, len(known) + 1), flags)
        pairs[pair] = made[said]
    return pairs, {number: entries for entries, number in known.items()}


__all__ = ["ALL_PORTS", "CompiledPolicy", "TooManyError", "compile_rules", "numbered", "prefixes"]
