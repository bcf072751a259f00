"""Several processes: the value and the averaged gradients of one process with the whole batch.

Each world size is one launch of gloo processes, which go through all cases and write down what they
got; the tests compare that with one process.
"""

import copy
import functools
import multiprocessing
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch import distributed as dist

from ncfd import CharacteristicFunction, FrequencySampler, NCFDLoss, SIGReg
from ncfd._median import inverse_median_distance
from ncfd.functional import characteristic_function, gradient_reversal, ncfd_loss

if not dist.is_available():
    pytest.skip("needs torch.distributed", allow_module_level=True)

WORLDS = (2, 3, 4)
N, M, D, F, G = 23, 17, 3, 8, 5
IN = 6  # what the network is given
CUTS = ("uneven", "empty", "idle", "weightless")

# Sorted labels: a contiguous part lacks most groups. Group 4 is not in x at all, 0 not in y.
X_GROUPS, Y_GROUPS = torch.arange(N) * 4 // N, 1 + torch.arange(M) * 4 // M
GROUPS = {"x_groups": X_GROUPS, "y_groups": Y_GROUPS, "num_groups": G}
WEIGHTS = {"x_weights": 0.2 + normal(1, N).abs(), "y_weights": 0.2 + normal(2, M).abs()}
UNBIASED = {"squared": True, "unbiased": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "root": {},
    "alpha": {"alpha": 0.3},
    "squared sum": {"squared": True, "reduction": "sum"},
    "unreduced": {"reduction": "none"},
    "unbiased": UNBIASED,
    "chunks": {"chunk_size": 2},
    "weights": WEIGHTS,
    "groups": GROUPS,
    "grouped sum": GROUPS | {"reduction": "sum"},
    "unreduced groups": GROUPS | {"reduction": "none"},
    "unbiased weights": WEIGHTS | UNBIASED,
    "unbiased weighted groups": WEIGHTS | GROUPS | UNBIASED,
    "alpha weighted groups": WEIGHTS | GROUPS | {"alpha": 0.3},
    "known": {},
    "distribution": {},
    "batch": {},
}


class Affine(nn.Module):
    """The smallest sampler there can be: fixed noise, stretched and moved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", normal(3, F, D))
        self.stretch = nn.Parameter(torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64))
        self.shift = nn.Parameter(torch.full((D,), 0.1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.noise * self.stretch + self.shift


def network() -> nn.Module:
    net = nn.Linear(IN, D).double()
    with torch.no_grad():
        net.weight.copy_(0.4 * normal(4, D, IN))
        net.bias.copy_(normal(5, D))
    return net


def inputs(options: str) -> tuple[Tensor, Tensor]:
    batch = (2,) if options == "batch" else ()
    return normal(6, *batch, N, IN), 0.4 + 0.6 * normal(7, *batch, M, IN)


def part(values: Any, name: str, cut: str, rank: int, world: int) -> Any:
    """This process's part of the rows of x or y, or of their weights or labels."""
    if name not in ("x", "y", "x_weights", "y_weights", "x_groups", "y_groups"):
        return values
    rows = N if name[0] == "x" else M
    share = [i + 1 for i in range(world)]
    if cut == "empty":
        share[0 if name[0] == "x" else world - 1] = 0  # different processes lack different sides
    elif cut == "idle":
        share[0] = 0  # of both
    bounds = [rows * sum(share[:i]) // sum(share) for i in range(world + 1)]
    own = slice(bounds[rank], bounds[rank + 1])
    dim = 1 if name in ("x", "y") and values.ndim == 3 else 0
    values = values[:, own] if dim else values[own]
    if cut == "weightless" and name == "x_weights" and rank == 0:
        values = torch.zeros_like(values)
    return values


def whole_options(options: str, cut: str, world: int) -> dict[str, Any]:
    """The options of one process with everything, weights as they are after ``cut``."""
    return {
        k: torch.cat([part(v, k, cut, r, world) for r in range(world)])
        if isinstance(v, Tensor)
        else v
        for k, v in OPTIONS[options].items()
    }


def real_side(kind: str, features: Tensor, t: Tensor) -> Any:
    """Samples, unless the real side is known on all processes."""
    if kind == "known":
        with torch.no_grad():
            return characteristic_function(0.5 * normal(8, 9, D), t)
    if kind == "distribution":
        return torch.distributions.Independent(
            torch.distributions.Normal(features.new_zeros(D), features.new_ones(D)), 1
        )
    return features


def objective(loss: Tensor) -> Tensor:
    """A scalar that treats the entries of an unreduced loss differently."""
    return (loss * torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)).sum()


