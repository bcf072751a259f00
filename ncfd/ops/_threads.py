"""Blocks of phases shared among threads, each with blocks of its own, where cores are busy.

Left to itself PyTorch cuts every operation on a block among its threads and waits for the last of
them, twenty times a block. Beside other work (data workers) one of the threads is often not
running, and every wait takes as long as the system leaves it out. A thread that handles whole
blocks waits once, at the end. Where every thread has a core the waits are short, and PyTorch's
threads, which spin for the next operation, would only be in the way of others: there each
operation is cut, and `count` is 1.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")

#: Beyond this many threads they would wait for each other at Python's lock.
MOST = 8


def count(x: Tensor) -> int:
    """How many threads are to share work on ``x``: 1 where only this one may, or cores are free.

    Each thread has a setting of its own with OpenMP only. Blocks that are cut in another way round
    in another way: under ``torch.use_deterministic_algorithms`` the same call gives the same bits.
    """
    plain = type(x) in (Tensor, torch.nn.Parameter)  # a tracer's tensors belong to its thread
    if x.device.type != "cpu" or not plain or not torch._C.has_openmp:
        return 1
    threads = torch.get_num_threads()
    fixed = threads > MOST or torch.are_deterministic_algorithms_enabled()
    return 1 if threads == 1 or fixed or not _crowded() else threads


def each(action: Callable[[Sequence[S]], T], items: Sequence[S], threads: int) -> list[T]:
    """``action`` of as many runs of consecutive items as there are threads, at once, in order.

    Which items form a run depends on the numbers alone.
    """
    threads = min(threads, len(items))
    if threads == 1:
        return [action(items)]
    cuts = [len(items) * k // threads for k in range(threads + 1)]
    inference, before = torch.is_inference_mode_enabled(), torch.get_num_threads()

    def alone(run: Sequence[S]) -> T:
        with torch.inference_mode() if inference else torch.no_grad():
            return action(run)

    pool = _pool(os.getpid(), threads)
    begun = [pool.submit(alone, items[a:b]) for a, b in itertools.pairwise(cuts)]
    try:
        wait(begun)
        return [one.result() for one in begun]
    finally:  # what a thread sets for itself is also what threads yet to come begin with
        torch.set_num_threads(before)


def _crowded() -> bool:
    """Whether more threads of the whole machine want to run at this moment than it has cores."""
    try:
        running = int(Path("/proc/loadavg").read_bytes().split(b"/")[0].split()[-1])
    except (OSError, ValueError, IndexError):  # not Linux
        return False
    return running > (os.cpu_count() or 1)


@functools.cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay, with the memory that they have had: fresh pages cost a tenth of the time.

    A forked process begins without threads, and so with a pool of its own.
    """
    return ThreadPoolExecutor(threads, "ncfd", initializer=torch.set_num_threads, initargs=(1,))
