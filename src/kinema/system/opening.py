"""Opening a model: from a name, file, folder or hub id to a `System`, reading only headers and JSON.

Damaged, truncated and unsupported files are rejected here, before any weights are read; the network is built and its
weights loaded on first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from kinema import bounds, processor, registry
from kinema.checkpoints import files, hub
from kinema.checkpoints.lora_formats import is_lora
from kinema.checkpoints.settings import build_config, naming_faults, validated
from kinema.checkpoints.signatures import describe_unsupported
from kinema.checkpoints.source import Source
from kinema.events import Note, OnEvent, ignore
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system.blocks import COMPILED, check_compiler
from kinema.system.family import Family
from kinema.system.files import FoundCheckpoint
from kinema.system.precision import DTypeOption, WeightPolicy, default_policy, policy_for
from kinema.system.system import MemoryOptions, System
from kinema.system.weights import AddOn, Weights
from kinema.values import quoted

HUB = "hub:"
"""Prefix that marks a hub id, even if a local file has the same name."""


def open_system(
    source: str | Path,
    *,
    preset: str | None = None,
    variant: str | None = None,
    dtype: DTypeOption = torch.float32,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    memory: MemoryOptions | None = None,
    compile: bool = False,
    on_event: OnEvent = ignore,
) -> System:
    """Open a model: a shipped name, a family (with ``preset``, untrained), an alias, a file, a folder or a hub id.

    A name with the prefix ``hub:`` is never taken for a file. ``variant`` picks among a folder's files ("fp16") or
    names the published model of ambiguous weights ("svd-xt"). ``offline`` disables downloads, now and later.
    ``overrides`` replaces config fields by name. ``loras`` maps LoRA files to their weights, ``add`` slots to add-on
    files (``{"motion": "mm_sd_v15_v2.ckpt"}``). ``dtype`` defaults to float32, for training and evaluation; None
    selects the precision that `kinema.load` uses (`precision.chosen`). ``compile`` compiles the network's blocks.
    ``on_event`` receives the licence terms of weights before their first download. Raises BadRequest for anything that
    is not a model, and if PyTorch cannot compile on this machine.
    """
    target = processor.device_of(device)
    if compile:
        check_compiler(target)
    given = str(source)
    if not given.strip():
        raise BadRequest("the model's name is empty; expected a name, a file, a folder or a hub id")
    name, family, config, weights, found = _resolve(given, preset, variant, offline, on_event)
    slots = {**_neighbours(given, found), **registry.DEFAULT_ADD_ONS.get(given.removeprefix(HUB), {}), **(add or {})}
    added, config, more = _add(family, config, slots, offline, on_event)
    weights, notes = replace(weights, added=added), (*found.notes, *more, *([COMPILED] if compile else []))
    if overrides:
        config = _override(family, config, overrides)
    policy = _policy(dtype, target, family, config, weights)
    system = System(
        name, family, config, weights, target, policy, dict(overrides or {}), notes,
        memory=memory or MemoryOptions(), offline=bool(offline), compiled=compile,
    )  # fmt: skip
    if loras:
        system.use_loras(loras)
    return system


def _resolve(
    given: str, preset: str | None, variant: str | None, offline: bool | None, on_event: OnEvent
) -> tuple[str, Family, Any, Weights, FoundCheckpoint]:
    """Return the model's name as recipes record it, its family, config and weights, and what was found with them."""
    name = given.removeprefix(HUB)
    family_name, _, slash_preset = name.partition("/")
    here = _local(given)
    if family_name in registry.FAMILIES and (preset or slash_preset):
        if variant:
            raise BadRequest(
                f"variant {variant} selects weight files, but {family_name}/{preset or slash_preset} is untrained; "
                "leave out the variant"
            )
        return (f"{family_name}/{preset or slash_preset}", *_untrained(family_name, preset or slash_preset))
    if preset:
        raise BadRequest(f"preset {preset} applies only to a family ({', '.join(registry.FAMILIES)}), not to {name}")
    if name in registry.EMBEDDED:
        return (name, *_recognised(registry.weight_file(registry.EMBEDDED[name][1]), variant))
    if here is not None:
        return (registry.recipe_name(here), *_recognised(here, variant))
    if name in registry.ALIASES or is_hub_id(name):
        return (name, *_recognised(_fetched(name, offline, variant, on_event), variant))
    if name in registry.ADD_ONS:
        slot = registry.ADD_ONS[name]
        option, argument = (f"--lora {name}", "loras") if slot == "lora" else (f"--add {slot}={name}", "add")
        model = next((model for model in registry.EMBEDDED if name.startswith(model)), "one")
        raise BadRequest(
            f"{name} is an add-on, not a model; pass it to {model} as {option} (in Python: the argument {argument})"
        )
    if Path(name).suffix or name.startswith((".", "/")):
        raise BadRequest(f"there is no file {name}; expected a model's file or folder")
    raise BadRequest(registry.unknown_name("model", name, {*registry.EMBEDDED, *registry.ALIASES, *registry.FAMILIES}))


