"""Traffic and what arrives of it, in a namespace: each prints "up" when it is there, and at its end a line of JSON.

python meter.py receive tcp|udp WARM_S SECONDS        what arrives after WARM_S: {"bits", "seconds"} of payload
python meter.py send tcp|udp ADDRESS BITS_PER_S SIZE SEGMENTS
                                                      sends until it is killed; UDP of SIZE bytes, SEGMENTS to a frame (GSO)
python meter.py echo                                  for `trips`, and a sink for `send tcp`
python meter.py trips ADDRESS SECONDS                 64 bytes to and fro: {"trips", "p50", "p99"} in ms
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from contextlib import suppress

PORT, ECHO_PORT = 7000, 7100
UDP_SEGMENT, UDP_GRO, SO_RCVBUFFORCE = 103, 104, 33
CHUNK = 1 << 20


def _bound(kind: str) -> socket.socket:
    if kind == "tcp":
        return socket.create_server(("0.0.0.0", PORT))
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    made.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    made.bind(("0.0.0.0", PORT))
    return made


def receive(kind: str, warm_s: float, seconds: float) -> None:
    """Counts from the first arrival after the warming up."""
    source = _bound(kind)
    print("up", flush=True)
    if kind == "tcp":
        source = source.accept()[0]
    source.settimeout(30)
    source.recv(CHUNK)
    begin = time.monotonic() + warm_s
    while (start := time.monotonic()) < begin:
        source.recv(CHUNK)
    bits = 0
    while (now := time.monotonic()) < start + seconds:
        bits += 8 * len(source.recv(CHUNK))
    print(json.dumps({"bits": bits, "seconds": now - start}), flush=True)


def send(kind: str, address: str, bits_per_s: float, size: int, segments: int) -> None:
    """TCP as fast as it goes; UDP at this rate, or as fast as it goes."""
    if kind == "tcp":
        sender = socket.create_connection((address, PORT))
        print("up", flush=True)
        with suppress(ConnectionError):  # the receiver has had enough
            while True:
                sender.sendall(bytes(CHUNK))
        return
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if segments > 1:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    sender.connect((address, PORT))
    frame = bytes(size * segments)
    gap, due = 8 * len(frame) / bits_per_s, time.monotonic()
    print("up", flush=True)
    while True:
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        due = max(due + gap, time.monotonic() - 0.05)
        with suppress(OSError):  # its queue is full, or nobody listens there any more
            sender.send(frame)


def _drain(connection: socket.socket) -> None:
    while connection.recv(CHUNK):
        pass


def _echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(64):
        connection.sendall(data)


def _serve(port: int, each: object) -> None:
    server = socket.create_server(("0.0.0.0", port), backlog=64)
    while True:
        threading.Thread(target=each, args=(server.accept()[0],), daemon=True).start()  # type: ignore[arg-type]


def echo() -> None:
    """Both services, until it is killed."""
    threading.Thread(target=_serve, args=(PORT, _drain), daemon=True).start()
    print("up", flush=True)
    _serve(ECHO_PORT, _echo)


def trips(address: str, seconds: float) -> None:
    """One question every two milliseconds, and each waits for its answer."""
    connection = socket.create_connection((address, ECHO_PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("up", flush=True)
    end, took = time.monotonic() + seconds, []
    while (began := time.monotonic()) < end:
        connection.sendall(bytes(64))
        left = 64
        while left:
            left -= len(connection.recv(left)) or sys.exit("the other end is gone")
        took.append(1000 * (time.monotonic() - began))
        time.sleep(0.002)
    took.sort()
    p50, p99 = (round(took[int(len(took) * part)], 2) for part in (0.5, 0.99))
    print(json.dumps({"trips": len(took), "p50": p50, "p99": p99}), flush=True)


def main(what: str, *words: str) -> None:
    """One of the above."""
    if what == "receive":
        receive(words[0], float(words[1]), float(words[2]))
    elif what == "send":
        send(words[0], words[1], float(words[2]), int(words[3]), int(words[4]))
    elif what == "trips":
        trips(words[0], float(words[1]))
    else:
        echo()


if __name__ == "__main__":
    main(*sys.argv[1:])
