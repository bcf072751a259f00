"""What callers hold that is no tensor: arrays, lists, columns and frames, masked or not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncfd import _validation as check
from ncfd._devices import widest_float


class SupportsArray(Protocol):
    """What frames, columns and arrays of other libraries offer to NumPy."""

    def __array__(self) -> NDArray[Any]: ...


#: Rows of numbers: a tensor, or anything of which ``numpy.asarray`` makes a numeric array. NumPy's
#: own name for the latter would fill a page of the reference.
Samples = Tensor | NDArray[Any] | Sequence[Any] | SupportsArray


def as_tensor(value: object, name: str) -> Tensor:
    """Real numbers as a tensor of float32 or float64, dense, without a gradient.

    Integers become float64, half precision float32. Of a masked array the rows without a masked
    value are taken.
    """
    if isinstance(value, Tensor):
        if isinstance(value, torch.masked.MaskedTensor):
            raise TypeError(
                f"{name} must be a plain tensor, got a MaskedTensor; pass its valid rows, "
                f"{name}.get_data()[{name}.get_mask().all(1)]"
            )
        tensor = check.check_tensor(value, name).detach()
    else:
        tensor = torch.from_numpy(_as_array(value, name))
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {check.describe(tensor)}")
    if not tensor.is_floating_point():
        return tensor.to(widest_float(tensor.device))
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _as_array(value: Any, name: str) -> NDArray[Any]:
    """A copy of its own, since an array may be read-only, big-endian or strided backwards."""
    masked = isinstance(value, np.ma.MaskedArray)
    if isinstance(value, (list, tuple)):  # of masked arrays NumPy would take what is under the mask
        masked = any(isinstance(row, np.ma.MaskedArray) for row in value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it puts NaN under a mask
            array = np.ma.array(value) if masked else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or something that numpy.asarray makes numeric, got "
            f"{check.describe(value)}: {error}"
        ) from None
    if array.dtype.kind not in "fiub":
        way_out = ""
        if array.dtype.kind == "O":  # of a frame with other columns or gaps, or no array at all
            way_out = f"; pass its numbers alone, of a frame or column {name}.to_numpy(float)"
        raise TypeError(
            f"{name} must hold real numbers, got {type(value).__name__}, of which numpy.asarray "
            f"makes an array of {array.dtype}{way_out}"
        )
    if isinstance(array, np.ma.MaskedArray) and array.ndim:
        mask = np.ma.getmaskarray(array)
        array = array.data[~mask.reshape(len(mask), -1).any(1)]
        if len(array) == 0 < len(mask):
            raise ValueError(
                f"{name} must have rows without a masked value, got a mask in each of {len(mask)}"
            )
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    with np.errstate(over="ignore"):  # of numbers of 80 bits and more
        dtype = np.float32 if small else np.float64
        return np.array(array, dtype=dtype, order="C", copy=True, subok=False)
