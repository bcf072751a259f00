"""Suite `loss`: every target of time and memory, with what was measured and the floors beside it.

Per case: our loss, the released form, the bare products that the gradient needs (results written
into memory that exists), and two sums of arithmetic: bytes that must move over the bandwidth, and
three cosines per phase (cos and sin in the forward pass, one in the backward pass). Where the
Triton kernels run, they are measured beside the eager ones. On an accelerator the sliced forms
follow in the same process, as suite `sliced` times them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ncfd
from benchmarks import cases, measuring, peers
from benchmarks.measuring import MIB
from benchmarks.records import Records
from benchmarks.suites import busy, sliced
from ncfd.ops._fused import MAX_DIM


def run(device: torch.device, quick: bool, written: Records) -> None:
    # All of it fits the 90 s that a borrowed accelerator has for it, where a round is milliseconds.
    seconds = 0.05 if quick else 1.5 if device.type == "cuda" else 12.0
    rates = measuring.machine(device, quick=quick)
    written.content["machine"] = {
        "gigabytes_per_second": rates.bytes_per_second / 1e9,
        "cosines_per_nanosecond": rates.cosines_per_second / 1e9,
    }
    fused = peers.fused()
    for case in cases.LOSS + (cases.FUSED if fused else []):
        _time(case, device, quick, seconds, rates, written)
    _groups(device, quick, seconds, written)
    if device.type == "cpu":
        busy.run(device, quick, written)
    for name in ("ncfd", *fused[:1]):
        _memory(name, device, quick, written)
    if device.type != "cpu" or quick:  # a rehearsal goes everywhere
        sliced.times(device, quick, written, seconds=seconds)


def _time(
    case: cases.LossCase,
    device: torch.device,
    quick: bool,
    seconds: float,
    rates: measuring.Machine,
    written: Records,
) -> None:
    problem = case.problem.shrunk(64) if quick else case.problem
    data = cases.make(problem, device)
    contenders = {
        case.contender: peers.discrepancy_contender(case.contender, data),
        "released form": peers.discrepancy_contender("released", data),
        "bare products": peers.products(data),
    }
    least = 3 if quick else 7
    # The kernels against the eager way of the same loss, where they take the problem.
    takes = case.contender == "ncfd" and problem.D <= MAX_DIM
    fused = peers.fused() if takes else []
    contenders |= {name: peers.discrepancy_contender(name, data) for name in fused}
    rounds = measuring.interleave(contenders, device, seconds=seconds, at_least=least)
    sizes = {"N": problem.N, "M": problem.M, "D": problem.D, "F": problem.F}
    for name, measured in rounds.items():
        row: dict[str, Any] = {"case": case.name, "contender": name, **sizes}
        row |= measured.columns()
        if name == "bare products":
            row["bytes_ms"] = 1e3 * problem.least_bytes / rates.bytes_per_second
            row["cosines_ms"] = 1e3 * 3 * problem.phases / rates.cosines_per_second
            row["gflops"] = (
                problem.product_flops / measuring.Quantiles.of(measured.both).median / 1e9
            )
        written.add("times", row)
    ours = rounds[case.contender]
    for baseline, targets in (
        ("released form", case.over_released),
        ("bare products", case.over_products),
    ):
        if targets is None:
            continue
        faster = baseline == "released form"
        other = rounds[baseline]
        measured = measuring.ratio(other, ours) if faster else measuring.ratio(ours, other)
        target = targets.get(device.type)
        _judge(written, case.name, case.reason, baseline, measured, target, faster)
    for name in fused:
        measured = measuring.ratio(ours, rounds[name])
        row = {"case": case.name, "products": name, "ratio": measured.median}
        row |= {"ratio_20": measured.low, "ratio_80": measured.high}
        written.add("eager over Triton", row | sizes)


def _judge(
    written: Records,
    case: str,
    reason: str,
    baseline: str,
    measured: measuring.Quantiles,
    target: float | None,
    faster: bool,
) -> None:
    met = None if target is None else (measured.median >= target) == faster
    written.add(
        "targets",
        {
            "case": case,
            "measure": f"{baseline} / ours" if faster else f"ours / {baseline}",
            "target": "-" if target is None else f"{'>=' if faster else '<='} {target:g}",
            "ratio": measured.median,
            "ratio_20": measured.low,
            "ratio_80": measured.high,
            "verdict": "measured" if met is None else "met" if met else "MISSED",
            "reason": reason,
        },
    )


def _groups(device: torch.device, quick: bool, seconds: float, written: Records) -> None:
    """All classes in one call against one call of the released form for each class."""
    count, problem = cases.GROUPS
    problem = problem.shrunk(16) if quick else problem
    parts = [cases.make(problem, device, seed) for seed in range(count)]
    t = parts[0].t
    x = torch.cat([p.x for p in parts])
    y = torch.cat([p.y.detach() for p in parts]).requires_grad_()
    labels = torch.arange(count, device=device)
    x_groups, y_groups = (labels.repeat_interleave(n) for n in (problem.N, problem.M))

    def together() -> Tensor:
        return ncfd.functional.ncfd_loss(
            x, y, t, x_groups=x_groups, y_groups=y_groups, num_groups=count
        )

    def one_by_one() -> Tensor:
        pairs = zip(x.split(problem.N), y.split(problem.M), strict=True)
        return torch.stack([peers.released_form(a, b, t) for a, b in pairs]).mean()

    rounds = measuring.interleave(
        {
            "ncfd": measuring.differentiated(together, [y, t]),
            "released form": measuring.differentiated(one_by_one, [y, t]),
        },
        device,
        seconds=2 * seconds,
        at_least=3,
        warm_up=1,
    )
    name = f"{count} classes at once"
    sizes = {"N": problem.N, "M": problem.M, "D": problem.D, "F": problem.F}
    for contender, measured in rounds.items():
        written.add("times", {"case": name, "contender": contender, **sizes, **measured.columns()})
    measured = measuring.ratio(rounds["released form"], rounds["ncfd"])
    reason = "a distillation step: groups in one call, classes in a loop"
    _judge(written, name, reason, "released form", measured, None, faster=True)


def _memory(name: str, device: torch.device, quick: bool, written: Records) -> None:
    problem = cases.MEMORY
    sizes = {"N": 500, "M": 500, "D": 8, "F": 64} if quick else vars(problem)
    specification = {
        "contender": name,
        "device": device.type,
        "problems": [{**sizes, "learned": True}],
    }
    found = measuring.in_fresh_process("loss", specification)[0]
    extra = found["beyond_gradients"]
    met = None if extra is None else extra <= cases.MEMORY_LIMIT
    written.add(
        "memory",
        {
            "case": "memory",
            "contender": name,
            **{k: sizes[k] for k in "NMDF"},
            "beyond_mib": None if extra is None else extra / MIB,
            "phases_mib": 4 * sizes["F"] * (sizes["N"] + sizes["M"]) / MIB,
            "both_s": found["seconds"],
            "target": f"<= {cases.MEMORY_LIMIT / MIB:g} MiB",
            "verdict": "not measured" if met is None else "met" if met else "MISSED",
        },
    )


def probe(specification: dict[str, Any]) -> list[dict[str, float | None]]:
    """Peak memory beyond inputs and gradients of one contender at each problem, in order."""
    import time

    device = torch.device(specification["device"])
    name = specification["contender"]

    def contender(problem: cases.Problem) -> tuple[measuring.Contender, int]:
        data = cases.make(problem, device)
        size = sum(leaf.numel() * leaf.element_size() for leaf in data.leaves)
        return peers.discrepancy_contender(name, data), size

    # Libraries load and reserve their own memory on first use; that is not the loss's.
    small, _ = contender(cases.Problem(512, 512, 32, 512))
    measuring.peak_memory(small, device)
    found = []
    for sizes in specification["problems"]:
        work, gradients = contender(cases.Problem(**sizes))
        began = time.perf_counter()
        peak = measuring.peak_memory(work, device)
        seconds = time.perf_counter() - began
        beyond = None if peak is None else max(0.0, peak - gradients)
        found.append({"beyond_gradients": beyond, "seconds": seconds})
        del work
    return found
