"""Files of the transformers of Open-Sora 1.0 to 1.3: which version and sizes their tensors have.

Names are those of our networks, in ``model.safetensors``, in 1.0's ``.pth`` and in ``ema.pt`` alike; files of training
may have ``module.`` before each. 1.0's tables of positions may be among them, though the published files lack them:
they are computed for the size of a clip, and nothing reads them.

Some settings are in no tensor: those that a folder's config.json has are read from it, and the others are as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import FileFault
from kinema.checkpoints.table import Row, Shape, Table, count, shape_in, shapes_of
from kinema.families.opensora.stdit.config import PATCH, V1_0, V1_1, V1_2, V1_3, STDiTConfig, Version
from kinema.families.opensora.stdit.network import build
from kinema.nn.meta import on_meta

PUBLISHED: dict[Version, STDiTConfig] = {"1.0": V1_0, "1.1": V1_1, "1.2": V1_2, "1.3": V1_3}
POSITIONS = ("pos_embed", "pos_embed_temporal")
"""1.0's tables, [1, tokens of a frame, D] and [1, frames, D]."""
_HEAD = 72
"""Features of a head of all published models, for a file of 1.0, which does not tell."""
_TOLD = {
    "in_channels": "channels",
    "hidden_size": "width",
    "num_heads": "heads",
    "depth": "depth",
    "caption_channels": "text",
    "model_max_length": "tokens",
    "pred_sigma": "variance",
    "qk_norm": "qk_norm",
}
"""Settings of config.json that tensors tell, too."""


@dataclass(frozen=True)
class StditFile:
    """A transformer's version and sizes, and how its file names its tensors."""

    config: STDiTConfig
    positions: Mapping[str, Shape] | None = None
    """Shapes of the tables of positions, if it has them."""

    @cached_property
    def table(self) -> Table:
        """Rows from the file to the network."""
        return Table(self._rows())

    def check(self, header: Header, where: str) -> None:
        """Raises BadRequest naming tensors that are missing, unexpected or of the wrong shape."""
        self.table.check_foreign(shapes_of(header), where)

    def to_ours(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The file's tensors under the network's names. Raises BadRequest as `check`."""
        return self.table.forward(tensors, where)

    def _rows(self) -> Iterator[Row]:
        with on_meta():
            native = build(self.config).state_dict()
        for name, tensor in native.items():
            yield Row(name, tuple(tensor.shape), (name,))
        for name, shape in (self.positions or {}).items():
            yield Row(name, (1, shape[1] if len(shape) == 3 else 1, self.config.width), group=name)


def recognise(header: Header, given: Mapping[str, Any] | None = None) -> StditFile | None:
    """Version and sizes by names and shapes; None for any other file. ``given`` is a folder's config.json.

    ``space_scale`` and ``time_scale`` of 1.0 are in no file: they are those of 256 px and 16 frames. Raises `FileFault`
    for a tensor that must be there to tell a size, and for a setting that is not what the tensors are or cannot be run.
    """
    version = version_of(header)
    if version is None:
        return None
    config = _told(_sized(header, version, given or {}), given or {})
    positions = {name: header[name][0] for name in POSITIONS if name in header} if version == "1.0" else {}
    return StditFile(config, positions)


def version_of(header: Header) -> Version | None:
    """The version, by its own layers; None for any other file."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in header)

    if has("spatial_blocks.0.attn.") and has("temporal_blocks.0.attn."):
        return "1.3" if has("x_embedder_cond.", "x_embedder_cond_mask.") else "1.2"
    if has("blocks.0.attn_temp.") and has("y_embedder."):
        return "1.1" if has("t_block_temp.", "fl_embedder.", "blocks.0.scale_shift_table_temporal") else "1.0"
    return None


def _sized(header: Header, version: Version, given: Mapping[str, Any]) -> STDiTConfig:
    shape: Callable[..., Shape] = partial(shape_in, f"Open-Sora {version}", header)
    first = "blocks.0." if version in ("1.0", "1.1") else "spatial_blocks.0."
    width, channels, *patch = shape("x_embedder.proj.weight", 5)
    if patch != [1, PATCH, PATCH] or not width or not channels:
        raise FileFault(f"has patches of {'×'.join(map(str, patch))} latent cells; expected 1×{PATCH}×{PATCH}")
    tokens, text = shape("y_embedder.y_embedding", 2)
    (out,) = shape("final_layer.linear.bias", 1)
    cells = channels * PATCH**2
    if out not in (cells, 2 * cells):
        raise FileFault(f"predicts {out} features of a token with {cells}; expected {cells} or {2 * cells}")
    norm = f"{first}attn.q_norm.weight"
    heads, window = _heads(shape, version, width, norm if norm in header else None, given)
    try:
        return replace(
            PUBLISHED[version],
            channels=channels,
            width=width,
            heads=heads,
            depth=count(header, first.removesuffix("0.")),
            mlp=shape(f"{first}mlp.fc1.bias", 1)[0] / width,
            text=text,
            tokens=tokens,
            variance=out > cells,
            qk_norm=norm in header,
            window=window,
            spatial_rope=window is not None and given.get("use_spatial_rope", V1_3.spatial_rope) is True,
        )
    except ValueError as error:
        raise FileFault(f"has sizes that do not fit each other: {error}") from error


def _heads(
    shape: Callable[..., Shape], version: Version, width: int, norm: str | None, given: Mapping[str, Any]
) -> tuple[int, tuple[int, int] | None]:
    """Heads, and the window of 1.3: from the norms of a head, from the rotary rates, or from config.json."""
    heads = given.get("num_heads")
    head = shape(norm, 1)[0] if norm else width // heads if isinstance(heads, int) and heads > 0 else 0
    if version == "1.0":
        head = head or _HEAD
        axes = 1
    else:
        turning = 2 * shape("rope.freqs", 1)[0]
        head = head or (3 * turning if version == "1.3" else turning)
        axes = 3 if version == "1.3" and 3 * turning == head else 1
        if axes * turning != head:
            raise FileFault(f"rotates {turning} of the {head} features of a head; expected all, or a third in 1.3")
    if not head or width % head:
        raise FileFault(f"has a width of {width}, which heads of {head} features do not divide")
    return width // head, _window(given) if axes == 3 else None


def _window(given: Mapping[str, Any]) -> tuple[int, int] | None:
    size = given.get("kernel_size")
    if size is None:
        return V1_3.window
    if isinstance(size, list | tuple) and len(size) == 3 and size[2] == -1:
        rows, columns, _ = size
        if all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (rows, columns)):
            return rows, columns
    raise FileFault(f"has the kernel_size {quoted(size)} in its config; expected [rows, columns, -1]")


def _told(config: STDiTConfig, given: Mapping[str, Any]) -> STDiTConfig:
    """The config with what only config.json tells. Raises `FileFault` for what the tensors contradict."""
    for name, field in _TOLD.items():
        has = getattr(config, field)
        if name in given and given[name] != has:
            raise FileFault(f"has the {name} {quoted(given[name])} in its config; its tensors have {has}")
    if given.get("kernel_size") is not None and config.version == "1.3" and config.window is None:
        raise FileFault("has a kernel_size in its config, but its rotary rates are those of a network without windows")
    side = given.get("input_sq_size", config.side)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise FileFault(f"has the input_sq_size {quoted(side)} in its config; expected a positive whole number")
    if config.version == "1.0":
        return config
    config = replace(config, side=side)
    return (
        replace(config, rotate_first=given.get("qk_norm_legacy", True) is True) if config.version == "1.1" else config
    )
