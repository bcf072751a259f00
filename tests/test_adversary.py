"""An adversary that is paid for signal: J, and the two players of one backward."""

import copy
import warnings

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch.autograd import gradcheck

import ncfd
from ncfd import NCFDLoss
from ncfd.functional import characteristic_function, ncfd_loss, signal_discrepancy

N, M, D, F, G = 12, 7, 3, 5, 3


def numpy_phi(x: Tensor, t: Tensor) -> np.ndarray:
    return np.exp(1j * x.numpy() @ t.numpy().T).mean(0)


def numpy_signal(x: Tensor, y: Tensor, t: Tensor) -> float:
    phi_x, phi_y = numpy_phi(x, t), numpy_phi(y, t)
    noise = (1 - abs(phi_x) ** 2) / (len(x) - 1)
    gap = abs(phi_x - phi_y) ** 2 - noise
    return float((gap * np.maximum(0, abs(phi_x) ** 2 - noise)).mean())


def test_signal_is_its_formula() -> None:
    x, y, t = normal(1, N, D), normal(2, M, D) + 0.5, normal(3, F, D)
    assert signal_discrepancy(x, y, t).item() == pytest.approx(numpy_signal(x, y, t), rel=1e-12)


def test_signal_by_group_and_by_known_phi() -> None:
    x, y, t = normal(1, 5 * G, D), normal(2, 4 * G, D) + 0.5, normal(3, F, D)
    gx, gy = torch.arange(5 * G) % G, torch.arange(4 * G) % G
    found = signal_discrepancy(
        x, y, t, x_groups=gx, y_groups=gy, num_groups=G, reduction="none"
    ).mean(1)
    wanted = [numpy_signal(x[gx == g], y[gy == g], t) for g in range(G)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    phi = characteristic_function(x, t)
    gap = np.abs(numpy_phi(x, t) - numpy_phi(y, t)) ** 2
    exact = (gap * np.abs(numpy_phi(x, t)) ** 2).mean()
    assert signal_discrepancy(phi, y, t).item() == pytest.approx(exact, rel=1e-12)
    assert signal_discrepancy(x[:1], y, t).item() == 0


def test_signal_has_the_gradient_of_differences() -> None:
    x, y, t = (normal(k, n, D).requires_grad_() for k, n in ((1, N), (2, M), (3, F)))
    assert gradcheck(signal_discrepancy, (x, y, t))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_player_gets_its_own_gradient(squared: bool, grouped: bool, weighted: bool) -> None:
    x, y, t = (normal(k, n, D).requires_grad_() for k, n in ((1, N), (2, M), (3, F)))
    extra: dict = {}
    if grouped:
        extra |= {"num_groups": G}
        extra |= {f"{s}_groups": torch.arange(n) % G for s, n in (("real", N), ("synthetic", M))}
    if weighted:
        extra |= {"real_weights": torch.linspace(0.5, 2, N, dtype=torch.float64)}
    given = {k.replace("real", "x").replace("synthetic", "y"): v for k, v in extra.items()}
    loss = NCFDLoss(normal(9, F, D), squared=squared)
    value = loss(x, y, t=t, **extra)
    found = torch.autograd.grad(value, (x, y, t))
    plain = ncfd_loss(x, y, t, squared=squared, **given)
    torch.testing.assert_close(value, plain)
    wanted = torch.autograd.grad(plain, (x, y))
    gain = -torch.autograd.grad(signal_discrepancy(x, y, t, **given), t)[0]
    torch.testing.assert_close(found, (*wanted, gain))


@pytest.mark.parametrize("kind", ["distribution", "known"])
def test_a_known_real_side_gets_the_gradient_of_the_loss_alone(kind: str) -> None:
    y, t = normal(2, M, D).requires_grad_(), normal(3, F, D).requires_grad_()
    if kind == "known":
        leaf = characteristic_function(normal(1, N, D), t.detach()).requires_grad_()
        real = leaf
    else:
        leaf = torch.full((D,), 0.3, dtype=torch.float64, requires_grad=True)
        normals = torch.distributions.Normal(leaf, torch.ones(D, dtype=torch.float64))
        real = torch.distributions.Independent(normals, 1)
    value = NCFDLoss(normal(9, F, D))(real, y, t=t)
    plain = ncfd_loss(real, y, t)
    torch.testing.assert_close(value, plain)
    found = torch.autograd.grad(value, (leaf, y, t))
    wanted = torch.autograd.grad(plain, (leaf, y))
    gain = -torch.autograd.grad(signal_discrepancy(real, y, t), t)[0]
    torch.testing.assert_close(found, (*wanted, gain))


def test_the_players_under_compile_and_twice() -> None:
    x, y, t = (normal(k, n, D).requires_grad_() for k, n in ((1, N), (2, M), (3, F)))
    loss = NCFDLoss(normal(9, F, D), squared=True)

    def call(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return loss(x, y, t=t)

    eager = torch.autograd.grad(call(x, y, t), (x, y, t))
    compiled = torch.autograd.grad(torch.compile(call, fullgraph=True)(x, y, t), (x, y, t))
    torch.testing.assert_close(compiled, eager)
    penalties = []
    for value in (call(x, y, t), ncfd_loss(x, y, t, squared=True)):
        [slope] = torch.autograd.grad(value, y, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), (x, y)))
    torch.testing.assert_close(penalties[0], penalties[1])


