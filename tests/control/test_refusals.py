"""What the machine may refuse, and what may change under VFR's feet: said once, clearly, and nothing half-done.

guests tr-a, tr-b --- tr-dom0 --- eth0 192.0.2.1/24 --- tr-lan 192.0.2.11
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from support.host import VFR, Host, run

from vfr.cli import app

TREE = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("tr") as one:
        yield one


@pytest.fixture
def working(host: Host) -> Host:
    """With NAT on and one domain."""
    host.vfr("nat", "enable", "--uplink", "eth0")
    host.add("a")
    return host


def _python(host: Host, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program in domain 0's namespace."""
    argv = ["ip", "netns", "exec", host.ns("dom0"), sys.executable, "-P", "-c", code, *arguments]
    return run(*argv, check=False, env=environment)


def _is_refused(done: subprocess.CompletedProcess[str], *names: str) -> None:
    """No with a reason: one message on one line, status 1 or 2, no Traceback."""
    assert done.returncode in (1, 2), (done.stdout, done.stderr)
    assert done.stderr.startswith("vfr: ") and done.stderr.count("\n") == 1, done.stderr
    for name in names:
        assert name in done.stderr, done.stderr


# The machine

# Installs a seccomp filter under which bpf(2) fails with the given errno, as in a container; then VFR.
_WITHOUT_BPF = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
LOAD_NUMBER, IF_EQUAL, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x50000
lines = [(LOAD_NUMBER, 0, 0, 0), (IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | int(sys.argv[1])), (RETURN, 0, 0, ALLOW)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[2], sys.argv[2:])
"""
CHANGING = [
    ("nat", "enable", "--uplink", "eth0"),
    ("domain", "add", "b", "--netns", "tr-b"),
    ("domain", "remove", "a"),
    ("nat", "disable"),
    ("apply", str(TREE / "rules" / "xen.rules")),
]


@pytest.mark.parametrize(("errno", "named"), [(1, ["bpf(2)", "CAP_BPF"]), (38, ["bpf(2)", "CONFIG_BPF_SYSCALL"])])
def test_no_bpf(working: Host, errno: int, named: list[str]) -> None:
    host, before = working, working.picture()
    for arguments in CHANGING:
        _is_refused(_python(host, _WITHOUT_BPF, str(errno), str(VFR), *arguments), *named)
    assert host.picture() == before
    assert host.pings("a", "192.0.2.11"), "what is in force stays in force"


def test_no_bpf_on_a_fresh_host(host: Host) -> None:
    before = host.picture()
    _is_refused(_python(host, _WITHOUT_BPF, "1", str(VFR), *CHANGING[0]), "bpf(2)")
    assert host.picture() == before


_MAIN = "import sys; from vfr.cli import main; sys.argv[0] = 'vfr'; main()"


@pytest.mark.parametrize("part", ["vfr.bpf.o", "libvfrload.so"])
def test_the_fastpath_was_not_built(host: Host, tmp_path: Path, part: str) -> None:
    shutil.copytree(TREE / "vfr", tmp_path / "vfr", ignore=shutil.ignore_patterns("__pycache__", part))
    shutil.copytree(TREE / "rules", tmp_path / "rules")
    before = host.picture()
    done = _python(host, _MAIN, "nat", "enable", "--uplink", "eth0", PYTHONPATH=str(tmp_path))
    _is_refused(done, str(tmp_path / "vfr" / "_build" / part), "make build")
    assert host.picture() == before


_OLD_KERNEL = "import platform; platform.release = lambda: '5.10.0-28-amd64'\n" + _MAIN


def test_a_kernel_too_old(working: Host) -> None:
    before = working.picture()
    for arguments in CHANGING:
        _is_refused(_python(working, _OLD_KERNEL, *arguments), "5.10.0-28-amd64", "6.1")
    assert working.picture() == before


# Everything is imported before root is given up: nobody need be able to read this tree.
_AS_NOBODY = f"""
import os, sys, vfr.plan, vfr.policy, vfr.kernel.host
from vfr.cli import main
sys.argv[0] = "vfr"
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
main()
"""
ASKING = [("nat", "status"), ("stats",), ("stats", "a"), ("apply", "--dry-run", str(TREE / "rules" / "xen.rules"))]


@pytest.fixture
def for_all_to_read() -> Iterator[Path]:
    """A rule file. tmp_path is root's only."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "xen.rules"
        path.write_text("allow any -> lan\n")
        yield path


