"""How things are measured: interleaved repetitions, medians with quantiles, peak memory, floors.

A machine drifts: clocks, neighbours, temperature. So contenders of one case run in turns, A B A B,
within one process, and a ratio is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    `forward` returns a scalar (or anything `backward` understands); `backward` consumes it;
    `prepare` comes before and `clear` drops the gradients, both untimed. The default backward is
    autograd's.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], object] | None = None
    clear: Callable[[], object] = lambda: None
    prepare: Callable[[], object] = lambda: None


def differentiated(function: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Contender:
    """A function of tensors and its gradient by autograd."""

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    return Contender(function, lambda value: value.backward(), clear)


@dataclass(frozen=True)
class Quantiles:
    """Median with the quantiles at 20 and 80 percent, of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        ordered = sorted(values)

        def at(q: float) -> float:
            position = q * (len(ordered) - 1)
            below = int(position)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (position - below) * (ordered[above] - ordered[below])

        return cls(statistics.median(ordered), at(0.2), at(0.8), len(ordered))


@dataclass(frozen=True)
class Rounds:
    """Seconds of every round, aligned between contenders."""

    forward: list[float]
    backward: list[float]

    @property
    def both(self) -> list[float]:
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]

    def columns(self) -> dict[str, float | int]:
        """Milliseconds, as they stand in a result file."""
        both = Quantiles.of(self.both)
        return {
            "forward_ms": 1e3 * Quantiles.of(self.forward).median,
            "backward_ms": 1e3 * Quantiles.of(self.backward).median,
            "both_ms": 1e3 * both.median,
            "both_20_ms": 1e3 * both.low,
            "both_80_ms": 1e3 * both.high,
            "repetitions": both.count,
        }


def ratio(of: Rounds, to: Rounds) -> Quantiles:
    """How many times as long `of` takes as `to`: within each round, then the median."""
    return Quantiles.of([a / b for a, b in zip(of.both, to.both, strict=True)])


def interleave(
    contenders: dict[str, Contender],
    device: torch.device,
    *,
    seconds: float,
    at_least: int = 5,
    at_most: int = 500,
    warm_up: int = 2,
) -> dict[str, Rounds]:
    """Run the contenders in turns for about `seconds`, the order reversed in every other round."""
    timer = _cuda_times if device.type == "cuda" else _cpu_times
    for contender in contenders.values():
        for _ in range(warm_up):
            timer(contender)
    rounds = {name: Rounds([], []) for name in contenders}
    began = time.perf_counter()
    for count in range(at_most):
        if count >= at_least and time.perf_counter() - began > seconds:
            break
        order = list(contenders.items())
        for name, contender in order if count % 2 == 0 else reversed(order):
            forward, backward = timer(contender)
            rounds[name].forward.append(forward)
            rounds[name].backward.append(backward)
    return rounds


def _cpu_times(contender: Contender) -> tuple[float, float]:
    contender.prepare()
    start = time.perf_counter()
    value = contender.forward()
    middle = time.perf_counter()
    if contender.backward is not None:
        contender.backward(value)
    end = time.perf_counter()
    contender.clear()
    return middle - start, end - middle


def _cuda_times(contender: Contender) -> tuple[float, float]:
    # Recorded on an idle device, so that slow launches count: what a training loop would see.
    start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    contender.prepare()
    torch.cuda.synchronize()
    start.record()
    value = contender.forward()
    middle.record()
    if contender.backward is not None:
        contender.backward(value)
    end.record()
    torch.cuda.synchronize()
    contender.clear()
    return start.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ------------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------------


def peak_memory(contender: Contender, device: torch.device) -> float | None:
    """Bytes beyond what is allocated now that one forward and backward need at their highest.

    Gradients are counted. On the CPU this is resident memory, meaningful in a fresh process only
    (`in_fresh_process`); None where the system does not report it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _run(contender)
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    _reset_high_water_mark()
    before_resident = _status("VmRSS")
    _run(contender)
    peak = _status("VmHWM")
    return None if peak is None or before_resident is None else float(peak - before_resident)


def _run(contender: Contender) -> None:
    contender.prepare()
    value = contender.forward()
    if contender.backward is not None:
        contender.backward(value)
    del value
    contender.clear()


def _status(field: str) -> int | None:
    """Bytes of this process as Linux reports them, for example `VmRSS`."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the mark of the process's start then counts: too high rather than too low


def in_fresh_process(
    probe: str, specification: dict[str, Any], environment: dict[str, str] | None = None
) -> Any:
    """Result of `benchmarks.suites.<probe>.probe(specification)` in a process of its own.

    In its environment, without one given, freed blocks above 1 MiB go back to the system, so that
    the next point starts from zero.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--probe", probe]
    if environment is None:
        environment = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(
        [*command, json.dumps(specification)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"probe {probe} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------------
# Floors
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What this machine reaches at the two things that bound the loss besides the product."""

    bytes_per_second: float
    cosines_per_second: float


def machine(device: torch.device, *, quick: bool = False) -> Machine:
    """Measure the copy bandwidth and the rate of cosines (in cache on a CPU)."""
    size = 2**22 if quick else 2**28 if device.type == "cuda" else 2**26
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    few = source[: 2**26 if device.type == "cuda" else 2**18]
    out = torch.empty_like(few)
    rounds = interleave(
        {
            "copy": Contender(lambda: target.copy_(source)),
            "cosine": Contender(lambda: torch.cos(few, out=out)),
        },
        device,
        seconds=1.0,
        at_least=3 if quick else 10,
    )
    copy = Quantiles.of(rounds["copy"].forward).low
    cosine = Quantiles.of(rounds["cosine"].forward).low
    return Machine(2 * 4 * size / copy, few.numel() / cosine)


# ------------------------------------------------------------------------------------------------
# Environment
# ------------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """The name of the processor or of the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return " ".join(name.split())


def environment(device: torch.device) -> dict[str, Any]:
    """Everything a figure needs beside it to be a result."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "scipy", "sklearn", "torchmetrics", "triton", "geomloss", "ot"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            continue
    found = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average": round(os.getloadavg()[0], 2),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["device_memory_mib"] = torch.cuda.get_device_properties(device).total_memory / MIB
    return found


def _commit() -> str:
    """Short hash, with a plus if the package differs from it; the hash may travel in a file."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", "ncfd", "examples")
    except OSError:
        commit = changed = ""
    if not commit:
        return os.environ.get("NCFD_COMMIT", "unknown")
    return commit + ("+" if changed else "")
