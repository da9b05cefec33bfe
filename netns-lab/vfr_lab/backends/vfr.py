"""VFR, through the `vfr` command as anybody would use it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vfr_lab.backends import Backend

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

RULES = Path(__file__).resolve().parents[3] / "rules"
SHIPPED = RULES / "xen.rules"  # in force unless an option says otherwise


class VfrBackend(Backend):
    """`options` go to `vfr nat enable`."""

    name = "vfr"
    sentence = "VFR: a BPF fastpath at each guest's interface, and its shipped xen.rules"
    programs: tuple[str, ...] = ("nft", "ip")

    def __init__(self, *options: str, command: Path = Path(sys.executable).parent / "vfr") -> None:
        self.options, self.command = options, str(command)
        given = dict(pairwise(options))
        self._rules = Path(given.get("--rules", SHIPPED))

    def up(self, lab: Lab) -> None:
        self.down(lab)  # a namespace of this name may have been deleted under an earlier VFR
        self.reload(lab)
        for guest in lab.scenario.guests:
            self.attach(lab, guest)

    def down(self, lab: Lab) -> None:
        listed = json.loads(lab.exec("dom0", self.command, "domain", "list", "--json").stdout)
        if listed:
            lab.exec("dom0", self.command, "domain", "remove", *(d["name"] for d in listed))
        lab.exec("dom0", self.command, "nat", "disable")

    def attach(self, lab: Lab, guest: Guest) -> None:
        where = ["--netns", lab.netns(guest.name), "--address", guest.address]
        lab.exec("dom0", self.command, "domain", "add", guest.name, *where)

    def detach(self, lab: Lab, guest: Guest) -> None:
        lab.exec("dom0", self.command, "domain", "remove", guest.name)

    def reload(self, lab: Lab) -> None:
        lab.exec("dom0", self.command, "nat", "enable", "--uplink", "eth0", *self.options)

    def vif(self, lab: Lab, guest: Guest) -> str:
        listed = json.loads(lab.exec("dom0", self.command, "domain", "list", "--json").stdout)
        return str(next(d["interface"] for d in listed if d["name"] == guest.name))

    @contextmanager
    def under(self, lab: Lab, rules: Path) -> Iterator[None]:
        before, self._rules = self._rules, rules
        try:
            lab.exec("dom0", self.command, "apply", str(rules))
            yield
        finally:
            self._rules = before
            lab.exec("dom0", self.command, "apply", str(before))


class VfrSandboxBackend(VfrBackend):
    """VFR for code that nobody trusts. Not judged beside others: what can't be mounted here says nothing."""

    name = "vfr-sandbox"
    sentence = "VFR under its shipped sandbox.rules"
    judged, everyday = False, False

    def __init__(self) -> None:
        super().__init__("--rules", str(RULES / "sandbox.rules"))


class VfrTiersBackend(VfrBackend):
    """VFR with tiers of guests. Not judged beside others, as VfrSandboxBackend."""

    name = "vfr-web-db"
    sentence = "VFR under its shipped web-db.rules"
    judged, everyday = False, False

    def __init__(self) -> None:
        super().__init__("--rules", str(RULES / "web-db.rules"))
