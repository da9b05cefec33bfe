"""The sorter: a network namespace of ours, where the kernel's own reassembly puts fragments in order, and
cuts what is too long for the next link and may be cut. What goes in by `vfr-sorter` comes back by it.

Nobody's traffic is decided on there: it forwards what it gets, back to where it came from, and says
nothing itself. The fastpath hands in what guard has checked, and judges what comes back.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from vfr.kernel import links, mounts

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
INSIDE = "eth0"
DEVICE_MTU = 65535
# RFC 7600's IPv4 dummy address: every packet has the same next hop, so the neighbour table, which all
# namespaces of a host share, holds one entry for all of them.
_NEXT_HOP = "192.0.0.8"
# Reassembly is asked for by whoever looks at connections; nothing is tracked. The namespace itself never
# says anything: no ICMP errors, no answers.
_RULES = """
table ip sorter {
  chain untracked { type filter hook prerouting priority -300; policy accept; notrack; }
  chain onward { type filter hook forward priority 0; policy drop; ct state untracked accept; }
  chain in { type filter hook input priority 0; policy drop; }
  chain out { type filter hook output priority 0; policy drop; }
}
"""
# The bytes that all fragments waiting may take. The fastpath bounds each sender's share by its quota.
_FRAGMENT_BYTES = 256 << 20


def _settings(fragments_s: int) -> dict[str, int]:
    conf = {
        f"ipv4/conf/{which}/{name}": value
        for which in ("all", "default")
        for name, value in (("rp_filter", 0), ("send_redirects", 0), ("accept_redirects", 0), ("accept_local", 1))
    }
    return {
        **conf,
        "ipv4/ip_forward": 1,
        "ipv4/ipfrag_time": fragments_s,
        "ipv4/ipfrag_high_thresh": _FRAGMENT_BYTES,
        "ipv4/ipfrag_low_thresh": _FRAGMENT_BYTES * 3 // 4,
        "ipv4/ipfrag_max_dist": 0,
        "ipv6/conf/all/disable_ipv6": 1,
        "ipv6/conf/default/disable_ipv6": 1,
    }


def _populate(path: Path, fragments_s: int) -> None:
    """In a child of its own: a namespace that sorts, and when it does, a name for it."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    done = subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, capture_output=True, check=False)
    if done.returncode:
        raise OSError(22, done.stderr)
    for name, value in _settings(fragments_s).items():
        file = Path("/proc/sys/net") / name
        if file.exists() or not name.startswith("ipv6"):
            file.write_text(f"{value}\n")
    path.touch(mode=0o600)
    if _libc.mount(b"/proc/self/ns/net", os.fsencode(path), b"", 4096, None):  # MS_BIND
        raise OSError(ctypes.get_errno(), "mount")


def _release(path: Path) -> None:
    if path.exists():
        _libc.umount2(os.fsencode(path), 2)  # MNT_DETACH; a file that never became a mount is only a file
        path.unlink()


def make_namespace(path: Path, fragments_s: int) -> None:
    """The namespace, held by a mount at `path`. One that is there already is replaced."""

    def work() -> None:
        _release(path)
        _populate(path, fragments_s)

    mounts.at_home("making the sorter's namespace", work)


def release_namespace(path: Path) -> None:
    """Lets the namespace go, and with it what is inside; fine if it is gone."""
    mounts.at_home("releasing the sorter's namespace", lambda: _release(path))


def connect(name: str, mac: str, path: Path) -> int:
    """The veth pair into the namespace, our end down. Its index."""
    index = links.make_veth(name, INSIDE, None, mac, mac, DEVICE_MTU, mounts.seen_from_here(path))
    links.set_link(index, mtu=DEVICE_MTU)
    return index


def set_mtu(path: Path, mtu: int) -> None:
    """To what length it cuts, and with that, that it forwards at all."""
    links.configure_return(str(mounts.seen_from_here(path)), INSIDE, _NEXT_HOP, mtu)
