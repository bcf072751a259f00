"""Sixty free points matched to a ring of clusters: by their mean, and by their distribution."""

import math

import torch
from _figure import plt, record, save

import ncfd
from ncfd.functional import gaussian_ncfd

POINTS, STEPS = 60, 400


def ring(count: int, g: torch.Generator) -> torch.Tensor:
    """Six clusters on a circle of radius 2."""
    angle = torch.randint(6, (count,), generator=g) * (math.pi / 3)
    centres = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.18 * torch.randn(count, 2, generator=g)


def match(kind: str, start: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Move the points down the loss, against fresh real batches."""
    y = start.clone().requires_grad_()
    loss = ncfd.NCFDLoss(ncfd.GaussianFrequencies(2, 256, scale=1.5), squared=True)
    optimizer = torch.optim.Adam([y], lr=0.05)
    for _ in range(STEPS):
        x = ring(512, g)
        optimizer.zero_grad()
        value = (x.mean(0) - y.mean(0)).square().sum() if kind == "mean" else loss(x, y)
        value.backward()
        optimizer.step()
    return y.detach()


def main() -> None:
    """The real points, both results, and their distances to the real distribution."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    start = 0.5 * torch.randn(POINTS, 2, generator=g) + torch.tensor([1.0, -0.5])
    results = {kind: match(kind, start, g) for kind in ("mean", "ncfd")}
    test = ring(4000, g)
    record(
        "matching",
        points=POINTS,
        steps=STEPS,
        squared_loss_at_scale_1_5={
            "start": gaussian_ncfd(test, start, 1.5).item(),
            **{kind: gaussian_ncfd(test, y, 1.5).item() for kind, y in results.items()},
            "60 fresh real points": gaussian_ncfd(test, ring(POINTS, g), 1.5).item(),
        },
    )
    real = ring(220, g)

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.7), sharex=True, sharey=True)
        panels = {
            "start": (start, "60 free points"),
            "mean": (results["mean"], "after matching means"),
            "ncfd": (results["ncfd"], "after matching distributions"),
        }
        for axis, (points, title) in zip(axes, panels.values(), strict=True):
            axis.plot(*real.T, ".", color=colours["faint"], ms=3, mew=0, alpha=0.8)
            axis.plot(*points.T, "o", color=colours["b"], ms=4.2, mew=0)
            axis.set(aspect="equal", xticks=[], yticks=[], title=title)
            axis.set(xlim=(-2.9, 2.9), ylim=(-2.7, 2.7))
            for spine in axis.spines.values():
                spine.set_visible(False)
        figure.tight_layout(w_pad=0.5)
        return figure

    save("matching", draw)


if __name__ == "__main__":
    main()
