"""Options of a command, made from dataclass fields, and read from the command line and a config file.

The dataclass that Python users fill (`Request`, `TrainOptions`…) is the one definition: its field names,
types, defaults, help and ranges become the options. tyro does the words and the help page; values from
the command line and from a config file pass the same checks here, so both give the same sentences.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kinema import bounds, registry, values
from kinema.bounds import quoted
from kinema.schema import BadRequest

_FROM_HOME = re.compile(r"(?P<name>(?:[\w. -]+=)?)(?P<path>~|~[^/]*/.*)", re.DOTALL)
_UNTOLD = "\0untold"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf", re.IGNORECASE)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """One option: its Python name, type, default and help; ``positional`` ones are given without a name."""

    name: str
    type: Any
    default: Any
    help: str
    positional: bool = False
    short: str | None = None
    metavar: str = ""
    path: bool = False
    """Whether its text names files or folders, where ``~/`` is the user's home."""
    word: str = ""
    """What the command line calls it, where that is another name: one of several, such as keyframe of keyframes."""

    @property
    def flag(self) -> str:
        return "--" + (self.word or self.name.replace("_", "-"))

    @property
    def shown(self) -> str:
        """How error sentences call it."""
        return self.name.replace("_", " ") if self.positional else self.flag

    @property
    def kinds(self) -> list[Any]:
        """The types that a value may have, without ``None``."""
        if get_origin(self.type) in (Union, UnionType):
            return [each for each in get_args(self.type) if each is not NoneType]
        return [self.type]

    @property
    def kind(self) -> Any:
        """What a word of the command line becomes: the first of its types."""
        return self.kinds[0]

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times (a mapping's ``key=value``, or a list)."""
        return get_origin(self.kind) in (Mapping, dict, list) or self.kind in (dict, list)


def from_dataclass(cls: type, names: Iterable[str] | None = None, positional: Sequence[str] = ()) -> list[Option]:
    """Options for these fields of a dataclass (all by default), positional ones first and in their order."""
    hints = get_type_hints(cls)
    made = {f.name: f for f in fields(cls)}
    wanted = [*positional, *(n for n in (names or made) if n not in positional)]
    options = []
    for name in wanted:
        f = made[name]
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        default = None if default is MISSING else default
        told = {"path": bool(f.metadata.get("path")), "metavar": f.metadata.get("metavar", "")}
        word = f.metadata.get("word", "")
        options.append(
            Option(name, hints[name], default, f.metadata.get("help", ""), name in positional, word=word, **told)
        )
    return options


def parse(options: Sequence[Option], argv: Sequence[str], prog: str, about: str) -> dict[str, Any]:
    """What the user told, by name: the config file's values under the command line's.

    Options that were not told are absent. Raises BadRequest for unknown options and impossible values;
    ``--help`` prints the page and raises SystemExit(0).
    """
    told = _command_line(options, argv, prog, about)
    if "config" in told:
        told = {**_config_file(options, Path(told["config"])), **told}
    return told


def with_defaults(options: Iterable[Option], told: Mapping[str, Any]) -> dict[str, Any]:
    return {o.name: told.get(o.name, o.default) for o in options}


# ------------------------------------------------------------------------------------- the words


def _command_line(options: Sequence[Option], argv: Sequence[str], prog: str, about: str) -> dict[str, Any]:
    import tyro

    end = argv.index("--") if "--" in argv else len(argv)
    own = _joined(options, [_dashes(token) for token in argv[:end]])
    command: Any = make_dataclass("Command", [(o.name, _annotation(o), _tyro_default(o)) for o in options], frozen=True)
    printed = io.StringIO()
    words: Any
    unknown: list[str]
    try:
        with contextlib.redirect_stderr(printed):
            words, unknown = tyro.cli(
                command, args=[*own, *argv[end:]], prog=prog, description=about, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadRequest(_one_sentence(printed.getvalue())) from None
    if unknown:
        raise BadRequest(_stray(unknown[0], options, prog))
    told = {}
    for o in options:
        word = getattr(words, o.name)
        if o.kind is bool:
            if o.flag in own or f"--no-{o.flag[2:]}" in own:
                told[o.name] = word
        elif word not in (_UNTOLD, []):
            told[o.name] = convert(o, word)
    return told


def _dashes(token: str) -> str:
    """``--negative_prompt=x`` as ``--negative-prompt=x``: both spellings are one option."""
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else token


def _joined(options: Sequence[Option], argv: Sequence[str]) -> list[str]:
    """``--region 0 0 1 1`` as ``--region 0,0,1,1``: both are natural to write."""
    sizes = {o.flag: len(get_args(o.kind)) for o in options if get_origin(o.kind) is tuple}
    made: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        made.append(token)
        numbers: list[str] = []
        while token in sizes and rest and len(numbers) < sizes[token] and _NUMBER.fullmatch(rest[0]):
            numbers.append(rest.pop(0))
        if numbers:
            made.append(",".join(numbers))
    return made


def _annotation(o: Option) -> Any:
    import tyro

    if o.kind is bool:
        return Annotated[bool, tyro.conf.arg(help=o.help, help_behavior_hint="(default: on)" if o.default else "")]
    default = "" if o.default in (None, "", (), {}) or o.repeated else f"(default: {_plain(o.default)})"
    arg = tyro.conf.arg(
        name=o.word or None,
        help=o.help,
        metavar=_metavar(o),
        aliases=(o.short,) if o.short else None,
        help_behavior_hint=default,
    )
    if o.positional:
        if o.repeated:
            return Annotated[tyro.conf.Positional[list[str]], arg]
        return Annotated[tyro.conf.Positional[str], arg]
    if o.repeated:
        return Annotated[tyro.conf.UseAppendAction[list[str]], arg]
    return Annotated[str, arg]


def _tyro_default(o: Option) -> Any:
    if o.kind is bool:
        return field(default=bool(o.default))
    return field(default_factory=list) if o.repeated else field(default=_UNTOLD)


def _metavar(o: Option) -> str:
    if o.metavar:
        return o.metavar
    if o.positional:
        return o.name.upper()
    if get_origin(o.kind) is Literal:
        return "{" + ",".join(map(str, get_args(o.kind))) + "}"
    if get_origin(o.kind) is tuple:
        return ",".join("X" for _ in get_args(o.kind))
    return "KEY=VALUE" if o.repeated else _METAVARS.get(o.kind, "TEXT")


def _plain(value: Any) -> str:
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _one_sentence(box: str) -> str:
    """The first paragraph of tyro's boxed message, as one line."""
    lines = [line.strip("│ ").strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    ruled = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    text = " ".join(line for line in lines[:ruled] if line)
    return re.sub(r"\.$", "", text[:1].lower() + text[1:]) or "the options could not be read"


def _stray(token: str, options: Sequence[Option], prog: str) -> str:
    if token.startswith("-"):
        flags = [o.flag for o in options if not o.positional]
        return registry.unknown(f"option of `{prog}`", token.partition("=")[0], flags)
    if any(o.name == "prompt" for o in options):
        return f"unexpected {token!r}; a prompt of several words goes in quotes"
    return f"unexpected {token!r}; see `{prog} --help`"


# -------------------------------------------------------------------------------------- the values


def convert(o: Option, value: Any, where: str = "") -> Any:
    """A word of the command line, or a value of a config file, as the option's type."""
    kind = o.kind
    if o.path or kind is Path:
        value = _at_home(value)
    try:
        if o.repeated:
            if get_origin(kind) is list or kind is list:
                return _list(value)
            told = _texts(o, value) if get_args(kind) == (str, str) else _mapping(value)
            return _at_home(told) if o.path else told
        if get_origin(kind) is Literal:
            return _choice(value, get_args(kind))
        if get_origin(kind) is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            inner = get_args(kind)
            return tuple(_scalar(t, p) for t, p in zip(inner, parts, strict=True))
        return _scalar(next((each for each in o.kinds if values.fits(value, each)), kind), value)
    except BadRequest:
        raise
    except (TypeError, ValueError):
        raise BadRequest(f"{where}{o.shown} is {quoted(value)}; expected {_expected(o)}") from None


def _at_home(value: Any) -> Any:
    """Paths that begin with ``~`` from the user's home, also behind ``NAME=``; a file of that name is ``./~``.

    The shell does this only where ``~`` begins a word, and nobody does it for a config file.
    """
    if isinstance(value, str):
        found = _FROM_HOME.fullmatch(value)
        with contextlib.suppress(RuntimeError):  # nobody of that name has a home here
            return value if found is None else found["name"] + str(Path(found["path"]).expanduser())
        return value
    if isinstance(value, Mapping):
        return {key: _at_home(each) for key, each in value.items()}
    return [_at_home(each) for each in value] if isinstance(value, list | tuple) else value


def _scalar(kind: type, value: Any) -> Any:
    if isinstance(value, str) and kind in (int, float, Path):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path or type(value) is not kind:
        raise TypeError
    return value


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise ValueError


def _list(value: Any) -> list[str]:
    """Words of the command line, or a list or single text of a config file."""
    if isinstance(value, Mapping):
        raise TypeError
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _mapping(value: Any) -> dict[str, Any]:
    """``["motion-bucket=127"]`` or a table of a config file, as names to plain values."""
    if isinstance(value, Mapping):
        return {str(k).replace("-", "_"): v for k, v in value.items()}
    pairs = [str(v).split("=", 1) for v in value]
    return {name.replace("-", "_"): _literal(word) for name, word in pairs}


def _texts(o: Option, value: Any) -> dict[str, str]:
    """``["8-15=a blue ball"]`` or a table of a config file as texts by name, as they are; each name once."""
    pairs = list(value.items()) if isinstance(value, Mapping) else [str(v).split("=", 1) for v in value]
    told: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(text, str):
            raise TypeError
        if str(name) in told:
            raise BadRequest(f"{o.flag} {bounds.printable(str(name), 40)} is given twice; give it once")
        told[str(name)] = text
    return told


def _literal(word: str) -> Any:
    try:
        json.loads(word)
    except ValueError:
        return word  # words need no quotes
    except RecursionError:
        pass
    return bounds.from_json(word, "an option's value")


def _expected(o: Option) -> str:
    if o.repeated:
        return o.metavar or "KEY=VALUE"
    if get_origin(o.kind) is Literal:
        return " or ".join(map(str, get_args(o.kind)))
    if get_origin(o.kind) is tuple:
        return f"{len(get_args(o.kind))} numbers with commas between them"
    return _WORDS.get(o.kind, "another value")


# --------------------------------------------------------------------------------- the config file


def _config_file(options: Sequence[Option], path: Path) -> dict[str, Any]:
    by_name = {o.name: o for o in options if o.name != "config"}
    told = {}
    for key, value in _table(path).items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            raise BadRequest(f"{path}: {registry.unknown('option', str(key), by_name)}")
        told[name] = convert(by_name[name], value, where=f"{path}: ")
    return told


def _table(path: Path) -> Mapping[str, Any]:
    """The top table of a YAML, TOML or JSON file."""
    where = f"the config file {bounds.printable(str(path), 200)}"
    readers = {".toml": bounds.from_toml, ".json": bounds.from_json, ".yaml": _yaml, ".yml": _yaml}
    if path.suffix.lower() not in readers:
        raise BadRequest(f"{bounds.printable(str(path), 200)} is not a config file: expected .yaml, .toml or .json")
    text = bounds.decoded(bounds.read_bytes(path, bounds.MAX_CONFIG, "a config"), where)
    table = readers[path.suffix.lower()](text, where)
    if not isinstance(table, Mapping):
        raise BadRequest(f"{where} holds no table of names and values")
    return table


def _yaml(text: str, where: str) -> Any:
    return bounds.from_yaml(text, where) or {}
