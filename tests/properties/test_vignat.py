"""The properties that VigNAT (SIGCOMM 2017) proves of a NAT, and four more, each as a test on the object.

Ours differ knowingly: a router takes one from the TTL, gives a packet without DF another identification,
answers what it owes an answer, and keeps what is closing for a while.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, echo, ether, ip, tcp, udp

from vfr.spec.model import LAN

RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db\n"
WEB, DB = world.SLOTS["web"], world.SLOTS["db"]
TABLES = ("sessions", "inbound", "mappings", "fragments")
SOME = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PORTS = st.integers(1024, 65535)


@pytest.fixture(autouse=True)
def _fresh(bench: Bench) -> None:
    bench.reset(world.router(RULES))


def _state(bench: Bench, *slots: int) -> dict[tuple[int, str, bytes], bytes]:
    """Every row of the slots' tables."""
    found = {}
    for slot in slots:
        for name in TABLES:
            table = bench.fastpath.inner(name, slot)
            assert table is not None
            found.update({(slot, name, key): value for key, value in table.items()})
            table.close()
    return found


def _out(bench: Bench, packet: Packet) -> Packet:
    """A domain's packet as it left for the LAN."""
    seen = bench.send(WEB, bytes(packet))
    assert seen.verdict.name == "TO_LAN" and seen.frame is not None
    return Ether(seen.frame)


def test_p1_expiry_removes_exactly_what_is_older(bench: Bench) -> None:
    _out(bench, udp("web", "lan", 5000, 80))
    bench.fastpath.advance_clock(200)
    younger = _out(bench, udp("web", "lan", 5001, 80))[UDP].sport
    bench.fastpath.advance_clock(150)
    bench.fastpath.sweep(WEB)
    left = {key[6:8] for (_, name, key) in _state(bench, WEB) if name == "sessions"}
    assert left == {(5001).to_bytes(2, "big")}
    assert bench.send(LAN, bytes(udp("lan", LAN_ADDRESS, 80, younger))).verdict.name == "TO_DOMAIN"


@SOME
@given(sport=PORTS, dport=st.integers(world.NAT_LOW, 32767))
def test_p2_an_unknown_packet_from_outside_is_dropped_and_changes_nothing(bench: Bench, sport: int, dport: int) -> None:
    before = _state(bench, *world.SLOTS.values())
    seen = bench.send(LAN, bytes(udp("lan", LAN_ADDRESS, sport, dport)))
    assert (seen.verdict.name, seen.frame) == ("DROP_UNSOLICITED", None)
    assert _state(bench, *world.SLOTS.values()) == before


@SOME
@given(inside=PORTS, remote=PORTS)
def test_p3_a_known_one_goes_to_the_stored_inside_port_and_adds_nothing(bench: Bench, inside: int, remote: int) -> None:
    bench.reset(world.router(RULES))
    outside = _out(bench, udp("web", "lan", inside, remote))[UDP].sport
    before = _state(bench, *world.SLOTS.values())
    seen = bench.send(LAN, bytes(udp("lan", LAN_ADDRESS, remote, outside)))
    assert seen.target == WEB and seen.frame is not None
    assert (Ether(seen.frame)[IP].dst, Ether(seen.frame)[UDP].dport) == (world.NODES["web"].ip, inside)
    assert set(_state(bench, *world.SLOTS.values())) == set(before)


def test_p4_when_full_the_known_pass_and_an_unknown_one_is_dropped_and_changes_nothing(bench: Bench) -> None:
    for number in range(world.BLOCK):
        _out(bench, udp("web", "lan", 5000 + number, 80))
    before = _state(bench, WEB)
    assert bench.send(WEB, bytes(udp("web", "lan", 6000, 80))).verdict.name == "DROP_PORTS_FULL"
    assert _state(bench, WEB) == before
    _out(bench, udp("web", "lan", 5000, 80))


@SOME
@given(ports=st.lists(PORTS, min_size=1, max_size=world.BLOCK, unique=True))
def test_p5_each_new_flow_adds_one_with_an_outside_port_of_its_own(bench: Bench, ports: list[int]) -> None:
    bench.reset(world.router(RULES))
    taken: set[int] = set()
    for number, port in enumerate(ports, 1):
        outside = _out(bench, tcp("web", "lan", port, 80))[TCP].sport
        assert outside not in taken
        taken.add(outside)
        assert sum(name == "sessions" for _, name, _ in _state(bench, WEB)) == number


