"""What commands that show the fastpath at work read of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vfr._abi import Session, SessionKey
from vfr.flows import Flow, Reader, Rules, Tenant, Wanted
from vfr.kernel.fastpath import counts
from vfr.settings import Limits
from vfr.top import Counts, Look, Quota, Reading, Row, Sessions, ordered, rows

if TYPE_CHECKING:
    from vfr.kernel.fastpath import Fastpath


def flows(
    fp: Fastpath, names: Mapping[int, str], which: Wanted, limit: int | None, rules: Rules | None
) -> Iterator[Flow]:
    """The living conversations that are wanted. `names` are those of slots."""
    config = fp.config()
    if config is None:
        return
    tenants = [
        Tenant(slot, names.get(slot, f"slot {slot}"), row.address, row.generation)
        for slot, row in sorted(fp.domains().items())
    ]

    def found() -> Iterator[tuple[Tenant, bool, SessionKey, Session]]:
        for tenant in tenants:
            for inbound in (False, True):
                for key, session in fp.conversations(tenant.slot, inbound):
                    yield tenant, inbound, key, session

    yield from Reader(tenants, config.timers, fp.now_ns(), rules).flows(found(), which, limit)


class Counters:
    """Reads all counters again and again; what has not changed since is not summed anew."""

    def __init__(self, fp: Fastpath) -> None:
        self._fp = fp
        self._raw: dict[int, bytes] = {}
        self._counts: dict[int, Counts] = {}

    def read(self, names: Mapping[int, str]) -> Reading:
        """The counters now, of the rows that have a name."""
        at = time.monotonic()
        for row, raw in self._fp.raw_counters():
            if row in names and self._raw.get(row) != raw:
                self._raw[row], self._counts[row] = raw, counts(raw)
        begun = self._fp.begun()
        return Reading(
            at,
            {name: self._counts.get(row, {}) for row, name in names.items()},
            {name: begun.get(row, 0) for row, name in names.items()},
        )


def sessions(fp: Fastpath, slot: int, limits: Limits) -> Sessions:
    """How much of its quotas a domain has. The living are counted one by one."""
    own, entering = fp.half_open(slot)
    return Sessions(
        own=Quota(fp.living(slot, False), limits.sessions),
        inbound=Quota(fp.living(slot, True), limits.inbound),
        half_open=Quota(own, limits.half_open),
        half_open_inbound=Quota(entering, limits.half_open),
    )


def look(fp: Fastpath, slots: Mapping[str, int], before: Reading, after: Reading, by: str, most: int | None) -> Look:
    """The `most` first rows in the order asked for. Conversations are counted of those that are shown alone, since they
    are walked through for it; of all if that is what they are ordered by."""
    domains = fp.domains()

    def counted(row: Row) -> Row:
        tenant = domains.get(slots.get(row.name, -1))
        return replace(row, sessions=sessions(fp, slots[row.name], tenant.limits)) if tenant else row

    found = rows(before, after)
    if by == "sessions":
        found = [counted(row) for row in found]
    shown = ordered(found, by)[:most]
    return Look(found, shown if by == "sessions" else [counted(row) for row in shown], by)
