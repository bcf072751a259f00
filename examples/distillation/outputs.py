"""The output folder: whose it is, and that only one run writes to it."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from . import checkpoint
from .options import Config


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    The system releases the lock when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is writing to {folder}; wait for it, or give another --output-dir"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def claimed(
    folder: Path | None, config: Config, *, resume: bool, overwrite: bool
) -> Iterator[Path]:
    """Create the output folder, or make sure that the run in it is the one that is wanted."""
    if folder is None:
        name = f"{config.dataset}-{config.method}-ipc{config.ipc}-seed{config.seed}"
        folder = Path("runs") / name
    marker = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder} is a file")
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise ValueError(f"--output-dir {folder} is not empty and holds no run; give another")
    if resume and not marker.exists():
        tqdm.write(f"note: no run to resume in {folder}; this one begins at the start", sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"--output-dir {folder} cannot be made ({reason}); give another"
        ) from error
    with locked(folder):
        if marker.exists() and (overwrite or _untouched(folder)):
            _clear(folder)
        elif marker.exists():
            _compare(folder, json.loads(marker.read_text()), config, resume)
            if not resume:
                _clear(folder)  # the same options once more: the same files once more
        for part in ("images", "plots"):
            (folder / part).mkdir(exist_ok=True)
        checkpoint.write_bytes(marker, json.dumps(config.as_dict(), indent=2).encode())
        yield folder


def _compare(folder: Path, stored: dict[str, object], config: Config, resume: bool) -> None:
    """Refuse a folder with another run, or with one that has not been finished."""
    ways_out = "another --output-dir, or --overwrite to delete it"
    wanted = config.as_dict()
    differs = [
        f"{key} {stored.get(key)!r} there, {wanted.get(key)!r} here"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key)
    ]
    if differs:
        raise ValueError(
            f"{folder} holds a run with other options ({'; '.join(differs)}); give {ways_out}"
        )
    if not resume and not (folder / "results.json").exists():
        raise ValueError(
            f"{folder} holds an unfinished run of these options; give --resume to go on with it, "
            f"{ways_out}"
        )


def _untouched(folder: Path) -> bool:
    """Whether the run in a folder ended before it had made anything, say at a wrong option."""
    return not any(p.is_file() and p.name != "config.json" for p in folder.rglob("*"))


def _clear(folder: Path) -> None:
    """Delete what is in a folder, not the folder: the lock is on it. The marker goes last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
