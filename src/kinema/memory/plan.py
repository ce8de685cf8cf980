"""Which plan runs a request within the memory there is, and why; or the sentence that refuses it.

What a request needs is rehearsed on the meta device (`kinema.memory.rehearsal`), so nothing is loaded to know it.
Plans are tried from the one that costs nothing to the one that costs most time; what changes the clip (decoding in
parts) is tried only when no exact plan fits.
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
from kinema.memory.free import free_bytes, gib, held_bytes, unified
from kinema.memory.offload import LEVELS, Offload
from kinema.memory.rehearsal import MemoryUse, Rehearsal
from kinema.nn.ldm_unet import FeedForward, channels_last, chunk_feed_forward
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Request
from kinema.system import DECODING, System, decoding_of, with_model
from kinema.vae.placing import placed

SHARE = 0.9
"""Of the free memory that a plan may fill."""
KERNELS = 1.2
"""What kernels take for themselves, over the tensors that are counted."""
GPU = 2**30
"""A GPU's libraries and work space."""
TOKENS = 2**14
"""Tokens that feed-forward layers take at a time where memory is short."""
STEP_MOST, DECODE_MOST = 4000, 200
"""No step holds more floats for each number of the latents, no decoding more for each of the pixels: where there is
room for so much, nothing is rehearsed."""


class TooLarge(BadRequest):
    """A request that no plan fits into the memory there is."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a request runs: ``need`` and ``budget`` in bytes; ``need`` is None where there is plenty of room."""

    offload: Offload = "none"
    tokens: int | None = None
    decoding: Mapping[str, int] | None = None
    """Options of the codec's `decode` beyond the request's own."""
    need: int | None = None
    budget: int = 0
    reasons: tuple[str, ...] = ()
    at_once: bool = False
    """Whether both halves of guidance may be in memory at the same time (on a CPU): where there is plenty of room."""

    def told(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"offload": self.offload, "chunk_tokens": self.tokens, "at_once": self.at_once}

    def applied(self, request: Request) -> Request:
        """The request with the decoding that was chosen, which belongs to its recipe."""
        if not self.decoding:
            return request
        told = {long: self.decoding[short] for short, long in DECODING.items() if short in self.decoding}
        return request.with_(extra={**request.extra, **told})


def choose(system: System, request: Request, canvas: Canvas, *, measured: bool = False, taken: int = 0) -> MemoryPlan:
    """The first plan that fits, of those that the system's `MemoryOptions` leave open.

    The request is settled, the way to hold what is given in the canvas's block; ``measured`` is whether guidance draws
    the clip to a small one, ``taken`` the bytes that others fill meanwhile. Raises TooLarge for one that cannot fit,
    and names the plan that would.
    """
    told = system.memory
    budget = max((told.budget or room(system)) - taken, 1)
    needs = Needs(system, request, canvas, measured)
    if told.offload in ("auto", "none") and told.tokens is None and needs.at_most < budget:
        # Two threads that come to a block at the same time would both compile it.
        together = system.device.type == "cpu" and not system.compiled
        return MemoryPlan(budget=budget, at_once=together and needs.at_once_most < budget)
    if told.tokens is not None and not needs.has_feed_forward:
        raise BadRequest(f"{system.name} has no feed-forward layers that work on some of the tokens at a time")
    if told.offload not in ("auto", *needs.levels):
        raise BadRequest(
            f"cannot offload {system.name}: on this device weights wait in their file, and it has no file"
            if system.weights.path is None
            else f"{system.name} is one network, which cannot take turns; offload may be block or sequential"
        )
    levels = needs.levels if told.offload == "auto" else (told.offload,)
    least = None
    for plan in _plans(needs, levels, told.tokens):
        need = needs.bytes(plan)
        if need <= budget:
            found = replace(plan, need=need, budget=budget)
            return replace(found, reasons=tuple(explain(needs, found)))
        if least is None or need < least[0]:
            least = need, plan
    assert least is not None
    raise TooLarge(_refusal(needs, budget, *least))


def room(system: System) -> int:
    """Bytes that a request may fill: most of what is free, and what the system's weights fill already."""
    device, model = str(system.device), system.runtime.model
    return int(SHARE * free_bytes(device)) + (0 if model is None else held_bytes(model.parameters(), device))


def weight_bytes(system: System) -> int:
    """Bytes of all of a system's weights."""
    with on_meta():
        return system.policy.bytes(sum(p.numel() for p in system.family.build(system.config).parameters()))


def _plans(needs: Needs, levels: tuple[Offload, ...], tokens: int | None) -> Iterator[MemoryPlan]:
    """Exact plans first, the least slow first."""
    some = (tokens,) if tokens is not None or not needs.has_feed_forward else (None, TOKENS)
    for decoding in chain(({},), needs.leaner()):
        for level in levels:
            for chunk in some:
                yield MemoryPlan(level, chunk, decoding)


