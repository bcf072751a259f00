"""Files that are either complete or absent: written beside their name, flushed, then renamed."""

import contextlib
import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

#: What a file system says that has no such call.
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`, or leave what was there (a full disk, a kill) untouched."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one that was there is kept" if path.exists() else ""
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path} ({reason}){kept}") from error
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    """Let a new name reach the disk too. Windows and some file systems cannot be asked to."""
    with contextlib.suppress(OSError):  # the file is whole under its name, whatever comes of this
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dictionaries."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load what `save` wrote. Never runs code from the file.

    Raises:
        ValueError: the file is damaged: a part of it is missing, or its checksum is wrong.
    """
    with path.open("rb") as file:  # a file that is missing or forbidden is not a damaged one
        try:
            # PyTorch's files are zip archives with a CRC-32 of every part. It does not look at it.
            with zipfile.ZipFile(file) as archive:
                wrong = archive.testzip()
            if wrong is not None:
                raise ValueError(f"wrong checksum of {wrong}")
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # whatever zipfile, pickle and PyTorch make of broken bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = f"{path} is damaged ({reason}); delete it to start that stage again"
            raise ValueError(what) from error
    return state


class Checkpoints:
    """The last state of a run that is good, and the one before it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self.good = False  # whether `path` is known to be whole

    def __str__(self) -> str:
        return f"the last good state is in {self.path}" if self.exist() else "nothing was saved yet"

    def exist(self) -> bool:
        return self.path.exists() or self.previous.exists()

    def load(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the newest state that is whole, and what was wrong with a newer one."""
        problem = None
        for path in (self.path, self.previous):
            if path.exists():
                try:
                    state = load(path)
                except ValueError as error:
                    problem = problem or str(error)
                    continue
                self.good = path == self.path
                if problem:
                    problem = f"{problem.split(';')[0]}; going on from {path.name}"
                return state, problem
        if problem:
            raise ValueError(problem)
        return None, None

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; the last one becomes the previous one. Both exist while this goes on."""
        new = self.path.with_name(f"{self.path.stem}.new{self.path.suffix}")
        try:
            save(new, state)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; {self}") from error
        if self.good:
            self.path.replace(self.previous)
        new.replace(self.path)
        self.good = True
