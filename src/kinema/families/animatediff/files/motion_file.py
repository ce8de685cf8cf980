"""Recognise and convert files of motion modules.

Three layouts: the authors' (``…motion_modules.0.temporal_transformer…attention_blocks.0.to_q.weight``), that of
diffusers' ``MotionAdapter``, which Kinema uses, and HotShot-XL's. The authors store the positions twice per block,
diffusers once and AnimateLCM not at all, since they are sinusoids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor

from kinema.bounds import first_names
from kinema.checkpoints.files import Header
from kinema.checkpoints.keymap import KeyMap
from kinema.checkpoints.lora_formats import is_lora
from kinema.families.animatediff.config import CLIP_NOISE, PRESETS, Config, Motion
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.motion.module import sinusoids
from kinema.schema import BadRequest
from kinema.values import counted

MotionLayout = Literal["official", "diffusers", "hotshot"]

HEADS = 8
"""Attention heads of every published module; weights do not determine them."""
CONV_IN = ("conv_in.weight", "conv_in.bias")
"""PIA's first layer, stored with its motion module."""
LATENT_CHANNELS = 4
DEFAULT_POSITIONS = 32
"""Number of positions for a file without them (AnimateLCM); its diffusers folder has this number."""

_BLOCKS = ("{}_blocks.{}", "mid_block")
_LAYERS = (
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
        (f"{block}.{inside}.{foreign}", f"{block}.motion_modules.{{}}.{native}")
        for block in _BLOCKS
        for foreign, native in _LAYERS
    )


KEYS: dict[MotionLayout, KeyMap] = {
    "official": _keys("motion_modules.{}.temporal_transformer"),
    "hotshot": _keys("temporal_attentions.{}"),
    "diffusers": KeyMap(
        (f"{block}.motion_modules.{{}}.{native}", f"{block}.motion_modules.{{}}.{native}")
        for block in _BLOCKS
        for native in dict.fromkeys(native for _, native in _LAYERS)
    ),
}
POSITIONS: dict[MotionLayout, str] = {
    "official": "attention_blocks.{}.pos_encoder.pe",
    "hotshot": "attention_blocks.{}.pos_encoder.positional_encoding",
    "diffusers": "pos_embed.pe",
}
_DISTILLED = re.compile(r"(?<!\d)([1248])[\s_-]?steps?(?![a-z])")
"""Step count in the file name of AnimateDiff-Lightning."""
_IN_MODULE = re.compile(r"\.(motion_modules|temporal_attentions)\.")
_IS_POSITION = re.compile(r"\.(pos_encoder\.(pe|positional_encoding)|pos_embed\.pe)$")


@dataclass(frozen=True)
class MotionFile:
    """A recognised motion module file."""

    layout: MotionLayout
    motion: Motion
    channels: tuple[int, ...]
    layers: int
    mid: bool
    positions: int | None
    """None for a file without positions."""
    conv_in: tuple[int, ...] | None = None
    """Shape of PIA's first layer."""
    steps: int | None = None
    """Step count Lightning was distilled to, if the file name has it."""

    def into(self, config: Config) -> Config:
        """Add this module and its sampling settings to the config of an image model."""
        if self.channels != config.channels or self.layers != config.layers:
            is_xl = len(self.channels) == 3
            kind = "Stable Diffusion XL" if is_xl else "Stable Diffusion 1.5"
            raise BadRequest(
                f"this motion module is for {kind} ({'/'.join(map(str, self.channels))} channels); the image model "
                f"has {'/'.join(map(str, config.channels))}"
            )
        if self.conv_in and self.conv_in[:2] != (config.channels[0], 2 * LATENT_CHANNELS + 1):
            raise BadRequest(f"PIA's conv_in.weight has shape {self.conv_in}; expected {config.channels[0]}×9×3×3")
        preset = kind_of(config).motion_preset(self.motion)
        sampled = ("frames", "steps", "sampler", "spacing", "guidance", *CLIP_NOISE)
        settings: dict[str, Any] = {name: getattr(preset, name) for name in sampled}
        if config.zero_snr:  # only trailing spacing begins at pure noise
            settings["spacing"] = "trailing"
        if self.steps:
            settings["steps"] = self.steps
        if self.motion == "hotshot":
            settings |= {"height": preset.height, "width": preset.width}
        positions = self.positions or DEFAULT_POSITIONS
        heads = gcd(HEADS, *self.channels)
        frames = min(preset.frames, positions)
        settings |= {"frames": frames, "motion_heads": heads, "positions": positions, "motion_mid": self.mid}
        return replace(config, motion=self.motion, stage="", **settings)

    def notes(self, name: str) -> tuple[str, ...]:
        """Notes on settings inferred from the file name rather than the weights."""
        if self.motion != "lightning":
            return ()
        if self.steps is None:
            default = PRESETS["lightning"].steps
            return (
                f"the name {name} does not state the number of steps it was distilled for; steps defaults to {default}",
            )
        return (f"{name} was distilled for {self.steps} step{'s' * (self.steps > 1)} according to its name",)


