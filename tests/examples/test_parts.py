"""The rooms that need no data: networks, files, numbers, the losses, the command line."""

import errno
import os

import numpy as np
import pytest
import torch
from distillation import checkpoint, data, matching, memory, networks, options, report, training
from distillation.history import History
from distillation.randomness import generator, repeatable
from PIL import Image
from torch.nn import functional as F


def configure(*arguments):
    return options.configure(options.parser().parse_args(arguments))


def test_purposes_are_independent_streams():
    a, b = generator(0, "a"), generator(0, "b")
    assert generator(0, "a").initial_seed() == a.initial_seed() != b.initial_seed()
    assert generator(1, "a").initial_seed() != a.initial_seed()
    assert generator(0, "a", 1).initial_seed() != generator(0, "a1").initial_seed()


# Networks


def test_convnet_has_instance_norm_and_the_right_sizes():
    network = networks.ConvNet(3, 32, 10, width=8, depth=3)
    features, logits = network(torch.randn(5, 3, 32, 32))
    assert features.shape == (5, 8 * 4 * 4) == (5, network.num_features)
    assert logits.shape == (5, 10)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert [(n.num_groups, n.num_channels) for n in norms] == [(8, 8)] * 3
    assert [networks.default_depth(s) for s in (16, 32, 64, 128)] == [2, 3, 4, 5]


def test_initial_weights_are_complete_and_seeded():
    network = networks.ConvNet(1, 16, 10, width=8, depth=2)
    state = torch.get_rng_state()
    weights = networks.initial_weights(network, generator(0))
    assert torch.equal(torch.get_rng_state(), state)
    shapes = {name: p.shape for name, p in network.named_parameters()}
    assert {name: w.shape for name, w in weights.items()} == shapes
    again = networks.initial_weights(network, generator(0))
    assert all(torch.equal(again[name], w) for name, w in weights.items())


def test_stacked_networks_are_the_networks_one_by_one():
    network = networks.ConvNet(3, 16, 10, width=4, depth=2)
    singles = [networks.initial_weights(network, generator(k)) for k in range(3)]
    images = torch.randn(3, 6, 3, 16, 16, generator=generator(9))
    together = networks.run_stacked(network, networks.stack(singles), images)
    for w, x, logits in zip(singles, images, together, strict=True):
        torch.testing.assert_close(networks.run(network, w, x)[1], logits, atol=1e-5, rtol=1e-4)
        chunked = networks.run_in_chunks(network, w, x.repeat(50, 1, 1, 1))[1]
        torch.testing.assert_close(chunked[:6], logits, atol=1e-5, rtol=1e-4)


def test_bfloat16_products_give_nearly_the_same_features_and_slopes():
    def seen(amp):
        network = networks.ConvNet(3, 16, 10, width=16, depth=2, amp=amp)
        weights = networks.initial_weights(network, generator(0))
        images = torch.randn(6, 3, 16, 16, generator=generator(1)).requires_grad_()
        features, logits = networks.run(network, weights, images)
        features.square().sum().backward()
        singles = networks.stack([weights, weights])
        stacked = networks.run_stacked(network, singles, torch.stack([images, images]))
        return features.detach(), logits.detach(), images.grad, stacked[1].detach()

    # Eight bits are an error of 2^-9 a product. A slope changes more: wherever a value near zero
    # comes out on the other side of a ReLU, a whole slope appears or is lost.
    bounds = {"features": 0.02, "logits": 0.02, "slopes": 0.2, "stacked": 0.02}
    for name, half, whole in zip(bounds, seen(True), seen(False), strict=True):
        assert half.dtype == whole.dtype == torch.float32
        error = ((half - whole).norm() / whole.norm()).item()
        assert 1e-4 < error < bounds[name], (name, error)


