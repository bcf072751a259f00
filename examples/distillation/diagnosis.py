"""Are the frequencies of a run any good, and have the images collapsed? A section for the report.

Every class is compared by itself, so it is looked at by itself: its real features with the
frequencies in use (a scale that ran away to noise, repeated frequencies, precision at risk), and
its synthetic features beside the real ones (collapse).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ncfd

from .wording import markdown

#: Below this share of the real spread, synthetic features of a class count as collapsed.
COLLAPSED = 0.1
#: A growth of the share of pixel values at 0 or 1 by more than this counts as too large steps.
CLIPPED = 0.25
#: Above this share of scales at a bound, the bound decides where ψ is.
AT_BOUND = 0.5


@dataclass(frozen=True)
class Course:
    """Where ψ has gone, by the frequencies of the last layer."""

    scale: tuple[float, float]  # root mean square, at the start and now
    #: J, `ncfd.functional.signal_discrepancy` on held-out images, mean over the classes: of ψ and
    #: the images of the start, and of ψ and the images now.
    signal: tuple[float, float]
    signal_of_start: float  # the same of the images now and ψ at its start
    at_bound: float | None  # share of the scales; None where there is no bound
    max_ratio: float
    adversary: str

    def text(self, with_signal: float) -> str:
        """Say it in a line. `with_signal` is the share of frequencies that carry any."""
        first, last = self.scale
        bound = "" if self.at_bound is None else f"; {self.at_bound:.0%} of the scales at a bound"
        return (
            f"ψ: root mean square scale {first:.3g} at the start, {last:.3g} now{bound}. "
            f"{with_signal:.0%} of its frequencies carry signal. J {self.signal[0]:.3g} at the "
            f"start, {self.signal[1]:.3g} now, {self.signal_of_start:.3g} now at the frequencies "
            "of the start."
        )

    def warning(self) -> str | None:
        """Say that a bound decides where ψ is, if one does."""
        if self.at_bound is None or self.at_bound <= AT_BOUND:
            return None
        advice = "give another --scale or a larger --max-ratio"
        if self.adversary == "loss":
            advice = "take --adversary signal, which does not run away"
        return (
            f"{self.at_bound:.0%} of ψ's scales are at a bound, a factor of {self.max_ratio:g} "
            f"from where they began: the bound decides, not ψ; {advice}"
        )


@dataclass(frozen=True)
class Diagnosis:
    """`text` is Markdown; `warnings` are its warnings, one line each, empty if all is well."""

    text: str
    warnings: list[str]


@torch.no_grad()
def diagnose(
    real: tuple[Tensor, Tensor],
    synthetic: tuple[Tensor, Tensor],
    t: Tensor,
    class_names: Sequence[str],
    clipped: tuple[float, float] = (0.0, 0.0),
    course: Course | None = None,
) -> Diagnosis:
    """Look at features (N, D) and labels (N,) of both sides at the frequencies `t` (F, D).

    The features are as the loss sees them: normalised, if it normalises. Classes with fewer than
    two real images are left out. `clipped` is the share of pixel values at the ends of their range
    in the images at the start and now, `course` that of ψ.
    """
    (x, x_labels), (y, y_labels) = real, synthetic
    reports: dict[str, ncfd.FrequencyReport] = {}
    collapsed: dict[str, float] = {}
    for c, name in enumerate(class_names):
        rows, others = x[x_labels == c], y[y_labels == c]
        if len(rows) < 2:
            continue
        reports[name] = ncfd.frequency_report(rows, t)
        if len(others) >= 2:
            ratio = _spread(others) / max(_spread(rows), 1e-30)
            if ratio < COLLAPSED:
                collapsed[name] = ratio
    if not reports:
        return Diagnosis("No class has two real images to look at.", [])

    # The worst class speaks for the others: their numbers differ, what to do does not.
    worst = max(reports, key=lambda name: (len(reports[name].warnings), reports[name].noise_share))
    affected = sum(bool(report.warnings) for report in reports.values())
    warnings = [
        f"{affected} of {len(reports)} classes, {worst} most of all: {line}"
        for line in reports[worst].warnings
    ]
    if collapsed:
        name = min(collapsed, key=collapsed.__getitem__)
        warnings.append(
            f"{len(collapsed)} of {len(reports)} classes, {name} most of all: the features of the "
            f"synthetic images have collapsed, their spread is {collapsed[name]:.1g} of the real "
            "one; use more real images a batch, a smaller alpha, or a lower learning rate of the "
            "images"
        )
    before, now = clipped
    if now - before > CLIPPED:
        warnings.append(
            f"{now:.0%} of the stored values are 0 or 1, {before:.0%} at the start: the images are "
            "clipped into saturated noise; lower the learning rate of the images"
        )
    if course is not None and (line := course.warning()):
        warnings.append(line)
    lines = [
        *([f"- **Warning.** {markdown(line)}" for line in warnings] or ["No warnings."]),
        "",
        *_of_psi(course, reports.values()),
        f"Class {markdown(worst)}:",
        "",
        "```",
        str(reports[worst]),
        "```",
    ]
    return Diagnosis("\n".join(lines), warnings)


def _of_psi(course: Course | None, reports: Collection[ncfd.FrequencyReport]) -> list[str]:
    if course is None:
        return []
    noise = sum(report.noise_share for report in reports) / len(reports)
    return [course.text(1 - noise), ""]


def clipped(images: Tensor) -> float:
    """Share of values of images in [0, 1] that lie at one of the ends, to the last of 8 bits."""
    return ((images < 0.5 / 255) | (images > 1 - 0.5 / 255)).double().mean().item()


def _spread(features: Tensor) -> float:
    """Root mean square distance from the mean, for any number of rows from 2 on."""
    return features.double().var(0).sum().sqrt().item()
