"""Where Xen 1.x's virtual firewall-router sent packets: what a rule of its list let through, given the others.

The list is searched from the newest rule on. The first that matches and names a VIF has the packet; one that names
the wire has it only if no VIF's rule, older or newer, takes it. Ports count for nothing (0 was compared for both), and
the protocol of tcp and udp rules was compared with a byte of the Ethernet source address. So for each rule these are
its *rivals*: those that may take what it matches elsewhere. What a rule let through is shown by an address at which
no rival takes the packet away; where none is found, it counts as let through by nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from vfr.policy.xen_parser import EVERYBODY, PHYS, PROTOCOLS, SPECIAL, WIRE, NetRule, Vif

ALL_BITS = (1 << 32) - 1
Pattern = tuple[int, int]  # an address and a mask: the addresses that agree with it in the mask's bits
EVERY: Pattern = (0, 0)
LINK_LOCAL: Pattern = (0xA9FE0000, 0xFFFF0000)
DOM0: Vif = (0, 0)


def contiguous(mask: int) -> bool:
    """Whether a prefix length says the mask."""
    free = ~mask & ALL_BITS
    return free & (free + 1) == 0


def within(address: int, pattern: Pattern) -> bool:
    """Whether the pattern matches."""
    return not (address ^ pattern[0]) & pattern[1]


def overlap(one: Pattern, other: Pattern) -> bool:
    """Whether an address matches both."""
    return not (one[0] ^ other[0]) & one[1] & other[1]


def _prefix(pattern: Pattern) -> Pattern:
    """The narrowest prefix that has all of the pattern."""
    free = (1 << (~pattern[1] & ALL_BITS).bit_length()) - 1
    return pattern[0] & ~free, ALL_BITS & ~free


def outside(pattern: Pattern, holes: Iterable[Pattern]) -> int | None:
    """An address that the pattern matches and no hole does; None if there is none. Holes count as whole prefixes."""
    near = [hole for hole in map(_prefix, holes) if overlap(hole, pattern)]
    address, mask = pattern[0] & pattern[1], pattern[1]
    if not near:
        return address
    for bit in (1 << n for n in range(31, -1, -1)):
        if near[0][1] & bit and not mask & bit:
            mask |= bit
            found = outside((address | (~near[0][0] & bit), mask), near)
            if found is not None:
                return found
            address |= near[0][0] & bit
    return None


def source_of(rule: NetRule) -> Pattern:
    """The source addresses it matches."""
    return rule.srcaddr, rule.srcaddrmask


def target_of(rule: NetRule) -> Pattern:
    """The destination addresses it matches."""
    return rule.dstaddr, rule.dstaddrmask


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule of the list: the number of the line that added it, and its place from the newest on."""

    line: int
    rule: NetRule
    place: int

    @property
    def matches_ip(self) -> bool:
        """Whether it can match a packet, rather than ARP alone or nothing."""
        return self.rule.ports_match and PROTOCOLS[self.rule.proto] != "arp"

    @property
    def is_to_vif(self) -> bool:
        """Whether the search ends here."""
        return self.rule.dstdom != SPECIAL


@dataclass(slots=True)
class Engine:
    """The list as it stood after the last line, newest first, and whose address was whose by it."""

    entries: tuple[Entry, ...]
    owners: dict[int, set[Vif]] = field(default_factory=lambda: defaultdict(set))
    _by_source: dict[Vif, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    _from_everybody: dict[Entry, list[Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            rule = entry.rule
            self._by_source[rule.source].append(entry)
            if rule.srcaddrmask == ALL_BITS and rule.srcdom != SPECIAL:
                self.owners[rule.srcaddr].add(rule.source)
            if rule.dstaddrmask == ALL_BITS and rule.dstdom != SPECIAL:
                self.owners[rule.dstaddr].add(rule.destination)

    def addresses(self, vif: Vif) -> list[int]:
        """Its own: those that a rule names alone, as what it sends from or what is sent to it."""
        return sorted(address for address, vifs in self.owners.items() if vif in vifs)

    def vifs(self) -> list[Vif]:
        """All that rules name."""
        ends = {end for e in self.entries for end in (e.rule.source, e.rule.destination)}
        return sorted(vif for vif in ends if vif[0] != SPECIAL)

    def rivals(self, entry: Entry, sender: Vif) -> list[Entry]:
        """Those that may take the sender's packets away from the entry."""
        if entry not in self._from_everybody:
            self._from_everybody[entry] = [e for e in self._by_source.get(EVERYBODY, ()) if _may_take(e, entry)]
        own = [] if sender == EVERYBODY else [e for e in self._by_source.get(sender, ()) if _may_take(e, entry)]
        return [e for e in (*own, *self._from_everybody[entry]) if e.rule.destination != sender]

    def _targets(self, entry: Entry, rivals: list[Entry]) -> list[int]:
        """Addresses of the entry's VIF; where it has none of its own, one that as few rivals as possible name."""
        if entry.rule.dstaddrmask == ALL_BITS:
            return [entry.rule.dstaddr]
        free = outside(EVERY, (target_of(e.rule) for e in rivals if e.rule.dstaddrmask))
        return self.addresses(entry.rule.destination) or [free or 0]

    def _is_owned(self, pattern: Pattern) -> bool:
        return pattern[1] == ALL_BITS and pattern[0] in self.owners

    def reaches_vif(self, entry: Entry, sender: Vif) -> bool:
        """Whether by the entry a domain's VIF, with whatever source, reached an address of the entry's VIF."""
        rivals = self.rivals(entry, sender)
        for target in self._targets(entry, rivals):
            holes = [source_of(e.rule) for e in rivals if within(target, target_of(e.rule))]
            if outside(source_of(entry.rule), holes) is not None:
                return True
        return False

    def reaches_vif_from_wire(self, entry: Entry) -> bool:
        """Whether by the entry all of its sources that no VIF has reached one address of the entry's VIF."""
        rivals = [e for e in self.rivals(entry, WIRE) if not self._is_owned(source_of(e.rule))]
        targets = self._targets(entry, rivals)
        return any(not any(within(target, target_of(e.rule)) for e in rivals) for target in targets)

    def reaches_wire(self, entry: Entry, sender: Vif) -> bool:
        """Whether by the entry a VIF, with some source that is not link-local, reached all of the entry's addresses
        that no VIF has. Xen put no IP packet with a link-local source on the wire, whatever the rules."""
        rivals = [e for e in self.rivals(entry, sender) if not self._is_owned(target_of(e.rule))]
        return outside(source_of(entry.rule), [LINK_LOCAL, *(source_of(e.rule) for e in rivals)]) is not None


def _may_take(rival: Entry, entry: Entry) -> bool:
    """Whether some packet that the entry matches goes where the rival says instead."""
    return (
        rival.matches_ip
        and rival.rule.destination != entry.rule.destination
        and overlap(target_of(rival.rule), target_of(entry.rule))
        and overlap(source_of(rival.rule), source_of(entry.rule))
        and _wins(rival, entry)
    )


def _wins(rival: Entry, entry: Entry) -> bool:
    if entry.is_to_vif:
        return rival.is_to_vif and rival.place < entry.place
    # A rule that leads nowhere undoes what the wire's newer rule found.
    return rival.is_to_vif or (rival.rule.dstidx != PHYS and rival.place > entry.place)
