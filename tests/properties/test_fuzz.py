"""A minute of fuzzing the native build under AddressSanitizer and UndefinedBehaviorSanitizer.

`make fuzz` does it for as long as one likes; see fastpath/native/README.md. FUZZ_SECONDS is for each.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))


def _run(fuzzer: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [fuzzer, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=SECONDS + 300,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("name", ["frame", "conversation"])
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    """From the committed corpus on. A finding is printed packet by packet, so that it can become a case."""
    fuzzer, corpus = TOP / f"build/native/fuzz_{name}", TOP / f"fastpath/native/corpus/{name}"
    assert fuzzer.exists(), f"{fuzzer} is missing: run `make native`"
    assert any(corpus.iterdir())
    (tmp_path / "new").mkdir()
    limits = [f"-max_total_time={SECONDS}", "-max_len=1600", "-timeout=10", f"-artifact_prefix={tmp_path}/"]
    done = _run(fuzzer, *limits, str(tmp_path / "new"), str(corpus))
    if done.returncode:
        again = [_run(fuzzer, str(found), VFR_SAY="1").stderr for found in tmp_path.glob("*-*")]
        pytest.fail("\n".join([done.stderr[-6000:], "the packets of the finding:", *(text[-6000:] for text in again)]))
    assert "DONE" in done.stderr
