"""The rule language: text to rules and back. rules/README.md is the reference, rules.py says what it means.

group tier = web, ci
allow tier -> db tcp 5432,6000-6010
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfr.errors import VfrError
from vfr.policy.rules import (
    ACTIONS,
    ICMP,
    ICMP_REQUESTS,
    ICMP_TYPES,
    NAME,
    PROTOCOL_NAMES,
    RESERVED,
    WITH_PORTS,
    Ports,
    Rule,
    RuleSet,
    What,
    check_end,
    looks_like_address,
    networks,
)
from vfr.settings import Limits

if TYPE_CHECKING:
    from lark import Lark, Token


class RuleError(VfrError):
    """A rule file that does not say what its author thinks: whose text, where, and what is wrong."""

    def __init__(self, file: str, line: int, column: int, text: str, source: str = "") -> None:
        self.file, self.line, self.column, self.text = file, line, column, text
        shown = f"{file}:{line}:{column}: {text}"
        if source:
            shown += f"\n    {source}\n    {' ' * (column - 1)}^"
        super().__init__(shown)


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """`forward tcp 8000-8010 -> web 9000-9010 on eth0`: outside ports that lead to a domain's. `where` is the uplink or
    its address, or lo or 127.0.0.1 for the host alone; "" is the uplink."""

    protocol: str
    outside: tuple[int, int]
    domain: str
    inside: tuple[int, int]
    where: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        for low, high in (self.outside, self.inside):
            if not 1 <= low <= 65535 or high > 65535:
                raise ValueError(f"port {low if not 1 <= low <= 65535 else high} is not one that a forward can have")
            if low > high:
                raise ValueError(f"port range {low}-{high} ends before it starts")
        if self.outside[1] - self.outside[0] != self.inside[1] - self.inside[0]:
            raise ValueError(f"{_range(self.outside)} and {_range(self.inside)} are not of the same length")

    def __str__(self) -> str:
        words = ["forward", self.protocol, _range(self.outside), "->", self.domain]
        words += [_range(self.inside)] if self.inside != self.outside else []
        words += ["on", self.where] if self.where else []
        words += [f'comment "{self.comment}"'] if self.comment else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class NatLine:
    """`nat eth0 address 192.0.2.1 ...`, or `nat off`: where None, what is in force stays. Ports and x are
    (low, high)."""

    uplink: str
    address: str | None = None
    ports: tuple[int, int] | None = None
    ports_per_domain: int | None = None
    ssh: tuple[int, int] | None = None

    def __str__(self) -> str:
        words = ["nat", self.uplink]
        for word, value in (("address", self.address), ("ports-per-domain", self.ports_per_domain)):
            words += [word, str(value)] if value is not None else []
        for word, pair in (("ports", self.ports), ("ssh", self.ssh)):
            words += [word, _range(pair)] if pair else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class DomainLine:
    """`domain web netns web address 169.254.1.2 ...`: its place, and what it has that is not the default."""

    name: str
    kind: str = ""
    place: str = ""
    address: str | None = None
    mac: str | None = None
    limits: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        words = ["domain", self.name, *([self.kind, self.place] if self.kind else [])]
        for word, value in (("address", self.address), ("mac", self.mac)):
            words += [word, value] if value else []
        for name, number in self.limits:
            words += [name.replace("_", "-"), str(number)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Document:
    """All that a file says. `domains` is None if it says nothing of domains, () if there are to be none."""

    rules: RuleSet = field(default_factory=RuleSet)
    forwards: tuple[ForwardRule, ...] = ()
    nat: NatLine | None = None
    domains: tuple[DomainLine, ...] | None = None
    places: tuple[tuple[int, int], ...] = field(default=(), compare=False)  # line and column of each forward
    domain_lines: tuple[int, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        domains = ["domain none"] if self.domains == () else [str(d) for d in self.domains or ()]
        lines = [*([str(self.nat)] if self.nat else []), *domains, *map(str, self.forwards)]
        return "".join(f"{line}\n" for line in lines) + str(self.rules)


def _range(pair: tuple[int, int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"


class _At(ValueError):
    """Something wrong at a token."""

    def __init__(self, token: Token, text: str) -> None:
        self.token = token
        super().__init__(text)


def _checked(token: Token, make: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
        return make(*args, **named)
    except ValueError as error:
        raise _At(token, str(error)) from None


def _unquoted(token: Token) -> str:
    return str(token)[1:-1]


class _Builder:
    """Makes statements while lark parses. Its methods bear the grammar's names."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.rules: list[Rule] = []
        self.lines: list[int] = []
        self.named: dict[str, dict[str, tuple[Token, ...]]] = {"group": {}, "set": {}}
        self.forwards: list[tuple[ForwardRule, Token]] = []
        self.nats: list[tuple[NatLine, Token]] = []
        self.domains: list[tuple[DomainLine, Token]] = []

    def range(self, numbers: list[Token]) -> tuple[Token, tuple[int, int]]:
        return numbers[0], (int(numbers[0]), int(numbers[-1]))

    def ports(self, ranges: list[tuple[Token, tuple[int, int]]]) -> tuple[Token, Ports]:
        return ranges[0][0], tuple(pair for _, pair in ranges)

    def with_ports(self, parts: list[Any]) -> What:
        if len(parts) == 1:
            return What(WITH_PORTS[parts[0]])
        at, ports = parts[1]
        return _checked(at, What, WITH_PORTS[parts[0]], ports)  # type: ignore[no-any-return]

    def icmp(self, types: list[Token]) -> What:
        return What(ICMP, tuple((n, n) for n in map(_icmp_request, types)))

    def proto(self, parts: list[Token]) -> What:
        number = int(parts[0]) if parts[0].isdigit() else PROTOCOL_NAMES.get(parts[0])
        if number is None:
            raise _At(
                parts[0], f"{str(parts[0])!r} is not a protocol{_close(parts[0], PROTOCOL_NAMES)}; give its number"
            )
        if number in (1, 6, 17):
            raise _At(
                parts[0], f"protocol {number} has a word of its own; write {({1: 'icmp', 6: 'tcp', 17: 'udp'})[number]}"
            )
        return _checked(parts[0], What, number)  # type: ignore[no-any-return]

    def ether(self, types: list[Token]) -> What:
        numbers = tuple((int(t, 16), int(t, 16)) for t in types)
        return _checked(types[0], What, 0, numbers, True)  # type: ignore[no-any-return]

    def ends(self, words: list[Token]) -> list[Token]:
        return words

    def arrow(self, words: list[Token]) -> str:
        return str(words[0])

    def option(self, parts: list[Token]) -> tuple[str, Token]:
        return {"LOG": "log", "RATE": "limit", "STRING": "comment"}[parts[0].type], parts[0]

    def rule(self, parts: list[Any]) -> None:
        action, openers, arrow, targets, *rest = parts
        what = rest.pop(0) if rest and isinstance(rest[0], What) else None
        options: dict[str, Any] = {}
        for name, token in rest:
            if name in options:
                raise _At(token, f"{name} is said twice")
            options[name] = True if name == "log" else int(token[:-2]) if name == "limit" else _unquoted(token)
            if name == "limit" and not options[name]:
                raise _At(token, "a limit of 0/s would let nothing through; write deny")
        for word in (*openers, *targets):
            _checked(word, check_end, str(word))
        ends = (tuple(map(str, openers)), tuple(map(str, targets)))
        made = _checked(action, Rule, str(action), *ends, what, arrow == "<->", **options)
        self.rules.append(made)
        self.lines.append(action.line)

    def group(self, parts: list[Token]) -> None:
        self._name("group", parts)

    def set(self, parts: list[Token]) -> None:
        self._name("set", parts)

    def _name(self, kind: str, parts: list[Token]) -> None:
        name, *members = parts
        if name in RESERVED or not NAME.fullmatch(name) or looks_like_address(name):
            raise _At(name, f"{str(name)!r} cannot be the name of a {kind}")
        if any(name in known for known in self.named.values()):
            raise _At(name, f"there is a group or set {str(name)!r} already")
        self.named[kind][str(name)] = tuple(members)

    def forward(self, parts: list[Any]) -> None:
        protocol, (at, outside), domain, *rest = parts
        inside = rest.pop(0) if rest and isinstance(rest[0], tuple) else (at, outside)
        if len(outside) > 1 or len(inside[1]) > 1:
            raise _At(at, "a forward has one port or one range; write another line for the others")
        words = {"STRING": "", "PLACE": ""} | {token.type: str(token) for token in rest}
        made = _checked(
            inside[0],
            ForwardRule,
            str(protocol),
            outside[0],
            str(domain),
            inside[1][0],
            words["PLACE"],
            words["STRING"][1:-1],
        )
        self.forwards.append((made, at))

    def nat(self, parts: list[Any]) -> None:
        uplink, *options = parts
        if self.nats:
            raise _At(uplink, "there is one uplink, and nat is said twice")
        given = _options(options, _NAT_OPTIONS, "nat")
        made = NatLine(
            str(uplink),
            str(given["address"]) if "address" in given else None,
            _pair(given["ports"]) if "ports" in given else None,
            _number(given["ports-per-domain"]) if "ports-per-domain" in given else None,
            _pair(given["ssh"]) if "ssh" in given else None,
        )
        if uplink == "off" and options:
            raise _At(options[0], "`nat off` takes nothing more")
        self.nats.append((made, uplink))

    def domain(self, parts: list[Any]) -> None:
        name, *options = parts
        given = _options(options, _DOMAIN_OPTIONS, "a domain")
        if any(known.name == name for known, _ in self.domains):
            raise _At(name, f"there is a domain {str(name)!r} already")
        places = [(kind, given.pop(kind)) for kind in ("netns", "tap", "device") if kind in given]
        if name != "none" and len(places) != 1:
            raise _At(name, f"the domain {str(name)!r} needs one place: netns, tap or device")
        kind, place = places[0] if places else ("", "")
        address, mac = given.pop("address", None), given.pop("mac", None)
        limits = tuple((key.replace("-", "_"), _number(value)) for key, value in given.items())
        made = DomainLine(str(name), kind, str(place), address and str(address), mac and str(mac), limits)
        self.domains.append((made, name))

    # The whole

    def document(self, file: str) -> Document:
        for kind, named in self.named.items():
            for members in named.values():
                self._check_members(kind, members)
        self._check_forwards()
        none = [token for line, token in self.domains if line.name == "none"]
        if none and len(self.domains) > 1:
            raise _At(none[0], "`domain none` stands beside other domains")
        groups, sets = ({n: tuple(map(str, m)) for n, m in self.named[kind].items()} for kind in ("group", "set"))
        rules = RuleSet(tuple(self.rules), groups, sets, tuple(self.lines), file)
        return Document(
            rules,
            tuple(line for line, _ in self.forwards),
            self.nats[0][0] if self.nats else None,
            () if none else tuple(line for line, _ in self.domains) or None,
            tuple((token.line or 1, token.column or 1) for _, token in self.forwards),
            tuple(token.line or 1 for _, token in self.domains),
        )

    def _check_members(self, kind: str, members: Sequence[Token]) -> None:
        for word in members:
            is_address, other = looks_like_address(word), self.named["set" if kind == "group" else "group"]
            if kind == "set" and is_address:
                _checked(word, networks, str(word))
                _checked(word, check_end, str(word))
            elif kind == "set" and word not in self.named["set"]:
                raise _At(word, f"{str(word)!r} is neither an address nor a set, and a set has nothing else")
            elif kind == "group" and (is_address or word in other or (word in RESERVED and word != "dom0")):
                raise _At(word, f"a group has domains and groups, and {str(word)!r} is neither")

    def _check_forwards(self) -> None:
        seen: list[tuple[ForwardRule, Token]] = []
        for line, token in self.forwards:
            for other, where in seen:
                if line.protocol == other.protocol and _meet(line.outside, other.outside):
                    raise _At(
                        token, f"{line.protocol} port {_range(line.outside)} is forwarded already in line {where.line}"
                    )
            seen.append((line, token))


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _icmp_request(token: Token) -> int:
    word = ICMP_TYPES.get(int(token)) if token.isdigit() else str(token).removesuffix("-request")
    if word not in ICMP_REQUESTS:
        raise _At(
            token,
            f"ICMP {str(token)!r} begins no conversation that VFR carries{_close(token, ICMP_REQUESTS)};"
            f" {' and '.join(ICMP_REQUESTS)} do, and errors go with what they are about",
        )
    return ICMP_REQUESTS[word]


