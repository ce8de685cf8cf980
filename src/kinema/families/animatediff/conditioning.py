"""What the network is told: the prompt, which may change over the frames, SDXL's sizes, and how much motion.

Letters: B clips (1 where all are told alike), T frames, K rows (1, or one a frame), L context tokens, C width,
V SDXL's added vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kinema import registry
from kinema.cancel import checkpoint
from kinema.canvas import Canvas
from kinema.conditioning import pocket
from kinema.conditioning.clip_text import ClipTokenizer, Tokenizer, WordTokenizer, encode, find_vocabulary
from kinema.events import OnEvent
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.control import pia, pictures, steering
from kinema.families.animatediff.control.ip_adapter import Picture
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.motion import amounts
from kinema.families.animatediff.motion.amounts import AMOUNTS
from kinema.families.animatediff.motion.module import AS_TRAINED, Moving
from kinema.media import read
from kinema.nn.embeddings import sinusoidal
from kinema.schema import BadRequest, Request
from kinema.spans import Spans
from kinema.values import quoted

OPTIONS = ("clip_skip", *AMOUNTS, "scribble", "affinity", "decode_tile")
NAMED = ("control", "control_scale", "control_span", "ip_image", "ip_scale")
"""What a request's ``extra`` may hold; the second also with the name of what they are of (``control.depth``)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One branch of guidance. ``motion`` is off for a single frame, which the image model makes by itself."""

    context_BKLC: Tensor
    added_BV: Tensor | None = None
    motion: bool = True
    moving: Moving = AS_TRAINED
    shown: Shown | None = None
    steerings: tuple[Steering, ...] = ()
    pictures: tuple[Picture, ...] = ()
    first_BCTHW: Tensor | None = None

    def of(self, frames: Sequence[int] | None) -> Condition:
        """The part of it that belongs to these frames."""
        if frames is None:
            return self

        context = self.context_BKLC
        shown = None if self.shown is None else self.shown.of(frames)
        return replace(
            self,
            context_BKLC=context[:, list(frames)] if context.shape[1] > 1 else context,
            moving=self.moving.of(frames),
            shown=shown,
            steerings=tuple(each.of(frames) for each in self.steerings),
            pictures=tuple(each.of(frames) for each in self.pictures),
            first_BCTHW=None if self.first_BCTHW is None else self.first_BCTHW[:, :, list(frames)],
        )


@dataclass(frozen=True, eq=False)
class Words:
    """The prompts as the text encoders see them: contexts 1×L×C of each text, and pooled ones 1×P."""

    spans: Spans
    contexts: Mapping[str, Tensor]
    pooled: Tensor | None
    unwanted: Tensor
    pooled_unwanted: Tensor | None


def joined(conditions: Sequence[Condition]) -> Condition | None:
    """The conditions of single clips as that of a batch; None where prompts have other rows, or not all are shown much.

    What a request tells of all clips (motion, controls, pictures) is in each of them, and taken from the first.
    """
    first = conditions[0]
    if len({(c.context_BKLC.shape, c.shown is None, c.first_BCTHW is None) for c in conditions}) > 1:
        return None

    def side_by_side(x: Sequence[Tensor | None]) -> Tensor | None:
        there = [each for each in x if each is not None]
        return torch.cat(there) if there else None

    shown = [c.shown for c in conditions if c.shown is not None]
    given, mask = ([getattr(each, name) for each in shown] for name in ("given_BCTHW", "mask_B1THW"))
    return replace(
        first,
        context_BKLC=torch.cat([c.context_BKLC for c in conditions]),
        added_BV=side_by_side([c.added_BV for c in conditions]),
        shown=Shown(torch.cat(given), torch.cat(mask), shown[0].scale_T) if shown else None,
        first_BCTHW=side_by_side([c.first_BCTHW for c in conditions]),
    )


