"""Where frequencies come from: laws, shapes, generators, and scales that stay in bounds."""

import copy
import inspect
import io
import math
import pickle
import pydoc
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from strategies import normal
from torch import Tensor, nn

from ncfd import (
    FrequencySampler,
    GaussianFrequencies,
    LaplaceFrequencies,
    NCFDLoss,
    SlicedFrequencies,
    StudentTFrequencies,
    UniformFrequencies,
)
from ncfd.functional import ncfd_loss

# Samplers are sent to their bounds here; test_adversary.py has the warning itself.
pytestmark = pytest.mark.filterwarnings("ignore:.* of the scales of .* are at their bound")

LAWS = {
    "gaussian": (GaussianFrequencies, scipy.stats.norm()),
    "student": (StudentTFrequencies, scipy.stats.t(3)),
    "laplace": (LaplaceFrequencies, scipy.stats.laplace()),
    "uniform": (UniformFrequencies, scipy.stats.uniform(-1, 2)),
}
METHODS = ("random", "orthogonal", "structured", "sobol")
SAMPLERS: dict[str, Callable[..., nn.Module]] = {
    "mixture": FrequencySampler,
    "orthogonal mixture": lambda *a, **k: FrequencySampler(*a, method="orthogonal", **k),
    "structured mixture": lambda *a, **k: FrequencySampler(*a, method="structured", **k),
}
for _name, (_law, _) in LAWS.items():
    for _method in METHODS:
        SAMPLERS[f"{_method} {_name}"] = lambda *a, law=_law, m=_method, **k: law(*a, method=m, **k)

every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
every_law = pytest.mark.parametrize("law", LAWS)
every_method = pytest.mark.parametrize("method", METHODS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stir(module: nn.Module, spread: float = 1.0) -> nn.Module:
    """Parameters away from their starting point, where scales are all alike."""
    generator = seeded(99)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return module


# --- what every sampler does ------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize(("dim", "count"), [(1, 1), (1, 7), (3, 2), (3, 16), (5, 33), (40, 24)])
def test_asked_is_given(make: Callable[..., nn.Module], dim: int, count: int) -> None:
    sampler = stir(make(dim, count))
    t = sampler(seeded())
    assert t.shape == (count, dim)
    assert t.dtype == torch.float32
    assert t.isfinite().all()
    assert t.requires_grad == any(p.requires_grad for p in sampler.parameters())
    # The published sampler repeats four rows. A float32 has 2^24 values in an octave, so that
    # equal numbers by chance are out of the question at these sizes.
    assert len(torch.unique(t.detach(), dim=0)) == count


@every_sampler
def test_default_is_1024_frequencies_of_unit_scale(make: Callable[..., nn.Module]) -> None:
    sampler = make(3)
    assert sampler(seeded()).shape == (1024, 3)
    torch.testing.assert_close(
        sampler.scales(), torch.ones_like(sampler.scales()), rtol=1e-6, atol=0
    )


@every_sampler
def test_generator_decides_everything(make: Callable[..., nn.Module]) -> None:
    sampler = stir(make(3, 40))
    first, again, other = sampler(seeded(1)), sampler(seeded(1)), sampler(seeded(2))
    assert torch.equal(first, again)
    assert (first != other).any(1).all()
    generator = seeded(1)
    assert torch.equal(sampler(generator), first)
    assert (sampler(generator) != first).any(1).all()  # the generator has moved on


@every_sampler
def test_global_random_state_is_left_alone(make: Callable[..., nn.Module]) -> None:
    sampler = make(3, 40)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is meant
    sampler(seeded())
    assert torch.equal(torch.get_rng_state(), before[0])
    sampler()
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002 - the global state is what is meant


@every_sampler
def test_without_generator_torchs_own_seed_decides(make: Callable[..., nn.Module]) -> None:
    sampler = make(3, 40)
    state = torch.get_rng_state()
    try:
        torch.manual_seed(5)
        first, second = sampler(), sampler()
        assert not torch.equal(first, second)
        torch.manual_seed(5)
        assert torch.equal(sampler(), first)
    finally:
        torch.set_rng_state(state)


@every_sampler
def test_scale_may_differ_by_coordinate(make: Callable[..., nn.Module]) -> None:
    scale = torch.tensor([0.5, 1.0, 4.0])
    unit, stretched = make(3, 40), make(3, 40, scale=scale)
    torch.testing.assert_close(stretched(seeded()), unit(seeded()) * scale)
    torch.testing.assert_close(make(3, 40, scale=2.5)(seeded()), unit(seeded()) * 2.5)


@every_sampler
def test_double_precision_throughout(make: Callable[..., nn.Module]) -> None:
    sampler = make(3, 40).double()
    t = sampler(seeded())
    assert t.dtype == torch.float64
    # Not float32 numbers in a float64 tensor.
    assert (t != t.float().double()).any()


HALVES = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.float16),
    "to, with a device": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
}


@every_sampler
@pytest.mark.parametrize("to_half", HALVES.values(), ids=HALVES)
def test_half_types_around_a_sampler_do_not_reach_it(
    make: Callable[..., nn.Module], to_half: Callable[[nn.Module], nn.Module]
) -> None:
    sampler = stir(make(3, 40, scale=1e-8))
    t, state = sampler(seeded()), copy.deepcopy(sampler.state_dict())
    model = to_half(nn.Sequential(nn.Linear(3, 3), sampler))
    assert model[0].weight.dtype.itemsize == 2
    assert torch.equal(sampler(seeded()), t)
    assert t.abs().max() > 0
    for name, value in sampler.state_dict().items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, state[name]), name
    # float64 is taken, and kept.
    fine = model.double()[1](seeded())
    assert fine.dtype == torch.float64
    assert torch.equal(to_half(model)[1](seeded()), fine)


@every_sampler
def test_half_types_bring_their_device_only(make: Callable[..., nn.Module]) -> None:
    meta = make(3, 40).to("meta", torch.float16)
    for name, value in meta.state_dict().items():
        assert (value.device.type, value.dtype) == ("meta", torch.float32), name


