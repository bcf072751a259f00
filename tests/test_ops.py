"""The sums behind every φ: the operator, its rules, its several ways, and its memory."""

import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import reference
import torch
from strategies import normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ncfd import ops
from ncfd.functional import gaussian_ncfd, ncfd_loss
from ncfd.ops import _phases

B, N, D, F, G = 2, 5, 3, 4, 3


def inputs(
    *, shared: bool = True, weighted: bool = False, grouped: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]:
    x, t = normal(1, B, N, D), normal(2, 1 if shared else B, F, D)
    weights = normal(3, B, N).abs() if weighted else None
    # Group 1 is nowhere; the labels differ from one batch entry to the next.
    groups = torch.tensor([[0, 2, 2, 0, 2], [2, 2, 2, 2, 0]]) if grouped else None
    return x, t, weights, groups, G if grouped else 1


def exact(
    x: Tensor, t: Tensor, weights: Tensor | None, groups: Tensor | None, count: int
) -> np.ndarray:
    """Complex sums ``(B, G, F)``: means times what they were divided by."""
    sums = np.zeros((len(x), count, t.shape[1]), dtype=np.complex128)
    for b, g in itertools.product(range(len(x)), range(count)):
        rows = slice(None) if groups is None else groups[b] == g
        w = torch.ones(x.shape[1]) if weights is None else weights[b]
        if w[rows].sum() > 0:
            tb = t[0] if len(t) == 1 else t[b]
            phi = reference.characteristic_function(x[b][rows], tb, w[rows])
            sums[b, g] = phi * w[rows].sum().item()
    return sums


def close(pair: tuple[Tensor, Tensor], expected: np.ndarray, atol: float = 1e-13) -> None:
    np.testing.assert_allclose(torch.complex(*pair).detach().numpy(), expected, rtol=0, atol=atol)


every_shape = pytest.mark.parametrize(
    "kind",
    [
        {"shared": s, "weighted": w, "grouped": g}
        for s, w, g in itertools.product((True, False), repeat=3)
    ],
    ids=lambda kind: "-".join(name for name, on in kind.items() if on) or "own t",
)


@every_shape
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 50])
def test_sums_are_those_of_the_loop(kind: dict, chunk_size: int | None) -> None:
    arguments = inputs(**kind)
    close(ops.sums(*arguments, chunk_size=chunk_size), exact(*arguments))