def test_signal_does_not_run_away_where_there_is_nothing() -> None:
    """The published ascent doubles the scales in ten steps at this rate."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(138, 16, generator=g) / 4
    moved = {}
    for adversary in ("signal", "loss"):
        torch.manual_seed(0)
        psi = ncfd.FrequencySampler(16, 256, scale=1.0)
        loss = NCFDLoss(psi, adversary=adversary)
        optimizer = torch.optim.Adam(psi.parameters(), 1e-3)
        draws = torch.Generator().manual_seed(1)
        for _ in range(60):
            optimizer.zero_grad()
            loss(data[:128], data[128:], generator=draws).backward()
            optimizer.step()
        with torch.no_grad():
            moved[adversary] = psi.scales(torch.Generator().manual_seed(2)).square().mean().sqrt()
    assert moved["signal"] < 1.1 < 1.5 < moved["loss"], moved


def drawn(scale: float, grouped: bool, weighted: bool, adversary: str = "signal") -> None:
    """One call at normal frequencies, from 40 rows of 64 features of deviation 1/8."""
    x, y = normal(1, 40, 64).float() / 8, normal(2, 10, 64).float() / 8
    extra: dict = {}
    if grouped:
        extra |= {"real_groups": torch.arange(40) % 2, "synthetic_groups": torch.arange(10) % 2}
        extra |= {"num_groups": 3}  # the third is empty
    if weighted:
        extra |= {"real_weights": torch.linspace(0.5, 2, 40)}
    t = (scale * normal(3, 256, 64).float()).requires_grad_()
    loss = NCFDLoss(t.detach(), adversary=adversary)
    loss(x, y, t=t, **extra)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        loss(x, y, t=t, **extra)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_frequencies_without_signal_warn_once(grouped: bool, weighted: bool) -> None:
    # A phase of 5 radians, where |φ| is exp(-12.5).
    with pytest.warns(UserWarning, match="nothing but noise"):
        drawn(5.0, grouped, weighted)
    drawn(5.0, grouped, weighted, adversary="loss")
    # |φ|² is exp(-4): under the 1/40 of each frequency's noise, but not of all together.
    drawn(2.0, grouped, weighted)


def test_it_is_looked_for_in_the_first_call_and_every_16th_after_it() -> None:
    x, y, t = normal(1, 40, 64) / 8, normal(2, 10, 64) / 8, normal(3, 256, 64)
    loss = NCFDLoss(t)
    told = []
    for call in range(40):
        # From the second call on there is nothing to be seen.
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            loss(x, y, t=(0.5 if call == 0 else 5.0) * t.requires_grad_())
        told += [call] * len(found)
    assert told == [16]
    # Calls that are no game are not counted.
    other = NCFDLoss(t)
    for _ in range(16):
        other(x, y, t=5 * t.detach())
    with pytest.warns(UserWarning, match="nothing but noise"):
        other(x, y, t=5 * t)


def test_where_the_real_side_has_no_noise_nothing_warns() -> None:
    y, t = normal(2, M, D), (50 * normal(3, F, D)).requires_grad_()
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(D), 1.0), 1)
    NCFDLoss(t.detach())(law, y, t=t)
    NCFDLoss(t.detach())(normal(1, 1, D), y, t=t)  # a single row has nothing to measure it by


def moved(psi: nn.Module, by: float) -> nn.Module:
    """The sampler with every raw scale at ``by``."""
    raw = psi.network[-1].bias if isinstance(psi, ncfd.FrequencySampler) else psi.raw_scale
    with torch.no_grad():
        raw.fill_(by)
    return psi


@pytest.mark.parametrize(
    "psi",
    [
        ncfd.FrequencySampler(4, 64),
        ncfd.FrequencySampler(4, 64, max_ratio=2),
        ncfd.GaussianFrequencies(4, 64, learnable=True),
    ],
    ids=["mixture", "narrow", "diagonal"],
)
@pytest.mark.parametrize(("by", "side"), [(9.0, "above"), (-9.0, "below")])
def test_most_scales_at_a_bound_warn_once(psi: nn.Module, by: float, side: str) -> None:
    x, y = normal(1, N, 4).float(), normal(2, M, 4).float()
    # Those far above have no signal, of which the loss warns as well.
    warnings.filterwarnings("ignore", "at these 64 frequencies")
    psi = moved(copy.deepcopy(psi), by)
    with torch.no_grad():  # nobody learns
        psi()
    with pytest.warns(UserWarning, match=f"100% of the scales .* at their bound.* {side} scale"):
        NCFDLoss(psi)(x, y)
    NCFDLoss(psi)(x, y)
    fresh = ncfd.FrequencySampler(4, 64)
    with torch.no_grad():
        fresh.network[-1].bias[:2].fill_(9.0)  # half is not most
    fresh()


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(TypeError, match="adversarial is now adversary"):
        NCFDLoss(normal(1, F, D), adversarial=True)
    with pytest.raises(ValueError, match="adversary must be one of"):
        NCFDLoss(normal(1, F, D), adversary="signals")


class Doubled(nn.Module):
    """A wrapper as others write them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return self.module(*args, **kwargs)


