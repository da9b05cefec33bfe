"""`vfr-lab vm`: a VM as one more guest of a lab, for as long as the command runs."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vfr_lab.backends.vfr import VfrBackend
from vfr_lab.debian import UnavailableError
from vfr_lab.lab import Lab, LabError, UsageError
from vfr_lab.vm import Card, Image, Vm, image, qemu


@contextmanager
def _domain(lab: Lab, name: str) -> Iterator[Card]:
    """A domain with a TAP; the card that a VM must have for it."""
    vfr = VfrBackend().command
    listed = json.loads(lab.exec("dom0", vfr, "domain", "list", "--json").stdout)
    if any(domain["name"] == name for domain in listed):
        raise UsageError(f"the lab has a guest {name!r} already; choose another name")
    tap = f"tap-{name}"
    added = json.loads(lab.exec("dom0", vfr, "domain", "add", name, "--tap", tap, "--json").stdout)
    try:
        yield Card(tap, added["mac"])
    finally:
        lab.exec("dom0", vfr, "domain", "remove", name)


def _once(lab: Lab, booted: Image, name: str, card: Card, command: str) -> int:
    with Vm(booted, name, lab.netns("dom0"), card) as vm:
        status, said = vm.run(command)
    print(said, end="")
    return status


def run(lab: Lab, name: str, command: Sequence[str]) -> int:
    """Boots a VM whose key is that of the lab's clients. With a command, runs that in it and returns its exit status; else
    its console is this terminal, until it is shut down. Then the domain goes. LabError where there can be no VM."""
    if not lab.is_up() or lab.wired_by != "vfr":
        raise LabError("no lab is up that VFR wires; run `vfr-lab up`")
    with tempfile.TemporaryDirectory() as work:
        try:
            booted = image(Path(work), lab.key.with_suffix(".pub").read_text())
        except UnavailableError as reason:
            raise LabError(f"there can be no VM here: {reason}") from None
        with _domain(lab, name) as card:
            if command:
                return _once(lab, booted, name, card, " ".join(command))
            argv = ["ip", "netns", "exec", lab.netns("dom0"), *qemu(booted, name, card.arguments(), None, console=True)]
            return subprocess.run(argv, check=False).returncode
