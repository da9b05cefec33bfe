"""VFR on Linux 6.1, the oldest kernel it is meant for, which has no tcx: see README.md here."""

from __future__ import annotations

import pytest

from vm.machine import UnavailableError, boot
from vm.steps import STEPS


def test_on_linux_6_1() -> None:
    """Each of STEPS. The machine's exit status counts too, which nothing but its `init` can bring about."""
    try:
        report = boot()
    except UnavailableError as reason:
        pytest.skip(f"no Linux 6.1 to boot: {reason}")
    if problems := report.problems(STEPS):
        pytest.fail(f"on Linux 6.1\n{problems}", pytrace=False)
