"""The pocket Open-Sora: its scores by number of steps, its conditioning, and other seeds' training curves.

    python -m benchmarks.opensora_pocket table     # scores, flicker and seconds, with zoetrope's
    python -m benchmarks.opensora_pocket sheet     # given frames, extension, inpainting and editing
    python -m benchmarks.opensora_pocket follow    # logs of seed 1, or --runs FOLDER of any seed, finished or not
    python -m benchmarks.opensora_pocket start --seed 1 --out runs/seed-1-flow    # its flow alone, on the shipped codec
    kinema train runs/seed-1-flow/start.safetensors --stage flow --seed 1 --out runs/seed-1-flow/flow

Prompts are of the evaluation share, of which none was used in training opensora-pocket; zoetrope was trained on them
too (docs/decisions/0015). Results go to --evidence; measurements by model and number of steps, so that an interrupted
run continues, to --out.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import interval, median, rendered, unseen, write
from kinema import load
from kinema.api import Model
from kinema.atomic import replacing
from kinema.checkpoints.files import write_tensors
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
STEPS, PROMPTS = (4, 8, 16, 32), 128
SHARES = {"colour": "colour_right", "shape": "shape_right", "direction": "direction_right", "motion": "motion_right",
          "count": "count_right"}  # fmt: skip
RATIOS = ("flicker", "sharpness", "motion_amount")
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
TIMED = 3
"""Single clips that are timed for each model and number of steps."""
MEDIA = HERE.parents[1] / "shared" / "media"
SCENES = ("fv_i2v.mp4", "c2pa_video1.mp4", "cosmos_video30.mp4")
FRAMES, FPS = 17, 8.0
SEED_1 = measuring.EVIDENCE / "opensora-pocket-seed-1"
"""Logs of the codec with seed 1 and of the flow with seed 1 on the shipped codec, both cut off."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Options(measuring.Options):
    """Command line options."""

    models: str
    rival_prompts: int | None
    media: Path
    shipped: Path
    runs: Sequence[Path]


def main() -> None:
    commands = {"table": table, "sheet": sheets, "follow": follow, "start": start}
    parser = measuring.parser(__doc__, [*commands], "opensora-pocket", "128")
    parser.add_argument("--models", default=f"{POCKET},{RIVAL}", help="table: embedded names or files")
    parser.add_argument("--rival-prompts", type=int, help=f"table: fewer prompts for {RIVAL}, the first of them")
    parser.add_argument("--media", type=Path, default=MEDIA, help=f"sheet: folder with {', '.join(SCENES)}")
    parser.add_argument("--shipped", type=Path, default=measuring.EVIDENCE, help="follow: folder of the shipped logs")
    parser.add_argument("--runs", type=Path, nargs="+", default=(SEED_1,), help="follow: folders of other runs")
    options = Options(**vars(parser.parse_args()))
    options.begin()
    commands[options.what](options)


# ------------------------------------------------------------------------------------------- table


def table(options: Options) -> None:
    """Oracle shares, ratios to rendered clips of the same prompt and seed, and seconds, by model and steps.

    Figures that the evidence has of the same weights and clips are kept. Batches of prompts take turns over the models
    and steps, so that an interrupted run has the same prompts of each.
    """
    path = options.evidence / "opensora-pocket.json"
    prompts, keys = unseen(options.prompts or PROMPTS, options.seed), {"split": "evaluation", "seed": options.seed}
    systems = {Path(name).stem: open_system(name) for name in options.models.split(",")}
    counts = {name: len(prompts) if name == POCKET else options.rival_prompts or len(prompts) for name in systems}
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
            result[name][str(steps)] |= seconds
            print(line(name, steps, result[name][str(steps)]), flush=True)
    write(path, {**keys, "models": result})
    page(result, path.with_suffix(".md"), options)


