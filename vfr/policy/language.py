"""The rule language: text to rules and back. rules/README.md is the reference, rules.py says what it means.

group tier = web, ci
allow tier -> db tcp 5432,6000-6010
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfr.errors import UsageError, VfrError
from vfr.policy.rules import (
    ANY,
    DOM0,
    ICMP,
    ICMP_REQUESTS,
    ICMP_TYPES,
    KEYWORDS,
    PROTOCOL_NAMES,
    RESERVED,
    WITH_PORTS,
    Ports,
    Rule,
    RuleSet,
    What,
    check_comment,
    check_domain,
    check_end,
    check_ether_end,
    is_name,
    looks_like_address,
)
from vfr.settings import DhcpWords, Limits, dns_servers

if TYPE_CHECKING:
    from lark import Lark, Token


class RuleError(VfrError):
    """A rule file that does not say what its author thinks: whose text, where, and what is wrong."""

    def __init__(self, file: str, line: int, column: int, text: str, source: str = "") -> None:
        self.file, self.line, self.column, self.text = file, line, column, text
        shown = f"{file}:{line}:{column}: {text}"
        if source:
            before = re.sub(r"[^\t]", " ", source[: column - 1])
            shown += f"\n    {source}\n    {before}^"
        super().__init__(shown)


HOST_ONLY = ("lo", "127.0.0.1")


def range_text(pair: tuple[int, int]) -> str:
    """`80`, or `80-90`."""
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]}-{pair[1]}"


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
        check_domain(self.domain)
        check_comment(self.comment)
        for low, high in (self.outside, self.inside):
            if not 1 <= low <= 65535 or high > 65535:
                raise ValueError(f"port {low if not 1 <= low <= 65535 else high} is not one that a forward can have")
            if low > high:
                raise ValueError(f"port range {low}-{high} ends before it starts")
        if self.outside[1] - self.outside[0] != self.inside[1] - self.inside[0]:
            raise ValueError(f"{range_text(self.outside)} and {range_text(self.inside)} are not of the same length")

    @property
    def host_only(self) -> bool:
        """Whether it is for the host itself, and not for the LAN."""
        return self.where in HOST_ONLY

    def __str__(self) -> str:
        words = ["forward", self.protocol, range_text(self.outside), "->", self.domain]
        words += [range_text(self.inside)] if self.inside != self.outside else []
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
    uplink_rate: int | None = None  # bits a second, 0 if it is not to be shared out

    def __str__(self) -> str:
        words = ["nat", self.uplink]
        for word, value in (("address", self.address), ("ports-per-domain", self.ports_per_domain)):
            words += [word, str(value)] if value is not None else []
        for word, pair in (("ports", self.ports), ("ssh", self.ssh)):
            words += [word, range_text(pair)] if pair else []
        words += ["uplink-rate", str(self.uplink_rate)] if self.uplink_rate is not None else []
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
    guest: tuple[tuple[str, str], ...] = ()  # of a clone: address, mac, gateway that the guest believes in

    def __str__(self) -> str:
        words = ["domain", self.name, *([self.kind, self.place] if self.kind else [])]
        for word, value in (("address", self.address), ("mac", self.mac)):
            words += [word, value] if value else []
        for name, value in self.guest:
            words += [f"guest-{name}", value]
        for name, number in self.limits:
            words += [name.replace("_", "-"), str(number)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class DhcpLine:
    """`dhcp any dns 192.0.2.53,192.0.2.54 lease 7200`, or `dhcp web answered no`: what guests are told, or one domain's."""

    name: str
    words: DhcpWords = field(default_factory=DhcpWords)

    def __str__(self) -> str:
        said, words = self.words, ["dhcp", self.name]
        words += ["answered", "yes" if said.on else "no"] if said.on is not None else []
        words += ["dns", ",".join(map(str, said.dns)) or "none"] if said.dns is not None else []
        for word, number in (("lease", said.lease), ("prefix", said.prefix)):
            words += [word, str(number)] if number is not None else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Document:
    """All that a file says. `domains` is None if it says nothing of domains, () if there are to be none; `dhcp` is () if it
    says nothing of DHCP. Where things stand is not part of it."""

    rules: RuleSet = field(default_factory=RuleSet)
    forwards: tuple[ForwardRule, ...] = ()
    nat: NatLine | None = None
    domains: tuple[DomainLine, ...] | None = None
    dhcp: tuple[DhcpLine, ...] = ()
    places: tuple[tuple[int, int], ...] = field(default=(), compare=False)  # line and column of each forward
    domain_lines: tuple[int, ...] = field(default=(), compare=False)
    dhcp_lines: tuple[int, ...] = field(default=(), compare=False)
    nat_line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        domains = ["domain none"] if self.domains == () else [str(d) for d in self.domains or ()]
        lines = [*([str(self.nat)] if self.nat else []), *domains, *map(str, (*self.dhcp, *self.forwards))]
        return "".join(f"{line}\n" for line in lines) + str(self.rules)


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


