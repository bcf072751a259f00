"""Suite `sliced`: SIGReg beside LeJEPA's and lightly's, forward and gradient for the samples.

`sliced` has the times, `floors` what no method can do without: the product with the directions and
the one back, and one cosine and one sine of each projection. `agreement` compares values and
gradients at the same directions with the formula in float64, and with each library; `processes`
does so in several gloo processes, each with a part of the batch. `integral` is the quadrature
against the integral in closed form.

`two samples` is `SlicedFrequencies` beside as many frequencies with a direction each, and
`sliced energy distance` how exact that is with J nodes.

    pip install lightly git+https://github.com/rbalestr-lab/lejepa
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

import ncfd
from benchmarks import measuring, peers
from benchmarks.measuring import MIB, Contender, Rounds
from benchmarks.records import Records
from ncfd.functional import sliced_normality

#: N samples, D features, K directions.
SIZES = [(512, 512, 1024), (256, 64, 256), (128, 128, 1024), (4096, 256, 1024)]
KNOTS = 17
#: At least how many times as long as ours theirs take, and the largest share of their memory.
TARGETS = {
    (0, "LeJEPA"): 6.0,
    (0, "lightly"): 5.0,
    (1, "LeJEPA"): 2.0,
    (1, "lightly"): 2.0,
}
MEMORY_SHARE = 0.2

Loss = Callable[[Tensor], Tensor]


def run(device: torch.device, quick: bool, written: Records) -> None:
    times(device, quick, written, seconds=4.0)
    # The rest takes seconds: what a run that was cut has of it is made anew.
    tables = written.content["tables"]
    written.content["tables"] = {k: tables[k] for k in ("sliced", "floors") if k in tables}
    _judge(_sizes(quick), written)
    _agreement((16, 4, 8) if quick else (256, 64, 256), device, written)
    if dist.is_available() and dist.is_gloo_available():
        for world in (2, 3):
            _processes(world, written)
    _integral(64 if quick else 512, written)
    _two_samples(quick, written)
    _energy(quick, written)


def times(device: torch.device, quick: bool, written: Records, *, seconds: float) -> None:
    """Time and memory of every contender, and the floors; about `seconds` for each size."""
    missing = [name for name, make in LIBRARIES.items() if make(4) is None]
    if missing:
        written.content["notes"] = [f"Not installed, so left out: {', '.join(missing)}."]
    before = torch.get_num_threads()
    # An accelerator's work does not depend on the threads that start it.
    counts = [before] if device.type != "cpu" else [1, 2]
    for place, size in enumerate(_sizes(quick)):
        # In a run that goes on: floors are the last rows of a case.
        left = [n for n in counts if not written.has("floors", _case(size, n))]
        if not left:
            continue
        contenders = _contenders(size, device, quick)
        # What compiling saves in memory is told once, at the first size: it takes its time.
        memory = {
            name: _memory(name, size, device, quick)
            for name in contenders
            if place == 0 or "compiled" not in name
        }
        for threads in left:
            torch.set_num_threads(threads)
            try:
                # The compiler counts threads: warm up anew.
                rounds = measuring.interleave(
                    contenders | _floors(size, device),
                    device,
                    seconds=0.02 if quick else seconds,
                    at_least=2 if quick else 5 if size[0] < 4096 else 3,
                    warm_up=1,
                )
            finally:
                torch.set_num_threads(before)
            _write(size, threads, rounds, memory, written)


def _sizes(quick: bool) -> list[tuple[int, int, int]]:
    return [(16, 4, 8), (8, 4, 8)] if quick else SIZES


# ------------------------------------------------------------------------------------------------
# Contenders
# ------------------------------------------------------------------------------------------------


def _lejepa(num_slices: int) -> torch.nn.Module | None:
    try:
        from lejepa.multivariate import SlicingUnivariateTest
        from lejepa.univariate import EppsPulley
    except ImportError:
        return None
    test: torch.nn.Module = SlicingUnivariateTest(EppsPulley(n_points=KNOTS), num_slices)
    return test


def _lightly(num_slices: int, gather: bool = False) -> torch.nn.Module | None:
    try:
        from lightly.loss import SIGReg
    except ImportError:
        return None
    loss: torch.nn.Module = SIGReg(knots=KNOTS, num_vectors=num_slices, gather_distributed=gather)
    return loss


LIBRARIES: dict[str, Callable[[int], torch.nn.Module | None]] = {
    "LeJEPA": _lejepa,
    "lightly": _lightly,
}


def _plain(num_slices: int) -> Loss:
    """The formula with every phase held, and plain autograd."""

    def loss(x: Tensor) -> Tensor:
        u = torch.randn(x.shape[-1], num_slices, device=x.device)
        u = u / u.norm(dim=0)
        # Without the weight's 1/√(2π), and with the factor N.
        return len(x) * math.sqrt(2 * math.pi) * peers.epps_pulley(x, u.T, KNOTS)

    return loss


def _names() -> list[str]:
    found = [name for name, make in LIBRARIES.items() if make(4) is not None] or ["plain form"]
    return ["ncfd", *found, *(f"{name}, compiled" for name in found)]


def _loss(name: str, num_slices: int, device: torch.device, quick: bool) -> Any:
    if name.endswith(", compiled"):
        # A rehearsal goes through the compiler, but not through the C++ compiler behind it.
        backend = "aot_eager" if quick else "inductor"
        loss = _loss(name.removesuffix(", compiled"), num_slices, device, quick)
        if name.startswith("LeJEPA"):
            # Not its drawing: a seed that is a number would be compiled anew at every call.
            loss.univariate_test = torch.compile(loss.univariate_test, backend=backend)
            return loss
        compiled: Loss = torch.compile(loss, backend=backend, dynamic=False)
        return compiled
    if name == "plain form":
        return _plain(num_slices)
    module = ncfd.SIGReg(num_slices) if name == "ncfd" else LIBRARIES[name](num_slices)
    assert module is not None
    return module.to(device)


def _samples(size: tuple[int, int, int], device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(size[0], size[1], generator=g).to(device).requires_grad_()


def _contenders(
    size: tuple[int, int, int], device: torch.device, quick: bool
) -> dict[str, Contender]:
    torch.compiler.reset()
    x = _samples(size, device)
    losses = {name: _loss(name, size[2], device, quick) for name in _names()}
    return {name: measuring.differentiated(partial(loss, x), [x]) for name, loss in losses.items()}


def _floors(size: tuple[int, int, int], device: torch.device) -> dict[str, Contender]:
    """The product and the product back; the waves, which no backward has to form again."""
    x = _samples(size, device).detach()
    u = torch.randn(size[1], size[2], device=device)
    s, back, wave = u.T @ x.T, torch.empty_like(x), x.new_empty(size[2], size[0])
    return {
        "floor: product": Contender(
            lambda: torch.mm(u.T, x.T, out=s), lambda _: torch.mm(s.T, u.T, out=back)
        ),
        "floor: waves": Contender(
            lambda: (torch.cos(s, out=wave), torch.sin(s, out=wave)), lambda _: None
        ),
    }


def _case(size: tuple[int, int, int], threads: int) -> dict[str, Any]:
    return dict(zip(("N", "D", "slices", "threads"), (*size, threads), strict=True))


def _write(
    size: tuple[int, int, int],
    threads: int,
    rounds: dict[str, Rounds],
    memory: dict[str, float | None],
    written: Records,
) -> None:
    where = _case(size, threads)
    for name, measured in rounds.items():
        columns = measured.columns()
        if name.startswith("floor"):
            columns = {k: columns[k] for k in ("forward_ms", "backward_ms", "both_ms")}
            written.add("floors", {**where, "floor": name.removeprefix("floor: "), **columns})
            continue
        longer = measuring.ratio(measured, rounds["ncfd"]).median
        row = {**where, "contender": name, **columns, "times_as_long": longer}
        written.add("sliced", {**row, "memory_mib": memory.get(name)})


def _judge(sizes: list[tuple[int, int, int]], written: Records) -> None:
    """Say of the rows of `sliced` which of the targets they meet."""
    rows = written.content["tables"]["sliced"]
    ours = {
        (r["N"], r["D"], r["slices"]): r["memory_mib"] for r in rows if r["contender"] == "ncfd"
    }

    def judge(case: dict[str, Any], sign: str, target: float, value: float) -> None:
        met = value >= target if sign == ">=" else value <= target
        verdict = "met" if met else "MISSED"
        written.add(
            "targets", {**case, "target": f"{sign} {target:g}", "value": value, "verdict": verdict}
        )

    for row in rows:
        size, name = (row["N"], row["D"], row["slices"]), row["contender"]
        case = {**_case(size, row["threads"]), "contender": name}
        target = TARGETS.get((sizes.index(size), name))
        if target is not None:
            judge({**case, "measure": "time"}, ">=", target, row["times_as_long"])
        theirs = row["memory_mib"]
        if name in LIBRARIES and row["threads"] == 1 and ours[size] is not None and theirs:
            judge({**case, "measure": "memory"}, "<=", MEMORY_SHARE, ours[size] / theirs)


def _memory(
    name: str, size: tuple[int, int, int], device: torch.device, quick: bool
) -> float | None:
    specification = {"name": name, "size": size, "device": device.type, "quick": quick}
    if device.type == "cuda":
        return probe(specification)
    return None if quick else measuring.in_fresh_process("sliced", specification)


def probe(specification: dict[str, Any]) -> float | None:
    """Peak memory of one contender in MiB, on one thread, its gradient included."""
    device = torch.device(specification["device"])
    N, D, K = specification["size"]
    torch.set_num_threads(1)
    loss = _loss(specification["name"], K, device, specification["quick"])
    peak = None
    # What the first call loads or compiles is not counted.
    for _ in range(2):
        x = _samples((N, D, K), device)
        peak = measuring.peak_memory(measuring.differentiated(partial(loss, x), [x]), device)
    return None if peak is None else peak / MIB


# ------------------------------------------------------------------------------------------------
# Agreement
# ------------------------------------------------------------------------------------------------


def _at(name: str, u: Tensor, gather: bool = False) -> Loss | None:
    """One of `LIBRARIES` with `u (D, K)` in place of the directions it would draw."""
    if name == "lightly":
        module = _lightly(u.shape[1], gather)
        if module is not None:
            module._generate_unit_vectors = lambda device, dtype, _: u.to(device, dtype)
        return module
    test = _lejepa(u.shape[1])
    if test is None:
        return None
    # Its own line behind the drawing.
    return lambda x: test.univariate_test.to(x.device)(x @ u.to(x.dtype)).mean()


def _directions(size: tuple[int, int, int], device: torch.device) -> Tensor:
    return peers.directions(size[2], size[1], device).T.contiguous()


def _widened(loss: Loss, x: Tensor) -> Tensor:
    return loss(x.float())


def _value_and_gradient(loss: Loss, x: Tensor) -> tuple[float, Tensor]:
    leaf = x.detach().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient.double()


def _compare(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> tuple[float, float]:
    value = abs(found[0] / wanted[0] - 1)
    return value, ((found[1] - wanted[1]).norm() / wanted[1].norm()).item()


def _formula(u: Tensor) -> Loss:
    """The statistic in float64, every phase formed by itself."""
    return lambda x: (
        x.shape[-2]
        * math.sqrt(2 * math.pi)
        * peers.epps_pulley(x.double(), u.double().T.contiguous(), KNOTS)
    )


def _agreement(size: tuple[int, int, int], device: torch.device, written: Records) -> None:
    u = _directions(size, device)
    for dtype in (torch.float32, torch.bfloat16):
        # Not quite normal, so that there is something to find.
        x = (1.2 * _samples(size, device).detach() + 0.1).to(dtype)
        exact = _value_and_gradient(_formula(u), x.double())
        ours = _value_and_gradient(lambda v: sliced_normality(v, u), x)
        kinds: dict[str, tuple[float, Tensor]] = {"ncfd": ours}
        for name in LIBRARIES:
            loss = _at(name, u)
            if loss is None:
                continue
            kinds[name] = _value_and_gradient(loss, x)
            if dtype != torch.float32:
                # It projects in bfloat16, unless it is given wider rows.
                wide = partial(_widened, loss)
                kinds[f"{name}, x.float()"] = _value_and_gradient(wide, x)
        for name, found in kinds.items():
            value, gradient = _compare(found, exact)
            row: dict[str, Any] = {"input": str(dtype).removeprefix("torch."), "contender": name}
            row |= {"value_error": value, "gradient_error": gradient}
            if name != "ncfd":
                # A gradient has the input's type: in bfloat16 both are rounded at the end.
                value, gradient = _compare(ours, found)
                row |= {"ours_to_it_value": value, "ours_to_it_gradient": gradient}
            written.add("agreement", row)


def _processes(world: int, written: Records) -> None:
    """Parts of one batch in gloo processes; gradients averaged as a wrapped network has them."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (world, folder), nprocs=world)
        for name, row in torch.load(Path(folder) / "rows").items():
            written.add("processes", {"processes": world, "contender": name, **row})


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    place = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    size = (60, 16, 32)
    device = torch.device("cpu")
    u = _directions(size, device)
    x = 1.2 * _samples(size, device).detach() + 0.1
    exact = _value_and_gradient(_formula(u), x.double())
    even = [size[0] // world] * world
    # Parts of different sizes too.
    odd = [size[0] // world + 7 * (2 * r - world + 1) for r in range(world)]
    group = dist.group.WORLD
    losses: dict[str, Loss | None] = {
        "ncfd": lambda v: sliced_normality(v, u, process_group=group),
        **{name: _at(name, u, gather=True) for name in LIBRARIES},
    }
    rows: dict[str, dict[str, float | str]] = {}
    for name, loss in losses.items():
        for parts, cut in (("equal", even), ("unequal", odd)):
            if loss is None:
                continue
            part = x.split(cut)[rank]
            try:
                value, gradient = _value_and_gradient(loss, part)
            except (RuntimeError, ValueError) as error:
                rows[f"{name}, {parts} parts"] = {"error": str(error).splitlines()[0]}
                continue
            # What averaging makes of it: each process holds its rows, the others zero.
            whole = x.new_zeros(x.shape, dtype=torch.float64)
            start = sum(cut[:rank])
            whole[start : start + len(part)] = gradient / world
            dist.all_reduce(whole)
            found = _compare((value, whole), exact)
            rows[f"{name}, {parts} parts"] = {"value_error": found[0], "gradient_error": found[1]}
    if rank == 0:
        torch.save(rows, Path(folder) / "rows")
    dist.barrier()  # one that leaves while others still read can end the whole
    dist.destroy_process_group()


def _integral(rows: int, written: Records) -> None:
    """The quadrature against the integral over the whole line, pairs of samples in float64."""
    size = (rows, 8, 16)
    u = _directions(size, torch.device("cpu")).double()
    x = 1.2 * _samples(size, torch.device("cpu")).detach().double() + 0.1
    exact = rows * math.sqrt(2 * math.pi) * peers.exact_epps_pulley(x, u.T)
    for nodes, t_max in ((17, 3.0), (65, 3.0), (17, 5.0), (33, 5.0), (33, 8.0), (65, 8.0)):
        row: dict[str, Any] = {"nodes": nodes, "t_max": f"{t_max:g}"}
        for name, kind in (("float64", torch.float64), ("float32", torch.float32)):
            value = sliced_normality(x.to(kind), u.to(kind), num_nodes=nodes, t_max=t_max)
            row[name] = abs(value.item() / exact - 1)
        written.add("integral", row)


# ------------------------------------------------------------------------------------------------
# Two samples
# ------------------------------------------------------------------------------------------------


def _two_samples(quick: bool, written: Records) -> None:
    """`SlicedFrequencies` beside as many frequencies of the same law, a direction for each.

    The expectation is the same, the sliced discrepancy of two samples whose projections have about
    unit variance, and so is the cost. Errors are relative root mean squares over draws.
    """
    rows, slices, nodes, draws = (32, 8, 4, 4) if quick else (512, 64, 16, 64)
    for D in (2, 8) if quick else (2, 8, 32, 128):
        g = torch.Generator().manual_seed(3)
        x = torch.randn(rows, D, generator=g)
        y = (1.2 * torch.randn(rows // 4, D, generator=g) + 0.2).requires_grad_()
        many = ncfd.SlicedFrequencies(D, slices if quick else 8192, nodes)
        exact = _value_and_gradient(partial(_sliced_loss, x, many, g), y)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "rays": partial(_sliced_loss, x, ncfd.SlicedFrequencies(D, slices, nodes), g),
            "a direction each, orthogonal": partial(_dense_loss, x, many, slices * nodes, True, g),
            "a direction each, random": partial(_dense_loss, x, many, slices * nodes, False, g),
        }
        for name, loss in ways.items():
            found = [_compare(_value_and_gradient(loss, y), exact) for _ in range(draws)]
            value, gradient = torch.tensor(found, dtype=torch.float64).square().mean(0).sqrt()
            row = {"D": D, "slices": slices, "nodes": nodes, "frequencies": name}
            written.add("two samples", {**row, "value": value.item(), "gradient": gradient.item()})


def _sliced_loss(x: Tensor, law: ncfd.SlicedFrequencies, g: torch.Generator, y: Tensor) -> Tensor:
    return ncfd.functional.ncfd_loss(x, y, law(g), squared=True, frequency_weights=law.weights)


def _dense_loss(
    x: Tensor,
    law: ncfd.SlicedFrequencies,
    F: int,
    orthogonal: bool,
    g: torch.Generator,
    y: Tensor,
) -> Tensor:
    """Lengths of `law`'s rays, drawn by their weights, each along a direction of its own."""
    D = x.shape[1]
    method = "orthogonal" if orthogonal else "random"
    u = ncfd.SlicedFrequencies(D, F, 1, t_max=1.0, method=method)(g)
    steps = law.t_max / law.num_nodes * torch.arange(1, law.num_nodes + 1)
    j = torch.multinomial(law.weights[: law.num_nodes], F, replacement=True, generator=g)
    return ncfd.functional.ncfd_loss(x, y, u * steps[j, None], squared=True)


def _energy(quick: bool, written: Records) -> None:
    """How exact the sliced energy distance is with J nodes: samples, same directions, float64."""
    rows, D, slices = (24, 4, 4) if quick else (512, 8, 64)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, D, generator=g, dtype=torch.float64)
    for case, scale, shift in (("shifted by 1", 1.0, 1.0), ("half as wide", 0.5, 0.0)):
        y = scale * torch.randn(rows, D, generator=g, dtype=torch.float64) + shift / math.sqrt(D)
        for t_max, nodes in ((3.0, 8), (3.0, 17), (3.0, 64), (6.0, 17), (6.0, 33), (12.0, 65)):
            law = ncfd.SlicedFrequencies(D, slices, nodes, t_max=t_max, weighting="energy").double()
            t = law(torch.Generator().manual_seed(0))
            options: dict[str, Any] = {"squared": True, "frequency_weights": law.weights}
            value = 2 * law.weights.sum() * ncfd.functional.ncfd_loss(x, y, t, **options)
            plain = value.item() / _exact_energy(x, y, t[::nodes]) - 1
            options["unbiased"] = True
            fair = 2 * law.weights.sum() * ncfd.functional.ncfd_loss(x, y, t, **options)
            row = {"case": case, "t_max": f"{t_max:g}", "nodes": nodes, "error": plain}
            error = fair.item() / _exact_energy(x, y, t[::nodes], unbiased=True) - 1
            written.add("sliced energy distance", {**row, "error_unbiased": error})


def _exact_energy(x: Tensor, y: Tensor, rays: Tensor, unbiased: bool = False) -> float:
    """The energy distance of the projections, averaged over directions: all pairs."""
    u = torch.nn.functional.normalize(rays, dim=1)

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        pairs = ((a @ u.T)[:, None] - (b @ u.T)).abs().sum((0, 1)).mean()
        return pairs / (len(a) * (len(b) - (unbiased and a is b)))

    return (2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)).item()
