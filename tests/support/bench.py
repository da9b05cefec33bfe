"""Runs frames through the real object: BPF_PROG_TEST_RUN, in a thread with a network namespace of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from support import world
from vfr._abi import Deliver, Verdict
from vfr.kernel import bpf
from vfr.kernel.fastpath import Config, DomainRow, Fastpath, Forward, Quota
from vfr.spec import Router
from vfr.spec.model import LAN

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a frame. `frame` is None if it was dropped."""

    verdict: Verdict
    frame: bytes | None
    target: int | None


def _own_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


class Bench:
    """The object with `tracing` on, its maps set to the test world."""

    def __enter__(self) -> Bench:
        self._directory = Path(tempfile.mkdtemp(prefix="vfr-bench-"))
        subprocess.run(["mount", "-t", "bpf", "bench", str(self._directory)], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=_own_namespace)
        self.fastpath = Fastpath.load(self._directory, {"tracing": 1})
        self._thread.submit(self._make_interfaces).result()
        return self

    def __exit__(self, *_: object) -> None:
        self.fastpath.close()
        self._thread.shutdown()
        subprocess.run(["umount", str(self._directory)], check=True)
        self._directory.rmdir()

    def _make_interfaces(self) -> None:
        """PROG_RUN takes only interfaces that exist; the frames never leave them."""
        for name in (*world.SLOTS, "lan"):
            subprocess.run(["ip", "link", "add", f"t-{name}", "type", "veth", "peer", "name", f"p-{name}"], check=True)
        # PACKET_HOST or not is told by the interface's own MAC.
        for name in (*world.SLOTS, "lan"):
            subprocess.run(["ip", "link", "set", f"t-{name}", "address", world.GATEWAY_MAC], check=True)
        lines = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout.splitlines()
        self.ifindex = {
            line.split(": ")[1].split("@")[0][2:]: int(line.split(": ")[0]) for line in lines if ": t-" in line
        }

    def reset(self, router: Router) -> None:
        """The world anew: no sessions, no mappings, these rules."""
        fp = self.fastpath
        fp.set_config(
            Config(
                IPv4Address(router.gateway),
                router.pool,
                IPv4Address(router.outside) if router.outside else None,
                router.lan,
                self.ifindex["lan"] if router.outside else 0,
                router.uplink_mtu,
                router.nat_ports[0],
                router.nat_ports[-1],
            )
        )
        for name, slot in world.SLOTS.items():
            self._seat(name, slot, router)
        for (protocol, port), (slot, inside) in router.forwards.items():
            fp.set_forward(Forward({6: "tcp", 17: "udp"}[protocol], port, slot, inside))
        fp.replace_policy(router.policy)  # type: ignore[arg-type]

    def _seat(self, name: str, slot: int, router: Router) -> None:
        fp, domain = self.fastpath, router.domains[slot]
        fp.new_tables(slot, Quota(router.quota, router.quota, max(3 * len(domain.ports), 1)))
        low = domain.ports.start
        fp.clear_block(low, len(domain.ports))
        fp.set_domain(
            slot,
            DomainRow(
                slot + 1,
                IPv4Address(domain.address),
                world.NODES[name].mac,
                self.ifindex[name],
                domain.mtu,
                Deliver.DELIVER_DOM0 if slot == 0 else Deliver.DELIVER_DEVICE,
                low,
                len(domain.ports),
            ),
        )
        fp.set_address(IPv4Address(domain.address), slot)
        fp.set_vif(self.ifindex[name], slot)

    def send(self, sender: int, frame: bytes) -> Outcome:
        """One frame in by a slot's VIF, or by the uplink if the sender is LAN."""
        return self._thread.submit(self._send, sender, frame).result()

    def _send(self, sender: int, frame: bytes) -> Outcome:
        assert os.getpid()  # same process, other namespace: descriptors are shared
        name = "lan" if sender == LAN else next(n for n, s in world.SLOTS.items() if s == sender)
        program = self.fastpath.program("uplink" if sender == LAN else "vif")
        action, out = bpf.test_run(program, frame, self.ifindex[name])
        trace = self.fastpath.trace()
        verdict = Verdict(trace.verdict)
        passed = not verdict.name.startswith("DROP_")
        assert (action == 2) == (not passed), f"{verdict.name} ended in action {action}"
        target = trace.target if trace.target != 0xFFFF else None
        return Outcome(verdict, out if passed else None, sender if verdict == Verdict.ANSWERED else target)
