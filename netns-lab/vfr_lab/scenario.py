"""What a lab consists of, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LanHost:
    """A machine on the LAN's switch. `gateway` is its default route; `serves` starts the echo service."""

    name: str
    address: str
    gateway: str | None = None
    serves: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain. `forward` is the LAN port that is to lead to its port 22, where an sshd of its own is, or is not."""

    name: str
    address: str
    forward: int | None = None
    sshd: bool = True


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host (dom0) with guests, on a LAN behind a router."""

    name: str
    dom0: LanHost
    lan: tuple[LanHost, ...]
    router: LanHost
    inet_gateway: str
    inet: LanHost
    guests: tuple[Guest, ...]

    @property
    def hosts(self) -> tuple[LanHost, ...]:
        """All that are no guests."""
        return (self.dom0, *self.lan, self.router, self.inet)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node's name, the switch included."""
        return ("switch", *(h.name for h in self.hosts), *(g.name for g in self.guests))


#    web 169.254.1.2    db .3    ci .7    far .30    odd 198.18.0.77
#         |              |        |         |            |
#         +--------------+----- dom0 -------+------------+
#                                | eth0 192.0.2.1
#    lan1 192.0.2.11 ------- [ switch ] ------- lan2 192.0.2.12
#                                | 192.0.2.254
#                             router
#                                | 198.51.100.1
#                              inet 198.51.100.9
XEN = Scenario(
    name="xen",
    dom0=LanHost("dom0", "192.0.2.1", "192.0.2.254"),
    lan=(
        LanHost("lan1", "192.0.2.11", "192.0.2.254", serves=True),
        LanHost("lan2", "192.0.2.12", "192.0.2.254"),
    ),
    router=LanHost("router", "192.0.2.254"),
    inet_gateway="198.51.100.1",
    inet=LanHost("inet", "198.51.100.9", "198.51.100.1", serves=True),
    guests=(
        Guest("web", "169.254.1.2", 2202),
        Guest("db", "169.254.1.3", 2203),
        Guest("ci", "169.254.1.7", 2207),
        Guest("far", "169.254.1.30"),
        Guest("odd", "198.18.0.77"),
    ),
)
# The same with three guests whose addresses every backend can give: what backends are judged by.
JUDGE = replace(XEN, name="judge", guests=XEN.guests[:3])
# For measuring: nothing but what is measured runs, and a guest's port 22 is free for the end of a forward.
BENCH = replace(
    JUDGE,
    name="bench",
    lan=(replace(XEN.lan[0], serves=False),),
    inet=replace(XEN.inet, serves=False),
    guests=tuple(replace(guest, sshd=False) for guest in JUDGE.guests),
)
SCENARIOS = {s.name: s for s in (XEN, JUDGE, BENCH)}
