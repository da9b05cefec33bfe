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
FIN, SYN, RST, ACK = 1, 2, 4, 16
ECHO, ECHO_REPLY = 8, 0
ICMP_ERRORS = (3, 4, 5, 11, 12)
_L4 = 34
_CHECKSUM_AT = {TCP: _L4 + 16, UDP: _L4 + 6, ICMP: _L4 + 2}


def ones_sum(data: bytes) -> int:
    """The 16-bit ones' complement sum."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _adjusted(checksum: int, old: bytes, new: bytes) -> int:
    """RFC 1624: HC' = ~(~HC + ~m + m')."""
    inverted = bytes(b ^ 0xFF for b in old)
    return ~ones_sum(struct.pack(">H", ~checksum & 0xFFFF) + inverted + new) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet without options, parsed. `sport` and `dport` are the packet's own; for echo the
    identifier stands on the side that the answer goes to, and the other is 0."""

    src: int
    dst: int
    protocol: int
    sport: int
    dport: int
    flags: int = 0
    icmp_type: int | None = None

    @property
    def opening(self) -> bool:
        """Whether it may begin a conversation."""
        if self.protocol == TCP:
            return self.flags & (SYN | ACK | RST | FIN) == SYN
        return self.protocol == UDP or self.icmp_type == ECHO


def _put(frame: bytearray, at: int, new: bytes) -> bytes:
    old = bytes(frame[at : at + len(new)])
    frame[at : at + len(new)] = new
    return old


def _fix_l4(frame: bytearray, protocol: int, old: bytes, new: bytes) -> None:
    at = _CHECKSUM_AT[protocol]
    checksum = int.from_bytes(frame[at : at + 2], "big")
    if protocol == UDP and checksum == 0:
        return
    fixed = _adjusted(checksum, old, new)
    frame[at : at + 2] = (fixed or (0xFFFF if protocol == UDP else 0)).to_bytes(2, "big")


def rewrite(frame: bytes, protocol: int, source: bool, address: int, port: int) -> bytes:
    """The frame with another source, or target, address and port (echo: identifier)."""
    out = bytearray(frame)
    new_address = address.to_bytes(4, "big")
    old = _put(out, 26 if source else 30, new_address)
    checksum = int.from_bytes(out[24:26], "big")
    out[24:26] = _adjusted(checksum, old, new_address).to_bytes(2, "big")
    if protocol != ICMP:
        _fix_l4(out, protocol, old, new_address)
    at = _L4 + 4 if protocol == ICMP else _L4 if source else _L4 + 2
    new_port = port.to_bytes(2, "big")
    old = _put(out, at, new_port)
    if old != new_port:
        _fix_l4(out, protocol, old, new_port)
    return bytes(out)


def hop(frame: bytes) -> bytes:
    """One hop further: the TTL falls by one."""
    out = bytearray(frame)
    old = bytes(out[22:24])
    out[22] -= 1
    checksum = int.from_bytes(out[24:26], "big")
    out[24:26] = _adjusted(checksum, old, bytes(out[22:24])).to_bytes(2, "big")
    return bytes(out)
