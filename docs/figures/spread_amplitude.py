"""A wider sample spreads around the circle, and its mean, φ, becomes short."""

import math

import torch
from _figure import plt, save

from ncfd.functional import characteristic_function

SPREADS = (0.3, 1.0, 2.2)


def main() -> None:
    """Three circles, and |φ| over t for the same three spreads."""
    noise = torch.randn(80, 1, generator=torch.Generator().manual_seed(1))
    noise = (noise - noise.mean()) / noise.std()
    grid = torch.linspace(0, 3, 121).unsqueeze(1)

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 4, figsize=(7.6, 2.15), width_ratios=[1, 1, 1, 1.5])
        angle = torch.linspace(0, 2 * math.pi, 200)
        for axis, spread, key in zip(axes, SPREADS, "abc", strict=False):
            x = spread * noise + 0.8
            phi = complex(characteristic_function(x, torch.ones(1, 1)))
            axis.plot(angle.cos(), angle.sin(), color=colours["faint"], lw=0.8)
            axis.plot(x.cos(), x.sin(), ".", color=colours[key], ms=5, alpha=0.6, mew=0)
            axis.annotate(
                "",
                (phi.real, phi.imag),
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": colours["text"], "lw": 2},
            )
            axis.set(aspect="equal", xticks=[], yticks=[], xlabel=f"|φ(1)| = {abs(phi):.2f}")
            axis.set_title(f"spread {spread:g}")
            for spine in axis.spines.values():
                spine.set_visible(False)
            modulus = characteristic_function(x, grid).abs()
            axes[3].plot(grid[:, 0], modulus, color=colours[key], label=f"{spread:g}")
        axes[3].set(xlabel="frequency t", title="|φ(t)|", ylim=(0, 1.03), xlim=(0, 3))
        axes[3].axvline(1, color=colours["faint"], lw=0.8, ls=":")
        figure.tight_layout(w_pad=1.2)
        return figure

    save("spread_amplitude", draw)


if __name__ == "__main__":
    main()
