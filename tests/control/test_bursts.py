"""Domains added and removed by the hundred: each with its own outcome, others in between, and whole whenever it dies."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import herd
from support.dying import died, program
from support.host import VFR, Host, run

from vfr.bursts import PART

LONG = bool(os.environ.get("VFR_LONG"))
RULES = str(Path(__file__).resolve().parents[2] / "rules" / "xen.rules")
HUNDRED = 100


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("vt") as made:
        made.vfr("nat", "enable", "--uplink", "eth0")
        made.add("a")
        yield made


def _todo(host: Host) -> list[str]:
    """What a command would find to do, had it looked at everything."""
    steps: list[str] = host.json("apply", "--dry-run", RULES)["steps"]
    return steps


def _states(host: Host) -> dict[str, str]:
    return {d["name"]: d["state"] for d in host.json("domain", "list")}


def _add(host: Host, lines: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", host.ns("dom0"), str(VFR), "domain", "add", "--from", "-"]
    return run(*argv, text_in="\n".join(lines), check=check)


def _in(namespace: str, address: str) -> bool:
    argv = ["ip", "netns", "exec", namespace, "ping", "-n", "-c1", "-W1", address]
    return run(*argv, check=False).returncode == 0


@pytest.mark.inv(9)
def test_a_burst_comes_and_goes(host: Host) -> None:
    """Some at addresses of the pool, which have forwards, some at others, which have routes. Nothing is left to do
    afterwards, and nothing is left at the end."""
    before = host.picture()
    with herd.namespaces("vt-n", HUNDRED) as names:
        lines = [herd.line(name, number if number % 2 else None) for number, name in enumerate(names)]
        said = _add(host, lines).stdout.splitlines()
        assert [line.partition(":")[0] for line in said] == names
        assert _states(host) == dict.fromkeys(["a", *names], "up")
        assert _todo(host) == []
        addresses = {d["name"]: d["address"] for d in host.json("domain", "list")}
        assert len(set(addresses.values())) == HUNDRED + 1
        for one, other in ((0, 1), (1, 2), (HUNDRED - 1, 0)):
            assert _in(names[one], "192.0.2.11"), "the LAN"
            assert not _in(names[one], addresses[names[other]]), "each other"
            assert not _in(names[one], "169.254.1.0"), "domain 0"
        forwards = {f["domain"]: f["address"] for f in host.json("nat", "status")["forwards"] if f["domain"]}
        assert forwards == {
            name: at for name, at in addresses.items() if at.startswith("169.254.1.") and name in forwards
        }
        assert len(forwards) == 18, "2-19 are all taken"
        host.vfr("domain", "remove", *names)
        assert _states(host) == {"a": "up"}
        assert _todo(host) == []
    after = host.picture()
    assert {k: v for k, v in after.items() if k != "nft"} == {k: v for k, v in before.items() if k != "nft"}
    assert sorted(after["nft"].splitlines()) == sorted(before["nft"].splitlines())


def test_what_is_wrong_with_one_leaves_the_others(host: Host) -> None:
    with herd.namespaces("vt-n", 5) as names:
        run("ip", "-n", names[2], "link", "add", "eth0", "type", "bridge")
        lines = [
            herd.line(names[0]),
            "vt-gone netns vt-gone",
            herd.line(names[2]),
            "a netns " + names[3],
            herd.line(names[1]),
            herd.line(names[1]),
            "Bad netns x",
            f"{names[3]} netns {names[3]} address 192.0.2.77",
            f"{names[4]} netns {names[0]}",
        ]
        done = _add(host, lines, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == names[:2]
        for words in (
            "vt-gone: there is no network namespace",
            f"{names[2]}: the namespace '{names[2]}' has an eth0 already",
            "a: there is a domain 'a' already",
            f"{names[1]}: the domain '{names[1]}' is asked for twice",
            "standard input:7: ",
            f"{names[3]}: 192.0.2.77 lies in 192.0.2.0/24, the network on eth0",
            f"{names[4]}: the namespace '{names[0]}' belongs to the domain '{names[0]}'",
        ):
            assert words in done.stderr, (words, done.stderr)
        assert _states(host) == dict.fromkeys(["a", *names[:2]], "up")
        assert _todo(host) == []
        done = host.vfr("domain", "remove", names[0], "nobody", names[1], check=False)
        assert done.returncode == 1 and "nobody: there is no domain 'nobody'" in done.stderr
        assert _states(host) == {"a": "up"}


def test_what_the_kernel_refuses_to_one_leaves_the_others(host: Host) -> None:
    """Its interface's name is taken while the part is at work: what was made for it goes, the rest stays."""
    call = (
        "print([o.name for o in router.add_domains([DomainLine(n, 'netns', n) for n in ['vt-n0', 'vt-n1', 'vt-n2']])"
        " if o.error])"
    )
    meddle = "os.system('ip link add vif-vt-n1 type bridge') if 'interfaces' in step else None"
    text = f"from vfr.policy.language import DomainLine\n{program(call, '0')}".replace(
        "    count += 1", f"    {meddle}", 1
    )
    with herd.namespaces("vt-n", 3) as names:
        assert herd.python(host, text, "-1").strip() == "['vt-n1']"
        assert _states(host) == {"a": "up", names[0]: "up", names[2]: "up"}
        assert _todo(host) == []
        assert "bridge" in host.sh("dom0", "ip -d link show vif-vt-n1"), "what is not ours stays"
        host.sh("dom0", "ip link del vif-vt-n1")
        host.vfr("domain", "add", names[1], "--netns", names[1])
        assert _states(host)[names[1]] == "up"


