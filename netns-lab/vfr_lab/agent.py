"""What does the packets in a lab's node, told by the lab: frames as they are, sockets, and eyes on an interface.

python -m vfr_lab.agent        reads one JSON object a line, answers each with one; ends with its standard input

A request is {"do": NAME, ...}, an answer {"ok": ...} or {"error": "..."}. Nothing here judges anything.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 1, 6, 8, 15
PACKET_MR_PROMISC, PACKET_OUTGOING = 1, 4
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
VLAN_VALID, VLAN_TPID_VALID = 1 << 4, 1 << 6
RING_BYTES = 1 << 26
FRAME_MAX = 1 << 17
BANNER = b"vfr-lab\n"


class Eyes:
    """All that an interface receives, promiscuous, and what it sends; VLAN tags as they were on the wire."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RING_BYTES)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((interface, ETH_P_ALL))
        member = struct.pack("iHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
        self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        self.frames: list[tuple[float, bool, str]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while True:
            if select.select([self._socket], [], [], 0.02)[0]:
                self._take()
            elif self._end.is_set():
                return

    def _take(self) -> None:
        data, extra, _, where = self._socket.recvmsg(FRAME_MAX, 64)
        for level, kind, raw in extra:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", raw[:20])
                if status & VLAN_VALID:
                    tag = struct.pack(">HH", tpid if status & VLAN_TPID_VALID else 0x8100, tci)
                    data = data[:12] + tag + data[12:]
        self.frames.append((time.time(), where[2] == PACKET_OUTGOING, data.hex()))

    def close(self) -> dict[str, object]:
        """What was seen: [time, sent by itself, hex], and how many were lost."""
        self._end.set()
        self._thread.join()
        lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        self._socket.close()
        return {"frames": self.frames, "lost": lost}


class Ears:
    """A TCP or UDP service: greets everybody, and notes who said what."""

    def __init__(self, protocol: str, address: str, port: int) -> None:
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        self._socket = socket.socket(socket.AF_INET, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self.heard: list[tuple[str, int, str]] = []
        self._end = threading.Event()
        if protocol == "tcp":
            self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve, args=(protocol,), daemon=True)
        self._thread.start()

    def _serve(self, protocol: str) -> None:
        while not self._end.is_set():
            if not select.select([self._socket], [], [], 0.02)[0]:
                continue
            if protocol == "udp":
                data, who = self._socket.recvfrom(65536)
                self.heard.append((who[0], who[1], data.hex()))
                self._socket.sendto(BANNER + data, who)
            else:
                one, who = self._socket.accept()
                threading.Thread(target=self._converse, args=(one, who), daemon=True).start()

    def _converse(self, one: socket.socket, who: tuple[str, int]) -> None:
        with one:
            self.heard.append((who[0], who[1], ""))
            try:
                one.sendall(BANNER)
                one.settimeout(0.5)
                while not self._end.is_set():
                    try:
                        data = one.recv(65536)
                    except TimeoutError:
                        continue
                    if not data:
                        return
                    self.heard.append((who[0], who[1], data.hex()))
                    one.sendall(data)
            except OSError as error:
                self.heard.append((who[0], who[1], f"! {error}"))

    def close(self) -> dict[str, object]:
        self._end.set()
        self._thread.join()
        self._socket.close()
        return {"heard": self.heard}


class Call:
    """A TCP connection that stays open and can be spoken through."""

    def __init__(self, address: str, port: int, own_port: int, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.settimeout(timeout)
        if own_port:
            self._socket.bind(("", own_port))
        try:
            self._socket.connect((address, port))
            self.greeting = self._socket.recv(65536)
        except OSError:
            self._socket.close()
            raise

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def say(self, data: bytes) -> bytes:
        """Sends, and what comes back first."""
        self._socket.sendall(data)
        return self._socket.recv(65536)

    def close(self) -> dict[str, object]:
        self._socket.close()
        return {}


class Agent:
    """One node's; `held` are its open things by number."""

    def __init__(self) -> None:
        self.held: dict[int, Eyes | Ears | Call] = {}
        self.numbers = 0

    def _hold(self, what: Eyes | Ears | Call) -> int:
        self.numbers += 1
        self.held[self.numbers] = what
        return self.numbers

    def send(self, interface: str, frames: list[str], times: int = 1, pace_s: float = 0, offload: bool = False) -> int:
        """How many frames the kernel took; one that it refuses is an error, a full queue is waited for.

        With `offload` each begins with a virtio-net header.
        """
        raw = [bytes.fromhex(f) for f in frames]
        sent = 0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, int(offload))
            out.bind((interface, 0))
            for _ in range(times):
                for frame in raw:
                    sent += self._send_one(out, frame)
                    if pace_s:
                        time.sleep(pace_s)
        return sent

    @staticmethod
    def _send_one(out: socket.socket, frame: bytes) -> int:
        while True:
            try:
                out.send(frame)
                return 1
            except OSError as error:
                if error.errno != 105:  # ENOBUFS
                    raise
                time.sleep(0.001)

    def watch(self, interface: str) -> int:
        return self._hold(Eyes(interface))

    def listen(self, protocol: str, address: str, port: int) -> int:
        return self._hold(Ears(protocol, address, port))

    def call(self, address: str, port: int, own_port: int, timeout: float) -> dict[str, object]:
        one = Call(address, port, own_port, timeout)
        return {"number": self._hold(one), "port": one.port, "greeting": one.greeting.hex()}

    def say(self, number: int, data: str) -> str:
        one = self.held[number]
        assert isinstance(one, Call)
        return one.say(bytes.fromhex(data)).hex()

    def close(self, number: int) -> dict[str, object]:
        return self.held.pop(number).close()

    def tcp(self, address: str, port: int, own_port: int, timeout: float) -> str:
        """What a TCP service says first, in hex."""
        one = Call(address, port, own_port, timeout)
        one.close()
        return one.greeting.hex()

    def udp(self, address: str, port: int, own_port: int, timeout: float, data: str) -> str:
        """What a UDP service answers to one datagram, in hex."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(timeout)
            one.bind(("", own_port))
            one.connect((address, port))
            one.send(bytes.fromhex(data))
            return one.recv(65536).hex()

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        verb: Callable[..., object] = getattr(self, request.pop("do"))
        try:
            return {"ok": verb(**request)}
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    agent = Agent()
    print(json.dumps({"ok": "up"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(agent.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
