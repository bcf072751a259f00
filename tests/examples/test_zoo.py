"""The zoo, and its members shared between runs."""

from dataclasses import replace

import pytest
import torch
from distillation import cache, fused, networks, training, zoo
from distillation.randomness import generator


@pytest.fixture
def few(digits):
    """A hundred digits: enough to train on."""
    return replace(
        digits, train_images=digits.train_images[:100], train_labels=digits.train_labels[:100]
    )


def network(width=4):
    return networks.ConvNet(1, 16, 10, width=width, depth=2)


def train(data, size=2, epochs=1, seed=0, width=4, **options):
    return zoo.train_zoo(network(width), data, size=size, epochs=epochs, seed=seed, **options)


def same(a, b):
    return all(
        torch.equal(value, getattr(b, part)[name])
        for part in ("initial", "trained")
        for name, value in getattr(a, part).items()
    )


def count_trainings(monkeypatch):
    calls = []
    original = training.train

    def counted(network, weights, *rest, **options):
        calls.append(len(next(iter(weights.values()))))
        return original(network, weights, *rest, **options)

    monkeypatch.setattr(training, "train", counted)
    return calls


def test_the_cache_gives_the_same_bits(few, monkeypatch):
    plain = train(few, use_cache=False)
    assert not cache.folder().exists()
    first = train(few)
    calls = count_trainings(monkeypatch)
    second = train(few)
    assert calls == []
    assert same(plain, first)
    assert same(plain, second)
    assert plain.accuracies == first.accuracies == second.accuracies
    assert (plain.reused, first.reused, second.reused) == (0, 0, 2)


def test_a_larger_zoo_takes_over_the_members_of_a_smaller_one(few, monkeypatch):
    small = train(few, size=1)
    calls = count_trainings(monkeypatch)
    large = train(few, size=3)
    assert sum(calls) == 2
    assert large.reused == 1
    assert len(large) == 3
    assert same(large, train(few, size=3, use_cache=False))
    assert all(torch.equal(w[0], large.trained[n][0]) for n, w in small.trained.items())


@pytest.mark.parametrize(
    "change", ["epochs", "seed", "width", "images", "labels", "validation", "recipe", "threads"]
)
def test_members_are_shared_only_if_nothing_differs(few, monkeypatch, change):
    train(few, size=1)
    options = {}
    if change in ("epochs", "seed", "width"):
        options[change] = 5
    elif change == "images":
        few.train_images = few.train_images.clone()
        few.train_images[-1, 0, 0, 0] ^= 1
    elif change == "labels":
        few.train_labels = few.train_labels.roll(1)
    elif change == "validation":
        few.validation_images = few.validation_images[:-1]
        few.validation_labels = few.validation_labels[:-1]
    elif change == "recipe":
        monkeypatch.setattr(zoo, "RECIPE", -1)
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert train(few, size=1, **options).reused == 0
    assert train(few, size=1, **options).reused == 1


@pytest.mark.skipif(fused.library()[0] is None, reason="there is no compiler")
def test_a_fused_member_is_not_taken_for_a_plain_one(few, monkeypatch):
    train(few, size=1, width=64)
    monkeypatch.setattr(fused, "ENABLED", False)
    assert train(few, size=1, width=64).reused == 0
    assert train(few, size=1, width=64).reused == 1


def test_a_damaged_member_is_named_and_trained_again(few, capsys):
    first = train(few)
    files = sorted((cache.folder() / "zoo").iterdir())
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:100])
    again = train(few)
    assert same(first, again)
    printed = capsys.readouterr().err
    assert all(f"{file} is damaged; it is made again" in printed for file in files)
    assert train(few).reused == 2


def test_a_zoo_without_room_for_its_cache_is_trained_all_the_same(few, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(train(few, size=1)) == 1
    assert "could not be kept for the next run" in capsys.readouterr().err


def test_blends_go_from_trained_to_initial(few):
    members = train(few)
    for beta, part in ((0.0, members.trained), (1.0, members.initial)):
        blend = members.blend(1, beta)
        assert all(torch.equal(w, part[name][1]) for name, w in blend.items())
    half = members.blend(0, 0.5)
    for name, w in half.items():
        expected = (members.initial[name][0] + members.trained[name][0]) / 2
        torch.testing.assert_close(w, expected)
    start = networks.initial_weights(network(), generator(0, "zoo weights", 1))
    assert all(torch.equal(w, members.initial[name][1]) for name, w in start.items())
