"""The echo service of a lab host: TCP and UDP port 7. It answers with the address it was asked from.

python -m vfr_lab.echo
"""

from __future__ import annotations

import socketserver
import threading

PORT = 7


class _Tcp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.client_address[0].encode())


class _Udp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(self.client_address[0].encode(), self.client_address)


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


def main() -> None:
    udp = socketserver.UDPServer(("0.0.0.0", PORT), _Udp)
    threading.Thread(target=udp.serve_forever, daemon=True).start()
    with _TcpServer(("0.0.0.0", PORT), _Tcp) as tcp:
        tcp.serve_forever()


if __name__ == "__main__":
    main()
