"""`routed` with two things that many hosts have, and that its author knew to avoid: a strawman, never judged.

It shows of attacks that get nothing from the other backends that they would from somebody.

1. ICMP redirects are heeded. Linux's default, which setting `ip_forward` turns off; where forwarding is switched on
   interface by interface, as systemd-networkd does it, the default stays in force.
2. Openings from the LAN are limited to one a second, all together: "Syn-flood protection" in the Linux 2.4 Packet
   Filtering HOWTO, and in many guides since. A flood then keeps everybody else out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfr_lab.backends import wiring
from vfr_lab.backends.routed import RoutedBackend
from vfr_lab.backends.wiring import UPLINK

if TYPE_CHECKING:
    from vfr_lab.lab import Lab

TABLE = "inet lax"


class RoutedLaxBackend(RoutedBackend):
    """RoutedBackend, spoiled."""

    name = "routed-lax"
    sentence = (
        "routed, with redirects heeded and a limit of openings from a HOWTO: a strawman, to show that attacks bite"
    )
    judged = False

    def up(self, lab: Lab) -> None:
        super().up(lab)
        lab.exec("dom0", "sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=1")
        body = f"""
	chain syn_flood {{
		type filter hook forward priority filter - 1; policy accept;
		iifname "{UPLINK}" tcp flags & (fin|syn|rst|ack) == syn limit rate over 1/second burst 5 packets drop
	}}"""
        wiring.load(lab, TABLE, body)

    def down(self, lab: Lab) -> None:
        """Turning `ip_forward` off again has redirects heeded again, as before."""
        wiring.unload(lab, TABLE)
        super().down(lab)
