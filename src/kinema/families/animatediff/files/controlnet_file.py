"""Recognise and convert files of ControlNets.

Two layouts: the authors' (ldm's names behind ``control_model.``, or without the prefix in files extracted from whole
models) and that of diffusers' ``ControlNetModel``, which Kinema uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.ldm import layer
from kinema.checkpoints.stable_diffusion import UNET, encoder_rows, unet_sizes
from kinema.checkpoints.table import Row, Table, count, shapes_of
from kinema.families.animatediff.config import IMAGE, SDXL_IMAGE, Config, ControlSize, skip_widths
from kinema.families.animatediff.control.sparse import HINT
from kinema.schema import BadRequest

ControlLayout = Literal["official", "diffusers"]
PREFIX = "control_model."
_HINT_BLOCK, _NATIVE_HINT = "input_hint_block", "controlnet_cond_embedding"

OTHERS = (
    (r"(^|\.)lora_controlnet$", "a Control-LoRA"),
    (r"^lllite_unet_", "a ControlNet-LLLite"),
    (r"^(control_model\.)?(task_embedding|control_type_proj|control_add_embedding)\b", "a union ControlNet"),
    (r"^(adapter\.|body\.\d+\.(resnets|block1)|.*conv_in_adapter)", "a T2I-Adapter"),
    (r"^(ctrl_to_base|down_zero_convs_in|control_addition_embedding)\b", "a ControlNet-XS"),
    (r"^controlnet_blocks\.|^controlnet_x_embedder\.", "a ControlNet of a diffusion transformer"),
)
"""Unsupported kinds of control networks, by tensor names unique to them."""


@dataclass(frozen=True)
class ControlFile:
    """A recognised ControlNet file: sizes of its image model and of the control network."""

    layout: ControlLayout
    image: Config
    size: ControlSize
    prefix: str = ""
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        return Table(rows(self.image, self.size))

    def into(self, config: Config, name: str) -> Config:
        """Add this ControlNet to the config of a model."""
        image = replace(self.image, context=self.image.context or config.context)
        model, own = _base(config), _base(image)
        if model != own:
            raise BadRequest(f"this ControlNet is for {own}; the image model is {model}")
        if config.stride != 8:
            raise BadRequest(f"the model's latents are 1/{config.stride} of the frame size; ControlNet needs 1/8")
        if (self.image.in_channels, self.size.hint) != (config.latent_channels, 3):
            channels = f"{self.image.in_channels} latent channels and {self.size.hint} control image channels"
            raise BadRequest(f"this ControlNet has {channels}; expected {config.latent_channels} and 3")
        if any(name == each.name for each in config.controls):
            raise BadRequest(f"the model already has a ControlNet {name}; add another as controlnet.NAME=FILE")
        return replace(config, controls=(*config.controls, replace(self.size, name=name)))


def _base(config: Config) -> str:
    """Describe an image model by the sizes that a copy of its encoder must share."""
    kind = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}.get(config.context)
    channels = "/".join(map(str, config.channels))
    sizes = f"{channels} channels, {config.layers} layers, prompt width {config.context}"
    vector = 6 * config.size_embedding + config.pooled
    return f"{kind + ' ' if kind else 'a model '}({sizes}{f', added vector width {vector}' if vector else ''})"


def other_kind(header: Header) -> str | None:
    """Name of an unsupported kind of control network; None for others."""
    return next((what for pattern, what in OTHERS if any(re.search(pattern, name) for name in header)), None)


# ------------------------------------------------------------------------------------ recognising


def is_control(header: Header) -> bool:
    """Whether a file is a ControlNet, complete or not."""
    official = any(f"{prefix}{_HINT_BLOCK}.0.weight" in header for prefix in (PREFIX, ""))
    return official or ("controlnet_mid_block.weight" in header and f"{_NATIVE_HINT}.conv_in.weight" in header)


def recognise(header: Header, data: Mapping[str, Any] | None = None, name: str = "") -> ControlFile | None:
    """Recognise a ControlNet; None for any other file. ``data`` is its config.json, ``name`` the file's name.

    Raises `BadRequest` naming missing and unexpected tensors.
    """
    if other_kind(header):
        return None
    if "controlnet_mid_block.weight" in header and f"{_NATIVE_HINT}.conv_in.weight" in header:
        if any(".motion_modules." in key for key in header):
            return None  # SparseCtrl
        control = _of_diffusers(header, data or {})
        control.table.check_native(shapes_of(header), "this ControlNet")
        return control
    prefix = next((p for p in (PREFIX, "") if f"{p}{_HINT_BLOCK}.0.weight" in header), None)
    if prefix is None:
        return None
    inside = _without_prefix(header, prefix)
    control = replace(_of_ldm(inside, name), prefix=prefix)
    if len(inside) < len(header):
        control = replace(control, notes=("the file also contains an image model; only the ControlNet is used",))
    control.table.check_foreign(shapes_of(inside), "this ControlNet")
    return control


def _without_prefix(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


def _of_ldm(header: Header, name: str) -> ControlFile:
    xl = "label_emb.0.0.weight" in header
    sizes = unet_sizes({UNET + key: entry for key, entry in header.items()}, xl)
    depths = tuple(depth or None for depth in sizes.pop("depths"))
    size = ControlSize(
        depths=depths,
        middle=count(header, "middle_block.1.transformer_blocks."),
        linear=sizes["linear"],
        hint=header[f"{_HINT_BLOCK}.0.weight"][0][1],
        pooled="shuffle" in name.lower(),
    )
    image = replace(SDXL_IMAGE if xl else IMAGE, **sizes)
    if xl:
        image = _vector(image, header["label_emb.0.0.weight"][0][1])
    notes = ("its name contains shuffle: its residuals are averaged over the image",) if size.pooled else ()
    return ControlFile("official", image, size, notes=notes)


def _of_diffusers(header: Header, data: Mapping[str, Any]) -> ControlFile:
    levels = count(header, "down_blocks.")

    def shape(key: str) -> tuple[int, ...]:
        if key not in header:
            raise BadRequest(f"this ControlNet lacks {key}")
        return header[key][0]

    def depth(prefix: str) -> int | None:
        return count(header, f"{prefix}.transformer_blocks.") if f"{prefix}.norm.weight" in header else None

    order = data.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        raise BadRequest(
            f"this ControlNet has controlnet_conditioning_channel_order {quoted(order)}; expected rgb or bgr"
        )
    depths = tuple(depth(f"down_blocks.{i}.attentions.0") for i in range(levels))
    contexts = {s[1] for key, (s, _) in header.items() if key.endswith(".attn2.to_k.weight") and len(s) == 2}
    projections = [s for key, (s, _) in header.items() if key.endswith(".proj_in.weight")]
    size = ControlSize(
        depths=depths,
        middle=depth("mid_block.attentions.0"),
        linear=any(len(s) == 2 for s in projections),
        hint=shape(f"{_NATIVE_HINT}.conv_in.weight")[1],
        bgr=order == "bgr",
        pooled=bool(data.get("global_pool_conditions", False)),
    )
    xl = "add_embedding.linear_1.weight" in header
    image = replace(
        SDXL_IMAGE if xl else IMAGE,
        channels=tuple(shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)),
        layers=count(header, "down_blocks.0.resnets."),
        linear=size.linear,
        in_channels=shape("conv_in.weight")[1],
    )
    # A ControlNet without cross-attention ("small") works with prompts of any width.
    image = replace(image, context=min(contexts, default=0))
    if xl:
        image = _vector(image, shape("add_embedding.linear_1.weight")[1])
    return ControlFile("diffusers", image, size)


def _vector(image: Config, width: int) -> Config:
    """Set the width of SDXL's added vector; a file does not determine the prompt's share."""
    last = replace(image.text[-1], projection=width % 6)
    return replace(image, size_embedding=width // 6, text=(*image.text[:-1], last))


# ------------------------------------------------------------------------------------- converting


def rows(image: Config, size: ControlSize) -> Iterator[Row]:
    """Tensors of the authors' layout without ``control_model.``: 340 for Stable Diffusion 1.5."""
    for row in encoder_rows(replace(image, linear=size.linear), size.depths, size.middle):
        if size.middle is not None or not row.foreign.startswith("middle_block.2."):
            yield row
    for n, width in enumerate(skip_widths(image)):
        yield from layer(f"zero_convs.{n}.0", f"controlnet_down_blocks.{n}", width, width, 1, 1)
    last = image.channels[-1]
    yield from layer("middle_block_out.0", "controlnet_mid_block", last, last, 1, 1)
    yield from layer(f"{_HINT_BLOCK}.0", f"{_NATIVE_HINT}.conv_in", HINT[0], size.hint, 3, 3)
    widths = [(out, into) for here, there in zip(HINT, HINT[1:], strict=False) for out, into in _pair(here, there)]
    for n, (out, into) in enumerate(widths):
        # Activations are numbered too, so layers have even numbers.
        yield from layer(f"{_HINT_BLOCK}.{2 * n + 2}", f"{_NATIVE_HINT}.blocks.{n}", out, into, 3, 3)
    end = 2 * len(widths) + 2
    yield from layer(f"{_HINT_BLOCK}.{end}", f"{_NATIVE_HINT}.conv_out", image.channels[0], HINT[-1], 3, 3)


def _pair(here: int, there: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (here, here), (there, here)


def convert(control: ControlFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a file's tensors to the names of `ControlNet`."""
    if control.layout == "diffusers":
        return dict(tensors)
    return control.table.forward(_without_prefix(tensors, control.prefix), "this ControlNet")


def export(control: ControlFile, layout: ControlLayout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert `ControlNet` tensors to a file layout."""
    if layout == "diffusers":
        return dict(tensors)
    converted = control.table.backward(tensors, "this ControlNet")
    return {PREFIX + key: tensor for key, tensor in converted.items()}
