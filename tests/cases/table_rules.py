"""The packet table's part about rules: which of several decides, and what each word of the language lets through."""

from __future__ import annotations

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw
from support.frames import (
    LAN_ADDRESS,
    arp,
    arp_answer,
    arriving,
    echo,
    ether,
    icmp_from_router,
    ip,
    tcp,
    timestamp,
    udp,
)
from support.world import GATEWAY_MAC, NODES

from cases.case import XEN, Case, coming_in, going_out
from vfr._abi import Verdict as V

SYN = tcp("web", "lan", 16393, 80)
TIER_SYN = tcp("web", "db", 3000, 5432)
FORWARD_SYN = tcp("lan", LAN_ADDRESS, 40000, 2202)
FAR_SYN = tcp("lan", LAN_ADDRESS, 40000, 2202, src="198.51.100.9")


def _near(sentence: str, rules: str, verdict: V = V.TO_DOMAIN, packet: Packet = TIER_SYN, lab: bool = False) -> Case:
    """web, or whoever the packet is from, to another domain."""
    names = {node.mac: name for name, node in NODES.items()}
    of_ip = {node.ip: name for name, node in NODES.items()}
    sender, to = names[packet.src], of_ip[packet[1].dst]
    passes = verdict in (V.TO_DOMAIN, V.TO_DOM0)
    answer = icmp_from_router(sender, packet, 3, 13) if verdict is V.DROP_REJECTED else None
    becomes = arriving(to, packet) if passes else answer
    return Case(sentence, sender, packet, verdict, becomes, to if passes else None, rules, lab=lab)


def _out(sentence: str, rules: str, verdict: V = V.TO_LAN, to: str = "lan", lab: bool = False) -> Case:
    """web to somebody behind the uplink."""
    packet = tcp("web", to, 16393, 80)
    answer = icmp_from_router("web", packet, 3, 13) if verdict is V.DROP_REJECTED else None
    if verdict is V.TO_LAN:
        return Case(sentence, "web", packet, verdict, going_out(packet, 16393), "lan", rules, lab=lab)
    return Case(sentence, "web", packet, verdict, answer, None, rules, lab=lab)


def _in(sentence: str, rules: str, verdict: V = V.TO_DOMAIN, packet: Packet = FORWARD_SYN, lab: bool = False) -> Case:
    """Somebody behind the uplink to web's ssh."""
    if verdict is V.TO_DOMAIN:
        return Case(sentence, "lan", packet, verdict, coming_in(packet, "web", 22), "web", rules, lab=lab)
    answer = icmp_from_router("lan", packet, 3, 13) if verdict is V.DROP_REJECTED else None
    return Case(sentence, "lan", packet, verdict, answer, None, rules, lab=lab)


TIER = "group tier = web, odd\ngroup data = db\n"

