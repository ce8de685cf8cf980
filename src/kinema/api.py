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
from kinema.schema import BadRequest, Clip, Request
from kinema.system import MemoryOptions, System, open_system
from kinema.verbs import Verbs

Preview = bool | Previews
"""Whether to report previews of x0 during sampling; `kinema.previews.Previews` sets their rate and size."""


@dataclass(frozen=True, eq=False)
class Model(Verbs):
    """A loaded model with one method per task (`Verbs`); `run` takes a `Request`."""

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

    def _run(self, request: Request, *, on_event: OnEvent, preview: Preview, cancel: Cancel | None) -> Clip:
        return self.run(request, on_event=on_event, preview=preview, cancel=cancel)


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
