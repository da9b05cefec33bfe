"""Sends a frame by AF_PACKET with a virtio-net header in front, as a VM does: the sender says where a
checksum is to be completed later.

python vnet.py INTERFACE HEXFRAME CSUM_START CSUM_OFFSET [GSO_SIZE]
"""

from __future__ import annotations

import socket
import struct
import sys

SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM, GSO_NONE, GSO_TCPV4 = 1, 0, 1


def main() -> None:
    interface, frame = sys.argv[1], bytes.fromhex(sys.argv[2])
    start, offset, *gso = (int(a) for a in sys.argv[3:])
    kind, size = (GSO_TCPV4, gso[0]) if gso else (GSO_NONE, 0)
    header = struct.pack("<BBHHHH", NEEDS_CSUM, kind, 54, size, start, offset)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
        s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        s.bind((interface, 0))
        s.send(header + frame)


if __name__ == "__main__":
    main()
