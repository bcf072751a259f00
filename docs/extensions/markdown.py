"""Markdown for the guide: ``$formula$``, ``$$formula$$`` and ``[text](api:ncfd.symbol)``.

An ordinary Python-Markdown extension, so that every tool built on Python-Markdown can read the
guide. Pages lie in one folder, which is why a link to the API is the same from each of them.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

from extensions.latex import to_mathml

#: Set by ``docs/build.py`` to the inventory of the API reference just built.
INVENTORY = "NCFD_API_INVENTORY"


class _InlineMath(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802, ARG002 - the name and the signature are its base class's
        mathml = to_mathml(m.group(1), display=False)
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


class _DisplayMath(BlockProcessor):
    _FENCED = re.compile(r"^\$\$(.+?)\$\$\s*$", re.DOTALL)

    def test(self, parent: Element, block: str) -> bool:  # noqa: ARG002 - the signature is shared
        return bool(self._FENCED.match(block))

    def run(self, parent: Element, blocks: list[str]) -> None:
        match = self._FENCED.match(blocks.pop(0))
        assert match is not None
        formula = f'<div class="formula">{to_mathml(match.group(1), display=True)}</div>'
        paragraph = Element("p")
        paragraph.text = self.parser.md.htmlStash.store(formula)
        parent.append(paragraph)


class _ApiLinks(Treeprocessor):
    """Replace ``api:symbol`` by the address that the inventory gives for it."""

    def __init__(self, md: Markdown, addresses: dict[str, str] | None) -> None:
        super().__init__(md)
        self.addresses = addresses

    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            target = link.get("href", "")
            if not target.startswith("api:"):
                continue
            name = target.removeprefix("api:")
            if not name:
                link.set("href", "api/index.html")
            elif self.addresses is None:  # the guide alone, without the reference
                link.set("href", f"api/index.html#{name}")
            elif name in self.addresses:
                link.set("href", f"api/{self.addresses[name]}")
            else:
                raise ValueError(f"the API reference has no symbol {name!r}")


class _CodeBreaks(Treeprocessor):
    """Inline code breaks after a slash, and not after the hyphens of ``--an-option``."""

    _PLACES = re.compile(r"(?<!\S)--?[A-Za-z][\w-]*|(?<=\w/)(?=\w)")

    def run(self, root: Element) -> None:
        for code in root.iter("code"):
            if len(code) or not code.text or not self._PLACES.search(code.text):
                continue
            text, code.text = str(code.text), None
            end, last = 0, None
            for place in self._PLACES.finditer(text):
                _append(code, last, text[end : place.start()])
                if option := place.group():
                    last = SubElement(code, "span", {"class": "whole"})
                    last.text = AtomicString(option)
                else:
                    last = SubElement(code, "wbr")
                end = place.end()
            _append(code, last, text[end:])


def _append(parent: Element, last: Element | None, text: str) -> None:
    if last is None:
        parent.text = AtomicString(text)
    else:
        last.tail = AtomicString(text)


def read_inventory(path: Path) -> dict[str, str]:
    """Full name to address, from a Sphinx ``objects.inv`` (version 2)."""
    data = path.read_bytes()
    for _ in range(4):  # four header lines, then one compressed block
        _, _, data = data.partition(b"\n")
    addresses = {}
    for line in zlib.decompress(data).decode().splitlines():
        name, role, _, address, _ = line.split(" ", 4)
        if role.startswith("py:"):
            addresses[name] = address.replace("$", name)
    return addresses


class NcfdMarkdown(Extension):
    """Registers the four."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is its base class's
        inventory = os.environ.get(INVENTORY)
        addresses = read_inventory(Path(inventory)) if inventory else None
        # Before backslash escapes (180): LaTeX is full of backslashes. After code spans (190).
        md.inlinePatterns.register(
            _InlineMath(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$", md), "ncfd-math", 185
        )
        md.parser.blockprocessors.register(_DisplayMath(md.parser), "ncfd-display-math", 85)
        # Last, after MkDocs has resolved the links between pages.
        md.treeprocessors.register(_ApiLinks(md, addresses), "ncfd-api-links", -10)
        md.treeprocessors.register(_CodeBreaks(md), "ncfd-code-breaks", -20)


def makeExtension(**options: object) -> NcfdMarkdown:  # noqa: N802 - the name is its base class's
    """Entry point of Python-Markdown."""
    return NcfdMarkdown(**options)
