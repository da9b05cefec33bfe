"""What `vfr explain` answers from, beside the fastpath: who hangs where, what is in order, and whom a word means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from vfr._abi import Limit, Verdict
from vfr.errors import UsageError, VfrError
from vfr.forwards import ways
from vfr.plan import DOM0_DEVICE, DOM0_VIF
from vfr.policy.rules import ANY, DOM0, INTERNET, LAN, LINK_LOCAL, WITH_PORTS, RuleSet, is_internet
from vfr.question import Question, what_text
from vfr.settings import Dhcp
from vfr.view import GuestWords

if TYPE_CHECKING:
    from vfr.kernel.fastpath import Config, Forward, Hook
    from vfr.kernel.host import Host
    from vfr.kernel.links import Link
    from vfr.policy import CompiledPolicy
    from vfr.registry import Contents

LOCALHOST = IPv4Address("127.0.0.1")
NODE_LAN = int(Limit.NODE_LAN)
SAMPLES = tuple(IPv4Network(n) for n in ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"))  # RFC 5737


@dataclass(frozen=True, slots=True)
class Seat:
    """A domain as it hangs on the router. `trouble` says why no frame can come in by its interface, `unreachable`
    why none can go out of it; "" if all is well. `strangers` are the frames so far that had another MAC."""

    name: str
    slot: int
    address: IPv4Address
    mac: str
    vif: str
    index: int
    trouble: str = ""
    unreachable: str = ""
    guest: GuestWords = field(default_factory=GuestWords)
    strangers: int = 0
    dhcp: Dhcp | None = None  # what its guest is told, if that is answered

    @property
    def address_seen(self) -> IPv4Address:
        """What its guest believes to have for an address,"""
        return self.guest.address or self.address

    @property
    def mac_seen(self) -> str:
        """for a MAC,"""
        return self.guest.mac or self.mac

    @property
    def gateway_seen(self) -> IPv4Address | None:
        """and for the router; None if that is what it takes it for."""
        return self.guest.gateway


@dataclass(frozen=True, slots=True)
class Uplink:
    """The interface to the LAN, as the fastpath knows it."""

    name: str
    index: int
    mac: str
    address: IPv4Address
    lan: IPv4Network
    trouble: str = ""
    unreachable: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a question is answered from, beside the fastpath itself. `uplink` is None while nothing leads to the
    LAN, and `no_uplink` says why. `host_only` are forwards that lead to a domain from the host alone."""

    seats: Mapping[str, Seat]
    uplink: Uplink | None
    no_uplink: str
    pool: IPv4Network
    forwards: tuple[Forward, ...]
    host_only: tuple[Forward, ...]
    nat_ports: tuple[int, int]
    own: frozenset[IPv4Address]
    devices: Mapping[int, str]
    policy: CompiledPolicy
    rules: RuleSet

    def seat_in(self, slot: int) -> Seat | None:
        """Who sits in a slot."""
        return next((seat for seat in self.seats.values() if seat.slot == slot), None)

    def name_of(self, node: int) -> str:
        """A domain's name by its slot, or lan."""
        seat = self.seat_in(node)
        return seat.name if seat else LAN if node == NODE_LAN else f"slot {node}"

    def rule_text(self, number: int) -> tuple[str, str]:
        """A rule as it is written, and where it stands, by its number in the kernel."""
        rule = self.policy.rules[number]
        return str(rule), self.rules.where(self.rules.rules.index(rule))


@dataclass(frozen=True, slots=True)
class End:
    """Who is at one end: a domain, or somebody behind the uplink. `word` is what a rule would say. `port` is the one
    that a forward has, where TO named a forward; `host_only` if only the host may use it."""

    word: str
    address: IPv4Address
    seat: Seat | None = None
    port: int | None = None
    host_only: bool = False


def read_scene(host: Host, contents: Contents, policy: CompiledPolicy, rules: RuleSet) -> Scene:
    """What is there now. VfrError if there is no router, or its rules are not those of the registry."""
    from vfr.kernel import links

    if contents.is_empty or not host.is_loaded or (config := host.fastpath.config()) is None:
        raise VfrError("there is no router yet; run `vfr nat enable` or `vfr domain add` first")
    if host.fastpath.policy_digest() != policy.digest:
        raise VfrError(
            "the rules in force are not those that are wanted, since a command broke off;"
            " any command that changes something completes it"
        )
    present = links.links()
    own = frozenset(address.ip for _, address in links.addresses())
    uplink = _uplink(host, config, present)
    why = ""
    if uplink is None:
        nat = contents.nat
        why = f"the uplink {nat.uplink}, or its address {nat.address}, is gone" if nat else "NAT is off"
    return Scene(
        seats=_seats(host, contents, present),
        uplink=uplink,
        no_uplink=f"{why}; run `vfr nat enable`" if why else "",
        pool=config.pool,
        forwards=tuple(sorted(host.fastpath.forwards(), key=lambda f: (f.outside_port, f.protocol))),
        host_only=tuple(_host_only(contents)),
        nat_ports=(config.nat_low, config.nat_high),
        own=own,
        devices={link.index: name for name, link in present.items()},
        policy=policy,
        rules=rules,
    )


def _host_only(contents: Contents) -> Iterator[Forward]:
    """One by one. They are nftables' alone, so the fastpath knows nothing of them."""
    from vfr.kernel.fastpath import Forward

    for way in ways(contents, has_uplink=False):
        for port in range(way.outside[0], way.outside[1] + 1):
            yield Forward(way.protocol, port, way.slot, way.inside + port - way.outside[0])


