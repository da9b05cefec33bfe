"""The generators and receivers of load.c: two ends in two nodes, and what the measuring one has to say."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vfr_lab.lab import BUILD, Lab, run, wait_until

SOURCE = Path(__file__).with_name("load.c")
PROGRAM = BUILD / "bench" / "load"
PATIENCE_S = 30
# UDP ports of the ring's flows are counted up from here (give_ports in load.c).
FLOW_PORT, FLOW_PORTS = 20000, 1000


class LoadError(Exception):
    """A workload that cannot be had here: the kernel's or the generator's own words."""


@cache
def program() -> str:
    """The path of load.c's program, compiled if it is older than its source."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as own:  # somebody else may compile it now, too
            fresh = Path(own, PROGRAM.name)
            run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", str(SOURCE), "-o", str(fresh)])
            fresh.rename(PROGRAM)
    return str(PROGRAM)


def cpus() -> tuple[int, int]:
    """Two CPUs, one for each end: left to itself the scheduler puts both ends on one at times, and figures halve.

    One and the same if there is only one.
    """
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def _end(lab: Lab, node: str, arguments: Sequence[object], cpu: int) -> Iterator[subprocess.Popen[str]]:
    """The program in a node, on that CPU; it ends with the block, by the end of its standard input."""
    argv = lab.argv(node, ["taskset", "-c", str(cpu), program(), *map(str, arguments)])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.stdout.close()


def _line(ends: Sequence[subprocess.Popen[str]], what: str) -> tuple[int, str]:
    """Whose line came first, and the line. LoadError if none comes in time."""
    outputs = [end.stdout for end in ends if end.stdout is not None]
    ready = select.select(outputs, [], [], PATIENCE_S)[0]
    if not ready:
        raise LoadError(f"{what} said nothing for {PATIENCE_S} s")
    return outputs.index(ready[0]), ready[0].readline()


def _answer(line: str, what: str) -> dict[str, Any]:
    if not line:
        raise LoadError(f"{what} ended without a word")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise LoadError(f"{what}: {answer['error']}")
    return answer


def between(
    lab: Lab,
    mode: str,
    server: tuple[str, Sequence[object]],
    client: tuple[str, Sequence[object]],
    measures: str,
    one_cpu: bool = False,
) -> dict[str, Any]:
    """What the measuring end ("server" or "client") says. Each end is its node, and its arguments after the mode's
    listen or connect. LoadError if either end fails."""
    names = ("server", "client")
    first, last = cpus()
    with _end(lab, server[0], [mode, "listen", *server[1]], last if one_cpu else first) as listener:
        _, line = _line([listener], f"the {mode} server")
        if line != "up\n":
            raise LoadError(f"the {mode} server: {line.strip()}")
        with _end(lab, client[0], [mode, "connect", *client[1]], last) as connector:
            ends = [listener, connector]
            who, line = _line(ends, mode)
            if not line and names[who] != measures:  # the other end is done, and what it was for comes now
                ends = [ends[names.index(measures)]]
                who, line = _line(ends, mode)
            return _answer(line, f"the {mode} {names[who] if len(ends) == 2 else measures}")


def ring(
    lab: Lab, node: str, interface: str, frame: bytes, seconds: float, frames: int = 0, flows: int = 1, first: int = 0
) -> dict[str, Any]:
    """Sends a frame by a ring, as load.c says: {"sent", "seconds", "busy_s"}."""
    with _end(lab, node, ["ring", interface, frame.hex(), seconds, frames, flows, first], cpus()[1]) as sender:
        return _answer(_line([sender], "the ring")[1], "the ring")


# What the ring's frames come to


class Drain:
    """The flows' frames end at once where a node receives them, and are counted: nothing of its stack is measured."""

    def __init__(self, lab: Lab, node: str, interface: str) -> None:
        self._lab, self._node, self._interface = lab, node, interface

    def __enter__(self) -> Drain:
        ports = f"{FLOW_PORT}-{FLOW_PORT + FLOW_PORTS - 1}"
        rules = (
            f"table netdev bench {{ counter arrived {{ }}; chain ingress {{ type filter hook ingress"
            f' device "{self._interface}" priority 0; udp dport {ports} counter name arrived drop; }}; }}'
        )
        self._lab.exec(self._node, "nft", rules)
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.exec(self._node, "nft", "delete table netdev bench")

    def _now(self) -> int:
        listed = self._lab.exec(self._node, "nft", "-j", "list", "counters", "table", "netdev", "bench").stdout
        return next(int(e["counter"]["packets"]) for e in json.loads(listed)["nftables"] if "counter" in e)

    def arrived(self) -> int:
        """How many came, once no more are on the way."""
        seen = [-1]

        def still() -> bool:
            seen.append(self._now())
            return seen[-1] == seen[-2]

        wait_until(still, "the last frame's arrival")
        return seen[-1]


def _neighbour(lab: Lab, node: str, device: str, address: str) -> str | None:
    shown = json.loads(lab.ip(node, "-j", "neigh", "show", "dev", device) or "[]")
    return next((n["lladdr"] for n in shown if n["dst"] == address and "lladdr" in n), None)


def frame(lab: Lab, node: str, to: str) -> tuple[str, bytes]:
    """By which interface a node sends to an address, and a UDP frame of 60 bytes for it; 64 with its checksum.

    LoadError if its next hop does not answer ARP.
    """
    route = json.loads(lab.ip(node, "-j", "route", "get", to))[0]
    device, source, hop = route["dev"], route["prefsrc"], route.get("gateway", to)
    if _neighbour(lab, node, device, hop) is None:
        lab.exec(node, "ping", "-n", "-c1", "-W0.3", to, check=False)
    mac = _neighbour(lab, node, device, hop)
    if mac is None:
        raise LoadError(f"nobody answers {node}'s ARP for {hop}")
    own = json.loads(lab.ip(node, "-j", "link", "show", device))[0]["address"]
    return device, udp_frame(own, mac, source, to)


def udp_frame(own_mac: str, to_mac: str, source: str, to: str) -> bytes:
    """60 bytes: UDP without a checksum, from and to the first of the flows' ports."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    udp = UDP(sport=FLOW_PORT, dport=FLOW_PORT, chksum=0) / bytes(18)
    return bytes(Ether(src=own_mac, dst=to_mac) / IP(src=source, dst=to) / udp)


def interface_of(lab: Lab, node: str, address: str) -> str:
    """The node's interface that has the address."""
    shown = json.loads(lab.ip(node, "-j", "address", "show", "to", address))
    return next(str(link["ifname"]) for link in shown if link.get("ifname"))
