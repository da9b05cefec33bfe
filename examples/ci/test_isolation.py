"""What this house's rules promise."""

from itertools import combinations

import pytest

GUESTS = ("web", "db", "ci")


@pytest.mark.lab_rules("web-to-db.rules")
def test_a_database_for_web(isolation_lab):
    isolation_lab.assert_reaches("web", "db", tcp=5432)
    isolation_lab.assert_not_reaches("web", "db", tcp=22, udp=53, ping=True)
    isolation_lab.assert_not_reaches("db", "web")


@pytest.mark.parametrize(("a", "b"), list(combinations(GUESTS, 2)))
def test_guests_are_apart(isolation_lab, a, b):
    isolation_lab.assert_isolated(a, b)


def test_a_guest_reaches_the_internet_but_not_the_host(isolation_lab):
    isolation_lab.assert_reaches("web", "inet", tcp=443, udp=53, ping=True)
    isolation_lab.assert_not_reaches("web", "dom0")


def test_ssh_from_the_lan_leads_to_web_only(isolation_lab):
    isolation_lab.assert_reaches("lan1", "web", tcp=22)
    isolation_lab.assert_not_reaches("lan1", "db", tcp=22)


def test_the_lan_sees_the_hosts_address_only(isolation_lab):
    with isolation_lab.watch("lan1") as seen:
        isolation_lab.assert_reaches("web", "lan1", udp=53)
    senders = {frame.packet["IP"].src for frame in seen.frames if "IP" in frame.packet}
    assert senders == {"192.0.2.1"}
