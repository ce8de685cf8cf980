"""The files a recipe needs, listed before anything is opened, and which of them may be opened.

Recipes come from strangers. A recipe may open what ships with Kinema and what is in the Hugging Face cache with the
recorded hash; everything else the user must give. A path in a recipe is only displayed, never opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.bounds import is_regular, printable, quoted
from kinema.cli.verbs import additions
from kinema.schema import BadRequest, Request, flag

CACHED = re.compile(r"(?:.*[\\/])?models--([\w.-]+?)--([\w.-]+)[\\/]snapshots[\\/][^\\/]+(?:[\\/](.+))?")
"""A path in the Hugging Face cache, as the first recipes recorded it."""
MAX_NAME = 40
"""Characters of a name from a recipe in a message with several names."""
MAX_NAMES = 4
"""Names in one message."""


@dataclass(frozen=True)
class Requirement:
    """One file of a recipe: ``what`` it is in messages, its name and hash, and the ``option`` that gives it.

    ``source`` is where it may come from: "ships", "hub", or "user" for a file that only the user has.
    """

    what: str
    name: str
    hash: str | None
    option: str
    source: str = "user"
    value: str = ""
    """Of an input: the request's value that stands for it."""
    key: str = ""
    """Of an input of the request: its key in `Request.files`; of an add-on: its slot."""

    def __str__(self) -> str:
        return f"{self.what} {printable(self.name, MAX_NAME)}{' from Hugging Face' if self.source == 'hub' else ''}"


@dataclass(frozen=True)
class Requirements:
    """All files of a recipe. ``weights`` are those of ``loras``, in the same order."""

    model: Requirement
    added: tuple[Requirement, ...]
    loras: tuple[Requirement, ...]
    weights: tuple[float, ...]
    inputs: tuple[Requirement, ...]
    super_resolution: Requirement | None = None
    """The model of the super-resolution stage, if there is one."""
    image_model: Requirement | None = None
    """The model of the image stage, if there is one."""

    def __iter__(self) -> Iterator[Requirement]:
        others = [each for each in (self.image_model, self.super_resolution) if each]
        return iter((self.model, *self.added, *self.loras, *others, *self.inputs))

    def summary(self) -> str:
        """The list as a note."""
        names = [str(each) for each in self]
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return f"the recipe needs {', '.join(names[:12])}{more}"


