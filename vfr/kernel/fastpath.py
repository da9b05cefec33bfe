"""The running fastpath: its maps and programs as typed rows, behind the pins that keep it alive.

`pins` is a directory on a bpffs. Below it, `fastpath/` holds programs and maps, `links/` what is
attached. Nothing but this module and its neighbours in vfr.kernel knows how rows are laid out.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from vfr import _abi
from vfr._abi import Action, Deliver, Holder, Kind, Limit, Space, Verdict
from vfr.errors import ConflictError, KernelError
from vfr.kernel import attach, bpf, layout, loader
from vfr.kernel.ringbuf import RingBuffer
from vfr.policy.compile import level_bit
from vfr.settings import CAPS, LAN_FRAGMENTS, Dhcp, Limits, Timers, forgettable
from vfr.view import GuestWords

if TYPE_CHECKING:
    from vfr.policy import CompiledPolicy
    from vfr.policy.amend import Patch
    from vfr.policy.compile import Entry, Remote
    from vfr.policy.rules import Rule

Hook = Literal["vif", "uplink", "sorter"]
PROGRAMS: dict[Hook, str] = {"vif": "vif_ingress", "uplink": "uplink_ingress", "sorter": "sorter_ingress"}
SWEEP = "sweep_row"
# What tells the programs of offloads on kernels before 6.2; pinned where there is need of them.
WITNESSES = frozenset({"vif_witness", "uplink_witness", "sorter_witness"})
ROW_NAMES = {int(Limit.ROW_LAN): "lan", int(Limit.ROW_UNKNOWN): "unknown"}
_PROTOCOL_SPACE = {"tcp": Space.SPACE_TCP, "udp": Space.SPACE_UDP}
# Maps that no program reads, beside the object's: what control notes down in the kernel, for as long as
# the kernel's own state lives. Name -> (value size, places).
_DIGEST_SIZE = 64
NOBODY = 0xFFFFFFFF  # the owner of tables that nobody in particular has
_ACTIONS = {"allow": Action.ACTION_ALLOW, "reject": Action.ACTION_REJECT, "deny": Action.ACTION_DENY}
_ONE_BY_ONE = 2000  # so many rows are read faster each by itself than with all others
_HEADER = int(Limit.NODE_HEADER)
_TABLES = ("sessions", "inbound", "mappings", "fragments")
_LIMIT_FIELDS = {"fragments": "pieces"}  # whose fields in a row have other names
_IN_CAPS = frozenset({*CAPS, "burst_ms"})
_IN_ROW = {f.name: _LIMIT_FIELDS.get(f.name, f.name) for f in fields(Limits) if f.name not in _IN_CAPS}
_PER_CPU = ("counters", "offload", "dhcp_work", "arrival")
NOTES = {
    "digest": (_DIGEST_SIZE, 1),
    "complete": (4, int(Limit.SLOTS)),
    "witnessed": (4, 1),
    "object": (_DIGEST_SIZE, 1),  # which build it is
    "layout": (1 << 15, 1),  # of its tables, as text
}
OF_THE_BUILD = frozenset({"object", "layout"})
_VERDICTS_AT = _abi.Counters.by_verdict.offset
# What a counters row has -> the first of its two words.
_COUNTED = {name: getattr(_abi.Counters, name).offset // 8 for name in ("received", "errors")} | {
    v.name: _VERDICTS_AT // 8 + 2 * v for v in Verdict if v not in (Verdict.CONTINUE, Verdict.VERDICTS)
}
_COUNTERS_AT_ONCE = 256  # rows: a few hundred kilobytes for each CPU
_EXPIRES = struct.Struct(f"<Q{ctypes.sizeof(_abi.Session) - 8}x")
assert _abi.Session.expires_ns.offset == 0, "_EXPIRES reads it there"
_Row = TypeVar("_Row", bound=ctypes.Structure)


@dataclass(frozen=True, slots=True)
class Config:
    """What the whole router goes by. `outside` and `lan` are None while NAT is off; `uplink_rate` in bits a second, 0 if
    nobody knows what the uplink takes."""

    gateway: IPv4Address
    pool: IPv4Network
    outside: IPv4Address | None
    lan: IPv4Network | None
    uplink_ifindex: int
    uplink_mtu: int
    nat_low: int
    nat_high: int
    sorter_ifindex: int = 0
    timers: Timers = field(default_factory=Timers)
    uplink_rate: int = 0


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One slot's tenant. `generation` is never the same for two domains; `mtu` in bytes; `dhcp` is None if its guest is told
    nothing."""

    generation: int
    address: IPv4Address
    mac: str
    ifindex: int
    mtu: int
    deliver: Deliver
    port_low: int
    port_count: int
    limits: Limits = field(default_factory=Limits)
    guest: GuestWords = field(default_factory=GuestWords)
    dhcp: Dhcp | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose a slot is, by the generation `owner`, and of what size its tables are."""

    slot: int
    owner: int
    limits: Limits
    port_low: int
    port_count: int


@dataclass(frozen=True, slots=True)
class Forward:
    """An outside port ("tcp" or "udp") that leads to a slot's inside port."""

    protocol: str
    outside_port: int
    slot: int
    inside_port: int


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _from_u32(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _pair(raw: bytes) -> _abi.Pair:
    return _parse(_abi.Pair, raw)


def _numbers(rows: Mapping[bytes, bytes], of_rules: bool) -> set[int]:
    """The numbers of the rules, or of the sets, that rows of pairs lead to."""
    pairs = struct.iter_unpack("<HH", b"".join(rows))
    values = struct.iter_unpack("<II", b"".join(rows.values()))
    return {
        number
        for (_, target), (number, flags) in zip(pairs, values, strict=True)
        if target != _HEADER and bool(flags & Limit.PAIR_IS_RULE) == of_rules
    }


def _ports_key(number: int, entry: Entry) -> bytes:
    bits, ether, protocol, port, _ = entry
    return bytes(_abi.PortsKey(32 + bits, number, ether, protocol, port))


def _mac_key(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "")).ljust(8, b"\0")


