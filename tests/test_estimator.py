"""The streaming estimator: any split, order, merge or process gives the φ of the whole."""

import copy
import io
import itertools
import math
import pickle
import time
from pathlib import Path

import pytest
import reference
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, phi_tolerance, seeds
from torch import Tensor

from ncfd.estimator import CharacteristicFunction
from ncfd.functional import characteristic_function, ncfd_loss


def parts(rows: int, cuts: list[int]) -> list[slice]:
    ends = sorted({min(c, rows) for c in cuts} | {0, rows})
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


@given(
    seed=seeds,
    rows=st.integers(1, 60),
    cuts=st.lists(st.integers(1, 60), max_size=6),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    weighted=st.booleans(),
    num_groups=st.sampled_from((None, 1, 4)),
)
def test_any_split_and_order_agree(
    seed: int,
    rows: int,
    cuts: list[int],
    dtype: torch.dtype,
    weighted: bool,
    num_groups: int | None,
) -> None:
    x, t = normal(seed, rows, 3, dtype=dtype), normal(seed + 1, 5, 3, dtype=dtype)
    weights = normal(seed + 2, rows, dtype=dtype).abs() + 0.1 if weighted else None
    shuffle = torch.Generator().manual_seed(seed)
    groups = None
    if num_groups:
        groups = torch.randint(num_groups, (rows,), generator=shuffle)
    order = torch.randperm(rows, generator=shuffle)

    stream = CharacteristicFunction(t, num_groups)
    for part in parts(rows, cuts):
        chosen = order[part]
        stream.update(
            x[chosen],
            groups=None if groups is None else groups[chosen],
            weights=None if weights is None else weights[chosen],
        )
    if groups is None:
        exact = reference.characteristic_function(x, t, weights)
    else:
        exact = reference.grouped_characteristic_function(x, t, groups, num_groups, weights)
    got = stream.compute()
    assert got.dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
    assert got.shape == exact.shape
    assert abs(got.numpy() - exact).max() <= phi_tolerance(x, t, dtype)


@given(seed=seeds, cut=st.integers(1, 19))
def test_merging_is_adding(seed: int, cut: int) -> None:
    x, t = normal(seed, 20, 2), normal(seed + 1, 4, 2)
    whole, left, right = (CharacteristicFunction(t) for _ in range(3))
    whole.update(x)
    left.update(x[:cut])
    right.update(x[cut:])
    before = right.compute()
    assert left.merge(right) is left
    torch.testing.assert_close(left.compute(), whole.compute())
    assert torch.equal(right.compute(), before)


def test_a_million_rows_quickly() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([[0.5, 0.0], [1.0, 1.0], [0.0, 3.0]])
    stream = CharacteristicFunction(t)
    start = time.perf_counter()
    for _ in range(10):
        stream.update(torch.randn(100_000, 2, generator=generator))
    # Seen: 0.1 s. A loop over rows would take a minute.
    assert time.perf_counter() - start < 10
    assert stream.total == 1e6
    exact = (-0.5 * t.square().sum(1)).exp()
    assert (stream.compute() - exact).abs().max() < 4.5 / math.sqrt(1e6)


