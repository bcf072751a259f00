"""The studies, as data: what is asked, and the runs that answer it."""

from dataclasses import dataclass

#: Options of every run, before those of the study, those given after `--`, and those of the row.
#: Two to five minutes on one core shared with other jobs. Half the width, a third of the iterations
#: and half the epochs of evaluation of the scaled table in the guide, and twice its step.
PROTOCOL = (
    *("--ipc", "10", "--width", "16", "--zoo-size", "3", "--zoo-epochs", "2"),
    *("--iterations", "100", "--batch-real", "32", "--lr-image", "2e-3"),
    *("--eval-epochs", "80", "--eval-runs", "1", "--num-frequencies", "1024", "--no-baselines"),
)

#: Runs that converge: at 16 pixels an iteration costs a fifth of one at 32.
SMALL = (
    *("--image-size", "16", "--width", "64", "--ipc", "10"),
    *("--zoo-size", "3", "--zoo-epochs", "4", "--iterations", "600", "--batch-real", "64"),
    *("--eval-epochs", "250", "--eval-runs", "2", "--num-frequencies", "1024", "--no-baselines"),
)
#: Two to five minutes of a core that multiplies bfloat16.
CONVERGED = (*SMALL, "--amp")

#: The same for a rehearsal: whether everything works, and nothing else.
QUICK = (
    *("--ipc", "4", "--width", "8", "--zoo-size", "2", "--zoo-epochs", "1"),
    *("--iterations", "6", "--batch-real", "16", "--eval-epochs", "5", "--eval-runs", "2"),
    *("--num-frequencies", "64", "--no-baselines"),
)


@dataclass(frozen=True)
class Row:
    """A run, for each seed. `x` and `line` place it in a plot over numbers."""

    name: str
    options: tuple[str, ...] = ()
    x: float | None = None
    line: str = ""


@dataclass(frozen=True)
class Study:
    """Rows that differ in what is asked for, and in nothing else."""

    name: str
    question: str
    options: tuple[str, ...]  # of every row
    rows: tuple[Row, ...]
    reference: str  # the row that the others are compared with, seed by seed
    x_label: str = ""  # with `Row.x`
    x_log: bool = False
    players: bool = False  # also what became of ψ: columns, curves, diagnosis
    images: bool = False  # also the distilled images side by side
    protocol: tuple[str, ...] = PROTOCOL

    def row(self, name: str) -> Row:
        (found,) = (row for row in self.rows if row.name == name)
        return found


# Features have length 1. At scale 1 their characteristic function says little beyond their mean,
# and whatever is studied would be hidden by that.
SCALE = ("--scale", "3")

# One form of the loss for the rows of a study. It cannot be the default, `unbiased`: that exists
# for α = 1/2 only, and α would then be compared across two losses.
FIXED = ("--method", "ncfm-fixed", "--loss", "squared", *SCALE)
GAME = ("--method", "ncfm", "--loss", "squared", *SCALE)

BEST = ("--method", "mmd", "--loss", "squared", "--scale-unit", "median", "--scale", "2")
SIGNAL = ("--method", "ncfm", "--adversary", "signal")
# One scale has no network between it and its optimizer, and is moved by less at the same rate.
FAST = ("--sampler-lr", "2e-2")
# Two hundred and fifty-six frequencies for ψ's J; the images' loss has them all.
EXACT = ("--method", "ncfm-exact", "--adversary", "signal", "--num-frequencies", "256")


def _at(name: str, options: tuple[str, ...], *scales: float) -> tuple[Row, ...]:
    return tuple(Row(f"{name}{s:g}", (*options, "--scale", f"{s:g}")) for s in scales)


ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
COUNTS = (16, 64, 256, 1024, 4096)

# Scales that give the laws one standard deviation, 3, at the start: that of Student's law of 3
# degrees of freedom is √3 times its scale, of Laplace's √2 times, of the uniform one 1/√3; the
# network's outputs begin at about 3/4 of theirs. Otherwise the study would be about the scale.
SAMPLERS = {
    "mixture": "3",
    "diagonal": "3",
    "normal": "3",
    "student": "1.732",
    "laplace": "2.121",
    "uniform": "5.196",
    "direct": "4.2",
}