@every_shape
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_sums_gradcheck(kind: dict, chunk_size: int | None) -> None:
    x, t, weights, groups, count = inputs(**kind)
    leaves = [v.requires_grad_() for v in (x, t, weights) if v is not None]

    def function(x: Tensor, t: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return ops.sums(x, t, weights, groups, count, chunk_size)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@every_shape
@pytest.mark.parametrize("bytes_of_a_block", [1, 100, 300])
def test_cutting_into_blocks_changes_nothing(
    kind: dict, bytes_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One row, a few rows, and (300 bytes hold 9 rows of 4 float64) a whole batch entry at a time.
    arguments = inputs(**kind)
    leaves = [v.requires_grad_() for v in arguments[:3] if v is not None]

    def run() -> tuple[Tensor, ...]:
        pair = ops.sums(*arguments)
        weights = torch.linspace(1, 2, pair[0].numel(), dtype=torch.float64).view_as(pair[0])
        total = (pair[0] * weights).sum() + (pair[1] * weights.flip(-1)).sum()
        return (*pair, *torch.autograd.grad(total, leaves))

    whole = run()
    for name in ("block_small_dim", "block_large_dim", "block_accelerator"):
        monkeypatch.setitem(ops.BUDGET, name, bytes_of_a_block)
    # Phases kept in one tensor, then two rows to each.
    for bytes_of_a_piece in (2**20, 2 * F * 8):
        monkeypatch.setitem(ops.BUDGET, "piece", bytes_of_a_piece)
        for a, b in zip(run(), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_shape
def test_a_budget_changed_before_the_backward_does_not_matter(
    kind: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = inputs(**kind)
    leaves = [v.requires_grad_() for v in arguments[:3] if v is not None]
    gradients = []
    for later in (2 * F * 8, 3 * F * 8):
        monkeypatch.setitem(ops.BUDGET, "block_small_dim", F * 8)
        monkeypatch.setitem(ops.BUDGET, "piece", 2 * F * 8)
        pair = ops.sums(*arguments)
        monkeypatch.setitem(ops.BUDGET, "piece", later)
        total = pair[0].square().sum() + pair[1].sum()
        gradients.append(torch.autograd.grad(total, leaves))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_shape
@pytest.mark.parametrize("bytes_of_a_block", [32, 2**20])
def test_both_forms_of_a_phase_give_the_same(
    kind: dict, bytes_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The accelerators' form, here on the CPU; and phases on both sides of the half-tangent's pole.
    monkeypatch.setitem(ops.BUDGET, "block_small_dim", bytes_of_a_block)
    x, *rest = inputs(**kind)
    arguments = (10 * x, *rest)
    leaves = [v.requires_grad_() for v in arguments[:3] if v is not None]

    def run() -> tuple[Tensor, ...]:
        pair = ops.sums(*arguments)
        total = pair[0].square().sum() + pair[1].sum()
        return (*pair, *torch.autograd.grad(total, leaves))

    tangent = run()
    monkeypatch.setattr(_phases, "circle", lambda _: _phases.Angle())
    for a, b in zip(run(), tangent, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_tangent_is_accurate_at_its_pole(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    offsets = torch.tensor([0.0, eps, -eps, 1e-3, -1e-3, 1.0], dtype=dtype)
    pi = torch.tensor(torch.pi, dtype=dtype)
    theta = torch.cat([k * pi + offsets for k in (0, 1, -1, 2, 3, 1001)])
    form = _phases.HalfTangent()
    held = (0.5 * theta).reshape(1, -1, 1)
    form.enter(held)
    a, b = torch.tensor([[[0.7]]], dtype=dtype), torch.tensor([[[-1.3]]], dtype=dtype)
    slopes = form.slopes(held, *form.prepare(a, b), None).flatten()
    truth = b.flatten() * torch.cos(theta.double()) - a.flatten() * torch.sin(theta.double())
    # 1e3 π in float32 is itself uncertain by an ulp; `theta` is what was rounded, so it is exact.
    assert (slopes - truth).abs().max() < 8 * eps
    for row in range(len(theta)):
        pair = form.sums(held[:, row : row + 1], lambda v: v.sum(1, keepdim=True), 1, None)
        assert abs(pair[0].item() - torch.cos(theta[row].double()).item()) < 4 * eps
        assert abs(pair[1].item() - torch.sin(theta[row].double()).item()) < 4 * eps


@every_shape
def test_recomputed_phases_equal_kept_ones(kind: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, weights, groups, count = inputs(**kind)
    leaves = [v.requires_grad_() for v in (x, t, weights) if v is not None]
    kept_bytes = B * N * F * 8

    def run() -> tuple[int, tuple[Tensor, ...]]:
        sizes: list[int] = []

        def pack(v: Tensor) -> Tensor:
            sizes.append(v.nbytes)
            return v

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            pair = ops.sums(x, t, weights, groups, count)
            total = pair[0].square().sum() + pair[1].sum()
        return sum(s == kept_bytes for s in sizes), (*pair, *torch.autograd.grad(total, leaves))

    keeps, kept = run()
    monkeypatch.setitem(ops.BUDGET, "kept", kept_bytes - 1)
    drops, recomputed = run()
    assert (keeps, drops) == (1, 0)
    for a, b in zip(recomputed, kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [3, 64, 65, 200])
def test_few_groups_and_many_groups(count: int, weighted: bool) -> None:
    x, t = normal(4, 1, 300, 2), normal(5, 1, 3, 2)
    groups = torch.randint(count, (1, 300), generator=torch.Generator().manual_seed(6))
    weights = normal(7, 1, 300).abs() if weighted else None
    arguments = (x, t, weights, groups, count)
    close(ops.sums(*arguments), exact(*arguments))
    x[0, 0, 0] = torch.nan
    sums = ops.sums(*arguments)[0][0]
    broken = torch.arange(count) == groups[0, 0]
    assert sums[broken].isnan().all()
    assert sums[~broken].isfinite().all()


def test_features_before_any_summing() -> None:
    x, t = normal(8, N, D), normal(9, F, D)
    cos, sin = ops.features(x, t)
    each = [reference.characteristic_function(row.unsqueeze(0), t) for row in x]
    close((cos, sin), np.stack(each), 1e-15)


# --- the operator's registration --------------------------------------------------------------


# The harness reads `.grad` of tensors that are not leaves, and warns itself of it.
quiet_harness = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


# It compiles each sample, at two seconds a time: the extremes, not every shape.
extreme_shapes = pytest.mark.parametrize(
    "kind",
    [{"shared": True}, {"shared": False, "weighted": True, "grouped": True}],
    ids=["plain", "everything"],
)


@extreme_shapes
@quiet_harness
@pytest.mark.parametrize("keep", [False, True])
def test_operator_passes_opcheck(kind: dict, keep: bool) -> None:
    x, t, weights, groups, count = inputs(**kind)
    for v in (x, t, weights):
        if v is not None:
            v.requires_grad_()
    sample = (x, t, weights, groups, count, 0 if keep else 2, keep)
    torch.library.opcheck(torch.ops.ncfd.cf_sums.default, sample)


@extreme_shapes
@quiet_harness
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False)])
def test_backward_operator_passes_opcheck(kind: dict, needs: tuple[bool, bool, bool]) -> None:
    x, t, weights, groups, count = inputs(**kind)
    grads = [normal(seed, B, count, F) for seed in (10, 11)]
    for v in (x, t, weights, *grads):
        if v is not None:
            v.requires_grad_()
    if weights is None:
        needs = (*needs[:2], False)
    kept = x.new_empty(0)
    sample = (*grads, x, t, weights, groups, kept, 2, *needs)
    torch.library.opcheck(torch.ops.ncfd.cf_sums_backward.default, sample)


def test_labels_are_checked_by_the_operator_too() -> None:
    # Compiled and vmapped callers reach no other check, and a label out of range must never
    # read or write elsewhere.
    x, t, _, groups, count = inputs(grouped=True)
    for wrong in (groups + 1, groups - 1):
        with pytest.raises(ValueError, match=r"labels.*\[0, .*3\)"):
            torch.ops.ncfd.cf_sums(x, t, None, wrong, count, 0, False)
        with pytest.raises(ValueError, match=r"labels.*\[0, .*3\)"):
            torch.func.vmap(lambda g: ops.sums(x, t, None, g, count))(torch.stack([groups, wrong]))


@every_shape
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_sums_have_batched_gradients(kind: dict, chunk_size: int | None) -> None:
    # `is_grads_batched`, which vectorised Jacobians use: a vmap over the plain backward.
    x, t, weights, groups, count = inputs(**kind)
    leaves = [v.requires_grad_() for v in (x, t, weights) if v is not None]
    cos_sum, sin_sum = ops.sums(x, t, weights, groups, count, chunk_size)
    for output in (cos_sum, sin_sum, torch.cat([cos_sum, sin_sum], -1)):
        vectors = normal(17, 3, *output.shape)
        batched = torch.autograd.grad(
            output, leaves, vectors, is_grads_batched=True, retain_graph=True
        )
        for i in range(3):
            each = torch.autograd.grad(output, leaves, vectors[i], retain_graph=True)
            for a, b in zip(batched, each, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-13)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 100])
def test_saved_for_backward_is_the_inputs_not_the_phases(
    chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beyond the budget without being told, and whenever chunks are asked for.
    if chunk_size is None:
        monkeypatch.setitem(ops.BUDGET, "kept", 1_000_000)
    x, y, t = (normal(s, n, 4).requires_grad_() for s, n in ((12, 1000), (13, 1000), (14, 500)))
    saved: dict[int, int] = {}

    def pack(v: Tensor) -> Tensor:
        saved[v.data_ptr()] = v.nbytes
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        ncfd_loss(x, y, t, chunk_size=chunk_size)
    # Phases would be 4 MB a side; samples and frequencies are 80 kB, and some F numbers.
    assert sum(saved.values()) < 400_000


def peak_growth(setup: str, statement: str) -> float:
    """Megabytes by which a statement raises the high-water mark of a fresh process."""
    script = f"""
import resource
import ncfd
import torch
from ncfd.functional import gaussian_ncfd, ncfd_loss
from ncfd.ops import _phases

def peak():
    # In kilobytes on Linux, where this test runs.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(x, y, t):
    {statement}

torch.manual_seed(0)
{textwrap.dedent(setup)}
run(x[:600], y[:600], t)  # libraries loaded, in the way that works by chunks too
before = peak()
run(x, y, t)
print(peak() - before)
"""
    # Large blocks go straight to the system and back: what the allocator of the C library keeps for
    # later is not the library's doing. One thread, because each would have its own arena.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss differ elsewhere")
@pytest.mark.parametrize("options", ["", ", chunk_size=500"])
def test_peak_memory_of_the_loss_is_bounded(options: str) -> None:
    # 40 000 rows times 1000 frequencies are 160 MB of phases a side, several times that if cos,
    # sin and their gradients were kept like plain PyTorch keeps them.
    setup = """
        x, y = torch.randn(40_000, 8), torch.randn(40_000, 8)
        t = torch.randn(1000, 8, requires_grad=True)
        ncfd.ops.BUDGET["kept"] = 10_000_000
    """
    statement = f"ncfd_loss(x.clone().requires_grad_(), y, t{options}).backward()"
    assert peak_growth(setup, statement) < 60


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss differ elsewhere")
def test_peak_memory_of_the_exact_limit_is_bounded() -> None:
    # 4000 x 4000 kernel values are 64 MB in float32, and there are three such matrices.
    setup = "x, y, t = torch.randn(4000, 4), torch.randn(4000, 4), None"
    statement = "gaussian_ncfd(x.clone().requires_grad_(), y, chunk_size=250).backward()"
    assert peak_growth(setup, statement) < 50


# --- the pair sums ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10**9])
def test_kernel_blocks_change_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(15, 7, 3).requires_grad_(), normal(16, 5, 3).requires_grad_()
    scale = torch.tensor([[0.5, 1.0, 2.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    monkeypatch.setitem(ops.BUDGET, "pairs", limit)
    value = gaussian_ncfd(x, y, scale)
    assert value.item() == pytest.approx(reference.gaussian_kernel_loss(x, y, scale), abs=1e-14)
    assert gradcheck(lambda x, y: gaussian_ncfd(x, y, scale), (x, y))


@pytest.mark.cuda
@every_shape
def test_sums_on_the_device(kind: dict) -> None:
    arguments = inputs(**kind)
    moved = [v.cuda() if isinstance(v, Tensor) else v for v in arguments]
    close(tuple(v.cpu() for v in ops.sums(*moved)), exact(*arguments))
