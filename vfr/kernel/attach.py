"""Puts the fastpath's programs on interfaces: by a pinned tcx link where the kernel has tcx (6.6 and
later), on the clsact hook elsewhere. VFR_ATTACH=clsact asks for the latter.

A link is pinned as links/NAME. For clsact, which has no links, the program itself is pinned there,
under NAME~clsact if the qdisc was made for us and goes with it, else under NAME~clsact-shared. (bpffs
takes no dots in names; a dot in NAME becomes a "%".)
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vfr.errors import KernelError
from vfr.kernel import bpf, loader
from vfr.kernel.links import first_filter

_OWN, _SHARED, _NEW = "~clsact", "~clsact-shared", "~new"


def _file(name: str) -> str:
    return name.replace(".", "%")


def _unpin(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _attach_tcx(ifindex: int, program: int, pin: Path, former: Path) -> bool:
    """False if this kernel has no tcx."""
    try:
        link = bpf.tcx_attach(ifindex, program)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno != errno.EEXIST or not former.exists():
            raise
        link = _first_again(ifindex, program, former)
    try:
        bpf.pin(link, pin)
    finally:
        os.close(link)
    return True


def _first_again(ifindex: int, program: int, former: Path) -> int:
    """A new link, in front of whoever came before us. A hook takes a program only once, so the former link must let
    go first: a VIF is down meanwhile, and the uplink has for that moment no program of ours."""
    old = bpf.get_pinned(former)
    try:
        bpf.detach_link(old)
    finally:
        os.close(old)
    return bpf.tcx_attach(ifindex, program)


def attach(ifindex: int, program: int, links: Path, name: str) -> str:
    """Puts `program` on the interface's ingress, first in line. Returns "tcx" or "clsact".

    What was attached under this name before stays in force until the new one is, unless it is the same program.
    """
    wanted = os.environ.get("VFR_ATTACH", "tcx")
    name = _file(name)
    fresh = links / (name + _NEW)
    _unpin(fresh)
    if wanted != "clsact" and _attach_tcx(ifindex, program, fresh, links / name):
        fresh.rename(links / name)
        _detach_clsact(ifindex, links, name)
        return "tcx"
    _leave_to_be_first(ifindex)
    _attach_clsact(ifindex, program, links, name)
    _unpin(links / name)
    return "clsact"


def _leave_to_be_first(ifindex: int) -> None:
    """Takes our filter away if another one runs before it: of those with one priority the latest is first. Until it is
    there again a VIF is down, and the uplink has no program of ours."""
    ours = loader.clsact_program(ifindex)
    if ours is not None and first_filter(ifindex) != ours:
        loader.clsact_detach(ifindex, remove_qdisc=False)


def _attach_clsact(ifindex: int, program: int, links: Path, name: str) -> None:
    made = loader.clsact_attach(ifindex, program)
    marker = links / (name + (_OWN if made else _SHARED))
    if not (links / (name + _OWN)).exists() and not marker.exists():
        bpf.pin(program, marker)


def attach_fresh(ifindex: int, program: int, links: Path, name: str) -> None:
    """Puts `program` on the ingress of an interface that has just been made, on the clsact hook.

    With tcx the kernel waits at each attaching, and again when the interface goes, until every CPU has left what it was
    in (synchronize_rcu: 10 ms here), while it holds the lock on all of the network's settings.
    """
    _attach_clsact(ifindex, program, links, _file(name))


def attached(ifindex: int, program: int) -> str | None:
    """How `program` is attached to the interface's ingress with nothing before it, None if it is not."""
    number = bpf.object_id(program)
    before_us = bpf.tcx_programs(ifindex)
    if before_us:
        return "tcx" if before_us[0] == number else None
    return "clsact" if first_filter(ifindex) == number else None


def _detach_clsact(ifindex: int | None, links: Path, name: str) -> None:
    """Undoes a clsact attachment under this name, if there is one."""
    own, shared = links / (name + _OWN), links / (name + _SHARED)
    if ifindex is not None and (own.exists() or shared.exists()):
        loader.clsact_detach(ifindex, remove_qdisc=own.exists())
    _unpin(own)
    _unpin(shared)


def is_marker(pin: Path) -> bool:
    """Whether a pin stands for a filter on the clsact hook, and is its program."""
    return pin.name.endswith((_OWN, _SHARED))


def replace_marker(pin: Path, program: int) -> None:
    """Has it be another program, once that is on the hook."""
    fresh = pin.with_name(pin.name + _NEW)
    _unpin(fresh)
    bpf.pin(program, fresh)
    fresh.rename(pin)


def detach(ifindex: int | None, links: Path, name: str) -> None:
    """Takes the program off, whichever way it is on. `ifindex` is None if the interface is gone."""
    name = _file(name)
    _unpin(links / name)
    _unpin(links / (name + _NEW))
    _detach_clsact(ifindex, links, name)


def names(links: Path) -> frozenset[str]:
    """Under which names something is attached."""
    return frozenset(p.name.split("~")[0].replace("%", ".") for p in links.iterdir())
