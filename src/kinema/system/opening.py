"""Opening a model: from a name, a file, a folder or a hub id to a `System`, by headers and JSON alone.

What is wrong, truncated or foreign fails here, before a byte of the weights is read; the network itself is built and
filled at its first use.
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
from kinema.checkpoints.settings import build_config, checked, readable
from kinema.checkpoints.signatures import refused
from kinema.checkpoints.source import Source
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Note, OnEvent, ignore
from kinema.system.blocks import COMPILED, check_compiler
from kinema.system.family import Family
from kinema.system.files import FoundCheckpoint
from kinema.system.precision import Asked, WeightPolicy, chosen, policy_for
from kinema.system.system import MemoryOptions, System
from kinema.system.weights import AddOn, Weights
from kinema.values import quoted

HUB = "hub:"
"""Before a name that is the hub's, also where a file here is called the same."""


def open_system(
    source: str | Path,
    *,
    preset: str | None = None,
    variant: str | None = None,
    dtype: Asked = torch.float32,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    memory: MemoryOptions | None = None,
    compile: bool = False,
    on_event: OnEvent = ignore,
) -> System:
    """Open a model: an embedded name, a family (with ``preset``, untrained), an alias, a file, a folder or a hub id.

    A name that begins with ``hub:`` is never a file's. ``variant`` picks among a folder's files ("fp16"), or names the
    published model that the weights are ("svd-xt"). With ``offline`` the hub is not asked, now or later.
    ``overrides`` replaces fields of the config by name. ``loras`` are LoRA files and their weights, ``add``
    files in slots of the model (``{"motion": "mm_sd_v15_v2.ckpt"}``). ``dtype`` is float32 unless one is asked for, as
    training and measuring want it; None is what `kinema.load` takes (`precision.chosen`). With ``compile`` the blocks
    of the network are compiled. ``on_event`` gets the licence terms of weights before they are first downloaded. Raises
    BadRequest for anything that is not a model, and where PyTorch cannot compile.
    """
    on = processor.device_of(device)
    if compile:
        check_compiler(on)
    named = str(source)
    if not named.strip():
        raise BadRequest("the model's name is empty; expected a name, a file, a folder or a hub id")
    name, family, config, weights, found = _found(named, preset, variant, offline, on_event)
    wanted = {**_named_beside(named, found), **registry.ADDED.get(named.removeprefix(HUB), {}), **(add or {})}
    added, config, said = _add(family, config, wanted, offline, on_event)
    notes = found.notes
    weights, notes = replace(weights, added=added), (*notes, *said, *([COMPILED] if compile else []))
    if overrides:
        config = _override(family, config, overrides)
    system = System(
        name, family, config, weights, on, _policy(dtype, on, family, config, weights), dict(overrides or {}), notes,
        memory=memory or MemoryOptions(), offline=bool(offline), compiled=compile,
    )  # fmt: skip
    if loras:
        system.use_loras(loras)
    return system


def _found(
    told: str, preset: str | None, variant: str | None, offline: bool | None, on_event: OnEvent
) -> tuple[str, Family, Any, Weights, FoundCheckpoint]:
    """What a recipe calls the model of this name, its family, config and weights, and what was decided for it."""
    name = told.removeprefix(HUB)
    family_name, _, slash_preset = name.partition("/")
    here = _here(told)
    if family_name in registry.FAMILIES and (preset or slash_preset):
        if variant:
            raise BadRequest(f"variant {variant} is of weights, and {family_name}/{preset or slash_preset} has none")
        return (f"{family_name}/{preset or slash_preset}", *_untrained(family_name, preset or slash_preset))
    if preset:
        raise BadRequest(f"preset {preset} is of a family, untrained: {', '.join(registry.FAMILIES)}; not of {name}")
    if name in registry.EMBEDDED:
        return (name, *_opened(registry.weights(registry.EMBEDDED[name][1]), variant))
    if here is not None:
        return (registry.called(here), *_opened(here, variant))
    if name in registry.ALIASES or is_hub_id(name):
        return (name, *_opened(_fetched(name, offline, variant, on_event), variant))
    if name in registry.PARTS:
        slot = registry.PARTS[name]
        option, argument = (f"--lora {name}", "loras") if slot == "lora" else (f"--add {slot}={name}", "add")
        model = next((model for model in registry.EMBEDDED if name.startswith(model)), "one")
        raise BadRequest(f"{name} is no model but a part: give it to {model} as {option} (in Python by {argument})")
    if Path(name).suffix or name.startswith((".", "/")):
        raise BadRequest(f"there is no file {name}; expected a model's file or folder")
    raise BadRequest(registry.unknown("model", name, {*registry.EMBEDDED, *registry.ALIASES, *registry.FAMILIES}))


def _here(told: str | Path) -> Path | None:
    """The file or folder of this name, None where there is none, or where a name on the hub was meant."""
    return None if str(told).startswith(HUB) or not Path(told).exists() else Path(told)


def _named_beside(told: str, found: FoundCheckpoint) -> dict[str, str | Path]:
    """Files beside a model's by slot; by their names on the hub for a file of it, so that a recipe can name them."""
    target = registry.ALIASES.get(told.removeprefix(HUB), told.removeprefix(HUB))
    if _here(told) is not None or not (is_hub_id(target) and Path(target).suffix in files.WEIGHTS):
        return dict(found.beside)
    return {slot: f"{HUB}{target.rpartition('/')[0]}/{path.name}" for slot, path in found.beside.items()}


