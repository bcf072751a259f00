"""Suite `pipeline`: the distillation step on random data of the usual shapes.

The step is put together from the parts of `examples/distillation`, in the order of
`examples/distill_cifar.py` without its logging. `step` times it whole; `parts` times its parts,
with the one backward pass cut by hand where features and frequencies enter the loss (the same
gradients, with the device waited for at every cut, so the parts add up to a little more).

With an accelerator also the published loop is timed: class by class, two backward passes over a
kept graph, the released form with 4096 fixed frequencies, an optimizer step after each class.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from distillation import augmentation, formation, matching, memory, networks, options
from distillation.data import Data, RealBatches
from distillation.randomness import generator
from distillation.zoo import Zoo
from torch import Tensor

from benchmarks import cases, measuring, peers
from benchmarks.measuring import MIB, Contender, Quantiles
from benchmarks.records import Records

F = torch.nn.functional
LOSS_SCALE = 300.0
#: Decimal gigabytes, as in the claim for CIFAR-100 at 50 images per class.
CAP = 2.3e9
METHODS = {"with ψ": "ncfm", "without ψ": "ncfm-fixed"}


class Step:
    """One iteration of the game, ready to be called."""

    def __init__(self, case: cases.PipelineCase, method: str, device: torch.device) -> None:
        self.case = case
        self.config = _config(case, method, device)
        self.data = _random_data(case, device)
        config, data = self.config, self.data
        network = networks.ConvNet(3, case.size, case.classes, case.width, config.depth).to(device)
        self.network = network
        initial, trained = (
            networks.stack(
                [networks.initial_weights(network, generator(0, name, k)) for k in (0, 1)]
            )
            for name in ("initial", "trained")
        )
        self.zoo = Zoo(initial, trained, [0.0, 0.0])
        stored = case.classes * case.ipc
        images = torch.rand(stored, 3, case.size, case.size, generator=generator(0, "images"))
        self.images = images.to(device).requires_grad_()
        self.labels = torch.arange(case.classes, device=device).repeat_interleave(case.ipc)
        self.decoded_labels = self.labels.repeat_interleave(config.factor**2)
        self.image_optimizer = torch.optim.AdamW(
            [self.images], lr=config.lr_image * math.sqrt(case.classes), weight_decay=5e-4
        )
        self.sampler = matching.make_sampler(config, network.num_features)
        assert self.sampler is not None
        self.criterion = matching.make_criterion(config, self.sampler)
        weights = list(self.criterion.parameters())
        self.sampler_optimizer = (
            torch.optim.AdamW(weights, lr=config.sampler_lr) if weights else None
        )
        self.batches = RealBatches(data, config.batch_real, generator(0, "real batches"))
        self.streams = {name: generator(0, name) for name in ("extractor", "augmentation")}

    def __call__(self) -> None:
        real, synthetic, weights, calibrating = self._inputs()
        real_features, _ = networks.run_in_chunks(self.network, weights, real)
        features, _ = networks.run(self.network, weights, synthetic)
        total = self._loss(self.criterion, real_features, features)
        total = total + self._calibration(calibrating, synthetic)
        self._clear()
        total.backward()
        self._move()

    def parts(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        watch = _Stopwatch(self.images.device)
        real, real_params, weights, calibrating = self._real()
        watch.mark("real images: draw, augment")
        real_features, _ = networks.run_in_chunks(self.network, weights, real)
        watch.mark("real forward")
        synthetic = self._synthetic(real_params)
        features, _ = networks.run(self.network, weights, synthetic)
        watch.mark("synthetic forward")
        assert self.sampler is not None
        t = self.sampler()
        watch.mark("ψ" if self.sampler_optimizer else "frequencies")
        features_in = features.detach().requires_grad_()
        t_in = t.detach().requires_grad_(t.requires_grad)
        loss = self._loss(_Fixed(self.criterion, t_in), real_features, features_in)
        loss.backward()
        watch.mark("loss")
        self._clear()
        if t.requires_grad:
            t.backward(-t_in.grad)
        watch.mark("ψ" if self.sampler_optimizer else "frequencies")
        # Calibration shares the way back through the decoding; it is charged to calibration.
        features.backward(features_in.grad, retain_graph=True)
        watch.mark("synthetic backward")
        self._calibration(calibrating, synthetic).backward()
        watch.mark("calibration")
        self._move()
        watch.mark("optimizers")
        return watch.seconds

    def _real(self) -> tuple[Tensor, augmentation.Draw, networks.Weights, networks.Weights]:
        real, labels = self.batches.draw()
        self.real_labels = labels
        params = augmentation.draw(
            self.case.classes, augmentation.MATCHING, self.case.size, self.streams["augmentation"]
        )
        params = augmentation.to(params, self.images.device)
        real = augmentation.augment(real, params, labels)
        member = int(torch.randint(len(self.zoo), (), generator=self.streams["extractor"]))
        beta = torch.rand((), generator=self.streams["extractor"]).item()
        return real, params, self.zoo.blend(member, beta), self.zoo.blend(member, 0.0)

    def _synthetic(self, params: augmentation.Draw) -> Tensor:
        decoded = self.data.normalise(formation.decode(self.images, self.config.factor))
        return augmentation.augment(decoded, params, self.decoded_labels)

    def _inputs(self) -> tuple[Tensor, Tensor, networks.Weights, networks.Weights]:
        real, params, weights, calibrating = self._real()
        return real, self._synthetic(params), weights, calibrating

    def _loss(self, criterion: Callable[..., Tensor], real: Tensor, synthetic: Tensor) -> Tensor:
        per_class = criterion(
            real,
            synthetic,
            real_groups=self.real_labels,
            synthetic_groups=self.decoded_labels,
            num_groups=self.case.classes,
        ).mean(1)
        return LOSS_SCALE * per_class.sum()

    def _calibration(self, weights: networks.Weights, synthetic: Tensor) -> Tensor:
        _, logits = networks.run(self.network, weights, synthetic)
        return self.case.classes * F.cross_entropy(logits, self.decoded_labels)

    def _clear(self) -> None:
        self.image_optimizer.zero_grad()
        self.criterion.zero_grad()

    def _move(self) -> None:
        self.image_optimizer.step()
        if self.sampler_optimizer is not None:
            self.sampler_optimizer.step()
        with torch.no_grad():
            self.images.clamp_(0, 1)


class _Fixed:
    """The criterion at given frequencies; the reversal of their gradient is left to the caller."""

    def __init__(self, criterion: torch.nn.Module, t: Tensor) -> None:
        self.alpha, self.t = criterion.alpha, t

    def __call__(self, real: Tensor, synthetic: Tensor, **groups: Any) -> Tensor:
        from ncfd.functional import ncfd_loss, unit_rows

        names = {"real_groups": "x_groups", "synthetic_groups": "y_groups"}
        groups = {names.get(k, k): v for k, v in groups.items()}
        x, y = unit_rows(real), unit_rows(synthetic)
        return ncfd_loss(x, y, self.t, alpha=self.alpha, reduction="none", **groups)


class PublishedLoop(Step):
    """The same work in the order of the published code, as METHOD describes it."""

    def __init__(self, case: cases.PipelineCase, device: torch.device) -> None:
        super().__init__(case, "ncfm-fixed", device)

    def __call__(self) -> None:
        real, params, weights, calibrating = self._real()
        D = self.network.num_features
        for c in range(self.case.classes):
            own = self.labels == c
            decoded = self.data.normalise(formation.decode(self.images[own], self.config.factor))
            labels = torch.full((len(decoded),), c, device=decoded.device)
            synthetic = augmentation.augment(decoded, params, labels)
            with torch.no_grad():
                real_features, _ = networks.run(self.network, weights, real[self.real_labels == c])
            features, _ = networks.run(self.network, weights, synthetic)
            t = torch.randn(4096, D, device=decoded.device)
            x, y = F.normalize(real_features, dim=1), F.normalize(features, dim=1)
            loss = LOSS_SCALE * peers.released_form(x, y, t)
            self.image_optimizer.zero_grad()
            loss.backward(retain_graph=True)
            self.image_optimizer.step()
            torch.autograd.grad(-loss, self.images)  # for the player that never moves
        for c in range(self.case.classes):
            own = self.labels == c
            decoded = self.data.normalise(formation.decode(self.images[own], self.config.factor))
            _, logits = networks.run(self.network, calibrating, decoded)
            labels = torch.full((len(decoded),), c, device=decoded.device)
            self.image_optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            self.image_optimizer.step()
        with torch.no_grad():
            self.images.clamp_(0, 1)


class _Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        measuring.synchronise(device)
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Charge the time since the last mark to `name`."""
        measuring.synchronise(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def _config(case: cases.PipelineCase, method: str, device: torch.device) -> options.Config:
    arguments = ["--dataset", "cifar10", "--method", method, "--device", device.type]
    arguments += ["--preset", "paper", "--image-size", str(case.size), "--ipc", str(case.ipc)]
    arguments += ["--width", str(case.width), "--batch-real", str(case.batch_real)]
    arguments += ["--num-frequencies", str(case.num_frequencies)]
    return options.configure(options.parser().parse_args(arguments))


def _random_data(case: cases.PipelineCase, device: torch.device) -> Data:
    rows = case.classes * case.available
    g = generator(0, "data")
    shape = (rows, 3, case.size, case.size)
    images = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8).to(device)
    labels = torch.arange(case.classes).repeat_interleave(case.available).to(device)
    nothing = images[:0], labels[:0]
    half = torch.full((3, 1, 1), 0.5, device=device)
    names = [str(c) for c in range(case.classes)]
    return Data("random", names, images, labels, *nothing, *nothing, half, half / 2)


