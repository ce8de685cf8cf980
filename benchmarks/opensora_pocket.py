"""The pocket Open-Sora: its scores by number of steps, its conditioning, and another seed's training curve.

    python -m benchmarks.opensora_pocket table     # scores, flicker and seconds, with zoetrope's
    python -m benchmarks.opensora_pocket sheet     # given frames, extension, inpainting and editing
    python -m benchmarks.opensora_pocket follow --runs runs/opensora-pocket runs/other-seed

Prompts are of the evaluation share, of which none was used in training opensora-pocket; zoetrope was trained on them
too (docs/decisions/0015). Results go to --evidence; measurements by model and number of steps, so that an interrupted
run continues, to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lumiere_pocket import interval, median, rendered, unseen, write
from kinema import load
from kinema.api import Model
from kinema.evaluation import metrics
from kinema.evaluation.oracle import Verdict, judge, wilson
from kinema.evaluation.plots import sheet
from kinema.evaluation.sampling import Sampling
from kinema.media.read import read_video
from kinema.media.write import save_clip
from kinema.schema import Clip
from kinema.system import System, open_system

HERE = Path(__file__).parent
POCKET, RIVAL = "opensora-pocket", "zoetrope"
STEPS = (4, 8, 16, 32)
SHARES = {"colour": "colour_right", "shape": "shape_right", "direction": "direction_right", "motion": "motion_right",
          "count": "count_right"}  # fmt: skip
RATIOS = ("flicker", "sharpness", "motion_amount")
TIMED = 5
"""Single clips that are timed for each model and number of steps."""
MEDIA = HERE.parents[1] / "shared" / "media"
SCENES = ("fv_i2v.mp4", "c2pa_video1.mp4", "cosmos_video30.mp4")
FRAMES, FPS = 17, 8.0
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """Command line options."""

    what: str
    prompts: int
    seed: int
    batch: int
    out: Path
    evidence: Path
    threads: int | None
    models: str
    rival_prompts: int | None
    media: Path
    runs: tuple[Path, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "sheet", "follow"))
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the first clip")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/opensora-pocket-measured"))
    parser.add_argument("--evidence", type=Path, default=HERE.parent / "docs" / "evidence")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--models", default=f"{POCKET},{RIVAL}", help="table: embedded names or files")
    parser.add_argument("--rival-prompts", type=int, help=f"table: fewer prompts for {RIVAL}, the first of them")
    parser.add_argument("--media", type=Path, default=MEDIA, help=f"sheet: folder with {', '.join(SCENES)}")
    parser.add_argument("--runs", type=Path, nargs=2, default=(), help="follow: folders of the two runs")
    found = vars(parser.parse_args())
    options = Options(**{**found, "runs": tuple(found["runs"])})
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    options.evidence.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    {"table": table, "sheet": sheets, "follow": follow}[options.what](options)


# ------------------------------------------------------------------------------------------- table


def table(options: Options) -> None:
    """Oracle shares, ratios to rendered clips of the same prompt and seed, and seconds, by model and steps.

    Figures that the evidence has of the same weights and clips are kept. Batches of prompts take turns over the models
    and steps, so that an interrupted run has the same prompts of each.
    """
    path = options.evidence / "opensora-pocket.json"
    prompts, keys = unseen(options.prompts, options.seed), {"split": "evaluation", "seed": options.seed}
    systems = {Path(name).stem: open_system(name) for name in options.models.split(",")}
    counts = {name: options.prompts if name == POCKET else options.rival_prompts or options.prompts for name in systems}
    result = {
        name: known(path, {"weights": system.weights.hash, "prompts": counts[name]}, keys, name)
        for name, system in systems.items()
    }
    left = [name for name, found in result.items() if not all(str(steps) in found for steps in STEPS)]
    for start in range(0, len(prompts), options.batch):
        for name in left:
            for steps in STEPS:
                measure(options, systems[name], name, steps, prompts[: counts[name]], start)
    for name in left:
        for steps in STEPS:
            result[name][str(steps)] = figures(stored(options, systems[name], name, steps)[: counts[name]])
    for steps in STEPS:
        for name, seconds in timed(systems, steps, prompts[:TIMED], options.seed).items():
            result[name][str(steps)]["seconds"] = seconds
            print(line(name, steps, result[name][str(steps)]), flush=True)
    write(path, {**keys, "models": result})


def known(path: Path, own: Mapping[str, Any], keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the evidence has of a model if it is of these weights and clips, else only what it will be of."""
    data = json.loads(path.read_text()) if path.is_file() else {}
    found = data.get("models", {}).get(name, {})
    same = all(data.get(key) == value for key, value in keys.items())
    return found if same and all(found.get(key) == value for key, value in own.items()) else dict(own)


