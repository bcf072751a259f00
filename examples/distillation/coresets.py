"""Small sets chosen from the real images, for comparison with those that are made."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import networks
from .data import Data
from .networks import Weights


def herd(features: Tensor, count: int) -> Tensor:
    """Choose rows one after another, each so that the mean of those chosen comes closest.

        i_k = argmin_i || mean(x) - (x_{i_1} + ... + x_{i_{k-1}} + x_i) / k ||²

    Args:
        features: (N, D).
        count: rows to choose; more than N repeat the choice from its start.

    Returns:
        (count,) indices in the order of choice, each once before any comes again.

    Source: Welling, "Herding dynamical weights to learn", ICML 2009; in this form Rebuffi et al.,
    "iCaRL", CVPR 2017.
    """
    N = len(features)
    mean, squares = features.mean(0), features.square().sum(1)
    total = torch.zeros_like(mean)
    free = torch.ones(N, dtype=torch.bool, device=features.device)
    chosen: list[int] = []
    for k in range(1, min(count, N) + 1):
        # ||mean - (total + x)/k||², times k², without what is the same for every x.
        distance = squares - 2 * features @ (k * mean - total)
        best = int(torch.where(free, distance, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    rounds = -(-count // N)
    return torch.tensor((chosen * rounds)[:count], device=features.device)


def herding(data: Data, network: nn.Module, weights: Weights, ipc: int) -> tuple[Tensor, Tensor]:
    """Choose `ipc` training images of each class by their features in a trained network.

    Returns:
        Images (C·ipc, channels, H, W) in [0, 1] and labels (C·ipc,), class by class.
    """
    picks = []
    for c in range(data.num_classes):
        members = torch.nonzero(data.train_labels == c).flatten()
        features = [
            networks.run_in_chunks(network, weights, data.normalise(data.train_images[part]))[0]
            for part in members.split(4096)  # as floats, a class may be large
        ]
        # Rows of length 1, as in the matching.
        picks.append(members[herd(F.normalize(torch.cat(features), dim=1), ipc)])
    chosen = torch.cat(picks)
    return data.train_images[chosen].float() / 255, data.train_labels[chosen]
