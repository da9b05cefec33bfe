"""VFR: a virtual firewall-router for the guests of a Linux host. `Router` is the way in."""

from typing import TYPE_CHECKING, Any

from vfr.errors import ConflictError, KernelError, RegistryError, UsageError, VfrError

if TYPE_CHECKING:
    from vfr.router import Router

__all__ = ["ConflictError", "KernelError", "RegistryError", "Router", "UsageError", "VfrError"]


def __getattr__(name: str) -> Any:
    """Router comes when it is asked for, so that `import vfr.errors` costs nothing."""
    if name != "Router":
        raise AttributeError(name)
    from vfr.router import Router

    return Router