_LATE = """
import fcntl, os, subprocess, sys, time
from vfr import Router
from vfr.policy.language import DomainLine
from vfr.registry import in_line
names, late, vfr = sys.argv[1:-2], sys.argv[-2], sys.argv[-1]
waiting = []

def step(text):
    if not waiting:
        waiting.append(subprocess.Popen([vfr, "domain", "add", late, "--netns", late], stdout=subprocess.DEVNULL))
        line = in_line(Router().instance.lock)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not held(line):
            time.sleep(0.01)

def held(path):
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

lines = [DomainLine(name, "netns", name) for name in names]
assert not [o for o in Router(on_step=step).add_domains(lines) if o.error]
sys.exit(waiting[0].wait())
"""


def test_others_get_their_turn_between_parts(host: Host) -> None:
    """One that came while the first part was at work is done before the last part is."""
    with herd.namespaces("vt-n", 2 * PART + 1) as names:
        herd.python(host, _LATE, *names, str(VFR))
        order = [d["name"] for d in host.json("domain", "list")]
        assert set(order) == {"a", *names}
        assert order.index(names[-1]) < order.index(names[PART])
        assert _todo(host) == []
        host.vfr("domain", "remove", *names)


_CALLS = {
    "added": "router.add_domains([DomainLine(n, 'netns', n) for n in {names}])",
    "removed": "router.remove_domains({names})",
}
_IMPORT = "__import__('vfr.policy.language', fromlist=['x']).DomainLine"


@pytest.mark.inv(12)
@pytest.mark.parametrize("what", _CALLS)
def test_killed_at_steps_of_a_burst(host: Host, what: str) -> None:
    """At a few steps here, at every step with VFR_LONG. Another burst is enough to have what died whole again."""
    with herd.namespaces("vt-n", 3) as names, herd.namespaces("vt-m", 2) as others:
        call = _CALLS[what].format(names=names).replace("DomainLine", _IMPORT)
        steps = range(1, 40) if LONG else sorted(random.Random(6).sample(range(1, 9), 2))
        deaths = []
        for step in steps:
            host.vfr("nat", "enable")
            if what == "removed":
                _add(host, [herd.line(n) for n in names if n not in _states(host)])
            dead = died(host, call, step)
            deaths += [step] if dead else []
            _add(host, [herd.line(name) for name in others])
            assert set(_states(host).values()) == {"up"}, step
            assert _todo(host) == [], step
            for name in _states(host).keys() & set(names):
                assert _in(name, "192.0.2.11"), (step, name)
            host.vfr("domain", "remove", *others)
            if what == "added" and (there := _states(host).keys() & set(names)):
                host.vfr("domain", "remove", *there)
            if not dead:
                break
        assert deaths == [*steps][: len(deaths)] and len(deaths) >= (8 if LONG else 2)


