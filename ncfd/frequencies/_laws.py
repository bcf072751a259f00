"""Fixed laws of the frequencies, with a fixed or learned diagonal scale.

Letters: D features, F frequencies.
"""

from __future__ import annotations

import inspect
import math
from typing import Literal

import torch
from torch import Tensor, nn

from ncfd import _validation as check
from ncfd._devices import widest_float
from ncfd.frequencies import _draws as draws
from ncfd.frequencies._base import _Scaled

# What the docstrings of all laws say alike, around what each says of its own.
_RELATIVE = """\
With ``scale="median"`` the scale is one over the median distance between the real samples, those
of each call alone: nothing is remembered from one call to the next. The module's ``relative`` is
then True. :class:`ncfd.NCFDLoss` takes one factor for each group, or set of a batch; a direct call
takes ``real=``.

"""
_FIRST_ARGUMENTS = """\
    dim: D, the number of features. None: that of the first call's ``real``, on whose device the
        frequencies then are; ``NCFDLoss(%s())`` needs no more.
    num_frequencies: F, how many are drawn.
"""
_LAST_ARGUMENTS = """
    learnable: learn the scale, as the adversary's side of the game. True: one for each feature.
        ``"one"``: one factor of all, a single number, which needs no ``dim`` and cannot turn to
        features that matter little.
    method: ``"random"``, ``"orthogonal"``, ``"structured"`` or ``"sobol"``; see
        :class:`GaussianFrequencies`.
    max_ratio: a learned scale stays within this factor of ``scale``. From 4 on it does not change
        how far a step of the optimizer goes near the start.
    spread: in [0, 10]. Each frequency is multiplied by ``exp(spread · z)``, z normal: a mixture
        of scales, log-normal around ``scale`` and so with heavy tails. The z are stratified (one
        from each of F equal shares of the normal law, fresh at each call), which leaves the law
        exact and almost no noise of their own. Rows then come in rising order of that factor.

Returns (of ``forward(generator=None, *, real=None)``):
    ``(F, D)`` on the module's device; a CPU generator gives the same numbers on every device.

Raises:
    TypeError: an argument of the wrong type.
    ValueError: an argument out of range.
"""


