"""Rules to tables in which every question costs the same, however many rules there are.

The fastpath asks for a pair of nodes: (opener, target), then (opener, ANY), (ANY, target), (ANY, ANY),
and the first row that is there decides. So the row of a pair holds the merged meaning of every rule
that speaks about it. A row names a port set; equal sets share a number. A set's ports are prefixes, as
a longest-prefix-match table takes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vfr._abi import Limit
from vfr.policy.language import ALL_PORTS, ANY, DOM0, LAN, PROTOCOLS, Ports, Rule, RuleSet

NODE_ANY, NODE_LAN = int(Limit.NODE_ANY), int(Limit.NODE_LAN)
NOTHING, EVERYTHING = int(Limit.SET_NOTHING), int(Limit.SET_EVERYTHING)
Pair = tuple[int, int]
PortSet = tuple[tuple[int, Ports, str], ...]
_ALL: PortSet = tuple((number, ALL_PORTS, "allow") for number in sorted(PROTOCOLS.values()))


def _union(ranges: Iterable[tuple[int, int]]) -> Ports:
    """Disjoint, sorted, with nothing between neighbours that touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _minus(ranges: Ports, holes: Ports) -> Ports:
    """What is left of `ranges` without `holes`; both as _union gives them."""
    left: list[tuple[int, int]] = []
    for low, high in ranges:
        for hole_low, hole_high in holes:
            if hole_high < low or hole_low > high:
                continue
            if hole_low > low:
                left.append((low, hole_low - 1))
            low = hole_high + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


def _prefixes(low: int, high: int) -> Iterable[tuple[int, int]]:
    """(port, bits) prefixes that together are exactly low..high."""
    while low <= high:
        size = low & -low or 1 << 16
        while size > high - low + 1:
            size >>= 1
        yield low, 17 - size.bit_length()
        low += size


def _meaning(rules: Iterable[Rule]) -> PortSet:
    """The merged meaning of rules about one pair: what is allowed, and what is rejected. The rest is denied."""
    said: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for rule in rules:
        for protocol, ports in rule.protocols():
            said.setdefault((rule.action, protocol), []).extend(ports)
    found = []
    for protocol in sorted(PROTOCOLS.values()):
        allowed, rejected, denied = (_union(said.get((a, protocol), ())) for a in ("allow", "reject", "deny"))
        found.append((protocol, _minus(allowed, _union((*rejected, *denied))), "allow"))
        found.append((protocol, _minus(rejected, denied), "reject"))
    return tuple(row for row in found if row[1])


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """The tables: `pairs` (opener, target) -> set number, `lpm` (set, protocol, port, prefix bits, action)."""

    pairs: Mapping[Pair, int]
    lpm: tuple[tuple[int, int, int, int, str], ...]
    sets: Mapping[int, PortSet] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """64 hex digits that no other policy has."""
        return hashlib.sha256(repr((sorted(self.pairs.items()), self.lpm)).encode()).hexdigest()

    def set_of(self, opener: int, target: int) -> int:
        """The row that decides, as the fastpath finds it."""
        for pair in ((opener, target), (opener, NODE_ANY), (NODE_ANY, target), (NODE_ANY, NODE_ANY)):
            if pair in self.pairs:
                return self.pairs[pair]
        return NOTHING

    def decide(self, opener: int, target: int, protocol: int, port: int) -> str:
        """The fastpath's answer: allow, deny or reject; `port` is the target's own, 0 for ICMP."""
        number = self.set_of(opener, target)
        if number in (NOTHING, EVERYTHING):
            return "allow" if number == EVERYTHING else "deny"
        for s, p, at, bits, action in self.lpm:
            if s == number and p == protocol and port >> (16 - bits) == at >> (16 - bits):
                return action
        return "deny"

    def allows(self, opener: int, target: int, protocol: int, port: int) -> bool:
        """Whether the conversation may begin."""
        return self.decide(opener, target, protocol, port) == "allow"

    def may_talk(self, one: int, other: int) -> bool:
        """Whether either may open anything to the other, or is told why not."""
        return self.set_of(one, other) != NOTHING or self.set_of(other, one) != NOTHING


def _nodes(rules: RuleSet, slots: Mapping[str, int]) -> dict[Pair, list[Rule]]:
    """The rules by the pair of nodes they name. Those that name nobody here are left out."""
    numbers = {**slots, ANY: NODE_ANY, LAN: NODE_LAN, DOM0: 0}
    by_pair: dict[Pair, list[Rule]] = {}
    for rule in rules.rules:
        if rule.opener in numbers and rule.target in numbers:
            by_pair.setdefault((numbers[rule.opener], numbers[rule.target]), []).append(rule)
    return by_pair


def _candidates(by_pair: Mapping[Pair, list[Rule]]) -> list[Pair]:
    """Every pair that may need a row, wildcards first: those that rules name, and where a rule about
    (opener, ANY) meets one about (ANY, target)."""
    openers = {o for o, t in by_pair if t == NODE_ANY}
    targets = {t for o, t in by_pair if o == NODE_ANY}
    pairs = set(by_pair) | {(o, t) for o in openers for t in targets}
    return sorted(pairs, key=lambda pair: (-pair.count(NODE_ANY), pair))


def _about(by_pair: Mapping[Pair, list[Rule]], pair: Pair) -> list[Rule]:
    opener, target = pair
    wider = {(opener, target), (opener, NODE_ANY), (NODE_ANY, target), (NODE_ANY, NODE_ANY)}
    return [rule for one in sorted(wider) for rule in by_pair.get(one, ())]


def compile_rules(rules: RuleSet, slots: Mapping[str, int]) -> CompiledPolicy:
    """The tables for the rules, with the domains' slots by name. A name without one matches nothing."""
    by_pair = _nodes(rules, slots)
    numbers: dict[PortSet, int] = {(): NOTHING, _ALL: EVERYTHING}
    policy = CompiledPolicy({}, ())
    rows: dict[Pair, int] = {}
    for pair in _candidates(by_pair):
        number = numbers.setdefault(_meaning(_about(by_pair, pair)), len(numbers))
        policy = CompiledPolicy(rows, ())
        if policy.set_of(*pair) != number:
            rows[pair] = number
    sets = {number: ports for ports, number in numbers.items() if number in set(rows.values())}
    lpm = [
        (number, protocol, port, bits, action)
        for number, ports in sorted(sets.items())
        if number > EVERYTHING
        for protocol, ranges, action in ports
        for low, high in ranges
        for port, bits in _prefixes(low, high)
    ]
    return CompiledPolicy(rows, tuple(lpm), sets)
