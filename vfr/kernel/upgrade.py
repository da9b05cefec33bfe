"""Another build of the fastpath takes over from the running one, under full traffic.

    pins/fastpath   programs and maps that count        pins/links   what is attached
    pins/loading    being loaded, worth nothing yet     pins/next    whole and verified

The new build is loaded with the running one's own maps, so that both know the same conversations, rules and limits;
then hook after hook is switched, each at once. Meanwhile some packets meet the one build and some the other, which
makes no difference to what is stored, since both are laid out alike: that is checked before. When all hooks are
switched, `fastpath` and `next` change places, and the former is let go of.

One rule repairs whatever is left by a command that died: hooks run what is in `fastpath`. Before the exchange that
goes back, after it, it completes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vfr import _abi
from vfr.errors import ConflictError, KernelError
from vfr.kernel import attach, bpf, layout, links, loader
from vfr.kernel.fastpath import NOTES, OF_THE_BUILD, PROGRAMS, SWEEP, is_noted_true, make_notes, noted

_EXCHANGE, _AT_FDCWD = 2, -100
_libc = ctypes.CDLL(None, use_errno=True)
Step = Callable[[str], None]


def running(pins: Path) -> str | None:
    """Which build runs (loader.installed), None if there is none, or one that does not say."""
    raw = noted(pins / "fastpath", "object")
    return raw.rstrip(b"\0").decode() if raw else None


def is_under_way(pins: Path) -> bool:
    """Whether an upgrade broke off, so that there is something to settle."""
    return (pins / "next").exists() or (pins / "loading").exists()


def check(pins: Path) -> dict[str, str]:
    """What is laid out otherwise in the fastpath that runs. ConflictError if conversations would be lost by it."""
    raw = noted(pins / "fastpath", "layout")
    if raw is None:
        raise ConflictError(
            "the fastpath that runs does not say how its tables are laid out; to load the installed one in its place"
            " and lose all conversations, run `vfr upgrade --lose-sessions`"
        )
    found = layout.differences(layout.from_bytes(raw), layout.own())
    lost = layout.losing(found)
    if lost:
        told = "; ".join(f"{what}: {how}" for what, how in lost.items())
        raise ConflictError(
            f"the installed fastpath lays tables out otherwise than the one that runs, which stays ({told});"
            " to load it all the same and lose all conversations, run `vfr upgrade --lose-sessions`"
        )
    return found


def oddity(pins: Path) -> tuple[str, bool] | None:
    """How the running fastpath's tables are laid out otherwise than this version's, in a few words, and whether
    conversations would be lost by an upgrade; None if they are not."""
    raw = noted(pins / "fastpath", "layout")
    found = layout.differences(layout.from_bytes(raw), layout.own()) if raw else {}
    lost = layout.losing(found)
    told = next(iter((lost or found).items()), None)
    return (f"{told[0]}: {told[1]}", bool(lost)) if told else None


def take_over(pins: Path, step: Step) -> tuple[str, ...]:
    """The installed build instead of the running one. Returns the maps that begin anew, since they only count and tell.
    ConflictError from check, KernelError with the verifier's log; then all is as it was."""
    settle(pins, step)
    fresh_maps = tuple(dict.fromkeys(layout.anew(check(pins))))
    step("load the installed fastpath beside the running one")
    _load(pins, fresh_maps)
    step("the installed fastpath is whole")
    (pins / "loading").rename(pins / "next")
    try:
        _switch(pins, "fastpath", "next", step)
        step("it is the running one from now on")
        _exchange(pins / "fastpath", pins / "next")
    except (KernelError, OSError):
        settle(pins, step)
        raise
    settle(pins, step)
    return fresh_maps


def settle(pins: Path, step: Step) -> None:
    """Has every hook run what is in `fastpath`, and removes what else an upgrade left."""
    if (pins / "next").exists():
        _switch(pins, "next", "fastpath", step)
        step("let go of the other fastpath")
        shutil.rmtree(pins / "next")
    if (pins / "loading").exists():
        shutil.rmtree(pins / "loading")


def _load(pins: Path, fresh_maps: tuple[str, ...]) -> None:
    base, loading = pins / "fastpath", pins / "loading"
    loading.mkdir()
    shared_notes = NOTES.keys() - OF_THE_BUILD
    with ExitStack() as stack:
        shared = {}
        for name in (*(_abi.MAPS.keys() - set(fresh_maps)), *shared_notes):
            shared[name] = bpf.get_pinned(base / name)
            stack.callback(os.close, shared[name])
        maps = {name: fd for name, fd in shared.items() if name not in shared_notes}
        settings = {loader.KERNEL_CONTEXT: 0} if is_noted_true(base, "witnessed") else {}
        loader.load(loading, settings, maps, [*PROGRAMS.values(), SWEEP])
        for name in shared_notes:
            bpf.pin(shared[name], loading / name)
    make_notes(loading, OF_THE_BUILD)


def _exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE):
        raise KernelError(f"exchanging {one} and {other}", ctypes.get_errno())


@contextmanager
def _pairs(pins: Path, old: str, new: str) -> Iterator[Mapping[int, tuple[int, int]]]:
    """The kernel's number of each old program -> (the old program, the new one), as descriptors."""
    with ExitStack() as stack:
        found = {}
        for name in PROGRAMS.values():
            ends = [bpf.get_pinned(pins / part / name) for part in (old, new)]
            for fd in ends:
                stack.callback(os.close, fd)
            found[bpf.object_id(ends[0])] = (ends[0], ends[1])
        yield found


def _switch(pins: Path, old: str, new: str, step: Step) -> None:
    """Every hook that runs a program of `old` runs the same one of `new`."""
    with _pairs(pins, old, new) as pairs:
        markers = []
        for pin in sorted((pins / "links").iterdir()):
            if attach.is_marker(pin):
                markers.append(pin)
            elif _runs(pin) in pairs:
                step(f"{pin.name}: switch")
                _switch_link(pin, pairs)
        if markers:
            _switch_filters(pairs, step)
        for pin in markers:
            _replace_marker(pin, pairs)


def _runs(pin: Path) -> int:
    link = bpf.get_pinned(pin)
    try:
        return bpf.link_program(link)
    finally:
        os.close(link)


def _switch_link(pin: Path, pairs: Mapping[int, tuple[int, int]]) -> None:
    link = bpf.get_pinned(pin)
    try:
        bpf.update_link(link, *pairs[bpf.link_program(link)])
    except KernelError as error:
        if error.errno != errno.ENOLINK:  # its interface has gone
            raise
    finally:
        os.close(link)


def _switch_filters(pairs: Mapping[int, tuple[int, int]], step: Step) -> None:
    """On clsact a program is known by its interface alone, so all interfaces are asked."""
    for name, link in links.links().items():
        number = loader.clsact_program(link.index)
        if number is not None and number in pairs:
            step(f"{name}: switch")
            loader.clsact_attach(link.index, pairs[number][1])


def _replace_marker(pin: Path, pairs: Mapping[int, tuple[int, int]]) -> None:
    """The pin that stands for a filter keeps its program alive: the former one is to go."""
    program = bpf.get_pinned(pin)
    try:
        number = bpf.object_id(program)
    finally:
        os.close(program)
    if number in pairs:
        attach.replace_marker(pin, pairs[number][1])
