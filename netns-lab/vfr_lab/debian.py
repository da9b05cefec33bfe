"""Debian's packages without installing them: downloaded by apt and taken apart below build/, where the next run
finds them. So a program that would start a service on this host, or a kernel, is had without either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
KERNELS = BUILD / "vm"
PROGRAMS = BUILD / "programs"
KERNEL_VERSION = "6.1"
# What of the kernel's modules is kept: no sound, no graphics.
PARTS = ("arch", "crypto", "lib", "net", "fs", "drivers/net", "drivers/virtio")


class UnavailableError(Exception):
    """That is not to be had here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's package, taken apart: `root` has boot/ and lib/modules/."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"


@dataclass(frozen=True, slots=True)
class Programs:
    """Packages, taken apart: `root` has usr/bin, usr/sbin, usr/lib."""

    root: Path

    def find(self, name: str) -> Path:
        """A program's file."""
        for directory in ("usr/bin", "usr/sbin", "sbin", "bin"):
            if (self.root / directory / name).exists():
                return self.root / directory / name
        if installed := shutil.which(name):
            return Path(installed)
        raise UnavailableError(f"there is no {name}, neither in {self.root} nor installed")

    def environment(self) -> dict[str, str]:
        """With this a program of theirs finds its libraries."""
        libraries = sorted({str(file.parent) for file in self.root.glob("usr/lib/**/*.so*")})
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    def libraries(self, program: Path) -> list[tuple[str, Path]]:
        """(the path that it is looked for by, where it lies here) of each library of a program, and the loader."""
        shown = subprocess.run(["ldd", program], env=self.environment(), capture_output=True, text=True, check=True)
        found = []
        for line in shown.stdout.splitlines():
            if match := re.match(r"\s*(?:(\S+) => )?(/\S+)", line):
                found.append((match[2] if not match[1] else f"/lib/{match[1]}", Path(match[2])))
        return found


def ask(*argv: str, cwd: Path = BUILD.parent) -> str:
    """A command's output. UnavailableError with its words if it fails or is missing."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"{argv[0]} is not installed") from None
    if done.returncode:
        raise UnavailableError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _package() -> str:
    """The name of the package that the distribution's newest kernel of our version is in."""
    depends = ask("apt-cache", "depends", "linux-image-amd64")
    found = re.search(rf"Depends: (linux-image-{re.escape(KERNEL_VERSION)}\.\S+-amd64)$", depends, re.MULTILINE)
    if not found:
        raise UnavailableError(f"linux-image-amd64 is not Linux {KERNEL_VERSION} here: {' '.join(depends.split())}")
    return found[1]


def _download(package: str, into: Path) -> Path:
    """The package's file."""
    ask("apt-get", "download", "-q", package, cwd=into)
    return next(into.glob("*.deb"))


def _take_apart(package: Path, root: Path) -> None:
    wanted = [f"./lib/modules/*/kernel/{part}" for part in PARTS]
    tar = ["tar", "-x", "-C", str(root), "--wildcards", "./boot/vmlinuz-*", "./lib/modules/*/modules.*", *wanted]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as source:
        subprocess.run(tar, stdin=source.stdout, check=True)
    if source.returncode:
        raise UnavailableError(f"{package} is damaged")


def _fetch() -> Kernel:
    """The kernel's package, downloaded and taken apart, whole or not at all."""
    package = _package()
    release = package.removeprefix("linux-image-")
    with tempfile.TemporaryDirectory(dir=KERNELS) as directory:
        root = Path(directory) / "root"
        root.mkdir()
        _take_apart(_download(package, Path(directory)), root)
        ask("depmod", "-b", str(root), release)
        root.rename(KERNELS / package)
    return Kernel(release, KERNELS / package)


def kernel() -> Kernel:
    """The kernel, fetched unless it lies below build/vm from an earlier run."""
    for image in sorted(KERNELS.glob(f"linux-image-{KERNEL_VERSION}.*/boot/vmlinuz-*")):
        return Kernel(image.name.removeprefix("vmlinuz-"), image.parents[1])
    KERNELS.mkdir(parents=True, exist_ok=True)
    try:
        return _fetch()
    except UnavailableError:  # apt's lists may be missing, or older than what the mirror still has
        ask("apt-get", "update", "-q")
        return _fetch()


def modules(kernel: Kernel, *names: str) -> list[Path]:
    """The files of these modules and of what they need, in the order to load them."""
    shown = ""
    for name in names:
        shown += ask("modprobe", "-d", str(kernel.root), "-S", kernel.release, "--show-depends", name)
    files = [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


def _fetch_programs(packages: tuple[str, ...], place: Path) -> None:
    """With what they depend on and this host lacks, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=PROGRAMS) as directory:
        archives, root = Path(directory), Path(directory) / "root"
        (archives / "partial").mkdir()
        root.mkdir()
        cache = ["-o", f"Dir::Cache::archives={archives}"]
        ask("apt-get", "install", "-q", "-y", "--download-only", "--no-install-recommends", *cache, *packages)
        for package in archives.glob("*.deb"):
            ask("dpkg-deb", "-x", str(package), str(root))
        root.rename(place)


def programs(*packages: str) -> Programs:
    """Packages that are not to be installed, fetched unless they lie below build/programs from an earlier run.

    What is installed on this host is not fetched, and `find` finds it there.
    """
    place = PROGRAMS / "+".join(packages)
    if not place.exists():
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        try:
            _fetch_programs(packages, place)
        except UnavailableError:
            ask("apt-get", "update", "-q")
            _fetch_programs(packages, place)
    return Programs(place)


def pack(root: Path, into: Path) -> Path:
    """A directory as an initramfs."""
    names = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
    with into.open("wb") as archive:
        cpio = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(cpio, cwd=root, input=names, stdout=archive, check=True)
    return into