def test_networks_trained_side_by_side_are_the_networks_trained_alone(digits):
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)

    def trained(members):
        return training.train(
            network,
            networks.stack([networks.initial_weights(network, generator(k)) for k in members]),
            digits,
            digits.train_images[:200],
            digits.train_labels[:200],
            [generator("order", k) for k in members],
            epochs=2,
            rate=1e-3,
            schedule=training.halved_at_fifths,
            strategy=training.Strategy(),
            cutmix=0.5,
        )

    together = trained([0, 1])
    x = digits.normalise(digits.test_images)
    for k in (0, 1):
        _, logits = networks.run(network, {n: w[k] for n, w in together.items()}, x)
        _, alone = networks.run(network, {n: w[0] for n, w in trained([k]).items()}, x)
        # By what they say, not by their weights: a bias before a norm has no slope but rounding,
        # and Adam makes full steps of it.
        torch.testing.assert_close(logits, alone, atol=2e-2, rtol=0)


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)

    def trained(file, end=None):
        seen = []
        unfinished = training.Unfinished(file, seen)

        def after_epoch(epoch, _, loss):
            if epoch == end:
                raise KeyboardInterrupt
            seen.append([epoch, loss.item()])

        weights = training.train(
            network,
            networks.stack([networks.initial_weights(network, generator(k)) for k in (0, 1)]),
            digits,
            digits.train_images[:100],
            digits.train_labels[:100],
            [generator("order", k) for k in (0, 1)],
            epochs=4,
            rate=1e-3,
            schedule=training.halved_at_fifths,
            strategy=training.Strategy(),
            batch=40,
            cutmix=0.5,
            after_epoch=after_epoch,
            unfinished=unfinished,
        )
        return weights, seen

    whole, seen = trained(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "part.pt", end=3)
    assert (tmp_path / "part.pt").exists()
    resumed, seen_again = trained(tmp_path / "part.pt")
    assert seen_again == seen
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    assert all(torch.equal(resumed[name], w) for name, w in whole.items())
    assert not list(tmp_path.iterdir())
    # A damaged file is no obstacle.
    (tmp_path / "part.pt").write_bytes(b"PK")
    assert torch.equal(
        trained(tmp_path / "part.pt")[0]["classifier.bias"], whole["classifier.bias"]
    )


def test_an_unfinished_training_that_another_run_has_finished_begins_anew(tmp_path, monkeypatch):
    unfinished = training.Unfinished(tmp_path / "unfinished.pt", [])
    assert unfinished.load() is None
    unfinished.save(3)
    assert unfinished.load()["epoch"] == 3
    load = checkpoint.load

    def deleted_in_between(file):
        file.unlink()
        return load(file)

    monkeypatch.setattr(checkpoint, "load", deleted_in_between)
    assert unfinished.load() is None


def test_schedules():
    assert [training.halved_at_fifths(p) for p in (0, 0.19, 0.2, 0.5, 0.99)] == [
        1,
        1,
        1 / 2,
        1 / 4,
        1 / 16,
    ]
    assert training.one_cycle(0) == 0
    assert training.one_cycle(0.2) == 1
    assert training.one_cycle(1) == 0


# Losses


@pytest.mark.parametrize("method", options.DISTILLING)
def test_every_criterion_has_a_value_for_each_class_and_a_slope(method):
    config = configure("--method", method, "--num-frequencies", "32", "--device", "cpu")
    sampler = matching.make_sampler(config, 8)
    criterion = matching.make_criterion(config, sampler)
    real = torch.randn(30, 8, generator=generator(0))
    groups = torch.arange(30) % 3
    synthetic = torch.randn(6, 8, generator=generator(1), requires_grad=True)
    values = criterion(
        real,
        synthetic,
        real_groups=groups,
        synthetic_groups=torch.arange(6) % 3,
        num_groups=3,
    )
    assert values.shape[0] == 3
    assert values.isfinite().all()  # the unbiased form may be negative
    values.mean(1).sum().backward()
    assert synthetic.grad.abs().sum() > 0
    parameters = list(criterion.parameters())
    assert bool(parameters) == (method in options.GAMES)
    if parameters:
        # The last layer starts at zero, so only it has a slope in the first step.
        assert sum(p.grad.abs().sum() for p in parameters if p.grad is not None) > 0


@pytest.mark.parametrize("method", options.GAMES)
def test_steps_of_the_sampler_raise_the_loss_and_steps_of_the_images_lower_it(method):
    config = configure("--method", method, "--num-frequencies", "256", "--device", "cpu")
    real = 2 * F.normalize(torch.randn(200, 8, generator=generator(0)), dim=1)
    start = real[:40] + 0.3

    def value(criterion, sampler, synthetic):
        sampler.generator = generator("same noise")
        zeros = torch.zeros(200, dtype=torch.int64)
        return criterion(
            real, synthetic, real_groups=zeros, synthetic_groups=zeros[:40], num_groups=1
        ).mean()

    for player, sign in (("sampler", 1), ("images", -1)):
        sampler = matching.make_sampler(config, 8)
        criterion = matching.make_criterion(config, sampler)
        synthetic = start.clone().requires_grad_()
        moved = criterion.parameters() if player == "sampler" else [synthetic]
        optimizer = torch.optim.SGD(moved, lr=1e-2)
        before = value(criterion, sampler, synthetic)
        before.backward()
        optimizer.step()
        after = value(criterion, sampler, synthetic)
        assert sign * (after - before) > 0, player


