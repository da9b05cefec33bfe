"""Xen 1.2's virtual firewall-router as its C had it: the driver's parser, and the hypervisor's search of its list.

A model to judge the import of its rules by, and so written after the C, step by step, not after vfr/policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPECIAL, NOWHERE, WIRE, EVERYBODY = 0x7FFFFFFF, 0, 1, 2
_SPACES = " \t\v\f\r\n"
_BITS = {"addr": 32, "addrmask": 32, "port": 16, "portmask": 16, "dom": 64, "idx": 32}
_PARTS = ("addr", "addrmask", "port", "portmask")
_FIELDS = (
    *("src", "dst"),
    *(side + part for part in _PARTS for side in ("src", "dst")),
    *("srcdom", "srcidx", "dstdom", "dstidx", "proto"),
)

Struct = dict[str, int]


def _strncmp(word: str, keyword: str, length: int) -> bool:
    """C's, over a line that does not end after the word: whether nothing differs in so many characters."""
    return word[:length] == (keyword + "\0" * length)[:length]


def _digits(text: str, bits: int) -> int:
    found = 0
    for c in text:
        if c not in "0123456789":
            break
        found = (found * 10 + int(c)) % (1 << bits)
    return found


def _getipaddr(text: str) -> int:
    ret = val = 0
    for c in text:
        if c not in "0123456789.":
            return 0
        if c == ".":
            if val > 255:
                return 0
            ret, val = ((ret << 8) + val) % (1 << 32), 0
        else:
            val = (val * 10 + int(c)) % (1 << 32)
    return ((ret << 8) + val) % (1 << 32)


def _anton(text: str) -> int:
    sign, text = (-1, text[1:]) if text[:1] == "-" else (1, text)
    return sign * _digits(text, 32) % (1 << 32)


def _set(op: Struct, field: str, value: str) -> None:
    name = next((name for name in _FIELDS if _strncmp(field, name, len(field))), None)
    if name in ("src", "dst"):
        op[f"{name}dom"], op[f"{name}idx"] = SPECIAL, EVERYBODY if name == "src" else WIRE
    elif name == "proto":
        for number, word in enumerate(("any", "ip", "tcp", "udp", "arp")):
            if _strncmp(value, word, len(value)):
                op["proto"] = number
    elif name:
        kind = name[3:]
        how = _anton if kind == "idx" else _getipaddr if kind.startswith("addr") else None
        op[name] = how(value) if how else _digits(value, _BITS[kind])


def write(line: str) -> tuple[str, Struct] | None:
    """vfr_write_proc: (operation, its net_rule), None if nothing came of it."""
    at, end = 0, len(line)

    def skip(while_in: str) -> None:
        nonlocal at
        while at < end and line[at] in while_in:
            at += 1

    def take(until: str) -> str:
        nonlocal at
        start = at
        while at < end and line[at] not in until:
            at += 1
        return line[start:at]

    skip(_SPACES)
    if not (command := take(_SPACES)):
        return None
    operation = next((c for c in ("ADD", "DELETE", "PRINT") if _strncmp(command, c, len(command))), "ADD")
    op = dict.fromkeys([*_FIELDS[2:], "action"], 0)
    if operation == "PRINT":
        return operation, op
    skip(" ")
    if not (action := take(" ")):
        return None
    known = [a for a in ("ACCEPT", "COUNT") if _strncmp(action, a, len(action))]
    if not known:
        return None
    op["action"] = int(known[0] == "COUNT")
    while at < end:
        skip(_SPACES)
        if not (field := take(_SPACES + "=")):
            break
        skip(_SPACES + "=")
        if not (value := take(_SPACES)):
            return None
        _set(op, field, value)
    return operation, op


def rules_of(lines: Iterable[str]) -> list[Struct]:
    """net_rule_list after all writes, its head first."""
    found: list[Struct] = []
    for written in map(write, lines):
        if written and written[0] == "ADD":
            found.insert(0, written[1])
        elif written and written[0] == "DELETE" and written[1] in found:
            found.remove(written[1])
    return found


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet: where it comes from, as (domain, index), its addresses, and the byte at 9 of its frame."""

    sender: tuple[int, int]
    src: int
    dst: int
    byte9: int = 0


def _matches(r: Struct, p: Packet) -> bool:
    return (
        ((r["srcdom"], r["srcidx"]) in (p.sender, (SPECIAL, EVERYBODY)))
        and p.sender != (r["dstdom"], r["dstidx"])
        and not (r["srcaddr"] ^ p.src) & r["srcaddrmask"]
        and not (r["dstaddr"] ^ p.dst) & r["dstaddrmask"]
        and not (r["srcport"] ^ 0) & r["srcportmask"]
        and not (r["dstport"] ^ 0) & r["dstportmask"]
        and (r["proto"] in (0, 1) or (r["proto"] == 2 and p.byte9 == 6) or (r["proto"] == 3 and p.byte9 == 17))
    )


def target(rules: Sequence[Struct], packet: Packet) -> tuple[int, int]:
    """net_find_rule, and what kept link-local sources off the wire: (domain, index), with SPECIAL for the domain
    if it is the wire or nowhere."""
    found = (SPECIAL, NOWHERE)
    for rule in rules:
        if _matches(rule, packet):
            found = rule["dstdom"], rule["dstidx"]
            if found[0] != SPECIAL:
                break
    if found == (SPECIAL, WIRE) and packet.src >> 16 == 0xA9FE:
        return SPECIAL, NOWHERE
    return found
