"""Suite `embeddings`: a self-supervised run with SIGReg, and the same with LeJEPA's.

The encoder, the views and the digits of `examples/regularise_embeddings.py`, 20 epochs, each seed
with the same batches and views under both. `curve` has invariance and regulariser, averaged over
an epoch and over seeds, with the standard deviation over seeds; `probe` the linear classifier.
`step` times a whole training step, interleaved.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import regularise_embeddings as example
import torch
from torch import Tensor

import ncfd
from benchmarks import measuring
from benchmarks.records import Records
from benchmarks.suites import sliced

WEIGHT, BATCH, DIM = 0.05, 128, 16


def run(device: torch.device, quick: bool, written: Records) -> None:
    slices, epochs, seeds = (8, 2, 2) if quick else (1024, 20, 5)
    makers: dict[str, Callable[[], torch.nn.Module | None]] = {
        "ncfd": lambda: ncfd.SIGReg(slices),
        "LeJEPA": lambda: sliced.LIBRARIES["LeJEPA"](slices),
    }
    if makers["LeJEPA"]() is None:
        written.content["notes"] = ["Not installed, so left out: LeJEPA."]
        del makers["LeJEPA"]
    data = example.Digits("test", device)
    _step(data.train, makers, 0.05 if quick else 10.0, device, written)
    each = max(1, len(data.train) // BATCH)  # steps of an epoch
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for name, make in makers.items():
        curves[name], scores, ranks = [], [], []
        for seed in range(seeds):
            module = make()
            assert module is not None
            options = _options(seed, epochs * each)
            trained = example.train(data.train, _weighed(module.to(device)), options)
            curves[name].append(_by_epoch(trained.history, each))
            held, seen = (example.embed(trained.encoder, v) for v in (data.held, data.train))
            found = example.judge(seen, data, held)
            scores.append(found["accuracy"])
            ranks.append(found["effective_rank"])
        row: dict[str, Any] = {"contender": name, "seeds": seeds, "epochs": epochs}
        for what, values in (("accuracy", scores), ("effective_rank", ranks)):
            row |= {what: statistics.mean(values), f"{what}_sd": statistics.stdev(values)}
        written.add("probe", row)
    for epoch in range(epochs):
        row = {"epoch": epoch + 1}
        for name, found in curves.items():
            for place, what in enumerate(("invariance", "regulariser")):
                values = [curve[epoch][place] for curve in found]
                row[f"{what}, {name}"] = statistics.mean(values)
                row[f"{what}, {name}, sd"] = statistics.stdev(values)
        written.add("curve", row)


def _options(seed: int, steps: int) -> Any:
    values = {"--seed": seed, "--steps": steps, "--batch": BATCH, "--dim": DIM}
    return example.parse([str(part) for pair in values.items() for part in pair])


def _weighed(module: torch.nn.Module) -> example.Regulariser:
    # Both draw their directions themselves: the generator of the views stays the same for both.
    return lambda views, _: WEIGHT * module(views)


def _by_epoch(history: list[tuple[float, float]], each: int) -> list[tuple[float, float]]:
    parts = [history[k : k + each] for k in range(0, len(history), each)]
    return [
        (statistics.mean(a for a, _ in part), statistics.mean(b for _, b in part)) for part in parts
    ]


def _step(
    images: Tensor,
    makers: dict[str, Callable[[], torch.nn.Module | None]],
    seconds: float,
    device: torch.device,
    written: Records,
) -> None:
    def contender(make: Callable[[], torch.nn.Module | None] | None) -> measuring.Contender:
        module = make() if make is not None else None
        regulariser = None if module is None else _weighed(module.to(device))

        # Ten at once: what it costs to begin and to end is small beside them.
        options = _options(0, 10)
        return measuring.Contender(
            lambda: example.train(images, regulariser, options), lambda _: None
        )

    found = {name: contender(make) for name, make in makers.items()}
    rounds = measuring.interleave(
        {**found, "no regulariser": contender(None)}, device, seconds=seconds, at_least=3
    )
    for name, measured in rounds.items():
        row: dict[str, Any] = {"contender": name, "batch": BATCH, "D": DIM}
        row["step_ms"] = 1e3 * measuring.Quantiles.of(measured.forward).median / 10
        row["times_as_long"] = measuring.ratio(measured, rounds["ncfd"]).median
        written.add("step", row)
