"""Remembers how each test of a run ended, in the process that hears of all of them, for docs/rfc.md, which may claim only
what was seen. Where several workers run the tests, this also says in which order."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from support.rfc import DOCUMENT, claims_not_shown, parse

CLAIMS = "tests/test_rfc.py::every_claim_of_the_document"
# What takes longest is begun first, so that no worker is alone with it at the end.
FIRST = (
    "tests/vm/test_linux_6_1.py",
    "tests/lab/test_battery.py",
    "tests/control/test_apply.py",
    "tests/control/test_host.py",
    "tests/control",
    "tests/lab",
)


def _rank(path: str) -> int:
    """By what stands first in FIRST."""
    return next((rank for rank, first in enumerate(FIRST) if path.startswith(first)), len(FIRST))


class Outcomes:
    """A pytest plugin. `ended` is "passed", "failed" or why it was skipped, by node id."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._deselected = False
        self.ended: dict[str, str] = {}
        self._not_shown_here: list[str] = []

    def _whole(self) -> bool:
        """Whether everything was asked for: all of testpaths, and nothing picked or left out."""
        option = self._config.option
        asked = {(self._config.invocation_params.dir / arg).resolve() for arg in self._config.args}
        paths = {(self._config.rootpath / path).resolve() for path in self._config.getini("testpaths")}
        picked = option.keyword or option.markexpr or option.deselect or option.collectonly
        left_out = option.ignore or option.ignore_glob or getattr(option, "lf", False) or self._deselected
        return {Path(a) for a in asked} == paths and not picked and not left_out

    def pytest_deselected(self) -> None:
        self._deselected = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._is_worker:
            items.sort(key=lambda item: _rank(item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.ended[report.nodeid] = "failed"
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.ended.setdefault(report.nodeid, f"skipped: {reason.removeprefix('Skipped: ')}")
        elif report.when == "call":
            self.ended.setdefault(report.nodeid, "passed")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Behind the last test of a whole run, whether docs/rfc.md claims more than was shown: told as a test's end. A
        skip with its reason is a claim that this kernel can't show: listed, and no failure."""
        result = yield
        if self._is_worker or not self._whole():
            return result
        lines = claims_not_shown(parse(DOCUMENT.read_text()), self.ended)
        self._not_shown_here = [line for line in lines if " skipped: " in line]
        if wrong := [line for line in lines if " skipped: " not in line]:
            session.testsfailed += 1
        self._config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=CLAIMS,
                location=("docs/rfc.md", 0, CLAIMS),
                keywords={},
                outcome="failed" if wrong else "passed",
                longrepr="\n".join(wrong) or None,
                when="call",
            )
        )
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._not_shown_here:
            terminalreporter.section("claims of docs/rfc.md that this kernel could not show")
            for line in self._not_shown_here:
                terminalreporter.line(line)
