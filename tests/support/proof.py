"""That tables mean what rules say, for all packets at once: both as formulas, and z3 looks for a packet that tells them
apart. If there is none, that is the proof.

The meaning is written from the words of the rules (vfr/policy/rules.py), the tables from what the fastpath does with
them (fastpath/policy.h), step by step. Neither uses the compiler's code, nor CompiledPolicy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import z3

from vfr._abi import Limit
from vfr.policy import CompiledPolicy, Party, Rule, RuleSet, Traffic
from vfr.policy.compile import IS_RULE, NODE_ANY, NODE_LAN, NODE_NONE, OPENS, SHUTS
from vfr.policy.rules import ACTIONS, LOCAL, PROTOCOL_NAMES, looks_like_address

HEADER, SLOTS_MOST = int(Limit.NODE_HEADER), int(Limit.SLOTS)
Formula = Any  # z3's own types are Any
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first of a conversation, with nothing said about it but that its ends are domains' slots, or somebody behind
    the uplink with the address `remote`."""

    opener: Formula = field(default_factory=lambda: z3.BitVec("opener", 16))
    target: Formula = field(default_factory=lambda: z3.BitVec("target", 16))
    remote: Formula = field(default_factory=lambda: z3.BitVec("remote", 32))
    ether: Formula = field(default_factory=lambda: z3.BitVec("ether", 8))
    protocol: Formula = field(default_factory=lambda: z3.BitVec("protocol", 8))
    port: Formula = field(default_factory=lambda: z3.BitVec("port", 16))

    def can_be(self) -> Formula:
        ends = (z3.Or(z3.ULT(end, SLOTS_MOST), end == NODE_LAN) for end in (self.opener, self.target))
        return z3.And(*ends, z3.ULE(self.ether, 1))

    def key(self) -> Formula:
        """Ether, protocol and port as they stand in the key of a set."""
        return z3.Concat(self.ether, self.protocol, self.port)


# The meaning


def _range(word: str) -> Range | None:
    """From the first address to the last, None for IPv6."""
    if ":" in word:
        return None
    first, dash, last = word.partition("-")
    if dash:
        return int(IPv4Address(first)), int(IPv4Address(last))
    net = ip_network(word)
    return int(net.network_address), int(net.broadcast_address)


def _leaves(word: str, lists: Mapping[str, Sequence[str]], seen: frozenset[str] = frozenset()) -> set[str]:
    """What a group or set is made of in the end."""
    if word not in lists:
        return {word}
    return {leaf for w in lists[word] if w not in seen for leaf in _leaves(w, lists, seen | {word})}


def _within(address: Formula, ranges: Iterable[Range | None]) -> Formula:
    return z3.Or([z3.And(z3.UGE(address, r[0]), z3.ULE(address, r[1])) for r in ranges if r])


@dataclass(frozen=True, slots=True)
class Meaning:
    """Rules as formulas."""

    rules: RuleSet
    slots: Mapping[str, int]
    lan: IPv4Network | None
    numbers: Sequence[int]

    def _is(self, end: Formula, remote: Formula, word: str) -> Formula:
        """Whether a word of FROM or TO means this end."""
        outside = end == NODE_LAN
        if word == "any":
            return z3.BoolVal(True)
        if word == "lan":
            return outside
        if word == "internet":
            near = [_range(str(net)) for net in (*LOCAL, *([self.lan] if self.lan else []))]
            return z3.And(outside, z3.Not(_within(remote, near)))
        if word in self.rules.sets or looks_like_address(word):
            return z3.And(outside, _within(remote, map(_range, _leaves(word, self.rules.sets))))
        names = _leaves(word, self.rules.groups)
        seats = {**self.slots, "dom0": 0}
        return z3.Or([end == seats[name] for name in names if name in seats])

    def _covers(self, rule: Rule, p: Packet) -> Formula:
        ways = [(rule.openers, rule.targets)] + ([(rule.targets, rule.openers)] if rule.both else [])
        return z3.Or(
            [
                z3.And(
                    z3.Or([self._is(p.opener, p.remote, word) for word in openers]),
                    z3.Or([self._is(p.target, p.remote, word) for word in targets]),
                )
                for openers, targets in ways
            ]
        )

    @staticmethod
    def _speaks_of(rule: Rule, p: Packet) -> Formula:
        what = rule.what
        if what is None:
            return p.ether == 0
        ports = [z3.And(z3.UGE(p.port, low), z3.ULE(p.port, high)) for low, high in what.ports]
        return z3.And(p.ether == int(what.ether), p.protocol == what.number, z3.Or(ports) if ports else True)

    def deciding(self, p: Packet) -> Formula:
        """Of the rule that decides rank and number in one, 0 for none: the first that covers, by rank and number."""
        order = sorted(zip(self.numbers, self.rules.rules, strict=True), key=lambda pair: (pair[1].rank, -pair[0]))
        found: Formula = z3.BitVecVal(0, 64)
        for number, rule in order:
            decided = z3.BitVecVal(rule.rank << 32 | number, 64)
            found = z3.If(z3.And(self._speaks_of(rule, p), self._covers(rule, p)), decided, found)
        return found

    def may_open(self, p: Packet) -> Formula:
        """Between domains: some rule about IP allows or rejects something, and none denies everything."""
        about_ip = [rule for rule in self.rules.rules if not (rule.what and rule.what.ether)]
        opens = [self._covers(rule, p) for rule in about_ip if rule.action in ("allow", "reject")]
        shuts = [self._covers(rule, p) for rule in about_ip if rule.action == "deny" and rule.what is None]
        return z3.And(z3.Or(opens), z3.Not(z3.Or(shuts)))


