"""Taking a domain off into a file, and putting it back: what is decided, between the registry and the kernel.

Saving is: stop the domain, read its state, have the file on disk under its name; then the registry says that it is
away, which is when it changes hands; then its interface goes. While it is away its name, address, MAC, slot, ports and
forwards stay its own, and what comes for it is dropped without an answer. Restoring is the same backwards: the
registry holds everything for it, its tables are filled while nobody has the slot, then the registry says that it is
here, and its interface is made. Killed anywhere, it is wholly here or wholly in the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from vfr import saved as files
from vfr._abi import Limit
from vfr.choose import (
    GATEWAY,
    Taken,
    check_name,
    check_place,
    choose_address,
    choose_guest,
    choose_mac,
    derived_interface,
    free_block,
    listeners,
    no_such,
)
from vfr.errors import ConflictError, UsageError, VfrError
from vfr.registry import Contents, Domain
from vfr.saved import Saved, Session

if TYPE_CHECKING:
    from vfr.kernel.host import Host

DOM0 = 1  # its id


@dataclass(frozen=True, slots=True)
class Carried:
    """What went into a file, or came out of it. `left_out` is how many sessions did not, and `why`."""

    name: str
    file: str
    sessions: int
    inbound: int
    mappings: int
    left_out: int = 0
    why: str = ""


def find(name: str, contents: Contents) -> Domain:
    for d in contents.domains:
        if d.name == name:
            return d
    raise no_such(name, contents)


def save(host: Host, before: Contents, name: str, file: Path, step: Callable[[str], None]) -> tuple[Contents, Saved]:
    """Stops the domain and has it on disk; what the registry is to say then. It stays stopped if this raises."""
    from vfr.kernel import state

    d = find(name, before)
    if d.saved is not None:
        raise ConflictError(f"the domain {name!r} is away in a file already; `vfr restore {name} FILE` puts it back")
    row = host.fastpath.domains().get(d.slot) if host.is_loaded else None
    if row is None or row.generation != d.id:
        raise VfrError(f"the domain {name!r} is not up, so there is no state to save; see `vfr domain show {name}`")
    files.check_target(file)
    step(f"stop {name}")
    host.fastpath.freeze(d.slot)
    step(f"read {name}")
    sessions, inbound, mappings = state.read(host.fastpath, d.slot)
    outside = str(before.nat.address) if before.nat else None
    found = Saved(secrets.token_hex(16), outside, d, sessions, inbound, mappings)
    files.write(found, file, step)
    away = tuple(replace(o, saved=found.token) if o.id == d.id else o for o in before.domains)
    return replace(before, domains=away), found


def reserve(saved: Saved, name: str, before: Contents, next_id: int, place: Place, with_sessions: bool) -> Contents:
    """What the registry is to say so that everything is held for the domain: as it is, if it went away from here."""
    if saved.domain.name != name:
        raise ConflictError(f"the file holds the domain {saved.domain.name!r}, not {name!r}")
    here = next((d for d in before.domains if d.name == name), None)
    if here is not None:
        if here.saved is None:
            raise ConflictError(f"the domain {name!r} is here already; it was not saved, or has been restored since")
        if here.saved != saved.token:
            raise ConflictError(
                f"the domain {name!r} was saved to another file after this one; restore that one, or give up what is"
                f" held for it with `vfr domain remove {name}`"
            )
        if (here.port_low, here.port_count) != (saved.domain.port_low, saved.domain.port_count):
            raise VfrError(f"the file says other outside ports than are held for {name!r}; take another copy of it")
        return before
    d = _arrived(saved, before, next_id, place, with_sessions)
    return replace(before, domains=(*before.domains, d))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the domain is to hang, None for where it did."""

    kind: str | None = None
    where: str | None = None

    def of(self, d: Domain) -> Domain:
        if self.kind is None or self.where is None:
            return d
        interface = derived_interface(d.name) if self.kind == "netns" else self.where
        return replace(d, kind=self.kind, netns=self.where if self.kind == "netns" else None, interface=interface)


def _arrived(saved: Saved, before: Contents, next_id: int, place: Place, with_sessions: bool) -> Domain:
    """A domain that this router knows nothing of yet: everything it brings is checked as if it were asked for."""
    d = saved.domain
    check_name(d.name)
    if before.rules and d.name in before.rules.defined:
        raise ConflictError(f"{d.name!r} is a group or set of {before.rules.file}; rename that")
    taken = Taken.of(before.domains)
    slot = d.slot if 0 < d.slot < Limit.SLOTS and d.slot not in taken.slots else taken.free_slot()
    low, count = _block(saved, before) if with_sessions else free_block(before)
    return replace(
        place.of(d),
        id=max([next_id, 2, *(o.id + 1 for o in before.domains)]),
        address=choose_address(d.address, taken.addresses),
        mac=choose_mac(d.mac, d.name, taken.macs),
        guest=choose_guest(d.guest.address, d.guest.mac, d.guest.gateway, before),
        slot=slot,
        port_low=low,
        port_count=count,
        saved=saved.token,
    )


