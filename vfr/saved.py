"""A domain in a file: what `vfr save` writes and `vfr restore` reads. Files and text; no kernel.

    VFR-SAVE 1 <sha256 of the rest, hex> <bytes of the rest>
    {"token": ..., "outside": ..., "domain": {...}, "sessions": [...], "inbound": [...], "mappings": [...]}

The file may come from a disk that others write: the sum says that it is whole, not that it is honest. So everything
in it is held to what the domain could have made by itself, before anything is touched; and rules are asked anew of
every session.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vfr._abi import TcpState
from vfr.errors import ConflictError, UsageError, VfrError
from vfr.forwards import POOL
from vfr.registry import Domain, domain_of
from vfr.settings import WEEK_S, DhcpWords

MAGIC, VERSION = "VFR-SAVE", 1
MOST_BYTES = 1 << 28
TCP, UDP, ICMP = 6, 17, 1
_WITH_PORTS = (TCP, UDP, ICMP)
_NEVER_ON_THE_LAN = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation, as its owner sees it. `left_ms` is how much longer it may be silent. `peer` is the id of the
    domain at the other end, None for the LAN; `outside_port` 0 between domains."""

    remote: str
    remote_port: int
    inside_port: int
    protocol: int
    left_ms: int
    peer: int | None
    outside_port: int
    tcp_state: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """An inside port that the LAN sees as `outside_port`."""

    inside_port: int
    protocol: int
    outside_port: int
    left_ms: int


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything in the file. `token` tells this save from any other; `outside` is the address that the LAN saw."""

    token: str
    outside: str | None
    domain: Domain
    sessions: tuple[Session, ...] = ()
    inbound: tuple[Session, ...] = ()
    mappings: tuple[Mapping, ...] = ()


def encode(saved: Saved) -> bytes:
    """The file's bytes."""
    body = json.dumps(asdict(saved), default=str).encode()
    return f"{MAGIC} {VERSION} {hashlib.sha256(body).hexdigest()} {len(body)}\n".encode() + body


def decode(raw: bytes, file: str) -> Saved:
    """What a file's bytes say, if all of it may be. VfrError if not."""
    head, newline, body = raw.partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if words[0] != MAGIC or len(words) != 4 or not newline:
        raise VfrError(f"{file} is not a saved domain, or its first line is damaged; nothing was changed")
    if words[1] != str(VERSION):
        raise VfrError(
            f"{file} is of version {words[1]!r}, this program reads {VERSION}; restore it with the program that wrote it"
        )
    if words[3] != str(len(body)) or hashlib.sha256(body).hexdigest() != words[2]:
        raise VfrError(f"{file} is damaged ({len(body)} of {words[3]} bytes, or another sum); take another copy of it")
    try:
        found = _saved(json.loads(body))
        check(found)
    except (ValueError, TypeError, KeyError, LookupError, AttributeError, RecursionError) as error:
        raise VfrError(f"{file} says what cannot be ({error}); nothing was changed") from None
    return found


def _saved(raw: dict[str, Any]) -> Saved:
    if raw.keys() != {f.name for f in fields(Saved)}:
        raise ValueError(f"it has {', '.join(sorted(raw))}")
    strange = set(raw["domain"]) - {f.name for f in fields(Domain)}
    if strange:
        raise ValueError(f"this program knows no {', '.join(sorted(strange))} of a domain")
    return Saved(
        raw["token"],
        raw["outside"],
        domain_of(raw["domain"]),
        tuple(_row(Session, r) for r in raw["sessions"]),
        tuple(_row(Session, r) for r in raw["inbound"]),
        tuple(_row(Mapping, r) for r in raw["mappings"]),
    )


def _row(kind: Callable[..., Any], raw: dict[str, Any]) -> Any:
    """One row, whose values are whole numbers but for the remote's address."""
    for name, value in raw.items():
        if name == "remote" or (name == "peer" and value is None):
            continue
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise ValueError(f"{name} is {value!r}")
    return kind(**raw)


def _need(true: bool, what: str) -> None:
    if not true:
        raise ValueError(what)


