"""Quotas, expiry, revocation, inheritance: what single packets do not show."""

from __future__ import annotations

import itertools

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, ip, tcp, udp

from vfr._abi import Limit
from vfr.kernel.fastpath import Config
from vfr.policy import compile_rules, parse
from vfr.spec.model import LAN, SECOND

RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\nallow web -> db\n"
NAMED = {n: s for n, s in world.SLOTS.items() if s}


def _verdict(bench: Bench, sender: int, packet: object) -> str:
    return bench.send(sender, bytes(packet)).verdict.name  # type: ignore[call-overload]


@pytest.mark.inv(7)
def test_full_sessions_refuse_new_ones_and_keep_old(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    for number in range(world.QUOTA):
        assert _verdict(bench, 1, udp("web", "db", 1000 + number, 80)) == "TO_DOMAIN"
    assert _verdict(bench, 1, udp("web", "db", 3000, 80)) == "DROP_SESSIONS_FULL"
    assert _verdict(bench, 1, udp("web", "db", 1000, 80)) == "TO_DOMAIN"
    assert _verdict(bench, 2, tcp("db", "lan", 1000, 80)) == "TO_LAN", "another domain lost by it"


@pytest.mark.inv(7)
def test_full_ports_refuse_new_ones_and_keep_old(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    seen = set()
    for number in range(world.BLOCK):
        out = bench.send(1, bytes(udp("web", "lan", 1000 + number, 80)))
        assert out.verdict.name == "TO_LAN" and out.frame is not None
        seen.add(int.from_bytes(out.frame[34:36], "big"))
    assert seen == set(range(world.NAT_LOW + world.BLOCK, world.NAT_LOW + 2 * world.BLOCK)), "all of its own block"
    assert _verdict(bench, 1, udp("web", "lan", 3000, 80)) == "DROP_PORTS_FULL"
    assert _verdict(bench, 1, udp("web", "lan", 1000, 80)) == "TO_LAN"
    assert _verdict(bench, 1, tcp("web", "lan", 3000, 80)) == "TO_LAN", "TCP has ports of its own"
    assert _verdict(bench, 2, udp("db", "lan", 1000, 80)) == "TO_LAN", "another domain lost by it"


def test_same_outside_port_for_every_remote(bench: Bench) -> None:
    """RFC 4787 REQ-1."""
    bench.reset(world.router(RULES))
    ports = set()
    for remote in ("192.0.2.11", "192.0.2.12", "198.51.100.9"):
        out = bench.send(1, bytes(udp("web", remote, 5000, 80))).frame
        assert out is not None
        ports.add(out[34:36])
    assert len(ports) == 1


@pytest.mark.inv(7)
def test_lan_flood_takes_nothing_of_the_domains_own(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    for number in range(3 * world.QUOTA):
        assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 40000 + number, 2202)) == "TO_DOMAIN"
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80)) == "TO_LAN"


def test_expired_sessions_are_as_good_as_none(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    assert _verdict(bench, 1, tcp("web", "lan", 16393, 80)) == "TO_LAN"
    bench.fastpath.advance_clock(241)
    assert _verdict(bench, LAN, tcp("lan", LAN_ADDRESS, 80, 16393, "SA")) == "DROP_UNSOLICITED"
    assert _verdict(bench, 1, tcp("web", "lan", 16393, 80, "A")) == "DROP_NO_SESSION"


def test_a_full_table_of_the_dead_makes_room(bench: Bench) -> None:
    """Nothing needs a process that cleans up: the packet that finds the table full does it."""
    bench.reset(world.router(RULES))
    for number in range(world.QUOTA):
        _verdict(bench, 1, udp("web", "db", 1000 + number, 80))
    assert _verdict(bench, 1, udp("web", "db", 3000, 80)) == "DROP_SESSIONS_FULL"
    bench.fastpath.advance_clock(301)
    assert _verdict(bench, 1, udp("web", "db", 3000, 80)) == "TO_DOMAIN"


def test_dead_mappings_give_their_ports_back(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    for number in range(world.BLOCK):
        _verdict(bench, 1, udp("web", "lan", 1000 + number, 80))
    bench.fastpath.advance_clock(301)
    assert _verdict(bench, 1, udp("web", "lan", 3000, 80)) == "TO_LAN"


@pytest.mark.inv(14)
def test_revoked_means_cut_and_the_rest_lives(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    assert _verdict(bench, 1, tcp("web", "db", 1000, 80)) == "TO_DOMAIN"
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80)) == "TO_LAN"
    bench.fastpath.replace_policy(compile_rules(parse("allow any -> lan\n", "x"), NAMED))
    assert _verdict(bench, 1, tcp("web", "db", 1000, 80, "A")) == "DROP_POLICY"
    assert _verdict(bench, 2, tcp("db", "web", 80, 1000, "A")) == "DROP_NO_SESSION"
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80, "A")) == "TO_LAN"


def _change(bench: Bench, rules: str) -> None:
    bench.fastpath.replace_policy(world.router(rules).policy)  # type: ignore[arg-type]


PIECES = {
    "domain": (
        1,
        "web",
        "db",
        "allow web -> db udp 80\n",
        "group a = web\nallow a -> any udp 1-99\n",
        "allow web -> db udp 81\n",
    ),
    "out": (
        1,
        "web",
        "192.0.2.11",
        "allow web -> lan\n",
        "allow any -> 192.0.2.0/24 udp 80\n",
        "allow web -> internet\n",
    ),
    "protocol": (
        1,
        "web",
        "db",
        "allow web -> db proto 47\n",
        "allow any -> any\n",
        "allow web -> db udp\ndeny any -> any proto 47\n",
    ),
}


