"""The tree agrees with itself: generated files, names in comments, what documents point to."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from vfr._abi import Verdict
from vfr.settings import Limits
from vfr.verdicts import MEANINGS

TOP = Path(__file__).resolve().parents[1]


def test_abi_is_what_the_object_says() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "tools/gen_abi.py"), str(TOP / "vfr/_build/vfr.bpf.o")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (TOP / "vfr/_abi.py").read_text(), "run `make abi`"


def test_every_verdict_has_its_meaning() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "tools/gen_verdicts.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == (TOP / "vfr/verdicts.py").read_text(), "run `make abi`"
    assert set(MEANINGS) == set(Verdict) - {Verdict.VERDICTS}


def test_names_in_theory_comments_exist() -> None:
    """What a comment marks with @ must be in the code still."""
    text = "\n".join(p.read_text() for p in sorted((TOP / "fastpath").glob("*.[ch]")))
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    marked = set(re.findall(r"@(\w+)", text))
    assert len(marked) > 8
    assert {name for name in marked if not re.search(rf"\b{name}\b", code)} == set()


def test_readme_says_the_limits_as_they_are() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\d+) \|", (TOP / "README.md").read_text(), flags=re.M)
    assert {name.replace("-", "_"): int(default) for name, default in rows} == asdict(Limits())


def test_entry_programs_are_tables_of_contents() -> None:
    text = (TOP / "fastpath/vfr.bpf.c").read_text()
    bodies = re.findall(r'SEC\("tc"\)\nint (\w+)\(.*?\n\{\n(.*?)\n\}', text, flags=re.S)
    assert {name for name, _ in bodies} == {"vif_ingress", "uplink_ingress", "sorter_ingress", "sweep_row"}
    assert all(body.count("\n") < 25 for _, body in bodies)


def test_control_path_does_not_import_scapy_or_netlink() -> None:
    """`vfr domain list` must start fast."""
    code = "import sys, vfr.cli; print([m for m in ('scapy', 'pyroute2', 'lark') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
