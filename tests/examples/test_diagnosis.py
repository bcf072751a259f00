"""The section of the distillation report that says whether the game was healthy."""

from dataclasses import replace
from pathlib import Path

import distill_cifar
import pytest
import torch
from distillation.diagnosis import Course, clipped, diagnose
from torch import Tensor
from torch.nn import functional as F

from ncfd import GaussianFrequencies
from ncfd.functional import gradient_reversal, ncfd_loss

NAMES = ["bee", "cat", "dog"]
D = 12


def batch(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Normalised features of three classes that lie apart, as the loss sees them."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * rows) % 3
    center = torch.eye(D)[labels]
    return F.normalize(center + 0.7 * torch.randn(3 * rows, D, generator=g), dim=1), labels


def frequencies(scale: float) -> Tensor:
    return scale * torch.randn(64, D, generator=torch.Generator().manual_seed(9))


def test_a_healthy_game_has_no_warnings() -> None:
    found = diagnose(batch(0, 200), batch(1, 20), frequencies(1.0), NAMES)
    assert found.warnings == []
    assert "No warnings." in found.text
    assert "Frequency report: 200 samples, 12 features, 64 frequencies" in found.text


def test_metric_hacking_is_named() -> None:
    """Nothing differs between the two sides but chance; ψ, unbounded, goes where chance is loud."""
    real, synthetic = batch(0, 200), batch(1, 20)
    sampler = GaussianFrequencies(D, 64, learnable=True)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.1)
    groups = {"x_groups": real[1], "y_groups": synthetic[1], "num_groups": 3}
    g = torch.Generator().manual_seed(2)
    before = diagnose(real, synthetic, sampler(g).detach(), NAMES)
    for _ in range(30):
        t = gradient_reversal(sampler(g))
        optimizer.zero_grad()
        ncfd_loss(real[0], synthetic[0], t, **groups).backward()
        optimizer.step()
    after = diagnose(real, synthetic, sampler(g).detach(), NAMES)
    assert before.warnings == []
    assert sampler(g).std() > 1.8
    (line,) = after.warnings
    assert "frequencies carry only noise" in line
    assert "divide the scale of t by 2" in line
    assert line.startswith("3 of 3 classes, ")
    assert f"- **Warning.** {line}" in after.text


