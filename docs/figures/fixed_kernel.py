"""Two densities that differ by a fine ripple: what a fixed kernel weighs away, what ψ finds."""

import torch
from _figure import plt, record, save

import ncfd
from ncfd.functional import gaussian_ncfd, ncfd_loss

RIPPLE, DEPTH, N = 7.0, 0.9, 1000


def rippled(count: int, generator: torch.Generator) -> torch.Tensor:
    """Normal density times 1 + DEPTH cos(RIPPLE x), by rejection."""
    x = torch.randn(4 * count, 1, generator=generator)
    keep = torch.rand(4 * count, 1, generator=generator) * (1 + DEPTH) < 1 + DEPTH * torch.cos(
        RIPPLE * x
    )
    return x[keep][:count].unsqueeze(1)


def learned_scale(x: torch.Tensor, y: torch.Tensor, start: float) -> float:
    """Where ascent of the unbiased exact loss leads from ``start``, within a factor of 8."""
    sampler = ncfd.GaussianFrequencies(1, 1, scale=start, learnable=True, max_ratio=8.0)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.05, maximize=True)
    for _ in range(100):
        optimizer.zero_grad()
        gaussian_ncfd(x, y, sampler.scales(), unbiased=True).backward()
        optimizer.step()
    return sampler.scales().item()


def floor(scale: float, count: int, generator: torch.Generator) -> float:
    """95 % point of the unbiased squared loss between two samples of one law."""
    values = [
        gaussian_ncfd(
            torch.randn(count, 1, generator=generator),
            torch.randn(count, 1, generator=generator),
            scale,
            unbiased=True,
        )
        for _ in range(40)
    ]
    return torch.stack(values).quantile(0.95).item()


def main() -> None:
    """Densities, |Δφ| with the weight of two kernels, and the values of the loss."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 1, generator=g), rippled(N, g)
    half = N // 2
    scale = learned_scale(x[:half], y[:half], 3.0)
    held = x[half:], y[half:]
    grid = torch.linspace(0, 12, 241).unsqueeze(1)
    gap = ncfd_loss(x, y, grid, squared=True, reduction="none").mul(2).sqrt()
    record(
        "fixed_kernel",
        samples=N,
        ripple_frequency=RIPPLE,
        learned_scale={
            "started at 3": round(scale, 2),
            "started at 1": round(learned_scale(x[:half], y[:half], 1.0), 2),
        },
        unbiased_squared_loss_of_the_other_half={
            f"scale {s:.1f}": {
                "x against y": gaussian_ncfd(*held, s, unbiased=True).item(),
                "95 % of equal laws": floor(s, half, g),
            }
            for s in (1.0, scale)
        },
    )

    def draw(colours: dict[str, str]):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7), width_ratios=[1, 1.2])
        u = torch.linspace(-3.3, 3.3, 400)
        normal = torch.exp(-0.5 * u**2) / (2 * torch.pi) ** 0.5
        left.plot(u, normal, color=colours["a"], label="x, normal")
        left.plot(u, normal * (1 + DEPTH * torch.cos(RIPPLE * u)), color=colours["b"], label="y")
        left.set(yticks=[], title="two densities")
        left.spines["left"].set_visible(False)
        left.legend(loc="upper right", fontsize=8.5)
        t = grid[:, 0]
        right.plot(t, gap, color=colours["text"], lw=1.2, label="|φx - φy|, 1 000 samples")
        for key, s, label in (("a", 1.0, "weight, scale 1"), ("b", scale, f"learned, {scale:.1f}")):
            weight = torch.exp(-0.5 * (t / s) ** 2)
            right.fill_between(t, 0, 0.45 * weight, color=colours[key], alpha=0.25, lw=0)
            right.plot(t, 0.45 * weight, color=colours[key], lw=1, label=label)
        right.set(xlabel="frequency t", title="where they differ", yticks=[0, 0.2, 0.4])
        right.legend(loc="upper right", fontsize=8.5)
        right.set(ylim=(0, 0.85), xlim=(0, 12))
        figure.tight_layout(w_pad=2)
        return figure

    save("fixed_kernel", draw)


if __name__ == "__main__":
    main()
