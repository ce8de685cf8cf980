"""The codecs' files of Open-Sora 1.x: Stable Diffusion's (1.0, 1.1), 1.2's whole or one half of it, and 1.3's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import FileFault
from kinema.checkpoints.table import Row, Table, count, shape_in, shapes_of
from kinema.families.opensora.vae1x.vae12 import Sizes12, TemporalVAE, VideoVAE12
from kinema.families.opensora.vae1x.vae13 import Sizes13, VideoVAE13
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.vae.kl2d import Autoencoder

Kind = Literal["image", "1.2", "1.2-image", "1.2-temporal", "1.3"]
"""``image`` is any image codec under diffusers' names; ``1.2-image`` is that of 1.2 under the names of a 1.2 file."""
TITLES: dict[Kind, str] = {
    "image": "a VAE of images",
    "1.2": "the VAE of Open-Sora 1.2",
    "1.2-image": "the image half of the VAE of Open-Sora 1.2",
    "1.2-temporal": "the temporal half of the VAE of Open-Sora 1.2",
    "1.3": "the VAE of Open-Sora 1.3",
}
REPOSITORIES: dict[Kind, str] = {
    "image": "stabilityai/sd-vae-ft-ema",
    "1.2": "hpcai-tech/OpenSora-VAE-v1.2",
    "1.3": "hpcai-tech/OpenSora-VAE-v1.3",
}
"""Of the files as published: stabilityai's for 1.0 and 1.1."""
IMAGE, TEMPORAL = "spatial_vae.module.", "temporal_vae."
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of attention layers, and those of files that diffusers wrote before 2023."""

Sizes = Sizes12 | Sizes13


@dataclass(frozen=True)
class Vae1xFile:
    """A codec's kind and sizes. Of ``image`` and halves of 1.2, only the sizes of what the file holds are its own."""

    kind: Kind
    sizes: Sizes
    prefix: str = ""
    """Of all names in the file, if it holds a half of 1.2."""
    old: bool = False
    """Whether attention layers have their old names."""

    @property
    def title(self) -> str:
        return f"{TITLES[self.kind]} ({self.sizes.latent} channels)"

    def build(self) -> nn.Module:
        """The network that the file holds."""
        if isinstance(self.sizes, Sizes13):
            return VideoVAE13(self.sizes)
        if self.kind in ("image", "1.2-image"):
            return Autoencoder(self.sizes.image_channels, self.sizes.image_layers, self.sizes.latent)
        return TemporalVAE(self.sizes) if self.kind == "1.2-temporal" else VideoVAE12(self.sizes)

    @property
    def table(self) -> Table:
        """The file's names, shapes, and names in the network of `build`."""
        with on_meta():
            native = self.build().state_dict()
        return Table(
            Row(self.prefix + (_old(name) if self.old else name), tuple(tensor.shape), (name,))
            for name, tensor in native.items()
        )

    def check(self, header: Header, where: str) -> None:
        """Raises BadRequest naming tensors that are missing, unexpected or of the wrong shape."""
        self.table.check_foreign(shapes_of(header), where)

    def require(self, kind: Kind, latent: int, where: str) -> None:
        """Raises BadRequest, one sentence, unless this is a codec of that kind and number of channels."""
        if self.kind != kind or self.sizes.latent != latent:
            source = f", as in {REPOSITORIES[kind]}" if kind in REPOSITORIES else ""
            raise BadRequest(f"{where} is {self.title}; this model needs {TITLES[kind]} ({latent} channels){source}")


def recognise(header: Header, given: Mapping[str, Any]) -> Vae1xFile | None:
    """Kind and sizes by keys and shapes; None for any other file. ``given`` is a folder's config.json."""
    image = any(name.startswith(IMAGE) for name in header)
    temporal = any(name.startswith(TEMPORAL) for name in header)
    if image and temporal:
        return Vae1xFile("1.2", _temporal(header, TEMPORAL, _image(header, IMAGE, _sizes_12(given))))
    if image:
        return Vae1xFile("1.2-image", _image(header, IMAGE, Sizes12()), IMAGE, _is_old(header))
    for prefix in (TEMPORAL, ""):
        if any(name.startswith(f"{prefix}encoder.block_res_blocks.") for name in header):
            sizes = replace(Sizes12(), latent=_of_12(header, f"{prefix}post_quant_conv.conv.weight", 5)[0])
            return Vae1xFile("1.2-temporal", _temporal(header, prefix, sizes), prefix)
    if "encoder.down.0.block.0.conv1.conv.weight" in header:
        return Vae1xFile("1.3", _sizes_13(header))
    if len(header.get("encoder.down_blocks.0.resnets.0.conv1.weight", ((), ""))[0]) == 4:
        return Vae1xFile("image", _image(header, "", Sizes12()), old=_is_old(header))
    return None


_of_12, _of_13 = partial(shape_in, TITLES["1.2"]), partial(shape_in, TITLES["1.3"])


def _old(name: str) -> str:
    for new, old in OLD_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def _is_old(header: Header) -> bool:
    return any(".attentions.0.proj_attn." in name for name in header)


def _sizes_12(given: Mapping[str, Any]) -> Sizes12:
    run = given.get("micro_frame_size", Sizes12().run)
    if isinstance(run, bool) or not isinstance(run, int) or not 1 <= run <= 1024:
        raise FileFault(f"has the micro_frame_size {quoted(run)} in its config; expected 1 to 1024 frames")
    return replace(Sizes12(), run=run)


def _image(header: Header, prefix: str, sizes: Sizes12) -> Sizes12:
    shape = partial(shape_in, TITLES["image"], header)
    levels = count(header, f"{prefix}encoder.down_blocks.")
    return _with_channels(
        replace(
            sizes,
            image_channels=tuple(
                shape(f"{prefix}encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels)
            ),
            image_layers=count(header, f"{prefix}encoder.down_blocks.0.resnets."),
        ),
        shape(f"{prefix}post_quant_conv.weight", 4)[0],
    )


def _temporal(header: Header, prefix: str, sizes: Sizes12) -> Sizes12:
    levels = count(header, f"{prefix}encoder.block_res_blocks.")
    sizes = replace(
        sizes,
        widths=tuple(
            _of_12(header, f"{prefix}encoder.block_res_blocks.{i}.0.conv1.conv.weight", 5)[0] for i in range(levels)
        ),
        layers=count(header, f"{prefix}encoder.block_res_blocks.0."),
        temporal=tuple(i for i in range(levels - 1) if f"{prefix}encoder.conv_blocks.{i}.conv.weight" in header),
    )
    return _with_channels(sizes, sizes.latent)


def _with_channels(sizes: Sizes12, latent: int) -> Sizes12:
    """The published normalisation, of which a file's own tensors take the place, has four channels."""
    if latent == Sizes12().latent:
        return replace(sizes, latent=latent)
    return replace(sizes, latent=latent, shift=(0.0,) * latent, scale=(1.0,) * latent)


def _sizes_13(header: Header) -> Sizes13:
    levels, published = count(header, "encoder.down."), Sizes13()
    latent = _of_13(header, "decoder.conv_in.conv.weight", 5)[1]
    same = latent == published.latent
    return Sizes13(
        latent=latent,
        widths=tuple(_of_13(header, f"encoder.down.{i}.block.0.conv1.conv.weight", 5)[0] for i in range(levels)),
        layers=count(header, "encoder.down.0.block."),
        temporal=tuple(i for i in range(levels - 1) if f"encoder.down.{i}.downsample.conv.conv.weight" in header),
        mean=published.mean if same else (0.0,) * latent,
        std=published.std if same else (1.0,) * latent,
    )
