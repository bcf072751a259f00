"""SIGReg: value, gradient and precision against the formula in NumPy, one process and compiled."""

import copy

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import ncfd
from ncfd import SIGReg
from ncfd.functional import sliced_normality


def statistic(x: Tensor, u: Tensor, num_nodes: int, t_max: float) -> float:
    """Every node formed by itself, in complex128."""
    s = np.linspace(0, t_max, num_nodes)
    p = x.detach().double().numpy() @ u.double().numpy()  # (*, N, K)
    phi = np.exp(1j * s.reshape(-1, *[1] * p.ndim) * p).mean(-2)  # (nodes, *, K)
    normal_law = np.exp(-(s**2) / 2).reshape(-1, *[1] * (phi.ndim - 1))
    values = np.abs(phi - normal_law) ** 2 * normal_law
    return float(2 * x.shape[-2] * np.trapezoid(values, s, axis=0).mean())


def slope(x: Tensor, u: Tensor, num_nodes: int, t_max: float) -> Tensor:
    """The gradient of ``statistic`` for ``x (*, N, D)``, node by node, in complex128."""
    s, step = np.linspace(0, t_max, num_nodes, retstep=True)
    law = np.exp(-(s**2) / 2)
    weights = 2 * step * law
    weights[[0, -1]] /= 2
    directions = u.double().numpy()
    p = x.detach().double().numpy() @ directions
    total = np.zeros_like(p)
    for node, target, weight in zip(s, law, weights, strict=True):
        waves = np.exp(1j * node * p)
        gap = waves.mean(-2, keepdims=True) - target
        total += weight * 2 * (gap.conj() * 1j * node * waves).real
    sides = p.shape[-1] * np.prod(p.shape[:-2])
    return torch.from_numpy(total @ directions.T / sides)


def unit(*shape: int) -> Tensor:
    u = normal(9, *shape)
    return u / u.norm(dim=0)


