"""How much of the loss and of its gradient is the draw of the frequencies."""

import torch
from _figure import plt, record, save

import ncfd
from ncfd.functional import gaussian_ncfd, ncfd_loss

D, N, M, DRAWS = 32, 256, 40, 40
SIZES = (4, 16, 64, 256, 1024)
METHODS = ("random", "orthogonal", "sobol")
SCALES = (0.5, 1.0, 3.0)


def rms(values: list[torch.Tensor]) -> float:
    """Root mean square, two digits."""
    return float(f"{torch.stack(values).square().mean().sqrt().item():.2g}")


def main() -> None:
    """Relative error over draws of the squared loss and of its gradient, on unit rows."""
    torch.manual_seed(0)  # for the samplers' draws
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(N, D, generator=g).relu(), dim=1)
    y = torch.nn.functional.normalize(torch.randn(M, D, generator=g).abs() + 0.2, dim=1)
    y.requires_grad_()
    spread: dict[str, dict[str, dict[str, list[float]]]] = {"loss": {}, "gradient": {}}
    for scale in SCALES:
        exact = gaussian_ncfd(x, y, scale)
        (slope,) = torch.autograd.grad(exact, y)
        for method in METHODS:
            rows: dict[str, list[float]] = {"loss": [], "gradient": []}
            for size in SIZES:
                sampler = ncfd.GaussianFrequencies(D, size, scale=scale, method=method)
                errors: dict[str, list[torch.Tensor]] = {"loss": [], "gradient": []}
                for _ in range(DRAWS):
                    value = ncfd_loss(x, y, sampler(), squared=True)
                    (gradient,) = torch.autograd.grad(value, y)
                    errors["loss"].append((value / exact - 1).detach())
                    errors["gradient"].append((gradient - slope).norm() / slope.norm())
                for name, row in rows.items():
                    row.append(rms(errors[name]))
            for name, row in rows.items():
                spread[name].setdefault(f"scale {scale:g}", {})[method] = row
    record("frequency_noise", D=D, N=N, M=M, draws=DRAWS, F=SIZES, relative_error_rms=spread)

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 3, figsize=(7.8, 3.0), sharey=True)
        for axis, scale in zip(axes, SCALES, strict=True):
            for key, method in zip("abc", METHODS, strict=True):
                for name, line in (("loss", "o-"), ("gradient", "o:")):
                    row = spread[name][f"scale {scale:g}"][method]
                    label = method if name == "loss" else None
                    axis.loglog(SIZES, row, line, color=colours[key], ms=3.2, label=label)
            axis.axvline(D, color=colours["faint"], lw=0.8, ls=":")
            axis.set(xlabel="frequencies F", title=f"scale {scale:g}")
            axis.set_xticks(SIZES, [str(s) for s in SIZES])
            axis.set_yticks([0.01, 0.1, 1, 10], ["1 %", "10 %", "100 %", "1000 %"])
            axis.minorticks_off()
        axes[0].set_ylabel("error by the draw")
        axes[0].legend(fontsize=8.5, loc="lower left")
        figure.tight_layout(w_pad=1)
        return figure

    save("frequency_noise", draw)


if __name__ == "__main__":
    main()
