"""The two-sample tests: against SciPy, against counting, under the hypothesis, and for power."""

import dataclasses
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ncfd.functional import characteristic_function, ncfd_loss
from ncfd.two_sample import TwoSampleTestResult, _sums, two_sample_test


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Epps-Singleton -----------------------------------------------------------------------------

# Draws of one size from a numpy generator: light, skewed and heavy tails, and small integers.
LAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(1.0, 2.0, n),
    "exponential": lambda rng, n: rng.exponential(1.5, n),
    "heavy": lambda rng, n: 100 + rng.standard_t(1.5, n),
    "integers": lambda rng, n: rng.integers(0, 40, n),
}


@given(
    seed=st.integers(0, 2**31 - 1),
    sizes=st.tuples(st.integers(5, 80), st.integers(5, 80)),
    laws=st.tuples(*[st.sampled_from(sorted(LAWS))] * 2),
)
def test_chi2_in_one_dimension_is_scipys(
    seed: int, sizes: tuple[int, int], laws: tuple[str, str]
) -> None:
    rng = np.random.default_rng(seed)
    x, y = (LAWS[law](rng, n) for law, n in zip(laws, sizes, strict=True))
    with warnings.catch_warnings():
        # Five equal integers on a side make the covariance singular; both say so.
        warnings.simplefilter("ignore")
        expected = scipy.stats.epps_singleton_2samp(x, y)
        result = two_sample_test(x, y, method="chi2")
    if not math.isfinite(expected.statistic) or result.degrees_of_freedom < 4:
        return  # zero interquartile range: SciPy divides by it
    np.testing.assert_allclose(result.statistic, expected.statistic, rtol=1e-6)
    np.testing.assert_allclose(result.pvalue, expected.pvalue, rtol=1e-6, atol=1e-300)


def test_chi2_with_other_frequencies_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=60), rng.normal(0.4, 1, size=50)
    half_range = scipy.stats.iqr(np.concatenate([x, y])) / 2
    expected = scipy.stats.epps_singleton_2samp(x, y, t=(0.3, 0.7, 1.2))
    result = two_sample_test(
        x, y, method="chi2", frequencies=np.array([0.3, 0.7, 1.2]) / half_range
    )
    np.testing.assert_allclose(result.statistic, expected.statistic, rtol=1e-6)
    assert result.degrees_of_freedom == 6


def test_chi2_does_not_depend_on_the_coordinates() -> None:
    """Whitening: turning, stretching and shifting the samples with the frequencies."""
    x, y, t = normal(0, 150, 3).double(), normal(1, 140, 3).double() * 1.2, normal(2, 4, 3).double()
    base = two_sample_test(x, y, method="chi2", frequencies=t)
    A = normal(3, 3, 3).double() + 2 * torch.eye(3)
    moved = two_sample_test(
        x @ A.T + 5, y @ A.T + 5, method="chi2", frequencies=t @ torch.linalg.inv(A)
    )
    assert math.isclose(base.statistic, moved.statistic, rel_tol=1e-8)
    assert math.isclose(base.pvalue, moved.pvalue, rel_tol=1e-6)


def test_chi2_by_hand() -> None:
    x, y, t = normal(0, 60, 2).double(), normal(1, 40, 2).double(), normal(2, 3, 2).double()
    g = [torch.cat([(s @ t.T).cos(), (s @ t.T).sin()], 1) for s in (x, y)]
    covariance = sum(100 / len(f) * torch.cov(f.T, correction=0) for f in g)
    gap = g[0].mean(0) - g[1].mean(0)
    expected = 100 * gap @ torch.linalg.inv(covariance) @ gap * (100 - 9) / 98
    result = two_sample_test(x, y, method="chi2", frequencies=t)
    assert math.isclose(result.statistic, expected.item(), rel_tol=1e-9)
    assert math.isclose(result.pvalue, scipy.stats.chi2.sf(result.statistic, 6), rel_tol=1e-9)
    for level, value in result.null_quantiles.items():
        assert math.isclose(value, scipy.stats.chi2.ppf(level, 6), rel_tol=1e-9)
    # Each frequency alone: the 2 x 2 block of the same covariance.
    own = covariance[[1, 4]][:, [1, 4]]
    alone = 100 * gap[[1, 4]] @ torch.linalg.inv(own) @ gap[[1, 4]]
    assert math.isclose(result.contributions[1].item(), alone.item(), rel_tol=1e-9)


