"""Make, against the real service: each claim is what a user sees, and the clip is read from the service."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from acting import (  # noqa: E402
    Faults,
    ask,
    clear,
    clip_of,
    describe,
    drop,
    finished,
    frames_of,
    order,
    planned,
    png,
    start,
    verb,
)
from timeline_acting import decoded  # noqa: E402

WATCH = """() => {
    window.seen = {progress: [], phases: [], pixels: new Set()};
    new MutationObserver(() => {
        const bar = document.querySelector('.screen progress');
        if (bar) window.seen.progress.push(bar.value);
        const now = document.querySelector('.stages [aria-current]');
        if (now) window.seen.phases.push(now.textContent);
    }).observe(document.querySelector('.screen'), {subtree: true, childList: true, attributes: true});
    setInterval(() => {
        const canvas = document.querySelector('.screen canvas');
        if (!canvas) return;
        const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        window.seen.pixels.add(all.slice(0, 4000).join());
    }, 50);
}"""
"""Records the progress, the phases and the different previews that are seen."""


@pytest.fixture(scope="module")
def ball(server, chromium):
    """A first clip, generated through the page: (video, bytes of its mp4, what was seen on the way)."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    page, faults = context.new_page(), Faults()
    faults.hear(page)
    page.goto(server.url)
    describe(page, "a red ball rolls right", steps=8, seed=7)
    page.wait_for_selector(".plan-facts .fact")
    plan = page.locator(".plan-facts").inner_text()
    page.evaluate(WATCH)
    video = start(page)
    finished(page)
    seen = page.evaluate("() => ({...window.seen, pixels: window.seen.pixels.size})")
    context.close()
    assert not faults, str(faults)
    return video, clip_of(server, video), {**seen, "plan": plan}


def test_the_first_clip_is_the_one_described(server, ball):
    frames = frames_of(server, ball[0]).astype(float)
    assert frames.shape == (16, 64, 64, 3)
    red = (frames[..., 0] - frames[..., 1:].max(-1)) > 60
    columns = [np.nonzero(frame)[1].mean() for frame in red if frame.any()]
    assert len(columns) > 8
    assert columns[-1] > columns[0]


def test_the_plan_is_shown_while_typing(ball):
    assert "64×64" in ball[2]["plan"]
    assert "16 frames" in ball[2]["plan"]
    assert "2 s at 8 fps" in ball[2]["plan"]


def test_progress_moves_forward_through_the_phases(ball):
    progress = ball[2]["progress"]
    assert progress == sorted(progress)
    assert len(set(progress)) > 3
    phases = list(dict.fromkeys(ball[2]["phases"]))
    assert phases == [each for each in ("Load", "Read", "Sample", "Decode", "Write") if each in phases]
    assert "Sample" in phases


def test_progress_goes_through_the_base_and_super_resolution(server, opened, ball):
    page = opened()
    finished(page)
    describe(page, "a red ball rolls right", model="lumiere-pocket", steps=3)
    page.evaluate(WATCH)
    page.evaluate(
        """() => new MutationObserver(() => {
            (window.words ??= new Set()).add(document.querySelector('.phase')?.textContent);
        }).observe(document.querySelector('.screen'), {subtree: true, childList: true, characterData: true})"""
    )
    video = start(page)
    finished(page)
    seen, words = page.evaluate("() => [window.seen, [...window.words]]")
    assert seen["progress"] == sorted(seen["progress"])
    phases = [each for each in dict.fromkeys(seen["phases"]) if each.startswith("Sample")]
    assert phases == ["Sample base", "Sample super-resolution"]
    assert "Sampling (base), step 2 of 3" in words
    assert any(each.startswith("Sampling (super-resolution), step ") for each in words if each)
    recipe = json.loads(clip_of(server, video, "recipe"))
    assert [each["stage"] for each in recipe["stages"]] == ["base", "super-resolution"]
    page.goto("about:blank")
    ask(server, f"/v1/videos/{video}", "DELETE")


def test_previews_are_seen_and_change(ball):
    assert ball[2]["pixels"] > 3