# --- cases: run by every process ------------------------------------------------------------------

CASES: dict[str, Callable[[int, int], Any]] = {}


def case(function: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    CASES[function.__name__] = function
    return function


def ddp_gradients(options: str, cut: str, rank: int, world: int) -> tuple[Tensor, list[Tensor]]:
    net, psi = (nn.parallel.DistributedDataParallel(m) for m in (network(), Affine()))
    x, y = (part(v, k, cut, rank, world) for k, v in zip("xy", inputs(options), strict=True))
    own = {k: part(v, k, cut, rank, world) for k, v in OPTIONS[options].items()}
    t = gradient_reversal(psi())
    loss = ncfd_loss(
        real_side(options, net(x), t), net(y), t, **own, process_group=dist.group.WORLD
    )
    objective(loss).backward()
    return loss.detach(), [p.grad for m in (net, psi) for p in m.parameters()]


CUT = [(o, c) for o in OPTIONS for c in CUTS if c != "weightless" or "weight" in o]
for _options, _cut in CUT:
    CASES[f"{_options}, {_cut}"] = functools.partial(ddp_gradients, _options, _cut)


@case
def leaves(rank: int, world: int) -> dict[str, Tensor]:
    tensors = {
        "x": normal(11, N, D),
        "y": normal(12, M, D),
        "t": normal(13, F, D),
        **WEIGHTS,
    }
    own = {
        k: part(v, k, "uneven", rank, world).clone().requires_grad_() for k, v in tensors.items()
    }
    loss = ncfd_loss(**own, process_group=dist.group.WORLD)
    loss.backward()
    return {k: v.grad for k, v in own.items()}


def penalised(net: nn.Module, x: Tensor, y: Tensor, group: Any, world: int) -> Tensor:
    """The loss and a penalty on its slope in y, a sum over the rows of y."""
    features, t = net(y), normal(13, F, D)
    loss = ncfd_loss(net(x), features, t, alpha=0.3, process_group=group)
    (slope,) = torch.autograd.grad(loss, features, create_graph=True)
    return loss + world * (slope / world).square().sum()


@case
def second_derivatives(rank: int, world: int) -> list[Tensor]:
    net = network()
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    penalised(net, x, y, dist.group.WORLD, world).backward()
    for p in net.parameters():
        dist.all_reduce(p.grad)
    return [p.grad / world for p in net.parameters()]


def trained(loss: NCFDLoss, net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Three steps of the game; the parameters after each."""
    parameters = [*net.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    after = []
    for _ in range(3):
        optimizer.zero_grad()
        loss(net(x), net(y)).backward()
        optimizer.step()
        after += [p.detach().clone() for p in parameters]
    return after


def player() -> FrequencySampler:
    torch.manual_seed(21)
    psi = FrequencySampler(D, 2 * F).double()
    nn.init.normal_(psi.network[-1].weight)  # at its start, most of ψ has no gradient
    return psi


@case
def game(rank: int, world: int) -> list[Tensor]:
    psi = nn.parallel.DistributedDataParallel(player())
    loss = NCFDLoss(psi, process_group=dist.group.WORLD)
    net = nn.parallel.DistributedDataParallel(network())
    torch.manual_seed(22 + rank)  # as for the augmentation of each process's own data
    x, y = (part(v, k, "empty", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    return trained(loss, net, x, y)


@case
def regularised(rank: int, world: int) -> list[Tensor]:
    regulariser = SIGReg(8, process_group=dist.group.WORLD)
    net = nn.parallel.DistributedDataParallel(network())
    torch.manual_seed(22 + rank)
    x = part(inputs("root")[0], "x", "empty", rank, world)
    values = [regulariser(net(x)) for _ in range(2)]
    values[1].backward()
    return [*(v.detach() for v in values), *(p.grad for p in net.parameters())]


@case
def wrapped_module(rank: int, world: int) -> list[Tensor]:
    # The loss itself in DistributedDataParallel, its copy over the same group.
    loss = copy.deepcopy(NCFDLoss(player(), normalize=True, process_group=dist.group.WORLD))
    net = nn.parallel.DistributedDataParallel(network())
    torch.manual_seed(22 + rank)
    x, y = (part(v, k, "empty", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    return trained(nn.parallel.DistributedDataParallel(loss), net, x, y)


@case
def one_collective_each_way(rank: int, world: int) -> list[int]:
    calls, original = [], dist.all_reduce

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    dist.all_reduce = counting
    try:
        x, y = (part(v, k, "empty", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        options = OPTIONS["unbiased weighted groups"]
        own = {k: part(v, k, "empty", rank, world) for k, v in options.items()}
        loss = ncfd_loss(x, y, normal(13, F, IN), **own, process_group=dist.group.WORLD)
        forward = len(calls)
        loss.backward()
        return [forward, len(calls) - forward]
    finally:
        dist.all_reduce = original


@case
def gradient_on_one_process_only(rank: int, world: int) -> tuple[bool, Tensor | None]:
    # The last process has nothing that needs a gradient, and still joins the backward.
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    y = y.clone().requires_grad_(rank == 0)
    loss = ncfd_loss(x, y, normal(13, F, IN), process_group=dist.group.WORLD)
    loss.backward()
    return loss.requires_grad, y.grad


@case
def no_gradient_anywhere(rank: int, world: int) -> list[bool]:
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    t = normal(13, F, IN)
    plain = ncfd_loss(x, y, t, process_group=dist.group.WORLD)
    with torch.no_grad():
        quiet = ncfd_loss(x, y.requires_grad_(), t, process_group=dist.group.WORLD)
    return [plain.requires_grad, quiet.requires_grad]


@case
def half_features(rank: int, world: int) -> tuple[Tensor, torch.dtype]:
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    x, y = x.bfloat16(), y.bfloat16().requires_grad_()
    t = normal(13, F, IN).float()
    loss = ncfd_loss(x, y, t, process_group=dist.group.WORLD)
    loss.backward()
    return loss.detach(), y.grad.dtype


@case
def errors(rank: int, world: int) -> dict[str, str]:
    """Wrong values on the last process only; every process has to say so, and go on."""
    last = rank == world - 1
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    t = normal(13, F, IN)
    x_w, y_w = x.new_ones(len(x)), y.new_ones(len(y))
    x_g, y_g = torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(y), dtype=torch.int64)
    groups = {"x_groups": x_g, "y_groups": y_g, "num_groups": 2}
    calls: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = {
        "negative": ((x, y, t), {"y_weights": -y_w if last else y_w}),
        "negative NaN": ((x, y, t), {"x_weights": x_w - 2 if last else x_w * torch.nan}),
        "labels": ((x, y, t), groups | {"x_groups": x_g + 2 * last}),
        "negative labels": ((x, y, t), groups | {"y_groups": y_g - 1 * last}),
        "frequencies": ((x, y, t + 0.01 * last), {}),
        "weightless": ((x, y, t), {"x_weights": 0 * x_w}),
        "empty": ((x, y[:0], t), {}),
        "nothing in common": ((x, y, t), groups | {"y_groups": y_g + 1}),
        "single": ((x, y[: int(last)], t), UNBIASED),
        "single in its group": (
            (x, y, t),
            groups | UNBIASED | {"y_weights": (torch.arange(len(y)) < int(last)).double()},
        ),
    }
    messages = {}
    for name, (args, kwargs) in calls.items():
        try:
            ncfd_loss(*args, **kwargs, process_group=dist.group.WORLD)
        except ValueError as error:
            messages[name] = str(error)
    return messages


@case
def nan_is_not_hidden(rank: int, world: int) -> list[bool]:
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    bad = x.clone()
    bad[0, 0] = torch.nan if rank == 0 else bad[0, 0]
    t = normal(13, F, IN)
    values = [
        ncfd_loss(bad, y, t, process_group=dist.group.WORLD),
        ncfd_loss(x, y, t * (torch.nan if rank == 0 else 1), process_group=dist.group.WORLD),
    ]
    return [bool(v.isnan()) for v in values]


@case
def wrong_groups(rank: int, world: int) -> list[str]:
    x, y, t = normal(6, 4, D), normal(7, 4, D), normal(13, F, D)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    messages = []
    for wrong in ("WORLD", mesh, dist.GroupMember.NON_GROUP_MEMBER):
        for call in (
            lambda wrong=wrong: ncfd_loss(x, y, t, process_group=wrong),
            lambda wrong=wrong: NCFDLoss(t, process_group=wrong),
            lambda wrong=wrong: CharacteristicFunction(t).all_reduce(wrong),
        ):
            try:
                call()
            except TypeError as error:
                messages.append(str(error))
    return messages


@case
def dtensors(rank: int, world: int) -> dict[str, str]:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    x, y, t = normal(6, 4 * world, D), normal(7, 4 * world, D), normal(13, F, D)
    sharded = {
        k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in {"x": x, "y": y, "t": t}.items()
    }
    labels = distribute_tensor(torch.zeros(4 * world, dtype=torch.int64), mesh, [Shard(0)])
    weights = distribute_tensor(torch.ones(4 * world), mesh, [Shard(0)])
    groups = {"x_groups": labels, "y_groups": labels.to_local(), "num_groups": 1}
    calls = {k: {"x": x, "y": y, "t": t} | {k: v} for k, v in sharded.items()}
    calls["x_weights"] = {"x": x, "y": y, "t": t, "x_weights": weights}
    calls["x_groups"] = {"x": x, "y": y[:4], "t": t} | groups
    messages = {}
    for name, arguments in calls.items():
        try:
            ncfd_loss(**arguments, process_group=dist.group.WORLD)
        except TypeError as error:
            messages[name] = str(error)
    # The way out that the message names.
    local = {k: v.to_local() for k, v in sharded.items()} | {"t": t}
    messages["local"] = ncfd_loss(**local, process_group=dist.group.WORLD)
    messages["whole"] = ncfd_loss(x, y, t)
    return messages


@case
def fully_sharded(rank: int, world: int) -> list[Tensor] | None:
    # FSDP2 averages gradients too, and its features are plain tensors.
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch 2.5 has it elsewhere, and for CUDA only
        return None

    net = network()
    fully_shard(net, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (world,)))
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    t = normal(13, F, D)
    features = net(torch.cat([x, y]))
    ncfd_loss(features[: len(x)], features[len(x) :], t, process_group=dist.group.WORLD).backward()
    return [p.grad.full_tensor() for p in net.parameters()]


@case
def some_of_the_processes(rank: int, world: int) -> Tensor | str:
    members = [0, world - 1]
    group = dist.new_group(members)
    x, y, t = normal(6, 4 * world, D), normal(7, 2 * world, D), normal(13, F, D)
    own = x[4 * rank : 4 * rank + 4], y[2 * rank : 2 * rank + 2], t
    if rank not in members:
        return "not in it"
    loss = NCFDLoss(t, process_group=group)
    estimator = CharacteristicFunction(t)
    estimator.update(own[0])
    known = estimator.all_reduce(group).compute()
    return torch.stack([loss(*own[:2]), ncfd_loss(known, own[1], t, process_group=group)])


@case
def transforms(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    t = normal(13, F, IN)

    def loss(y: Tensor, t: Tensor = t) -> Tensor:
        return ncfd_loss(x, y, t, process_group=dist.group.WORLD)

    leaf = y.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    values = torch.func.vmap(loss, (None, 0))(y, torch.stack([t, 0.5 * t]))
    return torch.func.grad(loss)(y), expected, values


@case
def compiled(rank: int, world: int) -> tuple[Tensor, Tensor, str]:
    if world > 2:
        return ()  # slow, and no different
    torch.compiler.reset()
    x, y = (part(v, k, "uneven", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    y = y.clone().requires_grad_()

    def loss(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return ncfd_loss(x, y, t, process_group=dist.group.WORLD)

    t = normal(13, F, IN)
    value = torch.compile(loss, backend="aot_eager")(x, y, t)
    (slope,) = torch.autograd.grad(value, y)
    message = ""
    torch.compiler.reset()
    try:
        torch.compile(loss, backend="aot_eager", fullgraph=True)(x, y, t)
    except Exception as error:  # its type depends on the version
        message = str(error)
    return value.detach(), slope, message


class Watched(nn.Module):
    """A network that gathers φ of its features while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.stream = CharacteristicFunction(normal(13, F, D))
        # What DDP copies from the first process to all, lest the test show nothing.
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        self.stream.update(features)
        self.seen += len(x)
        return features


def watched(model: nn.Module, inner: Watched, rank: int, world: int) -> tuple[Tensor, Tensor]:
    x = part(inputs("root")[0], "x", "uneven", rank, world)
    for piece in x.tensor_split(2):  # as many rows as the process has: others elsewhere
        model(piece).sum().backward()
    return inner.stream.all_reduce().compute(), inner.seen


@case
def stream_in_a_wrapped_model(rank: int, world: int) -> tuple[Tensor, Tensor]:
    inner = Watched()
    return watched(nn.parallel.DistributedDataParallel(inner), inner, rank, world)


@case
def stream_in_a_sharded_model(rank: int, world: int) -> tuple[Tensor, Tensor] | None:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return None
    inner = Watched()
    fully_shard(inner, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (world,)))
    return watched(inner, inner, rank, world)


@case
def estimator(rank: int, world: int) -> Tensor:
    x = part(inputs("root")[0], "x", "empty", rank, world)
    labels = part(X_GROUPS, "x_groups", "empty", rank, world)
    stream = CharacteristicFunction(normal(13, F, IN), G)
    if len(x):
        stream.update(x, groups=labels)
    return stream.all_reduce().compute()


def median_problems() -> dict[str, dict[str, Any]]:
    """Rows, with labels, weights (some of them 0), in a batch, and too many to look at all."""
    x, weights = normal(31, N, D), WEIGHTS["x_weights"] * (normal(32, N) > 0)
    groups = {"x_groups": (7 * torch.arange(N)) % G, "num_groups": G}
    problems = {
        "plain": {"x": x},
        "batch": {"x": torch.stack([x, 9 * x])},
        "weights": {"x": torch.where(weights > 0, x.T, torch.nan).T, "x_weights": weights},
        "groups": {"x": x} | groups,
        "weighted groups": {"x": x, "x_weights": weights} | groups,
    }
    return problems | {"many": {"x": normal(33, 1300, D)}}


def median(problem: dict[str, Any], group: Any = None) -> Tensor:
    names = {"x_groups": "groups", "x_weights": "weights"}
    arguments = {names.get(k, k): v for k, v in problem.items()}
    return inverse_median_distance(**arguments, process_group=group)


@case
def medians(rank: int, world: int) -> dict[str, Tensor]:
    found = {}
    for name, problem in median_problems().items():
        for cut in ("uneven", "idle"):
            if name == "many":  # all on the first two processes
                rows = problem["x"]
                own = {"x": (rows[:500], rows[500:], rows[:0], rows[:0])[rank]}
            else:
                own = {k: part(v, k, cut, rank, world) for k, v in problem.items()}
            found[f"{name}, {cut}"] = median(own, dist.group.WORLD)
    return found


@case
def metric(rank: int, world: int) -> Tensor:
    if world != 3:
        return ()  # two are tested with the metric, and importing torchmetrics takes its time
    metrics = pytest.importorskip("ncfd.metrics")
    x, y = (part(v, k, "empty", rank, world) for k, v in zip("xy", inputs("root"), strict=True))
    value = metrics.NCFDMetric(normal(13, F, IN), **UNBIASED)
    for samples, real in ((x, True), (y, False)):
        if len(samples):
            value.update(samples, real=real)
    return value.compute()


@case
def pickling(rank: int, world: int) -> str:
    loss = NCFDLoss(player(), process_group=dist.group.WORLD)
    try:
        pickle.dumps(loss)
    except TypeError as error:
        message = str(error)
    loss.process_group = None
    pickle.loads(pickle.dumps(loss))
    return message


# --- the launch -----------------------------------------------------------------------------------


def worker(rank: int, world: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, function in CASES.items():
        try:
            results[name] = function(rank, world)
        except Exception as error:
            raise RuntimeError(f"process {rank} of {world}, case {name!r}") from error
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} processes")
def launched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[dict[str, Any]]]:
    world = request.param
    directory: Path = tmp_path_factory.mktemp(f"world{world}")
    # Forked from a fresh process that has imported torch: once, not once for each of nine.
    multiprocessing.set_forkserver_preload(["torch", "hypothesis", "scipy.special"])
    torch.multiprocessing.start_processes(
        worker, (world, str(directory)), nprocs=world, start_method="forkserver"
    )
    return world, [torch.load(directory / f"{r}.pt", weights_only=False) for r in range(world)]


