"""The bench's lab: no switch between the host and the LAN's machine, and the two guests may speak to each other.

    web 169.254.1.2    db .3    ci .7
         |              |        |
         +------------ dom0 -----+
                         | eth0 192.0.2.1
                         | eth0 192.0.2.11
                        lan1

A switch would be on every backend's way, and not on that of the direct pair that they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vfr_lab.backends import Backend, backend
from vfr_lab.backends.vfr import VfrBackend
from vfr_lab.lab import Lab, LabError
from vfr_lab.scenario import BENCH

RULES = "allow any -> lan\nallow lan -> any tcp 22\nallow dom0 -> any\n"
WEB, DB = BENCH.guests[:2]


@contextmanager
def lab(prefix: str) -> Iterator[Lab]:
    """A lab for the block, wired by the direct backend. LabError if there is one of this prefix already."""
    one = Lab(BENCH, prefix, backend("direct"))
    if one.is_up():
        raise LabError(f"there is a lab {prefix} already; take it down, or choose another --prefix")
    try:
        one.up()
        _lay_cable(one)
        yield one
    finally:
        one.down()


def _lay_cable(one: Lab) -> None:
    """dom0 and lan1 on one cable, in place of theirs to the switch."""
    dom0, lan1 = one.scenario.dom0, one.scenario.lan[0]
    for host in (dom0, lan1):
        one.ip("switch", "link", "del", host.name)
    one.ip("dom0", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", one.netns(lan1.name))
    for host in (dom0, lan1):
        one.ip(host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        one.ip(host.name, "link", "set", "eth0", "up")
        one.ip(host.name, "route", "add", "default", "via", str(host.gateway))


def wire(one: Lab, by: Backend) -> None:
    """Has the backend wire the guests, and lets web and db speak to each other if it has a means for it."""
    one.rewire(by)
    if isinstance(by, VfrBackend):
        apply(one, by, f"{RULES}allow {WEB.name} -> {DB.name}\nallow {DB.name} -> {WEB.name}\n")
    elif by.name == "routed":
        for frm, to in ((WEB, DB), (DB, WEB)):
            rule = f'iifname "{by.vif(one, frm)}" oifname "{by.vif(one, to)}" accept'
            one.exec("dom0", "nft", f"add rule inet routed forward {rule}")


def apply(one: Lab, by: VfrBackend, rules: str) -> None:
    """Puts VFR rules in force, by its command."""
    path = one.files / "bench.rules"
    path.write_text(rules)
    one.exec("dom0", by.command, "apply", str(path), timeout=600)
