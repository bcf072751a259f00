"""Every documented error: its type, the argument it names, and what it says of it."""

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

import ncfd
from ncfd.functional import (
    amplitude_phase,
    cf_discrepancy,
    characteristic_function,
    gaussian_ncfd,
    gradient_reversal,
    ncfd_loss,
)

N, M, D, F = 6, 5, 3, 4


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones(N, D), torch.zeros(M, D), torch.ones(F, D)


def batched() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ones(2, N, D), torch.zeros(2, M, D), torch.ones(F, D)


def phi(**kwargs: object) -> Callable[[], object]:
    x, _, t = data()
    return partial(characteristic_function, **({"x": x, "t": t} | kwargs))


def loss(**kwargs: object) -> Callable[[], object]:
    x, y, t = data()
    return partial(ncfd_loss, **({"x": x, "y": y, "t": t} | kwargs))


def known(**kwargs: object) -> Callable[[], object]:
    return loss(**({"x": torch.full((F,), 0.5 + 0.1j)} | kwargs))


def gaussian(**kwargs: object) -> Callable[[], object]:
    x, y, _ = data()
    return partial(gaussian_ncfd, **({"x": x, "y": y} | kwargs))


def module(options: dict | None = None, **kwargs: object) -> Callable[[], object]:
    real, synthetic, t = data()
    return partial(
        ncfd.NCFDLoss(t, **(options or {})), **({"real": real, "synthetic": synthetic} | kwargs)
    )


def chf(a: object, b: object, **kwargs: object) -> Callable[[], object]:
    return partial(cf_discrepancy, a, b, **kwargs)


labels_x, labels_y = torch.arange(N) % 2, torch.arange(M) % 2
grouped = {"x_groups": labels_x, "y_groups": labels_y, "num_groups": 2}
z = torch.full((F,), 0.5 + 0.1j)
sampler = ncfd.GaussianFrequencies

