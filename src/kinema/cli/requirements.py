"""What a recipe wants to be made again, listed before anything is opened, and what of that may be opened.

Recipes come from strangers. One opens what ships with Kinema, what lies in the hub's cache with the hash that it
tells, and what the user gives: a path in it is a name to show, and is never opened.
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
from kinema.schema import BadRequest, Request

CACHED = re.compile(r"(?:.*[\\/])?models--([\w.-]+?)--([\w.-]+)[\\/]snapshots[\\/][^\\/]+(?:[\\/](.+))?")
"""A path in the hub's cache, which recipes held before they held names."""
TOLD = 40
"""Characters of a stranger's name in a sentence that has several."""
MOST = 4
"""Names in such a sentence."""


@dataclass(frozen=True)
class Requirement:
    """One thing that a recipe wants: ``what`` it is for people, its ``name`` and hash, and the option that gives it.

    ``source`` is where it may come from: "ships", "hub", or "user" for what only the user has.
    """

    what: str
    name: str
    hash: str | None
    option: str
    source: str = "user"
    value: str = ""
    """Of an input, what the request holds in its place."""
    key: str = ""
    """Of an input of the request's own, what `Request.files` calls it; of an addition, its slot."""

    def __str__(self) -> str:
        return f"{self.what} {printable(self.name, TOLD)}{' from the hub' if self.source == 'hub' else ''}"


@dataclass(frozen=True)
class Requirements:
    """All that a recipe wants; ``weights`` of its LoRAs by name are in their order."""

    model: Requirement
    added: tuple[Requirement, ...]
    loras: tuple[Requirement, ...]
    weights: tuple[float, ...]
    inputs: tuple[Requirement, ...]
    upper: Requirement | None = None
    """The model of the second stage, where there is one."""

    def __iter__(self) -> Iterator[Requirement]:
        return iter((self.model, *self.added, *self.loras, *([self.upper] if self.upper else []), *self.inputs))

    def told(self) -> str:
        """The list, for a note."""
        every = [str(want) for want in self]
        more = f" and {len(every) - 12} more" if len(every) > 12 else ""
        return f"the recipe wants {', '.join(every[:12])}{more}"


