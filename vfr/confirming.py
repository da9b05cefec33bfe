"""A change that goes back by itself unless somebody says that it may stay.

The registry keeps what was before, and until when. Whoever looks after that time goes back first: a process of its
own, in a session of its own, that does nothing but wait for it; and should that have died too, the next command. A
boot ends the wait as well, since nobody can have confirmed by then.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from vfr.errors import UsageError
from vfr.instance import Instance
from vfr.registry import Contents, Pending, as_text, from_text, read_only

LONGEST_S = 24 * 3600
TRIES, BETWEEN_TRIES_S = 60, 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def seconds(text: str) -> float:
    """`60s`, `5m`, `1h` or `60` in seconds. UsageError for what is none, or too long."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        found = float(number) * units[unit]
    except ValueError:
        raise UsageError(f"--confirm {text!r} is not a time; write it as 60s, 5m or 1h") from None
    if not 1 <= found <= LONGEST_S:
        raise UsageError(f"--confirm {text} is out of range; it takes from 1s to 24h")
    return found


def pending(before: Contents, after: Contents, confirm_s: float) -> Contents:
    """`after`, until it is confirmed."""
    return replace(after, pending=Pending(secrets.token_hex(8), _boot(), _now() + confirm_s, as_text(before)))


def is_due(waiting: Pending) -> bool:
    """Whether the time is over."""
    return waiting.boot != _boot() or left_s(waiting) <= 0


def left_s(waiting: Pending) -> float:
    """How long it may still be confirmed, in seconds."""
    return waiting.deadline - _now()


def earlier(contents: Contents) -> Contents:
    """What was before. Blocks of ports that have been given back since stay noted as such."""
    assert contents.pending is not None
    back = from_text(contents.pending.before)
    kept = {(d.port_low, d.port_count) for d in back.domains}
    gone = [(d.port_low, d.port_count) for d in contents.domains if (d.port_low, d.port_count) not in kept]
    returned = tuple(block for block in contents.returned if block not in kept and block not in gone)
    return replace(back, returned=(*returned, *gone))


def watch(instance: Instance) -> None:
    """Starts the process that waits. It has nothing of its parent's: no terminal, no pipes, no session."""
    waiting = read_only(instance.registry).pending
    if waiting is None:
        return
    subprocess.Popen(
        [sys.executable, "-m", "vfr.confirming", waiting.token],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _wait(instance: Instance, token: str) -> bool:
    """Waits until the change is due; whether it still waits to be confirmed then. Looks up every second: it may be
    confirmed, or replaced by another."""
    while True:
        waiting = read_only(instance.registry).pending
        if waiting is None or waiting.token != token:
            return False
        if is_due(waiting):
            return True
        time.sleep(min(1.0, max(left_s(waiting), 0.01)))


def main() -> None:
    """Waits for the change with the token in argv[1], and goes back on it."""
    from vfr.errors import VfrError
    from vfr.router import Router

    router = Router()
    if not _wait(router.instance, sys.argv[1]):
        return
    for _ in range(TRIES):
        try:
            router.go_back(only_if_due=True)
            return
        except VfrError as error:
            _tell(error)
            time.sleep(BETWEEN_TRIES_S)


def _tell(error: Exception) -> None:
    """To the system's log, the only place that is left."""
    import syslog

    syslog.openlog("vfr", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, f"going back on an unconfirmed change: {error}")


if __name__ == "__main__":
    main()
