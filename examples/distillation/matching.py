"""What the methods minimise: modules with one call, and a loss for each class."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ncfd
from ncfd._median import inverse_median_distance

from .options import GAMES, Config
from .randomness import generator as make_generator

#: The laws with one scale, by the names of `--sampler`.
LAWS = {
    "normal": ncfd.GaussianFrequencies,
    "student": ncfd.StudentTFrequencies,
    "laplace": ncfd.LaplaceFrequencies,
    "uniform": ncfd.UniformFrequencies,
}

#: Scales that stand for a log-normal law of them in the closed form, each for an equal share of it.
SPREAD_SCALES = 8


class Seeded(nn.Module):
    """A frequency sampler that draws from a generator of its own, and can repeat a draw."""

    def __init__(self, sampler: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.sampler = sampler
        self.generator = generator
        self.before = generator.get_state()
        self.factor = 1.0  # on the scale, from outside

    def __deepcopy__(self, memo: dict[int, object]) -> "Seeded":
        # Generators cannot be copied in PyTorch 2.5.
        twin = torch.Generator(self.generator.device)
        twin.set_state(self.generator.get_state())
        return Seeded(copy.deepcopy(self.sampler, memo), twin)

    def mark(self) -> None:
        """Let `rewind` come back to here."""
        self.before = self.generator.get_state()

    def rewind(self) -> None:
        """Draw the numbers since `mark` once more."""
        self.generator.set_state(self.before)

    def forward(self) -> Tensor:
        t: Tensor = self.sampler(generator=self.generator)
        return t if self.factor == 1 else self.factor * t

    def scales(self) -> Tensor:
        scales: Tensor = self.sampler.scales(generator=self.generator)
        return scales if self.factor == 1 else self.factor * scales


class SingleScale(nn.Module):
    """A law of frequencies with one learned scale for all coordinates.

    Within a factor `max_ratio` of the start, like ψ's scales.
    """

    def __init__(self, law: nn.Module, max_ratio: float) -> None:
        super().__init__()
        self.law = law
        self.log_ratio = math.log(max_ratio)
        self.raw = nn.Parameter(torch.zeros(()))

    def _factor(self) -> Tensor:
        return torch.exp(self.log_ratio * torch.tanh(self.raw))

    def forward(self, generator: torch.Generator) -> Tensor:
        t: Tensor = self._factor() * self.law(generator=generator)
        return t

    def scales(self, generator: torch.Generator) -> Tensor:
        scales: Tensor = self._factor() * self.law.scales(generator=generator)
        return scales


class NetworkFrequencies(nn.Module):
    """Frequencies straight from a network: t = s·r·tanh(net(z)), z ~ N(0, I).

    What the published code does in place of the mixture, but with F distinct rows. No coordinate
    is larger than the largest scale ψ may have, r times the starting scale s. At its start the
    coordinates are of about three quarters of s.
    """

    def __init__(self, dim: int, num_frequencies: int, scale: float, max_ratio: float) -> None:
        super().__init__()
        hidden = max(16, min(dim, 256))  # as ψ's
        self.shape = (num_frequencies, hidden)
        self.bound = scale * max_ratio
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, dim),
        )

    def forward(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.shape, generator=generator, device=generator.device)
        weight = next(self.parameters())
        t: Tensor = self.bound * torch.tanh(self.network(noise.to(weight.device)))
        return t

    def scales(self, generator: torch.Generator) -> Tensor:
        """Root mean square of each coordinate, (1, D)."""
        return self(generator).square().mean(0, keepdim=True).sqrt()


class Sides(NamedTuple):
    """Features of real and synthetic images and the class of each row, as `NCFDLoss` takes them."""

    real: Tensor  # (N, D)
    synthetic: Tensor  # (M, D)
    real_groups: Tensor  # (N,)
    synthetic_groups: Tensor  # (M,)
    num_groups: int  # C

    def with_rows(self, real: Tensor, synthetic: Tensor) -> "Sides":
        return self._replace(real=real, synthetic=synthetic)

    def normalized(self) -> "Sides":
        """Rows of length 1."""
        return self.with_rows(F.normalize(self.real, dim=1), F.normalize(self.synthetic, dim=1))

    def groups(self) -> dict[str, Any]:
        """The classes, as the functions of `ncfd.functional` take them."""
        names = ("x_groups", "y_groups", "num_groups")
        return dict(zip(names, self[2:], strict=True))


class Criterion(nn.Module):
    """Something with the call of `NCFDLoss`."""

    def forward(
        self,
        real: Tensor,
        synthetic: Tensor,
        *,
        real_groups: Tensor,
        synthetic_groups: Tensor,
        num_groups: int,
    ) -> Tensor:
        return self.compare(Sides(real, synthetic, real_groups, synthetic_groups, num_groups))

    def compare(self, sides: Sides) -> Tensor:
        raise NotImplementedError  # each criterion has its own


class MeanMatching(Criterion):
    """Squared distance of the class means, (C, 1). Rows are normalised as for the others."""

    def compare(self, sides: Sides) -> Tensor:
        means = []
        real, synthetic, real_groups, synthetic_groups, C = sides.normalized()
        for x, groups in ((real, real_groups), (synthetic, synthetic_groups)):
            total = x.new_zeros(C, x.shape[1]).index_add(0, groups, x)
            # Not `bincount`, for which a GPU has to finish first.
            count = groups.new_zeros(C).index_add(0, groups, torch.ones_like(groups))
            means.append(total / count[:, None])
        return (means[0] - means[1]).square().sum(1, keepdim=True)


class ExactDiscrepancy(Criterion):
    """The limit of infinitely many frequencies, squared, (C, 1).

    With a sampler its scales are learned: they climb the loss, by gradient reversal, or with
    `signal` what `ncfd.functional.signal_discrepancy` says of frequencies drawn by them. Without
    one this is a Gaussian kernel MMD.

    Args:
        sampler: of the scales.
        scale: the fixed one, without a sampler.
        unbiased: the U-statistic.
        normalize: rows to length 1.
        signal: what the scales climb.
        spread: a fixed scale, or a sampler's single one, becomes an equal mixture of these factors.
    """

    def __init__(
        self,
        sampler: Seeded | None,
        scale: float,
        unbiased: bool,
        *,
        normalize: bool = True,
        signal: bool = False,
        spread: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.scale = scale
        self.unbiased = unbiased
        self.normalize = normalize
        self.signal = signal
        self.register_buffer("spread", spread, persistent=False)
        self.factor = 1.0  # on a fixed scale, from outside

    def compare(self, sides: Sides) -> Tensor:
        if self.normalize:
            sides = sides.normalized()
        real, synthetic, groups = sides.real, sides.synthetic, sides.groups()
        scale: Tensor | float = self.factor * self.scale
        if self.sampler is not None:
            scale = self.sampler.scales()
            scale = scale.detach() if self.signal else ncfd.functional.gradient_reversal(scale)
        if self.spread is not None:
            scale = scale * self.spread
        per_class: Tensor = ncfd.functional.gaussian_ncfd(
            real, synthetic, scale, unbiased=self.unbiased, reduction="none", **groups
        )
        if self.signal and self.sampler is not None:
            gain = ncfd.functional.signal_discrepancy(
                real.detach(), synthetic.detach(), self.sampler(), reduction="none", **groups
            ).mean(1)
            per_class = per_class + (gain.detach() - gain)  # nothing but ψ's gradient
        return per_class[:, None]


class Matching(Criterion):
    """The loss of each class (C,): mean over frequencies and over the matched layers.

    Each layer has frequencies of its own. The first criterion is the last layer's.
    """

    def __init__(self, criteria: list[nn.Module], dims: list[int], unit: str = "length") -> None:
        super().__init__()
        self.criteria = nn.ModuleList(criteria)
        self.dims = dims
        self.unit = unit

    @property
    def samplers(self) -> list[Seeded]:
        """What draws the frequencies, for each layer; empty for a method without."""
        found = [getattr(criterion, "sampler", None) for criterion in self.criteria]
        return [sampler for sampler in found if sampler is not None]

    def mark(self) -> None:
        """Let `rewind` come back to here."""
        for sampler in self.samplers:
            sampler.mark()

    def rewind(self) -> None:
        """Let the next call see the frequencies that were drawn since `mark`."""
        for sampler in self.samplers:
            sampler.rewind()

    def set_factor(self, factor: float) -> None:
        """Multiply the scale of all frequencies."""
        for criterion in self.criteria:
            if isinstance(criterion, ExactDiscrepancy):
                criterion.factor = factor
        for sampler in self.samplers:
            sampler.factor = factor

    def _layers(self, sides: Sides) -> list[Sides]:
        """Both sides of each layer, the last layer first, in the unit of the scales."""
        # Side by side as the network gives them: the last layer last.
        sizes = self.dims[::-1]
        layers = zip(sides.real.split(sizes, 1), sides.synthetic.split(sizes, 1), strict=True)
        found = [sides.with_rows(*layer) for layer in layers][::-1]
        return found if self.unit == "length" else [in_median_unit(layer) for layer in found]

    def compare(self, sides: Sides) -> Tensor:
        layers = zip(self.criteria, self._layers(sides), strict=True)
        values = [criterion(**layer._asdict()).mean(1) for criterion, layer in layers]
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    @torch.no_grad()
    def signal(self, sides: Sides) -> Tensor:
        """J of each class (C,), by the last layer and its frequencies."""
        layer = self._layers(sides)[0]
        if self.unit == "length":
            layer = layer.normalized()
        t = self.samplers[0]()
        j: Tensor = ncfd.functional.signal_discrepancy(
            layer.real, layer.synthetic, t, reduction="none", **layer.groups()
        )
        return j.mean(1)


def in_median_unit(sides: Sides) -> Sides:
    """Rows of length 1 over the median distance between the real ones of their class."""
    x, y = sides.normalized()[:2]
    unit = inverse_median_distance(x, sides.real_groups, sides.num_groups)[:, None]
    return sides.with_rows(x * unit[sides.real_groups], y * unit[sides.synthetic_groups])


@torch.no_grad()
def share_at_bound(now: Seeded, start: Seeded, seed: int, max_ratio: float) -> float:
    """Share of the scales that have gone at least 95 % of the way to a bound, in its logarithm.

    Both draw the same numbers, so that a spread of the scales cancels.
    """
    now_and_then = []
    for sampler in (now, start):
        stream = make_generator(seed, "probe", device=sampler.generator.device)
        now_and_then.append(sampler.sampler.scales(generator=stream))
    way = (now_and_then[0] / now_and_then[1]).log().abs() / math.log(max_ratio)
    return (way > 0.95).float().mean().item()


def frequency_factor(config: Config, iteration: int) -> float:
    """Return what to multiply the scale of the frequencies by.

    Low frequencies tell distributions apart that are far from each other, high ones those that are
    close: `rising` goes from a quarter of the scale to all of it, evenly in its logarithm.
    """
    if config.frequency_schedule == "constant":
        return 1.0
    return float(4.0 ** (iteration / max(1, config.iterations - 1) - 1))


def make_matching(config: Config, dims: list[int]) -> Matching:
    """Return the loss of a method on layers of `dims` features, the last layer first."""
    criteria = []
    for layer, dim in enumerate(dims):
        sampler = make_sampler(config, dim, layer)
        criteria.append(make_criterion(config, sampler))
    unit = "length" if config.method == "dm" else config.scale_unit  # means have no scale
    return Matching(criteria, dims, unit)


def make_sampler(config: Config, dim: int, layer: int = 0) -> Seeded | None:
    """Return what draws the frequencies of a method: ψ, a fixed distribution, or nothing."""
    if config.method not in (*GAMES, "ncfm-fixed"):
        return None
    purpose: tuple[object, ...] = () if layer == 0 else ("layer", layer)
    # Layers take their initial weights from PyTorch's global generator: lend it a seed of ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_generator(config.seed, "sampler weights", *purpose).initial_seed())
        sampler = _law(config, dim)
    # On the device: a million normal numbers in each iteration are too many to bring there.
    draws = make_generator(config.seed, "frequencies", *purpose, device=config.device)
    return Seeded(sampler.to(config.device), draws)


def _law(config: Config, dim: int) -> nn.Module:
    """Return the law of the frequencies, learned where the method is a game."""
    count, scale = config.num_frequencies, config.scale
    bounds: dict[str, Any] = {"scale": scale, "max_ratio": config.max_ratio}
    spread = {"spread": config.spread}
    if config.sampler == "mixture":
        # The closed form uses the scales only, and costs the same again for each of them.
        components = min(4, count) if config.method == "ncfm-exact" else None
        return ncfd.FrequencySampler(
            dim,
            count,
            num_components=components,
            method=config.frequency_draw,
            fixed_norm=config.fixed_norm,
            **bounds,
            **spread,
        )
    if config.sampler == "direct":
        return NetworkFrequencies(dim, count, **bounds)
    if config.sampler == "diagonal":
        return ncfd.GaussianFrequencies(
            dim, count, learnable=True, method=config.frequency_draw, **bounds, **spread
        )
    law = LAWS[config.sampler](dim, count, scale=scale, method=config.frequency_draw, **spread)
    return SingleScale(law, config.max_ratio) if config.method in GAMES else law


def make_criterion(config: Config, sampler: Seeded | None) -> nn.Module:
    """Return the module whose (C, ·) values, averaged over the second dimension, are minimised."""
    if config.method == "dm":
        return MeanMatching()
    if config.method in ("mmd", "ncfm-exact"):
        spread = None
        if config.spread and config.sampler != "mixture":  # whose scales are spread themselves
            middles = (torch.arange(SPREAD_SCALES) + 0.5) / SPREAD_SCALES
            spread = (config.spread * torch.special.ndtri(middles)).exp()
            spread = spread[:, None].to(config.device)
        return ExactDiscrepancy(
            sampler,
            config.scale,
            config.loss == "unbiased",
            normalize=config.scale_unit == "length",
            signal=config.adversary == "signal",
            spread=spread,
        )
    assert sampler is not None
    return ncfd.NCFDLoss(
        sampler,
        alpha=config.alpha,
        normalize=config.scale_unit == "length",
        squared=config.loss != "root",
        unbiased=config.loss == "unbiased",
        adversary=config.adversary if config.method == "ncfm" else None,
        reduction="none",
    )


def require_finite(
    iteration: int, images: Tensor, criterion: Matching, class_names: list[str]
) -> None:
    """Raise FloatingPointError if a step has led to where no later one comes back from."""
    bad = ~images.detach().isfinite().flatten(1).all(1)
    if bad.any():
        ipc = len(images) // len(class_names)
        classes = dict.fromkeys(int(n) // ipc for n in bad.nonzero())
        names = ", ".join(class_names[c] for c in classes)
        raise FloatingPointError(
            f"iteration {iteration}: the images of class {names} are not finite. A smaller "
            "--lr-image often helps"
        )
    if not all(p.isfinite().all() for p in criterion.parameters()):
        raise FloatingPointError(
            f"iteration {iteration}: the weights of the frequencies are not finite. A smaller "
            "--sampler-lr often helps"
        )


def noise_floor(count: int) -> float:
    """Modulus below which φ of `count` samples is noise: 1/√N."""
    return 1 / math.sqrt(count)
