"""``kinema cache``: the text embeddings that large text encoders computed, which are stored for later runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kinema.bounds import as_json, printable
from kinema.cli.options import parse, with_defaults
from kinema.options import Option

ABOUT = (
    "Show the text embeddings stored on this machine, so that a prompt needs its text encoder only once. Set "
    "$KINEMA_CACHE to another folder, and $KINEMA_CACHE_BYTES to another limit (0 stores nothing)."
)
OPTIONS = [
    Option("clear", bool, False, "delete all stored embeddings"),
    Option("json", bool, False, "print as JSON"),
]


def cache(argv: Sequence[str]) -> int:
    """Print what is stored; with ``--clear``, delete it and print what was deleted."""
    settings = with_defaults(OPTIONS, parse(OPTIONS, argv, "kinema cache", ABOUT, "kinema cache --clear"))
    from kinema.conditioning import remembered

    limit, size = remembered.most(), remembered.size()
    if settings["clear"]:
        remembered.tidy(0)
    left = remembered.size()
    entries = {
        "folder": str(remembered.folder()),
        "embeddings": left.prompts,
        "bytes": left.bytes,
        "limit": limit,
        **({"deleted": size.prompts - left.prompts, "freed": size.bytes - left.bytes} if settings["clear"] else {}),
    }
    if settings["json"]:
        sys.stdout.write(as_json(entries, indent=2) + "\n")
    else:
        sys.stdout.writelines(
            f"{name:<12} {value:,}\n" if isinstance(value, int) else f"{name:<12} {printable(str(value))}\n"
            for name, value in entries.items()
        )
    return 0
