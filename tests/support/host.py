"""A throw-away host: dom0 with an uplink to a LAN, and guests' namespaces, driven by the vfr command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

VFR = Path(sys.executable).parent / "vfr"
NETNS = Path("/run/netns")


def run(
    *argv: str, check: bool = True, text_in: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        input=text_in,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, **(env or {})},
    )
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


class Host:
    """PREFIX-dom0 (uplink eth0 192.0.2.1/24) -- PREFIX-lan 192.0.2.11, guests PREFIX-a, -b, -c."""

    guests = ("a", "b", "c")

    def __init__(self, prefix: str, env: dict[str, str] | None = None) -> None:
        self.prefix, self.env = prefix, env

    def ns(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def __enter__(self) -> Host:
        self.clear()
        for node in ("dom0", "lan", *self.guests):
            run("ip", "netns", "add", self.ns(node))
            run("ip", "-n", self.ns(node), "link", "set", "lo", "up")
        run(
            "ip",
            "-n",
            self.ns("dom0"),
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.ns("lan"),
        )
        for node, address in (("dom0", "192.0.2.1"), ("lan", "192.0.2.11")):
            self.sh(
                node,
                f"sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip addr add {address}/24 dev eth0; ip link set eth0 up",
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        names = [d["name"] for d in json.loads(self.vfr("domain", "list", "--json", check=False).stdout or "[]")]
        if names:
            self.vfr("domain", "remove", *names, check=False)
        self.vfr("nat", "disable", check=False)
        self.clear()

    def clear(self) -> None:
        """Away with it, also with what a killed test left."""
        state = Path("/run/vfr/netns") / self.ns("dom0")
        for mounted in ("bpf", "sorter"):
            run("umount", "-q", str(state / mounted), check=False)
        run("rm", "-rf", str(state))
        for parent in (state.parent, state.parent.parent):
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        for node in ("dom0", "lan", *self.guests):
            if (NETNS / self.ns(node)).exists():
                run("ip", "netns", "del", self.ns(node))

    def sh(self, node: str, script: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", self.ns(node), "sh", "-c", script, check=check, env=self.env).stdout

    def vfr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("ip", "netns", "exec", self.ns("dom0"), str(VFR), *arguments, check=check, env=self.env)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.vfr(*arguments, "--json").stdout)

    def add(self, guest: str, *more: str) -> None:
        self.vfr("domain", "add", guest, "--netns", self.ns(guest), *more)

    def pings(self, node: str, address: str) -> bool:
        return (
            run("ip", "netns", "exec", self.ns(node), "ping", "-n", "-c1", "-W1", address, check=False).returncode == 0
        )

    def picture(self) -> dict[str, str]:
        """All that VFR might leave behind on the host."""
        sysctls = "cd /proc/sys/net; grep -s . ipv4/conf/*/* ipv4/ip_* ipv6/conf/*/disable_ipv6"
        return {
            "links": self.sh("dom0", "ip -o link | sed 's/ qlen.*//'"),
            "addresses": self.sh("dom0", "ip -o addr"),
            "routes": self.sh("dom0", "ip route show table all"),
            "nft": self.sh("dom0", "nft list ruleset"),
            "qdiscs": self.sh("dom0", "tc qdisc show"),
            "sysctls": self.sh("dom0", sysctls),
            **self._files(),
        }

    def _files(self) -> dict[str, str]:
        """This VFR's mounts and files, and directories that nobody has anything in. There may be others."""
        everyone = Path("/run/vfr/netns")
        own = everyone / self.ns("dom0")
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        ours = [where for what, where, *_ in mounts if own in (Path(where), *Path(where).parents)]
        empty = [d for d in (everyone, everyone.parent) if d.exists() and not any(d.iterdir())]
        state = [own, *own.rglob("*")] if own.exists() else []
        return {"mounts": " ".join(ours), "state": " ".join(sorted(str(p) for p in [*state, *empty]))}
