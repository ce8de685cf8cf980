"""The methods that a loaded model and a video service share: one for each task. Imports without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinema.cancel import Cancel
from kinema.events import OnEvent, ignore
from kinema.schema import BadRequest, Clip, Request, TaskName


class Verbs(ABC):
    """One method for each task. Every method takes the options of `Request` by name.

    Each also takes ``on_event`` (a listener), ``preview`` (report downscaled frames of the clip so far) and ``cancel``
    (a token that another thread may set: ``cancel=kinema.Cancel()``).
    """

    @abstractmethod
    def _run(self, request: Request, *, on_event: OnEvent, preview: Any, cancel: Cancel | None) -> Clip:
        """Generate the clip of a request."""

    def generate(self, prompt: str, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self._verb("generate", prompt=prompt, **options)

    def animate(self, image: str | Path | None = None, prompt: str = "", **options: Any) -> Clip:
        """Image to video. ``last_image`` or ``loop`` set the last frame, ``keyframes={5: "a.png"}`` any frame, with or
        without an image; ``region`` makes a cinemagraph.
        """
        return self._verb("animate", image=image, prompt=prompt, **options)

    def interpolate(self, video: str | Path | None = None, **options: Any) -> Clip:
        """Add frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self._verb("interpolate", video=video, **options)

    def extend(self, video: str | Path, **options: Any) -> Clip:
        """Extend a clip to ``frames`` frames in total, at its end, or at its start with ``backward``; ``loop`` leads
        back to its first frame.
        """
        return self._verb("extend", video=video, **options)

    def inpaint(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """Generate new content in the ``region`` or ``mask`` of a clip; with ``outside``, around it (outpainting)."""
        return self._verb("inpaint", video=video, prompt=prompt, **options)

    def edit(self, video: str | Path, prompt: str, **options: Any) -> Clip:
        """Change a clip to match the prompt; ``strength`` controls how much (SDEdit)."""
        return self._verb("edit", video=video, prompt=prompt, **options)

    def upscale(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """Enlarge a clip by ``scale``; ``every`` also adds frames in between."""
        return self._verb("upscale", video=video, prompt=prompt, **options)

    def _verb(
        self,
        task: TaskName,
        *,
        on_event: OnEvent = ignore,
        preview: Any = False,
        cancel: Cancel | None = None,
        **options: Any,
    ) -> Clip:
        return self._run(request_of(task, **options), on_event=on_event, preview=preview, cancel=cancel)


def request_of(task: TaskName, **options: Any) -> Request:
    """The request of a task and its options; paths become text. Raises BadRequest."""
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    if isinstance(values.get("loras"), Mapping):
        values["loras"] = {str(file): weight for file, weight in values["loras"].items()}
    try:
        return Request(task=task, **values)
    except TypeError as error:
        raise BadRequest(f"{task} does not have this option: {str(error).split(') ')[-1]}") from None
