"""A shell in a host's domain 0, or a guest, where nothing that is written stays: /etc is a copy, /run and some of /var are empty, and all
that is started there ends with it. For programs that would change the machine."""

from __future__ import annotations

import shlex
import subprocess
from types import TracebackType

from support.host import Host

_END = "--- end of the command, status"
_PREPARE = r"""
mount --make-rprivate / && mount -t tmpfs private /mnt && cp -a /etc /mnt/etc && mount --bind /mnt/etc /etc &&
mount -t tmpfs private /run && mount -t tmpfs private /var/log && mkdir -p /run/lock /run/dbus &&
for d in /var/lib/dhcp /var/lib/dhcpcd; do test ! -d $d || mount -t tmpfs private $d || exit 1; done
"""


class Private:
    """Commands run one after the other; `do` is what each says."""

    def __init__(self, host: Host, node: str = "dom0") -> None:
        self._argv = ["ip", "netns", "exec", host.ns(node), "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._argv += ["--mount-proc", "sh"]

    def __enter__(self) -> Private:
        self._shell = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.do(_PREPARE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(timeout=30)
        assert self._shell.stdout is not None
        self._shell.stdout.close()

    def do(self, script: str, check: bool = True) -> str:
        """What it prints, errors included."""
        shell = self._shell
        assert shell.stdin is not None and shell.stdout is not None
        shell.stdin.write(f"sh -c {shlex.quote(script)} </dev/null 2>&1; echo '{_END}' $?\n")
        shell.stdin.flush()
        lines: list[str] = []
        for line in shell.stdout:
            if line.startswith(_END):
                assert not check or line.split()[-1] == "0", f"{script}: {''.join(lines)}"
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended in {script}: {''.join(lines)}")
