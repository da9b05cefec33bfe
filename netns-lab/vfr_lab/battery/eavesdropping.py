"""To receive what is for others: promiscuous, flooded, multicast, broadcast, and by way of a switch that is misled.

web's eyes are promiscuous all the time. That they see is shown by something that is for web; that there was something
to be seen, by the node that sent it or that it was for.
"""

from __future__ import annotations

from collections.abc import Callable

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.identity import ALL, HONEST, SERVICE, ipv6
from vfr_lab.battery.stage import Stage
from vfr_lab.node import Seen


def _overheard(s: Stage, seen: Seen, what: bytes | Callable[[Packet], bool]) -> list[str]:
    """What web saw of this, but for what dom0 said to web itself."""
    s.control("web sees what dom0 says to it", seen.having(s.mark + HONEST))
    found = [f for f in seen.having(what) if s.mark + HONEST not in f.raw]
    return [f"web received: {f}" for f in found[:8]]


def _greet(s: Stage) -> None:
    """dom0 says something to web, for its eyes' sake."""
    s.dom0.udp(s.address("web"), 9, s.mark + HONEST)


def _sent_by_db(s: Stage, destination: str, mac: str, port: int, data: bytes = b"") -> list[str]:
    """db sends a datagram to this address and MAC; what web saw of it."""
    packet = IP(src=s.address("db"), dst=destination) / UDP(sport=port, dport=port) / Raw(data + s.mark)
    with s.web.watch() as seen, s.db.watch() as db:
        s.db.send(Ether(src=s.db.mac, dst=mac) / packet)
        _greet(s)
    s.control("the frame left db", any(s.mark in f.raw for f in db.own))
    return _overheard(s, seen, s.mark)


def _ssh(s: Stage, *lies: Packet) -> list[str]:
    """web sends frames, lan1 speaks to db by ssh, thrice: db's own last words may undo the first; what web saw of that."""
    db, forward = s.address("db"), s.guest("db").forward
    assert forward is not None
    s.control("lan1 reaches db by ssh before", s.lan1.tcp(s.outside, forward).startswith("SSH-"))
    with s.web.watch() as seen:
        for _ in range(3):
            s.web.send(*lies)
            s.lan1.tcp(s.outside, forward, timeout=0.2)
        _greet(s)
    return _overheard(s, seen, lambda p: IP in p and db in (p[IP].src, p[IP].dst))


# What is for one


@attack("eavesdropping", tool="scapy", falls="bridge")
def ssh_after_a_stolen_mac(s: Stage) -> list[str]:
    """web sends with db's MAC, and listens when lan1 speaks to db by ssh.

    A switch learns from web's frame that db is where web is. No packet of lan1's connection may come to web.
    """
    packet = IP(src=s.address("web"), dst=s.address("lan1")) / UDP(dport=9)
    return _ssh(s, Ether(src=s.db.mac, dst=s.gateway_mac()) / packet)


@attack("eavesdropping", tool="scapy", falls="bridge")
def ssh_after_a_stolen_address(s: Stage) -> list[str]:
    """web announces db's address as its own, and listens when lan1 speaks to db by ssh.

    The host sends a forward's packets to whoever it has learned to be db. None of lan1's connection may come to web,
    whose own sshd could answer and ask for passwords.
    """
    mac, db = s.web.mac, s.address("db")
    return _ssh(s, Ether(src=mac, dst=ALL) / ARP(op=2, hwsrc=mac, hwdst=mac, psrc=db, pdst=db))


@attack("eavesdropping", tool="macof", falls="bridge")
def flooded_switch(s: Stage) -> list[str]:
    """web floods the switch's table with macof.

    Two thousand frames between random MACs. What dom0 says to db may not come to web, and what web made up
    may not be sent to db: every guest would receive all that one sends.
    """
    with s.web.watch() as seen, s.db.watch() as db:
        s.web.run("timeout", "5", "macof", "-i", "eth0", "-n", "2000")
        s.dom0.udp(s.address("db"), 9, s.mark)
        _greet(s)
    s.control("macof's frames left web", len(seen.own) >= 2000)
    s.control("db received what dom0 said", db.having(s.mark))
    made_up = len(db.frames) - len(db.having(s.mark))
    flooded = [f"db received {made_up} frames that macof made up"] if made_up > 100 else []
    return _overheard(s, seen, s.mark) + flooded


@attack("eavesdropping", tool="scapy", falls=("bridge", "bridge-filtered"))
def unknown_destination(s: Stage) -> list[str]:
    """web listens while db speaks to a machine that has gone.

    db still sends to the MAC of a neighbour that is no more. A switch that does not know a MAC sends to everybody;
    web must see nothing of it.
    """
    return _sent_by_db(s, "169.254.1.99", "02:00:00:00:00:99", SERVICE)