@pytest.mark.parametrize(("num_nodes", "t_max"), [(17, 3.0), (2, 1.0), (33, 5.0), (65, 8.0)])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_value_is_the_formula(num_nodes: int, t_max: float, batch: tuple[int, ...]) -> None:
    x, u = normal(1, *batch, 40, 6) + 0.2, unit(6, 11)
    wanted = statistic(x, u, num_nodes, t_max)
    found = sliced_normality(x, u, num_nodes=num_nodes, t_max=t_max)
    assert found.item() == pytest.approx(wanted, rel=1e-10)
    single = sliced_normality(x.float(), u.float(), num_nodes=num_nodes, t_max=t_max)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize(("num_nodes", "t_max"), [(17, 3.0), (33, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_is_the_formula(num_nodes: int, t_max: float, dtype: torch.dtype) -> None:
    x, u = (1.3 * normal(1, 2, 40, 6) + 0.2).to(dtype), unit(6, 11)
    u = u if dtype == torch.float64 else u.float()
    wanted = slope(x, u, num_nodes, t_max)
    leaf = x.clone().requires_grad_()
    value = sliced_normality(leaf, u, num_nodes=num_nodes, t_max=t_max)
    [found] = torch.autograd.grad(value, leaf)
    assert found.dtype == dtype
    # In bfloat16 the gradient itself is rounded, to 8 bits; nothing before it is.
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2.0**-8}[dtype]
    assert (found - wanted).norm() <= bound * wanted.norm()


def test_a_long_range_is_the_integral() -> None:
    x, u = 1.3 * normal(1, 40, 6) + 0.2, unit(6, 11)
    p = (x @ u).numpy()  # (N, K)
    pairs = np.exp(-((p[:, None] - p) ** 2) / 2).mean((0, 1))
    single = np.sqrt(2) * np.exp(-(p**2) / 4).mean(0)
    exact = 40 * np.sqrt(2 * np.pi) * (pairs - single + 1 / np.sqrt(3)).mean()
    found = sliced_normality(x, u, num_nodes=65, t_max=9.0).item()
    assert found == pytest.approx(exact, rel=1e-12)
    # What the defaults leave out is the weight beyond t_max, and what lies between the nodes.
    assert sliced_normality(x, u).item() == pytest.approx(exact, rel=1e-2)


def test_gradients_are_those_of_differences() -> None:
    x, u = normal(1, 5, 3).requires_grad_(), unit(3, 4).requires_grad_()
    assert gradcheck(sliced_normality, (x, u))
    assert gradgradcheck(lambda x: sliced_normality(x, u.detach(), num_nodes=5), (x,))


@pytest.mark.parametrize(
    ("rows", "num_nodes"),
    [
        pytest.param(40, 17, id="one pass"),
        pytest.param(2500, 17, id="lines in parts"),
        pytest.param(70000, 5, id="lines too long for one block"),
        pytest.param(40, 80, id="more nodes than a table takes"),
    ],
)
def test_every_way_gives_the_formula_in_float32(rows: int, num_nodes: int) -> None:
    x, u = 1.2 * normal(1, rows, 3) + 0.1, unit(3, 5)
    leaf, way = x.float().requires_grad_(), u.float().requires_grad_()
    value = sliced_normality(leaf, way, num_nodes=num_nodes)
    assert value.item() == pytest.approx(statistic(x, u, num_nodes, 3.0), rel=2e-5)
    wanted = slope(x, u, num_nodes, 3.0)
    found, for_u = torch.autograd.grad(value, (leaf, way), retain_graph=True)
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()
    assert torch.equal(torch.autograd.grad(2 * value, leaf)[0], 2 * found)
    # Both turn the projections: Σ_n x ∂x = Σ_k u ∂u.
    torch.testing.assert_close((leaf * found).sum(), (way * for_u).sum(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert sliced_normality(leaf, way, num_nodes=num_nodes) == value


def test_samples_may_be_their_own_directions() -> None:
    x = normal(1, 6, 6)
    apart = [x.clone().requires_grad_() for _ in range(2)]
    shares = torch.autograd.grad(sliced_normality(*apart), apart)
    leaf = x.clone().requires_grad_()
    for graph in (False, True):
        value = sliced_normality(leaf, leaf)
        found = torch.autograd.grad(value, leaf, create_graph=graph)[0]
        torch.testing.assert_close(found, shares[0] + shares[1])


def test_gradients_of_many_outputs_at_once() -> None:
    x, u = normal(1, 20, 6).requires_grad_(), unit(6, 11)
    values = sliced_normality(x, u) * torch.arange(3)
    found = torch.autograd.grad(values, x, torch.eye(3, dtype=x.dtype), is_grads_batched=True)[0]
    single = torch.autograd.grad(sliced_normality(x, u), x)[0]
    torch.testing.assert_close(found, torch.arange(3).view(3, 1, 1) * single)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 40.0])
def test_gradient_in_float32_at_any_size(size: float) -> None:
    x, u = size * normal(1, 64, 8), unit(8, 16)
    wide, narrow = (v.clone().requires_grad_() for v in (x, x.float()))
    [wanted] = torch.autograd.grad(sliced_normality(wide, u), wide)
    [found] = torch.autograd.grad(sliced_normality(narrow, u.float()), narrow)
    bound = 2e-5 * max(1.0, size) * wanted.abs().max()
    assert (found - wanted).abs().max() <= bound + 1e-30


def test_large_batches_go_in_blocks_to_the_same_sums() -> None:
    x, u = normal(1, 3000, 4), unit(4, 70)
    assert sliced_normality(x, u).item() == pytest.approx(statistic(x, u, 17, 3.0), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_half_types_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    x, u = normal(1, 40, 6).to(dtype), unit(6, 11).float()
    wanted = statistic(x, u, 17, 3.0)
    assert sliced_normality(x, u).item() == pytest.approx(wanted, rel=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert sliced_normality(x.float(), u).item() == pytest.approx(wanted, rel=2e-5)


def test_compiles_whole_and_maps() -> None:
    x, u = normal(1, 3, 20, 6), unit(6, 11)
    each = torch.stack([sliced_normality(v, u) for v in x])
    torch.testing.assert_close(torch.vmap(sliced_normality, (0, None))(x, u), each)
    torch.testing.assert_close(sliced_normality(x, u), each.mean())
    compiled = torch.compile(sliced_normality, fullgraph=True)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    values = compiled(leaves[0], u), sliced_normality(leaves[1], u)
    torch.testing.assert_close(*values)
    grads = [torch.autograd.grad(v, leaf)[0] for v, leaf in zip(values, leaves, strict=True)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("order", ["fake first", "real first"])
def test_fake_tensors_and_real_ones_share_nothing(order: str) -> None:
    x, u = normal(1, 20, 6).requires_grad_(), unit(6, 11)
    # No other test has this number of nodes: nothing is there from an earlier call.
    nodes = 37 if order == "fake first" else 38

    def real() -> Tensor:
        return torch.autograd.grad(sliced_normality(x, u, num_nodes=nodes), x)[0]

    if order == "real first":
        real()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        value = sliced_normality(fake, mode.from_tensor(u), num_nodes=nodes)
        assert value.shape == ()
        assert torch.autograd.grad(value, fake)[0].shape == x.shape
    torch.testing.assert_close(real(), slope(x, u, nodes, 3.0))


def test_the_module_draws_unit_directions_anew() -> None:
    x = normal(1, 40, 6).float()
    loss = SIGReg(32)
    seeded = [loss(x, torch.Generator().manual_seed(k)).item() for k in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert loss(x) != loss(x)
    assert copy.deepcopy(loss)(x, torch.Generator().manual_seed(0)).item() == seeded[0]
    shifted, centred = (loss(v, torch.Generator().manual_seed(0)) for v in (x + 2, x))
    assert shifted > 5 * centred


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_slices": 0}, "num_slices"),
        ({"num_nodes": 1}, "num_nodes"),
        ({"t_max": -1.0}, "t_max"),
        ({"process_group": "all"}, "process_group"),
    ],
)
def test_errors_name_the_argument(arguments: dict, name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        ncfd.SIGReg(**arguments)
    with pytest.raises(ValueError, match="directions must have shape"):
        sliced_normality(normal(1, 4, 3), unit(2, 5))
