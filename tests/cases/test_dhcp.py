"""DHCP, on model, object and native build: what each message becomes, bit for bit, the answer made anew by scapy.

web 169.254.1.2 /32, no DNS    db 169.254.1.3 /16, two servers    odd 198.18.0.77 /16, three servers
as clones: web and db 10.0.2.15 behind 10.0.2.2, odd with another MAC alone
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from support import world
from support.bench import Bench
from support.dhcp import BROADCAST, NOBODY, ask, at_home, lease, raw_mac, told
from support.native import Native
from support.world import GATEWAY_MAC, NODES, TWIN

from cases.case import XEN
from cases.execute import NOW, check, on_bench, on_model
from vfr._abi import Limit
from vfr._abi import Verdict as V
from vfr.spec import Router, State, step
from vfr.spec.model import SECOND
from vfr.spec.packet import ones_sum

WEB, DB, ODD, DOM0 = (NODES[name].ip for name in ("web", "db", "odd", "dom0"))
GUEST, MAC, GATEWAY = TWIN
OTHER = "169.254.1.200"
MINE, YOURS = ("requested_addr", WEB), ("requested_addr", DB)
US, THEM = ("server_id", DOM0), ("server_id", "192.0.2.7")
DNS2, DNS3 = ("192.0.2.53", "192.0.2.54"), ("198.51.100.1", "198.51.100.2", "198.51.100.3")
FIXED = 14 + 20 + 8


@dataclass(frozen=True, slots=True)
class Dhcp:
    """None for `becomes` is silence. `change` are fields of the router that are otherwise."""

    sentence: str
    sender: str
    packet: Packet
    verdict: V
    becomes: Packet | None = None
    rules: str = XEN
    clones: bool = False
    change: dict[str, Any] = field(default_factory=dict)
    before: tuple[tuple[str, Packet], ...] = ()


def _id(size: int) -> tuple[str, bytes]:
    return ("client_id", bytes([255, *(n % 251 for n in range(size - 1))]))


def _off(sentence: str, packet: Packet, verdict: V) -> Dhcp:
    """A guest whose DHCP is not answered."""
    domains = dict(world.router(XEN).domains)
    return Dhcp(sentence, "web", packet, verdict, change={"domains": {**domains, 1: replace(domains[1], dhcp=None)}})


def _damaged(packet: Packet, change: Callable[[bytearray], None]) -> Packet:
    """The frame with other bytes in its BOOTP message, and checksums that are right again."""
    raw = bytearray(bytes(packet)[FIXED:])
    change(raw)
    made = packet.copy()
    made[UDP].remove_payload()
    return made / Raw(bytes(raw))


def _short(packet: Packet, size: int) -> Packet:
    """The frame with so much of its BOOTP message."""
    made = packet.copy()
    made[UDP].remove_payload()
    return made / Raw(bytes(packet)[FIXED : FIXED + size])


def _set(at: int, *values: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[at : at + len(values)] = bytes(values)

    return change


DISCOVER = ask("web", "discover")
OFFER = told("web", "offer", *lease())
TYPE, END = b"\x35\x01\x01", b"\xff"
COMPLETE = ask("web", "request", **at_home("web"))


def _options(sentence: str, raw: bytes, verdict: V = V.DROP_DHCP_OPTIONS, becomes: Packet | None = None) -> Dhcp:
    return Dhcp(sentence, "web", ask("web", None, raw=raw), verdict, becomes)


ANSWERED = (
    Dhcp("DISCOVER is offered the domain's address", "web", DISCOVER, V.ANSWERED, OFFER),
    Dhcp(
        "DISCOVER that can hear only what is for all",
        "web",
        ask("web", "discover", flags=BROADCAST),
        V.ANSWERED,
        told("web", "offer", *lease(), all_=True, flags=BROADCAST),
    ),
    Dhcp("DISCOVER that would like another's address", "web", ask("web", "discover", YOURS), V.ANSWERED, OFFER),
    Dhcp("DISCOVER straight to the router", "web", ask("web", "discover", to=GATEWAY_MAC), V.ANSWERED, OFFER),
    Dhcp(
        "the client's identifier comes back as it was",
        "web",
        ask("web", "discover", _id(19)),
        V.ANSWERED,
        told("web", "offer", *lease(), _id(19)),
    ),
    Dhcp(
        "an identifier as long as one may be",
        "web",
        ask("web", "discover", _id(240)),
        V.ANSWERED,
        told("web", "offer", *lease(), _id(240)),
    ),
    Dhcp(
        "REQUEST of what was offered", "web", ask("web", "request", MINE, US), V.ANSWERED, told("web", "ack", *lease())
    ),
    Dhcp(
        "REQUEST of what was offered, heard only if for all",
        "web",
        ask("web", "request", US, MINE, flags=BROADCAST),
        V.ANSWERED,
        told("web", "ack", *lease(), all_=True, flags=BROADCAST),
    ),
    Dhcp("REQUEST after a reboot", "web", ask("web", "request", MINE), V.ANSWERED, told("web", "ack", *lease())),
    Dhcp("renewing", "web", COMPLETE, V.ANSWERED, told("web", "ack", *lease(), ciaddr=WEB)),
    Dhcp(
        "rebinding",
        "web",
        ask("web", "request", src=WEB, ciaddr=WEB),
        V.ANSWERED,
        told("web", "ack", *lease(), ciaddr=WEB),
    ),
    Dhcp(
        "who has an address hears by it",
        "web",
        ask("web", "request", **at_home("web"), flags=BROADCAST),
        V.ANSWERED,
        told("web", "ack", *lease(), ciaddr=WEB, flags=BROADCAST),
    ),
    Dhcp(
        "INFORM: no address and no lease",
        "web",
        ask("web", "inform", **at_home("web")),
        V.ANSWERED,
        told("web", "ack", *lease(None), ciaddr=WEB, yiaddr=NOBODY),
    ),
    Dhcp(
        "INFORM that only its packet says the address of",
        "web",
        ask("web", "inform", src=WEB, flags=BROADCAST),
        V.ANSWERED,
        told("web", "ack", *lease(None), yiaddr=NOBODY, flags=BROADCAST),
    ),
    Dhcp(
        "another prefix, lease and DNS; the router is in the guest's network",
        "db",
        ask("db", "discover"),
        V.ANSWERED,
        told("db", "offer", *lease(600, 16, on_link=True, dns=DNS2)),
    ),
    Dhcp(
        "an address that is none of the pool's: the router is reached by a route",
        "odd",
        ask("odd", "request", ("requested_addr", ODD)),
        V.ANSWERED,
        told("odd", "ack", *lease(86400, 16, dns=DNS3)),
    ),
    Dhcp(
        "the longest answer there is",
        "odd",
        ask("odd", "discover", _id(240), src=ODD),
        V.ANSWERED,
        told("odd", "offer", *lease(86400, 16, dns=DNS3), _id(240)),
    ),
    Dhcp(
        "the MTU is the uplink's",
        "web",
        DISCOVER,
        V.ANSWERED,
        told("web", "offer", *lease(mtu=1400)),
        change={"uplink_mtu": 1400},
    ),
    Dhcp("but not more than its own interface's", "web", DISCOVER, V.ANSWERED, OFFER, change={"uplink_mtu": 9000}),
    Dhcp("without NAT", "web", DISCOVER, V.ANSWERED, OFFER, change={"uplink_mtu": 0, "outside": None, "lan": None}),
    Dhcp("without any rule", "web", DISCOVER, V.ANSWERED, OFFER, rules=""),
    Dhcp("under a rule that denies it", "web", COMPLETE, V.ANSWERED, rules="deny any -> any\n"),
    Dhcp("no UDP checksum", "web", ask("web", "discover", udp={"chksum": 0}), V.ANSWERED, OFFER),
    Dhcp("bytes behind the message", "web", ask("web", "discover", after=bytes(200)), V.ANSWERED, OFFER),
    Dhcp("bytes behind the packet", "web", Ether(bytes(DISCOVER) + bytes(9)), V.ANSWERED, OFFER),
    _options(
        "options that mean nothing here", b"\x0c\x02hi\x37\x00" + TYPE + b"\x39\x02\x05\xdc" + END, V.ANSWERED, OFFER
    ),
    _options("padding between options", bytes(700) + TYPE + bytes(500) + END, V.ANSWERED, OFFER),
    _options(
        "as many options as there may be", TYPE + (b"\x0c\xff" + bytes(255)) * 4 + bytes(200) + END, V.ANSWERED, OFFER
    ),
)

REFUSED = (
    Dhcp(
        "REQUEST of another's address",
        "web",
        ask("web", "request", YOURS, US),
        V.DHCP_NAK,
        told("web", "nak", all_=True),
    ),
    Dhcp(
        "REQUEST of another's address after a reboot",
        "web",
        ask("web", "request", ("requested_addr", "192.168.1.5"), _id(7)),
        V.DHCP_NAK,
        told("web", "nak", _id(7), all_=True),
    ),
    Dhcp(
        "renewing an address that is no longer the domain's",
        "web",
        ask("web", "request", **at_home("web", src=OTHER, ciaddr=OTHER)),
        V.DHCP_NAK,
        told("web", "nak", all_=True),
    ),
    Dhcp(
        "rebinding an address that is no longer the domain's",
        "web",
        ask("web", "request", src=OTHER, ciaddr=OTHER, flags=BROADCAST),
        V.DHCP_NAK,
        told("web", "nak", all_=True, flags=BROADCAST),
    ),
    Dhcp(
        "one address asked for and another used",
        "web",
        ask("web", "request", MINE, src=OTHER, ciaddr=OTHER),
        V.DHCP_NAK,
        told("web", "nak", all_=True),
    ),
    Dhcp(
        "INFORM from another address",
        "web",
        ask("web", "inform", src=OTHER, ciaddr=OTHER),
        V.DHCP_NAK,
        told("web", "nak", all_=True),
    ),
)

SILENT = (
    Dhcp("another server's offer is taken", "web", ask("web", "request", MINE, THEM), V.DROP_DHCP_SILENT),
    Dhcp("RELEASE", "web", ask("web", "release", US, **at_home("web")), V.DROP_DHCP_SILENT),
    Dhcp("DECLINE", "web", ask("web", "decline", US, MINE), V.DROP_DHCP_SILENT),
    Dhcp("a REQUEST of nothing", "web", ask("web", "request", US), V.DROP_DHCP_OPTIONS),
    Dhcp("an INFORM of nobody", "web", ask("web", "inform"), V.DROP_DHCP_OPTIONS),
    Dhcp("a server's message", "web", ask("web", "offer"), V.DROP_DHCP_OPTIONS),
    Dhcp("a message of no known type", "web", ask("web", 13), V.DROP_DHCP_OPTIONS),
    Dhcp("an identifier that is too long", "web", ask("web", "discover", _id(241)), V.DROP_DHCP_OPTIONS),
    Dhcp("an identifier that is too short", "web", ask("web", "discover", _id(1)), V.DROP_DHCP_OPTIONS),
    _options("no message type: BOOTP", b"\x0c\x02hi" + END),
    _options("no end", TYPE + bytes(60)),
    _options("an option past the end", TYPE + b"\x0c\x20hi"),
    _options("an option that is only its code", TYPE + b"\x0c"),
    _options("one that we read, past the end", TYPE + b"\x3d\xff" + bytes(100)),
    _options("the message type twice", TYPE + TYPE + END),
    _options("the client's identifier twice", TYPE + b"\x3d\x02ab\x3d\x02cd" + END),
    _options("an address of three bytes", TYPE + b"\x32\x03abc" + END),
    _options("no address for an address", TYPE + b"\x32\x04\0\0\0\0" + END),
    _options("option overload", TYPE + b"\x34\x01\x03" + END),
    Dhcp("a reply", "web", ask("web", "discover", op=2), V.DROP_DHCP_HEADER),
    Dhcp("another kind of hardware", "web", ask("web", "discover", htype=6), V.DROP_DHCP_HEADER),
    Dhcp("a hardware address of another length", "web", ask("web", "discover", hlen=16), V.DROP_DHCP_HEADER),
    Dhcp("by a relay", "web", ask("web", "discover", giaddr=WEB, sport=67), V.DROP_DHCP_HEADER),
    Dhcp("from a relay's port", "web", ask("web", "discover", sport=67), V.DROP_DHCP_HEADER),
    Dhcp("no DHCP at all", "web", ask("web", None, raw=b"", options=b"what"), V.DROP_DHCP_HEADER),
    Dhcp("another cookie", "web", _damaged(DISCOVER, _set(239, 0)), V.DROP_DHCP_HEADER),
    Dhcp("shorter than its fixed part", "web", _short(DISCOVER, 200), V.DROP_DHCP_HEADER),
    _options("more options than there may be", TYPE + bytes(1229) + END, V.DROP_DHCP_HEADER),
    Dhcp("in fragments", "web", ask("web", "discover", ip={"flags": "MF"}, after=bytes(7)), V.DROP_DHCP_HEADER),
    Dhcp("a later fragment", "web", ask("web", "discover", ip={"frag": 3}), V.DROP_SRC_IP),
    Dhcp("a wrong UDP checksum", "web", ask("web", "discover", udp={"chksum": 0x1234}), V.DROP_DHCP_CHECKSUM),
    Dhcp(
        "for another's hardware address",
        "web",
        ask("web", "discover", chaddr=raw_mac(NODES["db"].mac)),
        V.DROP_DHCP_CLIENT,
    ),
    Dhcp("from another's address", "web", ask("web", "discover", src=DB), V.DROP_SRC_IP),
    Dhcp(
        "from an address that it does not say it has", "web", ask("web", "request", src=DB, ciaddr=WEB), V.DROP_SRC_IP
    ),
    Dhcp("by another's MAC", "web", ask("web", "discover", mac=NODES["db"].mac), V.DROP_SRC_MAC),
    Dhcp("straight to a neighbour", "web", ask("web", "discover", to=NODES["db"].mac), V.DROP_DST_MAC),
    Dhcp("a wrong IP header checksum", "web", ask("web", "discover", ip={"chksum": 1}), V.DROP_IP_HEADER),
    Dhcp("a UDP length beyond the packet", "web", ask("web", "discover", udp={"len": 900}), V.DROP_L4_HEADER),
    Dhcp("to the neighbour's address", "web", ask("web", "discover", src=WEB, dst=DB, to=GATEWAY_MAC), V.DROP_POLICY),
    Dhcp("from domain 0", "dom0", ask("dom0", "discover"), V.DROP_SRC_IP),
    _off("not answered: to all", DISCOVER, V.DROP_SRC_IP),
    _off("not answered: to all, from its own address", ask("web", "request", src=WEB, ciaddr=WEB), V.DROP_MULTICAST),
    _off("not answered: a packet like any", COMPLETE, V.DROP_POLICY),
)


def _clone(sentence: str, packet: Packet, verdict: V, becomes: Packet | None = None, sender: str = "web") -> Dhcp:
    return Dhcp(sentence, sender, packet, verdict, becomes, clones=True)


CLONE = {"mac": MAC, "own": GUEST, "server": GATEWAY}
CLONE_HOME = {"mac": MAC, "src": GUEST, "ciaddr": GUEST, "dst": GATEWAY, "to": GATEWAY_MAC}
CLONES = (
    _clone(
        "a clone is told what its guest believes",
        ask("web", "discover", mac=MAC),
        V.ANSWERED,
        told("web", "offer", *lease(router=GATEWAY), **CLONE),
    ),
    _clone(
        "another of the same, with a network that its gateway is in",
        ask("db", "request", ("requested_addr", GUEST), ("server_id", GATEWAY), mac=MAC),
        V.ANSWERED,
        told("db", "ack", *lease(600, 16, GATEWAY, True, dns=DNS2), **CLONE),
        "db",
    ),
    _clone(
        "a clone renews at its gateway",
        ask("web", "request", **CLONE_HOME),
        V.ANSWERED,
        told("web", "ack", *lease(router=GATEWAY), ciaddr=GUEST, **CLONE),
    ),
    _clone(
        "a clone that asks for what the router knows it by",
        ask("web", "request", MINE, mac=MAC),
        V.DHCP_NAK,
        told("web", "nak", all_=True, **CLONE),
    ),
    _clone(
        "a clone that renews what the router knows it by",
        ask("web", "request", **{**CLONE_HOME, "src": WEB, "ciaddr": WEB}),
        V.DHCP_NAK,
        told("web", "nak", all_=True, **CLONE),
    ),
    _clone(
        "a clone at the router's own address", ask("web", "request", **{**CLONE_HOME, "dst": DOM0}), V.DROP_NO_DOMAIN
    ),
    _clone("a clone by its router's MAC", DISCOVER, V.DROP_SRC_MAC),
    _clone(
        "a clone for its router's MAC",
        ask("web", "discover", mac=MAC, chaddr=raw_mac(NODES["web"].mac)),
        V.DROP_DHCP_CLIENT,
    ),
)
CASES = (*ANSWERED, *REFUSED, *SILENT, *CLONES)


def _router(case: Dhcp) -> Router:
    return replace(world.router(case.rules, clones=case.clones), **case.change)


@pytest.mark.inv(1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_model(case: Dhcp) -> None:
    check(case, on_model(case, _router(case)))


@pytest.mark.inv(1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_object(case: Dhcp, bench: Bench) -> None:
    seen = on_bench(bench, case, _router(case))
    check(case, seen)
    assert replace(on_model(case, _router(case)), target=seen.target) == seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_native(case: Dhcp, native: Native) -> None:
    seen = on_bench(native, case, _router(case))
    check(case, seen)
    assert replace(on_model(case, _router(case)), target=seen.target) == seen


BURST = Limit.DHCP_PER_S + 1
WRONG = _damaged(DISCOVER, _set(239, 0))


@pytest.mark.inv(7)
def test_a_flood_is_answered_at_a_rate_on_the_model() -> None:
    router, state, ended = world.router(XEN), State(), []
    for _ in range(BURST + 3):
        result = step(router, state, NOW, 1, bytes(WRONG))
        state, ended = result.state, [*ended, result.verdict]
    assert ended == [V.DROP_DHCP_HEADER] * BURST + [V.DROP_DHCP_TOO_FAST] * 3
    assert step(router, state, NOW, 2, bytes(ask("db", "discover"))).verdict is V.ANSWERED, "each has its own rate"
    late = step(router, state, NOW + SECOND // Limit.DHCP_PER_S, 1, bytes(DISCOVER))
    assert late.verdict is V.ANSWERED
    assert (
        step(router, late.state, NOW + SECOND // Limit.DHCP_PER_S, 1, bytes(DISCOVER)).verdict is V.DROP_DHCP_TOO_FAST
    )


@pytest.mark.inv(7)
def test_a_flood_is_answered_at_a_rate_natively(native: Native) -> None:
    native.reset(world.router(XEN))
    native.clock(NOW)
    ended = [native.send(1, bytes(DISCOVER)).verdict for _ in range(BURST + 3)]
    assert ended == [V.ANSWERED] * BURST + [V.DROP_DHCP_TOO_FAST] * 3
    assert native.send(2, bytes(ask("db", "discover"))).verdict is V.ANSWERED
    native.clock(NOW + SECOND // Limit.DHCP_PER_S)
    assert [native.send(1, bytes(DISCOVER)).verdict for _ in "12"] == [V.ANSWERED, V.DROP_DHCP_TOO_FAST]


@pytest.mark.inv(7)
def test_a_flood_is_answered_at_a_rate(bench: Bench) -> None:
    """The object's clock goes on by itself."""
    bench.reset(world.router(XEN))
    began = time.monotonic()
    ended = Counter(bench.send(1, bytes(DISCOVER)).verdict.name for _ in range(200))
    most = BURST + (time.monotonic() - began) * Limit.DHCP_PER_S + 1
    assert BURST <= ended["ANSWERED"] <= most and ended.keys() <= {"ANSWERED", "DROP_DHCP_TOO_FAST"}, ended
    assert bench.send(2, bytes(ask("db", "discover"))).verdict is V.ANSWERED


