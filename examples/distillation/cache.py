"""Files that save work and may vanish: decoded images and trained networks, each with a checksum.

Everything here may be deleted at any time. A file is written under a name of its own and renamed,
so a reader sees all of it or nothing, and two processes that write the same one do no harm.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm


def folder() -> Path:
    """Return `$XDG_CACHE_HOME/ncfd`, by default `~/.cache/ncfd`.

    Raises:
        OSError: there is no home, as for a bare number of a user in a container.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given).expanduser() / "ncfd"
    try:
        return Path.home() / ".cache" / "ncfd"
    except (RuntimeError, KeyError) as error:
        raise OSError("there is no home folder; set HOME or XDG_CACHE_HOME") from error


def key(*parts: object) -> str:
    """Name a result by all that it depends on."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:24]


# ------------------------------------------------------------------------------------------------
# Small things: bytes
# ------------------------------------------------------------------------------------------------


def write(name: str, content: bytes) -> None:
    """Keep `content` under `name`; where that is not possible, say so and go on."""
    path = Path(name)
    try:
        path = folder() / name
        with _new_file(path) as file:
            file.write(_digest([content]).encode())
            file.write(content)
    except OSError as error:
        report(f"{path} could not be kept for the next run ({error.strerror or error})")


def read(name: str) -> bytes | None:
    """Return what was kept under `name`, or None; a damaged file is deleted and named."""
    try:
        path = folder() / name
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:32], stored[32:]
    if digest != _digest([content]).encode():
        _discard(path)
        return None
    return content


# ------------------------------------------------------------------------------------------------
# Large ones: arrays in a memory map
# ------------------------------------------------------------------------------------------------


def write_rows(
    name: str, rows: Iterable[np.ndarray], capacity: int, row_shape: tuple[int, ...]
) -> int:
    """Write pieces (n, *row_shape) of uint8 one after another to `name`.npy. Returns their number.

    Args:
        name: of the files.
        rows: the pieces, in order.
        capacity: the most rows there can be.
        row_shape: of one row.

    Raises:
        OSError: there is no room, or no permission. Nothing is left behind.
    """
    path = folder() / f"{name}.npy"
    digest, count = hashlib.blake2b(digest_size=16), 0

    def header(file: IO[bytes], length: int) -> None:
        # NumPy leaves room in it for the number of rows to change.
        described = {"descr": "|u1", "fortran_order": False, "shape": (length, *row_shape)}
        np.lib.format.write_array_header_1_0(file, described)

    with _new_file(path) as file:
        header(file, capacity)
        start = file.tell()
        for piece in rows:
            content = np.ascontiguousarray(piece, dtype=np.uint8)
            file.write(content.data)
            digest.update(content.data)
            count += len(content)
        file.seek(0)
        header(file, count)
        assert file.tell() == start
    with _new_file(path.with_suffix(".sum")) as file:
        file.write(digest.hexdigest().encode())
    return count


def read_rows(name: str) -> np.ndarray | None:
    """Map what `write_rows` wrote into memory, or return None; a damaged file is named."""
    try:
        path = folder() / f"{name}.npy"
    except OSError:
        return None
    try:
        expected = path.with_suffix(".sum").read_text()
        # Private: PyTorch wants memory it may write to, and the file stays as it is.
        rows: np.ndarray = np.lib.format.open_memmap(path, mode="c")
    except OSError:
        if path.exists() and path.with_suffix(".sum").exists():
            _discard(path)
        return None
    except (ValueError, UnicodeDecodeError):  # no header, or shorter than it says
        _discard(path)
        return None
    if rows.dtype != np.uint8 or _digest(_pieces(rows)) != expected:
        del rows
        _discard(path)
        return None
    return rows


def _pieces(rows: np.ndarray) -> Iterable[memoryview]:
    step = max(1, (1 << 24) // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[first : first + step]).data


def write_json(name: str, value: dict[str, Any]) -> None:
    """Keep numbers and strings under `name`."""
    write(name, json.dumps(value).encode())


def read_json(name: str) -> dict[str, Any] | None:
    """Return what `write_json` kept, or None."""
    content = read(name)
    if content is None:
        return None
    value: dict[str, Any] = json.loads(content)
    return value


# ------------------------------------------------------------------------------------------------


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes `path` when all is written, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                left.unlink()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _discard(path: Path) -> None:
    report(f"{path} is damaged; it is made again")
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def report(message: str) -> None:
    """Say on stderr what became of a file of the cache."""
    tqdm.write(f"cache: {message}", file=sys.stderr)