def test_without_root(working: Host, for_all_to_read: Path) -> None:
    host, before = working, working.picture()
    for arguments in [*CHANGING, *ASKING]:
        words = [str(for_all_to_read) if word.endswith("xen.rules") else word for word in arguments]
        _is_refused(_python(host, _AS_NOBODY, *words), "root", "sudo")
    listed = _python(host, _AS_NOBODY, "domain", "list", "--json")
    assert [d["state"] for d in json.loads(listed.stdout)] == ["up"], "what is in the registry is no secret"
    assert host.picture() == before


# Two commands at once

# Stops before its second step until a line comes in; says so first.
_HOLDER = """
import sys
from vfr import Router
steps = 0
def wait(step):
    global steps
    steps += 1
    if steps == 2:
        print("holding", flush=True)
        sys.stdin.readline()
with Router(on_step=wait) as router:
    router.add_domain("b", netns="tr-b")
"""
_IMPATIENT = "import vfr.registry; vfr.registry.LOCK_WAIT_S = 0.3\n" + _MAIN


def _holding(host: Host) -> subprocess.Popen[str]:
    """A `domain add` that has the lock and waits for a line."""
    argv = ["ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", _HOLDER]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
    return holder


def test_a_second_command_waits_for_the_first(working: Host) -> None:
    host = working
    argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "domain", "remove", "a"]
    with _holding(host) as holder, subprocess.Popen(argv, stdout=subprocess.DEVNULL) as second:
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=1)
        assert {d["name"] for d in host.json("domain", "list")} == {"a", "b"}, "asking need not wait"
        holder.communicate("go on\n")
        assert (holder.wait(), second.wait(timeout=60)) == (0, 0)
    assert [(d["name"], d["state"]) for d in host.json("domain", "list")] == [("b", "up")]


def test_a_lock_that_is_not_let_go(working: Host) -> None:
    host = working
    with _holding(host) as holder:
        before = host.picture()
        _is_refused(_python(host, _IMPATIENT, "nat", "disable"), f"process {holder.pid}", "wait for it, or end it")
        assert host.picture() == before
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    host.vfr("nat", "enable")  # nobody has to clean up after the dead
    assert {d["name"]: d["state"] for d in host.json("domain", "list")} == {"a": "up", "b": "up"}


# What changes under its feet

_GONE = {
    "the interface": (
        "ip link del eth0",
        "ip link add eth0 type veth peer name eth0 netns tr-lan; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up;"
        " ip -n tr-lan addr add 192.0.2.11/24 dev eth0; ip -n tr-lan link set eth0 up",
    ),
    "its address": ("ip addr flush dev eth0", "ip addr add 192.0.2.1/24 dev eth0"),
}


@pytest.mark.inv(12)
@pytest.mark.parametrize("what", _GONE)
def test_an_uplink_lost_and_found_again(working: Host, what: str) -> None:
    host, (lose, find) = working, _GONE[what]
    host.sh("dom0", lose)
    before = host.picture()
    _is_refused(host.vfr("nat", "enable", "--uplink", "eth0", check=False), "eth0")
    assert host.picture() == before
    host.add("b")
    assert not host.pings("a", "192.0.2.11") and not host.pings("a", "169.254.1.3"), "alone, and still apart"
    assert host.pings("dom0", "169.254.1.2") and host.pings("dom0", "169.254.1.3")
    host.sh("dom0", find)
    host.vfr("nat", "enable")
    assert host.json("nat", "status")["attached_by"]
    assert host.pings("a", "192.0.2.11") and host.pings("b", "192.0.2.11"), "the next command repairs"


