"""Remembers how each test of this session ended, for tests about tests: docs/rfc.md may claim only what
was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

LAST = "test_every_claim_was_shown_by_this_run"


class Outcomes:
    """A pytest plugin. `ended` is "passed", "failed" or why it was skipped, by node id."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deselected = False
        self.ended: dict[str, str] = {}
        self.not_shown: list[str] = []

    def whole(self) -> bool:
        """Whether everything was asked for: all of testpaths, and nothing picked or left out."""
        option = self._config.option
        asked = {(self._config.invocation_params.dir / arg).resolve() for arg in self._config.args}
        paths = {(self._config.rootpath / path).resolve() for path in self._config.getini("testpaths")}
        left_out = option.ignore or option.ignore_glob or option.lf or self._deselected
        return {Path(a) for a in asked} == paths and not left_out

    def pytest_deselected(self) -> None:
        self._deselected = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.name == LAST)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.ended[report.nodeid] = "failed"
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.ended.setdefault(report.nodeid, f"skipped: {reason.removeprefix('Skipped: ')}")
        elif report.when == "call":
            self.ended.setdefault(report.nodeid, "passed")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.not_shown:
            terminalreporter.section("claims of docs/rfc.md that this kernel could not show")
            for line in self.not_shown:
                terminalreporter.line(line)


def outcomes(config: pytest.Config) -> Outcomes:
    """This session's."""
    plugin = config.pluginmanager.get_plugin("outcomes")
    assert isinstance(plugin, Outcomes)
    return plugin
