"""Random conversations as bytes, fast: packets of several senders, answers to what was delivered, damage.

Everything follows from one random.Random, so a seed and a number name a packet for ever. scapy would
take a millisecond a packet; this takes some microseconds.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from random import Random

from support import world
from vfr.spec.model import LAN, SORTER
from vfr.spec.packet import ones_sum

ICMP, TCP, UDP, GRE, ESP, SCTP = 1, 6, 17, 47, 50, 132
ECHO, STAMP = 8, 13
REPLY_TO = {ECHO: 0, STAMP: 14}
ETHERTYPES = (0x889A, 0x889A, 0x88A2, 0x88CC, 0x0600, 0x05DC, 0x86DD, 0x8100)
FLAGS = {"S": 0x02, "SA": 0x12, "A": 0x10, "FA": 0x11, "R": 0x04, "F": 0x01}
PORTS = (22, 53, 80, 2202, 2203, 16385, 16392, 16393, 16399, 16400, 16407, 16409, 30000, 40000)
REMOTES = ("192.0.2.11", "192.0.2.12", "198.51.100.9")
TARGETS = (*REMOTES, *REMOTES, "192.0.2.1", "192.0.2.255", "169.254.1.9", "169.254.169.254", "224.0.0.1", "127.0.0.1")
MAC = {slot: bytes.fromhex(world.NODES[name].mac.replace(":", "")) for name, slot in world.SLOTS.items()}
MAC[LAN] = bytes.fromhex(world.NODES["lan"].mac.replace(":", ""))
ADDRESS = {slot: int(IPv4Address(world.NODES[name].ip)) for name, slot in world.SLOTS.items()}
GATEWAY = bytes.fromhex(world.GATEWAY_MAC.replace(":", ""))


def _checksum(data: bytes) -> bytes:
    return (~ones_sum(data + b"\0" * (len(data) % 2)) & 0xFFFF).to_bytes(2, "big")


def ip_packet(src: int, dst: int, protocol: int, l4: bytes, ttl: int = 64, fragment: int = 0, number: int = 7) -> bytes:
    """An IP packet without options; `l4` is taken as it is, `number` is its identification."""
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(l4), number, fragment, ttl, protocol, 0, src, dst)
    return head[:10] + _checksum(head) + head[12:] + l4


def l4_packet(src: int, dst: int, protocol: int, sport: int, dport: int, flags: int, load: bytes) -> bytes:
    """A TCP or UDP header and its load, or an ICMP query or reply (`flags` its type, `sport` its identifier), checksum
    right; of other protocols the load alone."""
    if protocol not in (ICMP, TCP, UDP):
        return load
    if protocol == ICMP:
        raw, at = struct.pack(">BBHHH", flags, 0, 0, sport, 1) + load, 2
    elif protocol == UDP:
        raw, at = struct.pack(">HHHH", sport, dport, 8 + len(load), 0) + load, 6
    else:
        raw, at = struct.pack(">HHIIBBHHH", sport, dport, 1000, 2000, 0x50, flags, 8192, 0, 0) + load, 16
    pseudo = b"" if protocol == ICMP else struct.pack(">IIHH", src, dst, protocol, len(raw))
    return raw[:at] + _checksum(pseudo + raw) + raw[at + 2 :]


def frame(sender: int, packet: bytes, ethertype: int = 0x0800) -> bytes:
    """A frame from a slot, or LAN, to the router."""
    return GATEWAY + MAC[sender] + ethertype.to_bytes(2, "big") + packet


def arp(slot: int, asked: int, operation: int = 1) -> bytes:
    own = MAC[slot] + ADDRESS[slot].to_bytes(4, "big")
    body = bytes.fromhex("000108000604") + operation.to_bytes(2, "big") + own + bytes(6) + asked.to_bytes(4, "big")
    return b"\xff" * 6 + frame(slot, body, 0x0806)[6:]


def raw(sender: int, to: bytes, ethertype: int, load: int) -> bytes:
    """A raw Ethernet frame from a slot, or LAN, to a MAC."""
    return to + frame(sender, bytes(load), ethertype)[6:]


def is_ip(made: bytes) -> bool:
    return made[12:14] == b"\x08\x00"


def answer(delivered: bytes, to: int, rng: Random) -> tuple[int, bytes]:
    """What the receiver of a delivered frame may say next in the same conversation."""
    if not is_ip(delivered):
        return to, raw(to, delivered[6:12], int.from_bytes(delivered[12:14], "big"), rng.randrange(80))
    src, dst, protocol = (*struct.unpack(">II", delivered[26:34]), delivered[23])
    if len(delivered) < 42:
        delivered = delivered.ljust(42, b"\0")
    load = bytes(rng.randrange(4))
    if protocol == ICMP:
        kind = REPLY_TO.get(delivered[34], 0) if rng.random() < 0.9 else rng.choice((0, 14))
        l4 = l4_packet(dst, src, ICMP, int.from_bytes(delivered[38:40], "big"), 0, kind, load)
    else:
        sport, dport = struct.unpack(">HH", delivered[34:38])
        flags = FLAGS[rng.choice(("SA", "SA", "A", "A", "FA", "R"))]
        l4 = l4_packet(dst, src, protocol, dport, sport, flags, load)
    return to, frame(to, ip_packet(dst, src, protocol, l4))


def error_about(delivered: bytes, to: int, rng: Random) -> tuple[int, bytes]:
    """An ICMP error of the receiver's, or of a router's on the way, about a delivered frame."""
    src, dst = struct.unpack(">II", delivered[26:34])
    quote = delivered[14 : 14 + rng.choice((28, 40, 60))]
    raw = struct.pack(">BBHI", rng.choice((3, 11, 12)), rng.randrange(5), 0, 0) + quote
    sender = int(IPv4Address(REMOTES[2])) if to == LAN and rng.random() < 0.5 else dst
    return to, frame(to, ip_packet(sender, src, ICMP, raw[:2] + _checksum(raw) + raw[4:]))


@dataclass
class Traffic:
    """An endless conversation. Tell it what was delivered, and it may answer."""

    rng: Random
    heard: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=12))
    in_sorter: deque[bytes] = field(default_factory=lambda: deque(maxlen=6))
    burst: list[tuple[int, bytes]] = field(default_factory=list)

    def delivered(self, to: int, frame: bytes) -> None:
        """A frame with IP that was handed to a slot, or to LAN."""
        self.heard.append((to, frame))

    def sorted(self, frame: bytes) -> None:
        """A frame that was handed to the sorter."""
        self.in_sorter.append(frame)

    def next(self) -> tuple[int, bytes]:
        """A sender, and the frame it sends."""
        rng = self.rng
        kind = rng.random()
        if self.burst:
            return self.burst.pop()
        if self.heard and kind < 0.4:
            to, last = rng.choice(self.heard)
            wrong = is_ip(last) and rng.random() < 0.15
            sender, made = error_about(last, to, rng) if wrong else answer(last, to, rng)
        elif kind < 0.5:
            sender, made = self._piece()
        elif self.in_sorter and kind < 0.6:
            # In the order of a datagram's pieces, as the sorter has it.
            self.in_sorter = deque(sorted(self.in_sorter, key=lambda f: int.from_bytes(f[20:22], "big") & 0x1FFF), 6)
            sender, made = SORTER, self.in_sorter.popleft()
        else:
            sender, made = self._fresh()
        return (sender, self._damaged(sender, made)) if rng.random() < 0.15 else (sender, made)

    def _fresh(self) -> tuple[int, bytes]:
        rng = self.rng
        sender = LAN if rng.random() < 0.3 else rng.choice(list(ADDRESS))
        if sender != LAN and rng.random() < 0.05:
            asked = rng.choice([*ADDRESS.values(), int(IPv4Address("169.254.1.77"))])
            return sender, arp(sender, asked, rng.choice((1, 1, 2)))
        if rng.random() < 0.06:
            return sender, self._raw(sender)
        if sender != LAN and rng.random() < 0.06:
            return sender, self._dhcp(sender)
        if sender == LAN:
            src, dst = int(IPv4Address(rng.choice(REMOTES))), int(world.OUTSIDE)
        else:
            others = [a for s, a in ADDRESS.items() if s != sender]
            dst = rng.choice(others) if rng.random() < 0.4 else int(IPv4Address(rng.choice(TARGETS)))
            src = ADDRESS[sender]
        if rng.random() < 0.05:
            protocol, port = rng.choice((TCP, UDP, ICMP)), rng.choice(PORTS)
            self.burst = [(sender, frame(sender, self._opening(src, dst, protocol, port))) for _ in range(4)]
        return sender, frame(sender, self._packet(src, dst))

    def _opening(self, src: int, dst: int, protocol: int, port: int) -> bytes:
        """One of several that begin a conversation each, at once."""
        flags = self.rng.choice((ECHO, STAMP)) if protocol == ICMP else FLAGS["S"]
        l4 = l4_packet(src, dst, protocol, self.rng.randrange(1024, 65536), port, flags, b"")
        return ip_packet(src, dst, protocol, l4)

    def _dhcp(self, slot: int) -> bytes:
        """A guest asks who it is, or says who it thinks it is; now and then for another, or without an end."""
        rng, own = self.rng, ADDRESS[slot]
        named = own if rng.random() < 0.7 else rng.choice(list(ADDRESS.values()))
        has = rng.choice((0, named))
        src, dst = rng.choice((0, own, has)), rng.choice((0xFFFFFFFF, 0xFFFFFFFF, ADDRESS[0]))
        fixed = struct.pack(">BBBBIHHI12x", 1, 1, 6, 0, rng.randrange(99), 0, rng.choice((0, 0x8000)), has)
        client = MAC[slot] if rng.random() < 0.9 else MAC[LAN]
        said = [b"\x35\x01" + bytes([rng.choice((1, 3, 3, 3, 4, 7, 8, 2))])]
        said += [b"\x32\x04" + named.to_bytes(4, "big")] * rng.choice((0, 1, 1))
        said += [b"\x36\x04" + ADDRESS[rng.choice((0, 0, 0, 1))].to_bytes(4, "big")] * rng.choice((0, 0, 1))
        said += [b"\x3d\x07\x01" + client] * rng.choice((0, 1, 1, 1, 2))
        rng.shuffle(said)
        end = b"\xff" if rng.random() < 0.9 else b""
        load = fixed + client + bytes(10 + 192) + b"\x63\x82\x53\x63" + b"".join(said) + end
        sport = 68 if rng.random() < 0.95 else 67
        made = frame(
            slot, ip_packet(src, dst, UDP, l4_packet(src, dst, UDP, sport, 67, 0, load + bytes(rng.randrange(60))))
        )
        return made if dst != 0xFFFFFFFF else b"\xff" * 6 + made[6:]

    def _raw(self, sender: int) -> bytes:
        """Raw Ethernet: mostly to a domain, now and then to the router, a group or nobody, or too long."""
        rng = self.rng
        unlikely = (GATEWAY, b"\xff" * 6, bytes.fromhex("030000000003"), bytes.fromhex("020000000077"), MAC[LAN])
        to = rng.choice(unlikely) if sender == LAN or rng.random() < 0.15 else rng.choice([MAC[s] for s in ADDRESS])
        if sender == LAN:
            to = GATEWAY  # or the kernel says that it is somebody else's
        return raw(sender, to, rng.choice(ETHERTYPES), rng.choice((0, 20, 46, 46, 200, 1500, 1501)))

    def _piece(self) -> tuple[int, bytes]:
        """A fragment: of a few senders, targets and identifications, so that pieces meet."""
        rng = self.rng
        sender = rng.choice((1, 1, 2, LAN))
        src = int(IPv4Address(REMOTES[0])) if sender == LAN else ADDRESS[sender]
        dst = int(world.OUTSIDE) if sender == LAN else rng.choice((int(IPv4Address(REMOTES[0])), ADDRESS[2]))
        protocol = rng.choice((TCP, UDP, UDP, UDP, GRE))
        offset = rng.choice((0, 0, 3, 4, 6, 1))
        more = 0x2000 if not offset or rng.random() < 0.5 else 0
        l4 = bytes(16)
        if not offset:
            l4 = l4_packet(
                src,
                dst,
                protocol,
                rng.choice(PORTS),
                rng.choice(PORTS),
                FLAGS["S"],
                bytes(4 if protocol == TCP else 16),
            )
        return sender, frame(
            sender, ip_packet(src, dst, protocol, l4, 64, more | offset, rng.choice((1, 2, 3, 4, 5, 6)))
        )

    def _packet(self, src: int, dst: int) -> bytes:
        rng = self.rng
        protocol = rng.choice((TCP, TCP, TCP, UDP, UDP, UDP, ICMP, ICMP, rng.choice((GRE, GRE, ESP, SCTP))))
        flags = FLAGS[rng.choice(("S", "S", "S", "SA", "A", "FA", "R"))]
        if protocol == ICMP:
            flags = rng.choice((ECHO, ECHO, STAMP, STAMP, 0, 14))
        sport, dport = rng.choice(PORTS), rng.choice(PORTS)
        load = bytes(rng.randrange(40)) if rng.random() < 0.97 else bytes(1490)
        l4 = l4_packet(src, dst, protocol, sport, dport, flags, load)
        if protocol == UDP and rng.random() < 0.1:
            l4 = l4[:6] + b"\0\0" + l4[8:]
        return ip_packet(src, dst, protocol, l4, rng.choice((64, 64, 64, 2, 1)), rng.choice((0, 0, 0x4000)))

    def _damaged(self, sender: int, made: bytes) -> bytes:
        """Some bytes changed, often with the IP checksum put right again; perhaps the end cut off."""
        rng, out = self.rng, bytearray(made)
        for _ in range(rng.randrange(1, 4)):
            out[rng.randrange(min(len(out), 56))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if sender == LAN:
            out[:6] = GATEWAY  # the uplink's own MAC, or the kernel says that it is somebody else's
        if rng.random() < 0.7 and len(out) >= 34:
            out[24:26] = b"\0\0"
            out[24:26] = _checksum(bytes(out[14:34]))
        return bytes(out[: rng.randrange(14, len(out) + 1)] if rng.random() < 0.2 else out)
