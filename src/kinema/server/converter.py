"""The converter: writes one clip of the store in another format, and ends.

    python -m kinema.server.converter

It reads the lossless frames and the recipe that the worker wrote; nothing of a client's reaches it but the format.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.atomic import replacing
from kinema.schema import Clip
from kinema.server.channel import answer_one

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    answer_one(
        convert,
        lambda _: {},
        memory="the clip needs more memory to convert than this machine has",
        failed="the clip cannot be converted",
    )


def convert(message: Mapping[str, Any]) -> None:
    """Write ``target`` (.gif or .webp of the clip with the number ``clip``, or .zip of all) from the files ``frames``
    and ``recipe``. Raises BadRequest.
    """
    import numpy as np

    target = Path(message["target"])
    with np.load(message["frames"], allow_pickle=False) as archive:
        frames_NTHWC = archive["frames"]
    if target.suffix == ".zip":
        with replacing(target) as part:
            write_zip(part, frames_NTHWC)
        return
    from torch import from_numpy

    number = message["clip"]
    video = from_numpy(frames_NTHWC[number : number + 1]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    recipe = json.loads(Path(message["recipe"]).read_text(encoding="utf-8"))
    recipe |= {"clip": number} if len(frames_NTHWC) > 1 else {}
    Clip(video, message["fps"], recipe).save(target)


def write_zip(path: Path, frames_NTHWC: np.ndarray) -> None:
    """Write all frames as png files; those of a batch in a folder for each clip."""
    from PIL import Image

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, frames_THWC in enumerate(frames_NTHWC):
            folder = f"clip-{number}/" if len(frames_NTHWC) > 1 else ""
            for index, frame in enumerate(frames_THWC):
                data = io.BytesIO()
                Image.fromarray(frame).save(data, "png", compress_level=4)
                archive.writestr(f"{folder}frame-{index:04d}.png", data.getvalue())


if __name__ == "__main__":
    main()
