"""The bridge with libvirt's `clean-traffic` on every guest's port: what libvirt's users turn on against spoofing.

The filters are those that clean-traffic refers to, in the order of their priorities, and with what they really
let through: no-mac-spoofing; no-ip-spoofing, which lets UDP from 0.0.0.0 pass for DHCP; all IPv4 to the guest
(allow-incoming-ipv4); no-arp-spoofing, which is no-arp-mac-spoofing and no-arp-ip-spoofing, for what the guest
sends, while all ARP to it passes; qemu-announce-self, which is a RARP frame about the guest itself, and the
ethertype 0x0835 that QEMU once sent by mistake; nothing else (no-other-l2-traffic). libvirt hangs them in ebtables'
nat table, PREROUTING for what a guest sends and POSTROUTING for what it gets: the hooks and priorities used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfr_lab.backends import wiring
from vfr_lab.backends.bridge import BridgeBackend

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

TABLE = "bridge libvirt_nwfilter"


class BridgeFilteredBackend(BridgeBackend):
    """BridgeBackend, with clean-traffic."""

    name = "bridge-filtered"
    sentence = "the bridge, with libvirt's clean-traffic against MAC, ARP and IPv4 spoofing"

    def down(self, lab: Lab) -> None:
        super().down(lab)
        wiring.unload(lab, TABLE)

    def reload(self, lab: Lab) -> None:
        super().reload(lab)
        guests = wiring.attached(lab)
        body = f"""
	chain prerouting {{
		type filter hook prerouting priority dstnat; policy accept;
{"".join(_sends(g) for g in guests)}
	}}
	chain postrouting {{
		type filter hook postrouting priority srcnat; policy accept;
{"".join(_gets(g) for g in guests)}
	}}"""
        wiring.load(lab, TABLE, body)


def _sends(guest: Guest) -> str:
    port, mac = f'iifname "{wiring.vif(guest)}"', wiring.mac(guest)
    return f"""
		{port} ether saddr != {mac} drop
		{port} ip saddr 0.0.0.0 meta l4proto udp accept
		{port} ip saddr {guest.address} accept
		{port} arp saddr ether {mac} arp saddr ip {guest.address} accept
		{port} {_announce(guest)} accept
		{port} ether type 0x0835 accept
		{port} drop"""


def _gets(guest: Guest) -> str:
    port = f'oifname "{wiring.vif(guest)}"'
    return f"""
		{port} ether type {{ ip, arp }} accept
		{port} {_announce(guest)} accept
		{port} drop"""


def _announce(guest: Guest) -> str:
    """A RARP request (0x8035) by broadcast in which both hardware addresses are the guest's, both others zero."""
    own = "0x" + wiring.mac(guest).replace(":", "")
    return (
        "ether daddr ff:ff:ff:ff:ff:ff ether type 0x8035 @nh,48,16 3 "
        f"@nh,64,48 {own} @nh,112,32 0 @nh,144,48 {own} @nh,192,32 0"
    )
