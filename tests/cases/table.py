"""The packet table: one sentence a case, run by the model and by the real object alike."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR, IPOption_SSRR
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import LLC, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw
from support.dhcp import ask, lease, told
from support.frames import LAN_ADDRESS, arp, arp_answer, arriving, echo, ether, icmp_from_router, ip, tcp, udp
from support.world import GATEWAY_MAC, NODES

from cases.case import XEN, Case, coming_in, going_out
from cases.table_rules import RULES
from vfr._abi import Verdict as V

TIERS = "allow web -> db tcp 5432\nallow web -> db icmp\n"
WEB_BLOCK = range(16392, 16400)


def _hop(packet: Packet) -> Packet:
    """One hop on, and nothing else."""
    new = Ether(bytes(packet))
    new[IP].ttl -= 1
    del new[IP].chksum
    return new


SYN = tcp("web", "lan", 16393, 80)
SYN_ACK = tcp("lan", LAN_ADDRESS, 80, 16393, "SA")
FORWARD_SYN = tcp("lan", LAN_ADDRESS, 40000, 2202)
KNOCK = tcp("dom0", "web", 50000, 22)
QUERY = udp("web", "lan", 16394, 53)
LSRR, SSRR = IPOption_LSRR(routers=["192.0.2.9"]), IPOption_SSRR(routers=["192.0.2.9"])
BRIEF = udp("web", "lan", 1, 2, ttl=1)
LONG_DF = udp("web", "lan", 1, 2, b"x" * 1473, flags="DF")
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
    Case("limited broadcast", "web", udp("web", "255.255.255.255", 68, 69), V.DROP_MULTICAST, lab=True),
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
    Case("a loose source route", "web", tcp("web", "lan", 1, 2, options=[LSRR]), V.DROP_SOURCE_ROUTE),
    Case("a strict source route", "web", tcp("web", "lan", 1, 2, options=[SSRR]), V.DROP_SOURCE_ROUTE),
    Case(
        "a source route behind other options",
        "web",
        tcp("web", "lan", 1, 2, options=[IPOption_NOP(), IPOption_RR(), LSRR]),
        V.DROP_SOURCE_ROUTE,
    ),
    Case("a TCP header shorter than five words", "web", ip("web", "lan") / TCP(dataofs=4), V.DROP_L4_HEADER),
    Case("a TCP header beyond the packet", "web", ip("web", "lan") / TCP(dataofs=15), V.DROP_L4_HEADER),
    Case("a UDP length beyond the packet", "web", ip("web", "lan") / UDP(len=999), V.DROP_L4_HEADER),
    Case("a UDP header cut off", "web", ip("web", "lan", proto=17) / Raw(b"abc"), V.DROP_L4_HEADER),
    Case("a protocol without ports, to the LAN", "web", ip("web", "lan", proto=132) / Raw(b"x" * 40), V.DROP_PROTOCOL),
    Case("an ICMP redirect", "web", ip("web", "lan") / ICMP(type=5) / Raw(b"x" * 28), V.DROP_ICMP_TYPE),
    Case("an ICMP source quench", "web", ip("web", "lan") / ICMP(type=4) / Raw(b"x" * 28), V.DROP_ICMP_TYPE),
    Case("an ICMP information request", "web", ip("web", "lan") / ICMP(type=15), V.DROP_ICMP_TYPE),
    Case("an ICMP query with a code", "web", ip("web", "lan") / ICMP(type=13, code=1), V.DROP_ICMP_TYPE),
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
        "DHCP is answered with the domain's address",
        "web",
        ask("web", "discover"),
        V.ANSWERED,
        told("web", "offer", *lease()),
        "web",
        lab=True,
    ),
    Case(
        "DHCP for another's address is answered with a NAK",
        "web",
        ask("web", "request", ("requested_addr", NODES["db"].ip)),
        V.DHCP_NAK,
        told("web", "nak", all_=True),
        "web",
        lab=True,
    ),
    Case(
        "a broadcast to DHCP's port that is none",
        "web",
        udp("web", "255.255.255.255", 68, 67),
        V.DROP_DHCP_HEADER,
        lab=True,
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
    Case("TCP to the LAN keeps its port where it may", "web", SYN, V.TO_LAN, going_out(SYN, 16393), "lan", lab=True),
    Case(
        "its answer comes back",
        "lan",
        SYN_ACK,
        V.TO_DOMAIN,
        coming_in(SYN_ACK, "web", 16393),
        "web",
        before=(("web", SYN),),
        lab=True,
    ),
    Case("UDP to the LAN", "web", QUERY, V.TO_LAN, going_out(QUERY, 16394), "lan", lab=True),
    Case("UDP without a checksum stays without", "web", NO_CHECKSUM, V.TO_LAN, None, "lan"),
    Case("ping to the LAN", "web", PING, V.TO_LAN, going_out(PING, 16395), "lan", lab=True),
    Case(
        "the ping's answer",
        "lan",
        echo("lan", LAN_ADDRESS, 16395, 0),
        V.TO_DOMAIN,
        coming_in(echo("lan", LAN_ADDRESS, 16395, 0), "web", 16395),
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
        icmp_from_router("lan", tcp("lan", LAN_ADDRESS, 80, 16393, "SA", ttl=1), 11, 0),
        before=(("web", SYN),),
    ),
    Case("TTL 1", "web", BRIEF, V.DROP_TTL, icmp_from_router("web", BRIEF, 11, 0)),
    Case("TTL 0", "web", udp("web", "lan", 1, 2, ttl=0), V.DROP_TTL, answered=True),
    Case("TTL 1 where no rule allows it", "web", BRIEF, V.DROP_POLICY, rules=""),
    Case("TCP that does not begin with SYN", "web", tcp("web", "lan", 16393, 80, "A"), V.DROP_NO_SESSION, lab=True),
    Case("an echo reply nobody asked for", "web", echo("web", "lan", 5, 0), V.DROP_NO_SESSION),
    Case("the metadata address never leaves", "web", tcp("web", "169.254.169.254", 1, 80), V.DROP_NO_DOMAIN, lab=True),
    Case("an address of nobody in the pool", "web", tcp("web", "169.254.1.99", 1, 80), V.DROP_NO_DOMAIN),
    Case(
        "a packet longer than the uplink's MTU that may not be cut",
        "web",
        LONG_DF,
        V.DROP_TOO_BIG,
        icmp_from_router("web", LONG_DF, 3, 4, mtu=1500),
    ),
    Case("one that may be cut", "web", udp("web", "lan", 1, 2, b"x" * 1473), V.TO_SORTER),
    Case(
        "one that just fits",
        "web",
        udp("web", "lan", 16399, 2, b"x" * 1472),
        V.TO_LAN,
        going_out(udp("web", "lan", 16399, 2, b"x" * 1472), 16399),
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
        going_out(QUERY, 16394),
        "lan",
        rules=XEN + "deny web -> lan tcp 80\n",
    ),
)

FORWARDS = (
    Case(
        "a forward leads by the address",
        "lan",
        FORWARD_SYN,
        V.TO_DOMAIN,
        coming_in(FORWARD_SYN, "web", 22),
        "web",
        lab=True,
    ),
    Case(
        "a forward's answer leaves by its port",
        "web",
        tcp("web", "lan", 22, 40000, "SA"),
        V.TO_LAN,
        going_out(tcp("web", "lan", 22, 40000, "SA"), 2202),
        "lan",
        before=(("lan", FORWARD_SYN),),
        lab=True,
    ),
    Case("a forward wants a SYN first", "lan", tcp("lan", LAN_ADDRESS, 40000, 2202, "A"), V.DROP_NO_SESSION),
    Case("a forward without a rule", "lan", FORWARD_SYN, V.DROP_POLICY, rules="allow any -> lan\n", lab=True),
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
        "an ICMP error about the host's own",
        "lan",
        ip("lan", LAN_ADDRESS) / ICMP(type=3) / Raw(bytes(tcp("lan", "192.0.2.11", 50000, 80, src=LAN_ADDRESS))[14:42]),
        V.NOT_OURS,
        ip("lan", LAN_ADDRESS) / ICMP(type=3) / Raw(bytes(tcp("lan", "192.0.2.11", 50000, 80, src=LAN_ADDRESS))[14:42]),
    ),
)


def _quoting(
    sender: str, to: str, about: Packet, kind: int = 3, code: int = 1, cut: int = 576, **fields: object
) -> Packet:
    """An ICMP error that quotes the first bytes of a packet as it was seen on the way."""
    return ip(sender, to, **fields) / ICMP(type=kind, code=code) / Raw(bytes(about[IP])[:cut])


OUT_SYN = Ether(bytes(going_out(SYN, 16393)))
OUT_QUERY = Ether(bytes(going_out(QUERY, 16394)))
OUT_BARE = Ether(bytes(going_out(NO_CHECKSUM, 16396)))
OUT_BARE[UDP].chksum = 0
OUT_PING = Ether(bytes(going_out(PING, 16395)))
BACK = Ether(bytes(coming_in(SYN_ACK, "web", 16393)))
ENTERED = Ether(bytes(coming_in(FORWARD_SYN, "web", 22)))
NEAR = Ether(bytes(arriving("db", TIER_SYN)))


def _out_error(packet: Packet) -> Packet:
    """A domain's ICMP error as the LAN sees it, its quote given as it is to be seen there."""
    new = packet.copy()
    new[IP].src, new[IP].ttl = LAN_ADDRESS, packet[IP].ttl - 1
    return new


