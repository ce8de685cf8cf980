"""Every network with random weights, with the same network of diffusers or transformers where they have it.

Weights and inputs are rounded to bfloat16 first, so what differs between the precisions is the arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.vs.animatediff import AnimateDiffPair
from benchmarks.vs.opensora import BLOCK, WHOLE, flux_of, run_flux, whole_inputs
from benchmarks.vs.pairs import AT, STEPS, Pair, Width, drawn, normals, uninitialised
from benchmarks.vs.sdxl import SDXLPair
from benchmarks.vs.svd import SVDPair
from kinema.conditioning import t5
from kinema.conditioning.clip_text import ClipText, ClipTextSize
from kinema.conditioning.clip_vision import ClipVision
from kinema.families.lumiere.config import SD15
from kinema.families.lumiere.config import presets as lumiere_presets
from kinema.families.lumiere.unet import SpaceTimeUNet
from kinema.families.opensora.mmdit import MMDiT, patched
from kinema.families.opensora.stdit.config import PRESETS as STDIT
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.network import build as build_stdit
from kinema.families.vdm.config import TEXT_SMALL
from kinema.families.vdm.config import presets as vdm_presets
from kinema.families.vdm.model import VideoUNet
from kinema.families.zoetrope.family import FAMILY as ZOETROPE
from kinema.nn.ldm_unet import channels_last
from kinema.system import WeightPolicy, with_model

Run = Callable[[nn.Module, Callable[..., Tensor]], Tensor]
"""A call of a network with random inputs: ``normal(*shape)`` draws them, in the precision of the call."""


@dataclass(frozen=True)
class Sides:
    """A network of the package, in float32, and the reference, if there is one."""

    ours: nn.Module
    run: Run
    theirs: nn.Module | None = None
    run_theirs: Run | None = None


def in_precision(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Normal tensors that bfloat16 can represent, in any precision."""
    normal = normals(seed)
    return lambda *shape: normal(*shape).bfloat16().to(dtype)


