"""The compiled functions of the ConvNet: the numbers of PyTorch's layers, and machines without."""

import contextlib

import pytest
import torch
from distillation import cache, fused, networks, training
from distillation.randomness import generator
from torch import nn
from torch.nn import functional as F

compiled = pytest.mark.skipif(fused.library()[0] is None, reason=str(fused.library()[1]))


@pytest.fixture
def afresh():
    """Look for a compiler again, before and after."""
    fused.library.cache_clear()
    yield
    fused.library.cache_clear()


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference(x, norm):
    """In float64, from the definition. Returns what is pooled, and the sum before the ReLU."""
    x = x.double()
    centred = x - x.mean((2, 3), keepdim=True)
    normed = centred / (centred.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()
    before = normed * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    N, C, H, W = x.shape
    return before.clamp(min=0).reshape(N, C, H // 2, 2, W // 2, 2).mean((3, 5)), before


def norm_of(channels):
    norm = nn.GroupNorm(channels, channels, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=0.3)
    return norm


@compiled
@pytest.mark.parametrize(("C", "H", "W"), [(16, 2, 2), (80, 8, 4), (128, 6, 10)])
def test_norm_relu_and_pooling_are_those_of_the_definition(C, H, W):
    torch.manual_seed(C)
    norm, shift = norm_of(C), torch.randn(C).requires_grad_()
    x = (3 + 2 * torch.randn(5, C, H, W)).requires_grad_()
    slope = torch.randn(5, C, H // 2, W // 2)
    inputs = (x, norm.weight, norm.bias)
    y = fused.norm_relu_pool(x, shift, norm)
    found = torch.autograd.grad(y, (*inputs, shift), slope)
    expected, before = reference(x, norm)
    assert before.abs().min() > 1e-6  # no value so near zero that rounding decides
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=1e-5)
    wanted = torch.autograd.grad(expected, inputs, slope.double())
    for name, a, b in zip(("x", "weight", "bias"), found[:3], wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(found[3], torch.zeros(C))  # a norm takes the bias out


@compiled
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_maps_in_bfloat16_are_rounded_once(out):
    torch.manual_seed(0)
    norm = norm_of(32)
    x = torch.randn(3, 32, 8, 8).bfloat16().requires_grad_()
    slope = torch.randn(3, 32, 4, 4).to(out)
    y = fused.norm_relu_pool(x, None, norm, out)
    assert y.dtype == out
    (found,) = torch.autograd.grad(y, x, slope)
    exact = x.detach().double().requires_grad_()
    expected, _ = reference(exact, norm)
    # Half a unit in the last of eight bits, and what float32 adds.
    half = 1.001 * 2**-8
    rtol = 1e-5 if out == torch.float32 else half
    torch.testing.assert_close(y.double(), expected, atol=1e-6, rtol=rtol)
    (wanted,) = torch.autograd.grad(expected, exact, slope.double())
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=half)


@compiled
@pytest.mark.parametrize(("K", "C", "H", "W"), [(1, 16, 5, 7), (3, 48, 8, 8), (3, 128, 4, 6)])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_the_first_convolution_is_a_convolution(K, C, H, W, out):
    torch.manual_seed(K)
    x = torch.randn(3, K, H, W).requires_grad_()
    weight = torch.randn(C, K, 3, 3).requires_grad_()
    slope = torch.randn(3, C, H, W).to(out)
    y = fused.first_convolution(x, weight, out)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    bound = {"atol": 1e-5, "rtol": 1e-5 if out == torch.float32 else 2**-8}
    assert y.dtype == out
    torch.testing.assert_close(y.double(), expected, **bound)
    found = torch.autograd.grad(y, (x, weight), slope)
    wanted = torch.autograd.grad(expected, (x, weight), slope.double())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    # Each alone, as the matching and the training want them.
    y = fused.first_convolution(x, weight.detach(), out)
    assert torch.equal(torch.autograd.grad(y, x, slope)[0], found[0])
    y = fused.first_convolution(x.detach(), weight, out)
    assert torch.equal(torch.autograd.grad(y, weight, slope)[0], found[1])


def seen(enabled, monkeypatch, *, amp=False, layers=1, width=32, channels=3):
    """Features, logits and every slope of a network of two blocks."""
    monkeypatch.setattr(fused, "ENABLED", enabled)
    network = networks.ConvNet(channels, 32, 10, width=width, depth=2, amp=amp)
    assert network.is_fused(torch.zeros(1, channels, 32, 32)) == enabled
    weights = networks.initial_weights(network, generator(0))
    weights = {name: w.requires_grad_() for name, w in weights.items()}
    images = torch.randn(6, channels, 32, 32, generator=generator(1)).requires_grad_()
    features, logits = networks.run(network, weights, images, layers)
    loss = features.square().mean() + F.cross_entropy(logits, torch.arange(6))
    slopes = torch.autograd.grad(loss, [images, *weights.values()])
    named = dict(zip(["images", *weights], slopes, strict=True))
    return {"features": features, "logits": logits, **named}


@compiled
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_fused_network_is_the_plain_one(monkeypatch, layers, channels):
    plain = seen(False, monkeypatch, layers=layers, channels=channels)
    whole = seen(True, monkeypatch, layers=layers, channels=channels)
    for name, value in plain.items():
        if name in ("blocks.0.bias", "blocks.4.bias"):  # rounding errors of zero
            assert value.abs().max() < 1e-6
            assert not whole[name].any()
        else:
            error = ((whole[name] - value).norm() / value.norm()).item()
            assert error < 1e-5, (name, error)


@compiled
def test_a_fused_network_in_bfloat16_is_nearly_the_plain_one(monkeypatch):
    plain = seen(False, monkeypatch, layers=2)
    half = seen(True, monkeypatch, layers=2, amp=True)
    # As of the plain network in bfloat16: where a ReLU flips, a whole slope appears or is lost.
    for name, bound in {"features": 0.02, "logits": 0.02, "images": 0.2}.items():
        assert half[name].dtype == torch.float32
        error = ((half[name] - plain[name]).norm() / plain[name].norm()).item()
        assert 1e-4 < error < bound, (name, error)


@compiled
@pytest.mark.parametrize("amp", [False, True])
def test_fused_networks_side_by_side_are_the_networks_one_by_one(amp):
    network = networks.ConvNet(3, 32, 10, width=32, depth=2, amp=amp)
    singles = [networks.initial_weights(network, generator(k)) for k in range(3)]
    images = torch.randn(3, 6, 3, 32, 32, generator=generator(9))
    stacked = {n: w.requires_grad_() for n, w in networks.stack(singles).items()}
    together = networks.run_stacked(network, stacked, images)
    slopes = torch.autograd.grad(together.square().sum(), list(stacked.values()))
    tolerance = 0.02 if amp else 1e-5
    for k, w in enumerate(singles):
        w = {n: v.requires_grad_() for n, v in w.items()}
        logits = networks.run(network, w, images[k])[1]
        torch.testing.assert_close(together[k], logits, atol=tolerance, rtol=tolerance)
        alone = torch.autograd.grad(logits.square().sum(), list(w.values()))
        for name, a, b in zip(w, slopes, alone, strict=True):
            error = (a[k] - b).norm() / b.norm().clamp(min=1e-3)
            assert error < (0.2 if amp else 1e-4), (name, error)


@compiled
def test_the_bits_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    norm, x = norm_of(48), torch.randn(7, 48, 8, 8).requires_grad_()
    images, weight = torch.randn(7, 3, 8, 8).requires_grad_(), torch.randn(48, 3, 3, 3)
    weight.requires_grad_()

    def outcome(count):
        with threads(count):
            y = fused.norm_relu_pool(x, None, norm)
            first = torch.autograd.grad(y.square().sum(), (x, norm.weight, norm.bias))
            z = fused.first_convolution(images, weight)
            return y, *first, z, *torch.autograd.grad(z.square().sum(), (images, weight))

    for a, b in zip(outcome(1), outcome(3), strict=True):
        assert torch.equal(a, b)


@compiled
@pytest.mark.parametrize("amp", [False, True])
def test_a_fused_training_that_was_cut_off_goes_on_to_the_same_bits(
    digits, tmp_path, monkeypatch, amp
):
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    network = networks.ConvNet(1, 16, 10, width=64, depth=2, amp=amp)
    images = digits.train_images[:100]
    assert network.is_fused(digits.normalise(images))

    def trained(file, end=None):
        def after_epoch(epoch, *_):
            if epoch == end:
                raise KeyboardInterrupt

        return training.train(
            network,
            networks.stack([networks.initial_weights(network, generator(0))]),
            digits,
            images,
            digits.train_labels[:100],
            [generator("order")],
            epochs=4,
            rate=1e-3,
            schedule=training.halved_at_fifths,
            strategy=training.Strategy(),
            batch=40,
            after_epoch=after_epoch,
            unfinished=training.Unfinished(file, []),
        )

    whole = trained(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut.pt", end=3)
    assert (tmp_path / "cut.pt").exists()
    resumed = trained(tmp_path / "cut.pt")
    assert all(torch.equal(resumed[name], w) for name, w in whole.items())


# Which way is taken


def test_small_maps_and_odd_widths_stay_with_the_layers():
    cpu = torch.device("cpu")

    def why_not(width, depth, size=32):
        return fused.why_not(networks.ConvNet(3, size, 10, width, depth), cpu, size)

    assert why_not(32, 2, 16) == "the maps are small"  # the digits
    assert "divisible by 16" in why_not(40, 3)
    assert "size by 8" in fused.why_not(networks.ConvNet(3, 36, 10, 32, 3), cpu, 36)
    assert "CPU" in fused.why_not(networks.ConvNet(3, 32, 10, 32, 3), torch.device("meta"), 32)
    float64 = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    assert not networks.ConvNet(3, 32, 10, 32, 3).is_fused(float64)


@pytest.mark.parametrize("compiler", ["absent", "broken", "silent"])
def test_without_a_compiler_the_layers_do_it(monkeypatch, tmp_path, afresh, compiler):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if compiler != "absent":
        script = tmp_path / "c++"
        error = "echo 'x.cpp:1: error: no such thing' >&2; exit 1"
        script.write_text(f"#!/bin/sh\n{error if compiler == 'broken' else ''}\n")
        script.chmod(0o755)
    network = networks.ConvNet(3, 32, 10, width=32, depth=2)
    images = torch.randn(2, 3, 32, 32, generator=generator(1))
    found = network(images)
    reason = fused.why_not(network, images.device, 32)
    expected = {"absent": "no C++ compiler", "broken": "no such thing", "silent": "cannot open"}
    assert expected[compiler] in reason
    monkeypatch.setattr(fused, "ENABLED", False)
    assert all(torch.equal(a, b) for a, b in zip(found, network(images), strict=True))


@compiled
def test_what_is_compiled_is_kept(monkeypatch, afresh):
    calls = []
    original = fused._compile
    monkeypatch.setattr(fused, "_compile", lambda c: calls.append(c) or original(c))
    assert fused.library()[0] is not None
    fused.library.cache_clear()
    assert fused.library()[0] is not None
    assert len(calls) == 1
    # A damaged file is no obstacle.
    (kept,) = (cache.folder() / "compiled").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:1000])
    fused.library.cache_clear()
    assert fused.library()[0] is not None
    assert len(calls) == 2
    assert len(kept.read_bytes()) > 1000


@compiled
def test_a_cache_that_cannot_be_written_to_is_no_obstacle(monkeypatch, tmp_path, afresh):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fused.library()[0] is not None
