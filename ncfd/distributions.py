r"""Characteristic functions in closed form, for distributions of :mod:`torch.distributions`.

A characteristic function φ(t) = E[exp(i⟨t, x⟩)] that is known needs no samples: one side of a
discrepancy loses its noise. :func:`closed_form` finds the formula that belongs to a distribution;
:func:`register_characteristic_function` teaches it another one.

Letters: D features (the size of one event; 1 for a scalar), F frequencies, ``*`` the batch shape of
the distribution, J components of a mixture, K categories.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ComposeTransform,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    Independent,
    IndependentTransform,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    SigmoidTransform,
    StudentT,
    Transform,
    TransformedDistribution,
    Uniform,
)

from ncfd._devices import widest_float

__all__ = ["closed_form", "register_characteristic_function"]

# Re φ and Im φ. Complex tensors stay at the public edge because inductor does not compile them.
Pair = tuple[Tensor, Tensor]
Rule = Callable[..., Tensor | Pair]
RuleT = TypeVar("RuleT", bound=Rule)

_REGISTRY: dict[type[Distribution], Rule] = {}


def register_characteristic_function(
    distribution_class: type[Distribution],
) -> Callable[[RuleT], RuleT]:
    r"""Register the closed-form φ of a distribution class; to be used as a decorator.

    The decorated function is called as ``rule(distribution, t)`` with real frequencies ``t`` of
    shape ``(F, D)`` or ``(*, F, D)``, float32 or float64, where D is the number of elements of one
    event (row-major when an event has several dimensions, 1 for scalar events). It returns the
    complex φ(t) of shape ``(*, F)``, or the pair ``(Re φ, Im φ)`` of real tensors, which unlike
    complex tensors ``torch.compile`` turns into fused code. Derivatives are whatever autograd makes
    of it.

    The rule of the most specific class wins, in method resolution order, so a subclass inherits the
    rule of its parent; a later registration of the same class replaces the earlier one.

    Args:
        distribution_class: a subclass of ``torch.distributions.Distribution``.

    Returns:
        A decorator that returns its function unchanged.

    Raises:
        TypeError: ``distribution_class`` is not a subclass of ``torch.distributions.Distribution``.

    Example:
        The triangular distribution on [-1, 1] is the sum of two uniform ones on [-1/2, 1/2]:

        >>> class Triangular(torch.distributions.Distribution):
        ...     arg_constraints = {}
        >>> @register_characteristic_function(Triangular)
        ... def triangular(distribution, t):
        ...     root = torch.sinc(t[..., 0] / (2 * torch.pi))
        ...     return torch.complex(root**2, torch.zeros_like(root))
        >>> re, im = closed_form(Triangular(), torch.tensor([[0.0], [2.0]]))
        >>> re
        tensor([1.0000, 0.7081])

    Source: the decorator is to characteristic functions what
    ``torch.distributions.kl.register_kl`` is to divergences.
    """
    if not (isinstance(distribution_class, type) and issubclass(distribution_class, Distribution)):
        raise TypeError(
            "distribution_class must be a subclass of torch.distributions.Distribution, got "
            f"{distribution_class!r}; write @register_characteristic_function(MyDistribution)"
        )

    def decorator(rule: RuleT) -> RuleT:
        _REGISTRY[distribution_class] = rule
        return rule

    return decorator


def closed_form(distribution: Distribution, t: Tensor) -> Pair:
    r"""Real and imaginary part of the characteristic function of a distribution, in closed form.

    .. math:: \varphi(t) = \mathbb{E}\, e^{i \langle t, x \rangle}

    Known are Normal, MultivariateNormal, LowRankMultivariateNormal, Uniform, Laplace, Exponential,
    Gamma, Chi2, Cauchy, StudentT, Gumbel, Bernoulli, Binomial, Geometric, NegativeBinomial,
    Poisson, Categorical (its values are 0, ..., K-1), OneHotCategorical, Multinomial, and what is
    built from known ones with Independent, MixtureSameFamily and TransformedDistribution by affine
    transforms. The logistic law is known in the form that PyTorch gives it: Uniform(0, 1) under
    ``SigmoidTransform().inv`` and affine transforms.

    φ(0) is exactly 1. All are differentiable in ``t`` and in the parameters of the distribution,
    also at the ends of the parameters (probabilities 0 and 1, a Poisson rate of 0, infinite degrees
    of freedom), except at t = 0 where the law has no mean (Cauchy; StudentT with df ≤ 1); there the
    gradient is 0.

    Args:
        distribution: batch shape ``*``, D elements in one event.
        t: frequencies, ``(F, D)``, or ``(*, F, D)`` for others in each batch entry. float16 and
            bfloat16 are computed in float32.

    Returns:
        ``(Re φ, Im φ)``, each ``(*, F)``.

    Raises:
        NotImplementedError: no rule is registered for the class of ``distribution``.
        TypeError: ``distribution`` or ``t`` is of the wrong type.
        ValueError: ``t`` does not fit the event or batch shape.

    Example:
        >>> standard = torch.distributions.Normal(0.0, 1.0)
        >>> re, im = closed_form(standard, torch.tensor([[0.0], [1.0]]))
        >>> re  # exp(-t²/2)
        tensor([1.0000, 0.6065])

    Source: Lukacs, *Characteristic Functions*, 2nd ed. 1970, tables of chapter 1.
    """
    if not isinstance(distribution, Distribution):
        raise TypeError(
            "distribution must be a torch.distributions.Distribution, got "
            f"{type(distribution).__name__}"
        )
    rule = _find_rule(distribution)
    t = _check_frequencies(distribution, t)
    # Half precision phases are useless (relative error 2.4e-3 and more), so autocast stays outside.
    # (Tensors without values have none.)
    with torch.autocast("cpu" if t.is_meta else t.device.type, enabled=False):
        phi = rule(distribution, t)
    return _check_result(distribution, t, phi, rule)


def _find_rule(distribution: Distribution) -> Rule:
    for ancestor in type(distribution).__mro__:
        if ancestor in _REGISTRY:
            return _REGISTRY[ancestor]
    raise NotImplementedError(_unknown(distribution, "has no registered characteristic function"))


def _unknown(distribution: Distribution, reason: str) -> str:
    name = type(distribution).__name__
    return (
        f"{name} {reason}; decorate a function (distribution, t) -> complex φ with "
        f"@ncfd.distributions.register_characteristic_function({name}), or pass samples of it"
    )


def _check_frequencies(distribution: Distribution, t: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor of shape (F, D), got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"t must have a real floating dtype, got {t.dtype}")
    if t.layout != torch.strided or t.is_nested:
        raise TypeError(f"t must be a dense tensor, got layout {t.layout}; convert it first")
    D = distribution.event_shape.numel()
    if t.dim() < 2 or t.shape[-1] != D:
        raise ValueError(
            f"t must have shape (F, D) or (*, F, D) with D = {D}, the number of elements of one "
            f"event of {type(distribution).__name__} (event shape "
            f"{tuple(distribution.event_shape)}); got {tuple(t.shape)}"
        )
    if t.shape[-2] == 0:
        raise ValueError(f"t must hold at least one frequency, got shape {tuple(t.shape)}")
    try:
        _result_shape(distribution, t)
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions of t must broadcast with the batch shape "
            f"{tuple(distribution.batch_shape)} of {type(distribution).__name__}; got t of shape "
            f"{tuple(t.shape)}"
        ) from None
    # Not while compiling: dynamo up to torch 2.5 cannot list the attributes of an object, and
    # refuses tensors on two devices itself.
    attributes = () if torch.compiler.is_compiling() else vars(distribution).values()
    for value in attributes:
        # Like torch itself, let numbers in the form of 0-dimensional CPU tensors pass.
        if isinstance(value, Tensor) and value.dim() > 0 and value.device != t.device:
            raise ValueError(
                f"t and the distribution must be on one device; got t on {t.device} and the "
                f"parameters of {type(distribution).__name__} on {value.device}"
            )
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _result_shape(distribution: Distribution, t: Tensor) -> torch.Size:
    """(*, F), where * is common to the distribution and the frequencies."""
    # PyTorch leaves this function untyped.
    batch = torch.broadcast_shapes(distribution.batch_shape, t.shape[:-2])  # type: ignore[no-untyped-call]  # PyTorch has no type there
    return torch.Size((*batch, t.shape[-2]))


def _check_result(distribution: Distribution, t: Tensor, phi: object, rule: Rule) -> Pair:
    name = getattr(rule, "__name__", repr(rule))
    if isinstance(phi, Tensor) and phi.is_complex():
        phi = (phi.real, phi.imag)
    if not (
        isinstance(phi, tuple)
        and len(phi) == 2
        and all(isinstance(part, Tensor) and part.is_floating_point() for part in phi)
    ):
        got = phi.dtype if isinstance(phi, Tensor) else type(phi).__name__
        raise TypeError(
            f"{name}, registered for {type(distribution).__name__}, must return a complex tensor "
            f"or a pair (Re φ, Im φ) of real ones, got {got}"
        )
    re, im = phi
    shape = _result_shape(distribution, t)
    if re.shape != shape or im.shape != shape:
        raise ValueError(
            f"{name}, registered for {type(distribution).__name__}, must return φ of shape "
            f"{tuple(shape)} for t of shape {tuple(t.shape)}, got {tuple(re.shape)} and "
            f"{tuple(im.shape)}"
        )
    return re, im


# --- arithmetic of pairs ----------------------------------------------------------------------


def _polar(log_modulus: Tensor, phase: Tensor) -> Pair:
    """exp(log_modulus + i phase)."""
    modulus = log_modulus.exp()
    return modulus * phase.cos(), modulus * phase.sin()


def _multiply(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _product(phi: Pair, dim: int) -> Pair:
    """Product over one dimension, by halves: log2 steps, and no logarithm of a vanishing factor."""
    re, im = phi
    while (size := re.shape[dim]) > 1:
        half = size // 2
        left = re.narrow(dim, 0, half), im.narrow(dim, 0, half)
        right = re.narrow(dim, half, half), im.narrow(dim, half, half)
        product = _multiply(left, right)
        if size % 2:
            rest = re.narrow(dim, size - 1, 1), im.narrow(dim, size - 1, 1)
            re, im = (torch.cat(pair, dim) for pair in zip(product, rest, strict=True))
        else:
            re, im = product
    return re.squeeze(dim), im.squeeze(dim)


def _mix(weights: Tensor, phi: Pair, dim: int) -> Pair:
    """Weighted mean over one dimension. The same sum stands above and below: φ(0) is exactly 1."""
    total = (weights * torch.ones_like(phi[0])).sum(dim)
    return (weights * phi[0]).sum(dim) / total, (weights * phi[1]).sum(dim) / total


def _column(parameter: Tensor) -> Tensor:
    """A parameter ``(*)`` as ``(*, 1)``, to stand against frequencies ``(*, F)``.

    A number stays 0-dimensional: only such a tensor may be on the CPU beside others on a GPU.
    """
    return parameter if parameter.ndim == 0 else parameter.unsqueeze(-1)


def _inner(t: Tensor, vector: Tensor) -> Tensor:
    """⟨t, vector⟩ for t ``(*, F, D)`` and vector ``(*, D)``: ``(*, F)``."""
    dtype = torch.promote_types(t.dtype, vector.dtype)
    return (t.to(dtype) @ vector.to(dtype).unsqueeze(-1)).squeeze(-1)


def _sinc(x: Tensor) -> Tensor:
    """sin(x)/x whose derivatives of every order hold near 0, where quotient rules cancel."""
    near = x.abs() < 1.0
    square = torch.where(near, x, 0.0).square()
    series = torch.zeros_like(x)
    for k in range(9, -1, -1):  # at |x| = 1 the first term left out is 2e-20
        series = series * square + (-1) ** k / math.factorial(2 * k + 1)
    away = torch.where(near, 1.0, x)
    return torch.where(near, series, away.sin() / away)


def _log_sinhc(x: Tensor) -> Tensor:
    """Compute log(sinh(x)/x) without overflow, with derivatives that hold near 0."""
    near = x.abs() < 1.0
    square = torch.where(near, x, 0.0).square()
    series = torch.zeros_like(x)
    for k in range(9, 0, -1):  # sinh(x)/x - 1; at x = 1 the first term left out is 2e-20
        series = (series + 1.0) * square / (2 * k * (2 * k + 1))
    away = torch.where(near, 1.0, x.abs())
    return torch.where(
        near, series.log1p(), away + (-(-2.0 * away).exp()).log1p() - (2 * away).log()
    )


def _half_log1p_square(x: Tensor) -> Tensor:
    """Compute log √(1 + x²) without overflow of the square."""
    large = x.abs() > 1e6
    small_x = torch.where(large, 0.0, x)
    large_x = torch.where(large, x, 1.0)
    return torch.where(large, large_x.abs().log(), 0.5 * small_x.square().log1p())


# --- continuous -------------------------------------------------------------------------------


@register_characteristic_function(Normal)
def _normal(distribution: Normal, t: Tensor) -> Pair:
    t = t[..., 0]
    spread = _column(distribution.scale) * t
    return _polar(-0.5 * spread.square(), _column(distribution.loc) * t)


@register_characteristic_function(MultivariateNormal)
def _multivariate_normal(distribution: MultivariateNormal, t: Tensor) -> Pair:
    root = distribution.scale_tril
    dtype = torch.promote_types(t.dtype, root.dtype)
    spread = t.to(dtype) @ root.to(dtype)  # (*, F, D); ⟨t, Σt⟩ = |Lᵀt|²
    return _polar(-0.5 * spread.square().sum(-1), _inner(t, distribution.loc))


@register_characteristic_function(LowRankMultivariateNormal)
def _low_rank_multivariate_normal(distribution: LowRankMultivariateNormal, t: Tensor) -> Pair:
    factor = distribution.cov_factor
    factor = factor.expand(*distribution.batch_shape, *factor.shape[-2:])
    dtype = torch.promote_types(t.dtype, factor.dtype)
    spread = t.to(dtype) @ factor.to(dtype)  # (*, F, rank)
    diagonal = distribution.cov_diag.expand(distribution.batch_shape + distribution.event_shape)
    quadratic = spread.square().sum(-1) + _inner(t.square(), diagonal)
    return _polar(-0.5 * quadratic, _inner(t, distribution.loc))


@register_characteristic_function(Uniform)
def _uniform(distribution: Uniform, t: Tensor) -> Pair:
    t = t[..., 0]
    low, high = 0.5 * distribution.low, 0.5 * distribution.high  # the sum may overflow
    middle, radius = low + high, high - low
    modulus, phase = _sinc(_column(radius) * t), _column(middle) * t
    return modulus * phase.cos(), modulus * phase.sin()


@register_characteristic_function(Laplace)
def _laplace(distribution: Laplace, t: Tensor) -> Pair:
    t = t[..., 0]
    return _polar(
        -2.0 * _half_log1p_square(_column(distribution.scale) * t), _column(distribution.loc) * t
    )


@register_characteristic_function(Exponential)
def _exponential(distribution: Exponential, t: Tensor) -> Pair:
    return _gamma_pair(torch.ones_like(distribution.rate), distribution.rate, t)


@register_characteristic_function(Gamma)
def _gamma(distribution: Gamma, t: Tensor) -> Pair:
    return _gamma_pair(distribution.concentration, distribution.rate, t)


@register_characteristic_function(Chi2)
def _chi2(distribution: Chi2, t: Tensor) -> Pair:
    return _gamma_pair(0.5 * distribution.df, torch.full_like(distribution.df, 0.5), t)


def _gamma_pair(shape: Tensor, rate: Tensor, t: Tensor) -> Pair:
    """(1 - it/rate)^(-shape), the branch with φ(0) = 1: the argument of 1 - iu is -atan u."""
    t = t[..., 0]
    # Its limit of 0 would hide an infinite t, which shows everywhere else.
    u = torch.where(t.isinf(), torch.nan, t) / _column(rate)
    return _polar(-_column(shape) * _half_log1p_square(u), _column(shape) * u.atan())


@register_characteristic_function(Cauchy)
def _cauchy(distribution: Cauchy, t: Tensor) -> Pair:
    t = t[..., 0]
    return _polar(-_column(distribution.scale) * t.abs(), _column(distribution.loc) * t)


@register_characteristic_function(StudentT)
def _student_t(distribution: StudentT, t: Tensor) -> Pair:
    t = t[..., 0]
    df = _column(distribution.df).to(t.device)
    modulus = _student_t_modulus(df, _column(distribution.scale) * t)
    phase = _column(distribution.loc) * t
    return modulus * phase.cos(), modulus * phase.sin()


# Nodes of the quadrature below, and where its regular grid ends on the left.
_STUDENT_T_NODES = 256
_STUDENT_T_FLOOR = -60.0
# Degrees of freedom from which on the law is normal to more digits than there are.
_STUDENT_T_NORMAL = 1e30


@register_characteristic_function(Gumbel)
def _gumbel(distribution: Gumbel, t: Tensor) -> Pair:
    """Γ(1 - ist) e^(i loc t), with |Γ(1 + iy)|² = πy / sinh(πy)."""
    t = t[..., 0]
    y = _column(distribution.scale) * t
    phase = _column(distribution.loc) * t - _gamma_argument(y)
    return _polar(-0.5 * _log_sinhc(math.pi * y), phase)


# B_2k / (2k (2k - 1)) of Stirling's series, and how far the argument is moved first.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_SHIFT = 10


def _gamma_argument(y: Tensor) -> Tensor:
    """Im log Γ(1 + iy), to about 1e-15 y: Stirling at 11 + iy, less the steps to there."""
    y = y.clamp(-1e3, 1e3)  # beyond, |Γ| is 0 in every dtype
    real = torch.full_like(y, _STIRLING_SHIFT + 1.0)
    radius, angle = torch.hypot(real, y), torch.atan2(y, real)
    total = (real - 0.5) * angle + y * (radius.log() - 1.0)
    for k, factor in enumerate(_STIRLING):
        total = total - factor * ((2 * k + 1) * angle).sin() / radius ** (2 * k + 1)
    for k in range(1, _STIRLING_SHIFT + 1):
        total = total - (y / k).atan()
    return total


def _student_t_modulus(df: Tensor, s: Tensor) -> Tensor:
    r"""φ of the standard Student t with df > 0 degrees of freedom, for df and s that broadcast.

    With a = df/2 and z = √df |s| the textbook form is K_a(z) z^a / (Γ(a) 2^(a-1)), with the
    modified Bessel function of real order. Its integral representation, shifted so that nothing
    overflows, says that a Student t is a normal with a gamma-distributed precision:

        φ(s) = E exp(-z²/(4w)),  w ~ Gamma(a, 1),
             = ∫ p(v) exp(-(s²/2) e^(-v)) dv,  log p(v) = a (v + 1 - e^v) + const,  w = a e^v.

    The integrand is analytic in a strip around the real line, so the trapezoidal rule converges
    exponentially (Trefethen & Weideman, SIAM Review 56, 2014). The nodes follow df but count as
    constants: the integral does not depend on them, and autograd differentiates the sum. Weights
    normalised by their own sum make the result 1 at s = 0 and a mixture of normals everywhere.
    Absolute error in float64 about 1e-14 for df from 0.05 to infinity and |s| > 1e-11.
    """
    dtype = torch.promote_types(df.dtype, s.dtype)
    working = widest_float(s.device)
    a = 0.5 * df.to(working).clamp(max=_STUDENT_T_NORMAL)
    half_square = 0.5 * s.to(working).square()
    with torch.no_grad():
        # p drops by e^-40 within ``below`` and ``above`` of its mode 0: bounds of the equation
        # e^v - 1 - v = 40/a from its quadratic (large a), linear and exponential (small a) parts.
        drop = 40.0 / a
        below = torch.where(drop < 0.3, (3.0 * drop).sqrt(), drop + 1.0)
        above = torch.minimum((2.0 * drop).sqrt(), (1.0 + (2.0 * drop).clamp(min=2.6)).log())
        first = torch.maximum(-below, _STUDENT_T_FLOOR - a.log())
        step = (above - first) / (_STUDENT_T_NODES - 1)
        index = torch.arange(-1, _STUDENT_T_NODES, dtype=working, device=s.device)
        v = first.unsqueeze(-1) + step.unsqueeze(-1) * index  # (*, 1, nodes)
    log_weight = a.unsqueeze(-1) * (v - v.expm1())
    # The node of index -1 takes all that lies further left: there log p is the straight line a v,
    # a geometric sum. It has mass for small df only, all of it at variances above e^60.
    geometric = -(-(-a * step).expm1()).log().unsqueeze(-1)
    log_weight = torch.where(index < 0, log_weight + geometric, log_weight)
    weight = torch.softmax(log_weight, -1)
    normal = (-half_square.unsqueeze(-1) * (-v).exp()).exp()  # (*, F, nodes)
    return _mix(weight, (normal, normal), -1)[0].to(dtype)


# --- discrete ---------------------------------------------------------------------------------


@register_characteristic_function(Bernoulli)
def _bernoulli(distribution: Bernoulli, t: Tensor) -> Pair:
    t, p = t[..., 0], _column(distribution.probs)
    return 1.0 - 2.0 * p * (0.5 * t).sin().square(), p * t.sin()


@register_characteristic_function(Binomial)
def _binomial(distribution: Binomial, t: Tensor) -> Pair:
    t, p, n = t[..., 0], _column(distribution.probs), _column(distribution.total_count)
    log_modulus, phase = _log_bernoulli(p, t)
    return _polar(n * log_modulus, n * phase)


def _log_bernoulli(p: Tensor, t: Tensor) -> Pair:
    """Logarithm and argument of 1 + p(e^(it) - 1), exact to rounding also when raised to n >> 1."""
    haversine = (0.5 * t).sin().square()  # (1 - cos t)/2
    re, im = 1.0 - 2.0 * p * haversine, p * t.sin()
    return _log_near_one(re, im, 4.0 * p * (1.0 - p) * haversine)  # up to 1 at p = 1/2, t = π


def _log_near_one(re: Tensor, im: Tensor, loss: Tensor) -> Pair:
    """Logarithm and argument of re + i im, where 1 - |re + i im|² is known exactly as ``loss``."""
    near_zero = loss > 0.5
    # At 0 itself there is no logarithm: this is as small, and has no slope.
    re = torch.where((re == 0) & (im == 0), torch.finfo(re.dtype).tiny ** 0.5, re)
    modulus = torch.hypot(torch.where(near_zero, re, 1.0), torch.where(near_zero, im, 0.0))
    log_modulus = torch.where(
        near_zero, modulus.log(), 0.5 * (-torch.where(near_zero, 0.0, loss)).log1p()
    )
    return log_modulus, torch.atan2(im, re)


@register_characteristic_function(Geometric)
def _geometric(distribution: Geometric, t: Tensor) -> Pair:
    p = _column(distribution.probs)
    return _polar(*_log_negative_binomial(p, 1.0 - p, t[..., 0]))


@register_characteristic_function(NegativeBinomial)
def _negative_binomial(distribution: NegativeBinomial, t: Tensor) -> Pair:
    r, q = _column(distribution.total_count), _column(distribution.probs)
    log_modulus, phase = _log_negative_binomial(1.0 - q, q, t[..., 0])
    return _polar(r * log_modulus, r * phase)


def _log_negative_binomial(p: Tensor, q: Tensor, t: Tensor) -> Pair:
    """Logarithm and argument of p / (1 - q e^(it)), p + q = 1: |1 - q e^(it)|² = p² + 4q sin²."""
    sine = (0.5 * t).sin()
    square = 4.0 * q * sine.square()
    large = square > 1e24 * p * p  # the square of the ratio would overflow
    ratio = torch.where(large, 0.0, sine) / torch.where(large | (p == 0), 1.0, p)
    log_modulus = torch.where(
        large,
        torch.where(large, p, 1.0).log() - 0.5 * torch.where(large, square, 1.0).log(),
        -0.5 * (4.0 * q * ratio.square()).log1p(),
    )
    return log_modulus, torch.atan2(q * t.sin(), p + 2.0 * q * sine.square())


@register_characteristic_function(Poisson)
def _poisson(distribution: Poisson, t: Tensor) -> Pair:
    t, rate = t[..., 0], _column(distribution.rate)
    return _polar(-2.0 * rate * (0.5 * t).sin().square(), rate * t.sin())


@register_characteristic_function(Categorical)
def _categorical(distribution: Categorical, t: Tensor) -> Pair:
    p = distribution.probs  # (*, K), of the values 0, ..., K-1
    values = torch.arange(p.shape[-1], dtype=t.dtype, device=t.device)
    phase = t * values  # (*, F, 1) by (K): (*, F, K)
    return _mix(p.unsqueeze(-2), (phase.cos(), phase.sin()), -1)


@register_characteristic_function(OneHotCategorical)
def _one_hot_categorical(distribution: OneHotCategorical | Multinomial, t: Tensor) -> Pair:
    return _mix(distribution.probs.unsqueeze(-2), (t.cos(), t.sin()), -1)  # t is (*, F, K)


@register_characteristic_function(Multinomial)
def _multinomial(distribution: Multinomial, t: Tensor) -> Pair:
    """The power of one draw, whose phases stand around their mean: the modulus is near 1 then."""
    n = distribution.total_count
    if n == 1:
        return _one_hot_categorical(distribution, t)
    p = distribution.probs.unsqueeze(-2)
    mean = (p * t).sum(-1, keepdim=True)
    loss = (2.0 * p * (0.5 * (t - mean)).sin().square()).sum(-1)
    im = (p * (t - mean).sin()).sum(-1)
    log_modulus, phase = _log_near_one(1.0 - loss, im, 2.0 * loss - loss.square() - im.square())
    return _polar(n * log_modulus, n * (mean.squeeze(-1) + phase))


# --- built from others ------------------------------------------------------------------------


@register_characteristic_function(Independent)
def _independent(distribution: "Independent[Distribution]", t: Tensor) -> Pair:
    base = distribution.base_dist
    inner = base.event_shape.numel()
    outer = t.shape[-1] // inner
    if isinstance(base, Normal) and type(base) is Normal:
        # By far the most frequent case: one product with the squares instead of ``outer`` factors.
        loc, scale = (
            p.expand(base.batch_shape).reshape(*distribution.batch_shape, outer)
            for p in (base.loc, base.scale)
        )
        return _polar(-0.5 * _inner(t.square(), scale.square()), _inner(t, loc))
    depth = distribution.reinterpreted_batch_ndims
    if depth == 0:
        return closed_form(base, t)
    # (*, F, outer · inner) -> (*, *reinterpreted, F, inner): one small problem per factor.
    reinterpreted = base.batch_shape[len(base.batch_shape) - depth :]
    t = t.reshape(*t.shape[:-1], outer, inner).movedim(-2, -3)
    t = t.reshape(*t.shape[:-3], *reinterpreted, *t.shape[-2:])
    re, im = closed_form(base, t)  # (*, *reinterpreted, F)
    return _product((re.flatten(-1 - depth, -2), im.flatten(-1 - depth, -2)), -2)


@register_characteristic_function(MixtureSameFamily)
def _mixture_same_family(distribution: MixtureSameFamily, t: Tensor) -> Pair:
    weights = distribution.mixture_distribution.probs.unsqueeze(-1)  # (*, J, 1)
    phi = closed_form(distribution.component_distribution, t.unsqueeze(-3))  # (*, J, F)
    return _mix(weights, phi, -2)


@register_characteristic_function(TransformedDistribution)
def _transformed(distribution: TransformedDistribution, t: Tensor) -> Pair:
    """For y = b + c x, φ_y(t) = e^(i⟨t, b⟩) φ_x(c t); the last transform comes off first."""
    shape = distribution.batch_shape + distribution.event_shape
    flat = (*distribution.batch_shape, distribution.event_shape.numel())
    phase = t.new_zeros(t.shape[:-1])
    transforms = _flatten_transforms(distribution.transforms)
    logistic = _starts_as_logistic(distribution.base_dist, transforms)
    for transform in reversed(transforms[1:] if logistic else transforms):
        affine, inverted = _as_affine(distribution, transform)
        shift, scale = (
            torch.as_tensor(value, dtype=getattr(value, "dtype", t.dtype), device=t.device)
            .expand(shape)
            .reshape(flat)
            for value in (affine.loc, affine.scale)
        )
        if inverted:
            shift, scale = -shift / scale, 1.0 / scale
        phase = phase + _inner(t, shift)
        t = t * scale.unsqueeze(-2)
    rotation = phase.cos(), phase.sin()
    if logistic:  # πt / sinh(πt) for each element
        modulus = (-_log_sinhc(math.pi * t).sum(-1)).exp()
        modulus = modulus.expand(_result_shape(distribution, t))
        return modulus * rotation[0], modulus * rotation[1]
    return _multiply(rotation, closed_form(distribution.base_dist, t))


def _starts_as_logistic(base: Distribution, transforms: list[Transform]) -> bool:
    """Whether the first transform makes standard logistic variables: log(u/(1 - u)), u uniform."""
    while isinstance(base, Independent):
        base = base.base_dist
    if not (transforms and isinstance(transforms[0].inv, SigmoidTransform)):
        return False
    if not isinstance(base, Uniform):
        return False
    # PyTorch's own laws leave out the very ends, where the logarithm is infinite.
    slack = torch.finfo(base.low.dtype).eps
    return bool((base.low.abs() <= slack).all() and ((1.0 - base.high).abs() <= slack).all())


def _flatten_transforms(transforms: list[Transform]) -> list[Transform]:
    flat: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            flat += _flatten_transforms(transform.parts)
        elif isinstance(transform, IndependentTransform):
            flat += _flatten_transforms([transform.base_transform])
        else:
            flat.append(transform)
    return flat


def _as_affine(
    distribution: TransformedDistribution, transform: Transform
) -> tuple[AffineTransform, bool]:
    if isinstance(transform, AffineTransform):
        return transform, False
    if isinstance(transform.inv, AffineTransform):
        return transform.inv, True
    raise NotImplementedError(
        _unknown(
            distribution,
            f"has no registered characteristic function, and its {type(transform).__name__} is "
            "not affine",
        )
    )
