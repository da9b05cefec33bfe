"""Traffic as spans of one number, `ether << 24 | protocol << 16 | port`, so that it can be cut, joined and compared.

Spans are (low, high), both included, sorted and apart. Of ICMP, whose requests are the only traffic, each request has
all numbers up to the next one's: thus `icmp` and `icmp echo,timestamp` are the same spans, as they mean the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from vfr.policy.rules import ICMP, ICMP_REQUESTS, PROTOCOL_NAMES, TCP, UDP, WITH_PORTS, Ports, Traffic, What

Spans = tuple[tuple[int, int], ...]
Piece = tuple[int, int, int]  # low, high, and who has it

ETHER = 1 << 24
IP: Spans = ((0, ETHER - 1),)
ALL: Spans = ((0, ETHER | 0xFFFF),)
_PORTS = 0xFFFF
_MANY = 128  # of so many protocols it is shorter to say which are left out


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """Sorted and apart, whatever they were."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def both(one: Spans, other: Spans) -> Spans:
    """What lies in one and in the other."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def without(one: Spans, other: Spans) -> Spans:
    """What lies in one and not in the other."""
    gaps, at = [], 0
    for low, high in other:
        gaps.append((at, low - 1))
        at = high + 1
    gaps.append((at, ALL[-1][1]))
    return both(one, tuple(gap for gap in gaps if gap[0] <= gap[1]))


def number(traffic: Traffic) -> int:
    """Where a conversation lies."""
    return traffic.ether << 24 | traffic.protocol << 16 | traffic.port


def of_ports(protocol: int, ports: Iterable[tuple[int, int]]) -> Spans:
    """A protocol's ports."""
    return merged((protocol << 16 | low, protocol << 16 | high) for low, high in ports)


def _requests() -> Iterator[tuple[str, int, int, int]]:
    """Name and number of each ICMP request, and the numbers that are its own."""
    ordered = sorted((n, name) for name, n in ICMP_REQUESTS.items())
    for i, (n, name) in enumerate(ordered):
        yield name, n, n if i else 0, ordered[i + 1][0] - 1 if i + 1 < len(ordered) else _PORTS


@lru_cache(maxsize=1 << 16)
def spans_of(what: What | None) -> Spans:
    """The traffic that a rule's pattern means."""
    if what is None:
        return IP
    if what.ether:
        return merged((ETHER | low, ETHER | high) for low, high in what.ports)
    ports: Ports = what.ports or ((0, _PORTS),)
    if what.number == ICMP and what.ports:
        ports = tuple((low, high) for _, n, low, high in _requests() if any(a <= n <= b for a, b in what.ports))
    return of_ports(what.number, ports)


# Words


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}-{high}"


def _ports_of(spans: Spans, protocol: int) -> Spans:
    here = both(spans, ((protocol << 16, protocol << 16 | _PORTS),))
    return tuple((low & _PORTS, high & _PORTS) for low, high in here)


def _protocol(protocol: int, ports: Spans) -> str:
    if protocol in (TCP, UDP):
        word = {n: name for name, n in WITH_PORTS.items()}[protocol]
        return word if ports == ((0, _PORTS),) else f"{word} {','.join(_range(*pair) for pair in ports)}"
    if protocol == ICMP:
        names = [name for name, _, low, high in _requests() if both(ports, ((low, high),))]
        return "icmp" if len(names) == len(ICMP_REQUESTS) else f"icmp {','.join(names)}"
    named = {n: name for name, n in PROTOCOL_NAMES.items()}
    return f"proto {named.get(protocol, protocol)}"


def _protocols(spans: Spans) -> list[int]:
    return sorted({n for low, high in both(spans, IP) for n in range(low >> 16, (high >> 16) + 1)}, key=_order)


def _order(protocol: int) -> tuple[bool, int]:
    return protocol not in (ICMP, TCP, UDP), protocol


def words(spans: Spans) -> str:
    """In the words of the rule language, one protocol after the other: `tcp 22,8000-8080; udp 53`, `all IP`,
    `all IP but tcp 25 and udp 53; ether 0x889a`."""
    said, protocols = [], _protocols(spans)
    if len(protocols) >= _MANY:
        left_out = without(IP, spans)
        but = " and ".join(_protocol(n, _ports_of(left_out, n)) for n in _protocols(left_out))
        said.append(f"all IP but {but}" if but else "all IP")
    else:
        said += [_protocol(n, _ports_of(spans, n)) for n in protocols]
    types = [n for low, high in spans if high >= ETHER for n in range(max(low, ETHER), high + 1)]
    said += [f"ether {','.join(f'{n & _PORTS:#06x}' for n in types)}"] if types else []
    return "; ".join(said)


# Who has what


def winners(claims: Sequence[tuple[int, Spans]]) -> list[Piece]:
    """Of claims, the strongest first, which one has what. Of neighbours, none are the same one's."""
    if len(claims) == 1:
        return [(low, high, claims[0][0]) for low, high in claims[0][1]]
    starts = sorted((low, place, high) for place, (_, spans) in enumerate(claims) for low, high in spans)
    found: list[Piece] = []
    open_: list[tuple[int, int]] = []
    at = i = 0
    while i < len(starts) or open_:
        at = at if open_ else max(at, starts[i][0])
        while i < len(starts) and starts[i][0] <= at:
            heapq.heappush(open_, starts[i][1:])
            i += 1
        while open_ and open_[0][1] < at:
            heapq.heappop(open_)
        if open_:
            place, high = open_[0]
            until = min(high, starts[i][0] - 1) if i < len(starts) else high
            _append(found, (at, until, claims[place][0]))
            at = until + 1
    return found


def _append(found: list[Piece], piece: Piece) -> None:
    if found and found[-1][1] + 1 == piece[0] and found[-1][2] == piece[2]:
        found[-1] = (found[-1][0], piece[1], piece[2])
    else:
        found.append(piece)


def compared(old: Sequence[Piece], new: Sequence[Piece]) -> Iterator[tuple[int, int, int | None, int | None]]:
    """(low, high, who had it, who has it), wherever somebody did or does."""
    edges = sorted({edge for low, high, _ in (*old, *new) for edge in (low, high + 1)})
    i = j = 0
    for low, after in pairwise(edges):
        while i < len(old) and old[i][1] < low:
            i += 1
        while j < len(new) and new[j][1] < low:
            j += 1
        before = old[i][2] if i < len(old) and old[i][0] <= low else None
        now = new[j][2] if j < len(new) and new[j][0] <= low else None
        if before is not None or now is not None:
            yield low, after - 1, before, now
