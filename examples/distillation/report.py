"""What a run leaves behind: the distilled set with its loader, figures, `results.json`, a page."""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import ncfd

from . import formation
from .checkpoint import write_bytes
from .data import Data
from .diagnosis import Diagnosis
from .history import History
from .wording import fenced, forgiven, markdown, shown

try:
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.figure import Figure
except ImportError:  # a run on a bare machine does without its pictures
    mpl = None

# ------------------------------------------------------------------------------------------------
# The distilled set
# ------------------------------------------------------------------------------------------------


def save_distilled(
    path: Path,
    images: Tensor,
    labels: Tensor,
    data: Data,
    *,
    factor: int,
    soft_labels: Tensor | None = None,
    **about: Any,
) -> None:
    """Write stored images in [0, 1] and labels, with all that is needed to use them.

    The metadata of the file are JSON strings: `mean` and `std` (one number a channel, of the
    training images in [0, 1]), `factor` (ρ), `class_names`, `decode`, and whatever is in `about`.
    `soft_labels` (N·ρ², C) belong to the decoded images.
    """
    metadata = {
        "mean": data.mean.flatten().tolist(),
        "std": data.std.flatten().tolist(),
        "factor": factor,
        "class_names": data.class_names,
        "decode": "cut into factor x factor parts, enlarge each bilinearly to the full size",
        "dataset": data.name,
        **about,
    }
    tensors = {"images": images.cpu().contiguous(), "labels": labels.cpu().contiguous()}
    if soft_labels is not None:
        tensors["soft_labels"] = soft_labels.cpu().contiguous()
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata=texts))


