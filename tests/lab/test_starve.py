"""Nobody starves anybody: floods, and how everybody else fares before and during each.

    web 169.254.1.2 ---+              +--- lan1 192.0.2.11   echo services, ssh to web through 2202
       floods          +---- dom0 ----+
    db  169.254.1.3 ---+  192.0.2.1   +--- lan2 192.0.2.12   floods web's forward from made-up addresses

db and domain 0 are the bystanders: each has a session with lan1 that echoes all the time, and opens new
connections. web's own ssh from lan1 was there before each flood and is there after it. Run with -s to see the
figures; no time that is measured decides anything. (db is slower than domain 0 before a flood too: it has
64 outside ports, and lan1's TCP, which remembers each port's last connection, asks back before a new one.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.agent import PROBE, Agent, compiled
from support.fastpath import VFR, open_fastpath, slot_of, stats, vfr

from vfr.settings import Limits
from vfr_lab import Lab
from vfr_lab.prove import SSH, pings, ssh, tcp, udp

pytestmark = [pytest.mark.lab, pytest.mark.inv(7)]
LAN1, DOM0, WEB, DB = "192.0.2.11", "192.0.2.1", "169.254.1.2", "169.254.1.3"
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
ECHO_PORT, FLOODED_PORT = 9001, 9  # the latter: flood.c
FRAMES, FLOOD_S, MEASURE_S = 3_000_000, 2, 1
LONGER_THAN_ALL_BUT_ESTABLISHED_S = 301
RECOVERED = 40  # sessions that may be left over: those of whoever is measured
BYSTANDERS = ("db", "dom0")


@dataclass(frozen=True, slots=True)
class Attack:
    """A flood, by web unless the LAN does it, and the names under which it must be refused. `told`: web gets ICMP
    errors for it."""

    sentence: str
    kind: str
    refused_as: tuple[str, ...]
    limits: dict[str, int] = field(default_factory=dict)
    from_lan: bool = False
    told: bool = True


ATTACKS = [
    Attack("UDP flows to many remotes and ports", "flows", ("DROP_SESSIONS_FULL",)),
    Attack("UDP flows from many ports", "ports", ("DROP_PORTS_FULL",)),
    Attack("the same, with a rate of its own", "flows", ("DROP_TOO_FAST",), {"new_per_s": 100}),
    Attack("SYNs to nobody", "syn", ("DROP_HALF_OPEN_FULL",)),
    Attack("echoes under ever other identifiers", "echo", ("DROP_PORTS_FULL",)),
    Attack("later fragments without a first one", "fragments", ("DROP_FRAGMENTS_FULL",), told=False),
    Attack("a scan of the LAN", "scan", ("DROP_HALF_OPEN_FULL",)),
    Attack("packets whose TTL ends here, for the sake of the errors", "ttl", ("DROP_TTL",)),
    Attack(
        "spoofed SYNs to a forward", "spoofed", ("DROP_TOO_FAST",), {"new_in_per_s": 1000}, from_lan=True, told=False
    ),
]


class Ssh:
    """An ssh session that stays open and echoes lines."""

    def __init__(self, lab: Lab, node: str, guest: str, address: str, port: int) -> None:
        options = ("-o", f"UserKnownHostsFile={lab.known_hosts}", "-o", f"HostKeyAlias={guest}", "-i", str(lab.key))
        command = (*SSH, *options, "-p", str(port), f"root@{address}", "echo up; exec cat")
        self._agent, self._said = Agent(lab, node, *command), 0

    def __enter__(self) -> Ssh:
        self._agent.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._agent.__exit__(*error)

    def echoes(self) -> bool:
        """Whether a line comes back."""
        self._said += 1
        self._agent.say(f"line {self._said}")
        return self._agent.line() == f"line {self._said}"


@dataclass
class Stage:
    """The lab with everybody in place."""

    lab: Lab
    flood: str
    opening: dict[str, Agent]
    lasting: dict[str, Ssh]

    def measure(self) -> dict[str, dict[str, Any]]:
        """Who -> {"opened", "failed", "p50", "p99"} of new connections to lan1, all at the same time; and ssh."""
        for agent in self.opening.values():
            agent.say(str(MEASURE_S))
        landed = {
            "dom0 to db": ssh(self.lab, "dom0", "db", DB),
            "lan1 to db": ssh(self.lab, "lan1", "db", DOM0, 2203),
        }
        seen = {who: agent.answer(60) for who, agent in self.opening.items()}
        seen["ssh"] = {"opened": len(landed), "failed": [f"{who}: {at}" for who, at in landed.items() if at != "db"]}
        assert all(one.echoes() for one in self.lasting.values())
        return seen

    def attack(self, attack: Attack) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """What `measure` sees while the flood goes on, and what the flooder says of itself."""
        with _flooder(self.lab, self.flood, attack.kind, attack.from_lan) as flooder:
            return self.measure(), flooder.answer()


def _flooder(lab: Lab, flood: str, kind: str, from_lan: bool = False) -> Agent:
    node, mac, own = ("lan2", _mac(lab, "dom0"), DOM0) if from_lan else ("web", GATEWAY_MAC, WEB)
    return Agent(lab, node, flood, "eth0", mac, own, kind, str(FRAMES), str(FLOOD_S), says_up=False)


def _mac(lab: Lab, node: str) -> str:
    return str(json.loads(lab.ip(node, "-j", "link", "show", "eth0"))[0]["address"])


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    flood = compiled("flood", tmp_path_factory.mktemp("flood"))
    with ExitStack() as stack:
        opening = {who: stack.enter_context(Agent(lab, who, *PROBE, "connects", LAN1, "7")) for who in ("db", "dom0")}
        lasting = {
            "lan1 to web": stack.enter_context(Ssh(lab, "lan1", "web", DOM0, 2202)),
            "dom0 to web": stack.enter_context(Ssh(lab, "dom0", "web", WEB, 22)),
            "dom0 to db": stack.enter_context(Ssh(lab, "dom0", "db", DB, 22)),
        }
        yield Stage(lab, flood, opening, lasting)


@pytest.fixture
def limited(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Attack]:
    """The attack, with web's limits set for it."""
    attack: Attack = request.param

    def limit(values: dict[str, int]) -> None:
        options = [w for name, value in values.items() for w in (f"--{name.replace('_', '-')}", str(value))]
        vfr(stage.lab, "domain", "limit", "web", *options)

    with open_fastpath(stage.lab) as fp:  # what the attack before left is over
        fp.advance_clock(LONGER_THAN_ALL_BUT_ESTABLISHED_S)
    if attack.limits:
        limit(attack.limits)
    yield attack
    if attack.limits:
        limit({name: getattr(Limits(), name) for name in attack.limits})


