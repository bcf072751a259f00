"""What a distilled set is compared with: other sets, other architectures, scores."""

import json
import math
from dataclasses import replace

import distill_cifar
import pytest
import torch
from distillation import (
    architectures,
    comparison,
    coresets,
    evaluation,
    formation,
    networks,
    options,
    report,
    scores,
    training,
    zoo,
)
from distillation.comparison import Recipe, Stored
from distillation.interruption import Stop
from distillation.randomness import generator


def test_the_figure_to_quote_is_that_of_the_last_epoch(digits):
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)
    images = digits.train_images[:20].float() / 255
    runs = evaluation.evaluate(
        network,
        digits,
        images,
        digits.train_labels[:20],
        factor=1,
        epochs=12,
        runs=2,
        seed=0,
        name="x",
    )
    quoted = evaluation.summary(runs)
    assert quoted["runs"] == [run.curve[-1][1] for run in runs]
    assert quoted["best_epoch_mean"] == sum(max(c[1] for c in run.curve) for run in runs) / 2
    assert quoted["mean"] == sum(quoted["runs"]) / 2


@pytest.fixture
def few(digits):
    """Fewer digits."""
    return replace(
        digits,
        train_images=digits.train_images[:200],
        train_labels=digits.train_labels[:200],
        test_images=digits.test_images[:60],
        test_labels=digits.test_labels[:60],
        validation_images=digits.validation_images[:20],
        validation_labels=digits.validation_labels[:20],
    )


# Architectures


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [
        # By hand for AlexNet; the others have the count of the well-known forms with batch norm,
        # which has as many parameters as instance norm.
        ("alexnet", 1_872_202, 192 * 16),
        ("vgg11", 9_231_114, 512),
        ("resnet18", 11_173_962, 512),
        ("convnet", 320_010, 2048),
    ],
)
def test_architectures_at_32_pixels(name, parameters, features):
    network = architectures.make(name, 3, 32, 10, width=128, depth=3)
    assert sum(p.numel() for p in network.parameters()) == parameters
    x, logits = network(torch.randn(2, 3, 32, 32, generator=generator(0)))
    assert x.shape == (2, features) == (2, network.num_features)
    assert logits.shape == (2, 10)
    assert not list(network.buffers())  # nothing is remembered from one batch to the next


@pytest.mark.parametrize("size", [16, 24, 32, 64, 100, 128])
@pytest.mark.parametrize(
    "kind", [architectures.AlexNet, architectures.VGG11, architectures.ResNet18]
)
def test_architectures_take_other_sizes(kind, size):
    network = kind(1, size, 7, width=4)
    features, logits = network(torch.randn(3, 1, size, size, generator=generator(0)))
    assert features.shape == (3, network.num_features)
    assert logits.shape == (3, 7)
    # A norm of a single value would leave zeros, whatever the image.
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_weights_of_any_architecture_are_drawn_and_run_side_by_side():
    for kind in (architectures.AlexNet, architectures.VGG11, architectures.ResNet18):
        network = kind(3, 16, 5, width=4)
        drawn = [networks.initial_weights(network, generator(k)) for k in range(2)]
        shapes = {name: p.shape for name, p in network.named_parameters()}
        assert {name: w.shape for name, w in drawn[0].items()} == shapes
        images = torch.randn(2, 3, 3, 16, 16, generator=generator(9))
        together = networks.run_stacked(network, networks.stack(drawn), images)
        for weights, x, logits in zip(drawn, images, together, strict=True):
            alone = networks.run(network, weights, x)[1]
            torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-4)


def test_too_small_images_and_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match=r"--eval-networks vgg11 needs images of 16 pixels or more"
    ):
        architectures.make("vgg11", 1, 8, 10, width=4, depth=1)
    with pytest.raises(ValueError, match="--eval-networks must be among convnet, alexnet"):
        architectures.make("lenet", 1, 32, 10, width=4, depth=1)


# Herding


def test_herding_is_the_greedy_choice():
    x = torch.randn(12, 3, generator=generator(0), dtype=torch.float64)
    chosen: list[int] = []
    for k in range(1, 8):
        free = [n for n in range(12) if n not in chosen]
        distance = {n: (x[[*chosen, n]].sum(0) / k - x.mean(0)).norm().item() for n in free}
        chosen.append(min(distance, key=distance.get))
    assert coresets.herd(x, 7).tolist() == chosen


def test_herding_comes_closer_to_the_mean_than_chance():
    x = torch.randn(500, 16, generator=generator(0))
    for count in (3, 10, 50):
        near = (x[coresets.herd(x, count)].mean(0) - x.mean(0)).norm()
        picks = [torch.randperm(500, generator=generator(k))[:count] for k in range(20)]
        chance = torch.stack([(x[p].mean(0) - x.mean(0)).norm() for p in picks]).mean()
        assert near < 0.5 * chance