def rounded(network: nn.Module) -> nn.Module:
    """Round all weights to bfloat16, in place."""
    for p in network.parameters():
        p.data.copy_(p.data.bfloat16())
    return network


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with drawn weights."""
    with uninitialised():
        network = make()
    network = rounded(drawn(network))
    channels_last(network)
    return network


# ------------------------------------------------------------------------------- networks of diffusers


def pair_of(kind: type[Pair], width: Width, what: str = "step") -> tuple[Pair, Any, dict[str, nn.Module]]:
    pair = kind(width, 2, what)
    system, networks = pair.parts(torch.float32)
    for network in (system.model, *networks.values()):
        rounded(network)
    return pair, system, networks


def svd(width: Width, parts: tuple[Pair, Any, dict[str, nn.Module]] | None = None) -> Sides:
    """``parts``: a pair that was built before, with its sides."""
    pair, system, networks = parts or pair_of(SVDPair, width)
    c, frames = pair.config, pair.config.frames
    shapes = ((1, 2 * c.latent_channels, frames, pair.cells, pair.cells), (1, 1, c.context))
    scalars = torch.tensor([[6.0, 127.0, 0.02]])

    def ours(unet: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, context = (normal(*shape) for shape in shapes)
        return unet(z, torch.full((len(z),), 0.5), context, scalars[:, None].expand(len(z), frames, 3))

    def theirs(unet: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, context = (normal(*shape) for shape in shapes)
        return unet(z.transpose(1, 2), torch.tensor([0.5]), context, scalars.to(z.dtype)).sample.transpose(1, 2)

    return Sides(system.model.unet, ours, networks["unet"], theirs)


def animatediff(width: Width, kind: type[AnimateDiffPair] = AnimateDiffPair) -> Sides:
    pair, system, networks = pair_of(kind, width)
    c, frames = pair.config, pair.config.frames
    shapes = ((1, c.latent_channels, frames, pair.cells, pair.cells), (1, c.text[0].length, c.context))
    scheduler = pair._scheduler()  # type: ignore[attr-defined]
    scheduler.set_timesteps(STEPS)
    step = scheduler.timesteps[AT]

    def ours(unet: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, context = (normal(*shape) for shape in shapes)
        added, _ = pair.added(normal)  # type: ignore[attr-defined]
        return unet(z, step.expand(len(z)), context, added)

    def theirs(unet: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, context = (normal(*shape) for shape in shapes)
        _, kwargs = pair.added(normal)  # type: ignore[attr-defined]
        kwargs = {name: each.to(z.dtype) for name, each in kwargs.items()}
        return unet(z, step, context.repeat_interleave(frames, 0), added_cond_kwargs=kwargs or None).sample

    return Sides(system.model.unet, ours, networks["unet"], theirs)


def decoder(width: Width, kind: type[Pair]) -> Sides:
    pair, system, networks = pair_of(kind, width, "decode")
    shape = (1, 4, pair.config.frames, pair.cells, pair.cells)

    def ours(model: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, dtype = normal(*shape), next(model.parameters()).dtype
        # Latents are exact in bfloat16; scaled, both sides round them, the reference before its call.
        return with_model(replace(system, policy=WeightPolicy(dtype, dtype)), model).codec.decode(z)

    def theirs(vae: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        folded = (normal(*shape) / pair.config.latent_scale).transpose(1, 2).flatten(0, 1)
        return pair.decoded(vae, folded).unflatten(0, (1, -1)).transpose(1, 2)

    return Sides(system.model, ours, networks["vae"], theirs)


def mmdit(width: Width) -> Sides:
    config = WHOLE if width == "reduced" else BLOCK
    ours = built(lambda: MMDiT(config))

    def given(normal: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        like = whole_inputs(config, 0, torch.float32)
        z, text, pooled = (normal(*each.shape) for each in like[:3])
        return z, like[3], text, pooled

    return Sides(
        ours,
        lambda network, normal: patched(network(*given(normal)), 2),
        flux_of(ours),
        lambda flux, normal: run_flux(flux, *given(normal)),
    )


# ----------------------------------------------------------------------------- networks of transformers


def clip_text(width: Width) -> Sides:
    from transformers import CLIPTextConfig, CLIPTextModel

    size = ClipTextSize() if width == "full" else ClipTextSize(width=256, layers=12, heads=8, mlp=1024)
    ours = built(lambda: ClipText(size))
    config = CLIPTextConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, max_position_embeddings=size.length, hidden_act=size.activation,
    )  # fmt: skip
    theirs = CLIPTextModel(config).eval()
    names = {name.removeprefix("text_model."): weight for name, weight in ours.state_dict().items()}
    ids = [name for name in theirs.state_dict() if "position_ids" not in name]
    theirs.load_state_dict({name: names[name.removeprefix("text_model.")] for name in ids}, strict=False)
    tokens = lambda normal: normal(1, size.length).float().abs().mul(5000).long() % size.vocabulary  # noqa: E731
    return Sides(
        ours,
        lambda network, normal: network(tokens(normal), end=size.vocabulary - 1)[0],
        theirs,
        lambda network, normal: network(input_ids=tokens(normal)).last_hidden_state,
    )


def clip_image(width: Width) -> Sides:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    full = {"width": 1280, "layers": 32, "heads": 16, "mlp": 5120, "patch": 14, "side": 224, "projection": 1024}
    small = {"width": 640, "layers": 8, "heads": 8, "mlp": 2560, "patch": 32, "side": 224, "projection": 256}
    c = full if width == "full" else small
    ours = built(lambda: ClipVision(**c))
    config = CLIPVisionConfig(
        hidden_size=c["width"], intermediate_size=c["mlp"], projection_dim=c["projection"], hidden_act="gelu",
        num_hidden_layers=c["layers"], num_attention_heads=c["heads"], image_size=c["side"], patch_size=c["patch"],
    )  # fmt: skip
    theirs = CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    shape = (1, 3, 224, 224)
    return Sides(
        ours, lambda network, normal: network(normal(*shape)),
        theirs, lambda network, normal: network(pixel_values=normal(*shape)).image_embeds,
    )  # fmt: skip


def t5_encoder(width: Width) -> Sides:
    """The package runs transformers' network block by block; there is no other one."""
    from transformers import T5Config, T5EncoderModel

    small = {"d_model": 512, "d_ff": 1024, "num_heads": 8, "num_layers": 8, "vocab_size": 4000}
    config = {**t5.XXL, **({"num_layers": 3} if width == "full" else small)}
    ours = built(lambda: T5EncoderModel(T5Config(**config)))
    for name, p in ours.named_parameters():
        if name.endswith(".q.weight"):
            p.data.div_(8)  # T5 does not scale its logits
    count = config["vocab_size"]
    tokens = lambda normal: normal(1, 128).float().abs().mul(5000).long() % count  # noqa: E731
    return Sides(ours, lambda network, normal: network(input_ids=tokens(normal)).last_hidden_state)


