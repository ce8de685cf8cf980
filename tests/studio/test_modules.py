"""Single modules of the studio, in Chromium: orders and forms, recipes, event streams, and previews."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

VALUES = {
    "generate": {
        "model": "zoetrope", "prompt": "a red ball", "negative_prompt": "blur", "frames": 12, "steps": 4, "seed": 7,
        "size": {"width": 64, "height": 128}, "loop": True, "guidance_interval": [-5, 0], "free_init_stop": [0.2, 0.3],
        "prompt_spans": [{"frames": "8-15", "text": "a blue box"}],
        "sampler_options": [{"key": "gamma", "value": "0.3"}],
        "lora": [{"name": "a/b", "weight": 0.5}], "extra": [{"key": "fps_id", "value": "6"}], "motion": 90,
        "colours": "seam", "add": [{"slot": "style", "name": "night"}],
    },
    "animate": {
        "model": "zoetrope", "image": {"id": "asset-1", "name": "asset-1"}, "size": {"name": "768px:16:9"},
        "keyframes": [{"frame": 5, "file": {"id": "asset-2", "name": "asset-2"}}], "region": [0, 0.1, 0.5, 1],
        "start": "4f", "control": {"id": "asset-3", "name": "asset-3"}, "guidance_interval": [None, 0],
    },
}  # fmt: skip
REQUESTS = {
    "generate": {
        "task": "generate", "prompt": "a red ball", "negative_prompt": "blur", "frames": 12, "steps": 4, "seed": 7,
        "width": 64, "height": 128, "loop": True, "guidance_interval": [-5, 0], "free_init_stop": [0.2, 0.3],
        "prompt_spans": {"8-15": "a blue box"}, "sampler_options": {"gamma": 0.3}, "loras": {"a/b": 0.5},
        "extra": {"motion_bucket": 90, "fps_id": 6}, "colours": "seam",
    },
    "animate": {
        "task": "animate", "image": "asset-1", "size": "768px:16:9", "keyframes": {"5": "asset-2"},
        "region": [0, 0.1, 0.5, 1], "start": "4f", "extra": {"control": "asset-3"},
        "guidance_interval": [None, 0],
    },
}  # fmt: skip


@pytest.mark.parametrize("verb", VALUES)
def test_a_form_becomes_an_order_and_an_order_the_same_form(opened, verb):
    page = opened()
    order, back = page.evaluate(
        """async ([verb, values]) => {
            const { definitions } = await import('/studio/catalogue.js');
            const { orderOf, valuesOf } = await import('/studio/order.js');
            const defined = await definitions();
            const order = orderOf(defined, verb, {...values, unknown: 1});
            return [order, valuesOf(defined, order)];
        }""",
        [verb, VALUES[verb]],
    )
    add = {"add": {"style": "night"}} if verb == "generate" else {}
    assert order == {"model": "zoetrope", **add, "request": REQUESTS[verb]}
    assert back == {"verb": verb, "values": VALUES[verb]}


def test_defaults_and_empty_values_are_not_sent(opened):
    values = {"prompt": "a ball", "guidance_rescale": 0, "colours": "free", "lora": [], "loop": False, "seed": None}
    values |= {"super_resolution_weight": None, "negative_prompt": ""}
    order = opened().evaluate(
        """async (values) => {
            const { definitions } = await import('/studio/catalogue.js');
            const { orderOf } = await import('/studio/order.js');
            return orderOf(await definitions(), 'generate', values);
        }""",
        values,
    )
    assert order == {"model": "zoetrope", "request": {"task": "generate", "prompt": "a ball"}}


def test_a_recipe_with_infinite_numbers_gives_its_settings(opened):
    text = """{"inputs": {"image": "sha256:1"}, "stages": [{"stage": "base", "model": "m", "request": {
        "task": "animate", "prompt": "to Infinity, \\"NaN\\"", "seed": 7,
        "guidance_interval": [-Infinity, 0.0], "image": "photo.png"}},
        {"stage": "super-resolution", "model": "big", "request": {}}]}"""
    found = opened().evaluate(
        """async (text) => {
            const { definitions } = await import('/studio/catalogue.js');
            const { parseRecipe, valuesOfRecipe } = await import('/studio/order.js');
            return valuesOfRecipe(await definitions(), parseRecipe(text));
        }""",
        text,
    )
    values = {"model": "m", "prompt": 'to Infinity, "NaN"', "seed": 7, "super_resolution": "big"}
    values["guidance_interval"] = [None, 0]
    assert found == {"verb": "animate", "values": values, "inputs": ["image"]}


def test_events_are_read_from_pieces_of_any_length(opened):
    text = 'id: 1\nevent: phase\ndata: {"name": "löad"}\n\n: ping\n\nevent: step\r\ndata: {"index":\r\ndata: 3}\r\n\r\n'
    found = opened().evaluate(
        """async (text) => {
            const { parse } = await import('/studio/events.js');
            const bytes = new TextEncoder().encode(text);
            const feed = (pieces) => (controller) => {
                pieces.forEach((piece) => controller.enqueue(piece));
                controller.close();
            };
            const results = [];
            for (const size of [1, 2, 7, 1000]) {
                const pieces = [];
                for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
                const events = [];
                for await (const event of parse(new ReadableStream({start: feed(pieces)}))) events.push(event);
                results.push(events);
            }
            return results;
        }""",
        text,
    )
    assert found == [[["phase", {"name": "löad"}], ["step", {"index": 3}]]] * 4


def test_the_preview_plays_the_frames_of_its_image_and_the_newest_wins(opened):
    def strip(colours: list[tuple[int, int, int]]) -> str:
        image, data = Image.new("RGB", (8 * len(colours), 8)), io.BytesIO()
        for index, colour in enumerate(colours):
            image.paste(colour, (8 * index, 0, 8 * index + 8, 8))
        image.save(data, "png")
        return base64.b64encode(data.getvalue()).decode()

    large = io.BytesIO()
    Image.effect_noise((4000, 2000), 90).save(large, "png")  # it is decoded after the small one that comes later
    slow = base64.b64encode(large.getvalue()).decode()
    seen = opened().evaluate(
        """async ([old, data]) => {
            const { previewCanvas } = await import('/studio/preview.js');
            const canvas = previewCanvas(20);
            await Promise.all([canvas.show({data: old, frames: 1}), canvas.show({data, frames: 3})]);
            const seen = new Set();
            for (let turn = 0; turn < 40; turn += 1) {
                seen.add([...canvas.element.getContext('2d').getImageData(4, 4, 1, 1).data].join());
                await new Promise((resolve) => setTimeout(resolve, 20));
            }
            const size = [canvas.element.width, canvas.element.height];
            canvas.destroy();
            return [[...seen].sort(), size];
        }""",
        [slow, strip([(200, 0, 0), (0, 200, 0), (0, 0, 200)])],
    )
    assert seen == [["0,0,200,255", "0,200,0,255", "200,0,0,255"], [8, 8]]


def test_bytes_are_counted_in_powers_of_1024(opened):
    counts = [0, 1000, 1023, 1024, 1536, 1000 * 1024, 5 * 2**30]
    found = opened().evaluate(
        "async (counts) => counts.map((await import('/studio/format.js')).bytes)",
        counts,
    )
    assert found == ["0 B", "1000 B", "1023 B", "1 KiB", "1.5 KiB", "1000 KiB", "5 GiB"]


def test_what_is_remembered_is_written_while_the_page_is_open(opened):
    page = opened()
    page.evaluate("async () => (await import('/studio/store.js')).remember('probe', 7)")
    page.wait_for_function("() => JSON.parse(localStorage.getItem('kinema.studio'))?.probe === 7")