class _FixedLaw(_Scaled):
    """A law with a diagonal scale, fixed or learned; subclasses draw its standard form."""

    def __init_subclass__(cls) -> None:
        doc = inspect.cleandoc(cls.__doc__ or "")  # none under ``python -OO``
        before, arguments, own = doc.partition("Args:\n")
        own, rest, after = own.partition("\n\nExample:\n")
        if arguments and rest:
            first, last = _FIRST_ARGUMENTS % cls.__name__, _LAST_ARGUMENTS
            cls.__doc__ = f"{before}{_RELATIVE}{arguments}{first}{own}{last}\nExample:\n{after}"

    def __init__(
        self,
        dim: int | None = None,
        num_frequencies: int = 1024,
        *,
        scale: float | Tensor | Literal["median"] = 1.0,
        learnable: bool | Literal["one"] = False,
        method: str = "random",
        max_ratio: float = 4.0,
        spread: float = 0.0,
    ) -> None:
        super().__init__(dim, num_frequencies, scale, method, draws.METHODS, max_ratio, spread)
        if isinstance(learnable, str):
            check.check_one_of(learnable, "learnable", ("one",))
        else:
            check.check_flag(learnable, "learnable")
        self.learnable: bool | Literal["one"] = learnable
        if self.learnable is True and self.dim is None:
            raise ValueError(
                "learnable=True needs dim, got None: an optimizer has to see the parameter before "
                f"the first call; {type(self).__name__}.like(features) takes it from features, and "
                'learnable="one" needs none'
            )
        raw = torch.zeros_like(self.base_scale if self.learnable is True else self.base_scale.sum())
        self.raw_scale: nn.Parameter | None
        self.register_parameter("raw_scale", nn.Parameter(raw) if self.learnable else None)

    def scales(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002 - the signature is shared
        """The scale now, around which ``spread`` spreads.

        Args:
            generator: taken, like ψ's ``scales``, and ignored: nothing is drawn.

        Returns:
            ``(1, D)``, positive.
        """
        self._known_dim()
        scale = self.base_scale if self.raw_scale is None else self._bounded(self.raw_scale)
        return scale.unsqueeze(0)

    def _sample(self, dim: int, generator: torch.Generator | None) -> Tensor:
        scale = self.scales()
        t = scale * self._standard(dim, scale, generator).to(scale.dtype)
        if self.spread:
            # In rising order, so that the rows of an orthogonal block are of nearly one length,
            # and that a Sobol sequence gets the dimension it lacks.
            t = t * draws.spread(self.num_frequencies, self.spread, t, generator)
        return t

    def _standard(self, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError  # each law has its own

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return f"{super().extra_repr()}, learnable={self.learnable}"


class GaussianFrequencies(_FixedLaw):
    """Normal frequencies, ``t ~ N(0, diag(scale²))``: the Gaussian kernel.

    ``method="orthogonal"`` draws blocks of D mutually orthogonal rows, which cuts the variance of
    the loss several-fold once F >= D and the scale is at most about 1. ``"structured"`` does the
    same from Hadamard matrices, random signs and random turns, without the factorisation of a
    D x D matrix for each block: several times as fast, of the same variance from 64 features on.
    A row is normal to good approximation (64 signs at least behind each entry) instead of
    exactly. Blocks are of the next power of two, at least 64, cut to D columns: rows are then
    orthogonal only roughly. ``"sobol"``, a scrambled Sobol sequence through the normal quantile,
    helps in low dimension only.

    Args:
        scale: a positive number, ``(D,)`` or ``"median"``, the standard deviation, in
            radians per unit of the features.

    Example:
        >>> GaussianFrequencies(4, 16)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Rahimi & Recht, *Random features for large-scale kernel machines*, NIPS 2007;
    orthogonal and structured: Yu et al., *Orthogonal random features*, NIPS 2016.
    """

    def _standard(self, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return draws.normal(self.num_frequencies, dim, self.method, like, generator)


class StudentTFrequencies(_FixedLaw):
    """Multivariate Student-t frequencies: heavy tails, the Matérn kernel of smoothness ``df / 2``.

    Args:
        scale: a positive number, ``(D,)`` or ``"median"``: each coordinate is ``scale`` times
            a Student-t variable.
        df: degrees of freedom, positive; 1 is the Cauchy law.

    Example:
        >>> StudentTFrequencies(4, 16, df=5.0)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006, section 4.2.
    """

    _more_dims = 1

    def __init__(
        self,
        dim: int | None = None,
        num_frequencies: int = 1024,
        *,
        scale: float | Tensor | Literal["median"] = 1.0,
        df: float = 3.0,
        learnable: bool | Literal["one"] = False,
        method: str = "random",
        max_ratio: float = 4.0,
        spread: float = 0.0,
    ) -> None:
        self.df = check.check_positive(df, "df")
        super().__init__(
            dim,
            num_frequencies,
            scale=scale,
            learnable=learnable,
            method=method,
            max_ratio=max_ratio,
            spread=spread,
        )

    def _standard(self, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.method == "sobol":
            points = draws.sobol(self.num_frequencies, dim + 1, like, generator)
            normal = draws.normal_quantile(points[:, :dim])
            # χ²_df quantiles have no closed form: invert the gamma distribution function.
            chi2 = 2 * draws.gamma_quantile(points[:, dim:].cpu().double(), self.df / 2)
        else:
            normal = draws.normal(self.num_frequencies, dim, self.method, like, generator)
            device = like.device if generator is None else generator.device
            shape, wide = (self.num_frequencies, 1), widest_float(device)
            half_df = torch.full(shape, self.df / 2, dtype=wide, device=device)
            chi2 = 2 * torch._standard_gamma(half_df, generator=generator)
        # With few degrees of freedom χ² can round to 0: keep the quotient finite.
        return normal / torch.sqrt(chi2.clamp_min(1e-30) / self.df).to(normal)

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return f"{super().extra_repr()}, df={self.df:g}"


class LaplaceFrequencies(_FixedLaw):
    """Multivariate symmetric Laplace frequencies: the rational quadratic kernel.

    Args:
        scale: a positive number, ``(D,)`` or ``"median"``: each coordinate is
            Laplace(0, ``scale``), of standard deviation ``√2 scale``.

    Example:
        >>> LaplaceFrequencies(4, 16)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Kotz, Kozubowski & Podgórski, *The Laplace Distribution and Generalizations*, 2001.
    """

    _more_dims = 1

    def _standard(self, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        # A normal with an exponential variance is Laplace.
        if self.method == "sobol":
            points = draws.sobol(self.num_frequencies, dim + 1, like, generator)
            normal = draws.normal_quantile(points[:, :dim])
            exponential = -torch.log1p(-points[:, dim:].clamp_max(1 - 6e-8))
        else:
            normal = draws.normal(self.num_frequencies, dim, self.method, like, generator)
            exponential = draws.draw("exponential", (self.num_frequencies, 1), like, generator)
        return normal * torch.sqrt(2 * exponential)


class UniformFrequencies(_FixedLaw):
    """Uniform frequencies on the box ``[-scale, scale]^D``: bounded, the sinc product kernel.

    With ``method="orthogonal"`` or ``"structured"`` such normal rows are made uniform coordinate by
    coordinate: each row is uniform, and two rows are nearly orthogonal.

    Args:
        scale: a positive number, ``(D,)`` or ``"median"``, half the width of the box.

    Example:
        >>> bool((UniformFrequencies(4, 16, scale=2.0)().abs() <= 2).all())
        True

    Source: Ansari et al., *A characteristic function approach to deep implicit generative
    modeling*, CVPR 2020, among its weightings.
    """

    def _standard(self, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.method in ("orthogonal", "structured"):
            normal = draws.normal(self.num_frequencies, dim, self.method, like, generator)
            uniform: Tensor = torch.special.erf(normal / math.sqrt(2))  # 2 Φ(z) - 1
            return uniform
        if self.method == "sobol":
            return 2 * draws.sobol(self.num_frequencies, dim, like, generator) - 1
        return 2 * draws.draw("uniform", (self.num_frequencies, dim), like, generator) - 1
