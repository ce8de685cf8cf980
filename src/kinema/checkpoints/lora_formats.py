"""Low-rank adapters (LoRA, Hu et al. 2021) and their kin in all common layouts, merged into a network and removed.

A layer's weight becomes ``W + w · Δ`` with the user's weight ``w``; `lora_kinds` says what Δ is for each kind, and
`lora_names` how tools name the tensors. Alphas are in the file, in its metadata (diffusers) or next to it (PEFT).
Module names may be native or those of an original layout. Removal is exact, bit for bit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema.bounds import first_names
from kinema.checkpoints.files import header, read_tensors, write_tensors
from kinema.checkpoints.lora_kinds import Adapter, Difference, Differences
from kinema.checkpoints.lora_names import BUNDLED, KOHYA, Names, is_lora, split, unsupported  # noqa: F401 (re-exported)
from kinema.checkpoints.lora_parts import Parts
from kinema.checkpoints.lora_rows import Placed, Sum, misfit, rows_of
from kinema.checkpoints.peft import PEFT_NOTE, PeftAlphas
from kinema.checkpoints.signatures import lora_kind
from kinema.schema import BadRequest
from kinema.values import counted

LAYOUTS = ("diffusers", "kohya")


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

    def of(self, difference: Difference) -> Difference:
        """The difference of this module. Raises BadRequest, naming the kind, for one that cannot be split."""
        if isinstance(difference, Adapter):
            return self.of_plain(difference)
        if self.rows is not None or self.how is not None:
            rows = self.rows or (0, difference.size(difference.parameters[0])[0] or 0)
            difference = rows_of(difference, rows, self.how)
        if self.at is None:
            return difference
        if difference.size(difference.parameters[0])[0] is None:
            raise BadRequest(difference.kind)
        return Placed(difference, *self.at)

    def of_plain(self, adapter: Adapter) -> Adapter:
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
"""Plain LoRAs by module name (``unet.down_blocks.0.attentions.0.….to_q``)."""


def layers_of(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The modules that a LoRA can change, by the parameters of a network: those with a weight, norms included."""
    return [name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape)]


# ---------------------------------------------------------------------------------------- reading


def read_lora(
    path: str | Path, modules: Iterable[str], aliases: Mapping[str, Alias] | None = None
) -> dict[str, Difference]:
    """Read a LoRA file of any kind; returns its differences by native module name.

    ``modules`` are all module names of the model, starting with the component; names in the file without a component
    belong to the U-Net. ``aliases`` maps names of another layout (``input_blocks.1.1.…``) to native modules or pieces
    of them. Embeddings in the file are left out (`lora_names.bundled`). Raises `BadRequest` for an unknown module
    (naming the model that the LoRA is for), a kind that is not supported, several kinds for one layer, a missing part,
    mismatched ranks, rank 0, and an alpha that is not a number.
    """
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(BUNDLED)}
    places, unknown = match_keys(tensors, modules, aliases or {})
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, (module, role) in places.items():
        found[module][role] = tensors[key]
    where = Path(path).name
    if unknown:
        raise BadRequest(f"{where} is {lora_kind(header(path))}: {_faults(unknown)}")
    if not found:
        raise BadRequest(f"{where} has no LoRA weights")
    settings, stems = PeftAlphas.read(Path(path)), stems_of(places)
    differences = {}
    for module, parts in found.items():
        stem = stems[module]
        differences[module] = Parts(parts, module, stem, where, settings.strength(stem)).difference()
        if settings.is_dora(stem) and "down" in parts and not {"magnitude", "dora_scale"} & parts.keys():
            raise BadRequest(f"the settings of {where} state a DoRA, but {module} has no magnitudes")
    return moved(differences, aliases or {}, where)


def _faults(unknown: Sequence[str]) -> str:
    if kind := unsupported(unknown):
        return f"{counted(len(unknown), 'tensor')} of it {'is' if len(unknown) == 1 else 'are'} {kind}, not supported"
    return f"{len(unknown)} of its tensors fit no layer of this model ({first_names(unknown)})"


def read_plain(
    path: str | Path, modules: Iterable[str], aliases: Mapping[str, Alias] | None = None
) -> dict[str, Adapter]:
    """Read a LoRA file that has ``up`` and ``down`` matrices only, as layouts can be converted."""
    return plain(read_lora(path, modules, aliases), Path(path).name)


def plain(differences: Differences, where: str) -> dict[str, Adapter]:
    """The same adapters. Raises BadRequest for other kinds, which have no other layout."""
    for module, each in differences.items():
        if not isinstance(each, Adapter):
            raise BadRequest(f"{where} has {each.kind} at {module}; only LoRAs of up and down matrices are converted")
    return {module: each for module, each in differences.items() if isinstance(each, Adapter)}