def _add(
    family: Family, config: Any, add: Mapping[str, str | Path], offline: bool | None, on_event: OnEvent
) -> tuple[tuple[AddOn, ...], Any, tuple[str, ...]]:
    """The additions in the order told, the config with them, and what was decided for them."""
    added: list[AddOn] = []
    notes: list[str] = []
    slots = family.checkpoints.slots
    for slot, named in add.items():
        if slots is None:
            raise BadRequest(f"{family.name} takes nothing in addition to its own file")
        told = registry.part(named)
        if slot.partition(".")[0] not in slots.names:
            raise BadRequest(registry.unknown(f"slot of {family.name}", slot, slots.names))
        here, name = _here(told), str(told).removeprefix(HUB)
        if here is None and not is_hub_id(name):
            raise BadRequest(f"there is no file {told} to add as {slot}{registry.near_part(told, slot)}")
        source = Source(_fetched(name, offline, None, on_event) if here is None else here)
        with readable(str(source.path)):
            found = slots.open(config, slot, source)
        config = checked(found.config, f"the config with {slot}")
        added.append(AddOn(slot, source, found.parts, name if here is None else "", found.outside))
        notes += found.notes
    return tuple(added), config, tuple(notes)


def _policy(asked: Asked, device: torch.device, family: Family, config: Any, weights: Weights) -> WeightPolicy:
    """As asked for, or as this model and this device have it; headers are read only where a GPU asks for them."""
    fits = family.sampling.defaults(config).fits_float16
    if isinstance(asked, torch.dtype):
        return policy_for(asked, device, fits_float16=fits)
    if asked not in (None, "auto"):
        raise BadRequest(f'dtype is {quoted(asked)}; expected a torch.dtype, "auto" or None')
    stored = None if device.type == "cpu" else weights.stored
    return chosen(device, stored, auto=asked == "auto", fits_float16=fits)


def is_hub_id(name: str) -> bool:
    """``owner/name``, or ``owner/name/file`` of a weight file; a repository's name may have points in it."""
    parts = name.split("/")
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        return False
    return len(parts) > 2 if Path(name).suffix in files.WEIGHTS else len(parts) == 2


def _fetched(name: str, offline: bool | None, variant: str | None, on_event: OnEvent) -> Path:
    _say_terms(name, offline, on_event)
    try:
        return fetched(name, offline, variant)
    except BadRequest as error:
        if name in registry.ALIASES:
            raise
        here = f"there is no file {name} here" if name.count("/") > 1 else f"{name.partition('/')[0]} is no family here"
        raise BadRequest(f"{error} ({here}, so a hub name was meant)") from error


def _say_terms(name: str, offline: bool | None, on_event: OnEvent) -> None:
    """The licence terms of the first files that are downloaded from a repository: none of its files is here yet."""
    repository = "/".join(registry.ALIASES.get(name, name).split("/")[:2])
    if offline or repository not in registry.TERMS:
        return
    try:
        hub.fetch(repository, offline=True)
    except BadRequest:
        on_event(Note(f"{repository}: {registry.TERMS[repository]}"))


def fetched(name: str, offline: bool | None, variant: str | None) -> Path:
    """Where a model of the hub lies, by its name there or its alias: `hub.fetch_model`, which says what is raised."""
    return hub.fetch_model(registry.ALIASES.get(name, name), offline=offline, variant=_split(variant)[0])


def _untrained(family_name: str, preset: str) -> tuple[Family, Any, Weights, FoundCheckpoint]:
    family: Family = registry.family(family_name)
    if preset not in family.presets:
        raise BadRequest(registry.unknown(f"preset of {family_name}", preset, family.presets))
    return family, family.presets[preset], Weights(seed=0), FoundCheckpoint(family.presets[preset])


def _split(variant: str | None) -> tuple[str | None, str | None]:
    """(which files of a folder, which published model): a variant that names a preset is a model."""
    presets = {name for family in registry.FAMILIES for name in registry.family(family).presets} if variant else ()
    return (None, variant) if variant in presets else (variant, None)


def _opened(path: Path, variant: str | None) -> tuple[Family, Any, Weights, FoundCheckpoint]:
    """Recognise a file or folder: by the note ``kinema train`` left in it, else by what a family sees in it."""
    files_of, model = _split(variant)
    source = Source(path, files_of, model)
    weights = Weights(path, variant=files_of, model=model)
    if told := source.metadata.get("kinema"):
        if model:
            raise BadRequest(f"{path} says itself which model it is; leave out variant {model}")
        family, config = family_of(told, str(path))
        return family, config, weights, FoundCheckpoint(config)
    likely = registry.PIPELINES.get(source.pipeline)  # asked first: others need not even be imported
    for name in sorted(registry.FAMILIES, key=lambda name: name != likely):
        family = registry.family(name)
        with readable(str(path)):
            found = family.checkpoints.recognise(source)
        if found is not None:
            return (
                family,
                checked(found.config, f"the config of {path}"),
                replace(weights, own=False, parts=found.parts),
                found,
            )
    hint = "; name a model, and this with --lora" if is_lora(source.header) else ""
    raise BadRequest(f"{path} is not a model of any family we know: {refused(source)}{hint}")


def family_of(note: str, where: str) -> tuple[Family, Any]:
    """The family and the config that the note in a file of ours tells. Raises BadRequest for one that is damaged."""
    told = bounds.from_json(note, f"the note in {where}")
    if not (isinstance(told, Mapping) and isinstance(told.get("family"), str) and "config" in told):
        raise BadRequest(f"{where} has a damaged note of its family and config; expected one of kinema's")
    family: Family = registry.family(told["family"])
    return family, family.from_json(told["config"])


def _override(family: Family, config: Any, overrides: Mapping[str, Any]) -> Any:
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    config = build_config(type(config), {**own, **overrides}, f"overrides of {family.name}")
    with on_meta():  # what cannot be built is refused now, not when the network is first used
        family.build(config)
    return config
