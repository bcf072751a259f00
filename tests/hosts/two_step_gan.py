"""A generator against a critic that steps apart, on minus the distance: the root of an MMD."""

import torch
from torch import nn


def distance(x, y):
    rows = torch.cat([x, y])
    square = (rows[:, None] - rows).square().sum(-1)
    kernel = sum(torch.exp(-square / (2 * width**2)) for width in (1, 2, 4))
    n = len(x)
    squared = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return torch.sqrt(squared.relu() + 1e-8)


def sample(n):
    return torch.randn(n, 2) + torch.tensor([2.0, 0.0]) * torch.randn(n, 1).sign()


def main(steps=60):
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 8), nn.Tanh())
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-3)
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        real = sample(64)
        fake = generator(torch.randn(64, 4)).detach()
        loss_d = -distance(critic(real), critic(fake))
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        fake = generator(torch.randn(64, 4))
        loss_g = distance(critic(real), critic(fake))
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        losses.append(loss_g.item())
    return losses, generator(torch.randn(512, 4)).detach()