def read_distilled(path: Path | str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return stored images in [0, 1], their labels, and the metadata.

    Raises:
        ValueError: not a file of `save_distilled`; says what is missing.
    """
    try:
        with safe_open(path, "pt") as file:
            info = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            present = {"images", "labels"} & {*file.keys()}
            missing = {"images", "labels"} - present
            missing |= {"mean", "std", "factor", "class_names", "dataset"} - {*info}
            if missing:
                raise ValueError(
                    f"{path} is no distilled set: it lacks {', '.join(sorted(missing))}"
                )
            return file.get_tensor("images"), file.get_tensor("labels"), info
    except SafetensorError as error:
        raise ValueError(f"{path} is no distilled set, or damaged ({error})") from error


def read_soft_labels(path: Path | str) -> Tensor | None:
    """Return the probabilities (N·ρ², C) stored for the decoded images, if any."""
    with safe_open(path, "pt") as file:
        return file.get_tensor("soft_labels") if "soft_labels" in file.keys() else None  # noqa: SIM118 - no `in`


def load_distilled(path: Path | str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return images ready for training (decoded, normalised), labels, and the metadata."""
    images, labels, info = read_distilled(path)
    mean, std = (torch.tensor(info[name])[:, None, None] for name in ("mean", "std"))
    images = (formation.decode(images, info["factor"]) - mean) / std
    return images, labels.repeat_interleave(info["factor"] ** 2), info


# ------------------------------------------------------------------------------------------------
# Figures
# ------------------------------------------------------------------------------------------------


def drawable(name: str, number: int) -> str:
    """Return the name of a class as a picture can have it: by its number, if the font lacks it."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    name = shown(name)
    return name if all(font.get_char_index(ord(c)) for c in name) else f"class {number}"


def save_grid(path: Path, images: Tensor, labels: Tensor, class_names: list[str]) -> None:
    """Draw images (N, channels, H, W) in [0, 1], one row a class, at most 10 by 10 of them."""
    rows = []
    for c in labels.unique()[:10].tolist():
        rows.append((drawable(class_names[c], c), images[labels == c][:10].cpu()))
    columns = max(len(row) for _, row in rows)
    cell = min(1.6, max(0.8, 6 / columns))  # inches
    # Without pyplot: no global state, and no window system to look for.
    width, height = cell * columns + 1.1, cell * len(rows) + 0.05
    figure = Figure(figsize=(width, height))
    # One system of axes in inches for all of them: making one takes longer than drawing an image.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    for r, (name, row) in enumerate(rows):
        bottom = height - cell * (r + 1)
        for k, image in enumerate(row):
            left = 1.05 + cell * k
            place = (left, left + 0.96 * cell, bottom, bottom + 0.96 * cell)
            pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
            axes.imshow(
                pixels,
                extent=place,
                aspect="auto",
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
        axes.text(
            0.97,
            bottom + cell / 2,
            name[:14],
            ha="right",
            va="center",
            fontsize=8,
            parse_math=False,  # a dollar sign in a name is one
        )
    figure.savefig(path, dpi=110)


def save_plots(folder: Path, history: History, floors: dict[str, float]) -> list[Path]:
    """Draw the curves there are numbers for. Returns the files."""
    series = {name: (np.array(s), np.array(v)) for name, (s, v) in history.series.items()}
    written = []

    def draw(name: str, title: str, ylabel: str, lines: dict[str, str], log: bool = False) -> None:
        present = {key: label for key, label in lines.items() if key in series}
        if not present:
            return
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for key, label in present.items():
            steps, values = series[key]
            dense = len(steps) > 150
            colour = axes.plot(steps, values, lw=1, alpha=0.3 if dense else 1.0)[0].get_color()
            if dense:  # one value an iteration is noisy: show the mean of 1/30 of the run over it
                window = len(values) // 30
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                axes.plot(steps[window - 1 :], smooth, lw=1.8, color=colour, label=label)
            else:
                axes.lines[-1].set_label(label)
        if name == "noise_floor":
            for label, value in floors.items():
                axes.axhline(value, color="0.4", lw=1, ls=":" if "synthetic" in label else "--")
                axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), fontsize=7,
                              ha="right", va="bottom", color="0.3")  # fmt: skip
        if log:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="iteration", ylabel=ylabel)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        path = folder / f"{name}.png"
        with forgiven(path):
            figure.savefig(path, dpi=110)
            written.append(path)

    draw(
        "losses",
        "Matching loss while both players move",
        "loss, mean over classes",
        {"loss/matching": "in each iteration: changing real images, extractor, frequencies"},
    )
    draw(
        "players",
        "Each player alone, on held-out images and a fixed extractor",
        "loss, mean over classes",
        {
            "probe/images": "images now, frequencies of the start (image player lowers)",
            "probe/sampler": "images of the start, frequencies now (ψ raises)",
            "probe/both": "images now, frequencies now (the game)",
        },
    )
    draw(
        "signal",
        "J: what is left to find where real images carry signal, held out",
        "J, mean over classes",
        {
            "signal/now": "images now, frequencies now",
            "signal/start": "images now, frequencies of the start",
        },
    )
    draw(
        "gradients",
        "Gradient norms",
        "norm",
        {"gradient/images": "images", "gradient/sampler": "ψ"},
        log=True,
    )
    draw(
        "calibration",
        "Cross-entropy of the synthetic images under the trained extractor",
        "nats",
        {"loss/calibration": "cross-entropy"},
    )
    draw(
        "scale",
        "Scale of the frequencies",
        "radians per unit of the features",
        {
            "scale/highest": "largest coordinate scale",
            "scale/mean": "mean",
            "scale/rms": "root mean square",
            "scale/lowest": "smallest",
        },
    )
    draw(
        "noise_floor",
        "|φ| of real images at the frequencies in use",
        "|φ|",
        {
            "phi/quantile_90": "90 % of frequencies lie below",
            "phi/median": "median",
            "phi/quantile_10": "10 % of frequencies lie below",
        },
        log=True,
    )
    return written


def save_accuracy_plot(path: Path, curves: dict[str, list[list[list[float]]]]) -> None:
    """Draw test (full) and validation (dotted) accuracy of the evaluation networks."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in curves.items():
        mean = np.array(runs).mean(0)  # (looks, 3)
        line = axes.plot(mean[:, 0], mean[:, 1], marker="o", ms=4, label=f"{name}, test")[0]
        axes.plot(mean[:, 0], mean[:, 2], ls=":", color=line.get_color(), label=f"{name}, held out")
    axes.set(title="Networks trained on the small set alone", xlabel="epoch", ylabel="accuracy, %")
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)


