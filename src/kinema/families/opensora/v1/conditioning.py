"""What the networks of Open-Sora 1.0 to 1.3 are conditioned on, and how they are guided.

Letters: B clips, M text tokens, F text features, C latent channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinema import processor
from kinema.canvas import Canvas
from kinema.diffusion.guidance import Guidance, Scale, classifier_free, oscillating
from kinema.diffusion.overwrite import KnownRegion
from kinema.events import OnEvent
from kinema.families.opensora import process as branches
from kinema.families.opensora.first_line import process
from kinema.families.opensora.first_line.process import Network
from kinema.families.opensora.stdit.config import IMAGE_FPS
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.layers import Attention, FinalLayer
from kinema.families.opensora.stdit.network import STDiT
from kinema.families.opensora.v1 import options, regions
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.v1.model import transformer_of
from kinema.families.opensora.v1.text import Text
from kinema.schema import Request
from kinema.system import Conditions, OpenedModel


@dataclass(frozen=True)
class Quirks:
    """How a network runs: as published, or in the corrected form (`STDiTConfig`)."""

    norm_twice: bool
    rotate_first: bool

    def apply(self, transformer: STDiT) -> None:
        """Set them in the layers. Every call of a run sets the same, so that branches in two threads agree."""
        for layer in transformer.modules():
            if isinstance(layer, Attention):
                layer.rotate_first = self.rotate_first
            elif isinstance(layer, FinalLayer):
                layer.norm_twice = self.norm_twice


@dataclass(frozen=True, eq=False)
class Condition:
    """One branch of guidance. ``mask_BM`` is true at tokens; ``given`` is for 1.3 alone."""

    text_BMF: Tensor
    mask_BM: Tensor
    about: About
    quirks: Quirks
    variance: bool
    """Whether the sampler takes the learned variance."""
    given: Given | None = None

    def of(self, frames: Sequence[int] | None) -> Condition:
        """The part of it that belongs to these latent frames."""
        if frames is None or self.given is None:
            return self
        at = list(frames)
        return replace(self, given=Given(self.given.latents_BCTHW[:, :, at], self.given.frames_BT[:, at]))

    def network(self, transformer: STDiT) -> Network:
        """The transformer with this condition, on the device and in the precision of its weights."""

        def run(z_BCTHW: Tensor, time_B: Tensor, generated_BT: Tensor | None) -> Tensor:
            self.quirks.apply(transformer)
            time = processor.to_device(time_B, z_BCTHW.device).float().expand(len(z_BCTHW))
            generated = None if generated_BT is None else generated_BT.to(z_BCTHW.device).expand(len(z_BCTHW), -1)
            given, about = {"generated_BT": generated, "given": self.given}, self.about
            return transformer(z_BCTHW, time, self.text_BMF, self.mask_BM, about=about, **given).to(z_BCTHW.dtype)

        return run


def join(conditions: Sequence[Condition]) -> Condition | None:
    """The conditions of several clips as one batch; None if some clips have given frames and others have none."""
    first, given = conditions[0], [each.given for each in conditions]
    some = [each for each in given if each is not None]
    if some and len(some) < len(given):
        return None
    return replace(
        first,
        text_BMF=torch.cat([each.text_BMF for each in conditions]),
        mask_BM=torch.cat([each.mask_BM for each in conditions]),
        about=first.about._replace(fps_B=torch.cat([each.about.fps_B for each in conditions])),
        given=Given(*(torch.cat(parts) for parts in zip(*some, strict=True))) if some else None,
    )


def conditions(
    system: OpenedModel, words: Mapping[str, Text | None], request: Request, canvas: Canvas, on_event: OnEvent
) -> Conditions:
    """``positive``, ``negative`` and ``blank``: the negative prompt, for which given latents are zero (1.3)."""
    config: Config = system.config
    native = canvas.block.way == "native" and config.stdit.holds_frames
    shown = regions.shown(system, request, canvas, on_event) if native and _as_input(config, request) else None
    about, quirks, variance = (
        _about(config, request, system.device),
        _quirks(config, request),
        request.sampler == "iddpm",
    )
    text, negative = words["positive"], words["negative"]
    assert text is not None
    if negative is None:  # the states of no prompt, of which as many rows count as the prompt has tokens
        null_BMF = transformer_of(system.model).y_embedder.null(1, text[0].shape[1])
        negative = (null_BMF, text[1])
    clips, given = request.clips, None if shown is None else Given(shown[0], shown[1].to(system.device))
    found = {}
    for name, (states, mask) in (("positive", text), ("negative", negative)):
        text_BMF = states.expand(clips, -1, -1).to(system.device, system.dtype)
        found[name] = Condition(text_BMF, mask.expand(clips, -1).to(system.device), about, quirks, variance, given)
    if given is None:
        held = regions.of_canvas(system, request, canvas, on_event) if native else None
        return Conditions({**found, "blank": found["negative"]}, regions=held)
    blank = Given(torch.zeros_like(given.latents_BCTHW), given.frames_BT)
    mask_B1Thw = given.frames_BT[:, None, :, None, None].expand_as(given.latents_BCTHW[:, :1]).float()
    return Conditions(
        {**found, "blank": replace(found["negative"], given=blank)},
        given=(given.latents_BCTHW, mask_B1Thw),
        regions=_noised(system, request, given),
    )


def _as_input(config: Config, request: Request) -> bool:
    """Whether given frames are an input of the network: in 1.3, unless a mask strategy places frames."""
    return config.stdit.takes_given and "mask_strategy" not in request.extra


def _noised(system: OpenedModel, request: Request, given: Given) -> tuple[KnownRegion, ...]:
    """1.3's use_sdedit: given frames stand in the state, noised for every step."""
    if not request.extra.get("sdedit", True) or request.steps == 1:
        return ()
    return (process.sdedit_region(given.latents_BCTHW, given.frames_BT, system.levels(request)),)


