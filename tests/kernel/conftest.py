"""A bpffs of the tests' own, and small C programs (probes/) loaded onto it."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.netns import namespaces, run

from vfr.kernel import loader

PROBES = Path(__file__).parent / "probes"
CFLAGS = ["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """An empty bpffs."""
    place = tmp_path / "bpffs"
    place.mkdir()
    run("mount", "-t", "bpf", "k-test", str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


@pytest.fixture
def probe(bpffs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Loads probes/NAME.bpf.c; the directory where its maps and programs are pinned by their names."""

    def load(name: str) -> Path:
        compiled, pins = tmp_path / f"{name}.o", bpffs / name
        headers = f"-I/usr/include/{platform.machine()}-linux-gnu"
        run("clang-14", *CFLAGS, headers, "-c", str(PROBES / f"{name}.bpf.c"), "-o", str(compiled))
        pins.mkdir()
        _load(compiled, pins)
        return pins

    return load


def _load(compiled: Path, pins: Path) -> None:
    """A helper that this kernel does not know is a missing feature; any other refusal is a failure."""
    log = ctypes.create_string_buffer(1 << 16)
    library = ctypes.CDLL(str(loader.BUILD / "libvfrload.so"))
    error = library.vfr_load(str(compiled).encode(), str(pins).encode(), None, log, len(log))
    text = log.value.decode(errors="replace")
    if error and ("unknown func" in text or "invalid func" in text):
        pytest.skip(f"this kernel lacks a helper of {compiled.stem}: {text.strip().splitlines()[-1]}")
    assert not error, f"{compiled.stem}: {os.strerror(-error)}\n{text}"


@pytest.fixture
def router() -> Iterator[str]:
    """A namespace with a veth pair, k0 and k1, both ends up and here."""
    with namespaces("k-router"):
        run("ip", "-n", "k-router", "link", "add", "k0", "type", "veth", "peer", "name", "k1")
        for name in ("k0", "k1"):
            run("ip", "-n", "k-router", "link", "set", name, "up")
        yield "k-router"