def _local(given: str | Path) -> Path | None:
    """The local file or folder of this name; None if it does not exist or a hub id was given explicitly."""
    return None if str(given).startswith(HUB) or not Path(given).exists() else Path(given)


def _neighbours(given: str, found: FoundCheckpoint) -> dict[str, str | Path]:
    """Files next to a model's by slot; by their names on the hub for a file of it, so that a recipe can name them."""
    target = registry.ALIASES.get(given.removeprefix(HUB), given.removeprefix(HUB))
    if _local(given) is not None or not (is_hub_id(target) and Path(target).suffix in files.WEIGHTS):
        return dict(found.beside)
    return {slot: f"{HUB}{target.rpartition('/')[0]}/{path.name}" for slot, path in found.beside.items()}


def _add(
    family: Family, config: Any, add: Mapping[str, str | Path], offline: bool | None, on_event: OnEvent
) -> tuple[tuple[AddOn, ...], Any, tuple[str, ...]]:
    """Return the add-ons in the given order, the config extended by them, and notes on assumptions made."""
    added: list[AddOn] = []
    notes: list[str] = []
    slots = family.checkpoints.slots
    for slot, given in add.items():
        if slots is None:
            raise BadRequest(f"{family.name} does not support add-ons: leave out --add {slot}")
        part = registry.add_on_file(given)
        if slot.partition(".")[0] not in slots.names:
            raise BadRequest(registry.unknown_name(f"slot of {family.name}", slot, slots.names))
        here, name = _local(part), str(part).removeprefix(HUB)
        if here is None and not is_hub_id(name):
            raise BadRequest(f"there is no file {part} to add as {slot}{registry.similar_add_ons(part, slot)}")
        source = Source(_fetched(name, offline, None, on_event) if here is None else here)
        with naming_faults(str(source.path)):
            found = slots.open(config, slot, source)
        config = validated(found.config, f"the config with {slot}")
        added.append(AddOn(slot, source, found.parts, name if here is None else "", found.outside))
        notes += (*found.notes, *source.notes)
    return tuple(added), config, tuple(notes)


def _policy(asked: DTypeOption, device: torch.device, family: Family, config: Any, weights: Weights) -> WeightPolicy:
    """The requested precision's policy, or the default of this model and device."""
    fits = family.sampling.defaults(config).fits_float16
    if isinstance(asked, torch.dtype):
        return policy_for(asked, device, fits_float16=fits)
    if asked not in (None, "auto"):
        raise BadRequest(f'dtype is {quoted(asked)}; expected a torch.dtype, "auto" or None')
    stored = None if device.type == "cpu" else weights.stored  # a CPU's default does not depend on the file
    return default_policy(device, stored, auto=asked == "auto", fits_float16=fits)


def is_hub_id(name: str) -> bool:
    """Whether a name is ``owner/name`` or ``owner/name/file`` of a weight file; repository names may contain dots."""
    parts = name.split("/")
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        return False
    return len(parts) > 2 if Path(name).suffix in files.WEIGHTS else len(parts) == 2


