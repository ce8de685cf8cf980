"""From a file or folder to a configuration: its sizes by its tensors, its frames and guidance by what it is called.

Nothing in the weights tells svd (14 frames) from svd-xt (25). The user's word wins, then a folder's ``num_frames``,
then the name; what was decided is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kinema.checkpoints.source import Source
from kinema.checkpoints.table import shapes_of
from kinema.families.svd import folder
from kinema.families.svd.checkpoint import from_sgm, networks_own, recognise, sized, variant, words
from kinema.families.svd.config import PRESETS, Config
from kinema.families.svd.layout import Outline, table
from kinema.schema import BadRequest, plain
from kinema.system import FoundCheckpoint

SVD_MODELS = ("svd", "svd-xt", "svd-xt-1.1")
"""Published models of one size."""
OTHERWISE = "say --variant svd or svd-xt if it is the other"


def open_source(source: Source) -> FoundCheckpoint | None:
    """What SVD sees in a source, by headers and JSON alone; None when it is not of this family.

    Raises `BadRequest` for a folder that lacks a network or whose tensors do not agree with its configs, for a
    file that lacks what tells its sizes, and for a ``source.model`` of other sizes.
    """
    if source.pipeline:
        return _open_folder(source)
    outline = recognise(source.header)
    if outline is None:
        return None
    model, note = _published(outline, source, None)
    return FoundCheckpoint(sized(PRESETS[model], outline), notes=(note,) if note else ())


def _open_folder(source: Source) -> FoundCheckpoint | None:
    told = folder.read_configs(source)
    if told is None:
        return None
    folder.check(source)
    outline, parts = folder.outline(told), tuple(folder.PARTS)
    table(outline).check_ours(shapes_of(networks_own(source.headers(parts))), source.path.name)
    frames = folder.frames(told)
    model, note = _published(outline, source, frames)
    heads, clip_heads = folder.heads(told, outline)
    config = sized(PRESETS[model], outline)
    config = replace(config, heads=heads, clip_heads=clip_heads, latent_scale=folder.scaling(told))
    if source.model is None:
        config = replace(config, frames=frames)
    return FoundCheckpoint(config, parts, tuple(filter(None, (note, folder.scheduler_note(source)))))


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a single file, or of a folder's parts, under the network's names."""
    outline = recognise({name: (tuple(x.shape), x.dtype) for name, x in tensors.items()})
    return networks_own(tensors) if outline is None else from_sgm(outline, tensors)


def _published(outline: Outline, source: Source, frames: int | None) -> tuple[str, str]:
    """The published model whose sampling is taken, and the sentence that says why; "" where the sizes tell it."""
    by_name = variant(outline, source.name)
    fits = SVD_MODELS if by_name in SVD_MODELS else (by_name,)
    if source.model is not None:
        if source.model not in fits:
            raise BadRequest(f"{source.path} cannot be {source.model}: its sizes are those of {' or '.join(fits)}")
        return source.model, ""
    if len(fits) == 1:
        return by_name, ""
    agree = [name for name in fits if frames in (None, PRESETS[name].frames)]
    model = by_name if by_name in agree or not agree else agree[0]
    why = "by its name" if frames is None else f"by the {frames} frames of its unet/config.json"
    if frames is None and "svd" not in words(source.name):
        why = "as neither its weights nor its name tell"
    return model, f"{source.name} is taken for {model} {why}: {_sampling(PRESETS[model], frames)}; {OTHERWISE}"


def _sampling(preset: Config, frames: int | None) -> str:
    start, end = preset.guidance
    return f"{frames or preset.frames} frames, guidance {plain(start)} to {plain(end)}"
