"""Suite `scaling`: time and memory of our loss and of the released form as one size grows.

`slope` is the exponent between the first and the last point of a sweep: 1 is linear. Memory is
beyond inputs and gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks import cases, measuring, peers
from benchmarks.measuring import MIB
from benchmarks.records import Records
from benchmarks.suites.loss import probe as probe  # the same measurement, by this suite's name


def run(device: torch.device, quick: bool, written: Records) -> None:
    seconds = 0.02 if quick else 2.5
    for letter, problems in cases.scaling(device.type).items():
        if quick:
            problems = [p.shrunk(8 * 2**k) for k, p in enumerate(problems)]
        memory = {
            name: measuring.in_fresh_process(
                "scaling",
                {"contender": name, "device": device.type, "problems": [vars(p) for p in problems]},
            )
            for name in ("ncfd", "released")
        }
        ends: dict[str, list[tuple[int, float]]] = {}
        for place, problem in enumerate(problems):
            data = cases.make(problem, device)
            contenders = {
                name: peers.discrepancy_contender(name, data) for name in ("ncfd", "released")
            }
            contenders["bare products"] = peers.products(data)
            rounds = measuring.interleave(
                contenders, device, seconds=seconds, at_least=3 if quick else 5, warm_up=1
            )
            for name, measured in rounds.items():
                row: dict[str, Any] = {"sweep": letter, "contender": name}
                row |= {k: getattr(problem, k) for k in "NMDF"} | measured.columns()
                if name in memory:
                    beyond = memory[name][place]["beyond_gradients"]
                    row["beyond_mib"] = None if beyond is None else beyond / MIB
                written.add("scaling", row)
                ends.setdefault(name, []).append((getattr(problem, letter), row["both_ms"]))
        for name, points in ends.items():
            (first, fast), (last, slow) = points[0], points[-1]
            slope = math.log(slow / fast) / math.log(last / first) if last > first else math.nan
            written.add("slopes", {"sweep": letter, "contender": name, "slope": slope})
