"""Hash the float pixels of about forty clips, to prove that a code change does not change results.

    python benchmarks/clip_hashes.py --out before.json     # before the change
    python benchmarks/clip_hashes.py --against before.json # after it, on the same machine: lists differences

Covers every family's tiny preset and the bundled models with the six tasks, windows, blocks, FreeInit, offload, LoRAs,
edit strengths and VDM's super-resolution. Inputs are png frames, to exclude video codecs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import kinema
from kinema.data import playroom
from kinema.provenance import frames_hash
from kinema.schema import Clip as Written

PROMPT, OTHER = "a red ball rolls right", "a blue box slides left"
FAMILIES = ("zoetrope", "vdm", "svd", "animatediff")
Make = Callable[[], str]


def inputs(folder: Path) -> dict[str, str]:
    """Write a playroom clip and two images as png files."""
    rendered = playroom.sample(3, frames=8, height=64, width=64, fps=8.0)
    video = torch.from_numpy(rendered.video_CTHW)[None]
    Written(video, 8.0).save(folder / "clip")
    Written(video[:, :, :1], 8.0).save(folder / "first.png")
    Written(video[:, :, -1:], 8.0).save(folder / "last.png")
    return {"video": str(folder / "clip"), "image": str(folder / "first.png"), "last_image": str(folder / "last.png")}


def verbs(model: Any, paths: dict[str, str], **more: Any) -> Iterator[tuple[str, Make]]:
    """The six tasks with few steps."""

    def of(verb: str, *args: Any, **options: Any) -> Make:
        return lambda: frames_hash(getattr(model, verb)(*args, seed=11, steps=3, **more, **options).video)

    words = model.system.family.sampling.defaults(model.system.config).takes_prompt
    if words:
        yield "generate", of("generate", PROMPT)
    yield "animate", of("animate", paths["image"], PROMPT)
    yield "animate ends", of("animate", paths["image"], PROMPT, last_image=paths["last_image"])
    yield "extend", of("extend", paths["video"], prompt=PROMPT, keep=2, frames=6)
    yield "extend backward", of("extend", paths["video"], prompt=PROMPT, keep=2, frames=6, backward=True)
    yield "interpolate", of("interpolate", paths["video"], prompt=PROMPT, every=2, frames=7)
    yield "inpaint", of("inpaint", paths["video"], PROMPT, region=(0.25, 0.25, 0.75, 0.75))
    yield "edit", of("edit", paths["video"], PROMPT, strength=0.7)


def clips(folder: Path) -> Iterator[tuple[str, Make]]:
    paths = inputs(folder)
    for family in FAMILIES:
        model = kinema.load(family, preset="tiny")
        yield from ((f"{family}/tiny {name}", make) for name, make in verbs(model, paths))

    def one(model: Any, **options: Any) -> Make:
        return lambda: frames_hash(model.generate(seed=5, **{"prompt": PROMPT, "steps": 3, **options}).video)

    vdm, zoetrope = kinema.load("vdm", preset="tiny"), kinema.load("zoetrope", preset="tiny")
    animatediff, svd = kinema.load("animatediff", preset="tiny"), kinema.load("svd", preset="tiny")
    windows = {"frames": 12, "window": 4, "overlap": 2}
    yield "vdm windows", one(vdm, **windows)
    yield "vdm windows uniform", one(vdm, **windows, window_places="uniform", window_weights="flat")
    yield "vdm loop", one(vdm, **windows, loop=True)
    yield "vdm blocks", one(vdm, frames=20, guidance=2.0, guidance_end=4.0)
    yield "vdm rescale", one(vdm, guidance=3.0, guidance_rescale=0.7, clips=2)
    yield (
        "vdm replacement",
        lambda: frames_hash(vdm.animate(paths["image"], PROMPT, seed=5, steps=3, honour="replacement").video),
    )
    yield "zoetrope interval", one(zoetrope, guidance=3.0, guidance_interval=(-2.0, 2.0), negative_prompt=OTHER)
    freenoise = {**windows, "window_in": "attention", "noise_type": "shuffle-context"}
    yield "animatediff attention windows", one(animatediff, **freenoise)
    yield "animatediff FreeInit", one(animatediff, free_init=2)
    yield "svd blocks", lambda: frames_hash(svd.animate(paths["image"], seed=5, steps=2, frames=15).video)
    for sampler in ("ddim", "dpmpp-2m", "heun", "unipc", "vdm-langevin"):
        yield (
            f"vdm held, {sampler}",
            lambda sampler=sampler: frames_hash(
                vdm.animate(paths["image"], PROMPT, seed=5, steps=3, sampler=sampler).video
            ),
        )
    for strength in (0.3, 0.55, 1.0):
        yield (
            f"edit {strength}",
            lambda strength=strength: frames_hash(
                vdm.edit(paths["video"], OTHER, seed=5, steps=7, strength=strength).video
            ),
        )
    for sampler in ("ddim", "dpmpp-2m", "dpmpp-sde", "heun", "unipc", "lcm", "vdm-langevin"):
        yield f"vdm {sampler}", one(vdm, sampler=sampler, guidance=2.0)
    yield "vdm super-resolution", lambda: cascade(vdm)
    yield from embedded(paths)


def embedded(paths: dict[str, str]) -> Iterator[tuple[str, Make]]:
    for name in ("zoetrope", "svd-pocket", "animatediff-pocket"):
        model = kinema.load(name)
        some = [(verb, make) for verb, make in verbs(model, paths) if verb in ("generate", "animate", "inpaint")]
        yield from ((f"{name} {verb}", make) for verb, make in some)
    for level in ("model", "block", "sequential"):
        offloaded = kinema.load("svd-pocket", offload=level)
        yield (
            f"svd-pocket {level}",
            lambda offloaded=offloaded: frames_hash(offloaded.animate(paths["image"], seed=5, steps=2).video),
        )
    moved = kinema.load("animatediff-pocket", loras={"animatediff-pocket-pans-left": 1.0})
    yield "animatediff-pocket LoRA", lambda: frames_hash(moved.generate(PROMPT, seed=5, steps=3).video)
    half = kinema.load("animatediff-pocket", loras={"animatediff-pocket-zooms-in": 0.5}, offload="block")
    yield "animatediff-pocket LoRA block", lambda: frames_hash(half.generate(PROMPT, seed=5, steps=3).video)


def cascade(model: Any) -> str:
    """A super-resolution stage of twice the side: the same network, designed for smaller frames."""
    large = kinema.load("vdm", preset="tiny", overrides={"side": 32})
    model.system.runtime.beside("large", lambda: large.system)
    return frames_hash(model.generate(PROMPT, seed=5, steps=3, super_resolution="large").video)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(options.against.read_text()) if options.against else {}
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in clips(Path(folder)):
            if options.only not in name:
                continue
            try:
                hashes[name] = make()
            except kinema.BadRequest as error:
                hashes[name] = f"refused: {error}".replace(folder, "FOLDER")
            differs = name in before and before[name] != hashes[name]
            print(f"{'DIFFERS ' if differs else ''}{name}: {hashes[name][:100]}", flush=True)
    changed = [name for name in hashes if before.get(name, hashes[name]) != hashes[name]]
    print(f"{len(hashes)} clips, {len(changed)} differ" if before else f"{len(hashes)} clips")
    if options.out:
        options.out.write_text(json.dumps(hashes, indent=1) + "\n")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
