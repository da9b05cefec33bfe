"""The executor: reads what is there, and carries out a plan's changes one small step at a time.

Before each step `on_step` is called with its text; a process that dies there leaves something that the
next command's plan completes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vfr import mark
from vfr._abi import Deliver
from vfr.errors import KernelError
from vfr.instance import Instance
from vfr.kernel import guard, links, mounts, sorter, survey
from vfr.kernel.fastpath import Config, DomainRow, Fastpath, Forward, Hook
from vfr.plan import DOM0_DEVICE, DOM0_ID, DOM0_VIF, GATEWAY_MAC, SORTER, Actual, Change, Port, Vif
from vfr.policy.amend import Patch, fresh_of
from vfr.registry import in_line

if TYPE_CHECKING:
    from vfr.doctor import Hook as DoctorHook
    from vfr.policy import CompiledPolicy

# What the host's stack is told about a VIF, so that even with no program and no nftables it takes
# nothing that a guest sends: no route leads there, so strict reverse path filtering drops every source.
HARDENING = {
    ("ipv4", "rp_filter"): 1,
    ("ipv4", "forwarding"): 0,
    ("ipv4", "accept_redirects"): 0,
    ("ipv6", "disable_ipv6"): 1,
}
_PARENTS = (Path("/run/vfr/netns"), Path("/run/vfr"))


def _owner(link: links.Link) -> int | None:
    ours = mark.read(link.alias)
    return ours.owner if ours else None


def _is_made_for(link: links.Link, vif: Vif) -> bool:
    """Whether it is this VIF's, with its other end in the namespace that now has the name."""
    ours = mark.read(link.alias)
    return ours is not None and (ours.owner, ours.home) == (vif.id, vif.home)


def row_of(vif: Vif, device: int, mtu: int) -> DomainRow:
    """What the fastpath is told of a VIF, whose packets are handed over at the interface of index `device`."""
    deliver = {"dom0": Deliver.DELIVER_DOM0, "netns": Deliver.DELIVER_PEER}.get(vif.kind, Deliver.DELIVER_DEVICE)
    own = vif.id, vif.address, vif.mac, device, mtu, deliver, vif.port_low, vif.port_count
    return DomainRow(*own, vif.limits, vif.guest, vif.dhcp)


