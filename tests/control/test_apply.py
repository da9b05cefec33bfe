"""`vfr apply`: whole or not at all, whatever happens in between; and back by itself unless confirmed.

guests ta-a, ta-b, ta-c --- ta-dom0 --- eth0 192.0.2.1/24 --- ta-lan 192.0.2.11
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.dying import died, stopped
from support.host import VFR, Host, run

WHOLE = """\
nat eth0 ssh 2-9
domain a netns ta-a address 169.254.1.2 sessions 512
domain b netns ta-b address 169.254.1.3
group guests = a, b
set friends = 192.0.2.11, 198.51.100.0/24
forward tcp 8080 -> a 80 comment "the web"
forward udp 9000-9009 -> b 7000-7009 on eth0
forward tcp 8081 -> b 80 on lo
allow guests -> lan
allow friends -> a tcp 80
allow dom0 -> guests
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("ta") as one:
        yield one


def _file(tmp_path: Path, text: str, name: str = "office.rules") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def _names(host: Host) -> list[str]:
    return [d["name"] for d in host.json("domain", "list")]


def _until(ready: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


# One file


TOLD = WHOLE + "dhcp any dns 192.0.2.53,192.0.2.54 lease 7200\n"


def test_one_file_is_the_whole_router(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, TOLD))
    assert _names(host) == ["a", "b"] and all(d["state"] == "up" for d in host.json("domain", "list"))
    assert host.json("domain", "limit", "a")["sessions"] == 512
    assert host.pings("a", "192.0.2.11") and host.pings("dom0", "169.254.1.3")
    told = [d["dhcp"] for d in host.json("domain", "list")]
    assert told == 2 * ["/32, 7200 s, dns 192.0.2.53 192.0.2.54"]
    forwards = [f for f in host.json("nat", "status")["forwards"] if f["outside_port"] > 8000]
    assert [(f["protocol"], f["outside_port"], f["ports"], f["on"]) for f in forwards] == [
        ("tcp", 8080, 1, "lan"),
        ("udp", 9000, 10, "lan"),
        ("tcp", 8081, 1, "host"),
    ]
    assert host.json("apply", "--dry-run", _file(tmp_path, TOLD))["steps"] == []


def test_what_is_exported_makes_the_same_router(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, TOLD))
    exported, listed = host.vfr("export").stdout, host.json("domain", "list")
    host.vfr("domain", "remove", "a", "b")
    host.vfr("nat", "disable")
    host.vfr("apply", _file(tmp_path, exported, "again.rules"))
    assert host.vfr("export").stdout == exported
    assert host.json("domain", "list") == listed
    assert host.json("domain", "limit", "a")["sessions"] == 512


