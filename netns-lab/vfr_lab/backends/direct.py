"""Bare veth pairs, with no host in between: the limit that any backend's speed is measured against.

Nothing is isolated, translated or forwarded, so attacks say nothing about it. web and db have their usual
addresses on one pair; web has one more pair to lan1 and one to dom0, with addresses from 203.0.113.0/24. No other
two nodes are connected by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfr_lab.backends import Backend, wiring

if TYPE_CHECKING:
    from vfr_lab.lab import Lab
    from vfr_lab.scenario import Guest


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair."""

    node: str
    interface: str
    address: str


PAIRS = (
    (End("web", "eth0", "169.254.1.2"), End("db", "eth0", "169.254.1.3")),
    (End("web", "direct-lan1", "203.0.113.10"), End("lan1", "direct-web", "203.0.113.11")),
    (End("web", "direct-dom0", "203.0.113.20"), End("dom0", "vif-web", "203.0.113.21")),
)


class DirectBackend(Backend):
    """A pair for each two nodes of PAIRS."""

    name = "direct"
    sentence = "bare veth pairs web-db, web-lan1 and web-dom0: the speed limit, isolating nothing"
    programs: tuple[str, ...] = ("ip",)
    judged = False

    def up(self, lab: Lab) -> None:
        self.down(lab)
        for one, other in PAIRS:
            self._connect(lab, one, other)

    def down(self, lab: Lab) -> None:
        for one, _ in PAIRS:
            wiring.remove(lab, one.node, [one.interface])

    def attach(self, lab: Lab, guest: Guest) -> None:
        """Every pair that has an end in this guest."""
        for one, other in PAIRS:
            if guest.name in (one.node, other.node):
                self._connect(lab, one, other)

    def detach(self, lab: Lab, guest: Guest) -> None:
        for one, other in PAIRS:
            if guest.name in (one.node, other.node):
                wiring.remove(lab, one.node, [one.interface])

    def reload(self, lab: Lab) -> None:
        """There is no configuration."""

    def vif(self, lab: Lab, guest: Guest) -> str:
        """LookupError for guests other than web, which have no interface in dom0."""
        return _end(guest.name, "dom0").interface

    def address(self, lab: Lab, frm: str, to: str) -> str:
        """LookupError for two nodes that have no pair."""
        return _end(frm, to).address

    @staticmethod
    def _connect(lab: Lab, one: End, other: End) -> None:
        peer = ("peer", "name", other.interface, "netns", lab.netns(other.node))
        lab.ip(one.node, "link", "add", one.interface, "type", "veth", *peer)
        for end, far in ((one, other), (other, one)):
            lab.ip(end.node, "address", "add", end.address, "peer", far.address, "dev", end.interface)
            lab.ip(end.node, "link", "set", end.interface, "up")


def _end(frm: str, to: str) -> End:
    """The end in `to` of the pair that it has with `frm`."""
    for pair in PAIRS:
        nodes = {end.node: end for end in pair}
        if nodes.keys() == {frm, to}:
            return nodes[to]
    raise LookupError(f"{frm} and {to} are not directly connected")
