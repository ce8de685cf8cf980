"""Open-Sora 2.0 from the command line, with a tiny model in a file: every kind of conditioning, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kinema
from kinema.api import Model, load
from kinema.checkpoints import files
from kinema.cli.main import main
from kinema.events import Event, Note, Preview, Step
from kinema.media.metadata import read_recipe
from kinema.media.read import read_image, read_video
from kinema.schema import Cancelled, Clip, Request
from kinema.settle import with_defaults

QUICK = ("--steps", "2", "--height", "24", "--width", "40", "--seed", "5", "--quiet")
KINDS: dict[str, tuple[str, ...]] = {
    "t2v": ("generate", "a red ball"),
    "i2v_head": ("animate", "one.png", "a red ball"),
    "i2v_tail": ("animate", "a red ball", "--keyframe", "12=two.png"),
    "i2v_loop": ("animate", "one.png", "a red ball", "--last-image", "two.png"),
    "loop of one": ("animate", "one.png", "a red ball", "--loop"),
    "v2v_head": ("extend", "clip.png", "a red ball", "--keep", "5"),
    "v2v_tail": ("extend", "clip.png", "a red ball", "--keep", "5", "--backward"),
}
FRAMES = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fill: Any) -> Path:
    """Two images, a clip of seven frames, and weight files of a model with either codec that generates 13 frames."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("use")
    random = torch.Generator().manual_seed(0)
    video = (torch.rand(2, 3, 7, 24, 40, generator=random) * 2 - 1).clamp(-1, 1)
    for i, name in enumerate(("one", "two")):
        Clip(video[i : i + 1, :, :1]).save(folder / f"{name}.png")
    Clip(video[:1], 8.0).save(folder / "clip.png")
    for preset, frames in (("tiny", FRAMES), ("tiny-dc-ae", 16)):
        system = load("opensora", preset=preset, overrides={"frames": frames}).system
        fill(system.model, 3, std=0.1)
        note = json.dumps({"family": "opensora", "config": system.family.to_json(system.config)})
        files.write_tensors(folder / f"{preset}.safetensors", system.model.state_dict(), {"kinema": note})
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def words(kind: str, preset: str = "tiny") -> list[str]:
    """The command line of a kind of conditioning, without its output."""
    verb, *rest = KINDS[kind]
    rest = ["clip" if word == "clip.png" else word for word in rest]
    return [verb, *rest, "--model", f"{preset}.safetensors", "--frames", str(FRAMES), *QUICK]


def frames_of(path: Path) -> Tensor:
    return read_video(path).video


def given(kind: str) -> dict[int, Tensor]:
    """The given frames of a kind, by the frame of the clip."""
    one, two, clip = read_image("one.png"), read_image("two.png"), read_video("clip").video
    return {
        "t2v": {},
        "i2v_head": {0: one},
        "i2v_tail": {FRAMES - 1: two},
        "i2v_loop": {0: one, FRAMES - 1: two},
        "loop of one": {0: one, FRAMES - 1: one},
        "v2v_head": {0: clip[:, :, 2:]},
        "v2v_tail": {FRAMES - 5: clip[:, :, :5]},
    }[kind]


# ------------------------------------------------------------------------------------ every kind


