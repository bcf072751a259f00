"""One over the median distance, against SciPy in float64: sets, groups, weights, extremes."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from strategies import normal
from torch import Tensor

from ncfd._median import MOST_ROWS, inverse_median_distance


def expected(x: Tensor) -> float:
    """From all pairs of different rows, in float64 and in units of the largest difference."""
    rows = x.double().numpy()
    rows = rows - rows[0]
    size = np.abs(rows).max()
    distances = scipy.spatial.distance.pdist(rows / size)
    return 1 / np.median(distances[distances > 0]) / size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "D"), [(2, 1), (3, 2), (40, 5), (41, 300), (MOST_ROWS, 3)])
def test_is_that_of_all_pairs(N: int, D: int, dtype: torch.dtype) -> None:
    x = normal(1, N, D).to(dtype)
    found = inverse_median_distance(x)
    assert found.shape == ()
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_allclose(found, expected(x), rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("size", [1e-35, 1e-20, 1.0, 1e20, 1e29])
def test_neither_place_nor_magnitude_matters(size: float, offset: float) -> None:
    x = (normal(2, 60, 4) + offset) * size
    # As near to the truth as the rows are to these numbers: their rounding is compared away.
    np.testing.assert_allclose(inverse_median_distance(x), expected(x), rtol=1e-12)
    single = (normal(2, 60, 4) + min(offset, 1e4)).float() * size
    np.testing.assert_allclose(inverse_median_distance(single), expected(single), rtol=1e-6)


@pytest.mark.parametrize("value", [1e6, 1e15, 1e30, -3e38])
def test_a_few_absurd_rows_do_not_matter(value: float) -> None:
    x = normal(3, 100, 4, dtype=torch.float32)
    x[[7, 50, 93]] = value
    np.testing.assert_allclose(inverse_median_distance(x), expected(x), rtol=1e-6)
    assert inverse_median_distance(x) > 0.9 * inverse_median_distance(x[8:50])


@pytest.mark.parametrize("share", [10, 40, 50, 60, 90])
@pytest.mark.parametrize(
    ("size", "D", "separation", "rtol"),
    # With 5000 features distances come from products: squares of 1e4 beside 5e15 round by 1.
    [(100, 3, 1e6, 1e-9), (100, 3, 1e9, 1e-6), (100, 5000, 1e6, 3e-4)],
)
def test_far_clusters(size: int, D: int, separation: float, rtol: float, share: int) -> None:
    x = normal(4, size, D)
    x[:share] += separation
    np.testing.assert_allclose(inverse_median_distance(x), expected(x), rtol=rtol)


def test_batches_and_groups_are_sets_of_their_own() -> None:
    x = normal(5, 2, 3, 20, 4) * torch.logspace(-9, 9, 6).view(2, 3, 1, 1).double()
    found = inverse_median_distance(x)
    assert found.shape == (2, 3)
    alone = [expected(s) for s in x.reshape(6, 20, 4)]
    np.testing.assert_allclose(found.flatten(), alone, rtol=1e-12)
    # Groups of 1, 2, 3, ... rows and two without any, in mixed order; one is far larger.
    sizes = [1, 2, 3, 4, 5, 0, 8, 9, 300, 0]
    groups = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(6))]
    rows = normal(7, len(groups), 4) * (10.0 ** (groups - 5.0)).unsqueeze(1)
    found = inverse_median_distance(rows, groups.int(), 10)
    assert found.shape == (10,)
    for g, count in enumerate(sizes):
        truth = 1.0 if count < 2 else expected(rows[groups == g])
        np.testing.assert_allclose(found[g], truth, rtol=1e-12, err_msg=str(g))


@pytest.mark.parametrize("filling", [0.0, 1e30, math.nan, math.inf])
def test_rows_of_weight_0_are_absent(filling: float) -> None:
    x = normal(8, 3, 30, 4)
    weights = (normal(9, 3, 30) > 0).double()
    weights[weights > 0] = 7.5
    weights[2] = 0
    weights[2, 5] = 1  # one row is no pair
    filled = torch.where(weights.unsqueeze(-1) > 0, x, filling)
    found = inverse_median_distance(filled, weights=weights)
    truth = [expected(s[w > 0]) for s, w in zip(x[:2], weights[:2], strict=True)]
    np.testing.assert_allclose(found, [*truth, 1.0], rtol=1e-12)
    groups = torch.arange(90) % 4
    found = inverse_median_distance(filled.view(90, 4), groups, 5, weights.view(90))
    for g in range(4):
        member = (groups == g) & (weights.view(90) > 0)
        np.testing.assert_allclose(found[g], expected(x.view(90, 4)[member]), rtol=1e-12)
    assert found[4] == 1


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(5, 3),
        torch.full((7, 2), 1e20),
        torch.full((7, 300), 0.1),
        torch.full((4, 2), -1e-40),
        torch.ones(1, 3),
        torch.ones(0, 3),
    ],
    ids=["zeros", "1e20", "0.1", "tiny", "one row", "no row"],
)
def test_without_a_distance_the_factor_is_1(x: Tensor) -> None:
    assert inverse_median_distance(x) == 1
    assert inverse_median_distance(x.double()) == 1


def test_equal_rows_are_no_pairs() -> None:
    # Seven rows in ten are equal, far from 0 and with digits that do not cancel by themselves.
    x = torch.full((100, 50), 1 / 3, dtype=torch.float64)
    x[70:] += 0.1 * normal(10, 30, 50)
    np.testing.assert_allclose(inverse_median_distance(x), expected(x), rtol=1e-9)
    one_hot = torch.eye(3)[torch.arange(50) % 3]
    np.testing.assert_allclose(inverse_median_distance(one_hot), 0.5**0.5, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(bad: float) -> None:
    x = normal(11, 2, 20, 3)
    x[0, 4, 1] = bad
    found = inverse_median_distance(x)
    assert found[0].isnan()
    np.testing.assert_allclose(found[1], expected(x[1]), rtol=1e-12)


def test_factors_leave_room_for_what_they_multiply() -> None:
    found = inverse_median_distance(torch.tensor([[0.0], [1e-44]]))
    assert (8 * found).isfinite()
    assert inverse_median_distance(torch.tensor([[-3e38], [3e38]])) > 0


@pytest.mark.parametrize(("D", "looked_at"), [(2, MOST_ROWS), (2048, MOST_ROWS // 2)])
def test_many_rows_cost_no_more_than_some(D: int, looked_at: int) -> None:
    # The rows that are looked at are spread over all: half of these are ten times as wide.
    x = normal(12, 1500, D)
    x[700:] *= 10
    found = inverse_median_distance(x)
    np.testing.assert_allclose(found, expected(x), rtol=0.1)
    spaced = x[torch.arange(looked_at) * len(x) // looked_at]
    np.testing.assert_allclose(found, expected(spaced), rtol=1e-12)
    np.testing.assert_allclose(inverse_median_distance(x.expand(3, -1, -1)), found, rtol=1e-12)


def test_cost_follows_the_rows_there_are() -> None:
    # One group of 1500 rows and 399 of 4: room for 400 of the largest would be a hundred times it.
    groups = torch.cat([torch.zeros(1500), 1 + torch.arange(399 * 4) % 399]).long()
    x = normal(13, len(groups), 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        inverse_median_distance(x, groups, 400)
    assert largest <= 2 * MOST_ROWS**2


def test_no_gradient_and_no_autocast() -> None:
    x = normal(14, 30, 4, dtype=torch.float32).requires_grad_()
    found = inverse_median_distance(x)
    assert not found.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inverse_median_distance(x), found)
