"""The attack battery: what VFR holds is what docs/attacks.md says, and there is no attack that bites nobody.

labs bt1, bt2: vfr, every attack once         lab bt3, meanwhile: the other backends, each with the attacks that
                                              are known to get through it, every attack once

Most of an attack's time is waiting for what does not come, so several labs are at work on two cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vfr_lab.backends import backend, names
from vfr_lab.battery import FAMILIES, Attack, Result, attacks
from vfr_lab.battery.command import attack as run_command
from vfr_lab.battery.command import labs_up
from vfr_lab.battery.report import RENDERERS, Report
from vfr_lab.battery.run import Judge, Part, _Turns
from vfr_lab.battery.stage import Stage

pytestmark = pytest.mark.lab

EVERY = attacks()
COMMAND = Path(sys.executable).parent / "vfr-lab"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "attacks.md"
# Where an attack is shown to bite, if several are known to fall: those first that are quick to wire.
TRIES = 3
QUICKEST = ("routed", "xen1", "routed-lax", "vde", "bridge", "bridge-filtered")
Results = Mapping[tuple[str, str], Result]


def _losses() -> set[str]:
    """The attacks that get through VFR, as the docs list them."""
    section = DOCS.read_text().partition("## What VFR loses")[2].partition("\n## ")[0]
    return set(re.findall(r"^\* `([a-z-]+/[a-z0-9-]+)`", section, re.MULTILINE))


def _bitten(a: Attack) -> str:
    return next(name for name in QUICKEST if name in a.falls)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What became of every attack of which a test is asked for, on vfr and where it bites."""
    wanted = {item.callspec.params["a"].id for item in request.session.items if "a" in _parameters(item)}
    battery = [a for a in EVERY if a.id in wanted]
    parts = [*_halves("vfr", battery), *_bites(battery)]
    found: dict[tuple[str, str], Result] = {}

    def note(result: Result) -> None:
        found[result.attack, result.backend] = result

    with labs_up([part.backend for part in parts[:3]], "bt") as labs:
        judge = Judge(labs, tmp_path_factory.mktemp("captures"), note)
        judge.run(parts)
        # Some are races against the victim's own packets: one that wins now and then bites.
        for _ in range(TRIES - 1):
            missed = [a for a in battery if found[a.id, _bitten(a)].outcome != "fell"]
            if missed:
                judge.run(_bites(missed))
    return found


def _bites(battery: list[Attack]) -> list[Part]:
    """Each attack where it is known to bite."""
    return [Part(backend(n), mine) for n in QUICKEST if (mine := [a for a in battery if _bitten(a) == n])]


def _halves(name: str, battery: list[Attack]) -> list[Part]:
    return [Part(backend(name), battery[n::2]) for n in (0, 1)]


def _parameters(item: pytest.Item) -> dict[str, object]:
    spec = getattr(item, "callspec", None)
    return spec.params if spec else {}


def _told(result: Result) -> str:
    return "\n".join([f"{result.attack} on {result.backend}: {result.outcome}", *result.seen, *result.sent[-20:]])


@pytest.mark.parametrize("a", EVERY, ids=lambda a: a.id)
def test_vfr_holds_but_for_what_the_docs_say(a: Attack, results: Results) -> None:
    result = results[a.id, "vfr"]
    assert result.outcome == ("fell" if a.id in _losses() else "held"), _told(result)


@pytest.mark.parametrize("a", EVERY, ids=lambda a: a.id)
def test_it_bites(a: Attack, results: Results) -> None:
    """An attack that gets nothing from anybody shows nothing."""
    result = results[a.id, _bitten(a)]
    assert result.outcome == "fell", _told(result)


STRICTER = ("vfr-sandbox", "vfr-web-db")


