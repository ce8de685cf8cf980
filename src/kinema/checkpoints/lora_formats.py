"""Low-rank adapters (LoRA, Hu et al. 2021) in all common layouts, merged into a network and removed bit for bit.

A layer's weight becomes ``W + w · (alpha / rank) · up @ down`` with the user's weight ``w``. Layouts:
kohya ``lora_unet_{module with _ for .}.lora_down.weight`` and ``.alpha``; diffusers and PEFT
``unet.{module}.lora_A.weight``, alphas in the file's metadata; older diffusers ``.lora.down.weight`` and
``.processor.to_q_lora.down.weight``. Module names may be native or those of an original layout.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema.bounds import first_names
from kinema.checkpoints.files import header, read_tensors, write_tensors
from kinema.checkpoints.peft import PEFT_NOTE, PEFT_PREFIX, PeftAlphas
from kinema.checkpoints.signatures import lora_kind
from kinema.schema import BadRequest
from kinema.values import counted

LAYOUTS = ("diffusers", "kohya")
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
"""Kohya's prefixes and the components they stand for; SDXL files number the two text encoders."""
_ENDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True)
class Adapter:
    """The ``down`` (rank × in…) and ``up`` (out × rank…) matrices of a layer; without ``alpha``, alpha is the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def stated_alpha(self) -> float:
        """The alpha to write where a layout has one for every adapter."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        return self.stated_alpha / self.rank

    def delta(self, shape: torch.Size) -> Tensor:
        """Return the fp32 update of a weight of this shape. For a convolution, ``up`` is 1×1."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.scale * product).reshape(shape)


@dataclass(frozen=True)
class Piece:
    """A native module, or some of its rows, that a module of another layout stands for.

    ``how`` transforms the rows of the foreign module's ``up`` to the native layout, ``rows`` are those of the result
    that belong to this module, ``at`` is their place in it: first row, and how many rows it has in all.
    """

    module: str
    rows: tuple[int, int] | None = None
    how: Callable[[Tensor], Tensor] | None = None
    at: tuple[int, int] | None = None

    def of(self, adapter: Adapter) -> Adapter:
        """The adapter of this module; ``down`` is the foreign module's."""
        up = adapter.up if self.how is None else self.how(adapter.up)
        up = up if self.rows is None else up[slice(*self.rows)]
        if self.at is not None:
            start, rows = self.at
            whole = up.new_zeros(rows, *up.shape[1:])
            whole[start : start + len(up)] = up
            up = whole
        return Adapter(adapter.down, up, adapter.alpha)


Alias = str | tuple[Piece, ...]
"""What a module of another layout is natively: a module, or pieces of modules."""

Lora = Mapping[str, Adapter]
"""Adapters by module name (``unet.down_blocks.0.attentions.0.….to_q``)."""


def is_lora(names: Iterable[str]) -> bool:
    return any(name.endswith(end) for name in names for end in _ENDS if end != ".alpha")


# ---------------------------------------------------------------------------------------- reading


def read_lora(
    path: str | Path, modules: Iterable[str], aliases: Mapping[str, Alias] | None = None
) -> dict[str, Adapter]:
    """Read a LoRA file; returns its adapters by native module name.

    ``modules`` are all module names of the model, starting with the component; names in the file without a component
    belong to the U-Net. ``aliases`` maps names of another layout (``input_blocks.1.1.…``) to native modules or pieces
    of them. Raises `BadRequest` for an unknown module (naming the model that the LoRA is for), a tensor that is not
    part of a plain LoRA (LoCon, DoRA), an incomplete pair, mismatched ranks, rank 0, and an alpha that is not a number.
    """
    tensors = read_tensors(path)
    places, unknown = match_keys(tensors, modules, aliases or {})
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, (module, role) in places.items():
        found[module][role] = tensors[key]
    where = Path(path).name
    if unknown:
        faults = f"{len(unknown)} of its tensors fit no layer of this model ({first_names(unknown)})"
        raise BadRequest(f"{where} is {lora_kind(header(path))}: {faults}")
    alphas, stems = PeftAlphas.read(Path(path)), stems_of(places)
    adapters = {
        module: _adapter(parts, module, alphas.of(stems.get(module, module)), where) for module, parts in found.items()
    }
    if not adapters:
        raise BadRequest(f"{where} has no LoRA weights")
    return moved(adapters, aliases or {}, where)


def moved(adapters: Lora, aliases: Mapping[str, Alias], where: str) -> dict[str, Adapter]:
    """Adapters under the names that ``aliases`` maps theirs to, split and joined where those are pieces.

    From another layout's modules to native ones or back. Raises BadRequest, naming the file, for sizes that do not fit.
    """
    found: dict[str, list[Adapter]] = defaultdict(list)
    for module, adapter in adapters.items():
        alias = aliases.get(module)
        if alias is None or isinstance(alias, str):
            found[module].append(adapter)
            continue
        try:
            pieces = [(piece.module, piece.of(adapter)) for piece in alias]
            # A layer of which an adapter changes one part: the others have no adapter of their own.
            some = any(bool(part.up.any()) for _, part in pieces)
            for name, part in pieces:
                if not some or part.up.any():
                    found[name].append(part)
        except (RuntimeError, IndexError, ValueError) as error:
            raise BadRequest(
                f"{where} has {adapter.up.shape[0]} rows at {module}, which do not fit this model"
            ) from error
    return {module: each[0] if len(each) == 1 else _sum(each, module, where) for module, each in found.items()}


