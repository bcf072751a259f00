"""The command line, and the configuration it is turned into."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import architectures, data, networks

METHODS = {
    "ncfm": "the minmax game on the characteristic function discrepancy, frequencies by ψ",
    "ncfm-fixed": "the same discrepancy, frequencies from a fixed normal distribution",
    "ncfm-exact": "the game on the closed form of the squared discrepancy, no frequency noise",
    "mmd": "the closed form with one fixed scale: a Gaussian kernel MMD",
    "dm": "squared distance of the class means of the features",
    "mix": "no matching: small real images packed together, the start of the methods above",
    "random": "no matching: real images",
}
LOSSES = {
    "unbiased": "squared, without the part that sampling noise adds; needs --alpha 0.5",
    "squared": "squared, with it",
    "root": "the published form",
}
BASELINES = {
    "random": "real images",
    "mix": "the packed start",
    "herding": "real images whose features' mean follows that of the class",
    "dm": "distilled by mean matching, in as many iterations",
    "full": "the whole training part, an upper bound",
}
SAMPLERS = {
    "mixture": "ψ, the learned scale mixture of normals",
    "diagonal": "normal, a learned scale for each feature",
    "normal": "normal, one scale",
    "student": "Student-t of 3 degrees of freedom, one scale",
    "laplace": "Laplace, one scale",
    "uniform": "uniform on a box, one scale",
    "direct": "the output of a network",
}
ADVERSARIES = {
    "signal": "the gap beyond the noise of the real images, where they carry signal",
    "loss": "the loss of the images, the published form",
}
SCALE_UNITS = {
    "length": "the length of a row of features, 1",
    "median": "the median distance between the real images of the class, in every iteration",
}
DRAWS = ("random", "orthogonal", "structured", "sobol")
SCHEDULES = ("constant", "rising")
EXTRACTORS = {
    "hybrid": "between its untrained and its trained state",
    "random": "untrained",
    "trained": "trained",
}
DISTILLING = ("ncfm", "ncfm-fixed", "ncfm-exact", "mmd", "dm")
GAMES = ("ncfm", "ncfm-exact")
DRAWING = ("ncfm", "ncfm-fixed")

#: Rates beyond this are no use to anybody, and square to more than float32 holds.
HIGHEST_RATE = 1e6


def path(text: str) -> Path:
    """Read a path; `~` is the home folder, also after an equals sign, where a shell leaves it."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from error


@dataclass(frozen=True)
class Config:
    """Everything the result of a run depends on."""

    dataset: str
    data_dir: str | None  # absolute
    image_size: int  # pixels
    method: str
    preset: str
    ipc: int  # stored images for each class
    factor: int  # ρ: a stored image holds ρ² training images
    iterations: int
    alpha: float
    loss: str  # form of the discrepancy, one of LOSSES
    seed: int
    device: str
    width: int
    depth: int
    zoo_size: int
    zoo_epochs: int
    batch_real: int  # for each class and iteration
    num_frequencies: int
    scale: float  # of the (initial) frequencies; features have unit norm
    max_ratio: float  # ψ keeps every scale within this factor of it
    lr_image: float  # for one class alone; see `distill_cifar.py`
    sampler_lr: float
    patience: int  # iterations without progress before the image rate is halved
    calibration: float  # rate of the cross-entropy's own step, as a share of the images' rate
    eval_epochs: int
    eval_runs: int
    full_epochs: int  # the same for networks trained on the whole training part
    baselines: list[str]  # sets judged beside the method's, of BASELINES
    eval_networks: list[str]  # of architectures.NAMES
    scores: bool
    extractor: str = "hybrid"  # one of EXTRACTORS
    sampler: str | None = "mixture"  # one of SAMPLERS, None for a method without frequencies
    frequency_draw: str = "random"  # one of DRAWS
    frequency_schedule: str = "constant"  # one of SCHEDULES
    fixed_norm: bool = False  # of ψ's scales over the coordinates
    soft_labels: bool = False
    fine_tune: bool = False
    layers: int = 1  # last blocks whose features are matched
    memory_limit_gb: float | None = None  # 1e9 bytes; None handles all classes together
    amp: bool = False  # bfloat16 products in the ConvNets
    # As runs were before there was the choice, and where there is no ψ.
    adversary: str = "loss"  # what ψ climbs, one of ADVERSARIES
    spread: float = 0.0  # of the scales: they are log-normal around `scale`
    scale_unit: str = "length"  # what `scale` is one over, one of SCALE_UNITS

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


