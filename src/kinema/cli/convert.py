"""``kinema convert``: weights from one layout to another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kinema import registry
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import REPORTING
from kinema.schema import BadRequest

OPTIONS = [
    Option("source", str, "", "weight file, or folder of a pipeline", positional=True, path=True),
    Option("output", Path | None, None, "file (.safetensors) or folder to write", short="-o"),
    Option(
        "layout",
        str | None,
        None,
        "sgm or official (one file) or diffusers (folder); of a LoRA diffusers, kohya or official",
    ),
    Option("dtype", Literal["fp32", "fp16", "bf16"] | None, None, "precision to write; else bit for bit as it is"),
    Option("variant", str | None, None, "which files of a source folder, such as fp16"),
    Option("overwrite", bool, False, "replace the output where it exists"),
]


def convert(words: Sequence[str]) -> int:
    """Convert, and print what was written."""
    about = "Weights from one layout to another; without --dtype, there and back gives the same bytes."
    told = parse([*OPTIONS, *REPORTING], words, "kinema convert", about)
    own = with_defaults([*OPTIONS, *REPORTING], told)
    for name, example in (("source", "svd.safetensors"), ("output", "-o svd"), ("layout", "--layout diffusers")):
        if not own[name]:
            raise BadRequest(f"kinema convert needs {example.split()[0] if name != 'source' else 'a source'}: {_USAGE}")
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        done = registry.resolve("kinema.checkpoints.convert:convert")(
            own["source"],
            own["output"],
            own["layout"],
            dtype=own["dtype"],
            variant=own["variant"],
            overwrite=own["overwrite"],
            on_event=show,
        )
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(done.path)], "tensors": done.tensors, "bytes": done.bytes})
            return 0
    sys.stdout.write(f"{done.path}\n")
    return 0


_USAGE = "kinema convert svd.safetensors -o svd --layout diffusers"
