"""LaTeX to MathML, which browsers draw by themselves: no script and no font to load."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# A command or an alignment mark that was not understood survives as an identifier.
_LEFTOVER = re.compile(r"<m\w+[^>]*>\s*(\\[A-Za-z]+|&)\s*</m\w+>")

# Browsers draw MathML Core, which has no double-struck variant: the letters have code points.
_DOUBLE_STRUCK = re.compile(r'<mi mathvariant="double-struck">([A-Z])</mi>')
_LETTERS = {"C": "ℂ", "E": "𝔼", "N": "ℕ", "P": "ℙ", "R": "ℝ", "Z": "ℤ"}

# Brackets and relations that the converter marks as identifiers, and so sets in wrong spacing.
_OPERATORS = {
    "<mi>&#x027E8;</mi>": '<mo stretchy="false" form="prefix">⟨</mo>',
    "<mi>&#x027E9;</mi>": '<mo stretchy="false" form="postfix">⟩</mo>',
    "<mi>&#x0007E;</mi>": "<mo>∼</mo>",
    # A bar has no side, so it takes space on both; in |φ| it should take none.
    '<mo stretchy="false">&#x0007C;</mo>': '<mo stretchy="false" lspace="0" rspace="0">|</mo>',
    "<mo>&#x0007C;</mo>": '<mo stretchy="false" lspace="0" rspace="0">|</mo>',
    "<mo>&#x02016;</mo>": '<mo stretchy="false" lspace="0" rspace="0">‖</mo>',
}


def to_mathml(latex: str, *, display: bool) -> str:
    """A ``<math>`` element; raises ``ValueError`` for what has no translation."""
    mathml = convert(latex.strip(), display="block" if display else "inline")
    unknown = _LEFTOVER.search(mathml)
    if unknown:
        raise ValueError(f"no MathML for {html.unescape(unknown.group(1))} in {latex!r}")
    for wrong, right in _OPERATORS.items():
        mathml = mathml.replace(wrong, right)
    return _DOUBLE_STRUCK.sub(lambda match: f"<mi>{_LETTERS[match.group(1)]}</mi>", mathml)
