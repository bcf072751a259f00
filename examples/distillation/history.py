"""The log of a run: numbers by name and iteration, kept in the checkpoint and in TensorBoard."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # the numbers are in the checkpoint and in the plots without it
    SummaryWriter = None


def event_writer(folder: Path, start: int) -> "SummaryWriter | None":
    """Return what writes TensorBoard's events from iteration `start` on; None without it."""
    if SummaryWriter is None:
        tqdm.write("no events are written: TensorBoard is not installed")
        return None
    return SummaryWriter(str(folder), purge_step=start)


class History:
    """Series of (iteration, value).

    Values stay on the device until `flush`, so logging does not stop a GPU in every iteration.
    """

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        self.series: dict[str, tuple[list[int], list[float]]] = {}
        self.pending: list[tuple[int, dict[str, Tensor], Tensor]] = []

    def record(self, iteration: int, values: dict[str, Tensor], per_class: Tensor) -> None:
        """Keep scalars of an iteration, and the loss of each class (C,) to check it."""
        self.pending.append((iteration, values, per_class))

    def flush(self, writer: "SummaryWriter | None" = None) -> None:
        """Move what is pending into the series.

        Raises:
            FloatingPointError: a loss was not finite; names the first iteration and its classes.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        finite = torch.stack([per_class.isfinite() for _, _, per_class in pending]).cpu()
        if not finite.all():
            step = int((~finite.all(1)).nonzero()[0])
            iteration, _, per_class = pending[step]
            bad = [self.class_names[c] for c in (~finite[step]).nonzero().flatten().tolist()]
            value = per_class[~per_class.isfinite()][0].item()
            raise FloatingPointError(
                f"iteration {iteration}: the loss of class {', '.join(bad)} is {value}. A smaller "
                "--lr-image or --sampler-lr often helps"
            )
        flat = torch.stack([v.float() for _, values, _ in pending for v in values.values()])
        numbers = iter(flat.tolist())
        for iteration, values, _ in pending:
            self.add(iteration, {name: next(numbers) for name in values}, writer)

    def add(
        self, iteration: int, values: dict[str, float], writer: "SummaryWriter | None" = None
    ) -> None:
        """Append numbers."""
        for name, value in values.items():
            steps, series = self.series.setdefault(name, ([], []))
            steps.append(iteration)
            series.append(value)
            if writer is not None:
                writer.add_scalar(name, value, iteration)

    def last(self, name: str) -> float:
        """Return the newest value of a series, NaN before the first."""
        return self.series[name][1][-1] if name in self.series else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {name: [list(steps), list(values)] for name, (steps, values) in self.series.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.series = {name: (list(s), list(v)) for name, (s, v) in state.items()}
