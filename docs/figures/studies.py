"""The studies of distillation, each from its file of results: nothing is computed here.

The files are what ``examples/studies/run.py`` writes. The distilled images of the study of α are
drawn from its runs, which are not in the repository: give their folder to draw them again.
"""

import json
import sys
from pathlib import Path

from _figure import FIGURES, ROOT, save

sys.path.insert(0, str(ROOT / "examples"))
from studies import plots
from studies.questions import STUDIES

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Draw every study that has results."""
    for file in sorted(RESULTS.glob("study-*-cpu.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        name = content["study"]
        if name == "projection":
            save(f"study_{name}", lambda c, content=content: plots.draw_projection(content, c))
        else:
            study, runs = STUDIES[name], content["runs"]
            save(f"study_{name}", lambda c, s=study, r=runs: plots.draw(s, r, c))
    if len(sys.argv) > 1:
        images(Path(sys.argv[1]))


def images(folder: Path) -> None:
    """Copy the picture of the distilled images from a study's folder; in 256 colours if large."""
    from PIL import Image

    picture, target = Image.open(folder / "alpha-images.png"), FIGURES / "study_alpha_images.png"
    picture.convert("RGB").save(target, optimize=True)
    if target.stat().st_size > 140_000:
        picture.convert("RGB").quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    main()
