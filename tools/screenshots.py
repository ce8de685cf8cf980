"""Write the screenshots of docs/studio: ``python tools/screenshots.py [NAME …]``.

Starts `kinema serve` in a temporary folder, generates clips with the included models, and photographs each view in
Chromium. A view is one function here; its name is the name of the file.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "studio"
sys.path.insert(0, str(ROOT / "tests" / "studio"))
WIDE = {"width": 1280, "height": 800}
PHONE = {"viewport": {"width": 375, "height": 760}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
VIEWS: dict[str, Callable] = {}


def view(function: Callable) -> Callable:
    VIEWS[function.__name__.replace("_", "-")] = function
    return function


@view
def make(open_page: Callable) -> object:
    page = open_page()
    page.wait_for_selector(".player")
    fill(page, "a red ball rolls right")
    return page


@view
def make_running(open_page: Callable) -> object:
    from acting import describe

    page = open_page(color_scheme="dark")
    page.wait_for_selector(".player")
    describe(page, "a green star spins", steps=24)
    page.locator("button.primary").click()
    page.wait_for_selector("[data-previews='4']", timeout=120_000)
    return page


@view
def make_options(open_page: Callable) -> object:
    page = open_page(viewport={"width": 1280, "height": 1100})
    page.wait_for_selector(".player")
    page.locator(".more > summary").click()
    page.get_by_label("Filter options").fill("guidance")
    page.locator(".more").scroll_into_view_if_needed()
    return page


@view
def make_input(open_page: Callable) -> object:
    page = open_page(viewport={"width": 1280, "height": 1060})
    page.wait_for_selector(".player")
    page.get_by_label("Use this clip for").select_option("inpaint")
    page.get_by_label("Prompt", exact=True).fill("a blue box slides left")
    page.wait_for_selector(".trim")
    page.locator(".region-area").scroll_into_view_if_needed()
    box = page.locator(".region-area").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=4)
    page.mouse.up()
    page.wait_for_timeout(2500)
    return page


@view
def timeline(open_page: Callable) -> object:
    from timeline_acting import brush, show_frame

    page = with_latest_clip(open_page("#gallery", viewport={"width": 1280, "height": 960}))
    page.locator("#timeline-verb").select_option("inpaint")
    page.get_by_label("Prompt", exact=True).fill("a green star spins")
    page.get_by_role("button", name="Add a clip or image").wait_for()
    return painted(page, brush, show_frame)


@view
def timeline_keyframes(open_page: Callable) -> object:
    from acting import drop, png
    from timeline_acting import option, show_frame

    page = open_page("#timeline", color_scheme="dark", viewport={"width": 1280, "height": 960})
    page.wait_for_selector(".stage-canvas")
    drop(page, "[data-lane=keyframes]", "green.png", "image/png", png(colour=(30, 160, 60)))
    page.wait_for_selector(".marker.key[data-frame='0']")
    show_frame(page, 15)
    drop(page, ".stage-frame", "red.png", "image/png", png(colour=(200, 30, 30)))
    page.wait_for_selector(".marker.key[data-frame='15']")
    page.get_by_label("Prompt", exact=True).fill("a green box slides left")
    option(page, "window", 8)
    show_frame(page, 8)
    page.get_by_role("button", name="Add a prompt at this frame").click()
    page.keyboard.type("a red box slides left")
    page.get_by_role("button", name="Onion skin").click()
    page.wait_for_timeout(1500)
    return page


@view
def gallery(open_page: Callable) -> object:
    page = open_page("#gallery")
    page.wait_for_selector(".card img[src]")
    page.locator(".card").nth(1).hover()
    page.wait_for_selector(".card-video")
    return page


@view
def gallery_details(open_page: Callable) -> object:
    page = open_page("#gallery", color_scheme="dark")
    page.locator(".card-open").first.click()
    page.wait_for_selector(".recipe details")
    page.wait_for_selector(".player video[src]")
    return page


@view
def compare(open_page: Callable) -> object:
    page = open_page("#gallery")
    page.wait_for_selector(".card img[src]")
    for at in (0, 1):
        page.locator(".card").nth(at).hover()
        page.locator(".card").nth(at).get_by_role("button", name="Compare").click()
    page.wait_for_selector(".compare[open]")
    page.wait_for_timeout(1500)
    return page


@view
def seed_grid(open_page: Callable) -> object:
    page = open_page("#gallery")
    page.locator(".card-open").first.click()
    page.get_by_role("button", name="Seed grid").click()
    page.wait_for_selector(".seeds[data-done='4']")
    page.wait_for_timeout(1500)
    return page


@view
def phone_timeline(open_page: Callable) -> object:
    page = with_latest_clip(open_page("#gallery", **PHONE))
    page.wait_for_timeout(1500)
    return page


def with_latest_clip(page: object) -> object:
    """Open the timeline with the latest clip as the source of an edit."""
    video = page.locator(".card").first.get_attribute("data-card")
    data = page.request.get(page.url.split("#")[0] + f"v1/videos/{video}/content").body()
    from acting import drop

    page.goto(page.url.split("#")[0] + "#timeline")
    page.wait_for_selector(".stage-canvas")
    drop(page, ".stage-frame", "ball.mp4", "video/mp4", data)
    page.wait_for_selector(".detail .trim")
    return page


def painted(page: object, brush: Callable, show_frame: Callable) -> object:
    page.get_by_role("button", name="Brush").click()
    for frame, start, end in ((0, (0.25, 0.6), (0.4, 0.75)), (15, (0.65, 0.6), (0.8, 0.75))):
        show_frame(page, frame)
        brush(page, start, end)
        page.wait_for_selector(f".marker.mask[data-frame='{frame}']")
    show_frame(page, 6)
    page.wait_for_selector(".stage-fitted[data-mask=carried]")
    page.wait_for_timeout(1500)
    return page


@view
def queue(open_page: Callable) -> object:
    page = open_page("#queue")
    page.wait_for_selector("ol.jobs > li")
    page.wait_for_selector("ul.jobs progress")
    return page


@view
def models(open_page: Callable) -> object:
    page = open_page("#models")
    page.wait_for_selector(".model")
    return page


@view
def phone(open_page: Callable) -> object:
    page = open_page(**PHONE)
    page.wait_for_selector(".player")
    fill(page, "a red ball rolls right")
    return page


def fill(page: object, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.wait_for_selector(".plan-facts .fact")


def main(names: list[str]) -> None:
    from acting import ask, order
    from PIL import Image
    from playwright.sync_api import sync_playwright
    from studio_service import serving

    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "store") as server, sync_playwright() as found:
        browser = found.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def open_page(path: str = "#make", **options: object) -> object:
            context = browser.new_context(**{"viewport": WIDE, **options})
            context.set_default_timeout(120_000)
            page = context.new_page()
            page.goto(f"{server.url}/{path}")
            return page

        prompts = ("a yellow ring bounces", "a blue box slides left", "a red ball rolls right")
        clips = [order(server, prompt, model="zoetrope", steps=24, seed=7) for prompt in prompts]
        page = open_page()
        for each in clips:
            page.wait_for_selector(f".strip-item.completed >> nth={clips.index(each)}")
        page.context.close()
        for name in names or VIEWS:
            if name == "queue":
                more = (*prompts, "a green star spins")
                waiting = [order(server, prompt, model="zoetrope", steps=40) for prompt in more]
            page = VIEWS[name](open_page)
            page.wait_for_timeout(600)
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.save(TARGET / f"{name}.webp", quality=80, method=6)
            print(TARGET / f"{name}.webp")
            page.context.close()
            if name == "queue":
                for each in waiting:
                    ask(server, f"/v1/videos/{each}", "DELETE")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
