"""The packet table: one sentence a case, run by the model and by the real object alike."""

from __future__ import annotations

from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import LLC, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw
from support.frames import LAN_ADDRESS, arp, arp_answer, arriving, echo, ether, ip, tcp, udp
from support.world import GATEWAY_MAC, NODES

from vfr._abi import Verdict as V

XEN = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\n"
TIERS = "allow web -> db tcp 5432\nallow web -> db icmp\n"
WEB_BLOCK = range(16392, 16400)


@dataclass(frozen=True, slots=True)
class Case:
    """`before` are frames that come first and must pass. `becomes` is the whole frame that comes out."""

    sentence: str
    sender: str
    packet: Packet
    verdict: V
    becomes: Packet | None = None
    target: str | None = None
    rules: str = XEN
    before: tuple[tuple[str, Packet], ...] = ()
    lab: bool = False


def _out(packet: Packet, sport: int) -> Packet:
    """A domain's packet as the LAN sees it: MACs are the kernel's to fill in later."""
    new = packet.copy()
    new[IP].src, new[IP].ttl = LAN_ADDRESS, packet[IP].ttl - 1
    for layer in (TCP, UDP):
        if layer in new:
            new[layer].sport = sport
            del new[layer].chksum
    if ICMP in new:
        new[ICMP].id = sport
        del new[ICMP].chksum
    del new[IP].chksum
    return new


def _in(packet: Packet, to: str, dport: int) -> Packet:
    """The LAN's packet as the domain sees it."""
    new = packet.copy()
    for layer in (TCP, UDP):
        if layer in new:
            new[layer].dport = dport
    if ICMP in new:
        new[ICMP].id = dport
    return arriving(to, new, dst=NODES[to].ip)


SYN = tcp("web", "lan", 16393, 80)
SYN_ACK = tcp("lan", LAN_ADDRESS, 80, 16393, "SA")
FORWARD_SYN = tcp("lan", LAN_ADDRESS, 40000, 2202)
KNOCK = tcp("dom0", "web", 50000, 22)
QUERY = udp("web", "lan", 16394, 53)
PING = echo("web", "lan", 16395)
TIER_SYN = tcp("web", "db", 3000, 5432)
NO_CHECKSUM = ip("web", "lan") / UDP(sport=16396, dport=9, chksum=0) / Raw(b"x")