def _about(config: Config, request: Request, device: torch.device) -> About:
    own = request.fps if config.told_fps is None else config.told_fps
    fps = IMAGE_FPS if request.frames == 1 else request.extra.get("told_fps", own)
    height, width = config.published(request.shape.height, request.shape.width)
    return About(torch.full((request.clips,), float(fps), device=device), height, width)


def _quirks(config: Config, request: Request) -> Quirks:
    stdit, extra = config.stdit, request.extra
    return Quirks(extra.get("norm_twice", stdit.norm_twice), extra.get("rotate_first", stdit.rotate_first))


# ---------------------------------------------------------------------------------------- guidance


def guidance(config: Config, request: Request) -> Guidance | None:
    """1.0, 1.1: of some channels; 1.2: None, the package's own classifier-free guidance; 1.3: two or three terms."""
    if config.version == "1.2":
        return None
    frames, extra = config.grid.latent(request.shape).frames, request.extra
    scale: float | Tensor = float(config.guidance if request.guidance is None else request.guidance)
    if request.guidance_end is not None and request.guidance_end != scale:
        scale = torch.linspace(scale, request.guidance_end, frames)
    if config.version != "1.3":
        found = process.guided_channels(scale, options.guided_channels(config, request))
        return replace(found, rescale=request.guidance_rescale, interval=request.guidance_interval)
    if not options.native_given(config, request) and branches.is_unguided(scale, request, config.longest):
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)
    text: Scale = oscillating(scale) if extra.get("oscillate", True) else scale
    on = {"oscillate": extra.get("oscillate_image", True), "dynamic": extra.get("dynamic_image", True)}
    steps, image = request.steps or config.steps, float(extra.get("image_guidance", config.image_guidance))
    of_image = process.image_scale_v1_3(image, frames, steps, **on) if steps > 1 else image
    fixed = extra.get("flaw_fix", True) and not options.native_given(config, request) and not request.guidance_rescale
    found = process.guidance_v1_3(text, of_image, flaw_fix=fixed)
    if request.guidance_rescale:
        found = replace(found, rescale=request.guidance_rescale, rescaled="x0")
    return replace(found, interval=request.guidance_interval)
