"""Judge a distilled set that was saved by `distill_cifar.py`.

    python examples/evaluate_distilled.py runs/.../distilled.safetensors

Trains fresh networks on the stored images alone and tests them on the test images of the data set
they were distilled from, which are all that is needed besides the file. Its metadata say how to
decode and normalise the images, what the classes are, and which recipe judged them first; with
the same one the figures are the same.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

# As in `distill_cifar.py`.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
from distillation import (
    architectures,
    comparison,
    formation,
    memory,
    networks,
    options,
    report,
    wording,
)
from distillation.comparison import Recipe, Stored
from distillation.data import DATASETS, Data, load
from distillation.randomness import generator
from torch import Tensor

#: Sets of the same size, or all images: what can be judged beside it without distilling anything.
BASELINES = ("random", "mix", "full")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="evaluate_distilled.py", description="Judge a distilled set.")
    add = p.add_argument
    add("file", type=options.path, metavar="FILE", help="distilled.safetensors of a run")
    add("--dataset", choices=DATASETS, help="whose test images to use (default: as in the file)")
    add(
        "--data-dir",
        type=options.path,
        metavar="PATH",
        help="where they are, as for distill_cifar.py",
    )
    add(
        "--networks",
        default="convnet",
        metavar="LIST",
        help=f"architectures, separated by commas: {', '.join(architectures.NAMES)}; the first "
        "gives the headline. Default: %(default)s",
    )
    add("--epochs", type=int, help="training epochs of each (default: as in the file)")
    add("--runs", type=int, help="networks of each kind (default: as in the file)")
    add("--width", type=int, help="channels of the ConvNet (default: as in the file)")
    add("--depth", type=int, help="blocks of the ConvNet (default: as in the file)")
    add("--seed", type=int, help="of the networks (default: as in the file)")
    add(
        "--baselines",
        default="",
        metavar="LIST",
        help="also judge random images, the packed start (mix), the whole training part (full)",
    )
    add(
        "--soft-labels",
        action="store_true",
        help="also judge it with the soft labels in the file, beside the headline with hard ones",
    )
    add("--full-epochs", type=int, help="epochs on the whole training part (default: 10)")
    add(
        "--scores",
        action="store_true",
        help="also DD-Ranking's label-robust and augmentation-robust scores; judges `random` and "
        "`full` as well",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA where it is")
    add(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use decoded images in $XDG_CACHE_HOME/ncfd (default: yes)",
    )
    add("--output", type=options.path, metavar="FILE", help="write the figures there as JSON")
    return p


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line. Returns what `--output` would hold."""
    wording.print_anything()
    wording.progress_in_lines()
    args = parser().parse_args(arguments)
    if args.output is not None and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise ValueError(f"--output must be a file in a folder that exists; got {args.output}")
    device = torch.device(options.choose_device(args.device))
    if device.type == "cpu":
        memory.keep_freed_memory()
    images, labels, info = report.read_distilled(args.file)
    recipe = choose_recipe(args, info, images.shape[-1])
    kinds = options.names("networks", args.networks, architectures.NAMES) or ["convnet"]
    others = options.names("baselines", args.baselines, BASELINES)
    if args.scores:
        others += [name for name in ("random", "full") if name not in others]

    dataset = args.dataset or info["dataset"]
    for note in idle(args, dataset, kinds, others):
        print(f"note: {note}", file=sys.stderr)
    data = load(dataset, args.data_dir, images.shape[-1], device, use_cache=args.cache)
    if data.skipped:
        print(f"note: {len(data.skipped)} files were left out", file=sys.stderr)
    data, order = fit(data, images, info)
    labels = order[labels]
    stored = Stored(images.to(device), labels.to(device), info["factor"])

    began = time.perf_counter()
    sets = {"distilled": stored}
    if args.soft_labels:
        soft = report.read_soft_labels(args.file)
        if soft is None:
            raise ValueError(f"--soft-labels: {args.file} was saved without any")
        columns = torch.zeros_like(soft)
        columns[:, order] = soft
        sets["soft labels"] = replace(stored, soft_labels=columns.to(device))
    for name in others:
        sets[name] = baseline(name, data, stored, recipe.seed)
    verdict = comparison.judge(
        data,
        sets,
        recipe,
        headline="distilled",
        networks=kinds,
        with_scores=args.scores,
    )
    results = {
        **verdict.results(),
        "network": kinds[0],
        "file": str(args.file),
        "dataset": dataset,
        "storage_bytes": images.numel(),
        "recipe": vars(recipe),
        "timing": {"evaluate_seconds": time.perf_counter() - began},
        "device": report.device_name(device),
        "versions": report.versions(),
        "metadata": info,
        "skipped_files": data.skipped,
        "command": shlex.join(sys.argv[1:] if arguments is None else arguments),
    }
    print(f"{'network':<50} {kinds[0]}")
    for name, value in report.accuracies(results):
        print(f"{name:<50} {value}")
    print(f"{'storage at one byte a value':<50} {images.numel():,} bytes")
    if args.output is not None:
        report.write_results(args.output, results)
    return results


