"""Files of motion modules: what a file is, told by its keys and shapes, and its tensors under our names and back.

Three layouts: the authors' (``…motion_modules.0.temporal_transformer…attention_blocks.0.to_q.weight``), that of
diffusers' ``MotionAdapter``, which is ours, and HotShot-XL's. The authors keep the positions twice a block, diffusers
once, and AnimateLCM not at all: they are sinusoids, which can be made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor

from kinema.bounds import few, quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.keymap import KeyMap
from kinema.checkpoints.lora_formats import is_lora
from kinema.families.animatediff.config import PRESETS, Config, Motion
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.motion.module import sinusoids
from kinema.schema import BadRequest

MotionLayout = Literal["official", "diffusers", "hotshot"]

HEADS = 8
"""Of every published module; weights do not tell."""
FIRST = ("conv_in.weight", "conv_in.bias")
"""PIA's first layer, which is in its files beside the motion module."""
LATENT = 4
UNTOLD = 32
"""Positions of a file without them, which is AnimateLCM's: its diffusers folder holds as many."""

_BLOCKS = ("{}_blocks.{}", "mid_block")
_INNER = (
    ("norm.{}", "norm.{}"),
    ("proj_in.{}", "proj_in.{}"),
    ("proj_out.{}", "proj_out.{}"),
    ("transformer_blocks.{}.attention_blocks.0.to_{}.weight", "transformer_blocks.{}.attn1.to_{}.weight"),
    ("transformer_blocks.{}.attention_blocks.1.to_{}.weight", "transformer_blocks.{}.attn2.to_{}.weight"),
    ("transformer_blocks.{}.attention_blocks.0.to_out.0.{}", "transformer_blocks.{}.attn1.to_out.0.{}"),
    ("transformer_blocks.{}.attention_blocks.1.to_out.0.{}", "transformer_blocks.{}.attn2.to_out.0.{}"),
    ("transformer_blocks.{}.norms.0.{}", "transformer_blocks.{}.norm1.{}"),
    ("transformer_blocks.{}.norms.1.{}", "transformer_blocks.{}.norm2.{}"),
    ("transformer_blocks.{}.ff_norm.{}", "transformer_blocks.{}.norm3.{}"),
    ("transformer_blocks.{}.ff.net.0.proj.{}", "transformer_blocks.{}.ff.net.0.proj.{}"),
    ("transformer_blocks.{}.ff.net.2.{}", "transformer_blocks.{}.ff.net.2.{}"),
)


def _keys(inside: str) -> KeyMap:
    return KeyMap(
        (f"{block}.{inside}.{theirs}", f"{block}.motion_modules.{{}}.{ours}")
        for block in _BLOCKS
        for theirs, ours in _INNER
    )


KEYS: dict[MotionLayout, KeyMap] = {
    "official": _keys("motion_modules.{}.temporal_transformer"),
    "hotshot": _keys("temporal_attentions.{}"),
    "diffusers": KeyMap(
        (f"{block}.motion_modules.{{}}.{ours}", f"{block}.motion_modules.{{}}.{ours}")
        for block in _BLOCKS
        for ours in dict.fromkeys(ours for _, ours in _INNER)
    ),
}
POSITIONS: dict[MotionLayout, str] = {
    "official": "attention_blocks.{}.pos_encoder.pe",
    "hotshot": "attention_blocks.{}.pos_encoder.positional_encoding",
    "diffusers": "pos_embed.pe",
}
_DISTILLED = re.compile(r"(?<!\d)([1248])[\s_-]?steps?(?![a-z])")
"""In the name of a file of AnimateDiff-Lightning, which was published for these."""
_IS_POSITION = re.compile(r"\.(pos_encoder\.(pe|positional_encoding)|pos_embed\.pe)$")


