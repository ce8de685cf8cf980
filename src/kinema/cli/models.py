"""``kinema models`` and ``kinema inspect``: what models are available, and what a file contains."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.bounds import as_json, printable
from kinema.cli.options import parse, with_defaults
from kinema.options import Option
from kinema.schema import BadRequest

MODELS_ABOUT = (
    "List models, add-ons and LoRAs by the names that --model, --add and --lora accept; with NAME, show one model: its "
    "sampling, its named sizes (--size) and its own options (--extra)."
)
INSPECT_ABOUT = "Show what a clip, image or weight file contains: format, size, recipe; family, layout, parameters."
JSON = Option("json", bool, False, "print as JSON")
NAME = Option("name", str | None, None, "model to show", positional=True)
LISTING = [NAME, JSON, Option("samplers", bool, False, "list the samplers and their options instead")]
FILE = Option("file", str, "", "clip, image, folder of frames, weight file or model folder", positional=True, path=True)
FEW = 16
"""Longest list whose items are printed one by one, such as stages and blocks of frames."""
COUNTS = {"bytes", "tensors", "network_tensors", "parameters", "motion_parameters"}
"""Values printed with thousands separators."""
VARIANT = Option("variant", str | None, None, "file variant in a model folder, such as fp16", metavar="NAME")
SECTIONS = {
    "embedded, trained": "included, trained",
    "embedded, trained; ": "included add-ons and LoRAs",
    "alias of ": "published models, downloaded when first used",
    "preset, untrained": "architectures without weights, for training",
}
"""What ``kind`` of a row starts with (the longest match counts), and the heading of these rows."""


def models(argv: Sequence[str]) -> int:
    """Print the catalogue, one model, or the samplers."""
    example = "kinema models opensora/v2"
    settings = with_defaults(LISTING, parse(LISTING, argv, "kinema models", MODELS_ABOUT, example))
    if settings["name"] and settings["samplers"]:
        raise BadRequest("--samplers lists the samplers of all models: leave NAME out")
    if settings["name"]:
        entries = details(settings["name"])
        return _write(entries if settings["json"] else "\n".join(_lines(entries)))
    if settings["samplers"]:
        found = samplers()
        pairs = [(name, " ".join(f"{k}={v}" for k, v in own.items())) for name, own in found.items()]
        return _write(found if settings["json"] else table(("sampler", "options and defaults"), pairs))
    rows = catalogue()
    return _write(rows if settings["json"] else _sections(rows))


def inspect(argv: Sequence[str]) -> int:
    """Print what a file contains."""
    options = [FILE, VARIANT, JSON]
    settings = with_defaults(options, parse(options, argv, "kinema inspect", INSPECT_ABOUT, "kinema inspect ball.mp4"))
    if not settings["file"]:
        raise BadRequest("kinema inspect needs a file: kinema inspect ball.mp4")
    path = Path(settings["file"])
    if not path.exists():
        raise BadRequest(f"there is no file {path}")
    entries = weights(path, settings["variant"]) if _holds_weights(path) else media(path)
    return _write(entries if settings["json"] else "\n".join(_lines(entries)))


def samplers() -> dict[str, dict[str, Any]]:
    """Sampler name to its options and their defaults."""
    from kinema.diffusion.samplers import SAMPLERS, options

    return {name: options(name) for name in SAMPLERS}


def catalogue() -> list[dict[str, Any]]:
    """Embedded weights, add-ons, aliases and the presets of every family, with their sizes."""
    rows = []
    for name, (family_name, file) in registry.EMBEDDED.items():
        if registry.weight_file(file).is_file():
            rows.append({"name": name, "kind": "embedded, trained", **_figures(*_opened(name)), "family": family_name})
    for name, slot in registry.ADD_ONS.items():
        kind = "embedded, trained; --lora" if slot == "lora" else f"embedded, trained; --add {slot}="
        rows.append({"name": name, "kind": kind, "parameters": None, "native": "", "sampling": ""})
    for name, target in registry.ALIASES.items():
        with_ = "".join(f" with {slot} {file}" for slot, file in registry.DEFAULT_ADD_ONS.get(name, {}).items())
        kind = f"alias of {target}{with_}"
        rows.append({"name": name, "kind": kind, "parameters": None, "native": "", "sampling": ""})
    for family_name in registry.FAMILIES:
        family = registry.family(family_name)
        for preset, config in family.presets.items():
            row = {"name": f"{family_name}/{preset}", "kind": "preset, untrained", "family": family_name}
            rows.append({**row, **_figures(family, config)})
    return rows


def details(name: str) -> dict[str, Any]:
    """One model: its size, sampling, named sizes and options. Raises BadRequest for an unknown name.

    Nothing is downloaded: a published model is shown once its files are on this machine.
    """
    from kinema.system import open_system

    system = open_system(name, offline=True)
    sampling, config = system.family.sampling, system.config
    defaults, lattice = sampling.defaults(config), system.lattice
    entries = {
        "name": name,
        "family": system.family.name,
        **_figures(system.family, config),
        "fps": defaults.fps,
        "longest": lattice.max_frames,
        "side_multiple": lattice.side_multiple,
        "sizes": {each: f"{height}×{width}" for each, (height, width) in defaults.sizes.items()},
        "extra": {each.replace("_", "-"): text for each, text in defaults.extra.items()},
    }
    return {key: value for key, value in entries.items() if value not in (None, {})}


def _sections(rows: Sequence[Mapping[str, Any]]) -> str:
    """The catalogue as text, one table per section."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in SECTIONS}
    for row in rows:
        by_kind[max((kind for kind in SECTIONS if row["kind"].startswith(kind)), key=len)].append(row)
    parts = []
    for kind, members in by_kind.items():
        head: tuple[str, ...] = ("model", "parameters", "frames×height×width", "sampling")
        cells: list[tuple[str, ...]] = [
            (row["name"], _count(row["parameters"]), row["native"], row["sampling"]) for row in members
        ]
        if kind == "alias of ":
            head, cells = ("name", "model"), [(row["name"], row["kind"].removeprefix(kind)) for row in members]
        elif kind == "embedded, trained; ":
            head, cells = ("name", "use"), [(row["name"], _use(row["name"], row["kind"])) for row in members]
        if members:
            parts.append(f"{SECTIONS[kind]}:\n{table(head, cells)}")
    parts.append("named sizes (--size) and own options (--extra) of a model: kinema models NAME")
    return "\n\n".join(parts)


