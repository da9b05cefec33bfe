"""Ethernet frames as an ordinary guest or LAN host sends them, whole and in order. Pure: bytes out, fields in.

What is here begins a conversation, or answers the packet that did.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from vfr.policy.rules import ICMP, ICMP_REQUESTS, ICMP_TYPES, PROTOCOL_NAMES, TCP, UDP
from vfr.spec.packet import ones_sum

ETHER_IP, _ETHER_ARP = 0x0800, 0x0806
TTL = 64
_DONT_FRAGMENT, _SYN, _ACK = 0x4000, 0x02, 0x10
_LOAD = bytes(range(18))  # with it, no frame is shorter than Ethernet's 60 bytes
_REPLIES = {8: 0, 13: 14}
_REQUEST_TYPES = {ICMP_REQUESTS[name]: number for number, name in ICMP_TYPES.items()}
_REACHED = {0: "network unreachable", 1: "host unreachable", 4: "fragmentation needed", 13: "prohibited"}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet and the MACs it travels between. `sport` and `dport` as the fastpath has them: of ICMP the identifier
    stands on the side that the answer goes to, and on the other a number of ICMP_REQUESTS. Of raw Ethernet (`ether`)
    `dport` is the EtherType, and there are no addresses. `is_answer` makes it the second packet of a conversation; `dhcp` a
    DISCOVER, by which a guest asks who it is."""

    src_mac: str
    dst_mac: str
    src: IPv4Address
    dst: IPv4Address
    protocol: int
    sport: int = 0
    dport: int = 0
    ether: bool = False
    is_answer: bool = False
    ttl: int = TTL
    icmp: tuple[int, int] | None = None  # type and code, of one that was read
    dhcp: bool = False

    def __str__(self) -> str:
        """`tcp 169.254.1.2:49152 -> 192.0.2.11:22`."""
        if self.ether:
            return f"ether {self.dport:#06x} {self.src_mac} -> {self.dst_mac}"
        return f"{self.name} {self.source} -> {self.target}"

    @property
    def name(self) -> str:
        """The protocol, for people; of ICMP, the request that it is, or answers."""
        if self.protocol == ICMP:
            request = next(
                n for n, number in ICMP_REQUESTS.items() if number == (self.sport if self.is_answer else self.dport)
            )
            return f"icmp {request}{' reply' if self.is_answer else ''}"
        named = {TCP: "tcp", UDP: "udp", **{number: name for name, number in PROTOCOL_NAMES.items()}}
        return named.get(self.protocol, f"proto {self.protocol}")

    @property
    def source(self) -> str:
        """Address and port, as far as there is one."""
        return self._end(self.src, self.sport, self.is_answer)

    @property
    def target(self) -> str:
        """Address and port, as far as there is one."""
        return self._end(self.dst, self.dport, not self.is_answer)

    def _end(self, address: IPv4Address, port: int, is_service: bool) -> str:
        if self.protocol in (TCP, UDP):
            return f"{address}:{port}"
        return f"{address} id {port}" if self.protocol == ICMP and not is_service else f"{address}"

    def answered(self) -> Packet:
        """What its receiver sends back."""
        return replace(
            self,
            src_mac=self.dst_mac,
            dst_mac=self.src_mac,
            src=self.dst,
            dst=self.src,
            sport=self.sport if self.ether else self.dport,
            dport=self.dport if self.ether else self.sport,
            is_answer=True,
            ttl=TTL,
            icmp=None,
        )

    def frame(self) -> bytes:
        """All of it, checksums included."""
        macs = _mac(self.dst_mac) + _mac(self.src_mac)
        if self.ether:
            return macs + struct.pack(">H", self.dport) + bytes(46)
        load = self._l4()
        head = struct.pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(load),
            0,
            _DONT_FRAGMENT,
            self.ttl,
            self.protocol,
            0,
            self.src.packed,
            self.dst.packed,
        )
        return macs + struct.pack(">H", ETHER_IP) + _summed(head, 10) + load

    def _l4(self) -> bytes:
        if self.protocol == ICMP:
            return _summed(self._icmp(), 2)
        pseudo = self.src.packed + self.dst.packed + struct.pack(">BBH", 0, self.protocol, len(self._bare()))
        if self.protocol == TCP:
            return _summed(pseudo + self._bare(), 12 + 16)[12:]
        if self.protocol == UDP:
            return _summed(pseudo + self._bare(), 12 + 6)[12:]
        return self._bare()

    def _bare(self) -> bytes:
        """The L4 packet without its checksum."""
        if self.protocol == TCP:
            flags, acknowledged = (_SYN | _ACK, 1001) if self.is_answer else (_SYN, 0)
            return struct.pack(">HHIIBBHHH", self.sport, self.dport, 1000, acknowledged, 0x50, flags, 65535, 0, 0)
        if self.protocol == UDP:
            load = _discover(self.src_mac) if self.dhcp else _LOAD
            return struct.pack(">HHHH", self.sport, self.dport, 8 + len(load), 0) + load
        return _LOAD

    def _icmp(self) -> bytes:
        request = _REQUEST_TYPES[self.sport if self.is_answer else self.dport]
        identifier = self.dport if self.is_answer else self.sport
        kind = _REPLIES[request] if self.is_answer else request
        return struct.pack(">BBHHH", kind, 0, 0, identifier, 1) + _LOAD


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _discover(mac: str) -> bytes:
    """RFC 2131 2: who am I? asked by who has no address."""
    fixed = struct.pack(">BBBBIHH16x16s192x", 1, 1, 6, 0, 0x56465200, 0, 0, _mac(mac).ljust(16, b"\0"))
    return (fixed + b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\xff").ljust(300, b"\0")


def _summed(data: bytes, at: int) -> bytes:
    """With the Internet checksum of all of it in place."""
    return data[:at] + struct.pack(">H", ~ones_sum(data) & 0xFFFF) + data[at + 2 :]


def read(frame: bytes) -> Packet:
    """What a frame of these says, after others may have rewritten it."""
    src_mac, dst_mac = frame[6:12].hex(":"), frame[:6].hex(":")
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype != ETHER_IP:
        nobody = IPv4Address(0)
        return Packet(src_mac, dst_mac, nobody, nobody, 0, 0, ethertype, ether=True)
    protocol, ttl = frame[23], frame[22]
    src, dst = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
    known = Packet(src_mac, dst_mac, src, dst, protocol, ttl=ttl)
    first, second, third = struct.unpack(">HHH", frame[34:40])
    if protocol in (TCP, UDP):
        is_answer = protocol == TCP and bool(frame[47] & _ACK)
        return replace(known, sport=first, dport=second, is_answer=is_answer)
    if protocol != ICMP:
        return known
    kind, code = frame[34], frame[35]
    if kind in _REPLIES:
        number = ICMP_REQUESTS[ICMP_TYPES[kind]]
        return replace(known, sport=third, dport=number, icmp=(kind, code))
    requests = {reply: ICMP_REQUESTS[ICMP_TYPES[request]] for request, reply in _REPLIES.items()}
    return replace(known, sport=requests.get(kind, 0), dport=third, is_answer=True, icmp=(kind, code))


def arp_request(mac: str, address: IPv4Address, asked: IPv4Address) -> bytes:
    """Who has `asked`? Tell `address`."""
    body = struct.pack(">HHBBH6s4s6s4s", 1, ETHER_IP, 6, 4, 1, _mac(mac), address.packed, bytes(6), asked.packed)
    return b"\xff" * 6 + _mac(mac) + struct.pack(">H", _ETHER_ARP) + body + bytes(18)


def error_name(packet: Packet) -> str:
    """What an ICMP error tells, for people."""
    kind, code = packet.icmp or (0, 0)
    if kind == 11:
        return "time exceeded"
    return f"destination unreachable: {_REACHED.get(code, f'code {code}')}"


__all__ = ["TTL", "Packet", "arp_request", "error_name", "read"]
