"""Previews: x0 images as events, which do not change the clip, and the preview file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kinema import previews, registry
from kinema.api import Model, load
from kinema.data import playroom
from kinema.events import Event, Preview, Step, ignore
from kinema.families.vdm.config import presets
from kinema.families.vdm.family import FAMILY
from kinema.previews import Previewed, PreviewFile, Previews, fitted, latent_rgb, preview_frames
from kinema.schema import BadRequest, Clip, Shape
from kinema.system import System, Weights
from kinema.vae.latent_rgb import PIXELS, LatentRGB

ALL = Previews(rate=1e6)
NINE = [*range(9)]
RUNS: dict[str, dict[str, Any]] = {
    "at once": {},
    "in windows": {"frames": 12, "window": 4, "overlap": 2},
    "in blocks": {"frames": 20, "overlap": 2},
    "with steps that remember x0": {"sampler": "dpmpp-2m", "steps": 3},
    "held by guidance": {"honour": "reconstruction", "guidance": 2.0},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    video = torch.from_numpy(playroom.sample(3, frames=1).video_CTHW)[None]
    return Clip(video).save(tmp_path / "first.png")[0]


def tiny(family: str, **options: Any) -> Model:
    """An untrained model whose last layers are not zero, as they are when fresh: else clips would be equal anyway."""
    torch.set_num_threads(1)
    model = load(family, preset="tiny", **options)
    with torch.no_grad():
        for p in model.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return model


def run(model: Model, image: Path, preview: Any = False, **options: Any) -> tuple[Tensor, list[Event]]:
    """Return a clip of few steps and its events."""
    heard: list[Event] = []
    ask = {"seed": 5, "steps": 3, "prompt": "a red ball", **options}
    return model.animate(image, on_event=heard.append, preview=preview, **ask).video, heard


def shown(heard: list[Event]) -> list[Preview]:
    return [event for event in heard if isinstance(event, Preview)]


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_the_clip_is_bit_identical_with_and_without_previews(family: str, how: str, image: Path) -> None:
    options = {"steps": 2, **RUNS[how]}
    if how == "in blocks" and family == "svd":
        del options["overlap"]  # it goes on from one frame
    alone, _ = run(tiny(family), image, **options)
    watched, heard = run(tiny(family), image, ALL, **options)
    assert torch.equal(watched, alone)
    assert len(shown(heard)) == sum(isinstance(event, Step) for event in heard) >= 2


@pytest.mark.parametrize("offload", ["model", "block", "sequential"])
def test_previews_do_not_change_clips_with_offloaded_weights(offload: Any, image: Path) -> None:
    short = {"frames": 2, "steps": 2}
    alone, _ = run(load("svd-pocket"), image, **short)
    watched, heard = run(load("svd-pocket", offload=offload), image, ALL, **short)
    assert torch.equal(watched, alone)
    assert len(shown(heard)) == 2


def test_free_init_counts_the_steps_of_all_its_passes(image: Path) -> None:
    model = load("animatediff", preset="tiny")
    alone, _ = run(model, image, free_init=2)
    watched, heard = run(model, image, ALL, free_init=2)
    assert torch.equal(watched, alone)
    assert [(event.index, event.total) for event in shown(heard)] == [(i, 6) for i in range(1, 7)]


def test_nothing_is_fitted_or_shown_by_default(image: Path) -> None:
    model = load("svd", preset="tiny")
    _, heard = run(model, image)
    assert not shown(heard)
    assert model.system.runtime.rgb is None


def test_a_map_is_fitted_once_and_before_the_first_step(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard, at = load("svd", preset="tiny"), list[Event](), list[int]()

    def counted(system: System) -> LatentRGB:
        at.append(sum(isinstance(event, Step) for event in heard))
        return fitted(system)

    monkeypatch.setattr(previews, "fitted", counted)
    for _ in range(2):
        model.animate(image, seed=5, steps=2, on_event=heard.append, preview=True)
    assert at == [0]


# ------------------------------------------------------------------------------------------- when


def test_previews_come_at_the_requested_rate_and_after_the_last_step(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that a step takes a tenth of a second of; the last preview does not wait for its turn."""
    now = [0.0]

    def tick(event: Event) -> None:
        now[0] += 0.1 * isinstance(event, Step)
        heard.append(event)

    monkeypatch.setattr(previews.time, "monotonic", lambda: now[0])
    heard: list[Event] = []
    model = load("zoetrope", preset="tiny")
    model.animate(image, "a red ball", seed=5, steps=12, on_event=tick, preview=Previews(rate=4.0))
    assert [event.index for event in shown(heard)] == [1, 4, 7, 10, 12]


def test_blocks_are_counted_as_the_whole_clips_steps(image: Path) -> None:
    _, heard = run(load("svd", preset="tiny"), image, ALL, frames=20)
    total = shown(heard)[0].total
    assert total > 3
    assert [event.index for event in shown(heard)] == list(range(1, total + 1))


def test_previews_name_their_stage(image: Path) -> None:
    config = replace(presets()["tiny"], side=32, attention_sides=(8, 16), sampling_steps=2)
    large, base = System("vdm/large", FAMILY, config, Weights(seed=1)), load("vdm", preset="tiny")
    base.system.runtime.beside("large", lambda: large)
    heard: list[Event] = []
    base.generate(
        "a red ball", super_resolution="large", seed=3, steps=2, on_event=heard.append, preview=Previews(rate=1e6)
    )
    told = [(event.stage, event.index, tuple(event.picture.shape[1:3])) for event in shown(heard)]
    small, big = ("base", (16, 16)), ("super-resolution", (32, 32))
    assert told == [(name, index, size) for name, size in (small, big) for index in (1, 2)]


# ------------------------------------------------------------------------------------------- what


