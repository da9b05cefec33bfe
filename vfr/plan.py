"""From what is wanted and what is there to what is to be done. Pure: no kernel, no files.

The order is the safety: the guard and the fastpath before the first interface, the rules before who takes a slot
that others had, an interface's filter before it goes up, and on the way out the interface first and what it was
filtered by last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

from vfr.kernel.fastpath import Config, DomainRow, Forward
from vfr.kernel.guard import Guard, is_wanted
from vfr.settings import Dhcp, Limits
from vfr.view import GuestWords

GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
DOM0_ID, DOM0_DEVICE, DOM0_VIF = 1, "vfr0", "vif0"
SORTER = "vfr-sorter"


@dataclass(frozen=True, slots=True)
class Vif:
    """A domain's interface as it is to be. `device` is where packets are handed over: for domain 0 the
    other end. `home` tells its namespace from a former one of the same name (instance.netns_inode). `there`
    is False if its namespace or device is gone, and it can't be made now."""

    id: int
    kind: str
    interface: str
    device: str
    netns: str | None
    address: IPv4Address
    mac: str
    slot: int
    port_low: int
    port_count: int
    limits: Limits
    there: bool = True
    home: int | None = None
    guest: GuestWords = field(default_factory=GuestWords)
    dhcp: Dhcp | None = None


@dataclass(frozen=True, slots=True)
class Uplink:
    """The interface to the LAN. `rate` is what it takes in bits a second, 0 if that is not known or not to be shared."""

    name: str
    index: int
    mtu: int
    address: IPv4Address
    lan: IPv4Network
    rate: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The whole router. No VIFs at all means that there is to be none."""

    vifs: tuple[Vif, ...]
    config: Config
    mtu: int
    guard: Guard
    digest: str
    uplink: Uplink | None = None
    forwards: frozenset[Forward] = frozenset()
    routes: frozenset[IPv4Network] = frozenset()
    away: Mapping[IPv4Address, int] = field(default_factory=dict)  # who is saved: what is sent there is dropped

    def smallest_mtu(self, actual: Actual) -> int:
        """What the sorter cuts to, since it knows no destinations: it fits everywhere."""
        return min(
            [self.mtu, *(row.mtu for row in actual.domains.values()), *([self.uplink.mtu] if self.uplink else [])]
        )


@dataclass(frozen=True, slots=True)
class Port:
    """An interface as it is. `owner` is the id in its alias, None if it is not ours; `home` the namespace
    that its other end was put into."""

    index: int
    up: bool
    mtu: int
    hardened: bool
    owner: int | None
    attached: str | None = None
    home: int | None = None


@dataclass(frozen=True, slots=True)
class Actual:
    """What is there. Everything below `loaded` is empty while it is False."""

    mounted: bool = False
    loaded: bool = False
    ports: Mapping[str, Port] = field(default_factory=dict)
    config: Config | None = None
    domains: Mapping[int, DomainRow] = field(default_factory=dict)
    vifs: Mapping[int, int] = field(default_factory=dict)
    addresses: Mapping[IPv4Address, int] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    tables: frozenset[int] = frozenset()
    forwards: frozenset[Forward] = frozenset()
    pins: frozenset[str] = frozenset()
    digest: str | None = None
    guard: str | None = None
    routes: frozenset[IPv4Network] = frozenset()
    localnet: bool = False
    sorter: tuple[int, int] | None = None  # of the sorter, if it is whole: interface index, and to what MTU it cuts


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do: a sentence, and the executor's verb with its arguments."""

    text: str
    verb: str
    args: tuple[object, ...] = ()


def is_up(vif: Vif, actual: Actual) -> bool:
    """Whether a VIF is as it is to be, filter and all."""
    port, device = actual.ports.get(vif.interface), actual.ports.get(vif.device)
    row = actual.domains.get(vif.slot)
    return (
        port is not None
        and device is not None
        and row is not None
        and (port.owner, port.home, port.up, port.hardened) == (vif.id, vif.home, True, True)
        and port.attached is not None
        and vif.interface in actual.pins
        and (row.generation, row.address, row.mac) == (vif.id, vif.address, vif.mac)
        and (row.guest, row.dhcp) == (vif.guest, vif.dhcp)
        and (row.ifindex, row.mtu, row.port_low, row.port_count, row.limits)
        == (device.index, device.mtu, vif.port_low, vif.port_count, vif.limits)
        and actual.vifs.get(port.index) == vif.slot
        and actual.addresses.get(vif.address) == vif.slot
        and actual.macs.get(vif.mac) == vif.slot
        and vif.slot in actual.tables
    )