LEVELS = (
    _near("a rule for the two domains", "allow web -> db\n"),
    _near("a rule for the opener's group", TIER + "allow tier -> db\n", lab=True),
    _near("a rule for the target's group", TIER + "allow web -> data tcp 5432\n"),
    _near("a rule from group to group", TIER + "allow tier -> data tcp 5000-6000\n"),
    _near("a rule for everybody", "allow any -> any\n"),
    _near("a rule from a group to everybody", TIER + "allow tier -> any\n"),
    _near("a rule from everybody to a group", TIER + "allow any -> data\n"),
    _near("a group that it is not in", TIER + "allow data -> db\n", V.DROP_POLICY),
    _near("a group in a group", TIER + "group all = tier\nallow all -> db\n"),
    _near("a group without members", "group none-yet =\nallow none-yet -> db\nallow web -> none-yet\n", V.DROP_POLICY),
    _near("several in one line", "allow odd, web -> dom0, db tcp 5432\n"),
    _near("several that it is not among", "allow odd, db -> dom0, db tcp 5432\n", V.DROP_POLICY),
    _near("deny for its group beats allow for itself", TIER + "allow web -> db\ndeny tier -> db\n", V.DROP_POLICY),
    _near("deny for itself beats allow for its group", TIER + "allow tier -> db\ndeny web -> db\n", V.DROP_POLICY),
    _near("deny for everybody beats allow for itself", "allow web -> db\ndeny any -> any\n", V.DROP_POLICY, lab=True),
    _near("deny for itself beats allow for everybody", "allow any -> any\ndeny web -> db\n", V.DROP_POLICY),
    _near("deny for everybody beats allow for its group", TIER + "allow tier -> data\ndeny any -> db\n", V.DROP_POLICY),
    _near("deny for its group beats allow for everybody", TIER + "allow any -> any\ndeny any -> data\n", V.DROP_POLICY),
    _near("deny of all beats allow of its port", "allow web -> db tcp 5432\ndeny any -> db\n", V.DROP_POLICY),
    _near("deny of its port beats allow of all", "allow web -> db\ndeny any -> db tcp 5432\n", V.DROP_POLICY),
    _near("deny of another port is about another port", "allow web -> db\ndeny any -> db tcp 5433\n"),
    _near("deny of another protocol is about another protocol", "allow web -> db\ndeny any -> db udp\n"),
    _near("deny for another's group is about another", TIER + "allow web -> db\ndeny data -> db\n"),
    _near("deny of the other way is about the other way", "allow web -> db\ndeny db -> web\n"),
    _near("reject for everybody beats allow for itself", "allow web -> db\nreject any -> db\n", V.DROP_REJECTED),
    _near(
        "reject for its group beats allow for everybody",
        TIER + "allow any -> any\nreject tier -> any\n",
        V.DROP_REJECTED,
    ),
    _near("deny for everybody beats reject for itself", "reject web -> db\ndeny any -> any tcp\n", V.DROP_POLICY),
    _near("deny for itself beats reject for everybody", "reject any -> any\ndeny web -> db tcp 5432\n", V.DROP_POLICY),
    _near("of two groups one allows", "group a = web\ngroup b = web\nallow a -> db\nallow b -> dom0\n"),
    _near("of two groups one denies", "group a = web\ngroup b = web\nallow a -> db\ndeny b -> db\n", V.DROP_POLICY),
    _near("domain 0 in a group", "group staff = dom0\nallow staff -> web tcp 22\n", packet=tcp("dom0", "web", 5, 22)),
    _near(
        "to domain 0 in a group",
        "group staff = dom0\nallow web -> staff tcp 22\n",
        V.TO_DOM0,
        tcp("web", "dom0", 5, 22),
    ),
    _near("both ways, there", "allow web <-> db tcp 5432\n"),
    _near("both ways, and back", "allow web <-> db tcp 5432\n", packet=tcp("db", "web", 3000, 5432), lab=True),
    _near("both ways with a group, back", TIER + "allow tier <-> db tcp 80\n", packet=tcp("db", "odd", 3000, 80)),
    _near("and not among the group", TIER + "allow tier <-> db tcp 80\n", V.DROP_POLICY, tcp("web", "odd", 3000, 80)),
    _near("a group with itself", TIER + "allow tier <-> tier\n", packet=tcp("web", "odd", 3000, 80)),
    _near("one way only", "allow web -> db tcp 5432\n", V.DROP_POLICY, tcp("db", "web", 3000, 5432)),
    _near("all of the LAN is no domain", "allow web -> lan\nallow web -> 0.0.0.0/0\n", V.DROP_POLICY),
    _near("a domain's address is no domain", "allow any -> 198.18.0.77\n", V.DROP_POLICY, tcp("web", "odd", 3000, 80)),
)

OFFICE = "set office = 192.0.2.0/28, 203.0.113.7\n"

