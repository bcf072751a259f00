r"""Where the frequencies come from: ψ, the learned scale mixture, and its siblings.

Every sampler is a module that returns ``(F, D)`` frequencies. The randomness is drawn from an
explicit ``torch.Generator`` or, without one, from the device's default generator; nothing seeds.

The law of the frequencies is the kernel of the squared loss, ``E cos⟨t, x - y⟩ = k(x - y)``:

=====================  ==============================================================
Gaussian               Gaussian kernel, ``exp(-½ |σ δ|²)``
Student-t, ``df``      Matérn kernel of smoothness ``df / 2``
Laplace                rational quadratic kernel, ``1 / (1 + |σ δ|²)``
uniform                product of ``sin(σ δ_d) / (σ δ_d)``
:class:`FrequencySampler`  mixture of Gaussian kernels, with learned widths
=====================  ==============================================================

Letters: D features, F frequencies, K mixture components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ncfd import _validation as check
from ncfd._devices import widest_float

__all__ = [
    "FrequencySampler",
    "GaussianFrequencies",
    "LaplaceFrequencies",
    "StudentTFrequencies",
    "UniformFrequencies",
]

#: Structured blocks have at least 2 to this power columns: entries add as many signs, and below
#: 64 of them are seen not to be normal.
_LEAST_POWER = 6

METHODS = ("random", "orthogonal", "structured", "sobol")

#: The most dimensions that PyTorch's Sobol sequence covers.
_SOBOL_DIMS = torch.quasirandom.SobolEngine.MAXDIM


def _draw(
    kind: str,
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Normal, uniform or exponential noise for the device and dtype of ``like``.

    A CPU generator draws on the CPU and moves, so that one seed gives one stream on all devices.
    """
    device = like.device if generator is None else generator.device
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    noise = torch.empty(shape, device=device, dtype=dtype)
    if kind == "normal":
        noise.normal_(generator=generator)
    elif kind == "uniform":
        noise.uniform_(generator=generator)
    else:
        noise.exponential_(generator=generator)
    return noise.to(like.device)


class _Frequencies(nn.Module):
    """What all samplers share: sizes, the call, and a scale bounded around its start."""

    def __init__(self, dim: int, num_frequencies: int, max_ratio: float) -> None:
        super().__init__()
        self.dim = check.check_count(dim, "dim")
        self.num_frequencies = check.check_count(num_frequencies, "num_frequencies")
        self.max_ratio = check.check_positive(max_ratio, "max_ratio")
        if self.max_ratio <= 1:
            raise ValueError(f"max_ratio must be greater than 1, got {max_ratio}")

    def _store_scale(self, scale: float | Tensor) -> None:
        """Keep the starting scale as a ``(D,)`` buffer."""
        if isinstance(scale, Tensor):
            value = check.check_floating(scale, "scale").detach().clone()
            if value.shape not in ((), (self.dim,)):
                raise ValueError(
                    f"scale must be a number or have shape ({self.dim},), "
                    f"got {check.describe(scale)}"
                )
            if value.is_meta:
                raise ValueError(f"scale must have values, got {check.describe(scale)}")
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError("scale must be positive and finite in every entry")
            value = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)
        else:
            dtype = torch.float32
            value = torch.tensor(check.check_positive(scale, "scale", dtype), dtype=dtype)
        self.base_scale: Tensor
        self.register_buffer("base_scale", value.expand(self.dim).clone())

    def _bounded(self, raw: Tensor) -> Tensor:
        """``scale · max_ratio ** tanh(raw)``: within a factor ``max_ratio`` of the start."""
        return self.base_scale * torch.exp(math.log(self.max_ratio) * torch.tanh(raw))


