"""Three fastpaths and one truth: the object in the kernel, the native build and the model see the same
conversations, and must agree on every verdict and frame, and at the end on their tables.

VFR_PACKETS says how many packets in all (the default takes well under a minute; 1000000 is the whole),
VFR_SEED with which conversations to begin.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest
from scapy.layers.l2 import Ether
from support import policies, world
from support import traffic as traffic_frames
from support.bench import Bench, Outcome
from support.native import Native
from support.traffic import Traffic

from vfr import _abi
from vfr.kernel.fastpath import Fastpath
from vfr.policy import Rule
from vfr.spec import Router, State, step
from vfr.spec.model import SECOND, Session
from vfr.spec.packet import ETHER_ARP, ETHER_IP, ETHER_IPV6, ICMP, TCP, UDP, long, parse_ip, readdress, word

PACKETS = int(os.environ.get("VFR_PACKETS", "60000"))
SEED = int(os.environ.get("VFR_SEED", "0"))
LENGTH = 60  # packets in a conversation
PER_RULES = 200  # conversations under the same rules: a new policy takes the kernel 0.2 s
START = 10**15
# Between two packets. The object's clock goes on by itself while it is asked, now and then for some ms, and no rate's
# allowance may come back just then; but a conversation without a pause takes less than a second, after which full
# tables may be swept again.
STEP_NS = 15_000_000
RULES = policies.ALL
TABLES: dict[str, type[ctypes.Structure]] = {
    "sessions": _abi.Session,
    "inbound": _abi.Session,
    "mappings": _abi.Mapping,
    "fragments": _abi.Fragment,
}
# What programs of the host bind and let go meanwhile: in web's block, in db's, and in nobody's.
HOST_PORTS = [(protocol, port) for protocol in (6, 17) for port in (16392, 16393, 16396, 16399, 16400, 16407, 30000)]
# The clocks differ, policies are numbered by each side itself, and padding says nothing.
OWN_AFFAIR = {"expires_ns", "policy", "zero", "zero2", "new_id"}
NUMBERS: dict[Rule, int] = {}  # which a rule keeps, as in a registry
LEAST = {ETHER_IP: 34, ETHER_IPV6: 54}

Tables = dict[tuple[int, ...], object]


@dataclass(frozen=True)
class Sent:
    """One packet of a conversation: when (ns), by whom, and the number that chance gave the native build. `host`
    are the ports that the host has at that moment, `rules` are put in force before it."""

    now: int
    sender: int
    frame: bytes
    chance: int = 0
    host: frozenset[tuple[int, int]] = frozenset()
    rules: str | None = None


class Disagreement(AssertionError):
    """Two of the three differ about the last packet sent."""


def _fields(row: ctypes.Structure) -> tuple[int, ...]:
    return tuple(int(getattr(row, name)) for name, *_ in row._fields_ if name not in OWN_AFFAIR)


def _tables(fastpath: Fastpath) -> dict[tuple[str, int], dict[bytes, tuple[int, ...]]]:
    """Slot's table -> key -> the value's fields that all must agree on."""
    found = {}
    for name, value_type in TABLES.items():
        for slot in world.SLOTS.values():
            table = fastpath.inner(name, slot)
            assert table is not None
            found[name, slot] = {k: _fields(value_type.from_buffer_copy(v)) for k, v in table.items()}
            table.close()
    return found


def _said_and_done(native: Fastpath, now: int) -> tuple[Tables, Tables]:
    """What lives in the native build's tables, in the model's words."""
    sessions, mappings = {}, {}
    for slot in world.SLOTS.values():
        for name in ("sessions", "inbound"):
            table = native.inner(name, slot)
            assert table is not None
            for raw_key, raw in table.items():
                k, s = _abi.SessionKey.from_buffer_copy(raw_key), _abi.Session.from_buffer_copy(raw)
                if s.expires_ns > now:
                    key = (slot, name == "inbound", k.remote, k.remote_port, k.inside_port, k.protocol)
                    state = _abi.TcpState(s.tcp_state)
                    sessions[key] = Session(s.expires_ns, s.peer, s.outside_port, state, s.sequence)
            table.close()
        table = native.inner("mappings", slot)
        assert table is not None
        for raw_key, raw in table.items():
            mk, m = _abi.MappingKey.from_buffer_copy(raw_key), _abi.Mapping.from_buffer_copy(raw)
            if m.expires_ns > now:
                mappings[slot, mk.protocol, mk.inside_port] = (m.expires_ns, m.outside_port, m.open)
        table.close()
    return sessions, mappings


def _living(state: State, now: int) -> tuple[Tables, Tables]:
    return (
        {k: s for k, s in state.sessions.items() if s.expires > now},
        {k: (m.expires, m.outside, m.open) for k, m in state.mappings.items() if m.expires > now},
    )


def _port_taken(fastpath: Fastpath, slot: int, frame: bytes) -> int:
    """The outside port that a slot's packet has got, 0 if none: also where the packet went no further."""
    table = fastpath.inner("mappings", slot)
    assert table is not None
    inside = word(frame, 38 if frame[23] == 1 else 34)
    raw = table.get(bytes(_abi.MappingKey(inside, frame[23])))
    table.close()
    return int(_abi.Mapping.from_buffer_copy(raw).outside_port) if raw else 0


