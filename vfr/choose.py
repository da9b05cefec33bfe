"""What a new domain, or NAT, may have: chosen, or checked, against the registry and the host as they are.

UsageError or ConflictError say what is wrong with what was asked for, and the way out.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from vfr import instance as instances
from vfr._abi import Limit
from vfr.errors import ConflictError, UsageError, VfrError
from vfr.forwards import FORWARD_BASE, POOL
from vfr.registry import Contents, Domain, Nat, Rules, Seat
from vfr.settings import LEAST_RATE, MOST_RATE
from vfr.view import GuestWords

GATEWAY = IPv4Address("169.254.1.0")
NAT_PORTS = (16384, 32767)
PORTS_PER_DOMAIN = 64
FORWARDS = (2, 19)
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NEVER = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
_LINK_LOCAL = IPv4Network("169.254.0.0/16")
_POOL_HOSTS = tuple(POOL.hosts())[1:]


def netns_names() -> list[str]:
    return sorted(p.name for p in instances.NETNS.iterdir()) if instances.NETNS.is_dir() else []


def as_address(text: str | IPv4Address) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise UsageError(f"{text!r} is not an IPv4 address; write it as 169.254.1.7") from None


def check_unicast(address: IPv4Address) -> None:
    if any(address in net for net in _NEVER):
        raise UsageError(f"{address} is not a unicast address; choose one in {POOL}, or any host address")
    if address == GATEWAY:
        raise ConflictError(f"{address} is domain 0's own address; choose another in {POOL}")
    if address == POOL.broadcast_address:
        raise UsageError(f"{address} is the broadcast address of {POOL}; choose another")
    if address in _LINK_LOCAL and address not in POOL:
        raise UsageError(f"{address} is link-local but not in the pool {POOL}; choose an address in the pool")


def check_mac(mac: str) -> str:
    mac = mac.lower()
    if not _MAC.fullmatch(mac):
        raise UsageError(f"{mac!r} is not a MAC address; write it as 02:00:00:00:00:07")
    if int(mac[:2], 16) & 1 or mac in ("00:00:00:00:00:00", "fe:ff:ff:ff:ff:ff"):
        raise UsageError(f"{mac} cannot be a guest's MAC address; choose a unicast one, as 02:00:00:00:00:07")
    return mac


def derived_mac(name: str) -> str:
    digest = hashlib.sha256(f"vfr domain {name}".encode()).digest()
    return ":".join(f"{b:02x}" for b in (0x02, *digest[:5]))


def derived_interface(name: str) -> str:
    """vif-NAME where that fits an interface's 15 characters, else a shortened form with a hash."""
    if len(name) <= 11:
        return f"vif-{name}"
    return f"vif-{name[:6]}.{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def listeners() -> dict[tuple[str, int], str]:
    """(protocol, port) -> local address of every listening or bound socket in this namespace."""
    found: dict[tuple[str, int], str] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if table.startswith("udp") or fields[3] == "0A":
                found[table[:3], int(fields[1].rpartition(":")[2], 16)] = fields[1]
    return found