@every_sampler
def test_evaluation_mode_draws_the_same(make: Callable[..., nn.Module]) -> None:
    sampler = stir(make(3, 40))
    t = sampler.train()(seeded())
    assert torch.equal(sampler.eval()(seeded()), t)


@every_sampler
def test_drawing_leaves_the_module_unchanged(make: Callable[..., nn.Module]) -> None:
    sampler = stir(make(3, 40))
    before = copy.deepcopy(sampler.state_dict())
    sampler(seeded())
    for name, value in sampler.state_dict().items():
        assert torch.equal(value, before[name])


@every_sampler
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_draw_the_same(make: Callable[..., nn.Module], how: str) -> None:
    scale = torch.tensor([0.5, 1.0, 4.0])
    sampler = stir(make(3, 40, scale=scale))
    t = sampler(seeded())
    if how == "deepcopy":
        other = copy.deepcopy(sampler)
    elif how == "pickle":
        # A lambda in this file made it, but the class is the package's.
        other = pickle.loads(pickle.dumps(sampler))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(sampler, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = make(3, 40)
        other.load_state_dict(sampler.state_dict())  # brings the scale along
    assert torch.equal(other(seeded()), t)


@every_sampler
def test_repr_tells_sizes_and_method(make: Callable[..., nn.Module]) -> None:
    sampler = make(3, 40)
    text = repr(sampler)
    assert type(sampler).__name__ in text
    assert "dim=3" in text
    assert "num_frequencies=40" in text
    assert sampler.method in text


@every_sampler
@pytest.mark.cuda
def test_a_cpu_generator_gives_the_same_numbers_on_the_device(
    make: Callable[..., nn.Module],
) -> None:
    sampler = make(3, 40)
    t = sampler(seeded())
    on_device = sampler.cuda()(seeded())
    assert on_device.device.type == "cuda"
    torch.testing.assert_close(on_device.cpu(), t, rtol=1e-5, atol=1e-6)


# --- laws -------------------------------------------------------------------------------------


@every_law
@every_method
@pytest.mark.parametrize("dim", [2, 16])
def test_marginals_are_exact(law: str, method: str, dim: int) -> None:
    make, expected = LAWS[law]
    t = make(dim, 4096, scale=2.0, method=method)(seeded(3)).double().numpy()
    for d in (0, dim - 1):
        # 32 looks at a seeded draw: 1e-4 for each is a false alarm in 300 seeds. Rows that repel
        # each other (orthogonal, Sobol) fit closer than independent ones, never worse.
        assert scipy.stats.kstest(t[:, d] / 2, expected.cdf).pvalue > 1e-4


@pytest.mark.parametrize("df", [1.0, 2.5, 30.0])
@every_method
def test_degrees_of_freedom(df: float, method: str) -> None:
    t = StudentTFrequencies(2, 4096, df=df, method=method)(seeded(4)).double().numpy()
    assert scipy.stats.kstest(t[:, 1], scipy.stats.t(df).cdf).pvalue > 1e-4


def radii(law: str, dim: int, count: int) -> np.ndarray:
    """Lengths of rows of the multivariate law, from its definition."""
    rng = np.random.default_rng(5)
    chi2 = rng.chisquare(dim, count)
    if law == "student":
        chi2 /= rng.chisquare(3, count) / 3
    elif law == "laplace":
        chi2 *= 2 * rng.exponential(size=count)  # a normal of exponential variance
    elif law == "uniform":
        chi2 = (rng.uniform(-1, 1, (count, dim)) ** 2).sum(1)
    return np.sqrt(chi2)


@every_law
@every_method
def test_lengths_of_rows_are_those_of_the_multivariate_law(law: str, method: str) -> None:
    # Marginals alone would not tell a multivariate t from independent t coordinates.
    make, _ = LAWS[law]
    t = make(6, 4096, method=method)(seeded(6)).double()
    assert scipy.stats.ks_2samp(t.norm(dim=1).numpy(), radii(law, 6, 20_000)).pvalue > 1e-4


@every_law
@every_method
def test_coordinates_are_centred_and_uncorrelated(law: str, method: str) -> None:
    make, _ = LAWS[law]
    t = make(4, 8192, method=method)(seeded(7)).double()
    # Signs, not values: a Student-t of three degrees has no fourth moment to bound an error by.
    signs = torch.sign(t)
    assert (signs.mean(0).abs() < 4 / math.sqrt(8192)).all()
    assert ((signs.T @ signs / 8192 - torch.eye(4).double()).abs() < 4.5 / math.sqrt(8192)).all()


@pytest.mark.parametrize("law", ["gaussian", "student", "laplace"])
@pytest.mark.parametrize("count", [8, 20])
def test_blocks_are_orthogonal(law: str, count: int) -> None:
    t = LAWS[law][0](8, count, scale=2.0, method="orthogonal").double()(seeded(8))
    for block in t.split(8):
        unit = block / block.norm(dim=1, keepdim=True)
        torch.testing.assert_close(
            unit @ unit.T, torch.eye(len(block)).double(), rtol=0, atol=1e-12
        )
    # Lengths are random, as those of independent rows; equal ones would be another kernel.
    assert t.norm(dim=1).std() > 0.2


@pytest.mark.parametrize("count", [64, 100, 200])
def test_structured_blocks_are_orthogonal(count: int) -> None:
    # Blocks of 64 rows; of 2 x 50 and 4 x 50 where fewer are wanted, so that each has its signs.
    t = GaussianFrequencies(64, count, scale=2.0, method="structured").double()(seeded(8))
    for block in t.split(50 if count > 64 else 64):
        unit = block / block.norm(dim=1, keepdim=True)
        torch.testing.assert_close(
            unit @ unit.T, torch.eye(len(block)).double(), rtol=0, atol=1e-12
        )
    assert t.norm(dim=1).std() > 0.2


def test_structured_blocks_ignore_autocast() -> None:
    law = GaussianFrequencies(50, 70, method="structured")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = law(seeded(8))
    assert torch.equal(inside, law(seeded(8)))


@pytest.mark.parametrize(("method", "bound"), [("orthogonal", 0.5), ("structured", 0.7)])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_orthogonal_frequencies_steady_the_loss(scale: float, method: str, bound: float) -> None:
    x, y = normal(9, 64, 16), 0.3 + normal(10, 64, 16)

    def spread(method: str) -> Tensor:
        sampler = GaussianFrequencies(16, 64, scale=scale / 4, method=method).double()
        generator = seeded(11)
        draws = [ncfd_loss(x, y, sampler(generator), squared=True) for _ in range(100)]
        return torch.stack(draws).std()

    # A third of the standard deviation is a ninth of the frequencies for the same error. One
    # structured block of 64 columns cut to 16 helps less than four blocks of 16.
    assert spread(method) < bound * spread("random")


@every_law
def test_sobol_fills_low_dimensions_evenly(law: str) -> None:
    make, expected = LAWS[law]

    def distance(method: str, seed: int) -> float:
        t = make(1, 1024, method=method)(seeded(seed)).double().numpy()[:, 0]
        return float(scipy.stats.kstest(t, expected.cdf).statistic)

    sobol, random = (np.mean([distance(m, s) for s in range(5)]) for m in ("sobol", "random"))
    assert sobol < 0.3 * random


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
def test_sobol_never_reaches_an_infinite_quantile(law: str) -> None:
    sampler = LAWS[law][0](2, 4096, method="sobol")
    assert all(sampler(seeded(s)).isfinite().all() for s in range(20))
    assert sampler(seeded()).abs().max() < 7  # |z| of a 2^-30 cell is 6.1


def test_uniform_stays_in_its_box() -> None:
    for method in METHODS:
        t = UniformFrequencies(3, 2000, scale=0.25, method=method)(seeded(12))
        assert 0.24 < t.abs().max() <= 0.25


def test_sobol_refuses_more_dimensions_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"sobol.*30000"):
        GaussianFrequencies(30_000, 4, method="sobol")