def _unquoted(token: str) -> str:
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
        self.domain_names: set[str] = set()
        self.dhcps: dict[str, tuple[DhcpLine, Token]] = {}

    def range(self, numbers: list[Token]) -> tuple[Token, tuple[int, int]]:
        return numbers[0], (_number(numbers[0]), _number(numbers[-1]))

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
        number = _number(parts[0]) if parts[0].isdigit() else PROTOCOL_NAMES.get(parts[0])
        if number is None:
            close = _close(parts[0], PROTOCOL_NAMES)
            raise _At(parts[0], f"{str(parts[0])!r} is not a protocol{close}; give its number")
        if number in _OWN_WORDS:
            raise _At(parts[0], f"protocol {number} has a word of its own; write {_OWN_WORDS[number]}")
        return _checked(parts[0], What, number)  # type: ignore[no-any-return]

    def ether(self, types: list[Token]) -> What:
        numbers = tuple((int(t, 16), int(t, 16)) for t in types)
        return _checked(types[0], What, 0, numbers, True)  # type: ignore[no-any-return]

    def ends(self, words: list[Token]) -> list[Token]:
        return words

    def option(self, parts: list[Token]) -> tuple[str, Token]:
        if parts[0].type == "STRING":
            _checked(parts[0], check_comment, _unquoted(parts[0]))
        return {"LOG": "log", "RATE": "limit", "STRING": "comment"}[parts[0].type], parts[0]

    def rule(self, parts: list[Any]) -> None:
        action, openers, arrow, targets, *rest = parts
        what = rest.pop(0) if rest and isinstance(rest[0], What) else None
        at, options = action, dict[str, Any]()
        for name, token in rest:
            if name in options:
                raise _At(token, f"{name} is said twice")
            options[name] = True if name == "log" else _rate(token) if name == "limit" else _unquoted(token)
            at = token if name == "limit" else at
        if options.get("limit") == 0:
            raise _At(at, "a limit of 0/s would let nothing through; write deny")
        ends = (tuple(map(str, openers)), tuple(map(str, targets)))
        try:
            self.rules.append(Rule(str(action), *ends, what, arrow == "<->", **options))
        except ValueError as error:
            check = check_ether_end if what and what.ether else check_end
            for word in (*openers, *targets):
                _checked(word, check, str(word))
            raise _At(at, str(error)) from None
        self.lines.append(action.line)

    def group(self, parts: list[Token]) -> None:
        self._name("group", parts)

    def set(self, parts: list[Token]) -> None:
        self._name("set", parts)

    def _name(self, kind: str, parts: list[Token]) -> None:
        name, *members = parts
        if name in RESERVED or not is_name(name):
            raise _At(name, f"{str(name)!r} cannot be the name of a {kind}")
        if name in self.named["group"] or name in self.named["set"]:
            raise _At(name, f"there is a group or set {str(name)!r} already")
        self.named[kind][str(name)] = tuple(members)

    def forward(self, parts: list[Any]) -> None:
        protocol, (at, outside), domain, *rest = parts
        inside = rest.pop(0) if rest and isinstance(rest[0], tuple) else (at, outside)
        for where, ranges in ((at, outside), inside):
            if len(ranges) > 1:
                raise _At(where, "a forward has one port or one range; write another line for the others")
        words = {"STRING": '""', "PLACE": ""} | {token.type: token for token in rest}
        if words["STRING"] != '""':
            _checked(words["STRING"], check_comment, _unquoted(words["STRING"]))
        _checked(domain, check_domain, str(domain))
        ends = (outside[0], str(domain), inside[1][0])
        made = _checked(inside[0], ForwardRule, str(protocol), *ends, str(words["PLACE"]), _unquoted(words["STRING"]))
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
            _number(given["uplink-rate"]) if "uplink-rate" in given else None,
        )
        if uplink == "off" and options:
            raise _At(options[0], "`nat off` takes nothing more")
        self.nats.append((made, uplink))

    def domain(self, parts: list[Any]) -> None:
        name, *options = parts
        given = _options(options, _DOMAIN_OPTIONS, "a domain")
        if name in self.domain_names:
            raise _At(name, f"there is a domain {str(name)!r} already")
        if name != "none":
            _checked(name, check_domain, str(name))
        if name == "none" and options:
            raise _At(options[0], "`domain none` takes nothing more")
        self.domain_names.add(str(name))
        places = [(kind, given.pop(kind)) for kind in ("netns", "tap", "device") if kind in given]
        if name != "none" and len(places) != 1:
            raise _At(name, f"the domain {str(name)!r} needs one place: netns, tap or device")
        kind, place = places[0] if places else ("", "")
        address, mac = given.pop("address", None), given.pop("mac", None)
        guest = tuple(
            (what, str(given.pop(f"guest-{what}")))
            for what in ("address", "mac", "gateway")
            if f"guest-{what}" in given
        )
        limits = tuple((key.replace("-", "_"), _number(value)) for key, value in given.items())
        made = DomainLine(str(name), kind, str(place), address and str(address), mac and str(mac), limits, guest)
        self.domains.append((made, name))

    def dhcp(self, parts: list[Token]) -> None:
        name, *rest = parts
        if name in self.dhcps:
            raise _At(name, f"DHCP of {str(name)!r} is said twice")
        if name != ANY:
            _checked(name, check_domain, str(name))
        values: list[list[Token]] = []
        for token in rest:
            values += [[]] if token.type == "OPTION" else []
            values[-1].append(token)
        _options([word for option in values for word in option[:2]], tuple(_DHCP_OPTIONS), "dhcp")
        for option, _, *more in values:
            if more and option != "dns":
                raise _At(more[0], f"{option!s} has one value")
        said = dict[str, Any]()
        for option, first, *more in values:
            what, read = _DHCP_OPTIONS[option]
            try:
                said[what] = read(first, *more)
                DhcpWords(**said)
            except UsageError as error:
                raise _At(first, str(error).removeprefix("--")) from None
        self.dhcps[str(name)] = DhcpLine(str(name), DhcpWords(**said)), name

    # The whole

    def document(self, file: str) -> Document:
        for kind, named in self.named.items():
            for members in named.values():
                self._check_members(kind, members)
        self._check_forwards()
        for line, token in self.domains:
            if line.name in self.named["group"] or line.name in self.named["set"]:
                raise _At(token, f"{line.name!r} is a domain, and a group or set; give one of them another name")
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
            tuple(line for line, _ in self.dhcps.values()),
            tuple((token.line or 1, token.column or 1) for _, token in self.forwards),
            tuple(token.line or 1 for _, token in self.domains),
            tuple(token.line or 1 for _, token in self.dhcps.values()),
            (self.nats[0][1].line or 1) if self.nats else 0,
        )

    def _check_members(self, kind: str, members: Sequence[Token]) -> None:
        for word in members:
            is_address, sets = looks_like_address(word), self.named["set"]
            if kind == "set" and is_address:
                _checked(word, check_end, str(word))
            elif kind == "set" and word not in sets:
                close = _close(word, sets)
                raise _At(word, f"{str(word)!r} is neither an address nor a set, and a set has nothing else{close}")
            elif kind == "group" and (is_address or word in sets or (word in RESERVED and word != DOM0)):
                raise _At(word, f"a group has domains and groups, and {str(word)!r} is neither")
            elif kind == "group":
                _checked(word, check_end, str(word))

    def _check_forwards(self) -> None:
        """Of two that meet, the later in the file is the one to complain of."""
        before: dict[str, tuple[int, Token]] = {}
        for line, token in sorted(self.forwards, key=lambda f: f[0].outside):
            high, where = before.get(line.protocol, (0, token))
            if line.outside[0] <= high:
                first, later = sorted((where, token), key=lambda t: t.start_pos or 0)
                ports = range_text(line.outside)
                raise _At(later, f"{line.protocol} port {ports} is forwarded already in line {first.line}")
            before[line.protocol] = (line.outside[1], token)


