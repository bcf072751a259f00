"""A generative adversarial network whose critic compares characteristic functions.

    python examples/train_gan.py
    python examples/train_gan.py --dataset cifar10 --data-dir PATH --device cuda --steps 20000
    python examples/train_gan.py --dataset imagefolder --data-dir PATH --image-size 64

Three networks play for one number, the discrepancy `ncfd.NCFDLoss` between the features of real and
of generated images:

    noise -> generator -> images -> critic -> features \\
                            real -> critic -> features  -> discrepancy
                                            ψ -> frequencies /

The generator lowers it. The critic, which decides what is looked at, and ψ, which decides at which
frequencies, raise it. The critic could raise it without end by blowing up its features until every
sample is told from every other, so its steepness is held: each generated image is moved in the
direction that raises the discrepancy fastest, and the rise must not be faster than 1. This gradient
penalty differentiates the loss twice.

The loss of the game says little about progress, since both sides move. So an independent number is
followed: `gaussian_ncfd` (half a squared kernel MMD) between generated and held-out real pixels,
beside what real training images score, which is the best to be had from a finite sample.

The default, scikit-learn's digits (8x8 pixels, no download), takes about 45 seconds of one core.
`README.md` beside this file says what came out. For colour images the pixel distance is a coarse
judge; take features of a trained network there.

Written to the output directory: results.json, samples.png, curve.png, generator.pt.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn
from tqdm import tqdm

import ncfd
from ncfd.functional import gaussian_ncfd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# ------------------------------------------------------------------------------------------------
# The game
# ------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """Noise (N, latent) -> images (N, channels, size, size) in [-1, 1]; size is 4 · 2^k."""

    def __init__(self, latent: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        layers = [nn.Linear(latent, 16 * width), nn.Unflatten(1, (width, 4, 4))]
        for _ in range(doublings(size)):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Upsample(scale_factor=2)]
            layers += [nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.latent = latent

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


class Critic(nn.Module):
    """Images -> features (N, dim). No batch norm: the penalty is about each image by itself."""

    def __init__(self, channels: int, size: int, width: int, dim: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(doublings(size)):
            layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def doublings(size: int) -> int:
    count = (size // 4).bit_length() - 1
    if size != 4 << count or count < 1:
        raise ValueError(f"--image-size must be 8, 16, 32, 64, ..., got {size}")
    return count


def critic_step(
    critic: Critic,
    ncfd_loss: ncfd.NCFDLoss,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    weight: float,
) -> dict[str, float]:
    """Raise the discrepancy by the critic, within the bound on the steepness, and move ψ.

    ψ raises the same discrepancy, or with `adversary="signal"` what it is paid for then.
    """
    fake = fake.detach().requires_grad_()
    loss = ncfd_loss(critic(real), critic(fake))
    # The loss is a mean over the images: one of them alone moves it by 1/M of its own slope.
    (slope,) = torch.autograd.grad(loss, fake, create_graph=True)
    steepness = len(fake) * slope.flatten(1).norm(dim=1)
    penalty = (steepness - 1).relu().square().mean()
    optimizer.zero_grad()
    (weight * penalty - loss).backward()
    if ncfd_loss.adversary is not None:
        # ψ's ascent is inside the loss, and the minus that is for the critic has undone it.
        for p in ncfd_loss.parameters():
            if p.grad is not None:
                p.grad.neg_()
    optimizer.step()
    return {"loss": loss.item(), "steepness": steepness.mean().item()}


def generator_step(
    critic: Critic,
    ncfd_loss: ncfd.NCFDLoss,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
) -> None:
    """Lower the discrepancy. Critic and ψ get gradients too, which nobody uses."""
    with torch.no_grad():
        target = critic(real)
    loss = ncfd_loss(target, critic(fake))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(data: "Images", judge: "Judge", options: argparse.Namespace) -> "Trained":
    device = data.train.device
    draws = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)  # weights of the layers, and the frequencies that ψ draws
    channels, size = data.train.shape[1:3]
    generator = Generator(options.latent, channels, size, options.width).to(device)
    critic = Critic(channels, size, options.width, options.dim).to(device)
    # ψ moves with the critic and in its direction, in a step of their own: on the loss without an
    # adversary inside it.
    psi = ncfd.FrequencySampler(
        options.dim, options.num_frequencies, scale=options.scale, max_ratio=options.max_ratio
    )
    adversary = None if options.adversary == "loss" else options.adversary
    ncfd_loss = ncfd.NCFDLoss(psi, adversary=adversary).to(device)
    generator_optimizer = torch.optim.Adam(
        generator.parameters(), lr=options.lr_generator, betas=(0.5, 0.99)
    )
    critic_optimizer = torch.optim.Adam(
        [*critic.parameters(), *ncfd_loss.parameters()], lr=options.lr_critic, betas=(0.5, 0.99)
    )
    # What is shown and judged is a running mean of the generator's weights: the game circles.
    average = copy.deepcopy(generator).requires_grad_(False)

    def noise(count: int) -> Tensor:
        return torch.randn(count, options.latent, generator=draws).to(device)

    def batch() -> Tensor:
        chosen = torch.randint(len(data.train), (options.batch,), generator=draws)
        return data.train[chosen.to(device)]

    fixed_noise = noise(len(judge.held))
    done = Trained(average, [], [], {"loss": [], "steepness": []}, psi)
    looks = {round(k * options.steps / options.looks) for k in range(options.looks + 1)}
    for step in tqdm(range(options.steps + 1), desc="training", disable=options.quiet):
        if step in looks:
            with torch.no_grad():
                samples = average(fixed_noise)
            done.curve.append((step, judge(samples)))
            done.samples.append((step, samples[:48].cpu()))
        if step == options.steps:
            break
        for _ in range(options.critic_steps):
            with torch.no_grad():
                fake = generator(noise(options.batch))
            seen = critic_step(critic, ncfd_loss, critic_optimizer, batch(), fake, options.penalty)
        generator_step(
            critic, ncfd_loss, generator_optimizer, batch(), generator(noise(options.batch))
        )
        for name, value in seen.items():
            done.game[name].append(value)
        with torch.no_grad():
            rate = 1 / min(step + 2, options.average)  # a plain mean at first
            for mean, now in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(now, rate)
            for mean, now in zip(average.buffers(), generator.buffers(), strict=True):
                mean.copy_(now)
    return done


@dataclass
class Trained:
    generator: Generator
    curve: list[tuple[int, float]]  # step, discrepancy to the held-out images
    samples: list[tuple[int, Tensor]]  # step, images of the same noise
    game: dict[str, list[float]]  # what the critic saw in each step
    psi: ncfd.FrequencySampler


# ------------------------------------------------------------------------------------------------
# An independent judge
# ------------------------------------------------------------------------------------------------


class Judge:
    """Discrepancy of images to held-out real ones, in pixels, and what real images would score.

    Frequencies of three widths around the inverse median distance, all of them in closed form: no
    random frequencies, hence no noise from them.
    """

    def __init__(self, train: Tensor, held: Tensor) -> None:
        self.held = held
        some = train[:500].flatten(1)
        unit = 1 / torch.pdist(some).median()
        self.scales = unit * torch.tensor([[1.0], [2.0], [4.0]], device=held.device)
        self.scales = self.scales.expand(3, some.shape[1])
        generator = torch.Generator().manual_seed(0)
        scores = []
        for _ in range(20):
            order = torch.randperm(len(train), generator=generator)[: len(held)]
            scores.append(self(train[order.to(held.device)]))
        self.floor = torch.tensor(scores)

    def __call__(self, images: Tensor) -> float:
        return gaussian_ncfd(self.held.flatten(1), images.flatten(1), self.scales).item()


# ------------------------------------------------------------------------------------------------
# Images
# ------------------------------------------------------------------------------------------------


@dataclass
class Images:
    train: Tensor  # (N, channels, size, size) in [-1, 1]
    validation: Tensor
    test: Tensor


def load(options: argparse.Namespace) -> Images:
    """Training images, and two sets of held-out ones: to choose options by, and to report."""
    shuffle = torch.Generator().manual_seed(0)
    if options.dataset == "digits":
        from sklearn.datasets import load_digits

        x = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
        x = x[torch.randperm(len(x), generator=shuffle)]
        parts = (x[:1197], x[1197:1497], x[1497:])
    else:
        import torchvision
        from torchvision.transforms import v2

        if options.data_dir is None:
            raise SystemExit(f"--dataset {options.dataset} needs --data-dir")
        size = options.image_size
        transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RGB(),
                v2.Resize(size, antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5], [0.5]),
            ]
        )
        if options.dataset == "cifar10":
            train, test = (
                torchvision.datasets.CIFAR10(options.data_dir, part, transform, download=True)
                for part in (True, False)
            )
        else:
            train, test = (
                torchvision.datasets.ImageFolder(options.data_dir / part, transform)
                for part in ("train", "test")
            )
        train, test = (torch.stack([image for image, _ in part]) for part in (train, test))
        train = train[torch.randperm(len(train), generator=shuffle)]
        test = test[torch.randperm(len(test), generator=shuffle)]
        held = min(1000, len(train) // 5)
        parts = (train[held:], train[:held], test[:1000])
    return Images(*(part.to(options.device) for part in parts))


# ------------------------------------------------------------------------------------------------
# Running it
# ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A generator and a critic with a characteristic function loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", choices=("digits", "cifar10", "imagefolder"), default="digits")
    parser.add_argument(
        "--data-dir", type=Path, help="imagefolder: train/<class>/*, test/<class>/*"
    )
    parser.add_argument("--image-size", type=int, default=32, help="not for digits, which have 8")
    parser.add_argument("--steps", type=int, default=1000, help="of the generator")
    parser.add_argument("--critic-steps", type=int, default=1, help="for each of the generator")
    parser.add_argument("--batch", type=int, default=128, help="real and generated images each")
    parser.add_argument("--latent", type=int, default=16, help="size of the noise")
    parser.add_argument("--width", type=int, default=32, help="channels of the networks")
    parser.add_argument("--dim", type=int, default=16, help="features of the critic")
    parser.add_argument("--num-frequencies", type=int, default=128)
    parser.add_argument("--scale", type=float, default=0.5, help="initial frequencies of ψ")
    parser.add_argument(
        "--max-ratio", type=float, default=4.0, help="factor by which ψ may leave --scale"
    )
    parser.add_argument(
        "--adversary",
        choices=("loss", "signal"),
        default="loss",
        help="what ψ raises: the discrepancy, or its part beyond the noise of the real images "
        "where these carry signal; default: %(default)s",
    )
    parser.add_argument("--penalty", type=float, default=10.0, help="weight of the penalty")
    parser.add_argument("--lr-generator", type=float, default=2e-3)
    parser.add_argument("--lr-critic", type=float, default=2e-3, help="of the critic and ψ")
    parser.add_argument("--average", type=int, default=100, help="steps that the mean remembers")
    parser.add_argument("--looks", type=int, default=20, help="measurements on the way")
    parser.add_argument(
        "--held-out",
        choices=("test", "validation"),
        default="test",
        help="images of the judge; options are to be chosen on validation",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/train_gan"))
    options = parser.parse_args(arguments)
    options.output_dir = options.output_dir.expanduser()
    if options.data_dir is not None:
        options.data_dir = options.data_dir.expanduser()
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    data = load(options)
    judge = Judge(data.train, getattr(data, options.held_out))
    clock = time.perf_counter()
    trained = train(data, judge, options)
    seconds = time.perf_counter() - clock

    # For comparison, each pixel from another training image: right alone, wrong together.
    generator = torch.Generator().manual_seed(options.seed)
    flat = data.train.flatten(1)
    rows = torch.randint(len(flat), (len(judge.held), flat.shape[1]), generator=generator)
    mixed = flat.gather(0, rows.to(flat.device))
    results = {
        "curve": trained.curve,
        "final": trained.curve[-1][1],
        "floor": {"mean": judge.floor.mean().item(), "std": judge.floor.std().item()},
        "independent_pixels": judge(mixed),
        "game": trained.game,
        "scales": scales(trained.psi, options),
        "seconds": seconds,
        "versions": {"torch": torch.__version__, "ncfd": ncfd.__version__},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    torch.save(trained.generator.state_dict(), options.output_dir / "generator.pt")
    draw_samples(trained, data.train, options)
    draw_curve(trained, judge, results, options)
    show(results, options)
    return results


def scales(psi: ncfd.FrequencySampler, options: argparse.Namespace) -> list[float]:
    """Where ψ has taken the widths of its frequencies: 10 %, 50 % and 90 % quantile."""
    with torch.no_grad():
        values = psi.scales(torch.Generator(options.device).manual_seed(options.seed))
    return values.flatten().quantile(torch.tensor([0.1, 0.5, 0.9]).to(values)).tolist()


def draw_samples(trained: Trained, real: Tensor, options: argparse.Namespace) -> None:
    """Grids of the same noise at five moments, and of real images."""
    picked = [trained.samples[round(k * (len(trained.samples) - 1) / 4)] for k in range(5)]
    grids = [(f"step {step}", images) for step, images in picked]
    grids.append(("real", real[:48].cpu()))
    figure, axes = plt.subplots(1, len(grids), figsize=(2.4 * len(grids), 3.5), layout="tight")
    for axis, (title, images) in zip(axes, grids, strict=True):
        axis.imshow(tile(images, columns=6).squeeze(-1).numpy(), cmap="gray")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(options.output_dir / "samples.png", dpi=120)
    plt.close(figure)


def tile(images: Tensor, columns: int) -> Tensor:
    """(N, channels, size, size) in [-1, 1] -> one image (H, W, channels) in [0, 1], with gaps."""
    images = nn.functional.pad(
        images[: len(images) // columns * columns] / 2 + 0.5, (0, 1, 0, 1), value=1
    )
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, channels, size, size)
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def draw_curve(
    trained: Trained, judge: Judge, results: dict[str, Any], options: argparse.Namespace
) -> None:
    """Left the independent judge with the floor, right the game."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="tight")
    steps, values = zip(*trained.curve, strict=True)
    left.semilogy(steps, values, "o-", ms=3, label="generated")
    left.axhline(results["independent_pixels"], color="C1", ls="--", label="independent pixels")
    floor = judge.floor
    left.axhspan(floor.min().item(), floor.max().item(), color="C2", alpha=0.4, lw=0)
    left.axhline(floor.mean().item(), color="C2", label="training images (20 draws)")
    left.set(xlabel="step", title=f"½ MMD² to held-out images ({options.held_out}), pixels")
    left.legend(frameon=False)
    for name, values in trained.game.items():
        right.plot(values, lw=0.7, label={"loss": "NCFDLoss"}.get(name, name))
    right.axhline(1, color="k", lw=0.5)
    right.set(xlabel="step", title="the game, as the critic sees it", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(options.output_dir / "curve.png", dpi=120)
    plt.close(figure)


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    floor = results["floor"]
    rows = [
        ("generated, before training", results["curve"][0][1], ""),
        ("independent pixels", results["independent_pixels"], ""),
        ("generated, after training", results["final"], ""),
        ("training images (the floor)", floor["mean"], f" ± {1e3 * floor['std']:.2f}"),
    ]
    print(f"\n½ MMD² to {options.held_out} images, pixels, in 1e-3:\n")
    for name, value, spread in rows:
        print(f"  {name:28s}{1e3 * value:9.2f}{spread}")
    low, middle, high = results["scales"]
    print(f"\nψ: widths of the frequencies {low:.2f}, {middle:.2f}, {high:.2f} ", end="")
    print(f"(10, 50, 90 % quantile), {options.scale:g} at the start")
    print(f"{results['seconds']:.0f} s for {options.steps} steps. Written to {options.output_dir}")


if __name__ == "__main__":
    main()
