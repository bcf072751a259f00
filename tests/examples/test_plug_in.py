"""The plug-in example: the two steps differ where it says, and both do their work."""

import plug_in
import pytest
import torch
from torch import nn

import ncfd

SMALL = ["--ipc", "2", "--iterations", "25", "--eval-steps", "10", "--eval-runs", "1"]


@pytest.fixture
def problem(generator):
    """No network, ten classes of real rows in the plane, two synthetic rows of each anywhere."""
    real_y = torch.arange(10).repeat(12)
    real = 0.1 * torch.randn(120, 2, generator=generator) + real_y[:, None] / 5
    real[::2] += torch.tensor([1.0, -1.0])
    y = torch.arange(10).repeat(2)
    images = torch.randn(20, 2, generator=generator).requires_grad_()
    return nn.Identity(), images, y, real, real_y


def test_the_steps_differ_in_signature_and_loss_only():
    lines = plug_in.difference().splitlines()
    assert [line[0] for line in lines].count("-") == 2
    assert [line[0] for line in lines].count("+") == 2
    assert all("def " in line or "loss = " in line for line in lines)


def test_class_means(problem):
    _, _, _, real, real_y = problem
    means = plug_in.class_means(real, real_y)
    for c in range(10):
        torch.testing.assert_close(means[c], real[real_y == c].mean(0))


def test_both_steps_lower_their_loss(problem):
    network, start, y, real, real_y = problem
    images = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    means = [
        plug_in.mean_matching_step(network, optimizer, images, y, real, real_y) for _ in range(150)
    ]
    assert means[-1] < 1e-2 * means[0]

    t = ncfd.GaussianFrequencies(2, 128)(torch.Generator().manual_seed(0))
    images = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    losses = [
        plug_in.ncfd_matching_step(
            network, optimizer, images, y, real, real_y, ncfd.NCFDLoss(t, squared=True)
        )
        for _ in range(150)
    ]
    assert losses[-1] < 0.2 * losses[0]


def test_psi_gets_a_gradient_of_the_step(problem):
    network, images, y, real, real_y = problem
    torch.manual_seed(0)
    loss = ncfd.NCFDLoss(ncfd.FrequencySampler(2, 64))
    optimizer = torch.optim.SGD([images, *loss.parameters()], lr=0.1)
    plug_in.ncfd_matching_step(network, optimizer, images, y, real, real_y, loss)
    last = loss.sampler.network[-1]
    assert last.weight.grad.norm() > 0
    assert last.weight.detach().norm() > 0  # zero before the step


def test_run(tmp_path, capsys):
    arguments = ["--seeds", "2", "--output-dir", str(tmp_path), *SMALL]
    results = plug_in.main(arguments)
    assert (tmp_path / "images.png").stat().st_size > 1000
    assert (tmp_path / "results.json").exists()
    # Matching moves random images closer to those held out, in pixels, which it does not minimise.
    start = results["distance"]["random real images"]["mean"]
    for method in ("mean matching", "NCFDLoss"):
        assert results["distance"][method]["mean"] < 0.9 * start
        assert results["accuracy"][method]["mean"] > 30
    shown = capsys.readouterr().out
    assert "NCFDLoss" in shown
    assert "-    loss = " in shown

    again = plug_in.main([*arguments, "--held-out", "validation"])
    assert again["distance"]["NCFDLoss"]["mean"] != results["distance"]["NCFDLoss"]["mean"]


def test_a_seed_repeats_everything(tmp_path):
    arguments = ["--seeds", "1", "--seed", "3", "--output-dir", str(tmp_path), *SMALL]
    first, second = (plug_in.main(arguments) for _ in range(2))
    assert first["accuracy"] == second["accuracy"]
    assert first["distance"] == second["distance"]
