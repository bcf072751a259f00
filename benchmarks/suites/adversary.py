"""Suite `adversary`: what ψ does when it is paid for signal (J), and when it is paid the loss.

`nothing`: two disjoint samples of one law, held; ψ alone moves. Rows are rectified normal features,
an eighth of them dead, scaled so that their root mean square distance from the mean is 1: a scale
then is the root mean square phase ⟨t, x - x̄⟩ in radians. `growth` is that phase after the steps
over that before, `highest` the largest one on the way, `bound` the share of the scales of living
features within 5 % (of the logarithm) of their bound, `bound, dead` that of the others. `mean log`
and `deviation log` are of the living features' scales over the start.

`walk`: the same, and with every gradient's sign drawn at random, which leaves its size and takes
out whatever it says: where both go the same way, that way is a random walk of Adam's.

`trial`: M points moved to match data, the root loss, Adam; frequencies at fixed scales, and from ψ,
from several starts; "s^1.5" is J whose weight, the signal |φx|², counts with that power. `error` is
1000 times the energy distance of the points to held-out rows
(unbiased on the side of the rows; the points are the measure itself). `judged` sets ψ's error from
each start against the best of the fixed scales, which is chosen with that error in hand.

`told`: the same with another extractor in each step, which scales and orders the features anew. ψ
that is told their standard deviations, σ_d = s (std_d / rms)^-p, against one learned scale and
scales from the data. The error is that of the rows behind the extractor.

`bias`: the mean of J over real samples of each size against J of their law, by one sample for both
factors (as the package has it) and by two halves, one for each factor, both ways round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import ncfd
from benchmarks.records import Records
from ncfd.functional import characteristic_function, signal_discrepancy

Draw = Callable[[int, torch.Generator], Tensor]
Rows = list[dict[str, Any]]
Learner = ncfd.FrequencySampler | ncfd.GaussianFrequencies

#: Rows of length 1 about their mean: from far too low to far too high.
FIXED = (0.6, 1.0, 1.5, 2.2, 3.3, 5.0)
STARTS = (0.3, 1.0, 3.0, 10.0)
SEEDS = 3
#: ψ as a single number: the scale of all features, as free as the mixture's scales are.
ONE: dict[str, Any] = {"learnable": "one", "max_ratio": 30.0}
SPREAD = {"spread": 0.35}
#: Of the signal in J, where it is not 1.
POWER = 1.5
#: ψ's error may be this many times that of the best fixed scale.
TARGET = 1.25
#: Adam's for a network's parameters, and for a single number.
RATE, RATE_OF_ONE = 1e-3, 0.02


def run(device: torch.device, quick: bool, written: Records) -> None:
    written.content["notes"] = [
        "256 frequencies a step (64 with 2048 features). ψ starts as a normal law of scale `start` "
        "and may leave it by a factor of 30 either way: `FrequencySampler` (mixture), or one scale "
        "of all features. Trials: 256 real rows a step; ψ by Adam at "
        f"{RATE:g} (mixture) or {RATE_OF_ONE:g} (one scale), the points by Adam at 0.03 / √D, "
        "which falls to 0 over the second half of the steps."
    ]
    bias(device, quick, written)
    told(device, quick, written)
    trials(device, quick, written, 0)
    nothing(device, quick, written)
    walks(device, quick, written)
    for seed in range(1, 1 if quick else SEEDS):
        trials(device, quick, written, seed)
    judge(written)


# --- on nothing ----------------------------------------------------------------------------------


#: J does not know of the root: its ψ moves alike under both losses.
PAID = (("signal", "either"), ("loss", "root"), ("loss", "squared"))


def nothing(device: torch.device, quick: bool, written: Records) -> None:
    steps = 20 if quick else 500
    for D in (16,) if quick else (16, 512, 2048):
        for M in (10,) if quick else (10, 128):
            x, dead = features(128 + M, D, torch.Generator().manual_seed(0))
            x = x.to(device)
            for start in (0.5,) if quick else (0.5, 1.0, 3.0):
                for way in ("mixture", "one scale"):
                    few = quick or (D > 512 and way == "mixture")
                    for rate in (1e-3,) if few else (1e-4, 1e-3, 1e-2):
                        for adversary, form in PAID:
                            row = {"D": D, "N": 128, "M": M, "frequencies": way}
                            row |= {"start": f"{start:g}", "rate": f"{rate:g}"}
                            row |= {"adversary": adversary, "form": form}
                            if not written.has("nothing", row):
                                psi = learner(way, D, start, 0).to(device)
                                loss = ncfd.NCFDLoss(
                                    psi, adversary=adversary, squared=form == "squared"
                                )
                                found = on_nothing(x, dead, loss, psi, start, rate, steps)
                                written.add("nothing", row | found)


def walks(device: torch.device, quick: bool, written: Records) -> None:
    D, start = (16, 1.0) if quick else (512, 3.0)
    x, dead = features(138, D, torch.Generator().manual_seed(0))
    x = x.to(device)
    for way, rates in (("mixture", (1e-4, 1e-3)), ("one scale", (1e-2,))):
        for rate in rates:
            for paid in ("signal", "signal, random sign", "loss"):
                for seed in range(1 if quick else SEEDS):
                    row = {"D": D, "N": 128, "M": 10, "frequencies": way, "start": f"{start:g}"}
                    row |= {"rate": f"{rate:g}", "adversary": paid, "seed": seed}
                    if not written.has("walk", row):
                        adversary: Any = paid.partition(",")[0]
                        psi = learner(way, D, start, seed).to(device)
                        loss = ncfd.NCFDLoss(psi, adversary=adversary)
                        random = paid != adversary
                        signs = torch.Generator().manual_seed(seed) if random else None
                        steps = 20 if quick else 500
                        found = on_nothing(x, dead, loss, psi, start, rate, steps, seed, signs)
                        written.add("walk", row | found)


def learner(way: str, D: int, start: float, seed: int) -> Learner:
    F = 64 if D >= 2048 else 256
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if way == "mixture":
            return ncfd.FrequencySampler(D, F, scale=start)
        return ncfd.GaussianFrequencies(D, F, scale=start, **ONE)


def features(rows: int, D: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rectified normal rows, root mean square distance from their mean 1, and the dead features."""
    offset = torch.randn(D, generator=g)
    x = torch.relu(torch.randn(rows, D, generator=g) + offset)
    dead = torch.arange(D) < D // 8
    x[:, dead] = 0
    return x / (x - x.mean(0)).square().sum(1).mean().sqrt(), dead


