"""Every case of the table on the native build too: verdict by name, receiver, whole frame."""

from __future__ import annotations

import pytest
from support import world
from support.native import Native

from cases.case import Case
from cases.table import CASES
from cases.test_table import _check, _node


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_native(case: Case, native: Native) -> None:
    native.reset(world.router(case.rules))
    for sender, packet in case.before:
        assert not native.send(_node(sender), bytes(packet)).verdict.name.startswith("DROP_")
    native.host_binds(case.host)
    _check(case, native.send(_node(case.sender), bytes(case.packet)))
