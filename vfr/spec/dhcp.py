"""DHCP as the router answers it: one message in, its fate and the answer out.

Readings taken. A VIF has one address, so a DISCOVER is offered that, whatever it asks for (RFC 2131 4.3.1), and a REQUEST
is right if it names no other: in the requested address (selecting, init-reboot) or in `ciaddr` (renewing, rebinding).
The router knows all its addresses, so it never stays silent where it could say NAK (4.3.2). An INFORM from another
address gets a NAK too. What is not asked for in the parameter request list is told all the same (4.3.1 allows what was
configured). Options need an end option (RFC 2132 3.2); of those that are read, each comes once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vfr._abi import Limit
from vfr._abi import Verdict as V
from vfr.settings import Dhcp
from vfr.spec.packet import GATEWAY_MAC, L4, UDP, Packet, long, ones_sum, word

SERVER, CLIENT = 67, 68
FIXED, COOKIE, OPTIONS = 42, 278, 282
EVERYBODY = 0xFFFFFFFF
BROADCAST_FLAG = 0x8000
LEAST = 300
CLIENT_ID_MAX = 240
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
MASK, ROUTER, DNS, MTU, REQUESTED, LEASE, OVERLOAD, MESSAGE, SERVER_ID, CLIENT_ID, ROUTES, END = (
    1, 3, 6, 26, 50, 51, 52, 53, 54, 61, 121, 255,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """What a domain's guest is told: who it is, whom it takes for the router, the MTU, and the rest."""

    address: int
    mac: bytes
    router: int
    mtu: int
    dhcp: Dhcp


class WrongOptionsError(ValueError):
    """Options that are not in order."""


