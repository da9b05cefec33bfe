"""A VM as a guest: QEMU without KVM on a TAP, with Debian's kernel and a root of some megabytes.

In it are busybox and dropbear's sshd, nothing else. It gets its address by DHCP, or is told it on the kernel's command line.
Its serial line is a shell: `Vm.sh` runs commands there, so that it can be asked when its network is dead.
"""

from __future__ import annotations

import os
import platform
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vfr_lab.debian import Kernel, Programs, UnavailableError, ask, kernel, modules, pack, programs

BUSYBOX = Path("/bin/busybox")
INIT, LEASE = Path(__file__).with_name("vm_init"), Path(__file__).with_name("vm_lease")
BOOT_S = 120  # emulated, beside others
MODULES = ("virtio_pci", "virtio_net", "af_packet")
DROPBEAR = "dropbear-bin"


@dataclass(frozen=True, slots=True)
class Image:
    """What a VM boots."""

    kernel: Kernel
    initramfs: Path


@dataclass(frozen=True, slots=True)
class Card:
    """A VM's network card as QEMU is told of it. `options` are virtio-net's: "mrg_rxbuf=off,host_tso4=off"."""

    tap: str
    mac: str
    vnet_hdr: bool = True
    options: str = ""
    queues: int = 1

    def arguments(self) -> list[str]:
        netdev = f"tap,id=n0,ifname={self.tap},script=no,downscript=no,vnet_hdr={'on' if self.vnet_hdr else 'off'}"
        device = f"virtio-net-pci,netdev=n0,mac={self.mac},romfile="
        if self.queues > 1:
            netdev, device = f"{netdev},queues={self.queues}", f"{device},mq=on,vectors={2 * self.queues + 2}"
        return ["-netdev", netdev, "-device", ",".join(filter(None, (device, self.options)))]


def _copy_program(programs: Programs, name: str, root: Path) -> None:
    """A program and the libraries it needs, each where it looks for them."""
    program = programs.find(name)
    for inside, outside in [(f"/sbin/{name}", program), *programs.libraries(program)]:
        target = root / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(outside, target)


def image(work: Path, authorized: str) -> Image:
    """Builds it below `work`. `authorized` is the public key that may log in as root.

    UnavailableError where there can be no VM.
    """
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the VM is an x86_64 one, this host is {platform.machine()}")
    if os.geteuid() or not BUSYBOX.exists():
        raise UnavailableError("root, and the package busybox-static, are needed")
    ask("qemu-system-x86_64", "--version")
    found, root = kernel(), work / "root"
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "modules", "proc", "sys", "dev", "etc/dropbear", "root/.ssh"):
        (root / name).mkdir(parents=True)
    files = modules(found, *MODULES)
    for module in files:
        shutil.copy(module, root / "modules")
    (root / "modules/order").write_text("".join(f"{module.name}\n" for module in files))
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    (root / "root/.ssh/authorized_keys").write_text(f"{authorized.strip()}\n")
    for name in ("root", "root/.ssh", "root/.ssh/authorized_keys"):
        (root / name).chmod(0o600 if name.endswith("keys") else 0o700)
    _copy_program(programs(DROPBEAR), "dropbear", root)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for source, name in ((INIT, "init"), (LEASE, "sbin/lease")):
        shutil.copy(source, root / name)
        (root / name).chmod(0o755)
    return Image(found, pack(root, work / "initramfs"))


def qemu(image: Image, name: str, cards: list[str], address: str | None, console: bool = False) -> list[str]:
    """QEMU's command line. The VM gets its address by DHCP, or has the given one as docs/vm.md says. With `console` its
    serial line is for somebody at a terminal."""
    words = ["console=ttyS1", "panic=-1", "mitigations=off", "random.trust_cpu=on", "ipv6.disable=1", "net.ifnames=0"]
    words += [f"vm.name={name}", *([f"vm.address={address}"] if address else []), *(["vm.console=1"] * console)]
    machine = ["-accel", "tcg", "-cpu", "max", "-m", "256M", "-no-reboot"]
    serial = ["-serial", "mon:stdio" if console else "stdio", "-serial", "null"]
    bare = ["-nodefaults", "-no-user-config", "-display", "none", *serial]
    boot = ["-kernel", str(image.kernel.image), "-initrd", str(image.initramfs), "-append", " ".join(words)]
    return ["qemu-system-x86_64", *machine, *bare, *boot, *cards]


class Vm:
    """A VM that runs: leaving the context kills it, as a crash would."""

    def __init__(
        self,
        image: Image,
        name: str,
        netns: str,
        card: Card | list[str],
        address: str | None = None,
        through: Sequence[str] = (),
        resumed: bool = False,
    ) -> None:
        """`card` may be QEMU's own arguments; `through` is a command that starts QEMU, as another user for instance. One
        that is `resumed` (-incoming) does not boot."""
        arguments = card if isinstance(card, list) else card.arguments()
        argv = ["ip", "netns", "exec", netns, *through, *qemu(image, name, arguments, address)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self._said, self._boots = b"", not resumed

    def __enter__(self) -> Vm:
        try:
            if self._boots:
                self._until(r"=== up\n", BOOT_S)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it at once; the TAP stays."""
        self.process.kill()
        self.process.communicate()

    def _until(self, end: str, patience_s: float) -> tuple[str, re.Match[str]]:
        """What the serial line says up to `end`, and the match of that. TimeoutError, or QEMU's last words."""
        assert self.process.stdout
        deadline = time.monotonic() + patience_s
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while not (found := re.search(end, text := self._said.decode(errors="replace").replace("\r", ""))):
                if not ready.select(max(0, deadline - time.monotonic())):
                    raise TimeoutError(f"the VM said no {end!r} in {patience_s} s, but: {text}")
                if not (more := os.read(self.process.stdout.fileno(), 65536)):
                    raise UnavailableError(f"QEMU ended: {text}")
                self._said += more
        self._said = text[found.end() :].encode()
        return text[: found.start()], found

    def run(self, command: str, patience_s: float = 60) -> tuple[int, str]:
        """A command's exit status and what it printed, by the serial line."""
        assert self.process.stdin
        self.process.stdin.write(f'({command}) < /dev/null 2>&1; echo "=== $?"\n'.encode())
        text, found = self._until(r"=== (\d+)\n", patience_s)
        return int(found[1]), text

    def sh(self, command: str, patience_s: float = 60) -> str:
        """What a command printed. AssertionError if it failed."""
        status, text = self.run(command, patience_s)
        assert status == 0, f"{command}: exit {status}: {text}"
        return text
