"""What all tests share: a bpffs of their own, and the compiled fastpath in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bench import Bench
from support.outcomes import Outcomes


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config), "outcomes")


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The real object, run packet by packet through BPF_PROG_TEST_RUN."""
    with Bench() as one:
        yield one
