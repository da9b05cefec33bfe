"""To receive what was meant for a former tenant: of an address, a port, a slot, a name.

db is taken away, and ci gets its address and its forward, as a new machine of another customer would. All that was
begun with the old tenant is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vfr_lab.battery import attack
from vfr_lab.battery.conversation import side
from vfr_lab.battery.stage import ECHO, Stage
from vfr_lab.lab import wait_until
from vfr_lab.node import Seen

SERVED, ASKED = 9100, 5400


@contextmanager
def _next_tenant(s: Stage) -> Iterator[Seen]:
    """ci has db's address and forward from here on, and speaks with the LAN; what it receives from then on."""
    lab, before = s.lab, s.lab.scenario
    old, new = s.guest("db"), s.guest("ci")
    tenant = replace(new, address=old.address, forward=old.forward)
    s.say(f"dom0: detaches db and ci, and attaches ci with {old.address}")
    for guest in (old, new):
        s.backend.detach(lab, guest)
    lab.scenario = replace(before, guests=(*(g for g in before.guests if g not in (old, new)), tenant))
    try:
        s.backend.attach(lab, tenant)
        wait_until(lambda: bool(s.ci.tcp(s.address("lan1"), ECHO)), "the new tenant's way out")
        with s.ci.watch() as seen:
            s.lan1.tcp(s.outside, old.forward or 0)
            yield seen
        s.control("what is for the new tenant arrives", seen.having(lambda p: TCP in p and p[TCP].dport == 22))
        s.backend.detach(lab, tenant)
    finally:
        lab.scenario = before


def _from_lan1(s: Stage, packet: Packet) -> Packet:
    return Ether(src=s.lan1.mac, dst=s.lan1.knows(s.outside)) / packet


def _received(seen: Seen, s: Stage) -> list[str]:
    return [f"the new tenant received: {f}" for f in seen.having(s.mark)]


def _asks(s: Stage) -> int:
    """db speaks with lan1 by UDP: the port that lan1 answers to."""
    with s.lan1.watch() as seen:
        s.control("db speaks with lan1", s.db.udp(s.address("lan1"), ECHO, s.mark, own_port=ASKED))
    return int(seen.having(s.mark)[0].packet[UDP].sport)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def answers_to_the_old_tenant(s: Stage) -> list[str]:
    """lan1 answers the old tenant late.

    db asked lan1 by UDP. lan1's second answer comes when the address is ci's. It was meant for another customer.
    """
    port = _asks(s)
    with _next_tenant(s) as seen:
        answer = IP(src=s.address("lan1"), dst=s.outside) / UDP(sport=ECHO, dport=port) / Raw(s.mark)
        s.lan1.send(_from_lan1(s, answer))
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def errors_for_the_old_tenant(s: Stage) -> list[str]:
    """lan1 reports an error about what the old tenant sent.

    "Port unreachable", with a quote of the old tenant's datagram: whom it spoke to and what it said.
    """
    port, lan1 = _asks(s), s.address("lan1")
    with _next_tenant(s) as seen:
        quoted = IP(src=s.outside, dst=lan1) / UDP(sport=port, dport=ECHO) / Raw(s.mark)
        s.lan1.send(_from_lan1(s, IP(src=lan1, dst=s.outside) / ICMP(type=3, code=3) / quoted))
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def fragments_for_the_old_tenant(s: Stage) -> list[str]:
    """The rest of a datagram for the old tenant comes too late.

    lan1's answer to db is in fragments. The first is sent while db is there, the last when ci is: what waited to be
    put together may not be handed to the new tenant.
    """
    port = _asks(s)
    data = Raw(s.mark + b"." * 64)
    answer = _from_lan1(s, IP(src=s.address("lan1"), dst=s.outside, id=77) / UDP(sport=ECHO, dport=port) / data)
    first, *rest = fragment(answer, 48)  # type: ignore[no-untyped-call]
    s.lan1.send(first)
    with _next_tenant(s) as seen:
        s.lan1.send(*rest)
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def session_through_the_forward(s: Stage) -> list[str]:
    """lan1 goes on speaking through the old tenant's forward.

    lan1 was connected to db's ssh. Its next segment, which a new connection does not begin, may not reach ci.
    """
    with ExitStack() as open_:
        with s.lan1.watch() as own:
            call = open_.enter_context(s.lan1.call(s.outside, s.guest("db").forward or 0))
        s.control("lan1 hears db's ssh", call.greeting.startswith(b"SSH-"))
        with _next_tenant(s) as seen:
            s.lan1.send(_from_lan1(s, side(own, call.port).says("PA", s.mark)))
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def connection_that_the_old_tenant_opened(s: Stage) -> list[str]:
    """A server goes on sending to the old tenant.

    db was connected to a service of lan1's. What that sends to db's outside port may not come to ci.
    """
    with s.lan1.listen("tcp", SERVED), ExitStack() as open_:
        with s.lan1.watch() as own:
            call = open_.enter_context(s.db.call(s.address("lan1"), SERVED))
            s.control("lan1 echoes what db says", call.echoes())
        with _next_tenant(s) as seen:
            s.lan1.send(_from_lan1(s, side(own, SERVED).says("PA", s.mark)))
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def speaking_in_the_old_tenants_place(s: Stage) -> list[str]:
    """The new tenant speaks on in the old one's conversation.

    db was connected to a service of lan1's. ci sends the segment that db would have sent next. lan1's service still
    holds the connection open for whom it knows as db, and may not read it.
    """
    with s.lan1.listen("tcp", SERVED) as heard, ExitStack() as open_:
        with s.db.watch() as own:
            call = open_.enter_context(s.db.call(s.address("lan1"), SERVED))
            s.control("lan1 echoes what db says", call.echoes())
        segment = side(own, call.port).says("PA", s.mark)
        with _next_tenant(s):
            s.ci.send(Ether(src=s.ci.mac, dst=s.gateway_mac("ci")) / segment)
    return [f"lan1's service was told: {said}" for said in heard.having(s.mark)]


