"""What rules are, and what they mean, by definition. How they are written is language.py's, and what the
fastpath decides by is compile.py's; tests hold both to this.

Default deny; the order of rules does not matter; deny beats reject beats allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    NetmaskValueError,
    ip_address,
    ip_network,
    summarize_address_range,
)

ACTIONS = ("allow", "reject", "deny")  # the later beats the earlier
ANY, LAN, INTERNET, DOM0 = "any", "lan", "internet", "dom0"
KEYWORDS = (ANY, LAN, INTERNET, DOM0)
ICMP, TCP, UDP = 1, 6, 17
WITH_PORTS = {"tcp": TCP, "udp": UDP}
PROTOCOL_NAMES = {"igmp": 2, "ipip": 4, "gre": 47, "esp": 50, "ah": 51, "ospf": 89, "vrrp": 112, "sctp": 132}
# The requests that begin a conversation, by what stands for them where TCP has a port. Echo is what ICMP
# meant to the tables when it was the only one.
ICMP_REQUESTS = {"echo": 0, "timestamp": 13}
ICMP_TYPES = {8: "echo", 13: "timestamp"}
ALL_PORTS = ((0, 65535),)
# EtherTypes that are somebody else's: those below are lengths, and these have rules or a refusal of their own.
ETHER_LEAST = 0x0600
ETHER_TAKEN = {
    0x0800: "IPv4",
    0x0806: "ARP",
    0x86DD: "IPv6",
    0x8100: "a VLAN tag",
    0x88A8: "a VLAN tag",
    0x9100: "a VLAN tag",
}
LIMIT_MOST = 10_000_000
# Behind the uplink, and yet not the internet: private (RFC 1918), shared (6598), link-local (3927), IETF's
# (6890) and for benchmarks (2544).
LOCAL = tuple(
    IPv4Network(n)
    for n in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "192.0.0.0/24",
        "198.18.0.0/15",
    )
)
LINK_LOCAL = IPv4Network("169.254.0.0/16")
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?")
_PART = re.compile(r'"[^"\n]*"|#.*|\s+|[^"#\s]+')
RESERVED = frozenset({*KEYWORDS, "none", "unknown"})

Ports = tuple[tuple[int, int], ...]
Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def rule_text(line: str) -> str:
    """A rule's line without comment and spare blanks."""
    parts = (part for part in _PART.findall(line) if not part.startswith("#"))
    return " ".join("".join(" " if part.isspace() else part for part in parts).split())


def looks_like_address(word: str) -> bool:
    """Whether a word can only have been meant as an address, a block or a range."""
    return ":" in word or "/" in word or re.match(r"\d+\.\d+\.\d+\.\d+", word) is not None


@lru_cache(maxsize=1 << 16)
def networks(word: str) -> tuple[Network, ...]:
    """The blocks that `192.0.2.7`, `192.0.2.0/24`, `192.0.2.10-192.0.2.20` or their like in IPv6 stand for.

    ValueError says what is wrong with the word.
    """
    first, dash, last = word.partition("-")
    try:
        if dash:
            return tuple(summarize_address_range(ip_address(first), ip_address(last)))
        return (ip_network(word),)
    except (AddressValueError, NetmaskValueError, TypeError, ValueError):
        raise ValueError(_address_trouble(word)) from None


def _address_trouble(word: str) -> str:
    first, dash, last = word.partition("-")
    try:
        if dash and ip_address(first).version == ip_address(last).version:
            return f"the range {word} ends before it starts"
        return f"{word} has bits behind its prefix; write {ip_network(word, strict=False)}, or the address alone"
    except ValueError:
        return f"{word!r} is not an address; write 192.0.2.7, 192.0.2.0/24 or 192.0.2.10-192.0.2.20"


def is_name(word: str) -> bool:
    """Whether a word can be a name."""
    return NAME.fullmatch(word) is not None and not looks_like_address(word)


def check_domain(word: str) -> None:
    """ValueError unless a domain other than the host may be called so."""
    if word in RESERVED or not is_name(word):
        raise ValueError(f"{word!r} cannot be the name of a domain")


def check_comment(text: str) -> None:
    """ValueError unless the text may stand in quotes."""
    if '"' in text or not text.isprintable():
        raise ValueError("a comment has no quotes in it, and only what can be printed")


@lru_cache(maxsize=1 << 16)
def check_end(word: str) -> None:
    """ValueError unless the word may stand in FROM or TO."""
    if not looks_like_address(word):
        if not NAME.fullmatch(word):
            raise ValueError(f"{word!r} cannot be a name: up to 32 of a-z, 0-9, '.', '_', '-'")
        return
    for net in networks(word):
        if isinstance(net, IPv4Network) and net.subnet_of(LINK_LOCAL):
            raise ValueError(f"{word} is never behind the uplink, which is all that an address means; name the domain")