def test_chi2_warns_of_a_singular_covariance() -> None:
    x, y = normal(0, 60, 2), normal(1, 40, 2)
    t = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    with pytest.warns(RuntimeWarning, match=r"6 features has rank 4.*permutation") as caught:
        result = two_sample_test(x, y, method="chi2", frequencies=t)
    assert caught[0].filename == __file__
    assert result.degrees_of_freedom == 4


# --- permutations -------------------------------------------------------------------------------


def naive_permutation_values(
    x: Tensor, y: Tensor, t: Tensor, B: int, seed: int
) -> tuple[float, list[float]]:
    """The discrepancy of each relabelled pair of sets by the loss itself, one after the other."""
    z = torch.cat([x, y])
    generator = torch.Generator().manual_seed(seed)
    options = {"squared": True, "unbiased": True}
    observed = ncfd_loss(x, y, t, **options).item()
    values = []
    for _ in range(B):
        order = torch.randperm(len(z), generator=generator)
        small, rest = order[: min(len(x), len(y))], order[min(len(x), len(y)) :]
        values.append(ncfd_loss(z[small], z[rest], t, **options).item())
    return observed, values


@pytest.mark.parametrize(("N", "M"), [(20, 30), (30, 20), (25, 25), (2, 7)])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_permutations_are_what_a_loop_would_give(N: int, M: int, shift: float) -> None:
    x, y, t = normal(0, N, 2).double(), normal(1, M, 2).double() + shift, normal(2, 6, 2).double()
    observed, values = naive_permutation_values(x, y, t, B=59, seed=5)
    result = two_sample_test(x, y, frequencies=t, n_permutations=59, seed=5)
    slack = 1e-12
    assert result.pvalue == (1 + sum(v >= observed - slack for v in values)) / 60
    every = np.array([observed, *values])
    assert math.isclose(result.statistic, (observed - every.mean()) / every.std(), rel_tol=1e-9)
    assert math.isclose(result.discrepancy, observed, rel_tol=1e-9)


def test_blocks_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 70, 3).double(), normal(1, 50, 3).double()
    whole = two_sample_test(x, y, n_permutations=99, seed=1)
    monkeypatch.setattr(_sums, "BLOCK_BYTES", 5000)
    pieces = two_sample_test(x, y, n_permutations=99, seed=1)
    assert whole.pvalue == pieces.pvalue
    assert math.isclose(whole.statistic, pieces.statistic, rel_tol=1e-9)
    torch.testing.assert_close(whole.contributions, pieces.contributions)
    chi2 = [two_sample_test(x, y, method="chi2", seed=1).statistic]
    monkeypatch.undo()
    chi2.append(two_sample_test(x, y, method="chi2", seed=1).statistic)
    assert math.isclose(*chi2, rel_tol=1e-9)


def test_the_smallest_pvalue() -> None:
    result = two_sample_test(normal(0, 50, 1), normal(1, 50, 1) + 5, n_permutations=19, seed=0)
    assert result.pvalue == 1 / 20
    assert "smallest possible" in str(result)


def test_ties_count_against_the_difference() -> None:
    """Two against two: 6 assignments, 2 of them the observed split or its mirror image."""
    x, y = torch.tensor([0.0, 0.1]), torch.tensor([1.0, 1.1])
    result = two_sample_test(x, y, n_permutations=2000, seed=0)
    assert abs(result.pvalue - 1 / 3) < 4.5 * math.sqrt(2 / 9 / 2000)
    equal = two_sample_test(torch.zeros(5), torch.zeros(6), seed=0)
    assert equal.pvalue == 1.0
    binary = two_sample_test(torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0]), seed=0)
    assert binary.pvalue == 1.0


def test_far_from_the_origin_in_float32() -> None:
    """A common shift leaves before phases are formed: at 1e4 the spacing of float32 is 0.001."""
    x, y = normal(0, 100, 2), normal(1, 100, 2) * 1.5
    near = two_sample_test(x.double(), y.double(), seed=0)
    far = two_sample_test(x.double() + 1e5, y.double() + 1e5, seed=0)
    assert near.pvalue == far.pvalue
    assert math.isclose(near.statistic, far.statistic, rel_tol=1e-6)
    single = two_sample_test(x + 1e4, y + 1e4, seed=0)
    assert math.isclose(near.statistic, single.statistic, rel_tol=1e-2)


# --- calibration --------------------------------------------------------------------------------