# ------------------------------------------------------------------------------------------------
# The suite
# ------------------------------------------------------------------------------------------------


def run(device: torch.device, quick: bool, written: Records) -> None:
    if device.type == "cpu":
        memory.keep_freed_memory()  # as the pipeline does
    seconds = 0.02 if quick else 20.0 if device.type == "cuda" else 8.0
    for case in cases.pipeline(device.type, quick=quick):
        sizes = {
            "case": case.name,
            "classes": case.classes,
            "ipc": case.ipc,
            "batch_real": case.batch_real,
            "width": case.width,
            "F": case.num_frequencies,
        }
        try:
            _case(case, sizes, device, seconds, written)
            _free(device)
            _memory(case, device, written)
        except torch.OutOfMemoryError:
            written.add("step", {**sizes, "contender": "all", "verdict": "out of memory"})
        _free(device)
    written.content["notes"] = [
        "Random images. On the CPU networks are narrower and batches smaller than published, and a "
        "part of the classes stands for all where the row says so."
    ]
    if device.type == "cuda":
        (largest,) = [
            c for c in cases.pipeline("cuda", quick=quick) if c.name == "CIFAR-100, IPC 50"
        ]
        _capped(largest, device, written)


def _case(
    case: cases.PipelineCase,
    sizes: dict[str, Any],
    device: torch.device,
    seconds: float,
    written: Records,
) -> None:
    steps: dict[str, Step] = {n: Step(case, method, device) for n, method in METHODS.items()}
    if device.type == "cuda" and case.ipc <= 10:
        steps["published loop"] = PublishedLoop(case, device)
    rounds = measuring.interleave(
        {name: Contender(step) for name, step in steps.items()},
        device,
        seconds=seconds,
        at_least=3,
        at_most=100,
        warm_up=1,
    )
    for name, measured in rounds.items():
        times = Quantiles.of(measured.forward)
        written.add(
            "step",
            {
                **sizes,
                "contender": name,
                "step_s": times.median,
                "step_20_s": times.low,
                "step_80_s": times.high,
                "repetitions": times.count,
                "over_with_psi": measuring.ratio(measured, rounds["with ψ"]).median,
            },
        )
    cost = measuring.ratio(rounds["with ψ"], rounds["without ψ"]).median - 1
    verdict = "met" if cost <= 0.1 else "MISSED"
    row = {"case": case.name, "measure": "cost of ψ", "target": "<= 0.1", "value": cost}
    written.add("targets", {**row, "verdict": verdict})
    if "published loop" in rounds:
        gain = measuring.ratio(rounds["published loop"], rounds["with ψ"]).median
        row = {"case": case.name, "measure": "published loop / ours", "target": ">= 5"}
        written.add("targets", {**row, "value": gain, "verdict": "met" if gain >= 5 else "MISSED"})
    for name in METHODS:
        marks = [steps[name].parts() for _ in range(2)]
        middle = {part: Quantiles.of([m[part] for m in marks]).median for part in marks[0]}
        total = sum(middle.values())
        for part, value in middle.items():
            row = {"case": case.name, "contender": name, "part": part}
            written.add("parts", {**row, "part_s": value, "share": value / total})


