"""VFR beside the firewalls that hosts have: ufw and firewalld themselves, where they are installed, and the rules that
Docker and libvirt were seen to make. Each with packets: what is let through, what `vfr doctor` says of it, and that what
it advises does what it says.

guests tf-a, tf-b --- tf-dom0 --- eth0 192.0.2.1/24 --- tf-lan 192.0.2.11        tf-c behind a bridge of Docker's, libvirt's
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.host import Host, run
from support.private import Private
from support.talk import answers, server

HOST, LAN, A, GATEWAY = "192.0.2.1", "192.0.2.11", "169.254.1.2", "169.254.1.0"
RULES = "allow any -> lan\nallow lan -> a tcp 22\nallow dom0 -> any\nallow a -> dom0 tcp 80\n"


def _machine() -> tuple[str, str]:
    """What must stay as it is: the firewall of the machine's own namespace, and what is in its /etc."""
    files = sorted(p for p in Path("/etc").rglob("*") if p.is_file() and not p.is_symlink())
    told = "".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in files)
    return run("nft", "list", "ruleset").stdout, sha256(told.encode()).hexdigest()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """NAT on, a may use port 80 of domain 0, and everybody serves: dom0, lan and a on 80, a on 22."""
    rules, before = tmp_path / "some.rules", _machine()
    rules.write_text(RULES)
    with Host("tf") as one, ExitStack() as stack:
        one.sh("dom0", f"ip route add default via {LAN}")
        one.vfr("nat", "enable", "--uplink", "eth0", "--rules", str(rules))
        one.add("a")
        one.add("b")
        for node, port in (("dom0", 80), ("lan", 80), ("a", 80), ("a", 22)):
            stack.enter_context(server(one, node, port))
        assert _severities(one) == {} and _reached(one) == EVERYTHING
        yield one
    assert _machine() == before


EVERYTHING = {
    "LAN to the host": True,
    "LAN to the forward": True,
    "a to the LAN": True,
    "a to domain 0": True,
    "domain 0 to a": True,
    "domain 0 to its forward": True,
    "a to b": False,
}


def _reached(host: Host) -> dict[str, bool]:
    return {
        "LAN to the host": answers(host, "lan", HOST, 80) == "dom0",
        "LAN to the forward": answers(host, "lan", HOST, 2202) == "a",
        "a to the LAN": answers(host, "a", LAN, 80) == "lan",
        "a to domain 0": answers(host, "a", GATEWAY, 80) == "dom0",
        "domain 0 to a": answers(host, "dom0", A, 80) == "a",
        "domain 0 to its forward": answers(host, "dom0", "127.0.0.1", 2202) == "a",
        "a to b": host.pings("a", "169.254.1.3"),
    }


def _doctor(host: Host) -> dict[str, dict[str, Any]]:
    found = json.loads(host.vfr("doctor", "--json", check=False).stdout)
    return {f["id"]: f for f in found}


def _severities(host: Host) -> dict[str, str]:
    return {ident: f["severity"] for ident, f in _doctor(host).items() if f["severity"] != "ok"}


def _needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def _command(finding: dict[str, Any]) -> str:
    """The command in what the finding says is to be done."""
    return str(finding["do"]).split("`")[1]


def _close_the_forward(host: Host, tmp_path: Path) -> None:
    """As the doctor says: with a rule of VFR's."""
    rules = tmp_path / "closed.rules"
    rules.write_text(f"{RULES}deny lan -> a tcp 22\n")
    host.vfr("apply", str(rules))
    assert answers(host, "lan", HOST, 2202) == "nobody"
    assert "forwards-unasked" not in _severities(host)


def test_ufw(host: Host, tmp_path: Path) -> None:
    _needs("ufw")
    with Private(host) as private:
        assert "active" in private.do("ufw --force reset && ufw --force enable")
        refused = {"LAN to the host": False, "a to domain 0": False}
        assert _reached(host) == EVERYTHING | refused, "the forward is open although ufw has no word about it"
        said = _doctor(host)
        assert said["forwards-unasked"]["text"].startswith("ufw is not asked about forwards: tcp port 2202 (a)")
        assert said["input-closed"]["severity"] == "warning" and "ufw allow in on vfr0" in said["input-closed"]["do"]
        assert said["forward-closed"]["effect"].startswith("none")
        private.do(_command(said["input-closed"]))
        assert _reached(host) == EVERYTHING | {"LAN to the host": False}
        assert _severities(host) == {"ufw": "note", "forwards-unasked": "warning"}
        private.do("ufw allow 2202/tcp")
        assert _severities(host) == {"ufw": "note"}
        private.do("ufw delete allow 2202/tcp && ufw reload")
        assert _doctor(host)["guard"]["severity"] == "ok", "ufw leaves our tables alone"
        _close_the_forward(host, tmp_path)
        private.do("ufw default deny outgoing")
        assert not _reached(host)["domain 0 to a"]
        private.do(_command(_doctor(host)["output-closed"]))
        assert _reached(host)["domain 0 to a"]
        private.do("ufw disable")


_FIREWALLD = """
dbus-daemon --system --fork || exit
firewalld --nofork >/run/firewalld.log 2>&1 &
for i in $(seq 50); do timeout 2 firewall-cmd --state 2>/dev/null && exit 0; sleep 0.2; done
cat /run/firewalld.log; exit 1
"""