def moved(differences: Differences, aliases: Mapping[str, Alias], where: str) -> dict[str, Difference]:
    """Differences under the names that ``aliases`` maps theirs to, split and joined where those are pieces.

    From another layout's modules to native ones or back. Raises BadRequest, naming the file, for sizes that do not fit.
    """
    found: dict[str, list[Difference]] = defaultdict(list)
    for module, difference in differences.items():
        alias = aliases.get(module)
        if alias is None or isinstance(alias, str):
            found[module].append(difference)
            continue
        try:
            pieces = [(piece.module, piece.of(difference)) for piece in alias]
        except BadRequest as kind:
            expected = "expected one whose rows are independent: this model arranges the layer's rows differently"
            raise BadRequest(f"{where} has {kind} at {module}; {expected}") from kind
        except (RuntimeError, IndexError, ValueError) as error:
            rows = difference.size(difference.parameters[0])[0]
            raise BadRequest(f"{where} has {rows} rows at {module}, which do not fit this model") from error
        # A layer of which an adapter changes one part: the others have no adapter of their own.
        some = any(not isinstance(part, Adapter) or bool(part.up.any()) for _, part in pieces)
        for name, part in pieces:
            if not some or not isinstance(part, Adapter) or part.up.any():
                found[name].append(part)
    return {module: each[0] if len(each) == 1 else _sum(each, module, where) for module, each in found.items()}


def _sum(parts: Sequence[Difference], module: str, where: str) -> Difference:
    """One difference that equals the sum of several: plain adapters' ranks side by side, each with its scale.

    Those with the same ``down``, the pieces of one that was split, become that one again.
    """
    adapters = [each for each in parts if isinstance(each, Adapter)]
    if len(adapters) < len(parts):
        return Sum(tuple(parts))
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
    """Map keys to (module, role); also returns the keys that match no module.

    The module is native, or the name of a module in another layout that stands for pieces of native ones.
    """
    native = {name: name for name in modules}
    # PEFT's files have one component each and do not name it: the denoiser, or the only text encoder.
    alone = any(name.startswith("text_encoder.") for name in native) and not any("encoder_2." in n for n in native)
    parts = ("unet.", "text_encoder.") if alone else ("unet.",)
    bare = {name.removeprefix(part): name for part in reversed(parts) for name in native if name.startswith(part)}
    named = {name: alias if isinstance(alias, str) else name for name, alias in aliases.items()}
    names = Names(native | bare | named)
    found: dict[str, tuple[str, str]] = {}
    taken: set[tuple[str, str]] = set()
    unknown = []
    for key in keys:
        stem, role = split(key)
        module = names.find(stem) if role else None
        if module is None or (module, role) in taken:
            unknown.append(key)
        else:
            found[key] = (module, role)
            taken.add((module, role))
    return found, unknown


def stems_of(places: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The name in the file of each module that `match_keys` found, which PEFT's settings use too."""
    named = sorted(places.items(), key=lambda item: item[1][1] != "alpha")  # others count where both are there
    return {module: split(key)[0] for key, (module, _) in named}


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
    """LoRAs merged into a network's weights; removes them exactly by keeping the original weights.

    Subtracting would not be exact: ``(W + d) - d`` is not ``W`` in floating point.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Differences, float]]) -> None:
        """Replace all merged LoRAs by these, given with their weights.

        Raises `BadRequest` for a difference of the wrong shape, before any weight changes.
        """
        names = {f"{module}.{name}" for lora, _ in loras for module, each in lora.items() for name in each.parameters}
        parameters = self._checked(loras, names)
        self.clear()
        for name in names:
            before = parameters[name].detach().clone()
            self.before[name] = before
            parameters[name].copy_(merged(name, before, loras).to(before.dtype))

    @torch.no_grad()
    def clear(self) -> None:
        """Restore every weight, bit for bit."""
        parameters = dict(self.model.named_parameters())
        for name, before in self.before.items():
            parameters[name].copy_(before)
        self.before.clear()

    def _checked(self, loras: Sequence[tuple[Differences, float]], names: Iterable[str]) -> dict[str, nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        if absent := sorted(name for name in names if name not in parameters):
            raise BadRequest(
                f"the LoRA has {counted(len(absent), 'layer')} that this model does not have ({first_names(absent)})"
            )
        for lora, _ in loras:
            check_shapes(lora, {name: p.shape for name, p in parameters.items()}, "the LoRA is for another model: it")
        return parameters


def changes(name: str, loras: Sequence[tuple[Differences, float]]) -> list[tuple[Difference, float]]:
    """The differences of one parameter, with their weights."""
    module, _, parameter = name.rpartition(".")
    return [(lora[module], w) for lora, w in loras if module in lora and parameter in lora[module].parameters]


def merged(name: str, before: Tensor, loras: Sequence[tuple[Differences, float]]) -> Tensor:
    """One parameter with LoRAs, in fp32: each difference is that from the parameter without any."""
    base = total = before.float()
    for difference, weight in changes(name, loras):
        total = total + weight * difference.delta(name.rpartition(".")[2], base)
    return total


def check_shapes(lora: Differences, shapes: Mapping[str, torch.Size], where: str) -> None:
    """Raise `BadRequest`, starting with ``where``, for differences that do not fit these shapes, by parameter name."""
    for module, difference in lora.items():
        for parameter in difference.parameters:
            shape = shapes.get(f"{module}.{parameter}")
            if shape is None:
                raise BadRequest(f"{where} changes the {parameter} of {module}, which has none")
            if size := misfit(difference, parameter, torch.Size(shape)):
                raise BadRequest(f"{where} is {size} at {module}; expected {'×'.join(map(str, shape))}")
