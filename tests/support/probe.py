"""What runs in a lab's node to tell how somebody fares there: sessions that last, and new ones.

python probe.py serve ADDRESS PORT               an echo server for `session`; says "up"
python probe.py session ADDRESS PORT PERIOD_S    one TCP session that echoes a number every period
python probe.py connects ADDRESS PORT            reads a number of seconds a line; opens a connection to an
                                                 echo service of the lab's every PACE_S for as long

All end with their standard input. `session` says "up" when its first number came back, and at its end one
line of JSON; `connects` answers each line with one.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time

ANSWER_S = 10
PACE_S = 0.005


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def serve(address: str, port: int) -> None:
    """Echoes for everybody, each in a thread."""
    with socket.create_server((address, port)) as server:
        print("up", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            threading.Thread(target=_echo, args=(server.accept()[0],), daemon=True).start()


def _round_trip(connection: socket.socket, number: int) -> float:
    """Milliseconds; an OSError if the number does not come back whole."""
    began, wanted, got = time.monotonic(), number.to_bytes(8, "big"), b""
    connection.sendall(wanted)
    while len(got) < len(wanted) and (more := connection.recv(8)):
        got += more
    if got != wanted:
        raise ConnectionError(f"sent {wanted.hex()}, got {got.hex()}")
    return (time.monotonic() - began) * 1000


def session(address: str, port: int, period_s: float) -> None:
    """One session for as long as standard input is open."""
    took, lost = [], ""
    with socket.create_connection((address, port), ANSWER_S) as connection:
        try:
            took.append(_round_trip(connection, 0))
            print("up", flush=True)
            while not select.select([sys.stdin], [], [], period_s)[0]:
                took.append(_round_trip(connection, len(took)))
        except OSError as error:
            lost = repr(error)
    print(json.dumps({"echoes": len(took), "worst_ms": round(max(took, default=0), 2), "lost": lost}), flush=True)


def _connect(address: str, port: int) -> float:
    """Milliseconds until the service has answered; an OSError if it does not."""
    began = time.monotonic()
    with socket.create_connection((address, port), ANSWER_S) as connection:
        if not connection.recv(99):
            raise ConnectionError("closed without an answer")
    return (time.monotonic() - began) * 1000


def _connects(address: str, port: int, seconds: float) -> dict[str, object]:
    took: list[float] = []
    failed: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            took.append(_connect(address, port))
        except OSError as error:
            failed.append(repr(error))
        time.sleep(PACE_S)
    took.sort()
    at = {name: round(took[int(q * (len(took) - 1))], 2) if took else None for name, q in (("p50", 0.5), ("p99", 0.99))}
    return {"opened": len(took), "failed": failed, **at}


def connects(address: str, port: int) -> None:
    """Opens connections whenever it is told to."""
    print("up", flush=True)
    for line in sys.stdin:
        print(json.dumps(_connects(address, port, float(line))), flush=True)


if __name__ == "__main__":
    what, where, number, *more = sys.argv[1:]
    {"serve": serve, "session": session, "connects": connects}[what](where, int(number), *(float(m) for m in more))