@pytest.mark.inv(14)
@pytest.mark.parametrize("kind", PIECES)
def test_fragments_in_flight_go_by_the_rules_in_force(bench: Bench, kind: str) -> None:
    """The first one is through, then rules change: those that still let it through lose no later one, others do."""
    slot, sender, to, rules, same, revoked = PIECES[kind]
    protocol = 47 if kind == "protocol" else 17
    l4 = Raw(b"x" * 24) if protocol == 47 else UDP(sport=4000, dport=80, len=100) / Raw(b"x" * 16)
    bench.reset(world.router(rules))
    passed = _verdict(bench, slot, ip(sender, to, flags="MF", proto=protocol) / l4)
    assert passed in ("TO_DOMAIN", "TO_LAN")

    def later(at: int) -> str:
        return _verdict(bench, slot, ip(sender, to, flags="MF", frag=at, proto=protocol) / Raw(b"y" * 8))

    assert later(3) == passed
    _change(bench, same)
    assert later(4) == passed, "an unchanged permission lost a later fragment"
    _change(bench, revoked)
    assert later(5) == "DROP_POLICY"
    _change(bench, same)
    assert later(6) == passed, "what is allowed again"


def test_fragments_from_the_lan_go_by_the_rules_in_force(bench: Bench) -> None:
    bench.reset(world.router("allow lan -> web tcp 22\n"))
    first = ip("lan", LAN_ADDRESS, flags="MF") / TCP(sport=40000, dport=2202) / Raw(b"x" * 4)
    later = ip("lan", LAN_ADDRESS, frag=3, proto=6) / Raw(b"y" * 16)
    assert _verdict(bench, LAN, first) == "TO_DOMAIN"
    _change(bench, "allow 192.0.2.11 -> any tcp\n")
    assert _verdict(bench, LAN, later) == "TO_DOMAIN"
    _change(bench, "allow 192.0.2.12 -> any tcp\nallow internet -> web\n")
    assert _verdict(bench, LAN, later) == "DROP_POLICY"


def test_a_limit_is_of_conversations_and_comes_back(bench: Bench) -> None:
    """One that goes on costs nothing, nor does a change of rules that leaves the rule; a second makes it whole."""
    rules, start, calls = "allow web -> db udp limit 4/s\n", 10**15, itertools.count()
    bench.reset(world.router(rules))

    def speak(port: int, later_s: float = 0) -> str:
        bench.clock(start + int(later_s * SECOND) + 3_000_000 * next(calls))
        return _verdict(bench, 1, udp("web", "db", port, 80))

    assert [speak(3000) for _ in range(20)] == ["TO_DOMAIN"] * 20
    assert [speak(3001 + n) for n in range(5)] == ["TO_DOMAIN"] * 4 + ["DROP_TOO_FAST"]
    _change(bench, rules + "deny web -> dom0\n")
    assert speak(3005) == "DROP_TOO_FAST"
    assert speak(3001) == "TO_DOMAIN"
    assert speak(3005, 0.3) == "TO_DOMAIN", "one comes back"
    assert speak(3006, 0.3) == "DROP_TOO_FAST", "and no more"
    assert [speak(3006 + n, 9) for n in range(6)] == ["TO_DOMAIN"] * 5 + ["DROP_TOO_FAST"]


@pytest.mark.inv(8)
def test_a_slot_s_next_tenant_inherits_nothing(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    assert _verdict(bench, 1, tcp("web", "db", 1000, 80)) == "TO_DOMAIN"
    row = bench.fastpath.domains()[2]
    fields = {name: getattr(row, name) for name in row.__slots__}
    bench.fastpath.set_domain(2, type(row)(**{**fields, "generation": 99}))
    bench.fastpath.new_tables(2, world.LIMITS, 4)
    assert _verdict(bench, 1, tcp("web", "db", 1000, 80, "A")) == "DROP_NO_DOMAIN"


@pytest.mark.inv(6)
def test_a_vif_of_nobody_is_dropped(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    bench.fastpath.clear_vif(bench.ifindex["web"])
    before = bench.fastpath.counters([int(Limit.ROW_UNKNOWN)])[int(Limit.ROW_UNKNOWN)].get("DROP_NOT_READY", (0, 0))[0]
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80)) == "DROP_NOT_READY"
    after = bench.fastpath.counters([int(Limit.ROW_UNKNOWN)])[int(Limit.ROW_UNKNOWN)]["DROP_NOT_READY"][0]
    assert after == before + 1


def test_without_an_uplink_nothing_goes_to_the_lan(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80)) == "TO_LAN"
    config = bench.fastpath.config()
    assert config is not None
    bench.fastpath.set_config(Config(config.gateway, config.pool, None, None, 0, 0, config.nat_low, config.nat_high))
    assert _verdict(bench, 1, tcp("web", "lan", 1000, 80, "A")) == "DROP_NO_UPLINK"
    assert _verdict(bench, 1, tcp("web", "lan", 1001, 80)) == "DROP_NO_UPLINK"


@pytest.mark.inv(10)
def test_every_packet_is_counted_once(bench: Bench) -> None:
    bench.reset(world.router(RULES))
    rows = [*world.SLOTS.values(), int(Limit.ROW_LAN), int(Limit.ROW_UNKNOWN)]

    def total() -> int:
        return sum(
            n
            for row in bench.fastpath.counters(rows).values()
            for name, (n, _) in row.items()
            if name not in ("received", "errors")
        )

    before = total()
    for number in range(40):
        bench.send(1, bytes(tcp("web", "db" if number % 2 else "169.254.1.9", 1000 + number, 80)))
        bench.send(LAN, bytes(tcp("lan", LAN_ADDRESS, 40000 + number, 2202 + number % 3)))
    assert total() == before + 80
