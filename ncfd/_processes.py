"""Adding over processes: the one place that communicates.

A characteristic function is a mean, so each process's sums add up to those of the whole batch;
everything after the addition runs on all processes alike, on the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from ncfd import _validation as check
from ncfd._devices import widest_float

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

P = ParamSpec("P")
R = TypeVar("R")


def check_group(value: object, name: str = "process_group") -> ProcessGroup | None:
    """None, or a process group that can be used now."""
    if value is None:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and isinstance(value, distributed.ProcessGroup)):
        raise TypeError(
            f"{name} must be a torch.distributed.ProcessGroup that this process is in, such as "
            f"torch.distributed.group.WORLD, or None, got {check.describe(value)}"
        )
    check_initialized(name)
    return value


def check_initialized(name: str) -> None:
    """Whether there is anyone to talk to."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            f"{name} needs torch.distributed: call torch.distributed.init_process_group first"
        )


class _AllReduce(torch.autograd.Function):
    """``Σ_p v_p`` on every process; its adjoint is the same sum of the gradients."""

    @staticmethod
    def forward(values: Tensor, group: ProcessGroup | None) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 - as PyTorch calls it
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The Function again, not the bare collective: gradient penalties differentiate this.
        return _AllReduce.apply(grad, ctx.group), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, Any]:  # noqa: ARG004 - as PyTorch calls it
        return _AllReduce.apply(*args), in_dims[0]


def _outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """A compiled graph breaks here, and says so under ``fullgraph=True``: it stays eager.

    Wrapped when called from a graph: ``torch.compiler.disable`` imports the compiler, which takes
    longer than all else of the package.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            # Torch's own `disable` is without annotations.
            eager: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # PyTorch has no type there
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@_outside_graphs
def add_up(values: Sequence[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """Each of ``values`` added over the processes, differentiable, by one all-reduce in float64.

    The shapes are the same on all processes. If any process needs a gradient, the results require
    one on all: a backward in which only some take part would wait for ever.
    """
    # One entry more: how many processes need a gradient.
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    watched = torch.is_grad_enabled() and not transformed
    needed = watched and any(v.requires_grad for v in values)
    wide = widest_float(values[0].device)
    flags = values[0].new_full((1,), float(needed), dtype=wide)
    flat = torch.cat([flags, *(v.reshape(-1).to(wide) for v in values)])
    total: Tensor = _AllReduce.apply(flat.requires_grad_() if watched else flat, group)
    if watched and not needed and not bool(total[0]):
        total = total.detach()
    parts = torch.split(total[1:], [v.numel() for v in values])
    return [p.view_as(v).to(v.dtype) for p, v in zip(parts, values, strict=True)]


def mark_of(t: Tensor) -> Tensor:
    """Three numbers to add over processes, for :func:`check.check_common_frequencies`."""
    total = t.detach().sum(dtype=torch.float64)
    return torch.stack([total, total.square(), t.detach().abs().sum(dtype=torch.float64)])


@_outside_graphs
def common_generator(group: ProcessGroup, device: torch.device) -> torch.Generator:
    """A CPU generator in the same state on all processes, seeded by the first one's default."""
    # All draw, so that default generators in step stay in step.
    seed = torch.randint(2**62, (1,)).to(device)
    first = torch.distributed.get_global_rank(group, 0)
    torch.distributed.broadcast(seed, first, group)
    return torch.Generator().manual_seed(int(seed))


class InStep(nn.Module):
    """A module whose processes work on one batch, with a generator in the same state on all."""

    def __init__(self, process_group: object) -> None:
        super().__init__()
        self.process_group = check_group(process_group)
        self._generator: torch.Generator | None = None  # in step on all processes

    def _generator_in_step(self, device: torch.device) -> torch.Generator:
        """Seeded when first asked for, on all processes at once."""
        assert self.process_group is not None
        if self._generator is None:
            self._generator = common_generator(self.process_group, device)
        return self._generator

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A process group is a connection: the copy talks over the same one.
        memo[id(self.process_group)] = self.process_group
        other = self.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            # Dropped in silence, it would turn the value into that of one process's part.
            raise TypeError(
                f"{type(self).__name__} with a process_group cannot be pickled; store its "
                "state_dict, or set its process_group to None first"
            )
        return self.__dict__