def _memory(case: cases.PipelineCase, device: torch.device, written: Records) -> None:
    """Peak of a step with its data; on the CPU for one case only, in a process of its own."""
    for name, method in METHODS.items():
        specification = {"case": vars(case), "method": method, "device": device.type}
        if device.type == "cuda":
            found = probe(specification)
            _free(device)
        elif case.name == "CIFAR-10, IPC 10":
            found = measuring.in_fresh_process("pipeline", specification)
        else:
            return
        row = {"case": case.name, "classes": case.classes, "width": case.width, "contender": name}
        written.add("memory", {**row, "memory_mib": found})


def probe(specification: dict[str, Any]) -> float | None:
    """Peak MiB of two steps with their data, beyond what was there before."""
    device = torch.device(specification["device"])
    case = cases.PipelineCase(**specification["case"])

    def steps() -> None:
        step = Step(case, specification["method"], device)
        step()
        step()

    peak = measuring.peak_memory(Contender(steps), device)
    return None if peak is None else peak / MIB


def _capped(case: cases.PipelineCase, device: torch.device, written: Records) -> None:
    """Whether a step of the largest CIFAR case fits below the claimed 2.3 GB."""
    with _limited(CAP, device):
        for name, method in METHODS.items():
            verdict = "fits"
            step: Step | None
            try:
                step = Step(case, method, device)
                step()
                torch.cuda.synchronize(device)
            except torch.OutOfMemoryError:
                verdict = "does not fit"
            step = None
            _free(device)
            row = {"case": case.name, "contender": name, "cap_gb": CAP / 1e9, "verdict": verdict}
            written.add("memory cap", row)


@contextlib.contextmanager
def _limited(size: float, device: torch.device) -> Iterator[None]:
    _free(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