def _refusal(needs: Needs, budget: int, need: int, plan: MemoryPlan) -> str:
    told = needs.system.memory
    size = needs.request.shape
    what = f"{size.batch} × {size.frames} frames of {size.width}×{size.height}"
    start = f"{needs.system.name} needs {gib(need)} for {what}, and {gib(budget)} may be used"
    open_ = replace(needs.system, memory=replace(told, offload="auto", tokens=None))
    if (told.offload, told.tokens) != ("auto", None):
        other = Needs(open_, needs.request, needs.canvas, needs.measured)
        fitting = next((p for p in _plans(other, other.levels, None) if other.bytes(p) <= budget), None)
        if fitting is not None:
            return f"{start}; it would fit with {describe(fitting)}: leave offload and chunk_tokens to kinema"
    halves = " --dtype bf16," if needs.system.dtype == torch.float32 and needs.system.device.type != "cpu" else ""
    return f"{start}, even with {describe(plan)}; ask for{halves} fewer frames, a smaller size or fewer clips"


def describe(plan: MemoryPlan) -> str:
    """The plan in a few words."""
    words = {
        "none": "all weights in memory",
        "model": "networks that take turns (offload model)",
        "block": "weights that come block by block (offload block)",
        "sequential": "one block's weights at a time (offload sequential)",
    }
    parts = [words[plan.offload]]
    if plan.tokens:
        parts.append(f"feed-forward layers over {plan.tokens:,} tokens at a time")
    if plan.decoding:
        parts.append(f"decoding in parts ({', '.join(f'{k} {v}' for k, v in plan.decoding.items())})")
    return ", ".join(parts)


def explain(needs: Needs, plan: MemoryPlan) -> Iterator[str]:
    """Each choice in a sentence: what it is, and what it avoids."""
    assert plan.need is not None
    plain = MemoryPlan(decoding={})
    yield f"memory: about {gib(plan.need)} at the peak of {gib(plan.budget)} that may be used"
    if plan.offload != "none":
        where = "on disk" if unified(needs.system.device) else "in the host's memory"
        what = {
            "model": "networks take turns, the others wait",
            "block": "weights come block by block, the next read ahead, and wait",
            "sequential": "one block's weights come at a time, the others wait",
        }[plan.offload]
        alone = needs.bytes(replace(plan, offload="none"))
        yield f"{what} {where}: all at once would need {gib(alone)}"
    if plan.tokens:
        yield (
            f"feed-forward layers work on {plan.tokens:,} tokens at a time: "
            f"a step over all would hold {gib(needs.step(None).peak)} beside the weights"
        )
    if plan.decoding:
        more = needs.decode(plain.decoding or {}).peak
        yield (
            f"the clip is decoded in parts that fade into each other ({', '.join(_words(plan.decoding))}): "
            f"whole it would hold {gib(more)} beside the weights; this changes its pixels a little"
        )


def _words(decoding: Mapping[str, int]) -> Iterator[str]:
    if "chunk" in decoding:
        yield f"{decoding['chunk']} frames, {decoding.get('overlap', 0)} of them shared"
    if "tile" in decoding:
        yield f"squares of {decoding['tile']} latent cells"


