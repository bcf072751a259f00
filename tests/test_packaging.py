"""What is installed: the files of the archives, their metadata, and the cost of the import."""

import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
import torch

import ncfd

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Every package that an extra brings and the core must do without.
OPTIONAL = ("PIL", "matplotlib", "safetensors", "scipy", "sklearn", "tensorboard", "torchmetrics")
OPTIONAL += ("torchvision", "tqdm", "hypothesis", "pytest")
BUILD = [sys.executable, "-m", "hatchling", "build"]


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code: str) -> str:
    return run(sys.executable, "-c", code)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution, built with the hatchling that is installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(*BUILD, "-d", str(folder))
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def members(source: Path) -> set[str]:
    with tarfile.open(source) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames()}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_wheel_holds_the_package_alone(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as archive:
        names = set(archive.namelist())
    info = f"ncfd-{ncfd.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"ncfd", info}
    package = {str(p.relative_to(ROOT).as_posix()) for p in (ROOT / "ncfd").rglob("*.py")}
    assert {n for n in names if n.startswith("ncfd/")} == package | {"ncfd/py.typed"}
    assert f"{info}/licenses/LICENSE" in names


def test_source_holds_what_its_tests_read(archives: tuple[Path, Path]) -> None:
    names = members(archives[1])
    for folder in ("ncfd", "tests", "examples", "benchmarks", "docs"):
        files = {p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".md", ".txt")}
        missing = {p.relative_to(ROOT).as_posix() for p in files} - names
        assert not missing
    for file in ("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "pyproject.toml"):
        assert file in names
    for unwanted in (".git", ".ci", "site", "build", "dist", "runs", ".hypothesis"):
        assert not [name for name in names if name.split("/")[0] == unwanted]
    assert not [name for name in names if "__pycache__" in name]


def test_metadata(archives: tuple[Path, Path]) -> None:
    data = metadata(archives[0])
    assert data["Version"] == ncfd.__version__
    assert data["License-Expression"] == "MIT"
    assert data["Requires-Python"] == PROJECT["requires-python"]
    assert data["Description-Content-Type"] == "text/markdown"
    required = [r for r in data.get_all("Requires-Dist") if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in required} == {"numpy", "torch"}
    assert set(data.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    # Mistakes here show only after the upload: a classifier for the licence beside the expression
    # is refused, and a link to a page that nobody made stays.
    assert not [c for c in data.get_all("Classifier") if c.startswith("License ::")]
    assert not [u for u in data.get_all("Project-URL", []) if "example" in u]


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ncfd.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]|^## \[" + re.escape(ncfd.__version__), changelog, re.M)
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["classifiers"]
    assert config["tool"]["mypy"]["python_version"] == oldest
    assert config["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def test_import_needs_no_optional_package() -> None:
    out = python(f"""
import sys
# None in place of a module: importing it fails like that of a missing one.
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import torch, ncfd
x, t = torch.randn(9, 3), torch.randn(5, 3)
ncfd.NCFDLoss(ncfd.FrequencySampler(3, 8))(x, x + 1).backward()
ncfd.two_sample_test(x, x + 1, n_permutations=9)
str(ncfd.frequency_report(x, t))
ncfd.functional.characteristic_function(torch.distributions.Normal(0.0, 1.0), t[:, :1])
try:
    import ncfd.metrics
except ImportError as error:
    print(error)
""")
    assert 'pip install "ncfd[metrics]"' in out


def test_import_is_quick() -> None:
    """Under 0.3 s over torch's own; processor time, which does not see what else is running."""
    code = (
        "import time, torch; s = time.process_time(); import ncfd; print(time.process_time() - s)"
    )
    assert min(float(python(code)) for _ in range(2)) < 0.3


@pytest.mark.slow
def test_tests_pass_from_the_unpacked_source(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """The core's tests run; those of the examples, the benchmarks and the guide are found."""
    with tarfile.open(archives[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    where = run(sys.executable, "-c", "import ncfd; print(ncfd.__file__)", cwd=root)
    assert Path(where.strip()).is_relative_to(root), "not the unpacked package"
    run(*pytest_, "--collect-only", cwd=root)
    core = ("functional", "loss", "ops", "validation", "estimator", "readme", "api")
    run(*pytest_, *(f"tests/test_{name}.py" for name in core), cwd=root)


@pytest.mark.slow
def test_archives_pass_the_checkers(archives: tuple[Path, Path]) -> None:
    """What the package index and its users would stumble over; needs the extra ``release``."""
    for module in ("twine", "check_wheel_contents", "validate_pyproject"):
        pytest.importorskip(module)
    folder = Path(sys.executable).parent
    wheel, source = map(str, archives)
    run(str(shutil.which("twine", path=folder)), "check", "--strict", wheel, source)
    run(str(shutil.which("check-wheel-contents", path=folder)), wheel)
    run(str(shutil.which("validate-pyproject", path=folder)), "pyproject.toml")


class Index(BaseHTTPRequestHandler):
    """As much of a package index as an upload and an installation need."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = message_from_bytes(
            b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body
        )
        for part in form.get_payload():
            if name := part.get_filename():
                self.files[name] = part.get_payload(decode=True)
        self.answer(b"")

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if self.path == "/simple/ncfd/":
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.files)
            self.answer(f"<html><body>{links}</body></html>".encode(), "text/html")
        elif name in self.files:
            self.answer(self.files[name])
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of an empty index, and what has been uploaded to it."""
    handler = type("EmptyIndex", (Index,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.files
        server.shutdown()


@pytest.mark.slow
def test_a_release_from_upload_to_readme(
    archives: tuple[Path, Path], index: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """What `release.yml` does after the build, against an index of its own; needs ``release``."""
    pytest.importorskip("twine")
    url, uploaded = index
    twine = str(shutil.which("twine", path=Path(sys.executable).parent))
    files = [str(path) for path in archives]
    run(twine, "check", "--strict", *files)
    credentials = ("--username", "someone", "--password", "nothing", "--non-interactive")
    run(twine, "upload", "--repository-url", f"{url}/legacy/", *credentials, *files)
    assert sorted(uploaded) == sorted(path.name for path in archives)

    # A fresh environment that has PyTorch and NumPy already, as a user's has.
    venv.create(tmp_path / "user", with_pip=True)
    fresh = tmp_path / "user" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    own = Path(run(str(fresh), "-c", "import site; print(site.getsitepackages()[0])").strip())
    theirs = {str(Path(module.__file__).parents[1]) for module in (numpy, torch)}
    (own / "theirs.pth").write_text("\n".join(theirs))
    pip = (str(fresh), "-m", "pip", "--isolated", "install", "--index-url", f"{url}/simple/")
    # Not what this checkout may have installed, and nothing beside it.
    run(*pip, "--ignore-installed", "--no-deps", "ncfd", cwd=tmp_path)
    installed = own / "ncfd"
    assert installed.is_dir()
    shutil.copy(ROOT / "README.md", tmp_path)
    code = (
        "import ncfd, pathlib, re; print(ncfd.__file__)\n"
        "text = pathlib.Path('README.md').read_text(encoding='utf-8')\n"
        "names = {}\n"
        "for block in re.findall(r'^```python\\n(.*?)^```$', text, re.M | re.S):\n"
        "    exec(block, names)\n"
        "names['loss'].backward(); print(names['loss'].item())"
    )
    where, value = run(str(fresh), "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed)
    assert float(value) > 0
