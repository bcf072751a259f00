"""Suite `pipeline`: the distillation step on random data of the usual shapes.

What is timed is `Game.iterate` of `examples/distill_cifar.py` itself. `step` times it whole;
`parts` cuts it, by hooks from outside, where features and frequencies come and their gradients
arrive (the device is waited for at every cut, so the parts add up to a little more). In one
backward pass autograd goes from the loss to the frequencies, on through ψ, then through the
network.

With an accelerator also the matching of the published code is timed: class by class, two backward
passes over a kept graph, the released form with 4096 fixed frequencies, an optimizer step after
each class.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

import distill_cifar
import torch
from distillation import augmentation, formation, memory, networks, options
from distillation.data import Data
from distillation.randomness import generator
from distillation.zoo import Zoo
from torch import Tensor

from benchmarks import cases, measuring, peers
from benchmarks.measuring import MIB, Contender, Quantiles
from benchmarks.records import Records

F = torch.nn.functional
#: Decimal gigabytes, as in the claim for CIFAR-100 at 50 images per class.
CAP = 2.3e9
METHODS = {"with ψ": "ncfm", "without ψ": "ncfm-fixed"}


class Step:
    """One iteration of the game, ready to be called."""

    def __init__(
        self,
        case: cases.PipelineCase,
        method: str,
        device: torch.device,
        limit_gb: float | None = None,
        amp: bool = False,
    ) -> None:
        self.case = case
        config, data = _config(case, method, device, limit_gb), _random_data(case, device)
        sizes = (3, case.size, case.classes, case.width, config.depth)
        network = networks.ConvNet(*sizes, amp=amp).to(device)
        initial, trained = (
            networks.stack(
                [networks.initial_weights(network, generator(0, name, k)) for k in (0, 1)]
            )
            for name in ("initial", "trained")
        )
        zoo = Zoo(initial, trained, [0.0, 0.0])
        stored = case.classes * case.ipc
        images = torch.rand(stored, 3, case.size, case.size, generator=generator(0, "images"))
        self.game = distill_cifar.Game(config, data, network, zoo, images.to(device))

    def __call__(self) -> None:
        self.game.iterate()

    def parts(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        game, device = self.game, self.game.data.device
        criterion = game.criterion
        (sampler,) = criterion.samplers
        drawing = "ψ" if game.sampler_optimizer else "frequencies"
        watch = _Stopwatch(device)

        def enter_network(*_: object) -> None:
            real = not torch.is_grad_enabled()
            watch.mark("real images: draw, augment" if real else "synthetic forward")

        def leave_network(_: object, __: object, outputs: tuple[Tensor, Tensor]) -> None:
            if torch.is_grad_enabled():
                outputs[0].register_hook(lambda _: watch.mark(drawing if moving else "loss"))
            watch.mark("synthetic forward" if torch.is_grad_enabled() else "real forward")

        def leave_sampler(_: object, __: object, t: Tensor) -> None:
            if t.requires_grad:
                t.register_hook(lambda _: watch.mark("loss"))
            watch.mark(drawing)

        moving = game.sampler_optimizer is not None
        optimizer = game.image_optimizer
        hooks = [
            game.network.register_forward_pre_hook(enter_network),
            game.network.register_forward_hook(leave_network),
            sampler.register_forward_pre_hook(lambda *_: watch.mark("loss")),
            sampler.register_forward_hook(leave_sampler),
            criterion.register_forward_hook(lambda *_: watch.mark("loss")),
            optimizer.register_step_pre_hook(lambda *_: watch.mark("synthetic backward")),
        ]
        try:
            game.iterate()
        finally:
            for hook in hooks:
                hook.remove()
        watch.mark("optimizers")
        return watch.seconds


class PublishedLoop(Step):
    """The same work in the order of the published code."""

    def __init__(self, case: cases.PipelineCase, device: torch.device) -> None:
        super().__init__(case, "ncfm-fixed", device)

    def __call__(self) -> None:
        game, ipc = self.game, self.case.ipc
        images, network, device = game.images, game.network, game.data.device
        params = augmentation.draw(
            self.case.classes, game.strategy, self.case.size, game.streams["augmentation"]
        )
        params = augmentation.to(params, device)
        member = int(torch.randint(len(game.zoo), (), generator=game.streams["extractor"]))
        beta = torch.rand((), generator=game.streams["extractor"]).item()
        weights = game.zoo.blend(member, beta)
        picks = game.batches.choose()
        for c in range(self.case.classes):
            real, _ = game.batches.fetch([picks[c]])
            labels = torch.full((len(real),), c, device=device)
            real = augmentation.augment(real, params, labels)
            with torch.no_grad():
                real_features, _ = networks.run(network, weights, real)
            own = images[c * ipc : (c + 1) * ipc]
            decoded = game.data.normalise(formation.decode(own, game.config.factor))
            labels = torch.full((len(decoded),), c, device=device)
            synthetic = augmentation.augment(decoded, params, labels)
            features, _ = networks.run(network, weights, synthetic)
            t = torch.randn(4096, network.num_features, device=device)
            x, y = F.normalize(real_features, dim=1), F.normalize(features, dim=1)
            loss = distill_cifar.LOSS_SCALE * peers.released_form(x, y, t)
            game.image_optimizer.zero_grad()
            loss.backward(retain_graph=True)
            game.image_optimizer.step()
            torch.autograd.grad(-loss, images)  # for the player that never moves
        with torch.no_grad():
            images.clamp_(0, 1)


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


def _config(
    case: cases.PipelineCase, method: str, device: torch.device, limit_gb: float | None = None
) -> options.Config:
    arguments = ["--dataset", "cifar10", "--method", method, "--device", device.type]
    arguments += ["--preset", "paper", "--image-size", str(case.size), "--ipc", str(case.ipc)]
    arguments += ["--width", str(case.width), "--batch-real", str(case.batch_real)]
    arguments += ["--num-frequencies", str(case.num_frequencies)]
    if limit_gb is not None:
        arguments += ["--memory-limit-gb", str(limit_gb)]
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
    seconds = 0.02 if quick else 4.0 if device.type == "cuda" else 8.0
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
    """Whether a step of the largest CIFAR case fits below the claimed 2.3 GB, and what it takes."""
    networks.AT_ONCE[device.type] = 128  # as under `--memory-limit-gb`
    try:
        with _limited(CAP, device):
            for name, method in METHODS.items():
                written.add("memory cap", _under_cap(case, name, method, device))
                _free(device)
    finally:
        del networks.AT_ONCE[device.type]  # back to the default


def _under_cap(
    case: cases.PipelineCase, name: str, method: str, device: torch.device
) -> dict[str, Any]:
    row = {"case": case.name, "contender": name, "cap_gb": CAP / 1e9}
    try:
        step = Step(case, method, device, CAP / 1e9)
        step()
        watch = _Stopwatch(device)
        step()
        watch.mark("step")
    except torch.OutOfMemoryError:
        return {**row, "verdict": "does not fit"}
    peak = memory.peak_memory(device) / MIB
    at_once = len(step.game.parts[0])
    return {
        **row,
        "classes_at_once": at_once,
        "step_s": watch.seconds["step"],
        "peak_mib": peak,
        "verdict": "fits",
    }


@contextlib.contextmanager
def _limited(size: float, device: torch.device) -> Iterator[None]:
    _free(device)
    torch.cuda.reset_peak_memory_stats(device)
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
