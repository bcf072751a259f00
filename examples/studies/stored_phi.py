"""Experiment: φ of the real images from a bank, instead of fresh forward passes.

    python examples/studies/stored_phi.py --dataset imagefolder --data-dir PATH --bank 16

Most of a distillation step are forward passes of real images, made for a handful of averages. Here
they are made in advance: a bank of B entries, each an extractor (a blend of the zoo), an
augmentation for each class, frequencies, and φ of every class under them, streamed over many more
images than a batch holds. A step picks an entry and needs the synthetic images only. Both sides see
the same augmentation, as in the method itself. What is lost is variety: B extractors and
augmentations instead of a new one in each iteration, so the oldest entry is made anew after every
`--renew` iterations.

Everything else, and every other option, is that of `distill_cifar.py --method ncfm-fixed`; with
`--bank 0` this is that program with its fresh batches.
"""

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from distill_cifar import LOSS_SCALE, get_zoo
from distillation import (
    augmentation,
    comparison,
    formation,
    matching,
    memory,
    networks,
    options,
    report,
)
from distillation.augmentation import Draw
from distillation.comparison import Stored
from distillation.data import Data, RealBatches, load
from distillation.options import Config
from distillation.randomness import generator, repeatable
from distillation.zoo import Zoo
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import ncfd


@dataclass(frozen=True)
class Entry:
    """What a step needs to know of the real images."""

    weights: networks.Weights
    params: Draw  # one augmentation for each class
    t: Tensor  # (F, D)
    phi: Tensor  # (C, F), complex


class Bank:
    """Entries in the order in which they were made."""

    def __init__(
        self, config: Config, data: Data, network: networks.ConvNet, zoo: Zoo, size: int, per: int
    ) -> None:
        self.data, self.network, self.zoo = data, network, zoo
        self.strategy = augmentation.MATCHING
        if config.dataset == "digits":
            self.strategy = augmentation.for_digits(self.strategy)
        self.batches = RealBatches(data, per, generator(config.seed, "real batches"))
        names = ("extractor", "augmentation", "pick")
        self.streams = {name: generator(config.seed, name) for name in names}
        self.sampler = matching.make_sampler(config, network.num_features)
        self.entries = deque((self.make() for _ in range(size)), maxlen=max(size, 1))

    def make(self) -> Entry:
        """Look at the real images under one extractor, class by class in pieces of the stream."""
        C = self.data.num_classes
        params = augmentation.draw(C, self.strategy, self.data.size, self.streams["augmentation"])
        params = augmentation.to(params, self.data.device)
        member = int(torch.randint(len(self.zoo), (), generator=self.streams["extractor"]))
        beta = torch.rand((), generator=self.streams["extractor"]).item()
        weights = self.zoo.blend(member, beta)
        assert self.sampler is not None
        t = self.sampler()
        stream = ncfd.CharacteristicFunction(t, num_groups=C)
        chosen = torch.cat(self.batches.choose())
        for part in chosen.split(networks.AT_ONCE[self.data.device.type]):
            labels = self.data.train_labels[part]
            images = self.data.normalise(self.data.train_images[part])
            images = augmentation.augment(images, params, labels)
            features, _ = networks.run_in_chunks(self.network, weights, images)
            stream.update(F.normalize(features, dim=1), groups=labels)
        return Entry(weights, params, t, stream.compute().to(torch.complex64))

    def pick(self) -> Entry:
        """Any entry."""
        return self.entries[
            int(torch.randint(len(self.entries), (), generator=self.streams["pick"]))
        ]

    def renew(self) -> None:
        """Make an entry anew in place of the oldest."""
        self.entries.append(self.make())