# ----------------------------------------------------------------------------------- networks of our own


def stdit(width: Width, version: str) -> Sides:
    published = STDIT[version]
    small = {"width": 288, "heads": 4, "depth": 4, "text": 256, "tokens": 64}
    config = replace(published, **({"depth": 4} if width == "full" else small))
    network = built(lambda: build_stdit(config))
    about = About(torch.tensor([24.0]), 256, 256)

    def run(network: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z, text = normal(1, config.channels, 4, 32, 32), normal(1, config.tokens, config.text)
        mask = torch.arange(config.tokens)[None] < config.tokens // 2
        given = Given(torch.zeros_like(z), torch.zeros(1, 4).bool()) if config.takes_given else None
        return network(z, torch.tensor([700.0]), text, mask, about=about, given=given)[:, : config.channels]

    return Sides(network, run)


def lumiere(width: Width) -> Sides:
    config = SD15 if width == "full" else lumiere_presets()["pocket"]
    cells = 16

    def run(network: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z = normal(1, config.latent_channels, 16, cells, cells)
        context = normal(1, config.text.length, config.context)
        return network(z, torch.tensor([500.0]), context, torch.zeros(1, config.given_channels, *z.shape[2:]).to(z))

    return Sides(built(lambda: SpaceTimeUNet(config)), run)


def vdm(width: Width) -> Sides:
    config = TEXT_SMALL if width == "full" else vdm_presets()["pocket"]
    shape = (1, 3, 4 if width == "full" else config.frames, config.side, config.side)
    return Sides(built(lambda: VideoUNet(config)), lambda network, normal: network(normal(*shape), torch.tensor([0.5])))


def zoetrope(width: Width) -> Sides:  # noqa: ARG001 (it has one width)
    config = ZOETROPE.presets["base"]

    def run(network: nn.Module, normal: Callable[..., Tensor]) -> Tensor:
        z = normal(1, 3, config.frames, config.side, config.side)
        ids = torch.arange(1, config.text_length + 1)[None]
        return network(z, torch.tensor([0.5]), ids, torch.zeros_like(z), torch.zeros_like(z[:, :1])).x0

    return Sides(built(lambda: ZOETROPE.build(config)), run)


NETWORKS: Mapping[str, Callable[[Width], Sides]] = {
    "svd U-Net": svd,
    "animatediff U-Net": animatediff,
    "sdxl U-Net": lambda width: animatediff(width, SDXLPair),
    "svd temporal decoder": lambda width: decoder(width, SVDPair),
    "KL decoder": lambda width: decoder(width, AnimateDiffPair),
    "MMDiT": mmdit,
    "CLIP text": clip_text,
    "CLIP image": clip_image,
    "T5": t5_encoder,
    "STDiT 1.0": lambda width: stdit(width, "1.0"),
    "STDiT 1.1": lambda width: stdit(width, "1.1"),
    "STDiT 1.2": lambda width: stdit(width, "1.2"),
    "STDiT 1.3": lambda width: stdit(width, "1.3"),
    "lumiere U-Net": lumiere,
    "vdm": vdm,
    "zoetrope": zoetrope,
}
