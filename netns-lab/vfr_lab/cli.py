"""The vfr-lab command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vfr_lab.backends import Backend, missing, names
from vfr_lab.backends import backend as backend_named
from vfr_lab.lab import Lab, LabError, UsageError
from vfr_lab.prove import prove as prove_all
from vfr_lab.scenario import SCENARIOS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The VFR lab: guests, a host, a LAN and an internet, in network namespaces.",
)
Prefix = Annotated[str, typer.Option(help="What every namespace's name begins with.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _backend(name: str) -> Backend:
    try:
        return backend_named(name)
    except LookupError as error:
        raise UsageError(str(error.args[0])) from None


@app.command()
def up(
    scenario: Annotated[str, typer.Option(help="Default: xen, and judge with another backend than vfr.")] = "",
    backend: Annotated[str, typer.Option(help="What wires the guests; see `vfr-lab backends`.")] = "vfr",
    prefix: Prefix = "lab-",
) -> None:
    """Bring a lab up, or leave it if it is; with another backend, have that wire its guests."""
    scenario = scenario or ("xen" if backend == "vfr" else "judge")
    if scenario not in SCENARIOS:
        raise UsageError(f"there is no scenario {scenario!r}; there are: {', '.join(SCENARIOS)}")
    lab = Lab(SCENARIOS[scenario], prefix, _backend(backend))
    already = lab.is_up() and lab.wired_by == backend
    lab.up()
    print(f"the lab {scenario} is up{' already' if already else ''}: try `ip netns exec {prefix}lan1 bash`")


@app.command()
def backends(json_: Json = False) -> None:
    """Show what can wire a lab's guests, and which programs it lacks here."""
    known = [_backend(name) for name in names()]
    shown = [{"name": b.name, "sentence": b.sentence, "judged": b.judged, "missing": missing(b)} for b in known]
    if json_:
        print(json.dumps(shown, indent=2))
        return
    table = Table("backend", "what it is", "judged", "missing here")
    for one in known:
        table.add_row(one.name, one.sentence, "yes" if one.judged else "no", ", ".join(missing(one)))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


@app.command()
def down(prefix: Prefix = "lab-") -> None:
    """Take a lab down; nothing of it remains."""
    Lab.of(prefix).down()
    print("the lab is down")


@app.command()
def status(prefix: Prefix = "lab-", json_: Json = False) -> None:
    """Show a lab's nodes. Exit status 1 if it is not up."""
    answer = Lab.of(prefix).status()
    if json_:
        print(json.dumps(answer, indent=2))
    else:
        print(
            f"scenario {answer['scenario']}: {'up' if answer['up'] else 'not up'}, wired by {answer['backend'] or '-'}"
        )
        nodes: list[dict[str, object]] = answer["nodes"]  # type: ignore[assignment]
        for node in nodes:
            print(f"  {node['node']:8} {node['netns'] or '-':12} {node['pid'] or ''}")
    sys.exit(0 if answer["up"] else 1)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(node: str, command: Annotated[list[str], typer.Argument()], prefix: Prefix = "lab-") -> None:
    """Run a command in a node: `vfr-lab exec web -- hostname`."""
    sys.exit(subprocess.run(Lab.of(prefix).argv(node, command), check=False).returncode)


@app.command(context_settings={"ignore_unknown_options": True})
def vm(name: str, command: Annotated[list[str] | None, typer.Argument()] = None, prefix: Prefix = "lab-") -> None:
    """Boot a VM as one more guest: its console is this terminal, or it runs a command: `vfr-lab vm box -- ip addr`.

    It gets its address by DHCP. When it ends, its domain goes. Needs QEMU: `make vm-packages`.
    """
    from vfr_lab import vm_guest

    sys.exit(vm_guest.run(Lab.of(prefix), name, command or ()))


@app.command()
def prove(prefix: Prefix = "lab-", json_: Json = False) -> None:
    """Show that the main job is done, by real programs. Exit status 1 if a claim fails."""
    lab = Lab.of(prefix)
    if not lab.is_up():
        raise LabError("the lab is not up; run `vfr-lab up`")
    seen = list(prove_all(lab))
    if json_:
        print(json.dumps([asdict(s) for s in seen], indent=2))
    else:
        table = Table("claim", "seen", "")
        for s in seen:
            table.add_row(s.claim, s.seen, "[green]ok[/]" if s.ok else "[red]FAILED[/]")
        Console(width=None if sys.stdout.isatty() else 150).print(table)
        print(f"{sum(s.ok for s in seen)} of {len(seen)} claims hold")
    sys.exit(0 if all(s.ok for s in seen) else 1)


@app.command("attacks")
def attacks_(json_: Json = False) -> None:
    """List the attacks: what each wants, with what tool, and on which backends it is known to get it."""
    from vfr_lab.battery import attacks as every

    shown = [{"id": a.id, "sentence": a.sentence, "tool": a.tool, "falls": a.falls} for a in every()]
    if json_:
        print(json.dumps(shown, indent=2))
        return
    table = Table("attack", "what it is", "tool", "known to fall")
    for a in every():
        table.add_row(a.id, a.sentence, a.tool, ", ".join(a.falls))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


@app.command()
def attack(
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only attacks with this in FAMILY/NAME; may be given again.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with everything in it.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the matrix as Markdown.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Mount them in an order drawn by this number.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many labs are at work at a time.")] = 2,
    prefix: Prefix = "judge-",
) -> None:
    """Mount the attacks against backends, and show who holds.

    Exit status 1 if an attack proved nothing, or got through a backend that was named by --backend; 2 if there is no
    such backend or attack.
    """
    from vfr_lab.battery import command

    battery = command.chosen_attacks(only or [])
    files = {"html": html, "junit": junit, "json": json_, "markdown": markdown}
    sys.exit(command.attack(backend or [], battery, prefix, {k: f for k, f in files.items() if f}, jobs, shuffle))


@app.command()
def bench(
    backend: Annotated[list[str] | None, typer.Option(help="Only this one and direct; may be given again.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only workloads with this in their name, or `scale`; may be given again.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each backend is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, max=5, help="How long each workload is measured.")] = 0.5,
    json_: Annotated[Path | None, typer.Option("--json", help="Write every sample as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write pictures into this directory.")] = None,
    prefix: Prefix = "bench-",
) -> None:
    """Measure backends one beside the other, and what size costs VFR. A quarter of an hour, with nothing else running."""
    from vfr_lab.bench.command import Options
    from vfr_lab.bench.command import bench as run

    run(Options(backend or (), only or (), rounds, seconds, prefix, json_, markdown, plots))


def main() -> None:
    """The `vfr-lab` command."""
    try:
        app(prog_name="vfr-lab")
    except LabError as error:
        print(f"vfr-lab: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
