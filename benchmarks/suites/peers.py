"""Suite `peers`: other discrepancies in the same process, forward and gradient for y.

They do not compute the same number, so each is judged against its own exact value on the same
samples. `relative_error` of a sampled method contains the noise of its draw.

The table `five scales` is one number: a mixture of five Gaussian kernels, ours and written by hand.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import cases, measuring
from benchmarks import peers as library
from benchmarks.measuring import MIB
from benchmarks.records import Records

F = 1024


def _sizes(quick: bool) -> list[tuple[int, int]]:
    return [(40, 8)] if quick else [(500, 64), (2000, 64)]


def run(device: torch.device, quick: bool, written: Records) -> None:
    _mixtures(device, quick, written)
    for n, D in _sizes(quick):
        found, missing = library.all_peers(D, F, device)
        if missing:
            written.content["notes"] = [f"Not installed, so left out: {', '.join(missing)}."]
        x, y = _samples(n, D, device)
        contenders = {p.name: _contender(p, x, y) for p in found}
        rounds = measuring.interleave(
            contenders, device, seconds=0.05 if quick else 15.0, at_least=3, warm_up=1
        )
        for peer in found:
            with torch.no_grad():
                value = peer.function(x, y).item()
            exact = peer.exact(x, y.detach())
            row: dict[str, Any] = {"peer": peer.name, "cost": peer.cost, "n": n, "D": D}
            row |= rounds[peer.name].columns()
            row["memory_mib"] = _memory(peer.name, n, D, device)
            row["value"] = value
            row["exact"] = exact
            row["relative_error"] = None if exact is None else abs(value / exact - 1)
            written.add("peers", row)
    for peer in found:
        row = {"peer": peer.name, "computes": peer.computes, "exact value": peer.exact_is}
        written.add("what they compute", row)


def _mixtures(device: torch.device, quick: bool, written: Records) -> None:
    """Five scales at once, of 64 rows to 1000, on one thread and on all."""
    scales = torch.tensor([[0.25], [0.5], [1.0], [2.0], [4.0]], device=device)
    threads = torch.get_num_threads()
    for count in sorted({1, threads}) if device.type == "cpu" else [threads]:
        torch.set_num_threads(count)
        for n, D in [(16, 8)] if quick else [(64, 100), (256, 256), (1000, 1000)]:
            x, y = _samples(n, D, device)
            contenders = {
                name: measuring.differentiated(partial(function, x, y, scales), [y])
                for name, function in library.MIXTURES.items()
            }
            rounds = measuring.interleave(
                contenders, device, seconds=0.05 if quick else 5.0, at_least=3, warm_up=3
            )
            exact = sum(library.exact_rbf_mmd(x, y.detach(), s) for (s,) in scales.tolist()) / 5
            for name, function in library.MIXTURES.items():
                row: dict[str, Any] = {"form": name, "n": n, "D": D, "threads": count}
                row |= rounds[name].columns()
                row["ncfd over it"] = measuring.ratio(rounds["gaussian_ncfd"], rounds[name]).median
                with torch.no_grad():
                    row["relative_error"] = abs(function(x, y, scales).item() / exact - 1)
                written.add("five scales", row)
    torch.set_num_threads(threads)


def _samples(n: int, D: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal samples whose length is about 1, and the same moved and widened."""
    g = torch.Generator().manual_seed(3)
    spread = cases.spread(cases.Problem(n, n, D, F))
    x = spread * torch.randn(n, D, generator=g)
    y = spread * (1.3 * torch.randn(n, D, generator=g) + 0.3)
    return x.to(device), y.to(device).requires_grad_()


def _contender(peer: library.Peer, x: torch.Tensor, y: torch.Tensor) -> measuring.Contender:
    return measuring.differentiated(lambda: peer.function(x, y), [y])


def _memory(name: str, n: int, D: int, device: torch.device) -> float | None:
    """Peak beyond the inputs; the largest size only, since each asks for a process of its own."""
    specification = {"peer": name, "n": n, "D": D, "device": device.type}
    if device.type == "cuda":
        return probe(specification)
    if n < 1000:
        return None
    return measuring.in_fresh_process("peers", specification)


def probe(specification: dict[str, Any]) -> float | None:
    """Peak memory of one peer in MiB."""
    device = torch.device(specification["device"])
    found, _ = library.all_peers(specification["D"], F, device)
    (peer,) = [p for p in found if p.name == specification["peer"]]
    for n in (64, specification["n"]):  # the first one loads the libraries
        peak = measuring.peak_memory(
            _contender(peer, *_samples(n, specification["D"], device)), device
        )
    return None if peak is None else peak / MIB
