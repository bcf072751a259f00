"""The embeddings example: collapse without the pull, none with it."""

import pytest
import regularise_embeddings as example
import torch
from torch.distributions import Independent, Normal

from ncfd.functional import ncfd_loss


def test_frequencies_are_slices(generator):
    t = example.frequencies(4000, 8, generator)
    lengths = t.norm(dim=1)
    assert lengths.max() <= 3
    assert lengths.mean().item() == pytest.approx(1.5, abs=0.06)  # σ/√4000 = 0.014
    directions = t / lengths[:, None]
    torch.testing.assert_close(
        directions.T @ directions / 4000, torch.eye(8) / 8, atol=0.02, rtol=0
    )


def test_the_pull_tells_a_normal_from_what_collapses(generator):
    t = example.frequencies(512, 8, generator)
    normal = Independent(Normal(torch.zeros(8), torch.ones(8)), 1)
    good = torch.randn(2000, 8, generator=generator)
    flat = good.clone()
    flat[:, 4:] = 0

    def pull(z):
        return ncfd_loss(normal, z, t, squared=True, unbiased=True)

    assert abs(pull(good)) < 1e-3
    for bad in (torch.zeros(2000, 8), flat, 2 * good, good + 1):
        assert pull(bad) > 10 * abs(pull(good))


def test_views_are_images_of_the_same_thing(generator):
    x = torch.zeros(200, 1, 8, 8)
    x[:, :, 2:6, 2:6] = 1
    one, two = (example.augment(x, generator) for _ in range(2))
    assert one.shape == x.shape
    assert not torch.equal(one, two)
    pairs = torch.stack([one.flatten(), two.flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.3


def test_run(tmp_path, capsys):
    arguments = ["--dim", "4", "--steps", "60", "--batch", "64", "--num-frequencies", "64"]
    results = example.main([*arguments, "--output-dir", str(tmp_path)])
    rows = results["rows"]
    alone, pulled = (rows[name]["singular_values"] for name in ("invariance", "invariance + pull"))
    assert max(alone) < 0.1  # collapsed
    assert min(pulled) > 0.3  # all dimensions in use,
    assert max(pulled) < 2  # about as wide as the standard normal
    assert rows["invariance + pull"]["accuracy"] > rows["invariance"]["accuracy"] + 10
    history = results["history"]["invariance + pull"]
    assert history[-1][1] < 0.2 * history[0][1]
    assert (tmp_path / "embeddings.png").stat().st_size > 1000
    assert (tmp_path / "results.json").exists()
    assert "effective rank" in capsys.readouterr().out


def test_a_seed_repeats_the_embeddings(tmp_path):
    arguments = ["--dim", "2", "--steps", "3", "--batch", "16", "--num-frequencies", "8"]
    first, second = (
        example.main([*arguments, "--output-dir", str(tmp_path)])["rows"] for _ in range(2)
    )
    assert first == second
