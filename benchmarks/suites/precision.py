"""Suite `precision`: error against float64 as the phases grow.

The inputs are multiplied so that the phases have the given root mean square. `phi` is the root mean
square error of both characteristic functions, `loss` and `gradient` are relative errors of the root
loss and of its gradient for the synthetic samples. The noise floor of φ at N samples is 1/√N: an
error far below it does not matter.

TF32 rounds the factors of a product to 11 bits. Where no device does it, the rounding is done by
hand, which gives the same errors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import ncfd
from benchmarks import cases, peers
from benchmarks.records import Records
from tests import reference


def run(device: torch.device, quick: bool, written: Records) -> None:
    N, M, D, F = (64, 16, 32, 32) if quick else (1024, 1024, 512, 512)
    data = cases.make(cases.Problem(N, M, D, F, learned=False), device)
    written.content["notes"] = [f"N={N}, M={M}, D={D}, F={F}; 1/√N = {N**-0.5:.2g}."]
    x, y, t = data.x.double(), data.y.detach().double(), data.t.double()
    rms = (x @ t.T).square().mean().sqrt()
    for phase in cases.PHASES[::3] if quick else cases.PHASES:
        factor = phase / rms
        xs, ys = (factor * x).float(), (factor * y).float()
        truth = _evaluate(xs.double(), ys.double(), t, _ours)
        judge = reference.ncfd_loss if quick else None
        if judge is not None:  # the float64 truth itself, against the slow reference
            slow = float(judge(xs, ys, t))
            assert abs(slow - truth[2].item()) < 1e-9, (slow, truth[2].item())
        ways: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
            "float32": lambda xs=xs, ys=ys: _evaluate(xs, ys, t.float(), _ours),
            "bfloat16 input": lambda xs=xs, ys=ys: _evaluate(
                xs.bfloat16(), ys.bfloat16(), t.float(), _ours
            ),
            "TF32": lambda xs=xs, ys=ys: _tf32(xs, ys, t.float()),
            "released form, float32": lambda xs=xs, ys=ys: _evaluate(xs, ys, t.float(), _released),
            "released form, bfloat16 autocast": lambda xs=xs, ys=ys: _autocast(xs, ys, t.float()),
        }
        for name, way in ways.items():
            got = way()
            phi = torch.stack([g.to(truth[0]) - w for g, w in zip(got[:2], truth[:2], strict=True)])
            written.add(
                "error",
                {
                    "way": name,
                    "phase": f"{phase:g}",
                    "phi": phi.abs().square().mean().sqrt().item(),
                    "loss": (got[2].double() / truth[2] - 1).abs().item(),
                    "gradient": ((got[3].double() - truth[3]).norm() / truth[3].norm()).item(),
                },
            )


def _ours(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return ncfd.functional.ncfd_loss(x, y, t)


def _released(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return peers.released_form(x, y, t)


def _evaluate(
    x: Tensor, y: Tensor, t: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """φ of both sides, the loss, and its gradient for y."""
    y = y.detach().requires_grad_()
    value = loss(x, y, t)
    (gradient,) = torch.autograd.grad(value, y)
    if loss is _ours:
        phi = [ncfd.functional.characteristic_function(v.detach(), t) for v in (x, y)]
    else:
        phases = [v.detach() @ t.T for v in (x, y)]
        phi = [torch.complex(p.cos().mean(0).float(), p.sin().mean(0).float()) for p in phases]
    return phi[0], phi[1], value.detach(), gradient


def _autocast(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return _evaluate(x, y, t, _released)


def _tf32(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.device.type != "cuda":
        return _evaluate(_eleven_bits(x), _eleven_bits(y), _eleven_bits(t), _ours)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _evaluate(x, y, t, _ours)
    finally:
        torch.set_float32_matmul_precision(before)


def _eleven_bits(x: Tensor) -> Tensor:
    """Round float32 to the 11 significant bits of TF32, to nearest, ties to even."""
    bits = x.detach().contiguous().view(torch.int32)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(torch.float32)
