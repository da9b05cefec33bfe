"""What `vfr doctor` is to know of the router itself."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from vfr.choose import FORWARDS
from vfr.doctor import ForwardTo
from vfr.forwards import FORWARD_BASE
from vfr.policy.rules import WITH_PORTS, Party, Traffic
from vfr.registry import Contents, Nat
from vfr.status import forward_statuses
from vfr.wanted import lan_of, rules_of

if TYPE_CHECKING:
    from vfr.policy import RuleSet

_SOMEBODY = IPv4Address("203.0.113.1")  # on the internet, where it does not matter who


def forwards_to(contents: Contents) -> tuple[ForwardTo, ...]:
    """Where each outside port leads, and whether a rule lets somebody on the LAN go there. Without a router, those that
    `vfr nat enable` would make."""
    if contents.is_empty:
        return tuple(ForwardTo(FORWARD_BASE + x, None, False) for x in range(FORWARDS[0], FORWARDS[1] + 1))
    rules, lan = rules_of(contents), lan_of(contents.nat)
    found = []
    for f in forward_statuses(contents):
        for more in range(f.ports if f.on == "lan" else 0):
            traffic = Traffic(WITH_PORTS[f.protocol], f.inside_port + more)
            allowed = f.domain is not None and lan_may(rules, f.domain, traffic, lan)
            found.append(ForwardTo(f.outside_port + more, f.domain if f.address else None, allowed, f.protocol))
    return tuple(found)


def lan_may(rules: RuleSet, domain: str, traffic: Traffic, lan: IPv4Network | None) -> bool:
    """Whether a rule lets somebody behind the uplink open this to a domain: asked for one of each kind of address."""
    about = [r for r in rules.rules if r.action == "allow" and r.speaks_of(traffic)]
    words = {word for r in about for ends in r.directions() for word in ends[0] if rules.is_remote(word)}
    samples = [net[0] for word in words for net in rules.blocks(word)]
    samples += [*([lan[-2]] if lan else []), _SOMEBODY]
    target = Party(domain)
    return any(rules.decide(Party(address=a), target, traffic, lan) == "allow" for a in samples)


def may_reach_dom0(contents: Contents) -> bool:
    """Whether a rule allows some domain something of domain 0."""
    rules = rules_of(contents)
    return any(
        r.action == "allow"
        and any(word in ("any", "dom0") or "dom0" in rules.groups.get(word, ()) for word in targets)
        and any(word not in ("lan", "internet", "dom0") and not rules.is_remote(word) for word in openers)
        for r in rules.rules
        for openers, targets in r.directions()
    )


def lan_lost(nat: Nat) -> str:
    """What is wrong with the uplink, "" if it is as it was when NAT was enabled."""
    from vfr.kernel import links

    link = links.link(nat.uplink)
    if link is None:
        return f"the uplink {nat.uplink} is gone"
    own = [str(a.ip) for index, a in links.addresses() if index == link.index]
    if str(nat.address) not in own:
        return f"the uplink {nat.uplink} has lost the address {nat.address}; it has {', '.join(own) or 'none'}"
    return "" if link.up else f"the uplink {nat.uplink} is down"
