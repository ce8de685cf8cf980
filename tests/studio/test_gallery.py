"""The gallery, against the real service, and with 500 clips of a made-up one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from acting import Faults, ask, clip_of, faults_of, frames_of, many  # noqa: E402
from timeline_acting import made  # noqa: E402

HOSTILE = '<b onmouseover="document.title=1">bold</b><script>document.title=2</script>'


@pytest.fixture(scope="module")
def clips(server):
    """Three finished clips by name."""
    return {
        "ball": made(server, "a red ball rolls right", seed=7),
        "star": made(server, "a green star spins", seed=3),
        "hostile": made(server, HOSTILE, model="zoetrope/tiny", steps=1),
    }


@pytest.fixture
def gallery(opened, clips):
    def open_gallery(**options):
        page = opened("#gallery", **options)
        page.wait_for_selector(".card img[src]")
        return page

    return open_gallery


def look(page, video: str) -> None:
    page.locator(f"[data-card={video}] .card-open").click()
    page.wait_for_selector(".details[open] .recipe details")


def test_clips_are_found_by_words_model_verb_and_favourite(gallery, clips):
    page = gallery()
    cards = page.locator(".card")
    page.get_by_label("Search").fill("green STAR")
    assert [each.get_attribute("data-card") for each in cards.all()] == [clips["star"]]
    page.locator(".card").hover()
    page.get_by_role("button", name="Favourite: a green star spins").click()
    page.get_by_label("Search").fill("")
    page.get_by_label("Model").select_option("zoetrope/tiny")
    assert [each.get_attribute("data-card") for each in cards.all()] == [clips["hostile"]]
    page.get_by_label("Model").select_option("")
    page.get_by_label("Verb").select_option("upscale")
    page.get_by_text("No clip is like this.").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="Favourites").click()
    page.reload()
    page.wait_for_selector(".card")
    assert [each.get_attribute("data-card") for each in cards.all()] == [clips["star"]]


def test_a_card_plays_while_it_has_the_focus(gallery, clips):
    page = gallery()
    page.keyboard.press("Tab")
    page.locator(f"[data-card={clips['ball']}] .card-open").focus()
    page.wait_for_selector(f"[data-card={clips['ball']}] .card-video")
    page.locator(f"[data-card={clips['star']}] .card-open").focus()
    page.wait_for_selector(f"[data-card={clips['ball']}] .card-video", state="detached")


def test_details_show_the_recipe_and_reuse_fills_the_form(server, gallery, clips):
    page = gallery()
    look(page, clips["ball"])
    facts = page.locator(".details-side").inner_text()
    recipe = json.loads(clip_of(server, clips["ball"], "recipe"))
    page.get_by_text("Weights").click()
    assert recipe["stages"][0]["weights"] in page.locator(".details-side").inner_text()
    assert "7" in facts
    page.get_by_role("button", name="Reuse settings").click()
    page.wait_for_selector(".make-form")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red ball rolls right"
    assert page.locator("[data-field=seed] input").input_value() == "7"


def test_a_replay_has_the_same_frames(server, gallery, clips):
    page = gallery()
    look(page, clips["ball"])
    page.get_by_role("button", name="Replay").click()
    page.get_by_text("Identical: the replay has the same frames to the last bit.").wait_for()
    newest = ask(server, "/v1/videos?limit=1")["data"][0]["id"]
    assert newest != clips["ball"]
    assert np.array_equal(frames_of(server, newest), frames_of(server, clips["ball"]))
    ask(server, f"/v1/videos/{newest}", "DELETE")


def test_a_clip_is_opened_in_the_timeline_and_extended_from(gallery, clips):
    page = gallery()
    look(page, clips["ball"])
    page.get_by_role("button", name="Open in timeline").click()
    page.wait_for_selector(".stage-canvas")
    page.wait_for_function("() => document.querySelector('[data-field=seed] input')?.value === '7'")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red ball rolls right"
    page.goto(page.url.split("#")[0] + "#gallery")
    page.wait_for_selector(".card img[src]")
    look(page, clips["ball"])
    page.get_by_role("button", name="Extend from here").click()
    page.wait_for_selector("[data-field=video] .file-card")
    assert page.locator("input[name=verb][value=extend]").is_checked()


def test_two_clips_are_compared_in_step(gallery, clips):
    page = gallery()
    look(page, clips["ball"])
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(f"[data-card={clips['star']}]").hover()
    page.get_by_role("button", name="Compare a green star spins").click()
    page.wait_for_selector(".compare[open]")
    page.get_by_role("button", name="Pause").click()
    page.locator(".compare .scrub").evaluate("each => { each.value = 5; each.dispatchEvent(new Event('input')); }")
    page.get_by_role("button", name="Next frame").click()
    times = "() => [...document.querySelectorAll('.compare video')].map((each) => each.currentTime)"
    page.wait_for_function(f"() => ({times})().every((each) => Math.abs(each - 6.5 / 8) < 0.01)")
    page.get_by_label("Wipe").focus()
    page.keyboard.press("End")
    assert page.locator(".compare-frame").evaluate("each => each.style.getPropertyValue('--wipe')") == "100%"
    page.keyboard.press("Escape")
    page.wait_for_selector(".compare", state="detached")


def test_a_seed_grid_has_a_clip_for_each_seed(server, gallery, clips):
    page = gallery()
    look(page, clips["hostile"])
    page.get_by_label("Number of seeds").select_option("4")
    page.get_by_role("button", name="Seed grid").click()
    page.wait_for_selector(".seeds[data-done='4']")
    seeds = [each.get_attribute("data-seed") for each in page.locator(".seed-cell").all()]
    assert len(set(seeds)) == 4
    made_here = [each for each in ask(server, "/v1/videos?limit=4")["data"] if str(each["seed"]) in seeds]
    assert len(made_here) == 4
    frames = [frames_of(server, each["id"]).tobytes() for each in made_here]
    assert len(set(frames)) == 4
    page.keyboard.press("Escape")
    for each in made_here:
        ask(server, f"/v1/videos/{each['id']}", "DELETE")


def test_deleting_can_be_undone_and_else_removes_the_clip(server, gallery):
    video = made(server, "a blue box slides left", model="zoetrope/tiny", steps=1)
    page = gallery()

    def delete() -> None:
        look(page, video)
        page.get_by_role("button", name="Delete").click()
        page.wait_for_selector(f"[data-card={video}]", state="detached")

    delete()
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(f"[data-card={video}]")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        delete()
    assert video not in [each["id"] for each in ask(server, "/v1/videos?limit=100")["data"]]


def test_hostile_prompts_are_text(gallery, clips):
    page = gallery()
    card = page.locator(f"[data-card={clips['hostile']}]")
    assert card.locator(".card-words").inner_text() == HOSTILE
    look(page, clips["hostile"])
    assert page.locator("#details-title").inner_text() == HOSTILE
    assert page.locator("main b, main script").count() == 0
    assert page.title() == "Gallery – Kinema"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_on_the_gallery(gallery, clips, scheme):
    page = gallery(color_scheme=scheme)
    page.get_by_role("button", name="Favourites").wait_for()
    assert faults_of(page) == []
    look(page, clips["ball"])
    assert faults_of(page) == []


def test_a_phone_shows_the_gallery_without_scrolling_sideways(gallery, clips):
    page = gallery(viewport={"width": 375, "height": 760}, is_mobile=True, has_touch=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    look(page, clips["ball"])
    assert page.locator(".details[open]").bounding_box()["width"] <= 375


# --------------------------------------------------------------------------------- 500 clips

SCROLL = """async () => {
    let made = 0;
    const count = (changes) => changes.forEach((each) => (made += each.addedNodes.length));
    const watch = new MutationObserver(count);
    watch.observe(document.querySelector('.cards'), {childList: true});
    const end = document.documentElement.scrollHeight;
    let most = 0;
    for (let y = 0; y < end; y += 120) {
        scrollTo(0, y);
        await new Promise(requestAnimationFrame);
        most = Math.max(most, document.querySelectorAll('.card').length);
    }
    count(watch.takeRecords());
    watch.disconnect();
    return {most, made};
}"""
"""Scrolls through the gallery: the most cards at a time, and the cards that came into the page meanwhile."""


def test_five_hundred_clips_are_listed_with_few_cards_and_scroll(server, chromium, clips):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page, faults = context.new_page(), Faults()
    faults.hear(page)
    many(page, server, clips["hostile"], 500)
    page.goto(f"{server.url}/#gallery")
    page.get_by_text("500 clips").wait_for()
    found = page.evaluate(SCROLL)
    assert found["most"] < 60
    assert 400 < found["made"] <= 500  # each card comes once
    page.get_by_text("clip 499", exact=True).wait_for()
    page.evaluate("() => scrollTo(0, 0)")
    page.locator(".card[aria-posinset='1'] .card-open").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.closest('.card').getAttribute('aria-posinset')") == "6"
    context.close()
    assert not faults, str(faults)
