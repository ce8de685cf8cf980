"""``GET /v1/options``: the verbs and their options, for forms. The same definitions give the command line's help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from fastapi import APIRouter, Depends

from kinema.options import Option
from kinema.schema import TaskName
from kinema.server.http.service import known_query
from kinema.spelling import named
from kinema.verb_options import FIRST, GROUPS, MODEL, VERBS, request_options

router = APIRouter(tags=["models"], dependencies=[Depends(known_query)])

LOCAL = frozenset({"lora_folder", "embeddings"})
"""Options that name a folder of the client's machine, which the service never opens."""
PLACES = {"model": "model", "add": "add", "lora": "loras", "motion": "extra.motion_bucket"} | {
    name: f"extra.{name}" for name in ("control", "ip_image")
}
"""Where a value goes in an order, if not under the option's own name in its request."""
KINDS = {
    **dict.fromkeys(("model", "image_model", "super_resolution"), "model"),
    **dict.fromkeys(("control", "ip_image"), "file"),
    **dict.fromkeys(("prompt", "negative_prompt"), "long_text"),
    **dict.fromkeys(("start", "end"), "time"),
    **{"lora": "loras", "add": "add_ons", "size": "size", "extra": "mapping", "sampler_options": "numbers"},
    **{"prompt_spans": "texts_by_frame", "keyframes": "files_by_frame", "masks": "files_by_frame"},
}
"""Controls that an option's type alone does not determine."""
PLAIN = {bool: "boolean", int: "integer", float: "number"}
OTHER = "other options"
HEADINGS = {"LoRAs and add-ons": "LoRAs, add-ons and options of the model"}
LABELS = {
    "fps": "FPS",
    "video": "Clip",
    "lora": "LoRAs",
    "add": "Add-ons",
    "ip_image": "IP-Adapter image",
    "extra": "Model options",
}
HELP = {
    "model": "model that generates the clip; those that are here are on the page Models",
    "size": "in pixels; default: the model's own",
    "seed": "the same seed gives the same clip; default: random",
    "sampler": "name of the sampler; default: the model's own",
    "lora": "LoRAs and their weights; default: the model's own",
    "add": "add-ons of the model, each in its slot",
    "control": "control clip or image (edges, depth, poses) for a ControlNet, ready-made",
    "region": "box where new content is generated: drag it, or give its sides in percent of the frame",
    "ip_image": "reference image for an IP-Adapter",
    "prompt_spans": "prompt from a frame (8) or over a range of frames (8-15); the main prompt applies at frame 0, and "
    "the last prompt holds to the end",
}
"""Help that says something else on the command line, where files and lists of names are at hand."""
_BRACKETED = re.compile(r" ?\(--[\w-]+(, [^)]*)?\)")
_VERB = re.compile(r"^(?:animate|extend|edit|upscale|interpolate): |; may be repeated|; same as --extra [\w.=-]+")


@router.get("/v1/options")
def options() -> Mapping[str, Any]:
    """All fields by name; each verb with groups of their names, and the names that a form shows first."""
    return described()


@lru_cache(maxsize=1)
def described() -> Mapping[str, Any]:
    fields = {o.name: field(o) for task in VERBS for o in options_of(task)}
    return {"object": "options", "fields": fields, "verbs": [verb(task) for task in VERBS]}


def options_of(task: TaskName) -> list[Option]:
    """The options of a verb that mean something to the service."""
    own = [o for o in MODEL if o.name in ("model", "lora", "add")]
    return [o for o in (*own, *request_options(task)) if o.name not in LOCAL]


def verb(task: TaskName) -> dict[str, Any]:
    """One verb: its help, its fields by the groups of the help pages, and the fields to show first."""
    names = [o.name for o in options_of(task)]
    grouped = {"input": VERBS[task].positional, **GROUPS}
    seen: set[str] = set()
    groups = []
    for heading, members in grouped.items():
        if found := [name for name in members if name in names and name not in seen]:
            groups.append({"title": HEADINGS.get(heading, heading), "fields": found})
            seen.update(found)
    if rest := [name for name in names if name not in seen]:
        groups.append({"title": OTHER, "fields": rest})
    about, example = named(_BRACKETED.sub("", VERBS[task].about)), VERBS[task].example
    return {"name": task, "about": about, "example": example, "first": list(FIRST[task]), "groups": groups}


def field(o: Option) -> dict[str, Any]:
    """One field of a form; ``place`` is where its value goes: "model", or a key of the request."""
    kind = kind_of(o)
    row = {
        "name": o.name,
        "label": label(o),
        "help": HELP.get(o.name) or named(_VERB.sub("", o.help)),
        "type": kind,
        "place": PLACES.get(o.name, o.name),
        "default": list(o.default) if isinstance(o.default, tuple) else o.default,
    }
    if kind == "choice":
        row["choices"] = list(map(str, get_args(o.kind)))
    if o.least is not None:
        row |= {"least": o.least, "most": o.most}
    return row


def label(o: Option) -> str:
    """Its name as people write it: "Negative prompt", "FreeInit filter"."""
    words = (o.word or o.name).replace("_", " ").replace("-", " ").replace("free init", "FreeInit")
    return LABELS.get(o.name) or words[:1].upper() + words[1:]


def kind_of(o: Option) -> str:
    """The kind of control that a form needs: "choice", "pair", "box", "file", "text", or one in `KINDS` or `PLAIN`."""
    if o.name in KINDS:
        return KINDS[o.name]
    if get_origin(o.kind) is Literal:
        return "choice"
    if get_origin(o.kind) is tuple:
        return "box" if len(get_args(o.kind)) == 4 else "pair"
    return "file" if o.path else PLAIN.get(o.kind, "text")