@dataclass(frozen=True, eq=False)
class Shown:
    """What SparseCtrl is shown: given frames (B×C×T×H×W) and where they are (mask B×1×T×H×W)."""

    given_BCTHW: Tensor
    mask_B1THW: Tensor
    scale_T: Tensor

    def of(self, frames: Sequence[int]) -> Shown:
        at = list(frames)
        scale = self.scale_T[at] if len(self.scale_T) > 1 else self.scale_T
        return Shown(self.given_BCTHW[:, :, at], self.mask_B1THW[:, :, at], scale)


# -------------------------------------------------------------------------------------------- words


@lru_cache(maxsize=4)
def _clip_tokenizer(folder: Path) -> ClipTokenizer:
    return ClipTokenizer(folder)


def tokenizer_of(config: Config, weights: Path | None, *, offline: bool = False) -> Tokenizer:
    """The model's own words, or CLIP's vocabulary found beside the weights or on the hub."""
    return WordTokenizer(config.words) if config.words else _clip_tokenizer(find_vocabulary(weights, offline=offline))


def encode_text(
    model: AnimateDiff, config: Config, tokenizer: Tokenizer, text: str, clip_skip: int = 1
) -> tuple[Tensor, Tensor | None]:
    """A prompt of any length: context 1×L×C, and for SDXL the pooled embedding 1×P."""
    checkpoint()
    for size in config.text:
        if (most := max([tokenizer.end, *tokenizer.tokens(text)])) >= size.vocabulary:
            raise BadRequest(
                f"the text encoder knows {size.vocabulary:,} tokens and its vocabulary has token {most:,}: they are of "
                "two models"
            )
    pads = (None, 0)  # OpenCLIP's tokenizer fills rows with "!", which is 0
    encoders = list(zip(model.text_encoders, config.text, pads, strict=False))
    return encode(encoders, tokenizer, text, skip=clip_skip - 1, penultimate=len(encoders) > 1)


def most_skipped(config: Config) -> int:
    """The largest ``clip_skip`` that leaves every text encoder a layer; of SDXL's one is left out always."""
    return min(size.layers for size in config.text) - (len(config.text) > 1)


def say_unknown(tokenizer: Tokenizer, name: str, texts: Sequence[str], on_event: OnEvent) -> None:
    """Words that a pocket model was not taught are said; byte pairs know every word."""
    if isinstance(tokenizer, WordTokenizer):
        pocket.say_unknown(tokenizer.pocket, name, texts, on_event)


def over_frames(spans: Spans, contexts: Mapping[str, Tensor], frames: range) -> Tensor:
    """The context of each of these frames of the whole clip, T×L×C, out of those of the prompts (1×L×C each).

    Between two prompts they go on a straight line. A single stop is one context for all, 1×L×C.
    """
    if len(spans.stops) == 1:
        return contexts[spans.texts[0]]
    mixed = [spans.mix(frame) for frame in frames]
    return torch.cat([torch.lerp(contexts[before], contexts[after], share) for before, after, share in mixed])


