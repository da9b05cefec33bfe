"""Brings a scenario up and takes it down again, from whatever state it is in.

A guest is a little machine: its own network, host name, mounts and processes, with OpenSSH's sshd. All
files are below build/ in the tree; processes are known by pid and start time, so that no other is ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from vfr_lab.backends import Backend, missing
from vfr_lab.backends import backend as backend_named
from vfr_lab.backends.vfr import VfrBackend
from vfr_lab.scenario import SCENARIOS, XEN, Guest, LanHost, Scenario

BUILD = Path(__file__).resolve().parents[2] / "build"
NETNS = Path("/run/netns")
DEADLINE_S = 20


class LabError(Exception):
    """The lab cannot do that; the text says why."""


class UsageError(LabError):
    """What was asked for does not exist; the text says what does."""


def run(
    argv: Sequence[str], *, text_in: str = "", check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """A command to its end. LabError with its own words if it fails and `check` is on."""
    done = subprocess.run(argv, input=text_in, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Polls until `ready`, for DEADLINE_S seconds at the most."""
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what} took more than {DEADLINE_S} s")
        time.sleep(0.02)


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks: with its pid, its identity. None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if stat[0] == "Z" else stat[19]


class Lab:
    """One lab. Labs with different prefixes live side by side."""

    def __init__(self, scenario: Scenario = XEN, prefix: str = "lab-", backend: Backend | None = None) -> None:
        self.scenario, self.prefix = scenario, prefix
        self.files = BUILD / f"{prefix}files"
        self.backend: Backend = backend or VfrBackend()

    @classmethod
    def of(cls, prefix: str) -> Lab:
        """The lab of this prefix, with the scenario it was brought up with, if it was."""
        one = cls(prefix=prefix)
        one.scenario = SCENARIOS.get(one._noted("scenario") or "", one.scenario)
        return one

    def netns(self, node: str) -> str:
        """The name of a node's namespace."""
        return self.prefix + node

    @property
    def key(self) -> Path:
        """The client key that lan1 and dom0 have."""
        return self.files / "client_key"

    @property
    def known_hosts(self) -> Path:
        """The guests' host keys, each under its guest's name."""
        return self.files / "known_hosts"

    # Up

    def is_up(self) -> bool:
        """Whether an earlier `up` came to its end and everything it made is still there."""
        there = all((NETNS / self.netns(n)).exists() for n in self.scenario.nodes)
        alive = all(_started(pid) == start for pid, start in self._processes().values())
        return (self.files / "up").exists() and there and alive

    def up(self) -> None:
        """Namespaces, links, services, then the backend. What an interrupted `up` left is cleared first.

        A lab that is up stays as it is, but for its backend, if that is another one. LabError if what is there
        has another scenario.
        """
        there = self._noted("scenario")
        if there not in (None, self.scenario.name):
            raise LabError(f"there is a lab with the scenario {there} already; `vfr-lab down` takes it down")
        if self.is_up():
            if self.wired_by != self.backend.name:
                self.rewire(self.backend)
            return
        self.down()
        self.files.mkdir(parents=True)
        (self.files / "scenario").write_text(self.scenario.name)
        (self.files / "made_netns").write_text("" if NETNS.exists() else "yes")
        self._make_nodes()
        self._make_keys()
        for guest in self.scenario.guests:
            self._start_machine(guest)
        for host in (*self.scenario.lan, self.scenario.inet):
            if host.serves:
                self._start_service(host.name)
        self._wire()

    def _wire(self) -> None:
        """Has the backend wire the guests, and waits for their services. Noted first, so that any `down` knows."""
        if lacking := missing(self.backend):
            raise LabError(f"the backend {self.backend.name} needs {', '.join(lacking)}: `make packages` installs it")
        (self.files / "backend").write_text(self.backend.name)
        self.backend.up(self)
        for guest in self.scenario.guests:
            if guest.sshd:
                self._wait_for_port(guest.name, 22)
        (self.files / "up").touch()

    def rewire(self, backend: Backend) -> None:
        """Has another backend wire the same guests, whose machines and services run on.

        What the host tracked of the last one's connections is forgotten: it says nothing about the next one.
        If this fails the lab counts as not up; another `rewire` or a `down` clears what is there.
        """
        (self.files / "up").unlink(missing_ok=True)
        self._backend_down()
        self.exec("dom0", "conntrack", "-F")
        self.backend = backend
        self._wire()

    @property
    def wired_by(self) -> str | None:
        """The name of the backend that wires the guests, or last tried to."""
        return self._noted("backend")

    def _noted(self, what: str) -> str | None:
        note = self.files / what
        return note.read_text() if note.exists() else None

    def _make_nodes(self) -> None:
        for node in self.scenario.nodes:
            run(["ip", "netns", "add", self.netns(node)])
            self.ip(node, "link", "set", "lo", "up")
            conf = "/proc/sys/net/ipv6/conf"
            script = f"for c in all default; do [ ! -e {conf}/$c ] || echo 1 > {conf}/$c/disable_ipv6; done"
            run(["ip", "netns", "exec", self.netns(node), "sh", "-c", script])
        self.ip("switch", "link", "add", "br0", "type", "bridge")
        self.ip("switch", "link", "set", "br0", "up")
        s = self.scenario
        for host in (s.dom0, *s.lan, s.router):
            self._plug(host)
        self._link_inet()
        for host in (s.dom0, *s.lan, s.inet):
            if host.gateway:
                self.ip(host.name, "route", "add", "default", "via", host.gateway)

    def _plug(self, host: LanHost) -> None:
        """A cable from the host's eth0 to the switch."""
        peer = ["peer", "name", "eth0", "netns", self.netns(host.name)]
        self.ip("switch", "link", "add", host.name, "type", "veth", *peer)
        self.ip("switch", "link", "set", host.name, "master", "br0", "up")
        self.ip(host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        self.ip(host.name, "link", "set", "eth0", "up")

    def _link_inet(self) -> None:
        router, inet = self.scenario.router.name, self.scenario.inet
        self.ip(
            router,
            "link",
            "add",
            "eth1",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.netns(inet.name),
        )
        self.ip(router, "addr", "add", f"{self.scenario.inet_gateway}/24", "dev", "eth1")
        self.ip(router, "link", "set", "eth1", "up")
        self.ip(inet.name, "addr", "add", f"{inet.address}/24", "dev", "eth0")
        self.ip(inet.name, "link", "set", "eth0", "up")
        run(["ip", "netns", "exec", self.netns(router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])

    def ip(self, node: str, *arguments: str) -> str:
        """An `ip` command in a node; what it printed."""
        return run(["ip", "-n", self.netns(node), *arguments]).stdout

    def ip_batch(self, node: str, *lines: str) -> None:
        """Several `ip` commands in a node, a line each, by one process."""
        run(["ip", "-n", self.netns(node), "-batch", "-"], text_in="\n".join(lines) + "\n")

    def _make_keys(self) -> None:
        names = ["client_key", *(f"host_{g.name}" for g in self.scenario.guests)]
        for name in names:
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.files / name)])
        lines = [f"{g.name} {self._public(f'host_{g.name}')}" for g in self.scenario.guests]
        self.known_hosts.write_text("\n".join(lines) + "\n")
        (self.files / "authorized_keys").write_text(self._public("client_key") + "\n")

    def _public(self, name: str) -> str:
        return " ".join((self.files / f"{name}.pub").read_text().split()[:2])

    def _sshd_config(self, guest: str) -> Path:
        path = self.files / f"sshd_{guest}.conf"
        path.write_text(
            f"HostKey {self.files}/host_{guest}\nAuthorizedKeysFile {self.files}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "UsePAM no\nUseDNS no\nStrictModes no\nPrintMotd no\nPidFile none\nMaxStartups 100\n"
        )
        return path

    def _start_machine(self, guest: Guest) -> None:
        """The guest's init: it names the machine, gives it a /run of its own, and becomes sshd, or does nothing."""
        name, work = guest.name, "exec sleep infinity"
        if guest.sshd:
            work = f"mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f '{self._sshd_config(name)}'"
        script = f"hostname {name} && mount -t tmpfs run /run && {work}"
        apart = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.spawn(name, ["ip", "netns", "exec", self.netns(name), *apart, "sh", "-c", script])

    def _start_service(self, host: str) -> None:
        self.spawn(host, ["ip", "netns", "exec", self.netns(host), sys.executable, "-m", "vfr_lab.echo"])
        self._wait_for_port(host, 7)

    def spawn(self, name: str, argv: list[str]) -> None:
        """Starts a process that outlives this command, and notes it down: `down` ends it, `end` before that."""
        with (self.files / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        self._note({**self._processes(), name: (process.pid, _started(process.pid) or "")})

    def end(self, *names: str) -> None:
        """Ends processes that `spawn` started under these names. One that is not there is as good as ended."""
        noted = self._processes()
        for name in noted.keys() & names:
            self._end(name, *noted.pop(name))
            self._note(noted)

    def _note(self, processes: dict[str, tuple[int, str]]) -> None:
        fresh = self.files / "processes.new"
        fresh.write_text(json.dumps(processes))
        fresh.rename(self.files / "processes")

    def _processes(self) -> dict[str, tuple[int, str]]:
        path = self.files / "processes"
        noted = json.loads(path.read_text()) if path.exists() else {}
        return {name: (pid, start) for name, (pid, start) in noted.items()}

    def _wait_for_port(self, node: str, port: int) -> None:
        argv = ["ip", "netns", "exec", self.netns(node), "ss", "-Hltn", f"sport = :{port}"]
        wait_until(lambda: bool(run(argv).stdout.strip()), f"{node}'s service on port {port}")

    # In it

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in a node, in all the namespaces it has."""
        if node not in self.scenario.nodes:
            raise LabError(f"there is no node {node!r}; there are: {', '.join(self.scenario.nodes)}")
        if node not in {g.name for g in self.scenario.guests}:
            return ["ip", "netns", "exec", self.netns(node), *command]
        pid, start = self._processes().get(node, (0, ""))
        if not pid or _started(pid) != start:
            raise LabError(f"the machine {node} is not running; `vfr-lab up` starts it")
        init = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return ["nsenter", "-t", init, "--net", "--uts", "--mount", "--pid", *command]

    def exec(
        self, node: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in a node."""
        return run(self.argv(node, command), check=check, timeout=timeout)

    def status(self) -> dict[str, object]:
        """Whether it is up, and each node's namespace and process."""
        processes = self._processes()
        nodes = [
            {
                "node": node,
                "netns": self.netns(node) if (NETNS / self.netns(node)).exists() else None,
                "pid": next((p for n, (p, s) in processes.items() if n == node and _started(p) == s), None),
            }
            for node in self.scenario.nodes
        ]
        return {"up": self.is_up(), "scenario": self.scenario.name, "backend": self.wired_by, "nodes": nodes}

    # Down

    def down(self) -> None:
        """Takes everything away. Goes on after a failure, and raises LabError with all of them at the end."""
        failures = []
        steps: list[tuple[str, Callable[[], None]]] = [
            ("the backend", self._backend_down),
            ("processes", self._end_processes),
            ("namespaces", self._delete_namespaces),
            ("files", self._remove_files),
        ]
        for what, step in steps:
            try:
                step()
            except (LabError, LookupError, OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{what}: {error}")
        if failures:
            raise LabError("; ".join(failures))

    def _backend_down(self) -> None:
        """The backend that wired the guests takes it back, be it this lab's or one of an earlier command."""
        if (NETNS / self.netns("dom0")).exists():
            wired_by = self.wired_by or self.backend.name
            wired = self.backend if wired_by == self.backend.name else backend_named(wired_by)
            wired.down(self)

    def _end_processes(self) -> None:
        for name, (pid, start) in self._processes().items():
            self._end(name, pid, start)

    def _end(self, name: str, pid: int, start: str) -> None:
        if _started(pid) == start:
            os.killpg(pid, signal.SIGTERM)
            wait_until(partial(self._has_ended, pid, start), f"the end of {name}'s process")

    @staticmethod
    def _has_ended(pid: int, start: str) -> bool:
        """Also reaps it, if it was this very process that started it."""
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if _started(pid) == start:
            os.killpg(pid, signal.SIGKILL)
        return _started(pid) != start

    def _delete_namespaces(self) -> None:
        for node in self.scenario.nodes:
            if (NETNS / self.netns(node)).exists():
                run(["ip", "netns", "del", self.netns(node)])
        made = self.files / "made_netns"
        if made.exists() and made.read_text() and NETNS.exists() and not any(NETNS.iterdir()):
            run(["umount", str(NETNS)], check=False)  # iproute2 mounts it on itself only at times
            NETNS.rmdir()

    def _remove_files(self) -> None:
        if self.files.exists():
            shutil.rmtree(self.files)
