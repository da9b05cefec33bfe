"""`vfr explain`: what it says is what happens, and nothing happens by it.

guests vx-a, vx-b, vx-c --- vx-dom0 --- eth0 192.0.2.1/24 --- vx-lan 192.0.2.11
"""

from __future__ import annotations

import json
import mmap
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from support.fastpath import fastpath_of
from support.host import Host, run

from vfr import _abi
from vfr._abi import Kind, Limit, Verdict
from vfr.errors import UsageError
from vfr.explain import _STAGE_OF
from vfr.frame import Packet, read
from vfr.kernel import bpf
from vfr.kernel.fastpath import Fastpath
from vfr.policy.rules import ICMP, TCP, UDP
from vfr.question import question

RULES = """# line 1
allow any -> lan
allow lan -> any tcp 22
allow dom0 -> any
allow a -> b udp 7
deny a -> b tcp 443
reject a -> b udp 53
allow a -> b proto 47
allow a -> c ether 0x889a
allow c -> b tcp 22
allow a -> c udp 9 limit 1/s
deny 192.0.2.66 -> a
forward tcp 9000 -> b 22 on lo
forward udp 9001 -> b 7
"""
UDP_OUT = """
import socket, sys
address, port, *sources = sys.argv[1:]
for source in sources:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", int(source)))
    s.sendto(b"x", (address, int(port)))
"""
TCP_OUT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.4).close()
except OSError:
    pass
"""
UDP_FOREVER = """
import itertools, socket, sys, time
for port in itertools.count(20000):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", port))
    s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    s.close()
    if port == 20003:
        print("up", flush=True)
    time.sleep(0.001)
