"""Bodies of /v1/videos as orders for the engine. The rules of single fields are in `fields`.

Nothing that a client sends becomes a path: files are identifiers of assets and videos, models and LoRAs are names, and
an image in a data: URL is decoded like an upload. `kinema.Request` checks types and ranges; the planner does the rest.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import anyio
import anyio.to_thread
from starlette.requests import Request as HttpRequest

from kinema import registry
from kinema.schema import MAX_FRAMES, BadRequest, Request, TaskName
from kinema.server.engine import Engine
from kinema.server.http import documents, fields
from kinema.server.http.errors import FieldError
from kinema.server.http.fields import FILES, OF_FAMILIES, Field
from kinema.server.http.forms import Form, nested, read_form, read_json
from kinema.server.http.security import content_type
from kinema.server.jobs import ASSET_ID, VIDEO_ID, Job, Order
from kinema.server.names import BY_FRAME
from kinema.server.settings import Settings
from kinema.spelling import named
from kinema.values import counted, quoted

VERBS: tuple[TaskName, ...] = get_args(TaskName)
_SIZE = re.compile(r"([0-9]{1,5})[x×]([0-9]{1,5})")
_SLOT = re.compile(r"[a-z][a-z0-9-]{0,31}(?:\.[\w-]{1,64})?")
MAX_ADD_ONS = 32
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{0,9})?")
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,40});base64,", re.IGNORECASE)
_FILE_FIELD = re.compile(rf"document|input_reference|{'|'.join(FILES)}|(?:{'|'.join(BY_FRAME)})\[[0-9]{{1,4}}\]")


@dataclass
class Body:
    """A body's fields by name, typed, and the assets that came with it."""

    values: dict[str, Any]
    assets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Route:
    """What a route permits: its verbs, and the verb of bodies that name none."""

    verbs: Collection[str] = VERBS
    default: TaskName | None = None
    needs: tuple[str, ...] = ()
    adds: bool = False
    """Whether ``seconds`` is the duration of the new part."""


CREATE = Route()
EDIT = Route(("edit", "inpaint", "upscale", "interpolate"), "edit", ("prompt", "video"))
EXTEND = Route(("extend",), "extend", ("prompt", "video"), adds=True)