# ------------------------------------------------------------------------------------ recognising


def recognise(header: Header, name: str = "") -> MotionFile | None:
    """Recognise a motion module and its layout; None for any other file.

    The file's ``name`` distinguishes AnimateDiff-Lightning and a diffusers folder of AnimateLCM from v2, which has the
    same shapes.
    """
    if is_lora(header):  # MotionLoRA's tensors are named like a motion module's
        return None
    conv_in = header.get(CONV_IN[0])
    if conv_in is not None:
        header = {key: entry for key, entry in header.items() if key not in CONV_IN}
    layout = _layout(header)
    if layout is None:
        return None
    inside = "temporal_attentions" if layout == "hotshot" else "motion_modules"
    proj_in = re.compile(
        rf"down_blocks\.(\d{{1,3}})\.{inside}\.(\d{{1,3}})\.(?:temporal_transformer\.)?proj_in\.weight"
    )
    found = [(m, shape) for key, (shape, _) in header.items() if (m := proj_in.fullmatch(key))]
    if not found:
        raise BadRequest(f"this motion module lacks down_blocks.0.{inside}.0…proj_in.weight")
    widths = {int(m[1]): shape[0] for m, shape in found}
    positions = {shape[1] for key, (shape, _) in header.items() if _IS_POSITION.search(key) and len(shape) == 3}
    if len(positions) > 1:
        lengths = ", ".join(map(str, sorted(positions)))
        raise BadRequest(f"this motion module has position tables of lengths {lengths}; expected one length")
    mid = any(key.startswith("mid_block.") for key in header)
    file = MotionFile(
        layout=layout,
        motion="v3",
        channels=tuple(widths[level] for level in sorted(widths)),
        layers=1 + max(int(m[2]) for m, _ in found),
        mid=mid,
        positions=next(iter(positions), None),
        conv_in=conv_in[0] if conv_in else None,
    )
    file = replace(file, motion=_motion(file, name.lower()))
    distilled = _DISTILLED.search(name.lower()) if file.motion == "lightning" else None
    return replace(file, steps=int(distilled[1])) if distilled else file


def part_of(header: Header) -> tuple[Header, list[str]]:
    """Return a file's motion modules and the names of what else a whole U-Net has, such as a training checkpoint's.

    The U-Net's first layer belongs to the motion modules if it is PIA's, which also takes a mask and a frame.
    """
    taken = {name: entry for name, entry in header.items() if _IN_MODULE.search(name)}
    if not taken or not any(".resnets." in name for name in header):
        return header, []
    first = header.get(CONV_IN[0])
    if first is not None and len(first[0]) == 4 and first[0][1] == 2 * LATENT_CHANNELS + 1:
        taken |= {name: header[name] for name in CONV_IN if name in header}
    return taken, [name for name in header if name not in taken]


def left_note(name: str, taken: Header, left: list[str]) -> tuple[str, ...]:
    """A note on the tensors of a whole U-Net that were not taken."""
    if not left:
        return ()
    modules, others = counted(len(taken), "tensor"), counted(len(left), "tensor")
    return (f"{name} is a whole U-Net: its motion modules ({modules}) are used, not {others} ({first_names(left)})",)


