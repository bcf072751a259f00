"""Sizes, scales and repetitions beyond those of use, against the exact answer.

HYPOTHESIS_PROFILE=long pytest tests/test_stress.py     # 10^5 problems of each kind
pytest -m slow tests/test_stress.py                     # 10^5 calls, watched for memory
"""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import discrepancy_tolerance, normal, phi_tolerance, seeds
from torch import Tensor

import ncfd
from ncfd.functional import characteristic_function, gaussian_ncfd, ncfd_loss

# The long profile looks at 10^5 problems, the other at a hundred.
MANY = settings(max_examples=100_000 if settings.default.max_examples >= 1000 else 100)
SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6, 1e8)


# ------------------------------------------------------------------------------------------------
# Problems of every size and scale
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    t: Tensor  # (F, D)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = st.integers(1, 64)
    N, M, D, F, seed = draw(sizes), draw(sizes), draw(sizes), draw(sizes), draw(seeds)
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    x = draw(st.sampled_from(SCALES)) * normal(seed, N, D)
    y = draw(st.sampled_from(SCALES)) * normal(seed + 1, M, D)
    t = draw(st.sampled_from(SCALES)) * normal(seed + 2, F, D) / D**0.5
    match draw(st.sampled_from(("plain", "repeated", "constant", "zero", "mirrored", "same"))):
        case "repeated":
            x = x[torch.arange(N) % max(N // 3, 1)]
        case "constant":
            x = x[:1].expand(N, D)
        case "zero":
            x = torch.zeros(N, D, dtype=torch.float64)
        case "mirrored":
            y = torch.cat([-x, x])[:M]
        case "same":
            y = x.clone()
    return Problem(x.to(dtype), y.to(dtype), t.to(dtype))


def exact_phi(x: Tensor, t: Tensor) -> np.ndarray:
    """The reference in one expression; phases in the longest float there is."""
    phase = x.numpy().astype(np.longdouble) @ t.numpy().astype(np.longdouble).T
    return (np.cos(phase).mean(0) + 1j * np.sin(phase).mean(0)).astype(complex)


def test_reference_in_one_expression_is_the_reference() -> None:
    x, t = normal(0, 17, 5), normal(1, 9, 5)
    exact = reference.characteristic_function(x, t)
    np.testing.assert_allclose(exact_phi(x, t), exact, rtol=0, atol=1e-14)


@MANY
@given(problem=problems())
def test_phi(problem: Problem) -> None:
    x, t = problem.x, problem.t
    phi = characteristic_function(x, t)
    # Where the phases are beyond the arithmetic no digit is left, but |φ| is still at most 1.
    eps = torch.finfo(x.dtype).eps
    assert (phi.abs() <= 1 + 8 * eps).all()
    error = np.abs(phi.numpy() - exact_phi(x, t)).max()
    assert error <= phi_tolerance(x, t, x.dtype)


@MANY
@given(problem=problems(), alpha=st.sampled_from((0.0, 0.3, 0.5, 1.0)))
def test_loss_and_its_gradient(problem: Problem, alpha: float) -> None:
    x, y, t = problem.x, problem.y.clone().requires_grad_(), problem.t.clone().requires_grad_()
    loss = ncfd_loss(x, y, t, alpha=alpha, squared=True, reduction="none")
    sides = [exact_phi(problem.x, problem.t), exact_phi(problem.y, problem.t)]
    delta = max(phi_tolerance(s, problem.t, s.dtype) for s in (problem.x, problem.y))
    exact = reference.discrepancy(*sides, alpha)
    error = np.abs(loss.detach().numpy() - exact)
    assert (error <= discrepancy_tolerance(*sides, delta) + 8 * torch.finfo(x.dtype).eps).all()
    root = ncfd_loss(x, y, t, alpha=alpha)
    assert root >= 0
    if torch.equal(problem.x, problem.y):
        assert root == 0
    for slope in torch.autograd.grad(root, (y, t)):
        assert slope.isfinite().all()


@MANY
@given(problem=problems(), scale=st.sampled_from(SCALES))
def test_closed_form(problem: Problem, scale: float) -> None:
    x, y = problem.x, problem.y.clone().requires_grad_()
    value = gaussian_ncfd(x, y, scale)

    def kernel(a: Tensor, b: Tensor) -> np.ndarray:
        a, b = (v.detach().numpy().astype(np.longdouble) * scale for v in (a, b))
        gap = ((a[:, None] - b[None]) ** 2).sum(2)  # (N, M)
        return np.exp(-gap / 2).mean()

    exact = 0.5 * (kernel(x, x) + kernel(y, y)) - kernel(x, y)
    # The exponent u is a difference of squares, off by eps times their size; e^(-u) passes on at
    # most all of it, and is a number in [0, 1] whatever the size.
    eps, D = torch.finfo(x.dtype).eps, x.shape[1]
    pooled = torch.cat([x, y.detach()]).double()
    size = ((pooled - pooled.mean(0)).square().sum(1).max() * scale**2).item()
    bound = eps * (8 * (D + 4) * size + 2 * (len(x) + len(y)) + 16)
    assert abs(value.item() - float(exact)) <= min(bound, 2)
    (slope,) = torch.autograd.grad(value, y)
    assert slope.isfinite().all()


# ------------------------------------------------------------------------------------------------
# Ends of the range
# ------------------------------------------------------------------------------------------------


def test_one_sample_one_feature_one_frequency() -> None:
    x, y, t = torch.tensor([[0.3]]), torch.tensor([[1.0]]), torch.tensor([[2.0]])
    phi = characteristic_function(x, t)
    torch.testing.assert_close(phi, torch.polar(torch.ones(1), torch.tensor([0.6])))
    # One sample each: φ on the unit circle, ½|1 - e^{iδ}|² = 1 - cos δ.
    expected = 1 - torch.cos(torch.tensor(1.4))
    torch.testing.assert_close(ncfd_loss(x, y, t, squared=True), expected)
    expected = 1 - torch.exp(torch.tensor(-0.5 * (0.7 * 2) ** 2))
    torch.testing.assert_close(gaussian_ncfd(x, y, 2.0), expected)


def test_closed_form_stays_bounded_where_squares_of_distances_round_below_zero() -> None:
    x, y = normal(0, 40, 5, dtype=torch.float32), normal(1, 30, 5, dtype=torch.float32)
    assert -1 <= gaussian_ncfd(x, y, 1e5) <= 1  # was infinite
    assert gaussian_ncfd(x, x, 1e5) == 0


@pytest.mark.parametrize(("few", "many"), [(1, 200_000), (3, 50_000)])
def test_few_samples_against_many(few: int, many: int) -> None:
    x, t = normal(0, many, 4, dtype=torch.float32), normal(1, 16, 4, dtype=torch.float32)
    y = normal(2, few, 4, dtype=torch.float32).requires_grad_()
    loss = ncfd_loss(x, y, t)
    wide = y.detach().double().requires_grad_()
    exact = ncfd_loss(x.double(), wide, t.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, y)[0].double(),
        torch.autograd.grad(exact, wide)[0],
        rtol=1e-5,
        atol=1e-7,
    )


def test_error_does_not_grow_with_the_number_of_samples() -> None:
    """Sums over many blocks in float64: the error is that of one phase, whatever N."""
    x, t = normal(0, 1_000_000, 2, dtype=torch.float32), normal(1, 16, 2, dtype=torch.float32)
    errors = {}
    for N in (100, 10_000, 1_000_000):
        phi = characteristic_function(x[:N], t)
        exact = characteristic_function(x[:N].double(), t.double())
        errors[N] = (phi - exact).abs().max().item()
    # A float32 sum of N terms one after the other would be off by up to N eps/2 = 0.06 at the end.
    assert max(errors.values()) < 4 * torch.finfo(torch.float32).eps, errors


# ------------------------------------------------------------------------------------------------
# Many calls, several threads
# ------------------------------------------------------------------------------------------------


def step(loss: ncfd.NCFDLoss, stream: ncfd.CharacteristicFunction, x: Tensor, y: Tensor) -> None:
    y.grad = None
    loss.zero_grad()
    (loss(x, y) + gaussian_ncfd(x, y)).backward()
    stream.update(x)
    ncfd_loss(stream.compute(), y, stream.t, squared=True, chunk_size=5).backward()


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def grown_after(calls: int) -> tuple[int, int]:
    """Python objects and bytes added by so many calls."""
    loss = ncfd.NCFDLoss(ncfd.FrequencySampler(3, 16))
    stream = ncfd.CharacteristicFunction(normal(1, 8, 3, dtype=torch.float32))
    x = normal(2, 12, 3, dtype=torch.float32)
    y = normal(3, 7, 3, dtype=torch.float32).requires_grad_()

    def state() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), resident()

    # The first calls, and the first look, leave caches behind.
    for _ in range(200):
        step(loss, stream, x, y)
    state()
    step(loss, stream, x, y)
    before = state()
    for _ in range(calls):
        step(loss, stream, x, y)
    after = state()
    return after[0] - before[0], after[1] - before[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "calls", [2000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_memory_does_not_grow_with_the_calls(calls: int) -> None:
    objects, size = grown_after(calls)
    # Less than one object per hundred calls, and no more than what allocators keep back.
    assert objects < 20
    assert size < 8 * 2**20


def test_threads_do_not_disturb_each_other() -> None:
    """Eight threads, each with problems of its own and both ways through the sums: equal bits."""

    def solve(seed: int) -> list[Tensor]:
        found = []
        for k, chunk_size in enumerate((None, 7) * 5):
            x = normal(100 * seed + k, 40 + seed, 3)
            y = normal(100 * seed + k + 50, 30, 3).requires_grad_()
            t = normal(seed, 16, 3).requires_grad_()
            loss = ncfd_loss(x, y, t, alpha=0.3, chunk_size=chunk_size)
            found += [loss.detach(), *torch.autograd.grad(loss, (y, t))]
            found.append(gaussian_ncfd(x, y.detach()))
        return found

    alone = [solve(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(solve, range(8)))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def test_threads_feed_estimators_of_their_own() -> None:
    x, t = normal(0, 4000, 3), normal(1, 16, 3)

    def feed(part: Tensor) -> ncfd.CharacteristicFunction:
        stream = ncfd.CharacteristicFunction(t)
        for rows in part.split(37):
            stream.update(rows)
        return stream

    with ThreadPoolExecutor(8) as pool:
        first, *rest = pool.map(feed, x.split(500))
    for other in rest:
        first.merge(other)
    torch.testing.assert_close(first.compute(), characteristic_function(x, t))


# ------------------------------------------------------------------------------------------------
# Several backward passes
# ------------------------------------------------------------------------------------------------


def losses() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    return {
        "sampled": lambda x, y, t: ncfd_loss(x, y, t, squared=True),
        "chunked": lambda x, y, t: ncfd_loss(x, y, t, alpha=0.3, chunk_size=3),
        "closed form": lambda x, y, t: gaussian_ncfd(x, y, t[0].abs()),
    }


@pytest.mark.parametrize("name", losses())
def test_gradients_add(name: str) -> None:
    x, y, t = normal(0, 20, 3), normal(1, 10, 3), normal(2, 8, 3).requires_grad_()
    loss = losses()[name]
    # Through one graph twice.
    value = loss(x, y, t)
    value.backward(retain_graph=True)
    once = t.grad.clone()
    value.backward()
    torch.testing.assert_close(t.grad, 2 * once, rtol=0, atol=0)
    # Over two small batches, as when gradients are accumulated.
    t.grad = None
    for half in y.split(5):
        (0.5 * loss(x, half, t)).backward()
    whole = sum(torch.autograd.grad(0.5 * loss(x, half, t), t)[0] for half in y.split(5))
    torch.testing.assert_close(t.grad, whole, rtol=0, atol=0)
    # A graph whose phases are gone says so instead of giving a wrong gradient.
    value = loss(x, y, t)
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
