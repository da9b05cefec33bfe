"""The fastpath of a host or a lab, seen from the test: its counters by the command, its maps by their pins."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from vfr.kernel import mounts
from vfr.kernel.fastpath import Fastpath
from vfr.settings import Timers
from vfr_lab import Lab

RULES = Path(__file__).resolve().parents[2] / "rules" / "xen.rules"
VFR = str(Path(sys.executable).parent / "vfr")


def vfr(lab: Lab, *arguments: str) -> str:
    """What the vfr command prints in the lab's host."""
    return lab.exec("dom0", VFR, *arguments).stdout


def stats(lab: Lab, who: str) -> dict[str, int]:
    """Verdict, "received" or "errors" -> packets, of a domain, "dom0" or "lan"."""
    counted = json.loads(vfr(lab, "stats", who, "--json"))[who]
    return {verdict: count["packets"] for verdict, count in counted.items()}


def end_conversations(lab: Lab) -> None:
    """What other tests have mapped, perhaps by chance to the very port that one counts on, is over."""
    with open_fastpath(lab) as fastpath:
        fastpath.advance_clock(Timers().tcp_established + 1)


@contextmanager
def fastpath_of(netns: str) -> Iterator[Fastpath]:
    """The maps of the VFR that runs in a namespace."""
    pins = mounts.seen_from_here(Path("/run/vfr/netns") / netns / "bpf")
    fastpath = Fastpath.open(pins)
    assert fastpath is not None, f"there is no fastpath at {pins}"
    try:
        yield fastpath
    finally:
        fastpath.close()


def open_fastpath(lab: Lab) -> AbstractContextManager[Fastpath]:
    """The maps of the lab's host."""
    return fastpath_of(lab.netns("dom0"))


def slot_of(fastpath: Fastpath, address: str) -> int:
    """The slot of the domain with this address, also of one that is saved."""
    return fastpath.addresses()[IPv4Address(address)]


@contextmanager
def more_rules(lab: Lab, file: Path, more: str) -> Iterator[None]:
    """The lab's own rules and some more, in `file`, for the block."""
    file.write_text(f"{RULES.read_text()}\n{more}\n")
    try:
        vfr(lab, "apply", str(file))
        yield
    finally:
        vfr(lab, "apply", str(RULES))