# What the LAN sent, as it was when it left the router: only addresses and ports are put back.
SEEN_SYN_ACK = Ether(bytes(_hop(SYN_ACK)))
SEEN_FORWARD_SYN = Ether(bytes(_hop(FORWARD_SYN)))


def _error_in(about_out: Packet, about: Packet, cut: int, name: str, **fields: object) -> Case:
    """An error about a domain's packet, from a router on the way, is translated back, quote and all."""
    inside = Ether(bytes(_hop(about)))
    return Case(
        f"an error about {name}",
        "lan",
        _quoting("lan", LAN_ADDRESS, about_out, cut=cut, src="198.51.100.1", **fields),
        V.TO_DOMAIN,
        arriving("web", _quoting("lan", NODES["web"].ip, inside, cut=cut, src="198.51.100.1", **fields)),
        "web",
        before=(("web", about),),
    )


def _bad_checksum(packet: Packet) -> Packet:
    new = Ether(bytes(packet))
    new[ICMP].chksum ^= 0x0101
    return new


def _bad_quote(packet: Packet) -> Packet:
    """The quoted header's own checksum is wrong, and the error's is right about that."""
    new = Ether(bytes(packet))
    load = bytearray(bytes(new[ICMP].payload))
    load[10] ^= 1
    return Ether(bytes(ether("lan", IP(bytes(new[IP])[:20]) / ICMP(type=3, code=1) / Raw(bytes(load)))))


