"""Sample clips for prompts and measure them: text to video and image to video.

Prompt i has seed + i, whatever the batch size, so every result can be reproduced clip by clip.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kinema import __version__, registry
from kinema.canvas import Canvas
from kinema.data import playroom
from kinema.data.playroom.grammar import Split, in_split
from kinema.evaluation import metrics, prompt_files
from kinema.evaluation.consistency import Consistency, object_consistency
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.oracle import Figure, Verdict, judge, spread, summarise, wilson
from kinema.evaluation.results import Compared, Counted, Evaluation, ImageToVideo, TextToVideo
from kinema.evaluation.sampling import Sampling
from kinema.evaluation.temporal import STILL, has_flow, temporal
from kinema.events import Note, OnEvent, Phase, Step, ignore
from kinema.schema import BadRequest
from kinema.system import System

PROMPTS = 128
_MOST_DB = 100.0
"""PSNR of identical images, in place of infinity, so that a mean can be taken."""
CONTROL = 500_009
"""Offset of the seed of a second real clip of the same prompt, the control: by chance one real clip can pulse five
times as much as another."""
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Row:
    """One prompt and seed, and temporal measures of the generated clip, of a real one and of a second real one."""

    prompt: str
    seed: int
    verdict: Verdict
    made: Mapping[str, float]
    real: Mapping[str, float]
    control: Mapping[str, float]


@dataclass(frozen=True)
class ImageRow:
    """One animated image; ``real`` is the clip whose first frame is the image. ``temporal`` measures the generated
    clip, ``temporal_real`` the real one, which has the same background and object."""

    prompt: str
    seed: int
    verdict: Verdict
    real: Verdict
    kept: Consistency
    kept_real: Consistency
    psnr_own: float
    exact_after: bool
    seam: float
    seam_real: float
    temporal: Mapping[str, float]
    temporal_real: Mapping[str, float]


def measure(system: System, options: EvaluateOptions, on_event: OnEvent = ignore) -> Evaluation:
    """Measure text to video, and image to video if ``options.animate`` is set.

    On KeyboardInterrupt, returns what was measured so far, marked as partial, or raises if there is nothing.
    """
    sampling = sampling_of(system, options, on_event)
    prompts = prompts_of(options)
    note_known_prompts(system.name, options, prompts, on_event)
    on_event(Phase("measure", f"text to video, {len(prompts)} clips"))
    if not has_flow():
        on_event(
            Note("OpenCV is not installed, so optical-flow metrics are skipped; pip install 'kinema[eval]' adds it")
        )

    def texts(i: int, j: int) -> list[Row]:
        return text_rows(sampling, prompts[i:j], options.seed + i)

    def images(i: int, j: int) -> list[ImageRow]:
        return image_rows(sampling, prompts[i:j], options.seed + i)

    rows, stopped = gather(texts, len(prompts), options.batch, on_event)
    animated: list[ImageRow] = []
    if options.animate and not stopped:
        on_event(Phase("measure", f"image to video, {len(prompts)} clips"))
        animated, stopped = gather(images, len(prompts), options.batch, on_event, keep=True)
    return Evaluation(
        protocol={**protocol(sampling, options, prompts), "measured": len(rows)},
        text_to_video=text_figures(rows, options.seed),
        image_to_video=image_figures(animated, options.seed) if animated else None,
        clips=[*map(asdict, rows), *map(asdict, animated)],
        partial=stopped,
    )


def sampling_of(system: System, options: EvaluateOptions, on_event: OnEvent = ignore, **more: Any) -> Sampling:
    """How the options sample a system. Raises BadRequest for a model without text conditioning."""
    if not system.family.sampling.defaults(system.config).takes_prompt:
        raise BadRequest(f"{system.name} has no text conditioning; evaluate requires a text-to-video model")
    return Sampling.of(
        system, on_event, steps=options.steps, sampler=options.sampler, guidance=options.guidance, **more
    )


def prompts_of(options: EvaluateOptions, count: int = PROMPTS) -> list[str]:
    """The prompts of the options. Raises BadRequest for a file without that many prompts in the grammar."""
    if options.prompts_file is not None:
        return prompt_files.read(Path(options.prompts_file), options.prompts)
    assert options.share is not None  # it is None for a file alone
    return playroom.prompts(options.prompts or count, options.seed, options.grammar, options.share)


def note_known_prompts(model: str, options: EvaluateOptions, prompts: Sequence[str], on_event: OnEvent) -> None:
    """Note that a shipped model was trained on the evaluation prompts, or on what prompts of a file say."""
    if options.prompts_file is not None and (trained := trained_meanings(model, prompts)):
        on_event(Note(f"training of {model} could draw what {trained} of the {len(prompts)} prompts say"))
    if options.share == "evaluation" and training_split(model) == "train-v1":
        on_event(
            Note(
                f"{model} was trained before evaluation prompts were kept out of training, so it has seen them; "
                "it has not seen those of --split tuning, but settings were chosen on them"
            )
        )


def trained_meanings(model: str, prompts: Sequence[str]) -> int | None:
    """Of how many prompts the training of a shipped model could draw the meaning, in any words; None for others."""
    split = training_split(model)
    meanings = [meaning for prompt in prompts if (meaning := playroom.parse(prompt)) is not None]
    return None if split is None else sum(in_split(meaning, split) for meaning in meanings)


def protocol(sampling: Sampling, options: EvaluateOptions, prompts: Sequence[str]) -> dict[str, Any]:
    """Everything that the results depend on; nothing that changes between runs."""
    request, system = sampling.request, sampling.system
    return {
        "model": plain_name(system.name),
        "family": system.family.name,
        "weights": system.weights.hash,
        "prompts": len(prompts),
        **_source(options, prompts),
        "training_split": training_split(system.name),
        "trained_meanings": trained_meanings(system.name, prompts),
        "seed": options.seed,
        "frames": request.frames,
        "height": request.height,
        "width": request.width,
        "fps": request.fps,
        "steps": request.steps,
        "sampler": request.sampler,
        "guidance": request.guidance,
        "batch": options.batch,
        "device": system.device.type,
        "versions": versions(),
    }


def _source(options: EvaluateOptions, prompts: Sequence[str]) -> dict[str, Any]:
    """Where the prompts are from: a file, with the hash of what was read of it, or playroom's lists."""
    if options.prompts_file is None:
        return {"grammar": options.grammar, "split": options.share}
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return {"prompts_file": Path(options.prompts_file).name, "prompts_hash": f"sha256:{digest}"}