_ALL = (
    Study(
        "psi",
        "Does it help to learn the frequencies (ψ), and to match distributions rather than means?",
        ("--loss", "squared", *SCALE),
        (
            *(Row(m, ("--method", m)) for m in ("ncfm", "ncfm-fixed", "ncfm-exact", "mmd", "dm")),
            Row("ncfm, norm held", ("--method", "ncfm", "--fixed-norm")),
            *(Row(m, ("--method", m)) for m in ("mix", "random")),
        ),
        reference="dm",
    ),
    Study(
        "alpha",
        "How should amplitude (α = 1: spread) and phase (α = 0: location) be weighted?",
        FIXED,
        tuple(Row(f"α = {a:g}", ("--alpha", f"{a:g}"), x=a) for a in ALPHAS),
        reference="α = 0.5",
        x_label="α: weight of amplitude against phase",
        images=True,
    ),
    Study(
        "frequencies",
        "How many frequencies does an iteration need, and do orthogonal ones replace many?",
        FIXED,
        tuple(
            Row(
                f"{count}, {draw}",
                ("--num-frequencies", str(count), "--frequency-draw", draw),
                x=count,
                line=draw,
            )
            for draw in ("random", "orthogonal")
            for count in COUNTS
        ),
        reference="1024, random",
        x_label="frequencies per iteration",
        x_log=True,
    ),
    Study(
        "sampler",
        "Is the scale mixture the best form of ψ, and is any form better than a fixed law?",
        GAME,
        (
            *(Row(name, ("--sampler", name, "--scale", s)) for name, s in SAMPLERS.items()),
            Row("fixed normal", ("--method", "ncfm-fixed")),
        ),
        reference="fixed normal",
        players=True,
    ),
    Study(
        "extractor",
        "Does blending untrained and trained networks help, or do the ends suffice?",
        FIXED,
        tuple(Row(name, ("--extractor", name)) for name in ("random", "trained", "hybrid")),
        reference="hybrid",
    ),
    Study(
        "stability",
        "Is the game stable, where does ψ go, and does the diagnosis tell when it fails?",
        GAME,
        (
            Row("no ψ", ("--method", "ncfm-fixed")),
            Row("squared, rate 1e-3"),
            Row("squared, rate 1e-4", ("--sampler-lr", "1e-4")),
            Row("squared, rate 1e-2", ("--sampler-lr", "1e-2")),
            Row("squared, rate 1e-1", ("--sampler-lr", "1e-1")),
            Row("unbiased, rate 1e-3", ("--loss", "unbiased")),
            Row("root, rate 1e-3", ("--loss", "root")),
            Row("squared, norm held", ("--fixed-norm",)),
            # Far from where anything can be seen, quickly.
            Row(
                "provoked: runaway",
                ("--loss", "root", "--max-ratio", "32", "--sampler-lr", "1e-1"),
            ),
            # The modulus of a single image's φ is 1 at every frequency: images that are compared by
            # moduli alone with one real image at a time have to become one image.
            Row("provoked: collapse", ("--alpha", "1", "--batch-real", "1", "--lr-image", "2e-2")),
            # Steps fifty times too large.
            Row("provoked: clipping", ("--lr-image", "0.1")),
        ),
        reference="no ψ",
        players=True,
    ),
    Study(
        "schedule",
        "Is it better to begin with low frequencies?",
        FIXED,
        tuple(Row(name, ("--frequency-schedule", name)) for name in ("constant", "rising")),
        reference="constant",
    ),
    Study(
        "adversary",
        "What should ψ climb, does it find its scale from any start, and is it better than a fixed "
        "law?",
        ("--loss", "squared"),
        (
            Row("dm", ("--method", "dm")),
            *_at("mmd, ", ("--method", "mmd"), 1, 3),
            *_at("mmd, median × ", ("--method", "mmd", "--scale-unit", "median"), 1, 2),
            *_at("fixed, ", ("--method", "ncfm-fixed"), 1, 3),
            *_at("ψ on J from ", SIGNAL, 1, 6, 3, 0.5),
            *_at("ψ on the loss from ", ("--method", "ncfm", "--adversary", "loss"), 1),
            *_at(
                "ψ on the loss, wide, from ",
                ("--method", "ncfm", "--adversary", "loss", "--max-ratio", "30"),
                1,
            ),
            *_at("exact, ψ on J from ", EXACT, 1),
            *_at("exact, one scale on J from ", (*EXACT, "--sampler", "normal", *FAST), 1),
            *_at("one scale on J from ", (*SIGNAL, "--sampler", "normal", *FAST), 1, 6, 0.5),
            *_at("fixed, spread 0.7, ", ("--method", "ncfm-fixed", "--spread", "0.7"), 1),
            *_at("mmd, spread 0.7, ", ("--method", "mmd", "--spread", "0.7"), 3),
            *_at("fixed, ", ("--method", "ncfm-fixed"), 0.5, 6),
        ),
        reference="dm",
        players=True,
        protocol=CONVERGED,
    ),
    Study(
        "recipe",
        "Which parts of the recipe does the accuracy rest on?",
        BEST,
        (
            Row("reference"),
            Row("2000 iterations", ("--iterations", "2000")),
            Row("128 real images", ("--batch-real", "128")),
            Row("32 real images", ("--batch-real", "32")),
            Row("rate of the images × 3", ("--lr-image", "3e-3")),
            Row("rate held", ("--patience", "600")),
            Row("zoo of 12 epochs", ("--zoo-epochs", "12")),
            Row("trained networks only", ("--extractor", "trained")),
            Row("calibration", ("--calibration", "1")),
            Row("calibration × 3", ("--calibration", "3")),
            Row("calibration × 0.3", ("--calibration", "0.3")),
            Row("two layers", ("--layers", "2")),
            Row("evaluation of 1000 epochs", ("--eval-epochs", "1000")),
            Row("stored whole", ("--factor", "1")),
        ),
        reference="reference",
        protocol=CONVERGED,
    ),
    Study(
        "precision",
        "Do products in bfloat16 cost accuracy?",
        (*BEST, "--iterations", "300", "--eval-runs", "1"),
        (Row("float32"), Row("bfloat16", ("--amp",))),
        reference="float32",
        protocol=SMALL,
    ),
    Study(
        "loss",
        "Which form of the discrepancy: its square, corrected for sampling noise or not, or the "
        "root?",
        FIXED,
        tuple(Row(name, ("--loss", name)) for name in ("unbiased", "squared", "root")),
        reference="squared",
    ),
)

#: By name. `projection` is a measurement of another kind, and lies in `projection.py`.
STUDIES = {study.name: study for study in _ALL}

PROJECTION = "What does ImageNet-1K take: memory and time, on one process and on many?"