def _told(lab: Lab) -> int:
    """ICMP errors that web's own kernel has counted."""
    names, values = (
        line.split()[1:]
        for line in lab.exec("web", "cat", "/proc/net/snmp").stdout.splitlines()
        if line.startswith("Icmp:")
    )
    counted = dict(zip(names, values, strict=True))
    return int(counted["InDestUnreachs"]) + int(counted["InTimeExcds"])


def _lives(lab: Lab) -> tuple[int, int]:
    """How many sessions web has opened, and the LAN to it, of those that `vfr sweep` leaves."""
    vfr(lab, "sweep")
    with open_fastpath(lab) as fp:
        tables = [fp.inner(name, slot_of(fp, WEB)) for name in ("sessions", "inbound")]
        counts = [len(list(table.keys())) for table in tables if table]
        for table in tables:
            assert table is not None
            table.close()
    return counts[0], counts[1]


def _show(attack: Attack, before: dict[str, Any], during: dict[str, Any], flood: dict[str, Any], more: object) -> None:
    print(f"\n{attack.sentence}: {flood['sent']} frames in {flood['seconds']} s; {more}")
    print(
        f"  {'':8}{'before: opened':>16}{'p50 ms':>9}{'p99 ms':>9}{'during: opened':>18}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}"
    )
    for who in BYSTANDERS:
        b, d = before[who], during[who]
        print(
            f"  {who:8}{b['opened']:16}{b['p50']:9}{b['p99']:9}{d['opened']:18}{d['p50']:9}{d['p99']:9}"
            f"{len(d['failed']):8}"
        )


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}


