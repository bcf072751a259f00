"""Files that are either complete or absent: written beside their name, flushed, then renamed."""

import io
import os
from pathlib import Path
from typing import Any

import torch


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave what was there (a full disk, a kill) untouched."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the last one that was written is kept" if path.exists() else "there is none yet"
        raise OSError(
            error.errno, f"could not write {path} ({error.strerror or error}); {kept}"
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)  # the new name itself has to reach the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dictionaries."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load what `save` wrote. Never runs code from the file."""
    content = io.BytesIO(path.read_bytes())
    try:
        state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        what = f"{path} is damaged ({error}); delete it to start that stage again"
        raise ValueError(what) from error
    return state