# The tables


def _longest(key: Formula, rows: Iterable[tuple[int, int, Formula]], default: Formula) -> Formula:
    """A longest-prefix match of 32 bits over (prefix, length, value)."""
    found = default
    for prefix, length, value in sorted(rows, key=lambda row: row[1]):
        matches = z3.Extract(31, 32 - length, key) == prefix >> (32 - length) if length else z3.BoolVal(True)
        found = z3.If(matches, value, found)
    return found


@dataclass(frozen=True, slots=True)
class Tables:
    """The fastpath's maps, asked as fastpath/policy.h asks them. `levels` is what stands in the header."""

    policy: CompiledPolicy
    levels: int

    def _rows(self) -> dict[tuple[int, int], tuple[int, int]]:
        """@policy's inner map: number and flags by opener and target."""
        rows = {(HEADER, HEADER): (1, self.levels)}
        rows |= {(slot, HEADER): (node, 0) for slot, node in self.policy.groups.items()}
        return rows | dict(self.policy.pairs)

    def _pair_row(self, opener: Formula, target: Formula, values: Mapping[tuple[int, int], Formula]) -> Formula:
        """pair_row(), of which `values` are wanted; 0 where there is no row."""
        found: Formula = z3.BitVecVal(0, 32)
        for (one, other), value in values.items():
            found = z3.If(z3.And(opener == one, target == other), value, found)
        return found

    def _nodes(self, end: Formula, remote: Formula, middle_levels: int) -> tuple[Formula, Formula, Formula]:
        """nodes_of_domain() or nodes_of_remote()."""
        group: Formula = z3.BitVecVal(NODE_NONE, 16)
        if self.levels & middle_levels:
            for (slot, other), (node, _) in self._rows().items():
                if other == HEADER:
                    group = z3.If(end == slot, z3.BitVecVal(node, 16), group)
        rows = [(a, length, z3.BitVecVal(zone << 16 | words, 32)) for a, length, words, zone in self.policy.remotes]
        both = _longest(remote, rows, z3.BitVecVal(NODE_NONE << 16 | NODE_NONE, 32))
        outside = end == NODE_LAN
        own = z3.If(outside, z3.Extract(15, 0, both), end)
        return own, z3.If(outside, z3.Extract(31, 16, both), group), z3.BitVecVal(NODE_ANY, 16)

    def _said(self, p: Packet) -> dict[tuple[int, int], Formula]:
        """Row -> the rule that it leads to for this packet: the end of ask_level()."""
        sets = {}
        for number, entries in self.policy.sets.items():
            rows = [
                (ether << 24 | protocol << 16 | port, bits, z3.BitVecVal(rule, 32))
                for bits, ether, protocol, port, rule in entries
            ]
            sets[number] = _longest(p.key(), rows, z3.BitVecVal(0, 32))
        nothing = z3.BitVecVal(0, 32)
        return {
            pair: z3.If(p.ether == 0, z3.BitVecVal(number, 32), nothing) if flags & IS_RULE else sets[number]
            for pair, (number, flags) in self._rows().items()
            if HEADER not in pair
        }

    def _asked(self, p: Packet, values: Mapping[tuple[int, int], Formula]) -> list[Formula]:
        """What ask_level() finds at each pair of levels that the header has, in its order."""
        openers, targets = self._nodes(p.opener, p.remote, 0x38), self._nodes(p.target, p.remote, 0x92)
        return [self._pair_row(openers[i // 3], targets[i % 3], values) for i in range(9) if self.levels & (1 << i)]

    def deciding(self, p: Packet) -> Formula:
        """ask_policy(): of the rule that decides rank and number in one, 0 for none."""
        rule: Formula = z3.BitVecVal(0, 32)
        rank: Formula = z3.BitVecVal(0, 32)
        for number in self._asked(p, self._said(p)):
            its, exists = self._rank(number)
            same = z3.And(its == rank, rule != 0, z3.ULE(rule, number))
            takes = z3.And(number != 0, exists, z3.Not(z3.ULT(its, rank)), z3.Not(same))
            rank, rule = z3.If(takes, its, rank), z3.If(takes, number, rule)
        return z3.Concat(rank, rule)

    def _rank(self, number: Formula) -> tuple[Formula, Formula]:
        found: Formula = z3.BitVecVal(0, 32)
        for known, rule in self.policy.rules.items():
            found = z3.If(number == known, z3.BitVecVal(rule.rank, 32), found)
        return found, z3.Or([number == known for known in self.policy.rules])

    def may_open(self, p: Packet) -> Formula:
        """may_open(), of two domains."""
        flags = {pair: z3.BitVecVal(f, 32) for pair, (_, f) in self._rows().items() if HEADER not in pair}
        all_flags = reduce(lambda a, b: a | b, self._asked(p, flags), z3.BitVecVal(0, 32))
        return z3.And(all_flags & OPENS != 0, all_flags & SHUTS == 0)


# The search


@dataclass(frozen=True, slots=True)
class Difference:
    """A packet about which rules and tables differ: who, what, and what either says."""

    opener: str
    target: str
    traffic: str
    meant: str
    found: str

    def __str__(self) -> str:
        return f"{self.opener} -> {self.target} {self.traffic}: by the rules {self.meant}, by the tables {self.found}"


def _value(model: z3.ModelRef, what: Formula) -> Any:
    value = model.eval(what, model_completion=True)
    return z3.is_true(value) if z3.is_bool(value) else value.as_long()


def _end(node: int, remote: int, slots: Mapping[str, int]) -> str:
    names = {slot: name for name, slot in slots.items()} | {0: "dom0"}
    return str(IPv4Address(remote)) if node == NODE_LAN else names.get(node, f"the domain of slot {node}")


def _traffic(ether: int, protocol: int, port: int) -> str:
    if ether:
        return f"ether {port:#06x}" + (f" (protocol {protocol})" if protocol else "")
    names = {number: name for name, number in PROTOCOL_NAMES.items()} | {1: "icmp", 6: "tcp", 17: "udp"}
    return f"{names.get(protocol, f'proto {protocol}')} {port}"


def difference(
    rules: RuleSet,
    policy: CompiledPolicy,
    slots: Mapping[str, int],
    lan: IPv4Network | None,
    numbers: Sequence[int],
    levels: int | None = None,
) -> Difference | None:
    """A packet about which the tables say something else than the rules mean, None if there is none at all."""
    p, meaning = Packet(), Meaning(rules, slots, lan, numbers)
    tables = Tables(policy, policy.levels if levels is None else levels)
    domains = z3.And(z3.ULT(p.opener, SLOTS_MOST), z3.ULT(p.target, SLOTS_MOST))
    for meant, found, can_be, words in (
        (meaning.deciding(p), tables.deciding(p), p.can_be(), _decided),
        (meaning.may_open(p), tables.may_open(p), domains, _opens),
    ):
        solver = z3.SolverFor("QF_BV")
        solver.add(can_be, meant != found)
        answer = solver.check()
        assert answer != z3.unknown, solver.reason_unknown()
        if answer == z3.unsat:
            continue
        model = solver.model()
        opener, target, remote = (_value(model, x) for x in (p.opener, p.target, p.remote))
        traffic = _traffic(*(_value(model, x) for x in (p.ether, p.protocol, p.port))) if words is _decided else "(ARP)"
        said = [words(_value(model, x)) for x in (meant, found)]
        return Difference(_end(opener, remote, slots), _end(target, remote, slots), traffic, *said)
    return None


def _decided(rank_and_number: int) -> str:
    if not rank_and_number:
        return "deny, by none"
    return f"{ACTIONS[rank_and_number >> 62]}, by rule {rank_and_number & 0xFFFFFFFF}"


def _opens(may: bool) -> str:
    return "may open something" if may else "has nothing to open"


def at(formula: Formula, opener: int, target: int, remote: int, traffic: Traffic) -> Any:
    """What a formula over Packet() says about one packet."""
    p = Packet()
    values = (
        (p.opener, opener), (p.target, target), (p.remote, remote),
        (p.ether, int(traffic.ether)), (p.protocol, traffic.protocol), (p.port, traffic.port),
    )  # fmt: skip
    value = z3.simplify(z3.substitute(formula, *((x, z3.BitVecVal(v, x.size())) for x, v in values)))
    return z3.is_true(value) if z3.is_bool(value) else value.as_long()


def party(node: int, remote: int, slots: Mapping[str, int]) -> Party:
    """The end as RuleSet knows it."""
    names = {slot: name for name, slot in slots.items()} | {0: "dom0"}
    return Party(address=IPv4Address(remote)) if node == NODE_LAN else Party(names.get(node, "idle"))


__all__ = ["Difference", "Meaning", "Packet", "Tables", "at", "difference", "party"]
