"""What the Xen FAQ has go between a domain and domain 0, by rule only and with real programs.

    vs-a 169.254.1.2 --- vs-dom0 169.254.1.0: tgtd, ganesha.nfsd
    vs-b 169.254.1.3 ----'

HyperSCSI has no program any more; its frames are raw Ethernet, and so are the test's.

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
from typing import IO

import pytest
from support.fetch import STORAGE
from support.host import Host, run

from vfr_lab.debian import Programs, UnavailableError, programs

MEBIBYTES = 1024 if os.environ.get("VFR_LONG") else 16
WRITTEN = 16 << 20  # bytes by NFS, 2 KiB at a time
DEADLINE_S = 40
DOM0 = "169.254.1.0"
BASE = "allow dom0 -> any\n"
ISCSI, NFS = "allow a -> dom0 tcp 3260\n", "allow a -> dom0 tcp 2049\n"
SUPPORT = Path(__file__).parents[1] / "support"
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

    def by_library(self, program: str, library: str, *arguments: str) -> None:
        """A program of tests/support that does in a's namespace what no tool of the library's does."""
        path = self.programs.root / "usr/lib/x86_64-linux-gnu" / library
        argv = [sys.executable, str(SUPPORT / f"{program}.py"), str(path), *arguments]
        run("ip", "netns", "exec", self.host.ns("a"), *argv, env=self.programs.environment())

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
        found = programs(*STORAGE)
    except UnavailableError as reason:
        pytest.skip(f"no {', '.join(STORAGE)}: {reason}")
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
    """A file is read whole, and one written; without the rule not even the connection begins."""
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
        written = storage.work / "written"
        with data.open("rb") as file:
            written.write_bytes(file.read(WRITTEN)[::-1])
        storage.by_library("nfs", "libnfs.so.13", f"nfs://{DOM0}/share/new", str(written))
        assert _sum(share / "new") == _sum(written)
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
    storage.by_library("iscsi", "libiscsi.so.7", way, f"{DOM0}:3260", TARGET, "1", str(file))


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


HEARER = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x889A))
s.bind(("eth0", 0x889A))
print("ready", flush=True)
while True:
    print(s.recv(2000).hex(), flush=True)
"""
TELLER = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.bind(("eth0", 0x889A))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"""


def _hyperscsi(storage: Storage, sender: str, receiver: str, load: bytes) -> bytes:
    mac = {node: storage.host.sh(node, "cat /sys/class/net/eth0/address").strip() for node in (sender, receiver)}
    return bytes.fromhex(f"{mac[receiver]}{mac[sender]}".replace(":", "")) + b"\x88\x9a" + load


@pytest.mark.inv(2)
def test_hyperscsi_by_rule(storage: Storage) -> None:
    """Frames of EtherType 0x889A between two domains: as they are, the way that a rule says, and no other."""
    there = [_hyperscsi(storage, "a", "b", bytes([n]) * 1400) for n in range(3)]
    back = _hyperscsi(storage, "b", "a", b"an answer".ljust(46, b"\0"))

    def tell(node: str, *frames: bytes) -> None:
        words = [sys.executable, "-c", TELLER, *(frame.hex() for frame in frames)]
        run("ip", "netns", "exec", storage.host.ns(node), *words)

    with _hearing(storage, "a") as at_a, _hearing(storage, "b") as at_b:
        storage.rules(BASE)
        before = storage.host.json("stats", "a")["a"]
        tell("a", there[0])
        after = storage.host.json("stats", "a")["a"]
        assert _packets(after, "DROP_ETHERTYPE") == _packets(before, "DROP_ETHERTYPE") + 1
        storage.rules(f"{BASE}allow a -> b ether 0x889a\n")
        tell("b", back)
        tell("a", *there[1:])
        assert [at_b.readline().strip() for _ in there[1:]] == [frame.hex() for frame in there[1:]]
        storage.rules(f"{BASE}allow a <-> b ether 0x889a\n")
        again = _hyperscsi(storage, "b", "a", b"another answer".ljust(46, b"\0"))
        tell("b", again)
        assert at_a.readline().strip() == again.hex(), "the first thing that a hears; the answer before had no rule"


def _packets(counted: dict[str, dict[str, int]], verdict: str) -> int:
    return counted.get(verdict, {"packets": 0})["packets"]


@contextmanager
def _hearing(storage: Storage, node: str) -> Iterator[IO[str]]:
    """Frames of HyperSCSI's that a domain receives, each a line."""
    argv = ["ip", "netns", "exec", storage.host.ns(node), sys.executable, "-c", HEARER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield process.stdout
        finally:
            process.kill()
