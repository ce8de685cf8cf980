"""Cost of previews: steps of svd-pocket with none, with 4 per second, and with 4 per second written to a file.

    python benchmarks/previews.py                    # medians of alternating runs, as ratios
    python benchmarks/previews.py --sheet sheet.png  # instead: previews of every family next to decoded frames

The first is also reported as the share of a second that 4 previews take, which depends less on other load.
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
from kinema.previews import PreviewFile, Previews, latent_rgb, preview_frames
from kinema.schema import Clip as Written

RATE, SIDE = 4.0, 128


def first(folder: Path) -> Path:
    video = torch.from_numpy(playroom.sample(77, frames=1).video_CTHW)[None]
    return Written(video).save(folder / "first.png")[0]


def seconds_per_step(model: Any, image: Path, steps: int, preview: Any, handle: Callable[[Event], None]) -> float:
    """Median seconds from one step to the next, without the first, in which kernels are selected."""
    at: list[float] = []

    def listen(event: Event) -> None:
        handle(event)
        if isinstance(event, Step):
            at.append(time.perf_counter())

    model.animate(image, seed=1, steps=steps, on_event=listen, preview=preview)
    return (at[-1] - at[1]) / (len(at) - 2)


def timed(run: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median wall-clock seconds, and CPU seconds of this thread."""
    wall, cpu = [], []
    for _ in range(times):
        began, cpu_began = time.perf_counter(), time.thread_time()
        run()
        wall.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - cpu_began)
    return median(wall), median(cpu)


def cost(folder: Path, rounds: int, steps: int) -> None:
    model, image = kinema.load("svd-pocket"), first(folder)
    began = time.perf_counter()
    latent_rgb(model.system)  # also reads the weights
    print(f"load and fit, once: {time.perf_counter() - began:.2f} s; load average {os.getloadavg()[0]:.1f}")
    modes: dict[str, list[float]] = {"none": [], "4 per second": [], "to a png": [], "to a webp": []}
    files = {mode: PreviewFile(folder / f"look.{mode[5:]}", overwrite=True) for mode in ("to a png", "to a webp")}
    for _ in range(rounds):
        for mode, times in modes.items():
            file = files.get(mode)
            previews = False if mode == "none" else file.asked if file else Previews(RATE, SIDE)

            def handle(event: Event, file: PreviewFile | None = file) -> None:
                if isinstance(event, Preview) and file is not None:
                    file.write(event)

            times.append(seconds_per_step(model, image, steps, previews, handle))
    for mode, times in modes.items():
        ratio = median(t / none for t, none in zip(times, modes["none"], strict=True))
        print(f"{mode:12} {1e3 * median(times):7.1f} ms per step, {ratio:.3f} times that without previews")
    alone(model, files)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def alone(model: Any, files: dict[str, PreviewFile]) -> None:
    """Time of one preview, as the share of a second that 4 take."""
    x0, rgb = torch.randn(1, 16, 14, 8, 8), latent_rgb(model.system)
    for mode, previews in (
        ("4 per second", Previews(RATE, SIDE)),
        *((mode, file.asked) for mode, file in files.items()),
    ):

        def one(mode: str = mode, previews: Previews = previews) -> None:
            preview = Preview(1, 2, preview_frames(x0, rgb, (64, 64), previews.frames))
            if mode in files:
                files[mode].write(preview)

        wall, cpu = timed(one, 100)
        timing = f"{1e3 * wall:.2f} ms wall clock, {1e3 * cpu:.2f} ms CPU"
        print(f"{mode:12} a preview takes {timing}: {RATE * cpu:.2%} of a second for {RATE:g}")


EVERY = (
    *("zoetrope", "svd-pocket", "animatediff-pocket", "lumiere-pocket", "lumiere-pocket-sr", "opensora-pocket"),
    *("vdm/tiny", "svd/tiny", "animatediff/tiny", "lumiere/tiny", "opensora/tiny", "opensora/tiny-dc-ae"),
    *("opensora/tiny-1.0", "opensora/tiny-1.1", "opensora/tiny-1.2", "opensora/tiny-1.3"),
)


def sheet(folder: Path, path: Path, steps: int = 12) -> None:
    """For each model, three rows of pairs: previewed x0 and decoded x0, after two steps, half of them, and all."""
    image, rows = first(folder), []
    small = kinema.load("lumiere-pocket").generate("a red ball rolls right", seed=3, super_resolution="none")
    clip = small.save(folder / "small.png")[0].with_suffix("") if small.shape.frames > 1 else image
    for name in EVERY:
        model, events = kinema.load(name), list[Event]()
        own = model.system.family.sampling.defaults(model.system.config)
        arguments = {"seed": 3, "steps": steps, "on_event": events.append, "preview": Previews(1e6, SIDE)}
        if name == "lumiere-pocket-sr":
            model.upscale(clip, "a red ball rolls right", **arguments)
        elif own.takes_prompt:
            model.generate("a red ball rolls right", super_resolution="none", **arguments)
        else:
            model.animate(image, **arguments)
        preview_events = [event for event in events if isinstance(event, Preview)]
        x0 = [event.x0 for event in events if isinstance(event, Step)]
        for at in (1, steps // 2, steps - 1):
            decoded = model.system.decode(x0[at])[0]
            indices = [round(i * (decoded.shape[1] - 1) / 2) for i in range(3)]
            pixels = decoded[:, indices].add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
            pairs = torch.cat([strip(preview_events[at].picture), strip(pixels)], dim=1)
            rows.append(torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, 4), value=255))
        rows.append(torch.full((6, rows[-1].shape[1], 3), 255, dtype=torch.uint8))
    Written(torch.cat(rows).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1).save(path)


def strip(frames_THWC: torch.Tensor) -> torch.Tensor:
    """Three frames in a row, 96 pixels high."""
    side = torch.nn.functional.interpolate(frames_THWC.permute(0, 3, 1, 2).float(), (96, 96), mode="nearest")
    return side.permute(2, 0, 3, 1).reshape(96, -1, 3).to(torch.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        if options.sheet:
            sheet(Path(where), options.sheet)
        else:
            cost(Path(where), options.rounds, options.steps)