def _same(one: str, a: Outcome, other: str, b: Outcome) -> None:
    if a.verdict is not b.verdict:
        raise Disagreement(f"{one} says {a.verdict.name}, {other} {b.verdict.name}")
    if a.frame != b.frame:
        raise Disagreement(
            f"{a.verdict.name}: {one} sends\n{(a.frame or b'').hex()}, {other}\n{(b.frame or b'').hex()}"
        )
    if a.target is not None and b.target is not None and a.target != b.target:
        raise Disagreement(f"{a.verdict.name}: {one} delivers to {a.target}, {other} to {b.target}")


def _less(ones: tuple[Tables, ...], others: tuple[Tables, ...]) -> list[Tables]:
    """What the ones have and the others have not, or differently."""
    return [{k: v for k, v in a.items() if b.get(k) != v} for a, b in zip(ones, others, strict=True)]


class Trial:
    """One conversation on the native build and the model, and on the object if there is one."""

    def __init__(self, rules: str, native: Native, bench: Bench | None = None, clones: bool = False) -> None:
        self.rules, self.native, self.bench, self.state = rules, native, bench, State()
        self.router = world.router(rules, NUMBERS, clones)
        native.reset(self.router)
        if bench:
            bench.reset(self.router)

    def send(self, sent: Sent) -> tuple[Sent, Outcome]:
        """Sends it through all, and returns it with the chance that was taken."""
        if sent.host != self.router.host_ports:
            self._host_binds(sent.host)
        if sent.rules is not None:
            self._change_rules(sent.rules)
        on_object = None
        # The kernel's test run wants whole IP headers; a frame that has none can't change any table.
        if self.bench and len(sent.frame) >= LEAST.get(word(sent.frame, 12), 14):
            self.bench.clock(sent.now)
            on_object = self.bench._send(sent.sender, sent.frame)
            sent = self._as_it_chanced(sent, on_object)
        self.native.clock(sent.now)
        self.native.random(sent.chance, fixed=True)
        seen = self.native.send(sent.sender, sent.frame)
        if on_object:
            _same("the object", on_object, "the native build", seen)
        chosen = word(seen.frame, 18) if seen.frame else 0
        said = step(
            self.router, self.state, sent.now, sent.sender, sent.frame, lambda free: self._choose(sent, free), chosen
        )
        _same("the native build", seen, "the model", Outcome(said.verdict, said.frame, said.target))
        self.state = said.state
        return sent, seen

    def _host_binds(self, ports: frozenset[tuple[int, int]]) -> None:
        self.router = replace(self.router, host_ports=ports)
        self.native.host_binds(ports)
        if self.bench:
            self.bench.host_binds(ports)

    def _change_rules(self, rules: str) -> None:
        """In the middle of it all."""
        policy = world.router(rules, NUMBERS).policy
        self.router, self.state = replace(self.router, policy=policy), world.without_rates(self.state, policy)
        for one in (self.native, self.bench):
            if one:
                one.fastpath.replace_policy(policy)  # type: ignore[arg-type]

    def _slot(self, sent: Sent) -> int | None:
        """Whose packet it is: what the sorter gives back says so itself."""
        return sent.sender if sent.sender in self.router.domains else self.router.slot_of(long(sent.frame, 26))

    def _as_it_chanced(self, sent: Sent, seen: Outcome) -> Sent:
        """Where the object chose an outside port, the native build is to find the same one first."""
        slot = self._slot(sent)
        if not slot or len(sent.frame) < 40:
            return sent
        if seen.frame and len(seen.frame) >= 40:
            self.native.next_identification(word(seen.frame, 18), long(sent.frame, 30))
        assert self.bench
        taken = _port_taken(self.bench.fastpath, slot, sent.frame)
        return replace(sent, chance=(taken - self.router.domains[slot].ports.start) % world.BLOCK)

    def _choose(self, sent: Sent, free: list[int]) -> int:
        """Where any free port is as good as another, the model is told which one it was."""
        slot = self._slot(sent)
        taken = _port_taken(self.native.fastpath, slot, sent.frame) if slot else 0
        return taken if taken in free else free[0]

    def end(self, now: int) -> None:
        """Compares the tables."""
        ours, said = _said_and_done(self.native.fastpath, now), _living(self.state, now)
        if ours != said:
            raise Disagreement(
                f"only in the native build's tables\n{_less(ours, said)}\nonly in the model's\n{_less(said, ours)}"
            )
        if self.bench and (a := _tables(self.bench.fastpath)) != (b := _tables(self.native.fastpath)):
            raise Disagreement(f"the object's tables\n{a}\nthe native build's\n{b}")


