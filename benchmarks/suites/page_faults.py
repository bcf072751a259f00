"""Suite `page-faults`: how much of the two large cases is memory that comes and goes.

The C library gives large blocks back to the system and faults them in again at the next step. The
same steps run once as they are and once in a process whose allocator keeps what it has freed
(`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`). Processor time on one thread, user and system,
and minor faults of a step: forward and backward.
"""

from __future__ import annotations

import resource
import statistics
from typing import Any

import torch

from benchmarks import cases, measuring, peers
from benchmarks.records import Records

KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def run(device: torch.device, quick: bool, written: Records) -> None:
    if device.type != "cpu":
        raise ValueError("suite page-faults is about the memory of a CPU: --device cpu")
    for case in (c for c in cases.LOSS if c.name.startswith("generator")):
        problem = case.problem.shrunk(256) if quick else case.problem
        specification = {"problem": vars(problem), "rounds": 2 if quick else 7}
        for allocator, environment in (("default", {}), ("keeping", KEEPING)):
            found = measuring.in_fresh_process("page_faults", specification, environment)
            for contender, figures in found.items():
                where = {"case": case.name, "allocator": allocator, "contender": contender}
                written.add("steps", {**where, **figures})
            row: dict[str, Any] = {"case": case.name, "allocator": allocator}
            row["released form / ours"] = found["released"]["both_ms"] / found["ncfd"]["both_ms"]
            written.add("ratios", row)


def probe(specification: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Medians over rounds, the contenders in turns, after two rounds to warm up."""
    torch.set_num_threads(1)
    data = cases.make(cases.Problem(**specification["problem"]), torch.device("cpu"))
    names = ("ncfd", "released")
    contenders = {name: peers.discrepancy_contender(name, data) for name in names}
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(specification["rounds"] + 2):
        for name, contender in contenders.items():
            before = _used()
            value = contender.forward()
            assert contender.backward is not None
            contender.backward(value)
            del value
            seen[name].append(tuple(b - a for a, b in zip(before, _used(), strict=True)))
            contender.clear()
    found = {}
    for name, rounds in seen.items():
        user, system, faults = (statistics.median(v) for v in zip(*rounds[2:], strict=True))
        both = statistics.median(r[0] + r[1] for r in rounds[2:])
        figures = {"both_ms": 1e3 * both, "user_ms": 1e3 * user, "system_ms": 1e3 * system}
        found[name] = {**figures, "faults": float(faults)}
    return found


def _used() -> tuple[float, float, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime, usage.ru_minflt
