"""What Open-Sora 2.0 is conditioned on: T5 states, CLIP's pooled embedding, and given frames with their mask.

Letters: B clips, M text tokens, F text features, C latent channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from kinema.canvas import Canvas
from kinema.conditioning import t5
from kinema.conditioning.pocket import PocketTokenizer, note_unknown_words
from kinema.diffusion.guidance import Guidance, classifier_free
from kinema.events import OnEvent, ignore
from kinema.families.opensora import process
from kinema.families.opensora.config import Config
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.model import OpenSora, read_words
from kinema.families.opensora.options import OF_IMAGES, SWITCHES
from kinema.families.opensora.prompts import completed
from kinema.schema import BadRequest, MissingFiles, Request
from kinema.system import Batch, Conditions, OpenedModel
from kinema.vae.given_pixels import encode_given

Text = tuple[Tensor, Tensor]
"""``(states B×M×F, pooled B×F)``."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One branch of guidance.

    ``given_BCThw`` has C + 1 channels, the mask and the given latents; it is None if no frame is given.
    """

    text_BMF: Tensor
    pooled_BF: Tensor
    given_BCThw: Tensor | None = None

    def of(self, frames: Sequence[int] | None) -> Condition:
        """The part of it that belongs to these latent frames."""
        if frames is None or self.given_BCThw is None:
            return self
        return replace(self, given_BCThw=self.given_BCThw[:, :, list(frames)])


def join(conditions: Sequence[Condition]) -> Condition | None:
    """The conditions of several clips as one batch; None if some clips have given frames and others have none."""
    given = [each.given_BCThw for each in conditions]
    some = [each for each in given if each is not None]
    if some and len(some) < len(given):
        return None
    return Condition(
        torch.cat([each.text_BMF for each in conditions]),
        torch.cat([each.pooled_BF for each in conditions]),
        torch.cat(some) if some else None,
    )


def encode_prompt(system: OpenedModel, request: Request, on_event: OnEvent) -> Mapping[str, Text]:
    """The prompt, completed with frame rate and motion score if the model takes them, and the negative one as it is, in
    one pass.
    """
    config: Config = system.config
    prompt = request.prompt
    if config.motion_score is not None:
        score = request.extra.get("motion_score", config.motion_score)
        prompt = completed(prompt, request.fps or config.fps, score)
    prompts = [prompt, request.negative_prompt.strip()]
    states_BMF, pooled_BF = _encoded(system, prompts, on_event)
    return {name: (states_BMF[i : i + 1], pooled_BF[i : i + 1]) for i, name in enumerate(("positive", "negative"))}


def _encoded(system: OpenedModel, prompts: Sequence[str], on_event: OnEvent) -> Text:
    config: Config = system.config
    if config.words:
        note_unknown_words(PocketTokenizer(config.words), system.name, prompts, on_event)
        return read_words(cast(OpenSora, system.model), config, prompts)
    return t5.encode(prompts, config.text_length, _widths(config), place(system), on_event)


def place(system: OpenedModel) -> t5.Place:
    """Where the model's text encoders are searched: files that the user added, next to its weights, the hub's cache."""
    return t5.Place(system.weights.path, system.device, system.weights.outside)


def check_encoders(system: OpenedModel) -> None:
    """Raises MissingFiles for text encoders and tokenizers that are not on this machine, naming each."""
    config: Config = system.config
    faults = []
    for encoder in () if config.words else (t5.T5, t5.CLIP):
        try:
            t5.find(encoder, place(system))
        except BadRequest as error:
            faults.append(str(error))
    if faults:
        raise MissingFiles(*faults)


def training_text(model: OpenSora, config: Config, batch: Batch) -> Text:
    """States and pooled embeddings of a batch's captions, as they are."""
    if config.words:
        return read_words(model, config, batch.captions)
    device = model.transformer.img_in.weight.device
    return t5.encode(
        batch.captions,
        config.text_length,
        _widths(config),
        t5.Place(batch.weights, device, batch.encoders),
        ignore,
    )


def _widths(config: Config) -> tuple[int, int]:
    return config.transformer.text, config.transformer.vector


def given(system: OpenedModel, canvas: Canvas) -> Tensor | None:
    """Mask and latents of what a canvas gives, B×(C + 1)×T×h×w, zeros elsewhere; None for a canvas that gives nothing.

    A cell counts as given where all of its pixels are; a lone last frame is encoded alone and stands for its cell.
    """
    if canvas.empty:
        return None
    visible = canvas.video * canvas.mask
    content, mask = encode_given(system.encode, latent_grid(system.config), visible, canvas.mask)
    return torch.cat([mask.to(content), content * mask.to(content)], dim=1)


def conditions(system: OpenedModel, words: Mapping[str, Text], request: Request, canvas: Canvas) -> Conditions:
    """``positive`` and ``negative`` with what is given, and ``blank``: the negative prompt with nothing given.

    Where nothing is given, ``blank`` is the negative branch itself.
    """
    native = system.config.transformer.conditioned and canvas.block.way == "native"
    shown = given(system, canvas) if native else None
    found: dict[str, Condition] = {}
    for name, (states, pooled) in words.items():
        text_BMF = states.expand(request.clips, -1, -1).to(system.device, system.dtype)
        pooled_BF = pooled.expand(request.clips, -1).to(system.device, system.dtype)
        found[name] = Condition(text_BMF, pooled_BF, shown)
    if shown is None:
        return Conditions({**found, "blank": found["negative"]})
    blank = replace(found["negative"], given_BCThw=None)
    return Conditions({**found, "blank": blank}, given=(shown[:, 1:], shown[:, :1]))


def guidance(config: Config, request: Request) -> Guidance:
    """Three branches, with oscillating scales and image guidance that grows over the frames, unless turned off."""
    on = {name: bool(request.extra.get(name, config.oscillates)) for name in SWITCHES}
    steps, frames = request.steps or config.steps, latent_grid(config).latent(request.shape).frames
    image = float(request.extra.get("image_guidance", config.image_guidance))
    scale: float | Tensor = float(config.guidance if request.guidance is None else request.guidance)
    if request.guidance_end is not None and request.guidance_end != scale:
        scale = torch.linspace(scale, request.guidance_end, frames)
    if process.is_unguided(scale, request, config.frames):
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)
    return process.guidance(
        scale,
        process.image_scale(
            image,
            frames,
            steps,
            oscillate=on["oscillate_image"],
            dynamic=on["dynamic_image"] and request.task in OF_IMAGES,
        ),
        request.guidance_rescale,
        request.guidance_interval,
        oscillate=on["oscillate"],
    )
