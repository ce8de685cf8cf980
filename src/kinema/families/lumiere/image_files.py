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
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.families.lumiere.config import IMAGE_FIELDS, SAMPLING_FIELDS, Config
from kinema.schema import BadRequest
from kinema.system import Family, FoundCheckpoint, parse_metadata

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
    values = {name: getattr(image, name) for name in IMAGE_FIELDS if hasattr(image, name)}
    values |= {"text": image.text[0], "betas": image.image_betas}
    if config.enlarges > 1:
        values = {name: value for name, value in values.items() if name not in SAMPLING_FIELDS}
    return FoundCheckpoint(fitted(replace(config, frames=config.longest, **values), config.frames), parts)


def fitted(config: Config, frames: int) -> Config:
    """The config with about ``frames`` frames by default, a multiple of what its levels halve."""
    return replace(config, frames=min(max(round(frames / config.factor), 1) * config.factor, config.longest))


def native(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image model's tensors under the network's names; motion modules and a reader are left out."""
    family: Family = registry.family(FAMILY)
    found = family.checkpoints.convert(_of_images(family, config), tensors)
    return {name: x for name, x in found.items() if name.startswith(PARTS) and ".motion_modules." not in name}


def _of_images(family: Family, config: Config) -> Any:
    """The image model's config in its own family."""
    values = {name: getattr(config, name) for name in IMAGE_FIELDS if name not in ("text", "betas")}
    return replace(family.presets["image"], **values, text=(config.text,), image_betas=config.betas)