_FIGURES = """
import json, re, sys, time
from collections import Counter
from pathlib import Path
from vfr import Router
from vfr.policy.language import DomainLine

def used():
    rows = {l.split(":")[0]: int(l.split()[1]) for l in Path("/proc/meminfo").read_text().splitlines()}
    return rows["MemTotal"] - sum(rows[k] for k in ("MemFree", "Buffers", "Cached", "SReclaimable")), rows

count, burst = int(sys.argv[1]), int(sys.argv[2])
lines = [DomainLine(n, "netns", n, a) for n, a in (line.split() for line in sys.stdin.read().splitlines())]
added, removed, spent, at_work = [], [], Counter(), ["choose, note down", time.process_time()]

def step(text):
    name = re.sub(r"[0-9]+ |^.*: ", "", text)
    name = "unpin, give back" if name.startswith("unpin") else name
    now = time.process_time()
    spent[at_work[0]] += now - at_work[1]
    at_work[:] = [name, now]

def outcomes_of(outcomes):
    assert not [o for o in outcomes if o.error], outcomes
    return [o.seconds for o in outcomes]

with Router(on_step=step) as router:
    before, rows_before = used()
    for at in range(0, count, burst):
        step("choose, note down")
        added += outcomes_of(router.add_domains(lines[at : at + burst]))
    step("look at all")
    after, rows_after = used()
    states = {d.state for d in router.domains()}
    in_order = router.repair()
    for at in range(0, count, burst):
        step("look, note down")
        removed += outcomes_of(router.remove_domains([line.name for line in lines[at : at + burst]]))
    step("end")
kinds = {k: (rows_after[k] - rows_before[k]) / count for k in ("Slab", "Percpu", "VmallocUsed", "AnonPages", "KernelStack")}
print(json.dumps({"added": added, "removed": removed, "kB": (after - before) / count, "kinds": kinds,
    "cpu": {name: s * 1e3 / count for name, s in spent.items()}, "states": sorted(states), "repaired": in_order}))
"""


def _percentiles(what: str, seconds: list[float]) -> None:
    taken = sorted(s * 1e3 for s in seconds)
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(
        f"{what}: {len(taken)} VIFs in bursts of {HUNDRED}, p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {taken[-1]:.2f} ms"
    )


@pytest.mark.skipif(not LONG, reason="4,000 domains: VFR_LONG=1")
def test_four_thousand(host: Host) -> None:
    """Recorded, not judged: `pytest -s` shows the figures."""
    count = int(os.environ.get("VFR_DOMAINS", "4000"))
    host.vfr("domain", "remove", "a")
    host.vfr("nat", "enable", "--ports-per-domain", "4")
    with herd.namespaces("vt-n", count) as names:
        text = "\n".join(f"{name} {herd.address(number)}" for number, name in enumerate(names))
        argv = ["ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", _FIGURES, str(count), str(HUNDRED)]
        done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
    assert seen["states"] == ["up"] and seen["repaired"] == []
    _percentiles("added", seen["added"])
    _percentiles("removed", seen["removed"])
    print(f"memory of an idle domain: {seen['kB']:.1f} kB; of this {seen['kinds']}")
    print("processor time of each step, ms for each VIF:", {k: round(v, 3) for k, v in seen["cpu"].items()})
    assert _states(host) == {}
    assert _todo(host) == []