@pytest.fixture(scope="module")
def under_stricter_rules(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Every attack under each of them."""
    found: list[Result] = []
    parts = [half for name in STRICTER for half in _halves(name, EVERY)]
    with labs_up([part.backend for part in parts], "bs") as labs:
        Judge(labs, tmp_path_factory.mktemp("captures"), found.append).run(parts)
    return found


@pytest.mark.parametrize("name", STRICTER)
def test_nothing_gets_through_vfr_under_any_rules_that_ship(name: str, under_stricter_rules: list[Result]) -> None:
    """What can't be mounted under rules that allow so little is void; what can be is held as under xen.rules."""
    found = [r for r in under_stricter_rules if r.backend == name]
    fell = {r.attack: _told(r) for r in found if r.outcome == "fell"}
    assert fell.keys() <= _losses(), "\n".join(fell.values())
    counted = Counter(r.outcome for r in found)
    print(f"{name}: {dict(counted)}")
    assert len(found) == len(EVERY) and counted["held"] >= 30, counted


# The declarations


def test_attacks_are_many_and_explained() -> None:
    assert len(EVERY) >= 80
    assert {a.family for a in EVERY} == set(FAMILIES)
    known = set(names())
    for a in EVERY:
        assert len(a.detail) > 40, f"{a.id} is not explained"
        assert a.sentence.endswith(".") and "\n" not in a.sentence, a.id
        assert set(a.falls) <= known and set(a.falls) & set(QUICKEST), f"{a.id} falls on {a.falls}"


def test_the_docs_name_attacks_that_there_are() -> None:
    assert _losses() <= {a.id for a in EVERY}
    assert re.findall(r"\b(\d+) attacks", DOCS.read_text()) == [str(len(EVERY))]


# Reports, of results that are made up


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Three attacks on two backends, one of each outcome, with characters that need care."""
    (tmp_path / "one.pcap").write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(range(256)))
    three, outcomes = EVERY[:3], ("held", "fell", "void")
    odd = "</script><b>&'\"]]>\x00\x1b[31m\udc80 |"
    made = [
        Result(a.id, b, o, (f"web: {odd}",), ("a control",), (odd,) if o != "held" else (), 0.5, "one.pcap")  # type: ignore[arg-type]
        for a, o in zip(three, outcomes, strict=True)
        for b in ("vfr", "bridge")
    ]
    return Report.of([backend("vfr"), backend("bridge")], three, made, tmp_path)


class _Page(HTMLParser):
    """Tags that are opened and closed, and what is loaded from elsewhere."""

    VOID = {"meta", "br", "option"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.signs = Counter[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            f"{tag} {k}={v}" for k, v in attrs if k == "src" or (k == "href" and not (v or "").startswith("#"))
        ]
        self.signs[dict(attrs).get("class") or ""] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = RENDERERS["html"](report)
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open and not page.loads
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert {o: page.signs[f"sign {o}"] for o in ("held", "fell", "void")} == dict.fromkeys(
        ("held", "fell", "void"), 3
    ), "two backends each, and the legend"
    assert "</script><b>" not in text and text.count('data-capture="one.pcap"') == 6


def test_junit_counts(report: Report) -> None:
    suites = ET.fromstring(RENDERERS["junit"](report))
    assert [s.get("name") for s in suites] == ["vfr", "bridge"]
    for suite in suites:
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
        assert len(suite.findall("testcase")) == 3
        assert len(suite.findall("testcase/failure")) == len(suite.findall("testcase/error")) == 1


def test_json_has_all_of_it(report: Report) -> None:
    told = json.loads(RENDERERS["json"](report))
    back = [Result(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in told["results"]]
    assert tuple(back) == report.results
    assert [a["id"] for a in told["attacks"]] == [a.id for a in report.attacks]
    assert asdict(back[0])["attack"] == EVERY[0].id


def test_markdown_is_a_table(report: Report) -> None:
    lines = RENDERERS["markdown"](report).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {4}
    assert "| **all** | 1 / 3 | 1 / 3 |" in rows


# The command


def _command(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": path} if path is not None else {})
    argv = [str(COMMAND), "attack", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "nobody"], "there is no backend 'nobody'; there are: bridge, "),
        (["--only", "vlan", "--only", "no-such"], "no attack has 'no-such' in its name"),
        (["--only", "vlan", "--html", "/nowhere/page.html"], "/nowhere/page.html: there is no directory /nowhere"),
        (["--jobs", "0"], "--jobs"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    done = _command(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr, done.stderr


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    done = _command("--backend", "vde", path=str(tmp_path))
    assert done.returncode == 1 and "the backend vde needs " in done.stderr and "vde_switch" in done.stderr


def test_a_backend_that_holds_and_one_that_falls(tmp_path: Path) -> None:
    one = "identity/source-address-of-a-third-guest"
    held = _command("--backend", "routed", "--only", one, "--prefix", "bt-a", "--json", str(tmp_path / "a.json"))
    assert held.returncode == 0 and f"1/1 ✓ routed {one} held" in held.stderr, held.stderr
    assert [r["outcome"] for r in json.loads((tmp_path / "a.json").read_text())["results"]] == ["held"]
    fell = _command("--backend", "xen1", "--only", one, "--prefix", "bt-a", "--shuffle", "1")
    assert fell.returncode == 1 and f"xen1 fell to {one}: db's service believes" in fell.stdout, fell.stdout


def test_what_proves_nothing_is_void(capfd: pytest.CaptureFixture[str]) -> None:
    """An attack without a control, one whose control fails, and one that breaks: each void, and said why."""

    def uncontrolled(s: Stage) -> list[str]:
        return []

    def failing(s: Stage) -> list[str]:
        s.control("the sun shines", False)
        return []

    def broken(s: Stage) -> list[str]:
        s.web.run("no-such-program")
        return []

    made = [
        Attack(f.__name__, "reach", "A test.", "", "", (), leaves=False, alone=False, mount=f)
        for f in (uncontrolled, failing, broken)
    ]
    assert run_command(["routed"], made, "bt-v", {}, jobs=1) == 1
    said = capfd.readouterr().err
    for why in ("no control", "this had to hold: the sun shines", "no-such-program is not installed"):
        assert re.search(rf"\? routed reach/\w+ void: .*{why}", said), said


def test_who_works_alone_is_alone() -> None:
    """Two that want to be alone, and one that does not mind: never two at a time but of the latter."""
    turns, here, seen = _Turns(), Counter[str](), list[tuple[int, int]]()

    def work(kind: str) -> None:
        for _ in range(200):
            with turns.alone() if kind == "alone" else turns.side_by_side():
                here[kind] += 1
                seen.append((here["alone"], here["side"]))
                here[kind] -= 1

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("alone", "side", "alone")]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert len(seen) == 600 and not [s for s in seen if s[0] and (s[1] or s[0] > 1)]
