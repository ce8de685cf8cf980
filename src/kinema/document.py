"""Documents: a request together with its media in one JSON file, which the studio edits.

Python, the command line (``--document``) and the service take the same document and generate the same clip::

    {
      "kinema_document": 1,
      "model": "zoetrope",
      "loras": {"style": 0.8},
      "add": {"motion": "animatediff-pocket-motion"},
      "request": {"task": "inpaint", "prompt": "a green star spins", "seed": 7,
                  "video": "media:clip", "masks": {"0": "media:mask"}},
      "media": {
        "clip": {"name": "ball.mp4", "sha256": "…", "file": "ball.mp4"},
        "mask": {"name": "mask.png", "sha256": "…", "data": "iVBORw0…"}
      },
      "editor": {}
    }

``request`` holds the fields of `Request`; where a field is a file, it is ``media:NAME``, a name in ``media``. An entry
of ``media`` has the file's contents in base64 (``data``), or names a file in the document's folder (``file``) whose
hash must be the recorded one. Models, add-ons and LoRAs are names that Kinema lists, which `Document.opened` checks. So
a document from a stranger opens no other file. ``editor`` is what only an editor
uses, such as the frame that is shown. Imports without torch.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from kinema import bounds, registry
from kinema.atomic import replacing
from kinema.bounds import quoted
from kinema.schema import BadRequest, Request

VERSION = 1
SUFFIX = ".kinema.json"
MAX_MEDIA = 256
"""Maximum number of media."""
MAX_BYTES = 2**28
"""Maximum bytes of a document, and of all its media together."""
MAX_EDITOR = 2**16
"""Maximum characters of ``editor`` as JSON."""

_MEDIA = "media:"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_KEYS = ("kinema_document", "model", "loras", "add", "request", "media", "editor")
_OPENED = ("image_model", "super_resolution")
"""Fields of a request that name a model."""
_REFUSED = ("lora_folder", "loras")


@dataclass(frozen=True)
class Medium:
    """An image or clip: its file name, the hash of its contents, and the contents or the name of a file next to the
    document.
    """

    name: str
    sha256: str
    data: bytes | None = field(default=None, repr=False)
    file: str | None = None

    @staticmethod
    def of(path: str | Path) -> Medium:
        """Read a file whole. Raises `BadRequest` for anything but a regular file of up to `MAX_BYTES`."""
        data = bounds.read_bytes(Path(path), MAX_BYTES, "an image or clip")
        return Medium(registry.file_name(path), sha256(data).hexdigest(), data)

    def contents(self, folder: Path | None) -> bytes:
        """Return the contents, from ``folder`` if they are in a file. Raises `BadRequest` if the hash differs."""
        if self.data is not None:
            data, where = self.data, f"the medium {quoted(self.name)}"
        else:
            if folder is None:
                raise BadRequest(f"{quoted(self.file)} is a file next to the document, which was not read from a file")
            assert self.file is not None
            data = bounds.read_bytes(folder / self.file, MAX_BYTES, "an image or clip")
            where = bounds.printable(str(folder / self.file), 200)
        if sha256(data).hexdigest() != self.sha256:
            raise BadRequest(f"{where} is not the file that the document was made with: its hash differs")
        return data

    def to_table(self) -> dict[str, Any]:
        own = {"file": self.file} if self.data is None else {"data": base64.b64encode(self.data).decode()}
        return {"name": self.name, "sha256": self.sha256, **own}


@dataclass(frozen=True)
class Document:
    """A request and its media. ``request`` is in JSON form, with files as ``media:NAME``. ``add`` has names of add-ons
    by slot of the model.

    ``folder`` is where the document was read from; None if it was not read from a file.
    """

    request: Mapping[str, Any]
    media: Mapping[str, Medium] = field(default_factory=dict)
    model: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    editor: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    add: Mapping[str, str] = field(default_factory=dict)

    # ------------------------------------------------------------------------------ reading

    @staticmethod
    def read(path: str | Path) -> Document:
        """Read a document's file. Raises `BadRequest` for anything else."""
        path = Path(path)
        where = f"the document {bounds.printable(str(path), 200)}"
        text = bounds.decoded(bounds.read_bytes(path, MAX_BYTES * 3 // 2, "a document of Kinema (JSON)"), where)
        return Document.from_json(text, where, path.parent)

    @staticmethod
    def from_json(text: str | bytes, where: str = "the document", folder: Path | None = None) -> Document:
        """Parse a document. ``where`` names it in messages. Raises `BadRequest`."""
        table = bounds.from_json(text, where, longest=MAX_BYTES * 4 // 3 + 4)
        if not isinstance(table, Mapping) or "kinema_document" not in table:
            raise BadRequest(f"{where} is not a document of Kinema: it has no kinema_document")
        return Document.from_table(table, where, folder)

    @staticmethod
    def from_table(
        table: Mapping[str, Any],
        where: str = "the document",
        folder: Path | None = None,
        elsewhere: Collection[str] = (),
    ) -> Document:
        """Check a parsed document. ``elsewhere`` are names of media that the caller has. Raises `BadRequest`."""
        version = table.get("kinema_document")
        if type(version) is not int or not 1 <= version <= VERSION:
            newer = type(version) is int and version > VERSION
            hint = ": install a newer kinema" if newer else ""
            raise BadRequest(f"{where} has version {quoted(version)}; expected {VERSION}{hint}")
        for key in table:
            if key not in _KEYS:
                raise BadRequest(
                    f"{where} has {quoted(key)}, which is not a part of a document: {', '.join(_KEYS[1:])}"
                )
        for key in ("request", "media", "loras", "add", "editor"):
            if not isinstance(table.get(key, {}), Mapping):
                raise BadRequest(f"{where}: {key} is {quoted(table[key])}; expected a table")
        model, loras = table.get("model"), table.get("loras", {})
        if model is not None and not (isinstance(model, str) and model.strip()):
            raise BadRequest(f"{where}: model is {quoted(model)}; expected a name")
        for name, weight in loras.items():
            if type(weight) not in (int, float):
                raise BadRequest(
                    f"{where}: the weight of the LoRA {quoted(name)} is {quoted(weight)}; expected a number"
                )
        for slot, name in table.get("add", {}).items():
            if not isinstance(name, str) or not name.strip():
                raise BadRequest(f"{where}: the add-on {quoted(slot)} is {quoted(name)}; expected a name")
        if len(json.dumps(table.get("editor", {}))) > MAX_EDITOR:
            raise BadRequest(f"{where}: editor has more than {MAX_EDITOR:,} characters")
        media = _media(table.get("media", {}), where)
        editor, add = table.get("editor", {}), table.get("add", {})
        document = Document(table.get("request", {}), media, model, loras, editor, folder, add)
        document.with_files({name: name for name in (*media, *elsewhere)})  # invalid requests are refused now
        return document

    # ------------------------------------------------------------------------------ writing

    @staticmethod
    def of(
        request: Request,
        *,
        model: str | None = None,
        loras: Mapping[str, float] | None = None,
        add: Mapping[str, str] | None = None,
    ) -> Document:
        """Build a document of a request in which files are paths; their contents are read.

        Files in the options of a family (``extra``) must be given as ``media:NAME`` of a document already.
        """
        files = request.files()
        media: dict[str, Medium] = {}
        names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for role, file in files.items():
            name = taken.setdefault(file, f"m{len(taken) + 1}")
            media[name] = media.get(name) or Medium.of(file)
            names[role] = _MEDIA + name
        table = json.loads(request.with_files(names).with_(loras=None, lora_folder=None).to_json())
        weights = dict(loras if loras is not None else request.loras or {})
        return Document(table, media, model, weights, add=dict(add or {}))

    def to_json(self) -> str:
        table: dict[str, Any] = {"kinema_document": VERSION}
        table |= {"model": self.model} if self.model else {}
        table |= {"loras": dict(self.loras)} if self.loras else {}
        table |= {"add": dict(self.add)} if self.add else {}
        table |= {"request": dict(self.request), "media": {name: each.to_table() for name, each in self.media.items()}}
        table |= {"editor": dict(self.editor)} if self.editor else {}
        return json.dumps(table, ensure_ascii=False, indent=1)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the document with the contents of all media. Raises `kinema.atomic.AlreadyExists` for a taken name."""
        media = {name: Medium(each.name, each.sha256, each.contents(self.folder)) for name, each in self.media.items()}
        text = replace(self, media=media).to_json()
        with replacing(Path(path), exclusive=not overwrite) as part:
            part.write_text(text, encoding="utf-8")
        return Path(path)

    # ------------------------------------------------------------------------------ opening

    def without(self, *names: Literal["model", "add", "loras"]) -> Document:
        """Return the document without the names that the caller gives in place of its own.

        Add-ons are parts of a model, so a document without its model has none.
        """
        own = replace(self, add={}) if {"model", "add"} & {*names} else self
        own = replace(own, model=None) if "model" in names else own
        return replace(own, loras={}) if "loras" in names else own

    def with_files(self, files: Mapping[str, str]) -> Request:
        """Return the request with the file of each medium. Raises `BadRequest` for an invalid request, for a file that
        is not a medium, and for models that do not ship with Kinema.
        """
        table = dict(self.request)
        for name in _REFUSED:
            if table.get(name):
                raise BadRequest(f"a document's request has no {name}: LoRAs are named in its loras")
        for f in fields(Request):
            if f.name in table and f.name not in _OPENED and f.metadata.get("path"):
                loose = f.name == "extra"
                table[f.name] = _resolved(table[f.name], files, f.name, loose=loose)
        request = Request.from_table(table)
        for name in _OPENED:
            if (given := getattr(request, name)) is not None:
                check_ships(given, f"--{name.replace('_', '-')}")
        return request

    @contextmanager
    def opened(self) -> Iterator[Request]:
        """Write the media to a temporary folder and give the request that names them; the folder is removed afterwards.

        >>> with kinema.Document.read("star.kinema.json").opened() as request:
        ...     clip = kinema.load("zoetrope").run(request)

        Raises `BadRequest` also if an option of a family would open a file that is not a medium, and for a model, an
        add-on or a LoRA that Kinema does not list; leave out those that you give yourself (`without`).
        """
        self._check_names()
        with tempfile.TemporaryDirectory(prefix="kinema-document-") as name:
            files = self.written(Path(name))
            request = self.with_files(files)
            check_family_files(request, set(files.values()))
            yield request

    def _check_names(self) -> None:
        """Raise `BadRequest` for a model, an add-on or a LoRA that Kinema does not list."""
        if self.model is not None:
            check_ships(self.model, "--model")
        for slot, name in self.add.items():
            if name not in registry.EMBEDDED and registry.ADD_ONS.get(name, "lora") == "lora":
                raise BadRequest(
                    f"the document names the add-on {quoted(name)}, which Kinema does not list; give its file yourself "
                    f"with --add {slot}=FILE"
                )
        for name in self.loras:
            if registry.ADD_ONS.get(name) != "lora":
                raise BadRequest(
                    f"the document names the LoRA {quoted(name)}, which Kinema does not list; give its file yourself "
                    "with --lora"
                )

    def written(self, folder: Path) -> dict[str, str]:
        """Write the media into ``folder``, each under its own name in a folder of its own; return their paths."""
        files, total = {}, 0
        for number, (name, medium) in enumerate(self.media.items(), 1):
            data = medium.contents(self.folder)
            total += len(data)
            if total > MAX_BYTES:
                raise BadRequest(f"the document's media have more than {MAX_BYTES:,} bytes; use shorter clips")
            path = folder / str(number) / _safe(medium.name)
            path.parent.mkdir()
            path.write_bytes(data)
            files[name] = str(path)
        return files


def check_ships(model: str, option: str) -> None:
    """Raise `BadRequest` unless this model is known by name: a document opens no file and downloads nothing else."""
    known = {*registry.EMBEDDED, *registry.ALIASES, "none"}
    if model not in known and model.partition("/")[0] not in registry.FAMILIES:
        raise BadRequest(
            f"the document names the model {quoted(model)}, which Kinema does not list; give {option} yourself"
        )


def check_family_files(request: Request, files: set[str]) -> None:
    """Raise `BadRequest` if an option of a model family (``extra``) would open a file that is not in ``files``."""
    for name in registry.FAMILIES if request.extra else ():
        for file in registry.family(name).sampling.files(request):
            if str(file) not in files:
                raise BadRequest(f"the document's extra names the file {quoted(str(file))}; expected media:NAME")


def _media(table: Mapping[str, Any], where: str) -> dict[str, Medium]:
    if len(table) > MAX_MEDIA:
        raise BadRequest(f"{where} has {len(table):,} media; expected at most {MAX_MEDIA}")
    media, total = {}, 0
    for name, entry in table.items():
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{where}: the medium's name is {quoted(name)}; expected letters, digits, - and _")
        media[name] = _medium(entry, f"{where}: the medium {name}")
        total += len(media[name].data or b"")
        if total > MAX_BYTES:
            raise BadRequest(f"{where}: its media have more than {MAX_BYTES:,} bytes; use shorter clips")
    return media


def _medium(entry: Any, where: str) -> Medium:
    if not isinstance(entry, Mapping) or not {"name", "sha256"} <= entry.keys() <= {"name", "sha256", "data", "file"}:
        raise BadRequest(f"{where} is {quoted(entry)}; expected a name, a sha256, and data or file")
    name, digest = entry["name"], entry["sha256"]
    if not isinstance(name, str) or not name.strip() or len(name) > 255:
        raise BadRequest(f"{where} has the name {quoted(name)}; expected a file name")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise BadRequest(f"{where} has the sha256 {quoted(digest)}; expected 64 hexadecimal digits")
    if ("data" in entry) == ("file" in entry):
        raise BadRequest(
            f"{where} has {'both data and file' if 'data' in entry else 'neither data nor file'}; give one"
        )
    if "file" in entry:
        file = entry["file"]
        if not isinstance(file, str) or file != registry.file_name(file) or file.startswith(".") or "\0" in file:
            raise BadRequest(
                f"{where} has the file {quoted(file)}; expected the name of a file in the document's folder"
            )
        return Medium(name, digest, file=file)
    try:
        data = base64.b64decode(entry["data"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadRequest(f"{where} has data that is not base64") from error
    if sha256(data).hexdigest() != digest:
        raise BadRequest(f"{where} is damaged: the hash of its data is not its sha256")
    return Medium(name, digest, data)


def _resolved(value: Any, files: Mapping[str, str], what: str, *, loose: bool) -> Any:
    """Replace each ``media:NAME`` by its file; other texts are refused unless ``loose``."""
    if isinstance(value, Mapping):
        return {key: _resolved(inner, files, what, loose=loose) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, files, what, loose=loose) for inner in value]
    if not isinstance(value, str) or (loose and not value.startswith(_MEDIA)):
        return value
    name = value.removeprefix(_MEDIA)
    if not value.startswith(_MEDIA) or name not in files:
        listed = ", ".join(sorted(files)[:8]) or "none"
        raise BadRequest(f"the document's {what} is {quoted(value)}; expected media:NAME of its media ({listed})")
    return files[name]


def _safe(name: str) -> str:
    """Return a file name of letters, digits and ``._-`` that keeps its suffix."""
    cleaned = re.sub(r"[^\w.-]", "_", registry.file_name(name), flags=re.ASCII).lstrip(".")[-100:]
    return cleaned or "medium"
