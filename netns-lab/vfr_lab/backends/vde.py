"""Debian's vde2: a switch that is an ordinary process, as user-mode Linux and QEMU users without privileges use it.

The host has one TAP on the switch (`vde_switch -tap`) and does NAT for what comes from there by the same rules as
for a bridge. Of each guest, user-mode Linux would speak to the switch itself; a namespace cannot, so its eth0 is a
TAP that vde_plug2tap joins to the switch. The switch and the plugs are processes of the lab, known to it by pid.
The switch has its defaults: it learns MACs, floods what it doesn't know, and checks nothing.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from vfr_lab.backends import GATEWAY, Backend, libvirt_nat, wiring
from vfr_lab.lab import wait_until

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

TAP = "vde0"
SWITCH = "vde-switch"
LENGTH = 16


def _plug(guest: Guest) -> str:
    """The name of the guest's plug among the lab's processes."""
    return f"vde-{guest.name}"


class VdeBackend(Backend):
    """Guests on a vde_switch."""

    name = "vde"
    sentence = "vde2: a vde_switch with TAPs, as user-mode Linux and QEMU users have it"
    programs: tuple[str, ...] = ("ip", "nft", "sysctl", "vde_switch", "vde_plug2tap")

    def up(self, lab: Lab) -> None:
        self.down(lab)
        wiring.become_router(lab)
        self._start_switch(lab)
        wait_until(lambda: TAP in wiring.interfaces(lab, "dom0"), f"the TAP of {SWITCH}")
        lab.ip("dom0", "address", "add", f"{GATEWAY}/{LENGTH}", "dev", TAP)
        lab.ip("dom0", "link", "set", TAP, "up")
        for guest in lab.scenario.guests:
            self.attach(lab, guest)

    def down(self, lab: Lab) -> None:
        lab.end(*map(_plug, lab.scenario.guests), SWITCH)
        wiring.unload(lab, libvirt_nat.TABLE)
        wiring.restore_sysctls(lab)

    def attach(self, lab: Lab, guest: Guest) -> None:
        inside = ("ip", "netns", "exec", lab.netns(guest.name))
        lab.spawn(_plug(guest), [*inside, "vde_plug2tap", "-s", self._socket(lab), "eth0"])
        wait_until(lambda: "eth0" in wiring.interfaces(lab, guest.name), f"the TAP of {guest.name}")
        wiring.configure(lab, guest, LENGTH)
        self.reload(lab)

    def detach(self, lab: Lab, guest: Guest) -> None:
        lab.end(_plug(guest))
        self.reload(lab)

    def reload(self, lab: Lab) -> None:
        there = [g for g in lab.scenario.guests if "eth0" in wiring.interfaces(lab, g.name)]
        libvirt_nat.load(lab, TAP, there)

    def vif(self, lab: Lab, guest: Guest) -> str:
        """The host's own TAP: it has no interface per guest."""
        return TAP

    def _start_switch(self, lab: Lab) -> None:
        """Its standard input is its console, and it ends with it: so it gets a FIFO that it has open both ways."""
        console = lab.files / "vde.console"
        console.unlink(missing_ok=True)
        os.mkfifo(console)
        switch = shlex.join(["vde_switch", "-sock", self._socket(lab), "-tap", TAP])
        script = f"exec {switch} 0<>{shlex.quote(str(console))}"
        lab.spawn(SWITCH, ["ip", "netns", "exec", lab.netns("dom0"), "sh", "-c", script])

    @staticmethod
    def _socket(lab: Lab) -> str:
        return str(lab.files / "vde.ctl")