@pytest.mark.parametrize("preset", ["tiny", "tiny-dc-ae"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_the_command_line_with_its_given_frames_to_the_bit(
    kind: str, preset: str, here: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clip.png"  # a folder of frames, which loses nothing
    assert main([*words(kind, preset), "-o", str(out)]) == 0
    made = frames_of(tmp_path / "clip")
    assert tuple(made.shape) == (1, 3, FRAMES, 24, 40)
    for begin, piece in given(kind).items():
        assert torch.equal(made[:, :, begin : begin + piece.shape[2]], piece)
    [stage] = read_recipe(tmp_path / "clip")["stages"]
    assert stage["family"] == "opensora"
    assert [block["way"] for block in stage["blocks"]] == ["native"]
    assert stage["frames"] == (FRAMES if preset == "tiny" else 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_three_equals_three_single_runs(kind: str, here: Path, tmp_path: Path) -> None:
    """The original conditions the first clip of a batch alone."""
    command = [*words(kind), "--steps", "1"]
    assert main([*command, "--clips", "3", "-o", str(tmp_path / "batch.png")]) == 0
    batch = [frames_of(path) for path in sorted(tmp_path.glob("batch-*"))]
    assert len(batch) == 3
    for i, clip in enumerate(batch):
        options = [*command]
        options[options.index("--seed") + 1] = str(5 + i)
        assert main([*options, "-o", str(tmp_path / f"single{i}.png")]) == 0
        single = frames_of(tmp_path / f"single{i}")
        assert (clip - single).abs().max() <= 1.01 * 2 / 255  # 8 bits; batched products differ in the last float bits
    assert (batch[0] - batch[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_is_equal_to_the_bit(
    kind: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(kind), "-o", str(tmp_path / "clip.mp4")]) == 0
    recipe = read_recipe(tmp_path / "clip.mp4")
    inputs = [f"{name}={file}" for name, file in recipe["stages"][0]["request"].items() if name in recipe["inputs"]]
    inputs += [f"{name}=two.png" for name in recipe["inputs"] if name.startswith("keyframe")]
    options = [word for each in inputs for word in ("--input", each)]
    again = ["replay", str(tmp_path / "clip.mp4"), "--model", "tiny.safetensors", *options]
    assert main([*again, "-o", str(tmp_path / "again.mp4")]) == 0
    assert "are identical to those of clip.mp4, bit for bit" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_measures_without_writing(
    kind: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(here.iterdir())
    options = [word for word in words(kind) if word != "--quiet"]
    assert main(["plan", *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    # Two branches where nothing is given; else three, since oscillation begins later.
    assert plan["network_calls"] == 2 * (2 if kind == "t2v" else 3)
    assert set(here.iterdir()) == before


# -------------------------------------------------------------------------- previews, cancelling


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder / "tiny.safetensors")


def test_previews_show_the_clip_and_change_nothing(model: Model, here: Path) -> None:
    options: dict[str, Any] = {"frames": 9, "height": 24, "width": 40, "steps": 3, "seed": 1}
    heard: list[Event] = []
    shown = model.animate("one.png", "a red ball", preview=True, on_event=heard.append, **options)
    plain = model.animate("one.png", "a red ball", **options)
    assert torch.equal(shown.video, plain.video)
    previews = [event for event in heard if isinstance(event, Preview)]
    assert [each.index for each in previews][-1] == 3
    assert previews[-1].picture.shape[1:] == (24, 40, 3)


def test_the_fitted_colours_of_latents_are_those_of_the_decoded_clip(model: Model) -> None:
    from kinema.previews import fitted

    rgb = fitted(model.system)
    frames = torch.rand(1, 3, 1, 24, 40) * 2 - 1
    z = model.system.encode(frames)
    colours = rgb(z[0].float())
    decoded = torch.nn.functional.avg_pool3d(model.system.decode(z), (1, 4, 4))[0]
    assert (colours - decoded).square().mean() < decoded.var()


def test_a_cancelled_run_stops_between_steps_and_keeps_what_there_is(model: Model, here: Path) -> None:
    token = kinema.Cancel(keep_partial=True)

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.index == 2:
            token.cancel()

    with pytest.raises(Cancelled, match="cancelled at step 2 of 4") as stopped:
        model.animate("one.png", "a red ball", steps=4, seed=1, height=24, width=40, on_event=stop, cancel=token)
    partial = stopped.value.clip
    assert partial is not None
    assert torch.equal(partial.video[:, :, :1], read_image("one.png"))


# -------------------------------------------------------------------------- sizes, counts, options


@pytest.mark.parametrize(
    ("preset", "name", "size"),
    [
        ("v2", "256px:16:9", (192, 336)),
        ("v2-768px", "768px:9:16", (1024, 576)),
        ("v2-768px", "768px:2:1", (544, 1072)),
        ("v2-dc-ae", "768px:2:1", (544, 1056)),
        ("tiny-dc-ae", "256px:1:1", (256, 256)),
    ],
)
def test_named_sizes_are_those_of_the_tables(preset: str, name: str, size: tuple[int, int]) -> None:
    system = load("opensora", preset=preset).system
    settled = with_defaults(system, Request(prompt="a red ball", size=name))
    assert (settled.size, settled.height, settled.width) == (None, *size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "768px:7:5"), "tiny.safetensors has no size '768px:7:5'; did you mean"),
        (("--size", "big"), "tiny.safetensors has no size 'big'; it has 256px:1.85:1"),
        (("--size", "256px:1:1", "--height", "32"), "--size sets height and width"),
    ],
)
def test_sizes_that_are_not_there_are_refused(
    options: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a red ball", "--model", "tiny.safetensors", "--quiet", "-o", "unwritten.gif"]
    assert main([*command, *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("unwritten.gif").exists()


def test_a_named_size_is_generated_and_recorded_as_height_and_width(here: Path, tmp_path: Path) -> None:
    options = ["--model", "tiny.safetensors", "--size", "256px:1:1", "--frames", "1", "--steps", "1", "--seed", "1"]
    assert main(["generate", "a red ball", *options, "-o", str(tmp_path / "clip.png")]) == 0
    assert read_image(tmp_path / "clip.png").shape[-2:] == (256, 256)
    request = read_recipe(tmp_path / "clip.png")["stages"][0]["request"]
    assert (request["height"], request["width"], "size" in request) == (256, 256, False)


@pytest.mark.parametrize(("frames", "generated"), [(10, 13), (13, None), (2, 5), (1, None)])
def test_frames_that_are_not_4k_plus_1_are_said(model: Model, frames: int, generated: int | None) -> None:
    heard: list[Event] = []
    options: dict[str, Any] = {"steps": 1, "seed": 1, "height": 26, "width": 40}
    clip = model.generate("a red ball", frames=frames, on_event=heard.append, **options)
    assert clip.video.shape[2] == frames
    notes = [event.message for event in heard if isinstance(event, Note)]
    told = [note for note in notes if "the next supported count" in note]
    expected = (
        f"tiny.safetensors generates {generated} frames, the next supported count, and the clip is cut to {frames}"
    )
    assert told == ([] if generated is None else [expected])
    assert "height 26 snapped to 24, the nearest that tiny.safetensors supports" in notes


def test_a_score_or_rate_outside_the_vocabulary_of_a_small_model_is_said(model: Model) -> None:
    heard: list[Event] = []
    options: dict[str, Any] = {"steps": 1, "seed": 1, "frames": 1, "height": 24, "width": 40}
    model.generate("a red ball", on_event=heard.append, **options)
    assert not [event for event in heard if isinstance(event, Note)]
    model.generate("a red ball", extra={"motion_score": 77}, on_event=heard.append, **options)
    assert [event.message for event in heard if isinstance(event, Note)] == ["unknown words for tiny.safetensors: 77"]


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("generate", "motion-score=9"),
        ("generate", "oscillate=false"),
        ("generate", "flow-shift=9"),
        ("animate", "image-guidance=1.5"),
        ("animate", "oscillate-image=false"),
        ("animate", "dynamic-image=false"),
    ],
)
def test_every_option_changes_the_clip(verb: str, extra: str, here: Path, tmp_path: Path) -> None:
    subject = ["a red ball"] if verb == "generate" else ["one.png", "a red ball"]
    options = ["--model", "tiny.safetensors", *QUICK, "--frames", "5"]
    options[options.index("--steps") + 1] = "13"  # oscillation begins with the twelfth
    for name, more in (("plain", []), ("other", ["--extra", extra])):
        assert main([verb, *subject, *options, *more, "-o", str(tmp_path / f"{name}.png")]) == 0
    assert not torch.equal(frames_of(tmp_path / "plain"), frames_of(tmp_path / "other"))


def test_guidance_may_change_over_the_frames(model: Model) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 1, "frames": 9, "height": 24, "width": 40, "guidance": 2.0}
    plain = model.generate("a red ball", **options).video
    rising = model.generate("a red ball", guidance_end=9.0, **options).video
    same = model.generate("a red ball", guidance_end=2.0, **options).video
    assert torch.equal(plain, same)
    assert (plain - rising).abs().max() > 1e-3


def test_decoding_in_chunks_is_close_to_decoding_at_once(model: Model) -> None:
    options: dict[str, Any] = {"steps": 1, "seed": 1, "frames": 13, "height": 24, "width": 40}
    whole = model.generate("a red ball", **options).video
    chunks = model.generate("a red ball", extra={"decode_chunk": 3, "decode_overlap": 2}, **options).video
    assert not torch.equal(whole, chunks)
    assert (whole - chunks).abs().mean() < whole.std() / 2
