"""Two-way maps between the tensor names of two checkpoint layouts, declared as data.

    KEYS = KeyMap([
        ("model.diffusion_model.input_blocks.{}.0.in_layers.0.weight", "down.{}.norm1.weight"),
        ("cond.{}.proj.weight", "text.{}.proj.weight", linear_from_conv(2)),
    ])

``{}`` matches one or more characters without a dot; both sides have the same number of them, in the same order.
Every key must match exactly one pair: unmatched keys are an error, never dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from kinema.bounds import first_names
from kinema.schema import BadRequest
from kinema.values import counted


@dataclass(frozen=True)
class Transform:
    """An invertible change of a tensor's layout: ``backward(forward(x))`` is ``x``."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    @property
    def inverse(self) -> Transform:
        return Transform(self.backward, self.forward)


def permuted(*axes: int) -> Transform:
    """Permute axes, in the order of `Tensor.permute`."""
    back = tuple(axes.index(axis) for axis in range(len(axes)))
    return Transform(lambda x: x.permute(axes).contiguous(), lambda x: x.permute(back).contiguous())


def linear_from_conv(dims: int) -> Transform:
    """Turn a 1×1 convolution's weight O×I×1… (``dims`` ones) into a linear layer's O×I."""
    return Transform(lambda x: x.reshape(x.shape[: x.ndim - dims]), lambda x: x.reshape(*x.shape, *(1,) * dims))


Pair = tuple[str, str] | tuple[str, str, Transform]


@dataclass(frozen=True)
class _Rule:
    source: str
    target: str
    match: Callable[[str], re.Match[str] | None]
    transform: Transform | None


class KeyMap:
    """Renames tensors by pairs ``(foreign, native)`` or ``(foreign, native, transform)``."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs: tuple[Pair, ...] = tuple(pairs)
        for foreign, native, *_ in self.pairs:
            if foreign.count("{}") != native.count("{}"):
                raise ValueError(f"{foreign!r} and {native!r} have different numbers of {{}}")
        self._forward = _Rules((pair[0], pair[1], _transform(pair)) for pair in self.pairs)
        self._backward = _Rules(
            (pair[1], pair[0], t.inverse if (t := _transform(pair)) else None) for pair in self.pairs
        )

    def forward(self, tensors: Mapping[str, Tensor], where: str = "this checkpoint") -> dict[str, Tensor]:
        """Convert foreign names and layouts to native ones. Raises `BadRequest` naming the keys that match no pair."""
        return self._forward.apply(tensors, where)

    def backward(self, tensors: Mapping[str, Tensor], where: str = "this model") -> dict[str, Tensor]:
        """Convert native names and layouts to foreign ones, the exact inverse of `forward`."""
        return self._backward.apply(tensors, where)

    def rename(self, name: str) -> str | None:
        """Return the native name for a foreign one, or None if no pair matches."""
        return self._forward.rename(name)

    def rename_back(self, name: str) -> str | None:
        """Return the foreign name for a native one, or None if no pair matches."""
        return self._backward.rename(name)


class _Rules:
    """One direction of a map. Patterns are indexed by their number of dots and last component."""

    def __init__(self, rules: Iterable[tuple[str, str, Transform | None]]) -> None:
        self.buckets: dict[tuple[int, str], list[_Rule]] = defaultdict(list)
        for source, target, transform in rules:
            pattern = re.compile("([^.]+)".join(re.escape(part) for part in source.split("{}")))
            last = source.rpartition(".")[2]
            key = (source.count("."), "" if "{}" in last else last)
            self.buckets[key].append(_Rule(source, target, pattern.fullmatch, transform))

    def matches(self, name: str) -> Iterator[tuple[_Rule, str]]:
        dots, last = name.count("."), name.rpartition(".")[2]
        for bucket in ((dots, last), (dots, "")) if last else ((dots, ""),):
            for rule in self.buckets.get(bucket, ()):
                if found := rule.match(name):
                    yield rule, rule.target.format(*found.groups())

    def rename(self, name: str) -> str | None:
        found = self.only(name)
        return found[1] if found else None

    def only(self, name: str) -> tuple[_Rule, str] | None:
        found = list(self.matches(name))
        if len(found) > 1:
            raise ValueError(f"{name!r} is matched by {' and by '.join(repr(rule.source) for rule, _ in found)}")
        return found[0] if found else None

    def apply(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        unmapped = []
        for name, tensor in tensors.items():
            found = self.only(name)
            if found is None:
                unmapped.append(name)
                continue
            rule, target = found
            if target in renamed:
                raise ValueError(f"{name!r} and another key both become {target!r}")
            renamed[target] = rule.transform.forward(tensor) if rule.transform else tensor
        if unmapped:
            raise BadRequest(f"{where} has {counted(len(unmapped), 'unknown key')} ({first_names(unmapped)})")
        return renamed


def _transform(pair: Pair) -> Transform | None:
    return pair[2] if len(pair) == 3 else None
