"""One lab for all tests here, or for those of them that one worker runs, beside whatever lab the user has up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vfr_lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    one = Lab(prefix=f"vl{os.environ.get('PYTEST_XDIST_WORKER', '')}-")
    try:
        one.up()
        yield one
    finally:
        one.down()