def _removals(wanted: Wanted, actual: Actual) -> list[Change]:
    """What belongs to nobody any more: interfaces first, then every row that speaks of them."""
    ours = {vif.interface: vif.id for vif in wanted.vifs}
    ours[DOM0_DEVICE] = ours[SORTER] = ours.get(DOM0_VIF, -1)
    gone = [
        Change(f"take {name} down", "take_down", (name,))
        for name, port in actual.ports.items()
        if port.owner is not None and ours.get(name) != port.owner
    ]
    slots = {vif.slot: vif for vif in wanted.vifs}
    indexes = {actual.ports[name].index for name in ours if name in actual.ports}
    gone += [Change(f"forget interface {i}", "clear_vif", (i,)) for i in actual.vifs if i not in indexes]
    for address, slot in actual.addresses.items():
        if (slot not in slots or slots[slot].address != address) and wanted.away.get(address) != slot:
            gone.append(Change(f"forget {address}", "clear_address", (address,)))
    for mac, slot in actual.macs.items():
        if slot not in slots or slots[slot].mac != mac:
            gone.append(Change(f"forget {mac}", "clear_mac", (mac,)))
    gone += [
        Change(f"empty slot {slot}", "clear_slot", (slot, row.port_low, row.port_count))
        for slot, row in actual.domains.items()
        if slot not in slots or slots[slot].id != row.generation
    ]
    gone += [
        Change(f"drop the tables of slot {slot}", "drop_tables", (slot,))
        for slot in actual.tables - slots.keys()
        if slot not in actual.domains
    ]
    keep = {*ours, f"uplink-{wanted.uplink.name}" if wanted.uplink else ""}
    gone += [Change(f"unpin {name}", "unpin", (name,)) for name in sorted(actual.pins - keep)]
    return gone


def _ranges(forwards: Iterable[Forward]) -> list[tuple[str, tuple[Forward, ...]]]:
    """Neighbours that lead to neighbours together, each with a name for them."""
    runs: list[list[Forward]] = []
    for f in sorted(forwards, key=lambda f: (f.protocol, f.outside_port)):
        last = runs[-1][-1] if runs else None
        after = last and replace(last, outside_port=last.outside_port + 1, inside_port=last.inside_port + 1)
        if after == f:
            runs[-1].append(f)
        else:
            runs.append([f])
    named = []
    for run in runs:
        low, high = run[0].outside_port, run[-1].outside_port
        protocol = "" if run[0].protocol == "tcp" else f"{run[0].protocol} "
        named.append((f"{protocol}port {low}" if low == high else f"{protocol}ports {low}-{high}", tuple(run)))
    return named


def _nat(wanted: Wanted, actual: Actual) -> list[Change]:
    gone, new = actual.forwards - wanted.forwards, wanted.forwards - actual.forwards
    todo = [Change(f"close {name}", "clear_forwards", (run,)) for name, run in _ranges(gone)]
    if actual.config != wanted.config:
        before = actual.config.outside if actual.config else None
        todo.append(Change("set the configuration", "configure", (wanted.config, before)))
    return todo + [Change(f"open {name}", "set_forwards", (run,)) for name, run in _ranges(new)]


def _sorter(wanted: Wanted, actual: Actual) -> list[Change]:
    port, mtu = actual.ports.get(SORTER), wanted.smallest_mtu(actual)
    whole = port is not None and port.attached is not None and port.up and port.hardened and SORTER in actual.pins
    if port is None or not whole or actual.sorter is None:
        return [Change("make the sorter", "make_sorter", (mtu, wanted.config.timers.fragments))]
    if actual.sorter != (port.index, mtu):
        return [Change("let the sorter cut to another size", "set_sorter_mtu", (mtu,))]
    return []


def _uplink(wanted: Wanted, actual: Actual) -> list[Change]:
    todo = []
    up = wanted.uplink
    if up and (actual.ports[up.name].attached is None or f"uplink-{up.name}" not in actual.pins):
        todo.append(Change(f"attach to the uplink {up.name}", "attach_uplink", (up.name, up.index)))
    if actual.localnet != (up is not None):
        todo.append(Change("let localhost use forwards", "set_localnet", (up is not None,)))
    return todo


def plan(wanted: Wanted, actual: Actual) -> list[Change]:
    """The changes that make `actual` into `wanted`, in the order in which they are safe."""
    if not wanted.vifs:
        return [Change("remove everything", "tear_down")]
    todo = [] if actual.mounted else [Change("mount the bpffs", "mount")]
    if not actual.loaded:
        todo.append(Change("load the fastpath", "load"))
        actual = Actual(ports=actual.ports, guard=actual.guard)
    todo += _removals(wanted, actual)
    todo += [
        Change(f"hold {address}", "hold_address", (address, slot))
        for address, slot in wanted.away.items()
        if actual.addresses.get(address) != slot
    ]
    if not is_wanted(wanted.guard, actual.guard):
        todo.append(Change("write the nftables guard", "write_guard", (wanted.guard,)))
    if actual.digest != wanted.digest:
        todo.append(Change("replace the policy", "replace_policy"))
    todo += _nat(wanted, actual) + _sorter(wanted, actual)
    todo += [
        Change(f"bring {vif.interface} up", "bring_up", (vif, wanted.mtu))
        for vif in wanted.vifs
        if vif.there and not is_up(vif, actual)
    ]
    todo += [Change(f"route {net} to {DOM0_DEVICE}", "route", (net,)) for net in sorted(wanted.routes - actual.routes)]
    todo += [Change(f"no route to {net}", "unroute", (net,)) for net in sorted(actual.routes - wanted.routes)]
    return todo + _uplink(wanted, actual)