@pytest.mark.inv(12)
def test_a_namespace_made_again_under_its_name(working: Host) -> None:
    """Its veth went with it; the next command makes another."""
    host = working
    run("ip", "netns", "del", "tr-a")
    assert host.json("domain", "show", "a")["state"] == "missing"
    run("ip", "netns", "add", "tr-a")
    host.vfr("nat", "enable")
    assert host.json("domain", "show", "a")["state"] == "up"
    assert host.pings("a", "192.0.2.11")


@pytest.mark.inv(12)
def test_a_namespace_that_lost_its_name_loses_its_place(working: Host) -> None:
    """A process keeps the old namespace alive, veth and all; the name, and so the domain, is another's now."""
    host = working
    argv = ["ip", "netns", "exec", "tr-a", sys.executable, "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdout is not None and old.stdout.readline()
        run("ip", "netns", "del", "tr-a")
        run("ip", "netns", "add", "tr-a")
        run("ip", "-n", "tr-a", "link", "set", "lo", "up")
        shown = host.json("domain", "show", "a")
        assert shown["state"] == "degraded" and "tr-a" in shown["reason"]
        host.add("b")
        assert host.json("domain", "show", "a")["state"] == "up"
        assert host.pings("a", "192.0.2.11"), "the new one is web now"
        inside_old = ["nsenter", f"--net=/proc/{old.pid}/ns/net", "ip", "-o", "link"]
        assert "eth0" not in run(*inside_old).stdout, "the old one has nothing left"
        old.communicate("\n")


# The library

_LIBRARY = """
import json
from vfr import Router
from vfr.errors import ConflictError, UsageError
said = []
with Router() as router:
    router.nat_enable("eth0")
    added = router.add_domain("a", netns="tr-a", address="169.254.1.7")
    said += [added.state, added.forward, [d.name for d in router.domains()], router.nat_status().uplink]
    for wrong in ({"netns": "tr-none"}, {"netns": "tr-b", "address": "169.254.1.7"}):
        try:
            router.add_domain("b", **wrong)
        except (UsageError, ConflictError) as error:
            said.append([type(error).__name__, str(error)])
    said.append(sorted(router.stats()))
    router.remove_domain("a")
    router.nat_disable()
    said.append([d.name for d in router.domains()])
print(json.dumps(said))
"""


def test_the_router_as_a_library(host: Host) -> None:
    before = host.picture()
    done = _python(host, _LIBRARY)
    assert done.returncode == 0, done.stderr
    state, forward, names, uplink, usage, conflict, who, left = json.loads(done.stdout)
    assert (state, forward, names, uplink, left) == ("up", 2207, ["a"], "eth0", [])
    assert usage[0] == "UsageError" and "tr-none" in usage[1]
    assert conflict[0] == "ConflictError" and "'a'" in conflict[1]
    assert who == ["a", "dom0", "lan", "unknown"]
    assert host.picture() == before


def test_a_nameless_namespace_is_told_how_to_get_a_name() -> None:
    done = run("unshare", "--net", str(VFR), "nat", "enable", "--uplink", "eth0", check=False)
    _is_refused(done, "ip netns attach")
    assert done.returncode == 2


def _commands(words: tuple[str, ...], command: object) -> Iterator[tuple[str, ...]]:
    for name, one in getattr(command, "commands", {}).items():
        yield from _commands((*words, name), one)
    yield words


@pytest.mark.parametrize("words", sorted(_commands((), typer.main.get_command(app))), ids=" ".join)
def test_wrong_words_are_told(words: tuple[str, ...]) -> None:
    """Of every command, with what its arguments are called; brackets in there are no colours."""
    wrong = run(str(VFR), *words, "--no-such-option", check=False)
    assert wrong.returncode == 2 and " ".join(("Usage: vfr", *words)) in wrong.stderr, wrong.stderr
    assert "--no-such-option" in wrong.stderr and "Traceback" not in wrong.stderr
    assert run(str(VFR), *words, "--help").stdout.strip().startswith("Usage: vfr")
