"""Autocast, ``torch.compile``, ``torch.func``: the same numbers under all of them."""

import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

import ncfd
from ncfd import FrequencySampler, GaussianFrequencies, NCFDLoss
from ncfd.functional import (
    amplitude_phase,
    cf_discrepancy,
    characteristic_function,
    gaussian_ncfd,
    gradient_reversal,
    ncfd_loss,
)

N, M, D, F, B = 6, 5, 3, 4, 3
X_GROUPS, Y_GROUPS = torch.arange(N) % 2, torch.arange(M) % 2
GROUPS = {"x_groups": X_GROUPS, "y_groups": Y_GROUPS, "num_groups": 3}
WEIGHTS = {
    "x_weights": torch.linspace(0.5, 2, N, dtype=torch.float64),
    "y_weights": torch.linspace(2, 0.5, M, dtype=torch.float64),
}
OPTIONS = {
    "root": {},
    "alpha": {"alpha": 0.3},
    "amplitude": {"alpha": 1.0},
    "phase": {"alpha": 0.0},
    "unbiased": {"squared": True, "unbiased": True},
    "unreduced": {"reduction": "none"},
    "weights": WEIGHTS,
    "groups": GROUPS,
    "unbiased weighted groups": GROUPS | WEIGHTS | {"squared": True, "unbiased": True},
    "chunks": {"chunk_size": 2},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def data(*batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x, y, t = normal(1, *batch, N, D), 0.4 + normal(2, *batch, M, D), 0.7 * normal(3, F, D)
    return x.to(dtype), y.to(dtype), t.to(dtype)


# --- autocast ---------------------------------------------------------------------------------


def assert_untouched_by_autocast(device: str, autocast_dtype: torch.dtype) -> None:
    x, y, t = (v.to(device).requires_grad_() for v in data(dtype=torch.float32))
    scale = torch.ones(2, D, device=device, requires_grad=True)
    functions = [
        lambda: ncfd_loss(x, y, t),
        lambda: ncfd_loss(x, y, t, alpha=0.3, chunk_size=2),
        lambda: characteristic_function(x, t).abs().sum(),
        lambda: NCFDLoss(t.detach(), normalize=True)(x, y),
        lambda: gaussian_ncfd(x, y, scale),
    ]
    for function in functions:
        expected = function()
        expected_slopes = torch.autograd.grad(expected, (x, y, t, scale), allow_unused=True)
        with torch.autocast(device, dtype=autocast_dtype):
            value = function()
            assert value.dtype == torch.float32
            # The backward inside the region is a mistake users make; it must do no harm.
            inside = torch.autograd.grad(
                value, (x, y, t, scale), allow_unused=True, retain_graph=True
            )
        outside = torch.autograd.grad(value, (x, y, t, scale), allow_unused=True)
        assert torch.equal(value, expected)
        for slopes in (inside, outside):
            for a, b in zip(slopes, expected_slopes, strict=True):
                assert (a is None) == (b is None)
                assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_the_phases(dtype: torch.dtype) -> None:
    assert_untouched_by_autocast("cpu", dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_the_phases_on_the_device(dtype: torch.dtype) -> None:
    assert_untouched_by_autocast("cuda", dtype)


def test_second_derivatives_under_autocast() -> None:
    x, y, t = (v.requires_grad_() for v in data(dtype=torch.float32))

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(ncfd_loss(x, y, t), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    expected = penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(penalty(), expected, rtol=1e-4, atol=1e-7)


def test_autocast_network_trains_through_the_loss() -> None:
    torch.manual_seed(4)
    network = nn.Linear(7, D)
    x, _, t = data(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(normal(5, M, 7, dtype=torch.float32))
        assert features.dtype == torch.bfloat16
        loss = ncfd_loss(x, features, t)
    loss.backward()
    assert loss.dtype == torch.float32
    assert network.weight.grad.dtype == torch.float32
    assert (network.weight.grad != 0).any()


# --- torch.func -------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("in_dims", [(0, 0, None), (0, None, None), (None, 0, None), (1, 1, None)])
def test_vmap_is_a_loop(options: dict, in_dims: tuple[int | None, ...]) -> None:
    x, y, t = data(B)
    arguments = [
        v if d == 0 else v.movedim(0, 1).contiguous() if d == 1 else v[0]
        for v, d in zip((x, y), in_dims[:2], strict=True)
    ]
    value = vmap(lambda x, y, t: ncfd_loss(x, y, t, **options), in_dims)(*arguments, t)
    expected = [
        ncfd_loss(
            x[0 if in_dims[0] is None else i], y[0 if in_dims[1] is None else i], t, **options
        )
        for i in range(B)
    ]
    torch.testing.assert_close(value, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_vmap_over_frequencies_weights_and_labels() -> None:
    x, y, _ = data()
    ts = 0.7 * normal(6, B, F, D)
    value = vmap(lambda t: ncfd_loss(x, y, t))(ts)
    torch.testing.assert_close(value, torch.stack([ncfd_loss(x, y, t) for t in ts]))

    weights, t = normal(7, B, N).abs(), ts[0]
    value = vmap(lambda w: ncfd_loss(x, y, t, x_weights=w))(weights)
    torch.testing.assert_close(
        value, torch.stack([ncfd_loss(x, y, t, x_weights=w) for w in weights])
    )

    labels = torch.stack([X_GROUPS, 1 - X_GROUPS, X_GROUPS.flip(0)])

    def by_label(groups: Tensor) -> Tensor:
        return torch.view_as_real(characteristic_function(x, t, groups=groups, num_groups=2))

    torch.testing.assert_close(
        vmap(by_label)(labels), torch.stack([by_label(groups) for groups in labels])
    )


def test_vmap_in_vmap() -> None:
    x, y, _ = data(B)
    ts = 0.7 * normal(8, 2, F, D)
    value = vmap(vmap(ncfd_loss, (0, 0, None)), (None, None, 0))(x, y, ts)
    expected = torch.stack([torch.stack([ncfd_loss(x[i], y[i], t) for i in range(B)]) for t in ts])
    torch.testing.assert_close(value, expected)


def test_vmap_over_a_batch_dimension_beside_another() -> None:
    x, y, t = data(2, B)
    value = vmap(lambda x, y: ncfd_loss(x, y, t))(x, y)
    assert value.shape == (2, B)
    torch.testing.assert_close(value, ncfd_loss(x, y, t))
    own = torch.stack([t, 0.5 * t, 2 * t])  # one set of frequencies per entry of the inner batch
    value = vmap(lambda x, y: ncfd_loss(x, y, own))(x, y)
    torch.testing.assert_close(value, ncfd_loss(x, y, own.expand(2, B, F, D)))


@every_option
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_func_grad_is_autograd(options: dict, argument: int) -> None:
    arguments = data()

    def function(*arguments: Tensor) -> Tensor:
        return ncfd_loss(*arguments, **options).sum()

    leaves = [v.clone().requires_grad_() for v in arguments]
    (expected,) = torch.autograd.grad(function(*leaves), leaves[argument])
    torch.testing.assert_close(grad(function, argument)(*arguments), expected)


@every_option
@pytest.mark.parametrize("in_dims", [(0, 0, None), (None, 0, None), (None, 0, 0), (0, None, 0)])
def test_gradients_per_sample(options: dict, in_dims: tuple[int | None, ...]) -> None:
    # vmap over grad: the rule of the backward operator, with shared and with own frequencies.
    x, y, t = data(B)
    t = t if in_dims[2] is None else torch.stack([t, 0.5 * t, 2 * t])
    arguments = [v if d == 0 or v is t else v[0] for v, d in zip((x, y, t), in_dims, strict=True)]

    def function(*arguments: Tensor) -> Tensor:
        return ncfd_loss(*arguments, **options).sum()

    slopes = vmap(grad(function, (0, 1, 2)), in_dims)(*arguments)
    for i in range(B):
        one = [v if d is None else v[i] for v, d in zip(arguments, in_dims, strict=True)]
        for slope, expected in zip(slopes, grad(function, (0, 1, 2))(*one), strict=True):
            torch.testing.assert_close(slope[i], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_gradients_per_sample_with_kept_and_with_recomputed_phases(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kept phases are one more batched tensor that the operator hands to its backward.
    monkeypatch.setitem(ncfd.ops.BUDGET, "kept", budget)
    x, y, t = data(B)
    slopes = vmap(grad(ncfd_loss, (0, 1, 2)), (0, 0, None))(x, y, t)
    for i in range(B):
        leaves = [v.clone().requires_grad_() for v in (x[i], y[i], t)]
        expected = torch.autograd.grad(ncfd_loss(*leaves), leaves)
        for slope, one in zip(slopes, expected, strict=True):
            torch.testing.assert_close(slope[i], one, rtol=1e-10, atol=1e-14)


def test_jacobian_and_second_derivatives() -> None:
    x, y, t = data()

    def function(y: Tensor) -> Tensor:
        return ncfd_loss(x, y, t, reduction="none")

    torch.testing.assert_close(jacrev(function)(y), torch.autograd.functional.jacobian(function, y))
    second = jacrev(jacrev(lambda y: function(y).mean()))(y)
    expected = torch.autograd.functional.hessian(lambda y: function(y).mean(), y)
    torch.testing.assert_close(second, expected)

    def penalty(y: Tensor) -> Tensor:
        return grad(lambda y: function(y).mean())(y).square().sum()

    ys = torch.stack([y, y + 0.1])
    torch.testing.assert_close(
        vmap(grad(penalty))(ys), torch.stack([grad(penalty)(one) for one in ys])
    )


def test_vmap_of_the_other_functions() -> None:
    x, y, t = data(B)
    phi_x, phi_y = characteristic_function(x, t), characteristic_function(y, t)
    for alpha in (0.3, 0.5):
        torch.testing.assert_close(
            vmap(lambda a, b, alpha=alpha: cf_discrepancy(a, b, alpha=alpha))(phi_x, phi_y),
            cf_discrepancy(phi_x, phi_y, alpha=alpha),
        )
    for a, b in zip(vmap(amplitude_phase)(phi_x), amplitude_phase(phi_x), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(vmap(gaussian_ncfd)(x, y), gaussian_ncfd(x, y))
    torch.testing.assert_close(
        vmap(grad(lambda x, y: gaussian_ncfd(x, y)))(x, y)[0],
        grad(lambda x, y: gaussian_ncfd(x, y))(x[0], y[0]),
    )
    slopes = vmap(grad(lambda t: (gradient_reversal(t, 2.0) ** 2).sum()))(x)
    torch.testing.assert_close(slopes, -4 * x)


def test_functional_call_of_the_module() -> None:
    x, y, _ = data(dtype=torch.float32)
    loss = NCFDLoss(FrequencySampler(D, 16))
    parameters = dict(loss.named_parameters())

    def function(parameters: dict[str, Tensor], y: Tensor) -> Tensor:
        torch.manual_seed(12)
        return functional_call(loss, parameters, (x, y))

    (slopes, y_slope), value = grad_and_value(function, (0, 1))(parameters, y)
    torch.manual_seed(12)
    y = y.clone().requires_grad_()
    expected = loss(x, y)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(y_slope, y.grad)
    for name, p in loss.named_parameters():
        torch.testing.assert_close(slopes[name], p.grad)


# --- torch.compile ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    # Each test compiles anew: else a later one could run into the limit on recompilations.
    torch.compiler.reset()


def assert_compiles(function, arguments: tuple[Tensor, ...], backend: str, **tolerance) -> None:
    """Value and gradients of the compiled function are those of the plain one, in one graph."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    leaves = [v.clone().requires_grad_() for v in arguments]
    value, expected = compiled(*leaves), function(*leaves)
    torch.testing.assert_close(value, expected, **tolerance)
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
    for a, b in zip(
        torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


@every_option
def test_loss_compiles_without_a_break(options: dict) -> None:
    assert_compiles(lambda x, y, t: ncfd_loss(x, y, t, **options), data(), "aot_eager")


def test_other_functions_compile_without_a_break() -> None:
    x, y, t = data()

    def phi(x: Tensor, t: Tensor) -> Tensor:
        value = characteristic_function(x, t, groups=X_GROUPS, num_groups=2)
        return torch.view_as_real(value)

    def gap(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        phi_x, phi_y = characteristic_function(x, t), characteristic_function(y, t)
        return cf_discrepancy(phi_x, phi_y, alpha=0.3) + amplitude_phase(phi_x)[0]

    assert_compiles(phi, (x, t), "aot_eager")
    assert_compiles(gap, (x, y, t), "aot_eager")
    assert_compiles(gaussian_ncfd, (x, y), "aot_eager")
    assert_compiles(lambda t: gradient_reversal(t, 2.0) ** 2, (t,), "aot_eager")


@pytest.mark.parametrize("kind", ["fixed", "gaussian", "mixture", "orthogonal mixture"])
def test_module_compiles_without_a_break(kind: str) -> None:
    x, y, t = data(dtype=torch.float32)
    sampler = {
        "fixed": t,
        "gaussian": GaussianFrequencies(D, 16, learnable=True),
        "mixture": FrequencySampler(D, 16),
        "orthogonal mixture": FrequencySampler(D, 16, method="orthogonal"),
    }[kind]
    loss = NCFDLoss(sampler, normalize=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for call in (loss, compiled):
        leaf = y.clone().requires_grad_()
        loss.zero_grad()
        torch.manual_seed(13)
        value = call(x, leaf)
        value.backward()
        results.append([value, leaf.grad, *(p.grad for p in loss.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_loss_compiles_with_inductor() -> None:
    # One of each kind through the code generator; it needs a C++ compiler and takes its time.
    options = OPTIONS["unbiased weighted groups"]

    def both(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return ncfd_loss(x, y, t, alpha=0.3) + ncfd_loss(x, y, t, **options)

    assert_compiles(both, data(), "inductor", rtol=1e-10, atol=1e-12)


def test_compiled_loss_takes_any_number_of_samples() -> None:
    compiled = torch.compile(ncfd_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    _, y, t = data()
    compiled(normal(14, 10, D), y, t)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (11, 17, 40):
            x = normal(15, n, D)
            torch.testing.assert_close(compiled(x, y, t), ncfd_loss(x, y, t))


def test_compiled_loss_under_autocast() -> None:
    x, y, t = data(dtype=torch.float32)
    compiled = torch.compile(ncfd_loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = compiled(x, y, t)
    torch.testing.assert_close(value, ncfd_loss(x, y, t), rtol=1e-6, atol=0)


def test_compiled_labels_out_of_range_are_refused() -> None:
    x, y, t = data()
    compiled = torch.compile(
        lambda groups: ncfd_loss(x, y, t, x_groups=groups, y_groups=Y_GROUPS, num_groups=2),
        backend="aot_eager",
    )
    with pytest.raises(ValueError, match=r"labels.*\[0, .*2\)"):
        compiled(X_GROUPS + 1)


@pytest.mark.cuda
@every_option
def test_compiled_on_the_device(options: dict) -> None:
    options = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    arguments = tuple(v.cuda() for v in data())
    assert_compiles(lambda x, y, t: ncfd_loss(x, y, t, **options), arguments, "inductor")