@attack("eavesdropping", tool="ip", falls=("bridge", "bridge-filtered"))
def gateway_by_an_old_mac(s: Stage) -> list[str]:
    """web listens while db speaks to lan1 by a MAC that the gateway no longer has.

    db's kernel holds on to what it once learned, as after the host was replaced. web must see nothing of what db says.
    """
    lan1 = s.address("lan1")
    s.lab.ip("db", "neigh", "replace", s.gateway, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0")
    try:
        with s.web.watch() as seen, s.db.watch() as db:
            s.db.udp(lan1, 9, s.mark, timeout=0.1)
            _greet(s)
    finally:
        s.lab.ip("db", "neigh", "del", s.gateway, "dev", "eth0")
    s.control("the datagram left db", any(s.mark in f.raw for f in db.own))
    return _overheard(s, seen, s.mark)


# What is for several


@attack("eavesdropping", tool="scapy", falls=("bridge", "bridge-filtered"))
def multicast_dns(s: Stage) -> list[str]:
    """web listens while db announces itself by multicast DNS.

    db tells its name and services to 224.0.0.251, as printers and desktops do. web must see nothing of it.
    """
    return _sent_by_db(s, "224.0.0.251", "01:00:5e:00:00:fb", 5353)


@attack("eavesdropping", tool="scapy", falls=("bridge", "bridge-filtered"))
def service_discovery(s: Stage) -> list[str]:
    """web listens while db looks for devices by SSDP.

    What db runs and looks for stands in its question to 239.255.255.250. web must see nothing of it.
    """
    search = b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\nST: ssdp:all\r\nUSER-AGENT: '
    return _sent_by_db(s, "239.255.255.250", "01:00:5e:7f:ff:fa", 1900, search)


@attack("eavesdropping", tool="scapy", falls=("bridge", "bridge-filtered"))
def netbios_broadcast(s: Stage) -> list[str]:
    """web listens while db calls for a name by NetBIOS.

    A broadcast to port 137, which whoever hears it can answer with a lie. web must see nothing of it.
    """
    return _sent_by_db(s, "255.255.255.255", ALL, 137)


@attack("eavesdropping", tool="ip", falls=("bridge", "bridge-filtered"))
def joins_a_group(s: Stage) -> list[str]:
    """web joins a multicast group, and listens while db speaks to it.

    web's kernel says by IGMP that it wants 239.1.2.3. What db sends to this group must not come to web: it was not
    for db to know who else is on its wire.
    """
    group = "239.1.2.3"
    s.lab.ip("web", "address", "add", f"{group}/32", "dev", "eth0", "autojoin")
    try:
        with s.web.listen("udp", SERVICE) as heard:
            found = _sent_by_db(s, group, "01:00:5e:01:02:03", SERVICE)
            s.dom0.udp(s.address("web"), SERVICE, s.mark + HONEST)
    finally:
        s.lab.ip("web", "address", "del", f"{group}/32", "dev", "eth0")
    s.control("web's service hears dom0", heard.having(s.mark + HONEST))
    return found + [f"web's service heard {who}" for who, _, said in heard.said if said == s.mark]


@attack("eavesdropping", tool="udhcpc", falls=("bridge", "bridge-filtered"))
def asks_for_an_address(s: Stage) -> list[str]:
    """web listens while db asks for an address by DHCP.

    udhcpc's broadcast tells db's MAC, host name and maker. web must see nothing of it.
    """
    ask = ("udhcpc", "-f", "-n", "-q", "-t", "1", "-T", "1", "-i", "eth0", "-s", "/bin/true", "-x", "hostname:secret")
    with s.web.watch() as seen, s.db.watch() as db:
        s.db.run(*ask)
        _greet(s)
    s.control("the question left db", any(b"secret" in f.raw for f in db.own))
    return _overheard(s, seen, b"secret")


@attack("eavesdropping", tool="arping", falls=("bridge", "bridge-filtered"))
def whom_db_looks_for(s: Stage) -> list[str]:
    """web listens while db looks for a neighbour.

    db's ARP requests for ci tell whom it speaks to. web must see none.
    """
    db = s.address("db")
    with s.web.watch() as seen, s.db.watch() as looked:
        s.db.run("arping", "-c1", "-w1", "-I", "eth0", s.address("ci"))
        _greet(s)
    s.control("the request left db", [f for f in looked.own if ARP in f.packet])
    return _overheard(s, seen, lambda p: ARP in p and p[ARP].psrc == db)


@attack("eavesdropping", tool="ip", falls=("bridge", "bridge-filtered"))
def whom_the_host_looks_for(s: Stage) -> list[str]:
    """web listens while dom0 looks for db.

    The host's ARP requests tell which guests there are and when they are spoken to. web must see none about db.
    """
    db = s.address("db")
    with s.web.watch() as seen, s.db.watch() as found:
        for _ in range(3):  # if db speaks to the host just before, that need not ask
            s.lab.ip("dom0", "neigh", "flush", "all")
            s.dom0.udp(db, 9, s.mark)
        _greet(s)
    s.control("dom0 found db", found.having(s.mark))
    return _overheard(s, seen, lambda p: ARP in p and p[ARP].pdst == db)


@attack("eavesdropping", tool="ip", falls="bridge")
def ipv6_of_another(s: Stage) -> list[str]:
    """web listens while db's IPv6 starts.

    What a kernel sends then tells its addresses and asks for a router, which whoever hears it can answer. web must
    see nothing of it.
    """
    mac = s.db.mac
    with s.web.watch() as seen, s.db.watch() as db, ipv6(s.db):
        s.db.ok("ping", "-6", "-n", "-c1", "-W0.2", "ff02::1%eth0")
        _greet(s)
    s.control("db sent IPv6", [f for f in db.own if IPv6 in f.packet])
    return _overheard(s, seen, lambda p: IPv6 in p and p.src == mac)


@attack("eavesdropping", tool="arping", falls=("bridge", "bridge-filtered", "xen1"))
def who_is_there(s: Stage) -> list[str]:
    """web asks for db by ARP.

    An answer with db's MAC tells that there is such a guest, that it is up, and how to write to it. None may come.
    """
    mac = s.db.mac
    with s.web.watch() as seen:
        s.web.run("arping", "-c1", "-w1", "-I", "eth0", s.address("db"))
        s.web.run("arping", "-c1", "-w1", "-I", "eth0", s.gateway)
        _greet(s)
    s.control("the gateway answers ARP", seen.having(lambda p: ARP in p and p[ARP].psrc == s.gateway))
    return _overheard(s, seen, lambda p: ARP in p and p[ARP].op == 2 and p[ARP].hwsrc == mac)
