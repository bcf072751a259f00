"""The cases, by name, each with its reason, and the targets they are measured against.

Letters: N real samples, M synthetic ones, D features, F frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Sizes of one comparison, and what is differentiated besides the synthetic samples."""

    N: int
    M: int
    D: int
    F: int
    learned: bool = True  # gradient for the frequencies (for the closed form: the scale) too

    def shrunk(self, limit: int) -> Problem:
        """The same shape with no size above `limit`, for rehearsals."""
        return replace(
            self,
            N=min(self.N, limit),
            M=min(self.M, limit),
            D=min(self.D, limit),
            F=min(self.F, limit),
        )

    @property
    def phases(self) -> int:
        return (self.N + self.M) * self.F

    @property
    def product_flops(self) -> int:
        """Of the products no method can do without: phases once, each gradient once."""
        rows = self.N + self.M
        return 2 * self.F * self.D * (rows + self.M + (rows if self.learned else 0))

    @property
    def least_bytes(self) -> int:
        """Inputs read in the forward and in the backward pass, gradients written, in float32."""
        inputs = (self.N + self.M + self.F) * self.D
        gradients = (self.M + (self.F if self.learned else 0)) * self.D
        return 4 * (2 * inputs + gradients)


@dataclass(frozen=True)
class Tensors:
    """The inputs of a problem; y (and t, scale) ask for gradients."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    t: Tensor  # (F, D)
    scale: Tensor  # (D,)

    @property
    def leaves(self) -> list[Tensor]:
        return [v for v in (self.y, self.t, self.scale) if v.requires_grad]


def make(problem: Problem, device: torch.device, seed: int = 0) -> Tensors:
    """Rectified normal features of length 1, as an extractor gives them; two nearby laws."""
    g = torch.Generator().manual_seed(seed)

    def features(rows: int, shift: float) -> Tensor:
        values = torch.relu(torch.randn(rows, problem.D, generator=g) + shift)
        return torch.nn.functional.normalize(values, dim=1).to(device)

    x, y = features(problem.N, 0.0), features(problem.M, 0.2)
    t = torch.randn(problem.F, problem.D, generator=g).to(device)
    scale = torch.ones(problem.D, device=device)
    return Tensors(
        x,
        y.requires_grad_(),
        t.requires_grad_(problem.learned),
        scale.requires_grad_(problem.learned),
    )


@dataclass(frozen=True)
class LossCase:
    """A row of suite `loss`. Targets are ratios of times; None where nothing was promised."""

    name: str
    reason: str
    problem: Problem
    contender: str = "ncfd"
    #: At least this many times as fast as the released form, by device.
    over_released: dict[str, float] | None = None
    #: At most this many times the bare products, by device.
    over_products: dict[str, float] | None = None


LOSS = [
    LossCase(
        "distillation, F=1024",
        "one class of the method at its published sizes, ψ learned",
        Problem(1024, 40, 2048, 1024),
        over_released={"cpu": 1.9, "cuda": 3.0},
        over_products={"cpu": 1.15, "cuda": 1.3},
    ),
    LossCase(
        "distillation, F=4096",
        "the same with the frequencies of the published configurations",
        Problem(1024, 40, 2048, 4096),
        over_released={"cpu": 1.9, "cuda": 3.0},
        over_products={"cpu": 1.15, "cuda": 1.3},
    ),
    LossCase(
        "distillation, F=1024, fixed frequencies",
        "without ψ no gradient for the real side is needed",
        Problem(1024, 40, 2048, 1024, learned=False),
        over_released={"cpu": 1.8, "cuda": 3.0},
    ),
    LossCase(
        "distillation, F=4096, fixed frequencies",
        "likewise",
        Problem(1024, 40, 2048, 4096, learned=False),
        over_released={"cpu": 1.8, "cuda": 3.0},
    ),
    LossCase(
        "generator, D=64",
        "two large sets with few features: cosines and memory traffic set the pace",
        Problem(8192, 8192, 64, 1024),
        over_released={"cpu": 4.0, "cuda": 5.0},
    ),
    LossCase(
        "generator, D=128",
        "the same where product and cosines cost alike",
        Problem(8192, 8192, 128, 1024),
        over_released={"cpu": 4.0, "cuda": 5.0},
    ),
    LossCase(
        "overhead",
        "so small that only calls and checks are timed",
        Problem(64, 64, 64, 64),
        over_released={"cpu": 1.0, "cuda": 1.5},
    ),
    LossCase(
        "closed form, scale learned",
        "the exact squared loss under Gaussian ψ against sampling it at F=4096",
        Problem(1024, 40, 2048, 4096),
        contender="closed form",
        over_released={"cpu": 30.0},
    ),
    LossCase(
        "closed form, scale fixed",
        "the same for the images alone",
        Problem(1024, 40, 2048, 4096, learned=False),
        contender="closed form",
        over_released={"cpu": 30.0},
    ),
    LossCase(
        "closed form, scale learned, real_rows=256",
        "pairs among a quarter of the real samples",
        Problem(1024, 40, 2048, 4096),
        contender="closed form, few real pairs",
        over_released={"cpu": 30.0},
    ),
    LossCase(
        "closed form, scale fixed, real_rows=0",
        "no pairs of real samples, which the images do not feel",
        Problem(1024, 40, 2048, 4096, learned=False),
        contender="closed form, few real pairs",
        over_released={"cpu": 30.0},
    ),
]

#: Beyond those, where the Triton kernels run: from few features to the most that they take.
FUSED = [
    LossCase(
        f"generator, D={D}",
        "what the phases' trips to memory cost beside the product",
        Problem(8192, 8192, D, 1024),
        over_released={},
    )
    for D in (32, 256, 512)
]

#: Memory beyond inputs and gradients at this size stays below this many bytes, on any device.
MEMORY = Problem(200_000, 200_000, 32, 4096)
MEMORY_LIMIT = 600 * 2**20

#: Many classes at once, as the pipeline calls the loss: classes, and the problem of each.
GROUPS = (10, Problem(1024, 40, 2048, 1024))


def scaling(device: str) -> dict[str, list[Problem]]:
    """Sweeps over one size with the others held; linear is the claim in each."""
    large = device == "cuda"
    base = Problem(4096, 4096, 64, 1024) if large else Problem(2048, 2048, 64, 512)
    steps = [2**k for k in range(5)]
    return {
        "N": [replace(base, N=base.N * s // 2, M=base.M * s // 2) for s in steps],
        "D": [replace(base, D=base.D * s // 2) for s in steps],
        "F": [replace(base, F=base.F * s // 2) for s in steps],
    }


@dataclass(frozen=True)
class FrequencyCase:
    """Sizes of the variance table; the scale is the phase's spread for features of length 1."""

    D: int
    scale: float
    reason: str


