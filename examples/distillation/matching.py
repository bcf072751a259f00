"""What the methods minimise: modules with one call, and a loss for each class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ncfd

from .options import GAMES, Config
from .randomness import generator as make_generator


class Seeded(nn.Module):
    """A frequency sampler that draws from a generator of its own."""

    def __init__(self, sampler: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.sampler = sampler
        self.generator = generator

    def forward(self) -> Tensor:
        t: Tensor = self.sampler(generator=self.generator)
        return t

    def scales(self) -> Tensor:
        scales: Tensor = self.sampler.scales(generator=self.generator)
        return scales


class MeanMatching(nn.Module):
    """Squared distance of the class means, (C, 1). Rows are normalised as for the others."""

    def forward(
        self,
        real: Tensor,
        synthetic: Tensor,
        *,
        real_groups: Tensor,
        synthetic_groups: Tensor,
        num_groups: int,
    ) -> Tensor:
        means = []
        for x, groups in ((real, real_groups), (synthetic, synthetic_groups)):
            x = F.normalize(x, dim=1)
            total = x.new_zeros(num_groups, x.shape[1]).index_add(0, groups, x)
            count = torch.bincount(groups, minlength=num_groups)
            means.append(total / count[:, None])
        return (means[0] - means[1]).square().sum(1, keepdim=True)


class ExactDiscrepancy(nn.Module):
    """The limit of infinitely many frequencies, squared, (C, 1).

    With a sampler its scales are learned: the gradient reversal makes them raise the loss.
    Without one this is a Gaussian kernel MMD.
    """

    def __init__(self, sampler: Seeded | None, scale: float, unbiased: bool) -> None:
        super().__init__()
        self.sampler = sampler
        self.scale = scale
        self.unbiased = unbiased

    def forward(
        self,
        real: Tensor,
        synthetic: Tensor,
        *,
        real_groups: Tensor,
        synthetic_groups: Tensor,
        num_groups: int,
    ) -> Tensor:
        scale: Tensor | float = self.scale
        if self.sampler is not None:
            scale = ncfd.functional.gradient_reversal(self.sampler.scales())
        per_class: Tensor = ncfd.functional.gaussian_ncfd(
            F.normalize(real, dim=1),
            F.normalize(synthetic, dim=1),
            scale,
            unbiased=self.unbiased,
            reduction="none",
            x_groups=real_groups,
            y_groups=synthetic_groups,
            num_groups=num_groups,
        )
        return per_class[:, None]


def make_sampler(config: Config, dim: int) -> Seeded | None:
    """Return what draws the frequencies of a method: ψ, a fixed distribution, or nothing."""
    if config.method not in (*GAMES, "ncfm-fixed"):
        return None
    # Layers take their initial weights from PyTorch's global generator: lend it a seed of ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_generator(config.seed, "sampler weights").initial_seed())
        sampler: nn.Module
        if config.method in GAMES:
            # The closed form uses the scales only, and costs the same again for each of them.
            exact = config.method == "ncfm-exact"
            sampler = ncfd.FrequencySampler(
                dim,
                config.num_frequencies,
                num_components=min(4, config.num_frequencies) if exact else None,
                scale=config.scale,
                max_ratio=config.max_ratio,
            )
        else:
            sampler = ncfd.GaussianFrequencies(dim, config.num_frequencies, scale=config.scale)
    # On the device: a million normal numbers in each iteration are too many to bring there.
    draws = make_generator(config.seed, "frequencies", device=config.device)
    return Seeded(sampler.to(config.device), draws)


def make_criterion(config: Config, sampler: Seeded | None) -> nn.Module:
    """Return the module whose (C, ·) values, averaged over the second dimension, are minimised."""
    if config.method == "dm":
        return MeanMatching()
    if config.method in ("mmd", "ncfm-exact"):
        return ExactDiscrepancy(sampler, config.scale, config.loss == "unbiased")
    assert sampler is not None
    return ncfd.NCFDLoss(
        sampler,
        alpha=config.alpha,
        normalize=True,
        squared=config.loss != "root",
        unbiased=config.loss == "unbiased",
        adversarial=config.method == "ncfm",
        reduction="none",
    )


def noise_floor(count: int) -> float:
    """Modulus below which φ of `count` samples is noise: 1/√N."""
    return 1 / math.sqrt(count)