def page(models: Mapping[str, Mapping[str, Any]], path: Path, options: Options) -> None:
    """The table as a page, with the options that decide its figures."""
    given = {"rival-prompts": options.rival_prompts, "threads": options.threads}
    command = " ".join(["table", *(f"--{name} {value}" for name, value in given.items() if value)])
    lines = [
        "# The pocket Open-Sora, measured", "", f"`python -m benchmarks.opensora_pocket {command}`", "",
        "Unseen prompts of the evaluation share (zoetrope was trained on them, opensora-pocket was not). Shares are",
        "percentages of clips, with 95 % Wilson intervals; ratios are medians over a rendered clip of the same prompt,",
        f"with 95 % bootstrap intervals; seconds of single clips, by the clock and of the CPU, are medians of {TIMED}",
        "(least to most), the models taking turns in one process.", "",
        "| model | steps | " + " | ".join([*SHARES, *(name.replace("_", " ") for name in (*RATIOS, *CLOCKS))]) + " |",
        "|---" * (2 + len(SHARES) + len(RATIOS) + len(CLOCKS)) + "|",
    ]  # fmt: skip
    for name, found in models.items():
        for steps in STEPS:
            row = found[str(steps)]
            cells = [cell(row[what], "mean", 100, 0) for what in SHARES]
            cells += [cell(row[what], "median", 1, 2) for what in (*RATIOS, *CLOCKS)]
            lines.append(f"| {name} | {steps} | " + " | ".join(cells) + " |")
    for name, found in models.items():
        first = found[str(STEPS[0])]
        directed, threads = first["direction"]["count"], first["threads"]
        lines += ["", f"{name}: {found['prompts']} prompts, {directed:.0f} with a direction; threads: {threads}."]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(figure: Mapping[str, float], middle: str, scale: float, digits: int) -> str:
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in (middle, "low", "high"))
    return f"{value} ({low}–{high})"


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