BLOCKS = (
    _out("to an address", "allow web -> 192.0.2.11\n", lab=True),
    _out("to another address", "allow web -> 192.0.2.12\n", V.DROP_POLICY, lab=True),
    _out("to a block", "allow web -> 192.0.2.8/29 tcp 80\n"),
    _out("to the block beside it", "allow web -> 192.0.2.16/29\n", V.DROP_POLICY),
    _out("to a range", "allow web -> 192.0.2.10-192.0.2.11\n"),
    _out("to a range that ends before it", "allow web -> 192.0.2.2-192.0.2.10\n", V.DROP_POLICY),
    _out("to everywhere, as a block", "allow web -> 0.0.0.0/0\n"),
    _out("everywhere is everybody behind the uplink", "allow any -> 0.0.0.0/0\n", to="10.1.2.3"),
    _out(
        "deny of an address beats allow of its block",
        "allow web -> 192.0.2.0/24\ndeny web -> 192.0.2.11\n",
        V.DROP_POLICY,
    ),
    _out(
        "deny of a block beats allow of its address",
        "allow web -> 192.0.2.11\ndeny web -> 192.0.2.0/24\n",
        V.DROP_POLICY,
    ),
    _out("deny of one address is about that", "allow web -> 192.0.2.0/24\ndeny web -> 192.0.2.12\n"),
    _out("deny of the LAN beats allow of an address", "allow web -> 192.0.2.11\ndeny any -> lan\n", V.DROP_POLICY),
    _out("deny for everybody beats allow of an address", "allow web -> 192.0.2.11\ndeny any -> any\n", V.DROP_POLICY),
    _out("deny of an address beats allow of the LAN", "allow any -> lan\ndeny any -> 192.0.2.11\n", V.DROP_POLICY),
    _out(
        "deny for its group beats allow of an address",
        TIER + "allow web -> 192.0.2.11\ndeny tier -> lan\n",
        V.DROP_POLICY,
    ),
    _out(
        "reject of an address beats allow of the LAN", "allow web -> lan\nreject web -> 192.0.2.11\n", V.DROP_REJECTED
    ),
    _out(
        "reject of a block beats allow of its address",
        "allow web -> 192.0.2.11\nreject any -> 192.0.2.0/24\n",
        V.DROP_REJECTED,
    ),
    _out("a group to a block", TIER + "allow tier -> 192.0.2.8/29\n"),
    _out("everybody to everybody", "allow any -> any\n"),
    _out("the internet", "allow web -> internet\n", to="198.51.100.9"),
    _out("the uplink's own network is not the internet", "allow web -> internet\n", V.DROP_POLICY, lab=True),
    _out("a private network is not the internet", "allow web -> internet\n", V.DROP_POLICY, "10.1.2.3"),
    _out("just behind a private network is the internet", "allow web -> internet\n", to="172.32.0.1"),
    _out("a shared network is not the internet", "allow any -> internet\n", V.DROP_POLICY, "100.127.255.254"),
    _out("deny of the internet leaves the rest", "allow web -> lan\ndeny web -> internet\n"),
    _out("and denies the internet", "allow web -> lan\ndeny web -> internet\n", V.DROP_POLICY, "198.51.100.9"),
    _out(
        "reject of the internet beats allow of a block",
        "allow web -> 198.51.100.0/24\nreject any -> internet\n",
        V.DROP_REJECTED,
        "198.51.100.9",
    ),
    _out("a private block by name", "allow web -> 10.0.0.0/8\nallow web -> internet\n", to="10.1.2.3"),
    _out("a set", OFFICE + "allow web -> office tcp\n", lab=True),
    _out("not in the set", OFFICE + "allow web -> office\n", V.DROP_POLICY, "192.0.2.16"),
    _out("a set's other member", OFFICE + "allow web -> office\n", to="203.0.113.7"),
    _out("a set in a set", OFFICE + "set all = 10.0.0.0/8, office\nallow web -> all\n"),
    _out(
        "a set in a set that is denied", OFFICE + "set all = office\nallow web -> lan\ndeny any -> all\n", V.DROP_POLICY
    ),
    _out(
        "in two sets, of which one is denied",
        OFFICE + "set b = 192.0.2.11\nallow web -> office\ndeny web -> b\n",
        V.DROP_POLICY,
    ),
    _out("an empty set allows nobody", "set none-yet =\nallow web -> none-yet\n", V.DROP_POLICY),
    _out("an empty set denies nobody", "set none-yet =\nallow web -> lan\ndeny web -> none-yet\n"),
    _out("a set of IPv6 allows nothing of IPv4", "set six = 2001:db8::/32, ::/0\nallow web -> six\n", V.DROP_POLICY),
    _out("a set of IPv6 denies nothing of IPv4", "set six = 2001:db8::/32, ::/0\nallow web -> lan\ndeny web -> six\n"),
    _out("a block of IPv6 allows nothing of IPv4", "allow web -> ::/0\n", V.DROP_POLICY),
    _in("from an address", "allow 192.0.2.11 -> web tcp 22\n", lab=True),
    _in("from another address", "allow 192.0.2.12 -> web tcp 22\n", V.DROP_POLICY, lab=True),
    _in("from a block", "allow 192.0.2.0/28 -> any tcp 22\n"),
    _in("from a range", "allow 192.0.2.11-192.0.2.30 -> web\n"),
    _in("from a set, to a group", OFFICE + TIER + "allow office -> tier tcp 22\n"),
    _in("from the internet is not from here", "allow internet -> web\n", V.DROP_POLICY),
    _in("from the internet", "allow internet -> web\n", packet=FAR_SYN),
    _in("from a block, to another port", "allow 192.0.2.0/28 -> web tcp 23\n", V.DROP_POLICY),
    _in("from an address that is denied", "allow lan -> any tcp 22\ndeny 192.0.2.11 -> web\n", V.DROP_POLICY, lab=True),
    _in("from an address that is rejected", "allow lan -> web\nreject 192.0.2.0/24 -> any\n", V.DROP_REJECTED),
    _in("deny of the LAN beats allow from an address", "allow 192.0.2.11 -> web\ndeny lan -> any\n", V.DROP_POLICY),
    _in("both ways with the LAN, in", "allow web <-> lan tcp 22\n"),
    _in("from an IPv6 block", "allow ::/0 -> web\n", V.DROP_POLICY),
)

