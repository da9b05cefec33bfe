"""What size costs: numbers of rules, sessions and domains, attaching in bursts, and memory.

Of VFR, and of `routed` where it has the like: rules. What is measured is traffic from web to db: frames of one
conversation that is there (established), and frames that each begin one (new). VFR's nanoseconds are the kernel's
BPF statistics of the program at web's VIF; packets a second are counted at db with the statistics off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path
from statistics import median

from vfr._abi import Kind
from vfr.kernel import mounts
from vfr.kernel.fastpath import Fastpath
from vfr_lab.backends import backend
from vfr_lab.backends.vfr import VfrBackend
from vfr_lab.bench import cost, stage
from vfr_lab.bench.load import FLOW_PORT, FLOW_PORTS, Drain, frame, interface_of, ring
from vfr_lab.lab import Lab, LabError, run

REPEATS, SECONDS = 5, 0.3
RULES = (10, 1000, 100_000)
SESSIONS = (1, 100_000, 1_000_000)
MOST_SESSIONS = 1 << 20  # what `vfr domain limit` takes at most
NEW_FRAMES = 20_000
BURST = 100
SLOTS = 4095
FIRST_MADE_UP = 1_000_000  # interface indexes that no interface has


@dataclass(frozen=True, slots=True)
class Point:
    """One figure at one size, and from what to what it scattered, if it was had more than once. `what` is the table
    it belongs to."""

    what: str
    size: int
    backend: str
    measure: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


class Traffic:
    """Frames from web to db."""

    def __init__(self, lab: Lab, by: str, what: str) -> None:
        self._lab, self._by, self._what = lab, by, what
        self._address = lab.backend.address(lab, "web", "db")
        self._device, self._frame = frame(lab, "web", self._address)
        self._next = 0

    def send(self, frames: int, flows: int = 1, first: int = 0) -> float:
        """Packets a second that db got, of about `frames`, or of SECONDS' worth if that is 0."""
        seconds = 60 if frames else SECONDS
        with Drain(self._lab, "db", interface_of(self._lab, "db", self._address)) as drain:
            seen = ring(self._lab, "web", self._device, self._frame, seconds, frames, flows, first)
            return drain.arrived() / float(seen["seconds"])

    def answer(self) -> None:
        """db says something in the same conversation: connection tracking calls it established from then on."""
        web = self._lab.backend.address(self._lab, "db", "web")
        device, raw = frame(self._lab, "db", web)
        with Drain(self._lab, "web", interface_of(self._lab, "web", web)) as drain:
            ring(self._lab, "db", device, raw, 60, 1)
            assert drain.arrived()

    def new(self, count: int = NEW_FRAMES) -> float:
        """The same, of frames that each begin a conversation that there has not been."""
        self._next += count
        return self.send(count, count, self._next - count)

    def points(self, size: int, measure: str, send: Callable[[], float]) -> Iterator[Point]:
        """Packets a second, and for VFR nanoseconds a packet, medians of REPEATS."""
        yield self._point(size, f"{measure}, arrived", [send() for _ in range(REPEATS)], "packets/s")
        if self._by == "vfr":
            yield self._point(size, f"{measure}, program", [self._ns(send) for _ in range(REPEATS)], "ns")

    def _point(self, size: int, measure: str, seen: list[float], unit: str) -> Point:
        return Point(self._what, size, self._by, measure, median(seen), unit, min(seen), max(seen))

    def _ns(self, send: Callable[[], float]) -> float:
        with cost.statistics():
            before = cost.spent(cost.pins(self._lab))
            send()
            found = cost.between("", before, cost.spent(cost.pins(self._lab)))
        return next(c.ns for c in found if c.program == "vif_ingress")


def _vfr(lab: Lab, *arguments: str) -> str:
    by = lab.backend
    assert isinstance(by, VfrBackend)
    return lab.exec("dom0", by.command, *arguments, timeout=600).stdout


