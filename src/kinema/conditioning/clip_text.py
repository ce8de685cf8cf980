"""CLIP's text encoders (Radford et al. 2021; OpenCLIP) under the names of transformers, and prompts of any length.

The tower is written here, as `clip_vision` is: importing the library's takes longer than a model takes to load.
The tokenizer is the tokenizers library's, imported where it is used.

Letters: N rows of tokens, L tokens of a row, C width, P width of the pooled embedding.
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
from kinema.schema import BadRequest

HUB_NAME = "openai/clip-vit-large-patch14"
"""Where the vocabulary of every published CLIP text encoder can be fetched: all have the same."""
VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
"""The files of a vocabulary, as they were published and as transformers 5 saves them."""


@dataclass(frozen=True)
class ClipTextSize:
    """One text encoder; the defaults are ViT-L/14's, of Stable Diffusion 1.5 (123,060,480 parameters)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = None
    """Width of the pooled embedding; None for an encoder without one."""
    vocabulary: int = 49408
    length: int = 77
    """Tokens of a row, the first and the last of which only say that it begins and ends."""


BIG_G = ClipTextSize(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection=1280)  # 694,659,840


class ClipText(nn.Module):
    """``forward(ids N×L) -> (states N×L×C, pooled N×P or None)``."""

    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        self.text_model = _Tower(size)
        self.text_projection = nn.Linear(size.width, size.projection, bias=False) if size.projection else None

    def forward(self, ids_NL: Tensor, end: int, *, skip: int = 0, norm: bool = True) -> tuple[Tensor, Tensor | None]:
        """States after all layers but the last ``skip``, through the final norm if ``norm``.

        Pooled is the projection of the last layer's state at the first token ``end``.
        """
        tower = self.text_model
        states = tower.states(ids_NL)
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

    def states(self, ids_NL: Tensor) -> list[Tensor]:
        """The embedded tokens and what each layer made of them."""
        states = [self.embeddings(ids_NL)]
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            states.append(layer(states[-1]))
        return states


class _Embeddings(nn.Module):
    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(size.vocabulary, size.width)
        self.position_embedding = nn.Embedding(size.length, size.width)

    def forward(self, ids_NL: Tensor) -> Tensor:
        return self.token_embedding(ids_NL) + self.position_embedding.weight[: ids_NL.shape[1]]


