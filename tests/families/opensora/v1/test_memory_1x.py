"""The published Open-Sora 1.x within the memory of a GPU: which plan is chosen, measured on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.v1.config import PRESETS
from kinema.job import build_job, planning_canvas
from kinema.memory.plan import SHARE, MemoryPlan, Needs, choose
from kinema.schema import Request
from kinema.system import MemoryOptions, System, WeightPolicy, Weights

GIB = 2**30
BF16 = WeightPolicy(torch.bfloat16, torch.bfloat16)
Asked = Callable[..., tuple[MemoryPlan, Needs]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, sparse: Callable[..., Path]) -> Asked:
    folder = tmp_path_factory.mktemp("full")

    def ask(preset: str, free: int, frames: int, height: int, width: int) -> tuple[MemoryPlan, Needs]:
        """The plan on a GPU of which ``free`` GiB are free. Nothing is loaded, and no prompt is read."""
        path, config = folder / f"{preset}.safetensors", PRESETS[preset]
        if not path.is_file():
            sparse(path, config)
        memory = MemoryOptions(budget=int(SHARE * free * GIB))
        system = System(preset, FAMILY, config, Weights(path), torch.device("cuda"), BF16, memory=memory)
        request = Request(prompt="waves", seed=0, frames=frames, height=height, width=width)
        (work,) = build_job(system, request)
        needs = Needs(system, work.stage.whole, planning_canvas(work))
        return choose(system, needs.request, needs.canvas), needs

    return ask


@pytest.mark.parametrize(
    ("preset", "frames", "height", "width", "weights"),
    [
        ("v1.0", 16, 256, 256, 1.57),
        ("v1.1", 16, 240, 424, 1.59),
        ("v1.2", 51, 240, 424, 2.98),
        ("v1.3-360p", 17, 360, 640, 2.73),
    ],
)
def test_the_published_sizes_fit_whole_into_24_gib(  # noqa: PLR0917
    asked: Asked, preset: str, frames: int, height: int, width: int, weights: float
) -> None:
    plan, needs = asked(preset, 24, frames, height, width)
    assert needs.weights / GIB == pytest.approx(weights, abs=0.01)
    assert (plan.offload, plan.decoding or {}) == ("none", {})


def test_the_published_1_2_fits_into_the_memory_that_is_planned(asked: Asked) -> None:
    plan, needs = asked("v1.2", 12, 51, 480, 852)
    assert needs.step(None).peak / GIB == pytest.approx(0.48, rel=0.1)
    assert needs.decode({}).peak / GIB == pytest.approx(0.71, rel=0.1)
    assert (plan.offload, plan.decoding) == ("none", {})
    assert plan.need is not None
    assert plan.need / GIB == pytest.approx(5.56, rel=0.1)
    assert needs.weights < plan.need <= plan.budget


@pytest.mark.parametrize(("free", "offload", "need"), [(4, "model", 3.40), (3, "block", 2.58)])
def test_1_2_offloads_weights_where_they_do_not_fit(asked: Asked, free: int, offload: str, need: float) -> None:
    plan, needs = asked("v1.2", free, 51, 240, 424)
    assert plan.offload == offload
    assert plan.need is not None
    assert plan.need / GIB == pytest.approx(need, rel=0.1)
    assert plan.need <= plan.budget < needs.bytes(MemoryPlan("none", decoding={}))


def test_1_3_offloads_its_transformer_while_it_decodes_360p_on_8_gib(asked: Asked) -> None:
    plan, needs = asked("v1.3-360p", 8, 17, 360, 640)
    assert needs.decode({}).peak / GIB == pytest.approx(4.1, rel=0.1)
    assert (plan.offload, plan.decoding) == ("model", {})
