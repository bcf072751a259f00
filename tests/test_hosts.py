"""The guide's page *In your codebase*: its differences, its table, and the sign of ψ.

Each difference is applied to a small program of that shape in ``hosts/``, and both are run.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from strategies import normal
from torch import Tensor

import ncfd
from ncfd import functional

HOSTS = Path(__file__).with_name("hosts")
PAGE = Path(__file__).parents[1] / "docs" / "guide" / "in-your-codebase.md"
TEXT = PAGE.read_text(encoding="utf-8")
DIFFS = dict(re.findall(r'^```diff title="([\w.]+)"\n(.*?)^```$', TEXT, re.M | re.S))


def patched(source: str, diff: str) -> str:
    """The source with each hunk's old lines, which have to stand there once, replaced."""
    for hunk in re.split(r"^@@\n", diff, flags=re.M):
        lines = [(line[:1] or " ", line[1:] + "\n") for line in hunk.splitlines()]
        old = "".join(line for mark, line in lines if mark in " -")
        new = "".join(line for mark, line in lines if mark in " +")
        assert source.count(old) == 1, f"not there once:\n{old}"
        source = source.replace(old, new)
    return source


def run(source: str, **arguments: object) -> tuple[list[float], object, dict]:
    """The losses, what ``main`` returns beside them, and the module's names."""
    names: dict = {"__name__": "host"}
    exec(compile(source, "host", "exec"), names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses, result = names["main"](**arguments)
    return losses, result, names


def before(name: str) -> str:
    return (HOSTS / f"{name}.py").read_text(encoding="utf-8")


def after(name: str) -> str:
    return patched(before(name), DIFFS[f"{name}.py"])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_host_has_its_difference() -> None:
    assert sorted(DIFFS) == sorted(path.name for path in HOSTS.glob("*.py"))


def test_a_difference_that_does_not_fit_is_noticed() -> None:
    assert patched("a\nb\nc\n", " a\n-b\n+B\n@@\n c\n+d\n") == "a\nB\nc\nd\n"
    with pytest.raises(AssertionError, match="not there once"):
        patched("a\nb\n", "-c\n+d\n")


every_host = pytest.mark.parametrize("name", sorted(path.stem for path in HOSTS.glob("*.py")))


@every_host
def test_a_host_trains_before_and_after(name: str) -> None:
    for source in (before(name), after(name)):
        losses, _, _ = run(source)
        assert np.isfinite(losses).all()
        if name != "two_step_gan":  # there both sides move
            assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_both_distances_train_the_generator() -> None:
    for source in (before("two_step_gan"), after("two_step_gan")):
        distances = []
        for steps in (0, 300):
            _, fake, names = run(source, steps=steps)
            torch.manual_seed(1)
            distances.append(functional.gaussian_ncfd(names["sample"](512), fake, 0.5).item())
        assert distances[1] < 0.2 * distances[0], distances


def test_mean_matching_moves_the_images_as_far() -> None:
    """With the factor of the page; without it they move less than half as far."""
    source = after("mean_matching")
    _, means, names = run(before("mean_matching"))
    _, found, _ = run(source)
    _, without, _ = run(source.replace("45 * ncfd_loss", "ncfd_loss"))
    assert 0.5 < found / means < 2
    assert without < 0.5 * means
    # It is what the three lines give in the first step.
    torch.manual_seed(0)
    real, embed = names["real_images"](), names["network"]()
    images = real[:, : names["PER_CLASS"]].clone().requires_grad_()
    law = ncfd.NCFDLoss(ncfd.GaussianFrequencies(scale="median"))
    pairs = [(embed(r).detach(), embed(i)) for r, i in zip(real, images, strict=True)]
    old = sum((r.mean(0) - f.mean(0)).square().sum() for r, f in pairs)
    new = sum(law(r, f) for r, f in pairs)
    slopes = [torch.autograd.grad(v, images, retain_graph=True)[0].norm() for v in (old, new)]
    assert slopes[0] / slopes[1] == pytest.approx(45, rel=0.1)


def test_both_losses_adapt_the_domain() -> None:
    def accuracy(source: str, **arguments: float) -> float:
        _, (body, head), names = run(source, **arguments)
        torch.manual_seed(1)
        x, labels = names["batch"](4.0)
        return (head(body(x)).argmax(1) == labels).double().mean().item()

    assert accuracy(before("domain_adaptation"), trade_off=0.0) < 0.75
    assert accuracy(before("domain_adaptation")) > 0.9
    assert accuracy(after("domain_adaptation")) > 0.9


@pytest.mark.parametrize("form", ["closed", "frequencies", "root"])
def test_only_the_biased_loss_pulls_two_equal_sides_together(form: str) -> None:
    """The slope along the size of the rows of both, which a scale from the rows cannot end."""

    def slope(unbiased: bool) -> float:
        slopes = []
        for k in range(100):
            x, y = normal(2 * k, 32, 8).requires_grad_(), normal(2 * k + 1, 32, 8).requires_grad_()
            if form == "closed":
                value = functional.gaussian_ncfd(x, y, "median", unbiased=unbiased)
            else:
                law = ncfd.GaussianFrequencies(num_frequencies=64, scale="median")
                loss = ncfd.NCFDLoss(law, squared=form != "root", unbiased=unbiased)
                value = loss(x, y, generator=torch.Generator().manual_seed(k))
            found = torch.autograd.grad(value, (x, y))
            slopes.append(sum((g * v).sum().item() for g, v in zip(found, (x, y), strict=True)))
        return np.mean(slopes) / (np.std(slopes) / 10)  # in standard errors

    assert slope(unbiased=False) > 10
    if form != "root":
        assert abs(slope(unbiased=True)) < 4


def test_both_regularisers_keep_embeddings_from_collapsing() -> None:
    source = before("self_supervised")
    spread = {}
    for key, text in (
        ("before", source),
        ("after", after("self_supervised")),
        ("without", source.replace("invariance + regulariser", "invariance")),
    ):
        _, z, _ = run(text)
        spread[key] = torch.linalg.eigvalsh(torch.cov(z.T))[0].item()
    assert spread["without"] < 0.1 < 0.5 < min(spread["before"], spread["after"])


# --- the sign of ψ ------------------------------------------------------------------------------


@pytest.mark.parametrize("adversary", [None, "signal", "loss"])
def test_psi_that_steps_with_a_critic(adversary: str | None) -> None:
    """Stepped on minus the loss: None raises the loss, a reversal inside lowers it."""
    torch.manual_seed(0)
    real, fake = torch.randn(256, 4), torch.randn(256, 4) + 0.3
    loss = ncfd.NCFDLoss(ncfd.FrequencySampler(4, 256, scale=0.1), adversary=adversary)
    critic_optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)

    def value() -> float:
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return loss(real, fake, generator=draws).item()

    start = value()
    for _ in range(30):
        critic_optimizer.zero_grad()
        (-loss(real, fake)).backward()
        critic_optimizer.step()
    moved = value() / start
    assert moved > 1.5 if adversary is None else moved < 0.75