def test_slopes_are_the_same_bits_each_time_at_full_size():
    # Small problems run on one thread, where the order of a sum never changes.
    config = configure("--device", "cpu")
    real, synthetic = torch.randn(640, 512), torch.randn(40, 512)
    groups = torch.arange(640) % 10

    def slopes():
        sampler = matching.make_sampler(config, 512)
        criterion = matching.make_criterion(config, sampler)
        values = criterion(
            real, synthetic, real_groups=groups, synthetic_groups=groups[:40], num_groups=10
        )
        values.sum().backward()
        return [p.grad for p in criterion.parameters() if p.grad is not None]

    before = torch.are_deterministic_algorithms_enabled()
    with repeatable(torch.device("cpu")):
        first = slopes()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, slopes(), strict=True))
    assert torch.are_deterministic_algorithms_enabled() == before


def test_mean_matching_is_the_distance_of_the_means():
    x, y = torch.randn(8, 4), torch.randn(4, 4)
    gx, gy = torch.tensor([0, 1] * 4), torch.tensor([0, 0, 1, 1])
    values = matching.MeanMatching()(x, y, real_groups=gx, synthetic_groups=gy, num_groups=2)
    nx, ny = F.normalize(x, dim=1), F.normalize(y, dim=1)
    for c in (0, 1):
        expected = (nx[gx == c].mean(0) - ny[gy == c].mean(0)).square().sum()
        torch.testing.assert_close(values[c, 0], expected)


# Files


def test_a_file_is_either_old_or_new(tmp_path, monkeypatch):
    file = tmp_path / "state.pt"
    checkpoint.save(file, {"x": torch.arange(3), "n": 1, "names": ["a"]})
    state = checkpoint.load(file)
    assert torch.equal(state.pop("x"), torch.arange(3))
    assert state == {"n": 1, "names": ["a"]}

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*the one that was there is kept"):
        checkpoint.save(file, {"n": 2})
    assert checkpoint.load(file)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    file = tmp_path / "state.pt"
    checkpoint.save(file, {"x": torch.arange(1000)})
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        checkpoint.load(file)


# Numbers


def test_history_names_the_class_that_is_not_finite():
    history = History(["cat", "dog"])
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    history.record(6, {"loss": good.mean()}, good)
    history.flush()
    history.record(7, {"loss": good.mean()}, good)
    history.record(8, {"loss": bad.mean()}, bad)
    with pytest.raises(FloatingPointError, match="iteration 8: the loss of class dog is nan"):
        history.flush()


def test_history_survives_a_checkpoint():
    history = History(["a"])
    history.add(0, {"x": 1.5})
    history.record(1, {"x": torch.tensor(2.5)}, torch.ones(1))
    history.flush()
    other = History(["a"])
    other.load_state_dict(history.state_dict())
    assert other.series == {"x": ([0, 1], [1.5, 2.5])}


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ipc", "0"], "--ipc must be a whole number >= 1; got 0"),
        (["--alpha", "1.5"], r"--alpha must be a number in \[0, 1\]; got 1.5"),
        (["--alpha", "nan"], "--alpha must be"),
        (["--scale", "-1"], "--scale must be a number > 0"),
        (["--lr-image", "inf"], "--lr-image must be"),
        (["--image-size", "15"], "--image-size must be a multiple of --factor 2"),
        (["--depth", "5"], "--depth must be at most 4"),
        (["--device", "tpu9"], "--device tpu9 cannot be used"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--dataset", "imagewoof"], "--dataset imagewoof needs --data-dir PATH"),
        # PyTorch's optimizers cannot hold such a rate.
        (["--lr-image", "1e300"], "--lr-image must be a number > 0 and at most 1e"),
        (["--sampler-lr", "1e300"], "--sampler-lr must be a number from 0 to 1e"),
        (["--calibration", "1e300"], "--calibration must be a number from 0 to 1e"),
        (["--resume", "--overwrite"], "give one of them"),
    ],
)
def test_bad_values_name_the_option_and_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        options.configure(options.parser().parse_args(arguments))


