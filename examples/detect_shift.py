"""Is the new batch drawn like the old one, and along which direction and frequency do they differ?

    python examples/detect_shift.py
    python examples/detect_shift.py --old old.npy --new new.npy

`ncfd.two_sample_test` compares the characteristic functions of two sets of samples and says, by
permutation, how often chance alone would make them differ as much. A characteristic function is
made of waves, so the answer comes with reasons: the direction in feature space along which the sets
differ most, the wavelength at which they do, and whether the difference is one of phase (the new
batch has moved) or of amplitude (it has become wider, narrower, or otherwise shaped).

Shown on scikit-learn's digits (8x8 pixels, no download). The old batch holds 900 of them, the new
one 700 others, to which one of these has happened:

    nothing         as it should be: found in about 5 % of the repetitions at the level of 5 %
    half the size   the same, with 350 of them
    a bright row    a sensor adds 1 of its 16 grey levels to the fourth row
    noise           normal noise of 1.5 grey levels on every pixel
    less contrast   every pixel times 0.9
    no eights       one of the ten classes is missing

Each is repeated on new splits. The table counts how often it is found, by this test, by a t-test on
the mean of all pixels, the number that people tend to watch, and by one test for each pixel
(Kolmogorov and Smirnov, corrected for their number). The picture shows, for the split of the median
p-value, the direction drawn as an image, both batches projected on it, and their characteristic
functions there. The direction is the one where these two batches differ most, so along it they do
even where nothing has happened: the p-value says whether that means anything.

With --old and --new, two arrays (N, D) of your own are compared in the same way; float64 stays
float64, of more axes all but the first become one. The digits take
about 15 seconds of one core; `README.md` beside this file says what came out.

Written to the output directory: results.json, shift.png.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

import ncfd
from ncfd.functional import characteristic_function
from ncfd.two_sample import TwoSampleTestResult, two_sample_test

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LEVEL = 0.05

# ------------------------------------------------------------------------------------------------
# What can happen to a batch
# ------------------------------------------------------------------------------------------------

SHIFTS = ("nothing", "half the size", "a bright row", "noise", "less contrast", "no eights")


def happen(shift: str, x: Tensor, digit: Tensor, generator: torch.Generator) -> Tensor:
    """What is left of images ``x`` (N, 64), in grey levels from 0 to 16, after `shift`."""
    match shift:
        case "half the size":
            return x[::2]
        case "a bright row":
            row = torch.zeros(8, 8)
            row[3] = 1
            return x + row.flatten()
        case "noise":
            return x + 1.5 * torch.randn(x.shape, generator=generator)
        case "less contrast":
            return 0.9 * x
        case "no eights":
            return x[digit != 8]
    return x


def batches(
    shift: str, old_size: int, new_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """An old batch (N, 64) as it is, and other digits to which `shift` has happened."""
    images, digit = load_digits(return_X_y=True)
    images, digit = torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(digit)
    order = torch.randperm(len(images), generator=generator)
    old, new = order[:old_size], order[old_size : old_size + new_size]
    return images[old], happen(shift, images[new], digit[new], generator)


# ------------------------------------------------------------------------------------------------
# What else could have found it
# ------------------------------------------------------------------------------------------------


def mean_test(old: np.ndarray, new: np.ndarray) -> float:
    """p-value of the t-test on one number, the mean of a sample's features."""
    a, b = old.mean(1), new.mean(1)
    if np.ptp(a) == np.ptp(b) == 0:  # the statistic is a division by 0
        return float(a[0] == b[0])
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def feature_test(old: np.ndarray, new: np.ndarray) -> float:
    """p-value of Kolmogorov and Smirnov on every feature, the smallest times their number."""
    features = zip(old.T, new.T, strict=True)
    smallest = min(stats.ks_2samp(a, b, method="asymp").pvalue for a, b in features)
    return float(min(1.0, smallest * old.shape[1]))


