"""Namespaces for many guests, made and removed by the thousand, and programs that add them in bursts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from support.host import Host, run

# Benchmarking addresses (RFC 2544): the pool has room for 253.
_NETWORK = "198.18"


def address(number: int) -> str:
    """One for each of thousands."""
    return f"{_NETWORK}.{number // 250}.{number % 250 + 1}"


def line(name: str, number: int | None = None) -> str:
    """As `vfr domain add --from` reads it: at the namespace of its own name, its address out of the pool, or given."""
    return f"{name} netns {name}" + (f" address {address(number)}" if number is not None else "")


@contextmanager
def namespaces(prefix: str, count: int) -> Iterator[list[str]]:
    """Named PREFIX0, PREFIX1, ..."""
    names = [f"{prefix}{number}" for number in range(count)]
    _batch(f"netns del {name}" for name in names)
    try:
        done = _batch(f"netns add {name}" for name in names)
        assert done.returncode == 0, done.stderr
        yield names
    finally:
        _batch(f"netns del {name}" for name in names)


def _batch(commands: Iterator[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "-force", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True, check=False
    )


def python(host: Host, program: str, *arguments: str) -> str:
    """What a program prints that runs where the router is."""
    return run("ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", program, *arguments).stdout