def test_a_scale_from_the_data_through_the_loss() -> None:
    x, y = normal(1, 30, D), normal(2, 20, D) + 0.5
    law = ncfd.GaussianFrequencies(num_frequencies=64, dim=None, scale="median")
    for sampler in (law, Doubled(copy.deepcopy(law))):
        values = [
            NCFDLoss(sampler)(c * x, c * y, generator=torch.Generator().manual_seed(0))
            for c in (1.0, 1e3)
        ]
        torch.testing.assert_close(values[0], values[1])
    pairs = torch.pdist(x)
    t = law(torch.Generator().manual_seed(0), real=x)
    median = np.median(pairs.numpy())
    unit = ncfd.GaussianFrequencies(D, 64)(torch.Generator().manual_seed(0))
    torch.testing.assert_close(t.double(), unit.double() / median)
    torch.testing.assert_close(values[0], ncfd_loss(x, y, t.double()), rtol=1e-5, atol=0)


def test_frequency_weights_are_a_weighted_mean() -> None:
    x, y, t = normal(1, N, D), normal(2, M, D), normal(3, F, D)
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    each = ncfd_loss(x, y, t, reduction="none")
    found = ncfd_loss(x, y, t, frequency_weights=w)
    torch.testing.assert_close(found, (each * w).sum() / w.sum())
    torch.testing.assert_close(NCFDLoss(t, frequency_weights=w)(x, y), found)
    torch.testing.assert_close(
        ncfd_loss(x, y, t, frequency_weights=w, reduction="sum"), (each * w).sum()
    )
    for bad in (w[:2], -w, 0 * w):
        with pytest.raises(ValueError, match="frequency_weights"):
            ncfd_loss(x, y, t, frequency_weights=bad)