def _widen(lab: Lab) -> None:
    """Limits that many conversations need."""
    _vfr(lab, "domain", "limit", "web", "--sessions", str(MOST_SESSIONS), "--new-per-s", "0")


# Rules


def rules_file(count: int) -> str:
    """So many rules of VFR's. What is allowed is a port each, with a gap to the next, so that none melts into another;
    but for those that make the bench's lab work, which also allow the flows from web to db."""
    first = [*stage.RULES.splitlines(), f"allow web -> db udp {FLOW_PORT}-{FLOW_PORT + FLOW_PORTS - 1}"]
    pairs = [("web", "db"), ("db", "web"), ("web", "ci"), ("ci", "web")]
    ports = [p for p in range(1, 65536, 2) if not FLOW_PORT - 1 <= p <= FLOW_PORT + FLOW_PORTS]
    more = (f"allow {frm} -> {to} {protocol} {p}" for frm, to in pairs for protocol in ("udp", "tcp") for p in ports)
    return "\n".join([*first, *islice(more, count - len(first))]) + "\n"


def vfr_rules(lab: Lab, vfr: VfrBackend) -> Iterator[Point]:
    """Rules one beside the other, in a file that `vfr apply` puts in force."""
    stage.wire(lab, vfr)
    _widen(lab)
    for count in RULES:
        began = time.monotonic()
        stage.apply(lab, vfr, rules_file(count))
        yield Point("rules", count, "vfr", "to put in force", time.monotonic() - began, "s")
        traffic = Traffic(lab, "vfr", "rules")
        traffic.send(1)
        traffic.answer()
        yield from traffic.points(count, "established", partial(traffic.send, 0))
        yield from traffic.points(count, "new", traffic.new)
        _forget(lab)


def routed_rules(lab: Lab) -> Iterator[Point]:
    """One nftables rule for each, in the order they were written, as people do who have no sets."""
    stage.wire(lab, backend("routed"))
    web, db = 'iifname "vif-web"', 'oifname "vif-db"'
    done = 0
    for count in RULES:
        path = lab.files / "bench.nft"
        lines = (
            f"insert rule inet routed forward {web} {db} udp dport {1 + n % 19000} drop" for n in range(done, count)
        )
        first = f"insert rule inet routed forward {web} {db} ct state established accept"
        path.write_text("\n".join([*lines, first]) + "\n")
        began = time.monotonic()
        lab.exec("dom0", "nft", "-f", str(path), timeout=600)
        yield Point("rules", count, "routed", "to put in force", time.monotonic() - began, "s")
        done = count
        traffic = Traffic(lab, "routed", "rules")
        traffic.send(1)
        traffic.answer()
        yield from traffic.points(count, "established", partial(traffic.send, 0))
        yield from traffic.points(count, "new", partial(traffic.new, 256))
        lab.exec("dom0", "conntrack", "-F")


# Sessions


def _forget(lab: Lab) -> None:
    """web's conversations are gone: its tables are made anew, by way of removing and adding it."""
    web = lab.scenario.guests[0]
    lab.backend.detach(lab, web)
    lab.backend.attach(lab, web)
    _widen(lab)


def sessions(lab: Lab, vfr: VfrBackend) -> Iterator[Point]:
    """Conversations made by frames, as any are. One of them in use, and all of them in turn."""
    stage.wire(lab, vfr)
    _widen(lab)
    traffic = Traffic(lab, "vfr", "sessions")
    for count in SESSIONS:
        if count > 1:
            traffic.send(count, count)
        yield Point("sessions", count, "vfr", "there are", session_count(lab), "sessions")
        yield from traffic.points(count, "one in use", partial(traffic.send, 0))
        if count > 1:
            yield from traffic.points(count, "all in turn", partial(traffic.send, count, count))


@contextmanager
def _fastpath(lab: Lab) -> Iterator[Fastpath]:
    found = Fastpath.open(mounts.seen_from_here(cost.pins(lab)))
    assert found is not None, "VFR wires this lab"
    try:
        yield found
    finally:
        found.close()


