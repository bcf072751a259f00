"""Closed forms against densities (SciPy, by quadrature), samples, and finite differences."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ComposeTransform,
    Distribution,
    Exponential,
    ExpTransform,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogisticNormal,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    SigmoidTransform,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
)

from ncfd.distributions import closed_form, register_characteristic_function
from ncfd.functional import characteristic_function, ncfd_loss


def as_tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def phi(distribution: Distribution, t: Tensor) -> Tensor:
    return torch.complex(*closed_form(distribution, t))


# Frequencies around the scale of the laws below, both signs, zero included.
T = torch.cat([torch.linspace(-4, 4, 33, dtype=torch.float64), as_tensor([1e-6, 7.3])])[:, None]

# name: (torch distribution, SciPy law, left and right end of the quadrature)
CONTINUOUS: dict[str, tuple[Distribution, stats.rv_continuous, float, float]] = {
    "Normal": (Normal(as_tensor(0.7), as_tensor(1.3)), stats.norm(0.7, 1.3), -15, 15),
    "Uniform": (Uniform(as_tensor(-1.0), as_tensor(2.5)), stats.uniform(-1, 3.5), -1, 2.5),
    "Laplace": (Laplace(as_tensor(-0.4), as_tensor(0.8)), stats.laplace(-0.4, 0.8), -30.4, 29.6),
    "Exponential": (Exponential(as_tensor(1.7)), stats.expon(scale=1 / 1.7), 0, 25),
    "Gamma": (Gamma(as_tensor(3.5), as_tensor(1.2)), stats.gamma(3.5, scale=1 / 1.2), 0, 50),
    "Chi2": (Chi2(as_tensor(5.0)), stats.chi2(5), 0, 90),
    "Gumbel": (Gumbel(as_tensor(0.4), as_tensor(0.8)), stats.gumbel_r(0.4, 0.8), -5, 35),
    "StudentT": (
        StudentT(as_tensor(9.0), as_tensor(0.3), as_tensor(0.7)),
        stats.t(9.0, 0.3, 0.7),
        -100,
        100,
    ),
}
# name: (torch distribution, SciPy law on the integers)
DISCRETE: dict[str, tuple[Distribution, stats.rv_discrete]] = {
    "Bernoulli": (Bernoulli(as_tensor(0.3)), stats.bernoulli(0.3)),
    "Bernoulli half": (Bernoulli(logits=as_tensor(0.0)), stats.bernoulli(0.5)),
    "Binomial": (Binomial(12, as_tensor(0.35)), stats.binom(12, 0.35)),
    "Binomial half": (Binomial(7, as_tensor(0.5)), stats.binom(7, 0.5)),
    "Geometric": (Geometric(as_tensor(0.25)), stats.geom(0.25, loc=-1)),
    "NegativeBinomial": (NegativeBinomial(as_tensor(3.5), as_tensor(0.4)), stats.nbinom(3.5, 0.6)),
    "Poisson": (Poisson(as_tensor(2.6)), stats.poisson(2.6)),
    "Categorical": (
        Categorical(as_tensor([0.1, 0.5, 0.15, 0.25])),
        stats.rv_discrete(values=([0, 1, 2, 3], [0.1, 0.5, 0.15, 0.25])),
    ),
}
ONE_DIMENSIONAL = {name: row[0] for name, row in (CONTINUOUS | DISCRETE).items()} | {
    "Cauchy": Cauchy(as_tensor(0.2), as_tensor(0.6)),
    "StudentT wild": StudentT(as_tensor(0.8), as_tensor(0.2), as_tensor(0.6)),
}


def covariance(D: int) -> Tensor:
    root = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(D))
    return root @ root.mT / D + 0.3 * torch.eye(D, dtype=torch.float64)


def mixture(*batch: int) -> MixtureSameFamily:
    generator = torch.Generator().manual_seed(7)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731 - as short as what it shortens
    return MixtureSameFamily(
        Categorical(0.1 + random(*batch, 3)), Normal(random(*batch, 3) * 4, 0.3 + random(*batch, 3))
    )


MULTIVARIATE: dict[str, Distribution] = {
    "MultivariateNormal": MultivariateNormal(as_tensor([0.5, -1.0, 0.2]), covariance(3)),
    "LowRankMultivariateNormal": LowRankMultivariateNormal(
        as_tensor([0.5, -1.0, 0.2]), as_tensor([[1.0], [0.5], [-0.3]]), as_tensor([0.2, 0.3, 0.4])
    ),
    "Independent Normal": Independent(Normal(as_tensor([0.1, 0.4, -1]), as_tensor([1, 2, 0.3])), 1),
    "OneHotCategorical": OneHotCategorical(as_tensor([0.2, 0.5, 0.3])),
    "Multinomial": Multinomial(6, as_tensor([0.2, 0.5, 0.3])),
    "Independent Gamma": Independent(Gamma(as_tensor([1.1, 2.0, 5]), as_tensor(2.0)), 1),
    "Independent Bernoulli": Independent(Bernoulli(as_tensor([0.1, 0.5, 0.8])), 1),
    "mixture": mixture(),
    "mixture in the plane": MixtureSameFamily(
        Categorical(as_tensor([0.4, 0.6])),
        MultivariateNormal(as_tensor([[0.0, 0.0], [2.0, 1.0]]), covariance(2)),
    ),
    "affine": TransformedDistribution(
        Laplace(as_tensor(0.3), as_tensor(0.6)), [AffineTransform(1.0, -2.0)]
    ),
    "affine vector": TransformedDistribution(
        Independent(Exponential(as_tensor([0.5, 2.0])), 1),
        [AffineTransform(as_tensor([1.0, -1.0]), as_tensor([2.0, -0.5]), event_dim=1)],
    ),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_agrees_with_the_density(name: str) -> None:
    distribution, law, low, high = CONTINUOUS[name]
    # Gauss-Legendre on 400 panels: exact far beyond 1e-10 for |t| < 10, and the ends of the
    # supports and the kink of Laplace are panel ends.
    node, weight = np.polynomial.legendre.leggauss(10)
    edge = np.linspace(low, high, 401)
    half = np.diff(edge)[:, None] / 2
    x = (edge[:-1, None] + half + half * node).ravel()
    mass = (half * weight).ravel() * law.pdf(x)
    expected = np.exp(1j * T.numpy() * x) @ mass
    # 1e-8: what the tails beyond `low` and `high` leave.
    np.testing.assert_allclose(phi(distribution, T).numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("name", DISCRETE)
def test_agrees_with_the_probabilities(name: str) -> None:
    distribution, law = DISCRETE[name]
    k = np.arange(150)
    expected = np.exp(1j * T.numpy() * k) @ law.pmf(k)
    np.testing.assert_allclose(phi(distribution, T).numpy(), expected, atol=1e-13)


def test_cauchy_has_its_textbook_form() -> None:
    t = T[:, 0]
    expected = torch.polar((-0.6 * t.abs()).exp(), 0.2 * t)
    torch.testing.assert_close(phi(ONE_DIMENSIONAL["Cauchy"], T), expected)


@pytest.mark.parametrize("df", [0.05, 0.3, 1.0, 2.0, 3.0, 7.5, 30.0])
def test_student_t_is_a_bessel_function(df: float) -> None:
    t = np.array([1e-9, 1e-4, 0.02, 0.3, 1.0, 2.5, 6.0, 15.0, 40.0])
    a, z = df / 2, math.sqrt(df) * t
    log_bessel = np.log(special.kve(a, z)) - z
    expected = np.exp(log_bessel + a * np.log(z) - special.gammaln(a) - (a - 1) * math.log(2))
    re, im = closed_form(StudentT(as_tensor(df)), as_tensor(t)[:, None])
    np.testing.assert_allclose(re.numpy(), expected, atol=2e-13)
    assert (im == 0).all()


@pytest.mark.parametrize("df", [1e3, 1e6])
def test_student_t_with_many_degrees_of_freedom_tends_to_the_normal(df: float) -> None:
    t = as_tensor([0.1, 1.0, 3.0, 6.0])
    # log φ = -t²/2 (1 + 2/ν + ...) + t⁴/(4ν) + ...: first order in 1/ν, remainder of order 1/ν².
    expected = (-t.square() / 2).exp() * (1 + (t.pow(4) / 4 - t.square()) / df)
    got = closed_form(StudentT(as_tensor(df)), t[:, None])[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=10 / df**2 + 2e-14)


def test_student_t_with_one_degree_of_freedom_is_cauchy() -> None:
    t = torch.linspace(-30, 30, 201, dtype=torch.float64)[:, None]
    pair = StudentT(as_tensor(1.0), 0.3, 1.2), Cauchy(as_tensor(0.3), as_tensor(1.2))
    torch.testing.assert_close(phi(pair[0], t), phi(pair[1], t), atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", [*ONE_DIMENSIONAL, *MULTIVARIATE])
def test_agrees_with_samples(name: str) -> None:
    distribution = (ONE_DIMENSIONAL | MULTIVARIATE)[name]
    N, D = 200_000, distribution.event_shape.numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # torch.distributions draws from the default generator only
        x = distribution.sample((N,)).reshape(N, D).double()
        t = 0.7 * torch.randn(9, D, dtype=torch.float64)
    empirical = torch.polar(torch.ones((), dtype=torch.float64), x @ t.mT).mean(0)
    # |φ̂ - φ| has standard deviation below 1/√N; 9 frequencies stay below 4.5 of them.
    assert (empirical - phi(distribution, t)).abs().max() < 4.5 / math.sqrt(N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*ONE_DIMENSIONAL, *MULTIVARIATE])
def test_is_one_at_zero_and_conjugate_and_bounded(name: str, dtype: torch.dtype) -> None:
    distribution = to_dtype((ONE_DIMENSIONAL | MULTIVARIATE)[name], dtype)
    D = distribution.event_shape.numel()
    t = 2 * torch.randn(50, D, dtype=dtype, generator=torch.Generator().manual_seed(1))
    t[0] = 0.0
    re, im = closed_form(distribution, t)
    assert re.dtype == im.dtype == dtype
    assert re[0] == 1.0
    assert im[0] == 0.0
    eps = torch.finfo(dtype).eps
    assert (torch.hypot(re, im) <= 1 + 8 * eps).all()
    mirrored = closed_form(distribution, -t)
    torch.testing.assert_close(mirrored[0], re, rtol=0, atol=8 * eps)
    torch.testing.assert_close(mirrored[1], -im, rtol=0, atol=8 * eps)


@pytest.mark.parametrize(
    "name", [n for n in ONE_DIMENSIONAL if n in CONTINUOUS or n in ("Cauchy", "StudentT wild")]
)
def test_large_frequencies_vanish_without_nan(name: str) -> None:
    distribution = to_dtype(ONE_DIMENSIONAL[name], torch.float32)
    parameters = leaves(distribution)
    t = torch.tensor([[1e6], [-1e12], [1e18], [3e30]], requires_grad=True)
    re, im = closed_form(distribution, t)
    assert torch.hypot(re, im).max() < 1e-5
    gradients = torch.autograd.grad(re.sum() + im.sum(), [t, *parameters])
    # d/dt of a vanishing φ is finite; d/dloc = t φ is too unless t itself overflows the product.
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_nan_and_infinite_frequencies_show(name: str, bad: float) -> None:
    re, im = closed_form(ONE_DIMENSIONAL[name], torch.tensor([[bad], [1.0]]))
    assert re[..., 0].isnan().all()
    assert im[..., 0].isnan().all()
    assert re[..., 1].isfinite().all()


@pytest.mark.parametrize("name", ["Binomial", "Poisson", "mixture", "mixture in the plane"])
def test_composite_forms_underflow_to_zero(name: str) -> None:
    distribution = (ONE_DIMENSIONAL | MULTIVARIATE)[name]
    if name in ("Binomial", "Poisson"):  # periodic: their smallest modulus is at π
        distribution = Binomial(100_000, torch.tensor(0.5)) if name == "Binomial" else Poisson(1e4)
        t = torch.tensor([[math.pi]], requires_grad=True)
    else:
        t = torch.full((1, distribution.event_shape.numel()), 1e5, dtype=torch.float64)
        t.requires_grad_()
    re, im = closed_form(distribution, t)
    assert re.item() == 0
    assert im.item() == 0
    assert torch.autograd.grad(re + im, t)[0].isfinite().all()


def leaves(distribution: Distribution) -> list[Tensor]:
    """The floating parameters a distribution was made of, turned into leaves that ask for grad."""
    names = [n for n in distribution.arg_constraints if n in vars(distribution)]
    found = []
    for name in names:
        value = vars(distribution)[name]
        if isinstance(value, Tensor) and value.is_floating_point() and name != "total_count":
            setattr(distribution, name, value.detach().clone().requires_grad_())
            found.append(getattr(distribution, name))
    return found


def to_dtype(distribution: Distribution, dtype: torch.dtype) -> Distribution:
    """A copy with every floating tensor inside converted."""

    def convert(value: object) -> object:
        if isinstance(value, Tensor):
            return value.detach().to(dtype) if value.is_floating_point() else value
        if isinstance(value, list):
            return [convert(v) for v in value]
        if isinstance(value, Distribution):
            return to_dtype(value, dtype)
        if isinstance(value, AffineTransform):
            return AffineTransform(convert(value.loc), convert(value.scale), value.event_dim)
        return value

    copy = distribution.__class__.__new__(distribution.__class__)
    vars(copy).update({k: convert(v) for k, v in vars(distribution).items()})
    return copy


Build = Callable[..., Distribution]
# name: (constructor from parameters, parameters): what gradcheck varies.
PARAMETRIC: dict[str, tuple[Build, list[object]]] = {
    "Normal": (Normal, [[0.2, -1.0], [0.5, 1.4]]),
    "MultivariateNormal": (
        lambda loc, root: MultivariateNormal(loc, scale_tril=root.tril()),
        [[0.3, -0.2], [[1.1, 0.0], [0.4, 0.7]]],
    ),
    "covariance": (
        lambda c: MultivariateNormal(torch.zeros(2).double(), c @ c.mT + torch.eye(2).double()),
        [[[1.1, 0.2], [0.4, 0.7]]],
    ),
    "LowRankMultivariateNormal": (
        LowRankMultivariateNormal,
        [[0.3, -0.2], [[1.1], [0.4]], [0.5, 0.9]],
    ),
    "Uniform": (lambda low, width: Uniform(low, low + width), [[-0.5, 0.1], [0.6, 2.0]]),
    "Laplace": (Laplace, [[0.2, -1.0], [0.5, 1.4]]),
    "Exponential": (Exponential, [[0.5, 1.4]]),
    "Gamma": (Gamma, [[0.5, 3.0], [1.3, 0.8]]),
    "Chi2": (Chi2, [[0.9, 4.0]]),
    "Cauchy": (Cauchy, [[0.2, -1.0], [0.5, 1.4]]),
    "Gumbel": (Gumbel, [[0.2, -1.0], [0.5, 1.4]]),
    "logistic": (lambda loc, scale: logistic(loc, scale), [[0.2, -1.0], [0.5, 1.4]]),
    "OneHotCategorical": (lambda z: OneHotCategorical(logits=z), [[0.3, -0.5, 0.2]]),
    "Multinomial": (lambda z: Multinomial(5, logits=z), [[0.3, -0.5, 0.2]]),
    "StudentT": (StudentT, [[1.5, 6.0], [0.2, -1.0], [0.5, 1.4]]),
    "Bernoulli": (Bernoulli, [[0.2, 0.5]]),
    "Bernoulli logits": (lambda z: Bernoulli(logits=z), [[0.2, -0.5]]),
    "Binomial": (lambda p: Binomial(5, p), [[0.2, 0.55]]),
    "Geometric": (Geometric, [[0.2, 0.5]]),
    "NegativeBinomial": (NegativeBinomial, [[2.0, 3.5], [0.2, 0.5]]),
    "Poisson": (Poisson, [[0.5, 2.4]]),
    "Categorical": (lambda z: Categorical(logits=z), [[0.3, -0.5, 0.2]]),
    "Independent": (
        lambda low, width: Independent(Uniform(low, low + width), 1),
        [[-0.5, 0.1, 2.0], [0.6, 2.0, 1.1]],
    ),
    "Independent Normal": (
        lambda loc, scale: Independent(Normal(loc, scale), 1),
        [[-0.5, 0.1, 2.0], [0.6, 2.0, 1.1]],
    ),
    "mixture": (
        lambda z, loc, scale: MixtureSameFamily(Categorical(logits=z), Laplace(loc, scale)),
        [[0.1, -0.4], [0.0, 1.5], [0.5, 0.8]],
    ),
    "affine": (
        lambda b, c, rate: TransformedDistribution(Exponential(rate), [AffineTransform(b, c)]),
        [0.4, -1.2, 0.8],
    ),
}


@pytest.mark.parametrize("name", PARAMETRIC)
def test_first_derivatives_in_frequencies_and_parameters(name: str) -> None:
    build, values = PARAMETRIC[name]
    parameters = [as_tensor(v).requires_grad_() for v in values]
    D = build(*parameters).event_shape.numel()
    t = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t[0] *= 1e-3 if name not in ("Cauchy",) else 1.0  # close to 0, where quotients would cancel
    assert torch.autograd.gradcheck(
        lambda t, *p: closed_form(build(*p), t), (t.requires_grad_(), *parameters)
    )


@pytest.mark.parametrize(
    "name",
    [
        "Normal",
        "Uniform",
        "StudentT",
        "mixture",
        "Binomial",
        "NegativeBinomial",
        "Gumbel",
        "logistic",
    ],
)
def test_second_derivatives(name: str) -> None:
    build, values = PARAMETRIC[name]
    parameters = [as_tensor(v).requires_grad_() for v in values]
    t = as_tensor([[0.01], [0.7]]).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda t, *p: closed_form(build(*p), t), (t, *parameters), atol=1e-4
    )


def test_moments_come_out_of_the_derivatives_at_zero() -> None:
    t = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for distribution in (
        *(row[0] for row in (CONTINUOUS | DISCRETE).values() if row[0].batch_shape == ()),
        MULTIVARIATE["mixture"],
    ):
        re, im = closed_form(distribution, t)
        (first,) = torch.autograd.grad(im.sum(), t, retain_graph=True)  # φ'(0) = i E x
        (slope,) = torch.autograd.grad(re.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), t)  # φ''(0) = -E x²
        k = torch.arange(4, dtype=torch.float64)
        if isinstance(distribution, Categorical):
            mean, square = (distribution.probs * k).sum(), (distribution.probs * k**2).sum()
        else:
            mean = distribution.mean
            square = distribution.variance + mean.square()
        torch.testing.assert_close(first.squeeze(), mean)
        torch.testing.assert_close(-second.squeeze(), square)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_batches(name: str) -> None:
    """Batch entry by batch entry, shared and separate frequencies."""
    build, values = PARAMETRIC[name]
    one = build(*(as_tensor(v) for v in values))
    batch = one.expand((3, 2, *one.batch_shape)) if not isinstance(one, MixtureSameFamily) else None
    if batch is None:
        batch = MixtureSameFamily(
            one.mixture_distribution.expand((3, 2)), one.component_distribution.expand((3, 2, 2))
        )
    D, F = one.event_shape.numel(), 5
    shared = torch.randn(F, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        phi(batch, shared), phi(one, shared).expand(3, 2, *one.batch_shape, F)
    )
    separate = shared * torch.arange(1.0, 7.0).reshape(3, 2, *(1 for _ in one.batch_shape), 1, 1)
    expected = torch.stack(
        [torch.stack([phi(one, s) for s in row]) for row in separate.reshape(3, 2, F, D)]
    )
    torch.testing.assert_close(phi(batch, separate), expected)
    # Frequencies may also bring batch dimensions that the distribution lacks.
    torch.testing.assert_close(phi(one, separate), expected)


def test_different_parameters_in_a_batch() -> None:
    loc, scale = torch.randn(2, 4, 3).double().unbind(0)
    scale = scale.exp()
    t = torch.randn(6, 1).double()
    got = phi(Normal(loc, scale), t)
    assert got.shape == (4, 3, 6)
    torch.testing.assert_close(got[2, 1], phi(Normal(loc[2, 1], scale[2, 1]), t))
    got = phi(Independent(StudentT(3 + scale, loc, scale), 1), torch.randn(6, 3).double())
    assert got.shape == (4, 6)
    got = phi(mixture(4, 2), t)
    assert got.shape == (4, 2, 6)


@pytest.mark.parametrize("D", [1, 2, 3, 5, 8, 33])
def test_independent_is_the_product(D: int) -> None:
    loc = torch.linspace(-1, 2, D, dtype=torch.float64)
    t = torch.randn(7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(D)) / D
    for family in (Laplace, Normal):
        factors = [phi(family(loc[d], 0.5 + d / D), t[:, d : d + 1]) for d in range(D)]
        whole = Independent(family(loc, 0.5 + torch.arange(D).double() / D), 1)
        torch.testing.assert_close(phi(whole, t), torch.stack(factors).prod(0))


def test_independent_over_several_dimensions_is_row_major() -> None:
    loc = torch.randn(2, 3, 4).double()
    t = torch.randn(5, 12).double() / 4
    flat = Independent(Laplace(loc.reshape(2, 12), as_tensor(0.7)), 1)
    square = Independent(Laplace(loc, as_tensor(0.7)), 2)
    nested = Independent(Independent(Laplace(loc, as_tensor(0.7)), 1), 1)
    untouched = Independent(flat, 0)
    for other in (square, nested, untouched):
        torch.testing.assert_close(phi(other, t), phi(flat, t))
    assert phi(Independent(Normal(loc, 1.0), 3), torch.randn(5, 24).double()).shape == (5,)


def test_independent_vectors() -> None:
    loc = torch.randn(4, 2).double()
    root = torch.eye(2).double() * 0.5
    blocks = Independent(MultivariateNormal(loc, scale_tril=root), 1)
    t = torch.randn(5, 8).double()
    joint = MultivariateNormal(loc.flatten(), torch.eye(8).double() / 4)
    torch.testing.assert_close(phi(blocks, t), phi(joint, t))


def test_a_mixture_of_products() -> None:
    weights, loc = as_tensor([0.2, 0.8]), torch.randn(2, 3).double()
    t = torch.randn(5, 3).double()
    whole = MixtureSameFamily(Categorical(weights), Independent(Laplace(loc, as_tensor(1.0)), 1))
    parts = [phi(Independent(Laplace(loc[j], as_tensor(1.0)), 1), t) for j in range(2)]
    torch.testing.assert_close(phi(whole, t), weights[0] * parts[0] + weights[1] * parts[1])


def test_affine_transforms_compose() -> None:
    base = Normal(as_tensor([0.5, -1.0]), as_tensor([1.0, 2.0]))
    first, second = AffineTransform(1.0, -3.0), AffineTransform(as_tensor([0.2, 0.1]), 0.5)
    expected = Normal(as_tensor([0.2, 0.1]) + 0.5 * (1 - 3 * base.loc), as_tensor(1.5) * base.scale)
    t = torch.randn(5, 1).double()
    for transforms in ([first, second], [ComposeTransform([first, second])]):
        torch.testing.assert_close(
            phi(TransformedDistribution(base, transforms), t), phi(expected, t)
        )
    nested = TransformedDistribution(TransformedDistribution(base, [first]), [second])
    torch.testing.assert_close(phi(nested, t), phi(expected, t))
    undone = TransformedDistribution(base, [first, second, second.inv, first.inv])
    torch.testing.assert_close(phi(undone, t), phi(base, t))


def test_an_affine_transform_of_a_vector() -> None:
    base = MultivariateNormal(as_tensor([0.5, -1.0]), covariance(2))
    shift, scale = as_tensor([1.0, 2.0]), as_tensor([-0.5, 3.0])
    t = torch.randn(5, 2).double()
    expected = MultivariateNormal(
        shift + scale * base.loc, scale[:, None] * base.covariance_matrix * scale
    )
    for event_dim in (0, 1):
        moved = TransformedDistribution(base, [AffineTransform(shift, scale, event_dim)])
        torch.testing.assert_close(phi(moved, t), phi(expected, t))
    # With event_dim=1 a batch of scalars becomes one vector.
    moved = TransformedDistribution(
        Normal(shift, as_tensor(1.0)), [AffineTransform(shift, scale, event_dim=1)]
    )
    expected = Independent(Normal(shift + scale * shift, scale.abs()), 1)
    torch.testing.assert_close(phi(moved, t), phi(expected, t))


def test_an_affine_transform_that_widens_the_batch() -> None:
    moved = TransformedDistribution(
        Normal(as_tensor(0.5), as_tensor(1.0)), [AffineTransform(torch.arange(3.0).double(), 2.0)]
    )
    t = torch.randn(5, 1).double()
    expected = Normal(torch.arange(3.0).double() + 1.0, as_tensor(2.0))
    torch.testing.assert_close(phi(moved, t), phi(expected, t))


# --- ends of parameters -------------------------------------------------------------------------

ENDS_T = np.array([0.0, 1e-7, 0.3, -1.7, math.pi, 25.0])


def turn(t: np.ndarray) -> np.ndarray:
    return np.exp(1j * t)


# name: (law of one parameter, its end, φ there, dφ/dparameter there), by hand as functions of t.
Formula = Callable[[np.ndarray], np.ndarray | complex]
ENDS: dict[str, tuple[Callable[[Tensor], Distribution], float, Formula, Formula]] = {
    "Bernoulli 0": (Bernoulli, 0.0, lambda t: 1, lambda t: turn(t) - 1),
    "Bernoulli 1": (Bernoulli, 1.0, turn, lambda t: turn(t) - 1),
    "Binomial 0": (lambda p: Binomial(5, p), 0.0, lambda t: 1, lambda t: 5 * (turn(t) - 1)),
    "Binomial 1": (
        lambda p: Binomial(5, p),
        1.0,
        lambda t: turn(5 * t),
        lambda t: 5 * turn(4 * t) * (turn(t) - 1),
    ),
    "Binomial of one": (
        lambda p: Binomial(1, p),
        0.5,
        lambda t: (1 + turn(t)) / 2,
        lambda t: turn(t) - 1,
    ),
    "Binomial of none": (lambda p: Binomial(0, p), 0.5, lambda t: 1, lambda t: 0),
    "Geometric 1": (Geometric, 1.0, lambda t: 1, lambda t: 1 - turn(t)),
    "NegativeBinomial 0": (
        lambda q: NegativeBinomial(as_tensor(3.0), q),
        0.0,
        lambda t: 1,
        lambda t: 3 * (turn(t) - 1),
    ),
    "NegativeBinomial of none": (
        lambda r: NegativeBinomial(r, as_tensor(0.4)),
        0.0,
        lambda t: 1,
        lambda t: np.log(0.6 / (1 - 0.4 * turn(t))),
    ),
    "Poisson 0": (Poisson, 0.0, lambda t: 1, lambda t: turn(t) - 1),
    "Exponential inf": (Exponential, math.inf, lambda t: 1, lambda t: 0),
    "Gamma rate inf": (lambda r: Gamma(as_tensor(2.0), r), math.inf, lambda t: 1, lambda t: 0),
    "Gamma 0": (
        lambda c: Gamma(c, as_tensor(2.0), validate_args=False),
        0.0,
        lambda t: 1,
        lambda t: -np.log(1 - 0.5j * t),
    ),
    "Chi2 0": (
        lambda df: Chi2(df, validate_args=False),
        0.0,
        lambda t: 1,
        lambda t: -0.5 * np.log(1 - 2j * t),
    ),
    "StudentT inf": (StudentT, math.inf, lambda t: np.exp(-(t**2) / 2), lambda t: 0),
    "Categorical": (
        lambda p: Categorical(torch.stack([1 - p, p, 0 * p])),
        0.0,
        lambda t: 1,
        lambda t: turn(t) - 1,
    ),
    "mixture": (
        lambda p: MixtureSameFamily(
            Categorical(torch.stack([1 - p, p])), Laplace(torch.zeros(2).double(), 1.0)
        ),
        0.0,
        lambda t: 1 / (1 + t**2),
        lambda t: 0,
    ),
} | {
    # Laws that shrink to the point 0.5 as their scale does.
    f"{name} 0": (law, 0.0, lambda t: turn(t / 2), slope)
    for name, law, slope in (
        ("Normal", lambda s: Normal(0.5, s, validate_args=False), lambda t: 0),
        ("Laplace", lambda s: Laplace(0.5, s, validate_args=False), lambda t: 0),
        ("StudentT", lambda s: StudentT(3.0, 0.5, s, validate_args=False), lambda t: 0),
        (
            "Cauchy",
            lambda s: Cauchy(0.5, s, validate_args=False),
            lambda t: -np.abs(t) * turn(t / 2),
        ),
        (
            "Gumbel",
            lambda s: Gumbel(as_tensor(0.5), s, validate_args=False),
            lambda t: 1j * t * np.euler_gamma * turn(t / 2),
        ),
        (
            "Uniform",
            lambda s: Uniform(0.5, 0.5 + s, validate_args=False),
            lambda t: 0.5j * t * turn(t / 2),
        ),
        ("logistic", lambda s: logistic(as_tensor(0.5), s), lambda t: 0),
    )
}


def logistic(loc: Tensor, scale: Tensor) -> TransformedDistribution:
    uniform = Uniform(torch.zeros_like(loc), torch.ones_like(loc))
    return TransformedDistribution(
        uniform, [SigmoidTransform().inv, AffineTransform(loc, scale)], validate_args=False
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENDS)
def test_value_and_slope_at_the_ends_of_parameters(name: str, dtype: torch.dtype) -> None:
    law, end, value, slope = ENDS[name]
    eps = torch.finfo(dtype).eps
    for t in ENDS_T:
        parameter = torch.tensor(end, dtype=dtype, requires_grad=True)
        t = torch.tensor([[t]], dtype=dtype, requires_grad=True)
        at = t.detach().double().numpy().ravel()
        re, im = closed_form(law(parameter), t)
        size = 1 + abs(at[0])
        assert abs(re.item() + 1j * im.item() - (value(at) + 0j * at)[0]) < 16 * eps * size
        slopes = [
            torch.autograd.grad(part.sum(), [parameter, t], retain_graph=True) for part in (re, im)
        ]
        got = slopes[0][0].item() + 1j * slopes[1][0].item()
        assert abs(got - (slope(at) + 0j * at)[0]) < 64 * eps * size
        assert all(g[1].isfinite() for g in slopes)


def test_the_sums_of_slopes_at_the_ends_by_hand() -> None:
    t = as_tensor([[0.0], [0.3], [1.7]])
    for law, end, expected in (
        (Geometric, 1.0, -0.113677),
        (lambda q: NegativeBinomial(as_tensor(3.0), q), 0.0, 0.341031),
    ):
        p = as_tensor(end).requires_grad_()
        re, im = closed_form(law(p), t)
        (slope,) = torch.autograd.grad((re + im).sum(), p)
        assert abs(slope.item() - expected) < 1e-6


@pytest.mark.parametrize("df", [1e8, 1e12, 1e16, 1e29, 1e33, 1e300, math.inf])
def test_student_t_stays_normal_however_many_degrees_of_freedom(df: float) -> None:
    t = as_tensor([0.0, 1e-3, 0.5, 1.0, 3.0, 6.0])
    freedom, at = as_tensor(df).requires_grad_(), t[:, None].clone().requires_grad_()
    got = closed_form(StudentT(freedom, 0.0, as_tensor(1.0)), at)[0]
    normal = (-t.square() / 2).exp()
    expected = normal * (1 + (t.pow(4) / 4 - t.square()) / df)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-14)
    slopes = torch.autograd.grad(got.sum(), [freedom, at])
    by_hand = -(normal * (t.pow(4) / 4 - t.square())).sum().item() / df / df
    assert abs(slopes[0].item() - by_hand) < 1e-5 * abs(by_hand) + 1e-22
    torch.testing.assert_close(slopes[1][:, 0], -t * normal, rtol=0, atol=10 / df + 1e-13)
    narrow = closed_form(StudentT(torch.tensor(df, dtype=torch.float32)), t[:, None].float())[0]
    torch.testing.assert_close(narrow.double(), normal, rtol=0, atol=1e-6)


def test_degrees_of_freedom_of_every_size_in_one_batch() -> None:
    df = as_tensor([0.5, 3.0, 1e9, math.inf])
    whole = phi(StudentT(df, as_tensor(0.1), as_tensor(2.0)), T)
    for k, one in enumerate(df):
        torch.testing.assert_close(whole[k], phi(StudentT(one, as_tensor(0.1), as_tensor(2.0)), T))


@pytest.mark.parametrize("p", [1e-3, 1e-15, 1e-30, 1e-200])
def test_rare_success(p: float) -> None:
    """A geometric law of huge mean, where p² and its reciprocal are out of range."""
    t = np.array([0.0, 1e-3, 1.0, math.pi])
    for dtype in (torch.float32, torch.float64):
        if p < torch.finfo(dtype).tiny:
            continue
        chance = torch.tensor(p, dtype=dtype, requires_grad=True)
        re, im = closed_form(Geometric(chance), torch.tensor(t[:, None], dtype=dtype))
        at = torch.tensor(t, dtype=dtype).double().numpy()
        held = chance.item()
        with np.errstate(invalid="ignore"):
            # 1 - (1 - p) e^(it) = p + (1 - p)(1 - e^(it)), without cancellation
            below = held - (1 - held) * (-2 * np.sin(at / 2) ** 2 + 1j * np.sin(at))
        expected = np.where(at == 0, 1, held / np.where(at == 0, 1, below))
        eps = torch.finfo(dtype).eps
        np.testing.assert_allclose(re.detach().numpy(), expected.real, rtol=0, atol=8 * eps)
        np.testing.assert_allclose(im.detach().numpy(), expected.imag, rtol=0, atol=8 * eps)
        (slope,) = torch.autograd.grad(re.sum() + im.sum(), chance)
        assert slope.isfinite()


# --- vectors of counts, Gumbel and logistic -----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1_000_000])
def test_multinomial_and_one_hot(n: int, p: list[float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    t[0] = 0.0
    t[1] = as_tensor([0.0, math.pi, 0.0])
    t[2] *= 20
    t = (t / math.sqrt(max(n, 1))).to(dtype)
    probs = torch.tensor(p, dtype=dtype, requires_grad=True)
    distribution = OneHotCategorical(probs) if n == 1 else Multinomial(n, probs)
    at, held = t.double().numpy(), probs.detach().double().numpy()
    # log φ = n log(1 + Σ p (e^(it) - 1)), all exact near 1
    step = (held * (-2 * np.sin(at / 2) ** 2 + 1j * np.sin(at))).sum(1)
    one = 1 + step
    loss = np.clip(-2 * step.real - abs(step) ** 2, None, 0.75)

    def power(m: int) -> np.ndarray:
        near_one = np.exp(m * (0.5 * np.log1p(-loss) + 1j * np.angle(one)))
        return np.where(abs(one) > 0.5, near_one, one ** max(m, 0))

    expected = power(n)
    got = phi(distribution, t).detach().numpy()
    tolerance = 32 * torch.finfo(dtype).eps * (1 + n**0.5) * (1 + abs(at).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    assert got[0] == 1
    # PyTorch divides by Σ p, so the slope is n step^(n-1) (e^(it) - φ of one draw).
    slope = (n * power(n - 1)[:, None] * (np.exp(1j * at) - one[:, None])).sum(0)
    re, im = closed_form(distribution, t)
    for part, by_hand in ((re, slope.real), (im, slope.imag)):
        (found,) = torch.autograd.grad(part.sum(), probs, retain_graph=True)
        np.testing.assert_allclose(found, by_hand, rtol=0, atol=64 * tolerance * (1 + n**0.5))


def test_multinomial_draws() -> None:
    distribution = Multinomial(4, as_tensor([0.2, 0.5, 0.3]))
    counts = np.array([(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)])
    t = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mass = stats.multinomial(4, [0.2, 0.5, 0.3]).pmf(counts)
    expected = np.exp(1j * t.numpy() @ counts.T) @ mass
    np.testing.assert_allclose(phi(distribution, t).numpy(), expected, atol=1e-14)
    batch = Multinomial(4, torch.rand(2, 5, 3, dtype=torch.float64))
    assert phi(batch, t).shape == (2, 5, 9)
    torch.testing.assert_close(phi(batch, t)[1, 3], phi(Multinomial(4, batch.probs[1, 3]), t))


def test_multinomial_where_its_characteristic_function_vanishes() -> None:
    probs = as_tensor([0.5, 0.5]).requires_grad_()
    t = as_tensor([[math.pi / 2, -math.pi / 2], [3.0, 3.0 + math.pi]])
    re, im = closed_form(Multinomial(3, probs), t)
    assert torch.hypot(re, im).max() < 1e-30
    assert torch.autograd.grad(re.sum() + im.sum(), probs)[0].abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_is_a_gamma_function(dtype: torch.dtype) -> None:
    t = torch.tensor([0.0, 1e-8, 1e-3, 0.1, 0.5, -1.0, 3.0, 10.0, -200.0, 1e6], dtype=dtype)
    loc, scale = 0.7, 1.3
    held = torch.tensor([loc, scale], dtype=dtype).double().numpy()
    at = t.double().numpy()
    expected = np.exp(special.loggamma(1 - 1j * held[1] * at) + 1j * held[0] * at)
    got = phi(Gumbel(*torch.tensor([loc, scale], dtype=dtype)), t[:, None])
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)
    assert got[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_in_the_form_of_pytorch(dtype: torch.dtype) -> None:
    t = torch.tensor([0.0, 1e-6, 0.1, -1.0, 2.0, 9.0, 1e5], dtype=dtype)
    loc, scale = torch.tensor([0.7, 0.6], dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        u = math.pi * scale.double().item() * t.double().numpy()
        modulus = np.where(u == 0, 1.0, u / np.sinh(u))
    expected = modulus * np.exp(1j * loc.double().item() * t.double().numpy())
    tiny, end = torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps
    zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    logit, affine = SigmoidTransform().inv, AffineTransform(loc, scale)
    for base, transforms in (
        (Uniform(zero, one), [logit, affine]),
        (Uniform(zero + tiny, end * one), [logit, affine]),
        (Uniform(zero, one), [ComposeTransform([logit, affine])]),
        (TransformedDistribution(Uniform(zero, one), [logit]), [affine]),
        (
            Uniform(zero, one),
            [logit, AffineTransform(0.0, 2 * one), AffineTransform(loc, scale / 2)],
        ),
    ):
        got = phi(TransformedDistribution(base, transforms), t[:, None])
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)
        assert got[0] == 1


def test_logistic_vectors_and_batches() -> None:
    logit = SigmoidTransform().inv
    loc, scale = as_tensor([0.5, -1.0, 0.0]), as_tensor([1.0, 0.3, 2.0])
    t = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3, dtype=torch.float64)
    singles = [phi(logistic(loc[d], scale[d]), t[:, d : d + 1]) for d in range(3)]
    for whole in (
        Independent(logistic(loc, scale), 1),
        TransformedDistribution(
            Independent(Uniform(0 * ones, ones), 1), [logit, AffineTransform(loc, scale)]
        ),
    ):
        torch.testing.assert_close(phi(whole, t), torch.stack(singles).prod(0))
    batch = TransformedDistribution(Uniform(0 * ones, ones), [logit])
    assert phi(batch, t[:, :1]).shape == (3, 5)


def test_what_is_not_quite_logistic_is_refused() -> None:
    logit = SigmoidTransform().inv
    for base in (Uniform(0.0, 0.5), Uniform(0.1, 1.0), Beta(1.0, 1.0)):
        with pytest.raises(NotImplementedError, match="not affine"):
            closed_form(TransformedDistribution(base, [logit]), torch.zeros(1, 1))
    first = TransformedDistribution(Uniform(0.0, 1.0), [AffineTransform(1.0, -1.0), logit])
    with pytest.raises(NotImplementedError, match="not affine"):
        closed_form(first, torch.zeros(1, 1))


@pytest.mark.parametrize(
    "distribution",
    [
        Weibull(1.0, 2.0),
        LogNormal(0.0, 1.0),
        Pareto(1.0, 2.0),
        HalfNormal(1.0),
        Beta(1.0, 2.0),
        Kumaraswamy(1.0, 2.0),
        InverseGamma(1.0, 2.0),
        LogisticNormal(torch.zeros(2), torch.ones(2)),
        RelaxedBernoulli(1.0, torch.tensor(0.5)),
        RelaxedOneHotCategorical(torch.tensor(1.0), torch.tensor([0.5, 0.5])),
    ],
    ids=lambda d: type(d).__name__,
)
def test_laws_without_an_elementary_form_are_refused(distribution: Distribution) -> None:
    D = distribution.event_shape.numel()
    with pytest.raises(NotImplementedError, match=f"{type(distribution).__name__} has no reg"):
        closed_form(distribution, torch.zeros(1, D))


# --- registry and errors ------------------------------------------------------------------------


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    from ncfd import distributions

    monkeypatch.setattr(distributions, "_REGISTRY", dict(distributions._REGISTRY))


class Dirac(Distribution):
    arg_constraints: dict[str, object] = {}  # noqa: RUF012 - as its base class has it

    def __init__(self, at: Tensor) -> None:
        self.at = at
        super().__init__(at.shape[:-1], at.shape[-1:], validate_args=False)


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_rule_may_return_complex_or_a_pair() -> None:
    at, t = torch.randn(2, 3), torch.randn(5, 3)
    expected = torch.polar(torch.ones(()), at @ t.mT)

    @register_characteristic_function(Dirac)
    def rule(distribution: Dirac, t: Tensor) -> Tensor:
        return torch.polar(torch.ones(()), distribution.at @ t.mT)

    torch.testing.assert_close(phi(Dirac(at), t), expected)

    @register_characteristic_function(Dirac)
    def pair(distribution: Dirac, t: Tensor) -> tuple[Tensor, Tensor]:
        phase = distribution.at @ t.mT
        return phase.cos(), phase.sin()

    torch.testing.assert_close(phi(Dirac(at), t), expected)


@pytest.mark.usefixtures("clean_registry")
def test_the_most_specific_class_wins() -> None:
    class Special(Normal):
        pass

    class MoreSpecial(Special):
        pass

    t = torch.randn(5, 1)
    torch.testing.assert_close(phi(MoreSpecial(0.0, 1.0), t), phi(Normal(0.0, 1.0), t))

    @register_characteristic_function(Special)
    def ones(distribution: Special, t: Tensor) -> Tensor:
        return torch.ones(t.shape[:-1], dtype=torch.complex64)

    assert (phi(MoreSpecial(0.0, 1.0), t) == 1).all()
    assert (phi(Normal(0.0, 1.0), t) != 1).all()


@pytest.mark.parametrize("distribution", [Weibull(1.0, 2.0), LogNormal(0.0, 1.0), Dirac(T[0])])
def test_unregistered_distributions_say_what_to_do(distribution: Distribution) -> None:
    name = type(distribution).__name__
    with pytest.raises(
        NotImplementedError, match=rf"{name} has no reg.*@ncfd.*register_char.*\({name}\)"
    ):
        closed_form(distribution, torch.zeros(1, 1))


def test_a_transform_that_is_not_affine_is_named() -> None:
    distribution = TransformedDistribution(Normal(0.0, 1.0), [ExpTransform()])
    with pytest.raises(NotImplementedError, match="ExpTransform is not affine"):
        closed_form(distribution, torch.zeros(1, 1))


def test_wrong_arguments() -> None:
    normal = Normal(torch.zeros(3), 1.0)
    with pytest.raises(TypeError, match=r"distribution must be a torch\.distributions"):
        closed_form(torch.zeros(3), torch.zeros(1, 1))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="t must be a tensor"):
        closed_form(normal, [[0.0]])  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match=r"real floating dtype, got torch\.int64"):
        closed_form(normal, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"D = 1.*event of Normal.*got \(5, 3\)"):
        closed_form(normal, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="shape"):
        closed_form(normal, torch.zeros(1))
    with pytest.raises(ValueError, match=r"batch shape \(3,\).*got t of shape \(2, 5, 1\)"):
        closed_form(normal, torch.zeros(2, 5, 1))
    with pytest.raises(ValueError, match=r"t on cpu and the parameters of Normal on meta"):
        closed_form(Normal(torch.zeros(3, device="meta"), 1.0, validate_args=False), T)
    with pytest.raises(TypeError, match=r"subclass of torch\.distributions"):
        register_characteristic_function(Normal(0.0, 1.0))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda t: t[..., 0], TypeError, "faulty, registered for Dirac, must return a complex"),
        (lambda t: (t, t), ValueError, r"of shape \(5,\) for t of shape \(5, 3\), got \(5, 3\)"),
    ],
)
def test_a_faulty_rule_is_named(
    result: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    @register_characteristic_function(Dirac)
    def faulty(distribution: Dirac, t: Tensor) -> object:
        return result(t)

    with pytest.raises(error, match=message):
        closed_form(Dirac(torch.zeros(3)), torch.zeros(5, 3))


@pytest.mark.parametrize(
    "distribution",
    [
        Normal(0.0, 1.0),
        Uniform(0.0, 1.0),
        Laplace(0.0, 1.0),
        Exponential(1.0),
        Gamma(1.0, 2.0),
        Chi2(3.0),
        Cauchy(0.0, 1.0),
        StudentT(3.0),
        Bernoulli(0.3),
        Binomial(5, 0.3),
        Poisson(2.0),
        TransformedDistribution(Normal(0.0, 1.0), AffineTransform(1.0, 2.0)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_numbers_as_parameters_go_with_any_device(distribution: Distribution) -> None:
    # The device without values stands for a GPU: it refuses the same mixtures of devices.
    re, im = closed_form(distribution, torch.ones(4, 1, device="meta"))
    assert re.is_meta
    assert im.is_meta
    assert re.shape == im.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_frequencies_compute_in_float32(dtype: torch.dtype) -> None:
    t = torch.randn(5, 3).to(dtype)
    normal = MultivariateNormal(torch.ones(3), torch.eye(3))
    got = closed_form(normal, t)
    assert got[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = closed_form(normal, t)
    torch.testing.assert_close(inside, got, rtol=0, atol=0)
    torch.testing.assert_close(got, closed_form(normal, t.float()))


@pytest.mark.parametrize("name", ["Independent Normal", "mixture in the plane", "affine vector"])
def test_compiles_without_graph_break(name: str) -> None:
    if name == "mixture in the plane" and torch.__version__ < (2, 6):
        pytest.xfail("dynamo of torch 2.5 cannot read the lazy scale_tril of MultivariateNormal")
    distribution = MULTIVARIATE[name]
    t = torch.randn(5, distribution.event_shape.numel(), dtype=torch.float64)
    # The eager backend suffices to show that one graph captures it; inductor takes a minute.
    compiled = torch.compile(
        lambda t: closed_form(distribution, t), fullgraph=True, backend="aot_eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler says about itself
        got = compiled(t)
    torch.testing.assert_close(got, closed_form(distribution, t))


def test_sliced_quadrature_is_the_epps_pulley_statistic() -> None:
    """``∫ |φ̂ - e^(-t²/2)|² w(t) dt`` along random directions, as a loss against a distribution.

    With w the standard normal density the integral has a closed form (Epps & Pulley, Biometrika 70
    (1983)); pulling embeddings to a standard normal by it is sketched isotropic regularisation.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).double() * 1.3 + 0.2
    direction = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator).double())
    node = torch.linspace(-9, 9, 181, dtype=torch.float64)  # the trapezoid converges like e^(-1/h²)
    weight = 0.1 * torch.exp(-node.square() / 2) / math.sqrt(2 * math.pi)
    t = (node[:, None, None] * direction).reshape(-1, 5)  # (nodes · directions, 5)

    target = Independent(Normal(torch.zeros(5).double(), torch.ones(5).double()), 1)
    value = 2 * ncfd_loss(target, x, t, squared=True, reduction="none")
    by_loss = (weight @ value.reshape(181, 7)).mean()

    slices = (x @ direction.T).T  # (directions, N)
    pairs = torch.exp(-(slices[:, :, None] - slices[:, None, :]).square() / 2).mean((1, 2))
    exact = pairs - math.sqrt(2) * torch.exp(-slices.square() / 4).mean(1) + 1 / math.sqrt(3)
    torch.testing.assert_close(by_loss, exact.mean(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["Independent Normal", "mixture in the plane"])
def test_the_loss_takes_a_distribution(name: str) -> None:
    distribution = MULTIVARIATE[name]
    D = distribution.event_shape.numel()
    t = torch.randn(32, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 2
    assert torch.equal(characteristic_function(distribution, t), phi(distribution, t))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = distribution.sample((4000,))
    assert ncfd_loss(distribution, x, t) < 0.05


def test_the_loss_fits_the_parameters_of_a_distribution() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(500, 3, generator=generator) * torch.tensor([0.5, 1.0, 1.5]) + 0.3
    t = torch.randn(64, 3, generator=generator) / 2
    loc, log_scale = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.05)
    for _ in range(150):
        fitted = Independent(Normal(loc, log_scale.exp()), 1)
        loss = ncfd_loss(fitted, x, t, squared=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(loc.detach(), x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(log_scale.detach().exp(), x.std(0), atol=0.15, rtol=0)
