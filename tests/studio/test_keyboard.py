"""Every control of every view is reached by keyboard, and what the pointer does on a picture, keys do too."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from acting import MOVED, ask, clip_of, order, planned, png, verb  # noqa: E402
from timeline_acting import made  # noqa: E402

CONTROLS = """() => {
    const inside = document.querySelector('dialog[open]') ?? document;
    const all = [...inside.querySelectorAll(
        'a[href], button, input, select, textarea, summary, canvas[tabindex], [role=slider], [role=button]')];
    return all.filter((each) => each.checkVisibility() && !each.disabled && !each.closest('[aria-hidden=true]'));
}"""
"""The elements that a user can act on, as far as they are shown."""
NAMED = f"""() => ({CONTROLS})().filter((each) => {{
    if (window.reached.has(each)) return false;
    const group = each.type === 'radio' && each.name;  // the arrow keys go to the others of its group
    return !group || ![...document.getElementsByName(each.name)].some((other) => window.reached.has(other));
}}).map((each) => each.outerHTML.slice(0, 160))"""
LISTEN = """() => {
    window.reached = new Set();
    addEventListener('focusin', (event) => window.reached.add(event.target));
    document.activeElement.blur();
}"""
POINTED = """() => [...document.querySelectorAll('body *')].filter((each) => {
    const pointed = !['auto', 'default', 'text', 'none', 'not-allowed'].includes(getComputedStyle(each).cursor);
    const inner = each.parentElement && getComputedStyle(each.parentElement).cursor === getComputedStyle(each).cursor;
    return pointed && !inner && each.checkVisibility() && !each.closest(
        'a, button, input, select, textarea, summary, label, canvas[tabindex], [role=slider], [role=button]');
}).map((each) => each.classList[0] ?? each.tagName)"""
KEYED = {
    "box-layer": "Enter on the frame makes a box, arrows move it",
    "compare-frame": "the slider Wipe",
    "job": "the buttons Move up and Move down",
    "lane-body": "the playhead",
    "region-area": "the four numbers of the region",
    "screen-media": "the button Play",
}
"""What only a pointer can grab, and how keys do the same; each is tested below or in the tests of its view."""


@pytest.fixture(scope="module")
def clips(server):
    return [made(server, f"a {colour} ball", model="zoetrope/tiny", steps=1, clips=2) for colour in ("red", "blue")]


def everything_is_reached(page) -> None:
    """Press Tab through the page or dialog, and check that no control is left out."""
    page.evaluate(LISTEN)
    count = len(page.evaluate(f"() => ({CONTROLS})().map(() => 1)"))
    assert count > 5
    for _ in range(count + 12):
        page.keyboard.press("Tab")
    assert page.evaluate(NAMED) == []
    assert set(page.evaluate(POINTED)) <= KEYED.keys()


def with_source(page, server, clips) -> None:
    page.locator("[data-field=video] input[type=file]").set_input_files(
        {"name": "ball.mp4", "mimeType": "video/mp4", "buffer": clip_of(server, clips[0])}
    )
    page.wait_for_selector(".trim")


def test_make_with_its_clip_its_options_and_its_region(server, opened, clips):
    page = opened()
    page.wait_for_selector(".player video[src]")
    verb(page, "inpaint")
    with_source(page, server, clips)
    page.locator(".more > summary").click()
    page.wait_for_selector(".more .group")
    page.evaluate("() => document.querySelectorAll('.more .group').forEach((each) => (each.open = true))")
    page.get_by_role("button", name="Add a LoRA").click()
    everything_is_reached(page)
    page.get_by_label("Prompt", exact=True).fill("a green star")
    with page.expect_request(planned(lambda sent: sent["request"].get("region") == [0.1, 0.2, 0.6, 0.7])):
        for side, value in (("left", "10"), ("top", "20"), ("right", "60"), ("bottom", "70")):
            page.get_by_label(f"Region, {side}, percent").focus()
            page.keyboard.type(value)


def test_the_gallery_its_details_the_comparison_and_the_seed_grid(opened, clips):
    page = opened("#gallery")
    page.wait_for_selector(".card img[src]")
    everything_is_reached(page)
    page.locator(".card-open").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".details[open] .recipe details")
    page.wait_for_selector(".player video[src]")
    everything_is_reached(page)
    page.keyboard.press("Escape")
    for card in page.locator(".card").all()[:2]:
        card.get_by_role("button", name="Compare").focus()
        page.keyboard.press("Enter")
    page.wait_for_selector(".compare[open]")
    everything_is_reached(page)
    page.get_by_label("Wipe").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator(".compare-frame").evaluate("each => each.style.getPropertyValue('--wipe')") == "3%"


def test_the_queue(server, opened, clips):
    ask(server, "/v1/queue/pause", "POST", {})
    first, second = (order(server, f"a {colour} box") for colour in ("red", "blue"))
    page = opened("#queue")
    page.wait_for_selector("ol.jobs > li >> nth=1")
    everything_is_reached(page)
    page.locator(f"[data-id={second}]").get_by_role("button", name="Move up").focus()
    with page.expect_response(MOVED):
        page.keyboard.press("Enter")
    page.wait_for_function("id => document.querySelector('ol.jobs > li').dataset.id === id", arg=second)
    assert ask(server, "/v1/queue")["queued"] == [second, first]
    for each in (first, second):
        ask(server, f"/v1/videos/{each}", "DELETE")
    ask(server, "/v1/queue/resume", "POST", {})


def test_the_models(opened):
    page = opened("#models")
    page.wait_for_selector(".model")
    page.get_by_label("Filter models").fill("pocket")
    everything_is_reached(page)


class Document:
    """The document of a timeline, as its plans send it."""

    def __init__(self, page) -> None:
        self.page, self.last = page, {}
        page.on("request", self._hear)

    def _hear(self, request) -> None:
        if "/videos/plan" in request.url:
            self.last = request.post_data_json["document"]

    def until(self, name: str, expected) -> object:
        """Wait until a field of the request is as expected, by value or by a function of it."""
        for _ in range(2400):
            value = self.last.get("request", {}).get(name)
            if expected(value) if callable(expected) else value == expected:
                return value
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{name} is {value}")


def test_the_timeline_is_edited_by_keys_alone(server, opened, clips):
    pytest.importorskip("cv2")
    page = opened("#timeline")
    document = Document(page)
    page.wait_for_selector(".stage-canvas")
    keys = page.keyboard

    def press(name: str, key: str = "Enter") -> None:
        page.get_by_role("button", name=name).first.focus()
        keys.press(key)

    def choose(name: str, file: str, kind: str, data: bytes) -> None:
        with page.expect_file_chooser() as chooser:
            press(name)
        chooser.value.set_files({"name": file, "mimeType": kind, "buffer": data})

    choose("Add a clip or image", "ball.mp4", "video/mp4", clip_of(server, clips[0]))
    page.wait_for_selector(".detail .trim")
    page.get_by_label("Prompt", exact=True).focus()
    keys.type("a green star")
    # a box
    press("Region: draw a box")
    page.locator(".stage-canvas").focus()
    keys.press("Enter")
    assert page.evaluate("() => document.activeElement.className") == "box-body"
    keys.press("Shift+ArrowLeft")
    document.until("region", [0.15, 0.25, 0.65, 0.75])
    everything_is_reached(page)
    # a mask, which takes the place of the box
    press("Brush: paint a mask")
    page.locator(".stage-canvas").focus()
    for _ in range(2):
        keys.press("Shift+ArrowLeft")
    keys.press("Space")
    page.locator(".marker.mask[data-frame='0']").focus()
    assert page.get_by_role("button", name="Play", exact=True).is_visible()  # the space bar painted, and did not play
    keys.press("ArrowRight")
    masks = document.until("masks", lambda value: list(value or ()) == ["1"])
    assert document.last["request"].get("region") is None
    asset = document.last["media"][masks["1"].removeprefix("media:")]["asset"]
    mask = np.asarray(Image.open(io.BytesIO(page.request.get(f"{server.url}/v1/assets/{asset}/content").body())))
    painted = np.argwhere(mask.reshape(*mask.shape[:2], -1)[..., 0] > 127) / mask.shape[:2]
    assert painted.mean(0) == pytest.approx([0.5, 0.3], abs=0.06)
    # a prompt, moved and made longer
    press("Add a prompt at this frame")
    keys.type("a red ball")
    first, last = (int(page.get_by_label(f"{end} frame").input_value()) for end in ("from", "to"))
    page.get_by_label("to frame").focus()
    keys.press("ArrowUp")
    page.wait_for_selector(f".span[data-span='{first}-{last + 1}']")
    assert page.evaluate("() => document.activeElement.dataset.part") == "to"  # the focus stays
    page.locator(".span").focus()
    keys.press("Shift+ArrowRight")
    page.wait_for_selector(f".span[data-span='{first}-{last + 2}']")
    keys.press("ArrowRight")
    document.until("prompt_spans", {f"{first + 1}-{last + 3}": "a red ball"})
    everything_is_reached(page)
    # the part of the clip that is used
    page.get_by_role("slider", name="Start of the part used").focus()
    keys.press("ArrowRight")
    document.until("start", "1f")
    keys.press("ArrowLeft")
    document.until("start", None)


def test_keyframes_are_chosen_and_moved_by_keys_alone(opened):
    page = opened("#timeline")
    document = Document(page)
    page.wait_for_selector(".stage-canvas")
    page.locator("#timeline-verb").select_option("animate")
    page.locator(".playhead-knob").focus()
    page.keyboard.press("End")
    with page.expect_file_chooser() as chooser:
        page.locator("[data-lane=keyframes]").locator("..").get_by_role("button").first.focus()
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "box.png", "mimeType": "image/png", "buffer": png()})
    document.until("keyframes", lambda value: list(value or ()) == ["15"])
    page.locator(".marker.key").focus()
    page.keyboard.press("ArrowLeft")
    document.until("keyframes", lambda value: list(value or ()) == ["14"])
    page.keyboard.press("Delete")
    page.wait_for_selector(".marker.key", state="detached")
