"""Runs frames through the real object: BPF_PROG_TEST_RUN, in a thread with a network namespace of its own."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from support import world
from vfr import _abi
from vfr._abi import Deliver, Kind, Limit, Verdict
from vfr.kernel import bpf
from vfr.kernel.fastpath import Config, DomainRow, Fastpath, Forward, Hook
from vfr.settings import Limits
from vfr.spec import Router
from vfr.spec.model import LAN, SORTER
from vfr.view import GuestWords

_CLONE_NEWNET = 0x40000000
TC_ACT_SHOT = 2
ANSWERS = (Verdict.ANSWERED, Verdict.DHCP_NAK)  # by the router itself, to the sender
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a frame. `frame` is None if it was dropped in silence; a drop with a frame is an ICMP
    error that goes back to the sender."""

    verdict: Verdict
    frame: bytes | None
    target: int | None


def _own_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _bound(protocol: int, port: int) -> socket.socket:
    """What a server of the host's has: a listening TCP or a bound UDP socket."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == socket.IPPROTO_TCP else socket.SOCK_DGRAM)
    made.bind(("", port))
    if protocol == socket.IPPROTO_TCP:
        made.listen()
    return made


class Bench:
    """The object with `tracing` on, its maps set to the test world."""

    def __enter__(self) -> Bench:
        self._seated: set[tuple[int, Limits]] = set()
        self._directory = Path(tempfile.mkdtemp(prefix="vfr-bench-"))
        subprocess.run(["mount", "-t", "bpf", "bench", str(self._directory)], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=_own_namespace)
        self.fastpath = Fastpath.load(self._directory, {"tracing": 1})
        self._thread.submit(self._make_interfaces).result()
        self._host = dict[tuple[int, int], socket.socket]()
        return self

    def __exit__(self, *_: object) -> None:
        self.host_binds(frozenset())
        self.fastpath.close()
        self._thread.shutdown()
        os.close(self._namespace)
        subprocess.run(["umount", str(self._directory)], check=True)
        self._directory.rmdir()

    def _make_interfaces(self) -> None:
        """PROG_RUN takes only interfaces that exist; the frames never leave them."""
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for name in (*world.SLOTS, "lan", "sorter"):
            subprocess.run(["ip", "link", "add", f"t-{name}", "type", "veth", "peer", "name", f"p-{name}"], check=True)
        # PACKET_HOST or not is told by the interface's own MAC.
        for name in (*world.SLOTS, "lan", "sorter"):
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
                self.ifindex["sorter"] if router.sorter else 0,
                router.timers,
                router.uplink_rate,
            )
        )
        for name, slot in world.SLOTS.items():
            self._seat(name, slot, router)
        fp.new_runtime(int(Limit.ROW_LAN))
        self._empty("fragments", int(Limit.ROW_LAN))
        for (protocol, port), (slot, inside) in router.forwards.items():
            fp.set_forward(Forward({6: "tcp", 17: "udp"}[protocol], port, slot, inside))
        self.host_binds(router.host_ports)
        if fp.policy_digest() != router.policy.digest:  # type: ignore[attr-defined]
            fp.replace_policy(router.policy)  # type: ignore[arg-type]
        self._forget_rates(router)

    def _forget_rates(self, router: Router) -> None:
        """A rule that stays in force goes on counting what its limit let begin."""
        rules = self.fastpath._maps["rules"]
        for number, rule in router.policy.rules.items():  # type: ignore[attr-defined]
            raw = rules.get(number.to_bytes(4, "little")) if rule.limit else None
            if raw:
                row = _abi.Rule.from_buffer_copy(raw)
                row.until_ns = 0
                rules.set(number.to_bytes(4, "little"), bytes(row))

    def clock(self, nanoseconds: int) -> None:
        """It is so late for the fastpath, as nearly as a clock that goes on can be set."""
        config = self.fastpath._maps["config"]
        row = _abi.Config.from_buffer_copy(config.get(bytes(4)) or b"")
        row.clock_ahead_ns = nanoseconds - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        config.set(bytes(4), bytes(row))

    def host_binds(self, ports: frozenset[tuple[int, int]]) -> None:
        """From now on the host has sockets on these (protocol, port), and no others."""
        for key in self._host.keys() - ports:
            self._host.pop(key).close()
        if missing := ports - self._host.keys():
            # A thread of its own: the bench's may be the one that asks.
            with ThreadPoolExecutor(1, initializer=_enter, initargs=(self._namespace,)) as thread:
                self._host.update(thread.submit(lambda: {key: _bound(*key) for key in missing}).result())

    def enter(self) -> None:
        """Has the thread that calls it see the interfaces that frames come in by."""
        _own_namespace()
        _enter(self._namespace)

    def _empty(self, name: str, place: int) -> None:
        """Empties an inner map where it is: to put another there, the kernel waits for all programs."""
        inner = self.fastpath.inner(name, place)
        assert inner is not None
        if name == "closing":
            while inner.pop() is not None:
                pass
        else:
            for key in list(inner.keys()):
                inner.delete(key)
        inner.close()

    def _seat(self, name: str, slot: int, router: Router) -> None:
        fp, domain = self.fastpath, router.domains[slot]
        if (slot, router.limits) not in self._seated:
            fp.new_tables(slot, router.limits, len(domain.ports))
            self._seated = {s for s in self._seated if s[0] != slot} | {(slot, router.limits)}
        fp.new_runtime(slot)
        for table in ("sessions", "inbound", "mappings", "fragments"):
            self._empty(table, slot)
        for kind in range(Kind.KINDS):
            self._empty("closing", slot * Kind.KINDS + kind)
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
                router.limits,
                GuestWords(
                    IPv4Address(domain.guest_address) if domain.guest_address else None,
                    domain.guest_mac.hex(":") if domain.guest_mac else None,
                    IPv4Address(domain.guest_gateway) if domain.guest_gateway else None,
                ),
                domain.dhcp,
            ),
        )
        fp.set_address(IPv4Address(domain.address), slot)
        fp.set_mac(world.NODES[name].mac, slot)
        fp.set_vif(self.ifindex[name], slot)

    def send(self, sender: int, frame: bytes) -> Outcome:
        """One frame in by a slot's VIF, by the uplink if the sender is LAN, or from the sorter. What goes
        round by the uplink's hook (a hairpin) does."""
        return self._thread.submit(self._send, sender, frame).result()

    def _send(self, sender: int, frame: bytes, mark: int = 0) -> Outcome:
        assert os.getpid()  # same process, other namespace: descriptors are shared
        hook: Hook = {LAN: "uplink", SORTER: "sorter"}.get(sender, "vif")  # type: ignore[assignment]
        name = {LAN: "lan", SORTER: "sorter"}.get(sender) or next(n for n, s in world.SLOTS.items() if s == sender)
        action, out = bpf.test_run(self.fastpath.program(hook), frame, self.ifindex[name], mark)
        trace = self.fastpath.trace()
        verdict = Verdict(trace.verdict)
        if verdict == Verdict.HAIRPIN:
            return self._send(LAN, out, Limit.MARK_HAIRPIN)
        passed = not verdict.name.startswith("DROP_") or action != TC_ACT_SHOT
        assert (action == TC_ACT_SHOT) == (not passed), f"{verdict.name} ended in action {action}"
        target = trace.target if trace.target != 0xFFFF else None
        return Outcome(verdict, out if passed else None, sender if verdict in ANSWERS else target)
