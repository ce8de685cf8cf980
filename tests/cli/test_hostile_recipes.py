"""Hostile recipes: whatever they name, a replay opens no socket and no file except the clip and what ships.

An audit hook records every open, socket and process of a Python process that replays them all. Files that FFmpeg and
safetensors open in C are not recorded, but Python opens and checks each of them first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from kinema.schema import Clip

ASK = {"task": "generate", "prompt": "a ball", "frames": 2, "steps": 1, "seed": 1}
SVD = "stabilityai/stable-video-diffusion-img2vid"
POCKET = "animatediff-pocket"

AUDIT = """
import contextlib, io, json, os, sys, sysconfig, tempfile
from pathlib import Path

root, work = Path(sys.argv[1]), Path(sys.argv[2])
os.chdir(work)
sys.path = [each for each in sys.path if each]  # nothing is imported from here
import kinema, torch, huggingface_hub, tokenizers
from kinema.cli.main import main

libraries = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *map(os.path.dirname, sys.path)]
inside = [os.path.realpath(p) for p in [*libraries, Path(kinema.__file__).parent, os.environ["HF_HOME"]] if p]
inside += ["/proc", "/sys", "/etc/ssl", "/usr", "/lib", "/dev/null", "/dev/urandom", "/dev/shm", str(work / "out")]
state = {"clip": "", "events": []}

def allowed(path):
    if isinstance(path, int):
        return True
    path = os.path.realpath(os.path.join(work, os.fsdecode(path)))
    probe = os.path.dirname(path) in (str(work), str(work / "out")) and os.path.basename(path).startswith((".", "tmp"))
    return path == state["clip"] or probe or any(path == p or path.startswith(p + os.sep) for p in inside)

def audit(event, args):
    if event in ("open", "os.listdir", "os.scandir") and args[0] is not None:
        if not allowed(args[0]):
            state["events"].append(f"{event} {args[0]!r}")
    elif event.startswith(("socket.", "subprocess.", "urllib.")) or event in ("os.system", "os.exec", "os.posix_spawn"):
        state["events"].append(f"{event} {args!r}")

sys.addaudithook(audit)
results = {}
for clip in sorted(root.iterdir()):
    state["clip"], state["events"] = str(clip), []
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = main(["replay", str(clip), "-o", str(work / "out" / f"{clip.stem}.mp4"), "--quiet"])
    results[clip.stem] = {"code": code, "stderr": stderr.getvalue(), "events": state["events"]}