# --- learned scales ---------------------------------------------------------------------------


@every_law
@every_method
def test_learned_scale(law: str, method: str) -> None:
    make, _ = LAWS[law]
    fixed, learned = (make(3, 40, scale=0.5, learnable=v, method=method) for v in (False, True))
    assert not list(fixed.parameters())
    assert torch.equal(fixed(seeded()), learned(seeded()))  # learning starts where asked
    t = learned(seeded())
    x, y = normal(13, 20, 3, dtype=torch.float32), 1 + normal(14, 20, 3, dtype=torch.float32)
    ncfd_loss(x, y, t).backward()
    slopes = [p.grad for p in learned.parameters()]
    assert all((s != 0).all() for s in slopes)


@every_law
def test_learned_scale_is_positive_and_bounded(law: str) -> None:
    for ratio in (1.5, 10.0):
        sampler = LAWS[law][0](3, 8, scale=2.0, learnable=True, max_ratio=ratio)
        for value in (-1e4, 1e4):
            with torch.no_grad():
                for p in sampler.parameters():
                    p.fill_(value)
            expected = 2.0 * ratio ** math.copysign(1, value)
            torch.testing.assert_close(sampler.scales(), torch.full((1, 3), expected))


@pytest.mark.parametrize("ratio", [1.5, 4.0, 30.0, 1e6])
def test_a_wide_bound_makes_no_step_longer(ratio: float) -> None:
    law = GaussianFrequencies(1, 8, learnable=True, max_ratio=ratio).double()
    psi = FrequencySampler(1, 8, num_components=1, max_ratio=ratio).double()
    for sampler, raw in ((law, law.raw_scale), (psi, psi.network[-1].bias)):
        (slope,) = torch.autograd.grad(sampler.scales(seeded()).log().sum(), raw)
        np.testing.assert_allclose(slope, math.log(min(ratio, 4)), rtol=1e-12)
        with torch.no_grad():
            raw.fill_(0.3)
        if ratio <= 4:  # what is stored keeps its meaning
            np.testing.assert_allclose(
                sampler.scales(seeded()).detach(), [[ratio ** math.tanh(0.3)]], rtol=1e-12
            )


@pytest.mark.parametrize("law", LAWS)
def test_one_learned_factor_of_all_scales(law: str) -> None:
    build, _ = LAWS[law]
    base = torch.tensor([0.5, 2.0, 8.0])
    sampler = build(None, 64, scale=base, learnable="one", max_ratio=10.0)
    (raw,) = sampler.parameters()
    assert raw.shape == ()
    fixed = build(3, 64, scale=base)(seeded(0))
    torch.testing.assert_close(sampler(seeded(0)), fixed, rtol=0, atol=0)
    # Near the start a step of the raw number is that power of 4, whatever the bound.
    (slope,) = torch.autograd.grad(sampler(seeded(0)).square().sum(), raw)
    assert slope.item() == pytest.approx(2 * math.log(4) * fixed.square().sum().item(), rel=1e-5)
    with torch.no_grad():
        raw.fill_(50.0)
    torch.testing.assert_close(sampler.scales(), 10 * base[None])


def test_one_learned_factor_waits_for_no_features() -> None:
    sampler = GaussianFrequencies(None, 64, scale="median", learnable="one")
    optimizer = torch.optim.Adam(sampler.parameters(), 0.02)
    x, y = normal(1, 40, 5).float(), normal(2, 9, 5).float() + 1
    NCFDLoss(sampler)(x, y, generator=seeded(0)).backward()
    optimizer.step()
    assert sampler.raw_scale.abs().item() == pytest.approx(0.02, rel=1e-3)
    other = GaussianFrequencies(5, 64, scale="median", learnable="one")
    other.load_state_dict(sampler.state_dict())
    torch.testing.assert_close(other(seeded(1), real=x), sampler(seeded(1), real=x))
    with pytest.raises(ValueError, match="learnable must be one of"):
        GaussianFrequencies(5, learnable="two")


