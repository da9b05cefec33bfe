"""Where isolation is tested: a lab of ours, or network namespaces that somebody else made and wired."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Protocol

from vfr_lab.lab import NETNS, Lab, LabError, run

if TYPE_CHECKING:
    from vfr_lab.node import Place

SSH = 22


def is_address(text: str) -> bool:
    """Whether it is an IPv4 address, and no name."""
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


class Ground(Protocol):
    """Who is where: how nodes' commands run, and by which address and port one speaks to another.

    Each method raises LabError for a name there is not, with the names there are.
    """

    place: Place
    title: str

    def address(self, frm: str, to: str) -> str:
        """The address by which `frm` knows `to`."""

    def way(self, frm: str, to: str, protocol: str, port: int) -> tuple[str, int]:
        """The address and port by which `frm` reaches `port` of `to`. LabError if there is no such way at all."""

    def check_guests(self, *names: str) -> None:
        """LabError if one of them is not such that it could be isolated from another."""

    def filters(self, name: str) -> bool:
        """Whether it filters for the guests: what its interface receives has then not reached it yet."""

    def witness(self, *but: str) -> str:
        """What everybody reaches who is alive: a node that is none of these, or an address that answers pings."""


class LabGround:
    """A lab. Its guests' witness is a host on the LAN."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.place: Place = lab
        self.title = f"the lab's guests, wired by {lab.backend.name}"

    def address(self, frm: str, to: str) -> str:
        known = sorted({*self.lab.scenario.nodes} - {"switch"})
        if lost := {frm, to} - {*known}:
            raise LabError(f"there is no {' and no '.join(sorted(lost))}; there are: {', '.join(known)}")
        return self.lab.backend.address(self.lab, frm, to)

    def way(self, frm: str, to: str, protocol: str, port: int) -> tuple[str, int]:
        """From the LAN to a guest, the forward."""
        address = self.address(frm, to)
        guests = {g.name: g for g in self.lab.scenario.guests}
        if to not in guests or frm in guests or frm == self.lab.scenario.dom0.name:
            return address, port
        forward = guests[to].forward
        if forward is None or (protocol, port) != ("tcp", SSH):
            raise LabError(f"from {frm} the only way to {to} is tcp={SSH}, by its forward")
        return address, forward

    def check_guests(self, *names: str) -> None:
        guests = [g.name for g in self.lab.scenario.guests]
        if others := [n for n in names if n not in guests]:
            raise LabError(
                f"{' and '.join(others)}: no guest; there are {', '.join(guests)}. Of others, say assert_not_reaches(a, b)"
            )

    def filters(self, name: str) -> bool:
        return name == self.lab.scenario.dom0.name

    def witness(self, *but: str) -> str:
        return next(h.name for h in self.lab.scenario.lan if h.name not in but)


class NetnsGround:
    """Network namespaces by name, wired by somebody else: nothing of theirs is changed.

    `addresses` says by which address one is spoken to, if not by its interface's own; `witness` is another namespace,
    which all of them reach, or an IPv4 address that answers their pings.
    """

    def __init__(self, names: Sequence[str], witness: str, addresses: Mapping[str, str]) -> None:
        self.names, self._witness, self._addresses = names, witness, addresses
        self.place: Place = self
        self.title = f"the namespaces {', '.join(names)}"
        named = [*names, *([] if is_address(witness) else [witness])]
        if lost := [n for n in named if not (NETNS / n).exists()]:
            raise LabError(f"there is no network namespace {', '.join(lost)}; `ip netns list` shows those there are")

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", node, *command]

    def ip(self, node: str, *arguments: str) -> str:
        return run(["ip", "-n", node, *arguments]).stdout

    def exec(
        self, node: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return run(self.argv(node, command), check=check, timeout=timeout)

    def address(self, frm: str, to: str) -> str:
        if to in self._addresses:
            return self._addresses[to]
        links = json.loads(self.ip(to, "-j", "-4", "address", "show", "up"))
        own = [a["local"] for link in links if link["ifname"] != "lo" for a in link["addr_info"]]
        if not own:
            raise LabError(f"{to} has no IPv4 address; say by which it is spoken to: addresses={{{to!r}: ...}}")
        return str(own[0])

    def way(self, frm: str, to: str, protocol: str, port: int) -> tuple[str, int]:
        return self.address(frm, to), port

    def check_guests(self, *names: str) -> None:
        if others := [n for n in names if n not in self.names]:
            raise LabError(f"{' and '.join(others)}: none of {', '.join(self.names)}")

    def filters(self, name: str) -> bool:
        return name not in self.names

    def witness(self, *but: str) -> str:
        return self._witness