class _Layer(nn.Module):
    """Causal self-attention and two linear layers, each on a layer norm and added to the tokens."""

    def __init__(self, size: ClipTextSize) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.activation: Callable[[Tensor], Tensor] = F.gelu if size.activation == "gelu" else quick_gelu
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in _PROJECTIONS})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, size.mlp), "fc2": nn.Linear(size.mlp, width)})

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
    """Text to tokens, without those that begin and end a row."""

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...

    def tokens(self, text: str) -> list[int]: ...


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = rf"{re.escape(BEGIN)}|{re.escape(END)}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
"""What is one word to CLIP: a mark, the end of a contraction, letters, one digit, or other signs."""


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's byte-pair encoding, from a folder with its vocabulary (`find_vocabulary`).

    Composed here of the parts of the tokenizers library, as transformers does, whose import takes a second.
    """

    folder: Path

    @cached_property
    def _theirs(self) -> Any:
        try:
            from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
        except ImportError as error:
            raise BadRequest("words need the tokenizers library: pip install 'kinema[text]'") from error
        try:
            vocabulary, merges = self._read()
            parts = models.BPE(
                vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
            )
        except BadRequest as error:
            raise BadRequest(f"the vocabulary in {self.folder} is damaged: {error}") from error
        except Exception as error:  # the library raises whatever a damaged file leads it to
            raise BadRequest(f"the vocabulary in {self.folder} is damaged; expected CLIP's") from error
        if BEGIN not in vocabulary or END not in vocabulary:
            raise BadRequest(f"the vocabulary in {self.folder} is not CLIP's: it has no marks of beginning and end")
        made: Any = Tokenizer(parts)
        made.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        made.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (BEGIN, END)])
        return made

    def _read(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Ids of the parts of words, and which two parts become one, the most frequent first."""
        (vocab, lines), (whole,) = VOCABULARIES
        if (self.folder / vocab).is_file() and (self.folder / lines).is_file():
            text = read_bytes(self.folder / lines, MAX_JSON, "CLIP's merges")
            told = decoded(text, str(self.folder / lines)).splitlines()
            vocabulary, pairs = read_json(self.folder / vocab), [x for x in told if x and not x.startswith("#version")]
        else:
            model = read_json(self.folder / whole)["model"]
            vocabulary, pairs = model["vocab"], model["merges"]
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
        return vocabulary, cast(list[tuple[str, str]], merges)

    @property
    def begin(self) -> int:
        return int(self._theirs.token_to_id(BEGIN))

    @property
    def end(self) -> int:
        return int(self._theirs.token_to_id(END))

    def tokens(self, text: str) -> list[int]:
        return list(self._theirs.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class WordTokenizer:
    """Whole words, for pocket models: the words of the config, then the marks of beginning and end."""

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
    def size(self) -> int:
        return self.pocket.size + 2

    def tokens(self, text: str) -> list[int]:
        count = len(self.pocket.split(text))
        return self.pocket.encode([text], count)[0].tolist() if count else []


def find_vocabulary(weights: Path | None, *, offline: bool = False) -> Path:
    """The folder with CLIP's vocabulary: of the model's folder, beside its file, or from the hub (its cache first).

    ``offline`` looks in that cache alone. Raises `BadRequest` that says what is missing and where it was looked for.
    """
    places: list[Path] = []
    if weights is not None:
        root = weights if weights.is_dir() else weights.parent
        places = [root / "tokenizer", root]
    for place in places:
        if any(all((place / name).is_file() for name in names) for names in VOCABULARIES):
            return place
    for cache_alone in (True,) if offline else (True, None):
        try:
            return hub.fetch(HUB_NAME, offline=cache_alone, patterns=VOCABULARIES[0])
        except BadRequest:
            continue
    looked = f"in {places[0]}, beside the weights or " if places else ""
    raise BadRequest(
        f"CLIP's vocabulary ({' and '.join(VOCABULARIES[0])}) is not {looked}in the hub's cache, and {HUB_NAME} "
        "cannot be fetched; put the two files there"
    )


# ------------------------------------------------------------------------------------------ prompts


def rows(tokenizer: Tokenizer, text: str, length: int, pad: int | None = None) -> Tensor:
    """Tokens of a text in as many rows of ``length`` as it needs, at least one: ids R×L.

    Every row begins and ends as CLIP was trained; what is left over is filled with ``pad`` (the end mark, unless
    told otherwise: OpenCLIP's tokenizer in SDXL has 0).
    """
    told, room = tokenizer.tokens(text), length - 2
    parts = [told[at : at + room] for at in range(0, len(told), room)] or [[]]
    fill = tokenizer.end if pad is None else pad
    return torch.tensor(
        [[tokenizer.begin, *part, tokenizer.end, *[fill] * (room - len(part))] for part in parts], dtype=torch.long
    )


def encode(
    encoders: Sequence[tuple[ClipText, ClipTextSize, int | None]],
    tokenizer: Tokenizer,
    text: str,
    *,
    skip: int = 0,
    penultimate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A prompt by one or more encoders, side by side: states 1×(R·L)×C and the pooled embedding 1×P of the first row.

    ``encoders`` are (network, size, pad). ``skip`` layers are left out at the end (CivitAI's clip skip less one);
    ``penultimate`` is SDXL's way: one layer fewer, and no final norm.
    """
    widths, pooled = [], None
    for network, size, pad in encoders:
        ids = rows(tokenizer, text, size.length, pad).to(network.text_model.final_layer_norm.weight.device)
        states_RLC, first = network(ids, tokenizer.end, skip=skip + penultimate, norm=not penultimate)
        widths.append(states_RLC.flatten(0, 1)[None])
        pooled = pooled if first is None else first[:1]
    return torch.cat(widths, dim=-1), pooled
