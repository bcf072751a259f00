"""Distil an image data set into a few synthetic images per class.

    python examples/distill_cifar.py --dataset digits

A minmax game (NCFM). The images move so that, class by class, the characteristic function of their
features comes close to that of real images; ψ, which proposes the frequencies at which the two are
compared, moves the other way. One backward pass serves both: `ncfd.NCFDLoss` reverses the gradient
on its way to ψ. The whole method is in `Game` below, from the drawing of a batch to the step of the
optimizers; its parts lie in `distillation/`.

Source: Wang et al., "Dataset Distillation with Neural Characteristic Function", CVPR 2025.
"""

import contextlib
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Threads that wait asleep instead of spinning. On two busy cores this is several times faster; it
# has to be said before PyTorch loads.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
from distillation import (
    augmentation,
    chunks,
    comparison,
    coresets,
    formation,
    fused,
    interruption,
    matching,
    memory,
    networks,
    options,
    outputs,
    processes,
    refinement,
    report,
    wording,
    workers,
)
from distillation.augmentation import Draw
from distillation.checkpoint import Checkpoints
from distillation.chunks import Chunk
from distillation.comparison import Stored
from distillation.data import Data, RealBatches, load
from distillation.diagnosis import Diagnosis
from distillation.history import History, event_writer
from distillation.interruption import HINT, Stop, Stopped
from distillation.options import Config
from distillation.probe import Probe, probe_interval
from distillation.randomness import generator, repeatable
from distillation.zoo import Zoo, load_zoo, save_zoo, train_zoo
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

#: The loss of every class is multiplied by this. Adam hardly minds: it keeps small gradients well
#: above the epsilon in its denominator.
LOSS_SCALE = 300.0


@dataclass
class Distilled:
    """Stored images (C·ipc, channels, H, W) in [0, 1], labels, and how they came about."""

    images: Tensor
    labels: Tensor
    history: History
    floors: dict[str, float]  # |φ| of mere noise, by description
    seconds: float
    diagnosis: Diagnosis | None  # None for a method without frequencies


