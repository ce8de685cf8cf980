"""What the tests of the studio do on its pages."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path

from PIL import Image

AXE = Path(__file__).with_name("axe.min.js")
MOVED = re.compile(r"/v1/videos/\w+/move$")
"""The page shows a move before the service has answered."""


class Faults(list):
    """Errors that a page reports: exceptions, violations of the policy, and requests that were not expected to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: list[list[str]] = []

    def hear(self, page) -> None:
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda message: self.append(message.text) if message.type == "error" else None)
        page.on("response", self._answered)

    def clear(self) -> None:
        super().clear()
        self.refusals.clear()

    def _answered(self, answer) -> None:
        """Keep what the browser's console leaves out of a failed request: what was sent, and the service's reason."""
        if answer.status < 400:
            return
        asked, sent = answer.request, answer.request.post_data_buffer or b""
        lines = [f"{asked.method} {asked.url} with {sent[:2000]!r} was answered by {answer.status}"]
        self.refusals.append(lines)
        try:
            lines.append(answer.text()[:2000])
        except Exception as error:  # the page has gone on, and the browser has forgotten the answer
            lines.append(str(error))

    def __str__(self) -> str:
        return "\n".join(["The page reported:", *self, *(line for lines in self.refusals for line in lines)])


def planned(wanted):
    """A predicate of requests: a plan was asked for with a body like this. Earlier states of a form may be sent too."""
    return lambda each: "/v1/videos/plan" in each.url and wanted(each.post_data_json)


def describe(page, prompt: str, **values: object) -> None:
    """Fill in the form of Make."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in values.items():
        control = page.locator(f"[data-field={name}] :is(input, select)").first
        if control.evaluate("each => each.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))


def verb(page, name: str) -> None:
    page.locator(f"input[name=verb][value={name}]").check()


def start(page) -> str:
    """Press the button and return the identifier of the video."""
    with page.expect_response(
        lambda answer: answer.url.endswith("/v1/videos") and answer.request.method == "POST"
    ) as sent:
        page.locator("button.primary").click()
    answer = sent.value
    assert answer.status == 200, answer.text()
    return answer.json()["id"]


def finished(page) -> None:
    """Wait for the clip in the player."""
    page.wait_for_selector(".player video[src]")
    page.wait_for_function("() => document.querySelector('.player video').readyState >= 2")


def ask(server, path: str, method: str = "GET", body: object = None):
    """The service's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def order(server, prompt: str, model: str = "zoetrope/tiny", **request: object) -> str:
    """Queue a small clip without the page."""
    given = {"task": "generate", "prompt": prompt, "steps": 2, **request}
    return ask(server, "/v1/videos", "POST", {"model": model, "request": given})["id"]


def clear(server) -> None:
    """Remove all videos, and let the queue run."""
    ask(server, "/v1/queue/resume", "POST", {})
    while videos := ask(server, "/v1/videos?limit=100")["data"]:
        for each in videos:
            ask(server, f"/v1/videos/{each['id']}", "DELETE")


def many(page, server, video: str, count: int) -> None:
    """Let the page see ``count`` finished videos, all like this one."""
    model, thumbnail = ask(server, f"/v1/videos/{video}"), clip_of(server, video, "thumbnail")
    rows = [{**model, "id": f"video_{n:024d}", "prompt": f"clip {n}", "created_at": 10_000 - n} for n in range(count)]

    def listed(route):
        after = route.request.url.partition("after=")[2].partition("&")[0]
        start = int(after[6:]) + 1 if after else 0
        data = rows[start : start + 100]
        route.fulfill(json={"object": "list", "data": data, "last_id": data[-1]["id"], "has_more": start + 100 < count})

    page.route("**/v1/videos?*", listed)
    page.route("**/content?variant=thumbnail", lambda route: route.fulfill(body=thumbnail, content_type="image/webp"))


def clip_of(server, video: str, variant: str = "video") -> bytes:
    with urllib.request.urlopen(f"{server.url}/v1/videos/{video}/content?variant={variant}", timeout=120) as answer:
        return answer.read()


def frames_of(server, video: str):
    """The lossless frames of the first clip: T×H×W×3 uint8."""
    import numpy as np

    return np.load(io.BytesIO(clip_of(server, video, "frames")))["frames"][0]


def png(width: int = 64, height: int = 64, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    data = io.BytesIO()
    image = Image.new("RGB", (width, height), (190, 190, 185))
    image.paste(colour, (width // 3, height // 3, 2 * width // 3, 2 * height // 3))
    image.save(data, "png")
    return data.getvalue()


def drop(page, selector: str, name: str, kind: str, data: bytes) -> None:
    """Drop a file on an element, as the desktop does."""
    script = """([name, kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
        return data;
    }"""
    transfer = page.evaluate_handle(script, [name, kind, list(data)])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, event, {"dataTransfer": transfer})


def faults_of(page) -> list[str]:
    """Serious and critical faults that axe finds on the page."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['html'][:160]}: {node.get('failureSummary', '')[:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
