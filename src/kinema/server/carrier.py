"""The carrier: carries the masks of one inpainting to all its frames, at a small size, for an editor; and ends.

    python -m kinema.server.carrier

It reads the clip and the masks as `kinema.tasks.inpaint` does, within the inspector's limits.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from kinema.schema import MAX_SIDE, Request
from kinema.server.channel import Message, answer_one
from kinema.server.inspector import limit
from kinema.tasks.inpaint import painted_area
from kinema.tasks.inputs import source_frames

SIDE = 256
"""Longest side of the masks in pixels."""


def main() -> None:
    answer_one(
        answer,
        lambda message: message["names"],
        memory="the clip needs more memory to decode than this service allows",
        failed="the masks cannot be carried",
    )


def answer(message: Message) -> dict[str, Any]:
    limit(message)
    return carried(Request.from_table(message["request"]))


def carried(request: Request) -> dict[str, Any]:
    """Return the masks of a settled request with ``masks``: the frames' count, their size, and one png with the frames
    in rows of ``columns``, white where new content is generated. Raises BadRequest.
    """
    assert request.height is not None
    assert request.width is not None
    scale = min(1.0, SIDE / max(request.height, request.width))
    height, width = (max(1, round(side * scale)) for side in (request.height, request.width))
    small = request.with_(height=height, width=width)
    known = source_frames(small, lambda _: None, frames=request.frames, fps=request.fps)
    masks_THW = painted_area(small, known, lambda _: None)[0, 0].numpy() > 0
    count = len(masks_THW)
    columns = min(count, 16, max(1, MAX_SIDE // width))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    for frame, mask in enumerate(masks_THW):
        y, x = frame // columns * height, frame % columns * width
        sheet[y : y + height, x : x + width] = mask * 255
    data = io.BytesIO()
    Image.fromarray(sheet).convert("1").save(data, "png", optimize=True)
    image = base64.b64encode(data.getvalue()).decode()
    return {"frames": count, "width": width, "height": height, "columns": columns, "image": image}


if __name__ == "__main__":
    main()
