"""The switch of the Triton kernels, and the choice of the problems that they take.

Off unless switched on: no device has yet shown that they are faster. Fusion saves the trips of the
phases to memory (28 bytes each in eager code, about 10 ps on a fast GPU); what it can win shrinks
beside the product, which takes 20 ps at 512 features in float32.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

#: How the kernels form their products: exactly in float32, or in three TF32 products on the tensor
#: cores, nearly as exact.
Products = Literal["ieee", "tf32x3"]

#: The kernels hold gradients of whole rows on chip; with more features there is nothing to win.
MAX_DIM = 512

#: Triton 3.1, which comes with PyTorch 2.5, cannot form the kernels; they were tried with 3.8.
OLDEST = (3, 2)

_products: Products | None = None
# "cuda", or "cpu" in Triton's interpreter.
_device = "cuda"


def use_triton(products: Products | None = "ieee") -> None:
    """Switch the Triton kernels on for this process, or off with None.

    They take one batch of float32 samples with at most 512 features on a CUDA device, without
    groups; everything else stays with the eager kernels. Phases are then never stored, and formed
    again in the backward pass. Values change by rounding only, and equal inputs give equal bits.

    Args:
        products: how products are formed: ``"ieee"`` in float32; ``"tf32x3"`` as three TF32
            products on the tensor cores, of nearly float32's precision; None
            switches the kernels off. Where TF32 was chosen for all of PyTorch's products
            (``torch.set_float32_matmul_precision("high")``), both use that.

    Raises:
        ValueError: another value of ``products``.
        RuntimeError: Triton is not installed or older than 3.2, or there is no CUDA device of
            compute capability 8.0 or later.

    Example:
        >>> from ncfd.ops import use_triton
        >>> use_triton(None)  # as it is at the start
    """
    global _products, _device
    if products is not None:
        if products not in get_args(Products):
            raise ValueError(
                f"products must be one of {get_args(Products)} or None, got {products!r}"
            )
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError(
                "use_triton needs the package triton, which is not installed; "
                "without it the eager kernels do the same (use_triton(None))"
            )
        version = importlib.metadata.version("triton")
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            raise RuntimeError(
                f"use_triton needs Triton {'.'.join(map(str, OLDEST))} or later, found {version}; "
                "the eager kernels do the same (use_triton(None))"
            )
        _device = "cpu" if kernels().INTERPRETED else "cuda"
        if _device == "cuda":
            _check_device()
    _products = products


def _check_device() -> None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        found = "none"
    else:
        # The lowest one: the kernels are for every device of the process.
        devices = range(torch.cuda.device_count())
        major, minor = min(torch.cuda.get_device_capability(device) for device in devices)
        if major >= 8:
            return
        found = f"{major}.{minor}"
    raise RuntimeError(
        "use_triton needs CUDA devices of compute capability 8.0 or later, "
        f"found {found}; the eager kernels run on all devices (use_triton(None))"
    )


def kernels() -> ModuleType:
    """The kernels, imported when first wanted: ``import ncfd`` must not need Triton."""
    return importlib.import_module("ncfd.ops._triton")


def takes(x: Tensor, t: Tensor, groups: Tensor | None) -> bool:
    """Whether the Triton kernels make these sums: the one place that chooses."""
    return (
        _products is not None
        and groups is None
        and type(x) in (Tensor, torch.nn.Parameter)  # a tracer's tensors have no memory
        and x.dtype == torch.float32
        and x.shape[:-2].numel() == 1  # one problem; a batch of them is many small ones
        and 0 < x.shape[-1] <= MAX_DIM
        and x.shape[-2] > 0
        and t.shape[-2] > 0
        and x.device.type == _device
    )


def forward(x: Tensor, t: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """``_phases.forward`` by the kernels."""
    sums: tuple[Tensor, Tensor] = kernels().sums(x, t, w, precision())
    return sums


def backward(
    grads: tuple[Tensor, Tensor],
    x: Tensor,
    t: Tensor,
    w: Tensor | None,
    needs: tuple[bool, bool, bool],
    grad_t: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``_phases.backward`` by the kernels; ``needs`` are those of x, t and w."""
    found: tuple[Tensor, Tensor, Tensor] = kernels().gradients(*grads, x, t, w, needs, precision())
    if grad_t is not None and needs[1]:
        found = found[0], grad_t.add_(found[1]), found[2]
    return found


def precision() -> str:
    """``input_precision`` of the products: TF32 is used when it was chosen for all of PyTorch's."""
    matmul = torch.backends.cuda.matmul
    # The older name of the setting cannot be read where somebody has used the newer one.
    new = getattr(matmul, "fp32_precision", None)
    chosen = new == "tf32" if new is not None else matmul.allow_tf32
    return "tf32" if chosen else str(_products)
