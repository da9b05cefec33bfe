"""What the backends beside VFR have in common: a guest's cable, the host's sysctls, its nftables table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from vfr_lab.backends import GATEWAY

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest

UPLINK = "eth0"
# Xen's own network. In a /24 of 169.254.1.x the gateway would be the network address, which Linux took for a
# broadcast address until 5.14; in the /16 it is an address like any other.
NETWORK = "169.254.0.0/16"


def vif(guest: Guest) -> str:
    """The name of the host's end of a guest's cable."""
    return f"vif-{guest.name}"


def mac(guest: Guest) -> str:
    """The guest's MAC, made from its address: known before the guest could change it, as in libvirt's XML."""
    return "52:54:00:" + IPv4Address(guest.address).packed[1:].hex(":")


def interfaces(lab: Lab, node: str) -> set[str]:
    """The names of a node's interfaces."""
    return {link["ifname"] for link in json.loads(lab.ip(node, "-j", "link", "show"))}


def attached(lab: Lab) -> list[Guest]:
    """The guests that have a cable into dom0, whether it is up or not."""
    there = interfaces(lab, "dom0")
    return [guest for guest in lab.scenario.guests if vif(guest) in there]


def remove(lab: Lab, node: str, names: Iterable[str]) -> None:
    """Deletes those of the interfaces that are there. The other end of a cable goes with its first."""
    for name in names:
        if name in interfaces(lab, node):
            lab.ip(node, "link", "del", name)


def plug(lab: Lab, guest: Guest, length: int) -> None:
    """A cable from the guest, whose end is up, to dom0, whose end is down until the backend's rules are there."""
    peer = ("peer", "name", "eth0", "netns", lab.netns(guest.name))
    lab.ip("dom0", "link", "add", vif(guest), "type", "veth", *peer)
    configure(lab, guest, length)


def configure(lab: Lab, guest: Guest, length: int) -> None:
    """The guest's own doing: MAC, address with a prefix of this length, default route."""
    lab.ip(guest.name, "link", "set", "eth0", "address", mac(guest))
    lab.ip(guest.name, "address", "add", f"{guest.address}/{length}", "dev", "eth0")
    lab.ip(guest.name, "link", "set", "eth0", "up")
    lab.ip(guest.name, "route", "add", "default", "via", GATEWAY, "dev", "eth0", "onlink")


# sysctls


def set_sysctls(lab: Lab, values: Mapping[str, str]) -> None:
    """Sets sysctls of dom0, and notes first what they were."""
    note = lab.files / "sysctls"
    before = json.loads(note.read_text()) if note.exists() else {}
    for key in values.keys() - before.keys():
        before[key] = lab.exec("dom0", "sysctl", "-n", key).stdout.strip()
    note.write_text(json.dumps(before))
    _write(lab, values)


def restore_sysctls(lab: Lab) -> None:
    """Puts everything back that `set_sysctls` noted."""
    note = lab.files / "sysctls"
    if note.exists():
        _write(lab, json.loads(note.read_text()))
        note.unlink()


def _write(lab: Lab, values: Mapping[str, str]) -> None:
    lab.exec("dom0", "sysctl", "-qw", *(f"{key}={value}" for key, value in values.items()))


def become_router(lab: Lab) -> None:
    """dom0 forwards. Its bridges don't ask its IP rules, as on a Debian that nobody loaded br_netfilter on.

    A kernel that has br_netfilter built in asks them by default; libvirt's wiki says to turn that off.
    """
    values = {"net.ipv4.ip_forward": "1"}
    key = "net.bridge.bridge-nf-call-iptables"
    if lab.exec("dom0", "sysctl", "-n", key, check=False).returncode == 0:
        values[key] = "0"
    set_sysctls(lab, values)


# nftables


def load(lab: Lab, table: str, body: str) -> None:
    """Puts one table in force as a whole, in one transaction, as `nft -f` does after a change. `table` has its family.

    Flushed, not deleted: new base chains with a policy of drop would take packets before their rules are there.
    """
    path = lab.files / "dom0.nft"
    path.write_text(f"table {table} {{\n{body}\n}}\nflush table {table}\ntable {table} {{\n{body}\n}}\n")
    lab.exec("dom0", "nft", "-f", str(path))


def unload(lab: Lab, *tables: str) -> None:
    """Deletes tables, if they are there."""
    for table in tables:
        lab.exec("dom0", "nft", f"add table {table}; delete table {table}")


def dnats(lab: Lab, guests: Iterable[Guest]) -> str:
    """The guests' forwards, as rules of a prerouting chain."""
    to_us = f'iifname "{UPLINK}" ip daddr {lab.scenario.dom0.address}'
    return "\n".join(f"\t\t{to_us} tcp dport {g.forward} dnat to {g.address}:22" for g in guests if g.forward)
