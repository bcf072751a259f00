import pytest
import torch
from distillation import formation


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_join_is_the_inverse_of_split(factor):
    images = torch.rand(4, 3, 12, 12)
    parts = formation.split(images, factor)
    assert parts.shape == (4 * factor**2, 3, 12 // factor, 12 // factor)
    assert torch.equal(formation.join(parts, factor), images)


def test_split_goes_row_by_row():
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, :2, 2:] = 1  # top right
    assert formation.split(image, 2).mean((1, 2, 3)).tolist() == [0, 1, 0, 0]


def test_decoding_fills_the_size_and_keeps_the_range():
    images = torch.rand(5, 3, 16, 16)
    decoded = formation.decode(images, 2)
    assert decoded.shape == (20, 3, 16, 16)
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_packing_what_was_decoded_gives_smooth_images_back(factor):
    # Exact for what survives both interpolations: constant sub-images.
    images = formation.join(torch.rand(3 * factor**2, 3, 1, 1).expand(-1, 3, 8, 8), factor)
    again = formation.pack(formation.decode(images, factor), factor)
    torch.testing.assert_close(again, images, atol=1e-6, rtol=0)


def test_packing_then_decoding_keeps_each_image():
    ramp = torch.linspace(0.2, 0.8, 16)
    images = torch.stack([ramp[:, None].expand(16, 16), ramp[None].expand(16, 16)] * 2)[:, None]
    again = formation.decode(formation.pack(images, 2), 2)
    assert (again - images).abs().mean() < 0.01


def test_decoding_is_differentiable():
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    formation.decode(images, 2).sum().backward()
    # Interpolation weights sum to ρ² for every stored pixel on average.
    torch.testing.assert_close(images.grad.mean(), torch.tensor(4.0))


def test_initialisation_takes_different_images_of_the_right_class():
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 8, 8)
    labels = torch.arange(40) % 4
    stored, stored_labels = formation.packed_initialisation(
        images, labels, ipc=2, num_classes=4, factor=2, generator=torch.Generator().manual_seed(0)
    )
    assert stored.shape == (8, 1, 8, 8)
    assert stored_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    values = (formation.split(stored, 2)[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(values % 4, stored_labels.repeat_interleave(4))
    assert len(values.unique()) == len(values)  # 8 of the 10 images of a class, none twice


def test_initialisation_reuses_the_images_of_a_small_class_evenly():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 8, 8)
    stored, _ = formation.packed_initialisation(
        images,
        torch.zeros(3, dtype=torch.int64),
        ipc=1,
        num_classes=1,
        factor=2,
        generator=torch.Generator().manual_seed(0),
    )
    values = (formation.split(stored, 2)[:, 0, 0, 0] * 255).round().tolist()
    assert set(values) == {10, 20, 30}
