"""Sends a frame with a virtio-net header in front, as a VM does: the sender says where a checksum is to be
completed later, and into what segments the frame is to be cut. Into a TAP as the VM behind it, or by AF_PACKET.

python vnet.py INTERFACE HEXFRAME CSUM_START CSUM_OFFSET [GSO_SIZE [GSO_TYPE]]

With CSUM_OFFSET 0 at CSUM_START 0 no checksum is to be completed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

TUNSETIFF, TAP_WITH_VNET_HDR = 0x400454CA, 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM, GSO_NONE = 1, 0
GSO_TCPV4, GSO_UDP, GSO_UDP_L4 = 1, 3, 5


def send_by_tap(interface: str, data: bytes) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), TAP_WITH_VNET_HDR))
    os.write(tap, data)
    os.close(tap)


def send_by_socket(interface: str, data: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
        s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        s.bind((interface, 0))
        s.send(data)


def main() -> None:
    interface, frame = sys.argv[1], bytes.fromhex(sys.argv[2])
    start, offset, *gso = (int(a) for a in sys.argv[3:])
    size, kind = (*gso, GSO_TCPV4)[:2] if gso else (0, GSO_NONE)
    flags = NEEDS_CSUM if start or offset else 0
    headers = 54 if kind in (GSO_NONE, GSO_TCPV4) else 42
    data = struct.pack("<BBHHHH", flags, kind, headers, size, start, offset) + frame
    tap = Path(f"/sys/class/net/{interface}/tun_flags").exists()
    (send_by_tap if tap else send_by_socket)(interface, data)


if __name__ == "__main__":
    main()