NULLS: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    "normal": lambda g, n: torch.randn(n, 3, generator=g),
    "skewed": lambda g, n: torch.empty(n, 2).exponential_(generator=g),
    "one dimension": lambda g, n: torch.rand(n, generator=g),
}
TESTS: dict[str, dict[str, object]] = {
    "permutation": {"n_permutations": 99, "num_frequencies": 24},
    "chi2": {"method": "chi2"},
    "learned permutation": {
        "n_permutations": 99,
        "num_frequencies": 24,
        "learn_frequencies": True,
    },
    "learned chi2": {"method": "chi2", "learn_frequencies": True},
}


def rejections(law: str, options: dict[str, object], R: int, N: int, M: int) -> dict[float, float]:
    generator = torch.Generator().manual_seed(0)
    draw = NULLS[law]
    p = torch.tensor(
        [
            two_sample_test(draw(generator, N), draw(generator, M), seed=r, **options).pvalue
            for r in range(R)
        ]
    )
    return {level: (p <= level + 1e-6).double().mean().item() for level in (0.05, 0.1, 0.5)}


@pytest.mark.parametrize("law", NULLS)
@pytest.mark.parametrize("test", ["permutation", "chi2"])
def test_calibration_in_short(test: str, law: str) -> None:
    R = 150
    for level, rate in rejections(law, TESTS[test], R, 60, 50).items():
        # 3.5 standard deviations of a count; a χ² approximation may be 2 % off at these sizes.
        slack = 0.02 if test == "chi2" else 0.0
        assert abs(rate - level) < 3.5 * math.sqrt(level * (1 - level) / R) + slack


@pytest.mark.slow
@pytest.mark.parametrize("law", NULLS)
@pytest.mark.parametrize("test", TESTS)
def test_pvalues_are_uniform_under_the_hypothesis(test: str, law: str) -> None:
    R = 1000
    size = (200, 160) if "chi2" in test else (60, 50)
    for level, rate in rejections(law, TESTS[test], R, *size).items():
        slack = 0.015 if "chi2" in test else 0.0
        assert abs(rate - level) < 3.5 * math.sqrt(level * (1 - level) / R) + slack


# --- power --------------------------------------------------------------------------------------


def location(g: torch.Generator, n: int) -> Tensor:
    x = torch.randn(n, 3, generator=g)
    x[:, 0] += 0.6
    return x


def scale(g: torch.Generator, n: int) -> Tensor:
    return torch.randn(n, 3, generator=g) * torch.tensor([1.8, 1.0, 1.0])


def shape(g: torch.Generator, n: int) -> Tensor:
    """Mean 0 and covariance I like the normal, but each margin has two separate modes."""
    x = torch.randn(n, 3, generator=g)
    return 0.95 * torch.randn(n, 3, generator=g).sign() + math.sqrt(1 - 0.95**2) * x


def dependence(g: torch.Generator, n: int) -> Tensor:
    """Standard normal margins, but the first two share their sign mostly (correlation 0.51)."""
    x = torch.randn(n, 3, generator=g)
    keep = torch.rand(n, generator=g) < 0.9
    x[:, 1] = x[:, 1].abs() * torch.where(keep, 1.0, -1.0) * x[:, 0].sign()
    return x


