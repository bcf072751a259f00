import pytest
import torch
from distillation import data as data_module
from distillation import imagefolder
from distillation.data import RealBatches

CPU = torch.device("cpu")


def test_digits_are_split_into_disjoint_parts(digits):
    parts = [digits.train_images, digits.validation_images, digits.test_images]
    assert [len(p) for p in parts] == [959, 239, 599]
    for part in parts:
        assert part.dtype == torch.uint8
        assert part.shape[1:] == (1, 16, 16)
    shares = torch.bincount(digits.validation_labels) / torch.bincount(digits.train_labels)
    assert ((shares > 0.2) & (shares < 0.3)).all()
    again = data_module.load("digits", None, 16, CPU)
    assert torch.equal(again.validation_images, digits.validation_images)


def test_normalised_training_images_have_mean_zero_and_deviation_one(digits):
    x = digits.normalise(digits.train_images)
    assert x.mean().abs() < 1e-4
    assert (x.std() - 1).abs() < 1e-3
    torch.testing.assert_close(digits.normalise(digits.train_images.float() / 255), x)


def test_a_folder_with_odd_files_is_read(tree, monkeypatch):
    data = data_module.load("imagefolder", tree, 16, CPU)
    assert data.class_names == ["cold", "warm"]
    assert data.train_images.shape[1:] == (3, 16, 16)
    assert len(data.train_images) + len(data.validation_images) == 24
    assert len(data.test_images) == 24
    (skipped,) = data.skipped
    assert "broken.jpg" in skipped
    warm = data.train_images[data.train_labels == 1].float().mean((0, 2, 3))
    assert warm[0] > warm[2]
    # The second time nothing is decoded, and the skipped file is still known.
    monkeypatch.setattr(imagefolder, "decode", None)
    again = data_module.load("imagefolder", tree, 16, CPU)
    assert torch.equal(again.train_images, data.train_images)
    assert again.skipped == data.skipped


def test_image_size_is_guessed_from_the_files(tree):
    assert data_module.default_image_size("imagefolder", tree) == 16


@pytest.mark.parametrize("dataset", ["imagefolder", "imagenette", "tinyimagenet"])
def test_a_folder_is_asked_for(dataset):
    with pytest.raises(ValueError, match=r"--data-dir PATH; expected layout"):
        data_module.load(dataset, None, 16, CPU)


def test_cifar_without_network_says_the_way_out(monkeypatch, tmp_path):
    from torchvision import datasets

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "CIFAR10", no_network)
    with pytest.raises(ConnectionError, match=r"--dataset imagefolder --data-dir PATH"):
        data_module.load("cifar10", tmp_path, 32, CPU)


def test_real_batches_use_each_image_once_before_any_again(digits):
    batches = RealBatches(digits, 30, torch.Generator().manual_seed(0))
    counts = torch.bincount(digits.train_labels)
    seen = [torch.empty(0, 1, 16, 16) for _ in range(10)]
    for _ in range(3):  # 90 of about 96 images
        images, labels = batches.draw()
        assert torch.bincount(labels).tolist() == [30] * 10
        for c in range(10):
            seen[c] = torch.cat([seen[c], images[labels == c]])
    different = len(torch.unique(seen[0].flatten(1), dim=0))
    assert different == min(90, counts[0])


def test_a_small_class_gives_all_it_has(digits):
    batches = RealBatches(digits, 10_000, torch.Generator().manual_seed(0))
    _, labels = batches.draw()
    assert torch.equal(torch.bincount(labels), torch.bincount(digits.train_labels))


def test_real_batches_go_on_where_they_were_saved(digits):
    batches = RealBatches(digits, 40, torch.Generator().manual_seed(0))
    batches.draw()
    state, stream = batches.state_dict(), batches.generator.get_state()
    expected = [batches.draw()[0] for _ in range(4)]
    other = RealBatches(digits, 40, torch.Generator())
    other.load_state_dict(state)
    other.generator.set_state(stream)
    for images in expected:
        assert torch.equal(other.draw()[0], images)
