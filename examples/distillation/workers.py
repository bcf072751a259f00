"""Trainings side by side in one process, each on a thread and a core of its own.

Networks of a zoo or of an evaluation need nothing of each other. One core each keeps all cores
busy, which the threads inside of one step do not: drawing, augmenting and the optimizer's many
small tensors leave all but one waiting. A network comes out with the same bits whether others are
trained beside it or not.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")

#: The most that are trained at once; None: as many as PyTorch has threads. Each needs the memory
#: of a training.
AT_ONCE: int | None = None


class _Team:
    def __init__(self, cores: int) -> None:
        self.cores = threading.Semaphore(cores)
        self.stop = threading.Event()


_local = threading.local()


def each(
    action: Callable[[S], T], items: Iterable[S], *, one_core: bool = True, waits: bool = False
) -> list[T]:
    """Return `action(item)` for each of the items, in their order.

    Args:
        action: of one item.
        items: what to do.
        one_core: one core for each, at once; or one after another with all the threads.
        waits: the action works through this function alone, and needs no core itself.

    Raises:
        Exception: the first that an action raised; the others have been stopped by then.
    """
    items = list(items)
    if not one_core or not items:
        return [action(item) for item in items]
    team: _Team | None = getattr(_local, "team", None)
    threads = torch.get_num_threads()
    own = team is None
    if team is None:
        team = _Team(min(threads, AT_ONCE or threads))
        torch.set_num_threads(1)

    def alone(item: S) -> T:
        _local.team = team
        torch.set_num_threads(1)  # of this thread
        if waits:
            return action(item)
        with team.cores:
            check()
            return action(item)

    pool = ThreadPoolExecutor(len(items))
    futures = [pool.submit(alone, item) for item in items]
    try:
        for done in wait(futures, return_when=FIRST_EXCEPTION).done:
            done.result()
        return [future.result() for future in futures]
    except BaseException:
        team.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if own:
            torch.set_num_threads(threads)


def check() -> None:
    """End here if the others were stopped: by a signal, or because one of them failed."""
    team: _Team | None = getattr(_local, "team", None)
    if team is not None and team.stop.is_set():
        raise CancelledError