@pytest.mark.slow
def test_ten_million_rows_in_any_split_and_order() -> None:
    """Seen, in float32: sums within 3e-8 of the float64 ones, results within 5e-8 of each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10**7, 3, generator=generator) * torch.tensor([0.5, 1.0, 2.0]) + 1
    t = torch.randn(16, 3, generator=generator)

    def fed(rows: Tensor, size: int) -> CharacteristicFunction:
        stream = CharacteristicFunction(t)
        for part in rows.split(size):
            stream.update(part)
        return stream

    merged = CharacteristicFunction(t)
    sizes = (3_333, 10_000, 50_000, 100_000, 1_000_000, 1_700_001)
    for part, size in zip(x.split(1_700_001), sizes, strict=True):
        merged.merge(fed(part, size))
    shuffled = x[torch.randperm(len(x), generator=generator)]
    streams = [fed(x, len(x)), fed(x, 777_777), fed(x, 4096), fed(shuffled, 250_000), merged]

    exact = CharacteristicFunction(t.double())
    for part in x.split(250_000):
        exact.update(part.double())
    for stream in streams:
        assert stream.total == 10**7
        for got, wanted in ((stream.cos_sum, exact.cos_sum), (stream.sin_sum, exact.sin_sum)):
            assert (got - wanted).abs().max() < 1e-7 * 10**7
        assert (stream.compute() - streams[0].compute()).abs().max() < 2e-7


def test_many_small_updates_lose_no_digits() -> None:
    """Float32 sums would stall: at 2^24 rows, adding 1 changes nothing any more."""
    t = torch.zeros(1, 1)
    stream = CharacteristicFunction(t)
    stream.update(torch.zeros(1, 1))
    for _ in range(26):  # 2^26 rows
        stream.merge(copy.deepcopy(stream))
    for _ in range(3):
        stream.update(torch.zeros(1, 1))
    assert stream.total == 2**26 + 3
    assert stream.cos_sum == 2**26 + 3


def test_is_a_known_phi_for_the_loss(generator: torch.Generator) -> None:
    x, y, t = (torch.randn(n, 3, generator=generator).double() for n in (50, 40, 16))
    stream = CharacteristicFunction(t)
    for part in x.split(7):
        stream.update(part)
    y.requires_grad_()
    loss = ncfd_loss(stream.compute(), y, t)
    torch.testing.assert_close(loss, ncfd_loss(x, y, t))
    (grad,) = torch.autograd.grad(loss, y)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


def test_is_a_known_phi_for_the_grouped_loss(generator: torch.Generator) -> None:
    x, y, t = (torch.randn(n, 3, generator=generator).double() for n in (50, 40, 16))
    x_groups, y_groups = (torch.randint(4, (n,), generator=generator) for n in (50, 40))
    x_groups[x_groups == 3] = 0  # group 3 has no real samples
    stream = CharacteristicFunction(t, num_groups=4)
    stream.update(x, groups=x_groups)
    assert (stream.compute()[3] == 0).all()
    options = {"y_groups": y_groups, "num_groups": 4}
    torch.testing.assert_close(
        ncfd_loss(stream.compute(), y, t, **options),
        ncfd_loss(x, y, t, x_groups=x_groups, **options),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_are_summed_in_float32(dtype: torch.dtype) -> None:
    x, t = normal(0, 30, 3).to(dtype), normal(1, 5, 3).to(dtype)
    stream = CharacteristicFunction(t)
    stream.update(x)
    assert stream.compute().dtype == torch.complex64
    torch.testing.assert_close(stream.compute(), characteristic_function(x.float(), t.float()))


def test_float64_samples_at_float32_frequencies_keep_their_digits() -> None:
    t = torch.tensor([[1.0]])
    stream = CharacteristicFunction(t)
    # 1e8 is not a float32 phase: its spacing there is 8.
    stream.update(torch.tensor([[1e8 + 1.0]], dtype=torch.float64))
    torch.testing.assert_close(stream.compute().real.item(), math.cos(1e8 + 1.0), atol=1e-6, rtol=0)


def state(num_groups: int | None = None) -> CharacteristicFunction:
    stream = CharacteristicFunction(normal(1, 5, 3, dtype=torch.float32), num_groups)
    groups = None if num_groups is None else torch.arange(30) % num_groups
    stream.update(normal(0, 30, 3, dtype=torch.float32), groups=groups)
    return stream


@pytest.mark.parametrize("num_groups", [None, 3])
def test_state_travels(num_groups: int | None) -> None:
    stream = state(num_groups)
    expected = stream.compute()
    buffer = io.BytesIO()
    torch.save(stream.state_dict(), buffer)
    buffer.seek(0)
    fresh = CharacteristicFunction(torch.zeros(5, 3), num_groups)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (fresh, pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)):
        assert torch.equal(other.compute(), expected)
        other.merge(stream)  # frequencies came along
        torch.testing.assert_close(other.compute(), expected)
    assert torch.equal(stream.compute(), expected)  # and nothing is shared


def test_state_does_not_grow() -> None:
    stream = state()
    size = sum(v.numel() for v in stream.state_dict().values())
    stream.update(torch.randn(1000, 3))
    assert sum(v.numel() for v in stream.state_dict().values()) == size == 5 * 3 + 2 * 5 + 1


def test_casts_leave_the_sums_alone() -> None:
    stream = state()
    expected = stream.compute()
    parent = torch.nn.Sequential(stream, torch.nn.Linear(2, 2))
    for cast in (parent.half, parent.bfloat16, parent.double, parent.float):
        cast()
        assert stream.cos_sum.dtype == torch.float64
        assert torch.equal(stream.compute(), expected)
    assert list(stream.parameters()) == []


def test_moves_with_its_module() -> None:
    moved = state().to("meta")
    assert {v.device.type for v in moved.state_dict().values()} == {"meta"}
    assert moved.cos_sum.dtype == torch.float64


def test_reset_keeps_the_frequencies() -> None:
    stream = state(3)
    t = stream.t.clone()
    assert stream.reset() is stream
    assert torch.equal(stream.t, t)
    assert all((v == 0).all() for v in (stream.cos_sum, stream.sin_sum, stream.total))


def test_later_changes_of_t_do_not_reach_it() -> None:
    t = torch.ones(2, 2)
    stream = CharacteristicFunction(t)
    t.zero_()
    assert (stream.t == 1).all()


def test_no_graph_is_kept() -> None:
    stream = CharacteristicFunction(torch.ones(2, 2, requires_grad=True))
    stream.update(torch.ones(3, 2, requires_grad=True))
    assert not stream.compute().requires_grad


def test_nan_is_not_hidden() -> None:
    stream = state()
    stream.update(torch.full((1, 3), torch.nan))
    assert stream.compute().isnan().all()


def test_nan_frequencies_are_the_same_as_themselves() -> None:
    stream = CharacteristicFunction(torch.tensor([[math.nan], [1.0]]))
    stream.update(torch.ones(2, 1))
    assert stream.merge(copy.deepcopy(stream)).compute().isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="same frequencies"):
        stream.merge(CharacteristicFunction(torch.tensor([[math.nan], [2.0]])))


def test_prints_its_sizes() -> None:
    assert repr(state(3)) == "CharacteristicFunction(num_frequencies=5, dim=3, num_groups=3)"


def test_wrong_arguments() -> None:
    t = torch.randn(5, 3)
    with pytest.raises(TypeError, match="t must be a real floating-point tensor"):
        CharacteristicFunction(torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"t must have shape \(F, D\)"):
        CharacteristicFunction(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="num_groups must be at least 1"):
        CharacteristicFunction(t, 0)
    plain, grouped = CharacteristicFunction(t), CharacteristicFunction(t, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3\).*got shape \(4, 2\)"):
        plain.update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least one sample"):
        plain.update(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="x must be on cpu like the estimator"):
        plain.update(torch.zeros(4, 3, device="meta"))
    with pytest.raises(ValueError, match="groups needs an estimator with groups"):
        plain.update(torch.zeros(4, 3), groups=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="num_groups=2: update needs groups"):
        grouped.update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"groups must lie in \[0, num_groups = 2\)"):
        grouped.update(torch.zeros(4, 3), groups=torch.full((4,), 2))
    with pytest.raises(ValueError, match="weights must be non-negative"):
        plain.update(torch.zeros(4, 3), weights=-torch.ones(4))
    with pytest.raises(ValueError, match="no samples yet; call update"):
        plain.compute()
    with pytest.raises(TypeError, match="other must be a CharacteristicFunction"):
        plain.merge(t)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="num_groups=None, got 2"):
        plain.merge(grouped)
    for other in (t + 1e-6, t[:4]):
        with pytest.raises(ValueError, match="same frequencies t"):
            plain.merge(CharacteristicFunction(other))
    with pytest.raises(ValueError, match=r"all_reduce needs torch\.distributed"):
        plain.all_reduce()


# --- processes ----------------------------------------------------------------------------------

X, T, GROUPS = normal(0, 30, 3), normal(1, 5, 3), torch.arange(30) % 4


def _worker(rank: int, world: int, store: str, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    cut = 7  # parts of different sizes
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    plain, grouped = CharacteristicFunction(T), CharacteristicFunction(T, 4)
    plain.update(X[part])
    grouped.update(X[part], groups=GROUPS[part])
    plain.all_reduce()
    grouped.all_reduce(torch.distributed.group.WORLD)
    message = ""
    try:
        CharacteristicFunction(T + rank).all_reduce()
    except ValueError as error:
        message = str(error)
    torch.save((plain.compute(), grouped.compute(), message), f"{out}/{rank}.pt")
    # Gloo of torch 2.5 can hang if its last work still holds tensors when it is destroyed.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_add_up(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    plain, grouped = CharacteristicFunction(T), CharacteristicFunction(T, 4)
    plain.update(X)
    grouped.update(X, groups=GROUPS)
    for rank in range(2):
        got: tuple[Tensor, Tensor, str] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got[0], plain.compute())
        torch.testing.assert_close(got[1], grouped.compute())
        assert "different frequencies" in got[2]


def test_the_sums_are_no_buffers_and_still_stored() -> None:
    """DistributedDataParallel copies the first process's buffers over those of the others."""
    stream = CharacteristicFunction(torch.ones(2, 3))
    stream.update(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert [name for name, _ in stream.named_buffers()] == ["t"]
    assert {*stream.state_dict()} == {"t", "cos_sum", "sin_sum", "total"}
    other = CharacteristicFunction(torch.ones(2, 3))
    other.load_state_dict(stream.state_dict())
    torch.testing.assert_close(other.compute(), stream.compute())
    other.update(torch.zeros(1, 3))
    assert stream.total == 5
    assert other.total == 6
    wrong = stream.state_dict() | {"cos_sum": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="size mismatch for cos_sum"):
        other.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"t": stream.t})
