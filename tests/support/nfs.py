"""Writes a file by NFS version 4 with libnfs, a piece a call.

python nfs.py LIBRARY nfs://SERVER/DIRECTORY/NAME FILE

libnfs 4.0's own nfs-cp writes 1 MiB a call, of which that version has room for some 3 KiB in a request of NFS 4: it fails in
the client, before anything is sent ("Failed to write to dest file"; 1000 bytes pass, 4000 do not).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

PIECE = 2048  # bytes


class Url(ctypes.Structure):
    _fields_ = [("server", ctypes.c_char_p), ("path", ctypes.c_char_p), ("file", ctypes.c_char_p)]


class Nfs:
    """libnfs, whose calls must succeed."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        for name in ("nfs_init_context", "nfs_get_error"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.nfs_parse_url_full.restype = ctypes.POINTER(Url)
        self.context = ctypes.c_void_p(self.library.nfs_init_context())

    def do(self, name: str, *arguments: Any) -> int:
        done = int(getattr(self.library, name)(self.context, *arguments))
        if done < 0:
            sys.exit(f"{name}: {ctypes.string_at(self.library.nfs_get_error(self.context)).decode()}")
        return done


def main() -> None:
    library, where, file = sys.argv[1:]
    nfs, handle = Nfs(library), ctypes.c_void_p()
    url = nfs.library.nfs_parse_url_full(nfs.context, f"{where}?version=4".encode()).contents
    nfs.do("nfs_mount", url.server, url.path)
    nfs.do("nfs_open2", url.file, os.O_WRONLY | os.O_CREAT, 0o600, ctypes.byref(handle))
    data = Path(file).read_bytes()
    for at in range(0, len(data), PIECE):
        piece = data[at : at + PIECE]
        written = nfs.do("nfs_write", handle, ctypes.c_uint64(len(piece)), piece)
        if written != len(piece):
            sys.exit(f"{written} of {len(piece)} bytes were written")
    nfs.do("nfs_close", handle)


if __name__ == "__main__":
    main()
