"""The bank of stored φ: the same numbers and the same gradient as forward passes made now."""

import json

import pytest
import torch
from distillation import augmentation, formation, networks, options, zoo
from distillation.randomness import generator
from studies import stored_phi
from torch.nn import functional as F

import ncfd

SMALL = [
    *("--dataset", "digits", "--device", "cpu", "--iterations", "3", "--width", "4"),
    *("--ipc", "2", "--zoo-size", "1", "--zoo-epochs", "1", "--num-frequencies", "32"),
    *("--eval-epochs", "1", "--eval-runs", "1", "--batch-real", "12", "--no-cache"),
]


@pytest.fixture
def game(digits):
    config = options.configure(options.parser().parse_args([*SMALL, "--method", "ncfm-fixed"]))
    network = networks.ConvNet(1, 16, 10, config.width, config.depth)
    first, second = (
        networks.stack([networks.initial_weights(network, generator("bank", k))]) for k in (0, 1)
    )
    return config, digits, network, zoo.Zoo(first, second, [0.0])


def test_entry_holds_the_phi_of_all_real_images(game):
    config, digits, network, members = game
    bank = stored_phi.Bank(config, digits, network, members, size=1, per=10**6)
    entry = bank.pick()
    images = augmentation.augment(
        digits.normalise(digits.train_images), entry.params, digits.train_labels
    )
    features, _ = networks.run(network, entry.weights, images)
    direct = ncfd.functional.characteristic_function(
        F.normalize(features, dim=1), entry.t, groups=digits.train_labels, num_groups=10
    )
    # float32 features in pieces of 128 images and in one: 1e-6 between the two.
    torch.testing.assert_close(entry.phi, direct, atol=1e-5, rtol=0)
    assert entry.phi.abs().min() < 0.999  # not the φ of nothing


def test_gradient_is_that_of_fresh_real_features(game):
    config, digits, network, members = game
    entry = stored_phi.Bank(config, digits, network, members, size=1, per=10**6).pick()
    images, labels = formation.packed_initialisation(
        digits.train_images,
        digits.train_labels,
        ipc=2,
        num_classes=10,
        factor=2,
        generator=generator("images"),
    )
    real = augmentation.augment(
        digits.normalise(digits.train_images), entry.params, digits.train_labels
    )
    real, _ = networks.run_in_chunks(network, entry.weights, real)
    groups = labels.repeat_interleave(4)
    gradients = []
    for stored in (True, False):
        leaf = images.clone().requires_grad_()
        decoded = augmentation.augment(
            digits.normalise(formation.decode(leaf, 2)), entry.params, groups
        )
        features, _ = networks.run(network, entry.weights, decoded)
        # Without its noise the squared loss differs by what does not depend on the images.
        value = ncfd.functional.ncfd_loss(
            entry.phi if stored else F.normalize(real, dim=1),
            F.normalize(features, dim=1),
            entry.t,
            squared=True,
            unbiased=True,
            x_groups=None if stored else digits.train_labels,
            y_groups=groups,
            num_groups=10,
        )
        value.backward()
        gradients.append(leaf.grad)
    size = gradients[1].abs().max()
    assert size > 0
    # Differences of nearly equal φ in float32, through a network: four digits are left.
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3 * size, rtol=0)


def test_renewed_entry_takes_the_place_of_the_oldest(game):
    config, digits, network, members = game
    bank = stored_phi.Bank(config, digits, network, members, size=2, per=8)
    first, second = bank.entries
    assert not torch.equal(first.t, second.t)
    bank.renew()
    assert bank.entries[0] is second
    assert len(bank.entries) == 2


@pytest.mark.parametrize("bank", [0, 2])
def test_runs_and_writes_what_it_did(bank, tmp_path):
    found = stored_phi.main(
        [*SMALL, "--bank", str(bank), "--renew", "1", "--output-dir", str(tmp_path)]
    )
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["bank"] == {"entries": bank, "real": 512, "renew": 1}
    assert written["accuracy"]["mean"] == found["accuracy"]["mean"]
    assert 0 < written["accuracy"]["mean"] <= 100


@pytest.mark.parametrize("option", [("--bank", "-1"), ("--bank-real", "0"), ("--renew", "-3")])
def test_refuses_sizes_below_what_makes_sense(option, capsys):
    with pytest.raises(SystemExit):
        stored_phi.main([*SMALL, *option])
    assert option[0] in capsys.readouterr().err
