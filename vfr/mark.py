"""What VFR writes into the alias of an interface that is a domain's: whose it is, and what it must know of it
again. The alias lives and dies with the interface, so it is right after any crash.

    vfr:7                    domain 7's, a TAP that was made for it
    vfr:7@4026532281         a veth, and the namespace its other end was put into
    vfr:7 {"up": true, ...}  a given device, and how it is to go back
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"vfr:(\d+)(?:@(\d+))?(?: (.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """`owner` is the domain's id; `home` its namespace's inode (instance.netns_inode), None without one;
    `memory` what a given device was like, "" for one of ours."""

    owner: int
    home: int | None = None
    memory: str = ""

    def __str__(self) -> str:
        home = f"@{self.home}" if self.home is not None else ""
        return f"vfr:{self.owner}{home}" + (f" {self.memory}" if self.memory else "")


def read(alias: str) -> Mark | None:
    """The mark in an alias, None if it is not ours."""
    found = _FORM.fullmatch(alias)
    if found is None:
        return None
    owner, home, memory = found.groups()
    return Mark(int(owner), int(home) if home else None, memory or "")
