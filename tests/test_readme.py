"""The README is a program too: its Python blocks run, in order, and what it names exists."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = list(BLOCK.finditer(TEXT))
    assert blocks, "the README shows no Python"
    monkeypatch.chdir(tmp_path)  # whatever a block writes goes away again
    state = torch.get_rng_state()
    namespace: dict[str, object] = {"__name__": "readme"}
    try:
        for block in blocks:
            # Empty lines in front, so that a traceback points into the README.
            line = TEXT.count("\n", 0, block.start(1))
            code = compile("\n" * line + block.group(1), str(README), "exec")
            exec(code, namespace)
            # The opening shows two losses for one synthetic set: both can train it.
            loss, synthetic = namespace.get("loss"), namespace.get("synthetic")
            if isinstance(loss, torch.Tensor) and isinstance(synthetic, torch.Tensor):
                (slope,) = torch.autograd.grad(loss, synthetic, retain_graph=True)
                assert slope.isfinite().all()
                assert (slope != 0).any()
    finally:
        torch.set_rng_state(state)


def test_files_named_exist() -> None:
    paths = set(re.findall(r"\bpython ((?:[\w-]+/)+[\w-]+\.py)", TEXT))
    paths |= set(re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT))  # relative links
    assert paths
    missing = sorted(path for path in paths if not (README.parent / path).exists())
    assert not missing
