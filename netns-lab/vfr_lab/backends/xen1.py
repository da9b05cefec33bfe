"""Xen 1.2: domains behind its virtual firewall-router, and its script xen_nat_enable in domain 0.

In Xen 1.2 the wire, domain 0 and all domains met inside Xen, which handed on each frame by rules; domain 0 had one
interface, eth0, towards all of them. Here a bridge takes Xen's place: it has the wire and the domains' veths for
ports, and is itself domain 0's one interface, with eth0's MAC and addresses, as vif-bridge did it afterwards.

`_script` is the script, step by step and in its order, with xenbr0 where it said eth0, and Debian's iptables.
It wipes whatever rules the tables filter and nat have; it had no way back, so `down` deletes both tables. Its ten
forwards are hard coded, for domains there are and domains there are not.

`_router` is what Xen did to frames by the rules that its tools wrote for each domain, in the table bridge vfr.
What a domain sends: IPv4 and ARP only. To domain 0 and to the wire, only with its own address for the source.
To another domain with any, since that domain's inbound rule said `src=ANY` and no mask. Nothing with a link-local
source goes on the wire, from domain 0 neither. What a domain gets: only what is for its own address, from
anywhere. Xen stamped source MACs and gave all domains the card's own; a bridge needs them to find a port, so here
each domain has one of its own and a frame with any other is dropped. Domains found each other's and the gateway's
MAC by ARP, as here. When a domain died in Xen 1.2 its rules stayed behind; here they go with its interface.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vfr_lab.backends import GATEWAY, Backend, wiring
from vfr_lab.backends.wiring import NETWORK, UPLINK

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

BRIDGE = "xenbr0"
ROUTER = "bridge vfr"


class Xen1Backend(Backend):
    """Xen 1.2's VFR as a bridge, and xen_nat_enable."""

    name = "xen1"
    sentence = "Xen 1.2: its VFR's rules as a filtering bridge, and its own xen_nat_enable script"
    programs: tuple[str, ...] = ("ip", "iptables", "nft", "sysctl")

    def up(self, lab: Lab) -> None:
        self.down(lab)
        self._take_the_wire(lab)
        self.reload(lab)
        for guest in lab.scenario.guests:
            self.attach(lab, guest)

    def down(self, lab: Lab) -> None:
        wiring.remove(lab, "dom0", map(wiring.vif, lab.scenario.guests))
        self._give_the_wire_back(lab)
        wiring.unload(lab, "ip filter", "ip nat", ROUTER)
        wiring.restore_sysctls(lab)

    def attach(self, lab: Lab, guest: Guest) -> None:
        wiring.plug(lab, guest, 16)
        self._router(lab)
        lab.ip("dom0", "link", "set", wiring.vif(guest), "master", BRIDGE, "up")

    def detach(self, lab: Lab, guest: Guest) -> None:
        """The domain is gone. The script's forward to its address is not."""
        wiring.remove(lab, "dom0", [wiring.vif(guest)])
        self._router(lab)

    def reload(self, lab: Lab) -> None:
        self._router(lab)
        self._script(lab)

    def vif(self, lab: Lab, guest: Guest) -> str:
        return wiring.vif(guest)

    def _take_the_wire(self, lab: Lab) -> None:
        wire = json.loads(lab.ip("dom0", "-j", "link", "show", "dev", UPLINK))[0]["address"]
        lab.ip("dom0", "link", "add", BRIDGE, "address", wire, "type", "bridge")
        lab.ip("dom0", "address", "flush", "dev", UPLINK)
        lab.ip("dom0", "link", "set", UPLINK, "master", BRIDGE)
        self._settle(lab, BRIDGE)

    def _give_the_wire_back(self, lab: Lab) -> None:
        if BRIDGE in wiring.interfaces(lab, "dom0"):
            lab.ip("dom0", "link", "del", BRIDGE)
        if not lab.ip("dom0", "address", "show", "dev", UPLINK, "to", lab.scenario.dom0.address):
            self._settle(lab, UPLINK)

    @staticmethod
    def _settle(lab: Lab, interface: str) -> None:
        """Domain 0's own address and default route, on this interface."""
        dom0 = lab.scenario.dom0
        lab.ip("dom0", "address", "add", f"{dom0.address}/24", "dev", interface)
        lab.ip("dom0", "link", "set", interface, "up")
        if dom0.gateway:
            lab.ip("dom0", "route", "replace", "default", "via", dom0.gateway, "dev", interface)

    @staticmethod
    def _script(lab: Lab) -> None:
        def iptables(rule: str) -> None:
            lab.exec("dom0", "iptables", "-t", *rule.split())

        lab.ip("dom0", "link", "set", BRIDGE, "up")
        # What `ifconfig eth0:xen 169.254.1.0 up` makes of it: a class B network.
        alias = (f"{GATEWAY}/16", "broadcast", "+", "label", f"{BRIDGE}:xen", "dev", BRIDGE)
        lab.ip("dom0", "address", "replace", *alias)
        for flush in ("filter -F", "nat -F", "filter -X", "nat -X"):
            iptables(flush)
        iptables("filter -P FORWARD DROP")
        through = f"filter -A FORWARD -i {BRIDGE} -o {BRIDGE}"
        iptables(f"{through} -s {NETWORK} -j ACCEPT")
        iptables(f"{through} -d {NETWORK} -m state --state NEW,ESTABLISHED,RELATED -j ACCEPT")
        iptables(f"nat -A POSTROUTING -o {BRIDGE} -s {GATEWAY} -j RETURN")
        iptables(f"nat -A POSTROUTING -o {BRIDGE} -s {NETWORK} -j MASQUERADE")
        wiring.become_router(lab)
        for number in range(1, 11):
            to = f"169.254.1.{number}:22"
            iptables(f"nat -A PREROUTING -i {BRIDGE} -p tcp --dport {2200 + number} -j DNAT --to {to}")

    @staticmethod
    def _router(lab: Lab) -> None:
        guests = wiring.attached(lab)
        body = f"""
	chain from_domains {{
		type filter hook prerouting priority filter; policy accept;
{"".join(_sends(g) for g in guests)}
	}}
	chain to_domain_0 {{
		type filter hook input priority filter; policy accept;
{"".join(_owns(g) for g in guests)}
	}}
	chain to_wire_and_domains {{
		type filter hook postrouting priority filter; policy accept;
		oifname "{UPLINK}" ip saddr {NETWORK} drop
		oifname "{UPLINK}" arp saddr ip {NETWORK} drop
{"".join(_gets(g) for g in guests)}
	}}
	chain to_wire {{
		type filter hook forward priority filter; policy accept;
		oifname "{UPLINK}" jump own_address
	}}
	chain own_address {{
{"".join(_owns(g) for g in guests)}
	}}"""
        wiring.load(lab, ROUTER, body)


def _sends(guest: Guest) -> str:
    port = f'iifname "{wiring.vif(guest)}"'
    return f"""
		{port} ether saddr != {wiring.mac(guest)} drop
		{port} ether type != {{ ip, arp }} drop"""


def _owns(guest: Guest) -> str:
    port = f'iifname "{wiring.vif(guest)}"'
    return f"""
		{port} ip saddr != {guest.address} drop
		{port} arp saddr ip != {guest.address} drop"""


def _gets(guest: Guest) -> str:
    port = f'oifname "{wiring.vif(guest)}"'
    return f"""
		{port} ip daddr {guest.address} accept
		{port} arp daddr ip {guest.address} accept
		{port} drop"""
