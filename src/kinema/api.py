"""The public API: `load` and the `Model` that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kinema.cancel import Cancel, cancellable
from kinema.events import OnEvent, ignore
from kinema.generate import Noise, OnSettled, accept, generate
from kinema.job import JobSource
from kinema.memory.free import parse_bytes
from kinema.memory.offload import LEVELS
from kinema.previews import Previews
from kinema.registry import unknown_name
from kinema.schema import BadRequest, Clip, Request, TaskName
from kinema.system import MemoryOptions, System, open_system

Preview = bool | Previews
"""Whether to report previews of x0 during sampling; `kinema.previews.Previews` sets their rate and size."""


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model with one method per task. Every method takes the options of `Request` by name.

    Like `run`, each also takes ``on_event`` (a listener), ``preview`` (report downscaled frames of the clip so far) and
    ``cancel`` (a token that another thread may set: ``cancel=kinema.Cancel()``).
    """

    system: System

    def run(
        self,
        request: JobSource,
        *,
        noise: Noise = None,
        on_event: OnEvent = ignore,
        on_settled: OnSettled = accept,
        output: str = "clip",
        preview: Preview = False,
        cancel: Cancel | None = None,
    ) -> Clip:
        """Generate a clip from a `Request`; see `kinema.generate.generate`."""
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
        """Set the active LoRA files and their weights; ``{}`` restores the model's own weights."""
        self.system.use_loras(loras)

    def generate(self, prompt: str, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self._run("generate", prompt=prompt, **options)

    def animate(self, image: str | Path | None = None, prompt: str = "", **options: Any) -> Clip:
        """Image to video. ``last_image`` or ``loop`` set the last frame, ``keyframes={5: "a.png"}`` any frame, with or
        without an image; ``region`` makes a cinemagraph.
        """
        return self._run("animate", image=image, prompt=prompt, **options)

    def interpolate(self, video: str | Path | None = None, **options: Any) -> Clip:
        """Add frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self._run("interpolate", video=video, **options)

    def extend(self, video: str | Path, **options: Any) -> Clip:
        """Extend a clip to ``frames`` frames in total, at its end, or at its start with ``backward``; ``loop`` leads
        back to its first frame.
        """
        return self._run("extend", video=video, **options)

    def inpaint(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """Generate new content in the ``region`` or ``mask`` of a clip; with ``outside``, around it (outpainting)."""
        return self._run("inpaint", video=video, prompt=prompt, **options)

    def edit(self, video: str | Path, prompt: str, **options: Any) -> Clip:
        """Change a clip to match the prompt; ``strength`` controls how much (SDEdit)."""
        return self._run("edit", video=video, prompt=prompt, **options)

    def upscale(self, video: str | Path, prompt: str = "", **options: Any) -> Clip:
        """Enlarge a clip by ``scale``; ``every`` also adds frames in between."""
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
        raise BadRequest(f"{task} does not have this option: {str(error).split(') ')[-1]}") from None


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
    cancel: Cancel | None = None,
) -> Model:
    """Open a model: "zoetrope" (embedded), an alias, a hub id, a folder or a file.

    ``preset`` builds an untrained model: ``load("vdm", preset="tiny")``. ``variant`` selects files of a folder ("fp16")
    or the published model that ambiguous weights belong to ("svd-xt"). ``loras`` are LoRA files and their weights:
    ``{"style.safetensors": 0.8}``; `Model.use_loras` changes them, and a request's own ``loras`` replace them.
    ``device`` is "cpu", "cuda:0", "mps" or "xpu"; None selects the first accelerator, or the CPU. ``dtype`` is the
    precision of computation. None uses the weight file's precision on an accelerator (bfloat16 where float16 would
    overflow) and float32 on a CPU; "auto" uses bfloat16 also for float32 files and on a CPU, if natively supported.
    ``add`` are add-ons by slot, such as a motion module: ``{"motion": "mm_sd_v15_v2.ckpt"}``. ``memory`` is the memory
    budget, in bytes or as "8GiB" (default: most of the free memory). ``offload`` moves weights to the device in turn to
    save memory: "model", "block" or "sequential" (`kinema.memory.offload`); "auto" if a request would not fit
    otherwise. ``chunk_tokens`` is the number of tokens that feed-forward layers process at a time. ``compile`` compiles
    the network's blocks at their first run: the first step is slow, later ones are faster, and the last bits may
    differ. ``on_event`` receives a `Note` with the licence terms of some weights before their first download. Raises
    BadRequest for unknown models, and for ``compile`` without a compiler, and Cancelled once ``cancel`` is set, also
    during a download.
    """
    if offload not in ("auto", *LEVELS):
        raise BadRequest(unknown_name("offload", offload, ("auto", *LEVELS)))
    if chunk_tokens is not None and chunk_tokens < 1:
        raise BadRequest(f"chunk_tokens is {chunk_tokens}; expected 1 or more")
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    if budget is not None and budget < 1:
        raise BadRequest(f"memory is {budget}; expected a number of bytes")
    with cancellable(cancel):
        system = open_system(
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
    return Model(system)
