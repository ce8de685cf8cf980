"""From a request to a clip: long clips, edits, guidance, noise and recipes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import registry, tasks
from kinema.api import Model, load
from kinema.canvas import Block, Canvas, Piece, Release
from kinema.diffusion.parameterise import Denoiser
from kinema.events import Event, Memory, Note, Phase, Step
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.guide import sample
from kinema.provenance import frames_hash
from kinema.schema import BadRequest, Clip, Request, Shape
from kinema.settle import with_defaults
from kinema.system import System


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    result = load("zoetrope", preset="tiny")
    with torch.no_grad():
        for p in result.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return result


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    t = torch.linspace(-1, 1, 8)[None, None, :, None, None]
    video = (t * torch.linspace(-1, 1, 16)).expand(1, 3, 8, 16, 16).contiguous()
    return Clip(video, 8.0).save(tmp_path / "known.gif")[0]


def test_events_report_phases_and_every_step_with_its_estimate(model: Model) -> None:
    events: list[Event] = []
    model.generate("a red ball", seed=0, steps=3, on_event=events.append)
    steps = [e for e in events if isinstance(e, Step)]
    assert [(s.index, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(s.x0 is not None and s.x0.shape == (1, 3, 8, 16, 16) for s in steps)
    assert [e.name for e in events if isinstance(e, Phase)] == ["load", "condition", "sample", "decode"]
    assert [e.peak_bytes > 0 for e in events if isinstance(e, Memory)] == [True]


@pytest.mark.parametrize("window", [None, 8])
def test_a_clip_longer_than_the_model_has_all_its_frames_and_is_seeded(model: Model, window: int | None) -> None:
    ask = {"seed": 3, "steps": 2, "frames": 20, "window": window}
    one, two = (model.generate("a red ball", **ask).video for _ in range(2))
    assert one.shape[2] == 20
    assert torch.equal(one, two)


def test_rolled_out_blocks_hold_the_frames_of_the_block_before(model: Model) -> None:
    """The first block of a long clip equals the short clip; the next block must not change its frames."""
    noise = torch.randn(1, 3, 20, 16, 16)
    long = model.run(Request(prompt="a red ball", seed=3, steps=2, frames=20, overlap=4), noise=noise)
    short = model.run(Request(prompt="a red ball", seed=3, steps=2, frames=8), noise=noise[:, :, :8])
    assert torch.equal(long.video[:, :, :8], short.video)


def test_the_steps_of_all_blocks_are_counted_together(model: Model) -> None:
    events: list[Event] = []
    model.generate("a red ball", seed=3, steps=2, frames=20, overlap=4, on_event=events.append)
    assert [(e.index, e.total) for e in events if isinstance(e, Step)] == [(n, 8) for n in range(1, 9)]


def test_an_overlap_of_the_whole_model_is_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="overlap"):
        model.generate("a red ball", frames=20, overlap=8)


def test_a_window_longer_than_the_model_is_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="window is 12"):
        model.generate("a red ball", frames=20, window=12)


def test_a_window_off_the_lattice_is_snapped_with_a_note(model: Model) -> None:
    events_seen: list[Event] = []
    clip = model.generate("a red ball", seed=0, steps=1, frames=20, window=6, on_event=events_seen.append)
    assert clip.shape.frames == 20
    assert any(isinstance(e, Note) and "window 6 snapped to 8" in e.message for e in events_seen)


def test_clips_are_generated_at_the_next_supported_length_and_cut(model: Model) -> None:
    noise = torch.randn(1, 3, 8, 16, 16)
    ask = Request(prompt="a red ball", seed=0, steps=2)
    full = model.run(replace(ask, frames=8), noise=noise).video
    assert torch.equal(model.run(replace(ask, frames=6), noise=noise).video, full[:, :, :6])


def test_interpolation_keeps_every_given_frame(model: Model, clip_file: Path) -> None:
    from kinema.media.read import read_video

    known = read_video(clip_file).video
    result = model.interpolate(clip_file, seed=0, steps=1, every=3).video
    assert result.shape[2] == 22
    assert torch.allclose(result[:, :, ::3], known, atol=1e-6)


def test_a_backward_extension_keeps_the_clip_at_its_end(model: Model, clip_file: Path) -> None:
    from kinema.media.read import read_video

    known = read_video(clip_file).video
    result = model.extend(clip_file, seed=0, steps=1, frames=13, backward=True).video
    assert result.shape[2] == 13
    assert torch.allclose(result[:, :, -8:], known, atol=1e-6)


def test_a_single_block_beyond_the_clip_has_no_latents_and_samples_the_missing_noise(clip_file: Path) -> None:
    """SVD continues from the last of 3 frames with a block of 8, of which the clip of 5 uses the first 3."""
    svd = load("svd", preset="tiny")
    request = Request(task="extend", video=str(clip_file), keep=3, frames=5, steps=1, seed=1, honour="continuation")
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = svd.run(request, noise=noise)
    (block,) = clip.recipe["stages"][0]["blocks"]
    assert (block["start"], block["frames"]) == (2, 8)
    assert clip.shape.frames == 5
    noise[:, :, :2] = 0
    assert torch.equal(svd.run(request, noise=noise).video, clip.video)
    noise[:, :, 4] = 0
    assert not torch.equal(svd.run(request, noise=noise).video, clip.video)
    with pytest.raises(BadRequest, match="block-wise clips cannot return latents"):
        svd.run(request, output="latents")


def test_inpaint_and_edit_keep_the_length_and_rate_of_the_clip(model: Model, tmp_path: Path) -> None:
    path = Clip(torch.rand(1, 3, 30, 16, 16) * 2 - 1, 30.0).save(tmp_path / "fast.mp4")[0]
    for result in (
        model.inpaint(path, "a ball", region=(0, 0, 0.5, 0.5), seed=0, steps=1),
        model.edit(path, "a ball", seed=0, steps=1),
    ):
        assert (result.shape.frames, result.fps) == (30, 30.0)


def test_with_guidance_or_replacement_the_network_gets_no_canvas(model: Model, clip_file: Path) -> None:
    """Otherwise comparisons of the ways would compare native with itself."""
    seen: list[float] = []
    hook = model.system.model.register_forward_pre_hook(lambda _m, args: seen.append(float(args[4].sum())))
    try:
        for way in ("native", "replacement", "reconstruction"):
            seen.clear()
            model.animate(clip_file, "a ball", seed=0, steps=1, honour=way)
            assert all((total > 0) == (way == "native") for total in seen), way
    finally:
        hook.remove()


def test_reconstruction_guidance_moves_the_unknown_frames(model: Model, clip_file: Path) -> None:
    """Tested on the sampler's output, before given pixels are restored."""
    system = model.system
    request = with_defaults(system, Request(task="animate", image=str(clip_file), prompt="a ball", seed=0, steps=2))
    canvas = tasks.TASKS["animate"].canvas(request, lambda _e: None)
    noise = torch.randn(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    result = {
        (way, weight): sample(
            system,
            replace(request, reconstruction_weight=weight),
            {None: system.encode_prompt(request)},
            replace(canvas, block=Block(way=way)),
            noise,
            system.noise(request),
        )
        for way, weight in (("replacement", 0.0), ("reconstruction", 0.0), ("reconstruction", 20.0))
    }
    held = canvas.mask.expand_as(canvas.video) > 0
    assert torch.allclose(result["replacement", 0.0][held], canvas.video[held], atol=1e-5)
    assert torch.equal(result["reconstruction", 0.0], result["replacement", 0.0])
    assert not torch.allclose(result["reconstruction", 20.0], result["replacement", 0.0], atol=1e-4)


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("generate", {"image": "x.png"}),
        ("generate", {"keep": 3}),
        ("edit", {"every": 2}),
        ("animate", {"strength": 0.3}),
    ],  # noqa: E501
)
def test_unsupported_options_of_a_task_are_refused(model: Model, task: str, option: dict, clip_file: Path) -> None:
    own = {"edit": {"video": str(clip_file)}, "animate": {"image": str(clip_file)}}.get(task, {})
    with pytest.raises(BadRequest, match=f"does not support --{next(iter(option))}"):
        model.run(Request(task=task, prompt="a ball", **own, **option))


