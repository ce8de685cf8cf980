"""What ``import kinema`` gives: `load`, and the `Model` that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kinema.cancel import Cancel
from kinema.generate import Noise, OnSettled, accept, generate
from kinema.job import Asked
from kinema.memory.free import parse_bytes
from kinema.memory.offload import LEVELS
from kinema.previews import Previews
from kinema.registry import unknown
from kinema.schema import BadRequest, Clip, OnEvent, Request, TaskName, ignore
from kinema.system import MemoryOptions, System, open_system

Preview = bool | Previews
"""Whether events with pictures of x0 come during sampling; `kinema.previews.Previews` says how many and how large."""


@dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns: a system with the verbs. Every verb takes `Request`'s options by name.

    As `run`, each also takes ``on_event`` (a listener), ``preview`` (events with small pictures of the clip so far) and
    ``cancel`` (a token that another thread may set: ``cancel=kinema.Cancel()``).
    """

    system: System

    def run(
        self,
        request: Asked,
        *,
        noise: Noise = None,
        on_event: OnEvent = ignore,
        on_settled: OnSettled = accept,
        output: str = "clip",
        preview: Preview = False,
        cancel: Cancel | None = None,
    ) -> Clip:
        """See `generate`."""
        return generate(
            self.system,
            request,
            noise=noise,
            on_event=on_event,
            on_settled=on_settled,
            output=output,
            preview=preview,
            cancel=cancel,
        )

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Have exactly these LoRA files in force, each with its weight; ``{}`` gives back the model's own weights."""
        self.system.use_loras(loras)

    def generate(self, prompt: str, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self._run("generate", prompt=prompt, **options)

    def animate(self, image: str | Path | None = None, prompt: str = "", **options: Any) -> Clip:
        """Image to video; ``last_image`` or ``loop`` fix the end too, ``keyframes={5: "a.png"}`` any frame, with or
        without an image, and ``region`` makes a cinemagraph.
        """
        return self._run("animate", image=image, prompt=prompt, **options)

    def interpolate(self, video: str | Path | None = None, **options: Any) -> Clip:
        """Frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self._run("interpolate", video=video, **options)

    def extend(self, video: str | Path, **options: Any) -> Clip:
        """More of a clip: ``frames`` counts the whole; ``backward`` leads to it; ``loop`` closes it."""
        return self._run("extend", video=video, **options)

    def inpaint(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """New content in ``region`` or ``mask`` of a clip; ``outside`` of it for outpainting."""
        return self._run("inpaint", video=video, prompt=prompt, **options)

    def edit(self, video: str | Path, prompt: str, **options: Any) -> Clip:
        """The clip changed to fit the prompt, as far as ``strength`` lets it."""
        return self._run("edit", video=video, prompt=prompt, **options)

    def upscale(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """The clip ``scale`` times as large; ``every`` also makes the frames between its own."""
        return self._run("upscale", video=video, prompt=prompt, **options)

    def _run(
        self,
        task: TaskName,
        *,
        on_event: OnEvent = ignore,
        preview: Preview = False,
        cancel: Cancel | None = None,
        **options: Any,
    ) -> Clip:
        return self.run(_request(task, **options), on_event=on_event, preview=preview, cancel=cancel)


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
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto",
    memory: int | str | None = None,
    chunk_tokens: int | None = None,
    compile: bool = False,
    on_event: OnEvent = ignore,
) -> Model:
    """Open a model: "zoetrope" (embedded), an alias, a hub id, a folder or a file.

    ``preset`` builds an untrained one: ``load("vdm", preset="tiny")``. ``variant`` picks among the files of a
    folder ("fp16"), or says which published model the weights are ("svd-xt"), where they do not tell. ``loras`` are
    LoRA files and their weights: ``{"style.safetensors": 0.8}``; `Model.use_loras` changes them later, and a request
    with ``loras`` of its own has those instead.
    ``device`` is "cpu", "cuda:0", "mps" or "xpu"; None is the first accelerator, or the CPU. ``dtype`` is the precision
    to compute in. None takes that of the model's file on an accelerator (bfloat16 where float16 would overflow) and
    float32 on a CPU; "auto" takes bfloat16 for float32 files and on a CPU too, where the device has it natively.
    ``add`` are files in slots of the model, such as a motion module in an image model:
    ``{"motion": "mm_sd_v15_v2.ckpt"}``. ``memory`` is how much may be used, in bytes or as "8GiB" (most of
    what is free). ``offload`` has weights take turns where that saves memory: "model", "block" or "sequential"
    (`kinema.memory.offload`); "auto" when a request would not fit otherwise. ``chunk_tokens`` is how many feed-forward
    layers take at a time. ``compile`` has PyTorch compile the network's blocks when they first run: faster steps after
    a slow first one, and last bits may differ. ``on_event`` gets a `Note` of the licence terms of some weights before
    they are first downloaded. Raises BadRequest for anything that is not a model we know, and where
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
            on_event=on_event,
        )
    )
