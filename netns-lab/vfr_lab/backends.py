"""What isolates and connects a lab's guests. The lab knows each backend by its command line only, so that
its judgement of one is worth as much as of another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vfr_lab.lab import Lab


class Backend(Protocol):
    """Wires guests, which are bare namespaces, to the host and the LAN."""

    name: str

    def up(self, lab: Lab) -> None:
        """Gives every guest of the scenario its interface, address and rights."""

    def down(self, lab: Lab) -> None:
        """Takes all of it back, also if `up` broke off."""


class VfrBackend:
    """VFR, through the `vfr` command as anybody would use it; `options` go to `vfr nat enable`."""

    name = "vfr"

    def __init__(self, *options: str, command: Path = Path(sys.executable).parent / "vfr") -> None:
        self.options, self.command = options, str(command)

    def up(self, lab: Lab) -> None:
        self.down(lab)  # a namespace of this name may have been deleted under an earlier VFR
        lab.exec("dom0", self.command, "nat", "enable", "--uplink", "eth0", *self.options)
        for guest in lab.scenario.guests:
            where = ["--netns", lab.netns(guest.name), "--address", guest.address]
            lab.exec("dom0", self.command, "domain", "add", guest.name, *where)

    def down(self, lab: Lab) -> None:
        listed = json.loads(lab.exec("dom0", self.command, "domain", "list", "--json").stdout)
        if listed:
            lab.exec("dom0", self.command, "domain", "remove", *(d["name"] for d in listed))
        lab.exec("dom0", self.command, "nat", "disable")
