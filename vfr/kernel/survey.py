"""Collects what vfr.doctor judges: sysctls, sockets, bridges, routes, and what runs on interfaces. Only reads."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from vfr.doctor import OURS, Hook, Listener, Machine
from vfr.errors import KernelError, VfrError
from vfr.kernel import bpf, links

_SYSCTLS = Path("/proc/sys/net/ipv4")
_NAMES = ("ip_forward", "ip_local_port_range")
_PER_INTERFACE = ("rp_filter", "route_localnet")
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_TCP_LISTEN, _UDP_OPEN = "0A", "07"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _sysctls(interfaces: Iterable[str]) -> dict[str, str]:
    wanted = [*_NAMES, *(f"conf/{i}/{name}" for i in interfaces for name in _PER_INTERFACE)]
    return {name: said for name in wanted if (said := _read(_SYSCTLS / name)) is not None}


def _address(text: str) -> str:
    """As /proc/net writes it: words of four bytes, each in the host's order."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    if len(raw) == 4:
        return str(IPv4Address(raw))
    return "*" if not any(raw) else str(IPv4Address(raw[12:])) if raw[:12] == bytes(10) + b"\xff\xff" else ""


def _sockets() -> Iterator[tuple[str, str, int, int]]:
    """(protocol, address, port, inode) of each socket that waits for anybody. One of IPv6 alone has no address."""
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in (_read(Path("/proc/net") / table) or "").splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == (_TCP_LISTEN if table.startswith("tcp") else _UDP_OPEN):
                yield table[:3], _address(address), int(port, 16), int(fields[9])


def _programs(inodes: set[int]) -> dict[int, str]:
    """Socket inode -> name of a process that has it, as far as we may look."""
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir() if inodes else ():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # it has ended, or is not ours to look at
            for fd in (process / "fd").iterdir():
                kind, _, number = str(fd.readlink()).partition("[")
                if kind == "socket:" and (inode := int(number[:-1])) in inodes:
                    found[inode] = (process / "comm").read_text().strip()
    return found


def listeners(ports: Iterable[tuple[int, int]]) -> tuple[Listener, ...]:
    """Who waits on a port in one of the ranges, by IPv4."""
    ranges = tuple(ports)
    met = [s for s in _sockets() if s[1] and any(low <= s[2] <= high for low, high in ranges)]
    names = _programs({inode for *_, inode in met})
    found = [Listener(protocol, address, port, names.get(inode, "")) for protocol, address, port, inode in met]
    return tuple(sorted(dict.fromkeys(found), key=lambda one: (one.port, one.protocol, one.address)))


def _bpf_refused() -> str:
    """Why bpf(2) can't be used; "" if it can, or if that is not known since this is not root."""
    if os.geteuid():
        return ""
    try:
        bpf.check_allowed()
    except VfrError as error:
        return str(error)
    return ""


def machine(uplink: str | None, guest: IPv4Address, ports: Iterable[tuple[int, int]]) -> Machine:
    """The host as it is. `guest` is a guest's address, `ports` are the ranges that VFR wants."""
    present = links.links()
    by_index = {link.index: link.name for link in present.values()}
    defaults = [by_index[i] for i in links.default_route_interfaces() if i in by_index]
    default = uplink if uplink in defaults else next(iter(defaults), None)
    watched = dict.fromkeys(["all", "vfr0", uplink or default or "all"])
    said = _read(_BRIDGE_NETFILTER)
    return Machine(
        kernel=platform.release(),
        bpf=_bpf_refused(),
        default=default,
        way_to_guests=by_index.get(links.way_to(guest) or 0),
        bridges=tuple(link.name for link in present.values() if link.kind == "bridge"),
        bridge_netfilter=None if said is None else said == "1",
        sysctls=_sysctls(watched),
        listeners=listeners(ports),
    )


def _filters(interface: str, way: str) -> list[tuple[str, int]]:
    """(kind, number of its BPF program or 0) of the interface's tc filters on a clsact hook, in their order."""
    operation = f"listing the tc filters of {interface}"
    try:
        argv = ["tc", "-j", "filter", "show", "dev", interface, way]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelError(operation, errno.ENOENT, "the tc command is missing: apt install iproute2") from None
    if done.returncode:
        raise KernelError(operation, errno.EINVAL, done.stderr.strip())
    rows = json.loads(done.stdout or "[]")
    return [(row["kind"], row["options"].get("prog", {}).get("id", 0)) for row in rows if "options" in row]


def hook(interface: str, program: int) -> Hook | None:
    """What runs on an interface, where `program` is the descriptor of ours; None if there is no such interface."""
    link = links.link(interface)
    if link is None:
        return None
    own = bpf.object_id(program)
    ingress = [(number, "tcx") for number in bpf.tcx_programs(link.index)] + [
        (number, f"tc {kind}") for kind, number in _filters(interface, "ingress")
    ]
    egress = [(number, "tcx") for number in bpf.tcx_programs(link.index, bpf.TCX_EGRESS)] + [
        (number, f"tc {kind}") for kind, number in _filters(interface, "egress")
    ]
    return Hook(
        interface,
        tuple(OURS if number == own else _program(number, how) for number, how in ingress),
        tuple(_program(number, how) for number, how in egress),
        link.xdp,
    )


def _program(number: int, how: str) -> str:
    """A program by its name and number; a filter that is none by its kind."""
    if not number:
        return f"a {how} filter"
    try:
        fd = bpf.program_fd_by_id(number)
    except VfrError:
        return f"the {how} program {number}"
    try:
        return f"the {how} program {bpf.program_info(fd).name.decode(errors='replace')} ({number})"
    finally:
        os.close(fd)


def lock_holder(path: Path) -> tuple[str, float] | None:
    """Who holds the lock, and for how many seconds; None if nobody does, or we may not know."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        pid = os.pread(handle, 20, 0).decode().strip()
        return (f"process {pid}" if pid else "another process"), max(0.0, time.time() - os.fstat(handle).st_mtime)
    finally:
        os.close(handle)
    return None
