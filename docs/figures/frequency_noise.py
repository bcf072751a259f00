"""How much of the loss is the draw of the frequencies: over F, the method and the scale."""

import torch
from _figure import plt, record, save

import ncfd
from ncfd.functional import gaussian_ncfd, ncfd_loss

D, N, DRAWS = 32, 256, 60
SIZES = (4, 16, 64, 256, 1024)
METHODS = ("random", "orthogonal", "sobol")
SCALES = (0.2, 0.5, 1.0)


def main() -> None:
    """Relative standard deviation over draws of the squared loss, on unit rows."""
    torch.manual_seed(0)  # for the samplers' draws
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(N, D, generator=g).relu(), dim=1)
    y = torch.nn.functional.normalize(torch.randn(N, D, generator=g).abs() + 0.2, dim=1)
    spread: dict[str, dict[str, list[float]]] = {}
    for scale in SCALES:
        exact = gaussian_ncfd(x, y, scale).item()
        for method in METHODS:
            row = []
            for size in SIZES:
                sampler = ncfd.GaussianFrequencies(D, size, scale=scale, method=method)
                values = [ncfd_loss(x, y, sampler(), squared=True).item() for _ in range(DRAWS)]
                deviation = torch.tensor(values) / exact - 1
                row.append(round(deviation.square().mean().sqrt().item(), 5))
            spread.setdefault(f"scale {scale:g}", {})[method] = row
    record("frequency_noise", D=D, N=N, draws=DRAWS, F=SIZES, relative_error_rms=spread)

    def draw(colours: dict[str, str]):
        figure, axes = plt.subplots(1, 3, figsize=(7.8, 2.6), sharey=True)
        for axis, scale in zip(axes, SCALES, strict=True):
            for key, method in zip("abc", METHODS, strict=True):
                row = spread[f"scale {scale:g}"][method]
                axis.loglog(SIZES, row, "o-", color=colours[key], ms=3.5, label=method)
            axis.axvline(D, color=colours["faint"], lw=0.8, ls=":")
            axis.set(xlabel="frequencies F", title=f"scale {scale:g}")
            axis.set_xticks(SIZES, [str(s) for s in SIZES])
            axis.set_yticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
            axis.minorticks_off()
        axes[0].set_ylabel("error of the loss")
        axes[2].legend(fontsize=8.5)
        figure.tight_layout(w_pad=1)
        return figure

    save("frequency_noise", draw)


if __name__ == "__main__":
    main()