def check_ports(ports: tuple[int, int], per_domain: int, forwards: tuple[int, int]) -> None:
    low, high = ports
    if not 1024 <= low <= high <= 65535:
        raise UsageError(f"the port range {low}-{high} must lie between 1024 and 65535, low end first")
    if not 1 <= per_domain <= high - low + 1:
        raise UsageError(f"{per_domain} ports per domain do not fit the range {low}-{high}")
    if not 2 <= forwards[0] <= forwards[1] <= 254:
        raise UsageError(f"--forwards {forwards[0]}-{forwards[1]}: x runs from 2 to 254, low end first")
    if FORWARD_BASE + forwards[1] >= low:
        raise UsageError(f"forwards up to port {FORWARD_BASE + forwards[1]} run into the range {low}-{high}")
    first, last = (int(n) for n in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if low <= last and first <= high:
        raise ConflictError(
            f"the port range {low}-{high} overlaps {first}-{last}, which the host uses for itself"
            " (net.ipv4.ip_local_port_range); choose another with --ports"
        )


def check_listeners(ports: tuple[int, int], forwards: tuple[int, int]) -> None:
    for (protocol, port), _ in sorted(listeners().items()):
        if ports[0] <= port <= ports[1]:
            raise ConflictError(
                f"a program of the host listens on {protocol} port {port}, inside the range {ports[0]}-{ports[1]};"
                " end it, or choose another range with --ports"
            )
        if protocol == "tcp" and forwards[0] <= port - FORWARD_BASE <= forwards[1]:
            raise ConflictError(
                f"a program of the host listens on tcp port {port}, which would lead to 169.254.1.{port - FORWARD_BASE};"
                " end it, or choose other forwards with --forwards"
            )


def check_name(name: str) -> None:
    from vfr.policy.rules import NAME, RESERVED, looks_like_address

    if not NAME.fullmatch(name) or name in RESERVED or looks_like_address(name):
        raise UsageError(
            f"{name!r} cannot be a domain's name; use up to 32 of a-z, 0-9, '.', '_', '-', beginning and ending"
            f" with a letter or digit, no address, and none of {', '.join(sorted(RESERVED))}"
        )


def no_such(name: str, contents: Contents) -> VfrError:
    have = ", ".join(d.name for d in contents.domains) or "none"
    return VfrError(f"there is no domain {name!r}; there are: {have}")


@dataclass(slots=True)
class Taken:
    """What domains have that no other can have."""

    names: dict[str, int]  # whose slot is which
    homes: dict[str, str]  # namespace -> whose it is
    interfaces: set[str]
    addresses: dict[IPv4Address, str]
    macs: dict[str, str]
    slots: set[int]
    _lowest: int = 1  # there is no free slot below

    @classmethod
    def of(cls, domains: Iterable[Domain | Seat]) -> Taken:
        made = cls({}, {}, set(), {}, {}, set())
        for d in domains:
            made.add(d)
        return made

    def add(self, d: Domain | Seat) -> None:
        self.names[d.name] = d.slot
        self.interfaces.add(d.interface)
        self.slots.add(d.slot)
        self.addresses[d.address], self.macs[d.mac] = d.name, d.name
        if d.netns is not None:
            self.homes[d.netns] = d.name

    def free_slot(self) -> int:
        """The lowest. ConflictError if there is none."""
        slot = next((s for s in range(self._lowest, Limit.SLOTS) if s not in self.slots), None)
        if slot is None:
            raise ConflictError(f"this router has {Limit.SLOTS - 1} domains, which is all it has room for")
        self._lowest = slot
        return slot


def is_there(name: str) -> ConflictError:
    return ConflictError(f"there is a domain {name!r} already; choose another name, or remove it first")


def is_defined(name: str, rules: Rules) -> ConflictError:
    return ConflictError(f"{name!r} is a group or set of {rules.file}; choose another name")


def check_place(
    kind: str,
    where: str,
    interface: str,
    taken: Taken,
    nat: Nat | None,
    present: Container[str],
    left: Container[str | None],
) -> None:
    """Where the domain is to hang must be there (netns, device) or not be there yet (tap, our VIF). `present` are the
    interfaces here, `left` the namespaces that others leave."""
    if kind == "netns":
        check_netns(where, taken, where in left)
    if interface in taken.interfaces:
        raise ConflictError(f"the interface {interface} belongs to another domain; choose another")
    if kind == "device":
        check_device(where, nat)
    elif not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", interface):
        raise UsageError(f"{interface!r} cannot be an interface's name: up to 15 letters, digits, '.', '_', '-'")
    elif interface in present:
        raise ConflictError(f"there is an interface {interface} already, which is not ours; rename or remove it")


def check_netns(name: str, taken: Taken, is_left: bool) -> None:
    from vfr.kernel import links

    if "/" in name or not (instances.NETNS / name).is_file():
        have = ", ".join(netns_names()) or "none"
        raise UsageError(
            f"there is no network namespace {name!r}; make it with `ip netns add {name}` (there are: {have})"
        )
    if name in taken.homes:
        raise ConflictError(f"the namespace {name!r} belongs to the domain {taken.homes[name]!r}; choose another")
    if instances.is_current(name):
        raise UsageError(f"the namespace {name!r} is domain 0's own; choose another")
    if not is_left and links.link("eth0", name) is not None:
        raise ConflictError(f"the namespace {name!r} has an eth0 already; rename or remove that one")


def check_device(name: str, nat: Nat | None) -> None:
    from vfr.kernel import links

    link = links.link(name)
    if link is None:
        raise UsageError(f"there is no interface {name!r} here (there are: {', '.join(sorted(links.links()))})")
    if name in ("lo", "vfr0", "vif0", "vfr-sorter") or (nat and nat.uplink == name):
        raise ConflictError(f"the interface {name} is the host's own; a domain needs one for itself")
    if link.master:
        raise ConflictError(
            f"the interface {name} is part of a bridge or bond; take it out with `ip link set {name} nomaster`"
        )
    own = [str(a) for index, a in links.addresses() if index == link.index]
    if own:
        raise ConflictError(f"the interface {name} has the address {own[0]} of the host; remove it with `ip addr del`")


def choose_address(
    given: str | IPv4Address | None,
    taken: Mapping[IPv4Address, str],
    hosts: Callable[[], Sequence[tuple[int, IPv4Interface]]] | None = None,
) -> IPv4Address:
    """`hosts` are the host's own addresses, if they are not to be asked for anew."""
    if given is None:
        free = next((a for a in _POOL_HOSTS if a not in taken), None)
        if free is not None:
            return free
        raise ConflictError(f"no address of {POOL} is free; give one with --address, from any other range")
    address = as_address(given)
    check_unicast(address)
    if address in taken:
        raise ConflictError(f"{address} belongs to the domain {taken[address]!r}; choose another")
    if address not in POOL:
        check_not_the_hosts(address, hosts)
    return address


def choose_guest(
    address: str | IPv4Address | None, mac: str | None, gateway: str | IPv4Address | None, before: Contents
) -> GuestWords:
    """What a clone's guest believes. It may be what another domain or a LAN host really has: those two cannot speak to
    each other then, and nobody else minds."""
    words = GuestWords(
        _guest_address(address, before) if address is not None else None,
        check_mac(mac) if mac is not None else None,
        _guest_gateway(gateway) if gateway is not None else None,
    )
    if words.address and words.address == words.gateway:
        raise UsageError(f"the guest's address {words.address} cannot be its gateway as well; leave one of them out")
    return words


def _guest_address(given: str | IPv4Address, before: Contents) -> IPv4Address:
    address = as_address(given)
    if any(address in net for net in _NEVER):
        raise UsageError(f"{address} is not a unicast address; no guest can have it")
    if address == GATEWAY:
        raise ConflictError(f"{address} is domain 0's own address, which every guest must be able to ask for")
    if before.nat and address == before.nat.address:
        raise ConflictError(f"{address} is the host's address on {before.nat.uplink}, which guests reach forwards by")
    return address


def _guest_gateway(given: str | IPv4Address) -> IPv4Address | None:
    gateway = as_address(given)
    if any(gateway in net for net in _NEVER):
        raise UsageError(f"{gateway} is not a unicast address; no guest can have it for its gateway")
    return gateway if gateway != GATEWAY else None


def check_not_the_hosts(
    address: IPv4Address, hosts: Callable[[], Sequence[tuple[int, IPv4Interface]]] | None = None
) -> None:
    from vfr.kernel import links

    def name(index: int) -> str:
        return next((link.name for link in links.links().values() if link.index == index), "an interface")

    for index, own in (hosts or links.addresses)():
        if address == own.ip:
            raise ConflictError(f"{address} is the host's own, on {name(index)}; choose another")
        if address in own.network and own.network.prefixlen < 32:
            raise ConflictError(f"{address} lies in {own.network}, the network on {name(index)}; choose another")


def choose_mac(given: str | None, name: str, taken: Mapping[str, str]) -> str:
    if given is not None:
        mac = check_mac(given)
        if mac in taken:
            raise ConflictError(f"{mac} belongs to the domain {taken[mac]!r}; choose another")
        return mac
    tries = (derived_mac(f"{name}{'+' * n}") for n in range(len(taken) + 1))
    return next(mac for mac in tries if mac not in taken)


def free_block(before: Contents) -> tuple[int, int]:
    """A domain's own outside ports: the first block of the range that nobody has had, else the one that was
    given back longest ago. Who on the LAN still speaks to a former tenant is not to meet the next."""
    return Blocks(before, {d.port_low for d in before.domains}).take()


class Blocks:
    """The blocks of outside ports that nobody has, in the order in which they are given away."""

    def __init__(self, before: Contents, held: Set[int]) -> None:
        """`held` are the lowest ports of those that somebody has."""
        self._range = before.nat.ports if before.nat else NAT_PORTS
        self._size = before.nat.ports_per_domain if before.nat else PORTS_PER_DOMAIN
        self._held = len(held)
        low, high = self._range
        returned_at = self._returned_at(before.returned)
        free = (start for start in range(low, high - self._size + 2, self._size) if start not in held)
        self._free = deque(sorted(free, key=lambda start: returned_at.get(start, 0)))

    def _returned_at(self, returned: Sequence[tuple[int, int]]) -> dict[int, int]:
        """Lowest port of a block -> when a port of it was last given back: a place in the order of returns. Blocks may
        have been of another size then."""
        (first, _), size = self._range, self._size
        return {
            first + number * size: n
            for n, (low, count) in enumerate(returned, 1)
            for number in range(max(low - first, 0) // size, (low + count - 1 - first) // size + 1)
        }

    def take(self) -> tuple[int, int]:
        """(lowest port, number of ports) of the next one. ConflictError if there is none."""
        if self._free:
            self._held += 1
            return self._free.popleft(), self._size
        low, high = self._range
        raise ConflictError(
            f"all {self._held} blocks of {self._size} ports in {low}-{high} are given away; remove a domain, or start"
            " anew with fewer --ports-per-domain or a wider range in --ports"
        )


def uplink_has(nat: Nat) -> bool:
    """Whether the uplink is there and still has its address."""
    from vfr.kernel import links

    link = links.link(nat.uplink)
    return link is not None and any(i == link.index and a.ip == nat.address for i, a in links.addresses())


def uplink_rate(nat: Nat | None) -> int:
    """What the uplink takes in bits a second, as it was said or as its interface says; 0 if it is not shared out."""
    from vfr.kernel import links

    if nat is None:
        return 0
    return links.speed(nat.uplink) if nat.uplink_rate is None else nat.uplink_rate


def as_rate(given: int | str) -> int | None:
    """What a registry notes of an uplink's rate: None for "auto"."""
    if given == "auto":
        return None
    rate = int(given)
    if rate and not LEAST_RATE <= rate <= MOST_RATE:
        raise UsageError(
            f"the uplink's rate {given} is out of range; it takes {LEAST_RATE} to {MOST_RATE} bits a second"
        )
    return rate


def followed(contents: Contents) -> Contents:
    """With the address that the uplink has now, if NAT was enabled without naming one and the uplink has lost its own.
    An address that NAT can't be given is none; then NAT waits."""
    from vfr.kernel import links

    nat = contents.nat
    link = links.link(nat.uplink) if nat and not nat.is_fixed and not uplink_has(nat) else None
    if nat is None or link is None:
        return contents
    usable = (
        a for i, a in links.addresses() if i == link.index and a.ip not in _LINK_LOCAL and not a.network.overlaps(POOL)
    )
    address = next(usable, None)
    return replace(contents, nat=replace(nat, address=address.ip)) if address else contents


def choose_uplink(name: str | None, address: str | None) -> tuple[str, IPv4Address]:
    """The interface to the LAN and domain 0's address there."""
    from vfr.kernel import links

    present = links.links()
    by_index = {link.index: link for link in present.values()}
    if name is None:
        defaults = [i for i in links.default_route_interfaces() if i in by_index]
        if not defaults:
            raise UsageError("there is no default route to tell the uplink by; name it with --uplink IF")
        name = by_index[defaults[0]].name
    if name not in present or name in ("lo", "vfr0", "vif0", "vfr-sorter"):
        usable = ", ".join(sorted(n for n in present if n not in ("lo", "vfr0", "vif0", "vfr-sorter")))
        raise UsageError(f"{name!r} cannot be the uplink; there are: {usable or 'no interfaces'}")
    own = [a for index, a in links.addresses() if index == present[name].index]
    return name, choose_lan_address(name, own, address)


def choose_lan_address(name: str, own: list[IPv4Interface], given: str | None) -> IPv4Address:
    have = ", ".join(str(a.ip) for a in own)
    if not own:
        raise ConflictError(
            f"the uplink {name} has no IPv4 address; give it one first, as `ip addr add 192.0.2.1/24 dev {name}`"
        )
    if given is None and len(own) > 1:
        raise UsageError(f"the uplink {name} has several addresses ({have}); choose with --address")
    chosen = own[0] if given is None else next((a for a in own if a.ip == as_address(given)), None)
    if chosen is None:
        raise UsageError(f"the uplink {name} has no address {given}; it has {have}")
    if chosen.ip in _LINK_LOCAL or chosen.network.overlaps(POOL):
        raise ConflictError(
            f"the uplink {name} is itself in {chosen.network}, the range of the domains; NAT to it is impossible"
        )
    return chosen.ip