GUARD = (
    Case(
        "another's source MAC",
        "web",
        ether("web", IP(src=NODES["web"].ip, dst="192.0.2.11") / TCP(), src=NODES["db"].mac),
        V.DROP_SRC_MAC,
        lab=True,
    ),
    Case("another's source IP", "web", tcp("web", "lan", 1, 2, src=NODES["db"].ip), V.DROP_SRC_IP, lab=True),
    Case("the LAN's source IP", "web", tcp("web", "lan", 1, 2, src="192.0.2.11"), V.DROP_SRC_IP, lab=True),
    Case("a VLAN tag", "web", ether("web", Dot1Q(vlan=5) / IP(src=NODES["web"].ip)), V.DROP_VLAN, lab=True),
    Case(
        "a double VLAN tag",
        "web",
        ether("web", Dot1Q(vlan=5) / Dot1Q(vlan=6) / IP(), type=0x88A8),
        V.DROP_VLAN,
    ),
    Case("IPv6", "web", ether("web", IPv6()), V.DROP_IPV6, lab=True),
    Case("an unknown ethertype", "web", ether("web", Raw(b"x" * 40), type=0x889A), V.DROP_ETHERTYPE),
    Case(
        "802.3 with LLC",
        "web",
        Dot3(src=NODES["web"].mac, dst=GATEWAY_MAC) / LLC() / Raw(b"x" * 40),
        V.DROP_ETHERTYPE,
    ),
    Case(
        "straight to a neighbour's MAC",
        "web",
        ether("web", IP(src=NODES["web"].ip, dst=NODES["db"].ip) / TCP(), dst=NODES["db"].mac),
        V.DROP_DST_MAC,
        lab=True,
    ),
    Case(
        "unicast IP to the broadcast MAC",
        "web",
        ether("web", IP(src=NODES["web"].ip, dst="192.0.2.11") / TCP(), dst="ff:ff:ff:ff:ff:ff"),
        V.DROP_GROUP_MAC,
        lab=True,
    ),
    Case("multicast", "web", udp("web", "224.0.0.251", 5353, 5353), V.DROP_MULTICAST, lab=True),
    Case("limited broadcast", "web", udp("web", "255.255.255.255", 68, 67), V.DROP_MULTICAST, lab=True),
    Case("the LAN's own broadcast", "web", udp("web", "192.0.2.255", 1, 2), V.DROP_MULTICAST),
    Case("loopback as target", "web", udp("web", "127.0.0.1", 1, 2), V.DROP_MARTIAN, lab=True),
    Case("class E as target", "web", udp("web", "240.0.0.1", 1, 2), V.DROP_MARTIAN),
    Case("this network as target", "web", udp("web", "0.0.0.1", 1, 2), V.DROP_MARTIAN),
    Case("to itself", "web", udp("web", "web", 1, 2), V.DROP_MARTIAN),
    Case("IP version 6 under ethertype IP", "web", tcp("web", "lan", 1, 2, version=6), V.DROP_IP_HEADER),
    Case("a header length of 4 words", "web", tcp("web", "lan", 1, 2, ihl=4), V.DROP_IP_HEADER),
    Case("a total length beyond the frame", "web", tcp("web", "lan", 1, 2, len=1400), V.DROP_IP_HEADER),
    Case("a wrong header checksum", "web", tcp("web", "lan", 1, 2, chksum=0x1234), V.DROP_IP_HEADER, lab=True),
    Case("IP options", "web", tcp("web", "lan", 1, 2, options=[IPOption_RR()]), V.DROP_IP_OPTIONS, lab=True),
    Case("a first fragment", "web", udp("web", "lan", 1, 2, flags="MF"), V.DROP_FRAGMENT),
    Case("a later fragment", "web", udp("web", "lan", 1, 2, frag=5), V.DROP_FRAGMENT),
    Case("TTL 1", "web", udp("web", "lan", 1, 2, ttl=1), V.DROP_TTL, lab=True),
    Case("TTL 0", "web", udp("web", "lan", 1, 2, ttl=0), V.DROP_TTL),
    Case("a TCP header shorter than five words", "web", ip("web", "lan") / TCP(dataofs=4), V.DROP_L4_HEADER),
    Case("a TCP header beyond the packet", "web", ip("web", "lan") / TCP(dataofs=15), V.DROP_L4_HEADER),
    Case("a UDP length beyond the packet", "web", ip("web", "lan") / UDP(len=999), V.DROP_L4_HEADER),
    Case("a UDP header cut off", "web", ip("web", "lan", proto=17) / Raw(b"abc"), V.DROP_L4_HEADER),
    Case("an unknown protocol", "web", ip("web", "lan", proto=132) / Raw(b"x" * 40), V.DROP_PROTOCOL),
    Case("an ICMP error", "web", ip("web", "lan") / ICMP(type=3, code=1) / Raw(b"x" * 28), V.DROP_ICMP_ERROR),
    Case("an ICMP redirect", "web", ip("web", "lan") / ICMP(type=5) / Raw(b"x" * 28), V.DROP_ICMP_ERROR),
    Case(
        "an ICMP timestamp request",
        "web",
        ip("web", "lan") / ICMP(type=13) / Raw(b"x" * 12),
        V.DROP_ICMP_TYPE,
    ),
    Case(
        "a frame that ends in the ARP header",
        "web",
        ether("web", Raw(b"\0\1\x08\0" * 3), type=0x806),
        V.DROP_TRUNCATED,
    ),
)

