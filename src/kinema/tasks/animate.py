"""Image to video: frame 0 is given, the last frame with ``last_image`` or ``loop``, and each keyframe.

A ``region`` or ``mask`` makes a cinemagraph: elsewhere, each frame repeats the given frame before it.
"""

from __future__ import annotations

from pathlib import Path

from kinema.canvas import Canvas
from kinema.events import OnEvent
from kinema.media import read
from kinema.media.containers import readable_path
from kinema.media.images import is_image
from kinema.schema import BadRequest, Request
from kinema.tasks.inpaint import check_region, generated_area
from kinema.tasks.inputs import blank, first_frame, refuse_both
from kinema.values import quoted


def plan(request: Request) -> Request:
    """Check the images. Raises `BadRequest` without any, with two for frame 0, and for a loop without frame 0."""
    if request.image is None and not request.keyframes:
        raise BadRequest("animate needs an image or a keyframe: give its file")
    refuse_both(request, "last_image", "loop")
    check_region(request)
    check_start(request)
    if request.image is not None and "0" in request.keyframes:
        raise BadRequest("frame 0 is given twice, by the image and by keyframe 0: give one of them")
    if request.loop and request.image is None and "0" not in request.keyframes:
        raise BadRequest("--loop repeats frame 0 at the end, but frame 0 is not given: give an image or keyframe 0")
    return request


def check_start(request: Request) -> None:
    """Raise `BadRequest` for a start if the image is not a clip, or is too short."""
    if request.start is None:
        return
    if request.image is None:
        raise BadRequest("--start applies to a clip given as the image: give an image, or leave --start out")
    if (path := readable_path(Path(request.image))).is_file() and is_image(path):
        raise BadRequest(f"start is {quoted(request.start)}, but {request.image} is an image; leave --start out")
    read.probe(request.image, start=request.start)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    given = {
        frame: first_frame(request, file, on_event, None if frame or request.image is None else request.start)
        for frame, file in given_files(request).items()
    }
    if request.loop:
        given[request.shape.frames - 1] = given[0]
    if request.region or request.mask:
        for frame in range(request.shape.frames):
            before = max((at for at in given if at <= frame), default=min(given))
            video[:, :, frame] = given[before][:, :, 0]
        mask[:] = 1 - generated_area(request, on_event)
    for frame, image in given.items():
        video[:, :, frame], mask[:, :, frame] = image[:, :, 0], 1
    return Canvas.of(video, mask)


def given_files(request: Request) -> dict[int, str]:
    """Return the file of each given frame. Raises `BadRequest` for a frame beyond the clip or given twice."""
    last = request.shape.frames - 1
    if beyond := [frame for frame in request.keyframes if int(frame) > last]:
        raise BadRequest(f"keyframe {beyond[0]} is beyond the end of the clip; expected 0 to {last}")
    if last == 0 and request.last_image and request.image:
        raise BadRequest("the only frame is given twice, by the image and by --last-image: ask for more --frames")
    end = "--last-image" if request.last_image else "--loop" if request.loop else ""
    if end and str(last) in request.keyframes:
        raise BadRequest(f"the last frame is given twice, by {end} and by keyframe {last}: give one of them")
    files = {} if request.image is None else {0: request.image}
    files |= {int(frame): file for frame, file in request.keyframes.items()}
    return files if request.last_image is None else {**files, last: request.last_image}