def test_presets_fill_in_what_is_left_out():
    paper = configure("--preset", "paper", "--dataset", "cifar10", "--width", "64")
    assert (paper.iterations, paper.width, paper.zoo_size, paper.eval_runs) == (20_000, 64, 20, 10)
    tiny = configure("--preset", "paper", "--dataset", "tinyimagenet", "--data-dir", "x")
    assert (tiny.image_size, tiny.depth, tiny.eval_epochs) == (64, 4, 300)
    assert configure().calibration == configure("--no-calibration").calibration == 0
    assert configure("--calibration").calibration == 1
    assert configure("--calibration", "0.5").calibration == 0.5


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize(
    ("dataset", "size", "depth", "epochs"),
    [
        ("cifar10", 32, 3, 2000),
        ("cifar100", 32, 3, 2000),
        ("tinyimagenet", 64, 4, 300),
        *((name, 128, 5, 2000) for name in data.IMAGENET_SUBSETS),
    ],
)
def test_the_paper_preset_is_the_published_recipe(dataset, size, depth, epochs, ipc):
    c = configure("--preset", "paper", "--dataset", dataset, "--data-dir", "x", "--ipc", str(ipc))
    assert (c.image_size, c.depth, c.width, c.ipc, c.factor) == (size, depth, 128, ipc, 2)
    assert (c.zoo_size, c.zoo_epochs, c.extractor, c.layers) == (20, 60, "hybrid", 1)
    assert (c.iterations, c.batch_real, c.num_frequencies) == (20_000, 1024, 1024)
    assert (c.sampler, c.loss, c.alpha, c.scale) == ("mixture", "root", 0.5, 1.0)
    assert (c.lr_image, c.patience) == (1e-3, 500)
    assert (c.calibration, c.soft_labels, c.fine_tune) == (0.0, False, False)
    assert (c.eval_epochs, c.eval_runs, c.eval_networks) == (epochs, 10, ["convnet"])


@pytest.mark.parametrize(
    ("arguments", "loss"),
    [
        (["--ipc", "4"], "unbiased"),
        ([], "root"),  # digits: 1 stored image per class holds only 4
        (["--ipc", "4", "--alpha", "0.3"], "root"),
        (["--factor", "1", "--ipc", "1"], "root"),
        (["--ipc", "4", "--batch-real", "1"], "root"),
        (["--preset", "paper"], "root"),
        (["--preset", "paper", "--loss", "unbiased"], "unbiased"),
        (["--ipc", "4", "--loss", "root"], "root"),
        (["--ipc", "4", "--method", "mmd"], "unbiased"),
        (["--method", "mmd", "--factor", "1", "--ipc", "1"], "squared"),
    ],
)
def test_the_form_of_the_loss_is_the_unbiased_one_where_it_serves(arguments, loss):
    assert configure(*arguments).loss == loss


def test_scale_depends_on_the_method_and_on_what_is_given():
    assert [configure("--method", m).scale for m in ("ncfm", "ncfm-fixed", "ncfm-exact")] == [1] * 3
    assert configure("--method", "mmd").scale == 3
    assert configure("--method", "mmd", "--preset", "paper").scale == 3
    assert configure("--method", "mmd", "--scale", "0.5").scale == 0.5


