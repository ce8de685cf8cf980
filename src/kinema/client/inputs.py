"""The files of a request: sent to the service as assets, each content once, and their names in recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.bounds import printable
from kinema.client.http import Http
from kinema.events import OnEvent, Phase
from kinema.schema import BadRequest, Request

if TYPE_CHECKING:
    from kinema.system import Family

IDENTIFIER = re.compile(r"(asset-|video_)[0-9a-z]{20,32}")
"""What a service calls its files. Such a value is passed on, unless a file of that name exists."""


@dataclass(frozen=True)
class Sent:
    """A request whose files are identifiers, and the own names of these files."""

    request: Request
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that hold files, with the own names in them."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Names of the files in the family's options, by the SHA-256 of their content."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Names of all files that were sent, by the service's identifiers."""

    def worded(self, sentence: str) -> str:
        """A sentence of the service with the files' own names in place of its identifiers."""
        return IDENTIFIER.sub(lambda found: self.own.get(found[0], found[0]), sentence)

    def renamed(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe with the files' own names in place of the service's, as a local run writes it."""
        inputs = recipe.get("extra_inputs") or {}
        own = {name: self.extra[digest] for name, digest in inputs.items() if digest in self.extra}
        record = {**recipe, "stages": [self._renamed(stage, own) for stage in recipe["stages"]]}
        return record | {"extra_inputs": {own.get(k, k): v for k, v in inputs.items()}} if inputs else record

    def _renamed(self, stage: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
        from kinema.provenance import substituted

        request = dict(stage["request"])
        request |= {name: value for name, value in self.fields.items() if name in request}
        if "extra" in request:
            request["extra"] = substituted(request["extra"], own)
        return {**stage, "request": request}


class Uploads:
    """Sends files to a service, each content once as long as this object lives."""

    def __init__(self, http: Http, family_of: Callable[[], Family | None]) -> None:
        """``family_of`` finds the family of the service's model, which knows which options are files."""
        self.http, self.family_of = http, family_of
        self.assets: dict[str, str] = {}
        """Identifiers by SHA-256."""

    def order(
        self, request: Request, on_event: OnEvent, post: Callable[[Request], dict[str, Any]]
    ) -> tuple[Sent, dict[str, Any]]:
        """Send the files of a request, then the request with ``post``. Files that were sent earlier and are gone from
        the service by now are sent again; another refusal names the files as the caller does.
        """
        earlier = set(self.assets.values())
        while True:
            sent = self.send(request, on_event)
            try:
                return sent, post(sent.request)
            except BadRequest as error:
                missing = [name for name in earlier if f"there is no asset {name!r}" in str(error)]
                gone = {digest: name for digest, name in self.assets.items() if name in missing}
                if not gone:
                    raise BadRequest(sent.worded(str(error))) from None
            for digest, name in gone.items():
                self.assets.pop(digest, None)
                earlier.discard(name)

    def send(self, request: Request, on_event: OnEvent) -> Sent:
        """Send the files of a request. Raises BadRequest for one that is missing, a folder, or refused."""
        roles = {role: file for role, file in request.files().items() if not _is_identifier(file)}
        options = self._files_in_options(request)
        if not roles and not options:
            return Sent(request)
        from kinema.provenance import file_hash, names, substituted
        from kinema.registry import file_name

        digests: dict[str, str] = {}
        for file in (*roles.values(), *options):
            _check(file)
            digests[file] = digests.get(file) or file_hash(Path(file))
            if digests[file] not in self.assets:
                on_event(Phase("upload", printable(Path(file).name, 80)))
                self.assets[digests[file]] = self._upload(Path(file))
        identifiers = {file: self.assets[digest] for file, digest in digests.items()}
        sent = request.with_files({role: identifiers[file] for role, file in roles.items()})
        if options:
            sent = sent.with_(extra=substituted(request.extra, {file: identifiers[file] for file in options}))
        unique = names(options)
        return Sent(
            sent,
            _changed(request.with_files({role: file_name(file) for role, file in roles.items()}), sent),
            {digests[file]: unique[file] for file in options},
            {identifier: printable(Path(file).name, 80) for file, identifier in identifiers.items()},
        )

    def _files_in_options(self, request: Request) -> tuple[str, ...]:
        """Files in the options of the model's family; the service is asked for it only if an option could be one."""
        if not any(_exists(text) for text in _texts(request.extra)):
            return ()
        family = self.family_of()
        files = family.sampling.files(Request(extra=request.extra)) if family else ()
        return tuple(file for file in files if not _is_identifier(file))

    def _upload(self, path: Path) -> str:
        with path.open("rb") as file:
            asset = self.http.json("POST", "/v1/assets", files={"file": (path.name, file)})
        identifier = asset.get("id")
        if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
            raise BadRequest(f"{self.http.url} did not say under which name it keeps {printable(path.name, 80)}")
        return identifier


def _changed(named: Request, sent: Request) -> dict[str, Any]:
    """The fields of the first request, as JSON, that differ from the second; the family's options aside."""
    own, other = (json.loads(each.to_json()) for each in (named, sent))
    return {name: value for name, value in own.items() if value != other.get(name) and name != "extra"}


def _check(file: str) -> None:
    from kinema.media.containers import readable_path

    if readable_path(Path(file)).is_dir():
        raise BadRequest(f"{printable(file, 200)} is a folder; a service takes image and video files only")


def _is_identifier(text: str) -> bool:
    return IDENTIFIER.fullmatch(text) is not None and not _exists(text)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or a zero byte
        return False


def _texts(value: Any) -> list[str]:
    """All texts in a nested value, keys of mappings included."""
    if isinstance(value, Mapping):
        return [text for pair in value.items() for each in pair for text in _texts(each)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    return [str(value)] if isinstance(value, str | Path) and str(value) else []
