"""A twin of the running fastpath, to ask what would become of a packet without anything coming of it.

The same object is loaded once more, with `tracing`, into a bpffs that nobody else sees. What programs only read
is the running one's own maps, so there is no second copy of the policy that could differ; what they write is the
twin's own, and begins as the running one's is now: rates, quotas, outside ports, and the conversations of the
domains that matter. So a full table is full there too, and what the twin lets through happens nowhere.

NOTE: a queue cannot be read without taking from it, so @closing is made anew from the conversations that belong
there, in the order of their last words. The fastpath may have lost some of them where the queue was full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from vfr import _abi
from vfr._abi import Kind, TcpState, Verdict
from vfr.errors import VfrError
from vfr.kernel import bpf, loader, mounts
from vfr.kernel.fastpath import Fastpath, Hook
from vfr.settings import forgettable

READ_ONLY = ("config", "vifs", "domains", "addresses", "macs", "policy", "port_sets", "remotes")
_ARRAYS = ("outside", "runtime", "rules")
_TABLES = ("sessions", "inbound", "mappings")
TC_ACT_SHOT = 2
SECOND_NS = 10**9


@dataclass(frozen=True, slots=True)
class Run:
    """What a program made of a frame. `frame` is None if it was dropped in silence; a drop with a frame is the ICMP
    error that its sender gets. `rule` is the number of the rule that decided, 0 for none; the rest as in _abi.Trace."""

    verdict: Verdict
    frame: bytes | None
    row: int
    ifindex: int
    target: int  # the receiver's slot, or Limit.NODE_LAN, if it was delivered
    rule: int
    opener: int
    asked: int
    service: int
    remote: int
    protocol: int
    outside_port: int
    has_session: bool
    was_asked: bool
    over_limit: bool  # the rule that decided has let as many begin as its `limit` allows


@dataclass(frozen=True, slots=True)
class Conversation:
    """A living one in a slot's tables: `inbound` if the LAN opened it. `peer` is the other domain's slot, or
    Limit.NODE_LAN."""

    slot: int
    inbound: bool
    remote: IPv4Address
    remote_port: int
    inside_port: int
    protocol: int
    peer: int
    outside_port: int


class Twin:
    """Made by `twin`. What runs through it is remembered by it alone. `conversations` are those of its slots when it
    was made, and `inside_ports` what their mappings stand for."""

    def __init__(
        self, fastpath: Fastpath, conversations: tuple[Conversation, ...], inside_ports: frozenset[int]
    ) -> None:
        self._fastpath = fastpath
        self.conversations, self.inside_ports = conversations, inside_ports

    def run(self, hook: Hook, ifindex: int, frame: bytes, mark: int = 0) -> Run:
        """What would become of a frame that came in by this interface. KernelError if there is no such interface."""
        now_ns = self._fastpath.now_ns()
        action, out = bpf.test_run(self._fastpath.program(hook), frame, ifindex, mark)
        trace = self._fastpath.trace()
        rule = _abi.Rule.from_buffer_copy(self._fastpath.map("rules").get(trace.rule.to_bytes(4, "little")) or b"")
        return Run(
            verdict=Verdict(trace.verdict),
            frame=None if action == TC_ACT_SHOT else out,
            row=trace.row,
            ifindex=trace.ifindex,
            target=trace.target,
            rule=trace.rule,
            opener=trace.opener,
            asked=trace.asked,
            service=trace.service,
            remote=trace.remote,
            protocol=trace.protocol,
            outside_port=trace.outside_port,
            has_session=bool(trace.has_session),
            was_asked=bool(trace.was_asked),
            over_limit=bool(rule.per_s) and rule.until_ns > now_ns + SECOND_NS,
        )


Rows = list[tuple[bytes, bytes]]


@contextmanager
def twin(real: Fastpath, hooks: Collection[Hook], slots: Collection[int]) -> Iterator[Twin]:
    """A twin with these hooks' programs, that knows the conversations of these slots. VfrError if a slot has none of
    its tables."""
    settings = {"tracing": 1, loader.KERNEL_CONTEXT: int(not real.is_witnessed)}
    shared = {name: real.map(name).fd for name in READ_ONLY}
    with mounts.private() as pins:
        made = Fastpath.load(pins, settings, shared, hooks)
        try:
            rows = {slot: _give_tables(made, real, slot) for slot in slots}
            for name in _ARRAYS:
                places = real.map(name).dump()
                made.map(name).set_many((place.to_bytes(4, "little"), raw) for place, raw in places)
            yield Twin(made, tuple(_living(rows, real.now_ns())), _inside_ports(rows))
        finally:
            made.close()


def _give_tables(made: Fastpath, real: Fastpath, slot: int) -> dict[str, Rows]:
    """Inner maps for the slot, as large as the real ones, and with the rows that are in them now."""
    row = real.domains().get(slot)
    if row is None or slot not in real.tables():
        raise VfrError(
            f"slot {slot} has no tables, since a command broke off; any command that changes something repairs it"
        )
    made.new_tables(slot, row.limits, row.port_count)
    sizes = {"sessions": row.limits.sessions, "inbound": row.limits.inbound, "mappings": 3 * row.port_count}
    rows = {name: _rows(real, name, slot)[: max(size, 1)] for name, size in sizes.items()}
    for name in _TABLES:
        with _inner(made, name, slot) as table:
            table.set_many(rows[name])
    room = forgettable(row.limits, row.port_count)
    for kind, entries in enumerate(_forgettable(rows["sessions"], rows["inbound"])):
        with _inner(made, "closing", slot * Kind.KINDS + kind) as queue:
            for entry in entries[-room[kind] :]:
                queue.push(entry)
    return rows


def _living(rows: Mapping[int, Mapping[str, Rows]], now_ns: int) -> Iterator[Conversation]:
    for slot, tables in rows.items():
        for name in ("sessions", "inbound"):
            for raw_key, raw in tables[name]:
                key, session = _abi.SessionKey.from_buffer_copy(raw_key), _abi.Session.from_buffer_copy(raw)
                if session.expires_ns > now_ns and session.tcp_state not in (TcpState.TCP_CLOSED, TcpState.TCP_RESET):
                    yield Conversation(
                        slot,
                        name == "inbound",
                        IPv4Address(key.remote),
                        key.remote_port,
                        key.inside_port,
                        key.protocol,
                        session.peer,
                        session.outside_port,
                    )


def _inside_ports(rows: Mapping[int, Mapping[str, Rows]]) -> frozenset[int]:
    return frozenset(
        _abi.MappingKey.from_buffer_copy(key).inside_port for tables in rows.values() for key, _ in tables["mappings"]
    )


@contextmanager
def _inner(fastpath: Fastpath, name: str, place: int) -> Iterator[bpf.Map]:
    found = fastpath.inner(name, place)
    if found is None:
        raise VfrError(f"place {place} of {name} is empty; any command that changes something repairs it")
    try:
        yield found
    finally:
        found.close()


def _rows(fastpath: Fastpath, name: str, slot: int) -> Rows:
    with _inner(fastpath, name, slot) as table:
        return table.rows()


def _forgettable(sessions: Rows, inbound: Rows) -> tuple[list[bytes], ...]:
    """What belongs in the queues, by Kind: the one that has been silent longest first."""
    found: list[list[tuple[int, bytes]]] = [[] for _ in range(Kind.KINDS)]
    for is_inbound, rows in ((False, sessions), (True, inbound)):
        for key, raw in rows:
            session = _abi.Session.from_buffer_copy(raw)
            kind = _kind(session, is_inbound)
            if kind is not None:
                entry = _abi.Closing(_abi.SessionKey.from_buffer_copy(key), session.outside_port)
                found[kind].append((session.expires_ns, bytes(entry)))
    return tuple([entry for _, entry in sorted(entries)] for entries in found)


def _kind(session: _abi.Session, is_inbound: bool) -> Kind | None:
    """In which queue a conversation is, None if it may not be forgotten."""
    if session.tcp_state == TcpState.TCP_CLOSED:
        if is_inbound:
            return Kind.KIND_INBOUND
        return Kind.KIND_LAN if session.outside_port else Kind.KIND_NEAR
    if is_inbound and session.tcp_state in (TcpState.TCP_OPENING, TcpState.TCP_ANSWERED):
        return Kind.KIND_ENTERING
    return None


__all__ = ["READ_ONLY", "Conversation", "Run", "Twin", "twin"]
