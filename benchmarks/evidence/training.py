"""Train the models from scratch, with equal data, and equal operations where the protocol says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evidence import protocol
from benchmarks.evidence.protocol import COMMON, MODELS, Model
from kinema import registry
from kinema.checkpoints import files
from kinema.checkpoints.files import weight_hash
from kinema.data import playroom
from kinema.families.vdm import recipe
from kinema.families.vdm.config import Config, presets
from kinema.system import Batch, System, Weights, open_system
from kinema.training.options import TrainOptions
from kinema.training.run import train

SEED = 0
COMPILE = True
"""Whether the blocks are compiled; tests do without, since compiling takes longer than their steps."""


def weights(folder: Path, model: Model, on_event: Callable[[Any], None]) -> Path:
    """The averaged weights of a model: those of a finished run in ``folder``, or trained, resuming a stopped run.

    Exits with 130 if the training is interrupted.
    """
    done = folder / model.name / "finished.safetensors"
    if done.is_file():
        return done
    result = train(options(folder, model, on_event), on_event)
    if result.interrupted:
        print(f"{model.title}: stopped at step {result.step}; the same command resumes it")
        sys.exit(130)
    result.weights.replace(done)
    return done


def described(folder: Path, model: Model, file: Path) -> dict[str, Any]:
    """What the page says of a trained model; threads are those of this process."""
    last = json.loads((folder / model.name / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "title": model.title,
        "steps": last["step"],
        "operations": operations(model),
        "parameters": sum(p.numel() for p in registry.family("vdm").build(config(model)).parameters()),
        "threads": torch.get_num_threads(),
        "minutes": round(last["seconds"] / 60, 1),
        "weights": weight_hash(file),
    }


def options(folder: Path, model: Model, on_event: Callable[[Any], None]) -> TrainOptions:
    """The run of a model, which starts from the weights of the common stage; that from weights of the seed.

    Exits if the folder has a start from another common stage.
    """
    own, family = config(model), registry.family("vdm")
    start = folder / f"start-{model.name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    stage = None if model == COMMON else weights(folder, COMMON, on_event)
    common = "" if stage is None else weight_hash(stage)
    if not start.is_file():
        first = System("evidence", family, own, Weights(seed=SEED)) if stage is None else open_system(stage)
        tensors = first.model.state_dict()
        header = json.dumps({"family": "vdm", "config": family.to_json(own)})
        files.write_tensors(start, tensors, {"kinema": header, "from": common})
    elif files.metadata(start).get("from") != common:
        raise SystemExit(f"{start} has the weights of another common stage: delete it, and the folder {model.name}")
    return TrainOptions(
        model=str(start),
        out=str(folder / model.name),
        steps=steps(model),
        seed=SEED + (model != COMMON),
        grammar=protocol.GRAMMAR,
        precision="fp32",
        compile=COMPILE,
        save_every=100,
        sample_every=0,
        validate_every=300,
        keep=1,
    )


def config(model: Model) -> Config:
    """`vdm/pocket` at 32×32."""
    pocket = presets()["pocket"]
    training = replace(
        pocket.training,
        steps=_unmatched(model),
        batch=protocol.BATCH,
        learning_rate=protocol.LEARNING_RATE,
        optimiser="muon",
        images=model.images,
        per_frame=model.per_frame,
    )
    side, attention = protocol.SIDE, protocol.WIDTHS
    own = {"side": side, "frames": protocol.FRAMES, "attention_sides": attention}
    return replace(pocket, **own, target=protocol.TARGET, shift=protocol.SHIFT, training=training)


def steps(model: Model) -> int:
    """Optimiser steps of a model; if its operations are matched, as many as cost what the video model's do."""
    if not model.matched:
        return _unmatched(model)
    return round(protocol.STEPS * operations(MODELS["video"]) / operations(model))


def _unmatched(model: Model) -> int:
    return protocol.COMMON_STEPS if model == COMMON else protocol.STEPS


def operations(model: Model) -> int:
    """Floating-point operations of a training step, forward and backward, counted."""
    own = config(model)
    network, size = registry.family("vdm").build(own), {"frames": own.frames, "height": own.side, "width": own.side}
    clips = [playroom.sample(i, **size, fps=own.fps) for i in range(1 + own.training.images)]
    video = torch.from_numpy(clips[0].video_CTHW)[None]
    batch = Batch(video, [clips[0].caption], video[:, :1] * 0)
    if rest := clips[1:]:
        images = torch.stack([torch.from_numpy(clip.video_CTHW)[:, 0] for clip in rest])[None]
        batch = replace(batch, images=images, image_captions=[[clip.caption for clip in rest]])
    # The counter knows the two products of attention, not the fused operator.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        recipe.loss(network, own, batch, torch.Generator().manual_seed(0)).sum().backward()
    return own.training.batch * counter.get_total_flops()