def check_ether_end(word: str) -> None:
    """The like for raw Ethernet."""
    check_end(word)
    if word in (LAN, INTERNET) or looks_like_address(word):
        raise ValueError(f"raw Ethernet goes between domains only, and {word} is behind the uplink")


@dataclass(frozen=True, slots=True)
class What:
    """Which traffic: an IP protocol's, with `ports` (low, high), both included, () for all; of ICMP these are the
    requests' numbers in ICMP_REQUESTS. Or, if `ether`, raw Ethernet, whose EtherTypes `ports` are."""

    number: int
    ports: Ports = ()
    ether: bool = False

    def __post_init__(self) -> None:
        if self.ether:
            self._check_ether()
        elif self.ports and self.number not in (ICMP, TCP, UDP):
            raise ValueError(f"protocol {self.number} has no ports")
        elif self.ports and self.number == ICMP and not {*self.ports} <= {(n, n) for n in ICMP_REQUESTS.values()}:
            raise ValueError(f"ICMP has no ports, but the requests {' and '.join(ICMP_REQUESTS)}")
        if not 0 <= self.number <= 255:
            raise ValueError(f"protocol {self.number} is beyond 255")
        for low, high in self.ports:
            if high > 65535:
                raise ValueError(f"port {high} is beyond 65535")
            if low > high:
                raise ValueError(f"port range {low}-{high} ends before it starts")

    def _check_ether(self) -> None:
        if not self.ports:
            raise ValueError("ether needs an EtherType, as `ether 0x889a`")
        for low, high in self.ports:
            if low != high or not ETHER_LEAST <= low <= 0xFFFF:
                raise ValueError(f"{low:#06x} is not an EtherType; they go from {ETHER_LEAST:#06x} to 0xffff")
            if low in ETHER_TAKEN:
                raise ValueError(f"{low:#06x} is {ETHER_TAKEN[low]}, which no ether rule speaks of")

    def __str__(self) -> str:
        if self.ether:
            return "ether " + ",".join(f"{a:#06x}" for a, _ in self.ports)
        if self.number == ICMP:
            names = {number: name for name, number in ICMP_REQUESTS.items()}
            return " ".join(["icmp", ",".join(names[a] for a, _ in self.ports)]).strip()
        named = {number: name for name, number in WITH_PORTS.items()}
        word = named.get(self.number, f"proto {self.number}")
        return " ".join([word, ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ports)]).strip()

    def covers(self, traffic: Traffic) -> bool:
        """Whether this traffic is meant."""
        if (self.ether, self.number) != (traffic.ether, traffic.protocol):
            return False
        return not self.ports or any(a <= traffic.port <= b for a, b in self.ports)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a conversation is: its IP protocol with the target's port (0 where there are none, and for ICMP a number
    of ICMP_REQUESTS), or raw Ethernet with its EtherType for a port."""

    protocol: int
    port: int = 0
    ether: bool = False


@dataclass(frozen=True, slots=True)
class Party:
    """Who is at one end: a domain by its name, or somebody behind the uplink by the address."""

    name: str = ""
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One line. Where it stands is not part of it."""

    action: str
    openers: tuple[str, ...]
    targets: tuple[str, ...]
    what: What | None = None
    both: bool = False
    log: bool = False
    limit: int = 0
    comment: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is not an action")
        if not self.openers or not self.targets:
            raise ValueError("a rule needs somebody at either end")
        check = check_ether_end if self.what and self.what.ether else check_end
        for word in (*self.openers, *self.targets):
            check(word)
        if self.action == "reject" and self.what and self.what.ether:
            raise ValueError("raw Ethernet has no way to be rejected; deny it")
        if self.limit and (self.action != "allow" or (self.what and self.what.ether)):
            raise ValueError("a limit is of new conversations, which only an allow rule for IP lets begin")
        if not 0 <= self.limit <= LIMIT_MOST:
            raise ValueError(f"limit {self.limit}/s is beyond {LIMIT_MOST}/s")
        if self.comment:
            check_comment(self.comment)

    def __str__(self) -> str:
        words = [self.action, ", ".join(self.openers), "<->" if self.both else "->", ", ".join(self.targets)]
        words += [str(self.what)] if self.what else []
        words += ["log"] if self.log else []
        words += [f"limit {self.limit}/s"] if self.limit else []
        words += [f'comment "{self.comment}"'] if self.comment else []
        return " ".join(words)

    def directions(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(openers, targets), once or both ways."""
        yield self.openers, self.targets
        if self.both:
            yield self.targets, self.openers

    def speaks_of(self, traffic: Traffic) -> bool:
        """Whether it is about such traffic at all. What is left out means every IP protocol."""
        return self.what.covers(traffic) if self.what else not traffic.ether

    @property
    def rank(self) -> int:
        """Of several rules that cover a packet the highest decides: the strongest action; of allow rules the one
        with the most generous limit; one that logs. Of equals, the one with the lowest number."""
        generosity = self.limit or LIMIT_MOST + 1
        return ACTIONS.index(self.action) << 30 | generosity << 1 | self.log


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules with what their names stand for. `lines` says where each rule stands in `file`, from 1 on."""

    rules: tuple[Rule, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lines: tuple[int, ...] = field(default=(), compare=False)
    file: str = field(default="", compare=False)

    def __str__(self) -> str:
        named = [f"group {n} = {', '.join(m)}".rstrip() for n, m in self.groups.items()]
        named += [f"set {n} = {', '.join(m)}".rstrip() for n, m in self.sets.items()]
        return "".join(f"{line}\n" for line in (*named, *self.rules))

    def where(self, index: int) -> str:
        """`file:line` of a rule, by its place in `rules`."""
        return f"{self.file}:{self.lines[index]}" if index < len(self.lines) else f"rule {index + 1}"

    def members(self, group: str) -> frozenset[str]:
        """The domains of a group, groups in it resolved. A circle adds nothing."""
        found: set[str] = set()
        seen, ahead = {group}, [group]
        while ahead:
            for word in self.groups[ahead.pop()]:
                if word not in self.groups:
                    found.add(word)
                elif word not in seen:
                    seen.add(word)
                    ahead.append(word)
        return frozenset(found)

    def blocks(self, word: str) -> frozenset[Network]:
        """The address blocks that a set or an address stands for."""
        if word not in self.sets:
            return frozenset(networks(word))
        found: set[Network] = set()
        seen, ahead = {word}, [word]
        while ahead:
            for member in self.sets[ahead.pop()]:
                if member not in self.sets:
                    found.update(networks(member))
                elif member not in seen:
                    seen.add(member)
                    ahead.append(member)
        return frozenset(found)

    def is_remote(self, word: str) -> bool:
        """Whether a word of FROM or TO stands for addresses behind the uplink."""
        return word in self.sets or looks_like_address(word)

    def matches(self, word: str, who: Party, lan: IPv4Network | None) -> bool:
        """Whether a word of FROM or TO means this party; `lan` is the uplink's own network."""
        if word == ANY:
            return True
        if who.address is None:
            return who.name in self.members(word) if word in self.groups else who.name == word and word not in self.sets
        if word in (LAN, INTERNET):
            return word == LAN or is_internet(who.address, lan)
        return self.is_remote(word) and any(
            who.address in net for net in self.blocks(word) if net.version == who.address.version
        )

    def covers(self, rule: Rule, opener: Party, target: Party, lan: IPv4Network | None) -> bool:
        """Whether a rule is about these two, in this direction."""
        return any(
            any(self.matches(word, opener, lan) for word in openers)
            and any(self.matches(word, target, lan) for word in targets)
            for openers, targets in rule.directions()
        )

    def deciding(self, opener: Party, target: Party, traffic: Traffic, lan: IPv4Network | None = None) -> int | None:
        """The meaning, by definition: the place in `rules` of the one that decides, None if nobody says anything."""
        best: int | None = None
        for i, rule in enumerate(self.rules):
            if rule.speaks_of(traffic) and self.covers(rule, opener, target, lan):
                best = i if best is None or rule.rank > self.rules[best].rank else best
        return best

    def decide(self, opener: Party, target: Party, traffic: Traffic, lan: IPv4Network | None = None) -> str:
        """allow, reject or deny; silence denies."""
        index = self.deciding(opener, target, traffic, lan)
        return "deny" if index is None else self.rules[index].action

    def may_open(self, opener: Party, target: Party) -> bool:
        """Whether one domain may open something to another, or is told why not: some rule about IP allows or rejects
        something, and none denies everything."""
        said = [r for r in self.rules if not (r.what and r.what.ether) and self.covers(r, opener, target, None)]
        return any(r.action != "deny" for r in said) and not any(r.action == "deny" and not r.what for r in said)

    def may_talk(self, one: Party, other: Party) -> bool:
        """Whether either may open something to the other; if so, they find each other by ARP."""
        return self.may_open(one, other) or self.may_open(other, one)


def is_internet(address: Address, lan: IPv4Network | None) -> bool:
    """Whether an address behind the uplink is on the internet, and neither local nor private."""
    if isinstance(address, IPv6Address):
        return address.is_global
    return not (lan and address in lan) and not any(address in net for net in LOCAL)
