"""Suite `network`: the ConvNet at its published width by PyTorch's layers and fused, on a CPU.

`network` times the two uses of it on one batch: features of real images, without gradient; and the
training of a network, or the slopes of synthetic images. Beside it stands what its convolutions
alone take, each on a map of its size: nothing that is done to the rest makes a network faster.
`step` times `Game.iterate` of `examples/distill_cifar.py` with 128 real images of each of ten
classes, `parts` cuts it as suite `pipeline` does. `trainings` has two networks trained, one after
another with all threads and side by side with one core each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from distillation import augmentation, fused, memory, networks, training, workers
from distillation.data import Data
from distillation.randomness import generator
from torch import Tensor

from benchmarks import cases, measuring
from benchmarks.measuring import Contender, Quantiles
from benchmarks.records import Records
from benchmarks.suites import pipeline

F = torch.nn.functional
#: Whether the blocks are fused, and whether products are formed in bfloat16.
WAYS = {
    "layers, float32": (False, False),
    "fused, float32": (True, False),
    "fused, bfloat16": (True, True),
}
BEFORE = "layers, float32"
#: The floors, by whether products are formed in bfloat16.
FLOORS = {"convolutions alone, float32": False, "convolutions alone, bfloat16": True}
#: How many times as fast as `BEFORE`.
TARGETS = {
    ("fused, float32", "forward"): 1.5,
    ("fused, float32", "training"): 2.0,
    ("fused, float32", "synthetic"): 2.0,
    ("fused, bfloat16", "forward"): 2.0,
    ("fused, bfloat16", "training"): 2.5,
    ("fused, bfloat16", "synthetic"): 2.5,
}


def run(device: torch.device, quick: bool, written: Records) -> None:
    if device.type != "cpu":
        raise SystemExit("run.py: suite network is about the compiled functions, which a CPU runs")
    memory.keep_freed_memory()  # as the pipeline does
    width, size, batch = (16, 32, 4) if quick else (128, 32, 128)
    network = networks.ConvNet(3, size, 10, width, 3)
    written.content["notes"] = [f"Blocks: {fused.describe(network, device, size)}. Random images."]
    _network(width, size, batch, 0.02 if quick else 4.0, device, written)
    for ipc in (1, 2) if quick else (1, 10, 50):
        _steps(width, size, batch, ipc, 0.02 if quick else 4.0, device, written)
    _trainings(width, size, batch, 2 if quick else 10, written)


@contextmanager
def _way(enabled: bool) -> Iterator[None]:
    before, fused.ENABLED = fused.ENABLED, enabled
    try:
        yield
    finally:
        fused.ENABLED = before


def _under(enabled: bool, action: Callable[[], object]) -> Contender:
    def call() -> object:
        with _way(enabled):
            return action()

    return Contender(call)


def _network(
    width: int, size: int, batch: int, seconds: float, device: torch.device, written: Records
) -> None:
    images = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
    labels = torch.arange(batch) % 10

    def uses(amp: bool) -> dict[str, Callable[[], object]]:
        network = networks.ConvNet(3, size, 10, width, 3, amp)
        weights = networks.initial_weights(network, generator(0, "weights"))

        def forward() -> object:
            return networks.run_in_chunks(network, weights, images)

        def train() -> object:
            leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
            _, logits = networks.run(network, leaves, images)
            return torch.autograd.grad(F.cross_entropy(logits, labels), list(leaves.values()))

        def synthetic() -> object:
            leaf = images.detach().requires_grad_()
            features, _ = networks.run(network, weights, leaf)
            return torch.autograd.grad(features.square().sum(), leaf)

        return {"forward": forward, "training": train, "synthetic": synthetic}

    by_way = {name: (enabled, uses(amp)) for name, (enabled, amp) in WAYS.items()}
    by_way |= {name: (True, _convolutions(images, width, amp)) for name, amp in FLOORS.items()}
    for use in ("forward", "training", "synthetic"):
        rounds = measuring.interleave(
            {name: _under(enabled, found[use]) for name, (enabled, found) in by_way.items()},
            device,
            seconds=seconds,
        )
        for name, measured in rounds.items():
            gain = measuring.ratio(rounds[BEFORE], measured).median
            ms = 1e3 * Quantiles.of(measured.forward).median
            written.add(
                "network",
                {
                    "contender": name,
                    "use": use,
                    "width": width,
                    "size": size,
                    "batch": batch,
                    "batch_ms": ms,
                    "image_ms": ms / batch,
                    "times_as_fast": gain,
                    "repetitions": len(measured.forward),
                },
            )
            target = TARGETS.get((name, use))
            if target is not None:
                row = {"contender": name, "use": use, "target": f">= {target:g}", "value": gain}
                verdict = "met" if gain >= target else "MISSED"
                written.add("targets", {**row, "verdict": verdict})


def _convolutions(images: Tensor, width: int, amp: bool) -> dict[str, Callable[[], object]]:
    """The same uses of nothing but the convolutions, none of which waits for another."""
    size = images.shape[-1]
    network = networks.ConvNet(3, size, 10, width, 3, amp)
    kernels = [network.blocks[4 * k].weight.detach() for k in range(3)]
    kind = torch.bfloat16 if amp else torch.float32
    ends = [torch.randn(len(images), width, size >> k, size >> k).to(kind) for k in range(3)]
    ends = [end.contiguous(memory_format=torch.channels_last) for end in ends]
    maps = [images.contiguous(memory_format=torch.channels_last), *ends[1:]]

    def each(of_maps: bool, of_kernels: bool) -> Callable[[], object]:
        def call() -> None:
            for k, (given, kernel) in enumerate(zip(maps, kernels, strict=True)):
                # Training needs no slopes of the images themselves.
                x = given.detach().requires_grad_(of_maps and not (k == 0 and of_kernels))
                w = kernel.detach().requires_grad_(of_kernels)
                wanted = [leaf for leaf in (x, w) if leaf.requires_grad]
                with torch.set_grad_enabled(bool(wanted)):
                    if k == 0:
                        y = fused.first_convolution(x, w, kind)
                    else:
                        y = F.conv2d(x, w.to(kind), padding=1)
                if wanted:
                    torch.autograd.grad(y, wanted, ends[k])

        return call

    return {
        "forward": each(False, False),
        "training": each(True, True),
        "synthetic": each(True, False),
    }


def _steps(
    width: int,
    size: int,
    batch: int,
    ipc: int,
    seconds: float,
    device: torch.device,
    written: Records,
) -> None:
    name = f"CIFAR-10, IPC {ipc}"
    case = cases.PipelineCase(name, 10, size, 4 * batch, ipc, width, batch, 1024)
    steps = {
        way: pipeline.Step(case, "ncfm-fixed", device, amp=amp) for way, (_, amp) in WAYS.items()
    }
    rounds = measuring.interleave(
        {way: _under(enabled, steps[way]) for way, (enabled, _) in WAYS.items()},
        device,
        seconds=seconds,
        at_least=2,
        at_most=100,
        warm_up=1,
    )
    for way, (enabled, _) in WAYS.items():
        row = {"case": name, "contender": way}
        written.add(
            "step",
            {
                **row,
                "batch_real": batch,
                "width": width,
                "step_s": Quantiles.of(rounds[way].forward).median,
                "times_as_fast": measuring.ratio(rounds[BEFORE], rounds[way]).median,
                "repetitions": len(rounds[way].forward),
            },
        )
        with _way(enabled):
            marks = steps[way].parts()
        for part, value in marks.items():
            share = value / sum(marks.values())
            written.add("parts", {**row, "part": part, "part_s": value, "share": share})


def _trainings(width: int, size: int, batch: int, count: int, written: Records) -> None:
    """Two trainings of `count` steps: seconds, and how many cores they keep busy."""
    images = torch.randint(
        0, 256, (count * batch, 3, size, size), generator=generator(0, "data"), dtype=torch.uint8
    )
    labels = torch.arange(len(images)) % 10
    half = torch.full((3, 1, 1), 0.5)
    nothing = images[:0], labels[:0]
    data = Data(
        "random", [str(c) for c in range(10)], images, labels, *nothing, *nothing, half, half / 2
    )
    network = networks.ConvNet(3, size, 10, width, 3, amp=True)
    start = networks.stack([networks.initial_weights(network, generator(0, "weights"))])

    def one(seed: int) -> dict[str, Tensor]:
        return training.train(
            network,
            start,
            data,
            images,
            labels,
            [generator(seed, "training")],
            epochs=1,
            rate=1e-3,
            schedule=training.one_cycle,
            strategy=augmentation.TRAINING,
            batch=batch,
        )

    def timed(one_core: bool) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        workers.each(one, range(2), one_core=one_core)
        wall = time.perf_counter() - began
        return wall, (time.process_time() - used) / wall

    for one_core in (False, True):
        timed(one_core)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(3):
        for one_core in (False, True):
            found[one_core].append(timed(one_core))
    base = [wall for wall, _ in found[False]]
    for one_core, label in ((False, "one after another"), (True, "side by side")):
        row: dict[str, Any] = {"contender": label, "steps": 2 * count}
        walls, busy = zip(*found[one_core], strict=True)
        gains = [a / b for a, b in zip(base, walls, strict=True)]
        row |= {"wall_s": Quantiles.of(list(walls)).median}
        row |= {"times_as_fast": Quantiles.of(gains).median}
        row |= {"busy_cores": Quantiles.of(list(busy)).median}
        written.add("trainings", row)
        if one_core and torch.get_num_threads() == 2:
            verdict = "met" if row["busy_cores"] >= 1.7 else "MISSED"
            target = {"contender": label, "use": "busy cores", "target": ">= 1.7"}
            written.add("targets", {**target, "value": row["busy_cores"], "verdict": verdict})
