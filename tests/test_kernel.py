"""The closed form wherever the rows lie: against float64 NumPy on the same inputs."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor

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


def test_duplicates_count_in_many_dimensions() -> None:
    # Squared norms of 2000 and kernels of 0, but for pairs close to each other.
    x = normal(8, 60, 2000, dtype=torch.float32)
    y = x[:30] + 0.005 * normal(9, 30, 2000, dtype=torch.float32)
    assert_exact(x, y, torch.ones(1, 1))
