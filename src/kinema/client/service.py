"""`connect` and the `Service` that it returns: the methods of `kinema.Model`, run by ``kinema serve`` elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.cancel import Cancel
from kinema.client.following import FINAL, Follower, Report
from kinema.client.http import STOP_SECONDS, Http, Message
from kinema.client.inputs import Sent, Uploads
from kinema.client.outputs import Figures, clip_of
from kinema.events import OnEvent, Phase, ignore
from kinema.schema import BadRequest, Cancelled, Clip, JobFailed, Request
from kinema.verbs import Verbs

if TYPE_CHECKING:
    from kinema.system import Family

TOKEN = "KINEMA_TOKEN"
PAGE = 100
POLL_SECONDS = 0.1
"""How often a run looks at its `Cancel` while nothing arrives."""
LEAVE_SECONDS = 10.0
"""Longest wait, when a run ends by an error, for the service to cancel its job."""


def connect(
    url: str, *, model: str | None = None, token: str | None = None, add: Mapping[str, str | Path] | None = None
) -> Service:
    """Connect to a service: ``kinema.connect("http://127.0.0.1:8000").generate("a red ball rolls right")``.

    ``model`` is a name that the service lists; None is its default. ``add`` are add-ons of the model by slot, also by
    names that it lists: ``{"style": "animatediff-pocket-night"}``. ``token`` is what the service was started with;
    None reads the environment variable KINEMA_TOKEN. Nothing is sent yet. Raises BadRequest for an invalid address.
    """
    names = {slot: str(name) for slot, name in (add or {}).items()}
    return Service(Http(url, token or os.environ.get(TOKEN)), model, names)


SHARED = ("extra", "sizes")
"""Tables that the rows of /v1/models only name."""


@dataclass(frozen=True, eq=False)
class Service(Verbs):
    """A video service with one method per task (`kinema.verbs.Verbs`), like a loaded model.

    Input files are sent to the service, each content once; LoRAs are named as it lists them. Clips have the pixels and
    the recipe that a local run with the same seed, device and number of threads gives. Errors of the service are
    raised as BadRequest with its sentence, and as JobFailed if it could not finish.
    """

    http: Http
    model: str | None = None
    add: Mapping[str, str] = field(default_factory=dict)
    uploads: Uploads = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uploads", Uploads(self.http, self._family))

    def run(
        self,
        request: Request,
        *,
        on_event: OnEvent = ignore,
        on_settled: Callable[[Request], None] | None = None,
        preview: Any = False,
        cancel: Cancel | None = None,
    ) -> Clip:
        """Generate the clip of a `Request`.

        ``on_settled`` is called with the clip's size and rate in the request; an exception from it cancels the job.
        ``preview`` asks for previews, at the service's rate and size. Once ``cancel`` is set, the job is cancelled and
        `Cancelled` raised, with the partial clip if the token asks for it; a clip that is finished first is returned.
        """
        if not isinstance(request, Request):
            raise BadRequest("a service runs a Request; recipes are replayed on this machine")
        if cancel is not None and cancel.cancelled:
            raise Cancelled(keep_partial=cancel.keep_partial)
        sent, job = self._ordered("/v1/videos", request, on_event)
        report = Report(on_event, sent.worded)
        work = _Work(self.http, job, sent)
        try:
            report(Message("status", job))
            if on_settled is not None:
                on_settled(work.settled(request))
            return work.follow(report, previews=preview is not False, cancel=cancel)
        except BaseException:  # Ctrl-C, an error of the listener, or a lost connection
            work.leave()
            raise

    def plan(self, request: Request) -> dict[str, Any]:
        """What the service would make of a request, without running it: size, steps, reasons, expected seconds."""
        return self._ordered("/v1/videos/plan", request, ignore)[1]

    def models(self) -> Sequence[Mapping[str, Any]]:
        """The models, add-ons and LoRAs that requests may name, as the service lists them."""
        page = self.http.json("GET", "/v1/models")
        return [_whole(row, page.get("shared")) for row in _rows(page)]

    def jobs(self, limit: int = PAGE) -> Sequence[Mapping[str, Any]]:
        """Up to ``limit`` jobs of the service, newest first."""
        found: list[Mapping[str, Any]] = []
        after: dict[str, Any] = {}
        while len(found) < limit:
            page = self.http.json(
                "GET", "/v1/videos", params={"limit": min(PAGE, limit - len(found)), "order": "desc"} | after
            )
            rows = _rows(page)
            found += rows
            if not rows or page.get("has_more") is not True:
                break
            after = {"after": str(rows[-1].get("id", ""))}
        return found[:limit]

    def close(self) -> None:
        """Close the connections. Jobs that run continue."""
        self.http.close()

    def _run(self, request: Request, *, on_event: OnEvent, preview: Any, cancel: Cancel | None) -> Clip:
        return self.run(request, on_event=on_event, preview=preview, cancel=cancel)

    def _ordered(self, path: str, request: Request, on_event: OnEvent) -> tuple[Sent, dict[str, Any]]:
        return self.uploads.order(request, on_event, lambda own: self.http.json("POST", path, json=self._order(own)))

    def _order(self, request: Request) -> dict[str, Any]:
        order: dict[str, Any] = {"request": json.loads(request.to_json())}
        order |= {} if self.model is None else {"model": self.model}
        return order | ({"add": dict(self.add)} if self.add else {})

    def _family(self) -> Family | None:
        """The family of the model, for which the service is asked."""
        from kinema import registry

        rows = self.models()
        named = [
            row for row in rows if row.get("id") == self.model or (self.model is None and row.get("default") is True)
        ]
        name = named[0].get("family") if named else None
        return registry.family(name) if isinstance(name, str) and name in registry.FAMILIES else None


class _Work:
    """A job that this client created."""

    def __init__(self, http: Http, job: Mapping[str, Any], sent: Sent) -> None:
        identifier = job.get("id")
        if not isinstance(identifier, str) or not identifier.replace("_", "").isalnum():
            raise BadRequest(f"{http.url} is not a kinema service: it did not name the job")
        self.http, self.path, self.sent = http, f"/v1/videos/{identifier}", sent
        self.figures = Figures.of(job.get("settled"), http.url)
        self.over = False

    def settled(self, request: Request) -> Request:
        """The request with the settled size and rate."""
        size = self.figures
        return request.with_(clips=size.clips, frames=size.frames, height=size.height, width=size.width, fps=size.fps)

    def follow(self, report: Report, *, previews: bool, cancel: Cancel | None) -> Clip:
        """Report events until the job ends, and return its clip."""
        follower = Follower(self.http, self.path.rpartition("/")[2], previews=previews)
        try:
            while True:
                if cancel is not None and cancel.cancelled:
                    return self._cancelled(report, keep=cancel.keep_partial)
                message = follower.next(POLL_SECONDS)
                if message is None:
                    continue
                report(message)
                if message.kind == "status" and message.data.get("status") in FINAL:
                    self.over = True
                    return self._ended(message.data, report)
        finally:
            follower.close()

    def _cancelled(self, report: Report, *, keep: bool) -> Clip:
        """Cancel the job; the service answers when its worker has stopped. Raises Cancelled, or returns the clip if it
        was finished first.
        """
        params = {"keep_partial": "true"} if keep else {}
        job = self.http.json("POST", f"{self.path}/cancel", params=params, seconds=STOP_SECONDS)
        if job.get("status") == "cancelled" and not keep:
            self.leave()
        self.over = True
        return self._ended(job, report, keep=keep)

    def _ended(self, job: Mapping[str, Any], report: Report, *, keep: bool = False) -> Clip:
        status, error = job.get("status"), job.get("error")
        code, sentence = (error.get("code"), error.get("message")) if isinstance(error, Mapping) else (None, None)
        sentence = self.sent.worded(sentence) if isinstance(sentence, str) else ""
        if status == "completed":
            return self._clip(job, report)
        if status == "cancelled":
            clip = self._clip(job, report) if keep and isinstance(job.get("result"), Mapping) else None
            raise Cancelled(sentence or "cancelled", clip, keep_partial=keep)
        if status == "failed" and code in ("invalid", "invalid_request"):
            raise BadRequest(sentence or "the service refused the request")
        raise JobFailed(sentence or f"the job of the service ended as {status}")

    def _clip(self, job: Mapping[str, Any], report: Report) -> Clip:
        report.on_event(Phase("download"))
        result = job.get("result")
        found = Figures.of(
            {"clips": self.figures.clips, **result} if isinstance(result, Mapping) else None, self.http.url
        )
        if not found.within(self.figures):
            raise BadRequest(f"{self.http.url} announces a larger clip than the job was settled with")
        clip = clip_of(self.http, f"{self.path}/content", found)
        return Clip(clip.video, clip.fps, self.sent.renamed(clip.recipe), clip.sound)

    def leave(self) -> None:
        """Cancel and remove the job unless it is over, as far as the service can be reached."""
        if not self.over:
            with contextlib.suppress(BadRequest, JobFailed):
                self.http.json("DELETE", self.path, seconds=LEAVE_SECONDS)


def _rows(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = page.get("data")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _whole(row: Mapping[str, Any], tables: Any) -> Mapping[str, Any]:
    """A row of a model, with the tables that models have in common in place of their names."""
    own = row.get("defaults")
    if not isinstance(own, Mapping) or not isinstance(tables, Mapping):
        return row
    named = {name: own[name] for name in SHARED if isinstance(own.get(name), str)}
    found = {name: tables[each] for name, each in named.items() if each in tables}
    return {**row, "defaults": {**own, **found}}
