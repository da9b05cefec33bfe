"""A lab's node as whoever attacks, suffers or watches in it: frames, sockets, tools.

    with Node(lab, "web") as web, Node(lab, "db") as db:
        with db.watch() as seen:
            web.send(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="169.254.1.3"))
        print(seen.frames)

Packets are made and read here, with scapy; the node's own process (vfr_lab.agent) only sends and sees them.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from vfr_lab.lab import DEADLINE_S, LabError

# What is on its way when an attack ends has arrived by then: nothing in the lab is farther than some softirqs.
SETTLE_S = 0.15
TRY_S = 0.4


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: when (s since the epoch), whether the node sent it itself, its bytes."""

    at: float
    own: bool
    raw: bytes

    @property
    def packet(self) -> Packet:
        """The frame, read by scapy."""
        return Ether(self.raw)

    def __str__(self) -> str:
        return str(self.packet.summary())


@dataclass
class Seen:
    """What a node's interface received: everything, from `with` to its end. What the node itself sent is in `own`."""

    node: str
    interface: str
    frames: list[Frame] = field(default_factory=list)
    own: list[Frame] = field(default_factory=list)

    def having(self, what: bytes | Callable[[Packet], bool]) -> list[Frame]:
        """The received frames that hold these bytes, or of which that is true."""
        if isinstance(what, bytes):
            return [f for f in self.frames if what in f.raw]
        return [f for f in self.frames if what(f.packet)]


@dataclass
class Heard:
    """What a service of a node's was told: (address, port, bytes); a TCP connection begins with empty ones."""

    said: list[tuple[str, int, bytes]] = field(default_factory=list)

    def having(self, what: bytes) -> list[tuple[str, int, bytes]]:
        return [s for s in self.said if what in s[2]]


class Call:
    """A TCP connection from a node that stays open."""

    def __init__(self, node: Node, number: int, port: int, greeting: bytes) -> None:
        self._node, self.number, self.port, self.greeting = node, number, port, greeting

    def echoes(self, data: bytes = b"still here") -> bool:
        """Whether what is said comes back."""
        try:
            answer = self._node.ask("say", number=self.number, data=data.hex())
        except NodeError:
            return False
        return bytes.fromhex(answer) == data


class NodeError(Exception):
    """The node's kernel said no; the text is its own word."""


class Place(Protocol):
    """Where nodes are: a `Lab`, or namespaces that somebody else made. How its commands run in one of them."""

    def argv(self, node: str, command: Sequence[str]) -> list[str]: ...
    def ip(self, node: str, *arguments: str) -> str: ...
    def exec(
        self, node: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]: ...


