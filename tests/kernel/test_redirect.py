"""What deliver.h takes for granted: who gets a frame, and that the host need not forward for it.

k-from: eth0 ---veth--- k-router: v0      v1 ---veth--- eth0 :k-into
                        k-router: vif0 ---veth--- vfr0 :k-router
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.netns import index_of, inside, ip, mac_of, namespaces, packet_socket, run, udp_socket

from vfr.kernel import bpf, loader

SENDER, RECEIVER = "192.0.2.1", "192.0.2.2"
Load = Callable[[str], Path]


@pytest.fixture
def triangle() -> Iterator[None]:
    with namespaces("k-from", "k-router", "k-into"):
        for number, guest in enumerate(("k-from", "k-into")):
            ip("k-router", f"link add v{number} type veth peer name eth0 netns {guest}")
            ip("k-router", f"link set v{number} up")
            ip(guest, "link set eth0 up")
        ip("k-router", "link add vif0 type veth peer name vfr0")
        for name in ("vif0", "vfr0"):
            ip("k-router", f"link set {name} up")
        run("ip", "netns", "exec", "k-router", "sysctl", "-qw", "net.ipv4.ip_forward=0")
        yield


def _arm(pins: Path, program: str, target: str) -> None:
    """At v0's ingress, by clsact, which every kernel has: `program` with `target` as its interface."""
    bpf.Map(bpf.get_pinned(pins / "target"), "target", 4, 4, 1).set(
        bytes(4), index_of("k-router", target).to_bytes(4, "little")
    )
    inside("k-router", loader.clsact_attach, index_of("k-router", "v0"), bpf.get_pinned(pins / program))


def _own(netns: str, device: str) -> None:
    """Gives the device the receiver's address, and the way back to the sender."""
    ip(netns, f"addr add {RECEIVER}/32 dev {device}")
    ip(netns, f"route add {SENDER}/32 dev {device}")


def _send(text: bytes, to_mac: str) -> None:
    header = Ether(src=mac_of("k-from", "eth0"), dst=to_mac) / IP(src=SENDER, dst=RECEIVER)
    with packet_socket("k-from", "eth0") as sender:
        sender.send(bytes(header / UDP(sport=7, dport=7777) / Raw(text)))


def test_redirect_peer_delivers_into_another_namespace(triangle: None, probe: Load) -> None:
    _arm(probe("redirect"), "to_peer", "v1")
    _own("k-into", "eth0")
    with udp_socket("k-into", RECEIVER, 7777) as receiver, packet_socket("k-router", "v1") as passing:
        _send(b"over", mac_of("k-into", "eth0"))
        assert receiver.recvfrom(100) == (b"over", (SENDER, 7))
        passing.setblocking(False)
        with pytest.raises(BlockingIOError):  # it did not go by the host's end of the veth
            passing.recv(2000)


def test_redirect_peer_does_not_deliver_within_a_namespace(triangle: None, probe: Load) -> None:
    """Which is why domain 0 is handed its packets by BPF_F_INGRESS."""
    pins = probe("redirect")
    _arm(pins, "to_peer", "vif0")
    _own("k-router", "vfr0")
    with udp_socket("k-router", RECEIVER, 7777) as receiver:
        _send(b"lost", mac_of("k-router", "vfr0"))
        _arm(pins, "to_ingress", "vfr0")
        _send(b"found", mac_of("k-router", "vfr0"))
        assert receiver.recv(100) == b"found"


def test_ingress_redirect_reaches_the_host_without_forwarding(triangle: None, probe: Load) -> None:
    _arm(probe("redirect"), "to_ingress", "vfr0")
    _own("k-router", "vfr0")
    with udp_socket("k-router", RECEIVER, 7777) as receiver:
        _send(b"in", mac_of("k-router", "vfr0"))
        assert receiver.recvfrom(100) == (b"in", (SENDER, 7))
    forwarding = run("ip", "netns", "exec", "k-router", "sysctl", "-n", "net.ipv4.ip_forward")
    assert forwarding.strip() == "0"