@SOME
@given(tos=st.integers(0, 255), ttl=st.integers(2, 255), seq=st.integers(0, 2**32 - 1), window=st.integers(0, 65535))
def test_p6_every_other_field_stays_as_it_was(bench: Bench, tos: int, ttl: int, seq: int, window: int) -> None:
    packet = ip("web", "lan", tos=tos, ttl=ttl, flags="DF") / TCP(sport=5000, dport=80, seq=seq, window=window)
    sent, seen = Ether(bytes(packet)), _out(bench, packet)
    changed = {name for name in sent[IP].fields if sent[IP].fields[name] != seen[IP].fields[name]}
    assert {"src"} <= changed <= {"src", "ttl", "chksum"} and seen[IP].ttl == ttl - 1
    fields = {name for name in sent[TCP].fields if sent[TCP].fields[name] != seen[TCP].fields[name]}
    assert fields <= {"sport", "chksum"} and bytes(sent[TCP].payload) == bytes(seen[TCP].payload)


@SOME
@given(protocol=st.integers(0, 255).filter(lambda n: n not in (1, 6, 17)))
def test_p7_what_is_no_tcp_udp_or_icmp_over_ipv4_is_dropped(bench: Bench, protocol: int) -> None:
    assert bench.send(WEB, bytes(ip("web", "lan", proto=protocol) / (b"x" * 40))).verdict.name == "DROP_PROTOCOL"
    assert bench.send(WEB, bytes(ether("web", IPv6()))).verdict.name == "DROP_IPV6"


@SOME
@given(damage=st.integers(0, 0xFFFF), kind=st.sampled_from([tcp, udp]))
def test_p8_a_checksum_is_right_behind_the_router_if_and_only_if_it_was_before(
    bench: Bench, damage: int, kind: object
) -> None:
    packet = Ether(bytes(kind("web", "lan", 5000, 80)))  # type: ignore[operator]
    layer = TCP if TCP in packet else UDP
    right = packet[layer].chksum
    packet[layer].chksum = right ^ damage
    if layer is UDP and packet[UDP].chksum == 0:
        return  # which says that there is none
    seen = _out(bench, packet)
    found = seen[layer].chksum
    del seen[layer].chksum
    same = (Ether(bytes(seen))[layer].chksum - found) % 0xFFFF == 0
    assert same == ((right ^ damage) % 0xFFFF == right % 0xFFFF)


def test_p9_one_outside_port_for_all_remotes(bench: Bench) -> None:
    remotes = ("192.0.2.11", "192.0.2.12", "198.51.100.9")
    assert len({_out(bench, udp("web", to, 5000, port))[UDP].sport for to in remotes for port in (80, 81)}) == 1


@SOME
@given(
    packet=st.sampled_from(["tcp", "udp", "echo"]),
    to=st.sampled_from(["lan", "198.51.100.9", "169.254.169.254", "169.254.1.99", "169.254.0.1"]),
    port=PORTS,
)
def test_p10_no_address_of_the_routers_own_leaves_by_the_uplink(bench: Bench, packet: str, to: str, port: int) -> None:
    bench.reset(world.router(RULES))
    made = {"tcp": tcp("web", to, port, 80), "udp": udp("web", to, port, 80), "echo": echo("web", to, port)}[packet]
    seen = bench.send(WEB, bytes(made))
    if to.startswith("169.254"):
        assert seen.frame is None
    else:
        assert seen.frame is not None
        out = Ether(seen.frame)[IP]
        assert out.src == LAN_ADDRESS and not out.dst.startswith("169.254")
        assert ICMP in out or TCP in out or UDP in out


@SOME
@given(ports=st.lists(PORTS, min_size=1, max_size=40), flags=st.sampled_from(["S", "A", "FA", "R"]))
def test_p11_nothing_that_one_domain_sends_changes_a_row_of_anothers(
    bench: Bench, ports: list[int], flags: str
) -> None:
    bench.reset(world.router(RULES))
    assert bench.send(DB, bytes(udp("db", "lan", 7000, 80))).verdict.name == "TO_LAN"
    before = _state(bench, DB, world.SLOTS["odd"])
    for port in ports:
        for to in ("lan", "db", "odd", "198.51.100.9"):
            bench.send(WEB, bytes(tcp("web", to, port, 80, flags)))
            bench.send(WEB, bytes(udp("web", to, port, 7000)))
    assert _state(bench, DB, world.SLOTS["odd"]) == before