def test_a_pixel_model_shows_x0_itself(image: Path) -> None:
    _, heard = run(load("vdm", preset="tiny"), image, Previews(rate=1e6, frames=99))
    x0 = [event.x0 for event in heard if isinstance(event, Step)][-1]
    assert x0 is not None
    levels = x0[0].add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(shown(heard)[-1].picture, levels)


@pytest.mark.parametrize(("frames", "kept"), [(1, [4]), (2, [0, 8]), (3, [0, 4, 8]), (9, NINE), (20, NINE)])
def test_frames_are_spread_from_the_first_to_the_last(frames: int, kept: list[int]) -> None:
    x0 = torch.linspace(-1, 1, 9)[None, None, :, None, None].expand(2, 3, 9, 4, 4)
    levels = preview_frames(x0, PIXELS, (4, 4), frames)[:, 0, 0, 0]
    assert levels.tolist() == [round((float(x0[0, 0, t, 0, 0]) + 1) * 127.5) for t in kept]


@pytest.mark.parametrize(("side", "size"), [(8, (8, 4)), (16, (16, 8)), (512, (32, 16))])
def test_previews_keep_the_aspect_ratio_and_are_not_enlarged(side: int, size: tuple[int, int]) -> None:
    system, shape = load("zoetrope", preset="tiny").system, Shape(1, 3, 4, 32, 16)
    assert Previewed(ignore, system, "base", shape, Previews(side=side)).size == size


def test_values_that_are_not_finite_are_shown() -> None:
    x0 = torch.tensor([float("nan"), float("inf"), -float("inf")]).expand(1, 3, 1, 1, 3)
    assert preview_frames(x0, PIXELS, (1, 3), 3)[0, 0, :, 0].tolist() == [128, 255, 0]


@pytest.mark.parametrize("name", ["svd-pocket", "animatediff-pocket"])
def test_a_fitted_map_looks_like_what_the_codec_decodes(name: str) -> None:
    """On pictures it was not fitted to: closer by far than the best single colour of each picture."""
    system = load(name).system
    rgb = latent_rgb(system)
    rendered = [playroom.sample(seed, frames=1).video_CTHW for seed in range(100, 106)]
    with torch.no_grad():
        z = system.encode(torch.stack([torch.from_numpy(each) for each in rendered]))
        decoded = F.avg_pool2d(system.decode(z)[:, :, 0], system.lattice.grid.stride)
        coloured = torch.stack([rgb(each)[:, 0] for each in z])
    plain = decoded.mean((-2, -1), keepdim=True)
    assert (coloured - decoded).square().mean() < 0.2 * (plain - decoded).square().mean()
    assert (coloured - decoded).mean((0, 2, 3)).abs().max() < 0.05
    assert fitted(system) == rgb


# -------------------------------------------------------------------------------------- bad asks


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Previews(rate=0), "preview rate is 0"),
        (lambda: Previews(rate=float("nan")), "preview rate is nan"),
        (lambda: Previews(side=0), "preview side is 0"),
        (lambda: Previews(frames=2.5), "preview frames is 2.5"),  # type: ignore[arg-type]
        (lambda: load("zoetrope", preset="tiny").generate("a ball", preview="yes"), "preview is 'yes'"),
    ],
)
def test_invalid_previews_are_refused(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        ask()


# ------------------------------------------------------------------------------------------ file


def preview(level: int, frames: int = 3) -> Preview:
    steps = torch.arange(frames, dtype=torch.uint8)[:, None, None, None]
    return Preview(1, 2, (steps * 40 + level).expand(frames, 8, 6, 3).contiguous())


def test_a_png_shows_the_frames_of_the_last_preview_side_by_side(tmp_path: Path) -> None:
    file = PreviewFile(tmp_path / "look.png")
    for level in (0, 100):
        file.write(preview(level))
    with Image.open(file.path) as picture:
        assert picture.size == (18, 8)
        assert [picture.getpixel((x, 4)) for x in (0, 6, 12)] == [(v, v, v) for v in (100, 140, 180)]
    assert [path.name for path in tmp_path.iterdir()] == ["look.png"]


def test_a_webp_is_animated(tmp_path: Path) -> None:
    file = PreviewFile(tmp_path / "look.webp")
    file.write(preview(0, frames=4))
    with Image.open(file.path) as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((6, 8), 4)
    assert file.asked.frames > PreviewFile(tmp_path / "look.png").asked.frames


def test_a_viewer_always_finds_a_complete_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PreviewFile(tmp_path / "look.png")
    file.write(preview(0))
    before, write = file.path.read_bytes(), previews.formats.write_png

    def watched(*told: Any) -> None:
        assert file.path.read_bytes() == before
        write(*told)
        assert file.path.read_bytes() == before

    monkeypatch.setattr(previews.formats, "write_png", watched)
    file.write(preview(100))
    assert file.path.read_bytes() != before


def test_an_existing_file_is_kept_unless_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "look.png"
    path.write_text("mine")
    with pytest.raises(BadRequest, match="exists; choose another name for previews, or pass --overwrite"):
        PreviewFile(path).check()
    with pytest.raises(BadRequest, match="exists"):  # it appeared after the check
        PreviewFile(path).write(preview(0))
    assert path.read_text() == "mine"
    file = PreviewFile(path, overwrite=True)
    file.check()
    file.write(preview(0))
    with Image.open(path) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("name", "message"),
    [("look.jpg", "ending in .png or .webp"), ("none/look.png", "does not exist"), ("f.png", "folder")],
)
def test_an_unwritable_file_is_refused_before_sampling(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.png").mkdir()
    with pytest.raises(BadRequest, match=message):
        PreviewFile(tmp_path / name, overwrite=True).check()
