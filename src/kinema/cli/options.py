"""Options (`kinema.options`) read from the command line and a config file.

tyro splits the command line; values from the command line and from a config file then pass the same checks here, so
both give the same error messages.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from kinema import bounds, registry, values
from kinema.bounds import quoted
from kinema.cli.help import Entry, page
from kinema.options import Option
from kinema.schema import BadRequest

_FROM_HOME = re.compile(r"(?P<name>(?:[\w. -]+=)?)(?P<path>~|~[^/]*/.*)", re.DOTALL)
_ABSENT = "\0absent"
_MISSING = re.compile(r"Missing value for argument '(?:-\w/)?(?P<flag>[\w-]+)'")
"""tyro's message for an option at the end of the command line."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf", re.IGNORECASE)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def parse(  # noqa: PLR0917
    options: Sequence[Option],
    argv: Sequence[str],
    prog: str,
    about: str,
    example: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The options the user passed, by name; the command line overrides the config file.

    Options that were not passed are absent. ``elsewhere`` maps the flags of other commands to those commands, for
    error messages. Raises BadRequest for unknown options and invalid values; ``--help`` prints the page
    (`help.page`) and raises SystemExit(0).
    """
    end = argv.index("--") if "--" in argv else len(argv)
    if {"-h", "--help"} & set(argv[:end]):
        positional = [o for o in options if o.positional]
        usage = " ".join([prog, *(f"[{o.label.upper()} …]" if o.repeated else o.label.upper() for o in positional)])
        named = [_entry(o) for o in options if not o.positional]
        sys.stdout.write(page(f"{usage} [OPTIONS]", about, example, list(map(_entry, positional)), named, groups or {}))
        raise SystemExit(0)
    given = _command_line(options, argv, prog, elsewhere or {})
    if "config" in given:
        given = {**_config_file(options, Path(given["config"])), **given}
    return given


def _entry(o: Option) -> Entry:
    """The row of an option in the help page."""
    if o.positional:
        label = o.label.upper()
    else:
        flag = f"--no-{o.flag[2:]}" if o.kind is bool and o.default else o.flag
        label = (f"{o.short}, " if o.short else "") + flag + ("" if o.kind is bool else f" {o.value_name}")
    if o.kind is bool or o.repeated or o.default in (None, "", (), {}):
        return Entry(o.name, label, o.help)
    default = ",".join(f"{v:g}" for v in o.default) if isinstance(o.default, tuple) else str(o.default)
    return Entry(o.name, label, f"{o.help} (default: {default})")


def with_defaults(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option: as passed, or its default."""
    return {o.name: given.get(o.name, o.default) for o in options}


# --------------------------------------------------------------------------------- the command line


