"""``--server URL``: a verb or a plan on a video service in place of this machine"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.options import Option
from kinema.schema import BadRequest, Request
from kinema.values import matches

if TYPE_CHECKING:
    from kinema.client.service import Service
    from kinema.forecast import Forecast

SERVER = Option(
    "server",
    str | None,
    None,
    "run on the video service (`kinema serve`) at this address, such as http://127.0.0.1:8000; its token is read from "
    "the environment variable KINEMA_TOKEN",
    metavar="URL",
)
LOCAL = (
    *("variant", "device", "dtype", "threads", "offline", "memory", "offload", "chunk_tokens", "compile"),
    *("record_paths", "lora_folder", "embeddings", "measure"),
)
"""Options that belong to the machine that runs the model: with a service, to the one that started it."""
MEASURED = ("seconds", "seconds_a_step", "network_calls", "peak_bytes")
"""Fields of a forecast that a service leaves out, since it never runs a clip to measure them."""


def connect(given: Mapping[str, Any], options: Sequence[Option], add: Mapping[str, str | Path]) -> Service:
    """The service of ``--server``; ``add`` has names of add-ons by slot. Raises BadRequest for options that cannot
    apply to it.
    """
    if local := [o.flag for o in options if o.name in LOCAL and o.name in given]:
        raise BadRequest(f"{local[0]} applies to this machine; leave it out with --server, which runs on another")
    from kinema.client.service import connect as to

    return to(given[SERVER.name], model=given.get("model"), add=add)


def with_loras(request: Request, weights: Mapping[Any, float]) -> Request:
    """The request with the LoRAs of ``--lora``, by the names that the service lists."""
    return request.with_(loras={str(name): weight for name, weight in weights.items()}) if weights else request


def plan(
    given: Mapping[str, Any], options: Sequence[Option], request: Request, add: Mapping[str, str | Path]
) -> Forecast:
    """The service's forecast, with the choices that it makes and the duration of its earlier jobs."""
    from kinema.forecast import Forecast

    service = connect(given, options, add)
    answer = service.plan(request)
    table, notes, seconds = answer.get("forecast"), answer.get("notes") or [], answer.get("seconds")
    table = {**dict.fromkeys(MEASURED), **table} if isinstance(table, Mapping) else {}
    if not (matches(table, Forecast) and matches(notes, list[str]) and matches(seconds, float | None)):
        raise BadRequest(f"{service.http.url} sent an unknown kind of forecast; update kinema there or here")
    result = Forecast(**{field.name: table[field.name] for field in fields(Forecast)})
    measured = [f"time: {answer['measured']}"] if isinstance(answer.get("measured"), str) and answer["measured"] else []
    own = [reason for reason in result.reasons if not (measured and reason.startswith("time: not measured"))]
    reasons = tuple(dict.fromkeys([*notes, *own, *measured]))
    return replace(result, seconds=seconds, missing=tuple(result.missing), reasons=reasons)
