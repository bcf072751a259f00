"""Digits: the phase term near a match, the loss under half precision, the phase in half types."""

import torch
from _figure import plt, record, save

from ncfd.functional import cf_discrepancy, ncfd_loss

GAPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def phase_errors() -> dict[str, list[float]]:
    """Relative error in float32 of the phase term, written plainly and as in the package."""
    g = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(4096, generator=g, dtype=torch.float64)
    modulus = 0.1 + 0.9 * torch.rand(4096, generator=g, dtype=torch.float64)
    rows: dict[str, list[float]] = {"2(|φx||φy| - Re z)": [], "cf_discrepancy": []}
    for gap in GAPS:
        x = torch.polar(modulus, angle)
        y = torch.polar(modulus, angle + gap)
        # The truth belongs to the rounded inputs, which float32 receives.
        x32, y32 = x.to(torch.complex64), y.to(torch.complex64)
        true = cf_discrepancy(x32.to(torch.complex128), y32.to(torch.complex128), alpha=0.0)
        z = (x32 * y32.conj()).real
        plain = 2 * (x32.abs() * y32.abs() - z)
        for name, value in (
            ("2(|φx||φy| - Re z)", plain),
            ("cf_discrepancy", cf_discrepancy(x32, y32, alpha=0.0)),
        ):
            error = ((value.double() - true).abs() / true).median().item()
            rows[name].append(float(f"{error:.2g}"))
    return rows


def half_precision() -> dict[str, float]:
    """Root loss of two nearly equal sets, phases in bfloat16 and as the package forms them."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(256, 2048, generator=g), dim=1)
    y = torch.nn.functional.normalize(x + 1e-4 * torch.randn(x.shape, generator=g), dim=1)
    t = torch.randn(1024, 2048, generator=g)
    true = ncfd_loss(x.double(), y.double(), t.double()).item()
    with torch.autocast("cpu", torch.bfloat16):
        island = ncfd_loss(x, y, t).item()
        naive = []
        for v in (x, y):
            theta = v @ t.T  # bfloat16, and so is all that follows from it
            naive.append(torch.complex(theta.cos().mean(0).float(), theta.sin().mean(0).float()))
    plain = cf_discrepancy(*naive).sqrt().mean().item()
    return {
        "float64": float(f"{true:.4g}"),
        "ncfd_loss under bfloat16 autocast": float(f"{island:.4g}"),
        "the plain lines under bfloat16 autocast": float(f"{plain:.4g}"),
    }


def main() -> None:
    """Measure, and draw the first of the two."""
    errors = phase_errors()
    record(
        "precision",
        phase_gap=GAPS,
        relative_error_of_the_phase_term_float32=errors,
        root_loss_of_nearly_equal_sets=half_precision(),
    )

    def draw(colours: dict[str, str]):
        figure, axis = plt.subplots(figsize=(4.6, 2.7))
        for key, (name, row) in zip("ba", errors.items(), strict=True):
            axis.loglog(GAPS, row, "o-", color=colours[key], ms=3.5, label=name)
        axis.set(xlabel="phase gap (radians)", title="relative error of the phase term, float32")
        axis.set_yticks([1e-6, 1e-4, 1e-2, 1], ["1e-6", "1e-4", "1 %", "100 %"])
        axis.minorticks_off()
        axis.legend(fontsize=8.5)
        return figure

    save("precision", draw)


if __name__ == "__main__":
    main()