def _sum(adapters: Sequence[Adapter], module: str, where: str) -> Adapter:
    """One adapter that equals the sum of several: their ranks side by side, each with its scale.

    Those with the same ``down``, the pieces of one that was split, become that one again.
    """
    if len({each.down.shape[1:] for each in adapters}) > 1 or len({each.up.shape[0] for each in adapters}) > 1:
        raise BadRequest(f"{where} changes {module} by adapters of different sizes")
    first, *rest = adapters
    if all(each.alpha == first.alpha and torch.equal(each.down, first.down) for each in rest):
        return Adapter(first.down, sum((each.up for each in rest), first.up), first.alpha)
    down = torch.cat([each.down for each in adapters])
    if len({each.scale for each in adapters}) == 1:
        alpha = None if first.scale == 1 else first.scale * len(down)
        return Adapter(down, torch.cat([each.up for each in adapters], dim=1), alpha)
    return Adapter(down, torch.cat([each.up * each.scale for each in adapters], dim=1))


def match_keys(
    keys: Iterable[str], modules: Iterable[str], aliases: Mapping[str, Alias]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Map keys to (module, role "down", "up" or "alpha"); also returns the keys that match no module.

    The module is native, or the name of a module in another layout that stands for pieces of native ones.
    """
    names = _Names(modules, aliases)
    found: dict[str, tuple[str, str]] = {}
    taken: set[tuple[str, str]] = set()
    unknown = []
    for key in keys:
        stem, role = _split(key)
        module = names.find(stem) if role else None
        if module is None or (module, role) in taken:
            unknown.append(key)
        else:
            found[key] = (module, role)
            taken.add((module, role))
    return found, unknown


def stems_of(places: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The name in the file of each module that `match_keys` found, which PEFT's settings use too."""
    return {module: _split(key)[0] for key, (module, role) in places.items() if role == "down"}


def _split(key: str) -> tuple[str, str]:
    for end, role in _ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end), role
    return key, ""


class _Names:
    """Looks up the native module for a name in any layout."""

    def __init__(self, modules: Iterable[str], aliases: Mapping[str, Alias]) -> None:
        native = {name: name for name in modules}
        bare = {name.removeprefix("unet."): name for name in native if name.startswith("unet.")}
        named = {name: alias if isinstance(alias, str) else name for name, alias in aliases.items()}
        self.dotted = native | bare | named
        self.flat = {name.replace(".", "_"): module for name, module in self.dotted.items()}

    def find(self, stem: str) -> str | None:
        for prefix, part in KOHYA.items():
            if stem.startswith(prefix):
                inner = stem.removeprefix(prefix)
                return self.flat.get(f"{part}_{inner}") or (self.flat.get(inner) if part == "unet" else None)
        # Older diffusers versions keep the four projections in the attention processor.
        stem = re.sub(r"\.processor\.(to_[qkv]|0|proj)$", r".\1", stem)
        stem = re.sub(r"\.processor\.to_out$", ".to_out.0", stem)
        return self.dotted.get(stem.removeprefix(PEFT_PREFIX))


def _adapter(parts: dict[str, Tensor], module: str, alpha: float | None, where: str) -> Adapter:
    """The adapter of a module's tensors; ``alpha`` counts where these have none."""
    if absent := [role for role in ("down", "up") if role not in parts]:
        raise BadRequest(f"{where} has an incomplete LoRA at {module}: its {absent[0]} matrix is missing")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
        raise BadRequest(f"{where} has mismatched ranks at {module}: down is {_times(down)}, up is {_times(up)}")
    if not (down.is_floating_point() and up.is_floating_point()):
        raise BadRequest(f"{where} has {down.dtype} weights at {module}; expected floating-point")
    if not down.shape[0]:
        raise BadRequest(f"{where} has a LoRA of rank 0 at {module}; expected a rank of at least 1")
    if (own := parts.get("alpha")) is not None:
        if own.numel() != 1:
            raise BadRequest(f"{where} has an alpha of {own.numel()} values at {module}; expected one")
        alpha = float(own)
        if not math.isfinite(alpha):
            raise BadRequest(f"{where} has an alpha of {alpha} at {module}; expected a finite number")
    return Adapter(down, up, alpha)


