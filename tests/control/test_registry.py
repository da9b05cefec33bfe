"""The registry's file: what a block of ports given back leaves there, and files of former versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from support.host import Host

from vfr.registry import SCHEMA, Contents, Domain, Nat, Registry, read_only

# As the program of version 2 wrote it.
VERSION_2 = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE domains (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    netns TEXT,
    interface TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL UNIQUE,
    mac TEXT NOT NULL UNIQUE,
    slot INTEGER NOT NULL UNIQUE,
    port_low INTEGER NOT NULL UNIQUE,
    port_count INTEGER NOT NULL,
    limits TEXT NOT NULL
);
INSERT INTO settings VALUES ('nat', '{"uplink": "eth0", "address": "192.0.2.1", "forwards": [2, 19],
    "ports": [16384, 32767], "ports_per_domain": 64}');
INSERT INTO domains VALUES (7, 'a', 'tap', NULL, 'tap7', '169.254.1.2', '02:00:00:00:00:07', 1, 16384, 64, '{}');
PRAGMA user_version = 2;
"""
NAT = Nat("eth0", IPv4Address("192.0.2.1"), (2, 19), (16384, 32767), 64)
A = Domain(7, "a", "tap", None, "tap7", IPv4Address("169.254.1.2"), "02:00:00:00:00:07", 1, 16384, 64)


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("vr") as one:
        yield one


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_2)
    db.close()
    return path


def _version(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return int(db.execute("PRAGMA user_version").fetchone()[0])
    finally:
        db.close()


def test_a_registry_of_version_2_is_read_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    assert read_only(old) == Contents(domains=(A,), nat=NAT)
    assert old.read_bytes() == before, "who only reads may not be able to write"


def test_a_registry_of_version_2_becomes_new_with_the_first_change(old: Path) -> None:
    registry = Registry(old)
    with registry.transaction():
        registry.write(registry.read().without({"a"}))
        assert registry.next_id() == 8
    registry.close()
    assert _version(old) == SCHEMA
    assert read_only(old) == Contents(nat=NAT, returned=((16384, 64),))


def test_a_change_that_fails_leaves_version_2(old: Path) -> None:
    registry = Registry(old)
    with pytest.raises(ZeroDivisionError), registry.transaction():
        registry.write(Contents())
        raise ZeroDivisionError
    registry.close()
    assert _version(old) == 2 and read_only(old) == Contents(domains=(A,), nat=NAT)


def test_returned_blocks_keep_their_order(tmp_path: Path) -> None:
    registry, wanted = Registry(tmp_path / "registry.db"), Contents(returned=((640, 64), (64, 64), (128, 32)))
    with registry.transaction():
        registry.write(wanted)
    registry.close()
    assert read_only(registry.path) == wanted


def _blocks(host: Host) -> dict[str, int]:
    """Each domain's block, numbered from the range's beginning."""
    return {d["name"]: (int(d["outside_ports"].split("-")[0]) - 20000) // 32 for d in host.json("domain", "list")}


@pytest.mark.inv(8)
def test_a_block_given_back_is_not_the_next_ones(host: Host) -> None:
    """Four blocks: a new domain gets one that nobody has had, then the one that has lain idle longest."""
    enable = ("nat", "enable", "--uplink", "eth0", "--ports", "20000-20127", "--ports-per-domain", "32")
    host.vfr(*enable)
    for guest in ("a", "b", "c"):
        host.add(guest)
    host.vfr("domain", "remove", "b")
    host.vfr("domain", "remove", "a")
    host.add("a")
    host.add("b")
    assert _blocks(host) == {"c": 2, "a": 3, "b": 1}
    host.vfr("domain", "remove", "a", "c")
    host.vfr("nat", "disable")
    host.vfr(*enable)
    host.add("a")
    host.add("c")
    assert _blocks(host) == {"b": 1, "a": 0, "c": 2}, "NAT off and on again forgets nothing"
    host.vfr("domain", "remove", "a", "b", "c")
    host.vfr("nat", "disable")
    assert not Path("/run/vfr/netns", host.ns("dom0")).exists()
    host.vfr(*enable)
    host.add("a")
    assert _blocks(host) == {"a": 0}, "where nothing is left, nothing is remembered"


def test_commands_go_on_from_a_registry_of_version_2(host: Host) -> None:
    """Anybody may list; the next command that changes something writes the new version."""
    host.add("a")
    path = Path("/run/vfr/netns", host.ns("dom0"), "registry.db")
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("DROP TABLE returned; PRAGMA user_version = 2")
    db.close()
    assert [d["name"] for d in host.json("domain", "list")] == ["a"] and _version(path) == 2
    host.add("b")
    assert [d["name"] for d in host.json("domain", "list")] == ["a", "b"] and _version(path) == SCHEMA
