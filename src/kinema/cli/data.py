"""``kinema data``: prepare clips for training. Cuts them into shots, measures motion, sorts sizes, encodes latents."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.bounds import printable
from kinema.cli.options import parse, with_defaults
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import CONFIG, REPORTING
from kinema.events import Note
from kinema.options import Option, from_dataclass
from kinema.schema import BadRequest

_FOLLOW = Option("follow_links", bool, False, "follow links in a folder of clips, also to files outside it")

COMMANDS: dict[str, tuple[str, str]] = {
    "shots": ("kinema.cli.data:shots", "cut films into shots, one file per shot"),
    "motion-bucket": ("kinema.cli.data:motion_bucket", "measure how much clips move, for motion-conditioned training"),
    "buckets": ("kinema.cli.data:buckets", "show how the clips of a folder fill the buckets of kinema train --buckets"),
    "latents": ("kinema.cli.data:latents", "encode clips with a model's frozen networks, once for all runs"),
}
"""Step name to ("module:function", help)."""


def data(argv: Sequence[str]) -> int:
    """Run one step."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {step:<14} {about}" for step, (_, about) in COMMANDS.items())
        about = "Prepare clips for training. The steps, in the usual order:"
        sys.stdout.write(
            f"usage: kinema data STEP [OPTIONS]\n\n{about}\n\n{rows}\n\n"
            "example:\n  kinema data shots films --out clips\n\n"
            "The options of a step: kinema data STEP --help\n"
        )
        return 0
    if name not in COMMANDS:
        raise BadRequest(registry.unknown_name("step of `kinema data`", name, COMMANDS))
    return registry.resolve(COMMANDS[name][0])(argv[1:])


SHOTS = [
    Option("clips", str, "", "clip, or folder of clips", positional=True, path=True),
    Option("out", str | None, None, "folder for the shots and their metadata.jsonl", path=True),
    Option("least_seconds", float, 1.0, "skip shots shorter than this many seconds"),
    Option("most_seconds", float, 5.0, "cut shots longer than this many seconds into equal parts"),
    Option("side", int, 576, "downscale larger shots to this shorter side, in pixels"),
    _FOLLOW,
]


def shots(argv: Sequence[str]) -> int:
    """Cut clips into shots and print the files written."""
    example = "kinema data shots films --out clips"
    settings, show_options = _read(SHOTS, argv, "shots", "Cut films into shots, one mp4 per shot.", example)
    if not settings["clips"] or not settings["out"]:
        raise BadRequest(f"kinema data shots needs clips and --out: {example}")
    if settings["side"] < 16:
        raise BadRequest(f"--side is {settings['side']}; expected 16 pixels or more")
    clips, out = Path(settings.pop("clips")), Path(settings.pop("out"))
    if not clips.exists():
        raise BadRequest(f"there is no file or folder {clips}; expected clips")
    with display(**show_options) as show:
        written = registry.resolve("kinema.data.shots:cut")(clips, out, on_event=show, **settings)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(path) for path in written]})
            return 0
    sys.stdout.writelines(f"{printable(str(path))}\n" for path in written)
    return 0


MOTION = [
    Option("clips", list[str], [], "clips, or folders of clips", positional=True, path=True),
    Option("middle", float | None, None, "motion of the middle bucket; by default 0.1; svd-pocket uses 0.015"),
    _FOLLOW,
    Option("json", bool, False, "print the table as JSON"),
]


def motion_bucket(argv: Sequence[str]) -> int:
    """Measure clips, write motion.json next to them, and print the table."""
    about = "Estimate the motion bucket of clips by optical flow and write motion.json next to them for `kinema train`."
    settings, show_options = _read(MOTION, argv, "motion-bucket", about, "kinema data motion-bucket clips")
    default = registry.resolve("kinema.data.motion:MIDDLE")
    middle = default if settings["middle"] is None else settings["middle"]
    if not middle > 0:
        raise BadRequest(f"--middle is {middle:g}; expected more than 0")
    with display(**show_options) as show:
        found = registry.resolve("kinema.data.motion_file:measure")(
            settings["clips"], middle, on_event=show, follow_links=settings["follow_links"]
        )
    rows = [
        {
            "clip": str(folder / row.name),
            "fps": row.fps,
            "seconds": row.seconds,
            "motion": row.motion,
            "bucket": row.bucket,
        }
        for folder, measured in found.items()
        for row in measured
    ]
    if settings["json"]:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    names = [printable(row["clip"]) for row in rows]
    width = max(map(len, names))
    sys.stdout.write(f"{'clip':<{width}}     fps  seconds  motion  bucket\n")
    for name, row in zip(names, rows, strict=True):
        figures = f"{row['fps']:7.2f}  {row['seconds']:7.2f}  {row['motion']:6.3f}  {row['bucket']:6.0f}"
        sys.stdout.write(f"{name:<{width}} {figures}\n")
    return 0


