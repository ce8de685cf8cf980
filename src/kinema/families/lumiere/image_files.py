"""Image models as people have them: Stable Diffusion 1.5 in one file or a folder, and Kinema's own pocket image model.

Which files are image models, and how their tensors are named here, is known to the family that generates images with
them; it is asked through the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kinema import registry
from kinema.bounds import first_names
from kinema.checkpoints.settings import FileFault
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.families.lumiere.config import IMAGE_FIELDS, SAMPLING_FIELDS, Config
from kinema.families.lumiere.model import Lumiere, of_new_layer
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import Family, FoundCheckpoint, parse_metadata
from kinema.values import counted

FAMILY = "animatediff"
PARTS = ("unet.", "vae.", "text_encoder.")


def open_image(config: Config, source: Source) -> FoundCheckpoint:
    """Return the config with the image model's sizes, read from headers and JSON alone.

    Raises BadRequest for anything but an image model with one text encoder, saying what it is.
    """
    family: Family = registry.family(FAMILY)
    parts: tuple[str, ...] = ()
    if note := source.metadata.get("kinema"):
        own, image = parse_metadata(note, str(source.path))
        if own.name != FAMILY:
            raise BadRequest(f"{source.path} is {describe(source)}; expected an image model")
    else:
        found = family.checkpoints.recognise(source)
        if found is None:
            raise BadRequest(f"{source.path} is {describe(source)}; expected an image model")
        image, parts = found.config, found.parts
    if len(image.text) != 1:
        raise BadRequest(
            f"{source.path} has {len(image.text)} text encoders; expected an image model like Stable Diffusion 1.5"
        )
    if image.absent:
        raise BadRequest(f"{source.path} has no {' and no '.join(image.absent)}; expected a file with all parts")
    if image.predicts == "v" or image.zero_snr or image.image_trained_betas or image.timesteps != 1000:
        raise BadRequest(
            f"{source.path} is an image model with v-prediction, zero terminal SNR or custom betas; expected one "
            "that predicts noise or x0 with a standard beta schedule"
        )
    values = {name: getattr(image, name) for name in IMAGE_FIELDS if hasattr(image, name)}
    values |= {"text": image.text[0], "betas": image.image_betas, "inflated": True}
    if config.enlarges > 1:
        values = {name: value for name, value in values.items() if name not in SAMPLING_FIELDS}
    extended = fitted(replace(config, frames=config.longest, **values), config.frames)
    if note:
        check_complete(extended, {name: shape for name, (shape, _) in source.header.items()})
    return FoundCheckpoint(extended, parts)


def fitted(config: Config, frames: int) -> Config:
    """The config with about ``frames`` frames by default, a multiple of what its levels halve."""
    return replace(config, frames=min(max(round(frames / config.factor), 1) * config.factor, config.longest))


def native(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image model's tensors under the network's names; motion modules and a reader are left out."""
    family: Family = registry.family(FAMILY)
    found = family.checkpoints.convert(_of_images(family, config), tensors)
    kept = {name: x for name, x in found.items() if name.startswith(PARTS) and ".motion_modules." not in name}
    check_complete(config, {name: tuple(x.shape) for name, x in kept.items()})
    return kept


def style_of(config: Config, source: Source) -> dict[str, Tensor]:
    """The U-Net's weights in a style: a whole image model, or some layers of one under the network's own names.

    Tensors are memory-mapped. Raises BadRequest for another file.
    """
    if is_part(config, source):
        tensors = source.tensors(())
    else:
        found = open_image(config, source)
        tensors = native(found.config, source.tensors(found.parts))
    return {name.removeprefix("unet."): x for name, x in tensors.items() if name.startswith("unet.")}


def is_part(config: Config, source: Source) -> bool:
    """Whether a file has layers of this model's U-Net and nothing else, as a style of the pocket image model has."""
    with on_meta():
        expected = {name: tuple(x.shape) for name, x in Lumiere(config).state_dict().items() if not of_new_layer(name)}
    header = {name: shape for name, (shape, _) in source.header.items()}
    layers = {name for name in header if name.startswith("unet.")}
    return layers == header.keys() != set() and all(expected.get(name) == header[name] for name in layers)


def check_complete(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises FileFault for a tensor of the image part that is missing or of another shape: it would stay random."""
    with on_meta():
        expected = {name: tuple(x.shape) for name, x in Lumiere(config).state_dict().items() if not of_new_layer(name)}
    missing = [name for name in expected if name not in shapes]
    wrong = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    for what, names in (("lacks", missing), ("has other shapes for", wrong)):
        if names:
            raise FileFault(f"{what} {counted(len(names), 'tensor')} of its image model ({first_names(names)})")


def _of_images(family: Family, config: Config) -> Any:
    """The image model's config in its own family."""
    values = {name: getattr(config, name) for name in IMAGE_FIELDS if name not in ("text", "betas")}
    return replace(family.presets["image"], **values, text=(config.text,), image_betas=config.betas)