@pytest.mark.parametrize("shift", [location, scale, shape, dependence], ids=lambda f: f.__name__)
@pytest.mark.parametrize("test", TESTS)
def test_power(test: str, shift: Callable[[torch.Generator, int], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    options = {k: v for k, v in TESTS[test].items() if k != "num_frequencies"}
    R = 4 if "learned" in test else 10
    hits = 0
    for r in range(R):
        x = torch.randn(400, 3, generator=generator)
        hits += two_sample_test(x, shift(generator, 400), seed=r, **options).pvalue <= 0.05
    assert hits == R


def test_the_reason_is_right() -> None:
    x, y = normal(0, 500, 4), normal(1, 500, 4)
    moved = two_sample_test(x, y + torch.tensor([0.0, 0.0, 0.7, 0.0]), seed=0)
    assert moved.direction[2] > 0.95  # from x to y
    assert moved.direction_share > 0.6
    assert moved.phase_share > 0.8
    spread = two_sample_test(x, y * torch.tensor([1.0, 2.0, 1.0, 1.0]), seed=0)
    assert spread.direction.abs()[1] > 0.9
    assert spread.phase_share < 0.3
    turned = two_sample_test(x, y * 1.5, seed=0)
    assert turned.direction_share < 0.5  # all directions alike
    telling = moved.frequencies[moved.top(10)]
    cosine = telling[:, 2].abs() / telling.norm(dim=1)
    assert cosine.median() > 0.6


def test_the_reason_with_more_features_than_rows() -> None:
    x, y = normal(0, 40, 1500), normal(1, 40, 1500)
    y[:, 7] += 25.0
    result = two_sample_test(x, y, n_permutations=99, seed=0)
    assert result.pvalue == 0.01
    assert result.direction.argmax() == 7
    assert abs(result.direction.norm().item() - 1) < 1e-5


# --- units and absurd values --------------------------------------------------------------------

# What float32 holds (subnormals with few digits), and what float64 does.
UNITS = {
    torch.float32: (1e-42, 1e-38, 1e-27, 1e21, 5e37),
    torch.float64: (1e-320, 1e-300, 1e-27, 1e160, 1e305),
}


def spread_apart(dtype: torch.dtype, D: int) -> tuple[Tensor, Tensor]:
    return normal(0, 70, D).to(dtype), 2 * normal(1, 60, D).to(dtype)


@pytest.mark.parametrize(("dtype", "unit"), [(d, u) for d in UNITS for u in UNITS[d]])
@pytest.mark.parametrize("test", TESTS)
def test_the_unit_does_not_matter(test: str, dtype: torch.dtype, unit: float) -> None:
    digits = 1e-2 if unit in (1e-42, 1e-320) else 1e-3
    for D in (1, 3) if test in ("permutation", "chi2") else (2,):
        x, y = spread_apart(dtype, D)
        expected = two_sample_test(x, y, seed=0, **TESTS[test])
        result = two_sample_test(x * unit, y * unit, seed=0, **TESTS[test])
        assert math.isclose(result.pvalue, expected.pvalue, rel_tol=30 * digits)
        assert math.isclose(result.statistic, expected.statistic, rel_tol=digits)
        assert math.isclose(result.phase_share, expected.phase_share, abs_tol=digits)
        assert "p-value" in str(result)
        if unit != 1e-320:  # beyond float64
            t = result.frequencies.double() * unit
            torch.testing.assert_close(t, expected.frequencies.double(), rtol=digits, atol=digits)


@pytest.mark.parametrize(("dtype", "unit"), [(d, u) for d in UNITS for u in UNITS[d][1:]])
def test_the_value_in_any_unit_is_that_of_a_loop_in_float64(
    dtype: torch.dtype, unit: float
) -> None:
    x, y = spread_apart(dtype, 2)
    t = normal(2, 6, 2).double()
    x, y = x * unit, y * unit
    observed, values = naive_permutation_values(
        x.double() / unit, y.double() / unit, t, B=59, seed=5
    )
    result = two_sample_test(x, y, frequencies=t / unit, n_permutations=59, seed=5)
    every = np.array([observed, *values])
    assert math.isclose(result.statistic, (observed - every.mean()) / every.std(), rel_tol=1e-4)
    assert result.pvalue == (1 + sum(v >= observed - 1e-12 for v in values)) / 60
    assert math.isclose(result.discrepancy, observed, rel_tol=1e-4)


@pytest.mark.parametrize("unit", UNITS[torch.float64][1:])
@pytest.mark.parametrize("law", LAWS)
def test_chi2_in_one_dimension_is_scipys_in_any_unit(law: str, unit: float) -> None:
    rng = np.random.default_rng(0)
    x, y = LAWS[law](rng, 80), 1.5 * LAWS[law](rng, 60)
    expected = scipy.stats.epps_singleton_2samp(x, y)
    result = two_sample_test(x * unit, y * unit, method="chi2")
    np.testing.assert_allclose(result.statistic, expected.statistic, rtol=1e-6)
    np.testing.assert_allclose(result.pvalue, expected.pvalue, rtol=1e-6)


def test_the_scale_is_in_the_unit_of_the_samples() -> None:
    x, y = spread_apart(torch.float32, 2)
    for options in ({"method": "chi2"}, {"n_permutations": 99}, TESTS["learned permutation"]):
        expected = two_sample_test(x, y, seed=0, scale=0.7, **options)
        for unit in (1e-38, 1e30):
            scaled = two_sample_test(x * unit, y * unit, seed=0, scale=0.7 / unit, **options)
            assert math.isclose(scaled.statistic, expected.statistic, rel_tol=1e-3)


ABSURD = [(torch.float32, v) for v in (1e12, -1e30, 3.4e38)] + [
    (torch.float64, v) for v in (1e20, -1e200, 1.7e308)
]


@pytest.mark.parametrize(("dtype", "value"), ABSURD)
@pytest.mark.parametrize("D", [1, 4])
@pytest.mark.parametrize("test", [*TESTS, "given"])
def test_one_absurd_value_does_not_blind_the_test(
    test: str, D: int, dtype: torch.dtype, value: float
) -> None:
    x, y = normal(0, 500, D).to(dtype), normal(1, 500, D).to(dtype)
    y[:, 0] += 0.5 if D == 1 else 1.0
    options = {"n_permutations": 199, **TESTS.get(test, {})}
    options["n_permutations"] = 199
    if test == "given":
        options["frequencies"] = normal(2, 12, D)
    plain = two_sample_test(x, y, seed=0, **options)
    side, row, column = (x, 3, D - 1) if value > 1e15 else (y, 499, 0)
    side[row, column] = value
    result = two_sample_test(x, y, seed=0, **options)
    assert result.pvalue <= 0.005
    assert result.direction[0] > 0.8  # the sets differ along the first feature, upwards
    if "learned" not in test:  # one row of a thousand more or less
        assert abs(result.statistic - plain.statistic) < 0.15 * plain.statistic
        torch.testing.assert_close(result.amplitude_x, plain.amplitude_x, rtol=0, atol=0.02)


@pytest.mark.parametrize("test", ["permutation", "chi2"])
def test_an_absurd_value_among_ties(test: str) -> None:
    """Four of five rows are zero: no distance or spread may be the absurd one."""
    generator = torch.Generator().manual_seed(0)
    zero = torch.rand(2, 400, 1, generator=generator) < 0.8
    x, y = torch.randn(2, 400, 2, generator=generator).where(~zero, 0.0)
    y = y + 2 * (y != 0)
    plain = two_sample_test(x, y, method=test, n_permutations=199, seed=0)
    x[7, 1] = 1e15
    result = two_sample_test(x, y, method=test, n_permutations=199, seed=0)
    assert max(plain.pvalue, result.pvalue) <= 0.005
    assert abs(result.statistic - plain.statistic) < 0.15 * plain.statistic


def test_absurd_values_without_a_difference_are_none() -> None:
    R, hits = 100, 0
    for r in range(R):
        x, y = normal(2 * r, 60, 2), normal(2 * r + 1, 50, 2)
        x[0, 1] = 1e30
        x[1, 0] = -3e12
        hits += two_sample_test(x, y, seed=r, n_permutations=99, num_frequencies=24).pvalue <= 0.1
    assert hits <= 0.1 * R + 3.5 * math.sqrt(0.09 * R)


# --- the result ---------------------------------------------------------------------------------


def test_result_describes_the_samples_at_the_frequencies() -> None:
    x, y, t = normal(0, 50, 2).double(), normal(1, 40, 2).double() + 0.3, normal(2, 5, 2).double()
    result = two_sample_test(x, y, frequencies=t, seed=3)
    phi_x, phi_y = characteristic_function(x, t), characteristic_function(y, t)
    torch.testing.assert_close(result.amplitude_x, phi_x.abs())
    torch.testing.assert_close(result.amplitude_y, phi_y.abs())
    torch.testing.assert_close(result.phase_gap, (phi_x * phi_y.conj()).angle())
    assert torch.equal(result.frequencies, t)
    assert (result.n_x, result.n_y, result.n_learn, result.seed) == (50, 40, 0, 3)
    assert result.contributions.shape == (5,)
    assert result.contributions[result.top(1)] == result.contributions.max()
    assert 0 <= result.phase_share <= 1
    values = list(result.null_quantiles.values())
    assert values == sorted(values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.pvalue = 0.0  # type: ignore[misc]  # wrong on purpose


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("D", [1, 6])
def test_prints_a_report(test: str, D: int) -> None:
    result = two_sample_test(normal(0, 300, D), normal(1, 250, D) + 0.5, seed=0, **TESTS[test])
    text = str(result)
    assert text.startswith("Two-sample test (")
    assert f"p-value   {result.pvalue:.3g}" in text
    assert ("direction" in text) == (D > 1)
    assert ("learned" in text) == ("learned" in test)
    assert "wavelength" in text
    assert max(map(len, text.splitlines())) < 160
    assert "frequencies=" not in repr(result)  # tensors stay out of repr


def test_one_seed_one_result() -> None:
    x, y = normal(0, 60, 3), normal(1, 50, 3) + 0.2
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is meant
    for test, options in TESTS.items():
        first = two_sample_test(x, y, seed=7, **options)
        again = two_sample_test(x, y, seed=7, **options)
        assert (first.statistic, first.pvalue) == (again.statistic, again.pvalue), test
        unseeded = two_sample_test(x, y, **options)
        assert unseeded.seed != 7
        repeated = two_sample_test(x, y, seed=unseeded.seed, **options)
        assert repeated.statistic == unseeded.statistic
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002 - the global state is what is meant


def test_inputs_may_be_tensors_or_arrays_of_any_real_kind() -> None:
    x, y = normal(0, 40, 2), normal(1, 30, 2)
    expected = two_sample_test(x.double(), y.double(), seed=0)
    grown = x.clone().requires_grad_()
    flipped = np.ascontiguousarray(x.numpy().T).T  # Fortran order
    flipped.setflags(write=False)
    for a, b in (
        (x.numpy(), y.numpy()),
        (grown, y),
        (flipped, y.double()),
        (x.numpy().astype(">f8"), y),
    ):
        result = two_sample_test(a, b, seed=0)
        assert math.isclose(result.statistic, expected.statistic, rel_tol=1e-4)
    half = two_sample_test(x.half(), y.bfloat16(), seed=0)
    assert half.frequencies.dtype == torch.float32
    counts = two_sample_test(
        torch.arange(10), np.arange(5, 15, dtype=np.uint8), seed=0, n_permutations=9
    )
    assert counts.frequencies.dtype == torch.float64
    flat = two_sample_test(x[:, 0], y[:, 0], seed=0)
    column = two_sample_test(x[:, :1], y[:, :1], seed=0)
    assert flat.statistic == column.statistic


class Frame:
    """What pandas, polars, xarray and others offer to NumPy."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(self.values, dtype)


def test_whatever_numpy_makes_numeric_is_taken() -> None:
    x, y = normal(0, 40, 2).double(), normal(1, 30, 2).double()
    expected = two_sample_test(x, y, seed=0)
    wide = x.numpy().astype(np.longdouble)
    for a, b in (
        (x.tolist(), y.tolist()),
        (Frame(x.numpy()), Frame(y.numpy())),
        (list(x.numpy()), tuple(y)),
        (wide, y),
    ):
        result = two_sample_test(a, b, seed=0)
        assert (result.pvalue, result.statistic) == (expected.pvalue, expected.statistic)
    by_list = two_sample_test(x, y, frequencies=[[0.5, 1.0], [1.0, -2]], seed=0)
    assert by_list.frequencies.tolist() == [[0.5, 1.0], [1.0, -2.0]]
    for kind in ("?", "u1", "i2", ">u2", "u8", "ulonglong", "longlong", "f2", ">f4", "longdouble"):
        whole = (x.numpy() > 0).astype(kind)
        result = two_sample_test(whole, whole[::-2], frequencies=x[:3], n_permutations=9, seed=0)
        assert result.frequencies.dtype == (torch.float32 if "f" in kind else torch.float64)
        phi = np.exp(1j * (whole.astype(float) @ x[:3].numpy().T)).mean(0)
        np.testing.assert_allclose(result.amplitude_x, abs(phi), rtol=1e-5)
    counts = two_sample_test(range(20), [True, False] * 10, n_permutations=9, seed=0)
    assert counts.frequencies.dtype == torch.float64


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = normal(0, 40, 2).double(), normal(1, 30, 2).double()
    expected = two_sample_test(x, y, seed=0)
    frames = [pandas.DataFrame(side.numpy(), columns=["a", "b"]) for side in (x, y)]
    assert two_sample_test(*frames, seed=0).statistic == expected.statistic
    column = two_sample_test(*(frame["a"] for frame in frames), seed=0)
    assert column.statistic == two_sample_test(x[:, 0], y[:, 0], seed=0).statistic
    frames[0]["name"] = "text"
    with pytest.raises(TypeError, match=r"x must hold real numbers, got DataFrame.*to_numpy"):
        two_sample_test(*frames, seed=0)


@pytest.mark.parametrize("hidden", [1e20, -999.0, np.nan, np.inf])
@pytest.mark.parametrize("method", ["permutation", "chi2"])
def test_what_is_under_a_mask_counts_as_absent(method: str, hidden: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 2)), rng.normal(size=(80, 2))
    mask = rng.random((80, 2)) < 0.2
    y[mask] = hidden
    valid = ~mask.any(1)
    expected = two_sample_test(x, y[valid], method=method, seed=0)
    masked = np.ma.array(y, mask=mask)
    result = two_sample_test(x, masked, method=method, seed=0)
    assert result.n_y == valid.sum()
    assert (result.pvalue, result.statistic) == (expected.pvalue, expected.statistic)
    rows = two_sample_test(x, list(masked), method=method, seed=0)
    assert rows.statistic == expected.statistic
    # One column, as an array and as a list of numbers and masks.
    one = two_sample_test(x[:, 0], y[~mask[:, 0], 0], method=method, seed=0)
    for column in (masked[:, 0], list(masked[:, 0])):
        result = two_sample_test(x[:, 0], column, method=method, seed=0)
        assert result.statistic == one.statistic
    # And nothing masked at all.
    plain = two_sample_test(np.ma.array(x), x[::2], method=method, seed=0)
    assert plain.statistic == two_sample_test(x, x[::2], method=method, seed=0).statistic


def test_options_reach_the_frequencies() -> None:
    x, y = normal(0, 60, 3), normal(1, 50, 3)
    assert two_sample_test(x, y, num_frequencies=7, n_permutations=9).frequencies.shape == (7, 3)
    assert two_sample_test(x, y, num_frequencies=2, n_permutations=9).frequencies.shape == (2, 3)
    assert two_sample_test(x, y, method="chi2", num_frequencies=7).frequencies.shape == (7, 3)
    small, large = (
        two_sample_test(x, y, scale=s, seed=0, n_permutations=9).frequencies for s in (0.5, 1.0)
    )
    torch.testing.assert_close(2 * small, large)
    small, large = (
        two_sample_test(x, y, scale=s, seed=0, method="chi2").frequencies for s in (0.5, 1.0)
    )
    torch.testing.assert_close(2 * small, large)
    # Standard deviations 1, 2 and 4 over the median distance.
    t = two_sample_test(x, y, num_frequencies=3000, n_permutations=1, seed=0).frequencies
    median = torch.pdist(torch.cat([x, y])).median()
    for block, factor in zip(t.chunk(3), (1, 2, 4), strict=True):
        assert abs(block.std() * median / factor - 1) < 0.05
    learned = two_sample_test(x, y, learn_frequencies=True, learn_fraction=0.25, seed=0)
    assert (learned.n_x, learned.n_y, learned.n_learn) == (45, 38, 27)


@pytest.mark.parametrize("test", ["learned permutation", "learned chi2"])
def test_what_is_learned_does_not_depend_on_what_is_tested(test: str) -> None:
    x, y = normal(0, 60, 2).double(), normal(1, 50, 2).double() * 1.5
    options = {"seed": 0, "learn_fraction": 0.3, **TESTS[test]}
    base = two_sample_test(x, y, **options)
    generator = torch.Generator().manual_seed(0)
    for side in (x, y):
        tested = torch.randperm(len(side), generator=generator)[round(0.3 * len(side)) :]
        side[tested] += 1e3 + side[tested].square()  # most samples: their center and spread
    other = two_sample_test(x, y, **options)
    assert other.statistic != base.statistic
    torch.testing.assert_close(other.frequencies, base.frequencies, rtol=1e-9, atol=0)


def test_learning_finds_the_feature_that_differs() -> None:
    x, y = normal(0, 1000, 10), normal(1, 1000, 10)
    y[:, 4] = dependence(torch.Generator().manual_seed(2), 1000)[:, 1] * 1.6
    result = two_sample_test(x, y, learn_frequencies=True, seed=0)
    spread = result.frequencies.std(0)
    assert spread.argmax() == 4
    assert result.pvalue == 0.001


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", TESTS)
def test_the_default_device_and_dtype_do_not_matter(test: str) -> None:
    x, y = normal(0, 60, 2).double(), normal(1, 50, 2).double()
    expected = two_sample_test(x, y, seed=0, **TESTS[test])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # no draw, label or split may land where the samples are not
            other = two_sample_test(x, y, seed=0, **TESTS[test])
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.statistic == expected.statistic
    assert other.pvalue == expected.pvalue
    assert torch.equal(other.frequencies, expected.frequencies)


def test_learning_inside_inference_mode() -> None:
    x, y = normal(0, 60, 2), normal(1, 50, 2)
    expected = two_sample_test(x, y, seed=0, n_permutations=9, learn_frequencies=True)
    with torch.inference_mode():
        inside = two_sample_test(1 * x, 1 * y, seed=0, n_permutations=9, learn_frequencies=True)
    assert inside.statistic == expected.statistic


X, Y = normal(0, 20, 2), normal(1, 20, 2)


def masked_tensor(data: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls them a prototype
        return torch.masked.masked_tensor(data, data > -1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_rejected(bad: float) -> None:
    broken = X.clone()
    broken[3, 0] = broken[3, 1] = bad
    with pytest.raises(ValueError, match=r"x must be finite, got 2 NaN or inf.* 1 of 20 rows"):
        two_sample_test(broken, Y)
    with pytest.raises(ValueError, match="y must be finite"):
        two_sample_test(X.numpy(), broken.numpy(), method="chi2")


@pytest.mark.parametrize(
    ("error", "message", "x", "y", "options"),
    [
        (TypeError, "x must be a tensor or something that numpy", [[1.0], [1.0, 2.0]], Y, {}),
        (TypeError, r"x must hold real numbers, got list.*x\.to_numpy\(float\)", [1, None], Y, {}),
        (TypeError, "x must hold real numbers, got NoneType", None, Y, {}),
        (TypeError, "y must hold real numbers, got list", X, ["a", "b"], {}),
        (TypeError, "y must be a plain tensor, got a MaskedTensor", X, masked_tensor(Y), {}),
        (ValueError, "x must have rows without a masked", np.ma.masked_all((9, 2)), Y, {}),
        (TypeError, "y must hold real numbers", X, Y.to(torch.complex64), {}),
        (TypeError, "x must hold real numbers", np.array(["a", "b"]), Y, {}),
        (ValueError, r"x must have shape \(N, D\) or \(N,\)", X.reshape(2, 10, 2), Y, {}),
        (ValueError, r"y must have shape .* not empty", X, Y[:0], {}),
        (ValueError, r"same features, got \(20, 2\) and \(20, 1\)", X, Y[:, :1], {}),
        (ValueError, "y must be on cpu", X, Y.to("meta"), {}),
        (ValueError, 'at least 2 samples for method="permutation", got 1', X[:1], Y, {}),
        (ValueError, 'at least 5 samples for method="chi2", got 4', X, Y[:4], {"method": "chi2"}),
        (ValueError, 'method must be "permutation" or "chi2"', X, Y, {"method": "t"}),
        (ValueError, "n_permutations must be at least 1", X, Y, {"n_permutations": 0}),
        (TypeError, "n_permutations must be an int", X, Y, {"n_permutations": 9.5}),
        (TypeError, "seed must be an int", X, Y, {"seed": 0.5}),
        (TypeError, "learn_frequencies must be True or False", X, Y, {"learn_frequencies": 1}),
        (ValueError, r"learn_fraction must be in \(0, 1\)", X, Y, {"learn_fraction": 1.0}),
        (ValueError, "scale must be positive", X, Y, {"scale": -1.0}),
        (ValueError, "num_frequencies must be at least 1", X, Y, {"num_frequencies": 0}),
        (
            ValueError,
            "scale describes default frequencies",
            X,
            Y,
            {"frequencies": X, "scale": 1.0},
        ),
        (
            ValueError,
            "learn_frequencies=True finds its own",
            X,
            Y,
            {"frequencies": X, "learn_frequencies": True},
        ),
        (ValueError, r"frequencies must have shape \(F, 2\)", X, Y, {"frequencies": X[:, 0]}),
        (ValueError, "frequencies must be finite", X, Y, {"frequencies": X / 0}),
        (
            ValueError,
            "F = 30 frequencies needs more than 2F",
            X,
            Y,
            {"method": "chi2", "frequencies": normal(0, 30, 2)},
        ),
        (
            ValueError,
            "x has 9 samples, too few to learn",
            X[:9],
            Y,
            {"learn_frequencies": True},
        ),
    ],
)
def test_wrong_arguments(
    error: type[Exception], message: str, x: object, y: object, options: dict[str, object]
) -> None:
    with pytest.raises(error, match=message):
        two_sample_test(x, y, **options)


def test_result_type_is_public() -> None:
    assert isinstance(two_sample_test(X, Y, n_permutations=9), TwoSampleTestResult)
