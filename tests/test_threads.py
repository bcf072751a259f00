"""Blocks of phases shared among threads: the same numbers, and nothing left behind."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
import reference
import torch
from strategies import normal
from torch import Tensor

import ncfd
from ncfd import ops
from ncfd.ops import _threads

N, M, D, F = 75, 63, 3, 16
BLOCK = 5 * F * 8  # five rows in float64

pytestmark = pytest.mark.skipif(
    not torch.backends.openmp.is_available(), reason="PyTorch without OpenMP shares nothing"
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks so small that these few samples have many; three threads; all cores busy."""
    monkeypatch.setitem(ops.BUDGET, "block_small_dim", BLOCK)
    monkeypatch.setitem(ops.BUDGET, "few", 0)
    monkeypatch.setattr(_threads, "_crowded", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have handled blocks."""
    names: list[str] = []
    original = ops._phases._hold

    def hold(*arguments: object, **options: object) -> Tensor:
        names.append(threading.current_thread().name)
        return original(*arguments, **options)

    monkeypatch.setattr(ops._phases, "_hold", hold)
    return names


def values(x: Tensor, y: Tensor, t: Tensor, **options: object) -> list[Tensor]:
    """The loss and its gradients for y and t."""
    loss = ncfd.functional.ncfd_loss(x, y, t, **options)
    return [loss, *torch.autograd.grad(loss.sum(), [y, t])]


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    return normal(1, N, D), normal(2, M, D).requires_grad_(), normal(3, F, D).requires_grad_()


@pytest.mark.parametrize("kept", [2**20, 0])
@pytest.mark.parametrize("piece", [2**20, 7 * F * 8])
@pytest.mark.parametrize("kind", ["plain", "weighted", "grouped"])
def test_the_same_as_one_thread(
    kind: str, kept: int, piece: int, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ops.BUDGET, "kept", kept)
    monkeypatch.setitem(ops.BUDGET, "piece", piece)
    options: dict[str, object] = {}
    if kind == "weighted":
        options = {"x_weights": normal(4, N).abs() + 0.1}
    if kind == "grouped":
        options = {"x_groups": torch.arange(N) % 3, "y_groups": torch.arange(M) % 3}
        options["num_groups"] = 3
    shared = values(*tensors(), **options)
    assert all(name.startswith("ncfd") for name in used)  # a quick one may do it for two
    torch.set_num_threads(1)
    used.clear()
    alone = values(*tensors(), **options)
    assert set(used) == {threading.current_thread().name}
    for a, b in zip(shared, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_characteristic_function_itself(used: list[str]) -> None:
    x, _, t = tensors()
    with torch.inference_mode():
        found = ncfd.functional.characteristic_function(x, t.detach())
    assert all(name.startswith("ncfd") for name in used)
    expected = torch.from_numpy(reference.characteristic_function(x, t.detach()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_equal_inputs_give_equal_bits() -> None:
    first = values(*tensors())
    for _ in range(5):
        assert all(map(torch.equal, values(*tensors()), first))


@pytest.mark.parametrize("why", ["cores are free", "deterministic"])
def test_with_free_cores_and_for_equal_bits_blocks_stay_here(
    why: str, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = values(*tensors())
    used.clear()
    if why == "deterministic":
        torch.use_deterministic_algorithms(True)
    else:
        monkeypatch.setattr(_threads, "_crowded", lambda: False)
    try:
        here = values(*tensors())
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(used) == {threading.current_thread().name}
    for a, b in zip(shared, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the count is Linux's")
def test_a_crowd_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with monkeypatch.context() as many:
        many.setattr(os, "cpu_count", lambda: 10**6)
        assert not _threads._crowded()
    spin = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        assert any(_threads._crowded() or time.sleep(0.01) for _ in range(1000))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_few_blocks_and_blocks_of_the_callers_choice_are_not_shared(used: list[str]) -> None:
    x, y, t = tensors()
    here = {threading.current_thread().name}
    values(x, y, t, chunk_size=5)
    assert set(used) == here
    used.clear()
    with torch.no_grad():
        ncfd.functional.characteristic_function(x[:50], t)  # ten blocks, four for each make twelve
    assert set(used) == here


def test_the_settings_of_threads_stay_as_they_were() -> None:
    found = []
    for _ in range(2):
        values(*tensors())
        assert torch.get_num_threads() == 3
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [3, 3]


def test_a_failure_in_one_of_the_threads_is_raised() -> None:
    def action(run: range) -> int:
        if 7 in run:
            raise ZeroDivisionError("seven")
        return sum(run)

    with pytest.raises(ZeroDivisionError, match="seven"):
        _threads.each(action, range(9), 3)
    assert _threads.each(action, range(7), 3) == [0 + 1, 2 + 3, 4 + 5 + 6]
    assert _threads.each(sum, range(2), 3) == [0, 1]  # fewer items than threads
    assert torch.get_num_threads() == 3


def test_tensors_of_a_tracer_are_left_to_its_own_thread() -> None:
    class Traced(Tensor):
        pass

    x = normal(1, N, D)
    assert _threads.count(x) == 3
    assert _threads.count(x.as_subclass(Traced)) == 1
    assert _threads.count(x.to("meta")) == 1
    torch.set_num_threads(_threads.MOST + 1)
    assert _threads.count(x) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Data workers are forked from processes that have computed a loss already."""
    program = """
    import os, sys, torch
    from ncfd import ops
    from ncfd.ops import _threads
    torch.set_num_threads(2)
    _threads._crowded = lambda: True
    total = lambda run: sum(run)
    assert _threads.each(total, range(4), 2) == [1, 5]
    child = os.fork()
    if child == 0:
        found = _threads.each(total, range(4), 2)
        os._exit(0 if found == [1, 5] else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    subprocess.run(command, check=True, timeout=120)
