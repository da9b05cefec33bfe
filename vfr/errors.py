"""Errors by whose fault they are. Each is told to the user in one line: what, and the way out."""

from __future__ import annotations

import os


class VfrError(Exception):
    """The answer is no: what was asked cannot be done, and the text says why and what to do."""


class UsageError(VfrError):
    """The words of a command are wrong: an impossible name, address, port or option."""


class ConflictError(VfrError):
    """What was asked for is taken, or contradicts what is there."""


class RegistryError(VfrError):
    """The registry cannot be read, or is in use by somebody who does not let go."""


class KernelError(VfrError):
    """The kernel refused. `errno` is its number, `detail` its own words (the verifier's log)."""

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        self.operation, self.errno, self.detail = operation, errno, detail
        text = f"{operation}: {os.strerror(errno)}"
        super().__init__(f"{text}\n{detail}" if detail else text)
