"""Routed veths with a stateful nftables firewall: what careful people build by hand, and the strongest peer.

Every guest has a cable of its own into dom0 and no neighbour on it: a /32, a default route, and dom0 answering
every ARP request (proxy ARP, without its usual delay), as Calico and Xen's vif-route do it. dom0 has the gateway's
address on each cable and one host route per guest; the rest of 169.254.1.0/24 is unreachable, so that nothing
for a guest that is gone leaves by the default route. A guest's source address is checked twice: by strict reverse
path filtering, which ARP passes too, and by nftables before connection tracking. Forwarding is dropped by default:
answers, guests to the LAN, and the published forwards pass; invalid packets, which NAT cannot translate, link-local
destinations on the uplink, and one guest to another do not. To dom0 itself guests can send nothing but answers.
The filter is loaded before a cable comes up. IPv6 has no way through (the table is inet).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfr_lab.backends import GATEWAY, Backend, wiring
from vfr_lab.backends.wiring import NETWORK, UPLINK

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

TABLE = "inet routed"
GUESTS = "169.254.1.0/24"


class RoutedBackend(Backend):
    """One link per guest, and routes."""

    name = "routed"
    sentence = "routed veths with proxy ARP and a stateful nftables firewall, as careful people build it by hand"
    programs: tuple[str, ...] = ("ip", "nft", "sysctl")

    def up(self, lab: Lab) -> None:
        self.down(lab)
        wiring.become_router(lab)
        wiring.set_sysctls(lab, {"net.ipv4.conf.all.rp_filter": "1"})
        lab.ip("dom0", "route", "add", "unreachable", GUESTS)
        self.reload(lab)
        for guest in lab.scenario.guests:
            self.attach(lab, guest)

    def down(self, lab: Lab) -> None:
        """Forwarding ends first: what is still translated, when the routes inside are gone, would leave by the LAN."""
        wiring.restore_sysctls(lab)
        wiring.remove(lab, "dom0", map(wiring.vif, lab.scenario.guests))
        if lab.ip("dom0", "route", "show", "type", "unreachable", "exact", GUESTS):
            lab.ip("dom0", "route", "del", "unreachable", GUESTS)
        wiring.unload(lab, TABLE)

    def attach(self, lab: Lab, guest: Guest) -> None:
        vif = wiring.vif(guest)
        wiring.plug(lab, guest, 32)
        self.reload(lab)
        lab.exec("dom0", "sysctl", "-qw", f"net.ipv4.conf.{vif}.proxy_arp=1", f"net.ipv4.neigh.{vif}.proxy_delay=0")
        lab.ip("dom0", "address", "add", f"{GATEWAY}/32", "dev", vif)
        lab.ip("dom0", "link", "set", vif, "up")
        lab.ip("dom0", "route", "add", guest.address, "dev", vif, "src", GATEWAY)

    def detach(self, lab: Lab, guest: Guest) -> None:
        """The cable goes, its route and address with it, then its rules. Connection tracking is left alone."""
        wiring.remove(lab, "dom0", [wiring.vif(guest)])
        self.reload(lab)

    def reload(self, lab: Lab) -> None:
        guests = wiring.attached(lab)
        sources = "\n".join(f'\t\tiifname "{wiring.vif(g)}" ip saddr != {g.address} drop' for g in guests)
        body = f"""
	chain sources {{
		type filter hook prerouting priority raw; policy accept;
{sources}
		iifname "{UPLINK}" ip saddr {NETWORK} drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "vif-*" ct state established,related accept
		iifname "vif-*" drop
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		ct state established,related accept
		oifname "{UPLINK}" ip daddr {NETWORK} drop
		iifname "vif-*" oifname "{UPLINK}" accept
		iifname "{UPLINK}" oifname "vif-*" ct status dnat accept
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
{wiring.dnats(lab, guests)}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{UPLINK}" ip saddr {GUESTS} masquerade
	}}"""
        wiring.load(lab, TABLE, body)

    def vif(self, lab: Lab, guest: Guest) -> str:
        return wiring.vif(guest)
