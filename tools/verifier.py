"""What the verifier of the kernel that runs here makes of the fastpath, program by program.

    .venv/bin/python tools/verifier.py

Exit status 1, with the verifier's words, if it refuses one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from vfr.errors import KernelError
from vfr.kernel import bpf, loader

LIMIT = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS: what the verifier is willing to walk through
TITLES = ("program", "verified", "left", "used", "translated", "machine code")


def programs(pins: Path) -> dict[str, bpf.ProgramInfo]:
    """The figures of every program among the pins, by name."""
    found = {}
    for pin in sorted(pins.iterdir()):
        fd = bpf.get_pinned(pin)
        if str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:bpf-prog":
            found[pin.name] = bpf.program_info(fd)
        os.close(fd)
    return found


def loaded() -> dict[str, bpf.ProgramInfo]:
    """The object's programs, loaded for a moment. KernelError if the kernel refuses one."""
    with tempfile.TemporaryDirectory(prefix="vfr-verifier-") as directory:
        subprocess.run(["mount", "-t", "bpf", "verifier", directory], check=True)
        try:
            pins = Path(directory, "fastpath")
            pins.mkdir()
            loader.load(pins, {})
            return programs(pins)
        finally:
            subprocess.run(["umount", directory], check=True)


def row(name: str, info: bpf.ProgramInfo) -> tuple[str, ...]:
    """A line of the table; sizes in bytes."""
    verified = info.verified_instructions
    counts = (f"{verified:,}", f"{LIMIT - verified:,}", f"{verified / LIMIT:.1%}")
    return name, *counts, f"{info.translated_size:,} B", f"{info.jited_size:,} B"


def main() -> int:
    print(f"Linux {platform.release()}, of {LIMIT:,} instructions that its verifier walks through at most:")
    try:
        rows = [TITLES, *(row(name, info) for name, info in loaded().items())]
    except KernelError as error:
        print(error)
        return 1
    for cells in rows:
        print(f"  {cells[0]:16}" + "".join(f"{cell:>14}" for cell in cells[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
