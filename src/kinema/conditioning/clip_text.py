"""CLIP's text encoders (Radford et al. 2021; OpenCLIP) with transformers' weight names, for prompts of any length.

Reimplemented, like `clip_vision`, because importing transformers takes longer than loading a model. The tokenizer
uses the tokenizers library, imported on first use.

Letters: N rows of tokens, L tokens per row, C width, P width of the pooled embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.bounds import decoded, read_bytes
from kinema.checkpoints import hub
from kinema.checkpoints.source import MAX_JSON, read_json
from kinema.conditioning.pocket import PocketTokenizer
from kinema.nn.linear import Linear
from kinema.schema import BadRequest

HUB_NAME = "openai/clip-vit-large-patch14"
"""Hub repository of the vocabulary that all published CLIP text encoders share."""
VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
"""The files of a vocabulary, as published and as saved by transformers 5."""


@dataclass(frozen=True)
class ClipTextSize:
    """Sizes of a text encoder; the defaults are ViT-L/14's in Stable Diffusion 1.5 (123,060,480 parameters)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = None
    """Width of the pooled embedding; None for an encoder without one."""
    vocabulary: int = 49408
    length: int = 77
    """Tokens per row, including the start and end tokens."""


BIG_G = ClipTextSize(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection=1280)  # 694,659,840


Placed = tuple[int, int, Tensor]
"""A row, a position in it, and the vector [C] of a textual-inversion embedding there."""