def test_the_pages_loops_move_psi_as_they_say() -> None:
    """The block itself, whose printed lines the tests of the guide compare; here how far."""
    block = re.search(r"^```python\n(.*?def scale_after.*?)^for loop, adversary", TEXT, re.M | re.S)
    names: dict = {}
    exec(block.group(1), names)
    with torch.random.fork_rng():
        factors = {
            (loop, adversary): names["scale_after"](loop, adversary).item()
            for loop in ("simultaneous", "with the critic", "with the generator")
            for adversary in ("signal", "loss", None)
        }
    wrong = {("simultaneous", None), ("with the generator", None)}
    wrong |= {("with the critic", "signal"), ("with the critic", "loss")}
    for key, factor in factors.items():
        assert factor < 0.5 if key in wrong else factor > 2, key


# --- the same losses by other names ---------------------------------------------------------------

TABLE = TEXT[TEXT.index("## The same losses by other names") :]
ROWS = dict(re.findall(r"^\| ([^|`]+) \|[^|]+\| `([^`]+)` \|[^|]+\|$", TABLE, re.M))
N, D, F = 24, 5, 40


class Given:
    """What the table calls x, y, t and so on, in float64."""

    x, y, t, u = normal(1, N, D), normal(2, N, D) * 0.7 + 0.4, normal(3, F, D), normal(4, D, F)
    a, b, s = 0.3, 1.1, 1e-4
    widths = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]], dtype=torch.float64)


