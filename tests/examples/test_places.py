"""Machines without a home, without fsync, without Unix."""

import builtins
import errno
import importlib
import os
from pathlib import Path

import distill_cifar
import numpy as np
import pytest
import torch
from distillation import cache, checkpoint, memory, options, outputs

TINY = [
    *("--dataset", "digits", "--method", "random", "--ipc", "1", "--no-baselines"),
    *("--width", "4", "--depth", "2", "--batch-real", "4"),
    *("--eval-epochs", "1", "--eval-runs", "1", "--device", "cpu"),
]


@pytest.fixture
def homeless(monkeypatch):
    for name in ("HOME", "USERPROFILE", "HOMEPATH", "HOMEDRIVE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown number


def test_without_a_home_nothing_is_kept_and_it_says_so(homeless, tree, tmp_path, capsys):
    more = ["--dataset", "imagefolder", "--data-dir", str(tree), "--image-size", "16"]
    folder = tmp_path / "run"
    distill_cifar.main([*TINY, *more, "--output-dir", str(folder)])
    assert (folder / "results.json").exists()
    assert "set HOME or XDG_CACHE_HOME" in capsys.readouterr().err


def test_without_a_home_the_cache_is_empty(homeless, capsys):
    cache.write("x/y", b"1")
    assert cache.read("x/y") is None
    assert cache.read_rows("x/y") is None
    with pytest.raises(OSError, match="no home folder"):
        cache.write_rows("x/y", [np.zeros((1, 2), np.uint8)], 1, (2,))
    assert "could not be kept" in capsys.readouterr().err


def test_a_download_without_a_home_asks_for_a_folder(homeless):
    with pytest.raises(ValueError, match="--data-dir PATH: there is no home folder"):
        distill_cifar.load("cifar10", None, 32, torch.device("cpu"))


@pytest.mark.parametrize("option", ["--output-dir", "--data-dir", "--zoo"])
@pytest.mark.parametrize("form", ["{}={}", "{} {}"])
def test_a_tilde_is_the_home_folder(monkeypatch, option, form):
    monkeypatch.setenv("HOME", "/somewhere")
    args = options.parser().parse_args(form.format(option, "~/x").split())
    assert getattr(args, option[2:].replace("-", "_")) == Path("/somewhere/x")


def test_a_home_that_is_not_there_is_an_error_of_the_option(capsys):
    with pytest.raises(SystemExit):
        options.parser().parse_args(["--output-dir=~nobody-of-that-name/x"])
    assert "there is no such home folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_file_system_that_refuses_fsync(tmp_path, monkeypatch, call, number):
    def refuses(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuses)
    checkpoint.write_bytes(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_disk_that_fails_is_still_an_error(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="could not write"):
        checkpoint.write_bytes(tmp_path / "x", b"1")


def test_without_what_only_unix_has(tmp_path, monkeypatch):
    real_import, real_open = builtins.__import__, os.open

    def imports(name, *more):
        if name in ("resource", "fcntl"):
            raise ImportError(name)
        return real_import(name, *more)

    def opens(path, *more, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "a folder")
        return real_open(path, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", imports)
        patch.setattr(os, "open", opens)
        importlib.reload(memory)
        assert memory.peak_memory(torch.device("cpu")) == 0
        results = distill_cifar.main([*TINY, "--output-dir", str(tmp_path / "run")])
        assert results["peak_memory_bytes"] == 0
        with outputs.locked(tmp_path):
            pass
    importlib.reload(memory)
    assert memory.peak_memory(torch.device("cpu")) > 0