def _icmp_request(token: Token) -> int:
    word = ICMP_TYPES.get(_number(token)) if token.isdigit() else str(token).removesuffix("-request")
    if word not in ICMP_REQUESTS:
        raise _At(
            token,
            f"ICMP {str(token)!r} begins no conversation that VFR carries{_close(token, ICMP_REQUESTS)};"
            f" {' and '.join(ICMP_REQUESTS)} do, and errors go with what they are about",
        )
    return ICMP_REQUESTS[word]


_OWN_WORDS = {ICMP: "icmp"} | {number: word for word, number in WITH_PORTS.items()}
DIGITS_MOST = 12
_NAT_OPTIONS = ("address", "ports", "ports-per-domain", "ssh", "uplink-rate")
_GUEST_OPTIONS = ("guest-address", "guest-mac", "guest-gateway")
_PLACES = ("netns", "tap", "device")
_DOMAIN_OPTIONS = (*_PLACES, "address", "mac", *_GUEST_OPTIONS, *(f.name.replace("_", "-") for f in fields(Limits)))


def _options(words: list[Token], known: Sequence[str], what: str) -> dict[str, Token]:
    """Pairs of a name and its value."""
    found: dict[str, Token] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in known:
            raise _At(name, f"{what} has no {str(name)!r}{_close(name, known)}; it has {', '.join(known)}")
        if name in found:
            raise _At(name, f"{name!s} is said twice")
        found[str(name)] = value
    return found