def level_rows(contexts: Sequence[Tensor], empty: Tensor) -> list[Tensor]:
    """Contexts of different numbers of rows made equally long, with rows of the empty prompt."""
    longest = max(context.shape[1] for context in contexts)
    return [
        torch.cat([context, *[empty] * ((longest - context.shape[1]) // empty.shape[1])], dim=1) for context in contexts
    ]


def sizes(config: Config, height: int, width: int) -> Tensor:
    """SDXL's original size, crop and target size as sinusoids, 1×6V: a whole picture of this size."""
    told = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    return sinusoidal(told, config.size_embedding).flatten()[None]


# --------------------------------------------------------------------------------------- options


def check_extra(config: Config, request: Request) -> None:
    """Refuse, by name, options that this family has not and values out of range."""
    extra = request.extra
    for name in extra:
        if name not in OPTIONS and name.partition(".")[0] not in NAMED:
            raise BadRequest(registry.unknown("option of animatediff", name, [*OPTIONS, *NAMED]))
    skip, most = extra.get("clip_skip", 1), most_skipped(config)
    if isinstance(skip, bool) or not isinstance(skip, int | float) or skip not in range(1, most + 1):
        raise BadRequest(f"clip_skip is {quoted(skip)}; expected a whole number from 1 (nothing skipped) to {most}")
    tile = extra.get("decode_tile", 64)
    if isinstance(tile, bool) or not isinstance(tile, int) or not 8 <= tile <= 4096:
        raise BadRequest(f"decode_tile is {quoted(tile)}; expected a whole number of latent cells, 8 to 4096")
    steering.check(config, request)
    pictures.check(config, request)
    pia.affinity_of(config, request)
    if "scribble" in extra and config.sparse != "scribble":
        raise BadRequest(
            "scribble is for SparseCtrl's drawings, and this model has none: add sparsectrl=FILE of scribble"
        )
    steering.check_frames("scribble", scribbles_of(request), request)
    for file in scribbles_of(request).values():
        if not Path(file).is_file():
            raise BadRequest(f"there is no picture {file} for SparseCtrl's drawings")
    amounts.check(request, config.longest)
    if amounts.in_blocks(request, config.longest):
        for name, told in extra.items():
            if name.partition(".")[0] in ("affinity", "control_scale") and isinstance(told, list | tuple):
                raise BadRequest(amounts.at_once(name, config.longest))


def files_of(request: Request) -> tuple[str, ...]:
    """What the options of a request name on disk: controls, pictures, drawings, and masks of regions."""
    named = [*steering.files_of(request.extra), *pictures.files_of(request.extra)]
    return tuple(dict.fromkeys([*named, *scribbles_of(request).values(), *amounts.masks_of(request.extra)]))


# ------------------------------------------------------------------------------------- SparseCtrl


def scribbles_of(request: Request) -> dict[int, str]:
    """Frame of the whole clip to the file of its drawing: a mapping, or one file, which is of frame 0."""
    told = request.extra.get("scribble", {})
    try:
        return {int(frame): str(file) for frame, file in ({0: told} if isinstance(told, str) else told).items()}
    except (AttributeError, TypeError, ValueError):
        raise BadRequest(
            f"scribble is {quoted(told)}; expected a picture, or a mapping of frames to pictures"
        ) from None


def drawn(request: Request, start: int) -> Shown | None:
    """The request's drawings from frame ``start`` on, in pixels 0..1, for every clip of the batch."""
    b, _, t, h, w = request.shape.bcthw
    found = {frame - start: file for frame, file in scribbles_of(request).items() if start <= frame < start + t}
    if not found:
        return None
    given, mask = torch.zeros(1, 3, t, h, w), torch.zeros(1, 1, t, h, w)
    for frame, file in found.items():
        picture, _ = read.fit(read.read_image(file), h, w, request.fit)
        given[:, :, frame] = (picture[:, :, 0] + 1) / 2
        mask[:, :, frame] = 1
    return Shown(given.expand(b, -1, -1, -1, -1), mask.expand(b, -1, -1, -1, -1), control_scale(request))


def frames_shown(request: Request, canvas: Canvas, z_BCTHW: Tensor) -> Shown:
    """The whole frames a canvas gives, as latents ``z`` of the canvas, zeros elsewhere."""
    whole_BT = (canvas.mask.flatten(3).amin(-1)[:, 0] > 0).to(z_BCTHW)
    mask = whole_BT[:, None, :, None, None].expand(-1, -1, -1, *z_BCTHW.shape[-2:])
    return Shown(z_BCTHW * mask, mask, control_scale(request))


def control_scale(request: Request) -> Tensor:
    """How much of SparseCtrl is added, [1] or [T]."""
    told = steering.of_name(request.extra, "control_scale", steering.SPARSE, only=True)
    return steering.scale_of(1.0 if told is None else told, request.shape.frames, "control_scale")
