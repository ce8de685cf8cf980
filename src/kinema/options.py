"""Options, derived from the fields of a dataclass: what the command line and the service's forms are made of.

The dataclass that Python users fill in (`Request`, `TrainOptions`…) is the single definition: its field names, types,
defaults, help and ranges become the options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """One option: its Python name, type, default and help; a ``positional`` one is passed without its name."""

    name: str
    type: Any
    default: Any
    help: str
    positional: bool = False
    short: str | None = None
    metavar: str = ""
    path: bool = False
    """Whether its value is a path, in which ``~/`` expands to the user's home."""
    word: str = ""
    """Its command-line name where that differs from ``name``, such as keyframe for keyframes."""
    least: float | None = None
    most: float | None = None
    """The range of a number, for forms; the dataclass itself checks it."""

    @property
    def flag(self) -> str:
        return "--" + (self.word or self.name.replace("_", "-"))

    @property
    def label(self) -> str:
        """Its name in error messages."""
        return self.name.replace("_", " ") if self.positional else self.flag

    @property
    def kinds(self) -> list[Any]:
        """The types a value may have, without ``None``."""
        if get_origin(self.type) in (Union, UnionType):
            return [each for each in get_args(self.type) if each is not NoneType]
        return [self.type]

    @property
    def kind(self) -> Any:
        """The type that command-line text is converted to: the first of `kinds`."""
        return self.kinds[0]

    @property
    def repeated(self) -> bool:
        """Whether it may be passed several times (``key=value`` of a mapping, or items of a list)."""
        return get_origin(self.kind) in (Mapping, dict, list) or self.kind in (dict, list)

    @property
    def value_name(self) -> str:
        """The placeholder of its value in help pages."""
        if self.metavar:
            return self.metavar
        if self.positional:
            return self.name.upper()
        if get_origin(self.kind) is Literal:
            return "{" + ",".join(map(str, get_args(self.kind))) + "}"
        if get_origin(self.kind) is tuple:
            return ",".join("X" for _ in get_args(self.kind))
        if self.repeated:
            return "KEY=VALUE"
        return "PATH" if self.path else _METAVARS.get(self.kind, "TEXT")


def from_dataclass(cls: type, names: Iterable[str] | None = None, positional: Sequence[str] = ()) -> list[Option]:
    """Options for these fields of a dataclass (all by default), positional ones first and in their order."""
    hints = get_type_hints(cls)
    by_name = {f.name: f for f in fields(cls)}
    ordered = [*positional, *(n for n in (names or by_name) if n not in positional)]
    options = []
    for name in ordered:
        f = by_name[name]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        options.append(
            Option(
                name,
                hints[name],
                None if default is MISSING else default,
                f.metadata.get("help", ""),
                positional=name in positional,
                metavar=f.metadata.get("metavar", ""),
                path=bool(f.metadata.get("path")),
                word=f.metadata.get("word", ""),
                least=f.metadata.get("least"),
                most=f.metadata.get("most"),
            )
        )
    return options
