"""Options in messages: as the command line spells them, and as the service's fields are named.

Layers below name an option as Python does (``guidance_interval``) or, where a sentence would not be clear otherwise, as
the command line does (``--window``). Each surface rewrites the whole sentence. Only names of options are changed, never
those of files, tensors or settings of a checkpoint.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache

from kinema import registry
from kinema.schema import Request, flag
from kinema.verb_options import CONTROL, EMBEDDINGS, IP_IMAGE, MODEL, MOTION

_NAME = re.compile(r"(?<![\w./\\-])[a-z]+(?:_[a-z0-9]+)+(?![\w/\\-]|\.\w)")
_FIRST = re.compile(r"[a-z]+(?= (?:is|applies|needs) )")
_UNKNOWN = re.compile(r"(?<= has no option )'([\w-]+)[\w.-]*'")
_FLAG = re.compile(r"(?<![^\s(])--([a-z]+(?:-[a-z]+)*)(?![\w-])")
_WORDS = (
    *("seed", "clips", "frames", "height", "width", "fps", "steps", "guidance", "eta", "spacing", "region", "every"),
    *("keep", "strength", "window", "overlap", "scale", "colours"),
)
"""Options of one word, which messages name at their beginning."""
_OPTIONS = (
    "kinema.cli.verbs:ModelOptions",
    "kinema.training.options:TrainOptions",
    "kinema.training.latents:LatentsOptions",
    "kinema.evaluation.options:EvaluateOptions",
)
"""Dataclasses of options besides `Request`."""
_IN_EXTRA = {"motion_bucket": MOTION, "control": CONTROL, "ip_image": IP_IMAGE, "embeddings": EMBEDDINGS}
"""Options of the command line that set an option of the family: its name there to the option."""
_FIELDS = {"lora": "loras", "add": "add", "model": "model"}
"""Fields of the service in place of the command line's options that name files."""
_LOCAL = frozenset(
    {o.name for o in (*MODEL, *_IN_EXTRA.values())} | {"lora_folder", "max_pixels", "overwrite"}
) - set(_FIELDS)  # fmt: skip
"""Options of the command line that its own machine needs: the service has no field for them."""


# ---------------------------------------------------------------------------------- the command line


def typed(message: str, words: Sequence[str] = ()) -> str:
    """Return the message with ``guidance_interval`` as ``--guidance-interval``, and a family's option as in --extra.

    ``words`` is the command line: an option of the family that ``--motion`` or the like has set is called so. An option
    of one word, such as ``steps``, is also a common word, so only the one that begins a message is changed: "steps is
    0; expected …", "overlap applies only to …".
    """
    first = _FIRST.match(message)
    if first and first[0] in _WORDS:
        message = f"--{message}"
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    own = {name: o.flag for name, o in _IN_EXTRA.items() if o.flag in given}
    message = _UNKNOWN.sub(lambda match: own.get(match[1], match[0].replace("_", "-")), message)
    if not _NAME.search(message):
        return message
    names = {name: name.replace("_", "-") for name in _extras()} | own
    names |= {name: f"--{name.replace('_', '-')}" for name in _others()}
    names |= {f.name: flag(f.name) for f in fields(Request)}
    return _NAME.sub(lambda match: names.get(match[0], match[0]), message)


def _others() -> Iterator[str]:
    for target in _OPTIONS:
        if target.partition(":")[0] in sys.modules:  # else the message cannot be about it
            yield from (f.name for f in fields(registry.resolve(target)))


def _extras() -> Iterator[str]:
    """Options of the loaded families."""
    for target in registry.FAMILIES.values():
        if target.partition(":")[0] in sys.modules:
            family = registry.resolve(target)
            for config in family.presets.values():
                yield from family.sampling.defaults(config).extra


# --------------------------------------------------------------------------------------- the service


def named(message: str) -> str:
    """Return the message with ``--prompt-at`` as ``prompt_spans``, and without advice that only its machine can follow.

    Such advice is a clause, "; --max-pixels raises that".
    """
    if "--" not in message:
        return message
    message = _LOCAL_CLAUSE.sub("", message)
    return _FLAG.sub(lambda match: _field_names().get(match[1], match[0]), message)


_END = r"(?:; |: |, )"
_LOCAL_CLAUSE = re.compile(
    rf"{_END}(?:(?!{_END}).)*?(?<![^\s(])--(?:{'|'.join(name.replace('_', '-') for name in sorted(_LOCAL))})(?![\w-])"
    rf"(?:(?!{_END}).)*"
)


@cache
def _field_names() -> Mapping[str, str]:
    """The command line's options, and the service's fields; an option without a field in plain words."""
    local = {name.replace("_", "-"): name.replace("_", " ") for name in _LOCAL}
    return local | _FIELDS | {flag(f.name)[2:]: f.name for f in fields(Request)}
