"""DHCP with anything that a guest may say: what the native build answers is read by scapy, which knows nothing of how it
was made, and held to what the guest is to be told; damaged messages end as the model says.

VFR_PACKETS says how many of each (the default takes some seconds), VFR_SEED with which to begin.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from support import world
from support.dhcp import ALL, BROADCAST, EVERYBODY, NOBODY, ask
from support.native import Native
from support.world import GATEWAY_MAC, NODES

from vfr.settings import WEEK_S, Dhcp
from vfr.spec import Router, State, step

MESSAGES = int(os.environ.get("VFR_PACKETS", "600"))
SEED = int(os.environ.get("VFR_SEED", "0"))
START = 10**15
APART_NS = 200_000_000  # more than the rate of one guest's needs
WEB = world.SLOTS["web"]
# What scapy calls them.
TYPES = {"offer": 2, "ack": 5, "nak": 6}


@dataclass(frozen=True, slots=True)
class Guest:
    """Who the guest is, as it knows itself, and whom it knows."""

    address: str
    mac: str
    router: str
    dhcp: Dhcp
    mtu: int


def _any_address(rng: Random) -> str:
    return str(IPv4Address(rng.choice((0x0A000000, 0xA9FE0100, 0xC0000200, 0xAC100000)) + rng.randrange(2, 250)))


def _any_dhcp(rng: Random) -> Dhcp:
    servers = tuple(IPv4Address(0xC0000200 + n) for n in rng.sample(range(1, 255), rng.randrange(4)))
    return Dhcp(True, servers, rng.randrange(20, WEEK_S + 1), rng.choice((16, 32)))


def _world(rng: Random) -> tuple[Router, Guest]:
    """A router whose web is anybody, and what its guest is to be told."""
    router = world.router("allow any -> lan\n", clones=rng.random() < 0.5)
    dhcp, mtu = _any_dhcp(rng), rng.randrange(68, 9001)
    web = replace(router.domains[WEB], dhcp=dhcp)
    if web.is_clone:
        web = replace(web, guest_address=int(IPv4Address(_any_address(rng))))
    router = replace(router, uplink_mtu=mtu, domains={**router.domains, WEB: web})
    told = (str(IPv4Address(web.seen_address)), web.seen_mac.hex(":"), str(IPv4Address(router.gateway_seen(web))))
    return router, Guest(*told, dhcp, min(mtu, web.mtu))


@dataclass(frozen=True, slots=True)
class Asked:
    """A message, and the answer that is due: its type and whether it goes to everybody."""

    frame: bytes
    due: str
    to_all: bool
    fields: dict[str, Any]
    client_id: bytes | None


def _ask(rng: Random, guest: Guest) -> Asked:
    """What a client may send that has read RFC 2131, in any state."""
    other = next(a for a in iter(lambda: _any_address(rng), None) if a != guest.address)
    named = guest.address if rng.random() < 0.7 else other
    kind = rng.choice(("discover", "selecting", "reboot", "renewing", "rebinding", "inform"))
    has = named if kind in ("renewing", "rebinding", "inform") else NOBODY
    said: list[Any] = []
    if kind in ("selecting", "reboot") or (kind == "discover" and rng.random() < 0.5):
        said.append(("requested_addr", named))
    if kind == "selecting":
        said.append(("server_id", guest.router))
    client_id = rng.randbytes(rng.choice((2, 7, 19, 240, rng.randrange(2, 241)))) if rng.random() < 0.7 else None
    said += [("client_id", client_id)] if client_id else []
    said += [("hostname", b"h" * rng.randrange(1, 60)), ("param_req_list", [1, 3, 6])][: rng.randrange(3)]
    said += ["pad"] * rng.randrange(4)
    rng.shuffle(said)
    flags, xid = rng.choice((0, BROADCAST)), rng.randrange(1 << 32)
    straight = kind == "renewing" or (kind == "inform" and rng.random() < 0.5)
    where = {"src": has, "dst": guest.router if straight else ALL, "to": GATEWAY_MAC if straight else EVERYBODY}
    message = {"discover": "discover", "inform": "inform"}.get(kind, "request")
    fields = {"xid": xid, "flags": flags, "ciaddr": has, "secs": rng.randrange(1 << 16)}
    packet = ask("web", message, *said, mac=guest.mac, after=bytes(rng.randrange(200)), **where, **fields)
    due = "offer" if kind == "discover" else "ack" if named == guest.address else "nak"
    to_all = due == "nak" or (has == NOBODY and flags == BROADCAST)
    return Asked(bytes(packet), due, to_all, {**fields, "kind": kind}, client_id)


def _options(packet: Any) -> dict[str, Any]:
    """By scapy's names; each comes once."""
    found: dict[str, Any] = {}
    for option in packet[DHCP].options:
        if isinstance(option, tuple):
            assert option[0] not in found, f"{option[0]} comes twice"
            found[option[0]] = option[1] if len(option) == 2 else option[1:]
    return found


def _check_addresses(answer: Any, guest: Guest, asked: Asked) -> None:
    assert (answer.src, answer.dst) == (GATEWAY_MAC, EVERYBODY if asked.to_all else guest.mac)
    assert (answer[IP].src, answer[IP].dst) == (guest.router, ALL if asked.to_all else guest.address)
    assert (answer[UDP].sport, answer[UDP].dport) == (67, 68)
    again = answer.copy()
    del again[IP].chksum, again[UDP].chksum, again[IP].len, again[UDP].len
    assert bytes(Ether(bytes(again))) == bytes(answer), "lengths and checksums"
    assert answer[UDP].len - 8 >= 300 and answer[IP].len <= 576


