"""What the Triton kernels must do, on a GPU or, with TRITON_INTERPRET=1, on the CPU.

Not collected by itself: the variable must be set before anything imports Triton, so
`test_triton.py` runs this file in a process of its own. The interpreter takes milliseconds for each
tile of each step: sizes are small, and odd.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from benchmarks import cases, measuring, peers, records
from benchmarks.suites import loss
from ncfd import ops
from ncfd.functional import ncfd_loss
from ncfd.ops import _fused, _triton

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
EPS = 2.0**-24  # half a unit in the last place of float32


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels on; the names of the launchers that ran."""
    ran: list[str] = []
    for name in ("sums", "gradients"):
        original = getattr(_triton, name)

        def recorded(*args, original=original, name=name):
            ran.append(name)
            return original(*args)

        monkeypatch.setattr(_triton, name, recorded)
    for name in ("_products", "_device"):  # put back after the test
        monkeypatch.setattr(_fused, name, getattr(_fused, name))
    ops.use_triton("ieee")
    return ran


def problem(
    N: int, D: int, F: int, *, weighted: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(N + 1000 * D + F)
    x, t = torch.randn(1, N, D, generator=g), torch.randn(1, F, D, generator=g)
    w = torch.rand(1, N, generator=g) if weighted else None
    x = x * (scale / D**0.5)
    return tuple(None if v is None else v.to(DEVICE).requires_grad_() for v in (x, t, w))


def error_of_a_cosine(x: Tensor, t: Tensor) -> float:
    """How wrong one cosine may be, a phase being wrong by the roundings of its D additions.

    They add up like √D by chance; three more for the turn, its product and its constant; 4e-7 are
    the polynomials'.
    """
    reach = (x.detach().abs() @ t.detach().abs().mT).max().item()
    return 4e-7 + EPS * (x.shape[2] ** 0.5 + 3) * reach


def gradients_of(pair: tuple[Tensor, Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum with factors that differ from one frequency to the next."""
    a = torch.linspace(-1, 2, pair[0].numel(), dtype=pair[0].dtype, device=DEVICE)
    total = (pair[0].flatten() * a).sum() + (pair[1].flatten() * a.flip(0).cos()).sum()
    return torch.autograd.grad(total, leaves)


def exact_sums(x: Tensor, t: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """Plain float64, differentiable."""
    theta = x.double() @ t.double().mT
    share = 1.0 if w is None else w.double().unsqueeze(2)
    return (share * theta.cos()).sum(1), (share * theta.sin()).sum(1)


# Every tile of the table with a remainder, one of each, and whole tiles; N = 1, D = 1, F = 1.
SIZES = [
    (1, 1, 1),
    (7, 1, 5),
    (65, 3, 66),
    (64, 32, 64),
    (130, 17, 33),
    (40, 65, 20),
    (33, 130, 35),
    (20, 257, 9),
    (5, 512, 3),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("N", "D", "F"), SIZES)
def test_sums_and_gradients(N: int, D: int, F: int, weighted: bool, calls: list[str]) -> None:
    x, t, w = problem(N, D, F, weighted=weighted, scale=3.0)
    leaves = [v for v in (x, t, w) if v is not None]
    one = error_of_a_cosine(x, t)
    pair = ops.sums(x, t, w)
    mass = N if w is None else w.sum().item()
    phi = reference.characteristic_function(x[0], t[0], None if w is None else w[0])
    found = torch.complex(*pair).detach().cpu().numpy()[0, 0] / mass
    # Adding rounds too: 64 rows and then float64.
    np.testing.assert_allclose(found, phi, rtol=0, atol=one + 8 * EPS)

    exact = gradients_of(exact_sums(x, t, w), leaves)
    for leaf, grad, truth in zip(leaves, gradients_of(pair, leaves), exact, strict=True):
        assert grad.shape == leaf.shape
        # N or F terms of the size of a feature, each wrong like its cosine, times |factor| < 3.
        count = {id(x): F, id(t): N, id(w): F}[id(leaf)]
        size = {id(x): t, id(t): x, id(w): torch.ones(1)}[id(leaf)].abs().max().item()
        atol = 3 * size * count**0.5 * (2 * one + 8 * EPS)
        torch.testing.assert_close(grad, truth, rtol=0, atol=atol)
    assert calls == ["sums", "gradients"]


@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_one_cosine_at_a_time(centre: float) -> None:
    # One sample, 1, so that the phases are the frequencies, exactly; nothing averages errors out.
    x = torch.ones(1, 1, 1, device=DEVICE, requires_grad=True)
    t = torch.linspace(centre - 4, centre + 4, 301).view(1, -1, 1).to(DEVICE)
    pair = ops.sums(x, t)
    cos, sin = (v.flatten() for v in exact_sums(x, t, None))
    # The polynomials, and the turn: its product, its constant.
    atol = 4e-7 + 2 * EPS * t.abs().max().item()
    for ours, truth in zip(pair, (cos, sin), strict=True):
        torch.testing.assert_close(ours.flatten().double(), truth, rtol=0, atol=atol)
    # The slope for each frequency alone: -t sin.
    for f in range(0, 301, 60):
        (grad,) = torch.autograd.grad(pair[0][..., f].sum(), x, retain_graph=True)
        assert abs(grad.item() + (t[0, f] * sin[f]).item()) < t[0, f].abs() * 3 * atol


@pytest.mark.parametrize("weighted", [False, True])
def test_large_phases(weighted: bool) -> None:
    # 1e4 radians have a unit in the last place of 1e-3; three features.
    x, t, w = problem(50, 3, 20, weighted=weighted, scale=1e4)
    pair = ops.sums(x, t, w)
    assert (x @ t.mT).abs().max() > 1e4
    one = error_of_a_cosine(x, t)
    assert one < 0.02
    for ours, truth in zip(pair, exact_sums(x, t, w), strict=True):
        # Errors of the rows are independent: the mean's is smaller than one row's by far.
        assert ((ours[:, 0] - truth) / 50).abs().max() < one / 2


def test_phases_of_any_size_stay_on_the_circle() -> None:
    for size in (1e6, 3e7, 1e12, 1e30):
        x, t, _ = problem(9, 2, 5, scale=size)
        for pair in (ops.sums(x, t), exact_sums(x, t, None)):
            assert torch.complex(*pair).abs().max() <= 9 * 1.001


def test_equal_inputs_give_equal_bits() -> None:
    x, t, w = problem(70, 5, 66, weighted=True)

    def run() -> tuple[Tensor, ...]:
        pair = ops.sums(x, t, w)
        return (*pair, *gradients_of(pair, [x, t, w]))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
    loss = ncfd_loss(x[0], x[0].detach().clone().requires_grad_(), t[0])
    assert loss.item() == 0


def test_cutting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, w = problem(130, 3, 40, weighted=True)

    def run() -> tuple[Tensor, ...]:
        pair = ops.sums(x, t, w)
        return (*pair, *gradients_of(pair, [x, t, w]))

    cut = run()  # one tile for each program
    monkeypatch.setattr(_triton, "_PROGRAMS", 1)
    whole = run()
    for a, b in zip(cut, whole, strict=True):
        # 130 terms of size 1 to 3 in another order.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=130 * 8 * EPS)
    assert any(not torch.equal(a, b) for a, b in zip(cut, whole, strict=True))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_gradients_of_some(needs: tuple[int, int, int], calls: list[str]) -> None:
    x, t, w = problem(70, 3, 40, weighted=True)
    all_three = gradients_of(ops.sums(x, t, w), [x, t, w])
    for v, needed in zip((x, t, w), needs, strict=True):
        v.requires_grad_(bool(needed))
    leaves = [v for v in (x, t, w) if v.requires_grad]
    expected = [g for g, needed in zip(all_three, needs, strict=True) if needed]
    for a, b in zip(gradients_of(ops.sums(x, t, w), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # kernels compiled differently
    assert calls == ["sums", "gradients"] * 2


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_passes_through(bad: float) -> None:
    x, t, w = problem(70, 3, 40, weighted=True)
    with torch.no_grad():
        x[0, 66, 1] = bad
    pair = ops.sums(x, t, w)
    assert all(v.isnan().all() for v in pair)
    grad_x, grad_t, grad_w = gradients_of(pair, [x, t, w])
    assert grad_t[..., 1].isnan().all()
    wrong = torch.arange(70, device=DEVICE) == 66
    for grad in (grad_x[0].isnan().all(1), grad_w[0].isnan()):
        assert torch.equal(grad, wrong)
    assert grad_x[0, ~wrong].isfinite().all()


def test_second_derivatives() -> None:
    x, t, w = problem(6, 3, 5, weighted=True)

    def penalty(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        total = pair[0].square().sum() + pair[1].sum()
        (grad,) = torch.autograd.grad(total, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, t, w])

    for ours, truth in zip(penalty(ops.sums(x, t, w)), penalty(exact_sums(x, t, w)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)  # sums of 30 products


def test_what_the_kernels_do_not_take(calls: list[str]) -> None:
    x, t, _ = problem(6, 3, 5)
    two = x.repeat(2, 1, 1)
    labels = torch.zeros(1, 6, dtype=torch.int64, device=DEVICE)
    wide, wide_t, _ = problem(4, 513, 3)
    for arguments in (
        (x.double(), t.double()),
        (two, t),
        (x, t, None, labels, 1),
        (wide, wide_t),
    ):
        pair = ops.sums(*arguments)
        (pair[0].sum() + pair[1].sum()).backward()
    assert calls == []
    # Phases that were kept are used, whatever the switch says by then.
    ops.use_triton(None)
    pair = ops.sums(x, t)
    ops.use_triton("ieee")
    pair[0].sum().backward()
    assert calls == []


def test_compiled_and_switched(calls: list[str]) -> None:
    x, t, w = problem(20, 3, 10, weighted=True)

    def function(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        cos, sin = ops.sums(x, t, w)
        return cos.square().sum() + sin.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    values = []
    for products in ("ieee", None, "tf32x3"):
        ops.use_triton(products)
        value = compiled(x, t, w)
        values.append((value, *torch.autograd.grad(value, [x, t, w])))
        assert calls == ["sums", "gradients"] * (2 if products == "tf32x3" else 1)
    for other in values[1:]:
        for a, b in zip(values[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_transforms_and_autocast(calls: list[str]) -> None:
    x, t, _ = problem(20, 3, 10)

    def function(t: Tensor) -> Tensor:
        cos, sin = ops.sums(x.detach(), t)
        return cos.square().sum() + sin.sum()

    plain = torch.autograd.grad(function(t), t)[0]
    assert torch.equal(torch.func.grad(function)(t.detach()), plain)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(torch.autograd.grad(function(t), t)[0], plain)
    assert calls == ["sums", "gradients"] * 3
    batched = torch.func.vmap(torch.func.grad(function))(torch.stack([t.detach()] * 2))
    torch.testing.assert_close(batched[1], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the harness's own
def test_operators_pass_opcheck(calls: list[str]) -> None:
    x, t, w = problem(5, 3, 4, weighted=True)
    torch.library.opcheck(torch.ops.ncfd.cf_sums.default, (x, t, w, None, 1, 0, False))
    grads = [torch.ones(1, 1, 4, device=DEVICE, requires_grad=True) for _ in range(2)]
    sample = (*grads, x, t, w, None, x.new_empty(0), 0, True, True, True)
    torch.library.opcheck(torch.ops.ncfd.cf_sums_backward.default, sample)
    assert {"sums", "gradients"} == set(calls)


def test_tf32_is_pytorchs_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fused.precision() == "ieee"
    ops.use_triton("tf32x3")
    assert _fused.precision() == "tf32x3"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert _fused.precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert _fused.precision() == "tf32x3"


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no tensor cores: all is float32")
@pytest.mark.parametrize("D", [16, 128, 512])
def test_precision_of_products(D: int) -> None:
    """Three products keep float32's precision, or nearly; one keeps 11 bits."""
    x, t, _ = problem(1000, D, 64, scale=3.0)
    errors = {}
    before = torch.get_float32_matmul_precision()
    for name in ("ieee", "tf32x3", "tf32"):
        try:
            torch.set_float32_matmul_precision("high" if name == "tf32" else before)
            ops.use_triton("ieee" if name == "tf32" else name)
            truth = exact_sums(x, t, None)
            pair = ops.sums(x, t)
        finally:
            torch.set_float32_matmul_precision(before)
        errors[name] = max(
            (a[:, 0] - b).abs().max().item() / 1000 for a, b in zip(pair, truth, strict=True)
        )
    assert errors["ieee"] < 1e-6
    assert errors["tf32x3"] < 3e-6
    assert errors["tf32"] < 3e-3  # 2^-11 of phases of 3, and their mean


def test_benchmark_measures_both_ways(tmp_path: Path, calls: list[str]) -> None:
    ops.use_triton(None)
    case = cases.LossCase("small", "a rehearsal", cases.Problem(9, 4, 3, 5), over_released={})
    written = records.Records(tmp_path / "loss.json", {"suite": "loss", "environment": {}})
    loss._time(case, torch.device(DEVICE), True, 0.0, measuring.Machine(1e9, 1e9), written)
    (ieee, tf32x3) = records.load(tmp_path / "loss.json")["tables"]["eager over Triton"]
    assert [ieee["products"], tf32x3["products"]] == list(peers.FUSED)
    assert ieee["ratio"] > 0
    # Two sides, two warm-ups and three rounds, two kinds of products; the eager way without.
    assert calls.count("sums") == calls.count("gradients") == 2 * 5 * 2
    assert _fused._products is None
