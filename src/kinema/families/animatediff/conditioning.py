"""Conditioning of the U-Net: the prompt, which may change over the frames, SDXL's sizes, and the control of motion.

Letters: B clips (1 if shared by all), T frames, K rows (1, or one per frame), L context tokens, C width,
V SDXL's added vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema import registry
from kinema.cancel import checkpoint
from kinema.canvas import Canvas
from kinema.conditioning import pocket
from kinema.conditioning.clip_text import ClipTokenizer, Tokenizer, WordTokenizer, encode, find_vocabulary
from kinema.events import OnEvent
from kinema.families.animatediff import prompting
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.control import image_prompts, pia, steering
from kinema.families.animatediff.control.ip_adapter import ImagePrompt
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.motion import options
from kinema.families.animatediff.motion.module import AS_TRAINED, MotionControl
from kinema.families.animatediff.motion.options import OPTIONS as MOTION_OPTIONS
from kinema.media import read
from kinema.nn.embeddings import sinusoidal
from kinema.schema import BadRequest, Request
from kinema.spans import Spans
from kinema.values import quoted

OPTIONS = ("clip_skip", *MOTION_OPTIONS, "scribble", "affinity", prompting.OPTION, "decode_tile")
NAMED = ("control", "control_scale", "control_span", "ip_image", "ip_scale")
"""Keys allowed in a request's ``extra``; the second group also with the name of an add-on (``control.depth``)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditioning of one guidance branch; ``motion`` is off for a single frame, which skips the motion module."""

    context_BKLC: Tensor
    added_BV: Tensor | None = None
    motion: bool = True
    motion_control: MotionControl = AS_TRAINED
    sparse: SparseInput | None = None
    steerings: tuple[Steering, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    first_BCTHW: Tensor | None = None

    def of(self, frames: Sequence[int] | None) -> Condition:
        """Select these frames."""
        if frames is None:
            return self

        context = self.context_BKLC
        return replace(
            self,
            context_BKLC=context[:, list(frames)] if context.shape[1] > 1 else context,
            motion_control=self.motion_control.of(frames),
            sparse=None if self.sparse is None else self.sparse.of(frames),
            steerings=tuple(each.of(frames) for each in self.steerings),
            image_prompts=tuple(each.of(frames) for each in self.image_prompts),
            first_BCTHW=None if self.first_BCTHW is None else self.first_BCTHW[:, :, list(frames)],
        )


def join(conditions: Sequence[Condition]) -> Condition | None:
    """Batch the conditions of single clips; None if their rows, conditioning frames, steering or image prompts differ.

    Motion control is the same for all clips and branches of a request; the first one's is used.
    """
    first = conditions[0]
    if not all(alike((c.steerings, c.image_prompts), (first.steerings, first.image_prompts)) for c in conditions):
        return None
    if len({(c.context_BKLC.shape, c.sparse is None, c.first_BCTHW is None) for c in conditions}) > 1:
        return None

    def concatenated(x: Sequence[Tensor | None]) -> Tensor | None:
        present = [each for each in x if each is not None]
        return torch.cat(present) if present else None

    sparse = [c.sparse for c in conditions if c.sparse is not None]
    frames, mask = ([getattr(each, name) for each in sparse] for name in ("frames_BCTHW", "mask_B1THW"))
    return replace(
        first,
        context_BKLC=torch.cat([c.context_BKLC for c in conditions]),
        added_BV=concatenated([c.added_BV for c in conditions]),
        sparse=SparseInput(torch.cat(frames), torch.cat(mask), sparse[0].scale_T) if sparse else None,
        first_BCTHW=concatenated([c.first_BCTHW for c in conditions]),
    )


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal; of sequences and dataclasses, whether all their parts are."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(alike, one, other))
    if is_dataclass(one):
        return all(alike(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class SparseInput:
    """SparseCtrl's conditioning frames (B×C×T×H×W) and their mask (B×1×T×H×W)."""

    frames_BCTHW: Tensor
    mask_B1THW: Tensor
    scale_T: Tensor

    def of(self, frames: Sequence[int]) -> SparseInput:
        at = list(frames)
        scale = self.scale_T[at] if len(self.scale_T) > 1 else self.scale_T
        return SparseInput(self.frames_BCTHW[:, :, at], self.mask_B1THW[:, :, at], scale)


# -------------------------------------------------------------------------------------------- words


@lru_cache(maxsize=4)
def _clip_tokenizer(folder: Path) -> ClipTokenizer:
    return ClipTokenizer(folder)


def tokenizer_of(config: Config, weights: Path | None, *, offline: bool = False) -> Tokenizer:
    """The model's word tokenizer, or CLIP's with a vocabulary from next to the weights or the hub."""
    return WordTokenizer(config.words) if config.words else _clip_tokenizer(find_vocabulary(weights, offline=offline))


def encode_text(
    model: AnimateDiff, config: Config, tokenizer: Tokenizer, text: str, clip_skip: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Encode plain text of any length: context 1×L×C, and for SDXL the pooled embedding 1×P."""
    checkpoint()
    for size in config.text:
        if (most := max([tokenizer.end, *tokenizer.tokens(text)])) >= size.vocabulary:
            raise BadRequest(
                f"the vocabulary has token {most:,} and the text encoder only {size.vocabulary:,} tokens; use the "
                "vocabulary of this text encoder"
            )
    pads = (None, 0)  # OpenCLIP's tokenizer fills rows with "!", which is 0
    encoders = list(zip(model.text_encoders, config.text, pads, strict=False))
    return encode(encoders, tokenizer, text, skip=clip_skip - 1, penultimate=len(encoders) > 1)


def max_clip_skip(config: Config) -> int:
    """The largest ``clip_skip`` that leaves every text encoder a layer; SDXL always skips one."""
    return min(size.layers for size in config.text) - (len(config.text) > 1)


def note_unknown_words(tokenizer: Tokenizer, name: str, texts: Sequence[str], on_event: OnEvent) -> None:
    """Report words outside a pocket model's vocabulary; byte pairs cover every word."""
    if isinstance(tokenizer, WordTokenizer):
        pocket.note_unknown_words(tokenizer.pocket, name, texts, on_event)


def over_frames(spans: Spans, contexts: Mapping[str, Tensor], frames: range) -> Tensor:
    """The context of these frames of the whole clip, T×L×C, interpolated linearly between the prompts' (1×L×C each).

    A single prompt gives one context for all frames, 1×L×C.
    """
    if len(spans.stops) == 1:
        return contexts[spans.texts[0]]
    mixed = [spans.mix(frame) for frame in frames]
    return torch.cat([torch.lerp(contexts[before], contexts[after], share) for before, after, share in mixed])


def sizes(config: Config, height: int, width: int) -> Tensor:
    """Sinusoidal embedding of SDXL's original size, crop and target size for an uncropped image, 1×6V."""
    values = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return sinusoidal(values, config.size_embedding).flatten()[None]


# --------------------------------------------------------------------------------------- options


def extra_help(config: Config) -> dict[str, str]:
    """One line of help for each option."""
    return {
        "clip_skip": f"layer of CLIP to use, counted from the last: 1 (default) to {max_clip_skip(config)}",
        "effect": "scale of the motion module's output: a number, one per frame, or by region; default 1",
        "motion_scale": "scale of its attention keys, in the same forms; above 1 gives more motion; default 1",
        "scribble": "scribble image, or a mapping of frames to images, with SparseCtrl for scribbles",
        "affinity": "likeness to the first frame, with PIA: small, moderate, large, loop-…, style-…, or a list",
        "control": "control clip or image of a ControlNet; control.NAME of one of several; same as --control",
        "control_scale": "scale of a ControlNet or SparseCtrl: a number, or one per frame; default 1",
        "control_span": "part of the steps in which a ControlNet acts, such as [0,0.5]; default all",
        "ip_image": "reference image of an IP-Adapter, a list, or a mapping of frames to images; same as --ip-image",
        "ip_scale": "scale of an IP-Adapter; default 1",
        "embeddings": "folder of the textual-inversion embeddings that prompts name; same as --embeddings",
        "decode_tile": "side of the squares decoded at a time, in latent cells (8 to 4096); default the whole frame",
    }


def check_extra(config: Config, request: Request) -> None:
    """Raise `BadRequest` for unknown options and values out of range."""
    extra = request.extra
    for name in extra:
        if name not in OPTIONS and name.partition(".")[0] not in NAMED:
            raise BadRequest(registry.unknown_name("option of animatediff", name, [*OPTIONS, *NAMED]))
    skip, highest = extra.get("clip_skip", 1), max_clip_skip(config)
    if isinstance(skip, bool) or not isinstance(skip, int | float) or skip not in range(1, highest + 1):
        raise BadRequest(f"clip_skip is {quoted(skip)}; expected a whole number from 1 (nothing skipped) to {highest}")
    tile = extra.get("decode_tile", 64)
    if isinstance(tile, bool) or not isinstance(tile, int) or not 8 <= tile <= 4096:
        raise BadRequest(f"decode_tile is {quoted(tile)}; expected a whole number of latent cells, 8 to 4096")
    prompting.check(config, request)
    steering.check(config, request)
    image_prompts.check(config, request)
    pia.affinity_of(config, request)
    if "scribble" in extra and config.sparse != "scribble":
        raise BadRequest("scribble needs SparseCtrl for scribbles and this model has none; give --add sparsectrl=FILE")
    steering.check_frames("scribble", scribbles_of(request), request)
    for file in scribbles_of(request).values():
        if not Path(file).is_file():
            raise BadRequest(f"scribble image {file} does not exist")
    options.check(request, config.longest)
    if options.is_block_wise(request, config.longest):
        for name, value in extra.items():
            if name.partition(".")[0] in ("affinity", "control_scale") and isinstance(value, list | tuple):
                raise BadRequest(options.no_per_frame(name, config.longest))


def files_of(request: Request) -> tuple[str, ...]:
    """Files named by a request's options: control clips, image prompts, scribbles and region masks."""
    named = [
        *prompting.files_of(request.extra),
        *steering.files_of(request.extra),
        *image_prompts.files_of(request.extra),
    ]
    return tuple(dict.fromkeys([*named, *scribbles_of(request).values(), *options.masks_of(request.extra)]))


# ------------------------------------------------------------------------------------- SparseCtrl


def scribbles_of(request: Request) -> dict[int, str]:
    """Scribble files by frame of the whole clip; a single file applies to frame 0."""
    setting = request.extra.get("scribble", {})
    try:
        by_frame = {0: setting} if isinstance(setting, str) else setting
        return {int(frame): str(file) for frame, file in by_frame.items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest(
            f"scribble is {quoted(setting)}; expected an image, or a mapping of frames to images"
        ) from None


def scribble_input(request: Request, start: int) -> SparseInput | None:
    """The request's scribbles from frame ``start`` on, in pixels 0 to 1, for every clip of the batch."""
    b, _, t, h, w = request.shape.bcthw
    scribbles = {frame - start: file for frame, file in scribbles_of(request).items() if start <= frame < start + t}
    if not scribbles:
        return None
    frames, mask = torch.zeros(1, 3, t, h, w), torch.zeros(1, 1, t, h, w)
    for frame, file in scribbles.items():
        image, _ = read.fit(read.read_image(file), h, w, request.fit)
        frames[:, :, frame] = (image[:, :, 0] + 1) / 2
        mask[:, :, frame] = 1
    return SparseInput(frames.expand(b, -1, -1, -1, -1), mask.expand(b, -1, -1, -1, -1), control_scale(request))


def frame_input(request: Request, canvas: Canvas, z_BCTHW: Tensor) -> SparseInput:
    """Latents ``z`` at fully known frames of the canvas, zeros elsewhere."""
    whole_BT = (canvas.mask.flatten(3).amin(-1)[:, 0] > 0).to(z_BCTHW)
    mask = whole_BT[:, None, :, None, None].expand(-1, -1, -1, *z_BCTHW.shape[-2:])
    return SparseInput(z_BCTHW * mask, mask, control_scale(request))


def control_scale(request: Request) -> Tensor:
    """Scale of SparseCtrl's residuals, [1] or [T]."""
    scale = steering.named_option(request.extra, "control_scale", steering.SPARSE, only=True)
    return steering.scale_of(1.0 if scale is None else scale, request.shape.frames, "control_scale")
