"""The safety net in nftables, and the redirect by which the host itself uses its forwards.

Two tables of our own, `inet vfr` and `arp vfr`, written in one transaction; nobody else's are touched.
While the fastpath is in place the net costs nothing, since no frame of a VIF ever gets this far.

VIFs are known to it by their interface group, which they are made with: so it stays as it is when domains come and go, and
no interface is ever there before its name is on a list.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vfr.errors import KernelError
from vfr.forwards import Way

_TABLES = ("inet vfr", "arp vfr")
GROUP = 0x564652  # "VFR": all VIFs and the sorter
LEAVING = GROUP + 1  # those that are about to be deleted, all of the group at once


@dataclass(frozen=True, slots=True)
class Guard:
    """What the tables are to say."""

    pool: IPv4Network
    gateway: IPv4Address
    uplink: str | None = None
    outside: IPv4Address | None = None
    forwards: tuple[Way, ...] = ()

    def text(self) -> str:
        """The nft script that makes it so."""
        return "\n".join([*_replace(), _inet(self), _arp(self), ""])


def _replace() -> Iterable[str]:
    """Empties the tables in the same transaction; `add` first, since deleting what is not there fails."""
    for table in _TABLES:
        yield f"add table {table}"
        yield f"delete table {table}"


def _redirect(way: Way, outside: IPv4Address | None) -> str:
    """One rule, also for a range. Ports that are another inside need a map to go one by one."""
    (low, high), inside = way.outside, way.inside
    local = "127.0.0.1" if way.host_only or outside is None else f"{{ 127.0.0.1, {outside} }}"
    if low == high:
        return f"ip daddr {local} {way.protocol} dport {low} dnat ip to {way.address}:{inside}"
    if low == inside:
        return f"ip daddr {local} {way.protocol} dport {low}-{high} dnat ip to {way.address}"
    each = ", ".join(f"{port} : {way.address} . {inside + port - low}" for port in range(low, high + 1))
    return f"ip daddr {local} dnat ip to {way.protocol} dport map {{ {each} }}"


def _inet(guard: Guard) -> str:
    leaks = []
    if guard.uplink:
        leaks = [f'oifname "{guard.uplink}" ip {side} {guard.pool} drop' for side in ("saddr", "daddr")]
    redirects = [_redirect(way, guard.outside) for way in guard.forwards]
    snat = [f'oifname "vfr0" ct status dnat snat ip to {guard.gateway}'] if redirects else []
    return f"""table inet vfr {{
  chain from_vifs {{
    type filter hook prerouting priority -400; policy accept;
    iifgroup {{ {GROUP}, {LEAVING} }} drop
  }}
  chain to_lan {{
    type filter hook postrouting priority 300; policy accept;
    {_lines(leaks)}
  }}
  chain own_forwards {{
    type nat hook output priority -100; policy accept;
    {_lines(redirects)}
  }}
  chain own_source {{
    type nat hook postrouting priority 100; policy accept;
    {_lines(snat)}
  }}
}}"""


def _arp(guard: Guard) -> str:
    leaks = [f'oifname "{guard.uplink}" arp saddr ip {guard.pool} drop'] if guard.uplink else []
    return f"""table arp vfr {{
  chain from_vifs {{
    type filter hook input priority 0; policy accept;
    iifgroup {{ {GROUP}, {LEAVING} }} drop
  }}
  chain to_lan {{
    type filter hook output priority 0; policy accept;
    {_lines(leaks)}
  }}
}}"""


def _lines(rules: Iterable[str]) -> str:
    return "\n    ".join(rules)


def _nft(script: str, operation: str) -> str:
    try:
        done = subprocess.run(["nft", "-f", "-"], input=script, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise KernelError(operation, 2, "the nft command is missing: apt install nftables") from None
    if done.returncode:
        raise KernelError(operation, 22, done.stderr.strip())
    return done.stdout


def _listing() -> str | None:
    """Our tables as they are now, None unless both are there. One at a time: nft 1.0.6 lists no second family's in one
    go, and says that it is not there."""
    found = []
    for table in _TABLES:
        done = subprocess.run(["nft", "list", "table", *table.split()], text=True, capture_output=True, check=False)
        if done.returncode:
            return None
        found.append(done.stdout)
    return "".join(found)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_there() -> bool:
    """Whether there is a table of ours, whatever it says."""
    done = subprocess.run(["nft", "list", "tables"], text=True, capture_output=True, check=False)
    return any(f"table {table}" in done.stdout.splitlines() for table in _TABLES)


def in_force(note: Path) -> str | None:
    """The hash of the script that was put in force, None if anybody has changed its tables since.

    `note` is the file where install() left how the tables looked.
    """
    listing = _listing()
    if listing is None or not note.exists():
        return None
    wanted, _, seen = note.read_text().partition(" ")
    return wanted if seen == _hash(listing) else None


def install(guard: Guard, note: Path) -> None:
    """Puts the tables in force, at once and whole."""
    _nft(guard.text(), "writing the nftables guard")
    note.write_text(f"{_hash(guard.text())} {_hash(_listing() or '')}")


def is_wanted(guard: Guard, hash_in_force: str | None) -> bool:
    """Whether what is in force is this."""
    return hash_in_force == _hash(guard.text())


def remove() -> None:
    """Deletes our tables; fine if they are gone."""
    _nft("\n".join([*_replace(), ""]), "removing the nftables guard")
