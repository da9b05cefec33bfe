"""`vfr top`: what became of each domain's packets between two looks at the counters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vfr.errors import UsageError

Counts = Mapping[str, tuple[int, int]]  # verdict, "received" or "errors" -> (packets, bytes), since the domain began
SORTS = ("name", "out", "in", "sessions", "drops", "limits")
WIDTH = 80
_ROUND = 1 << 32
_LIMITS = frozenset({"DROP_TOO_FAST", "DROP_RATE_OUT", "DROP_RATE_IN", "DROP_PPS_OUT", "DROP_PPS_IN", "DROP_SHARE"})


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one time, in seconds; name -> counts, and how many conversations have begun, modulo 2^32."""

    at: float
    counts: Mapping[str, Counts]
    begun: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quota:
    """How many are living, or None where nobody has counted, of how many there may be."""

    living: int | None
    most: int


@dataclass(frozen=True, slots=True)
class Sessions:
    """A domain's conversations: those that it opened, those that the LAN opened to it, and of both the half open."""

    own: Quota
    inbound: Quota
    half_open: Quota
    half_open_inbound: Quota


@dataclass(frozen=True, slots=True)
class Row:
    """One domain, dom0, lan or unknown, over the interval: frames that came from it and that were delivered to it,
    and by verdict those that were dropped; `begun`
    conversations, which it opened or the LAN opened to it; `limits` are the drops by which a quota or a rate was kept."""

    name: str
    interval_s: float
    out_packets: int
    out_bytes: int
    in_packets: int
    in_bytes: int
    begun: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    sessions: Sessions | None = None

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


@dataclass(frozen=True, slots=True)
class Look:
    """What is shown at a time: the busiest rows of `all`, in order `by`."""

    all: Sequence[Row]
    shown: Sequence[Row]
    by: str


def is_limit(verdict: str) -> bool:
    """Whether a packet with this end was one too many, rather than one that may not be."""
    return verdict in _LIMITS or (verdict.startswith("DROP_") and verdict.endswith("_FULL"))


def _passed(before: Counts, after: Counts) -> dict[str, tuple[int, int]]:
    """What was counted in between. A name's next owner begins at zero, so less than before is all its own."""
    found = {}
    fresh = any(after.get(what, (0, 0))[0] < packets for what, (packets, _) in before.items())
    for what, (packets, size) in after.items():
        was = (0, 0) if fresh else before.get(what, (0, 0))
        if packets != was[0]:
            found[what] = (packets - was[0], size - was[1])
    return found


def _row(name: str, interval_s: float, before: Counts, after: Counts) -> Row:
    passed = {} if before is after else _passed(before, after)
    received = passed.pop("received", (0, 0))
    passed.pop("errors", None)
    drops = {what: packets for what, (packets, _) in passed.items() if what.startswith("DROP_")}
    drops = dict(sorted(drops.items(), key=lambda drop: (-drop[1], drop[0])))
    return Row(
        name=name,
        interval_s=interval_s,
        out_packets=sum(packets for packets, _ in passed.values()),
        out_bytes=sum(size for _, size in passed.values()),
        in_packets=received[0],
        in_bytes=received[1],
        drops=drops,
        limits={what: packets for what, packets in drops.items() if is_limit(what)},
    )


def rows(before: Reading, after: Reading) -> list[Row]:
    """A row for each name of the later reading; who came in between began with nothing."""
    interval = max(after.at - before.at, 1e-9)
    return [
        replace(
            _row(name, interval, before.counts.get(name, {}), counts),
            begun=_begun(before.begun.get(name, 0), after.begun.get(name, 0)),
        )
        for name, counts in after.counts.items()
    ]


def _begun(before: int, after: int) -> int:
    """How many more. Far fewer than before is a next owner's, who began at zero; the word itself goes round."""
    more = (after - before) % _ROUND
    return more if more < _ROUND // 2 else after


def check_sort(word: str) -> None:
    """UsageError unless it is a key to sort by."""
    if word not in SORTS:
        raise UsageError(f"--sort {word!r} is none of {', '.join(SORTS)}")


def ordered(found: Iterable[Row], by: str) -> list[Row]:
    """The busiest first, by name among equals."""

    def key(row: Row) -> float:
        sessions = row.sessions
        living = (sessions.own.living or 0) + (sessions.inbound.living or 0) if sessions else -1
        return {
            "name": 0,
            "out": row.out_bytes,
            "in": row.in_bytes,
            "sessions": living,
            "drops": row.dropped,
            "limits": sum(row.limits.values()),
        }[by]

    return sorted(found, key=lambda row: (-key(row), row.name))


def short(number: float) -> str:
    """At the most five places: 0, 7, 999, 1.2k, 99k, 3.4M."""
    if 0 < number < 10 and number != int(number):
        return f"{number:.1f}"
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}P"


def _why(row: Row) -> str:
    """The drops of this row, limits first, as far as there is room."""
    reasons = [*row.limits.items(), *((what, packets) for what, packets in row.drops.items() if what not in row.limits)]
    shown = [f"{'!' if what in row.limits else ''}{what.removeprefix('DROP_')} {short(n)}" for what, n in reasons]
    return ", ".join(shown)


def _quota(sessions: Sessions | None) -> str:
    if sessions is None or sessions.own.living is None:
        return "-"
    return f"{short(sessions.own.living)}/{short(sessions.own.most)}"


HEAD = f"{'NAME':<12}{'OUT/s':>6}{'BIT/s':>6}{'IN/s':>6}{'BIT/s':>6}{'NEW/s':>6}{'SESSIONS':>10}{'LAN':>5}{'DROP/s':>7} DROPPED"


def line(row: Row) -> str:
    """A row in 80 columns. `!` marks what was over a limit; the numbers behind verdicts are packets."""
    per_s = [n / row.interval_s for n in (row.out_packets, 8 * row.out_bytes, row.in_packets, 8 * row.in_bytes)]
    inbound = row.sessions.inbound.living if row.sessions else None
    text = f"{row.name:<11.11} " + "".join(f"{short(n):>6}" for n in per_s)
    text += f"{short(row.begun / row.interval_s):>6}" if row.sessions else f"{'-':>6}"
    text += f"{_quota(row.sessions):>10}{'-' if inbound is None else short(inbound):>5}"
    return f"{text}{short(row.dropped / row.interval_s):>7} {_why(row)}"[:WIDTH].rstrip()


def summary(look: Look) -> str:
    """The first line: all together."""
    domains = [row for row in look.all if row.name not in ("dom0", "lan", "unknown")]
    per_s = sum(row.out_packets / row.interval_s for row in look.all)
    bits = sum(8 * row.out_bytes / row.interval_s for row in look.all)
    drops = sum(row.dropped / row.interval_s for row in look.all)
    text = f"{len(domains)} domains, {short(per_s)} packets/s, {short(bits)}bit/s, {short(drops)} drops/s"
    return f"{text}; {len(look.shown)} of {len(look.all)}, by {look.by}"[:WIDTH]


def lines(look: Look) -> list[str]:
    """A look for people."""
    return [summary(look), HEAD, *map(line, look.shown)]
