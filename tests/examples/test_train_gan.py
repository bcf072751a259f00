"""The GAN example: both sides of the game move as they should, and the images come closer."""

import pytest
import torch
import torchvision
import train_gan

import ncfd

SMALL = [
    *("--width", "8", "--batch", "32", "--latent", "4", "--dim", "4", "--looks", "4"),
    *("--num-frequencies", "32", "--quiet"),
]


@pytest.fixture
def game():
    torch.manual_seed(0)
    critic = train_gan.Critic(1, 8, width=8, dim=4)
    loss = ncfd.NCFDLoss(ncfd.FrequencySampler(4, 32, scale=0.5, max_ratio=4.0), adversary=None)
    return critic, loss


def test_the_critic_step_raises_the_discrepancy_and_moves_psi(game, generator):
    critic, loss = game
    real = torch.rand(64, 1, 8, 8, generator=generator)
    fake = 0.5 * torch.rand(64, 1, 8, 8, generator=generator)
    players = [*critic.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(players, lr=2e-3)
    seen = [train_gan.critic_step(critic, loss, optimizer, real, fake, 10.0) for _ in range(40)]
    assert seen[-1]["loss"] > 2 * seen[0]["loss"]
    last = loss.sampler.network[-1]
    assert last.weight.grad.norm() > 0
    assert last.weight.detach().norm() > 0  # zero at the start
    with torch.no_grad():  # and ψ moves the same way as the critic: up
        before = loss(critic(real), critic(fake))
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
    for _ in range(40):
        train_gan.critic_step(critic, loss, optimizer, real, fake, 0.0)
    with torch.no_grad():
        assert loss(critic(real), critic(fake)) > before


def test_the_penalty_bounds_the_steepness(game, generator):
    critic, loss = game
    real = torch.rand(64, 1, 8, 8, generator=generator)
    fake = real * 0.9
    steep = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        critic = train_gan.Critic(1, 8, width=8, dim=4)
        loss = ncfd.NCFDLoss(ncfd.FrequencySampler(4, 32, scale=0.5, max_ratio=4.0), adversary=None)
        players = [*critic.parameters(), *loss.parameters()]
        optimizer = torch.optim.Adam(players, lr=1e-2)
        seen = [
            train_gan.critic_step(critic, loss, optimizer, real, fake, weight)["steepness"]
            for _ in range(40)
        ]
        steep[weight] = max(seen)
    assert steep[0.0] > 1.5
    assert steep[100.0] < 0.8 * steep[0.0]


def test_the_generator_step_moves_the_generator_only(game, generator):
    critic, loss = game
    torch.manual_seed(1)
    network = train_gan.Generator(4, 1, 8, width=8)
    real = torch.rand(32, 1, 8, 8, generator=generator)
    before = [p.detach().clone() for p in (*critic.parameters(), *loss.parameters())]
    start = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    fake = network(torch.randn(32, 4, generator=generator))
    train_gan.generator_step(critic, loss, optimizer, real, fake)
    after = (*critic.parameters(), *loss.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


def test_run(tmp_path, capsys):
    results = train_gan.main(["--steps", "60", "--output-dir", str(tmp_path), *SMALL])
    first, last = results["curve"][0][1], results["final"]
    assert last < 0.5 * first
    assert results["floor"]["mean"] < last
    assert max(results["scales"]) != pytest.approx(0.5, rel=1e-3)  # ψ has moved
    for name in ("samples.png", "curve.png", "results.json"):
        assert (tmp_path / name).stat().st_size > 1000
    state = torch.load(tmp_path / "generator.pt", weights_only=True)
    train_gan.Generator(4, 1, 8, width=8).load_state_dict(state)
    assert "the floor" in capsys.readouterr().out


def test_a_seed_repeats_the_curve(tmp_path):
    arguments = ["--steps", "4", "--output-dir", str(tmp_path), *SMALL]
    first, second = (train_gan.main(arguments)["curve"] for _ in range(2))
    assert first == second
    assert train_gan.main([*arguments, "--seed", "1"])["curve"] != first


def test_colour_images_from_folders(tmp_path, tree):
    (tree / "train" / "warm" / "broken.jpg").unlink()
    arguments = ["--dataset", "imagefolder", "--data-dir", str(tree), "--image-size", "16"]
    arguments += ["--steps", "2", "--output-dir", str(tmp_path / "out"), *SMALL]
    results = train_gan.main(arguments)
    assert [step for step, _ in results["curve"]] == [0, 1, 2]
    assert (tmp_path / "out" / "samples.png").exists()


def test_cifar_through_torchvision(tmp_path, monkeypatch):
    def fake(root, train, transform, download):
        assert download
        return torchvision.datasets.FakeData(40, (3, 32, 32), transform=transform)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    arguments = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--steps", "1"]
    results = train_gan.main([*arguments, "--output-dir", str(tmp_path / "out"), *SMALL])
    assert len(results["curve"]) == 2


def test_what_cannot_be(tmp_path):
    with pytest.raises(SystemExit, match="needs --data-dir"):
        train_gan.main(["--dataset", "imagefolder", "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="got 24"):
        train_gan.doublings(24)


@pytest.mark.filterwarnings("ignore:.* are at their bound")
def test_psi_can_raise_signal_while_the_critic_raises_the_loss(game, generator):
    critic, _ = game
    psi = ncfd.FrequencySampler(4, 256, scale=0.1)
    loss = ncfd.NCFDLoss(psi, adversary="signal")
    real = torch.rand(256, 1, 8, 8, generator=generator)
    fake = real[:32] * 0.5

    def found():
        with torch.no_grad():
            torch.manual_seed(3)
            return ncfd.functional.signal_discrepancy(critic(real), critic(fake), psi())

    before, start = found(), psi.scales().mean()
    optimizer = torch.optim.Adam(psi.parameters(), lr=1e-2)
    for _ in range(40):
        train_gan.critic_step(critic, loss, optimizer, real, fake, 10.0)
    assert found() > 2 * before
    assert psi.scales().mean() > start
