"""Suite `busy`: the loss on a CPU whose cores have other work, as they have beside data workers.

Processes that do nothing but spin run beside the measurement: none, one, and two for each thread.
A part of suite `loss`, too.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks import cases, measuring, peers
from benchmarks.records import Records

CASES = ("distillation, F=1024", "generator, D=64", "generator, D=128")
#: Never slower than the released form.
TARGET = 1.0


def run(device: torch.device, quick: bool, written: Records) -> None:
    if device.type != "cpu":
        raise SystemExit("run.py: suite busy is about the threads of a CPU: --device cpu")
    contenders = ("ncfd", "released form")
    for case in (c for c in cases.LOSS if c.name in CASES):
        problem = case.problem.shrunk(64) if quick else case.problem
        data = cases.make(problem, device)
        ours = peers.discrepancy_contender("ncfd", data)
        released = peers.discrepancy_contender("released", data)
        for count in (0, 1, 2 * torch.get_num_threads()):
            with _spinning(count):
                rounds = measuring.interleave(
                    dict(zip(contenders, (ours, released), strict=True)),
                    device,
                    seconds=0.05 if quick else 8.0,
                )
            faster = measuring.ratio(rounds["released form"], rounds["ncfd"])
            row = {"case": case.name, "busy processes": count, "repetitions": faster.count}
            times = {
                f"{n}, ms": 1e3 * measuring.Quantiles.of(rounds[n].both).median for n in rounds
            }
            row |= {**times, "released form / ours": faster.median}
            row |= {"ratio_20": faster.low, "ratio_80": faster.high}
            met = "met" if faster.median >= TARGET else "MISSED"
            written.add("beside other work", {**row, "target": f">= {TARGET:g}", "verdict": met})


@contextlib.contextmanager
def _spinning(count: int) -> Iterator[None]:
    """So many processes that keep a core busy."""
    command = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command))  # waits for its end
            stack.callback(process.kill)
        yield
