"""The closed form wherever the rows lie: against float64 NumPy on the same inputs."""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from strategies import normal
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import (
    Distribution,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from ncfd import ops
from ncfd.functional import gaussian_ncfd

N, M, D = 50, 40, 3


def exact(
    x: Tensor,
    y: Tensor,
    scale: object = 1.0,
    w: Tensor | None = None,
    v: Tensor | None = None,
    rows: int | None = None,
) -> tuple[float, list[np.ndarray]]:
    """Value and slopes in x, y, scale ``(K, D)``, w and v, from differences in float64."""
    x, y = (side.detach().double().numpy() for side in (x, y))
    if isinstance(scale, Tensor):
        scale = scale.detach().double().numpy()
    scales = np.broadcast_to(np.atleast_2d(scale), (np.atleast_2d(scale).shape[0], x.shape[1]))
    w = np.ones(len(x)) if w is None else w.detach().double().numpy()
    v = np.ones(len(y)) if v is None else v.detach().double().numpy()
    grad_x, grad_y, grad_scale = np.zeros_like(x), np.zeros_like(y), np.zeros_like(scales)
    grad_w, grad_v = np.zeros_like(w), np.zeros_like(v)
    value = 0.0
    few = slice(None) if rows is None else slice(rows)
    for a, p, ga, gp, b, q, gb, gq, sign in (
        (x[few], w[few], grad_x[few], grad_w[few], x[few], w[few], grad_x[few], grad_w[few], 0.5),
        (y, v, grad_y, grad_v, y, v, grad_y, grad_v, 0.5),
        (x, w, grad_x, grad_w, y, v, grad_y, grad_v, -1.0),
    ):
        if len(a) == 0:
            continue
        gap = a[:, None] - b[None]
        pp, qq = p / p.sum(), q / q.sum()
        for k, s in enumerate(scales):
            kernel = sign / len(scales) * np.exp(-0.5 * ((s * gap) ** 2).sum(2))
            G = kernel * pp[:, None] * qq
            value += G.sum()
            pull = G[:, :, None] * gap * s**2
            ga -= pull.sum(1)
            gb += pull.sum(0)
            grad_scale[k] -= (G[:, :, None] * s * gap**2).sum((0, 1))
            gp += (kernel @ qq - G.sum()) / p.sum()
            gq += (pp @ kernel - G.sum()) / q.sum()
    return value, [grad_x, grad_y, grad_scale, grad_w, grad_v]


def assert_exact(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    weighted: bool = False,
    rows: int | None = None,
    way: str = "eager",
    rtol: float = 1e-4,
) -> None:
    w, v = (1 + normal(7, n, dtype=x.dtype).abs() for n in (len(x), len(y)))
    leaves = [u.clone().requires_grad_() for u in ((x, y, scale, w, v)[: 5 if weighted else 3])]

    def value(x: Tensor, y: Tensor, scale: Tensor, *weights: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(("x_weights", "y_weights"), weights, strict=False))
        return gaussian_ncfd(x, y, scale, real_rows=rows, **named)

    places = tuple(range(len(leaves)))
    if way == "transform":
        plain = [u.detach() for u in leaves]
        slopes, found = torch.func.grad_and_value(value, places)(*plain)
    elif way == "vmap":
        plain = [u.detach()[None] for u in leaves]
        slopes, found = torch.vmap(torch.func.grad_and_value(value, places))(*plain)
        slopes, found = [slope[0] for slope in slopes], found[0]
    else:
        function = torch.compile(value, backend="aot_eager") if way == "compiled" else value
        found = function(*leaves)
        slopes = torch.autograd.grad(found, leaves, create_graph=way == "second order")
    wanted, wanted_slopes = exact(x, y, scale, *((w, v) if weighted else (None, None)), rows)
    assert found.dtype == x.dtype
    # Terms of order 1 that cancel: kernels add to 1, slopes have squares and distances in them.
    eps = torch.finfo(x.dtype).eps
    assert abs(found.item() - wanted) <= rtol * abs(wanted) + 2 * eps
    floors = (eps, eps, 16 * eps, eps, eps)
    for slope, expected, floor in zip(slopes, wanted_slopes, floors, strict=False):
        if slope.shape != expected.shape:  # an isotropic scale
            expected = expected.sum(1, keepdims=True)
        error = np.abs(slope.detach().double().numpy() - expected).max()
        assert error <= rtol * np.abs(expected).max() + floor


def some(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return normal(1, N, D, dtype=dtype), normal(2, M, D, dtype=dtype) + 0.3


def moved(kind: str, far: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = some(dtype)
    match kind:
        case "both":
            return x + far, y + far
        case "one side":
            return x, y + far
        case "one row":
            x[3] = far
        case "one row of each":
            x[3], y[5] = far, far
        case "first rows":
            x[:4], y[:4] = x[:4] + far, y[:4] - far
        case "two places":
            x[::2], y[::2] = x[::2] + far, y[::2] + far
        case "three places":
            x[::3], y[::3], x[1::3] = x[::3] + far, y[::3] + far, x[1::3] - far
        case "one column":
            x[::2, 0], y[::2, 0] = x[::2, 0] + far, y[::2, 0] + far
    return x, y


KINDS = (
    "both",
    "one side",
    "one row",
    "one row of each",
    "first rows",
    "two places",
    "three places",
    "one column",
)
SCALES = {
    "number": torch.ones(1, 1),
    "feature": torch.tensor([[0.3, 0.8, 1.2]]),
    "isotropic": torch.tensor([[0.5], [1.0], [2.0]]),
    "mixture": torch.tensor([[0.3, 0.8, 1.2], [2.0, 0.1, 0.5]]),
}


@pytest.mark.parametrize("far", [30.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_the_rows_does_not_matter(kind: str, far: float) -> None:
    # At 1e8 the spacing of float32 is 8: scales that see such distances.
    unit = 0.1 if far > 1e7 else 1.0
    x, y = moved(kind, far, torch.float32)
    for name, scale in SCALES.items():
        assert_exact(x, y, unit * scale, weighted=name in ("isotropic", "feature"))
    for rows in (1, 20):
        assert_exact(x, y, unit * SCALES["feature"], rows=rows)
    x, y = moved(kind, far, torch.float64)
    for name in ("isotropic", "mixture"):
        assert_exact(x, y, SCALES[name].double(), weighted=True, rtol=1e-6)


@pytest.mark.parametrize("way", ["transform", "vmap", "second order", "compiled"])
@pytest.mark.parametrize("kind", ["both", "one row", "two places"])
def test_the_place_of_the_rows_does_not_matter_to_other_ways(kind: str, way: str) -> None:
    torch.compiler.reset()
    x, y = moved(kind, 1e6, torch.float32)
    for scale in ("isotropic", "mixture"):
        assert_exact(x, y, SCALES[scale], weighted=True, way=way)


def test_the_values_of_the_report() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, N, D, generator=g), torch.randn(2, M, D, generator=g) + 0.3
    alone = gaussian_ncfd(x[0], y[0]).item()
    assert alone == pytest.approx(0.043235, rel=1e-4)
    apart = gaussian_ncfd(x[0], y[0] + 1e4).item()
    assert apart == pytest.approx(0.188411, rel=1e-4)
    x[0, 0] = 1e6
    assert gaussian_ncfd(x[0], y[0]).item() == pytest.approx(0.041737, rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("far", [1e4, 1e8, 1e20, torch.nan])
def test_no_set_changes_another(far: float, grouped: bool, weighted: bool) -> None:
    x, y = normal(3, 3, N, D, dtype=torch.float32), normal(4, 3, M, D, dtype=torch.float32) + 0.3
    w, v = (1 + normal(5, 3, n, dtype=torch.float32).abs() for n in (N, M))
    x[1] += far
    y[2, 7] = far
    leaves = [u.requires_grad_() for u in (x, y)]
    weights = {"x_weights": w, "y_weights": v} if weighted else {}
    if grouped:
        weights = {name: u.flatten() for name, u in weights.items()}
        labels = [torch.arange(3).repeat_interleave(n) for n in (N, M)]
        value = gaussian_ncfd(
            x.flatten(0, 1),
            y.flatten(0, 1),
            reduction="none",
            x_groups=labels[0],
            y_groups=labels[1],
            num_groups=3,
            **weights,
        )
    else:
        value = gaussian_ncfd(x, y, **weights)
    wanted, slopes = exact(x[0], y[0], 1.0, *((w[0], v[0]) if weighted else ()))
    assert value[0].item() == pytest.approx(wanted, rel=1e-5)
    for slope, expected in zip(torch.autograd.grad(value[0], leaves), slopes, strict=False):
        np.testing.assert_allclose(slope[0], expected, atol=1e-5 * np.abs(expected).max())
        if not np.isnan(far):
            assert (slope[1:] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unbiased": True},
        {"scale": "median"},
        {"scale": torch.tensor([[0.5], [2.0]])},
        {"real_rows": 5},
        {"chunk_size": 7},
    ],
    ids=str,
)
def test_nan_and_infinity_show(bad: float, side: int, options: dict[str, Any]) -> None:
    """A row infinitely far from all others has a kernel of 0 with them, which would hide it."""
    sides = some()
    sides[side][4, 1] = bad
    x, y = (v.requires_grad_() for v in sides)
    value = gaussian_ncfd(x, y, **options)
    assert value.isnan()
    assert all(v.isnan().any() for v in torch.autograd.grad(value, (x, y)))
    pair = [torch.stack([v, w]) for v, w in zip((x, y), some(), strict=True)]
    assert gaussian_ncfd(*pair, **options).isnan().tolist() == [True, False]
    if "real_rows" not in options:
        labels = {"x_groups": torch.arange(N) % 2, "y_groups": torch.arange(M) % 2, "num_groups": 2}
        value = gaussian_ncfd(x, y, reduction="none", **options, **labels)
        assert value.isnan().tolist() == [True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_show_beside_a_law(bad: float) -> None:
    y = some()[1]
    y[4, 1] = bad
    for law in (
        Independent(Normal(torch.zeros(D), 1.0), 1),
        MultivariateNormal(torch.zeros(D), torch.eye(D)),
    ):
        assert gaussian_ncfd(law, y).isnan()
        assert gaussian_ncfd(law, y, unbiased=True).isnan()


@pytest.mark.parametrize("narrow", [0, 1])
def test_a_number_for_the_scale_is_not_rounded_to_the_narrower_side(narrow: int) -> None:
    sides = list(some(torch.float64))
    sides[narrow] = sides[narrow].float()
    expected = exact(*sides, scale=0.7)[0]
    assert gaussian_ncfd(*sides, 0.7).item() == pytest.approx(expected, rel=1e-12)


def test_rows_of_weight_zero_are_absent_wherever_the_others_are() -> None:
    x, y = (side + 1e6 for side in some())
    w = (torch.arange(N) % 3 > 0).float()
    padded = x.clone()
    padded[w == 0] = -1e9
    padded.requires_grad_()
    value = gaussian_ncfd(padded, y, x_weights=w)
    wanted, (slope, *_) = exact(x[w > 0], y)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    (found,) = torch.autograd.grad(value, padded)
    np.testing.assert_allclose(found[w > 0], slope, atol=1e-5 * np.abs(slope).max())
    assert (found[w == 0] == 0).all()


@pytest.mark.parametrize("far", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_unit_of_the_data_is_found_anywhere(grouped: bool, far: float) -> None:
    x, y = (30 * side + far for side in some())
    distances = np.linalg.norm(x.double()[:, None] - x.double()[None], axis=2)
    scale = 1 / np.median(distances[np.triu_indices(N, 1)])
    wanted, slopes = exact(x, y, scale)
    y.requires_grad_()
    if grouped:
        labels = {"x_groups": torch.zeros(N).long(), "y_groups": torch.zeros(M).long()}
        value = gaussian_ncfd(x, y, "median", num_groups=1, **labels)
    else:
        value = gaussian_ncfd(x, y, "median")
    assert value.item() == pytest.approx(wanted, rel=1e-4)
    (slope,) = torch.autograd.grad(value, y)
    np.testing.assert_allclose(slope, slopes[1], atol=1e-4 * np.abs(slopes[1]).max())


@pytest.mark.parametrize("unit", [1e-30, 1e25])
def test_squares_may_leave_the_range_of_float32(unit: float) -> None:
    x, y = some()
    value = gaussian_ncfd(x * unit, (y * unit).requires_grad_(), 1 / unit)
    assert value.item() == pytest.approx(exact(x, y)[0], rel=1e-5)


def test_many_blocks_far_away() -> None:
    # Near pairs, far pairs and both in one block; kept blocks and blocks formed again.
    x, y = normal(5, 350, D, dtype=torch.float32), normal(6, 270, D, dtype=torch.float32) + 0.3
    x[:200], y[::3] = x[:200] + 1e5, y[::3] + 1e5
    for limit, size in itertools.product((0, 2**30), (270, 350)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ops.BUDGET, "pairs", limit)
            assert_exact(x[:size], y, SCALES["feature"])
            assert_exact(x[:size], y, SCALES["isotropic"][:2], weighted=True)


@pytest.mark.parametrize("scale", [1.0, 0.05, 1e5])
@pytest.mark.parametrize("size", [2, 300])
def test_equal_samples_cancel_to_the_last_bit_anywhere(size: int, scale: float) -> None:
    for kind in KINDS:
        x, _ = moved(kind, 1e4, torch.float32)
        x = x.repeat(1, size)[:, : D * size]  # up to 900 features
        assert gaussian_ncfd(x, x.clone(), scale) == 0


def test_only_equal_sets_of_a_batch_cancel() -> None:
    x = normal(1, 3, N, D, dtype=torch.float32)
    y = x.clone()
    y[1, 4] += 0.5
    w = 1 + normal(2, 3, N, dtype=torch.float32).abs()
    v = w.clone()
    v[2, 0] += 1
    value = gaussian_ncfd(x, y, SCALES["isotropic"], x_weights=w, y_weights=v)
    assert value[0] == 0
    for k in (1, 2):
        wanted, _ = exact(x[k], y[k], SCALES["isotropic"], w[k], v[k])
        assert value[k].item() == pytest.approx(wanted, rel=1e-3)
        assert value[k] > 0


@pytest.mark.parametrize("unit", [1e-3, 1.0])
@pytest.mark.parametrize("size", [(64, 100), (300, 280)])
def test_several_isotropic_scales_of_all_sizes(size: tuple[int, int], unit: float) -> None:
    # Small and large kernel exponents, in one block and in several; kept and formed again.
    x, y = (unit * normal(k, n, 5, dtype=torch.float32) for k, n in enumerate(size))
    scale = torch.tensor([[0.25], [0.5], [1.0], [2.0], [4.0]])
    for limit in (0, 2**30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ops.BUDGET, "pairs", limit)
            for weighted in (False, True):
                assert_exact(x, y + 0.3 * unit, scale, weighted=weighted)
            # One side alone, as its gradient is taken nearly always.
            y.requires_grad_()
            wanted, slopes = exact(x, y, scale)
            value = gaussian_ncfd(x, y, scale)
            (slope,) = torch.autograd.grad(value, y)
            assert value.item() == pytest.approx(wanted, rel=1e-4)
            np.testing.assert_allclose(slope, slopes[1], atol=1e-4 * np.abs(slopes[1]).max())


def test_duplicates_count_in_many_dimensions() -> None:
    # Squared norms of 2000 and kernels of 0, but for pairs close to each other.
    x = normal(8, 60, 2000, dtype=torch.float32)
    y = x[:30] + 0.005 * normal(9, 30, 2000, dtype=torch.float32)
    assert_exact(x, y, torch.ones(1, 1))


# --- unequal groups ---------------------------------------------------------------------------


def test_the_cost_of_groups_follows_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # One of 300 rows and 199 of 4: padded to the largest these would be 18 million kernel values.
    sizes = torch.tensor([300] + 199 * [4])
    groups = torch.arange(200).repeat_interleave(sizes)
    x, y = normal(1, len(groups), D), normal(2, len(groups), D) + 0.3
    counted = []
    inner = torch.baddbmm

    def baddbmm(c: Tensor, a: Tensor, b: Tensor, **options: Any) -> Tensor:
        counted.append(a.shape[0] * a.shape[1] * b.shape[2])
        return inner(c, a, b, **options)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    options = {"x_groups": groups, "num_groups": 200, "reduction": "none"}
    value = gaussian_ncfd(x, y, y_groups=groups, **options)
    pairs = int(sizes.square().sum())
    assert pairs < sum(counted) < 4 * pairs
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    shuffled = gaussian_ncfd(x, y[order], y_groups=groups[order], **options)
    torch.testing.assert_close(shuffled, value)
    for g in (0, 1, 57, 199):
        wanted, _ = exact(x[groups == g], y[groups == g])
        assert value[g].item() == pytest.approx(wanted, rel=1e-9)


def test_groups_of_all_sizes_are_a_loop() -> None:
    sizes = [torch.tensor([1, 2, 40, 0, 7, 3, 90, 5]), torch.tensor([30, 1, 1, 4, 0, 60, 9, 6])]
    labels = [torch.arange(8).repeat_interleave(n) for n in sizes]
    x, y = (normal(k, len(label), D) for k, label in enumerate(labels))
    x[5] += 1e5
    leaves = [x.requires_grad_(), y.requires_grad_()]
    value = gaussian_ncfd(
        x, y, x_groups=labels[0], y_groups=labels[1], num_groups=8, reduction="none"
    )
    slopes = torch.autograd.grad(value.sum(), leaves)
    for g in range(8):
        i, j = labels[0] == g, labels[1] == g
        if g in (3, 4):
            assert value[g] == 0
            continue
        wanted, (of_x, of_y, *_) = exact(x[i], y[j])
        assert value[g].item() == pytest.approx(wanted, rel=1e-9)
        np.testing.assert_allclose(slopes[0][i], of_x, atol=1e-12)
        np.testing.assert_allclose(slopes[1][j], of_y, atol=1e-12)


# --- a known normal law -----------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 1.41, 5.0])
def test_a_standard_normal_gives_henze_and_zirklers_statistic(beta: float) -> None:
    y = normal(1, 30, 4)
    z = y.numpy()
    n, d = z.shape
    between = ((z[:, None] - z[None]) ** 2).sum(2)
    alone = (z**2).sum(1)
    statistic = n * (
        np.exp(-0.5 * beta**2 * between).mean()
        - 2 * (1 + beta**2) ** (-d / 2) * np.exp(-0.5 * beta**2 / (1 + beta**2) * alone).mean()
        + (1 + 2 * beta**2) ** (-d / 2)
    )
    for law in (
        MultivariateNormal(torch.zeros(4), torch.eye(4)),
        Independent(Normal(torch.zeros(4), torch.ones(4)), 1),
        LowRankMultivariateNormal(torch.zeros(4), torch.zeros(4, 1), torch.ones(4)),
    ):
        value = gaussian_ncfd(law, y, beta)
        assert value.dtype == torch.float64
        assert 2 * n * value.item() == pytest.approx(statistic, rel=1e-6)
        pairs = (np.exp(-0.5 * beta**2 * between).sum() - n) / (n * (n - 1))
        unbiased = 0.5 * statistic / n + 0.5 * (pairs - np.exp(-0.5 * beta**2 * between).mean())
        found = gaussian_ncfd(law, y, beta, unbiased=True).item()
        assert found == pytest.approx(unbiased, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("scale", [0.02, 0.7])
def test_a_normal_law_is_the_integral_over_frequencies(scale: float) -> None:
    y, w = normal(1, 12, 1), 1 + normal(2, 12).abs()
    loc, sigma = 0.4, 1.7
    p = (w / w.sum()).numpy()

    def integrand(t: float) -> float:
        gap = (
            np.exp(1j * t * loc - 0.5 * (sigma * t) ** 2)
            - (p * np.exp(1j * t * y[:, 0].numpy())).sum()
        )
        return 0.5 * abs(gap) ** 2 * scipy.stats.norm.pdf(t, scale=scale)

    wanted, _ = scipy.integrate.quad(integrand, -12 * scale, 12 * scale, epsabs=0, epsrel=1e-10)
    law = Normal(*torch.tensor([loc, sigma], dtype=torch.float64))
    value = gaussian_ncfd(law, y, scale, y_weights=w)
    assert value.item() == pytest.approx(wanted, rel=1e-8)
    close = gaussian_ncfd(law, y.float(), scale, y_weights=w.float())
    assert close.item() == pytest.approx(wanted, rel=1e-4, abs=2e-7)


def laws(count: int) -> tuple[Tensor, Tensor]:
    root = 0.3 * normal(3, count, D, D) + torch.eye(D, dtype=torch.float64)
    return normal(4, count, D), root.tril()


@pytest.mark.parametrize("dense", [False, True])
def test_a_law_for_each_group_and_batch_entry(dense: bool) -> None:
    mean, root = laws(3)

    def law(mean: Tensor, root: Tensor) -> Distribution:
        if dense:
            return MultivariateNormal(mean, scale_tril=root)
        return Independent(Normal(mean, root.diagonal(dim1=-2, dim2=-1).abs()), 1)

    y = normal(5, 3, 6, D)
    scale = torch.tensor([[0.5, 1.0, 0.2], [2.0, 0.3, 0.7]], dtype=torch.float64)
    alone = torch.stack([gaussian_ncfd(law(mean[g], root[g]), y[g], scale) for g in range(3)])
    torch.testing.assert_close(gaussian_ncfd(law(mean, root), y, scale), alone)
    groups = torch.arange(3).repeat_interleave(6)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    value = gaussian_ncfd(
        law(mean, root),
        y.flatten(0, 1)[order],
        scale,
        y_groups=groups[order],
        num_groups=3,
        reduction="none",
    )
    torch.testing.assert_close(value, alone)
    one = gaussian_ncfd(
        law(mean[0], root[0]), y[0], scale, y_groups=torch.zeros(6).long(), num_groups=2
    )
    torch.testing.assert_close(one, alone[0])
    # The two components in NumPy, by the inverse and the determinant.
    covariance = law(mean[1], root[1])
    covariance = (root[1] @ root[1].T if dense else covariance.variance.diag()).numpy()
    gap, rows = (y[1] - mean[1]).numpy(), y[1].numpy()
    wanted = 0.0
    for s in scale.numpy():
        C, unit = np.diag(s) @ covariance @ np.diag(s), np.eye(D)
        inverse = np.diag(s) @ np.linalg.inv(unit + C) @ np.diag(s)
        cross = np.exp(-0.5 * np.einsum("nd,de,ne->n", gap, inverse, gap)).mean()
        own = np.exp(-0.5 * ((s * (rows[:, None] - rows)) ** 2).sum(2)).mean()
        wanted += 0.5 * np.linalg.det(unit + 2 * C) ** -0.5 + 0.5 * own
        wanted -= cross * np.linalg.det(unit + C) ** -0.5
    assert alone[1].item() == pytest.approx(wanted / 2, rel=1e-9)
    leaves = [v.clone().requires_grad_() for v in (mean[0], root[0], y[0], scale)]
    assert gradcheck(lambda m, r, y, s: gaussian_ncfd(law(m, r.tril()), y, s), leaves)


def test_a_law_far_away_in_float32() -> None:
    y = normal(1, 30, D, dtype=torch.float32) + 1e6
    law = MultivariateNormal(torch.full((D,), 1e6), torch.eye(D))
    wanted = gaussian_ncfd(
        MultivariateNormal(torch.zeros(D), torch.eye(D)), y.double() - 1e6, 0.7
    ).item()
    assert gaussian_ncfd(law, y, 0.7).item() == pytest.approx(wanted, rel=1e-4)


def test_laws_are_checked() -> None:
    y = normal(1, 6, D)
    law = MultivariateNormal(torch.zeros(D), torch.eye(D))
    for error, message, call in (
        (
            TypeError,
            "x must be samples or a normal law",
            lambda: gaussian_ncfd(Laplace(0.0, 1.0), y[:, :1]),
        ),
        (ValueError, "x must be a law of 3 features", lambda: gaussian_ncfd(Normal(0.0, 1.0), y)),
        (ValueError, r"batch shape \(2,\)", lambda: gaussian_ncfd(law.expand((2,)), y)),
        (
            ValueError,
            "x_weights describes samples",
            lambda: gaussian_ncfd(law, y, x_weights=y[:, 0]),
        ),
        (ValueError, "real_rows", lambda: gaussian_ncfd(law, y, real_rows=3)),
        (ValueError, "median", lambda: gaussian_ncfd(law, y, "median")),
        (ValueError, "two samples", lambda: gaussian_ncfd(law, y[:1], unbiased=True)),
    ):
        with pytest.raises(error, match=message):
            call()
