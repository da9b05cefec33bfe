"""RFC 3927, link-local addresses: where VFR keeps to it, and that nothing of its own range gets out.
docs/rfc.md is the list."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from itertools import product

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from support import world
from support.bench import Bench
from support.frames import LAN_ADDRESS, arp, arp_answer, ip, tcp, udp
from support.sides import PROTOCOLS, RULES, sides

from vfr.forwards import POOL
from vfr.spec.model import LAN

WEB = world.SLOTS["web"]
LINK_LOCAL = IPv4Network("169.254.0.0/16")


def test_s2_1_the_pool_is_outside_the_reserved_ranges() -> None:
    """The first and the last 256 addresses of 169.254/16 are nobody's."""
    assert POOL.subnet_of(LINK_LOCAL)
    assert not POOL.overlaps(IPv4Network("169.254.0.0/24")) and not POOL.overlaps(IPv4Network("169.254.255.0/24"))


def test_s2_2_1_a_probe_for_an_address_is_met_with_silence(bench: Bench) -> None:
    """Else a guest would take its own address for taken."""
    sides(bench, RULES + "allow any -> any\n")
    for target in ("169.254.1.2", "169.254.1.0", "169.254.1.3", "169.254.1.99"):
        seen = bench.send(WEB, bytes(arp("web", target, psrc="0.0.0.0")))
        assert (seen.verdict.name, seen.frame) == ("DROP_ARP_PROBE", None), target


def test_s2_5_no_one_can_claim_another_s_address(bench: Bench) -> None:
    sides(bench)
    for address in ("169.254.1.3", "169.254.1.0", "169.254.9.9"):
        seen = bench.send(WEB, bytes(arp("web", address, psrc=address)))
        assert (seen.verdict.name, seen.frame) == ("DROP_ARP_SENDER", None), address


def test_s2_6_2_a_peer_on_the_same_link_is_found_by_arp(bench: Bench) -> None:
    """A guest with a route to all of 169.254/16 asks for its peer itself, and not for the gateway."""
    seen = sides(bench).bench.send(WEB, bytes(arp("web", world.NODES["db"].ip)))
    assert (seen.verdict.name, seen.frame) == ("ANSWERED", bytes(arp_answer("web", world.NODES["db"].ip)))


def test_s2_7_arp_is_not_answered_for_all_and_sundry(bench: Bench) -> None:
    sides(bench)
    for target in ("169.254.1.99", "169.254.169.254", "169.254.7.7", "198.18.0.77", "192.0.2.11"):
        seen = bench.send(WEB, bytes(arp("web", target)))
        assert (seen.verdict.name, seen.frame) == ("DROP_ARP_UNANSWERED", None), target


def test_s2_7_nothing_leaves_the_uplink_with_a_link_local_source(bench: Bench) -> None:
    nat = sides(bench)
    for domain, protocol in product(("web", "db"), PROTOCOLS):
        frame = nat.send(protocol, 5000, domain=domain).frame
        assert frame is not None and IPv4Address(Ether(frame)[IP].src) not in LINK_LOCAL


def test_s2_7_nothing_leaves_for_a_link_local_address(bench: Bench) -> None:
    """Whatever the rules allow, and for the metadata address too."""
    sides(bench, RULES + "allow any -> any\n")
    targets = ("169.254.169.254", "169.254.7.7", "169.254.0.1", "169.254.1.99")
    for target, layer in product(targets, (TCP(dport=80), UDP(dport=53), ICMP())):
        assert bench.send(WEB, bytes(ip("web", target) / layer)).verdict.name == "DROP_NO_DOMAIN", target


def test_s2_7_nothing_comes_in_from_or_for_the_range(bench: Bench) -> None:
    sides(bench)
    packets = [
        tcp("lan", LAN_ADDRESS, 40000, 2202, src="169.254.1.2"),
        tcp("lan", LAN_ADDRESS, 40000, 2202, src="169.254.7.7"),
        tcp("lan", "web", 1, 22),
        tcp("lan", "169.254.1.99", 1, 22),
        udp("lan", "web", 1, 2),
    ]
    for packet in packets:
        seen = bench.send(LAN, bytes(packet))
        assert (seen.verdict.name, seen.frame) == ("DROP_MARTIAN", None), packet.summary()


def test_s2_7_between_domains_link_local_addresses_are_forwarded(bench: Bench) -> None:
    """What is not kept: all VIFs of a host count as one link."""
    seen = sides(bench).bench.send(WEB, bytes(tcp("web", "db", 3000, 80)))
    assert seen.verdict.name == "TO_DOMAIN" and seen.frame is not None
    assert {Ether(seen.frame)[IP].src, Ether(seen.frame)[IP].dst} == {world.NODES["web"].ip, world.NODES["db"].ip}
