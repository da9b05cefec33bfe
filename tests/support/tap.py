"""A guest behind a TAP, in so far as a VM's TCP is concerned: it opens the TAP as a hypervisor would, takes a stream in,
looks at every frame as its kernel handed it over, and gives the stream back.

python tap.py INTERFACE MODE ADDRESS MAC

MODE is one of MODES. Says "ready", and at the end what it saw, in one line of JSON. What it needs of TCP: segments that
come in their order (no window is larger than a TAP's queue), and an answerer's handshake.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import sys
from dataclasses import asdict, dataclass, field

from support import wire
from support.vnet import GSO_NONE, GSO_TCPV4, NEEDS_CSUM
from vfr.spec.packet import ones_sum

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 1, 2, 4, 16
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
L4, SEGMENT, BURST, DF = 34, 1460, 20, 0x4000
SILENCE_S = 10
FIN, SYN, ACK = 1, 2, 16


@dataclass(frozen=True)
class Mode:
    """How a hypervisor opens it: the length of the header before each frame (0: none), and what it takes upon itself."""

    header: int
    offloads: int = 0


MODES = {
    "no offloads": Mode(10),
    "checksums": Mode(10, TUN_F_CSUM),
    "as Firecracker": Mode(12, TUN_F_CSUM | TUN_F_UFO | TUN_F_TSO4 | TUN_F_TSO6),
    "no header": Mode(0),  # QEMU's vnet_hdr=off; the last, so that another was there before
}


@dataclass
class Seen:
    """Of what came in. `wrong` has what was not as the mode and the frames themselves have it."""

    bytes: int = 0
    longest: int = 0
    cut_later: int = 0  # frames that were to be cut by the guest
    summed_later: int = 0  # whose checksum was left to it
    wrong: list[str] = field(default_factory=list)
    sha256: str = ""


class Tap:
    """The interface, opened."""

    def __init__(self, interface: str, mode: Mode) -> None:
        self.mode, self.seen = mode, Seen()
        self.fd = os.open("/dev/net/tun", os.O_RDWR)
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if mode.header else 0)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
        if mode.header:
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", mode.header))
        # Without a header, too: the kernel remembers what the one before took upon itself.
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, mode.offloads)

    def send(self, frame: bytes, segment: int = 0) -> None:
        """With `segment`, a TCP frame that is to be cut into such ones; its checksum is left to the host if the mode may."""
        header = b""
        if self.mode.header:
            leaves = bool(self.mode.offloads & TUN_F_CSUM)
            kind = GSO_TCPV4 if segment else GSO_NONE
            words = (NEEDS_CSUM, kind, 54, segment, L4, 16) if leaves else (0, GSO_NONE, 0, 0, 0, 0)
            header = struct.pack("<BBHHHH", *words).ljust(self.mode.header, b"\0")
            if leaves:
                frame = frame[:50] + wire.pseudo_sum(frame[14:]).to_bytes(2, "big") + frame[52:]
        os.write(self.fd, header + frame)

    def receive(self) -> bytes:
        """The next IPv4 packet, looked at."""
        while True:
            if not select.select([self.fd], [], [], SILENCE_S)[0]:
                raise TimeoutError(f"nothing more comes; so far: {self.seen}")
            got = os.read(self.fd, 70000)
            header, frame = got[: self.mode.header], got[self.mode.header :]
            if frame[12:14] == b"\x08\x00":
                packet = frame[14:]
                self.seen.longest = max(self.seen.longest, len(packet))
                self.seen.wrong += self._flaws(header, packet)
                return packet

    def _flaws(self, header: bytes, packet: bytes) -> list[str]:
        flags, kind, _, size, start, offset = struct.unpack("<BBHHHH", header[:10]) if header else (0,) * 6
        flaws, seen = wire.flaws(packet), self.seen
        if int.from_bytes(packet[2:4], "big") != len(packet):
            flaws.append("length")
        if kind:
            seen.cut_later += 1
            flaws += [] if self.mode.offloads & TUN_F_TSO4 and kind == GSO_TCPV4 and 0 < size <= SEGMENT else ["GSO"]
        elif len(packet) > 1500:
            flaws.append("too long")
        if flags & NEEDS_CSUM:
            seen.summed_later += 1
            right = self.mode.offloads & TUN_F_CSUM and (start, offset) == (L4, 16) and wire.is_partial(packet)
            flaws = [flaw for flaw in flaws if flaw != "L4 checksum"] + ([] if right else ["checksum left to us"])
        return [f"{flaw}: {header.hex()} {packet[:40].hex()}" for flaw in flaws]


def _summed(packet: bytes) -> bytes:
    """A TCP packet with both its checksums, which were 0."""
    packet = packet[:10] + (0xFFFF - ones_sum(packet[:20])).to_bytes(2, "big") + packet[12:]
    tcp = 0xFFFF - ones_sum(wire.pseudo_sum(packet).to_bytes(2, "big") + packet[20:])
    return packet[:36] + tcp.to_bytes(2, "big") + packet[38:]


class Talk:
    """One TCP conversation that somebody opens to us."""

    def __init__(self, tap: Tap, address: str, mac: str) -> None:
        self.tap, self.address = tap, socket.inet_aton(address)
        self.ethernet = bytes.fromhex(f"{GATEWAY_MAC}{mac}".replace(":", "")) + b"\x08\x00"
        self.stream, self.sent, self.acknowledged, self.due = bytearray(), 1000, 1000, 0
        self.peer, self.ports, self.is_over = b"", (0, 0), False

    def say(self, flags: int, load: bytes = b"") -> None:
        ports = (self.ports[1], self.ports[0])
        options = struct.pack(">BBH", 2, 4, SEGMENT) if flags & SYN else b""  # MSS
        words = (5 << 4) + (len(options) << 2), flags, 65535, 0, 0
        tcp = struct.pack(">HHIIBBHHH", *ports, self.sent, self.due % (1 << 32), *words) + options
        head = struct.pack(">BxHHHBBH", 0x45, 20 + len(tcp) + len(load), 0, DF, 64, wire.TCP, 0)
        packet = _summed(head + self.address + self.peer + tcp + load)
        self.tap.send(self.ethernet + packet, SEGMENT if len(load) > SEGMENT else 0)
        self.sent += len(load) + bool(flags & (SYN | FIN))

    def hear(self) -> None:
        """The next segment, answered."""
        packet = self.tap.receive()
        if packet[9] != wire.TCP:
            return
        sequence, flags, load = int.from_bytes(packet[24:28], "big"), packet[33], wire.load(packet)
        if flags & SYN:
            self.peer = packet[12:16]
            self.ports = int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")
            self.due = sequence + 1
            self.say(SYN | ACK)
            return
        self.acknowledged = int.from_bytes(packet[28:32], "big")
        if sequence != self.due % (1 << 32):
            self.tap.seen.wrong.append(f"segment {sequence} where {self.due} is due")
        self.stream += load
        self.due += len(load) + (flags & FIN)
        self.is_over = self.is_over or bool(flags & FIN)
        if load or flags & FIN:
            self.say(ACK)

    def give_back(self) -> None:
        """All that came, in frames as large as the mode has them."""
        size = SEGMENT * (BURST if self.tap.mode.offloads & TUN_F_TSO4 else 1)
        for at in range(0, len(self.stream), size):
            while self.sent - self.acknowledged > SEGMENT * BURST:
                self.hear()
            self.say(ACK, bytes(self.stream[at : at + size]))
        self.say(FIN | ACK)
        while self.acknowledged != self.sent:
            self.hear()


def main() -> None:
    interface, mode, address, mac = sys.argv[1:]
    talk = Talk(Tap(interface, MODES[mode]), address, mac)
    print("ready", flush=True)
    while not talk.is_over:
        talk.hear()
    talk.give_back()
    seen = talk.tap.seen
    seen.bytes, seen.sha256 = len(talk.stream), hashlib.sha256(talk.stream).hexdigest()
    seen.wrong = seen.wrong[:5]
    print(json.dumps(asdict(seen)), flush=True)


if __name__ == "__main__":
    main()
