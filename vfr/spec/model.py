"""What the fastpath should do, as one pure function: step(router, state, now, sender, frame).

Readings taken of the RFCs. Mapping is endpoint-independent (RFC 4787 REQ-1), filtering is address and
port dependent (REQ-8). An outside port equal to the inside one is kept when it may be, else any free port
of the domain's block is as good as another (`choose` says which); a TCP mapping all of whose sessions
are over gives its port up when no other is free, the oldest first, and lives no longer than they do. A
port of the host's own is never taken, and what a mapping's port gets that is of none of its conversations is
the host's. Inbound packets refresh too. A
session's or mapping's life is what is left since its last packet, in whole seconds as the fastpath
keeps them; a dead one is as good as none. A RST shortens a session's life, and traffic restores it, unless
it can be believed: a domain's own, or with just the sequence number that is due (RFC 5961 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from vfr._abi import Kind as K
from vfr._abi import Limit
from vfr._abi import TcpEvent as E
from vfr._abi import TcpState as S
from vfr._abi import Verdict as V
from vfr.settings import LAN_FRAGMENTS, Dhcp, Limits, Timers, forgettable
from vfr.spec import dhcp
from vfr.spec.packet import (
    ACK,
    DONT,
    ECHO,
    ECHO_REPLY,
    ETHER_ARP,
    ETHER_IP,
    ETHER_IPV6,
    FIN,
    GATEWAY_MAC,
    ICMP,
    ICMP_ERRORS,
    L3,
    L4,
    MORE,
    OFFSET,
    PROTOCOLS,
    QUOTED,
    REDIRECT,
    REPLIES,
    REQUESTS,
    RST,
    SYN,
    TCP,
    TIME_EXCEEDED,
    UDP,
    UNREACHABLE,
    VLANS,
    Packet,
    icmp_error,
    long,
    ones_sum,
    parse_ip,
    readdress,
    requote,
    rewrite,
    with_id,
    with_ttl,
    word,
)
from vfr.spec.tcp import CLOSING, HALF_OPEN, OVER, step_tcp

SECOND = 10**9
LAN, SORTER = 0xFFFE, 0x10000
ICMP_ERROR_MAX = 1536
SORTED_PIECES_MAX = 128
LAN_ERRORS_PER_S = 100
ETHERTYPE_LEAST = 0x600
WIRE_EXTRA = 24
QUEUE = 16_000_000
LINK_LOCAL = IPv4Network("169.254.0.0/16")
MULTICAST = IPv4Network("224.0.0.0/4")
MARTIANS = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"))
# What a router owes the sender of a packet that it does not forward: type, code, whether the LAN is told.
OWED = {
    V.DROP_TTL: (TIME_EXCEEDED, 0, True),
    V.DROP_TOO_BIG: (UNREACHABLE, 4, True),
    V.DROP_REJECTED: (UNREACHABLE, 13, True),
    V.DROP_NO_UPLINK: (UNREACHABLE, 0, False),
    V.DROP_SESSIONS_FULL: (UNREACHABLE, 1, False),
    V.DROP_HALF_OPEN_FULL: (UNREACHABLE, 1, False),
    V.DROP_TOO_FAST: (UNREACHABLE, 1, False),
    V.DROP_PORTS_FULL: (UNREACHABLE, 1, False),
}


class Policy(Protocol):
    """What the model asks of the rules; nodes are slots, or LAN."""

    def decide(
        self, opener: int, target: int, protocol: int, port: int, remote: int = 0, ether: bool = False
    ) -> str: ...

    def limit(self, opener: int, target: int, protocol: int, port: int, remote: int = 0) -> tuple[int, int]: ...

    def may_talk(self, one: int, other: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Domain:
    """A tenant of a slot. Slot 0 is domain 0."""

    address: int
    mac: bytes
    ports: range = range(0)
    mtu: int = 1500
    guest_address: int | None = None
    guest_mac: bytes | None = None
    guest_gateway: int | None = None
    dhcp: Dhcp | None = None

    @property
    def seen_address(self) -> int:
        """The address that the guest believes to have, as snapshots of one VM all do."""
        return self.address if self.guest_address is None else self.guest_address

    @property
    def seen_mac(self) -> bytes:
        """The MAC that the guest has."""
        return self.guest_mac or self.mac

    @property
    def is_clone(self) -> bool:
        """Whether the guest believes anything else than the router knows."""
        return (self.guest_address, self.guest_mac, self.guest_gateway) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Router:
    """All that the control plane has said. `forwards` is (protocol, outside port) -> (slot, inside port);
    `uplink_rate` is what the uplink takes, in bits a second, 0 if nobody has said; `host_ports` are the (protocol, port) that programs of the host have bound for themselves."""

    domains: Mapping[int, Domain]
    policy: Policy
    gateway: int
    pool: IPv4Network
    outside: int | None = None
    lan: IPv4Network | None = None
    uplink_mtu: int = 1500
    nat_ports: range = range(16384, 32768)
    forwards: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    timers: Timers = field(default_factory=Timers)
    sorter: bool = True
    uplink_rate: int = 0
    host_ports: frozenset[tuple[int, int]] = frozenset()

    def gateway_seen(self, domain: Domain) -> int:
        """Whom the domain's guest takes for the router."""
        return self.gateway if domain.guest_gateway is None else domain.guest_gateway

    def slot_of_mac(self, mac: bytes) -> int | None:
        return next((slot for slot, d in self.domains.items() if d.mac == mac), None)

    def slot_of(self, address: int) -> int | None:
        return next((slot for slot, d in self.domains.items() if d.address == address), None)


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation. `peer` is a slot or LAN, `outside` 0 between domains. `sequence`: half open, the peer's initial
    one; then what the LAN's side will say next, as far as the domain's own acknowledgments make it known."""

    expires: int
    peer: int
    outside: int
    state: S
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class PortMapping:
    """An inside port's outside port. `open` counts its TCP sessions that are not closing."""

    expires: int
    outside: int
    open: int


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a datagram's first fragment: `way` is "sort", "go" or "host"; `asked` is what the policy was."""

    expires: int
    way: str
    to: int = LAN
    first_end: int = 0
    new_id: int = 0
    seen: int = 1
    asked: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)


Key = tuple[int, bool, int, int, int, int]  # owner slot, opened by the LAN, remote, its port, inside port, protocol
MappingKey = tuple[int, int, int]  # slot, protocol, inside port
FragmentKey = tuple[int, int, int, int, int]  # sender's slot or LAN, src, dst, id, protocol
QueueKey = tuple[int, K]


