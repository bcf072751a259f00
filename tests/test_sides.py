"""Both sides in one step of the graph: the same as each side alone."""

import pytest
import torch
from strategies import normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ncfd import ops
from ncfd.functional import ncfd_loss

N, M, D, F, G = 6, 5, 3, 4, 3


def problem(kind: str) -> tuple[ops.Side, ops.Side, Tensor, int | None]:
    """Two sides in float64, all differentiable."""
    batch = (2,) if kind in ("batch", "own t") else ()
    x, y = normal(1, *batch, N, D), normal(2, *batch, M, D)
    t = normal(3, *(batch if kind == "own t" else ()), F, D)
    weights: list[Tensor | None] = [None, None]
    groups: list[Tensor | None] = [None, None]
    if kind in ("weighted", "grouped"):
        weights = [torch.linspace(0.5, 2, n, dtype=torch.float64) for n in (N, M)]
    if kind == "grouped":
        groups = [torch.arange(n) % G for n in (N, M)]
    for leaf in (x, y, t, *weights):
        if leaf is not None:
            leaf.requires_grad_()
    sides = [ops.Side(v, w, g) for v, w, g in zip((x, y), weights, groups, strict=True)]
    return sides[0], sides[1], t, G if kind == "grouped" else None


def leaves_of(x: ops.Side, y: ops.Side, t: Tensor) -> list[Tensor]:
    return [v for v in (x.x, x.weights, y.x, y.weights, t) if v is not None and v.requires_grad]


KINDS = ("few", "many", "batch", "own t", "weighted", "grouped")
every_kind = pytest.mark.parametrize("kind", KINDS)


def choose(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`few` takes the way for small batches, everything else the general one."""
    if kind != "few":
        monkeypatch.setitem(ops.BUDGET, "few", 0)


@every_kind
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("fixed", ["", "x", "t", "x and t"])
def test_both_sides_equal_each_alone(
    kind: str, chunk_size: int | None, fixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(kind, monkeypatch)
    x, y, t, count = problem(kind)
    if "x" in fixed:
        x = ops.Side(x.x.detach(), None if x.weights is None else x.weights.detach(), x.groups)
    t = t.detach() if "t" in fixed else t
    together = [v for pair in ops.sums_of([x, y], t, count, chunk_size) for v in pair]
    apart = [v for side in (x, y) for v in ops.sums_of([side], t, count, chunk_size)[0]]
    factors = [normal(k, *v.shape) for k, v in enumerate(together)]
    slopes = []
    for sums in (together, apart):
        total = sum((a * b).sum() for a, b in zip(sums, factors, strict=True))
        slopes.append(torch.autograd.grad(total, leaves_of(x, y, t)))
    # Cosines and sines directly or from tan(θ/2): a few roundings of float64, over six samples.
    for a, b in zip((*together, *slopes[0]), (*apart, *slopes[1]), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert [v.requires_grad for v in together] == [v.requires_grad for v in apart]


@every_kind
def test_one_buffer_over_many_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(kind, monkeypatch)
    x, y, t, count = problem(kind)
    found = []
    for size in (2**20, 2 * F * 8):  # all at once; two rows at a time
        for name in ("block_small_dim", "block_large_dim", "piece"):
            monkeypatch.setitem(ops.BUDGET, name, size)
        pairs = ops.sums_of([x, y], t, count)
        total = sum((v * normal(k, *v.shape)).sum() for k, v in enumerate(sum(pairs, ())))
        found.append(torch.autograd.grad(total, leaves_of(x, y, t)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@every_kind
def test_both_sides_are_twice_differentiable(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(kind, monkeypatch)
    x, y, t, count = problem(kind)
    leaves = leaves_of(x, y, t)

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        return sum(ops.sums_of([x, y], t, count), ())

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("kind", ["few", "many"])
@pytest.mark.parametrize("used", range(4))
def test_a_single_sum_is_enough(kind: str, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(kind, monkeypatch)
    x, y, t, _ = problem(kind)
    together = sum(ops.sums_of([x, y], t), ())[used].sum()
    alone = ops.sums_of([(x, y)[used // 2]], t)[0][used % 2].sum()
    leaf = (x, y)[used // 2].x
    for a, b in zip(
        torch.autograd.grad(together, (leaf, t)), torch.autograd.grad(alone, (leaf, t)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["few", "many"])
def test_batched_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(kind, monkeypatch)
    x, y, t, _ = problem(kind)
    value = ncfd_loss(x.x, y.x, t, reduction="none")
    rows = torch.eye(F, dtype=torch.float64)
    batched = torch.autograd.grad(
        value, (x.x, y.x, t), rows, is_grads_batched=True, retain_graph=True
    )
    for f in range(F):
        single = torch.autograd.grad(value, (x.x, y.x, t), rows[f], retain_graph=True)
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a[f], b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("same_number", [True, False])
def test_root_in_one_step_equals_the_plain_form(same_number: bool) -> None:
    # One frequency where both φ agree, t = 0: the root's slope is infinite there, and taken as 0.
    x, y, t, _ = problem("few")
    y_samples = (normal(5, N, D) if same_number else y.x.detach()).requires_grad_()
    t = torch.cat([t.detach(), torch.zeros(1, D, dtype=torch.float64)]).requires_grad_()
    leaves = (x.x, y_samples, t)
    ones = [torch.ones(len(v), dtype=torch.float64) for v in leaves[:2]]

    def plain() -> Tensor:  # weights, all one, take the plain form
        return ncfd_loss(x.x, y_samples, t, x_weights=ones[0], y_weights=ones[1])

    def penalty(value: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum(v.square().sum() for v in first), leaves)
        return first, second

    one, other = ncfd_loss(*leaves), plain()
    torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    for a, b in zip(penalty(one), penalty(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