Launched = tuple[int, list[dict[str, Any]]]


def close(value: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=atol)


# --- value and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "cut"), CUT)
def test_value_and_averaged_gradients_are_those_of_one_process(
    launched: Launched, options: str, cut: str
) -> None:
    world, results = launched
    net, psi = network(), Affine()
    x, y = inputs(options)
    t = gradient_reversal(psi())
    loss = ncfd_loss(real_side(options, net(x), t), net(y), t, **whole_options(options, cut, world))
    objective(loss).backward()
    expected = [p.grad for m in (net, psi) for p in m.parameters()]
    for result in results:
        value, gradients = result[f"{options}, {cut}"]
        close(value, loss.detach())
        for gradient, wanted in zip(gradients, expected, strict=True):
            close(gradient, wanted, 1e-8)
    # The bias moves both sides alike, which is no difference unless one is known.
    assert [bool((g.abs() > 1e-6).any()) for g in expected][0::2] == [True, True]


def test_gradients_of_leaf_tensors(launched: Launched) -> None:
    world, results = launched
    tensors = {"x": normal(11, N, D), "y": normal(12, M, D), "t": normal(13, F, D), **WEIGHTS}
    whole = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    ncfd_loss(**whole).backward()
    for name, leaf in whole.items():
        slopes = [result["leaves"][name] for result in results]
        # Held by all: the mean is that of one process. Held by one: as many times its rows.
        got = sum(slopes) / world if name == "t" else torch.cat(slopes) / world
        close(got, leaf.grad)