@pytest.mark.parametrize("linear", [14, 34, 41, 42, 54, 86, 200, 283])
def test_a_short_linear_part_makes_no_difference(native: Native, linear: int) -> None:
    """The sender decides how much of a frame lies in the linear part."""
    for case in CASES:
        native.reset(_router(case))
        seen = native.send(world.SLOTS[case.sender], bytes(case.packet), linear=min(linear, len(case.packet)))
        check(case, seen)


def test_a_checksum_that_is_left_to_the_interface_is_so_in_the_answer(native: Native) -> None:
    """A guest's own stack leaves it, when it renews; whoever sends the answer on completes it as it would have."""
    native.reset(world.router(XEN))
    asked = bytearray(bytes(COMPLETE))
    asked[40:42] = b"\x12\x34"  # whatever it is
    seen = native.send(1, bytes(asked), partial=1, csum_start=34, csum_offset=6)
    whole = bytes(told("web", "ack", *lease(), ciaddr=WEB))
    assert seen.frame is not None and seen.frame[:40] + seen.frame[42:] == whole[:40] + whole[42:]
    pseudo = seen.frame[26:34] + b"\0\x11" + seen.frame[38:40]
    assert int.from_bytes(seen.frame[40:42], "big") == ones_sum(pseudo)
    elsewhere = native.send(1, bytes(COMPLETE), partial=1, csum_start=34, csum_offset=16)
    assert (elsewhere.verdict, elsewhere.frame) == (V.DROP_OFFLOAD, None)
    gso = native.send(1, bytes(COMPLETE), partial=1, csum_start=34, csum_offset=6, gso_size=100)
    assert (gso.verdict, gso.frame) == (V.DROP_OFFLOAD, None)


def test_no_memory_is_no_answer(native: Native) -> None:
    """Each helper may fail: the frame is dropped then, whatever has become of it."""
    for at in range(1, 40):
        native.reset(world.router(XEN))
        seen = native.send(1, bytes(DISCOVER), fail_at=at)
        if seen.verdict is V.ANSWERED:
            assert at > 5, "helpers that can fail were reached"
            return
        assert seen.frame is None and seen.verdict.name.startswith("DROP_"), (at, seen)
    raise AssertionError("it is never answered")