FREQUENCIES = [
    FrequencyCase(2, 1.0, "low dimension: where Sobol sequences should help"),
    FrequencyCase(2, 4.0, "the same with fast phases"),
    FrequencyCase(16, 1.0, "F >= D nearly always"),
    FrequencyCase(16, 4.0, "the same with fast phases"),
    FrequencyCase(128, 0.5, "smooth: nearly linear in the features"),
    FrequencyCase(128, 1.0, "the default scale"),
    FrequencyCase(128, 2.0, "faster phases"),
    FrequencyCase(512, 0.5, "F from far below D to four times D"),
    FrequencyCase(512, 1.0, "the same at the default scale"),
    FrequencyCase(512, 2.0, "the same with faster phases"),
]
NUM_FREQUENCIES = (16, 64, 256, 1024, 2048)

#: Root mean square of the phases in suite `precision`, radians.
PHASES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class PipelineCase:
    """One shape of random data through the distillation step."""

    name: str
    classes: int
    size: int  # pixels
    available: int  # real images of each class
    ipc: int
    width: int
    batch_real: int
    num_frequencies: int


def pipeline(device: str, *, quick: bool) -> list[PipelineCase]:
    """Published sizes on an accelerator; on the CPU narrower networks and smaller batches."""
    shapes = [
        ("CIFAR-10", 10, 32, 5000),
        ("CIFAR-100", 100, 32, 500),
        ("Tiny ImageNet", 200, 64, 500),
    ]
    cases = []
    for name, classes, size, available in shapes:
        for ipc in (1, 10, 50):
            sizes = {
                "width": 128,
                "batch": 1024,
                "frequencies": 1024,
                "classes": classes,
                "ipc": ipc,
            }
            if device == "cpu":
                # A narrow network favours all parts but itself: shares differ from published sizes.
                sizes |= {"width": 32, "batch": 16 if size == 64 else max(2, 1280 // classes)}
                # Activations must fit into the memory of a small machine, and a step into seconds.
                stored = 200 if size == 64 else 500
                sizes["classes"] = min(classes, max(2, stored // ipc))
            if quick:
                sizes = {
                    "width": 8,
                    "batch": 4,
                    "frequencies": 32,
                    "classes": 2,
                    "ipc": min(ipc, 2),
                }
            cases.append(
                PipelineCase(
                    f"{name}, IPC {ipc}",
                    sizes["classes"],
                    size,
                    min(available, 8 * sizes["batch"]),
                    sizes["ipc"],
                    sizes["width"],
                    min(sizes["batch"], available),
                    sizes["frequencies"],
                )
            )
    return cases


def spread(problem: Problem) -> float:
    """Standard deviation of each coordinate that gives vectors of length about 1."""
    return 1 / math.sqrt(problem.D)
