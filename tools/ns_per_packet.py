"""What the fastpath costs: nanoseconds per packet on each path, by the kernel's own BPF statistics.

    .venv/bin/python tools/ns_per_packet.py [PREFIX]        with the lab up; PREFIX is "lab-" unless another is given

Each path's traffic runs alone, a few seconds at most; the statistics are switched on for that time only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfr_lab.bench.cost import spent, statistics

SENDER = """
import socket, sys
kind, address, port, count, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
if kind == "udp":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((address, port))
    for _ in range(count):
        try:
            s.send(bytes(size))
        except ConnectionRefusedError:
            pass
elif kind == "stream":
    s = socket.create_connection((address, port))
    for _ in range(count):
        s.sendall(bytes(size))
    s.shutdown(socket.SHUT_WR)
    while s.recv(1 << 16):
        pass
else:
    for _ in range(count):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect((address, port))
        s.send(bytes(size))
        s.close()
"""
SINK = """
import socket, sys, threading
def drain(c):
    while c.recv(1 << 20):
        pass
    c.close()
tcp = socket.create_server(("0.0.0.0", int(sys.argv[1])))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    threading.Thread(target=drain, args=(tcp.accept()[0],), daemon=True).start()
"""


def node(prefix: str, name: str, code: str, *arguments: object) -> list[str]:
    return ["ip", "netns", "exec", prefix + name, sys.executable, "-c", code, *map(str, arguments)]


@contextmanager
def sink(prefix: str, name: str, port: int) -> Iterator[None]:
    server = subprocess.Popen(node(prefix, name, SINK, port), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    try:
        yield
    finally:
        server.kill()
        server.wait()


def measure(prefix: str, pins: Path, what: str, sender: str, receiver: str, *arguments: object) -> None:
    """One line of the table: what each program cost a packet, while nothing else was on the way."""
    address, port = arguments[1], arguments[2]
    with sink(prefix, receiver, int(str(port))), statistics():
        before = spent(pins)
        subprocess.run(node(prefix, sender, SENDER, *arguments), check=True)
        after = spent(pins)
    cells = []
    for name, (ns, runs) in after.items():
        more = runs - before[name][1]
        cells.append(f"{name} {(ns - before[name][0]) / more:6.0f} ns x {more}" if more else f"{name} -")
    print(f"{what:44} to {address}: {', '.join(cells)}", flush=True)


def main() -> None:
    prefix = sys.argv[1] if len(sys.argv) > 1 else "lab-"
    pins = Path(f"/run/vfr/netns/{prefix}dom0/bpf")
    for _ in range(3):
        measure(
            prefix, pins, "domain to LAN, UDP 18 bytes, one flow", "web", "lan1", "udp", "192.0.2.11", 9000, 200000, 18
        )
        measure(prefix, pins, "domain to LAN, TCP stream", "web", "lan1", "stream", "192.0.2.11", 9000, 2000, 1 << 20)
        measure(prefix, pins, "domain 0 to domain, UDP 18 bytes", "dom0", "web", "udp", "169.254.1.2", 9000, 200000, 18)
        measure(
            prefix, pins, "domain to LAN, a new UDP flow each", "web", "lan1", "flows", "192.0.2.11", 9000, 2000, 18
        )


if __name__ == "__main__":
    main()
