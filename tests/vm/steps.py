"""What is done inside the machine, two steps at a time; all of them, also if one fails, except that
without programs there is nothing to try.

python -m vm.steps     in the machine: of each step, when it has ended, `=== STEP`, its words, `=== STEP: exit N`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
_PYTEST = (sys.executable, "-m", "pytest", "-q", "--tb=short", "--color=no", "-p", "no:cacheprovider")

CPUS = 2

# Packets for the object in the kernel; what is only about the model or the native build is not here.
PACKETS = (
    "tests/cases/test_table.py",
    "tests/cases/test_rates.py::test_rates",
    "tests/properties/test_agreement.py",
    "tests/properties/test_limits.py",
    "tests/kernel",
)

# The names of the steps, and the command of each.
VERIFIER = "the verifier"
STEPS: dict[str, tuple[str, ...]] = {
    VERIFIER: (sys.executable, "tools/verifier.py"),
    "packets": (*_PYTEST, *PACKETS),
    "the host gets everything back": (*_PYTEST, "tests/control", "-k", "given_back and clsact"),
    "offloads": (
        *_PYTEST,
        "tests/control/test_offload.py",
        "-k",
        "witness and not another_protocol and not never_cut and not one_byte",
    ),
    "an upgrade": (*_PYTEST, "tests/control/test_upgrade.py", "-k", "witnessed"),
    "the lab": (sys.executable, "-m", "vm.lab"),
}


def _step(name: str) -> bool:
    """Runs a step, then tells of it in one go. True if it went well."""
    began = time.monotonic()
    done = subprocess.run(
        STEPS[name], cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    took_s = time.monotonic() - began
    sys.stdout.write(f"=== {name}\n{done.stdout}=== {name}: exit {done.returncode}, {took_s:.0f} s\n")
    sys.stdout.flush()
    return done.returncode == 0


def main() -> int:
    """Runs every step. 0 if all went well."""
    if not _step(VERIFIER):
        return 1
    with ThreadPoolExecutor(CPUS) as pool:
        went_well = list(pool.map(_step, [name for name in STEPS if name != VERIFIER]))
    return int(not all(went_well))


if __name__ == "__main__":
    sys.exit(main())
