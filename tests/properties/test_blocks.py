"""Which block of outside ports a new domain gets: a queue, so that one given back lies idle for as long as can be.

Invariant 8 towards the LAN: who still speaks to a former tenant does not meet the next.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfr.choose import NAT_PORTS, PORTS_PER_DOMAIN, free_block
from vfr.errors import ConflictError
from vfr.registry import Contents, Domain, Nat

pytestmark = pytest.mark.inv(8)
LOW, SIZE, BLOCKS = 20000, 16, 5


def _contents(size: int = SIZE) -> Contents:
    """A router with room for BLOCKS blocks of SIZE ports, and a few ports over that make no block."""
    nat = Nat("eth0", IPv4Address("192.0.2.1"), (2, 19), (LOW, LOW + SIZE * BLOCKS + 2), size)
    return Contents(nat=nat)


def _add(contents: Contents, name: str) -> Contents:
    low, count = free_block(contents)
    number = len(contents.domains) + 2
    d = Domain(number, name, "tap", None, name, IPv4Address(number), name, number, low, count)
    return replace(contents, domains=(*contents.domains, d))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sets(st.integers(0, BLOCKS - 1), min_size=1)), max_size=60))
def test_blocks_are_given_in_turn(steps: list[set[int] | None]) -> None:
    """Steps are a new domain, or some that leave at once. What it should be is a queue: never used ones first."""
    queue = list(range(LOW, LOW + SIZE * BLOCKS, SIZE))
    contents = _contents()
    for number, leaving in enumerate(steps):
        if leaving is None and queue:
            contents = _add(contents, f"d{number}")
            assert (contents.domains[-1].port_low, contents.domains[-1].port_count) == (queue.pop(0), SIZE)
        elif leaving is None:
            with pytest.raises(ConflictError):
                free_block(contents)
        else:
            left = [d for place, d in enumerate(contents.domains) if place in leaving]
            contents = contents.without({d.name for d in left})
            queue += [d.port_low for d in left]
        assert len(contents.returned) <= BLOCKS, "a block is remembered once"


def test_a_full_range_says_so() -> None:
    contents = _contents()
    for number in range(BLOCKS):
        contents = _add(contents, f"d{number}")
    said = f"all {BLOCKS} blocks of {SIZE} ports in {LOW}-{LOW + SIZE * BLOCKS + 2} are given away; remove a domain"
    with pytest.raises(ConflictError, match=re.escape(said)):
        free_block(contents)


def test_a_block_of_another_size_remembers_the_ports() -> None:
    """After all domains left, blocks may be cut anew: what had a used port in it comes last."""
    contents = _contents()
    for name in ("a", "b", "c"):
        contents = _add(contents, name)
    contents = contents.without({"c"}).without({"a"}).without({"b"})
    assert contents.nat is not None
    halves = replace(contents, nat=replace(contents.nat, ports_per_domain=SIZE // 2))
    got = []
    for number in range(BLOCKS * 2):
        halves = _add(halves, f"d{number}")
        got.append((halves.domains[-1].port_low - LOW) // (SIZE // 2))
    assert got == [6, 7, 8, 9, 4, 5, 0, 1, 2, 3]


def test_without_nat_the_range_is_the_usual_one() -> None:
    assert free_block(Contents()) == (NAT_PORTS[0], PORTS_PER_DOMAIN)
