"""Somebody else's program on a hook of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.host import Host
from support.netns import index_of, inside
from vfr.errors import KernelError
from vfr.kernel import bpf


@contextmanager
def program_before_ours(host: Host, interface: str, name: str) -> Iterator[tuple[int, int]]:
    """Has the fastpath's program of that name run first on an interface where it does not belong: the interface's
    index and the program's number.

    Any other program would do. By the hook that the host's programs are on; skips if that is tcx and there is none.
    """
    pin = Path("/run/vfr/netns") / host.ns("dom0") / "bpf" / "fastpath" / name
    program = bpf.get_pinned(pin)
    way = _by_clsact if (host.env or {}).get("VFR_ATTACH") == "clsact" else _by_tcx
    try:
        with way(host, interface, program, pin):
            yield index_of(host.ns("dom0"), interface), bpf.object_id(program)
    finally:
        os.close(program)


@contextmanager
def _by_tcx(host: Host, interface: str, program: int, pin: Path) -> Iterator[None]:
    dom0 = host.ns("dom0")
    try:
        link = inside(dom0, bpf.tcx_attach, index_of(dom0, interface), program)
    except KernelError as error:
        pytest.skip(f"this kernel has no tcx (Linux 6.6): {error}")
    try:
        yield
    finally:
        os.close(link)


@contextmanager
def _by_clsact(host: Host, interface: str, program: int, pin: Path) -> Iterator[None]:
    """At the very priority of ours, where the latest comes first."""
    place = f"dev {interface} ingress prio 1 handle 2 bpf"
    host.sh("dom0", f"tc filter add {place} da object-pinned {pin}")
    yield
    host.sh("dom0", f"tc filter del {place}")
