"""The main job, shown by real programs: each claim is a sentence and what was seen.

Claims know the scenario, and nothing of the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from vfr_lab.capture import Capture
from vfr_lab.lab import Lab
from vfr_lab.scenario import Guest

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes")
PROBE_S = 2
_TCP = "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),{t}); print(s.recv(99).decode())"
_UDP = (
    "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout({t});"
    " s.connect((sys.argv[1],int(sys.argv[2]))); s.send(b'x'); print(s.recv(99).decode())"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A claim's outcome."""

    claim: str
    seen: str
    ok: bool


def ssh(lab: Lab, node: str, guest: str, address: str, port: int = 22) -> str:
    """The host name that ssh from `node` lands on, its host key checked to be `guest`'s; or the error."""
    options = (
        "-o",
        f"UserKnownHostsFile={lab.known_hosts}",
        "-o",
        f"HostKeyAlias={guest}",
        "-i",
        str(lab.key),
    )
    done = lab.exec(node, *SSH, *options, "-p", str(port), f"root@{address}", "hostname", check=False)
    return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()}"


def _python(lab: Lab, node: str, script: str, address: str, port: int) -> str:
    code = script.format(t=PROBE_S)
    done = lab.exec(node, "python3", "-c", code, address, str(port), check=False)
    return done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def tcp(lab: Lab, node: str, address: str, port: int) -> str:
    """What a TCP service said first, or the error."""
    return _python(lab, node, _TCP, address, port)


def udp(lab: Lab, node: str, address: str, port: int) -> str:
    """What a UDP service answered, or the error."""
    return _python(lab, node, _UDP, address, port)


def pings(lab: Lab, node: str, address: str) -> bool:
    """Whether one echo request is answered."""
    return lab.exec(node, "ping", "-n", "-c1", f"-W{PROBE_S}", address, check=False).returncode == 0


def _lands(lab: Lab, node: str, guest: Guest, address: str, port: int) -> Seen:
    seen = ssh(lab, node, guest.name, address, port)
    return Seen(f"{node}: ssh -p {port} {address} is {guest.name}", seen, seen == guest.name)


def forwards(lab: Lab) -> Iterator[Seen]:
    """ssh from the LAN, and from domain 0, lands on the right guest."""
    lan_address = lab.scenario.dom0.address
    for guest in lab.scenario.guests:
        if guest.forward:
            yield _lands(lab, "lan1", guest, lan_address, guest.forward)
    for guest in lab.scenario.guests:
        yield _lands(lab, "dom0", guest, guest.address, 22)
    first = lab.scenario.guests[0]
    assert first.forward is not None
    for address in ("127.0.0.1", lan_address):
        yield _lands(lab, "dom0", first, address, first.forward)


def _way_out(lab: Lab, guest: Guest, host: str, address: str) -> Seen:
    with Capture(lab, host) as capture:
        seen = [tcp(lab, guest.name, address, 7), udp(lab, guest.name, address, 7)]
        echo = pings(lab, guest.name, address)
    ours = lab.scenario.dom0.address
    strangers = [line for line in capture.lines(f"ip and not host {ours}") if "IP" in line]
    known = len(capture.lines(f"host {ours}"))
    ok = seen == [ours, ours] and echo and known > 0 and not strangers
    text = f"seen there as {', '.join(sorted(set(seen)))}; ping {'ok' if echo else 'lost'}; {len(strangers)} of {known} packets from elsewhere"
    return Seen(f"{guest.name} reaches {host} by TCP, UDP, ping, and only as {ours}", text, ok)


def ways_out(lab: Lab) -> Iterator[Seen]:
    """Every guest reaches the LAN and the internet, masqueraded."""
    for guest in lab.scenario.guests:
        yield _way_out(lab, guest, "lan1", lab.scenario.lan[0].address)
        yield _way_out(lab, guest, "inet", lab.scenario.inet.address)


def isolation(lab: Lab) -> Iterator[Seen]:
    """One guest neither reaches another nor sees what is said to it."""
    web, db = lab.scenario.guests[:2]
    said = (tcp(lab, web.name, db.address, 22), udp(lab, web.name, db.address, 7))
    silent = all("timed out" in s for s in said) and not pings(lab, web.name, db.address)
    yield Seen(f"{web.name} cannot reach {db.name} by TCP, UDP, ping", "; ".join(said), silent)
    host = tcp(lab, web.name, "169.254.1.0", 22)
    yield Seen(f"{web.name} cannot reach domain 0", host, "timed out" in host)
    lan_address = lab.scenario.dom0.address
    assert web.forward and db.forward
    with Capture(lab, web.name) as capture:
        ssh(lab, "lan1", db.name, lan_address, db.forward)
        own = ssh(lab, "lan1", web.name, lan_address, web.forward)
    theirs = [line for line in capture.lines("ip") if web.address not in line]
    mine = len(capture.lines("tcp port 22"))
    text = f"{len(theirs)} foreign packets; its own ssh: {mine}"
    yield Seen(
        f"{web.name}, promiscuous, sees nothing of lan1's ssh to {db.name}",
        text,
        not theirs and mine > 0 and own == web.name,
    )


def closed(lab: Lab) -> Iterator[Seen]:
    """What nobody published is closed."""
    for port in (2201, 2220, 22, 2208, 16400):
        seen = tcp(lab, "lan1", lab.scenario.dom0.address, port)
        yield Seen(f"lan1: port {port} of domain 0 leads nowhere", seen, "refused" in seen or "timed out" in seen)


GROUPS: tuple[Callable[[Lab], Iterator[Seen]], ...] = (forwards, ways_out, isolation, closed)
PRIVATE = "arp net 169.254.0.0/16 or net 169.254.0.0/16 or net 198.18.0.0/15"


def prove(lab: Lab) -> Iterator[Seen]:
    """Every claim, one after the other, with a capture of the LAN over all of it."""
    with ExitStack() as stack:
        lan = stack.enter_context(Capture(lab, "switch", "br0"))
        uplink = stack.enter_context(Capture(lab, "switch", "dom0"))
        for group in GROUPS:
            yield from group(lab)
        stack.close()
        leaked = lan.lines(PRIVATE) + uplink.lines(PRIVATE)
        total = len(uplink.lines())
    yield Seen(
        "nothing with 169.254 or 198.18 was on the LAN meanwhile",
        f"{len(leaked)} of {total} packets",
        not leaked and total > 100,
    )
