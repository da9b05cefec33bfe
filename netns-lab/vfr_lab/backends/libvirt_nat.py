"""The rules that libvirt's NAT networks have, for any interface that guests are behind.

A rendering of the table that libvirt's nftables driver makes for `<forward mode='nat'/>`: guests speak among
themselves and outwards, answers come in, the rest is rejected; the host itself is open to guests. DHCP and DNS
are left out, since the lab has neither. libvirt has no forwards of its own: they are done as its wiki tells, by a
DNAT and an accept of the guest's port, which are also the two rules that Docker makes for `-p`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfr_lab.backends import wiring
from vfr_lab.backends.wiring import NETWORK

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

TABLE = "ip libvirt_network"


def load(lab: Lab, interface: str, guests: Sequence[Guest]) -> None:
    """Puts the rules in force for these guests, behind this interface of dom0."""
    accepts = "\n".join(
        f'\t\toifname "{interface}" ip daddr {g.address} tcp dport 22 accept' for g in guests if g.forward
    )
    body = f"""
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{interface}" oifname "{interface}" accept
{accepts}
		oifname "{interface}" ip daddr {NETWORK} ct state related,established accept
		oifname "{interface}" reject
		iifname "{interface}" ip saddr {NETWORK} accept
		iifname "{interface}" reject
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
{wiring.dnats(lab, guests)}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {NETWORK} ip daddr 224.0.0.0/24 return
		ip saddr {NETWORK} ip daddr 255.255.255.255 return
		ip saddr {NETWORK} ip daddr != {NETWORK} meta l4proto {{ tcp, udp }} masquerade to :1024-65535
		ip saddr {NETWORK} ip daddr != {NETWORK} masquerade
	}}"""
    wiring.load(lab, TABLE, body)