def numpy_phi(x: Tensor, t: Tensor) -> np.ndarray:
    return np.exp(1j * x.numpy() @ t.numpy().T).mean(0)


def terms(t: Tensor) -> tuple[np.ndarray, np.ndarray]:
    p, q = numpy_phi(Given.x, t), numpy_phi(Given.y, t)
    return (abs(p) - abs(q)) ** 2, 2 * (abs(p) * abs(q) - (p * q.conj()).real)


def squares() -> np.ndarray:
    """Squared distances of all rows of both."""
    rows = torch.cat([Given.x, Given.y]).numpy()
    return ((rows[:, None] - rows) ** 2).sum(-1)


def mmd(kernel: np.ndarray, unbiased: bool) -> float:
    xx, yy, xy = kernel[:N, :N], kernel[N:, N:], kernel[:N, N:]
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    apart = ~np.eye(N, dtype=bool)
    return xx[apart].mean() + yy[apart].mean() - 2 * xy.mean()


def ncfm() -> float:
    A, P = terms(Given.t)
    return np.sqrt(Given.a * A + Given.b * P).mean()


def rcf_gan() -> float:
    A, P = terms(Given.t)
    return np.sqrt(A + P).mean()


SCALES = (0.5, 1.0, 2.0)


def ocfgan() -> float:
    return sum(
        (abs(numpy_phi(Given.x, s * Given.t) - numpy_phi(Given.y, s * Given.t)) ** 2).mean()
        for s in SCALES
    )


def mmd_gan() -> float:
    kernel = sum(np.exp(-squares() / (2 * w**2)) for w in (1, 2, 4, 8, 16))
    return mmd(kernel, unbiased=False)


BANDWIDTHS = [2.0**k * squares().mean() for k in range(-3, 2)]


def mk_mmd() -> float:
    kernel = sum(np.exp(-squares() / (2 * square)) for square in BANDWIDTHS)
    return mmd(kernel, unbiased=True) + 2 / (N - 1)


def lejepa() -> float:
    s = np.linspace(0, 3, 17)
    phase = (Given.x.numpy() @ Given.u.numpy())[..., None] * s  # (N, K, J)
    gap = (np.cos(phase).mean(0) - np.exp(-(s**2) / 2)) ** 2 + np.sin(phase).mean(0) ** 2
    w = np.full(17, 2 * s[1])
    w[[0, -1]] /= 2
    return N * (gap * np.exp(-(s**2) / 2) * w).sum(-1).mean()


def dm() -> float:
    return ((Given.x.mean(0) - Given.y.mean(0)) ** 2).sum().item()


FORMULAS = {
    "NCFM": ncfm,
    "RCF-GAN": rcf_gan,
    "OCFGAN": ocfgan,
    "MMD-GAN": mmd_gan,
    "MK-MMD": mk_mmd,
    "LeJEPA, lightly": lejepa,
    "DM": dm,
}


def test_every_row_of_the_table_has_its_formula() -> None:
    assert list(ROWS) == list(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_row_of_the_table_is_the_same_loss(name: str) -> None:
    names = {key: value for key, value in vars(Given).items() if key[0] != "_"}
    names |= {key: getattr(functional, key) for key in functional.__all__}
    root = torch.tensor(BANDWIDTHS, dtype=torch.float64).sqrt()
    names["scales"] = 1 / root[:, None] if name == "MK-MMD" else SCALES
    # A difference of numbers near 1 is multiplied by 2/s² in the last row.
    rel = 1e-6 if name == "DM" else 1e-12
    assert eval(ROWS[name], names).item() == pytest.approx(FORMULAS[name](), rel=rel)