def _times(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


# ---------------------------------------------------------------------------------------- writing


def write_lora(path: str | Path, lora: Lora, layout: str) -> None:
    """Write a LoRA file for diffusers (PEFT) or kohya's tools; both layouts keep the alphas."""
    tensors, text = lora_tensors(lora, layout)
    write_tensors(path, tensors, text)


def lora_tensors(lora: Lora, layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a LoRA file in a layout."""
    if layout not in LAYOUTS:
        raise BadRequest(f"there is no LoRA layout {layout!r}; expected {' or '.join(LAYOUTS)}")
    if layout == "kohya":
        return kohya(lora), {"ss_network_module": "networks.lora"}
    return diffusers(lora), {"format": "pt", PEFT_NOTE: peft_settings(lora)}


def kohya(lora: Lora) -> dict[str, Tensor]:
    """Return the tensors in kohya's layout, with an alpha for every adapter."""
    prefixes = {part: prefix for prefix, part in reversed(KOHYA.items())}
    if any(module.startswith("text_encoder_2.") for module in lora):
        prefixes["text_encoder"] = "lora_te1_"
    tensors = {}
    for module, adapter in lora.items():
        part, _, inner = module.partition(".")
        stem = (prefixes[part] + inner if part in prefixes else "lora_unet_" + module).replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = adapter.down, adapter.up
        tensors[f"{stem}.alpha"] = torch.tensor(float(adapter.stated_alpha), dtype=adapter.down.dtype)
    return tensors


def diffusers(lora: Lora) -> dict[str, Tensor]:
    """Return the tensors in diffusers' layout; the alphas go into `peft_settings`."""
    tensors = {}
    for module, adapter in lora.items():
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = adapter.down, adapter.up
    return tensors


def peft_settings(lora: Lora) -> str:
    """Return diffusers' PEFT settings as JSON: the most common rank and alpha of each component, and the exceptions."""
    parts: dict[str, dict[str, Adapter]] = defaultdict(dict)
    for module, adapter in lora.items():
        part, _, inner = module.partition(".")
        parts[part][inner] = adapter
    note = {
        f"{part}.{name}": value
        for part, adapters in parts.items()
        for name, value in settings_of_part(adapters).items()
    }
    return json.dumps(dict(sorted(note.items())))


def settings_of_part(part: Lora) -> dict[str, Any]:
    """Return PEFT's settings of adapters: rank and alpha, with those of single layers as patterns."""
    ranks = {module: adapter.rank for module, adapter in part.items()}
    alphas = {module: adapter.stated_alpha for module, adapter in part.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "lora_alpha": alpha,
        "r": rank,
        "alpha_pattern": _exceptions(alphas, alpha),
        "rank_pattern": _exceptions(ranks, rank),
        "target_modules": sorted(ranks),
    }


def _exceptions(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """The values of single layers as PEFT's patterns.

    PEFT takes the first pattern that a name ends in, and Flux has ``proj_out`` and ``….0.proj_out``: long names come
    first, and names that end in another's pattern have their own.
    """
    ends = tuple(f".{name}" for name, value in values.items() if value != common)
    own = [name for name, value in values.items() if value != common or name.endswith(ends)]
    return {name: values[name] for name in sorted(own, key=lambda name: (-len(name), name))}


def _most_common(values: Mapping[str, Any]) -> Any:
    return max(sorted(set(values.values())), key=list(values.values()).count)


# ---------------------------------------------------------------------------------------- merging


class Merged:
    """Adapters merged into a network's weights; removes them exactly by keeping the original weights.

    Subtracting would not be exact: ``(W + d) - d`` is not ``W`` in floating point.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Replace all merged adapters by these, given with their weights.

        Raises `BadRequest` for an adapter of the wrong shape, before any weight changes.
        """
        weights = {f"{module}.weight" for lora, _ in loras for module in lora}
        parameters = self._checked(loras, weights)
        self.clear()
        for name in weights:
            before = parameters[name].detach().clone()
            total = before.float()
            for lora, weight in loras:
                if adapter := lora.get(name.removesuffix(".weight")):
                    total = total + weight * adapter.delta(before.shape).to(total.device)
            self.before[name] = before
            parameters[name].copy_(total.to(before.dtype))

    @torch.no_grad()
    def clear(self) -> None:
        """Restore every weight, bit for bit."""
        parameters = dict(self.model.named_parameters())
        for name, before in self.before.items():
            parameters[name].copy_(before)
        self.before.clear()

    def _checked(self, loras: Sequence[tuple[Lora, float]], weights: Iterable[str]) -> dict[str, nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        if absent := sorted(name for name in weights if name not in parameters):
            raise BadRequest(
                f"the LoRA has {counted(len(absent), 'layer')} that this model does not have ({first_names(absent)})"
            )
        for lora, _ in loras:
            check_shapes(lora, {name: p.shape for name, p in parameters.items()}, "the LoRA is for another model: it")
        return parameters


def check_shapes(lora: Lora, shapes: Mapping[str, torch.Size], where: str) -> None:
    """Raise `BadRequest`, starting with ``where``, for adapters that do not fit these shapes, by parameter name."""
    for module, adapter in lora.items():
        shape = shapes[f"{module}.weight"]
        rows, columns = adapter.up.shape[0], adapter.down.flatten(1).shape[1]
        if rows != shape[0] or columns != shape[1:].numel() or adapter.up.flatten(1).shape[1] != adapter.rank:
            raise BadRequest(f"{where} is {rows}×{columns} at {module}; expected {'×'.join(map(str, shape))}")
