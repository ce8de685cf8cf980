"""The pocket models' text encoder: a word tokenizer and a two-layer transformer, trained with the model.

The vocabulary is part of the model's config, so the tokenizer is saved with the weights.

Letters: B batch, L words, D width, N heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema import bounds
from kinema.events import Note, OnEvent
from kinema.nn.linear import Linear

PAD, UNKNOWN = 0, 1
_RESERVED = 2


@dataclass(frozen=True)
class PocketTokenizer:
    """Lower-cased words to integers; the name of a letter stays a capital, distinct from the article "a".

    Id 0 is padding, id 1 an unknown word, then come ``words`` in order.
    """

    words: tuple[str, ...]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i + _RESERVED for i, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        return len(self.words) + _RESERVED

    @staticmethod
    def split(text: str) -> list[str]:
        """Split a caption into words; the name after "letter" is a capital, so "letter A" is not the article."""
        words: list[str] = []
        for word in re.findall(r"[^\W_]+", text.lower()):
            named = len(word) == 1 and words[-1:] == ["letter"]
            words.append(word.upper() if named else word)
        return words

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return ids ``B×L``, cut or padded to ``length`` words."""
        ids = torch.full((len(texts), length), PAD, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            found = [self._index.get(word, UNKNOWN) for word in self.split(text)][:length]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return ids

    def unknown(self, text: str) -> list[str]:
        """Return the words of ``text`` that are not in the vocabulary."""
        return [word for word in self.split(text) if word not in self._index]


def note_unknown_words(tokenizer: PocketTokenizer, name: str, texts: Sequence[str], on_event: OnEvent) -> None:
    """Emit notes on words of prompts that the model called ``name`` does not know.

    Symbols and emoji are not words. Empty prompts are deliberate and get no note.
    """
    for text in texts:
        words, unknown = tokenizer.split(text), tokenizer.unknown(text)
        if text.strip() and len(unknown) == len(words):
            on_event(Note(f'{name} knows no word of the prompt "{bounds.printable(text.strip(), 80)}"'))
        elif unknown:
            listed = bounds.printable(", ".join(dict.fromkeys(unknown)), 200)
            on_event(Note(f"unknown words for {name}: {listed}"))


class PocketText(nn.Module):
    """Bidirectional pre-norm transformer over words.

    ``forward(ids_BL) -> (text_BLD, keep_BL)``; ``keep`` is True on words, False on padding. A caption
    without words keeps its first (padding) position, whose embedding is thereby trained as the null embedding.
    """

    def __init__(self, vocab_size: int, width: int = 128, depth: int = 2, length: int = 20) -> None:
        super().__init__()
        self.length = length
        self.embed = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.position, std=0.1)
        self.layers = nn.ModuleList([_Layer(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight)

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        keep_BL = ids_BL != PAD
        keep_BL = torch.cat([keep_BL[:, :1] | ~keep_BL.any(1, keepdim=True), keep_BL[:, 1:]], dim=1)
        x_BLD = self.embed(ids_BL) + self.position[: ids_BL.shape[1]]
        for layer in self.layers:
            x_BLD = layer(x_BLD, keep_BL)
        return self.norm(x_BLD), keep_BL


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.up, self.down = Linear(width, 3 * width), Linear(3 * width, width)
        # The layers start near the identity. With the default initialisation the encoder collapsed: before the model
        # used the text, all captions grew a common vector that dominated the final norm.
        with torch.no_grad():
            self.out.weight.mul_(0.02)
            self.down.weight.mul_(0.02)
            self.down.bias.zero_()

    def forward(self, x_BLD: Tensor, keep_BL: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n d) -> three b n l d", three=3, n=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep_BL[:, None, None, :])
        x_BLD = x_BLD + self.out(rearrange(mixed, "b n l d -> b l (n d)"))
        return x_BLD + self.down(F.gelu(self.up(self.norm2(x_BLD))))