ERRORS = (
    _error_in(OUT_SYN, SYN, 40, "TCP"),
    _error_in(OUT_SYN, SYN, 28, "TCP, cut behind eight bytes"),
    _error_in(OUT_QUERY, QUERY, 576, "UDP"),
    _error_in(OUT_BARE, NO_CHECKSUM, 576, "UDP without a checksum"),
    _error_in(OUT_PING, PING, 576, "an echo request"),
    _error_in(OUT_PING, PING, 28, "an echo request, cut behind eight bytes"),
    Case(
        "an error from the domain about what the LAN sent it",
        "web",
        _quoting("web", "lan", BACK, 3, 3),
        V.TO_LAN,
        _out_error(_quoting("web", "lan", SEEN_SYN_ACK, 3, 3)),
        "lan",
        before=(("web", SYN), ("lan", SYN_ACK)),
    ),
    Case(
        "an error from the domain about what came by a forward",
        "web",
        _quoting("web", "lan", ENTERED, 3, 3),
        V.TO_LAN,
        _out_error(_quoting("web", "lan", SEEN_FORWARD_SYN, 3, 3)),
        "lan",
        before=(("lan", FORWARD_SYN),),
    ),
    Case(
        "an error from one domain to another",
        "db",
        _quoting("db", "web", NEAR, 3, 3),
        V.TO_DOMAIN,
        arriving("web", _quoting("db", "web", NEAR, 3, 3)),
        "web",
        rules=TIERS,
        before=(("web", TIER_SYN),),
    ),
    Case(
        "an error about no conversation",
        "web",
        _quoting("web", "lan", BACK, 3, 3),
        V.DROP_ICMP_ERROR,
    ),
    Case(
        "an error about somebody else's packet",
        "web",
        _quoting("web", "lan", tcp("lan", NODES["db"].ip, 80, 16393), 3, 3),
        V.DROP_ICMP_ERROR,
        before=(("web", SYN),),
    ),
    Case(
        "an error to another than who sent what it quotes",
        "web",
        _quoting("web", "192.0.2.12", BACK, 3, 3),
        V.DROP_ICMP_ERROR,
        before=(("web", SYN),),
    ),
    Case(
        "an error about an error",
        "web",
        _quoting("web", "lan", ip("lan", "web") / ICMP(type=3) / Raw(b"x" * 28), 3, 3),
        V.DROP_ICMP_ERROR,
    ),
    Case(
        "an error that quotes a later fragment",
        "web",
        _quoting("web", "lan", udp("lan", "web", 53, 16394, frag=9), 11, 1),
        V.DROP_ICMP_ERROR,
        before=(("web", QUERY),),
    ),
    Case(
        "an error in fragments",
        "web",
        _quoting("web", "lan", BACK, 3, 3, 28, flags="MF") / Raw(b"xxxx"),
        V.DROP_FRAGMENT,
        before=(("web", SYN),),
    ),
    Case("an error that quotes nothing", "web", ip("web", "lan") / ICMP(type=3), V.DROP_ICMP_ERROR),
    Case(
        "an error with a wrong checksum",
        "lan",
        _bad_checksum(_quoting("lan", LAN_ADDRESS, OUT_SYN)),
        V.DROP_ICMP_CHECKSUM,
        before=(("web", SYN),),
    ),
    Case(
        "an error whose quoted header has a wrong checksum",
        "lan",
        _bad_quote(_quoting("lan", LAN_ADDRESS, OUT_SYN)),
        V.DROP_ICMP_CHECKSUM,
        before=(("web", SYN),),
    ),
    Case(
        "an error from the LAN about a conversation that is not",
        "lan",
        _quoting("lan", LAN_ADDRESS, tcp("lan", "192.0.2.12", 16393, 80, src=LAN_ADDRESS)),
        V.DROP_ICMP_ERROR,
        before=(("web", SYN),),
    ),
    Case(
        "an error about one of our packets, from a domain's address",
        "lan",
        _quoting("lan", LAN_ADDRESS, OUT_SYN, src=NODES["odd"].ip),
        V.DROP_MARTIAN,
        before=(("web", SYN),),
    ),
    Case(
        "a redirect about one of our packets would bend their way",
        "lan",
        ip("lan", LAN_ADDRESS) / ICMP(type=5) / Raw(bytes(OUT_SYN)[14:42]),
        V.DROP_ICMP_TYPE,
        before=(("web", SYN),),
    ),
    Case(
        "and so would one about the host's own, to the same remote",
        "lan",
        ip("lan", LAN_ADDRESS) / ICMP(type=5) / Raw(bytes(IP(src=LAN_ADDRESS, dst="198.51.100.9") / ICMP())),
        V.DROP_ICMP_TYPE,
    ),
)

