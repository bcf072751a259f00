"""Self-supervised embeddings that cannot collapse: pulled towards a standard normal.

    python examples/regularise_embeddings.py

An encoder sees two random views of each image (shifted, turned, dimmed, with noise and a hole) and
is asked for the same embedding of both. No labels, no negative pairs, no second network. Alone that
has a trivial solution, the same embedding for everything. The remedy is one more term,

    ncfd.SIGReg()(embeddings)

how far the characteristic functions of their projections on random lines are from those of N(0, 1):
no constant, no line and no plane of embeddings has a standard normal distribution, and all lines
normal means jointly normal (Cramér and Wold). It compares at 16 lengths along each line. The other
way to say it takes any frequencies and any known distribution:

    ncfd_loss(standard normal, embeddings, t)

In 16 dimensions almost all frequencies drawn from N(0, I) are so long (|t| near 4) that the
characteristic function of the target, exp(-|t|²/2), is nothing there. So t is drawn as a random
direction times one length between 0 and 3.

Compared on scikit-learn's digits (8x8 pixels, no download): an untrained encoder, one trained for
invariance alone, with the pull by `ncfd_loss`, with SIGReg, and no encoder at all (pixels). Judged
by a linear classifier on frozen embeddings, and by their singular values: as many as there are
dimensions, or few (collapse). Takes about 45 seconds of one core; `README.md` beside this file says
what came out.

Written to the output directory: results.json, embeddings.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import ncfd
from ncfd.functional import ncfd_loss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# ------------------------------------------------------------------------------------------------
# The loss
# ------------------------------------------------------------------------------------------------


#: What is added for two views (2, N, D) of the same images, with its weight.
Regulariser = Callable[[Tensor, torch.Generator], Tensor]


def pull(options: argparse.Namespace) -> Regulariser:
    """By `ncfd_loss`, at frequencies of one length for each direction."""

    def regulariser(views: Tensor, generator: torch.Generator) -> Tensor:
        dim = views.shape[-1]
        t = frequencies(options.num_frequencies, dim, generator).to(views.device)
        normal = Independent(Normal(views.new_zeros(dim), views.new_ones(dim)), 1)
        # Each view by itself has to be normal. Without bias: the noise of a batch would otherwise
        # reward embeddings more concentrated than the target.
        values = [ncfd_loss(normal, view, t, squared=True, unbiased=True) for view in views]
        return options.weight * torch.stack(values).mean()

    return regulariser


def sigreg(options: argparse.Namespace) -> Regulariser:
    """By `ncfd.SIGReg`, which averages over views itself."""
    module = ncfd.SIGReg(options.num_slices)
    return lambda views, generator: options.sigreg_weight * module(views, generator)


def frequencies(num: int, dim: int, generator: torch.Generator, longest: float = 3.0) -> Tensor:
    """Directions uniform on the sphere, lengths uniform up to `longest`: (num, dim)."""
    directions = F.normalize(torch.randn(num, dim, generator=generator), dim=1)
    return directions * torch.rand(num, 1, generator=generator) * longest


def train(
    images: Tensor, regulariser: Regulariser | None, options: argparse.Namespace
) -> "Trained":
    """Embed by invariance, and by what keeps embeddings from collapsing if there is any."""
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)  # PyTorch's own generator sets the weights of the layers
    encoder = make_encoder(options.dim).to(images.device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    history = []
    for _ in range(options.steps):
        chosen = torch.randint(len(images), (options.batch,), generator=generator)
        batch = images[chosen.to(images.device)]
        # One pass for both views.
        both = encoder(torch.cat([augment(batch, generator), augment(batch, generator)]))
        views = both.view(2, len(batch), -1)
        invariance = (views[0] - views[1]).square().mean()
        pulled = invariance.new_zeros(()) if regulariser is None else regulariser(views, generator)
        optimizer.zero_grad()
        (invariance + pulled).backward()
        optimizer.step()
        schedule.step()
        history.append((invariance.item(), pulled.item()))
    return Trained(calibrated(encoder, images), history)


@dataclass
class Trained:
    encoder: nn.Module
    history: list[tuple[float, float]]  # invariance, and what was added


def make_encoder(dim: int, width: int = 32) -> nn.Sequential:
    """(N, 1, 8, 8) -> (N, dim). The last layer is free to shrink to nothing."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * width, 128), nn.BatchNorm1d(128), nn.ReLU()),
        nn.Linear(128, dim),
    )