class Host:
    """The kernel side of one instance. Close it when done."""

    def __init__(self, instance: Instance, on_step: Callable[[str], None] | None = None) -> None:
        self.instance = instance
        self.pins = mounts.seen_from_here(instance.bpffs)
        self.note = instance.runtime / "guard"
        self.book = instance.runtime / "policy.book"
        self.policy: Callable[[Path, str | None], CompiledPolicy | Patch] | None = None
        self._on_step = on_step
        self._fastpath: Fastpath | None = None
        if mounts.is_mounted(instance.bpffs):
            self._fastpath = Fastpath.open(self.pins)

    def close(self) -> None:
        if self._fastpath:
            self._fastpath.close()
            self._fastpath = None

    @property
    def fastpath(self) -> Fastpath:
        assert self._fastpath is not None, "a plan loads the fastpath before it uses it"
        return self._fastpath

    @property
    def is_loaded(self) -> bool:
        return self._fastpath is not None

    def _step(self, text: str) -> None:
        if self._on_step:
            self._on_step(text)

    # Reading

    def read(self, pool: IPv4Network, uplink: str | None) -> Actual:
        """What is there now."""
        ports = {name: self._port(link, uplink) for name, link in links.links().items()}
        mounted = mounts.is_mounted(self.instance.bpffs)
        in_force = guard.in_force(self.note)
        if not self.is_loaded:
            return Actual(mounted=mounted, ports=ports, guard=in_force)
        dom0 = ports.get(DOM0_DEVICE)
        routes = links.routes_of(dom0.index) if dom0 else {}
        fp = self.fastpath
        return Actual(
            mounted=mounted,
            loaded=True,
            ports=ports,
            config=fp.config(),
            domains=fp.domains(),
            vifs=fp.vifs(),
            addresses=fp.addresses(),
            macs=fp.macs(),
            tables=fp.tables(),
            forwards=fp.forwards(),
            pins=fp.links(),
            digest=fp.policy_digest(),
            guard=in_force,
            routes=frozenset(routes),
            localnet=bool(dom0 and links.get_conf(DOM0_DEVICE, "route_localnet")),
            sorter=self._sorter(),
        )

    def _port(self, link: links.Link, uplink: str | None) -> Port:
        ours = mark.read(link.alias)
        owner, home = (ours.owner, ours.home) if ours else (None, None)
        attached = None
        if self.is_loaded and (owner is not None or link.name == uplink):
            hook: Hook = "uplink" if link.name == uplink else "sorter" if link.name == SORTER else "vif"
            attached = self.fastpath.attached(link.index, hook)
        hardened = (
            owner is not None
            and link.noarp
            and link.group == guard.GROUP
            and all(
                links.get_conf(link.name, name, family) in (value, None) for (family, name), value in HARDENING.items()
            )
        )
        return Port(link.index, link.up, link.mtu, hardened, owner, attached, home)

    # Reading, for `vfr doctor`

    def guard_state(self) -> Literal["in force", "gone", "changed"]:
        """What became of the guard, whatever it is to say now."""
        if guard.in_force(self.note) is not None:
            return "in force"
        return "changed" if guard.is_there() else "gone"

    def hooks(self, vifs: Iterable[str], uplink: str | None) -> Iterator[DoctorHook]:
        """What runs on the interfaces that are there; nothing while there is no fastpath to compare with."""
        wanted: list[tuple[str, Hook]] = [(name, "vif") for name in (DOM0_VIF, *vifs)]
        wanted.append((SORTER, "sorter"))
        if uplink:
            wanted.append((uplink, "uplink"))
        for name, kind in wanted if self.is_loaded else ():
            found = survey.hook(name, self.fastpath.program(kind))
            if found:
                yield found

    def unhardened(self) -> Iterator[str]:
        """Our interfaces that have lost what the host's stack was told about them."""
        for name, link in links.links().items():
            if _owner(link) is not None and not self._port(link, None).hardened:
                yield name

    def leftover(self) -> Iterator[str]:
        """What is here of a router, of which there is none."""
        yield from (name for name, link in links.links().items() if _owner(link) is not None)
        if mounts.is_mounted(self.instance.bpffs):
            yield str(self.instance.bpffs)
        if guard.is_there():
            yield "nftables tables of VFR's"

    # Doing

    def apply(self, changes: list[Change]) -> None:
        """Carries the changes out, in order. KernelError from the first that fails."""
        for change in changes:
            self._step(change.text)
            getattr(self, change.verb)(*change.args)

    def mount(self) -> None:
        mounts.mount(self.instance.bpffs)

    def load(self) -> None:
        """VFR_OFFLOAD=witness asks for the way that kernels before 6.2 need (fastpath/witness.h)."""
        settings = {"kernel_context": 0} if os.environ.get("VFR_OFFLOAD") == "witness" else None
        self._fastpath = Fastpath.load(self.pins, settings)

    def write_guard(self, wanted: guard.Guard) -> None:
        guard.install(wanted, self.note)

    def configure(self, config: Config, outside_before: IPv4Address | None) -> None:
        """A new outside address ends what was translated to the old one."""
        fp = self.fastpath
        fp.set_config(config)
        if outside_before is not None and outside_before != config.outside:
            for slot, row in fp.domains().items():
                fp.new_tables(slot, row.limits, row.port_count, row.generation)
                fp.clear_block(row.port_low, row.port_count)

    def clear_vif(self, index: int) -> None:
        self.fastpath.clear_vif(index)

    def clear_address(self, address: IPv4Address) -> None:
        self.fastpath.clear_address(address)

    def hold_address(self, address: IPv4Address, slot: int) -> None:
        self.fastpath.set_address(address, slot)

    def clear_mac(self, mac: str) -> None:
        self.fastpath.clear_mac(mac)

    def clear_slot(self, slot: int, port_low: int, port_count: int) -> None:
        self.fastpath.clear_domain(slot)
        self.fastpath.drop_tables(slot)
        self.fastpath.clear_block(port_low, port_count)

    def drop_tables(self, slot: int) -> None:
        self.fastpath.drop_tables(slot)

    def unpin(self, name: str) -> None:
        link = links.link(name.removeprefix("uplink-"))
        self.fastpath.detach(link.index if link else None, name)

    def set_forwards(self, forwards: Sequence[Forward]) -> None:
        for forward in forwards:
            self.fastpath.set_forward(forward)

    def clear_forwards(self, forwards: Sequence[Forward]) -> None:
        for forward in forwards:
            self.fastpath.clear_forward(forward.protocol, forward.outside_port)

    def replace_policy(self) -> None:
        assert self.policy is not None
        found = self.policy(self.book, self.fastpath.policy_digest())
        if isinstance(found, Patch):
            self.fastpath.amend_policy(found)
        else:
            self.fastpath.replace_policy(found)

    def route(self, net: IPv4Network) -> None:
        device = links.there(DOM0_DEVICE)
        config = self.fastpath.config()
        assert config is not None
        links.replace_route(device.index, net, config.gateway)

    def unroute(self, net: IPv4Network) -> None:
        links.delete_route(links.there(DOM0_DEVICE).index, net)

    def attach_uplink(self, name: str, index: int) -> None:
        self.fastpath.attach(index, "uplink", f"uplink-{name}")

    def set_localnet(self, on: bool) -> None:
        """127/8 may come back from vfr0: the answers to the host's own use of its forwards. The
        fastpath drops whatever else a guest would send there."""
        links.set_conf(DOM0_DEVICE, "route_localnet", int(on))

    # The sorter

    @property
    def sorter_note(self) -> Path:
        return self.instance.runtime / "sorter.mtu"

    def _sorter(self) -> tuple[int, int] | None:
        """What its note says, which is written last."""
        if not self.sorter_note.exists():
            return None
        index, _, mtu = self.sorter_note.read_text().partition(" ")
        return int(index), int(mtu)

    def make_sorter(self, mtu: int, fragments_s: int) -> None:
        """A fresh one, whatever is left of another: filter first, link up second, then it is spoken to."""
        self._forget_sorter()
        sorter.make_namespace(self.instance.sorter, fragments_s)
        self._step(f"{SORTER}: make it")
        index = sorter.connect(SORTER, GATEWAY_MAC, self.instance.sorter)
        self._step(f"{SORTER}: nothing for the host's stack")
        links.set_link(index, alias=str(mark.Mark(DOM0_ID)))
        self._harden_link(SORTER, index)
        self._step(f"{SORTER}: attach")
        self.fastpath.attach(index, "sorter", SORTER)
        links.set_link(index, state="up")
        self.set_sorter_mtu(mtu)
        config = self.fastpath.config()
        assert config is not None
        self._step(f"{SORTER}: use it")
        self.fastpath.set_config(replace(config, sorter_ifindex=index))

    def set_sorter_mtu(self, mtu: int) -> None:
        sorter.set_mtu(self.instance.sorter, mtu)
        self.sorter_note.write_text(f"{links.there(SORTER).index} {mtu}")

    def _forget_sorter(self) -> None:
        self.sorter_note.unlink(missing_ok=True)
        links.delete_link(SORTER)
        if self.is_loaded and SORTER in self.fastpath.links():
            self.fastpath.detach(None, SORTER)
        sorter.release_namespace(self.instance.sorter)

    # One VIF, filter first, link up second

    def bring_up(self, vif: Vif, mtu: int) -> None:
        """Makes a VIF what it is to be, whatever state it is in."""
        link = self._made(vif, mtu)
        fp = self.fastpath
        if fp.attached(link.index, "vif") is None or fp.vifs().get(link.index) != vif.slot:
            self._step(f"{vif.interface}: down while it is not filtered")
            links.set_link(link.index, state="down")
        self._harden(vif, link)
        self._enter(vif, link)
        if fp.attached(link.index, "vif") is None or vif.interface not in fp.links():
            self._step(f"{vif.interface}: attach")
            fp.attach(link.index, "vif", vif.interface)
        if vif.netns:
            self._step(f"{vif.interface}: configure the guest's end")
            links.configure_guest(
                vif.netns, "eth0", vif.guest.address or vif.address, vif.guest.gateway or self._gateway()
            )
        if vif.device != vif.interface:
            self._dom0_device()
        self._step(f"{vif.interface}: up")
        links.set_link(link.index, state="up")

    def _gateway(self) -> IPv4Address:
        config = self.fastpath.config()
        assert config is not None
        return config.gateway

    def _made(self, vif: Vif, mtu: int) -> links.Link:
        """The interface, made now if need be. Again, if its making broke off before it had an owner, or if
        its other end is in a namespace that has lost its name to another."""
        link = links.link(vif.interface)
        if link and vif.kind != "device" and not _is_made_for(link, vif):
            self._step(f"{vif.interface}: remove what an interrupted command or a former namespace left")
            self.fastpath.clear_vif(link.index)
            links.delete_link(vif.interface)
            link = None
        if link is None:
            self._step(f"{vif.interface}: make it")
            self._make(vif, mtu)
            self._own(vif, links.there(vif.interface), mtu)
            link = links.there(vif.interface)
        return link

    @staticmethod
    def _own(vif: Vif, link: links.Link, mtu: int) -> None:
        """Says whose it is, at once: what nobody owns nobody would take away again. And its MTU, once: the guest's own
        end would not follow another, and what it sends would be too long for ours."""
        try:
            links.set_link(link.index, mtu=mtu, alias=str(mark.Mark(vif.id, vif.home)))
        except KernelError:
            links.delete_link(vif.interface)
            raise

    @staticmethod
    def _make(vif: Vif, mtu: int) -> None:
        if vif.kind == "device":
            raise KernelError(f"looking for the interface {vif.interface}", 19)
        if vif.kind == "tap":
            links.make_tap(vif.interface)
        elif vif.kind == "dom0":
            links.make_veth(vif.interface, vif.device, None, GATEWAY_MAC, vif.mac, mtu, group=guard.GROUP)
        else:
            links.make_veth(
                vif.interface, "eth0", vif.netns, GATEWAY_MAC, vif.guest.mac or vif.mac, mtu, group=guard.GROUP
            )

    def _harden(self, vif: Vif, link: links.Link) -> None:
        self._step(f"{vif.interface}: nothing for the host's stack")
        if _owner(link) != vif.id:
            ours = mark.Mark(vif.id, vif.home, self._memory(link))
            links.set_link(link.index, alias=str(ours))
        self._harden_link(vif.interface, link.index)
        if vif.kind == "tap":
            links.set_link(link.index, address=GATEWAY_MAC)

    @staticmethod
    def _harden_link(name: str, index: int) -> None:
        links.set_link(index, noarp=True, group=guard.GROUP)
        for (family, conf), value in HARDENING.items():
            links.set_conf(name, conf, value, family)

    @staticmethod
    def _memory(link: links.Link) -> str:
        """What a given device was like, kept in its own alias so that it goes where the device goes."""
        conf = {f"{f}.{n}": links.get_conf(link.name, n, f) for f, n in HARDENING}
        return json.dumps({"up": link.up, "noarp": link.noarp, "group": link.group, "conf": conf, "alias": link.alias})

    def _enter(self, vif: Vif, link: links.Link) -> None:
        """The rows, in the order in which nothing points to what is not there yet."""
        fp = self.fastpath
        row = fp.domains().get(vif.slot)
        # A domain that was stopped, or is being restored, has its tables and no row.
        if (row.generation if row else fp.table_owner(vif.slot)) != vif.id or vif.slot not in fp.tables():
            self._step(f"{vif.interface}: fresh tables")
            fp.clear_domain(vif.slot)
            fp.new_tables(vif.slot, vif.limits, vif.port_count, vif.id)
            fp.clear_block(vif.port_low, vif.port_count)
            fp.reset_counters(vif.slot)
        elif row and fp.sizes(row.limits, vif.port_count) != fp.sizes(vif.limits, vif.port_count):
            self._step(f"{vif.interface}: tables of another size")
            fp.resize_tables(vif.slot, vif.limits, vif.port_count)
        self._step(f"{vif.interface}: enter the domain")
        device = links.there(vif.device)
        fp.set_domain(vif.slot, row_of(vif, device.index, device.mtu))
        fp.set_address(vif.address, vif.slot)
        fp.set_mac(vif.mac, vif.slot)
        fp.set_vif(link.index, vif.slot)

    def _dom0_device(self) -> None:
        """Domain 0's own end: its address, and up. Routes follow."""
        device = links.there(DOM0_DEVICE)
        self._step(f"{DOM0_DEVICE}: address and up")
        links.set_conf(DOM0_DEVICE, "disable_ipv6", 1, "ipv6")
        links.add_address(device.index, IPv4Interface(f"{self._gateway()}/32"))
        links.set_link(device.index, state="up")

    # The way out

    def take_down(self, name: str) -> None:
        """An interface that is nobody's any more: ours is deleted, a given one goes back as it was."""
        link = links.link(name)
        if link is None:
            return
        ours = mark.read(link.alias)
        if ours is None or not ours.memory:
            links.delete_link(name)
            if self.is_loaded:
                self.fastpath.clear_vif(link.index)
            return
        self._step(f"{name}: down")
        links.set_link(link.index, state="down")
        if self.is_loaded:
            self.fastpath.clear_vif(link.index)
            self.fastpath.detach(link.index, name)
        self._step(f"{name}: as it was")
        before = json.loads(ours.memory)
        for key, value in before["conf"].items():
            family, _, conf = key.partition(".")
            if value is not None:
                links.set_conf(name, conf, value, family)
        links.set_link(link.index, noarp=before["noarp"], group=before.get("group", 0))
        links.set_link(link.index, alias=before["alias"])
        if before["up"]:
            links.set_link(link.index, state="up")

    def tear_down(self) -> None:
        """Gives everything back: interfaces, uplink, programs and maps, guard, mount, directories."""
        for name, link in links.links().items():
            if _owner(link) is not None and name != DOM0_DEVICE:
                self._step(f"remove {name}")
                self.take_down(name)
        self._step("release the sorter")
        self._forget_sorter()
        if self.is_loaded:
            for name in self.fastpath.links():
                self._step(f"unpin {name}")
                self.unpin(name)
            self.close()
        if mounts.is_mounted(self.instance.bpffs):
            self._step("unload the fastpath")
            Fastpath.unload(self.pins)
            mounts.unmount(self.instance.bpffs)
        self._step("remove the nftables guard")
        guard.remove()
        self._step("remove the directories")
        self._remove_files()

    def _remove_files(self) -> None:
        """Our files, the lock last, then every directory that nobody else's VFR is in."""
        instance = self.instance
        journal = instance.registry.with_name(instance.registry.name + "-journal")
        ours = (self.note, self.book, fresh_of(self.book), journal, instance.registry, instance.unfinished)
        for path in (*ours, in_line(instance.lock), instance.lock):
            path.unlink(missing_ok=True)
        for directory in (instance.state, instance.runtime, *_PARENTS):
            with suppress(FileNotFoundError):
                if not any(directory.iterdir()):
                    directory.rmdir()
