"""What the verifier says of a program that it refuses, as a person gets to read it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfr.errors import KernelError
from vfr.kernel import loader

LOG_ROOM = 2000
# Refused at its end, after a log that is longer than LOG_ROOM.
SOURCE = """
const volatile unsigned char kernel_context = 0;
struct skb { unsigned before[19], data, data_end; };
__attribute__((section("tc"), used)) int wrong(struct skb *skb)
{
    volatile int steps = 0;
    STEPS
    return *(volatile char *)(long)skb->data;
}
char _license[] __attribute__((section("license"), used)) = "GPL";
""".replace("STEPS", "steps++;" * 200)


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A bpffs."""
    subprocess.run(["mount", "-t", "bpf", "refusal", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_refusal_shows_the_end_of_a_long_log(
    pins: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is the last thing that the verifier says."""
    made = tmp_path_factory.mktemp("object") / "wrong.o"
    clang = ["clang-14", "-target", "bpf", "-O2", "-g", "-x", "c", "-", "-c", "-o", str(made)]
    subprocess.run(clang, input=SOURCE, text=True, check=True)
    monkeypatch.setattr(loader, "OBJECT", made)
    monkeypatch.setattr(loader, "_LOG_SIZE", LOG_ROOM)
    with pytest.raises(KernelError) as refused:
        loader.load(pins, {})
    assert "invalid access to packet" in str(refused.value)
    assert LOG_ROOM - 200 < len(str(refused.value)) < LOG_ROOM + 200
    assert not (pins / "wrong").exists()
