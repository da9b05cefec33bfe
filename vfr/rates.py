"""Rates as people write them: 100M bits a second, 20k packets a second, a burst of 50ms. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

from vfr.errors import UsageError
from vfr.settings import LEAST_RATE, MOST_BURST_MS, MOST_RATE, Limits

NONE = "none"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,12})?)([kKMGT]?)")
_BURST = re.compile(r"([0-9]{1,9})(ms|s)?")


def _number(option: str, text: str, what: str, most: int) -> int:
    """A number with a unit, 0 for `none`."""
    if text == NONE:
        return 0
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise UsageError(f"{option} {text!r} is not {what}; write it as 100M, with k, M, G or T, or {NONE}")
    number = int(Fraction(found[1]) * _UNITS[found[2].lower()])
    if number == 0:
        raise UsageError(
            f"{option} {text} would let nothing pass; take the limit off with {option} {NONE}, or deny by rule"
        )
    if number > most:
        raise UsageError(f"{option} {text} is out of range; it takes up to {short(most)}, or {NONE}")
    return number


def bits(option: str, text: str) -> int:
    """Bits a second, 0 for `none`. UsageError names the option."""
    number = _number(option, text, "a rate in bits a second", MOST_RATE)
    if 0 < number < LEAST_RATE:
        raise UsageError(f"{option} {text} is too slow; it takes {short(LEAST_RATE)} bits a second or more, or {NONE}")
    return number


def packets(option: str, text: str) -> int:
    """Packets, or conversations, a second, 0 for `none`. UsageError names the option."""
    return _number(option, text, "a number a second", 10**9)


def burst(option: str, text: str) -> int:
    """Milliseconds of `50ms`, `50` or `1s`. UsageError names the option."""
    found = _BURST.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{option} {text!r} is not a time; write it as 50ms or 1s: so long it may run ahead of its rates"
        )
    milliseconds = int(found[1]) * (1000 if found[2] == "s" else 1)
    if not 1 <= milliseconds <= MOST_BURST_MS:
        raise UsageError(f"{option} {text} is out of range; it takes 1ms to {MOST_BURST_MS // 1000}s")
    return milliseconds


def short(number: int) -> str:
    """With the unit that leaves the fewest digits and loses none: 100M, 1500k, 7."""
    for unit in ("T", "G", "M", "k"):
        if number and number % _UNITS[unit.lower()] == 0:
            return f"{number // _UNITS[unit.lower()]}{unit}"
    return str(number)


def text_of(limits: Limits) -> str:
    """All rates that are set, in a line; "" if none is."""
    named = (
        ("out", limits.rate_out),
        ("in", limits.rate_in),
        ("packets/s out", limits.pps_out),
        ("packets/s in", limits.pps_in),
    )
    return ", ".join(f"{short(number)} {what}" for what, number in named if number)
