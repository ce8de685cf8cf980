"""An option that changes nothing is refused or noted: every field of a request, for every family.

Signs of prompts are in `tests/conditioning/prompts/test_no_effect.py`, fields of files in
`tests/checkpoints/test_no_effect.py`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from kinema import registry
from kinema.api import Model, load
from kinema.events import Event, Note
from kinema.schema import TASK_FIELDS, BadRequest, Request

WINDOWS = {"frames": 24, "window": 8}
GIVEN: dict[str, list[dict[str, Any]]] = {
    "prompt_spans": [{"prompt_spans": {"1": "a blue box"}}],
    "negative_prompt": [{"negative_prompt": "a box"}, {"negative_prompt": "a box", "guidance": 1.0}],
    "prompt_syntax": [{"prompt_syntax": "a1111"}, {"prompt_syntax": "comfy"}],
    "prompt": [{"prompt": "a blue box"}, {"prompt": "a blue box", "guidance": 0.0}],
    "seed": [{"seed": 6}],
    "clips": [{"clips": 2}],
    "frames": [{"frames": 3}],
    "height": [{"height": 40}],
    "width": [{"width": 40}],
    "size": [{"size": "large"}],
    "fps": [{"fps": 5.0}],
    "steps": [{"steps": 3}],
    "sampler": [{"sampler": "heun"}],
    "guidance": [{"guidance": 3.5}],
    "guidance_end": [{"guidance_end": 9.0}],
    "guidance_rescale": [{"guidance_rescale": 0.7}, {"guidance_rescale": 0.7, "guidance": 1.0}],
    "guidance_interval": [{"guidance_interval": (-1.0, 1.0)}, {"guidance_interval": (-1.0, 1.0), "guidance": 1.0}],
    "eta": [{"eta": 0.5}],
    "spacing": [{"spacing": "respaced"}, {"spacing": "log-snr"}],
    "karras": [{"karras": True}],
    "sampler_options": [{"sampler_options": {"gamma": 0.4}}],
    "lora_folder": [{"lora_folder": "."}],
    "strength": [{"strength": 0.3}],
    "colours": [{"colours": "anchor"}],
    "window": [WINDOWS],
    "overlap": [{"overlap": 2}, {**WINDOWS, "overlap": 1}],
    "window_places": [{"window_places": "uniform"}, {**WINDOWS, "window_places": "uniform"}],
    "window_weights": [{"window_weights": "flat"}, {**WINDOWS, "window_weights": "flat"}],
    "window_stride": [{"window_stride": 2}, {**WINDOWS, "window_stride": 2}],
    "window_in": [{"window_in": "attention"}, {**WINDOWS, "window_in": "attention"}],
    "noise_type": [{"noise_type": "shuffle-context"}, {**WINDOWS, "noise_type": "shuffle-context"}],
    "free_init": [{"free_init": 2}],
    "free_init_filter": [{"free_init_filter": "box"}, {"free_init": 2, "free_init_filter": "box"}],
    "free_init_order": [{"free_init_order": 2}, {"free_init": 2, "free_init_order": 2}],
    "free_init_stop": [{"free_init_stop": (0.5, 0.5)}, {"free_init": 2, "free_init_stop": (0.5, 0.5)}],
    "free_init_fast": [{"free_init_fast": True}, {"free_init": 2, "free_init_fast": True}],
    "super_resolution_weight": [{"super_resolution_weight": 3.0}],
    "loop": [{"loop": True}, {**WINDOWS, "window_places": "uniform", "loop": True}],
    "extra": [{"extra": {"no-such-option": 1}}],
    "region": [{"region": (0.0, 0.0, 0.5, 1.0)}],
    "start": [{"start": "1.5"}],
    "end": [{"end": "2.5"}],
    "outside": [{"outside": True}],
    "backward": [{"backward": True}],
    "keep": [{"keep": 2}],
    "scale": [{"scale": 3}],
    "fit": [{"fit": "pad"}],
    "honour": [{"honour": "replacement"}],
    "reconstruction_weight": [{"reconstruction_weight": 3.0}],
    **{name: [{name: "no-such-file.png"}] for name in ("image", "last_image", "video", "mask")},
    "keyframes": [{"keyframes": {"2": "no-such-file.png"}}],
}
ELSEWHERE = {
    "task": "has a table of the fields that each takes",
    "loras": "tests/test_contract.py",
    "image_model": "a model, tests/test_image_stage.py",
    "super_resolution": "a model, tests/test_upscale.py",
    "every": "needs a super-resolution model, tests/test_upscale.py",
}
"""Fields that another test covers, and why."""


@pytest.fixture(scope="module", params=sorted(registry.FAMILIES))
def model(request: pytest.FixtureRequest) -> Model:
    torch.set_num_threads(1)
    result = load(request.param, preset="tiny")
    with torch.no_grad():  # untrained heads are zero
        for p in result.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return result


def test_every_field_of_a_request_is_given() -> None:
    assert set(GIVEN) | set(ELSEWHERE) == {field.name for field in fields(Request)}
    assert not set(GIVEN) & set(ELSEWHERE)


def outcome(model: Model, options: dict[str, Any]) -> tuple[str, Any]:
    """("refused", sentence), or ("made", (clip, rate, notes))."""
    plain = {"prompt": "a red ball", "seed": 5, "steps": 2, "super_resolution": None}
    events: list[Event] = []
    try:
        clip = model.run(Request(**plain | options), on_event=events.append)
    except BadRequest as refusal:
        return "refused", str(refusal)
    return "made", (clip.video, clip.fps, {event.message for event in events if isinstance(event, Note)})


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_changes_the_clip_or_is_refused_or_noted(model: Model, name: str) -> None:
    for options in GIVEN[name]:
        kind, found = outcome(model, options)
        others = {key: value for key, value in options.items() if key != name}
        if kind == "refused":
            assert found.endswith(("out", "it")) or found, found
            continue
        same_kind, same = outcome(model, others)
        assert same_kind == "made", f"{others} is refused, and {name} is not: {same}"
        changed = found[0].shape != same[0].shape or not torch.equal(found[0], same[0]) or found[1] != same[1]
        assert changed or found[2] - same[2], f"{options} changes nothing in silence"


def test_the_fields_of_each_task_are_fields() -> None:
    assert {name for names in TASK_FIELDS.values() for name in names} <= set(GIVEN) | set(ELSEWHERE)
