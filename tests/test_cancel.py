"""Runs that are cancelled: how soon they end, what is kept of them, and that the model is as usable as before.

How soon is counted in calls of networks and codecs after the token was set, never in seconds. Moments are random:
``KINEMA_TRIES=30 pytest tests/test_cancel.py`` tries thirty in each phase.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kinema import registry
from kinema.api import Model, load
from kinema.cancel import Cancel, cancellable, checking, checkpoint
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.checkpoints.source import Source
from kinema.events import Event, Note, Phase, Step
from kinema.families.svd.config import TINY
from kinema.families.vdm.config import presets
from kinema.families.vdm.family import FAMILY as VDM
from kinema.memory.offload import WeightOffloader
from kinema.recipes import checked
from kinema.schema import BadRequest, Cancelled, Clip, Request
from kinema.system import MemoryOptions, System, Weights
from kinema.vae import tiling

TRIES = int(os.environ.get("KINEMA_TRIES", "8"))
SMALL = replace(TINY, frames=3, height=32, width=32)
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"


@dataclass
class Calls:
    """The calls of some modules, in order; ``act`` is called at the start of call number ``at``."""

    at: int = -1
    act: Callable[[], Any] = lambda: None
    made: list[str] = field(default_factory=list)

    def note(self, name: str) -> None:
        self.made.append(name)
        if len(self.made) - 1 == self.at:
            self.act()

    @property
    def after(self) -> int:
        """How many calls were begun after the one in which ``act`` was called."""
        return len(self.made) - 1 - self.at

    @contextmanager
    def of(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(lambda *_args, name=name: self.note(name))
            for name, module in modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def elsewhere(act: Callable[[], None]) -> Callable[[], None]:
    """Run ``act`` in another thread and wait for it."""

    def started() -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    return started


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SVD in a file, a LoRA for it, and a clip."""
    folder, family = tmp_path_factory.mktemp("model"), registry.family("svd")
    torch.manual_seed(0)
    model = family.build(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    note = json.dumps({"family": "svd", "config": family.to_json(SMALL)})
    files.write_tensors(folder / "svd.safetensors", model.state_dict(), {"kinema": note})
    draw = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=draw) for shape in ((4, 32), (32, 4)))
    write_lora(folder / "lora.safetensors", {LAYER: Adapter(down, up, 2.0)}, "kohya")
    Clip(torch.rand(1, 3, 4, 32, 32, generator=draw) * 2 - 1, 8.0).save(folder / "clip.png")
    return folder


def stirred(model: Model) -> Model:
    """Perturb all weights, so that none are zero."""
    with torch.no_grad():
        for p in model.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return model


def cascade() -> Model:
    tiny = replace(presets()["tiny"], frames=8, sampling_steps=2)
    large = replace(tiny, frames=9, side=32, attention_sides=(8, 16))
    model = Model(System("vdm/tiny", VDM, tiny, Weights(seed=0)))
    model.system.runtime.beside("large", lambda: System("vdm/tiny", VDM, large, Weights(seed=1)))
    return model


def parts(model: Model) -> dict[str, nn.Module]:
    """What is counted: the denoiser, and the halves of the codec."""
    network: Any = model.system.model
    if not hasattr(network, "vae"):
        return {"denoiser": network}
    modules = {"denoiser": network.unet, "encoder": network.vae.encoder, "decoder": network.vae.decoder}
    return modules | ({"text": network.text_encoder} if hasattr(network, "text_encoder") else {})


@dataclass
class Scene:
    """A run, and the kind of call in which it is cancelled."""

    model: Callable[[Path], Model]
    phase: str
    ask: dict[str, Any]
    images: bool = False
    """Whether codecs take images one by one."""

    def request(self, folder: Path) -> Request:
        options = {"prompt": "a ball", "seed": 5, "steps": 3} | self.ask
        return Request(**{name: str(folder / value) if name == "video" else value for name, value in options.items()})


def svd(folder: Path) -> Model:
    return load(folder / "svd.safetensors")


def preset(name: str) -> Callable[[Path], Model]:
    return lambda _folder: stirred(load(name, preset="tiny"))


