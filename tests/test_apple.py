"""Apple's GPUs have no float64: nothing of that type may be made on the device.

There is no such device to test on. Tensors that say they are on one, and hold their values on the
CPU, go through every public function here; an operation that leaves a float64 there is refused, in
the words of PyTorch on such a machine. What the device computes is not tested.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch.distributions import Independent, Normal, StudentT
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import ncfd
from ncfd.functional import characteristic_function, gaussian_ncfd, ncfd_loss
from ncfd.ops import _operator

N, M, D, F, G = 12, 9, 3, 8, 2
GROUPS = {"x_groups": torch.arange(N) % G, "y_groups": torch.arange(M) % G, "num_groups": G}
# The package's operators are as much on the device as the rest: what they consist of is looked at.
OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.ops.ncfd.cf_sums.default: _operator.cf_sums._init_fn,
    torch.ops.ncfd.cf_sums_backward.default: _operator.cf_sums_backward._init_fn,
}
# PyTorch's norm says so of itself where a subclass of Tensor passes through it.
pytestmark = pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated")


class OnDevice(Tensor):
    """Says it is on the device; ``inner`` has the values."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:
        """For Python; what is in C++ has no such device and takes it for the CPU."""
        return torch.device("mps")

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return on_device(function, args, kwargs or {})


