"""What vfr/kernel/attach.py takes for granted about hooks, links and pins.

k-router:  k0 ---veth--- k1     frames are sent out of k0 and meet the programs at k1's ingress
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.netns import index_of, inside, ip, packet_socket, run

from vfr._abi import Limit
from vfr.errors import KernelError
from vfr.kernel import attach, bpf
from vfr.kernel.fastpath import Fastpath

FRAME = bytes(6) + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes(46)
Load = Callable[[str], Path]

_ATTACH_AND_DIE = """
import os, sys
from pathlib import Path
from vfr.kernel import bpf
link = bpf.tcx_attach(int(sys.argv[1]), bpf.get_pinned(Path(sys.argv[2])))
bpf.pin(link, Path(sys.argv[3]))
os._exit(0)
"""


def _tcx(netns: str, ifindex: int, program: int) -> int:
    try:
        return inside(netns, bpf.tcx_attach, ifindex, program)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel has no tcx (Linux 6.6)")
        raise


def _programs(netns: str, ifindex: int) -> list[int]:
    return inside(netns, bpf.tcx_programs, ifindex)


def _is_let_go(netns: str, ifindex: int) -> bool:
    """Whether the hook is empty soon: the kernel frees a link in its own time."""
    deadline = time.monotonic() + 10
    while _programs(netns, ifindex):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_pinned_tcx_link_survives_who_made_it(router: str, probe: Load, bpffs: Path) -> None:
    k1 = index_of(router, "k1")
    program = bpf.get_pinned(probe("order") / "one")
    os.close(_tcx(router, k1, program))
    assert _is_let_go(router, k1)
    argv = [sys.executable, "-c", _ATTACH_AND_DIE, str(k1), str(bpffs / "order" / "one"), str(bpffs / "link")]
    # nsenter, since `ip netns exec` would bring a mount namespace of its own
    run("nsenter", f"--net=/run/netns/{router}", *argv)
    assert _programs(router, k1) == [bpf.object_id(program)]
    (bpffs / "link").unlink()
    assert _is_let_go(router, k1), "and its pin is what keeps it"


def test_an_unpinned_tcx_link_ends_with_its_descriptor(router: str, probe: Load) -> None:
    k1 = index_of(router, "k1")
    program = bpf.get_pinned(probe("order") / "one")
    link = _tcx(router, k1, program)
    assert _programs(router, k1) == [bpf.object_id(program)]
    os.close(link)
    assert _is_let_go(router, k1)


def test_a_tcx_link_goes_with_its_interface_and_leaves_its_pin(router: str, probe: Load, bpffs: Path) -> None:
    """So a pin alone proves nothing, and a new interface of the same name is unfiltered."""
    old = index_of(router, "k1")
    link = _tcx(router, old, bpf.get_pinned(probe("order") / "one"))
    bpf.pin(link, bpffs / "k1")
    os.close(link)
    ip(router, "link del k1")
    ip(router, "link add k0 type veth peer name k1")
    assert (bpffs / "k1").exists()
    assert _programs(router, old) == [] and _programs(router, index_of(router, "k1")) == []
    (bpffs / "k1").unlink()  # nor does the orphan mind


def test_who_comes_last_runs_first(router: str, probe: Load) -> None:
    """attach() puts itself before whoever is there, and attached() looks at the first place only."""
    pins, k1 = probe("order"), index_of(router, "k1")
    programs = [bpf.get_pinned(pins / name) for name in ("one", "two")]
    links = [_tcx(router, k1, program) for program in programs]
    assert _programs(router, k1) == [bpf.object_id(p) for p in reversed(programs)]
    with packet_socket(router, "k0") as sender:
        sender.send(FRAME)
    signatures = bpf.Map(bpf.get_pinned(pins / "signatures"), "signatures", 4, 4, 3)
    assert [int.from_bytes(raw, "little") for _, raw in signatures.dump()] == [2, 2, 1]
    for link in links:
        os.close(link)


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_the_same_object_attaches_either_way(
    way: str, router: str, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VFR_ATTACH", way)
    fastpath, k1 = Fastpath.load(bpffs), index_of(router, "k1")
    try:
        took = inside(router, fastpath.attach, k1, "vif", "k1")
        if took != way:
            pytest.skip("this kernel has no tcx (Linux 6.6)")
        assert inside(router, fastpath.attached, k1, "vif") == way
        assert inside(router, fastpath.attached, k1, "uplink") is None
        with packet_socket(router, "k0") as sender:
            sender.send(FRAME)
        unknown = int(Limit.ROW_UNKNOWN)
        assert fastpath.counters([unknown])[unknown] == {"DROP_NOT_READY": (1, len(FRAME))}
        inside(router, fastpath.detach, k1, "k1")
        assert inside(router, fastpath.attached, k1, "vif") is None
        assert "clsact" not in run("tc", "-n", router, "qdisc", "show", "dev", "k1")
    finally:
        fastpath.close()


def test_bpffs_takes_no_dots_in_names(probe: Load, bpffs: Path) -> None:
    program = bpf.get_pinned(probe("order") / "one")
    with pytest.raises(KernelError) as refused:
        bpf.pin(program, bpffs / "vif.1")
    assert refused.value.errno == errno.EPERM
    bpf.pin(program, bpffs / attach._file("vif.1"))
    assert attach.names(bpffs) >= {"vif.1"}