def test_the_sampler_keeps_float32_when_the_network_runs_in_half(
    clip_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    half = load("zoetrope", preset="tiny", dtype=torch.bfloat16)
    kinds: set[torch.dtype] = set()
    clip = half.animate(
        clip_file, "a ball", seed=0, steps=2, on_event=lambda e: kinds.add(e.x0.dtype) if isinstance(e, Step) else None
    )
    assert kinds == {torch.float32}
    assert clip.video.isfinite().all()


def test_an_unknown_sampler_is_refused_with_the_nearest(model: Model) -> None:
    with pytest.raises(BadRequest, match="euler"):
        model.generate("a red ball", sampler="eular")


def test_eta_with_a_sampler_that_has_none_is_refused_not_ignored(model: Model) -> None:
    with pytest.raises(BadRequest, match="has no option eta"):
        model.generate("a red ball", sampler="euler", eta=0.5, steps=2)


def test_sampler_options_reach_the_sampler_and_unknown_ones_are_refused(model: Model) -> None:
    ask = {"sampler": "vdm-ancestral", "seed": 1, "steps": 3}
    low, high = (model.generate("a red ball", sampler_options={"gamma": g}, **ask).video for g in (0.0, 1.0))
    assert not torch.equal(low, high)
    with pytest.raises(BadRequest, match="it has gamma"):
        model.generate("a red ball", sampler_options={"churn": 1.0}, **ask)


def test_a_loop_without_windows_is_refused_not_ignored(model: Model) -> None:
    with pytest.raises(BadRequest, match="window"):
        model.generate("a red ball", loop=True)


def test_an_option_the_verb_does_not_know_is_one_sentence(model: Model) -> None:
    with pytest.raises(BadRequest, match="telepathy"):
        model.generate("a red ball", telepathy=True)


def test_words_the_model_never_saw_are_said(model: Model) -> None:
    events: list[Event] = []
    model.generate("a red zeppelin", seed=0, steps=1, on_event=events.append)
    assert any(isinstance(e, Note) and "zeppelin" in e.message for e in events)


def test_a_prompt_of_emoji_or_signs_is_said_to_hold_no_known_word(model: Model) -> None:
    for prompt in ("\U0001f600\U0001f600", "?!"):
        events: list[Event] = []
        model.generate(prompt, seed=0, steps=1, on_event=events.append)
        notes = [e.message for e in events if isinstance(e, Note)]
        assert notes == [f'{model.system.name} knows no word of the prompt "{prompt}"']


def test_guidance_one_is_the_conditional_model_and_per_frame_ends_agree(model: Model) -> None:
    plain = model.generate("a red ball", seed=1, steps=2, guidance=1.0).video
    strong = model.generate("a red ball", seed=1, steps=2, guidance=4.0).video
    ramp = model.generate("a red ball", seed=1, steps=2, guidance=4.0, guidance_end=4.0).video
    assert not torch.equal(plain, strong)
    assert torch.equal(strong, ramp)
    request = with_defaults(model.system, Request(prompt="x", frames=5, guidance=1.0, guidance_end=3.0))
    scale = model.system.guidance(request).differences[0].scale
    assert isinstance(scale, torch.Tensor)
    assert scale.tolist() == [1, 1.5, 2, 2.5, 3]


def test_edit_strength_zero_returns_the_source_and_one_forgets_it(model: Model, clip_file: Path) -> None:
    kept = model.edit(clip_file, "a red ball", seed=0, steps=4, strength=0.0).video
    from kinema.media.read import read_video

    assert torch.allclose(kept, read_video(clip_file).video, atol=1e-6)
    gone = model.edit(clip_file, "a red ball", seed=0, steps=4, strength=1.0)
    fresh = model.generate("a red ball", seed=0, steps=4)
    assert torch.allclose(gone.video, fresh.video, atol=1e-5)


def test_the_recipe_makes_the_clip_again_to_the_bit(model: Model) -> None:
    clip = model.generate("a red ball", steps=2)  # the seed is drawn, and recorded
    request = Request(**clip.recipe["stages"][0]["request"])
    again = model.run(request)
    assert clip.recipe["stages"][0]["request"]["seed"] >= 0
    assert frames_hash(again.video) == clip.recipe["frames_hash"]
    assert torch.equal(again.video, clip.video)


def test_latents_come_out_on_request(model: Model) -> None:
    clip = model.run(Request(prompt="a red ball", seed=0, steps=2), output="latents")
    assert clip.shape.bcthw == (1, 3, 8, 16, 16)


def test_an_untrained_model_is_seeded_by_its_weights_seed() -> None:
    a, b = (load("zoetrope", preset="tiny").system for _ in range(2))
    c = replace(a, weights=replace(a.weights, seed=1))
    name = "stem.weight"
    assert torch.equal(a.model.state_dict()[name], b.model.state_dict()[name])
    assert not torch.equal(a.model.state_dict()[name], c.model.state_dict()[name])


# ------------------------------------------------------------------- what belongs to single frames


LONG = 20
"""Frames of the clips below; the model that makes them in parts sees 8."""


@pytest.fixture
def frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the network see each frame by itself, so that a clip made in parts must be the clip made at once."""
    family = registry.family("zoetrope")

    def denoiser(_self: object, _system: System, condition: Any, _frames: object) -> Denoiser:
        wanted = 1 if condition.ids_BL.any() else -1
        return lambda z, _level: 0.5 * z + 0.2 * z.roll(wanted, dims=-2) + 0.1 * wanted

    monkeypatch.setattr(type(family.sampling), "denoiser", denoiser)


def over_frames(kind: str) -> tuple[Canvas, dict[str, Any]]:
    """A canvas in which every frame is another, and the request that takes it."""
    generator = torch.Generator().manual_seed(7)
    video = torch.rand(1, 3, LONG, 16, 16, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, LONG, 16, 16)
    options: dict[str, Any] = {"task": "inpaint", "honour": "native"}
    match kind:
        case "nothing":
            options = {"task": "generate"}
        case "source":
            edited = Piece(video, torch.ones_like(mask), Release("strength", 0.6))
            return Canvas(Shape.of(video), (edited,)), {"task": "edit", "strength": 0.6}
        case "end":
            mask[:, :, -3:] = 1
        case "region":
            for frame in range(LONG):
                mask[:, :, frame, frame % 16] = 1
            options |= {"honour": "reconstruction", "reconstruction_weight": 8.0}
    return Canvas.of(video * mask, mask), options


PARTS = {
    "blocks": {"overlap": 3},
    "windows": {"window": 8, "overlap": 3},
    "windows that move": {"window": 8, "overlap": 3, "window_places": "uniform"},
}


@pytest.mark.parametrize(
    ("kind", "parts"),
    # Not a region in blocks: what holds it draws noise anew for every block.
    [*product(["nothing", "source", "end"], PARTS), *product(["region"], ["windows", "windows that move"])],
)
@pytest.mark.usefixtures("frame_by_frame")
def test_each_frame_of_a_clip_in_parts_has_its_own_noise_guidance_source_and_canvas(
    kind: str, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance changes over the clip; blocks lie at 0, 5, 10 and 12, or the other way round before a given end."""
    canvas, options = over_frames(kind)
    monkeypatch.setitem(tasks.TASKS, options["task"], tasks.Task(lambda r: r, lambda _r, _e: canvas))
    noise = torch.randn(1, 3, LONG, 16, 16, generator=torch.Generator().manual_seed(3))
    how = {"prompt": "a red ball", "seed": 3, "steps": 5, "sampler": "euler", "frames": LONG, "guidance": 1.5}
    request = Request(**how, guidance_end=6.0, **options)
    at_once, in_parts = (load("zoetrope", preset="tiny", overrides={"frames": frames}) for frames in (LONG, 8))
    whole = at_once.run(request, noise=noise).video
    result = in_parts.run(request.with_(**PARTS[parts]), noise=noise).video
    assert torch.allclose(result, whole, atol=1e-5)
    assert not torch.allclose(whole[:, :, 0], whole[:, :, -1], atol=0.1)


@pytest.mark.usefixtures("frame_by_frame")
def test_guidance_over_the_frames_of_a_loop_goes_round_its_end_with_the_windows() -> None:
    noise = torch.randn(1, 3, LONG, 16, 16, generator=torch.Generator().manual_seed(3))
    how = {"prompt": "a red ball", "seed": 3, "steps": 2, "sampler": "euler", "frames": LONG, "guidance": 1.5}
    request = Request(**how, guidance_end=6.0)
    at_once, in_parts = (load("zoetrope", preset="tiny", overrides={"frames": frames}) for frames in (LONG, 8))
    result = in_parts.run(request.with_(window=8, overlap=4, loop=True), noise=noise).video
    assert torch.allclose(result, at_once.run(request, noise=noise).video, atol=1e-5)


# ---------------------------------------------------------------------------------- temporal codecs


class Pairs:
    """A codec over time: a latent frame is the mean of its pixel frames, which are all the same again when decoded."""

    def __init__(self, time: FrameGrid) -> None:
        self.time = time

    def encode(self, video: Tensor) -> Tensor:
        spans = self.time.spans(video.shape[2])
        return torch.stack([video[:, :, span.start : span.stop].mean(2) for span in spans], dim=2)

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:  # noqa: ARG002
        spans = self.time.spans(self.time.frames(z.shape[2]))
        return torch.cat([z[:, :, i : i + 1].expand(-1, -1, len(span), -1, -1) for i, span in enumerate(spans)], dim=2)

    def leaner(self, *_sides: int) -> list[dict[str, int]]:
        return []


@pytest.mark.parametrize(
    ("time", "total", "seen", "overlap"),
    [(FrameGrid(2), 20, 8, 4), (FrameGrid(4, causal=True), 17, 9, 5), (FrameGrid(4, causal=True), 25, 9, 1)],
)
@pytest.mark.usefixtures("frame_by_frame")
def test_a_callers_noise_is_that_of_the_latent_frames_a_block_stands_for(
    time: FrameGrid, total: int, seen: int, overlap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each latent frame is made by itself here: in blocks as at once, but for frames that two cells share."""
    sampling = type(registry.family("zoetrope").sampling)
    grid = LatentGrid(time)
    monkeypatch.setattr(sampling, "codec", lambda *_: Pairs(time))
    monkeypatch.setattr(
        sampling,
        "lattice",
        lambda _self, config: Lattice(grid, side_multiple=16, max_side=16, max_frames=config.frames),
    )
    noise = torch.randn(1, 3, time.latent(total), 16, 16, generator=torch.Generator().manual_seed(3))
    how = {"prompt": "a red ball", "seed": 3, "steps": 3, "sampler": "euler", "frames": total}
    request = Request(**how, guidance=1.5, guidance_end=6.0)
    at_once, in_parts = (load("zoetrope", preset="tiny", overrides={"frames": frames}) for frames in (total, seen))
    whole = at_once.run(request, noise=noise).video
    clip = in_parts.run(request.with_(overlap=overlap), noise=noise)
    assert len(clip.recipe["stages"][0]["blocks"]) > 2
    assert torch.allclose(clip.video, whole, atol=1e-5)
    with pytest.raises(BadRequest, match="noise has shape"):
        in_parts.run(request.with_(overlap=overlap), noise=noise[:, :, 1:])


def test_a_lone_last_frame_is_encoded_alone_and_stands_for_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a causal codec: the last of 9 frames is that of the cell of frames 5 to 8, which is held by it."""
    time = FrameGrid(4, causal=True)
    sampling = type(registry.family("zoetrope").sampling)
    monkeypatch.setattr(sampling, "codec", lambda *_: Pairs(time))
    monkeypatch.setattr(
        sampling, "lattice", lambda *_: Lattice(LatentGrid(time), side_multiple=16, max_side=16, max_frames=9)
    )
    monkeypatch.setattr(sampling, "denoiser", lambda *_: lambda z, _level: 0.5 * z)
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    mask = torch.zeros(1, 1, 9, 16, 16)
    mask[:, :, [0, 8]] = 1
    monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: Canvas.of(video * mask, mask)))
    ask = Request(task="animate", prompt="a ball", seed=1, steps=3, frames=9, honour="replacement")
    z = load("zoetrope", preset="tiny").run(ask, output="latents").video
    assert torch.allclose(z[:, :, 0], video[:, :, 0], atol=1e-6)
    assert torch.allclose(z[:, :, 2], video[:, :, 8], atol=1e-6)
    assert not torch.allclose(z[:, :, 1], torch.zeros(1), atol=0.01)
