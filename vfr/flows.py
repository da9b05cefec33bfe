"""`vfr flows`: the living conversations. Made one at a time out of the fastpath's tables, since there may be millions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vfr._abi import Limit, Session, SessionKey, TcpState
from vfr.errors import UsageError
from vfr.settings import Timers
from vfr.spec.tcp import CLOSING, HALF_OPEN

ICMP, TCP, UDP = 1, 6, 17
PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}
STATES = {
    int(state): state.name.removeprefix("TCP_").lower().replace("_", "-")
    for state in TcpState
    if state not in (TcpState.TCP_NONE, TcpState.TCP_STATES)
}
_DNS = 53
_NODE_LAN = int(Limit.NODE_LAN)


@dataclass(frozen=True, slots=True)
class Flow:
    """One conversation. `opener` began it with `target`: domains by name, dom0, or lan. Inside is the address and port
    of `domain`, in whose quota it is; `outside_port` what the LAN sees for that, None between domains. `state` is None
    unless it is TCP's; `idle_s` is how long nothing was heard, `left_s` how long that may go on. Of ICMP the inside
    port is the request's identifier, the remote port the number of the request."""

    domain: str
    opener: str
    target: str
    protocol: str
    inside: str
    inside_port: int
    outside_port: int | None
    remote: str
    remote_port: int
    state: str | None
    idle_s: float
    left_s: float
    rule: str | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conversations; None means any. `name` is at either end, `port` is the one that the opener asked for."""

    name: str | None = None
    protocol: str | None = None
    state: str | None = None
    remote: IPv4Network | None = None
    port: int | None = None

    def __contains__(self, flow: Flow) -> bool:
        service = flow.inside_port if flow.opener == "lan" else flow.remote_port
        return (
            (self.name is None or self.name in (flow.domain, flow.opener, flow.target))
            and (self.protocol is None or self.protocol == flow.protocol)
            and (self.state is None or self.state == flow.state)
            and (self.remote is None or IPv4Address(flow.remote) in self.remote)
            and (self.port is None or self.port == service)
        )


def wanted(
    name: str | None = None,
    protocol: str | None = None,
    state: str | None = None,
    remote: str | None = None,
    port: int | None = None,
) -> Wanted:
    """The same from words. UsageError if one of them cannot be."""
    if state is not None and state not in STATES.values():
        raise UsageError(f"--state {state!r} is none of {', '.join(STATES.values())}")
    if protocol is not None and protocol.isdigit():
        protocol = PROTOCOLS.get(int(protocol), protocol)
    if protocol is not None and protocol not in PROTOCOLS.values() and not protocol.isdigit():
        raise UsageError(f"--proto {protocol!r} is none of {', '.join(PROTOCOLS.values())}, nor a protocol's number")
    if port is not None and not 0 <= port <= 65535:
        raise UsageError(f"--port {port} is out of range; it takes 0 to 65535")
    try:
        block = IPv4Network(remote) if remote is not None else None
    except ValueError as error:
        raise UsageError(f"--remote {remote!r} is no address or block: {error}") from None
    return Wanted(name, protocol, state, block, port)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose tables are read."""

    slot: int
    name: str
    address: IPv4Address
    generation: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules are asked about a conversation: nodes as the fastpath numbers them."""

    opener: int
    target: int
    protocol: int
    port: int
    remote: IPv4Address | None


Rules = Callable[[Asked], tuple[str | None, str | None]]  # the rule that decides, and where it stands


def idle_limit(timers: Timers, protocol: int, service: int, state: int) -> int:
    """How many seconds of silence end such a conversation, as the fastpath has it (idle_time in session.h)."""
    if protocol == ICMP:
        return timers.icmp
    if protocol != TCP:
        return timers.dns if protocol == UDP and service == _DNS else timers.udp
    if state in HALF_OPEN:
        return timers.tcp_opening
    return timers.tcp_closing if state in CLOSING else timers.tcp_established


class Reader:
    """Makes flows of rows, at the time `now_ns` of the fastpath."""

    def __init__(self, tenants: Iterable[Tenant], timers: Timers, now_ns: int, rules: Rules | None = None) -> None:
        self._tenants: Mapping[int, Tenant] = {t.slot: t for t in tenants}
        self._timers, self._now, self._rules = timers, now_ns, rules

    def flow(self, owner: Tenant, inbound: bool, key: SessionKey, session: Session) -> Flow | None:
        """None if the fastpath would take it for dead: expired, or with somebody who is gone."""
        left = session.expires_ns - self._now
        if left <= 0:
            return None
        peer = "lan"
        if session.peer != _NODE_LAN and not inbound:
            other = self._tenants.get(session.peer)
            if other is None or other.generation != session.peer_generation:
                return None
            peer = other.name
        service = key.inside_port if inbound else key.remote_port
        limit = idle_limit(self._timers, key.protocol, service, session.tcp_state)
        rule, where = self._rule(owner, inbound, key, session, service) if self._rules else (None, None)
        return Flow(
            domain=owner.name,
            opener=peer if inbound else owner.name,
            target=owner.name if inbound else peer,
            protocol=PROTOCOLS.get(key.protocol, str(key.protocol)),
            inside=str(owner.address),
            inside_port=key.inside_port,
            outside_port=session.outside_port or None,
            remote=str(IPv4Address(key.remote)),
            remote_port=key.remote_port,
            state=STATES.get(session.tcp_state),
            idle_s=round(max(limit - left / 1e9, 0.0), 1),
            left_s=round(left / 1e9, 1),
            rule=rule,
            where=where,
        )

    def _rule(
        self, owner: Tenant, inbound: bool, key: SessionKey, session: Session, service: int
    ) -> tuple[str | None, str | None]:
        assert self._rules is not None
        is_lan = inbound or session.peer == _NODE_LAN
        remote = IPv4Address(key.remote) if is_lan else None
        opener, target = (_NODE_LAN, owner.slot) if inbound else (owner.slot, session.peer)
        return self._rules(Asked(opener, target, key.protocol, service, remote))

    def flows(
        self, rows: Iterable[tuple[Tenant, bool, SessionKey, Session]], which: Wanted, limit: int | None = None
    ) -> Iterator[Flow]:
        """Those that are wanted, `limit` of them at the most, in the order of the rows."""
        found = (self.flow(*row) for row in rows)
        return itertools.islice((flow for flow in found if flow is not None and flow in which), limit)


def line(flow: Flow) -> str:
    """For people. Columns of a fixed width, since what comes is not known when the first line is printed."""
    inside = f"{flow.inside}:{flow.inside_port}"
    remote = f"{flow.remote}:{flow.remote_port}"
    ends = f"{flow.opener} -> {flow.target}"
    outside = str(flow.outside_port or "-")
    row = f"{ends:18} {flow.protocol:5} {inside:19} {outside:8} {remote:21} {flow.state or '-':12}"
    row += f" {span(flow.idle_s):>6} {span(flow.left_s):>6}"
    return f"{row}  {flow.where}: {flow.rule}" if flow.rule else row


HEAD = f"{'OPENER -> TARGET':18} {'PROTO':5} {'INSIDE':19} {'OUTSIDE':8} {'REMOTE':21} {'STATE':12} {'IDLE':>6} {'LEFT':>6}"


def span(seconds: float) -> str:
    """Like 4.2s, 41s, 12m or 2h04."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 600:
        return f"{whole}s"
    return f"{whole // 60}m" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}"