def check(saved: Saved) -> None:
    """ValueError for what the domain could not have made by itself."""
    d = saved.domain
    _need(isinstance(saved.token, str) and len(saved.token) == 32, "the token is no token")
    _need(saved.outside is None or bool(IPv4Address(saved.outside)), "the outside address")
    for name in ("id", "slot", "port_low", "port_count"):
        _need(type(getattr(d, name)) is int and getattr(d, name) >= 0, f"the domain's {name}")
    for name in ("name", "kind", "interface", "mac"):
        _need(isinstance(getattr(d, name), str), f"the domain's {name}")
    _need(d.kind in ("netns", "tap", "device"), f"a domain of kind {d.kind!r}")
    _need(d.port_low >= 1024 and d.port_low + d.port_count <= 65536, "the ports")
    _check_dhcp(d.dhcp)
    _need(len(saved.sessions) <= d.limits.sessions, f"{len(saved.sessions)} sessions, {d.limits.sessions} allowed")
    _need(len(saved.inbound) <= d.limits.inbound, f"{len(saved.inbound)} inbound, {d.limits.inbound} allowed")
    block = range(d.port_low, d.port_low + d.port_count)
    ports = _check_mappings(saved, block)
    for s in (*saved.sessions, *saved.inbound):
        _check_session(s)
    for s in saved.sessions:
        if s.peer is None:
            _need(
                ports.get((s.protocol, s.inside_port)) == s.outside_port,
                f"a session by port {s.outside_port}, not mapped",
            )
        else:
            _need(s.outside_port == 0, "an outside port between domains")
    for s in saved.inbound:
        _need(s.peer is None and s.outside_port not in (0, *block), "an inbound session by no forward")
    for rows in (saved.sessions, saved.inbound):
        _need(all(n == 1 for n in Counter(key_of(s) for s in rows).values()), "a session that is there twice")


def _check_dhcp(words: DhcpWords) -> None:
    """What it is told by DHCP is of the kinds that it must be; the values were looked at when it was made."""
    for name, kind in (("on", bool), ("lease", int), ("prefix", int)):
        value = getattr(words, name)
        _need(value is None or type(value) is kind, f"what it is told by DHCP: {name} {value!r}")


def key_of(s: Session) -> tuple[str, int, int, int]:
    return s.remote, s.remote_port, s.inside_port, s.protocol


def _check_mappings(saved: Saved, block: range) -> dict[tuple[int, int], int]:
    """(protocol, inside port) -> outside port."""
    ports: dict[tuple[int, int], int] = {}
    for m in saved.mappings:
        _need(m.protocol in _WITH_PORTS and m.inside_port < 65536, "a mapping")
        _need(m.outside_port in block, f"outside port {m.outside_port}, which is not the domain's")
        _need(0 < m.left_ms <= WEEK_S * 1000, "a mapping's time")
        ports[m.protocol, m.inside_port] = m.outside_port
    outside = {(protocol, port) for (protocol, _), port in ports.items()}
    _need(len(ports) == len(outside) == len(saved.mappings), "a port that is mapped twice")
    return ports


def _check_session(s: Session) -> None:
    remote = IPv4Address(s.remote)
    _need(str(remote) == s.remote, "the remote's address")
    _need(max(s.remote_port, s.inside_port, s.outside_port) < 65536 and s.protocol < 256, "a session's ports")
    _need(0 < s.left_ms <= WEEK_S * 1000, "a session's time")
    over_tcp = TcpState.TCP_OPENING <= s.tcp_state < TcpState.TCP_STATES
    _need(over_tcp if s.protocol == TCP else s.tcp_state == TcpState.TCP_NONE, f"TCP state {s.tcp_state}")
    if s.peer is None:
        _need(s.protocol in _WITH_PORTS, f"protocol {s.protocol} with the LAN")
        _need(remote not in POOL and not any(remote in net for net in _NEVER_ON_THE_LAN), f"{remote} on the LAN")


def read(file: Path) -> Saved:
    """The file, whole and checked. UsageError if it can't be read."""
    try:
        with file.open("rb") as handle:
            raw = handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    if len(raw) > MOST_BYTES:
        raise VfrError(f"{file} is too long for a saved domain")
    return decode(raw, str(file))


def check_target(file: Path) -> None:
    """What can be said before the domain is stopped."""
    if file.exists() or file.is_symlink():
        raise ConflictError(f"{file} is there already, and may be all there is of a domain; choose another name")
    if not file.parent.is_dir():
        raise UsageError(f"there is no directory {str(file.parent)!r}")


def write(saved: Saved, file: Path, step: Callable[[str], None]) -> None:
    """On disk and under its name, or not at all; readable by root only. VfrError if the disk refuses."""
    fresh = file.with_name(f".{file.name}.vfr-saving")
    try:
        try:
            fresh.unlink(missing_ok=True)
            step(f"write {fresh}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as handle:
                handle.write(encode(saved))
                handle.flush()
                os.fsync(handle.fileno())
            step(f"rename {fresh}")
            fresh.rename(file)
            _sync_directory(file.parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise VfrError(f"{file} cannot be written: {error.strerror}; the domain stays as it was") from None


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
