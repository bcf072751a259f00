"""Instance norm, ReLU and 2x2 average pooling in one pass, by a function compiled on the spot.

One after another these three read and write the largest maps of a network seven times forwards and
more often on the way back, which takes longer than the convolutions do. `fused.cpp` reads them from
memory once each way, and keeps nothing but the convolution's output. It is compiled when it is
first wanted, within seconds, and kept in the cache. Without a compiler PyTorch's own layers do it.
"""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import cache

#: Assign False to have PyTorch's own layers everywhere.
ENABLED = True

#: Bytes of the largest map of one image in float32, below which the layers' own speed will do:
#: small maps stay in the cache anyway. CIFAR at width 32 has twice as much, the digits half.
SMALLEST_MAP = 1 << 16

SOURCE = Path(__file__).with_suffix(".cpp")
#: Of images whose convolution is in the compiled functions, too.
FEW_CHANNELS = (1, 3)

NAMES = {torch.float32: "float", torch.bfloat16: "half"}


def why_not(network: nn.Module, device: torch.device, size: int) -> str | None:
    """Return why a network cannot have its blocks fused for images of that side, None if it can.

    Args:
        network: with `features`, `blocks` and whatever else a ConvNet has.
        device: of the images.
        size: side of the images in pixels.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    width, depth = norms[0].num_channels, len(norms)
    if not ENABLED:
        return "switched off"
    if device.type != "cpu":
        return f"the compiled function is for a CPU, and this is {device.type}"
    if 4 * width * size**2 < SMALLEST_MAP:
        return "the maps are small"
    if width % 16 or size % 2**depth:
        return f"it needs a width divisible by 16 and a size by {2**depth}"
    return library()[1]


def describe(network: nn.Module, device: torch.device, size: int) -> str:
    """Say in a line how the blocks of a network are run, and why."""
    reason = why_not(network, device, size)
    return f"PyTorch's layers: {reason}" if reason else "norm, ReLU and pooling in one pass"


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the compiled functions, or None and why there are none."""
    compilers = [os.environ.get("CXX") or "", "c++", "g++", "clang++"]
    compiler = next((found for c in compilers if c and (found := shutil.which(c))), None)
    if compiler is None:
        return None, "there is no C++ compiler"
    version = _output([compiler, "--version"])
    processor = (platform.machine(), _processor())  # its instructions may be others elsewhere
    common = ["-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-fPIC", "-shared"]
    problem = None
    for flags in ([*common, "-fopenmp"], common):  # clang often comes without OpenMP
        name = cache.key(SOURCE.read_bytes(), compiler, version, processor, flags)
        kept = cache.read(f"compiled/{name}")
        # A file of this process alone: one that others change ends those who have it loaded.
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"{name}.so"
            if kept is not None:
                made.write_bytes(kept)
            else:
                problem = _compile([compiler, *flags, "-o", str(made), str(SOURCE)])
            if kept is None and problem is not None:
                continue
            try:
                loaded = _load(made)
            except (OSError, AttributeError) as error:
                problem = str(error)
                continue
            if kept is None:
                cache.write(f"compiled/{name}", made.read_bytes())
            return loaded, None
    return None, f"{compiler} failed: {problem}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    )


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _compile(command: list[str]) -> str | None:
    """Return what went wrong, in a line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error).splitlines()[0]
    if done.returncode == 0:
        return None
    errors = [x for x in done.stderr.splitlines() if "error" in x.lower()]
    return (errors or done.stderr.splitlines() or ["no message"])[0]


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    sizes = [number] * 4

    def declare(name: str, arguments: list[Any]) -> None:
        getattr(loaded, name).argtypes = [*arguments, ctypes.c_int]
        getattr(loaded, name).restype = None

    for name in ("float_float", "half_half", "half_float"):
        declare(f"forward_{name}", [*[pointer] * 6, *sizes, ctypes.c_float])
        declare(f"backward_{name}", [*[pointer] * 9, *sizes])
    for channels in FEW_CHANNELS:
        for name in NAMES.values():
            declare(f"first_forward_{channels}_{name}", [*[pointer] * 3, *sizes])
            declare(f"first_backward_{channels}_{name}", [*[pointer] * 5, *sizes])
    return loaded


def first_convolution(x: Tensor, weight: Tensor, out: torch.dtype = torch.float32) -> Tensor:
    """Convolve images with few channels, 3x3 with one zero around.

    A fifth of the arithmetic of the next convolution takes PyTorch longer than that one.

    Args:
        x: (N, K, H, W) float32, K in `FEW_CHANNELS`.
        weight: (C, K, 3, 3) float32, C divisible by 16.
        out: float32 or bfloat16.

    Returns:
        (N, C, H, W) in `out`; what is summed is float32 either way.
    """
    convolved: Tensor = _FirstConvolution.apply(x, weight, out)
    return convolved


class _FirstConvolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, out: torch.dtype) -> Tensor:
        (N, K, H, W), C = x.shape, len(weight)
        x, taps = _flat(x), _taps(weight)
        y = torch.empty((N, C, H, W), dtype=out, memory_format=torch.channels_last)
        addresses = [t.data_ptr() for t in (x, taps, y)]
        call = _function(f"first_forward_{K}_{NAMES[out]}")
        call(*addresses, N, H, W, C, torch.get_num_threads())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, weight, ctx.out = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (N, K, H, W), C = x.shape, len(weight)
        x, taps, slope = _flat(x), _taps(weight), _flat(slope.to(ctx.out))
        slope_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        slope_taps = torch.empty(N, 3, 3, K, C) if ctx.needs_input_grad[1] else None
        given = (x, taps, slope, slope_x, slope_taps)
        addresses = [None if t is None else t.data_ptr() for t in given]
        call = _function(f"first_backward_{K}_{NAMES[ctx.out]}")
        call(*addresses, N, H, W, C, torch.get_num_threads())
        slope_weight = None if slope_taps is None else slope_taps.sum(0).permute(3, 2, 0, 1)
        return slope_x, slope_weight, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Networks side by side: one after another."""
        each = _one_by_one(info, in_dims, inputs)
        return torch.stack([_FirstConvolution.apply(*one) for one in each]), 0


