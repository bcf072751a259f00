"""Run a suite of benchmarks and write its results.

    python benchmarks/run.py --suite loss --device cpu

Results go to benchmarks/results/<suite>-<device>.json as they come, with a Markdown page beside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The suites use the package, the examples' pipeline and the tests' reference, from the checkout.
for folder in (ROOT / "examples", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

SUITES = {
    "loss": "the loss against its floors and the released form; the targets",
    "busy": "the loss beside other processes: a part of `loss`",
    "frequencies": "variance of loss and gradient by way of drawing frequencies",
    "precision": "error against float64 as the phases grow",
    "scaling": "time and memory against N, D and F",
    "pipeline": "the distillation step, part by part",
    "network": "the ConvNet at its published width: fused or not, and a step with it",
    "page-faults": "how much of the large cases is memory that comes and goes",
    "two-sample": "the tests against plain ways to do the same",
    "power": "what share of differences the tests see, beside other tests, and their size",
    "metric": "the metric beside FID and KID: damage that it sees, bias with the sample size",
    "adversary": "where ψ goes on signal and on the loss, and what it is worth on toys (no times)",
    "adversary-cost": "the loss with ψ on signal beside ψ on the loss and fixed frequencies",
    "sliced": "SIGReg beside LeJEPA's and lightly's: time, memory, agreement",
    "embeddings": "a self-supervised run with SIGReg, and the same with LeJEPA's",
    "peers": "other discrepancies: what they compute, time, memory, accuracy",
}


def parser() -> argparse.ArgumentParser:
    suites = "; ".join(f"{name}: {text}" for name, text in SUITES.items())
    p = argparse.ArgumentParser(prog="run.py", description=f"Benchmarks of ncfd. {suites}.")
    p.add_argument("--suite", choices=SUITES)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--quick", action="store_true", help="tiny sizes: a rehearsal, no result")
    p.add_argument("--output", type=Path, metavar="FILE", help="the JSON file to write")
    p.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows of an unfinished file (adversary and sliced only)",
    )
    # How a suite runs a part of itself in a fresh process.
    p.add_argument("--probe", nargs=2, metavar=("SUITE", "JSON"), help=argparse.SUPPRESS)
    return p


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Run the command line; return the file written."""
    p = parser()
    args = p.parse_args(arguments)
    if (args.suite is None) == (args.probe is None):
        p.error("--suite is required")
    if args.resume and args.suite not in ("adversary", "sliced"):
        p.error("--resume goes on with --suite adversary and --suite sliced only")
    if {"pipeline", "network"} & {args.suite, args.probe and args.probe[0]}:
        # As the pipeline does it; has to be said before PyTorch loads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from benchmarks import measuring, records

    if args.probe is not None:
        module = importlib.import_module(f"benchmarks.suites.{args.probe[0]}")
        print(json.dumps(module.probe(json.loads(args.probe[1]))))
        return None
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: no CUDA device here; rehearse with --device cpu --quick")
    device = torch.device(args.device)
    name = measuring.device_name(device)
    if device.type == "cpu":
        name = f"cpu {name}"
    file = args.output or records.default_file(
        ROOT / "benchmarks" / "results", args.suite, name, quick=args.quick
    )
    command = ["python", "benchmarks/run.py", "--suite", args.suite, "--device", args.device]
    header = {
        "suite": args.suite,
        "command": shlex.join(command + ["--quick"] * args.quick),
        "quick": args.quick,
        "environment": measuring.environment(device),
    }
    written = records.Records(file, header, resume=args.resume)
    began = time.perf_counter()
    suite = importlib.import_module(f"benchmarks.suites.{args.suite.replace('-', '_')}")
    suite.run(device, args.quick, written)
    written.finish(seconds=round(time.perf_counter() - began, 1))
    print(f"written to {file} after {written.content['seconds']} s")
    return file


if __name__ == "__main__":
    main()