def session_count(lab: Lab) -> int:
    """How many rows web's map has."""
    with _fastpath(lab) as fastpath:
        slot = _slot(fastpath, "web", lab)
        inner = fastpath.inner("sessions", slot)
        assert inner is not None
        inner.entries = MOST_SESSIONS  # of which it takes the template's number to be the most
        try:
            return len(inner.keys())
        finally:
            inner.close()


def _slot(fastpath: Fastpath, guest: str, lab: Lab) -> int:
    address = next(g.address for g in lab.scenario.guests if g.name == guest)
    return next(slot for slot, row in fastpath.domains().items() if str(row.address) == address)


# Domains: in bursts, in numbers, and what they weigh

_ADDS = """
import json, sys
from vfr import Router
from vfr.policy.language import DomainLine
names = sys.argv[1:]
with Router() as router:
    added = router.add_domains(DomainLine(name, "netns", name) for name in names)
print(json.dumps([o.seconds for o in added]))
"""
_REMOVES = """
import json, sys
from vfr import Router
with Router() as router:
    removed = router.remove_domains(sys.argv[1:])
print(json.dumps([o.seconds for o in removed]))
"""


def domains(lab: Lab, vfr: VfrBackend) -> Iterator[Point]:
    """Two bursts of a hundred domains, their memory, and traffic beside 3, 203 and 4095 domains.

    The last of these are rows in the maps (who is at which interface and address), with no interface to them.
    """
    stage.wire(lab, vfr)
    traffic = Traffic(lab, "vfr", "domains")
    here = len(lab.scenario.guests)
    established = partial(traffic.send, 0)
    yield from traffic.points(here, "established", established)
    with _namespaces(lab) as names:
        first, second = names[:BURST], names[BURST:]
        yield from _weight_of_pairs(lab, first)
        before = _memory()
        yield from _burst_by_python(lab, "add_domains", _ADDS, first)
        yield from _weight(lab, before, _memory())
        yield from _burst_by_commands(lab, second)
        yield from traffic.points(here + 2 * BURST, "established", established)
        with _made_up_rows(lab):
            yield from traffic.points(SLOTS, "established", established)
        yield from _burst_by_python(lab, "remove_domains", _REMOVES, first)
        _vfr(lab, "domain", "remove", *second)


@contextmanager
def _namespaces(lab: Lab) -> Iterator[list[str]]:
    """Namespaces for two bursts, away after the block."""
    names = [f"{lab.prefix}n{number}" for number in range(2 * BURST)]
    try:
        for name in names:
            run(["ip", "netns", "add", name])
        yield names
    finally:
        for name in names:
            run(["ip", "netns", "del", name], check=False)


