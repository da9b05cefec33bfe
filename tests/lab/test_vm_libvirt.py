"""docs/vm.md's recipe for libvirt, by libvirt's own driver.

    vm1 169.254.1.9 -- tap1 -- vw-dom0 -- eth0 192.0.2.1 --- vw-lan 192.0.2.11

virt-qemu-run has the driver in itself, so no daemon is started. It is taken from Debian's packages without installing
them, and lies over /usr in mounts of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.fetch import LIBVIRT
from support.host import Host, run
from support.private import Private

from vfr_lab.debian import Programs, UnavailableError, programs
from vfr_lab.vm import Image, image, qemu

DOCS = Path(__file__).parents[2] / "docs" / "vm.md"
PATIENCE_S = 240
DOMAIN = """
<domain type='qemu'>
  <name>vm1</name> <memory unit='MiB'>256</memory> <vcpu>1</vcpu> <features><acpi/></features>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel> <initrd>{initramfs}</initrd> <cmdline>{words}</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {interface}
    <serial type='null'/> <controller type='usb' model='none'/> <memballoon model='none'/>
  </devices>
</domain>
"""
# No user of its own, no cgroups and no further namespaces: this is not the machine's libvirt.
CONFIG = """user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""
# libvirt waits for the end of processes that it leaves to the system's first one, which reaps them on a whole system.
REAPER = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
child = subprocess.Popen(sys.argv[1:])
while os.wait()[0] != child.pid:
    pass
"""


def _prepared(work: Path) -> tuple[Programs, Image]:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / "key"))
    try:
        return programs(*LIBVIRT), image(work, (work / "key.pub").read_text())
    except UnavailableError as reason:
        pytest.skip(f"no VM by libvirt: {reason}")


def _write(work: Path, booted: Image) -> None:
    """The domain with the interface of docs/vm.md, and the driver's configuration."""
    (interface,) = re.findall(r"<interface type='ethernet'>.*?</interface>", DOCS.read_text(), re.DOTALL)
    argv = qemu(booted, "vm1", [], None)
    words = argv[argv.index("-append") + 1]
    where = {"kernel": booted.kernel.image, "initramfs": booted.initramfs, "interface": interface, "words": words}
    (work / "vm1.xml").write_text(DOMAIN.format(**where))
    (work / "libvirt/etc").mkdir(parents=True)
    (work / "libvirt/etc/qemu.conf").write_text(CONFIG)


def _ssh(host: Host, key: Path) -> subprocess.CompletedProcess[str]:
    """The VM's name, asked from the LAN."""
    unasked = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=2"]
    options = [word for option in unasked for word in ("-o", option)]
    there = ["-i", str(key), "-p", "2209", "root@192.0.2.1", "hostname"]
    return run("ip", "netns", "exec", host.ns("lan"), "ssh", "-q", *options, *there, check=False)


def test_the_recipe_for_libvirt() -> None:
    """libvirt opens the TAP that VFR made; the VM gets its address by DHCP, and the LAN reaches it."""
    with tempfile.TemporaryDirectory() as directory, Host("vw") as host:
        work = Path(directory)
        found, booted = _prepared(work)
        _write(work, booted)
        host.vfr("nat", "enable", "--uplink", "eth0")
        host.vfr("domain", "add", "vm1", "--tap", "tap1", "--address", "169.254.1.9", "--mac", "02:00:00:00:00:09")
        with Private(host) as shell:
            user = "echo libvirt-qemu:x:0:0::/:/bin/false >> /etc/passwd; echo libvirt-qemu:x:0: >> /etc/group"
            shell.do(f"{user}; mount -t overlay overlay -o lowerdir={found.root}/usr:/usr /usr")
            libraries = found.environment()["LD_LIBRARY_PATH"]
            log = work / "libvirt.log"
            (work / "reaper.py").write_text(REAPER)
            argv = f"{sys.executable} {work}/reaper.py virt-qemu-run -r {work}/libvirt {work}/vm1.xml"
            shell.do(f"LD_LIBRARY_PATH={libraries} {argv} > {log} 2>&1 &")
            deadline = time.monotonic() + PATIENCE_S
            while (answer := _ssh(host, work / "key")).returncode:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert answer.stdout == "vm1\n"
        counted = json.loads(host.vfr("stats", "vm1", "--json").stdout)["vm1"]
        assert counted["TO_LAN"]["packets"] and not [name for name in counted if name.startswith("DROP_SRC")]
        assert host.json("domain", "show", "vm1")["state"] == "up", "its end changed nothing of the TAP"