STAMP = timestamp("web", "lan", 16395)
STAMPED = timestamp("lan", LAN_ADDRESS, 16395, 14)
PING = echo("web", "lan", 16395)
PONG = echo("lan", LAN_ADDRESS, 16395, 0)
NEAR_STAMP = timestamp("web", "db", 9)
NEAR_STAMPED = timestamp("db", "web", 9, 14)
ECHO_ONLY, STAMP_ONLY = "allow web -> any icmp echo\nallow web -> lan icmp echo\n", "allow web -> any icmp timestamp\n"
BOTH = "allow web -> any icmp\n"

QUERIES = (
    Case(
        "a timestamp request, where icmp is allowed", "web", STAMP, V.TO_LAN, going_out(STAMP, 16395), "lan", lab=True
    ),
    Case(
        "and its reply",
        "lan",
        STAMPED,
        V.TO_DOMAIN,
        coming_in(STAMPED, "web", 16395),
        "web",
        before=(("web", STAMP),),
        lab=True,
    ),
    Case("a timestamp reply that nobody asked for", "web", timestamp("web", "lan", 5, 14), V.DROP_NO_SESSION),
    Case("echo alone: a ping", "web", PING, V.TO_LAN, going_out(PING, 16395), "lan", ECHO_ONLY, lab=True),
    Case("echo alone: a timestamp", "web", STAMP, V.DROP_POLICY, rules=ECHO_ONLY, lab=True),
    Case(
        "echo alone: a timestamp with the identifier of a ping",
        "web",
        STAMP,
        V.DROP_POLICY,
        rules=ECHO_ONLY,
        before=(("web", PING), ("lan", PONG)),
    ),
    Case("timestamps alone: a timestamp", "web", STAMP, V.TO_LAN, going_out(STAMP, 16395), "lan", STAMP_ONLY),
    Case("timestamps alone: a ping", "web", PING, V.DROP_POLICY, rules=STAMP_ONLY),
    Case(
        "timestamps alone: a ping with the identifier of a timestamp",
        "web",
        PING,
        V.DROP_POLICY,
        rules=STAMP_ONLY,
        before=(("web", STAMP), ("lan", STAMPED)),
    ),
    Case(
        "a ping and a timestamp of one identifier: the ping's answer",
        "lan",
        PONG,
        V.TO_DOMAIN,
        coming_in(PONG, "web", 16395),
        "web",
        BOTH,
        before=(("web", PING), ("web", STAMP)),
    ),
    Case(
        "and the timestamp's",
        "lan",
        STAMPED,
        V.TO_DOMAIN,
        coming_in(STAMPED, "web", 16395),
        "web",
        BOTH,
        before=(("web", STAMP), ("web", PING)),
    ),
    Case(
        "a timestamp is no answer to a ping, and the host's",
        "lan",
        STAMPED,
        V.NOT_OURS,
        STAMPED,
        before=(("web", PING),),
    ),
    Case("nor a ping's answer to a timestamp", "lan", PONG, V.NOT_OURS, PONG, before=(("web", STAMP),)),
    Case("timestamps between domains", "web", NEAR_STAMP, V.TO_DOMAIN, arriving("db", NEAR_STAMP), "db", STAMP_ONLY),
    Case(
        "their answers",
        "db",
        NEAR_STAMPED,
        V.TO_DOMAIN,
        arriving("web", NEAR_STAMPED),
        "web",
        STAMP_ONLY,
        before=(("web", NEAR_STAMP),),
    ),
    Case(
        "a domain's ping is not answered by a timestamp",
        "db",
        NEAR_STAMPED,
        V.DROP_NO_SESSION,
        rules=BOTH,
        before=(("web", echo("web", "db", 9)),),
    ),
    Case("a timestamp with a code", "web", ip("web", "lan") / ICMP(type=13, code=2, id=5), V.DROP_ICMP_TYPE),
    Case(
        "the host is asked for the time",
        "lan",
        timestamp("lan", LAN_ADDRESS, 3),
        V.NOT_OURS,
        timestamp("lan", LAN_ADDRESS, 3),
    ),
)

