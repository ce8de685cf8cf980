"""Names of one checkpoint layout to the names of another, as data that reads both ways.

    KEYS = KeyMap([
        ("model.diffusion_model.input_blocks.{}.0.in_layers.0.weight", "down.{}.norm1.weight"),
        ("cond.{}.proj.weight", "text.{}.proj.weight", linear_from_conv(2)),
    ])

``{}`` stands for one stretch without a dot, and the same number of them, in the same order, stands on
both sides. Every key must be matched by exactly one pair: what is left over is named, never dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from kinema.bounds import few
from kinema.schema import BadRequest


@dataclass(frozen=True)
class Transform:
    """A change of layout that loses nothing: ``backward(forward(x))`` is ``x``."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    @property
    def inverse(self) -> Transform:
        return Transform(self.backward, self.forward)


def permuted(*axes: int) -> Transform:
    """Axes in another order, as `Tensor.permute` takes them."""
    back = tuple(axes.index(axis) for axis in range(len(axes)))
    return Transform(lambda x: x.permute(axes).contiguous(), lambda x: x.permute(back).contiguous())


def linear_from_conv(dims: int) -> Transform:
    """A 1×1 convolution's weight O×I×1… (``dims`` ones) as a linear layer's O×I."""
    return Transform(lambda x: x.reshape(x.shape[: x.ndim - dims]), lambda x: x.reshape(*x.shape, *(1,) * dims))


Pair = tuple[str, str] | tuple[str, str, Transform]


@dataclass(frozen=True)
class _Rule:
    source: str
    target: str
    match: Callable[[str], re.Match[str] | None]
    transform: Transform | None


class KeyMap:
    """Renames tensors by pairs ``(theirs, ours)`` or ``(theirs, ours, transform)``."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs: tuple[Pair, ...] = tuple(pairs)
        for theirs, ours, *_ in self.pairs:
            if theirs.count("{}") != ours.count("{}"):
                raise ValueError(f"{theirs!r} and {ours!r} have different numbers of {{}}")
        self._forward = _Rules((theirs, ours, _transform(pair)) for pair in self.pairs for theirs, ours in [pair[:2]])
        self._backward = _Rules(
            (ours, theirs, t.inverse if (t := _transform(pair)) else None)
            for pair in self.pairs
            for theirs, ours in [pair[:2]]
        )

    def forward(self, tensors: Mapping[str, Tensor], where: str = "this checkpoint") -> dict[str, Tensor]:
        """Their names and layouts to ours. A key that no pair matches is a `BadRequest` that names it."""
        return self._forward.apply(tensors, where)

    def backward(self, tensors: Mapping[str, Tensor], where: str = "this model") -> dict[str, Tensor]:
        """Our names and layouts to theirs, the exact reverse of `forward`."""
        return self._backward.apply(tensors, where)

    def rename(self, name: str) -> str | None:
        """Our name for their ``name``, or None where no pair matches."""
        return self._forward.rename(name)

    def rename_back(self, name: str) -> str | None:
        """Their name for our ``name``, or None where no pair matches."""
        return self._backward.rename(name)


class _Rules:
    """One direction of a map; patterns are looked up by their number of dots and last part."""

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
            raise BadRequest(f"{where} holds {len(unmapped)} keys that are not known here ({few(unmapped)})")
        return renamed


def _transform(pair: Pair) -> Transform | None:
    return pair[2] if len(pair) == 3 else None
