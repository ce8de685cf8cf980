"""Conditioning of the U-Net: the prompt, given pixels with their mask (⟨J, C, M⟩, §4.2), and a style (§4.1).

Letters: B clips, T frames, L context tokens, C channels, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema import registry
from kinema.canvas import Canvas, LowResolution
from kinema.checkpoints.settings import naming_faults
from kinema.checkpoints.source import Source
from kinema.conditioning import pocket
from kinema.conditioning.clip_text import ClipTokenizer, Tokenizer, WordTokenizer, encode, find_vocabulary, rows
from kinema.events import OnEvent
from kinema.families.lumiere.config import Config
from kinema.families.lumiere.image_files import is_part, open_image, style_of
from kinema.families.lumiere.layout import lattice
from kinema.families.lumiere.model import Lumiere, of_new_layer
from kinema.families.lumiere.unet import SpaceTimeUNet
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, MissingFiles, Request
from kinema.system import Batch, Conditions, OpenedModel
from kinema.vae.given_pixels import encode_given
from kinema.values import quoted

OPTIONS = {
    "style": "image model whose spatial layers are used; fine-tuned from this model's image model",
    "style_alpha": "share of the style in these layers, 0 (none) to 1; default 1",
}


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditioning of one guidance branch; ``unet`` is the network with a style, None for the model's own."""

    context_BLC: Tensor
    given_BCThw: Tensor | None = None
    small_BCThw: Tensor | None = None
    unet: SpaceTimeUNet | None = None

    def of(self, frames: Sequence[int] | None) -> Condition:
        """Select these frames."""
        if frames is None:
            return self
        given, small = (x if x is None else x[:, :, list(frames)] for x in (self.given_BCThw, self.small_BCThw))
        return replace(self, given_BCThw=given, small_BCThw=small)


def join(conditions: Sequence[Condition]) -> Condition | None:
    """The conditions of several clips as one batch; None if some have given pixels and others have none."""
    given = [each.given_BCThw for each in conditions if each.given_BCThw is not None]
    contexts = [each.context_BLC for each in conditions]
    if (given and len(given) < len(conditions)) or len({context.shape[1] for context in contexts}) > 1:
        return None
    small = [each.small_BCThw for each in conditions if each.small_BCThw is not None]
    return replace(
        conditions[0],
        context_BLC=torch.cat(contexts),
        given_BCThw=torch.cat(given) if given else None,
        small_BCThw=torch.cat(small) if small else None,
    )


# -------------------------------------------------------------------------------------------- words


@lru_cache(maxsize=4)
def _clip_tokenizer(folder: Path) -> ClipTokenizer:
    return ClipTokenizer(folder)


def tokenizer_of(config: Config, weights: Path | None, *, offline: bool = False) -> Tokenizer:
    """The model's word tokenizer, or CLIP's with a vocabulary from next to the image model or the hub."""
    return WordTokenizer(config.words) if config.words else _clip_tokenizer(find_vocabulary(weights, offline=offline))


def check_files(system: OpenedModel) -> None:
    """Raises BadRequest for a file of new layers alone, and MissingFiles for a CLIP vocabulary.

    The vocabulary is missing if it is not on this machine and cannot be downloaded.
    """
    weights = system.weights
    alone = weights.path is not None and all(of_new_layer(name) for name in weights.source.header)
    if alone and not any(each.slot == "image" for each in weights.added):
        raise BadRequest(
            f"{weights.path} has temporal layers only: add the image model that they were trained with "
            "(--add image=FILE)"
        )
    if system.config.words:
        return
    try:
        find_vocabulary(system.weights.place, offline=system.offline)
    except BadRequest as error:
        raise MissingFiles(str(error)) from None