def test_herding_takes_every_row_once_before_any_again():
    x = torch.randn(4, 2, generator=generator(0))
    chosen = coresets.herd(x, 10)
    assert sorted(chosen[:4].tolist()) == [0, 1, 2, 3]
    assert torch.equal(chosen[4:8], chosen[:4])
    # The last of them brings the mean of all.
    assert coresets.herd(x.expand(4, 2), 1).shape == (1,)


def test_herding_chooses_real_images_of_each_class(few):
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)
    weights = networks.initial_weights(network, generator(0))
    images, labels = coresets.herding(few, network, weights, 3)
    assert labels.tolist() == [c for c in range(10) for _ in range(3)]
    for image, label in zip(images, labels, strict=True):
        same = (few.train_images.float() / 255 == image).all((1, 2, 3))
        assert (few.train_labels[same] == label).any()
    assert len(images.flatten(1).unique(dim=0)) == 30


# Scores


def test_scores_by_hand():
    # a = ½ (0.70 - 0.30) - ½ (0.85 - 0.70) = 0.125
    found = scores.label_robust(distilled=70, random=30, full=85)
    assert found["improvement_over_random"] == pytest.approx(40)
    assert found["hard_label_recovery"] == pytest.approx(15)
    e = math.e
    assert found["score"] == pytest.approx((e**0.125 - 1 / e) / (e - 1 / e))
    # b = ½ (0.70 - 0.30) + ½ (0.50 - 0.25) = 0.325
    found = scores.augmentation_robust(distilled=70, random=30, distilled_plain=50, random_plain=25)
    assert found["score"] == pytest.approx((e**0.325 - 1 / e) / (e - 1 / e))
    assert found["with_augmentation"] == pytest.approx(40)
    assert found["without_augmentation"] == pytest.approx(25)


def test_scores_at_their_ends():
    assert scores.normalised(-1) == 0
    assert scores.normalised(1) == pytest.approx(1)
    # As good as everything, from nothing; and the other way round.
    best = scores.label_robust(distilled=100, random=0, full=100)
    assert best["score"] == pytest.approx(scores.normalised(0.5))
    worst = scores.label_robust(distilled=0, random=100, full=100)
    assert worst["score"] == pytest.approx(0)


def test_soft_labels_do_not_count_as_recovery():
    plain = scores.label_robust(distilled=60, random=50, full=80)
    soft = scores.label_robust(distilled=70, random=60, full=80, distilled_hard=60)
    assert soft["score"] == pytest.approx(plain["score"])
    only = scores.label_robust(distilled=70, random=60, full=80, distilled_hard=60, weight=1)
    assert only["score"] == pytest.approx(scores.normalised(0.1))


# Side by side


def sets(data):
    per_class = [torch.nonzero(data.train_labels == c).flatten()[:4] for c in range(10)]
    chosen, one = torch.cat(per_class), torch.cat([m[:1] for m in per_class])
    return {
        "ours": Stored(data.train_images[chosen].float() / 255, data.train_labels[chosen]),
        "random": Stored(data.train_images[one].float() / 255, data.train_labels[one]),
        "full": Stored(data.train_images, data.train_labels),
    }


def test_a_comparison_has_everything_under_one_recipe(few, tmp_path, monkeypatch):
    narrow = architectures.AlexNet
    monkeypatch.setattr(architectures, "AlexNet", lambda *sizes: narrow(*sizes, width=4))
    recipe = Recipe(epochs=1, runs=2, seed=0, width=4, depth=2, full_epochs=2)
    options = {
        "headline": "ours",
        "networks": ["convnet", "alexnet"],
        "with_scores": True,
        "folder": tmp_path,
    }
    verdict = comparison.judge(few, sets(few), recipe, **options)
    found = verdict.results()
    assert set(found["baselines"]) == {"random", "full"}
    assert set(found["cross_architecture"]) == {"alexnet"}
    assert set(found["without_augmentation"]) == {"ours", "random"}
    assert found["baselines"]["full"]["epochs"] == 2
    for summary in [
        found["accuracy"],
        *found["baselines"].values(),
        *found["cross_architecture"].values(),
        *found["without_augmentation"].values(),
    ]:
        assert len(summary["runs"]) == 2
        assert summary["mean"] == pytest.approx(sum(summary["runs"]) / 2)
        assert summary["best_epoch_mean"] >= summary["mean"]
    assert found["scores"]["label_robust"] == scores.label_robust(
        distilled=found["accuracy"]["mean"],
        random=found["baselines"]["random"]["mean"],
        full=found["baselines"]["full"]["mean"],
    )
    assert found["scores"]["augmentation_robust"]["without_augmentation"] == pytest.approx(
        found["without_augmentation"]["ours"]["mean"]
        - found["without_augmentation"]["random"]["mean"]
    )
    assert set(verdict.curves()) == {"ours", "random", "full", "ours, alexnet"}
    # Finished runs are not repeated.
    monkeypatch.setattr(evaluation.training, "train", None)
    assert comparison.judge(few, sets(few), recipe, **options).results() == found


