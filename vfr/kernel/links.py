"""Interfaces, addresses and routes, by netlink."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from vfr.errors import KernelError
from vfr.instance import NETNS
from vfr.kernel import rtnl
from vfr.kernel.rtnl import Rtnl, attr, nest

IFF_UP, IFF_NOARP = 0x1, 0x80
_SCOPE_LINK, _SCOPE_UNIVERSE, _ONLINK = 253, 0, 4
_MAIN, _LONGEST = 254, 15
# Attributes of interfaces, addresses and routes, by their numbers in the kernel's if_link.h and others.
_ADDRESS, _NAME, _MTU, _MASTER, _KINDS, _ALIAS, _GROUP, _NET_NS_FD, _EXT_MASK = 1, 3, 4, 10, 18, 20, 27, 28, 29
_TX_QUEUES, _RX_QUEUES, _XDP, _XDP_ATTACHED, _KIND, _KIND_DATA, _VETH_PEER = 31, 32, 43, 2, 1, 2, 1
_PEER, _BY_FAMILY, _INET_CONF = 5, 26, 1
_CONF = {"forwarding": 1, "accept_redirects": 4, "rp_filter": 8}
_AF_INET = 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_DST, _OIF, _GATEWAY, _PREFSRC = 1, 4, 5, 7
_SKIP_STATS = 8
_INGRESS, _FILTER_OPTIONS, _BPF_ID = 0xFFFFFFF2, 2, 11  # the clsact hook's way in, and attributes of its filters


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `master` is the index of the bridge or bond it is in, 0 for none; `xdp`: it has an XDP program;
    `peer`: the index of a veth's other end, in its own namespace."""

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
    group: int = 0
    peer: int = 0


@contextmanager
def _netlink(operation: str, netns: str | None = None) -> Iterator[Any]:
    """For what is asked for seldom: its import alone takes a tenth of a second."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute(netns=netns) if netns else IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        raise KernelError(operation, error.code) from None


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "little")


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _link(raw: bytes) -> Link:
    index, flags, said = rtnl.of_link(raw)
    return Link(
        index=index,
        name=_text(said[_NAME]),
        up=bool(flags & IFF_UP),
        noarp=bool(flags & IFF_NOARP),
        mac=said.get(_ADDRESS, b"").hex(":"),
        mtu=_number(said.get(_MTU)),
        kind=_text(rtnl.attrs(said.get(_KINDS, b"")).get(_KIND)),
        alias=_text(said.get(_ALIAS)),
        master=_number(said.get(_MASTER)),
        xdp=_number(rtnl.attrs(said.get(_XDP, b"")).get(_XDP_ATTACHED)) != 0,
        group=_number(said.get(_GROUP)),
        peer=_number(said.get(_PEER)),
    )


def links(netns: str | None = None) -> dict[str, Link]:
    """All interfaces by name."""
    with Rtnl("listing interfaces", netns) as kernel:
        rows = kernel.dump(rtnl.GETLINK, rtnl.link(attr(_EXT_MASK, _SKIP_STATS)))
    return {link.name: link for link in map(_link, rows)}


def link(name: str, netns: str | None = None) -> Link | None:
    """One interface, None if there is none of the name. Another name that `ip link property` gave it does not count."""
    with Rtnl(f"looking for the interface {name}", netns) as kernel:
        return ask(kernel, name)


def ask(kernel: Rtnl, name: str) -> Link | None:
    """The same, in a conversation that goes on."""
    if not 1 <= len(name) <= _LONGEST:
        return None
    raw = kernel.get(rtnl.GETLINK, rtnl.link(attr(_NAME, name), attr(_EXT_MASK, _SKIP_STATS)))
    found = _link(raw) if raw is not None else None
    return found if found and found.name == name else None


def there(name: str) -> Link:
    """One that is there. KernelError if it is not."""
    found = link(name)
    if found is None:
        raise KernelError(f"looking for the interface {name}", errno.ENODEV)
    return found


def addresses() -> list[tuple[int, IPv4Interface]]:
    """(interface index, address with its subnet) of every IPv4 address here."""
    with Rtnl("listing addresses") as kernel:
        rows = [rtnl.of_address(raw) for raw in kernel.dump(rtnl.GETADDR, rtnl.address(0, 0))]
    return [
        (index, IPv4Interface((said.get(_IFA_LOCAL) or said[_IFA_ADDRESS], prefix))) for index, prefix, said in rows
    ]


def first_filter(index: int) -> int:
    """The number of the program that runs first on the clsact hook for what comes in; 0 if there is no filter, or the
    first runs none."""
    with Rtnl("listing filters") as kernel:
        found = map(rtnl.of_filter, kernel.dump(rtnl.GETFILTER, rtnl.filters_of(index, _INGRESS)))
        first = next((said for handle, said in found if handle), {})
    return _number(rtnl.attrs(first.get(_FILTER_OPTIONS, b"")).get(_BPF_ID))


def default_route_interfaces() -> list[int]:
    """Indexes of the interfaces that IPv4 default routes lead to, the preferred one first."""
    with _netlink("listing routes") as ipr:
        routes = [r for r in ipr.get_default_routes(family=2) if r.get_attr("RTA_OIF")]
        routes.sort(key=lambda r: r.get_attr("RTA_PRIORITY") or 0)
        return [r.get_attr("RTA_OIF") for r in routes]


def way_to(address: IPv4Address) -> int | None:
    """Index of the interface by which the host would send there; None if it would not."""
    try:
        with _netlink(f"asking for the way to {address}") as ipr:
            return next((int(r.get_attr("RTA_OIF")) for r in ipr.route("get", dst=str(address))), None)
    except KernelError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise


def routes_of(index: int) -> dict[IPv4Network, IPv4Address | None]:
    """The main table's routes out of an interface: destination -> preferred source."""
    with Rtnl("listing routes") as kernel:
        rows = [rtnl.of_route(raw) for raw in kernel.dump(rtnl.GETROUTE, rtnl.route(0, 0, kind=0, protocol=0))]
    found = {}
    for table, prefix, said in rows:
        if table == _MAIN and _number(said.get(_OIF)) == index:
            source = said.get(_PREFSRC)
            found[IPv4Network((said.get(_DST, bytes(4)), prefix))] = IPv4Address(source) if source else None
    return found