def _taps(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).contiguous()


def norm_relu_pool(
    x: Tensor, shift: Tensor | None, norm: nn.GroupNorm, out: torch.dtype = torch.float32
) -> Tensor:
    """Average 2x2 pixels of the ReLU of the instance norm of `x` (N, C, H, W), all in one pass.

    Args:
        x: output of a convolution without its bias, float32 or bfloat16.
        shift: that bias (C,). A norm takes it out again, so it is not used; its gradient is zero.
        norm: with as many groups as channels.
        out: float32, or bfloat16 where `x` is.

    Returns:
        (N, C, H/2, W/2) in `out`.
    """
    pooled: Tensor = _NormReluPool.apply(x, shift, norm.weight, norm.bias, norm.eps, out)[0]
    return pooled


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, _shift: Tensor | None, gain: Tensor, bias: Tensor, eps: float, out: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        N, C, H, W = x.shape
        x, gain, bias = _flat(x), gain.contiguous(), bias.contiguous()
        y = torch.empty((N, C, H // 2, W // 2), dtype=out, memory_format=torch.channels_last)
        mean, inverse = torch.empty(N, C), torch.empty(N, C)
        addresses = [t.data_ptr() for t in (x, gain, bias, mean, inverse, y)]
        call = _function(f"forward_{NAMES[x.dtype]}_{NAMES[out]}")
        call(*addresses, N, H, W, C, eps, torch.get_num_threads())
        return y, mean, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.shift, gain, bias, _, ctx.out = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.save_for_backward(x, gain, bias, mean, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, mean, inverse = ctx.saved_tensors
        N, C, H, W = x.shape
        x, gain, bias = _flat(x), gain.contiguous(), bias.contiguous()
        slope = _flat(slope.to(ctx.out))
        slope_x = torch.empty_like(x)
        slope_gain, slope_bias = torch.empty(N, C), torch.empty(N, C)
        given = (x, gain, bias, mean, inverse, slope, slope_x, slope_gain, slope_bias)
        addresses = [t.data_ptr() for t in given]
        call = _function(f"backward_{NAMES[x.dtype]}_{NAMES[ctx.out]}")
        call(*addresses, N, H, W, C, torch.get_num_threads())
        needs = ctx.needs_input_grad
        return (
            slope_x,
            torch.zeros_like(ctx.shift) if needs[1] else None,
            slope_gain.sum(0) if needs[2] else None,
            slope_bias.sum(0) if needs[3] else None,
            None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Networks side by side: one after another."""
        each = _one_by_one(info, in_dims, inputs)
        results = zip(*(_NormReluPool.apply(*one) for one in each), strict=True)
        return tuple(torch.stack(r) for r in results), (0, 0, 0)


def _one_by_one(
    info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> list[list[Any]]:
    return [
        [v if d is None else v.select(d, k) for v, d in zip(inputs, in_dims, strict=True)]
        for k in range(info.batch_size)
    ]


def _flat(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _function(name: str) -> Any:
    functions, problem = library()
    assert functions is not None, problem
    return getattr(functions, name)
