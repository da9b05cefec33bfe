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

    Any other program would do. By tcx only: skips where the kernel has none.
    """
    dom0 = host.ns("dom0")
    program = bpf.get_pinned(Path("/run/vfr/netns") / dom0 / "bpf" / "fastpath" / name)
    try:
        index = index_of(dom0, interface)
        try:
            link = inside(dom0, bpf.tcx_attach, index, program)
        except KernelError as error:
            pytest.skip(f"this kernel has no tcx (Linux 6.6): {error}")
        try:
            yield index, bpf.object_id(program)
        finally:
            os.close(link)
    finally:
        os.close(program)
