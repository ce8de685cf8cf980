"""Runs over folders of clips: whole, parts, LoRA, latents and text in shards, validation by time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema import registry
from kinema.api import load
from kinema.checkpoints import files
from kinema.conditioning import t5
from kinema.data import playroom
from kinema.data.clip import InOrder
from kinema.data.folder import Folder
from kinema.data.shards import Latents
from kinema.events import Note, TrainStep
from kinema.families.opensora.codec import VideoCodec
from kinema.families.opensora.vae1x.codec import RunCodec
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip
from kinema.system import open_system
from kinema.training import latents
from kinema.training import run as loop
from kinema.training.latents import LatentsOptions
from kinema.training.options import TrainOptions
from kinema.training.run import train
from kinema.training.run_folder import claimed
from kinema.training.setup import VALIDATION_BATCHES, begin
from kinema.training.stream import Stream


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, each with two captions."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for i in range(3):
        clip = playroom.sample(i, frames=20, height=24, width=32, fps=24.0)
        save_clip(Clip(torch.from_numpy(clip.video_CTHW)[None], 24.0), folder / f"{i}.mp4", generated=False)
        rows += [{"file_name": f"{i}.mp4", "text": text} for text in (clip.caption, "a blue star")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(clips: Path, out: Path, model: str, **changes: Any) -> TrainOptions:
    small = {"frames": 9, "height": 16, "width": 24, "steps": 2, "batch": 2, "threads": 1, "precision": "fp32"}
    small |= {"validate_every": 0, "sample_every": 0, "save_every": 0}
    return TrainOptions(model=model, data=str(clips), out=str(out), **{**small, **changes})


SIZES = {"tiny": {}, "tiny-1.0": {"frames": 8}, "tiny-1.2": {"frames": 17}, "tiny-1.3": {"frames": 17}}


@pytest.fixture
def start(network: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A weight file of a preset whose heads are not zero, as those of an untrained network are."""

    def write(preset: str) -> Path:
        config, model = network(preset)
        note = json.dumps({"family": "opensora", "config": registry.family("opensora").to_json(config)})
        path = tmp_path / f"{preset}.safetensors"
        files.write_tensors(path, model.state_dict(), {"kinema": note})
        return path

    return write


@pytest.mark.parametrize("preset", SIZES)
def test_a_lora_then_the_whole_network_are_trained_load_back_and_generate(
    preset: str, clips: Path, tmp_path: Path, start: Callable[[str], Path]
) -> None:
    size, source = SIZES[preset], start(preset)
    asked = {"frames": size.get("frames", 9), "height": 16, "width": 24, "steps": 2, "seed": 1}
    before = load(source).generate("a red ball", **asked).video
    low = train(options(clips, tmp_path / "lora", str(source), lora="2:4", learning_rate=1e-2, **size))
    assert low.weights.name == "lora.safetensors"
    found = {"lora-peft", "lora-diffusers", "lora-kohya"} if preset == "tiny" else {"lora-peft", "lora-kohya"}
    assert {path.stem for path in low.folder.glob("lora-*")} == found
    videos = {
        path.stem: load(source, loras={path: 1.0}).generate("a red ball", **asked).video
        for path in low.folder.glob("lora*")
    }
    assert not torch.equal(videos["lora"], before)
    for name, video in videos.items():  # the others are in fp16
        change = videos["lora"] - before
        assert float((video - videos["lora"]).norm() / change.norm()) < 0.02, name
    whole = train(options(clips, tmp_path / "whole", str(source), only="all-but-text", learning_rate=1e-2, **size))
    after = load(whole.weights).generate("a red ball", **asked).video
    assert after.shape == before.shape == (1, 3, size.get("frames", 9), 16, 24)
    assert not torch.equal(after, before)
    old, new = files.read_tensors(source), files.read_tensors(whole.weights)
    moved = {name for name in new if not torch.equal(new[name].half(), old[name].half())}  # a run's result is in fp16
    assert not [name for name in moved if not name.startswith("transformer.")]
    assert not [name for name in moved if "y_embedder" in name]


