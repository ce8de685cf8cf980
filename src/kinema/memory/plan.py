"""Choosing a memory plan: the cheapest one that runs a request within the available memory, with its reasons.

A request's needs are measured on the meta device (`kinema.memory.rehearsal`), before anything is loaded. Plans are
tried from fastest to slowest; those that change the clip (decoding in parts) only if no exact plan fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kinema.canvas import Canvas
from kinema.memory import offload
from kinema.memory.free import format_bytes, free_bytes, held_bytes, unified
from kinema.memory.offload import LEVELS, Offload
from kinema.memory.rehearsal import MemoryUse, Rehearsal, layout
from kinema.nn.costs import Branches, order_of_branches
from kinema.nn.ldm_unet import FeedForward, channels_last, chunk_feed_forward
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Request
from kinema.system import DECODING, System, decode_options, with_model
from kinema.vae.given_pixels import encode_given

SHARE = 0.9
"""Fraction of the free memory that a plan may use."""
KERNELS = 1.2
"""Allowance for kernel workspace, relative to the counted tensors."""
GPU = 2**30
"""Bytes for a GPU's libraries and workspace."""
TOKENS = 2**14
"""Tokens that feed-forward layers process at a time when memory is short."""
STEP_MOST, DECODE_MOST = 4000, 200
"""Upper bounds on the floats a step holds per latent value, and decoding per pixel value. If memory suffices for these,
nothing is measured."""


class TooLarge(BadRequest):
    """Raised for a request that no plan fits into the available memory."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a request runs. ``need`` and ``budget`` are bytes; ``need`` is None if memory is plentiful (not measured)."""

    offload: Offload = "none"
    tokens: int | None = None
    decoding: Mapping[str, int] | None = None
    """Options of the codec's `decode` in addition to the request's own."""
    need: int | None = None
    budget: int = 0
    reasons: tuple[str, ...] = ()
    branches: Branches = "one by one"
    """How guidance branches run; one by one unless memory is plentiful, and on a GPU."""

    def to_recipe(self) -> dict[str, Any]:
        """The plan's entry in a recipe."""
        return {"offload": self.offload, "chunk_tokens": self.tokens, "branches": self.branches}

    def applied(self, request: Request) -> Request:
        """Return the request with the chosen decoding options, which its recipe must record."""
        if not self.decoding:
            return request
        chosen = {long: self.decoding[short] for short, long in DECODING.items() if short in self.decoding}
        return request.with_(extra={**request.extra, **chosen})


def choose(system: System, request: Request, canvas: Canvas, *, measured: bool = False, taken: int = 0) -> MemoryPlan:
    """Return the fastest plan that fits, among those that the system's `MemoryOptions` allow.

    The request must be resolved, and the canvas's block must state how the known region is conditioned on.
    ``measured``: guidance pulls the clip towards a low-resolution one. ``taken``: bytes used by other stages. Raises
    TooLarge if no plan fits; the message suggests changes that would help.
    """
    options = system.memory
    budget = max((options.budget or available_bytes(system)) - taken, 1)
    needs = Needs(system, request, canvas, measured)
    if options.offload in ("auto", "none") and options.tokens is None and needs.upper_bound < budget:
        # Two threads that reach a block at the same time would both compile it.
        together = system.device.type == "cpu" and not system.compiled and needs.upper_bound_together < budget
        if not together:
            return MemoryPlan(budget=budget)
        itemsize = system.policy.computed.itemsize
        order = order_of_branches(weight_bytes(system), itemsize, torch.get_num_threads())
        return MemoryPlan(budget=budget, branches=order)
    if options.tokens is not None and not needs.has_feed_forward:
        raise BadRequest(f"{system.name} does not support chunk_tokens: it has no chunkable feed-forward layers")
    if options.offload not in ("auto", *needs.levels):
        raise BadRequest(
            f"cannot offload {system.name} on this device: offloaded weights are read from the weight file, and an "
            "untrained model has no file"
            if system.weights.untrained
            else f"offload model needs several networks, and {system.name} is one network; use block or sequential"
        )
    levels = needs.levels if options.offload == "auto" else (options.offload,)
    least = None
    for plan in _plans(needs, levels, options.tokens):
        need = needs.bytes(plan)
        if need <= budget:
            fitting = replace(plan, need=need, budget=budget)
            return replace(fitting, reasons=tuple(explain(needs, fitting)))
        if least is None or need < least[0]:
            least = need, plan
    assert least is not None
    raise TooLarge(_too_large(needs, budget, *least))


