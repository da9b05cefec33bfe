"""What can be set: how long silences last, and how much one domain may have. Checked when made."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from vfr._abi import Limit
from vfr.errors import UsageError

WEEK_S = 7 * 24 * 3600
LEASE_LEAST_S = 20  # dhcpcd takes anything shorter for that
CAPS = ("rate_out", "rate_in", "pps_out", "pps_in")
LEAST_RATE = 1000  # bits a second
MOST_RATE = 10**12
MOST_BURST_MS = 10_000


def _check(what: object, least: dict[str, int], most: dict[str, int], unit: str) -> None:
    for field in fields(what):  # type: ignore[arg-type]
        name, value = field.name, getattr(what, field.name)
        low, high = least.get(name, 1), most.get(name, 1 << 20)
        if not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value} is out of range; it takes {low} to {high}{unit}")


@dataclass(frozen=True, slots=True)
class Timers:
    """How long, in seconds, a conversation may be silent. The defaults are what the RFCs ask for at
    least (5382 REQ-5, 4787 REQ-5 and 5a, 5508 REQ-2, 7857 2); shorter is for who knows why."""

    tcp_opening: int = 240
    tcp_established: int = 7440
    tcp_closing: int = 240
    udp: int = 300
    dns: int = 30
    icmp: int = 60
    fragments: int = 30

    def __post_init__(self) -> None:
        _check(self, {}, {f.name: WEEK_S for f in fields(self)} | {"fragments": 120}, " seconds")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one domain may have. `sessions` that it opened and `inbound` that the LAN opened to it,
    `half_open` TCP sessions without an answer (of each), `new_per_s` new conversations a second (each way,
    0 for any number), `errors_per_s` ICMP errors sent to it, `events_per_s` drops of its that `vfr events` tells of, `fragments` datagrams in pieces at a time.

    0 for any: `rate_out` bits a second that it sends and `rate_in` that it is sent, `pps_out` and `pps_in` packets, and
    `new_in_per_s` conversations that others begin with it (0: `new_per_s` of the LAN's). `burst_ms` is by how much of
    a second it may run ahead of its rates."""

    sessions: int = 1024
    inbound: int = 1024
    half_open: int = 512
    new_per_s: int = 50_000
    errors_per_s: int = 100
    events_per_s: int = 10
    fragments: int = 32
    new_in_per_s: int = 0
    rate_out: int = 0
    rate_in: int = 0
    pps_out: int = 0
    pps_in: int = 0
    burst_ms: int = 250

    def __post_init__(self) -> None:
        _check(
            self,
            {"events_per_s": 0, **dict.fromkeys(("new_per_s", "new_in_per_s", *CAPS), 0)},
            {
                **dict.fromkeys(("new_per_s", "new_in_per_s"), 10**7),
                **dict.fromkeys(("rate_out", "rate_in"), MOST_RATE),
                **dict.fromkeys(("pps_out", "pps_in"), 10**9),
                "errors_per_s": 10**5,
                "fragments": 4096,
                "burst_ms": MOST_BURST_MS,
            },
            "",
        )
        for name in ("rate_out", "rate_in"):
            if 0 < (rate := getattr(self, name)) < LEAST_RATE:
                raise UsageError(
                    f"--{name.replace('_', '-')} {rate} is too slow; it takes {LEAST_RATE} bits a second or more"
                )

    @property
    def is_capped(self) -> bool:
        """Whether any of its packets are counted against a rate."""
        return any(getattr(self, name) for name in CAPS)


@dataclass(frozen=True, slots=True)
class Dhcp:
    """What a guest is told by DHCP, beside its address and the router's: up to three `dns` servers, for how many seconds
    it may keep all that (`lease`), and how long its network's `prefix` is: 16, for guests that take 169.254/16 for their
    link, or 32. `on` is False where DHCP is not answered at all."""

    on: bool = True
    dns: tuple[IPv4Address, ...] = ()
    lease: int = 3600
    prefix: int = 32

    def __post_init__(self) -> None:
        if not LEASE_LEAST_S <= self.lease <= WEEK_S:
            raise UsageError(f"--lease {self.lease} is out of range; it takes {LEASE_LEAST_S} to {WEEK_S} seconds")
        if self.prefix not in (16, 32):
            raise UsageError(f"--prefix {self.prefix} is neither 16 nor 32, which are what a guest can have")
        if len(self.dns) > Limit.DHCP_DNS:
            raise UsageError(f"--dns has {len(self.dns)} servers; a guest is told of {Limit.DHCP_DNS} at the most")
        for server in self.dns:
            if server.is_multicast or server.is_unspecified or server.is_loopback or server.is_reserved:
                raise UsageError(f"--dns {server} is no address that a guest could reach a server by")
        if len(set(self.dns)) < len(self.dns):
            raise UsageError(f"--dns {', '.join(map(str, self.dns))} says the same server twice")

    def __str__(self) -> str:
        if not self.on:
            return "off"
        return f"/{self.prefix}, {self.lease} s, dns {' '.join(map(str, self.dns)) or 'none'}"


@dataclass(frozen=True, slots=True)
class DhcpWords:
    """What is said of one domain's DHCP; None where it is what is said of all."""

    on: bool | None = None
    dns: tuple[IPv4Address, ...] | None = None
    lease: int | None = None
    prefix: int | None = None

    def __post_init__(self) -> None:
        self.over(Dhcp())  # what no guest can be told is refused

    def over(self, all_: Dhcp) -> Dhcp:
        """What the domain's guest is told."""
        return replace(all_, **self.said())

    def said(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def dns_servers(text: str) -> tuple[IPv4Address, ...]:
    """`192.0.2.53,192.0.2.54`, or `none`."""
    try:
        return tuple(IPv4Address(word.strip()) for word in text.split(",")) if text != "none" else ()
    except AddressValueError:
        raise UsageError(
            f"--dns {text!r} is no list of IPv4 addresses; write it as 192.0.2.53,192.0.2.54, or none"
        ) from None


def forgettable(limits: Limits, ports: int) -> tuple[int, int, int, int]:
    """How many of a domain's conversations are remembered in the order in which they may be forgotten, by
    vfr._abi.Kind. One that begins anew under the same key, as where a remote in TIME_WAIT answers a SYN by a
    challenge, stands there again: hence several for each of its `ports` outside ports. With the usual limits and 64
    ports each queue just fits in what the kernel gives out as one piece; one of a few places more would weigh twice that."""
    return 4 * ports - min(ports // 2, 32), 224, 64, min(limits.half_open, 96)


DOM0_LIMITS = Limits(sessions=8192, inbound=16, half_open=4096, new_per_s=0, errors_per_s=1000, fragments=256)
LAN_FRAGMENTS = 1024