@dataclass(frozen=True, slots=True)
class State:
    """All that packets have made. `outside` is (protocol, port) -> mapping that claimed it; `closing` are
    sessions with their outside ports, oldest first; `whole` is when each rate's allowance is whole again; of the uplink, it
    also has the fair rate, and when that was last adjusted."""

    sessions: Mapping[Key, Session] = field(default_factory=dict)
    mappings: Mapping[MappingKey, PortMapping] = field(default_factory=dict)
    outside: Mapping[tuple[int, int], MappingKey] = field(default_factory=dict)
    closing: Mapping[QueueKey, tuple[tuple[Key, int], ...]] = field(default_factory=dict)
    fragments: Mapping[FragmentKey, Note] = field(default_factory=dict)
    whole: Mapping[tuple[int, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of a frame: `target` is the receiver's slot or LAN, None if nobody's. A drop with a
    frame is an ICMP error that goes back."""

    state: State
    verdict: V
    frame: bytes | None = None
    target: int | None = None


class _End(Exception):
    """A stage has decided."""

    def __init__(self, verdict: V) -> None:
        self.verdict = verdict


@dataclass(slots=True)
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


def _within(address: int, *nets: IPv4Network) -> bool:
    return any(IPv4Address(address) in net for net in nets)


def _end_if(*checks: tuple[object, V]) -> None:
    """Ends with the verdict of the first check that is true."""
    for wrong, verdict in checks:
        if wrong:
            raise _End(verdict)


def _options_verdict(options: bytes) -> V:
    at = 0
    while at < len(options) and options[at]:
        if options[at] in (131, 137):
            return V.DROP_SOURCE_ROUTE
        has_length = options[at] != 1 and at + 1 < len(options)
        at += options[at + 1] if has_length and options[at + 1] > 1 else 1
    return V.DROP_IP_OPTIONS


def _check_ip_header(frame: bytes) -> None:
    _end_if((len(frame) < 34, V.DROP_TRUNCATED))
    length, total = (frame[14] & 15) * 4, word(frame, 16)
    _end_if(
        (frame[14] >> 4 != 4 or length < 20, V.DROP_IP_HEADER),
        (total < length or L3 + total > len(frame), V.DROP_IP_HEADER),
    )
    if length > 20:
        raise _End(_options_verdict(frame[34 : 14 + length]))
    _end_if((ones_sum(frame[14:34]) != 0xFFFF, V.DROP_IP_HEADER))


def _l4(frame: bytes, p: Packet) -> Packet:
    """The packet with its L4 header's fields, checked against its length."""
    room, need = p.length - 20, {TCP: 20, UDP: 8, ICMP: 8}.get(p.protocol)
    if need is None:
        return p
    _end_if((room < need or len(frame) < L4 + need, V.DROP_L4_HEADER))
    if p.protocol == TCP:
        header = (frame[46] >> 4) * 4
        _end_if((not 20 <= header <= room, V.DROP_L4_HEADER))
        p = replace(p, sport=word(frame, 34), dport=word(frame, 36), flags=frame[47])
        return replace(p, seq=long(frame, 38), ack=long(frame, 42), load=room - header)
    if p.protocol == UDP:
        said = word(frame, 38)
        _end_if((said < 8 or (said > room and not p.first), V.DROP_L4_HEADER))
        return replace(p, sport=word(frame, 34), dport=word(frame, 36))
    kind, number = frame[34], word(frame, 38)
    if kind in ICMP_ERRORS:
        return replace(p, icmp_type=kind, error=True)
    _end_if(((kind not in REQUESTS and kind not in REPLIES) or frame[35], V.DROP_ICMP_TYPE))
    sport, dport = (number, REQUESTS[kind]) if kind in REQUESTS else (REPLIES[kind], number)
    return replace(p, sport=sport, dport=dport, icmp_type=kind)


def _guard_l4(frame: bytes, p: Packet) -> Packet:
    """Whatever is ours to forward: a fragment that can be one, and an L4 header that is whole."""
    if p.fragment & (MORE | OFFSET):
        length = p.length - 20
        _end_if(
            (not length or (p.fragment & MORE and length % 8), V.DROP_FRAGMENT),
            (p.offset + length > 65515, V.DROP_FRAGMENT),
            (p.later and p.offset < 20 and p.protocol == TCP, V.DROP_FRAGMENT),
        )
    if p.later:
        return p
    p = _l4(frame, p)
    _end_if((p.error and p.first, V.DROP_FRAGMENT))
    return p


def _guard_target(p: Packet) -> None:
    _end_if(
        (_within(p.dst, MULTICAST) or p.dst == 0xFFFFFFFF, V.DROP_MULTICAST),
        (_within(p.dst, *MARTIANS) or p.dst == p.src, V.DROP_MARTIAN),
    )


def _guard_dhcp(frame: bytes, p: Packet) -> Packet:
    _end_if(
        (not frame[0] & 1 and frame[:6] != GATEWAY_MAC, V.DROP_DST_MAC),
        (p.first, V.DROP_DHCP_HEADER),
    )
    return _guard_l4(frame, p)


def _guard_ip(own: Domain, gateway: int, frame: bytes) -> Packet:
    _check_ip_header(frame)
    p = parse_ip(frame)
    if dhcp.is_dhcp(frame, p, gateway, own.dhcp):
        return _guard_dhcp(frame, p)
    _end_if((p.src != own.seen_address, V.DROP_SRC_IP))
    _guard_target(p)
    _end_if(
        (frame[0] & 1, V.DROP_GROUP_MAC),
        (frame[:6] != GATEWAY_MAC, V.DROP_DST_MAC),
    )
    return _guard_l4(frame, p)


def _guard_arp(own: Domain, frame: bytes) -> None:
    _end_if((len(frame) < 42, V.DROP_TRUNCATED))
    is_ours = frame[14:20] == bytes.fromhex("000108000604") and frame[20:22] in (b"\0\1", b"\0\2")
    sender = long(frame, 28)
    _end_if(
        (not is_ours, V.DROP_ARP_HEADER),
        (frame[22:28] != own.seen_mac or sender not in (0, own.seen_address), V.DROP_ARP_SENDER),
        (not frame[0] & 1 and frame[:6] != GATEWAY_MAC, V.DROP_DST_MAC),
    )


def _guard(own: Domain, gateway: int, frame: bytes) -> Packet | None:
    """The packet, or None for ARP, and for raw Ethernet, that is in order."""
    _end_if((len(frame) < 14, V.DROP_TRUNCATED))
    ethertype = word(frame, 12)
    _end_if((ethertype in VLANS, V.DROP_VLAN), (frame[6:12] != own.seen_mac, V.DROP_SRC_MAC))
    if ethertype == ETHER_IP:
        _end_if((len(frame) < 34, V.DROP_TRUNCATED))
        return _guard_ip(own, gateway, frame)
    if ethertype == ETHER_ARP:
        _guard_arp(own, frame)
        return None
    _end_if(
        (ethertype == ETHER_IPV6, V.DROP_IPV6),
        (frame[0] & 1 or ethertype < ETHERTYPE_LEAST, V.DROP_ETHERTYPE),
    )
    return None


def _quoted(frame: bytes, p: Packet) -> Packet | None:
    """An ICMP error as an answer to what it quotes would be; None if that can't be a packet of ours."""
    end = L3 + p.length
    if len(frame) < QUOTED + 20 or frame[QUOTED] >> 4 != 4 or frame[QUOTED] & 15 < 5:
        return None
    at = QUOTED + (frame[QUOTED] & 15) * 4
    if word(frame, QUOTED + 6) & OFFSET or at + 8 > end or len(frame) < at + 8 or long(frame, QUOTED + 12) != p.dst:
        return None
    protocol, kind, number = frame[QUOTED + 9], frame[at], word(frame, at + 4)
    sport, dport = word(frame, at + 2), word(frame, at)
    if protocol == ICMP and kind in REQUESTS:
        sport, dport = REQUESTS[kind], number
    elif protocol == ICMP and kind in REPLIES:
        sport, dport = number, REPLIES[kind]
    elif protocol not in (TCP, UDP):
        return None
    answer = ECHO_REPLY if kind in REQUESTS else ECHO
    return replace(
        p, src=long(frame, QUOTED + 16), protocol=protocol, sport=sport, dport=dport, icmp_type=answer, quoted_l4=at
    )


def _check_quoted(frame: bytes, p: Packet) -> None:
    _end_if((p.length - 20 > ICMP_ERROR_MAX, V.DROP_ICMP_ERROR))
    whole, header = frame[L4 : L3 + p.length], frame[QUOTED : p.quoted_l4]
    _end_if((ones_sum(whole) != 0xFFFF or ones_sum(header) != 0xFFFF, V.DROP_ICMP_CHECKSUM))


def _is_redirect(frame: bytes, p: Packet) -> bool:
    at = L3 + (frame[14] & 15) * 4
    return p.protocol == ICMP and not p.later and len(frame) > at and frame[at] == REDIRECT


def _answer(router: Router, slot: int, frame: bytes) -> bytes:
    """The ARP reply to a request that deserves one."""
    asked = long(frame, 38)
    own, peer = router.domains[slot], router.slot_of(asked)
    known = asked == router.gateway_seen(own) or (peer not in (None, 0, slot) and router.policy.may_talk(slot, peer))
    _end_if(
        (frame[20:22] == b"\0\2", V.DROP_ARP_REPLY),
        (not any(frame[28:32]), V.DROP_ARP_PROBE),
        (asked == own.seen_address, V.DROP_ARP_OWN),
        (not known, V.DROP_ARP_UNANSWERED),
    )
    sender = frame[22:32]
    return sender[:6] + GATEWAY_MAC + frame[12:20] + b"\0\2" + GATEWAY_MAC + frame[38:42] + sender + frame[42:]


def idle_time(timers: Timers, protocol: int, service: int, state: S) -> int:
    """How long, in ns, a conversation may be silent."""
    if protocol == ICMP:
        return timers.icmp * SECOND
    if protocol != TCP:
        return (timers.dns if protocol == UDP and service == 53 else timers.udp) * SECOND
    if state in HALF_OPEN:
        return timers.tcp_opening * SECOND
    return (timers.tcp_closing if state in CLOSING else timers.tcp_established) * SECOND


@dataclass(frozen=True, slots=True)
class _Cap:
    """A rate that a packet draws on: whose, how much of it, what it is a second, and what no packet takes more than."""

    what: tuple[int, str]
    amount: int
    per_s: int
    most: int
    verdict: V


def _time_for(amount: int, per_s: int) -> int:
    """How long, in whole ns, a rate takes for an amount."""
    return -(-amount * SECOND // per_s)


def _queue_aim(rate: int) -> int:
    """The queue, in ns, that is aimed at on an uplink of that rate."""
    return QUEUE + _time_for(1 << 20, rate)


class _Run:
    """One frame's way. Holds the state as it changes; `State` itself is never touched."""

    def __init__(self, router: Router, state: State, now: int, identification: int, choose: Callable[[list[int]], int]):
        self.router, self.now, self.identification, self.choose = router, now, identification, choose
        self.sessions, self.mappings = dict(state.sessions), dict(state.mappings)
        self.outside, self.closing = dict(state.outside), dict(state.closing)
        self.fragments, self.whole = dict(state.fragments), dict(state.whole)
        self.sender, self.sorted, self.hairpin, self.marked, self.for_host = LAN, False, False, False, False
        self.packet: Packet | None = None
        self.flow: _Flow | None = None
        self.drawn: list[tuple[tuple[int, str], int]] = []

    def state(self) -> State:
        return State(self.sessions, self.mappings, self.outside, self.closing, self.fragments, self.whole)

    # Quotas

    def within_rate(self, what: tuple[int, str], per_s: int) -> bool:
        start = max(self.whole.get(what, 0), self.now)
        if per_s and start - self.now > SECOND:
            return False
        if per_s:
            self.whole[what] = start + SECOND // per_s
        return True

    def alive(self, slot: int, inbound: bool) -> dict[Key, Session]:
        return {k: s for k, s in self.sessions.items() if k[:2] == (slot, inbound) and s.expires > self.now}

    def admit(self, slot: int, inbound: bool, protocol: int) -> None:
        limits = self.router.limits
        per_s = (limits.new_in_per_s if inbound else 0) or limits.new_per_s
        if not self.within_rate((slot, "entered" if inbound else "opened"), per_s):
            raise _End(V.DROP_TOO_FAST)
        half_open = [s for s in self.alive(slot, inbound).values() if s.state in HALF_OPEN]
        if protocol != TCP or len(half_open) < limits.half_open:
            return
        _end_if((not (inbound and self.forget_oldest((slot, K.KIND_ENTERING), False)), V.DROP_HALF_OPEN_FULL))

    def forget_oldest(self, queue: QueueKey, wants_port: bool) -> int | bool:
        """Forgets the oldest of a queue: whether there was such a session, or the port it freed."""
        entries = list(self.closing.get(queue, ()))
        done: int | bool = False
        while entries and not done:
            key, outside = entries.pop(0)
            session = self.live(key)
            forgettable = HALF_OPEN if queue[1] == K.KIND_ENTERING else OVER
            if session is None or session.state not in forgettable or session.outside != outside:
                continue
            del self.sessions[key]
            freed = self.take_away((key[0], key[5], key[4]), outside) if queue[1] == K.KIND_LAN else 0
            done = freed if wants_port else True
        self.closing[queue] = tuple(entries)
        return done

    def take_away(self, key: MappingKey, port: int) -> int:
        """Gives a mapping's port back unless a session uses it: the port, or 0."""
        mapping = self.mappings.get(key)
        if mapping is None or mapping.outside != port or mapping.open != 0:
            return 0
        del self.mappings[key]
        self.outside.pop((key[1], port), None)
        return port

    # Rates

    def keep_rates(self, length: int, to: int, to_uplink: bool) -> None:
        """A frame that may go: all the rates that it draws on have credit, or it draws on none. What it drew is noted, to
        be given back if a quota refuses it."""
        limits, bits, burst = self.router.limits, 8 * length, self.router.limits.burst_ms * 10**6
        caps = (
            _Cap((self.sender, "bits out"), bits, limits.rate_out, 1 << 23, V.DROP_RATE_OUT),
            _Cap((self.sender, "packets out"), 1, limits.pps_out, 4096, V.DROP_PPS_OUT),
            _Cap((to, "bits in"), bits, limits.rate_in, 1 << 23, V.DROP_RATE_IN),
            _Cap((to, "packets in"), 1, limits.pps_in, 4096, V.DROP_PPS_IN),
        )
        drawn = [cap for cap in caps if cap.per_s and cap.what[0] != LAN]
        for cap in drawn:
            _end_if((not self.has_credit(cap.what, burst, _time_for(cap.most, cap.per_s)), cap.verdict))
        fair = self.fair_share(self.router.uplink_rate, bits) if to_uplink and self.router.uplink_rate else 0
        for cap in drawn:
            self.draw(cap.what, _time_for(cap.amount, cap.per_s))
        if fair:
            self.draw_share(bits + 8 * WIRE_EXTRA, self.router.uplink_rate, fair)

    def has_credit(self, what: tuple[int, str], burst: int, longest_debt: int) -> bool:
        """Whether a rate is not drawn on beyond its burst. A longer debt than there can be is of a rate that was."""
        until = self.whole.get(what, 0)
        if until <= self.now + burst:
            return True
        self.whole[what] = min(until, self.now + burst + longest_debt)
        return False

    def draw(self, what: tuple[int, str], takes: int) -> None:
        self.whole[what] = max(self.whole.get(what, 0), self.now) + takes
        self.drawn.append((what, takes))

    def give_back(self) -> None:
        for what, takes in self.drawn:
            self.whole[what] -= takes

    def fair_share(self, rate: int, bits: int) -> int:
        """The fair rate, if the sender may have the uplink now: its queue is short, or the sender has had less."""
        aim = _queue_aim(rate)
        queue = max(self.whole.get((LAN, "share"), 0) - self.now, 0)
        self.be_active()
        fair = self.whole.get((LAN, "fair"), 0)
        fair = fair if 0 < fair <= rate else rate
        if self.now - self.whole.get((LAN, "adjusted"), 0) >= aim:
            least = rate // (max(self.whole.get((LAN, "active"), 0), self.whole.get((LAN, "active before"), 0)) or 1)
            change = -(fair // 4) if queue > 2 * aim else -(fair // 16) if queue > aim else fair // 16 + 1
            fair = min(max(fair + change, least), rate)
            self.whole[LAN, "adjusted"] = self.now
        self.whole[LAN, "fair"] = fair
        _end_if((queue > aim // 2 and self.has_enough(bits, aim), V.DROP_SHARE))
        return fair

    def be_active(self) -> None:
        """Counts the sender among those that use the uplink in this second, or what is nearly one."""
        second = (self.now >> 30) % 2**32
        if self.whole.get((self.sender, "active at"), 0) == second:
            return
        self.whole[self.sender, "active at"] = second
        was = self.whole.get((LAN, "active at"), 0)
        if was != second:
            self.whole[LAN, "active before"] = self.whole.get((LAN, "active"), 0) if was + 1 == second else 0
            self.whole[LAN, "active at"], self.whole[LAN, "active"] = second, 0
        self.whole[LAN, "active"] = self.whole.get((LAN, "active"), 0) + 1

    def has_enough(self, bits: int, aim: int) -> bool:
        """Whether the sender has had too much: of short packets later than of long ones, of which first one now and
        then is refused, and then each."""
        had = max(self.whole.get((self.sender, "share"), 0) - self.now, 0)
        if bits <= 8 * 256:
            return had > 8 * aim
        if had > 4 * aim or had <= 2 * aim:
            return had > 4 * aim
        is_due = self.now - self.whole.get((self.sender, "warned"), 0) > aim
        if is_due:
            self.whole[self.sender, "warned"] = self.now
        return is_due

    def draw_share(self, bits: int, rate: int, fair: int) -> None:
        self.draw((LAN, "share"), _time_for(bits, rate))
        what, most = (self.sender, "share"), self.now + 8 * _queue_aim(rate)
        self.whole[what] = min(self.whole.get(what, 0), most)
        self.draw(what, _time_for(bits, fair))

    # Fragments

    def fragment_key(self, p: Packet) -> FragmentKey:
        return (self.sender, p.src, p.dst, p.id, p.protocol)

    def note_of(self, p: Packet) -> Note | None:
        note = self.fragments.get(self.fragment_key(p))
        return note if note and note.expires > self.now else None

    def enter_note(self, p: Packet, note: Note) -> None:
        key = self.fragment_key(p)
        others = [k for k, n in self.fragments.items() if k[0] == self.sender and k != key and n.expires > self.now]
        room = LAN_FRAGMENTS if self.sender == LAN else self.router.limits.fragments
        _end_if((len(others) >= room, V.DROP_FRAGMENTS_FULL))
        self.fragments[key] = replace(note, expires=self.now + self.router.timers.fragments * SECOND)

    def sort(self, p: Packet, note: Note | None) -> None:
        if note is None:
            self.enter_note(p, Note(0, "sort"))
        else:
            self.fragments[self.fragment_key(p)] = replace(note, seen=note.seen + 1)
            _end_if((note.seen >= SORTED_PIECES_MAX, V.DROP_FRAGMENTS_FULL))
        raise _End(V.TO_SORTER if self.router.sorter else V.DROP_NO_SORTER)

    def follow(self, p: Packet, note: Note) -> _Flow:
        """A later fragment's way: where its first went."""
        decided = self.router.policy.decide(*note.asked)
        _end_if((p.offset < note.first_end, V.DROP_FRAGMENT), (decided != "allow", V.DROP_POLICY))
        self.identification = note.new_id
        self.hairpin = note.to == LAN and p.dst == self.router.outside
        _end_if((note.to == LAN and self.router.outside is None, V.DROP_NO_UPLINK))
        return _Flow((0, False, 0, 0, 0, 0), None, False, 0, 0, 0, note.to)

    def fragment_from_vif(self, p: Packet) -> _Flow | None:
        if not p.fragment & (MORE | OFFSET):
            return None
        note = self.note_of(p)
        if p.first:
            if note and note.way == "sort" and not self.sorted:
                self.sort(p, note)
            return None
        if note and note.way == "go":
            return self.follow(p, note)
        _end_if((self.sorted, V.DROP_FRAGMENT))
        self.sort(p, note)
        return None

    # Sessions

    def live(self, key: Key) -> Session | None:
        session = self.sessions.get(key)
        return session if session and session.expires > self.now else None

    def orphan(self, p: Packet, verdict: V) -> _End:
        return _End(V.DROP_ICMP_ERROR if p.error else verdict)

    def holder(self, protocol: int, port: int) -> tuple[str, int, int] | None:
        """Who holds an outside port: ("forward" or "mapping", slot, inside port)."""
        if (protocol, port) in self.router.forwards:
            return ("forward", *self.router.forwards[protocol, port])
        key = self.outside.get((protocol, port))
        return ("mapping", key[0], key[2]) if key else None

    def aim_hairpin(self, p: Packet, flow: _Flow) -> None:
        """To the LAN address from inside: the policy is asked about whoever holds the port."""
        held = self.holder(p.protocol, p.dport)
        if held is None:
            raise _End(V.DROP_HAIRPIN)
        self.hairpin, flow.target, flow.service = True, held[1], held[2]

    def route(self, p: Packet) -> int:
        """The slot that has the target address, or LAN."""
        peer = self.router.slot_of(p.dst)
        if peer is not None:
            return peer
        self.check_lan_target(p)
        return LAN

    def check_lan_target(self, p: Packet) -> None:
        """Whether such an address may be spoken to on the LAN."""
        router = self.router
        _end_if(
            (p.protocol not in PROTOCOLS, V.DROP_PROTOCOL),
            (_within(p.dst, router.pool, LINK_LOCAL) or self.sender == 0, V.DROP_NO_DOMAIN),
            (router.outside is None or router.lan is None, V.DROP_NO_UPLINK),
        )
        self.hairpin = p.dst == router.outside
        assert router.lan is not None
        edges = (router.lan.broadcast_address, router.lan.network_address)
        _end_if((IPv4Address(p.dst) in edges, V.DROP_MULTICAST))

    def flow_from_vif(self, p: Packet) -> _Flow:
        slot = self.sender
        key: Key = (slot, False, p.dst, p.dport, p.sport, p.protocol)
        is_reply = p.protocol == ICMP and p.icmp_type in REPLIES
        own = None if is_reply else self.live(key)
        if own and not (own.state in OVER and p.opening):
            flow = _Flow(key, own, False, slot, own.peer, p.dport, own.peer, p.sport, own.outside)
            if own.peer == LAN and p.dst == self.router.outside:
                self.aim_hairpin(p, flow)
            _end_if(
                (own.peer == LAN and self.router.outside is None, V.DROP_NO_UPLINK),
                (own.peer != LAN and own.peer not in self.router.domains, V.DROP_NO_DOMAIN),
            )
            return flow
        entered_key: Key = (slot, True, p.dst, p.dport, p.sport, p.protocol)
        entered = None if _within(p.dst, self.router.pool) else self.live(entered_key)
        if entered:
            self.check_lan_target(p)
            return _Flow(entered_key, entered, True, LAN, slot, p.sport, LAN, p.sport, entered.outside)
        to = self.route(p)
        if to != LAN and (p.protocol != ICMP or is_reply):
            theirs_key: Key = (to, False, p.src, p.sport, p.dport, p.protocol)
            theirs = self.live(theirs_key)
            if theirs and theirs.peer == slot:
                return _Flow(theirs_key, theirs, True, to, slot, p.sport, to)
        if not p.opening:
            raise self.orphan(p, V.DROP_NO_SESSION)
        flow = _Flow(key, None, False, slot, to, p.dport, to, p.sport)
        if self.hairpin:
            self.aim_hairpin(p, flow)
        return flow

    def flow_from_lan(self, p: Packet, held: tuple[str, int, int]) -> _Flow:
        kind, slot, inside = held
        if kind == "forward":
            key: Key = (slot, True, p.src, p.sport, inside, p.protocol)
            session = self.live(key)
            if session and (session.outside != p.dport or (session.state in OVER and p.opening)):
                session = None
            if session is None:
                self.check_stranger(p)
            if session is None and not p.opening:
                raise self.orphan(p, V.DROP_NO_SESSION)
            return _Flow(key, session, False, LAN, slot, inside, slot, inside, p.dport)
        key = (slot, False, p.src, p.sport, inside, p.protocol)
        session = self.live(key)
        if session is None or session.peer != LAN or session.outside != p.dport:
            self.check_stranger(p)
            raise self.orphan(p, V.DROP_UNSOLICITED)
        return _Flow(key, session, True, slot, LAN, p.sport, slot, inside, p.dport)

    def check_stranger(self, p: Packet) -> None:
        """Who is in no conversation may not bear a domain's address."""
        _end_if((self.router.slot_of(p.src) is not None, V.DROP_MARTIAN))

    # The uplink: only what is ours

    def uplink(self, frame: bytes) -> _Flow:
        if len(frame) < 14:
            raise _End(V.NOT_OURS)
        ethertype = word(frame, 12)
        pool = self.router.pool
        if ethertype == ETHER_ARP:
            seen = len(frame) >= 42 and (_within(long(frame, 28), pool) or _within(long(frame, 38), pool))
            raise _End(V.DROP_MARTIAN if seen else V.NOT_OURS)
        if ethertype != ETHER_IP or len(frame) < 34:
            raise _End(V.NOT_OURS)
        return self.uplink_packet(frame)

    def uplink_packet(self, frame: bytes) -> _Flow:
        p = self.packet = parse_ip(frame)
        _end_if(
            (_within(p.src, self.router.pool) or _within(p.dst, self.router.pool), V.DROP_MARTIAN),
            (_is_redirect(frame, p), V.DROP_ICMP_TYPE),
            (self.router.outside is None or p.dst != self.router.outside, V.NOT_OURS),
            (p.protocol not in PROTOCOLS, V.NOT_OURS),
        )
        if not p.fragment & (MORE | OFFSET):
            return self.uplink_port(frame, p)
        _end_if((self.router.slot_of(p.src) is not None, V.DROP_MARTIAN))
        note = self.note_of(p)
        return self.uplink_first(frame, p, note) if p.first else self.uplink_later(frame, p, note)

    def uplink_first(self, frame: bytes, p: Packet, note: Note | None) -> _Flow:
        if note and note.way == "sort" and not self.sorted:
            self.sort(p, note)
        try:
            return self.uplink_port(frame, p)
        except _End as end:
            if end.verdict == V.NOT_OURS:
                self.packet, self.for_host = p, True
                try:
                    self.enter_note(p, Note(0, "host"))
                except _End:
                    raise end from None  # the host's own pass also when there is no room to note it
            raise

    def uplink_later(self, frame: bytes, p: Packet, note: Note | None) -> _Flow:
        if note and note.way == "host":
            self.for_host = True
            raise _End(V.NOT_OURS)
        if note and note.way == "go":
            self.packet = self.guard_ours(frame, p)
            return self.follow(p, note)
        _end_if((self.sorted, V.DROP_FRAGMENT))
        try:
            self.sort(p, note)
        except _End as end:
            if end.verdict in (V.DROP_FRAGMENTS_FULL, V.DROP_NO_SORTER):
                raise _End(V.NOT_OURS) from None
            raise
        raise AssertionError("sort always ends")

    def guard_ours(self, frame: bytes, p: Packet) -> Packet:
        _check_ip_header(frame)
        own = p.src == p.dst and not self.marked
        _end_if((_within(p.src, *MARTIANS, MULTICAST, LINK_LOCAL) or own, V.DROP_MARTIAN))
        return _guard_l4(frame, p)

    def uplink_port(self, frame: bytes, p: Packet) -> _Flow:
        at = L3 + (frame[14] & 15) * 4
        if len(frame) < at + 8:
            raise _End(V.NOT_OURS)
        dport = word(frame, at + 2)
        if p.protocol == ICMP:
            if frame[at] in ICMP_ERRORS and frame[14] & 15 == 5:
                return self.uplink_error(frame, p)
            _end_if((frame[at] not in REPLIES, V.NOT_OURS))
            dport = word(frame, at + 4)
        held = self.holder(p.protocol, dport)
        if held is None:
            ours = dport in self.router.nat_ports and not self.is_hosts(p.protocol, dport)
            raise _End(V.DROP_UNSOLICITED if ours else V.NOT_OURS)
        p = self.packet = self.guard_ours(frame, p)
        try:
            return self.flow_from_lan(p, held)
        except _End as end:
            hosts = end.verdict == V.DROP_UNSOLICITED and self.is_hosts(p.protocol, dport)
            raise _End(V.NOT_OURS) if hosts else end from None

    def is_hosts(self, protocol: int, port: int) -> bool:
        """Whether the host waits for it. It pings too, and its identifiers are its own choice."""
        return protocol == ICMP or (protocol, port) in self.router.host_ports

    def uplink_error(self, frame: bytes, outer: Packet) -> _Flow:
        p = None if outer.fragment & (MORE | OFFSET) else _quoted(frame, outer)
        held = self.holder(p.protocol, p.dport) if p else None
        if p is None or held is None:
            raise _End(V.NOT_OURS)
        p = self.packet = replace(p, error=True)
        _check_ip_header(frame)
        wrong = _within(outer.src, *MARTIANS, MULTICAST, LINK_LOCAL) or self.router.slot_of(outer.src) is not None
        _end_if((wrong, V.DROP_MARTIAN))
        _check_quoted(frame, p)
        return self.flow_from_lan(p, held)

    # From here on, where it came from makes no difference

    def forward(self, frame: bytes, flow: _Flow) -> Step:
        p, router = self.packet, self.router
        assert p is not None
        self.flow = flow
        if not p.later:
            self.ask_policy(flow, p)
        mtu = router.uplink_mtu if flow.to == LAN else router.domains[flow.to].mtu
        if flow.to != LAN and router.domains[flow.to].is_clone:
            self.check_seen(router.domains[flow.to], p)
        _end_if((p.ttl <= 1, V.DROP_TTL))
        if p.length > mtu:
            _end_if((p.fragment & DONT or self.sorted, V.DROP_TOO_BIG), (not router.sorter, V.DROP_NO_SORTER))
            raise _End(V.TO_SORTER)
        self.keep_rates(len(frame), flow.to, flow.to == LAN and not self.hairpin)
        try:
            translated = self.translate(frame, p, flow)
        except _End:
            self.give_back()
            raise
        return self.deliver(translated, flow)

    @staticmethod
    def question(flow: _Flow, p: Packet) -> tuple[int, int, int, int, int]:
        """What the policy is asked about a flow: both nodes, protocol, port, and who is behind the uplink."""
        return flow.opener, flow.target, p.protocol, flow.service, flow.key[2]

    def ask_policy(self, flow: _Flow, p: Packet) -> None:
        decided = self.router.policy.decide(*self.question(flow, p))
        if decided == "allow":
            return
        if flow.session:
            self.sessions[flow.key] = replace(flow.session, expires=0)
        raise _End(V.DROP_REJECTED if decided == "reject" else V.DROP_POLICY)

    def translate(self, frame: bytes, p: Packet, flow: _Flow) -> bytes:
        renamed = flow.to == LAN and (p.fragment & (MORE | OFFSET) or not p.fragment & DONT)
        new_id = self.identification if renamed else p.id
        self.keep_state(p, flow, new_id)
        if flow.to == LAN:
            assert self.router.outside is not None
            if p.error:
                frame = requote(frame, p, True, self.router.outside, flow.outside)
            return with_id(rewrite(frame, p, True, self.router.outside, flow.outside), new_id)
        if self.sender != LAN:
            return frame
        address = self.router.domains[flow.to].address
        if p.error:
            frame = requote(frame, p, False, address, flow.inside)
        return rewrite(frame, p, False, address, flow.inside)

    def deliver(self, frame: bytes, flow: _Flow) -> Step:
        if flow.to == LAN and self.hairpin:
            again = _Run(self.router, self.state(), self.now, self.identification, self.choose)
            again.marked = True
            return again.run(LAN, frame)
        frame = with_ttl(frame, frame[22] - 1)
        if flow.to == LAN:
            return Step(self.state(), V.TO_LAN, frame, LAN)
        to = self.router.domains[flow.to]
        frame = to.seen_mac + GATEWAY_MAC + self.left(to, frame)[12:]
        return Step(self.state(), V.TO_DOMAIN if flow.to else V.TO_DOM0, frame, flow.to)

    # State

    def keep_state(self, p: Packet, flow: _Flow, new_id: int) -> None:
        if p.later or p.error:
            return
        if flow.session:
            self.refresh(p, flow, flow.session)
        else:
            self.begin(p, flow)
        if p.first:
            self.enter_note(p, Note(0, "go", flow.to, p.length - 20, new_id, asked=self.question(flow, p)))

    def event(self, p: Packet, flow: _Flow, session: Session) -> E:
        side = E.TCP_PEER_SYN if flow.reply else E.TCP_OPENER_SYN
        if p.flags & RST:
            believed = self.sender != LAN or (p.seq == session.sequence and session.state not in HALF_OPEN)
            return E.TCP_ABORT if believed else E(side + 2)
        if session.state == S.TCP_ANSWERED and not flow.reply:
            right = p.flags & ACK and (p.ack - session.sequence - 1) % 2**32 < 1 << 20
            return E.TCP_OPENER_OTHER if right else E.TCP_OPENER_SYN
        return E(side + (0 if p.flags & SYN else 1 if p.flags & FIN else 3))

    def refresh(self, p: Packet, flow: _Flow, session: Session) -> None:
        """A living session goes on: its state, and how long it may now be silent."""
        state, sequence = session.state, session.sequence
        if p.protocol == TCP:
            event = self.event(p, flow, session)
            if event == E.TCP_PEER_SYN and state in HALF_OPEN:
                sequence = p.seq
            state = step_tcp(state, event)
            if state not in HALF_OPEN and self.kind(flow) != K.KIND_NEAR:
                sequence = self.follow_sequence(p, sequence, session.state in HALF_OPEN)
            self.count_change(flow, session.state, state)
        expires = self.now + idle_time(self.router.timers, p.protocol, flow.service, state)
        ends_again = state == session.state and state in CLOSING and p.flags & RST  # RFC 7857 7.1
        if state == session.state and (ends_again or expires < session.expires + SECOND):
            self.sessions[flow.key] = replace(session, sequence=sequence)
            return
        self.sessions[flow.key] = replace(session, expires=expires, state=state, sequence=sequence)
        key, mapping = self.mapping_of(flow)
        if mapping and (mapping.expires < expires or (state in OVER and not mapping.open)):
            self.mappings[key] = replace(mapping, expires=expires)

    def follow_sequence(self, p: Packet, sequence: int, just_opened: bool) -> int:
        """Where the LAN's side will go on: where the domain acknowledges it, and what follows exactly on that."""
        if self.sender != LAN:
            is_ahead = p.flags & ACK and 0 < (p.ack - sequence) % 2**32 < 2**31
            return p.ack if is_ahead else sequence
        if p.seq != sequence and not just_opened:
            return sequence
        return (p.seq + p.load + (1 if p.flags & FIN else 0)) % 2**32

    def mapping_of(self, flow: _Flow) -> tuple[MappingKey, PortMapping | None]:
        key: MappingKey = (flow.key[0], flow.key[5], flow.key[4])
        mapping = self.mappings.get(key) if self.kind(flow) == K.KIND_LAN else None
        return key, mapping if mapping and mapping.outside == flow.outside else None

    @staticmethod
    def kind(flow: _Flow) -> K:
        if flow.key[1]:
            return K.KIND_INBOUND
        return K.KIND_LAN if flow.outside else K.KIND_NEAR

    def count_change(self, flow: _Flow, old: S, new: S) -> None:
        if (old in OVER) == (new in OVER):
            return
        key, mapping = self.mapping_of(flow)
        if mapping:
            self.mappings[key] = replace(mapping, open=mapping.open + (-1 if new in OVER else 1))
        if new in OVER:
            queue = (flow.key[0], self.kind(flow))
            self.enqueue(queue, flow)

    def enqueue(self, queue: QueueKey, flow: _Flow) -> None:
        """The youngest that may be forgotten; a full queue loses its oldest."""
        room = forgettable(self.router.limits, len(self.router.domains[queue[0]].ports))[queue[1]]
        self.closing[queue] = (*self.closing.get(queue, ()), (flow.key, flow.outside))[-room or None :]

    def begin(self, p: Packet, flow: _Flow) -> None:
        """A conversation begins: within its quotas, with a port if it goes to the LAN, all or nothing."""
        slot, inbound = flow.key[:2]
        number, per_s = self.router.policy.limit(*self.question(flow, p))
        _end_if((not self.within_rate((number, "rule"), per_s), V.DROP_TOO_FAST))
        if not inbound and flow.to != LAN:
            entering = self.within_rate((flow.to, "entered"), self.router.limits.new_in_per_s)
            _end_if((not entering, V.DROP_TOO_FAST))
        self.admit(slot, inbound, p.protocol)
        state = S.TCP_OPENING if p.protocol == TCP else S.TCP_NONE
        expires = self.now + idle_time(self.router.timers, p.protocol, flow.service, S.TCP_OPENING)
        known = {k for k, m in self.mappings.items() if m.expires > self.now}
        if flow.to == LAN:
            flow.outside = self.map_port(flow, expires)
        alive = [k for k in self.alive(slot, inbound) if k != flow.key]
        room = self.router.limits.inbound if inbound else self.router.limits.sessions
        if len(alive) >= room and not self.forget_oldest((slot, self.kind(flow)), False):
            self.unmap_port(flow, known)
            raise _End(V.DROP_SESSIONS_FULL)
        peer = LAN if inbound else flow.to
        self.sessions[flow.key] = Session(expires, peer, flow.outside, state)
        if inbound and p.protocol == TCP:
            self.enqueue((slot, K.KIND_ENTERING), flow)

    def free_ports(self, slot: int, protocol: int) -> list[int]:
        """The outside ports that a new mapping of the domain's may take."""
        held = {
            m.outside for (s, p, _), m in self.mappings.items() if (s, p) == (slot, protocol) and m.expires > self.now
        }
        return [p for p in self.router.domains[slot].ports if p not in held and self.may_take(protocol, p)]

    def may_take(self, protocol: int, port: int) -> bool:
        return (protocol, port) not in self.router.host_ports

    def map_port(self, flow: _Flow, expires: int) -> int:
        """The outside port for the flow's inside port."""
        slot, protocol, inside = key = (flow.key[0], flow.key[5], flow.key[4])
        known, one = self.mappings.get(key), int(protocol == TCP)
        if known and known.expires > self.now:
            self.mappings[key] = PortMapping(max(known.expires, expires), known.outside, known.open + one)
            return known.outside
        free = self.free_ports(slot, protocol)
        if not free and protocol == TCP and (freed := self.forget_oldest((slot, K.KIND_LAN), True)):
            free = [port for port in (int(freed),) if self.may_take(protocol, port)]
        _end_if((not free, V.DROP_PORTS_FULL))
        port = inside if inside in free else self.choose(free)
        was = self.outside.get((protocol, port))
        if was and self.mappings.get(was, PortMapping(0, 0, 0)).outside == port:
            self.mappings.pop(was, None)
        self.mappings[key] = PortMapping(expires, port, one)
        self.outside[protocol, port] = key
        return port

    def unmap_port(self, flow: _Flow, known: set[MappingKey]) -> None:
        """Takes back what map_port did."""
        key, mapping = self.mapping_of(flow)
        if mapping and key[1] == TCP:
            self.mappings[key] = replace(mapping, open=mapping.open - 1)
        if mapping and key not in known:
            self.take_away(key, flow.outside)

    # The whole way

    def run(self, sender: int, frame: bytes) -> Step:
        self.sender, router = sender, self.router
        try:
            if sender == SORTER:
                return self.run_sorted(frame)
            if sender == LAN:
                return self.forward(frame, self.uplink(frame))
            if sender not in self.router.domains:
                raise _End(V.DROP_NOT_READY)
            own, gateway = router.domains[sender], router.gateway_seen(router.domains[sender])
            self.packet = _guard(own, gateway, frame)
            if self.packet and own.dhcp and dhcp.is_dhcp(frame, self.packet, gateway, own.dhcp):
                return self.dhcp(
                    dhcp.Told(own.seen_address, own.seen_mac, gateway, self.mtu_told(own), own.dhcp), frame
                )
            if self.packet is None and word(frame, 12) != ETHER_ARP:
                return self.ether(frame)
            if self.packet is None:
                return Step(self.state(), V.ANSWERED, _answer(self.router, sender, frame), sender)
            frame = self.entered(self.router.domains[sender], frame)
            return self.from_domain(frame)
        except _End as end:
            return self.ended(end.verdict, frame)

    def mtu_told(self, own: Domain) -> int:
        """What a guest can send: never more than its own interface takes."""
        return min(self.router.uplink_mtu or own.mtu, own.mtu)

    def dhcp(self, told: dhcp.Told, frame: bytes) -> Step:
        """A guest asks who it is."""
        p = self.packet
        assert p is not None
        _end_if((not self.within_rate((self.sender, "dhcp"), Limit.DHCP_PER_S), V.DROP_DHCP_TOO_FAST))
        verdict, frame_back = dhcp.answer(frame, p, told)
        return Step(self.state(), verdict, frame_back, self.sender if frame_back else None)

    def ether(self, frame: bytes) -> Step:
        """Raw Ethernet: to the domain whose MAC it is for, as it stands."""
        router, to, kind = self.router, self.router.slot_of_mac(frame[:6]), word(frame, 12)
        if to is None or to == self.sender or router.policy.decide(self.sender, to, 0, kind, 0, True) != "allow":
            raise _End(V.DROP_ETHERTYPE)
        _end_if((len(frame) > router.domains[to].mtu + L3, V.DROP_TOO_BIG))
        self.keep_rates(len(frame), to, False)
        frame = router.domains[to].seen_mac + router.domains[self.sender].mac + frame[12:]
        return Step(self.state(), V.TO_DOMAIN if to else V.TO_DOM0, frame, to)

    # What a clone's guest believes, and what the router knows

    def entered(self, own: Domain, frame: bytes) -> bytes:
        """A clone's frame as an ordinary domain would have sent it."""
        p, known, seen = self.packet, self.router.gateway, self.router.gateway_seen(own)
        assert p is not None
        if not own.is_clone:
            return frame
        _end_if(
            (p.protocol not in PROTOCOLS, V.DROP_PROTOCOL),
            (p.dst == own.address, V.DROP_MARTIAN),
            (p.dst == known != seen, V.DROP_NO_DOMAIN),
        )
        if p.error:
            quoted = _quoted(frame, replace(p, dst=long(frame, QUOTED + 12)))
            if quoted is None or quoted.src != own.seen_address:
                raise _End(V.DROP_ICMP_ERROR)
            frame = requote(frame, quoted, True, own.address)
            if long(frame, QUOTED + 12) == seen != known:
                frame = requote(frame, quoted, False, known)
        frame = readdress(frame, p, True, own.address)
        self.packet = replace(p, src=own.address)
        if p.dst == seen != known:
            frame = readdress(frame, p, False, known)
            self.packet = replace(self.packet, dst=known)
        return frame

    def check_seen(self, to: Domain, p: Packet) -> None:
        """Whether the guest can be shown it: not what comes from whom it takes for itself, or for its gateway."""
        seen = self.router.gateway_seen(to)
        _end_if(
            (p.protocol not in PROTOCOLS, V.DROP_PROTOCOL),
            (p.src == to.seen_address or p.src == seen != self.router.gateway, V.DROP_MARTIAN),
        )

    def left(self, to: Domain, frame: bytes) -> bytes:
        """What an ordinary domain would get, as the receiver's guest is to see it."""
        p, known, seen = self.packet, self.router.gateway, self.router.gateway_seen(to)
        assert p is not None
        if not to.is_clone:
            return frame
        frame = readdress(frame, p, False, to.seen_address)
        if long(frame, 26) == known != seen:
            frame = readdress(frame, p, True, seen)
        if p.error:
            frame = requote(frame, p, False, to.seen_address)
        if p.error and long(frame, QUOTED + 16) == known != seen:
            frame = requote(frame, p, True, seen)
        return frame

    def restored(self, own: Domain, frame: bytes) -> bytes:
        """What a clone sent, as it sent it."""
        p, seen = self.packet, self.router.gateway_seen(own)
        assert p is not None
        if not own.is_clone:
            return frame
        frame = readdress(frame, p, True, own.seen_address)
        return readdress(frame, p, False, seen) if p.dst == self.router.gateway != seen else frame

    def run_sorted(self, frame: bytes) -> Step:
        self.sorted = True
        _end_if((len(frame) < 14, V.DROP_TRUNCATED), (word(frame, 12) != ETHER_IP, V.DROP_ETHERTYPE))
        _check_ip_header(frame)
        p = self.packet = parse_ip(frame)
        slot = self.router.slot_of(p.src)
        self.sender = LAN if slot is None else slot
        if slot is None:
            try:
                return self.forward(frame, self.uplink_packet(frame))
            except _End as end:
                # Only a fragment that turns out to be the host's goes back to it.
                stray = end.verdict == V.NOT_OURS and not self.for_host
                raise _End(V.DROP_FRAGMENT) if stray else end from None
        _guard_target(p)
        self.packet = _guard_l4(frame, p)
        return self.from_domain(frame)

    def from_domain(self, frame: bytes) -> Step:
        p = self.packet
        assert p is not None
        flow = self.fragment_from_vif(p)
        if p.error:
            quoted = _quoted(frame, p)
            if quoted is None or quoted.src != p.src:
                raise _End(V.DROP_ICMP_ERROR)
            p = self.packet = quoted
            _check_quoted(frame, p)
        return self.forward(frame, flow or self.flow_from_vif(p))

    def ended(self, verdict: V, frame: bytes) -> Step:
        if verdict == V.NOT_OURS:
            if self.marked:
                return Step(self.state(), V.DROP_HAIRPIN)
            return Step(self.state(), verdict, frame)
        if verdict == V.TO_SORTER:
            ttl = min(frame[22] + 1, 255)
            return Step(self.state(), verdict, GATEWAY_MAC + with_ttl(frame, ttl)[6:])
        return Step(self.state(), verdict, self.owed(verdict, frame))

    def owed(self, verdict: V, frame: bytes) -> bytes | None:
        """The ICMP error that the sender gets, None if it gets none."""
        kind, code, lan_too = OWED.get(verdict, (0, 0, False))
        p, router = self.packet, self.router
        from_lan = self.sender == LAN
        if not kind or p is None or p.error or p.later or (from_lan and (self.marked or not lan_too)):
            return None
        if not self.within_rate((self.sender, "errors"), LAN_ERRORS_PER_S if from_lan else router.limits.errors_per_s):
            return None
        mtu = 0
        if verdict == V.DROP_TOO_BIG:
            assert self.flow is not None
            mtu = router.uplink_mtu if self.flow.to == LAN else router.domains[self.flow.to].mtu
        if from_lan:
            return icmp_error(frame, kind, code, mtu, router.outside or 0, p.src)
        own = router.domains[self.sender]
        frame = self.restored(own, frame)
        answer = icmp_error(frame, kind, code, mtu, router.gateway_seen(own), own.seen_address)
        return own.seen_mac + GATEWAY_MAC + answer[12:]


def _first(ports: list[int]) -> int:
    return ports[0]


def step(
    router: Router,
    state: State,
    now: int,
    sender: int,
    frame: bytes,
    choose: Callable[[list[int]], int] = _first,
    identification: int = 0,
) -> Step:
    """One frame's fate. `sender` is the slot whose VIF it came in by, LAN for the uplink, or SORTER; `now` in ns.

    `choose` picks an outside port from the free ones where any is as good as another; `identification` is
    what a packet without DF goes to the LAN with.
    """
    return _Run(router, state, now, identification, choose).run(sender, frame)
