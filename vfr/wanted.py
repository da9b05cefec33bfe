"""From what the registry says to what is wanted of the kernel as it is."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from vfr import forwards
from vfr import instance as instances
from vfr import reach as reaching
from vfr.choose import GATEWAY, NAT_PORTS, derived_mac, uplink_rate
from vfr.forwards import POOL
from vfr.registry import Contents, Domain, Nat
from vfr.ruling import digest, read
from vfr.settings import DOM0_LIMITS, Dhcp

if TYPE_CHECKING:
    from vfr.kernel.fastpath import Config, Forward
    from vfr.kernel.guard import Guard
    from vfr.kernel.links import Link
    from vfr.plan import Uplink, Vif, Wanted
    from vfr.policy import RuleSet
    from vfr.policy.language import ForwardRule

MTU = 1500


def slots_of(contents: Contents) -> dict[str, int]:
    return {d.name: d.slot for d in contents.domains}


def seats(contents: Contents) -> dict[str, int]:
    """The slots of the names that rules go by."""
    slots = {**slots_of(contents), "dom0": 0}
    return {name: slots[name] for name in (*(contents.rules.names if contents.rules else ()), "dom0") if name in slots}


def lan_of(nat: Nat | None) -> IPv4Network | None:
    """The uplink's own network."""
    up = uplink_now(nat)
    return up.lan if up else None


def uplink_now(nat: Nat | None) -> Uplink | None:
    """uplink_of the interfaces as they are now."""
    from vfr.kernel import links

    link = links.link(nat.uplink) if nat else None
    return uplink_of(nat, {link.name: link} if link else {})


def uplink_of(nat: Nat | None, present: Mapping[str, Link]) -> Uplink | None:
    """The uplink, None if NAT is off, or the interface or its address is gone: then nothing leaves."""
    from vfr.kernel import links
    from vfr.plan import Uplink

    link = present.get(nat.uplink) if nat else None
    if nat is None or link is None:
        return None
    for index, own in links.addresses():
        if index == link.index and own.ip == nat.address:
            return Uplink(link.name, link.index, link.mtu, nat.address, own.network, uplink_rate(nat))
    return None


def policy_digest(contents: Contents) -> str:
    return digest(contents.rules, slots_of(contents), lan_of(contents.nat))


def rules_of(contents: Contents) -> RuleSet:
    from vfr.policy import RuleSet

    return read(contents.rules.text, contents.rules.file).rules if contents.rules else RuleSet()


def reached(contents: Contents) -> reaching.Reach:
    """What can talk to what."""
    names = [d.name for d in contents.domains]
    return reaching.reach(rules_of(contents), names, lan_of(contents.nat), contents.nat is not None)


def forward_rules(contents: Contents) -> tuple[ForwardRule, ...]:
    """Every forward as a rule file would have it, those to ssh among them."""
    from vfr.policy import ForwardRule

    ssh = [(d.name, port) for d in contents.domains if (port := forwards.ssh_port(d.address, contents.nat))]
    own = (ForwardRule("tcp", (port, port), name, (forwards.SSH, forwards.SSH)) for name, port in ssh)
    return (*own, *(contents.rules.forwards if contents.rules else ()))


def vif_of(d: Domain, all_: Dhcp, present: Container[str] = ()) -> Vif:
    """A domain's interface as it is to be. `all_` is what DHCP says to everybody, `present` are the interfaces here, which
    tell whether a given device is."""
    from vfr.plan import Vif

    home = instances.netns_inode(d.netns) if d.netns else None
    dhcp = d.dhcp.over(all_)
    there = home is not None if d.netns else d.kind == "tap" or d.interface in present
    return Vif(
        d.id,
        d.kind,
        d.interface,
        d.interface,
        d.netns,
        d.address,
        d.mac,
        d.slot,
        d.port_low,
        d.port_count,
        d.limits,
        there,
        home,
        d.guest.beyond(d.address, d.mac),
        dhcp if dhcp.on else None,
    )


def config_of(contents: Contents, up: Uplink | None, sorter: int) -> Config:
    """What the whole fastpath goes by; `sorter` is the interface index of the sorter, 0 without one."""
    from vfr.kernel.fastpath import Config

    low, high = contents.nat.ports if contents.nat else NAT_PORTS
    made = Config(GATEWAY, POOL, None, None, 0, 0, low, high, sorter, contents.timers)
    if up is None:
        return made
    return replace(
        made, outside=up.address, lan=up.lan, uplink_ifindex=up.index, uplink_mtu=up.mtu, uplink_rate=up.rate
    )


def guard_of(up: Uplink | None, ways: tuple[forwards.Way, ...]) -> Guard:
    """What the guard is to say."""
    from vfr.kernel.guard import Guard

    return Guard(POOL, GATEWAY, up.name if up else None, up.address if up else None, ways)


def forwards_of(ways: Iterable[forwards.Way]) -> Iterator[Forward]:
    """The fastpath's forwards, port by port."""
    from vfr.kernel.fastpath import Forward

    for way in ways:
        low, high = way.outside
        if not way.host_only:
            yield from (Forward(way.protocol, port, way.slot, way.inside + port - low) for port in range(low, high + 1))


def wanted(contents: Contents) -> Wanted:
    """What the registry's words mean for the kernel as it is."""
    from vfr.kernel import links
    from vfr.plan import DOM0_DEVICE, DOM0_ID, DOM0_VIF, SORTER, Vif, Wanted

    present, nat = links.links(), contents.nat
    up = uplink_of(nat, present)
    config = config_of(contents, up, present[SORTER].index if SORTER in present else 0)
    vifs: list[Vif] = []
    if not contents.is_empty:
        mac = derived_mac("dom0 of VFR")
        low = config.nat_low
        vifs.append(Vif(DOM0_ID, "dom0", DOM0_VIF, DOM0_DEVICE, None, GATEWAY, mac, 0, low, 0, DOM0_LIMITS))
    vifs += [vif_of(d, contents.dhcp, present) for d in contents.domains if d.saved is None]
    ways = forwards.ways(contents, up is not None)
    return Wanted(
        vifs=tuple(vifs),
        config=config,
        mtu=up.mtu if up else MTU,
        guard=guard_of(up, ways),
        digest=policy_digest(contents),
        uplink=up,
        forwards=frozenset(forwards_of(ways)),
        routes=frozenset([POOL, *(IPv4Network(d.address) for d in contents.domains if d.address not in POOL)]),
        away={d.address: d.slot for d in contents.domains if d.saved is not None},
    )
