"""A shift of the sample turns its characteristic function by the angle t·shift."""

import math

import torch
from _figure import plt, save

from ncfd.functional import characteristic_function

T, SHIFT = 1.0, 1.2


def main() -> None:
    """Draw the unit circle with the sample on it, before and after a shift."""
    x = 0.55 * torch.randn(60, 1, generator=torch.Generator().manual_seed(3)) + 0.35
    t = torch.tensor([[T]])
    samples = {"x": x, f"x + {SHIFT}": x + SHIFT}
    phi = {name: complex(characteristic_function(v, t)) for name, v in samples.items()}

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), width_ratios=[1.25, 1])
        line, circle = axes
        for k, (colour, (name, v)) in enumerate(zip("ab", samples.items(), strict=True)):
            line.plot(v[:, 0], [-k] * len(v), "|", ms=13, color=colours[colour], alpha=0.75)
            line.text(-1.6, -k, name, color=colours[colour], va="center", ha="right")
        line.annotate(
            "",
            (v.mean().item(), -0.62),
            (x.mean().item(), -0.62),
            arrowprops={"arrowstyle": "->", "color": colours["text"]},
        )
        line.text((x.mean() + v.mean()).item() / 2, -0.56, f"shift {SHIFT}", ha="center")
        line.set(yticks=[], ylim=(-1.7, 0.6), xlim=(-1.5, 3.2), title="the samples on the line")
        line.spines["left"].set_visible(False)

        angle = torch.linspace(0, 2 * math.pi, 200)
        circle.plot(angle.cos(), angle.sin(), color=colours["faint"], lw=0.8)
        for colour, (name, v) in zip("ab", samples.items(), strict=True):
            circle.plot(
                (T * v).cos(), (T * v).sin(), ".", color=colours[colour], ms=5, alpha=0.6, mew=0
            )
            end = phi[name]
            circle.annotate(
                "",
                (end.real, end.imag),
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": colours[colour], "lw": 2.2},
            )
        first = math.atan2(phi["x"].imag, phi["x"].real)
        turn = torch.linspace(first, first + T * SHIFT, 40)
        circle.plot(0.45 * turn.cos(), 0.45 * turn.sin(), color=colours["text"], lw=1)
        middle = first + T * SHIFT / 2
        circle.text(0.57 * math.cos(middle), 0.57 * math.sin(middle), "t · shift", ha="left")
        circle.set(
            aspect="equal", xticks=[], yticks=[], title=f"exp(i t x) and its mean, t = {T:g}"
        )
        for spine in circle.spines.values():
            spine.set_visible(False)
        return figure

    save("phase_turn", draw)


if __name__ == "__main__":
    main()