FIRST = udp("web", "lan", 16394, 9, b"a" * 24, flags="MF")
SECOND = ip("web", "lan", frag=4, proto=17) / Raw(b"b" * 16)
OUT_FIRST = going_out(FIRST, 16394)
TO_ALL = XEN + "allow lan -> any udp\nallow web -> db\n"
IN_FIRST = ip("lan", LAN_ADDRESS, flags="MF") / TCP(sport=40000, dport=2202, flags="S") / Raw(b"x" * 4)
IN_SECOND = ip("lan", LAN_ADDRESS, frag=3, proto=6) / Raw(b"y" * 16)
HOST_FIRST = udp("lan", LAN_ADDRESS, 5, 161, b"a" * 24, flags="MF")
HOST_SECOND = ip("lan", LAN_ADDRESS, frag=4, proto=17) / Raw(b"b" * 16)

FRAGMENTS = (
    Case("a first fragment goes by its ports", "web", FIRST, V.TO_LAN, None, "lan"),
    Case("a later one follows it", "web", SECOND, V.TO_LAN, None, "lan", before=(("web", FIRST),)),
    Case("a later one that comes first is put in order", "web", SECOND, V.TO_SORTER),
    Case("then the first one must be too", "web", FIRST, V.TO_SORTER, before=(("web", SECOND),)),
    Case("sorted, the first one goes", "sorter", FIRST, V.TO_LAN, None, "lan", before=(("web", SECOND),)),
    Case(
        "and the later one behind it",
        "sorter",
        SECOND,
        V.TO_LAN,
        None,
        "lan",
        before=(("web", SECOND), ("web", FIRST), ("sorter", FIRST)),
    ),
    Case("sorted without a first one", "sorter", SECOND, V.DROP_FRAGMENT),
    Case("a first one that is denied takes no later one along", "web", FIRST, V.DROP_POLICY, rules=""),
    Case("a fragment to another domain", "web", udp("web", "db", 1, 2, b"a" * 24, flags="MF"), V.DROP_POLICY),
    Case(
        "by rule it goes",
        "web",
        udp("web", "db", 1, 2, b"a" * 24, flags="MF"),
        V.TO_DOMAIN,
        arriving("db", udp("web", "db", 1, 2, b"a" * 24, flags="MF")),
        "db",
        rules=TO_ALL,
    ),
    Case(
        "and the later one too",
        "web",
        ip("web", "db", frag=4, proto=17) / Raw(b"b" * 16),
        V.TO_DOMAIN,
        arriving("db", ip("web", "db", frag=4, proto=17) / Raw(b"b" * 16)),
        "db",
        rules=TO_ALL,
        before=(("web", udp("web", "db", 1, 2, b"a" * 24, flags="MF")),),
    ),
    Case(
        "one that hides the TCP header", "web", ip("web", "lan", flags="MF", proto=6) / Raw(b"x" * 8), V.DROP_L4_HEADER
    ),
    Case(
        "one that lies over the TCP header", "web", ip("web", "lan", frag=1, proto=6) / Raw(b"x" * 16), V.DROP_FRAGMENT
    ),
    Case(
        "one that lies over what the first had",
        "web",
        ip("web", "lan", frag=3, proto=17) / Raw(b"b" * 16),
        V.DROP_FRAGMENT,
        before=(("web", FIRST),),
    ),
    Case("one beyond 64 KiB", "web", ip("web", "lan", frag=8190, proto=17) / Raw(b"x" * 64), V.DROP_FRAGMENT),
    Case(
        "not the last, and not a multiple of eight", "web", udp("web", "lan", 1, 2, b"abc", flags="MF"), V.DROP_FRAGMENT
    ),
    Case("one with nothing in it", "web", ip("web", "lan", frag=9, proto=17), V.DROP_FRAGMENT),
    Case(
        "a first fragment of a protocol without ports, to the LAN",
        "web",
        ip("web", "lan", flags="MF", proto=132) / Raw(b"x" * 8),
        V.DROP_PROTOCOL,
    ),
    Case(
        "so that a later one finds nothing to follow",
        "sorter",
        ip("web", "lan", frag=9, proto=132) / Raw(b"x" * 8),
        V.DROP_FRAGMENT,
    ),
    Case(
        "more datagrams in pieces than the quota",
        "web",
        ip("web", "lan", frag=9, proto=17, id=99) / Raw(b"x" * 8),
        V.DROP_FRAGMENTS_FULL,
        before=tuple(("web", ip("web", "lan", frag=9, proto=17, id=n) / Raw(b"x" * 8)) for n in range(1, 5)),
    ),
    Case("a first fragment to a forward", "lan", IN_FIRST, V.TO_DOMAIN, coming_in(IN_FIRST, "web", 22), "web"),
    Case(
        "the later one behind it",
        "lan",
        IN_SECOND,
        V.TO_DOMAIN,
        arriving("web", IN_SECOND, dst=NODES["web"].ip),
        "web",
        before=(("lan", IN_FIRST),),
    ),
    Case("a later one from the LAN comes first", "lan", IN_SECOND, V.TO_SORTER),
    Case("the host's own first fragment", "lan", HOST_FIRST, V.NOT_OURS, HOST_FIRST),
    Case("and the host's later one", "lan", HOST_SECOND, V.NOT_OURS, HOST_SECOND, before=(("lan", HOST_FIRST),)),
    Case(
        "sorted, the host's own goes back to it",
        "sorter",
        HOST_FIRST,
        V.NOT_OURS,
        HOST_FIRST,
        before=(("lan", HOST_SECOND), ("lan", HOST_FIRST)),
    ),
    Case(
        "a fragment from the LAN that would be taken for a domain's",
        "lan",
        ip("lan", LAN_ADDRESS, frag=4, proto=17, src=NODES["odd"].ip) / Raw(b"b" * 16),
        V.DROP_MARTIAN,
    ),
    Case(
        "what is the host's from the sorter, and no fragment", "sorter", tcp("lan", LAN_ADDRESS, 1, 22), V.DROP_FRAGMENT
    ),
    Case("what is nobody's from the sorter", "sorter", udp("lan", "192.0.2.99", 1, 2), V.DROP_FRAGMENT),
    Case("a domain to itself, from the sorter", "sorter", tcp("web", "web", 1, 22), V.DROP_MARTIAN),
    Case("what is no IP from the sorter", "sorter", arp("web", "169.254.1.0"), V.DROP_ETHERTYPE),
    Case("a broken header from the sorter", "sorter", tcp("web", "lan", 1, 2, chksum=0x1234), V.DROP_IP_HEADER),
)

