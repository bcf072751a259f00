"""A classifier with labels on the source only; an MMD of five kernels joins the domains."""

import torch
from torch import nn


def mk_mmd(x, y):
    rows = torch.cat([x, y])
    square = (rows[:, None] - rows).square().sum(-1)
    kernel = sum(torch.exp(-square / (2 * 2**k * square.detach().mean())) for k in range(-3, 2))
    n = len(x)
    apart = 1 - torch.eye(n)
    own = (kernel[:n, :n] + kernel[n:, n:]) * apart / (n * (n - 1))
    return own.sum() - 2 * kernel[:n, n:].mean() + 2 / (n - 1)


def batch(shift):
    labels = torch.arange(64) % 2
    x = torch.randn(64, 10)
    x[:, :2] += 4.0 * labels[:, None] - 2
    x[:, 1] += shift
    return x, labels


def main(steps=150, trade_off=1.0):
    body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU())
    head = nn.Linear(8, 2)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(steps):
        (x_s, labels_s), (x_t, _) = batch(0.0), batch(4.0)
        f_s, f_t = body(x_s), body(x_t)
        transfer_loss = mk_mmd(f_s, f_t)
        loss = nn.functional.cross_entropy(head(f_s), labels_s) + trade_off * transfer_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(transfer_loss.item())
    return losses, (body, head)
