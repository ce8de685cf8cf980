"""Lumiere's construction at full size, and what halving the frames saves.

    python -m benchmarks.lumiere inflation     # Stable Diffusion 1.5's U-Net with random weights
    python -m benchmarks.lumiere cost          # time and activations per frame, 16 to 80 frames

``inflation`` compares frames with those of the image model.
``cost`` compares two networks of equal width and layers, one of which keeps all frames at every level. Activations are
counted on the meta device (`kinema.memory.rehearsal`), as bytes at the peak of a call; times are medians of alternating
runs. Prints tables, and writes results and a plot to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kinema.families.lumiere.config import Config, presets
from kinema.families.lumiere.unet import SpaceTimeUNet
from kinema.memory.rehearsal import Rehearsal
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import channels_last, silu_
from kinema.nn.meta import on_meta
from kinema.nn.sd_unet import BlockInputs, clips, images, run_down, run_mid, run_up

FRAMES = (16, 32, 48, 64, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("inflation", "cost"))
    parser.add_argument("--preset", default="pocket", help="of the cost")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    inflation() if options.what == "inflation" else cost(options)


def inputs(config: Config, frames: int, side: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(1, config.latent_channels, frames, side, side, generator=draw).to(dtype)
    return z, torch.tensor([500.0]), torch.randn(1, 77, config.context, generator=draw).to(dtype)


# ---------------------------------------------------------------------------------------- inflation


def inflation() -> None:
    """The largest difference of kept frames, and of all frames of a static clip, to the image model's."""
    config = presets()["sd15"]
    for dtype in (torch.float64, torch.float32):
        unet = SpaceTimeUNet(config).eval().to(dtype)
        channels_last(unet)
        z, step, context = inputs(config, 2 * config.factor, 16, dtype)
        for name, clip in (("kept frames", z), ("static clip", z[:, :, :1].expand_as(z))):
            ours, image = unet(clip, step, context), image_model(unet, clip, step, context)
            at = slice(None, None, config.factor if clip is z else 1)
            gap = float((ours[:, :, at] - image[:, :, at]).abs().max() / image.abs().max())
            print(f"{str(dtype).removeprefix('torch.')}  {name}: {gap:.1e} of the largest value")
        one = tuple(x[:, :, :1] if x.ndim == 5 else x for x in (z, step, context))
        print(f"  one frame: {'equal to the bit' if torch.equal(unet(*one), image_model(unet, *one)) else 'differs'}")


def image_model(unet: SpaceTimeUNet, z: Tensor, step: Tensor, context: Tensor) -> Tensor:
    """The image model on each frame: its own layers alone."""
    emb = silu_(unet.time_embedding(sinusoidal(step, unet.config.channels[0]).to(z)))
    told = BlockInputs(emb, context)
    x, skips = run_down(unet.down_blocks, unet.conv_in(images(z)), told)
    x = run_up(unet.up_blocks, run_mid(unet.mid_block, x, told), skips, told)
    return clips(unet.conv_out(silu_(unet.conv_norm_out(x))), z.shape[2])


# --------------------------------------------------------------------------------------------- cost


def cost(options: argparse.Namespace) -> None:
    config = presets()[options.preset]
    kinds = {"halved": config, "all frames": replace(config, resamples=False)}
    nets = {name: SpaceTimeUNet(each).eval() for name, each in kinds.items()}
    side = config.height // config.stride
    for net in nets.values():
        channels_last(net)
    rows = []
    for frames in FRAMES:
        seconds: dict[str, list[float]] = {name: [] for name in nets}
        told = inputs(config, frames, side)
        for _ in range(options.runs + 1):  # the first is a warm-up
            for name, net in nets.items():
                began = time.perf_counter()
                net(*told)
                seconds[name].append(time.perf_counter() - began)
        times = {name: statistics.median(each[1:]) / frames for name, each in seconds.items()}
        peaks = {name: peak(each, frames, side) / frames for name, each in kinds.items()}
        rows.append({"frames": frames, "seconds": times, "bytes": peaks})
        print(
            f"{frames:3d} frames: {1e3 * times['halved']:6.1f} ms a frame, {1e3 * times['all frames']:6.1f} without "
            f"halving ({times['halved'] / times['all frames']:.2f}); {peaks['halved'] / 2**20:6.2f} MiB a frame, "
            f"{peaks['all frames'] / 2**20:6.2f} ({peaks['halved'] / peaks['all frames']:.2f})"
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "preset": options.preset}
        (options.out / "lumiere-cost.json").write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
        plot(rows, options.out / "lumiere-cost.png")


def peak(config: Config, frames: int, side: int) -> int:
    """Bytes of activations at the peak of a call with gradients, as in training."""
    with on_meta():
        net = SpaceTimeUNet(config)
    rehearsal = Rehearsal({"unet": net})
    z, step, context = (x.to("meta") for x in inputs(config, frames, side))
    with torch.enable_grad(), rehearsal.phase("call"):
        net(z, step, context)
    return rehearsal.phases["call"].peak


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for axis, what, unit, label in (
        (axes[0], "seconds", 1e-3, "ms a frame"),
        (axes[1], "bytes", 2**20, "MiB of activations a frame (training)"),
    ):
        for name in rows[0][what]:
            axis.plot([row["frames"] for row in rows], [row[what][name] / unit for row in rows], "o-", label=name)
        axis.set_xlabel("frames")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.2 * max(row[what][name] for row in rows for name in row[what]) / unit)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
