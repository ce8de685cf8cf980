"""The planner in this process: limits, files in options, and what it says of models."""

from __future__ import annotations

import pytest

from kinema import registry
from kinema.schema import BadRequest
from kinema.server.planner import Planner

SETUP = {"device": "cpu", "dtype": None, "offload": "auto", "compile": False}
LIMITS = {"frames": 32, "pixels": 10**6, "steps": 50}


@pytest.fixture(scope="module")
def planner():
    return Planner(SETUP)


def plan(planner: Planner, model: str = "vdm/tiny", names: dict[str, str] | None = None, **request):
    return planner.answer(
        {
            "do": "plan", "id": 1, "model": model, "source": {"source": model}, "device": "cpu",
            "memory": None, "limits": LIMITS,
            "request": {"prompt": "a ball", "frames": 4, **request}, "names": names or {},
        }
    )  # fmt: skip


def test_a_plan_has_the_clip_its_seed_and_its_stages(planner):
    found = plan(planner, steps=3, height=15)
    assert {name: found[name] for name in ("frames", "fps", "height", "width", "clips", "steps", "task")} == {
        "frames": 4, "fps": 8.0, "height": 16, "width": 16, "clips": 1, "steps": 3, "task": "generate",
    }  # fmt: skip
    assert isinstance(found["seed"], int)
    assert any("height" in note or "16" in note for note in found["notes"])
    (stage,) = found["forecast"]["stages"]
    assert (stage["stage"], stage["size"], stage["steps"]) == ("base", [1, 3, 4, 16, 16], 3)
    assert not {"seconds", "peak_bytes"} & found["forecast"].keys()


def test_both_stages_are_planned(planner):
    found = plan(planner, super_resolution="zoetrope", steps=2)
    assert [stage["stage"] for stage in found["forecast"]["stages"]] == ["base", "super-resolution"]
    assert (found["height"], found["steps"]) == (64, 4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"frames": 40}, "the clip has 40 frames; this service generates at most 32"),
        ({"steps": 51}, "the request has 51 steps; this service allows at most 50"),
        ({"frames": 20, "height": 256, "width": 256}, "1,310,720 pixels over all frames and clips"),
        ({"clips": 64, "frames": 16, "height": 64, "width": 64}, "4,194,304 pixels"),
    ],
)
def test_requests_above_the_limits_are_refused(planner, request_, message):
    with pytest.raises(BadRequest, match=message):
        plan(planner, **request_)


def test_defaults_above_the_limits_are_refused_too(planner):
    with pytest.raises(BadRequest, match="frames; this service generates at most 32|steps; this service allows"):
        plan(planner, "vdm/ucf101", frames=None, prompt="")


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("animatediff-pocket", {"embeddings": "/etc"}),
        ("animatediff-pocket", {"embeddings": {"x": "/etc/passwd"}}),
        ("animatediff-pocket", {"scribble": "/etc/passwd"}),
        ("animatediff-pocket", {"control": "../x.png"}),
        ("animatediff-pocket", {"ip_image": ["x.png"]}),
        ("lumiere-pocket", {"style": "/etc/passwd"}),
        ("opensora/v1.2", {"reference_path": "/etc/passwd;b.png"}),
    ],
)
def test_options_of_a_family_name_no_file_of_the_server(planner, model, extra):
    with pytest.raises(BadRequest, match="expected the identifier of an upload or a video"):
        plan(planner, model, extra=extra)


def test_an_included_style_may_be_named(planner):
    with pytest.raises(BadRequest) as refused:
        plan(planner, "lumiere-pocket", extra={"style": "animatediff-pocket-outline", "nope": 1})
    assert "identifier" not in str(refused.value)


def test_a_request_that_does_not_fit_the_worker_s_memory_is_refused(planner):
    message = {
        "do": "plan", "id": 1, "model": "vdm/tiny", "source": {"source": "vdm/tiny"}, "device": "cpu",
        "memory": 1000, "limits": LIMITS,
        "request": {"prompt": "a", "frames": 4}, "names": {},
    }  # fmt: skip
    with pytest.raises(BadRequest, match="may be used"):
        planner.answer(message)


def test_planning_loads_no_weights(planner):
    plan(planner, "zoetrope", super_resolution=None)
    systems = [model.system for _, model in planner._open.values()]
    assert all(system.runtime.model is None for system in systems)
    assert all(other.runtime.model is None for system in systems for other in system.runtime.other_stages)


def test_add_ons_are_opened_with_the_model_and_described_with_it(planner):
    night = str(registry.weight_file("animatediff-pocket-night.safetensors"))
    plain = {"source": "animatediff-pocket"}
    found = planner.model("animatediff-pocket + style=night", {**plain, "add": {"style": {"source": night}}}, "cpu")
    assert [each.slot for each in found.system.weights.added] == ["motion", "style"]
    assert [each.slot for each in planner.model("animatediff-pocket", plain, "cpu").system.weights.added] == ["motion"]
    described = planner.answer({"do": "describe", "model": "animatediff-pocket", "source": plain})["defaults"]
    assert {"motion", "style", "controlnet"} <= set(described["slots"])
    assert described["add_ons"] == {"motion": "animatediff-pocket-motion"}


def test_a_model_is_described_with_its_defaults_and_verbs(planner):
    message = {"do": "describe", "id": 1, "model": "zoetrope", "source": {"source": "zoetrope"}}
    found = planner.answer(message)
    assert (found["family"], found["defaults"]["frames"], found["defaults"]["fps"]) == ("zoetrope", 16, 8.0)
    assert set(found["defaults"]["verbs"]) == {
        "generate", "animate", "interpolate", "extend", "inpaint", "edit", "upscale",
    }  # fmt: skip
    assert found["bytes"] > found["parameters"] > 10**6
