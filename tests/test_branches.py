"""Guidance branches as one batch: the same clip in every family, with one call of the network for both."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from kinema import guide
from kinema.api import Model, load
from kinema.events import Step
from kinema.schema import Request

SMALL: dict[str, Any] = {"prompt": "a red ball", "seed": 5, "steps": 3, "guidance": 2.5}
CASES: dict[str, dict[str, Any]] = {
    "animatediff/tiny": {},
    "animatediff/tiny in windows": {"frames": 12, "window": 8, "overlap": 4},
    "lumiere/tiny": {},
    "lumiere/tiny from an image": {"task": "animate", "image": "image.png"},
    "opensora/tiny": {},
    "opensora/tiny from an image": {"task": "animate", "image": "image.png"},
    "opensora/tiny-1.0": {},
    "opensora/tiny-1.2": {},
    "opensora/tiny-1.2 from an image": {"task": "animate", "image": "image.png"},
    "opensora/tiny-1.3": {"frames": 33},
    "svd/tiny": {"task": "animate", "image": "image.png", "prompt": ""},
    "svd/tiny in windows": {"task": "animate", "image": "image.png", "prompt": "", "frames": 6, "window": 4},
    "zoetrope/tiny": {},
    "zoetrope/tiny from an image": {"task": "animate", "image": "image.png"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sampled(
    model: Model, request: Request, monkeypatch: pytest.MonkeyPatch, *, batch: bool
) -> tuple[torch.Tensor, int]:
    """The clip, and how often a block of the network was called."""
    monkeypatch.setattr(guide, "branches_of", lambda _system: "in one batch" if batch else "one by one")
    calls: Counter[nn.Module] = Counter()
    blocks = model.system.family.blocks(model.system.model)
    hooks = [block.register_forward_hook(lambda block, *_: calls.update([block])) for block in blocks]
    try:
        return model.run(request).video, max(calls.values())
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", CASES)
def test_one_batch_gives_the_clip_of_separate_branches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    family, _, preset = name.split(" ", maxsplit=1)[0].partition("/")
    model, request = load(family, preset=preset), Request(**SMALL | CASES[name])
    apart, one_each = sampled(model, request, monkeypatch, batch=False)
    together, one_for_both = sampled(model, request, monkeypatch, batch=True)
    assert torch.allclose(together, apart, atol=1e-4)
    joined = name != "opensora/tiny from an image"  # its branches have the image and have none
    assert one_for_both < one_each if joined else one_for_both == one_each


def test_a_branch_without_a_text_cannot_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """VDM's unconditional branch has a trained embedding of its own."""
    model, request = load("vdm", preset="tiny"), Request(**SMALL)
    apart, one_each = sampled(model, request, monkeypatch, batch=False)
    together, same = sampled(model, request, monkeypatch, batch=True)
    assert torch.equal(together, apart)
    assert same == one_each


def test_branches_that_are_steered_differently_cannot_share_a_batch() -> None:
    """Clips of one request are steered alike, though each has conditions of its own."""
    from kinema.families.animatediff.conditioning import Condition, join
    from kinema.families.animatediff.control.steering import Steering

    def steered(scale: float) -> Condition:
        return Condition(
            torch.zeros(1, 1, 5, 8), steerings=(Steering(0, torch.ones(2, 3, 4, 4), torch.tensor([scale]), -9.0, 9.0),)
        )

    alike = join([steered(0.5), steered(0.5)])
    assert alike is not None
    assert alike.context_BKLC.shape[0] == 2
    assert join([steered(0.5), steered(0.0)]) is None
    assert join([steered(0.5), Condition(torch.zeros(1, 1, 5, 8))]) is None


def test_clips_of_a_batch_keep_their_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("zoetrope", preset="tiny")
    request = Request(**SMALL, clips=2)
    apart, one_each = sampled(model, request, monkeypatch, batch=False)
    together, same = sampled(model, request, monkeypatch, batch=True)
    assert torch.equal(together, apart)
    assert same == one_each


def test_clips_that_cannot_share_a_batch_run_their_branches_on_threads_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, threads = load("zoetrope", preset="tiny"), set()
    model.run(Request(**SMALL, clips=2))
    model.system.model.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    monkeypatch.setattr(guide, "branches_of", lambda _system: "in one batch")
    torch.set_num_threads(2)
    model.run(Request(**SMALL, clips=2))
    assert len(threads) == 2


def test_a_cancel_is_heard_before_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinema.cancel import Cancel
    from kinema.schema import Cancelled

    monkeypatch.setattr(guide, "branches_of", lambda _system: "in one batch")
    token = Cancel()
    model, steps = load("zoetrope", preset="tiny"), []

    def heard(event: object) -> None:
        if isinstance(event, Step):
            steps.append(event.index)
            token.cancel()

    with pytest.raises(Cancelled):
        model.run(Request(**SMALL), on_event=heard, cancel=token)
    assert steps == [1]
