"""Where attacks are mounted: the nodes of a lab, their facts, and the journal of one attack.

web (attacker)   db (victim)   ci (bystander)
     |                |             |
     +-------------- dom0 ----------+
                      | 192.0.2.1
 lan1 (serves) --- [switch] --- lan2 (attacker on the LAN)     inet behind a router
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from vfr_lab.backends import GATEWAY, Backend
from vfr_lab.capture import save
from vfr_lab.lab import Lab, wait_until
from vfr_lab.node import Node
from vfr_lab.scenario import Guest

ECHO = 7  # of lan1 and inet: says who asks
SSH = 22


class VoidError(Exception):
    """The attack proves nothing here; the text says why."""


class Stage:
    """The nodes of a lab with agents in them, wired by one backend.

    `mark` is other bytes for each attack, and `port` another source port, so that no attack is taken for an earlier
    one's continuation: the host's connection tracking outlives a change of backend.
    """

    outside, gateway = "192.0.2.1", GATEWAY  # dom0's LAN address; what guests send to

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.sent: list[str] = []
        self.controls: list[str] = []
        self.mark, self.port = b"", 0
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        names = ("web", "db", "ci", "dom0", "lan1", "lan2", "inet", "router", "switch")
        try:
            self._nodes = {n: self._stack.enter_context(Node(self.lab, n, self.say)) for n in names}
        except BaseException:
            self._stack.close()
            raise
        self.web, self.db, self.ci, self.dom0, self.lan1, self.lan2, self.inet, self.router, self.switch = (
            self._nodes[n] for n in names
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    # Facts

    @property
    def backend(self) -> Backend:
        return self.lab.backend

    def guest(self, name: str) -> Guest:
        return next(g for g in self.lab.scenario.guests if g.name == name)

    def address(self, name: str) -> str:
        """A node's own address: of a guest, on the router; of others, on their network."""
        s = self.lab.scenario
        found = {h.name: h.address for h in (s.dom0, *s.lan, s.router, s.inet)} | {g.name: g.address for g in s.guests}
        return found[name]

    def gateway_mac(self, guest: str = "web") -> str:
        """What a guest's kernel takes for the gateway's MAC."""
        mac = self._nodes[guest].knows(GATEWAY)
        if mac is None:
            raise VoidError(f"{guest} cannot find the gateway")
        return mac

    def vif(self, guest: str) -> str:
        """The guest's interface in dom0."""
        return self.backend.vif(self.lab, self.guest(guest))

    # The nodes' kernels

    @contextmanager
    def sysctls(self, node: str, pattern: str, value: str) -> Iterator[None]:
        """Sets all of a node's sysctls that match a regular expression; afterwards they are as they were."""
        found = self.lab.exec(node, "sysctl", "-a", "-r", pattern).stdout.splitlines()
        before = dict(line.split(" = ") for line in found)
        try:
            self.lab.exec(node, "sysctl", "-qw", *(f"{key}={value}" for key in before))
            yield
        finally:
            self.lab.exec(node, "sysctl", "-qw", *(f"{key}={old}" for key, old in before.items()))

    def conf(self, node: str, name: str) -> AbstractContextManager[None]:
        """Turns net.ipv4.conf.*.NAME on, for all interfaces of a node."""
        return self.sysctls(node, rf"^net\.ipv4\.conf\.[^.]+\.{name}$", "1")

    def counter(self, node: str, name: str) -> int:
        """One of the counters that a node's kernel keeps of its IP stack, by nstat's name for it."""
        found = json.loads(self.lab.exec(node, "nstat", "-azj", name).stdout)
        return int(found["kernel"][name])

    # One attack

    def say(self, line: str) -> None:
        """A line for the journal: what is done."""
        self.sent.append(line)

    def control(self, sentence: str, holds: object) -> None:
        """Something that must be so for the attack to prove anything. VoidError if it is not."""
        if not holds:
            raise VoidError(f"this had to hold: {sentence}")
        self.controls.append(sentence)

    def begin(self) -> None:
        """A new attack: an empty journal, and bytes that no other attack has sent."""
        self.sent, self.controls, self.mark = [], [], b"mark" + secrets.token_hex(8).encode()
        self.port = 10000 + secrets.randbelow(20000)
        for node in self._nodes.values():
            node.collected.clear()

    def is_healthy(self) -> bool:
        """Whether guests do their everyday business: what an attack must find, and the next one too."""
        if not self.backend.everyday:
            return True
        lan1, guests = self.address("lan1"), self.lab.scenario.guests
        return all(self._nodes[g.name].tcp(lan1, ECHO, timeout=1) for g in guests) and all(
            self.lan1.tcp(self.outside, g.forward, timeout=1).startswith("SSH-") for g in guests if g.forward
        )

    def forget(self) -> None:
        """All kernels forget what they have learned: neighbours, redirects, path MTUs, connections, places of MACs."""
        for node in self._nodes.values():
            self.lab.ip_batch(node.name, "neigh flush all", "route flush cache", "tcp_metrics flush")
            for bridge in json.loads(self.lab.ip(node.name, "-j", "link", "show", "type", "bridge")):
                if bridge:
                    flush = ("bridge", "fdb", "flush", "dev", bridge["ifname"], "self", "dynamic")
                    self.lab.exec(node.name, *flush)
        self.lab.exec("dom0", "conntrack", "-F")

    def wire(self, backend: Backend) -> None:
        """Takes the present wiring down, and puts this one up."""
        self.lab.rewire(backend)
        self.forget()
        wait_until(self.is_healthy, f"{backend.name}'s coming up")

    def capture(self, file: Path) -> Path | None:
        """Writes what was watched during this attack as a pcap file; None if nothing was."""
        return save(file, self._nodes.values())