def test_the_player_steps_by_frame_and_changes_speed(opened, ball):
    page = opened()
    finished(page)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.locator(".scrub").evaluate("each => { each.value = 3; each.dispatchEvent(new Event('input')); }")
    assert page.locator(".counter").inner_text() == "4 / 16"
    page.get_by_role("button", name="Next frame").click()
    assert page.locator(".counter").inner_text() == "5 / 16"
    page.wait_for_function("() => Math.abs(document.querySelector('video').currentTime - 4.5 / 8) < 0.01")
    page.get_by_role("button", name="Previous frame").click()
    assert page.locator(".counter").inner_text() == "4 / 16"
    page.get_by_label("Speed").select_option("0.25")
    assert page.evaluate("() => document.querySelector('video').playbackRate") == 0.25
    page.get_by_role("button", name="Loop").click()
    assert page.evaluate("() => document.querySelector('video').loop") is False


@pytest.mark.parametrize(
    ("label", "name", "start"),
    [
        ("MP4 video, with its recipe", "a-red-ball-rolls-right.mp4", b"ftyp"),
        ("Frames as PNG (zip)", "a-red-ball-rolls-right.zip", b"PK"),
        ("GIF", "a-red-ball-rolls-right.gif", b"GIF8"),
    ],
)
def test_a_clip_is_saved_in_the_chosen_format(opened, ball, label, name, start):
    page = opened()
    finished(page)
    page.get_by_text("Download", exact=True).click()
    with page.expect_download() as saved:
        page.get_by_role("button", name=label, exact=True).click()
    assert saved.value.suggested_filename == name
    assert start in Path(saved.value.path()).read_bytes()[:16]


def test_cancelling_keeps_the_partial_clip_if_asked(server, opened, ball):
    page = opened()
    finished(page)
    describe(page, "a green star spins", steps=60)
    video = start(page)
    page.wait_for_selector("[data-previews]")
    page.get_by_role("button", name="Stop and keep partial clip").click()
    page.wait_for_selector("text=Cancelled. The partial clip was kept.")
    finished(page)
    assert frames_of(server, video).shape == (16, 64, 64, 3)


def test_cancelling_without_it_leaves_no_clip_and_the_job_can_be_tried_again(opened, ball):
    page = opened()
    finished(page)
    describe(page, "a green star spins", steps=60)
    start(page)
    page.wait_for_selector("[data-previews]")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector("text=Cancelled.")
    assert page.locator(".player").count() == 0
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".screen progress")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector("text=Cancelled.")


def test_a_reload_finds_the_form_and_the_running_job_again(opened, ball):
    page = opened()
    finished(page)
    describe(page, "a yellow ring bounces", steps=60, frames=12)
    start(page)
    page.wait_for_selector("[data-previews]")
    page.reload()
    page.wait_for_selector("[data-previews]")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a yellow ring bounces"
    assert page.locator("[data-field=frames] input").input_value() == "12"
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector("text=Cancelled.")