def on_device(function: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the values; its results are where those of the device's would be."""
    if function in OPERATORS:
        return OPERATORS[function](*args, **kwargs)
    wrapped: dict[int, OnDevice] = {}

    def open_up(tensor: OnDevice) -> Tensor:
        wrapped[id(tensor.inner)] = tensor
        return tensor.inner

    args, kwargs = tree_map_only(OnDevice, open_up, (args, kwargs))
    stays = bool(wrapped)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == "mps"
        kwargs = kwargs | {"device": "cpu"}
    result = function(*args, **kwargs)
    if not stays:
        return result
    # An operation in place returns the tensor that it was given.
    return tree_map_only(
        Tensor, lambda v: wrapped[id(v)] if id(v) in wrapped else OnDevice(v), result
    )


class Device(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return on_device(function, args, kwargs or {})


class Moves(TorchFunctionMode):
    """``.to``, which a PyTorch without the device refuses before any operation is reached."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.cpu:
            return torch.ops.aten._to_copy(args[0], device="cpu")
        if function in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return torch.ops.aten._to_copy(function(*args, **kwargs), device=device)
        if function is not Tensor.to:
            return function(*args, **kwargs)
        copy = kwargs.pop("copy", False)
        tensor, *where = args
        device, dtype, *_ = torch._C._nn._parse_to(*where, **kwargs)
        device, dtype = device or tensor.device, dtype or tensor.dtype
        if not copy and device.type == tensor.device.type and dtype == tensor.dtype:
            return tensor
        return torch.ops.aten._to_copy(tensor, device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with Device(), Moves():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def values(seed: int, *shape: int) -> Tensor:
    return normal(seed, *shape).float()


def to_cpu(value: Any) -> Any:
    return tree_map_only(Tensor, lambda v: v.detach().cpu(), value)


def test_the_device_has_no_float64() -> None:
    x = values(0, 3).to("mps")
    assert x.device.type == "mps"
    assert (x + 1).device.type == "mps"
    assert x.cpu().device.type == "cpu"
    for wrong in (
        lambda: x.double(),
        lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
        lambda: x.sum(dtype=torch.float64),
        lambda: nn.Linear(2, 2).double().to("mps"),
    ):
        with pytest.raises(TypeError, match="MPS Tensor to float64"):
            wrong()


def with_gradients(loss: Callable[..., Tensor]) -> Callable[[str], list[Tensor]]:
    def call(device: str) -> list[Tensor]:
        tensors = (values(1, N, D), 0.5 + values(2, M, D), values(3, F, D))
        leaves = [v.to(device).requires_grad_() for v in tensors]
        value = loss(*leaves)
        slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        return [value, *(s for s in slopes if s is not None)]

    return call


def grouped(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    groups = {k: v if k == "num_groups" else v.to(x.device) for k, v in GROUPS.items()}
    weights = {"x_weights": torch.linspace(1, 2, N), "y_weights": torch.linspace(1, 2, M)}
    weights = {k: v.to(x.device) for k, v in weights.items()}
    return ncfd_loss(x, y, t, **groups, **weights, squared=True, unbiased=True)


def penalty(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(ncfd_loss(x, y, t), y, create_graph=True)
    return slope.square().sum()


def module(sampler: nn.Module) -> Callable[[str], list[Tensor]]:
    def call(device: str) -> list[Tensor]:
        loss = ncfd.NCFDLoss(copy.deepcopy(sampler), normalize=True).to(device)
        assert loss.sampler().isfinite().all()  # drawn on the device, so with other numbers
        t = loss.sampler(torch.Generator().manual_seed(4))
        y = values(2, M, D).to(device).requires_grad_()
        ncfd_loss(values(1, N, D).to(device), y, t).backward()
        return [t, y.grad, *(p.grad for p in loss.parameters())]

    return call


def stream(device: str) -> list[Tensor]:
    estimator = ncfd.CharacteristicFunction(values(3, F, D), G).to(device)
    for part in (slice(0, 5), slice(5, N)):
        x, labels = values(1, N, D)[part].to(device), GROUPS["x_groups"][part].to(device)
        estimator.update(x, groups=labels)
    estimator.merge(ncfd.CharacteristicFunction(values(3, F, D), G).to(device))
    return [torch.view_as_real(estimator.compute())]


def metric(device: str) -> list[Tensor]:
    metrics = pytest.importorskip("ncfd.metrics")
    made = metrics.NCFDMetric(values(3, F, D)).to(device)
    made.update(values(1, N, D).to(device), real=True)
    made.update(values(2, M, D).to(device), real=False)
    first = made.compute()
    made.reset()
    made.update(values(1, N, D).to(device), real=True)
    made.update(values(5, M, D).to(device), real=False)
    return [first, made.compute()]


def test_of_two_samples(**options: Any) -> Callable[[str], list[float]]:
    def call(device: str) -> list[float]:
        x, y = values(1, 60, D).to(device), 0.6 + values(2, 50, D).to(device)
        result = ncfd.two_sample_test(x, y, seed=0, **options)
        return [result.statistic, result.pvalue]

    return call


test_of_two_samples.__test__ = False  # a maker of cases, not a test


def report(device: str) -> list[Any]:
    found = ncfd.frequency_report(values(1, N, D).to(device), values(3, F, D).to(device))
    return [found.norms, found.amplitude, found.share_below_floor, found.share_wrapped]


def closed_form(device: str) -> list[Tensor]:
    zero, one, t = (v.to(device) for v in (torch.zeros(D), torch.ones(D), values(3, F, D)))
    laws = [Independent(Normal(zero, one), 1), StudentT(4 * one[0])]
    return [
        torch.view_as_real(characteristic_function(law, t[:, : 1 if not law.event_shape else D]))
        for law in laws
    ]


CASES: dict[str, Callable[[str], list[Any]]] = {
    "root": with_gradients(ncfd_loss),
    "alpha": with_gradients(lambda x, y, t: ncfd_loss(x, y, t, alpha=0.3)),
    "chunks": with_gradients(lambda x, y, t: ncfd_loss(x, y, t, chunk_size=2)),
    "unbiased weighted groups": with_gradients(grouped),
    "second derivatives": with_gradients(penalty),
    "closed form of the loss": with_gradients(lambda x, y, t: gaussian_ncfd(x, y, t[0].abs())),
    "stream": stream,
    "metric": metric,
    "permutation test": test_of_two_samples(n_permutations=99),
    "chi2 test": test_of_two_samples(method="chi2"),
    "report": report,
    "distributions": closed_form,
    "mixture": module(ncfd.FrequencySampler(D, 16)),
}
LAWS = (
    ncfd.GaussianFrequencies,
    ncfd.StudentTFrequencies,
    ncfd.LaplaceFrequencies,
    ncfd.UniformFrequencies,
)
for _law in LAWS:
    for _method in ("random", "orthogonal", "sobol"):
        CASES[f"{_law.__name__}, {_method}"] = module(_law(D, F, learnable=True, method=_method))


@pytest.mark.parametrize("name", CASES)
def test_same_on_the_device(name: str) -> None:
    results = CASES[name]("mps")
    expected = to_cpu(CASES[name]("cpu"))
    assert any(isinstance(v, Tensor) and v.device.type == "mps" for v in results) or not any(
        isinstance(v, Tensor) for v in results
    )
    for value, wanted in zip(to_cpu(results), expected, strict=True):
        if isinstance(value, Tensor):
            # Some sums are in float32 there and in float64 here.
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)
        else:
            assert math.isclose(value, wanted, rel_tol=1e-3, abs_tol=1e-6)