def distill(
    config: Config,
    data: Data,
    network: networks.ConvNet,
    zoo: Zoo,
    images: Tensor,
    labels: Tensor,
    *,
    size: int,
    per: int,
    renew: int,
) -> tuple[Tensor, dict[str, float]]:
    """Return the images, and the seconds spent on the bank and on the steps.

    With `size` 0 an entry is made in every iteration, of a batch of real images.
    """
    C = data.num_classes
    images = images.clone().requires_grad_()
    optimizer = torch.optim.AdamW([images], lr=config.lr_image * math.sqrt(C), weight_decay=5e-4)
    began = time.process_time()
    bank = Bank(config, data, network, zoo, size, per if size else config.batch_real)
    filled = time.process_time()
    groups = labels.repeat_interleave(config.factor**2)
    for iteration in tqdm(range(config.iterations), desc=f"bank of {size}", unit="it"):
        if size and renew and iteration and iteration % renew == 0:
            bank.renew()
        entry = bank.pick() if size else bank.make()
        decoded = data.normalise(formation.decode(images, config.factor))
        synthetic = augmentation.augment(decoded, entry.params, groups)
        features, _ = networks.run(network, entry.weights, synthetic)
        losses = ncfd.functional.ncfd_loss(
            entry.phi,
            F.normalize(features, dim=1),
            entry.t,
            squared=config.loss != "root",
            unbiased=config.loss == "unbiased",
            reduction="none",
            y_groups=groups,
            num_groups=C,
        )
        optimizer.zero_grad()
        (LOSS_SCALE * losses.mean(1).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    seconds = {"fill": filled - began, "iterations": time.process_time() - filled}
    return images.detach(), seconds


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Distil and judge; write `results.json` into the output directory."""
    p = argparse.ArgumentParser(parents=[options.parser()], conflict_handler="resolve")
    p.add_argument("--bank", type=int, default=16, help="B; 0 for fresh batches: %(default)s")
    p.add_argument(
        "--bank-real", type=int, default=512, help="real images per class and entry: %(default)s"
    )
    p.add_argument(
        "--renew",
        type=int,
        default=0,
        help="iterations until the oldest entry is replaced; 0: never",
    )
    args = p.parse_args(arguments)
    args.method = "ncfm-fixed"
    for name in ("bank", "renew"):
        if getattr(args, name) < 0:
            p.error(f"--{name} must be a whole number >= 0; got {getattr(args, name)}")
    if args.bank_real < 1:
        p.error(f"--bank-real must be a whole number >= 1; got {args.bank_real}")
    config = options.configure(args)
    memory.keep_freed_memory()
    device = torch.device(config.device)
    folder = args.output_dir or Path("runs") / f"stored-phi-{args.bank}-seed{config.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = load(
        config.dataset,
        Path(config.data_dir) if config.data_dir else None,
        config.image_size,
        device,
        use_cache=args.cache,
    )
    network = networks.ConvNet(
        data.channels, data.size, data.num_classes, config.width, config.depth
    ).to(device)
    images, labels = formation.packed_initialisation(
        data.train_images,
        data.train_labels,
        ipc=config.ipc,
        num_classes=data.num_classes,
        factor=config.factor,
        generator=generator(config.seed, "initial images"),
    )
    zoo = get_zoo(args.zoo, config, data, network, folder, use_cache=args.cache)
    with repeatable(device):
        images, seconds = distill(
            config,
            data,
            network,
            zoo,
            images,
            labels,
            size=args.bank,
            per=args.bank_real,
            renew=args.renew,
        )
    verdict = comparison.judge(
        data,
        {"ncfm-fixed": Stored(images, labels, config.factor)},
        comparison.Recipe(
            config.eval_epochs, config.eval_runs, config.seed, config.width, config.depth
        ),
        headline="ncfm-fixed",
        networks=config.eval_networks,
        with_scores=False,
    )
    results = {
        "accuracy": verdict.results()["accuracy"],
        "bank": {"entries": args.bank, "real": args.bank_real, "renew": args.renew},
        "processor_seconds": seconds,
        "config": config.as_dict(),
        "device": report.device_name(device),
        "versions": report.versions(),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{results['accuracy']['mean']:.2f} % ± {results['accuracy']['std']:.2f}, {seconds}")
    return results


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
