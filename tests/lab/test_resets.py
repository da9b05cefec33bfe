"""What a blind reset from the LAN may not do. Attacks like those of the battery, which only VFR ever fell to.

web   db   ci
 |     |    |
 +--- dom0 -+
       | 192.0.2.1
lan1 (speaks with db) --- [switch] --- lan2 (attacker)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from vfr_lab.backends import backend
from vfr_lab.battery.command import labs_up
from vfr_lab.battery.conversation import side
from vfr_lab.battery.stage import Stage

pytestmark = pytest.mark.lab

SERVED, WRONG = 9000, 0x12345678


@pytest.fixture(scope="module")
def s() -> Iterator[Stage]:
    with labs_up([backend("vfr")], "rs") as labs, Stage(labs[0]) as stage:
        stage.begin()
        yield stage


def _crowd(s: Stage, number: int, first_port: int, forward: int) -> None:
    """lan2 knocks at a forward, each time from another port; its kernel refuses what answers."""
    ports = ("-s", str(first_port), "-p", str(forward))
    s.lan2.run("timeout", "4", "hping3", "-q", "-S", "-c", str(number), "-i", "u400", *ports, s.outside)


def _in_lan1s_name(s: Stage, segment: TCP) -> None:
    frame = Ether(src=s.lan2.mac, dst=s.lan2.knows(s.outside))
    s.lan2.send(frame / IP(src=s.address("lan1"), dst=s.outside) / segment)


def test_a_crowd_after_a_blind_reset_does_not_end_a_session_from_the_lan(s: Stage) -> None:
    """Before and after the RST comes a crowd of connections, for which what seems to be over must make room."""
    forward = s.guest("db").forward or 0
    with s.lan1.call(s.outside, forward) as call, s.db.watch() as seen:
        assert call.greeting.startswith(b"SSH-")
        _crowd(s, 1200, 20000, forward)
        _in_lan1s_name(s, TCP(sport=call.port, dport=forward, flags="R", seq=WRONG))
        _crowd(s, 600, 30000, forward)
        answer = bytes.fromhex(s.lan1.ask("say", number=call.number, data=b"SSH-2.0-lan1\r\n".hex()))
    knocks = seen.having(lambda p: TCP in p and p[IP].src == s.address("lan2") and p[TCP].flags == "S")
    assert len(knocks) > 100, "the crowd reaches db"
    assert b"curve25519" in answer


def test_everyday_use_after_a_blind_reset_does_not_end_a_guests_conversation(s: Stage) -> None:
    """db makes a hundred short connections, which need outside ports; its first conversation keeps its own."""
    lan1 = s.address("lan1")
    with s.lan1.listen("tcp", SERVED), ExitStack() as open_:
        with s.lan1.watch() as seen:
            call = open_.enter_context(s.db.call(lan1, SERVED))
            assert call.echoes()
        _in_lan1s_name(s, TCP(sport=SERVED, dport=side(seen, SERVED).peer_port, flags="R", seq=WRONG))
        assert all(s.db.tcp(lan1, SERVED, timeout=1) for _ in range(100))
        assert call.echoes()
