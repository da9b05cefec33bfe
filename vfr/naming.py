"""Many domains as a command is told of them: by names, or by lines of a file as `vfr export` prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vfr.errors import UsageError
from vfr.policy import RuleError, parse_document
from vfr.policy.language import DomainLine

STANDARD_INPUT = Path("-")


def read_lines(file: Path) -> tuple[str, list[tuple[int, str]]]:
    """A name for the file, and its lines that say something, with their numbers. UsageError if it cannot be read."""
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        text = sys.stdin.read() if file == STANDARD_INPUT else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the list of domains {name} cannot be read: {error}") from None
    said = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return name, [(number, line) for number, line in said if line]


def domain_lines(file: Path) -> tuple[list[DomainLine], list[tuple[str, str]]]:
    """What each line, as `domain web netns web`, says (the first word may be left out), and (text, error) of those
    that say nothing that can be understood."""
    name, lines = read_lines(file)
    found: list[DomainLine] = []
    wrong: list[tuple[str, str]] = []
    for number, line in lines:
        text = line if line.split()[0] == "domain" else f"domain {line}"
        try:
            domains = parse_document(text, name).domains
        except RuleError as error:
            wrong.append((line, f"{name}:{number}: {error.text}"))
            continue
        if not domains or not domains[0].kind:
            wrong.append((line, f"{name}:{number}: it says nothing of where the domain is to hang; add `netns N`"))
        else:
            found += domains
    return found, wrong


def by_pattern(
    names: Sequence[str], netns: str | None, tap: str | None, others: Sequence[object], limits: Mapping[str, int]
) -> list[DomainLine]:
    """Several names at once, each at the place in whose name % stands for its own. UsageError if that is not said, or
    something that only one can have."""
    kind, place = ("netns", netns) if netns is not None else ("tap", tap)
    if place is None or (netns is not None and tap is not None) or any(other is not None for other in others):
        raise UsageError("several domains need just one of --netns and --tap, in which % stands for the domain's name")
    if "%" not in place:
        raise UsageError(f"{place!r} would be the place of all of them; write % where the domain's name is to stand")
    said = tuple(limits.items())
    return [DomainLine(name, kind, place.replace("%", name), limits=said) for name in names]


def names_in(file: Path) -> Iterator[str]:
    """The first word of each line, or the second of one that says `domain`."""
    for _, line in read_lines(file)[1]:
        words = line.split()
        yield words[1] if words[0] == "domain" and len(words) > 1 else words[0]
