"""SVD requests: guidance over frames, sizes, images, batches, given frames, long clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinema.api import Model, load
from kinema.canvas import Canvas
from kinema.cli.main import main
from kinema.events import Event, Note, Step
from kinema.families.svd import conditioning
from kinema.media.metadata import read_recipe
from kinema.media.read import read_image, read_video
from kinema.schema import BadRequest, Clip, Request
from kinema.settle import with_defaults

QUICK = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    model = load("svd", preset="tiny")
    with torch.no_grad():  # an untrained network's blends and last layers hide the effect of options
        for p in model.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return model


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Files: two images, a wide one, and a clip of six frames."""
    folder = tmp_path_factory.mktemp("media")
    random = torch.Generator().manual_seed(0)
    video = (torch.rand(2, 3, 6, 16, 16, generator=random) * 2 - 1).cumsum(2).div(3).clamp(-1, 1)
    for i, name in enumerate(("one", "two")):
        Clip(video[i : i + 1, :, :1]).save(folder / f"{name}.png")
    Clip(video[:1], 7.0).save(folder / "clip.gif")
    Image.new("RGB", (64, 16), (200, 30, 30)).save(folder / "wide.png")
    return folder


@pytest.fixture
def scales(monkeypatch) -> list[torch.Tensor]:
    """Records the per-frame guidance scales that the sampler gets."""
    recorded: list[torch.Tensor] = []
    plain = conditioning.guidance

    def listen(config, request):
        recorded.append(plain(config, request))
        return recorded[-1]

    monkeypatch.setattr(conditioning, "guidance", listen)
    return recorded


# ------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--guidance", "1", "--guidance-end", "3"], torch.linspace(1, 3, 8)),
        (["--guidance", "3", "--guidance-end", "1.5"], torch.linspace(3, 1.5, 8)),
        (["--guidance", "2"], torch.full((8,), 2.0)),
        ([], torch.linspace(1, 2.5, 8)),
        (
            ["--guidance", "1", "--guidance-end", "3", "--extra", "guidance-shape=triangle"],
            3 - 2 * (2 * torch.linspace(0, 1, 8) - 1).abs(),
        ),
        (
            ["--guidance", "3", "--guidance-end", "1", "--extra", "guidance-shape=triangle"],
            1 + 2 * (2 * torch.linspace(0, 1, 8) - 1).abs(),
        ),
    ],
)
def test_guidance_scales_follow_the_command_line(media, scales, tmp_path, words, expected):
    arguments = ["animate", str(media / "one.png"), "--model", "svd/tiny", "--steps", "1", "--quiet", *words]
    assert main([*arguments, "-o", str(tmp_path / "clip.mp4")]) == 0
    assert torch.allclose(scales[0], expected, atol=1e-6)


@pytest.mark.parametrize(("start", "peak"), [(1.0, 3.0), (3.0, 1.0)])
def test_a_trapezoid_works_in_both_directions(model, media, scales, start, peak):
    extra = {"guidance_shape": "trapezoid"}
    ask = {"guidance": start, "guidance_end": peak, "frames": 8, "extra": extra, **QUICK}
    long = replace(model.system.config, frames=20)
    assert conditioning.guidance(
        long, with_defaults(model.system, Request(**ask)).with_(frames=20)
    ).tolist() == pytest.approx([start, peak, *[peak] * 16, peak, start])
    model.animate(media / "one.png", **ask)
    assert scales[-1].tolist() == [peak] * 8  # a tenth of eight frames rounds to 0: no slope


def test_rising_and_falling_guidance_give_different_clips(model, media):
    up, down = (
        model.animate(media / "one.png", guidance=a, guidance_end=b, **QUICK).video for a, b in ((1, 6), (6, 1))
    )
    assert (up - down).abs().max() > 1e-4


# --------------------------------------------------------------------------------- size and fit


@pytest.mark.parametrize(("size", "snapped"), [((24, 36), (24, 36)), ((17, 36), (16, 36)), ((18, 51), (20, 52))])
def test_sizes_off_the_lattice_are_snapped_with_a_note(model, media, size, snapped):
    messages: list[str] = []
    ask = {"height": size[0], "width": size[1], **QUICK}
    clip = model.animate(media / "one.png", on_event=lambda e: messages.append(str(e)), **ask)
    assert (clip.shape.height, clip.shape.width) == snapped
    assert sum("snapped" in line for line in messages) == sum(a != b for a, b in zip(size, snapped, strict=True))


@pytest.mark.parametrize(("fit", "what"), [("crop", "cropped to 16×16"), ("pad", "padded with black to 16×16")])
def test_images_of_another_aspect_are_cropped_or_padded(model, media, fit, what):
    messages: list[str] = []
    clip = model.animate(media / "wide.png", fit=fit, on_event=lambda e: messages.append(str(e)), **QUICK)
    assert any(what in line for line in messages)
    first = clip.video[0, :, 0]
    red = first[0] > 0.3
    assert int(red.sum()) == (256 if fit == "crop" else 64)  # padded: the image has four of sixteen rows
    assert bool(red[6:10].all())


