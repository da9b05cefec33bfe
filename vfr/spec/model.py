"""What the fastpath should do, as one pure function: step(router, state, now, sender, frame).

Readings taken of the RFCs: mapping is endpoint-independent (RFC 4787 REQ-1), filtering is address and
port dependent (REQ-8); an outside port equal to the inside one is kept when it may be, else any free
port of the domain's block is as good as another (`choose` says which). Inbound packets refresh too.
A session's or mapping's life is what is left since its last packet, in whole seconds as the fastpath
keeps them; a dead one is as good as none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from vfr._abi import TcpEvent as E
from vfr._abi import TcpState as S
from vfr._abi import Verdict as V
from vfr.spec.packet import (
    ECHO,
    ECHO_REPLY,
    ETHER_ARP,
    ETHER_IP,
    ETHER_IPV6,
    FIN,
    GATEWAY_MAC,
    ICMP,
    ICMP_ERRORS,
    RST,
    SYN,
    TCP,
    UDP,
    VLANS,
    Packet,
    hop,
    ones_sum,
    rewrite,
)

SECOND = 10**9
LAN = 0xFFFE
IDLE = {UDP: 300 * SECOND, ICMP: 60 * SECOND}
DNS_IDLE = 30 * SECOND
TCP_IDLE = {S.TCP_OPENING: 240 * SECOND, S.TCP_CLOSED: 240 * SECOND}
TCP_ESTABLISHED = 7440 * SECOND
LINK_LOCAL = IPv4Network("169.254.0.0/16")
MULTICAST = IPv4Network("224.0.0.0/4")
MARTIANS = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"))

# state -> event -> state; what is not named stays as it is.
TCP_NEXT: Mapping[S, Mapping[E, S]] = {
    S.TCP_OPENING: {
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_SYN: S.TCP_ESTABLISHED,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_ESTABLISHED: {
        E.TCP_OPENER_FIN: S.TCP_FIN_OPENER,
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_FIN: S.TCP_FIN_PEER,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_FIN_OPENER: {
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_FIN: S.TCP_CLOSED,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_FIN_PEER: {
        E.TCP_OPENER_FIN: S.TCP_CLOSED,
        E.TCP_OPENER_RST: S.TCP_CLOSED,
        E.TCP_PEER_RST: S.TCP_CLOSED,
    },
    S.TCP_NONE: {E.TCP_OPENER_SYN: S.TCP_OPENING},
    S.TCP_CLOSED: {},
}


class Policy(Protocol):
    """What the model asks of the rules; nodes are slots, or LAN."""

    def allows(self, opener: int, target: int, protocol: int, port: int) -> bool: ...

    def may_talk(self, one: int, other: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Domain:
    """A tenant of a slot. Slot 0 is domain 0."""

    address: int
    mac: bytes
    ports: range = range(0)
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Router:
    """All that the control plane has said. `forwards` is (protocol, outside port) -> (slot, inside port)."""

    domains: Mapping[int, Domain]
    policy: Policy
    gateway: int
    pool: IPv4Network
    outside: int | None = None
    lan: IPv4Network | None = None
    uplink_mtu: int = 1500
    nat_ports: range = range(16384, 32768)
    forwards: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    quota: int = 2048

    def slot_of(self, address: int) -> int | None:
        return next((slot for slot, d in self.domains.items() if d.address == address), None)


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation. `peer` is a slot or LAN, `outside` 0 between domains."""

    expires: int
    peer: int
    outside: int
    state: S


Key = tuple[int, bool, int, int, int, int]  # owner slot, opened by the LAN, remote, its port, inside port, protocol
MappingKey = tuple[int, int, int]  # slot, protocol, inside port