#: What a preset fills in where an option is left out. `quick` is for two cores and minutes.
#: `paper` follows the publication, for every data set and 1, 10 or 50 images per class; where it
#: leaves something open the reason stands beside the value. What it shares with `quick` is in
#: `SHARED`, what depends on the data set in `_preset`.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "iterations": 300,
        "width": 32,
        "zoo_size": 3,
        "zoo_epochs": 2,
        "batch_real": 128,
        "num_frequencies": 1024,
        "patience": 500,
        "eval_epochs": 300,
        "eval_runs": 3,
        "full_epochs": 10,
    },
    "paper": {
        "iterations": 20_000,
        # With the depth from the image size (3 blocks at 32 pixels, 4 at 64, 5 at 128, where the
        # last map is 4x4): the ConvNet that its tables, and those of the literature, are about.
        "width": 128,
        "zoo_size": 20,
        "zoo_epochs": 60,  # given for CIFAR; taken for all
        # The most that the published code holds of a class. CIFAR-100 and Tiny ImageNet have less
        # than that: all of a class then, in another order each time.
        "batch_real": 1024,
        "num_frequencies": 1024,  # accuracy rises up to here and is flat beyond
        "patience": 500,  # iterations on a plateau, after which the image rate is halved
        "eval_epochs": 2000,
        "eval_runs": 10,
        # 35 000 steps on CIFAR: four times those on 400 decoded images.
        "full_epochs": 100,
    },
}
SHARED = {
    "ipc": 10,
    # Features have length 1, so distances are at most 2: the published frequencies are N(0, I).
    "scale": 1.0,
    "lr_image": 1e-3,  # 0.01 · 0.1 as published, for a step after each class
    "sampler_lr": 1e-3,  # not published to any effect: ψ did not move there
    # The published configurations have a cross-entropy term, the paper's plain minmax has none.
    # It raises accuracy by other means than matching: an extra, in the paper's recipe too.
    "calibration": 0.0,
}


