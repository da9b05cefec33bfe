"""Writes the world that fuzzers begin with: python -m support.native_world OUT.

The control plane sets up the test world on the native build while every change of a map is recorded. The
first segment is the world under the first rules, each further one a change to the next, the last back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support import world
from support.native import Native

RULES = (
    "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db tcp 5432\nallow web -> db icmp\n",
    "allow any -> any\nallow any -> lan\nallow lan -> any\n",
    "allow web -> lan tcp 80\nallow lan -> web\ndeny odd -> lan\n",
    "",
)


def main() -> None:
    with Native(recording=Path(sys.argv[1])) as native:
        native.reset(world.router(RULES[0]))
        native.mark()
        for rules in (*RULES[1:], RULES[0]):
            native.fastpath.replace_policy(world.router(rules).policy)  # type: ignore[arg-type]
            native.mark()


if __name__ == "__main__":
    main()