def _split(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(code, value) of each option up to the end."""
    at = 0
    while True:
        if at >= len(raw):
            raise WrongOptionsError("no end")
        code = raw[at]
        if code == END:
            return
        if code == 0:
            at += 1
            continue
        if at + 1 >= len(raw) or at + 2 + raw[at + 1] > len(raw):
            raise WrongOptionsError("past the end")
        yield code, raw[at + 2 : at + 2 + raw[at + 1]]
        at += 2 + raw[at + 1]


_LENGTHS = {
    REQUESTED: range(4, 5),
    MESSAGE: range(1, 2),
    SERVER_ID: range(4, 5),
    CLIENT_ID: range(2, CLIENT_ID_MAX + 1),
}


def read_options(raw: bytes) -> dict[int, bytes]:
    """Those that mean something here, by code. WrongOptionsError if they are not in order."""
    found: dict[int, bytes] = {}
    for code, value in _split(raw):
        if code == OVERLOAD:
            raise WrongOptionsError("overload")
        if code not in _LENGTHS:
            continue
        if code in found or len(value) not in _LENGTHS[code] or (code != CLIENT_ID and not any(value)):
            raise WrongOptionsError(f"option {code}")
        found[code] = value
    if MESSAGE not in found:
        raise WrongOptionsError("no message type")
    return found


def is_dhcp(frame: bytes, p: Packet, router: int, dhcp: Dhcp | None) -> bool:
    """Whether a guest's packet is for the router's DHCP."""
    to_us = p.dst in (EVERYBODY, router) and len(frame) >= L4 + 8
    return dhcp is not None and p.protocol == UDP and not p.later and to_us and word(frame, L4 + 2) == SERVER


def _check_fixed(frame: bytes, p: Packet, told: Told) -> V | None:
    size, ciaddr = word(frame, L4 + 4), long(frame, FIXED + 12)
    if (
        len(frame) < OPTIONS
        or not 249 <= size <= 248 + Limit.DHCP_OPTIONS
        or frame[COOKIE:OPTIONS] != b"\x63\x82\x53\x63"
    ):
        return V.DROP_DHCP_HEADER
    if word(frame, L4) != CLIENT or frame[FIXED : FIXED + 3] != b"\1\1\6" or long(frame, FIXED + 24):
        return V.DROP_DHCP_HEADER
    if frame[FIXED + 28 : FIXED + 34] != told.mac:
        return V.DROP_DHCP_CLIENT
    if p.src not in (0, told.address, ciaddr):
        return V.DROP_SRC_IP
    pseudo = frame[26:34] + struct.pack(">HH", UDP, size)
    wrong = word(frame, L4 + 6) and ones_sum(pseudo + frame[L4 : L4 + size]) != 0xFFFF
    return V.DROP_DHCP_CHECKSUM if wrong else None


def _decide(options: dict[int, bytes], has: int, told: Told) -> tuple[V, int]:
    """The verdict, and the answer's message type, 0 for none."""
    message, own = options[MESSAGE][0], told.address.to_bytes(4, "big")
    named = [address for address in (options.get(REQUESTED), has.to_bytes(4, "big")) if address and any(address)]
    if message == DISCOVER:
        return V.ANSWERED, OFFER
    if message in (RELEASE, DECLINE):
        return V.DROP_DHCP_SILENT, 0
    if message not in (REQUEST, INFORM):
        return V.DROP_DHCP_OPTIONS, 0
    if message == REQUEST and options.get(SERVER_ID, told.router.to_bytes(4, "big")) != told.router.to_bytes(4, "big"):
        return V.DROP_DHCP_SILENT, 0
    if not (named if message == REQUEST else has):
        return V.DROP_DHCP_OPTIONS, 0
    return (V.ANSWERED, ACK) if all(address == own for address in named) else (V.DHCP_NAK, NAK)


def _option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def _answer_options(told: Told, message: int, reply: int) -> bytes:
    router, dhcp = told.router.to_bytes(4, "big"), told.dhcp
    made = _option(MESSAGE, bytes([reply])) + _option(SERVER_ID, router)
    if reply == NAK:
        return made
    net = IPv4Network((told.address, dhcp.prefix), strict=False)
    if message != INFORM:
        made += _option(LEASE, dhcp.lease.to_bytes(4, "big"))
    made += _option(MASK, net.netmask.packed)
    if IPv4Address(told.router) not in net:
        made += _option(ROUTES, b"\x20" + router + bytes(4) + b"\0" + router)
    made += _option(ROUTER, router) + _option(MTU, told.mtu.to_bytes(2, "big"))
    return made + (_option(DNS, b"".join(server.packed for server in dhcp.dns)) if dhcp.dns else b"")


def _in_udp(src: int, dst: int, load: bytes) -> bytes:
    """An IP packet with a UDP datagram from server to client."""
    udp = struct.pack(">HHHH", SERVER, CLIENT, 8 + len(load), 0) + load
    pseudo = struct.pack(">IIHH", src, dst, UDP, len(udp))
    checksum = ~ones_sum(pseudo + udp) & 0xFFFF or 0xFFFF
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, UDP, 0, src, dst)
    head = head[:10] + (~ones_sum(head) & 0xFFFF).to_bytes(2, "big") + head[12:]
    return head + udp[:6] + checksum.to_bytes(2, "big") + udp[8:]


def answer(frame: bytes, p: Packet, told: Told) -> tuple[V, bytes | None]:
    """What becomes of a guest's DHCP message that is whole IP and UDP."""
    wrong = _check_fixed(frame, p, told)
    if wrong is not None:
        return wrong, None
    try:
        options = read_options(frame[OPTIONS : L4 + word(frame, L4 + 4)])
    except WrongOptionsError:
        return V.DROP_DHCP_OPTIONS, None
    message, ciaddr, flags = options[MESSAGE][0], long(frame, FIXED + 12), word(frame, FIXED + 10)
    verdict, reply = _decide(options, ciaddr or (p.src if message == INFORM else 0), told)
    if not reply:
        return verdict, None
    given = told.address if reply != NAK and message != INFORM else 0
    to_all = reply == NAK or (message != INFORM and not ciaddr and flags & BROADCAST_FLAG)
    fixed = struct.pack(">BBBB4sHHIIII", 2, 1, 6, 0, frame[46:50], 0, flags, ciaddr if reply == ACK else 0, given, 0, 0)
    load = fixed + frame[FIXED + 28 : FIXED + 44] + bytes(192) + frame[COOKIE:OPTIONS]
    load += _answer_options(told, message, reply)
    load += (_option(CLIENT_ID, options[CLIENT_ID]) if CLIENT_ID in options else b"") + bytes([END])
    packet = _in_udp(told.router, EVERYBODY if to_all else told.address, load.ljust(LEAST, b"\0"))
    return verdict, (b"\xff" * 6 if to_all else told.mac) + GATEWAY_MAC + frame[12:14] + packet