# (what is called, the error, what its message says). The argument comes as a whole word.
ERRORS = {
    # Types and dtypes.
    "x list": (phi(x=[[1.0, 2.0]]), TypeError, r"\bx\b.*Tensor.*list"),
    "x array": (phi(x=np.ones((N, D))), TypeError, r"\bx\b.*Tensor.*ndarray"),
    "x integer": (phi(x=torch.ones(N, D).int()), TypeError, r"\bx\b.*int32"),
    "x bool": (phi(x=torch.ones(N, D).bool()), TypeError, r"\bx\b.*bool"),
    "x complex": (phi(x=torch.ones(N, D) + 0j), TypeError, r"\bx\b.*complex64"),
    "t list": (phi(t=[[1.0]]), TypeError, r"\bt\b.*Tensor.*list"),
    "t integer": (phi(t=torch.ones(F, D).long()), TypeError, r"\bt\b.*int64"),
    "t complex": (phi(t=torch.ones(F, D) + 0j), TypeError, r"\bt\b.*complex64"),
    "weights list": (phi(weights=[1.0] * N), TypeError, r"\bweights\b.*list"),
    "weights complex": (phi(weights=torch.ones(N) + 0j), TypeError, r"\bweights\b.*complex64"),
    "groups list": (phi(groups=[0] * N, num_groups=2), TypeError, r"\bgroups\b.*list"),
    "groups float": (phi(groups=torch.zeros(N), num_groups=2), TypeError, r"\bgroups\b.*float32"),
    "groups bool": (phi(groups=labels_x > 0, num_groups=2), TypeError, r"\bgroups\b.*bool"),
    "num_groups float": (phi(groups=labels_x, num_groups=2.0), TypeError, r"num_groups.*2\.0"),
    "num_groups bool": (phi(groups=labels_x, num_groups=True), TypeError, r"num_groups.*True"),
    "chunk_size float": (phi(chunk_size=2.5), TypeError, r"chunk_size.*2\.5"),
    "loss y array": (loss(y=np.ones((M, D))), TypeError, r"\by\b.*ndarray"),
    "loss y integer": (loss(y=torch.ones(M, D).int()), TypeError, r"\by\b.*int32"),
    "loss y complex": (loss(y=torch.ones(M, D) + 0j), TypeError, r"\by\b.*complex64"),
    "loss x bool": (loss(x=torch.ones(N, D).bool()), TypeError, r"\bx\b.*bool"),
    "loss alpha text": (loss(alpha="half"), TypeError, r"\balpha\b.*half"),
    "loss reduction number": (loss(reduction=1), TypeError, r"\breduction\b.*mean.*1"),
    "loss x_weights list": (loss(x_weights=[1.0] * N), TypeError, r"\bx_weights\b.*list"),
    "loss y_groups float": (
        loss(**grouped | {"y_groups": labels_y.float()}),
        TypeError,
        r"\by_groups\b.*float32",
    ),
    "chf list": (chf([1.0], z), TypeError, r"\bphi_x\b.*list"),
    "chf real": (chf(torch.ones(F), z), TypeError, r"\bphi_x\b.*complex.*float32"),
    "chf real y": (chf(z, torch.ones(F)), TypeError, r"\bphi_y\b.*complex.*float32"),
    "amplitude of real": (
        lambda: amplitude_phase(torch.ones(F)),
        TypeError,
        r"\bphi\b.*complex.*float32",
    ),
    "reversal list": (lambda: gradient_reversal([1.0]), TypeError, r"\bt\b.*Tensor.*list"),
    # Shapes.
    "x vector": (phi(x=torch.ones(N)), ValueError, rf"\bx\b.*N, D.*\({N},\)"),
    "x empty": (phi(x=torch.ones(0, D)), ValueError, rf"\bx\b.*\(0, {D}\)"),
    "x without features": (
        phi(x=torch.ones(N, 0), t=torch.ones(F, 0)),
        ValueError,
        rf"\bx\b.*\({N}, 0\)",
    ),
    "t vector": (phi(t=torch.ones(D)), ValueError, rf"\bt\b.*F, {D}.*\({D},\)"),
    "t empty": (phi(t=torch.ones(0, D)), ValueError, rf"\bt\b.*\(0, {D}\)"),
    "t of other D": (phi(t=torch.ones(F, D + 1)), ValueError, rf"\bt\b.*{D}.*\({F}, {D + 1}\)"),
    "t batched alone": (phi(t=torch.ones(2, F, D)), ValueError, r"\bt\b.*\(2, "),
    "t of other batch": (
        phi(x=batched()[0], t=torch.ones(3, F, D)),
        ValueError,
        rf"\bt\b.*2.*\(3, {F}, {D}\)",
    ),
    "t batch to broadcast": (
        phi(x=batched()[0], t=torch.ones(1, F, D)),
        ValueError,
        rf"\bt\b.*2.*\(1, {F}, {D}\)",
    ),
    "weights short": (phi(weights=torch.ones(N - 1)), ValueError, rf"\bweights\b.*{N}.*{N - 1}"),
    "weights unbatched": (
        phi(x=batched()[0], weights=torch.ones(N)),
        ValueError,
        rf"\bweights\b.*\(2, {N}\).*\({N},\)",
    ),
    "groups short": (
        phi(groups=labels_y, num_groups=2),
        ValueError,
        rf"\bgroups\b.*\({N},\).*\({M},\)",
    ),
    "groups batched": (
        phi(x=batched()[0], groups=labels_x, num_groups=2),
        ValueError,
        r"\bgroups\b.*N, D",
    ),
    "loss y vector": (loss(y=torch.ones(M)), ValueError, rf"\by\b.*N, D|M, D.*\({M},\)"),
    "loss y empty": (loss(y=torch.ones(0, D)), ValueError, rf"\by\b.*\(0, {D}\)"),
    "loss y of other D": (loss(y=torch.ones(M, D + 1)), ValueError, rf"\by\b.*{D + 1}"),
    "loss y unbatched": (loss(x=batched()[0]), ValueError, r"\by\b.*batch|\by\b.*2"),
    "loss y of other batch": (
        loss(x=batched()[0], y=torch.ones(3, M, D)),
        ValueError,
        rf"\by\b.*\(3, {M}, {D}\)",
    ),
    "loss t of other D": (loss(t=torch.ones(F, D + 1)), ValueError, rf"\bt\b.*{D + 1}"),
    "loss x_weights": (loss(x_weights=torch.ones(M)), ValueError, r"\bx_weights\b"),
    "loss y_weights": (loss(y_weights=torch.ones(N)), ValueError, r"\by_weights\b"),
    "loss x_groups": (loss(**grouped | {"x_groups": labels_y}), ValueError, r"\bx_groups\b"),
    "loss y_groups": (loss(**grouped | {"y_groups": labels_x}), ValueError, r"\by_groups\b"),
    "known of other F": (known(x=torch.full((F + 1,), 0.5j)), ValueError, rf"\bx\b.*{F + 1}"),
    "known of other batch": (
        known(y=torch.ones(2, M, D)),
        ValueError,
        r"\bx\b",
    ),
    "chf shapes": (chf(z, z[:2]), ValueError, rf"\bphi_[xy]\b.*\({F},\)|\({F},\).*\bphi_[xy]\b"),
    # Devices: meta stands for any device that is not the samples'.
    "t elsewhere": (phi(t=torch.ones(F, D, device="meta")), ValueError, r"\bt\b.*cpu.*meta"),
    "weights elsewhere": (
        phi(weights=torch.ones(N, device="meta")),
        ValueError,
        r"\bweights\b.*cpu.*meta",
    ),
    "groups elsewhere": (
        phi(groups=labels_x.to("meta"), num_groups=2),
        ValueError,
        r"\bgroups\b.*cpu.*meta",
    ),
    "y elsewhere": (loss(y=torch.ones(M, D, device="meta")), ValueError, r"\by\b.*meta"),
    # Values.
    "weights negative": (
        phi(weights=torch.tensor([1.0] * (N - 1) + [-0.5])),
        ValueError,
        r"\bweights\b.*negative.*-0\.5",
    ),
    "weights zero": (phi(weights=torch.zeros(N)), ValueError, r"\bweights\b.*zero"),
    "weights zero in a row": (
        phi(x=batched()[0], weights=torch.tensor([[1.0] * N, [0.0] * N])),
        ValueError,
        r"\bweights\b.*zero",
    ),
    "loss x_weights negative": (loss(x_weights=-torch.ones(N)), ValueError, r"\bx_weights\b.*-1"),
    "loss y_weights zero": (loss(y_weights=torch.zeros(M)), ValueError, r"\by_weights\b.*zero"),
    "labels negative": (
        phi(groups=labels_x - 1, num_groups=2),
        ValueError,
        r"\bgroups\b.*\[0, .*2\).*-1",
    ),
    "labels too large": (phi(groups=labels_x + 1, num_groups=2), ValueError, r"\bgroups\b.*2"),
    "loss labels too large": (
        loss(**grouped | {"y_groups": labels_y + 5}),
        ValueError,
        r"\by_groups\b.*6",
    ),
    "num_groups zero": (phi(groups=labels_x, num_groups=0), ValueError, r"num_groups.*0"),
    "chunk_size zero": (phi(chunk_size=0), ValueError, r"chunk_size.*1.*0"),
    "chunk_size negative": (loss(chunk_size=-3), ValueError, r"chunk_size.*1.*-3"),
    "alpha below": (loss(alpha=-0.1), ValueError, r"\balpha\b.*\[0, 1\].*-0\.1"),
    "alpha above": (loss(alpha=1.5), ValueError, r"\balpha\b.*\[0, 1\].*1\.5"),
    "alpha nan": (loss(alpha=math.nan), ValueError, r"\balpha\b.*\[0, 1\].*nan"),
    "chf alpha": (chf(z, z, alpha=2), ValueError, r"\balpha\b.*\[0, 1\].*2"),
    "reduction": (loss(reduction="average"), ValueError, r"\breduction\b.*mean.*average"),
    # Contradictions.
    "groups alone": (phi(groups=labels_x), ValueError, r"\bgroups\b.*num_groups"),
    "num_groups alone": (phi(num_groups=2), ValueError, r"num_groups.*\bgroups\b"),
    "loss groups without number": (
        loss(**grouped | {"num_groups": None}),
        ValueError,
        r"num_groups",
    ),
    "loss number without groups": (loss(num_groups=2), ValueError, r"num_groups.*groups"),
    "loss x_groups alone": (
        loss(x_groups=labels_x, num_groups=2),
        ValueError,
        r"x_groups.*y_groups|y_groups.*x_groups",
    ),
    "loss y_groups alone": (
        loss(y_groups=labels_y, num_groups=2),
        ValueError,
        r"x_groups.*y_groups|y_groups.*x_groups",
    ),
    "no common group": (
        loss(x_groups=torch.zeros_like(labels_x), y_groups=torch.ones_like(labels_y), num_groups=3),
        ValueError,
        r"x_groups and y_groups.*common",
    ),
    "no common group by weight": (
        loss(**grouped, x_weights=(labels_x == 0).float(), y_weights=(labels_y == 1).float()),
        ValueError,
        r"x_groups and y_groups.*common",
    ),
    "unbiased root": (loss(unbiased=True), ValueError, r"unbiased.*squared"),
    "unbiased alpha": (
        loss(unbiased=True, squared=True, alpha=0.3),
        ValueError,
        r"unbiased.*alpha.*0\.3",
    ),
    "unbiased one real": (
        loss(unbiased=True, squared=True, x=torch.ones(1, D)),
        ValueError,
        r"(?s)(?=.*unbiased)(?=.*\bx\b)(?=.*2|.*two)",
    ),
    "unbiased one synthetic": (
        loss(unbiased=True, squared=True, y=torch.ones(1, D)),
        ValueError,
        r"(?s)(?=.*unbiased)(?=.*\by\b)(?=.*2|.*two)",
    ),
    "unbiased one in a group": (
        loss(unbiased=True, squared=True, **grouped | {"y_groups": torch.tensor([0, 0, 0, 0, 1])}),
        ValueError,
        r"(?s)(?=.*unbiased)(?=.*\by(_groups)?\b)(?=.*2|.*two)",
    ),
    "unbiased one of weight": (
        # Zero weight is an absent row: this side has one sample.
        loss(unbiased=True, squared=True, x_weights=torch.eye(N)[0]),
        ValueError,
        r"(?s)(?=.*unbiased)(?=.*\bx(_weights)?\b)(?=.*2|.*two)",
    ),
    "known with weights": (known(x_weights=torch.ones(N)), ValueError, r"\bx_weights\b"),
    # The exact limit shares the checks.
    "gaussian scale": (gaussian(scale=-1.0), ValueError, r"\bscale\b.*positive.*-1"),
    "gaussian scale shape": (
        gaussian(scale=torch.ones(D + 1)),
        ValueError,
        rf"\bscale\b.*{D}.*\({D + 1},\)",
    ),
    "gaussian scale type": (gaussian(scale="wide"), TypeError, r"\bscale\b.*wide"),
    "gaussian x integer": (gaussian(x=torch.ones(N, D).int()), TypeError, r"\bx\b.*int32"),
    "gaussian y of other D": (gaussian(y=torch.ones(M, D + 1)), ValueError, rf"\by\b.*{D + 1}"),
    "gaussian weights": (gaussian(x_weights=torch.zeros(N)), ValueError, r"\bx_weights\b.*zero"),
    "gaussian groups": (
        gaussian(x_groups=labels_x, num_groups=2),
        ValueError,
        r"x_groups.*y_groups|y_groups.*x_groups",
    ),
    "gaussian labels": (
        gaussian(**grouped | {"x_groups": labels_x + 1}),
        ValueError,
        r"\bx_groups\b.*2",
    ),
    "gaussian number of groups alone": (gaussian(num_groups=2), ValueError, r"num_groups.*groups"),
    "gaussian no common group": (
        gaussian(**grouped | {"x_groups": 0 * labels_x, "y_groups": 0 * labels_y + 1}),
        ValueError,
        r"x_groups and y_groups.*common",
    ),
    "gaussian unbiased": (
        gaussian(y=torch.ones(1, D), unbiased=True),
        ValueError,
        r"unbiased.*two.*\by\b",
    ),
    "gaussian reduction": (gaussian(reduction="average"), ValueError, r"\breduction\b.*average"),
    "gaussian chunk_size": (gaussian(chunk_size=0), ValueError, r"chunk_size.*1.*0"),
    "reversal scale": (
        lambda: gradient_reversal(torch.ones(2), -1.0),
        ValueError,
        r"\bscale\b.*-1",
    ),
    # Modules inherit the checks of the functions they call.
    "module alpha": (
        lambda: ncfd.NCFDLoss(torch.ones(F, D), alpha=2.0)(*data()[:2]),
        ValueError,
        r"\balpha\b.*\[0, 1\].*2\.0",
    ),
    "module reduction": (
        lambda: ncfd.NCFDLoss(torch.ones(F, D), reduction="average")(*data()[:2]),
        ValueError,
        r"\breduction\b.*average",
    ),
    "module unbiased": (
        lambda: ncfd.NCFDLoss(torch.ones(F, D), unbiased=True)(*data()[:2]),
        ValueError,
        r"unbiased.*squared",
    ),
    # They call the arguments by their own names.
    "module real list": (module(real=[[1.0, 2.0]]), TypeError, r"\breal\b.*Tensor.*list"),
    "module synthetic vector": (
        module(synthetic=torch.ones(D)),
        ValueError,
        rf"\bsynthetic\b.*N, D.*\({D},\)",
    ),
    "module sides of other D": (
        module(real=torch.ones(N, D + 1)),
        ValueError,
        rf"\breal and synthetic\b.*\({N}, {D + 1}\).*\({M}, {D}\)",
    ),
    "module groups": (
        module(real_groups=labels_x, num_groups=2),
        ValueError,
        r"\breal_groups\b.*\bsynthetic_groups\b",
    ),
    "module labels": (
        module(real_groups=labels_x, synthetic_groups=labels_y + 1, num_groups=2),
        ValueError,
        r"\bsynthetic_groups\b.*2.*1 to 2",
    ),
    "module no common group": (
        module(real_groups=0 * labels_x, synthetic_groups=0 * labels_y + 1, num_groups=2),
        ValueError,
        r"real_groups and synthetic_groups.*common",
    ),
    "module weights": (
        module(real_weights=-torch.ones(N)),
        ValueError,
        r"\breal_weights\b.*non-negative.*-1",
    ),
    "module known φ": (
        module(real=z[1:]),
        ValueError,
        rf"\breal\b.*\({F},\).*synthetic.*\({F - 1},\)",
    ),
    "module known φ with weights": (
        module(real=z, real_weights=torch.ones(N)),
        ValueError,
        r"\breal_weights\b.*\breal\b",
    ),
    "module unbiased of one": (
        module({"squared": True, "unbiased": True}, synthetic=torch.ones(1, D)),
        ValueError,
        r"two samples.*\bsynthetic\b",
    ),
    "module sampler": (
        lambda: ncfd.NCFDLoss([1.0, 2.0])(*data()[:2]),
        TypeError,
        r"\bsampler\b.*list",
    ),
    "module sampler shape": (
        lambda: ncfd.NCFDLoss(torch.ones(D))(*data()[:2]),
        ValueError,
        rf"(\bsampler\b|\bt\b).*\({D},\)",
    ),
    "module t of no tensor": (
        lambda: ncfd.NCFDLoss(torch.ones(F, D))(*data()[:2], t=[[1.0] * D]),
        TypeError,
        r"\bt\b must be a torch\.Tensor.*list",
    ),
    "module frequencies of other D": (
        lambda: ncfd.NCFDLoss(sampler(D + 1, F))(*data()[:2]),
        ValueError,
        rf"\breal\b.*{D + 1} features like the frequencies.*\({N}, {D}\)",
    ),
    # Samplers.
    "dim zero": (lambda: sampler(0), ValueError, r"\bdim\b.*0"),
    "dim float": (lambda: sampler(2.5), TypeError, r"\bdim\b.*2\.5"),
    "number zero": (lambda: sampler(D, 0), ValueError, r"num_frequencies.*0"),
    "number float": (lambda: sampler(D, 8.0), TypeError, r"num_frequencies.*8\.0"),
    "scale zero": (lambda: sampler(D, scale=0.0), ValueError, r"\bscale\b.*positive.*0"),
    "scale negative": (lambda: sampler(D, scale=-1.0), ValueError, r"\bscale\b.*positive.*-1"),
    "scale nan": (lambda: sampler(D, scale=math.nan), ValueError, r"\bscale\b.*nan"),
    "scale text": (lambda: sampler(D, scale="wide"), TypeError, r"\bscale\b.*wide"),
    "scale shape": (lambda: sampler(D, scale=torch.ones(D + 1)), ValueError, rf"\bscale\b.*{D}"),
    "method": (
        lambda: sampler(D, method="halton"),
        ValueError,
        r"\bmethod\b.*orthogonal.*halton",
    ),
    "generator": (lambda: sampler(D)(generator=3), TypeError, r"generator.*3"),
    "mixture dim": (lambda: ncfd.FrequencySampler(0), ValueError, r"\bdim\b.*0"),
    "mixture number": (lambda: ncfd.FrequencySampler(D, -1), ValueError, r"num_frequencies.*-1"),
    "mixture components": (
        lambda: ncfd.FrequencySampler(D, F, num_components=0),
        ValueError,
        r"num_components.*0",
    ),
    "mixture scale": (
        lambda: ncfd.FrequencySampler(D, scale=-2.0),
        ValueError,
        r"\bscale\b.*positive.*-2",
    ),
    "mixture generator": (
        lambda: ncfd.FrequencySampler(D)(generator="seed"),
        TypeError,
        r"generator.*seed",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case: str) -> None:
    call, error, pattern = ERRORS[case]
    with pytest.raises(error) as caught:
        call()
    # Exactly the documented type: a subclass would be some inner failure coming through.
    assert caught.type is error
    assert re.search(pattern, str(caught.value)), str(caught.value)


# --- more dimensions than (N, D) ----------------------------------------------------------------

MAPS, VIEWS = torch.ones(2, N, 5, 5), torch.ones(2, N, D)


def normal_law(dim: int, *batch: int) -> torch.distributions.Distribution:
    law = torch.distributions.Normal(torch.zeros(*batch, dim), 1.0)
    return torch.distributions.Independent(law, 1)


def every_door(x: torch.Tensor) -> dict[str, tuple[str, Callable[[], object]]]:
    """Each way in for samples, with what it calls them: ``x`` does not fit the other arguments."""
    rows, _, t = data()
    labels = torch.zeros(len(x), dtype=torch.long)
    law = sampler(D + 1, F)
    stream = ncfd.CharacteristicFunction(torch.ones(F, D + 1))
    directions = torch.ones(D + 1, F)
    wrong_t = torch.ones(F, D + 1)
    return {
        "φ": ("x", phi(x=x, t=wrong_t)),
        "φ with weights": ("x", phi(x=x, t=torch.ones(F, x.shape[-1]), weights=torch.ones(N))),
        "φ with groups": (
            "x",
            phi(x=x, groups=labels, num_groups=1, t=x[..., :1, :].flatten(0, -2)),
        ),
        "loss, real": ("x", loss(x=x)),
        "loss, synthetic": ("y", loss(y=x)),
        "loss, frequencies": ("x", loss(x=x, y=x, t=wrong_t)),
        "loss, known": ("y", known(y=x, t=torch.ones(F, x.shape[-1]))),
        "signal": ("y", partial(ncfd.functional.signal_discrepancy, rows, x, t)),
        "closed form": ("x", gaussian(x=x)),
        "closed form, unit": ("y", gaussian(y=x, scale="median")),
        "closed form, scale": ("x", gaussian(x=x, y=x, scale=torch.ones(D + 1))),
        "closed form, law": ("y", gaussian(x=normal_law(D + 1), y=x)),
        "closed form, laws": ("y", gaussian(x=normal_law(x.shape[-1], 7), y=x)),
        "module": ("real", module(real=x)),
        "module, synthetic": ("synthetic", module(synthetic=x)),
        "module, law": ("real", partial(ncfd.NCFDLoss(law), x, x)),
        "module, unit": ("synthetic", partial(ncfd.NCFDLoss(sampler(scale="median")), rows, x)),
        "law": ("real", partial(law, real=x)),
        "stream": ("x", partial(stream.update, x)),
        "slices": ("x", partial(ncfd.functional.sliced_normality, x, directions)),
        "report": ("x", partial(ncfd.frequency_report, x, t)),
    }


@pytest.mark.parametrize("door", every_door(MAPS))
def test_feature_maps_are_told_to_be_flattened(door: str) -> None:
    for maps in (MAPS, torch.ones(N, 2 * D, 1, 1)):
        name, call = every_door(maps)[door]
        with pytest.raises(ValueError, match=rf"\b{name}\.flatten\(1\)"):
            call()


@pytest.mark.parametrize("door", every_door(VIEWS))
def test_views_are_told_how_to_be_one_set(door: str) -> None:
    name, call = every_door(VIEWS)[door]
    with pytest.raises(ValueError, match=rf"(?s)\.mean\(\).*{name}\.flatten\(0, 1\)"):
        call()


def test_plain_rows_are_told_nothing_of_it() -> None:
    with pytest.raises(ValueError, match="agree in all") as caught:
        loss(y=torch.ones(M, D + 1))()
    assert "flatten" not in str(caught.value)


def test_a_law_does_not_learn_its_dim_from_feature_maps() -> None:
    law = sampler(num_frequencies=F)
    with pytest.raises(ValueError, match=r"dim=None.*real\.flatten\(1\)"):
        ncfd.NCFDLoss(law)(MAPS, MAPS)
    assert law.dim is None
    assert ncfd.NCFDLoss(law)(MAPS.flatten(1), MAPS.flatten(1)).shape == ()
    assert law.dim == N * 5 * 5


def test_counts_may_be_numpys() -> None:
    """``labels.max() + 1`` of an array is no Python int."""
    x, _, t = data()
    phi = characteristic_function(
        x, t, groups=labels_x, num_groups=np.int64(2), chunk_size=np.int32(2)
    )
    assert phi.shape == (2, F)
    made = ncfd.FrequencySampler(np.int64(D), np.int64(8), num_components=np.uint8(2))
    assert made().shape == (8, D)
    assert type(made.dim) is int
    y = 2 * x
    assert torch.equal(gaussian_ncfd(x, y, real_rows=np.int64(2)), gaussian_ncfd(x, y, real_rows=2))
    with pytest.raises(TypeError, match=r"num_groups must be an int, got bool"):
        characteristic_function(x, t, groups=labels_x, num_groups=np.bool_(True))


def test_nothing_above_is_wrong_with_the_right_arguments() -> None:
    """The cases differ from a working call in the one thing they test."""
    assert phi()().shape == (F,)
    assert phi(groups=labels_x, num_groups=2, chunk_size=2)().shape == (2, F)
    assert loss(**grouped, unbiased=True, squared=True)().shape == ()
    assert known()().shape == ()
    assert gaussian()().shape == gaussian(**grouped)().shape == ()
    assert chf(z, z)().shape == (F,)
    assert ncfd_loss(*batched()).shape == (2,)
    assert ncfd.NCFDLoss(sampler(D, F))(*data()[:2]).shape == ()
    assert module()().shape == module(real=z)().shape == ()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    x, y, t = data()
    ncfd.NCFDLoss(ncfd.FrequencySampler(D, 16))(x, y.requires_grad_()).backward()
    ncfd_loss(x, y, t)
    assert capfd.readouterr() == ("", "")


def test_no_check_needs_the_values_of_an_accelerator() -> None:
    # On `meta` there are no values: a check that looked would fail, as it would wait on a GPU.
    x, y, t = (v.to("meta") for v in data())
    value = ncfd_loss(
        x,
        y,
        t,
        x_groups=labels_x.to("meta"),
        y_groups=labels_y.to("meta"),
        num_groups=2,
        x_weights=torch.ones(N, device="meta"),
    )
    assert value.device.type == "meta"
    assert value.shape == ()
