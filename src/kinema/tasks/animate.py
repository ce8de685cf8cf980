"""Image to video: frame 0 is known, the last where ``last_image`` or ``loop`` gives it, and each of ``keyframes``.

With a ``region`` or ``mask`` it is a cinemagraph: elsewhere, every frame stands still as the known one before it.
"""

from __future__ import annotations

from pathlib import Path

from kinema.canvas import Canvas
from kinema.events import OnEvent
from kinema.media import read
from kinema.media.containers import existing
from kinema.media.pictures import is_picture
from kinema.schema import BadRequest, Request
from kinema.tasks.inpaint import check_region, wanted
from kinema.tasks.known import blank, first_frame, one_of
from kinema.values import quoted


def plan(request: Request) -> Request:
    """A picture is needed, of whichever frame. Raises `BadRequest` also where frame 0 has two, or a loop none."""
    if request.image is None and not request.keyframes:
        raise BadRequest("animate needs an image, or a keyframe: give its file")
    one_of(request, "last_image", "loop")
    check_region(request)
    check_start(request)
    if request.image is not None and "0" in request.keyframes:
        raise BadRequest("frame 0 is given twice, by image and by keyframes: give one of them")
    if request.loop and request.image is None and "0" not in request.keyframes:
        raise BadRequest("loop ends a clip with its frame 0, which is not given: give an image, or a keyframe 0")
    return request


def check_start(request: Request) -> None:
    """Refuse a start where the image is no clip, or does not last so long."""
    if request.start is None:
        return
    if request.image is None:
        raise BadRequest("start says which frame of the image is taken, if that is a clip: give an image, or no start")
    if (path := existing(Path(request.image))).is_file() and is_picture(path):
        raise BadRequest(f"start is {quoted(request.start)}, but {request.image} is one picture; leave start out")
    read.probe(request.image, start=request.start)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    given = {
        frame: first_frame(request, file, on_event, None if frame or request.image is None else request.start)
        for frame, file in pictures(request).items()
    }
    if request.loop:
        given[request.shape.frames - 1] = given[0]
    if request.region or request.mask:
        for frame in range(request.shape.frames):
            before = max((at for at in given if at <= frame), default=min(given))
            video[:, :, frame] = given[before][:, :, 0]
        mask[:] = 1 - wanted(request, on_event)
    for frame, picture in given.items():
        video[:, :, frame], mask[:, :, frame] = picture[:, :, 0], 1
    return Canvas.of(video, mask)


def pictures(request: Request) -> dict[int, str]:
    """The file of each frame that is given by one. Raises `BadRequest` for a frame beyond the clip, or given twice."""
    last = request.shape.frames - 1
    if beyond := [frame for frame in request.keyframes if int(frame) > last]:
        raise BadRequest(f"keyframes names frame {beyond[0]}; this clip has frames 0 to {last}")
    if last == 0 and request.last_image and request.image:
        raise BadRequest("frame 0 is the only one, and is given twice, by image and by last_image: ask for more frames")
    end = "last_image" if request.last_image else "loop" if request.loop else ""
    if end and str(last) in request.keyframes:
        raise BadRequest(f"frame {last}, the last, is given twice, by {end} and by keyframes: give one of them")
    files = {} if request.image is None else {0: request.image}
    files |= {int(frame): file for frame, file in request.keyframes.items()}
    return files if request.last_image is None else {**files, last: request.last_image}