HAIRPINS = XEN + "allow web -> db tcp 22\n"
ROUND = ip("web", LAN_ADDRESS, flags="DF") / TCP(sport=16393, dport=2203)
ROUND_BACK = ip("db", LAN_ADDRESS, flags="DF") / TCP(sport=22, dport=16393, flags="SA")


def _round(packet: Packet, to: str, **fields: object) -> Packet:
    """What goes out and in again by the LAN address: both ends translated, one hop."""
    new = packet.copy()
    new[IP].src = LAN_ADDRESS
    for name, value in fields.items():
        setattr(new[TCP], name, value)
    return arriving(to, new, dst=NODES[to].ip)


HAIRPIN = (
    Case("the router's own LAN address, at no port of ours", "web", tcp("web", LAN_ADDRESS, 1, 2299), V.DROP_HAIRPIN),
    Case("pinging the router's own LAN address", "web", echo("web", LAN_ADDRESS, 5), V.DROP_HAIRPIN),
    Case("another's forward, by the LAN address", "web", ROUND, V.DROP_POLICY),
    Case(
        "by rule it leads there, from the LAN address",
        "web",
        ROUND,
        V.TO_DOMAIN,
        _round(ROUND, "db", sport=16393, dport=22),
        "db",
        rules=HAIRPINS,
    ),
    Case(
        "and the answer back, from the LAN address too",
        "db",
        ROUND_BACK,
        V.TO_DOMAIN,
        _round(ROUND_BACK, "web", sport=2203, dport=16393),
        "web",
        rules=HAIRPINS,
        before=(("web", ROUND),),
    ),
    Case(
        "the LAN address as a source is nobody's but ours",
        "lan",
        tcp("lan", LAN_ADDRESS, 16393, 2203, src=LAN_ADDRESS),
        V.DROP_MARTIAN,
        rules=HAIRPINS,
    ),
)

