"""A Linux bridge with NAT: the plain default of libvirt (`virbr0`), and in all but names that of Docker (`docker0`).

The bridge is as libvirt's default network has it, `<bridge stp='on' delay='0'/>`: with a MAC of its own, and with
spanning tree, so that a new port is silent for some four seconds. Docker leaves spanning tree off; else the same
holds for it. The host has 169.254.1.0/16 on the bridge, and guests have the same /16 on the link (wiring.py says
why). Guests are veths, as with libvirt's LXC and Docker; a TAP would be a port like any other.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vfr_lab.backends import GATEWAY, Backend, libvirt_nat, wiring
from vfr_lab.lab import wait_until

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

BRIDGE = "br0"
MAC = "52:54:00:00:00:01"
LENGTH = 16


class BridgeBackend(Backend):
    """Guests on one bridge, behind libvirt's NAT."""

    name = "bridge"
    sentence = "Linux bridge and NAT, as libvirt's default network and Docker have it"
    programs: tuple[str, ...] = ("ip", "bridge", "nft", "sysctl")

    def up(self, lab: Lab) -> None:
        self.down(lab)
        wiring.become_router(lab)
        lab.ip("dom0", "link", "add", BRIDGE, "address", MAC, "type", "bridge", "forward_delay", "0")
        lab.ip("dom0", "link", "set", BRIDGE, "type", "bridge", "stp_state", "1")
        lab.ip("dom0", "address", "add", f"{GATEWAY}/{LENGTH}", "dev", BRIDGE)
        lab.ip("dom0", "link", "set", BRIDGE, "up")
        self.reload(lab)
        for guest in lab.scenario.guests:
            self._join(lab, guest)
        for guest in lab.scenario.guests:
            self._wait(lab, guest)

    def down(self, lab: Lab) -> None:
        wiring.remove(lab, "dom0", [*map(wiring.vif, lab.scenario.guests), BRIDGE])
        wiring.unload(lab, libvirt_nat.TABLE)
        wiring.restore_sysctls(lab)

    def attach(self, lab: Lab, guest: Guest) -> None:
        self._join(lab, guest)
        self._wait(lab, guest)

    def detach(self, lab: Lab, guest: Guest) -> None:
        """The port is deleted, and its rules. What was tracked of its connections stays, as it does with libvirt."""
        wiring.remove(lab, "dom0", [wiring.vif(guest)])
        self.reload(lab)

    def reload(self, lab: Lab) -> None:
        libvirt_nat.load(lab, BRIDGE, wiring.attached(lab))

    def vif(self, lab: Lab, guest: Guest) -> str:
        return wiring.vif(guest)

    def _join(self, lab: Lab, guest: Guest) -> None:
        """Rules first, then the port: as libvirt does it."""
        wiring.plug(lab, guest, LENGTH)
        self.reload(lab)
        lab.ip("dom0", "link", "set", wiring.vif(guest), "master", BRIDGE, "up")

    def _wait(self, lab: Lab, guest: Guest) -> None:
        """Until spanning tree lets the port speak."""
        show = ("bridge", "-j", "link", "show", "dev", wiring.vif(guest))
        wait_until(
            lambda: json.loads(lab.exec("dom0", *show).stdout)[0]["state"] == "forwarding",
            f"{BRIDGE}'s port for {guest.name}",
        )