def test_collapse_of_the_images_is_named() -> None:
    """Matching means alone lets the images of a class fall together."""
    real, (y, labels) = batch(0, 200), batch(1, 20)
    t = frequencies(1.0)
    assert diagnose(real, (y, labels), t, NAMES).warnings == []
    cats = labels == 1
    mean = real[0][real[1] == 1].mean(0)
    y = y.requires_grad_()
    optimizer = torch.optim.SGD([y], lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        (y[cats] - mean).square().sum().backward()
        optimizer.step()
    (line,) = diagnose(real, (y.detach(), labels), t, NAMES).warnings
    assert line.startswith("1 of 3 classes, cat most of all: ")
    assert "have collapsed" in line
    assert "learning rate of the images" in line


def test_clipped_images_are_named() -> None:
    """Against those of the start: real images may have a black ground."""
    black = torch.tensor([0.0, 0.001, 0.998, 0.999, 1.0, 0.5, 0.25, 0.75])
    assert clipped(black) == 4 / 8  # to the last of 8 bits: 0.002 rounds to 1/255, 0.998 to 254/255
    sides = batch(0, 200), batch(1, 20), frequencies(1.0), NAMES
    assert diagnose(*sides, clipped=(0.5, 0.74)).warnings == []
    (line,) = diagnose(*sides, clipped=(0.1, 0.36)).warnings
    assert line.startswith("36% of the stored values are 0 or 1, 10% at the start")
    assert "lower the learning rate of the images" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--alpha", "1", "--batch-real", "1", "--lr-image", "0.05"), "have collapsed"),
        (("--lr-image", "0.3"), "of the stored values are 0 or 1"),
    ],
)
def test_the_failure_of_a_whole_run_is_named_and_no_other(
    options: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    """|φ| of a single image is 1 everywhere, so moduli alone pull the synthetic ones together."""
    common = ["--method", "ncfm", "--loss", "squared", "--scale", "2", "--ipc", "4"]
    common += ["--width", "8", "--zoo-size", "1", "--zoo-epochs", "1", "--iterations", "80"]
    common += ["--batch-real", "16", "--num-frequencies", "64", "--eval-epochs", "1"]
    common += ["--eval-runs", "1", "--no-baselines", "--device", "cpu"]
    results = distill_cifar.main([*common, *options, "--output-dir", str(tmp_path / "run")])
    (line,) = (w for w in results["warnings"] if "collapsed" in w or "0 or 1" in w)
    assert named in line


def test_psi_that_climbs_the_loss_ends_at_its_bound_and_on_signal_it_does_not(
    tmp_path: Path,
) -> None:
    given = ["--method", "ncfm", "--loss", "root", "--scale", "2", "--max-ratio", "32"]
    given += ["--sampler-lr", "1e-2", "--ipc", "4", "--width", "8", "--zoo-size", "1"]
    given += ["--zoo-epochs", "1", "--iterations", "40", "--batch-real", "32", "--eval-epochs", "1"]
    given += ["--num-frequencies", "64", "--eval-runs", "1", "--no-baselines", "--device", "cpu"]
    for adversary, runs_away in (("loss", True), ("signal", False)):
        folder = tmp_path / adversary
        arguments = [*given, "--adversary", adversary, "--output-dir", str(folder)]
        warnings = distill_cifar.main(arguments)["warnings"]
        assert any("of ψ's scales are at a bound" in w for w in warnings) == runs_away
        assert any("all frequencies carry only noise" in w for w in warnings) == runs_away
        page = (folder / "report.md").read_text(encoding="utf-8")
        assert "ψ: root mean square scale 2 at the start" in page


def test_where_psi_has_gone_is_said_and_a_bound_that_decides_is_named() -> None:
    course = Course((1.0, 1.6), (0.02, 0.004), 0.003, 0.25, 30.0, "signal")
    both = batch(0, 200), batch(1, 20)
    found = diagnose(*both, frequencies(1.0), NAMES, course=course)
    assert found.warnings == []
    assert "root mean square scale 1 at the start, 1.6 now; 25% of the scales at a" in found.text
    assert "J 0.02 at the start, 0.004 now, 0.003 now at the frequencies of the" in found.text
    assert "100% of its frequencies carry signal" in found.text
    for adversary, way_out in (("signal", "larger --max-ratio"), ("loss", "--adversary signal")):
        stuck = replace(course, at_bound=0.6, adversary=adversary)
        (line,) = diagnose(*both, frequencies(1.0), NAMES, course=stuck).warnings
        assert line.startswith("60% of ψ's scales are at a bound, a factor of 30 from")
        assert way_out in line
    free = diagnose(*both, frequencies(1.0), NAMES, course=replace(course, at_bound=None))
    assert "bound" not in free.text


def test_the_worst_class_speaks() -> None:
    x, labels = batch(0, 200)
    wide = torch.where((labels == 2)[:, None], 30 * x, x)
    found = diagnose((wide, labels), batch(1, 20), frequencies(1.0), NAMES)
    assert all("dog most of all" in line for line in found.warnings)
    assert found.warnings[0].startswith("1 of 3 classes")
    assert "Class dog:" in found.text


@pytest.mark.parametrize("rows", [0, 1])
def test_classes_too_small_to_judge(rows: int) -> None:
    x, labels = batch(0, 50)
    few = torch.cat([torch.nonzero(labels != 0).flatten(), torch.nonzero(labels == 0)[:rows, 0]])
    y, y_labels = batch(1, 1)  # a single synthetic image has no spread to judge
    found = diagnose((x[few], labels[few]), (y, y_labels), frequencies(1.0), NAMES)
    assert found.warnings == []
    assert "50 samples" in found.text
    nothing = diagnose((x[:1], labels[:1]), (y, y_labels), frequencies(1.0), NAMES)
    assert nothing.warnings == []
    assert "two real images" in nothing.text
