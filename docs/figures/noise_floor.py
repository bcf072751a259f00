"""Two samples of one distribution do not give zero: the floor, and what stands out of it."""

import torch
from _figure import plt, record, save

from ncfd.functional import ncfd_loss

D, F, REPEATS = 8, 1024, 20
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
SHIFTS = (0.0, 1.0, 3.0)
SCALES = (1.0, 0.35)


def measure(scale: float, g: torch.Generator) -> dict[str, list[float]]:
    """Mean over the repeats of the root loss for each shift, and of the two squared forms."""
    means: dict[str, list[float]] = {}
    for n in SIZES:
        rows: dict[str, float] = {}
        for _ in range(REPEATS):
            t = scale * torch.randn(F, D, generator=g)
            x, y = torch.randn(n, D, generator=g), torch.randn(n, D, generator=g)
            values = {f"root, shift {s:g}": ncfd_loss(x, y + s / D**0.5, t) for s in SHIFTS}
            values["squared, shift 0"] = ncfd_loss(x, y, t, squared=True)
            values["unbiased, shift 0"] = ncfd_loss(x, y, t, squared=True, unbiased=True)
            for name, value in values.items():
                rows[name] = rows.get(name, 0.0) + value.item() / REPEATS
        for name, value in rows.items():
            means.setdefault(name, []).append(round(value, 5))
    return means


def main() -> None:
    """Root loss over N for two scales of the frequencies, for equal and for shifted samples."""
    g = torch.Generator().manual_seed(0)
    means = {scale: measure(scale, g) for scale in SCALES}
    record(
        "noise_floor",
        D=D,
        F=F,
        repeats=REPEATS,
        samples_on_each_side=SIZES,
        mean_loss={f"scale {scale:g}": value for scale, value in means.items()},
    )

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), sharey=True)
        for axis, (scale, values) in zip(axes, means.items(), strict=True):
            for key, s in zip("acb", SHIFTS, strict=True):
                label = "equal" if s == 0 else f"shifted by {s:g}"
                axis.loglog(
                    SIZES,
                    values[f"root, shift {s:g}"],
                    "o-",
                    color=colours[key],
                    ms=3.5,
                    label=label,
                )
            axis.set(xlabel="samples on each side", title=f"root loss, scale {scale:g}")
            axis.set_xticks([16, 64, 256, 1024], ["16", "64", "256", "1024"])
            axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
            axis.minorticks_off()
        axes[0].legend(fontsize=8.5, loc="lower left")
        figure.tight_layout(w_pad=2)
        return figure

    save("noise_floor", draw)


if __name__ == "__main__":
    main()
