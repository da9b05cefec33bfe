"""Debian's packages that tests take apart. python -m support.fetch gets them all, since the workers of `make test` have no
network to get them by; whoever misses one is skipped, and says so.
"""

from __future__ import annotations

from vfr_lab.debian import UnavailableError, kernel, programs
from vfr_lab.vm import DROPBEAR

LIBVIRT = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")
STORAGE = ("nfs-ganesha", "nfs-ganesha-vfs", "tgt", "libiscsi-bin", "libnfs-utils")


def main() -> None:
    for packages in ((), (DROPBEAR,), LIBVIRT, STORAGE):
        try:
            programs(*packages) if packages else kernel()
        except UnavailableError as reason:
            print(f"not to be had: {reason}")


if __name__ == "__main__":
    main()
