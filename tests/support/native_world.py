"""Writes the world that fuzzers begin with: python -m support.native_world OUT.

The control plane sets up the test world on the native build while every change of a map is recorded. The
first segment is the world under the first rules, each further one a change to the next, the last back.

OUT.truth is what each of these rules says of domains by definition, a struct world_truth for each: the oracle
holds the fastpath to it, and not to the tables that the rules were compiled to.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from support import policies, world
from support.native import Native
from vfr.policy import RuleSet, parse
from vfr.policy.rules import WITH_PORTS, Party, Traffic

RULES = policies.ALL
ETHERTYPES_MOST = 8  # WORLD_ETHERTYPES


def _ports(rules: RuleSet) -> tuple[int, ...]:
    """Of each run of ports that no rule tells apart, one."""
    edges = {0, *(edge for r in rules.rules if r.what for low, high in r.what.ports for edge in (low, high + 1))}
    return tuple(sorted(edge for edge in edges if edge < 1 << 16))


def _allowed(rules: RuleSet, opener: str, target: str) -> Iterator[Traffic]:
    """What one domain may open to another: of a protocol's ports only the first that it may."""
    ends, ports = (Party(opener), Party(target)), _ports(rules)
    for protocol in range(256):
        some = ports if protocol in (1, *WITH_PORTS.values()) else (0,)
        traffic = (Traffic(protocol, port) for port in some)
        if (found := next((t for t in traffic if rules.decide(*ends, t) == "allow"), None)) is not None:
            yield found
    for kind in ports:
        if rules.decide(*ends, ether := Traffic(0, kind, True)) == "allow":
            yield ether


def _truth(rules: RuleSet) -> bytes:
    protocols, ethertypes = bytearray(), bytearray()
    for opener in world.SLOTS:
        for target in world.SLOTS:
            bits, kinds = bytearray(32), list[int]()
            for traffic in _allowed(rules, opener, target):
                if traffic.ether:
                    kinds.append(traffic.port)
                else:
                    bits[traffic.protocol // 8] |= 1 << traffic.protocol % 8
            assert len(kinds) < ETHERTYPES_MOST, "make room in struct world_truth"
            protocols += bits
            ethertypes += struct.pack(f"<{ETHERTYPES_MOST}H", *kinds, *[0] * (ETHERTYPES_MOST - len(kinds)))
    return bytes(protocols + ethertypes)


def main() -> None:
    with Native(recording=Path(sys.argv[1])) as native:
        native.reset(world.router(RULES[0]))
        native.capture((world.SLOTS["web"], world.SLOTS["db"]))
        native.mark()
        for rules in (*RULES[1:], RULES[0]):
            native.fastpath.replace_policy(world.router(rules).policy)  # type: ignore[arg-type]
            native.mark()
    Path(f"{sys.argv[1]}.truth").write_bytes(b"".join(_truth(parse(rules, "world.rules")) for rules in RULES))


if __name__ == "__main__":
    main()
