"""Several processes as one, started by `torchrun`: work is shared out, results come together.

Every process draws the same random numbers and holds the same images and frequencies. It handles
its share of the classes; gradients are added up over all, after which every process takes the same
step. Started without `torchrun` there is one process, and nothing here does anything.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@contextlib.contextmanager
def started(device: str) -> Iterator[None]:
    """Join the other processes that `torchrun` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
        dist.barrier()  # nobody leaves while another still waits for a message
    finally:
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number. Number 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def require_at_most(count: int, what: str) -> None:
    """Raise ValueError if there are more processes than things to share."""
    if size() > count:
        raise ValueError(f"--nproc-per-node must be at most {count}, the {what}; got {size()}")


def share(items: range) -> range:
    """Return this process's part of consecutive items, of equal size up to one."""
    n, k = len(items), rank()
    return items[n * k // size() : n * (k + 1) // size()]


def add_up(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the processes, the same bits everywhere."""
    if size() > 1:
        for x in tensors:
            dist.all_reduce(x)


def gather(found: list[T]) -> list[T]:
    """Return the lists of all processes, joined in their order."""
    if size() == 1:
        return found
    lists: list[list[T]] = [[] for _ in range(size())]
    dist.all_gather_object(lists, found)
    return [x for part in lists for x in part]


def first(action: Callable[[], T]) -> T:
    """Let process 0 do something and tell the others the result; if it fails, all end."""
    if size() == 1:
        return action()
    told: list[Any] = [None, None]
    error: Exception | None = None
    if rank() == 0:
        try:
            told = [True, action()]
        except Exception as caught:
            error, told = caught, [False, None]
    dist.broadcast_object_list(told)
    if error is not None:
        raise error
    if not told[0]:
        sys.exit(1)  # process 0 says why
    result: T = told[1]
    return result


def any_of(value: bool) -> bool:
    """Return whether it is true in any process."""
    if size() == 1:
        return value
    found = torch.tensor(float(value))
    dist.all_reduce(found)
    return bool(found > 0)
