"""Record losses and masks of Open-Sora 1.x's own training code: python tools/record_opensora_training.py REPO

REPO is a git repository of github.com/hpcaitech/Open-Sora, as for `record_opensora_samplers`, whose surroundings of the
original are used. A network of fixed output stands in for the transformer. What is recorded goes to
tests/families/opensora/recorded/training.safetensors.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import torch
from record_opensora_samplers import COMMITS, HERE, normal, package, upstream
from safetensors.torch import save_file
from torch import Tensor

SHAPE = (3, 4, 6, 4, 2)
"""Latents, B×C×T×H×W."""
GENERATED = [[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
STEPS = {"early": (0, 1, 2), "late": (700, 350, 999)}
TIME = 350.0
INDEX = [0, 5]
MASK_FRAMES = (2, 5, 15, 16)
DRAWS = 3000
KINDS = {
    "1.1": ("mask_quarter_random", "mask_quarter_head", "mask_quarter_tail", "mask_quarter_head_tail",
            "mask_image_random", "mask_image_head", "mask_image_tail", "mask_image_head_tail"),
    "1.2": ("quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail", "image_random", "image_head",
            "image_tail", "image_head_tail", "intepolate"),
    "1.3": ("i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_head_noisy", "v2v_tail", "other"),
}  # fmt: skip


class Network:
    """Returns a fixed output, and keeps what it is called with."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.module = types.SimpleNamespace(y_embedder=types.SimpleNamespace(y_embedding=torch.full((5, 3), 7.0)))

    def __call__(self, z: Tensor, time: Tensor, **inputs: Any) -> Tensor:
        self.seen = {"z": z, "time": time, **inputs}
        return 0.7 * normal(3, SHAPE[0], 2 * SHAPE[1], *SHAPE[2:])


def iddpm(repository: str) -> dict[str, Tensor]:
    """1.1's loss for each clip, early and late, with and without given frames; its schedule in float64."""
    found: dict[str, Tensor] = {}
    with upstream(repository, "1.1"):
        module = importlib.import_module("opensora.schedulers.iddpm")
        module.gd.GaussianDiffusion.__init__.__kwdefaults__["device"] = "cpu"
        single, torch.FloatTensor = torch.FloatTensor, torch.DoubleTensor
        scheduler = module.IDDPM(timestep_respacing="")
        torch.FloatTensor = single
        for name, steps in STEPS.items():
            for masked in (True, False):
                network, mask = Network(), torch.tensor(GENERATED).bool() if masked else None
                terms = scheduler.training_losses(
                    network, normal(1, *SHAPE), torch.tensor(steps), {}, noise=normal(2, *SHAPE), mask=mask
                )
                key = f"iddpm.{name}.{'masked' if masked else 'free'}"
                found[f"{key}.loss"], found[f"{key}.z"] = terms["loss"].float(), network.seen["z"].float()
    return found


def flow_1_2(repository: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with upstream(repository, "1.2"):
        scheduler = importlib.import_module("opensora.schedulers.rf").RFLOW(use_timestep_transform=True)
        network = Network()
        time = torch.full((SHAPE[0],), TIME)
        terms = scheduler.training_losses(
            network, normal(1, *SHAPE), {}, noise=normal(2, *SHAPE), mask=torch.tensor(GENERATED).bool(), t=time
        )
        found = {"1.2.loss": terms["loss"], "1.2.z": network.seen["z"], "1.2.time": network.seen["time"]}
    return found


def flow_1_3(repository: str) -> dict[str, Tensor]:
    """For each kind of drop: the loss, what the network sees, and whether its text is the null text."""
    found: dict[str, Tensor] = {}
    with upstream(repository, "1.3"):
        module = importlib.import_module("opensora.schedulers.rf.rectified_flow")
        for kind in ("keep", "cond", "text", "null"):
            network = Network()
            scheduler = module.RFlowScheduler(drop_condition={kind: 1.0})
            terms = scheduler.training_losses(
                network, normal(1, *SHAPE), {"y": torch.ones(SHAPE[0], 1, 5, 3)}, noise=normal(2, *SHAPE),
                t=torch.full((SHAPE[0],), TIME), mask_index=INDEX, x_noisy_ref=normal(4, *SHAPE),
            )  # fmt: skip
            seen = network.seen
            found |= {f"1.3.{kind}.{name}": seen[name] for name in ("z", "cond", "cond_mask", "y")}
            found[f"1.3.{kind}.loss"] = terms["loss"]
    return found


def masks(repository: str) -> dict[str, Tensor]:
    """Every mask that comes up in many draws of each kind, in order: 1 at given frames."""
    found: dict[str, Tensor] = {}
    for version, kinds in KINDS.items():
        with upstream(repository, version):
            package("colossalai.booster")
            package("colossalai.booster.plugin", LowLevelZeroPlugin=None)
            package("opensora.acceleration")
            package("opensora.acceleration.parallel_states", set_data_parallel_group=None,
                    set_sequence_parallel_group=None)  # fmt: skip
            package("opensora.acceleration.plugin", ZeroSeqParallelPlugin=None)
            package("opensora.utils.misc", get_logger=lambda: types.SimpleNamespace(info=lambda *_: None))
            module = importlib.import_module("opensora.utils.train_utils")
            for kind in kinds:
                for frames in MASK_FRAMES:
                    random.seed(0)
                    rows = {row for _ in range(DRAWS) if (row := _drawn(module, version, kind, frames)) is not None}
                    if rows:
                        name = f"masks.{version}.{kind.removeprefix('mask_')}.{frames}"
                        found[name] = torch.tensor(sorted(rows), dtype=torch.uint8)
    return found


def _drawn(module: Any, version: str, kind: str, frames: int) -> tuple[int, ...] | None:
    """One mask; None where the original fails, which it does for clips of few frames."""
    try:
        if version == "1.3":
            index = module.get_mask_index(kind, frames)
            return tuple(int(frame in index) for frame in range(frames))
        mask = module.MaskGenerator({kind: 1.0}).get_mask(torch.zeros(1, 1, frames, 1, 1))
        return tuple(int(not each) for each in mask)
    except ValueError:
        return None


def main(repository: str) -> None:
    torch.set_grad_enabled(False)
    tensors = iddpm(repository) | flow_1_2(repository) | flow_1_3(repository) | masks(repository)
    metadata = {"commits": json.dumps(COMMITS), "script": Path(__file__).name}
    save_file({name: each.contiguous() for name, each in tensors.items()}, HERE / "training.safetensors", metadata)


if __name__ == "__main__":
    main(*sys.argv[1:])
