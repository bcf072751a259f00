"""What ψ learns on a toy in the plane: to look across the stripes, at their spacing."""

import torch
from _figure import plt, record, save

import ncfd

STEPS, FRAMES, PERIOD = 300, (0, 60, 300), 1.0


def real_batch(count: int, g: torch.Generator) -> torch.Tensor:
    """Stripes: seven narrow bands in the second coordinate."""
    band = torch.randint(-3, 4, (count,), generator=g) * PERIOD
    across = band + 0.09 * torch.randn(count, generator=g)
    return torch.stack([1.5 * torch.randn(count, generator=g), across], 1)


def synthetic_batch(count: int, g: torch.Generator) -> torch.Tensor:
    """The same rectangle without the stripes."""
    across = (torch.rand(count, generator=g) - 0.5) * 7 * PERIOD
    return torch.stack([1.5 * torch.randn(count, generator=g), across], 1)


def main() -> None:
    """Train ψ alone, and keep its frequencies at three moments."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    psi = ncfd.FrequencySampler(2, 512, scale=1.5, max_ratio=6.0, hidden_dim=32)
    loss = ncfd.NCFDLoss(psi)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    drawn, scales, values = [], [], []
    for step in range(STEPS + 1):
        if step in FRAMES:
            with torch.no_grad():
                drawn.append(psi(torch.Generator().manual_seed(1)))
                scales.append(psi.scales(torch.Generator().manual_seed(1)).mean(0).tolist())
        optimizer.zero_grad()
        # The gradient reversal inside turns this descent into an ascent of the loss.
        value = loss(real_batch(512, g), synthetic_batch(512, g))
        value.backward()
        optimizer.step()
        values.append(value.item())
    x, y = real_batch(1500, g), synthetic_batch(1500, g)
    record(
        "learned_frequencies",
        steps=STEPS,
        frames=FRAMES,
        mean_scales=[[round(v, 2) for v in s] for s in scales],
        loss_first_and_last_ten=[round(sum(values[:10]) / 10, 4), round(sum(values[-10:]) / 10, 4)],
    )

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 4, figsize=(8.2, 2.35))
        axes[0].plot(*y[:240].T, ".", color=colours["b"], ms=2.6, mew=0, label="synthetic")
        axes[0].plot(*x[:240].T, ".", color=colours["a"], ms=3, mew=0, label="real")
        axes[0].set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), title="the two sets")
        for axis, t, step in zip(axes[1:], drawn, FRAMES, strict=True):
            for sign in (-1, 1):
                axis.axhline(sign * 2 * torch.pi / PERIOD, color=colours["b"], lw=0.9, ls="--")
            axis.plot(*t[:230].T, ".", color=colours["a"], ms=3, mew=0)
            axis.set(xlim=(-14, 14), ylim=(-14, 14), title=f"frequencies, step {step}")
            axis.set(xticks=[-10, 0, 10], yticks=[-10, 0, 10])
        for axis in axes:
            axis.set_aspect("equal")
        figure.tight_layout(w_pad=0.8)
        return figure

    save("learned_frequencies", draw)


if __name__ == "__main__":
    main()