@pytest.mark.parametrize("held", [1e4, -1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_of_weight_zero_are_absent(held: float, normalize: bool) -> None:
    x, y, t = normal(1, N, D), normal(2, M, D), normal(3, F, D)
    w = torch.ones(N + 2, dtype=torch.float64)
    w[[0, 5]] = 0
    padded = torch.full((N + 2, D), held, dtype=torch.float64)
    padded[w > 0] = x
    padded.requires_grad_()
    loss = NCFDLoss(t, normalize=normalize)
    plain = x.clone().requires_grad_()
    values = loss(padded, y, real_weights=w), loss(plain, y)
    torch.testing.assert_close(*values)
    found, wanted = (
        torch.autograd.grad(v, p)[0] for v, p in zip(values, (padded, plain), strict=True)
    )
    torch.testing.assert_close(found[w > 0], wanted)
    assert (found[w == 0] == 0).all()
    stream = ncfd.CharacteristicFunction(t)
    stream.update(padded.detach(), weights=w)
    torch.testing.assert_close(stream.compute(), characteristic_function(x, t))
    closed = ncfd.functional.gaussian_ncfd(padded, y, x_weights=w)
    torch.testing.assert_close(closed, ncfd.functional.gaussian_ncfd(x, y))
    assert torch.autograd.grad(closed, padded)[0].isfinite().all()


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e-14, 1.0, 1e20, 1e37])
def test_rows_of_any_length_are_normalised(size: float) -> None:
    x, y, t = normal(1, N, D).float(), normal(2, M, D).float(), normal(3, F, D).float()
    loss = NCFDLoss(t, normalize=True)
    torch.testing.assert_close(loss(x * size, y), loss(x, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16])
def test_half_types_leave_the_frequencies(cast: object) -> None:
    t = 1e-8 * normal(3, F, D).float()
    loss = cast(nn.Sequential(NCFDLoss(t)))[0]  # type: ignore[operator]  # a module, which mypy takes for a tensor
    torch.testing.assert_close(loss.frequencies, t, rtol=0, atol=0)
    assert cast(NCFDLoss(t.double())).frequencies.dtype == torch.float64  # type: ignore[operator]  # a module, which mypy takes for a tensor


@pytest.mark.parametrize("grouped", [False, True])
def test_the_closed_form_in_the_unit_of_the_data(grouped: bool) -> None:
    x, y = normal(1, 5 * G, D), normal(2, 4 * G, D) + 0.3
    gx, gy = torch.arange(5 * G) % G, torch.arange(4 * G) % G
    groups: dict = {"x_groups": gx, "y_groups": gy, "num_groups": G, "reduction": "none"}
    gaussian_ncfd = ncfd.functional.gaussian_ncfd
    if grouped:
        found = gaussian_ncfd(x, y, "median", **groups)
        parts = [(x[gx == g], y[gy == g]) for g in range(G)]
    else:
        found = gaussian_ncfd(x, y, "median")[None]
        parts = [(x, y)]
    wanted = [gaussian_ncfd(a, b, 1 / np.median(torch.pdist(a).numpy())) for a, b in parts]
    torch.testing.assert_close(found, torch.stack(wanted))
    scales = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        gaussian_ncfd(x, y, scales), (gaussian_ncfd(x, y, 0.5) + gaussian_ncfd(x, y, 2.0)) / 2
    )
    with pytest.raises(TypeError, match='"median"'):
        gaussian_ncfd(x, y, "mean")
