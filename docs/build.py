"""Build the documentation: the guide at the root of ``site/``, the reference under ``site/api/``.

    pip install -e ".[docs]"
    python docs/build.py            # build, check every link; any warning is an error
    python docs/build.py --serve    # the same, served on localhost and built again on each change

Needs no network. The reference is built first, because the guide takes the addresses of its links
to symbols from the reference's inventory.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SITE = ROOT / "site"
WORK = ROOT / "build" / "docs"


def build() -> list[str]:
    """Build ``site/``; returns what is wrong with it."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(DOCS)]),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",  # the tools' own, not the documentation's
        "NCFD_BUILD_DIR": str(WORK),
        "NCFD_FOOTER": f"ncfd {package_version()} · MIT licence",
        "NO_MKDOCS_2_WARNING": "1",
    }
    reference = WORK / "api"
    # A stale page would satisfy a link that the next fresh build breaks.
    shutil.rmtree(reference, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n"]
    sphinx += ["-d", str(WORK / "doctrees"), str(DOCS / "api")]
    mkdocs = [sys.executable, "-m", "mkdocs", "build"]
    steps = {
        "reference": [*sphinx, "-b", "html", str(reference)],
        "examples of the reference": [*sphinx, "-b", "doctest", str(WORK / "doctest")],
        "guide": [*mkdocs, "-q", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(SITE)],
    }
    environment["NCFD_API_INVENTORY"] = str(reference / "objects.inv")
    for name, command in steps.items():
        result = subprocess.run(command, env=environment, cwd=DOCS, capture_output=True, text=True)
        # Both tools exit with an error after a warning; what they print without one is empty.
        if result.returncode:
            return [f"{name}: {result.stdout}{result.stderr}".rstrip()]
    shutil.copytree(reference, SITE / "api", ignore=shutil.ignore_patterns(".buildinfo*"))
    return check_inventory(reference / "objects.inv") + check_links(SITE)


def package_version() -> str:
    """The version in ``ncfd/__init__.py``, read without importing torch."""
    for line in (ROOT / "ncfd" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("ncfd/__init__.py names no version")


def check_inventory(inventory: Path) -> list[str]:
    """Every public symbol of the package must have its place in the reference."""
    sys.path[:0] = [str(ROOT), str(DOCS)]
    try:
        from extensions.markdown import read_inventory

        import ncfd
    finally:
        del sys.path[:2]
    documented = read_inventory(inventory)
    missing = []
    modules = (ncfd, ncfd.functional, ncfd.distributions, importlib.import_module("ncfd.metrics"))
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, ModuleType) or name.startswith("__"):
                continue
            # A name is listed where it is imported from, or where it is defined.
            places = {module.__name__, getattr(value, "__module__", module.__name__)}
            for part in (name, *(f"{name}.{method}" for method in methods(value))):
                if not any(f"{place}.{part}" in documented for place in places):
                    missing.append(f"reference: {module.__name__}.{part} is missing")
    if "ncfd.ops.BUDGET" not in documented:
        missing.append("reference: ncfd.ops.BUDGET is missing")
    return missing


def methods(value: object) -> list[str]:
    """The methods that a class of this package defines for its users."""
    own = [b for b in getattr(value, "__mro__", ()) if b.__module__.partition(".")[0] == "ncfd"]
    names = {name for base in own for name, item in vars(base).items() if inspect.isfunction(item)}
    return sorted(name for name in names if not name.startswith("_") and name != "extra_repr")


#: Attributes whose target the browser fetches while it shows the page.
_FETCHED = {"img": "src", "script": "src", "source": "src", "iframe": "src", "link": "href"}


class _Page(HTMLParser):
    """The anchors of one page, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        attribute = _FETCHED.get(tag)
        if attribute in values:
            self.resources.append(values[attribute])


def check_links(site: Path) -> list[str]:
    """Pages, anchors and images of a joined tree; nothing may be loaded from elsewhere."""
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        page = pages[path.resolve()] = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    problems = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        for resource in page.resources:
            if urlsplit(resource).netloc:
                problems.append(f"{here}: loads {resource} from elsewhere")
        local = [r for r in page.resources if not urlsplit(r).netloc]
        for link in page.links + local:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("https", "mailto", "data"):
                    problems.append(f"{here}: {link} has scheme {parts.scheme!r}")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if parts.path.startswith("/"):
                # The 404 page may be shown at any depth, so it alone counts from the root.
                target = (site / unquote(parts.path).lstrip("/")).resolve()
                if here.name != "404.html":
                    problems.append(f"{here}: {link} only works at the root of a server")
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.is_relative_to(site.resolve()) or not target.is_file():
                problems.append(f"{here}: {link} leads nowhere")
            elif anchor and target in pages and not _has(pages[target], anchor):
                problems.append(f"{here}: {link} has no such anchor")
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or "@import url(" in text:
            problems.append(f"{sheet.relative_to(site)}: loads a font or an image from elsewhere")
    return problems


def _has(page: _Page, anchor: str) -> bool:
    # Two fragments are commands to the theme's style sheet, not places.
    return anchor in page.anchors or anchor in ("only-light", "only-dark")


def _newest() -> float:
    """When a source of the documentation last changed."""
    folders = (DOCS, ROOT / "ncfd")
    files = (f for d in folders for f in d.rglob("*") if "__pycache__" not in f.parts)
    return max(f.stat().st_mtime for f in files if f.is_file())


def serve(port: int) -> None:
    """Serve ``site/`` and build it again whenever a source changes, until interrupted."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("localhost", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://localhost:{port}/ (interrupt with ctrl-c)")
    seen = _newest()
    try:
        while True:
            time.sleep(1)
            if (now := _newest()) > seen:
                seen = now
                report(build())
    except KeyboardInterrupt:
        server.shutdown()


def report(problems: list[str]) -> int:
    """Print what is wrong, or that nothing is."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} problem(s)", file=sys.stderr)
        return 1
    pages = sum(1 for _ in SITE.rglob("*.html"))
    print(f"built {SITE.relative_to(ROOT)}/ ({pages} pages, all links checked)")
    return 0


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve the site, rebuild on changes")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    status = report(build())
    if options.serve:
        serve(options.port)
    return status


if __name__ == "__main__":
    sys.exit(main())