def _block(saved: Saved, before: Contents) -> tuple[int, int]:
    """The block that it had, if it is free, and one of this router's."""
    low, count = saved.domain.port_low, saved.domain.port_count
    way_out = "; or restore it with --without-sessions, under other ports"
    for o in before.domains:
        if low < o.port_low + o.port_count and o.port_low < low + count:
            raise ConflictError(
                f"{saved.domain.name!r} had the outside ports {low}-{low + count - 1}, and {o.name!r} has"
                f" {o.port_low}-{o.port_low + o.port_count - 1} here{way_out}"
            )
    nat = before.nat
    if nat and (count != nat.ports_per_domain or (low - nat.ports[0]) % count or not _within(low, count, nat.ports)):
        raise ConflictError(
            f"{saved.domain.name!r} had the outside ports {low}-{low + count - 1}, which is no block of this router's"
            f" {nat.ports[0]}-{nat.ports[1]} by {nat.ports_per_domain}{way_out}"
        )
    if nat is None and (low, count) != free_block(before):
        raise ConflictError(f"NAT is off here, so no outside ports can be kept; run `vfr nat enable` first{way_out}")
    return low, count


def _within(low: int, count: int, ports: tuple[int, int]) -> bool:
    return ports[0] <= low and low + count - 1 <= ports[1]


def check_outside(saved: Saved, before: Contents) -> None:
    """Sessions with the LAN live only behind the address that the LAN saw. ConflictError if it is another one."""
    own = str(before.nat.address) if before.nat else None
    with_lan = any(s.peer is None for s in saved.sessions) or bool(saved.inbound)
    if with_lan and own != saved.outside:
        raise ConflictError(
            f"{saved.domain.name!r} was known to the LAN as {saved.outside}, and this router is {own or 'not on it'};"
            " give the uplink that address and run `vfr nat enable`, or restore it with --without-sessions"
        )
    names = {6: "tcp", 17: "udp"}
    used = listeners()
    for m in saved.mappings:
        if (names.get(m.protocol), m.outside_port) in used:
            raise ConflictError(
                f"a program of the host has {names[m.protocol]} port {m.outside_port}, by which {saved.domain.name!r}"
                " speaks to the LAN; end it, or restore with --without-sessions"
            )


def check_hang(d: Domain, place: Place, before: Contents) -> Domain:
    """The domain at its place, which must be there and free."""
    from vfr.kernel import links

    moved = place.of(d)
    taken = Taken.of(o for o in before.domains if o.id != d.id)
    where = moved.netns if moved.kind == "netns" else moved.interface
    if where is None:
        raise UsageError(f"it is not said where {d.name!r} is to hang; give --netns, --tap or --device")
    check_place(moved.kind, where, moved.interface, taken, before.nat, links.links(), ())
    return moved


def put_back(
    host: Host, before: Contents, saved: Saved, place: Place, same: bool, step: Callable[[str], None]
) -> tuple[Contents, Carried]:
    """Fills the slot's tables; what the registry is to say then. `same` is whether it went away from here: only then
    are the domains that it spoke to known to be the same."""
    from vfr.kernel import state
    from vfr.wanted import wanted

    d = find(saved.domain.name, before)
    moved = replace(check_hang(d, place, before), saved=None)
    peers = {o.id: o for o in before.domains if o.id != d.id} if same else {}
    homes = {DOM0: GATEWAY} if same else {}
    homes |= {number: o.address for number, o in peers.items()}
    slots = {DOM0: 0} | {number: o.slot for number, o in peers.items()}
    leads = wanted(before).forwards
    taken = {o.address for o in before.domains}
    own = [s for s in saved.sessions if _may_live(s, homes, taken)]
    inbound = [s for s in saved.inbound if state.belongs_to_forward(s, d.slot, leads) and _may_live(s, homes, taken)]
    kept = replace(
        saved,
        sessions=_longest(own, d.limits.sessions),
        inbound=_longest(inbound, d.limits.inbound),
        domain=moved,
    )
    state.fill(host.fastpath, moved, kept, slots, step)
    domains = tuple(moved if o.id == d.id else o for o in before.domains)
    left = len(saved.sessions) + len(saved.inbound) - len(kept.sessions) - len(kept.inbound)
    why = "with domains that are others here, by forwards that are gone, or more than it may have" if left else ""
    counts = (len(kept.sessions), len(kept.inbound), len(kept.mappings))
    return replace(before, domains=domains), Carried(d.name, "", *counts, left, why)


def _may_live(s: Session, homes: dict[int, IPv4Address], taken: set[IPv4Address]) -> bool:
    """With the LAN, unless a domain has that address; with a domain, if it is still the one that it was."""
    remote = IPv4Address(s.remote)
    return remote not in taken if s.peer is None else homes.get(s.peer) == remote


def _longest(sessions: list[Session], most: int) -> tuple[Session, ...]:
    return tuple(sorted(sessions, key=lambda s: -s.left_ms)[:most])