def _layout(header: Header) -> MotionLayout | None:
    """The layout of a file that contains only motion modules."""
    if not header:
        return None
    for layout, mark in (("hotshot", ".temporal_attentions."), ("official", ".temporal_transformer.")):
        if all(mark in key for key in header):
            return layout  # type: ignore[return-value]
    return "diffusers" if all(".motion_modules." in key for key in header) else None


def _motion(file: MotionFile, name: str) -> Motion:
    if file.conv_in:
        return "pia"
    if file.layout == "hotshot":
        return "hotshot"
    if len(file.channels) == 3 and file.channels[0] >= 320:
        return "sdxl"
    if file.mid:
        if "lightning" in name:
            return "lightning"
        return "lcm" if file.positions is None or "lcm" in name else "v2"
    return "v1" if file.positions == 24 else "v3"


# ------------------------------------------------------------------------------------ converting


def convert(file: MotionFile, tensors: Mapping[str, Tensor], where: str = "this motion module") -> dict[str, Tensor]:
    """Convert a file's tensors to the U-Net's names; raises `BadRequest` for an unknown key."""
    weights = {key: t for key, t in tensors.items() if not _IS_POSITION.search(key) and key not in CONV_IN}
    converted = KEYS[file.layout].forward(weights, where)
    positions = _positions(tensors, where)
    for key, weight in list(converted.items()):
        if key.endswith("transformer_blocks.0.norm1.weight"):
            module = key.removesuffix(".norm1.weight")
            table = positions.pop(module, None)
            if table is None:
                if file.positions is not None:
                    raise BadRequest(f"{where} lacks the positions of {module}")
                table = sinusoids(DEFAULT_POSITIONS, len(weight)).to(weight)
            converted[f"{module}.pos_embed.pe"] = table
    if positions:
        raise BadRequest(f"{where} has positions of missing blocks ({first_names(sorted(positions))})")
    return converted


def first_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The input channels of PIA's first layer for mask and first frame; the rest belongs to the image model."""
    return {"conv_first.weight": tensors[CONV_IN[0]][:, LATENT_CHANNELS:].contiguous()} if CONV_IN[0] in tensors else {}


def _positions(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Positions by native block; all attention layers of a block must have the same."""
    found: dict[str, Tensor] = {}
    for key, table in tensors.items():
        if not _IS_POSITION.search(key):
            continue
        block = re.sub(r"\.(attention_blocks\.\d+\.pos_encoder|pos_embed)\.\w+$", "", key)
        native = block.replace(".temporal_transformer", "").replace(".temporal_attentions.", ".motion_modules.")
        if native in found and not torch.equal(found[native], table):
            raise BadRequest(f"{where} has two different position tables at {native}; expected one")
        found[native] = table
    return found


def export(layout: MotionLayout, tensors: Mapping[str, Tensor], *, positions: bool = True) -> dict[str, Tensor]:
    """Convert motion modules to a file layout; ``positions=False`` omits the positions, as in AnimateLCM."""
    weights = {key: t for key, t in tensors.items() if not _IS_POSITION.search(key) and key not in CONV_IN}
    converted = KEYS[layout].backward(weights) | {key: tensors[key] for key in CONV_IN if key in tensors}
    for key, table in tensors.items():
        if not _IS_POSITION.search(key) or not positions:
            continue
        block = key.removesuffix(".pos_embed.pe")
        if layout == "diffusers":
            converted[key] = table
            continue
        foreign = re.sub(r"\.motion_modules\.(\d+)\.", _replacement(layout), block + ".")
        for n in (0, 1):
            if f"{block}.attn{n + 1}.to_q.weight" in tensors:
                converted[foreign + POSITIONS[layout].format(n)] = table
    return converted


def _replacement(layout: MotionLayout) -> str:
    inside = r"motion_modules.\1.temporal_transformer" if layout == "official" else r"temporal_attentions.\1"
    return f".{inside}."