ARPS = (
    Case(
        "ARP for the gateway is answered",
        "web",
        arp("web", "169.254.1.0"),
        V.ANSWERED,
        arp_answer("web", "169.254.1.0"),
        "web",
        lab=True,
    ),
    Case(
        "ARP for a peer it may talk to is answered",
        "web",
        arp("web", NODES["db"].ip),
        V.ANSWERED,
        arp_answer("web", NODES["db"].ip),
        "web",
        rules=TIERS,
        lab=True,
    ),
    Case(
        "ARP for a peer that may talk to it is answered",
        "db",
        arp("db", NODES["web"].ip),
        V.ANSWERED,
        arp_answer("db", NODES["web"].ip),
        "db",
        rules=TIERS,
    ),
    Case(
        "domain 0 finds a domain by ARP",
        "dom0",
        arp("dom0", NODES["odd"].ip),
        V.ANSWERED,
        arp_answer("dom0", NODES["odd"].ip),
        "dom0",
        lab=True,
    ),
    Case("ARP for a peer without rules is not", "web", arp("web", NODES["db"].ip), V.DROP_ARP_UNANSWERED, lab=True),
    Case("ARP for an address of nobody is not", "web", arp("web", "169.254.1.99"), V.DROP_ARP_UNANSWERED),
    Case("ARP for the metadata address is not", "web", arp("web", "169.254.169.254"), V.DROP_ARP_UNANSWERED),
    Case(
        "a duplicate address probe is met with silence",
        "web",
        arp("web", NODES["web"].ip, psrc="0.0.0.0"),
        V.DROP_ARP_PROBE,
        lab=True,
    ),
    Case(
        "a probe for the gateway's address too",
        "web",
        arp("web", "169.254.1.0", psrc="0.0.0.0"),
        V.DROP_ARP_PROBE,
    ),
    Case("a gratuitous announcement goes nowhere", "web", arp("web", NODES["web"].ip), V.DROP_ARP_OWN),
    Case("ARP with another's IP", "web", arp("web", "169.254.1.0", psrc=NODES["db"].ip), V.DROP_ARP_SENDER, lab=True),
    Case("ARP with the gateway's IP", "web", arp("web", NODES["db"].ip, psrc="169.254.1.0"), V.DROP_ARP_SENDER),
    Case(
        "ARP with another's MAC inside",
        "web",
        arp("web", "169.254.1.0", hwsrc=NODES["db"].mac),
        V.DROP_ARP_SENDER,
        lab=True,
    ),
    Case("an ARP reply nobody asked for", "web", arp("web", "169.254.1.0", op=2), V.DROP_ARP_REPLY),
    Case("ARP that is neither request nor reply", "web", arp("web", "169.254.1.0", op=8), V.DROP_ARP_HEADER),
    Case("ARP for another hardware", "web", arp("web", "169.254.1.0", hwtype=6), V.DROP_ARP_HEADER),
    Case(
        "ARP to a neighbour's MAC",
        "web",
        ether("web", arp("web", "169.254.1.0").payload, dst=NODES["db"].mac),
        V.DROP_DST_MAC,
    ),
)

WAYS_OUT = (
    Case("TCP to the LAN keeps its port where it may", "web", SYN, V.TO_LAN, _out(SYN, 16393), "lan", lab=True),
    Case(
        "its answer comes back",
        "lan",
        SYN_ACK,
        V.TO_DOMAIN,
        _in(SYN_ACK, "web", 16393),
        "web",
        before=(("web", SYN),),
        lab=True,
    ),
    Case("UDP to the LAN", "web", QUERY, V.TO_LAN, _out(QUERY, 16394), "lan", lab=True),
    Case("UDP without a checksum stays without", "web", NO_CHECKSUM, V.TO_LAN, None, "lan"),
    Case("ping to the LAN", "web", PING, V.TO_LAN, _out(PING, 16395), "lan", lab=True),
    Case(
        "the ping's answer",
        "lan",
        echo("lan", LAN_ADDRESS, 16395, 0),
        V.TO_DOMAIN,
        _in(echo("lan", LAN_ADDRESS, 16395, 0), "web", 16395),
        "web",
        before=(("web", PING),),
        lab=True,
    ),
    Case(
        "an answer from somebody never spoken to",
        "lan",
        tcp("lan", LAN_ADDRESS, 80, 16393, "SA", src="192.0.2.12"),
        V.DROP_UNSOLICITED,
        before=(("web", SYN),),
        lab=True,
    ),
    Case(
        "an answer from another port",
        "lan",
        tcp("lan", LAN_ADDRESS, 81, 16393, "SA"),
        V.DROP_UNSOLICITED,
        before=(("web", SYN),),
    ),
    Case(
        "an answer with TTL 1",
        "lan",
        tcp("lan", LAN_ADDRESS, 80, 16393, "SA", ttl=1),
        V.DROP_TTL,
        before=(("web", SYN),),
    ),
    Case("TCP that does not begin with SYN", "web", tcp("web", "lan", 16393, 80, "A"), V.DROP_NO_SESSION, lab=True),
    Case("an echo reply nobody asked for", "web", echo("web", "lan", 5, 0), V.DROP_NO_SESSION),
    Case("the metadata address never leaves", "web", tcp("web", "169.254.169.254", 1, 80), V.DROP_NO_DOMAIN, lab=True),
    Case("an address of nobody in the pool", "web", tcp("web", "169.254.1.99", 1, 80), V.DROP_NO_DOMAIN),
    Case("the router's own LAN address", "web", tcp("web", LAN_ADDRESS, 1, 2202), V.DROP_HAIRPIN),
    Case("a packet longer than the uplink's MTU", "web", udp("web", "lan", 1, 2, b"x" * 1473), V.DROP_TOO_BIG),
    Case(
        "one that just fits",
        "web",
        udp("web", "lan", 16399, 2, b"x" * 1472),
        V.TO_LAN,
        _out(udp("web", "lan", 16399, 2, b"x" * 1472), 16399),
        "lan",
        lab=True,
    ),
    Case("no rule, no way out", "web", SYN, V.DROP_POLICY, rules="", lab=True),
    Case("deny beats allow", "web", SYN, V.DROP_POLICY, rules=XEN + "deny web -> lan tcp 80\n", lab=True),
    Case(
        "what is denied is only that",
        "web",
        QUERY,
        V.TO_LAN,
        _out(QUERY, 16394),
        "lan",
        rules=XEN + "deny web -> lan tcp 80\n",
    ),
)