def _mac(text: str) -> bytes:
    return attr(_ADDRESS, bytes.fromhex(text.replace(":", "")))


def veth(
    name: str, peer: str, mac: str, peer_mac: str, mtu: int, group: int = 0, there: int | None = None
) -> tuple[int, int, bytes]:
    """The request for a veth pair, both ends down, the peer in the namespace whose descriptor `there` is, else here. One
    queue each way: more are for XDP, and on a host of many CPUs an idle pair's would take hundreds of kilobytes."""
    one = (attr(_MTU, mtu), attr(_TX_QUEUES, 1), attr(_RX_QUEUES, 1))
    other = rtnl.link(
        attr(_NAME, peer), _mac(peer_mac), *one, *([attr(_NET_NS_FD, there)] if there is not None else [])
    )
    kind = nest(_KINDS, attr(_KIND, "veth"), nest(_KIND_DATA, nest(_VETH_PEER, other)))
    body = rtnl.link(attr(_NAME, name), _mac(mac), *one, attr(_GROUP, group), kind)
    return rtnl.NEWLINK, rtnl.CREATE | rtnl.EXCL, body


def make_veth(
    name: str, peer: str, netns: str | None, mac: str, peer_mac: str, mtu: int, path: Path | None = None, group: int = 0
) -> int:
    """A veth pair, both ends down, the peer in a namespace by name or by path (None: here). Its index here."""
    operation = f"making the interface {name} and its other end {peer}"
    where = NETNS / netns if netns else path
    try:
        handle = os.open(where, os.O_RDONLY | os.O_CLOEXEC) if where else None
    except OSError as error:
        raise KernelError(operation, error.errno or errno.EIO) from None
    try:
        with Rtnl(operation) as kernel:
            kernel.do(*veth(name, peer, mac, peer_mac, mtu, group, handle))
    finally:
        if handle is not None:
            os.close(handle)
    return there(name).index


def make_tap(name: str) -> int:
    """A persistent TAP. Its index."""
    with _netlink(f"making the TAP {name}") as ipr:
        ipr.link("add", ifname=name, kind="tuntap", mode="tap")
    return there(name).index


def changed(
    index: int,
    *,
    state: str | None = None,
    noarp: bool | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    address: str | None = None,
    group: int | None = None,
    conf: Mapping[str, int] | None = None,
) -> tuple[int, int, bytes]:
    """The request to change an interface: state "up" or "down", MTU in bytes, `conf` some of net.ipv4.conf's."""
    flags = change = 0
    if state is not None:
        flags, change = flags | IFF_UP * (state == "up"), change | IFF_UP
    if noarp is not None:
        flags, change = flags | IFF_NOARP * noarp, change | IFF_NOARP
    parts = [attr(_MTU, mtu)] if mtu is not None else []
    parts += [attr(_ALIAS, alias.encode())] if alias is not None else []
    parts += [_mac(address)] if address is not None else []
    parts += [attr(_GROUP, group)] if group is not None else []
    if conf:
        said = nest(_INET_CONF, *(attr(_CONF[name], value) for name, value in conf.items()))
        parts.append(nest(_BY_FAMILY, nest(_AF_INET, said)))
    return rtnl.SETLINK, 0, rtnl.link(*parts, index=index, flags=flags, change=change)