def timed(systems: Mapping[str, System], steps: int, prompts: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Median, least and most seconds of a single clip, by the clock and of the CPU, the models taking turns."""
    found: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in systems}
    samplings = {name: Sampling.of(system, steps=steps) for name, system in systems.items()}
    for number, prompt in enumerate(prompts):
        for name, sampling in samplings.items():
            began = {clock: read() for clock, read in CLOCKS.items()}
            sampling.clips([prompt], seed + number)
            for clock, read in CLOCKS.items():
                found[name][clock].append(read() - began[clock])
    return {
        name: {
            "threads": torch.get_num_threads(),
            **{
                clock: {"median": statistics.median(each), "low": min(each), "high": max(each)}
                for clock, each in rows.items()
            },
        }
        for name, rows in found.items()
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
    """One sheet: each kind of conditioning on a rendered clip, then on the first frames of real ones."""
    model, folder = load(POCKET), options.out / "inputs"
    folder.mkdir(exist_ok=True)
    prompt = "a red ball rolls right"
    clips = {prompt: Clip(rendered(prompt, options.seed, FRAMES, FPS)[None], FPS, {})}
    for file in SCENES:
        clips[file] = Clip(read_video(options.media / file, frames=FRAMES, size=(64, 64, "crop")).video, FPS, {})
    rows: list[tuple[str, Tensor]] = []
    for title, clip in clips.items():
        rows.append((f"# {title}|{'rendered' if title == prompt else 'filmed'}", clip.video[0]))
        kinds = {name: make for name, make in KINDS.items() if title == prompt or name != "text"}
        rows += [(name, make(model, prompt, clip, folder).video[0, :, :FRAMES]) for name, make in kinds.items()]
    sheet([(label, video[:, ::2]) for label, video in rows], options.evidence / "opensora-pocket.png")
    print(options.evidence / "opensora-pocket.png")


def saved(clip: Clip, path: Path) -> Path:
    save_clip(clip, path)
    return path


def frame(clip: Clip, index: int, folder: Path) -> Path:
    return saved(Clip(clip.video[:, :, index : index + 1], clip.fps, {}), folder / f"frame-{index}.png")


def part(clip: Clip, frames: int, folder: Path) -> Path:
    path = folder / f"first-{frames}"
    shutil.rmtree(path, ignore_errors=True)
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


# ------------------------------------------------------------------------------------------ follow

WINDOW = 10
"""Rows of the log (every tenth step) in a window of the curve."""


def follow(options: Options) -> None:
    """Training losses of other runs beside the shipped run's, leg by leg, as far as both go: by step, in windows.

    The spread of the shipped curve in a window is that of its single losses about their trend, ± 2 standard deviations.
    The noise of a difference of two windows' means is 2 standard errors, from what both losses leave of their trends.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for leg in LEGS:
        shipped = windows(options.shipped / f"opensora-pocket-{leg}.jsonl")
        for run in options.runs:
            if pairs := [*zip(shipped, windows(run / leg / "log.jsonl"), strict=False)]:
                found[f"{leg}, {run.name}"] = [compared(*pair) for pair in pairs]
    for name, rows in found.items():
        spread = sum(abs(row["other"] - row["shipped"]) <= row["spread"] for row in rows)
        noise = sum(abs(row["other"] - row["shipped"]) <= row["noise"] for row in rows)
        ratio = statistics.median(row["other"] / row["shipped"] for row in rows)
        print(
            f"{name}: to step {rows[-1]['step']:.0f}, within the shipped curve's spread in {spread} of {len(rows)} "
            f"windows, within the noise of the difference in {noise}; median ratio {ratio:.3f}"
        )
        for row in rows:
            print("  " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    write(options.evidence / "opensora-pocket-curve.json", found)
    plotted(found, options.evidence / "opensora-pocket-curve.png")


Window = tuple[int, np.ndarray]
LEGS = ("codec", "flow")


def windows(path: Path) -> list[Window]:
    """(last step, losses) of each complete window of a log; an unfinished last line is left out."""
    text = path.read_text() if path.is_file() else ""
    rows = [row for line in text[: text.rfind("\n") + 1].splitlines() if "loss" in (row := json.loads(line))]
    parts = [rows[i : i + WINDOW] for i in range(0, len(rows) - WINDOW + 1, WINDOW)]
    return [(int(each[-1]["step"]), np.array([row["loss"] for row in each])) for each in parts]


def compared(shipped: Window, other: Window) -> dict[str, float]:
    if shipped[0] != other[0]:
        raise SystemExit(f"follow: the logs differ in their steps ({shipped[0]} and {other[0]} end the same window)")
    about = [deviation(losses) for _, losses in (shipped, other)]
    return {
        "step": shipped[0],
        "shipped": float(shipped[1].mean()),
        "other": float(other[1].mean()),
        "spread": 2 * about[0],
        "noise": 2 * float(np.hypot(*about)) / WINDOW**0.5,
    }


def deviation(losses: np.ndarray) -> float:
    """The standard deviation about a straight line."""
    places = np.arange(len(losses))
    left = losses - np.polyval(np.polyfit(places, losses, 1), places)
    return float(np.sqrt(np.square(left).sum() / (len(losses) - 2)))


def plotted(found: Mapping[str, Rows], path: Path) -> None:
    """Each leg's curves: the shipped one with its spread, and the other."""
    from matplotlib.figure import Figure

    figure = Figure((5 * len(found), 3.4), dpi=100, layout="constrained")
    for axes, (name, rows) in zip(np.ravel(figure.subplots(1, len(found))), found.items(), strict=True):
        step, shipped, other, spread = (np.array([row[key] for row in rows]) for key in ("step", *CURVES))
        axes.fill_between(step, shipped - spread, shipped + spread, color="tab:blue", alpha=0.2, lw=0)
        axes.plot(step, shipped, "o-", color="tab:blue", ms=3, label="shipped, with its spread")
        axes.plot(step, other, "s-", color="tab:orange", ms=3, label="another seed")
        axes.set(title=name, xlabel="step", ylabel=f"training loss, mean of {WINDOW} logged steps", yscale="log")
        axes.legend()
    figure.savefig(path)


CURVES = ("shipped", "other", "spread")


# ------------------------------------------------------------------------------------------- start


def start(options: Options) -> None:
    """Write the shipped codec with a new transformer of this seed, from which the flow can be trained alone."""
    system = open_system("opensora/pocket")
    torch.manual_seed(options.seed)
    model = system.family.build(system.config)
    codec = {name: x for name, x in open_system(POCKET).model.state_dict().items() if name.startswith("vae.")}
    model.load_state_dict(codec, strict=False)
    about = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    write_tensors(options.out / "start.safetensors", model.state_dict(), {"kinema": about})
    print(options.out / "start.safetensors")


if __name__ == "__main__":
    main()