def test_firewalld(host: Host, tmp_path: Path) -> None:
    _needs("firewalld")
    with Private(host) as private:
        assert "running" in private.do(_FIREWALLD)
        assert _reached(host) == EVERYTHING | {"LAN to the host": False, "a to domain 0": False}
        said = _doctor(host)
        assert said["forwards-unasked"]["text"].startswith("firewalld is not asked about forwards: tcp port 2202 (a)")
        assert said["input-closed"]["severity"] == "warning" and "--zone=trusted" in said["input-closed"]["do"]
        private.do(_command(said["input-closed"]))
        assert _reached(host) == EVERYTHING | {"LAN to the host": False}
        assert _severities(host) == {"firewalld": "note", "forwards-unasked": "warning"}
        private.do("firewall-cmd --complete-reload")
        assert _doctor(host)["guard"]["severity"] == "ok", "firewalld leaves our tables alone"
        _close_the_forward(host, tmp_path)


# What docker.io 20.10.24 (Debian 12) wrote, with a container that publishes `{port}`.
DOCKER = """
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
# What libvirt 9.0.0 (Debian 12) wrote for its network `default`.
LIBVIRT = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:LIBVIRT_INP - [0:0]
:LIBVIRT_OUT - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWX - [0:0]
-A INPUT -j LIBVIRT_INP
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A OUTPUT -j LIBVIRT_OUT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 67 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 67 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 68 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p tcp -m tcp --dport 68 -j ACCEPT
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 255.255.255.255/32 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT
"""


def _behind_a_bridge(host: Host, bridge: str, gateway: str, address: str) -> None:
    """c is a container, or a VM, of somebody else's on this host."""
    host.sh(
        "dom0",
        f"ip link add {bridge} type bridge forward_delay 0; ip addr add {gateway} dev {bridge}; ip link set {bridge} up;"
        f" ip link add theirs type veth peer name eth0 netns tf-c; ip link set theirs master {bridge} up;"
        " sysctl -qw net.ipv4.ip_forward=1",
    )
    host.sh(
        "c", f"ip addr add {address} dev eth0; ip link set eth0 up; ip route add default via {gateway.split('/')[0]}"
    )
    host.vfr("nat", "enable")  # since ip_forward is every interface's


def _restore(host: Host, rules: str, tmp_path: Path) -> None:
    file = tmp_path / "iptables.rules"
    file.write_text(rules)
    host.sh("dom0", f"iptables-restore < {file}")


def _kept_apart_from_guests(host: Host, finding: dict[str, Any]) -> None:
    """Whoever is masqueraded towards guests comes as domain 0; what the doctor advises ends that, and that alone."""
    assert answers(host, "c", A, 80) == "a"
    host.sh("dom0", _command(finding))
    assert answers(host, "c", A, 80) == "nobody" and answers(host, "c", LAN, 80, 40000) == "lan"
    assert _reached(host) == EVERYTHING


def test_the_rules_of_docker(host: Host, tmp_path: Path) -> None:
    """Its FORWARD policy cuts other routers' guests off, and not ours. What it publishes may be in our way."""
    _behind_a_bridge(host, "docker0", "172.17.0.1/16", "172.17.0.2/16")
    _restore(host, DOCKER.format(port=8080), tmp_path)
    with server(host, "c", 80):
        assert _reached(host) == EVERYTHING and answers(host, "lan", HOST, 8080) == "c"
        said = _doctor(host)
        assert said["forward-closed"]["severity"] == "ok" and "Docker" in said["forward-closed"]["text"]
        wanted = {"docker": "note", "masquerade": "warning", "masquerade-to-guests": "warning"}
        assert _severities(host) == wanted
        _restore(host, DOCKER.format(port=30080), tmp_path)
        assert _severities(host) == wanted | {"published-in-range": "problem"}
        assert answers(host, "lan", HOST, 30080) == "nobody"
        with server(host, "dom0", 30080):  # as docker-proxy is, if it is not switched off
            assert _severities(host) == wanted | {"port-in-range": "warning"}
            assert answers(host, "lan", HOST, 30080) == "c"
        _restore(host, DOCKER.format(port=2202), tmp_path)
        assert _severities(host) == wanted | {"published-on-forward": "problem"}
        assert answers(host, "lan", HOST, 2202) == "a"
        _restore(host, DOCKER.format(port=8080), tmp_path)
        _kept_apart_from_guests(host, said["masquerade-to-guests"])


def test_the_rules_of_libvirt(host: Host, tmp_path: Path) -> None:
    """A VM of libvirt's that speaks from a port of our range hears nothing."""
    _behind_a_bridge(host, "virbr0", "192.168.122.1/24", "192.168.122.2/24")
    _restore(host, LIBVIRT, tmp_path)
    assert _reached(host) == EVERYTHING
    said = _doctor(host)
    assert _severities(host) == {"libvirt": "note", "masquerade": "warning", "masquerade-to-guests": "warning"}
    assert answers(host, "c", LAN, 80, 40000) == "lan" and answers(host, "c", LAN, 80, 20000) == "nobody"
    _kept_apart_from_guests(host, said["masquerade-to-guests"])


def test_iptables_of_the_old_kind(host: Host, tmp_path: Path) -> None:
    """nft does not show it."""
    _needs("iptables-legacy-restore")
    file = tmp_path / "legacy.rules"
    file.write_text("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    if "error" in host.sh("dom0", f"iptables-legacy-restore {file} || echo error", check=False):
        pytest.skip("this kernel has no iptables of the old kind")
    assert not _reached(host)["a to domain 0"] and _reached(host)["LAN to the forward"]
    assert _severities(host) == {"forwards-unasked": "warning", "input-closed": "warning"}
    assert "legacy ip filter INPUT" in _doctor(host)["input-closed"]["text"]
