"""An option that changes nothing is refused or noted: every field of a request, for every family.

Signs of prompts: `tests/conditioning/prompts/test_signs.py`; fields of files: `tests/families/animatediff/files/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from PIL import Image

from kinema import job, registry
from kinema.api import Model, load
from kinema.events import Event, Note
from kinema.memory.plan import MemoryPlan
from kinema.schema import TASK_FIELDS, BadRequest, Request

WINDOWS = {"frames": 14, "window": 8}
SIGNS = "a (red:1.4) ball"
GIVEN: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt": "a blue box"}],
    "prompt_spans": [{"prompt_spans": {"1": "a blue box"}}],
    "prompt_syntax": [{"prompt": SIGNS, "prompt_syntax": "comfy"}],
    "negative_prompt": [{"negative_prompt": "a box"}, {"negative_prompt": "a box", "guidance": 1.0}],
    "seed": [{"seed": 6}],
    "clips": [{"clips": 2}],
    "frames": [{"frames": 3}],
    "height": [{"height": 40}],
    "width": [{"width": 40}],
    "size": [{"size": "large", "height": None, "width": None}],
    "fps": [{"fps": 5.0}],
    "steps": [{"steps": 2}],
    "sampler": [{"sampler": "heun", "steps": 4}],
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
    "overlap": [{"overlap": 2}, {**WINDOWS, "overlap": 4}],
    "window_places": [{"window_places": "uniform"}, {**WINDOWS, "overlap": 4, "window_places": "uniform"}],
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
    "masks": [{"masks": {"2": "no-such-file.png"}}],
}
ELSEWHERE = {
    "task": "has a table of the fields that each takes",
    "loras": "tests/test_contract.py",
    "image_model": "a model, tests/test_image_stage.py",
    "super_resolution": "a model, tests/test_upscale.py",
    "every": "needs a super-resolution model, tests/test_upscale.py",
}
"""Fields that another test covers, and why."""
AS_DEFAULT = {("svd", "karras"): "SVD always spaces its steps so"}
"""Values that state what a model does anyway."""
SHALLOW = {
    "animatediff": {"channels": [32], "depths": [1], "heads": [2]},
    "lumiere": {"channels": [32, 32], "depths": [0, 1], "heads": [2, 2]},
    "svd": {"channels": [32], "heads": [1]},
}
"""U-Nets of fewer levels than the tiny ones, for speed."""
LONG = {"opensora": 22}
"""Frames of clips in windows where a latent frame stands for several."""
Outcome = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module", params=sorted(registry.FAMILIES))
def model(request: pytest.FixtureRequest) -> Model:
    """A random tiny model. Its memory is not planned, which is half the time of so small a clip."""
    request.getfixturevalue("unplanned")
    torch.set_num_threads(1)
    result = load(request.param, preset="tiny", overrides=SHALLOW.get(request.param))
    with torch.no_grad():  # untrained heads are zero
        for p in result.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return result


@pytest.fixture(scope="module")
def unplanned() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "choose_memory_plan", lambda _work, _taken: MemoryPlan())
        yield


def test_every_field_of_a_request_is_given() -> None:
    assert set(GIVEN) | set(ELSEWHERE) == {field.name for field in fields(Request)}
    assert not set(GIVEN) & set(ELSEWHERE)


@pytest.fixture(scope="module")
def outcome(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The clip, rate and notes of a request with these options, or why it is refused."""
    plain: dict[str, Any] = {"prompt": "a red ball", "seed": 5, "steps": 3, "super_resolution": None}
    plain |= {"frames": 4, "height": 16, "width": 16}
    if not model.system.family.sampling.defaults(model.system.config).takes_prompt:
        image = tmp_path_factory.mktemp("given") / "image.png"
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(image)
        plain |= {"prompt": "", "task": "animate", "image": str(image)}
    known, family = dict[str, Any](), model.system.family.name

    def run(options: dict[str, Any]) -> Any:
        events: list[Event] = []
        long = {"frames": LONG[family]} if family in LONG and options.get("frames") == WINDOWS["frames"] else {}
        try:
            clip = model.run(Request(**plain | options | long), on_event=events.append)
        except BadRequest as refusal:
            return str(refusal)
        return clip.video, clip.fps, {event.message for event in events if isinstance(event, Note)}

    def once(options: dict[str, Any]) -> Any:
        if repr(options) not in known:
            known[repr(options)] = run(options)
        return known[repr(options)]

    return once


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_changes_the_clip_or_is_refused_or_noted(model: Model, outcome: Outcome, name: str) -> None:
    place = (model.system.family.name, name)
    if place in AS_DEFAULT:
        pytest.skip(AS_DEFAULT[place])
    for options in GIVEN[name]:
        found, same = outcome(options), outcome({key: value for key, value in options.items() if key != name})
        if isinstance(found, str):
            assert found
        elif not isinstance(same, str):  # an option without which the request is refused has an effect
            changed = found[0].shape != same[0].shape or not torch.equal(found[0], same[0]) or found[1] != same[1]
            assert changed or found[2] - same[2], f"{options} changes nothing in silence"


def test_the_plain_request_is_not_refused(outcome: Outcome) -> None:
    """So that the test above compares clips."""
    assert not isinstance(outcome({}), str)


def test_a_prompt_at_a_guidance_scale_of_zero_is_noted() -> None:
    zoetrope, found = load("zoetrope", preset="tiny"), []
    request = Request(prompt="a red ball", seed=5, steps=1, super_resolution=None)
    zoetrope.run(request.with_(guidance=0.0), on_event=found.append)
    assert Note("the prompt is not used, since the guidance scale is 0") in found
    zoetrope.run(request.with_(guidance=1.0, negative_prompt="a box", guidance_rescale=0.5), on_event=found.append)
    assert Note("--negative-prompt and --guidance-rescale are not used, since the guidance scale is 1") in found


def test_the_fields_of_each_task_are_fields() -> None:
    assert {name for names in TASK_FIELDS.values() for name in names} <= set(GIVEN) | set(ELSEWHERE)
