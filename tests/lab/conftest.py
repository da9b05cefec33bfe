"""One lab for all tests here, beside whatever lab the user has up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vfr_lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    one = Lab(prefix="vl-")
    try:
        one.up()
        yield one
    finally:
        one.down()