@pytest.mark.parametrize("limited", ATTACKS, ids=lambda a: a.sentence, indirect=True)
def test_a_flood_costs_nobody_else_anything(
    stage: Stage, limited: Attack, record_property: Callable[[str, object], None]
) -> None:
    lab, attack, row = stage.lab, limited, "lan" if limited.from_lan else "web"
    with ExitStack() as stack:
        stack.enter_context(Agent(lab, "lan1", *PROBE, "serve", LAN1, str(ECHO_PORT)))
        sessions = {
            who: stack.enter_context(Agent(lab, who, *PROBE, "session", LAN1, str(ECHO_PORT), "0.1"))
            for who in (*BYSTANDERS, "web")
        }
        before, counted, told, began = stage.measure(), stats(lab, row), _told(lab), time.monotonic()
        during, flood = stage.attack(attack)
        counts = _difference(stats(lab, row), counted)
        told, seconds = _told(lab) - told, time.monotonic() - began
        assert all(one.echoes() for one in stage.lasting.values())
        kept = {who: agent.finish() for who, agent in sessions.items()}
    refused = {name: n for name, n in counts.items() if name.startswith("DROP_")}
    more = {"refused": refused, "told": counts.get("errors", 0), "sessions": kept}
    _show(attack, before, during, flood, more)
    for name, value in {"before": before, "during": during, "flood": flood, **more}.items():
        record_property(name, json.dumps(value))

    assert all(counts.get(name, 0) > 0 for name in attack.refused_as), refused
    assert flood["sent"] > 10_000
    assert {who: seen["failed"] for who, seen in during.items() if seen["failed"]} == {}
    assert all(seen["opened"] > 1 for seen in (*before.values(), *during.values()))
    assert {who: s["lost"] for who, s in kept.items() if s["lost"] or s["echoes"] < 10} == {}
    if attack.told:
        assert 0 < counts["errors"] <= told
        assert counts["errors"] <= Limits().errors_per_s * (seconds + 1) + 1
    else:
        assert "errors" not in counts

    with open_fastpath(lab) as fp:
        fp.advance_clock(LONGER_THAN_ALL_BUT_ESTABLISHED_S)
    assert [tcp(lab, "web", LAN1, 7), udp(lab, "web", LAN1, 7), pings(lab, "web", LAN1)] == [DOM0, DOM0, True]
    assert ssh(lab, "lan1", "web", DOM0, 2202) == "web"
    assert max(_lives(lab)) < RECOVERED
    assert all(one.echoes() for one in stage.lasting.values())


# The log. The ring keeps what nobody has read yet, so it does not matter when `vfr events` begins.


def _send(lab: Lab, node: str, address: str, port: int) -> None:
    """One UDP packet."""
    code = "import socket,sys; socket.socket(2, 2).sendto(b'x', (sys.argv[1], int(sys.argv[2])))"
    lab.exec(node, "python3", "-c", code, address, str(port))


def _until(log: Agent, who: str, port: int) -> list[dict[str, Any]]:
    """What the log tells up to the drop of `who`'s to this port."""
    told = [log.answer()]
    while (told[-1]["who"], told[-1]["dport"]) != (who, port):
        told.append(log.answer())
    return told


def _dropped(lab: Lab) -> int:
    """Packets of web's that have been dropped."""
    return sum(n for name, n in stats(lab, "web").items() if name.startswith("DROP_"))


def test_a_flood_of_drops_drowns_nobody_else_s_events(
    stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    """db's one drop is told of while web floods; web's at its rate, and what went untold is counted."""
    lab, db_port, web_port = stage.lab, 4242, 4243
    with Agent(lab, "dom0", VFR, "events", "--json", says_up=False) as log:
        outer = _dropped(lab)
        _send(lab, "web", DB, web_port)
        _until(log, "web", web_port)
        inner, began = _dropped(lab), time.monotonic()
        with _flooder(lab, stage.flood, "drops") as flooder:
            told = _until(log, "web", FLOODED_PORT)
            _send(lab, "db", WEB, db_port)
            told += _until(log, "db", db_port)
            during = stage.measure()
            flood, seconds = flooder.answer(), time.monotonic() - began
        inner = _dropped(lab) - inner
        with open_fastpath(lab) as fp:  # web's allowance is whole, so that the next is told of, with what was not
            fp.advance_clock(2)
        _send(lab, "web", DB, web_port)
        told += _until(log, "web", web_port)
        outer = _dropped(lab) - outer
    of_web = [event for event in told if event["who"] == "web"]
    untold = sum(event["untold"] for event in of_web)
    print(f"\ndrops: {flood['sent']} frames, {inner} to {outer} dropped, {len(of_web)} told of, {untold} not")
    for who in BYSTANDERS:
        print(f"  {who:8}{during[who]}")
    for name, value in {"flood": flood, "told": len(of_web), "untold": untold, "during": during}.items():
        record_property(name, json.dumps(value))

    assert flood["sent"] > 10_000 and inner >= flood["sent"]
    assert {who: seen["failed"] for who, seen in during.items() if seen["failed"]} == {}
    assert [(e["verdict"], e["src"], e["dst"]) for e in told if e["who"] == "db"] == [("DROP_POLICY", DB, WEB)]
    assert len(of_web) <= Limits().events_per_s * (seconds + 2) + 2
    assert inner <= untold + len(of_web) <= outer
