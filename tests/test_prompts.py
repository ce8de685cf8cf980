"""Prompts over frames: by conditioning where a family can, with windows or blocks otherwise, refused where neither is;
and prompts are encoded once a stage.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.api import Model, load
from kinema.canvas import Canvas, Piece, Release
from kinema.events import Event, Note
from kinema.schema import BadRequest, Clip, Request, Shape

RED, BLUE = "a red ball", "a blue box"
ASK: dict[str, Any] = {"prompt": RED, "seed": 3, "steps": 2, "sampler": "ddim", "guidance": 2.0}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    loaded = load("zoetrope", preset="tiny")
    with torch.no_grad():  # untrained heads are zero, which would satisfy every test
        for p in loaded.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return loaded


def test_each_window_has_the_prompt_of_its_middle_frame(model: Model) -> None:
    options = {"frames": 24, "window": 8, "overlap": 0}
    mixed = model.generate(**ASK, **options, prompt_spans={"10-17": BLUE, "18-23": RED}).video
    red, blue = (model.generate(**ASK | {"prompt": prompt}, **options).video for prompt in (RED, BLUE))
    assert torch.equal(mixed[:, :, :8], red[:, :, :8])
    assert torch.equal(mixed[:, :, 8:16], blue[:, :, 8:16])
    assert torch.equal(mixed[:, :, 16:], red[:, :, 16:])
    assert not torch.allclose(red[:, :, 8:16], blue[:, :, 8:16], atol=1e-3)


def test_each_block_has_the_prompt_of_its_middle_frame(model: Model) -> None:
    noise = torch.randn(1, 3, 20, 16, 16, generator=torch.Generator().manual_seed(1))
    request = Request(**ASK, frames=20, overlap=4, prompt_spans={"8-19": BLUE})
    clip = model.run(request, noise=noise)
    assert [(block["start"], block["prompt"]) for block in clip.recipe["stages"][0]["blocks"]] == [
        (0, RED),
        (4, BLUE),
        (8, BLUE),
        (12, BLUE),
    ]
    red = model.run(request.with_(prompt_spans={}), noise=noise)
    assert torch.equal(clip.video[:, :, :8], red.video[:, :, :8])
    assert not torch.allclose(clip.video[:, :, 8:], red.video[:, :, 8:], atol=1e-3)
    assert "prompt" not in red.recipe["stages"][0]["blocks"][0]


def test_prompt_spans_of_a_backward_clip_keep_their_frames(model: Model, tmp_path: Path) -> None:
    """20 frames are generated and the last 17 kept, so requested frame 7 is generated frame 10."""
    source = Clip(torch.zeros(1, 3, 8, 16, 16), 8.0).save(tmp_path / "ball.gif")[0]
    ask = Request(**ASK, task="extend", video=str(source), frames=17, backward=True)
    clip = model.run(ask.with_(prompt_spans={"0-6": RED, "7-16": BLUE}))
    prompts = [(block["start"], block["prompt"]) for block in clip.recipe["stages"][0]["blocks"]]
    assert prompts == [(8, BLUE), (4, RED), (0, RED)]  # their middles are 12, 8 and 4
    assert clip.recipe["stages"][0]["frames"] == 20
    assert clip.recipe["stages"][0]["request"]["prompt_spans"] == {"0-6": RED, "7-16": BLUE}
    for later, prompts in ((5, [BLUE, RED, RED]), (6, [RED, RED, RED]), (1, [BLUE, BLUE, RED])):
        spans = {f"0-{later + 3}": RED, f"{later + 4}-16": BLUE}
        clip = model.run(ask.with_(prompt_spans=spans))
        assert [block["prompt"] for block in clip.recipe["stages"][0]["blocks"]] == prompts


def test_a_note_states_how_prompts_change(model: Model) -> None:
    for options, message in (({"frames": 20}, "blocks"), ({"frames": 16, "window": 8}, "windows")):
        events: list[Event] = []
        model.generate(**ASK, **options, prompt_spans={"8": BLUE}, on_event=events.append)
        assert Note(f"the prompt changes with the {message}") in events


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zoetrope", {"frames": 8}, "uses one prompt for clips up to 8 frames: give a --window"),
        ("vdm", {"frames": 8, "window": 8}, "uses one prompt for clips up to 8 frames"),
        ("svd", {"frames": 8}, "does not support prompts: leave prompt spans"),
    ],
)
def test_prompt_spans_are_refused_if_the_prompt_cannot_change(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=f"{name}/tiny {message}"):
        load(name, preset="tiny").run(Request(prompt=RED, prompt_spans={"4": BLUE}, **options))


@pytest.mark.parametrize("family", ["zoetrope", "vdm", "animatediff"])
def test_prompts_are_encoded_once_for_all_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(family, preset="tiny")
    sampling, asked = type(model.system.family.sampling), []
    encode = sampling.encode_prompt

    def counting(self: object, system: object, request: Request, on_event: object) -> object:
        asked.append(request.prompt)
        return encode(self, system, request, on_event)

    monkeypatch.setattr(sampling, "encode_prompt", counting)
    clip = model.generate(RED, seed=1, steps=1, frames=4 * (model.system.lattice.max_frames or 4), overlap=1)
    assert len(clip.recipe["stages"][0]["blocks"]) > 2
    assert asked == [RED]


def test_conditioning_frames_have_their_own_noise_level_and_no_noise(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given frames to the end; those of a piece that is released, until then."""
    from kinema import tasks

    system = model.system
    own, seen = system.family.sampling.defaults(system.config), []
    monkeypatch.setattr(type(system.family.sampling), "defaults", lambda *_: replace(own, clean_frames=True))

    def denoiser(*_: object) -> Any:
        def denoise(z: torch.Tensor, level: Any) -> torch.Tensor:
            seen.append((z.clone(), level))
            return 0.5 * z

        return denoise

    monkeypatch.setattr(type(system.family.sampling), "denoiser", denoiser)
    video = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    given, edited = (torch.zeros(1, 1, 8, 16, 16) for _ in range(2))
    given[:, :, 0], edited[:, :, 4:6] = 1, 1
    canvas = Canvas(Shape.of(video), (Piece(video, given), Piece(video, edited, Release("strength", 0.5))))
    monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    clip = model.run(Request(**ASK | {"steps": 4, "guidance": 1.0}, task="animate", sampler_options={}))
    assert [tuple(level.sigma.shape) for _, level in seen] == 4 * [(1, 8)]
    for step, (z, level) in enumerate(seen):
        clean = [0, 4, 5] if step < 2 else [0]
        assert (level.sigma[0] == 0).nonzero().flatten().tolist() == clean
        assert torch.equal(z[:, :, clean], video[:, :, clean])
    assert clip.recipe["stages"][0]["blocks"][0]["releases"] == [2]
    assert torch.equal(clip.video[:, :, 0], video[:, :, 0])
    assert not torch.allclose(clip.video[:, :, 4:6], video[:, :, 4:6], atol=0.1)