def test_an_empty_router_exports_itself(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    done = host.vfr("apply", _file(tmp_path, "nat off\ndomain none\n"), check=False)
    assert done.returncode == 1 and "vfr nat disable" in done.stderr
    assert _names(host) == ["a", "b"]


def test_a_file_of_rules_leaves_domains_and_nat_alone(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    host.vfr("apply", _file(tmp_path, "allow a -> b icmp\n"))
    assert _names(host) == ["a", "b"] and host.json("nat", "status")["enabled"]
    assert host.pings("a", "169.254.1.3") and not host.pings("a", "192.0.2.11")


def test_a_file_of_rules_leaves_dhcp_alone_and_one_with_a_line_about_it_says_all(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, TOLD + "dhcp b prefix 16 dns none\n"))
    host.vfr("apply", _file(tmp_path, "allow a -> b icmp\n"))
    assert host.json("dhcp")["lease"] == 7200 and host.json("dhcp", "b")["prefix"] == 16
    wrong = host.vfr("apply", _file(tmp_path, "dhcp any lease 60\ndhcp c lease 90\n"), check=False)
    assert wrong.returncode == 1 and "office.rules:2:1: there is no domain 'c'; there are: a, b" in wrong.stderr
    assert host.json("dhcp")["lease"] == 7200, "nothing half done"
    host.vfr("apply", _file(tmp_path, "dhcp b lease 60\n"))
    assert host.json("dhcp") == {"on": True, "dns": [], "lease": 3600, "prefix": 32}
    assert host.json("dhcp", "b") == {"on": True, "dns": [], "lease": 60, "prefix": 32}


def test_a_domain_that_is_to_be_elsewhere_is_made_anew(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    moved = WHOLE.replace("domain a netns ta-a", "domain a netns ta-c").replace(" sessions 512", "")
    host.vfr("apply", _file(tmp_path, moved))
    (a,) = [d for d in host.json("domain", "list") if d["name"] == "a"]
    assert a["netns"] == "ta-c" and host.json("domain", "limit", "a")["sessions"] == 1024
    assert host.pings("c", "192.0.2.11") and "eth0" not in host.sh("a", "ip -o link")


def test_a_domain_that_is_not_in_the_file_goes(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    without = "".join(line for line in WHOLE.splitlines(True) if not line.startswith("domain b"))
    shown = host.json("apply", "--dry-run", _file(tmp_path, without))
    assert any("vif-b" in step for step in shown["steps"]) and _names(host) == ["a", "b"]
    host.vfr("apply", _file(tmp_path, without))
    assert _names(host) == ["a"]


def test_a_dry_run_says_who_could_talk_to_whom(host: Host, tmp_path: Path) -> None:
    """By meaning: other words for the same are no change; and exposure says what is."""
    host.vfr("apply", _file(tmp_path, WHOLE))
    other = WHOLE.replace("allow guests -> lan", "allow a, b -> lan  # the same") + "allow a -> b tcp 22\n"
    shown = host.json("apply", "--dry-run", _file(tmp_path, other))
    assert shown["reach"][0] == "+ a -> b tcp 22   (office.rules:12)" and len(shown["reach"]) == 2
    assert shown["steps"] == ["replace the policy"]
    same = host.json("apply", "--dry-run", _file(tmp_path, other.replace("allow a -> b tcp 22\n", "")))
    assert same["reach"] == []
    (a,) = host.json("exposure", "a")
    assert [door["outside"] for door in a["doors"]] == [[8080, 8080]]
    assert any("2202" in note for note in a["notes"]), "a forward that no rule lets anybody use"


# Forwards


def test_forwards_lead_from_the_lan_and_from_the_host(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    server = (
        "import socket,sys; s=socket.create_server(('', int(sys.argv[1]))); print('up', flush=True)\n"
        "while 1: s.accept()[0].sendall(sys.argv[2].encode())"
    )
    client = "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(9).decode())"

    def ask(node: str, address: str, port: int) -> str:
        argv = ["ip", "netns", "exec", host.ns(node), sys.executable, "-c", client, address, str(port)]
        return run(*argv, check=False).stdout.strip()

    argv = [["ip", "netns", "exec", host.ns(n), sys.executable, "-c", server, "80", f"I am {n}"] for n in ("a", "b")]
    servers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in argv]
    try:
        for one in servers:
            assert one.stdout is not None and one.stdout.readline() == "up\n"
        assert ask("lan", "192.0.2.1", 8080) == "I am a"
        assert ask("lan", "192.0.2.1", 8081) == "", "on lo means not from the LAN"
        assert ask("dom0", "127.0.0.1", 8081) == "I am b"
        assert ask("dom0", "192.0.2.1", 8080) == "I am a"
    finally:
        for one in servers:
            one.kill()
            one.communicate()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("forward tcp 2205 -> a 22", "office.rules:12:13: tcp port 2205 meets 2202-2209"),
        ("forward udp 16000-17000 -> a", "16384-32767"),
        ("forward tcp 7000 -> a on 198.51.100.1", "'198.51.100.1' is not where VFR meets the LAN"),
        ("forward tcp 8080-8090 -> a", "forwarded already in line 6"),
        ("forward tcp 5555 -> a", "a program of the host listens on tcp port 5555"),
        ("group a = b", "'a' is a domain, and a group"),
        ("domain c netns nowhere", "office.rules:12:1: there is no network namespace 'nowhere'"),
        ("domain c netns ta-c address 169.254.1.3", "belongs to the domain 'b'"),
        ("allow a -> b tcp 80-70", "office.rules:12:18: port range 80-70 ends before it starts"),
        ("allow any -> any tcp 99999", "port 99999 is beyond 65535"),
    ],
)
def test_a_refused_file_changes_nothing(host: Host, tmp_path: Path, line: str, said: str) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    listener = "import socket,time; s=socket.create_server(('', 5555)); print('up', flush=True); time.sleep(60)"
    argv = ["ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", listener]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        exported, before = host.vfr("export").stdout, host.picture()
        changed = WHOLE.replace("allow guests -> lan", "deny any -> any") + line + "\n"
        for more in ([], ["--dry-run"], ["--confirm", "9s"]):
            done = host.vfr("apply", _file(tmp_path, changed), *more, check=False)
            assert done.returncode in (1, 2) and said in done.stderr, done.stderr
        assert host.vfr("export").stdout == exported and host.picture() == before
        assert host.pings("a", "192.0.2.11")
    finally:
        server.kill()
        server.communicate()


# Confirm

LESS = WHOLE.replace("allow guests -> lan", "deny guests -> lan")


def test_unconfirmed_it_goes_back_by_itself(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    exported = host.vfr("export").stdout
    host.vfr("apply", _file(tmp_path, LESS.replace("domain b netns ta-b", "domain c netns ta-c")), "--confirm", "9s")
    assert _names(host) == ["a", "c"] and not host.pings("a", "192.0.2.11")
    refused = host.vfr("domain", "remove", "a", check=False)
    assert refused.returncode == 1 and "vfr confirm" in refused.stderr
    registry = Path("/run/vfr/netns/ta-dom0/registry.db")
    _until(lambda: "pending" not in _settings(registry), "nobody went back")
    _until(lambda: host.vfr("export").stdout == exported, "it is not what it was")
    _until(lambda: host.pings("a", "192.0.2.11") and host.pings("b", "192.0.2.11"), "they are not back")


def _settings(registry: Path) -> set[str]:
    """Names of what the registry says, read as a stranger does: no command of ours is to help."""
    import sqlite3

    with sqlite3.connect(f"file:{registry}?mode=ro", uri=True) as db:
        return {name for (name,) in db.execute("SELECT name FROM settings")}


def test_confirmed_it_stays(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    host.vfr("apply", _file(tmp_path, LESS), "--confirm", "9s")
    assert host.json("nat", "status")["confirm_within_s"] > 0
    host.vfr("confirm")
    time.sleep(10)  # what must not happen has had its time
    assert not host.pings("a", "192.0.2.11")
    again = host.vfr("confirm", check=False)
    assert again.returncode == 1 and "nothing waits" in again.stderr


def test_back_at_once(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    host.vfr("apply", _file(tmp_path, LESS), "--confirm", "60s")
    host.vfr("confirm", "--no")
    assert host.pings("a", "192.0.2.11")


def _watchers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vfr.confirming" in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.inv(12)
def test_it_goes_back_though_everyone_dies(host: Host, tmp_path: Path) -> None:
    """The command's whole session is killed; then the one that waits, too, and the next command sees to it."""
    host.vfr("apply", _file(tmp_path, WHOLE))
    before = set(_watchers())
    argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "apply", _file(tmp_path, LESS), "--confirm", "9s"]
    shell = subprocess.Popen(["sh", "-c", f"{' '.join(argv)}; sleep 60"], start_new_session=True)
    _until(lambda: not host.pings("a", "192.0.2.11"), "it never came")
    _until(lambda: bool(set(_watchers()) - before), "nobody waits")
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    _until(lambda: host.pings("a", "192.0.2.11"), "it did not go back")

    host.vfr("apply", _file(tmp_path, LESS), "--confirm", "5s")
    for pid in set(_watchers()) - before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(5.5)
    assert not host.pings("a", "192.0.2.11"), "nobody is left to go back"
    host.vfr("nat", "status")
    assert host.pings("a", "192.0.2.11")


@pytest.mark.parametrize("word", ["0s", "x", "3d", "100h", "-5s"])
def test_times_that_are_none(host: Host, tmp_path: Path, word: str) -> None:
    done = host.vfr("apply", _file(tmp_path, WHOLE), f"--confirm={word}", check=False)
    assert done.returncode == 2 and word in done.stderr and _names(host) == []


# The worst moments

# b leaves, and c takes its slot; rules, forwards and the configuration change.
OTHER = """\
nat eth0 ssh 2-5
domain a netns ta-a address 169.254.1.2
domain c netns ta-c address 169.254.1.4
forward tcp 8090-8099 -> c 80-89
allow a -> lan
allow c -> a icmp
"""


def _apply(file: str) -> str:
    return f"router.apply(Path('{file}'))"


@pytest.mark.inv(6, 8, 12)
def test_killed_at_every_step(host: Host, tmp_path: Path) -> None:
    """What c may is never what b might, though it has b's slot; afterwards any command finishes the work."""
    whole, other = _file(tmp_path, WHOLE + "allow b -> a\n"), _file(tmp_path, OTHER, "other.rules")
    for step in range(1, 100):
        host.vfr("apply", whole)
        dead = died(host, _apply(other), step)
        assert not host.pings("c", "192.0.2.11"), f"c has b's way out at step {step}"
        host.vfr("apply", other)
        assert _names(host) == ["a", "c"] and host.json("apply", "--dry-run", other)["steps"] == []
        assert host.pings("a", "192.0.2.11") and host.pings("c", "169.254.1.2")
        if not dead:
            break
    assert step > 5


@pytest.mark.inv(6)
def test_a_failure_at_every_step_goes_back_as_a_whole(host: Host, tmp_path: Path) -> None:
    whole, other = _file(tmp_path, WHOLE), _file(tmp_path, OTHER, "other.rules")
    host.vfr("apply", whole)
    exported = host.vfr("export").stdout
    fail = "from vfr.errors import KernelError; raise KernelError('the test', 28)"
    for step in range(1, 100):
        failed = stopped(host, _apply(other), step, fail)
        if failed.returncode == 0:
            break
        assert "the test: No space left on device" in failed.stderr
        assert host.vfr("export").stdout == exported and host.json("apply", "--dry-run", whole)["steps"] == []
        assert host.pings("b", "192.0.2.11")
    assert step > 5


@pytest.mark.inv(6)
@pytest.mark.parametrize(
    "meanwhile",
    [
        "os.system('nft flush ruleset')",
        "os.system('nft delete table inet vfr')",
        "os.system('tc qdisc del dev vif-a clsact')",
        "os.system('rm -f /run/vfr/netns/ta-dom0/bpf/links/vif-a*')",
        "os.system('ip link set vif-a down')",
    ],
)
@pytest.mark.parametrize("attach", ["tcx", "clsact"])
def test_others_meddle_in_between(tmp_path: Path, meanwhile: str, attach: str) -> None:
    """It either comes out right, or says that it did not and goes back; never right in word only."""
    with Host("ta", {"VFR_ATTACH": attach}) as host:
        whole, other = _file(tmp_path, WHOLE), _file(tmp_path, OTHER, "other.rules")
        host.vfr("apply", whole)
        for step in (1, 3, 8):
            done = stopped(host, _apply(other), step, meanwhile)
            assert host.json("apply", "--dry-run", other if done.returncode == 0 else whole)["steps"] == [], done.stderr
            host.vfr("apply", other)
            assert host.pings("a", "192.0.2.11") and host.pings("c", "169.254.1.2")
            host.vfr("apply", whole)


def test_two_at_once(host: Host, tmp_path: Path) -> None:
    """One after the other, whichever is first: what is in force is one of the two, whole."""
    files = [_file(tmp_path, text, name) for text, name in ((WHOLE, "one.rules"), (OTHER, "two.rules"))]
    host.vfr("apply", files[0])
    for _ in range(4):
        argv = [["ip", "netns", "exec", host.ns("dom0"), str(VFR), "apply", file] for file in files]
        racing = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for words in argv * 2]
        for one in racing:
            assert one.communicate()[1] == "" and one.returncode == 0
        steps = [host.json("apply", "--dry-run", file)["steps"] for file in files]
        assert steps.count([]) == 1, steps


def test_the_disk_is_full(host: Host, tmp_path: Path) -> None:
    """Nothing is half written: neither the registry nor what it stands for."""
    state = Path("/run/vfr/netns/ta-dom0")
    host.vfr("apply", _file(tmp_path, WHOLE))
    exported = host.vfr("export").stdout
    saved = (state / "registry.db").read_bytes()
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "small", str(small))
    try:
        (small / "registry.db").write_bytes(saved)
        (small / "filler").write_bytes(b"x" * (64 * 1024 - len(saved) - 8192 if len(saved) < 50_000 else 1))
        run("mount", "--bind", str(small / "registry.db"), str(state / "registry.db"))
        try:
            many = WHOLE + "".join(f"allow a -> b tcp {port}\n" for port in range(1, 4000))
            done = host.vfr("apply", _file(tmp_path, many), check=False)
            assert done.returncode == 1 and "registry" in done.stderr and "full" in done.stderr, done.stderr
            assert host.vfr("export").stdout == exported
            assert host.pings("a", "192.0.2.11") and not host.pings("a", "169.254.1.3")
        finally:
            run("umount", str(state / "registry.db"))
    finally:
        run("umount", str(small))


# What was said before goes on


def test_counters_of_a_rule_that_stays_go_on(host: Host, tmp_path: Path) -> None:
    host.vfr("apply", _file(tmp_path, WHOLE))
    host.pings("a", "192.0.2.11")
    host.vfr("apply", _file(tmp_path, "# moved down\n" + WHOLE.replace("allow dom0 -> guests", "allow dom0 -> a")))
    (rule,) = [r for r in host.json("stats", "--rules") if r["rule"] == "allow guests -> lan"]
    assert rule["packets"] >= 1 and rule["where"] == "office.rules:10"


def test_a_registry_of_the_version_before_is_read(host: Host, tmp_path: Path) -> None:
    import sqlite3

    host.vfr("apply", _file(tmp_path, WHOLE))
    with sqlite3.connect("/run/vfr/netns/ta-dom0/registry.db") as db:
        (text,) = db.execute("SELECT value FROM settings WHERE name = 'rules'").fetchone()
        raw = json.loads(text)
        old = json.dumps({"file": raw["file"], "text": "allow any -> lan\n"})
        db.execute("UPDATE settings SET value = ? WHERE name = 'rules'", (old,))
        db.execute("PRAGMA user_version = 3")
    assert host.pings("a", "192.0.2.11")
    host.vfr("domain", "remove", "b")
    assert host.pings("a", "192.0.2.11") and "allow any -> lan" in host.vfr("export").stdout
