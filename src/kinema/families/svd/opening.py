"""Determine the config of a file or folder: sizes from its tensors, frames and guidance from its name.

The weights do not distinguish svd (14 frames) from svd-xt (25). The user's choice has priority, then a folder's
``num_frames``, then the name; a note reports the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kinema.checkpoints.source import Source
from kinema.checkpoints.table import shapes_of
from kinema.families.svd import folder
from kinema.families.svd.checkpoint import from_sgm, recognise, sized, variant, without_position_ids, words
from kinema.families.svd.config import PRESETS, Config
from kinema.families.svd.layout import Outline, table
from kinema.schema import BadRequest, plain_number
from kinema.system import FoundCheckpoint

SVD_MODELS = ("svd", "svd-xt", "svd-xt-1.1")
"""Published models with identical sizes."""
CORRECTION = "choose with --variant svd or --variant svd-xt"


def open_source(source: Source) -> FoundCheckpoint | None:
    """Recognise an SVD checkpoint from headers and JSON alone; None for other families.

    Raises `BadRequest` for a folder that lacks a network or whose tensors do not match its configs, for a file that
    lacks tensors needed to determine its sizes, and for a ``source.model`` of other sizes.
    """
    if source.pipeline:
        return _open_folder(source)
    outline = recognise(source.header)
    if outline is None:
        return None
    model, note = _published(outline, source, None)
    return FoundCheckpoint(sized(PRESETS[model], outline), notes=(note,) if note else ())


def _open_folder(source: Source) -> FoundCheckpoint | None:
    configs = folder.read_configs(source)
    if configs is None:
        return None
    folder.check(source)
    outline, parts = folder.outline(configs), tuple(folder.PARTS)
    table(outline).check_native(shapes_of(without_position_ids(source.headers(parts))), source.path.name)
    frames = folder.frames(configs)
    model, note = _published(outline, source, frames)
    heads, clip_heads = folder.heads(configs, outline)
    config = sized(PRESETS[model], outline)
    config = replace(config, heads=heads, clip_heads=clip_heads, latent_scale=folder.scaling(configs))
    if source.model is None:
        config = replace(config, frames=frames)
    return FoundCheckpoint(config, parts, tuple(filter(None, (note, folder.scheduler_note(source)))))


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a single file, or of a folder's parts, to the network's names."""
    outline = recognise({name: (tuple(x.shape), x.dtype) for name, x in tensors.items()})
    return without_position_ids(tensors) if outline is None else from_sgm(outline, tensors)


def _published(outline: Outline, source: Source, frames: int | None) -> tuple[str, str]:
    """Return the published model whose sampling defaults apply, and a note on the choice if the sizes leave one."""
    by_name = variant(outline, source.name)
    fits = SVD_MODELS if by_name in SVD_MODELS else (by_name,)
    if source.model is not None:
        if source.model not in fits:
            raise BadRequest(f"{source.path} is not {source.model}: its tensors have the sizes of {' or '.join(fits)}")
        return source.model, ""
    if len(fits) == 1:
        return by_name, ""
    agree = [name for name in fits if frames in (None, PRESETS[name].frames)]
    model = by_name if by_name in agree or not agree else agree[0]
    why = "by its name" if frames is None else f"by the {frames} frames of its unet/config.json"
    if frames is None and "svd" not in words(source.name):
        why = "by default"
    return model, f"{source.name} is loaded as {model} {why}: {_sampling(PRESETS[model], frames)}; {CORRECTION}"


def _sampling(preset: Config, frames: int | None) -> str:
    start, end = preset.guidance
    return f"{frames or preset.frames} frames, guidance {plain_number(start)} to {plain_number(end)}"
