"""A slot's conversations and mappings: read into rows that mean something elsewhere and later, and put back.

Both are done while the slot has no tenant, so no program reads or writes its tables meanwhile. Times are kept as
what is left of them, since another boot's clock begins anew.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import TypeVar

from vfr import _abi
from vfr._abi import Holder, Kind, Limit, Space, TcpState
from vfr.kernel.fastpath import NOBODY, Fastpath, Forward
from vfr.registry import Domain
from vfr.saved import TCP, Mapping, Saved, Session
from vfr.settings import forgettable

_Row = TypeVar("_Row", bound=ctypes.Structure)
_SPACES = {6: Space.SPACE_TCP, 17: Space.SPACE_UDP, 1: Space.SPACE_ICMP}
_NAMES = {6: "tcp", 17: "udp"}
_HALF_OPEN = (TcpState.TCP_OPENING, TcpState.TCP_ANSWERED)
_MS = 10**6


def read(fp: Fastpath, slot: int) -> tuple[tuple[Session, ...], tuple[Session, ...], tuple[Mapping, ...]]:
    """A slot's sessions, those that the LAN opened, and its mappings, as far as they live."""
    now = fp.now_ns()
    mappings = tuple(
        Mapping(key.inside_port, key.protocol, row.outside_port, (row.expires_ns - now) // _MS)
        for key, row in _rows(fp, "mappings", slot, _abi.MappingKey, _abi.Mapping)
        if row.expires_ns - now >= _MS and row.open >= 0
    )
    kept = {(m.protocol, m.inside_port, m.outside_port) for m in mappings}
    own = tuple(s for s in _sessions(fp, "sessions", slot, now) if s.peer is not None or _way(s) in kept)
    return own, tuple(_sessions(fp, "inbound", slot, now)), mappings


def _way(s: Session) -> tuple[int, int, int]:
    return s.protocol, s.inside_port, s.outside_port


def _rows(
    fp: Fastpath, table: str, slot: int, key: type[ctypes.Structure], row: type[_Row]
) -> Iterator[tuple[ctypes.Structure, _Row]]:
    inner = fp.inner(table, slot)
    if inner is None:
        return
    try:
        for k, v in inner.items():
            yield key.from_buffer_copy(k), row.from_buffer_copy(v)
    finally:
        inner.close()


def _sessions(fp: Fastpath, table: str, slot: int, now: int) -> Iterator[Session]:
    for key, row in _rows(fp, table, slot, _abi.SessionKey, _abi.Session):
        if row.expires_ns - now >= _MS:
            yield Session(
                str(IPv4Address(key.remote)),
                key.remote_port,
                key.inside_port,
                key.protocol,
                (row.expires_ns - now) // _MS,
                None if row.peer == Limit.NODE_LAN else row.peer_generation,
                row.outside_port,
                row.tcp_state,
                row.sequence,
            )


def belongs_to_forward(s: Session, slot: int, forwards: frozenset[Forward]) -> bool:
    """Whether the outside port that the LAN opened it by still leads to where it is."""
    name = _NAMES.get(s.protocol)
    return name is not None and Forward(name, s.outside_port, slot, s.inside_port) in forwards


def fill(fp: Fastpath, d: Domain, saved: Saved, slots: dict[int, int], step: Callable[[str], None]) -> None:
    """Puts the state into the domain's slot, which has no tenant yet, and notes at the end that the tables are its own.
    `slots` has where each peer's id is. No policy has allowed these sessions, so each is asked about at its next packet."""
    now = fp.now_ns()
    step(f"{d.name}: fresh tables")
    fp.new_tables(d.slot, d.limits, d.port_count, NOBODY)
    fp.reset_counters(d.slot)
    fp.clear_block(d.port_low, d.port_count)
    step(f"{d.name}: put its mappings back")
    _fill_mappings(fp, d.slot, saved, now)
    step(f"{d.name}: put its sessions back")
    _fill_sessions(fp, "sessions", d.slot, saved.sessions, slots, now)
    _fill_sessions(fp, "inbound", d.slot, saved.inbound, slots, now)
    _fill_runtime(fp, d, saved)
    step(f"{d.name}: its tables are whole")
    fp.own_tables(d.slot, d.id)


def _fill_mappings(fp: Fastpath, slot: int, saved: Saved, now: int) -> None:
    inner = fp.inner("mappings", slot)
    assert inner is not None, "the tables are fresh"
    try:
        lan = [s for s in saved.sessions if s.peer is None]
        users = Counter(_way(s) for s in lan if s.protocol == TCP and s.tcp_state != TcpState.TCP_CLOSED)
        left_ms: dict[tuple[int, int, int], int] = {}
        for s in lan:
            left_ms[_way(s)] = max(s.left_ms, left_ms.get(_way(s), 0))
        for m in saved.mappings:
            way = m.protocol, m.inside_port, m.outside_port
            expires_ns = now + max(m.left_ms, left_ms.get(way, 0)) * _MS
            row = _abi.Mapping(expires_ns=expires_ns, open=users[way], outside_port=m.outside_port)
            inner.set(bytes(_abi.MappingKey(m.inside_port, m.protocol)), bytes(row))
            place = _SPACES[m.protocol] * Limit.PORT_SPACE + m.outside_port
            claim = _abi.Outside(slot, m.inside_port, Holder.PORT_MAPPING, now // 10**9 & 0xFFFF)
            fp.map("outside").set(place.to_bytes(4, "little"), bytes(claim))
    finally:
        inner.close()


def _fill_sessions(
    fp: Fastpath, table: str, slot: int, sessions: Sequence[Session], slots: dict[int, int], now: int
) -> None:
    inner = fp.inner(table, slot)
    assert inner is not None, "the tables are fresh"
    try:
        for s in sessions:
            key = _abi.SessionKey(int(IPv4Address(s.remote)), s.remote_port, s.inside_port, s.protocol)
            row = _abi.Session(
                expires_ns=now + s.left_ms * _MS,
                peer_generation=s.peer or 0,
                peer=Limit.NODE_LAN if s.peer is None else slots[s.peer],
                outside_port=s.outside_port,
                tcp_state=s.tcp_state,
                sequence=s.sequence,
            )
            inner.set(bytes(key), bytes(row))
    finally:
        inner.close()


def _fill_runtime(fp: Fastpath, d: Domain, saved: Saved) -> None:
    """How many are half open, and the queues of those that may be forgotten, those that end soonest first."""
    halves = [sum(s.tcp_state in _HALF_OPEN for s in rows) for rows in (saved.sessions, saved.inbound)]
    runtime = _abi.Runtime(half_open=halves[0], half_open_inbound=halves[1])
    fp.map("runtime").set(d.slot.to_bytes(4, "little"), bytes(runtime))
    over = [s for s in saved.sessions if s.tcp_state == TcpState.TCP_CLOSED]
    kinds = {
        Kind.KIND_LAN: [s for s in over if s.peer is None],
        Kind.KIND_NEAR: [s for s in over if s.peer is not None],
        Kind.KIND_INBOUND: [s for s in saved.inbound if s.tcp_state == TcpState.TCP_CLOSED],
        Kind.KIND_ENTERING: [s for s in saved.inbound if s.tcp_state in _HALF_OPEN],
    }
    room = forgettable(d.limits, d.port_count)
    for kind, waiting in kinds.items():
        queue = fp.inner("closing", d.slot * Kind.KINDS + kind)
        assert queue is not None, "the tables are fresh"
        try:
            for s in itertools.islice(sorted(waiting, key=lambda s: s.left_ms), room[kind]):
                key = _abi.SessionKey(int(IPv4Address(s.remote)), s.remote_port, s.inside_port, s.protocol)
                queue.push(bytes(_abi.Closing(key, s.outside_port)))
        finally:
            queue.close()