def on_nothing(
    x: Tensor,
    dead: Tensor,
    loss: ncfd.NCFDLoss,
    psi: Learner,
    start: float,
    rate: float,
    steps: int,
    seed: int = 0,
    signs: torch.Generator | None = None,
) -> dict[str, float]:
    """Where ψ goes between the first 128 rows and the others."""
    optimizer = torch.optim.Adam(psi.parameters(), rate)
    draws = torch.Generator().manual_seed(1 + seed)
    before = highest = phase(psi, x)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        value = loss(x[:128], x[128:], generator=draws)
        if signs is not None:
            value = value * (2 * torch.randint(2, (), generator=signs).item() - 1)
        value.backward()
        optimizer.step()
        if step % 25 == 0:
            highest = max(highest, phase(psi, x))
    after = phase(psi, x)
    with torch.no_grad():
        moved = psi.scales(torch.Generator().manual_seed(2)).cpu().reshape(-1, len(dead))
    moved = (moved / start).log().double()
    bound = moved.abs() > 0.95 * math.log(psi.max_ratio)
    return {
        "before": before,
        "after": after,
        "growth": after / before,
        "highest": highest / before,
        "bound": bound[:, ~dead].double().mean().item(),
        "bound, dead": bound[:, dead].double().mean().item(),
        "mean log": moved[:, ~dead].mean().item(),
        "deviation log": moved[:, ~dead].std().item(),
    }


@torch.no_grad()
def phase(psi: nn.Module, x: Tensor) -> float:
    """Root mean square of ⟨t, x - x̄⟩ over rows and a few draws that are always the same."""
    t = torch.cat([psi(torch.Generator().manual_seed(100 + k)) for k in range(4)])
    return ((x - x.mean(0)) @ t.T).square().mean().sqrt().item()


# --- the trial -----------------------------------------------------------------------------------


def clusters(D: int, g: torch.Generator) -> Draw:
    """Twelve round clusters of unequal width and weight."""
    centres = torch.randn(12, D, generator=g)
    widths = 0.1 + 0.4 * torch.rand(12, 1, generator=g)
    shares = 0.2 + torch.rand(12, generator=g)

    def draw(n: int, g: torch.Generator) -> Tensor:
        k = torch.multinomial(shares, n, True, generator=g)
        return centres[k] + widths[k] * torch.randn(n, D, generator=g)

    return draw