def _command_line(
    options: Sequence[Option], argv: Sequence[str], prog: str, elsewhere: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    import tyro

    end = argv.index("--") if "--" in argv else len(argv)
    flags = _joined(options, [_dashes(token) for token in argv[:end]])
    command: Any = make_dataclass("Command", [(o.name, _annotation(o), _tyro_default(o)) for o in options], frozen=True)
    printed = io.StringIO()
    parsed: Any
    unknown: list[str]
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(command, args=[*flags, *argv[end:]], prog=prog, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadRequest(_one_sentence(printed.getvalue())) from None
    if unknown:
        raise BadRequest(_unexpected(unknown[0], options, prog, elsewhere))
    given = {}
    for o in options:
        value = getattr(parsed, o.name)
        if o.kind is bool:
            if o.flag in flags or f"--no-{o.flag[2:]}" in flags:
                given[o.name] = value
        elif value not in (_ABSENT, []):
            given[o.name] = convert(o, value)
    return given


def _dashes(token: str) -> str:
    """``--negative_prompt=x`` as ``--negative-prompt=x``: both spellings are accepted."""
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else token


def _joined(options: Sequence[Option], argv: Sequence[str]) -> list[str]:
    """``--region 0 0 1 1`` as ``--region 0,0,1,1``: both forms are accepted."""
    sizes = {o.flag: len(get_args(o.kind)) for o in options if get_origin(o.kind) is tuple}
    joined: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        joined.append(token)
        numbers: list[str] = []
        while token in sizes and rest and len(numbers) < sizes[token] and _NUMBER.fullmatch(rest[0]):
            numbers.append(rest.pop(0))
        if numbers:
            joined.append(",".join(numbers))
    return joined


def _annotation(o: Option) -> Any:
    import tyro

    if o.kind is bool:
        return bool
    arg = tyro.conf.arg(name=o.word or None, metavar=o.value_name, aliases=(o.short,) if o.short else None)
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
    return field(default_factory=list) if o.repeated else field(default=_ABSENT)


def _one_sentence(box: str) -> str:
    """The first paragraph of tyro's boxed message, as one line."""
    lines = [line.strip("│ ").strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    ruled = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    text = " ".join(line for line in lines[:ruled] if line)
    if missing := _MISSING.match(text):
        return f"{missing['flag']} needs a value"
    return re.sub(r"\.$", "", text[:1].lower() + text[1:]) or "the options could not be read"


def _unexpected(token: str, options: Sequence[Option], prog: str, elsewhere: Mapping[str, Sequence[str]]) -> str:
    """The error message for a token that is no option or value of this command."""
    flag = token.partition("=")[0]
    if commands := elsewhere.get(flag):
        *first, last = (f"`{command}`" for command in commands)
        others = f"{', '.join(first)} or {last}" if first else last
        return f"`{prog}` has no option {flag}; use {others}"
    if token.startswith("-"):
        return registry.unknown_name(f"option of `{prog}`", flag, [o.flag for o in options if not o.positional])
    if any(o.name == "prompt" for o in options):
        return f"unexpected {token!r}; put a prompt of several words in quotes"
    return f"unexpected {token!r}; see `{prog} --help`"


# -------------------------------------------------------------------------------------- the values


def convert(o: Option, value: Any, where: str = "") -> Any:
    """A value of the command line or a config file, converted to the option's type."""
    kind = o.kind
    if o.path or kind is Path:
        value = _at_home(value)
    try:
        if o.repeated:
            if get_origin(kind) is list or kind is list:
                return _list(value)
            mapping = _texts(o, value) if get_args(kind) == (str, str) else _mapping(value)
            return _at_home(mapping) if o.path else mapping
        if get_origin(kind) is Literal:
            return _choice(value, get_args(kind))
        if get_origin(kind) is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            inner = get_args(kind)
            return tuple(_scalar(t, p) for t, p in zip(inner, parts, strict=True))
        return _scalar(next((each for each in o.kinds if values.matches(value, each)), kind), value)
    except BadRequest:
        raise
    except (TypeError, ValueError):
        raise BadRequest(f"{where}{o.label} is {quoted(_offending(o, value))}; expected {_expected(o)}") from None


def _offending(o: Option, value: Any) -> Any:
    """The item of a repeated option that could not be read; any other value as a whole."""
    items = value if o.repeated and isinstance(value, list) else ()
    return next((item for item in items if isinstance(item, str) and "=" not in item), value)


def _at_home(value: Any) -> Any:
    """Paths with a leading ``~`` expanded, also after ``NAME=``; a file named ``~`` is written ``./~``.

    The shell expands ``~`` only at the start of a word, and never in a config file.
    """
    if isinstance(value, str):
        found = _FROM_HOME.fullmatch(value)
        with contextlib.suppress(RuntimeError):  # no such user
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
    """Values of the command line, or a list or single text of a config file."""
    if isinstance(value, Mapping):
        raise TypeError
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _mapping(value: Any) -> dict[str, Any]:
    """``["motion-bucket=127"]`` or a table of a config file, as a mapping of names to plain values."""
    if isinstance(value, Mapping):
        return {str(k).replace("-", "_"): v for k, v in value.items()}
    pairs = [str(v).split("=", 1) for v in value]
    return {name.replace("-", "_"): _literal(text) for name, text in pairs}


def _texts(o: Option, value: Any) -> dict[str, str]:
    """``["8-15=a blue ball"]`` or a table of a config file, as texts by name; a repeated name is refused."""
    pairs = list(value.items()) if isinstance(value, Mapping) else [str(v).split("=", 1) for v in value]
    texts: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(text, str):
            raise TypeError
        if str(name) in texts:
            raise BadRequest(f"{o.flag} {bounds.printable(str(name), 40)} is given twice; give it once")
        texts[str(name)] = text
    return texts


def _literal(text: str) -> Any:
    try:
        json.loads(text)
    except ValueError:
        return text  # plain text needs no quotes
    except RecursionError:
        pass
    return bounds.from_json(text, "an option's value")


def _expected(o: Option) -> str:
    if o.repeated:
        return o.metavar or "KEY=VALUE"
    if get_origin(o.kind) is Literal:
        return " or ".join(map(str, get_args(o.kind)))
    if get_origin(o.kind) is tuple:
        return f"{len(get_args(o.kind))} numbers separated by commas"
    return _WORDS.get(o.kind, "another value")


# --------------------------------------------------------------------------------- the config file


def _config_file(options: Sequence[Option], path: Path) -> dict[str, Any]:
    by_name = {o.name: o for o in options if o.name != "config"}
    given = {}
    for key, value in _table(path).items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            raise BadRequest(f"{path}: {registry.unknown_name('option', str(key), by_name)}")
        given[name] = convert(by_name[name], value, where=f"{path}: ")
    return given


def _table(path: Path) -> Mapping[str, Any]:
    """The top table of a YAML, TOML or JSON file."""
    where = f"the config file {bounds.printable(str(path), 200)}"
    readers = {".toml": bounds.from_toml, ".json": bounds.from_json, ".yaml": _yaml, ".yml": _yaml}
    if path.suffix.lower() not in readers:
        raise BadRequest(f"{bounds.printable(str(path), 200)} is not a config file: expected .yaml, .toml or .json")
    text = bounds.decoded(bounds.read_bytes(path, bounds.MAX_CONFIG, "a config"), where)
    table = readers[path.suffix.lower()](text, where)
    if not isinstance(table, Mapping):
        raise BadRequest(f"{where} has no table of option names and values")
    return table


def _yaml(text: str, where: str) -> Any:
    return bounds.from_yaml(text, where) or {}
