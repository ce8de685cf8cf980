"""Low-rank adapters (Hu et al. 2021) in the layouts people have, merged into a network and taken out exactly.

A layer's weight becomes ``W + w · (alpha / rank) · up @ down``; ``w`` is the user's. Layouts:
kohya ``lora_unet_{module with _ for .}.lora_down.weight`` and ``.alpha``; diffusers and peft
``unet.{module}.lora_A.weight``, alphas in the file's metadata; older diffusers ``.lora.down.weight`` and
``.processor.to_q_lora.down.weight``. Modules may carry our names or those of an original layout.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema.bounds import few, from_json
from kinema.checkpoints.files import header, metadata, read_tensors, write_tensors
from kinema.checkpoints.signatures import lora_kind
from kinema.schema import BadRequest

LAYOUTS = ("diffusers", "kohya")
PEFT_NOTE = "lora_adapter_metadata"
"""Key of the file's metadata under which diffusers keeps the settings of peft."""

KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
"""Kohya's prefix to the part of a model; SDXL's files number their two text encoders."""
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
    """One layer's ``down`` (rank × in…) and ``up`` (out × rank…); ``alpha`` None means equal to the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def delta(self, shape: torch.Size) -> Tensor:
        """What is added to a weight of this shape, in fp32. For a convolution ``up`` is 1×1."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.scale * product).reshape(shape)


Lora = Mapping[str, Adapter]
"""Module name (``unet.down_blocks.0.attentions.0.….to_q``) to its adapter."""


def is_lora(names: Iterable[str]) -> bool:
    return any(name.endswith(end) for name in names for end in _ENDS if end != ".alpha")


# ---------------------------------------------------------------------------------------- reading


def read_lora(path: str | Path, modules: Iterable[str], aliases: Mapping[str, str] | None = None) -> dict[str, Adapter]:
    """A LoRA file by our module names.

    ``modules`` are all names that there are, part of the model first; names without a part are the U-Net's.
    ``aliases`` are names of an original layout (``input_blocks.1.1.…``) to ours. Raises `BadRequest` that names
    what cannot be used: a module that is not there (and of what model the LoRA is), a tensor that is no part of
    a LoRA (LoCon, DoRA), half a pair, ranks that disagree.
    """
    tensors = read_tensors(path)
    places, unknown = placed(tensors, modules, aliases or {})
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, (module, role) in places.items():
        found[module][role] = tensors[key]
    where = Path(path).name
    if unknown:
        faults = f"{len(unknown)} of its tensors fit no layer of this model ({few(unknown)})"
        raise BadRequest(f"{where} is {lora_kind(header(path))}: {faults}")
    told = PeftAlphas(metadata(path), where)
    made = {module: _adapter(parts, module, told, where) for module, parts in found.items()}
    if not made:
        raise BadRequest(f"{where} holds no LoRA")
    return made


