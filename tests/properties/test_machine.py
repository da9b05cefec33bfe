"""A state machine that knows what has been opened, and so goes deep: it answers by the outside ports that were given,
quotes what was sent, lets strangers try, lets hours pass, and changes the rules and the limits. After every step the object
(BPF_PROG_TEST_RUN) and the model agree on verdict and frame, and on what lives in sessions and mappings.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench
from support.dhcp import ask
from support.frames import LAN_ADDRESS, echo, ether, ip, tcp, timestamp, udp

from vfr import _abi
from vfr.policy import Rule
from vfr.spec import State, Step, step
from vfr.spec.model import LAN, SECOND

# Between two packets. The object's clock goes on by itself while it is asked; no multiple of this is nearer than 4 ms to
# when an allowance comes back, be it a rule's limit or, all of them multiples of 8 ms after half a step, a rate.
STEP_NS = 136_000_000
BURST_MS = STEP_NS // 2_000_000
LATE_NS = 2_000_000  # from here on it is not known what was due
# The same ones each time, unless so many others are asked for.
EXAMPLES = int(os.environ.get("VFR_EXAMPLES", "60"))
# Each is what others are changed to: some of their rules stay, some go, and some say the same by other words.
RULES = (
    "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db\n",
    "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nreject web -> lan udp\ndeny web -> db\n",
    "allow db -> lan\nallow lan -> web tcp 22\n",
    "group tier = web, db\nset near = 192.0.2.8/29\nallow tier -> near limit 2/s\nallow tier -> internet tcp\n"
    "allow 192.0.2.0/24 -> tier tcp 22 limit 1/s\nallow tier <-> tier proto gre\nallow tier -> tier udp limit 2/s\n"
    "allow web -> db ether 0x889a\n",
    "group tier = web, db, odd\nset near = 192.0.2.11\nallow tier -> near limit 2/s\nallow tier -> internet icmp echo\n"
    "deny any -> 198.51.100.8/29 udp 53-443\nallow lan -> tier\nallow any -> any\nreject odd -> tier icmp timestamp\n"
    "allow any -> any ether 0x889a\ndeny web -> db ether 0x889a\n",
)
RATES: tuple[dict[str, int], ...] = (
    {},
    {"pps_out": 1, "rate_in": 1000},
    {"pps_in": 1, "rate_out": 1000},
    {"pps_out": 5, "pps_in": 5, "rate_out": 1000, "rate_in": 1000},
    {"new_in_per_s": 1},
)
GUESTS = st.sampled_from(["web", "db", "odd"])
SENDERS = st.sampled_from(["web", "db", "odd", "lan"])
REMOTES = st.sampled_from([("192.0.2.11", 80), ("192.0.2.11", 53), ("192.0.2.12", 80), ("198.51.100.9", 443)])
INSIDE = st.sampled_from([4000, 4001, 16392, 16393, 16400, 22])
KINDS = st.sampled_from(["tcp", "udp", "echo", "stamp"])
NEAR_KINDS = st.sampled_from(["tcp", "udp", "echo", "stamp", "gre"])
FLAGS = st.sampled_from(["S", "SA", "A", "FA", "R", "RA"])
PAUSES = st.sampled_from([1, 29, 31, 61, 239, 241, 301, 7439, 7441])
ERRORS = st.sampled_from([(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)])


@dataclass(frozen=True, slots=True)
class Call:
    """A conversation as both sides name it: `guest` at port `inside` with `remote`; the LAN sees `outside`."""

    kind: str
    guest: str
    inside: int
    remote: tuple[str, int]
    outside: int

    def out(self, flags: str) -> Packet:
        return _packet(self.kind, self.guest, self.remote[0], self.inside, self.remote[1], flags)

    def back(self, flags: str, remote: tuple[str, int]) -> Packet:
        made = _packet(self.kind, "lan", LAN_ADDRESS, remote[1], self.outside, flags, answer=True)
        made[IP].src = remote[0]
        return Ether(bytes(made))


def _packet(kind: str, sender: str, to: str, a: int, b: int, flags: str, answer: bool = False) -> Packet:
    if kind == "tcp":
        return tcp(sender, to, a, b, flags, ack=1001)
    if kind == "udp":
        return udp(sender, to, a, b)
    if kind == "gre":
        return ip(sender, to, proto=47) / Raw(b"x" * 20)
    if kind == "stamp":
        return timestamp(sender, to, b if answer else a, 14 if answer else 13)
    return echo(sender, to, b if answer else a, 0 if answer else 8)


def _quote(call: Call, sender: str, about: Packet, error: tuple[int, int], length: int) -> Packet:
    to = LAN_ADDRESS if sender == "lan" else call.remote[0]
    quoted = IP(bytes(about[IP]))
    return ip(sender, to) / ICMP(type=error[0], code=error[1]) / Raw(bytes(quoted)[:length])


def _port(frame: bytes | None) -> int:
    """The outside port, or echo identifier, that a packet left with."""
    if frame is None or len(frame) < 40:
        return 0
    return int.from_bytes(frame[38:40] if frame[23] == 1 else frame[34:36], "big")


class Conversations(RuleBasedStateMachine):
    """`bench` is set by the test."""

    bench: Bench
    calls = Bundle("calls")
    datagrams = Bundle("datagrams")

    @initialize()
    def begin(self) -> None:
        self.numbers: dict[Rule, int] = {}
        self.router, self.state, self.now = world.router(RULES[0], self.numbers), State(), 10**15
        self.datagrams_sent = self.late_ns = 0
        self.bench.reset(self.router)

    def _send(self, sender: int, packet: Packet) -> Step:
        """Through both: they must agree, on the packet and on what is remembered.

        The object clears a full table of its dead once a second at the most, and the model has no dead: swept here.
        """
        self.now += STEP_NS
        self.bench.clock(self.now)
        for slot in world.SLOTS.values():
            self.bench.fastpath.sweep(slot)
        frame = bytes(packet)
        self.bench.clock(self.now)
        seen = self.bench.send(sender, frame)
        self.late_ns = max(self.late_ns, self.bench.fastpath.now_ns() - self.now)
        taken, chosen = _port(seen.frame), int.from_bytes(seen.frame[18:20], "big") if seen.frame else 0

        def choose(free: list[int]) -> int:
            return taken if taken in free else free[0]

        said = step(self.router, self.state, self.now, sender, frame, choose, chosen)
        if seen.verdict != said.verdict and self.late_ns > LATE_NS:
            reject()  # this machine had something else to do meanwhile: what was due then is not known
        assert seen.verdict.name == said.verdict.name, (seen.verdict.name, said.verdict.name, packet.summary())
        assert (seen.frame or b"").hex() == (said.frame or b"").hex(), packet.summary()
        assert said.target is None or seen.target == said.target
        self.state = said.state
        self._compare()
        self._compare_claims()
        return said

    def _compare(self) -> None:
        clock = self.bench.fastpath.now_ns()
        sessions: dict[tuple[int, ...], tuple[int, ...]] = {}
        mappings: dict[tuple[int, ...], tuple[int, ...]] = {}
        for slot in world.SLOTS.values():
            for inbound, name in enumerate(("sessions", "inbound")):
                for raw_key, raw in self._rows(name, slot):
                    k, s = _abi.SessionKey.from_buffer_copy(raw_key), _abi.Session.from_buffer_copy(raw)
                    if s.expires_ns > clock:
                        key = (slot, inbound, k.remote, k.remote_port, k.inside_port, k.protocol)
                        sessions[key] = (s.peer, s.outside_port, s.tcp_state)
            for raw_key, raw in self._rows("mappings", slot):
                mk, m = _abi.MappingKey.from_buffer_copy(raw_key), _abi.Mapping.from_buffer_copy(raw)
                if m.expires_ns > clock:
                    mappings[slot, mk.protocol, mk.inside_port] = (m.outside_port, m.open)
        living = {k: s for k, s in self.state.sessions.items() if s.expires > self.now}
        assert sessions == {tuple(map(int, k)): (s.peer, s.outside, int(s.state)) for k, s in living.items()}
        assert mappings == {k: (m.outside, m.open) for k, m in self.state.mappings.items() if m.expires > self.now}

    def _compare_claims(self) -> None:
        """Who holds each outside port. Which one a refused conversation had taken for a moment, and so which dead claim
        it cleared away, is chance: the model takes the dead ones from the object."""
        claims: dict[tuple[int, int], tuple[int, int, int]] = {}
        outside = self.bench.fastpath._maps["outside"]
        for slot, domain in self.router.domains.items():
            for space, protocol in enumerate((6, 17, 1)):
                for port in domain.ports:
                    raw = outside.get((space * _abi.Limit.PORT_SPACE + port).to_bytes(4, "little"))
                    row = _abi.Outside.from_buffer_copy(raw or b"")
                    if row.holder == _abi.Holder.PORT_MAPPING:
                        claims[protocol, port] = (slot, protocol, row.inside_port)
        for (protocol, port), key in self.state.outside.items():
            mapping = self.state.mappings.get(key)
            if mapping and mapping.outside == port and mapping.expires > self.now:
                assert claims.get((protocol, port)) == key
        self.state = replace(self.state, outside=claims)

    def _rows(self, name: str, slot: int) -> list[tuple[bytes, bytes]]:
        table = self.bench.fastpath.inner(name, slot)
        assert table is not None
        rows = list(table.items())
        table.close()
        return rows

    @rule(target=calls, kind=KINDS, guest=GUESTS, inside=INSIDE, remote=REMOTES)
    def open(self, kind: str, guest: str, inside: int, remote: tuple[str, int]) -> object:
        said = self._send(world.SLOTS[guest], _packet(kind, guest, remote[0], inside, remote[1], "S"))
        if said.verdict.name != "TO_LAN":
            return multiple()
        return Call(kind, guest, inside, remote, _port(said.frame))

    @rule(call=calls, flags=FLAGS)
    def go_on(self, call: Call, flags: str) -> None:
        self._send(world.SLOTS[call.guest], call.out(flags))

    @rule(call=calls, flags=FLAGS)
    def be_answered(self, call: Call, flags: str) -> None:
        self._send(LAN, call.back(flags, call.remote))

    @rule(call=calls)
    def establish(self, call: Call) -> None:
        self._send(LAN, call.back("SA", call.remote))
        self._send(world.SLOTS[call.guest], call.out("A"))

    @rule(call=calls)
    def close(self, call: Call) -> None:
        self._send(world.SLOTS[call.guest], call.out("FA"))
        self._send(LAN, call.back("FA", call.remote))

    @rule(call=calls, stranger=REMOTES, flags=FLAGS)
    def be_tried(self, call: Call, stranger: tuple[str, int], flags: str) -> None:
        self._send(LAN, call.back(flags, stranger))

    @rule(call=calls, error=ERRORS, length=st.sampled_from([28, 36, 48]))
    def be_told_of_an_error(self, call: Call, error: tuple[int, int], length: int) -> None:
        about = call.out("A")
        about[IP].src = LAN_ADDRESS
        if call.kind in ("echo", "stamp"):
            about[ICMP].id = call.outside
        else:
            about[IP].payload.sport = call.outside
        self._send(LAN, _quote(call, "lan", about, error, length))

    @rule(call=calls, error=ERRORS, length=st.sampled_from([28, 48]))
    def tell_of_an_error(self, call: Call, error: tuple[int, int], length: int) -> None:
        about = call.back("A", call.remote)
        about[IP].dst = world.NODES[call.guest].ip
        if call.kind in ("echo", "stamp"):
            about[ICMP].id = call.inside
        else:
            about[IP].payload.dport = call.inside
        self._send(world.SLOTS[call.guest], _quote(call, call.guest, about, error, length))

    @rule(port=st.sampled_from([2202, 2203]), remote=REMOTES, flags=FLAGS)
    def enter(self, port: int, remote: tuple[str, int], flags: str) -> None:
        packet = tcp("lan", LAN_ADDRESS, remote[1], port, flags)
        packet[IP].src = remote[0]
        self._send(LAN, Ether(bytes(packet)))

    @rule(guest=GUESTS, remote=REMOTES, flags=FLAGS)
    def answer_who_entered(self, guest: str, remote: tuple[str, int], flags: str) -> None:
        self._send(world.SLOTS[guest], tcp(guest, remote[0], 22, remote[1], flags, ack=1001))

    @rule(
        guest=GUESTS,
        to=st.sampled_from(["web", "db", "dom0"]),
        kind=NEAR_KINDS,
        ports=st.tuples(INSIDE, INSIDE),
        flags=FLAGS,
    )
    def speak_near(self, guest: str, to: str, kind: str, ports: tuple[int, int], flags: str) -> None:
        self._send(world.SLOTS[guest], _packet(kind, guest, to, *ports, flags))

    @rule(guest=GUESTS, to=st.sampled_from(["web", "db", "dom0"]), kind=st.sampled_from([0x889A, 0x88A2]))
    def send_raw(self, guest: str, to: str, kind: int) -> None:
        self._send(world.SLOTS[guest], ether(guest, Raw(b"x" * 46), dst=world.NODES[to].mac, type=kind))

    @rule(
        guest=GUESTS,
        message=st.sampled_from(["discover", "request", "inform", "release"]),
        named=st.sampled_from(["web", "db", "odd"]),
        has_it=st.booleans(),
    )
    def ask_who_it_is(self, guest: str, message: str, named: str, has_it: bool) -> None:
        address = world.NODES[named].ip
        home = {"src": address, "ciaddr": address} if has_it else {}
        said = [] if has_it else [("requested_addr", address)]
        self._send(world.SLOTS[guest], ask(guest, message, *said, **home))

    @rule(
        target=datagrams, sender=SENDERS, to=st.sampled_from(["lan", "web", "db"]), port=st.sampled_from([22, 53, 80])
    )
    def begin_a_datagram(self, sender: str, to: str, port: int) -> object:
        """Its first fragment, let through; the others are in flight."""
        self.datagrams_sent += 1
        kind, to = (TCP(sport=4000, dport=2202), LAN_ADDRESS) if sender == "lan" else (UDP(sport=4000, dport=port), to)
        first = ip(sender, to, id=self.datagrams_sent, flags="MF") / kind / Raw(b"x" * (4 if sender == "lan" else 16))
        said = self._send(LAN if sender == "lan" else world.SLOTS[sender], Ether(bytes(first)))
        return first if said.verdict.name.startswith("TO_") else multiple()

    @rule(first=datagrams, at=st.sampled_from([3, 4, 5]))
    def go_on_with_it(self, first: Packet, at: int) -> None:
        later = first.copy()
        later[IP].remove_payload()
        later[IP].flags, later[IP].frag, later[IP].proto = 0, at, bytes(first[IP])[9]
        name = next(name for name, node in world.NODES.items() if node.mac == first.src)
        self._send(LAN if name == "lan" else world.SLOTS[name], Ether(bytes(later / Raw(b"y" * 9))))

    @rule(guest=GUESTS, number=st.integers(0, 2**32 - 1))
    def flood(self, guest: str, number: int) -> None:
        """More than the quota or the block has room for."""
        chance = random.Random(number)
        for _ in range(world.QUOTA + 2):
            port = chance.randrange(1024, 65536)
            self._send(world.SLOTS[guest], udp(guest, "192.0.2.12", chance.choice((port, 4000)), port))

    @rule(seconds=PAUSES)
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND
        self.bench.clock(self.now)

    @precondition(lambda self: self.state.sessions)
    @rule(rules=st.sampled_from(RULES))
    def change_the_rules(self, rules: str) -> None:
        policy = world.router(rules, self.numbers).policy
        self.router, self.state = replace(self.router, policy=policy), world.without_rates(self.state, policy)
        self.bench.fastpath.replace_policy(policy)  # type: ignore[arg-type]

    @rule(rates=st.sampled_from(RATES))
    def change_the_limits(self, rates: dict[str, int]) -> None:
        """For all domains: what each still owes, it owes under the new ones."""
        limits = replace(world.LIMITS, burst_ms=BURST_MS, **rates)
        self.router = replace(self.router, limits=limits)
        for slot, row in self.bench.fastpath.domains().items():
            self.bench.fastpath.set_domain(slot, replace(row, limits=limits))


def test_object_and_model_go_the_same_way(bench: Bench) -> None:
    Conversations.bench = bench
    run_machine(
        Conversations,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not os.environ.get("VFR_EXAMPLES"),
            print_blob=True,
        ),
    )