def _fetched(name: str, offline: bool | None, variant: str | None, on_event: OnEvent) -> Path:
    _say_terms(name, offline, on_event)
    try:
        return fetch(name, offline, variant)
    except BadRequest as error:
        if name in registry.ALIASES:
            raise
        owner = name.partition("/")[0]
        reason = f"there is no file {name}" if name.count("/") > 1 else f"there is no family {owner}"
        raise BadRequest(f"{error} ({reason}, so {name} was taken for a hub id)") from error


def _say_terms(name: str, offline: bool | None, on_event: OnEvent) -> None:
    """The licence terms of the first files that are downloaded from a repository: none of its files is here yet."""
    repository = "/".join(registry.ALIASES.get(name, name).split("/")[:2])
    if offline or repository not in registry.TERMS:
        return
    try:
        hub.fetch(repository, offline=True)
    except BadRequest:
        on_event(Note(f"{repository}: {registry.TERMS[repository]}"))


def fetch(name: str, offline: bool | None, variant: str | None) -> Path:
    """Return the local path of a model given by hub id or alias, downloading it if needed; see `hub.fetch_model`."""
    return hub.fetch_model(registry.ALIASES.get(name, name), offline=offline, variant=_split(variant)[0])


def _untrained(family_name: str, preset: str) -> tuple[Family, Any, Weights, FoundCheckpoint]:
    family: Family = registry.family(family_name)
    if preset not in family.presets:
        raise BadRequest(registry.unknown_name(f"preset of {family_name}", preset, family.presets))
    return family, family.presets[preset], Weights(seed=0), FoundCheckpoint(family.presets[preset])


def _split(variant: str | None) -> tuple[str | None, str | None]:
    """Return (variant of a folder's files, published model): a variant that is a preset's name means a model."""
    presets = {name for family in registry.FAMILIES for name in registry.family(family).presets} if variant else ()
    return (None, variant) if variant in presets else (variant, None)


def _recognised(path: Path, variant: str | None) -> tuple[Family, Any, Weights, FoundCheckpoint]:
    """Recognise a file or folder by the metadata that ``kinema train`` writes, else by asking each family."""
    file_variant, model = _split(variant)
    if file_variant and path.is_file():
        raise BadRequest(f"variant {file_variant} selects files of a folder, and {path.name} is a file: leave it out")
    source = Source(path, file_variant, model)
    weights = Weights(path, variant=file_variant, model=model)
    if note := source.metadata.get("kinema"):
        if model:
            raise BadRequest(f"{path.name} states its model itself: leave out variant {model}")
        family, config = parse_metadata(note, str(path))
        return family, config, weights, FoundCheckpoint(config)
    likely = registry.PIPELINES.get(source.pipeline)  # asked first, so that other families need not be imported
    for name in sorted(registry.FAMILIES, key=lambda name: name != likely):
        family = registry.family(name)
        with naming_faults(str(path)):
            found = family.checkpoints.recognise(source)
        if found is not None:
            return (
                family,
                validated(found.config, f"the config of {path}"),
                replace(weights, own=False, parts=found.parts),
                replace(found, notes=(*found.notes, *source.notes)),
            )
    hint = "; name a model and pass this file with --lora" if is_lora(source.header) else ""
    raise BadRequest(f"{path} is not a supported model: {describe_unsupported(source)}{hint}")


def parse_metadata(note: str, where: str) -> tuple[Family, Any]:
    """Parse the kinema metadata of a weight file into family and config. Raises BadRequest if it is damaged."""
    data = bounds.from_json(note, f"the kinema metadata of {where}")
    if not (isinstance(data, Mapping) and isinstance(data.get("family"), str) and "config" in data):
        raise BadRequest(f"the kinema metadata of {where} is damaged; expected a family and its config")
    family: Family = registry.family(data["family"])
    return family, family.from_json(data["config"])


def _override(family: Family, config: Any, overrides: Mapping[str, Any]) -> Any:
    current = {f.name: getattr(config, f.name) for f in fields(config)}
    config = build_config(type(config), {**current, **overrides}, f"overrides of {family.name}")
    with on_meta():  # rejects configs that cannot be built now rather than on first use
        family.build(config)
    return config
