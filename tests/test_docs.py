"""The guide: its code runs and prints what it says, and its links and figures have targets.

A page is one session: its ```python blocks run in order, in one namespace. A ```text block directly
after a ```python block holds what that block prints, to the letter.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import re
import statistics
import sys
import types
import warnings
import zlib
from pathlib import Path

import pytest
import torch

import ncfd

DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDE = DOCS / "guide"
PAGES = sorted(GUIDE.glob("*.md"))

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def load_build():
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


def python_blocks(text):
    """``(line, source, printed or None)`` of each Python block; the text block must follow it."""
    fences = list(FENCE.finditer(text))
    for fence, after in itertools.zip_longest(fences, fences[1:]):
        indent, language, source = fence.groups()
        if language != "python":
            continue
        printed = None
        if after and after.group(2) == "text" and not text[fence.end() : after.start()].strip():
            printed = dedent(after.group(3), after.group(1))
        yield text.count("\n", 0, fence.start()) + 2, dedent(source, indent), printed


def dedent(source, indent):
    return re.sub(f"^{indent}", "", source, flags=re.MULTILINE)


def run_page(path, namespace):
    """Run a page's blocks; an error names the page and its line."""
    for line, source, printed in python_blocks(path.read_text(encoding="utf-8")):
        # The blank lines make line numbers in a traceback those of the page.
        code = compile("\n" * (line - 1) + source, str(path), "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        assert printed is None or out.getvalue() == printed, f"{path.name}, line {line}"


@pytest.fixture
def one_thread():
    """Sums in one order, and no waiting for cores that other work holds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class StandInTrainer:
    """What the guide needs of Lightning where it is not installed: both loops."""

    def __init__(self, *, max_epochs, gradient_clip_val=None, **options):
        self.epochs, self.clip = max_epochs, gradient_clip_val

    def fit(self, module, loader):
        made = module.configure_optimizers()
        optimizers = [made] if isinstance(made, torch.optim.Optimizer) else list(made)
        module.optimizers = lambda: optimizers
        for _ in range(self.epochs):
            for index, batch in enumerate(loader):
                loss = module.training_step(batch, index)
                if module.automatic_optimization:
                    [optimizer] = optimizers
                    optimizer.zero_grad()
                    loss.backward()
                    module.clip_gradients(optimizer, self.clip, "norm")
                    optimizer.step()


class StandInModule(torch.nn.Module):
    automatic_optimization = True

    def manual_backward(self, loss):
        assert self.automatic_optimization is False
        loss.backward()

    def clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        assert gradient_clip_algorithm == "norm"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)


@pytest.fixture
def lightning(monkeypatch):
    """Lightning itself, if it is installed."""
    if importlib.util.find_spec("lightning") is None:
        stand_in = types.ModuleType("lightning")
        stand_in.LightningModule, stand_in.Trainer = StandInModule, StandInTrainer
        monkeypatch.setitem(sys.modules, "lightning", stand_in)
    with warnings.catch_warnings():  # its own
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("one_thread", "lightning")
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_code_of_the_guide_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_page(path, {"__name__": "__main__"})


@pytest.mark.usefixtures("one_thread", "lightning")
@pytest.mark.parametrize("name", ["Matching", "Apart"])
def test_lightning_moves_both_players_their_way(name):
    """The classes of the page, on pairs that a network can match: the loss falls, J rises."""
    page = (GUIDE / "plug-in.md").read_text(encoding="utf-8")
    section = page[page.index("## Lightning") : page.index("## Several processes")]
    names = {"torch": torch, "nn": torch.nn, **{n: getattr(ncfd, n) for n in ncfd.__all__}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _, source, _ in python_blocks(section):
            exec(source, names)
        pairs = torch.utils.data.TensorDataset(torch.randn(512, 8) + 0.5, torch.randn(512, 10))
        loader = torch.utils.data.DataLoader(pairs, batch_size=64)
        options = names["options"] | {"max_epochs": 60}
        if name == "Matching":
            options["gradient_clip_val"] = 1.0
        module = names[name]()
        module.loss_fn = ncfd.NCFDLoss(ncfd.FrequencySampler(8, 128, scale=0.05))
        x, y = pairs.tensors
        module.net.requires_grad_(False)  # ψ alone: from too low a scale it goes up
        names["lightning"].Trainer(**options).fit(module, loader)
        assert module.loss_fn.sampler.scales().mean() > 1.2 * 0.05
        module.net.requires_grad_(True)
        start = module.loss_fn(x, module.net(y))
        names["lightning"].Trainer(**options).fit(module, loader)
        assert module.loss_fn(x, module.net(y)) < 0.75 * start


def test_a_wrong_page_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 2"):
        run_page(page, {})
    page.write_text("```python\na = 1\n```\n\ntext\n\n```python\nprint(b)\n```\n")
    with pytest.raises(NameError):
        run_page(page, {})


def test_the_guide_has_code():
    blocks = sum(len(list(python_blocks(p.read_text(encoding="utf-8")))) for p in PAGES)
    assert blocks >= 20


def test_links_to_symbols_name_public_symbols():
    for page in PAGES:
        for name in re.findall(r"\]\(api:([^)]+)\)", page.read_text(encoding="utf-8")):
            resolve(name)


def resolve(name):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    listed = re.findall(r"([\w-]+\.md)", (DOCS / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == [p.name for p in PAGES]


def test_every_figure_is_shown_and_made_by_a_script():
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown |= set(re.findall(r"\(figures/([\w-]+\.\w+)(?:#[\w-]+)?\)", text))
    present = {p.name for p in (GUIDE / "figures").iterdir() if p.suffix in (".svg", ".png")}
    assert shown == present
    scripts = {p.stem for p in (DOCS / "figures").glob("*.py")}
    for figure in present:
        stem = re.sub(r"(-light|-dark)?\.\w+$", "", figure)
        script = "studies" if stem.startswith("study_") else stem
        assert script in scripts, figure
        assert (GUIDE / "figures" / figure).stat().st_size < 250_000, figure  # 40 kB compressed


def site(tmp_path, **pages):
    for name, body in pages.items():
        (tmp_path / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    return BUILD.check_links(tmp_path)


def test_the_link_checker_accepts_a_sound_tree(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    assert site(
        tmp_path,
        index='<h1 id="top">x</h1><a href="other.html#place">o</a><img src="a.svg#only-light">',
        other='<p id="place"><a href="index.html">b</a> <a href="https://example.org">e</a></p>',
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<a href="missing.html">x</a>', "leads nowhere"),
        ('<a href="#nothing">x</a>', "no such anchor"),
        ('<img src="missing.png">', "leads nowhere"),
        ('<a href="../outside.html">x</a>', "leads nowhere"),
        ('<a href="/index.html">x</a>', "root of a server"),
        ('<a href="api:ncfd.NCFDLoss">x</a>', "scheme 'api'"),
        ('<script src="https://cdn.example.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "from elsewhere"),
    ],
)
def test_the_link_checker_complains(tmp_path, body, complaint):
    problems = site(tmp_path, index=body)
    assert len(problems) == 1
    assert complaint in problems[0]


def test_the_link_checker_reads_style_sheets(tmp_path):
    (tmp_path / "x.css").write_text("a{background:url(https://example.org/x.png)}")
    assert "from elsewhere" in site(tmp_path, index="")[0]


# --- docstrings --------------------------------------------------------------------------------


def public_symbols():
    """``(full name, object)`` of every public class and function, each once."""
    importlib.import_module("ncfd.metrics")
    seen = set()
    for module in (ncfd, ncfd.functional, ncfd.distributions, ncfd.metrics):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and id(value) not in seen:
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value
    # A switch for those who know what it is, beside the table of memory.
    yield "ncfd.ops.use_triton", ncfd.ops.use_triton


def lacks(value):
    """The sections that the docstring of a public object should have and has not."""
    text = inspect.getdoc(value) or ""
    signature = inspect.signature(value)
    arguments = [p for p in signature.parameters if p != "self"]
    wanted = set()
    if inspect.isclass(value):
        # A result is made by a function, which takes the arguments, checks them and has the source.
        made = hasattr(value, "__dataclass_fields__")
        wanted = {"Attributes", "Example"} if made else {"Args", "Raises", "Example", "Source"}
    elif "." in value.__qualname__:  # a method: the example is that of its class
        wanted |= {"Args"} if arguments else set()
        wanted |= {"Returns"} if signature.return_annotation not in ("None", None) else set()
    else:
        wanted = {"Args", "Returns", "Raises", "Example", "Source"}
        if signature.return_annotation == "None":  # a switch: nothing comes back, nothing is cited
            wanted -= {"Returns", "Source"}
    found = set(re.findall(r"^(Attributes|Args|Returns|Raises|Example|Source)\b.*?:", text, re.M))
    missing = sorted(wanted - found)
    if "Example" in found and ">>> " not in text:
        missing.append("an executed example")
    # Each argument by its name, at the depth of its section.
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", text + "\n", re.M)
    listed = re.findall(r"^    \**(\w+):", section.group(1), re.M) if section else []
    if wanted & {"Args", "Attributes"}:
        missing += [name for name in arguments if name not in listed]
        missing += [f"no argument {name}" for name in listed if name not in arguments]
    return missing


SYMBOLS = dict(public_symbols())


@pytest.mark.parametrize("name", SYMBOLS)
def test_public_symbols_are_documented_in_full(name):
    value = SYMBOLS[name]
    assert lacks(value) == []
    if inspect.isclass(value):
        wanting = {name: lacks(getattr(value, name)) for name in BUILD.methods(value)}
        assert not any(wanting.values()), wanting


def test_an_incomplete_docstring_is_noticed():
    def f(x, y):
        """One line.

        Args:
            x: a number.
            z: no such thing.

        Returns:
            A number.

        Example:
            None.
        """

    f.__qualname__ = "f"
    assert lacks(f) == ["Raises", "Source", "an executed example", "y", "no argument z"]


def test_every_public_symbol_has_a_place_in_the_sources_of_the_reference():
    """The built inventory is checked by ``docs/build.py``; this needs no build."""
    text = "".join(p.read_text(encoding="utf-8") for p in sorted((DOCS / "api").glob("*.rst")))
    shown, module = set(), ""
    directives = r"^\.\. (currentmodule|auto\w+|py:function):: ([\w.]+)"
    for directive, name in re.findall(directives, text, re.M):
        if directive == "currentmodule":
            module = name
        else:
            shown.add(name if name.startswith("ncfd.") else f"{module}.{name}")
    assert set(SYMBOLS) == shown


def test_the_memory_page_lists_the_budget():
    from ncfd.ops import BUDGET

    text = (DOCS / "api" / "memory.rst").read_text(encoding="utf-8")
    # A term holds one name or several, its indented text the sizes in the same order.
    shown = {}
    for terms, body in re.findall(r'^   ((?:``"\w+"``(?:, )?)+)\n((?:      .*\n?)+)', text, re.M):
        sizes = re.search(r"\(([\d and]+)(KiB|MiB)(?:[^()]*)\)", body)
        unit = {"KiB": 2**10, "MiB": 2**20}[sizes.group(2)]
        names = re.findall(r'"(\w+)"', terms)
        numbers = [int(n) * unit for n in re.findall(r"\d+", sizes.group(1))]
        shown |= dict(zip(names, numbers, strict=True))
    assert shown == BUDGET


def test_the_documented_version_is_that_of_the_package():
    assert BUILD.package_version() == ncfd.__version__


def test_the_reference_lists_every_public_module():
    """What ``check_inventory`` compares with must not silently lose a module of the package."""
    source = (DOCS / "build.py").read_text(encoding="utf-8")
    modules = {
        name for name in ncfd.__all__ if isinstance(getattr(ncfd, name), types.ModuleType)
    }  # fmt: skip
    assert modules
    for name in modules:
        assert f"ncfd.{name}" in source, name
    assert "ncfd" in sys.modules


# --- what the guide says of the pipeline ---------------------------------------------------------


def test_the_loader_shown_is_the_loader_used(tmp_path):
    from distillation.report import load_distilled, save_distilled

    data = types.SimpleNamespace(
        mean=torch.tensor([[[0.2]]]), std=torch.tensor([[[0.4]]]), class_names=["a", "b"], name="x"
    )
    file = tmp_path / "distilled.safetensors"
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    save_distilled(file, images, labels, data, factor=2, method="mix", ipc=3, seed=0)
    namespace = {}
    run_page(GUIDE / "start-distillation.md", namespace)
    for shown, used in zip(namespace["load_distilled"](file), load_distilled(file), strict=True):
        assert torch.equal(shown, used) if isinstance(shown, torch.Tensor) else shown == used


def test_the_pipeline_page_names_every_choice_and_preset():
    from distillation import data, options

    page = (GUIDE / "pipeline.md").read_text(encoding="utf-8")
    for name in [*data.DATASETS, *options.METHODS]:
        assert f"`{name}`" in page, name
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    shown = {
        "`--iterations`": ["iterations"],
        "`--width`, `--depth` of the networks": ["width"],
        "`--zoo-size`, `--zoo-epochs`": ["zoo_size", "zoo_epochs"],
        "`--batch-real` per class": ["batch_real"],
        "`--num-frequencies`": ["num_frequencies"],
        "`--eval-epochs`, `--eval-runs`": ["eval_epochs", "eval_runs"],
        "`--full-epochs`, where `full` is judged": ["full_epochs"],
    }
    for row, names in shown.items():
        for column, preset in ((2, "quick"), (3, "paper")):
            cell = rows[row].split("|")[column]
            numbers = [int(n.replace(" ", "")) for n in re.findall(r"\d[\d ]*\d|\d", cell)]
            wanted = [options.PRESETS[preset][name] for name in names]
            assert [n for n in numbers if n in wanted][: len(wanted)] == wanted, (row, preset)


def test_numbers_behind_the_figures_are_kept():
    scripts = {
        p.stem
        for p in (DOCS / "figures").glob("[a-z]*.py")
        if "record(" in p.read_text(encoding="utf-8")
    }
    kept = {p.stem for p in (DOCS / "figures" / "results").glob("*.json")}
    assert scripts == kept
    assert len(kept) >= 5


def on_file(name):
    return json.loads((DOCS / "figures" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def quoted_numbers():
    """``(page, what the page must contain)``, formed from the files of numbers."""
    floor = on_file("noise_floor")
    sizes = [floor["samples_on_each_side"].index(n) for n in (16, 64, 256, 1024)]
    for scale in ("1", "0.35"):
        means = floor["mean_loss"][f"scale {scale}"]
        for row, shift in (
            (f"root loss of equal distributions, scale {scale}", "0"),
            (f"shifted by 1, scale {scale}", "1"),
        ):
            cells = " | ".join(f"{means[f'root, shift {shift}'][i]:.3f}" for i in sizes)
            yield "pictures", f"| {row} | {cells} |"
    noise = on_file("frequency_noise")
    columns = [noise["F"].index(n) for n in (16, 64, 256, 1024)]
    for kind, scales in noise["relative_error_rms"].items():
        for method, row in scales["scale 1"].items():
            cells = (f"{100 * row[i]:.{1 if row[i] < 0.1 else 0}f} %" for i in columns)
            yield "choosing", f'| {kind}, `"{method}"` | {" | ".join(cells)} |'
    learned = on_file("learned_frequencies")
    first, last = learned["loss_first_and_last_ten"]
    yield "pictures", f"from {first:.3f} to {last:.3f}"
    yield "results", f"from {first:.3f} to {last:.3f}"
    yield "pictures", "to ({:g}, {:g})".format(*learned["mean_scales"][-1])
    matching = on_file("matching")["squared_loss_at_scale_1_5"]
    yield "results", f"{matching['ncfd']:.3f} against {matching['mean']:.2f}"
    kernel = on_file("fixed_kernel")["learned_scale"]
    yield "pictures", f"{kernel['started at 3']:.1f}, learned on the other half"
    yield "pictures", f"{kernel['started at 1']:.2f} instead"
    half = on_file("precision")["root_loss_of_nearly_equal_sets"]
    ratio = half["the plain lines under bfloat16 autocast"] / half["float64"]
    yield "numerics", f"{ratio:.1f} times too large"


@pytest.mark.parametrize(("page", "text"), list(quoted_numbers()))
def test_quoted_numbers_are_those_on_file(page, text):
    words = " ".join((GUIDE / f"{page}.md").read_text(encoding="utf-8").split())
    assert text in words


# --- two processes -------------------------------------------------------------------------------


def guided_steps(rank, store, results):
    """The guide's ``train``, each process with every other row."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    text = (GUIDE / "plug-in.md").read_text(encoding="utf-8")
    (source,) = (s for _, s, _ in python_blocks(text) if "def train(net, sampler" in s)
    namespace = {"torch": torch}
    exec(source, namespace)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    x, y, net, psi = distributed_problem()
    torch.manual_seed(3 + rank)
    namespace["train"](net, psi, [(x[rank::2], y[rank::2])] * 2, 2)
    parameters = [p.detach() for m in (net, psi) for p in m.parameters()]
    torch.save(parameters, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def distributed_problem():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=g), 0.5 * torch.randn(24, 6, generator=g) + 1
    torch.manual_seed(1)
    net, psi = torch.nn.Linear(6, 4), ncfd.FrequencySampler(4, 64)
    torch.nn.init.normal_(psi.network[-1].weight)  # at its start, most of ψ has no gradient
    return x, y, net, psi


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_the_guided_steps_are_those_of_one_process(tmp_path):
    torch.multiprocessing.spawn(guided_steps, (tmp_path / "store", tmp_path), nprocs=2)
    with torch.random.fork_rng():
        x, y, net, psi = distributed_problem()
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    parameters = [*net.parameters(), *psi.parameters()]
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ncfd.NCFDLoss(psi)(net(x), net(y), generator=generator).backward()
        optimizer.step()
    for rank in (0, 1):
        for p, wanted, before in zip(
            torch.load(tmp_path / f"{rank}.pt"), parameters, start, strict=True
        ):
            # Rows in another order: sums differ by rounding, far less than the steps.
            assert (p - wanted).abs().max() <= 1e-3 * (wanted - before).abs().max() + 1e-7


def benchmark_rows():
    """``(D, scale, method) -> (loss_F, gradient_F)`` and ``(way, phase) -> (loss, gradient)``."""
    results = DOCS.parent / "benchmarks" / "results"
    counts, errors = {}, {}
    text = (results / "frequencies-cpu-amd-epyc.md").read_text(encoding="utf-8")
    for line in text.split("## F with")[1].splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[0].isdigit():
            counts[tuple(cells[:3])] = [f"{float(c):.0f}" for c in cells[3:5]]
    text = (results / "precision-cpu-amd-epyc.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 5:
            errors[tuple(cells[:2])] = cells[3:]
    return counts, errors


def test_quoted_benchmarks_are_those_on_file():
    counts, errors = benchmark_rows()
    page = (GUIDE / "benchmarks.md").read_text(encoding="utf-8")
    quoted = 0
    for line in page.splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[0].isdigit():
            key = (cells[0], cells[1])
            methods = ("orthogonal", "structured", "sobol")
            assert cells[2:] == [n for m in methods for n in counts[*key, m]], key
            quoted += 1
        elif len(cells) == 5 and (cells[0], "0.1") in errors:
            assert cells[1:] == errors[cells[0], "0.1"] + errors[cells[0], "1"], cells[0]
            quoted += 1
    assert quoted == 13


def test_quoted_times_of_sigreg_are_those_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "sliced-cpu-intel-xeon.json"
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    page = (GUIDE / "benchmarks.md").read_text(encoding="utf-8")
    ours, theirs = {}, {}
    for row in tables["sliced"]:
        case = f"| {row['N']}, {row['D']}, {row['slices']} | {row['threads']} |"
        if row["contender"] == "ncfd":
            ours[case] = f"{row['both_ms']:.1f}"
        else:
            theirs.setdefault(case, []).append(f"{row['times_as_long']:.1f} ×")
    assert len(ours) == 8
    for case, time in ours.items():
        assert f"{case} {time} | {' | '.join(theirs[case])} |" in page, case


def rendered(text):
    markdown = pytest.importorskip("markdown", reason="a part of the documentation's tools")
    pytest.importorskip("latex2mathml", reason="a part of the documentation's tools")
    sys.path.insert(0, str(DOCS))
    try:
        from extensions.markdown import makeExtension
    finally:
        sys.path.remove(str(DOCS))
    return markdown.markdown(text, extensions=[makeExtension(), "fenced_code"])


def test_inline_code_breaks_at_slashes_and_not_in_options():
    html = rendered("Pass `run.py --an-option 3 -k x`, and `a-b` as it is.")
    assert html.count('<span class="whole">') == 2
    assert '<span class="whole">--an-option</span> 3 <span class="whole">-k</span> x' in html
    assert "<code>a-b</code>" in html
    assert re.sub("<[^>]+>", "", html) == "Pass run.py --an-option 3 -k x, and a-b as it is."
    assert "docs/<wbr />figures/<wbr />alpha.py<" in rendered("`python docs/figures/alpha.py`")
    assert "<wbr" not in rendered("`https://a` and `/b`")
    block = rendered("```sh\nrun a/b --an-option\n```")
    assert "whole" not in block
    assert "wbr" not in block


def test_a_symbol_missing_from_the_reference_is_noticed(tmp_path):
    for module in ("markdown", "latex2mathml"):
        pytest.importorskip(module, reason="a part of the documentation's tools")
    head = b"# Sphinx inventory version 2\n# Project: x\n# Version: \n# zlib\n"
    inventory = tmp_path / "objects.inv"
    inventory.write_bytes(head + zlib.compress(b"ncfd.NCFDLoss py:class 1 a.html#$ -\n"))
    missing = BUILD.check_inventory(inventory)
    assert "reference: ncfd.FrequencySampler is missing" in missing
    assert "reference: ncfd.functional.ncfd_loss is missing" in missing
    assert "reference: ncfd.metrics.NCFDMetric is missing" in missing
    assert "reference: ncfd.ops.BUDGET is missing" in missing
    assert "reference: ncfd.NCFDLoss.forward is missing" in missing
    assert "reference: ncfd.NCFDLoss is missing" not in missing


def study(suite, processor="amd-epyc"):
    file = DOCS.parent / "benchmarks" / "results" / f"{suite}-cpu-{processor}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["finished"]
    assert not content["quick"]
    return content["tables"]


def table_rows(page):
    """Cells of every row of every table, without heads: first cell(s) -> all cells."""
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


def test_the_metric_study_is_quoted_as_it_is_on_file():
    tables = study("metric")
    names = ["NCFD", "NCFD, squared, unbiased", "FID", "KID"]
    found = {}
    for row in tables["sensitivity"]:
        key = f"{row['damage']}, {row['strength']}"
        found.setdefault(key, {})[row["metric"]] = f"{row['deviations']:.1f}"
    for row in tables["ranks"]:
        found.setdefault(row["damage"], {})[row["metric"]] = f"{row['spearman']:.2f}"
    for row in tables["null"]:
        text = f"{row['value']:.4f} ± {row['sd']:.4f}"
        found.setdefault(str(row["n"]), {})[row["metric"]] = text
    quoted = 0
    for cells in table_rows("metric"):
        if cells[0] in found:
            assert cells[1:] == [found[cells[0]][name] for name in names], cells[0]
            quoted += 1
    assert quoted == 9 + 5 + 6
    # What the page says in words.
    assert all(row["monotonic"] for row in tables["ranks"] if row["damage"] != "normal features")


def test_the_power_study_is_quoted_as_it_is_on_file():
    tables = study("power")
    names = list(dict.fromkeys(row["test"] for row in tables["size"]))
    found = {}
    for row in tables["size"]:
        found.setdefault(("none", str(row["D"])), {})[row["test"]] = f"{100 * row['size']:.1f}"
        # "All hold their level": within three standard errors.
        assert abs(row["size"] - 0.05) < 3 * (0.05 * 0.95 / row["simulations"]) ** 0.5
    for row in tables["power"]:
        key = (f"{row['shift']}: {row['strength']}", str(row["D"]))
        found.setdefault(key, {})[row["test"]] = f"{100 * row['power']:.0f}"
    quoted = {}
    for cells in table_rows("two-sample"):
        if len(cells) == 2 + len(names):
            quoted[cells[0], cells[1]] = cells[2:]
    quoted.pop(("difference", "D"))
    quoted.pop(("---", "---"))
    assert quoted == {k: [row.get(name, "-") for name in names] for k, row in found.items()}


def test_times_are_quoted_as_they_are_on_file():
    loss, pipeline = study("loss"), study("pipeline")
    wanted = [
        [r["case"], r["measure"], r["target"], f"{r['ratio']:.4g}", r["verdict"]]
        for r in loss["targets"]
    ]
    (memory,) = loss["memory"]
    measured = f"{memory['beyond_mib']:.2f}"
    measure = "MiB beyond inputs and gradients"
    wanted += [["memory", measure, memory["target"], measured, memory["verdict"]]]
    wanted += [
        [r["case"], r["measure"], r["target"], f"{r['value']:.3f}", r["verdict"]]
        for r in pipeline["targets"]
    ]
    wanted += [
        [r["part"], f"{r['part_s']:.3f}", f"{100 * r['share']:.0f} %"]
        for r in pipeline["parts"]
        if (r["case"], r["contender"]) == ("CIFAR-10, IPC 10", "with ψ")
    ]
    wanted += [
        [r["peer"], f"{r['both_ms']:.1f}", f"{r['memory_mib']:.0f}", f"{r['relative_error']:.1e}"]
        for r in study("peers")["peers"]
        if r["n"] == 2000
    ]
    slopes = {(r["contender"], r["sweep"]): f"{r['slope']:.2f}" for r in study("scaling")["slopes"]}
    names = {"ncfd": "`ncfd_loss`", "released": "released form", "bare products": "bare products"}
    wanted += [[label, *(slopes[name, k] for k in "NDF")] for name, label in names.items()]
    costs = study("frequencies")
    methods = ("random", "orthogonal", "structured")
    wanted += [
        [str(r["D"]), str(r["F"]), *(f"{r[f'{m}_ms']:.1f} ms" for m in methods)]
        for r in costs["draw, ms"]
    ]
    wanted += [
        [*(str(r[k]) for k in "NDF"), f"{r['dense_ms']:.1f} ms", f"{r['fast_ms']:.1f} ms"]
        for r in costs["phases of fixed frequencies, ms"]
    ]
    faults = study("page-faults")
    wanted += [
        [
            *(r[k] for k in ("case", "allocator", "contender")),
            *(f"{r[k]:.0f}" for k in ("both_ms", "system_ms", "faults")),
        ]
        for r in faults["steps"]
    ]
    quoted = table_rows("benchmarks")
    assert [row for row in wanted if row not in quoted] == []
    words = re.sub(r"\s+", " ", (GUIDE / "benchmarks.md").read_text(encoding="utf-8"))
    ratio = {
        (r["case"], r["allocator"]): f"{r['released form / ours']:.2f}" for r in faults["ratios"]
    }
    small, large = "generator, D=64", "generator, D=128"
    assert (
        f"takes {ratio[small, 'default']} times as long as `ncfd_loss` at D = 64 and "
        f"{ratio[large, 'default']} times at D = 128; where memory is kept, "
        f"{ratio[small, 'keeping']} and {ratio[large, 'keeping']} times."
    ) in words


def test_the_pace_beside_other_work_is_quoted_as_it_is_on_file():
    rows = study("busy", "intel-xeon")["beside other work"]
    wanted = [
        [
            *(str(r[k]) for k in ("case", "busy processes")),
            *(f"{r[k]:.0f}" for k in ("ncfd, ms", "released form, ms")),
            f"{r['released form / ours']:.2f}",
        ]
        for r in rows
    ]
    assert [row for row in wanted if row not in table_rows("benchmarks")] == []


def test_the_networks_of_published_width_are_quoted_as_they_are_on_file():
    tables = study("network", "intel-xeon")
    ways = ("layers, float32", "fused, float32", "fused, bfloat16")

    def cells(rows, seconds):
        by_way = {row["contender"]: row for row in rows}
        found = [by_way[way] for way in ways]
        return [f"{seconds(row):.2f} ({row['times_as_fast']:.1f})" for row in found]

    wanted = [
        [label, *cells([r for r in tables["network"] if r["use"] == use], lambda r: r["image_ms"])]
        for use, label in (
            ("forward", "features, ms an image"),
            ("training", "training, ms an image"),
            ("synthetic", "slopes of images, ms an image"),
        )
    ]
    wanted += [
        [
            f"a step at IPC {ipc}, s",
            *cells(
                [r for r in tables["step"] if r["case"].endswith(f" {ipc}")], lambda r: r["step_s"]
            ),
        ]
        for ipc in (1, 10, 50)
    ]
    assert [row for row in wanted if row not in table_rows("pipeline")] == []
    shares = {
        (r["contender"], r["part"]): f"{r['part_s']:.3f} s, {100 * r['share']:.0f} %"
        for r in tables["parts"]
        if r["case"] == "CIFAR-10, IPC 10"
    }
    parts = [part for way, part in shares if way == ways[0]]
    wanted = [[part, *(shares[way, part] for way in ways)] for part in parts]
    assert [row for row in wanted if row not in table_rows("benchmarks")] == []


def adversary_rows():
    """``(page, cells)`` of every row that quotes the suite `adversary`, in order."""
    file = DOCS.parent / "benchmarks" / "results" / f"adversary-cpu-{PROCESSOR}.json"
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]  # not finished yet

    def grouped(name, *by):
        groups = {}
        for row in tables[name]:
            groups.setdefault(tuple(row[key] for key in by), []).append(row)
        return groups.items()

    rates = ("0.0001", "0.001", "0.01")
    paid = (("signal", "either"), ("loss", "root"), ("loss", "squared"))
    ways = [(way, *by) for way in ("one scale", "mixture") for by in paid]
    for (D, M, start), rows in grouped("nothing", "D", "M", "start"):
        after = {
            (r["frequencies"], r["adversary"], r["form"], r["rate"]): f"{r['after']:.1f}"
            for r in rows
        }
        cells = [
            ", ".join(after[*way, rate] for rate in rates if (*way, rate) in after) or "-"
            for way in ways
        ]
        yield "benchmarks", [str(D), str(M), start, *cells]
    for (way, rate), rows in grouped("walk", "frequencies", "rate"):
        for by in dict.fromkeys(r["adversary"] for r in rows):
            cells = [
                ", ".join(f"{r[key]:.2f}" for r in rows if r["adversary"] == by)
                for key in ("mean log", "deviation log", "growth")
            ]
            name = "ψ" if way == "mixture" else way
            yield "benchmarks", [name, rate, by, *cells]
    for (data, D, M), rows in grouped("judged", "data", "D", "M"):
        best = f"{rows[0]['its error']:.1f} at {rows[0]['best fixed']}"
        ratios = {
            row["frequencies"]: ", ".join(f"{v:.2f}" for k, v in row.items() if "from " in k)
            for row in rows
        }
        yield "benchmarks", [data, str(D), str(M), best, *(ratios.get(w, "-") for w in LEARNED)]
    ways = list(dict.fromkeys(row["frequencies"] for row in tables["told"]))
    by_way = dict(grouped("told", "frequencies", "case"))
    for way in ways:
        cases = [by_way[way, case] for case in dict.fromkeys(r["case"] for r in tables["told"])]
        means = [f"{statistics.mean(r['error'] for r in rows):.1f}" for rows in cases]
        yield "choosing", [way, *means]
    for (N,), rows in grouped("bias", "N"):
        cells = [
            f"{100 * r['bias']:+.0f} ± {100 * r['bias error']:.0f} %, {100 * r['deviation']:.0f} %"
            for r in rows
        ]
        yield "choosing", [str(N), *cells]


#: On which the adversary was measured, as it calls itself.
PROCESSOR = "intel-xeon"
LEARNED = (
    *("one scale, J", "one scale, J, spread", "one scale, s^1.5", "one scale, s^1.5, spread"),
    *("one scale, loss", "mixture, J", "mixture, loss"),
)


def test_the_adversary_is_quoted_as_it_is_on_file():
    wanted = list(adversary_rows())
    for page in ("benchmarks", "choosing"):
        quoted = table_rows(page)
        assert [cells for at, cells in wanted if at == page and cells not in quoted] == []
    (cost,) = (r for r in study("adversary-cost", PROCESSOR)["ratios"] if "the loss" in r["ratio"])
    assert f"{cost['median']:.2f} times" in (GUIDE / "choosing.md").read_text(encoding="utf-8")


def test_the_large_test_is_quoted_as_it_is_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "two-sample-cpu-amd-epyc.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["tables"]["large"]
    quoted = [
        cells for cells in table_rows("benchmarks") if cells[0] in ("`permutation`", "`chi2`")
    ]
    for cells, row in zip(quoted, rows, strict=True):
        assert (row["n"], row["D"]) == (100_000, 64)
        wanted = [f"{row['cpu_s']:.1f}", f"{row['memory_mib']:.0f}"]
        assert [cells[0].strip("`"), *cells[2:]] == [row["test"], *wanted]


def distillation_studies():
    files = sorted((DOCS.parent / "benchmarks" / "results").glob("study-*-cpu.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("content", distillation_studies(), ids=lambda c: c["study"])
def test_a_study_of_distillation_is_quoted_as_it_is_on_file(content):
    from studies import projection, tables
    from studies.questions import STUDIES

    name = content["study"]
    text = (GUIDE / "studies.md").read_text(encoding="utf-8")
    section = text.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    if name == "projection":
        wanted = projection.table(content)
    else:
        wanted = tables.table(STUDIES[name], content["runs"])
        # Every row of a seed was made with the same zoo, or the differences are not paired.
        assert tables.different_zoos(content["runs"]) == []
        assert {r["config"]["dataset"] for r in content["runs"]} == {"imagefolder"}
    assert tables.markdown(wanted) in section
    assert content["question"] in " ".join(section.split())
    assert f"--study {name}" in section
    assert f"study-{name}-cpu.json" in section
    assert f"figures/study_{name}-light.svg" in section
    assert str(DOCS.parent) not in json.dumps(content)


def test_there_are_studies_of_distillation():
    found = {content["study"]: content for content in distillation_studies()}
    assert {"alpha", "stability"} <= {*found}
    assert {"psi", "alpha", "frequencies", "sampler", "extractor", "schedule", "loss"} <= {*found}
    # Rows are compared within a seed, so every study has every row for each of its seeds.
    for content in found.values():
        if content["study"] != "projection":
            made = [(r["row"], r["seed"]) for r in content["runs"]]
            rows, seeds = ({pair[k] for pair in made} for k in (0, 1))
            assert len(made) == len({*made}) == len(rows) * len(seeds)
            assert len(seeds) >= 2


def test_the_bank_of_stored_phi_is_quoted_as_it_is_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "stored-phi-cpu.json"
    for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
        size, seconds = run["bank"]["entries"], run["processor_seconds"]
        name = str(size) if size else "fresh batches of 32"
        filling = f"{seconds['fill']:.1f}" if size else "-"
        row = [name, f"{run['accuracy']['mean']:.1f}", f"{seconds['iterations']:.1f}", filling]
        assert row in table_rows("studies")


def test_the_gans_are_quoted_as_they_are_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "gan-adversary-cpu.json"
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    cells = {
        (run["seed"], run["adversary"], run["options"]["max_ratio"]): (
            f"{1e3 * run['final']:.2f}, {1e3 * max(v for at, v in run['curve'] if at >= 500):.2f}"
        )
        for run in runs
    }
    text = (DOCS.parent / "examples" / "README.md").read_text(encoding="utf-8")
    for seed in (0, 1, 2):
        ways = (("loss", 4.0), ("signal", 4.0), ("signal", 30.0))
        row = [str(seed), *(cells[seed, *way] for way in ways)]
        assert f"| {' | '.join(row)} |" in text


def test_the_digits_are_quoted_as_they_are_on_file():
    """The same table in README and guide: every method and baseline, each seed, mean and spread."""
    file = DOCS.parent / "benchmarks" / "results" / "digits-cpu.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    values: dict[str, dict[int, float]] = {}
    for run in content["runs"]:
        assert run["config"]["dataset"] == "digits"
        assert run["config"]["calibration"] == 0
        judged = {run["config"]["method"]: run["accuracy"], **run["baselines"]}
        for name, accuracy in judged.items():
            of_seed = values.setdefault(name, {})
            assert run["seed"] not in of_seed, name
            of_seed[run["seed"]] = accuracy["mean"]
    seeds = sorted(values["ncfm"])
    assert seeds == [0, 1, 2]
    for page in (DOCS.parent / "README.md", GUIDE / "results.md"):
        text = page.read_text(encoding="utf-8")
        (table,) = re.findall(r"^\| method \| seed 0 \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        for name, accuracies in values.items():
            (row,) = (r for r in rows if r[0].split(",")[0] == f"`{name}`")
            each = [accuracies[seed] for seed in seeds]
            mean, spread = statistics.mean(each), statistics.stdev(each)
            assert row[1:] == [*(f"{v:.1f}" for v in each), f"{mean:.1f} ± {spread:.1f}"], name
        assert file.name in text


def test_the_networks_of_published_width_on_cifar_are_quoted_as_they_are_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "cifar10-width128-cpu.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = {tuple(row[1:]) for row in table_rows("results")}
    for run in content["runs"].values():
        accuracy = run["accuracy"]
        spread = f" ± {accuracy['std']:.1f}" if len(accuracy["runs"]) > 1 else ""
        each = ", ".join(f"{value:.2f}" for value in accuracy["runs"])
        mean, best = f"{accuracy['mean']:.1f}{spread}", f"{accuracy['best_epoch_mean']:.1f}"
        assert (str(run.get("iterations_done", 0)), each, mean, best) in rows, run["method"]
    for state in content["checkpoints"]:
        (accuracy,) = state["accuracy"]["runs"]
        found = (str(state["iteration"]), str(state["eval_epochs"]), f"{accuracy:.2f}")
        assert found in rows, state["run"]
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    said = {
        "dm": "mean matching has",
        "mmd": "and the closed form",
        "mmd-cal": "(`--calibration 1`) the closed form has",
    }
    for name, text in said.items():
        accuracy = content["runs"][f"ipc10-{name}-seed0"]["accuracy"]
        assert f"{text} {accuracy['mean']:.1f} ± {accuracy['std']:.1f} %" in readme


def test_runs_with_a_held_norm_are_quoted_as_they_are_on_file():
    file = DOCS.parent / "benchmarks" / "results" / "cifar10-held-norm-cpu.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    wanted = set()
    for run in content["runs"].values():
        accuracy, config = run["accuracy"], run["config"]
        networks = ", ".join(f"{value:.2f}" for value in accuracy["runs"])
        wanted.add((config["method"], config["fixed_norm"], networks, f"{accuracy['mean']:.1f}"))
    rows = [cells for cells in table_rows("results") if len(cells) == 4]
    found = {
        (cells[0].strip("`").split()[0], "--fixed-norm" in cells[0], cells[2], cells[3])
        for cells in rows
    }
    assert len(wanted) == len(content["runs"]) > 0
    assert wanted <= found
    # What the page says of the game without a held norm.
    curves = content["free"]["curves"]
    losses = [value for _, value in curves["probe/both"]]
    assert f"{losses[0]:.4f}, {min(losses):.4f}" == "0.0016, -0.0014"
    assert f"{curves['scale/mean'][-1][1]:.1f}" == "5.9"
    assert f"{content['free']['run']['accuracy']['mean']:.1f}" == "45.7"


def test_every_slow_test_is_on_the_page_of_long_checks():
    """What runs by hand only is forgotten unless a page names it, with its last outcome."""
    page = (GUIDE / "long-checks.md").read_text(encoding="utf-8")
    tests = DOCS.parent / "tests"
    slow = {
        p.relative_to(DOCS.parent).as_posix()
        for p in tests.rglob("test_*.py")
        if "mark.slow" in p.read_text(encoding="utf-8")
    } - {"tests/test_docs.py"}  # which names the mark here
    named = set(re.findall(r"tests/[\w/]+\.py", page))
    assert slow <= named
    assert not [name for name in named if not (DOCS.parent / name).is_file()]
    # Every check says when, on which commit and how it ended, or that it has not been run.
    rows = [row for row in table_rows("long-checks") if row[0] != "check" and set(row[0]) != {"-"}]
    assert len(rows) > 10
    for check, command, when, _, outcome in rows:
        assert command.startswith("`"), check
        assert re.fullmatch(r"\d+ [A-Z][a-z]+ 20\d\d, [0-9a-f]{7}|not yet", when), (check, when)
        assert outcome, check
