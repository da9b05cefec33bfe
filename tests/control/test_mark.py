"""What VFR writes into an interface's alias, and reads back."""

from __future__ import annotations

import pytest

from vfr.mark import Mark, read


@pytest.mark.parametrize("mark", [Mark(7), Mark(7, 4026532281), Mark(7, memory='{"up": true, "alias": "a b@c\\n"}')])
def test_round_trip(mark: Mark) -> None:
    assert read(str(mark)) == mark


@pytest.mark.parametrize("alias", ["", "mine", "vfr:", "vfr:web", "vfr:7@", "vfr:7@x", "xvfr:7", "vfr:7x"])
def test_an_alias_of_somebody_else_is_not_ours(alias: str) -> None:
    assert read(alias) is None
