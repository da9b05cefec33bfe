"""What isolates and connects a lab's guests: one class each, all of the same form, so that each is judged alike.

A backend of your own is a class of this form, named in its package's metadata; `vfr-lab` then knows it by name.
One that is derived from `Backend` has its `judged`, `everyday`, `address` and `under` from there:

    [project.entry-points."vfr_lab.backends"]
    mine = "my_package.my_module:MyBackend"
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

GROUP = "vfr_lab.backends"
GATEWAY = "169.254.1.0"


class Backend(Protocol):
    """Wires guests, which are bare namespaces, to the host (the node dom0, whose eth0 is on the LAN) and the LAN.

    Each guest gets an interface eth0 with the scenario's address for it, a default route by GATEWAY, a masqueraded
    way to the LAN, and the forward (a TCP port of dom0's LAN address that leads to its port 22) that the scenario
    names. Everything else is what this backend's users have by default. All work is done by commands in the
    node dom0 and in the guests' namespaces; LabError with the command's own words if one fails.
    """

    name: str
    sentence: str  # what it is, and who uses it so
    programs: tuple[str, ...]  # what must be installed
    judged: bool = True  # whether it claims to isolate, so that attacks say something about it
    everyday: bool = (
        True  # whether guests may do all that scenarios have them do; if not, many attacks can't be mounted
    )

    def up(self, lab: Lab) -> None:
        """Wires every guest of the scenario. Clears first what an interrupted `up` left."""

    def down(self, lab: Lab) -> None:
        """Takes all of it back, also if `up` broke off."""

    def attach(self, lab: Lab, guest: Guest) -> None:
        """Wires one guest, while the others' traffic goes on."""

    def detach(self, lab: Lab, guest: Guest) -> None:
        """Takes one guest's wires, rights and forward back, while the others' traffic goes on."""

    def reload(self, lab: Lab) -> None:
        """Puts the configuration that is in force in force again, as its users do after a change."""

    def vif(self, lab: Lab, guest: Guest) -> str:
        """The name of the guest's interface in dom0."""

    def address(self, lab: Lab, frm: str, to: str) -> str:
        """The address by which node `frm` speaks to node `to`: of a guest, the LAN knows dom0's address and a port."""
        scenario = lab.scenario
        guests = {g.name: g.address for g in scenario.guests}
        inside = frm in guests or frm == scenario.dom0.name
        if to in guests:
            return guests[to] if inside else scenario.dom0.address
        if to == scenario.dom0.name and frm in guests:
            return GATEWAY
        return next(host.address for host in scenario.hosts if host.name == to)

    def under(self, lab: Lab, rules: Path) -> AbstractContextManager[None]:
        """The guests under a rule file, an absolute path, in the block; under the rules before it again after it."""
        from vfr_lab.lab import LabError

        raise LabError(f"the backend {self.name} takes no rule file, so {rules} cannot be put in force")


def names() -> list[str]:
    """Every backend that is installed."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def backend(name: str) -> Backend:
    """A backend by its name. LookupError, with the names there are, if there is none of it."""
    for entry in entry_points(group=GROUP, name=name):
        made: Backend = entry.load()()
        return made
    raise LookupError(f"there is no backend {name!r}; there are: {', '.join(names())}")


def missing(one: Backend) -> list[str]:
    """Which of the backend's programs this machine has not."""
    return [program for program in one.programs if shutil.which(program) is None]
