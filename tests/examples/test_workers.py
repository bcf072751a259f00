"""Trainings side by side: the bits of one after another, and how they end."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from distillation import checkpoint, comparison, evaluation, networks, training, workers, zoo
from distillation.comparison import Recipe, Stored
from distillation.randomness import generator


@pytest.fixture
def cores():
    """Let there be two, and restore what there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def few(digits):
    """A hundred digits of 32 pixels, large enough for a core each."""
    large = {
        name: getattr(digits, name)[:100].repeat_interleave(2, 2).repeat_interleave(2, 3)
        for name in ("train_images", "validation_images", "test_images")
    }
    labels = {
        name: getattr(digits, name)[:100]
        for name in ("train_labels", "validation_labels", "test_labels")
    }
    return replace(digits, **large, **labels)


def test_results_come_in_order_and_at_most_so_many_work_at_once(cores, monkeypatch):
    working, most, lock = [0], [0], threading.Lock()

    def square(k):
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        assert torch.get_num_threads() == 1
        time.sleep(0.02)
        with lock:
            working[0] -= 1
        return k * k

    assert workers.each(square, range(7)) == [k * k for k in range(7)]
    assert most[0] == 2
    # A tree of them has as many cores as its root.
    nested = workers.each(lambda k: workers.each(square, [k, k + 1]), range(4), waits=True)
    assert nested == [[k * k, (k + 1) ** 2] for k in range(4)]
    assert most[0] == 2
    monkeypatch.setattr(workers, "AT_ONCE", 1)
    most[0] = 0
    workers.each(square, range(3))
    assert most[0] == 1
    assert workers.each(square, []) == []
    assert workers.each(lambda _: torch.get_num_threads(), [0], one_core=False) == [2]


def test_the_first_that_fails_ends_the_others(cores):
    def work(k):
        if k == 1:
            raise FloatingPointError("this one")
        for _ in range(1000):
            time.sleep(0.01)
            workers.check()

    began = time.perf_counter()
    with pytest.raises(FloatingPointError, match="this one"):
        workers.each(work, range(4))
    assert time.perf_counter() - began < 5
    workers.check()  # nothing is left of it


def test_a_signal_ends_all(cores, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def work(_):
        for _ in range(1000):
            time.sleep(0.01)
            workers.check()

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.each(work, range(3))


def test_members_and_judgements_have_the_bits_of_one_after_another(few, cores, monkeypatch):
    network = networks.ConvNet(1, 32, 10, width=16, depth=3)
    stored = Stored(few.train_images[:40].float() / 255, few.train_labels[:40])
    recipe = Recipe(epochs=4, runs=3, seed=0, width=16, depth=3)

    def outcome():
        members = zoo.train_zoo(network, few, size=3, epochs=2, seed=0, use_cache=False)
        sets = {"a": stored, "b": replace(stored, images=1 - stored.images)}
        judged = comparison.judge(
            few, sets, recipe, headline="a", networks=["convnet"], with_scores=False
        )
        return members, judged

    assert training.one_core_each(few)
    members, judged = outcome()
    monkeypatch.setattr(workers, "AT_ONCE", 1)
    alone, one_by_one = outcome()
    assert members.accuracies == alone.accuracies
    assert all(torch.equal(w, alone.trained[n]) for n, w in members.trained.items())
    assert judged == one_by_one


def test_a_judgement_that_was_cut_off_repeats_no_finished_run(few, cores, tmp_path, monkeypatch):
    network = networks.ConvNet(1, 32, 10, width=16, depth=3)
    original, trained, file = training.train, [], tmp_path / "evaluation-x.pt"

    def judge():
        return evaluation.evaluate(
            network,
            few,
            few.train_images[:40].float() / 255,
            few.train_labels[:40],
            factor=1,
            epochs=2,
            runs=4,
            seed=0,
            name="x",
            file=file,
        )

    def train(network, weights, data, images, labels, generators, **options):
        seed = generators[0].initial_seed()
        trained.append(seed)
        if seed in fail:
            while len(trained) < 4 or len(finished()) < 3:
                time.sleep(0.05)
            raise KeyboardInterrupt
        return original(network, weights, data, images, labels, generators, **options)

    def finished():
        runs = checkpoint.load(file)["runs"] if file.exists() else []
        return [run for run in runs if run is not None]

    fail = set()
    monkeypatch.setattr(evaluation.training, "train", train)
    whole = judge()
    assert len(trained) == 4
    file.unlink()
    fail = {generator(0, "evaluation training", 0).initial_seed()}
    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        judge()
    trained.clear()
    stopped, fail = fail, set()
    assert judge() == whole
    assert {*trained} == stopped
    assert not list(tmp_path.glob("unfinished*"))
