"""The embeddings example: collapse without what it adds, none with it."""

import pytest
import regularise_embeddings as example
import torch


def test_frequencies_are_slices(generator):
    t = example.frequencies(4000, 8, generator)
    lengths = t.norm(dim=1)
    assert lengths.max() <= 3
    assert lengths.mean().item() == pytest.approx(1.5, abs=0.06)  # σ/√4000 = 0.014
    directions = t / lengths[:, None]
    torch.testing.assert_close(
        directions.T @ directions / 4000, torch.eye(8) / 8, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("kind", ["pull", "sigreg"])
def test_it_tells_a_normal_from_what_collapses(kind, generator):
    options = example.parse(["--num-frequencies", "512", "--num-slices", "512"])
    regulariser = getattr(example, kind)(options)
    good = torch.randn(2, 2000, 8, generator=generator)
    flat = good.clone()
    flat[..., 4:] = 0
    # Of normal samples: nothing but noise without bias, about 1.05 times the weight for SIGReg.
    small = {"pull": 1e-3 * options.weight, "sigreg": 2 * options.sigreg_weight}[kind]
    assert abs(regulariser(good, generator)) < small
    for bad in (torch.zeros(2, 2000, 8), flat, 2 * good, good + 1):
        assert regulariser(bad, generator) > 10 * small


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
    arguments += ["--num-slices", "64", "--sigreg-weight", "0.2"]  # its value is in units of 1/N
    results = example.main([*arguments, "--output-dir", str(tmp_path)])
    rows = results["rows"]
    assert max(rows["invariance"]["singular_values"]) < 0.1  # collapsed
    for name in ("invariance + pull", "invariance + SIGReg"):
        pulled = rows[name]["singular_values"]
        assert min(pulled) > 0.3  # all dimensions in use,
        assert max(pulled) < 2  # about as wide as the standard normal
        assert rows[name]["accuracy"] > rows["invariance"]["accuracy"] + 10
        history = results["history"][name]
        assert history[-1][1] < 0.2 * history[0][1]
    assert (tmp_path / "embeddings.png").stat().st_size > 1000
    assert (tmp_path / "results.json").exists()
    assert "effective rank" in capsys.readouterr().out


def test_a_seed_repeats_the_embeddings(tmp_path):
    arguments = ["--dim", "2", "--steps", "3", "--batch", "16", "--num-frequencies", "8"]
    arguments += ["--num-slices", "8"]
    first, second = (
        example.main([*arguments, "--output-dir", str(tmp_path)])["rows"] for _ in range(2)
    )
    assert first == second
