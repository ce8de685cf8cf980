"""The fields of the bodies of /v1/videos: one table, from which bodies are read and the OpenAPI page is written.

Every field of `kinema.Request` has its own name, type, range and help. `RENAMED` and `SPECIAL` add what the OpenAI SDK
and other servers call them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kinema import bounds, values
from kinema.schema import BadRequest, Request, TaskName
from kinema.server.http.errors import FieldError
from kinema.server.names import BY_FRAME
from kinema.values import quoted

HIDDEN = ("task", "lora_folder", "size")
"""Fields of `Request` that bodies do not have under this name: see `SPECIAL`; the service has its own LoRA folder."""
RENAMED = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "extra_params": "extra",
}
"""What other servers call fields of `Request`."""
OF_FAMILIES = {"flow_shift": "flow_shift", "guidance_scale_2": "guidance_scale_2"}
"""What other servers call options that only some families have: name to the option in ``extra``."""
MAX_VALUES = 20_000
"""Maximum values in a JSON body."""
FILES = ("image", "last_image", "video", "mask")
_WHOLE = re.compile(r"[+-]?[0-9]{1,24}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_TRUE, _FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no")


@dataclass(frozen=True)
class Field:
    """A field of a body: its name, type, help and range, and the field of `Request` that it sets, if it sets one."""

    name: str
    type: Any
    help: str
    sets: str = ""
    least: float | None = None
    most: float | None = None
    default: Any = None
    schema: Mapping[str, Any] | None = None
    """JSON schema, where the type does not say it."""


_FILE_ID = {"type": "string", "pattern": "^(asset-|video_)[0-9a-z]{20,32}$"}
_LORA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "name of a LoRA that /v1/models lists"},
        "scale": {"type": "number", "default": 1.0},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_REFERENCE = {
    "type": "object",
    "properties": {
        "file_id": {**_FILE_ID, "description": "identifier of an asset or video"},
        "image_url": {"type": "string", "description": "data: URL of an image; other URLs are refused"},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_VIDEO = {
    "anyOf": [
        _FILE_ID,
        {"type": "object", "properties": {"id": _FILE_ID}, "required": ["id"], "additionalProperties": False},
    ]
}
SPECIAL = (
    Field("model", str, "name of a model that /v1/models lists; default: the service's"),
    Field(
        "add",
        Mapping[str, str],
        'add-ons of the model by slot, such as {"motion": NAME}, by names that /v1/models lists',
        schema={"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 32},
    ),
    Field(
        "document",
        Mapping[str, Any],
        "document of the studio, whose media are here {name, asset} or {name, sha256, data}; other fields override it; "
        "in a form it is a file",
        schema={"type": "object"},
    ),
    Field("verb", TaskName, "what to do; default: animate if an image is given, else generate"),
    Field("task", TaskName, "same as verb"),
    Field(
        "seconds",
        str | float,
        "duration of the clip, of the new part for an extension; not with frames",
        schema={"anyOf": [{"type": "string", "pattern": r"^[0-9]{1,4}(\.[0-9]{1,6})?$"}, {"type": "number"}]},
    ),
    Field(
        "size",
        str,
        "width×height in pixels, such as 1280x720, or a named size of the model, such as 768px:16:9; not with height "
        "and width",
    ),
    Field(
        "input_reference",
        str | Mapping[str, str],
        "image (or clip whose first frame is used) that starts the video: a file, or an object with file_id or "
        "image_url",
        schema={"anyOf": [_FILE_ID, _REFERENCE]},
    ),
    Field(
        "lora",
        Any,
        "LoRA, or list of LoRAs; not with loras",
        schema={"anyOf": [_LORA, {"type": "array", "items": _LORA, "maxItems": 32}]},
    ),
    *(Field(name, float, f"the option {to} of the model's family, if it has it") for name, to in OF_FAMILIES.items()),
)


@cache
def table() -> Mapping[str, Field]:
    """All fields by name."""
    hints = get_type_hints(Request)
    own = {}
    for f in fields(Request):
        meta, default = f.metadata, f.default
        if default is MISSING:
            default = f.default_factory() if f.default_factory is not MISSING else None
        own[f.name] = Field(
            f.name,
            hints[f.name],
            meta.get("help", ""),
            f.name,
            meta.get("least"),
            meta.get("most"),
            default,
            _file_schema(f.name),
        )
    named = {name: own[name] for name in own if name not in HIDDEN}
    for name, to in RENAMED.items():
        same = own[to]
        named[name] = replace(same, name=name, help=f"same as {to}: {same.help}")
    return named | {f.name: f for f in SPECIAL}


def _file_schema(name: str) -> Mapping[str, Any] | None:
    if name == "video":
        return _VIDEO
    if name in FILES:
        return _FILE_ID
    if name in BY_FRAME:
        return {"type": "object", "additionalProperties": _FILE_ID}
    return None


# ------------------------------------------------------------------------------------ values as text


def typed(name: str, hint: Any, node: Any) -> Any:
    """A value of a form by the type of its field; ``node`` is text, or lists and tables of texts.

    Raises `FieldError`. Values of the right form but the wrong range are left to `Request`.
    """
    kinds = [each for each in get_args(hint) if each is not NoneType] if _is_union(hint) else [hint]
    if isinstance(node, Mapping):
        inner = next((get_args(each)[1] for each in kinds if _is_mapping(each)), Any if Any in kinds else None)
        if inner is None:
            raise _unreadable(name, hint, node)
        return {key: typed(f"{name}[{key}]", inner, value) for key, value in node.items()}
    if isinstance(node, list):
        tuples = [get_args(each) for each in kinds if get_origin(each) is tuple]
        if not tuples and Any not in kinds:
            raise _unreadable(name, hint, node)
        return [typed(name, tuples[0][0] if tuples else Any, each) for each in node]
    for kind in sorted(kinds, key=lambda each: each is str):  # text only if it is nothing else
        value = _scalar(name, kind, node)
        if value is not None:
            return value
    raise _unreadable(name, hint, node)


def _scalar(name: str, kind: Any, text: str) -> Any:  # noqa: PLR0911 (one return per kind)
    """Text as a value of this type; None if it is none."""
    if kind is str:
        return text
    if kind is bool:
        return True if text in _TRUE else False if text in _FALSE else None
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) else None
    if kind is float:
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        return number if math.isfinite(number) else None
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if get_origin(kind) is tuple and not text.startswith("["):
        return [typed(name, get_args(kind)[0], part.strip()) for part in text.split(",")]
    if kind is Any and not (_NUMBER.fullmatch(text) or text[:1] in "[{" or text in ("true", "false", "null")):
        return text
    return from_json(text, name, name)


def from_json(text: str, name: str, param: str | None = None) -> Any:
    """JSON of a body or of a field of a form, within limits. Raises `FieldError`."""
    values = sum(map(text.count, ",[{"))
    if values > MAX_VALUES:  # checking more would keep others waiting
        raise FieldError(f"{name} holds about {values:,} values; at most {MAX_VALUES:,} are read", param)
    try:
        return bounds.from_json(text, name, pairs=distinct)
    except BadRequest as error:
        raise FieldError(str(error), param, code="invalid_json") from None


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names all differ: parsers disagree about which of two values counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _unreadable(name: str, hint: Any, node: Any) -> FieldError:
    return FieldError(f"{name} is {quoted(node)}; expected {values.expected(hint)}", name.partition("[")[0])


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


# -------------------------------------------------------------------------------------- JSON schema


def schema(f: Field) -> dict[str, Any]:
    """The JSON schema of a field."""
    found = dict(f.schema) if f.schema is not None else _of_type(f.type)
    ranges = [found] if "anyOf" not in found else [each for each in found["anyOf"] if each.get("type") != "null"]
    for each in ranges:
        if each.get("type") in ("integer", "number") and f.least is not None:
            each.update(minimum=f.least, maximum=f.most)
    if f.help:
        found["description"] = f.help
    if f.default not in (None, "", {}):
        found["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
    return found


def _of_type(hint: Any) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if _is_union(hint):
        kinds = [_of_type(each) for each in inner]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"type": "string", "enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _of_type(inner[0]), "minItems": len(inner), "maxItems": len(inner)}
    if _is_mapping(hint):
        return {"type": "object", "additionalProperties": _of_type(inner[1])}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
    return {"type": names[hint]} if hint in names else {}
