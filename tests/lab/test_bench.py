"""The benchmark as an instrument: what it counts is what there is, and its tables say what its samples do.

A very short run on a lab of its own, and the pure parts on made-up samples. No timing is judged.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vfr.policy import compile_rules, parse
from vfr_lab.backends import backend
from vfr_lab.bench import plots, scale, stage, workloads
from vfr_lab.bench.cost import Cost
from vfr_lab.bench.figures import Sample, figure, is_generator_bound, of, ratio, short
from vfr_lab.bench.load import FLOW_PORT, FLOW_PORTS, Drain, LoadError, frame, interface_of, program, ring, udp_frame
from vfr_lab.bench.report import Report, as_json, as_markdown
from vfr_lab.bench.run import order
from vfr_lab.bench.scale import Point
from vfr_lab.bench.workloads import LIMIT, Workload, measure
from vfr_lab.lab import Lab

COMMAND = str(Path(sys.executable).parent / "vfr-lab")


def _samples(workload: str, **values: list[float]) -> list[Sample]:
    return [Sample(r, b, workload, v, 2.0) for b, vs in values.items() for r, v in enumerate(vs)]


# Pure


def test_a_figure_is_a_median_between_its_least_and_its_most() -> None:
    found = figure([3.0, 1.0, 2.0, 10.0, 2.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count, found.spread) == (2.0, 1.0, 10.0, 5, 4.5)
    assert found.is_noisy and not figure([100, 101, 120]).is_noisy  # type: ignore[union-attr]
    assert figure([]) is None


def test_a_ratio_is_of_figures_of_one_round() -> None:
    """The machine was half as fast in the second round, for both; the ratio is none the worse for it."""
    samples = _samples("nat-pps", vfr=[90, 45, 92], direct=[100, 50, 100])
    found = ratio(samples, "nat-pps", "vfr", "direct")
    assert found is not None and found.median == 0.9 and found.low == 0.9 and found.high == 0.92


def test_a_round_that_one_of_both_has_not_is_not_compared() -> None:
    samples = [*_samples("nat-pps", vfr=[90, 80], direct=[100]), Sample(2, "vfr", "nat-pps", None, reason="no")]
    found = ratio(samples, "nat-pps", "vfr", "direct")
    assert found is not None and found.count == 1
    assert of(samples, "vfr", "nat-pps") == {0: 90, 1: 80}
    assert ratio(samples, "nat-pps", "vfr", "bridge") is None


@pytest.mark.parametrize(
    ("less_is_more", "value", "bound"), [(False, 94, False), (False, 96, True), (True, 106, False), (True, 104, True)]
)
def test_a_figure_near_the_generators_own_is_marked(less_is_more: bool, value: float, bound: bool) -> None:
    samples = _samples("w", **{"vfr": [value], LIMIT: [100]})
    assert is_generator_bound(samples, "w", "vfr", LIMIT, less_is_more) is bound


def test_numbers_are_short() -> None:
    numbers = (0.987, 4.567, 45.67, 456.7, 4567.0, 45670.0, 456700.0, 4567000.0)
    assert [short(n) for n in numbers] == ["0.99", "4.57", "45.7", "457", "4,567", "45.7 k", "457 k", "4.57 M"]


def test_no_backend_is_always_first() -> None:
    three = [backend(n) for n in ("vfr", "direct", "routed")]
    firsts = [order(three, n)[0].name for n in range(4)]
    assert firsts == ["vfr", "direct", "routed", "vfr"]
    assert {b.name for b in order(three, 2)} == {"vfr", "direct", "routed"}


def test_rules_of_the_scale_do_not_melt_into_each_other() -> None:
    """Each is a row of its own in the kernel's table, and web's frames are allowed by it."""
    slots = {"web": 1, "db": 2, "ci": 3}
    few, many = (compile_rules(parse(scale.rules_file(n), "bench.rules"), slots) for n in (100, 5000))
    assert len(scale.rules_file(5000).splitlines()) == 5000
    few_rows, many_rows = (sum(map(len, policy.sets.values())) for policy in (few, many))
    assert many_rows - few_rows >= 4800


# The report


def _report() -> Report:
    samples = [
        *_samples("nat-pps", vfr=[90e3, 91e3, 130e3], direct=[100e3] * 3, routed=[40e3] * 3),
        *_samples("guests-rr", vfr=[5.0, 5.0, 5.1], direct=[4.0] * 3),
        *(Sample(r, "routed", "guests-rr", None, reason="the rr client: connect: refused") for r in range(3)),
        *(Sample(r, "vfr", "nat-new", 9.0, 1.0, {"failed": 2.0}, "No route to host") for r in range(3)),
    ]
    points = [Point("rules", n, "vfr", "new, program", ns, "ns") for n, ns in ((10, 100.0), (1000, 103.0))]
    machine = {"date": "today", "commit": "c0ffee", "kernel": "6.1", "cpus": 2, "cpu": "some", "load_before": 0.1}
    costs = (Cost("nat-pps", "vif_ingress", 120.4, 1000),)
    options = {"rounds": 3, "seconds": 0.5}
    return Report(machine, options, ("vfr", "direct", "routed"), tuple(samples), costs, tuple(points))


def test_the_tables_say_what_the_samples_do() -> None:
    text = as_markdown(_report())
    assert "| 91.0 k [90.0 k, 130 k] **0.91 ×** ~ | 100 k [100 k, 100 k] | 40.0 k [40.0 k, 40.0 k] **0.40 ×** |" in text
    assert "| 5.00 [5.00, 5.10] **1.25 ×** | 4.00 [4.00, 4.00] | — | ≤ 0.95 |" in text
    assert "* `routed`, guests-rr: left out, the rr client: connect: refused" in text
    assert "* `vfr`, nat-new: 6 connections failed, in all rounds together (No route to host)" in text
    assert "| `vfr`, new, program | 100 ns | 103 ns | 1.03 × |" in text
    assert "| `vif_ingress` | 120 | 1,000 |" in text
    rows = [re.findall(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert rows and all(len(row) >= 3 for row in rows)


def test_a_run_of_sizes_only_has_only_their_tables() -> None:
    points = (
        Point("attach", 100, "vfr", "a command each, p99", 79752.3, "ms"),
        Point("rules", 10, "vfr", "new, arrived", 100.0, "packets/s", 90.0, 115.0),
    )
    only = replace(_report(), samples=(), costs=(), scale=points)
    text = as_markdown(only)
    assert "## Speed" not in text and "| 100 |\n" in text and "| `vfr`, a command each, p99 | 79,752 ms |" in text
    assert "| `vfr`, new, arrived | 100 packets/s ~ |" in text


def test_the_json_has_every_sample() -> None:
    found = json.loads(as_json(_report()))
    assert len(found["samples"]) == len(_report().samples)
    row = next(s for s in found["summary"] if (s["workload"], s["backend"]) == ("nat-pps", "vfr"))
    assert row["median"] == 91e3 and row["ratio_to"] == {"direct": 0.91, "routed": 2.275}


def test_pictures_are_drawn(tmp_path: Path) -> None:
    written = plots.draw(_report(), tmp_path / "new")
    assert [p.name for p in written] == ["ratios.svg", "latency.svg", "scale.svg"]
    assert all("</svg>" in p.read_text() for p in written)
    again = [p.read_text() for p in plots.draw(_report(), tmp_path / "again")]
    assert again == [p.read_text() for p in written], "the same report, the same files"


# On a lab


@pytest.fixture(scope="module")
def lab() -> Any:
    with stage.lab("vbn-") as one:
        stage.wire(one, backend("vfr"))
        yield one


def _work(name: str) -> Workload:
    return workloads.named([name])[0]


@pytest.mark.lab
def test_what_is_counted_is_what_was_sent(lab: Lab) -> None:
    """1024 frames of 512 flows: 1024 arrive, and VFR has 512 conversations of them."""
    address = lab.backend.address(lab, "web", "db")
    device, raw = frame(lab, "web", address)
    before = scale.session_count(lab)
    with Drain(lab, "db", interface_of(lab, "db", address)) as drain:
        seen = ring(lab, "web", device, raw, 30, frames=1024, flows=512)
        assert (seen["sent"], drain.arrived()) == (1024, 1024)
    assert scale.session_count(lab) - before == 512


@pytest.mark.lab
def test_a_frame_has_64_bytes_with_its_checksum(lab: Lab) -> None:
    raw = udp_frame("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.1", "192.0.2.2")
    assert len(raw) == 60 and raw[34:38] == FLOW_PORT.to_bytes(2, "big") * 2
    source = Path(program()).parents[2] / "netns-lab/vfr_lab/bench/load.c"
    assert f"htons({FLOW_PORT} + n" in source.read_text() and f"#define FLOW_PORTS {FLOW_PORTS}\n" in source.read_text()


@pytest.mark.lab
@pytest.mark.parametrize("name", [w.name for w in workloads.WORKLOADS])
def test_every_workload_can_be_had(lab: Lab, name: str) -> None:
    sample = measure(lab, "vfr", _work(name), 0, 0.05)
    assert sample.value is not None and sample.value > 0, sample.reason


@pytest.mark.lab
def test_what_is_not_allowed_is_said(lab: Lab) -> None:
    """ci may not speak to db: the stream's row says so, and that no frame arrived."""
    refused = Workload("refused", "not allowed", "stream", "ci", "db")
    assert measure(lab, "vfr", refused, 0, 0.05).reason
    nothing = Workload("refused", "not allowed", "pps", "ci", "db")
    found = measure(lab, "vfr", nothing, 0, 0.05)
    assert found.value is None and re.fullmatch(r"none of \d+ frames arrived", found.reason)
    with pytest.raises(LoadError, match="ARP"):
        frame(lab, "lan1", "192.0.2.77")