class Node:
    """A node of a lab, from `with` to its end. `journal` gets a line for all that is done here."""

    def __init__(self, lab: Place, name: str, journal: Callable[[str], None] = lambda line: None) -> None:
        self.lab, self.name, self._journal = lab, name, journal
        self.collected: list[Seen] = []

    def __enter__(self) -> Node:
        argv = self.lab.argv(self.name, [sys.executable, "-m", "vfr_lab.agent"])
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, verb: str, **arguments: object) -> Any:
        """One request to the agent. NodeError with the kernel's words."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": verb, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the agent in {self.name} ended: exit {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise NodeError(f"{self.name}: {answer['error']}")
        return answer["ok"]

    # Facts

    def link(self, interface: str = "eth0") -> dict[str, Any]:
        """What `ip -j link` says of an interface of it."""
        found: dict[str, Any] = json.loads(self.lab.ip(self.name, "-j", "link", "show", interface))[0]
        return found

    @property
    def mac(self) -> str:
        return str(self.link()["address"])

    def knows(self, address: str) -> str | None:
        """The MAC that its kernel has for an address, asked for if need be; None if nobody answers."""
        for _ in range(2):
            found = json.loads(self.lab.ip(self.name, "-j", "neigh", "show", address) or "[]")
            macs = [n["lladdr"] for n in found if "lladdr" in n]
            if macs:
                return str(macs[0])
            self.lab.exec(self.name, "ping", "-n", "-c1", "-W1", address, check=False)
        return None

    # Frames

    def send(self, *frames: Packet | bytes, interface: str = "eth0", times: int = 1, pace_s: float = 0.0) -> int:
        """Frames as they are, in this order, `times` times over; how many. NodeError if the kernel refuses one."""
        raw = [bytes(f) for f in frames]
        for frame in frames[:8]:
            text = frame.summary() if isinstance(frame, Packet) else f"{len(frame)} bytes {frame[:24].hex()}"
            self._journal(f"{self.name}: sends {f'{times} times ' if times > 1 else ''}{text}")
        if len(frames) > 8:
            self._journal(f"{self.name}: ... {len(frames)} frames in all")
        where = {"interface": interface, "times": times, "pace_s": pace_s}
        return int(self.ask("send", frames=[r.hex() for r in raw], offload=False, **where))

    def send_offload(self, frame: Packet | bytes, start: int, offset: int, gso: tuple[int, int] = (0, 0)) -> bool:
        """A frame as a VM sends it: whoever sends it on is to write a checksum and, by `gso`, to cut it.

        The checksum is of all from byte `start`, written at `start + offset`; `gso` is virtio's type and the size of
        the pieces. False if the node's own kernel refuses to send it.
        """
        header = struct.pack("<BBHHHH", 1, gso[0], 54 if gso[0] else 0, gso[1], start, offset)
        self._journal(f"{self.name}: sends {len(bytes(frame))} bytes, checksum from {start} at +{offset}, gso {gso}")
        where = {"interface": "eth0", "times": 1, "pace_s": 0.0}
        try:
            return bool(self.ask("send", frames=[(header + bytes(frame)).hex()], offload=True, **where))
        except NodeError as error:
            if "Errno 22" not in str(error):
                raise
            return False

    @contextmanager
    def watch(self, interface: str = "eth0", settle_s: float = SETTLE_S) -> Iterator[Seen]:
        """Everything on an interface, promiscuous; complete once the block has ended. LabError if some was missed."""
        number = self.ask("watch", interface=interface)
        seen = Seen(self.name, interface)
        self.collected.append(seen)
        try:
            yield seen
            time.sleep(settle_s)
        finally:
            done = self.ask("close", number=number)
            for at, own, raw in done["frames"]:
                (seen.own if own else seen.frames).append(Frame(at, own, bytes.fromhex(raw)))
        if done["lost"]:
            raise LabError(f"{self.name} has not seen everything: {done['lost']} frames lost")

    # Sockets

    @contextmanager
    def listen(self, protocol: str, port: int, address: str = "0.0.0.0", settle_s: float = SETTLE_S) -> Iterator[Heard]:
        """A service that greets, echoes and notes what it is told; complete once the block has ended."""
        number = self.ask("listen", protocol=protocol, address=address, port=port)
        heard = Heard()
        try:
            yield heard
            time.sleep(settle_s)
        finally:
            done = self.ask("close", number=number)
            heard.said += [
                (a, p, bytes.fromhex(d) if not d.startswith("!") else d.encode()) for a, p, d in done["heard"]
            ]

    def tcp(self, address: str, port: int, own_port: int = 0, timeout: float = TRY_S) -> str:
        """What a TCP service says first, "" if it can't be reached (the journal says why)."""
        return self._try(f"tcp {address}:{port}", "tcp", address=address, port=port, own_port=own_port, timeout=timeout)

    def udp(self, address: str, port: int, data: bytes = b"x", own_port: int = 0, timeout: float = TRY_S) -> str:
        """What a UDP service answers, "" if nothing comes (the journal says why)."""
        where = {"address": address, "port": port, "own_port": own_port, "timeout": timeout}
        return self._try(f"udp {address}:{port}", "udp", data=data.hex(), **where)

    def _try(self, what: str, verb: str, **arguments: object) -> str:
        try:
            answer = bytes.fromhex(self.ask(verb, **arguments)).decode(errors="replace")
        except NodeError as error:
            self._journal(f"{self.name}: {what}: {error}")
            return ""
        self._journal(f"{self.name}: {what} answers {answer!r}")
        return answer

    @contextmanager
    def call(self, address: str, port: int, own_port: int = 0, timeout: float = 2) -> Iterator[Call]:
        """A TCP connection that stays open in the block. NodeError if it can't be had."""
        done = self.ask("call", address=address, port=port, own_port=own_port, timeout=timeout)
        self._journal(f"{self.name}: has a connection to {address}:{port}")
        try:
            yield Call(self, done["number"], done["port"], bytes.fromhex(done["greeting"]))
        finally:
            self.ask("close", number=done["number"])

    # Tools

    def run(self, *argv: str, timeout: float = 20) -> str:
        """A program to its end: what it printed. Its exit status is the caller's to read from that, or `ok`."""
        return self._run(argv, timeout).stdout

    def ok(self, *argv: str, timeout: float = 20) -> bool:
        """Whether a program ends well."""
        return self._run(argv, timeout).returncode == 0

    def _run(self, argv: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[str]:
        done = self.lab.exec(self.name, *argv, check=False, timeout=timeout)
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        self._journal(f"{self.name}$ {' '.join(argv)}   [exit {done.returncode}] {''.join(last)}")
        if done.returncode == 127:
            raise LabError(f"{argv[0]} is not installed: {done.stderr.strip()}")
        return done

    @contextmanager
    def running(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """A program that runs during the block, and is ended with it."""
        self._journal(f"{self.name}$ {' '.join(argv)} &")
        command = self.lab.argv(self.name, ["timeout", "--foreground", "-k", "1", "60", *argv])
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # in a guest nsenter has forked: it alone is not enough
            process.communicate(timeout=5)

    def pings(self, address: str, *options: str) -> bool:
        """Whether one echo request is answered within TRY_S."""
        return self.ok("ping", "-n", "-c1", f"-W{TRY_S}", *options, address)
