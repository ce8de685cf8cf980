"""The paper's claims on playroom, with the pocket model, its super-resolution, and the cascade it is compared with.

    python -m benchmarks.lumiere_pocket rival          # one pass against keyframes and the frames between them
    python -m benchmarks.lumiere_pocket borders        # super-resolution: averaged windows against separate ones
    python -m benchmarks.lumiere_pocket applications   # given pixels, cinemagraphs, styles

Prompts are of the evaluation share, of which none was used in training or tuning of the temporal layers
(docs/decisions/0015); their frozen image model was trained before that split, also on stills of the evaluation share.
Results and sheets go to --evidence; inputs, and measurements by batch of prompts so that an interrupted run
continues, to --out.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import RESAMPLES, interval, median, rendered, unseen, write
from kinema import load
from kinema.api import Model
from kinema.canvas import Canvas
from kinema.data import playroom, styles
from kinema.evaluation.consistency import identity_breaks
from kinema.evaluation.oracle import judge, wilson
from kinema.evaluation.periodic import PERIODS, trajectory_error
from kinema.evaluation.plots import sheet
from kinema.evaluation.sampling import Sampling
from kinema.media.colour import to_uint8
from kinema.media.read import read_video
from kinema.media.write import save_clip
from kinema.schema import Clip
from kinema.system import open_system

HERE = Path(__file__).parent
BASE, LARGE, IMAGE = "lumiere-pocket", "lumiere-pocket-sr", "animatediff-pocket"
KEYFRAMES, BETWEEN = (
    HERE / "weights" / "lumiere-keyframes.safetensors",
    HERE / "weights" / "lumiere-between.safetensors",
)
FRAMES, EVERY, LONG, WINDOW, SHARED = 32, 4, 64, 8, 2


@dataclass(frozen=True)
class Options(measuring.Options):
    """Command line options."""

    backward: bool
    only: str


def main() -> None:
    parser = measuring.parser(__doc__, ("rival", "borders", "applications"), "lumiere-pocket", "64, 32 and 16")
    parser.add_argument("--backward", action="store_true", help="rival: the last batches first, beside another run")
    parser.add_argument("--only", default=",".join(APPLICATIONS), help="applications: some of them; others are kept")
    options = Options(**vars(parser.parse_args()))
    options.begin()
    {"rival": rival, "borders": borders, "applications": applications}[options.what](options)


# --------------------------------------------------------------------------- one pass and a cascade


def rival(options: Options) -> None:
    """Trajectory error and identity breaks of 32 frames in one pass, and of nine keyframes and the frames between."""
    prompts = unseen(options.prompts or 64, options.seed, tuple(PERIODS))
    with_image = {"image": IMAGE}
    systems = {
        "one pass": open_system(BASE),
        "keyframes": open_system(KEYFRAMES, add=with_image),
        "between": open_system(BETWEEN, add=with_image),
    }
    fps = float(Sampling.of(systems["one pass"]).request.fps or 0)
    keys = {"weights": {name: system.weights.hash for name, system in systems.items()}, "seed": options.seed}

    def one_pass(batch: Sequence[str], seed: int) -> Tensor:
        return Sampling.of(systems["one pass"], frames=FRAMES).clips(batch, seed)

    def cascade(batch: Sequence[str], seed: int) -> Tensor:
        few = Sampling.of(systems["keyframes"]).clips(batch, seed)
        total = (few.shape[2] - 1) * EVERY + 1
        video, mask = (
            torch.zeros(len(batch), 3, total, *few.shape[3:]),
            torch.zeros(len(batch), 1, total, *few.shape[3:]),
        )
        video[:, :, ::EVERY], mask[:, :, ::EVERY] = few, 1
        filled = Sampling.of(systems["between"], frames=total).clips(batch, seed, Canvas.of(video, mask))
        return torch.lerp(filled, video, mask)[:, :, :FRAMES]

    def real(batch: Sequence[str], seed: int) -> Tensor:
        return torch.stack([rendered(prompt, seed + i, FRAMES, fps) for i, prompt in enumerate(batch)])

    arms = {"one pass": one_pass, "cascade": cascade, "rendered": real}
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    slices: list[tuple[str, list[np.ndarray]]] = []
    starts = range(0, len(prompts), options.batch)
    for start in reversed(starts) if options.backward else starts:
        batch, path = prompts[start : start + options.batch], options.out / f"rival-{start}.json"
        row_keys = json.loads(json.dumps({**keys, "prompts": batch}))
        if path.is_file() and json.loads(path.read_text())["keys"] == row_keys:
            continue
        clips = {arm: make(batch, options.seed + start).clamp(-1, 1) for arm, make in arms.items()}
        found = {arm: measured(video, batch, fps) for arm, video in clips.items()}
        shown = [[xt_slice(clips[arm][i], prompt).tolist() for arm in arms] for i, prompt in enumerate(batch[:2])]
        write(path, {"keys": row_keys, "rows": found, "slices": shown})
        print(f"prompts {start} to {start + len(batch) - 1} of {len(prompts)}", flush=True)
    for start in starts:
        stored = json.loads((options.out / f"rival-{start}.json").read_text())
        for arm in arms:
            rows[arm] += stored["rows"][arm]
        panels = [[np.array(panel, np.uint8) for panel in each] for each in stored["slices"]]
        slices += list(zip(prompts[start : start + 2], panels, strict=False))
    result = {
        arm: {what: median([row[what] for row in found]) for what in ("trajectory_error", "identity_breaks")}
        for arm, found in rows.items()
    }
    differences = {
        what: median([a[what] - b[what] for a, b in zip(rows["one pass"], rows["cascade"], strict=True)])
        for what in ("trajectory_error", "identity_breaks")
    }
    meanings = [playroom.parse(prompt) for prompt in prompts]
    found_motions = sorted({meaning.motion for meaning in meanings if meaning})
    by_motion = {
        motion: {
            arm: {
                what: statistics.median(
                    row[what]
                    for row, prompt in zip(found, prompts, strict=True)
                    if (meaning := playroom.parse(prompt)) and meaning.motion == motion
                )
                for what in ("trajectory_error", "identity_breaks")
            }
            for arm, found in rows.items()
        }
        for motion in found_motions
    }
    sizes = {name: new_parameters(system) for name, system in systems.items()}
    write(
        options.evidence / "lumiere-rival.json",
        {**keys, "prompts": len(prompts), "new_parameters": sizes, "arms": result, "one pass less cascade": differences,
         "by_motion": by_motion},
    )  # fmt: skip
    slice_sheet(slices[:12], list(arms), options.evidence / "lumiere-rival.png")
    print(f"new parameters: {sizes}")
    for what, unit in (("trajectory_error", "of the shorter side"), ("identity_breaks", "of the frames")):
        for arm, found in [*result.items(), ("one pass less cascade", differences)]:
            print(f"{what.replace('_', ' ')}, {arm}: {interval(found[what])} {unit}")


def measured(videos_BCTHW: Tensor, prompts: Sequence[str], fps: float) -> list[dict[str, float]]:
    return [
        {"trajectory_error": trajectory_error(video, prompt, fps), "identity_breaks": identity_breaks(video, prompt)}
        for video, prompt in zip(videos_BCTHW, prompts, strict=True)
    ]


def new_parameters(system: Any) -> int:
    from kinema.families.lumiere.model import of_new_layer

    return sum(p.numel() for name, p in system.model.named_parameters() if of_new_layer(name))


def xt_slice(video_CTHW: Tensor, prompt: str) -> np.ndarray:
    """Place over time, [side, T, 3] uint8: y for bounces, else x.

    Each pixel is that of its row or column which differs most from the ground.
    """
    pixels = to_uint8(video_CTHW[None])[0].astype(np.int32)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    meaning = playroom.parse(prompt)
    if meaning is None or meaning.motion != "bounces":
        pixels = pixels.transpose(0, 2, 1, 3)  # T×W×H×3: the place is x
    far = np.abs(pixels - ground).sum(-1)
    chosen = np.take_along_axis(pixels, far.argmax(2)[:, :, None, None], axis=2)[:, :, 0]
    return chosen.transpose(1, 0, 2).astype(np.uint8)


def slice_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], heads: Sequence[str], path: Path) -> None:
    """Slices by prompt and arm; time goes right, place goes down."""
    scale, gap, label, font = 2, 8, 150, ImageFont.load_default(11)
    side, frames = rows[0][1][0].shape[:2]
    wide, high = 2 * frames * scale + gap, side * scale + gap
    image = Image.new("RGB", (label + len(heads) * wide, 20 + len(rows) * high), "white")
    pen = ImageDraw.Draw(image)
    for column, head in enumerate(heads):
        pen.text((label + column * wide, 3), head, fill="black", font=font)
    for number, (prompt, panels) in enumerate(rows):
        top = 20 + number * high
        pen.text((2, top + high // 2 - 8), prompt, fill="black", font=font)
        for column, panel in enumerate(panels):
            shown = Image.fromarray(panel).resize((2 * frames * scale, side * scale), Image.Resampling.NEAREST)
            image.paste(shown, (label + column * wide, top))
    image.save(path, optimize=True)


# ------------------------------------------------------------------------------- borders of windows


def borders(options: Options) -> None:
    """The second difference in time at borders of windows, over that elsewhere, in clips of 64 frames.

    That of the small clip at the same frames is the motion's own.
    """
    prompts = unseen(options.prompts or 32, options.seed)
    base, large = load(BASE), load(LARGE)
    keys = {"weights": [base.system.weights.hash, large.system.weights.hash], "seed": options.seed}
    arms = {"averaged": SHARED, "separate": 0}
    rows: dict[str, list[float]] = {name: [] for arm in arms for name in (arm, f"{arm}, small clip")}
    kept: list[tuple[str, Tensor]] = []
    for number, prompt in enumerate(prompts):
        small = base.generate(prompt, seed=options.seed + number, frames=LONG, super_resolution="none")
        path = frames_in(small, options.out / "small")
        options_of = {"seed": options.seed + number, "scale": 2, "window": WINDOW, "window_weights": "flat"}
        for arm, overlap in arms.items():
            video = large.upscale(path, prompt, overlap=overlap, **options_of).video[0]
            rows[arm].append(border_ratio(video, overlap))
            rows[f"{arm}, small clip"].append(border_ratio(small.video[0], overlap))
            if number < 3:
                around = video[:, WINDOW - SHARED - 3 : WINDOW + 3]
                kept.append((f"# {prompt}|{arm}" if arm == "averaged" else arm, around))
        print(f"{number + 1} of {len(prompts)}: " + ", ".join(f"{a} {r[-1]:.3f}" for a, r in rows.items()), flush=True)
    result = {arm: {"ratio": median(found), "mean": mean(found)} for arm, found in rows.items()}
    write(options.evidence / "lumiere-borders.json", {**keys, "frames": LONG, "window": WINDOW, "arms": result})
    if kept:
        sheet(kept, options.evidence / "lumiere-borders.png")
    for arm, found in result.items():
        print(f"{arm}: mean {interval_of_mean(found['mean'])}, median {interval(found['ratio'])}")


def mean(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The mean and its 95 % interval (percentile bootstrap)."""
    array = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), (0.025, 0.975))
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "count": len(array)}


