"""The report: its numbers by hand, and each trouble provoked and named."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ncfd.diagnostics import FrequencyReport, frequency_report
from ncfd.functional import characteristic_function, ncfd_loss


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def warns(report: FrequencyReport, *words: str) -> bool:
    """Whether one warning holds all these words."""
    return any(all(w in text for w in words) for text in report.warnings)


def test_numbers_by_hand() -> None:
    x, t = normal(0, 500, 3).double() + 2, normal(1, 20, 3).double()
    report = frequency_report(x, t)
    phases = x @ t.T
    torch.testing.assert_close(report.norms, t.norm(dim=1))
    torch.testing.assert_close(report.phase_spread, phases.std(0, correction=0))
    torch.testing.assert_close(report.amplitude, characteristic_function(x, t).abs())
    assert math.isclose(report.phase_rms, phases.square().mean().sqrt().item())
    assert math.isclose(report.signal_limit, math.sqrt(math.log(500)))
    assert math.isclose(report.noise_floor, 1 / math.sqrt(500))
    below = (report.amplitude < report.noise_floor).double().mean().item()
    assert report.share_below_floor == below
    assert report.noise_share == min(1.0, below / (1 - math.exp(-1)))
    assert report.share_wrapped == (report.phase_spread > math.pi).double().mean().item()
    assert (report.distinct_frequencies, report.distinct_samples) == (20, 500)
    assert (report.num_samples, report.num_features, report.num_frequencies) == (500, 3, 20)


def test_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ncfd import diagnostics

    x, t = normal(0, 500, 3).double() + 2, normal(1, 20, 3).double()
    whole = frequency_report(x, t)
    monkeypatch.setattr(diagnostics, "_BLOCK_BYTES", 1000)
    torch.testing.assert_close(frequency_report(x, t).phase_spread, whole.phase_spread)


def test_healthy_frequencies_have_no_warnings() -> None:
    for D in (1, 8, 256):
        x, t = normal(0, 1024, D), normal(1, 128, D) / math.sqrt(D)
        report = frequency_report(x, t)
        assert report.warnings == ()
        assert "no warnings" in str(report)
        assert report.noise_share < 0.05
        assert not any(report.precision_at_risk.values())


@pytest.mark.parametrize(("N", "M"), [(64, 64), (256, 64), (256, 1024)])
def test_the_null_floor_is_what_two_sets_without_difference_give(N: int, M: int) -> None:
    t = 0.7 * normal(0, 256, 8)
    report = frequency_report(normal(1, N, 8), t)
    losses = [ncfd_loss(normal(2 + r, N, 8), normal(1000 + r, M, 8), t).item() for r in range(30)]
    # The floor takes real and imaginary part for equally noisy: right to some per cent.
    assert abs(report.null_loss(M) / torch.tensor(losses).mean().item() - 1) < 0.1
    assert report.null_loss(N) == pytest.approx(report.null_floor)


def test_metric_hacking_is_seen() -> None:
    """A scale that climbs the loss of two equal sets runs away to noise, and the report says so."""
    x, y, noise = normal(0, 256, 4), normal(1, 256, 4), normal(2, 64, 4)
    log_scale = torch.tensor(math.log(0.5), requires_grad=True)
    assert frequency_report(x, 0.5 * noise).warnings == ()
    optimizer = torch.optim.Adam([log_scale], lr=0.1, maximize=True)
    history = []
    for _ in range(40):
        loss = ncfd_loss(x, y, log_scale.exp() * noise)
        optimizer.zero_grad()
        (log_scale.grad,) = torch.autograd.grad(loss, log_scale)
        optimizer.step()
        history.append(frequency_report(x, log_scale.detach().exp() * noise))
    last = history[-1]
    assert last.norms.median() > 3 * history[0].norms.median()
    assert last.noise_share > 0.5
    assert last.share_wrapped > 0.5
    assert last.phase_spread.median() > last.signal_limit
    assert warns(last, "carry only noise", "divide the scale of t by", "bound the sampler's scale")
    assert warns(last, "more than π", "divide the scale of t by")
    logged = [report.scalars() for report in history]
    assert logged[-1]["noise_share"] > logged[0]["noise_share"]
    assert all(isinstance(v, float) for v in logged[-1].values())
    # The advice is good: the scale it names is free of the warning.
    divided = frequency_report(x, log_scale.detach().exp() * noise * advised_factor(last))
    assert divided.warnings == ()


def advised_factor(report: FrequencyReport) -> float:
    text = next(w for w in report.warnings if "carry only noise" in w)
    return 1 / float(text.split("divide the scale of t by ")[1].split(",")[0])


def test_collapse_is_seen() -> None:
    """Features free to move minimise the loss by shrinking to a point, and the report says so."""
    x, y, t = normal(0, 128, 6), 2 * normal(1, 128, 6) + 1, normal(2, 64, 6) / 2
    weight = (0.3 * torch.eye(6)).requires_grad_()
    assert frequency_report(x @ weight, t).warnings == ()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(100):
        loss = ncfd_loss(x @ weight, y @ weight, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = frequency_report((x @ weight).detach(), t)
    assert report.amplitude.median() > 0.99
    assert warns(report, "phase spread is only", "multiply the scale of t by")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(50, 3), ("all samples are equal", "collapsed to a point", "unbiased=True")),
        (1 + 1e-5 * normal(0, 50, 3), ("of their distance from the origin", "subtract the mean")),
        (normal(0, 5, 3).repeat(10, 1), ("only 5 of 50 samples are distinct",)),
        (normal(0, 50, 1) * normal(1, 1, 8), ("vary along one direction", "effective rank 1 of 8")),
    ],
)
def test_collapsed_samples_are_named(x: Tensor, words: tuple[str, ...]) -> None:
    report = frequency_report(x, normal(5, 16, x.shape[1]))
    assert warns(report, *words), report.warnings
    assert all(text in str(report) for text in report.warnings)


def test_repeated_and_mirrored_frequencies_are_counted_once() -> None:
    t = normal(0, 4, 8)
    report = frequency_report(normal(1, 200, 8), torch.cat([t, -t, t]))
    assert report.distinct_frequencies == 4
    assert warns(report, "only 4 of 12 frequencies are distinct", "draw each one anew")


def test_zero_frequencies_are_named() -> None:
    t = normal(0, 16, 2)
    t[3] = 0
    assert warns(frequency_report(normal(1, 200, 2), t), "1 of 16 frequencies are 0", "leave them")


def test_frequencies_too_low_to_see_are_named() -> None:
    x, t = normal(0, 200, 2), 1e-3 * normal(1, 16, 2)
    report = frequency_report(x, t)
    assert warns(report, "phase spread is only", "multiply the scale of t by")
    factor = float(report.warnings[0].rsplit(" ", 1)[1])
    assert frequency_report(x, factor * t).warnings == ()


@pytest.mark.parametrize(
    ("offset", "arithmetic", "words"),
    [
        (1.0, None, ()),
        (30.0, "bfloat16", ()),
        (400.0, "tf32", ("TF32", "allow_tf32 False")),
        (4e6, "float32", ("in float32", "pass float64", "subtract the mean")),
    ],
)
def test_precision_at_risk(offset: float, arithmetic: str | None, words: tuple[str, ...]) -> None:
    N = 1000
    x, t = (normal(0, N, 4).double() + offset), normal(1, 64, 4).double() / 2
    report = frequency_report(x, t)
    order = ["bfloat16", "tf32", "float32"]
    at_risk = order[: order.index(arithmetic) + 1] if arithmetic else []
    assert [name for name in order if report.precision_at_risk[name]] == at_risk
    assert not words or warns(report, *words)
    assert str(report).count("(at risk)") == len(at_risk)


def test_the_phase_errors_are_those_of_the_arithmetic() -> None:
    """The relative errors in the table, measured again for bfloat16 and float32."""
    x, t = normal(0, 200, 2048), normal(1, 100, 2048) / math.sqrt(2048)
    exact = x.double() @ t.double().T
    report = frequency_report(x, t)
    for name, phases in (
        ("bfloat16", x.bfloat16().double() @ t.bfloat16().double().T),
        ("float32", x @ t.T),
    ):
        error = (phases.double() - exact).square().mean().sqrt().item()
        # Float32 here includes the rounding of the sum, which depends on its order.
        assert 0.3 < error / report.phase_errors[name] < 10


def test_nan_is_named() -> None:
    x, t = normal(0, 20, 2), normal(1, 4, 2)
    x[3, 1] = torch.nan
    assert warns(frequency_report(x, t), "x holds NaN")
    assert warns(frequency_report(normal(0, 20, 2), t / 0), "t holds NaN")


def test_dtypes_and_gradients() -> None:
    x, t = normal(0, 100, 3), normal(1, 8, 3)
    half = frequency_report(x.bfloat16().requires_grad_(), t.half().requires_grad_())
    assert half.amplitude.dtype == torch.float32
    assert not half.amplitude.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = frequency_report(x, t)
    torch.testing.assert_close(inside.phase_spread, frequency_report(x, t).phase_spread)
    assert frequency_report(x.double(), t).amplitude.dtype == torch.float64
    with torch.device("meta"):
        elsewhere = frequency_report(x, t)
    assert elsewhere.distinct_frequencies == 8


def test_wrong_arguments() -> None:
    x, t = normal(0, 20, 2), normal(1, 4, 2)
    with pytest.raises(TypeError, match="x must be a real floating-point"):
        frequency_report(x.long(), t)
    with pytest.raises(ValueError, match=r"x must have shape \(N, D\) with N >= 2"):
        frequency_report(x[:1], t)
    with pytest.raises(ValueError, match=r"x must have shape \(N, D\)"):
        frequency_report(x[None], t)
    with pytest.raises(ValueError, match=r"t must have shape \(F, 2\)"):
        frequency_report(x, t[:, :1])
    with pytest.raises(ValueError, match="num_synthetic must be at least 1"):
        frequency_report(x, t).null_loss(0)


# --- exact counts -------------------------------------------------------------------------------


def distinct_by_numpy(rows: Tensor, up_to_sign: bool = False) -> int:
    found = {tuple(row) for row in (rows.double().numpy() + 0.0).tolist()}
    if up_to_sign:
        found = {max(row, tuple(-v + 0.0 for v in row)) for row in found}
    return len(found)


@pytest.mark.parametrize("seed", range(20))
def test_random_rows_are_never_called_repeated(seed: int) -> None:
    report = frequency_report(normal(seed, 4096, 2), normal(100 + seed, 4096, 2))
    assert report.distinct_samples == report.distinct_frequencies == 4096
    assert not warns(report, "distinct")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("D", [1, 2, 5, 300])
def test_distinct_rows_are_counted_exactly(D: int, dtype: torch.dtype) -> None:
    # Small integers coincide often; neighbours differ in one bit of one number; -0.0 is 0.
    integers = torch.randint(-1, 2, (500, D), generator=torch.Generator().manual_seed(D))
    near = normal(0, 60, D).to(dtype).repeat(3, 1)
    near[60:, D // 2] = torch.nextafter(near[60:, D // 2].float(), torch.tensor(9.0)).to(dtype)
    rows = torch.cat([integers.to(dtype), -integers.to(dtype) * 0.0, near, -near])
    report = frequency_report(rows, rows)
    assert report.distinct_samples == distinct_by_numpy(rows)
    assert report.distinct_frequencies == distinct_by_numpy(rows, up_to_sign=True)


def test_rows_whose_sums_of_bits_agree_are_still_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shortcut may fail for every row and the count stays exact."""
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.zeros(size).long())
    rows = normal(0, 50, 3).repeat(2, 1)
    assert frequency_report(rows, normal(1, 8, 3)).distinct_samples == 50


