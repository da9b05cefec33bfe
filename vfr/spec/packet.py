"""Frames as the model sees them: bytes in, named fields, bytes out with checksums kept true.

A checksum that was right stays right and one that was wrong stays wrong, as a router must have it:
changes are applied as differences (RFC 1624), never by computing a sum anew.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

GATEWAY_MAC = bytes.fromhex("feffffffffff")
ETHER_IP, ETHER_ARP, ETHER_IPV6 = 0x0800, 0x0806, 0x86DD
VLANS = (0x8100, 0x88A8, 0x9100)
ICMP, TCP, UDP = 1, 6, 17
PROTOCOLS = (ICMP, TCP, UDP)
FIN, SYN, RST, ACK = 1, 2, 4, 16
ECHO, ECHO_REPLY, REDIRECT = 8, 0, 5
TIMESTAMP, TIMESTAMP_REPLY = 13, 14
REQUESTS, REPLIES = {ECHO: 0, TIMESTAMP: 13}, {ECHO_REPLY: 0, TIMESTAMP_REPLY: 13}
UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 11, 12
ICMP_ERRORS = (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
MORE, OFFSET, DONT = 0x2000, 0x1FFF, 0x4000
L3, L4, QUOTED = 14, 34, 42
QUOTE_MAX = 548
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2}


def word(data: bytes | bytearray, at: int) -> int:
    """Two bytes in network order."""
    return int.from_bytes(data[at : at + 2], "big")


def long(data: bytes, at: int) -> int:
    """Four bytes in network order."""
    return int.from_bytes(data[at : at + 4], "big")


def ones_sum(data: bytes) -> int:
    """The 16-bit ones' complement sum; an odd byte at the end is the high one of a word."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def adjusted(checksum: int, old: bytes, new: bytes) -> int:
    """RFC 1624: HC' = ~(~HC + ~m + m')."""
    inverted = bytes(b ^ 0xFF for b in old)
    return ~ones_sum(struct.pack(">H", ~checksum & 0xFFFF) + inverted + new) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet without options, parsed. `sport` and `dport` are the packet's own; of ICMP the
    identifier stands on the side that the answer goes to, and on the other 0 for echo, 13 for timestamps. Of an ICMP error (`error`)
    `src`, ports and protocol are those of an answer to what it quotes, whose L4 header is at `quoted_l4`.
    `load` is how many bytes a TCP packet carries."""

    src: int
    dst: int
    protocol: int
    length: int
    ttl: int
    id: int
    fragment: int
    sport: int = 0
    dport: int = 0
    flags: int = 0
    icmp_type: int | None = None
    seq: int = 0
    ack: int = 0
    load: int = 0
    error: bool = False
    quoted_l4: int = 0

    @property
    def first(self) -> bool:
        """Whether it is the first fragment of several."""
        return self.fragment & (MORE | OFFSET) == MORE

    @property
    def later(self) -> bool:
        """Whether it is any other fragment."""
        return bool(self.fragment & OFFSET)

    @property
    def offset(self) -> int:
        """Where in the datagram a fragment begins, in bytes."""
        return (self.fragment & OFFSET) * 8

    @property
    def opening(self) -> bool:
        """Whether it may begin a conversation."""
        if self.error:
            return False
        if self.protocol == TCP:
            return self.flags & (SYN | ACK | RST | FIN) == SYN
        return self.protocol != ICMP or self.icmp_type in REQUESTS


def parse_ip(frame: bytes) -> Packet:
    """The IP header's fields; `frame` has at least 34 bytes."""
    return Packet(
        src=long(frame, 26),
        dst=long(frame, 30),
        protocol=frame[23],
        length=word(frame, 16),
        ttl=frame[22],
        id=word(frame, 18),
        fragment=word(frame, 20),
    )


def put(frame: bytearray, at: int, new: bytes) -> bytes:
    """Writes over some bytes and returns what was there."""
    old = bytes(frame[at : at + len(new)])
    frame[at : at + len(new)] = new
    return old


def fix(frame: bytearray, at: int, old: bytes, new: bytes, zero_is_none: bool = False) -> None:
    """Makes the checksum at `at` say that `old` became `new`."""
    checksum = word(frame, at)
    if zero_is_none and checksum == 0:
        return
    fixed = adjusted(checksum, old, new)
    frame[at : at + 2] = (fixed or (0xFFFF if zero_is_none else 0)).to_bytes(2, "big")