def training_split(model: str) -> Split | None:
    """The split that a shipped model and its add-ons were trained on: the widest; None for other models.

    Files of other models do not state it.
    """
    if model not in registry.EMBEDDED:
        return None
    shipped, splits = [registry.resolve(target) for target in registry.SHIPPED.values()], {"train"}
    for name in (model, *registry.DEFAULT_ADD_ONS.get(model, {}).values()):
        runs = next(each for each in shipped if name in each.files).towards(name)
        splits |= {str(run.options["split"]) for run in runs.values() if "split" in run.options}
    widest: tuple[Split, ...] = ("train", "train-v1", "all")
    return next(split for split in reversed(widest) if split in splits)


def plain_name(model: str) -> str:
    """A model's name without local folders; hub ids and presets keep their slash."""
    return Path(model).name if Path(model).exists() else model


def versions() -> dict[str, str]:
    """Versions of the software that affects results."""
    found = {"kinema": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if has_flow():
        import cv2

        found["opencv"] = cv2.__version__
    return found


def gather(
    measure_: Callable[[int, int], Sequence[_Row]], count: int, batch: int, on_event: OnEvent, *, keep: bool = False
) -> tuple[list[_Row], bool]:
    """Measure clips ``i`` to ``j`` batch by batch; returns the rows and whether it was interrupted.

    With ``keep``, an interruption before the first batch returns no rows instead of raising.
    """
    rows: list[_Row] = []
    try:
        for start in range(0, count, batch):
            rows += measure_(start, min(start + batch, count))
            on_event(Step(len(rows), count, math.nan))
    except (KeyboardInterrupt, SystemExit):  # SIGTERM raises SystemExit
        if not rows and not keep:
            raise
        on_event(Note(f"interrupted: {len(rows)} of {count} clips were measured and are kept"))
        return rows, True
    return rows, False


# ------------------------------------------------------------------------------------ text to video


def text_rows(sampling: Sampling, prompts: Sequence[str], seed: int) -> list[Row]:
    """Judge clips of these prompts and compare them with real clips of the same prompts."""
    fps = sampling.request.fps or 8.0
    rows = []
    for i, (prompt, video) in enumerate(zip(prompts, sampling.clips(prompts, seed), strict=True)):
        real, control = (temporal(sampling.real(prompt, seed + i + offset), fps) for offset in (0, CONTROL))
        rows.append(Row(prompt, seed + i, judge(video, prompt, fps), temporal(video, fps), real, control))
    return rows


def text_figures(rows: Sequence[Row], seed: int) -> TextToVideo:
    compared = {
        name: Compared.of(
            [row.made[name] for row in rows],
            [row.real[name] for row in rows],
            [row.control[name] for row in rows],
            seed,
        )
        for name in rows[0].made
    }
    return TextToVideo(summarise([row.verdict for row in rows]), motion_counts(rows), compared)


def motion_counts(rows: Sequence[Row]) -> dict[str, Counted]:
    """For each kind of motion ("rolls", "spins"), how many prompts ask for it and how many clips have it."""
    found: dict[str, Counted] = {}
    for row in rows:
        meaning = playroom.parse(row.prompt)
        assert meaning is not None  # the oracle has judged it
        kind = meaning.motion.split(" ")[0]
        before = found.get(kind, Counted(0, 0))
        found[kind] = Counted(before.right + row.verdict.motion_right, before.prompts + 1)
    return {kind: found[kind] for kind in sorted(found)}


# ----------------------------------------------------------------------------------- image to video


def image_rows(sampling: Sampling, prompts: Sequence[str], seed: int) -> list[ImageRow]:
    """Measure clips generated from the first frames of real clips, with their prompts."""
    fps = sampling.request.fps or 8.0
    reals = [sampling.real(prompt, seed + i) for i, prompt in enumerate(prompts)]
    canvas = first_frames(torch.stack(reals))
    own = sampling.clips(prompts, seed, canvas)
    # As in `kinema animate`, the given pixels are restored.
    videos = torch.lerp(own, canvas.video, canvas.mask.expand_as(own))
    return [
        ImageRow(
            prompt=prompt,
            seed=seed + i,
            verdict=judge(videos[i], prompt, fps),
            real=judge(reals[i], prompt, fps),
            kept=object_consistency(videos[i], prompt),
            kept_real=object_consistency(reals[i], prompt),
            psnr_own=min(_MOST_DB, float(metrics.psnr(own[i : i + 1, :, :1], canvas.video[i : i + 1, :, :1]))),
            exact_after=bool(torch.equal(videos[i, :, 0], reals[i][:, 0])),
            seam=seam(videos[i]),
            seam_real=seam(reals[i]),
            temporal=temporal(videos[i], fps),
            temporal_real=temporal(reals[i], fps),
        )
        for i, prompt in enumerate(prompts)
    ]


def first_frames(video_BCTHW: Tensor) -> Canvas:
    """A canvas with only frame 0 given."""
    video, mask = torch.zeros_like(video_BCTHW), torch.zeros_like(video_BCTHW[:, :1])
    video[:, :, 0], mask[:, :, 0] = video_BCTHW[:, :, 0], 1
    return Canvas.of(video, mask)


def seam(video_CTHW: Tensor) -> float:
    """Mean change from frame 0 to 1 over the mean change of later frames; 1 means no seam."""
    if video_CTHW.shape[1] < 3:
        raise BadRequest(f"the clip has {video_CTHW.shape[1]} frames; measuring a seam requires at least 3")
    change_T = video_CTHW.diff(dim=1).abs().mean(dim=(0, 2, 3))
    return float(change_T[0] / change_T[1:].mean().clamp(min=STILL))


def image_figures(rows: Sequence[ImageRow], seed: int) -> ImageToVideo:
    own = spread([row.psnr_own for row in rows])
    assert own is not None
    return ImageToVideo(
        psnr_own=own,
        psnr_own_least=min(row.psnr_own for row in rows),
        exact_after=_share([row.exact_after for row in rows]),
        identity=Compared.of([row.verdict.identity for row in rows], [row.real.identity for row in rows], seed=seed),
        kept=_share([row.kept.complete for row in rows]),
        kept_real=_share([row.kept_real.complete for row in rows]),
        colour=_share([row.verdict.colour == row.real.colour for row in rows]),
        shape=_share([(row.verdict.shape, row.verdict.letter) == (row.real.shape, row.real.letter) for row in rows]),
        direction=wilson([row.verdict.direction_right for row in rows]),
        seam=Compared.of([row.seam for row in rows], [row.seam_real for row in rows], seed=seed),
        temporal={
            name: Compared.of(
                [row.temporal[name] for row in rows], [row.temporal_real[name] for row in rows], seed=seed
            )
            for name in rows[0].temporal
        },
    )


def _share(outcomes: Sequence[bool]) -> Figure:
    figure = wilson(outcomes)
    if figure is None:
        raise ValueError("no clips were measured")
    return figure
