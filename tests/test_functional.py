"""The mathematics: against complex128 loops, against closed forms, and against its own laws."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ALPHAS,
    FULL_DTYPES,
    HALF_DTYPES,
    Problem,
    normal,
    phi_pairs,
    phi_tolerance,
    problems,
    seeds,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ncfd.functional as F
from ncfd.functional import (
    amplitude_phase,
    cf_discrepancy,
    characteristic_function,
    gaussian_ncfd,
    gradient_reversal,
    ncfd_loss,
    safe_root,
    signal_discrepancy,
)

EVERY_DTYPE = FULL_DTYPES + HALF_DTYPES
# Each entry is one option set of the loss that the gradients and the dtypes are tested under.
LOSS_OPTIONS = [
    *({"alpha": alpha, "squared": squared} for alpha in ALPHAS for squared in (False, True)),
    {"squared": True, "unbiased": True},
    {"reduction": "sum"},
    {"reduction": "none"},
]


def ids(options: dict) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def close(actual: Tensor, exact: np.ndarray, atol: float | np.ndarray) -> None:
    """Each entry within its own tolerance, in float64 or complex128; NaN never is."""
    actual = actual.detach().cpu().resolve_conj().numpy()
    exact = np.asarray(exact)
    assert actual.shape == exact.shape
    error = np.abs(actual.astype(np.result_type(actual.dtype, np.float64)) - exact)
    assert (error <= atol).all(), f"off by {error.max()}, allowed {np.max(atol)}"


def some_data(dtype: torch.dtype = torch.float64, N: int = 7, M: int = 5, D: int = 3, F: int = 4):
    """Two sets a moderate distance apart, and frequencies at which that shows."""
    x, y, t = normal(1, N, D), 0.5 + 0.8 * normal(2, M, D), 0.7 * normal(3, F, D)
    return x.to(dtype), y.to(dtype), t.to(dtype)


def every_option(N: int = 7, M: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, dict]:
    """Weights, groups and chunks for `some_data`; each option set also holds for its samples."""
    weights = {
        "x_weights": torch.linspace(0.5, 2, N, dtype=dtype),
        "y_weights": torch.linspace(1.5, 0.1, M, dtype=dtype),
    }
    groups = {
        "x_groups": torch.arange(N) % 2,
        "y_groups": torch.arange(M) % 2,
        "num_groups": 3,  # the third is empty
    }
    return {
        "plain": {},
        "weights": weights,
        "groups": groups,
        "weighted groups": weights | groups,
        "chunks": {"chunk_size": 2},
        "chunked weighted groups": weights | groups | {"chunk_size": 2},
    }


# --- characteristic_function ----------------------------------------------------------------


@given(problems())
def test_characteristic_function_is_that_of_the_loop(p: Problem) -> None:
    phi = characteristic_function(p.x, p.t)
    assert phi.dtype == p.dtype.to_complex()
    close(phi, reference.characteristic_function(p.x, p.t), p.delta)


@given(problems())
def test_weighted_characteristic_function_is_that_of_the_loop(p: Problem) -> None:
    phi = characteristic_function(p.x, p.t, weights=p.x_weights)
    close(phi, reference.characteristic_function(p.x, p.t, p.x_weights), p.delta)


@given(problems(), st.booleans())
def test_grouped_characteristic_function_is_a_loop_over_groups(p: Problem, weighted: bool) -> None:
    weights = p.x_weights if weighted else None
    phi = characteristic_function(
        p.x, p.t, weights=weights, groups=p.x_groups, num_groups=p.num_groups
    )
    exact = reference.grouped_characteristic_function(p.x, p.t, p.x_groups, p.num_groups, weights)
    close(phi, exact, p.delta)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@given(data=st.data())
def test_half_input_is_computed_in_float32(dtype: torch.dtype, data: st.DataObject) -> None:
    p = data.draw(problems(dtypes=(dtype,), scales=(0.1, 1.0, 5.0)))
    phi = characteristic_function(p.x, p.t)
    assert phi.dtype == torch.complex64
    # `delta` is that of float32: the half type shows only in the numbers one starts from.
    close(phi, reference.characteristic_function(p.x, p.t), p.delta)


@given(problems())
def test_modulus_at_most_one_and_one_at_zero(p: Problem) -> None:
    phi = characteristic_function(p.x, torch.cat([p.t, torch.zeros_like(p.t[:1])]))
    assert (phi.abs() <= 1 + p.delta).all()
    # cos 0 = 1 and sin 0 = 0 are exact, and so is the mean of ones.
    assert phi[-1] == 1


@given(problems())
def test_negative_frequency_is_the_conjugate(p: Problem) -> None:
    phi = characteristic_function(p.x, p.t)
    close(characteristic_function(p.x, -p.t), phi.conj().resolve_conj().numpy(), 2 * p.delta)


@given(problems(), seeds)
def test_order_of_the_samples_does_not_matter(p: Problem, seed: int) -> None:
    order = torch.randperm(len(p.x), generator=torch.Generator().manual_seed(seed))
    phi = characteristic_function(p.x, p.t, weights=p.x_weights)
    shuffled = characteristic_function(p.x[order], p.t, weights=p.x_weights[order])
    close(shuffled, phi.numpy(), 2 * p.delta)


@given(problems(dtypes=(torch.float64,)), st.floats(-3, 3))
def test_translation_turns_the_phase_only(p: Problem, step: float) -> None:
    phi, moved = (characteristic_function(x, p.t) for x in (p.x, p.x + step))
    delta = p.delta + phi_tolerance(p.x + step, p.t, p.dtype)
    close(moved.abs(), phi.abs().numpy(), delta)
    close(moved, (phi * torch.exp(1j * step * p.t.sum(-1))).numpy(), delta)


@given(problems(dtypes=(torch.float64,)), st.floats(-4, 4))
def test_scaling_the_samples_is_scaling_the_frequencies(p: Problem, factor: float) -> None:
    delta = 2 * phi_tolerance(factor * p.x, p.t, p.dtype)
    expected = characteristic_function(p.x, factor * p.t)
    close(characteristic_function(factor * p.x, p.t), expected.numpy(), delta)


@given(problems())
def test_sums_of_two_sets_add(p: Problem) -> None:
    N, M = len(p.x), len(p.y)
    whole = characteristic_function(torch.cat([p.x, p.y]), p.t)
    parts = characteristic_function(p.x, p.t) * N + characteristic_function(p.y, p.t) * M
    close(whole, (parts / (N + M)).numpy(), 4 * p.delta)


@given(problems(), st.data())
def test_doubled_row_is_weight_two(p: Problem, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(p.x) - 1))
    weights = torch.ones(len(p.x), dtype=p.x.dtype)
    weights[row] = 2
    doubled = torch.cat([p.x, p.x[row : row + 1]])
    close(
        characteristic_function(p.x, p.t, weights=weights),
        characteristic_function(doubled, p.t).numpy(),
        2 * p.delta,
    )


@given(problems(min_samples=2), st.data())
def test_zero_weight_is_an_absent_row(p: Problem, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(p.x) - 1))
    keep = torch.arange(len(p.x)) != row
    weights = torch.rand(len(p.x), generator=torch.Generator().manual_seed(row)).to(p.x) + 0.1
    weights[row] = 0
    close(
        characteristic_function(p.x, p.t, weights=weights),
        characteristic_function(p.x[keep], p.t, weights=weights[keep]).numpy(),
        2 * p.delta,
    )


@given(problems(), st.sampled_from((1e-20, 1e-3, 7.0, 1e20)))
def test_only_the_ratios_of_weights_matter(p: Problem, factor: float) -> None:
    close(
        characteristic_function(p.x, p.t, weights=factor * p.x_weights),
        characteristic_function(p.x, p.t, weights=p.x_weights).numpy(),
        2 * p.delta,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    x, _, t = some_data()
    labels = torch.tensor([0, 2, 2, 0, 0, 2, 0])
    expected = characteristic_function(x, t, groups=labels, num_groups=3)
    actual = characteristic_function(x, t, groups=labels.to(dtype), num_groups=3)
    assert torch.equal(actual, expected)
    assert (expected[1] == 0).all()  # no sample bears the label 1: zeros, not NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
def test_weights_of_any_size(factor: float, dtype: torch.dtype) -> None:
    """Squares of such weights are beyond float32, and so are float64 weights of 1e-60."""
    x, y, t = (v.float() for v in some_data())
    w = torch.rand(len(x), generator=torch.Generator().manual_seed(0)) + 0.1
    scaled = w.to(dtype) * factor if dtype == torch.float32 else w.to(dtype) * factor**2
    for options in ({}, {"squared": True, "unbiased": True}):
        expected = ncfd_loss(x, y, t, x_weights=w, **options)
        value = ncfd_loss(x, y, t, x_weights=scaled, **options)
        torch.testing.assert_close(value, expected)  # float32's own tolerance


@pytest.mark.parametrize("factor", [1e-25, 1e-40, 1e25])
def test_weights_of_one_group_of_any_size(factor: float) -> None:
    """Only their proportions count, in each group: squares of such ones are beyond float32."""
    x, y, t = some_data(torch.float32)
    groups = every_option()["groups"]
    w = torch.where(groups["x_groups"] == 1, factor, 1.0)
    v = torch.where(groups["y_groups"] == 1, factor, 1.0)
    for function in (
        lambda **kw: ncfd_loss(x, y, t, squared=True, unbiased=True, **kw),
        lambda **kw: ncfd_loss(x, y, t, **kw),
        lambda **kw: signal_discrepancy(x, y, t, **kw),
        lambda **kw: gaussian_ncfd(x, y, unbiased=True, **kw),
    ):
        expected = function(reduction="none", **groups)
        value = function(reduction="none", x_weights=w, y_weights=v, **groups)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_a_tiny_group_of_float64_weights_is_there() -> None:
    x, y, t = some_data(torch.float32)
    groups = every_option()["groups"]
    w = torch.tensor([1.0, 1e-60], dtype=torch.float64)[groups["x_groups"]]
    phi = characteristic_function(x, t, weights=w, groups=groups["x_groups"], num_groups=3)
    plain = characteristic_function(x, t, groups=groups["x_groups"], num_groups=3)
    torch.testing.assert_close(phi, plain)
    value = gaussian_ncfd(x, y, x_weights=w, **groups)
    torch.testing.assert_close(value, gaussian_ncfd(x, y, **groups))


def test_a_nan_weight_shows_in_its_group_alone() -> None:
    """It was taken for a group without samples, which the mean leaves out."""
    x, y, t = some_data()
    groups = every_option()["groups"]
    w = torch.ones(len(y), dtype=torch.float64)
    w[1] = math.nan  # a row of group 1
    for function in (
        lambda **kw: ncfd_loss(x, y, t, **kw).mean(-1),
        lambda **kw: signal_discrepancy(x, y, t, **kw).mean(-1),
        lambda **kw: gaussian_ncfd(x, y, **kw),
    ):
        value = function(reduction="none", y_weights=w, **groups)
        assert value.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(value[0], function(reduction="none", **groups)[0])
        assert function(y_weights=w, **groups).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-44, 1e-300, 1e37, 3e38, 1e300])
def test_frequency_weights_of_any_size(size: float, dtype: torch.dtype) -> None:
    """The mean is over their proportions; their sum may be beyond the dtype."""
    if dtype == torch.float32 and not 1e-45 < size < 3.5e38:
        return
    x, y, t = some_data(torch.float32, F=20)
    weights = torch.full((20,), size, dtype=dtype)
    torch.testing.assert_close(ncfd_loss(x, y, t, frequency_weights=weights), ncfd_loss(x, y, t))


def test_group_whose_weights_vanish_is_absent() -> None:
    x, _, t = some_data()
    x.requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    phi = characteristic_function(x, t, weights=(labels == 0).double(), groups=labels, num_groups=2)
    assert (phi[1] == 0).all()
    close(phi[0], reference.characteristic_function(x[labels == 0], t), 1e-14)
    (slope,) = torch.autograd.grad(torch.view_as_real(phi).sum(), x)
    assert slope.isfinite().all()
    assert (slope[labels == 1] == 0).all()


@given(problems(), st.integers(1, 12), st.booleans(), st.booleans())
def test_chunked_is_whole(p: Problem, chunk_size: int, weighted: bool, grouped: bool) -> None:
    options: dict = {}
    if weighted:
        options["weights"] = p.x_weights
    if grouped:
        options |= {"groups": p.x_groups, "num_groups": p.num_groups}
    close(
        characteristic_function(p.x, p.t, chunk_size=chunk_size, **options),
        characteristic_function(p.x, p.t, **options).numpy(),
        2 * p.delta,
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 8, 100])
@pytest.mark.parametrize("options", ["plain", "weights", "groups", "weighted groups"])
def test_chunks_change_neither_the_loss_nor_its_gradients(options: str, chunk_size: int) -> None:
    kwargs = every_option()[options]
    inputs = [v.requires_grad_() for v in some_data()]
    inputs += [v.requires_grad_() for k, v in kwargs.items() if k.endswith("weights")]
    whole = ncfd_loss(*inputs[:3], **kwargs)
    chunked = ncfd_loss(*inputs[:3], chunk_size=chunk_size, **kwargs)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    for a, b in zip(
        torch.autograd.grad(chunked, inputs), torch.autograd.grad(whole, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


def test_many_chunks_do_not_accumulate_rounding() -> None:
    # 20 000 sums of one sample each: added up in float32, one after the other, they would be off
    # by about 1e-5 (a random walk of steps of size eps · 10 000); in float64 only the float32
    # phases are, at 1e-7 each and independent.
    x, t = normal(4, 20_000, 2, dtype=torch.float32), normal(5, 3, 2, dtype=torch.float32)
    phases = x.double().numpy() @ t.double().numpy().T
    exact = np.exp(1j * phases).mean(0)
    close(characteristic_function(x, t, chunk_size=7), exact, 3e-7)
    close(characteristic_function(x, t), exact, 3e-7)


@pytest.mark.parametrize("count", [None, 1, 65])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_sums_keep_their_digits(weighted: bool, count: int | None) -> None:
    # Few frequencies make long blocks. A product adds its 100 000 terms one after the other, and
    # in float32 that alone would be off by 1e-4: a thirtieth of the sampling noise at this size.
    x, t = normal(45, 100_000, 2, dtype=torch.float32), normal(46, 3, 2, dtype=torch.float32) / 4
    options: dict = {"weights": torch.ones(len(x))} if weighted else {}
    if count is not None:
        options |= {"groups": torch.zeros(len(x), dtype=torch.int64), "num_groups": count}
    exact = np.exp(1j * (x.double().numpy() @ t.double().numpy().T)).mean(0)
    phi = characteristic_function(x, t, **options)
    close(phi if count is None else phi[0], exact, 1e-6)


@pytest.mark.parametrize("shared_t", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3)])
def test_batched_characteristic_function_is_a_loop(
    batch: tuple[int, ...], chunk_size: int | None, weighted: bool, shared_t: bool
) -> None:
    x, w = normal(6, *batch, 5, 3), normal(7, *batch, 5).abs()
    t = normal(8, 4, 3) if shared_t else normal(8, *batch, 4, 3)
    phi = characteristic_function(x, t, weights=w if weighted else None, chunk_size=chunk_size)
    assert phi.shape == (*batch, 4)
    for i in itertools.product(*map(range, batch)):
        exact = reference.characteristic_function(
            x[i], t if shared_t else t[i], w[i] if weighted else None
        )
        close(phi[i], exact, 1e-14)


def strided(v: Tensor, layout: str) -> Tensor:
    """The same numbers at other strides."""
    if layout == "transposed":
        return v.mT.contiguous().mT
    if layout == "gaps":
        return torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.full_like(v[:1], torch.nan), v])[1:]
    return v[:1].expand(v.shape)  # one row under every index


@pytest.mark.parametrize("layout", ["transposed", "gaps", "offset", "expanded"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_strides_do_not_matter(layout: str, chunk_size: int | None) -> None:
    x, y, t = (strided(v, layout).requires_grad_() for v in some_data())
    packed = [v.detach().clone(memory_format=torch.contiguous_format) for v in (x, y, t)]
    packed = [v.requires_grad_() for v in packed]
    loss = ncfd_loss(x, y, t, chunk_size=chunk_size)
    expected = ncfd_loss(*packed, chunk_size=chunk_size)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    slopes = torch.autograd.grad(loss, (x, y, t))
    for a, b in zip(slopes, torch.autograd.grad(expected, packed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nan_and_infinity_show(bad: float, chunk_size: int | None) -> None:
    x, y, t = some_data(torch.float32)
    x[3, 1] = bad
    assert characteristic_function(x, t, chunk_size=chunk_size).isnan().all()
    groups = torch.arange(7) % 2
    phi = characteristic_function(x, t, groups=groups, num_groups=2, chunk_size=chunk_size)
    assert phi[1].isnan().all()  # sample 3 is in group 1
    assert phi[0].isfinite().all()
    for options in LOSS_OPTIONS:
        assert ncfd_loss(x, y, t, chunk_size=chunk_size, **options).isnan().all(), options
        assert ncfd_loss(y, x, t, chunk_size=chunk_size, **options).isnan().all(), options
    t[2] = bad
    assert ncfd_loss(y, y + 1, t, chunk_size=chunk_size).isnan()


# --- amplitude_phase ------------------------------------------------------------------------


@given(phi_pairs())
def test_amplitude_and_phase_are_polar_coordinates(pair: tuple[Tensor, Tensor]) -> None:
    phi = pair[0]
    amplitude, phase = amplitude_phase(phi)
    assert amplitude.dtype == phase.dtype == torch.float64
    assert (amplitude >= 0).all()
    assert (phase.abs() <= math.pi).all()
    close(torch.polar(amplitude, phase), phi.numpy(), 1e-15)


def test_amplitude_and_phase_by_value() -> None:
    phi = torch.tensor([3 + 4j, -2, 1j, 0], dtype=torch.complex64)
    amplitude, phase = amplitude_phase(phi)
    torch.testing.assert_close(amplitude, torch.tensor([5.0, 2, 1, 0]))
    torch.testing.assert_close(phase[:3], torch.tensor([math.atan2(4, 3), math.pi, math.pi / 2]))


def test_amplitude_and_phase_have_finite_slopes_at_zero() -> None:
    parts = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    for value in amplitude_phase(torch.view_as_complex(parts)):
        (slope,) = torch.autograd.grad(value.sum(), parts)
        assert slope.isfinite().all()


def test_amplitude_and_phase_gradcheck() -> None:
    parts = normal(9, 5, 2).requires_grad_()
    assert gradcheck(lambda p: amplitude_phase(torch.view_as_complex(p)), (parts,))
    assert gradgradcheck(lambda p: amplitude_phase(torch.view_as_complex(p)), (parts,))


# --- cf_discrepancy -------------------------------------------------------------------------


@given(phi_pairs(), st.floats(0, 1))
def test_discrepancy_is_that_of_the_reference(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    value = cf_discrepancy(*pair, alpha=alpha)
    assert value.dtype == torch.float64
    assert (value >= 0).all()
    close(value, reference.discrepancy(*(p.numpy() for p in pair), alpha), 4e-15)


@given(phi_pairs(), st.floats(0, 1))
def test_discrepancy_is_symmetric(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    a, b = pair
    close(cf_discrepancy(a, b, alpha=alpha), cf_discrepancy(b, a, alpha=alpha).numpy(), 4e-15)


@given(phi_pairs())
def test_amplitude_and_phase_terms_add_up_to_the_squared_distance(
    pair: tuple[Tensor, Tensor],
) -> None:
    a, b = pair
    amplitude, phase = (cf_discrepancy(a, b, alpha=alpha) for alpha in (1.0, 0.0))
    close(amplitude, (np.abs(a.numpy()) - np.abs(b.numpy())) ** 2, 1e-15)
    close(amplitude + phase, np.abs(a.numpy() - b.numpy()) ** 2, 2e-15)
    close(cf_discrepancy(a, b), 0.5 * np.abs(a.numpy() - b.numpy()) ** 2, 1e-15)


@given(phi_pairs(), st.floats(0, 1), st.floats(-4, 4))
def test_discrepancy_does_not_see_a_common_phase(
    pair: tuple[Tensor, Tensor], alpha: float, angle: float
) -> None:
    a, b = pair
    turn = torch.polar(torch.tensor(1.0).double(), torch.tensor(angle).double())
    expected = cf_discrepancy(a, b, alpha=alpha)
    close(cf_discrepancy(turn * a, turn * b, alpha=alpha), expected.numpy(), 2e-15)


@given(phi_pairs(), st.sampled_from(ALPHAS))
def test_discrepancy_of_equals_is_exactly_zero(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    for phi in (*pair, pair[0].to(torch.complex64)):
        assert (cf_discrepancy(phi, phi.clone(), alpha=alpha) == 0).all()


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize(("ratio", "tolerance"), [(0.7, 1e-2), (1.0, 1e-4)])
def test_small_phase_gaps_in_float32(
    ratio: float, tolerance: float, gap: float, radius: float
) -> None:
    # The textbook form 2 (|φ_x||φ_y| - Re) loses all digits below a gap of about 3e-4. What is
    # lost beyond repair is the rounding of φ itself, so the truth is that of the rounded φ. With
    # unequal amplitudes two products of size |φ|² cancel down to gap |φ|², at eps / gap = 6e-3;
    # with equal ones (matched sets) differences of neighbours do it, which are exact.
    angle = torch.linspace(-3.1, 3.1, 64, dtype=torch.float64)
    length = torch.full_like(angle, radius)
    a = torch.polar(length, angle).to(torch.complex64)
    b = torch.polar(ratio * length, angle + gap).to(torch.complex64)
    exact = reference.phase_term(a.numpy(), b.numpy())
    close(cf_discrepancy(a, b, alpha=0.0), exact, tolerance * exact)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_small_amplitude_gaps_in_float32(gap: float) -> None:
    angle = torch.linspace(-3.1, 3.1, 64, dtype=torch.float64)
    a = torch.polar(torch.full_like(angle, 0.6), angle).to(torch.complex64)
    b = torch.polar(torch.full_like(angle, 0.6 + gap), angle).to(torch.complex64)
    exact = reference.amplitude_term(a.numpy(), b.numpy())
    close(cf_discrepancy(a, b, alpha=1.0), exact, 1e-2 * exact)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gradient_of_small_phase_gaps_in_float32(gap: float, alpha: float) -> None:
    # At such a gap the clamp of the released code returns no gradient at all.
    angle = torch.linspace(-3.1, 3.1, 64, dtype=torch.float64)
    length = torch.full_like(angle, 0.8)
    a, b = torch.polar(length, angle), torch.polar(length, angle + gap)
    a, b = (torch.view_as_real(v.to(torch.complex64)) for v in (a, b))

    def slopes(dtype: torch.dtype) -> Tensor:
        leaf = b.to(dtype).requires_grad_()
        pair = torch.view_as_complex(a.to(dtype)), torch.view_as_complex(leaf)
        return torch.autograd.grad(cf_discrepancy(*pair, alpha=alpha).sqrt().sum(), leaf)[0]

    error = (slopes(torch.float32).double() - slopes(torch.float64)).norm(dim=-1)
    assert (error <= 2e-2 * slopes(torch.float64).norm(dim=-1)).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_discrepancy_gradcheck(alpha: float) -> None:
    # Gaps on both sides of a right angle, where the form of the phase term changes.
    a = torch.view_as_real(torch.polar(torch.linspace(0.3, 0.9, 8), torch.zeros(8)))
    b = torch.view_as_real(torch.polar(torch.linspace(0.8, 0.2, 8), torch.linspace(-3, 2.9, 8)))
    inputs = [v.double().requires_grad_() for v in (a, b)]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return cf_discrepancy(torch.view_as_complex(a), torch.view_as_complex(b), alpha=alpha)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", FULL_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("a", "b"),
    [(0, 0), (0, 1), (1j, 0), (1, 1), (0.6 + 0.8j, 0.6 + 0.8j), (1, -1), (1, 1j), (1e-25, 1e-25j)],
)
def test_discrepancy_has_finite_slopes_everywhere(
    a: complex, b: complex, dtype: torch.dtype, alpha: float
) -> None:
    leaves = [torch.view_as_real(torch.tensor([v], dtype=torch.complex128)) for v in (a, b)]
    leaves = [v.to(dtype).requires_grad_() for v in leaves]
    value = cf_discrepancy(*map(torch.view_as_complex, leaves), alpha=alpha)
    assert value.isfinite().all()
    slopes = torch.autograd.grad(value.sum(), leaves, create_graph=True)
    for slope in slopes:
        assert slope.isfinite().all()
    if a == b:
        assert all((slope == 0).all() for slope in slopes)
    # A gradient penalty differentiates once more, here too.
    for slope in torch.autograd.grad(sum((s**2).sum() for s in slopes), leaves):
        assert slope.isfinite().all()


# --- ncfd_loss: values ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "weights", "groups", "weighted groups"])
@pytest.mark.parametrize("squared", [False, True])
@given(data=st.data())
def test_loss_is_that_of_the_loop(squared: bool, kind: str, data: st.DataObject) -> None:
    p = data.draw(problems())
    options: dict = {"squared": squared}
    options |= p.weights if "weight" in kind else {}
    options |= p.groups if "groups" in kind else {}
    exact, tolerance = p.loss(**options)
    loss = ncfd_loss(p.x, p.y, p.t, alpha=p.alpha, reduction="none", **options)
    assert loss.dtype == p.dtype
    close(loss, exact, tolerance)


@pytest.mark.parametrize("kind", ["plain", "weights"])
@given(data=st.data())
def test_unbiased_loss_is_that_of_the_pairs(kind: str, data: st.DataObject) -> None:
    # Three samples at least: one may weigh nothing, and two are needed.
    p = data.draw(problems(min_samples=3))
    options: dict = {"squared": True, "unbiased": True, "alpha": 0.5}
    options |= p.weights if kind == "weights" else {}
    exact, tolerance = p.loss(**options)
    close(ncfd_loss(p.x, p.y, p.t, reduction="none", **options), exact, tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_unbiased_grouped_loss_is_that_of_the_pairs(reduction: str, weighted: bool) -> None:
    x, y, t = some_data()
    options = every_option()["weighted groups" if weighted else "groups"]
    options |= {"squared": True, "unbiased": True, "reduction": reduction}
    exact = reference.ncfd_loss(x, y, t, **options)
    close(ncfd_loss(x, y, t, **options), exact, 1e-14)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", ["plain", "weights", "groups", "weighted groups"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction: str, kind: str, squared: bool) -> None:
    x, y, t = some_data()
    options = every_option()[kind] | {"squared": squared, "reduction": reduction, "alpha": 0.3}
    loss = ncfd_loss(x, y, t, **options)
    assert loss.shape == ()
    close(loss, reference.ncfd_loss(x, y, t, **options), 1e-14)


def test_mean_over_groups_counts_the_groups_on_both_sides() -> None:
    x, y, t = some_data()
    # Group 0 is common; 1 only real, 2 only synthetic, 3 on neither side.
    x_groups, y_groups = torch.tensor([0, 1, 0, 1, 0, 1, 1]), torch.tensor([2, 0, 0, 2, 2])
    options: dict = {"x_groups": x_groups, "y_groups": y_groups, "num_groups": 4}
    per_group = ncfd_loss(x, y, t, reduction="none", **options)
    assert per_group.shape == (4, 4)
    assert (per_group[1:] == 0).all()
    expected = ncfd_loss(x[x_groups == 0], y[y_groups == 0], t, reduction="none")
    torch.testing.assert_close(per_group[0], expected, rtol=1e-13, atol=0)
    for reduction in ("mean", "sum"):
        whole = ncfd_loss(x, y, t, reduction=reduction, **options)
        alone = getattr(expected, reduction)()
        torch.testing.assert_close(whole, alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shared_t", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", LOSS_OPTIONS[:3] + LOSS_OPTIONS[8:9], ids=ids)
@pytest.mark.parametrize("batch", [(3,), (2, 2)])
def test_batched_loss_is_a_loop(
    batch: tuple[int, ...], options: dict, reduction: str, shared_t: bool
) -> None:
    x, y = normal(10, *batch, 6, 3), normal(11, *batch, 4, 3)
    w, v = normal(12, *batch, 6).abs(), normal(13, *batch, 4).abs()
    t = normal(14, 5, 3) if shared_t else normal(14, *batch, 5, 3)
    options = options | {"reduction": reduction}
    loss = ncfd_loss(x, y, t, x_weights=w, y_weights=v, **options)
    # The reduction is over frequencies only: a batch keeps its shape.
    assert loss.shape == ((*batch, 5) if reduction == "none" else batch)
    for i in itertools.product(*map(range, batch)):
        exact = reference.ncfd_loss(
            x[i], y[i], t if shared_t else t[i], x_weights=w[i], y_weights=v[i], **options
        )
        close(loss[i], exact, 1e-14)


def test_the_root_loss_is_the_root_of_the_discrepancy() -> None:
    x, y, t = some_data()
    phi_x, phi_y = characteristic_function(x, t), characteristic_function(y, t)
    for alpha in ALPHAS:
        chf = cf_discrepancy(phi_x, phi_y, alpha=alpha)
        for squared, expected in ((False, chf.sqrt()), (True, chf)):
            loss = ncfd_loss(x, y, t, alpha=alpha, squared=squared, reduction="none")
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=ids)
@pytest.mark.parametrize("weighted", [False, True])
def test_known_characteristic_function(options: dict, weighted: bool) -> None:
    x, y, t = some_data()
    phi = characteristic_function(x, t)
    weights = every_option()["weights"]["y_weights"] if weighted else None
    loss = ncfd_loss(phi, y, t, y_weights=weights, **options)
    if options.get("unbiased"):
        # The known side is exact and needs no correction.
        exact = reference.unbiased_discrepancy(phi, y, t, y_weights=weights).mean()
    else:
        exact = reference.ncfd_loss(x, y, t, y_weights=weights, **options)
    close(loss, exact, 1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_known_characteristic_function_of_groups(reduction: str) -> None:
    x, y, t = some_data()
    options = every_option()["groups"]
    phi = characteristic_function(x, t, groups=options["x_groups"], num_groups=3)
    loss = ncfd_loss(phi, y, t, y_groups=options["y_groups"], num_groups=3, reduction=reduction)
    close(loss, reference.ncfd_loss(x, y, t, reduction=reduction, **options), 1e-14)


def test_known_characteristic_function_in_a_batch_and_in_single_precision() -> None:
    x, y, t = normal(15, 3, 6, 2), normal(16, 3, 4, 2), normal(17, 5, 2)
    phi = characteristic_function(x, t)
    torch.testing.assert_close(ncfd_loss(phi, y, t), ncfd_loss(x, y, t), rtol=1e-13, atol=0)
    single = ncfd_loss(phi.to(torch.complex64), y.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ncfd_loss(x, y, t), rtol=1e-6, atol=0)


@given(problems(dtypes=(torch.float64,)), st.sampled_from(ALPHAS), st.booleans())
def test_loss_is_symmetric(p: Problem, alpha: float, squared: bool) -> None:
    options: dict = {"alpha": alpha, "squared": squared, "reduction": "none"}
    close(
        ncfd_loss(p.y, p.x, p.t, **options),
        ncfd_loss(p.x, p.y, p.t, **options).numpy(),
        1e-15 if squared else 1e-15**0.5,
    )


@given(problems(), seeds, st.sampled_from((0.5, 0.75, 1.0)))
def test_triangle_inequality_at_fixed_frequencies(p: Problem, seed: int, alpha: float) -> None:
    # For α >= ½ the root is a norm of (√(2α-1) |φ|, √(1-α) φ). Below, φ_z = 0 is a short cut.
    z = p.x.flip(0) * 0.5 + normal(seed, *p.x.shape, dtype=p.x.dtype)
    xy, yz, xz = (ncfd_loss(a, b, p.t, alpha=alpha) for a, b in ((p.x, p.y), (p.y, z), (p.x, z)))
    slack = 8 * (p.delta + phi_tolerance(z, p.t, p.dtype))
    assert xz <= xy + yz + slack


@given(problems(dtypes=FULL_DTYPES + HALF_DTYPES, scales=(0.1, 1.0, 5.0)), st.data())
def test_equal_inputs_give_exactly_zero_with_zero_slopes(p: Problem, data: st.DataObject) -> None:
    options = data.draw(st.sampled_from(LOSS_OPTIONS[:8]))
    options = options | {"chunk_size": data.draw(st.sampled_from((None, 1, 3)))}
    kind = data.draw(st.sampled_from(("plain", "weights", "groups", "weighted groups")))
    w, v = (p.x_weights.clone().requires_grad_() for _ in range(2))
    if "weight" in kind:
        options = options | {"x_weights": w, "y_weights": v}
    if "groups" in kind:
        groups = {"x_groups": p.x_groups, "y_groups": p.x_groups.clone()}
        options = options | groups | {"num_groups": p.num_groups}
    x, y = (p.x.clone().requires_grad_() for _ in range(2))
    t = p.t.clone().requires_grad_()
    loss = ncfd_loss(x, y, t, **options)
    assert loss == 0
    leaves = [x, y, t] + ([w, v] if "weight" in kind else [])
    for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        assert slope.dtype == leaf.dtype
        assert (slope == 0).all()  # NaN would not be


@pytest.mark.parametrize("options", LOSS_OPTIONS[:8], ids=ids)
def test_second_derivatives_are_finite_at_equality(options: dict) -> None:
    x, _, t = some_data()
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_(), t.requires_grad_()]
    slopes = torch.autograd.grad(ncfd_loss(*leaves, **options), leaves, create_graph=True)
    penalty = sum((s**2).sum() for s in slopes)
    for slope in torch.autograd.grad(penalty, leaves, allow_unused=True):
        assert slope is None or slope.isfinite().all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("squared", [False, True])
def test_vanishing_characteristic_function_has_finite_slopes(squared: bool, alpha: float) -> None:
    _, y, t = some_data()
    zero = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    y.requires_grad_()
    loss = ncfd_loss(torch.view_as_complex(zero), y, t, alpha=alpha, squared=squared)
    slopes = torch.autograd.grad(loss, (zero, y), create_graph=True)
    assert all(s.isfinite().all() for s in slopes)
    # Only the amplitude is left to compare: √α |φ_y|, or its square.
    amplitude = np.abs(reference.characteristic_function(y, t))
    exact = alpha * amplitude**2 if squared else math.sqrt(alpha) * amplitude
    close(loss, exact.mean(), 1e-14)
    for slope in torch.autograd.grad(sum((s**2).sum() for s in slopes), (zero, y)):
        assert slope.isfinite().all()


# --- ncfd_loss: what it is for --------------------------------------------------------------


def shifted(kind: str, x: Tensor) -> Tensor:
    if kind == "location":
        return x + 0.5
    if kind == "scale":
        return x * 1.8
    # Same mean and variance as a normal, other shape: two points, ±1.
    return torch.where(x > 0, 1.0, -1.0)


@pytest.mark.parametrize("kind", ["location", "scale", "shape"])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.3}, {"squared": True, "unbiased": True}])
def test_shifts_are_detected(kind: str, options: dict) -> None:
    x, same, other = (normal(seed, 1024, 2, dtype=torch.float32) for seed in (18, 19, 20))
    t = normal(21, 256, 2, dtype=torch.float32)
    floor = abs(ncfd_loss(x, same, t, **options))
    assert ncfd_loss(x, shifted(kind, other), t, **options) > 3 * floor


def test_phase_is_location_and_amplitude_is_spread() -> None:
    x, t = normal(22, 256, 2), 0.7 * normal(23, 64, 2)
    moved, wider = x + 0.5, (x - x.mean(0)) * 1.5 + x.mean(0)
    for alpha, large, small in ((0.0, moved, wider), (1.0, wider, moved)):
        assert ncfd_loss(x, large, t, alpha=alpha) > 5 * ncfd_loss(x, small, t, alpha=alpha)


@pytest.mark.parametrize(("n", "floor"), [(16, 0.22), (64, 0.11), (256, 0.054), (1024, 0.028)])
def test_null_floor(n: int, floor: float) -> None:
    # Two samples of one law: √(½ E|Δφ|²) is √((1 - |φ|²)/n) times the mean of a Rayleigh
    # variable over its root mean square, 0.886. These figures are for D = 8 and t ~ N(0, I).
    x, y = normal(24, 20, n, 8), normal(25, 20, n, 8)
    loss = ncfd_loss(x, y, normal(26, 256, 8)).mean()
    assert loss.item() == pytest.approx(floor, rel=0.05)


def test_unbiased_loss_is_zero_on_average_where_the_biased_is_not() -> None:
    x, y, t = normal(27, 4000, 4, 2), normal(28, 4000, 4, 2), normal(29, 8, 2)
    values = ncfd_loss(x, y, t, squared=True, unbiased=True)
    standard_error = values.std() / math.sqrt(len(values))
    assert (values < 0).any()  # it estimates 0, so it must
    assert abs(values.mean()) < 4 * standard_error
    assert ncfd_loss(x, y, t, squared=True).mean() > 20 * standard_error


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_many_gaussian_frequencies_approach_the_gaussian_kernel(
    weighted: bool, unbiased: bool
) -> None:
    x, y, _ = some_data(N=12, M=9)
    y = y + 0.5
    scale = torch.tensor([0.3, 0.8, 1.2], dtype=torch.float64)
    weights = every_option(12, 9)["weights"] if weighted else {}
    t = scale * normal(30, 20_000, 3)
    values = ncfd_loss(x, y, t, squared=True, unbiased=unbiased, reduction="none", **weights)
    exact = reference.gaussian_kernel_loss(x, y, scale, unbiased=unbiased, **weights)
    standard_error = (values.std() / math.sqrt(len(t))).item()
    assert values.mean().item() == pytest.approx(exact, abs=4 * standard_error)
    assert standard_error < 0.03 * abs(exact)  # so that the line above says something


# --- ncfd_loss: precision -------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_nearly_matched_sets_in_float32(alpha: float, step: float) -> None:
    # Two sets apart by a small step: almost only the phase differs. The float32 φ of both sides
    # carry an error of about 1e-8 each (an average over 1024 samples), so a phase gap of 1e-5
    # can come out right to a part in a thousand; the textbook form gives 0 or 30 times too much.
    x, t = normal(31, 1024, 8, dtype=torch.float32), 0.3 * normal(32, 32, 8, dtype=torch.float32)
    y = x + step
    exact = ncfd_loss(x.double(), y.double(), t.double(), alpha=alpha).item()
    assert ncfd_loss(x, y, t, alpha=alpha).item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_only_the_product_of_the_scales_of_samples_and_frequencies_matters(scale: float) -> None:
    x, y, t = some_data(torch.float32)
    exact = reference.ncfd_loss(x, y, t)
    loss = ncfd_loss(x * scale, y * scale, t / scale)
    assert loss.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=ids)
@pytest.mark.parametrize("kind", ["plain", "chunked weighted groups"])
def test_every_dtype(kind: str, options: dict, dtype: torch.dtype) -> None:
    x, y, t = some_data(dtype)
    options = options | every_option(dtype=dtype)[kind]
    weights = [v.requires_grad_() for k, v in options.items() if k.endswith("weights")]
    leaves = [x.requires_grad_(), y.requires_grad_(), t.requires_grad_(), *weights]
    loss = ncfd_loss(x, y, t, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    mathematical = {name: value for name, value in options.items() if name != "chunk_size"}
    exact = reference.ncfd_loss(x, y, t, **mathematical)
    eps = torch.finfo(loss.dtype).eps
    # The values are of order 0.3 and a root doubles no relative error.
    close(loss, exact, 100 * eps)

    truths = [v.detach().double().requires_grad_() for v in leaves]
    exact_options = dict(options)
    for name, truth in zip([k for k in options if k.endswith("weights")], truths[3:], strict=True):
        exact_options[name] = truth
    truth = ncfd_loss(*truths[:3], **exact_options).sum()
    for leaf, slope, exact_slope in zip(
        leaves,
        torch.autograd.grad(loss.sum(), leaves),
        torch.autograd.grad(truth, truths),
        strict=True,
    ):
        assert slope.dtype == leaf.dtype
        # One rounding into the type of the input after a computation in `loss.dtype`.
        tolerance = torch.finfo(dtype).eps + 1000 * eps
        worst = (slope.double() - exact_slope).abs().max()
        assert worst <= tolerance * exact_slope.abs().max()


@pytest.mark.parametrize(
    ("x_dtype", "y_dtype", "t_dtype", "expected"),
    [
        (torch.float32, torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float32, torch.float32, torch.float64),
        (torch.float32, torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float64, torch.float64),
    ],
)
def test_mixed_dtypes_are_promoted(
    x_dtype: torch.dtype, y_dtype: torch.dtype, t_dtype: torch.dtype, expected: torch.dtype
) -> None:
    x, y, t = some_data()
    leaves = [x.to(x_dtype), y.to(y_dtype), t.to(t_dtype)]
    leaves = [v.requires_grad_() for v in leaves]
    loss = ncfd_loss(*leaves)
    assert loss.dtype == expected
    close(loss, reference.ncfd_loss(*leaves), 100 * torch.finfo(expected).eps)
    for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        assert slope.dtype == leaf.dtype


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_gradients_of_half_frequencies_cancel_before_they_are_rounded(dtype: torch.dtype) -> None:
    # The two sides' gradients in t nearly cancel where the sets nearly match. Rounded to a half
    # type before they are added, they would leave hardly a digit.
    x = normal(41, 64, 3, dtype=torch.float32)
    t = normal(42, 16, 3, dtype=dtype).requires_grad_()
    exact_t = t.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(ncfd_loss(x, x + 1e-2, t), t)
    (exact,) = torch.autograd.grad(ncfd_loss(x, x + 1e-2, exact_t), exact_t)
    assert slope.dtype == dtype
    assert (slope.float() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_float32_weights_do_not_lower_the_precision_of_float64_samples() -> None:
    x, y, t = some_data()
    options = every_option(dtype=torch.float32)["weights"]
    loss = ncfd_loss(x, y, t, **options)
    assert loss.dtype == torch.float64
    close(loss, reference.ncfd_loss(x, y, t, **options), 1e-14)


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["plain", "weights", "groups", "chunks", "chunked weighted groups"]
)
def test_characteristic_function_gradcheck(kind: str) -> None:
    x, _, t = some_data(N=5, D=2, F=3)
    every = every_option(5)[kind]
    options = {name.removeprefix("x_"): v for name, v in every.items() if name[:2] != "y_"}
    leaves = [x.requires_grad_(), t.requires_grad_()]
    if "weights" in options:
        leaves.append(options.pop("weights").requires_grad_())

    def function(x: Tensor, t: Tensor, weights: Tensor | None = None) -> Tensor:
        phi = characteristic_function(x, t, weights=weights, **options)
        return torch.view_as_real(phi)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("shared_t", [True, False])
def test_batched_gradcheck(shared_t: bool) -> None:
    x, y, t = normal(33, 2, 3, 2), normal(34, 2, 2, 2), normal(35, 3, 2)
    t = t if shared_t else torch.stack([t, 0.5 * t])
    leaves = [v.requires_grad_() for v in (x, y, t, normal(36, 2, 3).abs())]

    def function(x: Tensor, y: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return ncfd_loss(x, y, t, x_weights=w, reduction="none")

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize(
    "kind", ["plain", "weights", "groups", "weighted groups", "chunked weighted groups"]
)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=ids)
def test_loss_gradcheck(options: dict, kind: str) -> None:
    N, M = 5, 4
    x, y, t = some_data(N=N, M=M, D=2, F=2)
    options = options | every_option(N, M)[kind]
    names = [k for k in options if k.endswith("weights")]
    leaves = [v.requires_grad_() for v in (x, y, t, *(options[name] for name in names))]

    def function(x: Tensor, y: Tensor, t: Tensor, *weights: Tensor) -> Tensor:
        return ncfd_loss(x, y, t, **(options | dict(zip(names, weights, strict=True))))

    assert gradcheck(function, leaves)
    # Fast mode compares one random projection of the second derivatives; a wrong one is missed
    # with probability zero, and the full comparison takes twenty times as long.
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_known_characteristic_function_gradcheck() -> None:
    _, y, t = some_data(D=2, F=3)
    known = 0.5 * normal(37, 3, 2)
    leaves = [v.requires_grad_() for v in (known, y, t)]
    for options in ({}, {"alpha": 0.3}, {"squared": True, "unbiased": True}):

        def function(known: Tensor, y: Tensor, t: Tensor, options: dict = options) -> Tensor:
            return ncfd_loss(torch.view_as_complex(known), y, t, **options)

        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", [s for r in (1, 2) for s in itertools.combinations("xytw", r)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_only_where_asked(wanted: tuple[str, ...], chunk_size: int | None) -> None:
    x, y, t = some_data()
    tensors = {"x": x, "y": y, "t": t, "w": every_option()["weights"]["y_weights"]}

    def loss(names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in tensors.items()}
        options = {"y_weights": leaves["w"], "chunk_size": chunk_size}
        return ncfd_loss(leaves["x"], leaves["y"], leaves["t"], **options), leaves

    value, leaves = loss(wanted)
    value.backward()
    whole, all_leaves = loss(tuple(tensors))
    whole.backward()
    for name in tensors:
        if name in wanted:
            assert torch.equal(leaves[name].grad, all_leaves[name].grad)
        else:
            assert leaves[name].grad is None


def test_no_graph_without_need() -> None:
    x, y, t = some_data()
    assert not ncfd_loss(x, y, t).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not ncfd_loss(x, y, t).requires_grad
    with torch.inference_mode():
        assert ncfd_loss(x, y, t).isfinite()


def test_inputs_are_left_alone_and_calls_repeat() -> None:
    x, y, t = some_data()
    options = every_option()["chunked weighted groups"]
    before = copy.deepcopy((x, y, t, options))
    first, second = (ncfd_loss(x, y, t, **options) for _ in range(2))
    assert torch.equal(first, second)
    for a, b in zip(before[:3], (x, y, t), strict=True):
        assert torch.equal(a, b)
    for name, value in before[3].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(options[name]))


def test_functions_draw_no_random_numbers() -> None:
    x, y, t = some_data()
    state = torch.get_rng_state()
    ncfd_loss(x.requires_grad_(), y, t, chunk_size=2).backward()
    assert torch.equal(torch.get_rng_state(), state)


# --- gaussian_ncfd --------------------------------------------------------------------------

SCALES_OF_THREE = {
    "number": 0.7,
    "per feature": torch.tensor([0.3, 0.8, 1.2], dtype=torch.float64),
    "mixture": torch.tensor([[0.3, 0.8, 1.2], [2.0, 0.1, 0.5]], dtype=torch.float64),
}


@pytest.mark.parametrize("scale", SCALES_OF_THREE)
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", ["plain", "weights", "chunks"])
def test_gaussian_loss_is_that_of_the_kernel(kind: str, unbiased: bool, scale: str) -> None:
    x, y, _ = some_data()
    options = every_option()[kind]
    value = gaussian_ncfd(x, y, SCALES_OF_THREE[scale], unbiased=unbiased, **options)
    options = {name: v for name, v in options.items() if name != "chunk_size"}
    exact = reference.gaussian_kernel_loss(
        x, y, SCALES_OF_THREE[scale], unbiased=unbiased, **options
    )
    close(value, np.asarray(exact), 1e-14)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", ["groups", "weighted groups", "chunked weighted groups"])
def test_grouped_gaussian_loss_is_a_loop_over_groups(kind: str, unbiased: bool) -> None:
    x, y, _ = some_data()
    options = every_option()[kind]
    exact = np.zeros(3)
    for g in (0, 1):  # the third is empty
        i, j = options["x_groups"] == g, options["y_groups"] == g
        weights = {}
        if "weight" in kind:
            weights = {"x_weights": options["x_weights"][i], "y_weights": options["y_weights"][j]}
        exact[g] = reference.gaussian_kernel_loss(x[i], y[j], 0.7, unbiased=unbiased, **weights)
    for reduction, expected in (("none", exact), ("sum", exact.sum()), ("mean", exact[:2].mean())):
        value = gaussian_ncfd(x, y, 0.7, unbiased=unbiased, reduction=reduction, **options)
        close(value, np.asarray(expected), 1e-14)


def test_groups_of_the_gaussian_loss_refuse_a_batch() -> None:
    # Once, all but the first entry of the batch were left out without a word.
    x, y, _ = some_data(N=6, M=5)
    labels = {"x_groups": torch.arange(6) % 2, "y_groups": torch.arange(5) % 2, "num_groups": 2}
    with pytest.raises(ValueError, match=r"x_groups needs samples of shape \(N, D\)"):
        gaussian_ncfd(x.expand(2, 6, 3), y.expand(2, 5, 3), **labels)


def test_batched_gaussian_loss_is_a_loop() -> None:
    x, y = normal(43, 2, 3, 6, 3), 0.3 + normal(44, 2, 3, 4, 3)
    value = gaussian_ncfd(x, y, 0.7)
    assert value.shape == (2, 3)
    for i in itertools.product(range(2), range(3)):
        close(value[i], np.asarray(reference.gaussian_kernel_loss(x[i], y[i], 0.7)), 1e-14)


@pytest.mark.parametrize("M", [3, 4])  # equal sizes form all three terms with both sides named
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gaussian_loss_gradcheck(unbiased: bool, chunk_size: int | None, M: int) -> None:
    x, y, _ = some_data(N=4, M=M)
    weights = [torch.rand(n, generator=torch.Generator().manual_seed(n)).double() for n in (4, M)]
    leaves = [v.requires_grad_() for v in (x, y, SCALES_OF_THREE["mixture"].clone(), *weights)]

    def function(x: Tensor, y: Tensor, scale: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return gaussian_ncfd(
            x, y, scale, unbiased=unbiased, x_weights=w, y_weights=v, chunk_size=chunk_size
        )

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)
    plain = torch.autograd.grad(function(*leaves), leaves)
    penalised = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    for a, b in zip(plain, penalised, strict=True):
        torch.testing.assert_close(a, b)  # with a graph of its own it is the same gradient


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_gaussian_loss_of_equals_is_zero_with_vanishing_slopes(dtype: torch.dtype) -> None:
    x, _, _ = some_data(dtype)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = gaussian_ncfd(x, y, 0.7)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value == 0
    for slope in torch.autograd.grad(value, (x, y)):
        assert slope.dtype == dtype
        # The pulls of both sides, each of order 0.1, cancel up to their rounding.
        assert (slope.abs() <= 4 * torch.finfo(value.dtype).eps).all()


def test_gaussian_loss_far_from_the_origin_in_float32() -> None:
    # Squared norms of 1e6 would leave nothing of distances of order 1.
    x, y = (v + 1000 for v in some_data(torch.float32)[:2])
    exact = reference.gaussian_kernel_loss(x, y, 0.7)
    assert gaussian_ncfd(x, y, 0.7).item() == pytest.approx(exact, abs=1e-6)


def test_gaussian_loss_of_near_equals_is_not_negative() -> None:
    for seed in range(20):  # without a bound some come out at -1e-7
        x = normal(seed, 20, 4, dtype=torch.float32)
        y = (x + 1e-5 * normal(seed + 100, 20, 4, dtype=torch.float32)).requires_grad_()
        value = gaussian_ncfd(x, y)
        assert value >= 0
        # Where it is held at 0, the slope is still that of the formula.
        (slope,) = torch.autograd.grad(value, y)
        exact = y.detach().double().requires_grad_()
        (wanted,) = torch.autograd.grad(gaussian_ncfd(x.double(), exact), exact)
        # Slopes of 1e-7 from pulls of 0.1 / 20 each, rounded.
        assert (slope.double() - wanted).abs().max() < 1e-8


@pytest.mark.parametrize("size", [(700, 30), (300, 300)])
def test_gaussian_loss_in_many_blocks(size: tuple[int, int]) -> None:
    # Three blocks on a side, those of equal samples on and off the diagonal, against one product.
    x, y = normal(45, size[0], 3), 0.3 + normal(46, size[1], 3)
    leaves = [v.requires_grad_() for v in (x, y, SCALES_OF_THREE["mixture"].clone())]
    value = gaussian_ncfd(*leaves)

    def mean(a: Tensor, b: Tensor) -> float:
        gaps = (a.detach()[:, None] - b.detach()[None]).square()  # (n, m, 3)
        kernels = [torch.exp(-0.5 * (gaps * s).sum(2)) for s in leaves[2].detach().square()]
        return math.fsum(torch.stack(kernels).flatten().tolist()) / (2 * len(a) * len(b))

    # Half a million terms added exactly; ours in blocks, in float64.
    close(value, np.asarray(0.5 * mean(x, x) + 0.5 * mean(y, y) - mean(x, y)), 1e-14)
    plain = torch.func.grad(gaussian_ncfd, (0, 1, 2))(*(v.detach() for v in leaves))
    for slope, expected in zip(torch.autograd.grad(value, leaves), plain, strict=True):
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_real_rows_spare_what_the_synthetic_side_does_not_feel(
    unbiased: bool, grouped: bool
) -> None:
    x, y = normal(47, 40, 3), (0.5 + normal(48, 6, 3)).requires_grad_()
    options: dict[str, Any] = {"unbiased": unbiased}
    parts = [(x, y)]
    if grouped:
        i, j = torch.arange(40) % 2, torch.arange(6) % 2
        options |= {"x_groups": i, "y_groups": j, "num_groups": 2, "reduction": "none"}
        parts = [(x[i == g], y[j == g]) for g in (0, 1)]
    (slope,) = torch.autograd.grad(gaussian_ncfd(x, y, 0.7, **options).sum(), y)
    for rows in (0, 5, 19, 1000):
        value = gaussian_ncfd(x, y, 0.7, real_rows=rows, **options)
        expected = []
        for real, synthetic in parts:
            whole = gaussian_ncfd(real, synthetic, 0.7, unbiased=unbiased).item()
            pairs = torch.exp(-0.5 * 0.49 * torch.cdist(real, real).square()) - 1

            def term(few: int, pairs: Tensor = pairs) -> float:
                few = min(few, len(pairs))
                count = few * (few - 1) if unbiased else few * few
                return 0.5 * pairs[:few, :few].sum().item() / max(count, 1)

            expected.append(whole - term(len(real)) + term(rows))
        close(value, np.asarray(expected if grouped else expected[0]), 1e-13)
        (same,) = torch.autograd.grad(value.sum(), y)
        torch.testing.assert_close(same, slope, rtol=1e-12, atol=1e-15)


def test_real_rows_of_a_learned_scale_are_an_unbiased_estimate() -> None:
    x, y = normal(49, 400, 2), 0.5 + normal(50, 8, 2)
    scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(gaussian_ncfd(x, y, scale, unbiased=True), scale)
    found = []
    for part in range(10):  # the rows in turn: their mean lacks the pairs between two parts
        value = gaussian_ncfd(x.roll(40 * part, 0), y, scale, unbiased=True, real_rows=40)
        found.append(torch.autograd.grad(value, scale)[0].item())
    error = np.std(found) / np.sqrt(len(found))
    assert error > 0
    assert abs(np.mean(found) - whole.item()) < 4 * error


def test_real_rows_are_checked() -> None:
    x, y, _ = some_data()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match=r"real_rows.*int"):
        gaussian_ncfd(x, y, real_rows=2.0)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match=r"real_rows.*at least 0.*-1"):
        gaussian_ncfd(x, y, real_rows=-1)
    with pytest.raises(ValueError, match=r"real_rows.*at least 2.*unbiased"):
        gaussian_ncfd(x, y, real_rows=1, unbiased=True)
    with pytest.raises(ValueError, match=r"real_rows.*x_weights"):
        gaussian_ncfd(x, y, real_rows=2, x_weights=torch.ones(len(x)).double())
    with pytest.raises(ValueError, match=r"real_rows=0.*scale"):
        gaussian_ncfd(x, y, scale, real_rows=0)
    with pytest.raises(ValueError, match=r"real_rows=0.*gradient of x"):
        gaussian_ncfd(x.clone().requires_grad_(), y, real_rows=0)
    with torch.no_grad():
        gaussian_ncfd(x, y, scale, real_rows=0)


# --- gradient_reversal ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0, 0.25, 4, np.float64(0), np.float32(0.5), np.int64(0)])
def test_gradient_reversal(scale: float, dtype: torch.dtype) -> None:
    t = normal(38, 3, 2, dtype=dtype).requires_grad_()
    weights = normal(39, 3, 2, dtype=dtype)
    value = gradient_reversal(t, scale)
    assert torch.equal(value, t)
    assert value.dtype == t.dtype
    (slope,) = torch.autograd.grad((value * weights).sum(), t)
    assert torch.equal(slope, -scale * weights)


def test_gradient_reversal_passes_infinity_on() -> None:
    t = torch.tensor([math.inf, -math.inf, -0.0, 1e-45])
    assert torch.equal(gradient_reversal(t), t)


def test_gradient_reversal_by_default_and_twice() -> None:
    t = normal(40, 3, 2).requires_grad_()
    (slope,) = torch.autograd.grad((gradient_reversal(t) ** 3).sum(), t, create_graph=True)
    torch.testing.assert_close(slope, -3 * t**2)
    # The second backward runs through the factor t² of the first, and through the reversal of it.
    (second,) = torch.autograd.grad(slope.sum(), t)
    torch.testing.assert_close(second.abs(), 6 * t.abs())


def test_public_names() -> None:
    documented = {
        "characteristic_function",
        "amplitude_phase",
        "cf_discrepancy",
        "ncfd_loss",
        "gaussian_ncfd",
        "gradient_reversal",
    }
    assert documented <= set(F.__all__)
    assert all(getattr(F, name).__doc__ for name in F.__all__)


# --- the root of a mean -------------------------------------------------------------------------


def test_safe_root_is_the_root() -> None:
    value = torch.tensor([4.0, 1e-30, 2.0], dtype=torch.float64, requires_grad=True)
    root = safe_root(value)
    np.testing.assert_allclose(root.detach(), np.sqrt(value.detach().numpy()), rtol=1e-15)
    (slope,) = torch.autograd.grad(root.sum(), value)
    np.testing.assert_allclose(slope, 0.5 / np.sqrt(value.detach().numpy()), rtol=1e-15)
    positive = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(safe_root, positive)
    assert gradgradcheck(safe_root, positive)


def test_safe_root_at_and_below_zero() -> None:
    value = torch.tensor([0.0, -0.5, torch.nan], requires_grad=True)
    root = safe_root(value)
    (slope,) = torch.autograd.grad(root[:2].sum(), value, create_graph=True)
    assert root[:2].tolist() == [0, 0]
    assert root[2].isnan()
    assert slope[:2].tolist() == [0, 0]
    assert torch.autograd.grad(slope[:2].sum(), value)[0][:2].tolist() == [0, 0]
    with pytest.raises(TypeError, match=r"\bvalue\b.*int64"):
        safe_root(torch.ones(2, dtype=torch.long))


@pytest.mark.parametrize("form", ["closed", "frequencies"])
def test_the_root_of_a_mean_has_a_finite_slope_at_equality(form: str) -> None:
    """Where `torch.sqrt` gives NaN."""

    def squared(x: Tensor, y: Tensor) -> Tensor:
        t = normal(3, 16, 3)
        return gaussian_ncfd(x, y) if form == "closed" else ncfd_loss(x, y, t, squared=True)

    x = normal(1, 12, 3)
    y = x.clone().requires_grad_()
    (broken,) = torch.autograd.grad(squared(x, y).sqrt(), y)
    assert broken.isnan().any()
    (slope,) = torch.autograd.grad(safe_root(squared(x, y)), y)
    assert slope.tolist() == torch.zeros_like(y).tolist()
    # Next to it the slope is that of a distance, neither 0 nor large.
    near = (x + 1e-6 * normal(4, 12, 3)).requires_grad_()
    (slope,) = torch.autograd.grad(safe_root(squared(x, near)), near)
    assert 1e-2 < slope.norm() < 1