def rewrite(frame: bytes, p: Packet, source: bool, address: int, port: int) -> bytes:
    """The frame with another source, or target, address and port (echo: identifier)."""
    out = bytearray(frame)
    new_address, new_port = address.to_bytes(4, "big"), port.to_bytes(2, "big")
    old = put(out, 26 if source else 30, new_address)
    fix(out, 24, old, new_address)
    if p.later or p.error:
        return bytes(out)
    checksum_at = L4 + CHECKSUM_AT[p.protocol]
    if p.protocol != ICMP:
        fix(out, checksum_at, old, new_address, p.protocol == UDP)
    at = L4 + 4 if p.protocol == ICMP else L4 if source else L4 + 2
    old = put(out, at, new_port)
    if old != new_port:
        fix(out, checksum_at, old, new_port, p.protocol == UDP)
    return bytes(out)


def readdress(frame: bytes, p: Packet, source: bool, address: int) -> bytes:
    """The frame with another source, or target, address, whatever its ports."""
    out, new = bytearray(frame), address.to_bytes(4, "big")
    old = put(out, 26 if source else 30, new)
    fix(out, 24, old, new)
    if p.protocol != ICMP and not p.later and not p.error:
        fix(out, L4 + CHECKSUM_AT[p.protocol], old, new, p.protocol == UDP)
    return bytes(out)


def requote(frame: bytes, p: Packet, outward: bool, address: int, port: int | None = None) -> bytes:
    """An ICMP error whose quoted packet has another target (outward) or source (inward); without a port, it stays."""
    out = bytearray(frame)
    port_at = p.quoted_l4 + (4 if p.protocol == ICMP else 2 if outward else 0)
    new_address, new_port = (
        address.to_bytes(4, "big"),
        (word(out, port_at) if port is None else port).to_bytes(2, "big"),
    )
    before = bytes(out[L4 + 4 : L3 + p.length])
    old = put(out, QUOTED + (16 if outward else 12), new_address)
    fix(out, QUOTED + 10, old, new_address)
    old_port = put(out, port_at, new_port)
    checksum_at = p.quoted_l4 + CHECKSUM_AT[p.protocol]
    if checksum_at + 2 <= L3 + p.length:
        changed_from = old_port if p.protocol == ICMP else old + old_port
        changed_to = new_port if p.protocol == ICMP else new_address + new_port
        fix(out, checksum_at, changed_from, changed_to, p.protocol == UDP)
    after = bytes(out[L4 + 4 : L3 + p.length])
    pad = b"\0" * (len(before) % 2)
    fix(out, L4 + 2, before + pad, after + pad)
    return bytes(out)


def with_ttl(frame: bytes, ttl: int) -> bytes:
    """The frame with another TTL."""
    out = bytearray(frame)
    old = bytes(out[22:24])
    out[22] = ttl
    fix(out, 24, old, bytes(out[22:24]))
    return bytes(out)


def with_id(frame: bytes, identification: int) -> bytes:
    """The frame with another identification."""
    out = bytearray(frame)
    new = identification.to_bytes(2, "big")
    old = put(out, 18, new)
    if old != new:
        fix(out, 24, old, new)
    return bytes(out)


def icmp_error(frame: bytes, kind: int, code: int, mtu: int, source: int, target: int) -> bytes:
    """The ICMP error about a frame's packet, quoting as much as fits in 576 bytes, behind the same
    Ethernet header."""
    quote = frame[L3 : L3 + min(word(frame, 16), QUOTE_MAX)]
    body = struct.pack(">BBHHH", kind, code, 0, 0, mtu) + quote
    body = body[:2] + (~ones_sum(body) & 0xFFFF).to_bytes(2, "big") + body[4:]
    head = struct.pack(">BBHHHBBHII", 0x45, 0xC0, 20 + len(body), 0, DONT, 64, ICMP, 0, source, target)
    head = head[:10] + (~ones_sum(head) & 0xFFFF).to_bytes(2, "big") + head[12:]
    return frame[:L3] + head + body