print(json.dumps(results))
"""
"""Replays every clip of a folder; prints the exit code, stderr and audit events of each as JSON."""


def hostile(secret: Path) -> dict[str, dict[str, Any]]:
    """Recipes by name; ``secret`` is an image that none of them may open."""
    plain = {"model": "zoetrope/tiny", "request": ASK}
    pocket = {"model": POCKET, "request": ASK}
    path, animate = str(secret), {**ASK, "task": "animate"}

    def animating(**fields: Any) -> dict[str, Any]:
        return {**plain, "request": {**animate, **fields}}

    def extra(model: str, **options: Any) -> dict[str, Any]:
        return {"model": model, "request": {**ASK, "extra": options}, "extra_inputs": {path: "00"}}

    return {
        "hub": {**plain, "model": "someone/tracker", "weights": "sha256:00"},
        "hub-file": {**plain, "model": "someone/tracker/model.safetensors", "weights": "sha256:00"},
        "hub-without-hash": {**plain, "model": "someone/tracker"},
        "hub-prefix": {**plain, "model": "hub:someone/tracker"},
        "alias": {**plain, "model": "svd", "weights": "sha256:00"},
        "alias-variant": {**plain, "model": SVD, "variant": "fp16", "weights": "sha256:00"},
        "hub-url": {**plain, "model": "https://example.org/model.safetensors"},
        "bert": {"model": "vdm/tiny", "overrides": {"text": "bert"}, "request": ASK},
        "model-file": {**plain, "model": path},
        "model-folder": {**plain, "model": str(secret.parent)},
        "model-relative": {**plain, "model": f"./{secret.name}"},
        "image": animating(image=path),
        "image-hash": {**animating(image=path), "inputs": {"image": "00"}},
        "image-relative": animating(image=f"{secret.parent.name}/{secret.name}"),
        "image-zero": {**animating(image="/dev/zero"), "inputs": {"image": "00"}},
        "image-url": animating(image="http://example.org/ball.png"),
        "image-in-generate": {**plain, "request": {**ASK, "image": path}},
        "last-image": animating(last_image=path),
        "mask": animating(mask=path),
        "keyframe": animating(keyframes={"1": path}),
        "keyframe-hash": {
            **animating(keyframes={"0": path, "1": path}),
            "inputs": {"keyframe 0": "00", "keyframe 1": "00"},
        },
        "keyframe-in-generate": {**plain, "request": {**ASK, "keyframes": {"0": path}}},
        "keyframe-name": animating(keyframes={f"0={path}": path}),
        "keyframes-typed": animating(keyframes=[[path] * 99]),
        "video": {**plain, "request": {**ASK, "task": "extend", "video": path}},
        "video-folder": {**plain, "request": {**ASK, "task": "edit", "video": str(secret.parent)}},
        "hash-alone": {**plain, "inputs": {"image": "00"}, "extra_inputs": {path: "00"}},
        "mask-of-region": extra(POCKET, effect={path: 0.5}),
        "control": extra(POCKET, control=path),
        "control-by-name": extra(POCKET, **{"control.depth": path}),
        "ip-image": extra(POCKET, ip_image={"0": [path]}),
        "scribble": extra(POCKET, scribble={"0": path}),
        "extra-of-another-family": {**extra("zoetrope/tiny", control=path), "family": POCKET},
        "lora": {**pocket, "loras": [{"file": path, "weight": 1, "hash": "00"}]},
        "lora-hub": {**pocket, "loras": [{"file": "someone/tracker", "weight": 1, "hash": "00"}]},
        "lora-of-request": {**pocket, "request": {**ASK, "loras": {path: 1.0}}},
        "added": {**pocket, "added": [{"slot": "motion", "file": path, "hash": "00"}]},
        "added-hub": {**pocket, "added": [{"slot": "motion", "file": "guoyww/animatediff/v3.ckpt", "hash": "00"}]},
        "device": {**plain, "device": "meta"},
        "threads": {**plain, "threads": 2**31},
        "overrides": {**plain, "overrides": {"depth": 10**9}},
        "overrides-typed": {**plain, "overrides": {"words": {"a": path}}},
        "request-typed": {**plain, "request": {**ASK, "frames": [10**9]}},
        "request-text": {**plain, "request": "[" * 100_000},
        "sizes": {**plain, "request": {**ASK, "frames": 4096, "height": 8192, "width": 8192}},
        "spans-many": {**plain, "request": {**ASK, "prompt_spans": {str(i): "x" * 10_000 for i in range(999)}}},
        "spans-quoted": {**plain, "request": {**ASK, "prompt_spans": {"x" * 10_000: "x"}}},
        "extra-deep": {**plain, "request": {**ASK, "extra": {"per_frame": [[[[["x" * 10_000]]]]]}}},
        "extra-quoted": extra(POCKET, **{name: [["x" * 10_000] * 99] for name in ("clip_skip", "travel")}),
        "scale-quoted": extra(POCKET, effect=[["x" * 10_000] * 99]),
        "ip-image-quoted": extra(POCKET, ip_image={"x" * 10_000: path}),
        "scribble-quoted": extra(POCKET, scribble=[["x" * 10_000] * 99]),
        "extra-name": extra(POCKET, **{"x" * 10_000: 1}),
        "request-name": {**plain, "request": {**ASK, "x" * 10_000: 1}},
        "preset": {**plain, "model": "zoetrope/" + "x" * 10_000},
        "sampler": {**plain, "request": {**ASK, "sampler": "x" * 10_000}},
        "zoom": {**plain, "zoom": 10**12},
        "paths": {**plain, "paths": {"model": path, "image": path}},
        "plain": plain,
    }


GOOD = {"paths", "plain", "threads"}
"""The recipes that name nothing they may not open."""


def write_clip(recipe: dict[str, Any], path: Path) -> None:
    """Write a small file with this recipe, in the format of its suffix."""
    if path.suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("kinema", json.dumps(recipe))
        Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    else:
        Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save(path)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Exit code, stderr and audit events of each hostile recipe."""
    base = tmp_path_factory.mktemp("hostile")
    clips, work = base / "clips", base / "work"
    for folder in (clips, work / "out", work / "mine", base / "hub"):
        folder.mkdir(parents=True)
    secret = work / "mine" / "diary.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    for number, (name, recipe) in enumerate(hostile(secret).items()):
        write_clip(recipe, clips / f"{name}.{'png' if number % 5 else 'mp4'}")

    environment = {"HF_HOME": str(base / "hub"), "TMPDIR": str(work / "out")}
    process = subprocess.run(
        [sys.executable, "-c", AUDIT, str(clips), str(work)],
        check=False,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | environment,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_no_recipe_opens_a_socket_or_a_file_of_the_user(replayed):
    assert len(replayed) >= 40
    assert {name: result["events"] for name, result in replayed.items() if result["events"]} == {}


def test_each_is_replayed_or_refused_in_one_short_line(replayed):
    for name, result in replayed.items():
        assert result["code"] == (0 if name in GOOD else 2), (name, result)
        assert result["stderr"].count("\n") == 1, (name, result)
        assert len(result["stderr"]) < 400, (name, result)
