"""What bursts take for granted about interfaces: one request sets much, and a group goes in one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.netns import inside, namespaces, run

from vfr.kernel import links
from vfr.kernel.rtnl import Rtnl

NS, GROUP, OTHER = "k-if", 7, 8


def _pairs(kernel: Rtnl, **groups: int) -> None:
    ends = "02:00:00:00:00:01", "02:00:00:00:00:02", 1400
    asked = [links.veth(name, f"{name}p", *ends, group) for name, group in groups.items()]
    assert kernel.ask_each(asked) == [0] * len(asked)


def test_a_group_is_deleted_at_once_and_nobody_else() -> None:
    def work() -> set[str]:
        with Rtnl("testing") as kernel:
            _pairs(kernel, k0=GROUP, k1=GROUP, k2=OTHER, k3=0)
            kernel.do(*links.changed(links.there("k2").index, group=GROUP))
            kernel.do(*links.no_group(GROUP))
        return set(links.links())

    with namespaces(NS):
        assert inside(NS, work) == {"lo", "k3", "k3p"}


def test_one_request_sets_flags_alias_group_and_ipv4_settings() -> None:
    """And the kernel's own files say so."""
    settings = {"rp_filter": 1, "forwarding": 0, "accept_redirects": 0}

    def work() -> links.Link:
        with Rtnl("testing") as kernel:
            _pairs(kernel, k0=0)
            asked = links.changed(links.there("k0").index, noarp=True, alias="what", group=GROUP, conf=settings)
            kernel.do(*asked)
        return links.there("k0")

    with namespaces(NS):
        run("ip", "netns", "exec", NS, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        link = inside(NS, work)
        assert (link.noarp, link.alias, link.group, link.up, link.mtu) == (True, "what", GROUP, False, 1400)
        for name, value in settings.items():
            assert run("ip", "netns", "exec", NS, "cat", f"/proc/sys/net/ipv4/conf/k0/{name}").strip() == str(value)


def test_what_is_refused_stops_none_of_the_others() -> None:
    def work() -> tuple[list[int], set[str]]:
        ends = "02:00:00:00:00:01", "02:00:00:00:00:02", 1400
        with Rtnl("testing") as kernel:
            said = kernel.ask_each([links.veth(name, f"{name}p", *ends) for name in ("k0", "lo", "k1")])
        return said, set(links.links())

    with namespaces(NS):
        said, there = inside(NS, work)
        assert [number != 0 for number in said] == [False, True, False] and {"k0", "k1"} <= there


def test_interfaces_are_read_as_ip_reads_them() -> None:
    """The whole list, the one by its name, and the other end's number."""

    def work() -> tuple[dict[str, links.Link], links.Link | None, links.Link | None]:
        with Rtnl("testing") as kernel:
            _pairs(kernel, **{f"k{number}": number for number in range(300)})
        return links.links(), links.link("k7"), links.link("nobody")

    with namespaces(NS):
        found, seventh, nobody = inside(NS, work)
        said = subprocess.run(["ip", "-n", NS, "-o", "link"], capture_output=True, text=True, check=True).stdout
        shown = {
            line.split()[1].rstrip(":").partition("@")[0]: int(line.partition(":")[0]) for line in said.splitlines()
        }
        assert {name: link.index for name, link in found.items()} == shown and len(shown) == 601
        assert seventh == found["k7"] and nobody is None
        assert seventh is not None and seventh.group == 7 and seventh.peer == found["k7p"].index
        assert (seventh.kind, seventh.mac) == ("veth", "02:00:00:00:00:01")
        assert not Path("/sys/class/net/k7").exists(), "it was another namespace"
