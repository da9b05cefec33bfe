"""What commands that show the fastpath at work read of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vfr._abi import Session, SessionKey
from vfr.flows import Flow, Reader, Rules, Tenant, Wanted

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

    def rows() -> Iterator[tuple[Tenant, bool, SessionKey, Session]]:
        for tenant in tenants:
            for inbound in (False, True):
                for key, session in fp.conversations(tenant.slot, inbound):
                    yield tenant, inbound, key, session

    yield from Reader(tenants, config.timers, fp.now_ns(), rules).flows(rows(), which, limit)
