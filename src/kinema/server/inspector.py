"""The inspector: decodes one uploaded file within limits on memory, time and files, reports what it is, and ends.

    python -m kinema.server.inspector

The server starts it ahead of the upload, so that only the decoding takes time. Imports without torch, which each upload
would load again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinema.bounds import as_json
from kinema.media.images import image_size, is_image
from kinema.media.metadata import find_recipe
from kinema.media.read import MAX_VIDEO_PIXELS, decode_limits, probe, timed_frames
from kinema.media.timing import Part, frames_from
from kinema.schema import BadRequest
from kinema.server.channel import Message, answer_one

MAX_RECIPE = 2**20
MAX_FILES = 32
_MARGIN = 256 * 2**20
"""Address space for threads of the decoders besides what a file may take."""


def main() -> None:
    answer_one(
        answer,
        lambda message: {Path(message["path"]).name: "the file", message["path"]: "the file"},
        memory="the file needs more memory to decode than this service allows",
        failed="the file cannot be decoded",
    )


def answer(message: Message) -> dict[str, Any]:
    limit(message)
    return inspected(Path(message["path"]))


def limit(limits: Mapping[str, Any]) -> None:
    """Limit this process from here on: memory, seconds of computing, open files; it can write no file at all."""
    try:
        import resource
    except ImportError:  # Windows: the server's time limit remains
        return
    memory = _address_space() + limits["bytes"] + _MARGIN
    seconds = max(int(limits["seconds"]), 1)
    bounds = {"AS": memory, "CPU": seconds, "FSIZE": 0, "NOFILE": MAX_FILES, "CORE": 0}
    for name, most in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            before = resource.getrlimit(kind)[1]
            most = most if before == resource.RLIM_INFINITY else min(most, before)  # noqa: PLW2901
            resource.setrlimit(kind, (most, most))


def _address_space() -> int:
    """Bytes of address space in use, most of them libraries."""
    status = Path("/proc/self/statm")
    if sys.platform.startswith("linux") and status.exists():
        import resource

        return int(status.read_text().split()[0]) * resource.getpagesize()
    return 2**36  # unknown: only a limit that no process reaches is safe


def inspected(path: Path) -> dict[str, Any]:
    """Decode the whole file and return what it is. Raises BadRequest."""
    recipe = _recipe(path)
    if is_image(path):
        height, width = image_size(path)
        return {"kind": "image", "frames": 1, "fps": None, "height": height, "width": width, "recipe": recipe}
    limits = replace(decode_limits(), pixels=MAX_VIDEO_PIXELS)
    _, timed = timed_frames(path, limits, Part())
    pixels = 0
    for frame in frames_from(path.name, timed, None, limits):
        height, width = frame.pixels().shape[:2]
        pixels += height * width
        if pixels > MAX_VIDEO_PIXELS:
            raise BadRequest(f"{path.name} has more than {MAX_VIDEO_PIXELS:,} pixels over all frames; cut it shorter")
    found = probe(path)
    return {
        "kind": "video", "frames": found.frames, "fps": found.fps, "height": found.height, "width": found.width,
        "recipe": recipe,
    }  # fmt: skip


def _recipe(path: Path) -> str | None:
    """Return the recipe in a clip as JSON text; None if there is none that can be read."""
    try:
        recipe = find_recipe(path)
    except BadRequest:
        return None
    text = None if recipe is None else as_json(recipe)
    return text if text is not None and len(text) <= MAX_RECIPE else None


if __name__ == "__main__":
    main()
