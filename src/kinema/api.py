"""What ``import kinema`` gives: `load`, and the `Model` that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kinema.generate import Noise, OnSettled, accept, generate
from kinema.job import Asked
from kinema.memory.free import parse_bytes
from kinema.memory.turns import LEVELS
from kinema.registry import unknown
from kinema.schema import BadRequest, Clip, OnEvent, Request, TaskName, ignore
from kinema.system import MemoryOptions, System, open_system


@dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns: a system with the six verbs. Every verb takes `Request`'s options by name."""

    system: System

    def run(
        self,
        request: Asked,
        *,
        noise: Noise = None,
        on_event: OnEvent = ignore,
        on_settled: OnSettled = accept,
        output: str = "clip",
    ) -> Clip:
        """See `generate`."""
        return generate(self.system, request, noise=noise, on_event=on_event, on_settled=on_settled, output=output)

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Have exactly these LoRA files in force, each with its weight; ``{}`` gives back the model's own weights."""
        self.system.use_loras(loras)

    def generate(self, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self.run(_request("generate", prompt=prompt, **options), on_event=on_event)

    def animate(
        self, image: str | Path | None = None, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any
    ) -> Clip:
        """Image to video; ``last_image`` or ``loop`` fix the end too, ``keyframes={5: "a.png"}`` any frame, with or
        without an image, and ``region`` makes a cinemagraph.
        """
        return self.run(_request("animate", image=image, prompt=prompt, **options), on_event=on_event)

    def interpolate(self, video: str | Path | None = None, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self.run(_request("interpolate", video=video, **options), on_event=on_event)

    def extend(self, video: str | Path, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """More of a clip: ``frames`` counts the whole; ``backward`` leads to it; ``loop`` closes it."""
        return self.run(_request("extend", video=video, **options), on_event=on_event)

    def inpaint(self, video: str | Path, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """New content in ``region`` or ``mask`` of a clip; ``outside`` of it for outpainting."""
        return self.run(_request("inpaint", video=video, prompt=prompt, **options), on_event=on_event)

    def edit(self, video: str | Path, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """The clip changed to fit the prompt, as far as ``strength`` lets it."""
        return self.run(_request("edit", video=video, prompt=prompt, **options), on_event=on_event)


def _request(task: TaskName, **options: Any) -> Request:
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    if isinstance(values.get("loras"), Mapping):
        values["loras"] = {str(file): weight for file, weight in values["loras"].items()}
    try:
        return Request(task=task, **values)
    except TypeError as error:
        raise BadRequest(f"{task} takes no such option: {str(error).split(') ')[-1]}") from None


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    preset: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto",
    memory: int | str | None = None,
    chunk_tokens: int | None = None,
    compile: bool = False,
) -> Model:
    """Open a model: "zoetrope" (embedded), an alias, a hub id, a folder or a file.

    ``preset`` builds an untrained one: ``load("vdm", preset="tiny")``. ``variant`` picks among the files of a
    folder ("fp16"), or says which published model the weights are ("svd-xt"), where they do not tell. ``loras`` are
    LoRA files and their weights: ``{"style.safetensors": 0.8}``; `Model.use_loras` changes them later, and a request
    with ``loras`` of its own has those instead.
    ``add`` are files in slots of the model, such as a motion module in an image model:
    ``{"motion": "mm_sd_v15_v2.ckpt"}``. ``memory`` is how much may be used, in bytes or as "8GiB" (most of
    what is free). ``offload`` has weights take turns where that saves memory: "model", "block" or "sequential"
    (`kinema.memory.turns`); "auto" when a request would not fit otherwise. ``chunk_tokens`` is how many feed-forward
    layers take at a time. ``compile`` has PyTorch compile the network's blocks when they first run: faster steps after
    a slow first one, and last bits may differ. Raises BadRequest for anything that is not a model we know, and where
    there is no compiler.
    """
    if offload not in ("auto", *LEVELS):
        raise BadRequest(unknown("offload", offload, ("auto", *LEVELS)))
    if chunk_tokens is not None and chunk_tokens < 1:
        raise BadRequest(f"chunk_tokens is {chunk_tokens}; expected 1 or more")
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    if budget is not None and budget < 1:
        raise BadRequest(f"memory is {budget}; expected a number of bytes")
    return Model(
        open_system(
            source,
            variant=variant,
            preset=preset,
            dtype=dtype,
            device=device,
            offline=offline,
            overrides=overrides,
            loras=loras,
            add=add,
            memory=MemoryOptions(offload, budget, chunk_tokens),
            compile=compile,
        )
    )
