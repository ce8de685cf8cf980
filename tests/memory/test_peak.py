"""Offloading lowers a process's peak resident memory, as the kernel reports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinema import registry
from kinema.checkpoints import files
from kinema.families.svd.config import TINY

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="this system does not report a process's peak memory")

RUN = """
import torch
torch.set_num_threads(1)
import kinema
model = kinema.load({path!r}, offload={offload!r})
clip = model.run(kinema.Request(prompt=" ", seed=0, steps=1))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, clip.recipe["frames_hash"])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of about 230 MB that generates two frames."""
    config = replace(TINY, frames=2, channels=(256, 384), heads=(4, 6))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    family = registry.family("svd")
    note = json.dumps({"family": "svd", "config": family.to_json(config)})
    files.write_tensors(path, family.build(config).state_dict(), {"kinema": note})
    return path


def run(path, offload):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(path=str(path), offload=offload)],
        capture_output=True, text=True, check=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peak, frames_hash = done.stdout.split()
    return int(peak), frames_hash


@pytest.mark.parametrize("offload", ["block", "sequential"])
def test_block_wise_offloading_never_holds_all_weights(large, offload):
    size = large.stat().st_size
    assert size > 120e6
    (resident, first), (offloaded, second) = run(large, "none"), run(large, offload)
    assert first == second
    assert resident - offloaded > 0.6 * size
