"""Where you match means today, match distributions: one line of a training step.

    python examples/plug_in.py

`mean_matching_step` below is a whole step of data set distillation by mean matching: a few
synthetic images per class move so that, under a random network, the class means of their features
come close to those of real images. `ncfd_matching_step` is the same step with `ncfd.NCFDLoss`. Two
lines differ, the signature and the loss; the program prints the difference. Outside the step, the
optimizer also gets the parameters of ψ, the sampler of the frequencies, which play against the
images: the loss turns their gradient around.

Both distil scikit-learn's digits (8x8 pixels, no download) from the same random real images, with
the same batches and networks, for several seeds. The table compares them, and the images they
started from, by two numbers that neither of them minimises:

* accuracy on test images of fresh networks trained on the synthetic images alone;
* distance in pixel space to the test images of the same class: `gaussian_ncfd`, half a squared
  kernel MMD.

Takes about 45 seconds of one core; `README.md` beside this file says what came out.
Written to the output directory: results.json, images.png.
"""

import argparse
import difflib
import inspect
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import ncfd
from ncfd.functional import gaussian_ncfd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# ------------------------------------------------------------------------------------------------
# The two steps
# ------------------------------------------------------------------------------------------------


def mean_matching_step(network, optimizer, images, y, real, real_y):
    with torch.no_grad():
        target = network(real)
    features = network(images)
    loss = (class_means(target, real_y) - class_means(features, y)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def ncfd_matching_step(network, optimizer, images, y, real, real_y, ncfd_loss):
    with torch.no_grad():
        target = network(real)
    features = network(images)
    loss = ncfd_loss(target, features, real_groups=real_y, synthetic_groups=y, num_groups=10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def class_means(features: Tensor, y: Tensor) -> Tensor:
    """Mean of the features (N, D) of every class, (10, D)."""
    one_hot = F.one_hot(y, 10).to(features)
    return one_hot.T @ features / one_hot.sum(0)[:, None]


def difference() -> str:
    """The lines in which the two steps differ."""
    steps = [inspect.getsource(s).splitlines() for s in (mean_matching_step, ncfd_matching_step)]
    lines = list(difflib.unified_diff(*steps, lineterm="", n=0))[2:]  # without the file names
    return "\n".join(line for line in lines if not line.startswith("@@"))


# ------------------------------------------------------------------------------------------------
# What surrounds the step
# ------------------------------------------------------------------------------------------------

WIDTH = 32
METHODS = ("random real images", "mean matching", "NCFDLoss")


def convnet() -> nn.Sequential:
    """(N, 1, 8, 8) -> (N, 4 WIDTH). No batch statistics: those of a few images say little."""
    return nn.Sequential(
        *(nn.Conv2d(1, WIDTH, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
    )


def distil(
    method: str, start: Tensor, y: Tensor, data: "Digits", seed: int, options: argparse.Namespace
) -> Tensor:
    """Images that began as `start` and were moved by one of the two steps."""
    if method == "random real images":
        return start
    # One seed for both: the same batches, and from PyTorch's own generator the same networks.
    generator = torch.Generator().manual_seed(seed)
    images = start.clone().requires_grad_()
    if method == "mean matching":
        step, extra = mean_matching_step, ()
        optimizer = torch.optim.Adam([images], lr=options.lr_means)
    else:
        sampler = ncfd.FrequencySampler(
            4 * WIDTH, options.num_frequencies, scale=options.scale, max_ratio=4.0
        )
        ncfd_loss = ncfd.NCFDLoss(sampler, normalize=True).to(start.device)
        step, extra = ncfd_matching_step, (ncfd_loss,)
        optimizer = torch.optim.Adam(
            [
                {"params": [images], "lr": options.lr_ncfd},
                {"params": ncfd_loss.parameters(), "lr": options.lr_sampler},
            ]
        )
    for k in range(options.iterations):
        torch.manual_seed(seed * options.iterations + k)
        network = convnet().to(start.device)
        batch = torch.randint(len(data.train_y), (options.batch,), generator=generator)
        step(network, optimizer, images, y, data.train_x[batch], data.train_y[batch], *extra)
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def accuracy(images: Tensor, y: Tensor, x: Tensor, x_y: Tensor, options) -> float:
    """Percent of `x` that a fresh network, trained on `images` alone, puts into its class."""
    network = nn.Sequential(convnet(), nn.Linear(4 * WIDTH, 10)).to(images.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(options.eval_steps):
        loss = F.cross_entropy(network(images), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return 100 * (network(x).argmax(1) == x_y).float().mean().item()


def distance(images: Tensor, y: Tensor, x: Tensor, x_y: Tensor) -> float:
    """Mean over the classes of half a squared MMD, in pixels, with a kernel 2 wide."""
    value = gaussian_ncfd(
        x.flatten(1), images.flatten(1), scale=0.5, x_groups=x_y, y_groups=y, num_groups=10
    )
    return value.item()


class Digits:
    """Training images, and held-out ones that nothing is trained on."""

    def __init__(self, held_out: str, device: torch.device) -> None:
        x, y = load_digits(return_X_y=True)
        rest, test, rest_y, test_y = train_test_split(
            x, y, test_size=400, random_state=0, stratify=y
        )
        train, val, train_y, val_y = train_test_split(
            rest, rest_y, test_size=400, random_state=0, stratify=rest_y
        )
        held, held_y = (test, test_y) if held_out == "test" else (val, val_y)

        def images(pixels: Any) -> Tensor:
            return torch.as_tensor(pixels / 16, dtype=torch.float32, device=device).view(
                -1, 1, 8, 8
            )

        self.train_x, self.train_y = images(train), torch.as_tensor(train_y, device=device)
        self.held_x, self.held_y = images(held), torch.as_tensor(held_y, device=device)

    def random_images(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images, `per_class` of each class in order."""
        order = torch.randperm(len(self.train_y), generator=generator).to(self.train_y.device)
        chosen = torch.cat([order[self.train_y[order] == c][:per_class] for c in range(10)])
        return self.train_x[chosen], self.train_y[chosen]


# ------------------------------------------------------------------------------------------------
# Running it
# ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Mean matching, and the same with a characteristic function loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ipc", type=int, default=10, help="synthetic images per class")
    parser.add_argument("--iterations", type=int, default=300, help="steps")
    parser.add_argument("--batch", type=int, default=256, help="real images in a step")
    parser.add_argument("--lr-means", type=float, default=0.01, help="rate for mean matching")
    parser.add_argument("--lr-ncfd", type=float, default=0.01, help="rate for NCFDLoss")
    parser.add_argument("--lr-sampler", type=float, default=1e-3, help="rate of ψ")
    parser.add_argument("--scale", type=float, default=1.0, help="initial frequencies of ψ")
    parser.add_argument("--num-frequencies", type=int, default=256, help="F")
    parser.add_argument("--eval-steps", type=int, default=100, help="training of a fresh network")
    parser.add_argument("--eval-runs", type=int, default=3, help="fresh networks for each seed")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of everything")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument(
        "--held-out",
        choices=("test", "validation"),
        default="test",
        help="where to measure; options are to be chosen on validation",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/plug_in"))
    options = parser.parse_args(arguments)
    options.output_dir = options.output_dir.expanduser()
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    data = Digits(options.held_out, torch.device(options.device))

    runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    shown: dict[str, Tensor] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        start, y = data.random_images(options.ipc, torch.Generator().manual_seed(seed))
        for method in METHODS:
            clock = time.perf_counter()
            images = distil(method, start, y, data, seed, options)
            seconds = time.perf_counter() - clock
            held = (data.held_x, data.held_y)
            torch.manual_seed(seed)  # the same fresh networks for every method
            scores = [accuracy(images, y, *held, options) for _ in range(options.eval_runs)]
            runs[method].append(
                {
                    "accuracy": sum(scores) / len(scores),
                    "distance": distance(images, y, *held),
                    "seconds": seconds,
                }
            )
            shown.setdefault(method, images.cpu())

    results = {
        "held_out": options.held_out,
        "runs": runs,
        "accuracy": {m: summary([r["accuracy"] for r in runs[m]]) for m in METHODS},
        "distance": {m: summary([r["distance"] for r in runs[m]]) for m in METHODS},
        "seconds": {m: summary([r["seconds"] for r in runs[m]]) for m in METHODS},
        "versions": {"torch": torch.__version__, "ncfd": ncfd.__version__},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(shown, options)
    show(results, options)
    return results


def summary(values: list[float]) -> dict[str, float]:
    x = torch.tensor(values, dtype=torch.float64)
    return {"mean": x.mean().item(), "std": x.std(correction=min(1, len(x) - 1)).item()}


def draw(shown: dict[str, Tensor], options: argparse.Namespace) -> None:
    """The images of the first seed: a column for each class."""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 2.6), layout="tight")
    for axis, (method, images) in zip(axes, shown.items(), strict=True):
        # Gaps of one pixel; at most six images of a class.
        grid = F.pad(images.view(10, options.ipc, 8, 8)[:, :6], (0, 1, 0, 1), value=0.5)
        grid = grid.permute(1, 2, 0, 3).flatten(2, 3).flatten(0, 1)  # (rows, columns)
        axis.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(method)
        axis.axis("off")
    figure.savefig(options.output_dir / "images.png", dpi=120)
    plt.close(figure)


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    print("The difference between the two steps:\n")
    print(difference())
    print(f"\n{options.ipc} images per class, measured on {options.held_out} images, ", end="")
    print(f"mean ± standard deviation over {options.seeds} seeds:\n")
    print(f"{'':22s}{'accuracy / %':>15s}{'distance / 1e-3':>19s}{'ms per step':>14s}")
    for method in METHODS:
        a, d, s = (results[key][method] for key in ("accuracy", "distance", "seconds"))
        step = f"{1e3 * s['mean'] / options.iterations:.1f}" if method != METHODS[0] else "-"
        print(
            f"{method:22s}{a['mean']:9.1f} ± {a['std']:3.1f}"
            f"{1e3 * d['mean']:12.2f} ± {1e3 * d['std']:4.2f}{step:>14s}"
        )
    print(f"\nWritten to {options.output_dir}")


if __name__ == "__main__":
    main()
