"""What previews cost: steps of svd-pocket with none, with 4 a second, and with 4 a second written to a file.

    python benchmarks/previews.py                    # medians of alternating runs, as ratios
    python benchmarks/previews.py --sheet sheet.png  # instead: previews of every family beside what the codec decodes

The first is also told as the share of a second that 4 previews take, which other load on the machine blurs less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import kinema
from kinema.data import playroom
from kinema.events import Event, Preview, Step
from kinema.previews import PreviewFile, Previews, latent_rgb, pictured
from kinema.schema import Clip as Written

RATE, SIDE = 4.0, 128


def first(folder: Path) -> Path:
    video = torch.from_numpy(playroom.sample(77, frames=1).video_CTHW)[None]
    return Written(video).save(folder / "first.png")[0]


def a_step(model: Any, image: Path, steps: int, preview: Any, heard: Callable[[Event], None]) -> float:
    """Seconds from one step to the next, median; the first is left out, since kernels are chosen in it."""
    at: list[float] = []

    def listen(event: Event) -> None:
        heard(event)
        if isinstance(event, Step):
            at.append(time.perf_counter())

    model.animate(image, seed=1, steps=steps, on_event=listen, preview=preview)
    return (at[-1] - at[1]) / (len(at) - 2)


def timed(run: Callable[[], Any], times: int) -> tuple[float, float]:
    """Seconds on the clock and of this thread on a core, medians."""
    wall, core = [], []
    for _ in range(times):
        began, worked = time.perf_counter(), time.thread_time()
        run()
        wall.append(time.perf_counter() - began)
        core.append(time.thread_time() - worked)
    return median(wall), median(core)


def cost(folder: Path, rounds: int, steps: int) -> None:
    model, image = kinema.load("svd-pocket"), first(folder)
    began = time.perf_counter()
    latent_rgb(model.system)  # also reads the weights
    print(f"load and fit, once: {time.perf_counter() - began:.2f} s; load average {os.getloadavg()[0]:.1f}")
    ways: dict[str, list[float]] = {"none": [], "4 a second": [], "to a png": [], "to a webp": []}
    files = {way: PreviewFile(folder / f"look.{way[5:]}", overwrite=True) for way in ("to a png", "to a webp")}
    for _ in range(rounds):
        for way, taken in ways.items():
            file = files.get(way)
            asked = False if way == "none" else file.asked if file else Previews(RATE, SIDE)

            def heard(event: Event, file: PreviewFile | None = file) -> None:
                if isinstance(event, Preview) and file is not None:
                    file.write(event)

            taken.append(a_step(model, image, steps, asked, heard))
    for way, taken in ways.items():
        ratio = median(t / none for t, none in zip(taken, ways["none"], strict=True))
        print(f"{way:12} {1e3 * median(taken):7.1f} ms a step, {ratio:.3f} times that without")
    alone(model, files)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def alone(model: Any, files: dict[str, PreviewFile]) -> None:
    """The time of one preview by itself, as the share of a second that 4 take."""
    x0, rgb = torch.randn(1, 16, 14, 8, 8), latent_rgb(model.system)
    for way, asked in (("4 a second", Previews(RATE, SIDE)), *((way, file.asked) for way, file in files.items())):

        def one(way: str = way, asked: Previews = asked) -> None:
            preview = Preview(1, 2, pictured(x0, rgb, (64, 64), asked.frames))
            if way in files:
                files[way].write(preview)

        wall, core = timed(one, 100)
        told = f"{1e3 * wall:.2f} ms on the clock, {1e3 * core:.2f} ms of a core"
        print(f"{way:12} a preview takes {told}: {RATE * core:.2%} of a second for {RATE:g}")


def sheet(folder: Path, path: Path, steps: int = 12) -> None:
    """Of each model three rows of pairs: x0 as previewed, x0 decoded; after a few steps, half of them, and all."""
    image, rows = first(folder), []
    for name in ("zoetrope", "svd-pocket", "animatediff-pocket", "vdm/tiny", "svd/tiny", "animatediff/tiny"):
        model, heard = kinema.load(name), list[Event]()
        words = model.system.family.sampling.defaults(model.system.config).takes_prompt
        ask = {"seed": 3, "steps": steps, "on_event": heard.append, "preview": Previews(1e6, SIDE)}
        if words:
            model.generate("a red ball rolls right", **ask)
        else:
            model.animate(image, **ask)
        looks = [event for event in heard if isinstance(event, Preview)]
        x0 = [event.x0 for event in heard if isinstance(event, Step)]
        for at in (1, steps // 2, steps - 1):
            decoded = model.system.decode(x0[at])[0]
            kept = [round(i * (decoded.shape[1] - 1) / 2) for i in range(3)]
            pixels = decoded[:, kept].add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
            pairs = torch.cat([strip(looks[at].picture), strip(pixels)], dim=1)
            rows.append(torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, 4), value=255))
        rows.append(torch.full((6, rows[-1].shape[1], 3), 255, dtype=torch.uint8))
    Written(torch.cat(rows).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1).save(path)


def strip(frames_THWC: torch.Tensor) -> torch.Tensor:
    """Three frames side by side, 96 pixels high."""
    side = torch.nn.functional.interpolate(frames_THWC.permute(0, 3, 1, 2).float(), (96, 96), mode="nearest")
    return side.permute(2, 0, 3, 1).reshape(96, -1, 3).to(torch.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        if told.sheet:
            sheet(Path(where), told.sheet)
        else:
            cost(Path(where), told.rounds, told.steps)
