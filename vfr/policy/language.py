"""The rule language: text to rules and back, and what the rules mean.

    allow web -> db tcp 5432,6000-6010

Default deny; the order of rules does not matter; deny beats reject beats allow. rules/README.md is the reference.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfr.errors import VfrError

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

ACTIONS = ("allow", "deny", "reject")
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
ANY, LAN, DOM0 = "any", "lan", "dom0"
ALL_PORTS = ((0, 65535),)
Ports = tuple[tuple[int, int], ...]


class RuleError(VfrError):
    """A rule file that does not say what its author thinks: whose text, where, and what is wrong."""

    def __init__(self, file: str, line: int, column: int, text: str, source: str = "") -> None:
        self.file, self.line, self.column, self.text = file, line, column, text
        shown = f"{file}:{line}:{column}: {text}"
        if source:
            shown += f"\n    {source}\n    {' ' * (column - 1)}^"
        super().__init__(shown)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line. `ports` are (low, high), both included; () is all. Where it stands is not part of it."""

    action: str
    opener: str
    target: str
    protocol: str | None = None
    ports: Ports = ()

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is not an action")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"{self.protocol!r} is not a protocol")
        if self.ports and self.protocol not in ("tcp", "udp"):
            raise ValueError(f"{self.protocol or 'a rule for all protocols'} has no ports")
        for low, high in self.ports:
            if high > 65535:
                raise ValueError(f"port {high} is beyond 65535")
            if low > high:
                raise ValueError(f"port range {low}-{high} ends before it starts")

    def __str__(self) -> str:
        words = [self.action, self.opener, "->", self.target]
        if self.protocol:
            words.append(self.protocol)
        if self.ports:
            words.append(",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ports))
        return " ".join(words)

    def protocols(self) -> Iterator[tuple[int, Ports]]:
        """What it covers: protocol numbers, each with its ports."""
        for name, number in PROTOCOLS.items():
            if self.protocol in (None, name):
                yield number, self.ports or ALL_PORTS

    def covers(self, opener: str, target: str, protocol: int, port: int) -> bool:
        """Whether it speaks about this conversation."""
        return (
            self.opener in (ANY, opener)
            and self.target in (ANY, target)
            and any(n == protocol and any(a <= port <= b for a, b in ports) for n, ports in self.protocols())
        )


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of a file."""

    rules: tuple[Rule, ...] = ()

    def __str__(self) -> str:
        return "".join(f"{rule}\n" for rule in self.rules)

    def decide(self, opener: str, target: str, protocol: int, port: int) -> str:
        """The meaning, by definition: deny beats reject beats allow, and silence denies."""
        said = {r.action for r in self.rules if r.covers(opener, target, protocol, port)}
        return next((action for action in ("deny", "reject", "allow") if action in said), "deny")


@cache
def _parser() -> Lark:
    from lark import Lark

    return Lark((Path(__file__).parent / "grammar.lark").read_text(), parser="lalr", propagate_positions=True)


def _rule(tree: Tree[Token]) -> Rule:
    """A rule from its parse tree; ValueError if it contradicts itself."""
    action, opener, target = (str(t) for t in tree.children[:3])
    protocol, ports = None, []
    if len(tree.children) > 3:
        what: Any = tree.children[3]
        protocol = str(what.children[0])
        for piece in what.children[1].children if len(what.children) > 1 else []:
            numbers = [int(n) for n in piece.children]
            ports.append((numbers[0], numbers[-1]))
    return Rule(action, opener, target, protocol, tuple(ports))


_SAID = {
    "ACTION": "allow, deny or reject",
    "NODE": "a domain's name, any, lan or dom0",
    "_ARROW": "->",
    "PROTOCOL": "tcp, udp or icmp",
    "NUMBER": "a port number",
    "COMMA": "a comma",
    "MINUS": "a dash",
    "_NEWLINE": "the end of the line",
    "$END": "the end of the line",
}
_WORDS = [*ACTIONS, *PROTOCOLS]


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
    return RuleError(file, line, column, text, source)


def parse(text: str, file: str) -> RuleSet:
    """The rules of a text; `file` is the name that errors quote.

    RuleError: it is not a rule, or a rule that contradicts itself.
    """
    from lark import UnexpectedInput

    lines = text.splitlines() or [""]
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, file, lines) from None
    rules = []
    for node in tree.children:
        at: Any = node.meta  # type: ignore[union-attr]
        try:
            rules.append(_rule(node))  # type: ignore[arg-type]
        except ValueError as error:
            ports: Any = node.children[-1]  # type: ignore[union-attr]
            column = getattr(getattr(ports, "meta", at), "column", at.column)
            raise RuleError(file, at.line, column, str(error), lines[at.line - 1]) from None
    return RuleSet(tuple(rules))
