"""Many domains added or removed at once: in parts, each with the lock for itself, and at a cost that does not grow with
how many domains there are.

What every other command does, to compare all of the kernel with all of the registry, takes longer the more domains there are.
A part of a burst touches only what is its own: the rows of its domains in the registry, and in the kernel what is new or
goes. That is right only where all else is in order, as far as that can be known at little cost: no command has died at
work (Instance.unfinished), nothing waits to be confirmed, and the fastpath is there, set up as the registry says, with the
policy that it says. Where it is not, or a domain is not simple, the part goes the way of every command.

A part writes down what it wants before it touches the kernel, as every command does, and notes that it is at work. If
it dies, the note stays, and the next command, or part, does all of the work.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, TypeVar

from vfr import forwards
from vfr.choose import (
    GATEWAY,
    Blocks,
    Taken,
    check_name,
    check_place,
    choose_address,
    choose_guest,
    choose_mac,
    derived_interface,
    is_defined,
    is_there,
)
from vfr.errors import VfrError
from vfr.forwards import POOL
from vfr.instance import Instance
from vfr.policy.language import DomainLine
from vfr.registry import Contents, Domain, Registry, locked
from vfr.ruling import digest
from vfr.settings import Limits
from vfr.wanted import MTU, config_of, forwards_of, guard_of, uplink_now, vif_of

if TYPE_CHECKING:
    from vfr.kernel.doors import Doors
    from vfr.kernel.fastpath import Hook
    from vfr.plan import Uplink

T = TypeVar("T")
PART = 50  # domains: what others wait for at the most, once they stand in line
Failed = dict[str, VfrError]
Addresses = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one name. `address` is the domain's, None if it failed or was removed; `error` says why, None if
    all is well; `seconds` is its share of the time that its part took."""

    name: str
    address: str | None
    error: str | None
    seconds: float


class _Interfaces:
    """The names of the interfaces here, each asked for by itself."""

    def __contains__(self, name: object) -> bool:
        with suppress(OSError):
            return socket.if_nametoindex(str(name)) > 0
        return False


class _HalfDone(Exception):
    """Something of a part was refused."""


class _Ground:
    """What parts stand on: the registry and the fastpath, open, and what is known of them until somebody else writes."""

    def __init__(self, instance: Instance, on_step: Callable[[str], None] | None) -> None:
        from vfr.kernel.host import Host

        self.stamp = _stamp(instance)
        self.registry = Registry(instance.registry)
        self.host = Host(instance, on_step)
        self._seen: int | None = None
        self._digest: tuple[Uplink | None, str] | None = None
        self._taken: Taken | None = None
        self._blocks: Blocks | None = None
        self.settings = Contents()

    def close(self) -> None:
        self.registry.close()
        self.host.close()

    def look(self) -> None:
        """Reads anew what others have written since."""
        seen = self.registry.changes_by_others()
        if seen != self._seen:
            self.forget()
            self._seen = seen

    def forget(self) -> None:
        """What is known of the registry is read anew."""
        self.settings = self.registry.settings()
        self._taken, self._blocks, self._digest = None, None, None

    def gone(self) -> None:
        """Domains have gone: what those that are left have is read anew when it is asked for."""
        self._taken, self._blocks = None, None

    @property
    def taken(self) -> Taken:
        if self._taken is None:
            self._taken = Taken.of(self.registry.seats())
        return self._taken

    @property
    def blocks(self) -> Blocks:
        if self._blocks is None:
            before = replace(self.settings, returned=self.registry.settings().returned)
            self._blocks = Blocks(before, self.registry.low_ports())
        return self._blocks

    def is_in_order(self, up: Uplink | None) -> bool:
        """Whether what every domain needs is there."""
        from vfr.kernel import links
        from vfr.plan import DOM0_VIF, SORTER

        rules, nat = self.settings.rules, self.settings.nat
        dom0, sorter = links.link(DOM0_VIF), links.link(SORTER)
        is_old = rules is not None and bool(rules.text) and not rules.numbers
        if self.settings.pending or is_old or dom0 is None or sorter is None or (nat and up is None):
            return False
        fp = self.host.fastpath
        hooks: list[tuple[int, Hook]] = [(dom0.index, "vif"), (sorter.index, "sorter")]
        if up:
            hooks.append((up.index, "uplink"))
        return (
            fp.config() == config_of(self.settings, up, sorter.index)
            and fp.policy_digest() == self._policy(up)
            and all(fp.attached(index, hook) for index, hook in hooks)
        )

    def _policy(self, up: Uplink | None) -> str:
        if self._digest is None or self._digest[0] != up:
            rules = self.settings.rules
            slots = {d.name: d.slot for d in self.registry.named(rules.names)} if rules and rules.names else {}
            self._digest = up, digest(rules, slots, up.lan if up else None)
        return self._digest[1]

    def is_named_by_rules(self, name: str) -> bool:
        return self.settings.rules is not None and name in self.settings.rules.names

    def has_forward(self, d: Domain) -> bool:
        own = self.settings.rules.forwards if self.settings.rules else ()
        return forwards.ssh_port(d.address, self.settings.nat) is not None or any(f.domain == d.name for f in own)