def test_default_bounds() -> None:
    # An adversary has to be able to find its scale from a start that is thirty times off.
    sampler = FrequencySampler(3, 64, scale=2.0)
    with torch.no_grad():
        sampler.network[-1].bias.copy_(torch.tensor([-1e4, 0.0, 1e4]))
    torch.testing.assert_close(sampler.scales()[0], torch.tensor([2 / 30, 2.0, 60.0]))


# --- a size learned at the first call ---------------------------------------------------------


@every_law
@every_method
def test_size_is_that_of_the_first_real_samples(law: str, method: str) -> None:
    lazy = LAWS[law][0](num_frequencies=40, scale=0.5, method=method)
    for bad in (lazy, lazy.scales):
        with pytest.raises(ValueError, match=r"dim=None.*real=samples"):
            bad()
    assert "dim=None" in repr(lazy)
    sized = LAWS[law][0](5, 40, scale=0.5, method=method)
    for shape in ((7, 5), (2, 7, 5), (0, 5)):  # a process's part may be empty
        t = copy.deepcopy(lazy)(seeded(), real=torch.ones(shape))
        assert torch.equal(t, sized(seeded()))
    lazy(real=torch.ones(7, 5))
    assert torch.equal(lazy(seeded()), sized(seeded()))  # and now without
    assert lazy.scales().shape == (1, 5)
    assert repr(lazy) == repr(sized)
    assert lazy.state_dict().keys() == sized.state_dict().keys()
    with pytest.raises(ValueError, match=r"real must have 5 features.*\(7, 4\)"):
        lazy(real=torch.ones(7, 4))


def test_size_of_a_scale_is_the_size() -> None:
    law = GaussianFrequencies(num_frequencies=8, scale=torch.tensor([1.0, 2.0, 3.0]))
    assert law.dim == 3
    assert law(seeded()).shape == (8, 3)
    assert GaussianFrequencies(scale=torch.tensor(2.0)).dim is None


