"""What was on the wire: a capture's packets as bytes, and what their own headers say is wrong with them."""

from __future__ import annotations

from pathlib import Path

from scapy.utils import RawPcapReader

from vfr.spec.packet import ones_sum

ICMP, TCP, UDP = 1, 6, 17
_CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6}


def packets(file: Path) -> list[bytes]:
    """The IPv4 packets of an Ethernet capture, each from its IP header on, without the frame's padding."""
    with RawPcapReader(str(file)) as reader:
        frames = [frame for frame, _ in reader if frame[12:14] == b"\x08\x00"]
    return [frame[14 : 14 + int.from_bytes(frame[16:18], "big")] for frame in frames]


def source(packet: bytes) -> tuple[str, int]:
    """Address and port."""
    return ".".join(str(b) for b in packet[12:16]), int.from_bytes(packet[20:22], "big")


def identification(packet: bytes) -> int:
    return int.from_bytes(packet[4:6], "big")


def is_fragment(packet: bytes) -> bool:
    return bool(int.from_bytes(packet[6:8], "big") & 0x3FFF)


def load(packet: bytes) -> bytes:
    """What a whole UDP or TCP packet without IP options carries."""
    return packet[28:] if packet[9] == UDP else packet[20 + (packet[32] >> 4) * 4 :]


def pseudo_sum(packet: bytes) -> int:
    """The ones' complement sum of the pseudo header: all that a checksum still to be completed has."""
    length = len(packet) - 20
    return ones_sum(packet[12:20] + bytes([0, packet[9]]) + length.to_bytes(2, "big"))


def is_partial(packet: bytes) -> bool:
    """Whether a whole packet's L4 checksum is still to be completed, from a right beginning."""
    at = 20 + _CHECKSUM_AT[packet[9]]
    return int.from_bytes(packet[at : at + 2], "big") == pseudo_sum(packet)


def flaws(packet: bytes) -> list[str]:
    """What is wrong with a packet without IP options, computed from its bytes as a receiver would."""
    found = [] if ones_sum(packet[:20]) == 0xFFFF else ["IP header checksum"]
    if is_fragment(packet):
        return found
    l4, protocol = packet[20:], packet[9]
    if protocol == UDP and int.from_bytes(l4[4:6], "big") != len(l4):
        found.append("UDP length")
    if protocol == UDP and l4[6:8] == b"\0\0":
        return [*found, "no UDP checksum"]
    begin = b"" if protocol == ICMP else pseudo_sum(packet).to_bytes(2, "big")
    return found if ones_sum(begin + l4) == 0xFFFF else [*found, "L4 checksum"]
