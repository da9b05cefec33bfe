"""Interfaces, addresses and routes, by netlink."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vfr.errors import KernelError
from vfr.instance import NETNS

IFF_UP, IFF_NOARP = 0x1, 0x80
_SCOPE_LINK, _ONLINK = 253, 4


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `master` is the index of the bridge or bond it is in, 0 for none; `xdp`: it has an XDP program."""

    index: int
    name: str
    up: bool
    noarp: bool
    mac: str
    mtu: int
    kind: str
    alias: str
    master: int
    xdp: bool = False


@contextmanager
def _netlink(operation: str, netns: str | None = None) -> Iterator[Any]:
    try:
        with IPRoute(netns=netns) if netns else IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        raise KernelError(operation, error.code) from None


def _link(message: Any) -> Link:
    info, xdp = message.get_attr("IFLA_LINKINFO"), message.get_attr("IFLA_XDP")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        up=bool(message["flags"] & IFF_UP),
        noarp=bool(message["flags"] & IFF_NOARP),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        master=message.get_attr("IFLA_MASTER") or 0,
        xdp=bool(xdp and xdp.get_attr("IFLA_XDP_ATTACHED")),
    )


def links(netns: str | None = None) -> dict[str, Link]:
    """All interfaces by name."""
    with _netlink("listing interfaces", netns) as ipr:
        return {link.name: link for link in map(_link, ipr.get_links())}


def addresses() -> list[tuple[int, IPv4Interface]]:
    """(interface index, address with its subnet) of every IPv4 address here."""
    with _netlink("listing addresses") as ipr:
        return [
            (
                a["index"],
                IPv4Interface(f"{a.get_attr('IFA_LOCAL') or a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"),
            )
            for a in ipr.get_addr(family=2)
        ]


def default_route_interfaces() -> list[int]:
    """Indexes of the interfaces that IPv4 default routes lead to, the preferred one first."""
    with _netlink("listing routes") as ipr:
        routes = [r for r in ipr.get_default_routes(family=2) if r.get_attr("RTA_OIF")]
        routes.sort(key=lambda r: r.get_attr("RTA_PRIORITY") or 0)
        return [r.get_attr("RTA_OIF") for r in routes]


def way_to(address: IPv4Address) -> int | None:
    """Index of the interface by which the host would send there; None if it would not."""
    try:
        with IPRoute() as ipr:
            return next((int(r.get_attr("RTA_OIF")) for r in ipr.route("get", dst=str(address))), None)
    except NetlinkError as error:
        if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise KernelError(f"asking for the way to {address}", error.code) from None


def routes_of(index: int) -> dict[IPv4Network, IPv4Address | None]:
    """The main table's routes out of an interface: destination -> preferred source."""
    with _netlink("listing routes") as ipr:
        found = {}
        for r in ipr.get_routes(family=2, oif=index, table=254):
            source = r.get_attr("RTA_PREFSRC")
            net = IPv4Network(f"{r.get_attr('RTA_DST') or '0.0.0.0'}/{r['dst_len']}")
            found[net] = IPv4Address(source) if source else None
        return found


def make_veth(
    name: str, peer: str, netns: str | None, mac: str, peer_mac: str, mtu: int, path: Path | None = None
) -> int:
    """A veth pair, both ends down, the peer in a namespace by name or by path (None: here). Its index here."""
    there: dict[str, object] = {"ifname": peer, "address": peer_mac, "mtu": mtu}
    if netns:
        there["net_ns_fd"] = str(NETNS / netns)
    elif path:
        there["net_ns_fd"] = str(path)
    with _netlink(f"making the interface {name} and its other end {peer}") as ipr:
        ipr.link("add", ifname=name, kind="veth", address=mac, mtu=mtu, peer=there)
        return int(ipr.link_lookup(ifname=name)[0])


def make_tap(name: str) -> int:
    """A persistent TAP. Its index."""
    with _netlink(f"making the TAP {name}") as ipr:
        ipr.link("add", ifname=name, kind="tuntap", mode="tap")
        return int(ipr.link_lookup(ifname=name)[0])


def set_link(index: int, **what: object) -> None:
    """Changes an interface: state="up", address, mtu, ifalias, ..."""
    with _netlink(f"setting {', '.join(what)} of interface {index}") as ipr:
        ipr.link("set", index=index, **what)


def set_noarp(index: int, on: bool) -> None:
    """Whether the host's stack does ARP on the interface."""
    set_link(index, flags=IFF_NOARP if on else 0, change=IFF_NOARP)


def delete_link(name: str) -> None:
    """Removes an interface; fine if it is gone already."""
    with _netlink(f"removing the interface {name}") as ipr:
        for index in ipr.link_lookup(ifname=name):
            try:
                ipr.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise


def _ignoring_existing(call: Any, *args: object, **kwargs: object) -> None:
    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def add_address(index: int, address: IPv4Interface) -> None:
    """Gives an interface an address."""
    with _netlink(f"giving interface {index} the address {address}") as ipr:
        _ignoring_existing(ipr.addr, "add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)


def replace_route(index: int, net: IPv4Network, source: IPv4Address) -> None:
    """A route straight out of an interface, with a preferred source address."""
    with _netlink(f"routing {net}") as ipr:
        ipr.route("replace", dst=str(net), oif=index, prefsrc=str(source), scope=_SCOPE_LINK)


def delete_route(index: int, net: IPv4Network) -> None:
    """Removes such a route."""
    with _netlink(f"removing the route to {net}") as ipr:
        ipr.route("del", dst=str(net), oif=index, scope=_SCOPE_LINK)


def configure_guest(netns: str, name: str, address: IPv4Address, gateway: IPv4Address) -> None:
    """Inside a namespace: the address, the way out through the gateway, and up."""
    with _netlink(f"configuring {name} in {netns}", netns) as ipr:
        index = ipr.link_lookup(ifname=name)[0]
        _ignoring_existing(ipr.addr, "add", index=index, address=str(address), prefixlen=32)
        ipr.link("set", index=index, state="up")
        ipr.route("replace", dst=f"{gateway}/32", oif=index, scope=_SCOPE_LINK)
        ipr.route("replace", dst="0.0.0.0/0", gateway=str(gateway), oif=index)


def configure_return(netns: str, name: str, gateway: str, mtu: int) -> None:
    """Inside a namespace given by its path: up, and everything that comes goes back, at this MTU."""
    with _netlink(f"configuring {name} of the sorter", netns) as ipr:
        ipr.link("set", index=1, state="up")  # lo: without it the kernel has no table to judge a gateway by
        index = ipr.link_lookup(ifname=name)[0]
        ipr.link("set", index=index, flags=IFF_NOARP, change=IFF_NOARP)
        ipr.link("set", index=index, state="up")
        ipr.route("replace", dst="0.0.0.0/0", gateway=gateway, oif=index, flags=_ONLINK, metrics={"mtu": mtu})


def set_conf(interface: str, name: str, value: int, family: str = "ipv4") -> None:
    """net.FAMILY.conf.INTERFACE.NAME, on an interface of our own."""
    path = Path("/proc/sys/net") / family / "conf" / interface / name
    if family == "ipv6" and not path.exists():
        return  # a kernel without IPv6 needs no telling
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        raise KernelError(f"setting {path}", error.errno or errno.EIO) from None


def get_conf(interface: str, name: str, family: str = "ipv4") -> int | None:
    """The same, read; None if there is no such setting."""
    path = Path("/proc/sys/net") / family / "conf" / interface / name
    return int(path.read_text()) if path.exists() else None