@dataclass(frozen=True)
class ReplayInputs:
    """What will be opened: a model by name, additions by slot, LoRAs with weights, and requests with the user's files.

    The request of the second stage names its model.

    ``notes`` say which inputs are not those of the clip, or may not be.
    """

    model: str
    add: Mapping[str, str | Path]
    loras: Mapping[str | Path, float]
    requests: list[Request]
    notes: Sequence[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------- listing


def wants_of(recipe: Mapping[str, Any], requests: Sequence[Request]) -> Requirements:
    """What a recipe (a `checked` one) wants, by its own words alone. Raises `BadRequest` where they are damaged."""
    base, *others = recipe["stages"]
    hashes = weights_of(base)
    model = _from(str(base["model"]), "model", hashes.get(""), "--model PATH")
    added, loras, weights = [], [], []
    for each in base.get("added", ()):
        slot = each["slot"]
        told = each.get("hash", hashes.get(slot))
        added.append(replace(_from(each["file"], slot, told, f"--add {printable(slot, TOLD)}=PATH"), key=slot))
    for each in base.get("loras", ()):
        option = f"--lora PATH:{each['weight']:g}"
        loras.append(_from(each["file"], "LoRA", each["hash"], option, hub=False))
        weights.append(float(each["weight"]))
    uppers = [
        _from(str(stage["model"]), "model", weights_of(stage).get(""), "--super-resolution PATH") for stage in others
    ]
    inputs = tuple(_inputs(recipe, requests))
    return Requirements(model, tuple(added), tuple(loras), tuple(weights), inputs, *uppers)


def weights_of(stage: Mapping[str, Any]) -> dict[str, str]:
    """The hashes in a stage's ``weights`` by slot, "" for those of the model's own file."""
    own, *others = str(stage.get("weights") or "").split(" ")
    told = {slot: each for slot, _, each in (other.partition("=") for other in others)}
    return {"": own, **told} if own else told


def _from(name: str, what: str, told: Any, option: str, *, hub: bool = True) -> Requirement:
    """A model, an addition or a LoRA of this name, and where it comes from."""
    from kinema.system import is_hub_id

    if cached := CACHED.fullmatch(name):
        name = "/".join(part for part in cached.groups() if part)
    begin, slash, _ = name.partition("/")
    ships = name in registry.EMBEDDED or (slash and begin in registry.FAMILIES) if what == "model" else False
    source = "user"
    if ships or name in registry.PARTS:
        source = "ships"
    elif hub and (name in registry.ALIASES or is_hub_id(name)):
        source = "hub"
    else:
        name = registry.file_name(name)
    return Requirement(what, name, told if isinstance(told, str) and told else None, option, source)


def _inputs(recipe: Mapping[str, Any], requests: Sequence[Request]) -> list[Requirement]:
    """The pictures and clips of all requests and of the options of any family: none can hide behind another's."""
    from kinema.provenance import names

    own, extra = recipe.get("inputs") or {}, recipe.get("extra_inputs") or {}
    wants, told = [], requests[0].files()
    if any(request.files() != told for request in requests):
        raise BadRequest("the recipe is damaged: its stages are of other pictures or clips")
    for key, value in told.items():
        name, option = registry.file_name(value), f'"{key}=PATH"' if " " in key else f"{key}=PATH"
        wants.append(Requirement(key, name, own.get(key), f"--input {option}", value=value, key=key))
    asked = [(family, request) for request in requests for family in families()]
    files = dict.fromkeys(file for family, request in asked for file in family.sampling.files(request))
    for value, name in names(files).items():
        wants.append(Requirement("input", name, extra.get(value), f"--input {printable(name, TOLD)}=PATH", value=value))
    known = {*files, *(want.key for want in wants)}
    for name in (*own, *extra):
        if name not in known:
            raise BadRequest(
                f"the recipe is damaged: it has a hash of {quoted(name)}, and its request names no such file"
            )
    return wants


def families() -> list[Any]:
    return [registry.family(name) for name in registry.FAMILIES]


# ----------------------------------------------------------------------------------------- giving


def given(wants: Requirements, requests: Sequence[Request], told: Mapping[str, Any], clip: Path) -> ReplayInputs:
    """What the user gives, and what ships or is in the hub's cache; one sentence of what is missing then.

    ``told`` are the options of the command line: ``model``, ``super_resolution``, ``add``, ``lora``, ``input``,
    ``allow_download``.
    """
    from kinema.cli.verbs import lora_weights

    model, upper, adds = told.get("model"), told.get("super_resolution"), additions(told.get("add", ()))
    if upper and not wants.upper:
        raise BadRequest(f"{printable(clip.name, TOLD)} was made in one stage: leave --super-resolution out")
    inputs = _files(wants.inputs, told.get("input", ()))
    need = _on_hub("model", model, "--model PATH") if model else [wants.model]
    if wants.upper:
        need += _on_hub("model", upper, "--super-resolution PATH") if upper else [wants.upper]
    need += [want for want in wants.added if want.key not in adds]
    need += [want for slot, name in adds.items() for want in _on_hub(slot, str(name), f"--add {slot}=PATH")]
    need += [] if "lora" in told else wants.loras
    need += [want for want in wants.inputs if want not in inputs]
    missing = [want for want in need if not _is_here(want, told)]
    if missing:
        raise BadRequest(_missing(missing, clip))
    own = {want.key: str(path) for want, path in inputs.items() if want.key}
    others = {want.value: str(path) for want, path in inputs.items() if not want.key}
    from kinema.provenance import replaced

    made = [replaced(request, families(), own, others) for request in requests]
    if wants.upper:
        made[1] = made[1].with_(super_resolution=upper or _opened_as(wants.upper))
    return ReplayInputs(
        model or _opened_as(wants.model),
        {**{want.key: _opened_as(want) for want in wants.added}, **adds},
        lora_weights(told.get("lora", ())) or dict(zip(map(_opened_as, wants.loras), wants.weights, strict=True)),
        made,
        [note for want, path in inputs.items() for note in _compared(want, path)],
    )


def _on_hub(what: str, name: str, option: str) -> list[Requirement]:
    """What the user names, where that is on the hub: any hash will do."""
    want = _from(name, what, "any", option)
    return [want] if want.source == "hub" and not Path(name).exists() else []


def _is_here(want: Requirement, told: Mapping[str, Any]) -> bool:
    if want.source != "hub":
        return want.source == "ships"
    if told.get("allow_download"):
        return True
    from kinema.system import fetched

    try:
        return want.hash is not None and bool(fetched(want.name, True, told.get("variant")))
    except BadRequest:
        return False


def _opened_as(want: Requirement) -> str:
    from kinema.system import HUB

    return HUB + want.name if want.source == "hub" else want.name


def _missing(missing: Sequence[Requirement], clip: Path) -> str:
    """One sentence on what a replay does not look for, and the options that give it."""
    few = missing[:MOST]
    names = ", ".join(printable(want.name, TOLD) for want in few)
    more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
    options = ", ".join(dict.fromkeys(want.option for want in few))
    hub = ", or pass --allow-download" if any(want.source == "hub" for want in missing) else ""
    it = "it" if len(missing) == 1 else "them"
    made = f"{printable(clip.name, TOLD)} was made from {names}{more}, which a replay does not look for"
    return f"{made}; give {it} with {options}{hub}"


def _files(wants: Sequence[Requirement], words: Sequence[str]) -> dict[Requirement, Path]:
    """``["image=a.png"]`` as inputs and files; a path alone is the input of that name.

    What is given for one input is given for all that were the same file.
    """
    found: dict[Requirement, Path] = {}
    for word in words:
        want, path = _input(wants, word)
        if want in found:
            raise BadRequest(f"--input {printable(want.name, 100)} is given twice; give it once")
        if not (is_regular(path) or path.is_dir()):
            raise BadRequest(f"--input {printable(word, 200)} is no file or folder of frames that can be read")
        found[want] = path
    for want, path in list(found.items()):
        same = (each for each in wants if want.hash and (each.name, each.hash) == (want.name, want.hash))
        found |= {each: path for each in same if each not in found}
    return found


def _input(wants: Sequence[Requirement], word: str) -> tuple[Requirement, Path]:
    """What a word gives, by what the request calls it or by the name of the file that the clip was made from."""
    if not wants:
        raise BadRequest("the clip was made from no picture or clip: leave out --input")
    by_name = {alias: want for want in wants for alias in (want.value, want.name)}
    by_name |= {want.key: want for want in wants if want.key}
    for name in sorted(by_name, key=len, reverse=True):
        if word.startswith(f"{name}=") and len(word) > len(name) + 1:
            return by_name[name], Path(word[len(name) + 1 :])
    if want := by_name.get(registry.file_name(word)):
        return want, Path(word)
    known = ", ".join(printable(want.key or want.name, TOLD) for want in wants[:MOST])
    raise BadRequest(f"--input {printable(word, 100)} is no input of the clip; expected NAME=PATH, NAME out of {known}")


def _compared(want: Requirement, path: Path) -> list[str]:
    from kinema.provenance import file_hash

    if file_hash(path) == want.hash:
        return []
    if want.hash is None:
        return [f"nothing tells whether {printable(str(path))} is the file that the clip was made from: it has no hash"]
    return [f"{printable(str(path))} is not the file that the clip was made from"]
