"""What `distill` promises: the same gradient however the classes are shared out, and its steps."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import distill_cifar
import numpy as np
import pytest
import torch
from distillation import chunks, formation, matching, networks, options, refinement, zoo
from distillation.randomness import generator

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--device", "cpu", "--iterations", "1", "--width", "4", "--ipc", "2", "--zoo-size", "2"),
    *("--batch-real", "12", "--num-frequencies", "48", "--no-calibration"),
]


def configure(*arguments):
    return options.configure(options.parser().parse_args([*SMALL, *arguments]))


def make_zoo(network, size=2):
    """Untrained networks in place of trained ones: other numbers, the same arithmetic."""
    weights = [networks.initial_weights(network, generator("zoo", k)) for k in range(2 * size)]
    first, second = networks.stack(weights[:size]), networks.stack(weights[size:])
    return zoo.Zoo(first, second, [0.0] * size)


def game(config, data):
    """Everything `distill` starts from, at the sizes of `config`."""
    network = networks.ConvNet(
        data.channels, data.size, data.num_classes, config.width, config.depth
    )
    images, labels = formation.packed_initialisation(
        data.train_images,
        data.train_labels,
        ipc=config.ipc,
        num_classes=data.num_classes,
        factor=config.factor,
        generator=generator(config.seed, "initial images"),
    )
    return network, make_zoo(network), images, labels


def gradients_of_a_step(config, data, folder, monkeypatch, at_once):
    """Gradients that the optimizers saw in one iteration, in the order of their steps."""
    seen = []
    monkeypatch.setattr(chunks.Estimate, "at_once", lambda self, C, limit: at_once)

    def step(self, closure=None):
        group = [p for g in self.param_groups for p in g["params"]]
        seen.append([p.grad.clone() for p in group if p.grad is not None])

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        folder.mkdir()
        distill_cifar.distill(config, data, *game(config, data), folder)
    return seen


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--method", "ncfm", "--calibration", "1"], 3),  # images, ψ, calibration
        (["--method", "ncfm", "--loss", "root", "--alpha", "0.3", "--layers", "2"], 2),
        (["--method", "ncfm-exact"], 2),
        (["--method", "ncfm", "--adversary", "signal", "--spread", "0.5"], 2),
        (["--method", "ncfm-exact", "--adversary", "signal"], 2),
        (["--method", "mmd", "--scale-unit", "median"], 1),
        (["--method", "dm"], 1),
    ],
)
def test_classes_in_chunks_have_the_gradient_of_all_at_once(
    arguments, steps, digits, tmp_path, monkeypatch
):
    config = configure(*arguments)
    whole = gradients_of_a_step(config, digits, tmp_path / "10", monkeypatch, 10)
    for at_once in (1, 4):
        parts = gradients_of_a_step(config, digits, tmp_path / str(at_once), monkeypatch, at_once)
        assert len(parts) == len(whole) == steps
        for a, b in zip(whole, parts, strict=True):
            assert sum(x.abs().sum() for x in a) > 0
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(y, x, rtol=1e-4, atol=2e-5 * x.abs().max().item())


def test_chunks_cover_every_class_once():
    for C, at_once in ((10, 10), (10, 4), (10, 1), (7, 3)):
        parts = chunks.chunks(range(3, 3 + C), at_once, 5)
        assert [c for part in parts for c in range(part.first, part.last)] == list(range(3, 3 + C))
        assert max(map(len, parts)) <= at_once
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert parts[0].rows == slice(15, 5 * parts[0].last)


def test_a_limit_that_is_too_low_says_what_is_needed():
    needs = chunks.Estimate(fixed=1.0e9, each=0.25e9, between=0.1e9)
    assert needs.at_once(10, None) == 10
    assert needs.at_once(10, 2.3) == 5
    assert needs.at_once(3, 2.3) == 3
    with pytest.raises(ValueError, match=r"--memory-limit-gb must be at least 1\.3 .*; got 1\.1"):
        needs.at_once(10, 1.1)


# Options of the studies


@pytest.mark.filterwarnings("ignore:.* are at their bound")
@pytest.mark.parametrize("sampler", options.SAMPLERS)
def test_every_sampler_is_learned_within_its_bounds(sampler):
    config = configure("--sampler", sampler, "--scale", "3", "--loss", "squared")
    sampling = matching.make_sampler(config, 8)
    t = sampling()
    assert t.shape == (48, 8)
    assert len(t.unique(dim=0)) == 48
    assert 1 < t.square().mean().sqrt() < 9  # of the order of the scale
    # A player that only wants larger frequencies stops at the bound.
    optimizer = torch.optim.SGD(sampling.parameters(), lr=100.0)
    for _ in range(20):
        optimizer.zero_grad()
        (-sampling.scales().log().sum()).backward()
        optimizer.step()
    scales = sampling.scales()
    assert scales.max() <= 6.0001
    assert scales.mean() > 4


def test_samplers_have_as_many_scales_as_their_names_say():
    count = {
        name: sum(
            p.numel() for p in matching.make_sampler(configure("--sampler", name), 8).parameters()
        )
        for name in ("diagonal", "normal", "student", "laplace", "uniform")
    }
    assert count == {"diagonal": 8, "normal": 1, "student": 1, "laplace": 1, "uniform": 1}
    fixed = configure("--method", "ncfm-fixed", "--sampler", "laplace")
    assert not list(matching.make_sampler(fixed, 8).parameters())


TWO_CLASSES = {
    "real_groups": torch.arange(40) % 2,
    "synthetic_groups": torch.arange(12) % 2,
    "num_groups": 2,
}


def two_classes(dim=8):
    draw = generator("two classes")
    real = torch.randn(40, dim, generator=draw) + 2 * (torch.arange(40) % 2)[:, None]
    return real, torch.randn(12, dim, generator=draw) + 1


@pytest.mark.parametrize("method", options.GAMES)
@pytest.mark.parametrize("sampler", ["mixture", "normal"])
def test_signal_is_what_psi_climbs_and_the_loss_what_the_images_descend(method, sampler):
    given = ["--method", method, "--sampler", sampler, "--loss", "squared"]
    seen = {}
    for adversary in options.ADVERSARIES:
        config = configure(*given, "--adversary", adversary)
        criterion = matching.make_matching(config, [8])
        real, synthetic = two_classes()
        synthetic.requires_grad_()
        values = criterion(real, synthetic, **TWO_CLASSES)
        values.sum().backward()
        slopes = torch.cat([p.grad.flatten() for p in criterion.parameters() if p.grad is not None])
        seen[adversary] = values.detach(), synthetic.grad, slopes
    torch.testing.assert_close(seen["signal"][0], seen["loss"][0])
    torch.testing.assert_close(seen["signal"][1], seen["loss"][1])
    # Minus J's slope: what the optimizer descends.
    config = configure(*given, "--adversary", "signal")
    criterion = matching.make_matching(config, [8])
    sampling = criterion.samplers[0]
    if method == "ncfm-exact":
        sampling.scales()  # drawn for the images, before the frequencies
    real, synthetic = (torch.nn.functional.normalize(x, dim=1) for x in two_classes())
    t = sampling()
    gain = 0
    for c in (0, 1):
        # The formula of the guide, spelled out.
        x, y = (
            torch.exp(1j * (rows[TWO_CLASSES[f"{side}_groups"] == c] @ t.T)).mean(0)
            for side, rows in (("real", real), ("synthetic", synthetic))
        )
        noise = (1 - x.abs() ** 2) / (20 - 1)
        gain = gain + (((x - y).abs() ** 2 - noise) * (x.abs() ** 2 - noise).clamp(min=0)).mean()
    gain.backward()
    slopes = torch.cat([p.grad.flatten() for p in sampling.parameters() if p.grad is not None])
    assert slopes.abs().max() > 0
    torch.testing.assert_close(
        seen["signal"][2], -slopes, rtol=1e-3, atol=1e-5 * slopes.abs().max().item()
    )
    # And the report's J is the same number.
    criterion = matching.make_matching(config, [8])
    if method == "ncfm-exact":
        criterion.samplers[0].scales()
    found = criterion.signal(matching.Sides(*two_classes(), **TWO_CLASSES)).sum()
    torch.testing.assert_close(found, gain.detach())


def test_a_median_unit_is_that_of_each_class_of_real_images():
    real, synthetic = two_classes()
    rows = torch.nn.functional.normalize(real, dim=1).double().numpy()
    config = configure("--method", "mmd", "--scale", "2", "--scale-unit", "median")
    values = matching.make_matching(config, [8])(real, synthetic, **TWO_CLASSES)
    for c in (0, 1):
        own = rows[c::2]
        apart = np.linalg.norm(own[:, None] - own[None], axis=2)[np.triu_indices(20, 1)]
        alone = configure("--method", "mmd", "--scale", f"{2 / np.median(apart)}")
        plain = matching.make_matching(alone, [8])(real, synthetic, **TWO_CLASSES)
        # PyTorch's median of an even number is the lower one of the middle two.
        assert values[c].item() == pytest.approx(plain[c].item(), rel=0.01)
        assert values[c].item() != pytest.approx(values[1 - c].item(), rel=0.05)
    # Sampled frequencies see the same rows, and a class of equal rows does not divide by zero.
    one = torch.ones(4, 8)
    few = {"real_groups": torch.zeros(4).long(), "synthetic_groups": torch.zeros(4).long()}
    for method in ("ncfm", "ncfm-fixed"):
        config = configure("--method", method, "--scale-unit", "median", "--loss", "squared")
        criterion = matching.make_matching(config, [8])
        assert criterion(one, -one, **few, num_groups=1).isfinite().all()
        criterion.mark()
        value = criterion(real, synthetic, **TWO_CLASSES)
        criterion.rewind()
        t = criterion.samplers[0]()
        unit = matching.inverse_median_distance(
            torch.nn.functional.normalize(real, dim=1), TWO_CLASSES["real_groups"], 2
        )
        x, y = (
            torch.exp(1j * (unit[0] * torch.nn.functional.normalize(rows, dim=1)[::2] @ t.T))
            for rows in (real, synthetic)
        )
        expected = 0.5 * (x.mean(0) - y.mean(0)).abs().square().mean()
        assert value[0].item() == pytest.approx(expected.item(), rel=1e-3)


def test_spread_is_log_normal_around_the_scale():
    # mmd: the mean over the scales, each for an equal share of the law.
    real, synthetic = two_classes()
    z = [NormalDist().inv_cdf((k + 0.5) / 8) for k in range(8)]
    parts = []
    for v in z:
        config = configure("--method", "mmd", "--scale", f"{3 * math.exp(0.7 * v)}")
        parts.append(matching.make_matching(config, [8])(real, synthetic, **TWO_CLASSES))
    config = configure("--method", "mmd", "--scale", "3", "--spread", "0.7")
    values = matching.make_matching(config, [8])(real, synthetic, **TWO_CLASSES)
    torch.testing.assert_close(values, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-6)
    # The same of a learned single scale; ψ's and the fixed laws' draws are spread.
    game = configure(
        *("--method", "ncfm-exact", "--sampler", "normal", "--scale", "3", "--spread", "0.7"),
        *("--loss", "unbiased"),
    )
    unbiased = configure("--method", "mmd", "--scale", "3", "--spread", "0.7", "--loss", "unbiased")
    torch.testing.assert_close(
        matching.make_matching(game, [8])(real, synthetic, **TWO_CLASSES),
        matching.make_matching(unbiased, [8])(real, synthetic, **TWO_CLASSES),
    )
    for method in ("ncfm", "ncfm-fixed"):
        spreads = []
        for spread in ("0", "0.7"):
            given = ["--method", method, "--spread", spread, "--num-frequencies", "512"]
            config = configure(*given)
            t = matching.make_sampler(config, 400)()
            spreads.append(t.norm(dim=1).log().std().item())
        assert spreads[0] < 0.1
        assert 0.4 < spreads[1] < 0.9


def test_scales_at_a_bound_are_counted():
    config = configure("--adversary", "signal", "--spread", "0.5", "--max-ratio", "4")
    start, now = (matching.make_sampler(config, 8) for _ in range(2))
    assert matching.share_at_bound(now, start, 0, 4.0) == 0
    with torch.no_grad():  # two of eight coordinates as high as they may, one half the way
        now.sampler.network[-1].bias[:2] = 9.0
        now.sampler.network[-1].bias[2] = 0.5
    assert matching.share_at_bound(now, start, 0, 4.0) == pytest.approx(2 / 8)


def test_frequencies_come_as_they_are_asked_for():
    drawn = matching.make_sampler(configure("--frequency-draw", "orthogonal"), 48)()
    products = drawn @ drawn.T  # the scales are equal at the start
    torch.testing.assert_close(products, products.diag().diag(), rtol=0, atol=1e-3)
    assert (
        matching.make_sampler(configure("--sampler", "normal", "--frequency-draw", "sobol"), 8)()
        .isfinite()
        .all()
    )


def test_rising_frequencies_go_from_a_quarter_to_the_whole_scale():
    config = configure("--frequency-schedule", "rising", "--iterations", "101")
    factors = [matching.frequency_factor(config, k) for k in (0, 50, 100)]
    assert factors == pytest.approx([0.25, 0.5, 1.0])
    assert matching.frequency_factor(configure(), 0) == 1
    for method in ("ncfm", "ncfm-exact"):
        criterion = matching.make_matching(configure("--method", method), [8])
        (sampling,) = criterion.samplers
        values = []
        for factor in (1.0, 0.5):
            criterion.set_factor(factor)
            criterion.rewind()
            values.append(sampling() if method == "ncfm" else sampling.scales())
        torch.testing.assert_close(values[1], 0.5 * values[0])
    mmd = matching.make_matching(configure("--method", "mmd", "--scale", "1"), [8])
    mmd.set_factor(0.5)
    x, y, one = torch.randn(4, 8), torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    half = mmd(x, y, real_groups=one, synthetic_groups=one, num_groups=1)
    other = matching.make_matching(configure("--method", "mmd", "--scale", "0.5"), [8])
    torch.testing.assert_close(
        half, other(x, y, real_groups=one, synthetic_groups=one, num_groups=1)
    )


@pytest.mark.parametrize(
    ("extractor", "beta"), [("random", 1.0), ("trained", 0.0), ("hybrid", None)]
)
def test_the_extractor_is_in_the_state_asked_for(extractor, beta, digits, tmp_path, monkeypatch):
    betas = []
    blend = zoo.Zoo.blend

    def seen(self, member, share):
        betas.append(share)
        return blend(self, member, share)

    monkeypatch.setattr(zoo.Zoo, "blend", seen)
    config = configure("--method", "dm", "--extractor", extractor)
    distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    assert 0 < betas[-1] < 1 if beta is None else betas[-1] == beta


def test_layers_are_the_last_blocks_side_by_side():
    network = networks.ConvNet(3, 16, 10, width=4, depth=3)
    images = torch.randn(5, 3, 16, 16)
    assert network.features == [4 * 64, 4 * 16, 4 * 4]
    weights = dict(network.named_parameters())
    last, logits = networks.run(network, weights, images)
    both, again = networks.run(network, weights, images, 2)
    assert both.shape == (5, 4 * 16 + 4 * 4)
    torch.testing.assert_close(both[:, -16:], last)
    torch.testing.assert_close(both[:, :-16], network.blocks[:8](images).flatten(1))
    torch.testing.assert_close(logits, again)
    # The loss is the mean over the layers.
    config = configure("--method", "dm", "--layers", "2")
    groups = torch.zeros(5, dtype=torch.int64)
    about = {"real_groups": groups, "synthetic_groups": groups, "num_groups": 1}
    other = torch.randn_like(both)
    one, two = (
        matching.MeanMatching()(both[:, k], other[:, k], **about).mean()
        for k in (slice(64, None), slice(64))
    )
    values = matching.make_matching(config, [16, 64])(both, other, **about)
    torch.testing.assert_close(values, (one + two)[None] / 2)


def test_refinement_is_soft_labels_and_a_lower_cross_entropy(digits):
    config = configure("--iterations", "100", "--lr-image", "0.01")
    network, members, images, labels = game(config, digits)
    soft = refinement.soft_labels(digits, network, members, images, config.factor)
    assert soft.shape == (80, 10)
    torch.testing.assert_close(soft.sum(1), torch.ones(80))
    tuned = refinement.fine_tune(config, digits, network, members, images, labels, config.factor)
    right = torch.arange(80), labels.repeat_interleave(4)
    after = refinement.soft_labels(digits, network, members, tuned, config.factor)
    assert after[right].log().mean() > soft[right].log().mean()
    assert 0 <= tuned.min() <= tuned.max() <= 1


@pytest.mark.slow
def test_the_memory_limit_holds_in_a_fresh_process():
    """100 classes of 50 stored images, 20 000 decoded: narrow networks, the same bookkeeping."""
    script = ROOT / "benchmarks" / "distillation_memory.py"
    shape = ["--width", "16", "--batch-real", "32", "--images", "10000", "--limit-gb", "1.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(script), *shape], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    each, at_once = figures["estimate_bytes_per_class"], figures["classes_at_once"]
    assert 1 < at_once < 20
    assert figures["estimate_bytes"] + (100 - at_once) * each > 3e9  # all at once would not fit
    assert figures["peak_bytes"] < 1.5e9


def test_one_joint_step_goes_as_far_as_one_step_for_each_class(digits, tmp_path, monkeypatch):
    # The published rate belongs to a step after every class, with zeros for the others' images.
    C, iterations, lr = 10, 200, 1e-3
    draw = generator("slopes")
    drift = torch.rand(C, 50, generator=draw) + 0.5  # the same direction, noise around it
    slopes = drift + 0.5 * torch.randn(iterations, C, 50, generator=draw)

    def moved(rate, one_by_one):
        images = torch.zeros(C, 50, requires_grad=True)
        optimizer = torch.optim.AdamW([images], lr=rate, weight_decay=5e-4)
        for slope in slopes:
            for classes in [[c] for c in range(C)] if one_by_one else [list(range(C))]:
                images.grad = torch.zeros(C, 50)
                images.grad[classes] = slope[classes]
                optimizer.step()
        return images.detach()

    published = moved(lr, one_by_one=True)
    joint = moved(lr * math.sqrt(C), one_by_one=False)
    assert (joint / published).median().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(joint, published, rtol=0.2, atol=0.05 * published.abs().mean())
    plain = moved(lr, one_by_one=False)
    assert (plain / published).median().item() < 1.2 / math.sqrt(C)

    # And that is the rate of the first step of `distill`.
    rates = []
    config = configure("--method", "dm", "--lr-image", "0.002")
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, _=None: rates.append(self.param_groups[0]["lr"])
    )
    distill_cifar.distill(config, digits, *game(config, digits), tmp_path)
    assert rates == [0.002 * math.sqrt(C)]