FORWARDS = (
    Case(
        "a forward leads by the address", "lan", FORWARD_SYN, V.TO_DOMAIN, _in(FORWARD_SYN, "web", 22), "web", lab=True
    ),
    Case(
        "a forward's answer leaves by its port",
        "web",
        tcp("web", "lan", 22, 40000, "SA"),
        V.TO_LAN,
        _out(tcp("web", "lan", 22, 40000, "SA"), 2202),
        "lan",
        before=(("lan", FORWARD_SYN),),
        lab=True,
    ),
    Case("a forward wants a SYN first", "lan", tcp("lan", LAN_ADDRESS, 40000, 2202, "A"), V.DROP_NO_SESSION),
    Case("a forward without a rule", "lan", FORWARD_SYN, V.DROP_POLICY, rules="allow any -> lan\n", lab=True),
    Case(
        "a fragment to a forward",
        "lan",
        ip("lan", LAN_ADDRESS, flags="MF") / TCP(sport=40000, dport=2202),
        V.DROP_FRAGMENT,
    ),
    Case(
        "options to a forward",
        "lan",
        ip("lan", LAN_ADDRESS, options=[IPOption_RR()]) / TCP(sport=40000, dport=2202),
        V.DROP_IP_OPTIONS,
    ),
    Case(
        "a loopback source to a forward",
        "lan",
        tcp("lan", LAN_ADDRESS, 40000, 2202, src="127.0.0.1"),
        V.DROP_MARTIAN,
    ),
    Case(
        "a link-local source to a forward",
        "lan",
        tcp("lan", LAN_ADDRESS, 40000, 2202, src="169.254.7.7"),
        V.DROP_MARTIAN,
        lab=True,
    ),
)