def test_the_bound_follows_what_psi_climbs():
    assert configure("--adversary", "signal").max_ratio == 30
    assert configure("--adversary", "loss").max_ratio == 2
    assert configure("--adversary", "signal", "--max-ratio", "5").max_ratio == 5
    # One line of options serves several methods.
    assert configure("--adversary", "signal", "--method", "mmd").adversary == "loss"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "unbiased", "--alpha", "0.3"], "--loss unbiased needs --alpha 0.5; got 0.3"),
        (["--loss", "unbiased", "--ipc", "1", "--factor", "1"], "two samples of each class"),
        (["--method", "mmd", "--loss", "root"], "--method mmd has no --loss root"),
        (["--method", "ncfm-exact", "--alpha", "0.1"], "closed form for --alpha 0.5 only"),
        (["--method", "ncfm-fixed", "--sampler", "mixture"], "one of normal, .* got mixture"),
        (["--method", "ncfm-exact", "--sampler", "student"], "one of mixture, diagonal, normal"),
        (["--method", "dm", "--sampler", "normal"], "--sampler must be left out for --method dm"),
        (["--frequency-draw", "sobol"], "--frequency-draw must be random for --sampler mixture"),
        (["--method", "mmd", "--frequency-draw", "sobol"], "which draws no frequencies"),
        (["--method", "dm", "--frequency-schedule", "rising"], "must be constant for --method dm"),
        (["--method", "mix", "--frequency-schedule", "rising"], "constant for --method mix"),
        (["--fixed-norm", "--sampler", "normal"], "--fixed-norm needs --sampler mixture"),
        (
            ["--spread", "0.5", "--sampler", "direct"],
            "--spread needs a law .* got --sampler direct",
        ),
        (["--spread", "11"], r"--spread must be a number in \[0, 10\]; got 11"),
        (["--layers", "3"], "--layers must be at most --depth 2"),
        (["--memory-limit-gb", "0"], "--memory-limit-gb must be a number > 0"),
    ],
)
def test_what_is_not_defined_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        configure(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--alpha 0.3 --iterations 3 --max-ratio 3 --zoo-size 2 --factor 1", []),
        ("--method ncfm-fixed --alpha 0.3 --num-frequencies 9 --scale 2", []),
        (
            "--method mmd --adversary signal --max-ratio 3 --spread 1 --scale-unit median",
            ["--adversary, --max-ratio: no effect with --method mmd, where ψ does not move"],
        ),
        (
            "--method dm --spread 1 --scale-unit median",
            ["--scale-unit, --spread: no effect with --method dm"],
        ),
        ("--method mix --iterations 3 --calibration --zoo-size 2 --baselines dm", []),
        ("--method random --factor 4 --zoo-epochs 3 --fine-tune --lr-image 1e-3", []),
        ("--baselines full --full-epochs 3 --num-frequencies 1024", []),
        ("--method dm --alpha 0.5 --loss root", ["--alpha, --loss: no effect with --method dm"]),
        (
            "--method ncfm-fixed --sampler-lr 1",
            ["--sampler-lr: no effect with --method ncfm-fixed, where ψ does not move"],
        ),
        (
            "--method random --patience 9 --layers 2 --no-baselines --factor 4",
            [
                "--patience, --layers: no effect with --method random, which matches nothing",
                "--factor: no effect with --method random",
            ],
        ),
        (
            "--method mix --zoo x --no-baselines",
            ["--zoo: no effect with --method mix, which needs no zoo"],
        ),
        ("--zoo x --zoo-size 2", ["--zoo-size: no effect with --zoo, which is trained already"]),
        (
            "--full-epochs 3 --data-dir x",
            [
                "--data-dir: no effect with --dataset digits",
                "--full-epochs: no effect without the baseline `full`",
            ],
        ),
    ],
)
def test_options_that_change_nothing_are_named(arguments, expected):
    arguments = arguments.split()
    config = options.configure(options.parser().parse_args(arguments))
    found = options.idle(config, options.given(arguments))
    assert sorted(found) == sorted(expected)


def test_given_options_are_those_on_the_command_line():
    assert options.given(["--ipc", "1", "--no-cache", "--scores"]) == {"ipc", "cache", "scores"}
    assert options.given([]) == set()


def test_memory_that_runs_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert memory.is_exhausted(caught.value)
    said = memory.explain(caught.value)
    assert "you tried to allocate" in said
    assert "--memory-limit-gb" in said
    assert memory.is_exhausted(MemoryError())
    assert "out of memory" in memory.explain(MemoryError())
    assert not memory.is_exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Pictures


def test_a_grid_has_a_row_for_each_class_in_one_system_of_axes(tmp_path, monkeypatch):
    images = torch.zeros(3, 3, 4, 4)
    images[0, 0] = images[1, 1] = images[2, 2] = 1  # red, green, blue
    images[0, :, :2, :2] = 1  # and white at the top left
    made = []

    class Figure(report.Figure):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(report, "Figure", Figure)
    report.save_grid(tmp_path / "grid.png", images, torch.tensor([0, 0, 1]), ["one", "two"])
    assert len(made[0].axes) == 1
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))

    # Cells of 1.6 inches, 1.05 from the left, at 110 to the inch.
    def place(edge, k, share):
        return round(110 * (edge + 1.6 * (k + share)))

    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
    for r, k, share, colour in (
        *((0, 0, 0.75, "red"), (0, 0, 0.25, "white"), (0, 1, 0.25, "green")),
        *((1, 0, 0.25, "blue"), (1, 1, 0.5, "white")),
    ):
        assert tuple(pixels[place(0, r, share), place(1.05, k, share)]) == colours[colour], (
            r,
            k,
            share,
        )
