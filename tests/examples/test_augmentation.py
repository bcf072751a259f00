from dataclasses import replace

import pytest
import torch
from distillation import augmentation
from distillation.augmentation import MATCHING, TRAINING, Strategy

NOTHING = Strategy(
    brightness=0,
    saturation=0,
    contrast=0,
    crop=0,
    cutout=0,
    flip=False,
    scale=0,
    rotate=0,
    one_of=False,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strategy", [MATCHING, TRAINING, replace(TRAINING, one_of=False)])
def test_siamese_images_with_one_label_get_the_same_transformation(strategy):
    x = torch.randn(6, 3, 16, 16, generator=generator())
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    params = augmentation.draw(3, strategy, 16, generator(1))
    real = augmentation.augment(x, params, labels)
    # The "synthetic" batch holds the same images in another order: equal in, equal out.
    order = torch.tensor([5, 3, 1, 0, 4, 2])
    synthetic = augmentation.augment(x[order], params, labels[order])
    torch.testing.assert_close(synthetic, real[order])
    other = augmentation.augment(x, params, labels.roll(1))
    assert not torch.allclose(other, real)


def test_nothing_switched_on_changes_nothing():
    x = torch.randn(4, 3, 16, 16, generator=generator())
    params = augmentation.draw(4, NOTHING, 16, generator(1))
    torch.testing.assert_close(augmentation.augment(x, params), x, atol=1e-5, rtol=0)


def test_flip_alone_mirrors_about_half_of_the_images():
    x = torch.randn(200, 1, 8, 8, generator=generator())
    params = augmentation.draw(200, replace(NOTHING, flip=True), 8, generator(1))
    y = augmentation.augment(x, params)
    kept = (y - x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (y - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all()
    assert 60 < kept.sum() < 140


def test_crop_alone_shifts_by_whole_pixels():
    x = torch.randn(50, 1, 16, 16, generator=generator())
    params = augmentation.draw(50, replace(NOTHING, crop=0.125), 16, generator(1))
    y = augmentation.augment(x, params)
    shifts = params.theta[:, :, 2] * 8
    torch.testing.assert_close(shifts, shifts.round())
    assert shifts.abs().max() == 2
    for n, (dx, dy) in enumerate(shifts.long().tolist()):
        moved = torch.zeros(16, 16)
        rows = slice(max(0, -dy), 16 - max(0, dy))
        columns = slice(max(0, -dx), 16 - max(0, dx))
        inner = x[n, 0].roll((-dy, -dx), (0, 1))
        moved[rows, columns] = inner[rows, columns]
        torch.testing.assert_close(y[n, 0], moved, atol=1e-4, rtol=0)


def test_cutout_alone_blanks_at_most_its_share():
    x = torch.ones(100, 1, 16, 16)
    params = augmentation.draw(100, replace(NOTHING, cutout=0.5), 16, generator(1))
    blank = (augmentation.augment(x, params) == 0).float().mean((1, 2, 3))
    assert blank.max() <= 0.25
    assert 0.1 < blank.mean() < 0.25


def test_digits_are_never_mirrored():
    params = augmentation.draw(200, augmentation.for_digits(TRAINING), 16, generator(1))
    determinants = torch.linalg.det(params.theta[:, :, :2])
    assert (determinants > 0).all()


def test_one_of_applies_a_single_kind():
    params = augmentation.draw(500, TRAINING, 16, generator(1))
    colour = params.brightness != 0
    moved = (params.theta[:, :, 2] != 0).any(1)
    cut = params.cut[:, 2] > 0
    turned = params.theta[:, 0, 1] != 0
    assert (colour.int() + moved.int() + cut.int() + turned.int()).max() == 1
    for kind in (colour, moved, cut, turned):
        assert 40 < kind.sum() < 130  # 500 draws over six kinds


def test_augmentation_is_differentiable():
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    augmentation.augment(x, augmentation.draw(4, TRAINING, 16, generator())).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_draws_depend_on_the_generator_only():
    state = torch.get_rng_state()
    a = augmentation.draw(5, TRAINING, 16, generator(3))
    b = augmentation.draw(5, TRAINING, 16, generator(3))
    assert torch.equal(a.theta, b.theta)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_of_several_generators_stand_side_by_side():
    together = augmentation.draw(5, TRAINING, 16, generator(3), generator(4))
    for k in (0, 1):
        alone = augmentation.draw(5, TRAINING, 16, generator(3 + k))
        part = together[torch.arange(5) + 5 * k]
        for name in ("brightness", "saturation", "contrast", "theta", "cut"):
            assert torch.equal(getattr(part, name), getattr(alone, name))


def test_a_draw_moves_in_one_piece():
    """To a device without values: shapes only, and a look at what was sent."""
    drawn = augmentation.draw(5, TRAINING, 16, generator(3))
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "sent", lambda x, device: sent.append(x) or x)
        moved = augmentation.to(drawn, torch.device("meta"))
    (whole,) = sent
    assert whole.shape == (5, 12)
    for name in ("brightness", "saturation", "contrast", "theta", "cut"):
        assert torch.equal(getattr(moved, name), getattr(drawn, name))


def test_cutmix_reports_the_share_it_left():
    for seed in range(20):
        x = torch.zeros(24, 32)
        rows, columns, own = augmentation.cutmix_box(24, 32, generator(seed))
        x[rows, columns] = 1
        assert x.mean().item() == pytest.approx(1 - own, abs=1e-6)
        assert 0 <= own <= 1
