"""Two views of each row have one embedding; variances and covariances keep it from collapsing."""

import torch
from torch import nn


def spread(z):
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    off = covariance - torch.diag(covariance.diagonal())
    return (1 - deviation).relu().mean() + off.square().sum() / len(off)


def main(steps=150):
    encoder = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        rows = torch.randn(128, 10)
        views = torch.stack([rows + 0.3 * torch.randn_like(rows) for _ in range(2)])
        z = encoder(views)  # (V, N, D)
        invariance = (z[0] - z[1]).square().mean()
        regulariser = torch.stack([spread(view) for view in z]).mean()
        loss = invariance + regulariser
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, z.detach().flatten(0, 1)