def _preset(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values for options that are left out."""
    preset = SHARED | PRESETS[args.preset]
    if args.dataset == "digits" and args.preset == "quick":
        preset |= {"ipc": 1, "zoo_epochs": 10, "batch_real": 64}
    if args.dataset == "tinyimagenet" and args.preset == "paper":
        preset |= {"eval_epochs": 300}  # as published: 200 classes are 20 times the steps of 10
    if args.method == "ncfm-exact":
        # For ψ alone, which has no more than a few scales to learn.
        preset |= {"num_frequencies": 256}
    if args.method == "mmd":
        # Scale 1 sees little beyond the mean, and without sampled frequencies a larger one has no
        # noise: on CIFAR-10 a point more than the means in each of three seeds, on the digits 0.1
        # more and 0.7 less than scale 1 in two, which three networks cannot tell from nothing.
        # Not for the games: their ψ starts here, and would start within reach of its bound.
        preset |= {"scale": 3.0}
    return preset


def parser() -> argparse.ArgumentParser:
    forms = "; ".join(f"{name}: {text}" for name, text in LOSSES.items())
    methods = "; ".join(f"{name}: {text}" for name, text in METHODS.items())
    p = argparse.ArgumentParser(
        prog="distill_cifar.py",
        description="Distil an image data set into a few synthetic images per class by matching "
        "characteristic functions of features, and evaluate the result.",
    )
    add = p.add_argument
    add("--dataset", choices=data.DATASETS, default="digits", help="default: %(default)s")
    add(
        "--data-dir",
        type=path,
        metavar="PATH",
        help="folder with train/<class>/* and test/<class>/* (or val/), that of the unpacked "
        "archive for Tiny ImageNet, ImageNette and ImageWoof; for CIFAR also that of torchvision",
    )
    add(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep decoded images and zoo members for other runs in $XDG_CACHE_HOME/ncfd "
        "(default: yes)",
    )
    add("--image-size", type=int, metavar="PIXELS", help="side of the images")
    add("--method", choices=METHODS, default="ncfm", help=f"{methods}. Default: %(default)s")
    add("--ipc", type=int, help="stored images per class (digits: 1, else 10)")
    add("--preset", choices=PRESETS, default="quick", help="defaults of the options below")
    add("--iterations", type=int, help="matching steps")
    add("--alpha", type=float, default=0.5, help="amplitude (1) against phase (0): %(default)s")
    add(
        "--loss",
        choices=LOSSES,
        help=f"form of the discrepancy. {forms}. Default: unbiased; root (squared for the closed "
        "form) with --preset paper, with fewer than 16 images per class after decoding, and where "
        "unbiased is not defined",
    )
    add("--seed", type=int, default=0, help="the result depends on nothing else: %(default)s")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA where it is")
    add("--output-dir", type=path, metavar="PATH", help="default: runs/<what is run>")
    add("--resume", action="store_true", help="go on with the run in the output directory")
    add("--overwrite", action="store_true", help="delete the run in the output directory first")
    add("--zoo", type=path, metavar="FILE", help="take the zoo.pt of another run, train none")
    add("--zoo-size", type=int, help="networks in the zoo")
    add("--zoo-epochs", type=int, help="training epochs of each")
    add("--width", type=int, help="channels of the networks")
    add("--depth", type=int, help="blocks of the networks (default: down to a 4x4 map)")
    add("--batch-real", type=int, help="real images per class and iteration")
    add("--factor", type=int, default=2, help="ρ: a stored image holds ρ² smaller: %(default)s")
    add("--num-frequencies", type=int, help="frequencies per iteration")
    add(
        "--scale",
        type=float,
        help="scale of the frequencies, for ψ the initial one; default: 3 for mmd, else 1",
    )
    units = "; ".join(f"{name}: {text}" for name, text in SCALE_UNITS.items())
    add(
        "--scale-unit",
        choices=SCALE_UNITS,
        default="length",
        help=f"what --scale is counted in one over. {units}. Default: %(default)s",
    )
    add(
        "--spread",
        type=float,
        default=0.0,
        help="spread the scales from the start, log-normally around --scale with this standard "
        "deviation of the logarithm: %(default)s",
    )
    climbed = "; ".join(f"{name}: {text}" for name, text in ADVERSARIES.items())
    add("--adversary", choices=ADVERSARIES, help=f"what ψ climbs. {climbed}. Default: loss")
    add(
        "--max-ratio",
        type=float,
        help="ψ keeps every scale within this factor of --scale (default: 30, and 2 with "
        "--adversary loss, which runs to its bound)",
    )
    add("--lr-image", type=float, help="rate of the images, as for one class at a time")
    add("--sampler-lr", type=float, help="rate of ψ")
    add("--patience", type=int, help="iterations without progress until --lr-image is halved")
    samplers = "; ".join(f"{name}: {text}" for name, text in SAMPLERS.items())
    add(
        "--sampler",
        choices=SAMPLERS,
        help=f"law of the frequencies, learned where the method is a game. {samplers}. Default: "
        "mixture, normal for ncfm-fixed",
    )
    add(
        "--frequency-draw",
        choices=DRAWS,
        default="random",
        help="independent, in orthogonal blocks (structured: of Hadamard matrices) or from a "
        "Sobol sequence; default: %(default)s",
    )
    add(
        "--frequency-schedule",
        choices=SCHEDULES,
        default="constant",
        help="rising: from a quarter of --scale to all of it; default: %(default)s",
    )
    add(
        "--fixed-norm",
        action="store_true",
        help="hold the mean scale of ψ's components: it chooses coordinates, not how far out",
    )
    extractors = "; ".join(f"{name}: {text}" for name, text in EXTRACTORS.items())
    add(
        "--extractor",
        choices=EXTRACTORS,
        default="hybrid",
        help=f"state of the zoo member in use. {extractors}. Default: %(default)s",
    )
    add(
        "--calibration",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SHARE",
        help="after every step another one on the cross-entropy under the trained network, its "
        "rate this share (1 without a number) of the images' rate; default: none",
    )
    add(
        "--soft-labels",
        action="store_true",
        help="also store the labels that the trained zoo gives, and judge the set with them, "
        "beside the headline",
    )
    add(
        "--fine-tune",
        action="store_true",
        help="afterwards a tenth of the iterations on the cross-entropy alone, stored and judged "
        "beside the headline",
    )
    add(
        "--no-calibration",
        dest="calibration",
        action="store_const",
        const=0.0,
        help="the same as --calibration 0",
    )
    add(
        "--layers",
        type=int,
        default=1,
        help="match the features of this many last blocks, each with frequencies of its own",
    )
    add(
        "--memory-limit-gb",
        type=float,
        metavar="X",
        help="handle as many classes at a time as fit into X·10⁹ bytes, and add up their gradients",
    )
    add(
        "--amp",
        action="store_true",
        help="form the products of the ConvNets in bfloat16, wherever one is run; norms and phases "
        "stay in float32. For GPUs, and processors that multiply bfloat16",
    )
    add("--eval-epochs", type=int, help="training epochs of an evaluation network")
    add("--eval-runs", type=int, help="evaluation networks")
    add(
        "--baselines",
        nargs="?",
        const="random,mix",
        default="random,mix",
        metavar="LIST",
        help="also judge these sets of the same size, separated by commas: "
        + "; ".join(f"{name}: {text}" for name, text in BASELINES.items())
        + ". Default: %(default)s",
    )
    add("--no-baselines", dest="baselines", action="store_const", const="", help="judge none")
    add("--full-epochs", type=int, help="training epochs on the whole training part, for `full`")
    add(
        "--eval-networks",
        default="convnet",
        metavar="LIST",
        help="architectures to judge the distilled set with, separated by commas: "
        f"{', '.join(architectures.NAMES)}. The ConvNet, always there, gives the headline",
    )
    add(
        "--scores",
        action="store_true",
        help="also DD-Ranking's label-robust and augmentation-robust scores; judges `random` and "
        "`full` as well, and two sets without augmentation",
    )
    return p


def configure(args: argparse.Namespace) -> Config:
    """Fill in the preset and check every value. Raises ValueError naming the option."""
    values = {k: v for k, v in vars(args).items() if k in Config.__dataclass_fields__}
    preset = _preset(args)
    values |= {k: v for k, v in preset.items() if values.get(k) is None}
    if args.dataset in data.FOLDERS:
        data.required_folder(args.dataset, args.data_dir)
    values["data_dir"] = str(args.data_dir.resolve()) if args.data_dir else None
    values["device"] = choose_device(args.device)
    if values["image_size"] is None:
        values["image_size"] = data.default_image_size(args.dataset, args.data_dir)
    if values["depth"] is None:
        values["depth"] = networks.default_depth(values["image_size"])
    # ψ climbs whatever the loss rewards. Noise adds (1-|φ|²)/M to the squared loss, most of all at
    # high frequencies, where the images say nothing any more: with `root` ψ runs to its bound.
    values["loss"] = _loss(args, values)
    values["sampler"] = _sampler(args)
    values["adversary"] = _adversary(args)
    if values["max_ratio"] is None:
        values["max_ratio"] = 30.0 if values["adversary"] == "signal" else 2.0
    values["baselines"] = names("baselines", args.baselines, BASELINES)
    if args.scores:
        values["baselines"] += [n for n in ("random", "full") if n not in values["baselines"]]
    chosen = names("eval_networks", args.eval_networks, architectures.NAMES)
    values["eval_networks"] = ["convnet", *[n for n in chosen if n != "convnet"]]
    if args.resume and args.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: give one of them")
    config = Config(**values)

    positive = (
        "image_size ipc factor width depth zoo_size zoo_epochs num_frequencies patience layers"
    )
    for name in [
        *positive.split(),
        "iterations",
        "batch_real",
        "eval_epochs",
        "eval_runs",
        "full_epochs",
    ]:
        _check(name, values, values[name] >= 1, "a whole number >= 1")
    _check("alpha", values, 0 <= config.alpha <= 1, "a number in [0, 1]")
    _check("scale", values, 0 < config.scale < float("inf"), "a number > 0")
    _check("spread", values, 0 <= config.spread <= 10, "a number in [0, 10]")
    good = 0 < config.lr_image <= HIGHEST_RATE
    _check("lr_image", values, good, f"a number > 0 and at most {HIGHEST_RATE:g}")
    _check("max_ratio", values, 1 < config.max_ratio < float("inf"), "a number > 1")
    if config.memory_limit_gb is not None:
        good = 0 < config.memory_limit_gb < float("inf")
        _check("memory_limit_gb", values, good, "a number > 0")
    _check(
        "layers",
        values,
        config.layers <= config.depth,
        f"at most --depth {config.depth}, the number of blocks",
    )
    for name in ("sampler_lr", "calibration"):
        good = 0 <= values[name] <= HIGHEST_RATE
        _check(name, values, good, f"a number from 0 to {HIGHEST_RATE:g}")
    _check(
        "image_size",
        values,
        config.image_size % config.factor == 0,
        f"a multiple of --factor {config.factor}, so that the sub-images have whole pixels",
    )
    _check(
        "depth",
        values,
        config.image_size >= 2**config.depth,
        f"at most {config.image_size.bit_length() - 1}, since each block halves the "
        f"{config.image_size} pixels",
    )
    return config


def names(option: str, text: str, known: Collection[str]) -> list[str]:
    """Split a list separated by commas, each name once."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in found:
        if name not in known:
            option = "--" + option.replace("_", "-")
            raise ValueError(f"{option} must be among {', '.join(known)}; got {name!r}")
    return found


def _check(name: str, values: dict[str, Any], good: bool, rule: str) -> None:
    if not good:
        option = "--" + name.replace("_", "-")
        raise ValueError(f"{option} must be {rule}; got {values[name]}")


def _loss(args: argparse.Namespace, values: dict[str, Any]) -> str:
    """Choose the form of the discrepancy, or refuse one that is not defined."""
    exact = args.method in ("ncfm-exact", "mmd")
    samples = min(values["ipc"] * values["factor"] ** 2, values["batch_real"])
    obstacle = None
    if values["alpha"] != 0.5:
        obstacle = f"--alpha 0.5; got {values['alpha']}"
    elif samples < 2:
        obstacle = "two samples of each class, real and synthetic: raise --ipc or --batch-real"
    if args.loss == "unbiased" and obstacle:
        raise ValueError(f"--loss unbiased needs {obstacle}; take root or squared")
    if exact and values["alpha"] != 0.5:
        raise ValueError(
            f"--method {args.method} has a closed form for --alpha 0.5 only; got {values['alpha']}"
        )
    if exact and args.loss == "root":
        raise ValueError(f"--method {args.method} has no --loss root; take squared or unbiased")
    plain = "squared" if exact else "root"
    # The correction takes the synthetic images for random draws. A handful of them, once they are
    # optimised, lie better than any random draw, and ψ is then pushed to frequencies near zero.
    few = values["ipc"] * values["factor"] ** 2 < 16
    return args.loss or (plain if obstacle or few or args.preset == "paper" else "unbiased")


def _sampler(args: argparse.Namespace) -> str | None:
    """Choose the law of the frequencies, or refuse one that is not defined."""
    drawn = args.method in DRAWING
    if args.method == "ncfm":
        allowed, default = list(SAMPLERS), "mixture"
    elif args.method == "ncfm-fixed":
        allowed, default = ["normal", "student", "laplace", "uniform"], "normal"
    elif args.method == "ncfm-exact":  # closed forms of normals
        allowed, default = ["mixture", "diagonal", "normal"], "mixture"
    else:
        allowed, default = [], None
    sampler: str | None = args.sampler or default
    if sampler is not None and sampler not in allowed:
        known = f"one of {', '.join(allowed)}" if allowed else "left out"
        raise ValueError(f"--sampler must be {known} for --method {args.method}; got {sampler}")
    if args.fixed_norm and sampler != "mixture":
        raise ValueError(f"--fixed-norm needs --sampler mixture, that is ψ; got {sampler}")
    if args.frequency_draw != "random":
        obstacle = None
        if not drawn:
            obstacle = f"--method {args.method}, which draws no frequencies"
        elif sampler == "direct" or (sampler == "mixture" and args.frequency_draw == "sobol"):
            obstacle = f"--sampler {sampler}"
        if obstacle:
            raise ValueError(
                f"--frequency-draw must be random for {obstacle}; got {args.frequency_draw}"
            )
    if args.spread and sampler == "direct":
        raise ValueError(f"--spread needs a law with a scale; got --sampler {sampler}")
    if args.method in ("dm", "mix", "random") and args.frequency_schedule != "constant":
        raise ValueError(
            f"--frequency-schedule must be constant for --method {args.method}, which has no "
            f"frequencies; got {args.frequency_schedule}"
        )
    return sampler


def _adversary(args: argparse.Namespace) -> str:
    """Choose what ψ climbs."""
    if args.method not in GAMES:
        return "loss"  # as every run without ψ has it, whatever else shares its line of options
    adversary: str | None = args.adversary
    return adversary or "loss"


def given(arguments: Sequence[str] | None = None) -> set[str]:
    """Return the names of the options that are on the command line, whatever their values."""
    p = parser()
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(p.parse_args([])), unset))
    return {k for k, v in vars(p.parse_args(arguments, blank)).items() if v is not unset}


