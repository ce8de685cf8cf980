"""The studio's page in Chromium: first paint, weight, memory over 200 previews, and scrolling through 500 clips.

    python -m benchmarks.studio

Prints a table. It starts `kinema serve` in a temporary folder, and needs Playwright and Chromium.
"""

from __future__ import annotations

import base64
import io
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "studio"))

LOADS = 9
PREVIEWS = 200
WEIGHT = """() => [...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]
    .map((each) => [each.name.replace(location.origin, ''), each.transferSize])"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
SHOW = """async ([count, data]) => {
    const { previewCanvas } = await import('/studio/preview.js');
    window.canvas ??= previewCanvas(8);
    document.body.append(window.canvas.element);
    for (let index = 0; index < count; index += 1) await window.canvas.show({data, frames: 16});
}"""


CLIPS = 500
SCROLL = """async (step) => {
    const tasks = [];
    const watch = new PerformanceObserver((list) => list.getEntries().forEach((each) => tasks.push(each.duration)));
    watch.observe({type: 'longtask', buffered: false});
    const frames = [];
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    let last = await frame();
    const end = document.documentElement.scrollHeight - innerHeight;
    for (let y = 0; y < end + step; y += step) {
        scrollTo(0, Math.min(y, end));
        const now = await frame();
        frames.push(now - last);
        last = now;
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
    watch.disconnect();
    return {frames: frames.sort((a, b) => a - b), tasks};
}"""
"""Scrolls from the first to the last clip, and measures every frame and each task of more than 50 ms."""


def main() -> None:
    from playwright.sync_api import sync_playwright
    from studio_service import serving

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "store") as server, sync_playwright() as found:
        browser = found.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        paints, weights = [], {}
        for _ in range(LOADS):
            page = browser.new_context().new_page()
            page.goto(server.url)
            page.wait_for_selector(".make-form")
            paints.append(page.evaluate(PAINT))
            weights = dict(page.evaluate(WEIGHT))
            page.context.close()
        files = sum(size for name, size in weights.items() if not name.startswith("/v1/"))
        paint = f"{statistics.median(paints):.0f} ms (worst {max(paints):.0f})"
        print(f"first paint, median of {LOADS} new profiles: {paint}")
        print(f"files of the page: {files:,} bytes sent; answers of the service: {sum(weights.values()) - files:,}")
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector(".make-form")
        session = page.context.new_cdp_session(page)
        heaps = []
        for count in (20, PREVIEWS // 2, PREVIEWS // 2):
            page.evaluate(SHOW, [count, strip()])
            session.send("HeapProfiler.collectGarbage")
            heaps.append(session.send("Runtime.getHeapUsage")["usedSize"] / 2**20)
        shown = ", ".join(f"{heap:.2f}" for heap in heaps)
        print(f"heap after 20, {20 + PREVIEWS // 2} and {20 + PREVIEWS} previews: {shown} MiB")
        page.context.close()
        scrolling(browser, server)
        browser.close()


def scrolling(browser: Any, server: Any) -> None:
    """Print the longest frames while `CLIPS` clips of the gallery go by, slowly and fast."""
    from acting import many
    from timeline_acting import made

    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    many(page, server, made(server, "a red ball", model="zoetrope/tiny", steps=1), CLIPS)
    page.goto(f"{server.url}/#gallery")
    page.get_by_text(f"{CLIPS} clips").wait_for()
    for step in (60, 240, 900):
        page.evaluate("() => scrollTo(0, 0)")
        page.wait_for_timeout(500)
        found = page.evaluate(SCROLL, step)
        frames, tasks = found["frames"], [f"{each:.0f}" for each in found["tasks"]]
        print(
            f"{CLIPS} clips, {step} px a frame: {len(frames)} frames, median {frames[len(frames) // 2]:.0f} ms, "
            f"longest {', '.join(f'{each:.0f}' for each in frames[-3:])} ms; long tasks: {', '.join(tasks) or 'none'}"
        )


def strip() -> str:
    """16 frames of 256×256 side by side, as a preview event has them."""
    from PIL import Image

    data = io.BytesIO()
    Image.effect_noise((256 * 16, 256), 60).convert("RGB").save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


if __name__ == "__main__":
    main()
