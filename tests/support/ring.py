"""Sends a frame through an AF_PACKET transmit ring, as packet generators do: its linear part is short.

python ring.py INTERFACE HEXFRAME COUNT
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys

SOL_PACKET, PACKET_TX_RING = 263, 13
BLOCK, FRAME, FRAMES = 4096, 2048, 64
SEND_REQUEST = 1
DATA_AT = 32


def main() -> None:
    interface, frame, count = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
        s.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("IIII", BLOCK, FRAME * FRAMES // BLOCK, FRAME, FRAMES))
        ring = mmap.mmap(s.fileno(), FRAME * FRAMES)
        s.bind((interface, 0))
        for number in range(count):
            at = FRAME * (number % FRAMES)
            ring[at + DATA_AT : at + DATA_AT + len(frame)] = frame
            ring[at + 8 : at + 12] = struct.pack("I", len(frame))
            ring[at : at + 8] = struct.pack("Q", SEND_REQUEST)
            s.send(b"")


if __name__ == "__main__":
    main()
