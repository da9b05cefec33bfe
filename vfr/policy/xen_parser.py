"""How Xen 1.x read a line that was written to /proc/xeno/vfr: text to a rule of the hypervisor's.

Its driver (arch/xeno/drivers/dom0/vfr.c of XenoLinux 2.4) never refused anything: a write always succeeded. What it
took for what, field by field, is in `Reading.notes`; why it gave a line up, in `Reading.ignored`. This is the whole
parser, oddities included, since rules were in force as it read them and not as they were meant:

* A word is compared as far as it goes, so `D` is DELETE and `srcp` is srcport; `s` is src, and means any VIF.
* What is no command of Xen's adds a rule, since the command's number for "add" is 0.
* Without ACCEPT or COUNT, after blanks only, the line is given up; so it is if the last field has no value.
* What is omitted is 0: domain 0's VIF 0, masks that match everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from ipaddress import IPv4Address

SPECIAL = 0x7FFFFFFF  # a domain that is none; then the VIF's number says which
UNKNOWN, PHYS, ANY = 0, 1, 2
WIRE = (SPECIAL, PHYS)
EVERYBODY = (SPECIAL, ANY)
COMMANDS = ("ADD", "DELETE", "PRINT")
ACTIONS = ("ACCEPT", "COUNT")
PROTOCOLS = ("any", "ip", "tcp", "udp", "arp")  # by number; of several that fit, the last is taken
_U16, _U32, _U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
_SPACE = r" \t\v\f\r\n"
_COMMAND = re.compile(rf"[{_SPACE}]*([^{_SPACE}]*)")
_ACTION = re.compile(r" *([^ ]*)")
_FIELD = re.compile(rf"[{_SPACE}]*([^{_SPACE}=]*)([{_SPACE}=]*)([^{_SPACE}]*)")

Vif = tuple[int, int]


@dataclass(frozen=True, slots=True)
class NetRule:
    """The hypervisor's `net_rule_t`. DELETE compares all of it. Addresses and masks are numbers."""

    srcaddr: int = 0
    dstaddr: int = 0
    srcport: int = 0
    dstport: int = 0
    srcaddrmask: int = 0
    dstaddrmask: int = 0
    srcportmask: int = 0
    dstportmask: int = 0
    proto: int = 0
    srcdom: int = 0
    dstdom: int = 0
    srcidx: int = 0
    dstidx: int = 0
    action: int = 0

    @property
    def source(self) -> Vif:
        """The VIF it is about: WIRE, EVERYBODY, or (domain, index)."""
        return self.srcdom, self.srcidx

    @property
    def destination(self) -> Vif:
        """Where it sends a packet: WIRE, or (domain, index)."""
        return self.dstdom, self.dstidx

    @property
    def ports_match(self) -> bool:
        """Whether ports let it match at all: the engine gave 0 for both ports of every packet."""
        return not (self.srcport & self.srcportmask or self.dstport & self.dstportmask)


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of one line. `command` is empty if the line was given up, `ignored` then says why.
    `unknown` is a word that is no command, and was taken for ADD."""

    command: str = ""
    rule: NetRule = NetRule()
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    ignored: str = ""
    unknown: str = ""


@dataclass(slots=True)
class _State:
    """A line half read."""

    rule: NetRule
    given: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def _meant(word: str, keywords: tuple[str, ...]) -> str:
    """The first keyword that begins with the word, as strncmp over the word's length has it; or ''."""
    return next((keyword for keyword in keywords if word and keyword.startswith(word)), "")


def _number(text: str) -> int:
    digits = re.match("[0-9]*", text)
    return int(digits[0] or "0") if digits else 0


def _index(text: str) -> int:
    """As its `anton`, the only one that takes a sign; into an unsigned int."""
    return -_number(text[1:]) & _U32 if text.startswith("-") else _number(text) & _U32


def _address(text: str) -> int:
    """As its `getipaddr`: any number of dots; 0 for what is malformed, and the last part is not checked."""
    address = part = 0
    for c in text:
        if c == ".":
            if part > 255:
                return 0
            address, part = (address << 8) + part & _U32, 0
        elif c in "0123456789":
            part = part * 10 + int(c) & _U32
        else:
            return 0
    return (address << 8) + part & _U32