def _number(token: Token, word: str | None = None) -> int:
    word = str(token) if word is None else word
    if not (word.isascii() and word.isdigit()):
        raise _At(token, f"{word!r} is not a number")
    if len(word) > DIGITS_MOST:
        raise _At(token, f"{word[:DIGITS_MOST]}... is a larger number than any here")
    return int(word)


def _rate(token: Token) -> int:
    return _number(token, token.removesuffix("/s"))


def _pair(token: Token) -> tuple[int, int]:
    low, dash, high = token.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise _At(token, f"{str(token)!r} is not a range; write it as 2-19")
    return _number(token, low), _number(token, high or low)


def _close(word: str, words: Iterable[str]) -> str:
    """What was probably meant, as a bracket to add."""
    close = difflib.get_close_matches(word, list(words), 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _yes(token: Token) -> bool:
    if token not in ("yes", "no"):
        raise _At(token, f"{str(token)!r} is neither yes nor no")
    return str(token) == "yes"


def _servers(*tokens: Token) -> tuple[IPv4Address, ...]:
    return dns_servers(",".join(tokens))


_DHCP_OPTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "answered": ("on", _yes),
    "dns": ("dns", _servers),
    "lease": ("lease", _number),
    "prefix": ("prefix", _number),
}


@cache
def _machinery() -> tuple[Lark, _Builder]:
    """The parser, which takes a while to make, and what it builds with."""
    from lark import Lark

    builder, grammar = _Builder(), (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(grammar, parser="lalr", transformer=builder, maybe_placeholders=False), builder


# What the reader is told of the terminals. Words that may be meant by a misspelt one stand as they are written.
_SAID = {
    "ACTION": "allow, deny, reject",
    "_GROUP": "group",
    "_SET": "set",
    "_FORWARD": "forward",
    "_NAT": "nat",
    "_DOMAIN": "domain",
    "_DHCP": "dhcp",
    "END": "a name, an address",
    "WORD": "a name",
    "PLACE": "a name",
    "ARROW": "->, <->",
    "__ANON_0": "->",
    "PORTED": "tcp, udp",
    "_ICMP": "icmp",
    "_PROTO": "proto",
    "_ETHER": "ether",
    "NUMBER": "a number",
    "HEX": "an EtherType as 0x889a",
    "LOG": "log",
    "_LIMIT": "limit",
    "RATE": "a rate as 10/s",
    "_COMMENT": "comment",
    "STRING": "a text in quotes",
    "_ON": "on",
    "OPTION": "an option",
    "COMMA": "a comma",
    "MINUS": "a dash",
    "EQUAL": "=",
    "LBRACE": "{",
    "RBRACE": "}",
    "_NEWLINE": "the end of the line",
    "$END": "the end of the line",
}
_WORD_AT = re.compile(r"[ \t]*([^ \t,]+|,?)")
# What looks like the end of a line to an editor, or to str.splitlines, and is none here.
_FALSE_BREAK = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]|\r(?!\n)")