@dataclass(frozen=True)
class MotionFile:
    """What a file of a motion module holds."""

    layout: MotionLayout
    motion: Motion
    channels: tuple[int, ...]
    layers: int
    mid: bool
    positions: int | None
    """None where the file has none."""
    first: tuple[int, ...] | None = None
    """Shape of PIA's first layer."""
    steps: int | None = None
    """Those that Lightning was distilled to, where the file's name tells them."""

    def into(self, config: Config) -> Config:
        """The config of an image model with this module in it, sampled as the module is meant to be."""
        if self.channels != config.channels or self.layers != config.layers:
            is_xl = len(self.channels) == 3
            kind = "Stable Diffusion XL" if is_xl else "Stable Diffusion 1.5"
            raise BadRequest(
                f"this motion module is for {kind} ({'/'.join(map(str, self.channels))} channels), and the image model "
                f"has {'/'.join(map(str, config.channels))}"
            )
        if self.first and self.first[:2] != (config.channels[0], 2 * LATENT + 1):
            raise BadRequest(f"conv_in.weight is {self.first}; PIA's has 9 channels to the image model's first ones")
        preset = kind_of(config).motion_preset(self.motion)
        sampled = ("frames", "steps", "sampler", "spacing", "guidance", "betas")
        told: dict[str, Any] = {name: getattr(preset, name) for name in sampled}
        if self.steps:
            told["steps"] = self.steps
        if self.motion == "hotshot":
            told |= {"height": preset.height, "width": preset.width}
        positions = self.positions or UNTOLD
        heads = gcd(HEADS, *self.channels)
        frames = min(preset.frames, positions)
        told |= {"frames": frames, "motion_heads": heads, "positions": positions, "motion_mid": self.mid}
        return replace(config, motion=self.motion, stage="", **told)

    def notes(self, name: str) -> tuple[str, ...]:
        """What was decided of the file of this name where its weights do not tell."""
        if self.motion != "lightning":
            return ()
        if self.steps is None:
            usual = PRESETS["lightning"].steps
            return (
                f"{name} does not say for how many steps it was distilled: {usual} are made unless steps says others",
            )
        return (f"{name} was distilled for {self.steps} step{'s' * (self.steps > 1)}, as its name tells",)


# ------------------------------------------------------------------------------------ recognising


def recognise(header: Header, name: str = "") -> MotionFile | None:
    """What motion module a file holds, and in which layout; None for any other file.

    ``name``, the file's, tells AnimateDiff-Lightning and a diffusers folder of AnimateLCM from v2, whose shape
    they have.
    """
    if is_lora(header):  # MotionLoRA's tensors have the names of a motion module too
        return None
    whole = header.get(FIRST[0])
    if whole is not None:
        header = {key: entry for key, entry in header.items() if key not in FIRST}
    layout = _layout(header)
    if layout is None:
        return None
    inside = "temporal_attentions" if layout == "hotshot" else "motion_modules"
    first = re.compile(rf"down_blocks\.(\d{{1,3}})\.{inside}\.(\d{{1,3}})\.(?:temporal_transformer\.)?proj_in\.weight")
    found = [(m, shape) for key, (shape, _) in header.items() if (m := first.fullmatch(key))]
    if not found:
        raise BadRequest(f"this motion module lacks down_blocks.0.{inside}.0…proj_in.weight")
    widths = {int(m[1]): shape[0] for m, shape in found}
    positions = {shape[1] for key, (shape, _) in header.items() if _IS_POSITION.search(key) and len(shape) == 3}
    if len(positions) > 1:
        raise BadRequest(f"this motion module has positions of several lengths ({quoted(sorted(positions))})")
    mid = any(key.startswith("mid_block.") for key in header)
    told = MotionFile(
        layout=layout,
        motion="v3",
        channels=tuple(widths[level] for level in sorted(widths)),
        layers=1 + max(int(m[2]) for m, _ in found),
        mid=mid,
        positions=next(iter(positions), None),
        first=whole[0] if whole else None,
    )
    told = replace(told, motion=_motion(told, name.lower()))
    distilled = _DISTILLED.search(name.lower()) if told.motion == "lightning" else None
    return replace(told, steps=int(distilled[1])) if distilled else told