def _check_told(answer: Any, guest: Guest, asked: Asked) -> None:
    bootp, said = answer[BOOTP], _options(answer)
    is_ours, informs = asked.due != "nak", asked.fields["kind"] == "inform"
    assert (bootp.op, bootp.xid, int(bootp.flags)) == (2, asked.fields["xid"], asked.fields["flags"])
    assert bootp.chaddr[:6].hex(":") == guest.mac and not any(bootp.sname) and not any(bootp.file)
    assert bootp.yiaddr == (guest.address if is_ours and not informs else NOBODY)
    assert bootp.ciaddr == (asked.fields["ciaddr"] if asked.due == "ack" else NOBODY)
    assert (bootp.siaddr, bootp.giaddr) == (NOBODY, NOBODY)
    wanted: dict[str, Any] = {"message-type": TYPES[asked.due], "server_id": guest.router}
    if asked.client_id is not None:
        wanted["client_id"] = asked.client_id
    if is_ours:
        net = IPv4Network(f"{guest.address}/{guest.dhcp.prefix}", strict=False)
        wanted |= {"subnet_mask": str(net.netmask), "router": guest.router, "interface-mtu": guest.mtu}
        wanted |= {} if informs else {"lease_time": guest.dhcp.lease}
        if IPv4Address(guest.router) not in net:
            wanted["classless_static_routes"] = [f"{guest.router}/32:0.0.0.0", f"0.0.0.0/0:{guest.router}"]
        servers = tuple(map(str, guest.dhcp.dns))
        wanted |= {"name_server": servers if len(servers) > 1 else servers[0]} if servers else {}
    assert said == wanted
    assert answer[DHCP].options[-1] in ("end", "pad") and "end" in answer[DHCP].options


def test_who_asks_by_the_book_is_told_by_the_book(native: Native) -> None:
    ended, now = Counter[str](), START
    for number in range(MESSAGES):
        rng, now = Random(f"{SEED} {number}"), now + APART_NS
        if number % 20 == 0:
            router, guest = _world(rng)
            native.reset(router)
        asked = _ask(rng, guest)
        native.clock(now)
        seen = native.send(WEB, asked.frame, linear=rng.choice((0, 14, 42, 100)))
        assert seen.frame is not None, (seen.verdict.name, Ether(asked.frame).show(dump=True))
        answer = Ether(seen.frame)
        assert seen.verdict.name == ("DHCP_NAK" if asked.due == "nak" else "ANSWERED"), answer.show(dump=True)
        _check_addresses(answer, guest, asked)
        _check_told(answer, guest, asked)
        ended[f"{asked.fields['kind']} {asked.due}"] += 1
    assert len(ended) == 11, ended  # each kind with either answer, but for DISCOVER, which is never refused


def _damaged(rng: Random, frame: bytes) -> bytes:
    """Cut, longer, or with other bytes, above all among the options; its checksums may be right again."""
    out = bytearray(frame)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(282, len(out)) if rng.random() < 0.7 else rng.randrange(14, len(out))
        out[at] = rng.choice((0, 1, 50, 52, 53, 54, 61, 255, rng.randrange(256)))
    if rng.random() < 0.2:
        del out[rng.randrange(42, len(out)) :]
    if rng.random() < 0.8:
        whole = Ether(bytes(out))
        for layer in (IP, UDP):
            if layer in whole:
                del whole[layer].chksum
        out = bytearray(bytes(whole))
    return bytes(out)


def test_whatever_is_damaged_ends_as_the_model_says(native: Native) -> None:
    ended, now = Counter[str](), START
    for number in range(MESSAGES):
        rng, now = Random(f"{SEED} damaged {number}"), now + APART_NS
        if number % 20 == 0:
            router, guest = _world(rng)
            native.reset(router)
        frame = _damaged(rng, _ask(rng, guest).frame)
        native.clock(now)
        seen = native.send(WEB, frame)
        said = step(router, State(), now, WEB, frame)
        assert (seen.verdict.name, seen.frame) == (said.verdict.name, said.frame), frame.hex()
        ended[seen.verdict.name] += 1
    assert {"ANSWERED", "DHCP_NAK", "DROP_DHCP_OPTIONS", "DROP_DHCP_CHECKSUM", "DROP_DHCP_CLIENT"} <= ended.keys(), (
        ended
    )


def test_another_address_is_never_given(native: Native) -> None:
    """Whatever is asked, by whomever of them."""
    router = world.router("")
    native.reset(router)
    now = START
    for number in range(300):
        rng, now = Random(f"{SEED} theirs {number}"), now + APART_NS
        name = rng.choice(("web", "db", "odd"))
        native.clock(now)
        wish = NODES[rng.choice(("web", "db", "odd", "dom0"))].ip
        asked = ask(
            name, rng.choice(("discover", "request", "inform")), ("requested_addr", wish), ciaddr=wish, src=wish
        )
        seen = native.send(world.SLOTS[name], bytes(asked))
        if seen.frame is not None:
            assert Ether(seen.frame)[BOOTP].yiaddr in (NODES[name].ip, NOBODY)
            assert seen.target == world.SLOTS[name]
