"""What α weighs: the same points moved by the amplitude term, by both, and by the phase term."""

import torch
from _figure import plt, record, save

import ncfd

POINTS, STEPS = 80, 800
ALPHAS = (0.0, 0.5, 1.0)


def main() -> None:
    """Match a small, displaced cloud to a wide one for three weights."""
    g = torch.Generator().manual_seed(0)
    real = torch.randn(600, 2, generator=g) * torch.tensor([1.2, 0.7]) + torch.tensor([1.5, 1.0])
    start = 0.3 * torch.randn(POINTS, 2, generator=g) - torch.tensor([0.5, 0.3])
    frequencies = ncfd.GaussianFrequencies(2, 256, scale=0.8)
    results = {}
    torch.manual_seed(0)
    for alpha in ALPHAS:
        y = start.clone().requires_grad_()
        loss = ncfd.NCFDLoss(frequencies, alpha=alpha, squared=True)
        optimizer = torch.optim.Adam([y], lr=0.05)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(real, y).backward()
            optimizer.step()
        results[alpha] = y.detach()

    def summary(v: torch.Tensor) -> dict[str, list[float]]:
        return {
            "mean": [round(a, 2) for a in v.mean(0).tolist()],
            "standard deviation": [round(a, 2) for a in v.std(0).tolist()],
        }

    record(
        "alpha",
        points=POINTS,
        steps=STEPS,
        real=summary(real),
        start=summary(start),
        **{f"alpha {a:g}": summary(y) for a, y in results.items()},
    )
    names = {0.0: "α = 0, phase only", 0.5: "α = 0.5", 1.0: "α = 1, amplitude only"}

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 4, figsize=(8.2, 2.3), sharex=True, sharey=True)
        panels = {"start": start} | {names[a]: y for a, y in results.items()}
        for axis, (title, points) in zip(axes, panels.items(), strict=True):
            axis.plot(*real[:170].T, ".", color=colours["faint"], ms=3, mew=0)
            axis.plot(*points.T, "o", color=colours["b"], ms=3.4, mew=0)
            axis.set(aspect="equal", xticks=[], yticks=[], title=title)
            axis.set(xlim=(-3.4, 5), ylim=(-3, 3.6))
            for spine in axis.spines.values():
                spine.set_visible(False)
        figure.tight_layout(w_pad=0.6)
        return figure

    save("alpha", draw)


if __name__ == "__main__":
    main()
