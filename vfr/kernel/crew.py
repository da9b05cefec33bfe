"""Many VIFs at once: what `Host.bring_up` and `Host.take_down` do for one, each step for all of them.

The order is the same, filter first and link up second. What differs is how the kernel is asked: with many requests to a
system call, and never so that it waits for all CPUs once for each VIF. Interfaces are deleted all together, by a group
that they are put into, since that costs one such wait, not one each.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vfr import mark
from vfr.errors import KernelError, VfrError
from vfr.kernel import guard, links
from vfr.kernel.doors import GUEST_END, Doors
from vfr.kernel.fastpath import Fastpath, Tenant
from vfr.kernel.host import HARDENING, row_of
from vfr.kernel.links import Link
from vfr.kernel.rtnl import Rtnl
from vfr.plan import DOM0_DEVICE, GATEWAY_MAC, Vif
from vfr.registry import Domain

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seated:
    """A VIF whose interface is there."""

    vif: Vif
    link: Link


class Crew:
    """Brings VIFs up and takes them down, many at a time. `gateway` is what guests know the router by."""

    def __init__(self, fastpath: Fastpath, pool: IPv4Network, gateway: IPv4Address, step: Step) -> None:
        self._fp, self._pool, self._gateway, self._step = fastpath, pool, gateway, step
        self.failed: dict[int, VfrError] = {}
        self._made: set[str] = set()

    def bring_up(self, vifs: Sequence[Vif], mtu: int, doors: Doors) -> None:
        """New VIFs into namespaces, none of which is there yet. Those that the kernel refuses are in `failed`, by
        their id, and half made; KernelError if it refuses what is done for all of them."""
        with ThreadPoolExecutor(1) as aside:
            self._step("fresh tables")
            tables = aside.submit(self._fp.renew_slots, [_tenant(vif) for vif in vifs])  # which waits most of the time
            self._step(f"make {len(vifs)} interfaces")
            seated = self._make(vifs, mtu, doors)
            self._step("nothing for the host's stack")
            seated = self._attach(self._harden(seated))  # before there are rows: its frames are nobody's, and dropped
            tables.result()
        self._step("enter the domains")
        self._fp.enter([(s.vif.slot, s.link.index, row_of(s.vif, s.link.index, s.link.mtu)) for s in seated])
        self._step("configure the guests' ends")
        seated = self._configure(seated, doors)
        self._step("routes to them")
        self._each(
            "routing", [(s, links.route_out(self._dom0(), net, self._gateway)) for s, net in self._routed(seated)]
        )
        self._step("up")
        self._each("bringing up", [(s, links.changed(s.link.index, state="up")) for s in self._sound(seated)])

    def _sound(self, seated: Sequence[Seated]) -> list[Seated]:
        return [s for s in seated if s.vif.id not in self.failed]

    def _each(self, what: str, asked: Sequence[tuple[Seated, tuple[int, int, bytes]]]) -> None:
        """Has the kernel do one thing for each VIF, and notes for which it would not."""
        with Rtnl(what) as kernel:
            said = kernel.ask_each([request for _, request in asked])
        for (s, _), number in zip(asked, said, strict=True):
            if number:
                self.failed.setdefault(s.vif.id, KernelError(f"{what} {s.vif.interface}", number))

    def _make(self, vifs: Sequence[Vif], mtu: int, doors: Doors) -> list[Seated]:
        asked = [_pair(vif, mtu, doors) for vif in vifs]
        with Rtnl("making interfaces") as kernel:
            for vif, number in zip(vifs, kernel.ask_each(asked), strict=True):
                if number:
                    operation = f"making the interface {vif.interface} and its other end {GUEST_END}"
                    self.failed[vif.id] = KernelError(operation, number)
            self._made |= {vif.interface for vif in vifs if vif.id not in self.failed}
            made = [(vif, links.ask(kernel, vif.interface)) for vif in vifs if vif.id not in self.failed]
        return [Seated(vif, link) for vif, link in made if link is not None]

    def _harden(self, seated: Sequence[Seated]) -> list[Seated]:
        """Says whose each is, and has the host's stack take nothing from it: all by one request each, but for what
        only a file sets."""
        marks = {s.vif.id: str(mark.Mark(s.vif.id, s.vif.home)) for s in seated}
        settings = {name: value for (family, name), value in HARDENING.items() if family == "ipv4"}
        self._each(
            "setting up",
            [(s, links.changed(s.link.index, noarp=True, alias=marks[s.vif.id], conf=settings)) for s in seated],
        )
        for s in seated:
            for (family, name), value in HARDENING.items():
                if family != "ipv4":
                    links.set_conf(s.vif.interface, name, value, family)
        return self._sound(seated)

    def _attach(self, seated: Sequence[Seated]) -> list[Seated]:
        for s in seated:
            self._step(f"{s.vif.interface}: attach")
            try:
                self._fp.attach_fresh(s.link.index, s.vif.interface)
                if self._fp.attached(s.link.index, "vif") is None:
                    raise KernelError(f"verifying the attaching to {s.vif.interface}", errno.EIO)
            except KernelError as error:
                self.failed[s.vif.id] = error
        return self._sound(seated)

    def _configure(self, seated: Sequence[Seated], doors: Doors) -> list[Seated]:
        ends = {}
        for s in seated:
            assert s.vif.netns is not None
            ends[s.vif.netns] = (s.link.peer, s.vif.guest.address or s.vif.address)
        gateways = {s.vif.netns: s.vif.guest.gateway or self._gateway for s in seated if s.vif.netns}
        ids = {s.vif.netns: s.vif.id for s in seated if s.vif.netns}
        for name, error in doors.configure(ends, gateways).items():
            self.failed[ids[name]] = error
        return self._sound(seated)

    def _routed(self, seated: Sequence[Seated]) -> list[tuple[Seated, IPv4Network]]:
        return [(s, IPv4Network(s.vif.address)) for s in seated if s.vif.address not in self._pool]

    @staticmethod
    def _dom0() -> int:
        return links.there(DOM0_DEVICE).index

    def undo(self, failed: Sequence[Vif]) -> None:
        """Removes the interfaces that were made for VIFs which then were refused something else."""
        for vif in failed:
            if vif.interface in self._made:
                self._step(f"{vif.interface}: remove it again")
                links.delete_link(vif.interface)

    def found(self, domains: Sequence[Domain]) -> dict[int, int]:
        """Id -> index of the interface, of the domains whose own is there."""
        with Rtnl("looking for interfaces") as kernel:
            there = {d.id: links.ask(kernel, d.interface) for d in domains}
        return {d.id: link.index for d in domains if (link := there[d.id]) and _is_own(d, link)}

    def take_down(self, domains: Sequence[Domain], indexes: Mapping[int, int]) -> None:
        """Domains, at least one, whose interfaces (`found`) were made for them, and all that speaks of them."""
        with Rtnl("removing interfaces") as kernel:
            self._step("leave the domains")
            self._fp.leave([(d.slot, indexes[d.id], d.address, d.mac) for d in domains])
            self._step("mark their interfaces")
            kernel.ask_each([links.changed(index, group=guard.LEAVING) for index in indexes.values()])
            # The kernel comes back when no program can be looking at anything of theirs: retire_slots needs that.
            self._step(f"remove {len(indexes)} interfaces")
            kernel.do(*links.no_group(guard.LEAVING))
            self._step("no routes to them")
            away = [d.address for d in domains if d.address not in self._pool]
            dom0 = self._dom0() if away else 0
            kernel.ask_each([links.no_route(dom0, IPv4Network(address)) for address in away])
        self._step("give back their tables")
        self._fp.retire_slots([Tenant(d.slot, d.id, d.limits, d.port_low, d.port_count) for d in domains])
        for d in domains:
            self._step(f"unpin {d.interface}")
            self._fp.detach(None, d.interface)


def _tenant(vif: Vif) -> Tenant:
    return Tenant(vif.slot, vif.id, vif.limits, vif.port_low, vif.port_count)


def _pair(vif: Vif, mtu: int, doors: Doors) -> tuple[int, int, bytes]:
    assert vif.netns is not None
    ends = vif.interface, GUEST_END, GATEWAY_MAC, vif.guest.mac or vif.mac
    return links.veth(*ends, mtu, guard.GROUP, doors.handle(vif.netns))


def _is_own(d: Domain, link: Link) -> bool:
    ours = mark.read(link.alias)
    return ours is not None and ours.owner == d.id and not ours.memory