def test_what_cannot_wait_for_the_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"learnable=True needs dim.*LaplaceFrequencies.like"):
        LaplaceFrequencies(learnable=True)
    with pytest.raises(TypeError, match=r"dim must be an int.*FrequencySampler.like"):
        FrequencySampler(None)
    with pytest.raises(ValueError, match=r"sobol.*30000"):
        GaussianFrequencies(method="sobol")(real=torch.ones(2, 30_000))
    for bad, kind in (
        ([1.0], TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(3, 0), ValueError),
    ):
        with pytest.raises(kind, match="real"):
            GaussianFrequencies()(real=bad)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_before_and_after_the_first_call(how: str, called: bool) -> None:
    real = normal(30, 9, 4, dtype=torch.float32)
    law = StudentTFrequencies(num_frequencies=12, scale=0.3, df=2.0)
    if called:
        law(real=real)
    if how == "deepcopy":
        other = copy.deepcopy(law)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(law))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(law, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = StudentTFrequencies(num_frequencies=12, df=2.0)
        other.load_state_dict(law.state_dict())
    assert other.dim == (4 if called else None)
    assert torch.equal(other(seeded(), real=real), law(seeded(), real=real))


def test_states_of_laws_with_and_without_a_size() -> None:
    sized = nn.Sequential(GaussianFrequencies(3, 8, scale=torch.tensor([1.0, 2.0, 3.0])))
    unsized = nn.Sequential(GaussianFrequencies(num_frequencies=8))
    unsized.load_state_dict(sized.state_dict())
    assert torch.equal(unsized(seeded()), sized(seeded()))
    # Stored before the first call, loaded after it: one number for all features.
    early = nn.Sequential(GaussianFrequencies(num_frequencies=8, scale=5.0)).state_dict()
    sized.load_state_dict(early)
    assert torch.equal(sized(seeded()), GaussianFrequencies(3, 8, scale=5.0)(seeded()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        unsized.load_state_dict(GaussianFrequencies(4, 8).state_dict(prefix="0."))


def test_types_and_devices_before_the_first_call() -> None:
    real = torch.ones(4, 3)
    assert GaussianFrequencies().double()(real=real).dtype == torch.float64
    assert GaussianFrequencies().half()(real=real.half()).dtype == torch.float32
    away = GaussianFrequencies()(real=real.to("meta"))  # where the samples are
    assert away.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.parametrize("moved", [False, True])
def test_size_brings_the_device(moved: bool) -> None:
    law = GaussianFrequencies(num_frequencies=8, scale="median")
    law = law.cuda() if moved else law
    t = law(seeded(), real=torch.randn(20, 3, device="cuda"))
    assert t.device.type == law.base_scale.device.type == "cuda"


@every_sampler
def test_like_takes_size_and_device_from_features(make: Callable[..., nn.Module]) -> None:
    sampler = make(3, 40)
    kind, options = type(sampler), {"method": sampler.method}
    like = kind.like(normal(31, 2, 9, 3), 40, scale=0.5, **options)
    assert isinstance(like, kind)
    assert torch.equal(like(seeded()), make(3, 40, scale=0.5)(seeded()))
    assert kind.like(torch.ones(5, 3), **options).num_frequencies == 1024
    away = kind.like(torch.ones(5, 3, device="meta"), **options)
    assert all(v.device.type == "meta" for v in away.state_dict().values())
    for bad, error in (
        (torch.ones(3), ValueError),
        (torch.ones(2, 3).long(), TypeError),
        (3, TypeError),
    ):
        with pytest.raises(error, match="features"):
            kind.like(bad, **options)


def test_size_is_learned_inside_a_graph() -> None:
    x = normal(32, 20, 3, dtype=torch.float32)

    class Loss(nn.Module):
        def __init__(self, law: nn.Module) -> None:
            super().__init__()
            self.law = law

        def forward(self, x: Tensor) -> Tensor:
            return ncfd_loss(x, x + 1, self.law(real=x))

    for scale in (1.0, "median"):
        torch.compiler.reset()
        loss = Loss(GaussianFrequencies(num_frequencies=8, scale=scale))
        graph = torch.compile(loss, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            assert graph(x).isfinite()
            assert loss.law.base_scale.shape == (3,)


# --- a scale from the data --------------------------------------------------------------------


@every_sampler
def test_median_scale_is_that_of_the_call(make: Callable[..., nn.Module]) -> None:
    sampler, unit = make(3, 40, scale="median"), make(3, 40)
    assert sampler.relative
    assert not unit.relative
    assert "scale='median'" in repr(sampler)
    for size in (1e-20, 0.1, 50.0):  # nothing is left of the call before
        real = size * normal(33, 21, 3, dtype=torch.float32)
        factor = 1 / np.median(scipy.spatial.distance.pdist(real.double()))
        t = sampler(seeded(), real=real)
        assert t.dtype == torch.float32
        torch.testing.assert_close(t, factor * unit(seeded()), rtol=1e-5, atol=0)
    assert sampler.state_dict().keys() == unit.state_dict().keys()
    with pytest.raises(ValueError, match=r"scale='median'.*real=samples"):
        sampler(seeded())
    # What the loss asks for, to scale the rows instead.
    assert torch.equal(sampler(seeded(), rows_scaled=True), unit(seeded()))
    assert torch.equal(sampler(seeded(), real=real, rows_scaled=True), unit(seeded()))
    assert torch.equal(unit(seeded(), real=real), unit(seeded()))


def test_median_scale_of_a_batch_is_one_for_each_set() -> None:
    real = normal(34, 2, 21, 3) * torch.tensor([1.0, 7.0]).view(2, 1, 1)
    law = GaussianFrequencies(num_frequencies=8, scale="median")
    t = law(seeded(), real=real)
    assert t.shape == (2, 8, 3)
    for k in range(2):
        torch.testing.assert_close(t[k], law(seeded(), real=real[k]))
    # ⟨s t, x⟩ = ⟨t, s x⟩
    factor = [1 / np.median(scipy.spatial.distance.pdist(x)) for x in real]
    scaled = real * torch.tensor(factor).view(2, 1, 1)
    y = normal(35, 2, 9, 3)
    unit = law(seeded(), real=real, rows_scaled=True)
    torch.testing.assert_close(
        ncfd_loss(real, y, t), ncfd_loss(scaled, y * scaled[:, :1, :1] / real[:, :1, :1], unit)
    )


def test_median_scale_learns_around_that_of_the_data() -> None:
    real = 100 * normal(36, 21, 3, dtype=torch.float32)
    law = GaussianFrequencies.like(real, 8, scale="median", learnable=True)
    ncfd_loss(real, 2 * real, law(seeded(), real=real)).backward()
    assert (law.raw_scale.grad != 0).all()
    with pytest.raises(TypeError, match=r"scale.*'median'.*'mean'"):
        GaussianFrequencies(3, scale="mean")


# --- spread -----------------------------------------------------------------------------------


@every_sampler
def test_spread_multiplies_rows_by_a_stratified_log_normal(make: Callable[..., nn.Module]) -> None:
    plain, spread = (make(3, 64, spread=v).double() for v in (0, 0.7))

    def factors(seed: int) -> np.ndarray:
        # Drawn after all else: by ψ after the noise of its network, by the laws after the rows.
        rows = [
            m.scales(seeded(seed)) if isinstance(m, FrequencySampler) else m(seeded(seed))
            for m in (spread, plain)
        ]
        ratio = (rows[0] / rows[1]).detach().numpy()
        np.testing.assert_allclose(ratio, ratio[:, :1].repeat(3, 1), rtol=1e-9)
        return ratio[:, 0]

    first, second = factors(0), factors(1)
    assert (first != second).all()  # fresh at each draw
    for factor in (first, second):
        count = len(factor)
        level = scipy.stats.norm.cdf(np.log(factor) / 0.7) * count
        # One in each of equally likely strata: exactly normal together, with next to no noise.
        assert (np.floor(level) == np.arange(count)).all()
        assert scipy.stats.kstest(level % 1, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_spread_is_a_mixture_of_kernels(spread: float) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights /= weights.sum()
    delta = np.array([0.1, 0.5, 1.0, 2.0])
    expected = np.exp(-0.5 * np.outer(delta, np.exp(spread * nodes)) ** 2) @ weights
    for sampler in (
        GaussianFrequencies(2, 4096, spread=spread, method="sobol"),
        GaussianFrequencies(2, 4096, spread=spread, method="orthogonal"),
        FrequencySampler(2, 4096, spread=spread, method="orthogonal"),
    ):
        generator = seeded(3)
        with torch.no_grad():
            t = torch.stack([sampler(generator)[:, 0] for _ in range(40)]).double()
        cosines = torch.cos(t.unsqueeze(-1) * torch.from_numpy(delta)).mean(1).numpy()
        error = np.abs(cosines.mean(0) - expected)
        # Five of the mean's standard errors, from the draws themselves.
        assert (error < 5 * cosines.std(0) / math.sqrt(40) + 1e-5).all(), type(sampler)


def test_spread_has_next_to_no_noise_of_its_own() -> None:
    # The kernel of 64 components, over draws: stratified against independent normals.
    sampler = FrequencySampler(1, 64, num_components=64, spread=0.7).double()
    generator = seeded(4)
    with torch.no_grad():
        scales = torch.stack([sampler.scales(generator)[:, 0] for _ in range(400)]).numpy()
    kernel = np.exp(-0.5 * scales**2).mean(1)
    independent = np.exp(0.7 * np.random.default_rng(5).normal(size=(400, 64)))
    assert kernel.std() < 0.05 * np.exp(-0.5 * independent**2).mean(1).std()


@every_sampler
def test_no_spread_is_the_law_itself(make: Callable[..., nn.Module]) -> None:
    assert torch.equal(make(3, 40, spread=0)(seeded()), make(3, 40)(seeded()))
    text = repr(make(3, 40, spread=0.5))
    assert "spread=0.5" in text
    for bad, kind in (
        (-0.1, ValueError),
        (math.nan, ValueError),
        (11, ValueError),
        ("1", TypeError),
    ):
        with pytest.raises(kind, match="spread"):
            make(3, 40, spread=bad)
    with torch.no_grad():  # the widest still holds numbers
        assert make(3, 4096, spread=10)(seeded()).isfinite().all()


def test_held_norm_holds_around_the_spread() -> None:
    options = {"num_components": 16, "fixed_norm": True}
    plain = stir(FrequencySampler(4, 64, **options))
    spread = stir(FrequencySampler(4, 64, spread=0.7, **options))
    norms = [m.scales(seeded()).double().square().mean(1).sqrt().detach() for m in (plain, spread)]
    np.testing.assert_allclose(norms[0], 1, rtol=1e-5)
    assert (plain.scales(seeded()) <= 2 * (1 + 1e-5)).all()  # √D, where max_ratio² is 900
    assert (norms[1][1:] > norms[1][:-1]).all()
    assert 2 < norms[1][-1] < 10


# --- the scale mixture ------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "components", "expected"), [(64, None, 4), (17, None, 2)])
def test_components_of_the_paper(count: int, components: int | None, expected: int) -> None:
    sampler = FrequencySampler(3, count, num_components=components)
    assert sampler.scales().shape == (expected, 3)


@pytest.mark.parametrize("components", [1, 3, 40])
@pytest.mark.parametrize("method", ["random", "orthogonal", "structured"])
def test_components_share_frequencies_evenly(components: int, method: str) -> None:
    # Zero scale but for one component: count the frequencies that are left.
    sampler = FrequencySampler(2, 40, num_components=components, method=method)
    for k in range(components):
        scales = torch.zeros(components, 2)
        scales[k] = 1
        sampler.scales = lambda generator=None, scales=scales: scales
        rows = (sampler(seeded()) != 0).all(1).sum()
        assert 40 // components <= rows <= -(-40 // components)


@pytest.mark.parametrize("dim", [1, 2, 8, 300])
def test_every_component_has_its_own_scale(dim: int) -> None:
    sampler = stir(FrequencySampler(dim, 160, num_components=10), 0.5)
    scales = sampler.scales(seeded())
    assert scales.shape == (10, dim)
    assert len(torch.unique(scales.detach(), dim=0)) == 10
    assert (scales > 0).all()


@pytest.mark.parametrize("spread", [0.1, 1.0, 1e3])
def test_mixture_scales_stay_within_the_ratio(spread: float) -> None:
    for ratio in (2.0, 8.0):
        sampler = stir(FrequencySampler(3, 64, scale=5.0, max_ratio=ratio), spread)
        scales = sampler.scales(seeded())
        assert (scales <= 5.0 * ratio * (1 + 1e-6)).all()
        assert (scales >= 5.0 / ratio * (1 - 1e-6)).all()
        assert sampler(seeded()).isfinite().all()


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e30])
def test_held_norm_leaves_only_the_choice_of_coordinates(size: float) -> None:
    base = size * torch.tensor([1.0, 2.0, 5.0])
    sampler = stir(FrequencySampler(3, 64, scale=base, max_ratio=4.0, fixed_norm=True), 1.0)
    relative = (sampler.scales(seeded()) / size).double()
    # 10 = (1 + 4 + 25) / 3; float32 rounds each of a few operations.
    np.testing.assert_allclose(relative.square().mean(1).detach(), 10.0, rtol=1e-5)
    assert (relative.std(0) > 0.01 * relative.mean(0)).all()  # yet no two components are alike
    assert (relative <= 16 * base / size).all()


def test_held_norm_starts_at_the_scale_and_climbs() -> None:
    x, y = normal(19, 200, 4, dtype=torch.float32), normal(20, 200, 4, dtype=torch.float32)
    y[:, 2] *= 2  # the sets differ in one coordinate
    sampler = FrequencySampler(4, 512, scale=0.5, fixed_norm=True)
    torch.testing.assert_close(sampler.scales(seeded()), torch.full((32, 4), 0.5))
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.01, maximize=True)
    for _ in range(60):
        optimizer.zero_grad()
        loss = ncfd_loss(x, y, sampler(seeded()), squared=True)
        loss.backward()
        optimizer.step()
    means = sampler.scales(seeded()).mean(0)
    assert means[2] > 0.7  # of at most 1, if the norm is held
    assert max(means[0], means[1], means[3]) < 0.45


def test_mixture_is_normal_given_its_scales() -> None:
    # One component of known scale: what is left after dividing by it is a standard normal.
    sampler = stir(FrequencySampler(3, 4096, num_components=1))
    scales = sampler.scales(seeded(15))
    t = sampler(seeded(15))  # the same generator: the scale is drawn first
    ratio = (t / scales).detach().double().numpy()
    for d in range(3):
        assert scipy.stats.kstest(ratio[:, d], "norm").pvalue > 1e-4


def test_mixture_starts_as_the_gaussian() -> None:
    t = FrequencySampler(3, 4096, scale=2.0)(seeded(16)).detach().double().numpy()
    assert scipy.stats.kstest(t.ravel() / 2, "norm").pvalue > 1e-4


def test_every_parameter_of_the_mixture_learns() -> None:
    # At the very start the last layer is zero and shields the others; one step later all move.
    x, y = normal(17, 20, 3, dtype=torch.float32), 1 + normal(18, 20, 3, dtype=torch.float32)
    sampler = FrequencySampler(3, 64)
    optimizer = torch.optim.SGD(sampler.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ncfd_loss(x, y, sampler(seeded())).backward()
        optimizer.step()
    for name, p in sampler.named_parameters():
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


def by_type(m: nn.Module) -> None:
    if isinstance(m, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
        nn.init.normal_(m.weight, 1.0, 5.0)


def by_name(m: nn.Module) -> None:  # DCGAN's, and those that look for linear layers too
    name = type(m).__name__
    if any(name.find(part) != -1 for part in ("Conv", "Linear", "Norm")):
        nn.init.normal_(m.weight.data, 1.0, 5.0)


def by_weight(m: nn.Module) -> None:  # Xavier's, as tutorials have it
    if hasattr(m, "weight") and m.weight.dim() > 1:
        nn.init.xavier_uniform_(m.weight.data, 100.0)
    if getattr(m, "bias", None) is not None:
        m.bias.data.fill_(5.0)


def by_method(m: nn.Module) -> None:
    if hasattr(m, "reset_parameters"):
        m.reset_parameters()


@every_sampler
@pytest.mark.parametrize("initialise", [by_type, by_name, by_weight, by_method])
def test_a_strangers_initialiser_passes_by(
    make: Callable[..., nn.Module], initialise: Callable[[nn.Module], None]
) -> None:
    sampler = stir(make(3, 40))
    t = sampler(seeded())
    net = nn.Sequential(nn.Linear(3, 3), sampler)
    before = net[0].weight.detach().clone()
    net.apply(initialise)
    assert (net[0].weight != before).any()
    assert torch.equal(sampler(seeded()), t)


def written_out(hidden: int, dim: int) -> nn.Sequential:
    """ψ's network of PyTorch's own layers, as version 0.1 held it."""
    return nn.Sequential(
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, dim),
    )


def test_the_network_is_the_layers_of_its_description() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sampler = FrequencySampler(5, 16)
        after = torch.rand(())
        torch.manual_seed(3)
        network = written_out(16, 5)
        assert torch.equal(torch.rand(()), after)
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    # The same start from a seed, under the same names.
    for (name, p), (other, q) in zip(
        sampler.network.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(p, q), name
    assert dict(sampler.network.named_parameters()).keys() == sampler.network.state_dict().keys()
    stir(network)
    sampler.network.load_state_dict(network.state_dict())
    x = normal(21, 7, 16, dtype=torch.float32)
    assert torch.equal(sampler.network(x), network(x))
    assert torch.equal(sampler.network[-1].weight, network[-1].weight)
    # A module stored whole by version 0.1 holds the layers themselves.
    old = copy.deepcopy(sampler)
    old.network = network
    assert torch.equal(old(seeded()), sampler(seeded()))
    state = {k: 2 * v.detach() for k, v in sampler.state_dict().items()}
    swapped = torch.func.functional_call(sampler, state, (seeded(),))
    sampler.load_state_dict(state)
    assert torch.equal(swapped, sampler(seeded()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_default_type_widens_and_never_narrows(dtype: torch.dtype) -> None:
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        sampler = FrequencySampler(3, 16)
        t = sampler(seeded())
    finally:
        torch.set_default_dtype(default)
    assert t.dtype == torch.promote_types(dtype, torch.float32)
    assert all(p.dtype == t.dtype for p in sampler.parameters())


def test_autocast_does_not_reach_the_sampler() -> None:
    sampler = stir(FrequencySampler(8, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = sampler(seeded())
    assert t.dtype == torch.float32
    assert torch.equal(t, sampler(seeded()))


def test_mixture_options() -> None:
    with pytest.raises(ValueError, match=r"num_components.*num_frequencies = 8.*9"):
        FrequencySampler(3, 8, num_components=9)
    with pytest.raises(ValueError, match=r"max_ratio.*1"):
        FrequencySampler(3, 8, max_ratio=1.0)
    with pytest.raises(ValueError, match=r"hidden_dim.*0"):
        FrequencySampler(3, 8, hidden_dim=0)
    with pytest.raises(ValueError, match=r"method.*sobol"):
        FrequencySampler(3, 8, method="sobol")
    with pytest.raises(ValueError, match=r"fixed_norm.*dim=1"):
        FrequencySampler(1, 8, fixed_norm=True)
    with pytest.raises(ValueError, match=r"\bdf\b.*0"):
        StudentTFrequencies(3, 8, df=0.0)


# --- rays -------------------------------------------------------------------------------------


def test_rays_are_multiples_of_unit_directions() -> None:
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    sampler = SlicedFrequencies(4, 6, 5, t_max=2.0, scale=scale).double()
    t = sampler(seeded()) / scale
    assert t.shape == (30, 4)
    rays = t.view(6, 5, 4)
    directions = rays[:, -1] / 2
    np.testing.assert_allclose(directions.norm(dim=1), 1, rtol=1e-12)
    steps = torch.arange(1, 6).view(1, 5, 1) / 5
    torch.testing.assert_close(rays, steps * rays[:, -1:])
    # A block of as many as there are features, and the rest.
    for block in directions.split(4):
        eye = torch.eye(len(block), dtype=torch.float64)
        torch.testing.assert_close(block @ block.T, eye, rtol=0, atol=1e-12)
    middle = SlicedFrequencies(4, 6, 5, t_max=2.0, weighting="energy").double()(seeded())
    torch.testing.assert_close(middle.view(6, 5, 4), (steps - 0.1) * rays[:, -1:])


@pytest.mark.parametrize("method", METHODS)
def test_directions_are_uniform(method: str) -> None:
    t = SlicedFrequencies(3, 4096, 1, t_max=1.0, method=method)(seeded(1)).double()
    # In three dimensions every coordinate of a uniform direction is uniform on [-1, 1].
    for d in range(3):
        assert scipy.stats.kstest(t[:, d], scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4
    again, other = (SlicedFrequencies(3, 8, 2, method=method)(seeded(s)) for s in (1, 2))
    assert (again != other).all()


def absolute_mean(mean: float, variance: float) -> float:
    """E|z| of a normal z."""
    folded = scipy.stats.foldnorm(abs(mean) / variance**0.5, scale=variance**0.5)
    return float(folded.mean())


def energy_of_normals(mean: float, deviation: float) -> float:
    """2E|x-y| - E|x-x'| - E|y-y'| of N(0, 1) and N(mean, deviation²)."""
    own = absolute_mean(0, 2) + absolute_mean(0, 2 * deviation**2)
    return 2 * absolute_mean(mean, 1 + deviation**2) - own


def normality_of_normals(mean: float, deviation: float) -> float:
    """∫ |φx - φy|² exp(-s²/2) ds of the same two."""

    def kernel(mean: float, variance: float) -> float:
        return math.sqrt(2 * math.pi / (1 + variance)) * math.exp(-(mean**2) / 2 / (1 + variance))

    own = kernel(0, 2) + kernel(0, 2 * deviation**2)
    return own - 2 * kernel(mean, 1 + deviation**2)


@pytest.mark.parametrize(
    ("mean", "deviation", "t_max", "energy", "normality"),
    [
        (0.1, 1.0, 3.0, 3e-5, 3e-5),
        (1.0, 1.0, 3.0, 3e-5, 3e-5),
        (5.0, 1.0, 3.0, 3e-5, 3e-5),
        (20.0, 1.0, 3.0, 3e-5, 3e-5),
        (0.0, 2.0, 3.0, 3e-5, 3e-5),
        (0.0, 0.5, 3.0, 4e-2, 4e-3),  # beyond t_max there is still something
        (0.0, 0.5, 5.0, 2e-4, 1e-7),
    ],
)
def test_weights_are_those_of_the_integrals(
    mean: float, deviation: float, t_max: float, energy: float, normality: float
) -> None:
    for weighting, truth, rtol in (
        ("energy", energy_of_normals(mean, deviation), energy),
        ("normal", normality_of_normals(mean, deviation), normality),
    ):
        sampler = SlicedFrequencies(1, 3, t_max=t_max, weighting=weighting).double()
        t = sampler(seeded())[:, 0]
        phi_x = torch.exp(-0.5 * t**2)
        phi_y = torch.polar(torch.exp(-0.5 * (deviation * t) ** 2), mean * t)
        found = (sampler.weights * (phi_x - phi_y).abs().square()).sum()
        np.testing.assert_allclose(found, truth, rtol=rtol, err_msg=weighting)


def test_sliced_energy_distance_of_samples() -> None:
    # In D dimensions the mean of |⟨u, δ⟩| over directions is |δ| times a constant.
    D, N, M = 5, 30, 20
    x, y = normal(40, N, D), 0.3 + normal(41, M, D)
    sampler = SlicedFrequencies(D, 1500, 100, t_max=10.0, weighting="energy").double()
    with torch.no_grad():
        t = sampler(seeded())
        terms = ncfd_loss(x, y, t, squared=True, reduction="none")
    found = 2 * (sampler.weights * terms).sum()
    constant = math.gamma(D / 2) / math.gamma((D + 1) / 2) / math.sqrt(math.pi)
    within = [scipy.spatial.distance.cdist(v, v).mean() for v in (x, y)]
    distance = constant * (2 * scipy.spatial.distance.cdist(x, y).mean() - sum(within))
    beyond = 2 * (1 / N + 1 / M) / (math.pi * 10.0)  # of samples: they differ at every frequency
    assert beyond > 0.03 * distance
    np.testing.assert_allclose(found + beyond, distance, rtol=0.01)
    # As a mean over weights, as the loss takes it.
    weights = sampler.weights
    mean = (weights * terms).sum() / weights.sum()
    torch.testing.assert_close(2 * weights.sum() * mean, found)


def test_weights_belong_to_the_frequencies() -> None:
    for weighting in ("normal", "energy"):
        for J in (1, 2, 17):
            sampler = SlicedFrequencies(3, 4, J, t_max=2.0, weighting=weighting)
            w = sampler.weights
            assert w.shape == (4 * J,)
            assert (w > 0).all()
            assert w.isfinite().all()
            assert torch.equal(w.view(4, J)[0], w.view(4, J)[3])
            assert sampler.double().weights.dtype == torch.float64
    # The nodes of 17 with 0 on [0, 3], halved at their ends, and of both signs.
    s = np.linspace(0, 3, 17)[1:]
    expected = 2 * 3 / 16 * np.exp(-(s**2) / 2) * np.where(s == 3, 0.5, 1) / 4
    found = SlicedFrequencies(3, 4, 16).double().weights.view(4, 16)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rays_do_what_every_sampler_does() -> None:
    sampler = SlicedFrequencies(3, 4, 5, scale=0.5)
    t = sampler(seeded())
    assert not list(sampler.parameters())
    assert torch.equal(sampler(seeded()), t)
    assert torch.equal(copy.deepcopy(sampler).half()(seeded()), t)
    assert torch.equal(pickle.loads(pickle.dumps(sampler))(seeded()), t)
    for part in ("dim=3", "num_slices=4", "num_nodes=5", "t_max=3", "'orthogonal'", "'normal'"):
        assert part in repr(sampler)
    lazy = SlicedFrequencies(None, 4, 5, scale="median")
    weights = lazy.weights
    real = normal(42, 21, 3, dtype=torch.float32)
    factor = 1 / np.median(scipy.spatial.distance.pdist(real.double()))
    torch.testing.assert_close(lazy(seeded(), real=real), 2 * factor * t, rtol=1e-5, atol=0)
    assert torch.equal(lazy.weights, weights)
    other = SlicedFrequencies(None, 4, 5)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other(seeded()), t)
    loss = NCFDLoss(sampler, squared=True)
    assert loss(real, real + 1) > 0


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"num_slices": 0}, ValueError, "num_slices.*0"),
        ({"num_nodes": 2.5}, TypeError, "num_nodes.*2.5"),
        ({"t_max": -1.0}, ValueError, "t_max.*-1"),
        ({"weighting": "flat"}, ValueError, "weighting.*'normal', 'energy'.*flat"),
        ({"weighting": None}, TypeError, "weighting"),
        ({"method": "halton"}, ValueError, "method.*halton"),
        ({"dim": 0}, ValueError, "dim.*0"),
        ({"scale": "wide"}, TypeError, "scale.*wide"),
    ],
)
def test_options_of_rays(bad: dict, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        SlicedFrequencies(**({"dim": 3, "num_slices": 4} | bad))


# --- documentation ----------------------------------------------------------------------------


@every_law
def test_help_of_each_law_tells_all(law: str) -> None:
    # What the laws share is written once; each still says all of it, and what is its own.
    text = pydoc.plain(pydoc.render_doc(LAWS[law][0]))
    for name in inspect.signature(LAWS[law][0]).parameters:
        assert f"{name}: " in text, name
    for part in ("Args:", "Returns", "Raises:", "Example:", "Source:", ">>> "):
        assert text.count(part) >= 1, part
