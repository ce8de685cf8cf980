"""Fine-tuning by commands: from a film to shots to weights and LoRAs that other programs load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import StableVideoDiffusionPipeline

from kinema.checkpoints import files
from kinema.data import playroom
from kinema.media.write import save_clip
from kinema.schema import Clip
from kinema.system import open_system

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def film(path: Path, seeds: range) -> None:
    """Write one file of several scenes with cuts in between."""
    shots = [playroom.sample(seed, frames=16, height=64, width=64, fps=8.0).video_CTHW for seed in seeds]
    video_CTHW = torch.cat([torch.from_numpy(shot) for shot in shots], 1)
    save_clip(Clip(video_CTHW[None], 8.0), path, generated=False)


def kinema(*words: str | Path) -> list[str]:
    """Run a command and return the paths it prints."""
    command = [sys.executable, "-m", "kinema", *map(str, words), "--quiet"]
    completed = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def test_a_film_becomes_shots_weights_and_a_lora_even_after_sigkill(tmp_path: Path) -> None:
    film(tmp_path / "film.mp4", range(3))
    kinema("data", "shots", tmp_path / "film.mp4", "--out", tmp_path / "shots", "--side", "64")
    assert len(list((tmp_path / "shots").glob("*.mp4"))) == 3
    kinema("data", "motion-bucket", tmp_path / "shots")

    training = ["train", "svd/tiny", "--data", tmp_path / "shots", "--steps", "8", "--batch", "1", "--save-every", "2"]
    training += ["--threads", "1", "--sample-every", "0"]
    command = [sys.executable, "-m", "kinema", *map(str, training), "--out", str(tmp_path / "run")]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "run").glob("step-*")) and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kinema(*training, "--out", tmp_path / "run")
    kinema(*training, "--out", tmp_path / "whole")
    weights = tmp_path / "run" / "model.safetensors"
    assert weights.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    kinema("convert", weights, "-o", tmp_path / "folder", "--layout", "diffusers")
    kinema("convert", weights, "-o", tmp_path / "sgm.safetensors", "--layout", "sgm")
    trained = open_system(weights).model.state_dict()
    loaded = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "folder").unet.state_dict()
    assert {f"unet.{k}" for k in loaded} == {k for k in trained if k.startswith("unet.")}
    assert all(torch.equal(trained[f"unet.{k}"], v) for k, v in loaded.items())
    again = open_system(tmp_path / "sgm.safetensors").model.state_dict()
    assert all(torch.equal(trained[k], again[k]) for k in trained)

    tuned = ["train", weights, "--data", tmp_path / "shots", "--lora", "2", "--steps", "2", "--batch", "1"]
    kinema(*tuned, "--out", tmp_path / "lora", "--threads", "1", "--sample-every", "0")
    plain, kohya = (tmp_path / "lora" / f"lora{of}.safetensors" for of in ("", "-kohya"))
    assert files.read_tensors(plain).keys() != files.read_tensors(kohya).keys()
    first, second = (open_system(weights, loras={p: 1.0}).model.state_dict() for p in (plain, kohya))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], trained[k]) for k in trained)
