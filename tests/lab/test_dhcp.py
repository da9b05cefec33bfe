"""DHCP by the clients that Debian 12 has, with Debian's own scripts, each in a guest that nobody has configured.

    vd-udhcpc    169.254.1.2 -- veth --.
    vd-dhclient  169.254.1.3 -- veth --|-- vd-dom0 -- eth0 192.0.2.1 (MTU 1400) --- 192.0.2.11 vd-lan
    vd-dhcpcd    169.254.1.4 -- veth --|
    vd-networkd  169.254.1.5 -- veth --'

First each gets its address (a /32, so the router by a route of its own), reaches the LAN, and renews; then the uplink
takes less, which the next renewal tells. Then its domain is another: a clone's, 10.0.2.15/16 behind 10.0.2.2. What it
had is answered NAK, and it becomes what it is now. All four go on side by side, since they only wait; an ear at each
guest's interface hears what is said.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.dhcp import DHCP
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from support.host import Host
from support.netns import packet_socket
from support.private import Private
from support.talk import answers, server

pytestmark = pytest.mark.lab
LEASE_S = 20
WAIT_S = 60
LAN, ROUTER, DNS = "192.0.2.11", "169.254.1.0", "192.0.2.53"
CLONE, CLONE_GATEWAY = "10.0.2.15", "10.0.2.2"
NETWORKD = "/lib/systemd/systemd-networkd"
# How Debian starts each, in the foreground; the program that must be there.
CLIENTS = {
    "udhcpc": ("udhcpc", "udhcpc -f -i eth0"),
    "dhclient": ("dhclient", "dhclient -4 -d eth0"),
    "dhcpcd": ("dhcpcd", "dhcpcd -4 -B eth0"),
    "networkd": (NETWORKD, NETWORKD),
}
# What makes it ask whether its address is still its own. The others do by themselves when the interface comes back.
KICKS = {
    "udhcpc": "kill -USR1 $(cat /run/client.pid)",
    "dhclient": "kill $(cat /run/client.pid); while kill -0 $(cat /run/client.pid); do sleep 0.1; done;"
    " dhclient -4 -d eth0 > /run/client.log 2>&1 &",
}
# udev is nowhere here, and networkd only believes that where /sys cannot be written to, as in a container.
NETWORKD_SETUP = r"""
mkdir -p /etc/systemd/network /run/systemd/netif && rm -f /etc/systemd/network/* && mount -o remount,ro /sys &&
printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' > /etc/systemd/network/eth0.network &&
printf '%032x\n' 7 > /etc/machine-id
"""


class _Guests(Host):
    guests = tuple(CLIENTS)


class Ear:
    """Hears the DHCP that passes a guest's interface: (message, source, target), in order; and the MTU last told."""

    def __init__(self, host: Host, node: str) -> None:
        self.heard: list[tuple[str, str, str]] = []
        self.mtu = 0
        self._socket = packet_socket(host.ns(node), "eth0", 0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        kinds = {1: "discover", 2: "offer", 3: "request", 4: "decline", 5: "ack", 6: "nak", 7: "release"}
        while not self._over.is_set():
            try:
                packet = Ether(self._socket.recv(65536))
            except TimeoutError:
                continue
            if DHCP in packet:
                said = dict(option[:2] for option in packet[DHCP].options if isinstance(option, tuple))
                self.heard.append((kinds[said["message-type"]], packet[IP].src, packet[IP].dst))
                self.mtu = said.get("interface-mtu", self.mtu)


class Guest:
    """A guest with its client."""

    def __init__(self, host: Host, name: str, shell: Private, ear: Ear) -> None:
        self.host, self.name, self.shell, self.ear = host, name, shell, ear

    @property
    def address(self) -> str:
        """What it has at first."""
        return f"169.254.1.{2 + tuple(CLIENTS).index(self.name)}"

    def start(self) -> None:
        if self.name == "networkd":
            self.shell.do(NETWORKD_SETUP)
        self.shell.do(f"{CLIENTS[self.name][1]} > /run/client.log 2>&1 & echo $! > /run/client.pid")

    def sees(self) -> str:
        return self.host.sh(self.name, "ip -o -4 addr show dev eth0; ip -4 route; ip link show eth0")

    def knows_of_the_hour(self) -> bool:
        """Whether its client has taken a renewal's answer, which says another lease. The kernel is told so by all but
        udhcpc, which says it itself."""
        lifetimes = [int(left) for left in re.findall(r"valid_lft (\d+)sec", self.sees())]
        return max(lifetimes, default=0) > 10 * LEASE_S or "lease time 3600" in self.shell.do("cat /run/client.log")

    def state(self) -> str:
        """All there is to know, for a failure."""
        log = self.shell.do("tail -n 40 /run/client.log", check=False)
        return f"{self.name}: {self.sees()}\n{self.ear.heard}\n{log}"

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.1)


class World:
    """All guests, and what has been done to them."""

    def __init__(self, host: Host, guests: dict[str, Guest], file: Path) -> None:
        self.host, self.guests, self.file, self.is_other = host, guests, file, False

    def narrow(self) -> None:
        """From now on the uplink takes less, and the router is told to look."""
        for node in ("dom0", "lan"):
            self.host.sh(node, "ip link set eth0 mtu 1300")
        self.host.vfr("up")

    def change(self) -> None:
        """Each guest's domain goes, and another comes to its interface; before that all are told that what they have
        is good for an hour, and then each has a reason to ask: the interface was down, it is told to, or starts anew."""
        if self.is_other:
            return
        self.is_other = True
        self.host.vfr("dhcp", "--lease", "3600")
        for guest in self.guests.values():
            guest.wait(guest.knows_of_the_hour)
        self.host.vfr("dhcp", "--prefix", "16")
        _apply(self.host, self.file, self.guests, 100, f" guest-address {CLONE} guest-gateway {CLONE_GATEWAY}")
        for guest in self.guests.values():
            guest.shell.do(KICKS.get(guest.name, "true"))


def _mac(number: int) -> str:
    return f"02:00:00:00:0d:{number:02x}"


def _apply(host: Host, file: Path, names: Iterable[str], first: int, more: str = "") -> None:
    """All domains at once, their addresses from 169.254.1.`first` on. Each knows its guest's MAC, which stays its own."""
    numbers = [(name, tuple(CLIENTS).index(name)) for name in names]
    lines = [f"domain {name} device v{name} address 169.254.1.{first + n} mac {_mac(n)}{more}" for name, n in numbers]
    file.write_text("\n".join(["nat eth0", *lines, "allow any -> lan"]) + "\n")
    host.vfr("apply", str(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        host = stack.enter_context(_Guests("vd"))
        host.sh("dom0", "ip link set eth0 mtu 1400")
        host.sh("lan", "ip link set eth0 mtu 1400")
        stack.enter_context(server(host, "lan", 7))
        guests = {}
        for number, (name, (program, _)) in enumerate(CLIENTS.items()):
            if shutil.which(program) is None:
                continue
            end = f"ip link add v{name} type veth peer name eth0 netns {host.ns(name)} address {_mac(number)}"
            host.sh("dom0", end)
            host.sh(name, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set eth0 up")
            ear = Ear(host, name)
            stack.callback(ear.close)
            guests[name] = Guest(host, name, stack.enter_context(Private(host, name)), ear)
        file = tmp_path_factory.mktemp("dhcp") / "dhcp.rules"
        _apply(host, file, guests, 2)
        host.vfr("dhcp", "--lease", str(LEASE_S), "--dns", DNS)
        for guest in guests.values():
            guest.start()
        yield World(host, guests, file)


@pytest.fixture(params=tuple(CLIENTS))
def guest(request: pytest.FixtureRequest, world: World) -> Guest:
    if request.param not in world.guests:
        pytest.skip(f"{CLIENTS[request.param][0]} is not installed")
    return world.guests[request.param]


def _reaches_the_lan(guest: Guest) -> None:
    guest.wait(lambda: guest.host.pings(guest.name, LAN))
    assert answers(guest.host, guest.name, LAN, 7) == "lan", guest.state()


def test_it_gets_its_address_and_reaches_the_lan(guest: Guest) -> None:
    own = guest.address
    guest.wait(lambda: f"inet {own}/32 " in guest.sees() and f"default via {ROUTER} " in guest.sees())
    _reaches_the_lan(guest)
    assert [said[0] for said in guest.ear.heard][:4] == ["discover", "offer", "request", "ack"], guest.state()


def test_it_renews_from_the_router_itself(guest: Guest) -> None:
    own = guest.address
    guest.wait(lambda: ("request", own, ROUTER) in guest.ear.heard)
    at = guest.ear.heard.index(("request", own, ROUTER))
    guest.wait(lambda: ("ack", ROUTER, own) in guest.ear.heard[at:])


# The others are told it just so, but dhclient's script heeds it in a new lease only, and networkd if it says UseMTU=.
TAKE_A_NEW_MTU = ("udhcpc", "dhcpcd")


def test_a_renewal_tells_what_the_uplink_takes_now(guest: Guest, world: World) -> None:
    world.narrow()
    guest.wait(lambda: guest.ear.mtu == 1300)
    guest.wait(lambda: guest.name not in TAKE_A_NEW_MTU or "mtu 1300 " in guest.sees())
    _reaches_the_lan(guest)


def test_another_address_is_refused_and_it_takes_its_own(guest: Guest, world: World) -> None:
    world.change()
    guest.wait(lambda: f"inet {CLONE}/16 " in guest.sees() and f"default via {CLONE_GATEWAY} " in guest.sees())
    _reaches_the_lan(guest)
    assert "169.254.1." not in guest.sees(), guest.state()
    assert ("nak", CLONE_GATEWAY, "255.255.255.255") in guest.ear.heard, guest.state()
    counted = world.host.json("stats", guest.name)[guest.name]
    assert counted["DHCP_NAK"]["packets"] >= 1 and counted["ANSWERED"]["packets"] >= 2


def test_the_machine_is_as_it_was() -> None:
    """Each client had /etc and /run to itself."""
    assert f"nameserver {DNS}" not in Path("/etc/resolv.conf").read_text()
