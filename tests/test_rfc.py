"""docs/rfc.md claims nothing that no test shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.rfc import DOCUMENT, TOP, Row, TableError, claims_not_shown, faults, parse, variants

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


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ({"[a]": "passed", "[b]": "passed"}, []),
        ({"[a]": "passed", "[b]": "failed"}, ["[b] failed"]),
        ({"_too": "passed"}, [" did not run"]),
        ({"": "skipped: no tcx"}, [" skipped: no tcx"]),
    ],
)
def test_a_failed_or_missing_test_is_told_from_a_skipped_one(ended: dict[str, str], said: list[str]) -> None:
    (test,) = GOOD.tests
    shown = claims_not_shown([GOOD], {f"{test}{which}": end for which, end in ended.items()})
    assert shown == [f"RFC 4787 1: {test}{words}" for words in said]


@pytest.mark.parametrize(("claimed", "ended"), [("test_one", 0), ("test_other", 1)])
def test_a_run_fails_that_did_not_show_what_is_claimed(tmp_path: Path, claimed: str, ended: int) -> None:
    """Of a tree with one test and one claim, by one process and by two."""
    row = f"| 1 | MUST | kept | We do. | `tests/test_it.py::{claimed}` |\n"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_it.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "rfc.md").write_text(HEAD + row)
    (tmp_path / "conftest.py").write_text(
        "import pathlib\nfrom support import outcomes\noutcomes.DOCUMENT = pathlib.Path(__file__).parent / 'rfc.md'\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(outcomes.Outcomes(config))\n"
    )
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ntestpaths = tests\npythonpath = {TOP / 'tests'}\n")
    for workers in ("0", "2"):
        argv = [sys.executable, "-m", "pytest", "-n", workers]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == ended, done.stdout + done.stderr
        assert (f"RFC 4787 1: tests/test_it.py::{claimed} did not run" in done.stdout) == bool(ended)
        assert re.search(r"1 failed, 2 passed in" if ended else r"== 3 passed in", done.stdout), done.stdout


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