def _as_guest(router: Router, sender: int, frame: bytes, rng: Random) -> bytes:
    """An ordinary domain's frame as a clone's guest would send it, mostly."""
    own, ethertype = router.domains.get(sender), word(frame, 12)
    if own is None or not own.is_clone or rng.random() < 0.05:
        return frame
    if ethertype == ETHER_ARP and long(frame, 28) == own.address:
        return frame[:28] + own.seen_address.to_bytes(4, "big") + frame[32:]
    if ethertype != ETHER_IP or len(frame) < 54 or frame[14] != 0x45 or long(frame, 26) != own.address:
        return frame
    p = parse_ip(frame)
    p = p if p.protocol in (TCP, UDP) else replace(p, protocol=ICMP)
    seen = router.gateway_seen(own)
    frame = readdress(frame, p, True, own.seen_address)
    return readdress(frame, p, False, seen) if p.dst == router.gateway and rng.random() < 0.9 else frame


def _shrunk(rules: str, native: Native, sent: list[Sent], clones: bool) -> list[Sent]:
    """A shorter conversation that the native build and the model still disagree about, if they do."""

    def fails(some: list[Sent]) -> bool:
        trial = Trial(rules, native, clones=clones)
        try:
            for one in some:
                trial.send(one)
            trial.end(some[-1].now if some else START)
        except AssertionError:
            return True
        return False

    if not fails(sent):
        return sent
    for index in reversed(range(len(sent))):
        without = sent[:index] + sent[index + 1 :]
        if fails(without):
            sent = without
    return sent


def _report(rules: str, seed: int, sent: list[Sent], why: Disagreement) -> str:
    lines = [f"VFR_SEED={seed}: {why}", "under the rules", rules, "after these packets (time in ns, sender, frame):"]
    for one in sent:
        lines += ["the rules change to", one.rules] if one.rules is not None else []
        lines.append(f"{one.now - START:>14} {one.sender:>6} {one.frame.hex()}  # {Ether(one.frame).summary()}")
    return "\n".join(lines)


