"""Tiny models of Open-Sora 1.0 to 1.3 with random weights, what their networks are called with, and small media."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.api import Model, load
from kinema.schema import Clip, Request

VERSIONS = ("1.0", "1.1", "1.2", "1.3")
HEIGHT, WIDTH = 16, 24


def roughened(model: nn.Module, std: float = 0.05) -> None:
    """Untrained heads are zero, which would make every claim trivially true."""
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(model.named_parameters())):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * std)


@pytest.fixture(scope="session")
def models() -> Callable[[str], Model]:
    torch.set_num_threads(1)
    opened: dict[str, Model] = {}

    def of(version: str) -> Model:
        if version not in opened:
            opened[version] = load("opensora", preset=f"tiny-{version}")
            roughened(opened[version].system.model)
        return opened[version]

    return of


@pytest.fixture
def ask() -> Callable[..., Request]:
    def request(**options: Any) -> Request:
        return Request(**{"prompt": "a red ball rolls right", "seed": 5, "steps": 2, **options})

    return request


class Calls(list[dict[str, Any]]):
    """Each call of a transformer: its latents ``z``, ``text``, ``mask`` and named inputs."""

    @contextmanager
    def of(self, model: Model) -> Iterator[Calls]:
        def hear(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            z, time, text, mask = args
            self.append({"z": z.clone(), "time": time, "text": text, "mask": mask, **kwargs})

        hook = model.system.model.transformer.register_forward_pre_hook(hear, with_kwargs=True)
        try:
            yield self
        finally:
            hook.remove()

    def clean(self) -> list[list[int]]:
        """The frames of the first clip that each call was told are conditioned."""
        return [(~call["generated_BT"][0]).nonzero().flatten().tolist() for call in self]


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one.png`` and ``two.png``, and the folder ``clip`` of 34 frames: lossless, and of the tiny models' size."""
    folder = tmp_path_factory.mktemp("media")
    random = torch.Generator().manual_seed(3)
    video = (torch.rand(1, 3, 34, HEIGHT, WIDTH, generator=random) * 2 - 1).clamp(-1, 1)
    for i, name in enumerate(("one", "two")):
        Clip(video[:, :, i : i + 1]).save(folder / f"{name}.png")
    Clip(video, 24.0).save(folder / "clip.png")
    return folder
