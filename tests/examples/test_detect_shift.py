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


# What people give it


def save(tmp_path, name, x, **options):
    path = tmp_path / name
    np.save(path, x, **options)
    return str(path)


@pytest.mark.parametrize(
    ("offset", "unit"), [(1.7e9, 1.0), (1.7e12, 1.0), (-5e7, 1e-3), (0.0, 1.0), (20260101.0, 5.0)]
)
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_numbers_far_from_zero(tmp_path, offset, unit, moved):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(200, 1)), rng.normal(size=(150, 1)) + moved
    files = []
    for name, x in (("old", old), ("new", new)):
        files += [f"--{name}", save(tmp_path, f"{name}.npy", offset + unit * x)]
    (case,) = run(tmp_path, *files)["cases"].values()
    assert (case["pvalue"] <= 0.05) == bool(moved)
    # The wavelength is in the unit of the data: as large as their spread, not as their offset.
    assert 0.1 * unit < case["wavelength"] < 100 * unit


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16, np.float32, bool, ">f8"])
@pytest.mark.parametrize("shape", [(60,), (60, 2), (60, 2, 3)])
def test_any_numbers_of_any_axes(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    sides = [(2 * rng.random((*shape,))).round().astype(dtype) for _ in range(2)]
    files = ["--old", save(tmp_path, "o.npy", sides[0]), "--new", save(tmp_path, "n.npy", sides[1])]
    (case,) = run(tmp_path, *files)["cases"].values()
    assert 0 < case["pvalue"] <= 1


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.npy"
    x = np.random.default_rng(0).normal(size=(30, 2))
    match kind:
        case "nan":
            x[7, 1] = np.nan
        case "infinite":
            x[3, 0] = -np.inf
        case "objects":
            x = np.array([[1], ["a", 2]], dtype=object)
        case "words":
            x = np.array([["a", "b"]] * 5)
        case "complex":
            x = x + 1j
        case "one row":
            x = x[:1]
        case "no rows":
            x = x[:0]
        case "a number":
            x = np.float64(3)
        case "other width":
            x = x[:, :1]
    match kind:
        case "missing":
            return path
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("1,2,3\n")
        case "empty":
            path.write_bytes(b"")
        case "archive":
            path = tmp_path / "archive.npz"
            np.savez(path, first=x, second=x)
        case _:
            np.save(path, x, allow_pickle=True)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("folder", "directory"),
        ("text", "no .npy file"),
        ("empty", "cannot be read"),
        ("cut off", "cannot be read"),
        ("archive", "archive of arrays (first, second)"),
        ("objects", "Python objects"),
        ("words", "must hold real numbers"),
        ("complex", "must hold real numbers"),
        ("nan", "row 7, column 1 is nan"),
        ("infinite", "row 3, column 0 is -inf"),
        ("one row", "two rows at least"),
        ("no rows", "two rows at least"),
        ("a number", "two rows at least"),
        ("other width", "must agree"),
    ],
)
@pytest.mark.parametrize("side", ["old", "new"])
def test_what_cannot_be_compared_is_said_in_a_line(tmp_path, kind, message, side):
    good = save(tmp_path, "good.npy", np.random.default_rng(1).normal(size=(30, 2)))
    bad = broken(tmp_path, kind)
    files = {"old": good, "new": good, side: str(bad)}
    with pytest.raises(ValueError, match=side) as raised:
        run(tmp_path, "--old", files["old"], "--new", files["new"])
    said = str(raised.value)
    assert message in said
    assert f"--{side} {bad}" in said
    assert "\n" not in said


def test_a_column_that_never_changes(tmp_path):
    rng = np.random.default_rng(0)
    old, new = (np.hstack([rng.normal(size=(60, 1)), np.full((60, 1), 7.0)]) for _ in range(2))
    files = ["--old", save(tmp_path, "old.npy", old), "--new", save(tmp_path, "new.npy", new)]
    (case,) = run(tmp_path, *files)["cases"].values()
    assert case["pvalue"] > 0.05


def test_nothing_changes_at_all(tmp_path):
    same = save(tmp_path, "same.npy", np.ones((20, 2)))
    (case,) = run(tmp_path, "--old", same, "--new", same)["cases"].values()
    assert case["pvalue"] == 1