@dataclass(frozen=True, slots=True)
class State:
    """All that packets have made: sessions, and mappings as (expires, outside port)."""

    sessions: Mapping[Key, Session] = field(default_factory=dict)
    mappings: Mapping[MappingKey, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of a frame: `target` is the receiver's slot or LAN, None if nobody's."""

    state: State
    verdict: V
    frame: bytes | None = None
    target: int | None = None


class _End(Exception):
    """A stage has decided."""

    def __init__(self, verdict: V) -> None:
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class _Flow:
    """Which conversation a packet belongs to. `session` is None if it begins one."""

    key: Key
    session: Session | None
    reply: bool
    opener: int
    target: int
    service: int
    to: int
    inside: int = 0
    outside: int = 0


def _ip(address: int) -> IPv4Address:
    return IPv4Address(address)


def _within(address: int, *nets: IPv4Network) -> bool:
    return any(_ip(address) in net for net in nets)


def _check_ip_header(frame: bytes) -> None:
    if len(frame) < 34:
        raise _End(V.DROP_TRUNCATED)
    length, total = (frame[14] & 15) * 4, int.from_bytes(frame[16:18], "big")
    if frame[14] >> 4 != 4 or length < 20 or total < length or 14 + total > len(frame):
        raise _End(V.DROP_IP_HEADER)
    if length > 20:
        raise _End(V.DROP_IP_OPTIONS)
    if ones_sum(frame[14:34]) != 0xFFFF:
        raise _End(V.DROP_IP_HEADER)


def _l4(frame: bytes) -> Packet:
    """The packet, its L4 header checked against its length."""
    src, dst = int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[30:34], "big")
    protocol, room = frame[23], int.from_bytes(frame[16:18], "big") - 20
    need = {TCP: 20, UDP: 8, ICMP: 8}.get(protocol)
    if need is None:
        raise _End(V.DROP_PROTOCOL)
    if room < need or len(frame) < 34 + need:
        raise _End(V.DROP_L4_HEADER)
    first, second, third = (int.from_bytes(frame[at : at + 2], "big") for at in (34, 36, 38))
    if protocol == TCP:
        if not 20 <= (frame[46] >> 4) * 4 <= room:
            raise _End(V.DROP_L4_HEADER)
        return Packet(src, dst, TCP, first, second, frame[47])
    if protocol == UDP:
        if not 8 <= third <= room:
            raise _End(V.DROP_L4_HEADER)
        return Packet(src, dst, UDP, first, second)
    if frame[34] in ICMP_ERRORS:
        raise _End(V.DROP_ICMP_ERROR)
    if frame[34] not in (ECHO, ECHO_REPLY) or frame[35]:
        raise _End(V.DROP_ICMP_TYPE)
    is_echo = frame[34] == ECHO
    return Packet(src, dst, ICMP, third if is_echo else 0, 0 if is_echo else third, 0, frame[34])


def _guard_ip(own: Domain, frame: bytes) -> Packet:
    _check_ip_header(frame)
    src, dst = int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[30:34], "big")
    for wrong, verdict in (
        (src != own.address, V.DROP_SRC_IP),
        (_within(dst, MULTICAST) or dst == 0xFFFFFFFF, V.DROP_MULTICAST),
        (_within(dst, *MARTIANS) or dst == src, V.DROP_MARTIAN),
        (frame[0] & 1, V.DROP_GROUP_MAC),
        (frame[:6] != GATEWAY_MAC, V.DROP_DST_MAC),
        (int.from_bytes(frame[20:22], "big") & 0x3FFF, V.DROP_FRAGMENT),
        (frame[22] <= 1, V.DROP_TTL),
    ):
        if wrong:
            raise _End(verdict)
    return _l4(frame)


def _guard(own: Domain, frame: bytes) -> Packet | None:
    """The packet, or None for ARP that is in order."""
    if len(frame) < 14:
        raise _End(V.DROP_TRUNCATED)
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype in VLANS:
        raise _End(V.DROP_VLAN)
    if frame[6:12] != own.mac:
        raise _End(V.DROP_SRC_MAC)
    if ethertype == ETHER_IP:
        return _guard_ip(own, frame)
    if ethertype != ETHER_ARP:
        raise _End(V.DROP_IPV6 if ethertype == ETHER_IPV6 else V.DROP_ETHERTYPE)
    _guard_arp(own, frame)
    return None


def _guard_arp(own: Domain, frame: bytes) -> None:
    if len(frame) < 42:
        raise _End(V.DROP_TRUNCATED)
    if frame[14:20] != bytes.fromhex("000108000604") or frame[20:22] not in (b"\0\1", b"\0\2"):
        raise _End(V.DROP_ARP_HEADER)
    sender = int.from_bytes(frame[28:32], "big")
    if frame[22:28] != own.mac or sender not in (0, own.address):
        raise _End(V.DROP_ARP_SENDER)
    if not frame[0] & 1 and frame[:6] != GATEWAY_MAC:
        raise _End(V.DROP_DST_MAC)


def _answer(router: Router, slot: int, frame: bytes) -> bytes:
    """The ARP reply to a request that deserves one."""
    own = router.domains[slot]
    asked = int.from_bytes(frame[38:42], "big")
    if frame[20:22] == b"\0\2":
        raise _End(V.DROP_ARP_REPLY)
    if not any(frame[28:32]):
        raise _End(V.DROP_ARP_PROBE)
    if asked == own.address:
        raise _End(V.DROP_ARP_OWN)
    peer = router.slot_of(asked)
    if asked != router.gateway and (peer is None or not router.policy.may_talk(slot, peer)):
        raise _End(V.DROP_ARP_UNANSWERED)
    sender = frame[22:32]
    return sender[:6] + GATEWAY_MAC + frame[12:20] + b"\0\2" + GATEWAY_MAC + frame[38:42] + sender + frame[42:]


def _live(state: State, now: int, key: Key) -> Session | None:
    session = state.sessions.get(key)
    return session if session and session.expires > now else None


def _route(router: Router, slot: int, dst: int) -> int:
    """The slot that has the address, or LAN."""
    peer = router.slot_of(dst)
    if peer is not None:
        return peer
    if _within(dst, router.pool, LINK_LOCAL) or slot == 0:
        raise _End(V.DROP_NO_DOMAIN)
    if router.outside is None or router.lan is None:
        raise _End(V.DROP_NO_UPLINK)
    if dst == router.outside:
        raise _End(V.DROP_HAIRPIN)
    if _ip(dst) in router.lan and _ip(dst) in (router.lan.broadcast_address, router.lan.network_address):
        raise _End(V.DROP_MULTICAST)
    return LAN


def _from_vif(router: Router, state: State, now: int, slot: int, p: Packet) -> _Flow:
    own_key: Key = (slot, False, p.dst, p.dport, p.sport, p.protocol)
    own = _live(state, now, own_key) if p.icmp_type != ECHO_REPLY else None
    if own and not (own.state == S.TCP_CLOSED and p.opening):
        if own.peer == LAN and router.outside is None:
            raise _End(V.DROP_NO_UPLINK)
        if own.peer != LAN and own.peer not in router.domains:
            raise _End(V.DROP_NO_DOMAIN)
        return _Flow(own_key, own, False, slot, own.peer, p.dport, own.peer, p.sport, own.outside)
    to = _route(router, slot, p.dst)
    if to != LAN and p.icmp_type != ECHO:
        key: Key = (to, False, p.src, p.sport, p.dport, p.protocol)
        theirs = _live(state, now, key)
        if theirs and theirs.peer == slot:
            return _Flow(key, theirs, True, to, slot, p.sport, to)
    elif to == LAN:
        key = (slot, True, p.dst, p.dport, p.sport, p.protocol)
        theirs = _live(state, now, key)
        if theirs:
            return _Flow(key, theirs, True, LAN, slot, p.sport, LAN, p.sport, theirs.outside)
    if not p.opening:
        raise _End(V.DROP_NO_SESSION)
    return _Flow(own_key, None, False, slot, to, p.dport, to, p.sport)


def _holder(state: State, p: Packet) -> MappingKey | None:
    """The mapping that has an outside port, or had it last."""
    return next((k for k, (_, port) in state.mappings.items() if k[1] == p.protocol and port == p.dport), None)


def _from_lan(router: Router, state: State, now: int, frame: bytes) -> tuple[Packet, _Flow]:
    _check_ip_header(frame)
    src, dst = int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[30:34], "big")
    for wrong, verdict in (
        (_within(src, *MARTIANS, MULTICAST, LINK_LOCAL) or src == dst, V.DROP_MARTIAN),
        (int.from_bytes(frame[20:22], "big") & 0x3FFF, V.DROP_FRAGMENT),
        (frame[22] <= 1, V.DROP_TTL),
    ):
        if wrong:
            raise _End(verdict)
    p = _l4(frame)
    forward = router.forwards.get((p.protocol, p.dport)) if p.protocol != ICMP else None
    mapping = _holder(state, p)
    if forward:
        slot, inside = forward
        key: Key = (slot, True, p.src, p.sport, inside, p.protocol)
        session = _live(state, now, key)
        if session and session.state == S.TCP_CLOSED and p.opening:
            session = None
        if not session and not p.opening:
            raise _End(V.DROP_NO_SESSION)
        return p, _Flow(key, session, False, LAN, slot, inside, slot, inside, p.dport)
    assert mapping is not None
    slot, _, inside = mapping
    key = (slot, False, p.src, p.sport, inside, p.protocol)
    session = _live(state, now, key)
    if not session or session.peer != LAN or session.outside != p.dport:
        raise _End(V.NOT_OURS if p.protocol == ICMP else V.DROP_UNSOLICITED)
    return p, _Flow(key, session, True, slot, LAN, p.sport, slot, inside, p.dport)


def _event(p: Packet, reply: bool) -> E:
    side = E.TCP_PEER_SYN if reply else E.TCP_OPENER_SYN
    kind = 2 if p.flags & RST else 0 if p.flags & SYN else 1 if p.flags & FIN else 3
    return E(side + kind)


def idle_time(protocol: int, service: int, state: S) -> int:
    """How long, in ns, a conversation may be silent."""
    if protocol == TCP:
        return TCP_IDLE.get(state, TCP_ESTABLISHED)
    return DNS_IDLE if protocol == UDP and service == 53 else IDLE[protocol]


def free_ports(router: Router, state: State, now: int, slot: int, protocol: int) -> list[int]:
    """The outside ports a new mapping of the domain's may take."""
    held = {
        port for (s, p, _), (expires, port) in state.mappings.items() if (s, p) == (slot, protocol) and expires > now
    }
    return [port for port in router.domains[slot].ports if port not in held]


def _map(
    router: Router,
    state: State,
    now: int,
    flow: _Flow,
    p: Packet,
    expires: int,
    choose: Callable[[list[int]], int],
) -> tuple[State, int]:
    """The outside port for the packet's inside port, and the state that remembers it."""
    key: MappingKey = (flow.opener, p.protocol, p.sport)
    known = state.mappings.get(key)
    if known and known[0] > now:
        port, expires = known[1], max(known[0], expires)
    else:
        free = free_ports(router, state, now, flow.opener, p.protocol)
        if not free:
            raise _End(V.DROP_PORTS_FULL)
        port = p.sport if p.sport in free else choose(free)
    kept = {k: v for k, v in state.mappings.items() if k == key or k[1] != p.protocol or v[1] != port}
    return replace(state, mappings={**kept, key: (expires, port)}), port


def _open(
    router: Router, state: State, now: int, flow: _Flow, p: Packet, choose: Callable[[list[int]], int]
) -> tuple[State, int]:
    tcp = S.TCP_OPENING if p.protocol == TCP else S.TCP_NONE
    expires, outside = now + idle_time(p.protocol, flow.service, tcp), flow.outside
    if flow.to == LAN:
        state, outside = _map(router, state, now, flow, p, expires, choose)
    alive = [k for k, s in state.sessions.items() if k[:2] == flow.key[:2] and s.expires > now and k != flow.key]
    if len(alive) >= router.quota:
        raise _End(V.DROP_SESSIONS_FULL)
    session = Session(expires, LAN if flow.opener == LAN else flow.to, outside, tcp)
    return replace(state, sessions={**state.sessions, flow.key: session}), outside


def _carry_on(state: State, now: int, flow: _Flow, p: Packet) -> State:
    """A living session's next packet: its state, its time, and its mapping's."""
    session = flow.session
    assert session is not None
    tcp = session.state
    if p.protocol == TCP:
        tcp = TCP_NEXT[tcp].get(_event(p, flow.reply), tcp)
    expires = now + idle_time(p.protocol, flow.service, tcp)
    if tcp == session.state and expires < session.expires + SECOND:
        return state
    state = replace(state, sessions={**state.sessions, flow.key: replace(session, state=tcp, expires=expires)})
    mapping: MappingKey = (flow.key[0], p.protocol, flow.key[4])
    known = state.mappings.get(mapping)
    if known and flow.outside and not flow.key[1] and known[0] < expires:
        state = replace(state, mappings={**state.mappings, mapping: (expires, known[1])})
    return state


def _translated(router: Router, flow: _Flow, from_lan: bool, outside: int, p: Packet, frame: bytes) -> bytes:
    if flow.to == LAN:
        assert router.outside is not None
        return hop(rewrite(frame, p.protocol, True, router.outside, outside))
    if from_lan:
        frame = rewrite(frame, p.protocol, False, router.domains[flow.to].address, flow.inside)
    return router.domains[flow.to].mac + GATEWAY_MAC + hop(frame)[12:]


def _forward(
    router: Router,
    state: State,
    now: int,
    flow: _Flow,
    p: Packet,
    frame: bytes,
    from_lan: bool,
    choose: Callable[[list[int]], int],
) -> Step:
    if not router.policy.allows(flow.opener, flow.target, p.protocol, 0 if p.protocol == ICMP else flow.service):
        gone = {k: s for k, s in state.sessions.items() if k != flow.key} if flow.session else state.sessions
        return Step(replace(state, sessions=gone), V.DROP_POLICY)
    mtu = router.uplink_mtu if flow.to == LAN else router.domains[flow.to].mtu
    if int.from_bytes(frame[16:18], "big") > mtu:
        raise _End(V.DROP_TOO_BIG)
    outside = flow.outside
    if flow.session:
        state = _carry_on(state, now, flow, p)
    else:
        state, outside = _open(router, state, now, flow, p, choose)
    verdict = V.TO_LAN if flow.to == LAN else V.TO_DOM0 if flow.to == 0 else V.TO_DOMAIN
    return Step(state, verdict, _translated(router, flow, from_lan, outside, p, frame), flow.to)


def _is_ours(router: Router, state: State, frame: bytes) -> bool:
    """Whether a frame of the LAN's goes to a port that a mapping or a forward holds. Ends it if it may
    not even be on the LAN, or asks for a port that is nobody's in our own range."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        if len(frame) >= 42 and frame[12:14] == b"\x08\x06":
            asked = (int.from_bytes(frame[28:32], "big"), int.from_bytes(frame[38:42], "big"))
            if any(_within(a, router.pool) for a in asked):
                raise _End(V.DROP_MARTIAN)
        return False
    src, dst = int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[30:34], "big")
    if _within(src, router.pool) or _within(dst, router.pool):
        raise _End(V.DROP_MARTIAN)
    at, protocol = 14 + (frame[14] & 15) * 4, frame[23]
    later_fragment = int.from_bytes(frame[20:22], "big") & 0x1FFF
    if dst != router.outside or later_fragment or protocol not in (TCP, UDP, ICMP) or len(frame) < at + 8:
        return False
    if protocol == ICMP and frame[at] in ICMP_ERRORS:
        return _quotes_us(router, state, frame, at + 8)
    if protocol == ICMP and frame[at] != ECHO_REPLY:
        return False
    port = int.from_bytes(frame[at + 4 : at + 6] if protocol == ICMP else frame[at + 2 : at + 4], "big")
    if _held(router, state, protocol, port):
        return True
    if protocol != ICMP and port in router.nat_ports:
        raise _End(V.DROP_UNSOLICITED)
    return False


def _held(router: Router, state: State, protocol: int, port: int) -> bool:
    return (protocol, port) in router.forwards or any(
        k[1] == protocol and v[1] == port for k, v in state.mappings.items()
    )


def _quotes_us(router: Router, state: State, frame: bytes, at: int) -> bool:
    """An ICMP error is ours, and ends here for now, if it quotes a packet from one of our ports."""
    quoted = frame[at:]
    if len(quoted) < 20 or int.from_bytes(quoted[12:16], "big") != router.outside:
        return False
    port_at = (quoted[0] & 15) * 4 + (4 if quoted[9] == ICMP else 0)
    if len(quoted) < port_at + 2:
        return False
    space = quoted[9] if quoted[9] in (TCP, UDP) else ICMP
    if _held(router, state, space, int.from_bytes(quoted[port_at : port_at + 2], "big")):
        raise _End(V.DROP_ICMP_ERROR)
    return False


def _first(ports: list[int]) -> int:
    return ports[0]


def step(
    router: Router,
    state: State,
    now: int,
    sender: int,
    frame: bytes,
    choose: Callable[[list[int]], int] = _first,
) -> Step:
    """One frame's fate. `sender` is the slot whose VIF it came in by, or LAN for the uplink; `now` in ns.

    `choose` picks an outside port from the free ones where any is as good as another.
    """
    try:
        if sender == LAN:
            if not _is_ours(router, state, frame):
                return Step(state, V.NOT_OURS, frame)
            packet, flow = _from_lan(router, state, now, frame)
            return _forward(router, state, now, flow, packet, frame, True, choose)
        if sender not in router.domains:
            return Step(state, V.DROP_NOT_READY)
        guarded = _guard(router.domains[sender], frame)
        if guarded is None:
            return Step(state, V.ANSWERED, _answer(router, sender, frame), sender)
        flow = _from_vif(router, state, now, sender, guarded)
        return _forward(router, state, now, flow, guarded, frame, False, choose)
    except _End as end:
        return Step(state, end.verdict, frame if end.verdict == V.NOT_OURS else None)
