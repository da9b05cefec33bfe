"""What a run of the battery showed: as a matrix for the terminal, a page, Markdown, JUnit XML and JSON."""

from __future__ import annotations

import base64
import gzip
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.table import Table
from rich.text import Text

from vfr_lab.backends import Backend
from vfr_lab.battery import FAMILIES, Attack, Outcome, Result

SIGNS: dict[Outcome, str] = {"held": "✓", "fell": "✗", "void": "?"}
STYLES: dict[Outcome, str] = {"held": "green", "fell": "bold red", "void": "yellow"}
MEANINGS: dict[Outcome, str] = {
    "held": "the attack was mounted, and got nothing",
    "fell": "the attacker got what it wanted",
    "void": "the attack proved nothing here: a control failed, or an error",
}


@dataclass(frozen=True, slots=True)
class Report:
    """A run. `captures` is the directory of the results' pcap files; `when` is in UTC."""

    backends: tuple[Backend, ...]
    attacks: tuple[Attack, ...]
    results: tuple[Result, ...]
    captures: Path
    when: str = ""

    @classmethod
    def of(cls, backends: Iterable[Backend], attacks: Iterable[Attack], results: Iterable[Result], at: Path) -> Report:
        return cls(
            tuple(backends), tuple(attacks), tuple(results), at, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        )

    def result(self, attack: Attack, backend: Backend) -> Result | None:
        """None if the run did not come so far."""
        return next((r for r in self.results if (r.attack, r.backend) == (attack.id, backend.name)), None)

    def tally(self, backend: Backend, family: str | None = None) -> Counter[Outcome]:
        """How many attacks ended how."""
        mine = (r for r in self.results if r.backend == backend.name)
        return Counter(r.outcome for r in mine if family is None or r.attack.startswith(f"{family}/"))

    def families(self) -> list[tuple[str, list[Attack]]]:
        """The attacks by what the attacker wants, without families of which there are none."""
        found = ((f, [a for a in self.attacks if a.family == f]) for f in FAMILIES)
        return [(family, mine) for family, mine in found if mine]

    @property
    def machine(self) -> str:
        return f"Linux {platform.release()}, {platform.machine()}"


def matrix(report: Report) -> Table:
    """Attacks by backends, for a terminal."""
    table = Table("attack", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{report.machine}, {report.when}")
    for backend in report.backends:
        table.add_column(backend.name.replace("-", "-\n"), justify="center")
    for family, mine in report.families():
        head = f"[bold]{family}[/], {FAMILIES[family]}: held of {len(mine)}"
        table.add_row(head, *(_held(report, b, family) for b in report.backends))
        for attack in mine:
            table.add_row(f"  {attack.name}", *(_sign(report.result(attack, b)) for b in report.backends))
        table.add_section()
    total = f"[bold]all[/]: held of {len(report.attacks)}"
    table.add_row(total, *(_held(report, b) for b in report.backends))
    return table


def key() -> Text:
    """What the signs of the matrix mean."""
    lines = (Text.assemble((SIGNS[o], STYLES[o]), f" {o}: {MEANINGS[o]}") for o in SIGNS)
    return Text("\n").join(lines)


def _held(report: Report, backend: Backend, family: str | None = None) -> str:
    return f"[bold]{report.tally(backend, family)['held']}[/]"


def _sign(result: Result | None) -> str:
    return f"[{STYLES[result.outcome]}]{SIGNS[result.outcome]}[/]" if result else ""


def as_json(report: Report) -> str:
    """Everything, for programs."""
    return json.dumps(
        {
            "when": report.when,
            "machine": report.machine,
            "backends": {b.name: b.sentence for b in report.backends},
            "attacks": [{k: v for k, v in asdict(a).items() if k != "mount"} | {"id": a.id} for a in report.attacks],
            "results": [asdict(r) for r in report.results],
        },
        indent=1,
    )


def as_markdown(report: Report) -> str:
    """The matrix, for a document."""
    names = " | ".join(b.name for b in report.backends)
    rule = "|---" * (len(report.backends) + 1) + "|"

    def row(head: str, family: str | None) -> str:
        tallies = [report.tally(b, family) for b in report.backends]
        return f"| {head} | " + " | ".join(f"{t['held']} / {t.total()}" for t in tallies) + " |"

    def signs(attack: Attack) -> str:
        found = [report.result(attack, b) for b in report.backends]
        return " | ".join(SIGNS[r.outcome] if r else "" for r in found)

    lines = [f"{len(report.attacks)} attacks; {report.machine}; {report.when}.", ""]
    lines += [f"{SIGNS[o]} {o}: {MEANINGS[o]}.  " for o in SIGNS]
    lines += ["", f"| held, of all | {names} |", rule]
    lines += [row(f"**{family}**: {FAMILIES[family]}", family) for family, _ in report.families()]
    lines += [row("**all**", None)]
    for family, mine in report.families():
        lines += ["", f"## {family}: {FAMILIES[family]}", "", f"| attack | {names} |", rule]
        lines += [f"| {_cell(a.sentence)}<br>`{a.name}` | {signs(a)} |" for a in mine]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A table's cell ends at a bar."""
    return text.replace("|", "\\|")


def as_junit(report: Report) -> str:
    """A suite a backend; an attack that fell is a failure, a void one an error."""
    suites = ET.Element("testsuites", name="vfr-lab attack")
    for backend in report.backends:
        mine = [r for r in report.results if r.backend == backend.name]
        tally = report.tally(backend)
        suite = ET.SubElement(suites, "testsuite", name=backend.name, tests=str(len(mine)))
        suite.attrib |= {"failures": str(tally["fell"]), "errors": str(tally["void"])}
        for result in mine:
            family, _, name = result.attack.partition("/")
            case = ET.SubElement(
                suite, "testcase", classname=f"{backend.name}.{family}", name=name, time=f"{result.seconds}"
            )
            if result.outcome != "held":
                kind = "failure" if result.outcome == "fell" else "error"
                ET.SubElement(case, kind, message=_xml(result.seen[0])).text = _xml("\n".join(result.seen))
            ET.SubElement(case, "system-out").text = _xml("\n".join(result.sent))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True)


def _xml(text: str) -> str:
    """What packets say may hold characters that XML can't."""
    return "".join(c if c in "\n\t" or 0x20 <= ord(c) < 0xD800 else "\N{REPLACEMENT CHARACTER}" for c in text)


def as_html(report: Report) -> str:
    """One page that needs nothing else: the captures are in it."""
    environment = Environment(
        loader=PackageLoader("vfr_lab", "battery"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    captures = {r.capture: _embedded(report.captures / r.capture) for r in report.results if r.capture}
    return environment.get_template("page.html").render(
        report=report, wishes=FAMILIES, signs=SIGNS, meanings=MEANINGS, captures=captures
    )


def _embedded(capture: Path) -> str:
    """A capture as base64 of a .pcap.gz, which Wireshark reads."""
    return base64.b64encode(gzip.compress(capture.read_bytes(), mtime=0)).decode()


RENDERERS: dict[str, Callable[[Report], str]] = {
    "html": as_html,
    "junit": as_junit,
    "json": as_json,
    "markdown": as_markdown,
}
