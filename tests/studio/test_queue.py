"""Queue, Models, and what holds on every view: policy, accessibility, hostile text, themes, phones, weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from acting import MOVED, ask, clear, clip_of, describe, drop, faults_of, finished, order, planned, start  # noqa: E402
from studio_service import serving  # noqa: E402
from timeline_acting import ended, generated  # noqa: E402

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><b>bold</b> \"'}</script><script>document.title='owned'</script>"
)
LONG = {"steps": 400}
"""A job that still runs when a test looks at the queue."""
TOKEN = "a-token-of-the-tests-0123"
VIEWS = ("make", "queue", "models")
STUDIO = Path(__file__).parents[2] / "src" / "kinema" / "studio"


@pytest.fixture
def waiting(server):
    """A paused queue with three waiting jobs: their identifiers."""
    clear(server)
    ask(server, "/v1/queue/pause", "POST", {})
    yield [order(server, prompt) for prompt in ("a red ball", "a blue box", HOSTILE)]
    clear(server)


def rows(page) -> list[str]:
    return [each.get_attribute("data-id") for each in page.locator("ol.jobs > li").all()]


def queued(server) -> list[str]:
    return ask(server, "/v1/queue")["queued"]


def test_the_queue_is_reordered_by_keyboard_and_the_focus_follows(server, waiting, opened):
    first, second, third = waiting
    page = opened("#queue")
    page.wait_for_selector("ol.jobs > li")
    button = page.locator(f"[data-id={first}]").get_by_role("button", name="Move down")
    button.focus()
    with page.expect_response(MOVED):
        button.press("Enter")
    page.wait_for_function("id => document.querySelectorAll('ol.jobs > li')[1].dataset.id === id", arg=first)
    page.wait_for_function("id => document.activeElement.closest('li')?.dataset.id === id", arg=first)
    assert rows(page) == queued(server) == [second, first, third]
    with page.expect_response(MOVED):
        page.keyboard.press("Enter")
    page.wait_for_function("id => document.querySelectorAll('ol.jobs > li')[2].dataset.id === id", arg=first)
    assert queued(server) == [second, third, first]


def test_the_queue_is_reordered_by_dragging(server, waiting, opened):
    first, second, third = waiting
    page = opened("#queue")
    page.wait_for_selector("ol.jobs > li")
    target = page.locator(f"[data-id={first}]").bounding_box()
    with page.expect_response(MOVED):
        page.locator(f"[data-id={third}] .grip").hover()
        page.mouse.down()
        page.mouse.move(target["x"] + 30, target["y"] + 10, steps=6)
        page.mouse.move(target["x"] + 30, target["y"] + 4, steps=2)
        page.mouse.up()
    assert queued(server) == [third, first, second]
    assert rows(page) == [third, first, second]


def test_the_queue_is_paused_and_resumed(server, opened):
    clear(server)
    page = opened("#queue")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    video = order(server, "a red ball")
    page.wait_for_selector(f"ol.jobs [data-id={video}]")
    assert ask(server, "/v1/queue")["paused"] is True
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector(f"ul.jobs [data-id={video}].completed")
    assert ask(server, f"/v1/videos/{video}")["status"] == "completed"


def test_a_running_job_shows_its_preview_and_is_cancelled_and_tried_again(server, opened):
    clear(server)
    video = order(server, "a red ball", **LONG)
    page = opened("#queue")
    page.wait_for_selector(f"ul.jobs [data-id={video}] progress")
    page.wait_for_selector(f"[data-id={video}] .thumb canvas")
    page.locator(f"[data-id={video}]").get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_selector(f"[data-id={video}].cancelled")
    assert ask(server, f"/v1/videos/{video}")["status"] == "cancelled"
    page.locator(f"[data-id={video}]").get_by_role("button", name="Try again").click()
    page.wait_for_selector(f"ul.jobs [data-id={video}] progress")
    page.locator(f"[data-id={video}]").get_by_role("button", name="Stop, keep partial").click()
    page.wait_for_selector(f"[data-id={video}].cancelled")
    clear(server)


def test_a_failed_job_shows_the_reason(server, opened):
    clear(server)
    video = order(server, "a red ball")
    page = opened("#make")
    page.wait_for_selector(".strip-item")
    answer = {"status": "failed", "error": {"code": "failed", "message": "the worker ran out of memory: <b>8 GiB</b>"}}

    def failing(route):
        reply = route.fetch()
        body = reply.json()
        for each in body.get("data", [body]):
            each.update(answer, result=None)
        route.fulfill(response=reply, json=body)

    page.route("**/v1/videos?*", failing)
    page.goto(f"{server.url}/#queue")
    reason = page.locator(f"[data-id={video}] .reason")
    reason.wait_for()
    assert reason.inner_text() == "The worker ran out of memory: <b>8 GiB</b>"
    page.unroute_all()
    clear(server)


def test_models_are_listed_with_size_licence_and_disk_use(server, opened):
    page = opened("#models")
    page.wait_for_selector(".model")
    here = page.locator(".group", has_text="On this machine")
    card = here.locator(".model", has=page.get_by_role("heading", name="zoetrope"))
    assert "Apache-2.0" in card.inner_text()
    assert "6 M parameters" in card.inner_text()
    used = sum(row.get("bytes") or 0 for row in ask(server, "/v1/models")["data"] if row["here"])
    assert page.locator(".page-head .muted").inner_text() == f"{used / 2**20:.1f} MiB on this disk"
    assert page.get_by_role("button", name="Fetch svd-xt").count() == 0
    assert "fetches nothing" in page.locator(".group", has_text="Can be fetched").inner_text()


def test_a_model_and_a_lora_are_chosen_for_make(opened):
    page = opened("#models")
    page.get_by_role("button", name="Use animatediff-pocket-pans-left", exact=True).wait_for()
    page.get_by_label("Weight of animatediff-pocket-pans-left").fill("0.8")
    page.get_by_role("button", name="Use animatediff-pocket-pans-left", exact=True).click()
    page.get_by_role("button", name="Use animatediff-pocket", exact=True).click()
    page.wait_for_selector(".make-form")
    assert page.locator("[data-field=model] select").input_value() == "animatediff-pocket"
    with page.expect_request(lambda each: "/v1/videos/plan" in each.url) as sent:
        page.get_by_label("Prompt", exact=True).fill("a red ball")
    order_sent = sent.value.post_data_json
    assert order_sent["model"] == "animatediff-pocket"
    assert order_sent["request"]["loras"] == {"animatediff-pocket-pans-left": 0.8}


def test_an_add_on_of_the_models_page_is_used_kept_in_a_document_and_reused(server, opened):
    page = opened("#models")
    page.get_by_role("button", name="Use animatediff-pocket-night", exact=True).click()
    page.get_by_role("button", name="Go to Make").click()
    page.wait_for_selector(".make-form")
    assert page.locator("[data-field=model] select").input_value() == "animatediff-pocket"
    describe(page, "a red ball", steps=1, seed=7)
    page.locator(".more > summary").click()
    chosen = page.get_by_label("Add-on", exact=True)
    page.get_by_label("Filter options").fill("add-ons")
    assert chosen.input_value() == "style=animatediff-pocket-night"
    with page.expect_request(planned(lambda order: order.get("add") == {"style": "animatediff-pocket-outline"})):
        chosen.select_option(label="animatediff-pocket-outline")
    chosen.select_option(label="animatediff-pocket-night")
    video = start(page)
    finished(page)
    assert ask(server, f"/v1/videos/{video}")["add"] == {"style": "animatediff-pocket-night"}
    recipe = json.loads(clip_of(server, video, "recipe"))
    plain = ended(server, order(server, "a red ball", "animatediff-pocket", steps=1, seed=7))["id"]
    assert recipe["frames_hash"] != json.loads(clip_of(server, plain, "recipe"))["frames_hash"]
    page.locator("[data-field=add] button[aria-label^=Remove]").click()
    page.get_by_role("button", name="Reuse settings").click()
    page.locator(".more > summary").click()
    page.get_by_label("Filter options").fill("add-ons")
    assert chosen.input_value() == "style=animatediff-pocket-night"
    drop(page, "body", "night.mp4", "video/mp4", clip_of(server, video))
    page.wait_for_selector("text=These are the settings of night.mp4.")
    assert page.evaluate("async () => (await import('/studio/store.js')).remembered('values').add") == [
        {"slot": "style", "name": "animatediff-pocket-night"}
    ]
    page.goto(f"{server.url}/#gallery/{video}")
    page.get_by_role("button", name="Replay").click()
    page.get_by_text("Identical: the replay has the same frames to the last bit.").wait_for()
    page.get_by_role("button", name="Open in timeline").click()
    page.wait_for_selector(".stage-canvas")
    page.wait_for_function("() => document.querySelector('[data-field=seed] input')?.value === '7'")
    again = generated(page, server)
    assert json.loads(clip_of(server, again, "recipe"))["frames_hash"] == recipe["frames_hash"]


def test_another_model_of_the_models_page_leaves_the_add_ons_out(opened):
    page = opened("#models")
    kept = "async () => (await import('/studio/store.js')).remembered('values')"
    page.get_by_role("button", name="Use animatediff-pocket-night", exact=True).click()
    page.get_by_role("button", name="Go to Make").wait_for()
    for model, slots in (("animatediff-pocket", ["style"]), ("zoetrope", [])):
        page.evaluate("location.hash = 'models'")
        page.get_by_role("button", name=f"Use {model}", exact=True).click()
        page.wait_for_selector(".make-form")
        found = page.evaluate(kept)
        assert (found["model"], [each["slot"] for each in found.get("add", [])]) == (model, slots)


def test_a_download_shows_its_progress_and_is_cancelled(server, opened):
    page = opened("#make")
    state = {"download": None}
    seen = []

    def listing(route):
        reply = route.fetch()
        body = reply.json()
        body["downloads"] = True
        row = next(each for each in body["data"] if each["id"] == "svd-xt")
        row["download"] = state["download"] and dict(state["download"])
        if state["download"] and state["download"]["state"] == "running":
            state["download"]["bytes"] += 2**20
        route.fulfill(response=reply, json=body)

    def fetching(route):
        seen.append((route.request.method, route.request.url.partition("/v1/")[2]))
        start = {"state": "running", "bytes": 2**20, "total": 2**23}
        state["download"] = start if route.request.method == "POST" else {"state": "cancelled"}
        route.fulfill(json={"id": "svd-xt", "object": "model", "kind": "published", "here": False})

    page.route("**/v1/models", listing)
    page.route("**/v1/models/svd-xt/download", fetching)
    page.goto(f"{server.url}/#models")
    page.get_by_role("button", name="Fetch svd-xt", exact=True).click()
    page.wait_for_selector("text=/[2-7] MiB of 8 MiB/")
    page.get_by_role("button", name="Cancel fetching svd-xt", exact=True).click()
    page.get_by_role("button", name="Fetch svd-xt", exact=True).wait_for()
    assert seen == [("POST", "models/svd-xt/download"), ("DELETE", "models/svd-xt/download")]
    page.unroute_all()


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_has_a_serious_fault_of_accessibility(waiting, opened, view):
    for scheme in ("light", "dark"):
        page = opened(f"#{view}", color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_selector(f".view[data-view={view}] :is(.make, .page)")
        if view == "make":
            page.locator(".more > summary").click()
            page.wait_for_selector(".more .group")
            page.evaluate("() => document.querySelectorAll('.more .group').forEach((each) => (each.open = true))")
        page.wait_for_timeout(300)
        assert faults_of(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_text_is_shown_as_text(waiting, opened, view):
    page = opened(f"#{view}")
    page.wait_for_selector(f".view[data-view={view}] :is(.make, .page)")
    if view == "make":
        page.locator("[data-field=prompt] textarea").fill(HOSTILE)
        page.set_input_files("input[type=file]", []) if page.locator("input[type=file]").count() else None
        page.wait_for_selector(".plan-facts .fact")
    if view == "queue":
        page.locator(".job-title", has_text=HOSTILE).wait_for()
    assert page.locator("img[src=x], main b, main script").count() == 0
    assert "owned" not in page.title()


def test_a_hostile_file_name_is_shown_as_text(opened, server):
    from acting import drop, png

    page = opened()
    page.wait_for_selector(".make-form")
    drop(page, "body", f"{HOSTILE[:60]}.png".replace("/", "-"), "image/png", png())
    name = page.locator("[data-field=image] .file-name")
    name.wait_for()
    assert name.inner_text().startswith("<img src=x onerror=")
    assert page.locator("img[src=x], main b").count() == 0


def test_the_policy_forbids_scripts_that_are_not_files_of_the_studio(opened, server):
    page = opened()
    answer = page.goto(server.url)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert (policy["frame-ancestors"], policy["base-uri"], policy["connect-src"]) == ("'none'", "'none'", "'self'")
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            addEventListener('securitypolicyviolation', (event) => resolve(event.effectiveDirective), {once: true});
            const script = document.createElement('script');
            try { script.text = 'document.title = "owned"'; } catch { resolve('trusted types'); }
            document.body.append(script);
        })"""
    )
    assert refused in ("script-src-elem", "trusted types", "require-trusted-types-for")
    assert page.title() != "owned"
    page.faults.clear()


