"""The two codecs' files: HunyuanVideo's causal VAE, whose names are those of diffusers, and the Video DC-AE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import FileFault
from kinema.checkpoints.table import Row, Table, count, shape_in, shapes_of
from kinema.families.opensora.config import VAE, Config, HunyuanConfig
from kinema.families.opensora.dc_ae import DCAEConfig, VideoDCAE
from kinema.nn.meta import on_meta
from kinema.vae.causal3d import CausalAutoencoder

TITLES: dict[VAE, str] = {"hunyuan": "the VAE of HunyuanVideo", "dc-ae": "the Video DC-AE"}
FILES: dict[VAE, str] = {"hunyuan": "hunyuan_vae.safetensors", "dc-ae": "F32T4C128_AE.safetensors"}
"""As published, next to the transformer's file."""
REPOSITORIES: dict[VAE, str] = {
    "hunyuan": "hpcai-tech/Open-Sora-v2",
    "dc-ae": "hpcai-tech/Open-Sora-v2-Video-DC-AE",
}


@dataclass(frozen=True)
class VaeFile:
    """A codec's kind and sizes."""

    kind: VAE
    hunyuan: HunyuanConfig = HunyuanConfig()
    dc_ae: DCAEConfig = DCAEConfig()

    @property
    def latent(self) -> int:
        return self.dc_ae.latent if self.kind == "dc-ae" else self.hunyuan.latent

    @property
    def title(self) -> str:
        return f"{TITLES[self.kind]} ({self.latent} channels)"

    def into(self, config: Config) -> Config:
        """The config with this codec."""
        absent = tuple(part for part in config.absent if part != "vae")
        return replace(config, vae=self.kind, hunyuan=self.hunyuan, dc_ae=self.dc_ae, absent=absent)

    def build(self) -> nn.Module:
        if self.kind == "dc-ae":
            return VideoDCAE(self.dc_ae)
        sizes = self.hunyuan
        return CausalAutoencoder(sizes.channels, sizes.layers, sizes.latent, sizes.temporal)

    def check(self, header: Header, where: str) -> None:
        """Raises BadRequest naming tensors that are missing, unexpected or of the wrong shape."""
        with on_meta():
            native = self.build().state_dict()
        Table(Row(name, tuple(tensor.shape), (name,)) for name, tensor in native.items()).check_foreign(
            shapes_of(header), where
        )


def recognise(header: Header, given: Mapping[str, Any]) -> VaeFile | None:
    """Kind and sizes by keys and shapes; None for any other file. ``given`` is a folder's config.json."""
    if any(name.startswith("encoder.down_blocks.") and name.endswith(".conv1.conv.weight") for name in header):
        return VaeFile("hunyuan", hunyuan=_hunyuan(header, given))
    if any(name.startswith("encoder.stages.") and ".op_list." in name for name in header):
        return VaeFile("dc-ae", dc_ae=_dc_ae(header, given))
    return None


def image_latents(header: Header) -> int | None:
    """Latent channels of a VAE of images, such as Stable Diffusion's; None for any other file."""
    name = next((n for n in header if n.endswith("decoder.conv_in.weight")), "")
    return header[name][0][1] if name and len(header[name][0]) == 4 else None


_of_hunyuan = partial(shape_in, TITLES["hunyuan"])
_of_dc_ae = partial(shape_in, TITLES["dc-ae"])


def _hunyuan(header: Header, given: Mapping[str, Any]) -> HunyuanConfig:
    levels = count(header, "encoder.down_blocks.")
    sizes = HunyuanConfig(
        latent=_of_hunyuan(header, "post_quant_conv.weight", 5)[0],
        channels=tuple(
            _of_hunyuan(header, f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight", 5)[0] for i in range(levels)
        ),
        layers=count(header, "encoder.down_blocks.0.resnets."),
    )
    # Strides are in no tensor.
    ratio, known = _number(given, "temporal_compression_ratio", 2**sizes.temporal), [2**n for n in range(1, levels)]
    if ratio not in known:
        expected = ", ".join(map(str, known)) or "a codec of two levels or more"
        raise FileFault(f"has the temporal_compression_ratio {quoted(ratio)} in its config; expected {expected}")
    scale = _number(given, "scaling_factor", sizes.scale)
    if not scale > 0 or scale == float("inf"):
        raise FileFault(f"has the scaling_factor {quoted(scale)} in its config; expected a positive number")
    return replace(sizes, temporal=int(ratio).bit_length() - 1, scale=float(scale))


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FileFault(f"has the {name} {quoted(value)} in its config; expected a number")
    return value


def _dc_ae(header: Header, given: Mapping[str, Any]) -> DCAEConfig:  # noqa: ARG001 (its folder has no config)
    levels = count(header, "encoder.stages.")
    attends = [
        any(n.startswith(f"encoder.stages.{i}.op_list.0.context_module.") for n in header) for i in range(levels)
    ]
    first = attends.index(True) if True in attends else levels
    widths = [_of_dc_ae(header, "encoder.project_in.conv.weight", 5)[0]]
    for i in range(levels - 1):
        change = count(header, f"encoder.stages.{i}.op_list.") - 1
        widths.append(_of_dc_ae(header, f"encoder.stages.{i}.op_list.{change}.main.conv.weight", 5)[0])
    changes = [int(i < levels - 1) for i in range(levels)]
    sizes = DCAEConfig(
        latent=_of_dc_ae(header, "encoder.project_out.main.op_list.0.conv.weight", 5)[0],
        widths=tuple(widths),
        encoder_depths=tuple(count(header, f"encoder.stages.{i}.op_list.") - changes[i] for i in range(levels)),
        decoder_depths=tuple(count(header, f"decoder.stages.{i}.op_list.") - changes[i] for i in range(levels)),
        attention_from=first,
        temporal=(max(levels - 3, 0), max(levels - 2, 0)),  # as published: in the last two changes; no tensor tells
    )
    if first == levels:
        return sizes
    scales = f"encoder.stages.{first}.op_list.0.context_module.main.aggreg.0."
    return replace(
        sizes,
        head=_of_dc_ae(header, f"{scales}1.weight", 5)[1],
        scale=_of_dc_ae(header, f"{scales}0.weight", 5)[2],
    )
