"""The router that packet tables and properties speak about, for the model and for the object.

web 169.254.1.2 (slot 1)   db .3 (slot 2)   odd 198.18.0.77 (slot 3)   dom0 169.254.1.0 (slot 0)
                                  uplink 192.0.2.1/24 --- LAN
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from vfr.policy import Rule, compile_rules, parse
from vfr.settings import Dhcp, Limits
from vfr.spec import Domain, Router, State
from vfr.spec.model import Policy

POOL = IPv4Network("169.254.1.0/24")
LAN_NET = IPv4Network("192.0.2.0/24")
OUTSIDE = IPv4Address("192.0.2.1")
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
BLOCK = 8
NAT_LOW = 16384
SLOTS = {"dom0": 0, "web": 1, "db": 2, "odd": 3}
FORWARDS = {(6, 2202): (1, 22), (6, 2203): (2, 22)}
QUOTA = 16
LIMITS = Limits(sessions=QUOTA, inbound=QUOTA, half_open=12, new_per_s=0, errors_per_s=100_000, fragments=4)


@dataclass(frozen=True, slots=True)
class Node:
    """A sender or receiver of frames."""

    ip: str
    mac: str


NODES = {
    "dom0": Node("169.254.1.0", "02:00:00:00:00:10"),
    "web": Node("169.254.1.2", "02:00:00:00:00:02"),
    "db": Node("169.254.1.3", "02:00:00:00:00:03"),
    "odd": Node("198.18.0.77", "02:00:00:00:00:04"),
    "lan": Node("192.0.2.11", "02:00:00:00:00:11"),
}


# Two guests that believe to be the same, and one that only has another MAC: (address, MAC, gateway).
TWIN = ("10.0.2.15", "52:54:00:12:34:56", "10.0.2.2")
CLONES = {"web": TWIN, "db": TWIN, "odd": (None, TWIN[1], None)}


# What guests are told by DHCP beside who they are.
DHCP = {
    "web": Dhcp(),
    "db": Dhcp(dns=(IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54")), lease=600, prefix=16),
    "odd": Dhcp(dns=tuple(IPv4Address(f"198.51.100.{n}") for n in (1, 2, 3)), lease=86400, prefix=16),
}


def _guest(name: str) -> dict[str, Any]:
    address, mac, gateway = CLONES[name]
    return {
        "guest_address": int(IPv4Address(address)) if address else None,
        "guest_mac": bytes.fromhex(mac.replace(":", "")) if mac else None,
        "guest_gateway": int(IPv4Address(gateway)) if gateway else None,
    }


def router(rules: str, known: dict[Rule, int] | None = None, clones: bool = False) -> Router:
    """The model's view of it under these rules; with `clones`, its guests believe what CLONES says. `known` are numbers that rules keep; new ones are added."""
    parsed = parse(rules, "case.rules")
    numbers = None if known is None else [known.setdefault(rule, len(known) + 1) for rule in parsed.rules]
    compiled = compile_rules(parsed, {n: s for n, s in SLOTS.items() if s}, LAN_NET, numbers)
    domains = {
        slot: Domain(
            int(IPv4Address(NODES[name].ip)),
            bytes.fromhex(NODES[name].mac.replace(":", "")),
            range(NAT_LOW + BLOCK * slot, NAT_LOW + BLOCK * (slot + 1)) if slot else range(0),
            dhcp=DHCP.get(name),
            **(_guest(name) if clones and slot else {}),
        )
        for name, slot in SLOTS.items()
    }
    return Router(
        domains,
        compiled,
        int(IPv4Address(NODES["dom0"].ip)),
        POOL,
        int(OUTSIDE),
        LAN_NET,
        forwards=FORWARDS,
        limits=LIMITS,
    )


def without_rates(state: State, policy: Policy) -> State:
    """What is left when this policy comes into force: a rule that goes away is forgotten, with what it let begin."""
    kept = policy.rules  # type: ignore[attr-defined]
    return replace(
        state, whole={what: when for what, when in state.whole.items() if what[1] != "rule" or what[0] in kept}
    )
