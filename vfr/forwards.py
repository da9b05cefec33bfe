"""Forwards: which outside ports lead to whom, and whether they may. Pure.

There are those of `vfr nat enable`, by which 2200+x leads to ssh of 169.254.1.x, and those of the rule file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vfr.errors import ConflictError
from vfr.policy import Document, ForwardRule, RuleError
from vfr.policy.language import range_text
from vfr.registry import Contents, Nat

POOL = IPv4Network("169.254.1.0/24")
FORWARD_BASE, SSH = 2200, 22


@dataclass(frozen=True, slots=True)
class Way:
    """An outside port, or a range (low, high), that leads to a domain's ports from `inside` on. `host_only` leads there
    from the host itself and not from the LAN."""

    protocol: str
    outside: tuple[int, int]
    slot: int
    address: IPv4Address
    inside: int
    host_only: bool = False


def ssh_port(address: IPv4Address, nat: Nat | None) -> int | None:
    """The outside port that leads to ssh of this address, None if none does."""
    if nat is None or address not in POOL:
        return None
    x = int(address) - int(POOL.network_address)
    return FORWARD_BASE + x if nat.forwards[0] <= x <= nat.forwards[1] else None


def ways(contents: Contents, has_uplink: bool) -> tuple[Way, ...]:
    """Every forward that leads to somebody; without an uplink, only the host's own."""
    found: list[Way] = []
    for d in contents.domains:
        port = ssh_port(d.address, contents.nat)
        if port is not None and has_uplink:
            found.append(Way("tcp", (port, port), d.slot, d.address, SSH))
    by_name = {d.name: d for d in contents.domains}
    for forward in contents.rules.forwards if contents.rules else ():
        target, host_only = by_name.get(forward.domain), forward.host_only
        if target and (has_uplink or host_only):
            at = forward.inside[0]
            found.append(Way(forward.protocol, forward.outside, target.slot, target.address, at, host_only))
    return tuple(found)


def _trouble(forward: ForwardRule, nat: Nat | None, listeners: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """What stands in the way of a forward, and the way out."""
    low, high = forward.outside
    ports = f"{forward.protocol} port {range_text(forward.outside)}"
    if nat and low <= nat.ports[1] and nat.ports[0] <= high:
        yield f"{ports} lies in {range_text(nat.ports)}, which domains' connections go out by; choose another"
    if nat and forward.protocol == "tcp":
        ssh = (FORWARD_BASE + nat.forwards[0], FORWARD_BASE + nat.forwards[1])
        if low <= ssh[1] and ssh[0] <= high:
            yield f"{ports} meets {range_text(ssh)}, which lead to ssh; choose another, or fewer `ssh` in the nat line"
    if forward.where and not forward.host_only and (not nat or forward.where not in (nat.uplink, str(nat.address))):
        known = f"{nat.uplink}, {nat.address}, " if nat else ""
        yield f"{forward.where!r} is not where VFR meets the LAN; a forward may be on {known}lo or 127.0.0.1"
    taken = sorted(port for protocol, port in listeners if protocol == forward.protocol and low <= port <= high)
    if taken:
        yield f"a program of the host listens on {forward.protocol} port {taken[0]}; end it, or choose another port"


def check(document: Document, contents: Contents, listeners: Mapping[tuple[str, int], str]) -> None:
    """RuleError for a forward that can't be. `listeners` are the (protocol, port) of the host's own sockets."""
    file = contents.rules.file if contents.rules else ""
    source = contents.rules.text.splitlines() if contents.rules else []
    for forward, (line, column) in zip(document.forwards, document.places, strict=True):
        for trouble in _trouble(forward, contents.nat, listeners):
            raise RuleError(file, line, column, trouble, source[line - 1])
    names = {d.name for d in contents.domains}
    for name in names & {*document.rules.groups, *document.rules.sets}:
        raise ConflictError(f"{name!r} is a domain, and a group or set of {file}; give one of them another name")


__all__ = ["FORWARD_BASE", "POOL", "SSH", "Way", "check", "ssh_port", "ways"]
