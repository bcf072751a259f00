"""The public names and their signatures are those on record: changing the contract is a decision.

After a change that is meant, write the record anew and commit it with the change, and with its line
in CHANGELOG.md:

    python tests/test_api.py
"""

import difflib
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

RECORD = Path(__file__).with_name("api.txt")
MODULES = ("ncfd", "ncfd.functional", "ncfd.distributions", "ncfd.metrics")
WIDTH = 100


def annotation(value: object) -> str:
    """As written in the source: the package keeps its annotations as strings."""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def parameters(signature: inspect.Signature) -> Iterator[str]:
    """Each parameter as in a ``def``, and the ``/`` and ``*`` between the kinds of them."""
    before = None
    for p in signature.parameters.values():
        if before == p.POSITIONAL_ONLY != p.kind:
            yield "/"
        if p.kind == p.KEYWORD_ONLY and before not in (p.KEYWORD_ONLY, p.VAR_POSITIONAL):
            yield "*"
        text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        text += "" if p.annotation is p.empty else f": {annotation(p.annotation)}"
        yield text + ("" if p.default is p.empty else f" = {p.default!r}")
        before = p.kind


def signature_text(head: str, function: object) -> str:
    """One line; one parameter a line where that is too long, so that a change shows as a line."""
    signature = inspect.signature(function)
    returns = signature.return_annotation
    tail = "" if returns is signature.empty else f" -> {annotation(returns)}"
    inside = [p for p in parameters(signature) if p != "self"]
    line = f"{head}({', '.join(inside)}){tail}"
    if len(line) <= WIDTH:
        return line
    indent = " " * (len(head) - len(head.lstrip()))
    body = "".join(f"{indent}    {p},\n" for p in inside)
    return f"{head}(\n{body}{indent}){tail}"


def class_text(head: str, cls: type) -> Iterator[str]:
    """The constructor, and the methods, properties and fields that the package itself defines."""
    base = next(b.__name__ for b in cls.__mro__[1:] if not b.__name__.startswith("_"))
    yield signature_text(f"class {head}", cls) + ("" if base == "object" else f"  # is a {base}")
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "ncfd"]
    for name in sorted({name for base in own for name in vars(base)}):
        if name.startswith("_") and name != "__call__":
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, types.FunctionType):
            yield signature_text(f"    {name}", member)
        elif isinstance(member, (classmethod, staticmethod)):
            yield signature_text(f"    {type(member).__name__} {name}", getattr(cls, name))
        elif isinstance(member, property):
            returns = inspect.signature(member.fget).return_annotation
            yield f"    property {name}: {annotation(returns)}"
        else:
            yield f"    {name} = {member!r}"


def current() -> str:
    """The record, from the package as it is."""
    lines: list[str] = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        lines += ["", f"# {module_name}", ""]
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.isclass(value):
                lines += class_text(name, value)
            elif callable(value):
                lines.append(signature_text(name, value))
            elif inspect.ismodule(value):
                lines.append(f"module {name}")
            else:
                lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines[1:]) + "\n"


def test_public_signatures_are_those_on_record() -> None:
    recorded, found = RECORD.read_text(encoding="utf-8"), current()
    change = difflib.unified_diff(
        recorded.splitlines(), found.splitlines(), "on record", "in the package", lineterm="", n=3
    )
    assert recorded == found, (
        "the public signatures changed; if that is meant, run `python tests/test_api.py`, commit "
        "tests/api.txt and add a line to CHANGELOG.md:\n" + "\n".join(change)
    )


if __name__ == "__main__":
    RECORD.write_text(current(), encoding="utf-8")
