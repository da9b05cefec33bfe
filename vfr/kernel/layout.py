"""How the fastpath's tables are laid out, as text that a running one carries along.

Python's copy (vfr/_abi.py) is made from the object's own BTF. Whoever opens a running fastpath compares first: rows
read by another layout would be nonsense that looks like rows.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Iterator, Mapping
from functools import cache

from vfr import _abi

Layout = Mapping[str, str]

# What only counts and tells: made anew where its layout is another, since no conversation hangs on it.
TELLING = frozenset(
    {"counters", "events", "trace", "offload", "identifications", "dhcp_work"}
    | {"captures", "captured", "capture_rings", "arrival"}
)
_TELLING_WORDS = frozenset(f"the map {name}" for name in TELLING) | {
    "the struct Counters",
    "the struct Count",
    "the struct Event",
    "the struct Trace",
    "the struct DhcpWork",
    "the struct Capture",
    "the struct Captured",
    "the struct Sight",
    "the enum Seen",
    "the enum Verdict",
}


def _fields(struct: type[ctypes.Structure]) -> str:
    rows = (field[:2] for field in struct._fields_)
    return ", ".join(f"{name} {kind.__name__} at {getattr(struct, name).offset}" for name, kind in rows)


@cache
def own() -> Layout:
    """Of this version's tables: every map, struct and enum by its name."""
    found = {f"the map {name}": str(spec) for name, spec in _abi.MAPS.items()}
    for name, one in vars(_abi).items():
        if isinstance(one, type) and issubclass(one, ctypes.Structure):
            found[f"the struct {name}"] = f"{ctypes.sizeof(one)} bytes: {_fields(one)}"
        elif isinstance(one, type) and issubclass(one, enum.IntEnum) and one is not enum.IntEnum:
            found[f"the enum {name}"] = json.dumps({key: int(value) for key, value in one.__members__.items()})
    return found


def as_bytes(layout: Layout, room: int) -> bytes:
    """To be kept in a map's value of `room` bytes."""
    raw = json.dumps(layout, sort_keys=True).encode()
    assert len(raw) <= room, "the layout's note is too small"
    return raw.ljust(room, b"\0")


def from_bytes(raw: bytes) -> Layout:
    """What as_bytes made."""
    found = json.loads(raw.rstrip(b"\0") or b"{}")
    assert isinstance(found, dict)
    return found


def differences(running: Layout, wanted: Layout) -> dict[str, str]:
    """What is not in the running one as it is wanted -> how it differs. What is gone, or new in an enum, is none."""
    found = {}
    for what, text in wanted.items():
        there = running.get(what)
        if there == text:
            continue
        if what.startswith("the enum ") and there is not None:
            there, text = _members(there, text)
        if there != text and (there is not None or what.startswith("the map ")):
            found[what] = f"{there or 'not there'}, here {text}"
    return found


def _members(running: str, wanted: str) -> tuple[str, str]:
    """Of two enums: the members whose numbers are not those of the running one any more, as the second and as the
    first has them."""
    old, new = json.loads(running), json.loads(wanted)
    odd = [name for name, number in old.items() if name not in _ENDS and new.get(name) != number]
    return ", ".join(f"{name}={old[name]}" for name in odd), ", ".join(f"{name}={new.get(name)}" for name in odd)


# Members that only say how many there are.
_ENDS = frozenset({"VERDICTS", "KINDS", "SPACES", "STATES", "EVENTS"})


def losing(found: Mapping[str, str]) -> dict[str, str]:
    """Those of the differences that conversations would be lost by. A map that is not there holds none."""
    lost = {what: how for what, how in found.items() if what not in _TELLING_WORDS}
    return {what: how for what, how in lost.items() if not how.startswith("not there")}


def anew(found: Mapping[str, str]) -> Iterator[str]:
    """The maps that an upgrade cannot share with what runs: those that only tell, all of them if one's layout is
    another, and those that were not there."""
    if any(what in _TELLING_WORDS and not how.startswith("not there") for what, how in found.items()):
        yield from TELLING & _abi.MAPS.keys()
    yield from (what.removeprefix("the map ") for what, how in found.items() if how.startswith("not there"))
