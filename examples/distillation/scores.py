"""DD-Ranking's scores: what is left of an accuracy once labels and augmentation are discounted.

An accuracy by itself also rises with softer labels and stronger augmentation, for random images as
well. Both scores are therefore built from differences under one recipe, and lie between 0 and 1.

Source: Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025,
arXiv 2505.13300; its definitions: https://nus-hpc-ai-lab.github.io/DD-Ranking/introduction.html.
There the learning rate is tuned for the random images; here one recipe serves all sets.
"""

import math


def normalised(difference: float) -> float:
    """Map a weighted difference of accuracies in [-1, 1] to [0, 1]: (e^a - 1/e) / (e - 1/e)."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(
    *,
    distilled: float,
    random: float,
    full: float,
    distilled_hard: float | None = None,
    weight: float = 0.5,
) -> dict[str, float]:
    """Return the label-robust score and its two parts. Accuracies in percent.

        HLR = full - distilled_hard,  IOR = distilled - random,  a = w·IOR - (1-w)·HLR

    Args:
        distilled: by the recipe of the method, whatever labels it uses.
        random: real images, the same number of them by the same recipe.
        full: the whole training part with hard labels.
        distilled_hard: with hard labels. Default: `distilled`, which then has them.
        weight: w in [0, 1].

    Returns:
        `score` in [0, 1], `hard_label_recovery` and `improvement_over_random` in points.
    """
    hard = distilled if distilled_hard is None else distilled_hard
    recovery, improvement = full - hard, distilled - random
    a = (weight * improvement - (1 - weight) * recovery) / 100
    return {
        "score": normalised(a),
        "hard_label_recovery": recovery,
        "improvement_over_random": improvement,
    }


def augmentation_robust(
    *,
    distilled: float,
    random: float,
    distilled_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> dict[str, float]:
    """Return the augmentation-robust score and its two parts. Accuracies in percent.

        b = w·(distilled - random) + (1-w)·(distilled_plain - random_plain)

    Args:
        distilled: with augmentation.
        random: real images, the same number of them, with augmentation.
        distilled_plain: without any.
        random_plain: without any.
        weight: w in [0, 1].

    Returns:
        `score` in [0, 1], `with_augmentation` and `without_augmentation` in points.
    """
    augmented, plain = distilled - random, distilled_plain - random_plain
    b = (weight * augmented + (1 - weight) * plain) / 100
    return {
        "score": normalised(b),
        "with_augmentation": augmented,
        "without_augmentation": plain,
    }
