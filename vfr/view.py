"""What a clone's guest believes. Snapshots of one VM all believe the same: the router knows each by its own address, and
the fastpath translates (fastpath/view.h). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, slots=True)
class GuestWords:
    """The address, MAC and gateway that a guest knows; None where they are those that the router knows."""

    address: IPv4Address | None = None
    mac: str | None = None
    gateway: IPv4Address | None = None

    @property
    def is_clone(self) -> bool:
        """Whether the guest believes anything else than the router knows."""
        return self != GuestWords()

    def beyond(self, address: IPv4Address, mac: str) -> GuestWords:
        """Without what the router, who knows the guest by these, knows as well."""
        return GuestWords(
            None if self.address == address else self.address, None if self.mac == mac else self.mac, self.gateway
        )


__all__ = ["GuestWords"]
