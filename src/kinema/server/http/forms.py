"""Read bodies: JSON within limits, and forms whose files are streamed to disk under names of the server's own."""

from __future__ import annotations

import codecs
import errno
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from kinema.server.http.errors import FieldError
from kinema.server.http.fields import from_json
from kinema.server.jobs import ServiceError
from kinema.server.settings import Limits
from kinema.values import cut_middle, quoted

MAX_PARTS = 256
MAX_FILES = 16
MAX_NAME = 200
"""Maximum characters of the name of a field or file."""
BUFFER = 2**18
"""Bytes of a file that are written at a time."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass
class Upload:
    """A file of a form: the field that it belongs to, the client's name for it (for display) and where it lies."""

    field: str
    name: str
    path: Path
    bytes: int = 0


@dataclass
class Form:
    """A form: texts in their order, and files. `discard` removes files that were not handed on."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[Upload] = field(default_factory=list)

    def discard(self) -> None:
        for each in self.files:
            each.path.unlink(missing_ok=True)


async def read_json(request: Request, *, empty: bool = False) -> dict[str, Any]:
    """The object in a JSON body; with ``empty``, no body counts as ``{}``. `FieldError` for anything else."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
    if not data and empty:
        return {}
    if data.startswith(codecs.BOM_UTF8):
        raise FieldError("the body begins with a byte order mark; expected JSON alone", code="invalid_json")
    try:
        value = from_json(data.decode(), "the body")
    except UnicodeDecodeError as error:
        raise FieldError(f"the body is not UTF-8 text (byte {error.start:,})", code="invalid_json") from None
    if not isinstance(value, dict):
        raise FieldError(f"the body is {quoted(value)}; expected an object", code="invalid_json")
    check_texts(value)
    return value


