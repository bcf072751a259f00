"""ψ, the learned scale mixture.

Letters: D features, F frequencies, K mixture components.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ncfd import _validation as check
from ncfd.frequencies import _draws as draws
from ncfd.frequencies._base import _Scaled

_METHODS = ("random", "orthogonal", "structured")


class FrequencySampler(_Scaled):
    r"""ψ: frequencies from a learned scale mixture of normals.

    .. math::
        t = \sigma_k \odot \varepsilon,\quad \varepsilon\sim N(0, I),\quad
        \sigma_k = s\, r^{\tanh(\mathrm{net}(z_k))},\quad z_k\sim N(0, I)

    A small network maps K noise vectors to K diagonal scales; each scale serves F/K draws of ε, all
    distinct. The scales cannot run away: they stay within a factor ``max_ratio`` of ``scale``. The
    network starts at ``σ = scale`` exactly, where ψ equals :class:`GaussianFrequencies` (with the
    same ``spread``: its fixed mixture).

    ψ has parameters: it has to exist before its optimizer and scheduler are built. Where D is not
    known before there are features, :meth:`like` makes ψ from a first batch of them.

    Args:
        dim: D, the number of features; ``FrequencySampler.like(features)`` takes it from features.
        num_frequencies: F, how many are drawn.
        num_components: K in [1, F]. Default: ``ceil(F / 16)``, as in the paper.
        scale: s, the starting standard deviation of the frequencies, in radians per unit of the
            features: a positive number, ``(D,)``, or ``"median"``, one over the median distance
            between the real samples of each call, as for the fixed laws.
        max_ratio: r > 1, the factor by which a scale may leave ``scale`` either way. Wide, so that
            an adversary that is paid for signal finds its scale; one that ascends the loss itself
            runs to its bound, and wants a narrow one, 2 to 4. From 4 on it does not change how far
            a step of the optimizer goes near the start: one of Adam at rate η moves all scales
            together by a factor of up to about ``exp(110 η)`` with the layers' 256 units,
            ``exp(10 η)`` with 16.
        hidden_dim: width of the network's layers. Default: ``dim``, as in the paper, but at
            least 16 (a narrow layer norm leaves nothing to mix) and at most 256.
        method: ``"random"``, ``"orthogonal"`` (blocks of D orthogonal rows with chi-distributed
            lengths, before scaling) or ``"structured"`` draws of ε, see
            :class:`GaussianFrequencies`.
        fixed_norm: hold the root mean square of every component's scales over the coordinates at
            that of ``scale``. ψ then chooses coordinates only: it cannot raise the loss by leaving
            for higher frequencies, where finite samples always differ. A single scale may be up to
            ``max_ratio²`` times its start, and no more than ``√D`` times that root mean square.
        spread: in [0, 10]. Component k is multiplied by ``exp(spread · z_k)``, z_k normal: from
            the start a mixture of scales, log-normal around ``scale``. The z_k are stratified (one
            from each of K equal shares of the normal law, fresh at each call), which leaves the
            law exact and almost no noise of their own. 0: all components start alike.

    Returns (of ``forward(generator=None, *, real=None)``):
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
        scale: float | Tensor | Literal["median"] = 1.0,
        max_ratio: float = 30.0,
        hidden_dim: int | None = None,
        method: str = "random",
        fixed_norm: bool = False,
        spread: float = 0.0,
    ) -> None:
        if dim is None:
            raise TypeError(
                "dim must be an int, got None: an optimizer has to see the parameters before the "
                "first call; FrequencySampler.like(features) takes dim from features"
            )
        dim = check.check_count(dim, "dim")
        super().__init__(dim, num_frequencies, scale, method, _METHODS, max_ratio, spread)
        self.fixed_norm = check.check_flag(fixed_norm, "fixed_norm")
        if self.fixed_norm and dim == 1:
            raise ValueError("fixed_norm needs dim >= 2, got dim=1: nothing would be left to learn")
        if num_components is None:
            num_components = -(-self.num_frequencies // 16)
        self.num_components = check.check_count(num_components, "num_components")
        if self.num_components > self.num_frequencies:
            raise ValueError(
                f"num_components must be at most num_frequencies = {self.num_frequencies}, "
                f"got {num_components}"
            )
        hidden = max(16, min(dim, 256)) if hidden_dim is None else hidden_dim
        hidden = check.check_count(hidden, "hidden_dim")
        self.network = _ScaleNetwork(hidden, dim)
        self.hidden_dim = hidden

    def scales(self, generator: torch.Generator | None = None) -> Tensor:
        """Standard deviations of freshly drawn components.

        Args:
            generator: source of the noise that the network maps to scales. Default: PyTorch's own.

        Returns:
            ``(K, D)``, positive, within a factor ``max_ratio`` of ``scale`` (its square with
            ``fixed_norm``), times the component's ``exp(spread · z_k)``.
        """
        check.check_generator(generator, self.base_scale.device)
        weight = next(self.network.parameters())
        noise = draws.draw("normal", (self.num_components, self.hidden_dim), weight, generator)
        # In float32 at least: frequencies in half precision would make phases 0.2 % wrong.
        with torch.autocast(weight.device.type, enabled=False):
            scales = self._bounded(self.network(noise.to(weight.dtype)))
            if self.fixed_norm:
                # Relative to the largest, so that squares stay in range.
                largest = self.base_scale.max()
                wanted = (self.base_scale / largest).square().mean().sqrt()
                scales = scales * (wanted / (scales / largest).square().mean(1, True).sqrt())
            if self.spread:
                scales = scales * draws.spread(len(scales), self.spread, scales, generator)
            return scales

    def _sample(self, dim: int, generator: torch.Generator | None) -> Tensor:
        scales = self.scales(generator)
        epsilon = draws.normal(self.num_frequencies, dim, self.method, scales, generator)
        # Frequency f is of component f mod K, so that each has F/K draws, rounded. Repeated,
        # not indexed: the gradient of an index adds in whatever order the threads come.
        rounds = -(-self.num_frequencies // self.num_components)
        return scales.repeat(rounds, 1)[: self.num_frequencies] * epsilon

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"{super().extra_repr()}, num_components={self.num_components}, "
            f"max_ratio={self.max_ratio:g}, fixed_norm={self.fixed_norm}"
        )


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


class _Weights(nn.Module):
    """A weight and a bias that are stored under these names, but are no attributes.

    ``net.apply(init)`` hands every module to ``init``, which then rewrites what is a
    ``nn.Linear``, has ``Linear``, ``Norm`` or ``Conv`` in the name of its class, or has a
    ``weight``. ψ's first step depends on its start: nothing of it is any of these.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in layer.named_parameters():
            wide = torch.promote_types(value.dtype, torch.float32)  # of a half default type too
            self.register_parameter(name, nn.Parameter(value.detach().to(wide)))

    def __getattr__(self, name: str) -> Any:
        if name in _Layer._fields:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return super().__getattr__(name)


class _ScaleNetwork(nn.Module):
    """Three linear layers, with layer norms and LeakyReLU(0.2) between them; the last starts at 0.

    ``network[-1].weight`` is that of the last layer, as in a ``nn.Sequential``; so are the names
    under which it is stored.
    """

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        layers = {  # PyTorch's own start
            0: nn.Linear(hidden, hidden),
            1: nn.LayerNorm(hidden),
            3: nn.Linear(hidden, hidden),
            4: nn.LayerNorm(hidden),
            6: nn.Linear(hidden, dim),
        }
        for value in layers[6].parameters():
            nn.init.zeros_(value)
        for position, layer in layers.items():
            self.add_module(str(position), _Weights(layer))

    def __getitem__(self, index: int) -> _Layer:
        weights = self._modules[str(range(7)[index])]
        assert weights is not None
        return _Layer(*(cast(Tensor, weights._parameters[n]) for n in _Layer._fields))

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in ((0, 1), (3, 4)):
            x = functional.linear(x, *self[linear])
            x = functional.layer_norm(x, x.shape[-1:], *self[norm])
            x = functional.leaky_relu(x, 0.2)
        return functional.linear(x, *self[-1])