def encode_prompt(system: OpenedModel, request: Request, on_event: OnEvent) -> Mapping[str, Tensor]:
    """The context 1×L×C of the prompt and of the negative prompt, of equal length."""
    config, model = cast(Config, system.config), cast(Lumiere, system.model)
    tokenizer = tokenizer_of(config, system.weights.place, offline=system.offline)
    texts = (request.prompt, request.negative_prompt)
    if isinstance(tokenizer, WordTokenizer):
        pocket.note_unknown_words(tokenizer.pocket, system.name, texts, on_event)
    encoder = [(model.text_encoder, config.text, None)]
    contexts = [encode(encoder, tokenizer, text)[0] for text in texts]
    longest, empty = max(context.shape[1] for context in contexts), encode(encoder, tokenizer, "")[0]
    # A prompt of several rows: the other is filled up with rows of the empty prompt.
    padded = [torch.cat([x, *[empty] * ((longest - x.shape[1]) // empty.shape[1])], dim=1) for x in contexts]
    return dict(zip(("positive", "negative"), padded, strict=True))


def captions(model: Lumiere, config: Config, batch: Batch) -> Tensor:
    """The first row of tokens of each caption, encoded, B×L×C."""
    tokenizer = tokenizer_of(config, batch.weights)
    ids = torch.cat([rows(tokenizer, text, config.text.length)[:1] for text in batch.captions])
    with torch.no_grad():
        return model.text_encoder(ids.to(batch.video.device), tokenizer.end)[0]


# -------------------------------------------------------------------------------------------- given


def given_pixels(config: Config, video_BCTHW: Tensor, mask_B1THW: Tensor) -> Tensor:
    """Content and mask of a pixel-space model at its latents' size, B×(C+M)×T×h×w, zeros where nothing is given.

    It gets every pixel, and as many channels of mask as a cell has pixels.
    """
    both = torch.cat([video_BCTHW * mask_B1THW, mask_B1THW], dim=1)
    return F.pixel_unshuffle(both.transpose(1, 2), config.patch).transpose(1, 2)


def conditions(system: OpenedModel, words: Mapping[str, Tensor], request: Request, canvas: Canvas) -> Conditions:
    """The guidance branches ``positive`` and ``negative``, both with what is given."""
    config: Config = system.config
    shown = None if canvas.empty or canvas.block.way != "native" else _given(system, canvas)
    small = None if canvas.small is None else _small(system, canvas.small, canvas.shape.frames)
    unet = styled(system, request)
    branches = {
        name: Condition(x.expand(request.clips, -1, -1).to(system.device, system.dtype), shown, small, unet)
        for name, x in words.items()
    }
    if shown is None or config.patch:
        return Conditions(branches)
    return Conditions(branches, given=(shown[:, :-1], shown[:, -1:]))


def _given(system: OpenedModel, canvas: Canvas) -> Tensor:
    """What the network is given: every pixel, or with a VAE the latents and mask of the cells given as a whole."""
    config: Config = system.config
    if config.patch:
        return given_pixels(config, canvas.video, canvas.mask).to(system.device, system.dtype)
    content, mask = encode_given(system.encode, lattice(config).grid, canvas.video, canvas.mask)
    return torch.cat([content * mask.to(content), mask.to(content)], dim=1).to(system.device, system.dtype)


# -------------------------------------------------------------------------------- super-resolution


def enlarged(small_BCTHW: Tensor, factor: int) -> Tensor:
    """Each frame ``factor`` times as large, bilinearly."""
    frames = small_BCTHW.transpose(1, 2).flatten(0, 1)
    large = F.interpolate(frames, scale_factor=factor, mode="bilinear", align_corners=False)
    return large.unflatten(0, (len(small_BCTHW), -1)).transpose(1, 2)


def _small(system: OpenedModel, small: LowResolution, frames: int) -> Tensor:
    """The small clip, enlarged and encoded; frames in between are those before them."""
    last = small.video.shape[2] - 1
    video = small.video[:, :, [min(frame // small.every, last) for frame in range(frames)]]
    return system.encode(enlarged(video, small.factor)).to(system.device, system.dtype)


def check_size(config: Config, request: Request) -> None:
    """Raises BadRequest for a super-resolution model on its own, and a weight that has no effect on it."""
    if config.enlarges == 1:
        return
    if request.task != "upscale" and request.super_resolution is None:
        raise BadRequest("this model enlarges clips: use it with kinema upscale, or name it as --super-resolution")
    if request.super_resolution_weight != Request().super_resolution_weight:
        raise BadRequest(
            "--super-resolution-weight applies only to guidance by the small clip; this model gets it as input"
        )


# -------------------------------------------------------------------------------------------- style


def check_style(config: Config, request: Request) -> None:
    """Raises BadRequest for options of a style that are incomplete or out of range, and for a file of another kind."""
    style, alpha = request.extra.get("style"), request.extra.get("style_alpha", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise BadRequest(f"style_alpha is {quoted(alpha)}; expected a number from 0 (none of the style) to 1")
    if style is None:
        if "style_alpha" in request.extra:
            raise BadRequest("style_alpha needs a style: give --extra style=FILE")
        return
    if not isinstance(style, str) or not style.strip() or not _style_path(style).exists():
        raise BadRequest(f"there is no file or folder {quoted(style)} to take a style from; expected an image model")
    source = Source(_style_path(style))
    with naming_faults(str(source.path)):
        if not is_part(config, source):
            open_image(config, source)


def _style_path(style: str) -> Path:
    return Path(registry.add_on_file(style))


def styled(system: OpenedModel, request: Request) -> SpaceTimeUNet | None:
    """The U-Net whose image layers are ``alpha W_style + (1 - alpha) W``; None without a style.

    It shares all other weights with the model's own, which stays as it is.
    """
    if "style" not in request.extra:
        return None
    config, own = cast(Config, system.config), cast(Lumiere, system.model).unet
    source = Source(_style_path(str(request.extra["style"])))
    with naming_faults(str(source.path)):
        style, whole = style_of(config, source), not is_part(config, source)
    alpha, weights = float(request.extra.get("style_alpha", 1.0)), dict(own.state_dict(keep_vars=True))
    for name, weight in own.image_parameters():
        if name not in style and not whole:
            continue
        if name not in style or style[name].shape != weight.shape:
            raise BadRequest(f"{source.path} does not fit this model: {name} is missing or has another shape")
        if weight.is_meta:
            raise BadRequest("a style needs all weights in memory: use --offload none")
        weights[name] = torch.lerp(weight.float(), style[name].to(weight.device).float(), alpha).to(weight.dtype)
    with on_meta():
        unet = SpaceTimeUNet(config).eval()
    unet.load_state_dict(weights, assign=True)
    return unet.requires_grad_(False)
