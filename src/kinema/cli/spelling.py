"""Options in error messages, as the command line spells them.

Layers below name an option as Python does: ``guidance_interval``, ``extra["motion_score"]``. Only names of options are
changed, never those of files, tensors or settings of a checkpoint.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields

from kinema import registry
from kinema.schema import Request, flag

_NAME = re.compile(r"(?<![\w./\\-])[a-z]+(?:_[a-z0-9]+)+(?![\w/\\-]|\.\w)")
_FIRST = re.compile(r"[a-z]+(?= is )")
_WORDS = (
    *("seed", "clips", "frames", "height", "width", "fps", "steps", "guidance", "eta", "spacing", "region", "every"),
    *("keep", "strength", "window", "overlap", "scale"),
)
"""Options of one word, which messages name at their beginning."""
_OPTIONS = (
    "kinema.cli.verbs:ModelOptions",
    "kinema.training.options:TrainOptions",
    "kinema.training.latents:LatentsOptions",
    "kinema.evaluation.options:EvaluateOptions",
)
"""Dataclasses of options besides `Request`."""


def spelled(message: str) -> str:
    """Return the message with ``guidance_interval`` as ``--guidance-interval``, and a family's option as in --extra.

    An option of one word, such as ``steps``, is also a common word, so only the one that begins a message is changed:
    "steps is 0; expected …".
    """
    first = _FIRST.match(message)
    if first and first[0] in _WORDS:
        message = f"--{message}"
    if not _NAME.search(message):
        return message
    names = {name: name.replace("_", "-") for name in _extras()}
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