@pytest.mark.lab
def test_a_very_short_run(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("bench.json", "bench.md")}
    where = ["--json", str(files["bench.json"]), "--markdown", str(files["bench.md"]), "--prefix", "vbs-"]
    only = ["--backend", "vfr", "--only", "guests-rr", "--only", "nat-pps"]
    argv = [COMMAND, "bench", *only, "--rounds", "1", "--seconds", "0.1", *where]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(files["bench.json"].read_text())
    had = {(s["backend"], s["workload"]) for s in found["samples"] if s["value"]}
    assert had == {(b, w) for b in ("vfr", "direct", LIMIT) for w in ("guests-rr", "nat-pps")}
    assert {c["workload"] for c in found["costs"]} == {"guests-rr", "nat-pps"}
    assert {"cpu", "kernel", "commit", "date", "load_before", "load_after"} <= found["machine"].keys()
    assert files["bench.md"].read_text() == done.stdout[:-1] and "domain to LAN by NAT" in done.stdout
    assert not (Path("/run/netns") / "vbs-dom0").exists(), "the lab is gone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--backend", "nobody"], "there is no backend 'nobody'"), (["--only", "nothing"], "no workload has nothing")],
)
def test_a_wrong_name_is_told(arguments: list[str], said: str) -> None:
    done = subprocess.run([COMMAND, "bench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and said in done.stderr
