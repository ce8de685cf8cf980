"""``kinema convert``: weights from one layout to another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kinema import registry
from kinema.cli.options import parse, with_defaults
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import REPORTING
from kinema.options import Option
from kinema.schema import BadRequest

ABOUT = (
    "Convert weights from one layout to another. Without --dtype the tensors are unchanged, so converting there and "
    "back gives the same bytes."
)
EXAMPLE = "kinema convert svd.safetensors -o svd --layout diffusers"
OPTIONS = [
    Option("source", str, "", "weight file, or folder of a diffusers pipeline", positional=True, path=True),
    Option("output", Path | None, None, "file (.safetensors) or folder to write", short="-o"),
    Option(
        "layout",
        str | None,
        None,
        "of a model: its authors' (sgm, official, open-sora, fused, flux; one file), or diffusers (folder); of a LoRA: "
        "its authors' (official; open-sora, a PEFT folder), diffusers or kohya",
        metavar="NAME",
    ),
    Option("dtype", Literal["fp32", "fp16", "bf16"] | None, None, "precision to write; by default that of the source"),
    Option("variant", str | None, None, "file variant in the source folder, such as fp16", metavar="NAME"),
    Option("overwrite", bool, False, "replace the output if it exists"),
]


def convert(argv: Sequence[str]) -> int:
    """Convert weights and print the path written."""
    given = parse([*OPTIONS, *REPORTING], argv, "kinema convert", ABOUT, EXAMPLE)
    settings = with_defaults([*OPTIONS, *REPORTING], given)
    for name, label in (("source", "a source"), ("output", "-o"), ("layout", "--layout")):
        if not settings[name]:
            raise BadRequest(f"kinema convert needs {label}: {EXAMPLE}")
    with display(quiet=settings["quiet"], json_events=settings["json_events"]) as show:
        result = registry.resolve("kinema.checkpoints.convert:convert")(
            settings["source"],
            settings["output"],
            settings["layout"],
            dtype=settings["dtype"],
            variant=settings["variant"],
            overwrite=settings["overwrite"],
            on_event=show,
        )
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(result.path)], "tensors": result.tensors, "bytes": result.bytes})
            return 0
    sys.stdout.write(f"{result.path}\n")
    return 0
