"""Encode rows of weighted tokens with CLIP, as each syntax weights them.

Letters: N texts, R rows of each, L tokens per row, C width, P width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from kinema.cancel import checkpoint
from kinema.conditioning.clip_text import ClipText, ClipTextSize, Tokenizer
from kinema.conditioning.prompts.rows import Row
from kinema.schema import BadRequest, PromptSyntax


@dataclass(frozen=True, eq=False)
class Encoder:
    """One of a model's text encoders; ``pad`` fills up its rows, None for the end token.

    ``vectors`` are those of textual-inversion embeddings by name, N×C.
    """

    network: ClipText
    size: ClipTextSize
    pad: int | None
    vectors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """``skip`` last layers are left out; ``penultimate``: one more and the final norm, as in SDXL."""

    skip: int = 0
    penultimate: bool = False


def encode(
    encoders: Sequence[Encoder],
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[Row]],
    syntax: PromptSyntax,
    reading: Reading,
    counts: Sequence[int],
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the context 1×(R·L)×C and the pooled embedding 1×P (None without one) of each text.

    Texts are padded with empty rows to the longest. ``counts`` say how often a text occurs in a schedule, whose texts
    AUTOMATIC1111 encodes in one batch with one mean.
    """
    longest = max(len(rows) for rows in texts)
    padded = [[*rows, *[[]] * (longest - len(rows))] for rows in texts]
    widths: list[Tensor] = []
    pooled: list[Tensor | None] = [None] * len(texts)
    for encoder in encoders:
        states, vectors = _states(encoder, tokenizer, padded, reading)
        weight_NRL = torch.tensor([[_weights(row, encoder.size.length) for row in rows] for rows in padded]).to(states)
        if syntax == "a1111":
            states = restored_mean(states, weight_NRL, torch.tensor(counts).to(states))
        elif syntax == "comfy":
            empty, _ = _states(encoder, tokenizer, [[[]]], reading)
            weight = weight_NRL[..., None]
            states = torch.where(weight == 1, states, (states - empty) * weight + empty)
        widths.append(states.flatten(1, 2))
        pooled = vectors if vectors[0] is not None else pooled
    context = torch.cat(widths, dim=-1)
    return [(context[at : at + 1], pooled[at]) for at in range(len(texts))]


def restored_mean(state_NRLC: Tensor, weight_NRL: Tensor, count_N: Tensor) -> Tensor:
    """AUTOMATIC1111's emphasis: states times weights, scaled back to the mean of all texts' states in each row.

    A row whose mean is zero but for rounding is not scaled.
    """

    def mean(x_NRLC: Tensor) -> Tensor:
        return torch.einsum("nr,n->r", x_NRLC.mean((2, 3)), count_N / count_N.sum())[:, None, None]

    weighted = state_NRLC * weight_NRL[..., None]
    before, after = mean(state_NRLC), mean(weighted)
    scale = torch.where(after.abs() > 1e-6 * mean(weighted.abs()), before / after, 1)
    changes = (weight_NRL != 1).any(-1).any(0)[:, None, None]
    return torch.where(changes, weighted * scale, state_NRLC)


def _states(
    encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[Sequence[Row]], reading: Reading
) -> tuple[Tensor, list[Tensor | None]]:
    """States N×R×L×C, and each text's pooled embedding 1×P, which is that of its first row."""
    device = encoder.network.text_model.final_layer_norm.weight.device
    states, pooled = [], []
    for rows in texts:
        checkpoint()
        ids = torch.tensor([_ids(encoder, tokenizer, row) for row in rows], device=device)
        placed = [
            (number, at, encoder.vectors[token.vector[0]][token.vector[1]])
            for number, row in enumerate(rows)
            for at, token in enumerate(row, 1)
            if token.vector is not None
        ]
        skip, norm = reading.skip + reading.penultimate, not reading.penultimate
        state_RLC, first = encoder.network(ids, tokenizer.end, skip=skip, norm=norm, placed=placed)
        states.append(state_RLC)
        pooled.append(None if first is None else first[:1])
    return torch.stack(states), pooled


def _ids(encoder: Encoder, tokenizer: Tokenizer, row: Row) -> list[int]:
    room, fill = encoder.size.length - 2, tokenizer.end if encoder.pad is None else encoder.pad
    ids = [tokenizer.begin, *(token.id for token in row), tokenizer.end, *[fill] * (room - len(row))]
    if (most := max(chain(ids, [tokenizer.end]))) >= encoder.size.vocabulary:
        raise BadRequest(
            f"the vocabulary has token {most:,} and the text encoder only {encoder.size.vocabulary:,} tokens; use the "
            "vocabulary of this text encoder"
        )
    return ids


def _weights(row: Row, length: int) -> list[float]:
    return [1.0, *(token.weight for token in row), *[1.0] * (length - 1 - len(row))]
