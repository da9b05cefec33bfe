"""The model is the oracle: whatever is sent, in whatever order, model and object agree on every frame."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, arp, echo, tcp, udp

from vfr._abi import TcpEvent, TcpState
from vfr.spec import State, step
from vfr.spec.model import LAN, SECOND, TCP_NEXT

RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db tcp 22\ndeny odd -> lan udp\n"
NAMES = st.sampled_from(["web", "db", "odd", "dom0"])
PORTS = st.sampled_from([22, 53, 2202, 16385, 16392, 16393, 16400, 40000])
FLAGS = st.sampled_from(["S", "SA", "A", "FA", "R", "F"])
TARGETS = st.sampled_from(["web", "db", "odd", "dom0", "lan", "192.0.2.12", "198.51.100.9", "169.254.1.9", LAN_ADDRESS])


def _node(name: str) -> int:
    return LAN if name == "lan" else world.SLOTS[name]


@st.composite
def from_domain(draw: st.DrawFn) -> tuple[str, Packet]:
    name, to = draw(NAMES), draw(TARGETS)
    kind = draw(st.sampled_from(["tcp", "udp", "echo", "reply", "arp"]))
    a, b = draw(PORTS), draw(PORTS)
    if kind == "tcp":
        return name, tcp(name, to, a, b, draw(FLAGS))
    if kind == "udp":
        return name, udp(name, to, a, b)
    if kind == "arp":
        return name, arp(name, world.NODES[to].ip if to in world.NODES else to)
    return name, echo(name, to, a, 8 if kind == "echo" else 0)


@st.composite
def from_lan(draw: st.DrawFn) -> tuple[str, Packet]:
    src = draw(st.sampled_from(["192.0.2.11", "192.0.2.12", "198.51.100.9"]))
    kind = draw(st.sampled_from(["tcp", "udp", "reply"]))
    a, b = draw(PORTS), draw(PORTS)
    if kind == "tcp":
        return "lan", tcp("lan", LAN_ADDRESS, a, b, draw(FLAGS), src=src)
    if kind == "udp":
        return "lan", udp("lan", LAN_ADDRESS, a, b, src=src)
    return "lan", echo("lan", LAN_ADDRESS, a, 0, src=src)


def _port_seen(frame: bytes | None) -> int:
    """The outside port that the object chose, where the model may not know it."""
    if frame is None:
        return 0
    packet = Ether(frame)
    for layer in (TCP, UDP):
        if layer in packet:
            return int(packet[layer].sport)
    return int.from_bytes(frame[38:40], "big")


def _agree(bench: Bench, conversation: list[tuple[str, Packet]]) -> None:
    router, state = world.router(RULES), State()
    bench.reset(router)
    for number, (sender, packet) in enumerate(conversation):
        frame = bytes(packet)
        seen = bench.send(_node(sender), frame)

        def choose(free: list[int], out: bytes | None = seen.frame) -> int:
            port = _port_seen(out)
            assert not free or out is None or port in free, f"port {port} is not one of {free}"
            return port or free[0]

        # A millisecond a packet: nothing expires within a conversation, as nothing does in the object.
        said = step(router, state, 10**15 + number * SECOND // 1000, _node(sender), frame, choose)
        assert seen.verdict.name == said.verdict.name, packet.summary()
        assert (seen.frame or b"").hex() == (said.frame or b"").hex(), packet.summary()
        assert said.target is None or seen.target == said.target
        state = said.state


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(conversation=st.lists(st.one_of(from_domain(), from_lan()), min_size=1, max_size=25))
def test_conversations(bench: Bench, conversation: list[tuple[str, Packet]]) -> None:
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
    assert seen.verdict.name == said.verdict.name


def test_tcp_table(bench: Bench) -> None:
    """The C table walked by packets: every state and event ends where the model's table says."""
    reach = {
        TcpState.TCP_OPENING: [],
        TcpState.TCP_ESTABLISHED: [TcpEvent.TCP_PEER_SYN],
        TcpState.TCP_FIN_OPENER: [TcpEvent.TCP_PEER_SYN, TcpEvent.TCP_OPENER_FIN],
        TcpState.TCP_FIN_PEER: [TcpEvent.TCP_PEER_SYN, TcpEvent.TCP_PEER_FIN],
        TcpState.TCP_CLOSED: [TcpEvent.TCP_PEER_SYN, TcpEvent.TCP_OPENER_RST],
    }
    for start, way in reach.items():
        for event in list(TcpEvent)[: TcpEvent.TCP_EVENTS]:
            if start is TcpState.TCP_CLOSED and event is TcpEvent.TCP_OPENER_SYN:
                continue  # a new conversation, by policy; test_conversations has it
            assert _tcp_state(bench, [*way, event]) == TCP_NEXT[start].get(event, start), (start, event)


def _tcp_state(bench: Bench, events: list[TcpEvent]) -> TcpState:
    """The state that the object is in after a SYN and these events."""
    bench.reset(world.router(RULES))
    flags = ["S", "F", "R", "A"]
    for event in [TcpEvent.TCP_OPENER_SYN, *events]:
        kind = flags[event % 4]
        if event < TcpEvent.TCP_PEER_SYN:
            bench.send(1, bytes(tcp("web", "lan", 16393, 80, kind)))
        else:
            bench.send(LAN, bytes(tcp("lan", LAN_ADDRESS, 80, 16393, "SA" if kind == "S" else kind)))
    table = bench.fastpath.inner("sessions", 1)
    assert table is not None
    try:
        ((_, value),) = table.items()
        return TcpState(value[20])
    finally:
        table.close()
