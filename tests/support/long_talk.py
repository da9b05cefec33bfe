"""Programs that talk until they are told to end, and then say what they sent or heard."""

from __future__ import annotations

import subprocess
import sys

from support.host import Host

SEND_UDP = """
import socket, sys, time
address, port, size, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: what is too long is cut
s.connect((address, port))
print("up", flush=True)
import select
number = 0
while not select.select([sys.stdin], [], [], pause)[0]:
    s.send(number.to_bytes(8, "big").ljust(size, b"."))
    number += 1
time.sleep(0.3)
print(number, flush=True)
"""
RECEIVE_UDP = """
import select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: it is the network that is measured
s.bind(("", int(sys.argv[1])))
print("up", flush=True)
seen = set()
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        seen.add(s.recv(65536)[:8])
    elif sys.stdin in ready:
        break
print(len(seen), flush=True)
"""
TCP = """
import socket, sys, hashlib
if sys.argv[1] == "listen":
    l = socket.create_server(("", 9001))
    print("up", flush=True)
    c = l.accept()[0]
    made, total = hashlib.sha256(), 0
    while data := c.recv(1 << 16):
        made.update(data)
        total += len(data)
    print(total, made.hexdigest(), flush=True)
else:
    import select, os, time
    c = socket.create_connection((sys.argv[1], 9001))
    print("up", flush=True)
    made, total = hashlib.sha256(), 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        data = os.urandom(20000)
        c.sendall(data)
        made.update(data)
        total += len(data)
    c.close()
    print(total, made.hexdigest(), flush=True)
"""


class Program:
    """A Python program in a node; told to end by a line."""

    def __init__(self, host: Host, node: str, code: str, *arguments: str) -> None:
        self._argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", code, *arguments]

    def __enter__(self) -> Program:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, text=True)
        assert self.line() == "up"
        return self

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Its last words."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