GRE, GRE_BACK = (ip(a, b, proto=47) / Raw(bytes(20)) for a, b in (("web", "db"), ("db", "web")))
GRE_ONLY = XEN + "allow web -> db proto gre\n"
GRE_FIRST = ip("web", "db", proto=47, flags="MF") / Raw(b"a" * 24)
GRE_LATER = ip("web", "db", proto=47, frag=3) / Raw(b"b" * 9)
GRE_TO_LAN = ip("web", "lan", proto=47) / Raw(bytes(20))

PROTOCOLS = (
    _near("another protocol, by its number", "allow web -> db proto 47\n", packet=GRE, lab=True),
    _near("by a rule for all protocols", "allow web -> db\n", packet=ip("web", "db", proto=132) / Raw(b"x" * 40)),
    _near("of another number", "allow web -> db proto 50\n", V.DROP_POLICY, GRE),
    _near("where only TCP is allowed", "allow web -> db tcp\nallow any -> db udp\n", V.DROP_POLICY, GRE, lab=True),
    _near("TCP where only GRE is allowed", GRE_ONLY, V.DROP_POLICY),
    _near("where nothing is", XEN, V.DROP_POLICY, GRE),
    _near("denied among all", "allow any -> any\ndeny web -> db proto 47\n", V.DROP_POLICY, GRE),
    _near("rejected among all", "allow any -> any\nreject any -> any proto 47\n", V.DROP_REJECTED, GRE),
    _near("the other way needs a rule", GRE_ONLY, V.DROP_POLICY, GRE_BACK),
    _near("or one for both ways", "allow web <-> db proto 47\n", packet=GRE_BACK),
    _near(
        "another protocol to domain 0",
        "allow web -> dom0 proto ospf\n",
        V.TO_DOM0,
        ip("web", "dom0", proto=89) / Raw(b"x" * 44),
    ),
    _near("with nothing in it", "allow web -> db\n", packet=ip("web", "db", proto=59)),
    Case(
        "its answer",
        "db",
        GRE_BACK,
        V.TO_DOMAIN,
        arriving("web", GRE_BACK),
        "web",
        GRE_ONLY,
        before=(("web", GRE),),
        lab=True,
    ),
    Case(
        "another protocol's is none",
        "db",
        ip("db", "web", proto=50),
        V.DROP_POLICY,
        rules=GRE_ONLY,
        before=(("web", GRE),),
    ),
    Case("to the LAN there is no way for it", "web", GRE_TO_LAN, V.DROP_PROTOCOL, rules="allow any -> any\n", lab=True),
    Case("nor by a rule that names it", "web", GRE_TO_LAN, V.DROP_PROTOCOL, rules="allow web -> lan proto 47\n"),
    Case(
        "nor by the LAN address", "web", ip("web", LAN_ADDRESS, proto=47), V.DROP_PROTOCOL, rules="allow any -> any\n"
    ),
    Case(
        "from the LAN another protocol is the host's",
        "lan",
        ip("lan", LAN_ADDRESS, proto=47) / Raw(b"x" * 20),
        V.NOT_OURS,
        ip("lan", LAN_ADDRESS, proto=47) / Raw(b"x" * 20),
        rules="allow any -> any\nallow lan -> any\n",
    ),
    Case("its first fragment", "web", GRE_FIRST, V.TO_DOMAIN, arriving("db", GRE_FIRST), "db", GRE_ONLY),
    Case(
        "its later fragment",
        "web",
        GRE_LATER,
        V.TO_DOMAIN,
        arriving("db", GRE_LATER),
        "db",
        GRE_ONLY,
        before=(("web", GRE_FIRST),),
    ),
    Case("its first fragment without a rule", "web", GRE_FIRST, V.DROP_POLICY),
    Case("its later fragment before the first", "web", GRE_LATER, V.TO_SORTER, rules=GRE_ONLY),
)

