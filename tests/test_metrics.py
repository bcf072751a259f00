"""The metric: the loss of the whole, in any batches, on any number of processes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from ncfd import FrequencySampler, GaussianFrequencies
from ncfd.functional import ncfd_loss

pytest.importorskip("torchmetrics")

from torchmetrics import MetricCollection

from ncfd.metrics import NCFDMetric


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y, T = normal(0, 90, 4), normal(1, 70, 4) * 1.3 + 0.2, normal(2, 32, 4)
OPTIONS = [
    {},
    {"squared": True},
    {"squared": True, "unbiased": True},
    {"alpha": 0.2},
    {"alpha": 1.0, "squared": True},
]


def fed(metric: NCFDMetric, x: Tensor = X, y: Tensor = Y, batch: int = 17) -> NCFDMetric:
    for part in x.split(batch):
        metric.update(part, real=True)
    for part in y.split(batch):
        metric.update(part, real=False)
    return metric


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_loss_of_the_whole(options: dict[str, object], dtype: torch.dtype) -> None:
    x, y, t = X.to(dtype), Y.to(dtype), T.to(dtype)
    value = fed(NCFDMetric(t, **options), x, y).compute()
    assert value.shape == ()
    assert value.dtype == dtype
    torch.testing.assert_close(value, ncfd_loss(x, y, t, **options), rtol=1e-4, atol=1e-6)


def test_equal_sets_give_zero() -> None:
    assert fed(NCFDMetric(T), X, X).compute() == 0


def test_the_unbiased_form_does_not_depend_on_the_number_of_samples() -> None:
    def mean(rows: int, **options: bool) -> float:
        values = []
        for r in range(40):
            x, y = normal(2 * r, rows, 4), normal(2 * r + 1, rows, 4)
            values.append(fed(NCFDMetric(T, squared=True, **options), x, y, 500).compute())
        return torch.stack(values).mean().item()

    assert mean(25) > 3 * mean(100) > 0
    assert abs(mean(25, unbiased=True)) < 0.1 * mean(25)


def test_features_may_be_extracted_and_normalised() -> None:
    extractor = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).eval()
    images, others = normal(3, 40, 3, 2, 2), normal(4, 30, 3, 2, 2)
    metric = fed(NCFDMetric(T, feature_extractor=extractor, normalize=True), images, others)
    rows = [torch.nn.functional.normalize(extractor(v)).detach() for v in (images, others)]
    torch.testing.assert_close(metric.compute(), ncfd_loss(*rows, T))
    assert not metric.compute().requires_grad
    assert all(p.grad is None for p in extractor.parameters())


def test_a_sampler_is_drawn_once_from_its_seed() -> None:
    sampler = FrequencySampler(dim=4, num_frequencies=16)
    state = torch.get_rng_state()
    one, same, other = (NCFDMetric(sampler, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.frequencies, same.frequencies)
    assert not torch.equal(one.frequencies, other.frequencies)
    assert not one.frequencies.requires_grad
    assert list(one.parameters()) == []
    assert fed(one).compute() == fed(one).compute()


def test_reset() -> None:
    forgetful, faithful = NCFDMetric(T), NCFDMetric(T, reset_real_features=False)
    for metric in (forgetful, faithful):
        expected = fed(metric).compute()
        metric.reset()
        metric.update(Y, real=False)
    with pytest.raises(ValueError, match="the real side needs at least 1 samples, got 0"):
        forgetful.compute()
    torch.testing.assert_close(faithful.compute(), expected)


def test_merges_and_travels() -> None:
    whole = fed(NCFDMetric(T))
    left, right = NCFDMetric(T), NCFDMetric(T)
    fed(left, X[:30], Y[:10])
    fed(right, X[30:], Y[10:])
    left.merge_state(right)
    torch.testing.assert_close(left.compute(), whole.compute())
    for other in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole)):
        assert other.compute() == whole.compute()
    whole.persistent(True)
    loaded = NCFDMetric(torch.zeros_like(T))
    loaded.persistent(True)
    loaded.load_state_dict(whole.state_dict())
    with pytest.warns(UserWarning, match="before the ``update``"):  # torchmetrics cannot know
        assert loaded.compute() == whole.compute()


def test_in_a_collection_and_with_half_features() -> None:
    collection = MetricCollection({"a": NCFDMetric(T), "b": NCFDMetric(T, squared=True)})
    collection.update(X.bfloat16(), real=True)
    collection.update(Y.half(), real=False)
    values = collection.compute()
    torch.testing.assert_close(values["a"], ncfd_loss(X.bfloat16().float(), Y.half().float(), T))
    assert values["b"] < values["a"]


def test_casts_leave_the_sums_alone() -> None:
    metric = fed(NCFDMetric(T))
    expected = metric.compute()
    parent = torch.nn.ModuleDict({"metric": metric})
    for cast in (parent.half, lambda: parent.to(torch.float16)):
        cast()
        assert metric.real_cos_sum.dtype == torch.float64
        assert metric.frequencies.dtype == torch.float32
        metric._computed = None
        assert metric.compute() == expected


def test_nan_frequencies_are_the_same_as_themselves() -> None:
    t = T.clone()
    t[0, 0] = torch.nan
    assert fed(NCFDMetric(t)).compute().isnan()


def test_wrong_arguments() -> None:
    metric = NCFDMetric(T)
    with pytest.raises(TypeError, match="frequencies must be a real floating-point tensor"):
        NCFDMetric(T.long())
    with pytest.raises(ValueError, match=r"frequencies must have shape \(F, D\)"):
        NCFDMetric(T[0])
    with pytest.raises(TypeError, match=r"feature_extractor must be a torch\.nn\.Module"):
        NCFDMetric(T, feature_extractor=torch.flatten)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="unbiased=True needs squared=True"):
        NCFDMetric(T, unbiased=True)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        NCFDMetric(T, alpha=2.0)
    with pytest.raises(ValueError, match=r"features must have shape \(N, 4\)"):
        metric.update(X[:, :3], real=True)
    with pytest.raises(ValueError, match="features must be on cpu like the metric"):
        metric.update(X.to("meta"), real=True)
    with pytest.raises(TypeError, match="real must be True or False"):
        metric.update(X, real="yes")  # type: ignore[arg-type]  # wrong on purpose
    metric.update(X, real=True)
    with pytest.raises(ValueError, match=r"synthetic side needs.*real=False\) before compute"):
        metric.compute()


def test_importing_the_package_does_not_import_torchmetrics() -> None:
    code = "import sys, ncfd; sys.exit('torchmetrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torchmetrics_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "try:\n    import ncfd.metrics\n"
        "except ImportError as error:\n    sys.exit('ncfd[metrics]' not in str(error))\n"
        "sys.exit(2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- processes ----------------------------------------------------------------------------------


def _worker(rank: int, world: int, store: str, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    # Parts of different sizes, and one process without synthetic samples of its own.
    metric = NCFDMetric(T, squared=True, unbiased=True)
    metric.update(X[:20] if rank == 0 else X[20:], real=True)
    if rank == 0:
        metric.update(Y, real=False)
    value = metric.compute()
    own = metric.real_count.item()
    message = ""
    different = NCFDMetric(GaussianFrequencies(4, 8), seed=rank)
    fed(different)
    try:
        different.compute()
    except ValueError as error:
        message = str(error)
    torch.save((value, own, message), f"{out}/{rank}.pt")
    # Gloo of torch 2.5 can hang if its last work still holds tensors when it is destroyed.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    expected = fed(NCFDMetric(T, squared=True, unbiased=True)).compute()
    for rank in range(2):
        value, own, message = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(value, expected)
        assert own == (20, 70)[rank]  # each process goes on with its own part
        assert "different frequencies" in message


def test_forward_keeps_the_real_side_and_counts_it_once() -> None:
    t = normal(3, 8, 3)
    real, batches = normal(1, 20, 3), [normal(k, 10, 3) + 0.5 for k in (5, 6)]
    metric = NCFDMetric(t, reset_real_features=False)
    metric.update(real, real=True)
    for batch in batches:
        torch.testing.assert_close(metric(batch, real=False), ncfd_loss(real, batch, t))
    assert metric.real_count == 20
    torch.testing.assert_close(metric.compute(), ncfd_loss(real, torch.cat(batches), t))


@pytest.mark.parametrize("reset_real_features", [True, False])
def test_forward_loses_nothing_when_there_is_no_value(reset_real_features: bool) -> None:
    t, real, synthetic = normal(3, 8, 3), normal(1, 20, 3), normal(2, 10, 3) + 0.5
    metric = NCFDMetric(t, reset_real_features=reset_real_features)
    with pytest.raises(ValueError, match="synthetic side"):
        metric(real, real=True)
    metric.update(synthetic, real=False)
    torch.testing.assert_close(metric.compute(), ncfd_loss(real, synthetic, t))
    with pytest.raises(ValueError, match="features must have shape"):
        metric(real[:, :2], real=True)
    torch.testing.assert_close(metric.compute(), ncfd_loss(real, synthetic, t))


def test_metrics_of_a_collection_share_only_equal_updates() -> None:
    t, real, synthetic = normal(3, 8, 3), normal(1, 20, 3), normal(2, 10, 3) + 0.5
    collection = MetricCollection({"as is": NCFDMetric(t), "rows": NCFDMetric(t, normalize=True)})
    unit = real / real.norm(dim=1, keepdim=True)
    collection.update(unit, real=True)  # the states of both are equal after this
    collection.update(synthetic, real=False)
    found = collection.compute()
    rows = synthetic / synthetic.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found["as is"], ncfd_loss(unit, synthetic, t))
    torch.testing.assert_close(found["rows"], ncfd_loss(unit, rows, t))