# --- what is no tensor, and units ---------------------------------------------------------------


def test_arrays_lists_and_masks() -> None:
    x, t = normal(0, 60, 2).double(), normal(1, 8, 2).double()
    expected = frequency_report(x, t)
    for a, b in ((x.numpy(), t), (x.tolist(), t.tolist()), (x, t.numpy())):
        torch.testing.assert_close(frequency_report(a, b).amplitude, expected.amplitude)
    data, mask = np.concatenate([x, np.full((5, 2), 1e9)]), np.zeros((65, 2), dtype=bool)
    mask[60:, 1] = True
    masked = frequency_report(np.ma.array(data, mask=mask), t)
    assert masked.num_samples == 60
    torch.testing.assert_close(masked.amplitude, expected.amplitude)
    with pytest.raises(TypeError, match=r"x must hold real numbers, got list, .*to_numpy"):
        frequency_report([["a", None]] * 4, t)


@pytest.mark.parametrize("unit", [1e-30, 1e25])
def test_the_warnings_do_not_depend_on_the_unit(unit: float) -> None:
    x, t = normal(0, 300, 6), 0.4 * normal(1, 16, 6)
    report = frequency_report(x * unit, t / unit)
    assert report.warnings == frequency_report(x, t).warnings == ()
    torch.testing.assert_close(report.norms * unit, t.norm(dim=1))
