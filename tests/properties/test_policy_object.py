"""Rules against the fastpath itself: what a conversation's first packet meets in the compiled object is what the rules,
by definition, say of it. No table, and nothing of the compiler's, stands between the two here.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import world
from support.bench import Bench
from support.rule_sets import rule_sets
from support.traffic import ADDRESS, FLAGS, MAC, frame, ip_packet, l4_packet

from vfr._abi import Verdict
from vfr.policy import Party, RuleSet, Traffic
from vfr.policy.rules import ICMP, TCP, UDP
from vfr.spec.model import LAN

REMOTES = ("192.0.2.11", "192.0.2.7", "192.0.2.200", "198.51.100.9", "198.51.100.128", "203.0.113.5", "10.0.0.9")
TRAFFIC = (
    *(Traffic(TCP, p) for p in (21, 22, 23, 80)),
    Traffic(UDP, 53),
    Traffic(UDP, 80),
    Traffic(ICMP),
    Traffic(ICMP, 13),
)
NEAR_ONLY = (Traffic(47), Traffic(255), Traffic(0, 0x889A, True), Traffic(0, 0x88B5, True))
NAMES = {slot: name for name, slot in world.SLOTS.items()}
FORWARDED = {1: 2202, 2: 2203}
PASSING = {Verdict.TO_DOMAIN, Verdict.TO_DOM0, Verdict.TO_LAN}
Question = tuple[int, int, str, Traffic]


def _between() -> st.SearchStrategy[Question]:
    slots = st.sampled_from(sorted(NAMES))
    pairs = st.tuples(slots, slots).filter(lambda pair: pair[0] != pair[1])
    return st.tuples(pairs, st.sampled_from((*TRAFFIC, *NEAR_ONLY))).map(lambda q: (*q[0], "", q[1]))


QUESTIONS = st.one_of(
    _between(),
    st.tuples(st.sampled_from([1, 2, 3]), st.just(LAN), st.sampled_from(REMOTES), st.sampled_from(TRAFFIC)),
    st.tuples(st.just(LAN), st.sampled_from([1, 2]), st.sampled_from(REMOTES), st.just(Traffic(TCP, 22))),
)


def _packet(number: int, question: Question) -> bytes:
    """What begins the conversation; each from a port of its own."""
    opener, target, remote, traffic = question
    if traffic.ether:
        return MAC[target] + MAC[opener] + traffic.port.to_bytes(2, "big") + bytes(46)
    far = int(IPv4Address(remote)) if remote else 0
    src = far if opener == LAN else ADDRESS[opener]
    dst = int(world.OUTSIDE) if opener == LAN else far if target == LAN else ADDRESS[target]
    sport, dport = 30000 + number, FORWARDED[target] if opener == LAN else traffic.port
    if traffic.protocol == ICMP:
        kind = 13 if traffic.port else 8
        return frame(opener, ip_packet(src, dst, ICMP, l4_packet(src, dst, ICMP, sport, 0, kind, bytes(12))))
    if traffic.protocol not in (TCP, UDP):
        return frame(opener, ip_packet(src, dst, traffic.protocol, bytes(20)))
    flags = FLAGS["S"] if traffic.protocol == TCP else 0
    return frame(
        opener, ip_packet(src, dst, traffic.protocol, l4_packet(src, dst, traffic.protocol, sport, dport, flags, b""))
    )


def _party(node: int, remote: str) -> Party:
    return Party(address=IPv4Address(remote)) if node == LAN else Party(NAMES[node])


def _wanted(rules: RuleSet, question: Question) -> set[Verdict]:
    opener, target, remote, traffic = question
    index = rules.deciding(_party(opener, remote), _party(target, remote), traffic, world.LAN_NET)
    action = "deny" if index is None else rules.rules[index].action
    if action == "allow":
        assert index is not None
        return PASSING | ({Verdict.DROP_TOO_FAST} if rules.rules[index].limit else set())
    if traffic.ether:
        return {Verdict.DROP_ETHERTYPE}
    return {Verdict.DROP_REJECTED if action == "reject" else Verdict.DROP_POLICY}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rule_sets(least=1), st.lists(QUESTIONS, min_size=4, max_size=7))
def test_the_object_does_what_rules_say(bench: Bench, rules: RuleSet, asked: list[Question]) -> None:
    bench.reset(world.router(str(rules)))
    for number, question in enumerate(asked):
        seen = bench.send(question[0], _packet(number, question))
        assert seen.verdict in _wanted(rules, question), (str(rules), question, seen.verdict)
