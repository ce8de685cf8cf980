"""Run the evidence: train, sample, measure, write the page; every part resumes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks.evidence
from benchmarks.evidence import extractor, page, parts, pictures, protocol, summary, training
from benchmarks.evidence.protocol import ARMS, COMMON, MODELS
from benchmarks.evidence.rows import stored
from benchmarks.measuring import EVIDENCE, write
from kinema.checkpoints.files import weight_hash
from kinema.evaluation.results import Median
from kinema.evaluation.temporal import has_flow
from kinema.events import Event, TrainStep
from kinema.system import open_system

NAME = "video-diffusion"
PARTS: Mapping[str, tuple[Callable[[parts.Bench], None], Sequence[str]]] = {
    "figure": (parts.figure, ("image", "video")),
    "extension": (parts.extension, ("video",)),
    "langevin": (parts.langevin, ("video",)),
    "guidance": (parts.guidance, ("video",)),
    "images": (parts.images, ("joint",)),
    "losses": (parts.losses, ("video", "joint")),
}
"""How each part is measured, and its models."""


def expected(part: str) -> int:
    """The number of rows of a part."""
    count = len(protocol.prompts())
    return {
        "figure": (2 + len(ARMS)) * protocol.PER_PROMPT * count,
        "extension": 2 * len(parts.lasting()),
        "langevin": 2 * count,
        "guidance": 2 * count,
        "images": count,
        "losses": 2 * parts.LOSSES,
    }[part]


def main() -> int:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = options.evidence / NAME
    if options.part == "train":
        for name in options.names or MODELS:
            training.weights(options.out, MODELS[name], Shown(MODELS[name].title))
        return 0
    if options.part != "page":
        for part in options.names or PARTS:
            head, found = stored(rows / f"{part}.jsonl")
            if len(found) < expected(part):
                measure(options, rows, part)
            elif head["extractor"] != (wanted := extractor.named_extractor(options.extractor).weights):
                raise SystemExit(
                    f"{part} was measured with extractor {head['extractor']}, not {wanted}: name another "
                    "folder as --evidence"
                )
    if options.part != "measure":
        write_page(options.evidence)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.evidence",
        description=benchmarks.evidence.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=("all", "train", "measure", "page"), default="all")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of train: models; of measure: parts; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of the trainings")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help="folder of the measurements and the page")
    parser.add_argument("--extractor", default=extractor.PLAYROOM, help="package.module:function of the features")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    known = {"train": MODELS, "measure": PARTS}.get(options.part, {})
    if odd := [name for name in options.names if name not in known]:
        parser.error(f"{odd[0]} is not known to {options.part}; expected {', '.join(known) or 'no name'}")
    return options


def measure(options: argparse.Namespace, folder: Path, part: str) -> None:
    """Measure a part, after training those of its models that are missing."""
    if not has_flow():
        raise SystemExit("the measures of motion require OpenCV; install it with: pip install 'kinema[eval]'")
    work, names = PARTS[part]
    files = {name: training.weights(options.out, MODELS[name], Shown(MODELS[name].title)) for name in names}
    features = extractor.named_extractor(options.extractor)
    folder.mkdir(parents=True, exist_ok=True)
    head = {name: weight_hash(file) for name, file in files.items()} | {"extractor": features.weights}
    systems = {name: open_system(file) for name, file in files.items()}
    bench = parts.Bench(systems, features.extract, folder, head)
    bench.rows(part)  # refuses rows of other weights or settings before anything is written
    known = described(folder) | {"extractor": {"name": features.name, "weights": features.weights}}
    if COMMON.name not in known:
        files = {COMMON.name: training.weights(options.out, COMMON, Shown(COMMON.title)), **files}
    known |= {name: training.described(options.out, MODELS[name], file) for name, file in files.items()}
    write(folder / "models.json", known)
    work(bench)


def described(folder: Path) -> dict[str, Any]:
    """What the parts that were measured say of their models."""
    path = folder / "models.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_page(evidence: Path) -> None:
    """Compute all figures from the rows, and write them, the pictures and the page.

    Claims whose parts are not measured are named on the page as such. Exits if the figure itself is not.
    """
    folder = evidence / NAME
    models, rows = described(folder), {}
    for part, (_, names) in PARTS.items():
        head, found = stored(folder / f"{part}.jsonl")
        if len(found) < expected(part):
            continue
        if any(head[name] != models[name]["weights"] for name in (*names, "extractor")):
            raise SystemExit(f"{part} was measured with other weights than models.json states: measure it again")
        rows[part] = found
    if "figure" not in rows:
        raise SystemExit(f"{folder}/figure.jsonl is missing or incomplete: run `make evidence`")
    found = {
        "command": "python -m benchmarks.evidence",
        "models": models,
        "figure": summary.figure(rows["figure"]),
        "claims": summary.claims(rows),
    }
    plotted = (*summary.UNSTEADY, *summary.BESIDE[:2])
    ratios = {
        page.NAMES[name]: {
            ARMS[arm].title: Median.of(ratio) for arm, ratio in found["figure"]["measures"][name]["to real"].items()
        }
        for name in plotted
    }
    pictures.plot(ratios, folder / "measures.png")
    for number, first in enumerate(range(0, pictures.SHOWN, 2)):
        pictures.frames(folder / "strips", pictures.shown()[first : first + 2], folder / f"frames-{number + 1}.png")
    data = summary.plain(found)
    write(evidence / f"{NAME}.json", data)
    (evidence / f"{NAME}.md").write_text(page.page(data), encoding="utf-8")
    print(page.page(data))


class Shown:
    """Prints the progress of a training, with the time left."""

    def __init__(self, title: str) -> None:
        self.title, self.began, self.first = title, time.monotonic(), 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrainStep) or event.index % 50:
            return
        if not self.first:
            self.first, self.began = event.index, time.monotonic()
            left: Any = "?"
        else:
            each = (time.monotonic() - self.began) / (event.index - self.first)
            left = f"{each * (event.total - event.index) / 60:.0f}"
        print(f"{self.title}: step {event.index} of {event.total}, loss {event.loss:.3f}, {left} min left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
