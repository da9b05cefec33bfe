"""What is measured: a table, and how each kind of workload is run once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vfr_lab.bench.figures import Sample
from vfr_lab.bench.load import Drain, LoadError, between, frame, interface_of, ring
from vfr_lab.lab import Lab, LabError

Kind = Literal["stream", "rr", "pps", "udp", "new"]
PORT, SSH = 9000, 22
# What is asked of the generators alone, with no backend: over one guest's own loopback, and into a device that
# drops. Named as if it were a backend.
LIMIT = "generator"
UNITS: dict[Kind, str] = {
    "stream": "Gb/s",
    "rr": "µs, p50",
    "pps": "packets/s",
    "udp": "datagrams/s",
    "new": "connections/s",
}
CPU_UNITS: dict[Kind, str] = {
    "stream": "MB",
    "rr": "round trip",
    "pps": "packet",
    "udp": "datagram",
    "new": "connection",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """`client` opens, and `server` answers. `down` has a stream's bytes go to the client. New connections end by
    reset, so that neither end remembers them, or with `fin` by FIN, the server first. `goal` is a ratio to direct
    that is to be reached, as people say it."""

    name: str
    sentence: str
    kind: Kind
    client: str
    server: str
    streams: int = 1
    down: bool = False
    goal: str = ""
    fin: bool = False

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    @property
    def less_is_more(self) -> bool:
        return self.kind == "rr"


def _streams(prefix: str, path: str, client: str, server: str, goal: str = "") -> list[Workload]:
    return [
        Workload(
            f"{prefix}-{'down' if down else 'up'}-{count}",
            f"{path}, TCP, {count} stream{'s' if count > 1 else ''} {'back' if down else 'there'}",
            "stream",
            client,
            server,
            count,
            down,
            goal if count == 1 and not down else "",
        )
        for count in (1, 4)
        for down in (False, True)
    ]


GUESTS, NAT, FORWARD = "domain to domain", "domain to LAN by NAT", "LAN to domain by a forward"
WORKLOADS: tuple[Workload, ...] = (
    *_streams("guests", GUESTS, "web", "db", "≥ 1.00"),
    Workload("guests-rr", f"{GUESTS}, TCP round trip", "rr", "web", "db", goal="≤ 0.95"),
    Workload("guests-pps", f"{GUESTS}, UDP in 64-byte frames", "pps", "web", "db", goal="≥ 0.95"),
    *_streams("nat", NAT, "web", "lan1", "≥ 1.00"),
    Workload("nat-rr", f"{NAT}, TCP round trip", "rr", "web", "lan1"),
    Workload("nat-pps", f"{NAT}, UDP in 64-byte frames", "pps", "web", "lan1", goal="≥ 0.90, ≥ 2 × routed"),
    Workload("nat-udp", f"{NAT}, UDP by sockets", "udp", "web", "lan1"),
    Workload("nat-new", f"{NAT}, new TCP connections", "new", "web", "lan1", goal="≥ 0.97"),
    Workload("nat-new-fin", f"{NAT}, new TCP connections, in TIME_WAIT at the server", "new", "web", "lan1", fin=True),
    *(w for w in _streams("forward", FORWARD, "lan1", "web") if w.streams == 1),
    Workload("forward-rr", f"{FORWARD}, TCP round trip", "rr", "lan1", "web"),
    Workload("forward-new", f"{FORWARD}, new TCP connections", "new", "lan1", "web"),
)


def named(only: list[str]) -> list[Workload]:
    """The workloads with one of these texts in their name; all, if there are no texts. LookupError if there is none."""
    chosen = [w for w in WORKLOADS if not only or any(text in w.name for text in only)]
    if not chosen:
        raise LookupError(
            f"no workload has {' or '.join(only)} in its name; there are: {', '.join(w.name for w in WORKLOADS)}"
        )
    return chosen


def measure(lab: Lab, backend: str, workload: Workload, round_: int, seconds: float) -> Sample:
    """One sample. A backend by which it cannot be had gives one without a value, and with the reason."""
    try:
        m = _RUN[workload.kind](lab, backend, workload, seconds)
    except LoadError as error:
        return Sample(round_, backend, workload.name, None, reason=str(error))
    return Sample(
        round_, backend, workload.name, m.value, m.busy_s / m.units * 1e6 if m.units else None, m.more, m.reason
    )


class _Measured(NamedTuple):
    """The value, what all CPUs did meanwhile in seconds, for how many units, and what else is worth keeping."""

    value: float
    busy_s: float
    units: float
    more: dict[str, float]
    reason: str = ""


def _ends(lab: Lab, backend: str, w: Workload) -> tuple[str, tuple[str, int], tuple[str, int]]:
    """The node that serves; its own (address, port); those that the client is to use."""
    if backend == LIMIT:
        return w.client, ("127.0.0.1", PORT), ("127.0.0.1", PORT)
    address = lab.backend.address(lab, w.client, w.server)
    guest = next((g for g in lab.scenario.guests if g.name == w.server), None)
    own = SSH if guest and w.client == "lan1" else PORT
    through = address == lab.scenario.dom0.address
    port = guest.forward if guest and guest.forward and through else own
    return w.server, ("0.0.0.0", own), (address, port)


def _stream(lab: Lab, backend: str, w: Workload, seconds: float) -> _Measured:
    node, own, far = _ends(lab, backend, w)
    here, there = ("send", "receive") if w.down else ("receive", "send")
    server = (node, (*own, here, w.streams, seconds))
    client = (w.client, (*far, there, w.streams, seconds))
    seen = between(lab, "stream", server, client, "client" if w.down else "server")
    return _Measured(seen["bytes"] * 8 / seen["seconds"] / 1e9, seen["busy_s"], seen["bytes"] / 1e6, {})


def _rr(lab: Lab, backend: str, w: Workload, seconds: float) -> _Measured:
    node, own, far = _ends(lab, backend, w)
    seen = between(lab, "rr", (node, (*own, seconds)), (w.client, (*far, seconds)), "client", one_cpu=True)
    more = {k: float(seen[k]) for k in ("p99_us", "p999_us", "count")}
    return _Measured(seen["p50_us"], seen["busy_s"], seen["count"], more)


def _udp(lab: Lab, backend: str, w: Workload, seconds: float) -> _Measured:
    node, own, far = _ends(lab, backend, w)
    seen = between(lab, "udp", (node, (*own, seconds)), (w.client, (*far, seconds)), "server")
    return _Measured(seen["count"] / seen["seconds"], seen["busy_s"], seen["count"], {})


def _new(lab: Lab, backend: str, w: Workload, seconds: float) -> _Measured:
    node, own, far = _ends(lab, backend, w)
    how = "fin" if w.fin else "reset"
    seen = between(lab, "new", (node, (*own, seconds, how)), (w.client, (*far, seconds, how)), "client", one_cpu=True)
    if not seen["count"]:
        raise LoadError(f"no connection came about: {seen['reason'] or 'none was answered'}")
    more = {k: float(seen[k]) for k in ("failed", "slow", "stuck")}
    return _Measured(seen["count"] / seen["seconds"], seen["busy_s"], seen["count"], more, seen["reason"])


def _pps(lab: Lab, backend: str, w: Workload, seconds: float) -> _Measured:
    if backend == LIMIT:
        return _into_nothing(lab, w, seconds)
    address = lab.backend.address(lab, w.client, w.server)
    device, raw = frame(lab, w.client, address)
    with Drain(lab, w.server, interface_of(lab, w.server, address)) as drain:
        seen = ring(lab, w.client, device, raw, seconds)
        arrived = drain.arrived()
    if not arrived:
        raise LoadError(f"none of {seen['sent']} frames arrived")
    return _Measured(arrived / seen["seconds"], seen["busy_s"], arrived, {"sent_per_s": seen["sent"] / seen["seconds"]})


def _into_nothing(lab: Lab, w: Workload, seconds: float) -> _Measured:
    """The ring, into a device that drops all that it is sent: an ifb that nothing was redirected to."""
    try:
        lab.ip(w.client, "link", "add", "nothing", "type", "ifb")
    except LabError as error:
        raise LoadError(f"there is no ifb to send to: {error}") from None
    try:
        lab.ip(w.client, "link", "set", "nothing", "up")
        seen = ring(lab, w.client, "nothing", bytes(60), seconds)
    finally:
        lab.ip(w.client, "link", "del", "nothing")
    return _Measured(seen["sent"] / seen["seconds"], seen["busy_s"], seen["sent"], {})


_RUN: dict[Kind, Callable[[Lab, str, Workload, float], _Measured]] = {
    "stream": _stream,
    "rr": _rr,
    "pps": _pps,
    "udp": _udp,
    "new": _new,
}