def _stamp(instance: Instance) -> tuple[int, int] | None:
    """What tells this registry and this fastpath from others that had their places; None if they are not both there."""
    from vfr.kernel import mounts, upgrade

    pins = mounts.seen_from_here(instance.bpffs)
    try:
        if not mounts.is_mounted(instance.bpffs) or upgrade.is_under_way(pins):
            return None
        return instance.registry.stat().st_ino, (pins / "fastpath").stat().st_ino
    except FileNotFoundError:
        return None


class Bursts:
    """Adds and removes many domains. `change` is what does it for those that are not simple, as every command does."""

    def __init__(
        self,
        instance: Instance,
        on_step: Callable[[str], None] | None,
        slow_add: Callable[[Sequence[DomainLine]], tuple[Failed, Addresses]],
        slow_remove: Callable[[Sequence[str]], Failed],
    ) -> None:
        self._instance, self._on_step = instance, on_step
        self._slow_add, self._slow_remove = slow_add, slow_remove
        self._ground: _Ground | None = None
        self._is_left = False

    def close(self) -> None:
        if self._ground:
            self._ground.close()
            self._ground = None

    def _step(self, text: str) -> None:
        if self._on_step:
            self._on_step(text)

    # What a part stands on

    def _standing(self) -> tuple[_Ground, Uplink | None] | None:
        """The ground, if a part can stand on it; None if all is to be looked at first. Under the lock."""
        stamp = None if self._instance.unfinished.exists() else _stamp(self._instance)
        if self._ground and self._ground.stamp != stamp:
            self.close()
        if stamp is None:
            return None
        self._ground = self._ground or _Ground(self._instance, self._on_step)
        if not self._ground.host.is_loaded:
            return None
        self._ground.look()
        up = uplink_now(self._ground.settings.nat)
        return (self._ground, up) if self._ground.is_in_order(up) else None

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The note that a part is at work stays if it does not come to its end."""
        self._instance.unfinished.touch()
        self._is_left = True
        yield
        self._instance.unfinished.unlink()
        self._is_left = False

    def _look_at_all(self) -> None:
        """What a part left half done is done, or undone, as the registry has it now."""
        if self._is_left:
            self._is_left = False
            self.close()
            self._slow_remove(())

    # Adding

    def add(self, lines: Iterable[DomainLine], told: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
        """Adds domains; each one's outcome, also to `told` as soon as its part is done. Of lines that say the same name
        the first counts, and the outcomes of the others come last."""
        wanted: dict[str, DomainLine] = {}
        again = [line.name for line in lines if wanted.setdefault(line.name, line) is not line]
        outcomes = self._in_parts(list(wanted.values()), self._add_part, lambda line: line.name, told)
        repeated = tuple(Outcome(name, None, f"the domain {name!r} is asked for twice", 0.0) for name in again)
        for outcome in repeated:
            told(outcome)
        return outcomes + repeated

    def _add_part(self, lines: Sequence[DomainLine]) -> tuple[Failed, Addresses]:
        failed: Failed = {}
        added: Addresses = {}
        left = list(lines)
        with locked(self._instance.lock):
            standing = self._standing()
            if standing is not None:
                failed, left = self._add_here(*standing, lines, added)
        self._look_at_all()
        if left:
            at_once = left if standing else left[:1]  # which sets right what is not in order
            self.close()
            others = [self._slow_add(at_once)]
            if left[len(at_once) :]:
                others.append(self._add_part(left[len(at_once) :]))
            for more_failed, more_added in others:
                failed, added = failed | more_failed, added | more_added
        return failed, added

    def _add_here(
        self, ground: _Ground, up: Uplink | None, lines: Sequence[DomainLine], added: dict[str, str]
    ) -> tuple[Failed, list[DomainLine]]:
        """What failed, and the lines that are not simple."""
        from vfr.kernel.doors import Doors

        simple = [line for line in lines if line.kind == "netns" and not ground.is_named_by_rules(line.name)]
        with Doors([line.place for line in simple]) as doors:
            failed, domains = self._made(ground, simple, doors)
            if domains:
                failed |= self._enter(ground, domains, up, doors)
        added |= {d.name: str(d.address) for d in domains if d.name not in failed}
        return failed, [line for line in lines if line not in simple]

    def _enter(self, ground: _Ground, domains: Sequence[Domain], up: Uplink | None, doors: Doors) -> Failed:
        """What the kernel would not do. Those are not wanted any more, and what is half made of them is taken away: the
        interfaces that nobody would know at once, all else when everything is looked at."""
        from vfr.kernel.crew import Crew

        vifs = [replace(vif_of(d, ground.settings.dhcp), home=doors.home(d.netns or "")) for d in domains]
        names = {d.id: d.name for d in domains}
        crew = Crew(ground.host.fastpath, POOL, GATEWAY, self._step)
        with suppress(_HalfDone), self._at_work():
            with ground.registry.transaction():
                ground.registry.add(domains)
            try:
                crew.bring_up(vifs, up.mtu if up else MTU, doors)
                self._open_forwards(ground, [d for d in domains if d.id not in crew.failed], up)
            except VfrError as error:  # it is about all of them
                crew.failed |= {number: error for number in names if number not in crew.failed}
            if crew.failed:
                with ground.registry.transaction():
                    ground.registry.remove([d for d in domains if d.id in crew.failed])
                crew.undo([vif for vif in vifs if vif.id in crew.failed])
                raise _HalfDone
        return {names[number]: error for number, error in crew.failed.items()}

    def _made(self, ground: _Ground, lines: Sequence[DomainLine], doors: Doors) -> tuple[Failed, list[Domain]]:
        """The domains as they are to be, each with what nobody else has."""
        from vfr.kernel import links

        failed: Failed = {}
        made: list[Domain] = []
        ids = itertools.count(max(ground.registry.next_id(), 2))  # 1 is domain 0's
        hosts = cache(links.addresses)
        for line in lines:
            try:
                d = self._new_domain(ground, line, doors, next(ids), hosts)
            except VfrError as error:
                failed[line.name] = error
            else:
                made.append(d)
                ground.taken.add(d)
        return failed, made

    @staticmethod
    def _new_domain(
        ground: _Ground,
        line: DomainLine,
        doors: Doors,
        number: int,
        hosts: Callable[[], Sequence[tuple[int, IPv4Interface]]],
    ) -> Domain:
        settings, taken = ground.settings, ground.taken
        check_name(line.name)
        if line.name in taken.names:
            raise is_there(line.name)
        if settings.rules and line.name in settings.rules.defined:
            raise is_defined(line.name, settings.rules)
        interface = derived_interface(line.name)
        check_place("netns", line.place, interface, taken, settings.nat, _Interfaces(), (line.place,))
        if line.place in doors.failed:
            raise doors.failed[line.place]
        said = dict(line.guest)
        limits, slot = Limits(**dict(line.limits)), taken.free_slot()
        guest = choose_guest(said.get("address"), said.get("mac"), said.get("gateway"), settings)
        address = choose_address(line.address, taken.addresses, hosts)
        mac = choose_mac(line.mac, line.name, taken.macs)
        low, count = ground.blocks.take()
        return Domain(number, line.name, "netns", line.place, interface, address, mac, slot, low, count, limits, guest)

    def _open_forwards(self, ground: _Ground, domains: Sequence[Domain], up: Uplink | None) -> None:
        """Those that lead to new domains, in the fastpath and for the host itself."""
        if not any(ground.has_forward(d) for d in domains):
            return
        self._step("open forwards")
        slots = {d.slot for d in domains}
        ways = forwards.ways(ground.registry.read(), up is not None)
        ground.host.set_forwards([f for f in forwards_of(ways) if f.slot in slots])
        ground.host.write_guard(guard_of(up, ways))

    # Removing

    def remove(self, names: Iterable[str], told: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
        """Removes domains; each one's outcome, as add has it."""
        return self._in_parts(list(dict.fromkeys(names)), self._remove_part, str, told)

    def _remove_part(self, names: Sequence[str]) -> tuple[Failed, Addresses]:
        with locked(self._instance.lock):
            standing = self._standing()
            left = list(names) if standing is None else self._remove_here(*standing, names)
        if not left:
            return {}, {}
        self.close()
        return self._slow_remove(left), {}

    def _remove_here(self, ground: _Ground, up: Uplink | None, names: Sequence[str]) -> list[str]:
        """The names that are not simple, or that there are not."""
        from vfr.kernel.crew import Crew

        crew = Crew(ground.host.fastpath, POOL, GATEWAY, self._step)
        wanted = [d for d in ground.registry.named(names) if d.kind == "netns" and d.saved is None]
        indexes = crew.found([d for d in wanted if not ground.is_named_by_rules(d.name)])
        domains = [d for d in wanted if d.id in indexes]
        is_last = ground.settings.nat is None and len(domains) == ground.registry.count()
        if not domains or is_last:
            return list(names)
        with self._at_work():
            before = forwards.ways(ground.registry.read(), up is not None) if self._lead_to(ground, domains) else ()
            with ground.registry.transaction():
                ground.registry.remove(domains)
            self._close_forwards(ground, domains, before, up)
            crew.take_down(domains, indexes)
            ground.gone()
        gone = {d.name for d in domains}
        return [name for name in names if name not in gone]

    @staticmethod
    def _lead_to(ground: _Ground, domains: Sequence[Domain]) -> bool:
        return any(ground.has_forward(d) for d in domains)

    def _close_forwards(
        self, ground: _Ground, domains: Sequence[Domain], before: tuple[forwards.Way, ...], up: Uplink | None
    ) -> None:
        slots = {d.slot for d in domains}
        if all(way.slot not in slots for way in before):
            return
        self._step("close forwards")
        ground.host.clear_forwards([f for f in forwards_of(before) if f.slot in slots])
        ground.host.write_guard(guard_of(up, tuple(way for way in before if way.slot not in slots)))

    # Parts

    @staticmethod
    def _in_parts(
        wanted: Sequence[T],
        work: Callable[[Sequence[T]], tuple[Failed, Mapping[str, str]]],
        name_of: Callable[[T], str],
        told: Callable[[Outcome], None],
    ) -> tuple[Outcome, ...]:
        outcomes: list[Outcome] = []
        for at in range(0, len(wanted), PART):
            part = wanted[at : at + PART]
            began = time.monotonic()
            failed, addresses = work(part)
            seconds = (time.monotonic() - began) / len(part)
            for name in map(name_of, part):
                error = failed.get(name)
                outcomes.append(Outcome(name, addresses.get(name), str(error) if error else None, seconds))
                told(outcomes[-1])
        return tuple(outcomes)


__all__ = ["PART", "Bursts", "Outcome"]
