"""What the publication adds after the matching, off the headline: soft labels, fine-tuning."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from . import augmentation, formation, networks
from .chunks import Chunk
from .data import Data
from .options import Config
from .randomness import generator
from .zoo import Zoo


def soft_labels(
    data: Data, network: networks.ConvNet, zoo: Zoo, images: Tensor, factor: int
) -> Tensor:
    """Return (N·ρ², C) probabilities: what the trained members say on average."""
    pieces = []
    for stored in images.split(max(1, networks.AT_ONCE[images.device.type] // factor**2)):
        decoded = data.normalise(formation.decode(stored, factor))
        said = [
            networks.run_in_chunks(network, zoo.blend(k, 0.0), decoded)[1].softmax(1)
            for k in range(len(zoo))
        ]
        pieces.append(torch.stack(said).mean(0))
    return torch.cat(pieces)


def fine_tune(
    config: Config,
    data: Data,
    network: networks.ConvNet,
    zoo: Zoo,
    images: Tensor,
    labels: Tensor,
    factor: int,
) -> Tensor:
    """Move images (N, channels, H, W) a little further, on the cross-entropy alone.

    A tenth of the iterations, each under another trained member, at a tenth of the rate.
    """
    C = data.num_classes
    strategy = augmentation.MATCHING
    strategy = augmentation.for_digits(strategy) if data.name == "digits" else strategy
    images = images.clone().requires_grad_()
    images.grad = torch.zeros_like(images)
    optimizer = torch.optim.AdamW([images], lr=0.1 * config.lr_image * math.sqrt(C))
    stream = generator(config.seed, "fine-tuning")
    # One class at a time: the sum of the gradients is that of the mean over all images.
    parts = [Chunk(c, c + 1, len(images) // C) for c in range(C)]
    for _ in range(max(1, config.iterations // 10)):
        weights = zoo.blend(int(torch.randint(len(zoo), (), generator=stream)), 0.0)
        params = augmentation.draw(C, strategy, data.size, stream)
        params = augmentation.to(params, data.device)
        for part in parts:
            stored = images.detach()[part.rows].requires_grad_()
            decoded = data.normalise(formation.decode(stored, factor))
            y = labels[part.rows].repeat_interleave(factor**2)
            _, logits = networks.run(network, weights, augmentation.augment(decoded, params, y))
            (F.cross_entropy(logits, y) / C).backward()
            images.grad[part.rows] = stored.grad
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()