class Bodies:
    """Reads bodies and turns them into orders."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings

    @asynccontextmanager
    async def received(self, request: HttpRequest) -> AsyncIterator[Body]:
        """The body of a request. Files in it become assets, which are removed again if the caller refuses the rest."""
        body = Body({})
        try:
            if content_type(request.headers) == "multipart/form-data":
                await self._read_form(request, body)
            else:
                body.values = await read_json(request)
            check_names(body.values)
            await self._take_data_url(body)
            await self._take_document(body)
            yield body
        except BaseException:
            await self.forget(body)
            raise

    async def forget(self, body: Body) -> None:
        """Remove the assets that came with a body."""
        with anyio.CancelScope(shield=True):
            for each in body.assets:
                await self._engine.forget_asset(each)
        body.assets.clear()

    async def _read_form(self, request: HttpRequest, body: Body) -> None:
        limits, folder = self._settings.limits, self._engine.uploads_folder
        form = await read_form(request, folder, limits, lambda name: _FILE_FIELD.fullmatch(name) is not None)
        try:
            await self._take(form, body)
        finally:
            await anyio.to_thread.run_sync(form.discard)

    async def _take(self, form: Form, body: Body) -> None:
        names = [each.field for each in form.files] + [name for name, _ in form.texts]
        if twice := {each.field for each in form.files if names.count(each.field) > 1}:
            raise FieldError(f"{min(twice)} is given twice; give it once", min(twice))
        texts = nested(form.texts)
        check_names({**texts, **{name.partition("[")[0]: None for name in names}})
        body.values = {name: from_form(fields.table().get(name), name, node) for name, node in texts.items()}
        for each in form.files:
            if each.field == "document":
                body.values["document"] = await anyio.to_thread.run_sync(documents.read, each.path)
                continue
            asset = await self._engine.add_asset(each.path, each.name)
            body.assets.append(asset.id)
            name, _, frame = each.field.rstrip("]").partition("[")
            if frame:
                others = body.values.setdefault(name, {})
                if frame in others:
                    raise FieldError(f"{each.field} is given twice; give it once", name)
                others[frame] = asset.id
            else:
                body.values[name] = asset.id

    async def _take_data_url(self, body: Body) -> None:
        """Replace ``image_url`` of the input reference by the identifier of an asset."""
        given = body.values.get("input_reference")
        if not isinstance(given, Mapping):
            return
        known = {"file_id", "image_url"}
        if len(given) != 1 or not given.keys() <= known or not all(isinstance(v, str) for v in given.values()):
            raise FieldError(f"input_reference is {quoted(given)}; expected file_id or image_url", "input_reference")
        if "file_id" in given:
            body.values["input_reference"] = given["file_id"]
            return
        path = self._engine.uploads_folder / f"upload-{secrets.token_hex(16)}"
        data = decoded_url(given["image_url"])
        try:
            await anyio.Path(path).write_bytes(data)
            asset = await self._engine.add_asset(path, "image")
        finally:
            await anyio.Path(path).unlink(missing_ok=True)
        body.assets.append(asset.id)
        body.values["input_reference"] = asset.id

    async def _take_document(self, body: Body) -> None:
        """Replace a document by the order in it; media that are in it become assets."""
        given = body.values.get("document")
        if given is None:
            return
        found = await anyio.to_thread.run_sync(documents.Given.of, given)
        for name, medium in found.embedded.items():
            path = self._engine.uploads_folder / f"upload-{secrets.token_hex(16)}"
            try:
                await anyio.Path(path).write_bytes(medium.contents(None))
                asset = await self._engine.add_asset(path, medium.name)
            finally:
                await anyio.Path(path).unlink(missing_ok=True)
            body.assets.append(asset.id)
            found.files[name] = asset.id
        body.values["document"] = found.order()

    # orders

    async def order(self, values: Mapping[str, Any], route: Route = CREATE) -> Order:
        """The order of a body. Raises `FieldError` naming the field."""
        values = {name: value for name, value in values.items() if value is not None}
        for name in route.needs:
            if name not in values:
                raise FieldError(f"{name} is missing", name, code="missing_value")
        if "document" in values and route is not CREATE:
            raise FieldError("a document is for /v1/videos and /v1/videos/plan; give single fields here", "document")
        if "request" in values:
            return self._given(values)
        request, names = renamed(values)
        if "document" in values:
            values, request = documents.overridden(values, request)
        request["task"] = verb_of(values, request, route)
        model, add = self._opened(values, request)
        await self._set_duration(values, request, model, route)
        return Order(model=model, request=checked(request, names), add=add)

    async def remix(self, values: Mapping[str, Any], job: Job) -> Order:
        """The order of a finished job with other values; it keeps the seed, so the clip keeps its layout."""
        if "prompt" not in values:
            raise FieldError("prompt is missing", "prompt", code="missing_value")
        values = {name: value for name, value in values.items() if value is not None}
        for name in ("request", "document"):
            if name in values:
                raise FieldError(f"a remix has single fields in place of a {name}", name)
        changes, names = renamed(values)
        request = {"seed": job.settled.seed, **job.order.request}
        if changes.keys() & {"size", "height", "width"}:
            request = {name: value for name, value in request.items() if name not in ("size", "height", "width")}
        request |= changes
        if values.keys() & {"verb", "task"}:
            request["task"] = verb_of(values, request, CREATE)
        own = {} if "model" in values else {"model": job.order.model, "add": job.order.add}
        model, add = self._opened({**own, **values}, request)
        await self._set_duration(values, request, model, CREATE)
        return Order(model=model, request=checked(request, names), remixed_from=job.id, add=add)

    def _given(self, values: Mapping[str, Any]) -> Order:
        """An order whose ``request`` is the JSON form of a `kinema.Request`."""
        if others := sorted(values.keys() - {"request", "model", "add"}):
            raise FieldError(f"{others[0]} and request are given; put {others[0]} into request", others[0])
        request = values["request"]
        if not isinstance(request, Mapping):
            raise FieldError(f"request is {quoted(request)}; expected an object", "request")
        model, add = self._opened(values, request)
        return Order(model=model, request=checked(dict(request), {}), add=add)

    def _opened(self, values: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
        """The names of the model and its add-ons; a clip of the service is changed by the model that it came from,
        unless others are named.
        """
        add = add_ons(values["add"]) if "add" in values else None
        if "model" in values:
            name = listed("model", values["model"])
            return self._settings.aliases.get(name, name), add or {}
        source = request.get("video")
        if isinstance(source, str) and VIDEO_ID.fullmatch(source):
            order = self._engine.get(source).order
            return order.model, order.add if add is None else add
        return self._settings.model, add or {}

    async def _set_duration(self, values: Mapping[str, Any], request: dict[str, Any], model: str, route: Route) -> None:
        """Set ``frames`` from ``seconds`` and the frame rate: the body's, the source clip's or the model's."""
        if "seconds" not in values:
            return
        seconds = duration(values["seconds"])
        if "frames" in request and values.keys() & {"frames", "num_frames"}:
            raise FieldError("seconds and frames set the same option; give one of them", "seconds")
        given = request.get("fps")
        source = self._source(request.get("video"))
        fps = given if isinstance(given, int | float) and not isinstance(given, bool) else None
        if fps is None:
            fps = source[1] if source else await self._default_fps(model)
        if not 0 < fps <= 240:
            raise FieldError(f"fps is {quoted(given)}; expected 0.1 to 240", "fps")
        frames = max(1, round(seconds * fps))
        if route.adds and source:
            if request.get("start") is not None or request.get("end") is not None:
                raise FieldError("seconds is not for a part of a clip; give frames for start and end", "seconds")
            kept = round(source[0] * fps / source[1])
            keep = request.get("keep")
            frames += min(kept, keep) if isinstance(keep, int) and not isinstance(keep, bool) else kept
        if frames > MAX_FRAMES:
            raise FieldError(
                f"seconds is {quoted(values['seconds'])}, which is {counted(frames, 'frame')} at {fps:g} frames per "
                f"second; expected at most {MAX_FRAMES:,} frames",
                "seconds",
            )
        request["frames"] = frames

    def _source(self, name: Any) -> tuple[int, float] | None:
        """Frames and frame rate of a source clip."""
        if not isinstance(name, str):
            return None
        if VIDEO_ID.fullmatch(name):
            job = self._engine.get(name)
            result = job.result or {}
            return int(result.get("frames", job.settled.frames)), float(result.get("fps", job.settled.fps))
        asset = self._engine.asset(reference("video", name))[0]
        return (asset.frames, asset.fps) if asset.fps else None

    async def _default_fps(self, model: str) -> float:
        for row in await self._engine.models():
            fps = (row.get("defaults") or {}).get("fps")
            if row["id"] == model and fps:
                return float(fps)
        raise FieldError(f"{quoted(model)} has no default frame rate; give fps with seconds, or num_frames", "seconds")