@attack("inheritance", tool="scapy", falls=("bridge", "routed"), leaves=True)
def what_the_host_says_to_the_old_tenant(s: Stage) -> list[str]:
    """The host goes on speaking to the old tenant.

    Domain 0 was connected to a service of db's, say a backup. What its kernel still has to say, and says again and
    again since nobody acknowledges it, may not come to ci.
    """
    with s.db.listen("tcp", SERVED), s.dom0.call(s.address("db"), SERVED) as call:
        s.control("db echoes what the host says", call.echoes())
        with _next_tenant(s) as seen:
            s.say("dom0: goes on speaking")
            told = call.echoes(s.mark)
    s.control("the host gets no answer from db", not told)
    return _received(seen, s)


@attack("inheritance", tool="scapy", falls="bridge", leaves=True)
def neighbour_takes_a_vacant_address(s: Stage) -> list[str]:
    """web takes the address of a guest that is gone.

    db has been taken away, nobody has its address yet. web answers ARP for it, and lan1 still sends to db's outside
    port: web may not receive that.
    """
    port, db = _asks(s), s.address("db")
    s.backend.detach(s.lab, s.guest("db"))
    claim = ARP(op=2, hwsrc=s.web.mac, psrc=db, hwdst=s.gateway_mac(), pdst=s.gateway)
    late = IP(src=s.address("lan1"), dst=s.outside) / UDP(sport=ECHO, dport=port) / Raw(s.mark)
    with s.web.watch() as seen:
        s.control("web itself still speaks with lan1", s.web.udp(s.address("lan1"), ECHO))
        for _ in range(2):
            s.web.send(Ether(src=s.web.mac, dst=s.gateway_mac()) / claim, times=3, pace_s=0.01)
            s.lan1.send(_from_lan1(s, late))
            s.web.send(Ether(src=s.web.mac, dst=s.gateway_mac()) / claim, times=3, pace_s=0.01)
    return [f"web received: {f}" for f in seen.having(s.mark)]