# --------------------------------------------------------------------------------------- batches


def test_clips_of_one_image_equal_single_runs(model, media):
    both = model.animate(media / "one.png", clips=3, **QUICK).video
    for i in range(3):
        single = model.animate(media / "one.png", steps=2, seed=3 + i).video
        assert torch.allclose(both[i : i + 1], single, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_clips_of_several_images_equal_single_runs(model, media, monkeypatch):
    """Unlike in diffusers, which mixes the conditions of such a batch and decodes chunks across its clips."""
    from kinema import tasks

    images = torch.cat([read_video(media / "clip.gif").video[:, :, i] for i in (0, 5)])

    def canvas_of(of: torch.Tensor) -> Canvas:
        mask = torch.zeros(len(of), 1, 8, 16, 16)
        mask[:, :, 0] = 1
        return Canvas.of(of[:, :, None] * mask, mask)

    def run(of: torch.Tensor, seed: int) -> torch.Tensor:
        task = tasks.Task(lambda r: r, lambda _r, _e: canvas_of(of))
        monkeypatch.setitem(tasks.TASKS, "animate", task)
        ask = Request(task="animate", clips=len(of), steps=2, seed=seed, extra={"decode_chunk": 3})
        return model.run(ask).video

    both = run(images, 3)
    for i in range(2):
        assert torch.allclose(both[i : i + 1], run(images[i : i + 1], 3 + i), atol=1e-5)


# ----------------------------------------------------------------------------------- given frames


@pytest.mark.parametrize("way", ["replacement", "reconstruction"])
def test_both_ends_are_held_by_guidance_but_not_natively(model, media, way):
    ask = {"image": str(media / "one.png"), "last_image": str(media / "two.png"), **QUICK}
    clip = model.interpolate(honour=way, **ask)
    for name, place in (("one", 0), ("two", -1)):
        assert torch.equal(clip.video[:, :, place], read_image(media / f"{name}.png")[:, :, 0])
    free = model.animate(media / "one.png", **QUICK).video
    assert (clip.video[:, :, 1:-1] - free[:, :, 1:-1]).abs().max() > 1e-3
    with pytest.raises(BadRequest, match="--honour native here; it supports replacement, reconstruction"):
        model.interpolate(honour="native", **ask)


def test_every_other_frame_of_a_clip_is_held(model, media):
    """Compares latents, because the decoded clip gets the given frames back in any case."""
    known = read_video(media / "clip.gif").video[:, :, :4]
    ask = Request(task="interpolate", video=str(media / "clip.gif"), every=2, frames=8, **QUICK)
    z = model.run(ask, output="latents").video
    assert (z[:, :, ::2] - model.system.encode(known)).abs().max() < 1e-4
    between = z[:, :, 1::2].diff(dim=2)
    assert between.abs().max() > 1e-2
    assert torch.equal(model.run(ask).video[:, :, ::2], known)


# ---------------------------------------------------------------------------------- longer clips


def test_an_extension_continues_natively_from_the_last_frame(model, media):
    """The new frames equal an animation of the last frame: nothing is held by guidance."""
    known = read_video(media / "clip.gif").video
    messages: list[str] = []
    longer = model.extend(media / "clip.gif", frames=13, on_event=lambda e: messages.append(str(e)), **QUICK)
    assert torch.equal(longer.video[:, :, :6], known)
    assert sum("block" in line for line in messages) == 1
    last = media / "last.png"
    Clip(known[:, :, -1:]).save(last)
    animated = model.animate(last, fps=7.0, **QUICK).video
    assert (longer.video[:, :, 5:] - animated).abs().max() < 1e-5


def test_a_short_extension_is_cut_from_a_full_block(model, media):
    whole = model.extend(media / "clip.gif", frames=13, **QUICK).video
    short = model.extend(media / "clip.gif", frames=9, **QUICK).video
    assert torch.equal(short, whole[:, :, :9])


def test_a_long_extension_uses_blocks_that_share_one_frame(model, media):
    messages: list[str] = []
    longer = model.extend(media / "clip.gif", frames=24, on_event=lambda e: messages.append(str(e)), **QUICK)
    assert longer.shape.frames == 24
    assert [line for line in messages if "block" in line] == [
        str(Note(f"block {i + 1} of 3: frames {start} to {min(start + 7, 23)}")) for i, start in enumerate((5, 12, 19))
    ]
    again = model.extend(media / "clip.gif", frames=24, **QUICK).video
    assert torch.equal(longer.video, again)


def test_a_long_animation_starts_with_the_short_one(model, media):
    noise = torch.randn(1, 4, 20, 8, 8, generator=torch.Generator().manual_seed(0))
    ask = Request(task="animate", image=str(media / "one.png"), **QUICK)
    long = model.run(ask.with_(frames=20), noise=noise).video
    short = model.run(ask.with_(frames=8), noise=noise[:, :, :8]).video
    assert torch.equal(long[:, :, :8], short)
    assert long.isfinite().all()


def test_long_clips_support_native_conditioning(model, media):
    """Every block is checked as it is sampled: it holds one frame, as in training."""
    ask = {"image": media / "one.png", "frames": 12, **QUICK}
    assert torch.equal(model.animate(honour="native", **ask).video, model.animate(**ask).video)
    messages: list[Event] = []
    with pytest.raises(BadRequest, match="--honour native here; it supports replacement, reconstruction"):
        model.animate(honour="native", overlap=4, on_event=messages.append, **ask)
    assert not any(isinstance(event, Step) for event in messages)


def test_an_overlap_or_another_honour_holds_more_frames_by_guidance(model, media):
    free = model.extend(media / "clip.gif", frames=8, **QUICK).video
    held = model.extend(media / "clip.gif", frames=8, honour="replacement", **QUICK).video
    assert torch.equal(held[:, :, :6], free[:, :, :6])
    assert not torch.allclose(held[:, :, 6:], free[:, :, 6:], atol=1e-3)
    messages: list[str] = []
    model.extend(media / "clip.gif", frames=18, overlap=4, on_event=lambda e: messages.append(str(e)), **QUICK)
    assert sum("block" in line for line in messages) == 4
    with pytest.raises(BadRequest, match="continuation starts from one frame"):
        model.extend(media / "clip.gif", frames=18, overlap=4, honour="continuation", **QUICK)


def test_a_backward_extension_is_held_by_guidance(model, media):
    known = read_video(media / "clip.gif").video
    messages: list[Event] = []
    longer = model.extend(media / "clip.gif", frames=12, backward=True, on_event=messages.append, **QUICK).video
    assert torch.equal(longer[:, :, -6:], known)
    assert longer[:, :, :6].std() > 0.01
    # Last step of each block: frames 4 to 11 hold the clip, then frames 0 to 7 hold the frames generated by the first.
    x0 = [event.x0 for event in messages if isinstance(event, Step)][1::2]
    assert len(x0) == 2
    for z, start, held in zip(x0, (4, 0), (6, 4), strict=True):
        given = longer[:, :, 8 - held + start : start + 8]
        assert (z[:, :, 8 - held :] - model.system.encode(given)).abs().max() < 1e-4


def test_colours_reduce_drift(model, media):
    """A random network's colours drift from block to block; with the anchor they match the first frame."""
    anchor = read_video(media / "clip.gif").video[:, :, 0]

    def far(colours: str) -> float:
        clip = model.extend(media / "clip.gif", frames=27, colours=colours, **QUICK).video
        new = clip[:, :, 6:]
        return float((new.mean((2, 3, 4)) - anchor.mean((2, 3))).abs().max())

    free, anchored = far("free"), far("anchor")
    assert anchored < 0.1
    assert anchored < free / 2
    seam = model.extend(media / "clip.gif", frames=13, colours="seam", **QUICK).video
    plain = model.extend(media / "clip.gif", frames=13, **QUICK).video
    assert torch.equal(seam[:, :, :6], plain[:, :, :6])
    assert not torch.allclose(seam[:, :, 6:], plain[:, :, 6:], atol=1e-3)


def test_colours_of_a_single_pass_match_its_image(model, media):
    image = read_video(media / "clip.gif").video[:, :, 0]
    clip = model.animate(media / "one.png", colours="anchor", **QUICK).video
    assert (clip.mean((2, 3, 4)) - image.mean((2, 3))).abs().max() < 0.1
    with pytest.raises(BadRequest, match="--colours applies only to clips with given frames"):
        model.generate("x", colours="anchor", **QUICK)


def test_anchor_embeds_the_first_frame_in_every_block(model, media, monkeypatch):
    recorded: list[torch.Tensor] = []
    embed = model.system.model.image_encoder.embed
    monkeypatch.setattr(model.system.model.image_encoder, "embed", lambda x: recorded.append(x.clone()) or embed(x))
    first = read_video(media / "clip.gif").video[:, :, 0]
    for anchor in (True, False):
        recorded.clear()
        model.extend(media / "clip.gif", frames=20, extra={"anchor": anchor}, **QUICK)
        assert len(recorded) == 2
        assert [torch.equal(x, first) for x in recorded] == [anchor, anchor]


# ---------------------------------------------------------------------------------------- motion


def test_motion_sets_the_motion_bucket(media, tmp_path, capsys):
    words = ["animate", str(media / "one.png"), "--model", "svd/tiny", "--steps", "1", "--quiet"]
    assert main([*words, "--motion", "40", "-o", str(tmp_path / "a.mp4")]) == 0
    assert read_recipe(tmp_path / "a.mp4")["stages"][0]["request"]["extra"] == {"motion_bucket": 40}
    assert main([*words, "--motion", "40", "--extra", "motion-bucket=3", "-o", str(tmp_path / "b.mp4")]) == 2
    assert "set the same option" in capsys.readouterr().err
    assert (
        main(["generate", "a ball", "--model", "zoetrope/tiny", "--motion", "40", "-o", str(tmp_path / "c.mp4")]) == 2
    )
    assert "zoetrope has no option --motion;" in capsys.readouterr().err
