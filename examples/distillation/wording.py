"""Text from outside, such as the name of a folder, made fit for where it is shown."""

import contextlib
import io
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0

#: Joiners that scripts and emoji need. Other invisible characters can hide or reorder text.
_JOINERS = "\u200c\u200d"


def shown(text: str) -> str:
    """Return text that can be printed and encoded: line breaks, bytes that are no UTF-8 and the
    like as escapes of Python.
    """
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text
    )


def markdown(text: str) -> str:
    """Return what Markdown, and the HTML made of it, show as `text` in one line."""
    text = re.sub(r"([\\`*_{}\[\]#!])", r"\\\1", shown(text))
    text = re.sub(r"^(\s*\d*)([-+.)=])", r"\1\\\2", text)  # or it begins a list
    for character, entity in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("$", "&#36;"),
        ("~", "&#126;"),
    ):
        text = text.replace(character, entity)
    return text


def fenced(text: str, language: str = "") -> list[str]:
    """Return the lines of a block of code, its fence longer than any row of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence + language, text, fence]


def print_anything() -> None:
    """Let a terminal that lacks a character, say of cp1252, show its escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def progress_in_lines() -> None:
    """Where the output is no terminal, write a line of progress now and then.

    A bar rewrites its line with carriage returns, which a file keeps all of.
    """
    if sys.stderr is None or sys.stderr.isatty() or tqdm.status_printer.__name__ == "printer":
        return

    def printer(file: IO[str]) -> Callable[[str], None]:
        last = -math.inf

        def show(text: str) -> None:
            nonlocal last
            now = time.monotonic()
            if text.strip() and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                file.write(text.strip() + "\n")
                file.flush()

        return show

    @contextlib.contextmanager
    def unchanged(*_: object, **__: object) -> Iterator[None]:
        yield

    close = tqdm.close

    def closed(bar: tqdm) -> None:
        if not bar.disable:
            bar.fp = io.StringIO()  # for the return or the empty line at its end
        close(bar)

    # For every bar there is, those of other modules too: nothing has to be erased any more.
    tqdm.status_printer = staticmethod(printer)
    tqdm.close = closed
    tqdm.clear = lambda *_, **__: None
    tqdm.external_write_mode = unchanged


@contextlib.contextmanager
def forgiven(what: object) -> Iterator[None]:
    """Say in a line that something beside the results could not be made, and go on."""
    try:
        yield
    except Exception as error:  # whatever a drawing library makes of odd names
        reason = " ".join(str(error).split()) or type(error).__name__
        tqdm.write(f"warning: {shown(f'{what} could not be made ({reason[:200]})')}", sys.stderr)
