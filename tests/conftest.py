"""What all tests share: the compiled fastpath in a namespace of its own, and an option for golden files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bench import Bench
from support.native import LIBRARY, Native
from support.outcomes import Outcomes


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config), "outcomes")


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The real object, run packet by packet through BPF_PROG_TEST_RUN."""
    with Bench() as one:
        yield one


@pytest.fixture(scope="session")
def native() -> Iterator[Native]:
    """The native build, in this process. Its clock stands still until a test sets it."""
    assert LIBRARY.exists(), f"{LIBRARY} is missing: run `make native`"
    with Native() as one:
        yield one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/rules/*.golden as things are now")