def set_link(index: int, **what: Any) -> None:
    """Changes an interface, as `changed` has it."""
    with Rtnl(f"setting {', '.join(what)} of interface {index}") as kernel:
        kernel.do(*changed(index, **what))


def delete_link(name: str) -> None:
    """Removes an interface; fine if it is gone already."""
    with Rtnl(f"removing the interface {name}") as kernel:
        kernel.do(rtnl.DELLINK, 0, rtnl.link(attr(_NAME, name)), fine=(errno.ENODEV,))


def no_group(group: int) -> tuple[int, int, bytes]:
    """The request to remove all interfaces of a group at once."""
    return rtnl.DELLINK, 0, rtnl.link(attr(_GROUP, group))


def _new_address(index: int, address: IPv4Interface) -> tuple[int, int, bytes]:
    own = address.ip.packed
    body = rtnl.address(index, address.network.prefixlen, attr(_IFA_LOCAL, own), attr(_IFA_ADDRESS, own))
    return rtnl.NEWADDR, rtnl.CREATE | rtnl.EXCL, body


def add_address(index: int, address: IPv4Interface) -> None:
    """Gives an interface an address."""
    with Rtnl(f"giving interface {index} the address {address}") as kernel:
        kernel.do(*_new_address(index, address), fine=(errno.EEXIST,))


def route_out(
    index: int, net: IPv4Network, source: IPv4Address | None = None, gateway: IPv4Address | None = None
) -> tuple[int, int, bytes]:
    """The request for a route out of an interface: straight, or by a gateway."""
    parts = [attr(_DST, net.network_address.packed)] if net.prefixlen else []
    parts += [attr(_PREFSRC, source.packed)] if source else []
    parts += [attr(_GATEWAY, gateway.packed)] if gateway else []
    scope = _SCOPE_UNIVERSE if gateway else _SCOPE_LINK
    return rtnl.NEWROUTE, rtnl.CREATE | rtnl.REPLACE, rtnl.route(net.prefixlen, scope, *parts, attr(_OIF, index))


def no_route(index: int, net: IPv4Network) -> tuple[int, int, bytes]:
    """The request to remove a route straight out of an interface."""
    body = rtnl.route(net.prefixlen, _SCOPE_LINK, attr(_DST, net.network_address.packed), attr(_OIF, index), protocol=0)
    return rtnl.DELROUTE, 0, body


def replace_route(index: int, net: IPv4Network, source: IPv4Address) -> None:
    """A route straight out of an interface, with a preferred source address."""
    with Rtnl(f"routing {net}") as kernel:
        kernel.do(*route_out(index, net, source))


def delete_route(index: int, net: IPv4Network) -> None:
    """Removes such a route."""
    with Rtnl(f"removing the route to {net}") as kernel:
        kernel.do(*no_route(index, net))


def guest_requests(index: int, address: IPv4Address, gateway: IPv4Address) -> list[tuple[int, int, bytes]]:
    """The requests inside a guest's namespace: the address, up, and the way out through the gateway."""
    return [
        _new_address(index, IPv4Interface(address)),
        changed(index, state="up"),
        route_out(index, IPv4Network(gateway)),
        route_out(index, IPv4Network("0.0.0.0/0"), gateway=gateway),
    ]


def configure_guest(netns: str, name: str, address: IPv4Address, gateway: IPv4Address) -> None:
    """Inside a namespace: the address, the way out through the gateway, and up."""
    operation = f"configuring {name} in {netns}"
    with Rtnl(operation, netns) as kernel:
        raw = kernel.get(rtnl.GETLINK, rtnl.link(attr(_NAME, name)))
        if raw is None:
            raise KernelError(operation, errno.ENODEV)
        for number in kernel.ask_each(guest_requests(_link(raw).index, address, gateway)):
            if number not in (0, errno.EEXIST):
                raise KernelError(operation, number)


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


def speed(name: str) -> int:
    """What an interface says that it takes, in bits a second. 0 for one without a device behind it, as a veth, whose word
    means nothing; and for one that does not know, or has no carrier."""
    device = Path("/sys/class/net") / name
    if not (device / "device").exists():
        return 0
    try:
        mbit = int((device / "speed").read_text())
    except OSError:
        return 0
    return max(mbit, 0) * 10**6
