"""Sums at multiples of one step, from one cosine and one sine of each projection."""

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ncfd import ops


def truth(s: Tensor, step: float, nodes: int, weights: Tensor | None) -> Tensor:
    """``Σ_n w_n exp(i j h s_n)``, ``(*, J, K)``, each by itself in complex128."""
    j = np.arange(1, nodes + 1).reshape(-1, 1, 1)
    waves = np.exp(1j * j * step * s.detach().double().numpy()[..., None, :, :])  # (*, J, N, K)
    if weights is not None:
        w = weights.double().numpy()
        waves = waves * (w[..., None, :, None] if w.ndim < s.ndim else w[..., None, :, :])
    return torch.from_numpy(waves.sum(-2))


@pytest.mark.parametrize("nodes", [1, 2, 3, 16, 17, 64])
@pytest.mark.parametrize("weighted", ["", "rows", "each"])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_sums_are_those_of_the_nodes(nodes: int, weighted: str, batch: tuple[int, ...]) -> None:
    s = 2 * normal(1, *batch, 13, 5)
    shapes = {"": None, "rows": (*batch, 13), "each": (*batch, 13, 5)}
    weights = None if shapes[weighted] is None else normal(2, *shapes[weighted]).abs()
    found = torch.complex(*ops.ray_sums(s, 0.3, nodes, weights))
    torch.testing.assert_close(found, truth(s, 0.3, nodes, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-4, 1.0, np.pi, 30.0, 1000.0])
def test_float32_loses_one_rounding_a_node(size: float) -> None:
    """Against the same float32 projections: what is lost is the recurrence's."""
    s = (size * (1 + 1e-3 * normal(1, 1, 400))).float().reshape(400, 1)
    for nodes in (16, 64):
        found = torch.complex(*ops.ray_sums(s, 1.0, nodes)) / 400
        error = (found - truth(s, 1.0, nodes, None) / 400).abs().max().item()
        # At most j roundings of a unit vector, and of one angle in its own size.
        assert error <= 2 * nodes * 6e-8, (nodes, error)


@pytest.mark.parametrize("rows", [1000, 2500])
def test_long_lines_are_added_in_blocks(rows: int) -> None:
    s = normal(1, rows, 3).float()
    found = torch.complex(*ops.ray_sums(s, 0.2, 16)) / rows
    torch.testing.assert_close(
        found.to(torch.complex128), truth(s, 0.2, 16, None) / rows, rtol=0, atol=2e-6
    )


def test_derivatives_are_those_of_differences() -> None:
    s, w = normal(1, 4, 2).requires_grad_(), normal(2, 4).abs().requires_grad_()
    assert gradcheck(lambda s, w: ops.ray_sums(s, 0.4, 5, w), (s, w))
    assert gradgradcheck(lambda s, w: ops.ray_sums(s, 0.4, 5, w), (s, w))


def test_it_maps_and_compiles() -> None:
    s, w = normal(1, 3, 6, 2), normal(2, 6).abs()
    whole = ops.ray_sums(s, 0.4, 5, w.expand(3, 6))
    mapped = torch.vmap(lambda v: ops.ray_sums(v, 0.4, 5, w))(s)
    torch.testing.assert_close(mapped, whole)
    compiled = torch.compile(lambda v: ops.ray_sums(v, 0.4, 5), fullgraph=True)
    torch.testing.assert_close(compiled(s), ops.ray_sums(s, 0.4, 5))
    grad = torch.func.grad(lambda v: ops.ray_sums(v, 0.4, 5)[0].square().sum())(s)
    leaf = s.clone().requires_grad_()
    ops.ray_sums(leaf, 0.4, 5)[0].square().sum().backward()
    torch.testing.assert_close(grad, leaf.grad)
