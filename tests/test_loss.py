"""``NCFDLoss``: a thin module, and the game of two players in one backward."""

import copy
import io
import math
import pickle

import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ncfd import CharacteristicFunction, FrequencySampler, GaussianFrequencies, NCFDLoss
from ncfd.functional import characteristic_function, ncfd_loss

N, M, D, F = 24, 16, 4, 32
OPTIONS = [
    {},
    {"alpha": 0.3},
    {"squared": True},
    {"squared": True, "unbiased": True},
    {"reduction": "sum"},
    {"reduction": "none"},
]


def features() -> tuple[Tensor, Tensor]:
    """Real and synthetic, apart in location and spread."""
    real = normal(1, N, D, dtype=torch.float32)
    return real, 0.6 + 0.5 * normal(2, M, D, dtype=torch.float32)


class Affine(nn.Module):
    """The smallest sampler there can be: fixed noise, stretched and moved."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("noise", normal(3, F, D, dtype=dtype))
        self.stretch = nn.Parameter(torch.full((D,), 0.5, dtype=dtype))
        self.shift = nn.Parameter(torch.full((D,), 0.1, dtype=dtype))

    def forward(self) -> Tensor:
        return self.noise * self.stretch + self.shift


class Seeded(nn.Module):
    """A random sampler that repeats its draw: two calls see the same frequencies."""

    def __init__(self, sampler: nn.Module) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(self) -> Tensor:
        return self.sampler(torch.Generator().manual_seed(4))


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_module_is_the_function_at_fixed_frequencies(options: dict) -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32)
    assert torch.equal(
        NCFDLoss(t, **options)(real, synthetic), ncfd_loss(real, synthetic, t, **options)
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_module_passes_groups_and_weights_on(options: dict) -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32)
    x_groups, y_groups = torch.arange(N) % 3, torch.arange(M) % 3
    x_weights, y_weights = torch.linspace(1, 2, N), torch.linspace(3, 1, M)
    loss = NCFDLoss(t, **options)(
        real,
        synthetic,
        real_groups=x_groups,
        synthetic_groups=y_groups,
        num_groups=4,
        real_weights=x_weights,
        synthetic_weights=y_weights,
    )
    expected = ncfd_loss(
        real,
        synthetic,
        t,
        x_groups=x_groups,
        y_groups=y_groups,
        num_groups=4,
        x_weights=x_weights,
        y_weights=y_weights,
        **options,
    )
    assert torch.equal(loss, expected)


def test_module_takes_any_sampler() -> None:
    real, synthetic = features()
    for sampler in (Affine(), Seeded(GaussianFrequencies(D, F)), Seeded(FrequencySampler(D, F))):
        assert torch.equal(
            NCFDLoss(sampler)(real, synthetic), ncfd_loss(real, synthetic, sampler())
        )


def test_each_call_draws_anew() -> None:
    real, synthetic = features()
    loss = NCFDLoss(GaussianFrequencies(D, F))
    assert loss(real, synthetic) != loss(real, synthetic)


def test_module_takes_batches_and_a_known_characteristic_function() -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32)
    loss = NCFDLoss(t)
    assert loss(real.expand(3, N, D), synthetic.expand(3, M, D)).shape == (3,)
    known = loss(characteristic_function(real, t), synthetic)
    torch.testing.assert_close(known, loss(real, synthetic))


@pytest.mark.parametrize("options", [*OPTIONS[:3], {"alpha": 0.0}, {"alpha": 1.0}], ids=str)
def test_module_takes_a_distribution_as_the_real_side(options: dict) -> None:
    """The value is that of the closed form; the gradients pass the derivative test."""
    _, synthetic = features()
    y, t = synthetic.double().requires_grad_(), normal(5, F, D, dtype=torch.float64)
    scale = torch.full((D,), 1.3, dtype=torch.float64, requires_grad=True)

    def target(scale: Tensor) -> Independent:
        return Independent(Normal(torch.full_like(scale, 0.4), scale), 1)

    loss = NCFDLoss(t, **options)
    phi = torch.exp(0.4j * t.sum(1) - 0.5 * (t.square() * 1.3**2).sum(1))
    torch.testing.assert_close(loss(target(scale), y), ncfd_loss(phi, y, t, **options))
    # Of the samples and of the distribution's own parameters.
    assert torch.autograd.gradcheck(lambda y, s: loss(target(s), y), (y, scale))


def test_a_distribution_pulls_embeddings_to_it() -> None:
    """The two lines of the guide: no samples of the target, and the sampler plays its part."""
    target = Independent(Normal(torch.zeros(D), torch.ones(D)), 1)
    regulariser = NCFDLoss(GaussianFrequencies(D, 128, scale=0.7), squared=True)
    z = (0.1 * normal(2, 100, D, dtype=torch.float32) + 1.0).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(150):
            optimizer.zero_grad()
            regulariser(target, z).backward()
            optimizer.step()
    # From means of 1 and variances of 0.01; the frequencies change in every step.
    torch.testing.assert_close(z.detach().mean(0), torch.zeros(D), atol=0.2, rtol=0)
    torch.testing.assert_close(torch.cov(z.detach().T), torch.eye(D), atol=0.35, rtol=0)
    # ψ against a distribution: its gradient raises the loss.
    t = Affine()
    game = NCFDLoss(t)
    before = game(target, z.detach())
    before.backward()
    with torch.no_grad():
        for p in t.parameters():
            p -= 1e-3 * p.grad / p.grad.norm()
    assert game(target, z.detach()) > before


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("options", [{}, {"squared": True}, {"alpha": 0.2}], ids=str)
def test_module_takes_what_an_estimator_computed(groups: bool, options: dict) -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32)
    labels = (torch.arange(N) % 3, torch.arange(M) % 3) if groups else (None, None)
    stream = CharacteristicFunction(t, 3 if groups else None)
    for rows in torch.arange(N).split(7):
        stream.update(real[rows], groups=labels[0][rows] if groups else None)
    loss = NCFDLoss(t, **options)
    sizes = {"num_groups": 3} if groups else {}
    found = []
    for known in (False, True):
        y = synthetic.clone().requires_grad_()
        x = stream.compute() if known else real
        of_x = {} if known else {"real_groups": labels[0]}
        value = loss(x, y, synthetic_groups=labels[1], **of_x, **sizes)
        value.backward()
        found.append((value.detach(), y.grad))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].abs().max() > 1e-4


@pytest.mark.parametrize("adversary", ["signal", "loss"])
def test_equal_features_give_zero_and_no_gradient(adversary: str) -> None:
    real, _ = features()
    synthetic = real.clone().requires_grad_()
    loss = NCFDLoss(FrequencySampler(D, F), adversary=adversary)
    value = loss(real, synthetic)
    assert value == 0
    value.backward()
    assert (synthetic.grad == 0).all()
    # What is signal depends on the frequencies where the gap is 0, too.
    for parameter in loss.parameters() if adversary == "loss" else ():
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_module_of_other_dtypes(dtype: torch.dtype) -> None:
    real, synthetic = (v.to(dtype).requires_grad_() for v in features())
    value = NCFDLoss(FrequencySampler(D, F), normalize=True)(real, synthetic)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    for leaf in (real, synthetic):
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
        assert (leaf.grad != 0).any()


# --- normalize --------------------------------------------------------------------------------


def test_normalize_compares_directions() -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (real, synthetic)]
    value = NCFDLoss(t, normalize=True)(real, synthetic)
    torch.testing.assert_close(value, ncfd_loss(*unit, t))
    assert not torch.isclose(value, ncfd_loss(real, synthetic, t))
    lengths = torch.linspace(0.01, 100, N).unsqueeze(1)
    torch.testing.assert_close(NCFDLoss(t, normalize=True)(lengths * real, synthetic), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_normalize_is_done_in_float32(dtype: torch.dtype) -> None:
    real, synthetic = (v.to(dtype) for v in features())
    t = normal(5, F, D, dtype=torch.float32)
    expected = NCFDLoss(t, normalize=True)(real.float(), synthetic.float())
    torch.testing.assert_close(NCFDLoss(t, normalize=True)(real, synthetic), expected)


def test_normalize_survives_a_zero_row() -> None:
    real, synthetic = features()
    synthetic[0] = 0
    synthetic.requires_grad_()
    value = NCFDLoss(normal(5, F, D, dtype=torch.float32), normalize=True)(real, synthetic)
    value.backward()
    assert value.isfinite()
    assert synthetic.grad.isfinite().all()


# --- the game ---------------------------------------------------------------------------------


def gradients(loss: NCFDLoss, real: Tensor, synthetic: Tensor) -> tuple[Tensor, list[Tensor]]:
    synthetic = synthetic.clone().requires_grad_()
    loss.zero_grad()
    loss(real, synthetic).backward()
    return synthetic.grad, [p.grad.clone() for p in loss.parameters()]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_only_the_samplers_gradient_is_reversed(options: dict, normalize: bool) -> None:
    real, synthetic = features()
    sampler = Affine()
    options = options | {"normalize": normalize}
    against, with_ = (NCFDLoss(sampler, adversary=a, **options) for a in ("loss", None))
    synthetic_slope, sampler_slopes = gradients(against, real, synthetic)
    expected_synthetic, expected_sampler = gradients(with_, real, synthetic)
    assert torch.equal(synthetic_slope, expected_synthetic)
    for reversed_slope, slope in zip(sampler_slopes, expected_sampler, strict=True):
        assert (slope != 0).all()
        assert torch.equal(reversed_slope, -slope)


def samplers() -> dict[str, nn.Module]:
    torch.manual_seed(6)  # the network's initial weights
    return {
        "affine": Affine(),
        "mixture": FrequencySampler(D, 256, scale=0.5),
        "mixture of one": FrequencySampler(D, 256, num_components=1, scale=0.5),
        "orthogonal mixture": FrequencySampler(D, 256, scale=0.5, method="orthogonal"),
        "learned gaussian": GaussianFrequencies(D, 256, scale=0.5, learnable=True),
    }


@pytest.mark.parametrize("name", samplers())
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_one_backward_trains_both_players(name: str, options: dict) -> None:
    # The published code cancels the sampler's gradient to exactly zero.
    real, synthetic = features()
    sampler = samplers()[name]
    player = sampler if name == "affine" else Seeded(sampler)
    loss = NCFDLoss(player, adversary="loss", **options)
    synthetic.requires_grad_()
    before = loss(real, synthetic)
    before.backward()
    slopes = [p.grad for p in loss.parameters()]
    assert sum((s**2).sum() for s in slopes) > 0

    # A small ordinary descent step along what `backward` left in `.grad`, one player at a time.
    with torch.no_grad():
        for p in loss.parameters():
            p -= 0.02 * p.grad / math.sqrt(sum((s**2).sum() for s in slopes))
        assert loss(real, synthetic) > before
        for p in loss.parameters():
            p += 0.02 * p.grad / math.sqrt(sum((s**2).sum() for s in slopes))
        torch.testing.assert_close(loss(real, synthetic), before.detach())
        synthetic -= 0.1 * synthetic.grad / synthetic.grad.norm()
        assert loss(real, synthetic) < before


def test_without_adversary_the_sampler_lowers_the_loss() -> None:
    real, synthetic = features()
    loss = NCFDLoss(Affine(), adversary=None)
    before = loss(real, synthetic)
    before.backward()
    with torch.no_grad():
        for p in loss.parameters():
            p -= 0.01 * p.grad
    assert loss(real, synthetic) < before


@pytest.mark.filterwarnings("ignore:at these 512 frequencies")  # far above the data's, on purpose
def test_the_game_finds_the_scale_at_which_the_sets_differ() -> None:
    # Synthetic rows are real rows moved by ±0.05, so coarse frequencies see nothing: the
    # adversary has to go up in scale, as far as it is allowed, and its optimizer takes it there.
    base = 3 * normal(7, 64, 2, dtype=torch.float32)
    signs = torch.where(normal(8, 64, 2) > 0, 1.0, -1.0)
    loss = NCFDLoss(FrequencySampler(2, 512, scale=1.0), squared=True)
    start = loss.sampler.scales().mean()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(base, base + 0.05 * signs).backward()
        optimizer.step()
    assert loss.sampler.scales().mean() > 1.5 * start


def test_alternating_steps_of_one_backward_match_the_sets() -> None:
    torch.manual_seed(9)
    real, synthetic = features()
    synthetic.requires_grad_()
    loss = NCFDLoss(FrequencySampler(D, 256, scale=0.5))
    t = 0.7 * normal(10, 512, D, dtype=torch.float32)  # a judge that plays no part
    before = ncfd_loss(real, synthetic, t).item()
    weights = copy.deepcopy(loss.state_dict())
    optimizer = torch.optim.Adam(
        [{"params": [synthetic], "lr": 0.05}, {"params": loss.parameters(), "lr": 1e-3}]
    )
    for _ in range(100):
        optimizer.zero_grad()
        loss(real, synthetic).backward()
        optimizer.step()
    assert ncfd_loss(real, synthetic, t).item() < 0.3 * before
    moved = [(weights[k] - v).abs().max() for k, v in loss.state_dict().items() if v.ndim]
    assert max(moved) > 1e-3


def test_the_real_side_is_never_detached() -> None:
    real, synthetic = features()
    real.requires_grad_()
    for sampler in (Affine(), normal(5, F, D, dtype=torch.float32)):
        for normalize in (False, True):
            real.grad = None
            NCFDLoss(sampler, normalize=normalize)(real, synthetic).backward()
            assert (real.grad != 0).any(1).all()


def test_a_frozen_sampler_gets_no_gradient() -> None:
    real, synthetic = features()
    loss = NCFDLoss(Affine()).requires_grad_(False)
    loss(real, synthetic.requires_grad_()).backward()
    assert all(p.grad is None for p in loss.parameters())
    assert (synthetic.grad != 0).any()


# --- the module as a module -------------------------------------------------------------------


def test_fixed_frequencies_are_a_buffer() -> None:
    t = normal(5, F, D, dtype=torch.float32)
    loss = NCFDLoss(t)
    assert not list(loss.parameters())
    assert [b.shape for b in loss.buffers()] == [(F, D)]
    assert any(torch.equal(v, t) for v in loss.state_dict().values())
    assert next(loss.to(torch.float64).buffers()).dtype == torch.float64
    assert next(loss.to("meta").buffers()).device.type == "meta"
    # The module has its own copy: what becomes of the caller's tensor is the caller's business.
    kept = NCFDLoss(t)
    value = kept(*features())
    t.zero_()
    assert torch.equal(kept(*features()), value)


def test_fixed_frequencies_that_require_grad_are_constants() -> None:
    real, synthetic = features()
    t = normal(5, F, D, dtype=torch.float32).requires_grad_()
    NCFDLoss(t)(real, synthetic.requires_grad_()).backward()
    assert t.grad is None
    assert synthetic.grad is not None


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
@pytest.mark.parametrize("kind", ["fixed", "mixture"])
def test_copies_compute_the_same(kind: str, how: str) -> None:
    def make(seed: int) -> NCFDLoss:
        torch.manual_seed(seed)
        fixed = normal(seed, F, D, dtype=torch.float32)
        loss = NCFDLoss(fixed if kind == "fixed" else Seeded(FrequencySampler(D, F)), alpha=0.3)
        with torch.no_grad():
            for p in loss.parameters():
                p.normal_()
        return loss

    loss = make(11)
    value = loss(*features())
    if how == "deepcopy":
        other = copy.deepcopy(loss)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(loss))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = make(12)
        assert other(*features()) != value
        other.load_state_dict(loss.state_dict())
    assert torch.equal(other(*features()), value)


def test_repr_tells_the_options() -> None:
    text = repr(NCFDLoss(FrequencySampler(D, F), alpha=0.25, normalize=True, reduction="sum"))
    for part in ("NCFDLoss", "alpha=0.25", "normalize=True", "squared=False", "unbiased=False"):
        assert part in text
    for part in ("adversary='signal'", "'sum'", "FrequencySampler", f"dim={D}"):
        assert part in text
    assert f"({F}, {D})" in repr(NCFDLoss(torch.ones(F, D)))


@pytest.mark.cuda
def test_module_moves_to_the_device() -> None:
    real, synthetic = (v.cuda() for v in features())
    t = normal(5, F, D, dtype=torch.float32)
    on_device = NCFDLoss(t).cuda()(real, synthetic)
    torch.testing.assert_close(on_device.cpu(), NCFDLoss(t)(real.cpu(), synthetic.cpu()))
