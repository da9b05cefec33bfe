"""Invariant 8 from the other side: a slot's next tenant cannot answer for the one before."""

from __future__ import annotations

import dataclasses

import pytest
from support import world
from support.bench import Bench
from support.frames import echo, tcp, udp

RULES = "allow web -> db\n"
QUESTIONS = {
    "tcp": (tcp("web", "db", 1000, 80), tcp("db", "web", 80, 1000, "SA")),
    "udp": (udp("web", "db", 1000, 53), udp("db", "web", 53, 1000)),
    "echo": (echo("web", "db", 9), echo("db", "web", 9, 0)),
}
# Nothing allows db to speak first, and what may begin a conversation is asked for a rule.
REFUSED = {"tcp": "DROP_NO_SESSION", "udp": "DROP_POLICY", "echo": "DROP_NO_SESSION"}


@pytest.mark.inv(8)
@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_new_tenant_does_not_answer_what_the_old_one_was_asked(bench: Bench, kind: str) -> None:
    question, answer = (bytes(packet) for packet in QUESTIONS[kind])
    bench.reset(world.router(RULES))
    web, db = world.SLOTS["web"], world.SLOTS["db"]
    assert bench.send(web, question).verdict.name == "TO_DOMAIN"
    assert bench.send(db, answer).verdict.name == "TO_DOMAIN"
    tenant = bench.fastpath.domains()[db]
    bench.fastpath.set_domain(db, dataclasses.replace(tenant, generation=tenant.generation + 100))
    bench.fastpath.new_tables(db, world.LIMITS, 4)
    assert bench.send(db, answer).verdict.name == REFUSED[kind]
