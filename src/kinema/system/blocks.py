"""Compilation and activation checkpointing of a network's repeated blocks, in place.

Both wrap the block's ``forward`` and leave the module alone, so that names, weights, hooks (offloading) and copies
still work.
"""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.utils.checkpoint import checkpoint

from kinema.bounds import printable
from kinema.schema import BadRequest

Forward = Callable[..., Any]
"""A block's ``forward`` as a function of the block and its inputs."""

COMPILED = "blocks are compiled on their first run, which takes a while; last bits may differ from an uncompiled run"


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block on its first run ("regional compilation"); blocks of the same class and shapes share a graph.

    The first input size gets a static graph. A second size triggers one recompilation with dynamic shapes, which
    serves every further size.
    """
    for operation in (rearrange, reduce, repeat):
        torch.compiler.allow_in_graph(operation)  # else how it parses its pattern is traced: half the time of tracing
    compiled: dict[Any, Forward] = {}
    for block in blocks:
        own = _forward(block)
        kind = (own, tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))
        if kind not in compiled:
            compiled[kind] = torch.compile(_copy_of(own, str(kind[1])), backend=backend)
        block.forward = MethodType(compiled[kind], block)


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Checkpoint activations: keep only each block's inputs and recompute the rest in the backward pass.

    Chen et al. 2016 (arXiv 1604.06174). Call it after `compile_blocks`.
    """
    for block in blocks:
        block.forward = MethodType(partial(checkpoint, _forward(block), use_reentrant=False), block)


def _forward(block: nn.Module) -> Forward:
    """The block's current ``forward`` function: its class's, or an earlier wrapper."""
    return block.forward.__func__  # type: ignore[attr-defined]


def _copy_of(forward: Forward, kind: str) -> Forward:
    """Copy a method together with its code object, under a name of its own.

    PyTorch keys its recompilation limit (8) and its record of dynamic sizes by code object and name. Blocks of
    different widths share their class's code: they would exhaust the limit and mark each other's sizes as dynamic.
    """
    assert isinstance(forward, FunctionType)
    code: CodeType = forward.__code__.replace(co_name=f"{forward.__name__}_{zlib.crc32(kind.encode()):08x}")
    copy = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def check_compiler(device: torch.device) -> None:
    """Raise BadRequest if ``torch.compile`` lacks Triton (GPU) or a C++ compiler (CPU)."""
    if device.type != "cpu":
        if device.type in ("cuda", "xpu") and find_spec("triton") is None:
            raise BadRequest(
                f"compile needs Triton on {device.type}, which is not installed; install it or leave out compile"
            )
        return
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise BadRequest(
            f"compile needs a C++ compiler on a CPU, and {printable(name, 60)} was not found; install it, set the "
            "environment variable CXX to another, or leave out compile"
        )