def _shown(measure: str, seconds: list[float], total: float) -> Iterator[Point]:
    taken = sorted(s * 1e3 for s in seconds)
    for name, value in (("p50", taken[len(taken) // 2]), ("p99", taken[len(taken) * 99 // 100]), ("all", total * 1e3)):
        yield Point("attach", len(taken), "vfr", f"{measure}, {name}", value, "ms")


def _burst_by_python(lab: Lab, measure: str, program: str, names: list[str]) -> Iterator[Point]:
    """By one process and one call; a VIF's time is its share of its part's."""
    began = time.monotonic()
    taken = json.loads(lab.exec("dom0", sys.executable, "-c", program, *names, timeout=300).stdout)
    yield from _shown(measure, taken, time.monotonic() - began)


def _burst_by_commands(lab: Lab, names: list[str]) -> Iterator[Point]:
    """All at once, a command each; a command's time includes its wait for those before it."""
    assert isinstance(lab.backend, VfrBackend)
    add = [lab.backend.command, "domain", "add"]
    began, taken = time.monotonic(), []
    running = [
        subprocess.Popen(lab.argv("dom0", [*add, n, "--netns", n]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for n in names
    ]
    waiting = dict(enumerate(running))
    while waiting:
        for number, process in list(waiting.items()):
            if process.poll() is not None:
                taken.append(time.monotonic() - began)
                del waiting[number]
        time.sleep(0.002)
    failed = [p.communicate()[1] for p in running if p.returncode]
    if failed:
        raise LabError(f"{len(failed)} of {len(running)} commands failed: {failed[0].decode().strip()}")
    yield from _shown("a command each, all at once", taken, time.monotonic() - began)


def _memory() -> dict[str, int]:
    """The kernel's own memory by kind, in bytes."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in rows}


def _weight(lab: Lab, before: dict[str, int], after: dict[str, int]) -> Iterator[Point]:
    """By its maps, as their memlock says, and by what the kernel has more of after a burst than before it.

    The latter is all that came with a hundred domains: veths, namespaces' sysctls, queues; and what else the
    machine did meanwhile.
    """
    with _fastpath(lab) as fastpath:
        slot = max(fastpath.domains())
        total = 0
        tables = [(name, slot) for name in ("sessions", "inbound", "mappings", "fragments")]
        tables += [("closing", slot * Kind.KINDS + kind) for kind in range(Kind.KINDS)]
        for name, place in tables:
            inner = fastpath.inner(name, place)
            assert inner is not None
            total += _memlock(inner.fd)
            inner.close()
    yield Point("memory", 1, "vfr", "its tables, by memlock", total / 1024, "kB")
    for kind in ("Slab", "Percpu"):
        grown = (after[kind] - before[kind]) / BURST / 1024
        yield Point("memory", BURST, "vfr", f"{kind} a domain, veth and all", grown, "kB")


def _weight_of_pairs(lab: Lab, names: list[str]) -> Iterator[Point]:
    """What as many veth pairs weigh into the same namespaces, with nothing of VFR's about them."""
    before = _memory()
    for number, name in enumerate(names):
        ends = ["type", "veth", "peer", "name", "bare", "netns", name]
        lab.exec("dom0", "ip", "link", "add", f"bare{number}", "numrxqueues", "1", "numtxqueues", "1", *ends)
    after = _memory()
    for number in range(len(names)):
        lab.exec("dom0", "ip", "link", "del", f"bare{number}")
    grown = (after["Slab"] - before["Slab"]) / len(names) / 1024
    yield Point("memory", len(names), "vfr", "Slab a bare veth pair", grown, "kB")


def _memlock(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


@contextmanager
def _made_up_rows(lab: Lab) -> Iterator[None]:
    """All slots that nobody has are given to somebody, who has an address and an interface's number, and no interface."""
    with _fastpath(lab) as fastpath:
        there = fastpath.domains()
        pattern = there[_slot(fastpath, "db", lab)]
        free = [slot for slot in range(1, SLOTS + 1) if slot not in there]
        try:
            for slot in free:
                made_up = IPv4Address("203.0.113.0") + slot
                row = replace(pattern, generation=FIRST_MADE_UP + slot, address=made_up, ifindex=FIRST_MADE_UP + slot)
                fastpath.set_domain(slot, row)
                fastpath.set_address(made_up, slot)
                fastpath.set_vif(FIRST_MADE_UP + slot, slot)
            yield
        finally:
            for slot in free:
                fastpath.clear_domain(slot)
                fastpath.clear_address(IPv4Address("203.0.113.0") + slot)
                fastpath.clear_vif(FIRST_MADE_UP + slot)


def everything(lab: Lab, say: Callable[[str], None], with_routed: bool) -> list[Point]:
    """All points, in the order of their tables."""
    vfr = VfrBackend()
    points: list[Point] = []
    parts: list[tuple[str, Callable[[], Iterator[Point]]]] = [
        ("rules", partial(vfr_rules, lab, vfr)),
        ("sessions", partial(sessions, lab, vfr)),
        ("domains, bursts, memory", partial(domains, lab, vfr)),
    ]
    if with_routed:
        parts.insert(1, ("rules of routed", partial(routed_rules, lab)))
    for name, part in parts:
        say(f"scale: {name}")
        points += part()
    return points