def _layout(header: Header) -> MotionLayout | None:
    """The layout of a file all of whose tensors belong to motion modules."""
    if not header:
        return None
    for layout, mark in (("hotshot", ".temporal_attentions."), ("official", ".temporal_transformer.")):
        if all(mark in key for key in header):
            return layout  # type: ignore[return-value]
    return "diffusers" if all(".motion_modules." in key for key in header) else None


def _motion(told: MotionFile, name: str) -> Motion:
    if told.first:
        return "pia"
    if told.layout == "hotshot":
        return "hotshot"
    if len(told.channels) == 3 and told.channels[0] >= 320:
        return "sdxl"
    if told.mid:
        if "lightning" in name:
            return "lightning"
        return "lcm" if told.positions is None or "lcm" in name else "v2"
    return "v1" if told.positions == 24 else "v3"


# ------------------------------------------------------------------------------------ converting


def convert(told: MotionFile, tensors: Mapping[str, Tensor], where: str = "this motion module") -> dict[str, Tensor]:
    """A file's tensors under the names of our U-Net. Raises `BadRequest` for a key that is not known."""
    weights = {key: t for key, t in tensors.items() if not _IS_POSITION.search(key) and key not in FIRST}
    made = KEYS[told.layout].forward(weights, where)
    given = _positions(tensors, where)
    for key, weight in list(made.items()):
        if key.endswith("transformer_blocks.0.norm1.weight"):
            module = key.removesuffix(".norm1.weight")
            table = given.pop(module, None)
            if table is None:
                if told.positions is not None:
                    raise BadRequest(f"{where} lacks the positions of {module}")
                table = sinusoids(UNTOLD, len(weight)).to(weight)
            made[f"{module}.pos_embed.pe"] = table
    if given:
        raise BadRequest(f"{where} has positions of blocks that are not there ({few(sorted(given))})")
    return made


def first_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of PIA's first layer what reads the mask and the first frame; the rest is the image model's own."""
    return {"conv_first.weight": tensors[FIRST[0]][:, LATENT:].contiguous()} if FIRST[0] in tensors else {}


def _positions(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our block to its positions, which must be the same in all its attention layers."""
    found: dict[str, Tensor] = {}
    for key, table in tensors.items():
        if not _IS_POSITION.search(key):
            continue
        block = re.sub(r"\.(attention_blocks\.\d+\.pos_encoder|pos_embed)\.\w+$", "", key)
        ours = block.replace(".temporal_transformer", "").replace(".temporal_attentions.", ".motion_modules.")
        if ours in found and not torch.equal(found[ours], table):
            raise BadRequest(f"{where} has two different tables of positions at {ours}; expected one")
        found[ours] = table
    return found


def export(layout: MotionLayout, tensors: Mapping[str, Tensor], *, positions: bool = True) -> dict[str, Tensor]:
    """Motion modules under our names as a file of this layout holds them; ``positions=False`` as AnimateLCM's."""
    weights = {key: t for key, t in tensors.items() if not _IS_POSITION.search(key) and key not in FIRST}
    made = KEYS[layout].backward(weights) | {key: tensors[key] for key in FIRST if key in tensors}
    for key, table in tensors.items():
        if not _IS_POSITION.search(key) or not positions:
            continue
        block = key.removesuffix(".pos_embed.pe")
        if layout == "diffusers":
            made[key] = table
            continue
        theirs = re.sub(r"\.motion_modules\.(\d+)\.", _renamed(layout), block + ".")
        for n in (0, 1):
            if f"{block}.attn{n + 1}.to_q.weight" in tensors:
                made[theirs + POSITIONS[layout].format(n)] = table
    return made


def _renamed(layout: MotionLayout) -> str:
    inside = r"motion_modules.\1.temporal_transformer" if layout == "official" else r"temporal_attentions.\1"
    return f".{inside}."
