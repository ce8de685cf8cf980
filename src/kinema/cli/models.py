"""``kinema models`` and ``kinema inspect``: what there is, and what a file holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.bounds import as_json, printable
from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.schema import BadRequest

JSON = Option("json", bool, False, "as JSON")
LISTING = [JSON, Option("samplers", bool, False, "the samplers and their own options instead")]
FILE = Option(
    "file", str, "", "weight file, folder of a model, clip, picture or folder of frames", positional=True, path=True
)
FEW = 16
"""Tables of a list that are shown one by one, such as stages and blocks."""
COUNTS = {"bytes", "tensors", "network_tensors", "parameters", "motion_parameters"}
"""Figures that are printed with separators."""
VARIANT = Option("variant", str | None, None, "which files of a folder, such as fp16")


def models(words: Sequence[str]) -> int:
    own = with_defaults(LISTING, parse(LISTING, words, "kinema models", "The models, families and samplers there are."))
    if own["samplers"]:
        found = samplers()
        pairs = [(name, " ".join(f"{k}={v}" for k, v in told.items())) for name, told in found.items()]
        return _write(found if own["json"] else table(("sampler", "its own options"), pairs))
    listed = catalogue()
    if own["json"]:
        return _write(listed)
    rows = [(m["name"], m["kind"], _count(m["parameters"]), m["native"], m["sampling"]) for m in listed]
    return _write(table(("model", "kind", "parameters", "frames×height×width", "sampling"), rows))


def inspect(words: Sequence[str]) -> int:
    options = [FILE, VARIANT, JSON]
    own = with_defaults(options, parse(options, words, "kinema inspect", "What a weight file or a clip holds."))
    if not own["file"]:
        raise BadRequest("kinema inspect needs a file: kinema inspect ball.mp4")
    path = Path(own["file"])
    if not path.exists():
        raise BadRequest(f"there is no file {path}")
    told = weights(path, own["variant"]) if _holds_weights(path) else media(path)
    return _write(told if own["json"] else "\n".join(_lines(told)))


def samplers() -> dict[str, dict[str, Any]]:
    """Sampler name to its own options and their defaults."""
    from kinema.diffusion.samplers import SAMPLERS, options

    return {name: options(name) for name in SAMPLERS}


def catalogue() -> list[dict[str, Any]]:
    """Embedded weights, aliases, and every preset of every family, with their sizes."""
    rows = []
    for name, (family_name, file) in registry.EMBEDDED.items():
        if registry.weights(file).is_file():
            rows.append({"name": name, "kind": "embedded, trained", **_figures(*_opened(name)), "family": family_name})
    for name, slot in registry.PARTS.items():
        kind = "embedded, trained; --lora" if slot == "lora" else f"embedded, trained; --add {slot}="
        rows.append({"name": name, "kind": kind, "parameters": None, "native": "", "sampling": ""})
    for name, target in registry.ALIASES.items():
        with_ = "".join(f" with {slot} {file}" for slot, file in registry.ADDED.get(name, {}).items())
        kind = f"alias of {target}{with_}"
        rows.append({"name": name, "kind": kind, "parameters": None, "native": "", "sampling": ""})
    for family_name in registry.FAMILIES:
        family = registry.family(family_name)
        for preset, config in family.presets.items():
            row = {"name": f"{family_name}/{preset}", "kind": "preset, untrained", "family": family_name}
            rows.append({**row, **_figures(family, config)})
    return rows


def weights(path: Path, variant: str | None = None) -> dict[str, Any]:
    """Family, configuration, sizes and hash of a weight file or folder; refused if no family knows it."""
    from kinema.system import open_system

    system = open_system(path, variant=variant)
    source, parts = system.weights.source, system.weights.parts
    header = source.headers(parts) if parts else source.header
    layout = "kinema" if system.weights.own else f"folder of {source.pipeline}" if parts else "single file"
    counts = _counts(system.family, system.config)
    told = {
        "file": str(path),
        "bytes": sum(file.stat().st_size for file in source.files(parts)),
        "family": system.family.name,
        "layout": layout,
        "tensors": len(header),
        "dtypes": dict(Counter(str(kind).removeprefix("torch.") for _, kind in header.values())),
        "network_tensors": counts["tensors"],
        "parameters": counts["parameters"],
        "parts": counts["parts"],
        "hash": system.weights.hash,
    }
    if system.notes:
        told["notes"] = list(system.notes)
    return {**told, "config": {k: _short(v) for k, v in system.family.to_json(system.config).items()}}


def _holds_weights(path: Path) -> bool:
    """A folder of frames has pictures, and no weights or configs beside them."""
    from kinema.checkpoints.files import WEIGHTS
    from kinema.media.pictures import FRAME_SUFFIXES

    if not path.is_dir():
        return path.suffix.lower() in WEIGHTS
    if (path / "recipe.json").is_file():
        return False
    kinds = {file.suffix.lower() for file in path.iterdir()}
    return not kinds & FRAME_SUFFIXES or bool(kinds & {*WEIGHTS, ".json"})


def media(path: Path) -> dict[str, Any]:
    """What a clip or picture is, and the recipe in it where it has one."""
    from kinema.media.metadata import NONE, find_recipe
    from kinema.media.read import facts

    recipe = find_recipe(path)
    return {"file": str(path), **facts(path), "recipe": f"none: {NONE}" if recipe is None else recipe}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns by spaces, so that it reads on a terminal and cuts in a pipe."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in every)


def _opened(name: str) -> tuple[Any, Any]:
    from kinema.system import open_system

    system = open_system(name)
    return system.family, system.config


def _figures(family: Any, config: Any) -> dict[str, Any]:
    own = family.sampling.defaults(config)
    return {
        **_counts(family, config),
        "native": f"{own.frames}×{own.height}×{own.width}",
        "sampling": f"{own.sampler}, {own.steps} steps, guidance {own.guidance:g}",
    }


def _counts(family: Any, config: Any) -> dict[str, Any]:
    """Parameters and tensors of the network and of each of its parts, from the meta device."""
    parts = machine.parts(family, config)
    every = {what: sum(count[what] for count in parts.values()) for what in ("parameters", "tensors")}
    return {**every, "parts": parts}


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _short(value: Any) -> Any:
    """Long lists (a vocabulary) by their length; the file itself has them whole."""
    return f"{len(value)} entries" if isinstance(value, list | tuple) and len(value) > 16 else value


def _lines(told: Mapping[str, Any], indent: str = "") -> Iterable[str]:
    """One a value. Counts have separators; a seed, or whatever else may be an identifier, can be pasted."""
    for name, value in told.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{printable(name)}"
            yield from _lines(value, indent + "  ")
        elif (
            isinstance(value, list) and value and len(value) <= FEW and all(isinstance(each, Mapping) for each in value)
        ):
            for number, each in enumerate(value, 1):
                if not any(isinstance(inner, Mapping) for inner in each.values()):
                    text = ", ".join(f"{key} {inner}" for key, inner in each.items())
                    yield f"{indent}{printable(name.removesuffix('s'))} {number:<10} {printable(text)}"
                    continue
                yield from _lines({f"{name.removesuffix('s')} {number}": each}, indent)
        else:
            text = f"{value:,}" if type(value) is int and name in COUNTS else str(value)
            text = f"{round(value, 3):g}" if name == "fps" and isinstance(value, float) else text
            yield f"{indent}{printable(name):<16} {printable(text)}"


def _write(told: Any) -> int:
    text = told if isinstance(told, str) else as_json(told, indent=2)
    sys.stdout.write(text + "\n")
    return 0
