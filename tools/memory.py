"""What the tables of an idle domain weigh in the kernel, kind by kind, as a memory cgroup is charged for them.

    .venv/bin/python tools/memory.py [OUTSIDE_PORTS]

Makes the tables of many domains, of the default limits and with so many outside ports each [64, as `vfr nat enable`
gives them], in a cgroup of its own, which is gone afterwards. Tables only: no interface, no program.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfr import _abi
from vfr.kernel import bpf
from vfr.kernel.fastpath import table_sizes
from vfr.settings import Limits, forgettable

MANY = 200  # tables of a kind, so that what is charged by the page or in advance is divided
ROOTS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")
CHARGED = ("memory.kmem.usage_in_bytes", "memory.current")  # cgroup v1, v2


@contextmanager
def charged() -> Iterator[Path]:
    """This process in a memory cgroup of its own: the file that says how many bytes it is charged for."""
    root = next(Path(r) for r in ROOTS if Path(r, "cgroup.procs").exists())
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    paths = [path for _, kinds, path in lines if kinds in ("memory", "")]
    home = Path(f"{root}/{paths[0]}")
    group = Path(tempfile.mkdtemp(prefix="vfr-memory-", dir=root))
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield next(group / name for name in CHARGED if (group / name).exists())
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def weight(usage: Path, name: str, entries: int) -> float:
    """Of one inner map with room for so many entries, in bytes. They stay to the process's end: the kernel gives back
    late, in the midst of the next measurement."""
    spec, inner = _abi.MAPS[name], _abi.MAPS[name].inner
    assert inner is not None

    def table() -> int:
        return bpf.create_map(inner.type, inner.key_size, inner.value_size, entries, inner.flags, name)

    tables = bpf.create_map(spec.type, spec.key_size, spec.value_size, MANY, spec.flags, "tables", table())
    outer = bpf.Map(tables, "tables", spec.key_size, spec.value_size, MANY)
    before = int(usage.read_text())
    for place in range(MANY):
        fd = table()
        outer.set(place.to_bytes(4, "little"), fd.to_bytes(4, "little"))
        os.close(fd)  # a place holds it, and a file weighs too
    return (int(usage.read_text()) - before) / MANY


def main(ports: int = 64) -> int:
    limits = Limits()
    tables = [*table_sizes(limits, ports).items(), *(("closing", n) for n in forgettable(limits, ports))]
    with charged() as usage:
        weight(usage, *tables[0])  # what is made once is made
        rows = [(name, entries, weight(usage, name, entries)) for name, entries in tables]
    print(f"An idle domain's tables, with {ports} outside ports:")
    for name, entries, size in rows:
        print(f"  {name:10}{entries:6} entries{size / 1024:8.1f} kB")
    print(f"  {'all':23}{sum(size for *_, size in rows) / 1024:9.1f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
