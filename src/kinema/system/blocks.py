"""What is done to the repeated blocks of a network in place: compile them, or checkpoint their activations.

Both put something around a block's own ``forward`` and leave the module itself alone, so its name, its weights, hooks
around it (offload) and a copy of it are as they were.
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
from torch import nn
from torch.utils.checkpoint import checkpoint

from kinema.bounds import printable
from kinema.schema import BadRequest

Forward = Callable[..., Any]
"""A block's ``forward`` as a function of the block and its inputs."""

COMPILED = (
    "blocks are compiled when they first run, which takes a while; the last bits may differ from those without it"
)


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Have every block compiled when it first runs ("regional compilation"); equal ones share what is compiled.

    The first size is compiled as it is. When another comes, its blocks are compiled once more, for any size that takes
    the same way through their code.
    """
    made: dict[Any, Forward] = {}
    for block in blocks:
        own = _forward(block)
        kind = (own, tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))
        if kind not in made:
            made[kind] = torch.compile(_apart(own, str(kind[1])), backend=backend)
        block.forward = MethodType(made[kind], block)


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Have every block keep its inputs alone for the backward pass, which runs it again: less memory, more time.

    Chen et al. 2016 (arXiv 1604.06174). Compiled blocks are compiled before.
    """
    for block in blocks:
        block.forward = MethodType(partial(checkpoint, _forward(block), use_reentrant=False), block)


def _forward(block: nn.Module) -> Forward:
    """The block's ``forward`` as it is now, of its class or put around that before."""
    return block.forward.__func__  # type: ignore[attr-defined]


def _apart(forward: Forward, kind: str) -> Forward:
    """A copy of a method, with code and name of its own.

    PyTorch counts recompilations by code, eight at most, and remembers by code and name which sizes change. Blocks of
    different widths share the code of their class, and would use up the eight and have each other's sizes change.
    """
    assert isinstance(forward, FunctionType)
    code: CodeType = forward.__code__.replace(co_name=f"{forward.__name__}_{zlib.crc32(kind.encode()):08x}")
    made = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where PyTorch cannot, before anything is loaded: for a CPU it needs a C++ compiler.

    Raises BadRequest that says what is missing.
    """
    if device.type != "cpu":
        if device.type in ("cuda", "xpu") and find_spec("triton") is None:
            raise BadRequest(
                f"compile needs Triton on {device.type}, which is not installed; install it or leave it out"
            )
        return
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise BadRequest(
            f"compile needs a C++ compiler on a CPU, and there is no {printable(name, 60)} here: install one, name another "
            "in the environment variable CXX, or leave out compile"
        )
