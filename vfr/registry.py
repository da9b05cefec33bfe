"""What is wanted, on disk: the domains and the settings, in SQLite. And the lock that commands take turns by.

The registry is the intent. It is written before the kernel is touched, so a command that dies half-way
leaves behind what the next one needs to finish the work.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple

from vfr.errors import RegistryError
from vfr.policy.language import ForwardRule
from vfr.settings import Dhcp, DhcpWords, Limits, Timers
from vfr.view import GuestWords

SCHEMA = 6
READABLE = (2, 3, 4, 5)
LOCK_WAIT_S = 120
# Version 3 added the blocks of ports that domains gave back, in the order in which they did. Version 4 notes of the
# rule file what is asked for often, and may have an earlier state to go back to. Version 5 knows of clones, and of
# domains that are away in a file. Version 6 of what domains are told by DHCP.
_RETURNED = "CREATE TABLE returned (number INTEGER PRIMARY KEY, port_low INTEGER NOT NULL, port_count INTEGER NOT NULL)"
# Columns of domains that older versions do not have.
_ADDED = {"guest": "TEXT NOT NULL DEFAULT '{}'", "saved": "TEXT", "dhcp": "TEXT NOT NULL DEFAULT '{}'"}
_TABLES = f"""
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
    limits TEXT NOT NULL,
    guest TEXT NOT NULL DEFAULT '{{}}',
    saved TEXT,
    dhcp TEXT NOT NULL DEFAULT '{{}}'
);
{_RETURNED};
"""


@dataclass(frozen=True, slots=True)
class Nat:
    """The settings of `vfr nat enable`. Ports and x are (low, high), both included. `is_fixed`: the address was named, so
    NAT waits for it rather than follow the uplink to another. `uplink_rate` is what the uplink takes, in bits a second: 0
    if it is not to be shared out, None if it is what the interface says of itself."""

    uplink: str
    address: IPv4Address
    forwards: tuple[int, int]
    ports: tuple[int, int]
    ports_per_domain: int
    is_fixed: bool = False
    uplink_rate: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rule file in force: its name, its text as it was when it was read, and what is asked for more often than
    the text is read: of each rule the line and its number, the names that rules go by, those that the file itself
    gives a meaning, and the forwards."""

    file: str
    text: str
    lines: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    defined: tuple[str, ...] = ()
    forwards: tuple[ForwardRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain as it is wanted. `id` is never given twice. One that is `saved` (the token of the file) is away: it
    keeps what is its own, and nothing comes from or goes to it."""

    id: int
    name: str
    kind: str
    netns: str | None
    interface: str
    address: IPv4Address
    mac: str
    slot: int
    port_low: int
    port_count: int
    limits: Limits = field(default_factory=Limits)
    guest: GuestWords = field(default_factory=GuestWords)
    saved: str | None = None
    dhcp: DhcpWords = field(default_factory=DhcpWords)


class Seat(NamedTuple):
    """What a domain has that no other can have."""

    name: str
    netns: str | None
    interface: str
    address: IPv4Address
    mac: str
    slot: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that is gone back on, to `before` (Contents as text), unless it is confirmed: by when, in seconds of
    CLOCK_BOOTTIME of this `boot`. `token` tells it from any other."""

    token: str
    boot: str
    deadline: float
    before: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything the registry says. `returned` are the blocks (lowest port, number of ports) that domains gave
    back, the one given back last at the end. When nothing is left, the registry's file goes, and they with it."""

    domains: tuple[Domain, ...] = ()
    nat: Nat | None = None
    rules: Rules | None = None
    timers: Timers = field(default_factory=Timers)
    returned: tuple[tuple[int, int], ...] = ()
    pending: Pending | None = None
    dhcp: Dhcp = field(default_factory=Dhcp)

    @property
    def is_empty(self) -> bool:
        return not self.domains and self.nat is None

    def without(self, names: Container[str]) -> Contents:
        """The same without these domains, whose blocks of ports are given back."""
        gone = [(d.port_low, d.port_count) for d in self.domains if d.name in names]
        kept = tuple(block for block in self.returned if block not in gone)
        return replace(self, domains=tuple(d for d in self.domains if d.name not in names), returned=(*kept, *gone))


def _nat(raw: dict[str, Any]) -> Nat:
    return Nat(
        raw["uplink"],
        IPv4Address(raw["address"]),
        (raw["forwards"][0], raw["forwards"][1]),
        (raw["ports"][0], raw["ports"][1]),
        raw["ports_per_domain"],
        raw.get("is_fixed", False),
        raw.get("uplink_rate"),
    )


def _rules(raw: dict[str, Any]) -> Rules:
    """Of a version before 4, it is to be read anew (lines and numbers are missing)."""
    return Rules(
        raw["file"],
        raw["text"],
        tuple(raw.get("lines", ())),
        tuple(raw.get("numbers", ())),
        tuple(raw.get("names", ())),
        tuple(raw.get("defined", ())),
        tuple(_forward(f) for f in raw.get("forwards", ())),
    )


def _forward(raw: dict[str, Any]) -> ForwardRule:
    return ForwardRule(**{**raw, "outside": tuple(raw["outside"]), "inside": tuple(raw["inside"])})


def domain_of(named: dict[str, Any]) -> Domain:
    """A domain from its fields as plain values; those that an older version did not have are as they are by themselves."""
    limits = json.loads(named["limits"]) if isinstance(named["limits"], str) else named["limits"]
    guest = named.get("guest") or {}
    guest = json.loads(guest) if isinstance(guest, str) else guest
    said = named.get("dhcp") or {}
    said = json.loads(said) if isinstance(said, str) else said
    own = {
        "address": IPv4Address(named["address"]),
        "limits": Limits(**limits),
        "guest": _guest(guest),
        "dhcp": DhcpWords(**_dhcp(said)),
    }
    return Domain(**{**named, **own})


def _guest(raw: dict[str, Any]) -> GuestWords:
    address, gateway = (IPv4Address(raw[name]) if raw.get(name) else None for name in ("address", "gateway"))
    return GuestWords(address, raw.get("mac"), gateway)


def _dhcp(raw: dict[str, Any]) -> dict[str, Any]:
    """Its fields, of what all domains are told, or one."""
    servers = raw.get("dns")
    return {**raw, "dns": tuple(map(IPv4Address, servers))} if servers is not None else raw


def _plain(value: Any) -> dict[str, Any]:
    """As asdict has it, but not number by number where there are a hundred thousand."""
    if isinstance(value, Rules):
        named = {f.name: getattr(value, f.name) for f in fields(Rules)}
        return {**named, "forwards": [asdict(f) for f in value.forwards]}
    return asdict(value)


@lru_cache(maxsize=1024)
def _said(words: Limits | GuestWords | DhcpWords) -> str:
    """The fields that are not None. Most domains have the same."""
    return json.dumps({f.name: v for f in fields(words) if (v := getattr(words, f.name)) is not None}, default=str)


def _row(d: Domain) -> dict[str, Any]:
    """A domain as its table has it."""
    row = {f.name: getattr(d, f.name) for f in fields(Domain)}
    return row | {"address": str(d.address), "limits": _said(d.limits), "guest": _said(d.guest), "dhcp": _said(d.dhcp)}


def _text(value: Any) -> str:
    return json.dumps(_plain(value), default=str)


def as_text(contents: Contents) -> str:
    """Domains and settings, to be read by from_text."""
    settings = {"nat": contents.nat, "rules": contents.rules, "timers": contents.timers, "dhcp": contents.dhcp}
    said = {name: _plain(value) for name, value in settings.items() if value is not None}
    return json.dumps({"domains": [asdict(d) for d in contents.domains], **said}, default=str)


def from_text(text: str) -> Contents:
    """What as_text wrote down."""
    raw = json.loads(text)
    return Contents(
        tuple(map(domain_of, raw["domains"])),
        _nat(raw["nat"]) if "nat" in raw else None,
        _rules(raw["rules"]) if "rules" in raw else None,
        Timers(**raw["timers"]),
        dhcp=Dhcp(**_dhcp(raw.get("dhcp", {}))),
    )


class Registry:
    """An open registry. Changes are inside `transaction()`; nothing else writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
            self._prepare()
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> RegistryError:
        return RegistryError(
            f"the registry {self.path} cannot be used ({error}); move it away and run `vfr nat enable` and"
            " `vfr domain add` again: nothing passes meanwhile that was not allowed before"
        )

    def _prepare(self) -> None:
        version = self._version()
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
        elif version not in (*READABLE, SCHEMA):
            raise sqlite3.DatabaseError(f"it is of version {version}, this program knows {SCHEMA}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        """An older version becomes this one with the first change, since who only reads may not be able to write."""
        version = self._version()
        if version == 2:
            self._db.execute(_RETURNED)
        has = self._table_columns()
        for column, kind in _ADDED.items():
            if column not in has:
                self._db.execute(f"ALTER TABLE domains ADD COLUMN {column} {kind}")
        if version in READABLE:
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk at the end."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._migrate()
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def read(self) -> Contents:
        """Everything, as of one moment."""
        return replace(self.settings(), domains=self._domains("1"))

    def named(self, names: Sequence[str]) -> tuple[Domain, ...]:
        """The domains of these names, in the order they were added, without those that there are not."""
        return self._domains(f"name IN ({', '.join('?' * len(names))})", *names)

    def _domains(self, which: str, *values: str) -> tuple[Domain, ...]:
        columns = self._columns()
        try:
            question = f"SELECT {', '.join(columns)} FROM domains WHERE {which} ORDER BY id"
            rows = self._db.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return tuple(domain_of(dict(zip(columns, row, strict=True))) for row in rows)

    def seats(self) -> list[Seat]:
        """What each domain has that no other can have."""
        try:
            rows = self._db.execute(f"SELECT {', '.join(Seat._fields)} FROM domains").fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return [Seat(name, netns, vif, IPv4Address(own), mac, slot) for name, netns, vif, own, mac, slot in rows]

    def low_ports(self) -> set[int]:
        """The lowest outside port of each domain's block."""
        try:
            return {port for (port,) in self._db.execute("SELECT port_low FROM domains")}
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def count(self) -> int:
        """How many domains there are."""
        return int(self._db.execute("SELECT COUNT(*) FROM domains").fetchone()[0])

    def changes_by_others(self) -> int:
        """A number that is another one when another connection has written since."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def settings(self) -> Contents:
        """Everything but the domains."""
        try:
            settings = dict(self._db.execute("SELECT name, value FROM settings").fetchall())
            returned = self._returned()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return Contents(
            (),
            _nat(json.loads(settings["nat"])) if "nat" in settings else None,
            _rules(json.loads(settings["rules"])) if "rules" in settings else None,
            Timers(**json.loads(settings["timers"])) if "timers" in settings else Timers(),
            returned,
            Pending(**json.loads(settings["pending"])) if "pending" in settings else None,
            Dhcp(**_dhcp(json.loads(settings["dhcp"]))) if "dhcp" in settings else Dhcp(),
        )

    def _columns(self) -> list[str]:
        """What its version says of a domain."""
        has = self._table_columns()
        return [f.name for f in fields(Domain) if f.name not in _ADDED or f.name in has]

    def _table_columns(self) -> set[str]:
        return {name for _, name, *_ in self._db.execute("PRAGMA table_info(domains)")}

    def _returned(self) -> tuple[tuple[int, int], ...]:
        if self._version() == 2:
            return ()
        return tuple(self._db.execute("SELECT port_low, port_count FROM returned ORDER BY number").fetchall())

    def write(self, wanted: Contents) -> None:
        """Makes the registry say exactly this. Inside a transaction. New domains carry their ids already."""
        self._db.execute("DELETE FROM domains")
        self._db.execute("DELETE FROM settings")
        self._db.execute("DELETE FROM returned")
        self._db.executemany("INSERT INTO returned (port_low, port_count) VALUES (?, ?)", wanted.returned)
        self.add(wanted.domains)
        for name in ("nat", "rules", "timers", "pending", "dhcp"):
            if (value := getattr(wanted, name)) is not None:
                self._db.execute("INSERT INTO settings VALUES (?, ?)", (name, _text(value)))

    def add(self, domains: Iterable[Domain]) -> None:
        """More domains, which carry their ids already. Inside a transaction."""
        names = [f.name for f in fields(Domain)]
        marks = ", ".join(f":{name}" for name in names)
        self._db.executemany(f"INSERT INTO domains ({', '.join(names)}) VALUES ({marks})", map(_row, domains))

    def remove(self, domains: Sequence[Domain]) -> None:
        """These domains less; their blocks of ports are given back, as Contents.without does. Inside a transaction."""
        blocks = [(d.port_low, d.port_count) for d in domains]
        self._db.executemany("DELETE FROM domains WHERE id = ?", [(d.id,) for d in domains])
        self._db.executemany("DELETE FROM returned WHERE port_low = ? AND port_count = ?", blocks)
        self._db.executemany("INSERT INTO returned (port_low, port_count) VALUES (?, ?)", blocks)

    def next_id(self) -> int:
        """An id that no domain has had, nor will have. Inside a transaction."""
        row: Any = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'domains'").fetchone()
        return int(row[0]) + 1 if row else 1


def read_only(path: Path) -> Contents:
    """What the registry says, without making one, or waiting for a command that is at work."""
    if not path.exists():
        return Contents()
    registry = Registry(path)
    try:
        return registry.read()
    finally:
        registry.close()


def _holder(path: Path) -> str:
    pid = path.read_text().strip()
    return f"process {pid}" if pid else "another process"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Commands that change something, one after the other. RegistryError after LOCK_WAIT_S seconds.

    The last command to leave deletes the lock's file with everything else, so a lock counts only if
    its file is still the one that the path names. Who waits for it stands first in line for it, by a lock of the line's
    own: so who takes it again and again, as a burst does for each of its parts, lets those in who came meanwhile.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    with _held(path, in_line(path), deadline) as line, _held(path, path, deadline) as handle:
        fcntl.flock(line, fcntl.LOCK_UN)
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield


def in_line(path: Path) -> Path:
    """The file by which those stand in line who wait for a lock."""
    return path.with_name(path.name + ".line")


@contextmanager
def _held(lock: Path, path: Path, deadline: float) -> Iterator[int]:
    """The descriptor of a locked file, that of the `lock` itself or of those who wait for it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the directory went away in between
        try:
            _wait(handle, lock, deadline)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                yield handle
                return
        finally:
            os.close(handle)


def _wait(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"{_holder(path)} has been changing this router for {LOCK_WAIT_S} s; wait for it, or end it"
                ) from None
            time.sleep(0.02)
        else:
            return