STORAGE = "allow web -> db ether 0x889a\n"


def _raw(sender: str, to: str, kind: int = 0x889A, load: int = 60, **fields: object) -> Packet:
    """Raw Ethernet, to a node by name or to a MAC."""
    mac = NODES[to].mac if to in NODES else to
    return ether(sender, Raw(b"s" * load), **{"dst": mac, "type": kind, **fields})


RAW = _raw("web", "db")
RAW_DOM0 = _raw("web", "dom0", 0x88CC)
TAGGED = ether("web", Dot1Q(vlan=5, type=0x889A) / Raw(b"s" * 60), dst=NODES["db"].mac)
LONGEST = _raw("web", "db", load=1500)
BARE = _raw("web", "db", load=0)
ETHERS = (
    Case("raw Ethernet by rule, as it stands", "web", RAW, V.TO_DOMAIN, RAW, "db", STORAGE, lab=True),
    Case("raw Ethernet without one", "web", RAW, V.DROP_ETHERTYPE, lab=True),
    Case("all of IP is nothing of it", "web", RAW, V.DROP_ETHERTYPE, rules="allow any -> any\n"),
    Case("to deny all of IP is nothing of it", "web", RAW, V.TO_DOMAIN, RAW, "db", STORAGE + "deny any -> any\n"),
    Case("all of it is nothing of IP", "web", TIER_SYN, V.DROP_POLICY, rules=STORAGE),
    Case("another type of it", "web", _raw("web", "db", 0x88A2), V.DROP_ETHERTYPE, rules=STORAGE, lab=True),
    Case("the second type of a rule", "web", RAW, V.TO_DOMAIN, RAW, "db", "allow web -> db ether 0x88a2,0x889a\n"),
    Case("by a group", "web", RAW, V.TO_DOMAIN, RAW, "db", TIER + "allow tier -> data ether 0x889a\n"),
    Case("by everybody's rule", "web", RAW, V.TO_DOMAIN, RAW, "db", "allow any -> any ether 0x889a\n"),
    Case("denied by everybody's", "web", RAW, V.DROP_ETHERTYPE, rules=STORAGE + "deny any -> any ether 0x889a\n"),
    Case("denied of another type", "web", RAW, V.TO_DOMAIN, RAW, "db", STORAGE + "deny any -> any ether 0x88a2\n"),
    Case("the other way", "db", _raw("db", "web"), V.DROP_ETHERTYPE, rules=STORAGE, before=(("web", RAW),), lab=True),
    Case(
        "the other way by a rule for both",
        "db",
        _raw("db", "web"),
        V.TO_DOMAIN,
        _raw("db", "web"),
        "web",
        "allow web <-> db ether 0x889a\n",
    ),
    Case("to another domain than the rule's", "web", _raw("web", "odd"), V.DROP_ETHERTYPE, rules=STORAGE),
    Case("to everybody's MAC", "web", _raw("web", "ff:ff:ff:ff:ff:ff"), V.DROP_ETHERTYPE, rules=STORAGE, lab=True),
    Case("to a group's MAC", "web", _raw("web", "01:00:00:00:00:03"), V.DROP_ETHERTYPE, rules=STORAGE),
    Case(
        "to the target's MAC, made a group's", "web", _raw("web", "03:00:00:00:00:03"), V.DROP_ETHERTYPE, rules=STORAGE
    ),
    Case("to nobody's MAC", "web", _raw("web", "02:00:00:00:00:77"), V.DROP_ETHERTYPE, rules=STORAGE),
    Case("to the router's MAC", "web", _raw("web", GATEWAY_MAC), V.DROP_ETHERTYPE, rules=STORAGE),
    Case("to the LAN's MAC", "web", _raw("web", "lan"), V.DROP_ETHERTYPE, rules="allow any -> any ether 0x889a\n"),
    Case(
        "raw Ethernet to itself", "web", _raw("web", "web"), V.DROP_ETHERTYPE, rules="allow any -> any ether 0x889a\n"
    ),
    Case("with a VLAN tag", "web", TAGGED, V.DROP_VLAN, rules=STORAGE, lab=True),
    Case("from another's MAC", "web", _raw("web", "db", src=NODES["odd"].mac), V.DROP_SRC_MAC, rules=STORAGE, lab=True),
    Case("as long as the MTU", "web", LONGEST, V.TO_DOMAIN, LONGEST, "db", STORAGE),
    Case("longer than the MTU", "web", _raw("web", "db", load=1501), V.DROP_TOO_BIG, rules=STORAGE),
    Case("with nothing in it but a type", "web", BARE, V.TO_DOMAIN, BARE, "db", STORAGE),
    Case(
        "raw Ethernet to domain 0",
        "web",
        RAW_DOM0,
        V.TO_DOM0,
        RAW_DOM0,
        "dom0",
        "allow web -> dom0 ether 0x88cc\n",
        lab=True,
    ),
    Case("to domain 0 without a rule", "web", RAW_DOM0, V.DROP_ETHERTYPE, rules=STORAGE),
    Case(
        "from domain 0",
        "dom0",
        _raw("dom0", "db"),
        V.TO_DOMAIN,
        _raw("dom0", "db"),
        "db",
        "allow dom0 -> any ether 0x889a\n",
        lab=True,
    ),
    Case(
        "a length is no type",
        "web",
        _raw("web", "db", 0x05DC),
        V.DROP_ETHERTYPE,
        rules="allow any -> any ether 0x0600\n",
    ),
    Case(
        "the lowest type",
        "web",
        _raw("web", "db", 0x600),
        V.TO_DOMAIN,
        _raw("web", "db", 0x600),
        "db",
        "allow web -> db ether 0x600\n",
    ),
    Case(
        "IP to a domain's MAC is not raw Ethernet",
        "web",
        ether("web", TIER_SYN.payload, dst=NODES["db"].mac),
        V.DROP_DST_MAC,
        rules=STORAGE,
    ),
    Case("nor is IPv6", "web", ether("web", IPv6(), dst=NODES["db"].mac), V.DROP_IPV6, rules=STORAGE),
    Case(
        "from the LAN raw Ethernet is the host's",
        "lan",
        _raw("lan", GATEWAY_MAC),
        V.NOT_OURS,
        _raw("lan", GATEWAY_MAC),
        rules=STORAGE,
    ),
    Case("from the sorter it is nothing", "sorter", RAW, V.DROP_ETHERTYPE, rules=STORAGE),
)

