"""Whether guests are apart, and whether they reach what they should: assertions for tests, with their evidence.

    with Isolation(LabGround(lab), captures) as isolation:
        isolation.assert_isolated("web", "db")
        isolation.assert_reaches("lan1", "web", tcp=22)

An absence is believed only after controls: a guest that reaches nothing at all is dead, not isolated. An assertion
that fails says what was tried, what arrived, and where the capture of it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP
from scapy.packet import Packet

from vfr_lab.capture import save
from vfr_lab.ground import SSH, Ground, is_address
from vfr_lab.lab import LabError
from vfr_lab.node import SETTLE_S, Frame, Heard, Node, NodeError, Seen
from vfr_lab.probes import DNS, Attempt, Probes, Side, accepts

# Of TCP, what guests tend to serve. A longer list is `assert_isolated`'s `tcp`.
PORTS = (22, 25, 53, 80, 443, 2375, 3306, 5432, 6379, 8080, 9100, 27017)
EVERYTHING = (("tcp", 22), ("tcp", 80), ("tcp", 443), ("udp", DNS), ("ping", 0))
SHOWN = 20  # lines of evidence in a failure; the capture has the rest
PATIENCE_S = 2.0  # for an answer that should come

_NUMBER = re.compile(r"port \d+")
What = tuple[str, int]  # protocol and port; of "ping", 0


class Isolation:
    """Assertions about the nodes of a ground, from `with` to its end; captures of failures go to `captures`."""

    def __init__(self, ground: Ground, captures: Path) -> None:
        self.ground, self.captures = ground, captures
        self._nodes: dict[str, Node] = {}
        self._stack = ExitStack()
        self._journal: list[str] = []

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def node(self, name: str) -> Node:
        """A node, to send frames, open sockets and run programs in it."""
        if name not in self._nodes:
            self._nodes[name] = self._stack.enter_context(Node(self.ground.place, name, self._journal.append))
        return self._nodes[name]

    def watch(self, name: str, interface: str = "eth0") -> AbstractContextManager[Seen]:
        """What an interface of a node's receives during the block, promiscuous: `seen.frames`, complete after it."""
        return self.node(name).watch(interface)

    def assert_isolated(self, a: str, b: str, tcp: Iterable[int] = PORTS) -> None:
        """Nothing that one guest does arrives at the other, either way, and neither sees what is not for it.

        Tried are TCP (SYNs to all ports of `tcp`), UDP and ping, by the gateway, straight to the other's MAC and by
        broadcast; ARP, raw Ethernet, VLAN tags, multicast; UDP in others' names; then TCP to port 22, UDP and ping
        through sockets. Both are watched, promiscuous, also while they speak with the witness.
        AssertionError if anything arrives, or if that nothing arrives proves nothing.
        """
        __tracebackhide__ = True
        self._begin()
        self.ground.check_guests(a, b)
        ports, witness = tuple(tcp), self.ground.witness(a, b)
        with ExitStack() as stack:
            echo = stack.enter_context(self._echo(a, witness))
            for name in (a, b):
                self._check_alive(name, witness, echo)
            one, other = self._side(a, b), self._side(b, a)
            saw = {
                s.name: stack.enter_context(s.node.watch(s.interface, settle_s=settle_s))
                for s, settle_s in ((one, 0), (other, SETTLE_S))
            }
            spoken = {s.name: self._check_alive(s.name, witness, echo) for s in (one, other)}
            mounted = [self._mount(Probes(x, y, ports, echo)) for x, y in ((one, other), (other, one))]
        arrived = []
        for probes in mounted:
            x, y = probes.x.name, probes.y.name
            _check_seen(probes, saw[x], saw[y])
            arrived += _received(probes, saw[y], spoken[x], witness) + _answered(probes, saw[x])
        if arrived:
            tried = (
                f"{len(mounted[0].all)} frames each way: TCP to ports {', '.join(map(str, ports[:20]))}"
                f"{' ...' if len(ports) > 20 else ''}, UDP, ping, ARP, raw Ethernet, VLAN tags, multicast,"
                " others' names; then TCP to port 22, UDP and ping through sockets"
            )
            self._fail(f"{a} and {b} are not isolated", arrived, tried, f"{a}-{b}")

    def assert_reaches(
        self, a: str, b: str, *, tcp: int | None = None, udp: int | None = None, ping: bool = False
    ) -> None:
        """What `a` says to `b` arrives there, and is answered. A port is b's own; from the LAN its forward is taken.

        If nothing listens there, a service is put there for the time: it is about the way, not about the service.
        """
        __tracebackhide__ = True
        self._begin()
        wanted = _named(tcp, udp, ping)
        if not wanted:
            raise LabError("assert_reaches wants to know by what: tcp=PORT, udp=PORT or ping=True")
        tried = self._try(a, b, wanted, PATIENCE_S)
        if lost := [t.fate for t in tried if not (t.arrived and t.answered)]:
            self._fail(f"{a} does not reach {b}", lost, "; ".join(self._journal), f"{a}-{b}")

    def assert_not_reaches(
        self, a: str, b: str, *, tcp: int | None = None, udp: int | None = None, ping: bool = False
    ) -> None:
        """What `a` says to `b` does not arrive, while the witness is reached. With nothing named: TCP, UDP and ping."""
        __tracebackhide__ = True
        self._begin()
        wanted = _named(tcp, udp, ping) or self._every_way(a, b)
        witness = self.ground.witness(a, b)
        with self._echo(a, witness) as echo:
            self._check_alive(a, witness, echo)
        tried = self._try(a, b, wanted, SETTLE_S)
        if got := [t.fate for t in tried if t.arrived or t.answered]:
            self._fail(f"{a} reaches {b}", got, "; ".join(self._journal), f"{a}-{b}")

    # Controls

    @contextmanager
    def _echo(self, a: str, witness: str) -> Iterator[tuple[str, int] | None]:
        """A UDP service at the witness, by address and port, if that is a node."""
        if is_address(witness):
            yield None
            return
        port = 20000 + secrets.randbelow(10000)
        with self.node(witness).listen("udp", port, settle_s=0):
            yield self.ground.address(a, witness), port

    def _check_alive(self, name: str, witness: str, echo: tuple[str, int] | None) -> bytes:
        """That it speaks with the witness somehow, or is spoken to by it; the bytes that it said."""
        node, said = self.node(name), secrets.token_hex(8).encode()
        alive = echo is not None and said.decode() in node.udp(*echo, said)
        alive = alive or node.pings(echo[0] if echo else witness)
        if not alive and echo and (way := self._way(witness, name, ("tcp", SSH))):
            alive = bool(self.node(witness).tcp(*way))
        _control(alive, f"{name} speaks with {witness} (UDP, ping; or is reached from there by TCP port {SSH})")
        return said

    # What assert_isolated is made of

    def _side(self, name: str, other: str) -> Side:
        """One of two, ready to be attacked and watched on the interface that leads to the other."""
        node = self.node(name)
        interface = self._facing(name, self.ground.address(name, other))
        return Side(
            node=node,
            interface=interface,
            mac=str(node.link(interface)["address"]),
            address=self.ground.address(other, name),
            gateway=self._gateway(name, interface),
        )

    def _facing(self, name: str, address: str) -> str:
        """The interface by which a node sends to an address; the first one it has, if it has no way there."""
        ip = self.ground.place.ip
        try:
            return str(json.loads(ip(name, "-j", "route", "get", address))[0]["dev"])
        except LabError as no_route:
            links = [link["ifname"] for link in json.loads(ip(name, "-j", "link", "show", "up"))]
            for interface in links:
                if interface != "lo":
                    return str(interface)
            raise LabError(f"{name} has no interface that is up") from no_route

    def _gateway(self, name: str, interface: str) -> str | None:
        """The MAC of the default route's next hop, as the kernel knows it after the first control."""
        ip = self.ground.place.ip
        for route in json.loads(ip(name, "-j", "route", "show", "default", "dev", interface) or "[]"):
            for near in json.loads(ip(name, "-j", "neigh", "show", route.get("gateway", "0.0.0.0")) or "[]"):
                if "lladdr" in near:
                    return str(near["lladdr"])
        return None

    def _mount(self, probes: Probes) -> Probes:
        """Sends every frame, then tries the kernel's own sockets."""
        x, y = probes.x, probes.y
        x.node.send(*(p.frame for p in probes.all), interface=x.interface)
        x.node.tcp(y.address, SSH, timeout=SETTLE_S)
        x.node.udp(y.address, DNS, probes.mark, timeout=SETTLE_S)
        x.node.pings(y.address, f"-W{SETTLE_S}")
        return probes

    # What the others are made of

    def _way(self, a: str, b: str, what: What) -> What | None:
        """The address and port for it, or None if there is none."""
        try:
            return self.ground.way(a, b, *what)
        except LabError:
            return None

    def _every_way(self, a: str, b: str) -> list[What]:
        self.ground.address(a, b)
        if not (ways := [what for what in EVERYTHING if self._way(a, b, what)]):
            raise LabError(f"there is no way from {a} to {b} that could be tried")
        return ways

    def _try(self, a: str, b: str, wanted: Sequence[What], patience_s: float) -> list[Attempt]:
        """Tries it all, one after the other, and says what became of each; `patience_s` is for one's answer."""
        attempts = [Attempt(*what, *self.ground.way(a, b, *what)) for what in wanted]
        known_as = self.ground.address(b, a)
        speaker, target = self.node(a), self.node(b)
        facing = self._facing(b, known_as), self._facing(a, attempts[0].address)
        with ExitStack() as stack:
            heard = [self._serve(stack, target, *what) for what in wanted]
            there = stack.enter_context(target.watch(facing[0], settle_s=0))
            back = stack.enter_context(speaker.watch(facing[1]))
            for attempt in attempts:
                attempt.make(speaker, patience_s)
        filters = self.ground.filters(b)
        for attempt, ears in zip(attempts, heard, strict=True):
            attempt.judge(ears if filters else there, back, known_as)
        return attempts

    @staticmethod
    def _serve(stack: ExitStack, node: Node, protocol: str, port: int) -> Heard:
        """A service for the time of the stack, unless one is there already, as there is for pings; what it heard."""
        if protocol == "ping":
            return Heard()
        try:
            return stack.enter_context(node.listen(protocol, port, settle_s=0))
        except NodeError as error:
            if "Address already in use" not in str(error):
                raise
            return Heard()

    # Saying it

    def _begin(self) -> None:
        """A new assertion: nothing done yet, nothing seen."""
        self._journal.clear()
        for node in self._nodes.values():
            node.collected.clear()

    def _fail(self, headline: str, seen: Sequence[str], tried: str, name: str) -> None:
        """AssertionError with the evidence: of lines that differ in numbers only, the first."""
        __tracebackhide__ = True
        kinds: dict[str, str] = {}
        for line in seen:
            kinds.setdefault(_NUMBER.sub("", line.partition(": ")[0]), line)
        lines = list(kinds.values())[:SHOWN]
        more = [f"... and {len(seen) - len(lines)} more"] if len(seen) > len(lines) else []
        file = save(self.captures / f"{name}-{secrets.token_hex(3)}.pcap", self._nodes.values())
        told = [f"tried: {tried}", f"capture: {file}"]
        raise AssertionError("\n  ".join([f"{headline} ({self.ground.title})", *lines, *more, *told]))