def _use(name: str, kind: str) -> str:
    """The option that loads an add-on: ``--add motion=NAME`` or ``--lora NAME``."""
    option = kind.partition("; ")[2]
    return f"{option}{name}" if option.endswith("=") else f"{option} {name}"


def weights(path: Path, variant: str | None = None) -> dict[str, Any]:
    """Family, configuration, sizes and hash of a weight file or folder. Raises BadRequest if no family can read it."""
    from kinema.system import open_system

    system = open_system(path, variant=variant)
    source, parts = system.weights.source, system.weights.parts
    header = source.headers(parts) if parts else source.header
    layout = "kinema" if system.weights.own else f"folder of {source.pipeline}" if parts else "single file"
    counts = _counts(system.family, system.config)
    entries = {
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
        entries["notes"] = list(system.notes)
    return {**entries, "config": {k: _short(v) for k, v in system.family.to_json(system.config).items()}}


def _holds_weights(path: Path) -> bool:
    """Whether it is a weight file or model folder; a folder of frames has images and neither weights nor configs."""
    from kinema.checkpoints.files import WEIGHTS
    from kinema.media.images import FRAME_SUFFIXES

    if not path.is_dir():
        return path.suffix.lower() in WEIGHTS
    if (path / "recipe.json").is_file():
        return False
    kinds = {file.suffix.lower() for file in path.iterdir()}
    return not kinds & FRAME_SUFFIXES or bool(kinds & {*WEIGHTS, ".json"})


def media(path: Path) -> dict[str, Any]:
    """Format of a clip or image, and its recipe if it has one."""
    from kinema.media.metadata import NO_RECIPE, find_recipe
    from kinema.media.read import facts

    recipe = find_recipe(path)
    return {"file": str(path), **facts(path), "recipe": f"none: {NO_RECIPE}" if recipe is None else recipe}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned with spaces."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _opened(name: str) -> tuple[Any, Any]:
    from kinema.system import open_system

    system = open_system(name)
    return system.family, system.config


def _figures(family: Any, config: Any) -> dict[str, Any]:
    defaults = family.sampling.defaults(config)
    return {
        **_counts(family, config),
        "native": f"{defaults.frames}×{defaults.height}×{defaults.width}",
        "sampling": f"{defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance:g}",
    }


def _counts(family: Any, config: Any) -> dict[str, Any]:
    """Parameters and tensors of the network and each of its modules, counted on the meta device."""
    from kinema.system.counting import parts as parts_of

    parts = parts_of(family, config)
    totals = {what: sum(count[what] for count in parts.values()) for what in ("parameters", "tensors")}
    return {**totals, "parts": parts}


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _short(value: Any) -> Any:
    """A long list (a vocabulary) as its length."""
    return f"{len(value)} entries" if isinstance(value, list | tuple) and len(value) > 16 else value


def _lines(entries: Mapping[str, Any], indent: str = "") -> Iterable[str]:
    """One line per value. Only counts have separators, so that a seed can be pasted."""
    for name, value in entries.items():
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


def _write(output: Any) -> int:
    text = output if isinstance(output, str) else as_json(output, indent=2)
    sys.stdout.write(text + "\n")
    return 0
