"""Ctrl-C and the SIGTERM of a batch system: finish the iteration, save it, leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tqdm import tqdm

from . import processes

HINT = "the same command with --resume goes on"


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Stop:
    """What a signal does: raise `Stopped`, or be remembered while `deferred`."""

    def __init__(self) -> None:
        self.deferred = False
        self.number: int | None = None

    def receive(self, number: int, _: FrameType | None = None) -> None:
        if self.deferred and self.number is None:
            self.number = number
            tqdm.write("stopping after this iteration; once more to stop at once")
        # `torchrun` passes a Ctrl-C on that the terminal has sent already.
        elif not self.deferred or processes.size() == 1:
            raise Stopped(number, f"stopped; {HINT} from the last checkpoint")


@contextlib.contextmanager
def catching() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM, where that can be done: in the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop.receive) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