def idle(config: Config, given: Collection[str]) -> list[str]:
    """Say which of the options in `given` change nothing in this run, and why.

    They are no error: one line of options serves several methods.
    """
    sets = {config.method, *config.baselines}
    matched = bool(sets & {*DISTILLING})
    compared = config.method in DISTILLING and config.method != "dm"
    zoo = matched or "herding" in sets or config.soft_labels or config.fine_tune
    method = f"with --method {config.method}"
    unmatched = f"{method}, which matches nothing"
    rules = (  # options, whether they change anything, and where they do not
        ("data_dir", config.dataset != "digits", "with --dataset digits"),
        ("iterations lr_image", matched or config.fine_tune, unmatched),
        ("batch_real patience extractor layers calibration", matched, unmatched),
        ("alpha loss scale scale_unit spread", compared, method),
        ("num_frequencies", config.method in (*DRAWING, "ncfm-exact"), method),
        (
            "adversary max_ratio sampler_lr",
            config.method in GAMES,
            f"{method}, where ψ does not move",
        ),
        ("factor", bool(sets - {"random", "herding", "full"}), method),
        ("zoo", zoo, f"{method}, which needs no zoo"),
        ("zoo_size zoo_epochs", zoo, f"{method}, which needs no zoo"),
        ("zoo_size zoo_epochs", "zoo" not in given, "with --zoo, which is trained already"),
        ("full_epochs", "full" in sets, "without the baseline `full`"),
    )
    found: dict[str, list[str]] = {}
    for names, useful, reason in rules:
        idle = [f"--{name.replace('_', '-')}" for name in names.split() if name in given]
        if idle and not useful:
            found.setdefault(reason, []).extend(idle)
    return [f"{', '.join(names)}: no effect {reason}" for reason, names in found.items()]


def choose_device(name: str) -> str:
    """Turn `--device` into a device that can be used. Raises ValueError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones((), device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"--device {name} cannot be used ({reason}); try cpu") from error
    return name
