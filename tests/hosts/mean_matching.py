"""Distillation by mean matching: class by class, a new network in each step, SGD on the pixels."""

import torch
from torch import nn

CLASSES, PER_CLASS = 3, 4


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(16, 16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    )


def real_images():
    """Blobs, at a place of its own for each class, of two sizes: ``(CLASSES, 64, 1, 8, 8)``."""
    grid = torch.arange(8.0)
    place = torch.rand(CLASSES, 64, 2, 1) + torch.arange(CLASSES)[:, None, None, None] * 2.0 + 1
    width = torch.where(torch.rand(CLASSES, 64, 1) < 0.5, 0.7, 2.0)
    row, column = (torch.exp(-(((grid - place[:, :, k]) / width) ** 2)) for k in range(2))
    return (row[..., None] * column[..., None, :]).unsqueeze(2)


def main(steps=40):
    real = real_images()
    images = real[:, :PER_CLASS].clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    losses = []
    for _ in range(steps):
        embed = network()
        loss = torch.tensor(0.0)
        for c in range(CLASSES):
            target = embed(real[c]).detach()
            features = embed(images[c])
            loss = loss + torch.sum((target.mean(0) - features.mean(0)) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (images - real[:, :PER_CLASS]).norm() / images.norm()