"""


@contextmanager
def _a_host(tmp: Path, *options: str) -> Iterator[Host]:
    """Nobody on it says anything by itself."""
    with Host("vx") as one:
        for node in one.guests:
            one.sh(node, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        file = tmp / "x.rules"
        file.write_text(RULES)
        one.vfr("nat", "enable", "--uplink", "eth0", "--rules", str(file), *options)
        for guest in one.guests:
            one.add(guest)
        yield one


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with _a_host(tmp_path_factory.mktemp("explain")) as one:
        yield one


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Host]:
    """A domain has four outside ports."""
    with _a_host(tmp_path, "--ports-per-domain", "4") as one:
        yield one


def _ask(host: Host, words: str) -> dict[str, Any]:
    done = host.vfr("explain", *words.split(), "--json", check=False)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["passes"] else 1), answer
    return answer


def _text(answer: dict[str, Any]) -> str:
    return "\n".join(f"{stage}: {text}" for stage, text in (*answer["stages"], *answer["back"]))


def _python(host: Host, node: str, code: str, *arguments: str) -> None:
    run("ip", "netns", "exec", host.ns(node), sys.executable, "-c", code, *arguments)


@dataclass(frozen=True)
class Case:
    """A question, and what the answer must be; `said` are words of its stages."""

    words: str
    verdict: str | None
    where: str | None = None
    missing: tuple[str, ...] = ()
    passes: bool = False
    said: tuple[str, ...] = ()


CASES = (
    Case(
        "a b udp/7",
        "TO_DOMAIN",
        "x.rules:5",
        passes=True,
        said=("deliver: to b by vif-b, TTL 63", "to a by vif-a, TTL 63"),
    ),
    Case("a b tcp/443", "DROP_POLICY", "x.rules:6", said=("policy: x.rules:6: deny a -> b tcp 443",)),
    Case("a b tcp/22", "DROP_POLICY", missing=("allow a -> b tcp 22",)),
    Case("a b icmp", "DROP_POLICY", missing=("allow a -> b icmp echo",)),
    Case("a b udp/53", "DROP_REJECTED", "x.rules:7", said=("told: by ICMP to 169.254.1.2", "prohibited")),
    Case("a b gre", "TO_DOMAIN", "x.rules:8", passes=True, said=("vif: gre 169.254.1.3 -> 169.254.1.2",)),
    Case("a lan proto/47", "DROP_PROTOCOL", said=("session: ",)),
    Case("a c ether/0x889a", "TO_DOMAIN", "x.rules:9", passes=True, said=("DROP_ETHERTYPE",)),
    Case("c a ether/0x889a", "DROP_ETHERTYPE", missing=("allow c -> a ether 0x889a",)),
    Case("a lan icmp", "TO_LAN", "x.rules:2", passes=True, said=("becomes 192.0.2.1 id ", "out of eth0, TTL 63")),
    Case(
        "a internet icmp/timestamp", "TO_LAN", "x.rules:2", passes=True, said=("icmp timestamp reply 203.0.113.1 -> ",)
    ),
    Case(
        "a 198.51.100.9 tcp/80", "TO_LAN", "x.rules:2", passes=True, said=("-> 198.51.100.9:80", "becomes 192.0.2.1:")
    ),
    Case(
        "lan a tcp/22",
        "TO_DOMAIN",
        "x.rules:3",
        passes=True,
        said=("port 2202 is a forward to a's 22", "192.0.2.1:2202 becomes 169.254.1.2:22"),
    ),
    Case("lan 192.0.2.1 tcp/2202", "TO_DOMAIN", "x.rules:3", passes=True),
    Case("lan forward:2203 tcp", "TO_DOMAIN", "x.rules:3", passes=True, said=("to b by vif-b",)),
    Case("192.0.2.66 a tcp/22", "DROP_POLICY", "x.rules:12"),
    Case(
        "lan a tcp/80", None, missing=("forward tcp 8080 -> a 80", "allow lan -> a tcp 80"), said=("no outside port",)
    ),
    Case("lan a icmp", None),
    Case("lan dom0 tcp/80", "NOT_OURS", passes=True, said=("host: ",)),
    Case("lan internet tcp/80", None, passes=True),
    Case(
        "c forward:2203 tcp",
        "TO_DOMAIN",
        "x.rules:3",
        passes=True,
        said=("uplink: tcp 192.0.2.1:", "round by eth0", "to b by vif-b"),
    ),
    Case("a forward:2203 tcp", "DROP_POLICY", missing=("allow a -> b tcp 22",)),
    Case("a 192.0.2.1 tcp/80", "DROP_HAIRPIN"),
    Case("a dom0 tcp/22", "DROP_POLICY", missing=("allow a -> dom0 tcp 22",)),
    Case("dom0 a tcp/22", "TO_DOMAIN", "x.rules:4", passes=True, said=("to dom0 by vfr0, TTL 63",)),
    Case("dom0 forward:2202 tcp", "TO_DOMAIN", "x.rules:4", passes=True, said=("host: nftables",)),
    Case("dom0 forward:9000 tcp", "TO_DOMAIN", "x.rules:4", passes=True, said=("127.0.0.1:9000 to b's 22",)),
    Case("lan forward:9000 tcp", None),
    Case("lan forward:9001 udp", "DROP_POLICY", missing=("allow lan -> b udp 7",)),
    Case("dom0 lan tcp/22", None, passes=True),
    Case("192.0.2.1 lan tcp/22", None, passes=True),
    Case("a a tcp/22", None, passes=True),
    Case("a 169.254.1.77 icmp", "DROP_NO_DOMAIN"),
    Case("dom0 169.254.1.77 icmp", "DROP_ARP_UNANSWERED", said=("who has 169.254.1.77? asked by dom0 by vif0",)),
    Case("a 224.0.0.1 udp/9", "DROP_MULTICAST"),
    Case("169.254.1.77 a tcp/22", "DROP_MARTIAN"),
    Case("internet 192.0.2.1 udp/16400", "DROP_UNSOLICITED"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.words)
def test_the_answer(host: Host, case: Case) -> None:
    answer = _ask(host, case.words)
    found = (answer["verdict"], answer["where"], tuple(answer["missing"]), answer["passes"])
    assert found == (case.verdict, case.where, case.missing, case.passes), answer
    assert (answer["rule"] is None) == (case.where is None)
    for words in case.said:
        assert words in _text(answer), answer


def test_the_human_form(host: Host) -> None:
    done = host.vfr("explain", "a", "b", "tcp/443", check=False)
    assert done.returncode == 1
    head, *lines = done.stdout.splitlines()
    assert head == "a -> b tcp 443: does not pass"
    assert [line.split()[0] for line in lines] == ["vif", "guard", "session", "policy", "verdict", "rule"]
    assert len({len(line) - len(line[2:].split(None, 1)[1]) for line in lines}) == 1, "the columns are straight"
    assert lines[-1].endswith("x.rules:6: deny a -> b tcp 443")


REFUSALS = [
    ("a any tcp/1", 2, ["'any'", "name one domain"]),
    ("a lan tcp", 2, ["tcp/22"]),
    ("nobody lan icmp", 1, ["'nobody'", "dom0, a, b, c"]),
    ("lan forward:99 tcp", 1, ["'99'", "tcp 2202"]),
    ("lan forward:2202 udp", 1, ["udp", "tcp 2202"]),
    ("lan forward:2202 tcp/80", 2, ["forward:2202", "tcp alone"]),
    ("2001:db8::1 a icmp", 2, ["'2001:db8::1'", "IPv6"]),
    ("a lan nonsense", 2, ["'nonsense'", "udp/53"]),
]


def test_refusals(host: Host) -> None:
    for words, status, names in REFUSALS:
        done = host.vfr("explain", *words.split(), check=False)
        assert (done.returncode, done.stdout) == (status, ""), (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr and all(name in done.stderr for name in names), done.stderr


def test_the_missing_rule_is_the_one(host: Host, tmp_path: Path) -> None:
    """Pasted as it is said, it lets the packet pass, and nothing else had to be known."""
    (line,) = _ask(host, "c a tcp/8443")["missing"]
    file = tmp_path / "x.rules"
    file.write_text(f"{RULES}{line}\n")
    host.vfr("apply", str(file))
    try:
        answer = _ask(host, "c a tcp/8443")
        assert answer["passes"] and answer["where"] == "x.rules:15" and answer["rule"] == line
    finally:
        file.write_text(RULES)
        host.vfr("apply", str(file))


def test_what_is_under_way_is_seen(host: Host) -> None:
    assert "under way" not in _text(_ask(host, "a 192.0.2.11 udp/71"))
    _python(host, "a", UDP_OUT, "192.0.2.11", "71", "5001", "5002")
    assert "2 of the same two about the same are under way" in _text(_ask(host, "a 192.0.2.11 udp/71"))


def test_a_limit_that_is_used_up(host: Host) -> None:
    assert _ask(host, "a c udp/9")["passes"]
    argv = ["ip", "netns", "exec", host.ns("a"), sys.executable, "-c", UDP_FOREVER, "169.254.1.4", "9"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None and flood.stdout.readline() == "up\n"
        try:  # once a second one more may begin, and then the answer is yes
            answers = (_ask(host, "a c udp/9") for _ in range(5))
            answer = next(one for one in answers if not one["passes"])
        finally:
            flood.kill()
    assert (answer["verdict"], answer["where"], answer["passes"]) == ("DROP_TOO_FAST", "x.rules:11", False)
    assert "limit: the limit of x.rules:11 is used up" in _text(answer)


# Nothing comes of it


def _queue_head(queue: bpf.Map) -> bytes | None:
    """A queue's oldest value, which stays there."""
    elem = bpf._Elem(map_fd=queue.fd, value=bpf.ctypes.addressof(queue._value))
    result = bpf._call(bpf.MAP_LOOKUP, elem)
    return queue._value.raw if result >= 0 else None


