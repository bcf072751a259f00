"""The Triton kernels: their checks, their compilation for real targets, and their switch.

What they compute is in `triton_checks.py`; the interpreter that runs it here says nothing of
compilation, so that is tested by itself: it needs no GPU.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ncfd
from ncfd import ops
from ncfd.ops import _fused

ROOT = Path(__file__).resolve().parents[1]

TRITON = importlib.util.find_spec("triton") and importlib.metadata.version("triton")
needs_triton = pytest.mark.skipif(
    not TRITON or tuple(map(int, TRITON.split(".")[:2])) < _fused.OLDEST,
    reason="Triton is not installed, or too old for the kernels",
)


@needs_triton
@pytest.mark.parametrize(
    "interpreted",
    [
        pytest.param(True, id="interpreter"),
        pytest.param(False, id="device", marks=pytest.mark.cuda),
    ],
)
def test_kernels_pass_their_checks(interpreted: bool) -> None:
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreted))}
    file = str(ROOT / "tests" / "triton_checks.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------
# Compilation
# ------------------------------------------------------------------------------------------------

SUMS = {"WEIGHTED": True}
GRADIENT = {"SHIFTS_A": True, "SCALED": True, "WANTS_ROWS": True, "WANTS_SIN": False}
WEIGHTS = {"SHIFTS_A": False, "SCALED": True, "WANTS_ROWS": True, "WANTS_SIN": True}

compiled = [
    pytest.param(dim, precision, arch, kernel, marks=() if quick else pytest.mark.slow)
    for dim in (1, 32, 64, 100, 128, 256, 512)
    for precision in ("ieee", "tf32x3", "tf32")
    for arch in (80, 90)
    for kernel in ("sums", "gradient", "weights")
    # Seconds each: one of every tile and way here, all of them by hand.
    for quick in [
        (dim, precision, arch, kernel)
        in (
            (1, "ieee", 80, "sums"),
            (100, "ieee", 90, "gradient"),
            (128, "tf32x3", 90, "weights"),
            (512, "tf32", 90, "gradient"),
        )
    ]
]


@needs_triton
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter"
)
@pytest.mark.parametrize(("dim", "precision", "arch", "kernel"), compiled)
def test_kernels_compile_for_their_targets(
    dim: int,
    precision: str,
    arch: int,
    kernel: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To machine code, by the assembler that Triton brings: what a GPU would run."""
    knobs = pytest.importorskip("triton.knobs", reason="older than the list of its tools")
    for tool in (knobs.nvidia.ptxas, knobs.nvidia.cuobjdump):
        if not Path(tool.path).exists():
            pytest.skip(f"no assembler here: {tool.path}")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ncfd.ops import _triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = _triton._sums_kernel if kernel == "sums" else _triton._gradient_kernel
    flags = {"sums": SUMS, "gradient": GRADIENT, "weights": WEIGHTS}[kernel]
    tile = _triton.tiles(dim, gradient=kernel != "sums")
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    sizes = ("A", "C", "F", "N", "D", "stretch")
    kinds = {
        p.name: "constexpr" if p.is_constexpr else "i32" if p.name in sizes else "*fp32"
        for p in function.params
    }
    # As Triton does at a launch: it notes what starts at, or is, a multiple of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(kinds.items())
        if kind == "*fp32" or (name == "D" and dim % 16 == 0)
    }
    source = ASTSource(function, kinds, flags | tile | {"PRECISION": precision}, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

    file = tmp_path / "kernel.cubin"
    file.write_bytes(built.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    # Registers beyond 255 spill into memory, through the stack; a few bytes cost nothing.
    assert 32 <= registers <= 255
    assert stack <= 64
    # What the smallest devices give one program; the largest have room for two.
    assert built.metadata.shared <= 99 * 1024
    # Tensor cores where asked for, and only there; no slow branch of a cosine.
    assert ("mma" in built.asm["ptx"]) == (precision != "ieee")
    assert "%__nv_" not in built.asm["ptx"]


# ------------------------------------------------------------------------------------------------
# The switch
# ------------------------------------------------------------------------------------------------


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_needs_no_triton() -> None:
    python("import sys, ncfd; assert 'triton' not in sys.modules")
    python(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, ncfd\n"
        "x = torch.randn(5, 3)\n"
        "ncfd.functional.ncfd_loss(x, x + 1, x)\n"
        "try: ncfd.ops.use_triton()\n"
        "except RuntimeError as error: assert 'not installed' in str(error)\n"
        "else: raise AssertionError('switched on')"
    )


def test_off_unless_switched_on() -> None:
    assert _fused._products is None
    assert not _fused.takes(torch.ones(1, 2, 3), torch.ones(1, 2, 3), None)


def test_unknown_products_are_refused() -> None:
    with pytest.raises(ValueError, match=r"products .*'ieee', 'tf32x3'.* None, got 'fp16'"):
        ops.use_triton("fp16")
    assert _fused._products is None


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_old_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.1.0")
    with pytest.raises(RuntimeError, match=r"needs Triton 3\.2 or later, found 3\.1\.0; the eager"):
        ops.use_triton()
    assert _fused._products is None


@needs_triton
@pytest.mark.parametrize("found", ["none", "7.5"])
def test_devices_that_cannot_are_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found != "none")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    capabilities = [(9, 0), (7, 5)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    with pytest.raises(RuntimeError, match=f"capability 8.0 or later, found {found}; the eager"):
        ops.use_triton()
    assert _fused._products is None


# ------------------------------------------------------------------------------------------------
# On the device
# ------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@needs_triton
def test_memory_stays_linear() -> None:
    # One phase matrix would be 3.1 GiB, a block of the eager kernels' 256 MiB.
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200_000, 32, generator=g).cuda().requires_grad_() for _ in range(2))
    t = torch.randn(4096, 32, generator=g).cuda().requires_grad_()
    gradients = sum(v.nbytes for v in (x, y, t))
    ops.use_triton("ieee")
    try:
        ncfd.functional.ncfd_loss(x, y, t).backward()  # compiles
        x.grad = y.grad = t.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ncfd.functional.ncfd_loss(x, y, t).backward()
        torch.cuda.synchronize()
        beyond = torch.cuda.max_memory_allocated() - before - gradients
    finally:
        ops.use_triton(None)
    assert beyond < 600 * 2**20