def _parse(row: type[_Row], raw: bytes) -> _Row:
    return row.from_buffer_copy(raw)


def _config_row(config: Config, policy: int, clock_ahead_ns: int) -> bytes:
    lan = config.lan
    return bytes(
        _abi.Config(
            gateway=int(config.gateway),
            pool_base=int(config.pool.network_address),
            pool_mask=int(config.pool.netmask),
            outside_address=int(config.outside or 0),
            lan_base=int(lan.network_address) if lan else 0,
            lan_mask=int(lan.netmask) if lan else 0,
            uplink_ifindex=config.uplink_ifindex,
            uplink_mtu=config.uplink_mtu,
            sorter_ifindex=config.sorter_ifindex,
            policy=policy,
            nat_low=config.nat_low,
            nat_high=config.nat_high,
            clock_ahead_ns=clock_ahead_ns,
            timers=_abi.Timers(**{f"{name}_s": value for name, value in asdict(config.timers).items()}),
            uplink_rate=config.uplink_rate,
        )
    )


def _config(row: _abi.Config) -> Config:
    lan = IPv4Network((row.lan_base, str(IPv4Address(row.lan_mask)))) if row.lan_mask else None
    return Config(
        gateway=IPv4Address(row.gateway),
        pool=IPv4Network((row.pool_base, str(IPv4Address(row.pool_mask)))),
        outside=IPv4Address(row.outside_address) if row.outside_address else None,
        lan=lan,
        uplink_ifindex=row.uplink_ifindex,
        uplink_mtu=row.uplink_mtu,
        nat_low=row.nat_low,
        nat_high=row.nat_high,
        sorter_ifindex=row.sorter_ifindex,
        timers=Timers(**{f.name: getattr(row.timers, f"{f.name}_s") for f in fields(Timers)}),
        uplink_rate=row.uplink_rate,
    )


def _mac_bytes(mac: str) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * 6)(*bytes.fromhex(mac.replace(":", "")))


def _guest(row: _abi.Domain) -> GuestWords:
    """What the row says of its guest beyond what the router knows."""
    return GuestWords(
        IPv4Address(row.guest_address) if row.guest_address != row.address else None,
        bytes(row.guest_mac).hex(":") if bytes(row.guest_mac) != bytes(row.mac) else None,
        IPv4Address(row.guest_gateway) if row.guest_gateway else None,
    )


def _dns_words(servers: tuple[IPv4Address, ...]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32.__ctype_be__ * Limit.DHCP_DNS)(*map(int, servers))


def _dhcp(row: _abi.Domain) -> Dhcp | None:
    servers = tuple(IPv4Address(server) for server in row.dns if server)
    return Dhcp(True, servers, row.lease_s, row.prefix) if row.lease_s else None


def _domain_row(row: DomainRow) -> bytes:
    guest, dhcp = row.guest, row.dhcp
    return bytes(
        _abi.Domain(
            generation=row.generation,
            address=int(row.address),
            ifindex=row.ifindex,
            mtu=row.mtu,
            port_low=row.port_low,
            port_count=row.port_count,
            mac=_mac_bytes(row.mac),
            guest_address=int(guest.address or row.address),
            guest_gateway=int(guest.gateway or 0),
            guest_mac=_mac_bytes(guest.mac or row.mac),
            is_clone=guest.is_clone,
            deliver=row.deliver,
            prefix=dhcp.prefix if dhcp else 0,
            lease_s=dhcp.lease if dhcp else 0,
            dns=_dns_words(dhcp.dns if dhcp else ()),
            is_capped=row.limits.is_capped,
            **{at: getattr(row.limits, name) for name, at in _IN_ROW.items()},
            outward=_abi.Cap(row.limits.rate_out, row.limits.pps_out, row.limits.burst_ms * 1000),
            inward=_abi.Cap(row.limits.rate_in, row.limits.pps_in, row.limits.burst_ms * 1000),
        )
    )


def _limits(row: _abi.Domain) -> Limits:
    return Limits(
        **{name: getattr(row, at) for name, at in _IN_ROW.items()},
        rate_out=row.outward.bits_per_s,
        rate_in=row.inward.bits_per_s,
        pps_out=row.outward.packets_per_s,
        pps_in=row.inward.packets_per_s,
        burst_ms=row.outward.burst_us // 1000,
    )


def _domain(row: _abi.Domain) -> DomainRow:
    return DomainRow(
        generation=row.generation,
        address=IPv4Address(row.address),
        mac=":".join(f"{b:02x}" for b in row.mac),
        ifindex=row.ifindex,
        mtu=row.mtu,
        deliver=Deliver(row.deliver),
        port_low=row.port_low,
        port_count=row.port_count,
        limits=_limits(row),
        guest=_guest(row),
        dhcp=_dhcp(row),
    )


def table_sizes(limits: Limits, port_count: int) -> dict[str, int]:
    """How many rows each of a slot's inner maps has room for."""
    sizes = (limits.sessions, limits.inbound, 3 * port_count, limits.fragments)
    return dict(zip(_TABLES, sizes, strict=True))


def _possible_cpus() -> int:
    """A per-CPU value has room for every CPU that may ever come, not only those online."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return max(int(r.split("-")[-1]) for r in ranges) + 1


def _rule_words(row: _abi.Rule) -> tuple[int, ...]:
    """What a rule's row says, without what it has counted."""
    return row.rank, row.per_s, row.action, row.log


