"""docs/rfc.md as data: what each row claims, and what is wrong with the claims themselves.

    ## RFC 4787: NAT for unicast UDP

    | REQ | level | mark | what we do | shown by |
    |---|---|---|---|---|
    | 1 | MUST | kept | One outside port for all remotes. | `tests/rfc/test_rfc4787.py::test_req1_...` |

A test id without brackets means the test with all of its parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
DOCUMENT = TOP / "docs" / "rfc.md"
HEADER = ("REQ", "level", "mark", "what we do", "shown by")
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", "MAY"}
MARKS = {"kept", "not kept", "does not apply"}
# The numbered requirements of each RFC: none may be left out. Of the last two only some concern a NAT.
COMPLETE = {
    "RFC 4787": [str(n) for n in range(1, 15)],
    "RFC 5382": [str(n) for n in range(1, 11)],
    "RFC 5508": [str(n) for n in range(1, 12)],
    "RFC 7857": [f"§{n}" for n in range(2, 13)],
    "RFC 6888": [str(n) for n in range(1, 16)],
    "RFC 1812": [],
    "RFC 3927": [],
}
_TEST_ID = re.compile(r"tests/[\w/]+\.py::test_\w+(\[.+\])?")


class TableError(Exception):
    """A line of the document is no row of its table; the text quotes it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement: `rfc` as "RFC 4787", `req` as "5a" or "§7.1", and the tests that show it."""

    rfc: str
    req: str
    level: str
    mark: str
    sentence: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rfc} {self.req}"

    def faults(self) -> list[str]:
        """What is wrong with the row, each as a sentence."""
        found = []
        if self.level not in LEVELS:
            found.append(f"{self}: there is no level {self.level!r}")
        if self.mark not in MARKS:
            found.append(f"{self}: there is no mark {self.mark!r}")
        if not self.sentence.endswith("."):
            found.append(f"{self}: the sentence does not end: {self.sentence!r}")
        if self.mark == "kept" and not self.tests:
            found.append(f"{self}: marked kept, and no test shows it")
        found += [f"{self}: {test!r} is no test id" for test in self.tests if not _TEST_ID.fullmatch(test)]
        return found


def _cells(line: str) -> list[str]:
    if not (line.startswith("| ") and line.endswith(" |")):
        raise TableError(f"not a row of the table: {line!r}")
    return [cell.strip() for cell in line[1:-1].split("|")]


def _row(rfc: str, line: str) -> Row:
    cells = _cells(line)
    if len(cells) != len(HEADER):
        raise TableError(f"{len(cells)} cells where {len(HEADER)} belong: {line!r}")
    shown = cells[4]
    tests = tuple(re.findall(r"`([^`]*)`", shown))
    if re.sub(r"`[^`]*`", "", shown).strip(" ,"):
        raise TableError(f"test ids stand in backquotes, with commas between: {line!r}")
    return Row(rfc, *cells[:4], tests)


def parse(text: str) -> list[Row]:
    """All rows, in order. TableError for a line that looks like a table's and is none."""
    rows: list[Row] = []
    rfc, expected = "", iter(())
    for line in text.splitlines():
        if heading := re.match(r"## (RFC \d+)", line):
            rfc = heading[1]
            expected = iter((HEADER, tuple("---" for _ in HEADER)))
        elif line.startswith("|") and rfc:
            wanted = next(expected, None)
            if wanted is None:
                rows.append(_row(rfc, line))
            elif tuple(c.strip() for c in line.strip("|").split("|")) != wanted:
                raise TableError(f"{rfc}: the table's head should be {' | '.join(wanted)!r}, not {line!r}")
    return rows


def _number(req: str) -> str:
    """The requirement that a row is a part of: "5" of "5a", "§2" of "§2.1"."""
    found = re.match(r"§?\d+", req)
    return found[0] if found else req


def faults(rows: Iterable[Row], complete: Mapping[str, list[str]] = COMPLETE) -> list[str]:
    """What is wrong with the tables: rows, twins, and requirements left out."""
    held = list(rows)
    found = [fault for row in held for fault in row.faults()]
    names = sorted(str(row) for row in held)
    found += [f"{one} stands there twice" for one, next_one in pairwise(names) if one == next_one]
    for rfc, wanted in complete.items():
        numbers = {_number(row.req) for row in held if row.rfc == rfc}
        if not numbers:
            found.append(f"{rfc} has no rows")
        found += [f"{rfc} {number} is missing" for number in wanted if number not in numbers]
    return found


def variants(test: str, known: Iterable[str]) -> list[str]:
    """The node ids that a test id means, out of those known: itself, or each of its parameters."""
    return [node for node in known if node == test or ("[" not in test and node.startswith(f"{test}["))]


def _not_passed(row: Row, ended: Mapping[str, str]) -> list[str]:
    nodes = {test: variants(test, ended) for test in row.tests}
    lines = [f"{row}: {test} did not run" for test, found in nodes.items() if not found]
    return lines + [
        f"{row}: {node} {ended[node]}" for found in nodes.values() for node in found if ended[node] != "passed"
    ]


def claims_not_shown(rows: Iterable[Row], ended: Mapping[str, str]) -> list[str]:
    """What else became of the rows' tests than passing, by how each test `ended`."""
    return [line for row in rows for line in _not_passed(row, ended)]
