"""The xen scenario with two guests, and every claim of the proof.

python -m vm.lab     in the machine, which takes the lab down by ending.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from vfr_lab.lab import Lab
from vfr_lab.prove import prove
from vfr_lab.scenario import XEN


def main() -> int:
    """Brings it up without saying how to attach, and proves. 0 if clsact was found and all claims hold."""
    lab = Lab(replace(XEN, guests=XEN.guests[:2]))
    lab.up()
    vfr = str(Path(sys.executable).parent / "vfr")
    attached_by = json.loads(lab.exec("dom0", vfr, "nat", "status", "--json").stdout)["attached_by"]
    print(f"attached by {attached_by}", flush=True)
    held = []
    for seen in prove(lab):
        print(f"{'ok    ' if seen.ok else 'FAILED'} {seen.claim}: {seen.seen}", flush=True)
        held.append(seen.ok)
    print(f"{sum(held)} of {len(held)} claims hold")
    return int(attached_by != "clsact" or not held or not all(held))


if __name__ == "__main__":
    sys.exit(main())