class FrequencySampler(_Frequencies):
    r"""ψ: frequencies from a learned scale mixture of normals.

    .. math::
        t = \sigma_k \odot \varepsilon,\quad \varepsilon\sim N(0, I),\quad
        \sigma_k = s\, r^{\tanh(\mathrm{net}(z_k))},\quad z_k\sim N(0, I)

    A small network maps K noise vectors to K diagonal scales; each scale serves F/K draws of ε, all
    distinct. The scales cannot run away: they stay within a factor ``max_ratio`` of ``scale``. The
    network starts at ``σ = scale`` exactly, where ψ equals :class:`GaussianFrequencies`.

    Args:
        dim: D, the number of features.
        num_frequencies: F, how many are drawn.
        num_components: K in [1, F]. Default: ``ceil(F / 16)``, as in the paper.
        scale: s, the starting standard deviation of the frequencies, in radians per unit of the
            features: a positive number or ``(D,)``.
        max_ratio: r > 1, the factor by which a scale may leave ``scale`` either way.
        hidden_dim: width of the network's layers. Default: ``dim``, as in the paper, but at
            least 16 (a narrow layer norm leaves nothing to mix) and at most 256.
        method: ``"random"``, ``"orthogonal"`` (blocks of D orthogonal rows with chi-distributed
            lengths, before scaling) or ``"structured"`` draws of ε, see
            :class:`GaussianFrequencies`.
        fixed_norm: hold the root mean square of every component's scales over the coordinates at
            that of ``scale``. ψ then chooses coordinates only: it cannot raise the loss by leaving
            for higher frequencies, where finite samples always differ. A single scale may be up to
            ``max_ratio²`` times its start.

    Returns (of ``forward(generator=None)``):
        ``(F, D)`` on the module's device, differentiable in the network's parameters. A CPU
        generator gives the same numbers on every device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> psi = FrequencySampler(dim=8, num_frequencies=64, scale=2.0)
        >>> psi(torch.Generator().manual_seed(0)).shape
        torch.Size([64, 8])

    Source: the mixture of Wang et al., CVPR 2025, section 4.2, after Li et al., *RCF-GAN*, NeurIPS
    2020. Bound and start are this package's.
    """

    def __init__(
        self,
        dim: int,
        num_frequencies: int = 1024,
        *,
        num_components: int | None = None,
        scale: float | Tensor = 1.0,
        max_ratio: float = 4.0,
        hidden_dim: int | None = None,
        method: str = "random",
        fixed_norm: bool = False,
    ) -> None:
        super().__init__(dim, num_frequencies, max_ratio)
        self.fixed_norm = check.check_flag(fixed_norm, "fixed_norm")
        if self.fixed_norm and self.dim == 1:
            raise ValueError("fixed_norm needs dim >= 2, got dim=1: nothing would be left to learn")
        if num_components is None:
            num_components = -(-self.num_frequencies // 16)
        self.num_components = check.check_count(num_components, "num_components")
        if self.num_components > self.num_frequencies:
            raise ValueError(
                f"num_components must be at most num_frequencies = {self.num_frequencies}, "
                f"got {num_components}"
            )
        self.method = _check_method(method, ("random", "orthogonal", "structured"))
        hidden = max(16, min(self.dim, 256)) if hidden_dim is None else hidden_dim
        hidden = check.check_count(hidden, "hidden_dim")
        self._store_scale(scale)
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, self.dim),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.hidden_dim = hidden

    def scales(self, generator: torch.Generator | None = None) -> Tensor:
        """Standard deviations of freshly drawn components.

        Args:
            generator: source of the noise that the network maps to scales. Default: PyTorch's own.

        Returns:
            ``(K, D)``, positive, within a factor ``max_ratio`` of ``scale`` (its square with
            ``fixed_norm``).
        """
        check.check_generator(generator, self.base_scale.device)
        weight = next(self.network.parameters())
        noise = _draw("normal", (self.num_components, self.hidden_dim), weight, generator)
        # In float32 at least: frequencies in half precision would make phases 0.2 % wrong.
        with torch.autocast(weight.device.type, enabled=False):
            scales = self._bounded(self.network(noise.to(weight.dtype)))
            if not self.fixed_norm:
                return scales
            # Relative to the largest, so that squares stay in range.
            largest = self.base_scale.max()
            wanted = (self.base_scale / largest).square().mean().sqrt()
            return scales * (wanted / (scales / largest).square().mean(1, keepdim=True).sqrt())

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw frequencies.

        Args:
            generator: on the CPU, or on the module's device. Default: PyTorch's own.

        Returns:
            ``(F, D)`` on the module's device.
        """
        scales = self.scales(generator)
        epsilon = _normal(self.num_frequencies, self.dim, self.method, scales, generator)
        # Frequency f is of component f mod K, so that each has F/K draws, rounded. Repeated,
        # not indexed: the gradient of an index adds in whatever order the threads come.
        rounds = -(-self.num_frequencies // self.num_components)
        return scales.repeat(rounds, 1)[: self.num_frequencies] * epsilon

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"dim={self.dim}, num_frequencies={self.num_frequencies}, "
            f"num_components={self.num_components}, max_ratio={self.max_ratio:g}, "
            f"method={self.method!r}, fixed_norm={self.fixed_norm}"
        )


class _FixedLaw(_Frequencies):
    """A law with a diagonal scale, fixed or learned; subclasses draw its standard form."""

    def __init__(
        self,
        dim: int,
        num_frequencies: int = 1024,
        *,
        scale: float | Tensor = 1.0,
        learnable: bool = False,
        method: str = "random",
        max_ratio: float = 4.0,
    ) -> None:
        super().__init__(dim, num_frequencies, max_ratio)
        self.learnable = check.check_flag(learnable, "learnable")
        self.method = _check_method(method, METHODS)
        if self.method == "sobol" and self._sobol_dims() > _SOBOL_DIMS:
            raise ValueError(
                f"method='sobol' covers at most {_SOBOL_DIMS} dimensions, got dim={self.dim}; "
                "use 'orthogonal'"
            )
        self._store_scale(scale)
        self.raw_scale: nn.Parameter | None
        self.register_parameter(
            "raw_scale", nn.Parameter(torch.zeros_like(self.base_scale)) if learnable else None
        )

    def scales(self, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """The scale now.

        Args:
            generator: taken, like ψ's ``scales``, and ignored: nothing is drawn.

        Returns:
            ``(1, D)``, positive.
        """
        scale = self.base_scale if self.raw_scale is None else self._bounded(self.raw_scale)
        return scale.unsqueeze(0)

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw frequencies.

        Args:
            generator: on the CPU, or on the module's device. Default: PyTorch's own.

        Returns:
            ``(F, D)`` on the module's device.
        """
        check.check_generator(generator, self.base_scale.device)
        scale = self.scales()
        return scale * self._standard(scale, generator).to(scale.dtype)

    def _sobol_dims(self) -> int:
        return self.dim

    def _standard(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"dim={self.dim}, num_frequencies={self.num_frequencies}, "
            f"learnable={self.learnable}, method={self.method!r}"
        )


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
        dim: D, the number of features.
        num_frequencies: F, how many are drawn.
        scale: a positive number or ``(D,)``, the standard deviation, in radians per unit of the
            features.
        learnable: learn the diagonal scale, as the adversary's side of the game.
        method: ``"random"``, ``"orthogonal"``, ``"structured"`` or ``"sobol"``; see above.
        max_ratio: a learned scale stays within this factor of ``scale``.

    Returns (of ``forward(generator=None)``):
        ``(F, D)`` on the module's device; a CPU generator gives the same numbers on every device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> GaussianFrequencies(4, 16)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Rahimi & Recht, *Random features for large-scale kernel machines*, NIPS 2007;
    orthogonal and structured: Yu et al., *Orthogonal random features*, NIPS 2016.
    """

    def _standard(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return _normal(self.num_frequencies, self.dim, self.method, like, generator)


class StudentTFrequencies(_FixedLaw):
    """Multivariate Student-t frequencies: heavy tails, the Matérn kernel of smoothness ``df / 2``.

    Args:
        dim: D, the number of features.
        num_frequencies: F, how many are drawn.
        scale: a positive number or ``(D,)``: each coordinate is ``scale`` times a Student-t
            variable.
        df: degrees of freedom, positive; 1 is the Cauchy law.
        learnable: learn the diagonal scale, as the adversary's side of the game.
        method: ``"random"``, ``"orthogonal"``, ``"structured"`` or ``"sobol"``; see
            :class:`GaussianFrequencies`.
        max_ratio: a learned scale stays within this factor of ``scale``.

    Returns (of ``forward(generator=None)``):
        ``(F, D)`` on the module's device; a CPU generator gives the same numbers on every device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> StudentTFrequencies(4, 16, df=5.0)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006, section 4.2.
    """

    def __init__(
        self,
        dim: int,
        num_frequencies: int = 1024,
        *,
        scale: float | Tensor = 1.0,
        df: float = 3.0,
        learnable: bool = False,
        method: str = "random",
        max_ratio: float = 4.0,
    ) -> None:
        self.df = check.check_positive(df, "df")
        super().__init__(
            dim,
            num_frequencies,
            scale=scale,
            learnable=learnable,
            method=method,
            max_ratio=max_ratio,
        )

    def _sobol_dims(self) -> int:
        return self.dim + 1

    def _standard(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.method == "sobol":
            points = _sobol(self.num_frequencies, self.dim + 1, like, generator)
            normal = _normal_quantile(points[:, : self.dim])
            # χ²_df quantiles have no closed form: invert the gamma distribution function.
            chi2 = 2 * _gamma_quantile(points[:, self.dim :].cpu().double(), self.df / 2)
        else:
            normal = _normal(self.num_frequencies, self.dim, self.method, like, generator)
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
        dim: D, the number of features.
        num_frequencies: F, how many are drawn.
        scale: a positive number or ``(D,)``: each coordinate is Laplace(0, ``scale``), of standard
            deviation ``√2 scale``.
        learnable: learn the diagonal scale, as the adversary's side of the game.
        method: ``"random"``, ``"orthogonal"``, ``"structured"`` or ``"sobol"``; see
            :class:`GaussianFrequencies`.
        max_ratio: a learned scale stays within this factor of ``scale``.

    Returns (of ``forward(generator=None)``):
        ``(F, D)`` on the module's device; a CPU generator gives the same numbers on every device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> LaplaceFrequencies(4, 16)(torch.Generator().manual_seed(0)).shape
        torch.Size([16, 4])

    Source: Kotz, Kozubowski & Podgórski, *The Laplace Distribution and Generalizations*, 2001.
    """

    def _sobol_dims(self) -> int:
        return self.dim + 1

    def _standard(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        # A normal with an exponential variance is Laplace.
        if self.method == "sobol":
            points = _sobol(self.num_frequencies, self.dim + 1, like, generator)
            normal = _normal_quantile(points[:, : self.dim])
            exponential = -torch.log1p(-points[:, self.dim :].clamp_max(1 - 6e-8))
        else:
            normal = _normal(self.num_frequencies, self.dim, self.method, like, generator)
            exponential = _draw("exponential", (self.num_frequencies, 1), like, generator)
        return normal * torch.sqrt(2 * exponential)


class UniformFrequencies(_FixedLaw):
    """Uniform frequencies on the box ``[-scale, scale]^D``: bounded, the sinc product kernel.

    With ``method="orthogonal"`` or ``"structured"`` such normal rows are made uniform coordinate by
    coordinate: each row is uniform, and two rows are nearly orthogonal.

    Args:
        dim: D, the number of features.
        num_frequencies: F, how many are drawn.
        scale: a positive number or ``(D,)``, half the width of the box.
        learnable: learn the diagonal scale, as the adversary's side of the game.
        method: ``"random"``, ``"orthogonal"``, ``"structured"`` or ``"sobol"``; see
            :class:`GaussianFrequencies`.
        max_ratio: a learned scale stays within this factor of ``scale``.

    Returns (of ``forward(generator=None)``):
        ``(F, D)`` on the module's device; a CPU generator gives the same numbers on every device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> bool((UniformFrequencies(4, 16, scale=2.0)().abs() <= 2).all())
        True

    Source: Ansari et al., *A characteristic function approach to deep implicit generative
    modeling*, CVPR 2020, among its weightings.
    """

    def _standard(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.method in ("orthogonal", "structured"):
            normal = _normal(self.num_frequencies, self.dim, self.method, like, generator)
            uniform: Tensor = torch.special.erf(normal / math.sqrt(2))  # 2 Φ(z) - 1
            return uniform
        if self.method == "sobol":
            return 2 * _sobol(self.num_frequencies, self.dim, like, generator) - 1
        return 2 * _draw("uniform", (self.num_frequencies, self.dim), like, generator) - 1


# ------------------------------------------------------------------------------------------------
# Standard normal rows, four ways
# ------------------------------------------------------------------------------------------------


def _check_method(method: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(method, str):
        raise TypeError(f"method must be one of {allowed}, got {check.describe(method)}")
    if method not in allowed:
        raise ValueError(f"method must be one of {allowed}, got {method!r}")
    return method


def _normal(
    num_frequencies: int,
    dim: int,
    method: str,
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """``(F, D)`` rows, each ``N(0, I)``: exactly, but for ``"structured"``."""
    if method == "random":
        return _draw("normal", (num_frequencies, dim), like, generator)
    if method == "sobol":
        return _normal_quantile(_sobol(num_frequencies, dim, like, generator))
    if method == "structured":
        return _structured(num_frequencies, dim, like, generator)
    blocks = -(-num_frequencies // dim)
    noise = _draw("normal", (blocks, dim, dim), like, generator)
    q, r = torch.linalg.qr(noise)
    # Signs of R's diagonal make Q Haar-distributed; without them QR favours one sign.
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2)).unsqueeze(1)
    # Lengths of independent normal rows: orthogonality alone would give another kernel.
    lengths = _draw("normal", (blocks, dim, dim), like, generator).norm(dim=2, keepdim=True)
    rows: Tensor = (q * lengths).reshape(blocks * dim, dim)
    return rows[:num_frequencies]


def _structured(
    num_frequencies: int, dim: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """``(F, D)`` rows from blocks of ``H S H S H R``, S random signs, R random turns of pairs.

    H is a Hadamard matrix: nothing is factorised. The size n of a block is a power of two, at
    least D: where it is more, columns are cut off, and rows are orthogonal only roughly.
    """
    power = max(_LEAST_POWER, (dim - 1).bit_length())
    size = 2**power
    left, right = (_hadamard(k, like) for k in (power // 2, power - power // 2))
    blocks = -(-num_frequencies // size)
    rows = -(-num_frequencies // blocks)  # of each block
    matrix = torch.kron(left, right)[:rows].expand(blocks, rows, size)
    # Whole numbers up to here, so that devices agree to the bit whatever their products
    # do, TF32 too (11 bits hold all but a few): only half precision has to be kept away.
    with torch.autocast(like.device.type, enabled=False):
        for turn in range(3):
            if turn > 0:  # times H, which is a Kronecker product: two small products
                cut = matrix.reshape(-1, len(left), len(right)) @ right
                matrix = (left @ cut).reshape(blocks, rows, size)
            if turn < 2:
                uniform = _draw("uniform", (blocks, 1, size), like, generator)
                matrix = matrix * torch.where(uniform < 0.5, -1.0, 1.0).to(matrix)
    # Entries so far lie on a coarse lattice: turn them two by two.
    angle = 2 * math.pi * _draw("uniform", (blocks, 1, size // 2), like, generator)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = matrix[..., 0::2], matrix[..., 1::2]
    matrix = torch.cat([first * cos - second * sin, first * sin + second * cos], 2)
    # Lengths of independent normal rows: squared, twice a gamma variable of shape n / 2.
    device = like.device if generator is None else generator.device
    half = torch.full((blocks, rows, 1), size / 2, dtype=widest_float(device), device=device)
    lengths = torch.sqrt(2 * torch._standard_gamma(half, generator=generator)) * size**-1.5
    scaled: Tensor = matrix * lengths.to(matrix)
    return scaled.reshape(-1, size)[:num_frequencies, :dim]


def _hadamard(power: int, like: Tensor) -> Tensor:
    """The Hadamard matrix of ``2 ** power`` rows, entries ±1."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    matrix = torch.ones(1, 1, dtype=dtype, device=like.device)
    for _ in range(power):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _sobol(
    num_frequencies: int, dims: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Scrambled Sobol points in (0, 1), ``(F, dims)``, freshly scrambled at each call."""
    device = like.device if generator is None else generator.device
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=device))
    engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=seed)  # type: ignore[no-untyped-call]  # torch's own
    points = engine.draw(num_frequencies, dtype=torch.float64)
    # Points lie on a 2⁻³⁰ lattice that includes 0: take the centres of its cells.
    points = points.clamp(0, 1 - 2.0**-30) + 2.0**-31
    return points.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def _normal_quantile(points: Tensor) -> Tensor:
    # float32 rounds the last cell up to 1, whose quantile is infinite.
    quantile: Tensor = torch.special.ndtri(points.clamp(1e-9, 1 - 6e-8))
    return quantile


def _gamma_quantile(p: Tensor, shape: float) -> Tensor:
    """Inverse of the regularised lower incomplete gamma function, by bisection in float64."""
    a = torch.full_like(p, shape)
    low, high = torch.full_like(p, -80.0), torch.full_like(p, math.log(shape + 50.0) + 3.0)
    for _ in range(80):  # halves an interval of 90 in log space down to 1e-22
        middle = 0.5 * (low + high)
        below = torch.special.gammainc(a, torch.exp(middle)) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.exp(0.5 * (low + high))