BUCKETS = [
    Option("clips", str, "", "folder of clips with captions", positional=True, path=True),
    Option("buckets", str | None, None, "bucket file (.json, .yaml or .py), as for kinema train", path=True),
    Option("model", str, "opensora/v2", "model to be trained: family/preset, alias, folder or file", path=True),
    Option("frameskip", int | None, None, "take every n-th source frame, as for kinema train"),
    Option("seed", int, 0, "seed of the run, for the first pass"),
    _FOLLOW,
    Option("json", bool, False, "print the table as JSON"),
]


def buckets(argv: Sequence[str]) -> int:
    """Print how many clips and batches each bucket has in the first pass, and the clips that fit none."""
    about = "Show how the clips of a folder fill the buckets of a bucket file, without training."
    example = "kinema data buckets clips --buckets buckets.json"
    settings, show_options = _read(BUCKETS, argv, "buckets", about, example)
    as_json = settings.pop("json")
    if not settings["clips"] or not settings["buckets"]:
        raise BadRequest(f"kinema data buckets needs clips and --buckets: {example}")
    options = registry.resolve("kinema.training.options:TrainOptions")(data=settings.pop("clips"), **settings)
    with display(**show_options) as show:
        found = registry.resolve("kinema.training.bucket_table:table")(options, on_event=show)
        for note in found.notes:
            show(Note(note))
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
        return 0
    sys.stdout.write(f"{'bucket':>12} frames  batch   clips  (mean)  batches  windows  sizes\n")
    for row in found.rows:
        sizes = ", ".join(f"{size} ({count})" for size, count in row.sizes.items())
        figures = f"{row.frames:6}  {row.batch:5}  {row.clips:6}  {row.expected:6.1f}  {row.batches:7}  {row.windows:7}"
        sys.stdout.write(f"{printable(row.resolution):>12} {figures}  {sizes}\n")
    sys.stdout.write(f"{found.clips} clips, {len(found.dropped)} of them in no bucket\n")
    return 0


def latents(argv: Sequence[str]) -> int:
    """Encode clips, or resume the encoding in --out."""
    about = "Encode clips with a model's frozen networks. The same command resumes a run that was stopped."
    example = "kinema data latents clips --model svd_xt.safetensors --out latents"
    target = "kinema.training.latents:LatentsOptions"
    options = from_dataclass(registry.resolve(target), positional=["clips"])
    groups = {
        "main options": ("model", "out", "frames", "width", "height"),
        "clips": ("frameskip", "stride", "follow_links"),
        "storage": ("dtype", "shard"),
        "model and device": ("add", "variant", "device", "threads"),
        "progress and configuration": ("quiet", "json_events", "config"),
    }
    given = parse([*options, *REPORTING, CONFIG], argv, "kinema data latents", about, example, groups)
    show_options = {o.name: given.pop(o.name, False) for o in REPORTING}
    given.pop("config", None)
    settings = registry.resolve(target)(**given)
    with display(**show_options) as show:
        result = registry.resolve("kinema.training.latents:encode")(settings, on_event=show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(result.folder)], "windows": result.windows, "clips": result.clips})
            return 0
    sys.stdout.write(f"{result.folder}: {result.windows} windows of {result.clips} clips, {result.added} new\n")
    return 0


def _read(
    options: list[Option], argv: Sequence[str], step: str, about: str, example: str
) -> tuple[dict[str, Any], dict[str, bool]]:
    """(all options of the step, the options of `display`)."""
    given = parse([*options, *REPORTING], argv, f"kinema data {step}", about, example)
    show_options = {o.name: given.pop(o.name, False) for o in REPORTING}
    return with_defaults(options, given), show_options