def counts(raw: bytes) -> dict[str, tuple[int, int]]:
    """Sums a counters row over its CPUs: name of the verdict, or "received" or "errors" -> (packets, bytes)."""
    size = ctypes.sizeof(_abi.Counters)
    words = [sum(column) for column in zip(*struct.iter_unpack(f"<{size // 8}Q", raw), strict=True)]
    if not words:
        return {}
    return {name: (words[at], words[at + 1]) for name, at in _COUNTED.items() if words[at]}


def make_notes(directory: Path, names: Iterable[str]) -> None:
    """New notes, pinned in a directory; those about the build are filled in."""
    said = {"object": loader.installed().encode(), "layout": layout.as_bytes(layout.own(), NOTES["layout"][0])}
    for name in names:
        size, places = NOTES[name]
        fd = bpf.create_map(bpf.TYPE_ARRAY, 4, size, places, 0, name)
        try:
            if name in said:
                bpf.Map(fd, name, 4, size, places).set(_u32(0), said[name])
            bpf.pin(fd, directory / name)
        finally:
            os.close(fd)


def noted(directory: Path, name: str) -> bytes | None:
    """What a note says of the build that is pinned in a directory; None if there is none."""
    if not (directory / name).exists():
        return None
    note = bpf.Map(bpf.get_pinned(directory / name), name, 4, *NOTES[name])
    try:
        return note.get(_u32(0))
    finally:
        note.close()


def is_noted_true(directory: Path, name: str) -> bool:
    """Whether a note of a number is there and not 0."""
    return any(noted(directory, name) or b"")


def check_layout(pins: Path) -> None:
    """ConflictError if the fastpath that runs has its tables laid out otherwise than this version knows them."""
    raw = noted(pins / "fastpath", "layout")
    if raw in (None, layout.as_bytes(layout.own(), NOTES["layout"][0])):
        return
    found = layout.differences(layout.from_bytes(raw or b""), layout.own())
    if found:
        what, how = next(iter(found.items()))
        raise ConflictError(
            f"the fastpath that runs is another version's, and its tables are laid out otherwise ({what}: {how});"
            " run `vfr upgrade`, or go on with the version that loaded it"
        )