SCENES = {
    "conditioning": Scene(preset("animatediff"), "text", {"prompt": "a", "negative_prompt": "b"}),
    "encoding": Scene(
        preset("animatediff"), "encoder", {"task": "edit", "video": "clip", "height": 16, "width": 16}, images=True
    ),
    "sampling": Scene(preset("vdm"), "denoiser", {"sampler": "heun"}),
    "windows": Scene(
        preset("zoetrope"), "denoiser", {"frames": 20, "window": 8, "window_places": "uniform", "guidance": 2.0}
    ),
    "blocks": Scene(preset("zoetrope"), "denoiser", {"frames": 20, "overlap": 4}),
    "free init": Scene(preset("animatediff"), "denoiser", {"free_init": 3, "steps": 1, "frames": 2}),
    "chunks": Scene(svd, "decoder", {"steps": 1, "extra": {"decode_chunk": 1}}),
    "images": Scene(preset("animatediff"), "decoder", {"steps": 1}, images=True),
}
PLAIN = Scene(svd, "denoiser", {"steps": 2, "guidance": 2.0})


@pytest.mark.parametrize("name", SCENES)
def test_a_run_ends_within_the_current_call(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, draw = SCENES[name], random.Random(name)
    if scene.images:
        monkeypatch.setattr(tiling, "MAX_ELEMENTS", 1)
    model, request, whole = scene.model(folder), scene.request(folder), Calls()
    fresh = model.run(request).video
    with whole.of(parts(model)):
        model.run(request)
    moments = [at for at, call in enumerate(whole.made[:-1]) if call == scene.phase]
    assert moments, whole.made
    for _ in range(TRIES):
        token = Cancel()
        calls = Calls(draw.choice(moments), elsewhere(token.cancel))
        with calls.of(parts(model)), pytest.raises(Cancelled) as ended:
            model.run(request, cancel=token)
        assert calls.after <= 1
        assert ended.value.clip is None
    assert torch.equal(model.run(request).video, fresh)


def decoded_in(way: str, calls: Calls) -> None:
    def decode(z: torch.Tensor) -> torch.Tensor:
        calls.note(way)
        return z

    if way == "images":
        tiling.by_images(decode, torch.zeros(12, 1, 1, 1))
    elif way == "tiles":
        tiling.decode_tiled(decode, torch.zeros(1, 3, 1, 30, 20), 8, 1)
    else:
        tiling.decode_blended(decode, torch.zeros(1, 3, 12, 1, 1), tiling.FRAMES, 4, 2)


@pytest.mark.parametrize("way", ["images", "tiles", "chunks"])
def test_no_part_is_decoded_after_the_current_one(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "MAX_ELEMENTS", 1)
    draw, whole = random.Random(way), Calls()
    with torch.no_grad():
        decoded_in(way, whole)
        for _ in range(TRIES):
            token = Cancel()
            calls = Calls(draw.randrange(len(whole.made) - 1), elsewhere(token.cancel))
            with cancellable(token), pytest.raises(Cancelled):
                decoded_in(way, calls)
            assert calls.after == 0


def test_super_resolution_ends_within_the_current_call() -> None:
    model, draw = cascade(), random.Random(0)
    request = Request(prompt="a red ball", seed=7, super_resolution="large", frames=8)
    fresh = model.run(request).video
    modules = {"base": model.system.model, "large": model.system.runtime.beside("large", cascade).model}
    whole = Calls()
    with whole.of(modules):
        model.run(request)
    for _ in range(TRIES):
        token = Cancel()
        calls = Calls(draw.choice([at for at, call in enumerate(whole.made[:-1]) if call == "large"]), token.cancel)
        with calls.of(modules), pytest.raises(Cancelled):
            model.run(request, cancel=token)
        assert calls.after <= 1
    assert torch.equal(model.run(request).video, fresh)


def test_the_partial_clip_is_that_of_the_current_stage() -> None:
    model = cascade()
    request = Request(prompt="a red ball", seed=7, super_resolution="large", frames=8)
    for stage, side, step in (("base", 16, 2), ("super-resolution", 32, 1)):
        clip = at_step(model, request, step, stage == "super-resolution")
        assert clip.shape.bcthw == (1, 3, 8, side, side)
        assert clip.recipe["partial"] == {"stage": stage, "step": step, "steps": 2, "start": 0}


def test_a_run_cancelled_during_super_resolution_keeps_the_finished_small_clip() -> None:
    """Also before its first step; its recipe generates it alone."""
    model = cascade()
    request = Request(prompt="a red ball", seed=7, super_resolution="large", frames=8)
    small = model.run(request, output="clip").recipe["stages"][0]
    for at in (0, 1):
        token, stages = Cancel(keep_partial=True), []

        def hear(event: Event, token: Cancel = token, stages: list[Event] = stages, at: int = at) -> None:
            if isinstance(event, Phase) and event.name == "load":
                stages.append(event)
            if len(stages) == 2 and (isinstance(event, Step) or at == 0):
                token.cancel()

        with pytest.raises(Cancelled) as ended:
            model.run(request, on_event=hear, cancel=token)
        kept = ended.value.small
        assert kept is not None
        assert (ended.value.clip is None) == (at == 0)
        assert kept.shape.bcthw == (1, 3, 8, 16, 16)
        assert [stage["stage"] for stage in kept.recipe["stages"]] == ["base"]
        assert kept.recipe["stages"][0] == small
        assert "partial" not in kept.recipe
        again = model.run(Request.from_json(json.dumps(small["request"])))
        assert again.recipe["frames_hash"] == kept.recipe["frames_hash"]
    assert model.run(request).shape.height == 32


def at_step(model: Model, request: Request, step: int, second: bool = False) -> Clip:
    """The partial clip of a run that a listener cancels at a step, in the base stage or super-resolution."""
    token, begun = Cancel(keep_partial=True), []

    def hear(event: Event) -> None:
        begun.append(event) if isinstance(event, Phase) and event.name == "load" else None
        if isinstance(event, Step) and event.index == step and len(begun) == 1 + second:
            token.cancel()

    with pytest.raises(Cancelled) as ended:
        model.run(request, on_event=hear, cancel=token)
    assert f"cancelled at step {step} of " in str(ended.value)
    clip = ended.value.clip
    assert clip is not None
    return clip


LOADING = ("tensors", "fill", "phase")


def test_loading_ends_before_its_next_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, now = random.Random(1), Calls()
    tensors, fill = Source.tensors, files.fill

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            now.note(name)
            return call(*args, **options)

        return noted

    monkeypatch.setattr(Source, "tensors", counted("tensors", tensors))
    monkeypatch.setattr(files, "fill", counted("fill", fill))
    request = PLAIN.request(folder)
    for _ in range(TRIES):
        model, token = load(folder / "svd.safetensors"), Cancel()
        now = Calls(draw.randrange(len(LOADING)), elsewhere(token.cancel))
        with pytest.raises(Cancelled):
            model.run(
                request,
                on_event=lambda event, now=now: now.note("phase") if isinstance(event, Phase) else None,
                cancel=token,
            )
        assert now.after == 0
    now = Calls()
    assert torch.equal(model.run(request).video, load(folder / "svd.safetensors").run(request).video)


def placed_as(model: Model, offload: Any) -> Model:
    """The same network, its weights where another plan has them."""
    system = replace(model.system, memory=MemoryOptions(offload=offload))
    object.__setattr__(system, "runtime", model.system.runtime)
    return Model(system)


class Stop(BaseException):
    """What Ctrl-C raises in a test: not the real one, which would end the tests where it gets out."""


def stop() -> None:
    raise Stop


@pytest.fixture(params=["cancel", "interrupt"])
def breaking(request: pytest.FixtureRequest) -> Callable[[], tuple[Callable[[], None], Cancel, type[BaseException]]]:
    """A way to break a run off: what does it, the token of the run, and what comes out of the run."""

    def way() -> tuple[Callable[[], None], Cancel, type[BaseException]]:
        token = Cancel()
        return (elsewhere(token.cancel), token, Cancelled) if request.param == "cancel" else (stop, token, Stop)

    return way


@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_a_run_after_an_interrupted_one_equals_that_of_a_fresh_model(offload: Any, folder: Path, breaking: Any) -> None:
    """Whatever it is, and with other LoRAs, wherever the weights are."""
    draw = random.Random(offload)
    loras = [{}, {str(folder / "lora.safetensors"): 1.5}]
    asked = [PLAIN.request(folder).with_(loras=own, steps=1) for own in loras]
    fresh = [load(folder / "svd.safetensors").run(request).video for request in asked]
    assert not torch.equal(*fresh)
    model, whole = load(folder / "svd.safetensors", offload=offload), Calls()
    model.run(asked[0])
    network: Any = model.system.model
    blocks = {"block": network.unet.down_blocks[0], "up": network.unet.up_blocks[0], **parts(model)}
    with whole.of(blocks):
        model.run(asked[1])
    for _ in range(2):
        act, token, error = breaking()
        with Calls(draw.randrange(len(whole.made) - 1), act).of(blocks), pytest.raises(error):
            model.run(asked[draw.randrange(2)], cancel=token)
        which = draw.randrange(2)
        assert torch.equal(model.run(asked[which]).video, fresh[which])


def test_an_interrupted_change_of_loras_is_repaired(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both where they come in and where they go, before the first weight was changed and after it."""
    own, plain = {str(folder / "lora.safetensors"): 1.5}, PLAIN.request(folder).with_(steps=1)
    with_it = plain.with_(loras=own)
    model = load(folder / "svd.safetensors")
    bare, merged = model.run(plain).video, model.run(with_it).video
    copy = torch.Tensor.copy_

    def broken(kept: torch.Tensor, *args: Any) -> Any:
        copy(kept, *args)
        raise Stop

    for asked, then, expected in ((plain, plain, bare), (with_it, plain, bare), (plain, with_it, merged)):
        model.run(with_it if asked is plain else plain)
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "copy_", broken)
            with pytest.raises(Stop):
                model.system.runtime.use_loras(model.system.read_loras({**(asked.loras or {})}))
        assert torch.equal(model.run(then).video, expected)


@pytest.mark.parametrize("before", ["none", "block"])
def test_interrupted_weight_moves_are_completed_in_the_next_run(
    before: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory plan interrupted between any two weights, in either direction."""
    asked, own = PLAIN.request(folder).with_(steps=1), {folder / "lora.safetensors": 1.5}
    fresh = load(folder / "svd.safetensors", loras=own).run(asked).video
    after, draw = "block" if before == "none" else "none", random.Random(before)
    for name in ("_load", "_offload", "begin", "__init__"):
        model = placed_as(load(folder / "svd.safetensors", loras=own), before)
        model.run(asked)
        calls, method = (
            Calls(0 if name in ("begin", "__init__") else draw.randrange(10), stop),
            getattr(WeightOffloader, name),
        )

        def noted(*args: Any, method: Any = method, calls: Calls = calls) -> Any:
            calls.note("")
            return method(*args)

        with monkeypatch.context() as patched:
            patched.setattr(WeightOffloader, name, noted)
            if before == "none" or name != "__init__":
                with pytest.raises(Stop):
                    placed_as(model, after).run(asked)
        for offload in (before, after):
            assert torch.equal(placed_as(model, offload).run(asked).video, fresh), (name, offload)


# ---------------------------------------------------------------------------------- what is kept


def test_a_partial_clip_is_the_last_estimate_decoded(folder: Path) -> None:
    model, seen = svd(folder), []
    request = PLAIN.request(folder)
    clip = at_step(model, request, 1)
    model.run(request, on_event=lambda event: seen.append(event.x0) if isinstance(event, Step) else None)
    assert torch.equal(clip.video, model.system.decode(seen[0]))
    assert not torch.equal(clip.video, model.system.decode(seen[1]))


def test_finished_blocks_and_the_current_one_are_kept() -> None:
    """8 frames a block, 4 of them new: 20 frames in four blocks of three steps."""
    model = stirred(load("zoetrope", preset="tiny"))
    request = SCENES["blocks"].request(Path())
    whole = model.run(request).video
    for step, frames in ((2, 8), (3, 8), (4, 12), (9, 16), (11, 20)):
        clip = at_step(model, request, step)
        assert clip.shape.frames == frames, step
        done = 4 * ((step - 1) // 3) + 4 if step > 3 else 0
        assert torch.equal(clip.video[:, :, :done], whole[:, :, :done])
        assert torch.equal(clip.video[:, :, done:], whole[:, :, done:frames]) == (step % 3 == 0)  # all its steps
        assert clip.recipe["partial"] == {"stage": "base", "step": step, "steps": 12, "start": 0}


def test_a_backward_clip_is_cut_at_its_start(folder: Path) -> None:
    model = stirred(load("zoetrope", preset="tiny"))
    request = Request(task="extend", video=str(folder / "clip"), frames=18, backward=True, seed=1, steps=2)
    whole, clip = model.run(request).video, at_step(model, request, 1)
    start = clip.recipe["partial"]["start"]
    assert start == 18 - clip.shape.frames > 0
    assert torch.equal(clip.video[:, :, -4:], whole[:, :, -4:])


def test_a_partial_recipe_names_the_step_and_has_no_hash_of_frames(folder: Path) -> None:
    model = svd(folder)
    request = PLAIN.request(folder)
    clip = at_step(model, request, 2)
    recipe = model.run(request).recipe
    assert {**clip.recipe, "frames_hash": recipe["frames_hash"]} == {**recipe, "partial": clip.recipe["partial"]}
    assert "frames_hash" not in clip.recipe
    checked(json.loads(json.dumps(clip.recipe)), Path("a.mp4"))
    with pytest.raises(BadRequest, match="partial"):
        checked({**clip.recipe, "partial": {**clip.recipe["partial"], "step": "two"}}, Path("a.mp4"))


def test_nothing_is_kept_before_the_first_step(folder: Path) -> None:
    token = Cancel(keep_partial=True)
    token.cancel()
    with pytest.raises(Cancelled) as ended:
        svd(folder).run(PLAIN.request(folder), cancel=token)
    assert ended.value.clip is None


def test_a_clip_that_is_finished_when_the_token_is_set_is_returned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, model = Cancel(), svd(folder)
    decode = System.decode

    def last(*args: Any) -> torch.Tensor:
        made = decode(*args)
        token.cancel()
        return made

    monkeypatch.setattr(System, "decode", last)
    clip = model.run(PLAIN.request(folder), cancel=token)
    assert clip.shape.frames == 3
    assert token.cancelled


# ------------------------------------------------------------------------------------ the token


def test_a_waiting_job_can_be_cancelled_and_others_continue(folder: Path) -> None:
    model, token, ended = svd(folder), Cancel(), []

    def waiting() -> None:
        with pytest.raises(Cancelled):
            model.run(PLAIN.request(folder), cancel=token)
        ended.append(True)

    thread = threading.Thread(target=waiting)
    with model.system.runtime.running():
        thread.start()
        token.cancel()
        thread.join(timeout=60)
        assert ended
    assert model.run(PLAIN.request(folder)).shape.frames == 3


def test_a_cancelled_run_releases_the_model_to_other_threads(folder: Path) -> None:
    model, made = svd(folder), []
    at_step(model, PLAIN.request(folder), 1)
    thread = threading.Thread(target=lambda: made.append(model.run(PLAIN.request(folder))))
    thread.start()
    thread.join(timeout=100)
    assert made


def test_a_token_belongs_to_its_thread_and_the_innermost_job() -> None:
    token, seen = Cancel(), []
    token.cancel()
    with cancellable(token):
        with cancellable(None):
            checkpoint()
        elsewhere(lambda: seen.append(checkpoint()))()
        with pytest.raises(Cancelled):
            checkpoint()
    checkpoint()
    assert seen == [None]


def test_a_listener_hears_the_event_at_which_the_run_ends() -> None:
    token, seen = Cancel(), []
    token.cancel()
    with cancellable(token), pytest.raises(Cancelled):
        checking(seen.append)(Note("a"))
    assert seen == [Note("a")]


@pytest.mark.parametrize("verb", ["generate", "animate", "interpolate", "extend", "inpaint", "edit"])
def test_every_task_accepts_a_token(verb: str, folder: Path) -> None:
    model, token = load("zoetrope", preset="tiny"), Cancel()
    token.cancel()
    inputs: dict[str, Any] = {} if verb in ("generate", "animate") else {"video": folder / "clip"}
    with pytest.raises(Cancelled):
        getattr(model, verb)(prompt="a ball", seed=0, cancel=token, **inputs)
