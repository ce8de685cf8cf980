"""Shared fixtures."""

from __future__ import annotations

import gc
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Keep nine thousand collected tests and the imported libraries out of garbage collection, which else takes a third
    of collecting, and up to half a second each time while the tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """Undo what SVT-AV1 does to the thread that encodes, if it may: real-time scheduling, which every child process of
    later tests would inherit. A browser then keeps all others from running.
    """
    yield
    if hasattr(os, "SCHED_OTHER") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _with_sound(
    path: Path, codec: str = "aac", *, fps: int = 8, frames: int = 16, click: float = 0.5, tracks: int = 1
) -> Path:
    """A clip of brightening grey, 32×32, with a 1 kHz beep of 50 ms at ``click`` seconds in every track."""
    rate, seconds = 48_000, frames / fps
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = [container.add_stream(codec, rate=rate, layout="mono") for _ in range(tracks)]
        for index in range(frames):
            grey = np.full((32, 32, 3), 255 * index // frames, np.uint8)
            picture = av.VideoFrame.from_ndarray(grey, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        wave = np.zeros(round(seconds * rate), np.float32)
        at = round(click * rate)
        wave[at : at + rate // 20] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 20) / rate)
        for track in audio:
            for begin in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = rate, begin, Fraction(1, rate)
                container.mux(track.encode(piece))
            container.mux(track.encode(None))
    return path


def _beep(file: Path | bytes) -> float | None:
    """Return the second at which a file's sound gets loud; None without sound."""
    with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
        if not container.streams.audio:
            return None
        for frame in container.decode(audio=0):
            wave = np.abs(frame.to_ndarray().astype(np.float32))
            wave = wave.reshape(len(wave), -1)[0] / (1 if wave.max() <= 1.5 else 2.0 ** (8 * frame.format.bytes - 1))
            if (wave > 0.2).any():
                return float(frame.pts * frame.time_base) + float(np.argmax(wave > 0.2)) / frame.sample_rate
    return None


@pytest.fixture
def with_sound() -> Callable[..., Path]:
    return _with_sound


@pytest.fixture
def beep() -> Callable[[Path | bytes], float | None]:
    return _beep


def _paired(
    base: dict[str, Any] | None = None, upper: dict[str, Any] | None = None, families: tuple[str, str] = ("vdm", "vdm")
) -> Any:
    """A tiny model and the one that enlarges its clips, which requests call "large"; vdm makes 8×16×16, then 9×32×32.

    All weights are perturbed: untrained heads are zero, which would satisfy every test.
    """
    import torch

    from kinema import registry
    from kinema.api import Model
    from kinema.system import System, Weights

    torch.set_num_threads(1)

    def opened(name: str, number: int, changes: dict[str, Any]) -> System:
        family = registry.family(families[number])
        system = System(name, family, replace(family.presets["tiny"], **changes), Weights(seed=number))
        with torch.no_grad():
            for p in system.model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
        return system

    large = {"frames": 9, "side": 32, "attention_sides": (8, 16)} if families[1] == "vdm" else {}
    model = Model(opened(f"{families[0]}/tiny", 0, base or {}))
    model.system.runtime.beside("large", lambda: opened("large", 1, large | (upper or {})))
    return model


@pytest.fixture(scope="session")
def paired() -> Callable[..., Any]:
    return _paired


@pytest.fixture(scope="session")
def catalogued() -> dict[str, dict[str, Any]]:
    """The catalogue by name; built once, since it builds every network of every preset on the meta device."""
    from kinema.cli.models import catalogue

    return {row["name"]: row for row in catalogue()}


class Counting:
    """A backend for the compiler that counts graphs and runs them as they are; needs no C++ compiler."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    @staticmethod
    def breaks() -> int:
        """Graph breaks so far, in whatever was compiled."""
        import torch._dynamo.utils

        return sum(torch._dynamo.utils.counters["graph_break"].values())


class Kinds(set):
    """The kinds of blocks that ran: class, switches, and of weights and inputs the shape, the order in memory and
    whether they need a gradient."""

    def watch(self, blocks: Iterable[Any]) -> None:
        for block in blocks:
            block.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, block: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        switches = tuple((name, value) for name, value in vars(block).items() if isinstance(value, bool))
        held = (*block.parameters(), *self._tensors((*inputs, *named.values())))
        self.add((type(block), switches, *map(self._of, held)))

    @classmethod
    def _tensors(cls, value: Any) -> Iterator[Any]:
        if hasattr(value, "requires_grad"):
            yield value
        elif isinstance(value, tuple | list):
            for each in value:
                yield from cls._tensors(each)
        elif is_dataclass(value):
            yield from cls._tensors(tuple(vars(value).values()))

    @staticmethod
    def _of(x: Any) -> tuple[Any, ...]:
        return tuple(x.shape), tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1), x.requires_grad


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counting, Kinds]]:
    """A counting backend and the kinds of blocks to compare it with, in a compiler that has compiled nothing yet."""
    import torch._dynamo

    monkeypatch.setattr(
        logging.getLogger("torch.__trace"), "disabled", True
    )  # thousands of records, which pytest keeps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # else both guidance branches run in parallel, and both compile
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield Counting(), Kinds()
    torch._dynamo.reset()
    torch.set_num_threads(threads)