def measure(options: Options, system: System, name: str, steps: int, prompts: Sequence[str], start: int) -> None:
    """Add verdicts and ratios of a batch of clips to those in ``options.out``, unless they are there."""
    batch, seed, rows = (
        prompts[start : start + options.batch],
        options.seed + start,
        stored(options, system, name, steps),
    )
    if [row["prompt"] for row in rows[start : start + len(batch)]] == list(batch):
        return
    sampling, rows = Sampling.of(system, steps=steps), rows[:start]
    fps = float(sampling.request.fps or FPS)
    for i, (prompt, video) in enumerate(zip(batch, sampling.clips(batch, seed), strict=True)):
        made = video.clamp(-1, 1)
        real = rendered(prompt, seed + i, made.shape[1], fps)
        verdicts = judge(made, prompt, fps), judge(real, prompt, fps)
        rows.append({"prompt": prompt, **shares(verdicts[0]), **ratios(made, real, verdicts)})
    write(rows_file(options, name, steps), {"keys": row_keys(options, system, steps), "rows": rows})
    print(f"{name}, {steps} steps: {len(rows)} of {len(prompts)} clips", flush=True)


def stored(options: Options, system: System, name: str, steps: int) -> list[dict[str, Any]]:
    path = rows_file(options, name, steps)
    data = json.loads(path.read_text()) if path.is_file() else {}
    return data["rows"] if data.get("keys") == row_keys(options, system, steps) else []


def rows_file(options: Options, name: str, steps: int) -> Path:
    return options.out / f"{name}-{steps}.json"


def row_keys(options: Options, system: System, steps: int) -> dict[str, Any]:
    return {"weights": system.weights.hash, "steps": steps, "seed": options.seed}