SLOW = "allow web -> db udp limit 1/s\nallow web -> db tcp\nallow lan -> web tcp limit 1/s\n"
CALLS = tuple(udp("web", "db", 3000 + n, 80) for n in range(3))
ENTERING = tuple(tcp("lan", LAN_ADDRESS, 40000 + n, 2202) for n in range(3))
TWO = tuple(("web", call) for call in CALLS[:2])

LIMITS = (
    Case(
        "more conversations than a rule's limit",
        "web",
        CALLS[2],
        V.DROP_TOO_FAST,
        icmp_from_router("web", CALLS[2], 3, 1),
        rules=SLOW,
        before=TWO,
    ),
    Case("those that began go on", "web", CALLS[1], V.TO_DOMAIN, arriving("db", CALLS[1]), "db", SLOW, before=TWO),
    Case(
        "another rule's are not counted", "web", TIER_SYN, V.TO_DOMAIN, arriving("db", TIER_SYN), "db", SLOW, before=TWO
    ),
    Case(
        "the most generous rule decides",
        "web",
        CALLS[2],
        V.TO_DOMAIN,
        arriving("db", CALLS[2]),
        "db",
        SLOW + "allow any -> db udp 80 limit 50/s\n",
        before=TWO,
    ),
    Case(
        "one without a limit is the most generous",
        "web",
        CALLS[2],
        V.TO_DOMAIN,
        arriving("db", CALLS[2]),
        "db",
        SLOW + "allow any -> any\n",
        before=TWO,
    ),
    Case("a denial needs no limit", "web", CALLS[0], V.DROP_POLICY, rules=SLOW + "deny web -> db udp 80\n"),
    Case(
        "more from the LAN than a rule's limit, who is not told",
        "lan",
        ENTERING[2],
        V.DROP_TOO_FAST,
        rules=SLOW,
        before=tuple(("lan", packet) for packet in ENTERING[:2]),
    ),
    Case(
        "a limit is one for all whom the rule is about",
        "odd",
        udp("odd", "db", 3002, 80),
        V.DROP_TOO_FAST,
        rules="allow any -> db udp limit 1/s\n",
        before=TWO,
        answered=True,
    ),
)


