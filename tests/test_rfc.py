"""docs/rfc.md claims nothing that no test shows."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.outcomes import LAST, outcomes
from support.rfc import DOCUMENT, TOP, Row, TableError, faults, parse, variants

ROWS = parse(DOCUMENT.read_text())
GOOD = Row("RFC 4787", "1", "MUST", "kept", "We do.", ("tests/test_rfc.py::test_the_tables_are_whole",))
HEAD = "## RFC 4787: UDP\n| REQ | level | mark | what we do | shown by |\n|---|---|---|---|---|\n"


def test_the_tables_are_whole() -> None:
    assert faults(ROWS) == []


def test_every_test_id_exists() -> None:
    """As pytest itself collects them, parameters included."""
    claimed = sorted({test for row in ROWS for test in row.tests})
    files = sorted({test.split("::")[0] for test in claimed})
    missing = [file for file in files if not (TOP / file).exists()]
    there = [file for file in files if file not in missing]
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *there]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    known = [line for line in done.stdout.splitlines() if "::" in line]
    assert [test for test in claimed if not variants(test, known)] == []


def _not_passed(row: Row, ended: dict[str, str]) -> list[str]:
    """What else became of the row's tests than passing."""
    nodes = {test: variants(test, ended) for test in row.tests}
    lines = [f"{row}: {test} did not run" for test, found in nodes.items() if not found]
    return lines + [
        f"{row}: {node} {ended[node]}" for found in nodes.values() for node in found if ended[node] != "passed"
    ]


def test_every_claim_was_shown_by_this_run(request: pytest.FixtureRequest) -> None:
    """Runs last. A skip with its reason is a claim that this kernel can't show: listed, and no failure."""
    session = outcomes(request.config)
    if not session.whole():
        pytest.skip("only a part of the tests was asked for")
    lines = [line for row in ROWS for line in _not_passed(row, session.ended)]
    session.not_shown = [line for line in lines if " skipped: " in line]
    assert [line for line in lines if " skipped: " not in line] == []


def test_the_last_test_has_its_name() -> None:
    assert LAST in globals()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"level": "OUGHT"}, "there is no level 'OUGHT'"),
        ({"mark": "mostly"}, "there is no mark 'mostly'"),
        ({"sentence": "We do"}, "the sentence does not end"),
        ({"tests": ()}, "marked kept, and no test shows it"),
        ({"tests": ("test_rfc.py",)}, "'test_rfc.py' is no test id"),
    ],
)
def test_a_bad_row_is_found(change: dict[str, str], fault: str) -> None:
    fields = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    found = Row(**{**fields, **change}).faults()
    assert len(found) == 1 and fault in found[0]
    assert GOOD.faults() == []


def test_twins_and_gaps_are_found() -> None:
    assert faults([GOOD, GOOD], {"RFC 4787": ["1", "2"]}) == ["RFC 4787 1 stands there twice", "RFC 4787 2 is missing"]
    assert faults([GOOD], {"RFC 4787": ["1"], "RFC 1812": []}) == ["RFC 1812 has no rows"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (HEAD + "| 1 | MUST | kept | We do. |", "4 cells where 5 belong"),
        (HEAD + "| 1 | MUST | kept | We do. | see the code |", "test ids stand in backquotes"),
        (HEAD + "|1|MUST|kept|We do.|", "not a row of the table"),
        (HEAD.replace("mark", "state"), "the table's head should be"),
    ],
)
def test_what_is_no_table_is_refused(text: str, error: str) -> None:
    with pytest.raises(TableError, match=error):
        parse(text)


def test_a_row_is_read_as_it_stands() -> None:
    line = "| 1 | MUST | kept | We do. | `tests/test_rfc.py::test_the_tables_are_whole` |"
    assert parse(HEAD + line) == [GOOD]


def test_a_failed_or_missing_test_is_told_from_a_skipped_one() -> None:
    (test,) = GOOD.tests
    assert _not_passed(GOOD, {f"{test}[a]": "passed", f"{test}[b]": "passed"}) == []
    assert _not_passed(GOOD, {f"{test}[a]": "passed", f"{test}[b]": "failed"}) == [f"RFC 4787 1: {test}[b] failed"]
    assert _not_passed(GOOD, {f"{test}_too": "passed"}) == [f"RFC 4787 1: {test} did not run"]
    assert _not_passed(GOOD, {test: "skipped: no tcx"}) == [f"RFC 4787 1: {test} skipped: no tcx"]


def test_no_must_of_a_transport_is_left_out() -> None:
    """RFC 6888 REQ-1: all that UDP, TCP and ICMP must do is done, or does not concern us."""
    transports = {"RFC 4787", "RFC 5382", "RFC 5508"}
    musts = [row for row in ROWS if row.rfc in transports and row.level in ("MUST", "MUST NOT")]
    assert len(musts) > 30
    assert [str(row) for row in musts if row.mark == "not kept"] == []


def test_every_must_that_is_not_kept_is_said_at_the_top() -> None:
    top = DOCUMENT.read_text().split("\n## ")[0]
    for row in ROWS:
        if row.mark == "not kept" and row.level in ("MUST", "MUST NOT"):
            number = row.req.split()[0].lstrip("§")
            assert re.search(rf"{row.rfc} (?:REQ-)?(?:[\d.]+, )*{re.escape(number)}\b", top), row