UPLINK = (
    Case(
        "the host's own ssh is not ours",
        "lan",
        tcp("lan", LAN_ADDRESS, 40000, 22),
        V.NOT_OURS,
        tcp("lan", LAN_ADDRESS, 40000, 22),
        lab=True,
    ),
    Case(
        "a port nobody published is not ours",
        "lan",
        tcp("lan", LAN_ADDRESS, 40000, 2201),
        V.NOT_OURS,
        tcp("lan", LAN_ADDRESS, 40000, 2201),
    ),
    Case(
        "a ping of the host is not ours",
        "lan",
        echo("lan", LAN_ADDRESS, 3),
        V.NOT_OURS,
        echo("lan", LAN_ADDRESS, 3),
        lab=True,
    ),
    Case("IPv6 on the LAN is not ours", "lan", ether("lan", IPv6()), V.NOT_OURS, ether("lan", IPv6())),
    Case("ARP on the LAN is not ours", "lan", arp("lan", LAN_ADDRESS), V.NOT_OURS, arp("lan", LAN_ADDRESS)),
    Case("ARP for the pool is nobody's business on the LAN", "lan", arp("lan", "169.254.1.2"), V.DROP_MARTIAN),
    Case("a packet for the pool too", "lan", tcp("lan", "web", 1, 22), V.DROP_MARTIAN, lab=True),
    Case(
        "and one that claims to be from it",
        "lan",
        tcp("lan", LAN_ADDRESS, 1, 22, src=NODES["web"].ip),
        V.DROP_MARTIAN,
        lab=True,
    ),
    Case("our range, held by nobody", "lan", tcp("lan", LAN_ADDRESS, 80, 20000, "SA"), V.DROP_UNSOLICITED, lab=True),
    Case(
        "an ICMP error about one of our ports",
        "lan",
        ip("lan", LAN_ADDRESS) / ICMP(type=3, code=4) / Raw(bytes(_out(SYN, 16393))[14:42]),
        V.DROP_ICMP_ERROR,
        before=(("web", SYN),),
    ),
    Case(
        "an ICMP error about the host's own",
        "lan",
        ip("lan", LAN_ADDRESS) / ICMP(type=3) / Raw(bytes(tcp("lan", "192.0.2.11", 50000, 80, src=LAN_ADDRESS))[14:42]),
        V.NOT_OURS,
        ip("lan", LAN_ADDRESS) / ICMP(type=3) / Raw(bytes(tcp("lan", "192.0.2.11", 50000, 80, src=LAN_ADDRESS))[14:42]),
    ),
)

BETWEEN = (
    Case("domains are apart", "web", TIER_SYN, V.DROP_POLICY, lab=True),
    Case("by rule they are not", "web", TIER_SYN, V.TO_DOMAIN, arriving("db", TIER_SYN), "db", rules=TIERS, lab=True),
    Case(
        "the answer needs no rule",
        "db",
        tcp("db", "web", 5432, 3000, "SA"),
        V.TO_DOMAIN,
        arriving("web", tcp("db", "web", 5432, 3000, "SA")),
        "web",
        rules=TIERS,
        before=(("web", TIER_SYN),),
        lab=True,
    ),
    Case("the other way needs one", "db", tcp("db", "web", 3000, 5432), V.DROP_POLICY, rules=TIERS),
    Case("another port needs one", "web", tcp("web", "db", 3000, 5433), V.DROP_POLICY, rules=TIERS, lab=True),
    Case(
        "an answer without a question",
        "db",
        tcp("db", "web", 5432, 3000, "SA"),
        V.DROP_NO_SESSION,
        rules=TIERS,
    ),
    Case(
        "ping by rule",
        "web",
        echo("web", "db", 9),
        V.TO_DOMAIN,
        arriving("db", echo("web", "db", 9)),
        "db",
        rules=TIERS,
        lab=True,
    ),
    Case(
        "and its answer",
        "db",
        echo("db", "web", 9, 0),
        V.TO_DOMAIN,
        arriving("web", echo("db", "web", 9, 0)),
        "web",
        rules=TIERS,
        before=(("web", echo("web", "db", 9)),),
        lab=True,
    ),
    Case("domain 0 reaches a domain", "dom0", KNOCK, V.TO_DOMAIN, arriving("web", KNOCK), "web", lab=True),
    Case(
        "and is answered",
        "web",
        tcp("web", "dom0", 22, 50000, "SA"),
        V.TO_DOM0,
        arriving("dom0", tcp("web", "dom0", 22, 50000, "SA")),
        "dom0",
        before=(("dom0", KNOCK),),
        lab=True,
    ),
    Case("a domain does not reach domain 0", "web", tcp("web", "dom0", 1, 22), V.DROP_POLICY, lab=True),
    Case("domain 0 goes nowhere else by the router", "dom0", tcp("dom0", "lan", 1, 22), V.DROP_NO_DOMAIN),
)

CASES = (*GUARD, *ARPS, *WAYS_OUT, *FORWARDS, *UPLINK, *BETWEEN)
assert Ether  # scapy resolves upper layers through it
