"""`vfr events`: drops, and what rules with `log` let begin, as they happen, at a rate that no flood raises.

guest vt-a --- vt-dom0 --- eth0 192.0.2.1 --- vt-lan 192.0.2.11
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.host import Host, run

FLOOD = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(300):
    s.sendto(b"x", ("169.254.1.9", 9))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("vt") as one:
        one.vfr("nat", "enable", "--uplink", "eth0")
        one.add("a")
        yield one


def _events(host: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.vfr("events", "--wait", "0.1", "--json").stdout.splitlines()]


def _flood(host: Host) -> None:
    run("ip", "netns", "exec", host.ns("a"), sys.executable, "-c", FLOOD)


def test_a_drop_is_told_of_once(host: Host) -> None:
    _events(host)
    host.sh("a", "ping -n -c1 -W1 169.254.1.0", check=False)
    (event,) = [e for e in _events(host) if e["protocol"] == "icmp"]
    assert (event["who"], event["verdict"], event["src"], event["dst"]) == (
        "a",
        "DROP_POLICY",
        "169.254.1.2",
        "169.254.1.0",
    )


RULES = """\
# the second line
allow a -> lan log comment "the way out"
deny a -> 192.0.2.12 icmp
"""


def test_a_rule_that_logs_tells_of_what_it_lets_begin(host: Host, tmp_path: Path) -> None:
    """Once for a conversation, with the rule, its file and line; and a drop says which rule denied it."""
    (tmp_path / "told.rules").write_text(RULES)
    host.vfr("apply", str(tmp_path / "told.rules"))
    try:
        _events(host)
        host.sh("a", "ping -n -c3 -i0.01 -W1 192.0.2.11; ping -n -c1 -W1 192.0.2.12", check=False)
        began, denied = [e for e in _events(host) if e["protocol"] == "icmp"]
        assert (began["kind"], began["who"], began["verdict"], began["dst"]) == ("begin", "a", "TO_LAN", "192.0.2.11")
        assert began["rule"] == 'allow a -> lan log comment "the way out"' and began["where"] == "told.rules:2"
        assert (denied["kind"], denied["verdict"], denied["where"]) == ("drop", "DROP_POLICY", "told.rules:3")
        counted = {r["where"]: r["packets"] for r in host.json("stats", "--rules")}
        assert counted == {"told.rules:2": 1, "told.rules:3": 1}
    finally:
        host.vfr("apply", str(Path(__file__).parents[2] / "rules" / "xen.rules"))


@pytest.mark.inv(7)
def test_a_flood_is_told_of_at_a_rate_and_what_is_not_told_is_counted(host: Host) -> None:
    host.vfr("domain", "limit", "a", "--events-per-s", "10")
    _events(host)
    before = host.json("stats", "a")["a"].get("DROP_NO_DOMAIN", {"packets": 0})["packets"]
    _flood(host)
    told = [e for e in _events(host) if e["verdict"] == "DROP_NO_DOMAIN"]
    after = host.json("stats", "a")["a"]["DROP_NO_DOMAIN"]["packets"]
    assert after - before == 300, "every one is counted"
    assert 1 <= len(told) <= 30, "a burst of a second's worth, and a few"
    run("sleep", "0.3")  # until the allowance has room for one again
    _flood(host)
    assert any(e["untold"] > 200 for e in _events(host))


def test_nothing_is_told_where_nothing_is_wanted(host: Host) -> None:
    host.vfr("domain", "limit", "a", "--events-per-s", "0")
    _events(host)
    _flood(host)
    assert [e for e in _events(host) if e["who"] == "a"] == []