class Needs:
    """What a request needs, phase by phase; each is rehearsed when it is first asked for."""

    def __init__(self, system: System, request: Request, canvas: Canvas, measured: bool = False) -> None:
        self.system, self.request, self.canvas, self.measured = system, request, canvas, measured
        self._steps: dict[int | None, MemoryUse] = {}
        self._decodes: dict[tuple[tuple[str, int], ...], MemoryUse] = {}

    @cached_property
    def outline(self) -> System:
        """The system on the meta device: every shape and no numbers."""
        with on_meta():
            model = self.system.family.build(self.system.config)
        model = self.system.policy.placed(model, torch.device("meta")).eval().requires_grad_(False)
        channels_last(model)  # as families have them when they run: else the change would count as the step's
        return with_model(replace(self.system, device=torch.device("meta")), model)

    @cached_property
    def rehearsal(self) -> Rehearsal:
        return Rehearsal(offload.networks(self.outline.model))

    @cached_property
    def units(self) -> dict[str, tuple[int, list[int]]]:
        """Bytes of each network outside its blocks, and of each block."""
        model = self.outline.model
        found = offload.units(model, self.system.family.blocks(model))
        return {name: (own.bytes, [block.bytes for block in blocks]) for name, (own, blocks) in found.items()}

    @property
    def branches(self) -> tuple[str, ...]:
        """Those that a step computes, one after the other where there is no room for more."""
        return self.system.guidance(self.request).branches

    @property
    def weights(self) -> int:
        return sum(own + sum(blocks) for own, blocks in self.units.values())

    @property
    def at_most(self) -> int:
        """More than it can be, told without building anything: files of halves become what is computed in."""
        told, width = self.system.weights, self.system.dtype.itemsize
        if told.path is None:
            weights = self.weights
        else:
            paths = [told.path, *(added.source.path for added in told.added)]
            weights = sum(_size(path) for path in paths) * width // 2
        return weights + self.step_most + 4 * DECODE_MOST * 3 * self.request.pixels

    @property
    def at_once_most(self) -> int:
        """The same with every branch of guidance in memory at the same time."""
        return self.at_most + max(len(self.branches) - 1, 1) * self.step_most

    @property
    def step_most(self) -> int:
        """More than one branch of a step can take beyond the weights."""
        return 4 * STEP_MOST * math.prod(self.system.latent_shape(self.request).bcthw)

    @property
    def has_feed_forward(self) -> bool:
        return any(isinstance(m, FeedForward) for m in self.outline.model.modules())

    @property
    def levels(self) -> tuple[Offload, ...]:
        """The levels that save something here: where memory is the host's, weights wait in their file, if there is
        one.
        """
        if unified(self.system.device) and self.system.weights.path is None:
            return ("none",)
        return LEVELS if len(self.units) > 1 else tuple(level for level in LEVELS if level != "model")

    def leaner(self) -> Iterator[Mapping[str, int]]:
        """Ways to decode in parts, unless the request says how to decode."""
        if not any(long in self.request.extra for long in DECODING.values()):
            z = self.system.latent_shape(self.request)
            yield from self.outline.codec.leaner(z.frames, z.height, z.width)

    def bytes(self, plan: MemoryPlan) -> int:
        """The peak under a plan."""
        step = self.step(plan.tokens)
        most = self._resident(step, plan.offload, kept=self.differentiates) + int(KERNELS * step.peak)
        for phase in (self.condition, self.decode(plan.decoding or {})):
            most = max(most, self._resident(phase, plan.offload) + int(KERNELS * phase.peak))
        pixels = 4 * 3 * self.request.pixels if unified(self.system.device) else 0  # canvas and clip are there
        return most + 3 * pixels + (0 if self.system.device.type == "cpu" else GPU)

    @property
    def differentiates(self) -> bool:
        """Whether guidance asks for the gradient of the denoiser."""
        held = self.canvas.block.way == "reconstruction" and not self.canvas.empty
        return self.measured or (held and self.request.reconstruction_weight > 0)

    def _resident(self, phase: MemoryUse, level: Offload, *, kept: bool = False) -> int:
        """Bytes of weights; ``kept`` where the way back of a gradient needs those of all blocks again."""
        if level == "none":
            return self.weights
        at_once = {"model": None, "block": 3, "sequential": 2}[level]  # the last one's memory is not back at once
        at_once = None if kept else at_once
        turn = [0]
        for name in phase.networks:
            own, blocks = self.units[name]
            turn.append(own + (sum(blocks) if at_once is None else sum(sorted(blocks)[-at_once:])))
        return max(turn)

    # ----------------------------------------------------------------------------------- the phases

    @cached_property
    def condition(self) -> MemoryUse:
        """Conditioning, and the encoding of what is given or edited."""
        outline, canvas = self.outline, self.canvas
        with torch.no_grad(), self.rehearsal.phase("condition"):
            words = outline.encode_prompt(self.request)
            self.conditions = outline.condition(words, self.request, canvas)
            shown = canvas.empty or canvas.block.way == "native"
            for piece in (*canvas.held, *([] if shown else [canvas.given])):
                placed(outline.encode, outline.lattice.grid, piece.video, piece.mask)
        return self.rehearsal.phases["condition"]

    def step(self, tokens: int | None) -> MemoryUse:
        """One call of the denoiser, with the gradient where guidance needs it."""
        if tokens not in self._steps:
            _ = self.condition
            chunk_feed_forward(self.outline.model, tokens)
            with self.rehearsal.phase(f"step {tokens}"):
                self._call()
            self._steps[tokens] = self.rehearsal.phases[f"step {tokens}"]
        return self._steps[tokens]

    def _call(self) -> None:
        request, system = self.request, self.outline
        shape = system.latent_shape(request)
        window = shape.frames
        if request.window and request.window_in == "denoiser":  # else only attention works in windows
            window = system.lattice.grid.time.latent(request.window)
        frames = list(range(window)) if window < shape.frames else None
        denoise = system.denoiser(self.conditions.branches[self.branches[0]], frames)
        b, c, _, h, w = shape.bcthw
        grad = self.differentiates
        level = system.levels(request)[0].batch(b)
        with torch.set_grad_enabled(grad):
            z = torch.empty(b, c, min(window, shape.frames), h, w, device="meta", requires_grad=grad)
            x0 = denoise(z, level)
            if grad:
                torch.autograd.grad(x0.sum(), z)

    def decode(self, decoding: Mapping[str, int]) -> MemoryUse:
        key = tuple(sorted(decoding.items()))
        if key not in self._decodes:
            system, told = self.outline, {**decoding_of(self.request), **decoding}
            z = torch.empty(system.latent_shape(self.request).bcthw, device="meta", dtype=system.dtype)
            with torch.no_grad(), self.rehearsal.phase(f"decode {key}"):
                system.codec.decode(z, **told)
            self._decodes[key] = self.rehearsal.phases[f"decode {key}"]
        return self._decodes[key]


def _size(path: Path) -> int:
    """Bytes of a file, or of all the files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
