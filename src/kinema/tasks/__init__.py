"""Tasks: turn a request into a canvas.

A task is two functions: ``plan`` checks the request and fills in what its media imply (frame count, rate), before the
model's defaults; ``canvas`` reads the media once the size is settled.
"""

from __future__ import annotations

from kinema.tasks import animate, edit, extend, generate, inpaint, interpolate, upscale
from kinema.tasks.inputs import Task

TASKS: dict[str, Task] = {
    "generate": Task(generate.plan, generate.canvas),
    "animate": Task(animate.plan, animate.canvas),
    "interpolate": Task(interpolate.plan, interpolate.canvas),
    "extend": Task(extend.plan, extend.canvas),
    "inpaint": Task(inpaint.plan, inpaint.canvas),
    "edit": Task(edit.plan, edit.canvas),
    "upscale": Task(upscale.plan, upscale.canvas),
}