def _expected(error: Any) -> list[str]:
    """What could have stood at the place of the error, in the reader's words."""
    guess: Any = _machinery()[0].parse_interactive("")
    guess.parser_state = error.state
    names = guess.accepts()
    return list(dict.fromkeys(word for name in _SAID if name in names for word in _SAID[name].split(", ")))


def _syntax_error(error: Any, file: str, lines: list[str]) -> RuleError:
    """The parser's complaint in the reader's words."""
    token = getattr(error, "token", None)
    at_end = token is not None and token.type == "$END"
    line = len(lines) if at_end else error.line
    source = lines[line - 1]
    column = len(source) + 1 if at_end else error.column
    found = _WORD_AT.match(source, column - 1)
    word, said = found[1] if found else "", _expected(error)
    text = f"{word!r} is not expected here; " if word else "the line ends too early; "
    text += f"{', '.join(said[:-1])} or {said[-1]} is" if len(said) > 1 else f"{said[0]} is"
    if close := _close(word, [w for w in said if w.isalpha()]):
        text += close
    elif word != word.lower():
        text += " (names are in small letters)"
    return RuleError(file, line, column, text, source)


_one_at_a_time = threading.Lock()


def parse_document(text: str, file: str) -> Document:
    """All that a text says; `file` is the name that errors quote.

    RuleError: it is not in the language, or contradicts itself.
    """
    from lark import UnexpectedInput

    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if false := _FALSE_BREAK.search(text):
        line, column = text.count("\n", 0, false.start()) + 1, false.start() - text.rfind("\n", 0, false.start())
        raise RuleError(file, line, column, f"{false[0]!r} looks like the end of a line, and is none; take it out")
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


def stray_names(rules: RuleSet, domains: Iterable[str]) -> Iterator[str]:
    """A line about each name that nobody has: it matches nothing, which may not be what was meant. `domains` are the
    names there are."""
    known = {*domains, *rules.groups, *rules.sets, *KEYWORDS}
    said = set[str]()
    for index, rule in enumerate(rules.rules):
        for word in (*rule.openers, *rule.targets):
            if word not in known and word not in said and not looks_like_address(word):
                said.add(word)
                yield f"{rules.where(index)}: no domain has the name {word!r} yet{_close(word, known)}"