def choose_recipe(args: argparse.Namespace, info: dict[str, Any], size: int) -> Recipe:
    """Take what the options leave open from the file, or from the quick preset."""
    quick = options.PRESETS["quick"]
    fallback = {
        "epochs": info.get("eval_epochs", quick["eval_epochs"]),
        "runs": info.get("eval_runs", quick["eval_runs"]),
        "seed": info.get("seed", 0),
        "width": info.get("width", quick["width"]),
        "depth": info.get("depth", networks.default_depth(size)),
        "full_epochs": quick["full_epochs"],
    }
    given = {k: getattr(args, k) for k in fallback if getattr(args, k) is not None}
    for name, value in given.items():
        if value < 1 and name != "seed":
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be a whole number >= 1; got {value}")
    recipe = Recipe(**{**fallback, **given})
    if size < 2**recipe.depth:
        raise ValueError(
            f"--depth must be at most {size.bit_length() - 1}, since each block halves the {size} "
            f"pixels; got {recipe.depth}"
        )
    return recipe


def idle(args: argparse.Namespace, dataset: str, kinds: list[str], sets: list[str]) -> list[str]:
    """Say which options change nothing here, as `distill_cifar.py` does."""
    rules = (
        ("data_dir", dataset != "digits", "with --dataset digits"),
        ("width", "convnet" in kinds, "without the ConvNet among --networks"),
        ("depth", "convnet" in kinds, "without the ConvNet among --networks"),
        ("full_epochs", "full" in sets, "without the baseline `full`"),
    )
    return [
        f"--{name.replace('_', '-')}: no effect {reason}"
        for name, useful, reason in rules
        if getattr(args, name) is not None and not useful
    ]


def fit(data: Data, images: Tensor, info: dict[str, Any]) -> tuple[Data, Tensor]:
    """Give the test data the normalisation of the stored images, and find each class in it.

    Returns:
        The data, and for each label of the file the one of the data.
    """
    if images.shape[1] != data.channels:
        raise ValueError(
            f"the stored images have {images.shape[1]} channel(s), those of the data set "
            f"{data.channels}"
        )
    unknown = [name for name in info["class_names"] if name not in data.class_names]
    if unknown or len(info["class_names"]) != data.num_classes:
        raise ValueError(
            f"the file has {len(info['class_names'])} classes, the data set {data.num_classes}"
            + (f"; not among the latter: {', '.join(unknown[:5])}" if unknown else "")
            + ". --dataset and --data-dir have to name the data it was distilled from"
        )
    order = torch.tensor([data.class_names.index(name) for name in info["class_names"]])
    mean, std = (torch.tensor(info[k])[:, None, None].to(data.device) for k in ("mean", "std"))
    return replace(data, mean=mean, std=std), order


def baseline(name: str, data: Data, stored: Stored, seed: int) -> Stored:
    """Return real images, as many as are stored in each class, or all of them."""
    if name == "full":
        return Stored(data.train_images, data.train_labels)
    counts = torch.bincount(stored.labels, minlength=data.num_classes)
    factor = 1 if name == "random" else stored.factor
    chosen = formation.packed_initialisation(
        data.train_images,
        data.train_labels,
        ipc=int(counts.max()),
        num_classes=data.num_classes,
        factor=factor,
        generator=generator(seed, "initial images"),
    )
    return Stored(*chosen, factor)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        sys.exit(f"error: {memory.explain(error)}")
    except KeyboardInterrupt:
        sys.exit("stopped")