# ------------------------------------------------------------------------------------------- values


def check_names(values: Mapping[str, Any]) -> None:
    """Refuse unknown fields, with the nearest name."""
    known = fields.table()
    for name in values:
        if name not in known and name != "request":
            if name in ("lora_folder", "path"):
                raise FieldError(f"{name}: the service opens no paths of clients", name, code="unknown_field")
            raise FieldError(registry.unknown_name("field", name, known), name, code="unknown_field")


def from_form(f: Field | None, name: str, node: Any) -> Any:
    """A value of a form, by its field's type; tables of texts stay texts where the body says so."""
    if f is None or name in ("video", "input_reference") or name == "seconds":
        return fields.from_json(node, name, name) if isinstance(node, str) and node.lstrip().startswith("{") else node
    if name == "lora" and not isinstance(node, str):
        several = node if isinstance(node, list) else [node]
        return [_lora_from_form(each) for each in several]
    return fields.typed(name, f.type, node)


def _lora_from_form(node: Any) -> Any:
    if isinstance(node, Mapping) and isinstance(node.get("scale"), str):
        return {**node, "scale": fields.typed("lora[scale]", float, node["scale"])}
    return node


def renamed(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a body as fields of `Request`, and the names that the body uses for them."""
    request: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in values.items():
        f = fields.table()[name]
        if f.sets:
            _set(request, names, f.sets, value, name)
    for name, to in OF_FAMILIES.items():
        if name in values:
            extra = request.get("extra", {})
            if not isinstance(extra, Mapping):
                break  # refused below
            if to in extra:
                raise FieldError(f"{name} and extra set the same option; give one of them", name)
            _number(name, values[name])
            request["extra"] = {**extra, to: values[name]}
    if "lora" in values:
        _set(request, names, "loras", loras(values["lora"]), "lora")
    if "input_reference" in values:
        _set(request, names, "image", values["input_reference"], "input_reference")
    if isinstance(video := request.get("video"), Mapping):
        if video.keys() != {"id"}:
            raise FieldError(f"video is {quoted(video)}; expected an object with id", "video")
        request["video"] = video["id"]
    if "size" in values:
        _set_size(request, names, values["size"])
    return request, names


def _set(request: dict[str, Any], names: dict[str, str], to: str, value: Any, name: str) -> None:
    if to in request:
        raise FieldError(f"{names.get(to, to)} and {name} set the same option; give one of them", name)
    request[to], names[to] = value, name


def _set_size(request: dict[str, Any], names: dict[str, str], size: Any) -> None:
    if not isinstance(size, str):
        raise FieldError(f"size is {quoted(size)}; expected text such as 1280x720", "size")
    if not (found := _SIZE.fullmatch(size)):
        _set(request, names, "size", size, "size")
        return
    for to, digits in (("width", found[1]), ("height", found[2])):
        _set(request, names, to, int(digits), "size")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(f"{name} is {quoted(value)}; expected a number", name)
    return float(value)


def duration(value: Any) -> float:
    """Seconds as a number or text; above 0."""
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise FieldError(f"seconds is {quoted(value)}; expected a number above 0", "seconds")
    return float(value)


def loras(given: Any) -> dict[str, float]:
    """``{"name", "scale"}`` or a list of them, as names and weights."""
    several = given if isinstance(given, list) else [given]
    found: dict[str, float] = {}
    for each in several:
        if not isinstance(each, Mapping):
            raise FieldError(f"lora is {quoted(each)}; expected an object with name and scale", "lora")
        if "path" in each:
            raise FieldError("lora has a path, which the service never opens; name a LoRA of /v1/models", "lora")
        if unknown := sorted(set(each) - {"name", "scale"}):
            raise FieldError(f"lora: {registry.unknown_name('field', unknown[0], ('name', 'scale'))}", "lora")
        name = listed("lora", each.get("name"))
        if name in found:
            raise FieldError(f"lora {quoted(name)} is given twice; give it once", "lora")
        found[name] = _number("lora scale", each.get("scale", 1.0))
    return found


def add_ons(given: Any) -> dict[str, str]:
    """Add-ons by slot, as names that /v1/models could list."""
    if not isinstance(given, Mapping):
        raise FieldError(f"add is {quoted(given)}; expected an object of slots and names of add-ons", "add")
    if len(given) > MAX_ADD_ONS:
        raise FieldError(f"add has {len(given):,} slots; expected at most {MAX_ADD_ONS}", "add")
    for slot in given:
        if not _SLOT.fullmatch(slot):
            raise FieldError(f"add has the slot {quoted(slot)}; expected one such as motion or controlnet.depth", "add")
    return {slot: listed(f"add {slot}", name) for slot, name in given.items()}


def verb_of(values: Mapping[str, Any], request: Mapping[str, Any], route: Route) -> str:
    """The verb that a body names, or that follows from what it gives."""
    if "verb" in values and "task" in values:
        raise FieldError("verb and task set the same option; give one of them", "task")
    name = "task" if "task" in values else "verb"
    verb = values.get(name, route.default or ("animate" if request.get("image") else "generate"))
    if verb not in route.verbs:
        raise FieldError(f"{name} is {quoted(verb)}; expected {', '.join(route.verbs)}", name)
    return cast(str, verb)


def reference(name: str, value: Any) -> str:
    """The identifier of an asset or video."""
    if not isinstance(value, str) or not (VIDEO_ID.fullmatch(value) or ASSET_ID.fullmatch(value)):
        expected = "the identifier of an asset or video (upload files to /v1/assets)"
        raise FieldError(f"{name} is {quoted(value)}; expected {expected}", name.partition("[")[0])
    return value


def listed(name: str, value: Any) -> str:
    """A name that could be one of /v1/models: the engine decides whether it is. Paths and URLs never are."""
    text = value if isinstance(value, str) else ""
    parts = text.split("/")
    if (
        not 0 < len(text) <= 300
        or text.removeprefix("./")[:1] in ("", "/", "~", ".")  # "./NAME": a file whose name a model has already
        or ".." in parts
        or "" in parts
        or "\\" in text
        or ":" in text
        or not text.isprintable()
    ):
        raise FieldError(f"{name} is {quoted(value)}; expected a name that /v1/models lists", name.partition(" ")[0])
    return text


def decoded_url(url: str) -> bytes:
    """The bytes of a data: URL. Other URLs are refused: the service opens none."""
    found = _DATA_URL.match(url)
    if found is None:
        message = f"image_url is {quoted(url)}; expected a data: URL with a base64 image, as no other URL is opened"
        raise FieldError(message, "input_reference")
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
    except ValueError:
        data = b""
    if not data:
        raise FieldError("image_url holds no valid base64 data", "input_reference")
    return data


def checked(request: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The JSON form of a request whose types and ranges are valid and whose files are identifiers.

    ``names`` are the body's names of fields, for messages. Raises `FieldError`.
    """
    try:
        found = Request.from_table(request)
    except BadRequest as error:
        raise _of_body(named(str(error)), request, names) from None
    for name in FILES:
        if (file := getattr(found, name)) is not None:
            reference(names.get(name, name), file)
    for name in BY_FRAME:
        for frame, file in getattr(found, name).items():
            reference(f"{name}[{frame}]", file)
    for name in ("image_model", "super_resolution"):
        if (value := getattr(found, name)) is not None:
            listed(name, value)
    for lora in found.loras or ():
        listed(names.get("loras", "loras"), lora)
    if found.lora_folder is not None:
        raise FieldError("lora_folder is the service's own; name LoRAs that /v1/models lists", "lora_folder")
    return cast(dict[str, Any], json.loads(found.to_json()))


def _of_body(message: str, request: Mapping[str, Any], names: Mapping[str, str]) -> FieldError:
    """A message of `Request` with the body's name of the field."""
    first = message.partition(" ")[0]
    if first not in request:
        return FieldError(message)
    name = names.get(first, first)
    return FieldError(name + message[len(first) :], name)
