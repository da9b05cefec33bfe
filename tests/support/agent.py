"""A program that runs in a lab's node beside the test and is talked to by lines; and C programs for it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vfr_lab import Lab

SUPPORT = Path(__file__).parent
PROBE = (sys.executable, str(SUPPORT / "probe.py"))
DEADLINE_S = 30


def compiled(name: str, where: Path) -> str:
    """The path of support/NAME.c as a program in the directory `where`."""
    program = where / name
    source = SUPPORT / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)], check=True)
    return str(program)


class Agent:
    """`command` in a node, from `with` to its end at the latest. It has started when it says "up"."""

    def __init__(self, lab: Lab, node: str, *command: str, says_up: bool = True) -> None:
        self._argv = lab.argv(node, command)
        self._says_up = says_up
        self._rest = b""

    def __enter__(self) -> Agent:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._says_up and (line := self.line()) != "up":
            self._process.kill()
            raise AssertionError(f"{self._argv} did not start: {line!r}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def line(self, seconds: float = DEADLINE_S) -> str:
        """The next line that it prints, "" at its end; an AssertionError if none comes in time."""
        assert self._process.stdout is not None
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready = select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0]
            assert ready, f"{self._argv} said nothing for {seconds} s"
            more = os.read(descriptor, 65536)
            if not more:
                break
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def say(self, line: str) -> None:
        """One line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, seconds: float = DEADLINE_S) -> dict[str, Any]:
        """The JSON of the next line."""
        found: dict[str, Any] = json.loads(self.line(seconds))
        return found

    def finish(self, seconds: float = DEADLINE_S) -> dict[str, Any]:
        """Tells it to end, by the end of its standard input; the JSON of its last words."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.answer(seconds)
