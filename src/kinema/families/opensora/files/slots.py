"""What can be added to a transformer at opening: its VAE, and text encoders, which are not part of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.families.opensora.config import Config
from kinema.families.opensora.files import vae_file
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint

T5_STATES = ("shared.weight", "encoder.embed_tokens.weight")
"""Either has the width of T5's states as its second axis."""
CLIP_STATES = ("text_model.final_layer_norm.weight", "final_layer_norm.weight")


class WithWords(Protocol):
    """A config; one with ``words`` learns its own text embeddings."""

    @property
    def words(self) -> tuple[str, ...]: ...


class Slots:
    """What `kinema.system.open_system` asks of a family that takes additions."""

    names: tuple[str, ...] = ("vae", "t5", "clip")

    def open(self, config: Config, slot: str, source: Source) -> FoundCheckpoint:
        """The config with this in it. Raises `BadRequest` for what does not belong there, and says what it is."""
        check_slot(self.names, slot, source)
        if slot == "vae":
            return _open_vae(config, source)
        sizes = config.transformer
        return open_encoder(config, slot, source, sizes.text if slot == "t5" else sizes.vector)

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Its tensors under the network's names: those of the published files."""
        return {f"vae.{name}": tensor for name, tensor in tensors.items()}


SLOTS = Slots()


def check_slot(names: tuple[str, ...], slot: str, source: Source) -> None:
    """Raises BadRequest for a slot that the model does not have, one with a name, and a whole pipeline."""
    kind = slot.partition(".")[0]
    if kind not in names:
        raise BadRequest(f"this model has no slot {kind}; it has {' and '.join(names)}")
    if slot not in names:
        raise BadRequest(f"there is one {kind}, which takes no name: give --add {kind}=FILE")
    if source.pipeline:
        raise BadRequest(f"{source.path} is {describe(source)}; add one file or component of it as {slot}")


def _open_vae(config: Config, source: Source) -> FoundCheckpoint:
    if config.vae == "pocket":
        raise BadRequest("this small model has its own codec, which cannot be replaced; leave vae out")
    vae = vae_file.recognise(source.header, source.config(""))
    wanted = f"{vae_file.TITLES[config.vae]} ({config.transformer.channels} channels)"
    file = f"give --add {vae_file.FILES[config.vae]}"
    if vae is None:
        images = vae_file.image_latents(source.header)
        kind = f"a VAE of images ({images} channels)" if images else describe(source)
        raise BadRequest(f"{source.path} is not a VAE of this model: it is {kind}; expected {wanted}, {file}")
    if vae.kind != config.vae or vae.latent != config.transformer.channels:
        raise BadRequest(f"{source.path} is {vae.title}; this model needs {wanted}, {file}")
    vae.check(source.header, source.path.name)
    return FoundCheckpoint(vae.into(config))


def open_encoder(config: WithWords, slot: str, source: Source, width: int) -> FoundCheckpoint:
    """A text encoder of this ``width``, which `kinema.conditioning.t5` reads when a prompt is new.

    Checked by its header alone.
    """
    if config.words:
        raise BadRequest(f"this small model has its own text embeddings, so {slot} has no effect; leave it out")
    title, marker, names, axis = {
        "t5": ("T5-XXL", "encoder.block.0.layer.0.SelfAttention.q.weight", T5_STATES, 1),
        "clip": ("CLIP-L", "encoder.layers.0.self_attn.q_proj.weight", CLIP_STATES, 0),
    }[slot]
    header = source.header
    states = next((header[name][0] for name in names if name in header), ())
    if not any(name in header for name in (marker, f"text_model.{marker}")) or len(states) <= axis:
        raise BadRequest(
            f"{source.path} is not {title}: it is {describe(source)}; expected a text encoder of T5 or CLIP"
        )
    if states[axis] != width:
        raise BadRequest(f"{source.path} is a text encoder with {states[axis]} features; the model needs {width}")
    return FoundCheckpoint(config, outside=True)