def _protocol(text: str) -> int | None:
    return next((n for n in range(len(PROTOCOLS) - 1, -1, -1) if PROTOCOLS[n].startswith(text)), None)


def _value(name: str, text: str) -> int | None:
    """The number that a field's value was read as, None if none."""
    if name == "proto":
        return _protocol(text)
    if "addr" in name:
        return _address(text)
    if "idx" in name:
        return _index(text)
    return _number(text) & (_U16 if "port" in name else _U64)


def _shown(name: str, number: int) -> str:
    return str(IPv4Address(number)) if "addr" in name else PROTOCOLS[number] if name == "proto" else str(number)


# The order in which the driver compared: of two that begin alike, the shorter is first.
FIELDS = (
    *("src", "dst"),
    *(f"{side}{part}" for part in ("addr", "addrmask", "port", "portmask") for side in ("src", "dst")),
    *("srcdom", "srcidx", "dstdom", "dstidx", "proto"),
)


def _side(state: _State, name: str, text: str) -> None:
    """`src` or `dst`, of which only the word counts."""
    means, index = ("ANY", ANY) if name == "src" else ("PHYS", PHYS)
    state.rule = replace(state.rule, **{f"{name}dom": SPECIAL, f"{name}idx": index})
    if text != means:
        state.notes.append(f"{name}={text} meant {name}={means}: Xen did not look at the value")


def _field(state: _State, word: str, separator: str, text: str) -> None:
    name = _meant(word, FIELDS)
    if not name:
        state.notes.append(f"{word!r} is no field of Xen's: passed over, with its value {text!r}")
        return
    if "=" not in separator:
        state.notes.append(f"{word!r} has no `=`: Xen took {text!r} for its value")
    if word != name:
        state.notes.append(f"Xen took {word!r} for {name}")
    state.given.add(name)
    if name in ("src", "dst"):
        _side(state, name, text)
        return
    number = _value(name, text)
    if number is None:
        state.notes.append(f"{text!r} is no protocol of Xen's, which left it at {PROTOCOLS[state.rule.proto]}")
        return
    if text != _shown(name, number):
        state.notes.append(f"Xen read {name}={text} as {_shown(name, number)}")
    state.rule = replace(state.rule, **{name: number})


def _pieces(text: str, at: int) -> Iterator[tuple[str, str, str]]:
    """(field, separator, value), until a field that is empty."""
    while at < len(text):
        found = _FIELD.match(text, at)
        if not found or not found[1]:
            if text[at:].strip():
                yield "", "", text[at:].strip()
            return
        yield found[1], found[2], found[3]
        at = found.end()


def read_line(text: str) -> Reading:
    """What Xen made of one line, written without others. Never fails, as the driver never did."""
    word = _COMMAND.match(text)
    if not word or not word[1]:
        return Reading(ignored="it is empty")
    command = _meant(word[1], COMMANDS)
    if command == "PRINT":
        return Reading(command)
    action = _ACTION.match(text, word.end())
    said = action[1] if action else ""
    meant = _meant(said, ACTIONS)
    if not action or not meant:
        return Reading(ignored=f"{said!r} is not ACCEPT or COUNT" if said else "neither ACCEPT nor COUNT follows")
    state = _State(NetRule(action=ACTIONS.index(meant)))
    if command and word[1] != command:
        state.notes.append(f"Xen took {word[1]!r} for {command}")
    for name, separator, value in _pieces(text, action.end()):
        if not name:
            state.notes.append(f"Xen read no further than {value!r}, which begins with `=`")
        elif not value:
            return Reading(ignored=f"{name!r} has no value")
        else:
            _field(state, name, separator, value)
    unknown = "" if command else word[1]
    return Reading(command or "ADD", state.rule, frozenset(state.given), tuple(state.notes), unknown=unknown)


assert {f.name for f in fields(NetRule)} == {*FIELDS, "action"} - {"src", "dst"}
