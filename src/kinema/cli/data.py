"""``kinema data``: clips made ready for training. Cut to shots, measured for motion, encoded to latents."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.bounds import printable
from kinema.cli.options import Option, from_dataclass, parse, with_defaults
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import CONFIG, REPORTING
from kinema.schema import BadRequest

_FOLLOW = Option("follow_links", bool, False, "read what links in a folder of clips lead to, outside of it too")

COMMANDS: dict[str, tuple[str, str]] = {
    "shots": ("kinema.cli.data:shots", "clips cut where the film cuts, one file a shot"),
    "motion-bucket": ("kinema.cli.data:motion_bucket", "how much clips move, kept beside them for training"),
    "latents": ("kinema.cli.data:latents", "clips encoded by a model's frozen networks, once for every run"),
}
"""Step name to "module:function" and its help."""


def data(words: Sequence[str]) -> int:
    """Run one step."""
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {step:<14} {about}" for step, (_, about) in COMMANDS.items())
        sys.stdout.write(f"usage: kinema data STEP …\n\n{rows}\n\nmore:   kinema data STEP --help\n")
        return 0
    if name not in COMMANDS:
        raise BadRequest(registry.unknown("step of `kinema data`", name, COMMANDS))
    return registry.resolve(COMMANDS[name][0])(words[1:])


SHOTS = [
    Option("clips", str, "", "clip, or folder of clips", positional=True, path=True),
    Option("out", str | None, None, "folder to write the shots to, with their metadata.jsonl", path=True),
    Option("least_seconds", float, 1.0, "leave out shots shorter than this"),
    Option("most_seconds", float, 5.0, "cut longer ones into equal parts"),
    Option("side", int, 576, "bring larger shots to this shorter side"),
    _FOLLOW,
]


def shots(words: Sequence[str]) -> int:
    """Cut clips to shots and print the files."""
    own, show_options = _read(SHOTS, words, "shots", "Cut clips where the film cuts, one mp4 a shot.")
    if not own["clips"] or not own["out"]:
        raise BadRequest("name clips and a folder: kinema data shots my-films --out my-shots")
    if own["side"] < 16:
        raise BadRequest(f"side is {own['side']}; expected 16 pixels or more")
    clips, out = Path(own.pop("clips")), Path(own.pop("out"))
    if not clips.exists():
        raise BadRequest(f"there is no file or folder {clips}; expected clips")
    with display(**show_options) as show:
        written = registry.resolve("kinema.data.shots:cut")(clips, out, on_event=show, **own)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(path) for path in written]})
            return 0
    sys.stdout.writelines(f"{printable(str(path))}\n" for path in written)
    return 0


MOTION = [
    Option("clips", list[str], [], "folders of clips, or clips", positional=True, path=True),
    Option("middle", float | None, None, "motion of the middle bucket (0.1; the model svd-pocket has 0.015)"),
    _FOLLOW,
    Option("json", bool, False, "the table as JSON"),
]


def motion_bucket(words: Sequence[str]) -> int:
    """Measure clips, keep the figures beside them, and print the table."""
    about = "Estimate the motion bucket of clips by optical flow, and write motion.json beside them for `kinema train`."
    own, show_options = _read(MOTION, words, "motion-bucket", about)
    middle = own["middle"] if own["middle"] is not None else registry.resolve("kinema.data.motion:MIDDLE")
    if not middle > 0:
        raise BadRequest(f"middle is {middle:g}; expected more than 0")
    with display(**show_options) as show:
        found = registry.resolve("kinema.data.moved:measure")(
            own["clips"], middle, on_event=show, follow_links=own["follow_links"]
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
    if own["json"]:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    names = [printable(row["clip"]) for row in rows]
    width = max(map(len, names))
    sys.stdout.write(f"{'clip':<{width}}     fps  seconds  motion  bucket\n")
    for name, row in zip(names, rows, strict=True):
        figures = f"{row['fps']:7.2f}  {row['seconds']:7.2f}  {row['motion']:6.3f}  {row['bucket']:6.0f}"
        sys.stdout.write(f"{name:<{width}} {figures}\n")
    return 0


def latents(words: Sequence[str]) -> int:
    """Encode clips, or go on with what stands in --out."""
    about = "Encode clips with a model's frozen networks; the same command goes on with what was stopped."
    target = "kinema.training.latents:LatentsOptions"
    options = from_dataclass(registry.resolve(target), positional=["clips"])
    told = parse([*options, *REPORTING, CONFIG], words, "kinema data latents", about)
    show_options = {o.name: told.pop(o.name, False) for o in REPORTING}
    told.pop("config", None)
    made = registry.resolve(target)(**told)
    with display(**show_options) as show:
        result = registry.resolve("kinema.training.latents:encode")(made, on_event=show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(result.folder)], "windows": result.windows, "clips": result.clips})
            return 0
    sys.stdout.write(f"{result.folder}: {result.windows} windows of {result.clips} clips, {result.added} new\n")
    return 0


def _read(options: list[Option], words: Sequence[str], step: str, about: str) -> tuple[dict[str, Any], dict[str, bool]]:
    """(what was told, over the defaults; how to show progress)."""
    told = parse([*options, *REPORTING], words, f"kinema data {step}", about)
    show = {o.name: told.pop(o.name, False) for o in REPORTING}
    return with_defaults(options, told), show