# ------------------------------------------------------------------------------------------------
# Running it
# ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Whether, where and how a new batch differs from an old one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--old", type=Path, help="array (N, D) in a .npy file, instead of digits")
    parser.add_argument("--new", type=Path, help="array (M, D) in a .npy file")
    parser.add_argument("--old-size", type=int, default=900, help="N, for digits")
    parser.add_argument("--new-size", type=int, default=700, help="M, for digits")
    parser.add_argument("--repetitions", type=int, default=20, help="new splits of the digits")
    parser.add_argument("--permutations", type=int, default=299)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/detect_shift"))
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():  # a shell leaves the ~ of --option=~/x
        if isinstance(value, Path):
            setattr(options, name, value.expanduser())
    if (options.old is None) != (options.new is None):
        parser.error("--old and --new come together")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    if options.old is not None:
        cases = {f"{options.new.name} after {options.old.name}": compare_files(options)}
    else:
        cases = {shift: compare_digits(shift, options) for shift in SHIFTS}
    results = {
        "cases": {name: numbers for name, (numbers, _) in cases.items()},
        "seconds": time.perf_counter() - clock,
        "versions": {"torch": torch.__version__, "ncfd": ncfd.__version__},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw({name: seen for name, (_, seen) in cases.items()}, options)
    show(results, cases, options)
    return results


# Old batch, new batch, and what the test says of them.
Seen = tuple[Tensor, Tensor, TwoSampleTestResult]


def test(old: Tensor, new: Tensor, seed: int, options: argparse.Namespace) -> TwoSampleTestResult:
    return two_sample_test(
        old.to(options.device),
        new.to(options.device),
        n_permutations=options.permutations,
        seed=seed,
    )


def compare_digits(shift: str, options: argparse.Namespace) -> tuple[dict[str, Any], Seen]:
    """Repeat on new splits; the one of the median p-value is looked at in detail."""
    pvalues: dict[str, list[float]] = {"ncfd": [], "mean": [], "features": []}
    seen: list[Seen] = []
    for k in range(options.repetitions):
        seed = options.seed + k
        generator = torch.Generator().manual_seed(seed)
        old, new = batches(shift, options.old_size, options.new_size, generator)
        result = test(old, new, seed, options)
        pvalues["ncfd"].append(result.pvalue)
        pvalues["mean"].append(mean_test(old.numpy(), new.numpy()))
        pvalues["features"].append(feature_test(old.numpy(), new.numpy()))
        seen.append((old, new, result))
    seen.sort(key=lambda case: case[2].pvalue)
    typical = seen[(len(seen) - 1) // 2]
    return {**describe(typical[2]), "pvalues": pvalues}, typical


def read(file: Path, option: str) -> Tensor:
    """Rows (N, D) of a .npy file: float64 stays, integers become it, the rest is float32.

    Raises:
        ValueError: there is no such array, or a number in it cannot be compared; says which.
    """
    try:
        x = np.load(file.expanduser())  # never runs code from the file
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if "allow_pickle" in str(error):
            reason = "it holds Python objects, or is no .npy file; numbers are needed"
        raise ValueError(f"{option} {file} cannot be read: {reason}") from error
    if not isinstance(x, np.ndarray):
        x.close()
        names = ", ".join(x.files[:5]) or "nothing"
        raise ValueError(
            f"{option} {file} is an archive of arrays ({names}); save one with numpy.save"
        )
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{option} {file} must hold real numbers; its dtype is {x.dtype}")
    if x.ndim < 1 or len(x) < 2 or x.size == 0:
        raise ValueError(f"{option} {file} must have two rows at least; its shape is {x.shape}")
    x = x.reshape(len(x), -1)
    finite = np.isfinite(x)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"{option} {file} must be finite; row {row}, column {column} is {x[row, column]}, and "
            f"{(~finite).sum() - 1} more are not"
        )
    wide = x.dtype.kind in "iu" or x.dtype.itemsize > 4
    x = np.ascontiguousarray(x, dtype=np.float64 if wide else np.float32)
    return torch.from_numpy(x)


def compare_files(options: argparse.Namespace) -> tuple[dict[str, Any], Seen]:
    old, new = (read(getattr(options, side), f"--{side}") for side in ("old", "new"))
    if old.shape[1] != new.shape[1]:
        raise ValueError(
            f"--old {options.old} has {old.shape[1]} numbers a row, --new {options.new} has "
            f"{new.shape[1]}; they must agree"
        )
    # The wider of the two types. Seconds since 1970 and the like do not fit into float32.
    dtype = torch.promote_types(old.dtype, new.dtype)
    old, new = old.to(dtype), new.to(dtype)
    result = test(old, new, options.seed, options)
    pvalues = {
        "ncfd": [result.pvalue],
        "mean": [mean_test(old.numpy(), new.numpy())],
        "features": [feature_test(old.numpy(), new.numpy())],
    }
    return {**describe(result), "pvalues": pvalues}, (old, new, result)


def describe(result: TwoSampleTestResult) -> dict[str, Any]:
    strongest = int(result.top(1))
    return {
        "pvalue": result.pvalue,
        "discrepancy": result.discrepancy,
        "direction": result.direction.tolist(),
        "direction_share": result.direction_share,
        "phase_share": result.phase_share,
        "wavelength": 2 * math.pi / result.frequencies[strongest].norm().item(),
    }


# ------------------------------------------------------------------------------------------------
# Showing it
# ------------------------------------------------------------------------------------------------


def draw(cases: dict[str, Seen], options: argparse.Namespace) -> None:
    """A row for each case: direction, projections on it, characteristic functions along it."""
    figure, axes = plt.subplots(
        len(cases),
        3,
        figsize=(10, 2.2 * len(cases) + 0.6),
        width_ratios=(1, 2, 2),
        layout="constrained",
        squeeze=False,
    )
    for row, (name, (old, new, result)) in zip(axes, cases.items(), strict=True):
        direction = result.direction.cpu()
        D = len(direction)
        if D == 64 and options.old is None:
            most = direction.abs().max().item()
            row[0].imshow(direction.view(8, 8).numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
            row[0].set(xticks=[], yticks=[])
        else:
            row[0].bar(range(D), direction.numpy())
        row[0].set_ylabel(f"{name}\np = {result.pvalue:.3g}")

        center = torch.cat([old, new]).mean(0)
        sides = [(x - center) @ direction for x in (old, new)]
        low, high = torch.cat(sides).min().item(), torch.cat(sides).max().item()
        if low == high:  # nothing varies
            low, high = low - 0.5, high + 0.5
        bins = np.linspace(low, high, 31)
        for side, label in zip(sides, ("old", "new"), strict=True):
            row[1].hist(side.numpy(), bins, density=True, histtype="step", label=label)

        # Up to where even the wider batch has nothing left to show.
        longest = 4 / (max(side.std().item() for side in sides) or 1.0)
        s = torch.linspace(0, longest, 200)
        grid = s.numpy()
        phi = [characteristic_function(side[:, None], s[:, None]) for side in sides]
        for value, label in zip(phi, ("|φ| old", "|φ| new"), strict=True):
            row[2].plot(grid, value.abs().numpy(), lw=1, label=label)
        gap = (phi[0] - phi[1]).abs()
        row[2].plot(grid, gap.numpy(), "k", lw=1, label="|φ old - φ new|")
        noise = math.sqrt(1 / len(old) + 1 / len(new))
        row[2].axhline(noise, color="k", ls=":", lw=1, label="its noise")
        row[2].set_ylim(0, 1)
    axes[0, 0].set_title("direction" + ("\n(red: more in the new)" if options.old is None else ""))
    axes[0, 1].set_title("samples projected on it")
    axes[-1, 1].set_xlabel("grey levels" if options.old is None else "units of the data")
    axes[0, 1].legend(frameon=False)
    axes[0, 2].set_title("characteristic functions along it")
    axes[0, 2].legend(frameon=False, fontsize="small")
    axes[-1, 2].set_xlabel("frequency, radians per unit")
    figure.savefig(options.output_dir / "shift.png", dpi=100)
    plt.close(figure)


def show(
    results: dict[str, Any],
    cases: dict[str, tuple[dict[str, Any], Seen]],
    options: argparse.Namespace,
) -> None:
    if options.old is not None:
        for numbers, (_, _, result) in cases.values():
            print(result)
            mean, features = (numbers["pvalues"][key][0] for key in ("mean", "features"))
            print(f"For comparison: t-test on the mean of the features, p-value {mean:.3g};")
            print(f"the most telling feature alone, by their number, p-value {features:.3g}")
        print(f"\nWritten to {options.output_dir}")
        return
    splits = f"found in % of {options.repetitions} splits by"
    print(f"{options.old_size} old and {options.new_size} new digits.\n")
    print(f"{'':42s}{splits:>38s}")
    print(f"{'':15s}{'p-value':>8s}{'line':>6s}{'phase':>6s}{'wave':>7s}", end="")
    print(f"{'this test':>12s}{'overall mean':>14s}{'each pixel':>12s}")
    for name, case in results["cases"].items():
        print(f"{name:15s}{case['pvalue']:8.3f}", end="")
        if case["pvalue"] <= LEVEL:
            print(f"{case['direction_share']:6.0%}{case['phase_share']:6.0%}", end="")
            print(f"{case['wavelength']:7.1f}", end="")
        else:
            print(f"{'-':>6s}{'-':>6s}{'-':>7s}", end="")
        found = {key: 100 * np.mean(np.array(p) <= LEVEL) for key, p in case["pvalues"].items()}
        print(f"{found['ncfd']:12.0f}{found['mean']:14.0f}{found['features']:12.0f}")
    print("\nOf the split with the median p-value. line: share of the difference along its main")
    print("direction; phase: share of it that is location; wave: wavelength of the strongest")
    print("frequency, in grey levels.")
    print(f"\n{results['seconds']:.0f} s. Written to {options.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
