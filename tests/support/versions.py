"""Other versions of VFR beside the one under test: a copy of the package with a fastpath of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.host import Host, run

TOP = Path(__file__).resolve().parents[2]
# What is put for what in which file of the fastpath's source.
Edit = tuple[str, str, str]
OTHER_NUMBER: Edit = ("mapping.h", "#define SCAN 256", "#define SCAN 255")


class Version:
    """A version whose fastpath is built from an edited source; with `abi`, Python's copy of the layout follows."""

    def __init__(self, directory: Path, *edits: Edit) -> None:
        self._top = directory
        for part in ("fastpath", "vfr", "rules", "tools"):
            shutil.copytree(TOP / part, directory / part, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
        for name, old, new in edits:
            file = directory / "fastpath" / name
            text = file.read_text()
            assert text.count(old) == 1, (name, old, text.count(old))
            file.write_text(text.replace(old, new))
        self._build()

    def _build(self) -> None:
        made = self._top / "vfr/_build/vfr.bpf.o"
        machine = run("uname", "-m").stdout.strip()
        run(
            *("clang-14", "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wno-unused-parameter"),
            *("-I", f"/usr/include/{machine}-linux-gnu", "-c", str(self._top / "fastpath/vfr.bpf.c"), "-o", str(made)),
        )
        abi = run(sys.executable, str(self._top / "tools/gen_abi.py"), str(made)).stdout
        (self._top / "vfr/_abi.py").write_text(abi)

    def vfr(self, host: Host, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of this version on the host."""
        return self.python(host, "from vfr.cli import main; main()", *arguments, check=check)

    def python(self, host: Host, code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A script with this version's package."""
        argv = ("ip", "netns", "exec", host.ns("dom0"), sys.executable, "-P", "-c", code, *arguments)
        return run(*argv, check=check, env={**(host.env or {}), "PYTHONPATH": str(self._top)})