def placed(
    keys: Iterable[str], modules: Iterable[str], aliases: Mapping[str, str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Each tensor's module of ours and what it is there ("down", "up", "alpha"); and the names that fit none."""
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


def _split(key: str) -> tuple[str, str]:
    for end, role in _ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end), role
    return key, ""


class _Names:
    """Finds our module of a name in any layout."""

    def __init__(self, modules: Iterable[str], aliases: Mapping[str, str]) -> None:
        ours = {name: name for name in modules}
        bare = {name.removeprefix("unet."): name for name in ours if name.startswith("unet.")}
        self.dotted = ours | bare | dict(aliases)
        self.flat = {name.replace(".", "_"): module for name, module in self.dotted.items()}

    def find(self, stem: str) -> str | None:
        for prefix, part in KOHYA.items():
            if stem.startswith(prefix):
                inner = stem.removeprefix(prefix)
                return self.flat.get(f"{part}_{inner}") or (self.flat.get(inner) if part == "unet" else None)
        # Older diffusers keeps the four projections beside each other in the attention processor.
        stem = re.sub(r"\.processor\.(to_[qkv]|0|proj)$", r".\1", stem)
        stem = re.sub(r"\.processor\.to_out$", ".to_out.0", stem)
        return self.dotted.get(stem.removeprefix("base_model.model."))


class PeftAlphas:
    """The alphas that peft's settings in a file's metadata give, by part: one for all, and patterns for some."""

    def __init__(self, told: Mapping[str, str], where: str) -> None:
        self.default: dict[str, float] = {}
        self.patterns: dict[str, dict[str, float]] = defaultdict(dict)
        try:
            for key, value in from_json(told.get(PEFT_NOTE, "{}"), f"the settings of peft in {where}").items():
                part, _, setting = key.rpartition(".")
                if setting == "lora_alpha":
                    self.default[part] = float(value)
                elif setting == "alpha_pattern":
                    self.patterns[part] = {str(name): float(alpha) for name, alpha in (value or {}).items()}
                elif setting in ("use_rslora", "use_dora") and value:
                    raise BadRequest(f"{where} is a rank-stabilised or weight-decomposed LoRA; expected a plain one")
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(f"{where} has damaged settings of peft in its metadata") from error

    def of(self, module: str) -> float | None:
        part, _, inner = module.partition(".")
        part = part if part in self.default or part in self.patterns else ""
        patterns = self.patterns.get(part, {})
        ends = (alpha for name, alpha in patterns.items() if inner.endswith(f".{name}"))
        return patterns.get(inner, next(ends, self.default.get(part)))


def _adapter(parts: dict[str, Tensor], module: str, told: PeftAlphas, where: str) -> Adapter:
    if absent := [role for role in ("down", "up") if role not in parts]:
        raise BadRequest(f"{where} has half a LoRA at {module}: its {absent[0]} is missing")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
        raise BadRequest(f"{where} has ranks that disagree at {module}: {list(down.shape)} and {list(up.shape)}")
    if not (down.is_floating_point() and up.is_floating_point()):
        raise BadRequest(f"{where} holds {down.dtype} at {module}; expected floating-point numbers")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise BadRequest(f"{where} has an alpha of {alpha.numel()} numbers at {module}; expected one")
    return Adapter(down, up, float(alpha) if alpha is not None else told.of(module))


# ---------------------------------------------------------------------------------------- writing


def write_lora(path: str | Path, lora: Lora, layout: str) -> None:
    """A LoRA file that diffusers (peft) or kohya's tools read; alphas are kept in both."""
    tensors, told = laid_out(lora, layout)
    write_tensors(path, tensors, told)


def laid_out(lora: Lora, layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a LoRA file."""
    if layout not in LAYOUTS:
        raise BadRequest(f"there is no LoRA layout {layout!r}; expected {' or '.join(LAYOUTS)}")
    if layout == "kohya":
        return kohya(lora), {"ss_network_module": "networks.lora"}
    return diffusers(lora), {"format": "pt", PEFT_NOTE: peft_note(lora)}


def kohya(lora: Lora) -> dict[str, Tensor]:
    """kohya's names and tensors; every adapter says its alpha."""
    prefixes = {part: prefix for prefix, part in reversed(KOHYA.items())}
    if any(module.startswith("text_encoder_2.") for module in lora):
        prefixes["text_encoder"] = "lora_te1_"
    made = {}
    for module, adapter in lora.items():
        part, _, inner = module.partition(".")
        stem = (prefixes[part] + inner if part in prefixes else "lora_unet_" + module).replace(".", "_")
        made[f"{stem}.lora_down.weight"], made[f"{stem}.lora_up.weight"] = adapter.down, adapter.up
        alpha = adapter.rank if adapter.alpha is None else adapter.alpha
        made[f"{stem}.alpha"] = torch.tensor(float(alpha), dtype=adapter.down.dtype)
    return made


def diffusers(lora: Lora) -> dict[str, Tensor]:
    """The names and tensors of diffusers; the alphas go into `peft_note`."""
    made = {}
    for module, adapter in lora.items():
        made[f"{module}.lora_A.weight"], made[f"{module}.lora_B.weight"] = adapter.down, adapter.up
    return made


def peft_note(lora: Lora) -> str:
    """peft's settings as diffusers keeps them, for each part: the commonest rank and alpha, and what differs."""
    parts: dict[str, dict[str, Adapter]] = defaultdict(dict)
    for module, adapter in lora.items():
        part, _, inner = module.partition(".")
        parts[part][inner] = adapter
    note = {f"{part}.{name}": value for part, held in parts.items() for name, value in _settings(held).items()}
    return json.dumps(note, sort_keys=True)


def _settings(part: Lora) -> dict[str, Any]:
    ranks = {module: adapter.rank for module, adapter in part.items()}
    alphas = {module: a.rank if a.alpha is None else a.alpha for module, a in part.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "lora_alpha": alpha,
        "r": rank,
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "target_modules": sorted(ranks),
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return max(sorted(set(values.values())), key=list(values.values()).count)


# ---------------------------------------------------------------------------------------- merging


class Merged:
    """Adapters in a network's weights. The weights before are kept, so taking them out is exact.

    Adding and subtracting would not be: ``(W + d) - d`` is not ``W`` in floating point.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Have exactly these in the network, each with its weight, whatever was there before.

        Raises `BadRequest` for an adapter of another shape, before any weight is touched.
        """
        weights = {f"{module}.weight" for lora, _ in loras for module in lora}
        held = self._checked(loras, weights)
        self.clear()
        for name in weights:
            before = held[name].detach().clone()
            total = before.float()
            for lora, weight in loras:
                if adapter := lora.get(name.removesuffix(".weight")):
                    total = total + weight * adapter.delta(before.shape).to(total.device)
            self.before[name] = before
            held[name].copy_(total.to(before.dtype))

    @torch.no_grad()
    def clear(self) -> None:
        """Every weight as it was before the first `set`, bit for bit."""
        held = dict(self.model.named_parameters())
        for name, before in self.before.items():
            held[name].copy_(before)
        self.before.clear()

    def _checked(self, loras: Sequence[tuple[Lora, float]], weights: Iterable[str]) -> dict[str, nn.Parameter]:
        held = dict(self.model.named_parameters())
        if absent := sorted(name for name in weights if name not in held):
            raise BadRequest(f"the LoRA has {len(absent)} layers that this model lacks ({few(absent)})")
        for lora, _ in loras:
            check_shapes(lora, {name: p.shape for name, p in held.items()}, "the LoRA is for another model: it")
        return held


def check_shapes(lora: Lora, shapes: Mapping[str, torch.Size], where: str) -> None:
    """Refuse adapters that do not fit weights of these shapes, by parameter; ``where`` begins the sentence."""
    for module, adapter in lora.items():
        shape = shapes[f"{module}.weight"]
        rows, columns = adapter.up.shape[0], adapter.down.flatten(1).shape[1]
        if rows != shape[0] or columns != shape[1:].numel() or adapter.up.flatten(1).shape[1] != adapter.rank:
            told = f"{rows}×{columns} at {module}, where this model has {'×'.join(map(str, shape))}"
            raise BadRequest(f"{where} is {told}")
