"""Reads or writes a whole iSCSI disk by libiscsi, which comes with no such tool.

python iscsi.py LIBRARY read|write PORTAL TARGET LUN FILE
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK, BLOCKS = 512, 128  # bytes; of them in one command


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _connect(library: Any, portal: str, target: str, lun: int) -> Any:
    for name in ("iscsi_create_context", "iscsi_get_error"):
        getattr(library, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.iscsi_create_context(b"iqn.2001-04.example:reader"))
    library.iscsi_set_targetname(context, target.encode())
    library.iscsi_set_session_type(context, 2)  # ISCSI_SESSION_NORMAL
    if library.iscsi_full_connect_sync(context, portal.encode(), lun):
        sys.exit(str(ctypes.string_at(library.iscsi_get_error(context))))
    return context


def _pass(command: Callable[..., int | None], context: Any, lun: int, data: Any, size: int) -> None:
    """One command after the other, each from or into its part of `data`."""
    for start in range(0, size, BLOCK * BLOCKS):
        length = min(BLOCK * BLOCKS, size - start)
        piece = Piece(ctypes.addressof(data) + start, length)
        task = command(context, lun, start // BLOCK, *_tail(command, length), ctypes.byref(piece), 1)
        if not task or ctypes.cast(task, ctypes.POINTER(ctypes.c_int))[0]:  # scsi_task.status, 0: good
            sys.exit(f"block {start // BLOCK} failed")


def _tail(command: Any, length: int) -> tuple[Any, ...]:
    """What stands between block and pieces: write has the data's address before their length, not used with pieces."""
    size = (ctypes.c_uint32(length), BLOCK, 0, 0, 0, 0, 0)
    return (None, *size) if command.__name__.startswith("iscsi_write") else size


def main() -> None:
    path, way, portal, target, lun, file = sys.argv[1:]
    library = ctypes.CDLL(path)
    context = _connect(library, portal, target, int(lun))
    size = Path(file).stat().st_size
    data = ctypes.create_string_buffer(Path(file).read_bytes() if way == "write" else size, size)
    command = getattr(library, f"iscsi_{way}10_iov_sync")
    command.restype = ctypes.c_void_p
    _pass(command, context, int(lun), data, size)
    if way == "read":
        Path(file).write_bytes(data.raw)


if __name__ == "__main__":
    main()