def _found(sentence: str, rules: str, found: bool = True, asker: str = "web", lab: bool = False) -> Case:
    """web, or another, asks for db by ARP."""
    packet = arp(asker, NODES["db"].ip)
    if not found:
        return Case(sentence, asker, packet, V.DROP_ARP_UNANSWERED, rules=rules, lab=lab)
    return Case(sentence, asker, packet, V.ANSWERED, arp_answer(asker, NODES["db"].ip), asker, rules, lab=lab)


# Whoever may be spoken to, or may speak, is found; and who is told why not. Where everything is denied, nobody is.
NEIGHBOURS = (
    _found("ARP by a rule for its group", TIER + "allow tier -> data tcp 5432\n"),
    _found("ARP by a rule for everybody", "allow any -> any udp 53\n"),
    _found("ARP by a rule for another protocol", "allow web -> db proto 47\n"),
    _found("ARP for who may open to it", TIER + "allow data -> tier\n"),
    _found("ARP for who is rejected", "reject any -> data\ngroup data = db\n"),
    _found("ARP where one port is denied", "allow web -> db\ndeny any -> any tcp 22\n"),
    _found("ARP where all is denied one way only", "allow db -> web\ndeny web -> db\n"),
    _found("ARP where all is denied", "allow web -> db\ndeny any -> any\n", False, lab=True),
    _found("ARP where all is denied to its group", TIER + "allow any -> any\ndeny tier <-> data\n", False),
    _found("ARP where raw Ethernet alone is allowed", STORAGE, False),
    _found("ARP where the LAN alone is allowed", "allow any -> lan\nallow any -> 0.0.0.0/0\n", False),
    _found("ARP by a rule for a group that it is not in", TIER + "allow data -> odd\nallow odd -> db\n", False),
)

RULES = (*NEIGHBOURS, *LEVELS, *BLOCKS, *QUERIES, *PROTOCOLS, *ETHERS, *LIMITS)