def test_dark_mode_follows_the_system_and_the_switch(opened):
    page = opened(color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    page.wait_for_selector(".make-form")
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Theme: as the system").click()
    light = page.evaluate(ground)
    assert sum(map(int, dark[4:-1].split(", "))) < 120 < 600 < sum(map(int, light[4:-1].split(", ")))
    page.reload()
    page.wait_for_selector(".make-form")
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_shows_every_view_without_scrolling_sideways(waiting, opened, view):
    page = opened(f"#{view}", viewport={"width": 375, "height": 700}, is_mobile=True, has_touch=True)
    page.wait_for_selector(f".view[data-view={view}] :is(.make, .page)")
    page.wait_for_timeout(200)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 375
    link = page.locator("#nav a").first.bounding_box()
    assert link["height"] >= 44


def test_the_page_weighs_little_and_its_first_paint_waits_for_style_sheets_alone(opened):
    page = opened()
    page.wait_for_selector(".make-form")
    weight = page.evaluate(
        """() => [...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]
            .filter((each) => !each.name.includes('/content')).reduce((sum, each) => sum + each.transferSize, 0)"""
    )
    files = sum(each.stat().st_size for each in STUDIO.iterdir())
    assert weight <= 400_000
    assert files <= 400_000
    blocking = page.evaluate(
        "() => performance.getEntriesByType('resource').filter((each) => each.renderBlockingStatus === 'blocking')"
        ".map((each) => each.name.split('/').pop())"
    )
    assert blocking
    assert all(name.endswith(".css") for name in blocking)


def test_a_service_with_a_token_asks_for_it_and_works_with_it(opened, tmp_path):
    with serving(tmp_path / "store", token=TOKEN) as closed:
        page = opened(url=closed.url)
        page.get_by_label("Token").fill("wrong-wrong-wrong-wrong")
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_selector("text=This is not the token.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_selector(".make-form")
        page.faults.clear()  # the answers 401
        describe(page, "a red ball", model="zoetrope/tiny", steps=2)
        page.locator("button.primary").click()
        finished(page)
        assert page.locator("video").get_attribute("src").startswith("blob:")
        page.goto("about:blank")