_NAT_OPTIONS = ("address", "ports", "ports-per-domain", "ssh")
_DOMAIN_OPTIONS = ("netns", "tap", "device", "address", "mac", *(f.name.replace("_", "-") for f in fields(Limits)))


def _options(words: list[Token], known: Sequence[str], what: str) -> dict[str, Token]:
    """Pairs of a name and its value."""
    found: dict[str, Token] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in known:
            raise _At(name, f"{what} has no {str(name)!r}; it has {', '.join(known)}")
        if name in found:
            raise _At(name, f"{name!s} is said twice")
        found[str(name)] = value
    return found


def _number(token: Token) -> int:
    if not token.isdigit():
        raise _At(token, f"{str(token)!r} is not a number")
    return int(token)


def _pair(token: Token) -> tuple[int, int]:
    low, dash, high = token.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise _At(token, f"{str(token)!r} is not a range; write it as 2-19")
    return int(low), int(high or low)


def _close(word: str, words: Sequence[str] | dict[str, int]) -> str:
    close = difflib.get_close_matches(word, list(words), 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@cache
def _machinery() -> tuple[Lark, _Builder]:
    """The parser, which takes a while to make, and what it builds with."""
    from lark import Lark

    builder, grammar = _Builder(), (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(grammar, parser="lalr", transformer=builder, maybe_placeholders=False), builder


_SAID = {
    "ACTION": "allow, deny or reject",
    "GROUP": "group",
    "SET": "set",
    "FORWARD": "forward",
    "NAT": "nat",
    "DOMAIN": "domain",
    "END": "a name or an address",
    "WORD": "a name",
    "PLACE": "a name",
    "__ANON_0": "->",
    "__ANON_1": "<->",
    "PORTED": "tcp or udp",
    "ICMP": "icmp",
    "PROTO": "proto",
    "ETHER": "ether",
    "NUMBER": "a number",
    "HEX": "an EtherType as 0x889a",
    "LOG": "log",
    "LIMIT": "limit",
    "RATE": "a rate as 10/s",
    "COMMENT": "comment",
    "STRING": "a text in quotes",
    "ON": "on",
    "OPTION": "an option",
    "COMMA": "a comma",
    "MINUS": "a dash",
    "EQUAL": "=",
    "RBRACE": "}",
    "_NEWLINE": "the end of the line",
    "$END": "the end of the line",
}
_WORDS = [
    *ACTIONS,
    *WITH_PORTS,
    *(name.lower() for name in _SAID if name.isalpha() and name not in ("END", "WORD", "PLACE")),
]


def _expected(names: set[str]) -> str:
    said = list(dict.fromkeys(_SAID[name] for name in _SAID if name in names))
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _word_at(source: str, column: int) -> str:
    words = source[column - 1 :].split()
    return words[0].split(",")[0] if words else ""


def _syntax_error(error: Any, file: str, lines: list[str]) -> RuleError:
    """The parser's complaint in the reader's words."""
    token = getattr(error, "token", None)
    at_end = token is not None and token.type == "$END"
    line = len(lines) if at_end else error.line
    source = lines[line - 1] if lines else ""
    column = len(source) + 1 if at_end else error.column
    word = _word_at(source, column)
    names = {str(n) for kind in ("accepts", "expected", "allowed") for n in getattr(error, kind, None) or ()}
    text = f"{word!r} is not expected here" if word else "the line ends too early"
    if names:
        text += f"; {_expected(names)} is"
    close = difflib.get_close_matches(word, _WORDS, 1, 0.6)
    if close and word not in _WORDS:
        text += f" (did you mean {close[0]!r}?)"
    elif word != word.lower():
        text += " (names are in small letters)"
    return RuleError(file, line, column, text, source)


_one_at_a_time = threading.Lock()


def parse_document(text: str, file: str) -> Document:
    """All that a text says; `file` is the name that errors quote.

    RuleError: it is not in the language, or contradicts itself.
    """
    from lark import UnexpectedInput

    lines = text.splitlines() or [""]
    parser, builder = _machinery()
    with _one_at_a_time:
        builder.begin()
        try:
            parser.parse(text)
            return builder.document(file)
        except UnexpectedInput as error:
            raise _syntax_error(error, file, lines) from None
        except _At as error:
            line, column = error.token.line or 1, error.token.column or 1
            raise RuleError(file, line, column, str(error), lines[line - 1]) from None


def parse(text: str, file: str) -> RuleSet:
    """The rules of a text, with what their names stand for. RuleError as in parse_document."""
    return parse_document(text, file).rules