STRANGE_SYN = tcp("lan", LAN_ADDRESS, 40000, 16393, src="192.0.2.12")
STRANGE_QUERY = udp("lan", LAN_ADDRESS, 40000, 16394, src="192.0.2.12")
STRANGE_FIRST = udp("lan", LAN_ADDRESS, 5, 16394, b"a" * 24, src="192.0.2.12", flags="MF")
HOST_SYN = tcp("lan", LAN_ADDRESS, 40000, 20000)
DB_ROUND = tcp("db", LAN_ADDRESS, 16401, 16393)


def _all_but(protocol: int, port: int) -> frozenset[tuple[int, int]]:
    """Every port of web's block, except one."""
    return frozenset((protocol, other) for other in WEB_BLOCK if other != port)


HOST_PORTS = (
    Case(
        "a TCP port that a program of the host has bound is neither kept nor found",
        "web",
        SYN,
        V.TO_LAN,
        going_out(SYN, 16399),
        "lan",
        host=_all_but(6, 16399),
    ),
    Case("nor is a UDP port of its", "web", QUERY, V.TO_LAN, going_out(QUERY, 16392), "lan", host=_all_but(17, 16392)),
    Case(
        "a UDP port of the host's is no TCP port of its",
        "web",
        SYN,
        V.TO_LAN,
        going_out(SYN, 16393),
        "lan",
        host=frozenset({(17, 16393)}),
    ),
    Case(
        "if the host has the whole block, there is no port",
        "web",
        SYN,
        V.DROP_PORTS_FULL,
        answered=True,
        host=_all_but(6, 0),
    ),
    Case(
        "what the host has in our range is its own", "lan", HOST_SYN, V.NOT_OURS, HOST_SYN, host=frozenset({(6, 20000)})
    ),
    Case(
        "a stranger to a mapping's port that the host has bound since",
        "lan",
        STRANGE_SYN,
        V.NOT_OURS,
        STRANGE_SYN,
        before=(("web", SYN),),
        host=frozenset({(6, 16393)}),
    ),
    Case(
        "and by UDP",
        "lan",
        STRANGE_QUERY,
        V.NOT_OURS,
        STRANGE_QUERY,
        before=(("web", QUERY),),
        host=frozenset({(17, 16394)}),
    ),
    Case(
        "and its first fragment",
        "lan",
        STRANGE_FIRST,
        V.NOT_OURS,
        STRANGE_FIRST,
        before=(("web", QUERY),),
        host=frozenset({(17, 16394)}),
    ),
    Case(
        "the mapping's own conversation goes on beside it",
        "lan",
        SYN_ACK,
        V.TO_DOMAIN,
        coming_in(SYN_ACK, "web", 16393),
        "web",
        before=(("web", SYN),),
        host=frozenset({(6, 16393)}),
    ),
    Case(
        "the host's socket of another protocol changes nothing",
        "lan",
        STRANGE_SYN,
        V.DROP_UNSOLICITED,
        before=(("web", SYN),),
        host=frozenset({(17, 16393)}),
    ),
    Case(
        "an error about the host's own on a mapping's port does not arrive",
        "lan",
        _quoting("lan", LAN_ADDRESS, tcp("lan", "192.0.2.12", 16393, 40000, src=LAN_ADDRESS)),
        V.DROP_ICMP_ERROR,
        before=(("web", SYN),),
        host=frozenset({(6, 16393)}),
    ),
    Case(
        "a domain does not reach the host by it",
        "db",
        DB_ROUND,
        V.DROP_HAIRPIN,
        rules=XEN + "allow db -> web\n",
        before=(("web", SYN),),
        host=frozenset({(6, 16393)}),
    ),
)

