"""The timeline, against the real service: what is edited is read from the finished clip."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from acting import Faults, ask, clip_of, drop, faults_of, frames_of, png  # noqa: E402
from timeline_acting import brush, decoded, generated, made, masks_of, option, show_frame  # noqa: E402

HOSTILE = '<img src=x onerror="document.title=1">'
GREEN, RED = (30, 160, 60), (200, 30, 30)


@pytest.fixture(scope="module")
def ball(server):
    """The mp4 of a clip that documents of these tests change."""
    return clip_of(server, made(server, "a red ball rolls right", seed=7))


@pytest.fixture
def timeline(opened):
    """An empty timeline in a new profile."""

    def open_timeline(**options):
        page = opened("#timeline", **options)
        page.wait_for_selector(".stage-canvas")
        return page

    return open_timeline


def with_clip(page, ball: bytes) -> None:
    drop(page, ".stage-frame", "ball.mp4", "video/mp4", ball)
    page.wait_for_selector(".detail .trim")


@pytest.fixture(scope="module")
def painted(server, chromium, ball, tmp_path_factory):
    """A clip that was inpainted where two frames were painted: (video, file of the document that was saved)."""
    pytest.importorskip("cv2")
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    page, faults = context.new_page(), Faults()
    faults.hear(page)
    page.goto(f"{server.url}/#timeline")
    page.wait_for_selector(".stage-canvas")
    with_clip(page, ball)
    page.get_by_label("Prompt", exact=True).fill("a green star spins")
    option(page, "steps", 4)
    option(page, "seed", 5)
    page.get_by_role("button", name="Brush").click()
    show_frame(page, 0)
    brush(page, (0.2, 0.3), (0.5, 0.4))
    page.wait_for_selector(".marker.mask[data-frame='0']")
    show_frame(page, 15)
    brush(page, (0.6, 0.5), (0.8, 0.6))
    page.wait_for_selector(".marker.mask[data-frame='15']")
    show_frame(page, 7)
    page.wait_for_selector(".stage-fitted[data-mask=carried]")
    video = generated(page, server)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save").click()
    path = tmp_path_factory.mktemp("saved") / saved.value.suggested_filename
    saved.value.save_as(path)
    context.close()
    assert not faults, str(faults)
    return video, path


def test_masks_of_two_frames_are_carried_and_pixels_outside_stay(server, ball, painted, tmp_path):
    found, source = frames_of(server, painted[0]).astype(int), decoded(ball, tmp_path).astype(int)
    document = ask(server, f"/v1/videos/{painted[0]}/document")
    assert sorted(map(int, document["request"]["masks"])) == [0, 15]
    masks = masks_of(server, document)
    assert masks.shape == (16, 64, 64)
    assert all(40 < mask.sum() < 1500 for mask in masks)
    assert np.abs(found - source)[~masks].max() <= 1
    assert np.abs(found - source)[masks].mean() > 5


def test_a_saved_document_gives_the_same_frames_on_the_command_line(server, painted, tmp_path):
    video, path = painted
    assert path.name == "a-green-star-spins.kinema.json"
    target = tmp_path / "star.mp4"
    command = [sys.executable, "-m", "kinema", "inpaint", "--document", str(path), "-o", str(target), "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    from kinema.media.metadata import find_recipe

    recipe = json.loads(clip_of(server, video, "recipe"))
    assert find_recipe(target)["frames_hash"] == recipe["frames_hash"]


def test_a_document_of_a_finished_clip_gives_the_same_frames_from_the_service(server, painted):
    from timeline_acting import ended

    video, _ = painted
    document = ask(server, f"/v1/videos/{video}/document?embed=true")
    again = ask(server, "/v1/videos", "POST", {"document": document})["id"]
    ended(server, again)
    hashes = [json.loads(clip_of(server, each, "recipe"))["frames_hash"] for each in (video, again)]
    assert hashes[0] == hashes[1]


STRIP = """() => [...document.querySelectorAll('.strip-cell')].map(
    (each) => [...each.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3))"""


def test_a_gif_has_its_frames_in_the_strip_and_on_the_stage(timeline):
    shades = [20 * at for at in range(10)]
    images = [Image.new("RGB", (64, 64), (shade, 0, 200 - shade)) for shade in shades]
    data = io.BytesIO()
    images[0].save(data, "gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    page = timeline()
    drop(page, ".stage-frame", "shades.gif", "image/gif", data.getvalue())
    page.wait_for_selector(".detail .trim")
    page.get_by_text("All 10 frames").wait_for()
    page.wait_for_function(f"() => ({STRIP})().length === 10 && ({STRIP})().every((each) => each[0] + each[2] > 150)")
    reds = [each[0] for each in page.evaluate(STRIP)]
    assert np.abs(np.array(reds) - shades).max() <= 12
    trimmed = """() => {
        const strip = document.querySelector('.trim-strip');
        const at = (x) => strip.getContext('2d').getImageData(x, 20, 1, 1).data;
        return [at(10), at(strip.width - 10)].map((each) => [...each]);
    }"""
    page.wait_for_function(f"() => ({trimmed})()[1][3] > 0")
    first, last = page.evaluate(trimmed)
    assert (first[2] > first[0], last[0] > last[2]) == (True, True)
    show_frame(page, 9)
    page.wait_for_function(
        "() => document.querySelector('.stage-canvas').getContext('2d').getImageData(32, 32, 1, 1).data[0] > 160"
    )


def test_keyframes_are_dropped_moved_and_interpolated(server, timeline):
    page = timeline()
    drop(page, "[data-lane=keyframes]", "first.png", "image/png", png(colour=GREEN))
    page.wait_for_selector(".marker.key[data-frame='0']")
    assert page.locator("#timeline-verb").input_value() == "animate"
    show_frame(page, 12)
    drop(page, ".stage-frame", "last.png", "image/png", png(colour=RED))
    page.locator(".marker.key[data-frame='12']").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".marker.key[data-frame='15']")
    page.get_by_label("Prompt", exact=True).fill("a red box slides left")
    option(page, "steps", 4)
    found = frames_of(server, generated(page, server)).astype(float)
    for frame, colour in ((0, GREEN), (15, RED)):
        assert abs(found[frame, 32, 32] - colour).max() < 40
        assert abs(found[frame, 3, 3] - [190, 190, 185]).max() < 12


def test_prompts_of_spans_reach_the_clip(server, timeline):
    page = timeline()
    page.get_by_label("Prompt", exact=True).fill("a red ball rolls right")
    for name, value in (("steps", 4), ("seed", 7), ("window", 8)):
        option(page, name, value)
    show_frame(page, 8)
    page.get_by_role("button", name="Add a prompt at this frame").click()
    page.keyboard.type("a green star spins")
    page.get_by_label("to frame").fill("15")
    page.get_by_label("to frame").press("Enter")
    page.wait_for_selector(".span[data-span='8-15']")
    video = generated(page, server)
    assert ask(server, f"/v1/videos/{video}")["request"]["prompt_spans"] == {"8-15": "a green star spins"}
    with_spans, without = (
        frames_of(server, each).astype(int)
        for each in (video, made(server, "a red ball rolls right", seed=7, window=8))
    )
    green = with_spans[12, ..., 1] - with_spans[12, ..., 0]
    assert green.max() > (without[12, ..., 1] - without[12, ..., 0]).max() + 20


def test_spans_and_masks_are_edited_by_keyboard_and_undone(timeline, ball):
    page = timeline()
    with_clip(page, ball)
    page.get_by_label("Prompt", exact=True).fill("a green star spins")
    show_frame(page, 2)
    page.keyboard.press("b")
    page.locator(".stage-canvas").focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Space")
    page.locator(".marker.mask[data-frame='2']").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".marker.mask[data-frame='3']")
    page.keyboard.press("Delete")
    page.wait_for_selector(".marker.mask", state="detached")
    page.locator("h1").click()
    page.keyboard.press("Control+z")
    page.wait_for_selector(".marker.mask[data-frame='3']")
    page.keyboard.press("Control+z")
    page.wait_for_selector(".marker.mask[data-frame='2']")
    page.keyboard.press("Control+Shift+z")
    page.wait_for_selector(".marker.mask[data-frame='3']")


def test_masks_are_carried_while_a_prompt_is_half_typed_and_refused_without_a_failed_request(timeline, ball):
    pytest.importorskip("cv2")
    page = timeline()
    with_clip(page, ball)
    page.get_by_role("button", name="Brush").click()
    brush(page, (0.2, 0.3), (0.5, 0.4))
    page.wait_for_selector(".marker.mask[data-frame='0']")
    page.get_by_role("button", name="Add a prompt at this frame").click()
    page.get_by_text("Describe the span that is empty").wait_for()

    def masks_with(text: str):
        return page.expect_response(lambda each: "/v1/masks" in each.url and text in each.request.post_data)

    with masks_with('"start":"1f"') as answered:
        page.get_by_role("slider", name="Start of the part used").press("ArrowRight")
    assert (answered.value.status, answered.value.json()["frames"]) == (200, 15)
    with masks_with('"frames":5000') as answered:
        option(page, "frames", 5000)
    assert answered.value.status == 200
    assert "4,096" in answered.value.json()["error"]["message"]


def test_a_region_is_drawn_and_moved(timeline, ball):
    page = timeline()
    with_clip(page, ball)
    page.get_by_role("button", name="Region: draw a box").click()
    brush(page, (0.2, 0.2), (0.6, 0.5))
    body = page.get_by_role("button", name="Region: 20%, 20%, 60%, 50%")
    body.focus()
    page.keyboard.press("Shift+ArrowRight")
    page.get_by_role("button", name="Region: 30%, 20%, 70%, 50%").wait_for()
    page.get_by_role("button", name="Region, bottom right corner").focus()
    page.keyboard.press("Shift+ArrowDown")
    page.get_by_role("button", name="Region: 30%, 20%, 70%, 60%").wait_for()
    page.get_by_role("button", name="Remove region").click()
    assert page.locator(".box-frame").is_hidden()


def test_the_document_survives_a_reload_and_is_shown_as_text(timeline):
    page = timeline()
    drop(page, "[data-lane=keyframes]", HOSTILE + ".png", "image/png", png())
    page.wait_for_selector(".marker.key")
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Add a prompt at this frame").click()
    option(page, "window", 8)
    page.locator(".detail textarea").fill(HOSTILE)
    kept = """async () => {
        const { kept } = await import('/studio/idb.js');
        return Object.values((await kept('document'))?.request.prompt_spans ?? {});
    }"""
    for _ in range(400):
        if HOSTILE in page.evaluate(kept):
            break
        page.wait_for_timeout(50)
    page.reload()
    page.wait_for_selector(".marker.key canvas")
    assert page.get_by_label("Prompt", exact=True).input_value() == HOSTILE
    assert page.locator(".span-text").inner_text() == HOSTILE
    assert page.title() == "Timeline – Kinema"
    assert page.locator("main img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_on_the_timeline(timeline, ball, scheme):
    page = timeline(color_scheme=scheme)
    with_clip(page, ball)
    page.get_by_role("button", name="Add a prompt at this frame").click()
    page.get_by_role("button", name="Brush").click()
    assert faults_of(page) == []


def test_a_phone_shows_the_timeline_without_scrolling_sideways(timeline, ball):
    page = timeline(viewport={"width": 375, "height": 760}, is_mobile=True, has_touch=True)
    with_clip(page, ball)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375


def test_an_image_is_pasted_at_the_frame_that_is_shown_and_seen_through_its_neighbours(timeline):
    page = timeline()
    page.locator("#timeline-verb").select_option("animate")
    show_frame(page, 4)
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));
            dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, cancelable: true}));
        }""",
        list(png(colour=RED)),
    )
    page.wait_for_selector(".marker.key[data-frame='4']")
    show_frame(page, 5)
    middle = """() => {
        const canvas = document.querySelector('.stage-canvas');
        return [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data];
    }"""
    assert page.evaluate(middle)[3] == 0
    page.get_by_role("button", name="Onion skin").click()
    page.wait_for_function(f"() => ({middle})()[3] > 50")
    red, green, *_ = page.evaluate(middle)
    assert red > 2 * green


def test_a_span_is_dragged_by_its_end_and_the_clip_trimmed(timeline, ball):
    page = timeline()
    with_clip(page, ball)
    show_frame(page, 4)
    page.get_by_role("button", name="Add a prompt at this frame").click()
    page.keyboard.type("a green star")
    page.get_by_text("Paint a mask on a frame").wait_for()  # it moves what is below
    stop = page.locator(".span[data-span='4-7'] .span-stop").bounding_box()
    lane = page.locator("[data-lane=prompts]").bounding_box()
    page.mouse.move(stop["x"] + 4, stop["y"] + 10)
    page.mouse.down()
    page.mouse.move(lane["x"] + lane["width"] * 10.5 / 16, stop["y"] + 10, steps=4)
    page.mouse.up()
    page.wait_for_selector(".span[data-span='4-10']")
    page.get_by_role("slider", name="Start of the part used").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.get_by_text("Frames 2 to 15: 14 of 16").wait_for()
    assert page.locator(".counter").inner_text().endswith("/ 14")
