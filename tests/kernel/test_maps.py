"""What quotas, fresh tables and quick listings take for granted about maps, and loops about helpers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from support.netns import index_of, inside

from vfr.errors import KernelError
from vfr.kernel import bpf

NO_PREALLOC = 1
FRAME = bytes(60)
Load = Callable[[str], Path]


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _hash(entries: int) -> bpf.Map:
    fd = bpf.create_map(bpf.TYPE_HASH, 4, 4, entries, NO_PREALLOC, "k_hash")
    return bpf.Map(fd, "k_hash", 4, 4, entries)


def _outer(pins: Path) -> bpf.Map:
    return bpf.Map(bpf.get_pinned(pins / "outer"), "outer", 4, 4, 4)


# The kernel counts small maps one by one, and those over 64 a CPU in batches; quotas come in both sizes.
@pytest.mark.parametrize("entries", [1, 16, 2048, 8192])
def test_a_hash_takes_exactly_as_many_as_it_says(entries: int) -> None:
    table = _hash(entries)
    for number in range(entries):
        table.set(_u32(number), _u32(number))
    with pytest.raises(KernelError) as refused:
        table.set(_u32(entries), _u32(0))
    assert refused.value.errno == errno.E2BIG
    table.set(_u32(0), _u32(7))  # what is there can still be written over
    assert table.get(_u32(0)) == _u32(7)
    assert table.delete(_u32(0))
    table.set(_u32(entries), _u32(0))  # and one that left made room
    table.close()


def test_inner_maps_may_differ_in_size(probe: Load) -> None:
    """The object says 4; a quota is another number."""
    outer, big = _outer(probe("loops")), _hash(9)
    outer.set(_u32(1), _u32(big.fd))
    for number in range(9):
        big.set(_u32(number), _u32(number))
    wrong = bpf.create_map(bpf.TYPE_HASH, 8, 4, 4, NO_PREALLOC, "k_other")
    with pytest.raises(KernelError) as refused:  # but not in their keys
        outer.set(_u32(2), _u32(wrong))
    assert refused.value.errno == errno.EINVAL


def test_one_call_reads_what_is_not_zero_of_a_whole_array() -> None:
    fd = bpf.create_map(bpf.TYPE_ARRAY, 4, 8, 4096, 0, "k_array")
    rows = bpf.Map(fd, "k_array", 4, 8, 4096)
    rows.set(_u32(4095), b"the last")
    rows.set(_u32(7), b"\0\0\0\0\0\0\0x")
    assert rows.dump() == [(7, b"\0\0\0\0\0\0\0x"), (4095, b"the last")]
    rows.close()


def test_places_of_an_array_of_maps_are_set_many_at_once(probe: Load) -> None:
    """Each has its own map then, also where there was another; smaller ones than the pattern will do."""
    outer, inner = _outer(probe("loops")), [_hash(entries) for entries in (2, 1, 5, 1)]
    outer.set(_u32(1), _u32(inner[3].fd))
    outer.set_many((_u32(place), _u32(inner[place].fd)) for place in range(3))
    for place in range(3):
        inner[place].set(_u32(1), _u32(place))
        number = outer.get(_u32(place))
        assert number is not None
        found = bpf.Map(bpf.map_fd_by_id(int.from_bytes(number, "little")), "found", 4, 4, 1)
        assert found.get(_u32(1)) == _u32(place)
        found.close()


def test_one_call_reads_the_rows_of_an_array_of_maps_that_are_there(probe: Load) -> None:
    outer, inner = _outer(probe("loops")), _hash(2)
    assert outer.dump() == []
    outer.set(_u32(3), _u32(inner.fd))
    assert [row for row, _ in outer.dump()] == [3]


def test_bpf_loop_runs_until_told_to_stop(probe: Load) -> None:
    program = bpf.get_pinned(probe("loops") / "looped")
    assert bpf.test_run(program, FRAME, 1)[0] == 100


def test_for_each_goes_through_an_inner_map_and_may_delete(probe: Load) -> None:
    pins = probe("loops")
    outer, inner = _outer(pins), _hash(9)
    outer.set(_u32(1), _u32(inner.fd))
    for number in range(9):
        inner.set(_u32(number), _u32(number))
    assert bpf.test_run(bpf.get_pinned(pins / "each_element"), FRAME, 1)[0] == 9
    assert {int.from_bytes(key, "little") for key in inner.keys()} == {0, 2, 4, 6, 8}  # noqa: SIM118, no dict


def test_a_test_run_comes_in_by_the_interface_it_says(probe: Load, router: str) -> None:
    program = bpf.get_pinned(probe("where") / "where")
    for name in ("k0", "k1"):
        ifindex = index_of(router, name)
        assert inside(router, bpf.test_run, program, FRAME, ifindex)[0] == ifindex
    with pytest.raises(KernelError):
        inside(router, bpf.test_run, program, FRAME, 99999)