class Game:
    """Both players, and what they move by.

    Args:
        config: the options.
        data: the training part is used.
        network: the architecture of the extractor.
        zoo: its members.
        images: (C·ipc, channels, H, W) in [0, 1], the packed real images to start from.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        network: networks.ConvNet,
        zoo: Zoo,
        images: Tensor,
    ) -> None:
        self.config, self.data, self.network, self.zoo = config, data, network, zoo
        C = data.num_classes
        digits = config.dataset == "digits"
        strategy = augmentation.MATCHING
        self.strategy = augmentation.for_digits(strategy) if digits else strategy

        # The first player: the images. The published rate belongs to one optimizer step after every
        # class, with zero gradient for the images of the others. Adam's second moment is then the
        # mean of C - 1 zeros and one square, which lets every step go √C times as far. One step for
        # all classes together needs that factor in the rate.
        self.images = images.clone().requires_grad_()
        self.images.grad = torch.zeros_like(self.images)
        self.image_optimizer = torch.optim.AdamW(
            [self.images], lr=config.lr_image * math.sqrt(C), weight_decay=5e-4
        )
        # Its rate is set at each step.
        self.calibration_optimizer = torch.optim.AdamW([self.images], weight_decay=0.0)

        # The second player: ψ. An ordinary optimizer; the reversed gradient makes it climb.
        dims = network.features[: -config.layers - 1 : -1]
        self.criterion = matching.make_matching(config, dims)
        self.sampler_weights = list(self.criterion.parameters())
        self.sampler_optimizer = None
        if self.sampler_weights:
            self.sampler_optimizer = torch.optim.AdamW(self.sampler_weights, lr=config.sampler_lr)

        # Every use of chance has a stream of its own.
        self.batches = RealBatches(data, config.batch_real, generator(config.seed, "real batches"))
        self.streams = {
            name: generator(config.seed, name) for name in ("extractor", "augmentation")
        }
        self.streams["real batches"] = self.batches.generator
        for layer, sampler in enumerate(self.criterion.samplers):
            self.streams[f"frequencies {layer}"] = sampler.generator

        # Several processes share the classes. Under a memory limit they take turns.
        processes.require_at_most(C, "number of classes")
        needs = chunks.estimate(config, data, network, zoo)
        at_once = needs.at_once(C, config.memory_limit_gb)
        self.parts = chunks.chunks(processes.share(range(C)), at_once, config.ipc)

    def synthetic_images(self, part: Chunk, params: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stored images of some classes as a leaf, all they hold, and its labels."""
        factor = self.config.factor
        stored = self.images.detach()[part.rows].requires_grad_()
        decoded = self.data.normalise(formation.decode(stored, factor))
        groups = part.labels(self.config.ipc * factor**2, self.data.device)
        return stored, augmentation.augment(decoded, params, part.first + groups), groups

    def iterate(self) -> tuple[dict[str, Tensor], Tensor]:
        """Move both players once. Returns what to log, and the loss of each class (C,)."""
        config, data, images, parts = self.config, self.data, self.images, self.parts
        device, C = data.device, data.num_classes
        assert images.grad is not None

        # Chance decides for all classes together, so that the numbers do not depend on how many of
        # them are handled at a time. Siamese augmentation: one draw for each class, shared by its
        # real and its synthetic images. The extractor: one member of the zoo, somewhere between its
        # untrained and its trained state.
        picks = self.batches.choose()
        params = augmentation.draw(C, self.strategy, data.size, self.streams["augmentation"])
        params = augmentation.to(params, device)
        member = int(torch.randint(len(self.zoo), (), generator=self.streams["extractor"]))
        beta = torch.rand((), generator=self.streams["extractor"]).item()
        beta = {"hybrid": beta, "random": 1.0, "trained": 0.0}[config.extractor]
        weights = self.zoo.blend(member, beta)

        # The loss of each class, mean over the frequencies. One backward pass for both players.
        images.grad.zero_()
        self.criterion.zero_grad()
        self.criterion.mark()
        per_class = torch.zeros(C, device=device)
        for part in parts:
            self.criterion.rewind()
            real, real_groups = self.batches.fetch(picks[part.classes])
            real = augmentation.augment(real, params, part.first + real_groups)
            real_features, _ = networks.run_in_chunks(self.network, weights, real, config.layers)
            stored, synthetic, groups = self.synthetic_images(part, params)
            synthetic_features, _ = networks.run(self.network, weights, synthetic, config.layers)
            losses = self.criterion(
                real_features,
                synthetic_features,
                real_groups=real_groups,
                synthetic_groups=groups,
                num_groups=len(part),
            )
            (LOSS_SCALE * losses.sum()).backward()
            images.grad[part.rows] = stored.grad
            per_class[part.classes] = losses.detach()
        slopes = [p.grad for p in self.sampler_weights if p.grad is not None]
        processes.add_up(images.grad, per_class, *slopes)
        logged = {"loss/matching": per_class.mean(), "gradient/images": images.grad.norm()}

        # Each player its own step.
        self.image_optimizer.step()
        if self.sampler_optimizer is not None:
            logged["gradient/sampler"] = torch.stack([v.norm() for v in slopes]).norm()
            self.sampler_optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        if config.calibration:
            logged["loss/calibration"] = self._calibrate(member, params)
        return logged, per_class

    def _calibrate(self, member: int, params: Draw) -> Tensor:
        """Let the trained member recognise the classes, too. Returns the cross-entropy.

        A step of its own, since Adam's steps do not depend on how large a loss is: so the balance
        is the same for every method, whatever the unit of what it matches.
        """
        images, C = self.images, self.data.num_classes
        assert images.grad is not None
        weights = self.zoo.blend(member, 0.0)
        total = torch.zeros((), device=self.data.device)
        images.grad.zero_()
        for part in self.parts:
            stored, synthetic, groups = self.synthetic_images(part, params)
            _, logits = networks.run(self.network, weights, synthetic)
            cross_entropy = F.cross_entropy(logits, part.first + groups) * (len(part) / C)
            cross_entropy.backward()
            images.grad[part.rows] = stored.grad
            total += cross_entropy.detach()
        processes.add_up(images.grad, total)
        rate = self.image_optimizer.param_groups[0]["lr"]
        self.calibration_optimizer.param_groups[0]["lr"] = self.config.calibration * rate
        self.calibration_optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        return total

    def _stateful(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "image_optimizer": self.image_optimizer,
            "calibration_optimizer": self.calibration_optimizer,
            "criterion": self.criterion,
            "batches": self.batches,
        }
        if self.sampler_optimizer is not None:
            parts["sampler_optimizer"] = self.sampler_optimizer
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images.detach(),
            **{name: part.state_dict() for name, part in self._stateful().items()},
            "streams": {name: stream.get_state() for name, stream in self.streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.images.copy_(state["images"])
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for name, stream in self.streams.items():
            stream.set_state(state["streams"][name])


def distill(
    config: Config,
    data: Data,
    network: networks.ConvNet,
    zoo: Zoo,
    images: Tensor,
    labels: Tensor,
    folder: Path,
    stop: Stop | None = None,
) -> Distilled:
    """Play the game from the packed real images `images`, or from the checkpoint in `folder`.

    A `stop` that has received a signal ends it after an iteration, once that is saved.
    """
    stop = stop or Stop()
    game = Game(config, data, network, zoo, images)
    probe = Probe(config, data, network, zoo, images, game.criterion, game.parts)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        game.image_optimizer,
        factor=0.5,
        patience=max(1, config.patience // probe_interval(config)),
        threshold=1e-5,
        threshold_mode="abs",  # the unbiased loss can be negative
    )
    history = History(data.class_names)
    saved = Checkpoints(folder / "checkpoint.pt")
    start, seconds = 0, 0.0
    state, problem = saved.load()
    if problem:
        tqdm.write(problem)
    if state is not None:
        start, seconds = state["iteration"], state["seconds"]
        game.load_state_dict(state)
        plateau.load_state_dict(state["plateau"])
        history.load_state_dict(state["history"])

    def save(done: int) -> None:
        history.flush(writer)  # raises rather than save what is not finite
        matching.require_finite(done - 1, game.images, game.criterion, data.class_names)
        if processes.rank() == 0:
            saved.save(
                {
                    "iteration": done,
                    "seconds": time.perf_counter() - clock,
                    "plateau": plateau.state_dict(),
                    "history": history.state_dict(),
                    **game.state_dict(),
                }
            )

    writer = event_writer(folder / "tensorboard", start) if processes.rank() == 0 else None
    clock = time.perf_counter() - seconds
    bar = tqdm(
        range(start, config.iterations),
        desc=config.method,
        unit="it",
        initial=start,
        total=config.iterations,
        disable=processes.rank() > 0,
    )
    stop.deferred = True
    try:
        for iteration in bar:
            game.criterion.set_factor(matching.frequency_factor(config, iteration))

            # Look at both players from outside, before they move.
            if iteration % probe_interval(config) == 0:
                history.flush(writer)
                seen = probe.measure(game.images.detach(), game.criterion)
                history.add(iteration, seen, writer)
                plateau.step(seen["probe/images"])

            logged, per_class = game.iterate()
            history.record(iteration, logged, per_class)

            done = iteration + 1
            if done % 10 == 0 or done == config.iterations:
                history.flush(writer)
                shown = {name.split("/")[1]: f"{history.last(name):.4f}" for name in logged}
                bar.set_postfix(shown, refresh=False)
            stopping = processes.any_of(stop.number is not None)
            if stopping or done % _checkpoint_interval(config) == 0 or done == config.iterations:
                save(done)
            if stopping:
                number = stop.number or signal.SIGTERM  # another process received it
                raise Stopped(number, f"stopped; iteration {done} is saved, and {HINT} from there")
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {saved}") from error
    except OSError as error:  # a full disk is met by whoever writes next, TensorBoard too
        if str(saved) in str(error):
            raise
        raise OSError(error.errno, f"{error.strerror or error}; {saved}") from error
    finally:
        stop.deferred = False
        if writer is not None:
            with contextlib.suppress(OSError):  # or it would hide what went wrong before
                writer.close()
    total_seconds = time.perf_counter() - clock
    distilled = game.images.detach()
    course = probe.course(distilled, game.criterion, history)
    diagnosis = probe.diagnose(distilled, game.criterion, course)
    return Distilled(distilled, labels, history, probe.floors(), total_seconds, diagnosis)


def _checkpoint_interval(config: Config) -> int:
    return max(1, min(500, config.iterations // 10))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line. Returns what is in `results.json`."""
    wording.print_anything()
    wording.progress_in_lines()
    args = options.parser().parse_args(arguments)
    config = options.configure(args)
    notes = options.idle(config, options.given(arguments))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(interruption.catching())
        stack.enter_context(processes.started(config.device))
        # Process 0 holds the folder for all.
        claimed = outputs.claimed(
            args.output_dir, config, resume=args.resume, overwrite=args.overwrite
        )
        folder = processes.first(lambda: stack.enter_context(claimed))
        command = shlex.join(sys.argv[1:] if arguments is None else arguments)
        return run(
            config, folder, stop, command, given_zoo=args.zoo, use_cache=args.cache, notes=notes
        )


def run(
    config: Config,
    folder: Path,
    stop: Stop,
    command: str,
    *,
    given_zoo: Path | None,
    use_cache: bool,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Distil, evaluate and write into `folder`. Returns what is in `results.json`.

    `notes` are shown, and written beside the results with what else the reader should know.
    """
    device = torch.device(config.device)
    resumed = (folder / "zoo.pt").exists() or any(folder.glob("evaluation-*.pt"))
    if config.memory_limit_gb is not None:
        memory.give_back_freed_memory()
        networks.AT_ONCE[device.type] = 128
        workers.AT_ONCE = 1
    elif device.type == "cpu":
        memory.keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    data = load(
        config.dataset,
        Path(config.data_dir) if config.data_dir else None,
        config.image_size,
        device,
        use_cache=use_cache,
    )
    if data.skipped:
        tqdm.write(f"{len(data.skipped)} files were left out:")
        for name in data.skipped[:10]:
            tqdm.write(f"  {name}")
    parts = torch.cat([data.train_labels, data.validation_labels + data.num_classes])
    if config.loss == "unbiased" and torch.bincount(parts).min() < 2:
        config = replace(config, loss="squared")
        single = "a class has a single real image: the loss is squared instead of unbiased"
        notes = [*notes, single]
    notes = [*notes, *data.repeats(config.ipc)]
    for note in notes if processes.rank() == 0 else ():
        tqdm.write(f"note: {note}", file=sys.stderr)
    network = networks.ConvNet(
        data.channels, data.size, data.num_classes, config.width, config.depth, config.amp
    ).to(device)
    layers = fused.describe(network, device, data.size)
    if processes.rank() == 0:
        tqdm.write(f"networks: {layers}", file=sys.stderr)

    # The sets that need no matching, each with its ρ.
    starts = {
        name: formation.packed_initialisation(
            data.train_images,
            data.train_labels,
            ipc=config.ipc,
            num_classes=data.num_classes,
            factor=factor,
            generator=generator(config.seed, "initial images"),
        )
        for name, factor in (("random", 1), ("mix", config.factor))
    }

    zoo, pretrain_seconds, result = None, 0.0, None
    factor = 1 if config.method == "random" else config.factor
    needs_zoo = config.method in options.DISTILLING or config.soft_labels or config.fine_tune
    if needs_zoo or {"herding", "dm"} & {*config.baselines}:
        began = time.perf_counter()
        zoo = get_zoo(given_zoo, config, data, network, folder, use_cache=use_cache)
        pretrain_seconds = time.perf_counter() - began
    if config.method in options.DISTILLING:
        assert zoo is not None
        with repeatable(device):
            result = distill(config, data, network, zoo, *starts["mix"], folder, stop)
        images, labels = result.images, result.labels
    else:
        images, labels = starts[config.method]
    # What the publication adds; judged beside the headline, never in its place.
    soft, refined = None, {}
    if config.soft_labels:
        soft = refinement.soft_labels(data, network, zoo, images, factor)
        refined["soft-labels"] = Stored(images, labels, factor, soft)
    if config.fine_tune:
        with repeatable(device):
            tuned = refinement.fine_tune(config, data, network, zoo, images, labels, factor)
        refined["fine-tuned"] = Stored(tuned, labels, factor)
    about = {
        "factor": factor,
        "method": config.method,
        "ipc": config.ipc,
        "seed": config.seed,
        "width": config.width,
        "depth": config.depth,
        "eval_epochs": config.eval_epochs,
        "eval_runs": config.eval_runs,
    }
    if processes.rank() == 0:
        report.save_distilled(
            folder / "distilled.safetensors", images, labels, data, soft_labels=soft, **about
        )
        if config.fine_tune:
            file = folder / "distilled-fine-tuned.safetensors"
            report.save_distilled(file, tuned, labels, data, fine_tuned=True, **about)

    began = time.perf_counter()
    sets = {config.method: Stored(images, labels, factor), **refined}
    for name in config.baselines:
        if name not in sets:
            sets[name] = baseline(name, config, data, network, zoo, starts, folder, stop)
    verdict = comparison.judge(
        data,
        sets,
        comparison.Recipe(
            config.eval_epochs,
            config.eval_runs,
            config.seed,
            config.width,
            config.depth,
            config.full_epochs,
            config.amp,
        ),
        headline=config.method,
        networks=config.eval_networks,
        with_scores=config.scores,
        folder=folder,
    )
    evaluate_seconds = time.perf_counter() - began

    judged = verdict.results()
    distill_seconds = result.seconds if result else 0.0
    results = {
        "accuracy": judged.pop("accuracy"),
        "refined": {name: judged["baselines"].pop(name) for name in refined},
        "method": config.method,
        "dataset": config.dataset,
        "ipc": config.ipc,
        "seed": config.seed,
        "timing": {
            "pretrain_seconds": pretrain_seconds,
            "distill_seconds": distill_seconds,
            "seconds_per_iteration": distill_seconds / config.iterations,
            "evaluate_seconds": evaluate_seconds,
        },
        "peak_memory_bytes": memory.peak_memory(device),
        "device": report.device_name(device),
        "networks": layers,
        "versions": report.versions(),
        "config": config.as_dict(),
        **judged,
        "storage_bytes": images.numel(),
        "zoo_validation_accuracies": zoo.accuracies if zoo else [],
        "zoo_members_from_cache": zoo.reused if zoo else 0,
        "data": data.summary(),
        "skipped_files": data.skipped,
        "notes": [*notes],
        "resumed": resumed,
        "warnings": result.diagnosis.warnings if result and result.diagnosis else [],
    }
    if processes.rank() > 0:
        return results
    # First of all, and alone: what comes after may fail.
    report.write_results(folder / "results.json", results)
    pictures = []
    if report.mpl is None:
        tqdm.write("no pictures are drawn: matplotlib is not installed")
    else:
        pictures = save_pictures(folder, data, starts["mix"], (images, labels, factor))
        if result is not None:
            pictures += report.save_plots(folder / "plots", result.history, result.floors)
        with wording.forgiven(folder / "plots" / "accuracy.png"):
            report.save_accuracy_plot(folder / "plots" / "accuracy.png", verdict.curves())
            pictures.append(folder / "plots" / "accuracy.png")
    with wording.forgiven(folder / "report.md"):
        report.write_page(
            folder / "report.md",
            results,
            pictures,
            f"python examples/distill_cifar.py {command}",
            result.diagnosis if result else None,
        )

    if config.memory_limit_gb is not None:
        excess = memory.stay_within(config.memory_limit_gb, results["peak_memory_bytes"])
        if excess:
            tqdm.write(excess)
    for name, value in report.table(results):
        tqdm.write(f"{name:<46} {value}", file=sys.stdout)
    tqdm.write(f"{'written to':<46} {folder}", file=sys.stdout)
    return results


def baseline(
    name: str,
    config: Config,
    data: Data,
    network: networks.ConvNet,
    zoo: Zoo | None,
    starts: dict[str, tuple[Tensor, Tensor]],
    folder: Path,
    stop: Stop,
) -> Stored:
    """Return a set of the size of the distilled one, or the whole training part."""
    if name == "full":
        return Stored(data.train_images, data.train_labels)
    if name in starts:
        return Stored(*starts[name], 1 if name == "random" else config.factor)
    assert zoo is not None
    if name == "herding":
        chosen = coresets.herding(data, network, zoo.blend(0, 0.0), config.ipc)
        return Stored(*chosen)
    inner = folder / f"baseline-{name}"
    inner.mkdir(exist_ok=True)
    with repeatable(data.device):
        simple = replace(config, method=name, sampler=None, frequency_schedule="constant")
        result = distill(simple, data, network, zoo, *starts["mix"], inner, stop)
    return Stored(result.images, result.labels, config.factor)


def get_zoo(
    given: Path | None,
    config: Config,
    data: Data,
    network: networks.ConvNet,
    folder: Path,
    *,
    use_cache: bool,
) -> Zoo:
    """Return the zoo of this run: given, kept from before the run was stopped, or trained now."""
    needed = {
        "dataset": config.dataset,
        "image_size": config.image_size,
        "class_names": data.class_names,
        "width": config.width,
        "depth": config.depth,
    }
    # Not an own key of the others: zoos that were saved before there was such an option still fit.
    needed |= {"amp": True} if config.amp else {}
    own = needed | {"size": config.zoo_size, "epochs": config.zoo_epochs, "seed": config.seed}
    if given is not None:
        try:
            return load_zoo(given, needed, data.device)
        except (ValueError, OSError) as error:
            # Not the file of this run: nothing here makes it again.
            reason = str(error).removesuffix("; delete it to start that stage again")
            raise ValueError(f"--zoo {given} cannot be used: {reason}") from error
    file = folder / "zoo.pt"
    if file.exists():
        return load_zoo(file, own, data.device)
    zoo = train_zoo(
        network,
        data,
        size=config.zoo_size,
        epochs=config.zoo_epochs,
        seed=config.seed,
        use_cache=use_cache,
    )
    if processes.rank() == 0:
        save_zoo(file, zoo, own)
    return zoo


def save_pictures(
    folder: Path,
    data: Data,
    start: tuple[Tensor, Tensor],
    final: tuple[Tensor, Tensor, int],
) -> list[Path]:
    """Write the image grids."""
    images, labels, factor = final
    first = torch.cat(
        [torch.nonzero(data.train_labels == c).flatten()[:10] for c in range(data.num_classes)]
    )
    decoded = formation.decode(images, factor)
    grids = {
        "real": (data.train_images[first].float() / 255, data.train_labels[first]),
        "initial": start,
        "distilled": (images, labels),
        "distilled_decoded": (decoded, labels.repeat_interleave(factor**2)),
    }
    paths = []
    for name, (x, y) in grids.items():
        path = folder / "images" / f"{name}.png"
        with wording.forgiven(path):
            report.save_grid(path, x, y, data.class_names)
            paths.append(path)
    return paths


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        sys.exit(f"error: {memory.explain(error)}")
    except KeyboardInterrupt as stopped:
        print(stopped if isinstance(stopped, Stopped) else "stopped", file=sys.stderr)
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