def _inner_state(fastpath: Fastpath, name: str, place: int) -> object:
    inner = fastpath.inner(name, place)
    if inner is None:
        return None
    try:
        return bpf.object_id(inner.fd), _queue_head(inner) if name == "closing" else sorted(inner.rows())
    finally:
        inner.close()


def _state(fastpath: Fastpath) -> dict[str, object]:
    """Every byte of every map, but those of a queue behind its head."""
    slots = range(4)
    places = dict.fromkeys(("sessions", "inbound", "mappings", "capture_rings"), slots) | {
        "fragments": (*slots, int(Limit.ROW_LAN)),
        "closing": range(4 * Kind.KINDS),
        "policy": (0,),
    }
    found: dict[str, object] = {}
    for name, spec in _abi.MAPS.items():
        one = fastpath.map(name)
        if name == "events":
            with mmap.mmap(one.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE) as producer:
                found[name] = struct.unpack_from("<Q", producer)
        elif spec.inner:
            found[name] = [_inner_state(fastpath, name, place) for place in places[name]]
        elif name in ("counters", "offload"):
            found[name] = [one.get(place.to_bytes(4, "little")) for place in range(spec.max_entries)]
        else:
            found[name] = one.rows()
    return found | {name: fastpath.map(name).dump() for name in ("digest", "complete", "witnessed")}


