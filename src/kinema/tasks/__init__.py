"""Verbs: how a request becomes a canvas.

A task is two small functions: ``plan`` fills in what the given media imply (frame count, rate) and refuses
what is missing, before a model's defaults; ``canvas`` reads the media once the size is settled.
"""

from __future__ import annotations

from kinema.tasks import animate, edit, extend, generate, inpaint, interpolate, upscale
from kinema.tasks.known import Task

TASKS: dict[str, Task] = {
    "generate": Task(generate.plan, generate.canvas),
    "animate": Task(animate.plan, animate.canvas),
    "interpolate": Task(interpolate.plan, interpolate.canvas),
    "extend": Task(extend.plan, extend.canvas),
    "inpaint": Task(inpaint.plan, inpaint.canvas),
    "edit": Task(edit.plan, edit.canvas),
    "upscale": Task(upscale.plan, upscale.canvas),
}
