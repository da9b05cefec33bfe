"""A call of the router's that is killed, or fails, at its nth step."""

from __future__ import annotations

import signal
import subprocess
import sys

from support.host import Host, run

KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
_PROGRAM = """
import os, signal, sys
from pathlib import Path
from vfr import Router
count = 0
def stop(step):
    global count
    count += 1
    if count == int(sys.argv[1]):
        {end}
with Router(on_step=stop) as router:
    {call}
"""


def program(call: str, end: str = KILLED) -> str:
    """Its one argument is the number of the step, from 1 on, at which it does `end` in the midst of `call`."""
    return _PROGRAM.format(call=call, end=end)


def stopped(host: Host, call: str, step: int, end: str = KILLED) -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", host.ns("dom0"), sys.executable, "-c", program(call, end), str(step)]
    return run(*argv, check=False)


def died(host: Host, call: str, step: int) -> bool:
    """Whether it was killed at that step; if not, it had fewer and is done."""
    done = stopped(host, call, step)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