REJECT = XEN + "reject web -> lan tcp 25\nreject web -> db\n"
MAIL = tcp("web", "lan", 3000, 25)

REJECTS = (
    Case(
        "what is rejected is answered", "web", MAIL, V.DROP_REJECTED, icmp_from_router("web", MAIL, 3, 13), rules=REJECT
    ),
    Case("what is denied is not", "web", MAIL, V.DROP_POLICY, rules=XEN + "deny web -> lan tcp 25\n"),
    Case("deny beats reject", "web", MAIL, V.DROP_POLICY, rules=REJECT + "deny web -> lan tcp 20-30\n"),
    Case(
        "a rejected neighbour is found by ARP, so as to be told",
        "web",
        arp("web", NODES["db"].ip),
        V.ANSWERED,
        arp_answer("web", NODES["db"].ip),
        "web",
        rules=REJECT,
    ),
    Case("an error is never told of", "web", _quoting("web", "db", NEAR, 3, 3), V.DROP_ICMP_ERROR, rules=REJECT),
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

CASES = (
    *GUARD,
    *ARPS,
    *WAYS_OUT,
    *FORWARDS,
    *UPLINK,
    *ERRORS,
    *FRAGMENTS,
    *HAIRPIN,
    *HOST_PORTS,
    *REJECTS,
    *BETWEEN,
    *RULES,
)
assert Ether  # scapy resolves upper layers through it