def test_a_dropped_image_is_animated(server, opened, ball):
    page = opened()
    finished(page)
    page.locator("[data-field=model] select").select_option("zoetrope/tiny")
    drop(page, "body", "box.png", "image/png", png())
    page.wait_for_selector("[data-field=image] .file-card")
    assert page.locator("input[name=verb][value=animate]").is_checked()
    describe(page, "a red box slides left")
    page.locator(".more > summary").click()
    page.locator("[data-field=steps] input").fill("2")
    video = start(page)
    finished(page)
    found = frames_of(server, video)[0].astype(float)
    assert abs(found[:3, :3].mean((0, 1)) - [190, 190, 185]).max() < 8
    middle = found[found.shape[0] // 2, found.shape[1] // 2]
    assert middle[0] - middle[1] > 120


def test_a_pasted_image_goes_into_the_input(opened, ball):
    page = opened()
    finished(page)
    verb(page, "animate")
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));
            dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, cancelable: true}));
        }""",
        list(png()),
    )
    page.wait_for_selector("[data-field=image] .file-card")
    assert "64×64" in page.locator("[data-field=image] .file-card").inner_text()


def test_a_dropped_clip_of_kinema_gives_its_settings_back(opened, ball):
    page = opened()
    finished(page)
    drop(page, "body", "ball.mp4", "video/mp4", ball[1])
    page.wait_for_selector("text=These are the settings of ball.mp4.")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red ball rolls right"
    assert page.locator("[data-field=seed] input").input_value() == "7"
    assert page.locator("[data-field=steps] input").input_value() == "8"
    page.get_by_role("button", name="Undo").click()
    assert page.get_by_label("Prompt", exact=True).input_value() == ""


def test_a_clip_is_trimmed_by_keyboard_and_the_part_is_used(server, opened, ball):
    page = opened()
    finished(page)
    verb(page, "edit")
    page.locator("[data-field=video] input[type=file]").set_input_files(
        {"name": "ball.mp4", "mimeType": "video/mp4", "buffer": ball[1]}
    )
    handle = page.get_by_role("slider", name="Start of the part used")
    handle.focus()
    for _ in range(4):
        handle.press("ArrowRight")
    end = page.get_by_role("slider", name="End of the part used")
    end.press("ArrowLeft")
    assert page.locator(".trim-words").inner_text().startswith("Frames 4 to 14: 11 of 16")
    describe(page, "a red ball rolls right", model="zoetrope/tiny", strength=0.1)
    page.locator(".more > summary").click()
    with page.expect_request(lambda each: "/v1/videos/plan" in each.url and '"36f"' not in each.post_data) as sent:
        page.locator("[data-field=steps] input").fill("4")
    sent_request = json.loads(sent.value.post_data)["request"]
    assert (sent_request["start"], sent_request["end"]) == ("4f", "15f")


def test_every_clip_of_a_batch_is_shown_saved_and_used(server, opened, ball, tmp_path):
    page = opened()
    finished(page)
    describe(page, "a green star spins", steps=2, seed=3)
    page.locator(".more > summary").click()
    page.get_by_label("Filter options").fill("clips")
    page.locator("[data-field=clips] input").fill("3")
    video = start(page)
    page.get_by_role("button", name="Clip 3 of 3").wait_for()
    third = decoded(clip_of(server, video, "video&clip=2"), tmp_path).astype(int)
    assert np.abs(third - decoded(clip_of(server, video), tmp_path).astype(int)).max() > 20
    for image in page.locator(".batch img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.batch img')].every((each) => each.naturalWidth === 64)"
    )
    page.get_by_role("button", name="Clip 3 of 3").press("Enter")
    page.wait_for_function("() => document.querySelector('.player video').src.endsWith('clip=2')")
    finished(page)
    page.get_by_text("Download", exact=True).click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="MP4 video, with its recipe").click()
    assert saved.value.suggested_filename == "a-green-star-spins-3.mp4"
    assert Path(saved.value.path()).read_bytes() == clip_of(server, video, "video&clip=2")
    page.get_by_label("Use this clip for").select_option("edit")
    page.locator("[data-field=video] .file-name", has_text="a green star spins, clip 3").wait_for()
    asset = page.evaluate("async () => (await import('/studio/store.js')).remembered('values').video.id")
    with urllib.request.urlopen(f"{server.url}/v1/assets/{asset}/content", timeout=60) as answer:
        assert answer.read() == clip_of(server, video, "video&clip=2")
    page.goto(f"{server.url}/#gallery")
    page.wait_for_selector(f"[data-card={video}] .card-count:has-text('3 clips')")
    page.locator(f"[data-card={video}] .card-open").click()
    page.get_by_role("button", name="Clip 2 of 3").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(f"[data-card={video}]").hover()
    page.get_by_role("button", name="Compare a green star spins").first.click()
    page.wait_for_selector(".compare-names:has-text('clip 2')")
    sources = page.locator(".compare video").evaluate_all("all => all.map((each) => each.src.split('variant=')[1])")
    assert sources == ["video&clip=1", "video"]
    page.goto("about:blank")
    ask(server, f"/v1/videos/{video}", "DELETE")


def test_a_region_is_drawn_and_sent(opened, ball):
    page = opened()
    finished(page)
    verb(page, "inpaint")
    page.locator("[data-field=video] input[type=file]").set_input_files(
        {"name": "ball.mp4", "mimeType": "video/mp4", "buffer": ball[1]}
    )
    page.wait_for_selector(".trim")
    describe(page, "a green star spins")
    area = page.locator(".region-area")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    region = pytest.approx([0.25, 0.25, 0.75, 0.5], abs=0.02)
    with page.expect_request(planned(lambda order: order["request"].get("region") == region)):
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5, steps=4)
        page.mouse.up()


def test_a_refusal_is_shown_beside_its_field(opened, ball):
    page = opened()
    finished(page)
    describe(page, "a red ball rolls right", frames=5000)
    message = page.locator("[data-field=frames] .error-text")
    message.wait_for(state="visible")
    assert "4,096" in message.inner_text()
    assert page.locator("[data-field=frames] input").get_attribute("aria-invalid") == "true"
    page.locator("[data-field=frames] input").fill("8")
    page.wait_for_selector(".plan-facts .fact:has-text('8 frames')")
    assert message.is_hidden()


@pytest.mark.parametrize(("name", "typed"), [("frames", "5000"), ("steps", "2000")])
def test_a_number_typed_digit_by_digit_is_refused_without_a_failed_request(opened, ball, name, typed):
    page = opened()
    finished(page)
    describe(page, "a red ball rolls right")
    page.locator(f"[data-field={name}] input").focus()
    answers = []
    for length in range(1, len(typed) + 1):
        wanted = planned(lambda order, number=int(typed[:length]): order["request"].get(name) == number)
        with page.expect_response(lambda answer, wanted=wanted: wanted(answer.request)) as answered:
            page.keyboard.type(typed[length - 1])
        answers.append((answered.value.status, "error" in answered.value.json()))
    assert answers == [(200, False)] * (len(typed) - 1) + [(200, True)]


def test_every_option_of_a_verb_is_in_the_form_and_the_filter_finds_it(opened, ball):
    page = opened()
    finished(page)
    page.locator(".more > summary").click()
    page.wait_for_selector(".more .group")
    options = page.evaluate("async () => (await fetch('/v1/options')).json()")
    names = {name for group in options["verbs"][0]["groups"] for name in group["fields"]} - {"width", "height"}
    assert {each.get_attribute("data-field") for each in page.locator(".field").all()} == names
    page.get_by_label("Filter options").fill("freeinit pass")
    shown = [each.get_attribute("data-field") for each in page.locator(".more .field:visible").all()]
    assert shown == ["free_init", "free_init_filter", "free_init_fast"]


def test_settings_of_a_clip_are_used_again(opened, ball):
    page = opened()
    finished(page)
    page.locator(".strip-item", has_text="a red ball rolls right").last.click()
    page.get_by_role("button", name="Reuse settings").click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red ball rolls right"
    assert page.locator("[data-field=seed] input").input_value() == "7"


def test_a_clip_becomes_the_input_of_another_verb(opened, ball):
    page = opened()
    finished(page)
    page.get_by_label("Use this clip for").select_option("extend")
    page.wait_for_selector("[data-field=video] .file-card")
    assert page.locator("input[name=verb][value=extend]").is_checked()
    page.get_by_label("Prompt", exact=True).fill("a red ball rolls right")
    page.wait_for_selector(".plan-facts .fact")


def test_a_deleted_clip_comes_back_by_undo(server, opened, ball):
    video = order(server, "a green star spins")
    page = opened()
    page.locator(".strip-item.completed", has_text="a green star spins").first.click()
    finished(page)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".caption-prompt:has-text('a green star spins')")
    assert frames_of(server, video).ndim == 4


def test_the_first_clip_can_be_generated_by_keyboard_alone(server, opened, ball):
    clear(server)
    page = opened()
    page.wait_for_selector(".make-form textarea")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached by the tab key")

    tab_to("input[name=verb]")
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=verb][value=animate]").is_checked()
    page.keyboard.press("ArrowLeft")
    tab_to(".make-form textarea")
    page.keyboard.type("a red ball rolls right")
    tab_to("[data-field=steps] input")
    page.keyboard.type("2")
    tab_to("button.primary")
    page.keyboard.press("Enter")
    finished(page)
    tab_to(".player-controls button")
    page.keyboard.press("Space")
    assert page.evaluate("() => document.querySelector('video').paused")