def tails(D: int, g: torch.Generator) -> Draw:
    """Student's t with 3 degrees of freedom; the directions differ tenfold in size."""
    mix = torch.randn(D, D, generator=g) / math.sqrt(D) * torch.logspace(0, -1, D)

    def draw(n: int, g: torch.Generator) -> Tensor:
        chi = torch.randn(n, 3, generator=g).square().mean(1, True).sqrt()
        return (torch.randn(n, D, generator=g) / chi) @ mix

    return draw


def sheet(D: int, g: torch.Generator) -> Draw:
    """A bent sheet of three dimensions (in two features: a curve), with a little noise."""
    d = min(3, D - 1)
    flat, bent = torch.randn(d, D, generator=g), torch.randn(d, D, generator=g)

    def draw(n: int, g: torch.Generator) -> Tensor:
        u = 2 * torch.rand(n, d, generator=g) - 1
        return u @ flat + torch.sin(3 * u) @ bent + 0.02 * torch.randn(n, D, generator=g)

    return draw


KINDS = {"clusters": clusters, "heavy tails": tails, "sheet": sheet}


def data(kind: str, D: int) -> tuple[Tensor, Tensor]:
    """Rows to match and held-out ones, of mean 0 and root mean square length 1."""
    g = torch.Generator().manual_seed(7)
    if kind == "digits":
        from sklearn.datasets import load_digits

        x = torch.tensor(load_digits().data, dtype=torch.float32)
        x = x[torch.randperm(len(x), generator=g)]
    else:
        x = KINDS[kind](D, g)(6000, g)
    x = x - x.mean(0)
    x = x / x.square().sum(1).mean().sqrt()
    return x[: len(x) // 2], x[len(x) // 2 :]


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, x a sample and y the measure itself."""
    n = len(x)
    within = torch.cdist(x, x).sum() / (n * (n - 1))
    return (2 * torch.cdist(x, y).mean() - within - torch.cdist(y, y).mean()).item()


def settings(quick: bool) -> Iterable[tuple[str, int, int]]:
    if quick:
        return [("clusters", 2, 10), ("digits", 64, 10)]
    sizes = [("digits", 64)] + [(kind, D) for D in (16, 128, 2) for kind in KINDS]
    return [(kind, D, M) for kind, D in sizes for M in (10, 40, 200)]


def trials(device: torch.device, quick: bool, written: Records, seed: int) -> None:
    steps = 30 if quick else 500
    fixed, starts = (FIXED[:3:2], STARTS[1:2]) if quick else (FIXED, STARTS)
    middle = starts if quick else starts[1:3]
    ways: list[tuple[str, Any, tuple[float, ...], Callable[..., nn.Module], dict[str, Any]]] = [
        ("fixed", None, fixed, ncfd.GaussianFrequencies, {}),
        ("one scale, J", "signal", starts, ncfd.GaussianFrequencies, ONE),
        ("one scale, J, spread", "signal", starts, ncfd.GaussianFrequencies, ONE | SPREAD),
        ("one scale, s^1.5", POWER, starts, ncfd.GaussianFrequencies, ONE),
        ("one scale, s^1.5, spread", POWER, starts, ncfd.GaussianFrequencies, ONE | SPREAD),
        ("one scale, loss", "loss", middle, ncfd.GaussianFrequencies, ONE),
        ("mixture, J", "signal", middle, ncfd.FrequencySampler, {}),
        ("mixture, loss", "loss", middle[:1], ncfd.FrequencySampler, {}),
    ]
    for kind, D, M in settings(quick):
        train, held = (part.to(device) for part in data(kind, D))
        for name, adversary, scales, law, options in ways:
            for scale in scales:
                row = {"data": kind, "D": D, "M": M, "frequencies": name}
                row |= {"start": f"{scale:g}", "seed": seed}
                if not written.has("trial", row):
                    with torch.random.fork_rng():
                        torch.manual_seed(seed)
                        psi = law(D, 256, scale=scale, **options).to(device)
                    rate = RATE if law is ncfd.FrequencySampler else RATE_OF_ONE
                    y = play(train, M, psi, adversary, steps, seed, rate=rate)
                    at = psi.scales(torch.Generator().manual_seed(2)).square().mean().sqrt()
                    error = 1000 * energy_distance(held, y)
                    written.add("trial", row | {"error": error, "scale at the end": at.item()})


def play(
    train: Tensor,
    M: int,
    psi: nn.Module,
    adversary: Any,
    steps: int,
    seed: int,
    extractor: Callable[[torch.Generator], Callable[[Tensor], Tensor]] | None = None,
    rate: float = RATE,
) -> Tensor:
    """M points, from a normal law with the data's variances, moved to match the data.

    A number for ``adversary`` is the power of the signal in J.
    """
    D = train.shape[1]
    g = torch.Generator().manual_seed(seed)
    y = (train.std(0) * torch.randn(M, D, generator=g).to(train)).requires_grad_()
    power = adversary if isinstance(adversary, float) else None
    loss = ncfd.NCFDLoss(psi, adversary=adversary if power is None else None)
    images = torch.optim.Adam([y], 0.03 / math.sqrt(D), betas=(0.9, 0.99))
    learned = list(psi.parameters()) if adversary else []
    players = [images, torch.optim.Adam(learned, rate)] if learned else [images]
    for step in range(steps):
        images.param_groups[0]["lr"] = 0.03 / math.sqrt(D) * min(1.0, 2 * (1 - step / steps))
        x = train[torch.randperm(len(train), generator=g)[:256]]
        see = extractor(g) if extractor else lambda rows: rows
        for player in players:
            player.zero_grad()
        if power is None:
            loss(see(x), see(y), generator=g).backward()
        else:
            t = psi(g)
            gap, signal = factors(x, y.detach(), t)
            (loss(x, y, t=t.detach()) - (gap * signal**power).mean()).backward()
        for player in players:
            player.step()
    return y.detach()


def judge(written: Records) -> None:
    """ψ from each start over the best fixed scale, means over the seeds."""
    written.content["tables"].pop("judged", None)
    for row in judged(written.content["tables"].get("trial", [])):
        written.add("judged", row)


def judged(rows: Rows) -> Rows:
    """One row for each data set and way to learn: ψ's ratio to the best fixed scale, by start."""
    errors: dict[tuple[Any, ...], dict[str, dict[str, list[float]]]] = {}
    for r in rows:
        ways = errors.setdefault((r["data"], r["D"], r["M"]), {})
        ways.setdefault(r["frequencies"], {}).setdefault(r["start"], []).append(r["error"])
    found = []
    for (kind, D, M), ways in errors.items():
        means = {
            name: {start: sum(values) / len(values) for start, values in by_start.items()}
            for name, by_start in ways.items()
        }
        fixed = means.pop("fixed")
        scale, best = min(fixed.items(), key=lambda item: item[1])
        for name, by_start in means.items():
            row = {"data": kind, "D": D, "M": M, "frequencies": name, "best fixed": scale}
            row |= {"its error": best}
            row |= {f"from {start}": error / best for start, error in by_start.items()}
            row["within target"] = sum(error <= TARGET * best for error in by_start.values())
            row["of"] = len(by_start)
            found.append(row)
    return found


# --- ψ that is told about the features -----------------------------------------------------------


class Told(nn.Module):
    """σ_d = s (std_d / rms)^-p of normal frequencies, from the real rows of each call.

    `power` None: p is learned, from 0.
    """

    def __init__(self, num_frequencies: int, scale: float, power: float | None) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        if power is None:
            self.power = nn.Parameter(torch.tensor(0.0))
        else:
            self.register_buffer("power", torch.tensor(power))

    def forward(self, generator: torch.Generator | None = None, *, real: Tensor) -> Tensor:
        deviation = real.detach().std(0)
        relative = deviation / deviation.square().mean().sqrt()
        sigma = torch.exp(self.log_scale - self.power * relative.clamp_min(1e-3).log())
        normal = torch.randn(self.num_frequencies, real.shape[1], generator=generator)
        return sigma * normal.to(real)


def told(device: torch.device, quick: bool, written: Records) -> None:
    steps = 30 if quick else 500
    cases = ["clusters", "clusters and noise", "sheet", "sheet and noise"]
    for case in cases[:2] if quick else cases:
        kind, _, noise = case.partition(" and ")
        train, held = (part.to(device) for part in data(kind, 16))
        for seed in range(1 if quick else 3):
            for name, build in told_ways(quick).items():
                row = {"case": case, "frequencies": name, "seed": seed}
                if not written.has("told", row):
                    with torch.random.fork_rng():
                        torch.manual_seed(seed)
                        psi = build().to(device)
                    adversary = "signal" if any(True for _ in psi.parameters()) else None
                    rate = RATE_OF_ONE if isinstance(psi, Told) else RATE
                    y = play(
                        train, 40, psi, adversary, steps, seed, badly_scaled(bool(noise)), rate
                    )
                    found = {"error": 1000 * energy_distance(held, y)}
                    if isinstance(psi, Told):
                        found["power"] = psi.power.item()
                        found["scale at the end"] = psi.log_scale.exp().item()
                    written.add("told", row | found)


def told_ways(quick: bool) -> dict[str, Callable[[], nn.Module]]:
    ways: dict[str, Callable[[], nn.Module]] = {
        "told, p learned": lambda: Told(256, 1.0, None),
        "one learned scale": lambda: Told(256, 1.0, 0.0),
    }
    if quick:
        return ways
    ways |= {
        "told, p = 0.5": lambda: Told(256, 1.0, 0.5),
        "told, p = 1": lambda: Told(256, 1.0, 1.0),
        "ψ, spread": lambda: ncfd.FrequencySampler(32, 256, **SPREAD),
    }
    for factor in (1.0, 2.0, 3.0):
        ways[f"{factor:g} / median distance"] = lambda factor=factor: _Times(factor)
    return ways


class _Times(nn.Module):
    """Normal frequencies at a multiple of one over the median distance."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.law = ncfd.GaussianFrequencies(None, 256, scale="median")
        self.factor = factor

    def forward(self, generator: torch.Generator | None = None, *, real: Tensor) -> Tensor:
        return self.factor * self.law(generator, real=real)


def badly_scaled(noise: bool) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    """Extractors: 16 features at sizes that differ tenfold and more, in another order each time.

    Sixteen features more are noise of a tenth of the mean size (`noise`), or dead.
    """

    def extractor(g: torch.Generator) -> Callable[[Tensor], Tensor]:
        sizes = torch.exp(1.2 * torch.randn(16, generator=g))
        sizes = sizes / sizes.square().mean().sqrt()
        order = torch.randperm(32, generator=g)

        def see(rows: Tensor) -> Tensor:
            rest = torch.zeros(len(rows), 16)
            if noise:
                rest = 0.1 / 4 * torch.randn(len(rows), 16, generator=g)
            return torch.cat([rows * sizes.to(rows), rest.to(rows)], 1)[:, order.to(rows.device)]

        return see

    return extractor


# --- the bias of J -------------------------------------------------------------------------------


def bias(device: torch.device, quick: bool, written: Records) -> None:
    R, F, D, M = (4, 16, 8, 10) if quick else (400, 256, 8, 10)
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, 9 if quick else 41, base=6)
    normal = torch.randn(F, D, generator=g).to(device)
    y = (torch.randn(M, D, generator=g) / math.sqrt(D)).to(device)  # rows of length 1
    t = (scales.to(device)[:, None, None] * normal).flatten(0, 1)
    spread = torch.distributions.Normal(torch.zeros(D, device=device), D**-0.5)
    law = torch.distributions.Independent(spread, 1)

    def by_scale(values: Tensor) -> Tensor:
        return values.reshape(len(scales), F).mean(1).cpu()

    exact = by_scale(signal_discrepancy(law, y, t, reduction="none"))
    at = int(exact.argmax())
    for N in (16, 64) if quick else (16, 32, 64, 128, 256, 1024):
        if written.has("bias", {"N": N, "way": "one sample"}):
            continue
        draws: dict[str, list[Tensor]] = {"one sample": [], "two halves": []}
        for _ in range(R):
            x = (torch.randn(N, D, generator=g) / math.sqrt(D)).to(device)
            draws["one sample"].append(by_scale(signal_discrepancy(x, y, t, reduction="none")))
            draws["two halves"].append(by_scale(halves(x, y, t)))
        for way, values in draws.items():
            found = torch.stack(values)
            where = scales[found.argmax(1)]
            written.add(
                "bias",
                {
                    "N": N,
                    "way": way,
                    "bias": (found.mean(0)[at] / exact[at] - 1).item(),
                    "bias error": (found.std(0)[at] / exact[at] / math.sqrt(R)).item(),
                    "deviation": (found.std(0)[at] / exact[at]).item(),
                    "best scale": scales[found.mean(0).argmax()].item(),
                    "exact best": scales[at].item(),
                    "best, 10 %": where.quantile(0.1).item(),
                    "best, 90 %": where.quantile(0.9).item(),
                },
            )


def halves(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """J with each factor from its own half of the real sample, the mean of both ways round."""
    (gap_a, signal_a), (gap_b, signal_b) = (factors(half, y, t) for half in (x[::2], x[1::2]))
    return (gap_a * signal_b + gap_b * signal_a) / 2


def factors(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What J multiplies: the gap without the noise of x, and the signal of x."""
    phi = characteristic_function(x, t)
    square = phi.abs().square()
    noise = (1 - square) / (len(x) - 1)
    gap = (phi - characteristic_function(y, t)).abs().square()
    return gap - noise, (square - noise).clamp_min(0)