class Fastpath:
    """The fastpath pinned under one directory. Close it when done; what is pinned stays."""

    def __init__(self, pins: Path, hooks: Collection[Hook] = tuple(PROGRAMS)) -> None:
        self._links = pins / "links"
        self._fds: dict[Hook, int] = {}
        self._sweep = -1
        self._maps: dict[str, bpf.Map] = {}
        base = pins / "fastpath"
        try:
            for hook in hooks:
                self._fds[hook] = bpf.get_pinned(base / PROGRAMS[hook])
            self._sweep = bpf.get_pinned(base / SWEEP)
            for name, spec in _abi.MAPS.items():
                size = spec.value_size * (_possible_cpus() if name in _PER_CPU else 1)
                fd = bpf.get_pinned(base / name)
                self._maps[name] = bpf.Map(fd, name, spec.key_size, size, spec.max_entries)
            for name, (size, places) in NOTES.items():
                self._maps[name] = bpf.Map(bpf.get_pinned(base / name), name, 4, size, places)
        except KernelError:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        pins: Path,
        settings: Mapping[str, int] | None = None,
        shared: Mapping[str, int] | None = None,
        hooks: Collection[Hook] = tuple(PROGRAMS),
    ) -> Fastpath:
        """Loads and pins the object, all or nothing, in place of one that is only half there: with maps in place of
        its own (name -> descriptor), and only these hooks' programs.

        KernelError with the verifier's log if the kernel refuses it.
        """
        cls.unload(pins)
        fresh = pins / "loading"
        fresh.mkdir()
        (pins / "links").mkdir(exist_ok=True)
        programs = [*(PROGRAMS[hook] for hook in hooks), SWEEP]
        witnessed = loader.load(fresh, settings or {}, shared, programs)
        make_notes(fresh, NOTES)
        fresh.rename(pins / "fastpath")
        made = cls(pins, hooks)
        made.new_lan_tables()
        made._maps["witnessed"].set(_u32(0), _u32(int(witnessed)))
        return made

    @classmethod
    def open(cls, pins: Path) -> Fastpath | None:
        """The fastpath under `pins`, None if there is none or it is not whole. ConflictError if its tables are laid out
        otherwise than this version's."""
        if not (pins / "fastpath").is_dir() or not (pins / "links").is_dir():
            return None
        check_layout(pins)
        wanted = {*PROGRAMS.values(), SWEEP, *_abi.MAPS, *NOTES}
        found = {p.name for p in (pins / "fastpath").iterdir()}
        if not wanted <= found:
            return None
        one = cls(pins)
        if one.is_witnessed and not found >= WITNESSES:
            one.close()
            return None
        return one

    @staticmethod
    def unload(pins: Path) -> None:
        """Removes everything that was pinned, what is attached first."""
        for part in ("links", "next", "fastpath", "loading"):
            if (pins / part).exists():
                shutil.rmtree(pins / part)

    def close(self) -> None:
        """Closes the descriptors; what is pinned stays in force."""
        for fd in (*self._fds.values(), self._sweep):
            if fd >= 0:
                os.close(fd)
        for one in self._maps.values():
            one.close()
        self._fds, self._maps, self._sweep = {}, {}, -1

    @property
    def is_witnessed(self) -> bool:
        """Whether it was loaded to be told of offloads by witnesses."""
        return bool(_from_u32(self._maps["witnessed"].get(_u32(0)) or _u32(0)))

    def map(self, name: str) -> bpf.Map:
        """One of the object's maps as it stands; it stays the object's."""
        return self._maps[name]

    # What everyone goes by

    def config(self) -> Config | None:
        """The configuration in force, None before the first."""
        row = _parse(_abi.Config, self._maps["config"].get(_u32(0)) or b"")
        return _config(row) if row.gateway else None

    def set_config(self, config: Config) -> None:
        """Puts a configuration in force; the policy stays."""
        row = _parse(_abi.Config, self._maps["config"].get(_u32(0)) or b"")
        self._maps["config"].set(_u32(0), _config_row(config, row.policy, row.clock_ahead_ns))

    def advance_clock(self, seconds: float) -> None:
        """For tests: from now on, so much more time has passed for the fastpath."""
        row = _parse(_abi.Config, self._maps["config"].get(_u32(0)) or b"")
        row.clock_ahead_ns += int(seconds * 10**9)
        self._maps["config"].set(_u32(0), bytes(row))

    def now_ns(self) -> int:
        """What time it is for the fastpath."""
        row = _parse(_abi.Config, self._maps["config"].get(_u32(0)) or b"")
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(row.clock_ahead_ns)

    # Who is where

    def domains(self) -> dict[int, DomainRow]:
        """Slot -> tenant, for the slots that have one."""
        rows = ((slot, _parse(_abi.Domain, raw)) for slot, raw in self._maps["domains"].dump())
        return {slot: _domain(row) for slot, row in rows if row.generation}

    def set_domain(self, slot: int, row: DomainRow) -> None:
        """Gives a slot its tenant. Its tables must be fresh (new_tables)."""
        self._maps["domains"].set(_u32(slot), _domain_row(row))

    def clear_domain(self, slot: int) -> None:
        """Empties a slot: what still comes from or goes to it is dropped."""
        self._maps["domains"].set(_u32(slot), bytes(ctypes.sizeof(_abi.Domain)))

    def vifs(self) -> dict[int, int]:
        """Interface index -> slot."""
        return {_from_u32(k): _from_u32(v) for k, v in self._maps["vifs"].items()}

    def set_vif(self, ifindex: int, slot: int) -> None:
        """From now on, frames that come in by this interface are the slot's."""
        self._maps["vifs"].set(_u32(ifindex), _u32(slot))

    def clear_vif(self, ifindex: int) -> None:
        """Frames of this interface are nobody's, and dropped."""
        self._maps["vifs"].delete(_u32(ifindex))

    def addresses(self) -> dict[IPv4Address, int]:
        """Address -> slot."""
        return {IPv4Address(k): _from_u32(v) for k, v in self._maps["addresses"].items()}

    def set_address(self, address: IPv4Address, slot: int) -> None:
        """Packets to this address go to the slot."""
        self._maps["addresses"].set(address.packed, _u32(slot))

    def clear_address(self, address: IPv4Address) -> None:
        """Nobody has this address."""
        self._maps["addresses"].delete(address.packed)

    def macs(self) -> dict[str, int]:
        """MAC -> slot."""
        return {k[:6].hex(":"): _from_u32(v) for k, v in self._maps["macs"].items()}

    def set_mac(self, mac: str, slot: int) -> None:
        """Raw Ethernet frames to this MAC are for the slot."""
        self._maps["macs"].set(_mac_key(mac), _u32(slot))

    def clear_mac(self, mac: str) -> None:
        """Nobody has this MAC."""
        self._maps["macs"].delete(_mac_key(mac))

    # State per slot

    def tables(self) -> frozenset[int]:
        """The slots that have all their inner maps.

        They are noted down, since asking the outer maps is slow: until Linux 6.8 each place that is read,
        empty or not, waits for an RCU grace period, 4096 of them for a minute.
        """
        return frozenset(slot for slot, raw in self._maps["complete"].dump() if _from_u32(raw))

    def new_tables(self, slot: int, limits: Limits, port_count: int, owner: int = NOBODY) -> None:
        """Fresh, empty inner maps: the slot's conversations and mappings are gone. `owner` is the generation whose
        they are."""
        self._maps["complete"].set(_u32(slot), _u32(0))
        self.new_runtime(slot)
        places = {name: [(slot, entries)] for name, entries in table_sizes(limits, port_count).items()}
        queues = forgettable(limits, port_count)
        places["closing"] = [(slot * Kind.KINDS + kind, entries) for kind, entries in enumerate(queues)]

        def put(name: str) -> None:
            for place, count in places[name]:
                self._put_inner(name, place, count).close()

        self._side_by_side(places, put)
        self.own_tables(slot, owner)

    def own_tables(self, slot: int, owner: int) -> None:
        """Notes that a slot's tables are all there, and whose."""
        self._maps["complete"].set(_u32(slot), _u32(owner))

    def table_owner(self, slot: int) -> int:
        """Whose a slot's tables are, 0 if they are not all there, NOBODY if it was not said."""
        return _from_u32(self._maps["complete"].get(_u32(slot)) or _u32(0))

    def freeze(self, slot: int) -> None:
        """Nothing comes from or goes to the slot's domain, nor changes its conversations, once this returns: the kernel
        has waited until no program can be looking. Its tables stay; what it noted of fragments does not."""
        row = self.domains()[slot]
        self.own_tables(slot, row.generation)  # an older version did not say whose they are
        for ifindex in (index for index, at in self.vifs().items() if at == slot):
            self.clear_vif(ifindex)
        self.clear_domain(slot)
        self._put_inner("fragments", slot, row.limits.fragments).close()

    @staticmethod
    def _side_by_side(names: Iterable[str], work: Callable[[str], None]) -> None:
        """Does something to several outer maps. At each change of a place the kernel waits until no program
        can be looking at what was there, so the waits are had together."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(_TABLES) + 1) as pool:
            list(pool.map(work, names))

    def new_lan_tables(self) -> None:
        """What is remembered of fragments from the LAN begins anew."""
        self.new_runtime(Limit.ROW_LAN)
        self._put_inner("fragments", Limit.ROW_LAN, LAN_FRAGMENTS).close()

    def new_runtime(self, row: int) -> None:
        """What the fastpath noted down for a slot, or for Limit.ROW_LAN, begins anew."""
        self._maps["runtime"].set(_u32(row), bytes(ctypes.sizeof(_abi.Runtime)))

    @staticmethod
    def sizes(limits: Limits, port_count: int) -> tuple[int, ...]:
        """How large a slot's tables are under these limits: only where that changes are there others to be made, while
        conversations begin."""
        return tuple(table_sizes(limits, port_count).values())

    def resize_tables(self, slot: int, limits: Limits, port_count: int) -> None:
        """Inner maps of other sizes, with what was in the old ones as far as there is room."""
        for name, entries in table_sizes(limits, port_count).items():
            old = self.inner(name, slot)
            rows = list(old.items()) if old else []
            if old:
                old.close()
            fresh = self._put_inner(name, slot, entries)
            try:
                for key, value in rows[:entries]:
                    fresh.set(key, value)
            finally:
                fresh.close()

    def sweep(self, slot: int) -> None:
        """Clears the slot's tables of what has expired; the fastpath looks at each entry's time itself."""
        bpf.test_run(self._sweep, bytes(64), 1, slot)

    def _put_inner(self, name: str, index: int, entries: int) -> bpf.Map:
        """A fresh inner map on a place of an outer one; the caller closes it."""
        inner = _abi.MAPS[name].inner
        assert inner is not None
        fd = bpf.create_map(inner.type, inner.key_size, inner.value_size, max(entries, 1), inner.flags, name)
        made = bpf.Map(fd, name, inner.key_size, inner.value_size, entries)
        try:
            self._maps[name].set(_u32(index), _u32(fd))
        except KernelError:
            made.close()
            raise
        return made

    def renew_slots(self, tenants: Sequence[Tenant]) -> None:
        """Makes slots that nobody has ready for their tenants: tables, counters and blocks of ports as nobody has used
        them, each kind with one system call. new_tables waits for each place until no program can be looking at what
        was there; here the kernel waits once a kind (or not at all, before Linux 6.8), and nobody has had the slots
        since retire_slots."""
        slots = [t.slot for t in tenants]
        self._set_all("complete", slots)
        self._set_all("runtime", slots)
        self._set_all("counters", slots)
        self.clear_blocks(tenants)
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in (*_TABLES, "closing")}
        for t in tenants:
            for name, entries in table_sizes(t.limits, t.port_count).items():
                places[name].append((t.slot, entries))
            queues = forgettable(t.limits, t.port_count)
            places["closing"] += [(t.slot * Kind.KINDS + kind, entries) for kind, entries in enumerate(queues)]
        self._side_by_side(places, lambda name: self._put_inners(name, places[name]))
        self._maps["complete"].set_many((_u32(t.slot), _u32(t.owner)) for t in tenants)

    def _set_all(self, name: str, slots: Iterable[int]) -> None:
        """Zeros in the places of an array."""
        table = self._maps[name]
        empty = bytes(table.value_size)
        table.set_many((_u32(slot), empty) for slot in slots)

    def clear_blocks(self, tenants: Iterable[Tenant]) -> None:
        """Forgets what former owners' mappings left in the tenants' port blocks."""
        free = bytes(ctypes.sizeof(_abi.Outside))
        self._maps["outside"].set_many(
            (_u32(space * Limit.PORT_SPACE + port), free)
            for t in tenants
            for space in range(Space.SPACES)
            for port in range(t.port_low, t.port_low + t.port_count)
        )

    def _put_inners(self, name: str, places: Sequence[tuple[int, int]]) -> None:
        """Fresh inner maps of so many entries on places of an outer one, all at once."""
        inner = _abi.MAPS[name].inner
        assert inner is not None
        made: list[tuple[int, int]] = []
        try:
            for place, entries in places:
                sizes = (inner.key_size, inner.value_size, max(entries, 1))
                made.append((place, bpf.create_map(inner.type, *sizes, inner.flags, name)))
            self._maps[name].set_many((_u32(place), _u32(fd)) for place, fd in made)
        finally:
            for _, fd in made:
                os.close(fd)

    def retire_slots(self, tenants: Sequence[Tenant]) -> None:
        """Gives back what the slots' former tenants had. Nothing may come from or go to them any more, and the kernel
        must have waited since until no program can be looking. Places in arrays of maps can be replaced many at
        once and deleted only one by one, each with such a wait: one smallest map takes all of them."""
        slots = [t.slot for t in tenants]
        self._set_all("complete", slots)
        self.clear_blocks(tenants)

        def put(name: str) -> None:
            each = [slot * Kind.KINDS + k for slot in slots for k in range(Kind.KINDS)] if name == "closing" else slots
            inner = _abi.MAPS[name].inner
            assert inner is not None
            fd = bpf.create_map(inner.type, inner.key_size, inner.value_size, 1, inner.flags, name)
            try:
                self._maps[name].set_many((_u32(place), _u32(fd)) for place in each)
            finally:
                os.close(fd)

        self._side_by_side((*_TABLES, "closing"), put)

    def enter(self, entries: Sequence[tuple[int, int, DomainRow]]) -> None:
        """(slot, interface index, row): gives slots their tenants, in the order in which nothing points to what is
        not there yet."""
        self._maps["domains"].set_many((_u32(slot), _domain_row(row)) for slot, _, row in entries)
        self._maps["addresses"].set_many((row.address.packed, _u32(slot)) for slot, _, row in entries)
        self._maps["macs"].set_many((_mac_key(row.mac), _u32(slot)) for slot, _, row in entries)
        self._maps["vifs"].set_many((_u32(ifindex), _u32(slot)) for slot, ifindex, _ in entries)

    def leave(self, entries: Sequence[tuple[int, int, IPv4Address, str]]) -> None:
        """(slot, interface index, address, MAC): from now on nothing comes from or goes to the slots' tenants."""
        self._set_all("domains", [slot for slot, *_ in entries])
        for _, ifindex, address, mac in entries:
            self.clear_vif(ifindex)
            self.clear_address(address)
            self.clear_mac(mac)

    def drop_tables(self, slot: int) -> None:
        """Gives the slot's inner maps back."""
        self._maps["complete"].set(_u32(slot), _u32(0))
        places = {**{name: [slot] for name in _TABLES}, "closing": [slot * Kind.KINDS + k for k in range(Kind.KINDS)]}

        def drop(name: str) -> None:
            for place in places[name]:
                self._maps[name].delete(_u32(place))

        self._side_by_side(places, drop)

    def inner(self, name: str, slot: int) -> bpf.Map | None:
        """A slot's own inner map ("sessions", "inbound", "mappings", "fragments"), to be closed by the caller."""
        number = self._maps[name].get(_u32(slot))
        spec = _abi.MAPS[name].inner
        assert spec is not None
        if number is None:
            return None
        fd = bpf.map_fd_by_id(_from_u32(number))
        return bpf.Map(fd, name, spec.key_size, spec.value_size, spec.max_entries)

    def conversations(self, slot: int, inbound: bool) -> Iterator[tuple[_abi.SessionKey, _abi.Session]]:
        """What a slot's table has, the expired among it, in the order of remotes; made as they are asked for."""
        inner = self.inner("inbound" if inbound else "sessions", slot)
        if inner is None:
            return
        try:
            rows = sorted(inner.walk())
        finally:
            inner.close()
        for raw in rows:
            yield _parse(_abi.SessionKey, raw), _abi.Session.from_buffer_copy(raw, inner.key_size)

    # Outside ports

    def forwards(self) -> frozenset[Forward]:
        """All forwards."""
        protocols = {int(space): protocol for protocol, space in _PROTOCOL_SPACE.items()}
        found = set()
        for index, raw in self._maps["outside"].dump():
            space, port = divmod(index, int(Limit.PORT_SPACE))
            if raw[4] == Holder.PORT_FORWARD:
                row = _parse(_abi.Outside, raw)
                found.add(Forward(protocols[space], port, row.slot, row.inside_port))
        return frozenset(found)

    def _outside_key(self, protocol: str, port: int) -> bytes:
        return _u32(_PROTOCOL_SPACE[protocol] * Limit.PORT_SPACE + port)

    def set_forward(self, forward: Forward) -> None:
        """Makes an outside port lead to a slot's port."""
        row = _abi.Outside(forward.slot, forward.inside_port, Holder.PORT_FORWARD, 0)
        self._maps["outside"].set(self._outside_key(forward.protocol, forward.outside_port), bytes(row))

    def clear_forward(self, protocol: str, outside_port: int) -> None:
        """Makes an outside port lead nowhere: the host has it again."""
        free = bytes(ctypes.sizeof(_abi.Outside))
        self._maps["outside"].set(self._outside_key(protocol, outside_port), free)

    def clear_block(self, low: int, count: int) -> None:
        """Forgets what a former owner's mappings left in a port block."""
        free = bytes(ctypes.sizeof(_abi.Outside))
        for space in range(Space.SPACES):
            for port in range(low, low + count):
                self._maps["outside"].set(_u32(space * Limit.PORT_SPACE + port), free)

    # Policy

    def policy_digest(self) -> str | None:
        """The digest of the policy in force, None if there is none or its installation broke off."""
        raw = (self._maps["digest"].get(_u32(0)) or b"").rstrip(b"\0")
        return raw.decode() or None

    def _set_digest(self, digest: str) -> None:
        self._maps["digest"].set(_u32(0), digest.encode().ljust(_DIGEST_SIZE, b"\0"))

    def replace_policy(self, policy: CompiledPolicy) -> None:
        """Swaps the policy at once, then has every living session asked again at its next packet.

        Broken off anywhere, the old policy stays whole, and the digest says that this one is not in. What the old and
        the new have in common is neither written nor deleted.
        """
        self._set_digest("")
        old_sets, old_remotes = self._sets(), self._remotes()
        old_rules = self._rules_of(old_sets)
        self._write_rules(policy.rules, old_rules)
        numbers = self._write_sets(policy, old_sets)
        version = self._write_remotes(policy, old_remotes)
        self._swap_pairs(policy, numbers, version)
        self._next_policy_number()
        self._forget_sets(old_sets, set(numbers.values()))
        self._forget_remotes(old_remotes, version)
        self._clear_rules(old_rules - policy.rules.keys())
        self._set_digest(policy.digest)

    def amend_policy(self, patch: Patch) -> None:
        """Swaps in the tables with a few rows changed, as replace_policy does; what the rows lead to is all that is
        written and deleted beside the table of pairs."""
        inner = self.inner("policy", 0)
        assert inner is not None, "a patch is for a policy that is in force"
        self._set_digest("")
        try:
            rows = dict(inner.rows())
        finally:
            inner.close()
        self._write_rules(patch.rules, frozenset())
        numbers = itertools.count(max(_numbers(rows, False), default=0) + 1)
        old = self._patch_rows(rows, patch, numbers)
        self._swap(rows)
        self._next_policy_number()
        self._forget_sets(old, _numbers(rows, False))
        self._clear_rules(patch.gone)
        self._set_digest(patch.digest)

    def _patch_rows(
        self, rows: dict[bytes, bytes], patch: Patch, numbers: Iterator[int]
    ) -> dict[int, tuple[Entry, ...]]:
        """Puts the patch into rows of pairs, and writes the sets that they lead to. The sets that rows led to before."""
        old: dict[int, tuple[Entry, ...]] = {}
        header = bytes(_abi.PairKey(_HEADER, _HEADER))
        version, levels = _pair(rows[header]).number, _pair(rows[header]).flags
        for pair, row in patch.rows.items():
            key = bytes(_abi.PairKey(*pair))
            was = _pair(rows.pop(key)) if key in rows else None
            if was and not was.flags & Limit.PAIR_IS_RULE:
                old[was.number] = row.before
            if not row.entries:
                continue
            levels |= level_bit(*pair)
            number = row.entries[0][4] if row.flags & Limit.PAIR_IS_RULE else next(numbers)
            if not row.flags & Limit.PAIR_IS_RULE:
                self._maps["port_sets"].set_many((_ports_key(number, e), _u32(e[4])) for e in row.entries)
            rows[key] = bytes(_abi.Pair(number, row.flags))
        rows[header] = bytes(_abi.Pair(version, levels))
        return old

    def rules(self) -> frozenset[int]:
        """The numbers of the rules that the tables lead to."""
        return self._rules_of(self._sets())

    def _rules_of(self, sets: Mapping[int, tuple[Entry, ...]]) -> frozenset[int]:
        inner = self.inner("policy", 0)
        if inner is None:
            return frozenset()
        try:
            rows = dict(inner.rows())
        finally:
            inner.close()
        return frozenset(_numbers(rows, True) | {entry[4] for entries in sets.values() for entry in entries})

    def _sets(self) -> dict[int, tuple[Entry, ...]]:
        """Number -> what the set has, as it is in the kernel."""
        found: dict[int, list[Entry]] = {}
        for key, rule in self._maps["port_sets"].rows():
            row = _parse(_abi.PortsKey, key)
            found.setdefault(row.set, []).append(
                (row.prefixlen - 32, row.ether, row.protocol, row.port, _from_u32(rule))
            )
        return {number: tuple(sorted(entries)) for number, entries in found.items()}

    def _remotes(self) -> dict[int, frozenset[Remote]]:
        """Version -> the blocks, as they are in the kernel."""
        found: dict[int, list[Remote]] = {}
        for key, nodes in self._maps["remotes"].rows():
            row, value = _parse(_abi.RemoteKey, key), _from_u32(nodes)
            found.setdefault(row.policy, []).append((row.address, row.prefixlen - 32, value & 0xFFFF, value >> 16))
        return {version: frozenset(rows) for version, rows in found.items()}

    def _write_rules(self, rules: Mapping[int, Rule], old: Container[int]) -> None:
        """Rows for the rules that have none yet; the others go on counting. That a number means the same rule for as
        long as a policy with it is in force is the caller's to see to."""
        there = {number: _rule_words(row) for number, row in self._rule_rows(rules).items() if number in old}
        rows = {
            number: _abi.Rule(rank=rule.rank, per_s=rule.limit, action=_ACTIONS[rule.action], log=rule.log)
            for number, rule in rules.items()
        }
        self._maps["rules"].set_many(
            (_u32(number), bytes(row)) for number, row in rows.items() if there.get(number) != _rule_words(row)
        )

    def _write_sets(self, policy: CompiledPolicy, old: Mapping[int, tuple[Entry, ...]]) -> dict[int, int]:
        """The policy's number of each set -> the kernel's: an old one where that is the same."""
        same = {entries: number for number, entries in old.items()}
        fresh = itertools.count(max(old, default=0) + 1)
        numbers = {
            number: same[known] if (known := tuple(sorted(entries))) in same else next(fresh)
            for number, entries in policy.sets.items()
        }
        self._maps["port_sets"].set_many(
            (_ports_key(numbers[number], entry), _u32(entry[4]))
            for number, entries in policy.sets.items()
            if numbers[number] not in old
            for entry in entries
        )
        return numbers

    def _write_remotes(self, policy: CompiledPolicy, old: Mapping[int, frozenset[Remote]]) -> int:
        """The version under which the policy's blocks are there."""
        wanted = frozenset(policy.remotes)
        for version, rows in old.items():
            if rows == wanted:
                return version
        version = max(old, default=0) + 1
        self._maps["remotes"].set_many(
            (bytes(_abi.RemoteKey(32 + length, version, address)), _u32(zone << 16 | words))
            for address, length, words, zone in policy.remotes
        )
        return version

    def _swap_pairs(self, policy: CompiledPolicy, numbers: Mapping[int, int], version: int) -> None:
        """Fills a new table of pairs, then puts it in the old one's place."""
        rows = {(_HEADER, _HEADER): (version, policy.levels)}
        rows |= {(slot, _HEADER): (node, 0) for slot, node in policy.groups.items()}
        for pair, (number, flags) in policy.pairs.items():
            rows[pair] = (number if flags & Limit.PAIR_IS_RULE else numbers[number], flags)
        self._swap({bytes(_abi.PairKey(*pair)): bytes(_abi.Pair(*row)) for pair, row in rows.items()})

    def _swap(self, rows: Mapping[bytes, bytes]) -> None:
        """Puts a new table of pairs in the place of the one in force. The kernel comes back when no program can be
        looking at the old one any more (synchronize_rcu, as for every map in a map)."""
        spec = _abi.MAPS["policy"].inner
        assert spec is not None
        fd = bpf.create_map(spec.type, spec.key_size, spec.value_size, len(rows), spec.flags, "policy")
        pairs = bpf.Map(fd, "policy", spec.key_size, spec.value_size, len(rows))
        try:
            pairs.set_many(rows.items())
            self._maps["policy"].set(_u32(0), _u32(fd))
        finally:
            pairs.close()

    def _forget_sets(self, old: Mapping[int, tuple[Entry, ...]], kept: Container[int]) -> None:
        """Deletes what only the old policy had. No program looks there any more: the swap has waited for that."""
        self._maps["port_sets"].delete_many(
            _ports_key(number, entry) for number, entries in old.items() if number not in kept for entry in entries
        )

    def _forget_remotes(self, old: Mapping[int, frozenset[Remote]], kept: int) -> None:
        """The same, of blocks."""
        self._maps["remotes"].delete_many(
            bytes(_abi.RemoteKey(32 + length, version, address))
            for version, rows in old.items()
            if version != kept
            for address, length, _, _ in rows
        )

    def _clear_rules(self, numbers: Iterable[int]) -> None:
        empty = bytes(ctypes.sizeof(_abi.Rule))
        self._maps["rules"].set_many((_u32(number), empty) for number in numbers)

    def _rule_rows(self, numbers: Collection[int]) -> dict[int, _abi.Rule]:
        """The rows of some rules; of many by reading all, which is one call."""
        rules = self._maps["rules"]
        if len(numbers) > _ONE_BY_ONE:
            return {number: _parse(_abi.Rule, raw) for number, raw in rules.dump() if number in numbers}
        return {number: _parse(_abi.Rule, rules.get(_u32(number)) or b"") for number in numbers}

    def rule_counts(self, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
        """Number of a rule -> (packets, bytes) that it decided about."""
        return {number: (row.packets, row.bytes) for number, row in self._rule_rows(numbers).items()}

    def _next_policy_number(self) -> None:
        row = _parse(_abi.Config, self._maps["config"].get(_u32(0)) or b"")
        row.policy = (row.policy + 1) & 0xFFFFFFFF
        self._maps["config"].set(_u32(0), bytes(row))

    # Counters

    def counters(self, rows: Iterable[int]) -> dict[int, dict[str, tuple[int, int]]]:
        """Row (a slot, or Limit.ROW_*) -> name of the verdict, or "received" -> (packets, bytes)."""
        return {row: counts(self._maps["counters"].get(_u32(row)) or b"") for row in rows}

    def raw_counters(self) -> Iterator[tuple[int, bytes]]:
        """All rows of counters as they lie there, for `counts`, hundreds to a system call."""
        table = self._maps["counters"]
        for first in range(0, table.entries, _COUNTERS_AT_ONCE):
            size, raw = table.value_size, table.places(first, min(_COUNTERS_AT_ONCE, table.entries - first))
            for at in range(0, len(raw), size):
                yield first + at // size, raw[at : at + size]

    def living(self, slot: int, inbound: bool) -> int:
        """How many conversations of a slot's table have not expired."""
        inner = self.inner("inbound" if inbound else "sessions", slot)
        if inner is None:
            return 0
        now = self.now_ns()
        try:
            return sum(expires > now for _, _, raw in inner.batches() for (expires,) in _EXPIRES.iter_unpack(raw))
        finally:
            inner.close()

    def half_open(self, slot: int) -> tuple[int, int]:
        """How many TCP conversations are half open, by its own count: those that it opened, and that the LAN did."""
        row = _parse(_abi.Runtime, self._maps["runtime"].get(_u32(slot)) or b"")
        return max(row.half_open, 0), max(row.half_open_inbound, 0)

    def begun(self) -> dict[int, int]:
        """Slot -> how many conversations have begun in its tables since its tenant came, modulo 2^32."""
        size, raw = ctypes.sizeof(_abi.Runtime), self._maps["runtime"].places(0, Limit.ROWS)
        at = _abi.Runtime.begun.offset
        return {slot: _from_u32(raw[slot * size + at : slot * size + at + 4]) for slot in range(Limit.SLOTS)}

    def reset_counters(self, slot: int) -> None:
        """Sets a slot's counters to zero, for its next tenant."""
        self._maps["counters"].set(_u32(slot), bytes(self._maps["counters"].value_size))

    def events(self, wait_s: float | None) -> Iterator[_abi.Event]:
        """Drops, as they are told of; ends after `wait_s` seconds without one, or never."""
        ring = RingBuffer(self._maps["events"].fd, self._maps["events"].entries)
        try:
            for record in ring.records(wait_s):
                yield _parse(_abi.Event, record)
        finally:
            ring.close()

    # Hooks

    def program(self, hook: Hook) -> int:
        """The program's descriptor; it stays the object's."""
        return self._fds[hook]

    def trace(self) -> _abi.Trace:
        """The last packet's end, if the object was loaded with `tracing`."""
        return _parse(_abi.Trace, self._maps["trace"].get(_u32(0)) or b"")

    def attach(self, ifindex: int, hook: Hook, name: str) -> str:
        """Puts a program on an interface's ingress, pinned as `name`: "tcx" or "clsact"."""
        return attach.attach(ifindex, self._fds[hook], self._links, name)

    def attach_fresh(self, ifindex: int, name: str) -> None:
        """Puts the VIFs' program on one that has just been made (attach.attach_fresh)."""
        attach.attach_fresh(ifindex, self._fds["vif"], self._links, name)

    def attached(self, ifindex: int, hook: Hook) -> str | None:
        """How the program is in force on the interface's ingress now; None if it is not."""
        return attach.attached(ifindex, self._fds[hook])

    def detach(self, ifindex: int | None, name: str) -> None:
        """Takes it off again. `ifindex` is None if the interface is gone."""
        attach.detach(ifindex, self._links, name)

    def links(self) -> frozenset[str]:
        """The names that something is attached under."""
        return attach.names(self._links)
