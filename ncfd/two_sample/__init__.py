"""Were two sets of samples drawn from one distribution? Tests built on characteristic functions.

The way of a call: arguments, frequencies (default or learned), one of two tests, the reasons, the
result. Each is a file of its own; this one holds the public function.

Letters: N and M samples, n = N + M, D features, F frequencies, B permutations, J learned
frequencies.
"""

from __future__ import annotations

from typing import Literal

from ncfd._arrays import Samples
from ncfd.two_sample._arguments import (
    Options,
    both_sides,
    check_options,
    check_sizes,
    given_frequencies,
    make_generator,
    split,
)
from ncfd.two_sample._chi2 import chi2
from ncfd.two_sample._frequencies import default_frequencies
from ncfd.two_sample._learn import learn
from ncfd.two_sample._permutation import permutation
from ncfd.two_sample._reasons import explain
from ncfd.two_sample._result import TwoSampleTestResult
from ncfd.two_sample._sums import phi_of_both
from ncfd.two_sample._unit import in_callers_unit, in_own_unit

__all__ = ["TwoSampleTestResult", "two_sample_test"]


def two_sample_test(
    x: Samples,
    y: Samples,
    *,
    frequencies: Samples | None = None,
    method: Literal["permutation", "chi2"] = "permutation",
    n_permutations: int = 999,
    learn_frequencies: bool = False,
    seed: int | None = None,
    num_frequencies: int | None = None,
    scale: float | None = None,
    learn_fraction: float = 0.5,
) -> TwoSampleTestResult:
    r"""Test whether two sets of samples come from one distribution.

    ``"permutation"`` compares the unbiased ``½|φx - φy|²`` with its values after the samples are
    assigned to the two sides at random, B times:

    .. math:: p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B}

    It is valid for any distribution, sample size and frequencies: the rejection rate under the
    hypothesis is at most the level. All permutations together are one product of 0/1 labels with
    the cosines and sines, taken in blocks of bounded memory. By default the frequencies are normal
    with standard deviations 1, 2 and 4 over the median distance of the samples, and T is the
    largest of the three standardised discrepancies.

    ``"chi2"`` whitens the differences of cosines and sines with their estimated covariance,

    .. math:: W = n\, g^\top \hat\Sigma^+ g \;\sim\; \chi^2_{\mathrm{rank}\,\hat\Sigma}

    It needs no permutations, but is right only for large samples: use it when each side has some
    hundred or more. In one dimension with default frequencies (0.4 and 0.8 over half the
    interquartile range, and the correction for fewer than 25 samples) it is the Epps-Singleton
    test of ``scipy.stats.epps_singleton_2samp``. In D dimensions the same two frequencies are
    taken along random orthogonal directions, and W is multiplied by ``(n - 2F - 3)/(n - 2)``,
    which makes its mean that of χ² for normal features (Hotelling).

    With ``learn_frequencies=True`` a random part of both sets serves to learn one frequency scale
    per feature, by ascent of the discrepancy over its standard deviation (for ``"chi2"`` followed
    by a choice of the best J), and only the rest is tested. The rest is independent of the choice,
    so both methods stay as valid as with frequencies given beforehand. It pays where few of many
    features differ; elsewhere the samples it costs are worth more.

    The unit of the samples does not matter, at any magnitude that their dtype holds, and one absurd
    value (1e20 where a number was missing) is one row like another: the samples are taken less
    their median, by feature, and over a median of their distances from it.

    Args:
        x: samples ``(N, D)`` or ``(N,)``, real, finite: a tensor, or anything of which
            ``numpy.asarray`` makes a numeric array (lists, columns, frames). Of a masked array the
            rows without a masked value are tested. N >= 2; 5 for ``"chi2"``.
        y: samples ``(M, D)`` or ``(M,)``, likewise.
        frequencies: ``(F, D)``, or ``(F,)`` if D = 1, in radians per unit of the samples; used as
            they are. Default: see above.
        method: ``"permutation"`` or ``"chi2"``.
        n_permutations: B, at least 1. The smallest p-value is 1/(1 + B).
        learn_frequencies: see above.
        seed: of frequencies, split and permutations. Default: a new one, kept in the result.
        num_frequencies: F. Default: 384 for permutations; for ``"chi2"`` 2 in one dimension, two
            along each of up to 16 directions in more, fewer for small sets, and 5 if
            learned (2 in one dimension).
        scale: the unit of default frequencies, instead of 1/median distance or 2/interquartile
            range.
        learn_fraction: part of each set that serves to learn, in (0, 1).

    Returns:
        A :class:`TwoSampleTestResult` with ``statistic``, ``pvalue`` and the reasons.

    Raises:
        TypeError: an argument of the wrong type, or no numbers.
        ValueError: shapes that do not fit, too few samples, NaN or infinite samples, options that
            contradict each other.

    Warns:
        RuntimeWarning: the covariance of ``"chi2"`` is singular (discrete samples, or repeated
            frequencies).

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g)
        >>> two_sample_test(x, y, seed=0).pvalue > 0.05
        True
        >>> result = two_sample_test(x, y + torch.tensor([1.0, 0.0]), seed=0)
        >>> result.pvalue, round(result.direction.abs()[0].item(), 1)
        (0.001, 1.0)

    Source: Epps & Singleton, *An omnibus test for the two-sample problem using the empirical
    characteristic function*, J. Stat. Comput. Simul. 26 (1986); Sutherland et al.,
    *Generative models and model criticism via optimized maximum mean discrepancy*, ICLR 2017;
    Chwialkowski et al., *Fast two-sample testing with analytic representations of probability
    measures*, NIPS 2015; Phipson & Smyth, *Permutation
    p-values should never be zero*, Stat. Appl. Genet. Mol. Biol. 9 (2010).
    """
    options = Options(
        method, n_permutations, learn_frequencies, num_frequencies, scale, learn_fraction
    )
    options = check_options(options, given=frequencies is not None)
    generator, seed = make_generator(seed)
    x, y, unit = in_own_unit(*both_sides(x, y))
    options = options.in_unit(unit)

    n_learn, blocks = 0, 1
    if options.learn:
        (x_learn, x), (y_learn, y) = (
            split(side, options.learn_fraction, name, generator)
            for name, side in (("x", x), ("y", y))
        )
        n_learn = len(x_learn) + len(y_learn)
        t = learn(x_learn, y_learn, options, generator)
    check_sizes(x, y, method)
    if frequencies is not None:
        t = given_frequencies(frequencies, x, unit)
    elif not options.learn:
        t, blocks = default_frequencies(x, y, options, generator)
    phi = phi_of_both(x, y, t)
    if method == "permutation":
        found = permutation(x, y, t, blocks, options.n_permutations, generator)
    else:
        found = chi2(x, y, t)
    return TwoSampleTestResult(
        statistic=found.statistic,
        pvalue=found.pvalue,
        method=method,
        n_x=len(x),
        n_y=len(y),
        n_learn=n_learn,
        n_permutations=options.n_permutations if method == "permutation" else None,
        degrees_of_freedom=found.degrees_of_freedom,
        null_quantiles=found.null_quantiles,
        frequencies=in_callers_unit(t, unit),
        contributions=found.contributions,
        **explain(x, y, t, phi, found, generator),
        seed=seed,
    )