def _converse(
    rules: str,
    seed: int,
    native: Native,
    bench: Bench | None,
    ended: Counter[str],
    changes: float = 0,
    clones: bool = False,
) -> None:
    """One conversation; counts how its packets ended. `changes` is how likely rules change before a packet."""
    rng, now, sent, host = Random(seed), START, list[Sent](), frozenset[tuple[int, int]]()
    traffic, trial = Traffic(rng), Trial(rules, native, bench, clones)
    try:
        for _ in range(LENGTH):
            pause = rng.choice((2, 29, 31, 61, 241, 301)) if rng.random() < 0.1 else 0
            now += pause * SECOND + STEP_NS
            if rng.random() < 0.03:
                host = frozenset(port for port in HOST_PORTS if rng.random() < 0.5)
            sender, frame = traffic.next()
            frame = _as_guest(trial.router, sender, frame, rng) if clones else frame
            change = rng.choice(RULES) if rng.random() < changes else None
            sent.append(Sent(now, sender, frame, rng.randrange(world.BLOCK), host, change))
            sent[-1], seen = trial.send(sent[-1])
            ended[seen.verdict.name] += 1
            if seen.frame and seen.verdict.name == "TO_SORTER":
                traffic.sorted(seen.frame)
            elif seen.frame and seen.target is not None and seen.verdict.name.startswith("TO_"):
                traffic.delivered(seen.target, seen.frame)
        trial.end(now)
    except AssertionError as why:
        short = _shrunk(rules, native, sent, clones)
        raise AssertionError(_report(rules, seed, short, Disagreement(str(why)))) from None


def _chunks(packets: int) -> Iterator[tuple[str, range]]:
    """Rules, and the seeds of the conversations under them."""
    seeds = range(SEED, SEED + max(packets // LENGTH, 1))
    for number, at in enumerate(range(0, len(seeds), PER_RULES)):
        yield RULES[number % len(RULES)], seeds[at : at + PER_RULES]


def test_object_native_build_and_model_agree(bench: Bench, native: Native) -> None:
    ended = Counter[str]()
    for rules, seeds in _chunks(PACKETS):
        for seed in seeds:
            # In the bench's own thread, which saves a change of threads a packet.
            bench._thread.submit(_converse, rules, seed, native, bench, ended).result()
    print("\n".join(f"{count:>9} {name}" for name, count in ended.most_common()))
    passed = sum(count for name, count in ended.items() if name.startswith("TO_"))
    assert passed > PACKETS // 20, "nearly nothing passed: this tests nothing"
    assert ended["DROP_TOO_FAST"] or PACKETS < 60000, "no limit was ever reached"


def test_object_native_build_and_model_agree_about_clones(
    bench: Bench, native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Counter[str]()
    for slot, domain in world.router(RULES[0], clones=True).domains.items():
        monkeypatch.setitem(traffic_frames.MAC, slot, domain.seen_mac)
    for rules, seeds in _chunks(PACKETS // 3):
        for seed in seeds:
            bench._thread.submit(_converse, rules, seed, native, bench, ended, 0, True).result()
    print("\n".join(f"{count:>9} {name}" for name, count in ended.most_common()))
    passed = sum(count for name, count in ended.items() if name.startswith("TO_"))
    assert passed > PACKETS // 60, "nearly nothing passed: this tests nothing"


def test_native_build_and_model_agree_while_rules_change(native: Native) -> None:
    """A rule change holds at once, for living sessions, and for fragments whose first one is through.

    Without the object, whose rules take longer to change: test_machine.py has that.
    """
    for rules, seeds in _chunks(PACKETS // 3):
        for seed in seeds:
            _converse(rules, seed, native, None, Counter(), 1 / 200)


def test_native_build_and_model_agree_on_an_older_kernel(native: Native) -> None:
    """As before Linux 6.2, where a witness tells of offloads (fastpath/witness.h)."""
    native.read_kernel_context(False)
    try:
        for rules, seeds in _chunks(PACKETS // 2):
            for seed in seeds:
                _converse(rules, seed, native, None, Counter())
    finally:
        native.read_kernel_context(True)


def test_native_build_has_the_objects_maps(native: Native) -> None:
    declared = native.maps()
    assert declared == {n: (m.type, m.key_size, m.value_size, m.max_entries, m.flags) for n, m in _abi.MAPS.items()}


@pytest.mark.parametrize("linear", [1, 14, 15, 33, 34, 41, 42, 53])
def test_a_short_linear_part_makes_no_difference(native: Native, linear: int) -> None:
    """A sender decides how much of a frame lies in the linear part; the fate of the frame is the same."""
    router = world.router(RULES[0])
    for seed in range(60):
        traffic = Traffic(Random(seed))
        sender, frame = traffic.next()
        for again in range(2):
            native.reset(router)
            native.next_identification(7, long(frame, 30) if len(frame) >= 34 else 0)
            if not again:
                whole = native.send(sender, frame)
        assert native.send(sender, frame, linear=linear) == whole, (sender, frame.hex())