# ------------------------------------------------------------------------------------------------
# Figures in numbers
# ------------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """Return a name a reader can compare timings by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Return the versions that can change a result."""
    return {
        "ncfd": ncfd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "matplotlib": mpl.__version__ if mpl else "none",
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    write_bytes(path, (json.dumps(results, indent=2) + "\n").encode())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def accuracies(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was found about the set in question and those beside it."""
    accuracy = results["accuracy"]

    def text(a: dict[str, Any]) -> str:
        spread = f" ± {a['std']:.1f}" * (len(a["runs"]) > 1)  # one network has none
        return f"{a['mean']:.1f}{spread} %"

    rows = [
        (f"test accuracy, last epoch ({_count(len(accuracy['runs']), 'network')})", text(accuracy)),
        ("test accuracy, best epoch looked at", f"{accuracy['best_epoch_mean']:.1f} %"),
        ("validation accuracy, last epoch", f"{accuracy['validation_mean']:.1f} %"),
    ]
    rows += [
        (f"{name}, not the headline: test accuracy, last epoch", text(summary))
        for name, summary in results.get("refined", {}).items()
    ]
    rows += [
        (f"baseline {name}: test accuracy, last epoch", text(baseline))
        for name, baseline in results["baselines"].items()
    ]
    rows += [
        (f"with {name}: test accuracy, last epoch", text(summary))
        for name, summary in results["cross_architecture"].items()
    ]
    rows += [
        (f"without augmentation, {name}: last epoch", text(summary))
        for name, summary in results.get("without_augmentation", {}).items()
    ]
    rows += [
        (f"{name.replace('_', '-')} score, 0 to 1", f"{found['score']:.3f}")
        for name, found in results["scores"].items()
    ]
    return rows


def table(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures shown at the end of a run and on its page."""
    timing = results["timing"]
    rows = accuracies(results)
    if results["zoo_validation_accuracies"]:
        mean = float(np.mean(results["zoo_validation_accuracies"]))
        rows.append(("zoo members on validation images", f"{mean:.1f} %"))
    distilled = f"{timing['distill_seconds']:.1f} s"
    per_iteration = f"{timing['seconds_per_iteration']:.3f} s/iteration"
    # What was finished before is taken over; its time is not known any more.
    part = ", the part after --resume" * results["resumed"]
    reused = results["zoo_members_from_cache"]
    members = f", {reused} of {len(results['zoo_validation_accuracies'])} members from the cache"
    rows += [
        ("storage at one byte a value", f"{results['storage_bytes']:,} bytes"),
        (f"zoo{members * bool(reused)}{part}", f"{timing['pretrain_seconds']:.1f} s"),
        ("distillation", f"{distilled} ({per_iteration})"),
        (f"evaluation{part}", f"{timing['evaluate_seconds']:.1f} s"),
        ("peak memory", f"{results['peak_memory_bytes'] / 2**20:,.0f} MiB"),
    ]
    return rows


def _about(data: dict[str, Any]) -> str:
    """Say in a sentence how much data there was."""
    least, most = data["train_per_class"]
    each = f"{least}" if least == most else f"{least} to {most}"
    return (
        f"Data: {_count(data['train'], 'training image')} of {data['classes']} classes, {each} of "
        f"each, {data['validation']} held out for validation, "
        f"{_count(data['test'], 'test image')}; {data['size']} × {data['size']} pixels, "
        f"{_count(data['channels'], 'channel')}."
    )


def write_page(
    path: Path,
    results: dict[str, Any],
    pictures: list[Path],
    command: str,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Write `report.md`: the table, how to read it, the figures and how to run it again."""
    title = f"{results['method']} on {results['dataset']}, {results['ipc']} images per class"
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in table(results)]
    config = results["config"]
    lines += [
        "",
        f"Evaluation: {_count(config['eval_runs'], 'fresh ConvNet')} of width {config['width']} "
        f"and depth {config['depth']}, trained for {_count(config['eval_epochs'], 'epoch')} on the "
        "stored images alone (AdamW 1e-3, batch 128, rate halved at each fifth, hard labels, "
        "augmentation and CutMix). "
        "The headline is the last epoch. The best epoch is chosen on the test images, and stands "
        "here only for comparison with publications that quote it. ± is the standard deviation "
        "over the networks, with the same stored images.",
        "",
        _about(results["data"]),
        "",
        f"Device: {results['device']}. Seed {results['seed']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ".",
        "",
        *fenced(command),
    ]
    if results["notes"]:
        lines += ["", "## Notes", "", *(f"- {markdown(note)}" for note in results["notes"])]
    if results["skipped_files"]:
        lines += ["", f"## {len(results['skipped_files'])} files were left out", ""]
        lines += [f"- {markdown(name)}" for name in results["skipped_files"]]
    if diagnosis is not None:
        lines += ["", "## Frequencies and features at the end", "", diagnosis.text]
    lines += ["", "## Figures", ""]
    for picture in pictures:
        relative = picture.relative_to(path.parent).as_posix()
        lines += [f"![{picture.stem}]({relative})", ""]
    named = [
        f"- {number} is {markdown(name)}"
        for number, name in enumerate(results["data"]["class_names"])
        if mpl and pictures and drawable(name, number) != name
    ]
    if named:
        lines += ["Classes that the pictures call by their numbers:", "", *named, ""]
    lines += ["## Configuration", "", *fenced(json.dumps(config, indent=2), "json"), ""]
    write_bytes(path, "\n".join(lines).encode(errors="backslashreplace"))
