"""The model is the oracle: whatever is sent, in whatever order, model and object agree on every frame."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, arp, echo, ether, ip, tcp, timestamp, udp

from vfr._abi import Session, SessionKey, TcpEvent, TcpState
from vfr.spec import State, step
from vfr.spec.model import LAN, SECOND, SORTER
from vfr.spec.tcp import OVER, step_tcp

RULES = (
    "group tier = web, db\nallow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db tcp 22\n"
    "deny odd -> 192.0.2.0/24 udp\nreject tier -> 198.51.100.9 tcp 53\nallow tier -> any proto 47\n"
    "allow any -> tier ether 0x889a\ndeny db -> internet icmp timestamp\n"
)
NAMES = st.sampled_from(["web", "db", "odd", "dom0"])
PORTS = st.sampled_from([22, 53, 2202, 16385, 16392, 16393, 16400, 40000])
FLAGS = st.sampled_from(["S", "SA", "A", "FA", "R", "F"])
TARGETS = st.sampled_from(["web", "db", "odd", "dom0", "lan", "192.0.2.12", "198.51.100.9", "169.254.1.9", LAN_ADDRESS])


FRAGMENTERS = [("web", "web"), ("web", "web"), ("db", "db"), ("lan", "lan"), ("sorter", "web"), ("sorter", "lan")]
ERROR_TYPES = st.sampled_from([3, 11, 12, 5])


def _node(name: str) -> int:
    return {"lan": LAN, "sorter": SORTER}.get(name, world.SLOTS.get(name, -1))


@st.composite
def from_domain(draw: st.DrawFn) -> tuple[str, Packet]:
    name, to = draw(NAMES), draw(TARGETS)
    kind = draw(st.sampled_from(["tcp", "udp", "echo", "reply", "arp", "stamp", "stamped", "gre", "raw"]))
    a, b = draw(PORTS), draw(PORTS)
    own = world.NODES[name].ip
    src = draw(st.sampled_from([own, own, own, own, world.NODES["db"].ip, "192.0.2.11"]))
    if kind == "tcp":
        return name, tcp(name, to, a, b, draw(FLAGS), src=src)
    if kind == "udp":
        return name, udp(name, to, a, b, src=src)
    if kind == "arp":
        return name, arp(name, world.NODES[to].ip if to in world.NODES else to, psrc=src)
    if kind == "gre":
        return name, ip(name, to, proto=47, src=src) / Raw(b"x" * draw(st.integers(0, 40)))
    if kind == "raw":
        mac = (
            world.NODES[to].mac
            if to in world.NODES
            else draw(st.sampled_from([world.GATEWAY_MAC, "ff:ff:ff:ff:ff:ff"]))
        )
        return name, ether(name, Raw(b"x" * 46), dst=mac, type=draw(st.sampled_from([0x889A, 0x88A2, 0x5DC])))
    if kind in ("stamp", "stamped"):
        return name, timestamp(name, to, a, 13 if kind == "stamp" else 14, src=src)
    return name, echo(name, to, a, 8 if kind == "echo" else 0)


@st.composite
def from_lan(draw: st.DrawFn) -> tuple[str, Packet]:
    src = draw(st.sampled_from(["192.0.2.11", "192.0.2.12", "198.51.100.9"]))
    kind = draw(st.sampled_from(["tcp", "udp", "reply", "stamped", "gre"]))
    a, b = draw(PORTS), draw(PORTS)
    if kind == "tcp":
        return "lan", tcp("lan", LAN_ADDRESS, a, b, draw(FLAGS), src=src)
    if kind == "udp":
        return "lan", udp("lan", LAN_ADDRESS, a, b, src=src)
    if kind == "stamped":
        return "lan", timestamp("lan", LAN_ADDRESS, a, 14, src=src)
    if kind == "gre":
        return "lan", ip("lan", LAN_ADDRESS, proto=47, src=src) / Raw(b"x" * 20)
    return "lan", echo("lan", LAN_ADDRESS, a, 0, src=src)


@st.composite
def fragment_of(draw: st.DrawFn) -> tuple[str, Packet]:
    """A piece of some datagram: of a few senders, targets and identifications, so that pieces meet."""
    name, sender = draw(st.sampled_from(FRAGMENTERS))
    to = LAN_ADDRESS if sender == "lan" else draw(st.sampled_from(["lan", "db"]))
    where = {"id": draw(st.sampled_from([1, 2])), "flags": draw(st.sampled_from([0, 1])), "proto": 17}
    if draw(st.booleans()):
        first = ip(sender, to, **where | {"flags": 1})
        return name, first / UDP(sport=16394, dport=draw(PORTS), len=100) / Raw(b"x" * 16)
    return name, ip(sender, to, **where, frag=draw(st.sampled_from([2, 3, 9]))) / Raw(b"y" * 16)


@st.composite
def error_about(draw: st.DrawFn) -> tuple[str, Packet]:
    """An ICMP error that quotes what may or may not have been sent."""
    name = draw(st.sampled_from(["web", "db", "lan"]))
    a, b = draw(PORTS), draw(PORTS)
    about = tcp("lan", "web", a, b) if draw(st.booleans()) else udp("lan", "web", a, b)
    if name == "lan":
        about[IP].src, about[IP].dst = LAN_ADDRESS, "192.0.2.11"
    else:
        about[IP].src, about[IP].dst = (
            draw(st.sampled_from(["192.0.2.11", world.NODES["web"].ip])),
            world.NODES[name].ip,
        )
    quote = Raw(bytes(about[IP])[: draw(st.sampled_from([28, 40, 60]))])
    return name, ip(name, LAN_ADDRESS if name == "lan" else about[IP].src) / ICMP(
        type=draw(ERROR_TYPES), code=1
    ) / quote


@st.composite
def pause(draw: st.DrawFn) -> tuple[str, int]:
    return "wait", draw(st.sampled_from([5, 35, 65, 250, 310, 7500]))


def _outside_seen(frame: bytes | None) -> int:
    """The outside port that the object chose, where the model may not know it."""
    if frame is None or len(frame) < 40:
        return 0
    return int.from_bytes(frame[38:40] if frame[23] == 1 else frame[34:36], "big")


def _agree(bench: Bench, conversation: list[tuple[str, Packet | int]]) -> None:
    router, state, now = world.router(RULES), State(), 10**15
    bench.reset(router)
    for sender, packet in conversation:
        now += SECOND // 1000
        if isinstance(packet, int):
            bench.fastpath.advance_clock(packet)
            now += packet * SECOND
            continue
        frame = bytes(packet)
        seen = bench.send(_node(sender), frame)

        def choose(free: list[int], out: bytes | None = seen.frame) -> int:
            port = _outside_seen(out)
            return port if port in free else free[0]

        identification = int.from_bytes(seen.frame[18:20], "big") if seen.frame else 0
        said = step(router, state, now, _node(sender), frame, choose, identification)
        assert seen.verdict.name == said.verdict.name, packet.summary()
        assert (seen.frame or b"").hex() == (said.frame or b"").hex(), packet.summary()
        assert said.target is None or seen.target == said.target
        state = said.state
    _compare_state(bench, state, now)


def _compare_state(bench: Bench, state: State, now: int) -> None:
    """What the maps hold is what the model remembers, as far as it is alive."""
    for slot in world.SLOTS.values():
        for name, inbound in (("sessions", False), ("inbound", True)):
            said = {
                k[2:]: (int(s.state), s.peer, s.outside)
                for k, s in state.sessions.items()
                if k[:2] == (slot, inbound) and s.expires > now
            }
            assert _alive(bench, name, slot) == said


def _alive(bench: Bench, name: str, slot: int) -> dict[tuple[int, int, int, int], tuple[int, int, int]]:
    """(remote, its port, inside port, protocol) -> (state, peer, outside port), of what has not expired."""
    table = bench.fastpath.inner(name, slot)
    assert table is not None
    rows = [(SessionKey.from_buffer_copy(k), Session.from_buffer_copy(v)) for k, v in table.items()]
    table.close()
    clock = bench.fastpath.now_ns()
    return {
        (k.remote, k.remote_port, k.inside_port, k.protocol): (s.tcp_state, s.peer, s.outside_port)
        for k, s in rows
        if s.expires_ns > clock
    }


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    conversation=st.lists(
        st.one_of(from_domain(), from_domain(), from_lan(), fragment_of(), error_about(), pause()),
        min_size=1,
        max_size=30,
    )
)
def test_conversations(bench: Bench, conversation: list[tuple[str, Packet | int]]) -> None:
    _agree(bench, conversation)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(base=st.one_of(from_domain(), from_lan()), data=st.data())
def test_mutated_frames(bench: Bench, base: tuple[str, Packet], data: st.DataObject) -> None:
    """Some bytes of a good frame changed, or its end cut off: still the same fate in both."""
    sender, packet = base
    frame = bytearray(bytes(packet))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, min(len(frame), 54) - 1))] = data.draw(st.integers(0, 255))
    # The kernel's test run wants a whole IP header of what calls itself IP, and the uplink its own MAC.
    frame = frame[: data.draw(st.integers(34, len(frame)))]
    if sender == "lan":
        frame[:6] = bytes.fromhex("feffffffffff")
    router = world.router(RULES)
    bench.reset(router)
    seen, said = (
        bench.send(_node(sender), bytes(frame)),
        step(router, State(), 10**15, _node(sender), bytes(frame)),
    )
    assert seen.verdict.name == said.verdict.name, frame.hex()


def test_tcp_table(bench: Bench) -> None:
    """The C table walked by packets: every state and event ends where the model's table says. With a domain for
    the opener, then with the LAN: a RST of the domain's is an abort, and one that the LAN's side guessed is not."""
    answer, ack = TcpEvent.TCP_PEER_SYN, TcpEvent.TCP_OPENER_OTHER
    for opener, lan_reset in (("web", TcpEvent.TCP_PEER_RST), ("lan", TcpEvent.TCP_OPENER_RST)):
        reach = {
            TcpState.TCP_OPENING: [],
            TcpState.TCP_ANSWERED: [answer],
            TcpState.TCP_ESTABLISHED: [answer, ack],
            TcpState.TCP_FIN_OPENER: [answer, ack, TcpEvent.TCP_OPENER_FIN],
            TcpState.TCP_FIN_PEER: [answer, ack, TcpEvent.TCP_PEER_FIN],
            TcpState.TCP_CLOSED: [answer, ack, TcpEvent.TCP_PEER_FIN, TcpEvent.TCP_OPENER_FIN],
            TcpState.TCP_RESET: [answer, ack, lan_reset],
        }
        for start, way in reach.items():
            assert _tcp_state(bench, opener, way) == start
            for event in list(TcpEvent)[: TcpEvent.TCP_ABORT]:
                if start in OVER and event is TcpEvent.TCP_OPENER_SYN:
                    continue  # a new conversation, by policy; test_conversations has it
                if start is TcpState.TCP_ANSWERED and event is TcpEvent.TCP_OPENER_FIN:
                    continue  # acknowledges the peer's SYN or not: then it is "other" or nothing
                is_abort = event in (TcpEvent.TCP_OPENER_RST, TcpEvent.TCP_PEER_RST) and event is not lan_reset
                said = step_tcp(start, TcpEvent.TCP_ABORT if is_abort else event)
                assert _tcp_state(bench, opener, [*way, event]) == said, (opener, start, event)


def _tcp_state(bench: Bench, opener: str, events: list[TcpEvent]) -> TcpState:
    """The state that the object is in after the opener's SYN and these events."""
    bench.reset(world.router(RULES))
    flags = ["S", "F", "R", "A"]
    for event in [TcpEvent.TCP_OPENER_SYN, *events]:
        kind, of_opener = flags[event % 4], event < TcpEvent.TCP_PEER_SYN
        said = kind if of_opener or kind != "S" else "SA"
        ack = 1001 if of_opener else 0
        if (opener == "web") == of_opener:
            own, to = (16393, 80) if opener == "web" else (22, 80)
            bench.send(1, bytes(tcp("web", "lan", own, to, said, ack=ack)))
        else:
            own = 16393 if opener == "web" else 2202
            packet = tcp("lan", LAN_ADDRESS, 80, own, said, ack=ack)
            packet[TCP].seq = 0x12345678 if kind == "R" else 1000
            bench.send(LAN, bytes(packet))
    table = bench.fastpath.inner("sessions" if opener == "web" else "inbound", 1)
    assert table is not None
    try:
        ((_, value),) = table.items()
        return TcpState(Session.from_buffer_copy(value).tcp_state)
    finally:
        table.close()
