"""What the tests of the timeline and the gallery do."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
from acting import ask, clip_of, order
from PIL import Image


def ended(server, video: str) -> dict:
    """Wait for a job's end."""
    while (found := ask(server, f"/v1/videos/{video}"))["status"] in ("queued", "in_progress", "cancelling"):
        time.sleep(0.2)
    return found


def made(server, prompt: str, model: str = "zoetrope", **request: object) -> str:
    """A finished clip, generated without the page."""
    video = order(server, prompt, model, **{"steps": 4, **request})
    assert ended(server, video)["status"] == "completed"
    return video


def option(page, name: str, value: object) -> None:
    """Set a field among all options of a form."""
    if not page.locator(".more").evaluate("each => each.open"):
        page.locator(".more > summary").click()
    page.get_by_label("Filter options").fill(name)
    page.locator(f"[data-field={name}] :is(input, select)").first.fill(str(value))
    page.get_by_label("Filter options").fill("")


def show_frame(page, frame: int) -> None:
    """Go to a frame with the keys of the ruler."""
    page.locator(".playhead-knob").focus()
    page.keyboard.press("Home")
    for _ in range(frame):
        page.keyboard.press("ArrowRight")


def brush(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Paint from one point of the frame to another, as fractions of it."""
    before = page.locator(".stage-canvas").bounding_box()
    points = [(before["x"] + before["width"] * x, before["y"] + before["height"] * y) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()


def generated(page, server) -> str:
    """Press the button of the timeline and wait for the clip."""
    page.locator(".timeline-job button.primary").click()
    page.wait_for_selector(".timeline-job[data-done=completed]")
    video = page.locator(".timeline-job").get_attribute("data-video")
    assert ended(server, video)["status"] == "completed"
    return video


def masks_of(server, document: dict) -> np.ndarray:
    """The carried masks of a document, T×H×W booleans, from the service."""
    found = ask(server, "/v1/masks", "POST", {"document": document})
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"]))).convert("L")) > 127
    height, width, columns = found["height"], found["width"], found["columns"]
    places = [divmod(frame, columns) for frame in range(found["frames"])]
    return np.stack([sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] for y, x in places])


def decoded(data: bytes, folder) -> np.ndarray:
    """The frames of an mp4 as inputs are read: T×H×W×3 uint8."""
    from kinema.media.colour import to_uint8
    from kinema.media.read import read_video

    path = folder / "source.mp4"
    path.write_bytes(data)
    return to_uint8(read_video(path).video)[0]


def source_of(server, video: str, folder) -> np.ndarray:
    return decoded(clip_of(server, video), folder)