def check_texts(value: Any, name: str = "the body") -> None:
    """Refuse zero bytes and lone surrogates, which files and databases cannot hold, anywhere in a value."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FieldError(f"{name} holds half of a surrogate pair, which is no character", name) from None
        if "\0" in value:
            raise FieldError(f"{name} holds zero bytes, so it is not text", name)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            check_texts(key, name)
            check_texts(each, key if name == "the body" else name)
    elif isinstance(value, list):
        for each in value:
            check_texts(each, name)


# -------------------------------------------------------------------------------------------- forms


async def read_form(request: Request, folder: Path, limits: Limits, is_file: Callable[[str], bool]) -> Form:
    """Stream a form: files go to ``folder``, for fields that ``is_file`` allows. Leaves no file behind on an error."""
    parts = Parts(_boundary(request), folder, limits, is_file)
    try:
        async for chunk in request.stream():
            await parts.feed(chunk)
        return await parts.finish()
    except BaseException as error:
        parts.abandon()
        if isinstance(error, FormParserError):
            raise FieldError("the form is damaged: its parts cannot be separated", code="invalid_form") from None
        if isinstance(error, OSError) and error.errno in FULL:
            raise ServiceError(507, "disk_full", "the disk of the service is full") from None
        raise


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not re.fullmatch(rb"[\x20-\x7e]{1,200}", boundary):
        raise FieldError("the form has no valid boundary in its Content-Type", "Content-Type", code="invalid_form")
    return boundary


class Parts:
    """The parser's callbacks. They only collect; `feed` writes what they collected, in another thread."""

    def __init__(self, boundary: bytes, folder: Path, limits: Limits, is_file: Callable[[str], bool]) -> None:
        self._folder, self._limits, self._is_file = folder, limits, is_file
        self._form = Form()
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name = ""
        self._text: bytearray | None = None
        self._held = bytearray()
        self._file: BinaryIO | None = None
        self._todo: list[Callable[[], None]] = []
        self._parts = self._text_bytes = 0
        self._ended = False
        names = (
            *("on_part_begin", "on_part_data", "on_part_end", "on_header_field", "on_header_value", "on_header_end"),
            *("on_headers_finished", "on_end"),
        )
        self._parser = MultipartParser(boundary, {name: getattr(self, name) for name in names})  # type: ignore[arg-type]

    async def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)
        await self._write()

    async def finish(self) -> Form:
        self._parser.finalize()
        if not self._ended:
            raise FieldError("the form ends before its last boundary", code="invalid_form")
        await self._write()
        for each in self._form.files:
            if not each.bytes:
                raise FieldError(f"the file of {each.field} is empty", each.field)
        return self._form

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
        self._form.discard()

    async def _write(self) -> None:
        todo, self._todo = self._todo, []
        if todo:
            await anyio.to_thread.run_sync(_run, todo)

    # callbacks

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ServiceError(413, "too_large", f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FieldError("a part of the form has no name", code="invalid_form")
        self._name = _utf8(options[b"name"], "the name of a field")
        if not 0 < len(self._name) <= MAX_NAME:
            raise FieldError(f"a field's name has {len(self._name)} characters; expected 1 to {MAX_NAME}")
        check_texts(self._name, "the name of a field")
        if b"filename" not in options:
            self._text = bytearray()
            return
        if not self._is_file(self._name):
            raise FieldError(f"{quoted(self._name)} is a file, but this field takes none", self._name)
        if len(self._form.files) >= MAX_FILES:
            raise ServiceError(413, "too_large", f"the form has more than {MAX_FILES} files")
        self._text = None
        path = self._folder / f"upload-{secrets.token_hex(16)}"
        name = _shown(options[b"filename"].decode("utf-8", "replace"))
        self._form.files.append(Upload(self._name, name, path))
        self._todo.append(partial(self._open, path))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            upload = self._form.files[-1]
            upload.bytes += end - start
            if upload.bytes > self._limits.upload_bytes:
                raise ServiceError(413, "too_large", f"a file is longer than {self._limits.upload_bytes:,} bytes")
            self._held += data[start:end]
            if len(self._held) >= BUFFER:
                self._flush()
            return
        self._text_bytes += end - start
        if self._text_bytes > self._limits.json_bytes:
            raise ServiceError(413, "too_large", f"the texts are longer than {self._limits.json_bytes:,} bytes")
        self._text += data[start:end]

    def on_part_end(self) -> None:
        if self._text is None:
            self._flush()
            self._todo.append(self._close)
            return
        text = _utf8(bytes(self._text), self._name)
        check_texts(text, self._name)
        self._form.texts.append((self._name, text))

    def on_end(self) -> None:
        self._ended = True

    # files

    def _flush(self) -> None:
        data, self._held = bytes(self._held), bytearray()
        if data:
            self._todo.append(partial(self._append, data))

    def _open(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _close(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None


def _run(todo: list[Callable[[], None]]) -> None:
    for each in todo:
        each()


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FieldError(f"{what} is not UTF-8 text", code="invalid_form") from None


def _shown(name: str) -> str:
    """A client's file name for display: its last part, printable, of bounded length."""
    last = re.split(r"[/\\]", name)[-1]
    return cut_middle("".join(c for c in last if c.isprintable()), MAX_NAME) or "upload"


# ------------------------------------------------------------------------------------ nested names

_BRACKETS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,4})")


def nested(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Texts by name, where ``a[b]`` is an entry of a table and ``a[]`` an item of a list, as the OpenAI SDK writes."""
    found: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, text in texts:
        parsed = _BRACKETS.fullmatch(name)
        if parsed is None:
            raise FieldError(f"the field name {quoted(name)} has unmatched brackets", name)
        count = counts[name] = counts.get(name, -1) + 1
        _put(found, [parsed[1], *re.findall(r"\[([^\[\]]*)\]", parsed[2])], text, count)
    for name, node in found.items():
        _check_lists(name, node)
    return found


def _put(table: dict[str, Any], keys: list[str], text: str, count: int) -> None:
    """Set a text. The ``count``-th ``lora[][name]`` belongs to the ``count``-th item of ``lora[]``."""
    name = keys[0]
    node: Any = table
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(node, str) or isinstance(node, list) != (key == ""):
            raise FieldError(f"{quoted(name)} is more than one of a text, a list and a table", name)
        empty: Any = text if following is None else [] if following == "" else {}
        if isinstance(node, list):
            if count >= len(node):
                node.append(empty)
            elif following is None:
                raise FieldError(f"{quoted(name)} is given twice", name)
            node = node[count if count < len(node) else -1]
        elif following is None:
            if key in node:
                raise FieldError(f"{quoted(name)} is given twice; give it once", name)
            node[key] = text
        else:
            node = node.setdefault(key, empty)


def _check_lists(name: str, node: Any) -> None:
    """Refuse lists of tables with different names, whose values cannot be assigned to items."""
    if isinstance(node, list):
        tables = [each for each in node if isinstance(each, dict)]
        if tables and (len(tables) < len(node) or any(each.keys() != tables[0].keys() for each in tables)):
            raise FieldError(f"the items of {quoted(name)} differ in their names; send the body as JSON", name)
    elif isinstance(node, dict):
        for each in node.values():
            _check_lists(name, each)
