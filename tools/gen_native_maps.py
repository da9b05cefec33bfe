#!/usr/bin/env python3
"""Writes the maps that fastpath/native declares, from vfr/_abi.py: tools/gen_native_maps.py > maps.inc."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ABI = Path(__file__).resolve().parents[1] / "vfr/_abi.py"


def main() -> None:
    maps: dict[str, Any] = runpy.run_path(str(ABI))["MAPS"]
    for name, spec in maps.items():
        numbers = (spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags)
        print(f"MAP({name}, {', '.join(map(str, numbers))})")


if __name__ == "__main__":
    main()
