"""A little machine with Debian 12's own kernel, in QEMU without KVM.

Nothing is installed for it on this host: the kernel's package is taken apart below build/vm. The machine
has this host's /usr and /etc and this tree, all read-only, and memory for what is written.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from vfr_lab.debian import KERNELS, Kernel, UnavailableError, ask, pack
from vfr_lab.debian import kernel as the_kernel
from vfr_lab.debian import modules as modules_of
from vm.steps import CPUS, TOP

KERNEL_LOG = KERNELS / "kernel.log"
BUSYBOX = Path("/bin/busybox")
KERNEL_LINES = 12
DEADLINE_S = 1500
PASSED = 2 * 0x20 + 1  # QEMU's exit status when `init` has said so, and nothing else's
MEMORY = "1G"
FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True, slots=True)
class Report:
    """What a machine said: each finished step's (exit status, text) by name, the rest, QEMU's exit status."""

    steps: dict[str, tuple[int, str]]
    rest: str
    status: int

    def problems(self, wanted: Iterable[str]) -> str:
        """What of the steps failed or was not reached, with the machine's words; "" if nothing."""
        failed = [f"{name}: exit {status}\n{text}" for name, (status, text) in self.steps.items() if status]
        missing = [name for name in wanted if name not in self.steps]
        if missing or (self.status != PASSED and not failed):
            failed.append(f"it did not get to: {', '.join(missing) or 'the end'}\n{self.rest}")
        return "\n".join(failed)


def _initramfs(kernel: Kernel, work: Path) -> Path:
    """The first root: busybox, tests/vm/init, and the modules that it takes to reach this host's files."""
    root = work / "root"
    for name in ("modules", "usr", "etc", "proc", "sys", "dev", "root", "var"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    modules = modules_of(kernel, *FIRST_MODULES)
    for module in modules:
        shutil.copy(module, root / "modules")
    (root / "modules/order").write_text("".join(f"{module.name}\n" for module in modules))
    (root / "place").write_text(f"{TOP}\n")
    (root / "modprobe").write_text(f"#!/bin/sh\nexec /usr/sbin/modprobe -d '{kernel.root}' \"$@\"\n")
    shutil.copy(BUSYBOX, root / "busybox")
    shutil.copy(TOP / "tests/vm/init", root / "init")
    for name in ("modprobe", "init"):
        (root / name).chmod(0o755)
    return pack(root, work / "initramfs")


def _share(path: Path, tag: str) -> list[str]:
    return ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"]


def _qemu(kernel: Kernel, initramfs: Path) -> list[str]:
    """The first serial line is what the machine says, the second what its kernel says.

    With two CPUs, two steps go on at once. RCU's grace periods, which every change of a map in map
    waits for, are made short: they would be half of the time.
    """
    machine = ["-accel", "tcg", "-cpu", "max", "-smp", str(CPUS), "-m", MEMORY, "-no-reboot"]
    bare = ["-nodefaults", "-no-user-config", "-display", "none"]
    boot = ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
    words = ["-append", "console=ttyS1 panic=-1 mitigations=off rcupdate.rcu_expedited=1"]
    lines = ["-serial", "stdio", "-serial", f"file:{KERNEL_LOG}", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    shares = [*_share(Path("/usr"), "usr"), *_share(Path("/etc"), "etc"), *_share(TOP, "tree")]
    return ["qemu-system-x86_64", *machine, *bare, *boot, *words, *lines, *shares]


def _give_up(qemu: subprocess.Popen[bytes], said: list[str]) -> None:
    said.append(f"\nkilled after {DEADLINE_S} s\n")
    qemu.kill()


def _run(argv: list[str]) -> tuple[str, int]:
    """What QEMU's first serial line says, shown as it comes, and its exit status. Killed at the deadline."""
    said: list[str] = []
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        assert qemu.stdout is not None
        deadline = Timer(DEADLINE_S, _give_up, (qemu, said))
        deadline.start()
        try:
            for raw in qemu.stdout:
                said.append(raw.decode(errors="replace").replace("\r", ""))
                sys.stdout.write(said[-1])
                sys.stdout.flush()
        except BaseException:
            qemu.kill()
            raise
        finally:
            deadline.cancel()
    return "".join(said), qemu.returncode


def _report(text: str, status: int) -> Report:
    """Sorts out what was said: by step, and what is in no finished one, with the kernel's last words."""
    step = re.compile(r"^=== ([^:\n]+)\n(.*?)^=== \1: exit (-?\d+), .*?\n", re.MULTILINE | re.DOTALL)
    steps = {match[1]: (int(match[3]), match[2]) for match in step.finditer(text)}
    kernel = KERNEL_LOG.read_text(errors="replace").splitlines()[-KERNEL_LINES:]
    rest = "\n".join([step.sub("", text), f"QEMU's exit status is {status}; its kernel's last words:", *kernel])
    return Report(steps, rest, status)


def boot() -> Report:
    """Runs vm.steps in a machine. UnavailableError where there can be none."""
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the machine is an x86_64 one, this host is {platform.machine()}")
    if os.geteuid() or not BUSYBOX.exists():
        raise UnavailableError("root, and the package busybox-static, are needed")
    ask("qemu-system-x86_64", "--version")
    found = the_kernel()
    print(f"Linux {found.release} in QEMU; the kernel's own words are in {KERNEL_LOG}", flush=True)
    with tempfile.TemporaryDirectory(dir=KERNELS) as work:
        return _report(*_run(_qemu(found, _initramfs(found, Path(work)))))