def interval_of_mean(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.4f} ({figure['low']:.4f} to {figure['high']:.4f}; {figure['count']:.0f} clips)"


def border_ratio(video_CTHW: Tensor, overlap: int) -> float:
    """Mean absolute second difference over the frames where windows begin or end, over the mean elsewhere."""
    second_T = video_CTHW.double().diff(n=2, dim=1).abs().mean((0, 2, 3)).numpy()  # of frames 1 to T - 2
    frames = video_CTHW.shape[1]
    starts = {min(start, frames - WINDOW) for start in range(0, frames - overlap, WINDOW - overlap)}
    changes = {start for start in starts if start} | {start + WINDOW for start in starts if start + WINDOW < frames}
    # The windows of frame t change between frames t - 1 and t, which the differences of both frames contain.
    at_border = np.isin(np.arange(1, frames - 1), [t for change in changes for t in (change - 1, change)])
    return float(second_T[at_border].mean() / second_T[~at_border].mean())


# -------------------------------------------------------------------------------------- applications


def applications(options: Options) -> None:
    """Prompts alone, given pixels, cinemagraphs, styles: whether what is given is kept, and the oracle's verdicts."""
    prompts, base = unseen(options.prompts or 16, options.seed), load(BASE)
    folder, path = options.out / "inputs", options.evidence / "lumiere-applications.json"
    keys = {"weights": base.system.weights.hash, "seed": options.seed, "prompts": len(prompts)}
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    result = earlier["applications"] if {**earlier, "applications": None} == {**keys, "applications": None} else {}
    folder.mkdir(exist_ok=True)
    fps = float(Sampling.of(base.system).request.fps or 0)
    for name in options.only.split(","):
        make, rows, shown = APPLICATIONS[name], [], []
        for number, prompt in enumerate(prompts):
            seed = options.seed + number
            real = rendered(prompt, seed, FRAMES, fps)
            clip, expected, mask = make(base, prompt, seed, Clip(real[None], fps, {}), folder)
            video = clip.video[0]
            exact = None if mask is None else torch.equal(video * mask, expected * mask)
            verdict = judge(video, prompt, fps)
            rows.append(
                {"exact": exact, "colour": verdict.colour_right, "shape": verdict.shape_right,
                 "motion": verdict.motion_right, "identity": 1 - identity_breaks(video, prompt),
                 **({"style": styles.share(name, video)} if name in styles.STYLES else {})}
            )  # fmt: skip
            if number < 6:
                shown.append((prompt, video[:, :: FRAMES // 8]))
        sheet(shown, options.evidence / f"lumiere-{name}.png")
        result[name] = summary(rows)
        print(f"{name}: {json.dumps(result[name])}", flush=True)
        write(path, {**keys, "applications": result})


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rows[0]["exact"] is not None:
        found["given pixels equal to the bit"] = f"{sum(row['exact'] for row in rows)} of {len(rows)}"
    for what in ("colour", "shape", "motion"):
        share = wilson([row[what] for row in rows])
        assert share is not None
        found[what] = {"share": share.mean, "low": share.low, "high": share.high}
    found["frames of one identity"] = median([row["identity"] for row in rows])
    if "style" in rows[0]:
        found["style"] = median([row["style"] for row in rows])
    return found


Made = tuple[Clip, Tensor, Tensor | None]
"""The clip; what is given, 3×T×H×W; and where, 1×T×H×W (None: nothing)."""


def frames_in(clip: Clip, folder: Path) -> Path:
    """The clip as a folder of PNG frames, which hold its pixels exactly once they are rounded."""
    shutil.rmtree(folder, ignore_errors=True)
    save_clip(clip, f"{folder}/")
    return folder


def inpainted(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:
    """The middle of a rendered clip is generated."""
    path, box = frames_in(real, folder / "clip"), (0.25, 0.0, 0.75, 1.0)
    clip = model.inpaint(path, prompt, seed=seed, region=box, super_resolution="none")
    return clip, read_video(path).video[0], 1 - boxed(real, box)


def outpainted(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:
    """All around the middle of a rendered clip is generated."""
    path, box = frames_in(real, folder / "clip"), (0.1875, 0.1875, 0.8125, 0.8125)
    clip = model.inpaint(path, prompt, seed=seed, region=box, outside=True, super_resolution="none")
    return clip, read_video(path).video[0], boxed(real, box)


def animated(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:
    path, mask = frames_in(replace(real, video=real.video[:, :, :1]), folder / "image"), torch.zeros(1, FRAMES, 1, 1)
    clip = model.animate(path, prompt, seed=seed, super_resolution="none")
    mask[:, 0] = 1
    return clip, read_video(path).video[0].expand(-1, FRAMES, -1, -1), mask


def cinemagraph(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:
    """Nothing moves left and right of the middle of an image."""
    path, box = frames_in(replace(real, video=real.video[:, :, :1]), folder / "image"), (0.125, 0.0, 0.875, 1.0)
    clip = model.animate(path, prompt, seed=seed, region=box, super_resolution="none")
    mask = 1 - boxed(real, box)
    mask[:, 0] = 1
    return clip, read_video(path).video[0].expand(-1, FRAMES, -1, -1), mask


def generated(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:  # noqa: ARG001
    return model.generate(prompt, seed=seed, super_resolution="none"), real.video[0], None


def styled(style: str) -> Callable[[Model, str, int, Clip, Path], Made]:
    def make(model: Model, prompt: str, seed: int, real: Clip, folder: Path) -> Made:  # noqa: ARG001
        extra = {"style": f"{IMAGE}-{style}", "style_alpha": 1.0}
        clip = model.generate(prompt, seed=seed, extra=extra, super_resolution="none")
        return clip, real.video[0], None

    return make


def boxed(real: Clip, box: tuple[float, float, float, float]) -> Tensor:
    """1 within the box, 1×T×H×W."""
    _, _, frames, height, width = real.video.shape
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    mask = torch.zeros(1, frames, height, width)
    mask[:, :, top:bottom, left:right] = 1
    return mask


APPLICATIONS: dict[str, Callable[[Model, str, int, Clip, Path], Made]] = {
    "text-to-video": generated,
    "inpainting": inpainted,
    "outpainting": outpainted,
    "image-to-video": animated,
    "cinemagraph": cinemagraph,
    "outline": styled("outline"),
    "night": styled("night"),
}


if __name__ == "__main__":
    main()
