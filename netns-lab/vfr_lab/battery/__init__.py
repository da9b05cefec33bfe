"""The attack battery: small declared attacks, run alike against every backend.

An attack is a function that attacks, and returns what the attacker got, as lines of text: none means that the
backend held. Before it believes an absence it shows by `stage.control` that the attack was really mounted
and that the witness can see. Its docstring is what the report says of it.

    @attack("identity", tool="scapy", falls="bridge")
    def source_address_of_another(s: Stage) -> list[str]:
        '''web sends in db's name.

        A datagram to lan1 that bears db's address ... lan1 must not receive it.
        '''

`falls` names the backends on which it must succeed: an attack that succeeds nowhere shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vfr_lab.battery.stage import Stage

FAMILIES = {
    "identity": "to be taken for somebody else",
    "eavesdropping": "to receive what is for others",
    "reach": "to reach what is out of bounds",
    "leak": "to have packets escape that nobody was to see",
    "hijack": "to break into others' conversations",
    "starve": "to use up what others need",
    "host": "to harm the host's own kernel and services",
    "inheritance": "to receive what was meant for a former tenant",
    "lan": "to attack guests and host from the LAN",
}
Outcome = Literal["held", "fell", "void"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack. `leaves`: it may leave state behind, so that the backend is wired anew after it.

    `alone`: it uses up what all network namespaces of the machine share, so that no other lab may be at work.
    """

    name: str
    family: str
    sentence: str
    detail: str
    tool: str
    falls: tuple[str, ...]
    leaves: bool
    alone: bool
    mount: Callable[[Stage], list[str]]

    @property
    def id(self) -> str:
        return f"{self.family}/{self.name}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one attack on one backend. "void" means that it proved nothing: a control failed, or an error.

    `sent` is what was done, `controls` what was made sure of, `seen` what the attacker got, or why it is void;
    `capture` a pcap file of all that was watched.
    """

    attack: str
    backend: str
    outcome: Outcome
    sent: tuple[str, ...]
    controls: tuple[str, ...]
    seen: tuple[str, ...]
    seconds: float
    capture: str | None = None


_ATTACKS: dict[str, Attack] = {}


def attack(
    family: str, *, tool: str, falls: str | tuple[str, ...], leaves: bool = False, alone: bool = False
) -> Callable[[Callable[[Stage], list[str]]], Callable[[Stage], list[str]]]:
    """Declares a function as an attack; its name and docstring are the attack's."""

    def declare(mount: Callable[[Stage], list[str]]) -> Callable[[Stage], list[str]]:
        assert family in FAMILIES, f"{mount.__name__}: there is no family {family!r}"
        assert mount.__doc__, f"{mount.__name__} has no docstring"
        sentence, _, detail = mount.__doc__.strip().partition("\n")
        known = (falls,) if isinstance(falls, str) else falls
        name = mount.__name__.replace("_", "-")
        one = Attack(name, family, sentence, " ".join(detail.split()), tool, known, leaves, alone, mount)
        assert one.id not in _ATTACKS, f"there are two attacks {one.id}"
        _ATTACKS[one.id] = one
        return mount

    return declare


def attacks() -> tuple[Attack, ...]:
    """All of them, by family."""
    for family in FAMILIES:
        import_module(f"vfr_lab.battery.{family}")
    order = list(FAMILIES)
    return tuple(sorted(_ATTACKS.values(), key=lambda a: order.index(a.family)))


__all__ = ["FAMILIES", "Attack", "Outcome", "Result", "attack", "attacks"]