class ClipText(nn.Module):
    """``forward(ids N×L) -> (states N×L×C, pooled N×P or None)``."""

    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        self.text_model = _Tower(size)
        self.text_projection = Linear(size.width, size.projection, bias=False) if size.projection else None

    def forward(
        self, ids_NL: Tensor, end: int, *, skip: int = 0, norm: bool = True, placed: Sequence[Placed] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states after all but the last ``skip`` layers, with the final norm applied if ``norm``.

        The pooled embedding is the projected state of the last layer at the first ``end`` token. ``placed`` vectors
        replace the embeddings of tokens.
        """
        tower = self.text_model
        states = tower.states(ids_NL, placed)
        chosen = states[len(states) - 1 - skip]
        pooled = None
        if self.text_projection is not None:
            first = (ids_NL == end).int().argmax(-1)
            last_NC = states[-1][torch.arange(len(first), device=first.device), first]
            pooled = self.text_projection(tower.final_layer_norm(last_NC))
        return tower.final_layer_norm(chosen) if norm else chosen, pooled


class _Tower(nn.Module):
    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        self.embeddings = _Embeddings(size)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(size) for _ in range(size.layers))})
        self.final_layer_norm = nn.LayerNorm(size.width)

    def states(self, ids_NL: Tensor, placed: Sequence[Placed] = ()) -> list[Tensor]:
        """Return the token embeddings and the output of each layer."""
        states = [self.embeddings(ids_NL, placed)]
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            states.append(layer(states[-1]))
        return states


class _Embeddings(nn.Module):
    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(size.vocabulary, size.width)
        self.position_embedding = nn.Embedding(size.length, size.width)

    def forward(self, ids_NL: Tensor, placed: Sequence[Placed] = ()) -> Tensor:
        token_NLC = self.token_embedding(ids_NL)
        for row, at, vector_C in placed:
            token_NLC[row, at] = vector_C.to(token_NLC)
        return token_NLC + self.position_embedding.weight[: ids_NL.shape[1]]


class _Layer(nn.Module):
    """Pre-norm transformer layer: causal self-attention and an MLP."""

    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.activation: Callable[[Tensor], Tensor] = F.gelu if size.activation == "gelu" else quick_gelu
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict({name: Linear(width, width) for name in _PROJECTIONS})
        self.mlp = nn.ModuleDict({"fc1": Linear(width, size.mlp), "fc2": Linear(size.mlp, width)})

    def forward(self, x_NLC: Tensor) -> Tensor:
        h = self.layer_norm1(x_NLC)
        q, k, v, out = (self.self_attn[name] for name in _PROJECTIONS)
        q, k, v = (of(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for of in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x_NLC = x_NLC + out(mixed)
        return x_NLC + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x_NLC))))


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# ------------------------------------------------------------------------------------- tokenizers


class Tokenizer(Protocol):
    """Text to tokens, without the start and end tokens of a row."""

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def comma(self) -> int | None:
        """The token of a comma; None for a vocabulary without one."""

    def tokens(self, text: str) -> list[int]: ...


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = rf"{re.escape(BEGIN)}|{re.escape(END)}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
"""CLIP's pre-tokenization: a special token, a contraction's ending, letters, one digit, or other symbols."""


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's byte-pair encoding, from a folder with its vocabulary (`find_vocabulary`).

    Built from the tokenizers library as in transformers, whose import takes a second.
    """

    folder: Path

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
        except ImportError as error:
            raise BadRequest("CLIP prompts need the tokenizers library: pip install 'kinema[text]'") from error
        try:
            vocabulary, merges = self._read()
            parts = models.BPE(
                vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
            )
        except BadRequest as error:
            raise BadRequest(f"the vocabulary in {self.folder} is damaged: {error}") from error
        except Exception as error:  # the library can raise anything for a damaged file
            raise BadRequest(f"the vocabulary in {self.folder} is damaged; expected CLIP's") from error
        if BEGIN not in vocabulary or END not in vocabulary:
            raise BadRequest(f"the vocabulary in {self.folder} is not CLIP's: expected the tokens {BEGIN} and {END}")
        tokenizer: Any = Tokenizer(parts)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (BEGIN, END)])
        return tokenizer

    def _read(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Read the ids of the subwords and the merges, most frequent first."""
        (vocab, lines), (whole,) = VOCABULARIES
        if (self.folder / vocab).is_file() and (self.folder / lines).is_file():
            text = read_bytes(self.folder / lines, MAX_JSON, "CLIP's merges")
            rules = decoded(text, str(self.folder / lines)).splitlines()
            vocabulary, pairs = read_json(self.folder / vocab), [x for x in rules if x and not x.startswith("#version")]
        else:
            model = read_json(self.folder / whole)["model"]
            vocabulary, pairs = model["vocab"], model["merges"]
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
        return vocabulary, cast(list[tuple[str, str]], merges)

    @property
    def begin(self) -> int:
        return int(self._tokenizer.token_to_id(BEGIN))

    @property
    def end(self) -> int:
        return int(self._tokenizer.token_to_id(END))

    @property
    def comma(self) -> int | None:
        return cast(int | None, self._tokenizer.token_to_id(",</w>"))

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class WordTokenizer:
    """Whole words, for pocket models: ids of the config's words, then of the start and end tokens."""

    words: tuple[str, ...]

    @cached_property
    def pocket(self) -> PocketTokenizer:
        return PocketTokenizer(self.words)

    @property
    def begin(self) -> int:
        return self.pocket.size

    @property
    def end(self) -> int:
        return self.pocket.size + 1

    @property
    def comma(self) -> None:
        return None

    @property
    def size(self) -> int:
        return self.pocket.size + 2

    def tokens(self, text: str) -> list[int]:
        count = len(self.pocket.split(text))
        return self.pocket.encode([text], count)[0].tolist() if count else []


def find_vocabulary(weights: Path | None, *, offline: bool = False) -> Path:
    """Find the folder with CLIP's vocabulary: in the model's folder, next to its file, or on the hub (cache first).

    ``offline`` only looks in that cache. Raises `BadRequest` naming the missing files and the places searched.
    """
    places: list[Path] = []
    if weights is not None:
        root = weights if weights.is_dir() else weights.parent
        places = [root / "tokenizer", root]
    for place in places:
        if any(all((place / name).is_file() for name in names) for names in VOCABULARIES):
            return place
    for cache_only in (True,) if offline else (True, None):
        try:
            return hub.fetch(HUB_NAME, offline=cache_only, patterns=VOCABULARIES[0])
        except BadRequest:
            continue
    searched = f"in {places[0]}, next to the weights or " if places else ""
    fix = f"put the two files into {places[0]}" if places else "go online once"
    raise BadRequest(
        f"CLIP's vocabulary ({' and '.join(VOCABULARIES[0])}) is not {searched}in the hub's cache, and {HUB_NAME} "
        f"cannot be downloaded; {fix}"
    )


# ------------------------------------------------------------------------------------------ prompts


def rows(tokenizer: Tokenizer, text: str, length: int, pad: int | None = None) -> Tensor:
    """Return the ids R×L of a text, split into as many rows of ``length`` tokens as it needs.

    Every row has CLIP's start and end tokens and is padded with ``pad``; None pads with the end token (SDXL's OpenCLIP
    tokenizer pads with 0).
    """
    tokens, size = tokenizer.tokens(text), length - 2
    parts = [tokens[at : at + size] for at in range(0, len(tokens), size)] or [[]]
    fill = tokenizer.end if pad is None else pad
    return torch.tensor(
        [[tokenizer.begin, *part, tokenizer.end, *[fill] * (size - len(part))] for part in parts], dtype=torch.long
    )


def encode(
    encoders: Sequence[tuple[ClipText, ClipTextSize, int | None]],
    tokenizer: Tokenizer,
    text: str,
    *,
    skip: int = 0,
    penultimate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Encode a prompt with one or more encoders; returns concatenated states 1×(R·L)×C and the first row's pooled 1×P.

    ``encoders`` are (network, size, pad). ``skip`` omits that many last layers (CivitAI's clip skip minus one);
    ``penultimate`` omits one more layer and the final norm, as in SDXL.
    """
    widths, pooled = [], None
    for network, size, pad in encoders:
        ids = rows(tokenizer, text, size.length, pad).to(network.text_model.final_layer_norm.weight.device)
        states_RLC, first = network(ids, tokenizer.end, skip=skip + penultimate, norm=not penultimate)
        widths.append(states_RLC.flatten(0, 1)[None])
        pooled = pooled if first is None else first[:1]
    return torch.cat(widths, dim=-1), pooled