def calibrated(encoder: nn.Sequential, images: Tensor) -> nn.Sequential:
    """The encoder ready for use, its batch norms set to the statistics of `images`."""
    for layer in encoder:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 1.0  # the next batch replaces what was seen before
    with torch.no_grad():
        encoder.train()(images)
    return encoder.eval()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image (N, 1, 8, 8): turn, scale and shift, brightness, noise, hole."""
    N = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(N, *shape).uniform_(low, high, generator=generator)

    angle, size, shift = uniform(-0.25, 0.25), uniform(0.85, 1.15), uniform(-0.25, 0.25, 2)
    cos, sin = angle.cos() * size, angle.sin() * size
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(N, 2, 3)
    grid = F.affine_grid(maps, images.shape, align_corners=False).to(images.device)
    view = F.grid_sample(images, grid, align_corners=False)
    view = view * uniform(0.7, 1.3, 1, 1, 1).to(view)
    view = view + 0.1 * torch.randn(view.shape, generator=generator).to(view)
    corner = torch.randint(0, 7, (N, 2), generator=generator)  # of a hole of 2x2 pixels
    offset = torch.arange(8) - corner[:, :, None]  # (N, 2, 8)
    inside = (offset >= 0) & (offset < 2)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]  # (N, 8, 8)
    return view.masked_fill(hole[:, None].to(view.device), 0.0)


# ------------------------------------------------------------------------------------------------
# Judging it
# ------------------------------------------------------------------------------------------------


def embed(encoder: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return encoder(images).double().cpu().numpy()


def judge(z: np.ndarray, data: "Digits", z_held: np.ndarray) -> dict[str, Any]:
    """Linear probe, singular values and distance from a standard normal of embeddings."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(z, data.train_y)
    centred = z_held - z_held.mean(0)
    # Over √N: the standard deviations along the main axes, all 1 for a standard normal.
    singular = np.linalg.svd(centred, compute_uv=False) / np.sqrt(len(z_held))
    share = singular**2 / max((singular**2).sum(), 1e-300)
    entropy = -(share * np.log(share.clip(1e-300))).sum()
    return {
        "accuracy": 100 * probe.score(z_held, data.held_y),
        "singular_values": singular.tolist(),
        "effective_rank": float(np.exp(entropy)),  # D if all are alike, 1 if one is left
    }


class Digits:
    """Training images, and held-out ones that nothing is trained on."""

    def __init__(self, held_out: str, device: torch.device) -> None:
        x, y = load_digits(return_X_y=True)
        rest, test, rest_y, test_y = train_test_split(
            x, y, test_size=400, random_state=0, stratify=y
        )
        train, val, train_y, val_y = train_test_split(
            rest, rest_y, test_size=300, random_state=0, stratify=rest_y
        )
        held, self.held_y = (test, test_y) if held_out == "test" else (val, val_y)
        self.train_y = train_y
        self.train, self.held = (
            torch.as_tensor(part / 16, dtype=torch.float32, device=device).view(-1, 1, 8, 8)
            for part in (train, held)
        )


# ------------------------------------------------------------------------------------------------
# Running it
# ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Self-supervised embeddings of digits, pulled towards a normal or not.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dim", type=int, default=16, help="D, size of the embeddings")
    parser.add_argument("--weight", type=float, default=50.0, help="of the pull by ncfd_loss")
    parser.add_argument("--num-frequencies", type=int, default=256, help="F, new in each step")
    parser.add_argument("--sigreg-weight", type=float, default=0.05, help="of SIGReg")
    parser.add_argument("--num-slices", type=int, default=256, help="of SIGReg, new in each step")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out",
        choices=("test", "validation"),
        default="test",
        help="where to measure; options are to be chosen on validation",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/regularise_embeddings"))
    options = parser.parse_args(arguments)
    options.output_dir = options.output_dir.expanduser()
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    data = Digits(options.held_out, device)

    clock = time.perf_counter()
    torch.manual_seed(options.seed)
    untrained = Trained(calibrated(make_encoder(options.dim).to(device), data.train), [])
    trained = {
        "untrained": untrained,
        "invariance": train(data.train, None, options),
        "invariance + pull": train(data.train, pull(options), options),
        "invariance + SIGReg": train(data.train, sigreg(options), options),
    }
    seconds = time.perf_counter() - clock

    held = {name: embed(t.encoder, data.held) for name, t in trained.items()}
    rows = {
        name: judge(embed(t.encoder, data.train), data, held[name]) for name, t in trained.items()
    }
    pixels = [part.flatten(1).double().cpu().numpy() for part in (data.train, data.held)]
    rows["pixels, no encoder"] = judge(pixels[0], data, pixels[1])
    results = {
        "held_out": options.held_out,
        "rows": rows,
        "history": {name: t.history for name, t in trained.items()},
        "seconds": seconds,
        "versions": {"torch": torch.__version__, "ncfd": ncfd.__version__},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(held, data, rows, options)
    show(results, options)
    return results


def draw(
    held: dict[str, np.ndarray],
    data: Digits,
    rows: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Singular values, and the two main axes of each kind of embedding on one scale."""
    figure, axes = plt.subplots(1, 1 + len(held), figsize=(18, 3.6), layout="constrained")
    for name in held:
        axes[0].semilogy(
            range(1, options.dim + 1), rows[name]["singular_values"], "o-", ms=3, label=name
        )
    axes[0].axhline(1, color="k", lw=0.5)
    axes[0].set(title="singular values / √N", xlabel="axis")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    for axis, (name, z) in zip(axes[1:], held.items(), strict=True):
        centred = z - z.mean(0)
        main_axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        points = centred @ main_axes.T
        colours = axis.scatter(*points.T, c=data.held_y, cmap="tab10", s=6, vmin=-0.5, vmax=9.5)
        axis.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title=f"{name}: main axes")
    figure.colorbar(colours, ax=axes[-1], ticks=range(10), label="digit")
    figure.savefig(options.output_dir / "embeddings.png", dpi=120)
    plt.close(figure)


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"Measured on {options.held_out} images, embeddings of {options.dim} dimensions:\n")
    print(f"{'':22s}{'linear probe / %':>18s}{'effective rank':>16s}{'singular values':>24s}")
    for name, row in results["rows"].items():
        high, low = max(row["singular_values"]), min(row["singular_values"])
        spread = f"{low:.2g} to {high:.2g}"
        print(f"{name:22s}{row['accuracy']:18.1f}{row['effective_rank']:16.1f}{spread:>24s}")
    print(f"\n{results['seconds']:.0f} s of training. Written to {options.output_dir}")


if __name__ == "__main__":
    main()
