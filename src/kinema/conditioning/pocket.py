"""The pocket models' text encoder: a word tokenizer and a two-layer transformer, trained with the model.

The words live in the model's config, so the tokenizer travels with the weights.

B batch, L words, D width, N heads.
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

PAD, UNKNOWN = 0, 1
_RESERVED = 2


@dataclass(frozen=True)
class PocketTokenizer:
    """Lower-cased words to integers; a single letter keeps its case apart from the article "a".

    Id 0 is padding, id 1 an unknown word, then ``words`` in order.
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
        """Words of a caption; the name after "letter" is a capital, so "letter A" is not the article."""
        words: list[str] = []
        for word in re.findall(r"[^\W_]+", text.lower()):
            named = len(word) == 1 and words[-1:] == ["letter"]
            words.append(word.upper() if named else word)
        return words

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids ``B×L``, cut or padded to ``length`` words."""
        ids = torch.full((len(texts), length), PAD, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            found = [self._index.get(word, UNKNOWN) for word in self.split(text)][:length]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return ids

    def unknown(self, text: str) -> list[str]:
        """The words of ``text`` that the model never saw."""
        return [word for word in self.split(text) if word not in self._index]


def say_unknown(tokenizer: PocketTokenizer, name: str, texts: Sequence[str], on_event: OnEvent) -> None:
    """Say which words of prompts the model called ``name`` was not taught, and of which prompts it knows no word.

    Signs and emoji are no words. An empty prompt means nothing on purpose, and nothing is said of it.
    """
    for text in texts:
        words, unknown = tokenizer.split(text), tokenizer.unknown(text)
        if text.strip() and len(unknown) == len(words):
            on_event(Note(f'the prompt "{bounds.printable(text.strip(), 80)}" holds no word that {name} knows'))
        elif unknown:
            told = bounds.printable(", ".join(dict.fromkeys(unknown)), 200)
            on_event(Note(f"{name} was not taught the word(s) {told}"))


class PocketText(nn.Module):
    """Bidirectional pre-norm transformer over words.

    ``forward(ids_BL) -> (text_BLD, keep_BL)``; ``keep`` is True on words, False on padding. A caption
    without words keeps its first (padding) position, whose embedding is therefore the trained null.
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
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        # The layers start near the identity. Trained from random layers, the encoder collapsed: while the words
        # told the model nothing yet, all captions grew one common vector that the last norm then divided by.
        with torch.no_grad():
            self.out.weight.mul_(0.02)
            self.down.weight.mul_(0.02)
            self.down.bias.zero_()

    def forward(self, x_BLD: Tensor, keep_BL: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n d) -> three b n l d", three=3, n=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep_BL[:, None, None, :])
        x_BLD = x_BLD + self.out(rearrange(mixed, "b n l d -> b l (n d)"))
        return x_BLD + self.down(F.gelu(self.up(self.norm2(x_BLD))))