def test_gradient_penalties(launched: Launched) -> None:
    net = network()
    penalised(net, *inputs("root"), None, 1).backward()
    for result in launched[1]:
        for gradient, p in zip(result["second_derivatives"], net.parameters(), strict=True):
            close(gradient, p.grad, 1e-8)


class InStep(nn.Module):
    """ψ with the generator that the first process's default one seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.psi = player()
        torch.manual_seed(22)
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))

    def forward(self) -> Tensor:
        return self.psi(self.generator)


@pytest.mark.parametrize("name", ["game", "wrapped_module"])
def test_the_game_is_that_of_one_process(launched: Launched, name: str) -> None:
    expected = trained(
        NCFDLoss(InStep(), normalize=name == "wrapped_module"), network(), *inputs("root")
    )
    first = launched[1][0][name]
    for result in launched[1]:
        for p, own, wanted in zip(result[name], first, expected, strict=True):
            assert torch.equal(p, own)  # identical on all after each step
            close(p, wanted, 1e-8)
    start = [*network().parameters(), *player().parameters()]
    moved = [(a - b).abs().max() > 1e-6 for a, b in zip(first[-len(start) :], start, strict=True)]
    assert moved.pop(1) == (name != "game")  # the network's bias moves both sides alike
    assert all(moved)


def test_the_regulariser_is_that_of_one_process(launched: Launched) -> None:
    torch.manual_seed(22)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    net, x = network(), inputs("root")[0]
    values = [SIGReg(8)(net(x), generator) for _ in range(2)]
    assert values[0] != values[1]  # directions are new in each call
    values[1].backward()
    for result in launched[1]:
        expected = [*(v.detach() for v in values), *(p.grad for p in net.parameters())]
        for value, wanted in zip(result["regularised"], expected, strict=True):
            close(value, wanted, 1e-8)


def test_one_all_reduce_forward_and_one_backward(launched: Launched) -> None:
    for result in launched[1]:
        assert result["one_collective_each_way"] == [1, 1]


def test_a_gradient_needed_on_one_process_is_fetched_from_all(launched: Launched) -> None:
    world, results = launched
    x, y = inputs("root")
    y.requires_grad_()
    ncfd_loss(x, y, normal(13, F, IN)).backward()
    for rank, result in enumerate(results):
        requires_grad, slope = result["gradient_on_one_process_only"]
        assert requires_grad
        assert (slope is not None) == (rank == 0)
    own = results[0]["gradient_on_one_process_only"][1]
    close(own, world * y.grad[: len(own)])


def test_no_graph_without_need(launched: Launched) -> None:
    for result in launched[1]:
        assert result["no_gradient_anywhere"] == [False, False]


def test_half_features_compute_in_float32(launched: Launched) -> None:
    x, y = inputs("root")
    expected = ncfd_loss(x.bfloat16(), y.bfloat16(), normal(13, F, IN).float())
    for result in launched[1]:
        value, slope_dtype = result["half_features"]
        assert (value.dtype, slope_dtype) == (torch.float32, torch.bfloat16)
        close(value, expected, 1e-6)


def test_some_of_the_processes(launched: Launched) -> None:
    world, results = launched
    x, y, t = normal(6, 4 * world, D), normal(7, 2 * world, D), normal(13, F, D)
    x, y = (torch.cat([v[:n], v[-n:]]) for v, n in ((x, 4), (y, 2)))
    for rank, result in enumerate(results):
        if rank in (0, world - 1):
            close(result["some_of_the_processes"], ncfd_loss(x, y, t).expand(2))
        else:
            assert result["some_of_the_processes"] == "not in it"


# --- faults ---------------------------------------------------------------------------------------


def test_values_wrong_on_one_process_are_refused_by_all(launched: Launched) -> None:
    for result in launched[1]:
        errors = result["errors"]
        assert errors == launched[1][0]["errors"]
        for name, said in {
            "negative": "y_weights must be non-negative",
            "negative NaN": "x_weights must be non-negative",
            "labels": "x_groups must lie in",
            "negative labels": "y_groups must lie in",
            "frequencies": "t must be the same on all processes",
            "weightless": "x must hold a sample of positive weight",
            "empty": "y must hold a sample of positive weight",
            "nothing in common": "no group in common",
            "single": "two samples with positive weight in y",
            "single in its group": "two samples with positive weight in y",
        }.items():
            assert said in errors[name], name


def test_nan_reaches_all(launched: Launched) -> None:
    for result in launched[1]:
        assert result["nan_is_not_hidden"] == [True, True]


def test_what_is_not_a_process_group(launched: Launched) -> None:
    for result in launched[1]:
        assert len(result["wrong_groups"]) == 9
        assert all("process_group must be a" in message for message in result["wrong_groups"])


def test_parts_of_dtensors_are_refused(launched: Launched) -> None:
    for result in launched[1]:
        messages = result["dtensors"]
        for name in ("x", "y", "t", "x_weights", "x_groups"):
            assert messages[name].startswith(f"{name} must be a plain tensor, got a DTensor")
        close(messages["local"], messages["whole"])


def test_a_module_that_talks_is_not_pickled(launched: Launched) -> None:
    for result in launched[1]:
        assert "process_group cannot be pickled" in result["pickling"]


def test_without_processes_there_is_no_group() -> None:
    assert not dist.is_initialized()
    x, y, t = normal(6, 4, D), normal(7, 4, D), normal(13, F, D)
    with pytest.raises(TypeError, match="process_group must be a"):
        ncfd_loss(x, y, t, process_group=0)
    with pytest.raises(TypeError, match="process_group must be a"):
        NCFDLoss(t, process_group="gloo")
    # A group that has outlived its processes.
    group = dist.ProcessGroup(0, 1)
    with pytest.raises(ValueError, match=r"process_group needs torch\.distributed.*init_process"):
        ncfd_loss(x, y, t, process_group=group)


# --- transforms, and the streams ------------------------------------------------------------------


def test_transforms_over_processes(launched: Launched) -> None:
    x, y = inputs("root")
    t = normal(13, F, IN)
    for result in launched[1]:
        slope, expected, values = result["transforms"]
        close(slope, expected)
        close(values, torch.stack([ncfd_loss(x, y, t), ncfd_loss(x, y, 0.5 * t)]))


def test_compiled_graphs_break_at_the_collective(launched: Launched) -> None:
    if launched[0] > 2:
        pytest.skip("compiled with two processes only")
    x, y = inputs("root")
    y.requires_grad_()
    loss = ncfd_loss(x, y, normal(13, F, IN))
    loss.backward()
    results = [result["compiled"] for result in launched[1]]
    for value, _, message in results:
        close(value, loss.detach())
        assert "add_up" in message  # fullgraph=True names what it cannot take
    close(torch.cat([slope for _, slope, _ in results]) / 2, y.grad)


def test_fully_sharded_parameters(launched: Launched) -> None:
    net = network()
    x, y = inputs("root")
    ncfd_loss(net(x), net(y), normal(13, F, D)).backward()
    if launched[1][0]["fully_sharded"] is None:
        pytest.skip("this torch has no FSDP2 for the CPU")
    for result in launched[1]:
        for gradient, p in zip(result["fully_sharded"], net.parameters(), strict=True):
            close(gradient, p.grad, 1e-8)


def test_median_distances_are_those_of_one_process(launched: Launched) -> None:
    whole = {name: median(problem) for name, problem in median_problems().items()}
    for result in launched[1]:
        for name, value in result["medians"].items():
            assert torch.equal(value, launched[1][0]["medians"][name]), name
            torch.testing.assert_close(value, whole[name.split(",")[0]], rtol=1e-14, atol=0)


def test_streams_add_up(launched: Launched) -> None:
    x, y = inputs("root")
    t = normal(13, F, IN)
    phi = characteristic_function(x, t, groups=X_GROUPS, num_groups=G)
    for result in launched[1]:
        close(result["estimator"], phi)
        if launched[0] == 3:
            close(result["metric"], ncfd_loss(x, y, t, **UNBIASED))


@pytest.mark.parametrize("kind", ["wrapped", "sharded"])
def test_streams_inside_models_keep_their_own_sums(launched: Launched, kind: str) -> None:
    results = [result[f"stream_in_a_{kind}_model"] for result in launched[1]]
    if results[0] is None:
        pytest.skip("this torch has no FSDP2 for the CPU")
    expected = characteristic_function(network()(inputs("root")[0]).detach(), normal(13, F, D))
    for phi, _ in results:
        close(phi, expected)
    if kind == "wrapped":
        # A buffer is not: where it was before the last piece is where the first process was.
        own = [part(torch.arange(N), "x", "uneven", r, launched[0]) for r in range(launched[0])]
        wrong = [seen.item() for _, seen in results]
        assert wrong != [len(rows) for rows in own]
