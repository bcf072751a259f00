"""Peak memory of the distillation under `--memory-limit-gb`, on random images of a given shape.

    python benchmarks/distillation_memory.py --classes 100 --ipc 50 --width 128 --limit-gb 2.3

Images and zoo are random: the memory does not depend on what they show. Each measurement is a
process of its own, since the peak of a process never falls.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

# E402: the examples are found through the path above only.
import distill_cifar  # noqa: E402 - after the path is set
import torch  # noqa: E402 - after the path is set
from distillation import chunks, formation, memory, networks, options, report, zoo  # noqa: E402 - after the path is set
from distillation.data import Data  # noqa: E402 - after the path is set
from distillation.randomness import generator, repeatable  # noqa: E402 - after the path is set


def random_data(classes: int, images: int, size: int, device: torch.device) -> Data:
    """Uint8 noise: `images` training images, a tenth of them for validation, and no test images."""
    kept = images * 9 // 10
    made = torch.randint(
        256, (images, 3, size, size), dtype=torch.uint8, generator=generator(0, "images")
    ).to(device)
    labels = (torch.arange(images) % classes).to(device)
    half = torch.full((3, 1, 1), 0.5, device=device)
    names = [str(c) for c in range(classes)]
    train, held = (made[:kept], labels[:kept]), (made[kept:], labels[kept:])
    return Data("random", names, *train, *held, made[:0], labels[:0], half, half)


def measure(args: argparse.Namespace) -> dict:
    """Run the matching in this process and return its figures."""
    given = ["--dataset", "cifar100", "--iterations", str(args.iterations), "--preset", "paper"]
    given += ["--ipc", str(args.ipc), "--width", str(args.width), "--device", args.device]
    given += ["--batch-real", str(args.batch_real), "--image-size", str(args.size)]
    given += ["--calibration", str(args.calibration)]
    if args.limit_gb:
        given += ["--memory-limit-gb", str(args.limit_gb)]
        memory.give_back_freed_memory()
        networks.AT_ONCE[args.device] = 128
    config = options.configure(options.parser().parse_args(given))
    device = torch.device(config.device)
    data = random_data(args.classes, args.images, config.image_size, device)
    network = networks.ConvNet(3, data.size, args.classes, config.width, config.depth).to(device)
    members = [
        networks.initial_weights(network, generator("zoo", k)) for k in range(2 * config.zoo_size)
    ]
    half = config.zoo_size
    stacked = networks.stack(members[:half]), networks.stack(members[half:])
    del members
    images, labels = formation.packed_initialisation(
        data.train_images,
        data.train_labels,
        ipc=config.ipc,
        num_classes=args.classes,
        factor=config.factor,
        generator=generator(0, "initial images"),
    )
    made = zoo.Zoo(*stacked, [0.0] * half)
    before = memory.peak_memory(device)
    needs = chunks.estimate(config, data, network, made)
    at_once = needs.at_once(args.classes, config.memory_limit_gb)
    with tempfile.TemporaryDirectory() as folder, repeatable(device):
        result = distill_cifar.distill(config, data, network, made, images, labels, Path(folder))
    return {
        "options": {k: v for k, v in vars(args).items() if k not in ("output", "inside")},
        "classes_at_once": at_once,
        "estimate_bytes": round(needs.peak(at_once)),
        "estimate_bytes_per_class": round(needs.each),
        "peak_before_matching_bytes": before,
        "peak_bytes": memory.peak_memory(device),
        "seconds": round(result.seconds, 1),
        "device": report.device_name(device),
        "versions": report.versions(),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--classes", type=int, default=100)
    add("--images", type=int, default=50_000, help="training images of all classes")
    add("--size", type=int, default=32)
    add("--ipc", type=int, default=50)
    add("--width", type=int, default=128)
    add("--batch-real", type=int, default=1024)
    add("--iterations", type=int, default=1)
    add("--calibration", type=float, default=0.0)
    add("--limit-gb", type=float, help="default: none, all classes at once")
    add("--device", default="cpu")
    add("--output", type=Path, metavar="FILE", help="append the figures to this JSON list")
    add("--inside", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.inside:
        print(json.dumps(measure(args)))
        return
    own = [sys.executable, __file__, *sys.argv[1:], "--inside"]
    ended = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(ended.stdout.splitlines()[-1])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    kept = [a for a in sys.argv[1:] if a != "--output" and a != str(args.output)]
    figures |= {
        "command": " ".join(["python benchmarks/distillation_memory.py", *kept]),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.output:
        known = json.loads(args.output.read_text()) if args.output.exists() else []
        args.output.write_text(json.dumps([*known, figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