def test_without_scores_there_are_none(few):
    recipe = Recipe(epochs=1, runs=1, seed=0, width=4, depth=2)
    only = {"ours": sets(few)["ours"]}
    found = comparison.judge(
        few, only, recipe, headline="ours", networks=["convnet"], with_scores=False
    ).results()
    assert found["scores"] == found["cross_architecture"] == found["baselines"] == {}
    assert "without_augmentation" not in found
    assert found["accuracy"]["std"] == 0


def test_no_augmentation_is_none(few, monkeypatch):
    def never(*_):
        raise AssertionError("augmented")

    monkeypatch.setattr(training.augmentation, "augment", never)
    monkeypatch.setattr(training.augmentation, "cutmix_box", never)
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)
    ours = sets(few)["ours"]
    common = {"factor": 1, "epochs": 2, "runs": 1, "seed": 0, "name": "x"}
    evaluation.evaluate(network, few, ours.images, ours.labels, augment=False, **common)
    with pytest.raises(AssertionError, match="augmented"):
        evaluation.evaluate(network, few, ours.images, ours.labels, **common)


def test_baselines_are_different_sets_of_one_size(few, tmp_path):
    config = configure("--iterations", "2", "--batch-real", "4", "--width", "4", "--ipc", "2")
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)
    made = zoo.train_zoo(network, few, size=1, epochs=1, seed=0)
    starts = {
        name: formation.packed_initialisation(
            *(few.train_images, few.train_labels),
            ipc=2,
            num_classes=10,
            factor=factor,
            generator=generator(0),
        )
        for name, factor in (("random", 1), ("mix", 2))
    }
    found = {
        name: distill_cifar.baseline(name, config, few, network, made, starts, tmp_path, Stop())
        for name in options.BASELINES
    }
    full = found.pop("full")
    assert (full.images is few.train_images, full.factor) == (True, 1)
    factors = {"random": 1, "mix": 2, "herding": 1, "dm": 2}
    assert {name: stored.factor for name, stored in found.items()} == factors
    for stored in found.values():
        assert stored.images.shape == (20, 1, 16, 16)
        assert stored.labels.tolist() == [c for c in range(10) for _ in range(2)]
        assert 0 <= stored.images.min() < stored.images.max() <= 1
    assert len(torch.stack([stored.images for stored in found.values()]).unique(dim=0)) == 4


# The command line


def configure(*arguments):
    return options.configure(options.parser().parse_args(arguments))


def test_baselines_are_a_list():
    assert configure().baselines == configure("--baselines").baselines == ["random", "mix"]
    assert configure("--no-baselines").baselines == []
    assert configure("--baselines", "herding, full").baselines == ["herding", "full"]
    assert configure("--scores").baselines == ["random", "mix", "full"]
    assert configure("--no-baselines", "--scores").baselines == ["random", "full"]
    assert configure("--eval-networks", "alexnet,vgg11,alexnet").eval_networks == [
        "convnet",
        "alexnet",
        "vgg11",
    ]
    with pytest.raises(ValueError, match=r"--baselines must be among random, .*; got 'kip'"):
        configure("--baselines", "random,kip")
    with pytest.raises(ValueError, match=r"--eval-networks must be among convnet, .*; got 'vit'"):
        configure("--eval-networks", "vit")
    with pytest.raises(ValueError, match=r"--full-epochs must be a whole number >= 1; got 0"):
        configure("--full-epochs", "0")


@pytest.mark.slow
def test_a_run_with_every_baseline(tmp_path, monkeypatch):
    folder = tmp_path / "all"
    monkeypatch.setattr(report, "save_plots", lambda *_: [])  # takes long, and is tested elsewhere
    results = distill_cifar.main(
        [
            *("--iterations", "3", "--width", "8", "--zoo-size", "1", "--zoo-epochs", "1"),
            *("--batch-real", "16", "--num-frequencies", "64", "--eval-epochs", "1"),
            *("--eval-runs", "1", "--full-epochs", "1", "--device", "cpu"),
            *("--method", "ncfm-fixed", "--output-dir", str(folder)),
            *("--baselines", "random,mix,herding,dm,full", "--scores"),
        ]
    )
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert list(results["baselines"]) == ["random", "mix", "herding", "dm", "full"]
    assert set(results["scores"]) == {"label_robust", "augmentation_robust"}
    assert set(results["without_augmentation"]) == {"ncfm-fixed", "random"}
    page = (folder / "report.md").read_text()
    for name in ("herding", "dm", "full", "label-robust score", "augmentation-robust score"):
        assert name in page
    # The mean-matching baseline has a checkpoint of its own.
    assert (folder / "baseline-dm" / "checkpoint.pt").exists()
