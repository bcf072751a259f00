"""How the gradient behaves near the match: the root keeps pushing, the square lets go."""

import torch
from _figure import plt, record, save

import ncfd
from ncfd.functional import ncfd_loss

D, N, F = 16, 2048, 512
SHIFTS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def main() -> None:
    """Norm of the gradient with respect to a common shift of one set."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=g)
    y = torch.randn(N, D, generator=g)
    torch.manual_seed(0)
    t = ncfd.GaussianFrequencies(D, F, scale=0.3)()
    direction = torch.ones(D) / D**0.5
    slopes: dict[str, dict[str, list[float]]] = {}
    for name, other in (("one sample shifted", x), ("two samples", y)):
        for kind, options in (("root", {}), ("squared", {"squared": True})):
            row = []
            for size in SHIFTS:
                shift = (size * direction).requires_grad_()
                ncfd_loss(x, other + shift, t, **options).backward()
                row.append(float(f"{(shift.grad @ direction).item():.3g}"))
            slopes.setdefault(name, {})[kind] = row
    record("root_or_squared", D=D, N=N, F=F, shift=SHIFTS, slope_along_the_shift=slopes)

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.7), sharey=True)
        for axis, (name, rows) in zip(axes, slopes.items(), strict=True):
            for key, (kind, row) in zip("ab", rows.items(), strict=True):
                axis.loglog(SHIFTS, [abs(v) for v in row], "o-", color=colours[key], ms=3.5)
                axis.text(0.1, abs(row[3]) * 0.42, kind, color=colours[key])
            axis.set(xlabel="remaining shift", title=name)
            axis.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
            axis.set_yticks([1e-3, 1e-2, 1e-1], ["0.001", "0.01", "0.1"])
            axis.minorticks_off()
        axes[0].set_ylabel("slope of the loss")
        figure.tight_layout(w_pad=1.5)
        return figure

    save("root_or_squared", draw)


if __name__ == "__main__":
    main()
