"""The shift example: finds what happened, where it happened, and nothing where nothing did."""

import detect_shift
import numpy as np
import pytest
import torch


def run(tmp_path, *more):
    return detect_shift.main(["--output-dir", str(tmp_path), "--permutations", "99", *more])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    return run(folder, "--old-size", "500", "--new-size", "400", "--repetitions", "5"), folder


def test_finds_shifts_and_nothing_else(results):
    cases = results[0]["cases"]
    assert max(cases["less contrast"]["pvalues"]["ncfd"]) <= 0.05
    assert np.median(cases["a bright row"]["pvalues"]["ncfd"]) <= 0.1
    # With five repetitions all below 5 %, the chance under the hypothesis is 3e-7; the median
    # below it, 1e-3.
    for nothing in ("nothing", "half the size"):
        assert np.median(cases[nothing]["pvalues"]["ncfd"]) > 0.05


def test_writes_what_it_says(results):
    _, folder = results
    assert (folder / "shift.png").stat().st_size > 1000
    assert (folder / "results.json").exists()


def test_says_along_which_direction(tmp_path, generator, capsys):
    old = torch.randn(300, 5, generator=generator)
    new = torch.randn(200, 5, generator=generator)
    new[:, 3] += 1
    for name, x in (("old", old), ("new", new)):
        np.save(tmp_path / f"{name}.npy", x.numpy())
    files = ["--old", str(tmp_path / "old.npy"), "--new", str(tmp_path / "new.npy")]
    (case,) = run(tmp_path, *files)["cases"].values()
    assert case["pvalue"] == 0.01  # the smallest with 99 permutations
    assert case["direction"][3] > 0.9  # from old to new
    assert case["phase_share"] > 0.8  # it has moved, no more
    assert case["direction_share"] > 0.5
    shown = capsys.readouterr().out
    assert "x[3]" in shown
    assert "For comparison" in shown


def test_says_whether_location_or_spread(tmp_path, generator):
    old, new = (torch.randn(400, 3, generator=generator) for _ in range(2))
    np.save(tmp_path / "old.npy", old.numpy())
    np.save(tmp_path / "new.npy", (new * torch.tensor([2.0, 1.0, 1.0])).numpy())
    files = ["--old", str(tmp_path / "old.npy"), "--new", str(tmp_path / "new.npy")]
    (case,) = run(tmp_path, *files)["cases"].values()
    assert case["pvalue"] == 0.01
    assert abs(case["direction"][0]) > 0.9
    assert case["phase_share"] < 0.3
    # Blind to it: the means agree.
    assert case["pvalues"]["mean"][0] > 0.01


def test_the_files_come_together(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--old", "old.npy")
    assert "come together" in capsys.readouterr().err