@dataclass(frozen=True)
class ReplayInputs:
    """What a replay opens: a model by name, add-ons by slot, LoRAs with weights, requests with the user's files.

    The requests name the models of other stages. ``notes`` list inputs that are, or may be, other files than those
    of the clip.
    """

    model: str
    add: Mapping[str, str | Path]
    loras: Mapping[str | Path, float]
    requests: list[Request]
    notes: Sequence[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------- listing


def requirements_of(recipe: Mapping[str, Any], requests: Sequence[Request]) -> Requirements:
    """The files a recipe (a `checked` one) needs, from its text alone. Raises `BadRequest` for a damaged recipe."""
    from kinema.recipes import base_of

    base = base_of(recipe)
    hashes = weights_of(base)
    model = _from(str(base["model"]), "model", hashes.get(""), "--model PATH")
    added, loras, weights = [], [], []
    for each in base.get("added", ()):
        slot = each["slot"]
        recorded = each.get("hash", hashes.get(slot))
        added.append(replace(_from(each["file"], slot, recorded, f"--add {printable(slot, MAX_NAME)}=PATH"), key=slot))
    for each in base.get("loras", ()):
        option = f"--lora PATH:{each['weight']:g}"
        loras.append(_from(each["file"], "LoRA", each["hash"], option, hub=False))
        weights.append(float(each["weight"]))
    others = {
        field: _from(str(stage["model"]), "model", weights_of(stage).get(""), f"{option} PATH")
        for field, (option, stage) in _other_stages(recipe).items()
    }
    inputs = tuple(_inputs(recipe, requests))
    return Requirements(model, tuple(added), tuple(loras), tuple(weights), inputs, **others)


def _other_stages(recipe: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The stages before and after the base stage: the request's field that names their model, to its option and the
    stage.
    """
    from kinema.recipes import base_of

    stages, base = recipe["stages"], base_of(recipe)
    at = next(number for number, stage in enumerate(stages) if stage is base)
    found = {"image_model": ("--image-model", stages[0])} if at else {}
    return found | ({"super_resolution": ("--super-resolution", stages[-1])} if len(stages) > at + 1 else {})


def weights_of(stage: Mapping[str, Any]) -> dict[str, str]:
    """The hashes in a stage's ``weights`` by slot; the slot of the model's own file is ""."""
    own, *others = str(stage.get("weights") or "").split(" ")
    by_slot = {slot: each for slot, _, each in (other.partition("=") for other in others)}
    return {"": own, **by_slot} if own else by_slot


def _from(name: str, what: str, recorded: Any, option: str, *, hub: bool = True) -> Requirement:
    """A model, add-on or LoRA of this name, with its source."""
    from kinema.system import is_hub_id

    if cached := CACHED.fullmatch(name):
        name = "/".join(part for part in cached.groups() if part)
    begin, slash, _ = name.partition("/")
    ships = name in registry.EMBEDDED or (slash and begin in registry.FAMILIES) if what == "model" else False
    source = "user"
    if ships or name in {*registry.ADD_ONS, *registry.EMBEDDED}:
        source = "ships"
    elif hub and (name in registry.ALIASES or is_hub_id(name)):
        source = "hub"
    else:
        name = registry.file_name(name)
    return Requirement(what, name, recorded if isinstance(recorded, str) and recorded else None, option, source)


def _inputs(recipe: Mapping[str, Any], requests: Sequence[Request]) -> list[Requirement]:
    """The images and clips of all requests, including those in the options of any family."""
    from kinema.provenance import names

    own, extra = recipe.get("inputs") or {}, recipe.get("extra_inputs") or {}
    clips = [request for request in requests if request.image_model is not None] or requests  # not the image stage
    inputs, files_by_key = [], clips[0].files()
    if any(request.files() != files_by_key for request in clips):
        raise BadRequest("the recipe is damaged: its stages have different images or clips")
    for key, value in files_by_key.items():
        name, option = registry.file_name(value), f'"{key}=PATH"' if " " in key else f"{key}=PATH"
        inputs.append(Requirement(key, name, own.get(key), f"--input {option}", value=value, key=key))
    pairs = [(family, request) for request in requests for family in families()]
    files = dict.fromkeys(file for family, request in pairs for file in family.sampling.files(request))
    for value, name in names(files).items():
        option = f"--input {printable(name, MAX_NAME)}=PATH"
        inputs.append(Requirement("input", name, extra.get(value), option, value=value))
    known = {*files, *(each.key for each in inputs)}
    for name in (*own, *extra):
        if name not in known:
            raise BadRequest(f"the recipe is damaged: it has a hash of {quoted(name)}, which its request does not name")
    return inputs


def families() -> list[Any]:
    return [registry.family(name) for name in registry.FAMILIES]


# ------------------------------------------------------------------------------------- collecting


def replay_inputs(
    requirements: Requirements, requests: Sequence[Request], given: Mapping[str, Any], clip: Path
) -> ReplayInputs:
    """What the user gives, what ships and what is cached. Raises `BadRequest` for files that are missing.

    ``given`` are the options of the command line: ``model``, ``image_model``, ``super_resolution``, ``add``, ``lora``,
    ``input``, ``allow_download``.
    """
    from kinema.cli.verbs import lora_weights

    model, adds = given.get("model"), additions(given.get("add", ()))
    models = {name: getattr(requirements, name) for name in ("image_model", "super_resolution")}
    for name, requirement in models.items():
        if given.get(name) and not requirement:
            stage = "image" if name == "image_model" else "super-resolution"
            raise BadRequest(f"{printable(clip.name, MAX_NAME)} has no {stage} stage; omit {flag(name)}")
    inputs = _files(requirements.inputs, given.get("input", ()))
    needed = _on_hub("model", model, "--model PATH") if model else [requirements.model]
    for name, requirement in models.items():
        if requirement:
            other = given.get(name)
            needed += _on_hub("model", other, requirement.option) if other else [requirement]
    needed += [each for each in requirements.added if each.key not in adds]
    needed += [each for slot, name in adds.items() for each in _on_hub(slot, str(name), f"--add {slot}=PATH")]
    needed += [] if "lora" in given else requirements.loras
    needed += [each for each in requirements.inputs if each not in inputs]
    missing = [each for each in needed if not _is_available(each, given)]
    if missing:
        raise BadRequest(_missing(missing, clip))
    own = {each.key: str(path) for each, path in inputs.items() if each.key}
    others = {each.value: str(path) for each, path in inputs.items() if not each.key}
    from kinema.provenance import replaced

    completed = [replaced(request, families(), own, others) for request in requests]
    for name, requirement in models.items():
        if requirement:
            source = given.get(name) or _source_of(requirement)
            completed = [each.with_(**{name: source}) if getattr(each, name) else each for each in completed]
    loras = zip(map(_source_of, requirements.loras), requirements.weights, strict=True)
    return ReplayInputs(
        model or _source_of(requirements.model),
        {**{each.key: _source_of(each) for each in requirements.added}, **adds},
        lora_weights(given.get("lora", ())) or dict(loras),
        completed,
        [note for each, path in inputs.items() for note in _compared(each, path)],
    )


def _on_hub(what: str, name: str, option: str) -> list[Requirement]:
    """The requirement for a name the user gives, if it is a Hugging Face repository; any hash is accepted."""
    requirement = _from(name, what, "any", option)
    return [requirement] if requirement.source == "hub" and not Path(name).exists() else []


def _is_available(requirement: Requirement, given: Mapping[str, Any]) -> bool:
    if requirement.source != "hub":
        return requirement.source == "ships"
    if given.get("allow_download"):
        return True
    from kinema.system import fetch

    try:
        return requirement.hash is not None and bool(fetch(requirement.name, True, given.get("variant")))
    except BadRequest:
        return False


def _source_of(requirement: Requirement) -> str:
    """The name that `kinema.load` opens it by."""
    from kinema.system import HUB

    return HUB + requirement.name if requirement.source == "hub" else requirement.name


def _missing(missing: Sequence[Requirement], clip: Path) -> str:
    """The error message that names missing files and the options that give them."""
    few = missing[:MAX_NAMES]
    names = ", ".join(dict.fromkeys(printable(each.name, MAX_NAME) for each in few))
    more = f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
    options = ", ".join(dict.fromkeys(each.option for each in few))
    hub = ", or pass --allow-download" if any(each.source == "hub" for each in missing) else ""
    it = "it" if len(missing) == 1 else "them"
    return f"replaying {printable(clip.name, MAX_NAME)} needs {names}{more}; give {it} with {options}{hub}"


def _files(inputs: Sequence[Requirement], values: Sequence[str]) -> dict[Requirement, Path]:
    """The files of ``["image=a.png"]`` by input; a path without a name is matched by its file name.

    A file given for one input also serves the other inputs that were the same file.
    """
    found: dict[Requirement, Path] = {}
    for text in values:
        requirement, path = _input(inputs, text)
        if requirement in found:
            raise BadRequest(f"--input {printable(requirement.name, 100)} is given twice; give it once")
        if not (is_regular(path) or path.is_dir()):
            raise BadRequest(f"--input {printable(text, 200)} is not a readable file or folder of frames")
        found[requirement] = path
    for one, path in list(found.items()):
        same = (each for each in inputs if one.hash and (each.name, each.hash) == (one.name, one.hash))
        found |= {each: path for each in same if each not in found}
    return found


def _input(inputs: Sequence[Requirement], text: str) -> tuple[Requirement, Path]:
    """The input that one ``--input`` gives, matched by its key in the request or its file name, and the path."""
    if not inputs:
        raise BadRequest("the clip was generated without input images or clips; omit --input")
    by_name = {alias: each for each in inputs for alias in (each.value, each.name)}
    by_name |= {each.key: each for each in inputs if each.key}
    for name in sorted(by_name, key=len, reverse=True):
        if text.startswith(f"{name}=") and len(text) > len(name) + 1:
            return by_name[name], Path(text[len(name) + 1 :])
    if requirement := by_name.get(registry.file_name(text)):
        return requirement, Path(text)
    options = " or ".join(dict.fromkeys(each.option for each in inputs[:MAX_NAMES]))
    raise BadRequest(f"--input {printable(text, 100)} matches no input of the clip; expected {options}")


def _compared(requirement: Requirement, path: Path) -> list[str]:
    from kinema.provenance import file_hash

    if file_hash(path) == requirement.hash:
        return []
    if requirement.hash is None:
        return [f"the recipe has no hash of {printable(str(path))}, so it may be another file than that of the clip"]
    return [f"{printable(str(path))} is not the file that the clip was generated from"]