def _named(tcp: int | None, udp: int | None, ping: bool) -> list[What]:
    ports = [("tcp", tcp), ("udp", udp), ("ping", 0 if ping else None)]
    return [(protocol, port) for protocol, port in ports if port is not None]


def _control(holds: bool, sentence: str) -> None:
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(f"this proves nothing, since something is broken: it had to hold that {sentence}")


def _check_seen(probes: Probes, x_saw: Seen, y_saw: Seen) -> None:
    """That every frame left, and that the eyes at the other end see."""
    __tracebackhide__ = True
    left = len({probes.number(f) for f in x_saw.own} - {None})
    _control(left == len(probes.all), f"all of {probes.x.name}'s {len(probes.all)} frames leave it; {left} did")
    _control(bool(y_saw.frames), f"{probes.y.name}'s eyes see what is for it; they saw nothing at all")


def _received(probes: Probes, y_saw: Seen, spoken: bytes, witness: str) -> list[str]:
    """What one side received of the other's, a line each."""
    x, y = probes.x, probes.y
    lines = []
    for frame in y_saw.frames:
        if spoken in frame.raw:
            lines.append(f"{y.name} saw what {x.name} said to {witness}: {frame}")
        elif (number := probes.number(frame)) is not None:
            lines.append(f"{y.name} received {x.name}'s {probes.all[number].sentence}: {frame}")
        elif probes.mark in frame.raw or _is_from(frame, x):
            lines.append(f"{y.name} received a frame of {x.name}'s: {frame}")
    return lines


def _is_from(frame: Frame, x: Side) -> bool:
    p = frame.packet
    as_ip = IP in p and p[IP].src == x.address
    as_arp = ARP in p and x.mac == p[ARP].hwsrc
    return bool(as_ip or as_arp or p.src == x.mac)


def _answered(probes: Probes, x_saw: Seen) -> list[str]:
    """What came back to the one from the other, of what only an answer can be."""
    y = probes.y

    def answers(p: Packet) -> bool:
        if ARP in p:
            return bool(p[ARP].op == 2 and p[ARP].psrc == y.address and p[ARP].hwsrc == y.mac)
        pong = ICMP in p and p[ICMP].type == 0
        return IP in p and p[IP].src == y.address and (pong or accepts(p))

    return [f"{probes.x.name} got an answer of {y.name}'s: {f}" for f in x_saw.having(answers)]
