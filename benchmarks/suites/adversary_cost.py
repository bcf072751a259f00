"""Suite `adversary-cost`: what paying ψ for signal costs beside paying it the loss.

One class of the method at its published sizes, as the module computes it: frequencies drawn from
`FrequencySampler`, the loss, its gradient for the synthetic samples and for ψ. The network that
makes the samples is not in it (suite `pipeline` has the whole step). "fixed" draws from
`GaussianFrequencies`, without ψ and without a gradient for the frequencies.
"""

from __future__ import annotations

from typing import Any

import torch

import ncfd
from benchmarks import cases, measuring
from benchmarks.records import Records

PROBLEM = cases.Problem(1024, 40, 2048, 1024)


def run(device: torch.device, quick: bool, written: Records) -> None:
    problem = PROBLEM.shrunk(32) if quick else PROBLEM
    data = cases.make(problem, device)
    contenders: dict[str, measuring.Contender] = {}
    adversaries: dict[str, Any] = {"fixed": None, "ψ on the loss": "loss", "ψ on J": "signal"}
    for name, adversary in adversaries.items():
        law = ncfd.FrequencySampler if adversary else ncfd.GaussianFrequencies
        loss = ncfd.NCFDLoss(law(problem.D, problem.F).to(device), adversary=adversary)
        contenders[name] = measuring.differentiated(
            lambda loss=loss: loss(data.x, data.y), [data.y, *loss.parameters()]
        )
    seconds = 0.0 if quick else 25.0
    rounds = measuring.interleave(contenders, device, seconds=seconds, at_least=3)
    sizes = {"N": problem.N, "M": problem.M, "D": problem.D, "F": problem.F}
    for name, measured in rounds.items():
        written.add("times", {"contender": name, **sizes, **measured.columns()})
    for over in ("fixed", "ψ on the loss"):
        found = measuring.ratio(rounds["ψ on J"], rounds[over])
        row = {"ratio": f"ψ on J / {over}", "median": found.median}
        written.add("ratios", row | {"low": found.low, "high": found.high})