def _quiet(host: Host, fastpath: Fastpath) -> dict[str, object]:
    """The state, once nobody says anything any more: kernels would ask each other by ARP whether they are still
    there, for a while after they have spoken."""
    for node in ("dom0", "lan", *host.guests):
        host.sh(node, "ip neigh flush all", check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        state = _state(fastpath)
        time.sleep(0.5)
        if state == _state(fastpath):
            return state
    raise AssertionError("somebody does not stop talking")


QUESTIONS = (
    "a lan tcp/80",
    "a b udp/7",
    "a b udp/53",
    "lan a tcp/22",
    "c forward:2203 tcp",
    "a c ether/0x889a",
    "a c udp/9",
)


def test_nothing_comes_of_asking(host: Host) -> None:
    _python(host, "lan", TCP_OUT, "192.0.2.1", "2202")  # refused by the guest, so its conversation is in a queue
    _python(host, "a", UDP_OUT, "192.0.2.11", "73", "5003")
    picture = host.picture()
    with fastpath_of(host.ns("dom0")) as fastpath:
        before = _quiet(host, fastpath)
        assert any(isinstance(head, tuple) and head[1] for head in before["closing"])  # type: ignore[attr-defined]
        for words in QUESTIONS:
            _ask(host, words)
        after = _state(fastpath)
    assert [name for name in before if before[name] != after[name]] == []
    assert host.picture() == picture


# What it says is what happens

DATAPATH = (
    ("a", "a b udp/7", "UDP", "169.254.1.3 7 6001"),
    ("a", "a b udp/53", "UDP", "169.254.1.3 53 6002"),
    ("a", "a b udp/54", "UDP", "169.254.1.3 54 6003"),
    ("a", "a 192.0.2.11 udp/9", "UDP", "192.0.2.11 9 6004"),
    ("a", "a 169.254.1.77 udp/9", "UDP", "169.254.1.77 9 6005"),
    ("a", "a 192.0.2.1 udp/9", "UDP", "192.0.2.1 9 6006"),
    ("lan", "lan 192.0.2.1 tcp/2202", "TCP", "192.0.2.1 2202"),
    ("lan", "lan 192.0.2.1 udp/16390", "UDP", "192.0.2.1 16390 6007"),
    ("dom0", "dom0 a tcp/22", "TCP", "169.254.1.2 22"),
    ("dom0", "dom0 169.254.1.77 udp/9", "UDP", "169.254.1.77 9 6008"),
)


def _counts(host: Host, node: str) -> dict[str, int]:
    with fastpath_of(host.ns("dom0")) as fastpath:
        row = int(Limit.ROW_LAN) if node == "lan" else {"dom0": 0, "a": 1}[node]
        return {name: packets for name, (packets, _) in fastpath.counters([row])[row].items()}


@pytest.mark.parametrize(("node", "words", "kind", "arguments"), DATAPATH, ids=lambda v: v if " " in v else "")
def test_it_is_so(host: Host, node: str, words: str, kind: str, arguments: str) -> None:
    answer = _ask(host, words)
    before = _counts(host, node)
    _python(host, node, {"UDP": UDP_OUT, "TCP": TCP_OUT}[kind], *arguments.split())
    after = _counts(host, node)
    grown = {name for name in after if after[name] > before.get(name, 0)} - {
        "ANSWERED",
        "received",
        "errors",
        "NOT_OURS",
    }
    assert grown == {answer["verdict"]}, (grown, answer)


def test_who_a_guest_is_it_is_told(host: Host) -> None:
    """DHCP is answered, by whatever name it is asked about; what is not answered is a packet like any."""
    for words in ("a dom0 dhcp", "a 255.255.255.255 udp/67"):
        answer = _ask(host, words)
        assert (answer["verdict"], answer["passes"], answer["rule"]) == ("ANSWERED", True, None), words
        assert "answer: the router offers it 169.254.1.2; beside that it is told /32, 3600 s, dns none" in _text(answer)
    host.vfr("dhcp", "a", "--off")
    try:
        assert _ask(host, "a 255.255.255.255 udp/67")["verdict"] == "DROP_MULTICAST"
    finally:
        host.vfr("dhcp", "a", "--inherit")


# Hosts on which not all is well


def test_full_tables(small: Host) -> None:
    _python(small, "a", UDP_OUT, "192.0.2.11", "71", *map(str, range(5001, 5005)))
    answer = _ask(small, "a lan udp/71")
    assert (answer["verdict"], answer["where"], answer["passes"]) == ("DROP_PORTS_FULL", "x.rules:2", False)
    assert "told: by ICMP to 169.254.1.2: destination unreachable: host unreachable" in _text(answer)
    assert _ask(small, "a lan tcp/71")["passes"], "ports of another protocol"
    small.vfr("domain", "limit", "a", "--sessions", "4")
    assert _ask(small, "a b udp/7")["verdict"] == "DROP_SESSIONS_FULL"
    assert _ask(small, "c forward:2203 tcp")["passes"], "another's quota"


def test_an_interface_is_gone(small: Host) -> None:
    small.sh("dom0", "ip link set vif-b down")
    answer = _ask(small, "a b udp/7")
    assert (answer["verdict"], answer["passes"]) == ("TO_DOMAIN", False) and "vif-b is down" in answer["meaning"]
    small.sh("dom0", "ip link del vif-b")
    assert "vif-b is gone" in _ask(small, "a b udp/7")["meaning"]
    answer = _ask(small, "b lan icmp")
    assert (answer["verdict"], answer["passes"]) == (None, False) and "vif-b is gone" in answer["meaning"]
    (Path("/run/vfr/netns") / small.ns("dom0") / "bpf/links/vif-a").unlink()
    assert "the fastpath is not attached to vif-a" in _ask(small, "a lan icmp")["meaning"]
    small.sh("dom0", "ip link set eth0 down")
    answer = _ask(small, "c lan icmp")
    assert (answer["verdict"], answer["passes"]) == ("TO_LAN", False) and "eth0 is down" in answer["meaning"]


def test_nat_is_off(small: Host) -> None:
    small.vfr("nat", "disable")
    answer = _ask(small, "a lan icmp")
    assert answer["verdict"] == "DROP_NO_UPLINK" and "NAT is off; run `vfr nat enable`" in _text(answer)
    answer = _ask(small, "lan a tcp/22")
    assert (answer["verdict"], answer["passes"]) == (None, False) and "NAT is off" in answer["meaning"]
    assert _ask(small, "a b udp/7")["missing"] == ["allow a -> b udp 7"], "no rules at all"
    answer = _ask(small, "dom0 a icmp")
    assert (answer["verdict"], answer["missing"]) == ("DROP_ARP_UNANSWERED", ["allow dom0 -> a icmp echo"])
    before = _counts(small, "dom0")
    assert not small.pings("dom0", "169.254.1.2")
    assert {n for n, c in _counts(small, "dom0").items() if c > before.get(n, 0)} == {"DROP_ARP_UNANSWERED"}
    small.vfr("domain", "remove", "a", "b", "c")
    done = small.vfr("explain", "a", "lan", "icmp", check=False)
    assert done.returncode == 1 and "there is no router yet" in done.stderr


# Without a host

PACKETS = [
    Packet("02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff", IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"), *rest)
    for rest in ((TCP, 4000, 22), (UDP, 4000, 53), (ICMP, 4000, 0), (ICMP, 4000, 13), (47, 0, 0))
]


@pytest.mark.parametrize("packet", PACKETS, ids=str)
def test_frames_are_in_order(packet: Packet) -> None:
    """Checksums as scapy computes them; what is read is what was written, there and back."""
    for one in (packet, packet.answered()):
        raw = one.frame()
        parsed = Ether(raw)
        for layer in ("IP", "TCP", "UDP", "ICMP"):
            if parsed.haslayer(layer):
                del parsed[layer].chksum
        assert bytes(parsed) == raw and parsed[IP].len == len(raw) - 14
        seen = read(raw)
        assert (seen.source, seen.target, seen.protocol) == (one.source, one.target, one.protocol)
        assert seen.frame() == raw


WORDS = [
    ("tcp/22", (6, 22, False)),
    ("udp", (17, None, False)),
    ("dhcp", (17, 67, False)),
    ("icmp", (1, 0, False)),
    ("icmp/13", (1, 13, False)),
    ("icmp/echo-request", (1, 0, False)),
    ("gre", (47, 0, False)),
    ("proto/esp", (50, 0, False)),
    ("ether/0x889A", (0, 0x889A, True)),
]
NO_WORDS = [
    "tcp/0",
    "tcp/22-23",
    "udp/x",
    "icmp/redirect",
    "icmp/5",
    "proto/6",
    "proto/256",
    "proto",
    "gre/1",
    "dhcp/68",
    "ether",
    "ether/0x0800",
    "ether/10",
    "",
]


def test_questions() -> None:
    for text, wanted in WORDS:
        asked = question("a", "b", text)
        assert (asked.protocol, asked.port, asked.ether) == wanted, text
    for text in NO_WORDS:
        with pytest.raises(UsageError, match=f"^{text!r}: "):
            question("a", "b", text)


def test_every_verdict_has_a_stage() -> None:
    """What is not the guard's is said; a new verdict that is about rules, quotas or ports must be thought of."""
    of_guard = {v for v in Verdict if v not in _STAGE_OF}
    first, last = Verdict.DROP_NOT_READY, Verdict.DROP_ICMP_TYPE
    within = {v for v in Verdict if first <= v <= last} | {
        Verdict.CONTINUE,
        Verdict.VERDICTS,
        Verdict.ANSWERED,
        Verdict.TO_SORTER,
    }
    assert of_guard <= within, of_guard - within
