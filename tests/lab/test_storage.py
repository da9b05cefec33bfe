"""What the Xen FAQ has go between a domain and domain 0, by rule only and with real programs.

    vs-a 169.254.1.2 --- vs-dom0 169.254.1.0: tgtd, ganesha.nfsd
    vs-b 169.254.1.3 ----'

The programs are taken from Debian's packages without installing them, so that no service starts on this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.host import Host, run

from vfr_lab.debian import Programs, UnavailableError, programs

PACKAGES = ("nfs-ganesha", "nfs-ganesha-vfs", "tgt", "libiscsi-bin", "libnfs-utils")
MEBIBYTES = 1024 if os.environ.get("VFR_LONG") else 16
DEADLINE_S = 40
DOM0 = "169.254.1.0"
BASE = "allow dom0 -> any\n"
ISCSI, NFS = "allow a -> dom0 tcp 3260\n", "allow a -> dom0 tcp 2049\n"
ISCSI_PROGRAM = Path(__file__).parents[1] / "support" / "iscsi.py"
TARGET = "iqn.2001-04.example:disk"


def _until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Storage:
    """The host, the programs, and a directory of one's own."""

    def __init__(self, host: Host, programs: Programs, work: Path) -> None:
        self.host, self.programs, self.work = host, programs, work

    def run(self, node: str, *argv: str, patience_s: int = 300) -> subprocess.CompletedProcess[str]:
        command = ["timeout", str(patience_s), str(self.programs.find(argv[0])), *argv[1:]]
        return run("ip", "netns", "exec", self.host.ns(node), *command, check=False, env=self.programs.environment())

    def rules(self, text: str) -> None:
        (self.work / "now.rules").write_text(text)
        self.host.vfr("apply", str(self.work / "now.rules"))

    def drops(self) -> int:
        """Packets of a's that no rule allowed."""
        shown = self.host.vfr("stats", "a").stdout.split()
        return int(shown[shown.index("DROP_POLICY") + 1]) if "DROP_POLICY" in shown else 0

    @contextmanager
    def daemon(self, port: int, *argv: str) -> Iterator[int]:
        """A service on domain 0, in mounts of its own, once it listens. Its pid."""
        log = (self.work / f"{argv[0]}.log").open("w")
        apart = "mount -t tmpfs run /run; mkdir -p /run/ganesha /var/lib/nfs; mount -t tmpfs nfs /var/lib/nfs; "
        apart += 'mkdir -p /var/lib/nfs/ganesha; exec "$@"'
        command = ["sh", "-c", apart, "apart", str(self.programs.find(argv[0])), *argv[1:]]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.host.ns("dom0"), *command],
            env=self.programs.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _until(lambda: process.poll() is not None or self._listens(port), f"{argv[0]} listens")
            assert process.poll() is None, Path(log.name).read_text()
            yield process.pid
        finally:
            process.kill()
            process.wait()
            log.close()

    def _listens(self, port: int) -> bool:
        return bool(self.host.sh("dom0", f"ss -Hltn sport = :{port}").strip())


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    try:
        found = programs(*PACKAGES)
    except UnavailableError as reason:
        pytest.skip(f"no {', '.join(PACKAGES)}: {reason}")
    with tempfile.TemporaryDirectory() as work, Host("vs") as host:
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.add("a", "--address", "169.254.1.2")
        host.add("b", "--address", "169.254.1.3")
        yield Storage(host, found, Path(work))


@pytest.fixture
def data(storage: Storage) -> Path:
    path = storage.work / "data"
    with path.open("wb") as file:
        for _ in range(MEBIBYTES):
            file.write(os.urandom(1 << 20))
    return path


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


EXPORT = """
NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = 169.254.1.0; NFS_Port = 2049; Enable_NLM = false; Enable_RQUOTA = false;
    Plugins_Dir = "{plugins}"; }}
NFSv4 {{ Graceless = true; }}
EXPORT {{
    Export_Id = 1; Path = {path}; Pseudo = /share; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
    FSAL {{ Name = VFS; }}
}}
"""


@pytest.mark.inv(2)
def test_nfs_by_rule(storage: Storage, data: Path) -> None:
    """A file is read whole; without the rule not even the connection begins."""
    share = storage.work / "share"
    share.mkdir()
    shutil.copy(data, share)
    plugins = storage.programs.root / "usr/lib/x86_64-linux-gnu/ganesha"
    (storage.work / "ganesha.conf").write_text(EXPORT.format(path=share, plugins=plugins))
    place, back = f"nfs://{DOM0}/share/data?version=4", storage.work / "back"
    argv = ["ganesha.nfsd", "-F", "-f", str(storage.work / "ganesha.conf"), "-L", "/dev/stderr", "-p", "/run/pid"]
    with storage.daemon(2049, *argv):
        storage.rules(BASE)
        before = storage.drops()
        assert storage.run("a", "nfs-cp", place, str(back), patience_s=3).returncode
        assert storage.drops() > before
        storage.rules(BASE + NFS)
        done = storage.run("a", "nfs-cp", place, str(back))
        assert done.returncode == 0 and _sum(back) == _sum(data), done
        assert storage.run("b", "nfs-cp", place, str(back), patience_s=3).returncode, "the rule is a's"


def _offer(storage: Storage, pid: int, disk: Path) -> None:
    """Has tgtd serve a file as a disk to everybody it hears."""
    mode = ["--lld", "iscsi", "--op"]
    for words in (
        [*mode, "new", "--mode", "target", "--tid", "1", "-T", TARGET],
        [*mode, "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk)],
        [*mode, "bind", "--mode", "target", "--tid", "1", "-I", "ALL"],
    ):
        tgtadm = str(storage.programs.find("tgtadm"))
        run("nsenter", "-t", str(pid), "-m", "-n", tgtadm, *words, env=storage.programs.environment())


def _disk(storage: Storage, way: str, file: Path) -> None:
    """All of the disk into a file of its size, or the other way."""
    library = storage.programs.root / "usr/lib/x86_64-linux-gnu/libiscsi.so.7"
    where = [way, f"{DOM0}:3260", TARGET, "1", str(file)]
    program = [sys.executable, str(ISCSI_PROGRAM), str(library)]
    run("ip", "netns", "exec", storage.host.ns("a"), *program, *where)


@pytest.mark.inv(2)
def test_iscsi_by_rule(storage: Storage, data: Path) -> None:
    """The target is found and its disk read whole; without the rule not even the connection begins."""
    disk = storage.work / "disk"
    disk.write_bytes(data.read_bytes())
    with storage.daemon(3260, "tgtd", "-f", "--iscsi", f"portal={DOM0}:3260") as pid:
        _offer(storage, pid, disk)
        storage.rules(BASE)
        before = storage.drops()
        assert storage.run("a", "iscsi-ls", "-s", f"iscsi://{DOM0}", patience_s=3).returncode
        assert storage.drops() > before
        storage.rules(BASE + ISCSI)
        listed = storage.run("a", "iscsi-ls", "-s", f"iscsi://{DOM0}")
        assert listed.returncode == 0 and TARGET in listed.stdout, listed
        fresh = storage.work / "fresh"
        fresh.write_bytes(bytes(data.stat().st_size))
        _disk(storage, "read", fresh)
        assert _sum(fresh) == _sum(data)
        fresh.write_bytes(data.read_bytes()[::-1])
        _disk(storage, "write", fresh)
        assert disk.read_bytes() == fresh.read_bytes()
        assert storage.run("b", "iscsi-ls", f"iscsi://{DOM0}", patience_s=3).returncode, "the rule is a's"
