"""`vfr explain`: what would become of a packet, and which rule says so.

    question --> scene (what is there) --> start (the packet, and where it comes in)
                                             |  a twin of the fastpath judges it: vfr/kernel/twin.py
                                           hops --> explanation

The fastpath itself decides, so that the answer cannot differ from what it does; what is here only builds the packet
that an ordinary sender would begin with, and says in words what the fastpath noted down. Some questions it is never
asked: what the host says to its own LAN, or a guest to itself, comes by no hook.

NOTE: the packet is short and whole, so it never goes through the sorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from itertools import chain
from typing import TYPE_CHECKING

from vfr._abi import Limit, Verdict
from vfr.errors import UsageError, VfrError
from vfr.frame import Packet, arp_request, error_name, read
from vfr.plan import GATEWAY_MAC
from vfr.policy.rules import DOM0, ICMP, LAN, WITH_PORTS, Rule, RuleSet, Traffic, What
from vfr.question import DHCP_PORT, Question, question, what_text
from vfr.scene import LOCALHOST, NODE_LAN, End, Scene, Seat, find_end, read_scene
from vfr.verdicts import MEANINGS

if TYPE_CHECKING:
    from vfr.kernel.fastpath import Forward, Hook
    from vfr.kernel.host import Host
    from vfr.kernel.twin import Conversation, Run, Twin
    from vfr.policy import CompiledPolicy
    from vfr.registry import Contents

SAMPLE_MAC = "02:00:00:00:00:01"  # of whoever sent it to the uplink
EVERYBODY_MAC = "ff:ff:ff:ff:ff:ff"
FIRST_PORT, DHCP_CLIENT = 49152, 68
PASSES = frozenset({Verdict.TO_DOMAIN, Verdict.TO_DOM0, Verdict.TO_LAN, Verdict.NOT_OURS})
ANSWERS = frozenset({Verdict.ANSWERED, Verdict.DHCP_NAK})
EVERYBODY, NOBODY = IPv4Address("255.255.255.255"), IPv4Address("0.0.0.0")
# Where a verdict falls; all others are the guard's. The order is that of the stages.
_STAGES = ("guard", "answer", "session", "policy", "fits", "rate", "limit", "deliver")
_STAGE_OF = {
    **dict.fromkeys(PASSES | {Verdict.HAIRPIN, Verdict.DROP_KERNEL}, "deliver"),
    **dict.fromkeys(ANSWERS | {v for v in Verdict if v.name.startswith("DROP_DHCP_")}, "answer"),
    Verdict.DROP_PROTOCOL: "session",
    Verdict.DROP_NO_SESSION: "session",
    Verdict.DROP_UNSOLICITED: "session",
    Verdict.DROP_NO_DOMAIN: "session",
    Verdict.DROP_NO_UPLINK: "session",
    Verdict.DROP_HAIRPIN: "session",
    Verdict.DROP_POLICY: "policy",
    Verdict.DROP_REJECTED: "policy",
    Verdict.DROP_TTL: "fits",
    Verdict.DROP_TOO_BIG: "fits",
    Verdict.DROP_RATE_OUT: "rate",
    Verdict.DROP_RATE_IN: "rate",
    Verdict.DROP_PPS_OUT: "rate",
    Verdict.DROP_PPS_IN: "rate",
    Verdict.DROP_SHARE: "rate",
    Verdict.DROP_SESSIONS_FULL: "limit",
    Verdict.DROP_HALF_OPEN_FULL: "limit",
    Verdict.DROP_TOO_FAST: "limit",
    Verdict.DROP_PORTS_FULL: "limit",
}
Stage = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. `verdict` is the name of the packet's end, None if the fastpath is never asked, and `meaning` says it
    in words. `rule` is the one that decided, as it is written, and `where` its file and line. `missing` are the lines
    that would let it pass, where there is no rule yet. `stages` and `back` are (stage, what happened there)."""

    question: str
    passes: bool
    verdict: str | None
    meaning: str
    stages: tuple[Stage, ...] = ()
    rule: str | None = None
    where: str | None = None
    missing: tuple[str, ...] = ()
    back: tuple[Stage, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """A packet, and the hook and interface that it comes in by. `said` is what is to be told before. `by_arp` if its
    sender first asks for the target's MAC: to the host all domains are on the link, while guests ask for the gateway."""

    hook: Hook
    index: int
    packet: Packet
    said: tuple[Stage, ...] = ()
    by_arp: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """What one of the fastpath's programs made of a packet. `hairpin` if another program gave it this one."""

    hook: Hook
    index: int
    packet: Packet
    run: Run
    hairpin: bool = False

    @property
    def ends_at(self) -> str:
        """The stage of its verdict."""
        if self.run.verdict is Verdict.DROP_ETHERTYPE and self.run.was_asked:
            return "policy"
        return _STAGE_OF.get(self.run.verdict, "guard")

    @property
    def out(self) -> Packet | None:
        """What left the program."""
        return read(self.run.frame) if self.run.frame is not None else None


# The packet


def begin(scene: Scene, q: Question, opener: End, target: End) -> Start | Explanation:
    """The packet that the opener would begin with, or the answer, where none comes to the fastpath."""
    if target.host_only and not (opener.seat and opener.seat.name == DOM0):
        return Explanation(str(q), False, None, f"{target.word} is there for the host alone")
    own = _own_affair(scene, opener, target)
    if own:
        return Explanation(str(q), True, None, own)
    port = target.port if target.port is not None else q.port
    if port is None:
        word = what_text(q.protocol, None)
        raise UsageError(f"{word} needs the target's port; write {word}/22")
    if opener.seat:
        return _from_domain(scene, q, opener.seat, target, port)
    return _from_lan(scene, q, opener, target, port)


def _is_here(scene: Scene, end: End) -> bool:
    """Whether it is where the host's own packets may meet a forward."""
    return end.address == LOCALHOST or (scene.uplink is not None and end.address == scene.uplink.address)


def _is_beyond(scene: Scene, end: End) -> bool:
    """Whether the host's stack leads there by another way than domain 0's VIF."""
    return end.seat is None and end.address not in scene.pool


def _own_forward(scene: Scene, protocol: int, target: End, port: int) -> Forward | None:
    """Where the host's own packets to an outside port of its own are led."""
    known = (*scene.forwards, *scene.host_only) if target.address == LOCALHOST else scene.forwards
    return next((f for f in known if (WITH_PORTS[f.protocol], f.outside_port) == (protocol, port)), None)


def _own_affair(scene: Scene, opener: End, target: End) -> str:
    """What never comes by a hook, "" if it does."""
    if opener.seat and opener.seat == target.seat:
        return f"{opener.seat.name} speaks to itself, and no packet leaves it"
    if opener.seat and opener.seat.name == DOM0 and _is_beyond(scene, target) and not _is_here(scene, target):
        return "the host's own affair: it goes out by the host's own stack, and comes by no program of VFR's"
    if opener.seat is None and target.seat is None and target.address not in scene.own:
        return "both are behind the uplink, and what they say does not come by this host"
    return ""


def _from_domain(scene: Scene, q: Question, seat: Seat, target: End, port: int) -> Start | Explanation:
    said: tuple[Stage, ...] = ()
    if seat.name == DOM0 and _is_beyond(scene, target):
        f = _own_forward(scene, q.protocol, target, port)
        to = scene.seat_in(f.slot) if f else None
        if f is None or to is None:
            return Explanation(str(q), True, None, f"the host's own affair: {target.address} is its own address")
        said = (("host", f"nftables leads its own packets to {target.address}:{port} to {to.name}'s {f.inside_port}"),)
        target, port = End(to.name, to.address, to), f.inside_port
    if seat.trouble:
        return Explanation(str(q), False, None, f"nothing of {seat.name}'s comes in: {seat.trouble}", said)
    if _asks_who_it_is(seat, q, target):
        packet = Packet(seat.mac_seen, EVERYBODY_MAC, NOBODY, EVERYBODY, q.protocol, DHCP_CLIENT, DHCP_PORT, dhcp=True)
        return Start("vif", seat.index, packet, said)
    mac = target.seat.mac if q.ether and target.seat else GATEWAY_MAC
    there = seat.gateway_seen if target.seat and target.seat.name == DOM0 and seat.gateway_seen else target.address
    packet = Packet(seat.mac_seen, mac, seat.address_seen, there, q.protocol, 0, port, q.ether)
    return Start("vif", seat.index, packet, said, by_arp=seat.name == DOM0 and not q.ether)


def _asks_who_it_is(seat: Seat, q: Question, target: End) -> bool:
    """Whether that is DHCP, which the router answers itself."""
    to_router = target.address == EVERYBODY or (target.seat is not None and target.seat.name == DOM0)
    return seat.dhcp is not None and to_router and (q.protocol, q.port) == (WITH_PORTS["udp"], DHCP_PORT)


def _from_lan(scene: Scene, q: Question, opener: End, target: End, port: int) -> Start | Explanation:
    uplink = scene.uplink
    if uplink is None:
        return Explanation(str(q), False, None, f"nothing comes in from the LAN: {scene.no_uplink}")
    if uplink.trouble:
        return Explanation(str(q), False, None, f"nothing comes in from the LAN: {uplink.trouble}")
    address = target.address
    if target.seat and target.seat.name == DOM0:
        address = uplink.address
    elif target.seat:
        f = _forward_to(scene, target.seat, q.protocol, port)
        if f is None:
            return _no_forward(scene, q, opener, target.seat, port)
        address, port = uplink.address, f.outside_port
    packet = Packet(SAMPLE_MAC, uplink.mac, opener.address, address, q.protocol, 0, port, q.ether)
    return Start("uplink", uplink.index, packet)


def _forward_to(scene: Scene, seat: Seat, protocol: int, port: int) -> Forward | None:
    """The forward that leads to a domain's port."""
    wanted = (protocol, seat.slot, port)
    return next((f for f in scene.forwards if (WITH_PORTS[f.protocol], f.slot, f.inside_port) == wanted), None)


def _no_forward(scene: Scene, q: Question, opener: End, seat: Seat, port: int) -> Explanation:
    """No packet can say that it is for this domain. Still, what would the rules say of it?"""
    what = what_text(q.protocol, port, q.ether)
    if q.ether or q.protocol not in WITH_PORTS.values():
        return Explanation(
            str(q), False, None, f"no packet from the LAN is for {seat.name}: only tcp and udp ports lead in"
        )
    traffic = Traffic(q.protocol, port)
    number = scene.policy.deciding(NODE_LAN, seat.slot, traffic, opener.address) or 0
    rule, where = scene.rule_text(number) if number else (None, None)
    asked = f"would be asked: {where}: {rule}" if number else f"no rule speaks of {opener.word} -> {seat.name} {what}"
    name = what.split()[0]
    missing = [f"forward {name} {_free_outside(scene, name, port)} -> {seat.name} {port}"]
    missing += [] if number else [_missing_rule(opener.word, seat.name, traffic)]
    return Explanation(
        question=str(q),
        passes=False,
        verdict=None,
        meaning=f"no forward leads to {seat.name}'s {what}, and the LAN knows no other way to a domain",
        stages=(("uplink", f"no outside port stands for {seat.name}'s {what}"), ("policy", asked)),
        rule=rule,
        where=where,
        missing=tuple(missing) if not number or scene.policy.rules[number].action == "allow" else (),
    )


def _free_outside(scene: Scene, protocol: str, port: int) -> int:
    """An outside port that a forward could have: the same if it may be, else one that looks like it."""
    taken = {f.outside_port for f in scene.forwards if f.protocol == protocol}
    low, high = scene.nat_ports
    first = port if port >= 1024 else 8000 + port
    ports = chain(range(first, 65536), range(1024, first))
    return next(p for p in ports if p not in taken and not low <= p <= high)


def _missing_rule(opener: str, target: str, traffic: Traffic) -> str:
    has_ports = traffic.ether or traffic.protocol == ICMP or traffic.protocol in WITH_PORTS.values()
    ports = ((traffic.port, traffic.port),) if has_ports else ()
    return str(Rule("allow", (opener,), (target,), What(traffic.protocol, ports, traffic.ether)))


# The way


def explain(host: Host, contents: Contents, policy: CompiledPolicy, rules: RuleSet, q: Question) -> Explanation:
    """What would become of the packet that begins such a conversation now. Nothing comes of it: no state, no count.

    VfrError if there is no router, or nobody of such a name; UsageError if the question cannot be asked.
    """
    scene = read_scene(host, contents, policy, rules)
    opener, target = find_end(scene, q.opener, q), find_end(scene, q.target, q)
    if opener.seat is None and opener.address in scene.own:
        opener = find_end(scene, DOM0, q)
    answer = _explained(host, scene, policy, q, opener, target)
    return replace(answer, stages=(*answer.stages, *_cards(opener, target)))


def _cards(opener: End, target: End) -> Iterator[Stage]:
    """What was seen of a guest whose card has not the MAC that its frames are asked about with."""
    for seat in dict.fromkeys(end.seat for end in (opener, target) if end.seat and end.seat.strangers):
        dropped = f"frames of {seat.name}'s dropped so far for another MAC (DROP_SRC_MAC): {seat.strangers}"
        yield "card", f"{dropped}; its card's must be {seat.mac_seen}"


def _explained(host: Host, scene: Scene, policy: CompiledPolicy, q: Question, opener: End, target: End) -> Explanation:
    """What the fastpath would make of it."""
    from vfr.kernel.twin import twin

    start = begin(scene, q, opener, target)
    if isinstance(start, Explanation):
        return start
    with twin(host.fastpath, _hooks(scene, start), _slots(scene, start, opener, target)) as one:
        start = _by_arp(scene, q, one, _with_port(start, one))
        if isinstance(start, Explanation):
            return start
        hops = _walk(scene, one, start.hook, start.index, start.packet)
        answer = _answer(scene, hops[-1])
        back = _walk(scene, one, *answer) if answer else ()
        alike = _alike(scene, one.conversations, start, opener)
    if host.fastpath.policy_digest() != policy.digest:
        raise VfrError("the rules changed while they were asked; ask again")
    return _told(scene, q, start, hops, back, opener, alike)


def _by_arp(scene: Scene, q: Question, one: Twin, start: Start) -> Start | Explanation:
    """Has the packet's sender ask for the target's MAC, if it is one who does. Unanswered, no packet follows."""
    p = start.packet
    if not start.by_arp:
        return start
    run = one.run("vif", start.index, arp_request(p.src_mac, p.src, p.dst))
    asks = f"who has {p.dst}? asked by {scene.name_of(run.row)} by {scene.devices[start.index]}"
    if run.verdict is Verdict.ANSWERED:
        return replace(start, said=(*start.said, ("arp", f"{asks}; the router answers")))
    seat, traffic = next((s for s in scene.seats.values() if s.address == p.dst), None), Traffic(p.protocol, p.dport)
    number = scene.policy.deciding(run.row, seat.slot, traffic) if seat else None
    rule, where = scene.rule_text(number) if number else (None, None)
    return Explanation(
        question=str(q),
        passes=False,
        verdict=run.verdict.name,
        meaning=MEANINGS[run.verdict],
        stages=(*start.said, ("arp", f"{asks}; nobody answers, so no packet follows")),
        rule=rule,
        where=where,
        missing=(_missing_rule(scene.name_of(run.row), seat.name, traffic),) if seat and not number else (),
    )


def _hooks(scene: Scene, start: Start) -> tuple[Hook, ...]:
    """The programs that there may be need of: having the kernel verify them takes most of the time."""
    is_near = start.hook == "vif" and any(seat.address == start.packet.dst for seat in scene.seats.values())
    return ("vif",) if is_near or start.packet.dhcp else ("vif", "uplink")


def _slots(scene: Scene, start: Start, opener: End, target: End) -> frozenset[int]:
    """Whose conversations matter."""
    seats = [end.seat for end in (opener, target) if end.seat]
    led = [f.slot for f in scene.forwards if f.outside_port == start.packet.dport]
    return frozenset({*(seat.slot for seat in seats), *led} & {seat.slot for seat in scene.seats.values()})


def _with_port(start: Start, one: Twin) -> Start:
    """The same from a port of its sender's that is in no use, as the next conversation's will be."""
    if start.packet.ether or start.packet.dhcp or start.packet.protocol not in (ICMP, *WITH_PORTS.values()):
        return start
    used = {port for c in one.conversations for port in (c.inside_port, c.remote_port)} | one.inside_ports
    port = next((p for p in chain(range(FIRST_PORT, 65536), range(1024, FIRST_PORT)) if p not in used), FIRST_PORT)
    return replace(start, packet=replace(start.packet, sport=port))


def _walk(scene: Scene, one: Twin, hook: Hook, index: int, packet: Packet) -> tuple[Hop, ...]:
    """By one program, and where that gives it to the uplink's, by that too."""
    hop = Hop(hook, index, packet, one.run(hook, index, packet.frame()))
    if hop.run.verdict is not Verdict.HAIRPIN or hop.run.frame is None or scene.uplink is None:
        return (hop,)
    run = one.run("uplink", scene.uplink.index, hop.run.frame, int(Limit.MARK_HAIRPIN))
    return hop, Hop("uplink", scene.uplink.index, read(hop.run.frame), run, hairpin=True)


def _answer(scene: Scene, hop: Hop) -> tuple[Hook, int, Packet] | None:
    """What comes back to a packet that arrived; None if nothing can."""
    out, run = hop.out, hop.run
    if out is None or run.verdict not in PASSES or run.verdict is Verdict.NOT_OURS:
        return None
    if run.verdict is Verdict.TO_LAN:
        assert scene.uplink is not None
        answer = replace(out.answered(), src_mac=SAMPLE_MAC, dst_mac=scene.uplink.mac)
        return "uplink", scene.uplink.index, answer
    seat = _receiver(scene, hop)
    return ("vif", seat.index, out.answered()) if seat and not seat.trouble and not seat.unreachable else None


def _receiver(scene: Scene, hop: Hop) -> Seat | None:
    """The domain that it was handed over to."""
    delivered = hop.run.verdict in (Verdict.TO_DOMAIN, Verdict.TO_DOM0)
    return scene.seat_in(hop.run.target) if delivered else None


def _alike(scene: Scene, conversations: Sequence[Conversation], start: Start, opener: End) -> int:
    """How many conversations of the same two about the same are under way."""
    p = start.packet
    if p.ether:
        return 0
    if start.hook == "vif":
        own = [c for c in conversations if opener.seat and c.slot == opener.seat.slot and not c.inbound]
        return sum((c.protocol, c.remote, c.remote_port) == (p.protocol, p.dst, p.dport) for c in own)
    same = [c for c in conversations if (c.inbound, c.protocol, c.outside_port) == (True, p.protocol, p.dport)]
    return sum(opener.word == LAN or c.remote == opener.address for c in same)


# The answer in words


def _told(
    scene: Scene,
    q: Question,
    start: Start,
    hops: Sequence[Hop],
    back: Sequence[Hop],
    opener: End,
    alike: int,
) -> Explanation:
    last = hops[-1]
    stages = [*start.said, *(stage for hop in hops for stage in _stages(scene, hop, opener, alike))]
    lost = _lost(scene, last)
    asked = next((hop for hop in reversed(hops) if hop.run.was_asked), None)
    number = asked.run.rule if asked else 0
    rule, where = scene.rule_text(number) if number else (None, None)
    meaning = MEANINGS[last.run.verdict]
    return Explanation(
        question=str(q),
        passes=last.run.verdict in PASSES | ANSWERS and not lost,
        verdict=last.run.verdict.name,
        meaning=f"{meaning}; but {lost}" if lost else meaning,
        stages=tuple(stages),
        rule=rule,
        where=where,
        missing=_missing(scene, last, opener),
        back=tuple(_way_back(scene, last, back)),
    )


def _lost(scene: Scene, hop: Hop) -> str:
    """Why a packet that the fastpath delivers does not arrive; "" if it does."""
    if hop.run.verdict is Verdict.TO_LAN and scene.uplink:
        return scene.uplink.unreachable
    seat = _receiver(scene, hop) if hop.run.verdict in (Verdict.TO_DOMAIN, Verdict.TO_DOM0) else None
    return seat.unreachable if seat else ""


def _missing(scene: Scene, hop: Hop, opener: End) -> tuple[str, ...]:
    """The rule that would let pass what no rule speaks of."""
    run = hop.run
    if hop.ends_at != "policy" or run.rule:
        return ()
    traffic = Traffic(0 if hop.packet.ether else run.protocol, run.service, hop.packet.ether)
    return (_missing_rule(_word(scene, run.opener, run, opener), _word(scene, run.asked, run, None), traffic),)


def _word(scene: Scene, node: int, run: Run, opener: End | None) -> str:
    """What a rule would say for a node that the policy was asked about."""
    if node != NODE_LAN:
        return scene.name_of(node)
    if opener and opener.seat is None and int(opener.address) == run.remote:
        return opener.word
    return LAN


def _stages(scene: Scene, hop: Hop, opener: End, alike: int) -> Iterator[Stage]:
    """One program's stages, up to the one that decided."""
    yield _came_in(scene, hop)
    if hop.run.verdict is Verdict.NOT_OURS:
        yield "host", "no port of VFR's: the host's own stack and firewall take it"
        return
    reached = _STAGES.index(hop.ends_at)
    told = {"guard": _guard, "session": _session, "policy": _policy, "deliver": _deliver}
    for at, stage in enumerate(_STAGES[: reached + 1]):
        if at == reached and stage not in ("policy", "deliver"):
            yield stage, _refusal(scene, hop)
        elif stage in told:
            yield from told[stage](scene, hop, opener, alike)
    if hop.ends_at not in ("deliver", "answer") and hop.out:
        yield "told", f"by ICMP to {hop.out.dst}: {error_name(hop.out)}"


def _came_in(scene: Scene, hop: Hop) -> Stage:
    name = scene.devices.get(hop.index, str(hop.index))
    if hop.hook == "uplink":
        return "uplink", f"{hop.packet}, {'round' if hop.hairpin else 'in'} by {name}"
    seat = next((seat for seat in scene.seats.values() if seat.index == hop.index), None)
    return "vif", f"{hop.packet}, from {seat.name if seat else '?'} by {name}"


def _guard(scene: Scene, hop: Hop, opener: End, alike: int) -> Iterator[Stage]:
    if hop.hook == "vif":
        yield "guard", "MAC and address are its own, headers in order"
        return
    f = next((f for f in scene.forwards if _leads(f, hop.packet)), None)
    if f:
        yield "guard", f"port {f.outside_port} is a forward to {scene.name_of(f.slot)}'s {f.inside_port}"


def _leads(f: Forward, packet: Packet) -> bool:
    return (WITH_PORTS[f.protocol], f.outside_port) == (packet.protocol, packet.dport)


def _session(scene: Scene, hop: Hop, opener: End, alike: int) -> Iterator[Stage]:
    if hop.packet.ether:
        return
    if hop.run.has_session:
        yield "session", "part of a conversation that is there"
    elif hop.packet.is_answer:
        yield "session", "no conversation is known that it would be part of"
    else:
        under_way = (
            f"; {alike} of the same two about the same {'is' if alike == 1 else 'are'} under way" if alike else ""
        )
        yield "session", f"begins a conversation{under_way}"


def _policy(scene: Scene, hop: Hop, opener: End, alike: int) -> Iterator[Stage]:
    run = hop.run
    if not run.was_asked:
        return
    if run.rule:
        text, where = scene.rule_text(run.rule)
        yield "policy", f"{where}: {text}"
        return
    traffic = Traffic(0 if hop.packet.ether else run.protocol, run.service, hop.packet.ether)
    ends = _word(scene, run.opener, run, opener), _word(scene, run.asked, run, None)
    yield "policy", f"no rule speaks of {_missing_rule(*ends, traffic).removeprefix('allow ')}"


def _deliver(scene: Scene, hop: Hop, opener: End, alike: int) -> Iterator[Stage]:
    out, run = hop.out, hop.run
    if out is None:
        yield "deliver", MEANINGS[run.verdict]
        return
    if out.source != hop.packet.source and not out.ether:
        yield "translate", f"{hop.packet.source} becomes {out.source}"
    if out.target != hop.packet.target and not out.ether:
        yield "translate", f"{hop.packet.target} becomes {out.target}"
    hops_left = "" if out.ether else f", TTL {out.ttl}"
    name = scene.devices.get(run.ifindex, f"interface {run.ifindex}")
    if run.verdict is Verdict.HAIRPIN:
        yield "deliver", "to a port of the router's own: round by the uplink, as from the LAN"
    elif run.verdict is Verdict.TO_LAN:
        yield "deliver", f"out of {name}{hops_left}"
    else:
        seat = _receiver(scene, hop)
        yield "deliver", f"to {seat.name if seat else '?'} by {name}{hops_left}"


def _refusal(scene: Scene, hop: Hop) -> str:
    """What a stage other than policy refused it for, or answered."""
    run = hop.run
    if run.verdict is Verdict.ANSWERED and run.frame is not None:
        seat = scene.seat_in(run.row)
        return (
            f"the router offers it {IPv4Address(run.frame[58:62])}; beside that it is told {seat.dhcp if seat else '?'}"
        )
    if run.verdict is Verdict.DROP_TOO_FAST and run.over_limit:
        text, where = scene.rule_text(run.rule)
        return f"the limit of {where} is used up at this moment: {text}"
    if run.verdict is Verdict.DROP_TOO_FAST:
        return f"{scene.name_of(run.opener)} begins too many conversations at this moment (--new-per-s)"
    if run.verdict is Verdict.DROP_NO_UPLINK and scene.no_uplink:
        return scene.no_uplink
    return MEANINGS[run.verdict]


def _way_back(scene: Scene, last: Hop, back: Sequence[Hop]) -> Iterator[Stage]:
    """The answer's way, a line a program."""
    for hop in back:
        at, what = _came_in(scene, hop)
        parts = [text for stage, text in _deliver(scene, hop, End("", hop.packet.src), 0)]
        if hop.ends_at != "deliver":
            parts = [f"{hop.run.verdict.name}: {MEANINGS[hop.run.verdict]}"]
        yield at, "; ".join([what, *parts])
    seat = _receiver(scene, last)
    if not back and last.run.verdict in (Verdict.TO_DOMAIN, Verdict.TO_DOM0) and seat and seat.trouble:
        yield "vif", f"no answer comes: {seat.trouble}"


__all__ = ["Explanation", "Question", "explain", "question"]
