"""The router as one file: from what the registry says to text. Pure."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass

from vfr.policy.language import DhcpLine, DomainLine, NatLine
from vfr.policy.rules import ANY
from vfr.registry import Contents, Domain, Nat
from vfr.settings import DhcpWords, Limits


@dataclass(frozen=True, slots=True)
class Preview:
    """What an apply would do: the steps, and what could talk to what that can't now (+), or no more (-)."""

    file: str
    steps: tuple[str, ...]
    reach: tuple[str, ...]


def _domain_line(d: Domain) -> DomainLine:
    place = d.netns if d.kind == "netns" else d.interface
    usual, limits = asdict(Limits()), asdict(d.limits)
    own = tuple((name, number) for name, number in limits.items() if number != usual[name])
    guest = tuple((name, str(value)) for name, value in asdict(d.guest).items() if value is not None)
    return DomainLine(d.name, d.kind, place or "", str(d.address), d.mac, own, guest)


def _nat_line(nat: Nat) -> NatLine:
    return NatLine(nat.uplink, str(nat.address), nat.ports, nat.ports_per_domain, nat.forwards, nat.uplink_rate)


_BETTER_SAID = (["nat"], ["domain"], ["dhcp"])


def _rule_lines(contents: Contents) -> list[str]:
    """The rule file without the lines that say what the registry says better."""
    if contents.rules is None:
        return []
    return [line for line in contents.rules.text.splitlines() if line.split()[:1] not in _BETTER_SAID]


def exported(contents: Contents) -> str:
    """A file that says all of it."""
    lines = [str(_nat_line(contents.nat)) if contents.nat else "nat off"]
    lines += [str(_domain_line(d)) for d in contents.domains] or ["domain none"]
    lines.append(str(DhcpLine(ANY, DhcpWords(*astuple(contents.dhcp)))))
    lines += [str(DhcpLine(d.name, d.dhcp)) for d in contents.domains if d.dhcp.said()]
    rules = _rule_lines(contents)
    while rules and not rules[0].strip():
        rules.pop(0)
    return "\n".join([*lines, *([""] if rules else []), *rules]) + "\n"


__all__ = ["Preview", "exported"]