def available_bytes(system: System) -> int:
    """Return the bytes a request may use: most of the free memory, plus what the system's weights already occupy."""
    device, model = str(system.device), system.runtime.model
    return int(SHARE * free_bytes(device)) + (0 if model is None else held_bytes(model.parameters(), device))


def weight_bytes(system: System) -> int:
    """Return the bytes of all of a system's weights."""
    return system.policy.bytes(system.parameters)


def _plans(needs: Needs, levels: tuple[Offload, ...], tokens: int | None) -> Iterator[MemoryPlan]:
    """Yield plans from fastest to slowest, those that keep the clip exact first."""
    chunks = (tokens,) if tokens is not None or not needs.has_feed_forward else (None, TOKENS)
    for decoding in chain(({},), needs.leaner()):
        for level in levels:
            for chunk in chunks:
                yield MemoryPlan(level, chunk, decoding)


def _too_large(needs: Needs, budget: int, need: int, plan: MemoryPlan) -> str:
    options = needs.system.memory
    size = needs.request.shape
    what = f"{size.batch} × {size.frames} frames of {size.width}×{size.height}"
    start = f"{needs.system.name} needs {format_bytes(need)} for {what}, but only {format_bytes(budget)} may be used"
    automatic = replace(needs.system, memory=replace(options, offload="auto", tokens=None))
    if (options.offload, options.tokens) != ("auto", None):
        other = Needs(automatic, needs.request, needs.canvas, needs.measured)
        fitting = next((p for p in _plans(other, other.levels, None) if other.bytes(p) <= budget), None)
        if fitting is not None:
            return f"{start}; leave out offload and chunk_tokens, as {describe(fitting)} would fit"
    halves = " --dtype bf16," if needs.system.dtype == torch.float32 and needs.system.device.type != "cpu" else ""
    return f"{start}, even with {describe(plan)}; try{halves} fewer frames, a smaller size or fewer clips"


def describe(plan: MemoryPlan) -> str:
    """Summarise the plan in a phrase."""
    phrases = {
        "none": "all weights in memory",
        "model": "one network in memory at a time (offload model)",
        "block": "weights loaded block by block (offload block)",
        "sequential": "one block's weights in memory at a time (offload sequential)",
    }
    parts = [phrases[plan.offload]]
    if plan.tokens:
        parts.append(f"feed-forward layers over {plan.tokens:,} tokens at a time")
    if plan.decoding:
        parts.append(f"decoding in parts ({', '.join(f'{k} {v}' for k, v in plan.decoding.items())})")
    return ", ".join(parts)


def explain(needs: Needs, plan: MemoryPlan) -> Iterator[str]:
    """Yield a sentence for each choice: what it does and how much memory it saves."""
    assert plan.need is not None
    plain = MemoryPlan(decoding={})
    yield f"memory: peak of about {format_bytes(plan.need)}; {format_bytes(plan.budget)} may be used"
    if plan.offload != "none":
        where = "on disk" if unified(needs.system.device) else "in host memory"
        what = {
            "model": "one network is in memory at a time; the others are",
            "block": "weights are loaded block by block, prefetching the next; the others are",
            "sequential": "one block's weights are in memory at a time; the others are",
        }[plan.offload]
        resident = needs.bytes(replace(plan, offload="none"))
        yield f"{what} {where}; without offloading {format_bytes(resident)} would be needed"
    if plan.tokens:
        yield (
            f"feed-forward layers process {plan.tokens:,} tokens at a time; "
            f"a step without this needs {format_bytes(needs.step(None).peak)} in addition to the weights"
        )
    if plan.decoding:
        more = needs.decode(plain.decoding or {}).peak
        yield (
            f"the clip is decoded in parts ({', '.join(_decoding_parts(plan.decoding))}) that are blended where they "
            f"overlap, which changes its pixels slightly; decoding it whole needs {format_bytes(more)} besides weights"
        )


