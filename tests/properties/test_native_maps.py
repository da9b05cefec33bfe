"""The emulated maps and the kernel's: the same calls of vfr/kernel/bpf.py have the same results and leave the same rows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import ModuleType

import pytest
from support.native import Native

from vfr.errors import KernelError
from vfr.kernel import bpf

HASH, TRIE, NO_PREALLOC = 1, 11, 1
KINDS = {"hash": (HASH, 0), "trie": (TRIE, NO_PREALLOC)}
ROOM = 40
Key = Callable[[Random], bytes]


def _hash_key(rng: Random) -> bytes:
    return rng.randrange(60).to_bytes(8, "little")


def _prefix(rng: Random) -> bytes:
    """How many bits, and those: few, so that one lies in another."""
    bits = rng.choice((0, 1, 7, 8, 9, 16, 24, 31, 32))
    address = rng.choice((0x0A000000, 0x0A800000, 0xC0000201, 0xC0000202, 0xFFFFFFFF))
    return bits.to_bytes(4, "little") + (address >> (32 - bits) << (32 - bits)).to_bytes(4, "big")


def _address(rng: Random) -> bytes:
    return (32).to_bytes(4, "little") + rng.choice((0x0A000001, 0x0A800000, 0xC0000201, 0xC0000203, 1)).to_bytes(
        4, "big"
    )


def _calls(rng: Random, key: Key, asked: Key) -> list[tuple[str, tuple[object, ...]]]:
    def value() -> bytes:
        return rng.randbytes(4)

    return [
        rng.choice(
            (
                ("set", (key(rng), value(), rng.choice((0, 0, 1, 2)))),
                ("set", (key(rng), value())),
                ("delete", (key(rng),)),
                ("get", (asked(rng),)),
                ("get", (key(rng),)),
                ("set_many", ([(key(rng), value()) for _ in range(rng.randrange(20))],)),
                ("delete_many", ([key(rng) for _ in range(rng.randrange(4))],)),
                ("rows", ()),
                ("keys", ()),
            )
        )
        for _ in range(120)
    ]


def _result(one: bpf.Map, call: str, arguments: tuple[object, ...]) -> object:
    """What it returns, or which error; of several rows the order is each kernel's own."""
    try:
        found = getattr(one, call)(*arguments)
    except KernelError as error:
        return error.errno
    return sorted(found) if isinstance(found, list) else found


def _open(module: ModuleType, kind: str) -> bpf.Map:
    number, flags = KINDS[kind]
    fd = module.create_map(number, 8, 4, ROOM, flags, "compared")
    return module.Map(fd, "compared", 8, 4, ROOM)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_same_calls_same_results(native: Native, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    """Of batches too, that take several calls to come to the end."""
    rng = Random(seed)
    for module in (bpf, native.bpf):
        monkeypatch.setattr(module, "_BATCH", 11)
    ours, theirs = _open(native.bpf, kind), _open(bpf, kind)
    calls = _calls(rng, _hash_key, _hash_key) if kind == "hash" else _calls(rng, _prefix, _address)
    try:
        for call, arguments in [*calls, ("rows", ())]:
            seen, wanted = _result(ours, call, arguments), _result(theirs, call, arguments)
            assert seen == wanted, (call, arguments)
        assert _result(theirs, "rows", ()) != []
    finally:
        ours.close()
        theirs.close()