def test_a_run_names_the_stage_that_its_weight_file_keeps_unless_another_is_chosen(
    network: Any, clips: Path, tmp_path: Path
) -> None:
    config, model = network("tiny-1.3")
    note = {"family": "opensora", "config": registry.family("opensora").to_json(replace(config, stage="adapt-i2v"))}
    files.write_tensors(tmp_path / "a.safetensors", model.state_dict(), {"kinema": json.dumps(note)})
    message = "training stage adapt-i2v, that of a.safetensors; name another with stage"
    for stage, expected in ((None, [message]), ("stage1", [])):
        heard: list[Any] = []
        given = options(clips, tmp_path / "run", str(tmp_path / "a.safetensors"), stage=stage, **SIZES["tiny-1.3"])
        with claimed(tmp_path / "run") as folder:
            begin(given, folder, heard.append).log.close()
        assert [e.message for e in heard if isinstance(e, Note) and "stage" in e.message] == expected


def test_validation_reports_the_loss_by_time(clips: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    train(options(clips, tmp_path / "run", "opensora/tiny", validate_every=2), heard.append)
    (event,) = (each for each in heard if isinstance(each, TrainStep) and each.validation is not None)
    assert [*event.validation_at] == pytest.approx([k / 11 for k in range(1, 11)])
    assert len({*event.validation_at.values()}) == 10
    (note,) = (each.message for each in heard if isinstance(each, Note) and "by time" in each.message)
    assert note.startswith("step 2, held-out loss by time (0 clean, 1 noise): 0.09: ")
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert row["validation_at/0.09"] == pytest.approx(event.validation_at[1 / 11])
    assert row["validation_at/0.91"] == pytest.approx(event.validation_at[10 / 11])


@pytest.mark.parametrize(("preset", "stage"), [("tiny", None), ("tiny-1.2", None), ("tiny-1.3", "adapt-i2v")])
def test_the_loss_by_time_is_that_of_this_time_alone_and_encodes_each_clip_once(  # noqa: PLR0917
    preset: str,
    stage: str | None,
    clips: Path,
    tmp_path: Path,
    start: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the averaged weights, without drops. Stage adapt-i2v also encodes given frames with noise."""
    encoded: list[int] = []
    for codec in (VideoCodec, RunCodec):
        monkeypatch.setattr(codec, "encode", lambda *x, own=codec.encode: encoded.append(len(x[1])) or own(*x))
    given = options(clips, tmp_path / "run", str(start(preset)), stage=stage, validate_every=2, **SIZES[preset])
    with claimed(tmp_path / "run") as folder:
        run = begin(given, folder, lambda _: None)
        whole, found = loop.validate(run)
        run.log.close()
    by_all_times = sum(encoded)
    for time, expected in {None: whole, **found}.items():
        encoded.clear()
        each = []
        for i in range(VALIDATION_BATCHES):
            alone = replace(run.held_out.at(i), time=time, drops=False)
            each.append(loop.losses(run.model, run.system, alone, seed=i, precision="fp32").detach().mean())
        assert expected == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)
        assert sum(encoded) == by_all_times > 0


# ------------------------------------------------------------------------------------------ shards


@pytest.mark.parametrize("preset", ["tiny", "tiny-1.2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 5e-3), ("fp32", 1e-4)])
def test_losses_with_latents_in_shards_equal_those_of_the_clips(
    preset: str, dtype: str, tolerance: float, clips: Path, tmp_path: Path
) -> None:
    """To the stored precision, with the same masks: those of a batch have all frames of the clip."""
    frames = SIZES[preset].get("frames", 9)
    size = {"frames": frames, "height": 16, "width": 24}
    out = tmp_path / "latents"
    made = LatentsOptions(clips=str(clips), model=f"opensora/{preset}", out=str(out), dtype=dtype, threads=1, **size)
    latents.encode(made)
    system = open_system(f"opensora/{preset}")
    system = replace(system, config=replace(system.config, **size))
    settings = system.family.training.settings(system.config)
    folder = Folder.scan(clips, **size, fps=24.0)
    plain = {(e.name, start): clip for e in folder.entries for start, clip in folder.windows(e, frames)}
    stored = Latents.open(out)
    batch = Stream(stored, settings, 2).at(1)

    class Same(InOrder):
        skipped = ()

        def clip(self, index: int) -> Any:
            from kinema.data.folder import shuffled

            count = len(stored.windows)
            window = stored.windows[shuffled(count, 0, index // count)[index % count]][2]
            return plain[window.clip, window.start]

    whole = Stream(Same(), settings, 2).at(1)
    assert torch.equal(whole.mask, batch.mask)
    assert whole.mask.shape[2] == frames
    losses = [loop.losses(system.model, system, b, seed=3, precision="fp32").detach() for b in (whole, batch)]
    torch.testing.assert_close(*losses, rtol=tolerance, atol=tolerance)


def test_training_on_shards_runs_and_refuses_another_codec(clips: Path, tmp_path: Path) -> None:
    size = {"frames": 9, "height": 16, "width": 24}
    latents.encode(LatentsOptions(clips=str(clips), model="opensora/tiny", out=str(tmp_path / "z"), threads=1, **size))
    done = train(options(tmp_path / "z", tmp_path / "run", "opensora/tiny", validate_every=2))
    assert done.step == 2


@pytest.mark.parametrize("preset", ["tiny", "tiny-1.2"])
def test_captions_are_encoded_once_and_the_losses_are_the_same(
    preset: str, clips: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that reads T5 (and CLIP): text in shards, for every caption of a clip and for none."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    frames = SIZES[preset].get("frames", 9)
    family = registry.family("opensora")
    config = replace(family.presets[preset], words=(), frames=frames, height=16, width=24)
    torch.manual_seed(0)
    note = json.dumps({"family": "opensora", "config": family.to_json(config)})
    files.write_tensors(encoders / "model.safetensors", family.build(config).state_dict(), {"kinema": note})
    made = LatentsOptions(
        clips=str(clips), model=str(encoders / "model.safetensors"), out=str(tmp_path / "z"), dtype="fp32", threads=1
    )
    latents.encode(made)
    system, stored = open_system(encoders / "model.safetensors"), Latents.open(tmp_path / "z")
    assert stored.settings.text
    stream = Stream(stored, system.family.training.settings(config), 2)
    read: set[str] = set()
    encoded = t5._encoded
    monkeypatch.setattr(t5, "_encoded", lambda *args, **named: read.update(args[1]) or encoded(*args, **named))
    batches = [stream.at(step) for step in range(3)]
    for batch in batches:
        assert batch.encoded is not None
        live = {name: x for name, x in batch.encoded.items() if name in ("latents", "first", "last")}
        losses = [
            loop.losses(system.model, system, each, seed=4, precision="fp32").detach()
            for each in (batch, replace(batch, encoded=live))
        ]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    chosen = {caption for batch in batches for caption in batch.captions}
    assert len(chosen) > 1
    assert "a blue star" in chosen
    lower = {caption.partition(" 24 FPS")[0].lower() for caption in read}  # 1.2 reads lower case
    assert {caption.lower() for caption in chosen} <= lower  # by the batches without stored text
    monkeypatch.setattr(t5, "find", lambda *_: pytest.fail("text in shards needs no encoder"))
    loop.losses(system.model, system, batches[0], seed=4, precision="fp32")


def test_a_model_without_its_codec_is_not_trained() -> None:
    family = registry.family("opensora")
    for preset, said in (("v2", "hunyuan_vae.safetensors"), ("v1.2", "this model has no VAE")):
        with pytest.raises(BadRequest, match=said):
            family.training.settings(replace(family.presets[preset], absent=("vae",)))
