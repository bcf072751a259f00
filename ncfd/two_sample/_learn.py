"""Frequencies learned from a part of the samples that is not tested.

Letters: D features, F frequencies, C candidates, J of them chosen, n samples of both sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncfd import ops
from ncfd.two_sample._arguments import Options
from ncfd.two_sample._frequencies import DEFAULT_FREQUENCIES, SCALES, median_distance, normal
from ncfd.two_sample._sums import moments, pairs_of, unbiased

_LEARN_FREQUENCIES = 128
_LEARN_STEPS = 60
_LEARN_RATE = 0.1
_LEARN_ROWS = 5000
_LEARN_RANGE = 20.0
# Added to the covariance, relative to its diagonal: features that nearly repeat each other would
# otherwise look infinitely telling.
_RIDGE = 0.01


def learn(x: Tensor, y: Tensor, options: Options, generator: torch.Generator) -> Tensor:
    """Frequencies for telling samples like these apart: ``(F, D)``.

    Learned is one scale σ per feature, ``t = σ ⊙ ε``: few numbers, so that little noise is learned
    along. For ``"chi2"`` the F best of many such frequencies are taken, else fresh ones.
    """
    choose = options.method == "chi2"
    F = options.num_frequencies or (min(5, 2 * x.shape[1]) if choose else DEFAULT_FREQUENCIES)
    scale = options.scale
    unit = scale if scale is not None else 1 / median_distance(x, y, generator)
    # Their own: what is chosen must not depend on the samples that are tested.
    center = torch.cat([x, y]).median(0).values
    with torch.inference_mode(False), torch.enable_grad():
        # In units of the median distance; the ascent then has one step size for all problems.
        # One value far out would have all the slope.
        x, y = (
            ((side[:_LEARN_ROWS] - center) * unit).clamp(-_LEARN_RANGE, _LEARN_RANGE)
            for side in (x, y)
        )
        noise = normal(_LEARN_FREQUENCIES, x, generator)
        start = max(SCALES, key=lambda s: _signal_to_noise(x, y, s * noise).item())
        log_scale = x.new_full((x.shape[1],), start).log().requires_grad_()
        optimizer = torch.optim.Adam([log_scale], lr=_LEARN_RATE, maximize=True)
        with x.device:  # PyTorch 2.5 counts steps on the default device, whatever that is
            for _ in range(_LEARN_STEPS):
                value = _signal_to_noise(x, y, log_scale.exp() * noise)
                (log_scale.grad,) = torch.autograd.grad(value, log_scale)
                optimizer.step()
    learned = log_scale.detach().exp()
    if choose:
        candidates = learned * noise
        # Ever lower frequencies compare means ever better, but not apart from each other: whitening
        # needs phases that spread, half a radian in the median.
        spread = (torch.cat([x, y]) @ candidates.T).std(0).median()
        candidates = candidates * (0.5 / spread.clamp(min=1e-6)).clamp(min=1.0)
        return candidates[_greedy(x, y, candidates, F)] * unit
    return learned * normal(F, x, generator) * unit


def _signal_to_noise(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Unbiased discrepancy over its standard deviation when there is a difference.

    The discrepancy is to first order a difference of means of the witness function over the two
    sets, so its variance is that of the witness.
    """
    features = [torch.cat(ops.features(side, t), 1) for side in (x, y)]
    means = [f.mean(0) for f in features]
    gap = means[0] - means[1]
    F = len(t)
    phi_x, phi_y = ((m[:F], m[F:]) for m in means)
    spread_x, spread_y = (((f @ gap) / F).var() / len(f) for f in features)
    # The floor is what chance leaves of the variance where there is no difference.
    floor = (1 / len(x) + 1 / len(y)) ** 2 / F
    return unbiased(phi_x, phi_y, len(x), len(y)).mean() / (spread_x + spread_y + floor).sqrt()


def _greedy(x: Tensor, y: Tensor, candidates: Tensor, J: int) -> Tensor:
    """Indices of J candidates, each the best addition to those before it.

    The gain of a candidate is its ``g' Σ^-1 g`` after what the chosen ones explain is taken out of
    gap and covariance: a Schur complement for each choice.
    """
    C = len(candidates)
    n = len(x) + len(y)
    (mean_x, cov_x), (mean_y, cov_y) = moments(x, candidates), moments(y, candidates)
    # Where all phases are nearly equal (|φ|² above 0.95), only means differ, to the last digits.
    blind = (0.5 * (mean_x + mean_y)).reshape(2, C).square().sum(0) > 0.95
    gap = mean_x - mean_y
    covariance = cov_x * (n / len(x)) + cov_y * (n / len(y))
    scale = covariance.diagonal().clamp(min=1e-12).sqrt()
    gap, covariance = gap / scale, covariance / (scale * scale.unsqueeze(1))
    covariance = covariance + _RIDGE * torch.eye(2 * C, dtype=gap.dtype, device=gap.device)
    chosen: list[int] = []
    for _ in range(min(J, C)):
        pair, own = pairs_of(gap, covariance)
        gain = (pair.mT @ torch.linalg.solve(own, pair)).flatten()
        gain[blind] = -1.0
        gain[chosen] = -2.0
        best = int(gain.argmax())
        chosen.append(best)
        columns = covariance[:, [best, best + C]]  # (2C, 2)
        explained = torch.linalg.solve(covariance[[best, best + C]][:, [best, best + C]], columns.T)
        gap = gap - explained.T @ gap[[best, best + C]]
        covariance = covariance - columns @ explained
        # A chosen one explains itself; its ridge keeps the later solves regular.
        for i in (best, best + C):
            covariance[i, i] += 1.0
    return torch.tensor(chosen, device=x.device)