def _seats(host: Host, contents: Contents, present: Mapping[str, Link]) -> dict[str, Seat]:
    rows, vifs = host.fastpath.domains(), host.fastpath.vifs()
    counted = host.fastpath.counters(rows)
    wanted = [(DOM0, 0, DOM0_VIF, DOM0_DEVICE), *((d.name, d.slot, d.interface, d.interface) for d in contents.domains)]
    seats = {}
    for name, slot, vif, device in wanted:
        row, link = rows.get(slot), present.get(vif)
        domain = next((d for d in contents.domains if d.slot == slot), None)
        address, mac = (row.address, row.mac) if row else (domain.address, domain.mac) if domain else (None, None)
        if address is None or mac is None:
            continue
        entered = row is not None and link is not None and vifs.get(link.index) == slot
        trouble = _trouble(host, link, vif, "vif") or ("" if entered else f"{vif} is not in the fastpath's tables")
        reached = _reached(present.get(device), device)
        guest, dhcp = (row.guest, row.dhcp) if row else (GuestWords(), None)
        strangers, _ = counted.get(slot, {}).get(Verdict.DROP_SRC_MAC.name, (0, 0))
        index = link.index if link else 0
        seats[name] = Seat(name, slot, address, mac, vif, index, trouble, reached, guest, strangers, dhcp)
    return seats


def _reached(link: Link | None, name: str) -> str:
    if link is None:
        return f"the interface {name} is gone"
    return "" if link.up else f"the interface {name} is down"


def _trouble(host: Host, link: Link | None, name: str, hook: Hook) -> str:
    """Why frames that come in by an interface do not meet their program."""
    if (reached := _reached(link, name)) or link is None:
        return reached
    if host.fastpath.attached(link.index, hook) is None:
        return f"the fastpath is not attached to {name}"
    return ""


def _uplink(host: Host, config: Config, present: Mapping[str, Link]) -> Uplink | None:
    link = next((link for link in present.values() if link.index == config.uplink_ifindex), None)
    if link is None or config.outside is None or config.lan is None:
        return None
    trouble = _trouble(host, link, link.name, "uplink")
    return Uplink(link.name, link.index, link.mac, config.outside, config.lan, trouble, _reached(link, link.name))


# Who is meant


def find_end(scene: Scene, word: str, q: Question) -> End:
    """Whom FROM or TO means. UsageError if it can't be one party, VfrError if there is nobody of that name."""
    if word in scene.seats:
        return End(word, scene.seats[word].address, scene.seats[word])
    if word.startswith("forward:"):
        return _forward_end(scene, word, q)
    if word in (LAN, INTERNET):
        return End(word, _sample(scene, word))
    try:
        return _address_end(scene, IPv4Address(word))
    except AddressValueError:
        pass
    if word == ANY or word in scene.rules.groups or word in scene.rules.sets:
        raise UsageError(f"{word!r} is many; name one domain, dom0, lan, internet or an address")
    if ":" in word:
        raise UsageError(f"{word!r} is no IPv4 address, and VFR carries no IPv6 yet")
    raise VfrError(f"there is no domain {word!r}; there are: {', '.join(scene.seats)}, lan, internet")


def _address_end(scene: Scene, address: IPv4Address) -> End:
    seat = next((seat for seat in scene.seats.values() if seat.address == address), None)
    if seat:
        return End(seat.name, address, seat)
    return End(LAN if address in LINK_LOCAL else str(address), address)  # no rule may name a link-local one


def _forward_end(scene: Scene, word: str, q: Question) -> End:
    """By the outside address, or the host's own, at a forward's port."""
    port = word.removeprefix("forward:")
    known = (*scene.forwards, *scene.host_only)
    for f in known:
        if port == str(f.outside_port) and WITH_PORTS[f.protocol] == q.protocol:
            if q.port not in (None, f.outside_port):
                raise UsageError(f"{word} says the port; write {f.protocol} alone")
            if f in scene.host_only or scene.uplink is None:
                return End(word, LOCALHOST, None, f.outside_port, host_only=True)
            return End(word, scene.uplink.address, None, f.outside_port)
    asked, there = what_text(q.protocol, None), ", ".join(f"{f.protocol} {f.outside_port}" for f in known)
    raise VfrError(f"no forward has the {asked} port {port!r}; there are: {there or 'none'}")


def _sample(scene: Scene, word: str) -> IPv4Address:
    """Somebody of the uplink's own network, or of the internet; if it can be, one whom no rule speaks of by address."""
    lan = scene.uplink.lan if scene.uplink else None
    nets = (lan,) if word == LAN and lan else SAMPLES
    taken = {*scene.own, *(seat.address for seat in scene.seats.values())}
    candidates = [
        a for net in nets for a in list(_hosts(net)) if a not in taken and (word == LAN or is_internet(a, lan))
    ]
    if not candidates:
        raise VfrError(f"there is no address to stand for {word} beside the host's own in {lan}; give one")
    unnamed = (a for a in candidates if scene.policy.remote(a)[0] == Limit.NODE_NONE)
    return next(unnamed, candidates[0])


def _hosts(net: IPv4Network) -> Iterator[IPv4Address]:
    """The first few of a network."""
    return (address for address, _ in zip(net.hosts(), range(256), strict=False))