def timed(systems: Mapping[str, System], steps: int, prompts: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Median, least and most seconds of a single clip, the models taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    samplings = {name: Sampling.of(system, steps=steps) for name, system in systems.items()}
    for number, prompt in enumerate(prompts):
        for name, sampling in samplings.items():
            began = time.perf_counter()
            sampling.clips([prompt], seed + number)
            seconds[name].append(time.perf_counter() - began)
    threads = torch.get_num_threads()
    return {
        name: {"median": statistics.median(found), "low": min(found), "high": max(found), "threads": threads}
        for name, found in seconds.items()
    }


def shares(verdict: Verdict) -> dict[str, bool | None]:
    found = asdict(verdict)
    return {name: found[field] for name, field in SHARES.items()}


def ratios(made: Tensor, real: Tensor, verdicts: tuple[Verdict, Verdict]) -> dict[str, float]:
    sharp = [float(metrics.sharpness(video[None])) for video in (made, real)]
    pairs = {"flicker": [each.flicker for each in verdicts], "sharpness": sharp,
             "motion_amount": [each.motion_amount for each in verdicts]}  # fmt: skip
    return {name: of_made / max(of_real, 1e-6) for name, (of_made, of_real) in pairs.items()}


def figures(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SHARES:
        share = wilson([row[name] for row in rows])
        assert share is not None
        found[name] = asdict(share)
    return {**found, **{name: median([row[name] for row in rows]) for name in RATIOS}}


def line(name: str, steps: int, found: Mapping[str, Any]) -> str:
    parts = [
        f"{what} {100 * found[what]['mean']:.0f} % ({100 * found[what]['low']:.0f}–{100 * found[what]['high']:.0f} %; "
        f"{found[what]['count']:.0f} clips)"
        for what in SHARES
    ]
    parts += [f"{what.replace('_', ' ')} over rendered {interval(found[what])}" for what in RATIOS]
    return f"{name}, {steps} steps: " + "; ".join(parts) + f"; {found['seconds']['median']:.2f} s a clip"


# ------------------------------------------------------------------------------------------- sheet


def sheets(options: Options) -> None:
    """One sheet: each kind of conditioning on a rendered clip, then on the first frame of real ones."""
    model, folder = load(POCKET), options.out / "inputs"
    folder.mkdir(exist_ok=True)
    prompt = "a red ball rolls right"
    real = Clip(rendered(prompt, options.seed, FRAMES, FPS)[None], FPS, {})
    rows: list[tuple[str, Tensor]] = [(f"# {prompt}|rendered", real.video[0])]
    rows += [(name, make(model, prompt, real, folder).video[0, :, :FRAMES]) for name, make in KINDS.items()]
    for file in SCENES:
        frame = read_video(options.media / file, frames=1, size=(64, 64, "crop")).video
        still = Clip(frame, FPS, {})
        image = saved(still, folder / f"{Path(file).stem}.png")
        for number, (name, make) in enumerate(ON_IMAGES.items()):
            made = make(model, image).video[0, :, :FRAMES]
            rows.append((f"# {file}|{name}" if number == 0 else name, made))
    sheet([(label, video[:, ::2]) for label, video in rows], options.evidence / "opensora-pocket.png")
    print(options.evidence / "opensora-pocket.png")


def saved(clip: Clip, path: Path) -> Path:
    save_clip(clip, path)
    return path


def frame(clip: Clip, index: int, folder: Path) -> Path:
    return saved(Clip(clip.video[:, :, index : index + 1], clip.fps, {}), folder / f"frame-{index}.png")


def part(clip: Clip, frames: int, folder: Path) -> Path:
    path = folder / f"first-{frames}"
    save_clip(Clip(clip.video[:, :, :frames], clip.fps, {}), f"{path}/")
    return path


def tail(model: Model, prompt: str, clip: Clip, folder: Path) -> Clip:
    """The last frame alone is given."""
    return model.animate(prompt=prompt, keyframes={FRAMES - 1: frame(clip, FRAMES - 1, folder)}, seed=1)


KINDS: dict[str, Callable[[Model, str, Clip, Path], Clip]] = {
    "text": lambda model, prompt, _clip, _folder: model.generate(prompt, seed=1),
    "i2v head": lambda model, prompt, clip, folder: model.animate(frame(clip, 0, folder), prompt, seed=1),
    "i2v tail": tail,
    "i2v loop": lambda model, prompt, clip, folder: model.animate(frame(clip, 0, folder), prompt, loop=True, seed=1),
    "extension": lambda model, prompt, clip, folder: model.extend(
        part(clip, 9, folder), prompt=prompt, frames=FRAMES, seed=1
    ),
    "inpainting": lambda model, prompt, clip, folder: model.inpaint(
        part(clip, FRAMES, folder), prompt.replace("red", "blue"), region=(0.25, 0.0, 0.75, 1.0), seed=1
    ),
    "edit": lambda model, prompt, clip, folder: model.edit(
        part(clip, FRAMES, folder), prompt.replace("red", "green"), strength=0.7, seed=1
    ),
}
ON_IMAGES: dict[str, Callable[[Model, Path], Clip]] = {
    "head": lambda model, image: model.animate(image, "a red ball rolls right", seed=1),
    "tail": lambda model, image: model.animate(prompt="a red ball rolls right", keyframes={FRAMES - 1: image}, seed=1),
    "loop": lambda model, image: model.animate(image, "a red ball rolls right", loop=True, seed=1),
}


# ------------------------------------------------------------------------------------------ follow

WINDOW = 10
"""Rows of the log (every tenth step) in a window of the curve."""


def follow(options: Options) -> None:
    """The mean training loss of windows of steps in both runs, leg by leg, as far as the shorter one goes.

    The spread of a window is that of the shipped run's loss within it: twice the standard error of the difference of
    two means.
    """
    if not options.runs:
        raise SystemExit("follow: give --runs with the folder of the shipped run and that of the other seed")
    found: dict[str, list[dict[str, float]]] = {}
    for leg in ("codec", "flow"):
        curves = [windows(run / leg / "log.jsonl") for run in options.runs]
        if all(curves):
            found[leg] = [compared(*pair) for pair in zip(*curves, strict=False)]
    write(options.evidence / "opensora-pocket-curve.json", found)
    for leg, rows in found.items():
        within = sum(abs(row["other"] - row["shipped"]) <= row["spread"] for row in rows)
        print(f"{leg}: {within} of {len(rows)} windows within the spread, to step {rows[-1]['step']:.0f}")
        for row in rows:
            print(f"  step {row['step']:.0f}: {row['shipped']:.4f}, {row['other']:.4f} (± {row['spread']:.4f})")


Window = tuple[int, np.ndarray]


def windows(path: Path) -> list[Window]:
    """(last step, losses) of each complete window of a log."""
    if not path.is_file():
        return []
    rows = [row for text in path.read_text().splitlines() if "loss" in (row := json.loads(text))]
    parts = [rows[i : i + WINDOW] for i in range(0, len(rows) - WINDOW + 1, WINDOW)]
    return [(int(each[-1]["step"]), np.array([row["loss"] for row in each])) for each in parts]


def compared(shipped: Window, other: Window) -> dict[str, float]:
    error = np.sqrt((shipped[1].var(ddof=1) + other[1].var(ddof=1)) / WINDOW)
    return {
        "step": shipped[0],
        "shipped": float(shipped[1].mean()),
        "other": float(other[1].mean()),
        "spread": float(2 * error),
    }


if __name__ == "__main__":
    main()