def _decoding_parts(decoding: Mapping[str, int]) -> Iterator[str]:
    if "chunk" in decoding:
        yield f"{decoding['chunk']} frames, overlapping by {decoding.get('overlap', 0)}"
    if "tile" in decoding:
        yield f"tiles of {decoding['tile']}×{decoding['tile']} latents"


class Needs:
    """A request's memory needs, phase by phase; each phase is measured on first access."""

    def __init__(self, system: System, request: Request, canvas: Canvas, measured: bool = False) -> None:
        self.system, self.request, self.canvas, self.measured = system, request, canvas, measured
        self._steps: dict[int | None, MemoryUse] = {}
        self._decodes: dict[tuple[tuple[str, int], ...], MemoryUse] = {}

    @cached_property
    def outline(self) -> System:
        """The system on the meta device."""
        with on_meta():
            model = self.system.family.build(self.system.config)
        model = self.system.policy.placed(model, torch.device("meta")).eval().requires_grad_(False)
        channels_last(model)  # as families do before sampling; otherwise the conversion would count towards the step
        return with_model(replace(self.system, device=torch.device("meta")), model)

    @cached_property
    def rehearsal(self) -> Rehearsal:
        return Rehearsal(offload.networks(self.outline.model))

    @cached_property
    def units(self) -> dict[str, tuple[int, list[int]]]:
        """For each network: the bytes outside its blocks, and those of each block."""
        model = self.outline.model
        units = offload.units(model, self.system.family.blocks(model))
        return {name: (own.bytes, [block.bytes for block in blocks]) for name, (own, blocks) in units.items()}

    @property
    def branches(self) -> tuple[str, ...]:
        """The guidance branches that a step computes."""
        return self.system.guidance(self.request).branches

    @property
    def weights(self) -> int:
        return sum(own + sum(blocks) for own, blocks in self.units.values())

    @property
    def upper_bound(self) -> int:
        """A bound on the need that requires no build; it assumes that weight files are in half precision."""
        source, width = self.system.weights, self.system.dtype.itemsize
        if source.path is None:
            weights = weight_bytes(self.system)
        else:
            paths = [source.path, *(added.source.path for added in source.added)]
            weights = sum(_size(path) for path in paths) * width // 2
        return weights + self.step_upper_bound + 4 * DECODE_MOST * 3 * self.request.pixels

    @property
    def upper_bound_together(self) -> int:
        """`upper_bound` with all guidance branches in memory at the same time."""
        return self.upper_bound + max(len(self.branches) - 1, 1) * self.step_upper_bound

    @property
    def step_upper_bound(self) -> int:
        """A bound on what one branch of a step needs in addition to the weights."""
        return 4 * STEP_MOST * math.prod(self.system.latent_shape(self.request).bcthw)

    @property
    def has_feed_forward(self) -> bool:
        return any(isinstance(m, FeedForward) for m in self.outline.model.modules())

    @property
    def levels(self) -> tuple[Offload, ...]:
        """The offload levels that save memory here. With unified memory, offloading requires a weight file."""
        if unified(self.system.device) and self.system.weights.path is None:
            return ("none",)
        return LEVELS if len(self.units) > 1 else tuple(level for level in LEVELS if level != "model")

    def leaner(self) -> Iterator[Mapping[str, int]]:
        """Yield options for decoding in parts, unless the request sets its own."""
        if not any(long in self.request.extra for long in DECODING.values()):
            z = self.system.latent_shape(self.request)
            yield from self.outline.codec.leaner(z.frames, z.height, z.width)

    def bytes(self, plan: MemoryPlan) -> int:
        """Return the peak bytes under a plan."""
        step = self.step(plan.tokens)
        peak = self._resident(step, plan.offload, backward=self.differentiates) + int(KERNELS * step.peak)
        for phase in (self.condition, self.decode(plan.decoding or {})):
            peak = max(peak, self._resident(phase, plan.offload) + int(KERNELS * phase.peak))
        pixels = 4 * 3 * self.request.pixels if unified(self.system.device) else 0  # canvas and clip share the memory
        return peak + 3 * pixels + (0 if self.system.device.type == "cpu" else GPU)

    @property
    def differentiates(self) -> bool:
        """Whether guidance differentiates the denoiser."""
        reconstructs = self.canvas.block.way == "reconstruction" and not self.canvas.empty
        return self.measured or (reconstructs and self.request.reconstruction_weight > 0)

    def _resident(self, phase: MemoryUse, level: Offload, *, backward: bool = False) -> int:
        """Bytes of weights on the device; a ``backward`` pass keeps those of all blocks."""
        if level == "none":
            return self.weights
        count = {"model": None, "block": 3, "sequential": 2}[level]  # the previous block's memory is freed late
        count = None if backward else count
        sizes = [0]
        for name in phase.networks:
            own, blocks = self.units[name]
            sizes.append(own + (sum(blocks) if count is None else sum(sorted(blocks)[-count:])))
        return max(sizes)

    # ----------------------------------------------------------------------------------- the phases

    @cached_property
    def condition(self) -> MemoryUse:
        """Conditioning, and encoding of given and edited pixels."""
        outline, canvas = self.outline, self.canvas
        with torch.no_grad(), self.rehearsal.phase("condition"):
            text = outline.encode_prompt(self.request)
            self.conditions = outline.condition(text, self.request, canvas)
            native = canvas.empty or canvas.block.way == "native"
            for piece in (*canvas.held, *([] if native else [canvas.given])):
                encode_given(outline.encode, outline.lattice.grid, piece.video, piece.mask)
        return self.rehearsal.phases["condition"]

    def step(self, tokens: int | None) -> MemoryUse:
        """One call of the denoiser, with its backward pass if guidance needs it."""
        if tokens not in self._steps:
            _ = self.condition
            condition, window = self.conditions.branches[self.branches[0]], self._window
            size, grad = self.system.latent_shape(self.request).bcthw, self.differentiates
            depends = ("step", tokens, self.rehearsal.live, size, window, grad, layout(condition))

            def measure() -> MemoryUse:
                chunk_feed_forward(self.outline.model, tokens)
                with self.rehearsal.phase(f"step {tokens}"):
                    self._call(condition, window, grad)
                return self.rehearsal.phases[f"step {tokens}"]

            self._steps[tokens] = self.system.runtime.rehearsed(depends, measure)
        return self._steps[tokens]

    @property
    def _window(self) -> int:
        """The latent frames that one call of the denoiser sees."""
        frames, request = self.system.latent_shape(self.request).frames, self.request
        if request.window and request.window_in == "denoiser":  # otherwise only attention is windowed
            return min(frames, self.system.lattice.grid.time.latent(request.window))
        return frames

    def _call(self, condition: Any, window: int, grad: bool) -> None:
        request, system = self.request, self.outline
        b, c, frames, h, w = system.latent_shape(request).bcthw
        denoise = system.denoiser(condition, list(range(window)) if window < frames else None)
        level = system.levels(request)[0].batch(b)
        with torch.set_grad_enabled(grad):
            z = torch.empty(b, c, window, h, w, device="meta", requires_grad=grad)
            x0 = denoise(z, level)
            if grad:
                torch.autograd.grad(x0.sum(), z)

    def decode(self, decoding: Mapping[str, int]) -> MemoryUse:
        key = tuple(sorted(decoding.items()))
        if key not in self._decodes:
            system, options = self.outline, {**decode_options(self.request), **decoding}
            z = torch.empty(system.latent_shape(self.request).bcthw, device="meta", dtype=system.dtype)
            with torch.no_grad(), self.rehearsal.phase(f"decode {key}"):
                system.codec.decode(z, **options)
            self._decodes[key] = self.rehearsal.phases[f"decode {key}"]
        return self._decodes[key]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
