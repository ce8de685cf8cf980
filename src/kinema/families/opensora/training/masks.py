"""Which latent frames of a clip are given in training, by kind, for Open-Sora 1.1 to 1.3.

A kind is drawn for each clip. Its frames are latent frames of the whole clip, so that precomputed latents serve every
kind. 2.0 encodes what is given by itself; its kinds are canvases of pixels (`kinema.training.stream.draw_mask`).
Original: MaskGenerator, get_mask_cond and get_mask_index in opensora/utils/train_utils.py (1.1, 1.2, 1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

NOTHING, NOISY = "nothing", "_noisy"
SMALLEST, LARGEST = 0.1, 0.9
"""Range of the share of given frames in the kind ``random``."""


class Drawn(NamedTuple):
    """Boolean: which frames are given, and in which clips the given frames are shown with noise (1.3)."""

    given_BT: Tensor
    noisy_B: Tensor


def drawn(mix: Mapping[str, float], clips: int, frames: int, generator: Generator) -> Drawn:
    """Draw a kind, then its frames, for each clip. An image, a clip of one latent frame, is never given."""
    given_BT, noisy_B = torch.zeros(clips, frames, dtype=torch.bool), torch.zeros(clips, dtype=torch.bool)
    for clip, kind in enumerate(kinds(mix, clips, generator)):
        given_BT[clip] = frames_of(kind, frames, generator)
        noisy_B[clip] = kind.endswith(NOISY) and bool(given_BT[clip, 0])
    return Drawn(given_BT, noisy_B)


def kinds(mix: Mapping[str, float], clips: int, generator: Generator) -> list[str]:
    """The kind of each clip, by the weights of ``mix``; an empty mix gives nothing."""
    names = [*mix] or [NOTHING]
    weights = torch.tensor([mix.get(name, 1.0) for name in names], dtype=torch.float64)
    return [names[i] for i in torch.multinomial(weights, clips, replacement=True, generator=generator).tolist()]


def frames_of(kind: str, frames: int, generator: Generator) -> Tensor:
    """Which of a clip's frames a kind gives, boolean [T]. Raises ValueError for an unknown kind."""
    given = torch.zeros(frames, dtype=torch.bool)
    place = KINDS.get(kind.removesuffix(NOISY))
    if place is None:
        raise ValueError(f"there is no kind of mask {kind!r}; expected one of {', '.join(KINDS)}")
    if frames > 1:
        place(given, generator)
    return given


def _whole(low: int, high: int, generator: Generator) -> int:
    """A whole number from low to high, both included; low where high is lower."""
    return int(torch.randint(low, max(low, high) + 1, (), generator=generator))


def _quarter(given: Tensor, generator: Generator) -> int:
    return _whole(1, len(given) // 4, generator)


def _one(given: Tensor, generator: Generator) -> int:  # noqa: ARG001 (a length, as `_quarter`)
    return 1


Length = Callable[[Tensor, Generator], int]
Place = Callable[[Tensor, Generator], None]


def _anywhere(length: Length) -> Place:
    def place(given: Tensor, generator: Generator) -> None:
        count = length(given, generator)
        start = _whole(0, len(given) - count, generator)
        given[start : start + count] = True

    return place


def _ends(length: Length, *, head: bool, tail: bool) -> Place:
    def place(given: Tensor, generator: Generator) -> None:
        count = length(given, generator)
        if head:
            given[:count] = True
        if tail:
            given[len(given) - count :] = True

    return place


def _random(given: Tensor, generator: Generator) -> None:
    """A share of the frames, of which at least one is generated."""
    share = SMALLEST + (LARGEST - SMALLEST) * float(torch.rand((), generator=generator))
    given.copy_(torch.rand(len(given), generator=generator) <= share)
    if bool(given.all()):
        given[-1] = False


def _every_second(given: Tensor, generator: Generator) -> None:
    given[_whole(0, 1, generator) :: 2] = True


def _other(given: Tensor, generator: Generator) -> None:
    """Up to some frame, or from it on; never the whole clip."""
    at_head = not _whole(0, 1, generator)
    at = _whole(1, len(given) - 2, generator)
    given[slice(at) if at_head else slice(at, None)] = True


def _first_half(given: Tensor, generator: Generator) -> None:  # noqa: ARG001
    given[: len(given) // 2] = True


def _second_half(given: Tensor, generator: Generator) -> None:  # noqa: ARG001
    given[len(given) // 2 :] = True


def _nothing(given: Tensor, generator: Generator) -> None:  # noqa: ARG001
    return


KINDS: Mapping[str, Place] = {
    NOTHING: _nothing,
    # 1.1 and 1.2; 1.2 adds the last two.
    "quarter_random": _anywhere(_quarter),
    "quarter_head": _ends(_quarter, head=True, tail=False),
    "quarter_tail": _ends(_quarter, head=False, tail=True),
    "quarter_head_tail": _ends(_quarter, head=True, tail=True),
    "image_random": _anywhere(_one),
    "image_head": _ends(_one, head=True, tail=False),
    "image_tail": _ends(_one, head=False, tail=True),
    "image_head_tail": _ends(_one, head=True, tail=True),
    "random": _random,
    "interpolate": _every_second,
    # 1.3; with ``_noisy`` at its end a kind shows its frames with noise.
    "i2v_head": _ends(_one, head=True, tail=False),
    "i2v_tail": _ends(_one, head=False, tail=True),
    "i2v_loop": _ends(_one, head=True, tail=True),
    "v2v_head": _first_half,
    "v2v_tail": _second_half,
    "other": _other,
}
"""The kinds by name, those of the original; ``interpolate`` is its "intepolate". A quarter is at least one frame."""
