"""Every public signature, called with whatever can be passed.

A valid call is changed in one or two arguments: replaced by something else altogether, or twisted
(a shape, dtype, device, layout or value that a user gets wrong). Then either the result has the
documented shape, and a backward pass works, or the error is a documented one and names an argument.
What the documentation allows is written down a second time here, as the shape that a call has to
have, or None where it has to be refused: so silent broadcasting fails, and so does an error from
somewhere inside.

    HYPOTHESIS_PROFILE=long pytest tests/test_fuzz.py      # 10^5 examples and some
"""

from __future__ import annotations

import math
import numbers
import operator
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal, Normal, VonMises

import ncfd
from ncfd import distributions, functional
from ncfd.metrics import NCFDMetric

N, M, D, F, G, B = 6, 5, 3, 4, 2, 2
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32)
DTYPES += (torch.uint8, torch.bool, torch.complex64, torch.complex128)
Shape = tuple[int, ...]
Arguments = dict[str, Any]

# ------------------------------------------------------------------------------------------------
# What is passed
# ------------------------------------------------------------------------------------------------


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any dtype and up to four dimensions, sometimes empty, sometimes without values."""
    shape = draw(st.lists(st.sampled_from((0, 1, 2, D, F, M, N)), max_size=4))
    value = normal(*shape).mul(3).to(draw(st.sampled_from(DTYPES)))
    return value.to("meta") if draw(st.integers(0, 9)) == 0 else value


class Text(str):
    """A subclass: a string all the same."""


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 7, -1, 2**63, 10**400, -(10**30)),
    *(0.0, 0.5, 1.0, 2.0, -0.5, math.nan, math.inf, -math.inf, 1e300, 5e-324, 1j),
    *("", "mean", "none", "sobol", "chi2", "1", b"mean", Text("sum")),
    *([], [1.0], [[1.0] * D] * N, (), (F, D), {}, {"x": 1}, set(), object(), Ellipsis, range(3)),
    *(torch.Tensor, nn.Module, Normal, torch.float32, torch.device("cpu"), torch.Generator()),
    *(nn.Identity(), ncfd.GaussianFrequencies(D, F), lambda *_: normal(F, D)),
    *(np.float64(0.5), np.float32(0.5), np.int64(2), np.bool_(True), np.array(2)),
    *(np.ones((N, D)), np.ones((N, D), np.float32), np.ones(N, int), np.ones((N, D), object)),
    *(np.array(["a"] * N), np.ones((N, D)) + 1j, np.ones((0, D)), np.ma.ones((N, D))),
    *(Normal(0.0, 1.0), VonMises(0.0, 1.0), MultivariateNormal(torch.zeros(D), torch.eye(D))),
    *(torch.tensor(0.5), torch.tensor(2), torch.tensor(True), torch.tensor(1 + 1j)),
    *(torch.eye(D).to_sparse(), nn.Parameter(normal(N, D))),
)

TWISTS: dict[str, Callable[[Tensor], Any]] = {
    "transposed": lambda v: v.movedim(-1, 0),
    "in a batch of one": lambda v: v.unsqueeze(0),
    "in a batch": lambda v: v.expand(B, *v.shape),
    "in no batch": lambda v: v.expand(0, *v.shape),
    "in two batches": lambda v: v.expand(B, 1, *v.shape),
    "in columns": lambda v: v.unsqueeze(-1),
    "first entry": lambda v: v[0],
    "first feature": lambda v: v[..., :1],
    "a row": lambda v: v[:1],
    "last row left out": lambda v: v[:-1],
    "last feature left out": lambda v: v[..., :-1],
    "no rows": lambda v: v[:0],
    "no features": lambda v: v[..., :0],
    "flat": lambda v: v.flatten(),
    "strided": lambda v: torch.stack([v, v], -1)[..., 0],
    "repeated": lambda v: v[:1].expand(v.shape),
    "watched": lambda v: v.detach().requires_grad_(v.is_floating_point() or v.is_complex()),
    "doubled": lambda v: v.double(),
    "halved": lambda v: v.half(),
    "brain": lambda v: v.bfloat16(),
    "integer": lambda v: v.real.int() if v.is_complex() else v.int(),
    "float": lambda v: v.abs().float(),
    "complex": lambda v: v.to(torch.complex64),
    "conjugate": lambda v: v.to(torch.complex64).conj(),
    "half complex": lambda v: v.to(torch.complex32),
    "bool": lambda v: v.bool(),
    "elsewhere": lambda v: v.detach().to("meta"),
    "sparse": lambda v: v if v.is_meta else v.to_sparse(),
    "array": lambda v: np.ones(v.shape) if v.is_meta else v.detach().numpy(),
    "list": lambda v: [1.0] * len(v) if v.is_meta else v.tolist(),
    "zeros": lambda v: v * 0,
    "negative": lambda v: -v.abs() - 1 if not v.is_complex() else -v,
    "large": lambda v: v * 1000,
    "NaN": lambda v: v * math.nan,
    "infinite": lambda v: v * math.inf,
    "larger than a float": lambda v: v.double() * 1e300 if not v.is_complex() else v * 1e300,
}


@st.composite
def changed(draw: st.DrawFn, valid: Arguments) -> Arguments:
    """The valid arguments but for one or two of them."""
    names = draw(st.lists(st.sampled_from(sorted(valid)), min_size=1, max_size=2, unique=True))
    arguments = dict(valid)
    for name in names:
        kind = draw(st.integers(0, 3))
        if isinstance(valid[name], Tensor) and kind < 2 and valid[name].ndim:
            twist = TWISTS[draw(st.sampled_from(sorted(TWISTS)))]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the twist, not of the call
                arguments[name] = twist(valid[name])
        elif kind == 2:
            arguments[name] = draw(tensors())
        else:
            arguments[name] = draw(st.sampled_from(ODD))
    return arguments


# ------------------------------------------------------------------------------------------------
# What is allowed
# ------------------------------------------------------------------------------------------------


def is_dense(v: object) -> bool:
    return isinstance(v, Tensor) and v.layout == torch.strided


def is_real(v: object) -> bool:
    return is_dense(v) and v.is_floating_point()


def is_samples(x: object) -> bool:
    return is_real(x) and x.ndim >= 2 and 0 not in x.shape


def is_frequencies(t: object, x: Tensor) -> bool:
    fits = is_samples(t) and t.shape[-1] == x.shape[-1] and t.device == x.device
    return fits and (t.ndim == 2 or t.shape[:-2] == x.shape[:-2])


def is_weights(w: object, x: Tensor) -> bool:
    if w is None:
        return True
    if not (is_real(w) and w.shape == x.shape[:-1] and w.device == x.device):
        return False
    return w.is_meta or not ((w < 0).any() or (w == 0).all(-1).any())


def is_labels(g: object, count: object, x: Tensor) -> bool:
    if g is None or count is None:
        return g is None and count is None
    if not (is_dense(g) and not g.is_floating_point() and not g.is_complex() and is_count(count)):
        return False
    if g.dtype == torch.bool or x.ndim != 2 or g.shape != x.shape[:1] or g.device != x.device:
        return False
    return g.is_meta or bool(((g >= 0) & (g < count)).all())


def is_count(v: object) -> bool:
    return isinstance(v, numbers.Integral) and type(v) is not bool and 1 <= v < 2**63


def is_alpha(v: object) -> bool:
    return isinstance(v, numbers.Real) and type(v) is not bool and 0 <= v <= 1


def is_positive(v: object, dtype: torch.dtype = torch.float64) -> bool:
    if not isinstance(v, numbers.Real) or type(v) is bool:
        return False
    try:
        return torch.finfo(dtype).tiny <= float(v) <= torch.finfo(dtype).max
    except OverflowError:
        return False


def is_seed(v: object) -> bool:
    try:
        return -(2**63) <= operator.index(v) < 2**64
    except (TypeError, RuntimeError):
        return False


def is_reduction(v: object) -> bool:
    return isinstance(v, str) and v in ("mean", "sum", "none")


def is_generator(v: object) -> bool:
    return v is None or isinstance(v, torch.Generator)


def phi_shape(
    x: Any, t: Any, weights: Any, groups: Any, num_groups: Any, chunk_size: Any
) -> Shape | None:
    """What ``characteristic_function`` returns, or None."""
    if not (chunk_size is None or is_count(chunk_size)):
        return None
    if isinstance(x, Distribution):
        if not (weights is groups is num_groups is None and is_real(t) and t.ndim >= 2):
            return None
        if isinstance(x, VonMises) or t.shape[-1] != x.event_shape.numel() or 0 in t.shape[-2:]:
            return None
        if t.is_meta and (x.batch_shape or x.event_shape):
            return None
        try:
            return (*torch.broadcast_shapes(x.batch_shape, t.shape[:-2]), t.shape[-2])
        except RuntimeError:
            return None
    if not (is_samples(x) and is_frequencies(t, x) and is_weights(weights, x)):
        return None
    if not is_labels(groups, num_groups, x):
        return None
    return (*x.shape[:-2], t.shape[-2]) if groups is None else (num_groups, t.shape[-2])


def loss_shape(a: Arguments) -> Shape | None:
    """What ``ncfd_loss`` returns, or None."""
    x, y, t = a["x"], a["y"], a["t"]
    if not (is_alpha(a["alpha"]) and is_reduction(a["reduction"]) and a["process_group"] is None):
        return None
    if not isinstance(a["squared"], bool) or not isinstance(a["unbiased"], bool):
        return None
    if a["unbiased"] and not (a["squared"] and a["alpha"] == 0.5):
        return None
    side = phi_shape(y, t, a["y_weights"], a["y_groups"], a["num_groups"], a["chunk_size"])
    if side is None or not is_samples(y):
        return None
    if isinstance(x, Distribution):
        other = phi_shape(x, t, a["x_weights"], a["x_groups"], None, None)
        fits = other is not None and other in (side, side[-1:])
    elif isinstance(x, Tensor) and x.is_complex():
        alone = a["x_weights"] is a["x_groups"] is None
        fits = alone and is_dense(x) and x.shape == side and x.device == y.device
    else:
        other = phi_shape(x, t, a["x_weights"], a["x_groups"], a["num_groups"], a["chunk_size"])
        fits = other == side and x.shape[:-2] == y.shape[:-2] and x.device == y.device
    if not fits:
        return None
    if not enough(y, a["y_weights"], a["y_groups"], a) or not has_common_group(a):
        return None
    if is_real(x) and not enough(x, a["x_weights"], a["x_groups"], a):
        return None
    if a["reduction"] == "none":
        return side
    return () if a["y_groups"] is not None else side[:-1]


def enough(x: Tensor, w: Tensor | None, g: Tensor | None, a: Arguments) -> bool:
    """Two samples for the unbiased form; of groups, it is left to other tests."""
    if not a["unbiased"] or x.is_meta or g is not None:
        return True
    return x.shape[-2] > 1 if w is None else bool((w.ne(0).sum(-1) > 1).all())


def has_common_group(a: Arguments) -> bool:
    g, h = a["x_groups"], a["y_groups"]
    if g is None or h is None or g.is_meta or a["reduction"] == "none":
        return True
    w, v = (
        torch.ones(len(k)) if k_w is None else k_w
        for k, k_w in ((g, a["x_weights"]), (h, a["y_weights"]))
    )
    return bool(set(g[w != 0].tolist()) & set(h[v != 0].tolist()))


def gaussian_shape(a: Arguments) -> Shape | None:
    """What ``gaussian_ncfd`` returns, or None: the loss with the frequencies in closed form."""
    x, y, scale = a["x"], a["y"], a["scale"]
    if not (is_samples(x) and is_samples(y) and is_scales(scale, x)):
        return None
    t = x.new_ones(1, x.shape[-1])
    shape = loss_shape(
        a | {"t": t, "squared": True, "alpha": 0.5, "process_group": None, "reduction": "none"}
    )
    if shape is None or not is_reduction(a["reduction"]) or not has_common_group(a):
        return None
    return shape[:-1] if a["reduction"] == "none" or a["x_groups"] is None else ()


def is_scales(scale: Any, x: Tensor) -> bool:
    if not isinstance(scale, Tensor):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return is_positive(scale, dtype)
    if not is_real(scale) or scale.device != x.device:
        return False
    if scale.ndim == 0:
        return True
    widths = (x.shape[-1],) if scale.ndim == 1 else (1, x.shape[-1])
    return scale.ndim <= 2 and scale.shape[-1] in widths and scale.shape[0] > 0


# ------------------------------------------------------------------------------------------------
# What is called
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    call: Callable[..., Any]
    valid: Callable[[], Arguments]
    #: The shape of the result of these arguments, or of each tensor in it; None: to be refused.
    shape: Callable[[Arguments], Any]
    #: Words by which an error may also name what is wrong.
    words: tuple[str, ...] = ()


def sides(**changes: Any) -> Arguments:
    return {
        "x": normal(N, D),
        "y": normal(M, D, seed=1),
        "unbiased": False,
        "reduction": "mean",
        "x_groups": None,
        "y_groups": None,
        "num_groups": None,
        "x_weights": None,
        "y_weights": None,
        "chunk_size": None,
    } | changes


LABELS = {"x_groups": torch.arange(N) % G, "y_groups": torch.arange(M) % G, "num_groups": G}
WEIGHTS = {"x_weights": torch.arange(1.0, N + 1), "y_weights": torch.arange(1.0, M + 1)}
BATCH = {
    "x": normal(B, N, D),
    "y": normal(B, M, D, seed=1),
    "x_weights": torch.ones(B, N),
    "y_weights": torch.ones(B, M),
}
UNBIASED = {"unbiased": True, "squared": True}


def loss_case(**changes: Any) -> Case:
    own = {"t": normal(F, D, seed=2), "alpha": 0.5, "squared": False, "process_group": None}
    return Case(functional.ncfd_loss, lambda: sides(**own | changes), loss_shape, ("Distribution",))


def signal_case(**changes: Any) -> Case:
    def shape(a: Arguments) -> Shape | None:
        fixed = {"alpha": 0.5, "squared": False, "unbiased": False, "chunk_size": None}
        return loss_shape(a | fixed)

    left_out = ("unbiased", "chunk_size")
    valid = {"t": normal(F, D, seed=2), "process_group": None} | changes
    valid = {k: v for k, v in sides(**valid).items() if k not in left_out}
    return Case(functional.signal_discrepancy, lambda: dict(valid), shape, ("Distribution",))


def is_nodes(a: Arguments) -> bool:
    fits = is_count(a["num_nodes"]) and a["num_nodes"] > 1 and a["process_group"] is None
    return fits and is_positive(a["t_max"], torch.float32)


def sliced_case(**changes: Any) -> Case:
    def shape(a: Arguments) -> Shape | None:
        x, u = a["x"], a["directions"]
        fits = is_samples(x) and is_samples(u) and u.ndim == 2 and u.shape[0] == x.shape[-1]
        return () if fits and u.device == x.device and is_nodes(a) else None

    valid = {"x": normal(N, D), "directions": normal(D, F), "num_nodes": 17, "t_max": 3.0}
    valid |= {"process_group": None} | changes
    return Case(functional.sliced_normality, lambda: dict(valid), shape)


def regularised(x: Any, generator: Any, **options: Any) -> Tensor:
    return ncfd.SIGReg(**options)(x, generator)


def regulariser_case(**changes: Any) -> Case:
    def shape(a: Arguments) -> Shape | None:
        fits = is_samples(a["x"]) and is_count(a["num_slices"]) and a["num_slices"] < 2**31
        return () if fits and is_generator(a["generator"]) and is_nodes(a) else None

    valid = {"x": normal(N, D), "num_slices": F, "num_nodes": 17, "t_max": 3.0}
    valid |= {"process_group": None, "generator": None} | changes
    return Case(regularised, lambda: dict(valid), shape)


def gaussian_case(**changes: Any) -> Case:
    return Case(functional.gaussian_ncfd, lambda: sides(**{"scale": 1.0} | changes), gaussian_shape)


def phi_case(**changes: Any) -> Case:
    valid = {"x": normal(N, D), "t": normal(F, D), "weights": None, "groups": None}
    valid |= {"num_groups": None, "chunk_size": None} | changes
    return Case(
        functional.characteristic_function,
        lambda: dict(valid),
        lambda a: phi_shape(**a),
        ("Distribution", "VonMises", "MultivariateNormal"),
    )


def draw_from(sampler: type[nn.Module]) -> Callable[..., Tensor]:
    def call(generator: Any, **options: Any) -> Tensor:
        return sampler(**options)(generator)

    return call


def sampler_case(sampler: type[nn.Module], methods: tuple[str, ...], **changes: Any) -> Case:
    def shape(a: Arguments) -> Shape | None:
        if a["dim"] is None and "learnable" in a and is_real(a["scale"]) and a["scale"].ndim == 1:
            a = a | {"dim": len(a["scale"])}  # of a scale for each feature
        counts = [a["dim"], a["num_frequencies"]]
        counts += [a[n] for n in ("num_components", "hidden_dim") if a.get(n) is not None]
        if not all(is_count(c) and c < 2**31 for c in counts):
            return None
        if not (is_positive(a["max_ratio"]) and is_positive(a.get("df", 1.0))):
            return None
        if a["max_ratio"] <= 1:
            return None
        v = a["spread"]
        if not isinstance(v, numbers.Real) or type(v) is bool or not 0 <= v <= 10:
            return None
        if isinstance(a["scale"], Tensor):
            s = a["scale"]
            if not (is_real(s) and s.shape in ((), (a["dim"],)) and not s.is_meta):
                return None
            if not (torch.isfinite(s) & (s > 0)).all():
                return None
        elif not is_positive(a["scale"], torch.float32):
            return None
        if a.get("num_components") is not None and a["num_components"] > a["num_frequencies"]:
            return None
        if not (isinstance(a["method"], str) and a["method"] in methods):
            return None
        if "learnable" in a and not isinstance(a["learnable"], bool):
            return None
        return (a["num_frequencies"], a["dim"]) if is_generator(a["generator"]) else None

    valid = {"dim": D, "num_frequencies": F, "scale": 1.0, "max_ratio": 4.0, "method": "random"}
    valid["spread"] = 0.0
    return Case(draw_from(sampler), lambda: valid | {"generator": None} | changes, shape)


def rays_shape(a: Arguments) -> Shape | None:
    counts = [a["dim"], a["num_slices"], a["num_nodes"]]
    if a["dim"] is None and is_real(a["scale"]) and a["scale"].ndim == 1:
        counts[0] = len(a["scale"])
    if not all(is_count(c) and c < 2**31 for c in counts):
        return None
    D, K, J = counts
    s = a["scale"]
    if isinstance(s, Tensor):
        if not (is_real(s) and s.shape in ((), (D,)) and not s.is_meta):
            return None
        if not (torch.isfinite(s) & (s > 0)).all():
            return None
    elif not is_positive(s, torch.float32):
        return None
    if not is_positive(a["t_max"], torch.float32) or not is_generator(a["generator"]):
        return None
    words = isinstance(a["method"], str) and isinstance(a["weighting"], str)
    if not (words and a["method"] in FIXED and a["weighting"] in ("normal", "energy")):
        return None
    return (K * J, D)


FIXED = ("random", "orthogonal", "sobol")


def forward(**a: Any) -> Tensor:
    options = {k: a.pop(k) for k in ("sampler", *NCFD_OPTIONS)}
    return ncfd.NCFDLoss(**options)(**a)


NCFD_OPTIONS = {
    "alpha": 0.5,
    "normalize": False,
    "squared": False,
    "unbiased": False,
    "adversary": "signal",
    "reduction": "mean",
    "process_group": None,
}


def module_shape(a: Arguments) -> Shape | None:
    t = a["sampler"]
    if isinstance(t, Tensor):
        if not (is_samples(t) and t.ndim == 2):
            return None
    elif isinstance(t, ncfd.GaussianFrequencies):
        t = normal(F, D)
    else:
        return None
    if not isinstance(a["normalize"], bool):
        return None
    adversary = a["adversary"]
    if not (adversary is None or (isinstance(adversary, str) and adversary in ("signal", "loss"))):
        return None
    sides_ = {
        "x": a["real"],
        "y": a["synthetic"],
        "x_groups": a["real_groups"],
        "y_groups": a["synthetic_groups"],
        "x_weights": a["real_weights"],
        "y_weights": a["synthetic_weights"],
    }
    return loss_shape(a | sides_ | {"t": t, "chunk_size": None})


def module_case(**changes: Any) -> Case:
    x, y = sides()["x"], sides()["y"]
    valid = {"sampler": normal(F, D), "real": x, "synthetic": y, "num_groups": None} | NCFD_OPTIONS
    valid |= {f"{side}_{k}": None for side in ("real", "synthetic") for k in ("groups", "weights")}
    # The functional form speaks of x and y, a module in place of a sampler of itself.
    words = ("x", "y", "t", "Identity", *sides())
    return Case(forward, lambda: valid | changes, module_shape, words)


def stream(t: Any, num_groups: Any, x: Any, groups: Any, weights: Any) -> Tensor:
    estimator = ncfd.CharacteristicFunction(t, num_groups)
    estimator.update(x, groups=groups, weights=weights)
    return estimator.compute()


def stream_shape(a: Arguments) -> Shape | None:
    fits = is_samples(a["t"]) and a["t"].ndim == 2 and is_samples(a["x"]) and a["x"].ndim == 2
    return phi_shape(**a, chunk_size=None) if fits else None


def merged(other: Any) -> Tensor:
    estimator = ncfd.CharacteristicFunction(normal(F, D))
    estimator.update(normal(N, D))
    return estimator.merge(other).compute()


def two_samples(**a: Any) -> Tensor:
    with warnings.catch_warnings():
        # Documented: the covariance of discrete samples or repeated frequencies is singular.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = ncfd.two_sample_test(**a)
    assert 0 <= result.pvalue <= 1
    assert str(result)
    return result.frequencies


def numeric(v: Any) -> Any:
    """As a tensor, if NumPy makes numbers of it: what the test and the report take besides."""
    if v is None or isinstance(v, Tensor):
        return v
    try:
        array = np.asarray(v)
    except (RuntimeError, TypeError, ValueError):
        return v
    return torch.as_tensor(array.astype(np.float64)) if array.dtype.kind in "fiub" else v


def is_data(x: Any) -> bool:
    """Samples of a test: real numbers of any dtype, finite."""
    if not is_dense(x) or x.is_complex() or x.is_meta or x.ndim not in (1, 2) or 0 in x.shape:
        return False
    return bool(torch.isfinite(x.double()).all())


def two_sample_shape(a: Arguments) -> Any:
    x, y, t = (numeric(a[name]) for name in ("x", "y", "frequencies"))
    smallest = {"permutation": 2, "chi2": 5}.get(a["method"] if type(a["method"]) is str else "")
    if smallest is None or not (is_data(x) and is_data(y)) or min(len(x), len(y)) < smallest:
        return None
    dims = [1 if v.ndim == 1 else v.shape[1] for v in (x, y)]
    if dims[0] != dims[1] or not is_count(a["n_permutations"]):
        return None
    if not (a["seed"] is None or is_seed(a["seed"])):
        return None
    if a["learn_frequencies"] is not False:  # learning is left to its own tests
        return None
    if not (a["num_frequencies"] is None or is_count(a["num_frequencies"])):
        return None
    if not (a["scale"] is None or is_positive(a["scale"])):
        return None
    if not (is_positive(a["learn_fraction"]) and a["learn_fraction"] < 1):
        return None
    if t is None:
        # Larger ones overflow.
        return any if a["scale"] is None or a["scale"] < 1e30 else None
    if a["num_frequencies"] is not None or a["scale"] is not None or not is_data(t):
        return None
    return (len(t), dims[0]) if (1 if t.ndim == 1 else t.shape[1]) == dims[0] else None


def two_sample_case(**changes: Any) -> Case:
    valid = {"x": normal(N, D), "y": normal(N, D, seed=1), "frequencies": normal(F, D)}
    valid |= {"method": "permutation", "n_permutations": 9, "learn_frequencies": False, "seed": 0}
    valid |= {"num_frequencies": None, "scale": None, "learn_fraction": 0.5}
    return Case(two_samples, lambda: valid | changes, two_sample_shape, ("samples",))


def report(x: Any, t: Any, num_synthetic: Any) -> Tensor:
    found = ncfd.frequency_report(x, t)
    assert str(found)
    assert found.scalars()
    found.null_loss(num_synthetic)
    return found.norms


def report_shape(a: Arguments) -> Shape | None:
    x, t = numeric(a["x"]), numeric(a["t"])
    fits = is_samples(x) and x.ndim == 2 and len(x) > 1 and is_frequencies(t, x)
    fits = fits and not x.is_meta
    return t.shape[:1] if fits and is_count(a["num_synthetic"]) else None


def metric(features: Any, real: Any, **options: Any) -> Tensor:
    value = NCFDMetric(**options)
    for side in (True, False):
        value.update(normal(N, D), side)
    value.update(features, real)
    return value.compute()


def metric_shape(a: Arguments) -> Shape | None:
    t, x = a["frequencies"], a["features"]
    if isinstance(t, ncfd.GaussianFrequencies):
        t = normal(F, D)  # as it draws them
    elif not (is_samples(t) and t.ndim == 2 and t.shape[1] == D):
        return None
    elif not t.is_meta:
        t = normal(F, D)
    if a["feature_extractor"] is not None and not isinstance(a["feature_extractor"], nn.Identity):
        return None
    if not (is_samples(x) and x.ndim == 2 and x.shape[1] == D and x.device == t.device):
        return None
    flags = ("real", "normalize", "squared", "unbiased", "reset_real_features")
    if not all(isinstance(a[name], bool) for name in flags) or not is_alpha(a["alpha"]):
        return None
    if a["unbiased"] and not (a["squared"] and a["alpha"] == 0.5):
        return None
    return () if is_seed(a["seed"]) and not t.is_meta else None


z, w = torch.polar(torch.rand(F), normal(F)), torch.polar(torch.rand(F), normal(F))
T = normal(F, D)
CASES = {
    "characteristic_function": phi_case(),
    "characteristic_function, weights": phi_case(weights=torch.ones(N)),
    "characteristic_function, groups": phi_case(
        groups=torch.arange(N) % G, num_groups=G, chunk_size=2
    ),
    "characteristic_function, batch": phi_case(
        x=normal(B, N, D), t=normal(B, F, D), weights=torch.ones(B, N)
    ),
    "characteristic_function, distribution": phi_case(
        x=MultivariateNormal(torch.zeros(D), torch.eye(D))
    ),
    "characteristic_function, without values": phi_case(
        x=Normal(0.0, 1.0), t=normal(F, 1).to("meta")
    ),
    "closed_form": Case(
        distributions.closed_form,
        lambda: {"distribution": Normal(torch.zeros(B), torch.ones(B)), "t": normal(B, F, 1)},
        lambda a: (
            phi_shape(a["distribution"], a["t"], None, None, None, None)
            if isinstance(a["distribution"], Distribution)
            else None
        ),
        ("VonMises",),
    ),
    "register_characteristic_function": Case(
        distributions.register_characteristic_function,
        lambda: {"distribution_class": Normal},
        lambda a: any if a["distribution_class"] is Normal else None,
        ("distribution class", "Distribution"),
    ),
    "amplitude_phase": Case(
        functional.amplitude_phase,
        lambda: {"phi": z},
        lambda a: a["phi"].shape if is_dense(a["phi"]) and a["phi"].is_complex() else None,
    ),
    "cf_discrepancy": Case(
        functional.cf_discrepancy,
        lambda: {"phi_x": z, "phi_y": w, "alpha": 0.3},
        lambda a: (
            a["phi_x"].shape
            if all(is_dense(a[k]) and a[k].is_complex() for k in ("phi_x", "phi_y"))
            and a["phi_x"].shape == a["phi_y"].shape
            and a["phi_x"].device == a["phi_y"].device
            and is_alpha(a["alpha"])
            else None
        ),
    ),
    "gradient_reversal": Case(
        functional.gradient_reversal,
        lambda: {"t": T.clone().requires_grad_(), "scale": 1.0},
        lambda a: (
            a["t"].shape
            if is_real(a["t"])
            and (is_positive(a["scale"]) or (type(a["scale"]) in (int, float) and not a["scale"]))
            else None
        ),
    ),
    "safe_root": Case(
        functional.safe_root,
        lambda: {"value": T.square().requires_grad_()},
        lambda a: a["value"].shape if is_real(a["value"]) else None,
    ),
    "signal_discrepancy": signal_case(),
    "signal_discrepancy, groups": signal_case(**LABELS),
    "sliced_normality": sliced_case(),
    "sliced_normality, views": sliced_case(x=normal(B, N, D)),
    "SIGReg": regulariser_case(),
    "ncfd_loss": loss_case(),
    "ncfd_loss, amplitude": loss_case(alpha=1.0, chunk_size=2),
    "ncfd_loss, weights": loss_case(**WEIGHTS, **UNBIASED),
    "ncfd_loss, without values": loss_case(
        x=normal(N, D).to("meta"), y=normal(M, D).to("meta"), t=normal(F, D).to("meta")
    ),
    "ncfd_loss, groups": loss_case(**LABELS),
    "ncfd_loss, groups and weights": loss_case(**LABELS, **WEIGHTS, reduction="none"),
    "ncfd_loss, batch": loss_case(**BATCH, t=normal(B, F, D)),
    "ncfd_loss, known": loss_case(x=z),
    "ncfd_loss, known groups": loss_case(
        x=torch.stack([z, w]), y_groups=LABELS["y_groups"], num_groups=G
    ),
    "ncfd_loss, distribution": loss_case(x=MultivariateNormal(torch.zeros(D), torch.eye(D))),
    "gaussian_ncfd": gaussian_case(),
    "gaussian_ncfd, mixture": gaussian_case(**WEIGHTS, scale=torch.ones(2, D), unbiased=True),
    "gaussian_ncfd, without values": gaussian_case(
        x=normal(N, D).to("meta"), y=normal(M, D).to("meta")
    ),
    "gaussian_ncfd, groups": gaussian_case(**LABELS, scale=torch.ones(D), chunk_size=2),
    "gaussian_ncfd, batch": gaussian_case(**BATCH),
    "NCFDLoss": module_case(sampler=ncfd.GaussianFrequencies(D, F, learnable=True)),
    "NCFDLoss, groups": module_case(
        real_groups=LABELS["x_groups"], synthetic_groups=LABELS["y_groups"], num_groups=G
    ),
    "NCFDLoss, weights": module_case(
        normalize=True, real_weights=WEIGHTS["x_weights"], synthetic_weights=WEIGHTS["y_weights"]
    ),
    "FrequencySampler": sampler_case(
        ncfd.FrequencySampler, FIXED[:2], num_components=2, hidden_dim=4
    ),
    "GaussianFrequencies": sampler_case(ncfd.GaussianFrequencies, FIXED, learnable=True),
    "StudentTFrequencies": sampler_case(
        ncfd.StudentTFrequencies, FIXED, df=3.0, learnable=False, spread=0.5
    ),
    "LaplaceFrequencies": sampler_case(
        ncfd.LaplaceFrequencies, FIXED, scale=torch.ones(D), learnable=False
    ),
    "UniformFrequencies": sampler_case(
        ncfd.UniformFrequencies, FIXED, method="sobol", learnable=False
    ),
    "SlicedFrequencies": Case(
        draw_from(ncfd.SlicedFrequencies),
        lambda: {
            "dim": D,
            "num_slices": 2,
            "num_nodes": 3,
            "t_max": 2.0,
            "scale": torch.ones(D),
            "method": "orthogonal",
            "weighting": "energy",
            "generator": None,
        },
        rays_shape,
    ),
    "CharacteristicFunction": Case(
        stream,
        lambda: {"t": T, "num_groups": None, "x": normal(N, D), "groups": None, "weights": None},
        stream_shape,
    ),
    "CharacteristicFunction, groups": Case(
        stream,
        lambda: {
            "t": T,
            "num_groups": G,
            "x": normal(N, D),
            "groups": LABELS["x_groups"],
            "weights": WEIGHTS["x_weights"],
        },
        stream_shape,
    ),
    "CharacteristicFunction.merge": Case(
        merged, lambda: {"other": ncfd.CharacteristicFunction(T)}, lambda a: None
    ),
    "two_sample_test": two_sample_case(),
    "two_sample_test, default frequencies": two_sample_case(frequencies=None, num_frequencies=6),
    "two_sample_test, chi2": two_sample_case(
        method="chi2", x=normal(9, 1), y=normal(9), frequencies=None
    ),
    "frequency_report": Case(
        report, lambda: {"x": normal(N, D), "t": T, "num_synthetic": 4}, report_shape
    ),
    "NCFDMetric": Case(
        metric,
        lambda: {
            "frequencies": T,
            "features": normal(N, D),
            "real": True,
            "feature_extractor": None,
            "normalize": False,
            "alpha": 0.5,
            "squared": False,
            "unbiased": False,
            "reset_real_features": True,
            "seed": 0,
        },
        metric_shape,
        ("generator",),  # a sampler in place of a feature extractor
    ),
}


# ------------------------------------------------------------------------------------------------
# The test
# ------------------------------------------------------------------------------------------------


def outcome(case: Case, arguments: Arguments) -> None:
    expected = case.shape(arguments)
    try:
        result = case.call(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        words = "|".join(map(re.escape, (*arguments, *case.words)))
        if not re.search(rf"\b({words})\b", str(error)):
            raise AssertionError("the error names no argument") from error
        return
    assert expected is not None, "has to be refused"
    tensors_ = result if isinstance(result, tuple) else (result,)
    if expected is not any:
        assert all(v.shape == expected for v in tensors_), [v.shape for v in tensors_]
    for value in tensors_:
        if isinstance(value, Tensor) and value.requires_grad and not value.is_complex():
            value.sum().backward(retain_graph=True)


@pytest.mark.parametrize("name", CASES)
def test_valid_calls(name: str) -> None:
    """The starting points have the shape that is expected of them: else nothing is tested."""
    case = CASES[name]
    if name != "CharacteristicFunction.merge":
        expected, result = case.shape(case.valid()), case.call(**case.valid())
        assert expected is not None
        assert (
            expected is any
            or (result if isinstance(result, Tensor) else result[0]).shape == expected
        )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=3 * settings.default.max_examples)
@given(data=st.data())
def test_documented_errors_or_the_documented_shape(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    outcome(case, data.draw(changed(case.valid()), label="arguments"))


def test_every_public_name_is_called() -> None:
    called = {name.split(",")[0].split(".")[0] for name in CASES}
    made = {"TwoSampleTestResult", "FrequencyReport"}  # by two_sample_test, frequency_report
    public = {*functional.__all__, *distributions.__all__, *ncfd.__all__, "NCFDMetric"}
    modules = {"functional", "distributions", "__version__"}
    assert public - modules - made == called
