"""What reading and compiling rules costs, by size: seconds of this process, and the most memory it then had.

    .venv/bin/python tools/policy_cost.py [RULES ...]        without an argument, for 1,000, 10,000 and 100,000 rules

There are 4,000 domains, a third of the rules' ends are groups, sets or blocks, and there are 10,000 blocks: half of
them in sets, half in rules. The figures are of a process of its own for each size.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import TypeVar

from vfr.policy import compile_rules, parse_document

SIZES = (1_000, 10_000, 100_000)
DOMAINS, BLOCKS, GROUPS, SETS = 4_000, 10_000, 20, 50
T = TypeVar("T")


def rules_text(count: int) -> str:
    """A rule file of that many rules, the same every time."""
    return "\n".join(_lines(count, random.Random(count))) + "\n"


def _lines(count: int, chance: random.Random) -> Iterator[str]:
    blocks = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(BLOCKS)]
    in_sets, in_rules = blocks[: BLOCKS // 2], blocks[BLOCKS // 2 :]
    for group in range(GROUPS):
        yield f"group g{group} = " + ", ".join(f"d{i}" for i in range(group, DOMAINS, GROUPS))
    for number in range(SETS):
        yield f"set s{number} = " + ", ".join(in_sets[number::SETS])
    for i in range(count):
        wide = (f"g{chance.randrange(GROUPS)}", f"s{chance.randrange(SETS)}", in_rules[i % len(in_rules)])
        target = chance.choice(wide) if i % 3 == 0 else f"d{chance.randrange(DOMAINS)}"
        action, protocol = chance.choice(("allow", "allow", "deny", "reject")), chance.choice(("tcp", "udp"))
        yield f"{action} d{chance.randrange(DOMAINS)} -> {target} {protocol} {chance.randrange(1, 65536)}"


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    made = work()
    return made, time.process_time() - started


def measure(count: int) -> str:
    """One row of the table."""
    text, slots = rules_text(count), {f"d{i}": i + 1 for i in range(DOMAINS)}
    parse_document("", "warm")  # the parser itself is made once, in half a second
    document, read_s = _timed(lambda: parse_document(text, "cost.rules"))
    read_mib = _peak_mib()
    policy, compile_s = _timed(lambda: compile_rules(document.rules, slots, IPv4Network("192.0.2.0/24")))
    sizes = f"{len(policy.pairs):>9} {len(policy.sets):>9} {len(policy.remotes):>9}"
    return f"{count:>9} {read_s:>8.2f} {read_mib:>9.0f} {compile_s:>8.2f} {_peak_mib():>9.0f} {sizes}"


def main() -> None:
    """The table, a process for each row."""
    if sys.argv[1:2] == ["--one"]:
        print(measure(int(sys.argv[2])))
        return
    titles = (
        ("rules", 9),
        ("read s", 8),
        ("MiB", 9),
        ("made s", 8),
        ("MiB", 9),
        ("pairs", 9),
        ("sets", 9),
        ("blocks", 9),
    )
    print(" ".join(f"{title:>{width}}" for title, width in titles))
    for count in map(int, sys.argv[1:] or SIZES):
        subprocess.run([sys.executable, __file__, "--one", str(count)], check=True)


if __name__ == "__main__":
    main()
